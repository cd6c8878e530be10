"""NME: formula, data and architecture of a network with person-specific parameters."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import pandas as pd

from mixmoe.arguments import checked_choice, checked_rng, seed_of
from mixmoe.design.beside import with_columns
from mixmoe.design.design import Design, build_design
from mixmoe.design.formula import MoEFormula
from mixmoe.errors import ArgumentError, MixmoeWarning, warn
from mixmoe.families import FamilySpec
from mixmoe.inference.uncertainty import ParamCov
from mixmoe.mixture.estimate import EMFit, Flag, ParamLayout, Starts
from mixmoe.neural.architecture import architecture, checked_widths, response_kind
from mixmoe.neural.batches import (
    Scaling,
    build_scaling,
    gap_flag,
    gap_rows,
    named_inputs,
    split_rows,
)
from mixmoe.neural.blocks import load_torch, one_thread, select_device
from mixmoe.neural.components import Estimates, build_layout, estimates
from mixmoe.neural.displays import Comparison, HeldOut, checked_starts, compare, fit_starts, held_out
from mixmoe.neural.estimators.last_layer import prior_of
from mixmoe.neural.estimators.linearised import (
    all_rows_loglik,
    build_control,
    checked_share,
    far_from_maximum,
    validation_share,
)
from mixmoe.neural.estimators.trained import Estimator, Grouping, Problem, Trained
from mixmoe.neural.groupings import (
    Levels,
    check_crossed,
    check_last_only,
    largest_first,
    layer_names,
    level_codes,
    levels_of,
)
from mixmoe.neural.law_parameters import at_limit
from mixmoe.neural.marginal_likelihood import shrunken_flags
from mixmoe.neural.network import Network
from mixmoe.neural.personal_layers import Personal, select_personal
from mixmoe.neural.refusals import (
    check_gate,
    check_magnitudes,
    check_moves,
    check_persons,
    check_response,
    check_rows,
    check_within,
    checked_cov,
    checked_formula,
    checked_moves,
    chosen_family,
    refuse_gate,
)
from mixmoe.neural.response_law import Family, asked_family
from mixmoe.neural.results import COLLAPSED, WARNINGS, NMEResults, collapsed, unconverged, unreplicated, vanished
from mixmoe.responses.offsets import warn_of_offset

LACKS: Mapping[str, str] = {  # what a network has not, and why
    "HasScores": "the parameters of a network are not regular; refit without the persons in question",
    "HasGate": "a network has no gate; predict() and plot('effects') show what inputs do",
    "HasLikelihood": "the parameters of a network are not regular, so that none can be profiled",
    "HasErrorCovariance": "its errors have no serial correlation",
    "cluster": "its standard errors are those of the model, with persons as the independent units, and there "
    "is no sandwich; name in re: what is independent",
    "trials": "its responses are numbers, categories or states of single rows; give each trial a row",
    "time": "rows of a person are ordered by the section seq:",
    "HasExperts": "a network has no experts that persons could belong to; compare networks on held-out rows "
    "with mixmoe.select",
    "HasTerms": "the weights of hidden layers are no coefficients of terms; plot('effects') shows inputs",
    "HasNewLikelihood": "the likelihood of new rows is not computed; validate() and mixmoe.select have "
    "the error on held-out rows",
}


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate of `mixmoe.select`.

    Attributes
    ----------
    results : NMEResults
        Of all rows.
    held_out : HeldOut
        Of a fit without the rows held out.
    """

    results: NMEResults
    held_out: HeldOut


