"""Data drawn from a mixture of experts whose parameters are known.

The columns of a simulated frame are always named alike, so that the formula follows from the parameters:
``id``, ``time``, ``x1``, ``x2`` ... (covariates that change from visit to visit), ``z1``, ``z2`` ... (baseline
covariates of the gate), ``y`` and ``expert`` (the true one, counted from 1).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from types import MappingProxyType
from typing import Any, Literal, Self, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mixmoe._typing import Array
from mixmoe.errors import ArgumentError

Shape = Literal["normal", "t5", "skewed"]
Preset = Literal[
    "moderate",
    "separated",
    "three",
    "heavy_tails",
    "single",
    "unbalanced",
    "latent_class",
    "binary",
    "count",
    "overdispersed",
    "positive",
    "share",
    "ordinal",
]
Family = Literal["gaussian", "binomial", "poisson", "negbinomial", "gamma", "beta", "ordinal"]


@dataclass(frozen=True, slots=True, eq=False)
class MEMoETruth:
    """Parameters of a mixed-effects mixture of experts.

    Attributes
    ----------
    beta : ndarray, shape (K, p)
        Coefficients of the experts: intercept, time, x1, x2 ...
    gamma : ndarray, shape (K - 1, m)
        Coefficients of the gate for experts 2..K against expert 1: intercept, z1, z2 ...
    D : ndarray, shape (K, q, q)
        Covariances of the random effects, which go with the first q columns of the experts; q may be 0.
    sigma : ndarray, shape (K,)
        Residual standard deviations of Gaussian responses; of others the dispersion, if they have one: ``theta``,
        ``shape`` or ``phi``, see `MEMoE`.
    family : {"gaussian", "binomial", "poisson", "negbinomial", "gamma", "beta", "ordinal"}
        Distribution of the responses given the linear predictor: identity, logit and log links, cumulative logits.
    cuts : ndarray, shape (K, C - 1), or None
        Thresholds of ordinal responses, whose categories are 1, 2 ... C.
    """

    beta: Array
    gamma: Array
    D: Array
    sigma: Array
    family: Family = "gaussian"
    cuts: Array | None = None

    @property
    def n_experts(self) -> int:
        """Number of experts, K."""
        return self.beta.shape[0]

    @property
    def formula(self) -> str:
        """Formula that fits the model from which the data came."""
        expert, gate = self._names("x", self.beta.shape[1]), self._names("z", self.gamma.shape[1])
        effects = " + ".join(["1", *expert[1:]][: self.D.shape[1]]) or "0"
        gating = f" | gate: {' + '.join(gate[1:])}" if self.n_experts > 1 and len(gate) > 1 else ""
        return f"y ~ {' + '.join(expert[1:]) or '1'}{gating} | re: ({effects} | id)"

    def relabel(self, order: Sequence[int]) -> Self:
        """The same truth with its experts in another order; ``order[0]``, counted from 1, comes first.

        Raises
        ------
        ArgumentError
            If `order` is not a permutation of 1..K.
        """
        if sorted(order) != list(range(1, self.n_experts + 1)):
            raise ArgumentError(
                f"order={list(order)} does not name each expert once; "
                f"give a permutation of {list(range(1, self.n_experts + 1))}"
            )
        new = np.asarray(order) - 1
        full = np.vstack([np.zeros((1, self.gamma.shape[1])), self.gamma])[new]
        cuts = None if self.cuts is None else self.cuts[new]
        parts = {"beta": self.beta[new], "gamma": full[1:] - full[0], "D": self.D[new], "sigma": self.sigma[new]}
        return replace(self, **parts, cuts=cuts)

    def named(self) -> pd.Series:
        """Parameters under the names that a fit gives them, e.g. ``expert1.time``, ``sd1(time|id)``, ``sigma1``."""
        expert, gate = self._names("x", self.beta.shape[1]), self._names("z", self.gamma.shape[1])
        at = 0 if self.cuts is None else 1  # thresholds take the place of the intercept
        values = {f"expert{k + 1}.{expert[j]}": row[j] for k, row in enumerate(self.beta) for j in range(at, len(row))}
        values |= {f"gate{k + 2}.{c}": g for k, row in enumerate(self.gamma) for c, g in zip(gate, row, strict=True)}
        for k, (cov, sigma) in enumerate(zip(self.D, self.sigma, strict=True), start=1):
            residual = {f"{_NOISE[self.family]}{k}": float(sigma)} if self.family in _NOISE else {}
            values |= _named_covariance(cov, expert, k) | residual
        if self.cuts is not None:
            shifted = self.cuts - self.beta[:, :1]
            values |= {f"cut{k + 1}({j + 1}|{j + 2})": c for k, row in enumerate(shifted) for j, c in enumerate(row)}
        return pd.Series(values, dtype=float, name="truth")

    def _names(self, letter: str, size: int) -> list[str]:
        start = ["Intercept", "time"] if letter == "x" else ["Intercept"]
        return [*start, *(f"{letter}{j + 1}" for j in range(size - len(start)))][:size]


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedMEMoE:
    """Simulated data and the parameters they came from.

    Attributes
    ----------
    data : DataFrame
        One row per visit, sorted by subject and time: id, time, x1.., z1.., y, expert.
    truth : MEMoETruth
    random_effects : ndarray, shape (N, q)
        Random effects of the subjects.
    """

    data: pd.DataFrame
    truth: MEMoETruth
    random_effects: Array

    @property
    def formula(self) -> str:
        """Formula that fits the model from which the data came."""
        return self.truth.formula

    @property
    def experts(self) -> NDArray[np.int64]:
        """True expert of each subject, shape (N,), counted from 1."""
        return self.data.groupby("id", sort=True)["expert"].first().to_numpy()


@dataclass(frozen=True, slots=True, eq=False)
class _Scheme:
    """A preset: parameters, number of visits (or its range), follow-up and the shapes of the two distributions."""

    truth: MEMoETruth
    visits: int | tuple[int, int] = 6
    errors: Shape = "normal"
    effects: Shape = "normal"


def _truth(beta: ArrayLike, gamma: ArrayLike, D: ArrayLike, sigma: ArrayLike) -> MEMoETruth:
    parts = [np.array(values, dtype=float) for values in (beta, gamma, D, sigma)]
    return MEMoETruth(parts[0], parts[1], parts[2], parts[3])


_MODERATE = _truth(
    beta=[[10.0, 1.0, 0.5], [12.0, -0.5, -0.5]],
    gamma=[[-0.6, -0.8, 0.7]],
    D=[[[1.0, 0.1], [0.1, 0.09]], [[2.25, -0.2], [-0.2, 0.25]]],
    sigma=[0.8, 1.2],
)
_SEPARATED = replace(_MODERATE, beta=np.array([[10.0, 1.0, 0.5], [18.0, -1.5, -0.5]]))
_THREE = _truth(
    beta=[[10.0, 1.0], [14.0, -0.5], [6.0, 0.2]],
    gamma=[[-0.6, -0.8, 0.7], [-0.4, 0.6, -0.5]],
    D=[[[1.0, 0.1], [0.1, 0.09]], [[2.25, -0.2], [-0.2, 0.25]], [[0.5, 0.05], [0.05, 0.04]]],
    sigma=[0.8, 1.2, 0.5],
)
_SINGLE = _truth([[10.0, 1.0, 0.5]], np.empty((0, 1)), [[[1.0, 0.1], [0.1, 0.09]]], [0.8])
_BINARY = MEMoETruth(
    beta=np.array([[-1.5, 0.6, 0.5], [1.5, -0.6, -0.5]]),
    gamma=np.array([[-0.6, -0.8, 0.7]]),
    D=np.array([[[0.64]], [[0.36]]]),
    sigma=np.ones(2),
    family="binomial",
)
_COUNT = MEMoETruth(
    beta=np.array([[0.3, 0.25, 0.3], [1.5, -0.2, -0.3]]),
    gamma=np.array([[-0.6, -0.8, 0.7]]),
    D=np.array([[[0.25, -0.02], [-0.02, 0.01]], [[0.16, 0.01], [0.01, 0.0225]]]),
    sigma=np.ones(2),
    family="poisson",
)
_OVERDISPERSED = replace(_COUNT, D=np.array([[[0.25]], [[0.16]]]), sigma=np.array([2.0, 5.0]), family="negbinomial")
_POSITIVE = replace(_COUNT, sigma=np.array([3.0, 6.0]), family="gamma")
_SHARE = MEMoETruth(
    beta=np.array([[-1.0, 0.4, 0.3], [1.0, -0.4, -0.3]]),
    gamma=np.array([[-0.6, -0.8, 0.7]]),
    D=np.array([[[0.36]], [[0.25]]]),
    sigma=np.array([6.0, 12.0]),
    family="beta",
)
_ORDINAL = MEMoETruth(
    beta=np.array([[0.0, 0.6, 0.5], [0.0, -0.6, -0.5]]),
    gamma=np.array([[-0.6, -0.8, 0.7]]),
    D=np.array([[[1.0]], [[0.64]]]),
    sigma=np.ones(2),
    family="ordinal",
    cuts=np.array([[0.5, 1.5, 3.0], [-3.0, -1.5, -0.5]]),
)
_PRESETS: Mapping[str, _Scheme] = MappingProxyType(
    {
        "moderate": _Scheme(_MODERATE),
        "separated": _Scheme(_SEPARATED),
        "three": _Scheme(_THREE),
        "heavy_tails": _Scheme(_MODERATE, errors="t5", effects="skewed"),
        "single": _Scheme(_SINGLE),
        "unbalanced": _Scheme(_MODERATE, visits=(1, 8)),
        "binary": _Scheme(_BINARY, visits=10),
        "count": _Scheme(_COUNT, visits=5),
        "overdispersed": _Scheme(_OVERDISPERSED, visits=6),
        "positive": _Scheme(_POSITIVE, visits=5),
        "share": _Scheme(_SHARE, visits=5),
        "ordinal": _Scheme(_ORDINAL, visits=8),
        "latent_class": _Scheme(replace(_MODERATE, D=np.empty((2, 0, 0)))),
    }
)


def memoe(
    preset: Preset = "moderate",
    *,
    n_subjects: int = 500,
    n_visits: int | tuple[int, int] | None = None,
    follow_up: float = 5.0,
    beta: ArrayLike | None = None,
    gamma: ArrayLike | None = None,
    D: ArrayLike | None = None,
    sigma: ArrayLike | None = None,
    cuts: ArrayLike | None = None,
    errors: Shape | None = None,
    effects: Shape | None = None,
    rng: np.random.Generator | int | None = None,
) -> SimulatedMEMoE:
    """Longitudinal data from a mixed-effects mixture of experts.

    Parameters
    ----------
    preset : str
        ``"moderate"``: two experts that overlap somewhat, two gate covariates, random intercept and slope;
        ``"separated"``: the same, far apart; ``"three"``: three experts; ``"heavy_tails"``: ``"moderate"`` with t(5)
        errors and skewed random effects; ``"single"``: one expert, a linear mixed model; ``"unbalanced"``:
        ``"moderate"`` with 1 to 8 visits at irregular times; ``"latent_class"``: ``"moderate"`` without random effects;
        ``"binary"``: two experts with responses of 0 and 1 at 10 visits, random intercept; ``"count"``: two experts
        with Poisson responses at 5 visits, random intercept and slope; ``"overdispersed"``: such counts from negative
        binomial distributions at 6 visits, random intercept; ``"positive"``: gamma responses at 5 visits, random
        intercept and slope; ``"share"``: beta responses at 5 visits, random intercept; ``"ordinal"``:
        responses in four ordered categories at 8 visits, random intercept.
        Every argument below overrides what the preset says.
    n_subjects : int
        Number of subjects, N.
    n_visits : int or (int, int), optional
        Visits of each subject, equally spaced; or the least and the most, then uniform in number and in time.
    follow_up : float
        Time of the last visit; the first is at 0 (irregular visits lie between the two).
    beta : array_like, shape (K, p), optional
        Coefficients of intercept, time, x1, x2 ... (standard normal, new at each visit).
    gamma : array_like, shape (K - 1, m), optional
        Gate coefficients of experts 2..K for intercept, z1, z2 ... (odd: standard normal; even: 0 or 1, evenly).
    D : array_like, shape (K, q, q), optional
        Covariances of the random effects of the first q expert columns, q <= p; shape (K, 0, 0) for none.
    sigma : array_like, shape (K,), optional
        Residual standard deviations of Gaussian responses, dispersions of others (see `MEMoETruth`).
    cuts : array_like, shape (K, C - 1), optional
        Thresholds of ordinal responses, increasing.
    errors, effects : {"normal", "t5", "skewed"}, optional
        Distribution of errors and of random effects, always scaled to the variances given: normal, Student's t with
        5 degrees of freedom, or gamma with shape 4 (skewness 1) about its mean.
    rng : Generator, int or None
        Source of random numbers, or its seed.

    Returns
    -------
    SimulatedMEMoE
        The data with the truth.

    Raises
    ------
    ArgumentError
        For an unknown preset or distribution, sizes below 1, and shapes that do not go together.

    References
    ----------
    Yue, Yan, Han & Fu (2026), arXiv 2603.07479; Verbeke & Lesaffre (1996), JASA 91, 217-221.

    Examples
    --------
    >>> sim = memoe("moderate", n_subjects=3, n_visits=2, rng=0)
    >>> sim.data.shape
    (6, 7)
    >>> sim.formula
    'y ~ time + x1 | gate: z1 + z2 | re: (1 + time | id)'
    """
    scheme = _scheme(preset, n_visits, errors, effects)
    truth = _checked(_merged(scheme.truth, beta, gamma, D, sigma, cuts))
    _check_sizes(n_subjects, scheme.visits, follow_up)
    return _draw(replace(scheme, truth=truth), int(n_subjects), float(follow_up), np.random.default_rng(rng))


def _draw(scheme: _Scheme, n_subjects: int, follow_up: float, rng: np.random.Generator) -> SimulatedMEMoE:
    """Draw gate covariates, experts, visits, random effects and errors, in this order."""
    truth = scheme.truth
    W = _gate_covariates(n_subjects, truth.gamma.shape[1], rng)
    expert = _memberships(W, truth.gamma, rng)
    subject, time = _visits(n_subjects, scheme.visits, follow_up, rng)
    X = _expert_covariates(time, truth.beta.shape[1], rng)
    b = _random_effects(truth.D, expert, scheme.effects, rng)
    of_row = expert[subject]
    mean = np.zeros(time.size)
    for j in range(X.shape[1]):
        mean += X[:, j] * (truth.beta[of_row, j] + (b[subject, j] if j < b.shape[1] else 0.0))
    if truth.cuts is not None:
        y = _ordinal(rng, mean, truth.cuts[of_row])
    else:
        y = _RESPONSES[truth.family](rng, mean, truth.sigma[of_row], scheme.errors)
    columns = {"id": subject + 1, "time": time}
    columns |= {f"x{j - 1}": X[:, j] for j in range(2, X.shape[1])}
    columns |= {f"z{j}": W[subject, j] for j in range(1, W.shape[1])}
    return SimulatedMEMoE(pd.DataFrame(columns | {"y": y, "expert": of_row + 1}), truth, b)


def _gate_covariates(n_subjects: int, m: int, rng: np.random.Generator) -> Array:
    """Intercept, then normal and binary columns in turn, shape (N, m)."""
    W = np.ones((n_subjects, m))
    for j in range(1, m):
        W[:, j] = rng.standard_normal(n_subjects) if j % 2 else rng.integers(0, 2, n_subjects)
    return W


def _memberships(W: Array, gamma: Array, rng: np.random.Generator) -> NDArray[np.int64]:
    """Expert of each subject, counted from 0, by the Gumbel-max rule, shape (N,)."""
    logits = np.column_stack([np.zeros(W.shape[0]), W @ gamma.T])
    return np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)


def _visits(
    n_subjects: int, visits: int | tuple[int, int], follow_up: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], Array]:
    """Subject (from 0) and time of every row, sorted by both."""
    if isinstance(visits, tuple):
        counts = rng.integers(visits[0], visits[1] + 1, n_subjects)
        subject = np.repeat(np.arange(n_subjects), counts)
        within = np.sort(subject + rng.random(subject.size)) - subject
        return subject, follow_up * np.clip(within, 0.0, 1.0)
    times = np.linspace(0.0, follow_up, visits)
    return np.repeat(np.arange(n_subjects), visits), np.tile(times, n_subjects)


def _expert_covariates(time: Array, p: int, rng: np.random.Generator) -> Array:
    """Intercept, time and standard normal columns, shape (n, p)."""
    X = np.ones((time.size, p), order="F")
    if p > 1:
        X[:, 1] = time
    X[:, 2:] = rng.standard_normal((max(p - 2, 0), time.size)).T
    return X


def _random_effects(D: Array, expert: NDArray[np.int64], shape: Shape, rng: np.random.Generator) -> Array:
    """Random effects with covariance ``D[expert]``, shape (N, q)."""
    draws = _DRAWS[shape](rng, (expert.size, D.shape[1]))
    for k, cov in enumerate(D):
        mine = expert == k
        draws[mine] = draws[mine] @ _square_root(cov).T
    return draws


def _square_root(cov: Array) -> Array:
    """Cholesky factor of a covariance that may be singular, by QR of its symmetric root."""
    values, vectors = np.linalg.eigh(cov)
    symmetric = vectors * np.sqrt(np.clip(values, 0.0, None))
    factor: Array = np.asarray(np.linalg.qr(symmetric.T, mode="r")).T
    return factor * np.where(np.diag(factor) < 0.0, -1.0, 1.0)


def _normal(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    return rng.standard_normal(size)


def _t5(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    return rng.standard_t(5, size) * np.sqrt(3.0 / 5.0)


def _skewed(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    return (rng.standard_gamma(4.0, size) - 4.0) / 2.0


_DRAWS: Mapping[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = MappingProxyType(
    {"normal": _normal, "t5": _t5, "skewed": _skewed}
)


def _gaussian(rng: np.random.Generator, predictor: Array, sigma: Array, errors: Shape) -> Array:
    return predictor + sigma * _DRAWS[errors](rng, predictor.shape)


def _binomial(rng: np.random.Generator, predictor: Array, sigma: Array, errors: Shape) -> Array:
    return (rng.random(predictor.size) < 1.0 / (1.0 + np.exp(-predictor))).astype(float)


def _poisson(rng: np.random.Generator, predictor: Array, sigma: Array, errors: Shape) -> Array:
    return rng.poisson(np.exp(predictor)).astype(float)


def _negbinomial(rng: np.random.Generator, predictor: Array, theta: Array, errors: Shape) -> Array:
    return rng.poisson(_gamma(rng, predictor, theta, errors)).astype(float)


def _gamma(rng: np.random.Generator, predictor: Array, shape: Array, errors: Shape) -> Array:
    return rng.gamma(shape, np.exp(predictor) / shape)


def _beta(rng: np.random.Generator, predictor: Array, phi: Array, errors: Shape) -> Array:
    mean = 1.0 / (1.0 + np.exp(-predictor))
    return rng.beta(phi * mean, phi * (1.0 - mean))


def _ordinal(rng: np.random.Generator, predictor: Array, cuts: Array) -> Array:
    """Categories 1, 2 ... of latent logistic values between thresholds, shape (n, C - 1)."""
    latent = predictor + rng.logistic(size=predictor.size)
    return 1.0 + (latent[:, None] > cuts).sum(axis=1)


_RESPONSES: Mapping[str, Callable[[np.random.Generator, Array, Array, Shape], Array]] = MappingProxyType(
    {
        "gaussian": _gaussian,
        "binomial": _binomial,
        "poisson": _poisson,
        "negbinomial": _negbinomial,
        "gamma": _gamma,
        "beta": _beta,
    }
)
_NOISE: Mapping[str, str] = MappingProxyType(
    {"gaussian": "sigma", "negbinomial": "theta", "gamma": "shape", "beta": "phi"}
)


def _named_covariance(cov: Array, columns: list[str], k: int) -> dict[str, float]:
    """Standard deviations and correlations of one expert under the names of a fit."""
    sd = np.sqrt(np.diag(cov))
    named = {f"sd{k}({columns[j]}|id)": float(sd[j]) for j in range(sd.size)}
    for j in range(sd.size):
        for i in range(j):
            named[f"corr{k}({columns[i]},{columns[j]}|id)"] = float(cov[i, j] / (sd[i] * sd[j]))
    return named


def _scheme(preset: str, visits: int | tuple[int, int] | None, errors: Shape | None, effects: Shape | None) -> _Scheme:
    """The preset with its overrides."""
    if preset not in _PRESETS:
        raise ArgumentError(f"preset must be one of {', '.join(map(repr, get_args(Preset)))}, got {preset!r}")
    for name, shape in (("errors", errors), ("effects", effects)):
        if shape is not None and shape not in _DRAWS:
            raise ArgumentError(f"{name} must be one of {', '.join(map(repr, _DRAWS))}, got {shape!r}")
    scheme = _PRESETS[preset]
    return _Scheme(
        scheme.truth,
        scheme.visits if visits is None else visits,
        scheme.errors if errors is None else errors,
        scheme.effects if effects is None else effects,
    )


def _merged(
    truth: MEMoETruth,
    beta: ArrayLike | None,
    gamma: ArrayLike | None,
    D: ArrayLike | None,
    sigma: ArrayLike | None,
    cuts: ArrayLike | None,
) -> MEMoETruth:
    """The preset's parameters, with those given in their place."""
    if cuts is not None and truth.cuts is None:
        raise ArgumentError(f"cuts= is for ordinal responses, those of this preset are {truth.family}; leave it out")
    given: dict[str, Any] = {"beta": beta, "gamma": gamma, "D": D, "sigma": sigma, "cuts": cuts}
    changed: dict[str, Any] = {name: np.array(v, dtype=float) for name, v in given.items() if v is not None}
    return replace(truth, **changed)


