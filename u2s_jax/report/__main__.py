"""`python -m u2s_jax.report`, see `u2s_jax.report.cli`."""

from u2s_jax.report.cli import main

if __name__ == "__main__":
  main()
