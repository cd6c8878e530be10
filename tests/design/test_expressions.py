"""Expressions of formulas against values worked out by hand: lags, powers, sums of truth values."""

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.design.design import build_design
from mixmoe.design.formula import parse_formula
from mixmoe.errors import ArgumentError, DesignError, DroppedRowsWarning

pytestmark = pytest.mark.parametrize("engine", ["formulaic", "patsy"])


def data():
    """Two subjects with six rows each; the response of row 4 is missing."""
    frame = pd.DataFrame(
        {"id": np.repeat([1, 2], 6), "day": np.arange(12), "x": np.arange(12) + 100, "u": np.arange(12.0)}
    )
    frame["y"] = np.cos(frame["day"])
    frame.loc[4, "y"] = np.nan
    frame["late"] = frame["day"] > 5
    frame["g"] = list("abcabcabcabc")
    return frame


def column(formula, engine, frame=None, **options):
    """The second column of the expert part, by place of the row in the data."""
    with pytest.warns(DroppedRowsWarning):
        design = build_design(parse_formula(formula), data() if frame is None else frame, engine=engine, **options)
    again = build_design(parse_formula(formula), design.frame, engine=engine, **options)
    np.testing.assert_array_equal(again.expert, design.expert)  # as load, folds and refits build it
    return dict(zip(design.position.tolist(), design.expert[:, 1].tolist(), strict=True))


def test_a_lag_is_the_row_before_also_where_its_response_is_missing(engine):
    expected = {i: 99.0 + i for i in (1, 2, 3, 5, 7, 8, 9, 10, 11)}
    assert column("y ~ lag(x) | re: (1 | id)", engine) == expected
    assert column("y ~ lag(x, 1) | re: (1 | id)", engine, data().astype({"x": "Int64"})) == expected
    assert column("y ~ lag(x)", engine) == {**expected, 6: 105.0}


def test_a_lag_needs_its_own_value_only(engine):
    frame = data().astype({"x": float})
    frame.loc[8, "x"] = np.nan  # row 8 stays, row 9 has nothing before it
    assert column("y ~ lag(x) | re: (1 | id)", engine, frame) == {i: 99.0 + i for i in (1, 2, 3, 5, 7, 8, 10, 11)}


def test_lags_stay_within_clusters_and_sequences(engine):
    expected = {i: 99.0 + i for i in (1, 2, 3, 5, 7, 8, 9, 10, 11)}
    assert column("y ~ lag(x) | vary: u", engine, aux={"cluster": "id"}) == expected
    shuffled = data().sample(frac=1, random_state=0)
    labels = shuffled.index.to_numpy()
    found = column("y ~ lag(x) | re: (1 | id) | seq: day", engine, shuffled)
    assert {labels[place]: value for place, value in found.items()} == expected
    two = data().assign(session=np.tile(np.repeat([0, 1], 3), 2))
    found = column("y ~ lag(x) | re: (1 | id) | seq: day / session", engine, two)
    assert found == {i: 99.0 + i for i in (1, 2, 5, 7, 8, 10, 11)}


@pytest.mark.parametrize("name", ["id", "when", "session", "day", "cluster"])
def test_a_row_whose_place_is_missing_leaves_no_lag_known(engine, name):
    """What lies before row 6 is row 5 or row 3, if row 5 is the one of unknown time, subject, session or cluster."""
    frame = data().assign(when=np.arange(12.0), session=1.0, cluster=np.repeat([1.0, 2.0], 6)).astype({"id": float})
    frame["day"] = frame["day"].astype(float)
    frame.loc[5, name] = np.nan
    formula = "y ~ lag(x) | vary: u" if name == "cluster" else "y ~ lag(x) | re: (1 | id)"
    formula += " | seq: day / session" if name in ("day", "session") else ""
    aux = {"cluster": "cluster"} if name == "cluster" else {"time": "when"} if name == "when" else {}
    with pytest.raises(DesignError, match=f"'{name}' is missing in 1 of 12 rows, first in row 5"):
        build_design(parse_formula(formula), frame, engine=engine, aux=aux)


