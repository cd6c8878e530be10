"""Fits of Parquet files: time and memory from their sizes.

    python -m tests.benchmarks.partitions make FOLDER --rows 10000000      files of subjects with five visits each
    python -m tests.benchmarks.partitions make FOLDER --rows 100000000 --visits 10
    python -m tests.benchmarks.partitions scan FOLDER                      a fit by mm.scan, phase by phase
    python -m tests.benchmarks.partitions memory FOLDER                    the same fit of the rows in memory
    python -m tests.benchmarks.partitions dask FOLDER --workers 2          the same fit by workers of a local cluster

Each prints one line of Markdown: rows, subjects, seconds of the design, of the fit and of all, CPU seconds, peak of the
resident memory, log-likelihood. The work of a fit depends on chance too, by the starts that it needs. With workers a
second line says the CPU seconds of the client and of each of them: where cores are shared with others, wall time says
little, and the client's with the longest of the workers' is what it were on idle ones.
"""

import argparse
import resource
import time
from pathlib import Path

import pandas as pd

import mixmoe as mm
from mixmoe.mixed.model import MEMoE
from mixmoe.mixed.partitioned import PartitionedMEMoE
from mixmoe.partitions.scan import as_partitions

FORMULA = "y ~ time + x1 | gate: z1 + z2 | re: (1 + time | id)"
_FILE_ROWS = 1_000_000
_TYPES = {"id": "int32", "z2": "int8"} | dict.fromkeys(("y", "time", "x1", "z1"), "float32")  # half of the disk


def make(folder, rows, visits):
    """Files in which each subject's visits stand together."""
    folder.mkdir(parents=True, exist_ok=True)
    subjects, of_file = rows // visits, _FILE_ROWS // visits
    for i, first in enumerate(range(0, subjects, of_file)):
        n = min(of_file, subjects - first)
        data = mm.simulate.memoe("separated", n_subjects=n, n_visits=visits, rng=i + 1).data.drop(columns="expert")
        data = data.assign(id=data["id"] + first).astype(_TYPES)
        data.to_parquet(folder / f"visits{i:05d}.parquet", index=False)


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


def measured_on_workers(folder, n):
    """The line, and CPU seconds of client and workers."""
    import dask.dataframe as frames
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=n, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        before, mine = client.run(time.process_time), time.process_time()
        measured(lambda: PartitionedMEMoE(FORMULA, as_partitions(frames.read_parquet(folder)), 2))
        spent = {key: seconds - before[key] for key, seconds in client.run(time.process_time).items()}
        print(f"client {time.process_time() - mine:.1f}, workers", *(f"{s:.1f}" for s in spent.values()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "scan", "memory", "dask"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--visits", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.what == "make":
        make(arguments.folder, arguments.rows, arguments.visits)
    elif arguments.what == "dask":
        measured_on_workers(arguments.folder, arguments.workers)
    elif arguments.what == "scan":
        measured(lambda: PartitionedMEMoE(FORMULA, mm.scan(arguments.folder), 2))
    else:
        measured(lambda: MEMoE(FORMULA, pd.read_parquet(arguments.folder), 2))


if __name__ == "__main__":
    main()
