"""Whether an outcome looks normal given the expert, seen without knowing who belongs where."""

from dataclasses import dataclass

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray
from scipy.stats import chi2

from mixmoe.assess.three_step import Assignment, Normal, StepThree, solve

Array = NDArray[np.float64]

LEVEL = 0.001  # of the test behind the warning
LEAST = 0.5  # skewness that is worth a warning
_NODES = 4  # of the quadrature, exact for sixth powers


@dataclass(frozen=True, slots=True)
class Skewness:
    """Skewness of an outcome under each expert, corrected for classification error.

    Attributes
    ----------
    values : ndarray, shape (K,)
        NaN if the corrected variance of an expert is not above zero.
    std_errors : ndarray, shape (K,)
        Were the outcome normal.
    pvalue : float
        Of the joint Wald test that all are zero.
    """

    values: Array
    std_errors: Array
    pvalue: float

    @property
    def doubtful(self) -> bool:
        """Whether it is too large for a normal outcome, beyond chance and by an amount that matters."""
        return self.pvalue < LEVEL and bool(np.abs(self.values).max() >= LEAST)


def skewness(made: Assignment, used: NDArray[np.intp], y: Array, X: Array) -> Skewness:
    """Third standardised moment of the residuals of an outcome under each expert, by the weights of ``"bch"``.

    Parameters
    ----------
    made : Assignment
    used : ndarray of int, shape (n,)
        Units of step 3 among those of the fit.
    y : ndarray, shape (n,)
        In units of its standard deviation.
    X : ndarray, shape (n, K, p)
        With a column, or a combination of columns, for each expert.

    Returns
    -------
    Skewness

    Notes
    -----
    The weights have the mean one under the true expert and zero under the others, whatever the distribution of the
    outcome, so that weighted moments need no normality. The influence of a unit on the skewness of a normal variable
    is ``u^3 - 3 u`` of its standardised residual (Hampel, Ronchetti, Rousseeuw & Stahel 1986, section 2.1), to which
    what it does to the classification errors is added. Its variance is taken where the outcome is normal, not from
    the sixth powers of what was observed, which a long tail inflates so that the test would not see it.
    """
    step = StepThree((Normal(y, X, own_sigma=False),), made.modal[used], "bch")
    beta = solve(step, made, used, np.zeros(X.shape[2])).beta
    weights, centres = step.weights(beta, made.errors), X @ beta
    residuals, mass = y[:, None] - centres, weights.sum(axis=0)
    variances = (weights * residuals**2).sum(axis=0) / mass
    if not (variances > 0).all():
        unknown = np.full(len(mass), np.nan)
        return Skewness(unknown, unknown, np.nan)
    values = (weights * residuals**3).sum(axis=0) / mass / variances**1.5
    cov = _normal_cov(made, used, weights, centres, np.sqrt(variances)) / np.outer(mass, mass)
    statistic = values @ np.linalg.lstsq(cov, values, rcond=None)[0]
    return Skewness(values, np.sqrt(np.diag(cov)), float(chi2.sf(statistic, len(values))))


def _normal_cov(made: Assignment, used: NDArray[np.intp], weights: Array, centres: Array, sigma: Array) -> Array:
    """Covariance of the sums of influences over the units were outcomes normal given the expert, shape (K, K)."""
    nodes, shares = hermegauss(_NODES)
    drawn = centres[:, :, None] + sigma[:, None] * nodes  # (n, K, Q), outcomes of each true expert
    u = (drawn[..., None] - centres[:, None, None]) / sigma
    pull = u**3 - 3 * u  # (n, K, Q, K), the last one the expert that the unit is counted for
    behind = made.responsibilities.T @ made.indicators  # of each assignment, the true experts
    chances = (behind / behind.sum(axis=0)).T[made.modal[used]][..., None] * shares / shares.sum()  # (n, K, Q)
    by_unit = np.zeros((len(made.modal), len(sigma)))
    by_unit[used] = np.einsum("ntq,ntqk->nk", chances, pull)
    drift = _drift(made, by_unit)
    total = weights[:, None, None] * pull + drift[used][:, None, None]
    spared = np.delete(drift, used, axis=0)
    return np.asarray(np.einsum("ntq,ntqk,ntql->kl", chances, total, total) + spared.T @ spared)


def _drift(made: Assignment, pull: Array) -> Array:
    """What each unit does to the weighted sums of `pull` through the classification errors, shape (N, K)."""
    inverse = np.linalg.inv(made.errors)
    slopes = -np.einsum("bk,ak->kab", inverse, inverse.T @ (made.indicators.T @ pull))
    return np.einsum("nab,kab->nk", made.influence_on_errors(), slopes)
