"""Bad input, each item of it: a clear message through mm.fit, and nothing changed in the caller's data."""

import re
import warnings

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import (
    ArgumentError,
    AssumptionWarning,
    CollinearityWarning,
    DesignError,
    DroppedRowsWarning,
    FormulaError,
    MixmoeWarning,
)
from mixmoe.inference.cells import _value

FORMULA = "y ~ time + x | gate: z | re: (1 + time | id)"


def good(n=30):
    rng = np.random.default_rng(0)
    subject = np.repeat(np.arange(n), 4)
    late = subject % 2
    time = np.tile(np.arange(4.0), n)
    return pd.DataFrame(
        {
            "id": [f"s{i:02d}" for i in subject],
            "time": time,
            "x": rng.normal(size=4 * n),
            "z": rng.normal(size=n)[subject],
            "g": np.where(subject < n // 2, "a", "b"),
            "y": 20.0 * late
            + time * rng.normal(1, 0.5, n)[subject]
            + rng.normal(size=n)[subject]
            + rng.normal(size=4 * n),
        }
    )


def changed(column, row, value):
    data = good().astype({column: object} if isinstance(value, str) else {})
    data.loc[row, column] = value
    return data


def two_columns_of_one_name():
    data = good()
    return pd.concat([data, data[["x"]]], axis=1)


REFUSED = {
    "typo in the expert part": (
        "y ~ tmie + x | re: (1 | id)",
        good,
        {},
        DesignError,
        r"the expert part uses 'tmie', which is not a column of the data; did you mean 'time'\?.* Columns are: id,",
    ),
    "typo in the response": (
        "Y ~ time | re: (1 | id)",
        good,
        {},
        DesignError,
        r"uses 'Y', which .* did you mean 'y'\?",
    ),
    "typo in the gate": (
        "y ~ time | gate: zz | re: (1 | id)",
        good,
        {},
        DesignError,
        r"uses 'zz', which is not a column",
    ),
    "typo in the subject": ("y ~ time | re: (1 | idd)", good, {}, DesignError, r"uses 'idd', .* did you mean 'id'\?"),
    "gate covariate varies within subject": (
        "y ~ time | gate: x | re: (1 | id)",
        good,
        {},
        DesignError,
        r"the gate covariate 'x' varies within subject 's00' .*must be constant within 'id'; use a baseline value",
    ),
    "infinite covariate": (
        FORMULA,
        lambda: changed("x", 7, np.inf),
        {},
        DesignError,
        r"column 'x' is inf in row 7; values must be finite, so correct them or set them missing",
    ),
    "infinite response": (FORMULA, lambda: changed("y", 9, -np.inf), {}, DesignError, r"column 'y' is -inf in row 9"),
    "infinite term": (
        "y ~ log(time) | re: (1 | id)",
        good,
        {},
        DesignError,
        r"the term 'log\(time\)' of the expert part is -inf in row 0 \(time = 0.0\); terms must be finite",
    ),
    "response text": (
        FORMULA,
        lambda: changed("y", 3, "high"),
        {},
        DesignError,
        r"the response 'y' must be numeric, got 'high' in row 3 .*pd\.to_numeric",
    ),
    "no experts": (
        FORMULA,
        good,
        {"experts": 0},
        ArgumentError,
        r"experts must be a whole number of at least 1, got 0",
    ),
    "half an expert": (FORMULA, good, {"experts": 2.5}, ArgumentError, r"experts must be a whole number .* got 2\.5"),
    "experts as text": (
        FORMULA,
        good,
        {"experts": "two"},
        ArgumentError,
        r"experts must be a whole number .* got 'two'",
    ),
    "experts as truth": (
        FORMULA,
        good,
        {"experts": True},
        ArgumentError,
        r"experts must be a whole number .* got True",
    ),
    "more experts than subjects": (
        FORMULA,
        good,
        {"experts": 31},
        ArgumentError,
        r"experts=31 is more than the 30 subjects in the data; use at most one expert per subject",
    ),
    "no subject column": (
        FORMULA,
        lambda: good().drop(columns="id"),
        {},
        DesignError,
        r"uses 'id', which is not a column of the data",
    ),
    "all rows dropped": (
        FORMULA,
        lambda: good().assign(x=np.nan),
        {},
        DesignError,
        r"all 120 rows have a missing value \(x: 120\); nothing is left to analyse, so leave out the columns",
    ),
    "all subjects missing": (FORMULA, lambda: good().assign(id=None), {}, DesignError, r"all 120 rows .* \(id: 120\)"),
    "empty frame": (FORMULA, lambda: good().iloc[:0], {}, DesignError, r"the data have no rows; pass at least one row"),
    "no frame": (FORMULA, lambda: None, {}, DesignError, r"data must be a DataFrame of pandas, .* got NoneType"),
    "duplicated columns": (
        FORMULA,
        two_columns_of_one_name,
        {},
        DesignError,
        r"the data have 2 columns named 'x'; rename or drop all but one",
    ),
    "response without variance": (
        FORMULA,
        lambda: good().assign(y=3.0),
        {},
        DesignError,
        r"the response 'y' is 3 in all 120 rows; it must vary",
    ),
    "response without noise": (
        FORMULA,
        lambda: good().assign(y=lambda d: 2 + 3 * d["time"]),
        {},
        DesignError,
        r"the expert columns reproduce the response 'y' exactly.*needs a response with noise",
    ),
    "more random effects than rows of any subject": (
        "y ~ time | re: (1 + time + x | id)",
        lambda: good().query("time < 2"),
        {},
        DesignError,
        r"re: has 3 random effects per subject \(Intercept, time, x\), but no subject has more than 2 rows; remove",
    ),
    "collinear random effects": (
        "y ~ time | re: (1 + x + x2 | id)",
        lambda: good().assign(x2=lambda d: 2 * d["x"]),
        {},
        DesignError,
        r"the random effect 'x2' of re: cannot be told from the others: .* remove it from re:",
    ),
    "dates as a covariate": (
        "y ~ when | re: (1 | id)",
        lambda: good().assign(when=pd.Timestamp("2020-01-01")),
        {},
        DesignError,
        r"column 'when' in the expert part holds datetime.* convert it, for example dates to days since a start",
    ),
    "unknown section": ("y ~ time | gates: z", good, {}, FormulaError, r"(?s)gates.*gate.*\n.*\^"),
    "empty section": ("y ~ time | gate: | re: (1 | id)", good, {}, FormulaError, r"(?s)gate.*empty.*\n.*\^"),
    "random effects in the expert part": (
        "y ~ time + (1 | id)",
        good,
        {},
        FormulaError,
        r"(?s)random effects stand in the expert part; move them to their own section, as in \| re: .*\n.*\^",
    ),
    "stray bar": ("y ~ time | | re: (1 | id)", good, {}, FormulaError, r"(?s)\n.*\^"),
    "bar at the end": ("y ~ time | re: (1 | id) |", good, {}, FormulaError, r"(?s)\n.*\^"),
    "no response": ("~ time | re: (1 | id)", good, {}, FormulaError, r"(?s)response.*\n.*\^"),
    "section of another family": (  # seq: asks for a network
        "y ~ time | seq: time | gate: z | re: (last | id)",
        good,
        {},
        FormulaError,
        r"NME has a section 'gate:' for sequences of states only",
    ),
    "marker of another family": (
        "y ~ time | gate: const(z) | re: (1 | id)",
        good,
        {},
        FormulaError,
        r"(?s)const\(\.\.\.\) marks .*; write common\(\.\.\.\).*\n {21}\^{5}$",
    ),
    "no column for the experts": ("y ~ 0 | re: (1 | id)", good, {}, DesignError, r"has no columns; write at least 1"),
    "one row per subject": (
        "y ~ x | re: (1 | id)",
        lambda: good().groupby("id").head(1),
        {},
        DesignError,
        r"each of the 30 subjects has one row, .*; write re: \(0 \| id\)",
    ),
    "response constant within subjects": (
        FORMULA,
        lambda: good().assign(y=lambda d: d.groupby("id")["y"].transform("first")),
        {},
        DesignError,
        r"'y' does not vary within any subject, .*; keep one row per subject",
    ),
    "cells that hold lists": (
        "y ~ x | re: (1 | id)",
        lambda: good().assign(x=[[1, 2]] * 120),
        {},
        DesignError,
        r"column 'x' in the expert part holds list values, such as \[1, 2\]; .*single values",
    ),
    "start that is text": (FORMULA, good, {"start": "best"}, ArgumentError, r"start must hold numbers .*got 'best'"),
    "context that is no mapping": (FORMULA, good, {"context": 3}, ArgumentError, r"context must map names .*got 3"),
    "formula that is no text": (3, good, {}, FormulaError, r"formula must be text.*got (int|3)"),
    "hidden variable": (
        "y ~ time + secret | re: (1 | id)",
        good,
        {},
        DesignError,
        r"uses 'secret', which is not a column",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_it_is_refused_with_a_clear_message(name):
    formula, make, options, error, message = REFUSED[name]
    data, before = make(), make()
    with pytest.raises(error, match=message):
        mm.fit(formula, data, **options)
    if before is not None:
        pd.testing.assert_frame_equal(data, before)


@pytest.mark.parametrize("name", list(REFUSED))
def test_the_message_says_what_to_do(name):
    """What is wrong, with the value; what is allowed; what to do: one sentence is not enough."""
    formula, make, options, error, _ = REFUSED[name]
    with pytest.raises(error) as caught:
        mm.fit(formula, make(), **options)
    text = str(caught.value).split("\n")[0]
    assert len(text) > 40
    assert any(mark in text for mark in (";", ",", "."))
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda d: mm.fit("y ~ time", d, offsets="x"), "did you mean 'offset'?"),
        (lambda d: mm.fit(FORMULA, d, family="nb2"), "did you mean 'nb'?"),
        (lambda d: mm.fit(FORMULA, d, family="poison"), "did you mean 'poisson' or 'zipoisson'?"),
        (lambda d: mm.fit("y ~ Time", d), "did you mean 'time'?"),
        (lambda d: mm.fit("y ~ pol(time, 2)", d), "did you mean 'poly'?"),
        (lambda d: mm.fit_each(["y", "X"], "~ time", d), "did you mean 'x'?"),
        (lambda d: mm.fit_each(["y"], "~ time", d, size_factors="total"), "logarithms of the size factors as offset="),
        (lambda d: mm.fit("y ~ time | gate: HLA-A", d.rename(columns={"z": "HLA-A"})), "goes between backticks"),
    ],
)
def test_slips_of_the_pen_are_told_what_was_meant(call, words):
    with pytest.raises(mm.errors.MixmoeError, match=re.escape(words)):
        call(good())


