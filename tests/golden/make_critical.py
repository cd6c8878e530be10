"""95 % quantiles of the supremum of the limiting process of a local-linear Epanechnikov estimate on [0, 1].

    python -m tests.golden.make_critical

An implementation of its own: the process is drawn by circulant embedding from its correlation in closed form,
``rho(s) = (2 - s)^3 (s^2 + 6 s + 4) / 32`` for lags of s <= 2 bandwidths, on a mesh of a 40th of a bandwidth; the
package draws moving averages of white noise. The Monte Carlo error is 0.004.
"""

import json
from pathlib import Path

import numpy as np

BANDWIDTHS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.9)
PER_BANDWIDTH = 40
DRAWS, BATCH = 120_000, 2_000


def correlation(s):
    """Autocorrelation of the Epanechnikov kernel at lags of s bandwidths."""
    return np.clip(2.0 - s, 0.0, None) ** 3 * (s * s + 6.0 * s + 4.0) / 32.0


def quantile(h, rng):
    """95 % quantile of the supremum of the absolute process for one bandwidth."""
    points = int(np.ceil(PER_BANDWIDTH / h)) + 1
    size = 2 * (points + 2 * PER_BANDWIDTH)  # beyond the range of the correlation, so that the embedding is exact
    lag = np.minimum(np.arange(size), size - np.arange(size)) / PER_BANDWIDTH
    spectrum = np.clip(np.fft.fft(correlation(lag)).real, 0.0, None)
    maxima = []
    for _ in range(DRAWS // (2 * BATCH)):
        noise = rng.standard_normal((BATCH, size)) + 1j * rng.standard_normal((BATCH, size))
        process = np.fft.fft(noise * np.sqrt(spectrum / size), axis=1)[:, :points]
        maxima += [np.abs(process.real).max(axis=1), np.abs(process.imag).max(axis=1)]
    return float(np.quantile(np.concatenate(maxima), 0.95))


def main():
    """Write critical.json."""
    rng = np.random.default_rng(1)
    values = {str(h): round(quantile(h, rng), 4) for h in BANDWIDTHS}
    (Path(__file__).parent / "critical.json").write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
