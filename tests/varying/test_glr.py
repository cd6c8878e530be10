"""The test of whether coefficients vary."""

import numpy as np
import pytest
from scipy.stats import chi2

from mixmoe.errors import ArgumentError
from mixmoe.varying.glr import GLRTest, scaled_chi_square
from mixmoe.varying.model import VCMoE
from mixmoe.varying.presets import vcmoe

FORMULA = "y ~ z1 | gate: x1 | vary: u"
P_VALUES = 0.02  # the bar: largest difference of p-values between grids


@pytest.fixture(scope="module")
def fit():
    return VCMoE(FORMULA, vcmoe(n=400, rng=1).data, bandwidth=0.3).fit(rng=0, starts=4)


def test_variation_is_found_and_its_absence_not(fit):
    frame = fit.functions().query("term == 'Intercept' and block == 'expert'").groupby("expert")["estimate"].mean()
    low = int(frame.idxmin())
    assert fit.test_varying(f"expert{low}.Intercept", n_boot=19, rng=0).pvalue == 0.05
    still = VCMoE(FORMULA, vcmoe("constant", 400, rng=3).data, bandwidth=0.3).fit(rng=0, starts=4)
    assert still.test_varying("experts", n_boot=39, rng=0).pvalue > 0.05


@pytest.mark.parametrize("method", ["asymptotic", "calibrated"])
def test_other_null_distributions(fit, method):
    test = fit.test_varying("all", method=method, n_boot=80, rng=0)
    assert test.pvalue < 1e-4
    assert test.df > 5.0
    assert test.method == method
    assert "GLR test" in str(test)


def test_summary_has_the_asymptotic_p_values(fit):
    tests = fit.test_varying(method="asymptotic")["p_value"]
    table = next(table for table in fit.tables() if table.key == "functions")
    where = table.columns.index("P const.")
    shown = {name: cells[where] for name, cells in zip(table.index, table.cells, strict=True)}
    assert shown == tests.to_dict()


@pytest.mark.parametrize("method", ["asymptotic", "calibrated"])
def test_p_value_follows_from_statistic_scale_and_df(fit, method):
    test = fit.test_varying("expert1.z1", method=method, n_boot=76, rng=0)
    assert test.pvalue == pytest.approx(chi2.sf(test.scale * test.statistic, test.df), rel=1e-12)
    assert f"scale {test.scale:.2f}, df {test.df:.2f}" in str(test)


def test_groups_name_their_functions(fit):
    assert fit.test_varying("dispersion", method="asymptotic").functions == ("sigma1", "sigma2")
    both = fit.test_varying(["expert1.z1", "gate"], method="asymptotic")
    assert both.functions == ("expert1.z1", "gate2.Intercept", "gate2.x1")


def test_default_is_a_table_of_all(fit):
    frame = fit.test_varying(method="asymptotic")
    assert list(frame.index) == [
        "expert1.Intercept", "expert1.z1", "expert2.Intercept", "expert2.z1",
        "sigma1", "sigma2", "gate2.Intercept", "gate2.x1", "all",
    ]  # fmt: skip
    assert frame["p_value"].between(0.0, 1.0).all()


@pytest.mark.parametrize(("seed", "amplitude", "name"), [(5, 0.0, "expert1.z1"), (6, 0.3, "gate2.x1")])
def test_grid_does_not_decide(seed, amplitude, name):
    data = vcmoe(n=200, rng=seed, amplitude=amplitude).data
    found = []
    for n_grid in (25, 80):
        fit = VCMoE(FORMULA, data, bandwidth=0.4, n_grid=n_grid).fit(rng=0, starts=2)
        exact = fit.test_varying(name, method="asymptotic")
        found.append((exact.statistic, exact.pvalue, fit.test_varying(name, n_boot=19, rng=0).pvalue))
    statistics, asymptotic, bootstrap = np.array(found).T
    assert np.ptp(statistics) < 0.1
    assert np.ptp(asymptotic) < P_VALUES
    assert np.ptp(bootstrap) <= 0.05 + 1e-12  # one of the 19 draws


def test_grid_of_the_fit_is_not_that_of_the_test():
    data = vcmoe(n=500, rng=300002, amplitude=0.0).data  # a weakly determined end, where 25 points find another fit
    tests = [
        VCMoE(FORMULA, data, bandwidth=0.2, n_grid=g).fit(rng=0).test_varying("expert1.Intercept", method="asymptotic")
        for g in (20, 25, 50, 80)
    ]
    np.testing.assert_allclose([t.statistic for t in tests], tests[2].statistic, atol=1e-3)


def test_labels_do_not_decide(fit):
    other = fit.relabel([2, 1])
    for mine, theirs in (("expert1.z1", "expert2.z1"), ("gate", "gate"), ("dispersion", "dispersion")):
        a = fit.test_varying(mine, method="asymptotic").statistic
        b = other.test_varying(theirs, method="asymptotic").statistic
        assert a == pytest.approx(b, abs=1e-3)
    mine, theirs = (f.test_varying(n, n_boot=19, rng=1) for f, n in ((fit, "expert1.z1"), (other, "expert2.z1")))
    np.testing.assert_allclose(mine.null, theirs.null, atol=0.01)  # refits stop at 1e-4
    assert mine.pvalue == theirs.pvalue


def test_unknown_names_are_refused(fit):
    with pytest.raises(ArgumentError, match=r"no varying function is called 'expert3\.z1'"):
        fit.test_varying("expert3.z1")
    flat = VCMoE(FORMULA, vcmoe(n=200, rng=1).data, bandwidth=np.inf).fit(rng=0, starts=2)
    with pytest.raises(ArgumentError, match="no function varies along the index"):
        flat.test_varying()
    with pytest.raises(ArgumentError, match="method must be one of"):
        fit.test_varying("all", method="exact")


def test_draws_with_a_negative_mean_have_no_chi_square():
    null = np.array([-2.0, -1.0, 0.5])
    law = scaled_chi_square(float(null.mean()), float(null.var(ddof=1)))
    assert np.isnan([law.scale, law.df]).all()
    printed = str(GLRTest(("expert1.z",), -0.6, law.scale, law.df, 0.75, "bootstrap", 3, -10.6, -10.0, null))
    assert "scale -" not in printed
    assert "nan" not in printed
    for words in ("The statistic is negative", "2 of the 3 statistics under the null are negative"):
        assert words in " ".join(printed.split())


def test_the_law_has_the_mean_and_variance_it_is_given():
    law = scaled_chi_square(3.0, 2.5)
    assert chi2.mean(law.df) / law.scale == pytest.approx(3.0)
    assert chi2.var(law.df) / law.scale**2 == pytest.approx(2.5)
