"""Persons with their effects, those of the fit and adapted ones: predictions, effects, decoding by label."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.arguments import checked_rng
from mixmoe.design.design import Design
from mixmoe.design.frame import shown, view
from mixmoe.design.labels import exact, places_of, units_of
from mixmoe.errors import ArgumentError, DesignError
from mixmoe.inference.uncertainty import checked_alpha
from mixmoe.neural.batches import Scaling, blocks_of
from mixmoe.neural.blocks import Blocks, Tensor, to_array
from mixmoe.neural.estimators.last_layer import is_exact
from mixmoe.neural.estimators.trained import Problem, Trained
from mixmoe.neural.marginal_likelihood import is_marginal, posterior_means
from mixmoe.neural.person_predictions import (
    N_DRAWS,
    Components,
    Prediction,
    Uncertainty,
    crf_rows,
    effects_from_rows,
    known_rows,
    linear_unknown_rows,
    mixture_draws,
    normal_limits,
    prior_component,
    prior_draws,
    to_state,
    uncertainty,
    unknown_rows,
)
from mixmoe.neural.transitions import Transitions, build_transitions

Index = NDArray[np.intp]


@dataclass(frozen=True, slots=True, repr=False)
class Persons:
    """Persons whose effects are estimated.

    Attributes
    ----------
    design : Design
        Of the fit: how columns are made.
    scaling : Scaling
    problem : Problem
        With the rows from which the effects come.
    trained : Trained
        Of the fit.
    labels : ndarray of object, shape (N,)
    z : ndarray, shape (N, r)
        Latent effects.
    population : ndarray, shape (P, P), or None
        Covariance of the population parameters, from the fit's own persons; None: not computed yet.
    fitted : Persons or None
        The persons of the fit, if these are adapted ones.
    """

    design: Design
    scaling: Scaling
    problem: Problem
    trained: Trained
    labels: NDArray[np.object_]
    z: Array
    population: Any = None
    fitted: "Persons | None" = None

    def __repr__(self) -> str:
        what = "persons of the fit" if self.fitted is None else "adapted persons"
        return (
            f"<{len(self.labels)} {what}, {self.problem.personal.q} personal parameters each; "
            "see effects(), effect_errors(), predict(data)>"
        )

    def effects(self) -> pd.DataFrame:
        """Effects on the personal parameters, standardised scale, one row per person."""
        index = pd.Index(self.labels, name=self.design.names.group)
        return pd.DataFrame(self.z @ self.trained.loading.T, index=index, columns=parameter_names(self.problem))

    def effect_errors(self, covered: Uncertainty | None = None) -> pd.DataFrame:
        """Posterior standard deviations of the effects."""
        C = to_array(self.uncertainty(covered).effects)
        loading = self.directions
        variance = np.einsum("qr,nrs,qs->nq", loading, C, loading)
        return self.effects() * 0.0 + np.sqrt(np.maximum(variance, 0.0))

    @property
    def directions(self) -> Array:
        """Loading with columns of length one, in which posterior covariances are kept, shape (q, r)."""
        norms = np.linalg.norm(self.trained.loading, axis=0)
        return self.trained.loading / np.where(norms > 0, norms, 1.0)

    def uncertainty(self, covered: Uncertainty | None = None) -> Uncertainty:
        """Covariances of these persons' effects and of the population parameters."""
        if covered is not None:
            return covered
        own = uncertainty(self.problem, self.trained, self.z, population=self.population is None)
        return own if self.population is None else replace(own, population=self.population)

    def predict(self, data: Any, *, interval: bool = True, alpha: float = 0.05, rng: Any = 0) -> pd.DataFrame:
        """Predictions; see `NMEResults.predict`."""
        return predict_frame(self, self.uncertainty() if interval else None, data, alpha, rng)

    @property
    def transitions(self) -> Transitions:
        """Transition probabilities of the population and of these persons, with intervals (CRF)."""
        return build_transitions(self, self.uncertainty())

    def decode(self, data: Any) -> pd.Series:
        """The most probable state sequences (CRF)."""
        return state_frame(self, data, states=True)


def parameter_names(problem: Problem) -> list[str]:
    """Names of the personal parameters: tensor and place within it, counted from 1."""
    names = []
    for spec in problem.personal.tensors:
        places = np.ndindex(spec.shape)
        names += [f"{spec.name}[{','.join(str(i + 1) for i in place)}]" for place in places]
    return names


