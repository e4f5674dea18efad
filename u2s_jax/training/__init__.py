"""The staged training."""
