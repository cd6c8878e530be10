"""Persons with their effects, those of the fit and adapted ones: predictions, effects, decoding by label."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array, IntArray
from mixmoe.design.beside import check_beside
from mixmoe.design.complete_rows import NothingLeftError
from mixmoe.design.design import Design
from mixmoe.design.frame import places_of, view
from mixmoe.errors import ArgumentError, DesignError
from mixmoe.neural.batches import Scaling, blocks_of, warn_outside
from mixmoe.neural.blocks import Tensor, to_array
from mixmoe.neural.components import is_linear, linear_map, random_names
from mixmoe.neural.estimators.trained import Problem, Trained, parts_of
from mixmoe.neural.groupings import (
    Levels,
    estimated_effects,
    joint_uncertainty,
    level_codes,
    level_errors,
    levels_of,
)
from mixmoe.neural.marginal_likelihood import (
    is_regression,
    linear_names,
    outcome_names,
    random_map,
    random_rows,
)
from mixmoe.neural.person_predictions import (
    Limits,
    Prediction,
    Uncertainty,
    crf_rows,
    effects_from_rows,
    normal_limits,
    uncertainty,
)
from mixmoe.neural.predicted_rows import combined_predictions, predictions
from mixmoe.neural.refusals import check_counts, check_moves, check_offset
from mixmoe.neural.response_law import COUNTS, NUMBERS, OF_NORMAL, asked_family, n_means
from mixmoe.neural.transitions import Transitions, build_transitions
from mixmoe.output.predictions import (
    Interval,
    IntervalOf,
    Kind,
    Scale,
    Wanted,
    checked_wanted,
    in_user_order,
    known_places,
    mean_columns,
    named_columns,
    warn_strangers,
)
from mixmoe.output.summary import nothing_predicted

if TYPE_CHECKING:
    from mixmoe.neural.model import NME


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
    levels : tuple of Levels
        Of the further groupings.
    others : tuple of ndarray, shape (N_g, r_g)
        Their latent effects.
    history : Design or None
        The rows that these persons were adapted to; None for those of the fit, which are in `design`.
    """

    design: Design
    scaling: Scaling
    problem: Problem
    trained: Trained
    labels: NDArray[np.object_]
    z: Array
    population: Tensor | None = None
    fitted: "Persons | None" = None
    levels: tuple[Levels, ...] = ()
    others: tuple[Array, ...] = ()
    history: Design | None = None

    def __repr__(self) -> str:
        what = "persons of the fit" if self.fitted is None else "adapted persons"
        return (
            f"<{len(self.labels)} {what}, {self.problem.personal.q} personal parameters each; "
            "see effects(), effect_errors(), predict(new)>"
        )

    def effects(self) -> pd.DataFrame:
        """Effects on the personal parameters, one row per person.

        Of a linear network those on its coefficients, on the user's scale, by the names in the summary; of others on
        single weights, inputs and response being standardised. With several groupings one row per level of each, by
        grouping and label, and NaN where a grouping has none.
        """
        loadings = [self.trained.loading, *(g.loading for g in self.trained.further)]
        parts = [z @ L.T @ mine.onto.T for z, L, mine in zip(self.z_of_all, loadings, self.reported, strict=True)]
        if self.levels:
            return self._by_grouping(parts)
        index = pd.Index(self.labels, name=self.design.names.group)
        return pd.DataFrame(parts[0], index=index, columns=self.reported[0].names)

    def effect_errors(self, covered: Uncertainty | None = None) -> pd.DataFrame:
        """Posterior standard deviations of the effects."""
        if self.levels:
            onto = [mine.onto for mine in self.reported]
            return self._by_grouping(level_errors(self.problem, self.trained, self.z_of_all, onto))
        C = to_array(self.uncertainty(covered).effects)
        loading = self.reported[0].onto @ self.directions
        variance = np.einsum("qr,nrs,qs->nq", loading, C, loading)
        return self.effects() * 0.0 + np.sqrt(np.maximum(variance, 0.0))

    def _by_grouping(self, values: Sequence[Array]) -> pd.DataFrame:
        """Values of the levels of all groupings, (N_g, q_g) each, as one frame."""
        names = [str(self.design.names.group), *(known.term.name for known in self.levels)]
        labels = [self.labels, *(known.labels for known in self.levels)]
        frames = [
            pd.DataFrame(mine, index=pd.Index(of, dtype=object), columns=shown.names)
            for mine, of, shown in zip(values, labels, self.reported, strict=True)
        ]
        return pd.concat(frames, keys=names, names=["grouping", "level"])

    @property
    def reported(self) -> tuple["Reported", ...]:
        """How the effects of each grouping are reported."""
        levels = tuple(str(level) for level in self.design.response_levels or ())
        parts = parts_of(self.problem)
        return tuple(reported_effects(part, self.scaling, self.design.names.expert, levels) for part in parts)

    @property
    def z_of_all(self) -> tuple[Array, ...]:
        """Latent effects of all groupings, that by persons first."""
        return (self.z, *self.others)

    @property
    def directions(self) -> Array:
        """Loading with columns of length one, in which posterior covariances are kept, shape (q, r)."""
        norms = np.linalg.norm(self.trained.loading, axis=0)
        return self.trained.loading / np.where(norms > 0, norms, 1.0)

    def uncertainty(self, covered: Uncertainty | None = None) -> Uncertainty:
        """Covariances of these persons' effects and of the population parameters."""
        if covered is not None:
            return covered
        if self.levels:
            return joint_uncertainty(self.problem, self.trained, self.z_of_all)
        own = uncertainty(self.problem, self.trained, self.z, population=self.population is None)
        return own if self.population is None else replace(own, population=self.population)

    def predict(
        self,
        new: Any,
        kind: Kind = "all",
        *,
        history: Any = None,
        interval: IntervalOf | None = None,
        alpha: float = 0.05,
        scale: Scale | None = None,
        rng: Any = 0,
    ) -> pd.DataFrame:
        """Predictions; see `NMEResults.predict`. Adapted persons have the rows that they were adapted to as history."""
        wanted = checked_wanted(kind, interval, alpha, own_scale(self) if scale is None else scale)
        refuse_unknown(self, wanted)
        persons = self if history is None else adapt_persons(self, history)
        return predict_frame(persons, persons.uncertainty() if wanted.limits else None, new, wanted, rng)

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
        every = list(np.ndindex(spec.shape))
        places = [every[k] for k in problem.personal.places(spec)]
        names += [f"{spec.name}[{','.join(str(i + 1) for i in place)}]" for place in places]
    return names


