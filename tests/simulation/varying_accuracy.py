"""Errors of the fit against those of a fit of each grid point alone, and classification against the oracle.

    python -m tests.simulation.varying_accuracy [--first 0] [--sets 20] [--n 500] [--families gaussian binomial]

The R package maximises the likelihood of each grid point alone and permutes labels afterwards. What it can reach at
best is the local maximum next to the truth with labels repaired by the truth; that is what the ratios compare with, for
the reported functions and for our own local maxima (``estimate="local"``). The oracle has the true functions.
"""

import argparse
import sys

import numpy as np

from mixmoe.varying.estimate import Control, fit_functions
from mixmoe.varying.labels import permute_experts
from mixmoe.varying.local_likelihood import build_local, local_start
from mixmoe.varying.local_maximum import local_maxima, maximise_local
from mixmoe.varying.simulate import SCENARIOS, vcmoe
from mixmoe.varying.smoothing import smoothed_functions
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


def relabelled(problem, coef, truth):
    """The state with experts in the order that is closer to the truth."""
    orders = (permute_experts(problem.slots, coef, np.array(o)) for o in ([0, 1], [1, 0]))
    return min(orders, key=lambda c: error(problem, c[:, 0], truth))


def accuracy(problem, coef, sim):
    """Share of rows assigned to their expert."""
    component = sim.data.sort_values("u")["component"].to_numpy() - 1
    weights = posterior(problem.rows, problem.family, own_natural(problem, coef)).weighted
    return float((weights.argmax(axis=0) == component).mean())


def one_set(scenario, family, n, seed):
    """Ratios of errors (reported, local), and difference of classification to the oracle."""
    sim = vcmoe(scenario, n, family=family, rng=seed)
    problem = make_problem(sim, 0.2 if family == "gaussian" else 0.25, family=family)
    truth = true_state(problem, sim)
    run = fit_functions(problem, Control(), np.random.default_rng(seed))
    maxima = local_maxima(problem, run.coef)
    reported = relabelled(problem, smoothed_functions(problem, maxima), truth)
    local = build_local(problem, 1)
    alone = error(problem, maximise_local(local, local_start(local, truth)).coef[:, 0], truth)
    ratios = [error(problem, c[:, 0], truth) / alone for c in (reported, relabelled(problem, maxima.state, truth))]
    return *ratios, accuracy(problem, reported, sim) - accuracy(problem, truth, sim)


def main():
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--families", nargs="+", default=["gaussian", "binomial", "negbinomial", "poisson"])
    given = parser.parse_args()
    columns = ("median", "largest", "sets above 1.02")
    columns = (*(f"error ratio: {c}" for c in columns), *(f"local maxima: {c}" for c in columns))
    print(f"| family | scenario | {' | '.join(columns)} | classification less oracle |")
    print("|---" * 9 + "|")
    for family in given.families:
        for scenario in SCENARIOS:
            seeds = range(given.first, given.first + given.sets)
            ratio, local, points = np.array([one_set(scenario, family, given.n, seed) for seed in seeds]).T
            texts = (f"{np.median(r):.3f} | {r.max():.3f} | {(r > 1.02).sum()} of {given.sets}" for r in (ratio, local))
            print(f"| {family} | {scenario} | {' | '.join(texts)} | {100 * points.mean():+.2f} points |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
