"""The second pass over partitioned data: cross-products of each subject, and triangles of all rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.design import formulaic_engine
from mixmoe.design.beside import split_subject
from mixmoe.design.checks import auxiliary, check_finite
from mixmoe.design.complete_rows import Rows, without_rows
from mixmoe.design.design import largest_values, response_of
from mixmoe.design.formulaic_engine import Materialized
from mixmoe.design.frame import FrameView
from mixmoe.design.recipe import Recipe, formula_frame
from mixmoe.errors import DesignError
from mixmoe.partitions.on_workers import OnWorkers
from mixmoe.partitions.scan import Part
from mixmoe.partitions.survey import Source, complete_rows, group_of

Found = TypeVar("Found")
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
    clusters : Index, length N, or None
        Cluster of the subject; None if subjects are independent.
    """

    labels: pd.Index
    sums: tuple[Array, ...]
    first: tuple[Array, ...]
    away: tuple[Array, ...]
    clusters: pd.Index | None = None


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
    """The parts as one, subjects sorted, sums taken in the order of the parts; `parts` is emptied as it is read.

    Raises
    ------
    ArgumentError
        If a subject lies in different clusters in different parts.
    """
    labels = parts[0].labels.append([part.labels for part in parts[1:]])
    if labels.is_monotonic_increasing and labels.is_unique:
        order, starts = None, None
    else:
        codes, labels = pd.factorize(labels, sort=True)
        order = np.argsort(codes, kind="stable")
        starts = np.searchsorted(codes[order], np.arange(len(labels)))
    clusters = _joined_clusters([part.clusters for part in parts], labels, order, starts)
    # The arrays of each quantity, part by part; the last quantity first, so that the next is popped from the end.
    waiting = [
        [list(arrays) for arrays in zip(*(getattr(part, name) for part in parts), strict=True)][::-1]
        for name in ("sums", "first", "away")
    ]
    parts.clear()
    # One quantity at a time, its parts forgotten: never more than one of them is in memory twice.
    sums, first, away = [], [], []
    while waiting[0]:
        values = np.concatenate(waiting[0].pop())
        sums.append(values if starts is None else np.add.reduceat(values[order], starts))
    while waiting[1]:
        values, spread = np.concatenate(waiting[1].pop()), np.concatenate(waiting[2].pop())
        if order is not None and starts is not None:
            values, spread = values[order], spread[order]
            begin = np.repeat(values[starts], np.diff(np.append(starts, values.size)))
            spread = np.maximum.reduceat(np.maximum(spread, np.abs(values - begin)), starts)
            values = values[starts]
        first.append(values)
        away.append(spread)
    return BySubject(labels, tuple(sums), tuple(first), tuple(away), clusters)


