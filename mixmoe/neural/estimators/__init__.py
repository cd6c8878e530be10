"""Estimators of networks with person effects."""
