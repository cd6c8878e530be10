"""Joint maximum likelihood of a network and the mixed model of its last layer (Gaussian response).

Given the features H of the last hidden layer the model is a linear mixed model, see `mixed_model`, whose coefficients
and residual variance are profiled out: hidden layers and covariances of the effects are moved by gradient.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.mixture.estimate import Flag
from mixmoe.neural.blocks import Block, Tensor, to_array, torch
from mixmoe.neural.estimators.mixed_model import (
    Factors,
    Latent,
    Moments,
    Plan,
    Profile,
    identity_like,
    lay_out_factors,
    make_plan,
    posterior_means,
    profile,
    row_columns,
)
from mixmoe.neural.estimators.mixed_slopes import factor_curvature, features_slope, slopes
from mixmoe.neural.estimators.trained import (
    LAST_VARIANCE,
    Control,
    LevelEffects,
    Problem,
    Trained,
    parts_of,
    ridge,
)
from mixmoe.neural.estimators.training import (
    TINY,
    Ascent,
    Watch,
    ascend,
    epochs_of,
    learning_rate,
    lost,
    near_enough,
    number,
    put,
    set_rate,
    warm_up,
)
from mixmoe.neural.network import Network, hidden_features

# Ridge of the last layer of a network with hidden ones, per row: a prior a thousand times as wide as the residuals, so
# that collinear features have coefficients, and a likelihood whose gradient is that of its value.
COLLINEAR = 1e-6
POLISH = 1000  # evaluations at most with which the covariance comes to its maximum
NEWTON = 40  # steps of it at most
MOST_CURVED = 1600  # entries of a factor, forty effects, up to which their curvature is worth its size
FLAT = 1e-8  # share of the largest curvature that a direction has at least
REST = 1e-10  # log-likelihood per row gained by twenty iterations below which it has


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
        Free entries of the factors L of all groupings.
    plan : Plan
        Which does not change.
    """

    theta: Tensor
    entries: Tensor
    plan: Plan

    def copy(self) -> "LastState":
        """The state as it is now, detached."""
        return LastState(self.theta.detach().clone(), self.entries.detach().clone(), self.plan)


@dataclass(frozen=True, slots=True)
class Solved:
    """Cross-products and the likelihood that was profiled from them."""

    moments: Moments
    fit: Profile


def is_exact(problem: Problem) -> bool:
    """Whether the model is a linear mixed model given its hidden layers."""
    network = problem.network
    last = {f"layer{network.depth}.weight", f"layer{network.depth}.bias"}
    mine = {spec.name for spec in problem.personal.tensors}
    return problem.family == "gaussian" and network.module is None and bool(mine) and mine <= last


def prior_of(problem: Problem, control: Control) -> float:
    """Precision of the normal prior of the loadings of effects on the last layer; 0 for none.

    Notes
    -----
    Where there are hidden layers it is that of theirs, see `ridge`. Effects on many features are many parameters of a
    covariance for few persons: networks that came nearer to the maximum of the likelihood predicted worse. The
    population's weights of the last layer have one of `LAST_VARIANCE`: with a standard normal one steep curves, which
    need large weights, were not followed. They are integrated out, so that the residual variance, and with it the
    limits of predictions, has the degrees of freedom that they leave.
    """
    if not problem.network.hidden or not is_exact(problem):
        return 0.0
    return 1.0 if control.weight_decay is None else 2.0 * problem.train.n_rows * control.weight_decay


def feature_columns(problem: Problem) -> NDArray[np.intp]:
    """Columns of (features, 1) that effects on the last layer multiply, its weights and bias being side by side."""
    return problem.personal.index - problem.network.tensors[-2].start


def personal_columns(problem: Problem) -> Tensor:
    """Columns of (features, 1) that have person effects."""
    return torch.as_tensor(feature_columns(problem), device=problem.device)


def hidden_of(network: Network, theta: Tensor, x: Tensor) -> Tensor:
    """Inputs of the last layer, shape (B, T, h)."""
    tensors = [theta[spec.start : spec.stop].view(spec.shape) for spec in network.tensors]
    return hidden_features(network, tensors, x)


def features_of(network: Network, theta: Tensor, x: Tensor) -> Tensor:
    """Inputs of the last layer and a column of ones, shape (B, T, h + 1)."""
    h = hidden_of(network, theta, x)
    return torch.cat([h, h.new_ones(*h.shape[:-1], 1)], dim=-1)


def plan_of(problem: Problem) -> Plan:
    """Where the effects of all groupings lie in the training rows."""
    columns = [personal_columns(part) for part in parts_of(problem)]
    sizes = [grouping.n_levels for grouping in problem.further]
    return make_plan(problem.train, columns, sizes, problem.network.width + 1)


