"""Predictions, functions and bands as tidy frames."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri

from mixmoe._typing import Array
from mixmoe.check.residuals import placed
from mixmoe.design.beside import check_beside
from mixmoe.design.design import Design, used_columns
from mixmoe.design.frame import shown
from mixmoe.design.labels import places_of
from mixmoe.errors import ArgumentError, DesignError
from mixmoe.families import Distribution
from mixmoe.output.predictions import Interval, Wanted, by_expert, in_user_order, mean_columns
from mixmoe.responses.distribution import Family
from mixmoe.responses.exponential import family_named
from mixmoe.varying.bands import (
    DRAWS,
    LevelProcess,
    Target,
    asymptotic_critical,
    difference_target,
    expert_target,
    gate_target,
    identity_target,
    marginal_target,
    pairs,
    symmetric,
    target_bands,
)
from mixmoe.varying.bootstrap import bootstrap_bands
from mixmoe.varying.dispersion_limits import ThetaProfile
from mixmoe.varying.em_steps import Natural, natural_parameters, own_natural, posterior
from mixmoe.varying.fitted import FittedVCMoE, band_frame_values
from mixmoe.varying.gate_limits import with_gate_limits
from mixmoe.varying.interpolation import hermite_matrix
from mixmoe.varying.problem import Rows
from mixmoe.varying.setup import checked_numbers, sorted_rows

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.intp]
SUBJECTS = ("coefficients", "probabilities", "experts", "mean", "differences")
# What a reader must know about a value, in the column `mark`.
OUTSIDE = "outside"  # the estimate lies outside its own band, whose correction for bias moves the function so far
AT_LIMIT = "limit"  # the dispersion runs to its limit: no standard error; limits, if any, from its likelihood
THIN = "thin"  # no band: fewer than 2 degrees of freedom for the standard error
LOST = "no maximum"  # no band: the local fit behind it has no maximum near the fit
AT_COVARIATES = ("probabilities", "experts", "mean")
DERIVATIVES_OF = ("coefficients", "differences")
_LIMITS = ("std_error", "conf_low", "conf_high", "band_low", "band_high")
_OWN_COLUMNS = ("coefficient", "block", "expert", "term", "estimate", "center", *_LIMITS, "mark")  # beside the index


@dataclass(frozen=True, slots=True)
class BandRequest:
    """Arguments of `VCMoEResults.bands`, checked, and the clusters behind the covariance of the fit."""

    of: str = "coefficients"
    alpha: float = 0.05
    method: str = "multiplier"
    bias: str = "rbc"
    at: Mapping[str, Any] | None = None
    draws: int = DRAWS
    n_boot: int = 199
    n_jobs: int = 1
    progress: bool | None = None
    clusters: NDArray[np.intp] | None = None
    derivative: int = 0


@dataclass(frozen=True, slots=True)
class Labels:
    """Identification of the functions of a frame, one entry per function."""

    coefficient: tuple[str, ...]
    block: tuple[str, ...]
    expert: tuple[int | None, ...]
    term: tuple[str, ...]


def checked_index_name(name: str) -> None:
    """Refuse an index with the name of another column of the frames of functions and bands.

    Raises
    ------
    DesignError
    """
    if name in _OWN_COLUMNS:
        raise DesignError(
            f"the index is called {name!r}, as is a column of functions() and bands(), which beside the index have "
            f"{', '.join(_OWN_COLUMNS)}; rename it in the data"
        )


def function_frame(model: FittedVCMoE, u: Any) -> pd.DataFrame:
    """Coefficient functions at index values, tidy."""
    grid, problem = model.problem.windows.grid, model.problem
    at = np.sort(problem.windows.shown) if u is None else checked_numbers(u, "u")
    inside = np.isfinite(at) & ((problem.rows.period > 0.0) | ((grid[0] <= at) & (at <= grid[-1])))
    if not len(at) or not inside.all():
        raise ArgumentError(
            f"u must lie within the range of the index, {grid[0]:g} to {grid[-1]:g}, with at least one value, got {u!r}"
        )
    values = levels_at(model, at)
    logs = np.clip(values[:, problem.slots.dispersions], problem.floor, problem.ceiling)  # between grid points
    values[:, problem.slots.dispersions] = np.exp(logs)
    names = model.names
    labels = Labels(names.full, names.blocks, names.experts, names.terms)
    return _frame(labels, str(model.design.names.index), at, {"estimate": values})


def levels_at(model: FittedVCMoE, at: Array) -> Array:
    """Levels of all functions at index values, (n, L)."""
    problem, stop = model.problem, model.problem.slots.gates.start
    flat, grid, period = model.coef.reshape(-1, problem.slots.n), problem.windows.grid, problem.rows.period
    experts = hermite_matrix(grid, problem.windows.bandwidth, at, period) @ flat[:, :stop]
    gates = hermite_matrix(grid, problem.gate_windows.bandwidth, at, period) @ flat[:, stop:]
    return np.hstack([experts, gates])


def band_frame(
    model: FittedVCMoE,
    process: LevelProcess,
    theta: ThetaProfile | None,
    request: BandRequest,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Bands of what was asked for, tidy; of theta with the limits of its likelihood, if that is given."""
    problem, width = model.problem, model.problem.rows.span
    if problem.const.all():
        raise ArgumentError("no coefficient varies along the index, so there are no bands; conf_int() has the limits")
    labels = _profile_labels(model, request)
    profile = _profile(model, request)
    centred = _target(model, request, profile, process.levels)
    if request.method == "bootstrap":
        span = bootstrap_bands(
            model, request.clusters, lambda levels: _target(model, request, profile, levels).values, request.bias,
            request.alpha, request.n_boot, rng, request.n_jobs, request.progress, request.derivative,
        )  # fmt: skip
        ones = np.ones_like(span.se)
        bands = symmetric(centred.values, span.se, span.critical * ones, span.pointwise * ones, ones == 0.0)
    else:
        bands = target_bands(process, centred, request.alpha, request.method, width, rng, request.draws)
        if request.of == "coefficients" and not request.derivative:
            bands = with_gate_limits(problem, process.levels, bands, _shown(model, 0))
    estimate = _target(model, request, profile, model.values(request.derivative)).values
    values = {"estimate": estimate, **band_frame_values(bands)}
    limits = np.zeros(centred.values.shape, dtype=bool)
    if request.of == "coefficients" and not request.derivative:
        dispersions = _dispersions_shown(model)
        limits[:, dispersions] = process.limits[:, ~problem.const[problem.slots.dispersions]]
        values = _without_limits(values, limits)
        if theta is not None:
            closed = problem.rows.period > 0.0
            critical = asymptotic_critical(process.bandwidth / width, request.alpha, closed=closed)
            values = _with_theta_limits(values, theta, dispersions, request.alpha, critical)
        values = _dispersions_exponentiated(values, dispersions)
    if request.of == "probabilities":
        values = _on_link_scale(values, family_named("binomial"), 1.0)
    if profile is not None and request.of in ("experts", "mean"):
        values = _on_link_scale(values, problem.family, _trials(profile))
    marks = _marks(values, limits, bands.thin)
    order = np.argsort(problem.windows.shown, kind="stable")
    shown = {name: value[order] for name, value in {**values, "mark": marks}.items()}
    return _frame(labels, str(model.design.names.index), problem.windows.shown[order], shown)


