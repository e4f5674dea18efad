"""Prediction with a trained run, and its export."""
