"""Mixtures of experts for longitudinal and other structured data.

The families are imported when they are first asked for, so that ``import mixmoe`` costs little more than statsmodels.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mixmoe import datasets, errors, simulate
from mixmoe.api import fit
from mixmoe.loading import load
from mixmoe.partitions.scan import scan
from mixmoe.report.tidy import table

if TYPE_CHECKING:
    from mixmoe.mixed.model import MEMoE
    from mixmoe.mixed.results import MEMoEResults
    from mixmoe.multiple_imputation import pool
    from mixmoe.neural.mixture.model import NMoE
    from mixmoe.neural.mixture.results import NMoEResults
    from mixmoe.neural.model import NME
    from mixmoe.neural.results import NMEResults
    from mixmoe.selection.choice import Selection, select
    from mixmoe.selection.many_responses import fit_each
    from mixmoe.varying.model import VCMoE
    from mixmoe.varying.results import VCMoEResults

__version__ = "0.1.0"
__all__ = [
    "NME",
    "MEMoE",
    "MEMoEResults",
    "NMEResults",
    "NMoE",
    "NMoEResults",
    "Selection",
    "VCMoE",
    "VCMoEResults",
    "__version__",
    "datasets",
    "errors",
    "fit",
    "fit_each",
    "load",
    "pool",
    "scan",
    "select",
    "simulate",
    "table",
]
_WHERE = {
    "MEMoE": "mixmoe.mixed.model",
    "MEMoEResults": "mixmoe.mixed.results",
    "NME": "mixmoe.neural.model",
    "NMEResults": "mixmoe.neural.results",
    "NMoE": "mixmoe.neural.mixture.model",
    "NMoEResults": "mixmoe.neural.mixture.results",
    "Selection": "mixmoe.selection.choice",
    "VCMoE": "mixmoe.varying.model",
    "VCMoEResults": "mixmoe.varying.results",
    "fit_each": "mixmoe.selection.many_responses",
    "pool": "mixmoe.multiple_imputation",
    "select": "mixmoe.selection.choice",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'mixmoe' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