def persons_of(model: Any, problem: Problem, trained: Trained) -> Persons:
    """The persons of a fit; rows held out for early stopping count for their effects."""
    everyone = replace(model.problem, cov=problem.cov)
    z = trained.z
    if problem.validation.n_rows and model.estimator == "laplace" and problem.n_effects:
        z = effects_from_rows(everyone, trained)
    return Persons(model.design, model.scaling, everyone, trained, model.design.labels, z)


def match_labels(persons: Persons, design: Design) -> Index:
    """Place of each unit of a new design among the persons; -1 for unknown ones.

    Raises
    ------
    DesignError
        If the column of the persons is missing although it matters, or a label reads as that of a known person but is
        of another type, as text where the fit had numbers: neither may pass as a person never seen.
    """
    group, problem = persons.design.names.group, persons.problem
    if design.names.group is None:
        if group is not None and (problem.personal.q or problem.family == "crf"):
            raise DesignError(
                f"the column {group!r} of the persons is missing, so that nothing says whose rows these are; for a "
                f"person never seen give a label that the fit has not, as data.assign({group}=...)"
            )
        return np.full(design.n_units, -1, dtype=np.intp)
    found = places_of(design.labels, persons.labels)
    if problem.personal.q and (found < 0).any():
        refuse_lookalikes(str(group), persons.labels, design.labels[found < 0])
    return found


def refuse_lookalikes(group: str, known: NDArray[np.object_], unknown: NDArray[np.object_]) -> None:
    """Refuse labels that read as known ones but are of another type.

    Raises
    ------
    DesignError
    """
    readings = {reading(label): label for label in known}
    for label in unknown:
        alike = readings.get(reading(label))
        if alike is not None and isinstance(label, str) != isinstance(alike, str):
            raise DesignError(
                f"{group!r} is {shown(label)} ({type(label).__name__}) in the new data and {shown(alike)} "
                f"({type(alike).__name__}) in the fit, which are not the same label; convert the column to the type "
                "that it had"
            )


def reading(label: Any) -> str:
    """A label as one reads it: numbers without regard to how they are written, times as pandas shows them."""
    text = (label.decode(errors="replace") if isinstance(label, bytes) else str(label)).strip()
    try:
        return repr(float(text))
    except ValueError:
        return text.removesuffix(" 00:00:00")


def adapt_persons(persons: Persons, data: Any) -> Persons:
    """Persons with effects from `data`, population parameters held."""
    design = persons.design.for_new(data, response=True)
    if design.names.group is None:
        raise ArgumentError(f"adapt needs to know whose rows these are; give the column {persons.design.names.group!r}")
    every = np.ones(design.n, dtype=bool)
    family = persons.problem.family
    rows = blocks_of(design, family, persons.scaling, every, np.arange(design.n_units), persons.problem.device)
    problem = replace(persons.problem, train=rows, n_persons=design.n_units)
    z = effects_from_rows(problem, persons.trained)
    covered = persons.population
    if covered is None:
        covered = uncertainty(persons.problem, persons.trained, persons.z).population
    return replace(
        persons, problem=problem, labels=design.labels, z=z, population=covered, fitted=persons.fitted or persons
    )


def predict_frame(persons: Persons, covered: Uncertainty | None, data: Any, alpha: float, rng: Any) -> pd.DataFrame:
    """Predictions of the rows of a frame, in its order."""
    design = persons.design.for_new(data)
    return predict_design(persons, covered, design, match_labels(persons, design), data, checked_alpha(alpha), rng)


def predict_design(
    persons: Persons, covered: Uncertainty | None, design: Design, known: Index, data: Any, level: float, rng: Any
) -> pd.DataFrame:
    """Predictions of the rows of a design, in the order of the data that it was made of.

    Parameters
    ----------
    known : ndarray of int, shape (N,)
        Place of each unit among the persons; -1 for unknown ones.
    """
    is_known = (known >= 0)[design.codes]
    q = persons.problem.network.n_out if persons.problem.family == "crf" else None
    size = q or max(persons.problem.network.n_out + (persons.problem.family != "gaussian"), 1)
    whole = Prediction(np.zeros((design.n, size)), np.zeros((design.n, size)), *np.full((2, design.n), np.nan))
    for rows, found in predictions(persons, covered, design, known, is_known, level, rng):
        fill(whole, rows, found)
    values = user_rows(labelled(persons, design, whole, is_known, level, limits=covered is not None), design, data)
    return values if len(values) == design.n else values.assign(known=known_rows_of(persons, design, data))


