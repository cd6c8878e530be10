"""Parameters of a mixture of networks: their places, their names, and the way from the network's scale to the user's.

Free parameters are those of standardised columns, inputs and response; the reported ones have the same order and number
and differ from them in coefficients, standard deviations and correlations, which are in the units of the data.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.design.design import Design
from mixmoe.mixture.estimate import Parameter, ParamLayout
from mixmoe.neural.blocks import Tensor, torch
from mixmoe.numerics.linalg import semidefinite_cholesky

Sharing = Literal["expert", "common"]
Places = NDArray[np.intp]
NO_SPREAD = 1e-8  # of the largest, of an input that is the same everywhere


@dataclass(frozen=True, slots=True)
class Body:
    """Hidden layers of a network.

    Attributes
    ----------
    inputs : tuple of str
    widths : tuple of int
        Of the hidden layers; the last one gives the features.
    """

    inputs: tuple[str, ...]
    widths: tuple[int, ...]

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.widths[-1]

    @property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of each layer."""
        return tuple(zip((len(self.inputs), *self.widths[:-1]), self.widths, strict=True))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the weights, layer by layer: each output's weights of the inputs, then the biases."""
        found: list[str] = []
        sources = self.inputs
        for k, (_, width) in enumerate(self.layers, start=1):
            found += [f"layer{k}.weight[{j + 1},{source}]" for j in range(width) for source in sources]
            found += [f"layer{k}.bias[{j + 1}]" for j in range(width)]
            sources = tuple(str(j + 1) for j in range(width))
        return tuple(found)


@dataclass(frozen=True)
class Structure:
    """Which parameters there are. Not slotted: places are kept once they are asked for.

    Attributes
    ----------
    n_experts : int
    terms, gate_terms, random : tuple of str
        Columns with coefficients of their own, beside networks or of linear ones, and those of the random effects.
    body, gate_body : Body or None
        None where there is no hidden layer.
    bodies : {"expert", "common"}
        Whether each expert has hidden layers of its own.
    correlated : bool
        Whether random effects are.
    cov_re, residual : {"expert", "common"}
    group : str or None
    """

    n_experts: int
    terms: tuple[str, ...]
    gate_terms: tuple[str, ...]
    random: tuple[str, ...]
    body: Body | None
    gate_body: Body | None
    bodies: Sharing
    correlated: bool
    cov_re: Sharing
    residual: Sharing
    group: str | None

    @cached_property
    def entries(self) -> tuple[Places, Places]:
        """Rows and columns of the free entries of the factor of a covariance of random effects."""
        q = len(self.random)
        return np.tril_indices(q) if self.correlated else (np.arange(q), np.arange(q))

    @cached_property
    def places(self) -> "dict[str, Places]":
        """Positions by name; of random effects, residuals and hidden layers repeated where experts share them.

        ``beta`` (K, p), ``gamma`` (K - 1, m), ``factor`` (K, c), ``sigma`` (K,), ``body`` (K, b), ``head`` (K, h),
        ``gate_body`` (g,), ``gate_head`` (K - 1, h).
        """
        K, end = self.n_experts, 0
        found: dict[str, Places] = {}

        def take(name: str, rows: int, columns: int, repeat: int = 1) -> None:
            nonlocal end
            found[name] = np.repeat(np.arange(end, end + rows * columns).reshape(rows, columns), repeat, axis=0)
            end += rows * columns

        def shared(name: str, how: Sharing, columns: int) -> None:
            take(name, *((K, columns) if how == "expert" else (1, columns, K)))

        body, gate = self.body, self.gate_body
        take("beta", K, len(self.terms))
        take("gamma", K - 1, len(self.gate_terms))
        shared("factor", self.cov_re, len(self.entries[0]))
        shared("sigma", self.residual, 1)
        shared("body", self.bodies, len(body.names) if body else 0)
        take("head", K, body.n_features if body else 0)
        take("gate_body", 1, len(gate.names) if gate and K > 1 else 0)
        take("gate_head", K - 1, gate.n_features if gate else 0)
        found["sigma"] = found["sigma"][:, 0]
        found["gate_body"] = found["gate_body"][0]
        return found

    @cached_property
    def size(self) -> int:
        """Number of parameters."""
        return len(self.layout.parameters)

    @cached_property
    def penalised(self) -> Places:
        """Positions of weights that have a prior of their own: hidden layers and the heads of the experts."""
        at = self.places
        return np.unique(np.concatenate([at["body"].ravel(), at["head"].ravel(), at["gate_body"]]))

    @cached_property
    def diagonal(self) -> Places:
        """Positions of the diagonals of the factors of the covariances of random effects."""
        return np.unique(self.places["factor"][:, np.flatnonzero(self.entries[0] == self.entries[1])])

    @cached_property
    def logarithmic(self) -> Places:
        """Positions of logarithms among the free parameters."""
        return np.unique(self.places["sigma"])

    @cached_property
    def layout(self) -> ParamLayout:
        """Names of the parameters in their order."""
        experts = range(1, self.n_experts + 1)
        out = [Parameter(f"expert{k}.{name}", "expert", name, k) for k in experts for name in self.terms]
        out += [Parameter(f"gate{k}.{name}", "gate", name, k) for k in experts[1:] for name in self.gate_terms]
        rows, columns = np.tril_indices(len(self.random), -1)
        for k in experts if self.cov_re == "expert" else [None]:
            for name in self.random:
                term = f"sd({name})"
                out.append(Parameter(f"sd{k or ''}({name}|{self.group})", "random", term, k, tested=False))
            for row, column in zip(rows, columns, strict=True) if self.correlated else ():
                pair = f"{self.random[column]},{self.random[row]}"
                out.append(Parameter(f"corr{k or ''}({pair}|{self.group})", "random", f"corr({pair})", k))
        for k in experts if self.residual == "expert" else [None]:
            out.append(Parameter(f"sigma{k or ''}", "residual", "sigma", k, tested=False))

        def weights(owner: str, names: tuple[str, ...], k: int | None) -> list[Parameter]:
            return [Parameter(f"{owner}.{name}", "smooth", name, k, tested=False) for name in names]

        if self.body is not None:
            heads = tuple(f"last[{j + 1}]" for j in range(self.body.n_features))
            for k in experts if self.bodies == "expert" else [None]:
                out += weights(f"expert{k}" if k else "common", self.body.names, k)
            for k in experts:
                out += weights(f"expert{k}", heads, k)
        if self.gate_body is not None and self.n_experts > 1:
            heads = tuple(f"last[{j + 1}]" for j in range(self.gate_body.n_features))
            out += weights("gate", self.gate_body.names, None)
            for k in experts[1:]:
                out += weights(f"gate{k}", heads, k)
        return ParamLayout(tuple(out))


