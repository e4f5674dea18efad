"""The input pipeline: reads batches from a prepared data set."""
