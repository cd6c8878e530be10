"""What a fitted NME offers: predictions with intervals, person effects, transitions, decoding."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mixmoe._typing import Array
from mixmoe.arguments import checked_choice
from mixmoe.check.term_tests import Owners, owners_of
from mixmoe.errors import (
    ArgumentError,
    BoundaryWarning,
    ConvergenceWarning,
    DegeneracyWarning,
    MixmoeWarning,
    SavedFileError,
)
from mixmoe.families import lacking
from mixmoe.inference.uncertainty import ParamCov
from mixmoe.inference.wald import InvalidTest
from mixmoe.loading import restored
from mixmoe.mixture.estimate import EMFit, Flag, Starts, criteria
from mixmoe.neural.blocks import to_array, torch
from mixmoe.neural.chain_covariates import chain_tables, covariate_tests, end_scores
from mixmoe.neural.components import free_parameters, is_by_move, is_linear, named_tensors
from mixmoe.neural.displays import (
    Comparison,
    architecture_table,
    comparison_table,
    learning_curves,
    share_table,
)
from mixmoe.neural.effect_curves import check_options, effect_curves, transition_curves
from mixmoe.neural.estimators.trained import LevelEffects, Problem, Trace, Trained, parts_of
from mixmoe.neural.fitted_rows import NetworkDiagnosis
from mixmoe.neural.marginal_likelihood import integral_error, is_marginal, linear_names
from mixmoe.neural.network import forward, view_tensors
from mixmoe.neural.persons import Persons, adapt_persons, own_scale, predict_frame, refuse_unknown, state_frame
from mixmoe.neural.transitions import Transitions, build_transitions
from mixmoe.output.predictions import IntervalOf, Kind, Scale, checked_wanted
from mixmoe.output.records import Cell, Curve, Table
from mixmoe.output.saved import SavedFit
from mixmoe.results import Results

if TYPE_CHECKING:
    from mixmoe.neural.model import NME


SPREAD_NOTE = (
    "The standard deviation of a tensor is the root mean square over its entries, on standardised inputs and response."
)
TRANSITION_NOTE = (
    "Transition scores are centred: only differences mean something, and zero is no hypothesis; transitions.population "
    "has the probabilities, in the middle of a long sequence of average rows."
)


class NMEResults(NetworkDiagnosis):
    """A fitted network with person effects.

    Parameters
    ----------
    model : NME
    fit : EMFit
    cov : ParamCov
    problem : Problem
        The rows that were fitted.
    trained : Trained
    comparison : Comparison or None
    training : mapping, optional
        Options of the fit that are not the default.

    Attributes
    ----------
    trained : Trained
        Population parameters, effects and variances on the standardised scale.
    comparison : Comparison or None
        Held-out errors beside those of the generic network, one network per person and network + LME.

    Notes
    -----
    Of the common methods a network has no `profile`, `lr_test` and `influence`, which need regular parameters; what
    tells the experts of a mixture apart is refused. `resid` and the figures ``"residuals"``, ``"qq"`` and
    ``"fit"`` are those of Gaussian and binary responses.
    """

    _default_plot = "effects"
    _report_plots = ("effects", "learning")

    def __init__(
        self,
        model: "NME",
        fit: EMFit,
        cov: ParamCov,
        problem: Problem,
        trained: Trained,
        comparison: Comparison | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, fit, cov)
        self.training = dict(training or {})
        self.problem, self.trained, self.comparison = problem, trained, comparison
        self.df_model = free_parameters(problem)
        self.df_resid = self.nobs - self.df_model
        values = criteria(fit.loglik, self.df_model, fit.responsibilities)
        self.aic, self.bic, self.sabic = values.aic, values.bic, values.sabic

    @property
    def _more_facts(self) -> tuple[tuple[str, Cell], ...]:
        held = self.problem.validation.n_rows
        why = "the published rule has none"
        missing = int((np.asarray(self.model.design.response) < 0).sum()) if self.problem.family == "crf" else 0
        return (
            ("Rows without a state", f"{missing} of these; the likelihood sums over them" if missing else None),
            ("Validation rows", f"{held} of these; they chose the epoch" if held else None),
            ("Likelihood", why if self.model.estimator == "sgd" else None),
        )

    @cached_property
    def _integral_error(self) -> float | None:
        # Epochs that validation rows chose are of the penalised likelihood, whatever the network.
        if not is_marginal(self.problem) or self.problem.validation.n_rows:
            return None
        return integral_error(self.problem, self.trained)

    @property
    def random_effects(self) -> pd.DataFrame:
        """Effects of the persons on their parameters, one row per person.

        Of a linear network on its coefficients, on the user's scale and by their names in the summary; of others on
        single weights, of the network of standardised inputs and response. With several groupings one row per level of
        each, indexed by grouping and level.
        """
        return self.persons.effects()

    @property
    def random_effects_se(self) -> pd.DataFrame:
        """Posterior standard deviations of `random_effects`."""
        return self.persons.effect_errors(self.uncertainty)

    def predict(
        self,
        new: Any = None,
        kind: Kind = "all",
        *,
        history: Any = None,
        interval: IntervalOf | None = None,
        alpha: float = 0.05,
        scale: Scale | None = None,
        rng: Any = 0,
    ) -> pd.DataFrame:
        """Means or probabilities of categories, of the population or of persons with their effects.

        Parameters
        ----------
        new : DataFrame or mapping, optional
            Rows to predict; the response is not needed and never used. By default the data of the fit.
        kind : {"all", "mean", "subject"}
            ``"mean"``: mean over the distribution of effects; ``"subject"``: of known persons with their effects, of
            others over the distribution of effects; with several groupings each counts by itself, so that a known
            person may be in an unknown culture; the columns of the groupings must be there, and their labels must be of
            the type that they had; ``"all"``: the person's if there is a `history`, else the population's.
        history : DataFrame or mapping, optional
            Past rows, with response, of the persons in `new`, from which their effects are estimated, see `adapt`. For
            ``kind="subject"`` without it, the persons of the fit keep the data of the fit as history. It plays no part
            in ``"mean"``. With several groupings the rows of the fit's other persons still count. States of a CRF are
            predicted given those of the history as well, where it has rows of the same sequence before the first row to
            predict there, by the exact distribution of the sequence; what comes later tells about the effects only.
        interval : {None, "confidence", "prediction"}
            Limits, in columns ``_low`` and ``_high``, with standard errors in ``_se``: none, those of what is
            estimated, or those of a new response. None of a CRF.
        alpha : float
            One minus the level of the limits.
        scale : {"response", "categories"}, optional
            ``mean`` of a response of numbers, or of two categories the probability of the second; or of categories the
            probability of each, in columns ``P(level)``, the default of states and of three or more categories, which
            have no mean.
        rng : int or Generator
            Draws of the effects of unknown persons.

        Returns
        -------
        DataFrame
            One row per row of `new`, in its order; NaN where an input is missing.

        Raises
        ------
        ArgumentError
            For ``"experts"`` and ``"probabilities"``, which a network has not; for limits of the population's mean if
            the network has too many parameters for a covariance.

        Warns
        -----
        MixmoeWarning
            If no person of `history` is in `new`, or, for ``kind="subject"`` without one, if some are not in the fit.

        Notes
        -----
        Confidence limits of the population's mean carry the estimates of the network's parameters, those of persons
        also their effects: as known from their rows, or of a person never seen their distribution.
        """
        wanted = checked_wanted(kind, interval, alpha, own_scale(self.persons) if scale is None else scale)
        refuse_unknown(self.persons, wanted)
        persons = self.persons if history is None else adapt_persons(self.persons, history)
        covered = None
        if wanted.limits:
            covered = self.uncertainty if history is None else persons.uncertainty()
        design = self.model.design
        rows = design.frame.iloc[np.argsort(design.position, kind="stable")] if new is None else new
        return predict_frame(persons, covered, rows, wanted, rng)

    def _term_owners(self) -> Owners:
        terms = owners_of(self.model.design)["expert"]
        names = linear_names(self.model.design.names.expert)
        levels = [str(level) for level in self.model.design.response_levels or ()][1:]
        owner = {name: terms.get(name, name) for name in names}
        owner |= {f"{name}({level})": term for name, term in owner.items() for level in levels}
        if not self._layout.where("fixed"):
            raise lacking(self.model.spec, "HasTerms", "wald_test_terms")
        return {"fixed": owner}

    @property
    def _fit_options(self) -> Mapping[str, Any]:
        return self.training

    def _by_unit(self) -> pd.DataFrame:
        return self.random_effects

    def adapt(self, data: Any) -> Persons:
        """New persons with effects estimated from their first rows; population parameters stay.

        Parameters
        ----------
        data : DataFrame
            Rows with response; persons may be known ones, whose effects are then estimated from these rows alone. With
            several groupings the rows of the fit's other persons stay, as they tell what the other levels do.

        Returns
        -------
        Persons
            With `predict`, `effects` and, for a CRF, `decode` and `transitions`.
        """
        return adapt_persons(self.persons, data)

    def transition_tests(self, *, lr: bool = True, progress: bool | None = None) -> pd.DataFrame:
        """Whether transitions go with the covariates of persons that ``gate:`` names (CRF).

        Parameters
        ----------
        lr : bool
            Whether to fit the model without each term as well, for a likelihood-ratio test; each takes about as long as
            the fit without its comparisons.
        progress : bool, optional
            Progress bar of these fits; by default in a terminal, and if they take more than a few seconds.

        Returns
        -------
        DataFrame
            One row per term: ``df``, ``wald`` and ``wald_pvalue``, ``lr`` and ``lr_pvalue``.

        Raises
        ------
        ArgumentError
            If there are no such covariates, with ``estimator="sgd"``, and for fits stopped by ``validation=``.

        Notes
        -----
        What a covariate adds to the score of entering a state, whatever the state before, is in the test too; where it
        is to be held apart, it is a term of the emissions as well, left of the first bar. Covariates are in the mean of
        the transitions, before the effects of persons, so that the length of sequences, which rules how much these are
        shrunken, plays no part; see `Transitions.association` for a test without a model.
        """
        return covariate_tests(self, lr, progress)

    @property
    def end_scores(self) -> pd.DataFrame:
        """Scores of starting and of ending a sequence in each state (CRF), columns ``start, start_se, end, end_se``.

        At effects of zero, and where covariates of the transitions are zero. Positive: a sequence starts (ends) there
        more often than its inputs and the moves between states say. They are part of what transitions and emissions
        with an intercept tell, and no further parameters.

        Raises
        ------
        ArgumentError
            If the model is no CRF.
        """
        return end_scores(self)

    def decode(self, data: Any = None) -> pd.Series:
        """The most probable state sequence of known persons (Viterbi); of unknown ones at effects of zero.

        Raises
        ------
        ArgumentError
            If the model is no CRF.
        """
        return state_frame(self.persons, self.model.design.frame if data is None else data, states=True)

    def marginals(self, data: Any = None) -> pd.DataFrame:
        """Probability of each state at each row given all inputs of its sequence."""
        return state_frame(self.persons, self.model.design.frame if data is None else data, states=False)

    @property
    def transitions(self) -> Transitions:
        """Transition probabilities of the population and of each person, with intervals.

        Those of the next state in the middle of a long sequence whose rows all have average inputs.

        Raises
        ------
        ArgumentError
            If the model is no CRF.
        """
        return build_transitions(self.persons, self.uncertainty)

    def tables(self, alpha: float = 0.05) -> tuple[Table, ...]:
        """Header, architecture, parameters, shares of variance, and the comparison on held-out rows."""
        header, *parameters = super().tables(alpha)
        whole = [
            len(part.personal.places(spec))
            for part in parts_of(self.problem)
            for spec in named_tensors(part)
            if not is_by_move(part, spec)
        ]
        pooled = (SPREAD_NOTE,) if max(whole, default=0) > 1 and not is_linear(self.problem) else ()
        more = {"other": ((TRANSITION_NOTE,), "Transition scores"), "random": (pooled, "")}
        for k, table in enumerate(parameters):
            notes, title = more.get(table.key, ((), ""))
            parameters[k] = replace(table, notes=(*table.notes, *notes), title=title or table.title)
        states = [str(level) for level in self.model.design.response_levels or ()]
        extra = [architecture_table(self.model.estimator, self.problem, self.trained, states, self._integral_error)]
        share = share_table(self.problem, self.trained)
        compared = [] if self.comparison is None else [comparison_table(self.comparison, self.problem.family)]
        return (header, *extra, *parameters, *chain_tables(self), *([share] if share is not None else []), *compared)

    def curves(self, kind: str, **options: Any) -> tuple[Curve, ...]:
        """Curves of one kind.

        Parameters
        ----------
        kind : {"effects", "learning", "transitions"}
            ``"effects"``: predictions along one input, the others at their means or most frequent values, for the
            population and for persons; of two categories the probability of the last one, of more that of each in a
            panel of its own, of a CRF in the middle of a sequence that holds the inputs. Limits (Gaussian) are those of
            a new observation of an unknown person. Options: ``variable=``, ``persons=`` (labels), ``n_persons=``,
            ``category=`` (label of one category). ``"learning"``: losses per epoch. ``"transitions"`` (CRF):
            probabilities of the next state in the middle of a long sequence of average rows, a panel for each present
            one, of the population, with limits, and of persons. Options: ``persons=``, ``n_persons=``.

        Returns
        -------
        tuple of Curve
            One for each line: ``panel``, ``label``, ``x``, ``y``, and ``lower``, ``upper`` where it has limits.

        Raises
        ------
        ArgumentError
            For a kind or option that there is not.
        """
        checked_choice(kind, "kind", self._curve_kinds)
        makers: dict[str, Callable[..., Any]] = {
            "learning": learning_curves,
            "effects": effect_curves,
            "transitions": transition_curves,
        }
        check_options(options, kind, makers[kind])
        if kind == "learning":
            return learning_curves(self.trained.trace, **options)
        if kind == "transitions":
            return transition_curves(self.transitions, str(self.model.design.names.group), **options)
        return effect_curves(self.persons, **options)

    def lr_test(self, other: Results) -> InvalidTest:
        """Refused: likelihood-ratio tests need regular parameters, which those of a network are not.

        Parameters
        ----------
        other : Results

        Returns
        -------
        InvalidTest
        """
        return InvalidTest(
            "the parameters of a network are not regular: under the smaller model those of the larger one cannot be "
            "told, and the likelihood has several maxima; compare networks by their held-out errors with mm.select, "
            "and linear mixed models with mm.fit, whose lr_test knows their null distribution"
        )

    def with_cov(self, kind: str, **options: Any) -> "NMEResults":
        """The same fit; NME has one covariance, ``"nonrobust"``."""
        if kind == "nonrobust":
            return self
        raise ArgumentError(f"NME has standard errors of kind 'nonrobust' only, got {kind!r}")

    @property
    def _curve_kinds(self) -> tuple[str, ...]:
        return ("effects", "learning", *(("transitions",) if self.problem.family == "crf" else ()))

    @property
    def _saved_settings(self) -> Mapping[str, Any]:
        state = {**saved_state(self.trained, self.comparison, self.problem), "training": self.training}
        module = self.problem.network.module
        # By what a user's own network is known again: its name, and its outputs at some rows.
        known = {
            "name": type(module).__name__,
            "outputs": None if module is None else probed_outputs(self.problem, self.trained),
        }
        return {**self.model.settings, "state": state, "module": None if module is None else known}

    @staticmethod
    def _from_saved(family: Any, saved: SavedFit, context: Mapping[str, Any] | None) -> "NMEResults":
        """Results of a saved fit."""
        settings = dict(saved.settings)
        state, module = settings.pop("state", None), settings.pop("module", None)
        if not isinstance(state, dict):
            raise SavedFileError(f"a saved NME holds its network under 'state', got {type(state).__name__}")
        settings["network"] = require_module(settings.get("network"), module)
        model = family(saved.formula, saved.data, context=context, **settings)
        model.design = restored(model.design, saved)
        restored_state = read_state(state, saved.fit)
        problem = model._problem(restored_state.share, prior=float(state["prior"]))
        check_module_outputs(problem, restored_state.trained, module)
        found = restored_state
        return NMEResults(model, saved.fit, saved.cov, problem, found.trained, found.comparison, state["training"])


@dataclass(frozen=True, slots=True)
class RestoredState:
    """What a file holds beyond the common records."""

    trained: Trained
    comparison: Comparison | None
    share: float


def probed_outputs(problem: Problem, trained: Trained) -> Array:
    """Outputs of the population's network at a few fixed rows, shape (5, d)."""
    x = np.random.default_rng(0).standard_normal((1, 5, problem.network.n_in))
    with torch.no_grad():
        tensors = view_tensors(problem.network, problem.personal, problem.tensor(trained.theta), None)
        return to_array(forward(problem.network, tensors, problem.tensor(x))[0])


