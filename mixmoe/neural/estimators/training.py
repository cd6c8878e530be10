"""What the estimators share.

The start, one epoch of training, the record of the losses, the end; and the published one.

The estimators themselves are in `linearised` (Laplace), `published` (the authors' rule) and `exact` (last layer).

Notes
-----
Deviations from the published rule: the cross-entropy is not divided by a residual variance, which it has not, and the
loss of a sequence is not weighted by its length once more. Batches hold whole persons, so that nobody's penalty need
be spread over her rows. Everything else is as published, its shrunken variances included.

References
----------
Woertwein, Allen, Sheeber, Auerbach, Cohn & Morency (2023), ICMI, arXiv 2306.08149.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np

from mixmoe._typing import Array
from mixmoe.mixture.estimate import Flag
from mixmoe.neural.batches import Batch, shuffled, split_batches
from mixmoe.neural.blocks import Tensor, to_array, torch
from mixmoe.neural.estimators.state import State, directions, effects
from mixmoe.neural.estimators.trained import Control, Problem, Trace, Trained, block_loss, ridge, total_loss
from mixmoe.numerics.optimise import progress_bar

CHUNK = 20  # iterations between two looks at what they gained
HISTORY = 40  # steps that the curvature is learnt from
NEAR = 0.5  # standard errors from the maximum, root mean square over the parameters, that count as having reached it
FAR = 1e6  # times the first loss is what a point counts as whose loss is no number
TINY = 0.01  # share of the log-likelihood that this distance costs below which a look brings nothing more


def near_enough(n_parameters: int) -> float:
    """Log-likelihood below its maximum at a root mean square distance of `NEAR` standard errors."""
    return 0.5 * NEAR**2 * n_parameters


class SpentError(Exception):
    """All evaluations were used, perhaps amid a line search."""


@dataclass(frozen=True, slots=True)
class Ascent:
    """What an ascent brought.

    Attributes
    ----------
    gain : float
        Log-likelihood.
    losses : list of float
        Minus the log-likelihood at each evaluation.
    settled : bool
        Whether it ended because there was next to nothing left to gain.
    """

    gain: float
    losses: list[float]
    settled: bool


def ascend(
    leaves: Sequence[Tensor],
    backward: Callable[[], Tensor],
    *,
    budget: int,
    least: float,
    enough: float = math.inf,
) -> Ascent:
    """L-BFGS on some tensors, in place, until twenty iterations bring next to nothing.

    Parameters
    ----------
    leaves : sequence of Tensor
    backward : callable
        Sets the gradients of the leaves and returns minus the log-likelihood.
    budget : int
        Evaluations at most, of which there is one; where they end amid a line search, the best point of all is kept.
    least : float
        Gain of twenty iterations below which they end.
    enough : float
        Gain from which on nobody asks for more.
    """
    losses: list[float] = []
    best, point = math.inf, [leaf.detach().clone() for leaf in leaves]

    def closure() -> Tensor:
        nonlocal best, point
        if len(losses) >= budget:
            raise SpentError
        for leaf in leaves:
            leaf.grad = None
        loss = number(backward)
        if not math.isfinite(loss) and losses:
            # The line search must see that a step was too long, and cannot reckon with what is no number.
            loss = losses[0] + FAR * (1.0 + abs(losses[0]))
            for leaf in leaves:
                leaf.grad = torch.zeros_like(leaf)
        losses.append(loss)
        if loss < best:
            best, point = loss, [leaf.detach().clone() for leaf in leaves]
        return torch.tensor(loss, dtype=torch.float64, device=leaves[0].device)

    optimiser, fresh = new_optimiser(leaves), True
    first = last = float(closure())
    while len(losses) < budget and first - last < enough:
        before = [leaf.detach().clone() for leaf in leaves]
        try:
            optimiser.step(closure)
            now = float(closure())
        except SpentError:
            put(leaves, point)
            return Ascent(first - min(best, last), losses, settled=False)
        if not now <= last:  # a line search that failed leaves the point that it tried last, which may be lower
            put(leaves, before)
            if fresh:
                return Ascent(first - last, losses, settled=True)
            optimiser, fresh = new_optimiser(leaves), True  # what was learnt of the curvature misled it
            continue
        fresh = False
        gained, last = last - now, now
        if gained < least:
            return Ascent(first - last, losses, settled=True)
    return Ascent(first - last, losses, settled=False)


def put(leaves: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Give some tensors the values of others."""
    with torch.no_grad():
        for leaf, value in zip(leaves, values, strict=True):
            leaf.copy_(value)


def new_optimiser(leaves: Sequence[Tensor]) -> Any:
    """L-BFGS that has seen nothing yet."""
    return torch.optim.LBFGS(
        leaves, max_iter=CHUNK, history_size=HISTORY, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )


def number(backward: Callable[[], Tensor]) -> float:
    """What a loss is; no number where a matrix has no Cholesky factor."""
    try:
        return float(backward().detach())
    except torch.linalg.LinAlgError:
        return math.nan


