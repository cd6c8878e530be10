"""Pooling of fits to multiply imputed data: Rubin's rules on the scales of the limits, experts matched by label."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.stats import f as f_distribution

from mixmoe._typing import Array
from mixmoe.errors import ArgumentError
from mixmoe.inference.uncertainty import (
    DESCRIPTIONS,
    checked_alpha,
    delta_cov,
    delta_se,
    from_scales,
    on_scales,
    slopes_of_scales,
    two_sided,
    wald_limits,
    wald_statistics,
    without_parameters,
)
from mixmoe.inference.wald import (
    HypothesisSpec,
    InvalidTest,
    WaldTest,
    on_scales_of_limits,
    parse_hypotheses,
    refuse_wald,
)
from mixmoe.mixture.estimate import ParamLayout
from mixmoe.mixture_results import MoEResults
from mixmoe.output.names import NO_NAMES
from mixmoe.output.records import Table
from mixmoe.output.summary import Printed, header_table, parameter_tables, tidy
from mixmoe.results import Results

_LEAST_SHARE = 1e-4  # of the variance that is between imputations, so that degrees of freedom stay finite (mice)
_AGREEMENT = 0.7  # mean probability of the matched experts below which a reader is told


@dataclass(frozen=True, slots=True)
class Rubin:
    """Means and variances over imputations.

    Attributes
    ----------
    mean : ndarray, shape (P,)
    within, between : ndarray, shape (P, P)
        Mean of the covariances, and covariance of the estimates.
    m : int
        Imputations.
    """

    mean: Array
    within: Array
    between: Array
    m: int

    @property
    def total(self) -> Array:
        """``T = U + (1 + 1/m) B``, shape (P, P) (Rubin 1987, equation 3.1.5)."""
        return self.within + (1.0 + 1.0 / self.m) * self.between

    def of(self, slopes: Array) -> "Rubin":
        """The same of linear functions, shape (R, P); parameters without variances touch only those that use them."""
        mean = slopes @ np.where(slopes.any(axis=0), self.mean, 0.0)
        return Rubin(mean, delta_cov(slopes, self.within), delta_cov(slopes, self.between), self.m)

    def riv(self) -> Array:
        """Relative increase of each variance by what is missing, shape (P,)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((1.0 + 1.0 / self.m) * np.diag(self.between) / np.diag(self.within))

    def df(self, complete: Array | float) -> Array:
        """Degrees of freedom of each t, shape (P,), for those of complete data (Barnard & Rubin 1999)."""
        riv = self.riv()
        share = np.maximum(riv / (1.0 + riv), _LEAST_SHARE)  # of the variance between imputations
        rubin = (self.m - 1) / share**2
        with np.errstate(invalid="ignore"):
            observed = np.where(np.isinf(complete), np.inf, (complete + 1.0) / (complete + 3.0) * complete) * (
                1.0 - share
            )
            return np.asarray(np.where(np.isinf(observed), rubin, rubin * observed / (rubin + observed)))


def rubin(estimates: Array, covariances: Array) -> Rubin:
    """Rubin's rules (Rubin 1987, equations 3.1.2 to 3.1.4).

    Parameters
    ----------
    estimates : ndarray, shape (m, P)
    covariances : ndarray, shape (m, P, P)

    Returns
    -------
    Rubin
    """
    return Rubin(
        estimates.mean(axis=0), covariances.mean(axis=0), np.atleast_2d(np.cov(estimates.T, ddof=1)), len(estimates)
    )


