"""Coefficients of a network without hidden layers on the user's scale: those of a (mixed) regression."""

import numpy as np
from numpy.typing import NDArray

from mixmoe.layout import Parameter
from mixmoe.neural._torch import to_array, torch
from mixmoe.neural.exact import is_exact
from mixmoe.neural.inputs import Scaling
from mixmoe.neural.laplace import posterior_covariance
from mixmoe.neural.predict import MAX_CHAIN, MAX_PARAMETERS, chain_information, population_information, to_state
from mixmoe.neural.problem import Problem, Trained
from mixmoe.neural.steps import person_information

Array = NDArray[np.float64]


def is_regression(problem: Problem) -> bool:
    """Whether the network is a regression whose coefficients come from a linearised fit."""
    network = problem.network
    return network.module is None and not network.hidden and not is_exact(problem)


def linear_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Coefficients of a linear network: the intercept first, as a network always has one."""
    return ("Intercept", *(name for name in names if name != "Intercept"))


def outcome_names(problem: Problem, names: tuple[str, ...], levels: tuple[str, ...]) -> list[str]:
    """Terms of the coefficients: of more than one outcome with the level that is set against the first one."""
    terms = linear_names(names)
    if problem.family in ("gaussian", "binary"):
        return list(terms)
    return [f"{term}({level})" for level in levels[1:] for term in terms]


def coefficient_parameters(problem: Problem, names: tuple[str, ...], levels: tuple[str, ...]) -> list[Parameter]:
    """The coefficients as parameters of a layout."""
    return [Parameter(f"expert1.{name}", "expert", name, 1) for name in outcome_names(problem, names, levels)]


def random_parameters(problem: Problem, names: tuple[str, ...], levels: tuple[str, ...], group: str) -> list[Parameter]:
    """Standard deviations of the coefficients that differ between persons."""
    terms = np.array(outcome_names(problem, names, levels), dtype=object)
    mine = terms[random_rows(problem, len(linear_names(names)) - 1)]
    return [Parameter(f"sd1({name}|{group})", "random", f"sd({name})", 1, tested=False) for name in mine]


def random_rows(problem: Problem, p: int) -> NDArray[np.intp]:
    """Coefficients that differ between persons: the intercepts alone, or with the slopes, which move them too."""
    columns = [problem.personal.columns(f"layer1.{part}") for part in ("weight", "bias")]
    n_outcomes = max(problem.network.n_out - (problem.family == "crf"), 1)
    every = np.arange(n_outcomes * (p + 1))
    if columns[0] is not None:
        return every
    return every[:: p + 1] if columns[1] is not None else every[:0]


def coefficient_map(problem: Problem, scaling: Scaling) -> Array:
    """Matrix from the flat parameters to the coefficients on the user's scale, shape (R, P).

    Notes
    -----
    Of a CRF the scores of a state less those of the first one, which is what inputs tell.
    """
    network, d = problem.network, problem.network.n_out
    p = network.n_in
    each = np.zeros((d, p + 1, network.n_parameters))
    for k in range(d):
        weights, bias = np.arange(p) * d + k, p * d + k
        each[k, 0, weights], each[k, 0, bias] = -scaling.mean / scaling.sd, 1.0
        each[k, np.arange(1, p + 1), weights] = 1.0 / scaling.sd
    shown = each[1:] - each[:1] if problem.family == "crf" else each
    return scaling.y_sd * shown.reshape(-1, network.n_parameters)


def coefficients(problem: Problem, fit: Trained, scaling: Scaling) -> Array:
    """Coefficients on the user's scale, shape (R,)."""
    values = coefficient_map(problem, scaling) @ fit.theta
    values[0] += scaling.y_mean
    return values


def random_map(problem: Problem, scaling: Scaling) -> Array:
    """Matrix from the effects to those on the coefficients that differ between persons, shape (R, q)."""
    rows = random_rows(problem, problem.network.n_in)
    return coefficient_map(problem, scaling)[rows][:, problem.personal.index]


def random_correlations(
    problem: Problem, scaling: Scaling, names: tuple[str, ...], levels: tuple[str, ...], group: str
) -> list[Parameter]:
    """Correlations of the coefficients that differ between persons, where the model has any."""
    mine = np.array(outcome_names(problem, names, levels), dtype=object)
    mine = mine[random_rows(problem, len(linear_names(names)) - 1)]
    pairs = zip(*correlated_pairs(problem, random_map(problem, scaling)), strict=True)
    return [correlation(mine[i], mine[j], group) for i, j in pairs]


def correlation(a: str, b: str, group: str) -> Parameter:
    """The correlation of the effects on two coefficients; tested by its limits, as it is no regular parameter at 1."""
    return Parameter(f"corr1({a},{b}|{group})", "random", f"corr({a},{b})", 1)


def correlated_pairs(problem: Problem, to_user: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Coefficients whose person effects are correlated on the user's scale, as two arrays of places.

    Parameters
    ----------
    to_user : ndarray, shape (R, q)
        From the effects to those on coefficients.

    Notes
    -----
    Without them the printed standard deviations would have another likelihood than the printed one: effects that are
    independent on standardised inputs are not so on the user's, unless the mean of the input is zero, and the scores of
    two states of a chain are both set against the first.
    """
    rows, cols = np.triu_indices(len(to_user), 1)
    if problem.cov not in ("diagonal", "tensor"):
        return rows, cols
    parts = to_user if problem.basis is None else to_user @ problem.basis
    moved = np.abs(parts) > 1e-9 * np.abs(parts).max(axis=1, initial=1e-300, keepdims=True)
    together = (moved[rows] & moved[cols]).any(axis=1)
    return rows[together], cols[together]


def coefficient_covariance(problem: Problem, fit: Trained, scaling: Scaling) -> Array:
    """Covariance of the coefficients, the effects integrated out and variances held, shape (R, R)."""
    T, limit = coefficient_map(problem, scaling), MAX_CHAIN if problem.family == "crf" else MAX_PARAMETERS
    if problem.network.n_parameters > limit:
        return np.full((len(T), len(T)), np.nan)
    with torch.no_grad():
        state = to_state(problem, fit)
        if problem.family == "crf":
            information = chain_information(problem, state).population
        else:
            C = posterior_covariance(person_information(problem, state), state.s)
            information = population_information(problem, state, C)
    return T @ np.linalg.pinv(to_array(information), rcond=1e-10, hermitian=True) @ T.T
