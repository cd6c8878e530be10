"""Mixtures of experts for longitudinal and other structured data."""

__version__ = "0.1.0"
