"""Speed bars of VCMoE.

    python -m tests.benchmarks.varying [--large] [--glr]

One pass of kernel-weighted least squares over the grid is the unit: a loop over grid points that solves the normal
equations of the rows in each window with NumPy.
"""

import argparse
import resource
import sys
import time

import numpy as np

import mixmoe as mm
from mixmoe.varying.glr import null_draws, null_fit
from mixmoe.varying.joint_em import Control, fit_functions
from mixmoe.varying.presets import vcmoe
from tests.varying.helpers import make_problem

REPEATS = 15


def least_squares_pass(problem):
    """Kernel-weighted least squares at every grid point, nothing shared between them."""
    windows, rows = problem.windows, problem.rows
    out = []
    for g in range(windows.n_grid):
        span = slice(windows.lo[g], windows.hi[g])
        t = (rows.index[span] - windows.grid[g]) / windows.bandwidth
        z = np.hstack([rows.design[span], rows.design[span] * t[:, None]])
        weighted = z * (0.75 * (1.0 - t * t))[:, None]
        out.append(np.linalg.solve(weighted.T @ z, weighted.T @ rows.outcome.y[span]))
    return np.array(out)


def seconds(call, repeats=REPEATS):
    """Median time of a call, after one to warm up."""
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def given_bandwidth():
    """A fit against the unit, n = 1000, K = 2, G = 50, 5 starts."""
    sim = vcmoe(n=1000, rng=1)
    unit = seconds(lambda: least_squares_pass(make_problem(sim, 0.2)))

    def fit():
        fit_functions(make_problem(sim, 0.2), Control(n_starts=5), np.random.default_rng(0))

    ours = seconds(fit)
    print(f"fit, n=1000, K=2, G=50, 5 starts: {1e3 * ours:.0f} ms = {ours / unit:.0f} passes of {1e3 * unit:.2f} ms")
    whole = seconds(lambda: mm.fit("y ~ z1 | gate: x1 | vary: u", sim.data, experts=2, bandwidth=0.2, rng=0), 5)
    print(f"mm.fit, n=1000, K=2, G=50, 10 starts: {1e3 * whole:.0f} ms = {whole / unit:.0f} passes")
    twenty = seconds(
        lambda: fit_functions(make_problem(sim, 0.2, n_grid=20), Control(n_starts=3), np.random.default_rng(0))
    )
    print(f"fit, n=1000, K=2, G=20, 3 starts: {1e3 * twenty:.0f} ms (R package 64 s, {64.0 / twenty:.0f} times)")


def large():
    """Time and memory as n grows."""
    for n in (10_000, 100_000):
        problem = make_problem(vcmoe(n=n, rng=1), 0.2)
        began = time.perf_counter()
        run = fit_functions(problem, Control(n_starts=5), np.random.default_rng(0))
        took = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"n={n}: {took:.1f} s, {1e6 * took / n:.0f} us per row, {len(run.trace)} iterations, peak {peak:.2f} GB")


def bootstrap_test():
    """GLR bootstrap, B = 199, n = 500, one process."""
    problem = make_problem(vcmoe("constant", 500, rng=1), 0.2)
    run = fit_functions(problem, Control(n_starts=5), np.random.default_rng(0))
    slots = np.array([1])
    null = null_fit(problem, run.coef, slots)
    began = time.perf_counter()
    null_draws(problem, null.coef, slots, 199, np.random.default_rng(0), 1, False)
    print(f"GLR bootstrap, B=199, n=500, one process: {time.perf_counter() - began:.1f} s")


def main():
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--glr", action="store_true")
    asked = parser.parse_args()
    given_bandwidth()
    if asked.large:
        large()
    if asked.glr:
        bootstrap_test()
    return 0


if __name__ == "__main__":
    sys.exit(main())
