"""torch, loaded on first use, and rows of persons as padded blocks that go through one batched product."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array, IntArray
from mixmoe.errors import ArgumentError, MissingExtraError

Tensor: TypeAlias = Any


def load_torch() -> ModuleType:
    """The torch module.

    Raises
    ------
    MissingExtraError
        If torch is not installed.
    """
    try:
        return import_module("torch")
    except ModuleNotFoundError as error:
        raise MissingExtraError("mm.NME", "torch", "neural") from error


class LazyTorch:
    """Stand-in for the torch module; the first attribute asked for imports it."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(load_torch(), name)
        # Kept, as small steps ask a hundred thousand times, and each time the import system would be asked.
        setattr(self, name, found)
        return found


torch: Any = LazyTorch()


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it torch computes on one thread, so that results do not depend on how many a process may use."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def to_array(value: Any) -> Any:
    """A tensor of any device as an array."""
    return value.detach().cpu().numpy()


def select_device(device: str) -> str:
    """A device that torch can use here.

    Parameters
    ----------
    device : str
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"`` for a GPU if there is one. Not ``"mps"``, which has no double
        precision.

    Raises
    ------
    ArgumentError
        If torch does not know the device, cannot reach it, or cannot compute there in double precision.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if not isinstance(device, str):
            raise TypeError(type(device).__name__)
        torch.ones(1, dtype=torch.float64, device=device).sum().item()
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:  # NotImplementedError is a RuntimeError
        # what torch says may be a screen of its internals
        usable = ", ".join(repr(name) for name in ("cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))))
        raise ArgumentError(
            f"device {device!r} is none on which torch can compute here in double precision; use {usable} or 'auto'"
        ) from error
    return device


PADDING = 1.25  # a block ends where its longest member would be this much longer than the next


@dataclass(frozen=True, slots=True)
class Block:
    """Some persons (or sequences) with their rows, padded to the longest.

    Attributes
    ----------
    persons : Tensor of int, shape (B,)
        Person that each member belongs to: a row of the effects.
    x : Tensor, shape (B, T, p)
    y : Tensor, shape (B, T)
        Response, or codes of the response as integers; zero where padded.
    mask : Tensor, shape (B, T)
        One where there is a row, zero where padded.
    rows : ndarray, shape (B, T)
        Place of each cell in the row arrays; zero where padded.
    levels : Tensor of int, shape (B, T, G)
        Level of each row in each further grouping; -1 where padded or not known.
    given : Tensor, shape (B, T)
        One where the state is known beforehand: validation rows of a CRF are scored given those before them.
    weights : Tensor, shape (B, T)
        Of the log-densities of the rows, one without weights; zero where padded.
    """

    persons: Tensor
    x: Tensor
    y: Tensor
    mask: Tensor
    rows: IntArray
    levels: Tensor
    given: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True)
class Blocks:
    """All members in blocks of similar length.

    Attributes
    ----------
    blocks : tuple of Block
    n_rows : int
    """

    blocks: tuple[Block, ...]
    n_rows: int

    def __iter__(self) -> Iterator[Block]:
        return iter(self.blocks)


def split_lengths(lengths: IntArray, max_cells: int) -> list[int]:
    """Cuts of a decreasing run of lengths into blocks with little padding and at most `max_cells` cells.

    Parameters
    ----------
    lengths : ndarray, shape (M,)
        In decreasing order.
    max_cells : int
        Largest number of rows, padding included, in one block.

    Returns
    -------
    list of int
        First member of each block, and M at the end.
    """
    cuts, begin = [0], 0
    for place in range(1, len(lengths)):
        longest = max(int(lengths[begin]), 1)
        wasteful = longest > PADDING * max(int(lengths[place]), 1) and (place - begin) * longest >= 2048
        if wasteful or (place - begin + 1) * longest > max_cells:
            cuts.append(place)
            begin = place
    return [*cuts, len(lengths)] if len(lengths) else [0]


def build_blocks(
    x: Array,
    y: NDArray,
    codes: IntArray,
    n_members: int,
    *,
    persons: IntArray | None = None,
    levels: IntArray | None = None,
    given: NDArray[np.bool_] | None = None,
    weights: Array | None = None,
    device: str = "cpu",
    max_cells: int = 100_000,
) -> Blocks:
    """Padded blocks from rows sorted by member.

    Parameters
    ----------
    x : ndarray, shape (n, p)
    y : ndarray, shape (n,)
        Floats, or integer codes of a category.
    codes : ndarray of int, shape (n,)
        Member of each row, non-decreasing.
    n_members : int
        Members in all; those without a row are left out.
    persons : ndarray of int, shape (n_members,), optional
        Person of each member, where members are sequences; default: the members are the persons.
    levels : ndarray of int, shape (n, G), optional
        Level of each row in each further grouping, -1 for none; default: no such grouping.
    given : ndarray of bool, shape (n,), optional
        Rows whose state is known beforehand; default: none.
    weights : ndarray, shape (n,), optional
        Of the log-densities of the rows; default: one.
    device : str
    max_cells : int
        Largest number of cells in one block: bounds the memory of one step.
    """
    lengths = np.bincount(codes, minlength=n_members).astype(np.intp)
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1])).astype(np.intp)
    order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
    owner = np.arange(n_members) if persons is None else persons
    cuts = split_lengths(lengths[order], max_cells)
    of_rows = np.empty((len(codes), 0), dtype=np.intp) if levels is None else levels
    known = np.zeros(len(codes), dtype=bool) if given is None else given
    each = np.ones(len(codes)) if weights is None else weights
    blocks = tuple(
        pad_block(x, y, of_rows, known, each, owner[order[a:b]], starts[order[a:b]], lengths[order[a:b]], device)
        for a, b in pairwise(cuts)
    )
    return Blocks(blocks, len(codes))


def pad_block(
    x: Array,
    y: NDArray,
    levels: IntArray,
    given: NDArray[np.bool_],
    weights: Array,
    persons: IntArray,
    starts: IntArray,
    lengths: IntArray,
    device: str,
) -> Block:
    """One padded block of members whose rows begin at `starts`.

    Parameters
    ----------
    x : ndarray, shape (n, p)
    y : ndarray, shape (n,)
    levels : ndarray of int, shape (n, G)
    given : ndarray of bool, shape (n,)
    weights : ndarray, shape (n,)
    persons, starts, lengths : ndarray, shape (B,)
    device : str
    """
    step = np.arange(max(int(lengths.max()), 1))
    present = step[None, :] < lengths[:, None]
    rows = np.where(present, starts[:, None] + step[None, :], 0)
    return Block(
        torch.as_tensor(persons, device=device),
        torch.as_tensor(np.where(present[:, :, None], x[rows], 0.0), device=device),
        torch.as_tensor(np.where(present, y[rows], 0).astype(y.dtype), device=device),
        torch.as_tensor(present.astype(float), device=device),
        rows,
        torch.as_tensor(np.where(present[:, :, None], levels[rows], -1), device=device),
        torch.as_tensor((present & given[rows]).astype(float), device=device),
        torch.as_tensor(np.where(present, weights[rows], 0.0), device=device),
    )


def to_rows(blocks: Blocks, values: list[Tensor]) -> Array:
    """Values of padded cells, put back in the order of the rows.

    Parameters
    ----------
    blocks : Blocks
    values : list of Tensor, shape (B, T, ...)
        One per block.

    Returns
    -------
    ndarray, shape (n, ...)
    """
    if not values:
        return np.empty(0)
    out = np.empty((blocks.n_rows, *values[0].shape[2:]))
    for block, value in zip(blocks, values, strict=True):
        present = to_array(block.mask) > 0
        out[block.rows[present]] = to_array(value)[present]
    return out
