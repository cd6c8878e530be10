"""Errors of the reported functions against those of the R package's algorithm, and classification against the oracle.

    python -m tests.simulation.varying_accuracy [--first 0] [--sets 20] [--n 500] [--families gaussian binomial]

The R package fits each grid point alone (`tests.simulation.varying_peer`); its labels are repaired by the truth at each
point. It has no Poisson family: there the comparison is with a fit of each grid point that begins at the truth. Both
are fitted with the same bandwidth and compared on 50 points over the whole range of the index, and on those between
its 5 % and 95 % quantiles, which is where the R package fits by default. The oracle has the true functions.
"""

import argparse
import sys

import numpy as np

from mixmoe.varying.em_steps import own_natural, posterior
from mixmoe.varying.joint_em import Control, fit_functions
from mixmoe.varying.local_likelihood import build_local, local_start
from mixmoe.varying.local_maximum import local_maxima, maximise_local
from mixmoe.varying.presets import SCENARIOS, vcmoe
from mixmoe.varying.smoothing import smoothed_functions
from mixmoe.varying.starts import permute_experts
from tests.simulation.varying_peer import peer_functions
from tests.varying.helpers import make_problem

INSIDE = (0.05, 0.95)


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


def relabelled(problem, coef, truth):
    """The state with experts in the order that is closer to the truth."""
    orders = (permute_experts(problem.slots, coef, np.array(o)) for o in ([0, 1], [1, 0]))
    return min(orders, key=lambda c: squares(problem, c[:, 0], truth).sum())


def squares(problem, levels, truth):
    """Squared errors of the expert coefficients, (G, 4)."""
    return (levels - truth[:, 0])[:, problem.slots.experts] ** 2


def repaired(coef, truth):
    """Expert coefficients (G, 2, 2), at each grid point in the order that is closer to the truth."""
    return np.stack([min((c, c[::-1]), key=lambda a: ((a - t) ** 2).sum()) for c, t in zip(coef, truth, strict=True)])


def accuracy(problem, coef, sim):
    """Share of rows assigned to their expert."""
    component = sim.data.sort_values("u")["component"].to_numpy() - 1
    weights = posterior(problem.rows, problem.family, own_natural(problem, coef)).weighted
    return float((weights.argmax(axis=0) == component).mean())


def one_set(scenario, family, n, seed):
    """Mean squared errors, ours and the peer's, on the whole range and inside; difference of classification."""
    sim = vcmoe(scenario, n, family=family, rng=seed)
    problem = make_problem(sim, 0.2 if family == "gaussian" else 0.25, family=family)
    truth, grid = true_state(problem, sim), problem.windows.grid
    run = fit_functions(problem, Control(), np.random.default_rng(seed))
    reported = relabelled(problem, smoothed_functions(problem, local_maxima(problem, run.coef)), truth)
    true = truth[:, 0, problem.slots.experts].reshape(-1, 2, 2)
    if family == "poisson":
        local = build_local(problem, 1)
        found = maximise_local(local, local_start(local, truth)).coef[:, 0, problem.slots.experts]
        theirs = repaired(found.reshape(true.shape), true)
    else:
        theirs = repaired(peer_functions(problem, np.random.default_rng(seed)), true)
    low, high = np.quantile(problem.rows.index, INSIDE)
    inside = (grid >= low) & (grid <= high)
    ours, theirs = squares(problem, reported[:, 0], truth).mean(axis=1), ((theirs - true) ** 2).mean(axis=(1, 2))
    points = accuracy(problem, reported, sim) - accuracy(problem, truth, sim)
    return ours.mean(), theirs.mean(), ours[inside].mean(), theirs[inside].mean(), points


def texts(ours, theirs):
    """Ratio of the errors of all sets together; median and largest ratio of single sets; how many are above 1.02."""
    ratio, pooled = np.sqrt(ours / theirs), np.sqrt(ours.mean() / theirs.mean())
    return f"{pooled:.3f} | {np.median(ratio):.3f} | {ratio.max():.3f} | {(ratio > 1.02).sum()} of {len(ratio)}"


def main():
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--families", nargs="+", default=["gaussian", "binomial", "negbinomial", "poisson"])
    given = parser.parse_args()
    columns = ("all sets", "median", "largest", "above 1.02")
    columns = (*(f"whole range: {columns[0]}", *columns[1:]), *(f"5-95 %: {columns[0]}", *columns[1:]))
    print(f"| family | scenario | {' | '.join(columns)} | classification less oracle |")
    print("|---" * 11 + "|")
    for family in given.families:
        for scenario in SCENARIOS:
            seeds = range(given.first, given.first + given.sets)
            ours, theirs, inner, outer, points = np.array([one_set(scenario, family, given.n, s) for s in seeds]).T
            line = f"| {family} | {scenario} | {texts(ours, theirs)} | {texts(inner, outer)} "
            print(f"{line}| {100 * points.mean():+.2f} points |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
