"""Penalised estimation of population parameters and person effects, with Laplace or published variance updates.

References
----------
Woertwein, Allen, Sheeber, Auerbach, Cohn & Morency (2023), ICMI, arXiv 2306.08149 (``"sgd"``); Lindstrom & Bates
(1990),
Biometrics 46, 673-687, and MacKay (1992), Neural Computation 4, 415-447 (``"laplace"``).

Notes
-----
Deviations of ``"sgd"`` from the published rule: the cross-entropy is not divided by a residual variance, which it
has not, and
the loss of a sequence is not weighted by its length once more. Everything else is as published, its shrunken
variances included.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixmoe.em import Flag
from mixmoe.neural._torch import Tensor, torch
from mixmoe.neural.laplace import update_variances
from mixmoe.neural.problem import Control, Estimator, Problem, Trace, Trained, total_loss
from mixmoe.neural.steps import (
    State,
    calibrate,
    directions,
    effects,
    marginal_loglik,
    person_shrinkage,
    settle_effects,
)

Array = NDArray[np.float64]


def start_state(problem: Problem, theta: Array, rng: np.random.Generator, device: str) -> State:
    """Effects at zero, variances at one."""

    def tensor(value: Array, grad: bool = True) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=device, requires_grad=grad)

    loading = None
    if problem.rank is not None:
        loading = tensor(rng.standard_normal((problem.personal.q, problem.rank)))
    zeros = np.zeros((problem.n_persons, problem.n_effects))
    return State(
        tensor(theta), loading, tensor(zeros), tensor(np.ones(problem.n_effects), False), tensor(np.array(1.0), False)
    )


def penalised(problem: Problem, control: Control, state: State, estimator: Estimator, data: Tensor) -> Tensor:
    """Loss per row: that of the data, the penalty on the effects, the weight decay."""
    loss = data
    if problem.n_effects:
        weight = control.penalty if estimator == "sgd" else 1.0
        loss = loss + 0.5 * weight * (state.z.square() / state.s.clamp_min(1e-10)).sum()
    loss = loss / max(problem.train.n_rows, 1)
    return loss + control.weight_decay * state.theta.square().sum() if control.weight_decay else loss


def centred_effects(state: State) -> State:
    """The state with effects centred across persons, as the published loss has them."""
    return replace(state, z=state.z - state.z.mean(0)) if state.z.shape[0] > 1 else state


def mean_loss(problem: Problem, state: State, *, validation: bool) -> float:
    """Squared error per row, or negative log-likelihood per row, at the present state."""
    blocks = problem.validation if validation else problem.train
    if not blocks.n_rows:
        return math.nan
    with torch.no_grad():
        loss = float(total_loss(problem, blocks, state.theta, effects(state), 1.0)) / blocks.n_rows
    return 2.0 * loss if problem.family == "gaussian" else loss


def recentre(problem: Problem, state: State) -> None:
    """Move the mean effect into the population parameters: the fit stays, the penalty shrinks."""
    if not problem.n_effects or problem.n_persons < 2:
        return
    with torch.no_grad():
        mean = state.z.mean(0)
        shift = mean if state.loading is None else directions(state.loading) @ mean
        state.theta[torch.as_tensor(problem.personal.index, device=state.theta.device)] += shift
        state.z -= mean


def laplace_update(problem: Problem, state: State, floor: float) -> float:
    """One variance step; returns the largest relative change among variances that matter.

    Parameters
    ----------
    floor : float
        Factor below which no variance may fall in this step: annealing; zero for none.
    """
    with torch.no_grad():
        found = person_shrinkage(problem, state)
        group = torch.as_tensor(problem.group, device=state.s.device) if problem.cov == "tensor" else None
        fresh = update_variances(state.s, state.z.square().sum(0), found.information, group)
        fresh = torch.maximum(fresh, floor * state.s).clamp(1e-8, 1e4)
        change = float(((fresh - state.s).abs() / (state.s + 0.01 * state.s.mean())).max())
        update_residual(problem, state, float((state.s * found.information).sum()))
        state.s.copy_(fresh)
    return change


def update_residual(problem: Problem, state: State, effective: float) -> None:
    """Residual variance with `effective` degrees of freedom taken by the effects."""
    if problem.family == "gaussian":
        n = problem.train.n_rows
        rss = n * mean_loss(problem, state, validation=False)
        state.sigma2.fill_(max(rss / max(n - effective, 0.05 * n), 1e-8))


def published_update(problem: Problem, state: State, alpha: float, data: float) -> None:
    """The authors' variance step: ``s <- max(alpha s, variance of the effects)``, sigma^2 the mean training loss."""
    with torch.no_grad():
        if problem.n_effects:
            variance = state.z.var(0, correction=0)
            if problem.cov == "tensor":
                group = torch.as_tensor(problem.group, device=variance.device)
                sums = torch.zeros_like(variance).index_add_(0, group, variance)
                variance = (sums / torch.bincount(group, minlength=len(sums)).clamp_min(1))[group]
            state.s.copy_(torch.maximum(alpha * state.s, variance))
        if problem.family == "gaussian":
            state.sigma2.mul_(2.0 * data / max(problem.train.n_rows, 1)).clamp_(min=1e-8)


