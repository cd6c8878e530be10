"""Labels of subjects and clusters: no cast merges two, whatever their type, at any door."""

import datetime as dt
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.design.design import build_design
from mixmoe.design.formula import parse_formula
from mixmoe.design.frame import exact, places_of, units_of, view
from mixmoe.errors import ArgumentError, DesignError, MixmoeWarning

LARGE = 2**53  # above which floats no longer tell whole numbers apart
N, VISITS = 12, 3
FORMULA = parse_formula("y ~ x | re: (1 | id)")


def frame(labels, kind=pd.DataFrame):
    rng = np.random.default_rng(0)
    return kind({"y": rng.normal(size=N * VISITS), "x": rng.normal(size=N * VISITS), "id": labels})


def repeated(label):
    """Values of a function of 0 ... N - 1, each for all visits."""
    return [label(i) for i in range(N) for _ in range(VISITS)]


def at_utc(i):
    return dt.datetime(2020, 1, 1 + i, tzinfo=dt.UTC)


LABELS = {
    "int64": lambda: np.array(repeated(lambda i: LARGE + i)),
    "object": lambda: pd.Series(repeated(lambda i: LARGE + i), dtype=object),
    "object beyond 64 bits": lambda: pd.Series(repeated(lambda i: 2**70 + i), dtype=object),
    "whole numbers and a fraction": lambda: pd.Series(repeated(lambda i: LARGE + i if i else 0.5), dtype=object),
    "uint64": lambda: np.array(repeated(lambda i: 2**63 + i), dtype=np.uint64),
    "Int64": lambda: pd.array(repeated(lambda i: LARGE + i), dtype="Int64"),
    "UInt64": lambda: pd.array(repeated(lambda i: 2**63 + i), dtype="UInt64"),
    "sparse": lambda: pd.arrays.SparseArray(repeated(lambda i: LARGE + i)),
    "categories": lambda: pd.Categorical(repeated(lambda i: LARGE + i)),
    "Decimal": lambda: pd.Series(repeated(lambda i: Decimal(LARGE + i) / 10), dtype=object),
    "Fraction": lambda: pd.Series(repeated(lambda i: Fraction(LARGE + i, 3)), dtype=object),
    "bytes": lambda: pd.Series(repeated(lambda i: bytes([i])), dtype=object),
    "tuples": lambda: pd.Series(repeated(lambda i: (i % 2, f"s{i}")), dtype=object),
    "dates": lambda: pd.Series(repeated(lambda i: dt.date(2020, 1, 1 + i)), dtype=object),
    "times": lambda: pd.Series(repeated(lambda i: dt.datetime(2020, 1, 1, 0, 0, 0, i))),
    "times with a zone": lambda: pd.Series(repeated(at_utc)),
    "numbers, texts and truth": lambda: pd.Series(
        repeated(lambda i: [1, "1", True, b"1", 0, "0", False, 1.5, 2, "a", "b", None][i]), dtype=object
    ),
}


@pytest.mark.parametrize("name", LABELS)
def test_every_label_is_a_subject_of_its_own(name):
    data = frame(LABELS[name]())
    missing = int(pd.isna(data["id"]).sum())
    with pytest.warns(mm.errors.DroppedRowsWarning) if missing else np.errstate():
        design = build_design(FORMULA, data)
    assert design.n_units == N - missing // VISITS
    again = design.for_new(data.sample(frac=1, random_state=0).dropna(subset="id"))
    assert places_of(again.labels, design.labels).tolist() == list(range(design.n_units))
    assert build_design(FORMULA, design.frame).labels.tolist() == design.labels.tolist()


def test_polars_columns_are_not_cast():
    pl = pytest.importorskip("polars")
    columns = [
        pl.Series(repeated(lambda i: 2**63 + i), dtype=pl.UInt64),
        pl.Series([None, *repeated(lambda i: LARGE + i)[1:]], dtype=pl.Int64),
        pl.Series(repeated(lambda i: LARGE + i), dtype=pl.Int128),
        pl.Series(repeated(lambda i: LARGE + i), dtype=pl.Object),
        pl.Series(repeated(lambda i: Decimal(LARGE + i)), dtype=pl.Decimal(30, 1)),
        pl.Series(repeated(at_utc)),
    ]
    for column in columns:
        held = view(frame(column, pl.DataFrame)).column("id")
        found = units_of(exact(held[held.notna().to_numpy()].reset_index(drop=True)))
        assert len(found.labels) == N, column.dtype