def start_state(problem: Problem, theta: Array, rng: np.random.Generator) -> State:
    """Effects at zero, variances at one."""
    loading = None if problem.basis is None else problem.tensor(problem.basis)
    if problem.rank is not None:
        loading = problem.tensor(rng.standard_normal((problem.personal.q, problem.rank))).requires_grad_(True)
    return State(
        problem.tensor(theta).requires_grad_(True),
        loading,
        problem.tensor(np.zeros((problem.n_persons, problem.n_effects))).requires_grad_(True),
        problem.tensor(np.ones(problem.n_effects)),
        problem.tensor(1.0),
    )


def centred_effects(state: State) -> State:
    """The state with effects centred across persons, as the published loss has them."""
    return replace(state, z=state.z - state.z.mean(0)) if state.z.shape[0] > 1 else state


@dataclass(frozen=True, slots=True)
class Objective:
    """What a step descends on.

    Attributes
    ----------
    weight : float or None
        Of the penalty on the effects; None while the network has no effects yet.
    centre : bool
        Whether effects are centred across persons, as in the published loss.
    """

    weight: float | None = 1.0
    centre: bool = False


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one pass over the persons brought.

    Attributes
    ----------
    data : float
        Loss of all rows, each at the state before its step.
    loss : float
        Penalised loss per row, the mean of the steps.
    """

    data: float
    loss: float


def train_epoch(
    problem: Problem, control: Control, state: State, optimiser: Any, batches: Sequence[Batch], objective: Objective
) -> Epoch:
    """One optimiser step per batch; the epoch ends where the loss is not a number, without that step."""
    data, loss = 0.0, 0.0
    for batch in batches:
        optimiser.zero_grad()
        seen = add_gradients(problem, control, state, batch, objective)
        data, loss = data + seen.data, loss + seen.loss / len(batches)
        if not math.isfinite(loss):
            break
        optimiser.step()
    return Epoch(data, loss)


def add_gradients(problem: Problem, control: Control, state: State, batch: Batch, objective: Objective) -> Epoch:
    """Gradients of the penalised loss per row, added block by block, so that one block's graph is alive at a time."""
    now = centred_effects(state) if objective.centre else state
    eta = effects(now) if problem.n_effects and objective.weight is not None else None
    leaf = None if eta is None else eta.detach().requires_grad_(True)
    data = torch.zeros_like(state.sigma2)
    for block in batch.blocks:
        part = block_loss(problem, block, state.theta, leaf, state.sigma2).sum()
        (part / batch.scale).backward()
        data += part.detach()
    loss = data / batch.scale
    if eta is not None and leaf is not None:
        extra = penalty(now, batch, float(objective.weight or 0.0))
        (extra + (eta * leaf.grad).sum()).backward()
        loss += extra.detach()
    decay = ridge(problem, control, state.theta) / problem.train.n_rows
    decay.backward()
    loss += decay.detach()
    return Epoch(float(data), float(loss))


def penalty(state: State, batch: Batch, weight: float) -> Tensor:
    """Penalty on the effects of the persons of a batch, per row."""
    each = (state.z.square() / state.s.clamp_min(1e-10)).sum(-1)
    total = each.sum() if batch.members is None else each @ batch.members
    return 0.5 * weight * total / batch.scale


def mean_loss(problem: Problem, state: State, *, validation: bool) -> float:
    """Squared error per row, or negative log-likelihood per row, at the present state."""
    blocks = problem.validation if validation else problem.train
    if not blocks.n_rows:
        return math.nan
    with torch.no_grad():
        loss = float(total_loss(problem, blocks, state.theta, effects(state), 1.0)) / blocks.n_rows
    return 2.0 * loss if problem.family == "gaussian" else loss


def warm_up(problem: Problem, control: Control) -> Control:
    """Settings of the epochs by Adam: a third of all, those after them being quasi-Newton steps.

    With a validation set, which is to choose the epoch, or in batches, which such steps cannot use, all are by Adam.
    """
    if problem.validation.n_rows or (control.batch_size is not None and control.batch_size < problem.n_persons):
        return control
    return replace(control, epochs=max(control.epochs // 3, 1))


def learning_rate(control: Control, epoch: int) -> float:
    """Constant over the first half, then a half cosine down to one hundredth."""
    hold = control.epochs // 2
    if epoch < hold:
        return control.lr
    share = (epoch - hold) / max(control.epochs - hold, 1)
    return control.lr * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * share)))


def set_rate(optimiser: Any, rate: float) -> None:
    """Give all parameters of an optimiser a learning rate."""
    for settings in optimiser.param_groups:
        settings["lr"] = rate


class Copied(Protocol):
    """A state of training that can be kept while the training goes on."""

    def copy(self) -> Self:
        """The state with tensors of its own."""


Kept = TypeVar("Kept", bound=Copied)


