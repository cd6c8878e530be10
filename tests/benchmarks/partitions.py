"""Fits of Parquet files: time and memory from their sizes.

    python -m tests.benchmarks.partitions make FOLDER --rows 10000000      files of subjects with five visits each
    python -m tests.benchmarks.partitions scan FOLDER                      a fit by mm.scan, phase by phase
    python -m tests.benchmarks.partitions memory FOLDER                    the same fit of the rows in memory
    python -m tests.benchmarks.partitions threads                          one and two threads, in turns

Each prints one line of Markdown: rows, subjects, seconds of the design, of the fit and of all, CPU seconds, peak of the
resident memory, log-likelihood. The work of a fit depends on chance too, by the starts that it needs.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd

import mixmoe as mm
from mixmoe.mixed.likelihood.observed import evaluate
from mixmoe.mixed.model import MEMoE
from mixmoe.mixed.partitioned import PartitionedMEMoE
from mixmoe.numerics.threads import Workers

FORMULA = "y ~ time + x1 | gate: z1 + z2 | re: (1 + time | id)"
VISITS = 5
_SUBJECTS = 200_000  # of one file


def make(folder, rows):
    """Files in which each subject's visits stand together."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, first in enumerate(range(0, rows // VISITS, _SUBJECTS)):
        n = min(_SUBJECTS, rows // VISITS - first)
        data = mm.simulate.memoe("separated", n_subjects=n, n_visits=VISITS, rng=i + 1).data.drop(columns="expert")
        data.assign(id=data["id"] + first).to_parquet(folder / f"visits{i:05d}.parquet", index=False)


def measured(build):
    """A line of the table for a model that `build` makes."""
    begin, cpu = time.perf_counter(), time.process_time()
    model = build()
    designed = time.perf_counter()
    fit = model.fit(rng=0, n_threads=1, progress=False)
    end, spent = time.perf_counter(), time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    figures = (
        f"{designed - begin:.1f}",
        f"{end - designed:.1f}",
        f"{end - begin:.1f}",
        f"{spent:.1f}",
        f"{peak:.2f} GB",
    )
    print("|", " | ".join([f"{fit.nobs}", f"{fit.n_units}", *figures, f"{fit.llf:.4f}"]), "|")


def threads(sizes=(600, 5_000, 20_000, 100_000), repeats=40):
    """Wall time of one evaluation on one thread over that on two, in turns: median and quartiles of the ratios."""
    for n in sizes:
        data = mm.simulate.memoe("separated", n_subjects=n, rng=1)
        model = MEMoE(data.formula, data.data, 2)
        problems = [model._threaded(Workers(k)).problem for k in (1, 2)]
        theta = np.random.default_rng(0).normal(0.0, 0.1, (1, model.problem.free.size))
        ratios = []
        for _ in range(repeats):
            spent = []
            for problem in problems:
                begin = time.perf_counter()
                evaluate(problem, theta)
                spent.append(time.perf_counter() - begin)
            ratios.append(spent[0] / spent[1])
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        print(f"| {n} | {middle:.2f} | {low:.2f} to {high:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "scan", "memory", "threads"))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    if arguments.what == "threads":
        threads()
    elif arguments.what == "make":
        make(arguments.folder, arguments.rows)
    elif arguments.what == "scan":
        measured(lambda: PartitionedMEMoE(FORMULA, mm.scan(arguments.folder), 2))
    else:
        measured(lambda: MEMoE(FORMULA, pd.read_parquet(arguments.folder), 2))


if __name__ == "__main__":
    main()
