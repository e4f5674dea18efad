"""Figures and the HTML page of a finished run, from its files alone."""
