"""Fits with hundreds of fixed-effect columns: python -m tests.benchmarks.columns [CASE ...].

Factors with 400 levels in 5,000 rows of 1,000 subjects, by kinds of errors and responses, with one expert and with two
that have levels of their own; REML with 38 columns; long series with a Brownian motion. CPU time of whole fits with
robust standard errors.
"""

import sys

import numpy as np
import pandas as pd

import mixmoe as mm
from tests.benchmarks import timing
from tests.benchmarks.sections import Row, fit

SECONDS = 10.0
LONG_SECONDS = 5.0
FORMULA = "y ~ C(g) + time | re: (1 | id)"
CASES = {
    "iid": (FORMULA, {}),
    "ar1": (FORMULA, {"errors": "ar1", "time": "time"}),
    "car1": (FORMULA, {"errors": "car1", "time": "time"}),
    "bm": (FORMULA, {"errors": "bm", "time": "time"}),
    "t": (FORMULA, {"errors_dist": "t"}),
    "binomial": (FORMULA.replace("y", "b", 1), {"family": "binomial"}),
    "poisson": (FORMULA.replace("y", "c", 1), {"family": "poisson"}),
    "ordinal": (FORMULA.replace("y", "o", 1), {"family": "ordinal"}),
    "bs": ("y ~ C(g) + bs(x, df=5) | re: (1 | id)", {}),
    "s": ("y ~ C(g) + s(x) | re: (1 | id)", {}),
}


def levels(n_levels, n_subjects=1_000, n_rows=5):
    """Rows of subjects in two groups far apart, and a factor whose levels are spread over them."""
    rng, n = np.random.default_rng(0), n_subjects * n_rows
    ident, time = np.repeat(np.arange(n_subjects), n_rows), np.tile(np.arange(n_rows) + 0.0, n_subjects)
    g = rng.permutation(np.r_[np.arange(n_levels), rng.integers(0, n_levels, n - n_levels)])
    own = np.where(rng.random(n_subjects) < 0.4, 3.0, -3.0)[ident]
    level = rng.normal(size=n_levels)[g] + rng.normal(size=n_subjects)[ident]
    y = own + 0.3 * own * time + level + rng.normal(size=n)
    data = pd.DataFrame({"id": ident, "time": time, "g": g, "y": y, "x": rng.normal(size=n)})
    counts = rng.poisson(np.exp(np.clip(0.3 * y, -5.0, 3.0)))
    return data.assign(b=(y > 0).astype(float), c=counts, o=np.digitize(y, [-3.0, 0.0, 3.0]))


def measured(what, bar, formula, data, **options):
    """A row of the table for the CPU time of one fit."""
    seconds = timing.cpu_seconds(lambda: fit(formula, data, **options), 1)
    return Row(what, f"{seconds:.1f} s", f"under {bar:g} s", seconds < bar)


def columns(cases):
    """Rows of the table: the chosen cases, then REML and the long series."""
    many, some = levels(400), levels(37)
    for case in cases:
        formula, options = CASES[case]
        for experts in (1, 2):
            what = f"400 levels, {case}, K={experts}"
            yield measured(what, SECONDS, formula, many, experts=experts, **options)
    yield measured("37 levels, REML", SECONDS, FORMULA, some, experts=1, method="reml")
    long = mm.simulate.memoe("single", n_subjects=4, n_visits=5_000, rng=1).data
    options = {"experts": 1, "errors": "bm", "time": "time"}
    yield measured("4 x 5,000 rows, bm", LONG_SECONDS, "y ~ time | re: (1 | id)", long, **options)


if __name__ == "__main__":
    for row in columns(sys.argv[1:] or list(CASES)):
        print(f"| {row.what} | {row.figure} | {row.bar} | {row.met} |", flush=True)