def moments(problem: Problem, theta: Tensor, plan: Plan | None = None) -> Moments:
    """Cross-products of the features of all persons, in the order of the blocks."""
    plan = plan_of(problem) if plan is None else plan
    rows = [
        row_columns(plan, k, hidden_of(problem.network, theta, block.x), block.y, block.mask)
        for k, block in enumerate(problem.train)
    ]
    return moments_of(problem, plan, rows)


def moments_of(problem: Problem, plan: Plan, rows: Sequence[Tensor]) -> Moments:
    """Cross-products of the rows of several blocks."""
    gram = tuple(of_block.mT @ of_block for of_block in rows)
    n = problem.train.n_rows
    ridge = COLLINEAR * n if problem.network.hidden and not problem.prior else 0.0
    return Moments(gram, plan, n, ridge, LAST_VARIANCE if problem.prior else 0.0, problem.prior)


def factor(problem: Problem, entries: Tensor) -> Tensor:
    """The factor L of one grouping, shape (q, r)."""
    group = problem.group if problem.cov == "tensor" else np.arange(problem.personal.q)
    L = factor_from(entries, problem.personal.q, problem.cov, torch.as_tensor(group, device=entries.device))
    return L if problem.basis is None else problem.tensor(problem.basis) @ L


def each_factor(problem: Problem, entries: Tensor) -> list[Tensor]:
    """The factors of all groupings from their free entries, one grouping after the other."""
    if not problem.further:
        return [factor(problem, entries)]
    parts = parts_of(problem)
    sizes = [len(start_entries(p.personal.q, p.cov, int(p.group.max()) + 1)) for p in parts]
    pieces = torch.split(entries, sizes)
    return [factor(part, piece) for part, piece in zip(parts, pieces, strict=True)]


def factors_of(problem: Problem, plan: Plan, entries: Tensor) -> Factors:
    """The factors of all groupings in their places."""
    return replace(lay_out_factors(plan, each_factor(problem, entries)), size=entries.square().sum())


def profile_of(problem: Problem, state: LastState) -> Solved:
    """Profiled likelihood at the present state."""
    m = moments(problem, state.theta, state.plan)
    return Solved(m, profile(m, factors_of(problem, m.plan, state.entries)))


def add_exact_gradients(problem: Problem, control: Control, state: LastState) -> Tensor:
    """Minus the log-likelihood, with the penalties; its gradients are put into the state; see `slopes`."""
    for leaf in (state.theta, state.entries):
        leaf.grad = None
    features = [hidden_of(problem.network, state.theta, block.x) for block in problem.train]
    factors = factors_of(problem, state.plan, state.entries)
    with torch.no_grad():
        rows = [
            row_columns(state.plan, k, H, block.y, block.mask)
            for k, (H, block) in enumerate(zip(features, problem.train, strict=True))
        ]
        m = moments_of(problem, state.plan, rows)
        fit = profile(m, factors)
        found = slopes(m, factors, fit)
        moved = [
            (H, features_slope(state.plan, k, mine, G))
            for k, (H, mine, G) in enumerate(zip(features, rows, found.rows, strict=True))
            if H.requires_grad  # inputs are no features
        ]
    decay = ridge(problem, control, state.theta, exact=True)
    of_factors = [(factors.own, found.own), *zip(factors.border, found.border, strict=True)]
    extra = decay + 0.5 * m.prior * fit.sigma2 * factors.size
    roots = [*moved, *of_factors, (extra, torch.ones_like(extra))]
    torch.autograd.backward([value for value, _ in roots], [gradient for _, gradient in roots])
    return 0.5 * fit.objective + decay.detach()


def full_parameters(problem: Problem, state: LastState, fit: Profile) -> Tensor:
    """Population parameters with the last layer put in, shape (P,)."""
    theta = state.theta.detach().clone()
    last = problem.network.tensors[-2].start
    theta[last:] = fit.beta.detach()
    return theta


