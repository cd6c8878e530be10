"""Dask frames as partitions: passes over the data run where the partitions are."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from mixmoe.errors import ArgumentError, DesignError, MissingExtraError
from mixmoe.partitions.scan import Part, Partitions, Result, is_partitioned

_AT_ONCE = 32  # partitions whose findings may wait here


@dataclass(frozen=True, slots=True)
class DaskFrame:
    """A Dask frame as `Partitions`.

    Attributes
    ----------
    frame : dask.dataframe.DataFrame
    """

    frame: Any = field(repr=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(map(str, self.frame.columns))

    def parts(self, columns: Sequence[str]) -> Iterator[Part]:
        """Some columns of all rows, brought here partition by partition."""
        return self.mapped(_itself, columns)

    def mapped(self, task: Callable[[Part], Result], columns: Sequence[str]) -> Iterator[Result]:
        """What a task finds in each partition, in their order, computed by the active client or by Dask's threads.

        Raises
        ------
        ArgumentError
            If the client is closed, or its workers are lost.
        """
        dask = _dask()
        delayed = self.frame[list(columns)].to_delayed()
        found = [dask.delayed(_on_worker)(part, task, i) for i, part in enumerate(delayed)]
        for first in range(0, len(found), _AT_ONCE):
            for result in _computed(dask, found[first : first + _AT_ONCE]):
                if isinstance(result, Exception):
                    raise result
                yield result


def _itself(part: Part) -> Part:
    return part


def _on_worker(rows: pd.DataFrame, task: Callable[[Part], Result], place: int) -> Result | Exception:
    """The task on one partition; an error of the data comes back as it is, and is not tried again."""
    part = Part(rows.set_axis(pd.RangeIndex(len(rows))), f"partition {place}")
    try:
        return task(part)
    except (DesignError, ArgumentError) as error:
        return error


def _computed(dask: Any, found: Sequence[Any]) -> tuple[Any, ...]:
    """The results of delayed tasks, in their order."""
    try:
        results: tuple[Any, ...] = dask.compute(*found)
    except (OSError, RuntimeError) as error:
        raise ArgumentError(
            f"the partitions could not be computed ({' '.join(str(error).split())}); if the client is closed, open "
            "another, or leave it out to compute on this machine"
        ) from error
    return results


def _dask() -> Any:
    try:
        import dask
    except ImportError as error:
        raise MissingExtraError("a Dask frame", "dask", "dask") from error
    return dask


def is_dask(data: Any) -> bool:
    """Whether data are a Dask frame, without importing Dask."""
    return type(data).__module__.partition(".")[0] in ("dask", "dask_expr") and hasattr(data, "to_delayed")


def as_partitions(data: Any) -> Partitions | None:
    """Partitioned data as they are or, if they are a Dask frame, as partitions; None for data in memory."""
    if is_dask(data):
        return DaskFrame(data)
    return data if is_partitioned(data) else None