def annealing_epochs(control: Control) -> int:
    """Epochs until annealing has brought a variance of 1 down to 0.005."""
    return min(math.ceil(math.log(0.005) / math.log(control.alpha)), control.epochs)


def learning_rate(control: Control, epoch: int, estimator: Estimator) -> float:
    """Constant (``"sgd"``), or constant and then a half cosine down to one hundredth."""
    hold = max(annealing_epochs(control), control.epochs // 2)
    if estimator == "sgd" or epoch < hold:
        return control.lr
    share = (epoch - hold) / max(control.epochs - hold, 1)
    return control.lr * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * share)))


@dataclass(slots=True)
class Watch:
    """The best state so far and the losses seen.

    Attributes
    ----------
    state : State, or its like of another estimator, or None
    best : float
    epoch : int
    train, validation, variance : list of float
    """

    state: Any
    best: float
    epoch: int
    train: list[float]
    validation: list[float]
    variance: list[float]

    def note(self, epoch: int, state: State, train: float, validation: float) -> None:
        """Append the losses of an epoch."""
        self.train.append(train)
        self.validation.append(validation)
        self.variance.append(float(state.s.mean()) if state.s.numel() else 0.0)

    def keep(self, epoch: int, state: State, value: float) -> None:
        """Keep the state if it is the best so far."""
        if value < self.best:
            self.state, self.best, self.epoch = state.copy(), value, epoch

    def trace(self) -> Trace:
        """The record of the losses."""
        return Trace(np.array(self.train), np.array(self.validation), np.array(self.variance), self.epoch)


