"""Sums of each subject over rows that may lie in any partition."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array

_LEAST = 200_000  # subjects of parts that wait, below which joining them is not worth it


@dataclass(frozen=True, slots=True)
class BySubject:
    """What rows say of their subjects.

    Attributes
    ----------
    labels : Index, length N
        Distinct.
    sums : tuple of ndarray, shape (N,)
        Quantities that add over rows.
    first : tuple of ndarray, shape (N,)
        Of quantities that are constant within a subject, the value in the first row.
    away : tuple of ndarray, shape (N,)
        How far other rows of the subject are from it, at most.
    """

    labels: pd.Index
    sums: tuple[Array, ...]
    first: tuple[Array, ...]
    away: tuple[Array, ...]


@dataclass(slots=True)
class Gathering:
    """Sums that grow partition by partition.

    Attributes
    ----------
    joined : list of BySubject
        One of all subjects but those that wait.
    waiting : list of BySubject
        In the order in which they came.
    """

    joined: list[BySubject] = field(default_factory=list)
    waiting: list[BySubject] = field(default_factory=list)

    def add(self, part: BySubject) -> None:
        """Rows of one more partition."""
        self.waiting.append(part)
        known = sum(len(one.labels) for one in self.joined)
        # As many wait as are joined: each subject is moved a few times only, however many partitions there are.
        if sum(len(one.labels) for one in self.waiting) > max(known, _LEAST):
            self._join()

    def whole(self) -> BySubject:
        """All subjects, sorted by label."""
        self._join()
        return self.joined[0]

    def _join(self) -> None:
        parts = [*self.joined, *self.waiting]
        self.joined, self.waiting = [join(parts)], []


def join(parts: list[BySubject]) -> BySubject:
    """The parts as one, subjects sorted, sums taken in the order of the parts; `parts` is emptied as it is read."""
    labels = parts[0].labels.append([part.labels for part in parts[1:]])
    if labels.is_monotonic_increasing and labels.is_unique:
        order, starts = None, None
    else:
        codes, labels = pd.factorize(labels, sort=True)
        order = np.argsort(codes, kind="stable")
        starts = np.searchsorted(codes[order], np.arange(len(labels)))
    sums = _columns(parts, "sums")
    first, away = _columns(parts, "first"), _columns(parts, "away")
    parts.clear()
    # One quantity at a time, its parts forgotten: never more than one of them is in memory twice.
    return BySubject(
        labels,
        tuple(_summed(_taken(sums), order, starts) for _ in range(len(sums))),
        *_constant(first, away, order, starts),
    )


def _columns(parts: list[BySubject], name: str) -> list[list[Array]]:
    """The arrays of each quantity, part by part; the last quantity first."""
    return [list(arrays) for arrays in zip(*(getattr(part, name) for part in parts), strict=True)][::-1]


def _taken(columns: list[list[Array]]) -> Array:
    """The next quantity, of which nothing else is kept."""
    return np.concatenate(columns.pop())


def _summed(values: Array, order: NDArray[np.intp] | None, starts: NDArray[np.intp] | None) -> Array:
    if order is None or starts is None:
        return values
    out: Array = np.add.reduceat(values[order], starts)
    return out


def _constant(
    first: list[list[Array]],
    away: list[list[Array]],
    order: NDArray[np.intp] | None,
    starts: NDArray[np.intp] | None,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    values, spreads = [], []
    for _ in range(len(first)):
        value, spread = _taken(first), _taken(away)
        if order is not None and starts is not None:
            value, spread = value[order], spread[order]
            begin = np.repeat(value[starts], np.diff(np.append(starts, value.size)))
            spread = np.maximum.reduceat(np.maximum(spread, np.abs(value - begin)), starts)
            value = value[starts]
        values.append(value)
        spreads.append(spread)
    return tuple(values), tuple(spreads)


def packed_products(columns: Array, starts: NDArray[np.intp]) -> tuple[Array, ...]:
    """Sums over the rows of each subject of products of columns, the lower triangle row by row.

    Parameters
    ----------
    columns : ndarray, shape (w, n)
    starts : ndarray of int, shape (N,)
        First row of each subject.

    Returns
    -------
    tuple of ndarray, shape (N,)
        w (w + 1) / 2 of them.
    """
    pairs = zip(*np.tril_indices(len(columns)), strict=True)
    return tuple(np.add.reduceat(columns[a] * columns[b], starts) for a, b in pairs)


def unpacked(packed: tuple[Array, ...], subjects: slice) -> Array:
    """Symmetric matrices of a run of subjects from the lower triangle, shape (w, w, n)."""
    w = int((np.sqrt(8 * len(packed) + 1) - 1) / 2)
    out = np.empty((w, w, packed[0][subjects].size))
    for values, a, b in zip(packed, *np.tril_indices(w), strict=True):
        out[a, b] = out[b, a] = values[subjects]
    return out
