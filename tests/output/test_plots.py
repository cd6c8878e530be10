"""Figures: what is on them, not only that they appear."""

import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixmoe.errors import ArgumentError, MissingExtraError
from mixmoe.output.plots import COLOURS, colour, draw, draw_responsibilities
from mixmoe.output.records import Curve, Marks, Observed
from tests.fake_model import make_results

GRID = np.linspace(0, 1, 5)


pytestmark = pytest.mark.usefixtures("plt")


def curve(panel="one", expert=1, bands=False):
    limits = {"band_lower": GRID - 2, "band_upper": GRID + 2} if bands else {}
    return Curve(
        panel,
        f"expert {expert}",
        GRID,
        GRID * expert,
        GRID - 1,
        GRID + 1,
        expert=expert,
        xlabel="t",
        ylabel="y",
        **limits,
    )


def observed(n_units=4, n_rows=3):
    codes = np.repeat(np.arange(n_units), n_rows)
    x = np.tile(np.arange(n_rows, dtype=float), n_units)
    return Observed(x, x + codes, codes, 1 + np.arange(n_units) % 2)


def test_one_axes_per_panel():
    figure = draw([curve(f"panel {i}", expert=i + 1) for i in range(5)])
    assert isinstance(figure, Figure)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [f"panel {i}" for i in range(5)]
    assert figure.axes[0].get_xlabel() == "t"


def test_experts_have_their_colours_and_legend():
    axes = draw([curve(expert=1), curve(expert=2)]).axes[0]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["expert 1", "expert 2"]
    drawn = {line.get_color() for line in axes.lines}
    assert {COLOURS[0], COLOURS[1]} <= drawn
    assert len(axes.collections) == 2


def test_simultaneous_bands_are_drawn_around_pointwise_ones():
    assert len(draw([curve(bands=True)]).axes[0].collections) == 2


def test_bands_that_explode_are_cut_off_and_others_are_not():
    wild = curve(bands=True)
    top = draw([wild]).axes[0].get_ylim()[1]
    wild.band_upper[-1] = 1e4
    low, high = draw([wild]).axes[0].get_ylim()
    assert wild.y.max() < top < high < 30
    assert low < wild.band_lower.min()
    wild.lower[:], wild.band_upper[0] = np.nan, np.inf
    assert draw([wild, curve("two")]).axes[0].get_ylim()[1] < 30


def test_a_panel_of_one_expert_shows_its_units_only():
    count = [len(axes.lines) for axes in draw([curve("a", 1), curve("b", 2)], observed(5)).axes]
    assert count == [3 + 2, 2 + 2]
    assert len(draw([curve("a", 1), curve("a", 2)], observed(5)).axes[0].lines) == 5 + 4


def test_many_units_are_thinned_with_their_shares():
    axes = draw([curve(expert=1), curve(expert=2)], observed(2000, 2)).axes[0]
    thin = [line for line in axes.lines if line.get_linewidth() < 1]
    assert len(thin) == 150
    assert sum(line.get_color() == COLOURS[0] for line in thin) == 75
    assert [text.get_text() for text in axes.texts] == ["150 of 2000 courses shown"]
    assert not draw([curve(expert=1)], observed(20, 2)).axes[0].texts


def test_a_figure_says_that_courses_on_grades_were_moved():
    graded = replace(curve(), levels=((0.0, "none"), (1.0, "much")))
    few, many = (draw([graded], observed(n)).axes[0].texts[0].get_text() for n in (20, 2000))
    assert few == "courses: each a little up or down"
    assert many.startswith("150 of ")
    assert many.endswith(" courses shown, each a little up or down")


