"""Feed-forward networks as flat parameter vectors, any tensor of which may differ between persons."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mixmoe.errors import ArgumentError
from mixmoe.neural.blocks import Tensor, torch

if TYPE_CHECKING:
    from torch.nn import Module

    from mixmoe.neural.personal_layers import Personal


NO_CLUMPING = math.log(1e5)  # log of the theta of counts from which on they are as good as Poisson ones
FORBIDDEN = -1e30  # score of what is ruled out: finite, so that differences of scores are numbers
CHAIN = ("shifts", "transitions")  # tensors of a CRF behind the layers: its scores, and what covariates add to them
LAW = ("scale", "steps")  # the same of other laws: log dispersion with its covariates, logs of distances of thresholds
BEHIND = (*CHAIN, *LAW)
SHARED_ONLY = ("shifts", *LAW)  # tensors that cannot be personal
ACTIVATIONS = ("tanh", "relu", "elu", "gelu", "silu", "softplus", "sigmoid")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One parameter tensor within the flat vector.

    Attributes
    ----------
    name : str
        ``layer1.weight``, ``layer1.bias``, ..., ``shifts``, ``transitions``, or the name in the user's module.
    shape : tuple of int
    start : int
        Its first entry in the flat vector.
    """

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        """One past its last entry in the flat vector."""
        return self.start + math.prod(self.shape)


def lay_out(shapes: Sequence[tuple[str, tuple[int, ...]]]) -> tuple[TensorSpec, ...]:
    """Tensors one after the other in a flat vector."""
    specs, start = [], 0
    for name, shape in shapes:
        specs.append(TensorSpec(name, shape, start))
        start = specs[-1].stop
    return tuple(specs)


@dataclass(frozen=True, slots=True)
class Network:
    """A feed-forward network with `hidden` layers of one activation.

    Attributes
    ----------
    n_in, n_out : int
        Rows of a CRF have, behind the inputs, the covariates of the person that the transitions go with.
    hidden : tuple of int
        Widths; empty for a linear model.
    activation : str
    tensors : tuple of TensorSpec
        The network's tensors, and after them those of a CRF, if any.
    module : torch.nn.Module or None
        A user's own network; then `hidden` and `activation` say nothing.
    moves : tuple of (int, int, float)
        Transitions whose score is given, by the codes of their states: minus infinity for those that there are not.
    has_offset : bool
        Whether the last column of a row is what is added to the first output.
    scores : tuple of float
        What ordered categories count as.
    """

    n_in: int
    n_out: int
    hidden: tuple[int, ...]
    activation: str
    tensors: tuple[TensorSpec, ...]
    module: "Module | None" = None
    moves: tuple[tuple[int, int, float], ...] = ()
    has_offset: bool = False
    scores: tuple[float, ...] = ()

    @property
    def law(self) -> TensorSpec | None:
        """The tensor with what the law of the response has beside the outputs of the layers."""
        return self.tensors[-1] if self.tensors[-1].name in LAW else None

    @property
    def n_outputs(self) -> int:
        """Outputs of a row: those of the layers, and what its law has beside them, see `response_law`."""
        if self.law is None:
            return self.n_out
        return self.n_out + (1 if self.law.name == "scale" else math.prod(self.law.shape))

    @property
    def free_moves(self) -> NDArray[np.bool_]:
        """Which transitions of a chain have scores to estimate, shape (C * C,)."""
        out = np.ones((self.n_out, self.n_out), dtype=bool)
        for a, b, _ in self.moves:
            out[a, b] = False
        return out.ravel()

    @property
    def is_pinned(self) -> bool:
        """Whether a score of a transition is given, so that no constant can be added to all of them."""
        return any(math.isfinite(score) for *_, score in self.moves)

    @property
    def n_parameters(self) -> int:
        """Length of the flat vector."""
        return self.tensors[-1].stop

    @property
    def n_hidden(self) -> int:
        """Entries of the flat vector that belong to hidden layers; none known of a user's own network."""
        return 0 if self.module is not None else self.tensors[2 * len(self.hidden)].start

    @property
    def depth(self) -> int:
        """Layers with weights, the last one included."""
        return len(self.hidden) + 1

    @property
    def width(self) -> int:
        """Inputs of the last layer."""
        return self.hidden[-1] if self.hidden else self.n_in


def checked_hidden(hidden: Any) -> tuple[int, ...]:
    """Widths of the hidden layers.

    Raises
    ------
    ArgumentError
        If they are not a tuple or list of positive whole numbers.
    """
    whole = (int, np.integer)
    if not isinstance(hidden, list | tuple) or any(isinstance(w, bool) or not isinstance(w, whole) for w in hidden):
        raise ArgumentError(
            f"hidden must hold positive whole numbers, one per hidden layer, such as (10, 5), or () for none; got "
            f"{hidden!r}; several networks are compared by mm.select"
        )
    if any(width < 1 for width in hidden):
        raise ArgumentError(f"hidden must hold positive whole numbers, one per hidden layer, got {hidden!r}")
    return tuple(int(width) for width in hidden)


