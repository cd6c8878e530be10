"""Figures from curves, panels and criteria."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.errors import ArgumentError, MissingExtraError
from mixmoe.output.records import Cloud, Curve, Marks, Observed, Panel, Rule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe & Ito's palette, readable with any colour vision; its yellow, too faint on white, gives way to grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
DASHES = ("-", "--", "-.", ":")
_MAX_COLUMNS = 3
_APART = 0.07  # of experts above a category
_JITTER, _GOLDEN = 0.6, 0.6180339887498949  # spread of units above a category, evenly by the golden ratio
_LEVEL_JITTER = 0.5  # of the distance between levels on the vertical axis
_MAX_SERIES = 150
_MAX_BARS = 2000
_PANEL_SIZE = (4.6, 3.4)
_SINGLE_SIZE = (6.8, 4.6)
_ROOM = 1.5  # of the height of curves and bands, beyond which bands are cut off
_ENTRY = 1.2  # inches that an entry of a legend takes
_IN_A_ROW = 4  # entries of a legend
_CENTRED: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
_LETTER, _LONGEST = 0.55, 28  # width of a letter in font sizes; letters of the name of a category


def colour(expert: int | None) -> str:
    """Colour of an expert counted from 1; dark grey if the curve belongs to none."""
    return "#333333" if expert is None else COLOURS[(expert - 1) % len(COLOURS)]


def draw(
    curves: Sequence[Curve],
    observed: Observed | Sequence[Marks] | None = None,
    ax: "Axes | Sequence[Axes] | None" = None,
) -> "Figure | Axes | NDArray[Any]":
    """Curves with their bands, one axes per panel, over thinned observed series or with observed means.

    Parameters
    ----------
    curves : sequence of Curve
    observed : Observed or sequence of Marks, optional
        A panel whose curves all belong to one expert shows what is that expert's only.
    ax : Axes or sequence of Axes, optional
        Where to draw, one per panel; by default a new figure.

    Returns
    -------
    Figure, Axes or ndarray of Axes
        The new figure, or `ax`.

    Raises
    ------
    ArgumentError
        If there is nothing to draw, or the number of axes is not the number of panels.
    """
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    if not panels:
        raise ArgumentError("there are no curves to draw, got an empty sequence")
    canvas = canvas_axes(len(panels), ax)
    groups = [[curve for curve in curves if curve.panel == panel] for panel in panels]
    # Panels of one expert each are there to be compared: they share the vertical axis and the legend.
    owners = [{curve.expert for curve in inside} for inside in groups]
    compared = len(panels) > 1 and max(map(len, owners)) == 1 and len(set.union(*owners) - {None}) == len(panels)
    for axes, panel, inside in zip(canvas, panels, groups, strict=True):
        if inside[0].log:
            axes.set_yscale("log")
        experts, places = {curve.expert for curve in inside}, bool(inside[0].categories)
        if isinstance(observed, Observed):
            apart = "each a little up or down" if inside[0].levels else ""
            means = None if places or apart else _means_by_place(observed)
            said = apart if means is None else f"means of rows at one {plain(inside[0].xlabel)}"
            _series(axes, _apart(observed, inside[0]) if means is None else means, experts, places, said)
        for curve in inside:
            draw_curve(axes, curve)
        if observed is not None and not isinstance(observed, Observed):
            _means(axes, [marks for marks in observed if marks.expert in experts], places)
        if observed is None and ax is None and not places:
            _look_at_curves(axes, inside)
        for entry, depth in ((inside[0].limits, 0.3), (inside[0].bands, 0.15)) if axes is canvas[0] else ():
            if entry:  # what the shades are
                axes.plot([], [], color=colour(None), alpha=depth, linewidth=6, label=entry)
        _dress(axes, inside, panel if len(panels) > 1 else "", crowded=observed is not None)
    limits = np.array([axes.get_ylim() for axes in canvas])
    meant = all(curve.compared for curve in curves)
    if compared or meant:
        for axes in canvas:
            axes.set_ylim(limits[:, 0].min(), limits[:, 1].max())
    same = {tuple(curve.label for curve in inside) for inside in groups}
    if compared or (meant and len(canvas) > 1 and len(same) == 1):
        _one_legend(canvas)
    return canvas_result(canvas, ax)


def _one_legend(canvas: Sequence[Any]) -> None:
    """One legend beside the last panel in the place of one in each."""
    pairs = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in canvas]
    entries = {word: handle for pair in pairs for handle, word in pair}
    for axes in canvas:
        if axes.get_legend() is not None:
            axes.get_legend().remove()
    if entries:
        beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "fontsize": "small"}
        canvas[-1].legend(entries.values(), entries.keys(), frameon=False, **beside)


def draw_responsibilities(
    responsibilities: Array, experts: Sequence[str], ax: "Axes | None" = None, units: str = "units"
) -> "Figure | Axes | NDArray[Any]":
    """Posterior expert probabilities of all units as stacked bars, sorted by most probable expert.

    Parameters
    ----------
    responsibilities : ndarray, shape (N, K)
    experts : sequence of str
        What the legend calls them.
    ax : Axes, optional
    units : str
        What the horizontal axis counts.

    Returns
    -------
    Figure or Axes
    """
    canvas = canvas_axes(1, ax)
    axes = canvas[0]
    n_units, n_experts = responsibilities.shape
    modal = responsibilities.argmax(axis=1)
    order = np.lexsort((-responsibilities.max(axis=1), modal))
    shown = np.linspace(0, n_units - 1, min(n_units, _MAX_BARS)).round().astype(int)
    tops = np.cumsum(responsibilities[order[shown]], axis=1)
    edges = np.append(shown, n_units)
    for k in range(n_experts):
        low = tops[:, k - 1] if k else np.zeros(len(shown))
        label = f"{experts[k]} ({(modal == k).sum()})"
        axes.stairs(tops[:, k], edges, baseline=low, fill=True, color=colour(k + 1), linewidth=0, label=label)
    for boundary in np.cumsum(np.bincount(modal, minlength=n_experts))[:-1]:
        axes.axvline(boundary, color="white", linewidth=1.2)
    axes.set(xlim=(0, n_units), ylim=(0, 1))
    axes.set(xlabel=f"{units}, sorted by most probable expert", ylabel="posterior probability")
    open_frame(axes)
    legend_above(axes, _fitting(axes), **_CENTRED)
    return canvas_result(canvas, ax)


def pyplot(what: str = "plot()") -> Any:
    """Matplotlib's pyplot, or the error that says how to install it for what is asked."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingExtraError(what, "matplotlib", "plot") from error
    return plt


