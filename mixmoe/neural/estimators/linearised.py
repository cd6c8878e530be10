"""The default estimator (variances from the Laplace approximation), its settings, and how much it has left to gain.

References
----------
Lindstrom & Bates (1990), Biometrics 46, 673-687 (linearisation at the modes); MacKay (1992), Neural Computation 4,
415-447 (fixed point of the variances).
"""

import math
import numbers
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mixmoe._typing import Array
from mixmoe.design.frame import shown
from mixmoe.errors import ArgumentError, MixmoeWarning, warn
from mixmoe.mixture.estimate import Flag
from mixmoe.neural.batches import shuffled, split_batches
from mixmoe.neural.blocks import Tensor, torch
from mixmoe.neural.components import entries_of
from mixmoe.neural.estimators.last_layer import LastState, add_exact_gradients, is_exact, plan_of
from mixmoe.neural.estimators.state import (
    State,
    calibrate,
    directions,
    gauss_newton,
    information_trace,
    marginal_loglik,
    settle_effects,
)
from mixmoe.neural.estimators.trained import Control, Estimator, Problem, Trained
from mixmoe.neural.estimators.training import (
    TINY,
    Epoch,
    Objective,
    Watch,
    add_gradients,
    ascend,
    epochs_of,
    learning_rate,
    lost,
    mean_loss,
    near_enough,
    set_rate,
    start_state,
    train_epoch,
    trained,
    warm_up,
)
from mixmoe.neural.groupings import loglik_at
from mixmoe.neural.marginal_likelihood import is_marginal, maximise_marginal, quadrature_loglik
from mixmoe.neural.person_predictions import effects_from_rows, to_state
from mixmoe.neural.posterior import update_variances

