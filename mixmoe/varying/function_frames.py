"""Functions and bands as tidy frames, and their bootstrap."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri

from mixmoe._typing import Array, IntArray
from mixmoe.arguments import checked_choice, checked_count, checked_jobs
from mixmoe.design.design import Design, used_columns
from mixmoe.errors import ArgumentError, DesignError
from mixmoe.inference.uncertainty import checked_alpha
from mixmoe.mixture.resampling import run_all
from mixmoe.responses.distribution import Family
from mixmoe.responses.exponential import family_named
from mixmoe.responses.zero_inflated import shown_dispersion, shown_slope
from mixmoe.varying.bands import (
    BIASES,
    DRAWS,
    METHODS,
    LevelProcess,
    Target,
    asymptotic_critical,
    difference_target,
    expert_target,
    fit_levels,
    gate_target,
    identity_target,
    marginal_target,
    pairs,
    student_factor,
    symmetric,
    target_bands,
    with_gate_limits,
)
from mixmoe.varying.dispersion_limits import ThetaProfile
from mixmoe.varying.fitted import FittedVCMoE
from mixmoe.varying.joint_em import REFIT, centred, run_em, with_cluster_draw, with_draw
from mixmoe.varying.problem import Problem, Slots, hermite_matrix
from mixmoe.varying.setup import checked_numbers

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
    reach, wide = bands.pointwise * bands.se, bands.simultaneous * bands.se
    values = {
        "estimate": _target(model, request, profile, model.values(request.derivative)).values,
        "center": bands.centre,
        "std_error": bands.se,
        "conf_low": bands.centre - reach[0],
        "conf_high": bands.centre + reach[1],
        "band_low": bands.centre - wide[0],
        "band_high": bands.centre + wide[1],
    }
    limits = np.zeros(centred.values.shape, dtype=bool)
    if request.of == "coefficients" and not request.derivative:
        dispersions = np.flatnonzero([model.names.blocks[s] == "residual" for s in _shown(model, 0)])
        limits[:, dispersions] = process.fits.of_dispersions.limits[:, ~problem.const[problem.slots.dispersions]]
        # On its limit a dispersion has no standard error, and no limits other than those of its likelihood.
        values = {name: np.where(limits & (name in _LIMITS), np.nan, value) for name, value in values.items()}
        if theta is not None:
            closed = problem.rows.period > 0.0
            critical = asymptotic_critical(process.fits.local.windows.relative, request.alpha, closed=closed)
            known = np.full(theta.level.shape, np.inf)
            df = process.df[:, problem.slots.dispersions] if model.n_experts > 1 else known
            values = _with_theta_limits(values, theta, dispersions, request.alpha, critical, df)
        # Up to here in logs or log odds: now dispersions as they are reported.
        slope = shown_slope(problem.family, values["center"][:, dispersions])
        for name, value in values.items():
            inner = value[:, dispersions]
            shown = slope * inner if name == "std_error" else shown_dispersion(problem.family, inner)
            value[:, dispersions] = shown
    if request.of == "probabilities":
        values = _on_link_scale(values, family_named("binomial"), 1.0)
    if profile is not None and request.of in ("experts", "mean"):
        values = _on_link_scale(values, problem.family, _trials(profile))
    low, high, estimate = (values[name] for name in ("band_low", "band_high", "estimate"))
    marks = np.where(limits, AT_LIMIT, np.where(np.isnan(low), np.where(bands.thin, THIN, LOST), ""))
    marks = np.where((estimate < low) | (estimate > high), OUTSIDE, marks)
    order = np.argsort(problem.windows.shown, kind="stable")
    ordered = {name: value[order] for name, value in {**values, "mark": marks}.items()}
    frame = _frame(labels, str(model.design.names.index), problem.windows.shown[order], ordered)
    frame.attrs["bandwidth"] = process.bandwidth
    return frame


def _with_theta_limits(
    values: dict[str, Array], theta: ThetaProfile, where: IntArray, alpha: float, critical: float, df: Array
) -> dict[str, Array]:
    """Values with the maximum and the limits of log theta from its adjusted profile likelihood.

    The critical value is that of the limiting process: where theta is near its ceiling, the covariance of the estimates
    says nothing. Log theta is locally constant, with the same equivalent kernel as a local line. In mixtures roots at
    the truth spread more than a normal where few rows carry an expert, at the ends of the index: the factor is that of
    Student's t with the degrees of freedom that a standard error would have there.
    """
    out = {name: value.copy() for name, value in values.items()}
    out["center"][:, where] = theta.level
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
    model: FittedVCMoE,
    clusters: IntArray | None,
    target: Callable[[Array], Array],
    bias: str,
    alpha: float,
    n_boot: int,
    rng: np.random.Generator,
    n_jobs: int,
    progress: bool | None,
    derivative: int = 0,
) -> BootstrapBands:
    """Standard errors and critical values from refits.

    Parameters
    ----------
    model : FittedVCMoE
    clusters : ndarray of int, shape (n,), or None
        Independent units, None for rows.
    target : callable
        Levels (G, L) to functions (G, R).
    bias : str
        As in `level_process`.
    alpha : float
        One minus the level of the bands.
    n_boot : int
    rng : numpy.random.Generator
    n_jobs : int
    progress : bool, optional
    derivative : {0, 1}
        As in `level_process`, and of what `target` takes.

    Returns
    -------
    BootstrapBands

    Notes
    -----
    Without clusters the response is drawn from the fitted mixture; with clusters these are drawn with replacement.
    Every refit starts at the fit, so that its experts carry the same labels; replicates whose experts end up closer to
    another order are left out.
    """
    seeds = rng.integers(0, 2**63 - 1, n_boot)
    tasks = [(model.problem, model.coef, clusters, bias, derivative, model.searched, int(seed)) for seed in seeds]
    found = [one for one in run_all(_replicate, tasks, n_jobs, progress, "bootstrap") if one is not None]
    draws = np.array([target(levels) for levels in found])  # (B, G, R)
    se = draws.std(axis=0, ddof=1)
    centre = draws.mean(axis=0) if clusters is not None else target(model.values(derivative))
    deviation = np.abs((draws - centre) / np.where(se > 0.0, se, 1.0))
    critical = np.quantile(deviation.max(axis=1), 1.0 - alpha, axis=0)
    return BootstrapBands(se, critical, float(ndtri(1.0 - alpha / 2.0)))


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
