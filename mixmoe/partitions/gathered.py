"""The third pass: rows of all subjects, gathered from the partitions into files, for likelihoods that need them.

A subject may be spread over partitions. How many rows each has is known from the second pass, so that the place of
every row among those sorted by subject is known as it comes; her rows stay in the order of the data.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.design.aliases import aliases, independent
from mixmoe.design.design import Design, assembled
from mixmoe.design.recipe import Recipe
from mixmoe.errors import ArgumentError, DesignError
from mixmoe.partitions.moments import columns_of_part
from mixmoe.partitions.scan import ROWS_AT_ONCE, Part
from mixmoe.partitions.survey import Source

RUN_ROWS = 100_000  # rows that are in memory at a time where arrays are made from files
_OF_UNITS = ("starts", "counts")  # of records of rows, arrays that go by subject
Record = TypeVar("Record")


def on_disk(shape: tuple[int, ...], dtype: Any = float) -> NDArray[Any]:
    """An array in a file without a name, which is gone with the last view of the array.

    Raises
    ------
    ArgumentError
        If the folder of temporary files has no room for it.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not size:
        return np.empty(shape, dtype)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size > free:  # told before: a file that cannot grow where it is mapped ends the process
        raise ArgumentError(
            f"the rows in use take {size / 2**30:.3g} GiB in a temporary file, and {folder!r} has {free / 2**30:.3g} "
            "free; name a folder with room in the environment variable TMPDIR"
        )
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype, "w+", shape=shape).view(np.ndarray)


@dataclass(frozen=True, slots=True)
class PartRows:
    """The rows of one part.

    Attributes
    ----------
    n_input : int
        Rows of the part, complete or not.
    design : Design or None
        None if no row is complete.
    """

    n_input: int
    design: Design | None


def rows_of_part(part: Part, recipe: Recipe, types: Mapping[str, Any], check: Callable[[Design], None]) -> PartRows:
    """The rows of one part, after checking them.

    Raises
    ------
    DesignError
        As `check` says; names the partition.
    """
    with part.named():
        found = columns_of_part(part, recipe, types)
        if found is None:
            return PartRows(len(part.frame), None)
        design = assembled(recipe, found.built, found.rows, found.frame)
        check(design)
    return PartRows(len(part.frame), replace(design, frame=design.frame.iloc[:0]))


def gather(
    recipe: Recipe, source: Source, sample: Design, units: pd.DataFrame, check: Callable[[Design], None]
) -> Design:
    """The rows of all subjects, sorted by subject, whose arrays by row lie in files.

    Parameters
    ----------
    recipe : Recipe
    source : Source
    sample : Design
        What is not of rows is taken from it.
    units : DataFrame
        Columns label and rows, the number of these, of each subject, sorted by label.
    check : callable
        Refuses rows of a part; picklable.

    Returns
    -------
    Design
        Without a frame; the label of a row is its place in the data, counted over all partitions. Its recipe keeps the
        columns of the standard deviation that are no combination of others.

    Raises
    ------
    DesignError
        If a row is refused, or the data are not those of the second pass.
    """
    counts, labels = units["rows"].to_numpy(dtype=np.intp), pd.Index(units["label"])
    starts, n = np.cumsum(counts) - counts, int(counts.sum())
    p, q = sample.expert.shape[1], sample.random.shape[1]
    # Columns one after the other, as likelihoods read them.
    y, X, Z, V = on_disk((n,)), on_disk((p, n)), on_disk((q, n)), on_disk((sample.sigma.shape[1], n))
    position, codes = on_disk((n,), np.intp), on_disk((n,), np.intp)
    aux = {name: on_disk((n,)) for name in recipe.aux if name != "cluster"}
    filled, first = np.zeros(counts.size, dtype=np.intp), 0
    task = partial(rows_of_part, recipe=recipe, types=source.types, check=check)
    for found in source.data.mapped(task, source.columns, ROWS_AT_ONCE):
        part, before, first = found.design, first, first + found.n_input
        if part is None:
            continue
        who = labels.get_indexer(pd.Index(part.labels))
        if (who < 0).any() or (filled[who] + part.counts > counts[who]).any():
            raise _changed()
        # Behind the rows of these subjects that came before.
        to = np.arange(part.n) + np.repeat(starts[who] + filled[who] - part.starts, part.counts)
        filled[who] += part.counts
        y[to], X[:, to], Z[:, to], V[:, to] = part.response, part.expert.T, part.random.T, part.sigma.T
        position[to], codes[to] = before + part.position, np.repeat(who, part.counts)
        for name, values in aux.items():
            values[to] = part.aux[name]
    if (filled != counts).any():
        raise _changed()
    # The intercept of sigma: is the residual standard deviation, a parameter of its own.
    names = np.array(sample.names.sigma, dtype=object)
    kept = independent("sigma", aliases(V.T), sample.names.sigma) & (names != "Intercept")
    own = on_disk((int(kept.sum()), n))
    for to, j in enumerate(np.flatnonzero(kept)):
        own[to] = V[j]
    return replace(
        sample,
        recipe=replace(recipe, kept={**recipe.kept, "sigma": kept}),
        names=replace(sample.names, sigma=tuple(names[kept])),
        sigma_common=sample.sigma_common[kept],
        response=y,
        expert=X.T,
        random=Z.T,
        sigma=own.T,
        codes=codes,
        starts=starts,
        labels=np.asarray(labels, dtype=object),
        rows=pd.Index(position, copy=False),
        position=position,
        aux=aux,
        n_input=first,
        frame=sample.frame.iloc[:0],
    )


