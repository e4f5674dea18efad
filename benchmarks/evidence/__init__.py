"""Studies: variants of a config, trained over several seeds or folds, with their controls."""
