"""What tables say of functions that lack bands, standard errors or tests."""

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.inference.wald import InvalidTest
from mixmoe.mixture.estimate import Flag
from mixmoe.output.text import WIDTH
from mixmoe.varying.function_frames import LOST, OUTSIDE, THIN
from mixmoe.varying.function_tables import band_remarks
from mixmoe.varying.identifiability import WANTS_WIDER

LARGER, SMALLER = "use a larger bandwidth", "a smaller bandwidth"


def two_groups(slope, n=400, index="u"):
    """Experts so far apart that memberships are known, and a gate as steep as is wanted."""
    rng = np.random.default_rng(8)
    u, x = rng.uniform(size=n), rng.normal(size=n)
    second = rng.uniform(size=n) < 1.0 / (1.0 + np.exp(-slope * x))
    return pd.DataFrame({"y": 8.0 * second + np.sin(3.0 * u) + 0.5 * rng.normal(size=n), index: u, "x": x})


def fitted(slope=1.0, gate="x", index="u", **options):
    data = two_groups(slope, index=index)
    given = {"bandwidth": 0.4, "n_grid": 12, "rng": 0, "starts": 2} | options
    return mm.fit(f"y ~ 1 | gate: {gate} | vary: {index}", data, 2, **given)


@pytest.fixture(scope="module")
def steep():
    with pytest.warns(mm.errors.BoundaryWarning, match="no rows"):
        return fitted(14.0)


@pytest.fixture(scope="module")
def plain():
    return fitted()


def notes(fit, marks, flags=()):
    """The notes where bands have these marks, each at one grid point."""
    bands = fit.bands(rng=0)
    bands["mark"] = [*marks, *[""] * (len(bands) - len(marks))]
    return " ".join(r.message for r in band_remarks(fit.model, bands, [Flag(code, "") for code in flags]))


@pytest.mark.parametrize("lacking", [LOST, THIN])
def test_one_direction_is_advised(plain, lacking):
    assert notes(plain, []) == ""
    alone = notes(plain, [OUTSIDE])
    assert SMALLER in alone
    assert LARGER not in alone
    both = notes(plain, [OUTSIDE, lacking])
    assert LARGER in both
    assert SMALLER not in both
    assert both.index(LARGER) < both.index("believe the band")  # what lacks comes first


@pytest.mark.parametrize("code", WANTS_WIDER)
def test_flags_that_want_a_larger_bandwidth_count(plain, code):
    assert SMALLER not in notes(plain, [OUTSIDE], [code])
    assert SMALLER in notes(plain, [OUTSIDE], ["few_clusters"])


@pytest.mark.parametrize("lacking", [LOST, THIN])
def test_a_wide_bandwidth_is_not_to_grow(lacking):
    wide = fitted(bandwidth=0.8)
    assert SMALLER in notes(wide, [])
    text = notes(wide, [OUTSIDE, lacking])
    assert SMALLER not in text
    assert LARGER not in text
    assert "fewer experts" in text


def test_an_infinite_function_has_no_test(steep):
    frame, tests = steep.to_frame(), steep.test_varying(method="asymptotic")
    infinite = frame.index.str.startswith("gate2.x(")
    assert frame.loc[infinite, ["std_error", "p_value", "conf_low"]].isna().all(axis=None)
    assert frame.loc[~infinite, "std_error"].notna().all()
    assert tests["p_value"].isna().to_dict() == {name: name in ("gate2.x", "all") for name in tests.index}
    for which in ("gate2.x", "gate", ["expert1.Intercept", "gate2.x"]):
        test = steep.test_varying(which, n_boot=19)
        assert isinstance(test, InvalidTest)
        assert "gate2.x is infinite in part of the index" in str(test)
    assert steep.test_varying("experts", method="asymptotic").pvalue < 0.05


def test_an_infinite_function_is_marked(steep):
    tables = {table.key: table for table in steep.tables()}
    rows = dict(zip(tables["functions"].index, tables["functions"].cells, strict=True))
    assert np.isnan(rows["gate2.x"][-1])
    assert all(cell.endswith("^") for cell in rows["gate2.x"][:2])
    assert not any(str(cell).endswith("^") for name, row in rows.items() if name != "gate2.x" for cell in row)
    assert "^ gate2.x is infinite where the gate leaves an expert no rows" in tables["gate"].notes[1]


def test_averages_keep_their_standard_errors(steep, plain):
    assert np.isfinite(steep.gate_effects().to_frame()["std_error"]).all()
    assert plain.cov.bounded is None


def test_constants_without_standard_errors_are_explained(tmp_path):
    with pytest.warns(mm.errors.BoundaryWarning, match="no rows"):
        fit = fitted(14.0, gate="const(x)")
    (table,) = [table for table in fit.tables() if table.key == "constants"]
    assert table.cells[table.index.index("gate2.x")][1:] == (None,) * 5
    assert table.notes[0].startswith("gate2.x is infinite where the gate leaves")
    fit.save(tmp_path / "fit.mixmoe")
    assert mm.load(tmp_path / "fit.mixmoe").bse.isna().equals(fit.bse.isna())


