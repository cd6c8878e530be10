"""Many calls of one function, all of which are needed."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mixmoe.arguments import checked_jobs
from mixmoe.inference.resample import run_calls


def run_all(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], n_jobs: int, progress: bool | None, what: str
) -> list[Any]:
    """Results of a function for many arguments, in their order.

    Parameters
    ----------
    function : callable
    arguments : sequence of tuple
    n_jobs, progress
        See `run_calls`.
    what : str
        What the progress bar says.

    Returns
    -------
    list

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C: a criterion or a null distribution from some of the calls would be another one.
    """
    found = run_calls([partial(function, *one) for one in arguments], checked_jobs(n_jobs), what, progress)
    if found.interrupted:
        raise KeyboardInterrupt
    return list(found.values)
