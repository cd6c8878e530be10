"""Mixtures of experts for longitudinal and other structured data."""

from mixmoe import datasets, errors, simulate
from mixmoe.api import fit, load
from mixmoe.mixed.model import MEMoE
from mixmoe.mixed.results import MEMoEResults

__version__ = "0.1.0"
__all__ = ["MEMoE", "MEMoEResults", "__version__", "datasets", "errors", "fit", "load", "simulate"]
