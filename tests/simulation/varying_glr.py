"""Size and power of the GLR test by the warp-speed bootstrap.

    python -m tests.simulation.varying_glr --replicates 500 [--power 200] [--n 500] [--test expert1.z1] [--jobs 2]

Each replicate draws data, computes the statistic, and one draw from its null fit; the pooled draws of all replicates
are the null distribution (Giacomini, Politis and White 2013, Econometric Theory 29, 567-589). Amplitude 0 is the null.
"""

import argparse
import sys

import numpy as np
from joblib import Parallel, delayed

from mixmoe.varying.estimate import Control, fit_functions
from mixmoe.varying.glr import draw_statistic, null_fit
from mixmoe.varying.simulate import vcmoe
from tests.varying.helpers import make_problem

FUNCTIONS = ("expert1.Intercept", "expert1.z1", "expert2.Intercept", "expert2.z1", "sigma1", "sigma2", "gate1", "gate2")
AMPLITUDES = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)


def replicate(n, slot, amplitude, bandwidth, seed):
    """Statistic of one set and of one draw from its null fit."""
    sim = vcmoe(n=n, rng=10_000 + seed, amplitude=amplitude)
    problem = make_problem(sim, bandwidth)
    run = fit_functions(problem, Control(n_starts=5), np.random.default_rng(seed))
    low = run.coef[:, 0, 0].mean() < run.coef[:, 0, 2].mean()  # the expert with the lower intercept is tested
    slots = np.array([slot if low or slot > 3 else (slot + 2) % 4])
    null = null_fit(problem, run.coef, slots)
    return run.loglik - null.loglik, draw_statistic(problem, null.coef, slots, seed)


def main():
    """Print the rejection rate at 5 % for each amplitude."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--power", type=int, default=200)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--bandwidth", type=float, default=0.2)
    parser.add_argument("--test", default="expert1.Intercept", choices=FUNCTIONS)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    slot = FUNCTIONS.index(given.test)
    for amplitude in AMPLITUDES:
        sets = given.replicates if amplitude == 0.0 else given.power
        if not sets:
            continue
        tasks = (delayed(replicate)(given.n, slot, amplitude, given.bandwidth, s) for s in range(sets))
        statistic, draw = np.array(Parallel(n_jobs=given.jobs)(tasks)).T
        rate = float((statistic > np.quantile(draw, 0.95)).mean())
        print(f"{given.test}, n={given.n}, amplitude {amplitude}: rejected {rate:.3f} of {sets}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