def canvas_axes(
    n_panels: int, ax: Any, columns: int | None = None, size: tuple[float, float] = _SINGLE_SIZE
) -> list[Any]:
    """The axes to draw on: the given ones, or those of a new figure with so many in a row; a single one has `size`."""
    plt = pyplot()
    if ax is not None:
        given = list(np.ravel(np.asarray(ax, dtype=object)))
        if len(given) != n_panels:
            raise ArgumentError(f"this figure has {n_panels} panels, so ax needs {n_panels} axes, got {len(given)}")
        if not all(hasattr(axes, "plot") and hasattr(axes, "set_xlabel") for axes in given):
            raise ArgumentError(f"ax must be matplotlib axes, got {type(given[0]).__name__}")
        return given
    columns = min(n_panels, _MAX_COLUMNS) if columns is None else columns
    rows = math.ceil(n_panels / columns)
    paper = size if n_panels == 1 else (_PANEL_SIZE[0] * columns, _PANEL_SIZE[1] * rows)
    _, grid = plt.subplots(rows, columns, figsize=paper, squeeze=False, layout="constrained")
    for spare in grid.ravel()[n_panels:]:
        spare.remove()
    return list(grid.ravel()[:n_panels])


def canvas_result(canvas: list[Any], ax: Any) -> Any:
    """What a figure returns: the new figure, or the axes given."""
    return canvas[0].figure if ax is None else ax


