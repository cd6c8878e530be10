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
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.mixture.estimate import Flag
from mixmoe.neural.blocks import Block, Blocks, Tensor, to_array, torch
from mixmoe.neural.estimators.trained import Control, Problem, Trained, ridge
from mixmoe.neural.estimators.training import (
    TINY,
    Watch,
    ascend,
    epochs_of,
    learning_rate,
    lost,
    near_enough,
    set_rate,
    warm_up,
)
from mixmoe.neural.network import Network, hidden_features, view_tensors

# Ridge of the last layer of a network with hidden ones, per row: a prior a thousand times as wide as the residuals, so
# that collinear features have coefficients, and a likelihood whose gradient is that of its value.
COLLINEAR = 1e-6
POLISH = 1000  # evaluations at most with which the covariance comes to its maximum
REST = 1e-10  # log-likelihood per row gained by twenty iterations below which it has


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
    ridge : float
        Penalty on beta in units of sigma^2: ``rss + ridge |beta|^2``.
    """

    ZZ: Tensor
    ZX: Tensor
    Zy: Tensor
    XX: Tensor
    Xy: Tensor
    yy: Tensor
    n: int
    ridge: float = 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """Likelihood profiled over beta and sigma.

    Attributes
    ----------
    objective : Tensor, shape ()
        Minus twice the marginal log-likelihood, with the penalty on beta.
    deviance : Tensor, shape ()
        Without it.
    beta : Tensor, shape (p,)
    sigma2 : Tensor, shape ()
    root : Tensor, shape (N, r, r)
        Lower Cholesky factor of W.
    information : Tensor, shape (p, p)
        ``sigma^2 X'V^-1 X``.
    """

    objective: Tensor
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
    Z = chosen(X, columns)
    flat = X.reshape(-1, X.shape[-1])
    XZ = X.transpose(1, 2) @ Z
    response = (y * mask).unsqueeze(-1)
    return Moments(
        XZ if Z is X else XZ[:, columns],
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
    penalised = information + m.ridge * torch.eye(len(information), dtype=information.dtype, device=information.device)
    chol = torch.linalg.cholesky(jittered(information) if m.ridge == 0.0 else penalised)
    moment = m.Xy - Ux.T @ uy
    beta = torch.cholesky_solve(moment.unsqueeze(-1), chol).squeeze(-1)
    rss = m.yy - uy.square().sum() - (2.0 * moment - penalised @ beta) @ beta
    logdet = 2.0 * root.diagonal(dim1=-2, dim2=-1).log().sum()
    sigma2 = rss / m.n if log_sigma is None else (2.0 * log_sigma).exp()
    objective = m.n * (math.log(2.0 * math.pi) + sigma2.log()) + logdet + rss / sigma2
    deviance = objective - m.ridge * beta.square().sum() / sigma2
    return Profile(objective, deviance, beta, sigma2, root, information)


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


def feature_columns(problem: Problem) -> NDArray[np.intp]:
    """Columns of (features, 1) that effects on the last layer multiply, its weights and bias being side by side."""
    return problem.personal.index - problem.network.tensors[-2].start


def personal_columns(problem: Problem) -> Tensor:
    """Columns of (features, 1) that have person effects."""
    return torch.as_tensor(feature_columns(problem), device=problem.device)


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
    joined = join([block_moments(problem, theta, block) for block in blocks])
    return replace(joined, ridge=ridge_of(problem, joined.n))


def ridge_of(problem: Problem, n: int) -> float:
    """Penalty on the last layer of a network with hidden ones, whose features may be collinear."""
    return COLLINEAR * n if problem.network.hidden else 0.0


def factor(problem: Problem, entries: Tensor) -> Tensor:
    """The factor L, shape (q, r)."""
    group = problem.group if problem.cov == "tensor" else np.arange(problem.personal.q)
    L = factor_from(entries, problem.personal.q, problem.cov, torch.as_tensor(group, device=entries.device))
    return L if problem.basis is None else problem.tensor(problem.basis) @ L


def profile_of(problem: Problem, state: LastState) -> Profile:
    """Profiled likelihood at the present state."""
    return profile(moments(problem, state.theta, problem.train), factor(problem, state.entries))


def add_exact_gradients(problem: Problem, control: Control, state: LastState) -> Tensor:
    """Minus the log-likelihood, with the penalties; its gradients are put into the state.

    Notes
    -----
    Nothing is differentiated through a factorisation. Half the deviance has, by the envelope theorem and
    ``d log|W| = tr(W^-1 dW)``, with beta, sigma and the modes u at their best values and e the residuals,
    the derivative ``Z L W^-1 L' - e u'L' / sigma^2`` in the random columns, ``-e beta' / sigma^2`` in all columns, and
    ``sum_i Z_i'Z_i L W_i^-1 - Z_i'e_i u_i' / sigma^2`` in L.
    """
    for leaf in (state.theta, state.entries):
        leaf.grad = None
    columns = personal_columns(problem)
    features = [features_of(problem.network, state.theta, block.x) for block in problem.train]
    L = factor(problem, state.entries)
    with torch.no_grad():
        parts = [cross_products(H, b.y, b.mask, columns) for H, b in zip(features, problem.train, strict=True)]
        joined = join(parts)
        m = replace(joined, ridge=ridge_of(problem, joined.n))
        fit = profile(m, L)
        u, inverse = person_effects(m, L, fit), torch.cholesky_inverse(fit.root)
        effects = u @ L.T
        own = fit.beta.expand(len(u), -1).clone()
        own[:, columns] += effects
        curved = L @ inverse @ L.T  # (N, q, q)
        errors = (m.Zy - m.ZX @ fit.beta - (m.ZZ @ effects.unsqueeze(-1)).squeeze(-1)) / fit.sigma2
        slope = (m.ZZ @ (L @ inverse)).sum(0) - errors.T @ u
        slopes, place = [], 0
        for H, block in zip(features, problem.train, strict=True):
            mine = slice(place, place + len(block.persons))
            weights = own[mine].unsqueeze(-1)
            G = (H @ weights - block.y.unsqueeze(-1)) / fit.sigma2 @ weights.transpose(1, 2)
            Z = chosen(H, columns)
            if Z is H:  # adding to columns that are named takes several times as long
                G += Z @ curved[mine]
            else:
                G[..., columns] += Z @ curved[mine]
            slopes.append(G.mul_(block.mask.unsqueeze(-1)))
            place = mine.stop
    decay = ridge(problem, control, state.theta, prior=True)
    moved = [(H, G) for H, G in zip(features, slopes, strict=True) if H.requires_grad]  # inputs are no features
    roots = [*moved, (L, slope), (decay, torch.ones_like(decay))]
    torch.autograd.backward([value for value, _ in roots], [gradient for _, gradient in roots])
    return 0.5 * fit.objective + decay.detach()


def chosen(features: Tensor, columns: Tensor) -> Tensor:
    """Some columns of the features; themselves, not a copy, where all are chosen."""
    return features if len(columns) == features.shape[-1] else features[..., columns]


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
    """Network and mixed model by maximum likelihood: Adam to warm up, then quasi-Newton steps of everything.

    Notes
    -----
    The covariance is at its maximum given the hidden layers whatever the epoch at which these were left. With a
    validation set there is Adam only, and the hidden layers are those of its best epoch.
    """
    start, watch = start_last(problem, theta), Watch[LastState].new()
    state = LastState(start.theta.requires_grad_(True), start.entries.requires_grad_(True))
    flags = []
    if problem.network.hidden:
        flags = descend(problem, control, state, watch)
    if problem.network.hidden and not problem.validation.n_rows and not flags:
        climb_together(problem, control, state, watch)
    state = watch.state if isinstance(watch.state, LastState) else state
    converged = polish(problem, state)
    return collect(problem, state, watch, converged, tuple(flags))


def climb_together(problem: Problem, control: Control, state: LastState, watch: Watch) -> None:
    """Hidden layers and covariance to the maximum, in what the warm-up left of the epochs."""
    limit, left = near_enough(problem.network.n_parameters), control.epochs - len(watch.train)
    if left < 1:
        return
    found = ascend(
        [state.theta, state.entries],
        lambda: add_exact_gradients(problem, control, state),
        budget=left,
        least=TINY * limit,
    )
    for loss in found.losses:
        watch.note(loss / problem.train.n_rows, math.nan, state.entries.square())


def fit_on_features(problem: Problem, theta: Array) -> Trained:
    """Mixed model of the last layer with the hidden layers of `theta` as they are."""
    state = start_last(problem, theta)
    converged = polish(problem, state)
    return collect(problem, state, Watch.new(), converged, ())


def start_last(problem: Problem, theta: Array) -> LastState:
    """Parameters as given, and a diagonal factor."""
    entries = start_entries(problem.personal.q, problem.cov, int(problem.group.max()) + 1)
    return LastState(problem.tensor(theta), problem.tensor(entries))


def descend(problem: Problem, control: Control, state: LastState, watch: Watch) -> list[Flag]:
    """Adam on hidden layers and covariance; notes losses, keeps the best state by validation."""
    optimiser = torch.optim.Adam([state.theta, state.entries], lr=control.lr)
    good, control = state.copy(), warm_up(problem, control)
    for epoch in epochs_of(control):
        set_rate(optimiser, learning_rate(control, epoch))
        loss = add_exact_gradients(problem, control, state) / problem.train.n_rows
        if not bool(torch.isfinite(loss)):
            with torch.no_grad():
                state.theta.copy_(good.theta)
                state.entries.copy_(good.entries)
            return [lost(epoch, "log-likelihood")]
        good = state.copy() if epoch % control.update_every == 0 else good
        optimiser.step()
        value = held_out_error(problem, state)
        watch.note(float(loss), value, state.entries.square())
        watch.keep(epoch, state, value)
        if watch.waited(epoch, control.patience):
            break
    return []


def polish(problem: Problem, state: LastState) -> bool:
    """Covariance at its maximum given the hidden layers, by L-BFGS; whether it came to rest."""
    with torch.no_grad():
        fixed = moments(problem, state.theta, problem.train)
    entries = state.entries.detach().clone().requires_grad_(True)

    def backward() -> Tensor:
        loss = 0.5 * profile(fixed, factor(problem, entries)).objective
        loss.backward()
        return loss

    found = ascend([entries], backward, budget=POLISH, least=REST * problem.train.n_rows)
    state.entries = entries.detach()
    return found.settled


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
