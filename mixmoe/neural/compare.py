"""Held-out errors of a network with person effects beside those of the models it competes with."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixmoe.neural._torch import torch
from mixmoe.neural.exact import fit_last_layer, fit_on_features, is_exact
from mixmoe.neural.linearised import fit_laplace
from mixmoe.neural.network import initial_parameters, select_personal
from mixmoe.neural.problem import Control, Estimator, Problem, Trained, total_loss
from mixmoe.neural.published import fit_published

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Errors on rows that no model was fitted to.

    Attributes
    ----------
    models : tuple of str
    errors : ndarray, shape (n_models,)
        Mean squared error on the response's scale, or negative log-likelihood per row.
    n_rows : int
        Rows held out: the last of each person (or sequence).
    measure : str
    """

    models: tuple[str, ...]
    errors: Array
    n_rows: int
    measure: str


def fit_network(problem: Problem, control: Control, estimator: Estimator, rng: np.random.Generator) -> Trained:
    """A network with person effects by the estimator that suits it.

    Notes
    -----
    ``"laplace"`` with a Gaussian response and effects on the last layer only is the exact marginal likelihood.
    """
    theta = initial_parameters(problem.network, rng)
    if estimator == "sgd":
        return fit_published(problem, control, theta, rng)
    return fit_last_layer(problem, control, theta) if is_exact(problem) else fit_laplace(problem, control, theta, rng)


def held_out_error(problem: Problem, fit: Trained) -> float:
    """Error per validation row with the estimated effects, on the standardised scale."""
    with torch.no_grad():
        eta = problem.tensor(fit.eta) if problem.personal.q else None
        loss = (
            float(total_loss(problem, problem.validation, problem.tensor(fit.theta), eta)) / problem.validation.n_rows
        )
    return 2.0 * loss if problem.family == "gaussian" else loss


def without_validation(problem: Problem) -> Problem:
    """The same problem where nothing stops early."""
    return replace(problem, validation=type(problem.validation)((), 0))


def generic(problem: Problem, control: Control, seed: int) -> Trained:
    """The network without person effects."""
    plain = replace(problem, personal=select_personal(problem.network, []), cov="diagonal")
    return fit_network(without_validation(plain), control, "laplace", np.random.default_rng(seed))


def separate(problem: Problem, control: Control, seed: int) -> Trained:
    """One network per person, stopped where the held-out error is least (which flatters it)."""
    words = ["all", *(["transitions"] if problem.family == "crf" else [])]
    own = replace(problem, personal=select_personal(problem.network, words), cov="diagonal")
    return fit_network(own, replace(control, penalty=0.0), "sgd", np.random.default_rng(seed))


def with_lme(problem: Problem, base: Trained) -> Trained:
    """A mixed model of the last layer on the features of the generic network."""
    last = replace(problem, personal=select_personal(problem.network, ["last"]), cov="full")
    return fit_on_features(last, base.theta)


def compare(problem: Problem, control: Control, estimator: Estimator, seed: int, scale: float) -> Comparison:
    """Held-out errors of the generic network, one network per person, network + LME, and the model itself.

    Parameters
    ----------
    problem : Problem
        With the rows to hold out as its validation set.
    seed : int
        Start of each.
    scale : float
        Variance of the response, to report errors on its scale; 1 for families without one.
    """
    plain = replace(control, patience=None, progress=False)
    base = generic(problem, plain, seed)
    rows: list[tuple[str, Callable[[], Trained]]] = [("generic network", lambda: base)]
    rows.append(("one network per person", lambda: separate(problem, plain, seed)))
    if problem.family == "gaussian" and problem.network.module is None:
        rows.append(("generic network + LME", lambda: with_lme(problem, base)))
    own = problem if estimator == "sgd" else without_validation(problem)
    rows.append(("this model", lambda: fit_network(own, plain, estimator, np.random.default_rng(seed))))
    errors = [held_out_error(personal_of(problem, name), fit()) * scale for name, fit in rows]
    measure = "squared error" if problem.family == "gaussian" else "negative log-likelihood"
    return Comparison(tuple(name for name, _ in rows), np.array(errors), problem.validation.n_rows, measure)


def personal_of(problem: Problem, name: str) -> Problem:
    """The problem with the personal part that a row of the comparison has."""
    words = {
        "generic network": [],
        "generic network + LME": ["last"],
        "one network per person": ["all", *(["transitions"] if problem.family == "crf" else [])],
    }
    if name not in words:
        return problem
    return replace(problem, personal=select_personal(problem.network, words[name]))
