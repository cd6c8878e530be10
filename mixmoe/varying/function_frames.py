"""Functions and bands as tidy frames, and their bootstrap."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, ndtri

from mixmoe._typing import Array, IntArray
from mixmoe.arguments import checked_choice, checked_count, checked_jobs
from mixmoe.design.design import Design, used_columns
from mixmoe.errors import ArgumentError, DesignError
from mixmoe.inference.uncertainty import checked_alpha
from mixmoe.mixture.resampling import run_all
from mixmoe.numerics.linalg import log_softmax
from mixmoe.responses.distribution import Family
from mixmoe.responses.exponential import family_named
from mixmoe.responses.zero_inflated import ZeroInflated, shown_dispersion, shown_slope
from mixmoe.varying.bands import (
    BIASES,
    DRAWS,
    METHODS,
    NOISY,
    LevelProcess,
    Target,
    asymptotic_critical,
    fit_levels,
    student_factor,
    symmetric,
    target_bands,
)
from mixmoe.varying.fitted import FittedVCMoE
from mixmoe.varying.joint_em import REFIT, run_em, with_cluster_draw, with_draw
from mixmoe.varying.likelihood_limits import ThetaProfile, with_gate_limits
from mixmoe.varying.problem import Problem, Slots, centred
from mixmoe.varying.setup import checked_numbers
from mixmoe.varying.windows import hermite_matrix

SUBJECTS = ("coefficients", "probabilities", "experts", "mean", "differences")
# What a reader must know about a value, in the column `mark`.
BEYOND_LIMITS = "outside limits"  # the estimate lies in its band, but outside its pointwise limits
OUTSIDE = "outside"  # the estimate lies outside its own band, whose correction for bias moves the function so far
AT_LIMIT = "limit"  # the dispersion runs to its limit: no standard error; limits, if any, from its likelihood
THIN = "thin"  # no band: fewer than 2 degrees of freedom for the standard error
UNSTEADY = "unsteady"  # no band: the information about an expert alone is noise, as where experts coincide
LOST = "no maximum"  # no band: the local fit behind it has no maximum near the fit
AT_COVARIATES = ("probabilities", "experts", "mean")
DERIVATIVES_OF = ("coefficients", "differences")
_LIMITS = ("std_error", "conf_low", "conf_high", "band_low", "band_high")
_OWN_COLUMNS = ("coefficient", "block", "expert", "term", "estimate", "center", *_LIMITS, "mark")  # beside the index


@dataclass(frozen=True, slots=True)
class BandRequest:
    """Arguments of `VCMoEResults.bands`, and the clusters behind the covariance of the fit."""

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

    def checked(self) -> "BandRequest":
        """The same with arguments that are possible.

        Raises
        ------
        ArgumentError
        """
        checked_choice(self.of, "of", SUBJECTS)
        checked_choice(self.method, "method", METHODS)
        checked_choice(self.bias, "bias", BIASES)
        if self.derivative not in (0, 1):
            raise ArgumentError(f"derivative must be 0 or 1, got {self.derivative!r}; 1 is that by the index")
        if self.derivative and self.of not in DERIVATIVES_OF:
            raise ArgumentError(
                f"derivative=1 is for of= {', '.join(map(repr, DERIVATIVES_OF))}, got of={self.of!r}; means and "
                "probabilities have bands of their values"
            )
        checked_count(self.draws, "draws", least=100)
        checked_count(self.n_boot, "n_boot", least=19)
        return replace(self, alpha=checked_alpha(self.alpha), n_jobs=checked_jobs(self.n_jobs))


@dataclass(frozen=True, slots=True)
class Labels:
    """Identification of the functions of a frame, one entry per function."""

    coefficient: tuple[str, ...]
    block: tuple[str, ...]
    expert: tuple[int | None, ...]
    term: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """Functions for which bands are asked.

    Attributes
    ----------
    labels : Labels
    at : callable
        Levels (G, L) to the functions there.
    shown : ndarray of int
        Places of the coefficient functions that they are; None for functions of several.
    trials : float
        Of the row at which means are taken.
    """

    labels: Labels
    at: Callable[[Array], Target]
    shown: IntArray | None = None
    trials: float = 1.0


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


def function_frame(model: FittedVCMoE, u: Any, argument: str = "u") -> pd.DataFrame:
    """Coefficient functions at index values, tidy; `argument` is what these are called in messages."""
    grid, problem = model.problem.windows.grid, model.problem
    at = np.sort(problem.windows.shown) if u is None else checked_numbers(u, argument)
    inside = np.isfinite(at) & ((problem.rows.period > 0.0) | ((grid[0] <= at) & (at <= grid[-1])))
    if not len(at) or not inside.all():
        raise ArgumentError(
            f"{argument} must lie within the range of the index, {grid[0]:g} to {grid[-1]:g}, with at least one value, "
            f"got {at[~inside].tolist() or 'none'}"
        )
    values = levels_at(model, at)
    logs = np.clip(values[:, problem.slots.dispersions], problem.floor, problem.ceiling)  # between grid points
    values[:, problem.slots.dispersions] = shown_dispersion(problem.family, logs)
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
    asked = asked_functions(model, request)
    target = asked.at(process.levels)
    if request.method == "bootstrap":
        span = bootstrap_bands(model, request, lambda levels: asked.at(levels).values, rng)
        ones = np.ones_like(span.se)
        bands = symmetric(target.values, span.se, span.critical * ones, span.pointwise * ones, ones == 0.0)
    else:
        bands = target_bands(process, target, request.alpha, request.method, width, rng, request.draws)
        if asked.shown is not None and not request.derivative:
            bands = with_gate_limits(problem, process.levels, bands, asked.shown)
    reach, wide = bands.pointwise * bands.se, bands.simultaneous * bands.se
    values = {
        "estimate": asked.at(model.values(request.derivative)).values,
        "center": bands.centre,
        "std_error": bands.se,
        "conf_low": bands.centre - reach[0],
        "conf_high": bands.centre + reach[1],
        "band_low": bands.centre - wide[0],
        "band_high": bands.centre + wide[1],
    }
    # The mean of the mixture is known where its experts cannot be told apart.
    apart = request.of != "mean" and request.method != "bootstrap"
    noisy = ((target.jacobian != 0.0) & (process.noise > NOISY)[:, None, :]).any(axis=2)
    unsteady = noisy & np.isfinite(bands.se) & apart
    values = {name: np.where(unsteady & (name in _LIMITS), np.nan, value) for name, value in values.items()}
    limits = np.zeros(target.values.shape, dtype=bool)
    if request.of == "coefficients" and not request.derivative:
        dispersions = np.flatnonzero([block == "residual" for block in asked.labels.block])
        limits[:, dispersions] = process.fits.of_dispersions.limits[:, ~problem.const[problem.slots.dispersions]]
        # On its limit a dispersion has no standard error, and no limits other than those of its likelihood.
        values = {name: np.where(limits & (name in _LIMITS), np.nan, value) for name, value in values.items()}
        if theta is not None:
            closed = problem.rows.period > 0.0
            critical = asymptotic_critical(process.fits.local.windows.relative, request.alpha, closed=closed)
            known = np.full(theta.level.shape, np.inf)
            df = process.df[:, problem.slots.dispersions] if problem.slots.n_experts > 1 else known
            values = _with_theta_limits(values, theta, dispersions, request.alpha, critical, df)
        # Up to here in logs or log odds: now dispersions as they are reported.
        slope = shown_slope(problem.family, values["center"][:, dispersions])
        for name, value in values.items():
            inner = value[:, dispersions]
            shown = slope * inner if name == "std_error" else shown_dispersion(problem.family, inner)
            value[:, dispersions] = shown
    if request.of == "probabilities":
        values = _on_link_scale(values, family_named("binomial"), 1.0)
    if request.of in ("experts", "mean"):
        values = _on_link_scale(values, problem.family, asked.trials)
    low, high, estimate = (values[name] for name in ("band_low", "band_high", "estimate"))
    without = np.where(bands.thin, THIN, np.where(unsteady, UNSTEADY, LOST))
    marks = np.where(limits, AT_LIMIT, np.where(np.isnan(low), without, ""))
    # Beyond the band is the stronger word, so that it comes last.
    beyond = (estimate < values["conf_low"]) | (estimate > values["conf_high"])
    marks = np.where(beyond & (marks == ""), BEYOND_LIMITS, marks)
    marks = np.where((estimate < low) | (estimate > high), OUTSIDE, marks)
    order = np.argsort(problem.windows.shown, kind="stable")
    ordered = {name: value[order] for name, value in {**values, "mark": marks}.items()}
    frame = _frame(asked.labels, str(model.design.names.index), problem.windows.shown[order], ordered)
    frame.attrs["bandwidth"] = process.bandwidth
    return frame


def _with_theta_limits(
    values: dict[str, Array], theta: ThetaProfile, where: IntArray, alpha: float, critical: float, df: Array
) -> dict[str, Array]:
    """Values with the maximum and the limits of log theta from its adjusted profile likelihood.

    The critical value is that of the limiting process: where theta is near its ceiling, the covariance of the estimates
    says nothing. Log theta is locally constant, with the same equivalent kernel as a local line. In mixtures roots at
    the truth spread more than a normal where few rows carry an expert, at the ends of the index: the factor is that of
    Student's t with the degrees of freedom that a standard error would have there. Where the dispersion of any expert
    runs to its limit there is no standard error of theirs, and the degrees of freedom are those of the points beside.
    """
    out = {name: value.copy() for name, value in values.items()}
    out["center"][:, where] = theta.level
    df, every = df.copy(), np.arange(len(df))
    for column in df.T:
        known = np.flatnonzero(np.isfinite(column))
        if len(known):
            column[:] = np.interp(every, known, column[known])
    for kind, factor in (("conf", float(ndtri(1.0 - alpha / 2.0))), ("band", critical)):
        wide = np.where(np.isfinite(df), student_factor(np.full(df.shape[1], factor), df), factor)
        out[f"{kind}_low"][:, where], out[f"{kind}_high"][:, where] = theta.limits(wide)
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


def asked_functions(model: FittedVCMoE, request: BandRequest) -> Asked:
    """What `of` stands for: labels of the functions, and the functions of the levels.

    Raises
    ------
    ArgumentError
        If there is no such function in the model, or `at` does not fit.
    """
    of, names, slots, family = request.of, model.names, model.problem.slots, model.problem.family
    k, every = slots.n_experts, tuple(range(1, slots.n_experts + 1))
    if of in ("differences", "probabilities") and k == 1:
        remedy = "; use of='coefficients'" if of == "differences" else ", whose probability is one"
        raise ArgumentError(f"of={of!r} needs at least 2 experts, got 1{remedy}")
    if of not in AT_COVARIATES and request.at is not None:
        raise ArgumentError(
            f"at={request.at!r} is for of= {', '.join(map(repr, AT_COVARIATES))}, got of={of!r}, which depends "
            "on no covariates; leave it out"
        )
    if of == "coefficients":
        # Those that vary, without the dispersions where derivatives are shown: theirs are on the scale of logs.
        kept = ~model.problem.const
        kept[slots.dispersions] &= request.derivative == 0
        shown = np.flatnonzero(kept)
        pick = lambda values: tuple(values[s] for s in shown)  # noqa: E731
        labels = Labels(pick(names.full), pick(names.blocks), pick(names.experts), pick(names.terms))

        def itself(levels: Array) -> Target:
            jacobian = np.zeros((len(levels), len(shown), slots.n))
            jacobian[:, np.arange(len(shown)), shown] = 1.0
            return Target(levels[:, shown], jacobian)

        return Asked(labels, itself, shown)
    if of == "differences":
        columns = model.design.names.expert
        full = tuple(f"expert{b + 1}.{t} - expert{a + 1}.{t}" for b, a in pairs(slots) for t in columns)
        n, terms = len(full), tuple(columns) * len(pairs(slots))
        return Asked(Labels(full, ("difference",) * n, (None,) * n, terms), partial(difference_target, slots))
    # Probabilities and means are taken at one row of covariates.
    row = covariate_profile(model.design, request.at, beside_columns(model))
    trials = float(row.aux["trials"][0]) if "trials" in row.aux else 1.0
    offset = float(row.aux["offset"][0]) if model.settings["offset"] in (request.at or {}) else 0.0

    def at_row(levels: Array) -> Target:
        gate = gate_target(slots, levels, row.gate[0])
        if of == "probabilities":
            return gate
        experts = expert_target(slots, family, levels, row.expert[0], trials, offset)
        return experts if of == "experts" else marginal_target(gate, experts)

    if of == "mean":
        return Asked(Labels(("mean",), ("mean",), (None,), ("mean",)), at_row, trials=trials)
    word, block = ("probability", "gate") if of == "probabilities" else ("mean", "expert")
    return Asked(Labels(tuple(f"{word}{c}" for c in every), (block,) * k, every, (word,) * k), at_row, trials=trials)


def beside_columns(model: FittedVCMoE) -> list[str]:
    """Columns beside the formula that means depend on."""
    return [str(model.settings[name]) for name in ("offset", "trials") if model.settings[name] is not None]


def profile_values(model: FittedVCMoE, of: str, at: Mapping[str, Any] | None) -> dict[str, Any]:
    """Covariates at which probabilities or means are taken, by column."""
    design = model.design
    row = covariate_profile(design, at, beside_columns(model)).frame.iloc[0]
    names = [] if of == "probabilities" else used_columns(design, "expert")
    if model.n_experts > 1:
        names = [*names, *used_columns(design, "gate")]
    return {name: row[name] for name in dict.fromkeys(names) if name != design.names.index}


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


@dataclass(frozen=True, slots=True)
class BootstrapBands:
    """Spread of bootstrap replicates of R functions.

    Attributes
    ----------
    se : ndarray, shape (G, R)
    critical : ndarray, shape (R,)
        Quantile of the largest studentised deviation over the grid.
    pointwise : float
    """

    se: Array
    critical: Array
    pointwise: float


def bootstrap_bands(
    model: FittedVCMoE, request: BandRequest, target: Callable[[Array], Array], rng: np.random.Generator
) -> BootstrapBands:
    """Standard errors and critical values from refits.

    Parameters
    ----------
    model : FittedVCMoE
    request : BandRequest
        Its `clusters` are the independent units, None for rows.
    target : callable
        Levels (G, L), or derivatives if these are asked for, to functions (G, R).
    rng : numpy.random.Generator

    Returns
    -------
    BootstrapBands

    Notes
    -----
    Without clusters the response is drawn from the fitted mixture; with clusters these are drawn with replacement.
    Every refit starts at the fit, so that its experts carry the same labels; replicates whose experts end up closer to
    another order are left out.
    """
    clusters, how = request.clusters, (request.bias, request.derivative, model.searched)
    seeds = rng.integers(0, 2**63 - 1, request.n_boot)
    tasks = [(model.problem, model.coef, clusters, *how, int(seed)) for seed in seeds]
    found = [
        one for one in run_all(_replicate, tasks, request.n_jobs, request.progress, "bootstrap") if one is not None
    ]
    draws = np.array([target(levels) for levels in found])  # (B, G, R)
    se = draws.std(axis=0, ddof=1)
    centre = draws.mean(axis=0) if clusters is not None else target(model.values(request.derivative))
    deviation = np.abs((draws - centre) / np.where(se > 0.0, se, 1.0))
    critical = np.quantile(deviation.max(axis=1), 1.0 - request.alpha, axis=0)
    return BootstrapBands(se, critical, float(ndtri(1.0 - request.alpha / 2.0)))


def _replicate(
    problem: Problem, coef: Array, clusters: IntArray | None, bias: str, derivative: int, searched: bool, seed: int
) -> Array | None:
    """Levels or derivatives (G, L) of one replicate, None if its labels changed."""
    rng = np.random.default_rng(seed)
    drawn = with_draw(problem, coef, rng) if clusters is None else with_cluster_draw(problem, clusters, rng)
    inner, centring = centred(drawn)
    start = centring.inwards(inner.slots, coef)
    run = run_em(inner, start, REFIT)
    if not same_labels(inner.slots, start, run.coef, inner.scale):
        return None
    fits = fit_levels(inner, run.coef, bias, derivative, searched, clusters is None)
    return centring.outwards(inner.slots, fits.values(derivative))


def same_labels(slots: Slots, before: Array, after: Array, scale: Array) -> bool:
    """Whether each expert is still closest to itself, over the whole grid."""
    k = slots.n_experts
    shape = (len(before), k, -1)
    old, new = (c[:, 0, slots.experts] / scale[slots.experts] for c in (before, after))
    distance = ((old.reshape(shape)[:, :, None] - new.reshape(shape)[:, None]) ** 2).sum(axis=(0, 3))
    return bool((distance.argmin(axis=1) == np.arange(k)).all())


def gate_target(slots: Slots, levels: Array, gate_row: Array) -> Target:
    """Probabilities of the experts at one row of gate covariates; (G, K)."""
    k, m = slots.n_experts, slots.n_gate_columns
    zeta = np.zeros((k, len(levels)))
    zeta[1:] = np.einsum("gkm,m->kg", levels[:, slots.gates].reshape(len(levels), k - 1, m), gate_row)
    prob = np.exp(log_softmax(zeta, axis=0)).T  # (G, K)
    jacobian = np.zeros((len(levels), k, slots.n))
    for c in range(1, k):
        slope = prob * ((np.arange(k) == c) - prob[:, [c]])  # d prob_k / d zeta_c
        jacobian[:, :, slots.gate(c)] = slope[:, :, None] * gate_row
    return Target(prob, jacobian)


def expert_target(
    slots: Slots, family: Family, levels: Array, row: Array, trials: float = 1.0, offset: float = 0.0
) -> Target:
    """Expected responses of the experts at one row of covariates; (G, K)."""
    k = slots.n_experts
    eta = levels[:, slots.experts].reshape(len(levels), k, -1) @ row + offset  # (G, K)
    ones = np.full(1, trials)
    zeros = levels[:, slots.dispersions] if isinstance(family, ZeroInflated) else np.full_like(eta, -np.inf)
    mean = family.mean(eta, ones) * expit(-zeros)
    slope = family.mean_slope(eta, ones) * expit(-zeros)
    jacobian = np.zeros((len(levels), k, slots.n))
    for c in range(k):
        jacobian[:, c, slots.expert(c)] = slope[:, [c]] * row
        if isinstance(family, ZeroInflated):
            jacobian[:, c, slots.dispersions.start + c] = -mean[:, c] * expit(zeros[:, c])
    return Target(mean, jacobian)


def marginal_target(gate: Target, experts: Target) -> Target:
    """Expected response, experts averaged by the gate; (G, 1)."""
    value = (gate.values * experts.values).sum(axis=1, keepdims=True)
    jacobian = gate.jacobian * experts.values[:, :, None] + experts.jacobian * gate.values[:, :, None]
    return Target(value, jacobian.sum(axis=1, keepdims=True))


def difference_target(slots: Slots, levels: Array) -> Target:
    """Expert coefficients of experts 2 .. K minus those of the ones before, by pair and column; (G, R)."""
    every = np.arange(slots.n)
    jacobians = []
    for b, a in pairs(slots):
        jacobian = np.zeros((slots.n_expert_columns, slots.n))
        each = np.arange(slots.n_expert_columns)
        jacobian[each, every[slots.expert(b)]] = 1.0
        jacobian[each, every[slots.expert(a)]] = -1.0
        jacobians.append(jacobian)
    stacked = np.concatenate(jacobians) if jacobians else np.zeros((0, slots.n))
    return Target(levels @ stacked.T, np.broadcast_to(stacked, (len(levels), *stacked.shape)))


def pairs(slots: Slots) -> list[tuple[int, int]]:
    """Pairs (later, earlier) of experts."""
    return [(b, a) for b in range(slots.n_experts) for a in range(b)]
