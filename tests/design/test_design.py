"""Data into arrays: order, names, replay on new data, missing values, and what every refusal says."""

import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixmoe.design import frame as _frame
from mixmoe.design.aliases import aliases
from mixmoe.design.design import build_design
from mixmoe.design.formula import parse_formula
from mixmoe.errors import ArgumentError, CollinearityWarning, DesignError, DroppedRowsWarning

SUBJECTS, VISITS = 6, 4
N = SUBJECTS * VISITS
RE = " | re: (1 + time | id)"
ENGINES = ("formulaic", "patsy")


@pytest.fixture
def data():
    """Subjects b, d, a, c, e, f of four visits each, with row labels r0, r1, ..."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": np.repeat(list("bdacef"), VISITS),
            "time": np.tile(np.arange(VISITS), SUBJECTS) * 1.0,
            "x": rng.normal(size=N),
            "z": np.repeat(rng.normal(size=SUBJECTS), VISITS),
            "y": rng.normal(size=N),
            "g": np.resize(list("uvwwv"), N),
            "site": np.repeat(list("pqpqpq"), VISITS),
            "one": 1.0,
            "visit": np.tile(np.arange(VISITS), SUBJECTS),
            "day": pd.date_range("2020-01-01", periods=N),
        },
        index=[f"r{i}" for i in range(N)],
    )


def build(formula, data, **options):
    return build_design(parse_formula(formula), data, **options)


def refused(message, formula, data, error=DesignError, **options):
    with pytest.raises(error, match=message):
        build(formula, data, **options)


def with_cells(data, **cells):
    changed = data.copy()
    for column, values in cells.items():
        for i, value in values.items():
            changed[column] = changed[column].astype(object) if isinstance(value, str) else changed[column]
            changed.loc[changed.index[i], column] = value
    return changed


# ---- arrays and names


def test_rows_are_sorted_by_subject_and_keep_their_order_within(data):
    shuffled = data.sample(frac=1, random_state=3)
    design = build("y ~ time + x | gate: z" + RE, shuffled)
    assert list(design.labels) == list("abcdef")
    assert (np.diff(design.codes) >= 0).all()
    np.testing.assert_array_equal(design.starts, np.arange(SUBJECTS) * VISITS)
    np.testing.assert_array_equal(design.counts, np.full(SUBJECTS, VISITS))
    assert design.rows.equals(shuffled.index[design.position])
    np.testing.assert_array_equal(design.response, shuffled["y"].to_numpy()[design.position])
    np.testing.assert_array_equal(design.in_order(design.response), shuffled["y"])
    for code in range(SUBJECTS):
        assert (np.diff(design.position[design.codes == code]) > 0).all()


def test_shapes_and_plain_names(data):
    design = build("y ~ time*x + C(g) | gate: z + site" + RE, data)
    assert design.names.expert == ("Intercept", "time", "x", "C(g)[T.v]", "C(g)[T.w]", "time:x")
    assert design.names.gate == ("Intercept", "z", "site[T.q]")
    assert design.names.random == ("Intercept", "time")
    assert (design.names.response, design.names.group, design.names.index) == ("y", "id", None)
    assert design.expert.shape == (N, 6)
    assert design.gate.shape == (SUBJECTS, 3)
    assert design.random.shape == (N, 2)
    assert (design.n, design.n_units, design.n_input) == (N, SUBJECTS, N)
    by_hand = data.sort_values("id", kind="stable")
    np.testing.assert_array_equal(design.expert[:, 5], by_hand["time"] * by_hand["x"])
    np.testing.assert_array_equal(design.gate[:, 1], by_hand.groupby("id")["z"].first())


def test_without_subjects_each_row_is_a_unit(data):
    design = build("y ~ x | gate: x", data)
    assert design.n_units == N
    assert list(design.labels) == list(data.index)
    assert design.gate.shape == (N, 2)


def test_membership_without_random_effects(data):
    design = build("y ~ x | re: (0 | id)", data)
    assert design.random.shape == (N, 0)
    assert design.n_units == SUBJECTS


def test_an_index_gives_the_gate_a_row_per_row(data):
    design = build("y ~ x + const(z) | gate: const(1) + x | vary: log(1 + time)", data)
    np.testing.assert_allclose(design.index, np.log1p(data["time"]))
    assert design.gate.shape == (N, 2)
    np.testing.assert_array_equal(design.expert_const, [False, False, True])
    np.testing.assert_array_equal(design.gate_const, [True, False])


@pytest.mark.parametrize("engine", ENGINES)
def test_the_standard_deviation_has_columns_without_intercept(data, engine):
    design = build("y ~ x | re: (1 | id) | sigma: time + common(C(g) + log(x**2))", data, engine=engine)
    shared = dict(zip(design.names.sigma, design.sigma_common.tolist(), strict=True))
    assert shared.pop("time") is False
    assert len(shared) == 3
    assert all(shared.values())
    time = design.sigma[:, design.names.sigma.index("time")]
    np.testing.assert_array_equal(time, design.frame["time"])
    again = design.for_new(data.iloc[:VISITS])
    np.testing.assert_allclose(again.sigma, design.sigma[design.codes == 1])
    assert build("y ~ x", data).sigma.shape == (N, 0)


def test_superfluous_columns_of_the_standard_deviation_are_left_out(data):
    with pytest.warns(CollinearityWarning, match="column 'one' of sigma: was left out: it is constant"):
        design = build("y ~ x | re: (1 | id) | sigma: one + time", data)
    assert design.names.sigma == ("time",)


@pytest.mark.parametrize("engine", ENGINES)
def test_shared_terms_are_marked(data, engine):
    design = build("y ~ time + common(x + C(g)) + common(x:time)" + RE, data, engine=engine)
    shared = {name for name, common in zip(design.names.expert, design.common, strict=True) if common}
    assert shared == {"x", "C(g)[T.v]", "C(g)[T.w]", "x:time"}


def test_a_shared_intercept_replaces_the_free_one(data):
    design = build("y ~ common(1) + x" + RE, data)
    assert design.names.expert == ("Intercept", "x")
    np.testing.assert_array_equal(design.common, [True, False])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "terms",
    ["time + bs(x, df=4)", "scale(x)*site", "0 + g", "x - 1", "log(1 + time) + I(x**2)", "C(g, Treatment('w')):x"],
)
def test_transforms_work_inside_sections_and_replay(data, terms, engine):
    design = build(f"y ~ {terms} | gate: scale(z) + C(site)" + RE, data, engine=engine)
    assert np.linalg.matrix_rank(design.expert) == design.expert.shape[1]
    again = design.for_new(data.drop(columns="y"))
    np.testing.assert_array_equal(again.expert, design.expert)
    np.testing.assert_array_equal(again.gate, design.gate)
    one = design.for_new(data.iloc[[5]])
    np.testing.assert_allclose(one.expert[0], design.expert[list(design.position).index(5)], atol=1e-12)


@pytest.mark.parametrize("terms", ["poly(x, 2)", "cr(x, df=4)", "lag(x)", "np.sqrt(x**2)", "abs(x)", "`my col` + x"])
def test_more_of_formulaic(data, terms):
    design = quiet(f"y ~ {terms}" + RE, data.rename(columns={"visit": "my col"}))
    assert np.isfinite(design.expert).all()


def quiet(formula, data, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build(formula, data, **options)


def test_both_engines_span_the_same_columns(data):
    formula = "log(y + 9) ~ center(x)*C(g) + time + common(z) | gate: site" + RE
    first, second = build(formula, data), build(formula, data, engine="patsy")
    order = [second.names.expert.index(name) for name in first.names.expert]
    np.testing.assert_allclose(second.expert[:, order], first.expert, atol=1e-12)
    np.testing.assert_allclose(second.response, first.response)
    np.testing.assert_array_equal(second.gate, first.gate)


def test_lag_stays_within_the_subject(data):
    with pytest.warns(DroppedRowsWarning, match=r"6 of 24 .*lag\(x\): 6"):
        design = build("y ~ lag(x)" + RE, data)
    expected = data.groupby("id")["x"].shift().to_numpy()[design.position]
    np.testing.assert_array_equal(design.expert[:, 1], expected)


def test_names_on_the_left_of_the_bar_can_stay_names(data):
    design = build("g ~ x | re: (last + layer[2] | id) | seq: day", data, response="categorical", random_columns=False)
    assert design.random.shape == (N, 0)
    assert design.response_levels == ("u", "v", "w")
    assert [design.response_levels[k] for k in design.in_order(design.response)] == list(data["g"])


def test_sequences_are_arranged_by_their_order(data):
    shuffled = data.assign(session=np.tile([1, 2], N // 2)).sample(frac=1, random_state=0)
    design = build("y ~ x | re: (1 | id) | seq: day / session", shuffled)
    assert list(design.sequence) == list(np.repeat(np.arange(2 * SUBJECTS), VISITS // 2))
    same = np.diff(design.sequence) == 0
    assert (np.diff(design.order)[same] > 0).all()


def test_auxiliary_columns_come_along(data):
    with pytest.warns(DroppedRowsWarning, match="visit: 1"):
        design = build("y ~ x" + RE, with_cells(data, visit={3: np.nan}), aux={"offset": "visit", "cluster": "g"})
    np.testing.assert_array_equal(design.aux["offset"], data["visit"].to_numpy()[design.position])
    assert list(design.aux["cluster"]) == list(data["g"].iloc[design.position])


def test_rows_of_weight_zero_are_left_out_and_no_others(data):
    weighted = data.assign(w=(data["id"] > data["id"].min()) * 1.5)  # one subject without weight
    design = build("y ~ x" + RE, weighted, aux={"weights": "w"})
    left = build("y ~ x" + RE, data[weighted["w"] > 0])
    assert (design.n, design.n_units) == (left.n, left.n_units) == (N - VISITS, SUBJECTS - 1)
    np.testing.assert_array_equal(design.expert, left.expert)
    assert (design.dropped.n_rows, design.n_input) == (0, N)
    assert design.for_new(weighted).n == N  # which rows of weight zero have too
    assert design.for_new(weighted, response=True).n == N - VISITS
    gone = with_cells(weighted, y={5: np.nan}, w={5: np.nan})  # a row that is left out anyway needs no weight
    with pytest.warns(DroppedRowsWarning, match="1 of"):
        assert build("y ~ x" + RE, gone, aux={"weights": "w"}).n < N


def test_the_kept_columns_rebuild_the_design(data):
    formula = "y ~ scale(time) + bs(x, df=4) | gate: z" + RE
    design = build(formula, data.sample(frac=1, random_state=2))
    again = build(formula, design.frame)
    np.testing.assert_array_equal(again.expert, design.expert)
    np.testing.assert_array_equal(again.gate, design.gate)
    assert list(again.rows) == list(design.rows)


# ---- frames and types


def test_polars_equals_pandas(data):
    formula = "y ~ time + C(g) + x | gate: z + site" + RE
    holes = with_cells(data, x={2: np.nan, 9: np.nan}, g={4: None})
    with pytest.warns(DroppedRowsWarning, match=r"3 of 24 .*\(g: 1, x: 2\)"):
        expected = build(formula, holes)
    columns = {name: [None if v is None or v != v else v for v in holes[name]] for name in holes}
    frame = pl.DataFrame(columns).with_columns(pl.col("site").cast(pl.Categorical))
    with pytest.warns(DroppedRowsWarning, match=r"3 of 24"):
        design = build(formula, frame)
    np.testing.assert_array_equal(design.expert, expected.expert)
    np.testing.assert_array_equal(design.gate, expected.gate)
    assert list(design.labels) == list(expected.labels)
    with pytest.warns(DroppedRowsWarning, match=r"3 of 24"):
        lazy = build(formula, frame.lazy())
    np.testing.assert_array_equal(lazy.expert, expected.expert)
    assert list(lazy.labels) == list(expected.labels)


def test_arrow_tables_equal_pandas(data):
    arrow = pytest.importorskip("pyarrow")
    formula = "y ~ time + C(g) + x | gate: z + site" + RE
    holes = with_cells(data, x={2: np.nan, 9: np.nan}, g={4: None})
    columns = {name: [None if v is None or v != v else v for v in holes[name]] for name in holes}
    with pytest.warns(DroppedRowsWarning, match=r"3 of 24 .*\(g: 1, x: 2\)"):
        expected = build(formula, holes)
    with pytest.warns(DroppedRowsWarning, match=r"3 of 24 .*\(g: 1, x: 2\)"):
        design = build(formula, arrow.table(columns))
    np.testing.assert_array_equal(design.expert, expected.expert)
    np.testing.assert_array_equal(design.gate, expected.gate)
    assert list(design.labels) == list(expected.labels)


def test_arrow_columns_keep_whole_numbers_zones_and_gaps():
    arrow = pytest.importorskip("pyarrow")
    zone = arrow.timestamp("us", tz="Europe/Berlin")
    table = arrow.table(
        {
            "whole": arrow.array([2**53 + 1, None, 3]),
            "flag": arrow.array([True, None, False]),
            "when": arrow.array([0, 1, 2], type=zone),
        }
    )
    seen = _frame.whole_frame(table)
    assert seen["whole"].dtype == "Int64"
    assert seen["whole"][0] == 2**53 + 1
    assert seen["flag"].dtype == "boolean"
    assert seen["flag"].isna().tolist() == [False, True, False]
    assert str(seen["when"].dt.tz) == "Europe/Berlin"
    assert seen["when"][0] == pd.Timestamp(0, tz="UTC")


def test_arrow_tables_with_two_columns_of_one_name_are_refused():
    arrow = pytest.importorskip("pyarrow")
    twice = arrow.Table.from_arrays([arrow.array([1.0, 2.0])] * 3, names=["y", "x", "x"])
    with pytest.raises(DesignError, match="'x' 2 times; rename"):
        build("y ~ x", twice)


WITHOUT_PYARROW = """
import sys, warnings
sys.modules["pyarrow"] = None
import polars as pl
from mixmoe.design.design import build_design
from mixmoe.design.formula import parse_formula
data = pl.DataFrame({"id": ["b", "b", "a", "a"], "y": [1, 2, 3, 5], "x": [0.5, 1.0, 3.0, 4.0]})
data = data.with_columns(b=pl.Series([True, False, True, None]), e=pl.Series(list("uvvu"), dtype=pl.Enum(["v", "u"])))
design = build_design(parse_formula("y ~ x | re: (1 | id)"), data)
assert list(design.labels) == ["a", "b"] and list(design.response) == [3, 5, 1, 2]
design = build_design(parse_formula("y ~ e"), data)
assert design.names.expert == ("Intercept", "e[T.u]"), design.names
warnings.simplefilter("ignore")
assert build_design(parse_formula("y ~ b"), data).n == 3
"""


def test_polars_is_never_imported():
    sources = Path(_frame.__file__).parent.rglob("*.py")
    assert not [path for path in sources if re.search(r"^\s*(import|from) polars", path.read_text(), re.MULTILINE)]


def test_polars_works_without_pyarrow():
    done = subprocess.run([sys.executable, "-c", WITHOUT_PYARROW], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_dicts_of_columns(data):
    expected = build("y ~ x + g" + RE, data)
    for columns in (data.to_dict("list"), {name: data[name].to_numpy() for name in data}, dict(data.items())):
        np.testing.assert_array_equal(build("y ~ x + g" + RE, columns).expert, expected.expert)


@pytest.mark.parametrize(
    "convert",
    [
        lambda ids: ids.astype("category"),
        lambda ids: ids.astype("string"),
        lambda ids: ids.map({c: i for i, c in enumerate("abcdef")}),
        lambda ids: ids.map({c: float(i) for i, c in enumerate("abcdef")}),
        lambda ids: ids.map({c: pd.Timestamp(2020, 1, i + 1) for i, c in enumerate("abcdef")}),
    ],
    ids=["category", "string", "integer", "float", "date"],
)
def test_ids_of_any_type(data, convert):
    expected = build("y ~ x" + RE, data)
    design = build("y ~ x" + RE, data.assign(id=convert(data["id"])))
    np.testing.assert_array_equal(design.codes, expected.codes)
    np.testing.assert_array_equal(design.position, expected.position)


def test_float_ids_with_gaps_are_counted_and_read_as_integers(data):
    ids = pd.Series(np.repeat(np.arange(SUBJECTS), VISITS) * 1.0, index=data.index)
    ids.iloc[[0, 7]] = np.nan
    with pytest.warns(DroppedRowsWarning, match=r"2 of 24 rows .* \(id: 2\)"):
        design = build("y ~ x" + RE, data.assign(id=ids))
    assert list(design.labels) == [0, 1, 2, 3, 4, 5]
    assert all(isinstance(label, int) for label in design.labels)


def test_ids_of_mixed_type(data):
    design = build("y ~ x" + RE, data.assign(id=[1] * 8 + ["a"] * 8 + [2] * 8))
    assert sorted(map(str, design.labels)) == ["1", "2", "a"]


@pytest.mark.parametrize("dtype", ["object", "Int64", "Float64", "int8", "float32"])
def test_numbers_of_any_type(data, dtype):
    expected = build("y ~ visit" + RE, data)
    np.testing.assert_array_equal(build("y ~ visit" + RE, data.astype({"visit": dtype})).expert, expected.expert)


@pytest.mark.parametrize("dtype", ["bool", "boolean"])
def test_truth_values_are_zero_and_one(data, dtype):
    design = build("I(y > 0) ~ b" + RE, data.assign(b=(data["x"] > 0).astype(dtype)))
    np.testing.assert_array_equal(design.in_order(design.expert[:, 1]), data["x"] > 0)
    assert set(design.response) == {0.0, 1.0}


def test_unused_categories_make_no_columns(data):
    design = build("y ~ g" + RE, data.assign(g=pd.Categorical(data["g"], categories=list("xwvu"))))
    assert design.names.expert == ("Intercept", "g[T.v]", "g[T.u]")


def test_repeated_row_labels_are_no_keys(data):
    repeated = with_cells(data, x={3: np.nan}).set_axis(["same"] * N)
    with pytest.warns(DroppedRowsWarning, match="1 of 24"):
        assert build("y ~ log(x + 9)" + RE, repeated).n == N - 1


# ---- missing values


def test_a_missing_value_drops_the_row_everywhere(data):
    holes = with_cells(data, x={0: np.nan, 1: np.nan}, z={1: np.nan, 2: np.nan}, y={9: np.nan}, id={20: None})
    with pytest.warns(DroppedRowsWarning, match=r"5 of 24 rows .*\(y: 1, x: 2, z: 2, id: 1\)"):
        design = build("y ~ x | gate: z" + RE, holes)
    assert design.dropped.n_rows == 5
    assert dict(design.dropped.by_column) == {"y": 1, "x": 2, "z": 2, "id": 1}
    assert sorted(design.position) == [i for i in range(N) if i not in (0, 1, 2, 9, 20)]
    filled = design.in_order(design.response, fill=True)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(filled)), [0, 1, 2, 9, 20])


@pytest.mark.parametrize("engine", ENGINES)
def test_terms_that_are_no_number_drop_the_row_and_empty_subjects(data, engine):
    changed = with_cells(data, x={i: -1.0 if i < 5 else 2.0 + i for i in range(N)})
    with pytest.warns(DroppedRowsWarning, match=r"5 of 24 rows .*log\(x\): 5"):
        design = build("y ~ log(x) | re: (1 | id)", changed, engine=engine)
    assert list(design.labels) == list("acdef")
    assert (design.n, design.n_units, len(design.expert)) == (19, 5, 19)
    np.testing.assert_allclose(design.expert[:, 1], np.log(changed["x"].to_numpy()[design.position]))


def test_missing_values_do_not_spoil_transforms_with_a_state(data):
    with pytest.warns(DroppedRowsWarning, match="1 of 24"):
        design = build("y ~ scale(x) + poly(time, 2)" + RE, with_cells(data, x={3: np.nan}))
    assert abs(design.expert[:, 1].mean()) < 1e-12


def test_columns_that_are_not_used_may_be_missing(data):
    assert build("y ~ x" + RE, data.assign(z=np.nan)).n == N


def test_methods_of_a_column_may_fill_it(data):
    design = build("y ~ {x.fillna(0)}" + RE, with_cells(data, x={3: np.nan}))
    assert design.n == N


# ---- collinearity


def test_superfluous_columns_are_left_out_and_named(data):
    with pytest.warns(CollinearityWarning) as caught:
        design = build("y ~ x + time + one + I(2*x) + I(x + time) + I(0*x) | gate: z + I(z + 3)" + RE, data)
    said = " ".join(str(w.message) for w in caught)
    for reason in (
        "'one' of the expert part was left out: it is constant, as 'Intercept' is",
        "'I(2 * x)' of the expert part was left out: it is a multiple of 'x'",
        "a linear combination of 'x', 'time'",
        "'I(0 * x)' of the expert part was left out: it is zero everywhere",
        "'I(z + 3)' of gate: was left out: it is a linear combination of 'Intercept', 'z'",
    ):
        assert reason in said
    assert design.names.expert == ("Intercept", "x", "time")
    assert design.names.gate == ("Intercept", "z")
    assert design.for_new(data.iloc[:2]).expert.shape == (2, 3)


def test_a_category_with_one_level_is_named(data):
    with pytest.warns(CollinearityWarning, match="the term 's' of the expert part was left out: it adds no column"):
        build("y ~ x + s" + RE, data.assign(s="a"))


def test_a_constant_stands_in_for_the_intercept(data):
    assert build("y ~ 0 + one + x" + RE, data).names.expert == ("one", "x")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(0, 3), st.sampled_from([1e-6, 1.0, 1e8]))
def test_aliases_are_found_whatever_the_scale(seed, kept, extra, scale):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(50, kept))
    x = np.column_stack([x, x @ rng.normal(size=(kept, extra))]) * scale
    assert [alias.column for alias in aliases(x)] == list(range(kept, kept + extra))


def test_nearly_collinear_polynomials_are_kept():
    year = np.linspace(1990, 2020, 200)
    assert aliases(np.column_stack([np.ones(200), year, year**2])) == ()


@pytest.mark.parametrize("origin", [1e7, 3e9])
def test_columns_far_from_their_origin_are_not_constant(origin):
    t = np.tile(np.arange(4.0), 50)
    assert aliases(np.column_stack([np.ones(200), origin + t])) == ()
    (found,) = aliases(np.column_stack([np.ones(200), origin + t, 3 * origin - 2 * (origin + t)]))
    assert (found.column, found.others) == (2, (0, 1))
    (found,) = aliases(np.column_stack([np.ones(200), origin * (1 + 2.0**-52 * (t > 2))]))  # no more than rounding
    assert (found.column, found.others) == (1, (0,))


# ---- properties


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_rows_changes_nothing_but_the_order(seed):
    rng = np.random.default_rng(seed)
    n = 40
    ids = rng.integers(0, 8, n)
    frame = pd.DataFrame({"id": ids, "y": rng.normal(size=n), "x": rng.normal(size=n), "z": ids % 3})
    moved = frame.iloc[rng.permutation(n)]
    formula = "y ~ scale(x) | gate: z | re: (1 | id)"
    first, second = build(formula, frame), build(formula, moved)
    assert list(first.labels) == list(second.labels)
    np.testing.assert_array_equal(first.gate, second.gate)
    match = pd.Series(np.arange(n), index=second.rows).loc[first.rows].to_numpy()
    np.testing.assert_allclose(second.expert[match], first.expert, atol=1e-12)
    np.testing.assert_array_equal(second.response[match], first.response)


def test_the_data_are_never_changed(data):
    frame = with_cells(data, x={3: np.nan}).sample(frac=1, random_state=0)
    before = frame.copy(deep=True)
    design = quiet("log(y + 9) ~ scale(x) + C(g) | gate: z" + RE, frame, aux={"w": "visit"})
    design.for_new(frame.dropna(), response=True)
    pd.testing.assert_frame_equal(frame, before)


def test_a_design_does_not_follow_later_changes_of_the_data(data):
    ordered = data.sort_values("id")
    design = build("y ~ x | gate: z" + RE, ordered, aux={"w": "visit"})
    kept = (design.response.copy(), design.expert.copy(), design.aux["w"].copy(), design.frame.copy(deep=True))
    ordered.loc[:, ["y", "x"]] = 0.0
    ordered.loc[:, "visit"] = 0
    np.testing.assert_array_equal(design.response, kept[0])
    np.testing.assert_array_equal(design.expert, kept[1])
    np.testing.assert_array_equal(design.aux["w"], kept[2])
    pd.testing.assert_frame_equal(design.frame, kept[3])


# ---- context


def test_the_variables_of_the_caller_are_not_seen(data):
    secret = 3.0
    assert secret
    refused("'secret', which is not a column", "y ~ I(secret * x)" + RE, data)


def test_what_is_passed_is_seen_and_replayed(data):
    context = {"f": np.tanh, "c": 2.0, "unused": object()}
    design = build("y ~ f(x) + I(c * x**2)" + RE, data, context=context)
    np.testing.assert_allclose(design.in_order(design.expert[:, 1]), np.tanh(data["x"]))
    assert set(design.recipe.context) == {"f", "c"}
    np.testing.assert_array_equal(design.for_new(data).expert, design.expert)


# ---- new data


@pytest.fixture
def fitted(data):
    return build("y ~ scale(time) + x + C(g) | gate: z" + RE, data)


def test_new_subjects_are_fine(fitted, data):
    new = fitted.for_new(data.assign(id="stranger", z=0.5))
    assert (list(new.labels), new.names.group, new.response) == (["stranger"], "id", None)


def test_without_the_subject_column_each_row_is_an_unknown_subject(fitted, data):
    new = fitted.for_new(data.drop(columns=["id", "y"]))
    assert (new.n_units, new.names.group) == (N, None)


def test_the_response_of_new_data_on_request(fitted, data):
    np.testing.assert_array_equal(fitted.for_new(data, response=True).response, fitted.response)
    with pytest.raises(DesignError, match="the response uses 'y', which is not a column"):
        fitted.for_new(data.drop(columns="y"), response=True)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("level", ["new", pd.Categorical(["new"] * N, categories=["u", "v", "w", "new"])])
def test_a_category_not_seen_before_is_refused(data, engine, level):
    design = build("y ~ x + C(g)" + RE, data, engine=engine)
    with pytest.raises(DesignError, match=r"column 'g' is 'new' in row 'r0', .* coefficients for 'u', 'v', 'w'"):
        design.for_new(data.assign(g=level))


def test_new_data_of_another_kind_are_refused(fitted, data):
    with pytest.raises(DesignError, match="column 'x' is 'a' in row 'r0', but held numbers"):
        fitted.for_new(data.assign(x="a"))
    with pytest.raises(DesignError, match=r"column 'g' is 1\.0 in row 'r0'"):
        fitted.for_new(data.assign(g=1.0))


def test_missing_columns_of_new_data_are_all_named(fitted, data):
    with pytest.raises(DesignError, match=r"uses 'x', which is not a column .* Also absent: 'z'"):
        fitted.for_new(data.drop(columns=["x", "z"]))


def test_new_data_may_have_gaps_but_not_be_empty(fitted, data):
    with pytest.warns(DroppedRowsWarning, match="1 of 24"):
        assert fitted.for_new(with_cells(data, x={0: np.nan})).n == N - 1
    with pytest.raises(DesignError, match="no rows"):
        fitted.for_new(data.iloc[:0])
    with pytest.raises(DesignError, match=r"all 24 rows have a missing value \(x: 24\)"):
        fitted.for_new(data.assign(x=np.nan))


def test_new_states_are_refused(data):
    design = build("g ~ x", data, response="categorical")
    np.testing.assert_array_equal(design.for_new(data, response=True).response, design.response)
    with pytest.raises(DesignError, match="'g' is 'q' in row 'r0', which the fit has not seen"):
        design.for_new(data.assign(g="q"), response=True)


def test_offsets_may_be_absent_from_new_data(data):
    design = build("y ~ x", data, aux={"offset": "z"})
    assert "offset" not in design.for_new(data[["x"]]).aux


# ---- bad input: (formula, change of the data, what the message says)

MANY = [f"v{i}" for i in range(20 * N)]
BAD = {
    "typo": ("y ~ tme + x", None, "the expert part uses 'tme', .* did you mean 'time'"),
    "typo in case": ("y ~ Time", None, "did you mean 'time'"),
    "typo in the response": ("yy ~ x", None, "the response uses 'yy'"),
    "typo in the gate": ("y ~ x | gate: sit", None, "gate: uses 'sit', .* did you mean 'site'"),
    "typo in a call": ("y ~ log(tme)", None, "uses 'tme'"),
    "typo of a function": ("y ~ lgo(x)", None, "calls 'lgo', which is not a function .* 'log'"),
    "function as a column": ("y ~ exp", None, "uses 'exp', which is not a column"),
    "gate varies": (
        "y ~ x | gate: x",
        None,
        r"'x' varies within subject 'a' \(.* in row 'r8', .*transform\('first'\)",
    ),
    "gate category varies": ("y ~ x | gate: C(g)", None, r"'g' varies within subject 'a' \('w' in row 'r8'"),
    "gate interaction varies": ("y ~ x | gate: z:time", None, "'time' varies within subject 'a'"),
    "infinite": ("y ~ x", lambda d: with_cells(d, x={5: np.inf, 2: -np.inf}), "column 'x' is -inf in row 'r2'"),
    "infinite response": ("y ~ x", lambda d: with_cells(d, y={5: np.inf}), "column 'y' is inf in row 'r5'"),
    "infinite term": ("y ~ log(visit)", None, r"'log\(visit\)' of the expert part is -inf in row 'r0' \(visit = 0\)"),
    "infinite in aux": (
        "y ~ x",
        lambda d: with_cells(d, one={5: np.inf}),
        r"weights must be finite and not negative, got inf in row 'r5'",
    ),
    "text response": ("g ~ x", None, "the response 'g' must be numeric, got 'u' in row 'r0'"),
    "text in response": ("y ~ x", lambda d: with_cells(d, y={3: "bad"}), "'y' must be numeric, got 'bad' in row 'r3'"),
    "category response": ("C(visit) ~ x", None, "must be one numeric column, got 4 columns"),
    "many responses": ("bs(y) ~ x", None, "must be one numeric column, got 3 columns"),
    "text in a function": ("log(g) ~ x", None, "cannot be computed"),
    "all missing": ("y ~ x", lambda d: d.assign(x=np.nan), r"all 24 rows have a missing value \(x: 24\)"),
    "no number left": ("y ~ log(x)", lambda d: d.assign(x=-1.0), r"no row is left: .*log\(x\): 24"),
    "empty": ("y ~ x", lambda d: d.iloc[:0], "the data have no rows"),
    "no columns": ("y ~ x", lambda d: pd.DataFrame(), "the data have no rows"),
    "column twice": ("y ~ x", lambda d: pd.concat([d, d[["x"]]], axis=1), "2 columns named 'x'"),
    "random effect twice": ("y ~ x | re: (1 + one | id)", None, "'one' of re: .* constant, as 'Intercept' is"),
    "random effects too many": (
        "y ~ x | re: (1 + poly(time, 3) + x | id)",
        None,
        "5 random effects per subject .* no subject has more than 4 rows",
    ),
    "id absent": ("y ~ x | re: (1 | ID)", None, "re: uses 'ID', .* did you mean 'id'"),
    "id all missing": ("y ~ x", lambda d: d.assign(id=None), r"all 24 rows have a missing value \(id: 24\)"),
    "date covariate": ("y ~ day", None, "column 'day' in the expert part holds datetime64 values"),
    "complex covariate": ("y ~ x", lambda d: d.assign(x=d["x"] + 1j), "holds complex values"),
    "numbers as text": (
        "y ~ s",
        lambda d: pd.concat([d] * 20, ignore_index=True).assign(s=MANY),
        "480 different texts in 480 rows",
    ),
    "column hides a function": (
        "y ~ log + log(x)",
        lambda d: d.rename(columns={"visit": "log"}),
        "calls 'log' as a function, but the formula also uses a column of that name",
    ),
    "order tied": ("y ~ x | re: (1 | id) | seq: one", None, r"rows 'r8' and 'r9' of subject 'a' share one = 1\.0"),
    "index a category": ("y ~ x | vary: g", None, "the index 'g' must be numeric, got 'u' in row 'r0'"),
    "index constant": ("y ~ x | vary: one", None, "the index 'one' of vary: is 1 in all 24 rows"),
    "index of many columns": ("y ~ x | vary: bs(time)", None, "must be one numeric column, got 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_refused(data, case):
    formula, change, message = BAD[case]
    changed = data if change is None else change(data)
    whole = formula if "re:" in formula or "vary:" in formula else formula + RE
    refused(message, whole, changed, aux={"weights": "one"} if "aux" in case else None)


@pytest.mark.parametrize(
    ("given_data", "message"),
    [
        (3, "got int"),
        (np.zeros((2, 2)), "got ndarray"),
        ([{"y": 1}], "got list"),
        ({"y": [1, 2, 3], "x": [1, 2]}, "'y' has 3 rows, 'x' has 2"),
        ({"y": [1, 2, 3], "x": 2}, "must be a sequence of values, got 2"),
        ({"y": [1, 2, 3], "x": np.array(2)}, r"must be a sequence of values, got array\(2\)"),
        ({"y": {0: 1, 1: 2, 2: 4}, "x": [1, 2, 3]}, "'y' must be a sequence of values, got a dict; .*DataFrame"),
        ({"y": [1, 2, 3], "x": {1, 2, 3}}, "'x' must be a sequence of values, got a set"),
        ({"y": [1, 2, 3], "x": b"abc"}, "'x' must be a sequence of values, got a bytes"),
        ({"y": [1, 2, 3], "x": pd.DataFrame({"x": [1, 2, 3]})}, "'x' must be a sequence of values, got a DataFrame"),
        ({"y": [1, 2, 3], "x": np.ones((3, 2))}, r"got shape \(3, 2\)"),
    ],
)
def test_what_is_no_frame(given_data, message):
    refused(message, "y ~ x", given_data)


def test_bad_options(data):
    refused("engine must be one of 'formulaic', 'patsy', got 'R'", "y ~ x", data, ArgumentError, engine="R")
    refused("response must be one of .* got 'count'", "y ~ x", data, ArgumentError, response="count")
    refused("weights='m' uses 'm'", "y ~ x", data, aux={"weights": "m"})
    refused("one value per row", "y ~ x + w", data, context={"w": np.ones(N)})
    refused(re.escape("use it inside an expression such as I(c * x)"), "y ~ x + c", data, context={"c": 2.0})
    refused("a categorical response must be a column", "log(y) ~ x", data, response="categorical")
    refused("it needs two levels", "g ~ x", data.assign(g="a"), response="categorical")


def test_powers_of_large_whole_numbers_do_not_wrap_around():
    seconds = np.array([1_600_000_000, 1_600_086_400, 1_600_172_800, 1_600_400_000])
    data = {"y": [1.0, 2.0, 0.5, 3.0], "t": seconds, "id": [1, 1, 2, 2]}
    design = build_design(parse_formula("y ~ 0 + I(t ** 3) | re: (1 | id)"), data)
    assert design.expert[:, 0] == pytest.approx(seconds.astype(float) ** 3)


@pytest.mark.parametrize(("word", "python"), [("TRUE", "True"), ("T", "True"), ("FALSE", "False"), ("NULL", "None")])
def test_constants_of_r_are_told_in_python(word, python):
    data = {"y": [1.0, 2.0, 4.0, 3.0], "t": [0.0, 1.0, 2.0, 3.0]}
    with pytest.raises(
        DesignError, match=f"uses '{word}', which is not a column of the data, nor Python; write {python}"
    ):
        build_design(parse_formula(f"y ~ poly(t, 2, raw={word})"), data)
    design = build_design(parse_formula("y ~ poly(t, 2, raw=True)"), data)
    np.testing.assert_array_equal(design.expert[:, 1:], np.column_stack([data["t"], np.square(data["t"])]))


def test_series_of_a_mapping_belong_together_or_are_refused():
    y = pd.Series([1.0, 2.0, 3.0, 4.5], index=["a", "b", "c", "d"])
    x = pd.Series([2.0, 1.0, 4.0, 3.0], index=["b", "a", "d", "c"])
    with pytest.raises(
        DesignError, match=r"'y' and 'x' have different indexes, 'a' and 'b' in place 0; pass pd\.DataFrame"
    ):
        build_design(parse_formula("y ~ x"), {"y": y, "x": x})
    aligned = build_design(parse_formula("y ~ x"), pd.DataFrame({"y": y, "x": x}))
    np.testing.assert_array_equal(aligned.expert[:, 1], [1.0, 2.0, 3.0, 4.0])
    same = build_design(parse_formula("y ~ x"), {"y": y, "x": x.loc[y.index]})
    np.testing.assert_array_equal(same.expert, aligned.expert)
    arrays = build_design(parse_formula("y ~ x"), {"y": y, "x": x.to_numpy()})
    np.testing.assert_array_equal(arrays.expert[:, 1], x)


@pytest.mark.parametrize(
    ("cell", "change"),
    [("n/a", lambda i: "n/a" if i == 3 else str(i / 7)), ("0,5", lambda i: f"{i},5"), ("=0.5", lambda i: f"={i}.5")],
)
def test_numbers_read_as_text_are_told(cell, change):
    data = pd.DataFrame({"y": np.arange(40.0) ** 2, "x": [change(i) for i in range(40)]})
    with pytest.raises(
        DesignError, match=f"column 'x' in the expert part holds numbers read as text, such as '{cell}'"
    ):
        build_design(parse_formula("y ~ x"), data)
    few = build_design(parse_formula("y ~ x"), data.assign(x=[str(i % 5) for i in range(40)]))
    assert few.expert.shape == (40, 5)
    assert (
        build_design(parse_formula("y ~ C(x)"), data.assign(x=[str(i % 20) for i in range(40)])).expert.shape[1] == 20
    )


@pytest.mark.parametrize("scale", [1e308, 1e-300])
def test_a_response_whose_squares_cannot_be_computed(scale):
    y = np.linspace(-1, 0.5, 40) * scale
    with pytest.raises(
        DesignError, match=r"the response 'y' has the largest value 1e[+-]30[08], in row 0; it must lie"
    ):
        build_design(parse_formula("y ~ x"), pd.DataFrame({"y": y, "x": np.arange(40.0)}))


def test_two_columns_of_one_name_are_refused():
    data = pd.DataFrame({"y": [1.0, 3.0, 2.0], "a": [1.0, 2.0, 5.0], "b": [3.0, 1.0, 1.0], "a:b": [1.0, 0.0, 1.0]})
    with pytest.raises(DesignError, match="two columns of the expert part are called 'a:b'"):
        build_design(parse_formula("y ~ a:b + `a:b`"), data)


def test_many_superfluous_columns_are_told_at_once():
    g = np.random.default_rng(0)
    data = pd.DataFrame({name: g.choice(list("abcdefghijkl"), size=120) for name in "abc"}).assign(y=g.normal(size=120))
    started = time.process_time()
    with pytest.warns(CollinearityWarning) as caught:
        design = build_design(parse_formula("y ~ a*b*c"), data)
    assert time.process_time() - started < 3.0
    cells = len(data[["a", "b", "c"]].drop_duplicates())  # a saturated model has a coefficient for each
    assert design.expert.shape == (120, cells)
    assert np.linalg.matrix_rank(design.expert) == cells
    told = [str(one.message) for one in caught]
    assert len(told) == 6  # five with their reasons, and the rest
    assert told[-1].startswith(f"{12**3 - cells - 5} further columns of the expert part were left out")


def test_columns_without_number_are_refused():
    g = np.random.default_rng(0)
    data = pd.DataFrame({"x": g.normal(size=50), "z": g.normal(size=50), "y": g.normal(size=50)})
    for formula in ("y ~ bs(x, df=60)*bs(z, df=60)", "y ~ x | gate: bs(x, df=60):bs(z, df=60)"):
        with pytest.raises(DesignError, match=r"has 3[67]\d\d columns, 3600 of them by the term .*; at most 3000"):
            build_design(parse_formula(formula), data)


CONTRASTS = ["Sum", "Helmert", "Diff", "Poly", "contr.SAS", "contr.treatment", "Treatment('b')", "contr.poly"]
CONTRASTS += ["[[1, 0], [0, 1], [0, 0]]", "levels=['c', 'b', 'a']", "None"]


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_contrasts_span_the_same_columns(contrast):
    g = np.random.default_rng(0)
    data = pd.DataFrame({"g": g.choice(list("abc"), size=40), "y": g.normal(size=40)})
    made = build_design(parse_formula(f"y ~ C(g, {contrast})"), data).expert
    dummies = pd.get_dummies(data["g"]).to_numpy(dtype=float)
    assert np.linalg.matrix_rank(made) == made.shape[1] == 3
    np.testing.assert_allclose(made @ np.linalg.lstsq(made, dummies, rcond=None)[0], dummies, atol=1e-12)


def test_levels_that_leave_one_out():
    data = pd.DataFrame({"g": list("abcab"), "y": [1.0, 2, 3, 5, 4]})
    with pytest.raises(DesignError, match=r"levels=\[...\] of a category leave out 'c', which the data have"):
        build_design(parse_formula("y ~ C(g, levels=['a', 'b'])"), data)
