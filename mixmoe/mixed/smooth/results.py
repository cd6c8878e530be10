"""What a fitted MEMoE with penalised functions offers beside the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from mixmoe._typing import Array
from mixmoe.arguments import checked_choice, checked_count, checked_jobs, checked_rng
from mixmoe.check.term_tests import TermTests
from mixmoe.errors import ArgumentError
from mixmoe.inference.uncertainty import ParamCov, checked_alpha
from mixmoe.inference.wald import InvalidTest
from mixmoe.mixed.glmm_results import GLMMResults, covariates_of
from mixmoe.mixed.prediction.courses import Grid, build_grid, trajectory_axis
from mixmoe.mixed.prediction.response_scale import gradient_of
from mixmoe.mixed.prediction.response_scale import population_means as expected_responses
from mixmoe.mixed.prediction.trajectories import population_gradient, population_means
from mixmoe.mixed.results import MEMoEResults
from mixmoe.mixed.smooth import function_bands as smooth_bands
from mixmoe.mixed.smooth.fitting import Smoothing
from mixmoe.mixed.smooth.function_bands import Around, function_curves, function_tables
from mixmoe.mixed.smooth.hypotheses import (
    HYPOTHESES,
    METHODS,
    FunctionTest,
    Wanted,
    asymptotic_test,
    bootstrap_test,
    equality_test,
    named_functions,
    term_tests,
)
from mixmoe.mixture.estimate import EMFit, classification_entropy, criteria
from mixmoe.output.records import Cell, Curve, Table

if TYPE_CHECKING:
    from mixmoe.mixed.model import MEMoE

SEED = 20260101  # of the bands in summaries and figures, so that they print the same every time


class SmoothResults(MEMoEResults):
    """A fitted mixed-effects mixture of experts with penalised functions ``s(...)``.

    Parameters
    ----------
    model : MEMoE
    fit : EMFit
    cov : ParamCov

    Attributes
    ----------
    functions : DataFrame
        One row per function: expert, term, index, lambda, effective degrees of freedom.
    marginal_llf : float
        Log-likelihood with the penalised coefficients integrated out (Laplace), which chose the smoothing parameters.
    df_model : float
        Effective number of parameters, ``tr (H + S)^-1 H``; AIC, BIC, SABIC and ICL charge it.

    Notes
    -----
    ``cov_type="nonrobust"`` is the posterior covariance ``V = (H + S)^-1`` given the smoothing parameters, ``"robust"``
    is ``V (M + S) V`` with M the outer products of the subjects' scores. Where smoothing parameters are estimated both
    are of a fit in which no function is smoothed so much that a bend is lost that data cannot tell from a line, and
    limits and bands of functions lie around that fit (undersmoothing); ``unconditional=False`` takes smoothing
    parameters as known. Tests of functions are given the smoothing parameters. Functions without ``by=`` are centred
    over the rows of the data. ``llf`` is the log-likelihood at the penalised estimates, without the penalty.
    """

    def __init__(self, model: "MEMoE", fit: EMFit, cov: ParamCov) -> None:
        super().__init__(model, fit, cov)
        smoothing, tau = self._smoothing, fit.responsibilities
        values = criteria(fit.loglik, smoothing.total, tau)
        self.aic, self.bic, self.sabic = values.aic, values.bic, values.sabic
        self.icl = values.bic + 2.0 * classification_entropy(tau)
        self.df_model = smoothing.total  # type: ignore[assignment]  # effective numbers are no integers
        self.df_resid = self.nobs - smoothing.total
        self.marginal_llf = smoothing.marginal

    @property
    def functions(self) -> pd.DataFrame:
        """One row per function: expert, term, index, smoothing parameter and effective degrees of freedom."""
        s = self._smoothing
        return pd.DataFrame(
            {
                "expert": pd.array([f.expert for f in s.functions], dtype="Int64"),
                "term": [f.columns.name for f in s.functions],
                "index": [f.index for f in s.functions],
                "lambda": s.lambdas,
                "edf": s.edf,
                "max_df": [f.columns.penalised.size for f in s.functions],
            },
            index=pd.Index([f.name for f in s.functions], name="function"),
        )

    def bands(
        self,
        of: str = "coefficients",
        alpha: float = 0.05,
        *,
        derivative: int = 0,
        at: Mapping[str, Any] | None = None,
        draws: int = 4000,
        rng: Any = None,
    ) -> pd.DataFrame:
        """Functions with pointwise limits and simultaneous bands, by the covariance of the fit, see `with_cov`.

        Parameters
        ----------
        of : {"coefficients", "differences", "experts", "mean"}
            The functions; differences of those of two experts; trajectories of the experts along the index, which are
            linear predictors at random effects of zero; the population mean, which is an expected response, averaged
            over the random effects. The last two are at an offset of zero.
        alpha : float
            One minus the level of the limits.
        derivative : {0, 1}
            With 1 bands of the derivatives by the index, of functions and differences.
        at : mapping, optional
            Covariate values for trajectories and mean; others at their median or most frequent category.
        draws : int
            Draws of the process behind the critical value of a band.
        rng : int, numpy.random.Generator or None

        Returns
        -------
        DataFrame
            One row per function and grid point: coefficient, block, expert, term, the index, estimate, std_error,
            conf_low, conf_high (pointwise), band_low, band_high (simultaneous over the range of the index). Limits
            lie around a fit that is smoothed less than the estimate where this is smoother than data can tell.
        """
        checked_choice(of, "of", smooth_bands.SUBJECTS)
        checked_count(draws, "draws", least=100)
        if at is not None and of not in smooth_bands.AT_COVARIATES:
            raise ArgumentError(f"at={at!r} is for of='experts' and 'mean', got of={of!r}; leave it out")
        if derivative not in (0, 1):
            raise ArgumentError(f"derivative must be 0 or 1, got {derivative!r}; 1 is that by the index")
        if derivative and of in smooth_bands.AT_COVARIATES:
            raise ArgumentError(f"derivative=1 is for of='coefficients' and 'differences', got of={of!r}; leave it out")
        if of in smooth_bands.AT_COVARIATES:
            grid = build_grid(self.model.design, trajectory_axis(self.model.design), at)
            wanted, around = self._trajectories(grid) if of == "experts" else self._mean(grid)
        else:
            wanted, around = self._functions(of, derivative), Around(self.cov.of_bounded, self.cov.shift)
        return smooth_bands.band_frame(wanted, around, checked_alpha(alpha), draws, checked_rng(rng))

    def _functions(self, of: str, derivative: int) -> list[smooth_bands.Course]:
        functions, params = self._smoothing.functions, self.em.params
        if of == "differences":
            found = smooth_bands.pairs(functions)
            if not found:
                raise ArgumentError(
                    "of='differences' needs functions of at least 2 experts, and there are none of one term; use "
                    "of='coefficients'"
                )
            return [smooth_bands.difference(a, b, params, derivative) for a, b in found]
        return [smooth_bands.coefficient(f, params, derivative) for f in functions]

    def _trajectories(self, grid: Grid) -> tuple[list[smooth_bands.Course], Around]:
        """Linear predictors of the experts along the axis of the figure of trajectories, and what limits are from.

        For ordinal responses that is of intercepts in the place of the first thresholds.
        """
        X, e = self.model.design.for_new(grid.rows).expert, self._known()
        pairs = enumerate(zip(e.params.beta[0], e.where.beta, strict=True), start=1)
        courses = [
            smooth_bands.Course(f"expert{k}", "expert", "mean", k, grid.label, grid.x, X @ beta, X, where)
            for k, (beta, where) in pairs
        ]
        return courses, Around(e.cov, e.shift)

    def _mean(self, grid: Grid) -> tuple[list[smooth_bands.Course], Around]:
        """The population mean along the axis of the figure of trajectories, and what limits are from."""
        rows, e = self.model.design.for_new(grid.rows), self._known()
        X, W = rows.expert, rows.gate[rows.codes]
        course = mean_course(grid, population_means(e, X, W), population_gradient(e, X, W))
        return [course], Around(e.cov, e.shift)

    def test_functions(
        self,
        which: str | Sequence[str] | None = None,
        hypothesis: str = "constant",
        *,
        method: str = "asymptotic",
        n_boot: int = 199,
        rng: Any = None,
        n_jobs: int = 1,
        progress: bool | None = None,
    ) -> FunctionTest | InvalidTest | pd.DataFrame:
        """Tests that functions are constant, lines, zero, or equal in two experts.

        Parameters
        ----------
        which : str or sequence of str, optional
            Functions tested together, as ``"expert1.s(time)"``, ``"s(time)"`` (in all experts), ``"expert1"``,
            ``"experts"``, ``"gate"``, ``"all"``. By default each function on its own, as a frame.
        hypothesis : {"constant", "linear", "zero", "equal"}
            ``"linear"``: what is penalised vanishes. ``"equal"``: two experts, which `which` names, have the same
            function of a term; by default all pairs.
        method : {"asymptotic", "bootstrap"}
            Test of Wood (2013) with the covariance of the fit; likelihood-ratio test whose null distribution is that of
            refits to responses drawn under the hypothesis, smoothing parameters estimated anew.
        n_boot : int
            Draws.
        rng : int, numpy.random.Generator or None
        n_jobs : int
        progress : bool, optional

        Returns
        -------
        FunctionTest, DataFrame or InvalidTest
            InvalidTest of functions whose coefficients have no standard errors; blank in the frame.
        """
        checked_choice(hypothesis, "hypothesis", HYPOTHESES)
        checked_choice(method, "method", METHODS)
        checked_count(n_boot, "n_boot", least=19)
        jobs, generator = checked_jobs(n_jobs), checked_rng(rng)
        if hypothesis == "equal":
            return self._test_equal(which, method)
        functions = self._smoothing.functions
        groups = [named_functions(functions, which)] if which is not None else [(f,) for f in functions]
        tests = [self._test(Wanted(g, hypothesis, n_boot, jobs, progress), method, generator) for g in groups]
        return _valid(tests[0]) if which is not None else _test_frame(tests)

    def _test(self, wanted: Wanted, method: str, rng: np.random.Generator) -> FunctionTest:
        if method == "bootstrap":
            return bootstrap_test(self.model, wanted, self.em, rng)
        return asymptotic_test(self.model, wanted, self.em.params, self.cov.of_tests)

    def _test_equal(self, which: str | Sequence[str] | None, method: str) -> FunctionTest | InvalidTest | pd.DataFrame:
        if method != "asymptotic":
            raise ArgumentError(f"hypothesis='equal' has method='asymptotic', got {method!r}")
        pairs = smooth_bands.pairs(self._smoothing.functions)
        if which is not None:
            found = named_functions(self._smoothing.functions, which)
            if len(found) != 2:
                raise ArgumentError(f"hypothesis='equal' compares 2 functions, got {len(found)}; name two of one term")
            pairs = [(found[0], found[1])]
        if not pairs:
            raise ArgumentError("hypothesis='equal' needs functions of one term in two experts, and there are none")
        tests = [equality_test(self.model, pair, self.em.params, self.cov.of_tests) for pair in pairs]
        return _valid(tests[0]) if which is not None else _test_frame(tests)

    def test_varying(
        self,
        which: str | Sequence[str] | None = None,
        *,
        method: str = "asymptotic",
        n_boot: int = 199,
        rng: Any = None,
        n_jobs: int = 1,
        progress: bool | None = None,
    ) -> FunctionTest | InvalidTest | pd.DataFrame:
        """Test that functions are constant along their index; see `test_functions`."""
        return self.test_functions(
            which, "constant", method=method, n_boot=n_boot, rng=rng, n_jobs=n_jobs, progress=progress
        )

    def wald_test_terms(self) -> TermTests:
        """Joint tests of every term, those of functions by Wood's test: are they zero, have all experts the same.

        A function without ``by=`` has no level: that it is zero is that it is constant.
        """
        found, cov = super().wald_test_terms(), self.cov.of_tests
        note = (
            "Functions: tests of Wood (2013) with effective degrees of freedom; those without by= are constant if zero."
        )
        functions = term_tests(self.model, self.em.params, cov, self.cov.kind)
        return replace(found, tests=(*found.tests, *functions), notes=(note,))

    def lr_test(self, other: Any) -> Any:
        """Refused: penalised estimates do not maximise the likelihood; `test_functions` tests functions."""
        return InvalidTest(
            "penalised functions are not estimated by maximum likelihood, so that twice the difference of "
            "log-likelihoods has no chi-squared distribution; use test_functions(), or compare aic or bic"
        )

    def _in_order(self, places: Sequence[int]) -> Self:
        if self.model.n_experts > 2 and any(f.columns.section == "gate" for f in self._smoothing.functions):
            raise ArgumentError(
                "a fit with penalised functions in the gate cannot be relabelled: penalties are of log odds against "
                "expert 1, and those against another expert are other ones"
            )
        permuted = super()._in_order(places)
        names, lambdas = [f.name for f in self._smoothing.functions], self.em.smoothing.copy()
        for i, f in enumerate(self._smoothing.functions):
            if f.columns.section == "expert" and f.expert is not None:
                lambdas[i] = self.em.smoothing[names.index(f"expert{places[f.expert - 1] + 1}.{f.columns.name}")]
        fit = replace(permuted.em, smoothing=lambdas)
        model = self.model.at(lambdas, self.model.working(fit.params))
        return type(self)(model, fit, permuted.cov)

    def tables(self, alpha: float = 0.05) -> tuple[Table, ...]:
        """The tables of the summary, with one of the functions after those of the coefficients."""
        tables = super().tables(alpha)
        later = ("proportions", "gate", "random", "residual", "dispersion", "zeros", "threshold", "other")
        at = next((i for i, table in enumerate(tables) if table.key in later), len(tables))
        frame = self.bands(alpha=alpha, rng=SEED)
        constant = [Wanted((f,), "constant") for f in self._smoothing.functions]
        p_values = [asymptotic_test(self.model, one, self.em.params, self.cov.of_tests).pvalue for one in constant]
        return (*tables[:at], *function_tables(self._smoothing, frame, p_values, alpha), *tables[at:])

    def curves(self, kind: str = "functions", **options: Any) -> tuple[Curve, ...]:
        """Curves of a figure.

        Parameters
        ----------
        kind : {"functions", "differences", "derivatives", "trajectories", "gate"}
            Functions with pointwise limits and simultaneous bands; see `MEMoEResults.curves` for the last two.
        **options
            For functions those of `bands`; else ``x=``, ``at=``, ``alpha=``.

        Returns
        -------
        tuple of Curve
        """
        checked_choice(kind, "kind", self._curve_kinds)
        if kind not in ("functions", "differences", "derivatives"):
            return super().curves(kind, **options)
        options = {"rng": SEED, **options, "derivative": int(kind == "derivatives")}
        frame = self.bands("differences" if kind == "differences" else "coefficients", **options)
        centred = {f.columns.name for f in self._smoothing.functions if f.centred}
        return function_curves(frame, options.get("alpha", 0.05), options["derivative"], centred)

    _default_plot = "functions"
    _report_plots = ("functions", "trajectories")

    @property
    def _curve_kinds(self) -> tuple[str, ...]:
        several = ("differences",) if smooth_bands.pairs(self._smoothing.functions) else ()
        return ("functions", *several, "derivatives", "trajectories", "gate")

    @property
    def _smoothing(self) -> Smoothing:
        smoothing = self.model.smoothing
        if smoothing is None:
            raise ArgumentError("the model has no smoothing parameters; fit it")
        return smoothing

    @property
    def _more_facts(self) -> tuple[tuple[str, Cell], ...]:
        given = self.model.settings["smoothing"] is not None
        how = "given" if given else "marginal likelihood"
        return (
            *super()._more_facts,
            ("Smoothing parameters", how),
            ("Marginal log-likelihood", self.marginal_llf),
        )

    @property
    def _more_notes(self) -> tuple[str, ...]:
        notes = super()._more_notes
        whole = any("whole" in f.columns.arguments for f in self._smoothing.functions)
        if whole and self.model.n_experts > 1 and self.model.formula.random is not None:
            notes = (*notes, "Gate coefficients are constant: an index that changes within subjects cannot enter it.")
        how = "are given" if self.cov.given is None else "hold the uncertainty of"
        return (
            *notes,
            "Functions are penalised: parameters and criteria count effective degrees of freedom, and standard errors "
            f"{how} the smoothing parameters.",
        )


class SmoothGLMMResults(SmoothResults, GLMMResults):
    """A fitted mixture of generalised linear mixed models with penalised functions ``s(...)``.

    See Also
    --------
    SmoothResults, GLMMResults
    """

    def _mean(self, grid: Grid) -> tuple[list[smooth_bands.Course], Around]:
        """The expected response in the population, averaged over the random effects, at one trial."""
        e, at = self._link(), covariates_of(self.model.design.for_new(grid.rows))
        slopes = gradient_of(expected_responses, e, at)[:, :, 0].T
        limits = partial(e.response.limits, trials=at.trials)
        course = replace(mean_course(grid, expected_responses(e, at)[:, 0], slopes), limits=limits)
        return [course], Around(e.cov, e.shift)


def mean_course(grid: Grid, values: Array, slopes: Array) -> smooth_bands.Course:
    """The population mean on a grid, from its derivatives in all parameters, shape (G, P)."""
    moving = np.flatnonzero(slopes.any(axis=0))  # others may have no covariance
    return smooth_bands.Course("mean", "mean", "mean", None, grid.label, grid.x, values, slopes[:, moving], moving)


def _valid(test: FunctionTest) -> FunctionTest | InvalidTest:
    """A test, or why it has no p-value."""
    if np.isfinite(test.pvalue):
        return test
    return InvalidTest(
        f"coefficients of {' and '.join(test.functions)} have no standard errors (see flags); fit with "
        "cov_type='nonrobust', which trusts the model, or test with method='bootstrap' where there is one"
    )


def _test_frame(tests: Sequence[FunctionTest]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "hypothesis": [t.hypothesis for t in tests],
            "statistic": [t.statistic for t in tests],
            "df": [t.df for t in tests],
            "p_value": [t.pvalue for t in tests],
        },
        index=pd.Index([" - ".join(reversed(t.functions)) for t in tests], name="function"),
    )
