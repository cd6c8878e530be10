"""Values that stay with the workers of a cluster.

A worker that dies takes its values with it: Dask makes them again on another one, from the partitions on.
"""

import ctypes
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from mixmoe.errors import ArgumentError, DesignError

Result = TypeVar("Result")


class Client(Protocol):
    """What is asked of a ``distributed.Client``."""

    @property
    def status(self) -> str:
        """``"running"``, or what came of it."""
        ...

    def submit(self, task: Callable[..., Any], *values: Any, pure: bool) -> Any:
        """A future of the task's result."""
        ...

    def gather(self, futures: list[Any]) -> list[Any]:
        """The results of futures."""
        ...


@dataclass(frozen=True, slots=True)
class OnWorkers:
    """Values kept by workers, in a fixed order.

    Attributes
    ----------
    client : distributed.Client
    values : tuple of Future
    """

    client: Client
    values: tuple[Any, ...]

    def kept(self, task: Callable[[Any], Any]) -> "OnWorkers":
        """What a task finds in each value, which stays there; an error of the data stands for what it made of one."""
        return OnWorkers(
            self.client, tuple(self.client.submit(_tried, task, value, pure=False) for value in self.values)
        )

    def mapped(self, task: Callable[[Any], Result]) -> list[Result]:
        """What a task finds in each value, brought here in their order."""
        return self.mapped_with(partial(_alone, task=task), [None] * len(self.values))

    def mapped_with(self, task: Callable[[Any, Any], Result], each: Sequence[Any]) -> list[Result]:
        """The same of a task that is also given something of each value's own.

        Raises
        ------
        ArgumentError
            If the client is closed, or its workers are lost.
        DesignError, ArgumentError
            That the task raised.
        """
        if self.client.status != "running":
            raise _lost(f"the client is {self.client.status}")
        pairs = zip(self.values, each, strict=True)
        found = [self.client.submit(_tried, task, value, own, pure=False) for value, own in pairs]
        return brought(self.client, found)

    def one(self, place: int, task: Callable[[Any], Result]) -> Result:
        """What a task finds in one of the values."""
        return OnWorkers(self.client, (self.values[place],)).mapped(task)[0]

    def exchanged(
        self, split: Callable[[Any], tuple[Any, ...]], join: Callable[[list[Any]], Any], n: int
    ) -> "OnWorkers":
        """`n` values, each made of one piece of every value, in their order.

        Parameters
        ----------
        split : callable
            From a value to its `n` pieces, None for those that are empty.
        join : callable
            From the pieces that are not, to a value.
        n : int
        """
        pieces = self.kept(split)
        there = pieces.mapped(_present)
        out = []
        for i in range(n):
            of_parts = [
                self.client.submit(_piece, value, i, pure=False)
                for value, present in zip(pieces.values, there, strict=True)
                if present[i]
            ]
            if of_parts:
                out.append(self.client.submit(_tried, join, of_parts, pure=False))
        return OnWorkers(self.client, tuple(out))


def _alone(value: Any, _: None, task: Callable[[Any], Result]) -> Result:
    return task(value)


def _tried(task: Callable[..., Any], value: Any, *own: Any) -> Any:
    """What a task finds; an error of the data comes back as it is, and is not tried again."""
    if isinstance(value, DesignError | ArgumentError):
        return value
    _keep_heap()
    try:
        return task(value, *own)
    except (DesignError, ArgumentError) as error:
        return error


_M_MMAP_THRESHOLD, _LARGE = -3, 2**24  # of glibc's malloc.h; bytes


def _keep_heap() -> None:
    """Let this worker use the memory of arrays again that it has just freed.

    Dask starts workers with a trim threshold, whereby glibc maps every array above 128 KB anew: measured, the page
    faults take more than half of the time of an evaluation with complex steps.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # of other C libraries than glibc there is none
            mallopt(_M_MMAP_THRESHOLD, _LARGE)


def _present(pieces: Sequence[Any]) -> list[bool]:
    return [piece is not None for piece in pieces]


def _piece(pieces: Sequence[Any], place: int) -> Any:
    return pieces[place]


def brought(client: Client, futures: Sequence[Any]) -> list[Any]:
    """Values of futures, in their order.

    Raises
    ------
    ArgumentError
        If the client is closed, or its workers are lost.
    DesignError, ArgumentError
        That a task raised.
    """
    from dask.distributed import KilledWorker

    try:
        found = client.gather(list(futures))
    except (CancelledError, KilledWorker, OSError, RuntimeError) as error:
        raise _lost(" ".join(str(error).split())) from error
    for value in found:
        if isinstance(value, DesignError | ArgumentError):
            raise value
    return list(found)


def _lost(why: str) -> ArgumentError:
    return ArgumentError(
        f"workers of the cluster could not be asked ({why}); if the client is closed or its workers are lost, open "
        "another and fit again, or leave it out to compute on this machine"
    )


def active_client() -> Any:
    """The client of a cluster that is open in this process, None if there is none."""
    # Whoever opened one has imported the package.
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return distributed.default_client()
    except ValueError:
        return None
