"""Ascents of a fit that are kept in a file, from which another run of the same fit goes on."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from mixmoe.arguments import checked_rng
from mixmoe.atomic import PathLike
from mixmoe.errors import ArgumentError
from mixmoe.mixture.resampling import Journal, fingerprint
from mixmoe.numerics.optimise import Control, Standing

_EVERY = 5.0  # seconds between two lines about ascents that are under way


class Ascents:
    """The ascents of a fit in the order in which they are made, see `mixmoe.numerics.optimise.Keeper`.

    All between them (starts, moves, draws) follows from the seed and from where they ended, and is made again.

    Parameters
    ----------
    journal : Journal
        One line for each that ended, and some for those that were under way.
    path : path-like
        Of its file, for messages.
    """

    def __init__(self, journal: Journal, path: PathLike) -> None:
        self._journal, self._path = journal, path
        self._ended: list[Standing] = []
        self._under_way: Standing | None = None
        for line in journal.recalled():
            if line["ended"]:
                self._ended.append(line["standing"])
            self._under_way = None if line["ended"] else line["standing"]
        self._stopped, self._written = False, time.monotonic()

    def recall(self, shape: tuple[int, ...]) -> tuple[Standing | None, bool]:
        """Where the next ascents stood, and whether they had ended.

        Raises
        ------
        ArgumentError
            If those of the file have another shape.
        """
        if self._stopped:
            return None, False
        ended = bool(self._ended)
        if ended:
            standing: Standing | None = self._ended.pop(0)
        else:
            standing, self._under_way = self._under_way, None
        if standing is not None and np.shape(standing["theta"]) != shape:
            raise ArgumentError(
                f"the ascents in the checkpoint {str(self._path)!r} are not those of this run, though data, model and "
                "options are the same: it was written by another version of mixmoe, NumPy or SciPy; delete it"
            )
        return standing, ended

    def keep(self, standing: Standing, ended: bool) -> None:
        """A line, if the ascents have ended or the last line is some seconds old."""
        if self._stopped or not (ended or time.monotonic() - self._written >= _EVERY):
            return
        self._journal.add({"ended": ended, "standing": _plain(standing)})
        self._written = time.monotonic()

    def stop(self, standing: Standing | None) -> None:
        """The last line."""
        if standing is not None and not self._stopped:
            self._journal.add({"ended": False, "standing": _plain(standing)})
        self._stopped = True


def _plain(value: Any) -> Any:
    """Arrays as lists, which JSON gives back to the last digit."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


@contextmanager
def remembered(
    checkpoint: PathLike | None, facts: Callable[[], Any], rng: Any, control: Control
) -> Iterator[tuple[np.random.Generator, Control]]:
    """Random numbers and limits of a fit whose ascents are kept in a file, if there is one.

    Parameters
    ----------
    checkpoint : path-like or None
    facts : callable
        What tells the fit from others: data, model and options.
    rng : int, numpy.random.Generator or None
        None takes the seed of an existing file.
    control : Control

    Raises
    ------
    ArgumentError
        If the file is of another fit or another seed, is damaged, or another run has it.
    """
    if checkpoint is None:
        yield checked_rng(rng), control
        return
    # A generator that was used before is another one, though its seed is the same.
    state = rng.bit_generator.state if isinstance(rng, np.random.Generator) else None
    with Journal(checkpoint, fingerprint((facts(), state)), rng) as journal:
        yield journal.rng, replace(control, keeper=Ascents(journal, checkpoint))