def test_a_class_refuses_sections_of_another():
    with pytest.raises(FormulaError, match="MEMoE has no section 'seq:'; leave it out, or use NME, which has"):
        mm.MEMoE("y ~ time | seq: time | re: (1 | id)", good())


def test_a_constant_covariate_is_left_out_with_a_warning():
    data = good().assign(c=5.0)
    before = data.copy()
    with pytest.warns(CollinearityWarning, match=r"column 'c' of the expert part was left out: it is constant"):
        fit = mm.fit("y ~ time + c | re: (1 | id)", data, experts=1)
    assert not any(name.endswith(".c") for name in fit.params.index)
    pd.testing.assert_frame_equal(data, before)


@pytest.mark.parametrize("kind", ["int8", "uint8", "uint64", "float16", "float32"])
def test_narrow_and_unsigned_numbers_do_not_wrap_around(kind):
    data = good().assign(time=lambda d: 40 * d["time"])
    wide = mm.fit("y ~ I((time - 50) ** 2) | re: (1 | id)", data, experts=1)
    narrow = mm.fit("y ~ I((time - 50) ** 2) | re: (1 | id)", data.astype({"time": kind}), experts=1)
    assert narrow.llf == pytest.approx(wide.llf, abs=1e-9)


def test_collinear_columns_are_left_out_with_a_warning_that_names_them():
    data = good().assign(half=lambda d: d["x"] / 2)
    with pytest.warns(CollinearityWarning, match=r"column 'half' of the expert part was left out: .*'x'"):
        fit = mm.fit("y ~ x + half | re: (1 | id)", data, experts=1)
    assert fit.params.to_numpy() == pytest.approx(
        mm.fit("y ~ x | re: (1 | id)", data, experts=1).params.to_numpy(), rel=1e-6
    )