@pytest.mark.parametrize("missing", [None, np.nan])
def test_a_list_with_a_missing_label_keeps_the_others(missing):
    with pytest.warns(mm.errors.DroppedRowsWarning):
        design = build_design(FORMULA, frame([missing, *repeated(lambda i: LARGE + i)[1:]], dict))
    assert design.labels.tolist() == [LARGE + i for i in range(N)]


@pytest.mark.parametrize("label", [[1], {"a": 1}, (1, [2])])
def test_labels_that_cannot_be_told_apart_are_refused(label):
    labels = pd.Series([label] * (N * VISITS), dtype=object)
    with pytest.raises(DesignError, match=r"column 'id' holds .*, of type \w+, in row 0; labels are single values"):
        build_design(FORMULA, frame(labels))


def test_whole_floats_are_the_integers_that_they_are():
    found = units_of(exact(pd.Series([2.0, 1.0, 2.0])))
    assert found.labels.tolist() == [1, 2]
    assert all(type(label) is int for label in found.labels)
    assert places_of([1.0, LARGE + 1, True, "1"], [1, float(LARGE), 2]).tolist() == [0, -1, -1, -1]
    assert units_of(exact(pd.Series([1e19, 2e19]))).labels.tolist() == [1e19, 2e19]


@pytest.fixture(scope="module")
def fit():
    rng = np.random.default_rng(1)
    n = 30
    who, late = np.repeat(np.arange(n), 4), np.repeat(np.arange(n) % 2, 4)
    t = np.tile(np.arange(4.0), n)
    y = 8.0 * late + t + np.repeat(rng.normal(size=n), 4) + rng.normal(size=4 * n)
    labels = pd.Series([LARGE + int(i) for i in who], dtype=object)
    data = pd.DataFrame({"id": labels, "t": t, "y": y, "late": late})
    fitted = mm.fit("y ~ t | re: (1 | id)", data, 2, rng=0, starts=4, progress=False, cov_re="common")
    plain = mm.fit("y ~ t | re: (1 | id)", data.assign(id=who), 2, rng=0, starts=4, progress=False, cov_re="common")
    return fitted, data, plain


def test_a_fit_does_not_depend_on_how_subjects_are_called(fit):
    fitted, _, plain = fit
    assert fitted.llf == plain.llf
    assert fitted.classify().index.tolist() == [LARGE + i for i in range(30)]


def test_histories_meet_their_own_subjects(fit):
    fitted, data, plain = fit
    new = pd.DataFrame({"id": pd.Series([LARGE + 1, LARGE], dtype=object), "t": [4.0, 4.0]})
    got = fitted.predict(new, history=data)
    expected = plain.predict(new.assign(id=[1, 0]), history=data.assign(id=np.repeat(np.arange(30), 4)))
    np.testing.assert_array_equal(got.to_numpy(), expected.to_numpy())
    assert got["probability1"].round().tolist() in ([0.0, 1.0], [1.0, 0.0])