def draw_curve(axes: Any, curve: Curve, width: float = 2.0) -> None:
    """A curve with its bands on axes."""
    if curve.categories:
        _category_marks(axes, curve)
        return
    shade = curve.expert if curve.shade is None else curve.shade
    tint = colour(shade)
    if curve.thin:
        axes.plot(curve.x, curve.y, color=tint, linewidth=0.4 * width, alpha=0.5, label=curve.label or None, zorder=1)
        return
    dash = "-" if shade is None else DASHES[(shade - 1) % len(DASHES)]
    if curve.lower is not None and curve.upper is not None:
        axes.fill_between(curve.x, curve.lower, curve.upper, color=tint, alpha=0.22, linewidth=0, zorder=3)
    if curve.band_lower is not None and curve.band_upper is not None:
        axes.fill_between(curve.x, curve.band_lower, curve.band_upper, color=tint, alpha=0.10, linewidth=0, zorder=2)
        for edge in (curve.band_lower, curve.band_upper):
            axes.plot(curve.x, edge, color=tint, linewidth=0.8, linestyle=":", zorder=3)
    axes.plot(curve.x, curve.y, color="white", linewidth=1.7 * width, alpha=0.7, zorder=4)
    axes.plot(curve.x, curve.y, color=tint, linewidth=width, linestyle=dash, label=curve.label or None, zorder=5)


def _category_marks(axes: Any, curve: Curve) -> None:
    """Points with limits above the names of the categories, experts side by side."""
    shade = curve.expert if curve.shade is None else curve.shade
    if curve.thin:
        look = {"color": colour(shade), "alpha": 0.5, "linestyle": "none", "marker": "_", "markersize": 12}
        axes.plot(curve.x, curve.y, label=curve.label or None, zorder=1, **look)
        return
    x = curve.x + _APART * (((shade or 1) - 1) % len(COLOURS))
    ends = None if curve.lower is None or curve.upper is None else (curve.y - curve.lower, curve.upper - curve.y)
    limits = None if ends is None else np.maximum(np.vstack(ends), 0.0)
    look = {"color": colour(shade), "linestyle": "none", "marker": "o", "markersize": 6, "elinewidth": 1.8}
    axes.errorbar(x, curve.y, yerr=limits, markeredgecolor="white", label=curve.label or None, zorder=5, **look)
    name_places(axes, curve.categories)


def name_places(axes: Any, names: Sequence[str]) -> None:
    """Names of categories below their places, aslant where they would run into one another."""
    words = [plain(name) for name in names]
    axes.set_xticks(range(len(names)), [w if len(w) <= _LONGEST else f"{w[: _LONGEST - 1]}…" for w in words])
    axes.set_xlim(-0.5, len(names) - 0.5)
    width = 72 * axes.figure.get_size_inches()[0] * axes.get_position().width
    letters = max(len(label.get_text()) for label in axes.get_xticklabels()) + 2
    if letters * _LETTER * axes.xaxis.get_ticklabels()[0].get_fontsize() * len(names) > width:
        for label in axes.get_xticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor")


def plain(text: str) -> str:
    """A label without the backticks of a formula."""
    return text.replace("`", "")


def legend_above(axes: Any, columns: int, **look: Any) -> Any:
    """A legend above the axes, read row by row."""
    handles, labels = axes.get_legend_handles_labels()
    columns = min(len(labels), columns)
    entries = list(zip(handles, labels, strict=True))  # a legend fills its columns one after the other
    pairs = [entry for column in range(columns) for entry in entries[column::columns]]
    return axes.legend([h for h, _ in pairs], [text for _, text in pairs], frameon=False, ncols=columns, **look)


def _means(axes: Any, chosen: Sequence[Marks], places: bool) -> None:
    """Hollow points for what was observed, to the left of the filled ones above categories."""
    for i, marks in enumerate(chosen):
        draw_marks(axes, marks, shift=-_APART * (len(chosen) - i) if places else 0.0, hollow=True)
    if chosen:
        look = {"marker": "o", "markersize": 4.5, "markerfacecolor": "white", "linestyle": "none"}
        axes.plot([], [], color=colour(None), label="observed", **look)