def by_level(problem: Problem, plan: Plan, found: Latent) -> list[Tensor]:
    """Latent effects of each grouping in the order of its levels, (N_g, r_g); those of levels without rows are zero."""
    persons = torch.cat([block.persons for block in problem.train])
    own, r = found.own.squeeze(-1), problem.n_effects
    z = own.new_zeros(problem.n_persons, r).index_copy(0, persons, own[:, :r])
    out, start = {0: z}, r
    for g, slots in zip(plan.places, plan.nested, strict=False):
        mine = own[:, start : start + slots.width(0)].reshape(-1, len(slots.columns))
        levels, start = slots.levels.flatten(), start + slots.width(0)
        met = levels >= 0
        out[g + 1] = own.new_zeros(slots.n_levels, mine.shape[1]).index_copy(0, levels[met], mine[met])
    start, border = 0, own[:0] if found.border is None else found.border
    for g, slots in zip(plan.places[len(plan.nested) :], plan.crossed, strict=True):
        stop = start + slots.n_levels * len(slots.columns)
        out[g + 1], start = border[start:stop].view(slots.n_levels, -1), stop
    return [out[g] for g in range(len(out))]


def held_out_error(problem: Problem, state: LastState) -> float:
    """Squared error per validation row of the known persons' predictions."""
    if not problem.validation.n_rows:
        return math.nan
    with torch.no_grad():
        solved = profile_of(problem, state)
        each = each_factor(problem, state.entries)
        latent = by_level(problem, state.plan, posterior_means(solved.moments, solved.fit))
        eta, *others = [z @ L.T for z, L in zip(latent, each, strict=True)]
        theta, total = full_parameters(problem, state, solved.fit), 0.0
        for block in problem.validation:
            error = block.y - last_outputs(problem, block, theta, eta, others)
            total += float((error.square() * block.mask).sum())
        return total / problem.validation.n_rows


