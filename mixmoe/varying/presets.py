"""Simulated varying-coefficient mixtures with known functions: presets of the published kind.

References
----------
Zhao, Q., Greenwood, C. M. T. and Zhang, Q. (2026). Varying-Coefficient Mixture of Experts Model. arXiv 2601.01699,
simulation section, for the kinds of scenario; the functions are our own.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.errors import ArgumentError
from mixmoe.responses.distribution import Family
from mixmoe.responses.exponential import family_named

SCENARIOS = ("well_separated", "moderate", "overlapping", "crossing", "imbalanced", "constant")
_SEPARATION = {"well_separated": 1.4, "moderate": 1.0, "overlapping": 0.6, "crossing": 1.4, "imbalanced": 1.4}


@dataclass(frozen=True, slots=True)
class VaryingTruth:
    """The functions behind a simulated data set, at given index values.

    Attributes
    ----------
    index : ndarray, shape (G,)
    expert : ndarray, shape (G, K, 2)
        Intercept and coefficient of ``z1``.
    gate : ndarray, shape (G, K - 1, 2)
        Intercept and coefficient of ``x1``, against expert 1.
    dispersion : ndarray, shape (G, K)
        sigma (Gaussian) or theta (negative binomial); ones otherwise.
    """

    index: Array
    expert: Array
    gate: Array
    dispersion: Array


@dataclass(frozen=True, slots=True)
class VaryingData:
    """A simulated data set.

    Attributes
    ----------
    data : DataFrame
        Columns ``y``, ``u``, ``z1``, ``x1``; ``trials`` for the binomial, ``log_size`` for counts; and ``component``,
        the true expert counted from 1.
    truth : VaryingTruth
        On 101 points between 0 and 1.
    """

    data: pd.DataFrame
    truth: VaryingTruth

    @property
    def formula(self) -> str:
        """Formula that fits the model from which the data came.

        With ``trials="trials"`` for the binomial, and ``offset="log_size"`` for counts.
        """
        return f"y ~ z1{' | gate: x1' if self.truth.expert.shape[1] > 1 else ''} | vary: u"


def varying_truth(
    index: Array, scenario: str, family: str, experts: int, separation: float, amplitude: float
) -> VaryingTruth:
    """The functions of a scenario at given index values; see `vcmoe`."""
    u = np.asarray(index, dtype=float)
    a = 0.0 if scenario == "constant" else amplitude
    centre = separation * (np.arange(experts) - (experts - 1) / 2.0)
    expert = np.empty((len(u), experts, 2))
    for c in range(experts):
        wave = np.sin(2.0 * np.pi * u - 0.5 * c * np.pi) if c % 2 == 0 else np.cos(2.0 * np.pi * u)
        expert[:, c, 0] = centre[c] + a * (0.45 if c % 2 == 0 else 0.3) * wave
        bend = 0.5 * (u - 0.5) if c % 2 == 0 else 0.2 * np.sin(np.pi * u) - 0.1
        expert[:, c, 1] = (0.8 if c % 2 == 0 else -0.3) + a * bend
    if scenario == "crossing" and experts > 1:
        expert[:, 0, 0] = -0.5 * separation + a * separation * u
        expert[:, 1, 0] = 0.5 * separation - a * separation * u
    if family in ("poisson", "negbinomial"):
        expert[:, :, 0] += 2.0
        expert[:, :, 1] *= 0.5
    tilt = -1.5 if scenario == "imbalanced" else 0.0
    gate = np.empty((len(u), experts - 1, 2))
    gate[:, :, 0] = (0.2 + tilt + a * 0.7 * (0.5 - u))[:, None]
    gate[:, :, 1] = (-0.4 + a * 0.5 * (u - 0.5))[:, None]
    dispersion: Array = np.ones((len(u), experts))
    if family == "gaussian":
        sign = np.where(np.arange(experts) % 2 == 0, 1.0, -1.0)
        dispersion = 0.4 + 0.05 * np.arange(experts) + a * 0.05 * np.outer(u - 0.5, sign)
    elif family == "negbinomial":
        dispersion = np.full((len(u), experts), 8.0)
    return VaryingTruth(u, expert, gate, dispersion)


def vcmoe(
    scenario: str = "well_separated",
    n: int = 1000,
    *,
    family: str = "gaussian",
    experts: int = 2,
    separation: float | None = None,
    amplitude: float = 1.0,
    trials: int = 10,
    index_shape: tuple[float, float] = (1.0, 1.0),
    rng: np.random.Generator | int | None = None,
) -> VaryingData:
    """A data set from a varying-coefficient mixture of experts.

    Parameters
    ----------
    scenario : str
        ``"well_separated"``, ``"moderate"``, ``"overlapping"`` (distance of the experts), ``"crossing"`` (intercepts
        that cross), ``"imbalanced"`` (one small expert), ``"constant"`` (nothing varies: the null of the GLR test).
    n : int
        Rows.
    family : str
        ``"gaussian"``, ``"binomial"``, ``"poisson"`` or ``"negbinomial"``.
    experts : int
    separation : float, optional
        Mean distance between neighbouring intercepts; by default that of the scenario.
    amplitude : float
        Factor on everything that varies.
    trials : int
        Trials per row of the binomial.
    index_shape : tuple of float
        Shape parameters of the beta distribution of the index; by default uniform, and thin at both ends with (2, 2).
    rng : Generator or int, optional

    Returns
    -------
    VaryingData
        Rows in random order of the index.

    Raises
    ------
    ArgumentError
        For a scenario that does not exist, a size below one, or a shape that is not positive.
    """
    if scenario not in SCENARIOS:
        raise ArgumentError(f"scenario must be one of {', '.join(map(repr, SCENARIOS))}, got {scenario!r}")
    if n < 1 or experts < 1:
        raise ArgumentError(f"n and experts must be at least 1, got n={n!r}, experts={experts!r}")
    rng = np.random.default_rng(rng)
    response = family_named(family)
    distance = _SEPARATION.get(scenario, 1.4) if separation is None else separation
    a, b = checked_shape(index_shape)
    u = rng.uniform(0.0, 1.0, n) if a == b == 1.0 else rng.beta(a, b, n)
    z1, x1 = rng.standard_normal(n), rng.standard_normal(n)
    here = varying_truth(u, scenario, response.name, experts, distance, amplitude)
    component = _draw_component(rng, here.gate, x1)
    frame = _draw_frame(rng, response, here, component, u, z1, x1, trials)
    grid = np.linspace(0.0, 1.0, 101)
    return VaryingData(frame, varying_truth(grid, scenario, response.name, experts, distance, amplitude))


def checked_shape(shape: tuple[float, float]) -> tuple[float, float]:
    """Two positive shape parameters of a beta distribution.

    Raises
    ------
    ArgumentError
    """
    if len(shape) != 2 or not all(np.isfinite(s) and s > 0.0 for s in shape):
        raise ArgumentError(f"index_shape must be two positive numbers, got {shape!r}; (1, 1) is the uniform one")
    return float(shape[0]), float(shape[1])


def _draw_component(rng: np.random.Generator, gate: Array, x1: Array) -> NDArray[np.intp]:
    zeta = np.hstack([np.zeros((len(x1), 1)), gate[:, :, 0] + gate[:, :, 1] * x1[:, None]])
    noisy = zeta + rng.gumbel(size=zeta.shape)
    return np.argmax(noisy, axis=1)


def _draw_frame(
    rng: np.random.Generator,
    family: Family,
    here: VaryingTruth,
    component: NDArray[np.intp],
    u: Array,
    z1: Array,
    x1: Array,
    trials: int,
) -> pd.DataFrame:
    each = np.arange(len(u))
    coef = here.expert[each, component]
    eta = coef[:, 0] + coef[:, 1] * z1
    columns = {"u": u, "z1": z1, "x1": x1}
    if family.name in ("poisson", "negbinomial"):
        columns["log_size"] = rng.normal(0.0, 0.2, len(u))
        eta = eta + columns["log_size"]
    n_trials = np.full(len(u), float(trials))
    if family.name == "binomial":
        columns["trials"] = n_trials
    y = family.draw(rng, eta, np.log(here.dispersion[each, component]), n_trials)
    return pd.DataFrame({"y": y, **columns, "component": component + 1})