def chain_shapes(n_states: int, n_shifts: int) -> list[tuple[str, tuple[int, ...]]]:
    """Tensors of a CRF of so many states, with so many covariates of its transitions; none without states."""
    scores = [("transitions", (n_states, n_states))] if n_states else []
    return [*([("shifts", (n_shifts, n_states, n_states))] if n_shifts else []), *scores]


def build_network(
    n_in: int,
    n_out: int,
    hidden: Sequence[int],
    activation: str = "tanh",
    behind: Sequence[tuple[str, tuple[int, ...]]] = (),
) -> Network:
    """A network of the given widths, `behind` being what else there are of tensors, see `chain_shapes`.

    Raises
    ------
    ArgumentError
        For an unknown activation.
    """
    if activation not in ACTIVATIONS:
        raise ArgumentError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    widths = [n_in, *hidden, n_out]
    shapes: list[tuple[str, tuple[int, ...]]] = []
    for k in range(len(widths) - 1):
        shapes.append((f"layer{k + 1}.weight", (widths[k], widths[k + 1])))
        shapes.append((f"layer{k + 1}.bias", (widths[k + 1],)))
    return Network(n_in, n_out, tuple(hidden), activation, lay_out([*shapes, *behind]))


def initial_parameters(network: Network, rng: np.random.Generator) -> NDArray[np.float64]:
    """Random start: uniform on +-1/sqrt(inputs) as torch.nn.Linear has it; a user's module keeps its own.

    A linear network starts at zero: it has no symmetry to break, and the published rule, which stops early, would
    otherwise depend on its start.

    Returns
    -------
    ndarray, shape (P,)
    """
    theta = np.zeros(network.n_parameters)
    if network.module is not None:
        own = torch.cat([p.detach().reshape(-1).cpu().double() for p in network.module.parameters()]).numpy()
        theta[: len(own)] = own
        return theta
    if not network.hidden:
        return theta
    widths = [network.n_in, *network.hidden]
    for spec in network.tensors:
        if spec.name in BEHIND:
            continue
        layer = int(re.findall(r"\d+", spec.name)[0]) - 1
        bound = 1.0 / math.sqrt(max(widths[layer], 1))
        theta[spec.start : spec.stop] = rng.uniform(-bound, bound, spec.stop - spec.start)
    return theta


def view_tensors(network: Network, personal: "Personal", theta: Tensor, eta: Tensor | None) -> list[Tensor]:
    r"""Parameter tensors of the persons of a block.

    Parameters
    ----------
    theta : Tensor, shape (P,)
        Population parameters.
    eta : Tensor, shape (B, q), or None
        Effects of the persons; None for the population.

    Returns
    -------
    list of Tensor
        In the order of the network: shape (\*shape) where shared, (B, \*shape) where personal.
    """
    out = []
    for spec in network.tensors:
        base = theta[spec.start : spec.stop].view(spec.shape)
        columns = None if eta is None else personal.columns(spec.name)
        if columns is None or eta is None:
            out.append(base)
            continue
        mine = eta[:, columns]
        if mine.shape[1] < base.numel():
            places = torch.as_tensor(personal.places(spec), device=mine.device)
            mine = mine.new_zeros(len(mine), base.numel()).index_copy(1, places, mine)
        out.append(base + mine.reshape(-1, *spec.shape))
    return out


def activate(name: str, value: Tensor) -> Tensor:
    """The activation function of that name, elementwise."""
    return torch.tanh(value) if name == "tanh" else getattr(torch.nn.functional, name)(value)


def as_row(bias: Tensor) -> Tensor:
    """A bias, shared (h,) or personal (B, h), ready to be added to (B, T, h)."""
    return bias.unsqueeze(-2)


def hidden_features(network: Network, tensors: Sequence[Tensor], x: Tensor) -> Tensor:
    """Inputs of the last layer, shape (B, T, h)."""
    h = x[..., : network.n_in]
    for k in range(network.depth - 1):
        h = activate(network.activation, h @ tensors[2 * k] + as_row(tensors[2 * k + 1]))
    return h


