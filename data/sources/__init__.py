"""What a data set consists of: a function from a folder to a `Listing` for each kind of source."""