def _checked(truth: MEMoETruth) -> MEMoETruth:
    """A truth whose shapes go together and whose covariances exist, or an error."""
    dims = {"beta": 2, "gamma": 2, "D": 3, "sigma": 1}
    for name, dim in dims.items():
        if getattr(truth, name).ndim != dim:
            raise ArgumentError(f"{name} has {getattr(truth, name).ndim} dimensions; it must have {dim}")
    K, p = truth.beta.shape
    q = truth.D.shape[1]
    fitting = truth.D.shape == (K, q, q) and q <= p and truth.sigma.shape == (K,) and truth.gamma.shape[0] == K - 1
    if not fitting or K < 1 or p < 1 or truth.gamma.shape[1] < 1:
        raise ArgumentError(
            f"shapes beta {truth.beta.shape}, gamma {truth.gamma.shape}, D {truth.D.shape}, sigma {truth.sigma.shape} "
            "do not go together; they must be (K, p), (K - 1, m), (K, q, q) with q <= p, and (K,): give all four"
        )
    if truth.cuts is not None:
        _check_cuts(truth.cuts, K)
    if np.any(truth.sigma <= 0.0):
        raise ArgumentError(f"sigma must be positive, got {truth.sigma.tolist()}")
    for k, cov in enumerate(truth.D, start=1):
        if not np.allclose(cov, cov.T) or (q and np.linalg.eigvalsh(cov)[0] < -1e-10 * np.trace(cov)):
            raise ArgumentError(
                f"D of expert {k} is {cov.tolist()}; it must be symmetric and have no negative eigenvalue"
            )
    return truth


