"""What only fitted mixtures of experts offer, and what families without experts say instead."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn, Self

import numpy as np
import pandas as pd

from mixmoe.arguments import checked_choice, checked_count, checked_jobs, checked_order, checked_rng
from mixmoe.atomic import PathLike
from mixmoe.check.adequacy import Adequacy, ClassificationTable, adequacy, classification_table, memberships
from mixmoe.check.influence import GateEffects, gate_effects
from mixmoe.check.number_of_experts import (
    STOPS,
    ExpertsTest,
    Stability,
    VLMRTest,
    bootstrap_test,
    resampled_labels,
    stability,
    testable,
    vlmr,
)
from mixmoe.errors import ArgumentError
from mixmoe.families import (
    HasCurvature,
    HasExperts,
    HasGate,
    HasOrder,
    HasScores,
    MixtureModel,
    Model,
    lacking,
    require,
)
from mixmoe.inference.uncertainty import ParamCov, checked_alpha
from mixmoe.inference.wald import InvalidTest
from mixmoe.mixture.estimate import EMFit, criteria
from mixmoe.mixture.resampling import Journal, fingerprint
from mixmoe.output.names import Names, checked_experts, expert_words
from mixmoe.output.plots import draw_responsibilities
from mixmoe.output.records import Cell
from mixmoe.results import Results, called
from mixmoe.three_step.distal import Distal, Predictors, distal, predictors
from mixmoe.three_step.estimates import METHODS, Assignment, Method, build_assignment


class Assessment:
    """Classification, effects of gate covariates, three-step analyses.

    Notes
    -----
    For families that have the capabilities `HasScores` and `HasGate`; the methods refuse with the reason of the others.
    """

    model: MixtureModel
    em: EMFit
    cov: ParamCov
    shown_names: Names
    _unit_word: str

    @property
    def responsibilities(self) -> pd.DataFrame:
        """Posterior expert probabilities, one row per unit."""
        raise NotImplementedError

    def adequacy(self) -> Adequacy:
        """How well units are told apart: average posterior probabilities, odds of correct classification, entropy.

        Returns
        -------
        Adequacy
            Prints as a table; ``to_frame()`` has one row per expert.

        References
        ----------
        Nagin (2005), Group-Based Modeling of Development, chapter 5.
        """
        return replace(adequacy(self.em.responsibilities, self._unit_word), shown_names=self.shown_names)

    def classification_table(self) -> ClassificationTable:
        """Most probable expert against posterior mass, with the matrix D of three-step methods.

        Returns
        -------
        ClassificationTable
            Prints as two tables; ``to_frame("probabilities")`` is D, ``P(most probable s | expert t)``.
        """
        return replace(classification_table(self.em.responsibilities), shown_names=self.shown_names)

    def memberships(self) -> pd.DataFrame:
        """Most and second most probable expert of each unit, and how certain the choice is.

        Those of new subjects have probabilities by ``predict(new, kind="probabilities", history=...)``.

        Returns
        -------
        DataFrame
            Columns: expert, probability, second, second_probability, margin, entropy (0 certain, 1 no idea).
        """
        return memberships(self.em.responsibilities).set_axis(self.responsibilities.index)

    def gate_effects(
        self, covariates: str | Sequence[str] | None = None, *, alpha: float = 0.05, dummy: bool = False
    ) -> GateEffects:
        """Average marginal effects of gate covariates on the probability of each expert.

        Parameters
        ----------
        covariates : str or sequence of str, optional
            Columns of the data that the gate uses; by default all of them.
        alpha : float
            One minus the level of the limits.
        dummy : bool
            Whether a numeric column of zeros and ones changes from 0 to 1, as a category does, instead of having a
            slope.

        Returns
        -------
        GateEffects
            Prints as a table; ``to_frame()`` has a row per covariate (and level) and expert.

        Raises
        ------
        ArgumentError
            If the gate has no covariates.

        Notes
        -----
        The mean over the units of the derivative of ``pi_k(w_i)``, through every column that holds the covariate
        (powers, interactions, splines), or of the difference between two levels. Standard errors by the delta method
        from the covariance of the fit, covariates taken as given. With varying coefficients, at index values.

        References
        ----------
        Greene (2012), Econometric Analysis, section 17.3.2.
        """
        if self.model.n_experts == 1:
            raise ArgumentError("gate_effects needs at least 2 experts, got 1, whose probability is one")
        points = require(self, HasGate, "gate_effects", self.model.spec)._gate_points()
        made = gate_effects(self.model.design, points, self.cov.of_bounded, checked_alpha(alpha), covariates, dummy)
        return replace(made, shown_names=self.shown_names)

    def distal(self, formula: str, outcomes: Any, *, method: Method = "bch", kind: str = "auto") -> Distal | Predictors:
        """An outcome by expert, corrected for classification error: a three-step analysis.

        Parameters
        ----------
        formula : str
            ``"outcome ~ expert"``, with further predictors ``"outcome ~ expert + age"``, ``"outcome ~ expert * age"``;
            ``"expert ~ age"`` is `covariates`.
        outcomes : DataFrame
            One row per subject, with the column of the subjects or their labels as index; per row where the fit has no
            subjects. Subjects without complete outcomes are counted, not used.
        method : {"bch", "ml", "naive"}
            Weights that undo the misclassification; likelihood with it; the most probable expert taken as known, for
            comparison. ``"bch"`` assumes least, ``"ml"`` is a little more precise if the outcome is normal given the
            expert, and may be worse than ``"naive"`` if it is not.
        kind : {"auto", "numeric", "categorical"}
            Of the outcome. By default text, truth values and numbers that are only 0 and 1 are categories.

        Returns
        -------
        Distal
            ``to_frame()``: means or probabilities by expert; ``pairwise()``: differences; ``overall``: Wald test.

        Raises
        ------
        ArgumentError, DesignError, FormulaError
            If the outcomes do not fit the formula or the fit.

        Warns
        -----
        AssumptionWarning
            If ``"ml"`` is asked for a numeric outcome that is skewed given the expert (`Distal.skewness`).

        Notes
        -----
        Standard errors carry the uncertainty of all three steps: estimating functions of step 3, of the matrix of
        classification errors and of the fit are stacked, and their sandwich taken over subjects. The correction assumes
        that assignments depend on outcome and predictors only through the expert; leave a predictor of step 3 out of
        the gate, or the part of it that the assignments already hold is counted twice. ``"ml"`` gives a numeric outcome
        a variance per expert, and lets membership depend on the predictors by a multinomial logit.

        References
        ----------
        Bolck, Croon & Hagenaars (2004), Political Analysis 12, 3-27. Vermunt (2010), Political Analysis 18, 450-469.
        Bakk, Tekle & Vermunt (2013), Sociological Methodology 43, 272-311. Asparouhov & Muthen (2014), Structural
        Equation Modeling 21, 329-341. Bakk, Oberski & Vermunt (2014), Political Analysis 22, 520-540.
        """
        left, tilde, right = str(formula).partition("~")
        if tilde and left.strip() == "expert":
            return self.covariates(f"~{right}", outcomes, method=method)
        checked_choice(method, "method", METHODS)
        checked_choice(kind, "kind", ("auto", "numeric", "categorical"))
        made = distal(self.model.design, self._assignment("distal", method), formula, outcomes, method, kind)
        return replace(made, shown_names=self.shown_names)

    def covariates(self, formula: str, data: Any, *, method: Method = "ml") -> Predictors:
        """Covariates of membership, corrected for classification error: a three-step analysis.

        Parameters
        ----------
        formula : str
            ``"~ z1 + z2"``.
        data : DataFrame
            One row per subject, as in `distal`.
        method : {"ml", "bch", "naive"}

        Returns
        -------
        Predictors
            ``to_frame()``: log odds against expert 1; ``tests()``: each term, a factor as a whole, over all experts.

        Raises
        ------
        ArgumentError, DesignError, FormulaError
            If the data do not fit the formula or the fit.

        Notes
        -----
        For covariates that are not in the gate; those of the gate have their estimates in the fit. See `distal`.
        Log odds have the small-sample bias of any logit, away from zero and of the order of one over the number of
        subjects (see the page of simulation results on three steps); the correction adds less than it. Where a
        covariate leaves no subjects to an expert, its coefficient is infinite: it has no standard error, a flag says
        so, and joint tests are without it.

        References
        ----------
        Vermunt (2010), Political Analysis 18, 450-469.
        """
        checked_choice(method, "method", METHODS)
        made = predictors(self.model.design, self._assignment("covariates", method), formula, data, method)
        return replace(made, shown_names=self.shown_names)

    def _assignment(self, what: str, method: Method) -> Assignment:
        """Steps 1 and 2 of a three-step analysis; the naive one takes memberships as known."""
        if self.model.n_experts == 1:
            raise ArgumentError(f"{what} needs at least 2 experts, got 1; regress on the covariates directly")
        tau = self.em.responsibilities
        if method == "naive":
            return build_assignment(tau, np.zeros((len(tau), 0)), np.zeros((*tau.shape, 0)))
        at = require(self, HasScores, f"{what} with method={method!r}", self.model.spec)._first_order()
        return build_assignment(tau, at.moves, at.slopes)


class ExpertTests:
    """Tests of the number of experts, and stability of what they are."""

    model: MixtureModel
    em: EMFit
    shown_names: Names

    def test_experts(
        self,
        n_boot: int = 200,
        *,
        starts: int = 8,
        stop: str = "binomial",
        alpha: float = 0.05,
        rng: Any = None,
        n_jobs: int = 1,
        progress: bool | None = None,
        checkpoint: PathLike | None = None,
    ) -> ExpertsTest | InvalidTest:
        """Parametric bootstrap likelihood-ratio test of K against K - 1 experts.

        Parameters
        ----------
        n_boot : int
            Largest number of draws.
        starts : int
            Random starts per expert of each fit. With K experts each expert of the fit with K - 1 is split besides, and
            the K - 1 experts are fitted to a draw from the truth too.
        stop : {"binomial", "besag-clifford", "never"}
            When to stop early. ``"binomial"``: as soon as the exceedances so far reject a p-value equal to `alpha` at
            the level 0.001, so that the decision at `alpha` is clear. ``"besag-clifford"``: after 10 exceedances, with
            the p-value 10 / draws.
        alpha : float
            Level of the decision.
        rng : int, numpy.random.Generator or None
            The result depends on it and not on `n_jobs`.
        n_jobs : int
            Worker processes (joblib), -1 for all cores.
        progress : bool, optional
        checkpoint : path-like, optional
            A file. The same call continues where an earlier one stopped, with the same answer.

        Returns
        -------
        ExpertsTest or InvalidTest
            After Ctrl-C from the draws that were ready.

        Notes
        -----
        Responses are drawn from the fit with K - 1 experts at the covariates of the data, and both models are fitted to
        each draw. A mixture with one expert too many has many maxima, of which more starts find higher ones. The
        statistic of the data is therefore found anew, by the same starts as those of the draws, and may lie below twice
        the difference of the log-likelihoods of two fits with more starts: comparing that with draws from few starts
        would reject too often. The p-value is ``(1 + exceedances) / (1 + draws)``. Random effects and errors are drawn
        as normal: the test asks for the number of experts given that the model within an expert holds.

        References
        ----------
        McLachlan (1987), Applied Statistics 36, 318-324. Feng & McCulloch (1996), JRSS B 58, 609-617. Besag & Clifford
        (1991), Biometrika 78, 301-304. Davidson & MacKinnon (2000), Econometric Reviews 19, 55-68.
        """
        checked_choice(stop, "stop", STOPS)
        checked_count(n_boot, "n_boot")
        checked_count(starts, "starts", least=0)
        model = testable(self.model, self.em, "test_experts")
        if isinstance(model, InvalidTest):
            return model
        key = ("experts", self._identity(), n_boot, starts, stop, checked_alpha(alpha))
        n_jobs, experts = checked_jobs(n_jobs), self.model.n_experts
        with Journal(checkpoint, fingerprint(key), rng) as journal:
            return bootstrap_test(model, experts, journal, n_boot, starts, stop, alpha, n_jobs, progress)

    def vlmr_test(self, *, starts: int = 8, rng: Any = None) -> VLMRTest | InvalidTest:
        """Vuong-Lo-Mendell-Rubin test of K against K - 1 experts; quick, but without a valid theory.

        Parameters
        ----------
        starts : int
            Random starts per expert of the fit with K - 1 experts.
        rng : int, numpy.random.Generator or None

        Returns
        -------
        VLMRTest or InvalidTest

        Notes
        -----
        The statistic is compared with a sum of chi-squares whose weights are the eigenvalues of Vuong's matrix W at the
        estimates. Lo, Mendell and Rubin (2001) claimed that this holds for mixtures of normals with K - 1 and K
        components. Jeffries (2003) showed that it does not: under K - 1 experts the parameters of the K-th are not
        identified and the information of the larger model is singular, so that the conditions of Vuong's theorem fail.
        It is offered because it is often reported; use `test_experts` to decide.

        References
        ----------
        Vuong (1989), Econometrica 57, 307-333. Lo, Mendell & Rubin (2001), Biometrika 88, 767-778. Jeffries (2003),
        Biometrika 90, 991-994.
        """
        model = testable(self.model, self.em, "vlmr_test")
        if isinstance(model, InvalidTest):
            return model
        if not isinstance(model, HasCurvature):
            return InvalidTest("these estimates do not maximise a likelihood; use test_experts")
        below = self.model.n_experts - 1
        null = model.estimate(below, checked_count(starts, "starts") * below, checked_rng(rng))
        return vlmr(model, model.estimated(self.em), null)

    def stability(
        self,
        n_boot: int = 100,
        *,
        rng: Any = None,
        n_jobs: int = 1,
        progress: bool | None = None,
        checkpoint: PathLike | None = None,
    ) -> Stability:
        """Whether the units would be classified alike by fits to resamples of the units.

        Parameters
        ----------
        n_boot : int
            Resamples, each refitted from the present estimates.
        rng : int, numpy.random.Generator or None
        n_jobs : int
        progress : bool, optional
        checkpoint : path-like, optional
            A file, see `test_experts`.

        Returns
        -------
        Stability
            Adjusted Rand index of the most probable experts of all units, resample by resample.

        Raises
        ------
        ArgumentError
            If the fit has one expert, the family offers no refits, or none converged.

        References
        ----------
        Hubert & Arabie (1985), Journal of Classification 2, 193-218. Hennig (2007), Computational Statistics & Data
        Analysis 52, 258-271.
        """
        checked_count(n_boot, "n_boot")
        model = require(self.model, HasExperts, "stability", self.model.spec)
        if self.model.n_experts == 1:
            raise ArgumentError("stability needs at least two experts, got a fit with one")
        task, n_jobs = partial(resampled_labels, model, self.em), checked_jobs(n_jobs)
        with Journal(checkpoint, fingerprint(("stability", self._identity(), n_boot)), rng) as journal:
            calls = [partial(task, seed) for seed in journal.rng.spawn(n_boot)]
            found = journal.run(calls, n_jobs, "resamples", progress)
        refits = [np.array(labels, dtype=np.intp) for labels in found.values]
        if not any(len(labels) for labels in refits):
            if found.interrupted:
                raise KeyboardInterrupt
            raise ArgumentError(f"none of the {n_boot} resamples could be refitted; look at the flags of the fit")
        made = stability(self.em.responsibilities.argmax(axis=1), refits, found.interrupted)
        return replace(made, shown_names=self.shown_names)

    def _identity(self) -> tuple[Any, ...]:
        """What tells this fit from others."""
        design = self.model.design
        return (self.model.formula.text, self.model.n_experts, self.em.loglik, self.em.params.tolist(), design.n)


class MoEResults(Assessment, ExpertTests, Results):
    """A fitted mixture of experts.

    Parameters
    ----------
    model : MixtureModel
    fit : EMFit
    cov : ParamCov

    Attributes
    ----------
    icl : float
        BIC plus twice the entropy of the classification.
    entropy : float
        Relative entropy R^2 in [0, 1].

    See Also
    --------
    Results : what every family offers.
    """

    model: MixtureModel

    def __init__(self, model: MixtureModel, fit: EMFit, cov: ParamCov) -> None:
        super().__init__(model, fit, cov)
        values = criteria(fit.loglik, len(fit.params), fit.responsibilities)
        self.icl, self.entropy = values.icl, values.entropy

    @property
    def responsibilities(self) -> pd.DataFrame:
        """Posterior expert probabilities, one row per subject and one column per expert."""
        tau = self.em.responsibilities
        names = [f"expert{k + 1}" for k in range(tau.shape[1])]
        return pd.DataFrame(tau, index=self._unit_index, columns=names, copy=True)

    def classify(self) -> pd.DataFrame:
        """The most probable expert of each subject and its probability.

        Those of new subjects have probabilities by ``predict(new, kind="probabilities", history=...)``.

        Returns
        -------
        DataFrame
            Columns ``expert`` (from 1) and ``probability``.
        """
        tau = self.em.responsibilities
        columns = {"expert": tau.argmax(axis=1) + 1, "probability": tau.max(axis=1)}
        return pd.DataFrame(columns, index=self._unit_index)

    def proportions(self, alpha: float = 0.05) -> pd.DataFrame:
        """Mean probability of each expert by the gate; for families that have one for all rows.

        Parameters
        ----------
        alpha : float
            One minus the level of the limits.

        Returns
        -------
        DataFrame
            One row per expert; columns estimate, std_error, conf_low, conf_high (delta method on the logit scale).
        """
        raise lacking(self.model.spec, "HasProportions", "proportions")

    def relabel(self, order: Sequence[int]) -> Self:
        """The same fit with experts in another order; for families that say how.

        Parameters
        ----------
        order : sequence of int
            ``order[0]`` is the present number (from 1) of the expert that comes first.

        Returns
        -------
        MoEResults
            Of the same class; names move with their experts.
        """
        family = require(self, HasOrder, "relabel", self.model.spec)
        places = [k - 1 for k in checked_order(order, self.model.n_experts)]
        return called(family._in_order(places), self.shown_names.in_order(places))

    def named(self, *names: str) -> Self:
        """The same fit with names for its experts, for tables and figures that others read.

        Parameters
        ----------
        *names : str
            One for each expert, in their order: ``fit.named("stable", "declining")``.

        Returns
        -------
        MoEResults
            Headings say ``Expert 1: stable``, row labels and legends ``stable``, sentences
            ``expert 1 (stable)``: in the summary, LaTeX, Markdown, figures, the report, `mixmoe.table`, `mixmoe.pool`
            and in what `distal`, `covariates`, `adequacy`, `classification_table` and `stability` of the named fit
            return. Names of parameters (``expert1.year``) and columns of data frames keep the numbers, and so do the
            records of `tables`, `curves` and `panels`. The names are kept by `with_cov` and `save`, and `relabel` moves
            them with their experts.

        Raises
        ------
        ArgumentError
            If there are not as many names as experts, or two are alike.
        """
        experts = checked_experts(names, self.model.n_experts)
        return called(copy.copy(self), replace(self.shown_names, experts=experts))

    def plot(self, kind: str | None = None, ax: Any = None, **options: Any) -> Any:
        """A figure; needs matplotlib. Beside the kinds of `Results.plot` also ``"responsibilities"``."""
        if kind != "responsibilities":
            return super().plot(kind, ax, **options)
        if options:
            raise ArgumentError(f"plot('responsibilities') has no option {sorted(options)[0]!r}")
        words = expert_words(self.shown_names, self.model.n_experts)
        return draw_responsibilities(self.em.responsibilities, words, ax, self._unit_word)

    @property
    def _title(self) -> str:
        k = self.model.n_experts
        return f"{self.model.spec.name} with {k} expert{'s' if k > 1 else ''}"

    @property
    def _plot_kinds(self) -> tuple[str, ...]:
        own, n = super()._plot_kinds, len(self._curve_kinds)
        return (*own[:n], "responsibilities", *own[n:])

    @property
    def _classification_facts(self) -> tuple[tuple[str, Cell], ...]:
        return (("Entropy", self.entropy),) if self.model.n_experts > 1 else ()

    def _by_class(self) -> pd.DataFrame:
        return self.classify()

    def _by_unit(self) -> pd.DataFrame:
        return pd.concat([self.classify(), self.responsibilities], axis=1)


def _without(name: str, capability: str = "HasExperts") -> Callable[..., NoReturn]:
    """A method of mixtures in a family without experts, which says why it is none of its."""

    def method(self: "WithoutExperts", *args: Any, **options: Any) -> NoReturn:
        raise lacking(self.model.spec, capability, name)

    method.__name__ = method.__qualname__ = name
    method.__doc__ = f"Refused, with the reason of the family: `{name}` is for mixtures of experts."
    return method


class WithoutExperts:
    """The methods of mixtures in a family that has no experts: each refuses with the reason that the spec gives."""

    model: Model

    adequacy = _without("adequacy")
    classification_table = _without("classification_table")
    classify = _without("classify")
    covariates = _without("covariates")
    distal = _without("distal")
    gate_effects = _without("gate_effects", "HasGate")
    memberships = _without("memberships")
    named = _without("named")
    proportions = _without("proportions")
    relabel = _without("relabel")
    stability = _without("stability")
    test_experts = _without("test_experts")
    vlmr_test = _without("vlmr_test")

    @property
    def responsibilities(self) -> NoReturn:
        """Refused, with the reason of the family: posterior probabilities are for mixtures of experts."""
        raise lacking(self.model.spec, "HasExperts", "responsibilities")

    @property
    def entropy(self) -> NoReturn:
        """Refused, with the reason of the family: the entropy is that of a classification by experts."""
        raise lacking(self.model.spec, "HasExperts", "entropy")

    @property
    def icl(self) -> NoReturn:
        """Refused, with the reason of the family: this criterion holds the entropy of a classification by experts."""
        raise lacking(self.model.spec, "HasExperts", "icl")