def forward(network: Network, tensors: Sequence[Tensor], x: Tensor) -> Tensor:
    """Outputs of a network.

    Parameters
    ----------
    tensors : list of Tensor
        From `view_tensors`.
    x : Tensor, shape (B, T, p)

    Returns
    -------
    Tensor, shape (B, T, d)
        Of the layers, and behind them what the law of the response has beside these, see `response_law`.
    """
    if network.module is not None:
        return with_law(network, tensors, x, forward_module(network, tensors, x))
    last = 2 * (network.depth - 1)
    outputs = hidden_features(network, tensors, x) @ tensors[last] + as_row(tensors[last + 1])
    return with_law(network, tensors, x, outputs)


def with_law(network: Network, tensors: Sequence[Tensor], x: Tensor, outputs: Tensor) -> Tensor:
    """Outputs (B, T, d) with their offset, and what the law of the response has beside them."""
    if network.has_offset:
        outputs = outputs + x[..., -1:]
    if network.law is None:
        return outputs
    if network.law.name == "steps":
        return torch.cat([outputs, tensors[-1].expand(*outputs.shape[:-1], -1)], dim=-1)
    return torch.cat([outputs, law_columns(network, x) @ tensors[-1].unsqueeze(-1)], dim=-1)


def law_columns(network: Network, x: Tensor) -> Tensor:
    """One and the covariates of the log dispersion, which stand behind the inputs, (B, T, 1 + v)."""
    size = math.prod(network.tensors[-1].shape) - 1
    return torch.cat([torch.ones_like(x[..., :1]), x[..., network.n_in : network.n_in + size]], dim=-1)


def no_clumping(network: Network, theta: NDArray[np.float64]) -> bool:
    """Whether the dispersion of counts has left all that data can tell from none."""
    return network.law is not None and network.law.name == "scale" and bool(theta[network.law.start] > NO_CLUMPING)


def law_jacobian(network: Network, x: Tensor) -> Tensor:
    """Derivatives of what the law has beside the outputs of the layers in all parameters, (B, T, d, P)."""
    spec, lead = network.tensors[-1], x.shape[:2]
    if spec.name == "steps":
        own = torch.eye(math.prod(spec.shape), dtype=x.dtype, device=x.device).expand(*lead, -1, -1)
    else:
        own = law_columns(network, x).unsqueeze(-2)
    return torch.nn.functional.pad(own, (spec.start, 0))


def users_module(network: Network) -> "Module":
    """The module that a user has given as the network."""
    if network.module is None:
        raise TypeError("a feed-forward network holds no module of a user; ask network.module first")
    return network.module


def module_call(network: Network) -> Callable[..., Tensor]:
    """A function of (tensors of one person, her rows (T, p)) that runs the user's module; returns (T, d)."""
    module = users_module(network)
    names = [name for name, _ in module.named_parameters()]

    def call(tensors: Sequence[Tensor], x: Tensor) -> Tensor:
        values = dict(zip(names, tensors, strict=False))
        out = torch.func.functional_call(module, values, (x,))
        return out.reshape(x.shape[0], network.n_out)

    return call


