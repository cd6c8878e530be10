"""The distribution of single rows: the linear predictor given expert and history.

With b = T u, u ~ N(0, I), the predictor of a row is ``base + |a| v``, a = T'z and v the coordinate of u along a. Given
a history u is not normal: zeros or rare events skew it. So the density of v itself is computed,

    g(v) = exp(-v^2 / 2) * integral over w of prod_j f(y_j | v, w) exp(-w'w / 2),

w the coordinates of u across a, on equally spaced points that reach as far as it matters. On them the trapezoidal rule
converges geometrically (Trefethen & Weideman 2014), whatever is averaged, and the band-limited interpolant through them
gives the distribution function to the same accuracy. The integral over w, which is none with one random effect, is
Gauss-Hermite quadrature about the normal approximation at the mode, as in a nested Laplace approximation (Rue, Martino
& Chopin 2009) with more than one point.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import sici

from mixmoe._typing import Array, IntArray
from mixmoe.mixed.likelihood.glmm import GlmmExperts, Nodes, build_nodes
from mixmoe.mixed.likelihood.modes import Modes, Predictor, Response, Rows
from mixmoe.mixed.parameters import Params
from mixmoe.numerics.linalg import inverse_from_cholesky

POINTS = 48
MOST_EXACT = 3  # random effects; with more the integral over w is an approximation
_ACROSS = {
    1: 15,
    2: 5,
    3: 5,
    4: 3,
}  # points per dimension of w; with more of them one, where w has its most likely value
_DROP = 20.0  # of the log density, at which the points end; the mass beyond is about 1e-9
_HALVINGS = 12
_PAIRS = 4_000  # rows of the past that are worked on at a time, once for each row to predict
_TABLE = 12  # entries of the distribution function per step
_SMOOTH = 2.0  # the longest step across which a logistic function is followed
_MOST_TIMES = 8


@dataclass(frozen=True, slots=True)
class Course:
    """Distribution of the linear predictor of rows: masses at M equally spaced points.

    Attributes
    ----------
    first, step : ndarray, shape (K, n)
        The first point, and how far apart they are; zero where the predictor is certain.
    mass : ndarray, shape (M, K, n)
        Density times step, adding up to one.
    """

    first: Array
    step: Array
    mass: Array

    @property
    def last(self) -> Array:
        """The last point, shape (K, n)."""
        return self.first + (len(self.mass) - 1) * self.step

    @property
    def points(self) -> Array:
        """All points, shape (M, K, n)."""
        return self.first + self.step * np.arange(len(self.mass))[:, None, None]

    def take(self, rows: IntArray) -> "Course":
        """Course of some of the rows."""
        return Course(self.first[:, rows], self.step[:, rows], self.mass[:, :, rows])

    def averaged(self, what: Callable[[Array], Array]) -> Array:
        """Expectation of a function of the predictor, shape (..., K, n)."""
        return sum(
            (mass * what(self.first + m * self.step) for m, mass in enumerate(self.mass)),
            start=np.zeros_like(self.first),
        )

    def finer(self, times: int) -> "Course":
        """Densities on points `times` as dense, by the band-limited interpolant."""
        if times == 1:
            return self
        M = len(self.mass)
        places = np.arange((M - 1) * times + 1) / times
        weights = np.sinc(places[:, None] - np.arange(M)) / times
        return Course(self.first, self.step / times, np.tensordot(weights, self.mass, axes=1))

    def table(self) -> "Table":
        """The distribution function."""
        M = len(self.mass)
        places = np.arange((M - 1) * _TABLE + 1) / _TABLE
        weights = 0.5 + sici(np.pi * (places[:, None] - np.arange(M)))[0] / np.pi
        values = np.clip(np.tensordot(weights, self.mass, axes=1), 0.0, 1.0)
        values[0], values[-1] = 0.0, 1.0
        return Table(self.first, self.step / _TABLE, values)


@dataclass(frozen=True, slots=True)
class Table:
    """Distribution functions of predictors at equally spaced places.

    Attributes
    ----------
    first, step : ndarray, shape (K, n)
    values : ndarray, shape (J, K, n)
    """

    first: Array
    step: Array
    values: Array

    @property
    def last(self) -> Array:
        """Beyond it there is nothing, shape (K, n)."""
        return self.first + (len(self.values) - 1) * self.step

    def below(self, eta: Array) -> Array:
        """Probability of a predictor below `eta`, shape (K, n)."""
        J = len(self.values)
        certain = self.step == 0.0
        with np.errstate(invalid="ignore", over="ignore"):
            place = (eta - self.first) / np.where(certain, 1.0, self.step)
        at = np.clip(np.nan_to_num(place, nan=0.0), 0.0, J - 1.0)
        cell = np.minimum(at.astype(np.intp), J - 2)
        low = np.take_along_axis(self.values, cell[None], axis=0)[0]
        high = np.take_along_axis(self.values, cell[None] + 1, axis=0)[0]
        inside = low + (at - cell) * (high - low)
        return np.where(certain, (eta >= self.first).astype(float), inside)


@dataclass(frozen=True, slots=True)
class Memory:
    """Subjects seen before, in the coordinates of a problem.

    Attributes
    ----------
    rows : Rows
    response : Response
    at : Predictor
        With E = K, at the estimates.
    modes : Modes
    """

    rows: Rows
    response: Response
    at: Predictor
    modes: Modes


def remember(experts: GlmmExperts, params: Params) -> Memory:
    """What is needed of the subjects of a problem, at parameters in its coordinates, S = 1."""
    at, modes = experts.modes_at(params)
    return Memory(experts.rows, experts.response, at, modes)


@dataclass(frozen=True, slots=True)
class Seen:
    """Rows to predict, and where their subjects were seen before.

    Attributes
    ----------
    memory : Memory or None
    factor : ndarray, shape (K, q, q)
        T, in the coordinates of the problem.
    Z : ndarray, shape (n, q)
        In the coordinates of the problem.
    where : ndarray of int, shape (n,)
        Place of the subject of each row in `memory`; -1 where it is not there.
    probabilities : ndarray, shape (n, K)
        Of the experts, given the past where there is one.
    """

    memory: Memory | None
    factor: Array
    Z: Array
    where: IntArray
    probabilities: Array

    def take(self, rows: IntArray) -> "Seen":
        """Some of the rows."""
        return Seen(self.memory, self.factor, self.Z[rows], self.where[rows], self.probabilities[rows])

    def runs(self) -> Iterator[IntArray]:
        """Rows in runs whose pasts are small enough to be worked on at a time."""
        size = np.ones(len(self.where), dtype=np.intp)
        if self.memory is not None and len(size):
            size = np.where(self.where < 0, 1, self.memory.rows.counts[self.where])
        run = np.cumsum(size) // _PAIRS
        yield from np.split(np.arange(len(size)), np.flatnonzero(np.diff(run)) + 1)


def course(base: Array, seen: Seen, response: Response, extra: Array) -> Course:
    """Distribution of the predictors of rows.

    Parameters
    ----------
    base : ndarray, shape (K, n)
        Their fixed part, with offset.
    seen : Seen
    response : Response
    extra : ndarray, shape (K, d)

    Returns
    -------
    Course
    """
    K, n = base.shape
    along = np.einsum("nq,kqr->knr", seen.Z, seen.factor)  # a
    slope = np.sqrt((along**2).sum(axis=2))
    out = Course(base.copy(), np.zeros((K, n)), np.full((POINTS, K, n), 1.0 / POINTS))
    new, old = np.flatnonzero(seen.where < 0), np.flatnonzero(seen.where >= 0)
    for k, (low, high) in enumerate(response.bends(extra)):
        for rows, known in ((new, False), (old, True)):
            if not (rows.size and slope[k].any()):
                continue
            a = along[k, rows]
            line = _given_past(seen.memory, k, seen.where[rows], a) if known else _prior(rows.size)
            grid = _grid(line, base[k, rows], slope[k, rows], low, high)
            out.first[k, rows] += slope[k, rows] * grid.first
            out.step[k, rows] = slope[k, rows] * grid.step
            out.mass[:, k, rows] = grid.mass
    return out.finer(int(np.clip(np.ceil(out.step.max(initial=0.0) / _SMOOTH), 1, _MOST_TIMES)))


@dataclass(frozen=True, slots=True)
class _Line:
    """The posterior of v for each of N rows.

    Attributes
    ----------
    centre : ndarray, shape (N,)
        About its mode.
    log_density : callable
        Of v, shape (M, N), up to a constant of each row.
    profile : callable
        The same at w on a line, by which ends are found.
    """

    centre: Array
    log_density: Callable[[Array], Array]
    profile: Callable[[Array], Array]


def _prior(N: int) -> _Line:
    def normal(v: Array) -> Array:
        return -0.5 * v * v

    return _Line(np.zeros(N), normal, normal)


def _given_past(memory: Memory | None, k: int, where: IntArray, a: Array) -> _Line:
    """Subjects `where` of the past under expert k, along directions a, shape (N, q)."""
    assert memory is not None
    turn = _rotations(a)
    rows = memory.rows.take(where)
    base = _taken(memory.at.base[k], memory.rows, where)
    into = np.einsum("qn,qr->nr", rows.Z, memory.at.T[k])
    Z = np.einsum("nr,nrs->sn", into, np.repeat(turn, rows.counts, axis=0))
    mode = np.einsum("qn,nqs->sn", memory.modes.u[k][:, where], turn)
    inverse = inverse_from_cholesky(memory.modes.L[[k]][..., where])[0]
    spread = np.einsum("nqs,qrn,nrt->nst", turn, inverse, turn)
    across = _across(spread)
    extra = memory.at.extra[[k]]

    def joint(v: Array, xi: Array) -> Array:
        w = [mode[j + 1] + across.lean[:, j] * (v - mode[0]) + across.factor[:, j] @ xi for j in range(len(mode) - 1)]
        eta = base + Z[0] * rows.spread(v)
        for column, value in zip(Z[1:], w, strict=True):
            eta += column * rows.spread(value)
        density = rows.sums(rows.weighted(memory.response.log_density(rows.outcome, eta, extra)))
        return density - 0.5 * sum((value * value for value in w), start=v * v)

    def log_density(v: Array) -> Array:
        values = [
            joint(v, xi) + log_weight
            for xi, log_weight in zip(across.nodes.points, across.nodes.log_weights, strict=True)
        ]
        return np.logaddexp.reduce(values, axis=0)

    return _Line(mode[0], log_density, lambda v: joint(v, np.zeros(len(mode) - 1)))


def _taken(values: Array, rows: Rows, where: IntArray) -> Array:
    """Values of the rows of some subjects, in the order of ``rows.take(where)``."""
    counts = rows.counts[where]
    starts = np.cumsum(counts) - counts
    return values[np.arange(counts.sum()) + np.repeat(rows.starts[where] - starts, counts)]


def _rotations(a: Array) -> Array:
    """Orthogonal matrices, shape (N, q, q), whose first columns point along the rows of a (Householder)."""
    size = np.sqrt((a**2).sum(axis=1, keepdims=True))
    unit = np.divide(a, size, out=np.zeros_like(a), where=size > 0)
    unit[size[:, 0] == 0, 0] = 1.0
    sign = np.where(unit[:, 0] >= 0, 1.0, -1.0)
    mirror = unit.copy()
    mirror[:, 0] += sign
    mirror /= np.sqrt((mirror**2).sum(axis=1, keepdims=True))
    out = np.eye(a.shape[1]) - 2.0 * mirror[:, :, None] * mirror[:, None, :]
    out[:, :, 0] *= -sign[:, None]
    return out


@dataclass(frozen=True, slots=True)
class _Across:
    """Where the integral over w is taken, from the normal approximation.

    Attributes
    ----------
    lean : ndarray, shape (N, q - 1)
        By how much the mean of w moves with v.
    factor : ndarray, shape (N, q - 1, q - 1)
        Of the covariance of w given v.
    nodes : Nodes
    """

    lean: Array
    factor: Array
    nodes: Nodes


def _across(spread: Array) -> _Across:
    d = spread.shape[1] - 1
    lean = spread[:, 1:, 0] / spread[:, :1, 0]
    rest = spread[:, 1:, 1:] - lean[:, :, None] * spread[:, None, 0, 1:]
    return _Across(lean, np.asarray(np.linalg.cholesky(rest)), build_nodes(_ACROSS.get(d, 1), d))


@dataclass(frozen=True, slots=True)
class _Grid:
    """Points in v and the masses there."""

    first: Array
    step: Array
    mass: Array


def _grid(line: _Line, base: Array, slope: Array, low: float, high: float) -> _Grid:
    left = _reach(line, base, slope, -1.0, low)
    right = _reach(line, base, slope, 1.0, high)
    step = (left + right) / (POINTS - 1)
    first = line.centre - left
    log_mass = line.log_density(first + step * np.arange(POINTS)[:, None])
    mass = np.exp(log_mass - log_mass.max(axis=0))
    return _Grid(first, step, mass / mass.sum(axis=0))


def _reach(line: _Line, base: Array, slope: Array, sign: float, bend: float) -> Array:
    """How far the points must go from the centre to one side, shape (N,).

    So far that the density is negligible, also when multiplied by the square of what is averaged: that may change with
    the exponential of the predictor, up to `bend` where it is flat.
    """
    centre = line.centre
    here, eta = line.profile(centre[None])[0], sign * (base + slope * centre)

    def lasts(t: Array) -> NDArray[np.bool_]:
        gain = np.minimum(eta + slope * t, sign * bend) - np.minimum(eta, sign * bend)
        return line.profile((centre + sign * t)[None])[0] + 2.0 * gain > here - _DROP

    near, far = np.zeros_like(centre), 2.0 * slope + np.sqrt(4.0 * slope**2 + 2.0 * _DROP) + np.abs(centre)
    while (more := lasts(far)).any():
        far = np.where(more, 2.0 * far, far)
    for _ in range(_HALVINGS):
        middle = 0.5 * (near + far)
        more = lasts(middle)
        near, far = np.where(more, middle, near), np.where(more, far, middle)
    return far
