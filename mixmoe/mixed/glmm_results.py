"""What a fitted mixture of generalised linear mixed models offers: everything on the scale of its response."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pandas as pd

from mixmoe._typing import Array
from mixmoe.arguments import checked_choice
from mixmoe.design.design import Design, offset_of
from mixmoe.errors import ApproximationWarning, warn
from mixmoe.families import Distribution
from mixmoe.inference.uncertainty import checked_alpha
from mixmoe.mixed.likelihood.modes import Response
from mixmoe.mixed.options import standardised_name, trials_of
from mixmoe.mixed.parameters import user_to_working
from mixmoe.mixed.prediction.courses import (
    CATEGORIES,
    build_grid,
    category_curves,
    category_intervals,
    checked_column,
    interval_curves,
    trajectory_axis,
)
from mixmoe.mixed.prediction.linear_predictor import MOST_EXACT, Seen, remember
from mixmoe.mixed.prediction.response_scale import (
    MEANS,
    Covariates,
    LinkEstimate,
    conditional_variance,
    delta_errors,
    draw,
    expert_response_means,
    given_past,
    gradient_of,
    mean_deviance,
    mean_intervals,
    one_step_ahead,
    place,
    subject_expert_means,
    subject_predictors,
)
from mixmoe.mixed.prediction.trajectories import (
    Estimate,
    History,
    past_of_subjects,
    places,
    prior_history,
)
from mixmoe.mixed.results import MEMoEResults, check_curve_options
from mixmoe.mixed.thresholds import OrdinalResponse
from mixmoe.mixture.estimate import Block
from mixmoe.numerics.linalg import apply_inverse
from mixmoe.output.predictions import (
    Interval,
    Wanted,
    by_expert,
    joined,
)
from mixmoe.output.records import Cell, Curve
from mixmoe.responses.distribution import Outcome


class GLMMResults(MEMoEResults):
    """A fitted mixture of generalised linear mixed models.

    Notes
    -----
    Predictions, fitted values and figures are on the scale of the response (for successes out of trials their expected
    number): an expert's trajectory is its population mean, averaged over the random effects. With ``scale="link"``
    `predict` gives linear predictors, those of experts and population at random effects of zero.

    The levels of an ordinal response count as themselves if they are numbers, else as 1, 2 ...: fitted values,
    residuals and draws of `simulate` are on this scale, and ``scale="categories"`` gives the probability of each level.
    Its deviance residuals are measured against certainty of the level seen, so that their variance is not one.
    """

    _resid_kinds: tuple[str, ...] = ("subject", "mean", "pearson", "deviance", "quantile")
    _ratios: tuple[Block, ...] = ("expert", "common", "gate")

    def resid(self, kind: str | None = None, *, given: str = "history", rng: Any = None) -> pd.Series:
        """Residuals, one per row used, in the order of the data.

        Parameters
        ----------
        kind : {"subject", "mean", "pearson", "deviance", "quantile"}, optional
            Response minus `fitted` of the subject or the population; the former over its standard deviation; signed
            root of the deviance at the subject's fitted value; place in the fitted distribution as a normal value.
        given, rng
            For ``"quantile"``, see `MEMoEResults.resid`.

        Returns
        -------
        Series
        """
        if kind not in ("pearson", "deviance"):
            return super().resid(kind, given=given, rng=rng)
        d, e = self.model.design, self._link()
        mean = np.empty(d.n)
        mean[np.argsort(d.position, kind="stable")] = self.fitted("subject").to_numpy()
        weights, prior = self.em.responsibilities[d.codes].T, np.asarray(d.aux.get("weights", np.ones(d.n)))
        away = np.asarray(d.response) - mean
        if kind == "pearson":
            values = away * np.sqrt(prior / conditional_variance(e, weights, mean, trials_of(d)))
        else:
            values = np.sign(away) * np.sqrt(np.maximum(prior * mean_deviance(e, weights, mean, self._outcome()), 0.0))
        return pd.Series(d.in_order(values), index=self._row_index, name="resid")

    def curves(self, kind: str = "trajectories", **options: Any) -> tuple[Curve, ...]:
        """Curves of a figure; see `MEMoEResults.curves`. Population means at one trial and offset zero.

        For an ordinal response also ``"categories"``: the probability of each category, one panel per expert, which is
        the figure to show; in ``"trajectories"`` observed courses, which share few grades, lie a little above or below
        them, so that none hides another.
        """
        checked_choice(kind, "kind", self._curve_kinds)
        if kind == "gate":
            return super().curves(kind, **options)
        check_curve_options(options)
        design, response = self.model.design, self.model.response.response
        x, alpha = options.get("x"), checked_alpha(options.get("alpha", 0.05))
        x = trajectory_axis(design) if x is None else checked_column(design, x, "expert")
        grid = build_grid(design, x, options.get("at"))
        at = covariates_of(design.for_new(grid.rows))
        if kind == "categories":
            labels = cast(OrdinalResponse, response).labels
            return category_curves(category_intervals(self._link(), at, alpha), grid, labels)
        values = mean_intervals(expert_response_means, self._link(), at, alpha)
        curves = interval_curves("trajectories", values, grid, standardised_name(design, self.model.settings))
        if not isinstance(response, OrdinalResponse):
            return curves
        levels = tuple(zip(response.scores.tolist(), response.labels, strict=True))
        return tuple(replace(curve, levels=levels) for curve in curves)

    @property
    def _curve_kinds(self) -> tuple[str, ...]:
        ordinal = self.model.response.thresholds is not None
        return ("trajectories", "gate", "categories") if ordinal else ("trajectories", "gate")

    @property
    def _more_facts(self) -> tuple[tuple[str, Cell], ...]:
        """Family and how the random effects were integrated out."""
        response, design = self.model.response, self.model.design
        how = "Laplace" if response.n_quad == 1 else f"adaptive quadrature, {response.n_quad} points"
        return (("Family", response.name), ("Integral", how if design.names.random else None))

    def _columns(self, design: Design, known: Design | None, wanted: Wanted) -> dict[str, Array]:
        if wanted.scale == "link":
            return super()._columns(design, known, wanted)
        e, at, kind = self._link(), covariates_of(design), wanted.kind
        quantity = CATEGORIES if wanted.scale == "categories" else MEANS
        past = None if known is None else past_of_subjects(self.model, self._known(), known, design)
        columns: dict[str, Array] = {}
        if kind in ("all", "probabilities"):
            columns |= by_expert("probability", self._probabilities(design, past, wanted), design.codes)
        if kind in ("all", "experts"):
            columns |= quantity.experts(e, at, wanted)
        if past is None and wanted.noise:  # a response of the population is that of a subject of whom nothing is known
            past = prior_history(self._known(), design.gate)
        if past is not None and kind in ("all", "mean", "subject"):
            seen = self._seen(design, known, past)
            parts = [quantity.subjects(e, at.take(rows), seen.take(rows), wanted) for rows in seen.runs()]
            columns |= {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        elif kind in ("all", "mean"):
            columns |= quantity.population(e, at, wanted)
        return columns

    def _subjects(self, design: Design, known: Design | None, past: History, wanted: Wanted) -> Interval | Array:
        """Linear predictors of subjects, without offset."""
        e, seen = self._link(), self._seen(design, known, past)
        at = replace(covariates_of(design), offset=np.zeros(design.n))
        parts = [subject_predictors(e, at.take(rows), seen.take(rows), wanted) for rows in seen.runs()]
        return joined(parts)

    def _seen(self, design: Design, known: Design | None, past: History) -> Seen:
        """Rows of a design and what is known of their subjects."""
        model = self.model
        working = user_to_working(model.coordinates, model.user(self._vector()))
        where, memory = np.full(design.n_units, -1), None
        if known is not None and ((where := places(known, design)) >= 0).any():
            self._say_how_exact()
            memory = remember(model.problem_of(known).experts, working)
        Z = apply_inverse(design.random, model.coordinates.random)
        return Seen(memory, working.factor[0], Z, where[design.codes], past.probabilities[design.codes])

    def _say_how_exact(self) -> None:
        """Warn where the integral over the random effects given a history is an approximation."""
        q = self.model.structure.n_random
        if q > MOST_EXACT:
            warn(
                f"what a history says of a subject with {q} random effects is an approximation within a few per cent; "
                f"leave random effects out, as with at most {MOST_EXACT} of them it is exact to 1.5 %",
                ApproximationWarning,
            )

    def _distribution(self, given: str) -> Distribution:
        d, e = self.model.design, self._link()
        at, out = covariates_of(d), self._outcome()
        prior = prior_history(self._known(), d.gate)
        if given == "history":
            self._say_how_exact()
            working = user_to_working(self.model.coordinates, e.params)
            layers = one_step_ahead(self.model.problem, working, prior.probabilities)
        else:
            layers = iter([(np.arange(d.n), self._seen(d, None, prior))])
        found = np.empty((4, d.n))
        for rows, seen in layers:
            for run in seen.runs():
                here, part = rows[run], seen.take(run)
                placed = place(e, given_past(e, at.take(here), part), part.probabilities.T, out.take(here))
                found[:, here] = placed.below, placed.at, placed.beyond, placed.above
        return Distribution(*found)

    def _expert_means(self, kind: str) -> Array:
        d, e = self.model.design, self._link()
        at = covariates_of(d)
        if kind == "mean":
            return expert_response_means(e, at)
        means, seen = np.empty((len(e.extra), d.n)), self._seen(d, d, prior_history(self._known(), d.gate))
        for rows in seen.runs():
            means[:, rows] = subject_expert_means(e, at.take(rows), seen.take(rows))
        return means.T

    def _mean_errors(self, weights: Array) -> Array:
        def means(e: LinkEstimate, at: Covariates) -> Array:
            return np.einsum("bnk,nk->bk", weights, expert_response_means(e, at))

        return delta_errors(gradient_of(means, self._link(), covariates_of(self.model.design)), self._link().cov)

    def _draw(self, rng: np.random.Generator) -> Array:
        d = self.model.design
        return draw(self._link(), covariates_of(d), d.gate, d.starts, rng)

    def _outcome(self) -> Outcome:
        return self.model.problem.experts.rows.outcome

    def _known(self) -> Estimate:
        """Estimates with the covariance of coefficients: a first threshold is minus the intercept."""
        known, thresholds = super()._known(), self.model.structure.thresholds
        if thresholds is None:
            return known
        sign = np.ones(len(known.cov))
        # The intercept of the link is minus the first threshold, P(y <= j) = logit^-1(cut_j - eta).
        sign[known.where.beta[:, thresholds.column]] = -1.0
        shift = None if known.shift is None else sign * known.shift
        return replace(known, cov=known.cov * np.outer(sign, sign), shift=shift)

    def _link(self) -> LinkEstimate:
        model, cov = self.model, self.cov.of_bounded.copy()
        held = [i for block in ("random", "threshold", "zeros") for i in model.layout.where(block)]
        known = [i for i in held if np.isnan(cov[i, i])]
        # Variances and shares of zeros on their boundary and infinite thresholds are taken as known.
        cov[known] = cov[:, known] = 0.0
        vector = self._vector()
        response = cast(Response, model.response.response)
        moments, shift = self.cov.moments, self.cov.shift
        return LinkEstimate(response, model.structure, vector, cov, model.user(vector), moments, shift)

    def _vector(self) -> Array:
        """Estimates, correlations with a random effect that does not vary as zero."""
        return np.where(np.isnan(self.em.params), 0.0, self.em.params)


def covariates_of(design: Design) -> Covariates:
    """Rows of a design to predict."""
    return Covariates(design.expert, design.random, design.gate[design.codes], offset_of(design), trials_of(design))
