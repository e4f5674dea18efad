"""Figures and an HTML page of a finished run, from its files alone."""
