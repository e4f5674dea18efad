"""`python -m benchmarks.linear_probe`, see `benchmarks.evidence.linear_probe`."""

from benchmarks.evidence.linear_probe import main

if __name__ == "__main__":
  main()
