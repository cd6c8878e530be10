"""Profile log-likelihood along one parameter."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.optimize import minimize
from scipy.stats import norm

from mixmoe.em import Evaluation

Array = NDArray[np.float64]

_ACCURACY = 1e-10
_MAX_ITERATIONS = 200
_HELD = 1e-6  # how closely the parameter must be where it was put, in standard errors


@dataclass(frozen=True, slots=True)
class Likelihood:
    """A log-likelihood in the coordinates in which it is maximised.

    Attributes
    ----------
    theta : ndarray, shape (Q,)
        Maximiser.
    inverse : ndarray, shape (Q, Q)
        Inverse information there.
    evaluate : callable
        From points (S, Q) to log-likelihood and score.
    reported : callable
        From a point (Q,) to the reported parameters (P,).
    jacobian : callable
        From a point (Q,) to their derivatives (P, Q).
    """

    theta: Array
    inverse: Array
    evaluate: Callable[[Array], Evaluation]
    reported: Callable[[Array], Array]
    jacobian: Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class Profile:
    """Log-likelihood with one parameter held, maximised over the rest.

    Attributes
    ----------
    name : str
    values : ndarray, shape (G,)
    loglik : ndarray, shape (G,)
        NaN where no maximum was found.
    estimate, maximum : float
    lower, upper : float
        Likelihood-ratio limits; NaN where the range does not reach them.
    alpha : float
    """

    name: str
    values: Array
    loglik: Array
    estimate: float
    maximum: float
    lower: float
    upper: float
    alpha: float


def profile(likelihood: Likelihood, index: int, name: str, values: Array, std_error: float, alpha: float) -> Profile:
    """Log-likelihood with one reported parameter at each of some values, maximised over the rest.

    Parameters
    ----------
    likelihood : Likelihood
    index : int
        Position of the parameter among the reported ones.
    name : str
    values : ndarray, shape (G,)
        Ascending.
    std_error : float
        Of the parameter, its natural unit.
    alpha : float
        One minus the level of the limits.

    Returns
    -------
    Profile

    Notes
    -----
    Sequential quadratic programming with the parameter as an equality constraint, in coordinates in which the
    information is the identity; from the estimate outwards, each maximum is the start of the next.
    """
    theta, estimate = likelihood.theta, float(likelihood.reported(likelihood.theta)[index])
    maximum = float(likelihood.evaluate(theta[None]).loglik[0])
    loglik = np.full(values.size, np.nan)
    for side in (np.flatnonzero(values >= estimate), np.flatnonzero(values < estimate)[::-1]):
        here = theta
        for g in side:
            here = _held(likelihood, index, float(values[g]), std_error, here)
            if abs(likelihood.reported(here)[index] - values[g]) <= _HELD * std_error:
                loglik[g] = float(likelihood.evaluate(here[None]).loglik[0])
    x, root = signed_root(values, loglik, estimate, maximum)
    reach = norm.isf(alpha / 2)
    lower, upper = (_crossing(x, root, sign * reach) for sign in (-1, 1))
    return Profile(name, values, loglik, estimate, maximum, lower, upper, alpha)


def _held(likelihood: Likelihood, index: int, value: float, unit: float, start: Array) -> Array:
    """Maximiser with the parameter at `value`, near `start`."""
    values, vectors = np.linalg.eigh(likelihood.inverse)
    scale = vectors * np.sqrt(np.maximum(values, 0.0))  # (Q, Q): directions without information do not move

    def minus(phi: Array) -> tuple[float, Array]:
        with np.errstate(all="ignore"):
            e = likelihood.evaluate((start + scale @ phi)[None])
        usable = np.isfinite(e.loglik[0]) and np.isfinite(e.score).all()
        return (-float(e.loglik[0]), -scale.T @ e.score[0]) if usable else (1e100, np.zeros_like(phi))

    held = {
        "type": "eq",
        "fun": lambda phi: (likelihood.reported(start + scale @ phi)[index] - value) / unit,
        "jac": lambda phi: likelihood.jacobian(start + scale @ phi)[index] @ scale / unit,
    }
    options = {"maxiter": _MAX_ITERATIONS, "ftol": _ACCURACY}
    zero = np.zeros(start.size)
    found = minimize(minus, zero, jac=True, method="SLSQP", constraints=[held], options=options)
    return np.asarray(start + scale @ found.x)


def signed_root(values: Array, loglik: Array, estimate: float, maximum: float) -> Array:
    """Values, and the signed root of twice the drop of the log-likelihood there, shape (2, G), nearly a line.

    Values without a maximum are left out, and the estimate itself is put in.
    """
    known = np.isfinite(loglik) & (np.abs(values - estimate) > 1e-6 * float(np.ptp(np.append(values, estimate))))
    drop = np.sqrt(np.maximum(2 * (maximum - loglik[known]), 0.0))
    x = np.append(values[known], estimate)
    root = np.append(np.sign(values[known] - estimate) * drop, 0.0)
    return np.vstack([x, root])[:, np.argsort(x)]


def _crossing(values: Array, root: Array, target: float) -> float:
    """Where the signed root reaches `target`, by interpolation; NaN if it does not."""
    rising = np.append(True, np.diff(np.maximum.accumulate(root)) > 0)
    if rising.sum() < 2 or not root[rising][0] <= target <= root[rising][-1]:
        return float("nan")
    return float(PchipInterpolator(root[rising], values[rising])(target))