class NME:
    """A network in which chosen parameters differ between persons.

    ``theta_i = theta + eta_i`` on the tensors named in ``re:``, ``eta_i ~ N(0, Sigma)``, and the response of row j of
    person i is distributed around the output of the network with her parameters; for sequences of states the network
    gives the emission scores of a linear-chain conditional random field (CRF), whose transition scores may be personal.

    Parameters
    ----------
    formula : str
        ``"y ~ x1 + x2 | re: (last | id)"``. Left of the bar in ``re:``, joined by ``+``: ``first``, ``last``, ``all``,
        ``bias``, ``layer[k]``, single tensors such as ``layer1.bias``, ``transitions``, or 0 for a generic network; in
        a linear network with a Gaussian response ``last[1, x1]`` for the intercept and the slopes of some inputs only,
        and in any ``last[1]`` for its intercept. Several groupings are brackets joined by ``+``, ``(last | person) +
        (last[1] | culture)``, and ``(last[1] | person / site)`` are those of persons and of sites within persons.
        ``gate: age`` names covariates of persons that the transitions of a CRF go with, see
        `NMEResults.transition_tests`. ``seq: day`` orders rows within a person, ``seq: day / session`` separates
        sequences. The network always has biases, so the intercept of the formula is implied. Inputs are standardised
        inside the fit.
    data : DataFrame (pandas, or what narwhals reads: polars, pyarrow ...) or mapping of columns
    hidden : tuple of int, optional
        Widths of the hidden layers; ``()`` for a linear model. Default: ``(10,)``.
    activation : str
        ``tanh``, ``relu``, ``elu``, ``gelu``, ``silu``, ``softplus`` or ``sigmoid``.
    network : torch.nn.Module, optional
        A network of your own from standardised inputs ``(rows, p)`` to outputs ``(rows, d)``; then ``re:`` names its
        parameters (``fc1.weight``, ``fc1``, patterns with ``*`` in backticks), or as above, layers being counted in the
        order in which the module registers them. Each row by itself and without chance: no dropout, no batch norm.
    family : {"auto", "gaussian", "binary", "multiclass", "crf", "poisson", "negbinomial", "ordinal"}
        ``"auto"``: numbers are Gaussian (only 0 and 1: binary); text, categories and booleans binary or multi-class,
        with ``seq:`` a CRF. Counts have a log link; those of ``"negbinomial"`` the variance ``mu + mu^2 / theta``.
        ``"ordinal"``: ordered categories (an ordered Categorical, or numbers) by proportional odds, ``logit P(y <= j) =
        cut_j - output``. ``| sigma: z`` makes the log residual standard deviation of a Gaussian response, or the log
        theta of ``"negbinomial"``, linear in covariates.
    estimator : {"laplace", "sgd"}
        Linearised Laplace (exact for effects on the last layer with a Gaussian response), or the published rule.
    cov : {"diagonal", "tensor", "full"} or int, optional
        Covariance of the effects: a variance per parameter (also written ``re: (last || id)``), per tensor, full (last
        layer only), or of that rank. Default: full where it can be, else diagonal.
    device : str
        ``"cpu"``, ``"cuda"``, ``"auto"`` ...
    transitions : mapping, optional
        Transitions of a CRF whose score is given and the same for everybody, ``{"low": {"high": None, "low": 0.0}}``:
        None where there is no such transition, else the score, beside which the others are estimated.
    offset : str, array or Series, optional
        Added to the output of the network, a column or one value for each row of the data: of counts the log of the
        exposure; also for two categories and ordered ones.
    weights : str, array or Series, optional
        Of the log-densities of the rows, of categories and counts: those of classes to make up for rare ones, or those
        of persons in all their rows. Standard errors take them for counts of rows. Rows of weight zero are left out.
    context : mapping, optional
        Functions and constants the formula may use.
    formula_engine : {"formulaic", "patsy"}

    Raises
    ------
    MissingExtraError
        If torch is not installed.
    FormulaError, DesignError, ArgumentError

    Notes
    -----
    Maximum likelihood. Several grouping factors, crossed or nested, are for effects on the last layer of a Gaussian
    response, whose likelihood is exact, and a linear network is lme4's model; the units, which BIC and held-out rows
    count by, are the levels of the column that has most. In a network with hidden layers and effects on the last one of
    a Gaussian response the weights of hidden layers and the loadings of the effects have a standard normal prior,
    without effects all weights of a network with hidden layers, unless `fit` is given a ``weight_decay``; the
    log-likelihood printed is that at such estimates, without the prior. Below effects on the last layer the
    population's weights there have a normal prior of variance 9 and are integrated out. A linear network of categories,
    counts, or a Gaussian response whose variance differs between rows,
    with at most six personal parameters, or of a CRF with at most sixteen and a few thousand rows, ends at the maximum
    of the marginal likelihood, by adaptive quadrature; others of these with person effects are fitted by penalised
    likelihood, whose coefficients are smaller. With a variance per parameter (``"diagonal"``, or the double bar in
    ``re:``) the effects of a linear network are independent on the user's scale, as for lme4's double bar; where
    independence is on standardised inputs the correlations that follow are reported. Rows of a CRF whose state is
    missing stay, and the likelihood is the sum over their states; other families leave rows without a response out. AIC
    and BIC charge all parameters of the network, of a CRF those that sequences can tell, and all free ones of the
    covariance of the effects. A fit is said to have converged if the variances are settled and the log-likelihood has
    less to gain than half a standard error per parameter would bring. With ``validation=`` it is that of all rows, at
    parameters estimated without the validation rows. Time order within a person, for held-out rows, is that of
    ``seq:``, else that of the rows in the data.

    References
    ----------
    Woertwein, Allen, Sheeber, Auerbach, Cohn & Morency (2023), ICMI, arXiv:2306.08149. Lindstrom & Bates (1990),
    Biometrics 46, 673-687. Lafferty, McCallum & Pereira (2001), ICML.
    """

    spec = FamilySpec(
        name="NME",
        title="A neural mixed-effects model: a network some of whose parameters differ between persons.",
        estimation="Maximum (approximate) marginal likelihood of a network with person effects.",
        asked_by="formulas with hidden= or network=, or with a section 'seq: day'",
        section="seq",
        markers=("hidden", "network"),
        listed=("activation", "estimator", "cov", "family", "transitions", "lr", "annealing", "weight_decay"),
        has_experts=False,
        effects=r"first|last(\[.*\])?|all|bias|transitions|layer\[\d+\]|layer\d+(\.\w+)?",
        effects_hint="person-specific layers belong to networks: give hidden=, such as hidden=(10,), or network=",
        packages=("torch",),
        lacks=LACKS,
    )
    n_experts = None

    def __init__(
        self,
        formula: str | MoEFormula,
        data: Any,
        *,
        hidden: Sequence[int] | None = None,
        activation: str = "tanh",
        network: Any = None,
        family: str = "auto",
        estimator: Estimator = "laplace",
        cov: str | int | None = None,
        device: str = "cpu",
        transitions: Mapping[Any, Mapping[Any, float | None]] | None = None,
        offset: Any = None,
        weights: Any = None,
        context: Mapping[str, Any] | None = None,
        formula_engine: str = "formulaic",
    ) -> None:
        checked_choice(estimator, "estimator", get_args(Estimator))
        widths = checked_widths(hidden, network)
        data, beside = with_columns(data, {"offset": offset, "weights": weights})
        self.formula = largest_first(checked_formula(formula), data)
        self.family: Family = chosen_family(family, self.formula, data)
        refuse_gate(self.formula, self.family)
        load_torch()  # what is wrong with the call is told first, as torch would not mend it
        self.device, self.estimator = select_device(device), estimator
        self.design: Design = build_design(
            self.formula,
            data,
            context=context,
            engine=formula_engine,  # type: ignore[arg-type]
            response=response_kind(self.family),
            aux={name: column for name, column in beside.items() if column is not None},
            random_columns=False,
            partial_response=self.family == "crf",
        )
        check_response(self.design, self.family)
        warn_of_offset(self.design, self.family)
        check_gate(self.design, self.family)
        check_magnitudes(self.design, self.family)
        self.levels: tuple[Levels, ...] = levels_of(self.design)
        self.scaling: Scaling = build_scaling(self.design, self.family)
        moves = checked_moves(transitions, self.design, self.family)
        asked = architecture(self.design, self.family, self.scaling, widths, activation, network)
        self.network: Network = replace(asked, moves=moves)
        check_moves(self.design, self.network)
        names = named_inputs(self.design, self.scaling, self.network, self.family)
        self.personal, *others = (
            select_personal(self.network, layer_names(term), self.formula.text, names)
            for term in (self.formula.random, *self.formula.further)
        )
        check_persons(self.design, self.personal)
        check_rows(self.design, self.personal)
        check_within(self.design, self.family, self.network, self.personal)
        codes = level_codes(self.levels, self.design)
        bare = Problem(
            self.family,
            self.network,
            self.personal,
            *split_rows(self.design, self.family, self.scaling, codes, self.device),
            self.design.n_units,
            cov="full",
            device=self.device,
            origin=self.scaling.mean / self.scaling.sd,
            published=estimator == "sgd",
        )
        self.problem: Problem = with_covariances(bare, others, self.formula, self.levels, cov)
        self.cov, self.further = self.problem.cov, self.problem.further
        self.layout: ParamLayout = layout_of(self.problem, self.scaling, self.design)
        self.settings: Mapping[str, Any] = {
            "hidden": None if network is not None else list(widths),
            "activation": activation,
            "family": asked_family(self.family),
            "estimator": estimator,
            "cov": self.cov,
            **beside,
            "transitions": None if transitions is None else plain_moves(transitions),
            "formula_engine": formula_engine,
        }

    def __repr__(self) -> str:
        return f"<NME {self.formula.text!r}, {self.design.n_units} persons, {self.personal.q} personal parameters each>"

    @property
    def frame(self) -> pd.DataFrame:
        """The columns of the data in use, complete rows, sorted by person."""
        return self.design.frame

    def fit(
        self,
        *,
        epochs: int | None = None,
        lr: float = 0.01,
        annealing: float | None = None,
        penalty: float | None = None,
        weight_decay: float | None = None,
        batch_size: int | None = None,
        validation: float | None = None,
        patience: int | None = None,
        baselines: bool = True,
        holdout: float = 0.2,
        rng: Any = None,
        starts: int = 1,
        progress: bool | None = None,
    ) -> NMEResults:
        """Estimates of population parameters, person effects and variances.

        Parameters
        ----------
        epochs : int, optional
            Passes over the data at most; 1500, CRF 400, ``"sgd"`` 5000. Of ``"laplace"`` with effects on the
            last layer (Gaussian) or with none, a third are steps of Adam, the others of L-BFGS, which end at the
            maximum; with effects elsewhere, `validation` or `batch_size` all are of Adam.
        lr : float
            Learning rate; constant, then decaying to zero (``"laplace"``), or constant (``"sgd"``).
        annealing : float, optional
            Factor by which the variances of ``"sgd"`` shrink per epoch, the alpha of the paper; 0.97.
        penalty : float, optional
            Weight of the penalty on the effects of ``"sgd"`` (lambda of the paper); 1. ``"laplace"``, where it is 1 by
            the model, uses neither, and warns where they are given.
        weight_decay : float, optional
            Ridge penalty on the network's parameters, per row. By default none but the priors of networks with hidden
            layers that the notes of the class tell of (``"laplace"``): with few rows plain likelihood has no maximum
            there, or one that predicts badly; 0 for plain likelihood.
        batch_size : int, optional
            Persons per step; default: all. Batches are drawn once and visited in random order each epoch. Not for the
            exact likelihood of effects on the last layer, which needs everyone at each step.
        validation : float, optional
            Share of each person's last rows on which the best epoch is chosen; these rows are not used otherwise, but
            for the person effects once the best epoch is known. Default: 0, for ``"sgd"`` 0.2.
        patience : int, optional
            Stop after so many epochs without improvement; 400 for ``"sgd"``.
        baselines : bool
            Whether to compare with the generic network, one per person and network + LME on held-out rows: four fits.
        holdout : float
            Share of each person's last rows held out for that comparison.
        rng : int, numpy.random.Generator or None
        starts : int
            Random starts of the hidden layers, for ``"laplace"``. More than four are fitted for a fifth of the epochs,
            and the best four of them to the end; `summary` says how many of these reached the best one. A linear
            network and one of your own have one start.
        progress : bool, optional
            Progress bar; by default in a terminal, and if the fit takes more than a few seconds.

        Returns
        -------
        NMEResults

        Warns
        -----
        ConvergenceWarning
            If the variances still moved, or the loss was lost; also in ``results.flags``.
        """
        seed = int(checked_rng(rng).integers(2**32))
        share = validation_share(validation, self.estimator, patience)
        training = {
            "epochs": epochs,
            "lr": lr,
            "annealing": annealing,
            "penalty": penalty,
            "weight_decay": weight_decay,
            "batch_size": batch_size,
            "patience": patience,
        }
        control = build_control(self.estimator, self.problem, **training, progress=progress)
        held_out = checked_share(holdout, "holdout", zero=False)
        prior = prior_of(self.problem, control)
        problem = self._problem(share, prior=prior)
        found = fit_starts(problem, control, self.estimator, checked_starts(starts, self.estimator), seed)
        trained = found.trained
        comparison = None
        if baselines and self.personal.q and (apart := self._problem(held_out, prior=prior)).validation.n_rows:
            comparison = compare(apart, control, self.estimator, seed, self.scaling.y_sd**2)
        gain = far_from_maximum(problem, control, trained) if self.estimator == "laplace" else None
        trained = replace(trained, converged=trained.converged and gain is None)
        if problem.validation.n_rows and self.estimator == "laplace":
            trained = replace(trained, loglik=all_rows_loglik(self.problem, trained))
        estimated = estimates(problem, trained, self.scaling, errors=self.estimator == "laplace")
        zero = [self.layout.names[k] for k in estimated.zero]
        told = told_flags(self.design, problem, trained, gain)
        flags = (*trained.flags, *told, *vanished(zero), *unreplicated(problem, found.starts))
        for flag in flags:
            warn(flag.message, WARNINGS.get(flag.code, MixmoeWarning))
        trained = replace(trained, flags=flags)
        training |= {"validation": validation, "starts": starts}
        known = inspect.signature(self.fit).parameters
        given = {name: value for name, value in training.items() if value != known[name].default}
        found_from = replace(found.starts, seed=seed_of(rng))
        return self.results(problem, trained, estimated, comparison, found_from, given)

    def validate(
        self, *, holdout: float = 0.2, validation: float | None = None, rng: Any = None, **options: Any
    ) -> HeldOut:
        """Error on each person's last rows of a fit to the others: what `mixmoe.select` compares.

        Parameters
        ----------
        holdout : float
            Share of each person's (or sequence's) last rows.
        validation : float, optional
            Share of the rows before them on which the best epoch is chosen, as in `fit`.
        rng : int, numpy.random.Generator or None
        **options
            ``epochs=``, ``lr=``, ``annealing=``, ``penalty=``, ``weight_decay=``, ``batch_size=``, ``patience=``,
            ``starts=`` and ``progress=`` of `fit`.

        Returns
        -------
        HeldOut
            Mean squared error, or negative log-likelihood per row, with its standard error.

        Raises
        ------
        ArgumentError
            If there are no rows to hold out: where each person has one.
        """
        known = set(inspect.signature(self.fit).parameters) - {"baselines"}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ArgumentError(f"validate has no option {unknown[0]!r}; it has {', '.join(sorted(known))}")
        held = checked_share(holdout, "holdout", zero=False)
        share = validation_share(validation, self.estimator, options.get("patience"))
        n_starts = checked_starts(options.pop("starts", 1), self.estimator)
        control = build_control(self.estimator, self.problem, **{"progress": None, **options})
        problem = self._problem(share, holdout=held, prior=prior_of(self.problem, control))
        test = self._problem(held).validation
        if not test.n_rows:
            raise ArgumentError(f"holdout={holdout} leaves no row to hold out: the persons have too few rows")
        seed = int(checked_rng(rng).integers(2**32))
        trained = fit_starts(problem, control, self.estimator, n_starts, seed).trained
        return held_out(replace(problem, validation=test), trained, self.scaling.y_sd**2)

    def tried(self, *, holdout: float = 0.2, rng: Any = None, **options: Any) -> Tried:
        """A fit to all rows, and the error of one without the last rows of each person; for `mixmoe.select`.

        Parameters
        ----------
        holdout : float
        rng : int, numpy.random.Generator or None
            Both fits have the same start.
        **options
            Of `fit`, without ``baselines=`` and ``holdout=``.

        Returns
        -------
        Tried
        """
        seed = int(checked_rng(rng).integers(2**32))
        with one_thread():  # so that worker processes find the same digits
            results = self.fit(rng=seed, baselines=False, **options)
            return Tried(results, self.validate(holdout=holdout, rng=seed, **options))

    def results(
        self,
        problem: Problem,
        trained: Trained,
        found: Estimates,
        comparison: Comparison | None,
        starts: Starts,
        training: Mapping[str, Any],
    ) -> NMEResults:
        """Results from estimates.

        Parameters
        ----------
        problem : Problem
            With the rows that `trained` was fitted to.
        trained : Trained
        found : Estimates
        comparison : Comparison or None
        starts : Starts
            On the scale of the network.
        training : mapping
            Options of `fit` that are not the default.
        """
        record = record_of(self, trained, found, starts)
        held = "hidden layers held" if self.network.hidden or self.network.module is not None else ""
        cov = ParamCov(found.covariance, "nonrobust", held if self.estimator == "laplace" else "the sgd rule has none")
        return NMEResults(self, record, cov, problem, trained, comparison, training)

    def covariance(self, fit: EMFit, kind: str, **options: Any) -> ParamCov:
        """Refused: the covariance of a network's estimates comes with its fit."""
        raise ArgumentError(f"NME has standard errors of kind 'nonrobust' only, got {kind!r}; use fit.cov")

    @classmethod
    def from_saved(cls, saved: Any, context: Mapping[str, Any] | None) -> NMEResults:
        """Results of a saved fit."""
        return NMEResults._from_saved(cls, saved, context)

    def _problem(self, share: float, holdout: float = 0.0, prior: float = 0.0) -> Problem:
        """The last `share` of each person's (or sequence's) rows set aside, and `holdout` before these left out."""
        codes = level_codes(self.levels, self.design)
        rows = split_rows(self.design, self.family, self.scaling, codes, self.device, share, holdout)
        return replace(self.problem, train=rows[0], validation=rows[1], share=share, prior=prior)


