"""The design of partitioned data, in two passes.

1. Survey: levels of categories, means, ranges and quantiles that transforms need, missing values, and the rows of a
   random sample of subjects. From levels and sample comes the recipe, by which any rows become columns.
2. Moments: cross-products of each subject's columns, which add over rows, so that a subject may be spread over
   partitions; triangles of all rows, for redundant columns and working coordinates.

Columns are those that the design of all rows in memory has, but for the rounding of merged means.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.design import formulaic_engine
from mixmoe.design.checks import aliases, check_columns, check_finite, check_names, check_types, dependent
from mixmoe.design.complete_rows import Dropped, NothingLeftError, Rows, earliest, without_rows
from mixmoe.design.design import (
    Design,
    DesignNames,
    auxiliary,
    check_effects,
    check_size,
    independent,
    offset_of,
    replay,
    warn_dropped,
    warn_empty_terms,
)
from mixmoe.design.formula import MoEFormula
from mixmoe.design.formulaic_engine import Materialized
from mixmoe.design.frame import FrameView, infinite, is_numeric, shown, view
from mixmoe.design.recipe import Recipe, collect, formula_frame, make_recipe, needs_of
from mixmoe.errors import DesignError
from mixmoe.partitions.rowwise import check_rowwise
from mixmoe.partitions.scan import Part, Partitions
from mixmoe.partitions.subjects import BySubject, Gathering, packed_products
from mixmoe.partitions.summaries import COLLECTORS, Summary, first_rows, merge

SAMPLE_SUBJECTS = 2_000
SAMPLE_ROWS = 200_000
_MOST_LEVELS = 10_000
_SECTIONS = ("expert", "gate", "random", "sigma")
_TINY = 1e-8  # of the size of a column, what is left of it beside others of the sample below which it counts as none
_VARIES = 1e-9  # of the largest value, as in designs in memory


@dataclass(frozen=True, slots=True)
class Survey:
    """What the first pass finds.

    Attributes
    ----------
    n_input, n : int
        Rows of the data, and those that count.
    dropped : Dropped
    states : mapping of str to Summary
        By the code of a call.
    witnesses : DataFrame
        Rows that hold a level of a category first.
    sample : DataFrame
        Rows of a random sample of subjects, in the order of the data.
    types : mapping of str to dtype
        What columns must become, in every partition, to be what they are in all rows together.
    """

    n_input: int
    n: int
    dropped: Dropped
    states: Mapping[str, Summary]
    witnesses: pd.DataFrame
    sample: pd.DataFrame
    types: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """Partitions with the columns in use.

    Attributes
    ----------
    data : Partitions
    columns : tuple of str
    types : mapping of str to dtype
        See `Survey`.
    """

    data: Partitions
    columns: tuple[str, ...]
    types: Mapping[str, Any] = field(default_factory=dict)

    def chunks(self, recipe: Recipe) -> Iterator["Chunk"]:
        """The complete rows of each part; parts without any have none."""
        for part in self.data.parts(self.columns):
            with part.named():
                frame = view(_typed(part.frame, self.types))
                try:
                    rows = collect(frame, recipe, tuple(recipe.sections), required=True)
                except NothingLeftError as error:
                    chunk = Chunk(part, frame, None, error.dropped)
                else:
                    chunk = Chunk(part, frame, rows, rows.dropped)
            yield chunk


def _typed(frame: pd.DataFrame, types: Mapping[str, Any]) -> pd.DataFrame:
    """The frame with some columns in the type that they have in all partitions together."""
    return frame.assign(**{name: frame[name].astype(dtype) for name, dtype in types.items()}) if types else frame


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one part.

    Attributes
    ----------
    part : Part
    frame : FrameView
    rows : Rows or None
    dropped : Dropped
    """

    part: Part
    frame: FrameView
    rows: Rows | None
    dropped: Dropped

    def table(self, rows: Rows) -> pd.DataFrame:
        """Columns and keys of complete rows, their labels saying in which partition they are."""
        labels = self.frame.labels.take(rows.position).astype(str) + f" of {self.part.source}"
        return pd.DataFrame({**rows.columns, **rows.keys}, copy=False).set_axis(labels)


