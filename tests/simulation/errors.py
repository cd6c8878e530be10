"""Recovery of correlated, unequal and heavy-tailed errors, as a Markdown table.

    python -m tests.simulation.errors --kinds ar1 t --subjects 200 --replicates 200 --pieces DIR
    python -m tests.simulation.errors --collect DIR                                   (writes ERRORS.md)

Calls add replicates to those in DIR, as often as there is time.

Two experts (60 and 40 % of the subjects, who have 6 to 8 unevenly spaced visits), random intercepts, own parameters of
the errors per expert. A replicate is fitted from the truth, as random starts lead to the same maximum; experts are put
in the order of the truth by their intercepts. The table has the median, the bias in Monte Carlo standard errors, and
how many of the reported 95 % robust intervals hold the truth, beside intervals ``b +- z se`` on the scale of the
parameter itself.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

import mixmoe as mm
from tests.simulation.pieces import ending, grow, markdown_table, record, stored, summarise

HERE = Path(__file__).parent
FIRST_SEED = 2_000
Z95 = 1.959964
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


def draw(kind, rng, n_subjects):
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


def replicate(kind, n_subjects, seed):
    """Estimates and limits of one replicate."""
    formula = "y ~ time | re: (1 | id)" + (" | sigma: time" if kind == "sigma" else "")
    rng = np.random.default_rng([seed, list(OPTIONS).index(kind)])  # no two kinds share their subjects
    truth = pd.Series({**COMMON, **TRUTH[kind]})
    start = {**truth, "gate2.Intercept": np.log(0.4 / 0.6)}
    fit = mm.fit(formula, draw(kind, rng, n_subjects), 2, start=start, rng=seed, **OPTIONS[kind])
    first, second = fit.params["expert1.Intercept"], fit.params["expert2.Intercept"]
    fit = fit if first < second else fit.relabel([2, 1])
    return record(fit, truth, seed)


def plain_coverage(raw):
    """Share of intervals ``b +- z se`` that hold the truth, which the package does not report for these parameters."""
    held = ((raw["estimate"] - raw["truth"]).abs() <= Z95 * raw["std_error"]).where(raw["std_error"].notna())
    return held.astype(float).groupby(raw["parameter"], sort=False).mean()


def markdown(path):
    """A section of the report."""
    raw = stored(path)
    kind, n_subjects = path.stem.split("_")
    table = summarise(raw).drop(columns=["bias / truth", "MC error"])
    deviations = table["SD"] / np.sqrt(table["intervals"])
    table.insert(2, "bias / MC error", table["bias"] / deviations)
    table.insert(1, "median", raw.groupby("parameter", sort=False)["estimate"].median())
    table["natural-scale coverage"] = plain_coverage(raw)
    head = [f"## {kind}: {raw['seed'].nunique()} replicates of {n_subjects} subjects", "", ending(raw), ""]
    return [*head, *markdown_table(table), ""]


def pooled(paths):
    """Coverage of all parameters on each scale, over all replicates of the same number of subjects."""
    frames = [stored(path).assign(n_subjects=int(path.stem.split("_")[1])) for path in paths]
    raw = pd.concat(frames, ignore_index=True)
    raw["parameter"] = raw["parameter"].str.replace(r"^(expert\d|sd|sigma|rho|phi|df|sd_bm)\d?.*", r"\1", regex=True)
    raw["parameter"] = raw["parameter"].str.replace(r"^expert\d", "coefficients", regex=True)
    rows = []
    for (n_subjects, name), part in raw.groupby(["n_subjects", "parameter"], sort=False):
        inside = part["inside"].astype(float)
        rows.append((f"{name}, {n_subjects} subjects", inside.mean(), plain_coverage(part)[name], inside.count()))
    columns = ["parameter", "coverage", "natural-scale coverage", "intervals"]
    return markdown_table(pd.DataFrame(rows, columns=columns).set_index("parameter"))


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=200)
    parser.add_argument("--subjects", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=600.0, help="per kind")
    parser.add_argument("--kinds", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    parser.add_argument("--pieces", type=Path)
    parser.add_argument("--collect", type=Path)
    chosen = parser.parse_args()
    if chosen.collect is None:
        seeds = range(FIRST_SEED, FIRST_SEED + chosen.replicates)
        for kind in chosen.kinds:
            path = chosen.pieces / f"{kind}_{chosen.subjects}.csv"
            grow(path, partial(replicate, kind, chosen.subjects), seeds, chosen.seconds)
        return
    paths = [path for kind in OPTIONS for path in sorted(chosen.collect.glob(f"{kind}_*.csv"))]
    lines = ["# Recovery of the errors", "", f"`python -m tests.simulation.errors`, mixmoe {mm.__version__}.", ""]
    lines += ["## All kinds together", "", *pooled(paths), ""]
    for path in paths:
        lines += markdown(path)
    (HERE / "ERRORS.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
