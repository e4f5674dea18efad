"""Weights to start from: reading files, their names, fitting them to our networks."""