def test_a_constant_gate_covariate_is_left_out():
    with pytest.warns(CollinearityWarning, match=r"column 'c' of gate: was left out: it is constant"):
        fit = mm.fit("y ~ time | gate: c | re: (0 | id)", good().assign(c=1.0), rng=0)
    assert [name for name in fit.params.index if name.startswith("gate")] == ["gate2.Intercept"]


def test_missing_values_are_counted_by_subject_and_only_covariates_are_to_be_imputed():
    data = good()
    data.loc[data["id"].isin(["s00", "s01"]), "z"] = np.nan
    data.loc[9, "y"] = np.nan
    with pytest.warns(DroppedRowsWarning) as told:
        mm.fit(FORMULA, data, experts=1)
    said = "9 of 120 rows were left out because of missing values (y: 1, z: 8), among them all rows of 2 of 30 subjects"
    assert str(told[0].message) == f"{said}; impute z to keep them"


def test_subjects_that_a_lag_leaves_without_rows_are_counted():
    data = good()
    data = data[~data["id"].isin(["s00", "s01"]) | ~data["id"].duplicated()]  # of two subjects one row each
    with pytest.warns(DroppedRowsWarning, match="among them all rows of 2 of 30 subjects; lag") as told:
        assert mm.fit("y ~ time + lag(z) | re: (1 | id)", data, experts=1, time="time").n_units == 28
    with pytest.warns(DroppedRowsWarning, match="of none of 30 subjects all"):
        mm.fit("y ~ lag(z) | re: (1 | id)", good(), experts=1, time="time")
    assert len(told) == 1


