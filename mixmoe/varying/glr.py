"""Generalised likelihood-ratio test of whether coefficients vary along the index.

References
----------
Box, G. E. P. (1954). Some theorems on quadratic forms applied in the study of analysis of variance problems, I. Ann.
Math. Statist. 25, 290-302.
Fan, J., Zhang, C. and Zhang, J. (2001). Generalized likelihood ratio statistics and Wilks phenomenon. Ann. Statist. 29,
153-193. The statistic is the difference of global log-likelihoods, each row at its own index value, so that it does not
depend on the grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chi2

from mixmoe._typing import Array
from mixmoe.errors import ArgumentError
from mixmoe.inference.cells import infinite_words
from mixmoe.inference.wald import InvalidTest, printed_lines
from mixmoe.mixture.estimate import Remark
from mixmoe.mixture.resampling import run_all
from mixmoe.numerics.optimise import progress_bar
from mixmoe.responses.exponential import is_normal
from mixmoe.varying.em_steps import own_natural
from mixmoe.varying.fitted import FittedVCMoE
from mixmoe.varying.joint_em import REFIT, Control, Run, on_grid, run_around_means, run_em, with_draw
from mixmoe.varying.problem import Problem, Rows, Slots, build_problem, centred, even_grid
from mixmoe.varying.windows import Windows, epanechnikov, interpolated, wrapped

METHODS = ("bootstrap", "asymptotic", "calibrated")
BINS = 300  # of the rows, for the moments of the statistic
FLAT = 1e-10  # determinant of a local line over that of uncorrelated powers, below which there is none
POINTS_PER_BANDWIDTH, POINTS = 10, (50, 200)  # of the grid on which fits are compared, and the fewest and most


@dataclass(frozen=True, slots=True)
class GLRTest:
    """Test that some coefficient functions are constant.

    Attributes
    ----------
    functions : tuple of str
        Held constant under the null.
    statistic : float
        Log-likelihood of the fit minus that of the null fit, with weights that sum to the effective number of rows.
    scale, df : float
        The null distribution is, or resembles, that of a chi-square with `df` degrees of freedom over `scale`: but for
        ``method="bootstrap"``, whose p-value counts draws, ``pvalue = chi2.sf(scale * statistic, df)``. NaN where the
        mean of the draws is not above zero, as no chi-square has such a mean.
    pvalue : float
    method : str
    n_boot : int
        Draws behind the null distribution; 0 for the asymptotic one.
    loglik, loglik_null : float
        Of the joint EM with all functions free, and under the null. That of the fit is of the reported functions.
    null : ndarray, shape (n_boot,)
        Statistics of the draws.
    """

    functions: tuple[str, ...]
    statistic: float
    scale: float
    df: float
    pvalue: float
    method: str
    n_boot: int
    loglik: float
    loglik_null: float
    null: Array

    def __str__(self) -> str:
        held = ", ".join(self.functions) if len(self.functions) < 6 else f"{len(self.functions)} functions"
        how = f"{self.method}, {self.n_boot} draws" if self.n_boot else self.method
        law = f", scale {self.scale:.2f}, df {self.df:.2f}" if np.isfinite(self.scale) else ""
        return printed_lines(
            f"GLR test, constant under the null: {held}",
            f"statistic {self.statistic:.3f}{law}, p-value {self.pvalue:.4f} ({how})",
            *self.notes,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the statistics must know where some of them are negative."""
        out = []
        if self.statistic < 0.0:
            out.append(
                "The statistic is negative: the functions maximise local likelihoods, and may have a lower "
                "log-likelihood of all rows than constants. It speaks for constants."
            )
        if not np.isfinite(self.scale):
            out.append(
                f"{int((self.null < 0.0).sum())} of the {self.n_boot} statistics under the null are negative, and "
                "their mean is not above zero: they resemble no chi-square, so that there are no scale and df."
            )
        return tuple(out)


