"""Pointwise and simultaneous bands for functions of the coefficient functions, and their critical values.

References
----------
Calonico, S., Cattaneo, M. D. and Farrell, M. H. (2018). On the effect of bias estimation on coverage accuracy in
nonparametric inference. JASA 113, 767-779: with equal bandwidths robust bias correction is the local-quadratic fit.
Fan, J. and Zhang, W. (2000). Simultaneous confidence bands and hypothesis testing in varying-coefficient models.
Scand. J. Statist. 27, 715-731. Their Gumbel constants are replaced by the process itself, which they only approximate.
Chernozhukov, V., Chetverikov, D. and Kato, K. (2014). Anti-concentration and honest, adaptive confidence bands.
Ann. Statist. 42, 1787-1818, for the Gaussian multiplier bootstrap.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import t as student

from mixmoe._typing import Array, BoolArray
from mixmoe.inference.uncertainty import multiplier_critical
from mixmoe.varying.em_steps import own_natural
from mixmoe.varying.leave_one_out import Node, left_out_of_experts, response_nodes
from mixmoe.varying.local_likelihood import Local, build_local, local_start, state_of
from mixmoe.varying.local_maximum import BoundedFit, LocalFit, maximise_bounded, maximise_local
from mixmoe.varying.problem import Problem, centred, turned_covariance
from mixmoe.varying.sandwich import (
    Influence,
    added_covariance,
    gate_influence,
    influence,
    level_covariance,
    small_sample_power,
    with_functions,
)
from mixmoe.varying.windows import Windows, effective_rows, epanechnikov

POINTS_PER_BANDWIDTH = 24  # mesh of the limiting process
PROCESS_DRAWS = 40_000
BATCH = 4_000  # draws held in memory at once


def equivalent_kernel(t: Array, degree: int, derivative: int = 0) -> Array:
    """Kernel that a local polynomial fit amounts to in the interior: degree 1 or 2, for derivatives 2 or 3."""
    kernel = epanechnikov(t)
    second, fourth, sixth = 1.0 / 5.0, 3.0 / 35.0, 1.0 / 21.0  # moments of the Epanechnikov kernel
    if derivative:
        # Odd powers do not mix with even ones: a slope, without or with the cubic that takes its bias.
        cubic = (sixth - fourth * t * t) / (second * sixth - fourth * fourth)
        return kernel * t * (1.0 / second if degree < 3 else cubic)
    if degree < 2:
        return kernel
    # Local quadratic weights in the interior, in closed form: the kernel times the polynomial that kills t^2.
    return kernel * (fourth - second * t * t) / (fourth - second * second)


def asymptotic_critical(
    relative_bandwidth: float,
    alpha: float = 0.05,
    degree: int = 1,
    seed: int = 0,
    draws: int = PROCESS_DRAWS,
    closed: bool = False,
    derivative: int = 0,
) -> float:
    """Quantile of the supremum of the limiting stationary Gaussian process.

    Parameters
    ----------
    relative_bandwidth : float
        Bandwidth over the length of the index range.
    alpha : float
        One minus the level of the band.
    degree : int
        Of the local polynomial.
    seed : int
        The process is simulated; the same seed gives the same value.
    draws : int
    closed : bool
        Whether the index runs round a circle.
    derivative : {0, 1}

    Returns
    -------
    float

    Notes
    -----
    The limit of the studentised estimate is ``int K*((s - t) / h) dW(s)``, with the equivalent kernel K*. It is drawn
    as a moving average of white noise on a mesh of h / 24.
    """
    rng = np.random.default_rng(seed)
    width = POINTS_PER_BANDWIDTH
    n_points = max(2, int(np.ceil(width / relative_bandwidth)) + 1)
    weights = equivalent_kernel(np.arange(-width, width + 1) / width, degree, derivative)
    # Unit variance: the supremum is that of the studentised process.
    weights /= np.sqrt((weights**2).sum())
    length = max(n_points - 1, len(weights)) if closed else n_points + 2 * width
    # A moving average is a convolution: by FFT all draws at once.
    transform = np.fft.rfft(weights[::-1], length)
    maxima = []
    for start in range(0, draws, BATCH):
        noise = rng.standard_normal((min(BATCH, draws - start), length))
        process = np.fft.irfft(np.fft.rfft(noise, axis=1) * transform, length, axis=1)
        process = process if closed else process[:, 2 * width :]  # the first ones follow from the last ones
        maxima.append(np.abs(process).max(axis=1))
    return float(np.quantile(np.concatenate(maxima), 1.0 - alpha))


BIASES = ("rbc", "undersmooth", "none")
METHODS = ("multiplier", "asymptotic", "bootstrap")
DRAWS = 4000
MOST_ROWS = 20_000  # with more rows degrees of freedom hardly matter, and observed fourth powers do
SAME = 1e-6  # relative differences within the covariance of a function that is one number: rounding
RICH = 10.0  # effective rows for each local coefficient from which on a searched bandwidth is narrowed
NARROWER, STEPS = 1.1, 20  # ratio of the bandwidths compared for bands, and their number
ONE_SE = 1.0  # of the difference in held-out log-likelihood within which a wider bandwidth is as good


# Ratio of the best bandwidths of local-quadratic slopes and local-linear levels, Epanechnikov kernel (Fan and Gijbels
# 1996, table 3.2), beside their rates n^(-1/7) and n^(-1/5). The curvatures on which they depend are not estimated.
SLOPES = 2.275 / 1.719
NEAR = 0.5  # of a bandwidth from the grid point before to the one after: their windows share three quarters
# Relative standard error of the information behind a level from which on its standard error is a number without meaning
# and not given: what rows of a mixture say of an expert alone may be next to nothing, as where experts coincide.
NOISY = 3.0
LEAST_DF = 2.0  # of a variance with a band: with fewer its most probable estimate is zero


@dataclass(frozen=True, slots=True)
class LevelProcess:
    """Estimated levels or derivatives of all functions at all grid points, with their covariance.

    Attributes
    ----------
    levels : ndarray, shape (G, L)
        Where the bands are centred: bias-corrected if asked. Derivatives are per unit of the index.
    covariance : ndarray, shape (G, L, G, L)
    degree : int
        Of the local polynomial behind it.
    bandwidth : float
    df : ndarray, shape (G, L)
        Effective degrees of freedom of the variances, infinite for constants.
    fits : LevelFits
        The maxima behind the levels, of coefficients around the means of the covariates.
    derivative : {0, 1}
    noise : ndarray, shape (G, L)
        Relative standard error of the information behind each level, see `mixmoe.varying.sandwich`.
    """

    levels: Array
    covariance: Array
    degree: int
    bandwidth: float
    df: Array
    fits: "LevelFits"
    derivative: int
    noise: Array


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
        `se` is NaN where there is no band.
    simultaneous, pointwise : ndarray, shape (2, G, R)
        Factors of the simultaneous band and of the pointwise limits, below and above the centre.
    thin : ndarray of bool, shape (G, R)
        Where there is no band because too few rows determine the variance.
    """

    centre: Array
    se: Array
    simultaneous: Array
    pointwise: Array
    thin: BoolArray


