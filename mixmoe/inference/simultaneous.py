"""Critical values of simultaneous bands.

References
----------
Chernozhukov, Chetverikov & Kato (2014), Annals of Statistics 42, 1787-1818.
"""

import numpy as np

from mixmoe._typing import Array


def multiplier_critical(covariance: Array, alpha: float, draws: int, rng: np.random.Generator) -> float:
    """Quantile of the largest absolute studentised deviation over the grid.

    Parameters
    ----------
    covariance : ndarray, shape (G, G)
        Covariance of one function at the grid points; points with NaN are left out.
    alpha : float
        One minus the level of the band.
    draws : int
    rng : numpy.random.Generator

    Returns
    -------
    float

    Notes
    -----
    Given the data, the process with Gaussian multipliers is Gaussian with the covariance of the influence functions, so
    it is drawn from that directly; multipliers for each row would give the same distribution at a higher cost.
    """
    kept = np.isfinite(np.diag(covariance)) & (np.diag(covariance) > 0.0)
    if not kept.any():
        return float("nan")
    inner = covariance[np.ix_(kept, kept)]
    root = np.sqrt(np.diag(inner))
    values, vectors = np.linalg.eigh(inner / np.outer(root, root))
    factor = vectors * np.sqrt(np.clip(values, 0.0, None))
    maxima = np.abs(rng.standard_normal((draws, len(inner))) @ factor.T).max(axis=1)
    return float(np.quantile(maxima, 1.0 - alpha))
