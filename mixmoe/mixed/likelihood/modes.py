"""Modes of the random effects of every subject under every expert, and what they ask of a response distribution.

Random effects are b = T u with u standard normal (Bates et al. 2015, section 3). Rows lie sorted by subject on the last
axis; sums over the rows of a subject are segment sums. The axis ``E`` runs over experts of several starts at once.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array, IntArray
from mixmoe.mixed.likelihood.columns import Columns
from mixmoe.mixed.likelihood.further_parameters import Extra
from mixmoe.numerics.linalg import cholesky, solve_lower, solve_upper
from mixmoe.responses.distribution import ETA_LIMIT, Curvature, Family, FurtherTerms, Outcome


@dataclass(frozen=True, slots=True)
class Terms:
    """Derivatives of the log density in the linear predictor, each shape (E, n), and in the further parameters.

    Attributes
    ----------
    slope, weight, third : ndarray
        First derivative, minus the second, and the third.
    further : tuple of FurtherTerms
    """

    slope: Array
    weight: Array
    third: Array
    further: tuple[FurtherTerms, ...]


class Response(Protocol):
    """A response distribution given its linear predictor; `extra` holds unconstrained further parameters, (E, d)."""

    @property
    def name(self) -> str:
        """Name of the response family."""

    @property
    def extras(self) -> tuple[Extra, ...]:
        """Further parameters of an expert."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the ordered categories; empty for other responses."""

    @property
    def support(self) -> Array | None:
        """The values that a response can take, ascending, where they are few."""

    @property
    def discrete(self) -> bool:
        """Whether responses are whole numbers or categories."""

    def outcome(self, y: Array, trials: Array) -> Outcome:
        """Responses as the likelihood takes them."""

    def bends(self, extra: Array) -> Array:
        """How far down an expectation may grow as the predictor falls, and up as it rises, shape (E, 2)."""

    def log_density(self, out: Outcome, eta: Array, extra: Array) -> Array:
        """Log density, with any axes before those of eta."""

    def curvature(self, out: Outcome, eta: Array, extra: Array) -> Curvature:
        """Log density without its constant, slope and weight in one pass."""

    def terms(self, out: Outcome, eta: Array, extra: Array) -> Terms:
        """All derivatives."""

    def scoring_weight(self, out: Outcome, eta: Array, extra: Array) -> Array:
        """A positive stand-in for the weight where that is negative, shape (E, n)."""

    def mean(self, eta: Array, extra: Array, trials: Array) -> Array:
        """Expected response, shape (E, n)."""

    def predictor(self, mean: Array, extra: Array, trials: Array) -> Array:
        """The linear predictor at which the response has this expectation, shape (E, n)."""

    def limits(self, mean: Array, half: Array, trials: Array) -> tuple[Array, Array]:
        """Limits of an expectation `half` its standard error times a normal quantile apart, within its range."""

    def variance(self, eta: Array, extra: Array, trials: Array) -> Array:
        """Variance of the response, shape (E, n)."""

    def deviance(self, out: Outcome, mean: Array, extra: Array) -> Array:
        """Twice the log density lost between a perfect fit and this expectation, shape (E, n)."""

    def cdf(self, y: Array, eta: Array, extra: Array, trials: Array) -> Array:
        """Distribution function, shape (E, n), at responses as `outcome` holds them."""

    def sf(self, y: Array, eta: Array, extra: Array, trials: Array) -> Array:
        """One minus that without loss of digits, shape (E, n)."""

    def draw(self, rng: np.random.Generator, eta: Array, extra: Array, trials: Array) -> Array:
        """One response for each predictor."""


