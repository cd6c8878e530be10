"""Candidates compared by their errors on held-out rows: table and figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixmoe.output.plots import COLOURS, canvas_axes, canvas_result, open_frame
from mixmoe.output.tables import Cell, Table


@dataclass(frozen=True, slots=True)
class Validated:
    """One candidate.

    Attributes
    ----------
    formula, label : str
    error, se : float
        Per held-out row, smaller is better, with its standard error; NaN without a fit.
    loglik : float
        Of all rows.
    parameters : int
    epochs : int
    converged : bool
    measure : str
    best : bool
        Whether its error is the smallest.
    """

    formula: str
    label: str
    error: float
    se: float
    loglik: float
    parameters: int
    epochs: int
    converged: bool
    measure: str
    best: bool


def validation_tables(rows: Sequence[Validated]) -> tuple[Table, ...]:
    """One table per formula; the smallest error is marked."""
    tables: list[Table] = []
    for text in dict.fromkeys(row.formula for row in rows):
        mine = [row for row in rows if row.formula == text]
        measure = next((row.measure for row in rows if row.measure), "error")
        tables.append(
            Table(
                key=f"candidates{len(tables) + 1}",
                title=text,
                columns=(f"held-out {measure}", "SE", "log-lik.", "par.", "epochs", "converged"),
                index=tuple(row.label for row in mine),
                cells=tuple(validation_cells(row) for row in mine),
                formats=("", ".4f", ".2f", ".4g", "", "text"),
            )
        )
    return tuple(tables)


def validation_cells(row: Validated) -> tuple[Cell, ...]:
    """Cells of one candidate; "failed" where there is no fit."""
    if np.isnan(row.error):
        return ("failed", *[None] * 5)
    error = f"{row.error:.4f}{'*' if row.best else ' '}"
    return (error, row.se, row.loglik, row.parameters, row.epochs, "yes" if row.converged else "no")


def draw_validation(rows: Sequence[Validated], ax: Any = None) -> Any:
    """Errors with bars of one standard error, a line per candidate, the smallest marked.

    Parameters
    ----------
    rows : sequence of Validated
    ax : matplotlib Axes, optional

    Returns
    -------
    Figure, or `ax` if given
    """
    (axes,) = canvas = canvas_axes(1, ax)
    several = len({row.formula for row in rows}) > 1
    names = [f"{row.formula}\n{row.label}" if several else row.label for row in rows]
    for place, row in enumerate(rows):
        colour = COLOURS[1] if row.best else COLOURS[0]
        bar = row.se if np.isfinite(row.se) else None
        axes.errorbar(row.error, place, xerr=bar, color=colour, fmt="o", markersize=5, capsize=3)
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"held-out {next((row.measure for row in rows if row.measure), 'error')}, per row")
    open_frame(axes)
    return canvas_result(canvas, ax)
