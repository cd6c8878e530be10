"""Statsmodels' likelihood results with labels; the one file on statsmodels' base class."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from statsmodels.base.model import LikelihoodModelResults
from statsmodels.stats.contrast import ContrastResults

from mixmoe.errors import ArgumentError
from mixmoe.inference.covariance import ParamCov
from mixmoe.inference.intervals import two_sided, wald_limits
from mixmoe.inference.tests import HypothesisSpec, InvalidTest, WaldTest, parse_hypotheses, refuse_wald, wald_test
from mixmoe.layout import ParamLayout

Array = NDArray[np.float64]


def _refused(name: str, instead: str) -> Callable[..., NoReturn]:
    """A method that statsmodels has and mixtures do not, which says so."""

    def method(self: object, *args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(f"{name} is not defined for mixtures of experts; {instead}")

    method.__name__, method.__doc__ = name, f"Not defined for mixtures of experts; {instead}."
    return method


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
        By parameter name. `tvalues` (z statistics) and `pvalues` are NaN where zero is no meaningful hypothesis, as for
        standard deviations, and where there is no valid standard error.
    cov : ParamCov
    cov_type : str
    df_resid : float
    """

    # Statsmodels computes these lazily from unlabelled arrays; a plain attribute takes their place.
    llf: float = np.nan
    bse: Any = None
    tvalues: Any = None
    pvalues: Any = None

    def __init__(self, model: Any, layout: ParamLayout, params: Array, cov: ParamCov, df_resid: float) -> None:
        super().__init__(model, params, normalized_cov_params=cov.matrix, scale=1.0)
        self._layout, self._estimate, self.cov, self.cov_type = layout, params, cov, cov.kind
        self.df_resid = df_resid
        self._errors = np.sqrt(np.where(np.diag(cov.matrix) >= 0, np.diag(cov.matrix), np.nan))
        with np.errstate(divide="ignore", invalid="ignore"):
            self._z = np.where([p.tested for p in layout.parameters], params / self._errors, np.nan)
        names = pd.Index(layout.names)
        self.params = pd.Series(params, names, name="estimate", copy=True)
        self.bse = pd.Series(self._errors, names, name="std_error", copy=True)
        self.tvalues = pd.Series(self._z, names, name="statistic", copy=True)
        self.pvalues = pd.Series(two_sided(self._z), names, name="p_value")

    def cov_params(self) -> pd.DataFrame:
        """Covariance of the estimates, labelled; NaN for parameters without valid standard error."""
        names = pd.Index(self._layout.names)
        return pd.DataFrame(self.cov.matrix, index=names, columns=names, copy=True)

    def conf_int(self, alpha: float = 0.05) -> pd.DataFrame:
        """Wald limits, lower in column 0 and upper in column 1.

        Parameters
        ----------
        alpha : float
            One minus the level.

        Returns
        -------
        DataFrame
            Limits of standard deviations and all other positive parameters (dispersions, decay of a correlation,
            degrees of freedom) are computed on the log scale, those of correlations on Fisher's z scale.
        """
        limits = wald_limits(self._estimate, self._errors, self._layout, alpha)
        return pd.DataFrame({0: limits.lower, 1: limits.upper}, index=pd.Index(self._layout.names))

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
            An `InvalidTest` with its reason if a parameter has no valid standard error or the hypothesis puts a
            standard deviation at zero.
        """
        parsed = parse_hypotheses(hypotheses, self._layout.names)
        return wald_test(parsed, self._estimate, self.cov.matrix, self._layout, self.cov_type)

    def t_test(self, hypotheses: HypothesisSpec) -> ContrastResults | InvalidTest:
        """Each linear hypothesis on its own: difference, standard error, z, p-value and limits.

        Parameters
        ----------
        hypotheses : str, sequence of str, ndarray, or (ndarray, ndarray)
            As in `wald_test`.

        Returns
        -------
        ContrastResults or InvalidTest
            Its limits are difference +- z standard errors, also for standard deviations and correlations, whose limits
            in `conf_int` are computed on another scale.
        """
        parsed = parse_hypotheses(hypotheses, self._layout.names)
        for i in range(len(parsed.labels)):
            one = parse_hypotheses((parsed.matrix[[i]], parsed.values[[i]]), self._layout.names)
            refusal = refuse_wald(one, self._estimate, self.cov.matrix, self._layout)
            if refusal is not None:
                return refusal
        # Rows that use a parameter without covariance have been refused, so its zeros are never read.
        names = SimpleNamespace(data=SimpleNamespace(cov_names=list(self._layout.names)))
        plain = LikelihoodModelResults(names, self._estimate, np.nan_to_num(self.cov.matrix), scale=1.0)
        plain.df_resid = self.df_resid
        result = plain.t_test((parsed.matrix, parsed.values))
        result.c_names = list(parsed.labels)
        return result

    f_test = _refused("f_test", "there are no denominator degrees of freedom, use wald_test")
    wald_test_terms: Callable[..., Any] = _refused(
        "wald_test_terms", "use wald_test with the hypotheses of the term in a list"
    )
    t_test_pairwise = _refused("t_test_pairwise", "use t_test with the differences in a list")
    remove_data = _refused("remove_data", "use save(path, data=False)")

    @classmethod
    def load(cls, fname: object) -> NoReturn:
        """Not offered: statsmodels would unpickle the file, which can run code; use ``mixmoe.load(path)``."""
        raise ArgumentError(f"results are read by mixmoe.load({fname!r}), which never unpickles")
