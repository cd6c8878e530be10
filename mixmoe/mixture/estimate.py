"""Records of a fit that every family returns: named parameters, the estimate, its starts and flags, criteria."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from mixmoe._typing import Array
from mixmoe.arguments import seed_of
from mixmoe.errors import MixmoeWarning, warn


class _Said:
    """A fact about a fit, and what can be done about it."""

    __slots__ = ()
    fact: str
    remedy: str

    @property
    def message(self) -> str:
        """The fact and what to do about it, for whoever fits the model."""
        if not self.remedy:
            return self.fact
        return f"{self.fact}{' ' if self.fact.endswith('.') else '; '}{self.remedy}"

    @property
    def note(self) -> str:
        """The fact alone as a sentence, for readers of a table."""
        return f"{self.fact[:1].upper()}{self.fact[1:]}{'' if self.fact.endswith('.') else '.'}"


@dataclass(frozen=True, slots=True)
class Remark(_Said):
    """What a reader of a table must know.

    Attributes
    ----------
    fact : str
    remedy : str
        What whoever fits the model can do about it.
    """

    fact: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Flag(_Said):
    """Something about a fit that a reader must know.

    Attributes
    ----------
    code : str
        ``"boundary"``, ``"separated_gate"``, ``"degenerate"``, ``"not_converged"``, ``"not_replicated"``,
        ``"interrupted"``, ``"laplace_bias"`` ...
    fact : str
        What it is, with the value: all that a reader of a table needs.
    remedy : str
        What whoever fits the model can do about it.
    message, note : str
        Both in one, and the fact alone as a sentence.
    """

    code: str
    fact: str
    remedy: str = ""


def warn_flags(flags: Iterable[Flag], categories: Mapping[str, type[MixmoeWarning]]) -> None:
    """Give each flag as a warning of the category that its code has."""
    for flag in flags:
        warn(flag.message, categories[flag.code])


@dataclass(frozen=True, slots=True)
class Starts:
    """What the starting values led to.

    Attributes
    ----------
    n_starts : int
        Starts tried.
    logliks : ndarray, shape (n_finished,)
        Log-likelihoods of the distinct end points that were run to full convergence, best first.
    n_replicated : int
        How many starts led to the best one.
    ends : ndarray, shape (n_starts,)
        Log-likelihoods that all starts had reached when the search ended, best first; empty if they were searched for
        on some of the units, or are not known.
    seed : int or None
        Of the random starts; None if it was a generator or none was given.
    asked : int or None
        What ``starts=`` was given; splits, merges and what is carried from smaller fits come on top.
    """

    n_starts: int
    logliks: Array
    n_replicated: int
    ends: Array = field(default_factory=lambda: np.empty(0))
    seed: int | None = None
    asked: int | None = None


@dataclass(frozen=True, slots=True)
class EMFit:
    """Estimate of a mixture.

    Attributes
    ----------
    params : ndarray, shape (P,)
        Estimates on the reported scale, in the order of the layout.
    loglik : float
        Observed-data log-likelihood at `params`.
    trace : ndarray, shape (n_iter,)
        Log-likelihood, with the penalty if there is one, after each iteration of the start that won.
    n_iter, n_evaluations : int
        Iterations and likelihood evaluations of the start that won.
    converged : bool
        Whether the score is zero to the tolerance.
    responsibilities : ndarray, shape (N, K)
        Posterior expert probabilities per independent unit.
    starts : Starts
        Its log-likelihoods are with the penalty.
    flags : tuple of Flag
    penalty : float
        Log prior at `params`; what was maximised is `loglik` plus this.
    smoothing : ndarray, shape (J,)
        Smoothing parameters of penalised functions; empty if there are none.
    """

    params: Array
    loglik: float
    trace: Array
    n_iter: int
    n_evaluations: int
    converged: bool
    responsibilities: Array
    starts: Starts
    flags: tuple[Flag, ...] = ()
    penalty: float = 0.0
    smoothing: Array = field(default_factory=lambda: np.empty(0))


SAME = 1e-3  # log-likelihoods closer than this are the same optimum


def better(a: EMFit, b: EMFit) -> EMFit:
    """The better of two fits of one model to the same data, with the starts of both counted.

    A degenerate fit yields to any other, and an interrupted one leaves its mark.
    """
    best = b if _rank(b) > _rank(a) else a
    reached = [fit for fit in (a, b) if abs(_rank(fit) - _rank(best)) <= SAME] or [best]
    replicated = sum(fit.starts.n_replicated for fit in reached)
    logliks = np.sort(np.append(a.starts.logliks, b.starts.logliks))[::-1]
    dropped = ("not_replicated",) if replicated > 1 else ()
    interrupted = tuple(flag for flag in (*a.flags, *b.flags) if flag.code == "interrupted")
    kept = tuple(flag for flag in best.flags if flag.code not in (*dropped, "interrupted"))
    return replace(
        best,
        converged=best.converged and not interrupted,
        starts=Starts(a.starts.n_starts + b.starts.n_starts, logliks, replicated),
        flags=(*interrupted[:1], *kept),
    )


def _rank(fit: EMFit) -> float:
    return -np.inf if any(flag.code == "degenerate" for flag in fit.flags) else fit.loglik + fit.penalty


def seeded(fit: EMFit, rng: Any, starts: Any) -> EMFit:
    """The fit with the seed that it came from, if `rng` is one, and the number of starts that was asked for."""
    asked = None if starts is None else int(starts)
    return replace(fit, starts=replace(fit.starts, seed=seed_of(rng), asked=asked))


Block = Literal[
    "fixed", "expert", "common", "gate", "random", "residual", "dispersion", "zeros", "threshold", "smooth", "other"
]


Scale = Literal["identity", "log", "atanh", "logit"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One entry of a parameter vector.

    Attributes
    ----------
    name : str
        Full name as used in hypotheses, e.g. ``expert1.time``, ``gate2.z``, ``sd1(time|id)``, ``sigma1``.
    block : str
        ``"expert"``, ``"common"``, ``"gate"``, ``"random"``, ``"residual"``, ``"dispersion"``, ``"zeros"``,
        ``"threshold"``, ``"smooth"`` (a coefficient of a penalised function) or ``"other"`` (limits on its own scale).
    term : str
        Name within its block, e.g. ``time`` or ``sd(time)``.
    expert : int or None
        Expert it belongs to, counted from 1; None if shared by all.
    tested : bool
        Whether "equal to zero" is a meaningful hypothesis: false for standard deviations.
    """

    name: str
    block: Block
    term: str
    expert: int | None = None
    tested: bool = True

    @property
    def scale(self) -> Scale:
        """Scale on which it is closest to normal: log of deviations, Fisher's of correlations, odds of shares."""
        if self.block == "random" and self.term.startswith("corr"):
            return "atanh"
        if self.block == "residual" and self.term == "rho":
            return "atanh"
        if self.block in ("residual", "zeros") and self.term.partition("(")[0] == "zeros":
            return "logit"
        if (self.block == "threshold" and self.term.startswith("cut")) or self.block in ("smooth", "other"):
            return "identity"
        return "identity" if self.tested else "log"


