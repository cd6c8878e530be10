"""Mixtures of experts for longitudinal and other structured data."""

from mixmoe import datasets, errors, simulate
from mixmoe.api import fit, load
from mixmoe.mixed.model import MEMoE
from mixmoe.mixed.results import MEMoEResults
from mixmoe.neural.model import NME, nme
from mixmoe.neural.results import NMEResults
from mixmoe.varying.model import VCMoE
from mixmoe.varying.results import VCMoEResults

__version__ = "0.1.0"
__all__ = [
    "NME",
    "MEMoE",
    "MEMoEResults",
    "NMEResults",
    "VCMoE",
    "VCMoEResults",
    "__version__",
    "datasets",
    "errors",
    "fit",
    "load",
    "nme",
    "simulate",
]