@dataclass(slots=True)
class Watch(Generic[Kept]):
    """The best state so far and the losses seen.

    Attributes
    ----------
    state : Copied or None
    best : float
    epoch : int
        That of the best state; the last one if there is none.
    train, validation, variance : list of float
    """

    state: Kept | None
    best: float
    epoch: int
    train: list[float]
    validation: list[float]
    variance: list[float]

    @classmethod
    def new(cls) -> Self:
        """Nothing seen yet."""
        return cls(None, math.inf, 0, [], [], [])

    def note(self, train: float, validation: float, variance: Tensor) -> None:
        """Append the losses of an epoch and the mean of the variances."""
        self.train.append(train)
        self.validation.append(validation)
        self.variance.append(float(variance.detach().mean()) if variance.numel() else 0.0)

    def keep(self, epoch: int, state: Kept, value: float) -> None:
        """Keep the state if it is the best so far."""
        if value < self.best:
            self.state, self.best, self.epoch = state.copy(), value, epoch

    def waited(self, epoch: int, patience: int | None) -> bool:
        """Whether `patience` epochs brought nothing better."""
        return patience is not None and self.state is not None and epoch - self.epoch > patience

    def trace(self) -> Trace:
        """The record of the losses."""
        best = max(len(self.train) - 1, 0) if self.state is None else self.epoch
        return Trace(np.array(self.train), np.array(self.validation), np.array(self.variance), best)


def lost(epoch: int, what: str) -> Flag:
    """Flag of a loss that is not a number."""
    return Flag(
        "not_finite",
        f"the {what} was not finite at epoch {epoch + 1}; the last good state was restored",
        "lower lr",
    )


def epochs_of(control: Control) -> Iterator[int]:
    """Epoch numbers, behind a progress bar if one is wanted."""
    with progress_bar(control.epochs, "epochs", control.progress) as bar:
        for epoch in range(control.epochs):
            yield epoch
            bar.update()


def trained(
    problem: Problem, state: State, watch: Watch, loglik: float, converged: bool, flags: Sequence[Flag]
) -> Trained:
    """Estimates as arrays."""
    r = problem.n_effects
    loading = torch.eye(r, dtype=torch.float64, device=problem.device)
    if state.loading is not None:
        loading = directions(state.loading)
    theta, directed, z, s = (to_array(t) for t in (state.theta, loading, state.z, state.s))
    return Trained(
        theta=theta,
        loading=directed,
        z=z,
        s=s,
        sigma2=float(state.sigma2),
        loglik=loglik,
        trace=watch.trace(),
        converged=converged or not r,
        flags=tuple(flags),
    )


def fit_published(problem: Problem, control: Control, theta: Array, rng: np.random.Generator) -> Trained:
    """Population parameters, effects and variances by the published rule.

    Parameters
    ----------
    problem : Problem
    control : Control
    theta : ndarray, shape (P,)
        Start.
    rng : Generator
        Used for batches and for the start of a low-rank covariance.

    Notes
    -----
    Each epoch: (1) a step of Adam per batch on the penalised loss of centred effects; (2) variances updated, annealed
    from one by the factor `annealing`; (3) losses noted, and the state kept if it has the least validation loss.
    """
    state, watch, flags = start_state(problem, theta, rng), Watch[State].new(), []
    batches = split_batches(problem, control.batch_size, rng)
    optimiser = torch.optim.Adam(state.trained, lr=control.lr)
    objective, good = Objective(control.penalty, centre=True), state.copy()
    for epoch in epochs_of(control):
        before = state.copy() if epoch % control.update_every == 0 else good
        seen = train_epoch(problem, control, state, optimiser, shuffled(batches, rng), objective)
        if not math.isfinite(seen.loss):
            flags.append(lost(epoch, "loss"))
            state = good
            break
        now, good = centred_effects(state), before
        published_update(problem, now, control.annealing, seen.data)
        watch.note(seen.loss, mean_loss(problem, now, validation=True), state.s)
        watch.keep(epoch, now, watch.validation[-1])
        if watch.waited(epoch, control.patience):
            break
    return trained(problem, watch.state or centred_effects(state), watch, math.nan, True, flags)


def published_update(problem: Problem, state: State, annealing: float, data: float) -> None:
    """The authors' step: ``s <- max(annealing s, variance of the effects)``, sigma^2 the mean training loss."""
    with torch.no_grad():
        if problem.n_effects:
            variance = state.z.var(0, correction=0)
            if problem.cov == "tensor":
                group = problem.groups
                sums = torch.zeros_like(variance).index_add_(0, group, variance)
                variance = (sums / torch.bincount(group, minlength=len(sums)).clamp_min(1))[group]
            state.s.copy_(torch.maximum(annealing * state.s, variance))
        if problem.family == "gaussian":
            state.sigma2.mul_(2.0 * data / max(problem.train.n_rows, 1)).clamp_(min=1e-8)
