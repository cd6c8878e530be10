"""Joint maximum likelihood of a network and the mixed model of its last layer (Gaussian response).

References
----------
Lindstrom & Bates (1988), Journal of the American Statistical Association 83, 1014-1022 (the profiled deviance and
its derivatives).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixmoe.neural._torch import Tensor, to_array, torch
from mixmoe.neural.blocks import Block, Blocks
from mixmoe.neural.estimate import Watch, epochs_of, learning_rate, lost, set_rate
from mixmoe.neural.lastlayer import (
    Moments,
    Profile,
    cross_products,
    factor_from,
    feature_columns,
    join,
    person_effects,
    profile,
    start_entries,
)
from mixmoe.neural.network import Network, hidden_features, view_tensors
from mixmoe.neural.problem import Control, Problem, Trained

Array = NDArray[np.float64]


@dataclass(slots=True)
class LastState:
    """What changes from step to step.

    Attributes
    ----------
    theta : Tensor, shape (P,)
        Population parameters; those of the last layer follow from the others.
    entries : Tensor, shape (k,)
        Free entries of the factor L.
    """

    theta: Tensor
    entries: Tensor

    def copy(self) -> "LastState":
        """The state as it is now, detached."""
        return LastState(self.theta.detach().clone(), self.entries.detach().clone())


def is_exact(problem: Problem) -> bool:
    """Whether the model is a linear mixed model given its hidden layers."""
    network = problem.network
    last = {f"layer{network.depth}.weight", f"layer{network.depth}.bias"}
    mine = {spec.name for spec in problem.personal.tensors}
    return problem.family == "gaussian" and network.module is None and bool(mine) and mine <= last


def personal_columns(problem: Problem) -> Tensor:
    """Columns of (features, 1) that have person effects."""
    return torch.as_tensor(feature_columns(problem.personal.tensors, problem.network.width), device=problem.device)


def features_of(network: Network, theta: Tensor, x: Tensor) -> Tensor:
    """Inputs of the last layer and a column of ones, shape (B, T, h + 1)."""
    tensors = [theta[spec.start : spec.stop].view(spec.shape) for spec in network.tensors]
    h = hidden_features(network, tensors, x)
    return torch.cat([h, torch.ones_like(h[..., :1])], dim=-1)


def block_moments(problem: Problem, theta: Tensor, block: Block) -> Moments:
    """Cross-products of the features of one block."""
    return cross_products(features_of(problem.network, theta, block.x), block.y, block.mask, personal_columns(problem))


def moments(problem: Problem, theta: Tensor, blocks: Blocks) -> Moments:
    """Cross-products of the features of all persons, in the order of the blocks."""
    return join([block_moments(problem, theta, block) for block in blocks])


def factor(problem: Problem, entries: Tensor) -> Tensor:
    """The factor L, shape (q, r)."""
    group = problem.group if problem.cov == "tensor" else np.arange(problem.personal.q)
    L = factor_from(entries, problem.personal.q, problem.cov, torch.as_tensor(group, device=entries.device))
    return L if problem.basis is None else problem.tensor(problem.basis) @ L


def profile_of(problem: Problem, state: LastState) -> Profile:
    """Profiled likelihood at the present state."""
    return profile(moments(problem, state.theta, problem.train), factor(problem, state.entries))


def penalised_deviance(problem: Problem, control: Control, state: LastState) -> Tensor:
    """Minus the log-likelihood per row, with the weight decay of the hidden layers."""
    loss = profile_of(problem, state).deviance / (2.0 * problem.train.n_rows)
    return loss + control.weight_decay * state.theta.square().sum() if control.weight_decay else loss


def full_parameters(problem: Problem, state: LastState, fit: Profile) -> Tensor:
    """Population parameters with the last layer put in, shape (P,)."""
    theta = state.theta.detach().clone()
    last = problem.network.tensors[-2].start
    theta[last:] = fit.beta.detach()
    return theta


def all_effects(problem: Problem, state: LastState, fit: Profile) -> Tensor:
    """Posterior means of the latent effects in the order of the persons, shape (N, r)."""
    L = factor(problem, state.entries)
    z = torch.zeros(problem.n_persons, L.shape[1], dtype=L.dtype, device=L.device)
    found = person_effects(moments(problem, state.theta, problem.train), L, fit)
    return z.index_copy(0, torch.cat([block.persons for block in problem.train]), found)


def held_out_error(problem: Problem, state: LastState) -> float:
    """Squared error per validation row of the known persons' predictions."""
    if not problem.validation.n_rows:
        return math.nan
    with torch.no_grad():
        fit = profile_of(problem, state)
        eta = all_effects(problem, state, fit) @ factor(problem, state.entries).T
        total = 0.0
        for block in problem.validation:
            theta = full_parameters(problem, state, fit)
            tensors = view_tensors(problem.network, problem.personal, theta, eta[block.persons])
            last = hidden_features(problem.network, tensors, block.x) @ tensors[-2] + tensors[-1].unsqueeze(-2)
            total += float(((block.y - last[..., 0]).square() * block.mask).sum())
        return total / problem.validation.n_rows


