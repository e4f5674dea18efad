"""The networks of U2S as Flax Linen modules: plain arguments in, a dict of arrays out."""
