"""Both smoothers of a VCMoE on the presets of `simulate.vcmoe`: local likelihood and `smoother="spline"`, as Markdown.

    python -m tests.simulation.varying_smoothers --pieces both.csv --replicates 30 [--first 0] [--n 500]
        [--scenarios moderate] [--seconds 900]

Both are fitted with their defaults: bandwidth by cross-validation, smoothing parameters by marginal likelihood. Per
kind of function: root mean squared error over a grid, share of sets in which the 95 % simultaneous band holds a whole
function, share of grid points that pointwise limits hold; CPU seconds of a fit with its bands. Sets are added to
the file of `--pieces`; the table is of all that it holds.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import mixmoe as mm
from mixmoe.errors import MixmoeWarning
from mixmoe.varying.presets import SCENARIOS
from tests.simulation.pieces import grow, stored

FIRST_SEED = 710_000
SMOOTHERS = ("local", "spline")
TERMS = {"expert": ("Intercept", "z1"), "gate": ("Intercept", "x1")}


def true_values(truth, block, expert, term, grid):
    """One function of a preset on a grid."""
    of = truth.expert[:, expert - 1] if block == "expert" else truth.gate[:, expert - 2]
    return np.interp(grid, truth.index, of[:, TERMS[block].index(term)])


def with_truth(fit, truth, seed):
    """Bands of the coefficients with the true values beside them, and the column of the index."""
    frame = fit.bands(rng=seed)
    frame = frame[frame["block"].isin(tuple(TERMS))].copy()
    groups = frame.groupby(["block", "expert", "term"], sort=False)
    frame["truth"] = np.concatenate([true_values(truth, *key, part["u"]) for key, part in groups])
    return frame


def bands(sim, smoother, seed):
    """Bands of one fit, experts in the order that is closest to the truth."""
    options = {} if smoother == "local" else {"smoother": "spline"}
    fit = mm.fit(sim.formula, sim.data, 2, rng=seed, **options)
    found = [with_truth(f, sim.truth, seed) for f in (fit, fit.relabel([2, 1]))]
    return min(found, key=lambda frame: float(((frame["estimate"] - frame["truth"]) ** 2).sum()))


def replicate(scenario, n, seed):
    """Rows per smoother and function of one set."""
    sim, rows = mm.simulate.vcmoe(scenario, n, rng=FIRST_SEED + seed), []
    for smoother in SMOOTHERS:
        begun = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MixmoeWarning)
            frame = bands(sim, smoother, seed)
        seconds = time.process_time() - begun
        for (block, _, _), part in frame.groupby(["block", "expert", "term"], sort=False):
            held = lambda low, high: (part[low] <= part["truth"]) & (part["truth"] <= part[high])  # noqa: E731, B023
            unknown = part["band_low"].isna()
            rows.append(
                {
                    "scenario": scenario,
                    "smoother": smoother,
                    "functions": block,
                    "mse": float(((part["estimate"] - part["truth"]) ** 2).mean()),
                    "simultaneous": bool((held("band_low", "band_high") | unknown).all()),
                    "pointwise": float(held("conf_low", "conf_high")[~unknown].mean()),
                    "seconds": seconds,
                }
            )
    return rows


def table(rows):
    """Lines by scenario and kind of function, as Markdown."""
    head = ("preset", "functions", "smoother", "RMSE", "simultaneous", "pointwise", "CPU s")
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for (scenario, kind, smoother), g in rows.groupby(["scenario", "functions", "smoother"], sort=False):
        lines.append(
            f"| {scenario} | {kind} | {smoother} | {np.sqrt(g['mse'].mean()):.3f} | "
            f"{100 * g['simultaneous'].mean():.0f} % | {100 * g['pointwise'].mean():.1f} % | "
            f"{g['seconds'].median():.1f} |"
        )
    return "\n".join(lines)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=30)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--scenarios", nargs="+", default=SCENARIOS, choices=SCENARIOS)
    parser.add_argument("--seconds", type=float, default=np.inf, help="after which no set begins")
    parser.add_argument("--pieces", type=Path, required=True)
    given = parser.parse_args()

    def one(seed):
        rows = [row for scenario in given.scenarios for row in replicate(scenario, given.n, seed)]
        return pd.DataFrame(rows, index=pd.Index([seed] * len(rows), name="seed"))

    grow(given.pieces, one, range(given.first, given.first + given.replicates), given.seconds)
    rows = stored(given.pieces)
    print(f"n = {given.n}, {rows['seed'].nunique()} sets\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