@dataclass(frozen=True, slots=True)
class Reported:
    """How effects are reported.

    Attributes
    ----------
    names : list of str
    onto : ndarray, shape (R, q)
        From effects on the standardised parameters.
    """

    names: list[str]
    onto: Array


def reported_effects(problem: Problem, scaling: Scaling, names: tuple[str, ...], levels: tuple[str, ...]) -> Reported:
    """Effects on coefficients, of a linear network, or on single parameters."""
    if is_linear(problem):
        return Reported(random_names(problem, linear_names(names)), linear_map(problem, scaling))
    single = parameter_names(problem)
    if not is_regression(problem) or not problem.personal.q:
        return Reported(single, np.eye(len(single)))
    onto, chosen = random_map(problem, scaling), random_rows(problem, problem.network.n_in)
    terms = outcome_names(problem, names, levels)
    columns = problem.personal.columns("transitions")
    moves = np.eye(problem.personal.q)[columns] if columns is not None else onto[:0]
    cells = [f"transition({a},{b})" for a in levels for b in levels] if columns is not None else []
    return Reported([*(terms[k] for k in chosen), *cells], np.vstack([onto, moves]))


def persons_of(model: "NME", problem: Problem, trained: Trained) -> Persons:
    """The persons of a fit; rows held out for early stopping count for their effects."""
    everyone = replace(model.problem, cov=problem.cov, prior=problem.prior)
    z, others = trained.z, [mine.z for mine in trained.further]
    if problem.validation.n_rows and model.estimator == "laplace" and problem.n_effects:
        z, *others = estimated_effects(everyone, trained) if others else [effects_from_rows(everyone, trained)]
    return Persons(
        model.design,
        model.scaling,
        everyone,
        trained,
        model.design.labels,
        z,
        levels=model.levels,
        others=tuple(others),
    )


def match_labels(persons: Persons, design: Design, own: bool = True) -> IntArray:
    """Place of each unit of a new design among the persons; -1 for unknown ones, all of them if not `own`.

    Raises
    ------
    DesignError
        If the column of the persons is missing although it matters, or a label reads as that of a known person but is
        of another type, as text where the fit had numbers: neither may pass as a person never seen.
    """
    group, problem = persons.design.names.group, persons.problem
    if design.names.group is None:
        if group is not None and ((own and problem.personal.q) or problem.family == "crf"):
            raise DesignError(
                f"the column {group!r} of the persons is missing, so that nothing says whose rows these are; for a "
                f"person never seen give a label that the fit has not, as data.assign({group}=...)"
            )
        return np.full(design.n_units, -1, dtype=np.intp)
    if not own and problem.personal.q:
        return np.full(design.n_units, -1, dtype=np.intp)
    if not problem.personal.q:
        return places_of(design.labels, persons.labels)
    return known_places(design.labels, persons.labels, str(group))


