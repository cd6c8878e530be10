"""Write the simulated data that the golden numbers were computed on: python -m tests.golden.make_data."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from mixmoe import simulate

HERE = Path(__file__).parent
SETS = {
    "sim_unbalanced": {"preset": "single", "n_subjects": 150, "n_visits": (1, 8), "rng": 20261},
    "sim_classes": {"preset": "latent_class", "n_subjects": 150, "n_visits": (2, 7), "rng": 20262},
    "sim_rows": {
        "preset": "latent_class",
        "n_subjects": 400,
        "n_visits": 1,
        "beta": [[1.0, 0.0, 2.0], [4.0, 0.0, -1.0]],
        "gamma": [[-0.9, 1.0, 0.6]],
        "rng": 20263,
    },
}

for name, arguments in SETS.items():
    data = simulate.memoe(**arguments).data
    if name == "sim_unbalanced":  # covariates of the subject, which the preset does not have
        extra = simulate.memoe("moderate", n_subjects=150, n_visits=1, rng=20264).data
        data = data.merge(extra[["id", "z1", "z2"]], on="id")
    data.round(6).to_csv(HERE / f"{name}.csv", index=False)


def responses(n_subjects=150, rng=20265):
    """Responses of every family around the same linear predictor, in plain NumPy; classes for mixtures."""
    rng = np.random.default_rng(rng)
    counts = rng.integers(1, 9, n_subjects)
    subject = np.repeat(np.arange(n_subjects), counts)
    n = subject.size
    time = np.concatenate([np.arange(c) / 4.0 for c in counts])
    x, z = rng.normal(size=n), rng.normal(size=n_subjects)
    b = rng.multivariate_normal([0.0, 0.0], [[0.8, -0.15], [-0.15, 0.3]], n_subjects)
    exposure = rng.uniform(0.5, 2.0, n)
    eta = -0.3 + 0.6 * time + 0.5 * x + b[subject, 0] + b[subject, 1] * time
    trials = rng.integers(1, 6, n)
    mean = exposure * np.exp(eta)
    expert = (rng.random(n_subjects) < expit(-0.5 + z)).astype(int)
    split = np.array([[-1.0, 1.2, 0.8], [1.4, -0.6, -0.5]])[expert[subject]]
    mixed = split[:, 0] + split[:, 1] * time + split[:, 2] * x
    cuts = np.array([-0.8, 0.6, 1.8])
    return pd.DataFrame(
        {
            "id": subject + 1,
            "time": time,
            "x": x,
            "z": z[subject],
            "log_exposure": np.log(exposure),
            "trials": trials,
            "binary": rng.binomial(1, expit(eta)),
            "successes": rng.binomial(trials, expit(eta)),
            "count": rng.poisson(mean),
            "clumped": rng.poisson(mean * rng.gamma(1.5, 1 / 1.5, n)),
            "positive": rng.gamma(2.0, np.exp(eta) / 2.0),
            "share": np.clip(rng.beta(5 * expit(eta), 5 * expit(-eta)), 1e-4, 1 - 1e-4),
            "grade": 1 + ((rng.logistic(size=n) + eta)[:, None] > cuts).sum(axis=1),
            "mixed_binary": rng.binomial(1, expit(mixed)),
            "mixed_successes": rng.binomial(trials, expit(mixed)),
            "mixed_count": rng.poisson(np.exp(mixed)),
        }
    )


responses().round(6).to_csv(HERE / "sim_responses.csv", index=False)


def crossed(n_persons=24, n_cultures=5, rng=3):
    """Rows of persons at two or three sites of their own, each row in some culture."""
    rng = np.random.default_rng(rng)
    of_person = rng.multivariate_normal([0, 0], [[1, 0.2], [0.2, 0.3]], n_persons)
    of_culture, rows = rng.normal(size=n_cultures) * 0.8, []
    for i in range(n_persons):
        for site in range(rng.integers(2, 4)):
            of_site = rng.normal() * 0.6
            for _ in range(rng.integers(3, 6)):
                c, t, x = int(rng.integers(n_cultures)), round(rng.uniform(0, 4), 2), round(rng.normal(1, 2), 2)
                mean = 1 + 0.5 * t - 0.3 * x + of_person[i, 0] + of_person[i, 1] * t + of_culture[c] * (1 + 0.3 * x)
                y = round(mean + of_site + 0.5 * rng.normal(), 3)
                rows.append((f"p{i:02d}", "abc"[site], c, t, x, y))
    return pd.DataFrame(rows, columns=["person", "site", "culture", "t", "x", "y"]).sample(frac=1, random_state=1)


crossed().to_csv(HERE / "sim_crossed.csv", index=False)


def zeros(n_subjects=120, rng=20266):
    """Counts with certain zeros, clumped or not; intercept and slope of the subject."""
    rng = np.random.default_rng(rng)
    counts = rng.integers(3, 9, n_subjects)
    subject = np.repeat(np.arange(n_subjects), counts)
    time, n = np.concatenate([np.arange(c) / 4.0 for c in counts]), subject.size
    x, exposure, weight = rng.normal(size=n), rng.uniform(0.5, 2.0, n), rng.integers(1, 4, n)
    b = rng.multivariate_normal([0.0, 0.0], [[0.4, -0.05], [-0.05, 0.2]], n_subjects)
    mean = exposure * np.exp(0.8 + 0.4 * time + 0.3 * x + b[subject, 0] + b[subject, 1] * time)
    certain = rng.random(n) < 0.3
    count, clumped = rng.poisson(mean), rng.poisson(mean * rng.gamma(2.0, 0.5, n))
    columns = {"id": subject + 1, "time": time, "x": x, "log_exposure": np.log(exposure), "weight": weight}
    return pd.DataFrame(columns | {"count": np.where(certain, 0, count), "clumped": np.where(certain, 0, clumped)})


zeros().round(6).to_csv(HERE / "sim_zeros.csv", index=False)
