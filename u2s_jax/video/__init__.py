"""Reads videos: one file to frames to the views of a clip, in NumPy, without TensorFlow."""
