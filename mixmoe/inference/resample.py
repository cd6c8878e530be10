"""Replicates of a random task: parallel, with a progress bar, keeping what is ready when interrupted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixmoe.em import progress_bar

Task = Callable[[np.random.Generator], Any]


@dataclass(frozen=True, slots=True)
class Replicates:
    """Results of the replicates, in order; fewer than asked for if `interrupted`."""

    values: tuple[Any, ...]
    interrupted: bool


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
    n_jobs : int
        Worker processes, as joblib counts them: -1 for all cores.
    label : str
        Text before the progress bar.
    progress : bool, optional
        By default only in a terminal and if it takes more than a few seconds.

    Returns
    -------
    Replicates
    """
    from joblib import Parallel, delayed

    done: list[Any] = []
    with progress_bar(n, label, progress) as bar:
        try:
            for value in Parallel(n_jobs=n_jobs, return_as="generator")(delayed(task)(g) for g in rng.spawn(n)):
                done.append(value)
                bar.update()
        except KeyboardInterrupt:
            return Replicates(tuple(done), True)
    return Replicates(tuple(done), False)
