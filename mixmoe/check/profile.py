"""Profile log-likelihood along one parameter."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator
from scipy.optimize import minimize
from scipy.stats import chi2, norm

from mixmoe._typing import Array
from mixmoe.families import Likelihood
from mixmoe.output.records import Table
from mixmoe.output.summary import Printed

_ACCURACY = 1e-10
_MAX_ITERATIONS = 200
_HELD = 1e-6  # how closely the parameter must be where it was put, in standard errors
_REACH, _BEYOND = 3.0, 1.15  # how far down a profile goes: least signed root, and in multiples of that of the limits
_NEAR = 1e-4  # how near to an end of its space a parameter is put, in standard errors
_LEAP, _LONGER, _SHORTER = 2.5, 3.0, 3.0  # most that a step may exceed its pace, and how steps adapt
_SMALLEST = 1e-6  # step at which a search gives up, in standard errors
_HIGHER = 1e-3  # of the log-likelihood, beyond what a converged optimiser leaves


@dataclass(frozen=True, slots=True)
class Space:
    """The values that a parameter may take.

    Attributes
    ----------
    lower, upper : float
        Its ends, infinite if there are none.
    """

    lower: float = -np.inf
    upper: float = np.inf


SPACES = {"identity": Space(), "log": Space(lower=0.0), "atanh": Space(-1.0, 1.0), "logit": Space(0.0, 1.0)}


@dataclass(frozen=True, slots=True, repr=False)
class Profile(Printed):
    """Log-likelihood with one parameter held, maximised over the rest.

    Attributes
    ----------
    name : str
    values : ndarray, shape (G,)
    loglik : ndarray, shape (G,)
        NaN where no maximum was found.
    estimate, maximum : float
    lower, upper : float
        Likelihood-ratio limits; an end of the space where the likelihood there is within them; NaN where the range does
        not reach them.
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

    @property
    def root(self) -> Array:
        """Signed root of twice the drop of the log-likelihood, shape (G,): a line where Wald limits would do."""
        # A maximum of the fit may be beaten by rounding: at least zero under the root.
        drop = np.sqrt(np.maximum(2 * (self.maximum - self.loglik), 0.0))
        return np.asarray(np.sign(self.values - self.estimate) * drop)

    @property
    def title(self) -> str:
        """Heading above the table."""
        return f"Profile of the log-likelihood: {self.name}"

    @property
    def remarks(self) -> tuple[str, ...]:
        """Estimate and limits, and what they are not."""
        level, drop = 100 * (1 - self.alpha), 0.5 * float(chi2.isf(self.alpha, 1))
        ends = " to ".join("not reached" if np.isnan(v) else f"{v:.4g}" for v in (self.lower, self.upper))
        notes = [
            f"Estimate {self.estimate:.4g}; {level:g} % limits, where the log-likelihood is {drop:.3g} lower: {ends}."
        ]
        if np.isnan([self.lower, self.upper]).any():
            notes.append("A limit that is not reached lies beyond the values, or the likelihood does not fall so far.")
        if np.nanmax(self.loglik, initial=-np.inf) > self.maximum + _HIGHER:
            notes.append(
                "The log-likelihood is higher elsewhere than at the estimate: the fit is a local maximum only; "
                "refit with more starts."
            )
        return tuple(notes)

    def to_frame(self) -> pd.DataFrame:
        """One row per value: value, loglik, drop (below the maximum), root (signed root of twice the drop)."""
        columns = {"value": self.values, "loglik": self.loglik, "drop": self.maximum - self.loglik, "root": self.root}
        return pd.DataFrame(columns)

    def tables(self) -> tuple[Table, ...]:
        """One table with a row per value."""
        frame = self.to_frame()
        cells = tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in frame.to_numpy()[:, 1:])
        index = tuple(f"{v:.5g}" for v in self.values)
        heads = ("Log-likelihood", "Drop", "Signed root")
        return (Table("profile", "", heads, index, cells, (".3f", ".3f", ".3f")),)


@dataclass(frozen=True, slots=True)
class _Held:
    """The likelihood along one reported parameter.

    Attributes
    ----------
    likelihood : Likelihood
    index : int
        Position of the parameter among the reported ones.
    unit : float
        Its standard error.
    """

    likelihood: Likelihood
    index: int
    unit: float

    @property
    def centre(self) -> "_Point":
        """The maximum over all parameters, from which the profile goes outwards."""
        theta = self.likelihood.theta
        loglik = float(self.likelihood.evaluate(theta[None]).loglik[0])
        return _Point(float(self.likelihood.reported(theta)[self.index]), loglik, theta)

    def at(self, value: float, start: Array) -> "_Point | None":
        """The maximum with the parameter at `value`, sought near `start`; None if it was not found."""
        theta = _held(self.likelihood, self.index, value, self.unit, start)
        with np.errstate(all="ignore"):
            reached = self.likelihood.reported(theta)[self.index]
            loglik = float(self.likelihood.evaluate(theta[None]).loglik[0])
        found = abs(reached - value) <= _HELD * self.unit and np.isfinite(loglik)
        return _Point(value, loglik, theta) if found else None


