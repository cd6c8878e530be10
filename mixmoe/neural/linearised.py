"""The default estimator: penalised estimation with variances from the Laplace approximation of the marginal likelihood.

References
----------
Lindstrom & Bates (1990), Biometrics 46, 673-687 (linearisation at the modes); MacKay (1992), Neural Computation 4,
415-447 (fixed point of the variances).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mixmoe.em import Flag
from mixmoe.neural._torch import torch
from mixmoe.neural.batches import shuffled, split_batches
from mixmoe.neural.estimate import (
    Epoch,
    Objective,
    Watch,
    epochs_of,
    learning_rate,
    lost,
    mean_loss,
    set_rate,
    start_state,
    train_epoch,
    trained,
)
from mixmoe.neural.laplace import update_variances
from mixmoe.neural.marginal import is_marginal, maximise_marginal, quadrature_loglik
from mixmoe.neural.problem import Control, Problem, Trained
from mixmoe.neural.steps import (
    State,
    calibrate,
    directions,
    gauss_newton,
    information_trace,
    marginal_loglik,
    settle_effects,
)

Array = NDArray[np.float64]

OPENING = 300  # epochs at most of the network without person effects
FIRST_UPDATES = 5  # of the variances, at the network without person effects
LAST_UPDATES = 30  # of the variances at most, at the last population parameters (Gaussian)


def fit_laplace(problem: Problem, control: Control, theta: Array, rng: np.random.Generator) -> Trained:
    """Population parameters, effects and variances by penalised Adam with Laplace updates of the variances.

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
    (1) The network without person effects, for a fifth of the epochs, 300 at most. (2) Variances by Laplace updates at
    this network, see `open_effects`. (3) Network and effects together; every `update_every` epochs effects are brought
    nearer to their modes by a Gauss-Newton step and the variances updated. (4) Variances (Gaussian) at their fixed
    point and effects at their modes, population parameters held; the marginal log-likelihood.

    There is no annealing. The published rule needs it because its variances are those of effects that the optimiser
    has not brought to their modes yet; here a Gauss-Newton step does so before each update.

    With a validation set the state of least validation loss after (1) is kept, without one the last.
    """
    state, watch, flags = start_state(problem, theta, rng), Watch.new(), []
    batches = split_batches(problem, control.batch_size, rng)
    opens = opening_epoch(problem, control)
    optimiser, objective = torch.optim.Adam([state.theta], lr=control.lr), Objective(None)
    change, good = math.inf, state.copy()
    for epoch in epochs_of(control):
        if epoch == opens:
            open_effects(problem, state)
            optimiser, objective = torch.optim.Adam(state.trained, lr=control.lr), Objective()
        set_rate(optimiser, learning_rate(control, epoch))
        before = state.copy() if epoch % control.update_every == 0 else good
        seen = train_epoch(problem, control, state, optimiser, shuffled(batches, rng), objective)
        if not (math.isfinite(seen.loss) and is_finite(state)):
            flags.append(lost(epoch, "loss"))
            state = good
            break
        good = before
        change = end_epoch(problem, control, state, epoch, seen, change)
        watch.note(seen.loss, mean_loss(problem, state, validation=True), state.s)
        if epoch >= opens or not problem.n_effects:
            watch.keep(epoch, state, watch.validation[-1])
            if watch.waited(epoch, control.patience):
                break
    return finish(problem, control, watch.state or state, watch, change, flags)


def opening_epoch(problem: Problem, control: Control) -> int:
    """Epoch from which there are person effects; beyond the last one if there are none."""
    return min(OPENING, control.epochs // 5) if problem.n_effects else control.epochs


def open_effects(problem: Problem, state: State) -> None:
    """First effects and variances of a network that was fitted without.

    Variances start where the effects on a row have, in the mean, as much information as the prior: equal to the
    residual variance for a Gaussian response. A few Laplace updates bring them to the order that the data have.
    """
    update_residual(problem, state, 0.0)
    with torch.no_grad():
        state.s.fill_(problem.train.n_rows / max(information_trace(problem, state), 1e-12))
    for _ in range(FIRST_UPDATES):
        laplace_step(problem, state)


def end_epoch(problem: Problem, control: Control, state: State, epoch: int, seen: Epoch, change: float) -> float:
    """Centre the effects and update variances where that is due; the length of the last update."""
    if epoch < opening_epoch(problem, control):
        if problem.family == "gaussian":
            state.sigma2.mul_(2.0 * seen.data / problem.train.n_rows).clamp_(min=1e-8)
        return change
    recentre(problem, state)
    held = calibration_epoch(problem, control)
    if epoch == held:
        calibrate(problem, state)
        return 0.0
    if (epoch + 1) % control.update_every or 0 <= held < epoch:
        return change
    return laplace_step(problem, state)


def calibration_epoch(problem: Problem, control: Control) -> int:
    """Epoch at which variances are calibrated and from which they are held; -1 for never (Gaussian)."""
    return -1 if problem.family == "gaussian" else int(0.7 * control.epochs)


def recentre(problem: Problem, state: State) -> None:
    """Move the mean effect into the population parameters: the fit stays, the penalty shrinks."""
    if problem.n_persons < 2:
        return
    with torch.no_grad():
        mean = state.z.mean(0)
        shift = mean if state.loading is None else directions(state.loading) @ mean
        state.theta[torch.as_tensor(problem.personal.index, device=problem.device)] += shift
        state.z -= mean


def laplace_step(problem: Problem, state: State) -> float:
    """A Gauss-Newton step of the effects and a step of the variances, from one linearisation.

    Returns the length of the latter in standard errors of the variances (of their logarithms).

    A variance that stands for d effective parameters has the expected information d/2 about its logarithm.
    """
    found = gauss_newton(problem, state)[0]
    with torch.no_grad():
        group = problem.groups if problem.cov == "tensor" else None
        fresh = update_variances(state.s, state.z.square().sum(0), found.information, group).clamp(1e-8, 1e4)
        effective = state.s * found.information
        length = float((0.5 * effective * (fresh / state.s).log().square()).sum().sqrt())
        update_residual(problem, state, float(effective.sum()))
        state.s.copy_(fresh)
    return length


def update_residual(problem: Problem, state: State, effective: float) -> None:
    """Residual variance with `effective` degrees of freedom taken by the effects."""
    if problem.family == "gaussian":
        n = problem.train.n_rows
        rss = n * mean_loss(problem, state, validation=False)
        state.sigma2.fill_(max(rss / max(n - effective, 0.05 * n), 1e-8))


def is_finite(state: State) -> bool:
    """Whether all that the optimiser moves is a number."""
    return all(bool(torch.isfinite(values).all()) for values in state.trained)


def polish(problem: Problem, state: State, tol: float) -> float:
    """Variances at their fixed point given the population parameters; the length of the last step."""
    length = math.inf
    for _ in range(LAST_UPDATES):
        length = laplace_step(problem, state)
        if length < 0.1 * tol:
            break
    return length


def finish(
    problem: Problem, control: Control, state: State, watch: Watch, change: float, flags: Sequence[Flag]
) -> Trained:
    """Estimates with effects at their modes, and the marginal log-likelihood."""
    state = state.copy()
    if not problem.n_effects:
        update_residual(problem, state, 0.0)
    elif is_marginal(problem) and watch.state is None:
        missed = maximise_marginal(problem, control, state)
        settle_effects(problem, state)
        loglik = quadrature_loglik(problem, state)
        return trained(problem, state, watch, loglik, not missed, (*flags, *missed))
    elif problem.family != "gaussian":
        calibrate(problem, state)
    elif watch.state is None:  # else the best state is restored as it was
        change = polish(problem, state, control.tol)
    settle_effects(problem, state)
    return trained(problem, state, watch, marginal_loglik(problem, state), change < control.tol, flags)
