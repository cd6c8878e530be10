"""Diagnostic panels drawn with matplotlib."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mixmoe.output.panels import Cloud, Marks, Panel, Rule
from mixmoe.output.plots import canvas_axes, canvas_result, colour, draw_curve, open_frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_POINTS = 4000  # of a cloud; more are thinned evenly
_MANY = 4  # legend entries that still go into one column
_LINE, _THIN = 2.0, 1.0


def draw_panels(
    panels: Sequence[Panel], ax: "Axes | Sequence[Axes] | None" = None, columns: int | None = None
) -> "Figure | Axes | NDArray[Any]":
    """Panels side by side.

    Parameters
    ----------
    panels : sequence of Panel
    ax : Axes or sequence of Axes, optional
        Where to draw, one per panel; by default a new figure.
    columns : int, optional
        Panels in a row of a new figure.

    Returns
    -------
    Figure, Axes or ndarray of Axes
        The new figure, or `ax`.
    """
    canvas = canvas_axes(len(panels), ax, columns)
    for axes, panel in zip(canvas, panels, strict=True):
        for rule in panel.rules:
            _rule(axes, rule)
        for cloud in panel.clouds:
            _cloud(axes, cloud, sum(len(c.x) for c in panel.clouds), 2 if panel.points_first else 7)
        for curve in panel.curves:
            draw_curve(axes, curve, _LINE if panel.points_first else _THIN)
        for i, marks in enumerate(panel.marks):
            _marks(axes, marks, i - (len(panel.marks) - 1) / 2)
        _dress(axes, panel)
    return canvas_result(canvas, ax)


def _cloud(axes: Any, cloud: Cloud, n_all: int, height: int) -> None:
    n = len(cloud.x)
    shown = np.arange(n) if n <= _MAX_POINTS else np.linspace(0, n - 1, _MAX_POINTS).round().astype(int)
    alpha = float(np.clip(25 / np.sqrt(max(n_all, 1)), 0.25, 0.8))
    size = float(np.clip(400 / np.sqrt(max(n_all, 1)), 7, 28))
    look = {"color": colour(cloud.expert), "alpha": alpha, "s": size, "linewidths": 0, "zorder": height}
    axes.scatter(cloud.x[shown], cloud.y[shown], label=cloud.label or None, **look)


def _marks(axes: Any, marks: Marks, place: float) -> None:
    """Points with limits, set slightly apart from those of other experts."""
    width = float(np.ptp(marks.x)) if len(marks.x) > 1 else 1.0
    x = marks.x + 0.006 * place * width
    errors = np.maximum(np.vstack([marks.y - marks.lower, marks.upper - marks.y]), 0.0)
    look = {"color": colour(marks.expert), "linestyle": "none", "marker": "o", "markersize": 4.5, "capsize": 0}
    axes.errorbar(
        x, marks.y, yerr=errors, elinewidth=1.3, markeredgecolor="white", markeredgewidth=0.6, zorder=6,
        label=marks.label or None, **look,
    )  # fmt: skip


def _rule(axes: Any, rule: Rule) -> None:
    look = {"color": "#999999", "linewidth": 0.9, "zorder": 1}
    if rule.across == "y":
        axes.axhline(rule.at, **look)
        place = {"xy": (1, rule.at), "xycoords": axes.get_yaxis_transform(), "ha": "right", "va": "bottom"}
    else:
        axes.axvline(rule.at, linestyle=":", **look)
        place = {"xy": (rule.at, 1), "xycoords": axes.get_xaxis_transform(), "ha": "left", "va": "top"}
    if rule.label:
        axes.annotate(rule.label, xytext=(2, 2 if rule.across == "y" else -2), textcoords="offset points", **place,
                      fontsize="x-small", color="#666666")  # fmt: skip


def _dress(axes: Any, panel: Panel) -> None:
    axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    if panel.xlim is not None:
        axes.set_xlim(panel.xlim)
    axes.set_title(panel.title, loc="left", fontsize="medium")
    open_frame(axes)
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        many = len(labels) > _MANY
        look = {"fontsize": "x-small" if many else "small", "ncols": 1 + many, "columnspacing": 1.0}
        legend = axes.legend(handles, labels, frameon=False, loc="best", handletextpad=0.5, **look)
        for handle in legend.legend_handles:
            handle.set_alpha(1.0)
    if panel.note:
        axes.set_title(panel.note, loc="right", fontsize="x-small", color="#666666")
    counted = [*(c.x for c in panel.clouds), *(c.x for c in panel.curves)]
    if counted and all((x == np.round(x)).all() for x in counted):
        axes.xaxis.get_major_locator().set_params(integer=True)