class Pooled(Printed):
    """Estimates pooled over multiply imputed data.

    Attributes
    ----------
    params, bse, tvalues, pvalues, df_t : Series
        By parameter name; t statistics and their degrees of freedom (Barnard & Rubin 1999).
    riv, fmi : Series
        Relative increase of the variance by what is missing, and fraction of missing information.
    model, cov_type, nobs, n_units
        Those of the first fit.
    fits : tuple of Results
        With experts in the order of the first.
    shown_names : Names
        What the fits call experts and terms, if they agree.
    agreement : float
        Mean over units and fits of the probability that the expert has which the unit has in the first fit.
    """

    def __init__(
        self, fits: Sequence[Results], rules: Rubin, layout: ParamLayout, complete: Array, agreement: float
    ) -> None:
        scales, names = layout.scales, pd.Index(layout.names)
        self._rules, self._layout, self._complete = rules, layout, complete
        self._estimate = from_scales(rules.mean, scales)
        with np.errstate(divide="ignore", invalid="ignore"):
            self._slopes = 1.0 / slopes_of_scales(self._estimate, scales)  # d parameter / d scale
        self._matrix = rules.total * np.outer(self._slopes, self._slopes)
        self._errors, self._df = np.sqrt(np.diag(self._matrix)), rules.df(complete)
        statistic = wald_statistics(self._estimate, self._errors, layout)
        self.fits, self.agreement = tuple(fits), agreement
        self.model, self.cov_type = fits[0].model, fits[0].cov_type
        self.nobs, self.n_units = fits[0].nobs, fits[0].n_units
        first = fits[0].shown_names
        self.shown_names = first if all(fit.shown_names == first for fit in fits) else NO_NAMES
        self.params = pd.Series(self._estimate, names, name="estimate")
        self.bse = pd.Series(self._errors, names, name="std_error")
        self.df_t = pd.Series(self._df, names, name="df")
        self.tvalues = pd.Series(statistic, names, name="statistic")
        self.pvalues = pd.Series(two_sided(statistic, self._df), names, name="p_value")
        self.riv = pd.Series(rules.riv(), names, name="riv")
        self.fmi = ((self.riv + 2.0 / (self.df_t + 3.0)) / (self.riv + 1.0)).rename("fmi")

    def cov_params(self) -> pd.DataFrame:
        """Total covariance of the pooled estimates, labelled."""
        return pd.DataFrame(self._matrix, index=self.params.index, columns=self.params.index, copy=True)

    def conf_int(self, alpha: float = 0.05) -> pd.DataFrame:
        """Limits by t, lower in column 0 and upper in column 1; of standard deviations on the log scale."""
        limits = wald_limits(self._estimate, self._errors, self._layout, alpha, self._df)
        return pd.DataFrame({0: limits.lower, 1: limits.upper}, index=self.params.index)

    def to_frame(self, alpha: float = 0.05) -> pd.DataFrame:
        """One row per parameter.

        Returns
        -------
        DataFrame
            Columns: term, block, expert, estimate, std_error, statistic, p_value, conf_low, conf_high, df, riv, fmi.
        """
        frame = tidy(self._layout, self._estimate, self._errors, alpha, self._df)
        return frame.assign(riv=self.riv, fmi=self.fmi)

    def wald_test(self, hypotheses: HypothesisSpec) -> WaldTest | InvalidTest:
        """Joint test of linear hypotheses.

        Parameters
        ----------
        hypotheses : str, sequence of str, ndarray, or (ndarray, ndarray)
            As in `Results.wald_test`.

        Returns
        -------
        WaldTest or InvalidTest
            F. Several hypotheses share one relative increase of the variance, as in the statistic D1.

        References
        ----------
        Li, Raghunathan & Rubin (1991), JASA 86, 1065-1073; Barnard & Rubin (1999), Biometrika 86, 948-955.
        """
        parsed = parse_hypotheses(hypotheses, self._layout.names)
        refusal = refuse_wald(parsed, self._estimate, self._matrix, self._layout)
        if refusal is not None:
            return refusal
        tested = on_scales_of_limits(parsed, self._estimate, self._layout)
        slopes = tested.slopes * self._slopes
        rules, k = self._rules.of(slopes), len(slopes)
        if np.linalg.matrix_rank(slopes) < k:
            return InvalidTest(f"of these {k} hypotheses some follow from the others; leave those out")
        if k == 1:
            riv = float(rules.riv()[0])
            used = parsed.matrix[0] != 0
            df = float(rules.df(float(self._complete[used].min()))[0])
        else:
            riv = float((1.0 + 1.0 / rules.m) * np.trace(np.linalg.solve(rules.within, rules.between)) / k)
            df = _joint_df(riv, k, rules.m)
        inside = float(tested.difference @ np.linalg.solve(rules.within, tested.difference))
        statistic = inside / (k * (1.0 + riv))
        p_value = float(f_distribution.sf(statistic, k, df))
        difference, errors = parsed.matrix @ self._estimate - parsed.values, delta_se(parsed.matrix, self._matrix)
        return WaldTest(parsed.labels, difference, errors, statistic, k, p_value, self.fits[0].cov_type, df)

    def tables(self, alpha: float = 0.05) -> tuple[Table, ...]:
        """Header, parameters, and what is missing of each."""
        first = self.fits[0]
        facts = (
            ("Formula", first.model.formula.text),
            ("Imputations", len(self.fits)),
            ("Experts", first.model.n_experts),
            ("Units", first.n_units),
            ("Rows", first.nobs),
            ("Mean log-likelihood", float(np.mean([fit.llf for fit in self.fits]))),
            ("Converged", f"{sum(fit.converged for fit in self.fits)} of {len(self.fits)} fits"),
        )
        shares = np.mean([fit.em.responsibilities.mean(axis=0) for fit in self.fits], axis=0)
        parameters = parameter_tables(self._layout, self.to_frame(alpha), shares, checked_alpha(alpha))
        return (header_table(facts), *parameters, self._missing())

    def _missing(self) -> Table:
        within = np.sqrt(np.diag(self._rules.within)) * self._slopes
        between = np.sqrt(np.diag(self._rules.between)) * np.abs(self._slopes)
        columns = np.column_stack([within, between, self.riv, self.fmi])
        return Table(
            key="missing",
            title="Missing information",
            columns=("SE within", "SD between", "Rel. increase", "Fraction missing"),
            index=tuple(self.params.index),
            cells=tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in columns),
            formats=("num", "num", ".3f", ".3f"),
        )

    @property
    def title(self) -> str:
        """Heading above the tables."""
        return f"{self.fits[0]._title}, pooled over {len(self.fits)} imputed data sets"

    @property
    def remarks(self) -> tuple[str, ...]:
        """How it was pooled, and the flags of the fits."""
        how = (
            f"Rubin's rules; standard errors within fits: {DESCRIPTIONS[self.cov_type]}; t with the degrees of "
            "freedom of Barnard and Rubin. Standard deviations are pooled on the log scale, correlations on Fisher's z "
            "scale."
        )
        return (how, *self._notes_of_table)

    @property
    def _notes_of_table(self) -> tuple[str, ...]:
        """What a table of several fits says below about this one: doubtful matches, flags of the fits."""
        doubt = (
            f"Experts of the fits were matched by the units that they hold; the mean probability of the matched expert "
            f"is {self.agreement:.2f} only: the classes are not the same in all imputed data sets."
        )
        flags: dict[str, list[int]] = {}
        for i, fit in enumerate(self.fits, 1):
            for flag in fit.flags:
                flags.setdefault(flag.note, []).append(i)
        said = (f"Fit {', '.join(map(str, where))}: {note}" for note, where in flags.items())
        return (*([doubt] if self.agreement < _AGREEMENT else []), *said)