def test_courses_go_through_the_means_of_rows_at_one_place():
    """Four prompts a day would be joined to a vertical line over each day."""
    x, y = np.array([1.0, 0.0, 1.0, 0.0, 2.0, 2.0]), np.array([4.0, 1.0, 6.0, 3.0, 0.0, 9.0])
    seen = Observed(x, y, np.array([0, 0, 0, 0, 0, 1]), np.array([1, 1]))
    axes = draw([replace(curve(), xlabel="`day`")], seen).axes[0]
    lines = [line for line in axes.lines if line.get_linewidth() == 0.7]
    assert [line.get_xdata().tolist() for line in lines] == [[0.0, 1.0, 2.0]]
    assert [line.get_ydata().tolist() for line in lines] == [[2.0, 5.0, 0.0]]
    assert [text.get_text() for text in axes.texts] == ["courses: means of rows at one day"]


def test_panels_that_are_to_be_compared_with_the_same_curves_have_one_legend():
    panels = [replace(curve(name), label="population", compared=True) for name in "abc"]
    figure = draw(panels)
    assert [axes.get_legend() is not None for axes in figure.axes] == [False, False, True]
    assert [text.get_text() for text in figure.axes[-1].get_legend().get_texts()] == ["population"]


def test_panels_that_are_to_be_compared_share_the_vertical_axis():
    panels = [replace(curve("a"), compared=True), replace(curve("b"), y=100 * GRID, compared=True)]
    low, high = (axes.get_ylim() for axes in draw(panels).axes)
    assert low == high
    own = [replace(one, compared=False) for one in panels]
    assert len({axes.get_ylim() for axes in draw(own).axes}) == 2


def test_positive_functions_have_a_log_axis_that_bands_do_not_set():
    positive = replace(curve(bands=True), y=GRID + 1, log=True)
    bands = {"lower": positive.y / 2, "upper": positive.y * 2, "band_lower": positive.y / 3}
    tame = replace(positive, **bands, band_upper=positive.y * 3)
    wild = replace(positive, **bands, band_upper=np.append(3 * positive.y[:-1], 1e9))
    axes = draw([wild]).axes[0]
    assert axes.get_yscale() == "log"
    assert 6.0 <= draw([tame]).axes[0].get_ylim()[1] <= axes.get_ylim()[1] < 1e4


def test_a_unit_with_one_row_is_a_dot():
    lines = draw([curve()], observed(2, 1)).axes[0].lines
    assert lines[0].get_marker() == "."


def test_given_axes_are_used_and_returned(plt):
    _, ax = plt.subplots()
    assert draw([curve()], ax=ax) is ax
    assert draw_responsibilities(np.eye(3), "abc", ax=ax) is ax
    _, both = plt.subplots(1, 2)
    assert draw([curve("a"), curve("b")], ax=both) is both
    assert isinstance(ax, Axes)


def test_wrong_axes(plt):
    _, ax = plt.subplots()
    with pytest.raises(ArgumentError, match="2 panels, so ax needs 2 axes, got 1"):
        draw([curve("a"), curve("b")], ax=ax)
    with pytest.raises(ArgumentError, match="matplotlib axes, got str"):
        draw([curve()], ax="here")
    with pytest.raises(ArgumentError, match="no curves"):
        draw([])


@pytest.mark.parametrize("n_units", [1, 7, 5000])
def test_responsibilities_fill_the_unit_square(n_units):
    tau = np.random.default_rng(0).dirichlet([0.5, 0.5, 0.5], size=n_units)
    axes = draw_responsibilities(tau, [f"expert {k + 1}" for k in range(tau.shape[1])]).axes[0]
    assert axes.get_xlim() == (0, n_units)
    assert axes.get_ylim() == (0, 1)
    labels = [t.get_text() for t in axes.get_legend().get_texts()]
    assert labels == [f"expert {k + 1} ({(tau.argmax(axis=1) == k).sum()})" for k in range(3)]
    tops = np.concatenate([patch.get_data().values for patch in axes.patches[-1:]])
    np.testing.assert_allclose(tops, 1)


