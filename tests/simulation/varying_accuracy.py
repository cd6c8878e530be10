"""Errors of the fit against those of a fit of each grid point alone, and classification against the oracle.

    python -m tests.simulation.varying_accuracy [--sets 20] [--n 500] [--families gaussian binomial negbinomial]

The R package maximises the likelihood of each grid point alone and permutes labels afterwards. What it can reach at
best is the local maximum next to the truth with labels repaired by the truth; that is what the ratio compares with. The
oracle classifies with the true functions.
"""

import argparse
import sys

import numpy as np

from mixmoe.varying.estimate import Control, fit_functions
from mixmoe.varying.labels import permute_experts
from mixmoe.varying.local_likelihood import build_local, local_start, maximise_local, polish
from mixmoe.varying.simulate import SCENARIOS, vcmoe
from mixmoe.varying.steps import own_natural, posterior
from tests.varying.helpers import make_problem


def true_state(problem, sim):
    """The truth as a state of the EM."""
    grid, slots, truth = problem.windows.grid, problem.slots, sim.truth
    out = np.zeros((len(grid), 2, slots.n))
    functions = [truth.expert[:, c, j] for c in range(2) for j in range(2)]
    if slots.has_dispersion:
        functions += [np.log(truth.dispersion[:, c]) for c in range(2)]
    functions += [truth.gate[:, 0, j] for j in range(2)]
    for slot, values in enumerate(functions):
        out[:, 0, slot] = np.interp(grid, truth.index, values)
        out[:, 1, slot] = np.gradient(out[:, 0, slot], grid) * problem.windows.bandwidth
    return out


def error(problem, levels, truth):
    """Root mean squared error of the expert coefficients."""
    return float(np.sqrt(((levels - truth[:, 0])[:, problem.slots.experts] ** 2).mean()))


def accuracy(problem, coef, sim):
    """Share of rows assigned to their expert."""
    component = sim.data.sort_values("u")["component"].to_numpy() - 1
    weights = posterior(problem.rows, problem.family, own_natural(problem, coef)).weighted
    return float((weights.argmax(axis=0) == component).mean())


def one_set(scenario, family, n, seed):
    """Ratio of errors, and difference of classification to the oracle."""
    sim = vcmoe(scenario, n, family=family, rng=seed)
    problem = make_problem(sim, 0.2 if family == "gaussian" else 0.25, family=family)
    truth = true_state(problem, sim)
    run = fit_functions(problem, Control(), np.random.default_rng(seed))
    orders = (np.array([0, 1]), np.array([1, 0]))
    coef = min(
        (permute_experts(problem.slots, polish(problem, run.coef), o) for o in orders),
        key=lambda c: error(problem, c[:, 0], truth),
    )
    local = build_local(problem, 1)
    alone = maximise_local(local, local_start(local, truth)).coef
    ratio = error(problem, coef[:, 0], truth) / error(problem, alone[:, 0], truth)
    return ratio, accuracy(problem, coef, sim) - accuracy(problem, truth, sim)


def main():
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--families", nargs="+", default=["gaussian", "binomial", "negbinomial"])
    given = parser.parse_args()
    print("| family | scenario | error ratio: median | largest | sets above 1.02 | classification less oracle |")
    print("|---|---|---|---|---|---|")
    for family in given.families:
        for scenario in SCENARIOS:
            found = np.array([one_set(scenario, family, given.n, seed) for seed in range(given.sets)])
            ratio, points = found.T
            print(
                f"| {family} | {scenario} | {np.median(ratio):.3f} | {ratio.max():.3f} | {(ratio > 1.02).sum()} of "
                f"{given.sets} | {100 * points.mean():+.2f} points |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
