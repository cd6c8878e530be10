"""Coverage of the bands of penalised functions, size and power of the quick test of constancy, as Markdown.

    python -m tests.simulation.smooth_coverage --pieces normal.csv --replicates 500 [--n 300] [--errors t]
        [--amplitude 0.0] [--first 0] [--seconds 900]

Two experts, functions sin, half a sine wave, a parabola and `amplitude` times a cosine (zero: constant), a random
intercept, a gate on one covariate, six rows per subject. Bands are those of ``| vary: t``, uncentred. Replicates
are added to the file of `--pieces`; the table is of all that it holds.
"""

import argparse
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

import mixmoe as mm
from tests.simulation.pieces import grow, stored

FIRST_SEED = 50_000
KINDS = {
    "nonrobust, lambda given": ("nonrobust", {"unconditional": False}),
    "nonrobust": ("nonrobust", {}),
    "robust": ("robust", {}),
}


def draw(n, amplitude, errors, seed):
    """Data of one replicate and the four functions, by expert and column."""
    rng = np.random.default_rng(FIRST_SEED + seed)
    z = rng.normal(size=n)
    expert = (rng.uniform(size=n) < 1 / (1 + np.exp(-0.5 * z))).astype(int)
    row = np.repeat(np.arange(n), 6)
    t, x = rng.uniform(size=row.size), rng.normal(size=row.size)
    functions = (
        (lambda u: np.sin(2 * np.pi * u), lambda u: 0.8 * np.sin(np.pi * u)),
        (lambda u: 1.0 + 3.0 * (u - 0.5) ** 2, lambda u: 0.3 + amplitude * np.cos(2 * np.pi * u)),
    )
    noise = rng.normal(size=row.size) if errors == "normal" else rng.standard_t(5, size=row.size) / np.sqrt(5 / 3)
    f = np.array([functions[k][0](t) + functions[k][1](t) * x for k in (0, 1)])[expert[row], np.arange(row.size)]
    y = f + 0.5 * rng.normal(size=n)[row] + 0.4 * noise
    return pd.DataFrame({"id": row, "t": t, "x": x, "z": z[row], "y": y}), functions


def replicate(n, amplitude, errors, seed):
    """One row per covariance and function: band and limits hold, squared error, test of constancy."""
    data, functions = draw(n, amplitude, errors, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = mm.fit("y ~ x | gate: z | re: (1 | id) | vary: t", data, 2, rng=seed, starts=8, cov_type="nonrobust")
        rows = []
        for name, (kind, options) in KINDS.items():
            of = fit.with_cov(kind, **options)
            bands = dict(iter(of.bands(rng=seed).groupby("coefficient", sort=False)))
            tests = of.test_varying()
            steep = [np.ptp(bands[f"expert{k}.Intercept"]["estimate"]) for k in (1, 2)]
            order = (1, 2) if steep[0] > steep[1] else (2, 1)
            for k, of_expert in zip(order, functions, strict=True):
                for column, truth in zip(("Intercept", "x"), of_expert, strict=True):
                    part = bands[f"expert{k}.{column}"]
                    true = truth(part["t"].to_numpy())
                    rows.append(
                        {
                            "seed": seed,
                            "covariance": name,
                            "function": f"{column} of {'sine' if of_expert is functions[0] else 'parabola'}",
                            "simultaneous": bool(((true >= part["band_low"]) & (true <= part["band_high"])).all()),
                            "pointwise": float(((true >= part["conf_low"]) & (true <= part["conf_high"])).mean()),
                            "mse": float(np.mean((part["estimate"] - true) ** 2)),
                            "varying": bool(tests.loc[f"expert{k}.{column}", "p_value"] < 0.05),
                            "converged": fit.converged,
                        }
                    )
    return pd.DataFrame(rows).set_index("seed")


def table(rows):
    """Shares by covariance and function, as Markdown."""
    grouped = rows.groupby(["covariance", "function"], sort=False)
    head = ("covariance", "function", "sets", "simultaneous", "pointwise", "RMSE", "declared varying", "converged")
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for (covariance, name), g in grouped:
        lines.append(
            f"| {covariance} | {name} | {len(g)} | {100 * g['simultaneous'].mean():.1f} % | "
            f"{100 * g['pointwise'].mean():.1f} % | {np.sqrt(g['mse'].mean()):.4f} | "
            f"{100 * g['varying'].mean():.1f} % | {100 * g['converged'].mean():.0f} % |"
        )
    return "\n".join(lines)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--errors", default="normal", choices=("normal", "t"))
    parser.add_argument("--amplitude", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=np.inf, help="after which no replicate begins")
    parser.add_argument("--pieces", type=Path, required=True)
    given = parser.parse_args()
    one = partial(replicate, given.n, given.amplitude, given.errors)
    grow(given.pieces, one, range(given.first, given.first + given.replicates), given.seconds)
    print(table(stored(given.pieces)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