def pool(fits: Sequence[Results], df: float | None = None) -> Pooled:
    """Pool fits of one model to multiply imputed data sets by Rubin's rules.

    Experts are matched to those of the first fit by the units that they hold, so that labels that differ between fits
    do not matter.

    Parameters
    ----------
    fits : sequence of results
        At least two, of one formula with the same options, to data that differ in imputed values only.
    df : float, optional
        Degrees of freedom of complete data, such as rows minus coefficients for a linear model with few rows. By
        default those of the fits' own t statistics; infinite where these are normal.

    Returns
    -------
    Pooled
        ``params``, ``bse``, ``pvalues``, ``fmi``, ``conf_int()``, ``wald_test()``, ``to_frame()``, ``summary()``.

    Raises
    ------
    ArgumentError
        If there are fewer than two fits, or they are not of one model and the same units.

    References
    ----------
    Rubin (1987), Multiple imputation for nonresponse in surveys. Barnard & Rubin (1999), Biometrika 86, 948-955.

    Examples
    --------
    >>> import mixmoe as mm, numpy as np
    >>> data = mm.datasets.load("sleepstudy")
    >>> rng = np.random.default_rng(0)
    >>> fits = []
    >>> for _ in range(5):
    ...     imputed = data.assign(x=data["days"] + rng.normal(size=len(data)))  # in place of a real imputation
    ...     fits.append(mm.fit("reaction ~ x | re: (1 | subject)", imputed, experts=1))
    >>> bool(mm.pool(fits).fmi["expert1.x"] > 0)
    True
    """
    fits = _checked(fits)
    matched = [fits[0], *(_matched(fit, fits[0]) for fit in fits[1:])]
    layout = matched[0].model.layout
    scales = layout.scales
    values = [np.asarray(fit.params, dtype=float) for fit in matched]
    with np.errstate(divide="ignore", invalid="ignore"):  # at the end of a space, where there is no standard error
        slopes = [slopes_of_scales(v, scales) for v in values]
        moved = np.array([on_scales(v, scales) for v in values])
    covariances = np.array([fit.cov.matrix * np.outer(s, s) for fit, s in zip(matched, slopes, strict=True)])
    rules = rubin(moved, covariances)
    blank = [int(i) for i in np.flatnonzero(~np.isfinite(np.diag(rules.total)))]  # no valid standard error in some fit
    within, between = without_parameters(rules.within, blank), without_parameters(rules.between, blank)
    complete = _complete_df(matched, df)
    # Mean probability of each unit's most probable expert of the first fit in the others.
    best = matched[0].em.responsibilities.argmax(axis=1)
    of_best = [fit.em.responsibilities[np.arange(len(best)), best].mean() for fit in matched[1:]]
    return Pooled(matched, Rubin(rules.mean, within, between, rules.m), layout, complete, float(np.mean(of_best)))