def draw_marks(axes: Any, marks: Marks, shift: float = 0.0, hollow: bool = False) -> None:
    """Points with limits on axes, moved sideways."""
    tint, errors = colour(marks.expert), np.maximum(np.vstack([marks.y - marks.lower, marks.upper - marks.y]), 0.0)
    edge = {"markerfacecolor": "white", "markeredgecolor": tint} if hollow else {"markeredgecolor": "white"}
    look = {"color": tint, "linestyle": "none", "marker": "o", "markersize": 4.5, "capsize": 0, "zorder": 6, **edge}
    axes.errorbar(
        marks.x + shift, marks.y, yerr=errors, elinewidth=1.3, markeredgewidth=1.1 if hollow else 0.6,
        label=marks.label or None, **look,
    )  # fmt: skip


def _apart(observed: Observed, curve: Curve) -> Observed:
    """Series on few levels, moved a little up or down by unit, so that equal courses do not hide one another."""
    if not curve.levels:
        return observed
    gap = float(np.diff([place for place, _ in curve.levels]).min())
    shift = _LEVEL_JITTER * gap * (np.arange(len(observed.experts)) * _GOLDEN % 1 - 0.5)
    return replace(observed, y=observed.y + shift[observed.codes])


def _means_by_place(observed: Observed) -> Observed | None:
    """Means of each unit at each place, where it has several rows at one, as a line through all would hide the course.

    None if no unit has.
    """
    pairs, first = np.unique(np.column_stack([observed.codes, observed.x]), axis=0, return_inverse=True)
    if len(pairs) == len(observed.x):
        return None
    means = np.bincount(first.ravel(), weights=observed.y) / np.bincount(first.ravel())
    return replace(observed, x=pairs[:, 1], y=means, codes=pairs[:, 0].astype(np.int64))


def _series(axes: Any, observed: Observed, experts: set[int | None], places: bool, apart: str) -> None:
    """Thin lines of some units, or dots, coloured by expert; words say how many are shown, and how they were moved."""
    only = experts if len(experts) == 1 and None not in experts else None
    shown = _thinned(observed, only)
    all_of_them = len(observed.experts) if only is None else sum(int((observed.experts == k).sum()) for k in only)
    said = [f"{len(shown)} of {all_of_them} courses shown"] if len(shown) < all_of_them else []
    said += [apart if said else f"courses: {apart}"] if apart else []
    if said:
        place = {"xy": (1.0, 0.0), "xycoords": "axes fraction", "xytext": (-2, 2), "textcoords": "offset points"}
        axes.annotate(", ".join(said), **place, ha="right", va="bottom", fontsize="x-small", color="#666666", zorder=7)
    for unit in shown:
        rows = np.flatnonzero(observed.codes == unit)
        rows = rows[np.argsort(observed.x[rows], kind="stable")]
        look = {"color": colour(int(observed.experts[unit])), "alpha": 0.35, "zorder": 1}
        if len(rows) == 1 or places:
            shift = _JITTER * (unit * _GOLDEN % 1 - 0.5) if places else 0.0
            axes.plot(observed.x[rows] + shift, observed.y[rows], marker=".", markersize=3, linestyle="none", **look)
        else:
            axes.plot(observed.x[rows], observed.y[rows], linewidth=0.7, **look)


def _thinned(observed: Observed, only: set[int | None] | None) -> NDArray[np.int64]:
    """At most `_MAX_SERIES` units, evenly spaced within the experts so that their shares are kept."""
    units = np.argsort(observed.experts, kind="stable")
    if only is not None:
        units = units[np.isin(observed.experts[units], [k for k in only if k is not None])]
    if len(units) <= _MAX_SERIES:
        return units
    return units[np.linspace(0, len(units) - 1, _MAX_SERIES).round().astype(int)]