def _joined_clusters(
    parts: list[pd.Index | None], labels: pd.Index, order: NDArray[np.intp] | None, starts: NDArray[np.intp] | None
) -> pd.Index | None:
    """Clusters of the subjects of all parts, of which each lies in one."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    clusters = known[0].append(known[1:])
    if order is None or starts is None:
        return clusters
    codes = pd.factorize(clusters)[0][order]
    sizes = np.diff(np.append(starts, codes.size))
    split = np.flatnonzero(codes != np.repeat(codes[starts], sizes))
    if split.size:
        raise split_subject(labels[np.searchsorted(starts, split[0], side="right") - 1])
    return clusters[order][starts]


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


_TINY = 1e-8  # of the size of a column, what is left of it beside others of the sample below which it counts as none


@dataclass(frozen=True, slots=True)
class Reference:
    """Columns near which cross-products are taken, so that they lose no digits.

    Attributes
    ----------
    center : ndarray, shape (p,)
        Coefficients around which the response is taken.
    scale : float
        Unit of the response.
    expert, random : ndarray, shape (p, p), (q, q)
        Upper triangular: columns are those of the data times the inverse.
    """

    center: Array
    scale: float
    expert: Array
    random: Array


def reference_of(y: Array, X: Array, Z: Array) -> Reference:
    """Nearly orthonormal columns and a response near zero, from the rows of a sample.

    Parameters
    ----------
    y : ndarray, shape (n,)
    X : ndarray, shape (n, p)
    Z : ndarray, shape (n, q)
    """
    A, B = _triangle_of(X), _triangle_of(Z)
    Q = np.linalg.solve(A.T, X.T).T
    inside = np.linalg.lstsq(Q, y, rcond=None)[0]
    scale = float(np.sqrt(np.mean((y - Q @ inside) ** 2)))
    size = float(np.sqrt(np.mean(y**2)))
    return Reference(np.asarray(np.linalg.solve(A, inside)), scale if scale > _TINY * size else max(size, 1.0), A, B)


def _triangle_of(X: Array) -> Array:
    """R of the columns over the root of their number, with a diagonal that is never zero."""
    n, p = X.shape
    size = np.sqrt((X * X).sum(axis=0) / max(n, 1))
    size[size == 0] = 1.0
    R = np.zeros((p, p))
    found = _triangle(X) / np.sqrt(max(n, 1)) if n else R[:0]
    R[: len(found)] = found
    weak = np.abs(np.diag(R)) <= _TINY * size
    R[weak, :] = 0.0  # a column that the sample does not have apart from others stays as it is beyond them
    R[weak, weak] = size[weak]
    return R


@dataclass(frozen=True, slots=True)
class Sums:
    """What the second pass finds.

    Attributes
    ----------
    subjects : BySubject
        Sums: number of rows; of a normal response log weights, then products of working response, expert and random
        columns, see `packed_products`. Constant: columns of the gate.
    expert : ndarray, shape (p + 1, p + 1)
        R of expert columns and response near the reference, rows times the roots of their weights.
    shifted : ndarray, shape (p, p)
        What the columns of the first are multiplied by so that those behind an intercept are near zero.
    random : ndarray, shape (q, q)
        R of the random columns.
    weight : float
        Sum of the weights of the rows.
    largest : mapping of str to float
        See `largest_values`.
    reference : Reference
    first : FirstRows
    kept : OnWorkers or None
        Of `BySubject`, in the order of the subjects, where workers keep the products; `subjects` then have none.
    """

    subjects: BySubject
    expert: Array
    shifted: Array
    random: Array
    weight: float
    largest: Mapping[str, float]
    reference: Reference
    first: "FirstRows"
    kept: OnWorkers | None = None

    def over_subjects(self, task: Callable[[BySubject], Found]) -> list[Found]:
        """What a task finds of the subjects, in their order: of all here, or part by part where they are kept."""
        return [task(self.subjects)] if self.kept is None else self.kept.mapped(task)


@dataclass(frozen=True, slots=True)
class FirstRows:
    """The first rows by subject, as many as there are columns: they tell the signs of a QR decomposition in memory.

    Attributes
    ----------
    labels : Index, length k
    expert, random : ndarray, shape (k, p), (k, q)
        Rows times the roots of their weights.
    """

    labels: pd.Index
    expert: Array
    random: Array

    def merged(self, other: "FirstRows") -> "FirstRows":
        """The first rows of both; rows of one subject in the order of the parts."""
        labels = self.labels.append(other.labels)
        order = np.argsort(labels, kind="stable")[: max(self.expert.shape[1], self.random.shape[1])]
        X, Z = np.vstack([self.expert, other.expert]), np.vstack([self.random, other.random])
        return FirstRows(labels[order], X[order], Z[order])


def signs_in_memory(R: Array, top: Array) -> Array:
    """Signs of the rows of R, shape (p,), that make it the triangle of Householder's algorithm.

    Parameters
    ----------
    R : ndarray, shape (p, p)
        Of any QR decomposition.
    top : ndarray, shape (p, p)
        First rows of the matrix that was decomposed.

    Notes
    -----
    A step of the algorithm makes entry k of a column that of R, by a multiple of the vector ``v`` with ``v_k = 1``; so
    what it does to the other first rows follows from theirs and from R (Golub & Van Loan 2013, section 5.2.2). Working
    coordinates have the signs that they have in memory, and the search takes the same way.
    """
    A, signs = top.copy(), np.ones(len(R))
    for k in range(min(len(R), len(top))):
        beta = -np.copysign(R[k, k], A[k, k])
        signs[k] = 1.0 if beta == R[k, k] else -1.0
        if beta != A[k, k]:
            v = A[k + 1 :, k] / (A[k, k] - beta)
            A[k + 1 :] -= v[:, None] * (A[k] - signs[k] * R[k])
    return signs


@dataclass(frozen=True, slots=True)
class PartSums:
    """What the second pass finds in one part; see `Sums`.

    Attributes
    ----------
    subjects : BySubject
    expert, random : ndarray
    shifted : ndarray, shape (p, p)
        By the first row of the part.
    weight : float
    largest : mapping of str to float
    first : FirstRows
    """

    subjects: BySubject
    expert: Array
    random: Array
    shifted: Array
    weight: float
    largest: Mapping[str, float]
    first: FirstRows


@dataclass(frozen=True, slots=True)
class PartColumns:
    """Columns of the complete rows of one part, sorted by subject.

    Attributes
    ----------
    frame : FrameView
        The part.
    rows : Rows
    built : Materialized
    """

    frame: FrameView
    rows: Rows
    built: Materialized


def columns_of_part(part: Part, recipe: Recipe, types: Mapping[str, Any]) -> PartColumns | None:
    """Columns of one part; None if no row is complete. To be called where errors name the partition.

    Raises
    ------
    DesignError
        If a column is not finite.
    """
    here = complete_rows(recipe, part, types)
    if here.rows is None:
        return None
    columns = formula_frame(here.rows, recipe)
    built = formulaic_engine.rematerialize(columns, recipe.specs, recipe.sections, recipe.context)
    if len(built.bad_rows) == here.rows.n:
        return None
    rows = without_rows(here.rows, built.bad_rows, built.bad_terms, here.frame.n_rows)
    check_finite(built, rows, here.frame, recipe)
    return PartColumns(here.frame, rows, built)


@np.errstate(over="ignore", invalid="ignore")  # columns that are too large are refused by name when all are known
def sum_part(
    part: Part, recipe: Recipe, types: Mapping[str, Any], reference: Reference, gaussian: bool
) -> PartSums | None:
    """What the second pass finds in one part; None if no row is complete.

    Raises
    ------
    DesignError
        If a column is not finite; names the partition.
    ArgumentError
        If a subject lies in more than one cluster.
    """
    with part.named():
        found = columns_of_part(part, recipe, types)
        if found is None:
            return None
        rows, built = found.rows, found.built
        beside, response = auxiliary(recipe, rows, found.frame), response_of(recipe, built, rows, found.frame)
    # Only of a normal response weights scale the rows; in other families they multiply log-densities.
    weights = beside.get("weights", np.ones(rows.n)) if gaussian else np.ones(rows.n)
    offset = beside.get("offset", np.zeros(rows.n))
    y, X, Z = np.asarray(response), built.matrices["expert"], built.matrices["random"]
    p, q = X.shape[1], Z.shape[1]
    near = np.empty((1 + p + q, len(y)))
    near[0] = (y - offset - X @ reference.center) / reference.scale
    near[1 : 1 + p] = np.linalg.solve(reference.expert.T, X.T)
    near[1 + p :] = np.linalg.solve(reference.random.T, Z.T)
    near *= np.sqrt(weights)
    most, root = max(p, q), np.sqrt(weights)[:, None]
    # Columns behind an intercept less their first values keep the digits in which they differ, as in `aliases.aliases`.
    shifted = np.eye(p)
    if p and built.names["expert"][0] == "Intercept":
        shifted[0, 1:] = -X[0, 1:]
    starts = rows.starts
    counts = np.diff(np.append(starts, rows.n))
    gate = built.matrices["gate"].T
    first = gate[:, starts]
    away = np.maximum.reduceat(np.abs(gate - np.repeat(first, counts, axis=1)), starts, axis=1)
    labels = pd.Index(rows.keys[group_of(recipe)].iloc[starts])
    clusters = None
    if "cluster" in recipe.aux:
        of_rows = rows.keys[recipe.aux["cluster"]]
        clusters, codes = pd.Index(of_rows.iloc[starts]), pd.factorize(of_rows)[0]
        split = np.flatnonzero(codes != np.repeat(codes[starts], counts))
        if split.size:
            raise split_subject(labels[rows.codes[split[0]]])
    sums: tuple[Array, ...] = (counts.astype(float),)
    if gaussian:
        sums = (*sums, np.add.reduceat(np.log(weights), starts), *packed_products(near, starts))
    return PartSums(
        subjects=BySubject(labels, sums, tuple(first), tuple(away), clusters),
        expert=_triangle(np.column_stack([near[1 : 1 + p].T, near[0]])),
        random=_triangle(near[1 + p :].T),
        shifted=shifted,
        weight=float(weights.sum()),
        largest=largest_values(recipe, built, beside),
        first=FirstRows(labels[rows.codes[:most]], root[:most] * X[:most], root[:most] * Z[:most]),
    )


def _triangle(X: Array) -> Array:
    """R of a QR decomposition."""
    return np.asarray(np.linalg.qr(X, mode="r"))


def accumulate(
    recipe: Recipe, source: Source, reference: Reference, gaussian: bool, labels: NDArray[Any] | None = None
) -> Sums:
    """The second pass, see `Sums`.

    Parameters
    ----------
    recipe : Recipe
    source : Source
    reference : Reference
    gaussian : bool
        Whether the response is normal. Of others no cross-products are taken, and rows are not weighted.
    labels : ndarray, optional
        Those of a sample of subjects. With them products stay with the workers of a cluster, if there is one.

    Raises
    ------
    DesignError
        If a column is not finite; names the partition.
    """
    gathering, weight = Gathering(), 0.0
    largest: dict[str, float] = {}
    shifted: Array | None = None
    first: FirstRows | None = None
    R, S = np.zeros((0, len(reference.expert) + 1)), np.zeros((0, len(reference.random)))
    task = partial(sum_part, recipe=recipe, types=source.types, reference=reference, gaussian=gaussian)
    kept = None if labels is None else source.data.kept(task, source.columns)
    parts = source.data.mapped(task, source.columns) if kept is None else iter(kept.mapped(_without_subjects))
    for part in parts:
        if part is None:
            continue
        if kept is None:
            gathering.add(part.subjects)
        # R of all rows is that of the triangles so far and of the rows that come.
        R, S = _triangle(np.vstack([R, part.expert])), _triangle(np.vstack([S, part.random]))
        shifted = part.shifted if shifted is None else shifted
        first = part.first if first is None else first.merged(part.first)
        weight += part.weight
        largest = {what: max(value, largest.get(what, 0.0)) for what, value in part.largest.items()}
    if shifted is None or first is None:
        raise DesignError("no row is complete, where some were before; the data have changed meanwhile, fit again")
    if kept is None or labels is None:
        return Sums(gathering.whole(), R, shifted, S, weight, largest, reference, first)
    by_subject = _by_subject(kept, labels)
    known = by_subject.mapped(_without_products)
    return Sums(join(known), R, shifted, S, weight, largest, reference, first, by_subject)


def _without_subjects(part: PartSums | None) -> PartSums | None:
    """What the second pass finds of all rows of a part."""
    return None if part is None else replace(part, subjects=_first_of(part.subjects, 0))


def _first_of(subjects: BySubject, n: int, start: int = 0) -> BySubject:
    """Some consecutive subjects."""
    at = slice(start, n)
    sums, first, away = (
        tuple(values[at] for values in part) for part in (subjects.sums, subjects.first, subjects.away)
    )
    return BySubject(
        subjects.labels[at], sums, first, away, None if subjects.clusters is None else subjects.clusters[at]
    )


def _without_products(subjects: BySubject) -> BySubject:
    """Number of rows, gate and cluster of subjects."""
    return replace(subjects, sums=subjects.sums[:1])


def _by_subject(parts: OnWorkers, labels: NDArray[Any]) -> OnWorkers:
    """Subjects of all parts, each in one place: as many runs of neighbours as there are parts, of about equal size.

    How they are cut follows from a sample of their labels, so that it does not depend on the number of workers.
    """
    ordered, n = pd.Index(labels).sort_values(), len(parts.values)
    bounds = ordered[np.arange(1, n) * len(ordered) // n]
    return parts.exchanged(partial(_cut, bounds=bounds), join, n)


def _cut(part: PartSums | None, bounds: pd.Index) -> tuple[BySubject | None, ...]:
    """Subjects of a part between bounds; None where there are none."""
    if part is None:
        return (None,) * (len(bounds) + 1)
    ends = [*np.searchsorted(part.subjects.labels, bounds), len(part.subjects.labels)]
    runs = zip([0, *ends], ends, strict=False)
    return tuple(_first_of(part.subjects, end, start) if end > start else None for start, end in runs)
