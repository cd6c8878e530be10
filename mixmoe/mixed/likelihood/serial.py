"""Within-subject error covariances R: independent, autoregressive, or Brownian motion plus measurement error.

With ``s_j = sigma exp(v_j'delta)`` the standard deviation of row j of a subject, the kinds are::

    iid    R = S S,       S = diag(s)
    ar1    R = S C S,     C_jl = rho^|t_j - t_l|,        whole-number times (nlme's corAR1)
    car1   R = S C S,     C_jl = exp(-phi |t_j - t_l|)   (nlme's corCAR1 with Phi = exp(-phi))
    bm     R = S S + M,   M_jl = tau^2 min(t_j, t_l)     (lcmm's cor = BM(t))

R is never formed. Autoregressive errors have a bidiagonal inverse Cholesky factor; a Brownian motion is filtered
(Durbin & Koopman 2012, chapters 2 and 4), all visits of all subjects at once: a recursion along m visits is done in
log2(m) doublings (Hillis & Steele 1986; Sarkka & Garcia-Fernandez 2021, for filters). The axis ``E`` runs over experts,
or over experts of several starts; complex steps pass through.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import AnyArray, IntArray

ErrorKind = Literal["iid", "ar1", "car1", "bm"]


@dataclass(frozen=True, slots=True)
class Layer:
    """The rows of one visit number.

    Attributes
    ----------
    rows : ndarray of int
    goes_on : ndarray of bool
        Whether the subject of each has a later row, which is the next one.
    """

    rows: IntArray
    goes_on: NDArray[np.bool_]

    def pass_on(self, to: AnyArray, values: AnyArray) -> None:
        """Write `values` of these rows at the next rows of the same subjects."""
        to[..., self.rows[self.goes_on] + 1] = values[..., self.goes_on]


@dataclass(frozen=True, slots=True)
class Visits:
    """When the rows of each subject were taken, rows sorted by subject and time.

    Attributes
    ----------
    starts : ndarray of int, shape (N,)
        First row of each subject.
    counts : ndarray of int, shape (N,)
    gap : ndarray, shape (n,)
        Time since the row before; of a subject's first row since time zero.
    """

    starts: IntArray
    counts: IntArray
    gap: NDArray[np.float64]

    @property
    def codes(self) -> IntArray:
        """Subject of each row, shape (n,)."""
        return np.repeat(np.arange(self.starts.size), self.counts)

    def layers(self) -> list[Layer]:
        """All first visits, then all second visits, and so on."""
        out = []
        for visit in range(int(self.counts.max(initial=0))):
            here = self.counts > visit
            out.append(Layer(self.starts[here] + visit, self.counts[here] > visit + 1))
        return out

    @property
    def continues(self) -> NDArray[np.bool_]:
        """Whether the row before is of the same subject, shape (n,)."""
        out = np.ones(self.gap.size, dtype=bool)
        out[self.starts] = False
        return out

    @property
    def goes_on(self) -> NDArray[np.bool_]:
        """Whether the next row is of the same subject, shape (n,)."""
        out = np.ones(self.gap.size, dtype=bool)
        out[self.starts + self.counts - 1] = False
        return out

    def before(self, rows: AnyArray) -> AnyArray:
        """Values of the row before of the same subject, zero for a first row; shape (..., n)."""
        out = np.zeros_like(rows)
        out[..., 1:] = rows[..., :-1] * self.continues[1:]
        return out

    def after(self, rows: AnyArray) -> AnyArray:
        """Values of the next row of the same subject, zero for a last row; shape (..., n)."""
        out = np.zeros_like(rows)
        out[..., :-1] = rows[..., 1:] * self.goes_on[:-1]
        return out

    def doublings(self) -> Iterator[int]:
        """1, 2, 4 ... below the largest number of rows of a subject."""
        reach, most = 1, int(self.counts.max(initial=0))
        while reach < most:
            yield reach
            reach *= 2

    def per_subject(self, rows: AnyArray) -> AnyArray:
        """Sums over the rows of each subject, shape (..., N)."""
        return np.add.reduceat(rows, self.starts, axis=-1)

    def rows_of(self, subjects: IntArray) -> IntArray:
        """Rows of some subjects one after the other, each possibly repeated."""
        counts = self.counts[subjects]
        first = np.cumsum(counts) - counts
        return np.arange(int(counts.sum())) + np.repeat(self.starts[subjects] - first, counts)

    def chosen(self, subjects: IntArray) -> "Visits":
        """Visits of some subjects, each possibly repeated."""
        counts = self.counts[subjects]
        return Visits(np.cumsum(counts) - counts, counts, self.gap[self.rows_of(subjects)])

    def take(self, subjects: slice) -> "Visits":
        """Visits of a run of consecutive subjects."""
        starts, counts = self.starts[subjects], self.counts[subjects]
        rows = slice(int(starts[0]), int(starts[-1] + counts[-1]))
        return Visits(starts - starts[0], counts, self.gap[rows])


@dataclass(frozen=True, slots=True)
class Spread:
    """What remains of the errors once the data are seen, for their scores.

    Attributes
    ----------
    errors : ndarray, shape (E, n)
        y - X beta - Z b at the posterior mean of b.
    Z : ndarray, shape (1, q, n)
    white : ndarray, shape (E, 1 + q, n)
        The errors and Z, whitened.
    cov : ndarray, shape (E, q, q, N)
        Posterior covariance of b.
    weight : ndarray, shape (E, N)
        Of each subject's squares: one for normal errors.
    """

    errors: AnyArray
    Z: AnyArray
    white: AnyArray
    cov: AnyArray
    weight: AnyArray

    def weights(self, visits: Visits) -> AnyArray:
        """`weight` of the subject of each row, shape (E, n)."""
        return np.repeat(self.weight, visits.counts, axis=-1)

    def traces(self, visits: Visits, a: AnyArray, b: AnyArray) -> AnyArray:
        """``a_j' cov b_j`` of each row, shape (E, n), for a and b of shape (E or 1, q, n)."""
        out: AnyArray = np.zeros((self.cov.shape[0], visits.gap.size), dtype=np.result_type(self.cov, a, b))
        for i in range(self.cov.shape[1]):
            for j in range(self.cov.shape[1]):
                out += np.repeat(self.cov[:, i, j], visits.counts, axis=-1) * a[:, i] * b[:, j]
        return out


