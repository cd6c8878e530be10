"""Networks that a user brings: what is refused of them, and how one becomes a `Network`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixmoe.errors import ArgumentError
from mixmoe.neural.blocks import Tensor, torch
from mixmoe.neural.network import Network, forward_module, lay_out, users_module, view_tensors
from mixmoe.neural.personal_layers import personal_tensors

PROBE_ROWS = 6  # on which a network is tried


def check_module(module: Any) -> None:
    """Refuse what is no network of rows that are computed each by itself, the same each time.

    Raises
    ------
    ArgumentError
    """
    if not isinstance(module, torch.nn.Module):
        what = (
            f"the class {module.__name__}; call it"
            if isinstance(module, type)
            else f"{type(module).__name__} {module!r}"
        )
        raise ArgumentError(f"network must be a torch.nn.Module, got {what}")
    if not any(True for _ in module.parameters()):
        raise ArgumentError(f"network {type(module).__name__} has no parameters; give a module with trainable tensors")
    for part in module.modules():
        kind = type(part).__name__
        if "Dropout" in kind and part.p > 0:
            raise ArgumentError(f"network has a {kind}, which is random, and a likelihood is not; leave it out")
        if "BatchNorm" in kind or "InstanceNorm" in kind:
            raise ArgumentError(
                f"network has a {kind}, which mixes the rows of persons; leave it out, inputs are standardised, or use "
                "LayerNorm"
            )


def output_shape(module: Any, n_in: int) -> tuple[int, ...]:
    """Shape of what a module makes of three rows.

    Raises
    ------
    ArgumentError
        If it cannot take them.
    """
    parameter = next(module.parameters())
    try:
        return tuple(module(torch.zeros(3, n_in, dtype=parameter.dtype, device=parameter.device)).shape)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise ArgumentError(
            f"network must take rows of the {n_in} inputs of the formula, shape (rows, {n_in}); with 3 rows it failed: "
            f"{error}"
        ) from error


def check_rows_apart(module: Any, rows: NDArray[np.float64]) -> None:
    """Refuse a module whose output at a row is not a function of that row alone.

    Jacobians are taken row by row and persons are padded to the longest of a block, so that the likelihood of a network
    that mixes rows would be another one's.

    Parameters
    ----------
    rows : ndarray, shape (n, p)
        Inputs that the module must take: a few of them are tried, with others put in the place of one.

    Raises
    ------
    ArgumentError
        If a second call, the other rows, or the number of rows change what a row leads to.
    """
    rng, parameters = np.random.default_rng(0), list(module.parameters())
    extreme = np.unique(np.concatenate([rows.argmin(axis=0), rows.argmax(axis=0)]))
    others = torch.from_numpy(np.concatenate([rows[extreme[:20]], rows[rng.integers(0, len(rows), 4)]])).to(
        parameters[0]
    )
    x = torch.from_numpy(rows[rng.integers(0, len(rows), PROBE_ROWS)]).to(parameters[0])
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        try:
            for p in parameters:  # a layer that starts at zero hides what is before it
                p += 0.3 * torch.as_tensor(rng.standard_normal(tuple(p.shape)), dtype=p.dtype, device=p.device)
            at_once = probed(module, x)
            if differs(at_once, probed(module, x)):
                raise ArgumentError(
                    f"network {type(module).__name__} has other outputs at a second call with the same rows; a "
                    "likelihood needs a network without chance and without memory"
                )
            for row in range(PROBE_ROWS):
                check_other_rows(module, x, at_once, row, others)
        finally:
            for p, value in zip(parameters, before, strict=True):
                p.copy_(value)


def check_other_rows(module: Any, x: Tensor, at_once: Tensor, row: int, others: Tensor) -> None:
    """Refuse a module where another value of one row is seen in others, or which gives a row alone another output."""
    kind = type(module).__name__
    why = (
        "NME takes each row by itself; recurrent, convolutional and attention networks along the rows of a person are "
        "not supported: write one that computes each row by itself, with lags of inputs in the formula"
    )
    for other in others:
        changed = x.clone()
        changed[row] = other
        now = probed(module, changed)
        moved = [k for k in range(len(x)) if k != row and differs(at_once[k], now[k])]
        if moved:
            raise ArgumentError(
                f"network {kind} mixes rows: another value of row {row + 1} changes its output at row {moved[0] + 1}; "
                f"{why}"
            )
    if differs(at_once[row], probed(module, x[row : row + 1])[0]):
        raise ArgumentError(
            f"network {kind} mixes rows: row {row + 1} of {len(x)} has another output than the same row alone, so that "
            f"it looks at the place or the number of rows; {why}"
        )


def probed(module: Any, x: Tensor) -> Tensor:
    """Outputs of a module at some rows, shape (rows, d)."""
    return module(x).reshape(len(x), -1)


def differs(a: Tensor, b: Tensor) -> bool:
    """Whether outputs differ by more than rounding."""
    return not torch.allclose(a, b, rtol=1e-7, atol=1e-9, equal_nan=True)


def wrap_module(
    module: Any,
    n_in: int,
    n_out: int,
    behind: Sequence[tuple[str, tuple[int, ...]]] = (),
    rows: NDArray[np.float64] | None = None,
) -> Network:
    """A user's own ``torch.nn.Module`` as a network.

    The module, which passed `check_module`, must map rows ``(rows, n_in)`` to outputs ``(rows, n_out)`` or
    ``(rows,)``, each row by itself.

    Parameters
    ----------
    behind : sequence of (str, tuple of int)
        Tensors beside those of the module, see `chain_shapes`.
    rows : ndarray, shape (n, n_in), optional
        Standardised inputs on which it is tried; default: random ones.

    Raises
    ------
    ArgumentError
        If it takes or returns another shape, or a row's output is not a function of that row alone.
    """
    shapes = [(name, tuple(value.shape)) for name, value in module.named_parameters()]
    shape = output_shape(module, n_in)
    if shape != (3, n_out) and not (n_out == 1 and shape == (3,)):
        raise ArgumentError(f"network must map (rows, {n_in}) to (rows, {n_out}); for 3 rows it returned shape {shape}")
    drawn = np.random.default_rng(0).standard_normal((40, n_in))
    check_rows_apart(module, drawn if rows is None or not len(rows) else rows)
    network = Network(n_in, n_out, (), "", lay_out([*shapes, *behind]), module)
    check_mapping(network)
    return network


def check_mapping(network: Network) -> None:
    """Refuse a user's module that cannot be mapped over persons.

    Raises
    ------
    ArgumentError
    """
    kind = {"dtype": torch.float64, "device": next(users_module(network).parameters()).device}
    tensors = view_tensors(network, personal_tensors(()), torch.zeros(network.n_parameters, **kind), None)
    try:
        forward_module(network, tensors, torch.zeros(2, 3, network.n_in, **kind))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ArgumentError(
            f"network {type(network.module).__name__} cannot be mapped over persons with torch.func.vmap; write it "
            f"without steps in place and without decisions that depend on values: {error}"
        ) from error
