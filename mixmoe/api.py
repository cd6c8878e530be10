"""The two doors of the package: `fit` a formula, `load` a file."""

import os
from collections.abc import Mapping
from typing import Any

import pandas as pd

from mixmoe import results
from mixmoe.design.formula import MoEFormula, parse_formula
from mixmoe.errors import ArgumentError
from mixmoe.families import families, family_of, model_options


def fit(formula: str | MoEFormula, data: Any, experts: int | None = None, **options: Any) -> Any:
    """Fit a mixture of experts, or a network with person effects.

    Parameters
    ----------
    formula : str
        ``"y ~ time + x | gate: z | re: (1 + time | id)"`` is a `MEMoE`, ``"y ~ x | gate: z | vary: u"`` a `VCMoE`,
        ``"y ~ x | re: (last | id)"`` with ``hidden=`` or ``network=`` an `NME`, and so is a formula with ``seq: day``.
    data : DataFrame (pandas or polars) or mapping of columns
    experts : int, optional
        Number of experts, 2 unless given; 1 is the ordinary mixed model. A network has none.
    **options
        Of the model (`MEMoE`: ``cov_re=``, ``residual=``, ``errors=`` ...; `VCMoE`: ``bandwidth=`` ...; `NME`:
        ``hidden=``, ``network=`` ...; all: ``family=``, ``context=``, ``formula_engine=``) and of its fit (``rng=``,
        ``progress=``; of mixtures ``starts=``, ``start=``, ``cov_type=``, ``max_iter=``, ``tol=`` ...).

    Returns
    -------
    MEMoEResults, VCMoEResults or NMEResults

    Raises
    ------
    FormulaError, DesignError, ArgumentError
        See `MEMoE`, `VCMoE`, `NME`.

    Examples
    --------
    >>> import mixmoe as mm
    >>> data = mm.datasets.load("sleepstudy")
    >>> print(round(mm.fit("reaction ~ days | re: (1 + days | subject)", data, experts=1).llf, 3))
    -875.97
    """
    parsed = formula if isinstance(formula, MoEFormula) else parse_formula(formula)
    family = family_of(parsed, options)
    if family.spec.has_experts:
        options = {"experts": 2 if experts is None else experts, **options}
    elif experts not in (None, 1):
        raise ArgumentError(f"{family.spec.name} has no experts, got experts={experts!r}; leave it out")
    for_model = model_options(family, options)
    model = family(parsed, data, **for_model)
    return model.fit(**{name: value for name, value in options.items() if name not in for_model})


def load(
    path: str | os.PathLike[str], data: pd.DataFrame | None = None, context: Mapping[str, Any] | None = None
) -> results.Results:
    """A fit from a file that its `save` wrote; reading it cannot run code.

    Parameters
    ----------
    path : path-like
    data : DataFrame, optional
        The data of the fit, if it was saved without them.
    context : mapping, optional
        Functions and constants that the formula uses; give it only for files that you trust.

    Returns
    -------
    Results

    Raises
    ------
    SavedFileError
        If the file is no saved fit, or its formula is not limited to the built-in transforms.
    """
    return results.load(path, families(), data, context)
