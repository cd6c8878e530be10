"""Size of the default 5 % test of a within-subject covariate that has no effect, with few subjects, as a table.

    python -m tests.simulation.few_subjects --replicates 500 [--only poisson] [--write]

One expert: six to ten rows per subject, a random intercept, two covariates drawn for every row, of which one has no
effect. Two experts: four rows per subject, intercepts three apart; both tests are counted. Beside the default stand the
plain sandwich with normal quantiles (`correction=False`) and the inverse information. `--write` stores the table in
tests/simulation/FEW_SUBJECTS.md. The Monte Carlo error of a size of 5 % is 1 point at 500 tests.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import mixmoe as mm
from mixmoe.errors import MixmoeError, MixmoeWarning

ONE = [(family, n) for family in ("gaussian", "binomial", "poisson") for n in (5, 8, 12, 20, 50)]
TWO = [("two experts", n) for n in (30, 60, 120)]
BAR = (0.03, 0.08)


def one_expert(rng, family, n):
    """Rows of `n` subjects; the covariate z has no effect."""
    id = np.repeat(np.arange(n), rng.integers(6, 11, size=n))
    x, z = rng.normal(size=(2, id.size))
    eta = 0.5 + 0.3 * x + 0.7 * rng.normal(size=n)[id]
    if family == "gaussian":
        y = eta + rng.normal(size=id.size)
    elif family == "binomial":
        y = (rng.random(id.size) < 1 / (1 + np.exp(-eta))) * 1.0
    else:
        y = rng.poisson(np.exp(eta)) * 1.0
    return pd.DataFrame({"id": id, "x": x, "z": z, "y": y})


def two_experts(rng, n):
    """Four rows of `n` subjects of two kinds."""
    id = np.repeat(np.arange(n), 4)
    x, z = rng.normal(size=(2, id.size))
    level = 3.0 * (rng.random(n) < 0.5) + 0.5 * rng.normal(size=n)
    return pd.DataFrame({"id": id, "x": x, "z": z, "y": level[id] + 0.7 * rng.normal(size=id.size)})


def p_values(design, n, seed):
    """P-values of z by each covariance, one row per expert; none where the data of a set have no fit."""
    rng = np.random.default_rng([n, seed])
    K = 2 if design == "two experts" else 1
    data = two_experts(rng, n) if K == 2 else one_expert(rng, design, n)
    family = "gaussian" if K == 2 else design
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        right = "z" if K == 2 else "x + z"
        fit = mm.fit(f"y ~ {right} | re: (1 | id)", data, experts=K, family=family, rng=seed)
        plain, model_based = fit.with_cov("robust", correction=False), fit.with_cov("nonrobust")
    names = [f"expert{k + 1}.z" for k in range(K)]
    return np.column_stack([f.pvalues[names] for f in (fit, plain, model_based)])


def row(design, n, replicates):
    """One line of the table."""
    start, kept = time.monotonic(), []
    for seed in range(replicates):
        try:
            kept.append(p_values(design, n, seed))
        except MixmoeError:  # a response without variation, or with fewer subjects than parameters
            continue
    p = np.vstack(kept)
    size = [np.mean(column[np.isfinite(column)] < 0.05) for column in p.T]
    missing = int(np.isnan(p[:, 0]).sum())
    met = "yes" if BAR[0] <= size[0] <= BAR[1] else "no"
    print(design, n, np.round(size, 3), f"{time.monotonic() - start:.0f} s", flush=True)
    shown = " | ".join(f"{100 * s:.1f}%" for s in size)
    return f"| {design} | {n} | {len(p)} | {shown} | {missing} | {met} |"


def main():
    """Run the designs that are asked for and print or store the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--only", default="")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    designs = [(design, n) for design, n in (*ONE, *TWO) if options.only in f"{design} {n}"]
    rows = [row(design, n, options.replicates) for design, n in designs]
    head = "| design | subjects | tests | default | plain sandwich | inverse information | no number | 3 to 8% |"
    command = f"python -m tests.simulation.few_subjects --replicates {options.replicates} --write"
    text = "\n".join(
        [
            "# Size of 5 % tests with few subjects",
            "",
            f"`{command}`, mixmoe {mm.__version__}",
            "",
            head,
            "|---" * 8 + "|",
            *rows,
            "",
        ]
    )
    print(text)
    if options.write:
        Path(__file__).with_name("FEW_SUBJECTS.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
