"""How often criteria find the number of experts, and the size of the bootstrap likelihood-ratio test.

    python -m tests.simulation.experts criteria --experts 2 --replicates 100 --write
    python -m tests.simulation.experts size --experts 1 --replicates 400 --write [--checkpoint FILE]

`criteria` draws data from K experts, fits 1 to 4 (1 to 3 where K is 1 or 2) by `select` with 8 random starts each and
counts what each criterion picks. `size` is a warp-speed bootstrap (Giacomini, Politis & White 2013): one draw from the
fit with K experts to each replicate; the statistics of all draws together are the null distribution for those of the
replicates. `--write` puts the section of this study into tests/simulation/EXPERTS.md.
"""

import argparse
import re
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np

import mixmoe as mm
from mixmoe.check.number_of_experts import LRDraw, observed_fits
from mixmoe.errors import MixmoeWarning
from mixmoe.mixture.resampling import Journal, fingerprint

BETA = np.array([[10.0, 1.0], [12.0, -0.5], [8.0, 0.2]])
GAMMA = np.array([[-0.6, -0.8], [-0.4, 0.6]])
D = np.array([[[1.0, 0.1], [0.1, 0.09]], [[2.25, -0.2], [-0.2, 0.25]], [[0.5, 0.05], [0.05, 0.04]]])
SIGMA = np.array([0.8, 1.2, 0.5])
FORMULA = "y ~ time | gate: z1 | re: (1 + time | id)"
SIMPLE = "y ~ time | gate: z1 | re: (1 | id)"
MOST = {1: 3, 2: 3, 3: 4}  # experts tried, by the true number
FIRST_SEED = 5_000
CRITERIA = ("aic", "bic", "sabic", "icl", "clc")
STARTS = 8
RESULTS = Path(__file__).with_name("EXPERTS.md")


def draw(k, n_subjects, seed, slopes=True):
    """Data from the first k experts, six visits each."""
    effects = D[:k] if slopes else D[:k, :1, :1]
    return mm.simulate.memoe(
        "three", n_subjects=n_subjects, beta=BETA[:k], gamma=GAMMA[: k - 1], D=effects, sigma=SIGMA[:k], rng=seed
    ).data


def picks(k, n_subjects, seed):
    """Number of experts that each criterion picks, and the entropy of the fit with the true number."""
    table = mm.select(FORMULA, draw(k, n_subjects, seed), range(1, MOST[k] + 1), starts=STARTS, rng=seed)
    entropy = table.candidates[k - 1].results.entropy
    return [*(table.best(name).model.n_experts for name in CRITERIA), entropy]


def statistics(k, n_subjects, seed):
    """The statistic of k + 1 against k experts in data from k, and in one draw from the fit with k."""
    rng = np.random.default_rng(seed)
    model = mm.MEMoE(SIMPLE, draw(k, n_subjects, seed, slopes=False), k + 1)
    null, full = observed_fits(model, k + 1, STARTS, rng)
    return [2 * (full.loglik - null.loglik), LRDraw(model, null, STARTS)(rng)]


def quietly(function, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        return function(*arguments)


def replicates(function, arguments):
    """One row per seed, in the order of the seeds; those in the checkpoint are not computed again."""
    seeds = range(FIRST_SEED + 1000 * arguments.experts, FIRST_SEED + 1000 * arguments.experts + arguments.replicates)
    calls = [partial(quietly, function, arguments.experts, arguments.n_subjects, seed) for seed in seeds]
    key = fingerprint((arguments.study, arguments.experts, arguments.n_subjects, STARTS))
    with Journal(arguments.checkpoint, key, 0) as journal:
        found = journal.run(calls, arguments.jobs)
    if found.interrupted:
        sys.exit("interrupted; the same command with its checkpoint goes on")
    return np.array(found.values)


def criteria(arguments):
    """Rows of a table: how often each number of experts was picked."""
    found = replicates(picks, arguments)
    chosen, entropy = found[:, :-1], found[:, -1].mean()
    lines = [f"Mean entropy with the true number: {entropy:.3f}.", ""]
    most = MOST[arguments.experts]
    lines += ["| criterion | " + " | ".join(f"{j} experts" for j in range(1, most + 1)) + " | picks the truth |"]
    lines += ["|---" * (most + 2) + "|"]
    for name, column in zip(CRITERIA, chosen.T, strict=True):
        counts = " | ".join(str(int((column == j).sum())) for j in range(1, most + 1))
        lines.append(f"| {name.upper()} | {counts} | {np.mean(column == arguments.experts):.0%} |")
    return lines


def size(arguments):
    """Rows of a table: rejections at 1, 5 and 10 %."""
    values = replicates(statistics, arguments)
    values = values[np.isfinite(values).all(axis=1)]
    observed, drawn = values.T
    lines = [f"{len(values)} usable; mean statistic {observed.mean():.2f}, of the draws {drawn.mean():.2f}.", ""]
    lines += ["| level | rejected | Monte Carlo error |", "|---|---|---|"]
    for level in (0.01, 0.05, 0.10):
        rate = np.mean(observed > np.quantile(drawn, 1 - level))
        error = np.sqrt(2 * level * (1 - level) / len(values))
        lines.append(f"| {level:.0%} | {rate:.1%} | {error:.1%} |")
    return lines


STUDIES = {"criteria": criteria, "size": size}
TITLES = {
    "criteria": "Criteria in data from {k} expert{s}",
    "size": "Size of the bootstrap test of {more} against {k} expert{s}",
}


def write(title, block):
    """The section with this title in the results, replaced if it was there."""
    text = RESULTS.read_text() if RESULTS.exists() else "# Number of experts\n\n"
    sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    kept = [section for section in sections[1:] if not section.startswith(f"## {title}\n")]
    RESULTS.write_text(sections[0] + "".join(sorted([*kept, block])))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--experts", type=int, default=1, choices=(1, 2, 3))
    parser.add_argument("--replicates", type=int, default=100)
    parser.add_argument("--n-subjects", type=int, default=300)
    parser.add_argument("--checkpoint")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    lines = STUDIES[arguments.study](arguments)
    k = arguments.experts
    title = TITLES[arguments.study].format(k=k, more=k + 1, s="s" if k > 1 else "")
    shown = f"{arguments.study} --experts {k} --replicates {arguments.replicates} --n-subjects {arguments.n_subjects}"
    command = f"python -m tests.simulation.experts {shown} --write"
    about = f"{arguments.replicates} replicates of {arguments.n_subjects} subjects with 6 visits"
    head = [f"## {title}", "", f"`{command}`: {about}."]
    block = "\n".join([*head, *lines, "", ""])
    print(block)
    if arguments.write:
        write(title, block)


if __name__ == "__main__":
    main()