@dataclass(frozen=True, slots=True)
class ErrorScores:
    """Derivatives of log-densities in the error parameters.

    Attributes
    ----------
    log_sd : ndarray, shape (E, n)
        In the log standard deviation of each row.
    shape : ndarray, shape (E, N), or None
        In rho, phi or tau.
    """

    log_sd: AnyArray
    shape: AnyArray | None = None


@dataclass(frozen=True, slots=True)
class Independent:
    """R = S S.

    Attributes
    ----------
    visits : Visits
    sd : ndarray, shape (E, n)
    """

    visits: Visits
    sd: AnyArray

    @property
    def conditional(self) -> AnyArray:
        """Standard deviation of each row given the rows before, shape (E, n)."""
        return self.sd

    @property
    def log_det(self) -> AnyArray:
        """log|R|, shape (E, N)."""
        return 2 * self.visits.per_subject(np.log(self.sd))

    def whiten(self, c: AnyArray) -> AnyArray:
        """L^-1 c with R = L L', shape (E, d, n), for c of shape (E or 1, d, n)."""
        return c / self.sd[:, None]

    def solved(self, white: AnyArray) -> AnyArray:
        """R^-1 c from L^-1 c, shapes as in `whiten`."""
        return white / self.sd[:, None]

    def colour(self, c: AnyArray) -> AnyArray:
        """L c, the inverse of `whiten`: errors of covariance R from independent ones."""
        return c * self.sd[:, None]

    def scores(self, s: Spread) -> ErrorScores:
        """Derivatives of the log-densities in the error parameters."""
        return ErrorScores(_scale_scores(self, s))