def last_outputs(problem: Problem, block: Block, theta: Tensor, eta: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Outputs of a block with the effects of all groupings on the last layer, shape (B, T).

    Parameters
    ----------
    eta : Tensor, shape (N, q)
    others : sequence of Tensor, shape (N_g, q_g)
        Of the further groupings; rows of levels that are not known have none.
    """
    H = features_of(problem.network, theta, block.x)
    outputs = H @ theta[problem.network.tensors[-2].start :]
    outputs = outputs + (H[..., personal_columns(problem)] * eta[block.persons].unsqueeze(1)).sum(-1)
    for g, (part, mine) in enumerate(zip(parts_of(problem)[1:], others, strict=True)):
        levels = block.levels[..., g]
        each = mine[levels.clamp_min(0)] * (levels >= 0).unsqueeze(-1)
        outputs = outputs + (H[..., personal_columns(part)] * each).sum(-1)
    return outputs


def fit_last_layer(problem: Problem, control: Control, theta: Array) -> Trained:
    """Network and mixed model by maximum likelihood: Adam to warm up, then quasi-Newton steps of everything.

    Notes
    -----
    The covariance is at its maximum given the hidden layers whatever the epoch at which these were left. With a
    validation set there is Adam only, and the hidden layers are those of its best epoch.
    """
    start, watch = start_last(problem, theta), Watch[LastState].new()
    state = LastState(start.theta.requires_grad_(True), start.entries.requires_grad_(True), start.plan)
    flags = []
    if problem.network.hidden:
        flags = descend(problem, control, state, watch)
    if problem.network.hidden and not problem.validation.n_rows and not flags:
        climb_together(problem, control, state, watch)
    state = watch.state if isinstance(watch.state, LastState) else state
    settled = polish(problem, state).settled
    return collect(problem, state, watch, settled, tuple(flags))


def climb_together(problem: Problem, control: Control, state: LastState, watch: Watch) -> None:
    """Hidden layers and covariance to the maximum, in what the warm-up left of the epochs.

    Notes
    -----
    Steps of both together stall where effects of many columns have a covariance of few directions: the covariance
    alone, whose steps touch no rows, then brings log-likelihoods of several units, after which both go on together.
    """
    little = TINY * near_enough(problem.network.n_parameters)
    while len(watch.train) < control.epochs:
        found = ascend(
            [state.theta, state.entries],
            lambda: add_exact_gradients(problem, control, state),
            budget=control.epochs - len(watch.train),
            least=little,
        )
        for loss in found.losses:
            watch.note(loss / problem.train.n_rows, math.nan, state.entries.square())
        if polish(problem, state).gain < little:
            return


def fit_on_features(problem: Problem, theta: Array) -> Trained:
    """Mixed model of the last layer with the hidden layers of `theta` as they are."""
    state = start_last(problem, theta)
    settled = polish(problem, state).settled
    return collect(problem, state, Watch.new(), settled, ())


def start_last(problem: Problem, theta: Array) -> LastState:
    """Parameters as given, and diagonal factors."""
    entries = [start_entries(p.personal.q, p.cov, int(p.group.max()) + 1) for p in parts_of(problem)]
    return LastState(problem.tensor(theta), problem.tensor(np.concatenate(entries)), plan_of(problem))


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


def polish(problem: Problem, state: LastState) -> Ascent:
    """Covariance at its maximum given the hidden layers: Newton steps, and L-BFGS for what these leave.

    Below hidden layers it need be no nearer to it than these are.

    Notes
    -----
    Steps with the curvature of `factor_curvature`, which takes the cross-products of each person once: there are six
    where a method that knows no curvature takes a hundred evaluations. Crossed groupings, and factors of so many
    entries that their curvature is not worth its size, have the latter alone.
    """
    with torch.no_grad():
        fixed = moments(problem, state.theta, state.plan)
    entries = state.entries.detach().clone().requires_grad_(True)

    def backward() -> Tensor:
        factors = factors_of(problem, state.plan, entries)
        with torch.no_grad():
            fit = profile(fixed, factors)
            found = slopes(fixed, factors, fit)
        pairs = [(factors.own, found.own), *zip(factors.border, found.border, strict=True)]
        pairs.append((0.5 * fixed.prior * fit.sigma2 * factors.size, torch.ones_like(fit.sigma2)))
        torch.autograd.backward([L for L, _ in pairs], [slope for _, slope in pairs])
        return 0.5 * fit.objective

    least = 0.1 * TINY * near_enough(len(entries)) if problem.network.hidden else REST * problem.train.n_rows
    found = newton(problem, state.plan, fixed, entries, backward, least)
    if not found.settled:
        rest = ascend([entries], backward, budget=POLISH, least=least)
        found = Ascent(found.gain + rest.gain, found.losses + rest.losses, rest.settled)
    with torch.no_grad():
        state.entries.copy_(entries)
    return found


def newton(
    problem: Problem, plan: Plan, fixed: Moments, entries: Tensor, backward: Callable[[], Tensor], least: float
) -> Ascent:
    """Newton steps of the entries of the factors, in place, until the next one would gain less than `least`.

    Parameters
    ----------
    fixed : Moments
    entries : Tensor, shape (k,)
    backward : callable
        Sets the gradient of the entries and returns minus the log-likelihood.
    least : float
    """
    losses: list[float] = []
    with torch.no_grad():
        units = [
            factors_of(problem, plan, unit).own.flatten()
            for unit in torch.eye(len(entries), dtype=entries.dtype, device=entries.device)
        ]
        spread = torch.stack(units, dim=-1)  # (Q R, k): the factor is linear in its entries
    if plan.crossed or len(spread) > MOST_CURVED:
        return Ascent(0.0, losses, settled=False)
    now = number(backward)
    while len(losses) < NEWTON:
        losses.append(now)
        with torch.no_grad():
            factors = factors_of(problem, plan, entries)
            fit = profile(fixed, factors)
            curvature = spread.T @ factor_curvature(fixed, factors, fit) @ spread
            roots, vectors = torch.linalg.eigh(curvature + fixed.prior * fit.sigma2 * identity_like(curvature))
            # Along directions that bend downwards a step of the length that its curvature would give.
            sizes = roots.abs().clamp_min(FLAT * float(roots.abs().max()))
            along = vectors.T @ entries.grad
            step, left = vectors @ (along / sizes), 0.5 * float((along.square() / sizes).sum())
        if left < least:
            return Ascent(losses[0] - now, losses, settled=True)
        before = entries.detach().clone()
        for size in (1.0, 0.5, 0.2, 0.05, 0.01):
            put([entries], [before - size * step])
            entries.grad = None
            after = number(backward)
            if after < now:
                break
        else:
            put([entries], [before])
            break
        now = after
    return Ascent(losses[0] - now, losses, settled=False)


def collect(problem: Problem, state: LastState, watch: Watch, converged: bool, flags: tuple) -> Trained:
    """Estimates as arrays; effects are kept as ``b = sigma L z``."""
    with torch.no_grad():
        solved = profile_of(problem, state)
        sigma = float(solved.fit.sigma2.sqrt())
        loading, *others = [to_array(L * sigma) for L in each_factor(problem, state.entries)]
        latent = by_level(problem, state.plan, posterior_means(solved.moments, solved.fit))
        z, *theirs = [to_array(u / sigma) for u in latent]
        theta = to_array(full_parameters(problem, state, solved.fit))
    return Trained(
        theta=theta,
        loading=loading,
        z=z,
        s=np.ones(loading.shape[1]),
        sigma2=sigma**2,
        loglik=-0.5 * float(solved.fit.deviance),
        trace=watch.trace(),
        converged=converged,
        flags=flags,
        further=tuple(LevelEffects(L, u) for L, u in zip(others, theirs, strict=True)),
    )
