"""Algebra, special functions and the optimiser: they know nothing of statistics and assume clean input."""