def adapt_persons(persons: Persons, data: Any) -> Persons:
    """Persons with effects from `data`, population parameters held."""
    design = persons.design.for_new(data, response=True)
    check_moves(design, persons.problem.network)
    check_rows_ahead(persons, design, response=True)
    if design.names.group is None:
        raise ArgumentError(f"adapt needs to know whose rows these are; give the column {persons.design.names.group!r}")
    if persons.levels:
        return adapt_levels(persons, design)
    every = np.ones(design.n, dtype=bool)
    family = persons.problem.family
    rows = blocks_of(design, family, persons.scaling, every, np.arange(design.n_units), persons.problem.device)
    problem = replace(persons.problem, train=rows, n_persons=design.n_units)
    z = effects_from_rows(problem, persons.trained)
    covered = persons.population
    if covered is None:
        covered = uncertainty(persons.problem, persons.trained, persons.z).population
    return replace(
        persons,
        problem=problem,
        labels=design.labels,
        z=z,
        population=covered,
        fitted=persons.fitted or persons,
        history=design,
    )


def adapt_levels(persons: Persons, design: Design) -> Persons:
    """Persons and further levels with effects from the rows of a design and those of the fit's other persons.

    What cultures do is told by everyone's rows, so that these count on, but for those of persons who are in the design.
    """
    old = (persons.fitted or persons).design
    named = design.names.group
    others = known_places(old.frame[named].to_numpy(dtype=object), design.labels, str(named)) < 0
    rows = pd.concat([old.frame[others], design.frame[list(old.frame.columns)]], ignore_index=True)
    whole = old.for_new(rows, response=True)
    levels = levels_of(whole, checked=False)
    every, codes = np.ones(whole.n, dtype=bool), level_codes(levels, whole)
    blocks = blocks_of(
        whole, "gaussian", persons.scaling, every, np.arange(whole.n_units), persons.problem.device, codes
    )
    further = tuple(
        replace(grouping, n_levels=len(known.labels))
        for grouping, known in zip(persons.problem.further, levels, strict=True)
    )
    problem = replace(persons.problem, train=blocks, n_persons=whole.n_units, further=further)
    z, *theirs = estimated_effects(problem, persons.trained)
    return replace(
        persons,
        problem=problem,
        labels=whole.labels,
        z=z,
        others=tuple(theirs),
        levels=levels,
        fitted=persons.fitted or persons,
    )


def own_scale(persons: Persons) -> Scale:
    """The scale of predictions where none is asked for: categories without an order have no mean."""
    return "categories" if persons.problem.family in ("multiclass", "crf") else "response"


def refuse_unknown(persons: Persons, wanted: Wanted) -> None:
    """Refuse what a network does not have, with the reason.

    Raises
    ------
    ArgumentError
    """
    family, kind = persons.problem.family, wanted.kind
    if kind in ("experts", "probabilities"):
        raise ArgumentError(
            f"NME has no predict(kind={kind!r}): a network has no experts; use kind='mean' or kind='subject', and "
            "scale='categories' for the probabilities of categories"
        )
    if wanted.scale == "link":
        raise ArgumentError(
            "NME has no predict(scale='link'): outputs of a network are averaged over the effects of persons on the "
            "scale of the response; use scale='response'"
        )
    if wanted.scale == "categories" and family in NUMBERS:
        raise ArgumentError(
            f"scale='categories' is for a response of categories, got family={asked_family(family)!r}; use 'response'"
        )
    if wanted.scale == "response" and family in ("multiclass", "crf"):
        raise ArgumentError(
            f"categories without an order have no mean, got scale='response' with family={family!r}; use "
            "scale='categories' for the probability of each"
        )
    if wanted.limits and family == "crf":
        raise ArgumentError(
            f"NME has no predict(interval={wanted.interval!r}) for a CRF: limits of its state probabilities are not "
            "known; leave interval= out, transitions have limits"
        )


