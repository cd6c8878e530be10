"""Statsmodels' likelihood results with labels; the one file on statsmodels' base class."""

from collections.abc import Callable
from typing import Literal, NoReturn, get_args

import numpy as np
import pandas as pd
from statsmodels.base.model import LikelihoodModelResults
from statsmodels.stats.contrast import ContrastResults

from mixmoe._typing import Array
from mixmoe.arguments import checked_choice
from mixmoe.errors import ArgumentError
from mixmoe.inference.small_samples import degrees_of_freedom
from mixmoe.inference.uncertainty import (
    Limits,
    ParamCov,
    bca_limits,
    checked_alpha,
    critical,
    delta_se,
    two_sided,
    wald_limits,
    wald_statistics,
)
from mixmoe.inference.wald import (
    Hypotheses,
    HypothesisSpec,
    InvalidTest,
    WaldTest,
    on_scales_of_limits,
    parse_hypotheses,
    refuse_wald,
    wald_test,
)
from mixmoe.mixture.estimate import ParamLayout

Method = Literal["wald", "bca"]


def _refused(name: str, instead: str) -> Callable[..., NoReturn]:
    """A method that statsmodels has and this package does not, which says so."""

    def method(self: object, *args: object, **kwargs: object) -> NoReturn:
        raise ArgumentError(f"the results of mixmoe have no {name}; {instead}")

    method.__name__, method.__doc__ = name, f"Not offered; {instead}."
    return method


class Contrasts(ContrastResults):
    """Linear combinations of parameters, each tested on its own.

    Parameters
    ----------
    hypotheses : Hypotheses
    params : ndarray, shape (P,)
    std_error, statistic, df : ndarray, shape (R,)
    layout : ParamLayout
    """

    def __init__(
        self,
        hypotheses: Hypotheses,
        params: Array,
        std_error: Array,
        statistic: Array,
        df: Array,
        layout: ParamLayout,
    ) -> None:
        effect = hypotheses.matrix @ params - hypotheses.values
        if np.isinf(df).all():
            super().__init__(effect=effect, statistic=statistic, sd=std_error, distribution="norm")
        else:
            super().__init__(effect=effect, t=statistic, sd=std_error, df_denom=df)
        self.c_names = list(hypotheses.labels)
        self._hypotheses, self._params, self._df, self._layout = hypotheses, params, df, layout

    def conf_int(self, alpha: float = 0.05) -> Array:
        """Limits of the differences, shape (R, 2), on the scale on which they are tested."""
        half = critical(alpha, self._df) * self.sd
        limits = np.column_stack([self.effect - half, self.effect + half])
        for i, row in enumerate(self._hypotheses.matrix):
            used = np.flatnonzero(row)
            if len(used) == 1 and self._layout.parameters[used[0]].scale != "identity":
                one = ParamLayout((self._layout.parameters[used[0]],))
                found = wald_limits(self._params[used], self.sd[[i]] / np.abs(row[used]), one, alpha, self._df[[i]])
                ends = row[used] * np.concatenate([found.lower, found.upper]) - self._hypotheses.values[i]
                limits[i] = np.sort(ends)
        return limits