@dataclass(frozen=True, slots=True)
class FamilyResponse:
    """A family with at most one further parameter, the logarithm of its dispersion.

    Attributes
    ----------
    family : Family
    extras : tuple of Extra
    """

    family: Family
    extras: tuple[Extra, ...] = ()

    @property
    def name(self) -> str:
        """Name of the response family."""
        return self.family.name

    @property
    def labels(self) -> tuple[str, ...]:
        """None: responses are no ordered categories."""
        return ()

    @property
    def support(self) -> Array | None:
        """None: any number, whole number or share."""
        return None

    @property
    def discrete(self) -> bool:
        """Whether responses are whole numbers."""
        return self.family.discrete

    def outcome(self, y: Array, trials: Array) -> Outcome:
        """Responses as they are."""
        return Outcome(y, trials, self.family.constant(y, trials))

    def bends(self, extra: Array) -> Array:
        """Means rise with the predictor, those of a logit up to zero or so."""
        logit = self.family.name in ("binomial", "beta")
        return np.tile([ETA_LIMIT, 0.0 if logit else ETA_LIMIT], (len(extra), 1))

    def log_density(self, out: Outcome, eta: Array, extra: Array) -> Array:
        """Log density."""
        return self._family(extra).log_density(out, eta, self._delta(extra))

    def curvature(self, out: Outcome, eta: Array, extra: Array) -> Curvature:
        """Log density without its constant, slope and weight in one pass."""
        return self._family(extra).curvature(out, eta, self._delta(extra))

    def terms(self, out: Outcome, eta: Array, extra: Array) -> Terms:
        """All derivatives."""
        delta = self._delta(extra)
        low, third = self.family.derivatives(out, eta, delta), self.family.third(out, eta, delta)
        further = (FurtherTerms(low.delta, -low.eta_delta, third.delta),) if self.extras else ()
        return Terms(low.eta, low.eta_eta, third.eta, further)

    def scoring_weight(self, out: Outcome, eta: Array, extra: Array) -> Array:
        """The Fisher information."""
        return self._family(extra).scoring(out, eta, self._delta(extra))[1]

    def mean(self, eta: Array, extra: Array, trials: Array) -> Array:
        """Inverse of the link."""
        return self.family.mean(eta, trials)

    def predictor(self, mean: Array, extra: Array, trials: Array) -> Array:
        """The link."""
        return self.family.link(mean, trials)

    def limits(self, mean: Array, half: Array, trials: Array) -> tuple[Array, Array]:
        """Limits by the delta method on the scale of the link."""
        eta = self.family.link(mean, trials)
        away = half / self.family.mean_slope(eta, trials)
        return self.family.mean(eta - away, trials), self.family.mean(eta + away, trials)

    def variance(self, eta: Array, extra: Array, trials: Array) -> Array:
        """Variance of the response."""
        return self._family(extra).variance(self.mean(eta, extra, trials), self._delta(extra), trials)

    def deviance(self, out: Outcome, mean: Array, extra: Array) -> Array:
        """Twice the log density lost between a perfect fit and this expectation."""
        return self._family(extra).deviance(out, mean, self._delta(extra))

    def cdf(self, y: Array, eta: Array, extra: Array, trials: Array) -> Array:
        """Distribution function."""
        return self._family(extra).cdf(y, eta, self._delta(extra), trials)

    def sf(self, y: Array, eta: Array, extra: Array, trials: Array) -> Array:
        """Probability of a larger response."""
        return self._family(extra).sf(y, eta, self._delta(extra), trials)

    def draw(self, rng: np.random.Generator, eta: Array, extra: Array, trials: Array) -> Array:
        """One response for each predictor."""
        return self._family(extra).draw(rng, eta, self._delta(extra), trials)

    def _family(self, extra: Array) -> Family:
        """The family with whatever of it is a further parameter of each expert, beside the dispersion."""
        return self.family

    def _delta(self, extra: Array) -> Array:
        return extra if self.extras else np.zeros((extra.shape[0], 1))


_TOLERANCE = 1e-11  # of a last step; Newton squares the error, so that the mode is exact to rounding
_AT_REST = 1e-14  # of a step: rounding alone, so that it makes no difference whether a subject goes on with the others
_MAX_PASSES = 100
_FEW_MOVING = 0.4  # share of subjects and experts on their way, up to which their rows are worth being gathered
_MAX_STEP = 4.0  # in standard deviations of a random effect
_MAX_KEPT = 12
LEAST_CURVATURE = 0.25  # of a log density in units of the prior: of one twice as wide as that


