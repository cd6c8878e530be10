"""Critical values of simultaneous bands: from the estimated covariance of the process, or from its limit.

References
----------
Fan, J. and Zhang, W. (2000). Simultaneous confidence bands and hypothesis testing in varying-coefficient models.
Scand. J. Statist. 27, 715-731. Their Gumbel constants are replaced by the process itself, which they only approximate.
Chernozhukov, V., Chetverikov, D. and Kato, K. (2014). Anti-concentration and honest, adaptive confidence bands.
Ann. Statist. 42, 1787-1818, for the Gaussian multiplier bootstrap.
"""

import numpy as np
from numpy.typing import NDArray

from mixmoe.kernels.local import epanechnikov

Array = NDArray[np.float64]

POINTS_PER_BANDWIDTH = 24  # mesh of the limiting process
DRAWS = 40_000
BATCH = 4_000  # draws held in memory at once


def multiplier_critical(covariance: Array, level: float, draws: int, rng: np.random.Generator) -> float:
    """Quantile of the largest absolute studentised deviation over the grid.

    Parameters
    ----------
    covariance : ndarray, shape (G, G)
        Covariance of one function at the grid points; points with NaN are left out.
    level : float
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
    return float(np.quantile(maxima, level))


def equivalent_kernel(t: Array, degree: int) -> Array:
    """Kernel that a local polynomial fit of degree 1 or 2 amounts to in the interior."""
    kernel = epanechnikov(t)
    if degree < 2:
        return kernel
    second, fourth = 1.0 / 5.0, 3.0 / 35.0  # moments of the Epanechnikov kernel
    return kernel * (fourth - second * t * t) / (fourth - second * second)


def asymptotic_critical(
    relative_bandwidth: float, level: float = 0.95, degree: int = 1, seed: int = 0, draws: int = DRAWS
) -> float:
    """Quantile of the supremum of the limiting stationary Gaussian process.

    Parameters
    ----------
    relative_bandwidth : float
        Bandwidth over the length of the index range.
    level : float
    degree : int
        Of the local polynomial.
    seed : int
        The process is simulated; the same seed gives the same value.
    draws : int

    Returns
    -------
    float

    Notes
    -----
    The limit of the studentised estimate is ``int K*((s - t) / h) dW(s)``, with the equivalent kernel K*. It is drawn
    as a moving average of white noise on a mesh of h / 24.
    """
    rng = np.random.default_rng(seed)
    width = POINTS_PER_BANDWIDTH
    n_points = max(2, int(np.ceil(width / relative_bandwidth)) + 1)
    weights = equivalent_kernel(np.arange(-width, width + 1) / width, degree)
    weights /= np.sqrt((weights**2).sum())
    length = n_points + 2 * width
    transform = np.fft.rfft(weights[::-1], length)
    maxima = []
    for start in range(0, draws, BATCH):
        noise = rng.standard_normal((min(BATCH, draws - start), length))
        process = np.fft.irfft(np.fft.rfft(noise, axis=1) * transform, length, axis=1)[:, 2 * width :]
        maxima.append(np.abs(process).max(axis=1))
    return float(np.quantile(np.concatenate(maxima), level))
