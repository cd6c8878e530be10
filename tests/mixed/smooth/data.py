"""Data with functions of an index and effects of subjects."""

import numpy as np
import pandas as pd

TRUTH = (
    (lambda t: np.sin(2 * np.pi * t), lambda t: 0.8 * np.sin(np.pi * t)),
    (lambda t: 1.0 + 3.0 * (t - 0.5) ** 2, lambda t: 0.0 * t),
)


def two_experts(N=120, n_rows=6, rng=0, sigma=0.3, sd=0.5):
    """Subjects of two experts with the functions of `TRUTH` and a random intercept."""
    rng = np.random.default_rng(rng)
    z = rng.normal(size=N)
    expert = (rng.uniform(size=N) < 1 / (1 + np.exp(-z))).astype(int)
    row = np.repeat(np.arange(N), n_rows)
    t, x = rng.uniform(size=row.size), rng.normal(size=row.size)
    f = np.array([TRUTH[k][0](t) + TRUTH[k][1](t) * x for k in (0, 1)])
    y = f[expert[row], np.arange(row.size)] + sd * rng.normal(size=N)[row] + sigma * rng.normal(size=row.size)
    frame = pd.DataFrame({"id": row, "t": t, "x": x, "z": z[row], "y": y})
    frame["g"] = np.where(row % 3 == 0, "a", "b")
    frame["count"] = rng.poisson(np.exp(np.clip(y, -3, 2)))
    return frame