def check_rows_ahead(persons: Persons, design: Design, response: bool = False) -> None:
    """Refuse new rows without the offset that the fit had, with their `response` without weights, or impossible ones.

    Raises
    ------
    DesignError
    """
    needed = ("offset", "weights") if response else ("offset",)
    check_beside(design, {name: persons.design.recipe.aux.get(name) for name in needed}, needed)
    if "offset" in design.aux:
        check_offset(design, persons.problem.family)
    if response and persons.problem.family in COUNTS:
        check_counts(design, persons.problem.family, vary=False)


def limits_of_persons(persons: Persons, wanted: Wanted) -> bool:
    """Whether each person's own mean is wanted, not that of the population."""
    return wanted.kind == "subject" or (wanted.kind == "all" and persons.fitted is not None)


def predict_frame(persons: Persons, covered: Uncertainty | None, new: Any, wanted: Wanted, rng: Any) -> pd.DataFrame:
    """Predictions of the rows of a frame, in its order.

    Parameters
    ----------
    persons : Persons
    covered : Uncertainty or None
        None where no limits are wanted.
    new : DataFrame or mapping
    wanted : Wanted
    rng : int or Generator

    Raises
    ------
    ArgumentError
        If limits of the population's mean are wanted that need more parameters than have a covariance.
    """
    own = limits_of_persons(persons, wanted)
    if wanted.interval == "confidence" and not own and covered is not None and covered.population is None:
        raise ArgumentError(
            f"interval='confidence' of the population's mean needs the covariance of the network's parameters, which "
            f"is not computed for {persons.problem.network.n_parameters} of them; use interval='prediction', or "
            "kind='subject'"
        )
    try:
        # Covariates of the dispersion tell nothing of means.
        design = persons.design.for_new(new, without=() if wanted.noise else ("sigma",))
    except NothingLeftError as error:
        first = predict_frame(persons, covered, persons.design.frame.iloc[:1], wanted, rng)
        return nothing_predicted(new, [str(name) for name in first], error)
    check_rows_ahead(persons, design)
    if persons.problem.network.hidden or persons.problem.network.module is not None:
        warn_outside(persons.design, design, {"expert": np.ones(design.expert.shape[1], dtype=bool)})
    known, codes = match_labels(persons, design, own), level_codes(persons.levels, design, own=own)
    if own and persons.problem.personal.q:
        # Of a person never seen something is known in a culture of the fit.
        grouped = np.bincount(design.codes[(codes >= 0).any(axis=1)], minlength=known.size) > 0
        warn_strangers("the population", (known >= 0) | grouped, given=persons.fitted is not None)
    return in_user_order(predicted_columns(persons, covered, design, known, codes, wanted, rng), design, new)


def predicted_columns(
    persons: Persons,
    covered: Uncertainty | None,
    design: Design,
    known: IntArray,
    codes: IntArray,
    wanted: Wanted,
    rng: Any,
) -> dict[str, Array]:
    """Columns of predictions of the rows of a design, in its order.

    Parameters
    ----------
    known : ndarray of int, shape (N,)
        Place of each unit among the persons; -1 for unknown ones.
    codes : ndarray of int, shape (n, G)
        Level of each row in the further groupings, see `level_codes`.
    """
    is_known = (known >= 0)[design.codes]
    own = limits_of_persons(persons, wanted)
    limits = Limits(wanted.alpha, wanted.noise, not (wanted.noise or own))
    size = n_means(persons.problem.family, persons.problem.network.n_out, len(persons.design.response_levels or ()))
    means, variances = np.zeros((2, design.n, size))
    low, high = np.full((2, design.n), np.nan)
    whole = Prediction(means, variances, low, high, np.zeros(design.n))
    if persons.levels:
        every = np.ones(design.n, dtype=bool)
        blocks = blocks_of(design, "gaussian", persons.scaling, every, known, persons.problem.device, codes)
        return labelled(persons, combined_predictions(persons, covered, blocks, limits), wanted)
    for rows, found in predictions(persons, covered, design, known, is_known, limits, rng, own):
        fill(whole, rows, found)
    return labelled(persons, whole, wanted)


def fill(whole: Prediction, rows: NDArray[np.bool_], found: Prediction) -> None:
    """Put the predictions of some rows in their place."""
    whole.mean[rows], whole.variance[rows] = found.mean, found.variance
    if found.lower is not None and whole.lower is not None and whole.upper is not None:
        whole.lower[rows], whole.upper[rows] = found.lower, found.upper
    if found.noise is not None and whole.noise is not None:
        whole.noise[rows] = found.noise


