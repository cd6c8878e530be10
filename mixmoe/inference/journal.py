"""A journal of finished computations, so that an interrupted run continues where it stopped, with the same answer.

The file holds one JSON document per line: what is computed and from which seed, then each value in order. A line cut
short by a crash is dropped.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixmoe.arguments import checked_rng
from mixmoe.errors import ArgumentError
from mixmoe.inference.resample import Call, Replicates, run_calls

PathLike = str | os.PathLike[str]


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
        If the file is of another run, or of another seed.
    """

    def __init__(
        self,
        path: PathLike | None,
        key: str,
        rng: Any,
        encode: Callable[[Any], Any] = _same,
        decode: Callable[[Any], Any] = _same,
    ) -> None:
        self._path = None if path is None else Path(path)
        self._encode, self._decode = encode, decode
        lines = _complete_lines(self._path)
        self.rng = _generator(lines[0] if lines else None, rng, self._path)
        header = {"mixmoe": "journal", "key": key, "seed": _seed_state(self.rng)}
        if lines:
            _check_header(lines[0], header, self._path)
        self._stored = lines[1:]
        if self._path is not None:
            text = "".join(json.dumps(line) + "\n" for line in [header, *self._stored])
            self._path.write_text(text, encoding="utf-8")

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
            values.append(self._decode(self._stored.pop(0)["value"]))
            if after is not None and after(values[-1]):
                return Replicates(tuple(values), False)
        rest = calls[len(values) :]
        if not rest:
            return Replicates(tuple(values), False)
        found = run_calls(rest, n_jobs, label, progress, lambda value: self._add(value, after), after is not None)
        return Replicates((*values, *found.values), found.interrupted)

    def _add(self, value: Any, after: Callable[[Any], bool] | None) -> bool:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"value": self._encode(value)}) + "\n")
        return after is not None and after(value)


def _complete_lines(path: Path | None) -> list[Any]:
    """Documents of a journal, without one that was cut short."""
    if path is None or not path.exists():
        return []
    if path.is_dir():
        raise ArgumentError(f"checkpoint must name a file, got the folder {str(path)!r}")
    text = path.read_text(encoding="utf-8")
    try:
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except ValueError as error:
        raise ArgumentError(f"checkpoint {str(path)!r} is no journal of mixmoe; name another file") from error


def _seed_state(rng: np.random.Generator) -> dict[str, Any]:
    """What makes the generators that `rng` will spawn."""
    seeds: Any = rng.bit_generator.seed_seq
    entropy = seeds.entropy if isinstance(seeds.entropy, int) else [int(word) for word in seeds.entropy]
    return {"entropy": entropy, "spawn_key": list(seeds.spawn_key), "spawned": seeds.n_children_spawned}


def _generator(header: Any, rng: Any, path: Path | None) -> np.random.Generator:
    """The generator given, or that of the file if none is."""
    if rng is not None or header is None:
        return checked_rng(rng)
    if not isinstance(header, Mapping) or "seed" not in header:
        raise ArgumentError(f"checkpoint {str(path)!r} is no journal of mixmoe; name another file")
    seed = header["seed"]
    seeds = np.random.SeedSequence(
        seed["entropy"], spawn_key=tuple(seed["spawn_key"]), n_children_spawned=seed["spawned"]
    )
    return np.random.default_rng(seeds)


def _check_header(found: Any, expected: Mapping[str, Any], path: Path | None) -> None:
    if not isinstance(found, Mapping) or found.get("mixmoe") != "journal":
        raise ArgumentError(f"checkpoint {str(path)!r} is no journal of mixmoe; name another file")
    for part, what in (("key", "other data, another model or other options"), ("seed", "another rng")):
        if found.get(part) != expected[part]:
            raise ArgumentError(f"checkpoint {str(path)!r} was written for {what}; name another file or delete it")
