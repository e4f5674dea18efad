"""Data set sources: one module each, with a function from a folder to a `Listing`."""
