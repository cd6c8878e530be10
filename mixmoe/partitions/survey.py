"""The first pass over partitioned data: what transforms and codings must know of all rows, and a sample of subjects.

What is found in one part is a record; records are merged in the order of the parts, here or wherever parts are read.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe.design import formulaic_engine
from mixmoe.design.aliases import warn_empty_terms
from mixmoe.design.checks import (
    check_columns,
    check_names,
    check_single,
    check_types,
    ordered_levels,
    response_levels,
    warn_spellings,
)
from mixmoe.design.complete_rows import Dropped, NothingLeftError, Rows, earliest, say_dropped, without_rows
from mixmoe.design.formulaic_engine import Materialized
from mixmoe.design.frame import FrameView, infinite, is_numeric, shown, view
from mixmoe.design.recipe import WHERE, Recipe, collect, formula_frame, needs_of, response_column
from mixmoe.design.terms import python_code
from mixmoe.design.transforms import other_rows_reason
from mixmoe.errors import ArgumentError, DesignError
from mixmoe.partitions.scan import Part, Partitions
from mixmoe.partitions.summaries import COLLECTORS, Summary, merge, summaries_of

SAMPLE_SUBJECTS = 2_000
SAMPLE_ROWS = 200_000
SAMPLE_UNITS = 20_000  # rows of the sample where each is a unit of its own
_MOST_LEVELS = 10_000


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
        Rows of a random sample of subjects, or of rows where there are none, in the order of the data.
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

    def transforms(self) -> dict[str, Mapping[str, Any]]:
        """States of the transforms in all rows, by the code of their calls."""
        return {code: one.state() for code, one in self.states.items()}


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


def typed(frame: pd.DataFrame, types: Mapping[str, Any]) -> pd.DataFrame:
    """The frame with some columns in the type that they have in all partitions together."""
    return frame.assign(**{name: frame[name].astype(dtype) for name, dtype in types.items()}) if types else frame


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


@dataclass(frozen=True, slots=True)
class Complete:
    """The complete rows of one part.

    Attributes
    ----------
    frame : FrameView
    rows : Rows or None
        None if there are none.
    dropped : Dropped
    """

    frame: FrameView
    rows: Rows | None
    dropped: Dropped


def complete_rows(recipe: Recipe, part: Part, types: Mapping[str, Any]) -> Complete:
    """The rows of a part that are complete in the columns of a recipe."""
    frame = view(typed(part.frame, types))
    try:
        rows = collect(frame, recipe, tuple(recipe.sections), required=True)
    except NothingLeftError as error:
        return Complete(frame, None, error.dropped)
    return Complete(frame, rows, rows.dropped)


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of the subjects whose labels have the smallest hashes: a random sample, whatever the order of the rows.

    Attributes
    ----------
    frame : DataFrame
    hashes : ndarray of int, shape (n,)
        Of the subject of each row, or of what the row holds where rows are units of their own.
    most : int
        Subjects, or such rows, of the sample.
    """

    frame: pd.DataFrame
    hashes: NDArray[np.uint64]
    most: int = SAMPLE_SUBJECTS

    @property
    def bound(self) -> np.uint64 | None:
        """Hash above which subjects cannot be in the sample; None if any can."""
        subjects, counts = np.unique(self.hashes, return_counts=True)
        # At least one subject stays, however many rows she has.
        most = max(1, min(self.most, int(np.searchsorted(np.cumsum(counts), SAMPLE_ROWS, side="right"))))
        return subjects[most - 1] if len(subjects) > most else None

    def joined(self, other: "Sample") -> "Sample":
        """The sample of the rows of both."""
        frame, hashes = pd.concat([self.frame, other.frame]), np.concatenate([self.hashes, other.hashes])
        bound = replace(self, frame=frame, hashes=hashes).bound
        near = np.ones(len(hashes), dtype=bool) if bound is None else hashes <= bound
        return replace(self, frame=frame[near], hashes=hashes[near])


def _sample_of(part: Part, frame: FrameView, rows: Rows, recipe: Recipe) -> Sample:
    """The sample of the rows of one part."""
    if recipe.formula.random is None:  # rows are units, and known by what they hold
        hashes = np.zeros(rows.n, dtype=np.uint64)
        for values in rows.columns.values():
            hashes = pd.util.hash_array(hashes ^ _hashed(values), categorize=False)
    else:
        hashes = _hashed(rows.keys[group_of(recipe)].iloc[rows.starts])[rows.codes]
    most = SAMPLE_UNITS if recipe.formula.random is None else SAMPLE_SUBJECTS
    bound = Sample(pd.DataFrame(), hashes, most).bound
    near = np.ones(rows.n, dtype=bool) if bound is None else hashes <= bound
    return Sample(_table(part, frame, rows, np.flatnonzero(near)), hashes[near], most)


def _hashed(values: pd.Series) -> NDArray[np.uint64]:
    """One hash for a value, whatever its type in a part: whole numbers may be floats where some are missing."""
    plain = values.to_numpy(dtype=float) if is_numeric(values) else values.to_numpy(dtype=object)
    return pd.util.hash_array(plain, categorize=False)