def _changed() -> DesignError:
    return DesignError("the rows of the subjects are not those of the pass before; the data have changed, fit again")


def runs(design: Design) -> Iterator[slice]:
    """Consecutive subjects with some `RUN_ROWS` rows together."""
    ends, at = np.cumsum(design.counts), 0
    while at < design.n_units:
        reach = RUN_ROWS + (ends[at - 1] if at else 0)
        to = max(at + 1, int(np.searchsorted(ends, reach, side="right")))
        yield slice(at, to)
        at = to


def rows_of_run(design: Design, subjects: slice) -> slice:
    """The rows of a run of subjects."""
    ends = design.starts[subjects.stop] if subjects.stop < design.n_units else design.n
    return slice(int(design.starts[subjects.start]), int(ends))


def of_run(design: Design, subjects: slice) -> Design:
    """The design of a run of subjects; its arrays are views."""
    at = rows_of_run(design, subjects)
    return replace(
        design,
        response=None if design.response is None else design.response[at],
        expert=design.expert[at],
        random=design.random[at],
        sigma=design.sigma[at],
        codes=design.codes[at] - subjects.start,
        starts=design.starts[subjects] - at.start,
        labels=design.labels[subjects],
        gate=design.gate[subjects],
        rows=design.rows[at],
        position=design.position[at],
        aux={name: values[at] for name, values in design.aux.items()},
    )


def joined_on_disk(design: Design, make: Callable[[Design], Record]) -> Record:
    """A record of arrays by row, made run by run of the subjects, as one record whose arrays lie in files.

    Parameters
    ----------
    design : Design
    make : callable
        From the design of a run to its record: a dataclass, of dataclasses and arrays with rows on the last axis, but
        for ``starts`` and ``counts``, which go by subject.
    """
    whole: Any = None
    for subjects in runs(design):
        part = make(of_run(design, subjects))
        if whole is None:
            whole = _in_files(part, design)
        for to, values in zip(_arrays(whole), _arrays(part), strict=True):
            to[..., rows_of_run(design, subjects)] = values
    return whole


def _in_files(record: Any, design: Design) -> Any:
    """A record like that of a run, for all rows."""
    if isinstance(record, np.ndarray):
        return on_disk((*record.shape[:-1], design.n), record.dtype)
    if not is_dataclass(record) or isinstance(record, type):
        return record
    made = {part.name: _in_files(getattr(record, part.name), design) for part in fields(record)}
    return replace(record, **made | {name: getattr(design, name) for name in _OF_UNITS if name in made})


def _arrays(record: Any) -> Iterator[Array]:
    """The arrays by row of a record, always in the same order."""
    if isinstance(record, np.ndarray):
        yield record
    elif is_dataclass(record):
        for part in fields(record):
            if part.name not in _OF_UNITS:
                yield from _arrays(getattr(record, part.name))
