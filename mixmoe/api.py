"""The two doors of the package: `fit` a formula, `load` a file."""

import inspect
import os
from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

import pandas as pd

from mixmoe import results
from mixmoe.design.formula import MoEFormula, parse_formula
from mixmoe.errors import ArgumentError

_FAMILIES: Mapping[str, str] = MappingProxyType(
    {"MEMoE": "mixmoe.mixed.model", "VCMoE": "mixmoe.varying.model", "NME": "mixmoe.neural.model"}
)
_OF_COVARIANCE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"MEMoE": ("cluster", "correction", "n_boot", "n_jobs"), "VCMoE": ("correction",), "NME": ()}
)
_ASKED_BY: Mapping[str, str] = MappingProxyType(
    {"VCMoE": "formulas with a section 'vary: u'", "MEMoE": "formulas without a section 'vary:'"}
)


def fit(formula: str, data: Any, experts: int = 2, **options: Any) -> Any:
    """Fit a mixture of experts.

    Parameters
    ----------
    formula : str
        ``"y ~ time + x | gate: z | re: (1 + time | id)"`` is a `MEMoE`, ``"y ~ x | gate: z | vary: u"`` a `VCMoE`.
    data : DataFrame (pandas or polars) or mapping of columns
    experts : int
        Number of experts; 1 is the ordinary mixed model.
    **options
        Of the model (`MEMoE`: ``cov_re=``, ``residual=``, ``errors=`` ...; `VCMoE`: ``bandwidth=``, ``family=`` ...;
        both: ``context=``, ``formula_engine=``) and of its fit (``starts=``, ``start=``, ``rng=``, ``cov_type=``,
        ``max_iter=``, ``tol=``, ``progress=`` ...).

    Returns
    -------
    MEMoEResults or VCMoEResults

    Raises
    ------
    FormulaError, DesignError, ArgumentError
        See `MEMoE`, `VCMoE`.

    Examples
    --------
    >>> import mixmoe as mm
    >>> data = mm.datasets.load("sleepstudy")
    >>> print(round(mm.fit("reaction ~ days | re: (1 + days | subject)", data, experts=1).llf, 3))
    -875.97
    """
    parsed = formula if isinstance(formula, MoEFormula) else parse_formula(formula)
    family = family_of(parsed)
    for_model = model_options(family, options)
    model = family(parsed, data, experts, **for_model)
    return model.fit(**{k: v for k, v in options.items() if k not in for_model})


def family_of(formula: MoEFormula, network: bool = False) -> Any:
    """The class that fits a formula; that of networks, whose formulas look alike, if `network`."""
    return _family("NME" if network else "VCMoE" if formula.vary is not None else "MEMoE")


def model_options(family: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that the constructor of a family takes.

    Raises
    ------
    ArgumentError
        If neither constructor nor fit has one of them.
    """
    for_model = inspect.signature(family.__init__).parameters
    for_fit = inspect.signature(family.fit).parameters
    covariance = _OF_COVARIANCE[family.family_name]
    for name in options:
        if name not in for_model and name not in for_fit and name not in covariance:
            known = [n for n in (*for_model, *for_fit, *covariance) if n not in ("self", "cov_options")]
            raise ArgumentError(f"fit has no option {name!r}; {_elsewhere(name, family)}it has {', '.join(known)}")
    return {name: value for name, value in options.items() if name in for_model}


def _elsewhere(option: str, family: Any) -> str:
    """In words which other family has an option and how to ask for it; none for options that nobody has."""
    others = [name for name in _ASKED_BY if name != family.family_name]
    found = [name for name in others if option in inspect.signature(_family(name).__init__).parameters]
    return "".join(f"{name} has, which fits {_ASKED_BY[name]}; " for name in found[:1])


def _family(name: str) -> Any:
    """The class of a family, imported when it is needed."""
    return getattr(import_module(_FAMILIES[name]), name)


def load(
    path: str | os.PathLike[str],
    data: pd.DataFrame | None = None,
    context: Mapping[str, Any] | None = None,
    network: Any = None,
) -> results.MoEResults:
    """A fit from a file that its `save` wrote; reading it cannot run code.

    Parameters
    ----------
    path : path-like
    data : DataFrame, optional
        The data of the fit, if it was saved without them.
    context : mapping, optional
        Functions and constants that the formula uses; give it only for files that you trust.
    network : torch.nn.Module, optional
        The network of a fit that had one of your own; the file holds its parameters, not its code.

    Returns
    -------
    MoEResults

    Raises
    ------
    SavedFileError
        If the file is no saved fit, or its formula is not limited to the built-in transforms.
    """
    return results.load(path, {name: _family(name) for name in _FAMILIES}, data, context, network)
