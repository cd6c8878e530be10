"""Many independent computations, and the ascents of one fit, with a journal from which an interrupted run continues.

Replicates are parallel, with a progress bar.

The file holds one JSON document per line: what is computed and from which seed, then each value in order, with a sum
over all lines so far. A line cut short by a crash is dropped; a line that was changed or moved is an error. The file is
locked while a run has it.
"""

import hashlib
import json
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, BinaryIO, Self

import numpy as np

from mixmoe.arguments import checked_jobs, checked_rng
from mixmoe.atomic import PathLike, lock
from mixmoe.errors import ArgumentError
from mixmoe.numerics.optimise import Control, Standing, progress_bar

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


VERSION = 2  # since 2 each line says what came before it


def fingerprint(facts: Any) -> str:
    """A short text that differs between runs that must not be mixed, and is the same in every process for the same."""
    return hashlib.sha256(repr(_told(facts)).encode("utf-8")).hexdigest()[:32]


def _told(value: Any) -> Any:
    """A value as something that prints in full, where arrays and frames would be abridged, and without addresses."""
    if value is None or isinstance(value, str | bytes | bool | int | float):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return ("array", value.dtype.str, value.shape, hashlib.sha256(np.ascontiguousarray(value).data).hexdigest())
    if isinstance(value, Mapping):
        return ("mapping", sorted(((str(name), _told(one)) for name, one in value.items()), key=repr))
    if isinstance(value, list | tuple | np.ndarray):
        return (type(value).__name__, [_told(one) for one in value])
    if isinstance(value, partial):
        return ("partial", _told(value.func), _told(value.args), _told(value.keywords))
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return (value.__module__, value.__qualname__, _told(value.__code__), _told(value.__defaults__), _told(cells))
    if isinstance(value, CodeType):
        return (value.co_code, value.co_names, _told(value.co_consts))
    return (type(value).__qualname__, _pickled(value))


def _pickled(value: Any) -> str:
    """What tells an object from others: its content, or itself where nothing can be said of that."""
    try:
        return hashlib.sha256(pickle.dumps(value)).hexdigest()
    except (pickle.PicklingError, TypeError, AttributeError):
        return repr(value)


def _same(value: Any) -> Any:
    return value


class Journal:
    """Runs computations in order and remembers their values in a file.

    Parameters
    ----------
    path : path-like or None
        None keeps no file.
    key : str
        Identifies data, model and options, see `fingerprint`.
    rng : int, numpy.random.Generator or None
        None takes the seed of an existing file.
    encode, decode : callable
        From a value to what JSON can hold, and back.

    Attributes
    ----------
    rng : numpy.random.Generator

    Raises
    ------
    ArgumentError
        If the file is of another run, or of another seed, is damaged, or another run has it.
    """

    def __init__(
        self,
        path: PathLike | None,
        key: str,
        rng: Any,
        encode: Callable[[Any], Any] = _same,
        decode: Callable[[Any], Any] = _same,
    ) -> None:
        self._encode, self._decode = encode, decode
        self._file = None if path is None else _opened(checkpoint_path(path))
        try:
            self._begin(path, key, rng)
        except BaseException:
            self.close()
            raise

    def _begin(self, path: PathLike | None, key: str, rng: Any) -> None:
        """Read what is there, and check that it is of this run."""
        lines = [] if self._file is None else _complete_lines(self._file)
        self.rng = _generator(lines[0] if lines else None, rng, path)
        # What makes the generators that this one will spawn.
        seeds: Any = self.rng.bit_generator.seed_seq
        entropy = seeds.entropy if isinstance(seeds.entropy, int) else [int(word) for word in seeds.entropy]
        seed = {"entropy": entropy, "spawn_key": list(seeds.spawn_key), "spawned": seeds.n_children_spawned}
        header = {"mixmoe": "journal", "version": VERSION, "key": key, "seed": seed}
        if lines:
            _check_header(lines[0], header, path)
        self._chain = fingerprint(header)
        self._stored = [self._checked(line, number, path) for number, line in enumerate(lines[1:], start=2)]
        if not lines:
            self._append(header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other runs have the file."""
        if self._file is not None:
            self._file.close()

    def recalled(self) -> list[Any]:
        """All values that the file holds, for whoever knows what comes next without calls."""
        values = [self._decode(value) for value in self._stored]
        self._stored = []
        return values

    def add(self, value: Any) -> None:
        """Remember one more value."""
        self._add(value, None)

    def run(
        self,
        calls: Sequence[Call],
        n_jobs: int = 1,
        label: str = "",
        progress: bool | None = None,
        after: Callable[[Any], bool] | None = None,
    ) -> Replicates:
        """Values of the next calls, those in the file without computing them; see `run_calls`."""
        values: list[Any] = []
        while self._stored and len(values) < len(calls):
            values.append(self._decode(self._stored.pop(0)))
            if after is not None and after(values[-1]):
                return Replicates(tuple(values), False)
        rest = calls[len(values) :]
        if not rest:
            return Replicates(tuple(values), False)
        found = run_calls(rest, n_jobs, label, progress, lambda value: self._add(value, after), after is not None)
        return Replicates((*values, *found.values), found.interrupted)

    def _add(self, value: Any, after: Callable[[Any], bool] | None) -> bool:
        encoded = self._encode(value)
        self._chain = fingerprint((self._chain, json.dumps(encoded)))
        self._append({"value": encoded, "sum": self._chain})
        return after is not None and after(value)

    def _append(self, line: Mapping[str, Any]) -> None:
        """Add a line, of which a crash or a full disk leaves all or the beginning."""
        if self._file is None:
            return
        rest = (json.dumps(line) + "\n").encode("utf-8")
        try:
            while rest:  # where room runs out, less is written than was asked for, and only the next write says so
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise ArgumentError(
                f"checkpoint {str(self._file.name)!r} cannot be written on ({error.strerror}); what is in it counts: "
                "make room and run again, or name another file"
            ) from error

    def _checked(self, line: Any, number: int, path: PathLike | None) -> Any:
        """The value of a line, which must follow from the lines before it."""
        if isinstance(line, Mapping) and set(line) == {"value", "sum"}:
            chain = fingerprint((self._chain, json.dumps(line["value"])))
            if line["sum"] == chain:
                self._chain = chain
                return line["value"]
        raise ArgumentError(
            f"line {number} of the checkpoint {str(path)!r} is damaged, was changed, or is not where it was "
            "written; delete it and the lines below it, which are then computed again, or name another file"
        )


def checkpoint_path(path: Any) -> Path:
    """The argument ``checkpoint=`` as a path.

    Raises
    ------
    ArgumentError
        If it is none.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path) or "\0" in str(path):
        raise ArgumentError(f"checkpoint must be a path, or None to keep nothing, got {path!r}")
    return Path(path)


