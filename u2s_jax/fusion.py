"""Command that fuses score files, see `u2s_jax.evaluation.fusion`."""

from u2s_jax.evaluation.fusion import main

if __name__ == "__main__":
  main()