def fit_last_layer(problem: Problem, control: Control, theta: Array) -> Trained:
    """Network and mixed model by maximum likelihood: Adam, then a quasi-Newton finish of the covariance.

    Notes
    -----
    The finish holds the hidden layers: brought to their own maximum they overfit (3 % more test error on simulated data
    without person effects), while the covariance must not depend on where Adam stopped.
    """
    start, watch = start_last(problem, theta), Watch.new()
    state = LastState(start.theta.requires_grad_(True), start.entries.requires_grad_(True))
    flags = []
    if problem.network.hidden:
        flags = descend(problem, control, state, watch)
    state = watch.state if isinstance(watch.state, LastState) else state
    converged = polish(problem, state)
    return collect(problem, state, watch, converged, tuple(flags))


def fit_on_features(problem: Problem, theta: Array) -> Trained:
    """Mixed model of the last layer with the hidden layers of `theta` as they are."""
    state = start_last(problem, theta)
    converged = polish(problem, state)
    return collect(problem, state, Watch.new(), converged, ())


def start_last(problem: Problem, theta: Array) -> LastState:
    """Parameters as given, and a diagonal factor."""
    entries = start_entries(problem.personal.q, problem.cov, int(problem.group.max()) + 1)
    return LastState(problem.tensor(theta), problem.tensor(entries))


def descend(problem: Problem, control: Control, state: LastState, watch: Watch) -> list:
    """Adam on hidden layers and covariance; notes losses, keeps the best state by validation."""
    optimiser = torch.optim.Adam([state.theta, state.entries], lr=control.lr)
    good = state.copy()
    for epoch in epochs_of(control):
        set_rate(optimiser, learning_rate(control, epoch))
        optimiser.zero_grad()
        loss = penalised_deviance(problem, control, state)
        if not bool(torch.isfinite(loss)):
            with torch.no_grad():
                state.theta.copy_(good.theta)
                state.entries.copy_(good.entries)
            return [lost(epoch, "log-likelihood")]
        loss.backward()
        good = state.copy() if epoch % control.update_every == 0 else good
        optimiser.step()
        value = held_out_error(problem, state)
        watch.note(float(loss.detach()), value, state.entries.square())
        watch.keep(epoch, state, value)
        if watch.waited(epoch, control.patience):
            break
    return []


def polish(problem: Problem, state: LastState, max_iter: int = 500) -> bool:
    """Covariance at its maximum given the hidden layers, by L-BFGS; whether the gradient came to rest."""
    with torch.no_grad():
        fixed = moments(problem, state.theta, problem.train)
    entries = state.entries.detach().clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [entries],
        max_iter=max_iter,
        history_size=20,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = profile(fixed, factor(problem, entries)).deviance / (2.0 * problem.train.n_rows)
        loss.backward()
        return loss

    optimiser.step(closure)
    state.entries = entries.detach()
    return float(entries.grad.abs().max()) < 1e-4


def collect(problem: Problem, state: LastState, watch: Watch, converged: bool, flags: tuple) -> Trained:
    """Estimates as arrays; effects are kept as ``b = sigma L z``."""
    with torch.no_grad():
        fit = profile_of(problem, state)
        sigma = float(fit.sigma2.sqrt())
        loading = factor(problem, state.entries) * sigma
        z = all_effects(problem, state, fit) / sigma
        theta = full_parameters(problem, state, fit)
    arrays = [to_array(t) for t in (theta, loading, z)]
    return Trained(
        theta=arrays[0],
        loading=arrays[1],
        z=arrays[2],
        s=np.ones(loading.shape[1]),
        sigma2=sigma**2,
        loglik=-0.5 * float(fit.deviance),
        trace=watch.trace(),
        converged=converged,
        flags=flags,
    )
