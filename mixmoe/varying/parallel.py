"""Many calls of one function, over processes and with a progress bar if asked."""

from collections.abc import Callable, Sequence
from typing import Any


def run_all(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], n_jobs: int, progress: bool | None, what: str
) -> list[Any]:
    """Results of a function for many arguments, in their order.

    Parameters
    ----------
    function : callable
    arguments : sequence of tuple
    n_jobs : int
        Processes, as joblib understands them; its backends may carry the calls to a cluster.
    progress : bool, optional
        Whether to show a bar; by default only in a terminal.
    what : str
        What the bar says.

    Returns
    -------
    list
    """
    from tqdm import tqdm

    disable = None if progress is None else not progress
    shown = tqdm(arguments, desc=what, disable=disable, leave=False, delay=2.0 if progress is None else 0.0)
    if n_jobs == 1:
        return [function(*one) for one in shown]
    from joblib import Parallel, delayed

    found: list[Any] = Parallel(n_jobs=n_jobs)(delayed(function)(*one) for one in shown)
    return found
