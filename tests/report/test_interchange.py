"""Frames for other programs, workbooks, and fits side by side."""

import re
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError, MissingExtraError, MixmoeWarning
from mixmoe.output.summary import Summary
from mixmoe.report import tidy as side_by_side
from tests.fake_model import FakeResults, make_cov, make_data, make_results

FORMULA = "y ~ time + x | gate: z | re: (1 + time | id)"


class Rows(FakeResults):
    """Made-up estimates with made-up fitted values."""

    def fitted(self):
        design = self.model.design
        order = np.argsort(design.position, kind="stable")
        return pd.Series(design.response[order] - 1.0, index=design.rows[order])

    def resid(self):
        return self.fitted() * 0 + 1


def rows(data=None, **options):
    fake = make_results(data=data, **options)
    return Rows(fake.model, fake.em, fake.cov)


# ---- frames ----


def test_tidy_is_to_frame_under_other_names():
    fit = make_results(blank=(3,))
    tidy = fit.tidy(alpha=0.1)
    named = ["name", "term", "block", "expert", "estimate", "std.error", "statistic", "p.value", "conf.low"]
    assert list(tidy.columns) == [*named, "conf.high", "df"]
    other = fit.to_frame(alpha=0.1).reset_index()
    pd.testing.assert_frame_equal(tidy.set_axis(other.columns, axis=1), other)
    assert list(tidy["name"]) == list(fit.params.index)


def test_glance_has_the_figures_of_the_fit():
    fit = make_results()
    row = fit.glance().iloc[0]
    assert row["AIC"] == fit.aic
    assert row["BIC"] == fit.bic
    assert (row["nobs"], row["n.units"], row["df"], row["df.residual"]) == (160, 40, 16, 144)
    assert row["converged"]


def test_augment_keeps_rows_that_were_left_out():
    data = make_data().sample(frac=1, random_state=3)
    data.loc[data.index[5], "x"] = np.nan
    fit = rows(data)
    frame = fit.augment(data)
    assert frame.index.equals(data.index)
    assert frame.iloc[5][[".fitted", ".resid", ".class", ".probability"]].isna().all()
    assert frame.drop(data.index[5])[".fitted"].to_numpy() == pytest.approx(data["y"].drop(data.index[5]) - 1)
    classes = fit.classify()["expert"]
    assert (frame[".class"].dropna().astype(int) == classes[frame["id"].drop(data.index[5])].to_numpy()).all()
    assert len(fit.augment()) == len(data) - 1


def test_augment_with_repeated_row_labels_and_other_frames():
    data = make_data()
    data.index = [0] * len(data)
    frame = rows(data).augment(data)
    assert frame.index.equals(data.index)
    np.testing.assert_allclose(frame[".fitted"], data["y"] - 1)
    polars = rows().augment(pl.from_pandas(make_data()))
    pd.testing.assert_frame_equal(polars, rows().augment(make_data()), check_dtype=False)


def test_augment_refuses_other_data():
    with pytest.raises(ArgumentError, match=r"with 160 rows, got 3; for other rows use predict\(\)"):
        rows().augment(make_data().head(3))


def test_augment_finds_rows_by_their_labels():
    data = make_data()
    mixed = data.sample(frac=1, random_state=1)
    frame = rows(data).augment(mixed)
    np.testing.assert_allclose(frame[".fitted"], mixed["y"] - 1)
    pd.testing.assert_frame_equal(frame.loc[data.index], rows(data).augment(data))


def test_augment_refuses_rows_that_it_cannot_place():
    data = make_data()
    shuffled = data.sample(frac=1, random_state=1).reset_index(drop=True)
    with pytest.raises(ArgumentError, match=r"column 'y' is .* in row 0, in the fit it was .*; pass the same rows"):
        rows(data).augment(shuffled)
    with pytest.raises(ArgumentError, match="has a column 'time'; this one has not"):
        rows(data).augment(data.drop(columns="time"))


def test_networks_have_rows_too():
    pytest.importorskip("torch")
    data = mm.datasets.load("orthodont").sample(frac=1, random_state=1)
    fit = mm.fit("distance ~ age | re: (last | subject)", data, hidden=(), rng=0)
    frame = fit.augment(data)
    np.testing.assert_allclose(frame[".fitted"] + frame[".resid"], data["distance"])


# ---- workbooks ----