def source_of(data: Partitions, recipe: Recipe) -> Source:
    """The partitions with the columns that a recipe uses.

    Raises
    ------
    DesignError
        If a column is missing.
    """
    places = {name: (i,) for i, name in enumerate(data.columns)}
    needs = needs_of(FrameView({}, places, 0, pd.RangeIndex(0)), recipe, tuple(recipe.sections), required=True)
    return Source(data, tuple(need.name for need in needs))


def group_of(recipe: Recipe) -> str:
    """Column of the subjects.

    Raises
    ------
    DesignError
        If the formula names none.
    """
    if recipe.formula.random is None:
        raise DesignError(
            f"{recipe.formula.text!r} has no section re:, so that each row is a unit of its own and cross-products by "
            "unit would be longer than the data; name subjects, as in re: (0 | id), or pass a frame of the rows"
        )
    return recipe.formula.random.group


def survey(recipe: Recipe, source: Source) -> Survey:
    """The first pass, see `Survey`.

    Raises
    ------
    DesignError
        If no row is complete, or a term cannot be computed; names the partition.
    """
    tally, types, sample = _Tally(), _Types(), _Sample(group_of(recipe))
    states: dict[str, Summary] = {}
    levels: dict[str, set[Any]] = {}
    witnesses: list[pd.DataFrame] = []
    context = {**recipe.context, **COLLECTORS}
    for chunk in source.chunks(recipe):
        types.see(chunk.frame, source.columns)
        rows = chunk.rows
        if rows is None:
            tally.see(chunk, None, chunk.dropped)
            continue
        with chunk.part.named():
            _check_finite(rows, chunk.frame)
            found = formulaic_engine.survey(formula_frame(rows, recipe), recipe.sections, context)
            states |= merge(states, found.states)
            new = [i for code, seen in found.levels.items() for i in first_rows(seen, levels.setdefault(code, set()))]
            _check_levels(levels)
        if new:
            witnesses.append(chunk.table(rows).iloc[sorted(set(new))])
        try:
            kept = without_rows(rows, found.bad_rows, found.bad_terms, chunk.frame.n_rows)
        except NothingLeftError as error:
            tally.see(chunk, None, error.dropped)
            continue
        tally.see(chunk, kept, kept.dropped)
        sample.add(chunk, kept)
    n_input, n, dropped = tally.n_input, tally.n, tally.dropped
    if not n:
        raise DesignError(
            f"no row of the {n_input} of the data is complete and counts "
            f"({', '.join(f'{name}: {count} missing' for name, count in dropped.items()) or 'there are none'}); leave "
            "out columns that are missing or fill them in"
        )
    frame = sample.frame()
    known = types.found()
    return Survey(
        n_input=n_input,
        n=n,
        dropped=Dropped(tally.n_dropped, tuple(dropped.items())),
        states=states,
        witnesses=_typed(pd.concat([*witnesses, frame.iloc[:0]]), known),
        sample=_typed(frame, known),
        types=known,
    )


@dataclass(slots=True)
class _Tally:
    """How many rows there were, counted, and missed what."""

    n_input: int = 0
    n: int = 0
    n_dropped: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def see(self, chunk: Chunk, kept: Rows | None, lost: Dropped) -> None:
        """The rows of one part."""
        self.n_input += chunk.frame.n_rows
        self.n += 0 if kept is None else kept.n
        self.n_dropped += lost.n_rows
        for name, count in lost.by_column:
            self.dropped[name] = self.dropped.get(name, 0) + count


def _check_finite(rows: Rows, frame: FrameView) -> None:
    """Refuse infinite numbers, before they are in any mean."""
    for name, values in rows.columns.items():
        wrong = infinite(values)
        if wrong is not None:
            i = earliest(wrong, rows)
            raise DesignError(
                f"column {name!r} is {values.iloc[i]} in row {shown(frame.labels[rows.position[i]])}; values must be "
                "finite, so correct them or set them missing"
            )


def _check_levels(levels: Mapping[str, set[Any]]) -> None:
    for code, found in levels.items():
        if len(found) > _MOST_LEVELS:
            raise DesignError(
                f"the category {code!r} has more than {_MOST_LEVELS} levels, such as "
                f"{', '.join(shown(level) for level in list(found)[:3])}; true categories have fewer; convert numbers "
                "read as text"
            )