def _without_limits(values: dict[str, Array], limits: BoolArray) -> dict[str, Array]:
    """Values without standard errors and limits of dispersions (on the log scale) that run to a limit."""
    return {name: np.where(limits & (name in _LIMITS), np.nan, value) for name, value in values.items()}


def _with_theta_limits(
    values: dict[str, Array], theta: ThetaProfile, where: IntArray, alpha: float, critical: float
) -> dict[str, Array]:
    """Values with the maximum and the limits of log theta from its adjusted profile likelihood.

    The critical value is that of the limiting process: where theta is near its ceiling, the covariance of the estimates
    says nothing. Log theta is locally constant, with the same equivalent kernel as a local line.
    """
    out = {name: value.copy() for name, value in values.items()}
    out["center"][:, where] = theta.level
    for kind, factor in (("conf", float(ndtri(1.0 - alpha / 2.0))), ("band", critical)):
        out[f"{kind}_low"][:, where], out[f"{kind}_high"][:, where] = theta.limits(factor)
    return out


def _marks(values: dict[str, Array], limits: BoolArray, thin: BoolArray) -> NDArray[np.str_]:
    """What a reader must know about each value: `OUTSIDE`, `AT_LIMIT`, `THIN`, `LOST` or nothing."""
    low, high, estimate = (values[name] for name in ("band_low", "band_high", "estimate"))
    out = np.where(np.isnan(low), np.where(thin, THIN, LOST), "")
    out = np.where(limits, AT_LIMIT, out)
    return np.where((estimate < low) | (estimate > high), OUTSIDE, out)


