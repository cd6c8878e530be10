"""Fits of Parquet files: time and memory from their sizes.

    python -m tests.benchmarks.partitions make FOLDER --rows 10000000      files of subjects with five visits each
    python -m tests.benchmarks.partitions scan FOLDER                      a fit by mm.scan, phase by phase
    python -m tests.benchmarks.partitions memory FOLDER                    the same fit of the rows in memory

Each prints one line of Markdown: rows, subjects, seconds of the design, of the fit and of all, CPU seconds, peak of the
resident memory, log-likelihood. The work of a fit depends on chance too, by the starts that it needs.
"""

import argparse
import resource
import time
from pathlib import Path

import pandas as pd

import mixmoe as mm
from mixmoe.mixed.model import MEMoE
from mixmoe.mixed.partitioned import PartitionedMEMoE

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
    fit = model.fit(rng=0, progress=False)
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "scan", "memory"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    if arguments.what == "make":
        make(arguments.folder, arguments.rows)
    elif arguments.what == "scan":
        measured(lambda: PartitionedMEMoE(FORMULA, mm.scan(arguments.folder), 2))
    else:
        measured(lambda: MEMoE(FORMULA, pd.read_parquet(arguments.folder), 2))


if __name__ == "__main__":
    main()
