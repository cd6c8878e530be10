"""Every specification of a folder of reference results, at default settings, for many seeds, as a Markdown table.

    python -m tests.simulation.reference --peers ../shared/peers/memoe --seeds 20

A specification passes if at least 19 of 20 seeds (15 of 20 where the reference is not a regular maximum) reach the
stored log-likelihood within 1e-3.
"""

import argparse
import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

import mixmoe as mm
from mixmoe.errors import MixmoeWarning

CLOSE = 1e-3


@dataclass(frozen=True)
class Outcome:
    """One specification over all seeds."""

    key: str
    regular: bool
    gains: np.ndarray
    seconds: float
    worst_score: float
    flags: tuple[str, ...]
    replicated: tuple[int, int]

    @property
    def hits(self):
        return int((self.gains > -CLOSE).sum())

    @property
    def passed(self):
        return self.hits >= (0.95 if self.regular else 0.75) * len(self.gains)


def run(entry, folder, seeds):
    data = pd.read_csv(folder / entry["data"])
    gains, scores, flags, replicated = [], [], set(), []
    start = time.perf_counter()
    for seed in range(seeds):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MixmoeWarning)
            fit = mm.fit(
                entry["formula"],
                data,
                entry["experts"],
                cov_re=entry["cov_re"],
                residual=entry["residual"],
                rng=seed,
            )
        gains.append(fit.llf - entry["loglik"])
        scores.append(fit.model.largest_score(fit.params))
        flags |= {flag.code for flag in fit.flags}
        replicated.append(fit.em.starts.n_replicated)
    seconds = (time.perf_counter() - start) / seeds
    ends = (min(replicated), max(replicated))
    return Outcome(entry["key"], entry["regular"], np.array(gains), seconds, max(scores), tuple(sorted(flags)), ends)


def row(o, n):
    mark = "" if o.passed else " **miss**"
    return (
        f"| {o.key} | {'yes' if o.regular else 'no'} | {o.hits}/{n}{mark} "
        f"| {o.gains.min():+.4f} | {o.gains.max():+.4f} | "
        f"{o.worst_score:.0e} | {o.replicated[0]}-{o.replicated[1]} | {o.seconds:.2f} | {', '.join(o.flags)} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="*", type=int)
    args = parser.parse_args()
    entries = json.loads((args.peers / "reference.json").read_text())
    chosen = [entries[i] for i in args.only] if args.only else entries
    print("| specification | regular | hits | min - ref | max - ref | largest score | replicated | s per fit | flags |")
    print("|---|---|---|---|---|---|---|---|---|")
    outcomes = []
    tasks = (delayed(run)(entry, args.peers, args.seeds) for entry in chosen)
    for outcome in Parallel(n_jobs=args.jobs, return_as="generator")(tasks):
        outcomes.append(outcome)
        print(row(outcome, args.seeds), flush=True)
    print(f"\n{sum(o.passed for o in outcomes)} of {len(outcomes)} specifications pass.")


if __name__ == "__main__":
    main()