def test_lags_of_expressions(engine):
    back = column("y ~ lag(log(x) * 2, 2) | re: (1 | id)", engine)
    assert back == {i: pytest.approx(2 * np.log(98.0 + i)) for i in (2, 3, 5, 8, 9, 10, 11)}
    ahead = column("y ~ lag(x, -1) | re: (1 | id)", engine)
    assert ahead == {i: 101.0 + i for i in (0, 1, 2, 3, 6, 7, 8, 9, 10)}
    assert column("y ~ lag(lag(x)) | re: (1 | id)", engine) == {i: 98.0 + i for i in (2, 3, 5, 8, 9, 10, 11)}
    letters = column("y ~ C(lag(g)) | re: (1 | id)", engine)
    assert letters == {i: float("abcabcabcabc"[i - 1] == "b") for i in (1, 2, 3, 5, 7, 8, 9, 10, 11)}


def test_what_is_scaled_is_the_lagged_column(engine):
    found = column("y ~ scale(lag(x)) | re: (1 | id)", engine)
    before = np.array([99.0 + i for i in (1, 2, 3, 5, 7, 8, 9, 10, 11)])
    np.testing.assert_allclose(np.mean(list(found.values())), 0.0, atol=1e-12)
    spread = np.ptp(list(found.values()))
    assert spread == pytest.approx(np.ptp(before) / before.std(ddof=1 if engine == "formulaic" else 0))


def test_rows_back_must_be_a_whole_number(engine):
    with pytest.raises(
        DesignError, match=r"the rows that lag goes back must be a whole number, as in lag\(x, 2\), got x"
    ):
        build_design(parse_formula("y ~ lag(x, x)"), data(), engine=engine)
    with pytest.raises(DesignError, match="has arguments that lag does not have"):
        build_design(parse_formula("y ~ lag(x, 1, 2)"), data(), engine=engine)
    with pytest.raises(ArgumentError, match="context must not name a function 'lag'"):
        build_design(parse_formula("y ~ lag(x)"), data(), engine=engine, context={"lag": np.roll})


@pytest.mark.parametrize("kind", ["int8", "int64", "uint64", "Int32", "bool"])
@pytest.mark.parametrize(
    ("term", "value"),
    [
        ("I(day**12)", lambda v: float(v) ** 12),
        ("np.power(day, 19)", lambda v: float(v) ** 19),
        ("I(day * 10**18)", lambda v: v * 1e18),
        ("I(-day)", lambda v: -float(v)),
        ("I(day - 200)", lambda v: v - 200.0),
        ("I((day > 3) + (day > 5))", lambda v: float(v > 3) + (v > 5)),
        ("I(day + day + day)", lambda v: 3.0 * v),
    ],
)
def test_arithmetic_is_that_of_floats(engine, kind, term, value):
    if kind == "bool" and ("power" in term or ">" in term):
        pytest.skip("truth values have neither powers of NumPy nor an order")
    frame = data()
    frame["day"] = (frame["day"] > 5).astype(kind) if kind == "bool" else frame["day"].astype(kind)
    found = column(f"y ~ {term} | re: (1 | id)", engine, frame)
    assert found == {i: pytest.approx(value(float(frame["day"].iloc[i])), rel=1e-14) for i in found}


def test_levels_stay_whole_numbers(engine):
    frame = data().assign(site=np.repeat([2**53, 2**53 + 1, 2**53 + 2], 4))
    with pytest.warns(DroppedRowsWarning):
        design = build_design(parse_formula("y ~ C(site) + C(day // 6)"), frame, engine=engine)
    one, two = 2**53 + 1, 2**53 + 2
    assert design.names.expert == ("Intercept", f"C(site)[T.{one}]", f"C(site)[T.{two}]", "C(day // 6)[T.1]")