def test_subjects_that_are_floats_with_missing_values():
    data = good()
    data["id"] = data["id"].str[1:].astype(float)
    complete = mm.fit("y ~ time | re: (1 | id)", data[data["id"] != 3], rng=0)
    data.loc[data["id"] == 3, "id"] = np.nan
    before = data.copy()
    with pytest.warns(DroppedRowsWarning, match=r"4 of 120 rows were left out because of missing values \(id: 4\)"):
        fit = mm.fit("y ~ time | re: (1 | id)", data, rng=0)
    assert fit.n_units == 29
    assert fit.llf == pytest.approx(complete.llf, abs=1e-9)
    pd.testing.assert_frame_equal(data, before)


@pytest.fixture(scope="module")
def fit():
    return mm.fit("y ~ time + C(g) | gate: z | re: (1 | id)", good(), rng=0)


def test_a_subject_unseen_at_prediction_is_a_stranger(fit):
    new = good().iloc[:3].assign(id="nobody")
    known = fit.predict(good().iloc[:3], kind="subject", interval="confidence")
    with pytest.warns(MixmoeWarning, match="1 of the 1 subjects of the new data are not in the fit"):
        stranger = fit.predict(new, kind="subject", interval="confidence")
    np.testing.assert_allclose(
        stranger["mean"], fit.predict(new, kind="mean", interval="confidence")["mean"], rtol=1e-10
    )
    assert (known["mean_se"] < stranger["mean_se"]).all()


def test_a_category_unseen_at_prediction_is_an_error(fit):
    new = good().iloc[:6]
    new.loc[4, "g"] = "c"
    before = new.copy()
    with pytest.raises(
        DesignError, match=r"column 'g' is 'c' in row 4, a category that the fit has not seen; it has .*'a'"
    ):
        fit.predict(new)
    pd.testing.assert_frame_equal(new, before)


