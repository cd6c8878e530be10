"""How often the default search ends at the best known maximum, as a table.

    python -m tests.simulation.search_seeds --subjects 2000 --experts 2 3 4 --seeds 20 --raw seeds.csv [--write]

Two experts are simulated, so that three and four are over-extracted. Every fit is appended to the raw file at once, and
those that are in it are not run again: the table is of all of them. The best known log-likelihood of a design is the
highest of any seed. `--write` stores the table in tests/simulation/SEARCH.md.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import mixmoe as mm
from mixmoe.errors import MixmoeWarning

REACHED = 1e-3  # log-likelihood
COLUMNS = ("design", "subjects", "experts", "seed", "loglik", "flagged", "seconds")


def fitted(design, subjects, experts, seed):
    """One line of the raw file."""
    s = mm.simulate.memoe(design, n_subjects=subjects, rng=1)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        fit = mm.fit(s.formula, s.data, experts=experts, rng=seed, progress=False)
    flagged = any(flag.code == "not_replicated" for flag in fit.flags)
    return design, subjects, experts, seed, fit.llf, flagged, time.process_time() - start


def grow(path, designs, subjects, experts, seeds):
    """Fits that are not in the file yet, appended to it."""
    done = set()
    if path.exists():
        done = set(pd.read_csv(path)[["design", "subjects", "experts", "seed"]].itertuples(index=False, name=None))
    for seed in range(seeds):
        for key in ((design, n, K, seed) for design in designs for n in subjects for K in experts):
            if key not in done:
                line = pd.DataFrame([fitted(*key)], columns=list(COLUMNS))
                line.to_csv(path, mode="a", header=not path.exists(), index=False)


def table(raw):
    """Lines of the table."""
    rows = ["| design | subjects | experts | seeds | best | within 1e-3 | worst | flagged | unflagged below | CPU s |"]
    rows.append("|---" * 10 + "|")
    best = raw.groupby(["design", "subjects", "experts"])["loglik"].max()
    for (design, n, K), own in raw.groupby(["design", "subjects", "experts"]):
        below = own["loglik"].max() - own["loglik"]
        missed = (below > REACHED) & ~own["flagged"].astype(bool)
        nested = [best.get((design, n, k), -np.inf) for k in range(1, K)]
        under = " (below the nested fit)" if own["loglik"].min() < max(nested, default=-np.inf) else ""
        rows.append(
            f"| {design} | {n:,} | {K} | {len(own)} | {own['loglik'].max():.4f} | {int((below <= REACHED).sum())} "
            f"| {below.max():.3g}{under} | {int(own['flagged'].sum())} | {int(missed.sum())} "
            f"| {own['seconds'].mean():.1f} |"
        )
    return rows


def main():
    """Run what is asked for, and print or store the table of all that has been run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--designs", nargs="+", default=["separated", "moderate"])
    parser.add_argument("--subjects", nargs="+", type=int, default=[2000])
    parser.add_argument("--experts", nargs="+", type=int, default=[2, 3, 4])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    grow(options.raw, options.designs, options.subjects, options.experts, options.seeds)
    lines = [
        "# Maxima that the default search reaches",
        "",
        "`python -m tests.simulation.search_seeds --subjects 2000 5000 20000 --seeds 20 --raw seeds.csv --write`, "
        f"mixmoe {mm.__version__}",
        "",
        "Two experts are simulated, five visits. Best: log-likelihood of the best of these seeds; flagged: fits with "
        "`not_replicated`; unflagged below: fits that miss the best and do not say so.",
        "",
        *table(pd.read_csv(options.raw)),
        "",
    ]
    print("\n".join(lines))
    if options.write:
        Path(__file__).with_name("SEARCH.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