def require_module(given: Any, saved: Mapping[str, Any] | None) -> Any:
    """The user's own network, which must be given where the fit had one, and only there.

    Raises
    ------
    SavedFileError
    """
    if saved is not None and given is None:
        raise SavedFileError(
            f"this fit has a network of your own ({saved['name']}), whose code no file holds; pass the module as "
            f"load(..., network={saved['name']}(...)), its parameters come from the file"
        )
    if saved is None and given is not None:
        raise SavedFileError("network= was given, but this fit has a built-in network; leave it out")
    return given


def check_module_outputs(problem: Problem, trained: Trained, saved: Mapping[str, Any] | None) -> None:
    """Refuse a module that is not the one of the fit.

    Raises
    ------
    SavedFileError
        If it has other parameters, or other outputs at those of the fit.
    """
    if saved is None:
        return
    same = len(trained.theta) == problem.network.n_parameters
    if not same or not np.allclose(probed_outputs(problem, trained), saved["outputs"], rtol=1e-6, atol=1e-8):
        why = "gives other outputs" if same else "has another number of parameters"
        raise SavedFileError(
            f"the module {type(problem.network.module).__name__} is not the network of the fit ({saved['name']}): it "
            f"{why}; pass one that was made in the same way"
        )


def saved_state(trained: Trained, comparison: Comparison | None, problem: Problem) -> dict[str, Any]:
    """A fit's arrays as plain lists."""
    return {
        "theta": trained.theta,
        "loading": trained.loading,
        "z": trained.z,
        "s": trained.s,
        "sigma2": trained.sigma2,
        "loglik": trained.loglik,
        "trace": asdict(trained.trace),
        "share": problem.share,
        "prior": problem.prior,
        "comparison": None if comparison is None else asdict(comparison),
        "further": [{"loading": mine.loading, "z": mine.z} for mine in trained.further],
    }


