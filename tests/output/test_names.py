"""Names of experts and labels of terms, wherever they are shown."""

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError
from mixmoe.output.names import NO_NAMES, Names
from mixmoe.output.records import Curve, Marks, Table

NAMES = Names(("stable", "declining"), {"h": "Height (10 cm)", "smoking": "Smoking"})


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(4)
    units, visits = 40, 4
    unit = np.repeat(np.arange(units), visits)
    late, t = unit % 2, np.tile(np.arange(float(visits)), units)
    y = 1.0 + 2.0 * late - 0.7 * t * late + 0.4 * rng.normal(size=units)[unit] + 0.3 * rng.normal(size=len(t))
    return pd.DataFrame({"id": unit, "t": t, "h": rng.normal(size=units)[unit], "y": y})


@pytest.fixture(scope="module")
def fit(data):
    return mm.fit("y ~ t | gate: h | re: (0 | id)", data, experts=2, starts=2, rng=0)


@pytest.fixture(scope="module")
def named(fit):
    return fit.named("stable", "declining").labelled({"h": "Height (10 cm)"})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Expert 2 (mean probability 0.4)", "Expert 2: declining (mean probability 0.4)"),
        ("Expert 1: functions of u", "Expert 1: stable, functions of u"),
        ("Gate (log odds against expert 1)", "Gate (log odds against stable)"),
        ("Expert 3", "Expert 3"),  # more than there are names for, as in a table of several fits
        ("Expert proportions (mean gate probability)", "Expert proportions (mean gate probability)"),
    ],
)
def test_headings(text, shown):
    assert NAMES.heading(text) == shown
    assert NO_NAMES.heading(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("expert 2: sd(h)", "declining: sd(Height (10 cm))"),
        ("h: expert 1", "Height (10 cm): stable"),
        ("as 2", "as declining"),
        ("most probable: 1", "most probable: stable"),
        ("expert 12", "expert 12"),
        ("smoking[T.ex]:h", "Smoking[T.ex]:Height (10 cm)"),
        ("height", "height"),  # another column
        ("log(h)", "log(Height (10 cm))"),
        ("my expert 1", "my expert 1"),  # a column of the user's
    ],
)
def test_labels(text, shown):
    assert NAMES.label(text) == shown
    assert NO_NAMES.label(text) == text


def test_sentences_keep_the_number():
    assert NAMES.prose("Expert 1 is carried by 3 units; expert 10 is not.") == (
        "Expert 1 (stable) is carried by 3 units; expert 10 is not."
    )


def test_the_header_is_of_the_fit_not_of_its_terms():
    rows = Names((), {"Rows": "Visits"})
    table = Table("header", "", ("",), ("Rows",), ((3,),), ("num",))
    assert rows.table(table).index == ("Rows",)
    assert rows.table(Table("expert1", "", ("",), ("Rows",), ((3,),), ("num",))).index == ("Visits",)


def test_records_of_figures():
    x = np.arange(2.0)
    curve = NAMES.curve(Curve("coefficient of h", "expert 2", x, x, xlabel="h", ylabel="y\nh = 1"))
    assert (curve.panel, curve.label, curve.xlabel, curve.ylabel) == (
        "coefficient of Height (10 cm)",
        "declining",
        "Height (10 cm)",
        "y\nHeight (10 cm) = 1",
    )
    (marks,) = NAMES.observed([Marks(x, x, x, x, 1, "expert 1")])
    assert marks.label == "stable"
    assert NAMES.observed(None) is None


def test_tables_of_the_fit(fit, named):
    text = " ".join(str(named.summary()).split())  # long labels are broken into lines
    for words in ("Expert 1: stable (mean", "log odds against stable)", "declining: Height", "stable: sigma"):
        assert words in text
    assert "expert 2" not in text.lower().replace("expert 2: declining", "")
    assert list(named.params.index) == list(fit.params.index)
    assert fit.shown_names == NO_NAMES  # a copy was named
    assert "Expert 1: stable" in named.to_latex()
    assert "| declining: sigma" in named.to_markdown()
    assert "caption{Of expert 1}" in named.to_latex(caption="Of expert 1")  # what the author writes stays


def test_legends(named):
    pytest.importorskip("matplotlib")
    figures = {kind: named.plot(kind) for kind in ("trajectories", "responsibilities", "fit", "gate")}
    for figure in figures.values():
        words = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert any(word.startswith("stable") for word in words)
        assert not any(word.startswith("expert") for word in words)
    assert figures["gate"].axes[0].get_xlabel() == "Height (10 cm)"


def test_classification_and_three_step(named, data):
    outcomes = data.groupby("id", as_index=False)["y"].last().assign(event=np.arange(40) % 3 == 0)
    assert "most probable: declining" in str(named.classification_table())
    assert "The smallest is expert " in str(named.adequacy())
    assert "\nstable " in str(named.adequacy())
    means = named.distal("y ~ expert", outcomes)
    assert "declining - stable" in str(means)
    assert list(means.pairwise().to_frame()["contrast"]) == ["2 - 1"]
    chances = named.distal("event ~ expert", outcomes)
    assert "stable: event = True" in str(chances)
    predictors = named.covariates("~ event", outcomes)
    assert "declining: event" in str(predictors)
    assert "Log odds against stable" in str(predictors)


def test_a_table_of_several_fits(fit, named, data):
    one = mm.fit("y ~ t | re: (0 | id)", data, experts=1)
    assert "Expert 2: declining" in str(mm.table([one, named, named]))
    mixed = str(mm.table([fit, named]))  # the same number under two words: numbers, and a note
    assert "Expert 2: " not in mixed
    assert "(2): expert 1 is stable, expert 2 is declining." in " ".join(mixed.split())


def test_the_report(named, tmp_path):
    pytest.importorskip("jinja2")
    path = named.report(tmp_path / "page.html", figures=False)
    page = path.read_text(encoding="utf-8")
    assert "Expert 1: stable" in page
    assert "fit = fit.named(&#39;stable&#39;, &#39;declining&#39;)" in page
    assert ">expert 1<" not in page


def test_pooled_fits_keep_names_that_agree(named, fit):
    assert "Expert 1: stable" in str(mm.pool([named, named]))
    assert mm.pool([named, fit]).shown_names == NO_NAMES


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("a",), r"a name for each of the 2 experts, in their order, got 1: 'a'"),
        ((), "got 0: none"),
        (("a", "b", "c"), "got 3"),
        (("a", "a"), "two experts are named 'a'"),
        ((["a", "b"],), r"write named\(\*names\)"),
        (("expert 2", "b"), "is that of a number"),
        (("a", " "), "is text in one line, got ' '"),
        (("a", 2), "is text in one line, got 2"),
    ],
)
def test_wrong_names(fit, names, words):
    with pytest.raises(ArgumentError, match=words):
        fit.named(*names)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"tt": "Time"}, r"no column or term of the fit; .*known are"),
        ({"t": ""}, "label of 't' is text in one line, got ''"),
        (["t"], r"labels map terms to texts, as in"),
    ],
)
def test_wrong_labels(fit, labels, words):
    with pytest.raises(ArgumentError, match=words):
        fit.labelled(labels)
