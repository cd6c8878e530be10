"""Results of a varying-coefficient mixture of experts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import pandas as pd

from mixmoe._typing import Array
from mixmoe.arguments import checked_choice, checked_count, checked_jobs, checked_rng
from mixmoe.check.diagnosis import FITTED, FittedKind
from mixmoe.design.beside import check_beside
from mixmoe.errors import ConvergenceWarning, warn
from mixmoe.families import Distribution, GatePoint
from mixmoe.inference.uncertainty import ParamCov, checked_alpha
from mixmoe.inference.wald import InvalidTest
from mixmoe.mixture.estimate import EMFit, classification_entropy
from mixmoe.mixture_results import MoEResults
from mixmoe.output.predictions import IntervalOf, Kind, Scale, checked_wanted
from mixmoe.output.records import Cell, Curve, Table
from mixmoe.output.summary import Summary, header_table, named_summary
from mixmoe.varying import function_tables
from mixmoe.varying.bands import LevelProcess, level_process
from mixmoe.varying.em_steps import posterior
from mixmoe.varying.fitted import FittedVCMoE, checked_kind, reported_values
from mixmoe.varying.function_frames import BandRequest, band_frame, function_frame
from mixmoe.varying.glr import METHODS as NULL_LAWS
from mixmoe.varying.glr import GLRRequest, GLRTest, asymptotic_tests, tested, untested
from mixmoe.varying.leave_one_out import effective_df, fitness
from mixmoe.varying.likelihood_limits import ThetaProfile, theta_profile
from mixmoe.varying.prediction import predicted, prediction_rows, response_places

SEED = 20260101  # of the critical values in summaries and figures, so that they print the same every time


class VCMoEResults(MoEResults):
    """A fitted varying-coefficient mixture of experts.

    Parameters
    ----------
    model : FittedVCMoE
    fit : EMFit
    cov : ParamCov

    Attributes
    ----------
    bandwidth, gate_bandwidth : float
        In units of the index; the same unless the gate has one of its own. With a span the median over the grid.
    span : float or None
        Share of the rows in each window, if that settles its width.
    selection, gate_selection : DataFrame or None
        Cross-validated criterion by bandwidth, and by that of the gate if it was sought alone.
    effective_df : float
        Effective number of parameters of the local fits; AIC, AICc and BIC charge it. Functions that were drawn towards
        lines have fewer, so that the criteria are on the side of constants.
    nobs, n_units : int
        Rows, and independent units, which are clusters or rows; those of weight zero are left out. `n_units` is the N
        of AICc, BIC, SABIC and ICL. The criteria take `llf` with weights that sum to the effective number of rows, see
        `VCMoE`.
    params : Series
        Constants, then the functions at five quantiles of the index; `functions` and `bands` give all of them. Limits
        in `to_frame`, `tidy` and exported parameters are pointwise ones around these estimates, not corrected for bias;
        those in the tables of `summary` are simultaneous and corrected, see `bands`.

    See Also
    --------
    MoEResults : everything that the families share.
    """

    model: FittedVCMoE

    def __init__(self, model: FittedVCMoE, fit: EMFit, cov: ParamCov) -> None:
        super().__init__(model, fit, cov)
        gate = model.settings["gate_bandwidth"]
        span = model.settings["span"]
        self.span = None if span is None else float(span)
        self.bandwidth = float(model.settings["bandwidth"]) if span is None else model.problem.windows.bandwidth
        self.gate_bandwidth = self.bandwidth if gate is None else float(gate)
        self.selection, self.gate_selection = model.selection, model.gate_selection
        self.effective_df = effective_df(model.problem, model.coef) + float(model.estimated_shape is not None)
        self.nobs, self.n_units = model.nobs, model.n_units
        values = fitness(model.weight_scale * fit.loglik, self.effective_df, self.n_units)
        self.aic, self.aicc, self.bic = values.aic, values.aicc, values.bic
        self.df_model = values.df  # type: ignore[assignment]  # effective numbers are no integers
        self.sabic = values.aic + values.df * float(np.log((self.n_units + 2.0) / 24.0) - 2.0)
        self.icl = self.bic + 2.0 * classification_entropy(fit.responsibilities)
        self.df_resid = self.nobs - values.df
        if model.problem.family.name != "gaussian":  # experts have a log or logit link
            self._ratios = ("expert", "gate")
        self._processes: dict[tuple[str, int], LevelProcess] = {}
        self._thetas: dict[str, ThetaProfile | None] = {}
        self._tests: pd.DataFrame | None = None  # of constancy, asymptotic

    def functions(self, u: Any = None) -> pd.DataFrame:
        """The coefficient functions as a tidy frame.

        Parameters
        ----------
        u : array-like, optional
            Index values, by default the grid.

        Returns
        -------
        DataFrame
            Columns: coefficient, block, expert, term, the index, estimate.
        """
        return function_frame(self.model, u)

    def bands(
        self,
        of: str = "coefficients",
        alpha: float = 0.05,
        *,
        method: str = "multiplier",
        bias: str = "rbc",
        derivative: int = 0,
        at: Mapping[str, Any] | None = None,
        draws: int = 4000,
        n_boot: int = 199,
        rng: Any = None,
        n_jobs: int = 1,
        progress: bool | None = None,
    ) -> pd.DataFrame:
        """Pointwise and simultaneous bands over the whole index range, with the covariance of the fit, see `with_cov`.

        Parameters
        ----------
        of : {"coefficients", "probabilities", "experts", "mean", "differences"}
            Coefficient functions of experts and gate and the dispersions; probabilities of the experts by the gate;
            expected response of each expert; population mean; differences of the coefficients of two experts.
        alpha : float
            One minus the level of the bands.
        method : {"multiplier", "asymptotic", "bootstrap"}
            Critical value of the simultaneous band: Gaussian multiplier bootstrap over the grid; supremum of the
            limiting process; parametric bootstrap (with a covariance over clusters: of these) with warm-started refits.
        bias : {"rbc", "undersmooth", "none"}
            Robust bias correction (local-quadratic fit, with its own standard errors; where the bandwidth was
            cross-validated, at one smaller by n^(-1/20), and in mixtures at that of the regressions of the experts with
            memberships known if it is smaller still), a smaller bandwidth, or nothing.
            In simulations with n = 1000 only ``"rbc"`` attains the nominal coverage at a bandwidth that is good for
            estimation.
        derivative : {0, 1}
            With 1 bands of the derivatives by the index of the coefficients of experts and gate (not of dispersions),
            or of their differences, from local fits one degree higher: cubic with ``"rbc"``, else quadratic. A good
            bandwidth for derivatives is larger than one for the functions. ``estimate`` is the slope of the fit.
        at : mapping, optional
            Covariate values for probabilities and means; others at their median or most frequent category, an offset
            at zero.
        draws : int
            For the multiplier bootstrap.
        n_boot, n_jobs, progress
            For ``method="bootstrap"``.
        rng : int, numpy.random.Generator or None

        Returns
        -------
        DataFrame
            One row per function and grid point: coefficient, block, expert, term, the index, estimate (of the fit),
            center (of the bands), std_error, conf_low, conf_high (pointwise), band_low, band_high (simultaneous), mark.
            Limits of gate coefficients, other than those of ``method="bootstrap"``, follow the shape of the likelihood
            of a log odds and lie farther out on the side away from zero. Limits of theta are those of its profile
            likelihood, whatever the method; the upper one is infinite where nothing bounds theta from above.

            ``mark`` says what a value lacks: ``"thin"``, no band because too few rows carry the standard error (fewer
            than 2 degrees of freedom, as at the thin ends of an index); ``"no maximum"``, no band because a local
            likelihood has no maximum near the fit; ``"unsteady"``, no band because the information about an expert
            alone is noise (its relative standard error is above 3), as where experts coincide; ``"limit"``, a
            dispersion that runs to its limit, without standard error; ``"outside"``, an estimate outside its own band;
            ``"outside limits"``, one in its band but outside its pointwise limits; else empty.
            ``attrs["bandwidth"]`` is the bandwidth at which the bands are made (of a gate with its own: that of the
            experts).

        Warns
        -----
        ConvergenceWarning
            If there are values without a maximum.
        """
        request = BandRequest(of, alpha, method, bias, at, draws, n_boot, n_jobs, progress, derivative=derivative)
        frame = self._bands(request.checked(), rng)
        gaps = function_tables.lost_bands(frame)
        if gaps is not None:
            warn(gaps.message, ConvergenceWarning)
        return frame

    def test_varying(
        self,
        which: str | Sequence[str] | None = None,
        *,
        method: str = "bootstrap",
        n_boot: int = 199,
        rng: Any = None,
        n_jobs: int = 1,
        progress: bool | None = None,
    ) -> "GLRTest | pd.DataFrame | InvalidTest":
        """Generalised likelihood-ratio test that coefficients are constant along the index.

        Parameters
        ----------
        which : str or sequence of str, optional
            Functions held constant together under the null: ``"expert1.z1"``, ``["gate2.x1", "gate2.Intercept"]``,
            ``"dispersion"``, ``"gate"``, ``"experts"``, ``"all"``. By default each varying function on its own and all
            together, as a frame.
        method : {"bootstrap", "asymptotic", "calibrated"}
            Null distribution: parametric bootstrap from the null fit; scaled chi-square of Fan, Zhang and Zhang (2001),
            its mean and variance those of the smoother at the index values of the data; the same with mean and variance
            of a few bootstrap draws (Wilks phenomenon).
        n_boot : int
            Draws; of ``"calibrated"`` a quarter of them.
        rng : int, numpy.random.Generator or None
        n_jobs : int
        progress : bool, optional

        Returns
        -------
        GLRTest, DataFrame or InvalidTest
            ``statistic`` is the difference of the log-likelihoods, not twice it; ``scale`` times it is about chi-square
            with ``df`` degrees of freedom if the functions are constant (Fan, Zhang and Zhang 2001). Both are those of
            the law that `method` names, and so differ between methods.

            An `InvalidTest` with its reason if one of the functions is infinite somewhere (flag ``separated_gate``; NaN
            in a frame), or if rows are clustered: they are not independent, and the model cannot draw them.
            Simultaneous `bands` with standard errors over clusters rule out a constant where no horizontal line fits
            into them. Where a column forced a wide bandwidth (flag ``forced_bandwidth``), fits are compared at
            that which the other functions would have had: a wide one cuts them off, which the test takes for variation.
        """
        checked_choice(method, "method", NULL_LAWS)
        checked_count(n_boot, "n_boot", least=19)
        request = GLRRequest(method, n_boot, checked_jobs(n_jobs), progress)
        found = tested(self.model, which, request, checked_rng(rng))
        if method == "asymptotic" and isinstance(found, pd.DataFrame):
            self._tests = found  # the next summary shows them
        return found

    def predict(
        self,
        new: Any = None,
        kind: Kind = "all",
        *,
        history: Any = None,
        interval: IntervalOf | None = None,
        alpha: float = 0.05,
        scale: Scale = "response",
        extrapolate: bool = False,
    ) -> pd.DataFrame:
        """Expert probabilities, means of the experts and of the population, limits of a new response.

        Parameters
        ----------
        new : DataFrame or mapping, optional
            Rows to predict; the response is not needed and never used. By default the data of the fit.
        kind : {"all", "mean", "experts", "probabilities", "subject"}
            ``"mean"``: population mean; ``"experts"``: mean of each expert; ``"probabilities"``: of the experts, by the
            gate, or with `history` posterior ones; ``"subject"``: mean of the row given its own response in `history`,
            or without it in the data of the fit, since rows are the units; ``"all"``: probabilities, means of the
            experts, and the row's mean if there is a `history`, else the population mean.
        history : DataFrame or mapping, optional
            The rows of `new` with their responses. Rows without one are predicted from the gate alone. It plays no part
            in ``"mean"`` and ``"experts"``.
        interval : {None, "prediction"}
            For means limits that hold a new response with probability ``1 - alpha`` under the
            fitted mixture, in columns ``_low`` and ``_high``, and its standard deviation in ``_se``. Confidence limits
            are those of `bands`.
        alpha : float
            One minus the level of the limits.
        scale : {"response", "link"}
            Of means: expected responses or linear predictors.
        extrapolate : bool
            Whether index values outside the range of the fit are allowed; lines are continued there.

        Returns
        -------
        DataFrame
            One row per row of `new`, in its order; NaN where a covariate is missing.

        Raises
        ------
        ArgumentError
            For ``interval="confidence"``, or if `history` are other rows than those to predict.
        DesignError
            If a column is missing, a category is new, or the index leaves its range.
        """
        return predicted(self.model, new, history, checked_wanted(kind, interval, alpha, scale), extrapolate)

    def fitted(self, kind: FittedKind = "mean") -> pd.Series:
        """Fitted values, one per row used, in the order of the data.

        Parameters
        ----------
        kind : {"mean", "subject"}
            Population mean, which does not use the response of the row, or mean of the row given its response.

        Returns
        -------
        Series
        """
        checked_choice(kind, "kind", FITTED)
        return self.predict(kind=kind)["mean"].rename("fitted")

    def loglik_of(self, data: Any) -> float:
        """Log-likelihood of other data, with their response, under the estimates; functions are continued as lines."""
        at = prediction_rows(self.model, data, True, True)
        check_beside(at.design, self.model.settings, ("weights",))
        return float(posterior(at.rows, self.model.problem.family, at.natural).loglik)

    def _in_order(self, places: Sequence[int]) -> Self:
        model = self.model.reordered(np.array(places, dtype=np.intp))
        params = reported_values(model.problem, model.coef, model.points)
        fit = replace(self.em, params=params, responsibilities=self.em.responsibilities[:, list(places)])
        return type(self)(model, fit, model.covariance(fit, self.cov.kind, correction=self.cov.corrected))

    def tables(self, alpha: float = 0.05, at: Any = None, *, progress: bool | None = None) -> tuple[Table, ...]:
        """Header, constants, and per expert and gate the functions.

        Parameters
        ----------
        alpha : float
            One minus the level of the limits.
        at : array-like, optional
            Index values at which functions are tabulated, by default grid points at five quantiles of the index; limits
            of bands between grid points are interpolated.
        progress : bool, optional
            Of the first call, which computes bands and tests; by default in a terminal, after three seconds.

        Returns
        -------
        tuple of Table
            Of each function: its range, the p-value of the asymptotic GLR test that it is constant (not with clustered
            rows, and with more than 20,000 rows only after ``test_varying(method="asymptotic")``, since each test takes
            a fit of its own), and values with bands.
        """
        alpha = checked_alpha(alpha)
        frame = (
            None if self.model.problem.const.all() else self._bands(BandRequest(alpha=alpha, progress=progress), SEED)
        )
        if self._tests is None and untested(self.model) is None:
            self._tests = asymptotic_tests(self.model, progress)
        constants = function_tables.constant_tables(self.model, self.to_frame(alpha), alpha)
        return (
            header_table(function_tables.facts(self)),
            *constants,
            *function_tables.function_tables(self.model, frame, self._tests, self.flags, alpha, at),
        )

    def summary(self, alpha: float = 0.05, at: Any = None, *, progress: bool | None = None) -> Summary:
        """Header, constants, functions and notes; prints as text, and has as_html(), as_latex(), as_markdown().

        Parameters
        ----------
        alpha, at, progress
            See `tables`.
        """
        tables = self.tables(alpha, at, progress=progress)
        return named_summary(self.shown_names, function_tables.title(self), tables, self._remarks, self._printed)

    @property
    def _more_notes(self) -> tuple[str, ...]:
        return function_tables.about_penalty(self.model)

    def curves(self, kind: str = "functions", **options: Any) -> tuple[Curve, ...]:
        """Curves of a figure.

        Parameters
        ----------
        kind : {"functions", "derivatives", "probabilities", "means", "differences", "bandwidth", ...}
            Every expert coefficient with its bands, one panel per term, and the gate as probabilities; derivatives of
            expert coefficients; gate probabilities; expected response of each expert; differences of experts; the
            cross-validated criterion of the bandwidth, and with ``"gate_bandwidth"`` of that of the gate.
        **options
            Of `bands`: ``alpha=``, ``bias=``, ``at=`` ...

        Returns
        -------
        tuple of Curve
            ``y`` is the estimate, as in `summary`, `functions` and `predict`.

        Notes
        -----
        Bands are corrected for bias unless ``bias=`` says otherwise, so that the line need not run in their middle. In
        a figure the darker shade holds the pointwise limits, the lighter one between dotted lines the simultaneous
        band. Where there are no bands, as at thin ends of the index, the line runs alone; where they are very wide they
        run out of the figure. Dispersions have a log axis.
        """
        checked_choice(kind, "kind", self._curve_kinds)
        return function_tables.curves(self, kind, {"rng": SEED, **options})

    @property
    def _rivals(self) -> int:
        return len(self.em.starts.logliks)

    @property
    def _starts_words(self) -> str:
        """Of many random starts only few distinct ones go on, so that the best is not counted among all of them."""
        n, best = self._rivals, self.em.starts.n_replicated
        found = "they led to one solution" if n == 1 else f"{best} of {n} distinct solutions within 0.5 of the best"
        return f"{self.em.starts.n_starts} of each kind; {found}"

    @property
    def _ends_words(self) -> tuple[str, str]:
        """Starts are compared after a few iterations of the joint EM, from the best of which the fit goes on."""
        return "Distinct solutions after a few iterations from the starts", (
            f"The best of them went on to the fit, whose log-likelihood is {self.llf:.3f}. The joint EM ascends the "
            "log-likelihood only nearly, so that the last change may be below zero."
        )

    @property
    def _more_facts(self) -> tuple[tuple[str, Cell], ...]:
        return function_tables.bandwidth_facts(self)

    _default_plot = "functions"
    _checked_cov = staticmethod(checked_kind)
    _curve_kinds = tuple(function_tables.PLOTS)
    _report_plots = ("functions", "means")

    _resid_kinds = ("mean", "subject", "quantile")

    def _distribution(self, given: str) -> Distribution:
        return response_places(self.model)

    def _axis(self) -> str | None:
        return str(self.model.design.names.index)

    def _draw(self, rng: np.random.Generator) -> Array:
        return self.model.drawn(self.model.estimated(self.em), rng)

    def _gate_points(self) -> tuple[GatePoint, ...]:
        return self.model.gate_points()

    def _bands(self, request: BandRequest, rng: Any) -> pd.DataFrame:
        """Bands over the units of the covariance of the fit."""
        model, key = self.model, (request.bias, request.derivative)
        clusters = model.clusters if self.cov_type == "cluster" else None
        request = replace(request, clusters=clusters)
        if key not in self._processes:  # kept because all output needs it
            how = (request.bias, clusters, self.cov.corrected, request.derivative, model.searched)
            self._processes[key] = level_process(model.problem, model.coef, *how)
        process, theta = self._processes[key], None
        if request.of == "coefficients" and not request.derivative:
            if request.bias not in self._thetas:
                self._thetas[request.bias] = theta_profile(process, request.progress)
            theta = self._thetas[request.bias]
        return band_frame(model, process, theta, request, checked_rng(rng))
