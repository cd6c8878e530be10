"""What a fitted MEMoE offers beyond the common base."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from mixmoe._typing import Array
from mixmoe.arguments import checked_choice
from mixmoe.check.diagnosis import FITTED, FittedKind
from mixmoe.check.residuals import continuous
from mixmoe.check.term_tests import Owners, owners_of
from mixmoe.design.complete_rows import NothingLeftError
from mixmoe.design.design import Design, offset_of, weights_of
from mixmoe.design.frame import view
from mixmoe.errors import ArgumentError, DesignError
from mixmoe.families import Distribution, Effects, FirstOrder, GatePoint, Likelihood
from mixmoe.inference.uncertainty import checked_alpha
from mixmoe.mixed.estimation import first_order, likelihood_at, relabelled
from mixmoe.mixed.options import ResponseModel, check_weights_ahead, standardised, standardised_name
from mixmoe.mixed.parameters import permute_reported, permute_reported_jacobian
from mixmoe.mixed.prediction.courses import (
    gate_curves,
    trajectory_axis,
    trajectory_curves,
    trajectory_data,
)
from mixmoe.mixed.prediction.dynamic import (
    errors_ahead,
    given_covariates,
    given_history,
    normalized_residuals,
    past_of,
    subject_law,
)
from mixmoe.mixed.prediction.trajectories import (
    Estimate,
    History,
    check_subjects,
    disturbances,
    effects_of,
    expert_intervals,
    expert_means,
    gate_intervals,
    gate_probabilities,
    named_by_row,
    past_of_subjects,
    places,
    population_intervals,
    population_means,
    prior_history,
    proportion_intervals,
    subject_mixture,
    weighted_mean_errors,
)
from mixmoe.mixture_results import MoEResults
from mixmoe.output.predictions import (
    Interval,
    IntervalOf,
    Kind,
    MixtureLaw,
    Scale,
    Wanted,
    by_expert,
    check_baseline,
    check_own_rows,
    checked_wanted,
    in_user_order,
    mean_columns,
    mixture_intervals,
    random_effects_frame,
    refuse_posterior_limits,
    with_offset,
)
from mixmoe.output.records import Cell, Curve, Marks, Observed, Table
from mixmoe.output.summary import nothing_predicted, proportions_table

if TYPE_CHECKING:
    from mixmoe.mixed.model import MEMoE


class MEMoEResults(MoEResults):
    """A fitted mixed-effects mixture of experts.

    Parameters
    ----------
    model : MEMoE
    fit : EMFit
    cov : ParamCov
    """

    model: "MEMoE"

    def tables(self, alpha: float = 0.05) -> tuple[Table, ...]:
        """The tables of the summary, with the expert proportions before the gate."""
        tables = super().tables(alpha)
        if self.model.n_experts == 1:
            return tables
        at = next(i for i, table in enumerate(tables) if table.key == "gate")
        return (*tables[:at], proportions_table(self.proportions(alpha), alpha), *tables[at:])

    def proportions(self, alpha: float = 0.05) -> pd.DataFrame:
        """Mean probability of each expert over the subjects; see `MoEResults.proportions`."""
        share = proportion_intervals(self._known(), self.model.design.gate, checked_alpha(alpha))
        index = [f"expert{k + 1}" for k in range(self.model.n_experts)]
        columns = {"estimate": share.estimate, "std_error": share.std_error}
        return pd.DataFrame({**columns, "conf_low": share.lower, "conf_high": share.upper}, index=index)

    def predict(
        self,
        new: Any = None,
        kind: Kind = "all",
        *,
        history: Any = None,
        interval: IntervalOf | None = None,
        alpha: float = 0.05,
        scale: Scale = "response",
    ) -> pd.DataFrame:
        """Expert probabilities, trajectories and means.

        Parameters
        ----------
        new : DataFrame or mapping, optional
            Rows to predict; the response is not needed and never used. By default the data of the fit.
        kind : {"all", "mean", "experts", "probabilities", "subject"}
            ``"mean"``: population mean given the covariates; ``"experts"``: trajectory of each expert;
            ``"probabilities"``: of the experts, by the gate, or with `history` posterior ones; ``"subject"``: course of
            each subject given her history (see Notes); ``"all"``: probabilities, expert trajectories, and the subject's
            course if there is a `history`, else the population mean.
        history : DataFrame or mapping, optional
            Past rows, with response, of the subjects in `new` (by the subject column): dynamic prediction. For
            ``kind="subject"`` without it, subjects of the fit keep the data of the fit as history. A subject
            without history is predicted from the gate alone. In a model without subjects the rows of `new` themselves,
            with their responses. It plays no part in ``"mean"`` and ``"experts"``.
        interval : {None, "confidence", "prediction"}
            Limits, in columns ``_low`` and ``_high``, with standard errors in ``_se``: none, those of what is
            estimated, or of means those of a new response, of a new subject or of this one.
        alpha : float
            One minus the level of the limits.
        scale : {"response", "link", "categories"}
            Of means and trajectories: expected responses, averaged over the random effects, or linear predictors, those
            of experts and population at random effects of zero. The same for Gaussian responses. An ordinal response
            counts as its number, or as 1, 2 ... if its levels are no numbers; its linear predictor is the log odds of a
            response above the lowest level; ``"categories"`` gives the probability of each level, in columns
            ``P(level)`` and ``expert1.P(level)``.

        Returns
        -------
        DataFrame
            One row per row of `new`, in its order; NaN where a covariate is missing. Covariates that a kind does not
            use may be left out: those of the gate for ``"experts"``, those of the experts for ``"probabilities"``.

        Raises
        ------
        DesignError
            If a column is missing or a category is new, baseline covariates of a subject differ between `history`
            and `new`, or a subject has a name of another type than in what is known of her (text for numbers).

        Warns
        -----
        ApproximationWarning
            If there are more than three random effects and responses are not Gaussian.
        MixmoeWarning
            If no subject of `history` is in `new`, or, for ``kind="subject"`` without one, if some are not in the fit.

        Notes
        -----
        With ``offset=`` rows need that column, and means, trajectories and limits hold it. With ``weights=`` the error
        of a new Gaussian response has the variance ``sigma^2 / weight``, so that ``interval="prediction"`` needs the
        weights of the rows, and so does the course of a subject with serially correlated errors.

        Confidence limits of probabilities, experts and population mean are delta-method limits of the estimates; those
        of subjects, and limits of responses, carry membership, random effects and (of responses) residual error, with
        the estimates taken as given. Posterior probabilities have none.

        The course of a subject is what her history says about her: experts and random effects, and with serially
        correlated `errors` the predicted serial part at each time, so that it is continuous in time and the forecast of
        her next response. Of ``errors="ar1"`` and ``"car1"`` all of the error is serial: at an observed time the course
        is the observed response, without width, as in kriging without a nugget; the course ``x'beta + z'b`` without the
        serial part is `fitted` at the rows of the data. With ``errors="bm"`` the motion belongs to the course, the
        measurement error does not. Where ``errors="ar1"`` counts visits without ``time=``, rows of `new` are the visits
        after those of the history.

        If responses are not Gaussian, a history leaves random effects whose distribution is skewed. What is said of
        a subject (``mean_se``: standard deviation of her expected response) is then an integral over that density,
        however many points `n_quad` the fit had: within 1 % for one and two random effects, 1.5 % for three; with
        four and more it is an approximation of a few per cent, and a warning says so.
        """
        wanted = checked_wanted(kind, interval, alpha, scale)
        _check_scale(self.model.response, wanted)
        known = self._history(history, use_fit=kind == "subject")
        if history is not None:
            refuse_posterior_limits(wanted)
        if kind in ("experts", "mean"):
            known = None  # checked like any other, but it plays no part
        try:
            unused = sections_unused(wanted, known is not None, self.model.response.gaussian)
            design = self.model.design if new is None else self.model.new_design(new, without=unused)
        except NothingLeftError as error:
            first = self.model.new_design(self.model.design.frame.iloc[:1])  # whose prediction has all columns
            return nothing_predicted(new, list(self._columns(first, known, wanted)), error)
        self._check_weights(design, kind in ("all", "subject") and known is not None, wanted.noise)
        if history is not None and self.model.design.names.group is None:
            check_own_rows(history, design, new)
            known, rows = None if known is None else named_by_row(known), named_by_row(design)
        else:
            rows = design
        known = self._met(known, rows)
        if known is not None:
            check_subjects(known, rows, given=history is not None)
            check_baseline(known, rows, places(known, rows))
        return in_user_order(self._columns(rows, known, wanted), design, new)

    def _met(self, known: Design | None, rows: Design) -> Design | None:
        """Of what is known that which tells something of the subjects of these rows."""
        return known

    def _check_weights(self, design: Design, course: bool, noise: bool) -> None:
        """Refuse rows without the weights on which the errors, or the course with its serial part, depend."""
        setup, column = self.model.errors, self.model.settings["weights"]
        if column is None or not self.model.response.gaussian or not (noise or (course and setup is not None)):
            return
        serial = setup is not None and setup.options.kind in ("ar1", "car1")
        check_weights_ahead(design, column, required=noise or serial)

    def _history(self, history: Any, use_fit: bool) -> Design | None:
        """The rows from which subjects are known; None where their history plays no part."""
        if history is None:
            return self.model.design if use_fit else None
        if not view(history).n_rows:
            raise ArgumentError("history has no rows; leave it out to predict new subjects by the gate")
        try:
            known = self.model.new_design(history, response=True)
        except NothingLeftError as error:
            raise ArgumentError(
                f"no row of history= is complete ({error.dropped}), so that it tells nothing of its subjects; fill it "
                "in, or leave history= out to predict them by the gate"
            ) from error
        except DesignError as error:
            raise type(error)(f"history=, whose rows need the response too: {error}") from error
        group = self.model.design.names.group
        if group is not None and known.names.group is None:
            raise ArgumentError(
                f"history needs the column {group!r} that names the subjects; without it its rows cannot be assigned"
            )
        return known

    def _columns(self, design: Design, known: Design | None, wanted: Wanted) -> dict[str, Array]:
        e, X, codes = self._known(), design.expert, design.codes
        past = None if known is None else past_of_subjects(self.model, e, known, design)
        columns: dict[str, Array] = {}
        if wanted.kind in ("all", "probabilities"):
            columns |= by_expert("probability", self._probabilities(design, past, wanted), codes)
        if wanted.kind in ("all", "experts"):
            experts = expert_intervals(e, X, wanted.alpha) if wanted.confidence else expert_means(e, X)
            columns |= by_expert("expert", experts)
        if wanted.kind in ("all", "mean", "subject"):
            columns |= mean_columns(self._means(design, known, past, wanted))
        return with_offset(columns, offset_of(design))

    def _probabilities(self, design: Design, past: History | None, wanted: Wanted) -> Interval | Array:
        """Probabilities of the experts, shape (N, K): posterior ones without limits where there is a past."""
        if past is not None:
            return past.probabilities
        e = self._known()
        return gate_intervals(e, design.gate, wanted.alpha) if wanted.confidence else gate_probabilities(e, design.gate)

    def _means(self, design: Design, known: Design | None, past: History | None, wanted: Wanted) -> Interval | Array:
        """Means of subjects given their past, or of the population, without offset, shape (n,)."""
        e, X, W = self._known(), design.expert, design.gate[design.codes]
        if past is None and wanted.noise:  # a response of the population is that of a subject of whom nothing is known
            past = prior_history(e, design.gate)
        if past is not None:
            return self._subjects(design, known, past, wanted)
        return population_intervals(e, X, W, wanted.alpha) if wanted.confidence else population_means(e, X, W)

    def _subjects(self, design: Design, known: Design | None, past: History, wanted: Wanted) -> Interval | Array:
        """Course of each subject, without offset, shape (n,); as strangers if nobody is known."""
        law = self._subject_law(design, known, past, wanted.noise)
        return mixture_intervals(law, wanted.alpha) if wanted.limits else law.mean

    def _subject_law(self, design: Design, known: Design | None, past: History, noise: bool) -> MixtureLaw:
        e, setup = self._known(), self.model.errors
        if setup is None:
            inverse = 1 / weights_of(design) if noise else None
            return subject_mixture(e, design.expert, design.random, past, design.codes, inverse)
        seen = self.model.design if known is None else known
        where = np.full(design.n_units, -1) if known is None else places(known, design)
        rows = past_of(seen, e.params, setup)
        errors = errors_ahead(design, rows, where, e.params, setup, own=known is design)
        return subject_law(e, design, errors, rows, where, past.probabilities, noise)

    def _term_owners(self) -> Owners:
        owners = owners_of(self.model.design)
        return {"expert": owners["expert"], "common": owners["expert"], "gate": owners["gate"]}

    @property
    def cov_re(self) -> pd.DataFrame:
        """Covariance matrices D_k of the random effects; ``cov_re.loc["expert1"]`` is that of the first expert.

        Rows by expert and random effect, one column per random effect. Of t experts the scale matrix.
        """
        factor, names = self._known().params.factor[0], self.model.design.names.random
        D = factor @ np.swapaxes(factor, 1, 2)
        experts = [f"expert{k + 1}" for k in range(len(D))]
        index = pd.MultiIndex.from_product([experts, names], names=["expert", "effect"])
        return pd.DataFrame(D.reshape(len(index), len(names)), index=index, columns=list(names))

    @property
    def random_effects(self) -> pd.DataFrame:
        """Posterior means and standard deviations of the random effects, one row per subject.

        The first level of the columns is ``"mixed"`` (averaged over experts by their responsibilities) and
        ``"expert1"`` ... (given the expert); the second the random effect, and its standard error as ``..._se``.
        """
        past = past_of_subjects(self.model, self._known(), self.model.design, self.model.design)
        names, index = self.model.design.names.random, self.responsibilities.index
        return random_effects_frame(past.probabilities, past.means, past.covariances, names, index)

    def fitted(self, kind: FittedKind = "subject") -> pd.Series:
        """Fitted values, one per row used, in the order of the data.

        Parameters
        ----------
        kind : {"subject", "mean"}
            Mean of the subject given her data (posterior over experts and random effects), or population mean given the
            covariates.

        Returns
        -------
        Series

        Notes
        -----
        Those of the subject leave out the serial part of ``errors="ar1"`` and ``"car1"`` (nlme's fitted values do
        so), which together with them would be the response itself; `predict` has it. They hold the Brownian motion of
        ``errors="bm"``, but not its measurement error. Residuals of the subject are the response minus these.
        """
        checked_choice(kind, "kind", FITTED)
        setup, d = self.model.errors, self.model.design
        if kind == "subject" and setup is not None and setup.options.kind in ("ar1", "car1"):
            values = (self.em.responsibilities[d.codes] * self._expert_means("subject")).sum(axis=1)
            return pd.Series(d.in_order(values), index=self._row_index, name="fitted")
        return self.predict(kind=kind)["mean"].rename("fitted")

    def loglik_of(self, data: Any) -> float:
        """Log-likelihood of other data, with their response, under the estimates; the subjects are taken as new."""
        return self.model.loglike_of(self.em.params, data)

    def _in_order(self, places: Sequence[int]) -> Self:
        index, s = list(places), self.model.structure
        params = permute_reported(s, self.em.params, index)
        fit = replace(self.em, params=params, responsibilities=self.em.responsibilities[:, index])
        cov, model = self.cov.turned(permute_reported_jacobian(s, self.em.params, index)), self.model.bound(fit)
        if self.cov.draws is not None:
            cov = replace(cov, draws=relabelled(self.cov.draws, model.solution(fit), index, model.clusters))
        return type(self)(model, fit, cov)

    def curves(self, kind: str = "trajectories", **options: Any) -> tuple[Curve, ...]:
        """Curves of a figure.

        Parameters
        ----------
        kind : {"trajectories", "gate"}
            Trajectories are drawn at an offset of zero, and so is what was observed.
        **options
            ``x=``: column on the horizontal axis; ``at=``: values at which other columns are held, by default medians
            and most frequent categories; ``alpha=``.

        Returns
        -------
        tuple of Curve
        """
        checked_choice(kind, "kind", self._curve_kinds)
        check_curve_options(options)
        design = self.model.design
        if kind == "gate":
            return gate_curves(design, self._known(), **options)
        return trajectory_curves(design, self._known(), standardised_name(design, self.model.settings), **options)

    def _observed(self, kind: str, **options: Any) -> Observed | tuple[Marks, ...] | None:
        if kind != "trajectories":
            return None
        tau, alpha = self.em.responsibilities, options.get("alpha", 0.05)
        shown = standardised(self.model.design, self.model.response)  # in the order of the design
        return trajectory_data(self.model.design, shown, tau, options.get("x"), alpha)

    _resid_kinds: tuple[str, ...] = ("subject", "mean", "quantile", "normalized")

    def _distribution(self, given: str) -> Distribution:
        d, e = self.model.design, self._known().params
        y = np.asarray(d.response) - offset_of(d)
        errors = disturbances(d, e, self.model.errors)
        if given == "history":
            law = given_history(e, y, d.expert, d.random, d.gate, errors)
        else:
            law = given_covariates(e, d.expert, d.random, d.gate, d.codes, errors)
        return continuous(law.below(y), law.beyond(y))

    @property
    def _more_facts(self) -> tuple[tuple[str, Cell], ...]:
        setup = self.model.errors
        return () if setup is None else (("Errors", setup.options.described),)

    @property
    def _more_notes(self) -> tuple[str, ...]:
        if self.model.settings["method"] == "reml":
            return (
                "Estimated by restricted maximum likelihood (REML): log-likelihood and criteria do not compare fits "
                "with different fixed effects.",
            )
        penalty = self.model.gate_penalty
        if penalty is None or self.model.n_experts == 1:
            return ()
        return (
            f"Gate penalised by {penalty.described}: estimates, standard errors and profiles are of the penalised "
            "log-likelihood; log-likelihood and criteria are without the penalty.",
        )

    def _normalized(self) -> Array:
        return normalized_residuals(
            self.model.design, self._known().params, self.em.responsibilities, self.model.errors
        )

    def _axis(self) -> str | None:
        return trajectory_axis(self.model.design)

    def _expert_means(self, kind: str) -> Array:
        d, e = self.model.design, self._known()
        means = expert_means(e, d.expert) + offset_of(d)[:, None]
        if kind == "mean":
            return means
        past = past_of_subjects(self.model, e, d, d)
        return means + np.einsum("nq,nkq->nk", d.random, past.means[d.codes])

    def _mean_errors(self, weights: Array) -> Array:
        return weighted_mean_errors(self._known(), self.model.design.expert, weights)

    def _effects(self) -> Effects | None:
        d, e = self.model.design, self._known()
        if not d.names.random:
            return None
        return effects_of(past_of_subjects(self.model, e, d, d), e, d.names.random)

    def _likelihood(self) -> Likelihood:
        return likelihood_at(self.model.solution(self.em), self.llf)

    def _draw(self, rng: np.random.Generator) -> Array:
        return np.asarray(self.model.draw(self.em, rng))

    def _first_order(self) -> FirstOrder:
        return first_order(self.model.solution(self.em))

    def _gate_points(self) -> tuple[GatePoint, ...]:
        e, infinite = self._known(), self.cov.infinite
        directions = None if infinite is None else infinite[e.where.gate.ravel()]
        return (GatePoint(None, e.params.gamma[0], e.where.gate, directions),)

    def _known(self) -> Estimate:
        params, where = self.model.user(self.em.params), self.model.structure.reported
        separated, moments, shift = self.cov.bounded is not None, self.cov.moments, self.cov.shift
        return Estimate(params, self.cov.of_bounded, where, separated, moments, shift)


def sections_unused(wanted: Wanted, known: bool, gaussian: bool) -> tuple[str, ...]:
    """Sections of the formula that a kind of prediction does not need of the rows to predict.

    Parameters
    ----------
    wanted : Wanted
    known : bool
        Whether something is known of their subjects.
    gaussian : bool
        Of the response: then means do not depend on the random effects.
    """
    if wanted.kind == "probabilities":
        return ("expert", "random", "sigma")
    if wanted.kind == "experts":
        return ("gate", "sigma", "random") if gaussian else ("gate", "sigma")
    if wanted.noise or wanted.kind == "subject" or known:
        return ()
    return ("sigma", "random") if gaussian else ("sigma",)


def check_curve_options(options: Mapping[str, Any]) -> None:
    """Refuse options that curves of a MEMoE do not have."""
    for name in options:
        if name not in ("x", "at", "alpha"):
            raise ArgumentError(f"a figure has the options x=, at= and alpha=, got {name!r}")


def _check_scale(response: ResponseModel, wanted: Wanted) -> None:
    """Refuse scales that the response does not have."""
    scale = wanted.scale
    if wanted.noise and scale != "response" and not response.gaussian:
        raise ArgumentError(f"interval='prediction' is for responses, got scale={scale!r}; use scale='response'")
    if scale == "categories" and response.thresholds is None:
        raise ArgumentError(f"scale='categories' is for family='ordinal', got family={response.name!r}; use 'response'")
