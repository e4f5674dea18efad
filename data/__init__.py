"""Reading videos: the only package that imports TensorFlow; it imports nothing from `u2s_jax`."""
