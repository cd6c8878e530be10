"""What counts as an independent unit: clusters, weights, and the covariance that tables, bands and figures follow."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mixmoe.errors import ConvergenceWarning, DesignError
from mixmoe.inference.wald import InvalidTest
from mixmoe.loading import load
from mixmoe.varying import glr
from mixmoe.varying.leave_one_out import fitness
from mixmoe.varying.local_likelihood import (
    build_local,
    full_information,
    local_gradient,
    local_pieces,
    masked_information,
)
from mixmoe.varying.local_maximum import maximise_local
from mixmoe.varying.model import VCMoE
from mixmoe.varying.presets import vcmoe
from mixmoe.varying.results import VCMoEResults
from mixmoe.varying.sandwich import influence, unit_influence

FORMULA = "y ~ z1 | gate: x1 | vary: u"
COLUMNS = ["center", "std_error", "conf_low", "conf_high", "band_low", "band_high"]


def fitted(data: pd.DataFrame, formula: str = FORMULA, **options) -> VCMoEResults:
    options = {"bandwidth": 0.35, "n_grid": 12, "estimate": "joint"} | options
    return VCMoE(formula, data, **options).fit(rng=0, starts=2)


def same_bands(a: pd.DataFrame, b: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(a[COLUMNS], b[COLUMNS], rtol=1e-6)


@pytest.fixture(scope="module")
def data():
    made = vcmoe(n=240, rng=1).data
    return made.assign(id=np.arange(240) // 4, one=np.arange(240), z2=np.random.default_rng(2).normal(size=240))


@pytest.fixture(scope="module")
def plain(data):
    return fitted(data)


@pytest.fixture(scope="module")
def clustered(data):
    return fitted(data, cluster="id")


def gradient_and_information(local, coef, g):
    block, terms = next(local_pieces(local, coef))
    full = masked_information(full_information(local, block, terms.information, terms.kernel), local.free.ravel())
    return local_gradient(local, block, terms)[g].ravel(), full[g]


@pytest.mark.parametrize("g", [0, 5])
def test_influence_of_a_cluster_is_a_newton_step_without_it(clustered, g):
    problem, codes = clustered.model.problem, clustered.model.clusters
    local = build_local(problem, 1)
    coef = maximise_local(local, clustered.model.coef).coef
    each = unit_influence(influence(local, coef, 1.0, (), codes), slice(None)).reshape(240, 12, -1)
    free = local.free.ravel()
    inside = np.unique(codes[clustered.model.problem.windows.lo[g] : clustered.model.problem.windows.hi[g]])
    for cluster in inside[::9]:
        weights = np.where(codes == cluster, 0.0, problem.rows.weights)
        without = build_local(replace(problem, rows=problem.rows.with_weights(weights)), 1)
        gradient, rest = gradient_and_information(without, coef, g)
        whole = gradient_and_information(local, coef, g)[0]
        step = np.linalg.solve(rest, whole - gradient)[: problem.slots.n]
        summed = each[codes == cluster, g].sum(axis=0)
        np.testing.assert_allclose(summed[free[: len(summed)]], step[free[: len(summed)]], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("gate_bandwidth", [None, 0.6])
def test_clusters_of_single_rows_have_the_factors_of_rows(data, gate_bandwidth):
    fit = fitted(data, cluster="one", gate_bandwidth=gate_bandwidth)
    local, coef = build_local(fit.model.problem, 1), fit.model.coef
    rows, clusters = influence(local, coef, 1.0), influence(local, coef, 1.0, (), fit.model.clusters)
    for a, b in zip(rows.local, clusters.local, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-9)
    with_rows, over = fit.with_cov("robust", correction=False), fit.with_cov("cluster", correction=False)
    np.testing.assert_allclose(over.bse, with_rows.bse, rtol=1e-8)


@pytest.mark.parametrize("options", [{}, {"gate_bandwidth": 0.6}, {"formula": "y ~ z1 + const(x1) | vary: u"}])
def test_copies_of_rows_within_their_cluster_change_nothing(data, options):
    options = {"cluster": "one", "estimate": "local", "experts": 1 if "formula" in options else 2, **options}
    once = fitted(data, **options)
    often = fitted(pd.concat([data] * 3, ignore_index=True), **options)
    np.testing.assert_allclose(often.bse, once.bse, rtol=1e-5)
    for bias in ("none", "rbc"):
        a, b = (f.bands(bias=bias, rng=0)["std_error"] for f in (once, often))
        np.testing.assert_allclose(b, a, rtol=1e-4)
    assert often.n_units == once.n_units == 240


def test_criteria_count_clusters(clustered, plain):
    assert (clustered.nobs, clustered.n_units, plain.n_units) == (240, 60, 240)
    want = fitness(clustered.llf, clustered.effective_df, 60)
    assert (clustered.bic, clustered.aicc) == (want.bic, want.aicc)
    assert clustered.sabic == pytest.approx(want.aic + want.df * (np.log(62 / 24) - 2))
    assert "Clusters" in str(clustered.summary())
    assert "leverage of each cluster" in clustered.cov.note


def test_bands_and_figures_follow_the_covariance(clustered, plain):
    rows = clustered.with_cov("robust")
    for of in ("coefficients", "differences"):
        same_bands(rows.bands(of, rng=0), plain.bands(of, rng=0))
        assert not np.allclose(rows.bands(of, rng=0)["std_error"], clustered.bands(of, rng=0)["std_error"], rtol=0.02)
    for ours, theirs in zip(rows.curves(), plain.curves(), strict=True):
        np.testing.assert_allclose(ours.band_lower, theirs.band_lower, rtol=1e-6)
    shown = {table.key: table.cells for table in rows.tables()}
    for table in plain.tables()[1:]:
        # There the plain fit has one column more, the test of constancy, and one row, that of all functions.
        cells = [row[:-1] for row in table.cells[:-1]] if table.key == "functions" else list(table.cells)
        assert cells == list(shown[table.key])
    drawn = {"method": "bootstrap", "n_boot": 19, "rng": 0}
    same_bands(rows.bands(**drawn), plain.bands(**drawn))
    uncorrected = plain.with_cov("robust", correction=False)
    ratio = uncorrected.bands(rng=0)["std_error"] / plain.bands(rng=0)["std_error"]
    assert (ratio.dropna() < 1.0).all()
    assert ratio.isna().mean() < 0.2  # thin ends


def test_relabel_keeps_the_options_of_the_covariance(plain, clustered, tmp_path):
    for fit in (plain.with_cov("robust", correction=False), clustered.with_cov("cluster", correction=False)):
        np.testing.assert_allclose(fit.relabel([2, 1]).relabel([2, 1]).bse, fit.bse, rtol=1e-6)
        fit.save(tmp_path / "fit.mixmoe")
        again = load(tmp_path / "fit.mixmoe")
        same_bands(again.bands(rng=0), fit.bands(rng=0))
        np.testing.assert_allclose(again.relabel([2, 1]).relabel([2, 1]).bse, fit.bse, rtol=1e-6)


@pytest.mark.parametrize("which", ["all", "expert1.z1", None])
def test_rows_of_clusters_have_no_test_of_constancy(clustered, which):
    for fit in (clustered, clustered.with_cov("robust")):
        test = fit.test_varying(which, method="asymptotic")
        assert isinstance(test, InvalidTest)
        assert "rows of a cluster are not independent" in test.reason
        with pytest.raises(AttributeError, match=r"bands\(\) has simultaneous bands .* MEMoE with re:"):
            _ = test.pvalue


def test_summary_of_clusters_says_why_there_is_no_test(clustered, plain):
    assert "P const." in str(plain.summary())
    text = " ".join(str(clustered.summary()).split())
    assert "P const." not in text
    assert "There is no test that a function is constant: rows of a cluster are not independent" in text
    assert "P const." not in clustered.to_latex()


def test_summaries_of_many_rows_show_the_tests_that_were_made(plain, monkeypatch):
    monkeypatch.setattr(glr, "MOST_TESTED", plain.nobs - 1)
    fit = plain.with_cov("robust")
    text = " ".join(str(fit.summary()).split())
    assert f"P const. is left out with more than {plain.nobs - 1} rows" in text
    tests = fit.test_varying(method="asymptotic")
    shown = str(fit.summary())
    assert "is left out" not in shown
    assert f"{tests['p_value'].iloc[0]:.3f}" in shown


@pytest.mark.parametrize("method", ["multiplier", "asymptotic"])
def test_differences_of_constants_have_normal_limits(data, method):
    fit = fitted(data, "y ~ z1 + const(z2) | gate: x1 | vary: u", cluster="id")
    limits = fit.t_test("expert2.z2 = expert1.z2").conf_int()[0]
    for bias in ("none", "rbc"):
        frame = fit.bands("differences", method=method, bias=bias, rng=0).query("term == 'z2'")
        for low, high in (("conf_low", "conf_high"), ("band_low", "band_high")):
            np.testing.assert_allclose(frame[[low, high]], np.tile(limits, (12, 1)), rtol=1e-6)


def test_units_of_the_weights_change_no_inference(data, plain):
    fit = fitted(data.assign(w=10.0), weights="w")
    assert fit.llf == pytest.approx(10.0 * plain.llf, rel=1e-6)
    assert fit.flags == plain.flags
    for name in ("aic", "aicc", "bic", "sabic", "icl"):
        assert getattr(fit, name) == pytest.approx(getattr(plain, name), rel=1e-6)
    np.testing.assert_allclose(fit.bse, plain.bse, rtol=1e-5)
    ours, theirs = (f.test_varying("expert1.z1", method="asymptotic") for f in (fit, plain))
    assert ours.statistic == pytest.approx(theirs.statistic, rel=1e-4)
    ours, theirs = (f.test_varying("expert1.z1", n_boot=19, rng=0) for f in (fit, plain))
    np.testing.assert_allclose(ours.null, theirs.null, rtol=1e-3, atol=1e-3)


def test_rows_without_weight_are_not_counted(data):
    ends = data["u"].isin([data["u"].min(), data["u"].max()])  # the range of the index stays
    kept = (np.arange(240) % 3 > 0) | ends
    left = fitted(data[kept], cluster="id")
    weighted = fitted(data.assign(w=kept.astype(float)), weights="w", cluster="id")
    assert (weighted.nobs, weighted.n_units) == (left.nobs, left.n_units)
    assert weighted.nobs == kept.sum()
    np.testing.assert_allclose([weighted.aicc, weighted.bic], [left.aicc, left.bic], rtol=1e-5)
    np.testing.assert_allclose(weighted.bse, left.bse, rtol=1e-4)


def test_clusters_without_weight_are_not_counted(data):
    fit = fitted(data.assign(w=(data["id"] % 5 > 0).astype(float)), weights="w", cluster="id")
    assert (fit.n_units, fit.nobs) == (48, 192)
    assert "48 clusters" in fit.cov.note
    with pytest.raises(DesignError, match=r"cluster= has the same value, 7, in all 4 rows"):
        fitted(data.assign(w=(data["id"] == 7).astype(float)), weights="w", cluster="id")


def test_unequal_weights_leave_the_asymptotic_test_its_size():
    """The statistic with weights, scaled, has the mean of that without (Rao and Scott 1984)."""
    rng, found = np.random.default_rng(0), []
    for _ in range(20):
        u, z = rng.uniform(size=200), rng.normal(size=200)
        frame = pd.DataFrame({"u": u, "z": z, "y": 1.0 + z + rng.normal(size=200), "w": rng.exponential(size=200)})
        fits = (fitted(frame, "y ~ z | vary: u", experts=1, weights=w) for w in (None, "w"))
        found.append([f.test_varying("expert1.z", method="asymptotic").statistic for f in fits])
    equal, unequal = np.mean(found, axis=0)
    assert 0.7 < unequal / equal < 1.4  # 2.0 with weights as they are


def test_missing_bands_are_said(recwarn):
    fit = VCMoE(FORMULA, vcmoe(n=200, rng=4).data, bandwidth=0.2, n_grid=15).fit(rng=0, starts=2)
    assert fit.flags == ()
    text = " ".join(str(fit.summary()).split())
    assert len(recwarn) == 0
    assert "nan" not in text
    # Log sigma is a line behind its own bands only; behind those of coefficients it is held constant in each window.
    assert "There are no bands at up to 3 of 15 grid points for sigma1, sigma2" in text
    assert "there are none at up to 6 of 15 grid points for 6 functions" in text
    assert "There are no bands" in fit.to_markdown()
    assert any("-" in row for table in fit.tables() for row in table.cells)
    with pytest.warns(ConvergenceWarning, match="There are no bands at up to 3 of 15 grid points"):
        frame = fit.bands(rng=0)
    assert set(frame.loc[frame["mark"] == "no maximum", "coefficient"]) == {"sigma1", "sigma2"}
    assert (frame["mark"] == "no maximum").sum() == 6
    assert (frame["std_error"].isna() == frame["mark"].isin(["no maximum", "thin", "unsteady"])).all()
