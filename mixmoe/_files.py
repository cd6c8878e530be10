"""Files that appear when they are complete, and stay what they were when writing them fails."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PathLike = str | os.PathLike[str]


@contextmanager
def replacing(path: PathLike) -> Iterator[Path]:
    """A place beside `path` to write to, which takes its place at the end, or goes if there is an error.

    Parameters
    ----------
    path : path-like
        A link stays one, and what it leads to is replaced. What is no ordinary file, such as ``/dev/stdout``, is
        written to as it is.

    Yields
    ------
    Path
        In the same folder, with the same ending.
    """
    target = Path(os.path.realpath(path))
    device = os.path.abspath(path).startswith(("/dev/", "/proc/"))  # which may lead to a file, but is no name of it
    if device or (target.exists() and not target.is_file()):
        yield Path(path)
        return
    partial = target.with_name(f".{target.stem}.{os.getpid()}.part{target.suffix}")
    try:
        yield partial
        if target.exists():
            shutil.copymode(target, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: PathLike, text: str) -> None:
    """Write a text as UTF-8; the file holds all of it or what it held before."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