def test_constants_on_their_limit_are_explained():
    rng = np.random.default_rng(2)
    u = rng.uniform(size=200)
    data = pd.DataFrame({"y": rng.binomial(20, 0.3 + 0.2 * u), "u": u})  # less variable than Poisson
    with pytest.warns(mm.errors.BoundaryWarning, match="theta is at its ceiling"):
        fit = mm.fit("y ~ 1 | vary: u", data, 1, family="negbinomial", dispersion="const", bandwidth=0.4, n_grid=12)
    (table,) = [table for table in fit.tables() if table.key == "constants"]
    assert table.cells[0][1] is None
    (note,) = table.notes
    assert note.startswith(f"No valid standard error for {table.index[0]}: on the boundary or not identified")


def test_names_of_an_index_do_not_cut_tables(plain):
    long = fitted(index="pseudotime")
    short = next(table for table in plain.tables() if table.key == "expert1")
    table = next(table for table in long.tables() if table.key == "expert1")
    assert [head.removeprefix("u=") for head in short.columns] == list(table.columns)
    assert short.columns[0].startswith("u=")
    assert "at values of pseudotime" in table.title
    text = str(long.summary())
    assert "(continued)" not in text
    assert max(map(len, text.splitlines())) <= WIDTH


def counts(n=150):
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"hour": rng.uniform(0.0, 24.0, n), "x": rng.normal(size=n)})
    data["y"] = rng.poisson(np.exp(1.0 + 0.3 * data["x"]))
    return data


def test_rate_ratios_of_experts_with_a_log_link():
    fit = mm.fit("y ~ const(x) | vary: hour", counts(), 1, family="poisson", bandwidth=12.0, n_grid=8)
    plain, ratios = fit.to_frame(), fit.to_frame(exponentiate=True)
    for name in ("estimate", "conf_low", "conf_high"):
        np.testing.assert_allclose(ratios[name], np.exp(plain[name]))
    np.testing.assert_allclose(ratios["std_error"], plain["std_error"] * np.exp(plain["estimate"]))
    assert ratios.loc["expert1.x", "estimate"] == pytest.approx(np.exp(0.3), abs=0.2)


def test_experts_on_the_scale_of_the_response_have_no_ratios(plain):
    ratios = plain.to_frame(exponentiate=True)
    expert = ratios["block"] == "expert"
    assert ratios.loc[expert, "estimate"].tolist() == plain.to_frame().loc[expert, "estimate"].tolist()
    assert not ratios.loc[ratios["block"] == "gate", "estimate"].equals(plain.to_frame()["estimate"])


@pytest.mark.parametrize(
    ("formula", "bandwidth", "said"),
    [
        ("y ~ x | vary: hour", np.inf, ""),
        ("y ~ const(x) | vary: hour", 12.0, " of the functions"),
        ("y ~ x | vary: hour", 12.0, ""),
    ],
)
def test_the_small_sample_correction_is_said_of_what_has_one(formula, bandwidth, said):
    """Constants rest on all rows, and have the plain sandwich: with and without the correction the same at infinity."""
    fit = mm.fit(formula, counts(), 1, family="poisson", bandwidth=bandwidth)
    note = f"small-sample correction{said} by the leverage of each row"
    assert (note in " ".join(str(fit.summary()).split())) == np.isfinite(bandwidth)
    without = mm.fit(formula, counts(), 1, family="poisson", bandwidth=bandwidth, correction=False)
    assert np.array_equal(fit.bse, without.bse) == np.isinf(bandwidth)


def test_values_outside_the_range_are_named(plain):
    with pytest.raises(mm.errors.ArgumentError, match=r"^at must lie within .*, got \[7.0, 20.0\]"):
        plain.summary(at=[0.5, 7, 20])
    with pytest.raises(mm.errors.ArgumentError, match=r"^u must lie within .*, got \[7.0\]"):
        plain.functions([0.5, 7])


def test_bands_say_their_bandwidth(plain):
    assert plain.bands().attrs["bandwidth"] == pytest.approx(0.4)
    assert "robust bias correction. P const." in " ".join(str(plain.summary()).split())
    searched = fitted(bandwidth="cv")
    own = searched.bands().attrs["bandwidth"]
    assert own < 0.99 * searched.bandwidth
    assert f"robust bias correction at bandwidth {own:.4g}." in " ".join(str(searched.summary()).split())


def test_differences_of_constants_are_no_curves():
    data = two_groups(1.0).assign(z=lambda d: np.cos(np.arange(len(d))))
    fit = mm.fit("y ~ const(z) | gate: x | vary: u", data, 2, bandwidth=0.4, n_grid=12, rng=0, starts=2)
    assert [curve.panel for curve in fit.curves("differences")] == ["expert2.Intercept - expert1.Intercept"]


@pytest.mark.parametrize(
    ("period", "said"), [(24.0, "24 (cyclic)"), (12.0, "12 (cyclic; the data go round 1.94 times)")]
)
def test_turns_of_a_cyclic_index_are_counted(period, said):
    fit = mm.fit(f"y ~ x | vary: cyclic(hour, {period:g})", counts(), 1, family="poisson", bandwidth=5.0, n_grid=12)
    assert f"hour, 0 to {said}" in str(fit.summary())
