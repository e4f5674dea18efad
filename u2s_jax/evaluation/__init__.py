"""From trained networks to scores, tables and what figures are made of."""
