"""Universal-to-specific (U2S) action recognition in JAX: models, staged training, evaluation."""
