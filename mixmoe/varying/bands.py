"""Pointwise and simultaneous bands for functions of the coefficient functions.

References
----------
Calonico, S., Cattaneo, M. D. and Farrell, M. H. (2018). On the effect of bias estimation on coverage accuracy in
nonparametric inference. JASA 113, 767-779: with equal bandwidths robust bias correction is the local-quadratic fit.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import t as student

from mixmoe.errors import ArgumentError
from mixmoe.varying.critical import asymptotic_critical, multiplier_critical
from mixmoe.varying.local_likelihood import build_local, local_start, maximise_local
from mixmoe.varying.problem import Problem
from mixmoe.varying.sandwich import Influence, influence, level_covariance

Array = NDArray[np.float64]
Bias = Literal["rbc", "undersmooth", "none"]
BIASES = ("rbc", "undersmooth", "none")
METHODS = ("multiplier", "asymptotic", "bootstrap")
DRAWS = 4000
LEAST_DF = 4.0  # fewer degrees of freedom are not told apart


@dataclass(frozen=True, slots=True)
class LevelProcess:
    """Estimated levels of all functions at all grid points, with their covariance.

    Attributes
    ----------
    levels : ndarray, shape (G, L)
        Where the bands are centred: bias-corrected if asked.
    covariance : ndarray, shape (G, L, G, L)
    degree : int
        Of the local polynomial behind it.
    bandwidth : float
    df : ndarray, shape (G, L)
        Effective degrees of freedom of the variances.
    """

    levels: Array
    covariance: Array
    degree: int
    bandwidth: float
    df: Array


@dataclass(frozen=True, slots=True)
class Target:
    """Functions of the levels for which bands are wanted.

    Attributes
    ----------
    values : ndarray, shape (G, R)
    jacobian : ndarray, shape (G, R, L)
        Derivatives by the levels at the same grid point.
    """

    values: Array
    jacobian: Array


@dataclass(frozen=True, slots=True)
class BandSet:
    """Bands of R functions.

    Attributes
    ----------
    centre, se : ndarray, shape (G, R)
    simultaneous, pointwise : ndarray, shape (G, R)
        Factors of the simultaneous band and of the pointwise limits.
    """

    centre: Array
    se: Array
    simultaneous: Array
    pointwise: Array


def level_process(
    problem: Problem,
    coef: Array,
    bias: str = "rbc",
    clusters: NDArray[np.intp] | None = None,
    correction: bool = True,
) -> LevelProcess:
    """Levels of the local likelihood estimates and their joint covariance over the grid.

    Parameters
    ----------
    problem : Problem
    coef : ndarray, shape (G, 2, L)
        Where the EM ended; it settles the labels.
    bias : {"rbc", "undersmooth", "none"}
        Local-quadratic fit at the same bandwidth; local-linear fit at a bandwidth smaller by n^(-1/20), the rate at
        which the bias vanishes; nothing.
    clusters : ndarray of int, shape (n,), optional
    correction : bool

    Returns
    -------
    LevelProcess
    """
    degree = 2 if bias == "rbc" else 1
    shrink = problem.rows.n**-0.05 if bias == "undersmooth" else 1.0
    main = _one_bandwidth(problem, coef, degree, problem.windows.bandwidth * shrink, correction)
    if problem.gate_windows is problem.windows:
        levels, covariance = main.levels, level_covariance(main, clusters)
    else:
        both = _with_gate(problem, coef, main, degree, shrink, correction)
        levels, covariance = both.levels, level_covariance(both, clusters)
    shaped = covariance.matrix.reshape(*levels.shape, *levels.shape)
    return LevelProcess(levels, shaped, degree, problem.windows.bandwidth * shrink, covariance.df.reshape(levels.shape))


def _one_bandwidth(problem: Problem, coef: Array, degree: int, bandwidth: float, correction: bool) -> Influence:
    local = build_local(problem, degree, bandwidth)
    fit = maximise_local(local, local_start(local, coef))
    inf = influence(local, fit.coef, correction)
    spoiled = tuple(
        piece if ok else np.full_like(piece, np.nan) for piece, ok in zip(inf.local, fit.converged, strict=True)
    )
    return Influence(inf.levels, inf.lo, inf.hi, spoiled, inf.const, inf.coupling, inf.slots, inf.n)


def _with_gate(
    problem: Problem,
    coef: Array,
    main: Influence,
    degree: int,
    shrink: float,
    correction: bool,
) -> Influence:
    """Influence when the gate has a bandwidth of its own: a second local problem for its functions."""
    other = _one_bandwidth(problem, coef, degree, problem.gate_windows.bandwidth * shrink, correction)
    gates = np.zeros(problem.slots.n, dtype=bool)
    gates[problem.slots.gates] = True
    levels = np.where(gates, other.levels, main.levels)
    lo, hi = np.minimum(main.lo, other.lo), np.maximum(main.hi, other.hi)
    merged = []
    for g in range(len(levels)):
        piece = np.zeros((hi[g] - lo[g], problem.slots.n))
        piece[main.lo[g] - lo[g] : main.hi[g] - lo[g], ~gates] = main.local[g][:, ~gates]
        piece[other.lo[g] - lo[g] : other.hi[g] - lo[g], gates] = other.local[g][:, gates]
        merged.append(piece)
    coupling = np.where(gates[:, None], other.coupling, main.coupling)
    return Influence(levels, lo, hi, tuple(merged), main.const, coupling, main.slots, main.n)


def target_bands(
    process: LevelProcess,
    target: Target,
    level: float,
    method: str,
    span: float,
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> BandSet:
    """Pointwise and simultaneous bands of functions of the levels.

    Parameters
    ----------
    process : LevelProcess
    target : Target
        At ``process.levels``.
    level : float
    method : {"multiplier", "asymptotic"}
    span : float
        Length of the index range.
    rng : numpy.random.Generator
    draws : int

    Returns
    -------
    BandSet
    """
    n_targets = target.values.shape[1]
    variance, df = np.empty_like(target.values), np.empty_like(target.values)
    critical = np.empty(n_targets)
    common = asymptotic_critical(process.bandwidth / span, level, process.degree) if method == "asymptotic" else 0.0
    for r in range(n_targets):
        used = np.flatnonzero((target.jacobian[:, r] != 0.0).any(axis=0))
        jacobian = target.jacobian[:, r, used]
        inner = process.covariance[:, used][:, :, :, used]
        covariance = np.einsum("gl,glhm,hm->gh", jacobian, inner, jacobian, optimize=True)
        variance[:, r] = np.diag(covariance)
        own = jacobian**2 * np.einsum("glgl->gl", inner)
        df[:, r] = own.sum(axis=1) ** 2 / np.maximum((own**2 / process.df[:, used]).sum(axis=1), np.finfo(float).tiny)
        critical[r] = common if method == "asymptotic" else multiplier_critical(covariance, level, draws, rng)
    with np.errstate(invalid="ignore"):
        se = np.sqrt(variance)
    pointwise = student_factor(np.full(n_targets, float(ndtri(0.5 + level / 2.0))), df)
    return BandSet(target.values, se, student_factor(critical, df), pointwise)


def student_factor(normal: Array, df: Array) -> Array:
    """Factor of Student's t that is exceeded with the probability with which the normal exceeds `normal`.

    Parameters
    ----------
    normal : ndarray, shape (R,)
    df : ndarray, shape (G, R)

    Returns
    -------
    ndarray, shape (G, R)

    Notes
    -----
    The critical value of the process takes standard errors as known; near the ends of the index they rest on few rows.
    """
    limited = np.clip(np.nan_to_num(df, nan=LEAST_DF), LEAST_DF, None)
    out: Array = student.isf(ndtr(-np.broadcast_to(normal, df.shape)), limited)
    return out


def identity_target(levels: Array, slots: NDArray[np.intp]) -> Target:
    """The coefficient functions themselves."""
    jacobian = np.zeros((len(levels), len(slots), levels.shape[1]))
    jacobian[:, np.arange(len(slots)), slots] = 1.0
    return Target(levels[:, slots], jacobian)


def checked_level(level: float) -> float:
    """`level` if it is a confidence level.

    Raises
    ------
    ArgumentError
        If it is not between 0 and 1.
    """
    if not (isinstance(level, int | float | np.floating) and 0.0 < float(level) < 1.0):
        raise ArgumentError(f"level must lie between 0 and 1, got {level!r}; use 0.95 for 95 % bands")
    return float(level)


def checked_choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """`value` if it is one of the allowed ones.

    Raises
    ------
    ArgumentError
        If it is not.
    """
    if value not in allowed:
        raise ArgumentError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value