@dataclass(frozen=True, slots=True)
class Rows:
    """Data of subjects, row by row.

    Attributes
    ----------
    outcome : Outcome
    offset : ndarray, shape (n,)
    weights : ndarray, shape (n,), or None
        Prior weights.
    X : Columns
    Z : ndarray, shape (q, n)
    starts : ndarray of int, shape (N,)
        First row of each subject.
    counts : ndarray of int, shape (N,)
    """

    outcome: Outcome
    offset: Array
    weights: Array | None
    X: Columns
    Z: Array
    starts: IntArray
    counts: IntArray

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return self.starts.size

    def take(self, subjects: "slice | IntArray") -> "Rows":
        """The rows of some of the subjects, possibly repeated."""
        first, counts = self.starts[subjects], self.counts[subjects]
        starts = np.cumsum(counts) - counts
        if isinstance(subjects, slice):  # consecutive ones are not copied: the arrays may lie in files
            return self._at(slice(int(first[0]), int(first[-1] + counts[-1])), starts, counts)
        return self._at(np.arange(counts.sum()) + np.repeat(first - starts, counts), starts, counts)

    def first(self, n: int) -> "Rows":
        """The first `n` rows of each subject, who must have as many."""
        rows = (self.starts[:, None] + np.arange(n)).ravel()
        return self._at(rows, n * np.arange(self.n_subjects), np.full(self.n_subjects, n))

    def _at(self, rows: "slice | IntArray", starts: IntArray, counts: IntArray) -> "Rows":
        """Some rows, of subjects that start where it is said."""
        weights = None if self.weights is None else self.weights[rows]
        Z = self.Z[:, rows] if isinstance(rows, slice) else np.ascontiguousarray(self.Z[:, rows])
        return Rows(self.outcome.take(rows), self.offset[rows], weights, self.X.at(rows), Z, starts, counts)

    def sums(self, values: Array) -> Array:
        """Sums over the rows of each subject, shape (..., N), of values of shape (..., n)."""
        return np.add.reduceat(values, self.starts, axis=-1)

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values of the subjects, shape (..., N), for each of their rows, shape (..., n)."""
        return np.repeat(values, self.counts, axis=-1)

    def weighted(self, values: Array) -> Array:
        """Values times prior weights."""
        return values if self.weights is None else values * self.weights

    def random_predictor(self, v: Array) -> Array:
        """Z v row by row, shape (E, n), from v of shape (E, q, N)."""
        out = np.zeros((v.shape[0], self.Z.shape[1]))
        for a, column in enumerate(self.Z):
            out += column * self.spread(v[:, a])
        return out

    def into_random(self, values: Array) -> Array:
        """Z'values by subject, shape (E, q, N), from (E, n)."""
        out = np.empty((values.shape[0], len(self.Z), self.n_subjects))
        for a, column in enumerate(self.Z):
            out[:, a] = self.sums(column * values)
        return out

    def random_gram(self, weight: Array) -> Array:
        """Z'diag(weight)Z by subject, shape (E, q, q, N)."""
        q = len(self.Z)
        out = np.empty((weight.shape[0], q, q, self.n_subjects))
        for a in range(q):
            for b in range(a + 1):
                out[:, a, b] = out[:, b, a] = self.sums(self.Z[a] * self.Z[b] * weight)
        return out


@dataclass(slots=True)
class WarmStarts:
    """Modes found before, by the parameters they belong to; it only saves passes.

    Attributes
    ----------
    keys : ndarray, shape (M, d)
    modes : ndarray, shape (M, K, q, N)
    """

    keys: Array | None = None
    modes: Array | None = None

    def nearest(self, keys: Array, shape: tuple[int, ...]) -> Array:
        """Modes of the nearest parameters known, shape (S, K, q, N); zero if there are none."""
        if self.keys is None or self.modes is None or self.modes.shape[1:] != shape:
            return np.zeros((len(keys), *shape))
        distance = np.abs(keys[:, None] - self.keys).max(axis=2)
        return self.modes[distance.argmin(axis=1)]

    def keep(self, keys: Array, modes: Array) -> None:
        """Remember the modes at these parameters, and forget the oldest."""
        if self.keys is not None and self.modes is not None and self.modes.shape[1:] == modes.shape[1:]:
            room = max(_MAX_KEPT - len(keys), 0)
            keys, modes = np.vstack([keys, self.keys[:room]]), np.concatenate([modes, self.modes[:room]])
        self.keys, self.modes = keys, modes


@dataclass(frozen=True, slots=True)
class Modes:
    """Modes of the random effects and the curvature there.

    Attributes
    ----------
    u : ndarray, shape (E, q, N)
    eta : ndarray, shape (E, n)
        Linear predictor.
    slope, weight : ndarray, shape (E, n)
        First and minus second derivatives of the log density, times prior weights.
    gram : ndarray, shape (E, q, q, N)
        Z'diag(weight)Z.
    L : ndarray, shape (E, q, q, N)
        Cholesky factor of H = I + T'Z'diag(weight)Z T.
    value : ndarray, shape (E, N)
        Log density given the mode, minus u'u / 2.
    """

    u: Array
    eta: Array
    slope: Array
    weight: Array
    gram: Array
    L: Array
    value: Array

    def take(self, experts: IntArray, subjects: IntArray, rows: IntArray) -> "Modes":
        """Those of some experts and subjects, whose rows are given."""
        return Modes(**{name: values[experts][..., at] for name, (values, at) in self._places(subjects, rows).items()})

    def put(self, experts: IntArray, subjects: IntArray, rows: IntArray, part: "Modes") -> "Modes":
        """With those of some experts and subjects, whose rows are given, in the place of what was there."""
        whole = {}
        for name, (values, at) in self._places(subjects, rows).items():
            whole[name] = values.copy()
            whole[name][experts[:, None], ..., at] = np.moveaxis(getattr(part, name), -1, 1)
        return Modes(**whole)

    def _places(self, subjects: IntArray, rows: IntArray) -> dict[str, tuple[Array, IntArray]]:
        """Each array and where subjects lie on its last axis."""
        return {f.name: (getattr(self, f.name), rows if f.name in _BY_ROW else subjects) for f in fields(self)}