def fill(whole: Prediction, rows: NDArray[np.bool_], found: Prediction) -> None:
    """Put the predictions of some rows in their place."""
    whole.mean[rows], whole.variance[rows] = found.mean, found.variance
    if found.lower is not None and whole.lower is not None and whole.upper is not None:
        whole.lower[rows], whole.upper[rows] = found.lower, found.upper


def predictions(
    persons: Persons,
    covered: Uncertainty | None,
    design: Design,
    known: Index,
    is_known: NDArray[np.bool_],
    alpha: float,
    rng: Any,
) -> list[tuple[NDArray[np.bool_], Prediction]]:
    """Predictions of known rows and of rows of unknown persons."""
    problem, fit, family = persons.problem, persons.trained, persons.problem.family
    out = []
    bare = covered if covered is not None else Uncertainty(None, None)
    if is_known.any():
        blocks = blocks_of(design, family, persons.scaling, is_known, np.maximum(known, 0), persons.problem.device)
        if family == "crf":
            values = known_means(persons, blocks)
            out.append((is_known, Prediction(values, np.full(values.shape, np.nan))))
        else:
            found = known_rows(problem, fit, blocks, persons.z, bare)
            exact = is_marginal(problem)
            out.append((is_known, replace(found, mean=known_means(persons, blocks)) if exact else found))
    if not is_known.all():
        zeros = np.zeros(design.n_units, dtype=np.intp)
        blocks = blocks_of(design, family, persons.scaling, ~is_known, zeros, persons.problem.device)
        out.append((~is_known, over_effects(persons, covered, blocks, alpha, checked_rng(rng))))
    return out


def known_means(persons: Persons, rows: Blocks) -> Array:
    """Means or probabilities of rows of these persons with their effects, standardised scale, shape (n, d)."""
    problem, fit = persons.problem, persons.trained
    if problem.family == "crf":
        return crf_rows(problem, fit, rows, persons.z, states=False)
    if is_marginal(problem):
        return posterior_means(problem, fit, persons.z, rows)
    return known_rows(problem, fit, rows, persons.z, Uncertainty(None, None)).mean


def unknown_means(persons: Persons, rows: Blocks) -> Array:
    """Predictions over the distribution of effects, as if nobody were known."""
    return over_effects(persons, None, rows, 0.05, np.random.default_rng(0)).mean


def over_effects(
    persons: Persons, covered: Uncertainty | None, rows: Blocks, alpha: float, rng: np.random.Generator
) -> Prediction:
    """Predictions of rows of unknown persons."""
    problem, fit = persons.problem, persons.trained
    bare = covered if covered is not None else Uncertainty(None, None)
    if is_exact(problem):
        return linear_unknown_rows(problem, fit, rows, unknown_components(persons, covered), bare, alpha)
    return unknown_rows(problem, fit, rows, unknown_draws(persons, covered, rng), bare, alpha)


def has_prior_only(persons: Persons) -> bool:
    """Whether unknown persons are as the model says, not as the known ones: a full covariance leaves out nothing."""
    problem = persons.problem
    return problem.cov == "full" or not problem.n_effects or len((persons.fitted or persons).labels) < 2


def posterior_covariances(persons: Persons, covered: Uncertainty | None) -> Tensor:
    """Posterior covariances of the effects of the persons of the fit, shape (N, r, r)."""
    if covered is not None and covered.effects is not None and persons.fitted is None:
        return covered.effects
    source = persons.fitted or persons
    return uncertainty(source.problem, persons.trained, source.z, population=False).effects


def unknown_components(persons: Persons, covered: Uncertainty | None) -> Components:
    """The distribution of the effects of unknown persons: a full prior, or the known ones' posteriors."""
    if has_prior_only(persons):
        return prior_component(persons.problem, persons.trained)
    source = persons.fitted or persons
    means = to_state(source.problem, persons.trained, source.z).z
    return Components(means, posterior_covariances(persons, covered))


