"""When the flag `laplace_bias` fires on binary data, and what it is worth, as a Markdown table.

    python -m tests.simulation.laplace --replicates 20 --seconds 600 --pieces DIR     (as often as there is time)
    python -m tests.simulation.laplace --collect DIR                                  (writes LAPLACE.md)

Each replicate draws 0/1 responses with a random intercept, fits them by Laplace and again, from there, by quadrature
with 15 points. The shift is the largest change of a reported parameter in standard errors of the quadrature fit; the
coverage that of the 95 % intervals of the standard deviations. The seeds are not those the rule was chosen on.
"""

import argparse
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

import mixmoe as mm
from tests.simulation.coverage import best_order, inside
from tests.simulation.pieces import grow, markdown_table, stored

FIRST_SEED = 7_000
N_QUAD = 15
SIZES = {1: (100, 400), 2: (500,)}  # experts -> numbers of subjects
VISITS, SDS = (2, 3, 5, 10), (0.5, 1.0, 2.0, 3.0)
BASES = (0.0, -1.0, -3.0)  # intercepts, by turns: even, uneven and rare responses
MATTERS = 0.5


def draw(experts, n_subjects, visits, sd, seed):
    """One data set."""
    base = BASES[seed % len(BASES)]
    beta, gamma = [[base, 0.3, 0.5]], np.zeros((0, 1))
    if experts == 2:
        beta, gamma = [[base / 2 - 1.5, 0.6, 0.5], [base / 2 + 1.5, -0.6, -0.5]], [[-0.3, -0.8]]
    D, sigma = [[[sd**2]]] * experts, np.ones(experts)
    arguments = {"beta": beta, "gamma": gamma, "D": D, "sigma": sigma, "n_subjects": n_subjects, "n_visits": visits}
    return mm.simulate.memoe("binary", **arguments, rng=[seed, experts, n_subjects, visits, int(10 * sd)])


def replicate(experts, n_subjects, seed):
    """A row per number of visits and size of the random intercept."""
    rows = [one(experts, n_subjects, visits, sd, seed) for visits, sd in product(VISITS, SDS)]
    return pd.DataFrame(rows).set_index("experts")


def one(experts, n_subjects, visits, sd, seed):
    """What Laplace and quadrature say of one data set."""
    sim = draw(experts, n_subjects, visits, sd, seed)
    options = {"family": "binomial", "cov_type": "nonrobust", "rng": seed}
    laplace = mm.fit(sim.formula, sim.data, experts, starts=4 * experts if experts > 1 else 1, **options)
    laplace = laplace.relabel(best_order(sim, laplace.responsibilities))
    fine = mm.fit(sim.formula, sim.data, experts, n_quad=N_QUAD, start=laplace, **options)
    fine = fine.relabel(best_order(sim, fine.responsibilities))
    sds = [name for name in laplace.params.index if name.startswith("sd")]
    truth = pd.Series(sd, index=sds)
    codes = {flag.code for flag in laplace.flags}
    return {
        "experts": experts,
        "subjects": n_subjects,
        "visits": visits,
        "sd": sd,
        "seed": seed,
        "flagged": "laplace_bias" in codes,
        "not converged": not laplace.converged,
        "again": any(flag.code == "quadrature_bias" for flag in fine.flags),
        "shift": ((laplace.params - fine.params) / fine.bse).abs().max(),
        "ratio": float((laplace.params[sds] / fine.params[sds]).max()),
        "by Laplace": np.nanmean(inside(laplace, truth)) if laplace.bse[sds].notna().any() else np.nan,
        "by quadrature": np.nanmean(inside(fine, truth)) if fine.bse[sds].notna().any() else np.nan,
    }


def verdicts(raw):
    """One row for flagged and one for other fits: shifts, and coverage of the standard deviations."""
    by = raw.groupby(raw["flagged"].map({True: "flagged", False: "not flagged"}))
    columns = {
        "fits": by.size(),
        "median shift (SE)": by["shift"].median(),
        "share moved by half an SE": by["shift"].agg(lambda s: (s > MATTERS).mean()),
        "coverage by Laplace": by["by Laplace"].mean(),
        "coverage by quadrature": by["by quadrature"].mean(),
    }
    return pd.DataFrame(columns)


def designs(raw):
    """One row per design."""
    keys = [
        f"K={k:g}, N={n:g}, {v:g} visits, sd {s:g}"
        for k, n, v, s in raw[["experts", "subjects", "visits", "sd"]].to_numpy()
    ]
    by = raw.groupby(keys, sort=False)
    columns = {
        "fits": by.size(),
        "flagged": by["flagged"].mean(),
        "median shift (SE)": by["shift"].median(),
        "largest sd over that by quadrature (inf: that is zero)": by["ratio"].max(),
        "coverage by Laplace": by["by Laplace"].mean(),
        "coverage by quadrature": by["by quadrature"].mean(),
    }
    return pd.DataFrame(columns)


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=20)
    parser.add_argument("--experts", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=600.0, help="per number of experts and of subjects")
    parser.add_argument("--pieces", type=Path)
    parser.add_argument("--collect", type=Path)
    chosen = parser.parse_args()
    if chosen.collect is None:
        seeds = range(FIRST_SEED, FIRST_SEED + chosen.replicates)
        for experts in chosen.experts:
            for n_subjects in SIZES[experts]:
                path = chosen.pieces / f"laplace_{experts}_{n_subjects}.csv"
                grow(path, partial(replicate, experts, n_subjects), seeds, chosen.seconds)
        return
    raw = pd.concat([stored(path) for path in sorted(chosen.collect.glob("laplace_*.csv"))], ignore_index=True)
    lines = [
        "# Laplace against quadrature on binary data",
        "",
        f"`python -m tests.simulation.laplace`, mixmoe {mm.__version__}",
        "",
    ]
    agree = int((raw["flagged"] == (raw["shift"] > MATTERS)).sum())
    lines += [f"Flag and a shift of more than half a standard error agree in {agree} of {len(raw)} fits.", ""]
    again = raw.loc[raw["flagged"], "again"].mean()
    lines += [f"Flagged fits whose refit with {N_QUAD} points is flagged in its turn: {again:.1%}.", ""]
    lines += [*markdown_table(verdicts(raw)), "", *markdown_table(designs(raw)), ""]
    Path(__file__).with_name("LAPLACE.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
