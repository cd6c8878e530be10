"""Rubin's rules against R's mice, a computation by hand, and fits whose labels differ."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

import mixmoe as mm
from mixmoe.errors import ArgumentError
from mixmoe.inference.wald import InvalidTest
from mixmoe.multiple_imputation import rubin

MICE = json.loads((Path(__file__).parent / "golden" / "mice.json").read_text())
FORMULA = "y ~ time + x1 | gate: z1 + z2 | re: (1 + time | id)"


@pytest.fixture(scope="module")
def linear():
    return [
        mm.fit("bmi ~ hyp + chl", pd.DataFrame(data), experts=1, method="reml", cov_type="nonrobust", progress=False)
        for data in MICE["data"]
    ]


@pytest.fixture(scope="module")
def mixtures():
    data = mm.simulate.memoe("separated", n_subjects=60, rng=1).data
    rng = np.random.default_rng(2)
    unknown = rng.random(len(data)) < 0.3
    fits = []
    for _ in range(3):
        x1 = np.where(unknown, data["x1"] + rng.normal(scale=0.5, size=len(data)), data["x1"])
        fits.append(mm.fit(FORMULA, data.assign(x1=x1), experts=2, rng=0, starts=4, progress=False))
    return fits


def test_linear_models_equal_mice(linear):
    pooled, mice = mm.pool(linear, df=22), pd.DataFrame(MICE["pooled"])
    names = ["expert1.Intercept", "expert1.hyp", "expert1.chl"]
    found = pooled.to_frame().loc[names]
    for ours, theirs in (("estimate", "estimate"), ("std_error", "std.error"), ("statistic", "statistic"),
                         ("df", "df"), ("p_value", "p.value"), ("conf_low", "low"), ("conf_high", "high"),
                         ("riv", "riv"), ("fmi", "fmi")):  # fmt: skip
        np.testing.assert_allclose(found[ours], mice[theirs], rtol=2e-5, err_msg=ours)
    test = pooled.wald_test("expert1.chl = 0")
    assert test.pvalue == pytest.approx(mice["p.value"][2], rel=2e-5)
    assert test.df_resid == pytest.approx(mice["df"][2], rel=2e-5)


def test_standard_deviations_are_pooled_on_the_log_scale(mixtures):
    pooled = mm.pool(mixtures)
    name = "sd1(time|id)"
    logs = np.log([fit.params[name] for fit in mixtures])
    within = np.mean([(fit.bse[name] / fit.params[name]) ** 2 for fit in mixtures])
    total = within + 4 / 3 * logs.var(ddof=1)
    assert pooled.params[name] == pytest.approx(np.exp(logs.mean()))
    assert pooled.bse[name] == pytest.approx(np.exp(logs.mean()) * np.sqrt(total))
    share = 4 / 3 * logs.var(ddof=1) / total
    df = 2 / share**2
    half = student.isf(0.025, df) * np.sqrt(total)
    np.testing.assert_allclose(pooled.conf_int().loc[name], np.exp(logs.mean() + np.array([-half, half])), rtol=1e-8)
    assert pooled.pvalues.isna()[name]


def test_shares_of_certain_zeros_are_pooled_as_log_odds():
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"u": rng.uniform(size=300), "x": rng.normal(size=300)})
    data["y"] = rng.poisson(np.exp(1.0 + 0.3 * data["x"])) * (rng.uniform(size=300) < 0.7)
    fits = [
        mm.fit("y ~ x | vary: u", data.assign(x=data["x"] + 0.1 * i * rng.normal(size=300)), 1, family="zipoisson",
               bandwidth=0.5, n_grid=10, progress=False)
        for i in range(3)
    ]  # fmt: skip
    pooled = mm.pool(fits)
    name = next(name for name in pooled.params.index if name.startswith("zeros1"))
    shares = np.array([fit.params[name] for fit in fits])
    odds = np.log(shares / (1.0 - shares))
    within = np.mean([(fit.bse[name] / (p * (1.0 - p))) ** 2 for fit, p in zip(fits, shares, strict=True)])
    share = 1.0 / (1.0 + np.exp(-odds.mean()))
    assert pooled.params[name] == pytest.approx(share)
    assert pooled.bse[name] == pytest.approx(share * (1.0 - share) * np.sqrt(within + 4 / 3 * odds.var(ddof=1)))
    assert (pooled.conf_int().loc[name].between(0.0, 1.0)).all()


def test_labels_do_not_matter(mixtures):
    turned = [mixtures[0], mixtures[1].relabel([2, 1]), mixtures[2]]
    straight, pooled = mm.pool(mixtures), mm.pool(turned)
    pd.testing.assert_frame_equal(pooled.to_frame(), straight.to_frame(), rtol=1e-8)
    assert pooled.agreement > 0.9
    unmatched = np.mean([fit.params["expert1.Intercept"] for fit in turned])
    assert abs(unmatched - pooled.params["expert1.Intercept"]) > 1.0


def test_identical_data_have_nothing_missing(mixtures):
    pooled = mm.pool([mixtures[0]] * 3)
    pd.testing.assert_series_equal(pooled.params, mixtures[0].params, check_names=False)
    pd.testing.assert_series_equal(pooled.bse, mixtures[0].bse, check_names=False)
    assert (pooled.riv.dropna() < 1e-12).all()


def test_joint_hypotheses_are_tested_as_by_li_raghunathan_and_rubin(mixtures):
    pooled = mm.pool(mixtures)
    names = ["expert1.x1", "expert2.x1"]
    estimates = np.array([fit.params[names] for fit in mixtures])
    within = np.mean([fit.cov_params().loc[names, names].to_numpy() for fit in mixtures], axis=0)
    riv = 4 / 3 * np.trace(np.cov(estimates.T) @ np.linalg.inv(within)) / 2
    mean = estimates.mean(axis=0)
    test = pooled.wald_test([f"{name} = 0" for name in names])
    assert test.statistic == pytest.approx(mean @ np.linalg.solve(within, mean) / (2 * (1 + riv)))
    assert test.df_resid == pytest.approx(4 * 1.5 * (1 + 1 / riv) ** 2 / 2)  # t = k (m - 1) = 4
    assert isinstance(pooled.wald_test("sd1(time|id) = 0"), InvalidTest)
    assert isinstance(pooled.wald_test(["gate2.z1 = 0", "2 * gate2.z1 = 0"]), InvalidTest)


def test_a_parameter_without_error_in_one_fit_has_none(mixtures):
    estimates = np.array([[1.0, 2.0], [3.0, 2.0]])
    covariances = np.array([np.eye(2), [[1.0, np.nan], [np.nan, np.nan]]])
    found = rubin(estimates, covariances)
    assert np.isnan(found.total[1, 1])
    assert found.total[0, 0] == pytest.approx(1.0 + 1.5 * 2.0)


def test_the_summary_says_what_is_missing(mixtures):
    text = str(mm.pool(mixtures).summary())
    for part in ("pooled over 3 imputed data sets", "Fraction", "Rubin's rules", "Expert 2"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80
    assert "Missing information" in mm.pool(mixtures).summary().as_latex()


def test_pooled_fits_go_into_tables_and_files(mixtures, tmp_path):
    pooled = mm.pool(mixtures)
    beside = str(mm.table({"first": mixtures[0], "pooled": pooled}))
    line = next(line for line in beside.splitlines() if line.startswith("Log-likelihood"))
    assert line.split() == ["Log-likelihood", f"{mixtures[0].llf:.3f}"]  # imputed data sets have no common one
    assert f"{pooled.params.iloc[0]:.4f}" in beside
    text = pooled.to_latex(tmp_path / "pooled.tex", caption="Pooled")
    assert (tmp_path / "pooled.tex").read_text() == text
    assert r"\caption{Pooled}" in text
    assert repr(pooled) == str(pooled)


def test_functions_of_an_index_are_pooled_where_they_are_tabulated():
    data = mm.simulate.vcmoe("well_separated", n=150, rng=1).data
    fits = [
        mm.fit("y ~ z1 | vary: u", data.assign(z1=data["z1"] * (1 + 0.01 * i)), experts=1, bandwidth=0.3, n_grid=10)
        for i in range(2)
    ]
    pooled = mm.pool(fits)
    assert pooled.params.index.equals(fits[0].params.index)
    assert (pooled.bse.dropna() > 0).all()


def test_what_cannot_be_pooled_is_refused(linear, mixtures):
    with pytest.raises(ArgumentError, match="at least two imputed data sets in a list, got 1"):
        mm.pool(linear[0])
    with pytest.raises(ArgumentError, match="at least two imputed data sets in a list, got 1"):
        mm.pool(linear[:1])
    with pytest.raises(ArgumentError, match="the formula of fit 2 is"):
        mm.pool([linear[0], mixtures[0]])
    with pytest.raises(ArgumentError, match="fitted models, got str as number 2"):
        mm.pool([linear[0], "fit"])
    with pytest.raises(ArgumentError, match="cov_type of fit 2"):
        mm.pool([mixtures[0], mixtures[1].with_cov("nonrobust")])
    fewer = pd.DataFrame(MICE["data"][0]).iloc[:20]
    other = mm.fit("bmi ~ hyp + chl", fewer, experts=1, method="reml", cov_type="nonrobust")
    with pytest.raises(ArgumentError, match="same units; fit 2 has 20, fit 1 25"):
        mm.pool([linear[0], other])
    with pytest.raises(ArgumentError, match="df must be a positive number"):
        mm.pool(linear, df=-1)
