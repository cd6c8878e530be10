"""Size and power of the GLR test by the warp-speed bootstrap, as a Markdown table.

    python -m tests.simulation.varying_glr --replicates 500 [--power 200] [--n 500] [--test expert1.z1] [--first 0]
    python -m tests.simulation.varying_glr --replicates 80 --power 0 --n 300 --bandwidth 0.36 --scenario constant

Each replicate draws data, computes the statistic, and one draw from its null fit; the pooled draws of all replicates
are the null distribution (Giacomini, Politis and White 2013, Econometric Theory 29, 567-589). Amplitude 0 is the null.
Beside it the asymptotic test: its rejections, and the mean of the scaled statistic over its degrees of freedom.
"""

import argparse
import sys

import numpy as np
from scipy.stats import chi2

from mixmoe.varying.glr import draw_statistic, null_fit, null_law
from mixmoe.varying.joint_em import Control, fit_functions
from mixmoe.varying.presets import SCENARIOS, vcmoe
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
LEVELS = (0.05, 0.1)


def replicate(n, slots, amplitude, bandwidth, seed, scenario):
    """Statistic of one set and of one draw from its null fit; scale and degrees of freedom of the asymptotic law."""
    sim = vcmoe(scenario, n, rng=FIRST_SEED + seed, amplitude=amplitude)
    problem = make_problem(sim, bandwidth)
    run = fit_functions(problem, Control(n_starts=5), np.random.default_rng(seed))
    low = run.coef[:, 0, 0].mean() < run.coef[:, 0, 2].mean()  # the lower intercept is that of expert 1 of the preset
    swapped = np.array([2, 3, 0, 1, 5, 4, 6, 7])
    tested = np.sort(np.array(slots) if low else swapped[slots])
    null = null_fit(problem, run.coef, tested)
    law = null_law(problem, run.coef, tested)
    return run.loglik - null.loglik, draw_statistic(problem, null.coef, tested, seed), law.scale, law.df


def main():
    """Print the rejection rates at 5 and 10 % for each amplitude."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--power", type=int, default=200)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--bandwidth", type=float, default=0.2)
    parser.add_argument("--test", default="expert1.Intercept", choices=TESTS)
    parser.add_argument("--first", type=int, default=0, help="number of the first replicate")
    parser.add_argument("--scenario", default="well_separated", choices=SCENARIOS)
    given = parser.parse_args()
    head = ("test", "n", "amplitude", "sets", "bootstrap 5 %", "10 %", "asymptotic 5 %", "10 %", "mean / df")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for amplitude in AMPLITUDES:
        sets = given.replicates if amplitude == 0.0 else given.power
        if not sets:
            continue
        seeds = range(given.first, given.first + sets)
        slots, n, h = TESTS[given.test], given.n, given.bandwidth
        statistic, draw, scale, df = np.array([replicate(n, slots, amplitude, h, s, given.scenario) for s in seeds]).T
        p_values = chi2.sf(scale * np.maximum(statistic, 0.0), df)
        rates = [float((statistic > np.quantile(draw, 1.0 - level)).mean()) for level in LEVELS]
        rates += [float((p_values < level).mean()) for level in LEVELS]
        line = f"| `{given.test}` | {n} | {amplitude} | {sets} | {' | '.join(f'{100 * r:.1f} %' for r in rates)}"
        print(f"{line} | {(scale * statistic).mean() / df.mean():.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
