"""Held-out errors of a network with person effects beside those of the models it competes with."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixmoe.errors import DesignError
from mixmoe.neural._torch import to_array, torch
from mixmoe.neural.exact import fit_last_layer, fit_on_features, is_exact
from mixmoe.neural.linearised import fit_laplace
from mixmoe.neural.network import initial_parameters, select_personal
from mixmoe.neural.problem import Control, Estimator, Problem, Trained, block_loss, responses_in
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
    try:
        if estimator == "sgd":
            return fit_published(problem, control, theta, rng)
        exact = is_exact(problem)
        return fit_last_layer(problem, control, theta) if exact else fit_laplace(problem, control, theta, rng)
    except torch.linalg.LinAlgError as error:
        raise DesignError(
            f"a matrix of the fit has no Cholesky factor ({str(error).splitlines()[0]}): too few rows for a network of "
            f"{problem.network.n_parameters} parameters, or numbers too large; use fewer hidden units, or rescale"
        ) from error


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Error of one model on rows that it was not fitted to.

    Attributes
    ----------
    error, se : float
        Mean per row as in `Comparison`, and its standard error, persons being independent; NaN for one person.
    n_rows : int
    measure : str
    """

    error: float
    se: float
    n_rows: int
    measure: str


def held_out(problem: Problem, fit: Trained, scale: float) -> HeldOut:
    """Error per validation row with its standard error.

    Parameters
    ----------
    problem : Problem
        With the held-out rows as its validation set.
    fit : Trained
    scale : float
        Variance of the response; 1 for families without one.
    """
    with torch.no_grad():
        eta = problem.tensor(fit.eta) if problem.personal.q else None
        losses, counts = (problem.tensor(np.zeros(problem.n_persons)) for _ in range(2))
        for block in problem.validation:
            losses.index_add_(0, block.persons, block_loss(problem, block, problem.tensor(fit.theta), eta, 1.0))
            counts.index_add_(0, block.persons, responses_in(problem, block).sum(1))
    loss, n = to_array(losses) * (2.0 * scale if problem.family == "gaussian" else 1.0), to_array(counts)
    rows = int(n.sum())
    error, seen = float(loss.sum()) / rows, n > 0
    part = (loss - error * n)[seen]
    se = float(np.sqrt(np.square(part).sum() * len(part) / max(len(part) - 1, 1))) / rows if len(part) > 1 else np.nan
    return HeldOut(error, se, rows, measure_of(problem))


def measure_of(problem: Problem) -> str:
    """What an error is."""
    return "squared error" if problem.family == "gaussian" else "negative log-likelihood"


def held_out_error(problem: Problem, fit: Trained) -> float:
    """Error per validation row with the estimated effects, on the standardised scale."""
    return held_out(problem, fit, 1.0).error


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
    own = replace(problem, personal=select_personal(problem.network, words), cov="diagonal", published=True)
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
    rows.append(("this model", lambda: fit_to_others(problem, plain, estimator, seed)))
    errors = [held_out_error(personal_of(problem, name), fit()) * scale for name, fit in rows]
    n_rows = sum(int(responses_in(problem, block).sum()) for block in problem.validation)
    return Comparison(tuple(n for n, _ in rows), np.array(errors), n_rows, measure_of(problem))


def fit_to_others(problem: Problem, control: Control, estimator: Estimator, seed: int) -> Trained:
    """A fit without the validation rows; the published rule stops early on them, which flatters it."""
    own = problem if estimator == "sgd" else without_validation(problem)
    return fit_network(own, control, estimator, np.random.default_rng(seed))


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
