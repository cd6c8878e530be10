"""How often "ml" warns of a skewed outcome, and how far it is off, by the skewness of the outcome.

    python -m tests.simulation.skewness --replicates 100 [--designs two three] [--write]

Fits and memberships are those of `three_step`; the outcome is gamma given the expert, with the means and the variance
of the normal one. `--write` stores the table in tests/simulation/SKEWNESS.md.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np

from mixmoe.errors import MixmoeWarning
from mixmoe.three_step.estimates import LEAST, LEVEL
from tests.simulation.three_step import DESIGNS, draw, fitted

SKEWNESS = (0.0, 0.25, 0.5, 0.75, 1.0, 2.0)
RESULTS = Path(__file__).with_name("SKEWNESS.md")


def errors(skewness, n, rng):
    """Draws with mean zero, variance one and this skewness."""
    if skewness == 0:
        return rng.normal(size=n)
    shape = (2 / skewness) ** 2
    return (rng.gamma(shape, size=n) - shape) / np.sqrt(shape)


def replicate(design, seed):
    """For each skewness: whether there was a warning, and the distances of naive and "ml" from known memberships."""
    sim, outcomes, k = draw(design, seed)
    rng, found = np.random.default_rng([seed, 1]), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        fit = fitted(sim, k)
        for skewness in SKEWNESS:
            y = np.array(design.means)[k] + errors(skewness, len(k), rng)
            known = y[k == 1].mean() - y[k == 0].mean()
            naive, ml = (fit.distal("y ~ expert", outcomes.assign(y=y), method=method) for method in ("naive", "ml"))
            off = [each.pairwise().to_frame()["estimate"].iloc[0] - known for each in (naive, ml)]
            found.append([float(ml.skewness.doubtful), *off])
    return found


def table(name, replicates, first):
    """Rows of one design."""
    design = DESIGNS[name]
    found = np.array([replicate(design, seed) for seed in range(first, first + replicates)])
    lines = [f"## {name} experts, N = {design.n_subjects}, {replicates} replicates", ""]
    lines += [
        "| skewness | warned | naive, beyond known | ml, beyond known (MC error) | % of naive |",
        "|---" * 5 + "|",
    ]
    for skewness, of in zip(SKEWNESS, found.transpose(1, 0, 2), strict=True):
        warned, naive, ml = of.mean(axis=0)
        error = of[:, 2].std(ddof=1) / np.sqrt(len(of))
        lines.append(
            f"| {skewness} | {warned:.1%} | {naive:+.3f} | {ml:+.3f} ({error:.3f}) | {100 * abs(ml / naive):.0f} |"
        )
    return "\n".join([*lines, ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=100)
    parser.add_argument("--designs", nargs="+", choices=list(DESIGNS), default=list(DESIGNS))
    parser.add_argument("--first", type=int, default=60_000, help="seed of the first replicate")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    sections = [table(name, options.replicates, options.first) for name in options.designs]
    rule = f"A warning needs p < {LEVEL} and a skewness of {LEAST} or more in an expert. Difference of experts 2 and 1."
    command = (
        f"python -m tests.simulation.skewness --replicates {options.replicates} --designs {' '.join(options.designs)}"
    )
    command += f" --first {options.first} --write"
    text = "\n".join(["# Skewed outcomes and method `ml`", "", f"    {command}", "", rule, "", *sections])
    print(text)
    if options.write:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