def labelled(persons: Persons, found: Prediction, wanted: Wanted) -> dict[str, Array]:
    """Predictions on the user's scale as columns."""
    scaling, family = persons.scaling, persons.problem.family
    if family in NUMBERS:
        y_mean = scaling.y_mean if family in OF_NORMAL else 0.0
        mean = y_mean + scaling.y_sd * found.mean[:, 0]
        if not wanted.limits:
            return mean_columns(mean)
        residual = persons.trained.sigma2 if family == "gaussian" else found.noise
        variance = found.variance[:, 0] + (residual if wanted.noise and residual is not None else 0.0)
        if family in OF_NORMAL:
            ends = normal_limits(found.mean[:, 0], variance, wanted.alpha)
        else:
            safe = np.maximum(found.mean[:, 0], 1e-300)
            first, last = normal_limits(np.log(safe), variance / safe**2, wanted.alpha)
            ends = np.exp(first), np.exp(last)
        low, high = (
            end if by is None else np.where(np.isnan(by), end, by)
            for end, by in zip(ends, (found.lower, found.upper), strict=True)
        )
        back = (y_mean + scaling.y_sd * end for end in (low, high))
        return mean_columns(Interval(mean, scaling.y_sd * np.sqrt(np.maximum(variance, 0.0)), *back))
    names = category_names(persons)
    if family == "ordinal" and wanted.scale == "response":
        return mean_columns(scored(persons, found, wanted))
    shown_at = slice(-1, None) if wanted.scale == "response" else slice(len(names))
    names = ["mean"] if wanted.scale == "response" else names
    p, variance = found.mean[:, shown_at], found.variance[:, shown_at]
    if not wanted.limits:
        return named_columns(names, p)
    if wanted.noise:  # of a response that is 0 or 1: its quantiles
        quantiles = (np.where(1.0 - p >= level, 0.0, 1.0) for level in (wanted.alpha / 2.0, 1.0 - wanted.alpha / 2.0))
        return named_columns(names, Interval(p, np.sqrt(p * (1.0 - p)), *quantiles))
    safe = np.clip(p, 1e-12, 1.0 - 1e-12)
    ends = normal_limits(np.log(safe / (1.0 - safe)), variance / (safe * (1.0 - safe)) ** 2, wanted.alpha)
    low, high = (1.0 / (1.0 + np.exp(-end)) for end in ends)
    return named_columns(names, Interval(p, np.sqrt(variance), low, high))


def scored(persons: Persons, found: Prediction, wanted: Wanted) -> Array | Interval:
    """Means of what ordered categories count as; limits of the mean on the logit of its share of the range."""
    scores = np.array(persons.problem.network.scores)
    p, mean, variance = found.mean[:, :-1], found.mean[:, -1], found.variance[:, -1]
    if not wanted.limits:
        return mean
    if wanted.noise:
        below = p.cumsum(axis=1)[:, :-1]
        places = [(below < level).sum(axis=1) for level in (wanted.alpha / 2.0, 1.0 - wanted.alpha / 2.0)]
        return Interval(mean, np.sqrt(np.maximum(p @ scores**2 - mean**2, 0.0)), scores[places[0]], scores[places[1]])
    low, width = scores[0], scores[-1] - scores[0]
    share = np.clip((mean - low) / width, 1e-12, 1.0 - 1e-12)
    ends = normal_limits(np.log(share / (1.0 - share)), variance / (width * share * (1.0 - share)) ** 2, wanted.alpha)
    return Interval(mean, np.sqrt(variance), *(low + width / (1.0 + np.exp(-end)) for end in ends))


def category_names(persons: Persons) -> list[str]:
    """Columns of the probabilities of the categories of the response."""
    return [f"P({level})" for level in persons.design.response_levels or ()]


def user_rows(values: Any, design: Design, data: Any) -> Any:
    """A frame or series in the order of the design as the user's rows, missing where a row was left out."""
    seen = view(data)
    return values.set_axis(design.position).reindex(range(seen.n_rows)).set_axis(seen.labels)


def state_frame(persons: Persons, data: Any, *, states: bool) -> Any:
    """Decoded states (Series) or state probabilities (DataFrame) of rows; unknown persons at effects of zero."""
    if persons.problem.family != "crf":
        raise ArgumentError(f"decoding belongs to a CRF; this model's family is {persons.problem.family!r}")
    design = persons.design.for_new(data)
    known = match_labels(persons, design)
    if persons.fitted is not None and persons.problem.personal.q:
        warn_strangers("the population", known >= 0, given=True)
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