class _Types:
    """What columns are in all partitions together, where one alone does not tell."""

    def __init__(self) -> None:
        self.kinds: dict[str, set[str]] = {}
        self.categories: dict[str, list[pd.CategoricalDtype]] = {}
        self.missing: set[str] = set()

    def see(self, frame: FrameView, columns: tuple[str, ...]) -> None:
        """The columns of one part."""
        for name in columns:
            values = frame.column(name)
            if isinstance(values.dtype, pd.CategoricalDtype):
                known = self.categories.setdefault(name, [])
                if values.dtype not in known:
                    known.append(values.dtype)
                continue
            self.kinds.setdefault(name, set()).add(values.dtype.kind)
            if values.dtype.kind in "bO" and values.hasnans:
                self.missing.add(name)

    def found(self) -> dict[str, Any]:
        """Types by column.

        Whole numbers with missing values are floats in pandas, and truth values with missing ones are objects: where
        one partition has some, all partitions have that type.
        """
        out: dict[str, Any] = {}
        for name, kinds in self.kinds.items():
            if kinds >= {"i", "f"} or kinds >= {"u", "f"}:
                out[name] = np.dtype(float)
            elif kinds >= {"b", "O"}:
                out[name] = np.dtype(object)
        for name, known in self.categories.items():
            # As pandas concatenates: one list of categories stays, with its order; different ones become plain values.
            if len(known) == 1 and name not in self.kinds:
                out[name] = known[0]
            elif any(dtype.ordered for dtype in known):
                raise DesignError(
                    f"the ordered category {name!r} has different levels in different partitions, so that their order "
                    "is not known; write all partitions with one list of levels"
                )
            else:
                out[name] = known[0].categories.dtype
        return out


class _Sample:
    """Rows of the subjects whose labels have the smallest hashes: a random sample, whatever the order of the rows."""

    def __init__(self, group: str) -> None:
        self.group = group
        self.parts: list[pd.DataFrame] = []
        self.hashes: list[NDArray[np.uint64]] = []
        self.bound: np.uint64 | None = None

    def add(self, chunk: Chunk, rows: Rows) -> None:
        """Rows of one more partition."""
        labels = rows.keys[self.group].iloc[rows.starts]
        hashes = pd.util.hash_pandas_object(labels, index=False, categorize=False).to_numpy()[rows.codes]
        near = np.ones(rows.n, dtype=bool) if self.bound is None else hashes <= self.bound
        if near.any():
            self.parts.append(chunk.table(_taken(rows, near)))
            self.hashes.append(hashes[near])
            self._prune()

    def _prune(self) -> None:
        hashes = np.concatenate(self.hashes)
        subjects, counts = np.unique(hashes, return_counts=True)
        # At least one subject stays, however many rows she has.
        most = max(1, min(SAMPLE_SUBJECTS, int(np.searchsorted(np.cumsum(counts), SAMPLE_ROWS, side="right"))))
        if len(subjects) <= most:
            return
        self.bound = subjects[most - 1]
        self.parts = [part[mine <= self.bound] for part, mine in zip(self.parts, self.hashes, strict=True)]
        self.hashes = [mine[mine <= self.bound] for mine in self.hashes]

    def frame(self) -> pd.DataFrame:
        """The rows, in the order in which they came."""
        return pd.concat(self.parts)


def _taken(rows: Rows, near: NDArray[np.bool_]) -> Rows:
    """Columns, keys and places of some rows; their subjects are not needed."""
    columns = {name: values[near] for name, values in rows.columns.items()}
    keys = {name: values[near] for name, values in rows.keys.items()}
    return replace(rows, columns=columns, keys=keys, position=rows.position[near])


@dataclass(frozen=True, slots=True)
class Coded:
    """How rows become columns.

    Attributes
    ----------
    recipe : Recipe
        With the codings and transforms of all rows; all columns are kept.
    built : Materialized
        Of witnesses and sample.
    """

    recipe: Recipe
    built: Materialized