@dataclass(frozen=True, slots=True)
class Chain:
    """Autoregressive errors: given the row before, a row does not depend on earlier ones.

    Attributes
    ----------
    visits : Visits
    sd : ndarray, shape (E, n)
    link : ndarray, shape (E, n)
        Correlation with the row before; zero in first rows.
    width : ndarray, shape (E, n)
        sqrt(1 - link^2).
    slope : ndarray, shape (E, n)
        Derivative of link in rho or phi.
    """

    visits: Visits
    sd: AnyArray
    link: AnyArray
    width: AnyArray
    slope: AnyArray

    @property
    def conditional(self) -> AnyArray:
        """Standard deviation of each row given the rows before, shape (E, n)."""
        return self.sd * self.width

    @property
    def log_det(self) -> AnyArray:
        """log|R|, shape (E, N)."""
        return 2 * self.visits.per_subject(np.log(self.conditional))

    def whiten(self, c: AnyArray) -> AnyArray:
        """L^-1 c with R = L L', shape (E, d, n), for c of shape (E or 1, d, n)."""
        out = c / self.sd[:, None]
        out[..., 1:] -= self.link[:, None, 1:] * out[..., :-1]
        out /= self.width[:, None]
        return out

    def solved(self, white: AnyArray) -> AnyArray:
        """R^-1 c from L^-1 c, shapes as in `whiten`."""
        out = white / self.width[:, None]
        out[..., :-1] -= self.link[:, None, 1:] * out[..., 1:]
        return out / self.sd[:, None]

    def colour(self, c: AnyArray) -> AnyArray:
        """L c, the inverse of `whiten`: errors of covariance R from independent ones."""
        return recursion(self.visits, self.link, self.width[:, None] * c) * self.sd[:, None]

    def scores(self, s: Spread) -> ErrorScores:
        """Derivatives of the log-densities in the error parameters."""
        white, white_Z = s.white[:, :1], s.white[:, 1:]
        pull = s.weights(self.visits) * (white * self._turned(s.errors[:, None], white))[:, 0]
        pull += s.traces(self.visits, white_Z, self._turned(s.Z, white_Z))
        pull += self.link / self.width**2
        return ErrorScores(_scale_scores(self, s), self.visits.per_subject(pull * self.slope))

    def _turned(self, c: AnyArray, white: AnyArray) -> AnyArray:
        """Minus the derivative of the whitened columns in the link of their own row, shape (E, d, n)."""
        out = -(self.link / self.width**2)[:, None] * white
        out[..., 1:] += (c / self.sd[:, None])[..., :-1] / self.width[:, None, 1:]
        out[..., self.visits.starts] = 0.0
        return out


