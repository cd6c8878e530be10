"""The published estimator of a network with person effects (``estimator="sgd"``).

References
----------
Woertwein, Allen, Sheeber, Auerbach, Cohn & Morency (2023), ICMI, arXiv 2306.08149.

Notes
-----
Deviations from the published rule: the cross-entropy is not divided by a residual variance, which it has not, and the
loss of a sequence is not weighted by its length once more. Batches hold whole persons, so that nobody's penalty need
be spread over her rows. Everything else is as published, its shrunken variances included.
"""

import math

import numpy as np
from numpy.typing import NDArray

from mixmoe.neural._torch import torch
from mixmoe.neural.batches import shuffled, split_batches
from mixmoe.neural.estimate import (
    Objective,
    Watch,
    centred_effects,
    epochs_of,
    lost,
    mean_loss,
    start_state,
    train_epoch,
    trained,
)
from mixmoe.neural.problem import Control, Problem, Trained
from mixmoe.neural.steps import State

Array = NDArray[np.float64]


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
    from one by the factor `alpha`; (3) losses noted, and the state kept if it has the least validation loss.
    """
    state, watch, flags = start_state(problem, theta, rng), Watch.new(), []
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
        published_update(problem, now, control.alpha, seen.data)
        watch.note(seen.loss, mean_loss(problem, now, validation=True), state.s)
        watch.keep(epoch, now, watch.validation[-1])
        if watch.waited(epoch, control.patience):
            break
    return trained(problem, watch.state or centred_effects(state), watch, math.nan, True, flags)


def published_update(problem: Problem, state: State, alpha: float, data: float) -> None:
    """The authors' variance step: ``s <- max(alpha s, variance of the effects)``, sigma^2 the mean training loss."""
    with torch.no_grad():
        if problem.n_effects:
            variance = state.z.var(0, correction=0)
            if problem.cov == "tensor":
                group = problem.groups
                sums = torch.zeros_like(variance).index_add_(0, group, variance)
                variance = (sums / torch.bincount(group, minlength=len(sums)).clamp_min(1))[group]
            state.s.copy_(torch.maximum(alpha * state.s, variance))
        if problem.family == "gaussian":
            state.sigma2.mul_(2.0 * data / max(problem.train.n_rows, 1)).clamp_(min=1e-8)
