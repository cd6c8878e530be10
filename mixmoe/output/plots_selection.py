"""Criteria against the number of experts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mixmoe.output.plots import COLOURS, DASHES, canvas_axes, canvas_result, open_frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Elbow:
    """Criteria of one structure.

    Attributes
    ----------
    title : str
    experts : ndarray of int, shape (G,)
    values : tuple of (str, ndarray of shape (G,))
        Name and values of each criterion, smaller is better; infinite where there is none.
    """

    title: str
    experts: NDArray[np.int64]
    values: tuple[tuple[str, Array], ...]


def draw_criteria(panels: Sequence[Elbow], ax: "Axes | Sequence[Axes] | None" = None) -> "Figure | Axes | NDArray[Any]":
    """A panel per structure, on one scale, with the smallest value of each criterion marked.

    Parameters
    ----------
    panels : sequence of Elbow
    ax : Axes or sequence of Axes, optional

    Returns
    -------
    Figure, Axes or ndarray of Axes
        The new figure, or `ax`.
    """
    canvas = canvas_axes(len(panels), ax)
    finite = np.concatenate([v[np.isfinite(v)] for panel in panels for _, v in panel.values] or [np.zeros(0)])
    for axes, panel in zip(canvas, panels, strict=True):
        for i, (name, values) in enumerate(panel.values):
            _criterion(axes, panel.experts, values, name, COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)])
        axes.set(xlabel="experts", ylabel="criterion (smaller is better)")
        axes.set_xticks(np.unique(panel.experts))
        if finite.size:
            reach = max(0.05 * float(np.ptp(finite)), 1.0)
            axes.set_ylim(finite.min() - reach, finite.max() + reach)
        if panel.title:
            axes.set_title(panel.title, loc="left", fontsize="medium")
        open_frame(axes)
        axes.legend(frameon=False, loc="best")
    return canvas_result(canvas, ax)


def _criterion(axes: Any, experts: NDArray[np.int64], values: Array, name: str, tint: str, dash: str) -> None:
    shown = np.isfinite(values)
    axes.plot(experts[shown], values[shown], color=tint, linestyle=dash, marker="o", markersize=4, label=name)
    if shown.any():
        best = int(np.argmin(values))
        axes.plot(experts[best], values[best], marker="o", markersize=11, markerfacecolor="none", color=tint)
