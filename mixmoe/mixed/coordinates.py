"""Working coordinates: orthogonal columns and a unit-scale response, so that tolerances mean the same for any data."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import AnyArray
from mixmoe.errors import DesignError
from mixmoe.mixed.parameters import Params
from mixmoe.numerics.linalg import semidefinite_cholesky


@dataclass(frozen=True, slots=True)
class Coordinates:
    """A linear change of variables, invertible and the same for all experts.

    With the pooled least-squares coefficients b0 and residual scale s, the working response is (y - X b0) / s and the
    working columns are X A^-1, Z B^-1, W C^-1. Weights of rows are divided by their mean.

    Attributes
    ----------
    center : ndarray, shape (p,)
        b0.
    scale : float
        s, in units of the response.
    expert : ndarray, shape (p, p)
        A. Block triangular, so that common coefficients stay common.
    random : ndarray, shape (q, q)
        B; diagonal if the random effects are uncorrelated.
    gate : ndarray, shape (m, m)
        C.
    log_sigma : ndarray, shape (v,)
        What the first v further parameters, coefficients of the log standard deviation of errors, add to that through
        the centres of their covariates.
    weight : float
        Mean weight of the rows. Residual standard deviations are reported for rows of weight one.
    """

    center: AnyArray
    scale: float
    expert: AnyArray
    random: AnyArray
    gate: AnyArray
    log_sigma: AnyArray = field(default_factory=lambda: np.zeros(0))
    weight: float = 1.0

    def _moved(self, extra: AnyArray) -> AnyArray:
        """Working residual standard deviations over those at zero covariates and weight one, shape (S, K)."""
        moved: AnyArray = np.exp(extra[..., : self.log_sigma.size] @ self.log_sigma) / np.sqrt(self.weight)
        return moved

    def to_user(self, working: Params) -> Params:
        """Parameters on the user's scale, factors not triangular; passes complex steps through."""
        # One matrix for all right-hand sides: beside a stack of them, solve() would factorise it for each.
        S, K, p = working.beta.shape
        beta: AnyArray = np.linalg.solve(self.expert, working.beta.reshape(S * K, p).T).T.reshape(S, K, p)
        beta = self.scale * beta + self.center
        factor: AnyArray = self.scale * np.linalg.solve(self.random, working.factor)
        J, m = working.gamma.shape[1:]
        gamma: AnyArray = np.linalg.solve(self.gate, working.gamma.reshape(S * J, m).T).T.reshape(S, J, m)
        sigma = self.scale * working.sigma / self._moved(working.extra)
        return Params(gamma, beta, factor, sigma, working.extra)

    def to_working(self, user: Params) -> Params:
        """Parameters in working coordinates."""
        beta = (user.beta - self.center) @ self.expert.T / self.scale
        factor = np.zeros_like(user.factor)
        for at in np.ndindex(user.factor.shape[:2]):
            moved = self.random @ user.factor[at] / self.scale
            # Working factors are lower triangular, with a unique sign: two fits of one model are one vector.
            factor[at] = semidefinite_cholesky(moved @ moved.T)
        sigma = user.sigma / self.scale * self._moved(user.extra)
        return Params(user.gamma @ self.gate.T, beta, factor, sigma, user.extra)


def orthogonal_columns(X: AnyArray, first: NDArray[np.bool_]) -> AnyArray:
    """A with X A^-1 of unit mean squares and orthogonal, the columns not in `first` made orthogonal to those in it."""
    if not X.shape[1]:
        return np.zeros((0, 0))
    order = np.concatenate([np.flatnonzero(first), np.flatnonzero(~first)])
    A = np.zeros((X.shape[1], X.shape[1]))
    # QR of the columns, not a Cholesky factor of their cross-products, which would square the condition number.
    A[np.ix_(order, order)] = np.linalg.qr(X[:, order], mode="r") / np.sqrt(X.shape[0])
    return A


def apply_inverse(X: AnyArray, A: AnyArray) -> AnyArray:
    """X A^-1."""
    return np.linalg.solve(A.T, X.T).T if X.shape[1] else X


def build_coordinates(
    y: AnyArray, X: AnyArray, Z: AnyArray, W: AnyArray, common: NDArray[np.bool_], correlated: bool, weights: AnyArray
) -> Coordinates:
    """Coordinates for one data set with weights of the rows, shape (n,).

    Raises
    ------
    DesignError
        If the expert columns reproduce the response exactly.
    """
    weight = float(weights.mean())
    root = np.sqrt(weights / weight)
    y, X, Z = root * y, root[:, None] * X, root[:, None] * Z
    expert = orthogonal_columns(X, ~common)
    Q = apply_inverse(X, expert)
    in_working = Q.T @ y / y.size
    residual = y - Q @ in_working
    scale = float(np.sqrt(np.mean(residual**2)))
    # Relative to the response: data in grams or tonnes are refused alike.
    if scale <= 1e-10 * np.sqrt(np.mean(y**2)):
        raise DesignError(
            f"the expert columns reproduce the response exactly (residual standard deviation {scale:.3g}); "
            "a mixture needs a response with noise: remove covariates that are functions of it"
        )
    center = np.linalg.solve(expert, in_working)
    return Coordinates(center, scale, expert, _random_columns(Z, correlated), _gate_columns(W), weight=weight)


def link_coordinates(X: AnyArray, Z: AnyArray, W: AnyArray, common: NDArray[np.bool_], correlated: bool) -> Coordinates:
    """Coordinates that leave the response as it is, for linear predictors behind a link."""
    expert = orthogonal_columns(X, ~common)
    return Coordinates(np.zeros(X.shape[1]), 1.0, expert, _random_columns(Z, correlated), _gate_columns(W))


def _random_columns(Z: AnyArray, correlated: bool) -> AnyArray:
    if correlated:
        return orthogonal_columns(Z, np.ones(Z.shape[1], dtype=bool))
    return np.diag(np.sqrt((Z**2).mean(axis=0)))


def _gate_columns(W: AnyArray) -> AnyArray:
    return orthogonal_columns(W, np.ones(W.shape[1], dtype=bool))
