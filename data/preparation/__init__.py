"""The command `python -m data.prepare`: converts videos or images to a prepared data set."""
