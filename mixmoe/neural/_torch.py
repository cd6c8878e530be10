"""torch, loaded on first use: importing mixmoe must neither need it nor pay for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, TypeAlias

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

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(load_torch(), name)


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