@dataclass(frozen=True, slots=True)
class _Point:
    """A value of the parameter, the log-likelihood there, and where it is reached."""

    value: float
    loglik: float
    theta: Array


def profile_at(likelihood: Likelihood, index: int, name: str, values: Array, std_error: float, alpha: float) -> Profile:
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
    held = _Held(likelihood, index, std_error)
    centre, loglik = held.centre, np.full(values.size, np.nan)
    # From the estimate outwards on both sides: each maximum starts from its neighbour, which is near.
    for side in (np.flatnonzero(values >= centre.value), np.flatnonzero(values < centre.value)[::-1]):
        here = centre
        for g in side:
            found = held.at(float(values[g]), here.theta)
            if found is not None:
                here, loglik[g] = found, found.loglik
    return _limited(_Track(name, values, loglik, centre), alpha, Space(), std_error)


def profile_around(
    likelihood: Likelihood, index: int, name: str, space: Space, std_error: float, points: int, alpha: float
) -> Profile:
    """Log-likelihood along one reported parameter from the estimate outwards, until it has fallen far enough.

    Parameters
    ----------
    likelihood : Likelihood
    index : int
        Position of the parameter among the reported ones.
    name : str
    space : Space
        Of the parameter.
    std_error : float
        Of the parameter, its natural unit and the first guess of the width of the likelihood.
    points : int
        How many values are wanted, about.
    alpha : float
        One minus the level of the limits.

    Returns
    -------
    Profile

    Notes
    -----
    Steps are chosen so that the signed root of twice the drop grows evenly, to 3 or beyond the limits. Where the
    likelihood at an end of the space is within the limits (a standard deviation of zero), that end is the limit.

    References
    ----------
    Bates & Watts (1988), Nonlinear Regression Analysis and Its Applications, chapter 6. Bates, Maechler, Bolker &
    Walker (2015), Journal of Statistical Software 67(1), section 5.1.
    """
    held = _Held(likelihood, index, std_error)
    target = max(_REACH, _BEYOND * float(norm.isf(alpha / 2)))
    pace = 2 * target / (points - 1)
    centre = held.centre
    below, above = (_walk(held, centre, end, pace, target, points) for end in (space.lower, space.upper))
    found = [*reversed(below), centre, *above]
    values, loglik = np.array([p.value for p in found]), np.array([p.loglik for p in found])
    return _limited(_Track(name, values, loglik, centre), alpha, space, std_error)


def _walk(held: _Held, centre: _Point, end: float, pace: float, target: float, most: int) -> list[_Point]:
    """Maxima from the estimate towards an end of the space, at most so many, each about `pace` further down."""
    sign, here, root, step = float(np.sign(end - centre.value)), centre, 0.0, pace * held.unit
    found: list[_Point] = []
    nearest = end - sign * _NEAR * held.unit if np.isfinite(end) else end
    while len(found) < most and root < target and step > _SMALLEST * held.unit:
        value = min(here.value + step, nearest) if sign > 0 else max(here.value - step, nearest)
        if sign * (value - here.value) <= 0:
            break
        trial = held.at(value, here.theta)
        ahead = root if trial is None else float(np.sqrt(max(2 * (centre.loglik - trial.loglik), 0.0)))
        # A leap of the root means another mode, or a step too far: shorter, from the same point.
        if trial is None or ahead - root > _LEAP * pace:
            step = abs(value - here.value) / _SHORTER
            continue
        # The next step aims at an even gain of the root, growing or shrinking by a bounded factor.
        step *= float(np.clip(pace / max(ahead - root, pace / _LONGER), 1 / _LONGER, _LONGER))
        here, root = trial, ahead
        found.append(trial)
    return found


@dataclass(frozen=True, slots=True)
class _Track:
    """Values (G,) of a parameter with their log-likelihoods, and the estimate."""

    name: str
    values: Array
    loglik: Array
    centre: _Point


def _limited(track: _Track, alpha: float, space: Space, unit: float) -> Profile:
    """A profile with its limits."""
    centre = track.centre
    x, root = signed_root(track.values, track.loglik, centre.value, centre.loglik)
    reach = float(norm.isf(alpha / 2))
    lower, upper = (_crossing(x, root, sign * reach) for sign in (-1, 1))
    near = 2 * _NEAR * unit
    if np.isnan(lower) and root[0] > -reach and x[0] - space.lower <= near:
        lower = space.lower
    if np.isnan(upper) and root[-1] < reach and space.upper - x[-1] <= near:
        upper = space.upper
    return Profile(track.name, track.values, track.loglik, centre.value, centre.loglik, lower, upper, alpha)


def _held(likelihood: Likelihood, index: int, value: float, unit: float, start: Array) -> Array:
    """Maximiser with the parameter at `value`, near `start`."""
    values, vectors = np.linalg.eigh(likelihood.inverse)
    scale = vectors * np.sqrt(np.maximum(values, 0.0))  # (Q, Q): directions without information do not move

    def minus(phi: Array) -> tuple[float, Array]:
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
    with np.errstate(all="ignore"):  # a line search may look far out
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