@dataclass(frozen=True, slots=True)
class Filter:
    """A Brownian motion seen with independent measurement error.

    Attributes
    ----------
    visits : Visits
    sd : ndarray, shape (E, n)
        Of the measurement errors.
    tau : ndarray, shape (E,)
        Standard deviation of the Brownian motion after one unit of time.
    gain : ndarray, shape (E, n)
        Share of the innovation of a row that is due to the Brownian motion.
    variance : ndarray, shape (E, n)
        Of the innovation.
    """

    visits: Visits
    sd: AnyArray
    tau: AnyArray
    gain: AnyArray
    variance: AnyArray

    @property
    def conditional(self) -> AnyArray:
        """Standard deviation of each row given the rows before, shape (E, n)."""
        return np.sqrt(self.variance)

    @property
    def log_det(self) -> AnyArray:
        """log|R|, shape (E, N)."""
        return self.visits.per_subject(np.log(self.variance))

    def whiten(self, c: AnyArray) -> AnyArray:
        """L^-1 c with R = L L', shape (E, d, n), for c of shape (E or 1, d, n)."""
        return self._innovations(c) / np.sqrt(self.variance)[:, None]

    def solved(self, white: AnyArray) -> AnyArray:
        """R^-1 c from L^-1 c, shapes as in `whiten`."""
        return self._differences(self._tails(white))

    def colour(self, c: AnyArray) -> AnyArray:
        """L c, the inverse of `whiten`: errors of covariance R from independent ones."""
        innovations = c * np.sqrt(self.variance)[:, None]
        moved = recursion(self.visits, self.visits.continues, self.gain[:, None] * innovations)
        return self.visits.before(moved) + innovations

    def _tails(self, white: AnyArray) -> AnyArray:
        """Sums of R^-1 c over each row and the later ones of its subject, shape (E, d, n), from L^-1 c."""
        return recursion(self.visits, 1 - self.gain, white / np.sqrt(self.variance)[:, None], backward=True)

    def scores(self, s: Spread) -> ErrorScores:
        """Derivatives of the log-densities in the error parameters."""
        weights, inverse = s.weights(self.visits), self._inverse()
        tails = self._tails(s.white)
        solved = self._differences(tails)
        at_rows = weights * solved[:, 0] ** 2 - inverse.diagonal
        at_rows += s.traces(self.visits, solved[:, 1:], solved[:, 1:])
        pull = weights * tails[:, 0] ** 2 - inverse.tails + s.traces(self.visits, tails[:, 1:], tails[:, 1:])
        steps = self.visits.per_subject(self.visits.gap * pull)
        return ErrorScores(self.sd**2 * at_rows, self.tau[:, None] * steps)

    def _differences(self, tails: AnyArray) -> AnyArray:
        """R^-1 c from its sums over each row and the later ones."""
        out = tails.copy()
        later = np.ones(self.visits.gap.size, dtype=bool)
        later[self.visits.starts] = False
        at = np.flatnonzero(later)
        out[..., at - 1] -= tails[..., at]
        return out

    def _innovations(self, c: AnyArray) -> AnyArray:
        """What the rows before do not predict, shape (E, d, n)."""
        moved = recursion(self.visits, 1 - self.gain, self.gain[:, None] * c)
        return c - self.visits.before(moved)

    def _inverse(self) -> "_Inverse":
        once = 1 / self.variance
        tails = recursion(self.visits, (1 - self.gain) ** 2, once[:, None], backward=True)
        diagonal = once + self.gain**2 * self.visits.after(tails)[:, 0]
        return _Inverse(diagonal, tails[:, 0])


@dataclass(frozen=True, slots=True)
class _Inverse:
    """Sums of entries of R^-1, each (E, n): its diagonal, and for each row the block of it and all later rows."""

    diagonal: AnyArray
    tails: AnyArray


ErrorFactor = Independent | Chain | Filter


def factorise(kind: ErrorKind, sd: AnyArray, shape: AnyArray | None, visits: Visits) -> ErrorFactor:
    """R of each subject and expert in factored form.

    Parameters
    ----------
    kind : {"iid", "ar1", "car1", "bm"}
    sd : ndarray, shape (E, n)
        Standard deviation of each row, of its measurement error with a Brownian motion.
    shape : ndarray, shape (E,), or None
        rho, phi or tau; None for ``"iid"``.
    visits : Visits

    Returns
    -------
    Independent, Chain or Filter
    """
    if shape is None:
        return Independent(visits, sd)
    if kind == "bm":
        noise, step = sd * sd, shape[:, None] ** 2 * visits.gap
        left = visits.before(_uncertainty(visits, noise, step)[:, None])[:, 0]
        ahead = left + step
        variance = ahead + noise
        return Filter(visits, sd, shape, ahead / variance, variance)
    if kind == "ar1":
        # Whole-number gaps are few: their powers are taken once each, not once per row.
        gaps, where = np.unique(visits.gap, return_inverse=True)
        link, slope = integer_power(shape, gaps)[:, where], (gaps * integer_power(shape, gaps - 1))[:, where]
        # The first row of a subject has nothing before it: its variance is that of the whole error.
        link[:, visits.starts] = slope[:, visits.starts] = 0.0
        # (1 - l)(1 + l) rather than 1 - l^2, which loses digits as |l| nears one.
        return Chain(visits, sd, link, np.sqrt((1 - link) * (1 + link)), slope)
    exponent = shape[:, None] * visits.gap
    # 1 - link^2 by expm1: of visits close in time it is tiny, and a difference from one would lose its digits.
    link, inside = np.exp(-exponent), -np.expm1(-2 * exponent)
    link[:, visits.starts], inside[:, visits.starts] = 0.0, 1.0
    return Chain(visits, sd, link, np.sqrt(inside), -visits.gap * link)