class LabelledResults(LikelihoodModelResults):
    """Estimates, standard errors and Wald tests by parameter name.

    Parameters
    ----------
    model : object
    layout : ParamLayout
    params : ndarray, shape (P,)
    cov : ParamCov
    df_resid : float

    Attributes
    ----------
    params, bse, tvalues, pvalues : Series
        By parameter name. `tvalues` (t or z statistics) and `pvalues` are NaN where zero is no meaningful hypothesis,
        as for standard deviations, and where there is no valid standard error. Of correlations they are those of
        Fisher's z, on which scale their limits are.
    llf : float
        Log-likelihood at the estimates.
    cov : ParamCov
    cov_type : str
    df_resid : float
    """

    # Statsmodels computes these lazily from unlabelled arrays; a plain attribute takes their place.
    llf: float = np.nan
    bse: pd.Series = pd.Series(dtype=float)
    tvalues: pd.Series = bse
    pvalues: pd.Series = bse

    def __init__(self, model: object, layout: ParamLayout, params: Array, cov: ParamCov, df_resid: float) -> None:
        super().__init__(model, params, normalized_cov_params=cov.matrix, scale=1.0)
        self._layout, self._estimate, self.cov, self.cov_type = layout, params, cov, cov.kind
        self.df_resid = df_resid
        self._errors = np.sqrt(np.where(np.diag(cov.matrix) >= 0, np.diag(cov.matrix), np.nan))
        self._z = wald_statistics(params, self._errors, layout)
        self._df = degrees_of_freedom(cov.moments, np.eye(len(params)))
        names = pd.Index(layout.names)
        self.params = pd.Series(params, names, name="estimate", copy=True)
        self.bse = pd.Series(self._errors, names, name="std_error", copy=True)
        self.tvalues = pd.Series(self._z, names, name="statistic", copy=True)
        self.pvalues = pd.Series(two_sided(self._z, self._df), names, name="p_value")

    def cov_params(self) -> pd.DataFrame:
        """Covariance of the estimates, labelled; NaN for parameters without valid standard error."""
        names = pd.Index(self._layout.names)
        return pd.DataFrame(self.cov.matrix, index=names, columns=names, copy=True)

    @property
    def df_t(self) -> pd.Series:
        """Degrees of freedom of the t statistics and limits, by parameter name; infinite where these are normal.

        Satterthwaite's (Bell & McCaffrey 2002) for sandwich covariances of one expert.
        """
        return pd.Series(self._df, pd.Index(self._layout.names), name="df", copy=True)

    def conf_int(self, alpha: float = 0.05, method: Literal["wald", "bca"] = "wald") -> pd.DataFrame:
        """Confidence limits, lower in column 0 and upper in column 1.

        Parameters
        ----------
        alpha : float
            One minus the level.
        method : {"wald", "bca"}
            ``"bca"``: bias-corrected and accelerated limits from the replicates of a bootstrap (Efron 1987), after
            ``with_cov("bootstrap", n_boot=1000)`` or so.

        Returns
        -------
        DataFrame
            Wald limits of standard deviations and all other positive parameters (dispersions, decay of a correlation,
            degrees of freedom) are computed on the log scale, those of correlations on Fisher's z scale.

        Raises
        ------
        ArgumentError
            If there are no replicates for ``"bca"``.
        """
        checked_choice(method, "method", get_args(Method))
        if method == "wald":
            limits = wald_limits(self._estimate, self._errors, self._layout, alpha, self._df)
        else:
            limits = self._bca(checked_alpha(alpha))
        return pd.DataFrame({0: limits.lower, 1: limits.upper}, index=pd.Index(self._layout.names))

    def _bca(self, alpha: float) -> Limits:
        draws = self.cov.draws
        if draws is None:
            raise ArgumentError(
                f"method='bca' needs the replicates of a bootstrap, got cov_type={self.cov_type!r}; "
                "use with_cov('bootstrap', n_boot=1000).conf_int(method='bca')"
            )
        shaped = np.where(np.isnan(self._errors), np.nan, draws.acceleration)
        return bca_limits(self._estimate, draws.values, shaped, alpha)

    def wald_test(self, hypotheses: HypothesisSpec) -> WaldTest | InvalidTest:
        """Joint Wald test of linear hypotheses.

        Parameters
        ----------
        hypotheses : str, sequence of str, ndarray, or (ndarray, ndarray)
            ``"expert1.time = expert2.time"``; several in a list or separated by commas; a matrix of coefficients, with
            right sides or with zeros.

        Returns
        -------
        WaldTest or InvalidTest
            Chi-squared, or F where statistics are t (see `df_t`). An `InvalidTest` with its reason if a parameter has
            no valid standard error or the hypothesis puts a standard deviation at zero.
        """
        parsed = parse_hypotheses(hypotheses, self._layout.names)
        return wald_test(parsed, self._estimate, self.cov.matrix, self._layout, self.cov_type, self.cov.moments)

    def f_test(self, hypotheses: HypothesisSpec) -> WaldTest | InvalidTest:
        """Joint F test of linear hypotheses, where statistics are t; see `wald_test`.

        Returns
        -------
        WaldTest or InvalidTest
            The latter where statistics are normal, so that there are no denominator degrees of freedom.
        """
        if self.cov.moments is None:
            return InvalidTest(
                f"statistics are normal here, with cov_type={self.cov_type!r}, so that there are no denominator "
                "degrees of freedom; use wald_test"
            )
        return self.wald_test(hypotheses)

    def t_test(self, hypotheses: HypothesisSpec) -> "Contrasts | InvalidTest":
        """Each linear hypothesis on its own: difference, standard error, t or z, p-value and limits.

        Parameters
        ----------
        hypotheses : str, sequence of str, ndarray, or (ndarray, ndarray)
            As in `wald_test`.

        Returns
        -------
        Contrasts or InvalidTest
            A ContrastResults of statsmodels. A hypothesis about one standard deviation or correlation is tested, and
            has its limits, on the scale of `conf_int`.
        """
        parsed = parse_hypotheses(hypotheses, self._layout.names)
        for i in range(len(parsed.labels)):
            one = parse_hypotheses((parsed.matrix[[i]], parsed.values[[i]]), self._layout.names)
            refusal = refuse_wald(one, self._estimate, self.cov.matrix, self._layout)
            if refusal is not None:
                return refusal
        tested = on_scales_of_limits(parsed, self._estimate, self._layout)
        df = degrees_of_freedom(self.cov.moments, tested.slopes)
        statistic = tested.difference / delta_se(tested.slopes, self.cov.matrix)
        return Contrasts(parsed, self._estimate, delta_se(parsed.matrix, self.cov.matrix), statistic, df, self._layout)

    t_test_pairwise = _refused("t_test_pairwise", "use t_test with the differences in a list")
    remove_data = _refused("remove_data", "use save(path, data=False)")

    @classmethod
    def load(cls, fname: object) -> NoReturn:
        """Not offered: statsmodels would unpickle the file, which can run code; use ``mixmoe.load(path)``."""
        raise ArgumentError(f"results are read by mixmoe.load({fname!r}), which never unpickles")