OPENING = 300  # epochs at most of the network without person effects
FIRST_UPDATES = 5  # of the variances, at the network without person effects
WARM_SHARE = 5  # of the epochs, one in so many, before a likelihood by quadrature is climbed
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
    nearer to their modes by a Gauss-Newton step and the variances updated. (4) Where there are no person effects, after
    a third of the epochs the network by quasi-Newton steps to the maximum, with the prior of `ridge`; not with a
    validation set or batches. (5) Variances
    (Gaussian) at their fixed point and effects at their modes, population parameters held; the marginal
    log-likelihood.

    Person effects have no quasi-Newton steps: network and effects have a penalised likelihood, variances held, not a
    likelihood of their own. Its maximum, found in turn with the variances, had lower marginal log-likelihoods than Adam
    alone (Theoph, effects on all layers, four splits: by 7 to 12) and no lower errors on held-out rows (mean squared
    error over variance .169 against .155).

    There is no annealing. The published rule needs it because its variances are those of effects that the optimiser
    has not brought to their modes yet; here a Gauss-Newton step does so before each update.

    With a validation set the state of least validation loss after (1) is kept, without one the last.
    """
    state, watch, flags = start_state(problem, theta, rng), Watch[State].new(), []
    batches = split_batches(problem, control.batch_size, rng)
    warmed = control if problem.n_effects else warm_up(problem, control)
    if is_marginal(problem) and not problem.validation.n_rows:  # quasi-Newton steps follow, see `maximise_marginal`
        warmed = replace(control, epochs=max(control.epochs // WARM_SHARE, 1))
    opens = opening_epoch(problem, warmed)
    optimiser, objective = torch.optim.Adam([state.theta], lr=control.lr), Objective(None)
    change, good = math.inf, state.copy()
    for epoch in epochs_of(warmed):
        if epoch == opens:
            open_effects(problem, state)
            # A new optimiser: the moments of the old one belong to a loss without effects.
            optimiser, objective = torch.optim.Adam(state.trained, lr=control.lr), Objective()
        set_rate(optimiser, learning_rate(warmed, epoch))
        # A state to return to if this epoch diverges; copies are as large as the parameters, so they are taken rarely.
        before = state.copy() if epoch % control.update_every == 0 else good
        seen = train_epoch(problem, control, state, optimiser, shuffled(batches, rng), objective)
        if not math.isfinite(seen.loss) or any(not bool(torch.isfinite(v).all()) for v in state.trained):
            flags.append(lost(epoch, "loss"))
            state = good
            break
        good = before
        change = end_epoch(problem, warmed, state, epoch, seen, change)
        watch.note(seen.loss + log_scale(problem, state), mean_loss(problem, state, validation=True), state.s)
        if epoch >= opens or not problem.n_effects:
            watch.keep(epoch, state, watch.validation[-1])
            if watch.waited(epoch, control.patience):
                break
    if not problem.n_effects and len(watch.train) == warmed.epochs < control.epochs and not flags:
        climb(problem, control, state, watch)
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
    # Epoch at which variances are calibrated, and from which they are held; -1 for never.
    held = -1 if problem.family == "gaussian" else int(0.7 * control.epochs)
    if epoch == held:
        calibrate(problem, state)
        return 0.0
    if (epoch + 1) % control.update_every or 0 <= held < epoch:
        return change
    return laplace_step(problem, state)


def recentre(problem: Problem, state: State) -> None:
    """Move the mean effect into the population parameters: the fit stays, the penalty shrinks."""
    # The mean of one person is her effect itself.
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
        # From the variance before the update: afterwards both sides of the ratio would have moved.
        length = float((0.5 * effective * (fresh / state.s).log().square()).sum().sqrt())
        update_residual(problem, state, float(effective.sum()))
        state.s.copy_(fresh)
    return length


def update_residual(problem: Problem, state: State, effective: float) -> None:
    """Residual variance with `effective` degrees of freedom taken by the effects."""
    if problem.family == "gaussian":
        n = problem.train.n_rows
        rss = n * mean_loss(problem, state, validation=False)
        # A twentieth of the rows at least stays as degrees of freedom: there can be more effects than rows.
        state.sigma2.fill_(max(rss / max(n - effective, 0.05 * n), 1e-8))


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


LOOKS = 200  # evaluations of the quasi-Newton method that looks how far up it goes on


def far_from_maximum(problem: Problem, control: Control, fit: Trained) -> float | None:
    """Log-likelihood that a fit has at least left to gain, if it is far from its maximum; None if it is near.

    Notes
    -----
    Near a maximum the log-likelihood lacks half the squared distance in standard errors, see `near_enough`. A fit that
    was stopped by a validation set, before its last epoch, is where it should be.
    """
    stopped = problem.validation.n_rows and fit.trace.best < control.epochs - 1
    if is_marginal(problem) and not problem.validation.n_rows:
        return None  # its maximum was looked for, see `maximise_marginal`
    if stopped or not math.isfinite(fit.loglik):
        return None
    limit = near_enough(problem.network.n_parameters)
    gain = left_to_gain(problem, control, fit, limit)
    return gain if gain > limit else None


def left_to_gain(problem: Problem, control: Control, fit: Trained, enough: float = math.inf) -> float:
    """Log-likelihood that further steps of L-BFGS on all parameters bring; a lower bound of what is left.

    Parameters
    ----------
    enough : float
        Gain at which to stop looking.

    Notes
    -----
    The marginal log-likelihood for effects on the last layer (Gaussian). For others the penalised one of the network
    and the effects, variances held.
    """
    if is_exact(problem):
        theta = problem.tensor(fit.theta).requires_grad_(True)
        entries = entries_of(problem, fit)[:-1].detach().clone().requires_grad_(True)
        last = LastState(theta, entries, plan_of(problem))
        leaves, backward = [theta, entries], lambda: add_exact_gradients(problem, control, last)
    else:
        state = to_state(problem, fit)
        state.theta, state.z = (values.clone().requires_grad_(True) for values in (state.theta, state.z))
        leaves, backward = state.trained, lambda: add_joint_gradients(problem, control, state)
    return ascend(leaves, backward, budget=LOOKS, least=TINY * min(enough, 1.0 / TINY), enough=enough).gain


def add_joint_gradients(problem: Problem, control: Control, state: State) -> Tensor:
    """Minus the penalised log-likelihood, variances held; gradients are added to parameters and effects, by blocks.

    Without effects the residual variance is not held but the best one (Gaussian), by which rows weigh against a prior.
    """
    profiled = problem.family == "gaussian" and not problem.n_effects
    if profiled:
        update_residual(problem, state, 0.0)
    (everyone,) = split_batches(problem, None, np.random.default_rng(0))
    seen = add_gradients(problem, control, state, everyone, Objective())
    with torch.no_grad():
        for leaf in state.trained:
            leaf.grad *= everyone.scale
    constant = log_scale(problem, state) if profiled else 0.0
    return problem.tensor((seen.loss + constant) * everyone.scale)


def log_scale(problem: Problem, state: State) -> float:
    """What the residual variance adds to minus the log-density of a row (Gaussian)."""
    return 0.5 * float(state.sigma2.log()) if problem.family == "gaussian" else 0.0


def climb(problem: Problem, control: Control, state: State, watch: Watch) -> None:
    """A network without person effects to its maximum, in what the warm-up left of the epochs."""
    found = ascend(
        [state.theta],
        lambda: add_joint_gradients(problem, control, state),
        budget=control.epochs - len(watch.train),
        least=TINY * near_enough(problem.network.n_parameters),
    )
    for loss in found.losses:
        watch.note(loss / problem.train.n_rows, math.nan, state.s)


def all_rows_loglik(problem: Problem, fit: Trained) -> float:
    """Marginal log-likelihood of all rows at estimates from some of them, effects at their modes given all.

    Parameters
    ----------
    problem : Problem
        Without rows set aside.
    fit : Trained
    """
    if problem.further:
        return loglik_at(problem, fit)
    z = effects_from_rows(problem, fit) if problem.n_effects else fit.z
    return marginal_loglik(problem, to_state(problem, fit, z))


EPOCHS = {"laplace": 1500, "sgd": 5000}
CRF_EPOCHS = 400
PATIENCE = 400  # of the published rule
SHARE = 0.2  # validation rows of the published rule


def build_control(estimator: Estimator, problem: Problem, **given: Any) -> Control:
    """Control from the options of `NME.fit`; those that are None have the default of the estimator.

    Raises
    ------
    ArgumentError
        For values out of range, and for batches where the estimator needs everyone at once.
    """
    options = {name: value for name, value in given.items() if value is not None or name == "progress"}
    control = Control(**{**defaults(estimator, problem), **options})
    if estimator == "laplace":
        for name in ("annealing", "penalty"):
            if name in options:
                warn(unused(name, options[name]), MixmoeWarning)
        if control.batch_size is not None and is_exact(problem):
            raise ArgumentError(
                f"batch_size={control.batch_size} is not possible with the exact likelihood of effects on the last "
                "layer, which needs everyone at each step; leave it out, or use estimator='sgd'"
            )
    return control


def defaults(estimator: Estimator, problem: Problem) -> dict[str, Any]:
    """Settings that depend on the estimator."""
    if estimator == "sgd":
        return {"epochs": EPOCHS["sgd"], "patience": PATIENCE, "weight_decay": 0.0}
    return {"epochs": CRF_EPOCHS if problem.family == "crf" else EPOCHS["laplace"]}


def unused(name: str, value: Any) -> str:
    """What a user must know who gives the default estimator a setting of the published rule."""
    what = {"annealing": "it has none", "penalty": "its penalty has the weight that the model says"}[name]
    return f"{name}={value} is a setting of estimator='sgd'; 'laplace' does not use it, because {what}"


def checked_share(value: Any, name: str, *, zero: bool) -> float:
    """A share of rows: below one, and above zero or at least zero.

    Raises
    ------
    ArgumentError
        If it is none.
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (real and 0.0 <= value < 1.0 and (zero or value > 0.0)):
        raise ArgumentError(f"{name} must be a number {'from' if zero else 'above'} 0 and below 1, got {shown(value)}")
    return float(value)


def validation_share(value: Any, estimator: Estimator, patience: Any) -> float:
    """Share of validation rows, that of the estimator if none is given.

    Raises
    ------
    ArgumentError
        If it is no share, or if there is nothing to be patient for.
    """
    default = SHARE if estimator == "sgd" else 0.0
    share = default if value is None else checked_share(value, "validation", zero=True)
    if patience is not None and not share:
        raise ArgumentError(f"patience={patience!r} waits for the validation loss; give validation=, such as 0.2, too")
    return share