def level_process(
    problem: Problem,
    coef: Array,
    bias: str = "rbc",
    clusters: NDArray[np.intp] | None = None,
    correction: bool = True,
    derivative: int = 0,
    searched: bool = False,
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
        Small-sample correction of the standard errors, see `mixmoe.varying.sandwich`.
    derivative : {0, 1}
        Of the functions. Slopes come from fits of one degree more than levels, whose bias at the ends is then of no
        lower order than inside (Fan and Gijbels 1996, section 3.3); at a searched bandwidth, which is that for levels,
        they are made at the larger one that slopes need.
    searched : bool
        Whether the bandwidth is that with the smallest error, as cross-validation seeks it. Coverage is best at one
        smaller by n^(-1/20) (Calonico, Cattaneo and Farrell 2018, section 4), and a search that comes out too wide
        hurts less there; in mixtures at one still smaller where the experts ask for it, see Notes. A bandwidth that was
        given, or windows with few rows, are left as they are.

    Returns
    -------
    LevelProcess

    Notes
    -----
    The held-out likelihood of a mixture charges one bandwidth for everything that is estimated in a window, gate and
    dispersions included, which hardly vary in many data. It is then too wide for an expert that bends, and a parabola
    in each window does not follow it. With memberships known each expert is a regression, whose rows can be left out
    by a formula: bands are made at the widest bandwidth that is as good for these, within one standard error.
    """
    inner, centring = centred(problem)
    start = centring.inwards(inner.slots, coef)
    fits = fit_levels(inner, start, bias, derivative, searched, clusters is None)
    power = small_sample_power(correction, clusters, problem.slots.n_experts)
    known = clusters is None and problem.rows.n <= MOST_ROWS
    nodes = response_nodes(inner, own_natural(inner, fits.state)) if known else ()
    degree = fits.local.free.shape[0] - 1
    if inner.const.any() and (bias != "none" or degree > 1):
        # Constants are estimated beside local lines, whatever the degree of the bands.
        lines = build_local(inner, 1)
        fits = replace(fits, constants=LocalLines(lines, maximise_bounded(lines, local_start(lines, start))))
    inf = level_influence(fits, power, nodes, clusters, derivative)
    covariance = level_covariance(inf, clusters, correction)
    prior = added_covariance(inner, lambda k: level_influence(fits, 0.0, derivative=derivative, added=k))
    shaped = (covariance.matrix + prior).reshape(*inf.levels.shape, *inf.levels.shape)
    df = covariance.df.reshape(inf.levels.shape)
    if inner.rows.penalty is not None:  # the part of a variance that comes from the prior is known
        of_rows, all_of_it = np.diag(covariance.matrix), np.einsum("glgl->gl", shaped)
        df *= (all_of_it / np.maximum(of_rows.reshape(df.shape), np.finfo(float).tiny)) ** 2
    df[:, inner.const] = np.inf  # constants rest on all rows
    if bias == "rbc" and inner.slots.n_experts > 1:
        shaped = without_spikes(shaped, inner.windows)
    values, bandwidth = fits.values(derivative), fits.local.windows.bandwidth
    process = LevelProcess(values, shaped, degree, bandwidth, df, fits, derivative, inf.noise)
    turn = centring.matrix(inner.slots)
    if (turn == np.eye(len(turn))).all():
        return process
    # Back from coefficients around the means of the covariates to those that were asked for.
    levels, df, noise = (np.empty_like(a) for a in (process.levels, process.df, process.noise))
    for a, row in enumerate(turn):
        parts = np.flatnonzero(row)
        levels[:, a] = process.levels[:, parts] @ row[parts]
        df[:, a] = satterthwaite_of_sum(row[parts], process, parts)
        noise[:, a] = process.noise[:, parts].max(axis=1)
    turned = turned_covariance(process.covariance, turn)
    return replace(process, levels=levels, covariance=turned, df=df, noise=noise)


def without_spikes(covariance: Array, windows: Windows) -> Array:
    """Covariance of levels in which no standard error exceeds those at both neighbouring grid points.

    Parameters
    ----------
    covariance : ndarray, shape (G, L, G, L)
    windows : Windows

    Notes
    -----
    The observed information of a mixture is that with known memberships less what these miss. In the window of a local
    parabola one row between two experts may take up nearly all of it, at this one grid point: the estimate is as beside
    it, and the standard error several times as large. Windows that share three quarters of their rows know about the
    same. The information expected under the fitted mixture has no such spikes, but it is too large where few rows carry
    an expert: simultaneous bands then hold 80 to 87 % of the functions of experts instead of 93 to 100 (30 sets).
    """
    variance = np.einsum("glgl->gl", covariance)
    beside = np.maximum(np.roll(variance, 1, axis=0), np.roll(variance, -1, axis=0))
    reach = np.roll(windows.grid, -1) - np.roll(windows.grid, 1)
    if windows.period:
        reach = np.mod(reach, windows.period)
    else:
        reach[[0, -1]] = np.inf
    near = (reach <= NEAR * windows.widths)[:, None]
    factor = np.sqrt(np.divide(beside, variance, out=np.ones_like(variance), where=near & (beside < variance)))
    return np.asarray(covariance * factor[:, :, None, None] * factor, dtype=np.float64)


def satterthwaite_of_sum(weights: Array, process: LevelProcess, functions: NDArray[np.intp]) -> Array:
    """Degrees of freedom of the variance of a sum of functions, shape (G,); weights (F,) or (G, F)."""
    variances = np.einsum("glgl->gl", process.covariance[:, functions][:, :, :, functions])
    own = weights**2 * variances
    spread, total = (own**2 / process.df[:, functions]).sum(axis=1), own.sum(axis=1) ** 2
    # Constants have infinite degrees of freedom, and alone no spread; what has no variance has none.
    degenerate = np.where(total > 0.0, np.inf, 0.0)
    return np.asarray(np.divide(total, spread, out=degenerate, where=spread != 0.0), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class LocalLines:
    """Local likelihoods with lines in each window, and their maxima."""

    local: Local
    bounded: BoundedFit


@dataclass(frozen=True, slots=True)
class LevelFits:
    """Maxima of the local likelihoods in which bands are centred.

    Attributes
    ----------
    local, gate : Local
        The gate has a local likelihood of its own if it has a bandwidth of its own, None otherwise.
    bounded : BoundedFit
    gate_fit : LocalFit
    lines : LocalLines or None
        In which the bands of sigma are centred, in mixtures with robust bias correction, log sigma a line in each
        window: those of the rest rest on a log sigma that is constant there.
    constants : LocalLines or None
        On which the constants rest, if these are other fits.
    """

    local: Local
    bounded: BoundedFit
    gate: Local | None = None
    gate_fit: LocalFit | None = None
    lines: LocalLines | None = None
    constants: LocalLines | None = None

    @property
    def of_dispersions(self) -> BoundedFit:
        """The maxima behind the bands of the dispersions."""
        return self.bounded if self.lines is None else self.lines.bounded

    def values(self, derivative: int) -> Array:
        """Levels of all functions, of dispersions where they run, or derivatives by the index; (G, L)."""
        dispersions, own = self.local.problem.slots.dispersions, self.of_dispersions
        if derivative:
            out = self.state[:, 1] / self.local.problem.bandwidths
            out[:, dispersions] = own.fit.coef[:, 1, dispersions] / self.local.windows.bandwidth
            return out
        out = self.state[:, 0].copy()
        out[:, dispersions] = own.free.coef[:, 0, dispersions]
        return out

    @property
    def state(self) -> Array:
        """Levels and slopes as a state of the EM, (G, 2, L), dispersions held where one of them runs to its limit."""
        out = state_of(self.local, self.bounded.fit.coef)
        if self.gate is not None and self.gate_fit is not None:
            gates = self.local.problem.slots.gates
            out[..., gates] = state_of(self.gate, self.gate_fit.coef)[..., gates]
        return out


def fit_levels(
    problem: Problem,
    coef: Array,
    bias: str,
    derivative: int = 0,
    searched: bool = False,
    independent: bool = True,
) -> LevelFits:
    """Local likelihood estimates with a bias correction, see `level_process`; whether rows are independent."""
    degree = (2 if bias == "rbc" else 1) + derivative
    factor, of_gate = _factors(problem, coef, bias, derivative, searched, independent)
    local = build_local(problem, degree, problem.windows.bandwidth * factor)
    bounded, lines = maximise_bounded(local, local_start(local, coef)), None
    # With few rows of an expert at an end of the index a line in log sigma runs down with the residuals of the few that
    # its regression follows, the more so as memberships then become surer: sigma is half of what it should be, and so
    # are the standard errors of the coefficients. So it is constant in each window; without a correction bands are
    # centred in the local maxima that the fit itself rests on.
    if bias == "rbc" and problem.slots.n_experts > 1 and problem.family.name == "gaussian":
        lines, free, start = LocalLines(local, bounded), local.free.copy(), bounded.fit.coef.copy()
        free[1:, problem.slots.dispersions] = False
        start[:, 1:, problem.slots.dispersions] = 0.0
        local = replace(local, free=free)
        bounded = maximise_bounded(local, start)
    if problem.gate_windows is problem.windows:
        return LevelFits(local, bounded, lines=lines)
    held = state_of(local, bounded.fit.coef)
    gate = build_local(problem, degree, problem.gate_windows.bandwidth * of_gate, held=held)
    return LevelFits(local, bounded, gate, maximise_local(gate, local_start(gate, coef)), lines)


def _factors(
    problem: Problem, coef: Array, bias: str, derivative: int, searched: bool, independent: bool
) -> tuple[float, float]:
    """Bandwidths of the fits in which bands are centred over those of the problem: of all; of a gate with its own."""
    n, degree = problem.rows.n, (2 if bias == "rbc" else 1) + derivative
    rate = float(n**-0.05)
    if bias == "undersmooth":
        return rate, rate
    if bias != "rbc" or not searched or not (derivative or _rich(problem, degree, 1.0)):
        return 1.0, 1.0
    windows = problem.windows
    widest = problem.rows.widest / (windows.share or windows.bandwidth)
    # Best for slopes is a bandwidth of another order than for levels, see `SLOPES`.
    start, more = (1.0, min(SLOPES * n ** (2.0 / 35.0), widest)) if derivative else (rate, 1.0)
    # One expert: the search was that of its regression. Rows of a cluster would predict each other.
    if problem.slots.n_experts == 1 or problem.const[problem.slots.experts].all() or not independent:
        return start * more, start * more
    tried = [start * NARROWER**-step for step in range(STEPS)]
    factors = np.array([factor for factor in tried if _rich(problem, degree, factor)] or [start], dtype=float)
    return float(factors[_chosen(left_out_of_experts(problem, coef, factors))]) * more, start * more


def _chosen(logliks: Array) -> int:
    """The widest of some bandwidths, descending, whose held-out log-likelihoods (B, n) are as good as the best.

    As good is what lies within one standard error of the difference (Breiman et al. 1984, section 3.4.3).
    """
    best = int(logliks.sum(axis=1).argmax())
    lost = logliks[best] - logliks
    error = np.sqrt(lost.shape[1]) * lost.std(axis=1)
    return int(np.flatnonzero(lost.sum(axis=1) <= ONE_SE * error)[0])


def _rich(problem: Problem, degree: int, factor: float) -> bool:
    """Whether windows, so many times as wide, hold many more rows than local polynomials have coefficients."""
    slots, windows = problem.slots, problem.windows.with_grid(problem.windows.grid, factor)
    coefficients = (degree + 1) * slots.n_expert_columns * slots.n_experts
    return bool(np.median(effective_rows(windows, problem.rows.weights)) >= RICH * coefficients)


def level_influence(
    fits: LevelFits,
    power: float,
    nodes: tuple[Node, ...] = (),
    clusters: NDArray[np.intp] | None = None,
    derivative: int = 0,
    added: int | None = None,
) -> Influence:
    """Influence on all levels or derivatives, NaN where a local likelihood has no maximum."""
    local, fit, slots = fits.local, fits.bounded.fit, fits.local.problem.slots
    held, vary = fits.bounded.held(slots), np.flatnonzero(~local.problem.const)
    inf = influence(local, fit.coef, power, nodes, clusters, held, derivative, added)
    inf = _without_lost(inf, fit.converged, vary)
    if fits.gate is not None and fits.gate_fit is not None:
        levels, slopes = inf, None
        if derivative:  # the gate follows the levels of the experts, whatever is wanted of these
            slopes = inf
            levels = influence(local, fit.coef, power, (), clusters, held, added=added)
            levels = _without_lost(levels, fit.converged, vary)
        inf = gate_influence(fits.gate, fits.gate_fit.coef, levels, power, nodes, clusters, slopes, added)
        inf = _without_lost(inf, fits.gate_fit.converged, vary[vary >= slots.gates.start])
    if fits.lines is not None:
        # Dispersions have their own fits; behind the bands of the other functions they were as these need them.
        local, bounded = fits.lines.local, fits.lines.bounded
        own = influence(local, bounded.fit.coef, power, nodes, clusters, bounded.held(slots), derivative, added)
        vary = vary[(vary >= slots.dispersions.start) & (vary < slots.dispersions.stop)]
        inf = with_functions(inf, _without_lost(own, bounded.fit.converged, vary), slots.dispersions)
    if fits.constants is None:
        return inf
    local, bounded = fits.constants.local, fits.constants.bounded
    own = influence(local, bounded.fit.coef, power, (), clusters, bounded.held(slots), added=added)
    return replace(inf, const=own.const)


def _without_lost(inf: Influence, converged: NDArray[np.bool_], functions: NDArray[np.intp]) -> Influence:
    """Influence with NaN for some functions at grid points that have no maximum."""
    pieces = []
    for piece, ok in zip(inf.local, converged, strict=True):
        kept = piece if ok else piece.copy()
        if not ok:
            kept[:, functions] = np.nan
        pieces.append(kept)
    return replace(inf, local=tuple(pieces))


def target_bands(
    process: LevelProcess,
    target: Target,
    alpha: float,
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
    alpha : float
        One minus the level of the bands.
    method : {"multiplier", "asymptotic"}
    span : float
        Length of the index range.
    rng : numpy.random.Generator
    draws : int

    Returns
    -------
    BandSet
    """
    n_targets, normal = target.values.shape[1], float(ndtri(1.0 - alpha / 2.0))
    variance, df = np.empty_like(target.values), np.empty_like(target.values)
    critical, thin = np.empty(n_targets), np.zeros(target.values.shape, dtype=bool)
    common, closed = 0.0, process.fits.local.windows.period > 0.0
    if method == "asymptotic":
        common = asymptotic_critical(
            process.fits.local.windows.relative, alpha, process.degree, closed=closed, derivative=process.derivative
        )
    for r in range(n_targets):
        used = np.flatnonzero((target.jacobian[:, r] != 0.0).any(axis=0))
        jacobian = target.jacobian[:, r, used]
        inner = process.covariance[:, used][:, :, :, used]
        covariance = np.einsum("gl,glhm,hm->gh", jacobian, inner, jacobian, optimize=True)
        variance[:, r] = np.diag(covariance)
        df[:, r] = satterthwaite_of_sum(jacobian, process, used)
        few = df[:, r] < LEAST_DF
        covariance[few], covariance[:, few] = np.nan, np.nan
        thin[:, r] = few & np.isfinite(variance[:, r])
        critical[r] = common if method == "asymptotic" else multiplier_critical(covariance, alpha, draws, rng)
        if np.ptp(covariance) <= SAME * np.abs(covariance).max():  # False where something is NaN
            critical[r] = normal  # one number along the index, whose limits are its band
    with np.errstate(invalid="ignore"):
        se = np.where(thin, np.nan, np.sqrt(variance))
    pointwise = student_factor(np.full(n_targets, normal), df)
    return symmetric(target.values, se, student_factor(critical, df), pointwise, thin)


def symmetric(centre: Array, se: Array, simultaneous: Array, pointwise: Array, thin: BoolArray) -> BandSet:
    """Bands with the same factors (G, R) on both sides."""
    return BandSet(centre, se, np.stack([simultaneous] * 2), np.stack([pointwise] * 2), thin)


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
    Below `LEAST_DF` there is no band.
    """
    limited = np.clip(np.nan_to_num(df, nan=LEAST_DF), LEAST_DF, None)
    out: Array = student.isf(ndtr(-np.broadcast_to(normal, df.shape)), limited)
    return out