@dataclass(frozen=True)
class ParamLayout:
    """Names and blocks of a parameter vector, in its order. Not slotted: names and scales are kept once asked for."""

    parameters: tuple[Parameter, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Full names in the order of the vector."""
        return tuple(p.name for p in self.parameters)

    @cached_property
    def scales(self) -> NDArray[np.object_]:
        """The scale of each parameter, shape (P,)."""
        return np.array([p.scale for p in self.parameters], dtype=object)

    def where(self, block: Block, expert: int | None = None) -> list[int]:
        """Positions of the parameters of one block, of one expert if given."""
        return [i for i, p in enumerate(self.parameters) if p.block == block and (expert is None or p.expert == expert)]


@dataclass(frozen=True, slots=True)
class Criteria:
    """Information criteria of one fit; smaller is better, except for `entropy`.

    Attributes
    ----------
    loglik : float
    npar : float
        Number of estimated parameters; effective ones where some are penalised.
    n_units : int
        Independent units (subjects), the N of the criteria.
    aic, bic, sabic, icl : float
        Akaike; Schwarz; Schwarz with the sample size adjusted to (N + 2) / 24; integrated classification likelihood.
    entropy : float
        Relative entropy R^2 in [0, 1]; 1 means that every unit belongs to one expert without doubt.
    """

    loglik: float
    npar: float
    n_units: int
    aic: float
    bic: float
    sabic: float
    icl: float
    entropy: float


def criteria(loglik: float, npar: float, responsibilities: Array) -> Criteria:
    """All criteria of one fit.

    Parameters
    ----------
    loglik : float
    npar : float
    responsibilities : ndarray, shape (N, K)

    Returns
    -------
    Criteria

    Notes
    -----
    With P parameters, N independent units (not rows) and the classification entropy EN: AIC is ``-2 l + 2 P``, BIC
    ``-2 l + P log N``, its adjusted form has (N + 2) / 24 in the place of N, and ICL is ``BIC + 2 EN``.

    References
    ----------
    Akaike (1974). Schwarz (1978). Sclove (1987). Biernacki, Celeux & Govaert (2000).
    """
    N, doubt = responsibilities.shape[0], classification_entropy(responsibilities)
    bic = float(-2.0 * loglik + npar * np.log(N))
    return Criteria(
        loglik=loglik,
        npar=npar,
        n_units=N,
        aic=-2.0 * loglik + 2.0 * npar,
        bic=bic,
        sabic=float(-2.0 * loglik + npar * np.log((N + 2) / 24)),
        icl=bic + 2.0 * doubt,
        entropy=entropy_r2(responsibilities),
    )


def classification_entropy(responsibilities: Array) -> float:
    """Doubt about the membership of all units, ``EN = -sum_ik tau_ik log tau_ik``."""
    return float(entr(np.clip(responsibilities, 0.0, 1.0)).sum())


def entropy_r2(responsibilities: Array) -> float:
    """Relative entropy ``1 - EN / (N log K)`` in [0, 1] (Ramaswamy et al. 1993); 1 for a single expert.

    Parameters
    ----------
    responsibilities : ndarray, shape (N, K)

    Returns
    -------
    float
    """
    n_units, n_experts = responsibilities.shape
    if n_experts == 1:
        return 1.0
    relative = 1.0 - classification_entropy(responsibilities) / (n_units * np.log(n_experts))
    return float(np.clip(relative, 0.0, 1.0))


def clc(loglik: float, responsibilities: Array) -> float:
    """Classification likelihood criterion, ``-2 l + 2 EN`` (Biernacki & Govaert 1997)."""
    return -2.0 * loglik + 2.0 * classification_entropy(responsibilities)