def _opened(path: Path) -> BinaryIO:
    """The file, made if there is none, for this run alone."""
    try:
        if path.is_dir():
            raise ArgumentError(f"checkpoint must name a file, got the folder {str(path)!r}")
        if path.exists() and not path.is_file():
            raise ArgumentError(f"checkpoint must name a file that can be read again, got {str(path)!r}")
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise ArgumentError(
            f"checkpoint {str(path)!r} cannot be written ({error.strerror}); name a file in a folder that is there and "
            "that you may write to"
        ) from error
    if not lock(file):
        file.close()
        raise ArgumentError(
            f"checkpoint {str(path)!r} is in use by another run; two would mix their results, so wait for it or name "
            "another file"
        )
    return file


def _complete_lines(file: BinaryIO) -> list[Any]:
    """Documents of a journal; one that was cut short is taken out of the file."""
    file.seek(0)
    content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    lines = []
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            lines.append(json.loads(line.decode("utf-8")))
        except (ValueError, RecursionError) as error:
            if number == 1 or not _is_journal(lines[0]):
                raise _no_journal(file.name) from error
            lines.append(None)  # refused with its number once the key is known
    if content and not whole and not content.startswith(b'{"mixmoe"'):
        raise _no_journal(file.name)
    file.truncate(len(whole))
    return lines


def _is_journal(header: Any) -> bool:
    return isinstance(header, Mapping) and header.get("mixmoe") == "journal"


def _no_journal(path: Any) -> ArgumentError:
    return ArgumentError(f"checkpoint {str(path)!r} is no journal of mixmoe; name another file")


def _generator(header: Any, rng: Any, path: PathLike | None) -> np.random.Generator:
    """The generator given, or that of the file if none is."""
    if rng is not None or header is None:
        return checked_rng(rng)
    if not _is_journal(header):
        raise _no_journal(path)
    try:
        seed = header["seed"]
        seeds = np.random.SeedSequence(
            seed["entropy"], spawn_key=tuple(seed["spawn_key"]), n_children_spawned=seed["spawned"]
        )
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise ArgumentError(f"the first line of the checkpoint {str(path)!r} is damaged; name another file") from error
    return np.random.default_rng(seeds)


def _check_header(found: Any, expected: Mapping[str, Any], path: PathLike | None) -> None:
    if not _is_journal(found):
        raise _no_journal(path)
    parts = {
        "version": "another version of mixmoe",
        "key": "other data, another model or other options",
        "seed": "another rng",
    }
    for part, what in parts.items():
        if found.get(part) != expected[part]:
            raise ArgumentError(f"checkpoint {str(path)!r} was written for {what}; name another file or delete it")


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


_EVERY = 5.0  # seconds between two lines about ascents of a fit that are under way


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