@dataclass(frozen=True, slots=True)
class Scales:
    """What the working columns are in the units of the data: ``X A^-1``, ``W C^-1``, ``Z B^-1``, ``(y - X b0) / s``.

    Attributes
    ----------
    center : ndarray, shape (p,)
        b0.
    response : float
        s.
    expert, gate, random : ndarray
        A, C, B.
    inputs, gate_inputs : tuple of (ndarray, ndarray)
        Mean and standard deviation of the inputs of networks.
    """

    center: Array
    response: float
    expert: Array
    gate: Array
    random: Array
    inputs: tuple[Array, Array]
    gate_inputs: tuple[Array, Array]


def scales_of(
    design: Design, linear: Array, gate: Array, inputs: Array, gate_inputs: Array, correlated: bool
) -> Scales:
    """Scales on which columns are orthogonal and inputs and response standardised.

    Parameters
    ----------
    design : Design
        Of the data.
    linear, gate : ndarray, shape (n, p), (N, m)
        Columns with coefficients of their own.
    inputs, gate_inputs : ndarray, shape (n, d), (N, e)
        Of networks with hidden layers.
    correlated : bool
    """
    y = np.asarray(design.response, dtype=float)
    # The mean is taken off only where an intercept, or columns that add up to one, can carry it.
    center = np.linalg.lstsq(linear, np.full(len(y), y.mean()), rcond=None)[0]
    if not np.allclose(linear @ center, y.mean(), rtol=1e-8, atol=0.0):
        center = np.zeros_like(center)
    spread = float((y - linear @ center).std())
    Z = design.random
    roots = np.sqrt((Z**2).mean(axis=0))
    random = _triangle(Z) if correlated else np.diag(np.where(roots > 0, roots, 1.0))
    return Scales(center, spread, _triangle(linear), _triangle(gate), random, _moments(inputs), _moments(gate_inputs))


def _triangle(columns: Array) -> Array:
    """R of ``columns = Q R`` where the columns of Q have mean square one."""
    n, p = columns.shape
    if not p:
        return np.zeros((0, 0))
    R = np.linalg.qr(columns, mode="r") / np.sqrt(n)
    return R * np.where(np.diag(R) < 0, -1.0, 1.0)[:, None]


def _moments(inputs: Array) -> tuple[Array, Array]:
    mean, sd = inputs.mean(axis=0), inputs.std(axis=0)
    return mean, np.where(sd > NO_SPREAD * np.abs(inputs).max(axis=0, initial=0.0), sd, 1.0)


