"""VCMoE: formula, data and settings of a varying-coefficient mixture of experts."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array, BoolArray, IntArray
from mixmoe.arguments import checked_choice, checked_count, checked_positive, checked_rng
from mixmoe.design.beside import with_columns
from mixmoe.design.design import Design, build_design
from mixmoe.design.formula import MoEFormula
from mixmoe.design.frame import units_of
from mixmoe.errors import ArgumentError, DesignError
from mixmoe.inference.uncertainty import ParamCov
from mixmoe.loading import restored
from mixmoe.mixture.estimate import EMFit, Flag, seeded, warn_flags
from mixmoe.mixture.gate import PseudoUnits, checked_gate_penalty
from mixmoe.output.saved import SavedFit
from mixmoe.responses.distribution import Family
from mixmoe.responses.exponential import family_named
from mixmoe.responses.offsets import warn_of_offset
from mixmoe.varying.bandwidth import (
    Bandwidths,
    BandwidthSearch,
    Space,
    forced_flag,
    search_bandwidth,
    smallest_usable,
    usable_rule,
)
from mixmoe.varying.fitted import SPEC, FittedVCMoE, checked_kind, tabulated_points
from mixmoe.varying.function_frames import checked_index_name
from mixmoe.varying.identifiability import CATEGORIES, n_clusters
from mixmoe.varying.joint_em import (
    Control,
    Run,
    Shaped,
    checked_tails,
    fit_shape,
    on_grid,
    shape_flag,
    shape_of,
    with_shape,
)
from mixmoe.varying.problem import Problem, Slots, build_problem, centred, nearest_widths
from mixmoe.varying.results import VCMoEResults
from mixmoe.varying.setup import (
    FEWEST_COMPARED,
    FEWEST_POINTS,
    Sorted,
    WindowFault,
    check_designs,
    check_errors,
    checked_bandwidth,
    checked_candidates,
    checked_floor,
    checked_folds,
    checked_grid,
    checked_index,
    checked_span,
    checked_varying_formula,
    constant_slots,
    default_grid,
    sorted_rows,
    window_fault,
)
from mixmoe.varying.smoothing import From, maximise
from mixmoe.varying.windows import LINE


class VCMoE:
    """Mixture of experts whose coefficients are smooth functions of an index.

    At index value u an expert is a generalised linear model and the gate a multinomial logit, with coefficients::

        P(C = c | x, u) = softmax_c(x' g_c(u)),  g_1 = 0
        y | C = c  ~  family with linear predictor z' a_c(u) + offset and dispersion d_c(u)

    Parameters
    ----------
    formula : str
        ``"y ~ z1 + const(z2) | gate: const(1) + x1 | vary: u"``; ``const(...)`` marks coefficients held constant.
        ``vary: cyclic(hour, 24)`` is an index on a circle with a period, see Notes.
    data : DataFrame (pandas, or what narwhals reads: polars, pyarrow ...) or mapping of columns
        Never changed. Rows with missing values are left out with a warning.
    experts : int
        Number of experts, K; 1 is the ordinary varying-coefficient model.
    family : {"gaussian", "binomial", "poisson", "negbinomial", "zipoisson", "zinegbinomial"}
        Identity, logit and log links. Of zero-inflated counts (Lambert 1992) each expert has a probability of a certain
        zero, ``zeros1`` ..., a function of the index in the place of a dispersion; the coefficients are those of the
        other counts, expected responses those of all. The theta of ``"zinegbinomial"`` is one number for all experts.
        Other names: ``"negativebinomial"``, ``"zip"``, ``"zinb"``.
    bandwidth : float, "cv" or "rule"
        Half-width of the Epanechnikov kernel in units of the index; ``inf`` holds everything constant. By default
        chosen by cross-validation when the model is fitted. ``"rule"`` is a rule of thumb from spread and number of
        rows, widened until every window along the index holds enough rows; a skewed index is better transformed.
    span : float or "cv", optional
        Share of the rows in each window, above 0 and at most 1, as in loess, in the place of a bandwidth: a window
        reaches to the nearest rows that are this share of all, so that it is narrow where rows are dense and wide where
        they are thin. ``"cv"``: chosen by cross-validation. The grid then has `n_grid` quantiles of the index, and more
        points between distant ones.
    gate_bandwidth : float or "cv", optional
        Of the gate, if it is to differ; with ``"cv"`` chosen by cross-validation beside that of the experts, which is
        found first. ``inf`` holds one of them constant.
    dispersion : {"varying", "const"}
        Whether sigma, theta or the probability of a certain zero of an expert is a function of the index.
    errors_dist : {"normal", "t"}
        Of a Gaussian response; ``"t"`` for outliers. Sigma is then a scale: the standard deviation is
        ``sqrt(df / (df - 2))`` times as large.
    errors_df : float, optional
        Degrees of freedom of t errors, the same for all experts; by default estimated, which counts as one parameter,
        and 5 in the search of a bandwidth. Standard errors and bands take them as known.
    grid : array-like, optional
        Grid points, covering the range of the index; by default `n_grid` equally spaced ones. Not for a circle.
    n_grid : int, optional
        By default 50, or more where the bandwidth is narrow: three for each bandwidth.
    trials, offset, weights, cluster : str, array or Series, optional
        Columns of the data, or one value for each row of the data (a Series is aligned by its index): number of trials
        of a binomial response; offset of the linear predictor; weights of the rows; independent units for standard
        errors, bands and cross-validation, see Notes.
    estimate : {"shrunken", "local", "joint"}
        Functions that are reported. ``"local"``: maxima of the local likelihoods next to where the joint EM ended, to
        which the pointwise theory applies; standard errors and bands rest on these whatever is reported.
        ``"shrunken"``: each value is an average of the local lines of its neighbours, each function is drawn towards a
        line by the share of its bends that noise would explain (double smoothing, James-Stein), and a third of the
        result is a smoothing spline through the same maxima (empirical Bayes); with one expert the same as
        ``"joint"``. ``"joint"``: functions of the joint EM itself, which smooths more at the same bandwidth: less
        variance and more bias where experts overlap.
    gate_penalty : {"firth"} or float, optional
        Log prior of the gate that keeps its coefficients finite where a covariate separates experts, as in `MEMoE`:
        ``"firth"`` is Jeffreys' prior of each local gate, a number n the Bayes constant of Latent GOLD, that many rows
        more (of weight one), spread evenly over rows and experts. At an infinite bandwidth both are those of `MEMoE`.
        By default none. Functions, standard errors and bands are those of the penalised local likelihoods,
        log-likelihood and criteria are without it.
    sigma_floor : float
        Smallest sigma as a fraction (below 1) of the residual standard deviation of one regression for all rows.
    context : mapping, optional
        Functions and constants the formula may use; nothing else of the caller is visible.
    formula_engine : {"formulaic", "patsy"}

    Raises
    ------
    FormulaError, DesignError, ArgumentError
        If formula, data or arguments do not fit; the message names column and row or the value.

    Notes
    -----
    Weights multiply the log-densities of their rows, in `llf` too: estimates are those of a row that is there w times.
    For inference it is one draw from the model, so that only ratios of weights matter: standard errors and bands do not
    depend on the units of the weights, and `test_varying` and the information criteria take weights that sum to the
    effective number of rows, ``(sum w)^2 / sum w^2``. Repeat a row that stands for several units instead of weighting
    it. Rows of weight zero are left out. (How far ``estimate="shrunken"`` draws functions towards lines does depend
    on the units: a weight of w is taken for w rows.)

    With ``cluster=`` the estimates are those of independent rows, standard errors and bands those of independent
    clusters. `n_units` and the N of BIC and AICc are numbers of clusters; tests that need the distribution of all rows
    together are refused.

    With ``vary: cyclic(hour, 24)`` distances are the shorter ones round the circle, so that functions close and have no
    ends: the estimator is that of data repeated with the period for ever. Index values count modulo the period, in
    predictions too. The bandwidth is at most half the period, the grid goes once round from a place that the data
    single out, and functions are drawn towards constants instead of lines. Where the circle has its origin changes
    nothing.

    One responsibility per row, shared by all grid points, so that experts keep their labels along the index. Log sigma
    is fitted locally linear, log theta locally constant; where one of them runs to its limit in a local likelihood, it
    keeps the value of the joint EM. With ``estimate="shrunken"`` errors are smaller than those of a fit of each grid
    point alone with the same bandwidth (by 3 to 31 % over simulated sets of 1000 rows in 17 of 18 designs); the
    standard errors of the tables are those of the maxima, which it does not lower. Another reference level of a factor
    shrinks other functions, and moves them a little; another origin or unit of a covariate does not.

    References
    ----------
    Zhao, Q., Greenwood, C. M. T. and Zhang, Q. (2026), arXiv 2601.01699. Huang, M., Li, R. and Wang, S. (2013), JASA.
    """

    spec = SPEC

    def __init__(
        self,
        formula: str | MoEFormula,
        data: Any,
        experts: int = 2,
        *,
        family: str = "gaussian",
        bandwidth: float | str = "cv",
        span: float | str | None = None,
        gate_bandwidth: float | str | None = None,
        dispersion: str = "varying",
        errors_dist: str = "normal",
        errors_df: float | None = None,
        grid: Any = None,
        n_grid: int | None = None,
        trials: Any = None,
        offset: Any = None,
        weights: Any = None,
        cluster: Any = None,
        estimate: str = "shrunken",
        gate_penalty: str | float | None = None,
        sigma_floor: float = 0.01,
        context: Mapping[str, Any] | None = None,
        formula_engine: str = "formulaic",
    ) -> None:
        self.formula = checked_varying_formula(formula)
        self.n_experts = checked_count(experts, "experts")
        self.family: Family = family_named(family)
        tails = checked_tails(errors_dist, errors_df, self.family.name)
        self.family = self.family if tails is None else tails
        checked_choice(dispersion, "dispersion", ("varying", "const"))
        checked_choice(estimate, "estimate", ("shrunken", "local", "joint"))
        if n_grid is not None:
            checked_count(n_grid, "n_grid", least=3)
        checked_floor(sigma_floor)
        beside = {"trials": trials, "offset": offset, "weights": weights, "cluster": cluster}
        data, columns = with_columns(data, beside)
        if trials is not None and self.family.name != "binomial":
            named = columns["trials"]
            raise ArgumentError(f"trials={named!r} is for family='binomial', got family={family!r}; leave it out")
        aux = {name: column for name, column in columns.items() if column is not None}
        self.design = self._built(data, context, formula_engine, aux)
        self.gate_penalty = checked_gate_penalty(gate_penalty)
        data_rows = self._sorted()
        self.data: Sorted = replace(data_rows, rows=replace(data_rows.rows, penalty=self.gate_penalty))
        warn_of_offset(self.design, self.family.name)
        checked_index_name(str(self.design.names.index))
        checked_index(self.data.rows.index, str(self.formula.vary))
        check_errors(self.data.rows, self.family, str(self.design.names.response))
        if isinstance(bandwidth, str):
            checked_choice(bandwidth, "bandwidth", ("cv", "rule"))
        else:
            checked_bandwidth(bandwidth, self.data.rows)
        if isinstance(gate_bandwidth, str):
            checked_choice(gate_bandwidth, "gate_bandwidth", ("cv",))
        elif gate_bandwidth is not None:
            checked_bandwidth(gate_bandwidth, self.data.rows, "gate_bandwidth")
        if span is not None:
            _check_span(checked_span(span), bandwidth, gate_bandwidth)
        self.grid = None if grid is None else checked_grid(self.data.rows, grid)
        self.slots = Slots(self.n_experts, self.design.expert.shape[1], self.design.gate.shape[1], self.has_dispersion)
        check_designs(self.design, self.slots)
        if self.n_experts > self.design.n:
            raise ArgumentError(f"experts={self.n_experts} is more than the {self.design.n} rows; use far fewer")
        self.settings: Mapping[str, Any] = {
            "experts": self.n_experts,
            "family": self.family.name,
            "bandwidth": bandwidth,
            "span": span,
            "gate_bandwidth": gate_bandwidth,
            "dispersion": dispersion,
            "errors_dist": errors_dist,
            "errors_df": errors_df,
            "grid": None if self.grid is None else self.grid.tolist(),
            "n_grid": n_grid,
            **columns,
            "estimate": estimate,
            "gate_penalty": self.gate_penalty.n if isinstance(self.gate_penalty, PseudoUnits) else gate_penalty,
            "sigma_floor": sigma_floor,
            "formula_engine": formula_engine,
        }

    def _built(self, data: Any, context: Mapping[str, Any] | None, engine: Any, aux: Mapping[str, str]) -> Design:
        """The design of the data."""
        return build_design(self.formula, data, context=context, engine=engine, aux=aux)

    def _sorted(self) -> Sorted:
        """The rows of the design in the order of the index."""
        return sorted_rows(self.design, self.family, period=self.formula.period or LINE)

    def __repr__(self) -> str:
        return f"<VCMoE {self.formula.text!r}, experts={self.n_experts}, {self.design.n} rows>"

    @property
    def has_dispersion(self) -> bool:
        """Whether the family has a dispersion."""
        return self.family.has_dispersion

    @classmethod
    def from_saved(cls, saved: SavedFit, context: Mapping[str, Any] | None) -> VCMoEResults:
        """Results of a saved fit, see `mixmoe.load`."""
        settings = dict(saved.settings)
        functions, searches = np.array(settings.pop("functions")), settings.pop("searches")
        shape, span = settings.pop("shape", None), settings.get("span")
        model = cls(saved.formula, saved.data, context=context, **settings)
        model.design = restored(model.design, saved)
        width = float(settings["bandwidth"] if span is None else span)
        problem = model.problem(width, settings["gate_bandwidth"])
        problem = problem if shape is None else with_shape(problem, float(shape))
        used = Bandwidths.from_lists(width, settings["gate_bandwidth"], searches)
        return model.results(model.bound(problem, functions, used), saved.fit, saved.cov)

    def problem(self, bandwidth: float, gate_bandwidth: float | None = None) -> Problem:
        """Windows and layout for given bandwidths; an infinite one holds its functions constant.

        Raises
        ------
        DesignError
            If windows hold too few rows, or columns are one there; with a bandwidth that can be used, if there is one.
        """
        made = self._laid_out(bandwidth, gate_bandwidth)
        fault = _fault(self, made)
        if fault is not None:
            raise DesignError(fault.text + _advice(self, fault, bandwidth, gate_bandwidth))
        return made

    def _laid_out(
        self,
        bandwidth: float,
        gate_bandwidth: float | None = None,
        held: BoolArray | None = None,
        some: IntArray | None = None,
        fewest: int = FEWEST_POINTS,
    ) -> Problem:
        """The problem for given bandwidths, with more functions held constant or on some of the rows; not checked.

        A grid that nobody asked for has at least `fewest` points.
        """
        const = constant_slots(self.design, self.slots, self.settings["dispersion"], bandwidth, gate_bandwidth)
        const = const if held is None else const | held
        every = self.data.rows if self.settings["span"] is None else replace(self.data.rows, share=bandwidth)
        rows = every if some is None else every.take(some)
        if const.all():
            bandwidth, gate_bandwidth = every.widest, None  # windows play no part
        gate = bandwidth if gate_bandwidth is None else float(gate_bandwidth)
        least = min(bandwidth, gate)  # stands in for an infinite one, which has no windows
        bandwidth, gate = (least if np.isinf(h) else h for h in (bandwidth, gate))
        rows_grid = default_grid(every, self.n_experts, least, self.settings["n_grid"], fewest)
        grid = rows_grid if self.grid is None else self.grid
        grid = grid[[0, -1]] if const.all() else grid
        if every.share:
            bandwidth = gate = float(np.median(nearest_widths(every, grid)))  # the unit of slopes
        return build_problem(rows, self.family, self.slots, const, grid, bandwidth, gate, self.settings["sigma_floor"])

    def bound(self, problem: Problem, coef: Array, used: Bandwidths) -> FittedVCMoE:
        """The model with an estimate, as results need it."""
        experts = np.inf if problem.const.all() else used.experts
        gate = None if problem.const.all() or used.gate == used.experts else used.gate
        adaptive = self.settings["span"] is not None
        settings = {**self.settings, "gate_bandwidth": gate, "span" if adaptive else "bandwidth": experts}
        settings |= {"functions": coef.tolist(), "searches": used.searches}
        shape = shape_of(problem.family)
        settings |= {} if shape is None else {"shape": shape}
        return FittedVCMoE(
            self.formula,
            self.design,
            self.data,
            problem,
            coef,
            settings,
            tabulated_points(problem.windows, self.data.rows),
            self.clusters,
            used.table,
            used.gate_table,
            used.unforced,
        )

    def results(self, fitted: FittedVCMoE, fit: EMFit, cov: ParamCov) -> VCMoEResults:
        """An estimate of this model as results."""
        return VCMoEResults(fitted, fit, cov)

    @property
    def clusters(self) -> NDArray[np.intp] | None:
        """Cluster of each sorted row as codes, or None."""
        if "cluster" not in self.design.aux:
            return None
        return units_of(pd.Series(self.design.aux["cluster"], dtype=object)).codes[self.data.order]

    def select_bandwidth(
        self,
        rng: Any = None,
        *,
        folds: int | None = None,
        candidates: Any = None,
        beside: float | None = None,
        n_jobs: int = 1,
        progress: bool | None = None,
    ) -> BandwidthSearch:
        """Bandwidth with the highest cross-validated log-likelihood.

        Parameters
        ----------
        rng : int, numpy.random.Generator or None
        folds : int, optional
            By cluster if there are clusters. By default five, repeated where there are fewer than 400 rows; with one
            expert and no clusters each row is left out by its influence, exactly for a normal response, in one scoring
            step for others, and a dispersion is that of the held-out errors.
        candidates : array-like, optional
            Bandwidths in units of the index, or spans; by default a log grid from the range of the index down to where
            rows run out or the criterion has long fallen, refined around the best.
        beside : float, optional
            Bandwidth of the experts, if that of the gate alone is sought. By default one for all functions, or for the
            experts beside a `gate_bandwidth` that the model was given.
        n_jobs : int
            Processes for the folds.
        progress : bool, optional

        Returns
        -------
        BandwidthSearch
            ``best`` and a ``table`` of the criterion.
        """
        if folds is not None:
            checked_folds(folds, self.design.n if self.clusters is None else n_clusters(self.clusters))
        space = self.space(None if beside is None else checked_bandwidth(beside, self.data.rows, "beside"))
        given = None if candidates is None else checked_candidates(candidates, space.rows)
        generator = checked_rng(rng)
        return search_bandwidth(space, generator, folds, given, n_jobs, progress)

    def space(self, beside: float | None = None) -> Space:
        """Problems among which a bandwidth is sought: that of all functions, or of the gate beside one of experts."""
        gate = self.settings["gate_bandwidth"]
        fixed = None if gate == "cv" else gate

        def both(h: float) -> tuple[float, float | None]:
            return (h, fixed) if beside is None else (beside, h)

        def made(h: float, held: BoolArray, some: IntArray | None) -> Problem:
            return centred(self._laid_out(*both(h), held, some, FEWEST_COMPARED))[0]

        def faulty(h: float, held: BoolArray, some: IntArray | None) -> WindowFault | None:
            return _fault(self, self._laid_out(*both(h), held, some))  # on the grid of the fit

        none = np.zeros(self.slots.n, dtype=bool)
        rows = self.data.rows if self.settings["span"] is None else replace(self.data.rows, share=1.0)
        return Space(rows, self.slots, self.clusters, made, faulty, none)

    def fit(
        self,
        *,
        starts: int | None = None,
        start: Any = None,
        max_iter: int = 500,
        tol: float = 1e-6,
        rng: Any = None,
        cov_type: str | None = None,
        folds: int | None = None,
        n_jobs: int = 1,
        progress: bool | None = None,
        **cov_options: Any,
    ) -> VCMoEResults:
        """Coefficient functions by label-consistent EM.

        Parameters
        ----------
        starts : int, optional
            Random starts of each kind (constant and linear mixtures); 10 by default. Of very many rows they are
            compared on 50,000, evenly along the index.
        start : VCMoEResults, optional
            Warm start from a fit with the same columns and experts, whose numbers these keep; or a fit with one expert
            fewer, whose experts are split. Without random starts.
        max_iter : int
        tol : float
            Converged when no function changes by more than this, relative to its scale, in one EM step.
        rng : int, numpy.random.Generator or None
        cov_type : {"robust", "cluster"}, optional
            By default ``"cluster"`` if the model has clusters.
        folds, n_jobs, progress
            Of the cross-validation, see `select_bandwidth`.
        **cov_options
            ``correction=False``: sandwich without small-sample correction.

        Returns
        -------
        VCMoEResults
            Experts are ordered by their mean gate probability, largest first, or as in `start`.

        Warns
        -----
        ConvergenceWarning, BoundaryWarning, DegeneracyWarning
            Also kept in ``results.flags``.
        """
        kind = ("robust" if self.clusters is None else "cluster") if cov_type is None else cov_type
        checked_kind(kind)
        n_starts = 10 if starts is None else checked_count(starts, "starts")
        control = Control(checked_positive(tol, "tol"), checked_count(max_iter, "max_iter"), n_starts)
        generator = checked_rng(rng)
        used = _bandwidths(self, generator, folds, n_jobs, progress)
        problem = self.problem(used.experts, used.gate)
        fitted = _run(self, problem, control, generator, start)
        run, model = fitted.run, self.bound(fitted.problem, fitted.run.coef, used)
        fit = seeded(model.record(run, control, n_starts if start is None else len(run.candidates)), rng, starts)
        shape = None if model.estimated_shape is None else shape_flag(model.problem)
        fit = replace(fit, flags=(*fit.flags, *_forced_flags(self, used), *([] if shape is None else [shape])))
        warn_flags(fit.flags, CATEGORIES)
        return self.results(model, fit, model.covariance(fit, kind, **cov_options))


def _bandwidths(
    model: VCMoE, rng: np.random.Generator, folds: int | None, n_jobs: int, progress: bool | None
) -> Bandwidths:
    """Bandwidths as given or found: that of the experts first, with the gate if that is sought too."""
    given, gate = model.settings["bandwidth"], model.settings["gate_bandwidth"]
    given = given if model.settings["span"] is None else model.settings["span"]
    const = constant_slots(model.design, model.slots, model.settings["dispersion"], 0.0, None)
    if const.all():
        return Bandwidths(np.inf, None)
    search = partial(model.select_bandwidth, rng, folds=folds, n_jobs=n_jobs, progress=progress)
    if given == "cv":
        found = search()
    else:
        found = usable_rule(model.space()) if given == "rule" else BandwidthSearch(float(given), None)
    if gate != "cv" or const[model.slots.gates].all():
        gate = None if gate == "cv" else gate
        return Bandwidths.chosen(found, gate)
    return Bandwidths.chosen(found, None, search(beside=found.best))


def _check_span(span: float | str, bandwidth: Any, gate_bandwidth: Any) -> None:
    """Refuse a bandwidth beside a span."""
    if bandwidth != "cv":
        raise ArgumentError(
            f"span={span!r} and bandwidth={bandwidth!r} both settle the width of the windows; give one of them"
        )
    if gate_bandwidth is not None:
        raise ArgumentError(
            f"gate_bandwidth={gate_bandwidth!r} is in units of the index, the windows of span={span!r} are not; "
            "leave one of them out"
        )


def _fault(model: VCMoE, problem: Problem) -> WindowFault | None:
    """Why the bandwidths of a problem cannot be used."""
    return None if problem.const.all() else window_fault(problem, model.design)


def _advice(model: VCMoE, fault: WindowFault, bandwidth: float, gate_bandwidth: float | None) -> str:
    """A bandwidth in the place of that with a fault that can be used, in words; nothing if there is none."""
    of_gate = fault.gate and gate_bandwidth is not None

    def usable(h: float) -> bool:
        made = model._laid_out(bandwidth, h) if of_gate else model._laid_out(h, gate_bandwidth)
        return _fault(model, made) is None

    wrong = float(gate_bandwidth) if of_gate and gate_bandwidth is not None else bandwidth
    rows = model.data.rows
    adaptive = model.settings["span"] is not None
    least, most = (1.0 / rows.n, 1.0) if adaptive else (rows.span / rows.n, rows.widest)
    found = smallest_usable(usable, max(wrong, least), most)
    if found is None:
        return ""
    return f" ({'gate_bandwidth' if of_gate else 'span' if adaptive else 'bandwidth'}={found:g} is wide enough)"


def _forced_flags(model: VCMoE, used: Bandwidths) -> tuple[Flag, ...]:
    """Flags of the columns that forced a wide bandwidth."""
    names, word = model.design.names, "bandwidth" if model.settings["span"] is None else "span"
    return tuple(
        forced_flag(one, names.gate if one.fault.gate else names.expert, used.experts, word)
        for one in used.forced
        if one is not None
    )


def _run(model: VCMoE, problem: Problem, control: Control, rng: np.random.Generator, start: Any) -> Shaped:
    """EM, then the functions that are reported, experts in the reported order; the number of a distribution."""
    given = getattr(start, "model", None)
    if start is None:
        where = From()
    elif isinstance(given, FittedVCMoE) and given.n_experts == problem.slots.n_experts - 1:
        where = From(False, smaller=on_grid(problem, given.problem, given.coef))
    else:
        where = From(False, same=_warm_start(start, problem))

    def joint(here: Problem, same: Array | None) -> Run:
        return maximise(here, control, rng, where if same is None else From(False, same), "joint")

    if shape_of(model.family) is not None and model.settings["errors_df"] is None:
        shaped = fit_shape(problem, joint)
        problem, where = shaped.problem, From(False, shaped.run.coef)
        again = maximise(problem, control, rng, where, model.settings["estimate"])
        return Shaped(problem, replace(again, candidates=shaped.run.candidates))
    return Shaped(problem, maximise(problem, control, rng, where, model.settings["estimate"]))


def _warm_start(start: Any, problem: Problem) -> Array:
    model = getattr(start, "model", None)
    if not isinstance(model, FittedVCMoE):
        raise ArgumentError(f"start must be the results of a VCMoE, got {type(start).__name__}")
    if model.problem.slots != problem.slots:
        raise ArgumentError(
            f"start has {_sizes(model.problem.slots)}, this model {_sizes(problem.slots)}; use a fit with the same "
            "columns and family, and as many experts or one fewer"
        )
    coef = on_grid(problem, model.problem, model.coef)
    coef[:, 1] *= problem.free[1]
    coef[:, 0] = np.where(problem.const, coef[:, 0].mean(axis=0), coef[:, 0])
    return coef


def _sizes(slots: Slots) -> str:
    """Numbers of experts and columns in words."""
    parts = f"{slots.n_expert_columns} columns of experts, {slots.n_gate_columns} of the gate"
    return f"experts={slots.n_experts}, {parts} and {'a' if slots.has_dispersion else 'no'} dispersion"
