"""Joint tests of terms against hypotheses written out, statsmodels' own, and what must not change them."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

import mixmoe as mm
from mixmoe.errors import ArgumentError
from tests.check.helpers import pbc
from tests.fits import carried

NUMBERS = ["df", "statistic", "p_value", "df_equal", "statistic_equal", "p_value_equal"]


@pytest.fixture(scope="module")
def data():
    """Rows with a category of three levels that acts on both experts and on membership."""
    rng = np.random.default_rng(4)
    n, visits = 150, 5
    arm = rng.choice(["a", "b", "c"], n)
    second = rng.random(n) < np.where(arm == "c", 0.6, 0.4)
    frame = pd.DataFrame({"id": np.repeat(np.arange(n), visits), "time": np.tile(np.arange(visits), n)})
    frame["arm"], frame["x"] = arm[frame["id"]], rng.normal(size=len(frame))
    late = second[frame["id"]]
    mean = np.where(late, 6 - frame["time"], 1 + 0.5 * frame["time"]) + 0.4 * (frame["arm"] == "b") * late
    return frame.assign(y=mean + 0.5 * rng.normal(size=n)[frame["id"]] + 0.4 * rng.normal(size=len(frame)))


FORMULA = "y ~ time + C(arm) + common(x) | gate: C(arm) | re: (1 | id)"


@pytest.fixture(scope="module")
def fit(data):
    return carried(FORMULA, data)


def row(found, block, term):
    frame = found.to_frame()
    (one,) = frame[(frame["block"] == block) & (frame["term"] == term)].to_dict("records")
    return one


def test_terms_are_the_hypotheses_written_out(fit):
    found = fit.wald_test_terms()
    terms = found.to_frame()[["block", "term"]].to_numpy().tolist()
    expert = ["Intercept", "time", "C(arm)"]
    assert terms == [*(["expert", t] for t in expert), ["common", "x"], ["gate", "Intercept"], ["gate", "C(arm)"]]
    arms = [f"expert{k}.C(arm)[T.{a}]" for k in (1, 2) for a in "bc"]
    zero = fit.wald_test([f"{name} = 0" for name in arms])
    equal = fit.wald_test([f"{arms[i]} = {arms[i + 2]}" for i in range(2)])
    one = row(found, "expert", "C(arm)")
    expected = [4, zero.statistic, zero.pvalue, 2, equal.statistic, equal.pvalue]
    assert [one[name] for name in NUMBERS] == pytest.approx(expected)
    gate = fit.wald_test(["gate2.C(arm)[T.b] = 0", "gate2.C(arm)[T.c] = 0"])
    one = row(found, "gate", "C(arm)")
    assert [one["df"], one["statistic"], one["p_value"]] == pytest.approx([2, gate.statistic, gate.pvalue])
    assert np.isnan([one[name] for name in NUMBERS[3:]]).all()
    shared = row(found, "common", "x")
    assert shared["statistic"] == pytest.approx(fit.tvalues["common.x"] ** 2)


def test_one_expert_has_the_terms_of_statsmodels(data):
    rows = data.groupby("id").head(1)
    ours = mm.fit("y ~ x * C(arm)", rows, 1, cov_type="nonrobust").wald_test_terms()
    ols = smf.glm("y ~ x * C(arm)", rows).fit()  # chi-squared tests, with the variance over n - p
    peer = ols.wald_test_terms(scalar=True).table
    assert set(peer.index) == {"Intercept", "x", "C(arm)", "x:C(arm)"}
    for term, test in peer.iterrows():
        found = row(ours, "expert", term)
        assert found["df"] == test["df_constraint"]
        assert found["statistic"] * ols.df_resid / ols.nobs == pytest.approx(test["statistic"], rel=1e-5)
        assert np.isnan(found["df_equal"])


@pytest.mark.parametrize("engine", ["formulaic", "patsy"])
def test_engines_and_labels_do_not_matter(engine, data, fit):
    other = carried(FORMULA, data, formula_engine=engine)
    expected, found, swapped = (  # patsy puts categories first
        one.wald_test_terms().to_frame().sort_values(["block", "term"])[NUMBERS]
        for one in (fit, other, other.relabel([2, 1]))
    )
    for other in (found, swapped):
        np.testing.assert_array_equal(other[["df", "df_equal"]], expected[["df", "df_equal"]])
        for names in (["statistic", "statistic_equal"], ["p_value", "p_value_equal"]):
            # A maximum found twice differs by 1e-7 standard errors: much of the square of a z of .05, or of 1e-279.
            np.testing.assert_allclose(np.sqrt(other[names]), np.sqrt(expected[names]), rtol=1e-6, atol=1e-6)


def test_terms_that_cannot_be_tested_say_why():
    """The gate is separated: log odds are infinite."""
    rng = np.random.default_rng(0)
    z = np.repeat([0.0, 1.0], 40)
    rows = pd.DataFrame({"id": np.repeat(np.arange(80), 4), "z": np.repeat(z, 4), "time": np.tile(np.arange(4), 80)})
    rows["y"] = 20 * rows["z"] + rows["time"] + rng.normal(size=80)[rows["id"]] + rng.normal(size=320)
    with pytest.warns(mm.errors.BoundaryWarning, match="gate covariate z leaves no subjects to expert"):
        fit = carried("y ~ time | gate: z | re: (1 | id)", rows)
    found = fit.wald_test_terms()
    assert np.isnan(row(found, "gate", "z")["p_value"])
    assert row(found, "expert", "time")["p_value"] < 1e-4
    assert "z: gate2.z has no valid standard error" in " ".join(str(found).split()).replace("gate2.Intercept, ", "")


def test_they_print_as_tables(fit):
    found = fit.wald_test_terms()
    text = str(found)
    assert [table.key for table in found.tables()] == ["expert", "common", "gate"]
    for part in (
        "Terms of the experts, all experts together",
        "C(arm)",
        "Zero: chi2",
        "Equal: chi2",
        "robust covariance",
    ):
        assert part in text
    assert "<table" in found._repr_html_()


def test_other_families_refuse():
    data = mm.simulate.vcmoe("well_separated", n=200, rng=1).data
    fit = mm.fit("y ~ z1 | gate: x1 | vary: u", data, experts=2, bandwidth=0.4, rng=0)
    with pytest.raises(ArgumentError, match="VCMoE has no wald_test_terms: coefficients that vary are tested as"):
        fit.wald_test_terms()


def test_covariances_of_the_random_effects():
    fit = pbc()
    for k in (1, 2):
        found, p = fit.cov_re.loc[f"expert{k}"], fit.params
        sd = p[[f"sd{k}(Intercept|id)", f"sd{k}(year|id)"]].to_numpy()
        corr = np.array([[1, p[f"corr{k}(Intercept,year|id)"]], [p[f"corr{k}(Intercept,year|id)"], 1]])
        np.testing.assert_allclose(found, corr * np.outer(sd, sd), rtol=1e-10)
        assert list(found.index) == list(found.columns) == ["Intercept", "year"]
    assert mm.fit("bili ~ age", mm.datasets.load("pbcseq"), experts=1).cov_re.empty
