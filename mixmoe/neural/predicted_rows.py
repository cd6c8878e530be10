"""Predictions of rows by what is known of their persons: their effects, or the distribution of effects."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array, IntArray
from mixmoe.arguments import checked_rng
from mixmoe.design.design import Design
from mixmoe.neural.batches import blocks_of
from mixmoe.neural.blocks import Blocks, Tensor, build_blocks, to_array
from mixmoe.neural.estimators.last_layer import is_exact
from mixmoe.neural.estimators.trained import Problem, Trained
from mixmoe.neural.groupings import (
    combined_rows,
    spread_of,
    strangers,
)
from mixmoe.neural.marginal_likelihood import (
    is_marginal,
    posterior_means,
    quasi_normal,
)
from mixmoe.neural.person_predictions import (
    N_DRAWS,
    Components,
    Limits,
    Prediction,
    Uncertainty,
    crf_rows,
    known_rows,
    linear_unknown_rows,
    mixture_draws,
    prior_component,
    prior_draws,
    to_state,
    uncertainty,
    unknown_rows,
    widening,
)
from mixmoe.neural.response_law import LAWS, SHARED
from mixmoe.neural.transitions import following_rows

if TYPE_CHECKING:
    from mixmoe.neural.persons import Persons


def predictions(
    persons: "Persons",
    covered: Uncertainty | None,
    design: Design,
    known: IntArray,
    is_known: NDArray[np.bool_],
    limits: Limits,
    rng: Any,
    own: bool,
) -> list[tuple[NDArray[np.bool_], Prediction]]:
    """Predictions of known rows, `own` given what is known of their persons, and of rows of unknown persons."""
    problem, fit, family = persons.problem, persons.trained, persons.problem.family
    out = []
    bare = covered if covered is not None else Uncertainty(None, None)
    if is_known.any():
        blocks = blocks_of(design, family, persons.scaling, is_known, np.maximum(known, 0), persons.problem.device)
        if family == "crf":
            past = persons.history or persons.design
            chains = (
                following_rows(persons.design, past, design, persons.scaling, known, problem.device) if own else None
            )
            values = known_means(persons, blocks) if chains is None else np.empty(0)
            if chains is not None:
                given = crf_rows(problem, fit, chains.blocks, persons.z, states=False, given=True)
                values = given[chains.places]
            out.append((is_known, Prediction(values, np.full(values.shape, np.nan))))
        else:
            found = known_rows(problem, fit, blocks, persons.z, bare, noise_of(problem, limits))
            exact = is_marginal(problem)
            out.append((is_known, replace(found, mean=known_means(persons, blocks)) if exact else found))
    if not is_known.all():
        zeros = np.zeros(design.n_units, dtype=np.intp)
        blocks = blocks_of(design, family, persons.scaling, ~is_known, zeros, persons.problem.device)
        out.append((~is_known, over_effects(persons, covered, blocks, limits, checked_rng(rng))))
    return out


def noise_of(problem: Problem, limits: Limits) -> Limits | None:
    """The limits of a new response of a family whose noise differs between rows; None where none are wanted."""
    return limits if limits.noise and problem.family in SHARED else None


def combined_predictions(persons: "Persons", covered: Uncertainty | None, blocks: Blocks, limits: Limits) -> Prediction:
    """Predictions of rows by what is known of their levels in all groupings."""
    problem, fit, z = persons.problem, persons.trained, persons.z_of_all
    if covered is None:
        return combined_rows(problem, fit, z, blocks)
    spread = spread_of(problem, fit, z, population=covered.population is not None)
    if covered.population is not None:
        spread = replace(spread, population=covered.population)
    return combined_rows(problem, fit, z, blocks, replace(spread, fixed=limits.population))


def known_means(persons: "Persons", rows: Blocks) -> Array:
    """Means or probabilities of rows of these persons with their effects, standardised scale, shape (n, d)."""
    problem, fit = persons.problem, persons.trained
    if persons.levels:
        return combined_rows(problem, fit, persons.z_of_all, rows).mean
    if problem.family == "crf":
        return crf_rows(problem, fit, rows, persons.z, states=False)
    if is_marginal(problem):
        return posterior_means(problem, fit, persons.z, rows)
    return known_rows(problem, fit, rows, persons.z, Uncertainty(None, None)).mean


def at_mean_levels(persons: "Persons", rows: pd.DataFrame, place: int) -> Array:
    """Predictions of one person at effects of zero of the other groupings, whose columns are not needed, shape (n,)."""
    x, size = persons.scaling.inputs(persons.design.for_new(rows).expert), len(rows)
    blocks = build_blocks(
        x,
        np.zeros(size),
        np.zeros(size, dtype=np.intp),
        1,
        persons=np.array([place]),
        levels=np.full((size, len(persons.levels)), -1),
        device=persons.problem.device,
    )
    return persons.scaling.y_mean + persons.scaling.y_sd * known_means(persons, blocks)[:, 0]


def unknown_means(persons: "Persons", rows: Blocks) -> Array:
    """Predictions over the distribution of effects, as if nobody were known."""
    if persons.levels:
        return combined_rows(persons.problem, persons.trained, persons.z_of_all, strangers(rows)).mean
    limits = Limits(noise=False, population=True)
    return over_effects(persons, None, rows, limits, np.random.default_rng(0)).mean


def over_effects(
    persons: "Persons", covered: Uncertainty | None, rows: Blocks, limits: Limits, rng: np.random.Generator
) -> Prediction:
    """Predictions of rows of unknown persons."""
    problem, fit = persons.problem, persons.trained
    bare = covered if covered is not None else Uncertainty(None, None)
    if is_exact(problem):
        return linear_unknown_rows(problem, fit, rows, unknown_components(persons, covered), bare, limits)
    if problem.family in LAWS:
        return unknown_rows(problem, fit, rows, even_effects(fit, widened=not limits.population), bare, limits)
    return unknown_rows(problem, fit, rows, unknown_draws(persons, covered, rng), bare, limits)


def even_effects(fit: Trained, *, widened: bool) -> Array:
    """Points spread evenly over the distribution of effects, shape (N_DRAWS, r).

    Parameters
    ----------
    widened : bool
        Whether for one more person, see `widening`, or for the mean over persons.
    """
    r = fit.z.shape[1]
    sd = np.sqrt(fit.s * (widening(fit) if widened else 1.0))
    return quasi_normal(r, N_DRAWS) * sd if r else np.zeros((2, 0))


def has_prior_only(persons: "Persons") -> bool:
    """Whether unknown persons are as the model says, not as the known ones: a full covariance leaves out nothing."""
    problem = persons.problem
    return problem.cov == "full" or not problem.n_effects or len((persons.fitted or persons).labels) < 2


def posterior_covariances(persons: "Persons", covered: Uncertainty | None) -> Tensor:
    """Posterior covariances of the effects of the persons of the fit, shape (N, r, r)."""
    if covered is not None and covered.effects is not None and persons.fitted is None:
        return covered.effects
    source = persons.fitted or persons
    return uncertainty(source.problem, persons.trained, source.z, population=False).effects


def unknown_components(persons: "Persons", covered: Uncertainty | None) -> Components:
    """The distribution of the effects of unknown persons: a full prior, or the known ones' posteriors."""
    if has_prior_only(persons):
        return prior_component(persons.problem, persons.trained)
    source = persons.fitted or persons
    means = to_state(source.problem, persons.trained, source.z).z
    return Components(means, posterior_covariances(persons, covered))


def unknown_draws(persons: "Persons", covered: Uncertainty | None, rng: np.random.Generator) -> Array:
    """Draws of the effects of unknown persons: of a full prior, else of the mixture of the known ones' posteriors."""
    n_draws = 64 if persons.problem.family == "crf" else N_DRAWS
    if has_prior_only(persons):
        return prior_draws(persons.trained, rng, n_draws)
    source = persons.fitted or persons
    found = posterior_covariances(persons, covered)
    return mixture_draws(persons.trained, source.z, to_array(found), rng, n_draws)
