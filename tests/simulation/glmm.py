"""Recovery and coverage of mixtures of GLMMs over replicates with known truth, as a Markdown table.

    python -m tests.simulation.glmm --presets binary count ordinal --replicates 500 --pieces DIR
    python -m tests.simulation.glmm --collect DIR

The first as often as there is time, the second writes GLMM.md.

Each call adds replicates to those in DIR, one file per preset and quadrature, going on with the next seed. A replicate
is that of `tests.simulation.coverage`, with few random starts, as the presets have one maximum that all of them reach.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import mixmoe as mm
from mixmoe.errors import MixmoeWarning
from tests.simulation.coverage import FIRST_SEED, best_order, inside

STARTS = 8
LOW, HIGH = 0.92, 0.98
BIAS = 0.05  # of the effect
N_SUBJECTS = 500


def replicate(preset, n_quad, seed):
    """A row per parameter of one replicate."""
    sim = mm.simulate.memoe(preset, n_subjects=N_SUBJECTS, rng=seed)
    truth = sim.truth.named()
    options = {"family": sim.truth.family, "n_quad": n_quad, "starts": STARTS, "rng": seed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        fit = mm.fit(sim.formula, sim.data, sim.truth.n_experts, **options)
    fit = fit.relabel(best_order(sim, fit.responsibilities))
    return pd.DataFrame(
        {
            "seed": seed,
            "truth": truth,
            "estimate": fit.params[truth.index],
            "std_error": fit.bse[truth.index],
            "inside": inside(fit, truth),
            "converged": fit.converged,
            "flags": " ".join(flag.code for flag in fit.flags),
        }
    ).rename_axis("parameter")


def add(preset, n_quad, wanted, seconds, folder):
    """Replicates until there are so many or the time is up, appended one by one."""
    path = folder / f"{preset}_{n_quad}.csv"
    done = pd.read_csv(path)["seed"].nunique() if path.exists() else 0
    end = time.monotonic() + seconds
    for seed in range(FIRST_SEED + done, FIRST_SEED + wanted):
        if time.monotonic() > end:
            break
        replicate(preset, n_quad, seed).to_csv(path, mode="a", header=not path.exists())
    print(path.name, pd.read_csv(path)["seed"].nunique(), flush=True)


def summarise(raw):
    """One row per parameter: bias, spread, mean standard error and coverage."""
    by = raw.groupby("parameter", sort=False)
    mean = by[["truth", "estimate", "std_error", "inside"]].mean()
    bias = mean["estimate"] - mean["truth"]
    return pd.DataFrame(
        {
            "truth": mean["truth"],
            "bias": bias,
            "bias / truth": bias / mean["truth"].abs(),
            "MC error": by["estimate"].std() / np.sqrt(by["estimate"].count()) / mean["truth"].abs(),
            "SD": by["estimate"].std(),
            "robust SE": mean["std_error"],
            "coverage": mean["inside"],
            "intervals": by["inside"].count(),
        }
    )


def markdown(path):
    """Title, verdict and table of one set of replicates."""
    raw = pd.read_csv(path, keep_default_na=False, na_values=[""])
    preset, n_quad = path.stem.split("_")
    table = summarise(raw)
    fixed = table[table.index.str.startswith(("expert", "cut"))]
    worst, low, high = fixed["bias / truth"].abs().max(), fixed["coverage"].min(), fixed["coverage"].max()
    one = raw.drop_duplicates("seed")
    flags = one["flags"].astype(object).fillna("").str.split().explode().value_counts()
    flagged = ", ".join(f"{code} {n}" for code, n in flags.items()) or "none"
    verdict = "met" if worst < BIAS else "not met"
    what = "Fixed effects and thresholds" if fixed.index.str.startswith("cut").any() else "Fixed effects"
    how = "Laplace" if n_quad == "1" else f"{n_quad} quadrature points"
    lines = [
        f"## {preset}, {how}: {len(one)} replicates of {N_SUBJECTS} subjects",
        "",
        f"{what}: largest bias {worst:.1%} of the effect (bar {BIAS:.0%}: {verdict}); "
        f"robust 95 % intervals {low:.1%} to {high:.1%} (bar {LOW:.0%} to {HIGH:.0%}: "
        f"{'met' if low >= LOW and high <= HIGH else 'not met'}).",
        f"Converged: {int(one['converged'].sum())}; flags: {flagged}.",
        "",
        "| parameter | " + " | ".join(table.columns) + " |",
        "|---" * (table.shape[1] + 1) + "|",
    ]
    for row in table.itertuples():
        name = row[0].replace("|", "\\|")
        shown = [f"{row[1]:.3f}", f"{row[2]:.3f}", f"{row[3]:.1%}", f"{row[4]:.1%}", f"{row[5]:.3f}", f"{row[6]:.3f}"]
        lines.append(f"| `{name}` | " + " | ".join([*shown, f"{row[7]:.1%}", f"{row[8]}"]) + " |")
    return [*lines, ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["binary", "count", "ordinal"])
    parser.add_argument("--n-quad", type=int, default=1)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=200.0, help="per preset")
    parser.add_argument("--pieces", type=Path)
    parser.add_argument("--collect", type=Path)
    arguments = parser.parse_args()
    if arguments.collect is None:
        arguments.pieces.mkdir(parents=True, exist_ok=True)
        for preset in arguments.presets:
            add(preset, arguments.n_quad, arguments.replicates, arguments.seconds, arguments.pieces)
        return
    lines = [
        "# Mixtures of GLMMs: recovery and coverage",
        "",
        f"`python -m tests.simulation.glmm`, mixmoe {mm.__version__}",
    ]
    lines += [f"Default settings but for {STARTS} random starts instead of 64.", ""]
    for path in sorted(arguments.collect.glob("*.csv")):
        lines += markdown(path)
    Path(__file__).with_name("GLMM.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