@pytest.mark.filterwarnings("ignore:What is said about")  # few clusters
def test_clusters_of_subjects_are_not_merged(fit):
    fitted, data, plain = fit
    place = [min(i, 5 + i // 2) for i in range(30)]  # not all in pairs of both groups, which say nothing about shares
    by_label = {LARGE + i: 2**60 + place[i] for i in range(30)}
    by_row = pd.Series([by_label[label] for label in data["id"]], dtype=object)
    expected = plain.with_cov("cluster", cluster=np.repeat(place, 4)).bse.to_numpy()
    for cluster in (by_row, by_row.sample(frac=1, random_state=0), by_row.to_numpy(), by_row.tolist()):
        np.testing.assert_allclose(fitted.with_cov("cluster", cluster=cluster).bse.to_numpy(), expected, rtol=1e-12)
    mixed = data["id"].map({LARGE + i: ("1" if i % 2 else 1) for i in range(30)})
    with pytest.raises(mm.errors.DesignError, match="cluster= holds values of different types, 1 in row 0 and '1'"):
        fitted.with_cov("cluster", cluster=mixed)
    with pytest.raises(ArgumentError, match="cluster has no single value for the row 0 of the data"):
        fitted.with_cov("cluster", cluster=by_row.set_axis(range(1000, 1120)))


def test_outcomes_and_rows_meet_their_own_subjects(fit):
    fitted, data, plain = fit
    rng = np.random.default_rng(2)
    outcomes = pd.DataFrame({"id": [LARGE + i for i in range(30)], "o": rng.normal(size=30) + np.arange(30) % 2})
    expected = plain.distal("o ~ expert", outcomes.assign(id=range(30))).margins.values
    np.testing.assert_array_equal(fitted.distal("o ~ expert", outcomes).margins.values, expected)
    pl = pytest.importorskip("polars")
    np.testing.assert_array_equal(fitted.distal("o ~ expert", pl.from_pandas(outcomes)).margins.values, expected)
    rows = fitted.augment(data)
    np.testing.assert_array_equal(rows[".class"], plain.augment()[".class"])
    with pytest.raises(ArgumentError, match="column 'id' is 9007199254740993 in row 0, in the fit it was"):
        fitted.augment(data.assign(id=[label + (label == LARGE) for label in data["id"]]))


def test_a_saved_fit_knows_its_subjects(fit, tmp_path):
    fitted, data, _ = fit
    fitted.save(tmp_path / "f", data=False)
    assert mm.load(tmp_path / "f", data).llf == fitted.llf
    other = pd.Series([label + (label == LARGE + 29) for label in data["id"]], dtype=object)
    assert float(LARGE + 29) == float(LARGE + 28)  # what a cast would compare
    with pytest.raises(mm.errors.SavedFileError, match="the column 'id' differs"):
        mm.load(tmp_path / "f", data.assign(id=other))


def test_clusters_of_rows_are_not_merged():
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"u": np.linspace(0, 1, 60), "y": rng.normal(size=60)})
    large = data.assign(site=pd.Series([LARGE + i // 4 for i in range(60)], dtype=object))
    one = mm.fit("y ~ 1 | vary: u", large, 1, bandwidth=0.5, cluster="site")
    assert one.n_units == 15
    other = mm.fit("y ~ 1 | vary: u", large.assign(site=np.arange(60) // 4), 1, bandwidth=0.5, cluster="site")
    np.testing.assert_array_equal(one.bands()["std_error"], other.bands()["std_error"])


def test_persons_of_a_network_are_not_merged():
    pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    data = pd.DataFrame({"x": rng.normal(size=60), "id": [LARGE + i // 6 for i in range(60)]})
    data["y"] = data["x"] + rng.normal(size=60) + (data["id"] % 5)
    fitted = mm.fit("y ~ x | re: (last | id)", data.astype({"id": object}), hidden=(), rng=0, epochs=5)
    assert fitted.n_units == 10
    new = pd.DataFrame({"x": [0.0, 0.0, 0.0], "id": [LARGE + 1, LARGE + 2, float(2 * LARGE)]}, dtype=object)
    with pytest.warns(MixmoeWarning, match="1 of the 3 subjects of the new data are not in the fit"):
        means = fitted.predict(new.astype({"x": float}), "subject")["mean"]
    population = fitted.predict(new.astype({"x": float}), "mean")["mean"]
    assert (means == population).tolist() == [False, False, True]
    assert means[0] != means[1]


def test_folds_of_mixed_labels():
    rng = np.random.default_rng(5)
    labels = np.repeat(np.array([1, "1", 2, "2", 3, "3", 4, "4"], dtype=object), 5)
    data = pd.DataFrame({"id": labels, "y": rng.normal(size=40), "x": rng.normal(size=40)})
    table = mm.select("y ~ x | re: (0 | id)", data, 1, starts=1, folds=4, rng=0)
    assert np.isfinite(table.to_frame()["cv"]).all()