def integer_power(rho: AnyArray, exponent: NDArray[np.float64]) -> AnyArray:
    """rho^exponent, shape (E, d), for whole exponents, zero where they are negative; rho of shape (E,) may be negative.

    A complex power of a negative base would lose the step in the rounding of its phase.
    """
    usable = np.maximum(exponent, 0.0)
    power: AnyArray = np.where(exponent >= 0, rho.real[:, None] ** usable, 0.0)
    if not np.iscomplexobj(rho):
        return power
    slope = np.where(exponent >= 1, usable * rho.real[:, None] ** np.maximum(usable - 1, 0.0), 0.0)
    return power + 1j * rho.imag[:, None] * slope


def recursion(visits: Visits, slope: AnyArray, c: AnyArray, backward: bool = False) -> AnyArray:
    """``x_j = slope_j x_{j-1} + c_j`` along the rows of each subject, shape (E, d, n), by doubling.

    Parameters
    ----------
    visits : Visits
    slope : ndarray, shape (E, n) or (n,)
        At most one in size; that of a first row is not used.
    c : ndarray, shape (E or 1, d, n)
    backward : bool
        From the last row of each subject to the first: ``x_j = slope_j' x_{j+1} + c_j`` with the slope of row j.
    """
    a = slope * (visits.continues if not backward else visits.goes_on)
    a = np.broadcast_to(a, (c.shape[0] if a.ndim == 1 else len(a), a.shape[-1]))[:, None]
    x = np.array(np.broadcast_to(c, np.broadcast_shapes(c.shape, a.shape)), dtype=np.result_type(a, c))
    if backward:
        a, x = a[..., ::-1], x[..., ::-1]
    for reach in visits.doublings():
        x[..., reach:] += a[..., reach:] * x[..., :-reach]
        a = np.concatenate([a[..., :reach], a[..., reach:] * a[..., :-reach]], axis=-1)
    return x[..., ::-1] if backward else x


def _uncertainty(visits: Visits, noise: AnyArray, step: AnyArray) -> AnyArray:
    """Variance of the Brownian motion after each row, shape (E, n): ``v (l + s) / (v + l + s)`` with l as it was.

    The map from one l to the next is a ratio of linear functions, and so is that of several rows: the product of their
    matrices, whose entries are all positive, so that no digits cancel; only their ratios matter.
    """
    here = np.stack([noise, step * noise, np.ones_like(noise), step + noise])  # [[v, sv], [1, s + v]]
    here[0], here[2] = here[0] * visits.continues, here[2] * visits.continues  # before a first row l is zero
    for reach in visits.doublings():
        a, b, c, d = here[..., reach:]
        e, f, g, h = here[..., :-reach]
        both = np.stack([a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h])
        here = np.concatenate([here[..., :reach], both / both[3].real], axis=-1)
    return here[1] / here[3]


def _scale_scores(f: Independent | Chain, s: Spread) -> AnyArray:
    """Derivative in the log standard deviation of each row where that scales all of its error, shape (E, n)."""
    solved = f.solved(s.white)
    pull = s.weights(f.visits) * s.errors * solved[:, 0]
    return pull + s.traces(f.visits, s.Z, solved[:, 1:]) - 1
