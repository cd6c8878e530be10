"""Threads that share the blocks of one evaluation."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

from mixmoe.arguments import checked_count

Item = TypeVar("Item")
Result = TypeVar("Result")
_LEAST = 8  # blocks: with fewer, handing them over costs as much as it saves


class Workers:
    """Some threads, or none beside the one that asks.

    NumPy releases the interpreter's lock within each operation, so that blocks whose arrays are long run at once.

    Parameters
    ----------
    n : int
        Threads.

    Notes
    -----
    A copy in another process, as joblib makes, has one thread: processes share the cores already.
    """

    __slots__ = ("_pool", "_process", "n")

    def __init__(self, n: int = 1) -> None:
        self.n = n
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Workers, (1,)

    def map(self, task: Callable[[Item], Result], items: Iterable[Item]) -> Iterable[Result]:
        """Results of a task for each item, in the order of the items, whichever ends first."""
        if self.n == 1:
            return map(task, items)
        items = list(items)
        if len(items) < _LEAST:
            return map(task, items)
        # Threads do not inherit what np.errstate says here: each task runs in a copy of this context.
        return self._threads().map(lambda pair: pair[0].run(task, pair[1]), [(copy_context(), item) for item in items])

    def _threads(self) -> ThreadPoolExecutor:
        # After a fork the pool is there, but its threads are not.
        if self._pool is None or self._process != os.getpid():
            self._pool, self._process = ThreadPoolExecutor(self.n, thread_name_prefix="mixmoe"), os.getpid()
        return self._pool


ALONE = Workers()
"""No threads beside the one that asks."""


def workers(n_threads: int) -> Workers:
    """So many threads for a fit.

    Raises
    ------
    ArgumentError
        If it is no whole number of at least 1.
    """
    return Workers(checked_count(n_threads, "n_threads"))