def test_a_fit_with_lags(engine, tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"id": np.repeat(np.arange(30), 5), "x": rng.normal(size=150)})
    frame["y"] = (
        2.0 * frame.groupby("id")["x"].shift(1).fillna(0.0) + rng.normal(size=150) + np.repeat(rng.normal(size=30), 5)
    )
    frame.loc[7, "y"] = np.nan
    with pytest.warns(DroppedRowsWarning, match=r"lag\(x\) has nothing before the first rows"):
        fit = mm.fit("y ~ lag(x) | re: (1 | id)", frame, 1, formula_engine=engine, progress=False)
    by_hand = frame.assign(before=frame.groupby("id")["x"].shift(1)).dropna()
    other = mm.fit("y ~ before | re: (1 | id)", by_hand, 1, progress=False)
    assert fit.llf == pytest.approx(other.llf, abs=1e-9)
    fit.save(tmp_path / "f")
    assert mm.load(tmp_path / "f").llf == fit.llf
    with pytest.warns(DroppedRowsWarning):
        assert fit.predict(frame)["mean"].notna().sum() == 120  # all but the first of each subject
    assert "lag(x)" not in fit.augment(frame)


@pytest.mark.parametrize(
    "term",
    ["u.shift(1)", "u.diff()", "np.cumsum(u)", "np.roll(x, 1)", "np.sort(x)", "I(x - x.mean())", "I(u / np.max(u))",
     "f(x)", "x.rank()", "np.linspace(0, 1, 11)", "gaps.ffill()", "gaps.fillna(gaps.mean())",
     "I(np.where(x > np.median(x), u, 0))"],
)  # fmt: skip
def test_terms_are_those_of_one_row(engine, term):
    frame = data().assign(gaps=lambda d: d["u"].where(d["day"] != 3, np.nan))
    options = {"engine": engine, "context": {"f": lambda x: x - np.mean(x)}}
    told = "has other values in a row where other rows are left out or stand in another order"
    for formula in (f"y ~ {term} | re: (1 | id)", f"y ~ x | gate: {term} | vary: u", f"y ~ x | re: (1 + {term} | id)"):
        with pytest.raises(DesignError, match=f"the term .* of .* {told}"):
            build_design(parse_formula(formula), frame, **options)


@pytest.mark.parametrize(
    ("term", "value"),
    [
        ("f(x, 100)", lambda v: (v - 100.0) ** 2),
        ("u.clip(2, 5)", lambda v: min(max(v - 100.0, 2.0), 5.0)),
        ("np.hypot(u, x)", lambda v: np.hypot(v - 100.0, v)),
        ("np.interp(x, [100, 111], [0, 11])", lambda v: v - 100.0),
        ("u.where(u > 3, 0)", lambda v: v - 100.0 if v > 103 else 0.0),
    ],
)
def test_functions_of_one_row_may_be_any(engine, term, value):
    found = column(f"y ~ {term} | re: (1 | id)", engine, context={"f": lambda x, c: (x - c) ** 2})
    assert found == {i: pytest.approx(value(100.0 + i)) for i in found}


def test_lags_follow_the_time(engine):
    shuffled = data().sample(frac=1, random_state=0)
    labels = shuffled.index.to_numpy()
    found = column("y ~ lag(x) | re: (1 | id)", engine, shuffled, aux={"time": "day"})
    assert {labels[place]: value for place, value in found.items()} == {
        i: 99.0 + i for i in (1, 2, 3, 5, 7, 8, 9, 10, 11)
    }


@pytest.mark.parametrize("term", ["C(g)", "C(lag(g))", "x:C(g)", "log(g)"])
def test_cells_that_hold_lists_are_named_within_calls_too(engine, term):
    frame = data().assign(g=[[i % 3] for i in range(12)])
    with pytest.raises(DesignError, match=r"column 'g' in the expert part holds list values, such as \[[01]\]"):
        build_design(parse_formula(f"y ~ {term} | re: (1 | id)"), frame, engine=engine)
