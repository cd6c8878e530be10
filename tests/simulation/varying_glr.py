"""Size and power of the GLR test by the warp-speed bootstrap, as a Markdown table.

    python -m tests.simulation.varying_glr --replicates 500 [--power 200] [--n 500] [--test expert1.z1] [--first 0]

Each replicate draws data, computes the statistic, and one draw from its null fit; the pooled draws of all replicates
are the null distribution (Giacomini, Politis and White 2013, Econometric Theory 29, 567-589). Amplitude 0 is the null.
"""

import argparse
import sys

import numpy as np

from mixmoe.varying.estimate import Control, fit_functions
from mixmoe.varying.glr import draw_statistic, null_fit
from mixmoe.varying.simulate import vcmoe
from tests.varying.helpers import make_problem

FIRST_SEED = 10_000
TESTS = {
    "expert1.Intercept": [0],
    "expert1.z1": [1],
    "expert2.Intercept": [2],
    "expert2.z1": [3],
    "sigma1": [4],
    "sigma2": [5],
    "gate2.Intercept": [6],
    "gate2.x1": [7],
    "gate": [6, 7],
    "all": list(range(8)),
}
AMPLITUDES = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
LEVEL = 0.05


def replicate(n, slots, amplitude, bandwidth, seed):
    """Statistic of one set and of one draw from its null fit."""
    sim = vcmoe(n=n, rng=FIRST_SEED + seed, amplitude=amplitude)
    problem = make_problem(sim, bandwidth)
    run = fit_functions(problem, Control(n_starts=5), np.random.default_rng(seed))
    low = run.coef[:, 0, 0].mean() < run.coef[:, 0, 2].mean()  # the lower intercept is that of expert 1 of the preset
    swapped = np.array([2, 3, 0, 1, 5, 4, 6, 7])
    tested = np.sort(np.array(slots) if low else swapped[slots])
    null = null_fit(problem, run.coef, tested)
    return run.loglik - null.loglik, draw_statistic(problem, null.coef, tested, seed)


def main():
    """Print the rejection rate at 5 % for each amplitude."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--power", type=int, default=200)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--bandwidth", type=float, default=0.2)
    parser.add_argument("--test", default="expert1.Intercept", choices=TESTS)
    parser.add_argument("--first", type=int, default=0, help="number of the first replicate")
    given = parser.parse_args()
    print("| test | n | amplitude | sets | rejected at 5 % | Monte Carlo error |\n|---|---|---|---|---|---|")
    for amplitude in AMPLITUDES:
        sets = given.replicates if amplitude == 0.0 else given.power
        if not sets:
            continue
        seeds = range(given.first, given.first + sets)
        found = [replicate(given.n, TESTS[given.test], amplitude, given.bandwidth, s) for s in seeds]
        statistic, draw = np.array(found).T
        rate = float((statistic > np.quantile(draw, 1.0 - LEVEL)).mean())
        error = np.sqrt(max(rate * (1.0 - rate), LEVEL * (1.0 - LEVEL)) / sets)
        head = f"| `{given.test}` | {given.n} | {amplitude} | {sets}"
        print(f"{head} | {100 * rate:.1f} % | {100 * error:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
