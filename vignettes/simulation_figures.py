"""Figures of the simulation results, drawn from the tables in `tests/simulation` when the site is built."""

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

COLOURS = {"robust coverage": "#0072B2", "model coverage": "#D55E00"}


def tables(text: str) -> dict[str, list[dict[str, str]]]:
    """Rows of the tables of a page, by column, under the headings that they stand below."""
    found = {}
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        lines = [line for line in part.splitlines() if line.startswith("|")]
        cells = [[cell.strip().replace("\\", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
        if cells:
            found[part.splitlines()[0]] = [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]
    return found


def coverage(source: Path, target: Path) -> None:
    """Coverage of the intervals of each parameter beside 95 %, one panel for each table."""
    found = tables(source.read_text(encoding="utf-8"))
    figure, axes = plt.subplots(
        1, len(found), figsize=(4.6 * len(found), 5.2), sharex=True, sharey=True, layout="constrained"
    )
    for ax, (title, rows) in zip(axes, found.items(), strict=True):
        height, names = -np.arange(len(rows)), [row["parameter"].strip("`") for row in rows]
        for (column, colour), marker in zip(COLOURS.items(), "os", strict=True):
            shares = [float(row[column].rstrip("%")) for row in rows]
            ax.plot(shares, height, marker, color=colour, markersize=5, label=column.partition(" ")[0])
        chance = 200.0 * np.sqrt(0.95 * 0.05 / float(rows[0]["intervals"]))
        ax.axvspan(95.0 - chance, 95.0 + chance, color="black", alpha=0.08, linewidth=0)
        ax.axvline(95.0, color="black", linewidth=0.8)
        ax.set(title=title.partition(":")[0], xlabel="coverage (%)")
        ax.set_yticks(height, names)
        ax.grid(axis="y", linewidth=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, loc="upper left")
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, dpi=110)
    plt.close(figure)
