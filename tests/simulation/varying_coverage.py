"""Coverage of simultaneous bands of VCMoE over replicates with known truth, as a Markdown table.

    python -m tests.simulation.varying_coverage --replicates 500 --first 200000 --dump folder
    python -m tests.simulation.varying_coverage --scenario moderate --bandwidth 0.25 [--n 1000] [--bias rbc]
    python -m tests.simulation.varying_coverage --family binomial --bandwidth 0.25
    python -m tests.simulation.varying_coverage --n 600 --bandwidth 0.25 --index-shape 2 2
    python -m tests.simulation.varying_coverage --family negbinomial --n 600 --bandwidth 0.25

Each replicate draws two experts, chooses the bandwidth by cross-validation (or takes the given one) and keeps centre,
standard error and factors of every band at every grid point, in a file of its own if a folder is given; a run that was
cut off goes on where it stopped. The table says how often a band holds the truth on the whole grid, and where a miss
comes from: standard errors against the spread over replicates, bias, and the quantile that the factor should have been.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from mixmoe.errors import MixmoeWarning
from mixmoe.varying.model import VCMoE
from mixmoe.varying.presets import SCENARIOS, vcmoe

BAR = (0.93, 0.97)
FIRST_SEED = 5_000
LEVEL = 0.95
LIMITS = ("center", "std_error", "conf_low", "conf_high", "band_low", "band_high")
FORMULA = "y ~ z1 | gate: x1 | vary: u"


def true_functions(sim, grid):
    """Truth by name of the function, at the grid points."""
    truth = sim.truth
    at = lambda values: np.interp(grid, truth.index, values)  # noqa: E731
    out = {}
    for c in range(truth.expert.shape[1]):
        out |= {f"expert{c + 1}.{t}": at(truth.expert[:, c, j]) for j, t in enumerate(("Intercept", "z1"))}
        out |= {f"{symbol}{c + 1}": at(truth.dispersion[:, c]) for symbol in ("sigma", "theta")}
    for c in range(1, truth.expert.shape[1]):
        out |= {f"gate{c + 1}.{t}": at(truth.gate[:, c - 1, j]) for j, t in enumerate(("Intercept", "x1"))}
    return out


def in_order_of_truth(fit):
    """The fit with experts by their mean intercept, which is the order of the presets."""
    frame = fit.functions()
    means = (
        frame[frame["term"] == "Intercept"].loc[lambda f: f["block"] == "expert"].groupby("expert")["estimate"].mean()
    )
    return fit.relabel([int(k) for k in means.sort_values().index])


def replicate(given, seed):
    """Centre, truth, standard error and limits of every band, (functions, G) each; dispersions as their logs."""
    sim = vcmoe(given.scenario, given.n, family=given.family, index_shape=given.index_shape, rng=FIRST_SEED + seed)
    beside = {"binomial": {"trials": "trials"}, "negbinomial": {"offset": "log_size"}}
    options = {"family": given.family} | beside.get(given.family, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        fit = VCMoE(FORMULA, sim.data, bandwidth=given.bandwidth, **options).fit(rng=seed)
    frame = in_order_of_truth(fit).bands(bias=given.bias, alpha=1.0 - LEVEL, rng=seed)
    truth = true_functions(sim, frame["u"].unique())
    names = list(frame["coefficient"].unique())
    column = lambda name: np.stack([frame.loc[frame["coefficient"] == f, name].to_numpy() for f in names])  # noqa: E731
    out = {name: column(name) for name in LIMITS} | {"truth": np.stack([truth[f] for f in names])}
    logs = np.array([f.startswith(("sigma", "theta")) for f in names])
    out["std_error"][logs] /= out["center"][logs]
    for name in set(out) - {"std_error"}:
        with np.errstate(divide="ignore"):  # a theta without a lower limit
            out[name][logs] = np.log(out[name][logs])
    return out | {"names": np.array(names), "bandwidth": fit.bandwidth, "converged": fit.converged}


def kept(given, seed):
    """The replicate, from its file if there is one."""
    if given.dump is None:
        return replicate(given, seed)
    path = given.dump / f"{seed}.npz"
    if not path.exists():
        given.dump.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **replicate(given, seed))
    with np.load(path) as stored:
        return dict(stored)


def table(found):
    """Lines of the table and whether a function of experts or gate is outside the bar."""
    stack = {name: np.stack([f[name] for f in found]) for name in (*LIMITS, "truth")}
    truth, se = stack["truth"], stack["std_error"]
    error, known = stack["center"] - truth, ~np.isnan(stack["band_low"])
    score = np.where(np.isfinite(se), np.abs(error) / se, 0.0)
    wide = (stack["band_low"] <= truth) & (truth <= stack["band_high"])
    held = (wide | ~known).all(axis=2).mean(axis=0)
    near = np.where(known, (stack["conf_low"] <= truth) & (truth <= stack["conf_high"]), np.nan)
    factor = 0.5 * (stack["band_high"] - stack["band_low"]) / se
    spread, bias = error.std(axis=0), np.abs(error.mean(axis=0))
    lines, missed = [], False
    for j, name in enumerate(found[0]["names"]):
        missed |= name[:5] not in ("sigma", "theta") and not BAR[0] <= held[j] <= BAR[1]
        middle = np.nanmedian(se[:, j], axis=0) / spread[j]
        needed = np.quantile(score[:, j].max(axis=1), LEVEL)
        lines.append(
            f"| `{name}` | {100 * held[j]:.1f} % | {100 * np.nanmean(near[:, j]):.1f} % | {middle.mean():.2f} "
            f"| {middle[[0, -1]].mean():.2f} | {(bias[j] / spread[j]).mean():.2f} "
            f"| {np.nanmedian(factor[:, j]):.2f} | {needed:.2f} | {(~known[:, j]).mean():.4f} |"
        )
    return lines, missed


def main():
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--scenario", default="well_separated", choices=SCENARIOS)
    parser.add_argument("--family", default="gaussian")
    parser.add_argument("--bias", default="rbc")
    parser.add_argument("--bandwidth", default="cv", type=lambda v: v if v in ("cv", "rule") else float(v))
    parser.add_argument("--index-shape", nargs=2, type=float, default=(1.0, 1.0), help="beta distribution of the index")
    parser.add_argument("--first", type=int, default=0, help="number of the first replicate")
    parser.add_argument("--seconds", type=float, default=np.inf, help="no replicate begins after this time")
    parser.add_argument("--dump", type=Path, help="folder for the bands of each replicate")
    given = parser.parse_args()
    began, found = time.perf_counter(), []
    for seed in range(given.first, given.first + given.replicates):
        if time.perf_counter() - began < given.seconds:
            found.append(kept(given, seed))
    h = np.array([f["bandwidth"] for f in found])
    print(
        f"{given.scenario}, {given.family}, n={given.n}, bias={given.bias!r}, {len(found)} replicates; bandwidth "
        f"median {np.median(h):.3f} ({np.quantile(h, 0.1):.3f} to {np.quantile(h, 0.9):.3f}); "
        f"{np.mean([f['converged'] for f in found]):.1%} converged\n"
    )
    head = ("function", "simultaneous", "pointwise", "SE / SD", "at the ends", "bias / SD", "factor", "needed", "lost")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    lines, missed = table(found)
    print("\n".join(lines))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