def with_covariances(
    bare: Problem, others: Sequence[Personal], formula: MoEFormula, levels: Sequence[Levels], cov: Any
) -> Problem:
    """A problem with the covariances of the effects of all groupings.

    Parameters
    ----------
    bare : Problem
        Of the first grouping.
    others : sequence of Personal
        What differs between the levels of the further ones.
    formula : MoEFormula
    levels : sequence of Levels
        Of the further ones.
    cov : str, int or None
        As asked for.

    Raises
    ------
    ArgumentError, FormulaError
    """
    parts = [bare, *(replace(bare, personal=mine) for mine in others)]
    if others:
        check_last_only(parts, formula, "sgd" if bare.published else "laplace")
    terms = (formula.random, *formula.further)
    first, *covs = (checked_cov(cov, *pair, bool(others)) for pair in zip(terms, parts, strict=True))
    further = tuple(
        Grouping(known.term.name, mine, of, len(known.labels))
        for known, mine, of in zip(levels, others, covs, strict=True)
    )
    problem = replace(bare, cov=first, further=further)
    check_crossed(problem)
    return problem


def layout_of(problem: Problem, scaling: Scaling, design: Design) -> ParamLayout:
    """Names of the parameters, by the columns of the design."""
    names = design.names
    return build_layout(
        problem,
        scaling,
        names.expert,
        names.group or "row",
        tuple(str(v) for v in design.response_levels or ()),
        tuple(names.gate[k] for k in scaling.gate_columns),
        names.sigma,
    )