def fit_penalised(
    problem: Problem,
    control: Control,
    estimator: Estimator,
    theta: Array,
    rng: np.random.Generator,
    device: str = "cpu",
) -> Trained:
    """Population parameters, effects and variances by penalised full-batch Adam.

    Parameters
    ----------
    problem : Problem
    control : Control
    estimator : {"laplace", "sgd"}
    theta : ndarray, shape (P,)
        Start.
    rng : Generator
        Used for the start of a low-rank covariance only.
    device : str

    Notes
    -----
    Each epoch: (1) one step on the penalised loss; (2) effects centred; (3) variances updated, by the published
    rule after
    every step, or by the Laplace rule every `update_every` steps, annealed from one in the beginning; (4) losses
    noted, the
    best state kept. With a validation set the best is that of least validation loss, for ``"laplace"`` only once
    annealing
    is over; without one the last state is kept.
    """
    state, watch = start_state(problem, theta, rng, device), Watch(None, math.inf, 0, [], [], [])
    optimiser = torch.optim.Adam(state.trained, lr=control.lr)
    annealed, change, flags, good = annealing_epochs(control), math.inf, [], state.copy()
    for epoch in epochs_of(control):
        for settings in optimiser.param_groups:
            settings["lr"] = learning_rate(control, epoch, estimator)
        optimiser.zero_grad()
        now = centred_effects(state) if estimator == "sgd" else state
        data = total_loss(problem, problem.train, now.theta, effects(now), now.sigma2)
        loss = penalised(problem, control, now, estimator, data)
        if not bool(torch.isfinite(loss)):
            flags.append(lost(epoch, "loss"))
            state = good
            break
        loss.backward()
        good = state.copy() if epoch % control.update_every == 0 else good
        optimiser.step()
        if estimator == "sgd":
            now = centred_effects(state)
            published_update(problem, state, control.alpha, float(data.detach()))
        else:
            recentre(problem, state)
        if epoch == calibration_epoch(problem, control, estimator):
            calibrate(problem, state)
            change = 0.0
        elif variances_move(problem, control, estimator, epoch):
            floor = control.alpha**control.update_every if epoch < annealed else 0.0
            change = laplace_update(problem, state, floor)
        elif not problem.n_effects:
            update_residual(problem, state, 0.0)
        value = mean_loss(problem, now, validation=True)
        watch.note(epoch, state, float(loss.detach()), value)
        if estimator == "sgd" or epoch >= annealed or not problem.n_effects:
            watch.keep(epoch, now, value)
            if control.patience is not None and watch.state is not None and epoch - watch.epoch > control.patience:
                break
    if watch.state is None:
        watch.epoch = len(watch.train) - 1
    last = centred_effects(state) if estimator == "sgd" else state
    return finish(problem, estimator, watch.state or last, watch, change < max(control.tol, 0.02), flags)


def calibration_epoch(problem: Problem, control: Control, estimator: Estimator) -> int:
    """Epoch at which variances are calibrated and from which they are held; -1 for never (Gaussian, ``"sgd"``)."""
    wanted = estimator == "laplace" and problem.family != "gaussian" and problem.n_effects
    return max(int(0.7 * control.epochs), annealing_epochs(control)) if wanted else -1


def variances_move(problem: Problem, control: Control, estimator: Estimator, epoch: int) -> bool:
    """Whether a Laplace update is due after this epoch."""
    held = calibration_epoch(problem, control, estimator)
    due = estimator == "laplace" and bool(problem.n_effects) and (epoch + 1) % control.update_every == 0
    return due and not 0 <= held < epoch


def lost(epoch: int, what: str) -> Flag:
    """Flag of a loss that is not a number."""
    return Flag(
        "not_finite",
        f"the {what} was not finite at epoch {epoch + 1}; the last good state was restored; lower lr",
    )


def epochs_of(control: Control) -> Iterable[int]:
    """Epoch numbers, behind a progress bar if one is wanted."""
    numbers = range(control.epochs)
    if not control.progress:
        return numbers
    from tqdm.auto import tqdm

    return tqdm(numbers, desc="NME", unit="epoch")


def finish(
    problem: Problem, estimator: Estimator, state: State, watch: Watch, converged: bool, flags: list[Flag]
) -> Trained:
    """Estimates as arrays, with the marginal log-likelihood (``"laplace"``)."""
    loglik = math.nan
    if estimator == "laplace":
        state = state.copy()
        if problem.family != "gaussian" and problem.n_effects:
            calibrate(problem, state)
        settle_effects(problem, state)
        loglik = marginal_loglik(problem, state)
    r = problem.n_effects
    loading = torch.eye(r, dtype=torch.float64) if state.loading is None else directions(state.loading)
    theta, directed, z, s = (t.detach().cpu().numpy() for t in (state.theta, loading, state.z, state.s))
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
