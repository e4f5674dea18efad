"""Processes, files, devices and terminals; independent of the U2S method."""