def _table(part: Part, frame: FrameView, rows: Rows, places: NDArray[np.intp]) -> pd.DataFrame:
    """Columns and keys of some complete rows, their labels saying in which partition they are."""
    labels = frame.labels.take(rows.position[places]).astype(str) + f" of {part.source}"
    columns = {name: values.array[places] for name, values in {**rows.columns, **rows.keys}.items()}
    return pd.DataFrame(columns, index=labels)


@dataclass(frozen=True, slots=True)
class Found:
    """What is found in some of the parts.

    Attributes
    ----------
    n_input, n : int
    dropped : Dropped
    states : mapping of str to Summary
    levels : mapping of str to set
        Per categorical factor, and of an ordinal response.
    witnesses : tuple of DataFrame
        Rows that hold a level first.
    types : Types
    sample : Sample or None
    """

    n_input: int
    n: int
    dropped: Dropped
    states: Mapping[str, Summary]
    levels: Mapping[str, Mapping[Any, int]]
    witnesses: pd.DataFrame | None
    types: "Types"
    sample: Sample | None


def look(part: Part, recipe: Recipe, columns: tuple[str, ...]) -> Found:
    """What is found in one part.

    Raises
    ------
    DesignError
        If a term cannot be computed or a number is infinite; names the partition.
    """
    with part.named():
        here = complete_rows(recipe, part, {})
        types = Types.of(here.frame, columns)
        if here.rows is None:
            return _nothing(here.frame.n_rows, here.dropped, types)
        for name, values in here.rows.columns.items():  # before infinite numbers are in any mean
            check_single(values, name)
            wrong = infinite(values)
            if wrong is not None:
                i = earliest(wrong, here.rows)
                raise DesignError(
                    f"column {name!r} is {values.iloc[i]} in row {shown(here.frame.labels[here.rows.position[i]])}; "
                    "values must be finite, so correct them or set them missing"
                )
        context = {**recipe.context, **COLLECTORS}
        found = formulaic_engine.survey(formula_frame(here.rows, recipe), recipe.sections, context)
        levels = {code: dict(zip(seen, seen.index, strict=True)) for code, seen in found.levels.items()}
        if recipe.response_kind == "ordinal":
            column = str(response_column(recipe.formula))
            seen = (
                here.rows.columns[column].reset_index(drop=True).drop(index=pd.Index(found.bad_rows)).drop_duplicates()
            )
            if len(seen):
                ordered_levels(seen, column)  # refuses levels without an order
            levels[f"response {column}"] = dict(zip(seen, seen.index, strict=True))
        _check_levels(levels)
    states = summaries_of(found.states)
    try:
        kept = without_rows(here.rows, found.bad_rows, found.bad_terms, here.frame.n_rows)
    except NothingLeftError as error:
        # Means of one term are over the rows where others are not numbers too, as they are in memory.
        return replace(_nothing(here.frame.n_rows, error.dropped, types), states=states)
    first = np.unique([row for rows in levels.values() for row in rows.values()]).astype(np.intp)
    place = {int(row): i for i, row in enumerate(first)}
    return Found(
        n_input=here.frame.n_rows,
        n=kept.n,
        dropped=kept.dropped,
        states=states,
        levels={code: {level: place[int(row)] for level, row in rows.items()} for code, rows in levels.items()},
        witnesses=_table(part, here.frame, here.rows, first) if len(first) else None,
        types=types,
        sample=_sample_of(part, here.frame, kept, recipe),
    )


def _nothing(n_rows: int, dropped: Dropped, types: "Types") -> Found:
    """What is found in a part without complete rows."""
    return Found(n_rows, 0, dropped, {}, {}, None, types, None)


def survey(recipe: Recipe, source: Source) -> Survey:
    """The first pass, see `Survey`.

    Raises
    ------
    DesignError
        If no row is complete, or a term cannot be computed; names the partition.
    """
    n_input = n = 0
    dropped = Dropped()
    states: dict[str, Summary] = {}
    levels: dict[str, set[Any]] = {}
    witnesses: list[pd.DataFrame] = []
    types = Types()
    sample: Sample | None = None
    for part in source.data.mapped(partial(look, recipe=recipe, columns=source.columns), source.columns):
        n_input, n, dropped = n_input + part.n_input, n + part.n, dropped + part.dropped
        states |= merge(states, part.states)
        types = types.merged(part.types)
        new = {row for code, seen in part.levels.items() for x, row in seen.items() if x not in levels.get(code, ())}
        for code, seen in part.levels.items():
            levels.setdefault(code, set()).update(seen)
        _check_levels(levels)
        if part.witnesses is not None and new:
            witnesses.append(part.witnesses.iloc[sorted(new)])
        if part.sample is not None:
            sample = part.sample if sample is None else sample.joined(part.sample)
    if sample is None:
        raise DesignError(
            f"no row of the {n_input} of the data is complete and counts (missing values: {str(dropped) or 'none'}); "
            "leave out columns that are missing or fill them in"
        )
    known = types.found()
    # In the order in which rows in memory count them: columns first, terms behind.
    places = {name: i for i, name in enumerate(source.columns)}
    by_column = sorted(dropped.by_column, key=lambda item: places.get(item[0], len(places)))
    return Survey(
        n_input=n_input,
        n=n,
        dropped=replace(dropped, by_column=tuple(by_column)),
        states=states,
        witnesses=typed(pd.concat([*witnesses, sample.frame.iloc[:0]]), known),
        sample=typed(sample.frame, known),
        types=known,
    )


