"""Many independent computations: parallel, with a progress bar, keeping what is ready when interrupted."""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mixmoe.em import progress_bar

_WATCH = 0.5  # seconds between looks of a worker at its parent

Task = Callable[[np.random.Generator], Any]
Call = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Replicates:
    """Results of the computations, in order; fewer than asked for if `interrupted` or if they were stopped."""

    values: tuple[Any, ...]
    interrupted: bool


def run_calls(
    calls: Sequence[Call],
    n_jobs: int = 1,
    label: str = "",
    progress: bool | None = None,
    after: Callable[[Any], bool] | None = None,
    stops: bool = False,
) -> Replicates:
    """Values of calls without arguments, in their order.

    Parameters
    ----------
    calls : sequence of callable
        Picklable if `n_jobs` is not 1.
    n_jobs : int
        Worker processes, as joblib counts them: -1 for all cores.
    label : str
        Text before the progress bar.
    progress : bool, optional
        By default only in a terminal and if it takes more than a few seconds.
    after : callable, optional
        Called with each value, in order; True ends the run. What it decides does not depend on the number of workers.
    stops : bool
        Whether `after` may end the run: then calls are handed out a few at a time, since joblib cannot be left while
        calls are under way.

    Returns
    -------
    Replicates
    """
    from joblib import delayed, effective_n_jobs
    from joblib.externals.loky import get_reusable_executor

    done: list[Any] = []
    apart = effective_n_jobs(n_jobs) > 1
    size = (1 if n_jobs == 1 else 2 * effective_n_jobs(n_jobs)) if stops else max(len(calls), 1)
    ended = False
    with progress_bar(len(calls), label, progress) as bar:
        try:
            with _pool(n_jobs) as pool:
                for first in range(0, len(calls), size):
                    for value in pool(delayed(call)() for call in calls[first : first + size]):
                        if not ended:
                            done.append(value)
                            bar.update()
                            ended = after is not None and after(value)
                    if ended:
                        break
        except BaseException as error:
            if apart:
                get_reusable_executor(reuse=True).shutdown(kill_workers=True)
            if not isinstance(error, KeyboardInterrupt):
                raise
            return Replicates(tuple(done), True)
    return Replicates(tuple(done), False)


def _pool(n_jobs: int) -> Any:
    """Joblib's pool; its worker processes, if it has them here, end with this one and leave Ctrl-C to it.

    Another backend that the user chose, such as threads or a cluster, is used as it is.
    """
    from joblib import Parallel
    from joblib._parallel_backends import LokyBackend
    from joblib.parallel import get_active_backend

    class Following(LokyBackend):
        """Joblib's processes with a start of ours, which it does not offer in all versions."""

        def configure(self, *args: Any, **options: Any) -> Any:
            """Start the workers."""
            return super().configure(*args, initializer=_follow_parent, initargs=(os.getpid(),), **options)

    active, _ = get_active_backend()
    if type(active) is not LokyBackend:
        return Parallel(n_jobs=n_jobs, return_as="generator")
    backend = Following(nesting_level=active.nesting_level)
    return Parallel(n_jobs=n_jobs, return_as="generator", backend=backend)


def _follow_parent(parent: int) -> None:
    """Watch the parent from a worker: joblib's workers would outlive one that was killed.

    Ctrl-C reaches every process of a terminal. A worker that heeded it would return what it has so far, which would
    pass for the result of the whole call.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process as soon as it has another parent."""
    while os.getppid() == parent:
        time.sleep(_WATCH)
    os._exit(1)


def replicate(
    task: Task, n: int, rng: np.random.Generator, n_jobs: int = 1, label: str = "", progress: bool | None = None
) -> Replicates:
    """`n` results of a task, each with a generator of its own, so that they do not depend on the number of workers.

    Parameters
    ----------
    task : callable
        From a generator to a result; picklable if `n_jobs` is not 1.
    n : int
    rng : numpy.random.Generator
    n_jobs, label, progress
        See `run_calls`.

    Returns
    -------
    Replicates
    """
    return run_calls([partial(task, one) for one in rng.spawn(n)], n_jobs, label, progress)
