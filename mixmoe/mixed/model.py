"""MEMoE: formula, data and structure of a mixed-effects mixture of experts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import numpy as np

from mixmoe._typing import Array
from mixmoe.arguments import checked_choice, checked_count, checked_positive
from mixmoe.atomic import PathLike
from mixmoe.design.beside import with_columns
from mixmoe.design.design import Design, build_design
from mixmoe.design.formula import MoEFormula
from mixmoe.design.recipe import ResponseKind
from mixmoe.errors import ArgumentError
from mixmoe.families import Estimated, FamilySpec
from mixmoe.inference.uncertainty import ParamCov, checked_cov_type
from mixmoe.loading import restored
from mixmoe.mixed.degeneracy import CATEGORIES, uncertainty_flags, with_label_flag
from mixmoe.mixed.end_points import with_integral_flag
from mixmoe.mixed.error_structure import ErrorOptions, ErrorsBy, ErrorsDist, ErrorSetup, build_errors, checked_errors
from mixmoe.mixed.estimation import Estimation
from mixmoe.mixed.glmm_results import GLMMResults
from mixmoe.mixed.information import Solution
from mixmoe.mixed.likelihood.observed import Problem, evaluate
from mixmoe.mixed.likelihood.serial import ErrorKind
from mixmoe.mixed.options import (
    Method,
    ResponseModel,
    build_response_model,
    build_structure,
    check_columns,
    check_identified,
    check_method,
    check_no_errors,
    check_response,
    checked_formula,
    coordinates_of,
    experts_of,
    with_levels,
)
from mixmoe.mixed.parameters import (
    Coordinates,
    CovRE,
    Residual,
    Structure,
)
from mixmoe.mixed.results import MEMoEResults
from mixmoe.mixed.smooth.fitting import Smoothing, checked_smoothing
from mixmoe.mixed.smooth.functions import functions_of, layout_of, uncentred
from mixmoe.mixed.smooth.results import SmoothGLMMResults, SmoothResults
from mixmoe.mixture.estimate import EMFit, ParamLayout, seeded, warn_flags
from mixmoe.mixture.gate import PseudoUnits, checked_gate_penalty
from mixmoe.mixture.resampling import remembered
from mixmoe.numerics.linalg import apply_inverse
from mixmoe.numerics.optimise import Control
from mixmoe.output.saved import SavedFit
from mixmoe.responses.offsets import warn_of_offset

_STARTS = 32  # random ones for each expert when the user names no number


class MEMoE(Estimation):
    """Mixed-effects mixture of experts.

    Each subject belongs to one of K experts; a softmax gate on baseline covariates gives the probabilities, and each
    expert is a linear mixed model::

        P(C_i = k | w_i) = softmax_k(w_i' gamma_k),  gamma_1 = 0
        y_i | C_i = k  ~  N(X_i beta_k, Z_i D_k Z_i' + sigma_k^2 I)

    or, with another `family`, a generalised one: given b_i ~ N(0, D_k) the rows are independent with linear predictor
    ``x'beta_k + z'b_i + offset``, and the integral over b_i is by Laplace's method or quadrature.

    Parameters
    ----------
    formula : str
        ``"y ~ time + x | gate: z | re: (1 + time | id)"``. ``common(x)`` marks coefficients shared by all experts; a
        double bar gives uncorrelated random effects; ``re: (0 | id)`` none; without ``re:`` each row is a unit.
        ``| sigma: time + common(x)`` makes the log standard deviation of the errors (for ``errors="bm"`` of the
        measurement errors) linear in covariates; ``sigma1`` is then its value where these are zero.
        ``s(time)`` is a penalised function of a column, ``s(time, by=x)`` a coefficient of x that varies with time (of
        categories: a function for each), in experts, ``common(...)`` and, of baseline covariates, the gate; ``k=15``
        basis functions, ``m=2`` differences that are penalised, ``bs="cc"`` for a periodic function with the period
        ``ends=(low, high)``. ``| vary: time`` beside ``re:`` makes every coefficient that is not in ``const(...)`` such
        a function. Without ``by=`` functions are centred over the rows.
    data : DataFrame (pandas, or what narwhals reads: polars, pyarrow ...) or mapping of columns
        Never changed. Rows with missing values are left out with a warning.
    experts : int
        Number of experts, K.
    cov_re : {"expert", "common", "proportional"}
        Own covariance of the random effects per expert, one for all, or ``D_k = omega_k^2 D_1``.
    residual : {"expert", "common"}
        Own residual standard deviation (or dispersion, or distances between thresholds) per expert, or one for all.
    errors : {"iid", "ar1", "car1", "bm"}
        Errors of a subject at times t and s: independent; correlated by ``rho^|t - s|`` at whole-number times, or by
        ``exp(-phi |t - s|)`` (the Phi of nlme's corCAR1 is exp(-phi)); or a Brownian motion of covariance
        ``sd_bm^2 min(t, s)`` plus independent measurement errors, as lcmm's ``cor=BM(t)``.
    time : str, array or Series, optional
        Times, as a column or an array, see `weights`. Without them ``"ar1"`` counts the rows of a subject in the order
        of the data. Given with ``"iid"`` they only leave out rows without a time, so that fits that are compared use
        the same rows.
    errors_by : {"expert", "common"}, optional
        Own parameters of correlation and tails per expert, or common ones; by default as `residual`.
    errors_dist : {"normal", "t"}
        ``"t"``: the responses of a subject are multivariate t, random effects and errors alike, so that subjects far
        from the others count less. Standard deviations are then scales: variances are df / (df - 2) times as large.
    errors_df : float, optional
        Degrees of freedom of the t distribution; by default estimated.
    family : {"gaussian", "binomial", "poisson", "negbinomial", "zipoisson", "zinegbinomial", ...}
        Also ``"gamma"``, ``"beta"``, ``"ordinal"``. Distribution of the response given expert and random effects; logit
        links for binomial and beta responses, log links for counts and gamma ones. Dispersions: ``theta`` (variance
        ``mu + mu^2 / theta``), ``shape`` (``mu^2 / shape``), ``phi`` (``mu (1 - mu) / (1 + phi)``).
        ``"negativebinomial"`` is another name of ``"negbinomial"``.
        ``"zipoisson"`` (``"zip"``) and ``"zinegbinomial"`` (``"zinb"``): a row is zero for certain with probability
        ``zeros``, of each expert or with ``residual="common"`` of all, as in glmmTMB's ``ziformula = ~ 1``;
        coefficients and random effects are those of the other counts, expected responses those of all.
        ``"ordinal"``: ordered categories (an ordered Categorical, or numbers) by proportional odds, ``logit P(y <= j) =
        cut_j - eta`` as in ordinal::clmm, with thresholds ``cut1(low|mid)`` ... in the place of the intercept. Each
        expert has its own; with ``residual="common"`` they share the distances between them, as the classes of lcmm's
        ``link="thresholds"`` do, and with ``common(1)`` in the formula the first threshold too.
    n_quad : int
        Points of adaptive Gauss-Hermite quadrature per random effect, for at most two of them; 1 is the Laplace
        approximation. A fit whose estimates more points would move has the flag ``laplace_bias``. Not for Gaussian
        responses, where the integral is exact.
    trials, offset, weights : str, array or Series, optional
        Columns of the data, or one value for each row of the data (a Series is aligned by its index): number of trials
        of a binomial response; offset of the linear predictor, for counts the log of the exposure;
        weights of the rows. Those of Gaussian responses are lme4's: the variance of the error (for
        ``errors="bm"`` of the measurement error) is ``sigma^2 / weight``, whatever its correlation and tails; in other
        families weights multiply the log-densities of the rows. Rows of weight zero are not counted: estimates are
        those without them, and they have no fitted values.
    cluster : str, array or Series, optional
        Clusters of subjects, given likewise, which standard errors, bootstrap, `stability` and folds then take for the
        independent units; tests of the number of experts are not valid then. `n_units` and the N of the criteria stay
        numbers of subjects.
    method : {"ml", "reml"}
        Maximum likelihood, or for one Gaussian expert with normal errors restricted maximum likelihood (Harville 1974),
        as lme4's default. ``llf`` and the criteria that follow from it are then of the restricted log-likelihood, which
        does not compare fits with different fixed effects. Each subject's score has her part in ``log|X'V^-1X|``.
    gate_penalty : {"firth"} or float, optional
        Keeps gate coefficients finite where covariates separate experts. ``"firth"``: half the log determinant of the
        information that the gate would have with known memberships (Jeffreys prior) is added to the log-likelihood;
        a number n: n subjects, spread evenly over the covariates of the data and over the experts (Latent GOLD's Bayes
        constant, 1 by default there). Both are the same whichever expert is the reference and however covariates are
        coded. Starts, estimates, information, profiles and resamples are of the penalised log-likelihood; ``llf`` and
        the criteria that follow from it are of the log-likelihood at the penalised estimates.
    smoothing : float or mapping, optional
        Smoothing parameters of functions ``s(...)`` that are known, one number for all or numbers by function
        (``"expert1.s(time)"``, ``"s(time)"`` for all experts); by default they are estimated.
    smoother : {"spline"}, optional
        For a formula with ``vary:`` and without ``re:``, which otherwise is a `VCMoE`: penalised functions in the place
        of its local likelihood.
    context : mapping, optional
        Functions and constants the formula may use; nothing else of the caller is visible.
    formula_engine : {"formulaic", "patsy"}

    Raises
    ------
    FormulaError
        If the formula cannot be read, with a caret under the offending token.
    DesignError
        If the data do not fit it; names the column and the first row.
    ArgumentError
        If an argument is outside its allowed values.

    Notes
    -----
    One grouping factor. The likelihood with an own residual variance per expert is
    unbounded in principle; solutions in which an expert collapses on a few subjects are set aside and reported.
    Where errors are not iid normal, starts are searched with the correlation and the relative variances that the
    one-expert fit has; the best are then carried on with the likelihood itself.
    Functions ``s(...)`` are cubic P-splines. Given smoothing parameters lambda the log-likelihood less ``1/2 sum lambda
    b'b`` is maximised, b the coefficients without their lines; the lambda, one for each function and expert, and all
    parameters outside b maximise the marginal likelihood with b integrated out (Laplace; exact for one Gaussian
    expert, mgcv's ``method="ML"``), through generalised Fellner-Schall steps. In mixtures the derivative of the
    determinant in that approximation is taken with the memberships as they are. Starts are searched on a coarse basis
    without penalties.

    References
    ----------
    Yue, Yan, Han & Fu (2026), Mixed Effects Mixture of Experts, arXiv:2603.07479.
    Verbeke & Lesaffre (1996), JASA 91, 217-221. Proust-Lima, Philipps & Liquet (2017), JSS 78(2).
    Pinheiro & Bates (2000), Mixed-Effects Models in S and S-PLUS, chapter 5. Pinheiro, Liu & Wu (2001), JCGS 10,
    249-276. Eilers & Marx (1996), Statistical Science 11, 89-121. Wood & Fasiolo (2017), Biometrics 73, 1071-1081.
    Harville (1974), Biometrika 61, 383-385. McCullagh (1980), JRSS B 42, 109-142. Hedeker & Gibbons (1994),
    Biometrics 50, 933-944.
    """

    spec = FamilySpec(
        name="MEMoE",
        title="A mixed-effects mixture of experts: each subject belongs to one expert; a softmax gate on baseline "
        "covariates gives the probabilities, and each expert is a (generalised) linear mixed model.",
        estimation="Maximum likelihood: EM steps from many random starts, split-and-merge moves, then quasi-Newton.",
        asked_by="formulas without a section 'vary:', or with 're:' beside it",
        covariance_options=("correction", "unconditional", "n_boot", "n_jobs"),
        listed=("cov_re", "residual", "errors", "errors_dist", "family"),
    )

    def __init__(
        self,
        formula: str | MoEFormula,
        data: Any,
        experts: int = 2,
        *,
        cov_re: CovRE = "expert",
        residual: Residual = "expert",
        errors: ErrorKind = "iid",
        time: Any = None,
        errors_by: ErrorsBy | None = None,
        errors_dist: ErrorsDist = "normal",
        errors_df: float | None = None,
        family: str = "gaussian",
        n_quad: int = 1,
        trials: Any = None,
        offset: Any = None,
        weights: Any = None,
        cluster: Any = None,
        method: Method = "ml",
        gate_penalty: str | float | None = None,
        smoothing: Any = None,
        smoother: str | None = None,
        context: Mapping[str, Any] | None = None,
        formula_engine: str = "formulaic",
    ) -> None:
        self.formula = checked_formula(formula, smoother, family)
        self.n_experts = checked_count(experts, "experts")
        checked_choice(cov_re, "cov_re", get_args(CovRE))
        checked_choice(residual, "residual", get_args(Residual))
        beside = {"trials": trials, "offset": offset, "weights": weights, "cluster": cluster, "time": time}
        data, columns = with_columns(data, beside)
        options = checked_errors(errors, columns["time"], errors_by, errors_dist, errors_df, residual)
        self.gate_penalty = checked_gate_penalty(gate_penalty)
        self.response = build_response_model(family, residual, n_quad, columns)
        check_no_errors(self.response, self.formula, options)
        check_method(method, self.n_experts, self.response.name, errors_dist)
        kind: ResponseKind = "ordinal" if self.response.name == "ordinal" else "numeric"
        aux = {name: column for name, column in columns.items() if column is not None}
        self._options = None if options.plain and not self.formula.sigma else options
        how = {"context": context, "engine": formula_engine, "response": kind, "aux": aux, "smooths": True}
        self.design = self._build(data, {**how, "counting": "errors='ar1'" if errors == "ar1" else ""})
        self.response = self._with_levels()
        self._check_identified()
        if cluster is not None:
            self.clusters_of(None)  # refuses clusters that split subjects
        self.settings: Mapping[str, Any] = {
            "experts": self.n_experts,
            "cov_re": cov_re,
            "residual": residual,
            "family": self.response.name,
            "n_quad": n_quad,
            **columns,
            "method": method,
            "gate_penalty": self.gate_penalty.n if isinstance(self.gate_penalty, PseudoUnits) else gate_penalty,
            "smoothing": smoothing,
            "smoother": smoother,
            **options.settings,
            "formula_engine": formula_engine,
        }
        if self.design.smooths and method == "reml":
            raise ArgumentError(
                "method='reml' is not offered with functions s(...): the marginal likelihood that chooses their "
                "smoothing parameters integrates over penalised coefficients only, not over lines and other "
                "coefficients; use method='ml'"
            )
        self.smoothing: Smoothing | None = None
        self.kept: Solution | None = None  # what is known at a fit, in the model of its results
        self._arrange(build_structure(self.design, self.n_experts, cov_re, self.response))
        self.layout: ParamLayout = layout_of(self.design, self.structure)

    def _build(self, data: Any, options: Mapping[str, Any]) -> Design:
        """The design of the data; options as those of `build_design`."""
        return build_design(self.formula, data, **options)

    def _with_levels(self) -> ResponseModel:
        """The response with what only data tell."""
        return with_levels(self.response, self.design, np.asarray(self.design.response))

    def _check_identified(self) -> None:
        check_identified(self.design, self.n_experts, self.response)
        warn_of_offset(self.design, self.response.name)

    def __repr__(self) -> str:
        return f"<MEMoE {self.formula.text!r}, experts={self.n_experts}, {self.design.n_units} subjects>"

    @classmethod
    def from_saved(cls, saved: SavedFit, context: Mapping[str, Any] | None) -> MEMoEResults:
        """Results of a saved fit, see `mixmoe.load`."""
        model = cls(saved.formula, saved.data, context=context, **saved.settings)
        model.design = restored(model.design, saved)
        return model.results(saved.fit, saved.cov)

    def results(self, fit: EMFit, cov: ParamCov) -> MEMoEResults:
        """An estimate of this model as results."""
        plain, smooth = (MEMoEResults, SmoothResults) if self.response.gaussian else (GLMMResults, SmoothGLMMResults)
        return (smooth if fit.smoothing.size else plain)(self.bound(fit), fit, cov)

    def _arrange(self, structure: Structure) -> None:
        """Set what depends on the data: coordinates, errors and the likelihood."""
        coordinates = self._coordinates(structure)
        self.errors: ErrorSetup | None = None
        if self._options is not None:
            self.errors = self._errors_of_design(self._options, coordinates.scale)
            structure = replace(structure, extras=self.errors.extras)
            coordinates = replace(coordinates, log_sigma=self.errors.shift)
        if self.design.smooths:
            coordinates = uncentred(coordinates, self.design)
        self.structure, self.coordinates = structure, coordinates
        # What the working response's unit takes from the log-likelihood, and with REML what the units of response and
        # columns add to -1/2 log|X'V^-1X|.
        self.log_scale = self.design.n * float(np.log(coordinates.scale))
        if self.settings["method"] == "reml":
            p, log_columns = len(coordinates.expert), float(np.linalg.slogdet(coordinates.expert)[1])
            self.log_scale -= p * float(np.log(coordinates.scale)) - log_columns
        self.functions = functions_of(self.design, structure)
        self.given_smoothing = checked_smoothing(self.settings["smoothing"], self.functions)
        self.problem: Problem = self._problem_of_design()

    def _coordinates(self, structure: Structure) -> Coordinates:
        return coordinates_of(self.design, structure, self.response)

    def _errors_of_design(self, options: ErrorOptions, response_unit: float) -> ErrorSetup:
        return build_errors(self.design, options, self.settings["residual"], response_unit)

    def _problem_of_design(self) -> Any:
        return self._problem(self.design)

    def problem_of(self, design: Design) -> Problem:
        """The likelihood of other data under the same coordinates."""
        return self.problem if design is self.design else self._problem(design)

    def new_design(self, data: Any, response: bool = False, without: Sequence[str] = ()) -> Design:
        """Other data with the columns of this model, `without` those of some sections."""
        design = self.design.for_new(data, response=response, without=without)
        if "expert" not in without:
            check_columns(design, self.settings, response)
        if response:
            check_response(design, self.response)
        return design

    def _problem(self, design: Design) -> Problem:
        return self._with_gate(self._experts(design), design.gate)

    def _experts(self, design: Design) -> Any:
        """The likelihood of the responses of a design."""
        c = self.coordinates
        return experts_of(design, self.response, c) if self.errors is None else self.errors.experts(design, c)

    def _with_gate(self, experts: Any, gate: Array) -> Problem:
        """The likelihood of experts and a gate of covariates of shape (N, m)."""
        W, restricted = apply_inverse(gate, self.coordinates.gate), self.settings["method"] == "reml"
        return Problem(self.structure, experts, W, self.gate_penalty, restricted)

    def fit(
        self,
        *,
        starts: int | None = None,
        start: Any = None,
        max_iter: int = 500,
        tol: float = 1e-6,
        rng: Any = None,
        cov_type: str | None = None,
        progress: bool | None = None,
        checkpoint: PathLike | None = None,
        **cov_options: Any,
    ) -> "MEMoEResults":
        """Maximum likelihood estimates, or those of restricted maximum likelihood.

        Parameters
        ----------
        starts : int, optional
            Random starts; by default 32 per expert, or none if `start` is given. After them, split-and-merge moves are
            tried from the best.
        start : MEMoEResults, Series, mapping or ndarray, optional
            Parameters to start from, by name or in the order of the layout; or a fit with one expert fewer and the same
            columns, whose experts are split. The log-likelihood is not below that of `start` on these data.
        max_iter : int
            Iterations of each optimisation, that of the search and the final one.
        tol : float
            Converged when no entry of the score exceeds ten times this per subject, in units in which data are
            standardised.
        rng : int, numpy.random.Generator or None
            Seed of the random starts.
        cov_type : {"robust", "nonrobust", "cluster", "bootstrap"}, optional
            By default ``"cluster"`` if the model has clusters, else ``"robust"``.
        progress : bool, optional
            Progress bar; by default only in a terminal and if the fit takes more than a few seconds.
        checkpoint : path-like, optional
            A file. Where ascents stand is kept there, never the data, and the same call goes on where an earlier one
            was ended, with the same result; the design and standard errors are made again.
        **cov_options
            For the covariance: ``correction=``, ``unconditional=``, ``n_boot=``, ``n_jobs=``.

        Returns
        -------
        MEMoEResults
            Experts are ordered by their mean gate probability, largest first. After Ctrl-C during an ascent the best
            point so far, marked as not converged.

        Warns
        -----
        ConvergenceWarning, BoundaryWarning, DegeneracyWarning, ApproximationWarning
            Also kept in ``results.flags``.
        """
        kind = ("cluster" if "cluster" in self.design.aux else "robust") if cov_type is None else cov_type
        checked_cov_type(kind)
        control = Control(checked_count(max_iter, "max_iter"), checked_positive(tol, "tol"), progress=progress)
        default = 0 if start is not None else 1 if self.n_experts == 1 else _STARTS * self.n_experts
        n_starts = default if starts is None else checked_count(starts, "starts", least=1 if start is None else 0)
        if start is None:
            given = None
        elif isinstance(smaller := getattr(start, "model", None), MEMoE) and smaller.n_experts == self.n_experts - 1:
            given = Estimated(smaller.n_experts, self.with_experts(smaller.n_experts).vector(start))
        else:
            given = Estimated(self.n_experts, self.vector(start))
        facts = partial(self._facts, (n_starts, given, max_iter, tol))
        with remembered(checkpoint, facts, rng, control) as (generator, limits):
            fit = seeded(self.maximum(n_starts, generator, given, limits), rng, starts)
        if kind == "bootstrap":
            cov_options = {"rng": generator, "progress": progress, **cov_options}
        return self.bound(fit)._reported(fit, kind, cov_options)

    def _facts(self, options: tuple[Any, ...]) -> tuple[Any, ...]:
        """What tells a fit with these options from others."""
        columns = (*self.problem.W.T, *self.problem.experts.sort_keys())
        # Sizes of columns in working coordinates tell data apart; sums in another order differ in later digits only.
        sizes = [f"{np.linalg.norm(column):.9e}" for column in columns]
        return (self.formula.text, self.settings, self.layout.names, self.design.n, self.design.n_units, sizes, options)

    def _reported(self, fit: EMFit, kind: str, cov_options: dict[str, Any]) -> MEMoEResults:
        """Results of an estimate, with a covariance and all that a reader must know."""
        fit = with_integral_flag(fit, self.problem, self.coordinates, self.working(fit.params), self.layout)
        fit = self._with_label_flag(fit)
        warn_flags(fit.flags, CATEGORIES)
        try:
            cov = self.covariance(fit, kind, **cov_options)
        except KeyboardInterrupt:
            blank = np.full((fit.params.size, fit.params.size), np.nan)
            cov = ParamCov(blank, checked_cov_type(kind), f"interrupted; with_cov({kind!r}) computes them")
        more = uncertainty_flags(self.layout, fit.params, cov)
        warn_flags(more, CATEGORIES)
        return self.results(replace(fit, flags=(*fit.flags, *more)), cov)

    def _with_label_flag(self, fit: EMFit) -> EMFit:
        """The fit, with a flag if labels could be exchanged within cells."""
        return with_label_flag(fit, self.design, self.problem, self.working(fit.params), self.coordinates)

    def loglike_of(self, params: Any, data: Any) -> float:
        """Log-likelihood of other data, with their response; the plain one, whatever the method of the fit."""
        design = self.new_design(data, response=True)
        plain = replace(self.problem_of(design), penalty=None, ridge=None, restricted=False)
        value = evaluate(plain, self._free(params)[None]).loglik[0]
        return float(value) - design.n * float(np.log(self.coordinates.scale))
