"""Recovery of correlated, unequal and heavy-tailed errors, as a Markdown table.

    python -m tests.simulation.errors --replicates 30 [--kinds ar1 car1 bm t sigma] [--write]

Two experts (60 and 40 % of 200 subjects with 6 to 8 unevenly spaced visits), random intercepts, own parameters of the
errors per expert. Each replicate is fitted at default settings; experts are put in the order of the truth by their
intercepts. The table has the mean estimate, its bias in Monte Carlo standard errors, and how many 95 % robust intervals
hold the truth. `--write` stores it in tests/simulation/ERRORS.md.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import mixmoe as mm
from mixmoe.errors import MixmoeWarning

HERE = Path(__file__).parent
BETA = {1: (1.0, 0.5), 2: (5.0, -0.3)}
SD, SIGMA = {1: 1.0, 2: 0.7}, {1: 1.0, 2: 0.8}
OPTIONS = {
    "ar1": {"errors": "ar1", "time": "visit"},
    "car1": {"errors": "car1", "time": "time"},
    "bm": {"errors": "bm", "time": "time"},
    "t": {"errors_dist": "t"},
    "sigma": {},
}
TRUTH = {
    "ar1": {"rho1": 0.3, "rho2": 0.7},
    "car1": {"phi1": 1.5, "phi2": 0.5},
    "bm": {"sd_bm1": 0.8, "sd_bm2": 0.4},
    "t": {"df1": 4.0, "df2": 8.0},
    "sigma": {"sigma1.time": 0.15, "sigma2.time": -0.1},
}
FIXED = {f"expert{k}.{name}": BETA[k][j] for k in (1, 2) for j, name in enumerate(("Intercept", "time"))}
COMMON = {**FIXED, "sd1(Intercept|id)": 1.0, "sd2(Intercept|id)": 0.7, "sigma1": 1.0, "sigma2": 0.8}


def errors(kind, k, visits, times, rng):
    """Errors of one subject of expert k by dense Cholesky."""
    lag = np.abs(times[:, None] - times)
    R = np.eye(len(times))
    if kind == "ar1":
        R = TRUTH["ar1"][f"rho{k}"] ** np.abs(visits[:, None] - visits)
    if kind == "car1":
        R = np.exp(-TRUTH["car1"][f"phi{k}"] * lag)
    R = SIGMA[k] ** 2 * R
    if kind == "bm":
        R = R + TRUTH["bm"][f"sd_bm{k}"] ** 2 * np.minimum(times[:, None], times)
    e = np.linalg.cholesky(R) @ rng.normal(size=len(times))
    return e * np.exp(TRUTH["sigma"][f"sigma{k}.time"] * times) if kind == "sigma" else e


def draw(kind, rng, n_subjects=200):
    """One data set."""
    rows = []
    for i in range(n_subjects):
        k = 1 if rng.random() < 0.6 else 2
        visits = np.sort(rng.choice(10, size=rng.integers(6, 9), replace=False)).astype(float)
        times = 0.5 * visits + rng.uniform(0.05, 0.45, len(visits))
        away = SD[k] * rng.normal() + errors(kind, k, visits, times, rng)
        if kind == "t":
            df = TRUTH["t"][f"df{k}"]
            away = away * np.sqrt(df / rng.chisquare(df))
        y = BETA[k][0] + BETA[k][1] * times + away
        rows.append(pd.DataFrame({"id": i, "visit": visits, "time": times, "y": y}))
    return pd.concat(rows, ignore_index=True)


def replicate(kind, seed):
    """Estimates and whether each interval holds the truth."""
    formula = "y ~ time | re: (1 | id)" + (" | sigma: time" if kind == "sigma" else "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        fit = mm.fit(formula, draw(kind, np.random.default_rng(seed)), 2, rng=seed, **OPTIONS[kind])
    first, second = fit.params["expert1.Intercept"], fit.params["expert2.Intercept"]
    fit = fit if first < second else fit.relabel([2, 1])
    truth = pd.Series({**COMMON, **TRUTH[kind]})
    frame = fit.to_frame().loc[truth.index]
    held = (frame["conf_low"] <= truth) & (truth <= frame["conf_high"])
    return frame["estimate"], held.where(frame["conf_low"].notna())


def table(kind, n, first_seed=500):
    """One row per parameter."""
    found = [replicate(kind, first_seed + i) for i in range(n)]
    truth = pd.Series({**COMMON, **TRUTH[kind]})
    estimates = pd.DataFrame([f[0] for f in found])
    held = pd.DataFrame([f[1] for f in found]).astype(float)
    noise = estimates.std() / np.sqrt(n)
    columns = {
        "truth": truth,
        "mean": estimates.mean(),
        "median": estimates.median(),
        "bias / MC error": (estimates.mean() - truth) / noise,
        "coverage": held.mean(),
    }
    return pd.DataFrame(columns)


def markdown(kind, n, rows, seconds):
    """A section of the report."""
    lines = [f"## {kind}: {n} replicates, {seconds / n:.1f} s each", "", "| parameter | " + " | ".join(rows) + " |"]
    lines.append("|---" * (1 + rows.shape[1]) + "|")
    for name, row in rows.iterrows():
        lines.append(f"| `{name.replace('|', chr(92) + '|')}` | " + " | ".join(f"{v:.3f}" for v in row) + " |")
    return "\n".join(lines)


def store(kind, section):
    """Put a section into the report, in the place of an earlier one of that kind."""
    path = HERE / "ERRORS.md"
    old = path.read_text(encoding="utf-8").split("\n## ")[1:] if path.exists() else []
    kept = {part.split(":")[0]: part.strip() for part in old} | {kind: section.removeprefix("## ").strip()}
    head = "# Recovery of the errors\n\n`python -m tests.simulation.errors --replicates R --kinds KIND --write`;"
    head += " what it does stands in `tests/simulation/errors.py`.\n"
    parts = [f"\n## {kept[name]}\n" for name in OPTIONS if name in kept]
    path.write_text(head + "".join(parts), encoding="utf-8")


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=30)
    parser.add_argument("--kinds", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    for kind in chosen.kinds:
        began = time.perf_counter()
        rows = table(kind, chosen.replicates)
        section = markdown(kind, chosen.replicates, rows, time.perf_counter() - began)
        print(section, flush=True)
        if chosen.write:
            store(kind, section)


if __name__ == "__main__":
    main()