def unknown_draws(persons: Persons, covered: Uncertainty | None, rng: np.random.Generator) -> Array:
    """Draws of the effects of unknown persons: of a full prior, else of the mixture of the known ones' posteriors."""
    n_draws = 64 if persons.problem.family == "crf" else N_DRAWS
    if has_prior_only(persons):
        return prior_draws(persons.trained, rng, n_draws)
    source = persons.fitted or persons
    found = posterior_covariances(persons, covered)
    return mixture_draws(persons.trained, source.z, to_array(found), rng, n_draws)


def labelled(
    persons: Persons,
    design: Design,
    found: Prediction,
    is_known: NDArray[np.bool_],
    alpha: float,
    *,
    limits: bool,
) -> pd.DataFrame:
    """Predictions on the user's scale, in the user's order."""
    scaling, family = persons.scaling, persons.problem.family
    mean, variance = found.mean, found.variance if limits else None
    if family == "gaussian":
        columns: dict[str, NDArray[Any]] = {"mean": scaling.y_mean + scaling.y_sd * mean[:, 0]}
        if variance is not None:
            low, high = normal_limits(mean[:, 0], variance[:, 0] + persons.trained.sigma2, alpha)
            low = replaced(low, found.lower)
            high = replaced(high, found.upper)
            columns["lower"], columns["upper"] = (scaling.y_mean + scaling.y_sd * v for v in (low, high))
    else:
        levels = [str(level) for level in persons.design.response_levels or ()]
        columns = {level: mean[:, k] for k, level in enumerate(levels)}
        if variance is not None and family != "crf":
            low, high = logit_limits(mean, variance, alpha)
            columns |= {f"lower_{level}": low[:, k] for k, level in enumerate(levels)}
            columns |= {f"upper_{level}": high[:, k] for k, level in enumerate(levels)}
    columns["known"] = is_known
    return pd.DataFrame(columns)


def user_rows(values: Any, design: Design, data: Any) -> Any:
    """A frame or series in the order of the design as the user's rows, missing where a row was left out."""
    seen = view(data)
    return values.set_axis(design.position).reindex(range(seen.n_rows)).set_axis(seen.labels)


def known_rows_of(persons: Persons, design: Design, data: Any) -> NDArray[np.bool_]:
    """Whether each of the user's rows is of a known person, those with missing inputs included."""
    group = design.names.group
    if group is None:
        return np.zeros(design.n_input, dtype=bool)
    values = view(data).column(group)
    known = values.notna().to_numpy(copy=True)
    units = units_of(exact(values[known]))
    known[known] = (places_of(units.labels, persons.labels) >= 0)[units.codes]
    return np.asarray(known)


def replaced(limits: Array, by: Array | None) -> Array:
    """Limits with those that are known better put in their place."""
    return limits if by is None else np.where(np.isnan(by), limits, by)


def logit_limits(p: Array, variance: Array, alpha: float) -> tuple[Array, Array]:
    """Limits of probabilities, normal on the logit scale."""
    safe = np.clip(p, 1e-12, 1.0 - 1e-12)
    low, high = normal_limits(np.log(safe / (1.0 - safe)), variance / (safe * (1.0 - safe)) ** 2, alpha)
    return 1.0 / (1.0 + np.exp(-low)), 1.0 / (1.0 + np.exp(-high))


def state_frame(persons: Persons, data: Any, *, states: bool) -> Any:
    """Decoded states (Series) or state probabilities (DataFrame) of rows; unknown persons at effects of zero."""
    if persons.problem.family != "crf":
        raise ArgumentError(f"decoding belongs to a CRF; this model's family is {persons.problem.family!r}")
    design = persons.design.for_new(data)
    known = match_labels(persons, design)
    z = np.concatenate([persons.z, np.zeros((1, persons.z.shape[1]))])
    place = np.where(known >= 0, known, len(persons.z))
    every = np.ones(design.n, dtype=bool)
    blocks = blocks_of(design, "crf", persons.scaling, every, place, persons.problem.device)
    values = crf_rows(persons.problem, persons.trained, blocks, z, states=states)
    levels = list(persons.design.response_levels or ())
    if not states:
        return user_rows(pd.DataFrame(values, columns=[str(v) for v in levels]), design, data)
    decoded = pd.Series([levels[int(code)] for code in values], name=persons.design.names.response)
    return user_rows(decoded, design, data)
