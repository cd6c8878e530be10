"""Joint maximum likelihood of a network and the mixed model of its last layer (Gaussian response).

Given the features H of the last hidden layer, ``y_i = H_i beta + Z_i b_i + e_i`` with Z some columns of H and
``b_i ~ N(0, sigma^2 L L')``. With ``W = I + L'Z'ZL`` everything is in terms of cross-products per person; beta and
sigma are profiled out.

References
----------
Lindstrom & Bates (1988), Journal of the American Statistical Association 83, 1014-1022 (the profiled deviance and
its derivatives).
Bates, Maechler, Bolker & Walker (2015), Journal of Statistical Software 67(1), equations 30-42 (maximum likelihood).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.neural.blocks import Block, Blocks, Tensor, to_array, torch
from mixmoe.neural.estimators.trained import Control, Problem, Trained
from mixmoe.neural.estimators.training import Watch, epochs_of, learning_rate, lost, set_rate
from mixmoe.neural.network import Network, TensorSpec, hidden_features, view_tensors


@dataclass(frozen=True, slots=True)
class Moments:
    """Cross-products of features and response.

    Attributes
    ----------
    ZZ : Tensor, shape (N, q, q)
    ZX : Tensor, shape (N, q, p)
    Zy : Tensor, shape (N, q)
    XX : Tensor, shape (p, p)
    Xy : Tensor, shape (p,)
    yy : Tensor, shape ()
    n : int
    """

    ZZ: Tensor
    ZX: Tensor
    Zy: Tensor
    XX: Tensor
    Xy: Tensor
    yy: Tensor
    n: int


@dataclass(frozen=True, slots=True)
class Profile:
    """Likelihood profiled over beta and sigma.

    Attributes
    ----------
    deviance : Tensor, shape ()
        Minus twice the marginal log-likelihood.
    beta : Tensor, shape (p,)
    sigma2 : Tensor, shape ()
    root : Tensor, shape (N, r, r)
        Lower Cholesky factor of W.
    information : Tensor, shape (p, p)
        ``sigma^2 X'V^-1 X``.
    """

    deviance: Tensor
    beta: Tensor
    sigma2: Tensor
    root: Tensor
    information: Tensor


def cross_products(features: Tensor, y: Tensor, mask: Tensor, columns: Tensor) -> Moments:
    """Moments of one block.

    Parameters
    ----------
    features : Tensor, shape (B, T, p)
        With a column of ones for the bias.
    y, mask : Tensor, shape (B, T)
    columns : Tensor of int, shape (q,)
        Columns of the features that are personal.
    """
    X = features * mask.unsqueeze(-1)
    Z = X[:, :, columns]
    flat = X.reshape(-1, X.shape[-1])
    XZ = X.transpose(1, 2) @ Z
    response = (y * mask).unsqueeze(-1)
    return Moments(
        XZ[:, columns],
        XZ.transpose(1, 2),
        (Z.transpose(1, 2) @ response).squeeze(-1),
        flat.T @ flat,
        flat.T @ response.reshape(-1),
        response.square().sum(),
        int(mask.sum()),
    )


def join(parts: list[Moments]) -> Moments:
    """Moments of several blocks, persons one after the other."""
    return Moments(
        torch.cat([m.ZZ for m in parts]),
        torch.cat([m.ZX for m in parts]),
        torch.cat([m.Zy for m in parts]),
        torch.stack([m.XX for m in parts]).sum(0),
        torch.stack([m.Xy for m in parts]).sum(0),
        torch.stack([m.yy for m in parts]).sum(),
        sum(m.n for m in parts),
    )


def factor_of(ZZ: Tensor, L: Tensor) -> Tensor:
    """Lower Cholesky factor of ``I + L'Z'ZL``, shape (N, r, r)."""
    W = L.T @ ZZ @ L
    return torch.linalg.cholesky(W + torch.eye(L.shape[1], dtype=L.dtype, device=L.device))


def jittered(information: Tensor) -> Tensor:
    """A cross-product matrix that can be factored although features may be collinear."""
    size = information.diagonal().mean().clamp_min(1e-12)
    return information + 1e-10 * size * torch.eye(len(information), dtype=information.dtype, device=information.device)


def profile(m: Moments, L: Tensor, log_sigma: Tensor | None = None) -> Profile:
    """Marginal likelihood at L, the best beta put in, and the best sigma unless it is given.

    Parameters
    ----------
    m : Moments
    L : Tensor, shape (q, r)
        ``Cov(b_i) = sigma^2 L L'``.
    log_sigma : Tensor, shape (), optional
    """
    root = factor_of(m.ZZ, L)
    right = torch.cat([m.ZX, m.Zy.unsqueeze(-1)], dim=-1)
    U = torch.linalg.solve_triangular(root, L.T @ right, upper=False)  # (N, r, p + 1)
    Ux, uy = U[..., :-1].reshape(-1, m.ZX.shape[-1]), U[..., -1].reshape(-1)
    information = m.XX - Ux.T @ Ux
    chol = torch.linalg.cholesky(jittered(information))
    moment = m.Xy - Ux.T @ uy
    beta = torch.cholesky_solve(moment.unsqueeze(-1), chol).squeeze(-1)
    rss = m.yy - uy.square().sum() - (2.0 * moment - information @ beta) @ beta
    logdet = 2.0 * root.diagonal(dim1=-2, dim2=-1).log().sum()
    sigma2 = rss / m.n if log_sigma is None else (2.0 * log_sigma).exp()
    deviance = m.n * (math.log(2.0 * math.pi) + sigma2.log()) + logdet + rss / sigma2
    return Profile(deviance, beta, sigma2, root, information)


def person_effects(m: Moments, L: Tensor, fit: Profile) -> Tensor:
    """Posterior means of ``L^-1 b_i``, shape (N, r)."""
    residual = m.Zy - m.ZX @ fit.beta
    return torch.cholesky_solve((residual @ L).unsqueeze(-1), fit.root).squeeze(-1)


def factor_from(entries: Tensor, q: int, cov: str | int, group: Tensor) -> Tensor:
    """Factor L from its free entries.

    Parameters
    ----------
    entries : Tensor, shape (k,)
        Lower triangle by rows (``"full"``), its first r columns (rank r), or the diagonal.
    q : int
    cov : str or int
    group : Tensor of int, shape (q,)
        Entry of the diagonal that each effect has (``"diagonal"``, ``"tensor"``).
    """
    if cov in ("diagonal", "tensor"):
        return torch.diag(entries[group])
    r = q if cov == "full" else int(cov)
    rows, columns = torch.tril_indices(q, r, device=entries.device)
    return torch.zeros(q, r, dtype=entries.dtype, device=entries.device).index_put((rows, columns), entries)


def start_entries(q: int, cov: str | int, n_groups: int, size: float = 0.7) -> NDArray[np.float64]:
    """Start of the free entries: a diagonal factor."""
    if cov in ("diagonal", "tensor"):
        return np.full(n_groups, size)
    rows, columns = np.tril_indices(q, 0, q if cov == "full" else int(cov))
    return np.where(rows == columns, size, 0.0)


def feature_columns(tensors: tuple[TensorSpec, ...], width: int) -> list[int]:
    """Columns of (features, 1) that the given tensors of the last layer multiply."""
    columns: list[int] = []
    for spec in tensors:
        columns += list(range(width)) if spec.name.endswith(".weight") else [width]
    return columns


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
