"""A journal of finished computations, so that an interrupted run continues where it stopped, with the same answer.

The file holds one JSON document per line: what is computed and from which seed, then each value in order, with a sum
over all lines so far. A line cut short by a crash is dropped; a line that was changed or moved is an error. The file is
locked while a run has it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from mixmoe._files import PathLike, lock
from mixmoe.arguments import checked_rng
from mixmoe.errors import ArgumentError
from mixmoe.inference.resample import Call, Replicates, run_calls

VERSION = 2  # since 2 each line says what came before it


def fingerprint(facts: Any) -> str:
    """A short text that differs between runs that must not be mixed; `facts` prints the same for the same run."""
    return hashlib.sha256(repr(facts).encode("utf-8")).hexdigest()[:32]


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
        self._file = None if path is None else _opened(Path(path))
        try:
            self._begin(path, key, rng)
        except BaseException:
            self.close()
            raise

    def _begin(self, path: PathLike | None, key: str, rng: Any) -> None:
        """Read what is there, and check that it is of this run."""
        lines = [] if self._file is None else _complete_lines(self._file)
        self.rng = _generator(lines[0] if lines else None, rng, path)
        header = {"mixmoe": "journal", "version": VERSION, "key": key, "seed": _seed_state(self.rng)}
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
        """Add a line in one write, so that a crash leaves all or the beginning of it."""
        if self._file is not None:
            self._file.write((json.dumps(line) + "\n").encode("utf-8"))
            self._file.flush()

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


def _opened(path: Path) -> BinaryIO:
    """The file, made if there is none, for this run alone."""
    if path.is_dir():
        raise ArgumentError(f"checkpoint must name a file, got the folder {str(path)!r}")
    file = path.open("a+b", buffering=0)
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


def _seed_state(rng: np.random.Generator) -> dict[str, Any]:
    """What makes the generators that `rng` will spawn."""
    seeds: Any = rng.bit_generator.seed_seq
    entropy = seeds.entropy if isinstance(seeds.entropy, int) else [int(word) for word in seeds.entropy]
    return {"entropy": entropy, "spawn_key": list(seeds.spawn_key), "spawned": seeds.n_children_spawned}


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
    except (LookupError, TypeError, ValueError) as error:
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
