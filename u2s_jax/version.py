"""The version of the package, which an export keeps."""

__version__ = "0.1.0"
