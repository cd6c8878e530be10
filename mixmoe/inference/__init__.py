"""Covariances, tests and selection criteria, independent of the model family."""