def _dispersions_shown(model: FittedVCMoE) -> IntArray:
    """Places of the dispersions among the functions that are shown."""
    return np.flatnonzero([model.names.blocks[s] == "residual" for s in _shown(model, 0)])


def _dispersions_exponentiated(values: dict[str, Array], where: IntArray) -> dict[str, Array]:
    centre = np.exp(values["center"][:, where])
    out = {name: value.copy() for name, value in values.items()}
    for name in out:
        with np.errstate(over="ignore"):  # a theta that nothing bounds from above has an infinite limit
            exponentiated = np.exp(values[name][:, where])
        out[name][:, where] = centre * values[name][:, where] if name == "std_error" else exponentiated
    return out


def _on_link_scale(values: dict[str, Array], family: Family, trials: float) -> dict[str, Array]:
    """Limits of means computed on the scale of the link with the same factors, which keeps them in their range."""
    out, mean, ones = dict(values), values["center"], np.full(1, trials)
    with np.errstate(divide="ignore", over="ignore"):
        eta = family.link(mean, ones)
        inside = np.isfinite(eta)  # a mean at the end of its range stays there
        safe = np.where(inside, eta, 0.0)
        slope = np.maximum(family.mean_slope(safe, ones), np.finfo(float).tiny)
        for name in ("conf_low", "conf_high", "band_low", "band_high"):
            out[name] = np.where(
                inside, family.mean(safe + (values[name] - mean) / slope, ones), values[name] * 0.0 + mean
            )
    return out


def _shown(model: FittedVCMoE, derivative: int) -> NDArray[np.intp]:
    """Functions that vary, without the dispersions where derivatives are shown: theirs are on the scale of logs."""
    kept = ~model.problem.const
    kept[model.problem.slots.dispersions] &= derivative == 0
    return np.flatnonzero(kept)


def _profile_labels(model: FittedVCMoE, request: BandRequest) -> Labels:
    of, names, k, slots = request.of, model.names, model.n_experts, model.problem.slots
    each = tuple(range(1, k + 1))
    if of == "coefficients":
        s = _shown(model, request.derivative)
        pick = lambda values: tuple(values[i] for i in s)  # noqa: E731
        return Labels(pick(names.full), pick(names.blocks), pick(names.experts), pick(names.terms))
    if of in ("probabilities", "experts"):
        word, block = ("probability", "gate") if of == "probabilities" else ("mean", "expert")
        return Labels(tuple(f"{word}{c}" for c in each), (block,) * k, each, (word,) * k)
    if of == "mean":
        return Labels(("mean",), ("mean",), (None,), ("mean",))
    full = [f"expert{b + 1}.{t} - expert{a + 1}.{t}" for b, a in pairs(slots) for t in model.design.names.expert]
    terms = [t for _ in pairs(slots) for t in model.design.names.expert]
    return Labels(tuple(full), ("difference",) * len(full), (None,) * len(full), tuple(terms))


