"""Checks of arguments at the public boundary."""

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from mixmoe.design.frame import shown
from mixmoe.errors import ArgumentError


def checked_count(value: Any, name: str, least: int = 1) -> int:
    """`value` as an int if it is a whole number of at least `least`.

    Raises
    ------
    ArgumentError
        If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ArgumentError(f"{name} must be a whole number of at least {least}, got {shown(value)}")
    return int(value)


def checked_jobs(value: Any) -> int:
    """`value` if it is a number of processes, or -1 for as many as there are processors.

    Raises
    ------
    ArgumentError
        If it is neither.
    """
    return -1 if value == -1 else checked_count(value, "n_jobs")


def checked_choice(value: Any, name: str, allowed: Sequence[str]) -> None:
    """Raise `ArgumentError` if `value` is not among the allowed ones."""
    if value not in allowed:
        raise ArgumentError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {shown(value)}")


def checked_order(order: Any, experts: int) -> list[int]:
    """A new order of the experts, by their present numbers.

    Raises
    ------
    ArgumentError
        If it does not hold each of 1 to `experts` once.
    """
    wanted = list(order) if np.iterable(order) and not isinstance(order, str) else []
    whole = all(isinstance(one, numbers.Integral) and not isinstance(one, bool) for one in wanted)
    if not whole or sorted(wanted) != list(range(1, experts + 1)):
        raise ArgumentError(f"order must be a permutation of 1..{experts}, got {shown(order)}")
    return [int(one) for one in wanted]


def checked_positive(value: Any, name: str) -> float:
    """`value` as a float if it is a finite number above zero.

    Raises
    ------
    ArgumentError
        If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) < np.inf:
        raise ArgumentError(f"{name} must be a finite number above zero, got {shown(value)}")
    return float(value)


def seed_of(rng: Any) -> int | None:
    """The seed, if `rng` is a whole number, to be kept with the results."""
    return int(rng) if isinstance(rng, numbers.Integral) and not isinstance(rng, bool) else None


def checked_rng(rng: Any) -> np.random.Generator:
    """A generator from a seed, a generator or None; NumPy's global state is never used.

    Raises
    ------
    ArgumentError
        If `rng` is none of these.
    """
    try:
        # A generator passes through as it is, so that one stream can serve several calls.
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"rng must be a whole number, a numpy.random.Generator or None, got {rng!r}") from error