def _look_at_curves(axes: Any, curves: Sequence[Curve]) -> None:
    """Leave out what bands reach where they explode, as at the ends of an index, so that curves are not lines."""
    pairs = [(c.lower, c.upper) for c in curves] + [(c.band_lower, c.band_upper) for c in curves]
    bands = [np.array(pair) for pair in pairs if pair[0] is not None and pair[1] is not None and len(pair[0])]
    log = curves[0].log
    if log:
        with np.errstate(divide="ignore", invalid="ignore"):
            bands = [np.log(pair) for pair in bands]
    heights, limits = (_finite(arrays) for arrays in ([np.log(c.y) if log else c.y for c in curves], bands))
    if not heights.size or not limits.size:
        return
    widths = [_finite([high - low]) for low, high in bands]
    width = max((float(np.median(w)) for w in widths if w.size), default=0.0)
    room = _ROOM * (width + np.ptp(heights))
    bottom = max(min(heights.min(), limits.min()), heights.min() - room)
    top = min(max(heights.max(), limits.max()), heights.max() + room)
    spare = axes.margins()[1] * (top - bottom)
    ends = np.array([bottom - spare, top + spare])
    ends = np.exp(ends) if log else ends
    old_bottom, old_top = axes.get_ylim()
    axes.set_ylim(max(old_bottom, ends[0]), min(old_top, ends[1]))


def _finite(arrays: Sequence[Array]) -> Array:
    values = np.concatenate([np.empty(0), *map(np.ravel, arrays)])
    return values[np.isfinite(values)]


def _dress(axes: Any, curves: Sequence[Curve], title: str, crowded: bool) -> None:
    """Labels, title and legend; a panel without title has its legend above, clear of the curves."""
    axes.set_xlabel(plain(curves[0].xlabel))
    axes.set_ylabel(plain(curves[0].ylabel))
    if curves[0].levels:
        axes.set_yticks([place for place, _ in curves[0].levels], [name for _, name in curves[0].levels])
    open_frame(axes)
    labelled = len(axes.get_legend_handles_labels()[1])
    if title:
        axes.set_title(title, loc="left", fontsize="medium")
        if labelled:
            axes.legend(frameon=False, fontsize="small", loc="upper left" if crowded else "best")
    elif labelled:
        legend_above(axes, _fitting(axes), **_CENTRED)


def _fitting(axes: Any) -> int:
    """Entries of a legend that fit side by side above the axes."""
    return min(_IN_A_ROW, max(1, int(axes.get_window_extent().width / axes.figure.dpi / _ENTRY)))


def open_frame(axes: Any) -> None:
    """Leave out the upper and right edges."""
    axes.spines[["top", "right"]].set_visible(False)


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
            shown, tint = np.isfinite(values), COLOURS[i % len(COLOURS)]
            look = {"color": tint, "linestyle": DASHES[i % len(DASHES)], "marker": "o", "markersize": 4, "label": name}
            axes.plot(panel.experts[shown], values[shown], **look)
            if shown.any():
                best, ring = int(np.argmin(values)), {"marker": "o", "markersize": 11, "markerfacecolor": "none"}
                axes.plot(panel.experts[best], values[best], color=tint, **ring)
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


_MAX_POINTS = 4000  # of a cloud; more are thinned evenly
_PANEL_LEGEND_COLUMNS = 5  # entries of a legend
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
        _dress_panel(axes, panel)
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


def _dress_panel(axes: Any, panel: Panel) -> None:
    axes.set(xlabel=plain(panel.xlabel), ylabel=plain(panel.ylabel))
    if panel.xlim is not None:
        axes.set_xlim(panel.xlim)
    open_frame(axes)
    labels = axes.get_legend_handles_labels()[1]
    rows = math.ceil(len(labels) / _PANEL_LEGEND_COLUMNS)
    if labels:  # between title and axes, clear of the points
        look = {"fontsize": "x-small", "handletextpad": 0.3, "columnspacing": 1.0, "borderaxespad": 0.1}
        legend = legend_above(
            axes, _PANEL_LEGEND_COLUMNS, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderpad=0.2, **look
        )
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