def _profile(model: FittedVCMoE, request: BandRequest) -> Design | None:
    """The covariates at which probabilities and means are taken; None for what needs none."""
    alone = model.problem.slots.n_experts == 1
    if request.of == "differences" and alone:
        raise ArgumentError("of='differences' needs at least 2 experts, got 1; use of='coefficients'")
    if request.of == "probabilities" and alone:
        raise ArgumentError("of='probabilities' needs at least 2 experts, got 1, whose probability is one")
    if request.of in AT_COVARIATES:
        return covariate_profile(model.design, request.at, _beside(model))
    if request.at is not None:
        raise ArgumentError(
            f"at={request.at!r} is for of= {', '.join(map(repr, AT_COVARIATES))}, got of={request.of!r}, which depends "
            "on no covariates; leave it out"
        )
    return None


def _beside(model: FittedVCMoE) -> list[str]:
    """Columns beside the formula that means depend on."""
    return [str(model.settings[name]) for name in ("offset", "trials") if model.settings[name] is not None]


def profile_values(model: FittedVCMoE, of: str, at: Mapping[str, Any] | None) -> dict[str, Any]:
    """Covariates at which probabilities or means are taken, by column."""
    design = model.design
    row = covariate_profile(design, at, _beside(model)).frame.iloc[0]
    names = [] if of == "probabilities" else used_columns(design, "expert")
    if model.n_experts > 1:
        names = [*names, *used_columns(design, "gate")]
    return {name: row[name] for name in dict.fromkeys(names) if name != design.names.index}


def _target(model: FittedVCMoE, request: BandRequest, design: Design | None, levels: Array) -> Target:
    slots, family = model.problem.slots, model.problem.family
    if design is None:
        differences = request.of == "differences"
        return (
            difference_target(slots, levels)
            if differences
            else identity_target(levels, _shown(model, request.derivative))
        )
    gate = gate_target(slots, levels, design.gate[0])
    if request.of == "probabilities":
        return gate
    offset = design.aux["offset"][0] if model.settings["offset"] in (request.at or {}) else 0.0
    experts = expert_target(slots, family, levels, design.expert[0], _trials(design), float(offset))
    return experts if request.of == "experts" else marginal_target(gate, experts)


def _trials(design: Design) -> float:
    return float(design.aux["trials"][0]) if "trials" in design.aux else 1.0


def covariate_profile(design: Design, at: Mapping[str, Any] | None, beside: Sequence[str]) -> Design:
    """One row with covariates at given values, others at their median or most frequent category.

    Parameters
    ----------
    design : Design
    at : mapping, optional
    beside : sequence of str
        Columns beside the formula that means depend on.

    Raises
    ------
    ArgumentError
        If `at` names a column on which means and probabilities do not depend.
    """
    frame = design.frame
    if at is not None and not isinstance(at, Mapping):
        raise ArgumentError(f"at must map names of columns to values, got {at!r}; for instance at={{'x': 1.0}}")
    given = dict(at or {})
    known = [*dict.fromkeys([*used_columns(design, "expert"), *used_columns(design, "gate"), *beside])]
    for name in given:
        if name == design.names.index:
            raise ArgumentError(f"at names {name!r}, the index, along which bands run; leave it out")
        if name not in known:
            raise ArgumentError(
                f"at names {name!r}, which is no covariate of the model; it has {', '.join(map(repr, known)) or 'none'}"
            )
    row = {name: [given.get(name, _typical(frame[name]))] for name in frame.columns}
    try:
        return design.for_new(pd.DataFrame(row))
    except DesignError as error:
        raise ArgumentError(f"at={given!r} cannot be used: {error}") from error


