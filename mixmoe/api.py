"""The door of the package: `fit` a formula."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from mixmoe.design.formula import MoEFormula, parse_formula
from mixmoe.design.frame import view
from mixmoe.errors import ArgumentError, FormulaError
from mixmoe.families import ModelClass, families, family_of, model_options, of_partitions
from mixmoe.partitions.scan import as_partitions, is_partitioned

if TYPE_CHECKING:
    from mixmoe.atomic import PathLike
    from mixmoe.mixed.error_structure import ErrorsBy, ErrorsDist
    from mixmoe.mixed.likelihood.serial import ErrorKind
    from mixmoe.mixed.parameters import CovRE, Residual
    from mixmoe.mixed.results import MEMoEResults
    from mixmoe.neural.estimators.trained import Estimator
    from mixmoe.neural.mixture.network_parameters import Sharing
    from mixmoe.neural.mixture.results import NMoEResults
    from mixmoe.neural.results import NMEResults
    from mixmoe.varying.results import VCMoEResults


# What an editor and a type checker know of `fit`: the first overload whose arguments fit says which results come back.
# The keywords are those of constructor, fit and covariance of each family; a test compares them.
@overload
def fit(
    formula: str | MoEFormula,
    data: Any,
    experts: int | None = ...,
    *,
    body: "Sharing",
    hidden: Sequence[int] | Mapping[str, Sequence[int]] = ...,
    activation: str = ...,
    cov_re: "Sharing" = ...,
    residual: "Sharing" = ...,
    weight_decay: float | None = ...,
    cluster: Any = ...,
    context: Mapping[str, Any] | None = ...,
    formula_engine: str = ...,
    starts: int | None = ...,
    start: Any = ...,
    max_iter: int = ...,
    tol: float = ...,
    rng: Any = ...,
    cov_type: str = ...,
    progress: bool | None = ...,
) -> "NMoEResults": ...


@overload
def fit(
    formula: str | MoEFormula,
    data: Any,
    *,
    hidden: Sequence[int],
    activation: str = ...,
    network: None = ...,
    family: str = ...,
    estimator: "Estimator" = ...,
    cov: str | int | None = ...,
    device: str = ...,
    transitions: Mapping[Any, Mapping[Any, float | None]] | None = ...,
    offset: Any = ...,
    weights: Any = ...,
    context: Mapping[str, Any] | None = ...,
    formula_engine: str = ...,
    epochs: int | None = ...,
    lr: float = ...,
    annealing: float | None = ...,
    penalty: float | None = ...,
    weight_decay: float | None = ...,
    batch_size: int | None = ...,
    validation: float | None = ...,
    patience: int | None = ...,
    baselines: bool = ...,
    holdout: float = ...,
    starts: int = ...,
    rng: Any = ...,
    progress: bool = ...,
) -> "NMEResults": ...


@overload
def fit(
    formula: str | MoEFormula,
    data: Any,
    *,
    network: Any,
    activation: str = ...,
    hidden: None = ...,
    family: str = ...,
    estimator: "Estimator" = ...,
    cov: str | int | None = ...,
    device: str = ...,
    transitions: Mapping[Any, Mapping[Any, float | None]] | None = ...,
    offset: Any = ...,
    weights: Any = ...,
    context: Mapping[str, Any] | None = ...,
    formula_engine: str = ...,
    epochs: int | None = ...,
    lr: float = ...,
    annealing: float | None = ...,
    penalty: float | None = ...,
    weight_decay: float | None = ...,
    batch_size: int | None = ...,
    validation: float | None = ...,
    patience: int | None = ...,
    baselines: bool = ...,
    holdout: float = ...,
    starts: int = ...,
    rng: Any = ...,
    progress: bool = ...,
) -> "NMEResults": ...


@overload
def fit(
    formula: str | MoEFormula,
    data: Any,
    experts: int | None = ...,
    *,
    bandwidth: float | str,
    family: str = ...,
    span: float | str | None = ...,
    gate_bandwidth: float | str | None = ...,
    dispersion: str = ...,
    errors_dist: str = ...,
    errors_df: float | None = ...,
    grid: Any = ...,
    n_grid: int | None = ...,
    trials: str | None = ...,
    offset: str | None = ...,
    weights: str | None = ...,
    cluster: str | None = ...,
    estimate: str = ...,
    gate_penalty: str | float | None = ...,
    sigma_floor: float = ...,
    context: Mapping[str, Any] | None = ...,
    formula_engine: str = ...,
    starts: int | None = ...,
    start: Any = ...,
    max_iter: int = ...,
    tol: float = ...,
    rng: Any = ...,
    cov_type: str | None = ...,
    folds: int | None = ...,
    n_jobs: int = ...,
    progress: bool | None = ...,
    correction: bool = ...,
) -> "VCMoEResults": ...


@overload
def fit(
    formula: str | MoEFormula,
    data: Any,
    experts: int | None = ...,
    *,
    cov_re: "CovRE" = ...,
    residual: "Residual" = ...,
    errors: "ErrorKind" = ...,
    time: str | None = ...,
    errors_by: "ErrorsBy | None" = ...,
    errors_dist: "ErrorsDist" = ...,
    errors_df: float | None = ...,
    family: str = ...,
    n_quad: int = ...,
    trials: str | None = ...,
    offset: str | None = ...,
    weights: str | None = ...,
    gate_penalty: str | float | None = ...,
    smoothing: Any = ...,
    smoother: str | None = ...,
    method: str = ...,
    context: Mapping[str, Any] | None = ...,
    formula_engine: str = ...,
    starts: int | None = ...,
    start: Any = ...,
    max_iter: int = ...,
    tol: float = ...,
    rng: Any = ...,
    cov_type: str = ...,
    progress: bool | None = ...,
    checkpoint: "PathLike | None" = ...,
    cluster: Any = ...,
    correction: bool = ...,
    unconditional: bool = ...,
    n_boot: int = ...,
    n_jobs: int = ...,
) -> "MEMoEResults": ...


def fit(formula: str | MoEFormula, data: Any, experts: int | None = None, **options: Any) -> Any:
    """Fit a mixture of experts, or a network with person effects.

    Parameters
    ----------
    formula : str
        ``"y ~ time + x | gate: z | re: (1 + time | id)"`` is a `MEMoE`, ``"y ~ x | gate: z | vary: u"`` a `VCMoE`,
        ``"y ~ x | re: (last | id)"`` with ``hidden=`` or ``network=`` an `NME`, and so is a formula with ``seq: day``;
        ``"y ~ nn(x) | gate: nn(z) | re: (1 | id)"`` an `NMoE`.
    data : DataFrame (pandas or polars), mapping of columns, partitions of `mixmoe.scan`, or a Dask frame
    experts : int, optional
        Number of experts, 2 unless given; 1 is the ordinary mixed model. A network has none.
    **options
        Of the model (`MEMoE`: ``cov_re=``, ``residual=``, ``errors=`` ...; `VCMoE`: ``bandwidth=`` ...; `NME`:
        ``hidden=``, ``network=`` ...; `NMoE`: ``hidden=``, ``body=`` ...; all: ``context=``, ``formula_engine=``) and
        of its fit (``rng=``,
        ``progress=``; of mixtures ``starts=``, ``start=``, ``cov_type=``, ``max_iter=``, ``tol=`` ...).

    Returns
    -------
    MEMoEResults, VCMoEResults, NMEResults or NMoEResults
        For editors and type checkers that of the options: give ``bandwidth=`` to a formula with ``vary:``, if only as
        ``bandwidth="cv"``, ``hidden=`` to a network, and ``body=`` to a mixture of networks, if only as
        ``body="expert"``.

    Raises
    ------
    FormulaError, DesignError, ArgumentError
        See `MEMoE`, `VCMoE`, `NME`, `NMoE`.

    Examples
    --------
    >>> import mixmoe as mm
    >>> data = mm.datasets.load("sleepstudy")
    >>> print(round(mm.fit("reaction ~ days | re: (1 + days | subject)", data, experts=1).llf, 3))
    -875.97
    """
    parsed = formula if isinstance(formula, MoEFormula) else parse_formula(formula)
    partitions = as_partitions(data)
    data = data if partitions is None else partitions
    family = family_of(parsed, options)
    # Options first: a misspelt one, such as 'hiden', sends the formula to a family that cannot read it.
    for_model = model_options(family, options)
    refuse_foreign_effects(parsed, family, data)
    if family.spec.has_experts:
        for_model = {"experts": 2 if experts is None else experts, **for_model}
    elif experts not in (None, 1):
        raise ArgumentError(f"{family.spec.name} has no experts, got experts={experts!r}; leave it out")
    # What the constructor does not take belongs to the fit, and has been checked to be known there.
    made = family if partitions is None else of_partitions(family)
    model = made(parsed, data, **for_model)
    return model.fit(**{name: value for name, value in options.items() if name not in for_model})


def refuse_foreign_effects(formula: MoEFormula, family: ModelClass, data: Any) -> None:
    """Refuse random effects that only another family knows.

    Parameters
    ----------
    formula : MoEFormula
    family : class
        The model class that fits it.
    data : DataFrame, mapping of columns, or partitions

    Raises
    ------
    FormulaError
        If a word in ``re:`` is no column of the data but a word of another family.
    """
    if formula.random is None:
        return
    frame = data.columns if is_partitioned(data) else view(data)
    # Only a word that is no column can be meant for another family: columns may be called as its layers are.
    words = [word.strip(" `") for word in formula.random.design.split("+")]
    for spec in (other.spec for other in families().values() if other is not family):
        for word in words:
            if spec.effects and re.fullmatch(spec.effects, word) and word not in frame:
                raise FormulaError(
                    f"{word!r} in re: is no column of the data; "
                    f"{family.spec.lacks.get('PersonalLayers', spec.effects_hint)}",
                    formula.text,
                    formula.text.find(word, formula.text.find("re:")),
                    len(word),
                )