def test_text_that_looks_like_a_formula_stays_text(tmp_path):
    data = make_data()
    data["id"] = data["id"].replace({"s000": "=1+1", "s001": "bell\a"})
    rows(data).to_excel(tmp_path / "fit.xlsx")
    subjects = pd.read_excel(tmp_path / "fit.xlsx", sheet_name="subjects")["id"]
    assert "=1+1" in set(subjects)
    assert "bell " in set(subjects)
    import openpyxl

    book = openpyxl.load_workbook(tmp_path / "fit.xlsx")
    assert [c for sheet in book for line in sheet.iter_rows() for c in line if c.data_type == "f"] == []


def test_workbook_without_data(tmp_path):
    rows().to_excel(tmp_path / "fit.xlsx", data=False)
    assert list(pd.read_excel(tmp_path / "fit.xlsx", sheet_name=None)) == ["estimates", "fit", "notes"]


def test_workbook_needs_its_ending_and_its_package(tmp_path, monkeypatch):
    with pytest.raises(ArgumentError, match=r"path must end in \.xlsx, got 'fit\.csv'"):
        rows().to_excel("fit.csv")
    for name in ("openpyxl", "openpyxl.workbook"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"to_excel\(\) needs openpyxl.*pip install 'mixmoe\[files\]'"):
        rows().to_excel(tmp_path / "fit.xlsx")


# ---- side by side ----


def cells(summary, key):
    found = next(table for table in summary.tables if table.key == key)
    return dict(zip(found.index, found.cells, strict=True))


def test_fits_are_aligned_by_name():
    one, two = make_results(experts=1), make_results(experts=2)
    made = mm.table([one, two])
    assert isinstance(made, Summary)
    assert [t.key for t in made.tables] == ["expert1", "expert2", "gate", "random", "residual", "statistics"]
    assert cells(made, "expert1")["time"] == (f"{one.params['expert1.time']:.4f}", f"{two.params['expert1.time']:.4f}")
    assert cells(made, "expert2")["time"] == (None, f"{two.params['expert2.time']:.4f}")
    first = made.tables[0]
    assert first.index[1] == ""
    assert first.cells[1] == (f"({one.bse.iloc[0]:.4f})", f"({two.bse.iloc[0]:.4f})")
    assert cells(made, "gate")["expert 2: z"][0] is None


def test_a_network_has_the_rows_of_one_expert():
    pytest.importorskip("torch")
    data = mm.datasets.load("orthodont")
    network = mm.fit("distance ~ age | re: (last | subject)", data, hidden=(), baselines=False, rng=0)
    made = mm.table([network, mm.fit("distance ~ age | re: (1 + age | subject)", data, experts=1)], statistics=[])
    assert [table.key for table in made.tables] == ["expert1", "random", "residual"]
    for table in made.tables:
        for network_cell, expert_cell in table.cells[::2]:
            assert float(network_cell) == pytest.approx(float(expert_cell), abs=2e-3)
    assert mm.table([network]).tables[0].key == "fixed"