def _typical(values: pd.Series) -> Any:
    if pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype):
        return float(values.median())
    return values.mode().iloc[0]


def _frame(labels: Labels, index: str, at: Array, values: Mapping[str, NDArray[Any]]) -> pd.DataFrame:
    """Tidy frame from arrays (G, R): functions one after the other."""
    n_grid, n_functions = len(at), len(labels.coefficient)
    columns: dict[str, Any] = {
        "coefficient": np.repeat(np.array(labels.coefficient, dtype=object), n_grid),
        "block": np.repeat(np.array(labels.block, dtype=object), n_grid),
        "expert": pd.array(np.repeat(np.array(labels.expert, dtype=object), n_grid), dtype="Int64"),
        "term": np.repeat(np.array(labels.term, dtype=object), n_grid),
        index: np.tile(at, n_functions),
    }
    return pd.DataFrame(columns | {name: value.T.ravel() for name, value in values.items()})


BISECTIONS = 200
_ALIKE = 1e-9  # of the largest value of a column


@dataclass(frozen=True, slots=True)
class PredictionRows:
    """Rows to predict, in the order of their design.

    Attributes
    ----------
    design : Design
    rows : Rows
    natural : Natural
    new : object
        What the user passed, None for the data of the fit.
    """

    design: Design
    rows: Rows
    natural: Natural
    new: Any


def prediction_rows(model: FittedVCMoE, new: Any, response: bool, extrapolate: bool) -> PredictionRows:
    """Rows and their predictors.

    Raises
    ------
    DesignError
        If the index leaves the range of the fit, or a column for offset or trials is missing.
    """
    design = model.design if new is None else model.design.for_new(new, response=response)
    check_beside(design, model.settings, ("offset", "trials"))
    made = sorted_rows(design, model.problem.family, response)
    grid, index, closed = model.problem.windows.grid, made.rows.index, model.problem.rows.period > 0.0
    if not (closed or extrapolate) and (index[0] < grid[0] or index[-1] > grid[-1]):
        value = index[0] if index[0] < grid[0] else index[-1]
        raise DesignError(
            f"the index {design.names.index!r} is {value:g}, outside the range of the fit, {grid[0]:g} to "
            f"{grid[-1]:g}; leave such rows out, or pass extrapolate=True to continue the functions as lines"
        )
    natural = natural_parameters(made.rows, model.problem.slots, levels_at(model, index))
    back = np.argsort(made.order)
    delta = np.clip(natural.delta, model.problem.floor, model.problem.ceiling)
    unsorted = Natural(natural.eta[:, back], delta[:, back], natural.log_gate[:, back])
    return PredictionRows(design, made.rows.take(back), unsorted, new)


def prediction_columns(
    model: FittedVCMoE, at: PredictionRows, past: PredictionRows | None, wanted: Wanted
) -> pd.DataFrame:
    """Predictions of one kind, in the user's order.

    Parameters
    ----------
    model : FittedVCMoE
    at : PredictionRows
    past : PredictionRows or None
        The same rows, or some of them, with their responses, if probabilities are to be posterior ones.
    wanted : Wanted
    """
    family, natural, trials = model.problem.family, at.natural, at.rows.outcome.trials
    experts = natural.eta if wanted.scale == "link" else family.mean(natural.eta, trials)
    prob = np.exp(natural.log_gate) if past is None else given_responses(family, at, past)
    columns: dict[str, Array] = {}
    if wanted.kind in ("all", "probabilities"):
        columns |= by_expert("probability", prob.T)
    if wanted.kind in ("all", "experts"):
        columns |= by_expert("expert", experts.T)
    if wanted.kind in ("all", "mean", "subject"):
        mean = (prob * experts).sum(axis=0)
        columns |= mean_columns(response_interval(family, at, prob, wanted.alpha) if wanted.noise else mean)
    return in_user_order(columns, at.design, at.new)