def read_state(state: Mapping[str, Any], fit: EMFit) -> RestoredState:
    """The arrays of a fit from plain lists."""
    size = len(state["s"])  # zero for a generic network, where a list of empty rows says how many there are
    z, loading = (np.asarray(state[k], dtype=float).reshape(len(state[k]), size) for k in ("z", "loading"))
    trace = state["trace"]
    trained = Trained(
        theta=np.asarray(state["theta"], dtype=float),
        loading=loading,
        z=z,
        s=np.asarray(state["s"], dtype=float),
        sigma2=float(state["sigma2"]),
        loglik=float(state["loglik"]),
        trace=Trace(
            np.asarray(trace["train"], dtype=float),
            np.asarray(trace["validation"], dtype=float),
            np.asarray(trace["variance"], dtype=float),
            int(trace["best"]),
        ),
        converged=fit.converged,
        flags=fit.flags,
        further=tuple(
            LevelEffects(*(np.asarray(g[k], dtype=float) for k in ("loading", "z"))) for g in state["further"]
        ),
    )
    compared = state["comparison"]
    comparison = None
    if compared is not None:
        comparison = Comparison(
            tuple(compared["models"]),
            np.asarray(compared["errors"], dtype=float),
            compared["n_rows"],
            compared["measure"],
        )
    return RestoredState(trained, comparison, float(state["share"]))