def test_other_bad_input_at_prediction(fit):
    with pytest.raises(DesignError, match=r"uses 'time', which is not a column"):
        fit.predict(good().drop(columns="time"))
    with pytest.raises(DesignError, match="the new data have no rows; pass at least one row"):
        fit.predict(good().iloc[:0])
    with pytest.raises(
        DesignError, match=r"column 'time' is 'late' in row 2, but held numbers when the model was fitted"
    ):
        fit.predict(changed("time", 2, "late"))
    with pytest.raises(DesignError, match=r"column 'time' is inf in row 2"):
        fit.predict(changed("time", 2, np.inf))
    with pytest.raises(ArgumentError, match=r"kind must be one of 'all', .*'subject', got 'marginal'"):
        fit.predict(good(), kind="marginal")
    with pytest.raises(
        ArgumentError, match=r"interval='prediction' holds a new response, .* got kind='experts'; use one of these"
    ):
        fit.predict(good(), "experts", interval="prediction")
    with pytest.raises(ArgumentError, match=r"interval must be None, 'confidence' or 'prediction', got True"):
        fit.predict(good(), interval=True)
    with pytest.raises(ArgumentError, match=r"posterior probabilities have no limits, got interval='confidence'"):
        fit.predict(good(), "probabilities", history=good(), interval="confidence")
    with pytest.raises(ArgumentError, match="history needs the column 'id' that names the subjects"):
        fit.predict(good(), history=good().drop(columns="id"))
    with pytest.raises(DesignError, match="uses 'y', which is not a column"):
        fit.predict(good(), history=good().drop(columns="y"))
    with pytest.raises(ArgumentError, match=r"alpha must .*got 5"):
        fit.predict(good(), alpha=5)


@pytest.fixture(scope="module")
def of_text():
    """The fit to a pandas frame whose subjects are text."""
    return mm.fit(FORMULA, good(90), rng=0)