def test_colours_are_distinct_up_to_eight_experts():
    assert len({colour(k) for k in range(1, 9)}) == 8
    assert colour(9) == colour(1)
    assert colour(None) not in COLOURS


def test_figures_of_a_fit(plt):
    fit = make_results()
    assert isinstance(fit.plot(), Figure)
    assert isinstance(fit.plot("responsibilities"), Figure)
    _, ax = plt.subplots()
    assert fit.plot("trajectories", ax=ax) is ax


def test_unknown_figures():
    fit = make_results()
    with pytest.raises(ArgumentError, match="got 'gates'"):
        fit.plot("gates")
    with pytest.raises(ArgumentError, match="no option 'alpha'"):
        fit.plot("responsibilities", alpha=0.1)


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(MissingExtraError, match=r"mixmoe\[plot\]"):
        make_results().plot()


# ---- what a reader must be able to read ----


def test_observed_means_are_hollow_points_of_their_expert():
    marks = [Marks(GRID, GRID, GRID - 0.1, GRID + 0.1, k) for k in (1, 2)]
    both = draw([curve(expert=1), curve(expert=2)], marks).axes[0]
    assert len(both.containers) == 2
    assert [t.get_text() for t in both.get_legend().get_texts()] == ["expert 1", "expert 2", "observed"]
    assert {c[0].get_markerfacecolor() for c in both.containers} == {"white"}
    apart = draw([curve("a", expert=1), curve("b", expert=2)], marks).axes
    assert [[c[0].get_color() for c in axes.containers] for axes in apart] == [[COLOURS[0]], [COLOURS[1]]]


@pytest.mark.parametrize("n", [3, 5, 7, 8, 9])
def test_legends_are_read_row_by_row(n, plt):
    figure = draw([curve(expert=k + 1) for k in range(n)])
    figure.draw_without_rendering()
    texts = figure.axes[0].get_legend().get_texts()
    places = [(round(-t.get_window_extent().y0), t.get_window_extent().x0, t.get_text()) for t in texts]
    assert [text for _, _, text in sorted(places)] == [f"expert {k + 1}" for k in range(n)]


def categorical(names):
    x = np.arange(len(names), dtype=float)
    return Curve("p", "expert 1", x, x, x - 1, x + 1, expert=1, xlabel="`my arm`", ylabel="`y 1`", categories=names)


@pytest.mark.parametrize("names", ["abc", [f"a rather long category {i}" for i in range(8)], ["x" * 60, "y"]])
def test_names_of_categories_do_not_overlap(names):
    figure = draw([categorical(tuple(names))])
    figure.draw_without_rendering()
    labels = figure.axes[0].get_xticklabels()
    slant = labels[0].get_rotation()
    assert (slant > 0) == (len(names) == 8)
    if not slant:
        boxes = [label.get_window_extent() for label in labels]
        assert all(a.x1 < b.x0 for a, b in pairwise(boxes))
    assert max(len(label.get_text()) for label in labels) <= 28


def test_labels_have_no_backticks():
    axes = draw([categorical(("a", "b"))]).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("my arm", "y 1")


def test_panels_of_one_expert_each_share_heights_and_the_legend():
    x = np.arange(3.0)
    curves = [
        Curve(f"expert {k}", word, x, height * x, expert=k, shade=j)
        for k, height in ((1, 1.0), (2, 5.0))
        for j, word in enumerate(("low", "high"), 1)
    ]
    first, last = draw(curves).axes
    assert first.get_ylim() == last.get_ylim()
    assert first.get_legend() is None
    assert [text.get_text() for text in last.get_legend().get_texts()] == ["low", "high"]
    terms = [Curve(f"coefficient of {z}", f"expert {k}", x, k * x, expert=k) for z in "ab" for k in (1, 2)]
    terms[2] = replace(terms[2], y=100 * x)
    one, other = draw(terms).axes
    assert one.get_ylim() != other.get_ylim()  # coefficients of two terms have two units
