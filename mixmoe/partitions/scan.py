"""Parquet files as partitions of one data set, read in chunks."""

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import pandas as pd

from mixmoe.arguments import checked_count
from mixmoe.errors import ArgumentError, DesignError, MissingExtraError
from mixmoe.partitions.on_workers import OnWorkers, active_client

if TYPE_CHECKING:
    import dask.dataframe as dask_frames

Result = TypeVar("Result")
CHUNK_ROWS = 250_000
AT_ONCE = 32  # partitions whose findings may wait here
ROWS_AT_ONCE = 4  # the same where these are as long as their rows


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of partitioned data.

    Attributes
    ----------
    frame : DataFrame
        Its labels count the rows of the partition.
    source : str
        The partition, for messages: ``"file 'a.parquet'"``.
    """

    frame: pd.DataFrame
    source: str

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors of the design name the partition whose rows they count."""
        try:
            yield
        except DesignError as error:
            if type(error) is not DesignError:
                raise
            raise DesignError(f"{error} (rows counted in {self.source})") from error


@runtime_checkable
class Partitions(Protocol):
    """Data in partitions, which are read one after the other, as often as they are asked for."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that all partitions have."""
        ...

    def parts(self, columns: Sequence[str]) -> Iterator[Part]:
        """Some columns of all rows, partition by partition, always in the same order."""
        ...

    def mapped(
        self, task: Callable[[Part], Result], columns: Sequence[str], at_once: int = AT_ONCE
    ) -> Iterator[Result]:
        """What a task finds in each part, in the order of the parts, wherever it is computed.

        Of `at_once` parts at most it may wait here.
        """
        ...

    def kept(self, task: Callable[[Part], Any], columns: Sequence[str]) -> OnWorkers | None:
        """What a task finds in each part, kept where it is computed; None if that is this process."""
        ...


