"""Switched labels along the grid, over simulated sets.

    python -m tests.simulation.varying_labels [--sets 100] [--three 50] [--first 0]

Two experts, n = 300, separation 1.4 and 1.0; three experts, n = 1000. A grid point counts as switched if its experts
are closer to the truth in another order than that of the whole fit.
"""

import argparse
import sys

import numpy as np

from mixmoe.varying.joint_em import Control
from mixmoe.varying.presets import vcmoe
from mixmoe.varying.smoothing import From, maximise
from tests.varying.helpers import make_problem, switched_points


def switched(n, experts, separation, seed):
    """Number of switched grid points of one set."""
    sim = vcmoe(n=n, separation=separation, experts=experts, rng=seed)
    problem = make_problem(sim, 0.2, experts=experts)
    run = maximise(problem, Control(), np.random.default_rng(seed), From())
    return switched_points(problem, run.coef, sim), run.converged


def main():
    """Print one line per design."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=100)
    parser.add_argument("--three", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    given = parser.parse_args()
    total = 0
    for n, experts, separation, sets in (
        (300, 2, 1.4, given.sets),
        (300, 2, 1.0, given.sets),
        (1000, 3, 1.4, given.three),
    ):
        found = [switched(n, experts, separation, seed) for seed in range(given.first, given.first + sets)]
        points = sum(s for s, _ in found)
        total += points
        print(
            f"n={n}, K={experts}, separation {separation}: {points} switched grid points in "
            f"{sum(s > 0 for s, _ in found)} of {sets} sets; {sum(c for _, c in found)} converged"
        )
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
