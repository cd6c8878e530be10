"""Quantile residuals and their envelope, and the panels of diagnostic figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.special import ndtri
from scipy.stats import beta, chi2, norm
from statsmodels.nonparametric.smoothers_lowess import lowess

from mixmoe._typing import Array, IntArray
from mixmoe.check.profile import Profile, signed_root
from mixmoe.errors import ArgumentError
from mixmoe.families import Distribution, Effects
from mixmoe.mixture.estimate import EMFit
from mixmoe.output.records import Cloud, Curve, Marks, Panel, Rule

_TINY = 1e-300
_CHECKED = 200  # order statistics at which the simultaneous level is settled
_DRAWS = 1000
_MOST_EFFECTS = 5  # random effects of which all pairs are drawn


def continuous(at: Array, above: Array) -> Distribution:
    """Distribution of a continuous response from ``P(Y <= y)`` and ``P(Y > y)``."""
    return Distribution(at, at, above, above)


def placed(cdf: Callable[[Array], Array], sf: Callable[[Array], Array], y: Array, discrete: bool) -> Distribution:
    """Where responses lie, from ``P(Y <= y)`` and ``P(Y > y)`` as functions of y; steps lie one apart."""
    at, above = cdf(y), sf(y)
    return Distribution(cdf(y - 1.0), at, sf(y - 1.0), above) if discrete else continuous(at, above)


def quantile_residuals(where: Distribution, rng: np.random.Generator) -> Array:
    """Standard normal under the model, shape (n,); randomised where the response is discrete.

    Parameters
    ----------
    where : Distribution
    rng : numpy.random.Generator
        Not used if the response is continuous.

    Returns
    -------
    ndarray, shape (n,)

    References
    ----------
    Dunn & Smyth (1996), Journal of Computational and Graphical Statistics 5, 236-244.
    """
    jumps = bool((where.at > where.below).any())
    share = rng.random(len(where.at)) if jumps else np.zeros(len(where.at))
    low = where.below + share * (where.at - where.below)
    high = where.beyond - share * (where.beyond - where.above)
    upper = low > 0.5
    return np.asarray(np.where(upper, -1.0, 1.0) * ndtri(np.maximum(np.where(upper, high, low), _TINY)))


@dataclass(frozen=True, slots=True)
class Ordered:
    """Ordered residuals beside what they should be.

    Attributes
    ----------
    expected : ndarray, shape (n,)
        Normal quantiles at ``i / (n + 1)``.
    observed : ndarray, shape (n,)
    lower, upper : ndarray, shape (n,)
        Simultaneous envelope: with probability `level` n independent normal residuals lie within everywhere.
    level : float
    """

    expected: Array
    observed: Array
    lower: Array
    upper: Array
    level: float


def ordered_residuals(residuals: Array, alpha: float, rng: np.random.Generator) -> Ordered:
    """Ordered residuals with a simultaneous envelope of equal local levels.

    Parameters
    ----------
    residuals : ndarray, shape (n,)
    alpha : float
        One minus the level of the envelope.
    rng : numpy.random.Generator
        For the level at each point.

    Returns
    -------
    Ordered

    References
    ----------
    Aldor-Noiman et al. (2013), The American Statistician 67, 249-260.
    """
    n = len(residuals)
    rank = np.arange(1, n + 1)
    local = local_level(n, alpha, rng)
    lower, upper = (beta.ppf(level, rank, n + 1 - rank) for level in (local / 2, 1 - local / 2))
    return Ordered(ndtri(rank / (n + 1)), np.sort(residuals), ndtri(lower), ndtri(upper), 1 - alpha)


def local_level(n: int, alpha: float, rng: np.random.Generator) -> float:
    """Level at each order statistic of n uniforms at which all of them leave their limits with probability `alpha`."""
    rank = np.unique(np.linspace(1, n, min(n, _CHECKED)).round().astype(int))
    smallest = np.empty(_DRAWS)
    for i in range(_DRAWS):
        # Ordered uniforms are partial sums of exponentials over their total: no sorting.
        cumulated = np.cumsum(rng.standard_exponential(n + 1))
        p = beta.cdf(cumulated[rank - 1] / cumulated[-1], rank, n + 1 - rank)
        smallest[i] = 2 * np.minimum(p, 1 - p).min()
    return float(np.quantile(smallest, alpha))


_SMOOTH = 0.5  # share of the points behind each value of a smooth line
_FEW_VALUES = 12  # as many values of the horizontal axis are shown one by one
_LEAST_VALUES = 8  # of the horizontal axis for a smooth line
_LEAST_UNITS = 3.0  # effective units below which a mean has no limits
_HALF_LEVEL = 0.35  # half of the length of a level line in the place of a point
_ELLIPSE = 121
_SMOOTH_POINTS = 121
_DIGITS = 3  # of log-likelihoods
_FALL = 1e-2  # relative fall of a trace that no step of an ascent takes


def residual_panel(x: Array, residuals: Array, modal: IntArray, xlabel: str, ylabel: str) -> Panel:
    """Residuals against a variable, coloured by most probable expert, with a smooth line.

    Parameters
    ----------
    x, residuals : ndarray, shape (n,)
    modal : ndarray of int, shape (n,)
        Expert of each row, from 1.
    xlabel, ylabel : str
    """
    experts = np.unique(modal)
    name = len(experts) > 1
    clouds = [Cloud(x[modal == k], residuals[modal == k], int(k), f"expert {k}" if name else "") for k in experts]
    smooth: tuple[Curve, ...] = ()
    if len(np.unique(x)) >= _LEAST_VALUES:
        line = np.unique(lowess(residuals, x, frac=_SMOOTH, delta=0.01 * float(np.ptp(x))), axis=0)
        smooth = (Curve("", "", line[:, 0], line[:, 1]),)
    return Panel("Residuals", xlabel, ylabel, tuple(clouds), smooth, rules=(Rule(0.0),))


def qq_panel(ordered: Ordered, independent: bool) -> Panel:
    """Ordered residuals against normal quantiles, within their envelope if they are independent."""
    x = ordered.expected
    note = (
        f"{100 * ordered.level:g} % simultaneous envelope" if independent else "residuals of a subject are correlated"
    )
    line = Curve("", "", x, x)
    line = replace(line, lower=ordered.lower, upper=ordered.upper) if independent else line
    points = Cloud(x, ordered.observed, 1)
    return Panel("Normal QQ", "normal quantile", "quantile residual", (points,), (line,), note=note, points_first=False)


@dataclass(frozen=True, slots=True)
class Binned:
    """Observed and predicted means per bin and expert, weighted by responsibilities.

    Attributes
    ----------
    x, observed, std_error, predicted : ndarray, shape (B, K)
        NaN where a bin holds too little of an expert.
    weights : ndarray, shape (B, n, K)
        Weights of the rows in each mean; they add up to one.
    """

    x: Array
    observed: Array
    std_error: Array
    predicted: Array
    weights: Array


def bin_rows(x: Array, bins: int) -> IntArray:
    """Bin of each row, shape (n,): its value if there are few, else quantile groups."""
    values, codes = np.unique(x, return_inverse=True)
    if len(values) <= max(_FEW_VALUES, bins):
        return codes.astype(np.intp)
    edges = np.unique(np.quantile(x, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.unique(np.searchsorted(edges, x, side="right"), return_inverse=True)[1].astype(np.intp)


def binned_means(x: Array, y: Array, tau: Array, predicted: Array, units: IntArray, bins: int) -> Binned:
    """Observed means weighted by responsibilities beside predicted ones weighted likewise.

    Parameters
    ----------
    x, y : ndarray, shape (n,)
    tau : ndarray, shape (n, K)
        Responsibilities of the unit of each row.
    predicted : ndarray, shape (n, K)
    units : ndarray of int, shape (n,)
        Unit of each row, non-decreasing. Standard errors know of repeated rows, and take responsibilities as given.
    bins : int

    Returns
    -------
    Binned

    References
    ----------
    Proust-Lima, Philipps & Liquet (2017), Journal of Statistical Software 78(2), section 5.
    """
    codes = bin_rows(x, bins)
    n_bins, K = int(codes.max()) + 1, tau.shape[1]
    weights = np.zeros((n_bins, len(x), K))
    weights[codes, np.arange(len(x))] = tau
    mass = weights.sum(axis=1, keepdims=True)
    weights = np.divide(weights, mass, out=np.zeros_like(weights), where=mass > 0)
    observed = np.einsum("bnk,n->bk", weights, y)
    pull = weights * (y[:, None] - observed[:, None])
    starts = np.flatnonzero(np.diff(units, prepend=-1))
    by_unit, share = np.add.reduceat(pull, starts, axis=1), np.add.reduceat(weights, starts, axis=1)
    size = (share**2).sum(axis=1)
    enough = np.divide(1.0, size, out=np.zeros_like(size), where=size > 0) >= _LEAST_UNITS
    error = np.where(enough, np.sqrt((by_unit**2).sum(axis=1)), np.nan)
    seen = np.where(enough, 1.0, np.nan)
    at = np.einsum("bnk,n->bk", weights, x)
    return Binned(at * seen, observed * seen, error, np.einsum("bnk,nk->bk", weights, predicted) * seen, weights)


def mean_marks(means: Binned, k: int, alpha: float, label: str = "") -> Marks:
    """Observed means of the expert at place k with their limits, from left to right."""
    at = _in_sight(means, k)
    y, half = means.observed[at, k], norm.isf(alpha / 2) * means.std_error[at, k]
    return Marks(means.x[at, k], y, y - half, y + half, k + 1, label)


def _in_sight(means: Binned, k: int) -> IntArray:
    """Bins that hold enough of an expert, from left to right."""
    order = np.argsort(means.x[:, k])
    return order[np.isfinite(means.x[order, k])]


def fit_panel(
    means: Binned, errors: Array | None, alpha: float, xlabel: str, ylabel: str, categories: tuple[str, ...] = ()
) -> Panel:
    """Observed means with limits over predicted ones with bands, per expert.

    Parameters
    ----------
    means : Binned
    errors : ndarray, shape (B, K), or None
        Standard errors of the predicted means.
    alpha : float
    xlabel, ylabel : str
    categories : tuple of str
        Names of the bins, if the horizontal axis has no numbers; predicted means are then level lines.
    """
    curves, marks = [], []
    K = means.x.shape[1]
    for k in range(K):
        at = _in_sight(means, k)
        x, predicted = means.x[at, k], means.predicted[at, k]
        band = None if errors is None else norm.isf(alpha / 2) * errors[at, k]
        low, high = (None, None) if band is None else (predicted - band, predicted + band)
        curve = Curve("", "", x, predicted, low, high, expert=k + 1)
        curves.append(_level(curve) if categories or len(x) == 1 else curve)
        marks.append(mean_marks(means, k, alpha, f"expert {k + 1}" if K > 1 else ""))
    note = "points: observed"
    title = "Observed and predicted means"
    return Panel(title, xlabel, ylabel, (), tuple(curves), tuple(marks), note=note, categories=categories)


def _level(curve: Curve) -> Curve:
    """A short level line in the place of each point."""

    def twice(values: Array) -> Array:
        return np.column_stack([values, values, np.full(values.size, np.nan)]).ravel()[:-1]

    ends = (curve.x[:, None] + np.array([-_HALF_LEVEL, _HALF_LEVEL, np.nan])).ravel()[:-1]
    lower, upper = (None if v is None else twice(v) for v in (curve.lower, curve.upper))
    return replace(curve, x=ends, y=twice(curve.y), lower=lower, upper=upper)


def effects_panels(effects: Effects, alpha: float, parameters: Sequence[str] | None = None) -> tuple[Panel, ...]:
    """Each two random effects against one another with the ellipses of the model, or a QQ plot of the only one.

    Parameters
    ----------
    effects : Effects
    alpha : float
        One minus the share of the subjects that an ellipse should hold.
    parameters : sequence of str, optional
        Names of the effects to draw; default: all, of more than `_MOST_EFFECTS` those that differ most.

    Raises
    ------
    ArgumentError
        If there is no such effect.
    """
    if parameters is None:
        # Effects of each unit given its most probable expert.
        size = np.square(effects.means[np.arange(len(effects.modal)), effects.modal - 1]).mean(axis=0)
        chosen = sorted(np.argsort(-size, kind="stable")[:_MOST_EFFECTS].tolist())
    else:
        unknown = [name for name in parameters if name not in effects.names]
        if unknown or not len(parameters):
            what = repr(unknown[0]) if unknown else "none"
            raise ArgumentError(f"parameters must name random effects, {', '.join(effects.names)}; got {what}")
        chosen = [effects.names.index(name) for name in parameters]
    modal, (_, K, n), names = effects.modal, effects.means.shape, [effects.names[k] for k in chosen]
    own = effects.means[np.arange(len(modal)), modal - 1][:, chosen]
    implied = effects.implied[:, chosen][:, :, chosen]
    # Experts that are the most probable one of some unit, with their legend entries.
    present = {k: f"expert {k}" if K > 1 else "" for k in range(1, K + 1) if (modal == k).any()}
    if len(chosen) == 1:
        clouds = []
        for k, label in present.items():
            values = np.sort(own[modal == k, 0])
            scale = np.sqrt(max(implied[k - 1, 0, 0], np.finfo(float).tiny))
            clouds.append(Cloud(ndtri(np.arange(1, len(values) + 1) / (len(values) + 1)), values / scale, k, label))
        reach = max((float(np.abs(c.x).max()) for c in clouds), default=1.0)
        line = Curve("", "", np.array([-reach, reach]), np.array([-reach, reach]))
        ylabel = f"predicted effect of {names[0]}, standardised"
        return (Panel("Random effects", "normal quantile", ylabel, tuple(clouds), (line,), points_first=False),)
    panels: list[Panel] = []
    note = f"ellipses: {100 * (1 - alpha):g} % by the model"
    for i, j in combinations(range(len(chosen)), 2):
        clouds = [Cloud(own[modal == k, i], own[modal == k, j], k, label) for k, label in present.items()]
        ellipses = [_ellipse(implied[k - 1][np.ix_((i, j), (i, j))], 1 - alpha, k) for k in present]
        more = f"; {len(chosen)} of {n} effects; parameters=[...] chooses others"
        told = note + (more if len(chosen) < n and not panels else "")
        panels.append(Panel("Random effects", names[i], names[j], tuple(clouds), tuple(ellipses), note=told))
    return tuple(panels)


def _ellipse(cov: Array, level: float, expert: int) -> Curve:
    values, vectors = np.linalg.eigh(cov)
    angle = np.linspace(0, 2 * np.pi, _ELLIPSE)
    reach = np.sqrt(chi2.ppf(level, 2) * np.maximum(values, 0.0))
    points = vectors @ (reach[:, None] * np.vstack([np.cos(angle), np.sin(angle)]))
    return Curve("", "", points[0], points[1], expert=expert)


def profile_panel(found: Profile) -> Panel:
    """Profile log-likelihood below its maximum, with the level of the likelihood-ratio limits."""
    x, root = signed_root(found.values, found.loglik, found.estimate, found.maximum)
    fine = np.linspace(x[0], x[-1], _SMOOTH_POINTS)
    curve = Curve("", "", fine, -0.5 * PchipInterpolator(x, root)(fine) ** 2)
    drop = -0.5 * float(chi2.isf(found.alpha, 1))
    limits = [Rule(v, "x", f"{v:.4g}") for v in (found.lower, found.upper) if np.isfinite(v)]
    rules = (
        Rule(drop, "y", f"{100 * (1 - found.alpha):g} % limits"),
        Rule(found.estimate, "x", f"{found.estimate:.4g}"),
        *limits,
    )
    return Panel(
        "Profile of the log-likelihood", found.name, "log-likelihood below its maximum", (), (curve,), (), rules
    )


def starts_panels(em: EMFit) -> tuple[Panel, ...]:
    """Log-likelihoods that the starts reached, and the way of the one that won."""
    ends = em.starts.ends if em.starts.ends.size else em.starts.logliks
    finite = np.sort(ends[np.isfinite(ends)])[::-1]
    lost = ends.size - finite.size
    what = "all starts, after the search" if em.starts.ends.size else "distinct maxima that were run to convergence"
    note = f"{em.starts.n_replicated} of {em.starts.n_starts} reached the best"
    note += f", {lost} collapsed" if lost else ""
    below = np.round(finite - finite.max(initial=-np.inf), _DIGITS)  # closer ones are the same maximum
    reached = Cloud(np.arange(1.0, finite.size + 1), below, 1)
    # The trace since the likelihood last changed, as it does when a search on some of the units goes on to all.
    falls = np.flatnonzero(np.diff(em.trace) < -_FALL * (1 + np.abs(em.trace[1:])))
    trace = em.trace[falls[-1] + 1 :] if falls.size else em.trace
    way = Curve("", "", np.arange(trace.size, dtype=float), trace - trace.max(initial=-np.inf))
    label = "log-likelihood below the best"
    return (
        Panel("Starts", f"rank ({what})", label, (reached,), rules=(Rule(0.0),), note=note, xlim=(0, finite.size + 1)),
        Panel("Trace of the winner", "iteration", label, (), (way,), rules=(Rule(0.0),)),
    )