def _checked(fits: Sequence[Results]) -> list[Results]:
    """At least two fits of one model to the same units."""
    if isinstance(fits, Results) or not isinstance(fits, Sequence) or len(fits) < 2:
        n = len(fits) if isinstance(fits, Sequence) else 1
        raise ArgumentError(f"pool needs the fits of at least two imputed data sets in a list, got {n}")
    for i, fit in enumerate(fits, 1):
        if not isinstance(fit, Results):
            raise ArgumentError(f"pool needs fitted models, got {type(fit).__name__} as number {i}")
        for what, own, first in (
            ("formula", fit.model.formula.text, fits[0].model.formula.text),
            ("number of experts", fit.model.n_experts, fits[0].model.n_experts),
            ("cov_type", fit.cov_type, fits[0].cov_type),
            ("parameters", fit.model.layout.names, fits[0].model.layout.names),
        ):
            if own != first:
                raise ArgumentError(
                    f"pool needs fits of one model; the {what} of fit {i} is {own!r}, that of fit 1 {first!r}"
                )
        if not fit._unit_index.equals(fits[0]._unit_index):
            raise ArgumentError(
                f"pool needs fits to the same units; fit {i} has {fit.n_units}, fit 1 {fits[0].n_units}, or in other "
                "rows: impute all missing values, in all data sets"
            )
    return list(fits)


def _complete_df(fits: Sequence[Results], df: float | None) -> Array:
    """Degrees of freedom of complete data, shape (P,): the given ones, or the mean of those of the fits."""
    if df is None:
        return np.asarray(np.mean([fit.df_t for fit in fits], axis=0), dtype=float)
    if isinstance(df, bool) or not isinstance(df, int | float | np.number) or not df > 0:
        raise ArgumentError(f"df must be a positive number, the degrees of freedom of complete data, got {df!r}")
    return np.full(len(fits[0].params), float(df))


def _matched(fit: Results, first: Results) -> Results:
    """The fit with its experts in the order of those of the first, by the units that they hold."""
    if not isinstance(fit, MoEResults) or fit.model.n_experts < 2:
        return fit
    shared = first.em.responsibilities.T @ fit.em.responsibilities  # units that two experts hold together
    _, order = linear_sum_assignment(-shared)
    return fit if (order == np.arange(len(order))).all() else fit.relabel([int(k) + 1 for k in order])


def _joint_df(riv: float, k: int, m: int) -> float:
    """Denominator degrees of freedom of D1 (Li, Raghunathan & Rubin 1991, equation 1.18)."""
    riv = max(riv, _LEAST_SHARE)
    t = k * (m - 1)
    if t > 4:
        return 4.0 + (t - 4.0) * (1.0 + (1.0 - 2.0 / t) / riv) ** 2
    return t * (1.0 + 1.0 / k) * (1.0 + 1.0 / riv) ** 2 / 2.0