def response_interval(family: Family, at: PredictionRows, prob: Array, alpha: float) -> Interval:
    """Mean and standard deviation of a new response, and limits that hold it, each shape (n,).

    Parameters
    ----------
    family : Family
    at : PredictionRows
    prob : ndarray, shape (K, n)
        Of the experts.
    alpha : float
    """
    natural, trials = at.natural, at.rows.outcome.trials
    experts = family.mean(natural.eta, trials)
    mean = (prob * experts).sum(axis=0)
    within = family.variance(experts, natural.delta, trials)
    spread = np.sqrt((prob * (within + (experts - mean) ** 2)).sum(axis=0))
    limits = (mixture_quantile(family, natural, prob, trials, p) for p in (alpha / 2.0, 1.0 - alpha / 2.0))
    return Interval(mean, spread, *limits)


def given_responses(family: Family, at: PredictionRows, past: PredictionRows) -> Array:
    """Probabilities of the experts given the response of each row, by the gate where there is none, shape (K, n).

    Raises
    ------
    DesignError
        If a row has another index or other gate covariates in the past than among the rows to predict.
    """
    where = places_of(at.design.position, past.design.position)
    found = np.flatnonzero(where >= 0)
    both = (at.rows.take(found), past.rows.take(where[found]))
    mine, theirs = (np.column_stack([rows.index, rows.gate]) for rows in both)
    wrong = (np.abs(mine - theirs) > _ALIKE * np.abs(mine).max(axis=0, initial=0.0)).any(axis=1)
    if wrong.any():
        raise DesignError(
            f"row {shown(at.design.rows[found[wrong.argmax()]])} has another index or other gate covariates in the "
            "history than among the rows to predict; pass the same rows in both"
        )
    prob, plain = np.exp(at.natural.log_gate), past.rows.with_weights(np.ones(past.rows.n))
    prob[:, found] = posterior(plain, family, past.natural).weighted[:, where[found]]
    return prob


def response_places(model: FittedVCMoE) -> Distribution:
    """Where the responses of the fit lie in their fitted mixtures, rows in the order of the design."""
    problem = model.problem
    natural = own_natural(problem, model.coef)
    out, weights = problem.rows.outcome, np.exp(natural.log_gate)

    def mixed(values: Array) -> Array:
        found = np.empty(values.shape[1])
        found[model.data.order] = (weights * values).sum(axis=0)
        return found

    def cdf(y: Array) -> Array:
        return mixed(problem.family.cdf(y, natural.eta, natural.delta, out.trials))

    def sf(y: Array) -> Array:
        return mixed(problem.family.sf(y, natural.eta, natural.delta, out.trials))

    return placed(cdf, sf, out.y, problem.family.discrete)


def mixture_quantile(family: Family, natural: Natural, prob: Array, trials: Array, level: float) -> Array:
    """Smallest response whose distribution function reaches `level`, shape (n,), given probabilities of the experts."""

    def below(y: Array) -> NDArray[np.bool_]:
        return (prob * family.cdf(y, natural.eta, natural.delta, trials)).sum(axis=0) < level

    mean = family.mean(natural.eta, trials)
    width = np.exp(natural.delta).max(axis=0) if family.name == "gaussian" else 1.0 + mean.max(axis=0)
    low, high = mean.min(axis=0) - width, mean.max(axis=0) + width
    if family.name != "gaussian":
        low = np.full_like(low, -1.0)
    for _ in range(60):
        high = np.where(below(high), high + (high - low), high)
        if family.name == "gaussian":
            low = np.where(below(low), low, low - (high - low))
    discrete = family.name != "gaussian"
    high = np.ceil(high) if discrete else high
    for _ in range(BISECTIONS):
        middle = np.floor(0.5 * (low + high)) if discrete else 0.5 * (low + high)
        under = below(middle)
        low, high = np.where(under, middle, low), np.where(under, high, middle)
        if (high - low <= (1.0 if discrete else 1e-10 * width)).all():
            break
    return high