def own_tensors(network: Network, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that the layers use: all but those of a chain or of the law of the response."""
    return [t for t, spec in zip(tensors, network.tensors, strict=True) if spec.name not in BEHIND]


def transition_scores(network: Network, tensors: Sequence[Tensor], x: Tensor) -> Tensor:
    """Transition scores of the sequences of a block (CRF): shared (C, C), or by sequence (B, C, C).

    Parameters
    ----------
    tensors : list of Tensor
        From `view_tensors`.
    x : Tensor, shape (B, T, p + m)
        Behind the inputs the covariates of the person, the same in all rows of a sequence.
    """
    if x.shape[-1] == network.n_in:
        return with_given_moves(network, tensors[-1])
    shifted = tensors[-1] + torch.einsum("bm,mcd->bcd", x[:, 0, network.n_in :], tensors[-2])
    return with_given_moves(network, shifted)


def with_given_moves(network: Network, scores: Tensor) -> Tensor:
    """Transition scores (..., C, C), those that are given in their places."""
    if not network.moves:
        return scores
    given, free = torch.zeros_like(scores), torch.as_tensor(network.free_moves, device=scores.device)
    for a, b, score in network.moves:
        given[..., a, b] = score if math.isfinite(score) else FORBIDDEN
    return torch.where(free.view(network.n_out, network.n_out), scores, given)


def forward_module(network: Network, tensors: Sequence[Tensor], x: Tensor) -> Tensor:
    """Outputs of a user's module, mapped over the persons of a block."""
    own = own_tensors(network, tensors)
    shared = [tuple(t.shape) == spec.shape for t, spec in zip(own, network.tensors, strict=False)]
    dims = [None if is_shared else 0 for is_shared in shared]
    rows = x[..., : network.n_in]
    return torch.func.vmap(module_call(network), in_dims=(dims, 0), randomness="error")(own, rows)


def slope(activation: str, before: Tensor) -> Tensor:
    """Derivative of the activation at `before`, elementwise."""
    with torch.enable_grad():
        at = before.detach().requires_grad_(True)
        return torch.autograd.grad(activate(activation, at).sum(), at)[0]


def jacobian(network: Network, personal: "Personal", tensors: Sequence[Tensor], x: Tensor) -> Tensor:
    """Derivatives of every row's outputs in its person's own parameters.

    Returns
    -------
    Tensor, shape (B, T, d, q)

    Notes
    -----
    Back-propagation with the rows kept apart: for layer l with input h and derivative delta in its pre-activation,
    the derivative is ``h delta'`` in the weights and ``delta`` in the bias.
    """
    if network.module is not None:
        return jacobian_module(network, personal, tensors, x)
    inputs, before = [x[..., : network.n_in]], []
    for k in range(network.depth - 1):
        before.append(inputs[-1] @ tensors[2 * k] + as_row(tensors[2 * k + 1]))
        inputs.append(activate(network.activation, before[-1]))
    columns = [personal_jacobian(network, personal, tensors, inputs, before, d) for d in range(network.n_out)]
    return columns[0].unsqueeze(2) if network.n_out == 1 else torch.stack(columns, dim=2)


def personal_jacobian(
    network: Network,
    personal: "Personal",
    tensors: Sequence[Tensor],
    inputs: Sequence[Tensor],
    before: Sequence[Tensor],
    output: int,
) -> Tensor:
    """Derivatives of one output in the personal parameters, shape (B, T, q)."""
    names = {spec.name for spec in personal.tensors}
    lowest = min((int(re.findall(r"\d+", name)[0]) for name in names if name not in BEHIND), default=network.depth)
    B, T = inputs[0].shape[:2]
    delta = torch.zeros(B, T, network.n_out, dtype=inputs[0].dtype, device=inputs[0].device)
    delta[:, :, output] = 1.0
    pieces: dict[str, Tensor] = {}
    for k in range(network.depth - 1, lowest - 2, -1):
        pieces[f"layer{k + 1}.bias"] = delta
        if f"layer{k + 1}.weight" in names:
            pieces[f"layer{k + 1}.weight"] = (inputs[k].unsqueeze(-1) * delta.unsqueeze(-2)).flatten(2)
        if k > lowest - 1:
            delta = (delta @ tensors[2 * k].transpose(-1, -2)) * slope(network.activation, before[k - 1])
    for spec in personal.tensors:  # outputs of the layers do not depend on the others
        if spec.name in BEHIND:
            pieces[spec.name] = delta.new_zeros(B, T, math.prod(spec.shape))
    found = torch.cat([*(pieces[spec.name] for spec in personal.tensors), delta[..., :0]], dim=-1)
    if found.shape[-1] == personal.q:
        return found
    starts = np.cumsum([0, *(math.prod(spec.shape) for spec in personal.tensors)])
    kept = np.concatenate(
        [start + personal.places(spec) for start, spec in zip(starts, personal.tensors, strict=False)]
    )
    return found[..., torch.as_tensor(kept, device=found.device)]


def jacobian_module(network: Network, personal: "Personal", tensors: Sequence[Tensor], x: Tensor) -> Tensor:
    """Derivatives of a user's module in the personal tensors, mapped over rows and persons."""
    call = module_call(network)
    own = own_tensors(network, tensors)
    moves = [spec for spec in personal.tensors if spec.name in BEHIND]
    zeros = x.new_zeros(*x.shape[:2], network.n_out, sum(math.prod(spec.shape) for spec in moves))
    if len(moves) == len(personal.tensors):
        return zeros
    places = [k for k, spec in enumerate(network.tensors) if personal.columns(spec.name) is not None and k < len(own)]
    shared = [tuple(t.shape) == spec.shape for t, spec in zip(own, network.tensors, strict=False)]

    def row_outputs(mine: list[Tensor], others: list[Tensor], row: Tensor) -> Tensor:
        values = list(others)
        for k, value in zip(places, mine, strict=True):
            values[k] = value
        return call(values, row.unsqueeze(0))[0]

    over_rows = torch.func.vmap(torch.func.jacrev(row_outputs), in_dims=(None, None, 0))
    mine = [own[k] if not shared[k] else own[k].expand(x.shape[0], *own[k].shape) for k in places]
    dims = [None if is_shared else 0 for is_shared in shared]
    pieces = torch.func.vmap(over_rows, in_dims=([0] * len(places), dims, 0))(mine, own, x[..., : network.n_in])
    return torch.cat([*(piece.flatten(3) for piece in pieces), zeros], dim=-1)