@dataclass(frozen=True, slots=True)
class Scan:
    """Parquet files that are read in chunks, see `scan`.

    Attributes
    ----------
    paths : tuple of str
        In the order in which they are read.
    chunk_rows : int
        Rows that are in memory at a time, at most.
    types : mapping of str to mapping of str to DataType
        Type of each column, in pyarrow's terms, by file.
    """

    paths: tuple[str, ...]
    chunk_rows: int
    types: Mapping[str, Mapping[str, Any]] = field(repr=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that any of the files has."""
        return tuple(dict.fromkeys(name for names in self.types.values() for name in names))

    def parts(self, columns: Sequence[str]) -> Iterator[Part]:
        """Some columns of all rows, file by file.

        Raises
        ------
        DesignError
            If a file lacks a column, holds it with another type than the others do, or cannot be read.
        """
        as_floats = [name for name in columns if self._checked_kind(name) == "number"]
        for path in self.paths:
            first, source = 0, f"file {path!r}"
            for frame in self._chunks(path, columns):
                labels = pd.RangeIndex(first, first + len(frame))
                first += len(frame)
                mixed = {name: "float64" for name in as_floats if frame[name].dtype.kind in "iu"}
                yield Part(frame.astype(mixed).set_axis(labels), source)

    def mapped(
        self, task: Callable[[Part], Result], columns: Sequence[str], at_once: int = AT_ONCE
    ) -> Iterator[Result]:
        """What a task finds in each chunk, in their order; one at a time."""
        return map(task, self.parts(columns))

    def kept(self, task: Callable[[Part], Any], columns: Sequence[str]) -> None:
        """None: files are read by this process."""
        return

    def _chunks(self, path: str, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        parquet = _parquet()
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(self.chunk_rows, columns=list(columns)):
                    if batch.num_rows:
                        yield batch.to_pandas()
        except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
            raise _unreadable(path, error) from error

    def _checked_kind(self, name: str) -> str:
        """``"number"`` if whole and other numbers are mixed, else the one kind of a column."""
        kinds: dict[str, str] = {}
        for path, types in self.types.items():
            if name not in types:
                raise DesignError(
                    f"the file {path!r} has no column {name!r}, which other files have; all need the same columns, so "
                    f"add it. It has: {', '.join(types)}"
                )
            kind = _kind(types[name])
            if kind != "null":  # a column without any value has no type of its own
                kinds.setdefault(kind, path)
        if len(kinds) < 2 or set(kinds) == {"integer", "number"}:
            return "number" if "number" in kinds else next(iter(kinds), "null")
        (one, here), (other, there), *_ = kinds.items()
        raise DesignError(
            f"the column {name!r} holds {self.types[here][name]} ({one}) in {here!r} and {self.types[there][name]} "
            f"({other}) in {there!r}; write all files with one type"
        )


def scan(source: Any, *, chunk_rows: int = CHUNK_ROWS) -> Scan:
    """Parquet files as one data set that need not fit into memory; needs pyarrow.

    Parameters
    ----------
    source : path-like, or sequence of path-likes
        A file, a pattern such as ``"visits/*.parquet"``, a folder (all ``*.parquet`` in it and below), or several of
        these. Files are read in the order of their names.
    chunk_rows : int
        Rows that are in memory at a time, at most.

    Returns
    -------
    Scan
        What `fit` takes in the place of a frame.

    Raises
    ------
    ArgumentError
        If no file matches.
    DesignError
        If a file is no Parquet file.
    MissingExtraError
        If pyarrow is not installed.

    Notes
    -----
    Only the last part of each file, with names and types, is read here; rows are read in passes when a model is made.
    """
    checked_count(chunk_rows, "chunk_rows")
    given = [source] if isinstance(source, str | Path) else list(source)
    paths = tuple(dict.fromkeys(path for one in given for path in _matching(str(one))))
    if not paths:
        raise ArgumentError("scan needs at least one file, got an empty list; name a file, a pattern or a folder")
    return Scan(paths, chunk_rows, {path: _types(path) for path in paths})


def _matching(pattern: str) -> list[str]:
    """Files that a path, a pattern or a folder stands for."""
    path = Path(pattern)
    if path.is_file():
        return [pattern]
    if path.is_dir():
        found = sorted(str(file) for file in path.rglob("*.parquet"))
        where = f"the folder {pattern!r} holds no *.parquet"
    else:
        found = sorted(file for file in glob.glob(pattern, recursive=True) if Path(file).is_file())
        where = f"no file matches {pattern!r}"
    if not found:
        raise ArgumentError(f"{where}; name a Parquet file, a pattern such as 'visits/*.parquet', or a folder")
    return found


def _types(path: str) -> dict[str, Any]:
    """Types of the columns of a file."""
    try:
        with _parquet().ParquetFile(path) as file:
            schema = file.schema_arrow
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise DesignError(f"the file {path!r} has several columns named {twice[0]!r}; rename or drop all but one")
    return {name: schema.field(name).type for name in schema.names}


def _unreadable(path: str, error: Exception) -> DesignError:
    return DesignError(
        f"the file {path!r} cannot be read as Parquet ({' '.join(str(error).split())}); write it again, or leave it out"
    )


def _parquet() -> Any:
    """The reader of pyarrow."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtraError("scan()", "pyarrow", "files") from error
    return parquet


def _kind(dtype: Any) -> str:
    """What pandas makes of a type: types of one kind may be mixed."""
    text = str(dtype)
    if text.startswith("dictionary"):
        return _kind(dtype.value_type)
    for kind, starts in _KINDS.items():
        if text.startswith(starts):
            return kind
    return text


_KINDS: Mapping[str, tuple[str, ...]] = {
    "text": ("string", "large_string"),
    "integer": ("int", "uint"),
    "number": ("float", "halffloat", "double"),
    "boolean": ("bool",),
    "null": ("null",),
}


def is_partitioned(data: Any) -> bool:
    """Whether data come in partitions, as those of `scan` do."""
    return isinstance(data, Partitions) and not isinstance(data, pd.DataFrame | Mapping | np.ndarray)


@dataclass(frozen=True, slots=True)
class DaskFrame:
    """A Dask frame as `Partitions`.

    Attributes
    ----------
    frame : dask.dataframe.DataFrame
    """

    frame: "dask_frames.DataFrame" = field(repr=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(map(str, self.frame.columns))

    def parts(self, columns: Sequence[str]) -> Iterator[Part]:
        """Some columns of all rows, brought here partition by partition."""
        return self.mapped(_as_it_is, columns, ROWS_AT_ONCE)

    def mapped(
        self, task: Callable[[Part], Result], columns: Sequence[str], at_once: int = AT_ONCE
    ) -> Iterator[Result]:
        """What a task finds in each partition, in their order, computed by the active client or by Dask's threads.

        Raises
        ------
        ArgumentError
            If the client is closed, or its workers are lost.
        """
        import dask

        found = self._delayed(task, columns)
        for first in range(0, len(found), at_once):
            try:
                results: tuple[Any, ...] = dask.compute(*found[first : first + at_once])
            except (OSError, RuntimeError) as error:
                raise ArgumentError(
                    f"the partitions could not be computed ({' '.join(str(error).split())}); if the client is closed, "
                    "open another, or leave it out to compute on this machine"
                ) from error
            for result in results:
                if isinstance(result, Exception):
                    raise result
                yield result

    def kept(self, task: Callable[[Part], Any], columns: Sequence[str]) -> OnWorkers | None:
        """What a task finds in each partition, in their order, which stays with the workers of the active client.

        None without one: then partitions are computed by threads of this process.
        """
        client = active_client()
        if client is None:
            return None
        return OnWorkers(client, tuple(client.compute(self._delayed(task, columns))))

    def _delayed(self, task: Callable[[Part], Any], columns: Sequence[str]) -> list[Any]:
        try:
            import dask
        except ImportError as error:
            raise MissingExtraError("a Dask frame", "dask", "dask") from error
        partitions = self.frame[list(columns)].to_delayed()
        return [dask.delayed(_on_worker)(part, task, i) for i, part in enumerate(partitions)]


def _as_it_is(part: Part) -> Part:
    return part


def _on_worker(rows: pd.DataFrame, task: Callable[[Part], Result], place: int) -> Result | Exception:
    """The task on one partition; an error of the data comes back as it is, and is not tried again."""
    part = Part(rows.set_axis(pd.RangeIndex(len(rows))), f"partition {place}")
    try:
        return task(part)
    except (DesignError, ArgumentError) as error:
        return error


def as_partitions(data: Any) -> Partitions | None:
    """Partitioned data as they are or, if they are a Dask frame, as partitions; None for data in memory."""
    # Told by its module, so that Dask is not imported without need.
    if type(data).__module__.partition(".")[0] in ("dask", "dask_expr") and hasattr(data, "to_delayed"):
        return DaskFrame(data)
    return data if is_partitioned(data) else None
