"""Reported parameters of the population beside variances: coefficients, thresholds, dispersions, with derivatives."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mixmoe._typing import Array
from mixmoe.mixture.estimate import Block, Flag, Parameter
from mixmoe.neural.batches import Scaling
from mixmoe.neural.blocks import to_array, torch
from mixmoe.neural.estimators.trained import Problem, Trained, total_loss
from mixmoe.neural.marginal_likelihood import (
    coefficient_map,
    is_regression,
    outcome_names,
    population_covariance,
)
from mixmoe.neural.network import TensorSpec, no_clumping
from mixmoe.neural.person_predictions import to_state
from mixmoe.neural.response_law import OF_NORMAL

DISPERSION: Block = "dispersion"
RESIDUAL: Block = "residual"


def population_parameters(
    problem: Problem, names: tuple[str, ...], levels: tuple[str, ...], sigma: tuple[str, ...]
) -> list[Parameter]:
    """Coefficients of a linear network, and what the law of the response has beside the network's outputs.

    Parameters
    ----------
    names : tuple of str
        Columns of the expert design.
    levels : tuple of str
        Of the response.
    sigma : tuple of str
        Covariates of the log dispersion.
    """
    found = []
    if is_regression(problem):
        terms = outcome_names(problem, names, levels)
        found = [Parameter(n, "fixed", n) for n in (terms[1:] if problem.family == "ordinal" else terms)]
    if problem.family == "ordinal":  # distances, where the network has no intercept that the first one could be
        between = [f"{low}|{high}" for low, high in pairwise(levels)]
        cells = [f"cut({b})" for b in between] if is_regression(problem) else [f"step({b})" for b in between[1:]]
        found += [Parameter(cell, "threshold", cell, tested=False) for cell in cells]
    if problem.family in ("negbinomial", "heteroscedastic"):
        counts = problem.family == "negbinomial"
        name, block = "theta" if counts else "sigma", DISPERSION if counts else RESIDUAL
        found.append(Parameter(name, block, name, tested=False))
        found += [Parameter(f"{name}.{of}", block, f"{name}.{of}") for of in sigma]
    return found


@dataclass(frozen=True, slots=True)
class Reported:
    """Values of `population_parameters` and their derivatives.

    Attributes
    ----------
    values : ndarray, shape (R,)
    slopes : ndarray, shape (R, P)
        In the flat parameters of the network.
    """

    values: Array
    slopes: Array


def population_values(problem: Problem, fit: Trained, scaling: Scaling) -> Reported:
    """Values of `population_parameters`, on the user's scale."""
    P, spec = problem.network.n_parameters, problem.network.law
    T = coefficient_map(problem, scaling) if is_regression(problem) else np.zeros((0, P))
    values = T @ fit.theta
    if not len(T) or problem.family != "ordinal":
        values[:1] += scaling.y_mean
        law = law_values(fit, spec, scaling, problem.family in OF_NORMAL) if spec is not None else None
        if law is None:
            return Reported(values, T)
        return Reported(np.concatenate([values, law.values]), np.vstack([T, law.slopes]))
    # Thresholds take the place of the intercept: minus it, and that plus the running sums of their distances.
    rises = np.exp(fit.theta[spec.start : spec.stop]) if spec is not None else np.empty(0)
    cuts = np.concatenate([[0.0], rises.cumsum()]) - values[0]
    slopes = np.tile(-T[0], (len(cuts), 1))
    if spec is not None:
        slopes[1:, spec.start : spec.stop] += np.tril(np.tile(rises, (len(rises), 1)))
    return Reported(np.concatenate([values[1:], cuts]), np.vstack([T[1:], slopes]))


def law_values(fit: Trained, spec: TensorSpec, scaling: Scaling, normal: bool) -> Reported:
    """What a law has beside the network's outputs: distances of thresholds, or a dispersion and its slopes.

    Parameters
    ----------
    spec : TensorSpec
        Where it lies in the flat vector.
    normal : bool
        Whether it is the standard deviation of a standardised response.
    """
    raw = fit.theta[spec.start : spec.stop]
    slopes = np.zeros((len(raw), len(fit.theta)))
    if spec.name == "steps":
        slopes[:, spec.start : spec.stop] = np.diag(np.exp(raw))
        return Reported(np.exp(raw), slopes)
    T = np.eye(len(raw))
    T[0, 1:] = -scaling.scale_mean / scaling.scale_sd
    T[1:, 1:] = np.diag(1.0 / scaling.scale_sd)
    values = T @ raw
    values[0] = np.exp(values[0]) * (scaling.y_sd if normal else 1.0)
    T[0] *= values[0]
    slopes[:, spec.start : spec.stop] = T
    return Reported(values, slopes)


def population_errors(problem: Problem, fit: Trained, found: Reported, known: Array | None) -> Array:
    """Covariance of `population_values`, shape (R, R).

    Parameters
    ----------
    known : ndarray, shape (P, P), optional
        Covariance of the flat parameters, at the maximum of the marginal likelihood.

    Notes
    -----
    Else that of the linearised model for a linear network; with hidden layers that of the law's own parameters, network
    and effects held.
    """
    P, spec = problem.network.n_parameters, problem.network.law
    if known is None and is_regression(problem):
        known = population_covariance(problem, fit)
    elif known is None:
        known = np.zeros((P, P))
        if spec is not None:
            known[spec.start : spec.stop, spec.start : spec.stop] = law_covariance(problem, fit, spec)
    covariance = found.slopes @ known @ found.slopes.T
    if at_limit(problem, fit) and spec is not None:
        lost = np.flatnonzero(found.slopes[:, spec.start])
        covariance[lost], covariance[:, lost] = np.nan, np.nan
    return covariance


def law_covariance(problem: Problem, fit: Trained, spec: TensorSpec) -> Array:
    """Inverse observed information of the law's own parameters, network and effects held; NaN without a maximum."""
    state = to_state(problem, fit)
    eta = problem.tensor(fit.eta) if problem.personal.q else None

    def loss(own: torch.Tensor) -> torch.Tensor:
        theta = torch.cat([state.theta[: spec.start], own])
        return total_loss(problem, problem.train, theta, eta, state.sigma2)

    H = to_array(torch.autograd.functional.hessian(loss, state.theta[spec.start :]))
    if np.linalg.eigvalsh(H).min() <= 0.0:
        return np.full(H.shape, np.nan)
    return np.linalg.inv(H)


def at_limit(problem: Problem, fit: Trained) -> list[Flag]:
    """A flag if counts are no more spread than Poisson ones."""
    if problem.family != "negbinomial" or not no_clumping(problem.network, fit.theta):
        return []
    return [
        Flag(
            "boundary",
            "theta has run into the end of its space: the counts are no more spread than Poisson ones, and it has no "
            "standard error",
            "use family='poisson'",
        )
    ]