def _check_cuts(cuts: Array, K: int) -> None:
    if cuts.ndim != 2 or len(cuts) != K or not cuts.shape[1] or not (np.diff(cuts, axis=1) > 0).all():
        raise ArgumentError(f"cuts must be increasing in each of {K} rows, one per expert, got {cuts.tolist()}")


def _check_sizes(n_subjects: int, visits: int | tuple[int, int], follow_up: float) -> None:
    if not isinstance(n_subjects, int | np.integer) or n_subjects < 1:
        raise ArgumentError(f"n_subjects must be a whole number of at least 1, got {n_subjects}")
    low, high = visits if isinstance(visits, tuple) else (visits, visits)
    if not isinstance(low, int | np.integer) or not isinstance(high, int | np.integer) or not 1 <= low <= high:
        raise ArgumentError(f"n_visits must be at least 1, or (least, most) with 1 <= least <= most, got {visits!r}")
    if not follow_up > 0.0:
        raise ArgumentError(f"follow_up must be positive, got {follow_up}")


def __getattr__(name: str) -> Any:
    """`vcmoe`, the simulator of varying-coefficient mixtures, imported with its family when it is asked for."""
    if name != "vcmoe":
        raise AttributeError(f"module 'mixmoe.simulate' has no attribute {name!r}; it has memoe and vcmoe")
    return import_module("mixmoe.varying.presets").vcmoe