def coded(recipe: Recipe, witnesses: pd.DataFrame, sample: pd.DataFrame, states: Mapping[str, Any]) -> Coded:
    """Codings and transforms of all rows.

    Parameters
    ----------
    recipe : Recipe
    witnesses, sample : DataFrame
        See `Survey`.
    states : mapping of str to mapping
        States of the transforms in all rows, by the code of their calls.
    """
    together = pd.concat([witnesses, sample]) if len(witnesses) else sample
    frame = view(together)
    rows = collect(frame, recipe, tuple(recipe.sections), required=True)
    check_types(rows, frame, recipe, tuple(recipe.sections))
    used = formula_frame(rows, recipe)
    built = formulaic_engine.materialize(used, recipe.sections, recipe.context, states)
    check_columns(built, recipe)
    check_names(built)
    numeric = frozenset(name for name in used if name in rows.columns and is_numeric(used[name]))
    whole = {name: np.ones(len(built.names[name]), dtype=bool) for name in ("expert", "gate", "sigma")}
    warn_empty_terms(recipe, built)
    return Coded(replace(recipe, specs=built.specs, numeric=numeric, kept=whole), built)


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
    return Reference(np.linalg.solve(A, inside), scale if scale > _TINY * size else max(size, 1.0), A, B)


def _triangle_of(X: Array) -> Array:
    """R of the columns over the root of their number, with a diagonal that is never zero."""
    n, p = X.shape
    size = np.sqrt((X * X).sum(axis=0) / max(n, 1))
    size[size == 0] = 1.0
    R = np.zeros((p, p))
    found = np.linalg.qr(X, mode="r") / np.sqrt(max(n, 1)) if n else R[:0]
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
        Sums: number of rows, log weights, then products of working response, expert and random columns, see
        `packed_products`. Constant: columns of the gate.
    expert : ndarray, shape (p + 1, p + 1)
        R of expert columns and response near the reference, rows times the roots of their weights.
    shifted : ndarray, shape (p, p)
        What the columns of the first are multiplied by so that those behind an intercept are near zero.
    random : ndarray, shape (q, q)
        R of the random columns.
    weight : float
        Sum of the weights of the rows.
    largest : float
        Largest response.
    reference : Reference
    """

    subjects: BySubject
    expert: Array
    shifted: Array
    random: Array
    weight: float
    largest: float
    reference: Reference


def accumulate(recipe: Recipe, source: Source, reference: Reference) -> Sums:
    """The second pass, see `Sums`.

    Raises
    ------
    DesignError
        If a column is not finite; names the partition.
    """
    gathering, p, q = Gathering(), len(reference.expert), len(reference.random)
    R, S = np.zeros((0, p + 1)), np.zeros((0, q))
    shift: Array | None = None
    weight = largest = 0.0
    for chunk in source.chunks(recipe):
        if chunk.rows is None:
            continue
        with chunk.part.named():
            built = formulaic_engine.rematerialize(
                formula_frame(chunk.rows, recipe), recipe.specs, recipe.sections, recipe.context
            )
            if len(built.bad_rows) == chunk.rows.n:
                continue
            rows = without_rows(chunk.rows, built.bad_rows, built.bad_terms, chunk.frame.n_rows)
            check_finite(built, rows, chunk.frame, recipe)
            beside = auxiliary(recipe, rows, chunk.frame)
        y, X, Z = built.matrices["response"][:, 0], built.matrices["expert"], built.matrices["random"]
        weights, offset = beside.get("weights", np.ones(rows.n)), beside.get("offset", np.zeros(rows.n))
        largest = max(largest, float(np.abs(y).max()))
        shift = _shift(built, X[0]) if shift is None else shift
        root = np.sqrt(weights)
        near = np.empty((1 + p + q, len(y)))
        near[0] = (y - offset - X @ reference.center) / reference.scale
        near[1 : 1 + p] = np.linalg.solve(reference.expert.T, X.T)
        near[1 + p :] = np.linalg.solve(reference.random.T, Z.T)
        near *= root
        R = np.linalg.qr(np.vstack([R, np.column_stack([near[1 : 1 + p].T, near[0]])]), mode="r")
        S = np.linalg.qr(np.vstack([S, near[1 + p :].T]), mode="r")
        weight += float(weights.sum())
        starts = rows.starts
        counts = np.diff(np.append(starts, rows.n)).astype(float)
        log_weight = np.add.reduceat(np.log(weights), starts)
        gate = built.matrices["gate"].T
        first = gate[:, starts]
        away = np.maximum.reduceat(np.abs(gate - np.repeat(first, counts.astype(int), axis=1)), starts, axis=1)
        labels = pd.Index(rows.keys[group_of(recipe)].iloc[starts])
        sums = (counts, log_weight, *packed_products(near, starts))
        gathering.add(BySubject(labels, sums, tuple(first), tuple(away)))
    return Sums(gathering.whole(), R, shift if shift is not None else np.eye(p), S, weight, largest, reference)


def _shift(built: Materialized, first: Array) -> Array:
    """T with X T the columns behind an intercept less their first values.

    They then keep the digits in which they differ. See `mixmoe.design.checks.aliases`.
    """
    T = np.eye(len(first))
    if len(first) and built.names["expert"][0] == "Intercept":
        T[0, 1:] = -first[1:]
    return T


@dataclass(frozen=True, slots=True)
class StreamedDesign:
    """What is known of the design of partitioned data: all but the rows, of which it has a sample.

    Attributes
    ----------
    formula : MoEFormula
    names : DesignNames
    recipe : Recipe
    n, n_input : int
        Rows that count, and those of the data.
    dropped : Dropped
    counts : ndarray of int, shape (N,)
        Rows of each subject.
    labels : Index, length N
        Of the subjects, sorted.
    gate : ndarray, shape (N, m)
    common, expert_const : ndarray of bool, shape (p,)
    gate_const : ndarray of bool, shape (m,)
    sample : Design
        Of all rows of some subjects, drawn at random.
    witnesses : DataFrame
        Rows that hold a level of a category first, which the sample may lack.
    states : mapping of str to mapping
        Of the transforms in all rows, by the code of their calls.
    """

    formula: MoEFormula
    names: DesignNames
    recipe: Recipe
    n: int
    n_input: int
    dropped: Dropped
    counts: NDArray[np.intp]
    labels: pd.Index
    gate: Array
    common: NDArray[np.bool_]
    expert_const: NDArray[np.bool_]
    gate_const: NDArray[np.bool_]
    sample: Design
    witnesses: pd.DataFrame = field(repr=False)
    states: Mapping[str, Mapping[str, Any]] = field(repr=False)
    aux: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    smooths: tuple[Any, ...] = ()
    response_levels: None = None

    @property
    def n_units(self) -> int:
        """Subjects."""
        return len(self.counts)

    @property
    def n_uncounted(self) -> int:
        """Complete rows that were left out because their weight is zero."""
        return self.n_input - self.dropped.n_rows - self.n

    def for_new(self, data: Any, *, response: bool = False, without: Any = ()) -> Design:
        """The same columns from other data, see `Design.for_new`."""
        return self.sample.for_new(data, response=response, without=without)


@dataclass(frozen=True, slots=True)
class Streamed:
    """A design of partitioned data, and what its likelihood is made of.

    Attributes
    ----------
    design : StreamedDesign
    sums : Sums
    source : Source
    """

    design: StreamedDesign
    sums: Sums
    source: Source


def stream(
    formula: MoEFormula, data: Partitions, context: Mapping[str, Any] | None, aux: Mapping[str, str]
) -> Streamed:
    """The design of partitioned data, in two passes.

    Parameters
    ----------
    formula : MoEFormula
    data : Partitions
    context : mapping, optional
        Functions, which must be ufuncs or `numpy.vectorize`d, and constants that the formula may use.
    aux : mapping of str to str
        Columns of offset and weights.

    Raises
    ------
    DesignError
        If the data do not fit the formula, or a term cannot be computed from partitions.

    Warns
    -----
    DroppedRowsWarning, CollinearityWarning
    """
    recipe = make_recipe(formula, context, "formulaic", "numeric", aux, True, smooths=True)
    check_rowwise(recipe)
    source = source_of(data, recipe)
    found = survey(recipe, source)
    warn_dropped(found.dropped, found.n_input, data.columns)
    states = {code: one.state() for code, one in found.states.items()}
    made = coded(recipe, found.witnesses, found.sample, states)
    source = replace(source, types=found.types)
    near = replay(made.recipe, found.sample, response=True)
    y = np.asarray(near.response) - offset_of(near)
    sums = accumulate(made.recipe, source, reference_of(y, near.expert, near.random))
    check_size(near.names.response, sums.largest)
    counts = sums.subjects.sums[0].astype(np.intp)
    check_effects(near.names.random, dependent(*_triangles(sums.random, sums.reference.random)), int(counts.max()))
    gate = _baseline(sums.subjects, made.built.names["gate"], group_of(recipe))
    expert = dependent(*_triangles(sums.expert[:, :-1], sums.reference.expert, sums.shifted))
    kept = {
        **made.recipe.kept,
        "expert": independent("expert", expert, made.built.names["expert"]),
        "gate": independent("gate", aliases(gate), made.built.names["gate"]),
    }
    recipe = replace(made.recipe, kept=kept)
    sample = replay(recipe, found.sample, response=True)
    design = StreamedDesign(
        formula=formula,
        names=sample.names,
        recipe=recipe,
        n=int(counts.sum()),
        n_input=found.n_input,
        dropped=found.dropped,
        counts=counts,
        labels=sums.subjects.labels,
        gate=gate if kept["gate"].all() else gate[:, kept["gate"]],
        common=sample.common,
        expert_const=sample.expert_const,
        gate_const=sample.gate_const,
        sample=sample,
        witnesses=found.witnesses,
        states=states,
    )
    return Streamed(design, sums, source)


def _triangles(R: Array, reference: Array, shifted: Array | None = None) -> tuple[Array, Array]:
    """Triangles of the columns near zero, and of the columns as they are, from that of the columns near a reference."""
    # The product of the small matrices first: they cancel, so that the digits of the rows are not touched.
    return R @ (reference if shifted is None else reference @ shifted), R @ reference


def _baseline(subjects: BySubject, names: tuple[str, ...], group: str) -> Array:
    """The gate columns of each subject, shape (N, m), after checking that they are constant there."""
    for name, values, away in zip(names, subjects.first, subjects.away, strict=True):
        varies = away > _VARIES * np.abs(values).max()
        if varies.any():
            i = int(varies.argmax())
            raise DesignError(
                f"the gate covariate {name!r} varies within subject {shown(subjects.labels[i])}, by {away[i]:g} from "
                f"her first row on; the gate routes whole subjects, so it must be constant within {group!r}; use a "
                f"baseline value in all rows, or move {name!r} to the expert part"
            )
    return np.column_stack(subjects.first) if names else np.empty((len(subjects.labels), 0))


def units_of(design: StreamedDesign) -> pd.DataFrame:
    """Label, number of rows and gate columns of each subject, as files hold them."""
    gate = {f"gate{j}": column for j, column in enumerate(design.gate.T)}
    return pd.DataFrame({"label": design.labels, "rows": design.counts, **gate})


@dataclass(frozen=True, slots=True)
class Kept:
    """What a file holds of a streamed design.

    Attributes
    ----------
    rows : DataFrame
        Witnesses, then the sample.
    units : DataFrame
        See `units_of`.
    dropped : Dropped
    known : mapping
        Numbers of rows, columns that are kept, states of transforms, and how many rows are witnesses.
    """

    rows: pd.DataFrame
    units: pd.DataFrame
    dropped: Dropped
    known: Mapping[str, Any]


def restored(
    formula: MoEFormula, saved: Kept, context: Mapping[str, Any] | None, aux: Mapping[str, str]
) -> StreamedDesign:
    """The design of a saved fit from what its file holds; other parameters as in `stream`."""
    known = saved.known
    recipe = make_recipe(formula, context, "formulaic", "numeric", aux, True)
    n_witnesses = int(known["n_witnesses"])
    witnesses, rows = saved.rows.iloc[:n_witnesses], saved.rows.iloc[n_witnesses:]
    made = coded(recipe, witnesses, rows, known["states"])
    kept = {name: np.array(mask, dtype=bool) for name, mask in known["kept"].items()}
    recipe = replace(made.recipe, kept=kept)
    sample = replay(recipe, rows, response=True)
    gate = saved.units.drop(columns=["label", "rows"]).to_numpy(dtype=float)
    return StreamedDesign(
        formula=formula,
        names=sample.names,
        recipe=recipe,
        n=int(known["n"]),
        n_input=int(known["n_input"]),
        dropped=saved.dropped,
        counts=saved.units["rows"].to_numpy(dtype=np.intp),
        labels=pd.Index(saved.units["label"], name=None),
        gate=gate,
        common=sample.common,
        expert_const=sample.expert_const,
        gate_const=sample.gate_const,
        sample=sample,
        witnesses=witnesses,
        states=known["states"],
    )
