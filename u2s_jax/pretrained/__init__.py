"""Pretrained weights: reads files, translates names, fits arrays to the networks."""