COLLAPSED = 1.001e-8  # residual variance beside that of the response, just above where estimators stop
WARNINGS: Mapping[str, type[MixmoeWarning]] = {
    "not_converged": ConvergenceWarning,
    "not_replicated": ConvergenceWarning,
    "not_finite": ConvergenceWarning,
    "separated": ConvergenceWarning,
    "degenerate": DegeneracyWarning,
    "boundary": BoundaryWarning,
}


def unconverged(trained: Trained, gain: float | None) -> Flag:
    """What a reader must know of a fit that did not arrive; `gain` is what it has left to gain, if that is much."""
    count = len(trained.trace.train)
    epochs = f"{count} epoch{'' if count == 1 else 's'}"
    if gain is None:
        return Flag("not_converged", f"the variances still moved after {epochs}", "give more epochs")
    return Flag(
        "not_converged",
        f"after {epochs} the log-likelihood could still rise by {gain:.1f} or more, so that it and AIC and BIC "
        "are not those of the maximum",
        "give more epochs, or choose the epoch by validation=",
    )


def collapsed(ratio: float) -> Flag:
    """What a reader must know of a fit without residuals, whose deviation is `ratio` of that of the response."""
    return Flag(
        "degenerate",
        f"the residual standard deviation collapsed to {ratio:.1g} of that of the response: the network fits all rows "
        "but exactly, where the likelihood is unbounded, so that likelihood and standard errors mean nothing",
        "remove inputs that are functions of the response, use fewer hidden units or fewer person effects, or choose "
        "the epoch by validation=",
    )


def vanished(names: Sequence[str]) -> tuple[Flag, ...]:
    """A flag if standard deviations between persons, or levels of another grouping, are zero."""
    if not names:
        return ()
    what = "deviation" if len(names) == 1 else "deviations"
    return (
        Flag(
            "boundary",
            f"zero is the estimate of the standard {what} {', '.join(names)}, the end of the space, where there is no "
            "standard error: the data show no such differences",
            "leave these effects out of re:",
        ),
    )


def unreplicated(problem: Problem, starts: Starts) -> tuple[Flag, ...]:
    """A flag if only one of several starts reached the best log-likelihood.

    Notes
    -----
    Where validation rows choose the epoch, no start ends at a maximum, and none can be reached twice.
    """
    if starts.n_starts < 2 or starts.n_replicated > 1 or problem.validation.n_rows:
        return ()
    others = ", ".join(f"{starts.logliks[0] - loglik:.3g}" for loglik in starts.logliks[1:])
    return (
        Flag(
            "not_replicated",
            f"only one of {starts.n_starts} starts reached the best log-likelihood, and the others that were fitted to "
            f"the end are {others} below it: there may be a higher one",
            f"give more starts, for instance starts={4 * starts.n_starts}, or fewer hidden units",
        ),
    )
