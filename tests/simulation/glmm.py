"""Recovery and coverage of mixtures of GLMMs over replicates with known truth, as a Markdown table.

    python -m tests.simulation.glmm --presets binary count ordinal --replicates 500 --pieces DIR
    python -m tests.simulation.glmm --collect DIR

The first as often as there is time, the second writes GLMM.md.

Each call adds replicates to those in DIR, one file per preset and quadrature, going on with the next seed. A replicate
is that of `tests.simulation.coverage`, with few random starts, as the presets have one maximum that all of them reach.
"""

import argparse
from functools import partial
from pathlib import Path

import mixmoe as mm
from tests.simulation.coverage import FIRST_SEED, best_order
from tests.simulation.pieces import ending, grow, markdown_table, record, stored, summarise

LOW, HIGH = 0.92, 0.98
BIAS = 0.05  # of the effect
N_SUBJECTS = 500


def replicate(preset, n_quad, starts, seed):
    """A row per parameter of one replicate."""
    sim = mm.simulate.memoe(preset, n_subjects=N_SUBJECTS, rng=seed)
    truth = sim.truth.named()
    start = {"starts": starts} if starts else {"start": truth}
    options = {"family": sim.truth.family, "n_quad": n_quad, "rng": seed, **start}
    fit = mm.fit(sim.formula, sim.data, sim.truth.n_experts, **options)
    return record(fit.relabel(best_order(sim, fit.responsibilities)), truth, seed)


def markdown(path):
    """Title, verdict and table of one set of replicates."""
    raw = stored(path)
    preset, n_quad, starts = path.stem.split("_")
    table = summarise(raw)
    fixed = table[table.index.str.startswith(("expert", "cut"))]
    worst, low, high = fixed["bias / truth"].abs().max(), fixed["coverage"].min(), fixed["coverage"].max()
    verdict = "met" if worst < BIAS else "not met"
    what = "Fixed effects and thresholds" if fixed.index.str.startswith("cut").any() else "Fixed effects"
    how = "Laplace" if n_quad == "1" else f"{n_quad} quadrature points"
    return [
        f"## {preset}, {how}: {raw['seed'].nunique()} replicates of {N_SUBJECTS} subjects",
        "",
        f"Fitted from {'the truth' if starts == '0' else f'{starts} random starts'}.",
        "",
        f"{what}: largest bias {worst:.1%} of the effect (bar {BIAS:.0%}: {verdict}); "
        f"robust 95 % intervals {low:.1%} to {high:.1%} (bar {LOW:.0%} to {HIGH:.0%}: "
        f"{'met' if low >= LOW and high <= HIGH else 'not met'}).",
        ending(raw),
        "",
        *markdown_table(table),
        "",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["binary", "count", "ordinal"])
    parser.add_argument("--n-quad", type=int, default=1)
    parser.add_argument("--starts", type=int, default=8, help="random starts; 0 to fit from the truth")
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=200.0, help="per preset")
    parser.add_argument("--pieces", type=Path)
    parser.add_argument("--collect", type=Path)
    arguments = parser.parse_args()
    if arguments.collect is None:
        seeds = range(FIRST_SEED, FIRST_SEED + arguments.replicates)
        for preset in arguments.presets:
            path = arguments.pieces / f"{preset}_{arguments.n_quad}_{arguments.starts}.csv"
            grow(path, partial(replicate, preset, arguments.n_quad, arguments.starts), seeds, arguments.seconds)
        return
    report = Path(__file__).with_name("GLMM.md")
    sections = [markdown(path) for path in sorted(arguments.collect.glob("*.csv"))]
    head = [
        "# Mixtures of GLMMs: recovery and coverage",
        "",
        f"`python -m tests.simulation.glmm`, mixmoe {mm.__version__}",
        "Default settings but for the starts; where a section does not name them, there were 8 random ones.",
        "",
    ]
    report.write_text("\n".join([*head, *merged(report, sections)]), encoding="utf-8")


def merged(report, sections):
    """Lines of the sections of an earlier report, those made anew in their place or at the end."""
    earlier = report.read_text(encoding="utf-8").split("\n## ")[1:] if report.exists() else []
    titled = {part.split(":")[0]: ["## " + part.strip(), ""] for part in earlier}
    titled |= {lines[0].removeprefix("## ").split(":")[0]: lines for lines in sections}
    return [line for lines in titled.values() for line in lines]


if __name__ == "__main__":
    main()
