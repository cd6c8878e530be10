"""Choosing among mixtures."""
