"""Three-step estimates: what follows from, or leads to, an expert, corrected for doubtful memberships.

Step 1 is the fit. Step 2 assigns each unit to its most probable expert w_i; ``D_ts = P(w = s | expert t)`` says how
often that is wrong. Step 3 relates outcomes or covariates to the experts behind the assignments. Its estimating
functions ``psi_i(beta, D)`` are stacked with those of D and with the scores of step 1, so that standard errors hold for
all three.

References
----------
Vermunt (2010), Political Analysis 18, 450-469. Bolck, Croon & Hagenaars (2004), Political Analysis 12, 3-27.
Bakk, Tekle & Vermunt (2013), Sociological Methodology 43, 272-311. Asparouhov & Muthen (2014), Structural Equation
Modeling 21, 329-341. Bakk, Oberski & Vermunt (2014), Political Analysis 22, 520-540.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray
from scipy.linalg import block_diag, null_space
from scipy.optimize import minimize, root
from scipy.stats import chi2

from mixmoe._typing import Array
from mixmoe.errors import ArgumentError, ConvergenceWarning, warn
from mixmoe.mixture.gate import posterior_probabilities, separated_directions
from mixmoe.numerics.linalg import jacobian, log_softmax, logsumexp

Method = Literal["bch", "ml", "naive"]
METHODS: tuple[Method, ...] = ("bch", "ml", "naive")
_TOLERANCE = 1e-7  # of the estimating functions per unit, in working coordinates
_LEAST_SIGMA = 1e-3  # of the standard deviation of the outcome
_SINGULAR_D = 1e-6  # smallest singular value of D


@dataclass(frozen=True, slots=True)
class Assignment:
    """Steps 1 and 2, all units of the fit.

    Attributes
    ----------
    responsibilities : ndarray, shape (N, K)
    modal : ndarray of int, shape (N,)
        Most probable expert, from 0.
    moves : ndarray, shape (N, Q)
        Influence of the units on the parameters of step 1.
    slopes : ndarray, shape (N, K, Q)
        Derivatives of the responsibilities in these.
    """

    responsibilities: Array
    modal: NDArray[np.intp]
    moves: Array
    slopes: Array

    @property
    def indicators(self) -> Array:
        """``1{w_i = s}``, shape (N, K)."""
        return np.eye(self.responsibilities.shape[1])[self.modal]

    @property
    def errors(self) -> Array:
        """The matrix D, experts in rows, assignments in columns, shape (K, K)."""
        mass = self.responsibilities.T @ self.indicators
        return np.asarray(mass / mass.sum(axis=1, keepdims=True))

    def influence_on_errors(self) -> Array:
        """Influence of the units on D, shape (N, K, K): through the averages of step 2 and the parameters of step 1."""
        D, hit = self.errors, self.indicators
        # D_ts = sum_i tau_it 1[i assigned s] / sum_i tau_it: the unit's own term of the ratio, and below what it does
        own = self.responsibilities[:, :, None] * (hit[:, None, :] - D)
        # to the others' through the parameters of step 1, on which their tau depend.
        drift = np.einsum("ntq,nts->tsq", self.slopes, hit[:, None, :] - D)
        through = np.einsum("nq,tsq->nts", self.moves, drift)
        return np.asarray((own + through) / self.responsibilities.sum(axis=0)[:, None])


class Part(Protocol):
    """A model of one variable given the expert, for the units in step 3; complex parameters pass through."""

    @property
    def size(self) -> int:
        """Number of parameters."""

    def log_density(self, beta: Array) -> Array:
        """Log density of each unit under each expert, shape (n, K)."""

    def slopes(self, beta: Array) -> Array:
        """Derivatives of the log density in the parameters, shape (n, K, P)."""

    def infinite(self, beta: Array, members: Array) -> Array:
        """Directions in which the maximum lies at infinity, shape (P, s), given memberships of shape (n, K)."""


@dataclass(frozen=True, slots=True)
class Normal:
    """A numeric outcome: linear in the columns, with a variance per expert or, for estimating equations, of one.

    Attributes
    ----------
    y : ndarray, shape (n,)
    X : ndarray, shape (n, K, p)
    own_sigma : bool
        Whether the last K parameters are log standard deviations.
    """

    y: Array
    X: Array
    own_sigma: bool

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.X.shape[2] + self.own_sigma * self.X.shape[1]

    def _pieces(self, beta: Array) -> tuple[Array, Array]:
        p = self.X.shape[2]
        log_sigma = beta[p:] if self.own_sigma else np.zeros(self.X.shape[1])
        return self.y[:, None] - self.X @ beta[:p], log_sigma

    def log_density(self, beta: Array) -> Array:
        """Log density, shape (n, K)."""
        residual, log_sigma = self._pieces(beta)
        return np.asarray(-0.5 * np.log(2 * np.pi) - log_sigma - 0.5 * residual**2 * np.exp(-2 * log_sigma))

    def slopes(self, beta: Array) -> Array:
        """Derivatives, shape (n, K, P)."""
        residual, log_sigma = self._pieces(beta)
        precision = np.exp(-2 * log_sigma)
        first = self.X * (residual * precision)[..., None]
        if not self.own_sigma:
            return first
        # d/d log sigma_k of -log sigma_k - r^2 / (2 sigma_k^2), for each expert its own.
        scale = (residual**2 * precision - 1.0)[..., None] * np.eye(self.X.shape[1])
        return np.concatenate([first, scale], axis=2)

    def infinite(self, beta: Array, members: Array) -> Array:
        """None, shape (P, 0)."""
        return np.zeros((self.size, 0))


@dataclass(frozen=True, slots=True)
class Categorical:
    """A categorical outcome: multinomial logit in the columns, the first category as reference.

    Attributes
    ----------
    codes : ndarray of int, shape (n,)
    X : ndarray, shape (n, K, p)
    n_levels : int
    """

    codes: NDArray[np.intp]
    X: Array
    n_levels: int

    @property
    def size(self) -> int:
        """Number of parameters."""
        return (self.n_levels - 1) * self.X.shape[2]

    def log_probabilities(self, beta: Array) -> Array:
        """Log probabilities of all categories, shape (n, K, C)."""
        eta = self.X @ beta.reshape(self.n_levels - 1, -1).T
        eta = np.concatenate([np.zeros_like(eta[..., :1]), eta], axis=2)
        return log_softmax(eta, axis=2)

    def log_density(self, beta: Array) -> Array:
        """Log probability of what was observed, shape (n, K)."""
        return self.log_probabilities(beta)[np.arange(len(self.codes)), :, self.codes]

    def slopes(self, beta: Array) -> Array:
        """Derivatives, shape (n, K, P)."""
        hit = np.eye(self.n_levels)[self.codes][:, None, 1:]
        off = hit - np.exp(self.log_probabilities(beta))[..., 1:]  # (n, K, C - 1)
        return np.asarray((off[..., None] * self.X[:, :, None]).reshape(*self.X.shape[:2], -1))

    def infinite(self, beta: Array, members: Array) -> Array:
        """Directions along which a category never, or always, occurs, shape (P, s)."""
        p = self.X.shape[2]
        found = separated_directions(self.X.reshape(-1, p), beta.reshape(1, self.n_levels - 1, p), members.ravel())
        return found.vectors[:, found.infinite]


@dataclass(frozen=True, slots=True)
class Membership:
    """The expert itself: multinomial logit in the columns, expert 1 as reference.

    Attributes
    ----------
    Z : ndarray, shape (n, m)
    n_experts : int
    """

    Z: Array
    n_experts: int

    @property
    def size(self) -> int:
        """Number of parameters."""
        return (self.n_experts - 1) * self.Z.shape[1]

    def log_density(self, beta: Array) -> Array:
        """Log probabilities of the experts, shape (n, K)."""
        eta = self.Z @ beta.reshape(self.n_experts - 1, -1).T
        eta = np.concatenate([np.zeros_like(eta[:, :1]), eta], axis=1)
        return log_softmax(eta, axis=1)

    def slopes(self, beta: Array) -> Array:
        """Derivatives, shape (n, K, P)."""
        off = np.eye(self.n_experts)[:, 1:] - np.exp(self.log_density(beta))[:, None, 1:]  # (n, K, K - 1)
        return np.asarray((off[..., None] * self.Z[:, None, None]).reshape(len(self.Z), self.n_experts, -1))

    def infinite(self, beta: Array, members: Array) -> Array:
        """Directions along which an expert has no units, shape (P, s)."""
        found = separated_directions(self.Z, beta.reshape(1, self.n_experts - 1, -1))
        return found.vectors[:, found.infinite]


@dataclass(frozen=True, slots=True)
class StepThree:
    """The third step as estimating functions.

    Attributes
    ----------
    parts : tuple of Part
        Their parameters follow one another.
    modal : ndarray of int, shape (n,)
        Assignments of the units in step 3.
    method : {"bch", "ml", "naive"}
    """

    parts: tuple[Part, ...]
    modal: NDArray[np.intp]
    method: Method

    def _split(self, beta: Array) -> list[Array]:
        return np.split(beta, np.cumsum([part.size for part in self.parts])[:-1])

    def _log_joint(self, beta: Array, D: Array) -> Array:
        own = sum(part.log_density(b) for part, b in zip(self.parts, self._split(beta), strict=True))
        return np.asarray(own + np.log(D.T[self.modal]))

    def objective(self, beta: Array, D: Array) -> float:
        """What `psi` is the slope of: the likelihood of outcomes and assignments, or the weighted log density."""
        if self.method == "ml":
            return float(logsumexp(self._log_joint(beta, D), axis=1).sum())
        own = sum(part.log_density(b) for part, b in zip(self.parts, self._split(beta), strict=True))
        return float((self.weights(beta, D) * own).sum())

    def weights(self, beta: Array, D: Array) -> Array:
        """What each expert counts for each unit, shape (n, K)."""
        if self.method == "naive":
            return np.eye(len(D))[self.modal]
        if self.method == "bch":
            return np.asarray(np.linalg.inv(D)[self.modal])
        return posterior_probabilities(self._log_joint(beta, D))

    def psi(self, beta: Array, D: Array) -> Array:
        """Estimating functions, shape (n, P)."""
        weights = self.weights(beta, D)
        pieces = [
            np.einsum("nk,nkp->np", weights, part.slopes(b))
            for part, b in zip(self.parts, self._split(beta), strict=True)
        ]
        return np.concatenate(pieces, axis=1)

    def total(self, beta: Array, D: Array) -> Array:
        """Sum of the estimating functions over the units, shape (P,)."""
        return np.asarray(self.psi(beta, D).sum(axis=0))

    def jacobian(self, beta: Array, D: Array) -> Array:
        """Derivatives of the sum in the parameters, shape (P, P), exact by complex steps."""
        return jacobian(lambda moved: self.total(moved, D), beta)

    def infinite(self, beta: Array) -> Array:
        """Directions of the parameters in which the maximum lies at infinity, shape (P, s)."""
        members = np.eye(int(self.modal.max(initial=0)) + 1)[self.modal]
        found = [part.infinite(b, members) for part, b in zip(self.parts, self._split(beta), strict=True)]
        return np.asarray(block_diag(*found))

    def drift(self, beta: Array, D: Array) -> Array:
        """Derivatives of the sum in the entries of D, shape (P, K * K), exact by complex steps."""
        return jacobian(lambda moved: self.total(beta, moved), D)


@dataclass(frozen=True, slots=True)
class Solution:
    """Estimates of step 3.

    Attributes
    ----------
    beta : ndarray, shape (P,)
    cov : ndarray, shape (P, P)
        From the influence of every unit on all three steps; zero along what is infinite.
    converged : bool
    infinite : ndarray, shape (P, s)
        Directions in which the maximum lies at infinity: coefficients along them have no standard error.
    """

    beta: Array
    cov: Array
    converged: bool
    infinite: Array


def build_assignment(responsibilities: Array, moves: Array, slopes: Array) -> Assignment:
    """Steps 1 and 2 of a fit.

    Raises
    ------
    ArgumentError
        If assignments say nothing about one of the experts.
    """
    modal = responsibilities.argmax(axis=1)
    made = Assignment(responsibilities, modal, moves, slopes)
    empty = np.flatnonzero(np.bincount(modal, minlength=responsibilities.shape[1]) == 0)
    if empty.size:
        raise ArgumentError(
            f"expert {empty[0] + 1} is the most probable one of no unit, so that nothing can be related to it; "
            "use fewer experts"
        )
    if np.linalg.svd(made.errors, compute_uv=False)[-1] < _SINGULAR_D:
        raise ArgumentError(
            "assignments do not tell the experts apart (the matrix of classification errors is singular); "
            "use fewer experts"
        )
    return made


def solve(step: StepThree, made: Assignment, used: NDArray[np.intp], start: Array) -> Solution:
    """Estimates and their covariance over all three steps.

    Parameters
    ----------
    step : StepThree
    made : Assignment
    used : ndarray of int, shape (n,)
        Units of step 3 among those of the fit.
    start : ndarray, shape (P,)

    Returns
    -------
    Solution
    """
    D = made.errors
    # A maximum first, then the root of the equations: the root finder alone may end at a saddle of the likelihood.
    if step.method != "bch":  # with weights below zero there is a root, but no maximum
        start = _climbed(step, D, start)
    with np.errstate(over="ignore", invalid="ignore"):
        beta = root(step.total, start, args=(D,), jac=step.jacobian, options={"xtol": 1e-12}).x
    # The root finder may leave the maximum for a lower stationary point; then the maximum itself stands.
    if step.method != "bch" and not step.objective(beta, D) >= step.objective(start, D) - _TOLERANCE * len(used):
        beta = start
    converged = bool(np.abs(step.total(beta, D)).max() <= _TOLERANCE * len(used))
    infinite = step.infinite(beta)
    return Solution(beta, _covariance(step, made, used, beta, infinite), converged, infinite)


def _climbed(step: StepThree, D: Array, start: Array) -> Array:
    """The maximum of the likelihood of step 3, by quasi-Newton."""
    n = len(step.modal)

    def objective(beta: Array) -> tuple[float, Array]:
        with np.errstate(over="ignore", invalid="ignore"):
            value, slope = -step.objective(beta, D) / n, -step.total(beta, D) / n
        return (value, slope) if np.isfinite(value) and np.isfinite(slope).all() else (np.inf, np.zeros_like(beta))

    return np.asarray(minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-8}).x)


def _covariance(step: StepThree, made: Assignment, used: NDArray[np.intp], beta: Array, infinite: Array) -> Array:
    D = made.errors
    psi = np.zeros((len(made.modal), beta.size))
    psi[used] = step.psi(beta, D)
    if step.method != "naive":
        psi += made.influence_on_errors().reshape(len(psi), -1) @ step.drift(beta, D).T
    # Influence of each unit on step 3, A^-1 (psi_i + dPsi/dD influence_i(D)); their outer products are the sandwich.
    # Along what is infinite there is no information: where an ascent stopped says nothing, and it counts as known.
    finite = null_space(infinite.T) if infinite.shape[1] else np.eye(beta.size)
    influence = finite @ np.linalg.lstsq(finite.T @ step.jacobian(beta, D) @ finite, finite.T @ psi.T, rcond=None)[0]
    return np.asarray(influence @ influence.T)


def starting_values(parts: Sequence[Part]) -> Array:
    """Zeros, except for the standard deviations of a numeric outcome."""
    pieces = []
    for part in parts:
        piece = np.zeros(part.size)
        if isinstance(part, Normal) and part.own_sigma:
            piece[part.X.shape[2] :] = np.log(np.maximum(part.y.std(), _LEAST_SIGMA))
        pieces.append(piece)
    return np.concatenate(pieces)


def three_step(parts: tuple[Part, ...], made: Assignment, used: NDArray[np.intp], method: Method) -> Solution:
    """Step 3 from the naive estimate on, with covariance over all three steps.

    Parameters
    ----------
    parts : tuple of Part
    made : Assignment
    used : ndarray of int, shape (n,)
        Units of step 3 among those of the fit.
    method : {"bch", "ml", "naive"}

    Returns
    -------
    Solution

    Raises
    ------
    ArgumentError
        If weights below zero leave ``"bch"`` without a solution.

    Warns
    -----
    ConvergenceWarning
        If no root of the estimating functions was found.
    """
    modal = made.modal[used]
    # The naive estimate is unique and near: the others start there.
    found = solve(StepThree(parts, modal, "naive"), made, used, starting_values(parts))
    if method != "naive":
        found = solve(StepThree(parts, modal, method), made, used, found.beta)
    if found.converged:
        return found
    if method == "bch":
        of_membership = isinstance(parts[-1], Membership)
        raise ArgumentError(
            "method='bch' has no solution here: its weights, some of them below zero, ask for a probability outside "
            + (
                "0 to 1 in some cells of the covariates; use method='ml', or merge levels"
                if of_membership
                else "0 to 1 under an expert; use method='ml', or for an outcome of zeros and ones kind='numeric', "
                "which takes the weighted shares as they are"
            )
        )
    warn(f"step 3 by method={method!r} did not converge; use another method or fewer predictors", ConvergenceWarning)
    return found


LEVEL = 0.001  # of the test behind the warning
LEAST = 0.5  # skewness that is worth a warning
_NODES = 4  # of the quadrature, exact for sixth powers


@dataclass(frozen=True, slots=True)
class Skewness:
    """Skewness of an outcome under each expert, corrected for classification error.

    Attributes
    ----------
    values : ndarray, shape (K,)
        NaN if the corrected variance of an expert is not above zero.
    std_errors : ndarray, shape (K,)
        Were the outcome normal.
    pvalue : float
        Of the joint Wald test that all are zero.
    """

    values: Array
    std_errors: Array
    pvalue: float

    @property
    def doubtful(self) -> bool:
        """Whether the skewness is too large for a normal outcome, beyond chance and by an amount that matters."""
        return self.pvalue < LEVEL and bool(np.abs(self.values).max() >= LEAST)


def skewness(made: Assignment, used: NDArray[np.intp], y: Array, X: Array) -> Skewness:
    """Third standardised moment of the residuals of an outcome under each expert, by the weights of ``"bch"``.

    Parameters
    ----------
    made : Assignment
    used : ndarray of int, shape (n,)
        Units of step 3 among those of the fit.
    y : ndarray, shape (n,)
        In units of its standard deviation.
    X : ndarray, shape (n, K, p)
        With a column, or a combination of columns, for each expert.

    Returns
    -------
    Skewness

    Notes
    -----
    The weights have the mean one under the true expert and zero under the others, whatever the distribution of the
    outcome, so that weighted moments need no normality. The influence of a unit on the skewness of a normal variable
    is ``u^3 - 3 u`` of its standardised residual (Hampel, Ronchetti, Rousseeuw & Stahel 1986, section 2.1), to which
    what it does to the classification errors is added. Its variance is taken where the outcome is normal, not from
    the sixth powers of what was observed, which a long tail inflates so that the test would not see it.
    """
    step = StepThree((Normal(y, X, own_sigma=False),), made.modal[used], "bch")
    beta = solve(step, made, used, np.zeros(X.shape[2])).beta
    weights, centres = step.weights(beta, made.errors), X @ beta
    residuals, mass = y[:, None] - centres, weights.sum(axis=0)
    variances = (weights * residuals**2).sum(axis=0) / mass
    if not (variances > 0).all():
        unknown = np.full(len(mass), np.nan)
        return Skewness(unknown, unknown, np.nan)
    values = (weights * residuals**3).sum(axis=0) / mass / variances**1.5
    cov = _normal_cov(made, used, weights, centres, np.sqrt(variances)) / np.outer(mass, mass)
    statistic = values @ np.linalg.lstsq(cov, values, rcond=None)[0]
    return Skewness(values, np.sqrt(np.diag(cov)), float(chi2.sf(statistic, len(values))))


def _normal_cov(made: Assignment, used: NDArray[np.intp], weights: Array, centres: Array, sigma: Array) -> Array:
    """Covariance of the sums of influences over the units were outcomes normal given the expert, shape (K, K)."""
    nodes, shares = hermegauss(_NODES)
    drawn = centres[:, :, None] + sigma[:, None] * nodes  # (n, K, Q), outcomes of each true expert
    u = (drawn[..., None] - centres[:, None, None]) / sigma
    pull = u**3 - 3 * u  # (n, K, Q, K), the last one the expert that the unit is counted for
    behind = made.responsibilities.T @ made.indicators  # of each assignment, the true experts
    chances = (behind / behind.sum(axis=0)).T[made.modal[used]][..., None] * shares / shares.sum()  # (n, K, Q)
    by_unit = np.zeros((len(made.modal), len(sigma)))
    by_unit[used] = np.einsum("ntq,ntqk->nk", chances, pull)
    # What each unit does to the weighted sums of the pull through the classification errors, shape (N, K).
    inverse = np.linalg.inv(made.errors)
    slopes = -np.einsum("bk,ak->kab", inverse, inverse.T @ (made.indicators.T @ by_unit))
    drift = np.einsum("nab,kab->nk", made.influence_on_errors(), slopes)
    total = weights[:, None, None] * pull + drift[used][:, None, None]
    spared = np.delete(drift, used, axis=0)
    return np.asarray(np.einsum("ntq,ntqk,ntql->kl", chances, total, total) + spared.T @ spared)