def _check_levels(levels: Mapping[str, Collection[Any]]) -> None:
    for code, found in levels.items():
        if len(found) > _MOST_LEVELS:
            raise DesignError(
                f"the category {code!r} has more than {_MOST_LEVELS} levels, such as "
                f"{', '.join(shown(level) for level in list(found)[:3])}; true categories have fewer; convert numbers "
                "read as text"
            )


@dataclass(frozen=True, slots=True)
class Types:
    """What columns are in several parts together, where one alone does not tell.

    Attributes
    ----------
    kinds : mapping of str to frozenset of str
        NumPy kinds of columns that are no categories.
    categories : mapping of str to tuple of CategoricalDtype
    """

    kinds: Mapping[str, frozenset[str]] = field(default_factory=dict)
    categories: Mapping[str, tuple[pd.CategoricalDtype, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, frame: FrameView, columns: tuple[str, ...]) -> "Types":
        """The columns of one part."""
        types = {name: frame.column(name).dtype for name in columns}
        categories = {name: (dtype,) for name, dtype in types.items() if isinstance(dtype, pd.CategoricalDtype)}
        return cls({name: frozenset(dtype.kind) for name, dtype in types.items() if name not in categories}, categories)

    def merged(self, other: "Types") -> "Types":
        """The columns of both."""
        kinds = {
            n: self.kinds.get(n, frozenset()) | other.kinds.get(n, frozenset()) for n in {**self.kinds, **other.kinds}
        }
        named = {**self.categories, **other.categories}
        both = {n: (*self.categories.get(n, ()), *other.categories.get(n, ())) for n in named}
        return Types(kinds, {name: tuple(dict.fromkeys(found)) for name, found in both.items()})

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
    warn_spellings(rows, recipe, whole=False)
    used = formula_frame(rows, recipe)
    built = formulaic_engine.materialize(used, recipe.sections, recipe.context, states)
    check_columns(built, recipe)
    check_names(built)
    numeric = frozenset(str(name) for name in used if name in rows.columns and is_numeric(used[name]))
    whole = {name: np.ones(len(built.names[name]), dtype=bool) for name in ("expert", "gate", "sigma")}
    warn_empty_terms(recipe, built)
    # Every level of an ordinal response has a witness.
    levels = response_levels(recipe, rows, frame)
    return Coded(replace(recipe, specs=built.specs, numeric=numeric, kept=whole, levels=levels), built)


def surveyed(recipe: Recipe, data: Partitions) -> tuple[Survey, Coded, Source]:
    """The first pass over data: what it finds, the recipe that follows from it, and the source of further passes.

    Parameters
    ----------
    recipe : Recipe
        By rows, see `rowwise`.
    data : Partitions

    Raises
    ------
    DesignError

    Warns
    -----
    DroppedRowsWarning, CollinearityWarning
    """
    source = source_of(data, recipe)
    found = survey(recipe, source)
    say_dropped(found.dropped, found.n_input, data.columns)
    made = coded(recipe, found.witnesses, found.sample, found.transforms())
    return found, made, replace(source, types=found.types)


@dataclass(frozen=True, slots=True)
class Elementwise:
    """A function of single values, applied to columns; one of `numpy.vectorize` does not travel once it was called.

    Attributes
    ----------
    function : callable
    otypes : str or None
        Types of its results, as `numpy.vectorize` has them.
    """

    function: Callable[..., Any]
    otypes: str | None

    def __call__(self, *columns: Any) -> Any:
        """The values of each row."""
        return np.vectorize(self.function, otypes=self.otypes)(*columns)


def rowwise(recipe: Recipe) -> Recipe:
    """The recipe, if its terms can be computed row by row, with functions that can be sent to other processes.

    Raises
    ------
    ArgumentError
        For another engine than formulaic.
    DesignError
        For a term whose values in a row depend on other rows in ways that partitions cannot tell; says what to write.
    """
    if recipe.engine != "formulaic":
        raise ArgumentError(f"partitioned data need formula_engine='formulaic', got {recipe.engine!r}")
    for section, terms in recipe.sections.items():
        for code in python_code(terms):
            reason = other_rows_reason(code, recipe.context)
            if reason is not None:
                raise DesignError(
                    f"{WHERE[section]} has {code!r}, which cannot be computed from partitions of the data: {reason}"
                )
    own = {name: f for name, f in recipe.context.items() if isinstance(f, np.vectorize)}
    return replace(recipe, context={**recipe.context, **{n: Elementwise(f.pyfunc, f.otypes) for n, f in own.items()}})