def reported(s: Structure, c: Scales, theta: Tensor) -> Tensor:
    """Reported parameters, shape (P,), of free ones, shape (P,), as tensors."""
    at, q = s.places, len(s.random)
    back = {name: torch.as_tensor(np.linalg.inv(getattr(c, name))) for name in ("expert", "gate", "random")}
    beta = c.response * theta[at["beta"]] @ back["expert"].T + torch.as_tensor(c.center)
    gamma = theta[at["gamma"]] @ back["gate"].T
    pieces = [beta.reshape(-1), gamma.reshape(-1)]
    rows, columns = s.entries
    below = np.tril_indices(q, -1)
    for places in np.unique(at["factor"], axis=0) if q else ():
        factor = torch.zeros((q, q), dtype=theta.dtype).index_put(
            (torch.as_tensor(rows), torch.as_tensor(columns)), theta[places]
        )
        F = c.response * back["random"] @ factor
        D = F @ F.T
        # Derivatives of a root at zero would spoil those of everything else.
        some = D.diagonal() > 0
        sd = torch.where(some, torch.where(some, D.diagonal(), 1.0).sqrt(), 0.0)
        pieces.append(sd)
        if s.correlated:
            both = some[below[0]] & some[below[1]]
            size = torch.where(both, sd[below[0]] * sd[below[1]], 1.0)
            pieces.append(torch.where(both, D[below] / size, torch.nan))
    pieces.append(c.response * theta[np.unique(at["sigma"])].exp())
    last = int(at["sigma"].max()) + 1
    return torch.cat([*pieces, theta[last:]])


def free(s: Structure, c: Scales, values: Array) -> Array:
    """Free parameters, shape (P,), of reported ones."""
    at, q, theta = s.places, len(s.random), values.copy()
    theta[at["beta"]] = (values[at["beta"]] - c.center) @ c.expert.T / c.response
    theta[at["gamma"]] = values[at["gamma"]] @ c.gate.T
    for places in np.unique(at["factor"], axis=0) if q else ():
        moved = c.random @ covariance_root(s, values[places]) / c.response
        theta[places] = (semidefinite_cholesky(moved @ moved.T) if s.correlated else moved)[s.entries]
    theta[at["sigma"]] = np.log(values[at["sigma"]] / c.response)
    return theta


def covariance_root(s: Structure, values: Array) -> Array:
    """A factor F, shape (q, q), of ``D = F F'`` from standard deviations and correlations."""
    q = len(s.random)
    R = np.eye(q)
    if s.correlated:
        below = np.tril_indices(q, -1)
        R[below] = np.nan_to_num(values[q:])
        R = R + R.T - np.diag(np.diag(R))
    return values[:q, None] * semidefinite_cholesky(R)


def permuted(s: Structure, values: Array, order: list[int]) -> Array:
    """Reported or free parameters with the old expert ``order[k]`` as the new expert k; works on any trailing axis."""
    at, out = s.places, values.copy()
    own = {"beta": True, "head": True, "sigma": s.residual == "expert", "body": s.bodies == "expert"}
    own["factor"] = s.cov_re == "expert"
    for name, moved in own.items():
        if moved:
            out[at[name]] = values[at[name][order]]
    for name in ("gamma", "gate_head"):
        # Differences to expert 1 become those to the new first expert.
        full = np.concatenate([np.zeros_like(values[at[name][:1]]), values[at[name]]]) if len(at[name]) else None
        if full is not None:
            out[at[name]] = (full[order] - full[order[0]])[1:]
    return out


def columns_of(
    names: tuple[str, ...], owners: tuple[str, ...], inside: "dict[str, tuple[str, ...]]", hidden: Any
) -> Any:
    """Which columns of a section are inputs of its network, and what the others are called.

    Parameters
    ----------
    names, owners : tuple of str
        Of the columns, and of the terms they belong to.
    inside : mapping of str to tuple of str
        Inputs of each term ``nn(...)``.
    hidden : tuple of int
        Without hidden layers inputs have coefficients like other columns.

    Returns
    -------
    inputs : ndarray of bool
    input_names, terms : tuple of str
    """
    network = np.array([owner in inside for owner in owners], dtype=bool)
    called = []
    for name, owner in zip(names, owners, strict=True):
        place = int(name[len(owner) :].strip("[]") or 0) if owner in inside else 0  # patsy numbers no single column
        called.append(inside[owner][place] if owner in inside else name)
    inputs = network if hidden else np.zeros_like(network)
    pairs = list(zip(called, inputs, strict=True))
    return inputs, tuple(n for n, i in pairs if i), tuple(n for n, i in pairs if not i)
