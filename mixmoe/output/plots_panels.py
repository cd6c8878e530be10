"""Diagnostic panels drawn with matplotlib."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mixmoe.output.panels import Cloud, Panel, Rule
from mixmoe.output.plots import (
    canvas_axes,
    canvas_result,
    colour,
    draw_curve,
    draw_marks,
    legend_above,
    name_places,
    open_frame,
    plain,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_POINTS = 4000  # of a cloud; more are thinned evenly
_IN_A_ROW = 5  # entries of a legend
_TITLE_PAD, _LEGEND_ROW = 5.0, 11.0  # points above the axes, and for each row of a legend
_ASIDE = 0.006  # of the width, between the marks of two experts
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
            width = float(np.ptp(marks.x)) if len(marks.x) > 1 else 1.0
            draw_marks(axes, marks, _ASIDE * (i - (len(panel.marks) - 1) / 2) * width)
        _dress(axes, panel)
    return canvas_result(canvas, ax)


def _cloud(axes: Any, cloud: Cloud, n_all: int, height: int) -> None:
    n = len(cloud.x)
    shown = np.arange(n) if n <= _MAX_POINTS else np.linspace(0, n - 1, _MAX_POINTS).round().astype(int)
    alpha = float(np.clip(25 / np.sqrt(max(n_all, 1)), 0.25, 0.8))
    size = float(np.clip(400 / np.sqrt(max(n_all, 1)), 7, 28))
    look = {"color": colour(cloud.expert), "alpha": alpha, "s": size, "linewidths": 0, "zorder": height}
    axes.scatter(cloud.x[shown], cloud.y[shown], label=cloud.label or None, **look)


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
    axes.set(xlabel=plain(panel.xlabel), ylabel=plain(panel.ylabel))
    if panel.xlim is not None:
        axes.set_xlim(panel.xlim)
    open_frame(axes)
    labels = axes.get_legend_handles_labels()[1]
    rows = math.ceil(len(labels) / _IN_A_ROW)
    if labels:  # between title and axes, clear of the points
        look = {"fontsize": "x-small", "handletextpad": 0.3, "columnspacing": 1.0, "borderaxespad": 0.1}
        legend = legend_above(axes, _IN_A_ROW, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderpad=0.2, **look)
        for handle in legend.legend_handles:
            handle.set_alpha(1.0)
    above = {"pad": _TITLE_PAD + _LEGEND_ROW * rows}
    axes.set_title(panel.title, loc="left", fontsize="medium", **above)
    if panel.note:
        axes.set_title(panel.note, loc="right", fontsize="x-small", color="#666666", **above)
    counted = [*(c.x for c in panel.clouds), *(c.x for c in panel.curves)]
    if panel.categories:
        name_places(axes, panel.categories)
    elif counted and all((x == np.round(x)).all() for x in counted):
        axes.xaxis.get_major_locator().set_params(integer=True)
