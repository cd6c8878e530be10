"""Mixtures of experts for longitudinal and other structured data."""

from typing import Any

from mixmoe import datasets, simulate
from mixmoe.mixed.model import MEMoE
from mixmoe.mixed.results import MEMoEResults

__version__ = "0.1.0"


def fit(formula: str, data: Any, experts: int = 2, **options: Any) -> MEMoEResults:
    return MEMoE(formula, data, experts).fit(**options)