def record_of(model: NME, trained: Trained, found: Estimates, starts: Starts) -> EMFit:
    """What all families keep of a fit, log-likelihoods on the user's scale."""
    shift = model.design.n * np.log(model.scaling.y_sd)
    return EMFit(
        params=found.values,
        loglik=trained.loglik - shift,
        trace=trained.trace.train,
        n_iter=len(trained.trace.train),
        n_evaluations=len(trained.trace.train),
        converged=trained.converged,
        responsibilities=np.ones((model.design.n_units, 1)),
        starts=replace(starts, logliks=starts.logliks - shift, ends=starts.ends - shift),
        flags=trained.flags,
    )


def told_flags(design: Design, problem: Problem, trained: Trained, gain: float | None) -> list[Flag]:
    """What a reader must know beyond the optimiser's own flags.

    Parameters
    ----------
    design : Design
    problem : Problem
    trained : Trained
    gain : float or None
        Log-likelihood that the fit has left to gain, if that is much.
    """
    told = trained.converged or {"not_converged", "separated"} & {flag.code for flag in trained.flags}
    flags = [] if told else [unconverged(trained, gain)]
    flags += shrunken_flags(problem, trained)
    flags += at_limit(problem, trained)
    if problem.family == "gaussian" and trained.sigma2 <= COLLAPSED:
        flags.append(collapsed(float(np.sqrt(trained.sigma2))))
    single = int((design.counts == 1).sum())
    if single and problem.personal.q:
        flags.append(Flag("one_row", f"{single} of {design.n_units} persons have one row; they tell little"))
    gaps = gap_rows(design) if problem.family == "crf" else 0
    if gaps:
        flags.append(gap_flag(gaps, design.formula))
    return flags


def plain_moves(given: Mapping[Any, Mapping[Any, float | None]]) -> dict[str, dict[str, float | None]]:
    """Given transitions as they are written into files."""
    return {str(a): {str(b): None if v is None else float(v) for b, v in to.items()} for a, to in given.items()}
