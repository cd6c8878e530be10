"""Files that appear when they are complete, and stay what they were when writing them fails."""

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PathLike = str | os.PathLike[str]
_FAR = 2**30  # the byte that stands for a file where locks are of bytes


@contextmanager
def replacing(path: PathLike) -> Iterator[Path]:
    """A place beside `path` to write to, which takes its place at the end, or goes if there is an error.

    Parameters
    ----------
    path : path-like
        A link stays one, and what it leads to is replaced. What is no ordinary file, such as ``/dev/stdout``, is
        written to as it is.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.

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
    if not target.parent.is_dir():  # told by its own name, not by that of the file beside it
        raise FileNotFoundError(errno.ENOENT, "the folder is not there", str(target.parent))
    partial = target.with_name(f".{target.stem}.{os.getpid()}.part{target.suffix}")
    try:
        yield partial
        if target.exists():
            shutil.copymode(target, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


if sys.platform == "win32":
    import msvcrt

    def lock(file: BinaryIO) -> bool:
        """Take a file for this process until it is closed; whether no other has it."""
        place = file.tell()
        file.seek(_FAR)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        file.seek(place)
        return True

else:
    import fcntl

    def lock(file: BinaryIO) -> bool:
        """Take a file for this process until it is closed; whether no other has it."""
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def write_text(path: PathLike, text: str) -> None:
    """Write a text as UTF-8; the file holds all of it or what it held before."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def written(text: str, path: PathLike | None) -> str:
    """The text, also in a file if there is a path."""
    if path is not None:
        write_text(path, text)
    return text
