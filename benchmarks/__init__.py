"""Benchmarks, each started by `python -m benchmarks.<name>`."""