_BY_ROW = ("eta", "slope", "weight")  # of the modes


@dataclass(frozen=True, slots=True)
class Predictor:
    """The parameters that fix the density of each row given the random effects.

    Attributes
    ----------
    base : ndarray, shape (E, n)
        Fixed part of the linear predictor with offset.
    T : ndarray, shape (E, q, q)
    extra : ndarray, shape (E, d)
    """

    base: Array
    T: Array
    extra: Array


def evaluate_at(rows: Rows, response: Response, at: Predictor, u: Array) -> Modes:
    """Log density, slope and curvature at random effects u, shape (E, q, N)."""
    eta = at.base + rows.random_predictor(at.T @ u) if len(rows.Z) else at.base
    c = response.curvature(rows.outcome, eta, at.extra)
    value = rows.sums(rows.weighted(c.value + rows.outcome.constant)) - 0.5 * (u * u).sum(axis=1)
    slope, weight = rows.weighted(c.slope), rows.weighted(c.weight)
    gram = rows.random_gram(weight)
    # With weights that are not negative no curvature is below that of the prior.
    L = _factor(gram, at.T) if (weight >= 0.0).all() else cholesky(bounded(curvature(gram, at.T)))
    return Modes(u, eta, slope, weight, gram, L, value)


def log_joint(rows: Rows, response: Response, at: Predictor, u: Array) -> Array:
    """Log density given random effects u, shape (E, q, N), minus u'u / 2, shape (E, N)."""
    eta = at.base + rows.random_predictor(at.T @ u) if len(rows.Z) else at.base
    density = rows.weighted(response.log_density(rows.outcome, eta, at.extra))
    return np.asarray(rows.sums(density) - 0.5 * (u * u).sum(axis=1))


def _factor(gram: Array, T: Array) -> Array:
    """Cholesky factors of I + T'gram T; NaN where that is not positive definite."""
    # No exception for one indefinite subject among thousands: the caller finds the NaN and treats that one.
    with np.errstate(invalid="ignore", divide="ignore"):
        return cholesky(curvature(gram, T))


def curvature(gram: Array, T: Array) -> Array:
    """I + T'gram T, shape (E, q, q, N)."""
    return between(T, gram) + np.eye(T.shape[1])[:, :, None]


def bounded(H: Array) -> Array:
    """Curvatures, shape (E, q, q, N), with eigenvalues of at least `LEAST_CURVATURE`.

    Notes
    -----
    Where responses are not log-concave, a subject may have a log density with a flat top: one with zeros only, which
    are certain ones at large random effects and counts at small ones. The curvature at the mode is then no measure of
    the width of the density. Laplace's method has a pole where it is zero, to which ascents would climb, and nodes of
    quadrature lie too far away to meet anything.
    """
    where = too_flat(H)
    if not where.any():
        return H
    out, found = H.copy(), spectra(H, where)
    np.moveaxis(out, -1, 1)[where] = found.vectors @ (
        np.maximum(found.values, LEAST_CURVATURE)[:, :, None] * np.swapaxes(found.vectors, 1, 2)
    )
    return out


def too_flat(H: Array) -> NDArray[np.bool_]:
    """Which curvatures have eigenvalues below `LEAST_CURVATURE`, shape (E, N)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        L = cholesky(H - LEAST_CURVATURE * np.eye(H.shape[1])[:, :, None])
    return np.asarray(np.isfinite(H).all(axis=(1, 2)) & ~np.isfinite(L).all(axis=(1, 2)))


@dataclass(frozen=True, slots=True)
class Spectra:
    """Eigenvalues, shape (M, q), and eigenvectors, shape (M, q, q), of M curvatures."""

    values: Array
    vectors: Array


def spectra(H: Array, where: NDArray[np.bool_]) -> Spectra:
    """Those of some subjects and experts, shape (E, N)."""
    return Spectra(*np.linalg.eigh(np.moveaxis(H, -1, 1)[where]))


def between(T: Array, gram: Array) -> Array:
    """T'gram T, shape (E, q, q, N), from (E, q, q) and (E, q, q, N)."""
    E, q, _, N = gram.shape
    Tt = np.swapaxes(T, 1, 2)
    left = (Tt @ gram.reshape(E, q, q * N)).reshape(gram.shape)
    return Tt[:, None] @ left


