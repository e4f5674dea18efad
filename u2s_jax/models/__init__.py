"""The networks of U2S as Flax Linen modules."""
