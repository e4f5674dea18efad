"""A trained run at work on single files, and exported."""