@pytest.mark.parametrize("make", [pd.DataFrame, dict, "polars"], ids=["pandas", "mapping", "polars"])
@pytest.mark.parametrize("subject", ["text", "integer", "category"])
def test_frames_and_ids_of_all_kinds_give_the_same_fit(make, subject, of_text):
    data = good(90)  # fewer do not determine the correlations
    if subject == "integer":
        data["id"] = 1000 - data["id"].str[1:].astype(int)
    if subject == "category":
        data["id"] = pd.Categorical(data["id"], categories=sorted(set(data["id"]))[::-1])
    frame = pytest.importorskip("polars").DataFrame(data.to_dict("list")) if make == "polars" else make(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = mm.fit(FORMULA, frame, start=of_text)
    assert fit.model.loglike(of_text.params) == pytest.approx(of_text.llf, abs=1e-8)
    assert fit.llf == pytest.approx(of_text.llf, abs=1e-8)
    assert set(fit.responsibilities.index) == set(data["id"])


@pytest.mark.parametrize("option", ["weights", "offset", "trials"])
@pytest.mark.parametrize("value", [{"a": 1.0}, 2.0, b"w"])
def test_columns_are_names_or_arrays(option, value):
    family = "binomial" if option == "trials" else "poisson"
    with pytest.raises(ArgumentError, match=rf"{option} must be the name of a column, or an array or Series"):
        mm.MEMoE("y ~ x | re: (1 | id)", good(), family=family, **{option: value})


@pytest.mark.parametrize("option", ["weights", "offset"])
def test_columns_that_count_are_numbers(option):
    data = good().assign(y=1, text="a")
    with pytest.raises(DesignError, match=rf"column 'text' \({option}\) must hold numbers, got 'a' in row 0"):
        mm.MEMoE("y ~ x | re: (1 | id)", data, family="poisson", **{option: "text"})


def test_a_column_named_as_the_constant():
    with pytest.raises(DesignError, match="uses a column 'Intercept', which is the name of the constant; rename"):
        mm.MEMoE("y ~ Intercept | re: (1 | id)", good().assign(Intercept=1.0))


def test_functions_of_other_programs():
    with pytest.raises(DesignError, match=r"calls 'ns'.*; write cr\(x, df=4\) for a natural spline"):
        mm.MEMoE("y ~ ns(time, df=3) | re: (1 | id)", good())


NUMPY = re.compile(r"np\.(int|uint|float|bool|str)")


def visits():
    rng, subject = np.random.default_rng(0), np.repeat(np.arange(20), 3)
    y = rng.normal(size=20)[subject] + rng.normal(size=60)
    return pd.DataFrame({"id": subject, "t": np.tile([0.0, 1, 2], 20), "y": y})


@pytest.mark.parametrize(
    "wrong",
    [
        lambda d: mm.fit("y ~ t | re: (1 | id)", d, np.int64(0)),
        lambda d: mm.fit("y ~ t | re: (1 | id)", d, 1, starts=np.float64(0.5)),
        lambda d: mm.fit("y ~ t | re: (1 | id)", d, 1, tol=np.float64(-1)),
        lambda d: mm.fit("y ~ t | re: (1 | id)", d, 1, cov_type="cluster", cluster=d["t"].to_numpy()),
        lambda d: mm.fit("y ~ t | re: (1 | id)", d, 1, errors="car1", time="id"),
        lambda d: mm.fit("y ~ t | re: (1 | id)", d, 1).summary(alpha=np.float64(2)),
        lambda d: mm.fit("y ~ t | re: (1 | id)", d, 1).relabel([np.int64(2)]),
        lambda d: mm.fit("y ~ t + k | re: (1 | id)", d, 1, context={"k": np.float64(2)}),
        lambda d: mm.simulate.memoe(n_subjects=np.int64(0)),
    ],
)
def test_numbers_of_numpy_read_as_numbers(wrong):
    with pytest.raises((ArgumentError, DesignError), match=r"\d") as caught:
        wrong(visits())
    assert not NUMPY.search(str(caught.value))


@pytest.mark.parametrize("value", [1e300, -1e160, 1e-300])
@pytest.mark.parametrize(
    ("formula", "column", "options"),
    [
        ("y ~ time + huge | re: (1 | id)", "the term 'huge' of the expert part", {}),
        ("y ~ time | gate: fixed | re: (1 | id)", "the term 'fixed' of gate:", {"experts": 2}),
        ("y ~ time | re: (1 + huge | id)", "the term 'huge' of re:", {}),
        ("y ~ time | re: (1 | id) | sigma: huge", "the term 'huge' of sigma:", {}),
        ("huge ~ time | re: (1 | id)", "the response 'huge'", {}),
        ("y ~ time | re: (1 | id)", "offset='huge'", {"offset": "huge"}),
        ("y ~ time | re: (1 | id)", "weights='positive'", {"weights": "positive"}),
        ("y ~ huge | vary: x", "the term 'huge'", {"bandwidth": 1.0}),
        ("y ~ time | vary: x", "the offset", {"bandwidth": 1.0, "offset": "huge"}),
        ("y ~ time | vary: huge", "the index 'huge'", {"bandwidth": 1.0}),
        ("y ~ time | vary: x", "weights", {"bandwidth": 1.0, "weights": "positive"}),
    ],
)
def test_values_whose_products_cannot_be_computed(value, formula, column, options):
    data = good().assign(huge=lambda d: value * (1.0 + d["x"] ** 2), fixed=lambda d: value * (d["g"] == "a"))
    data["positive"] = data["huge"].abs()
    with pytest.raises(DesignError, match=re.escape(column) + r" has the largest value .* must lie between 1e-\d+ and"):
        mm.fit(formula, data, **{"experts": 1, "progress": False, **options})


@pytest.mark.parametrize("family", ["binomial", "poisson", "negbinomial"])
def test_counts_beyond_what_a_link_can_reach(family):
    data = good().assign(k=1e14, many=1e14, y=lambda d: (d["time"] > 1).astype(float))
    trials = {"trials": "many"} if family == "binomial" else {}
    response, what = ("y", "number of trials") if trials else ("k", "response 'k'")
    for formula in (f"{response} ~ x | re: (1 | id)", f"{response} ~ x | vary: time"):
        with pytest.raises(DesignError, match=rf"the {what} is 1e\+14 in row .* it must be at most 1e\+13"):
            mm.fit(formula, data, 1, family=family, progress=False, **trials)


@pytest.mark.parametrize("blank", ["", " ", "NA", "nan", "?"])
def test_levels_that_stand_for_missing_values(blank):
    data = good()
    data.loc[data["id"] < "s05", "g"] = blank
    message = rf"column 'g' is '{re.escape(blank)}' in 20 rows, which is taken for a category of its own"
    for formula in ("y ~ time + g | re: (1 | id)", "y ~ time | gate: C(g) | re: (1 | id)"):
        with pytest.warns(AssumptionWarning, match=message):
            mm.MEMoE(formula, data, 2)
    with pytest.warns(AssumptionWarning, match=message):
        mm.VCMoE("y ~ g | vary: x", data, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mm.MEMoE("y ~ time + g | re: (1 | id)", data.assign(g=data["g"].replace(blank, "none of these")), 2)


@pytest.mark.parametrize("other", ["a ", " a", "A"])
def test_levels_that_differ_only_in_blanks_or_case(other):
    data = good()
    data["g"] = np.where(data["id"] < "s20", "a", "b")
    data.loc[data["id"] < "s05", "g"] = other
    n = int((data["g"] == "a").sum())
    message = (
        r"column 'g' has categories that differ only in blanks, case or the form of accents: "
        rf"'a' \({n} rows\) and {other!r} \(20 rows\);"
    )
    for formula in ("y ~ time + g | re: (1 | id)", "y ~ time | gate: C(g) | re: (1 | id)"):
        with pytest.warns(AssumptionWarning, match=message):
            mm.MEMoE(formula, data, 2)
    with pytest.warns(AssumptionWarning, match=message):
        mm.VCMoE("y ~ g | vary: x", data, 1)
    assert _value(other) == (other if other.strip() == other else repr(other))  # as flags name it


def test_labels_that_are_spelt_twice():
    """An accent is one code point or two, whatever the program that wrote the file: both look alike."""
    data = good()
    two = data.assign(id="Zo\u00eb" + data["id"])
    two.loc[two["time"] > 1, "id"] = two["id"].str.replace("\u00eb", "e\u0308")
    with pytest.warns(
        AssumptionWarning, match=r"column 'id' has labels .*: 'Zoe\\u0308s00' .* and 'Zo\\xebs00' .*; \.\.\.;"
    ):
        mm.MEMoE("y ~ time | re: (1 | id)", two, 1)
    data["id"] = data["id"].astype(str)
    data.loc[:3, "id"] = "NA"
    with pytest.warns(AssumptionWarning, match="column 'id' is 'NA' in 4 rows, which is taken for a label of its own"):
        mm.MEMoE("y ~ time | re: (1 | id)", data, 1)


def test_states_that_are_spelt_twice():
    pytest.importorskip("torch")
    states = pd.DataFrame({"id": np.repeat(list("abcdef"), 6), "k": np.tile(np.arange(6), 6), "x": np.arange(36) % 5})
    states["s"] = np.where(states["k"] % 2, "Calm", "tense")
    states.loc[1, "s"] = "calm "
    with pytest.warns(
        AssumptionWarning, match=r"column 's' has categories .*: 'Calm' \(17 rows\) and 'calm ' \(1 rows\)"
    ):
        mm.NME("s ~ x | re: (0 | id)", states, hidden=())


def test_nothing_is_to_be_imputed_in_rows_without_a_response():
    data = good()
    data.loc[:5, ["y", "z"]] = np.nan
    with pytest.warns(DroppedRowsWarning, match=r"of none of 30 subjects all$|all rows of 1 of 30 subjects$"):
        mm.MEMoE(FORMULA, data, 1)
    with pytest.warns(DroppedRowsWarning, match="subjects$|subjects all$"):
        mm.MEMoE(FORMULA.replace("y ~", "np.exp(y) ~"), data, 1)


def test_the_order_of_texts_is_that_of_no_time():
    data = good().assign(when=lambda d: (d.groupby("id").cumcount() + 8).astype(str) + ".3.2026")
    with pytest.raises(DesignError, match=r"'when', by which lag\(\) arranges the rows, is '8.3.2026'"):
        mm.MEMoE("y ~ lag(x) | re: (1 | id)", data, 1, time="when")


def test_errors_by_row_of_rows_that_are_not_in_the_order_of_time():
    mixed = good().sample(frac=1, random_state=0)
    with pytest.warns(AssumptionWarning, match="errors='ar1' takes the row before as the rows stand, and in .* 'time'"):
        mm.MEMoE("y ~ time + x | re: (1 | id)", mixed, 1, errors="ar1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mm.MEMoE("y ~ time + x | re: (1 | id)", mixed, 1, errors="ar1", time="time")


def test_lags_of_rows_that_are_not_in_the_order_of_time():
    data = good().assign(
        day=lambda d: d.groupby("id").cumcount(),
        date=lambda d: pd.Timestamp("2026-01-01") + pd.to_timedelta(d["day"], "D"),
    )
    mixed = data.sample(frac=1, random_state=0)
    formula = "y ~ x + lag(x) | re: (1 | id)"
    message = r"lag\(x\) takes the row before as the rows stand, and in \d+ of \d+ subjects .* in the order of '{}';"
    for frame, name in ((mixed.drop(columns="time"), "day"), (mixed.drop(columns=["time", "day"]), "date")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            mm.MEMoE(formula, frame, 1)
        (said,) = [str(one.message) for one in caught if one.category is AssumptionWarning]
        assert re.search(message.format(name) + rf".*data.sort_values\(\['id', '{name}'\]\)", said)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DroppedRowsWarning)
        mm.MEMoE(formula, data, 1)
        mm.MEMoE(formula, mixed, 1, time="day")
        mm.MEMoE(formula, mixed.sort_values("day").drop(columns=["time", "date"]), 1)
        # Numbers that are no time: measured ones in no order beside those that are in order, or none at all.
        mm.MEMoE(formula, data.assign(pulse=np.random.default_rng(0).permutation(len(data))), 1)
        mm.MEMoE(formula, mixed.drop(columns=["time", "day", "date"]), 1)


def test_rows_that_are_there_twice():
    data = good()
    with pytest.warns(AssumptionWarning, match="120 of 240 rows are copies of other rows of the same subject"):
        mm.MEMoE("y ~ time | re: (1 | id)", pd.concat([data, data]), 1)
    tied = data.assign(
        y=np.exp(data["y"]), time=0.0
    )  # no time tells rows apart, and the response stands in a transform
    with pytest.warns(AssumptionWarning, match="120 of 240 rows are copies of other rows of the same subject"):
        mm.MEMoE("log(y) ~ g | re: (1 | id)", pd.concat([tied, tied]), 1)
    other = pd.concat([data, data.assign(id="other " + data["id"])])  # other subjects, as a resample has them
    counts = data.assign(y=np.round(data["y"]))  # of which chance makes equal ones
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mm.MEMoE("y ~ time | re: (1 | id)", other, 1)
        mm.MEMoE("y ~ g | re: (1 | id)", pd.concat([counts, counts]).assign(y=1.0 * (data["y"] > 0)), 1)


@pytest.mark.parametrize("digits", [0, 1])
def test_rows_twice_at_the_same_time(digits):
    """A subject has one measurement at a time: copies are told of whatever is measured, however it is rounded."""
    data = good()
    rounded = data.assign(y=data["y"].round(digits))
    twice = pd.concat([rounded, rounded], ignore_index=True).sample(frac=1, random_state=1)
    with pytest.warns(AssumptionWarning, match="120 of 240 rows are copies of other rows of the same subject"):
        mm.MEMoE("y ~ time | re: (1 | id)", twice, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = pd.concat([rounded, rounded.assign(time=rounded["time"] + 10.0)])  # at other times
        mm.MEMoE("y ~ time | re: (1 | id)", again, 2)


def test_a_misspelt_option_is_told_before_the_formula_that_it_breaks():
    with pytest.raises(ArgumentError, match="fit has no option 'hiden'"):
        mm.fit("y ~ x | re: (last | id)", good(), hiden=(3,))