@dataclass(frozen=True, slots=True)
class GLRRequest:
    """How the null distribution is to be found; see `VCMoEResults.test_varying`.

    Attributes
    ----------
    method : {"bootstrap", "asymptotic", "calibrated"}
    n_boot, n_jobs : int
    progress : bool or None
    """

    method: str = "asymptotic"
    n_boot: int = 199
    n_jobs: int = 1
    progress: bool | None = None

    @property
    def draws(self) -> int:
        """Draws behind the null distribution; calibration needs mean and variance only, for which a quarter does."""
        return {"asymptotic": 0, "calibrated": max(19, self.n_boot // 4)}.get(self.method, self.n_boot)


MOST_TESTED = 20_000  # rows of a fit whose summary tests every function, each with a fit of its own
SETTLED = Control(gain=1e-9)  # of null fits: a statistic does not change where functions run off without effect


def refused(model: FittedVCMoE) -> InvalidTest | None:
    """Why there is no test, None if there is: its null distributions are those of independent rows."""
    if model.clusters is None:
        return None
    return InvalidTest(
        "rows of a cluster are not independent, and the null distributions of this test, which take them for that, "
        "reject true hypotheses far too often; bands() has simultaneous bands with standard errors over clusters, and "
        "where clusters are few, have them as a term, const(group), instead of cluster=; a MEMoE with re: models the "
        "dependence, but its experts hold whole clusters, not rows"
    )


def untested(model: FittedVCMoE) -> Remark | None:
    """Why a summary makes no tests of constancy, None if it does."""
    if refused(model) is not None:
        return Remark(
            "There is no test that a function is constant: rows of a cluster are not independent, which its null "
            "distribution needs; a constant is ruled out where no horizontal line fits into the band."
        )
    if model.nobs > MOST_TESTED:
        return Remark(
            f"P const. is left out with more than {MOST_TESTED} rows, as each function takes a fit of its own",
            "test_varying(method='asymptotic') has the tests, and the next summary shows them.",
        )
    return None


def tested(
    model: FittedVCMoE, which: str | Sequence[str] | None, request: GLRRequest, rng: np.random.Generator
) -> GLRTest | pd.DataFrame | InvalidTest:
    """Tests as `VCMoEResults.test_varying` gives them."""
    invalid = refused(model)
    if invalid is not None:
        return invalid
    if which is None:
        return test_table(model, [*varying_names(model), "all"], request, rng)
    return _tested(model, joint_fit(model), named_slots(model, which), request, rng)


def test_table(model: FittedVCMoE, names: Sequence[str], request: GLRRequest, rng: np.random.Generator) -> pd.DataFrame:
    """Tests of single functions or groups of them, one after the other.

    Returns
    -------
    DataFrame
        Index: coefficient. Columns statistic, scale, df, p_value, method, n_boot; NaN where a function is infinite.
    """
    larger, rows = joint_fit(model), {}
    # Draws have a bar of their own for each test.
    with progress_bar(len(names), "tests of constancy", False if request.draws else request.progress) as bar:
        for name in names:
            test = _tested(model, larger, named_slots(model, name), request, rng)
            rows[name] = (
                (np.nan, np.nan, np.nan, np.nan, request.method, 0)
                if isinstance(test, InvalidTest)
                else (test.statistic, test.scale, test.df, test.pvalue, test.method, test.n_boot)
            )
            bar.update()
    columns = ["statistic", "scale", "df", "p_value", "method", "n_boot"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("coefficient")


def asymptotic_tests(model: FittedVCMoE, progress: bool | None = None) -> pd.DataFrame:
    """Asymptotic tests of constancy of each function on its own, and in the row ``"all"`` of all together."""
    names, request = varying_names(model), GLRRequest("asymptotic", progress=progress)
    names = [*names, "all"] if len(names) > 1 else names
    return test_table(model, names, request, np.random.default_rng(0)) if names else pd.DataFrame({"p_value": []})


def varying_names(model: FittedVCMoE) -> list[str]:
    """Names of the functions that vary."""
    return [model.names.full[s] for s in np.flatnonzero(~model.problem.const)]


@dataclass(frozen=True, slots=True)
class Alternative:
    """The joint EM carried on from a fit; null fits and draws that it is compared with are not polished either.

    Attributes
    ----------
    problem : Problem
        With a grid that follows from the bandwidth, so that a test does not depend on that of the fit.
    run : Run
    """

    problem: Problem
    run: Run


def joint_fit(model: FittedVCMoE) -> Alternative:
    """The fit under the alternative."""
    problem, coef = _on_own_grid(model)
    return Alternative(problem, run_around_means(problem, coef, Control()))


def _on_own_grid(model: FittedVCMoE) -> tuple[Problem, Array]:
    """Problem and functions on a grid that follows from the bandwidth, if its windows hold rows enough.

    A grid with gaps was given by a user who knows of gaps in the index, and is kept. Where a column forced a wide
    bandwidth, functions that bend more are cut off, and what they lack would be taken for variation of the others:
    fits are compared at the bandwidth that these would have had, in whose windows the column says nothing, or what it
    can.
    """
    own = model.problem
    unforced = None if own.rows.share else model.unforced  # a span has no bandwidth to take the place of its own
    points, widths = own.windows.grid, unforced or (own.windows.bandwidth, own.gate_windows.bandwidth)
    wanted = int(np.ceil(POINTS_PER_BANDWIDTH * own.windows.span / min(widths)))
    grid = even_grid(own.rows, points, int(np.clip(wanted, *POINTS)))
    # A tested statistic must not depend on how finely the user wanted the curves printed.
    even = np.allclose(points, even_grid(own.rows, points, len(points)))
    if unforced is None and (not even or len(grid) == len(points)):
        return own, model.coef
    grid = grid if even else points
    problem = build_problem(own.rows, own.family, own.slots, own.const, grid, *widths, model.settings["sigma_floor"])
    fewest, before = ((w.hi - w.lo).min() for w in (problem.windows, own.windows))
    enough = unforced is not None or fewest >= 0.5 * before
    return (problem, on_grid(problem, own, model.coef)) if enough else (own, model.coef)


def _tested(
    model: FittedVCMoE, larger: Alternative, slots: NDArray[np.intp], request: GLRRequest, rng: np.random.Generator
) -> GLRTest | InvalidTest:
    infinite = [model.names.full[s] for s in slots[model.infinite[slots]]]
    if infinite:
        return InvalidTest(
            f"{infinite_words(infinite)} in part of the index (flag separated_gate): the likelihood has no maximum "
            "there, so that its ratio has no null distribution; gate_penalty='firth' makes it finite"
        )
    problem, method, per_row = larger.problem, request.method, model.weight_scale
    null = null_fit(problem, larger.run.coef, slots, SETTLED)
    statistic = per_row * (larger.run.loglik - null.loglik)
    names = tuple(model.names.full[s] for s in slots)
    if method == "asymptotic":
        law = null_law(problem, larger.run.coef, slots)
        draws, values = 0, np.zeros(0)
    else:
        draws = request.draws
        values = per_row * null_draws(problem, null.coef, slots, draws, rng, request.n_jobs, request.progress)
        law = scaled_chi_square(float(values.mean()), float(values.var(ddof=1)))
    if method == "bootstrap":
        # One is added to both: under the null the observed statistic is one more draw, all equally likely.
        p_value = (1.0 + float((values >= statistic).sum())) / (draws + 1.0)
    else:
        p_value = float(chi2.sf(law.scale * max(statistic, 0.0), law.df))
    logliks = larger.run.loglik, null.loglik
    return GLRTest(names, statistic, law.scale, law.df, p_value, method, draws, *logliks, values)


@dataclass(frozen=True, slots=True)
class NullLaw:
    """A statistic of which `scale` times itself is about chi-square with `df` degrees of freedom."""

    scale: float
    df: float


def scaled_chi_square(mean: float, variance: float) -> NullLaw:
    """The law with a mean and a variance (Box 1954): a chi-square has mean `df` and variance twice that.

    NaN where the mean is not above zero.
    """
    if mean <= 0.0:
        return NullLaw(np.nan, np.nan)
    scale = 2.0 * mean / max(variance, np.finfo(float).tiny)
    return NullLaw(scale, scale * mean)


def null_law(problem: Problem, coef: Array, slots: NDArray[np.intp]) -> NullLaw:
    """Null distribution of the statistic given the index, without draws.

    Parameters
    ----------
    problem : Problem
    coef : ndarray, shape (G, 2, L)
        Fit, for the probabilities of the experts.
    slots : ndarray of int
        Functions held constant under the null.

    Returns
    -------
    NullLaw

    Notes
    -----
    Of a kernel smoother S and the mean S_0 the statistic is ``e' A e / 2`` with standard normal e and
    ``A = (I - S_0)'(I - S_0) - (I - S)'(I - S)``: mean ``tr A / 2``, variance ``tr A^2 / 2``. Far from the ends of the
    index and for small bandwidths these are the moments of Fan, Zhang and Zhang (2001): scale r_K = 2.1153, df r_K c_K
    |U| / h with c_K = 0.45 for the Epanechnikov kernel. At bandwidths of practice the ends, where a line takes more of
    the data, add a tenth to a quarter to the mean. Functions are taken as orthogonal, experts as known, each of them
    with the rows that the gate gives it. Log sigma is smoothed from squared residuals, which are neither normal nor
    independent, see `_moments_of_sigma`.
    """
    probabilities = np.exp(own_natural(problem, coef).log_gate)  # (K, n)
    mean = variance = 0.0
    for slot in slots:
        gate, c = slot >= problem.slots.gates.start, _expert_of(problem.slots, int(slot))
        windows, share = (problem.gate_windows if gate else problem.windows), probabilities[c]
        mass = problem.rows.weights * (share * (1.0 - share) if gate else share)
        smoother = _binned_smoother(problem.rows, mass, windows, int(problem.order[slot]))
        sigma = is_normal(problem.family) and slot in range(problem.slots.n)[problem.slots.dispersions]
        columns = int((~problem.const[problem.slots.expert(c)]).sum())
        first, second = _moments_of_sigma(smoother, columns) if sigma else _moments(smoother)
        mean, variance = mean + first, variance + second
    return scaled_chi_square(mean, variance)


def _expert_of(slots: Slots, slot: int) -> int:
    """Expert that a function belongs to, from 0."""
    if slot >= slots.gates.start:
        return 1 + (slot - slots.gates.start) // slots.n_gate_columns
    return slot - slots.dispersions.start if slot >= slots.experts.stop else slot // slots.n_expert_columns


@dataclass(frozen=True, slots=True)
class _Smoother:
    """A local line or mean along the index, rows taken together in at most `BINS` bins.

    Attributes
    ----------
    matrix : ndarray, shape (B, B)
        On bins in units of their noise.
    mass : ndarray, shape (B,)
        Rows in each bin.
    """

    matrix: Array
    mass: Array

    def gained(self) -> Array:
        """``(I - S_0)'(I - S_0) - (I - S)'(I - S)``, (B, B): twice what its likelihood gains on that of the mean."""
        root, unit = np.sqrt(self.mass), np.eye(len(self.mass))
        rest, constant = unit - self.matrix, unit - np.outer(root, root) / self.mass.sum()
        return np.asarray(constant.T @ constant - rest.T @ rest, dtype=np.float64)


def _binned_smoother(rows: Rows, mass: Array, windows: Windows, degree: int) -> _Smoother:
    bins = np.arange(rows.n) * min(rows.n, BINS) // rows.n
    total = np.asarray(np.bincount(bins, mass), dtype=np.float64)
    kept = total > 0.0
    at = np.bincount(bins, mass * rows.index)[kept] / total[kept]
    root = np.sqrt(total[kept])
    widths = interpolated(at, windows.grid, windows.widths, windows.period)
    t = wrapped(at - at[:, None], rows.period) / widths[:, None]
    kernel = epanechnikov(t) * total[kept]
    s0, s1, s2 = (kernel * t**power for power in range(3))
    s0, s1, s2 = (s.sum(axis=1, keepdims=True) for s in (s0, s1, s2))
    determinant = s0 * s2 - s1 * s1
    line = kernel * (s2 - s1 * t) / np.where(determinant > 0.0, determinant, 1.0)
    smoother = np.where((degree > 0) & (determinant > FLAT * s0 * s2), line, kernel / s0)
    return _Smoother(root[:, None] * smoother / root, total[kept])


def _moments(smoother: _Smoother) -> tuple[float, float]:
    """Mean and variance of the statistic of a function whose working responses have independent normal errors."""
    gained = smoother.gained()
    return 0.5 * float(np.trace(gained)), 0.5 * float((gained * gained.T).sum())


def _moments_of_sigma(smoother: _Smoother, columns: int) -> tuple[float, float]:
    """Mean and variance of the statistic of log sigma, whose working responses are squared residuals.

    Parameters
    ----------
    smoother : _Smoother
    columns : int
        Functions in the mean of the expert, smoothed alike.

    Notes
    -----
    Residuals ``(I - H) z`` have variances v below one, less at the ends of the index, where a fit follows the rows
    most, and are correlated: ``Cov(e_i^2, e_j^2) = 2 c_ij^2``. Their working responses ``(e^2 / v - 1) / sqrt(2)`` have
    therefore means mu and a covariance G that is not the identity, and fourth cumulants k, 12 for a squared normal:
    mean ``(tr A G + mu' A mu) / 2``, variance ``tr (A G)^2 / 2 + mu' A G A mu + sum_i k_i A_ii^2 / 4``.
    """
    gained, mass, root = smoother.gained(), smoother.mass, np.sqrt(smoother.mass)
    shared = smoother.matrix + smoother.matrix.T - smoother.matrix @ smoother.matrix.T
    left = np.maximum(1.0 - columns * np.diag(shared) / mass, 0.0)
    average = np.average(left, weights=mass)
    # Columns around their means: squares of their products average to the number of columns.
    covariance = columns * shared**2 * (1.0 - np.eye(len(mass)) / mass) / np.outer(root, root)
    covariance = (covariance + np.diag(left**2)) / average**2
    away = root * (left / average - 1.0) / np.sqrt(2.0)
    through = gained @ covariance
    mean = 0.5 * float(np.trace(through) + away @ gained @ away)
    variance = 0.5 * float((through * through.T).sum()) + float(away @ through @ gained @ away)
    fourth = 12.0 * (left / average) ** 4
    return mean, variance + 0.25 * float((fourth * np.diag(gained) ** 2 / mass).sum())


def named_slots(model: FittedVCMoE, which: str | Sequence[str]) -> NDArray[np.intp]:
    """Positions of the functions with these names or in these groups.

    Raises
    ------
    ArgumentError
        If there is no such function, or it is constant already.
    """
    names, vary = model.names, ~model.problem.const
    groups = {"experts": "expert", "gate": "gate", "dispersion": "residual"}
    found: set[int] = set()
    if not vary.any():
        raise ArgumentError(
            "no function varies along the index, so there is nothing to test; see bandwidth= and const()"
        )
    if not isinstance(which, str) and not (isinstance(which, Sequence) and all(isinstance(n, str) for n in which)):
        raise ArgumentError(f"which must be a name or names of functions, got {which!r}; for instance 'expert1.z1'")
    for name in [which] if isinstance(which, str) else list(which):
        if name == "all":
            hits = np.flatnonzero(vary)
        elif name in groups:
            hits = np.flatnonzero(vary & (np.array(names.blocks) == groups[name]))
        else:
            hits = np.array([i for i, full in enumerate(names.full) if full == name and vary[i]], dtype=np.intp)
        if not len(hits):
            free = ", ".join(repr(n) for n, v in zip(names.full, vary, strict=True) if v)
            raise ArgumentError(
                f"no varying function is called {name!r}; use 'experts', 'gate', 'dispersion', 'all' or one of {free}"
            )
        found.update(int(i) for i in hits)
    if not found:
        raise ArgumentError(f"which must name at least one function, got {which!r}")
    return np.array(sorted(found), dtype=np.intp)


def null_problem(problem: Problem, slots: NDArray[np.intp]) -> Problem:
    """The problem with more functions held constant; same windows."""
    const = problem.const.copy()
    const[slots] = True
    return replace(problem, const=const)


def null_start(coef: Array, slots: NDArray[np.intp]) -> Array:
    """A state in which some functions are at their mean level."""
    out = coef.copy()
    out[:, 0, slots] = coef[:, 0, slots].mean(axis=0)
    out[:, 1, slots] = 0.0
    return out


def null_fit(problem: Problem, coef: Array, slots: NDArray[np.intp], control: Control | None = None) -> Run:
    """Fit under the null, started from the fit under the alternative."""
    inner, centring = centred(null_problem(problem, slots))
    start = null_start(centring.inwards(inner.slots, coef), slots)
    run = run_em(inner, start, control or Control())
    return replace(run, coef=centring.outwards(inner.slots, run.coef))


def null_draws(
    problem: Problem,
    null: Array,
    slots: NDArray[np.intp],
    n_boot: int,
    rng: np.random.Generator,
    n_jobs: int,
    progress: bool | None,
) -> Array:
    """Statistics of data drawn from the null fit, shape (n_boot,)."""
    seeds = rng.integers(0, 2**63 - 1, n_boot)
    tasks = [(problem, null, slots, int(seed)) for seed in seeds]
    return np.array(run_all(draw_statistic, tasks, n_jobs, progress, "GLR bootstrap"))


def draw_statistic(problem: Problem, null: Array, slots: NDArray[np.intp], seed: int) -> float:
    """Statistic of one response drawn from the null fit; covariates and index as they are.

    Parameters
    ----------
    problem : Problem
        Under the alternative.
    null : ndarray, shape (G, 2, L)
        Fit under the null.
    slots : ndarray of int
    seed : int

    Returns
    -------
    float
    """
    drawn = with_draw(problem, null, np.random.default_rng(seed))
    smaller = run_around_means(null_problem(drawn, slots), null, REFIT)
    larger = run_around_means(drawn, smaller.coef, REFIT)
    return larger.loglik - smaller.loglik