def find_modes(rows: Rows, response: Response, at: Predictor, u: Array) -> Modes:
    """Modes of the random effects, from starting values u, shape (E, q, N).

    A step that lowers the density of a subject is halved for this subject alone; all others go on.
    """
    here = evaluate_at(rows, response, at, u)
    if not len(rows.Z):
        return here
    return _ascended(rows, response, at, here, _newton_step(rows, response, at, here), _MAX_PASSES)


def _ascended(rows: Rows, response: Response, at: Predictor, here: Modes, step: Array, passes: int) -> Modes:
    """Modes of the random effects, from where they are, with the next steps of all subjects, shape (E, q, N)."""
    for lap in range(passes):
        if not (np.abs(step) > _TOLERANCE).any():
            break
        moving = np.any(np.abs(step) > _AT_REST, axis=1)  # (E, N)
        of_subjects = np.any(moving, axis=0)
        experts, subjects = np.flatnonzero(np.any(moving, axis=1)), np.flatnonzero(of_subjects)
        if experts.size * subjects.size <= _FEW_MOVING * moving.size:
            # Most are there: the others, such as subjects whose responses are all zero, go on among themselves. Fixed
            # effects are in the predictor already: their columns need not be gathered.
            part = replace(rows, X=Columns(rows.X.dense[:0])).take(subjects)
            of_rows = np.flatnonzero(rows.spread(of_subjects))
            places = np.ix_(experts, of_rows)
            mine = Predictor(at.base[places], at.T[experts], at.extra[experts])
            start = here.take(experts, subjects, of_rows)
            end = _ascended(part, response, mine, start, step[experts][..., subjects], passes - lap)
            return here.put(experts, subjects, of_rows, end)
        there = evaluate_at(rows, response, at, here.u + step)
        # Written as a negation, so that a density of NaN counts as worse. The slack is rounding: near the mode a step
        # changes the value by less than its last digits.
        worse = ~(there.value >= here.value - 1e-10 * (1.0 + np.abs(here.value)))
        further = _newton_step(rows, response, at, there)
        if worse.any():
            there = _blend(rows, worse, here, there)
            # The Newton step from the point that was refused means nothing: half of the step before instead.
            further = np.where(worse[:, None], 0.5 * step, further)
        here, step = there, further
    return here


def _newton_step(rows: Rows, response: Response, at: Predictor, here: Modes) -> Array:
    """H^-1 gradient, of limited length, shape (E, q, N)."""
    gradient = np.swapaxes(at.T, 1, 2) @ rows.into_random(here.slope) - here.u
    L = here.L
    # Observed curvature may be indefinite (no log-concave density, far from the mode); scoring weights never are.
    usable = np.isfinite(L).all(axis=(1, 2)) & (np.einsum("eaan->ean", L) > 0).all(axis=1)
    if not usable.all():
        weight = rows.weighted(response.scoring_weight(rows.outcome, here.eta, at.extra))
        L = np.where(usable[:, None, None], L, _factor(rows.random_gram(weight), at.T))
    step = solve_upper(L, solve_lower(L, gradient))
    # Random effects in units of their standard deviation: a longer step leaves where the quadratic model holds.
    longest = np.abs(step).max(axis=1, keepdims=True)
    return np.nan_to_num(step * np.minimum(1.0, _MAX_STEP / np.maximum(longest, _MAX_STEP)))


def _blend(rows: Rows, back: NDArray[np.bool_], here: Modes, there: Modes) -> Modes:
    """`there`, but `here` for the subjects that went `back`, shape (E, N)."""
    by_row = rows.spread(back)
    return Modes(
        np.where(back[:, None], here.u, there.u),
        np.where(by_row, here.eta, there.eta),
        np.where(by_row, here.slope, there.slope),
        np.where(by_row, here.weight, there.weight),
        np.where(back[:, None, None], here.gram, there.gram),
        np.where(back[:, None, None], here.L, there.L),
        np.where(back, here.value, there.value),
    )