def test_tables_say_what_the_summary_says():
    """An infinite coefficient of the gate is printed as finite: every output says that it only says so."""
    rng = np.random.default_rng(9)
    subject = np.repeat(np.arange(80), 4)
    group = (subject % 2).astype(float)
    data = pd.DataFrame({"id": subject, "g": group, "y": 20 * group + rng.normal(size=320) * (1 + group)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        fit = mm.fit("y ~ 1 | gate: g | re: (0 | id)", data, starts=4, rng=0)
    flag = next(flag for flag in fit.flags if flag.code == "separated_gate")
    made = mm.table([fit, fit.with_cov("nonrobust")], names=["robust", "model"])
    gate = next(table for table in made.tables if table.key == "gate")
    assert gate.cells[1] == ("(none)", "(none)")
    assert f"robust: {flag.note}" in made.notes
    assert flag.message in fit.summary().notes
    # Whoever reads a paper fits nothing: what to call is no note of a table.
    assert "gate_penalty=" in flag.remedy
    for written in (made.as_latex(), made.as_markdown(), fit.to_latex(), fit.to_markdown(), fit.summary().as_latex()):
        assert "no subjects to expert 1" in written
        assert "penalty" not in written
    assert f"model: {flag.note}" in made.notes
    assert any(note.startswith("(none): no valid standard error") for note in made.notes)
    flat = " ".join
    words = flag.note.split()[:6]
    for text in (
        made.as_text(),
        made.as_latex(),
        made.as_html(),
        made.as_markdown(),
        fit.to_latex(),
        fit.to_markdown(),
    ):
        assert flat(words) in flat(text.split())
    for frame in (fit.to_frame(), fit.tidy()):
        assert frame.attrs["notes"] == fit.summary().notes
        assert flag.message in frame.attrs["notes"]


def test_a_table_says_by_which_reference_its_p_values_are():
    fit = mm.fit("reaction ~ days | re: (1 + days | subject)", mm.datasets.load("sleepstudy"), experts=1, rng=0)
    assert any("Satterthwaite" in note for note in mm.table([fit]).notes)


def test_statistics_below():
    one, two = make_results(experts=1, loglik=-210.0), make_results(experts=2)
    foot = cells(mm.table([one, two]), "statistics")
    assert foot["Log-likelihood"] == (-210.0, -200.0)
    assert foot["Subjects"] == (40, 40)
    assert foot["Entropy"] == (None, two.entropy)
    assert list(cells(mm.table([one], statistics=["bic"]), "statistics")) == ["BIC"]
    assert [t.key for t in mm.table([one], statistics=[]).tables][-1] == "residual"


def test_stars_only_when_asked_for_and_only_on_what_is_tested():
    fit = make_results()
    assert "*" not in str(mm.table([fit]))
    starred = mm.table([fit], stars=True)
    stars = {name: str(row[0]).count("*") for name, row in cells(starred, "expert1").items() if name}
    p_values = {name: fit.pvalues[f"expert1.{name}"] for name in stars}
    assert stars == {name: sum(p < limit for limit in (0.05, 0.01, 0.001)) for name, p in p_values.items()}
    assert not any("*" in str(row[0]) for row in cells(starred, "residual").values())
    assert "*** p < 0.001" in starred.notes[1]


def test_notes_say_what_cannot_be_compared():
    one, two = make_results(experts=1), make_results(data=make_data(n_subjects=41))
    notes = " ".join(mm.table([one, two]).notes)
    assert "different rows" in notes
    assert "numbered by size" in notes
    other = FakeResults(one.model, one.em, make_cov(one.model, "nonrobust"))
    notes = mm.table({"a": one, "b": other}).notes
    assert re.search(r"a sandwich.*; b inverse", notes[0])
    assert len(notes) == 1


@pytest.mark.parametrize("kind", ["text", "html", "latex", "markdown"])
def test_all_writers(kind):
    made = mm.table({"small": make_results(experts=1), "<large>": make_results()}, title="Two models")
    text = getattr(made, f"as_{kind}")()
    assert "small" in text
    assert ("<large>" in text) == (kind == "text")
    assert "Log" in text


def test_families_stand_side_by_side():
    data = mm.simulate.vcmoe("well_separated", n=200, rng=1).data
    linear = mm.fit("y ~ z1 | gate: x1", data, experts=2, rng=0)
    varying = mm.fit("y ~ z1 | gate: x1 | vary: u", data, experts=2, bandwidth=0.3, rng=0)
    made = mm.table([linear, varying])
    names = {p.name for f in (linear, varying) for p in f.model.layout.parameters}
    assert sum(len(t.index) for t in made.tables if t.key != "statistics") == 2 * len(names)


def test_what_is_no_fit_is_refused():
    fit = make_results()
    with pytest.raises(ArgumentError, match="at least one fit, got none"):
        mm.table([])
    with pytest.raises(ArgumentError, match="made of fitted models, got int"):
        mm.table([fit, 3])
    with pytest.raises(ArgumentError, match=r"names must be 1 texts, one per fit, got \['a', 'b'\]"):
        mm.table([fit], names=["a", "b"])
    with pytest.raises(ArgumentError, match=r"statistics must be among 'subjects', .*, got 'r2'"):
        mm.table([fit], statistics=["r2"])


def test_stars_begin_below_their_limits():
    p_values = {"a": 0.0009, "b": 0.001, "c": 0.0099, "d": 0.01, "e": 0.0499, "f": 0.05, "g": np.nan}
    ones = pd.Series(1.0, index=list(p_values))
    result = SimpleNamespace(params=ones, bse=ones, pvalues=pd.Series(p_values))
    marks = [side_by_side._estimate(result, name, True).removeprefix("1.0000") for name in p_values]
    assert marks == ["***", "**", "**", "*", "*", "", ""]


def test_maketables_and_great_tables_take_fits_as_they_are():
    maketables, great_tables = pytest.importorskip("maketables"), pytest.importorskip("great_tables")
    fit = mm.fit("distance ~ age | re: (1 | subject)", mm.datasets.load("orthodont"), experts=1)
    shown = maketables.ETable([fit], model_stats=["N"]).make(type="tex")
    assert f"{fit.params['expert1.age']:.3f}" in shown
    assert "(0.071)" in shown
    page = great_tables.GT(fit.tidy()).as_raw_html()
    assert "expert1.age" in page
    assert "std.error" in page
