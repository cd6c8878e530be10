"""How much log-likelihood a fit has left to gain: a network after so many epochs need not be near its maximum."""

import math
from collections.abc import Callable

from mixmoe.neural._torch import Tensor, torch
from mixmoe.neural.components import entries_of
from mixmoe.neural.exact import LastState, is_exact, penalised_deviance
from mixmoe.neural.marginal import is_marginal
from mixmoe.neural.predict import effects_from_rows, to_state
from mixmoe.neural.problem import Control, Problem, Trained, total_loss
from mixmoe.neural.steps import effects, marginal_loglik, replace_effects

STEPS, CHUNK = 200, 20  # of the quasi-Newton method that looks how far up it goes on, and between two looks
NEAR = 0.5  # standard errors from the maximum, root mean square over the parameters, that count as having reached it
TINY = 1e-3  # share of the gain looked for below which a look brings nothing more


def far_from_maximum(problem: Problem, control: Control, fit: Trained) -> float | None:
    """Log-likelihood that a fit has at least left to gain, if it is far from its maximum; None if it is near.

    Notes
    -----
    Near a maximum the log-likelihood lacks half the squared distance in standard errors. A network is not brought to
    its very maximum, where it overfits; one that is half a standard error off in each parameter is as good as there. A
    fit that was stopped by a validation set, before its last epoch, is where it should be.
    """
    stopped = problem.validation.n_rows and fit.trace.best < control.epochs - 1
    if is_marginal(problem) and not problem.validation.n_rows:
        return None  # its maximum was looked for, see `maximise_marginal`
    if stopped or not math.isfinite(fit.loglik):
        return None
    limit = 0.5 * NEAR**2 * problem.network.n_parameters
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
    leaves, loss = exact_loss(problem, control, fit) if is_exact(problem) else joint_loss(problem, control, fit)
    optimiser = torch.optim.LBFGS(leaves, max_iter=CHUNK, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    first = float(loss().detach())
    gain = 0.0
    for _ in range(STEPS // CHUNK):
        optimiser.step(closure)
        last, gain = gain, max(gain, first - float(loss().detach()))
        if gain > enough or gain - last < TINY * enough:
            break
    return gain


def exact_loss(problem: Problem, control: Control, fit: Trained) -> tuple[list[Tensor], Callable[[], Tensor]]:
    """Parameters and minus the marginal log-likelihood of effects on the last layer."""
    theta = problem.tensor(fit.theta).requires_grad_(True)
    entries = entries_of(problem, fit)[:-1].detach().clone().requires_grad_(True)
    state = LastState(theta, entries)
    return [theta, entries], lambda: problem.train.n_rows * penalised_deviance(problem, control, state)


def joint_loss(problem: Problem, control: Control, fit: Trained) -> tuple[list[Tensor], Callable[[], Tensor]]:
    """Parameters with the effects, and minus the penalised log-likelihood, variances held."""
    state = to_state(problem, fit)
    theta, z = (values.clone().requires_grad_(True) for values in (state.theta, state.z))
    moved = replace_effects(state, z)
    has = bool(problem.n_effects)

    def loss() -> Tensor:
        data = total_loss(problem, problem.train, theta, effects(moved) if has else None, state.sigma2)
        extra = 0.5 * (z.square() / state.s.clamp_min(1e-10)).sum() if has else 0.0
        return data + extra + problem.train.n_rows * control.weight_decay * theta.square().sum()

    return [theta, z] if has else [theta], loss


def all_rows_loglik(problem: Problem, fit: Trained) -> float:
    """Marginal log-likelihood of all rows at estimates from some of them, effects at their modes given all.

    Parameters
    ----------
    problem : Problem
        Without rows set aside.
    fit : Trained
    """
    z = effects_from_rows(problem, fit) if problem.n_effects else fit.z
    return marginal_loglik(problem, to_state(problem, fit, z))
