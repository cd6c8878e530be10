"""Replicates of a simulation, added to a file as long as there is time, and what they say of each parameter."""

import time
import warnings

import numpy as np
import pandas as pd

from mixmoe.errors import MixmoeWarning
from tests.simulation.coverage import inside


def record(fit, truth, seed):
    """A row per parameter of one replicate."""
    limits = fit.conf_int().loc[truth.index]
    return pd.DataFrame(
        {
            "seed": seed,
            "truth": truth,
            "estimate": fit.params[truth.index],
            "std_error": fit.bse[truth.index],
            "low": limits[0],
            "high": limits[1],
            "inside": inside(fit, truth),
            "converged": fit.converged,
            "flags": " ".join(flag.code for flag in fit.flags),
        }
    ).rename_axis("parameter")


def grow(path, replicate, seeds, seconds):
    """Append `replicate(seed)` for those of the seeds that are not in the file yet, until the time is up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = set(pd.read_csv(path, usecols=["seed"])["seed"]) if path.exists() else set()
    end = time.monotonic() + seconds
    for seed in seeds:
        if time.monotonic() > end:
            break
        if seed in done:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MixmoeWarning)
            replicate(seed).to_csv(path, mode="a", header=not path.exists())
    print(path.name, pd.read_csv(path, usecols=["seed"])["seed"].nunique(), flush=True)


def stored(path):
    """The replicates in a file."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


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


def ending(raw):
    """How the fits ended, in one line."""
    one = raw.drop_duplicates("seed")
    flags = one["flags"].astype(object).fillna("").str.split().explode().value_counts()
    flagged = ", ".join(f"{code} {n}" for code, n in flags.items()) or "none"
    return f"Converged: {int(one['converged'].sum())} of {len(one)}; flags: {flagged}."


SHARES = ("bias / truth", "MC error", "flagged", "share", "coverage", "natural-scale coverage")
COUNTS = ("intervals", "fits")


def shown(column, value):
    """A number as text: a share, a count or three decimals."""
    return f"{value:.0f}" if column in COUNTS else f"{value:.1%}" if column.startswith(SHARES) else f"{value:.3f}"


def markdown_table(table):
    """Lines of a table, each row under its name."""
    lines = [f"| {table.index.name or ''} | " + " | ".join(table.columns) + " |", "|---" * (table.shape[1] + 1) + "|"]
    for name, row in table.iterrows():
        cells = " | ".join(shown(column, value) for column, value in row.items())
        lines.append(f"| `{name.replace('|', chr(92) + '|')}` | {cells} |")
    return lines
