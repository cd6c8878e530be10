"""Parameters beside coefficients, covariances and gate, such as dispersions and correlations, with scales and edges."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.mixture.estimate import Block, Parameter

_NO_CLUMPING = float(np.log(1e4))  # theta that counts hardly tell from a Poisson distribution


class Scale(Protocol):
    """A map between unconstrained numbers and reported ones, over the last axis; complex steps pass through."""

    @property
    def domain(self) -> str:
        """What reported values must be, for messages."""

    def natural(self, free: Array) -> Array:
        """Reported values."""

    def free(self, natural: Array) -> Array:
        """Unconstrained values."""

    def allows(self, natural: Array) -> bool:
        """Whether reported values lie in the parameter space."""


@dataclass(frozen=True, slots=True)
class Unbounded:
    """Any number; unconstrained in the given units, one per parameter or one for all."""

    units: tuple[float, ...] = (1.0,)
    domain: str = "finite"

    def natural(self, free: Array) -> Array:
        """Multiples of the units."""
        return free * np.array(self.units)

    def free(self, natural: Array) -> Array:
        """Numbers of units."""
        return natural / np.array(self.units)

    def allows(self, natural: Array) -> bool:
        """Whether all are finite."""
        return bool(np.isfinite(natural).all())


@dataclass(frozen=True, slots=True)
class Positive:
    """Above zero; its logarithm is unconstrained, in the given unit."""

    unit: float = 1.0
    domain: str = "above zero"

    def natural(self, free: Array) -> Array:
        """Exponentials, times the unit."""
        return self.unit * np.exp(free)

    def free(self, natural: Array) -> Array:
        """Logarithms of multiples of the unit."""
        return np.log(natural / self.unit)

    def allows(self, natural: Array) -> bool:
        """Whether all are above zero."""
        return bool((np.isfinite(natural) & (natural > 0)).all())


@dataclass(frozen=True, slots=True)
class Correlation:
    """Between -1 and 1; Fisher's z is unconstrained."""

    domain: str = "between -1 and 1"

    def natural(self, free: Array) -> Array:
        """Hyperbolic tangents."""
        return np.tanh(free)

    def free(self, natural: Array) -> Array:
        """Fisher's z."""
        return np.arctanh(natural)

    def allows(self, natural: Array) -> bool:
        """Whether all lie strictly within."""
        return bool((np.abs(natural) < 1).all())


@dataclass(frozen=True, slots=True)
class Edge:
    """Where a parameter runs into an end of its space, as far as data can tell.

    Attributes
    ----------
    value : float
        Unconstrained.
    above : bool
        Whether the end lies above `value`, or below.
    meaning : str
        What the model becomes there, as in "there is no serial correlation left".
    """

    value: float
    above: bool
    meaning: str

    def reached(self, free: Array) -> NDArray[np.bool_]:
        """Whether unconstrained values lie beyond."""
        return free > self.value if self.above else free < self.value


@dataclass(frozen=True, slots=True)
class Extra:
    """A group of further parameters of an expert.

    Attributes
    ----------
    name : str
        Of the reported parameters: ``rho`` gives ``rho1``, ``rho2`` or, if common, ``rho``.
    labels : tuple of str
        One per parameter of the group, in brackets behind the name, as in ``cut1(low)``, or, for coefficients, behind
        a dot, as in ``sigma1.time``; ``""`` for none.
    scale : Scale
    start : tuple of float
        Unconstrained values from which an ascent starts.
    own : bool
        Whether each expert has its own, or all share one.
    block : str
        Of the layout, which gives the table it is printed in.
    tested : bool
        Whether "equal to zero" is a meaningful hypothesis.
    edges : tuple of Edge
    coefficients : bool
        Whether the labels are columns of a design.
    precision : bool
        Whether responses are reproduced exactly as it grows, so that the likelihood of few subjects is unbounded.
    concentrates : float
        1 where responses are less dispersed the larger it is, -1 where they are the smaller it is, else 0.
    """

    name: str
    labels: tuple[str, ...]
    scale: Scale
    start: tuple[float, ...]
    own: bool = True
    block: Block = "residual"
    tested: bool = False
    edges: tuple[Edge, ...] = ()
    coefficients: bool = False
    precision: bool = False
    concentrates: float = 0.0

    @property
    def size(self) -> int:
        """Number of parameters of one expert."""
        return len(self.labels)

    def parameters(self, n_experts: int) -> list[Parameter]:
        """Entries of the layout, expert by expert."""
        experts = range(1, n_experts + 1) if self.own else [None]
        return [
            Parameter(f"{self.name}{k or ''}{suffix}", self.block, f"{self.name}{suffix}", k, self.tested)
            for k in experts
            for suffix in map(self._suffix, self.labels)
        ]

    def _suffix(self, label: str) -> str:
        if not label:
            return ""
        return f".{label}" if self.coefficients else f"({label})"


def spans(extras: tuple[Extra, ...]) -> Iterator[tuple[Extra, slice]]:
    """Each group with its place among all further parameters of one expert."""
    at = 0
    for extra in extras:
        yield extra, slice(at, at + extra.size)
        at += extra.size


def n_extra(extras: tuple[Extra, ...]) -> int:
    """Further parameters of one expert."""
    return sum(extra.size for extra in extras)


def extra_starts(extras: tuple[Extra, ...]) -> Array:
    """Unconstrained starting values of one expert, shape (d,)."""
    return np.array([value for extra in extras for value in extra.start], dtype=float)


def dispersion(name: str, own: bool) -> Extra:
    """The dispersion of a family as a further parameter: ``theta`` of counts, or a precision."""
    if name == "theta":
        poisson = (Edge(_NO_CLUMPING, True, "the counts are no more spread than Poisson ones"),)
        return Extra(name, ("",), Positive(), (0.0,), own, "dispersion", edges=poisson, concentrates=1.0)
    return Extra(name, ("",), Positive(), (0.0,), own, "dispersion", precision=True, concentrates=1.0)
