"""The family through its public door: fit, tables, frames, predictions, files."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mixmoe.errors import ArgumentError, ConvergenceWarning, DegeneracyWarning, DesignError
from mixmoe.loading import load
from mixmoe.mixed.model import MEMoE
from mixmoe.varying.model import VCMoE
from mixmoe.varying.presets import vcmoe
from mixmoe.varying.results import VCMoEResults

FORMULA = "y ~ z1 | gate: x1 | vary: u"
PARAMETRIC = 1e-5  # the bar: all constant equals the parametric mixture


@pytest.fixture(scope="module")
def sim():
    return vcmoe(n=400, rng=1)


@pytest.fixture(scope="module")
def fit(sim):
    return VCMoE(FORMULA, sim.data, bandwidth=0.3).fit(rng=0, starts=4)


@pytest.fixture(scope="module")
def hybrid(sim):
    return VCMoE("y ~ z1 + const(x1) | gate: const(1) + x1 | vary: u", sim.data, bandwidth=0.3).fit(rng=0, starts=4)


@pytest.mark.parametrize("text", [FORMULA, "y ~ const(1 + z1) | gate: const(1 + x1) | vary: u"])
def test_all_constant_is_the_parametric_mixture(text):
    sim = vcmoe("constant", 400, rng=3)
    options = {"bandwidth": np.inf} if text == FORMULA else {"dispersion": "const"}
    varying = VCMoE(text, sim.data, **options).fit(rng=0)
    plain = MEMoE("y ~ z1 | gate: x1", sim.data).fit(rng=0, correction=False)
    assert varying.llf == pytest.approx(plain.llf, abs=PARAMETRIC)
    names = [n for n in plain.params.index if n in varying.params.index]
    assert len(names) == len(varying.params) == 8
    np.testing.assert_allclose(varying.params[names], plain.params[names], atol=PARAMETRIC)
    assert np.isinf(varying.bandwidth)
    assert varying.effective_df == 8.0
    ratio = varying.bse[names] / plain.bse[names]  # both robust, only ours with each row judged without it
    assert ratio.between(0.95, 1.15).all()


def test_summary_shows_functions_and_constants(hybrid):
    text = str(hybrid.summary())
    for part in (
        "Coefficients constant along the index",
        "expert1.x1",
        "gate2.Intercept",
        "  lower",
        "Bandwidth",
    ):
        assert part in text
    assert "gate2.x1" in hybrid.to_latex()
    assert list(hybrid.params.index[:3]) == ["expert1.x1", "expert2.x1", "gate2.Intercept"]


def test_constants_do_not_vary(hybrid):
    frame = hybrid.functions()
    for name in ("expert1.x1", "gate2.Intercept"):
        assert np.ptp(frame.loc[frame["coefficient"] == name, "estimate"]) == 0.0
    assert np.ptp(frame.loc[frame["coefficient"] == "expert1.z1", "estimate"]) > 0.0


@pytest.mark.parametrize("of", ["coefficients", "probabilities", "experts", "mean", "differences"])
def test_bands_are_ordered_and_cover_the_grid(fit, of):
    frame = fit.bands(of, rng=0)
    assert (frame.groupby("coefficient", sort=False)["u"].nunique() == 50).all()
    known = frame.dropna(subset=["std_error"])
    assert len(known) > 0.9 * len(frame)
    assert (known["band_low"] <= known["conf_low"]).all()
    assert (known["conf_low"] < known["center"]).all()
    assert (known["center"] < known["conf_high"]).all()
    assert (known["conf_high"] <= known["band_high"]).all()


@pytest.mark.parametrize("bias", ["none", "undersmooth", "rbc"])
@pytest.mark.parametrize("method", ["multiplier", "asymptotic"])
def test_bands_of_every_kind_hold_most_of_the_truth(sim, fit, bias, method):
    frame = fit.bands(bias=bias, method=method, rng=0)
    order = fit.functions().query("term == 'Intercept' and block == 'expert'").groupby("expert")["estimate"].mean()
    low = int(order.idxmin())
    truth = np.interp(frame["u"].unique(), sim.truth.index, sim.truth.expert[:, 0, 1])
    part = frame[frame["coefficient"] == f"expert{low}.z1"]
    inside = (part["band_low"].to_numpy() <= truth) & (truth <= part["band_high"].to_numpy())
    assert inside.mean() > 0.8


def test_probabilities_sum_to_one_and_shrink_with_certainty(fit):
    frame = fit.bands("probabilities", rng=0, at={"x1": 0.5})
    total = frame.groupby("u")["center"].sum()
    np.testing.assert_allclose(total, 1.0, atol=1e-12)


def test_bootstrap_bands_agree_with_the_sandwich_in_size(sim):
    fit = VCMoE(FORMULA, sim.data, bandwidth=0.5, n_grid=15).fit(rng=0, starts=3)
    analytic, boot = fit.bands(bias="none", rng=0), fit.bands(bias="none", method="bootstrap", n_boot=30, rng=0)
    inner = analytic["u"].between(0.2, 0.8) & (analytic["block"] == "expert")
    ratio = (boot["std_error"] / analytic["std_error"])[inner]
    assert 0.6 < ratio.median() < 1.4


def test_predictions_do_not_peek_at_the_response(sim, fit):
    changed = sim.data.assign(y=-100.0)
    for kind in ("all", "mean", "experts", "probabilities"):
        pd.testing.assert_frame_equal(fit.predict(changed, kind), fit.predict(kind=kind))
        pd.testing.assert_frame_equal(fit.predict(sim.data.drop(columns="y"), kind), fit.predict(kind=kind))
    pd.testing.assert_frame_equal(
        fit.predict(changed, "mean", interval="prediction"), fit.predict(kind="mean", interval="prediction")
    )
    own = fit.predict(kind="probabilities", history=sim.data)
    assert not fit.predict(kind="probabilities", history=changed).equals(own)
    pd.testing.assert_series_equal(fit.fitted(), fit.predict()["mean"].rename("fitted"))


def test_posterior_of_the_training_data_are_the_responsibilities(fit):
    own = fit.predict(kind="probabilities", history=fit.model.design.frame)
    np.testing.assert_allclose(own, fit.responsibilities, atol=1e-6)


def test_prediction_intervals_hold_about_the_nominal_share(sim, fit):
    limits = fit.predict(kind="mean", interval="prediction", alpha=0.1)
    held = sim.data["y"].between(limits["mean_low"], limits["mean_high"]).mean()
    assert 0.85 < held < 0.96


def test_functions_outside_the_range_are_refused_unless_asked(sim, fit):
    outside = sim.data.head(3).assign(u=1.2)
    with pytest.raises(DesignError, match=r"'u' is 1.2, outside the range"):
        fit.predict(outside)
    assert np.isfinite(fit.predict(outside, extrapolate=True)).all(axis=None)


def test_row_order_changes_nothing(sim, fit):
    shuffled = sim.data.sample(frac=1.0, random_state=1)
    again = VCMoE(FORMULA, shuffled, bandwidth=0.3).fit(rng=0, starts=4)
    pd.testing.assert_frame_equal(again.functions(), fit.functions(), atol=1e-4)
    pd.testing.assert_frame_equal(again.predict().loc[sim.data.index], fit.predict(), atol=1e-4)


def test_relabel_permutes_and_keeps_everything_else(fit):
    other = fit.relabel([2, 1])
    assert other.llf == fit.llf
    np.testing.assert_allclose(other.predict(kind="mean"), fit.predict(kind="mean"), atol=1e-10)
    np.testing.assert_allclose(other.responsibilities["expert1"], fit.responsibilities["expert2"])
    np.testing.assert_allclose(
        other.bands(rng=0).query("coefficient == 'expert1.z1'")["std_error"],
        fit.bands(rng=0).query("coefficient == 'expert2.z1'")["std_error"],
        rtol=1e-6,
    )
    with pytest.raises(ArgumentError, match=r"permutation of 1..2, got \[1, 1\]"):
        fit.relabel([1, 1])


@pytest.mark.parametrize("which", ["fit", "hybrid"])
def test_saved_and_loaded_is_the_same(which, request, tmp_path):
    fit = request.getfixturevalue(which)
    fit.save(tmp_path / "fit.mm")
    again = load(tmp_path / "fit.mm")
    assert isinstance(again, VCMoEResults)
    pd.testing.assert_frame_equal(again.functions(), fit.functions())
    pd.testing.assert_frame_equal(again.predict(), fit.predict())
    pd.testing.assert_frame_equal(again.bands(rng=0), fit.bands(rng=0))
    assert again.bandwidth == fit.bandwidth


def test_simulated_responses_resemble_the_data(sim, fit):
    draws = fit.simulate(rng=0, n=20)
    assert draws.shape == (400, 20)
    assert abs(draws.to_numpy().std() / sim.data["y"].std() - 1.0) < 0.1
    assert (draws.index == sim.data.index).all()


@pytest.mark.parametrize("kind", ["functions", "probabilities", "means", "differences", "responsibilities"])
def test_figures(fit, kind):
    figure = fit.plot(kind)
    assert figure.axes
    plt.close(figure)


def test_bandwidth_is_found_by_cross_validation(sim):
    fit = VCMoE(FORMULA, sim.data).fit(rng=0, starts=3)
    table = fit.selection
    assert fit.bandwidth == table.loc[table["criterion"].idxmax(), "bandwidth"]
    assert 0.1 < fit.bandwidth < 0.7
    assert len(table) >= 7
    plt.close(fit.plot("bandwidth"))
    assert "cross-validated" in str(fit.summary())


def test_rule_of_thumb_and_given_candidates(sim):
    model = VCMoE(FORMULA, sim.data, bandwidth="rule")
    assert 0.15 < model.fit(rng=0, starts=2).bandwidth < 0.6
    found = model.select_bandwidth(0, candidates=[0.2, 0.4])
    assert list(found.table["bandwidth"]) == [0.2, 0.4]


def test_clusters_widen_standard_errors(sim):
    doubled = pd.concat([sim.data, sim.data], ignore_index=True).assign(id=np.tile(np.arange(400), 2))
    model = VCMoE(FORMULA, doubled, bandwidth=0.3, cluster="id")
    fit = model.fit(rng=0, starts=3)
    assert fit.cov_type == "cluster"
    ratio = (fit.bse / fit.with_cov("robust").bse).median()
    assert 1.25 < ratio < 1.6  # each row is there twice: the square root of two


def test_weights_count_rows(sim):
    doubled = pd.concat([sim.data, sim.data.head(100)], ignore_index=True)
    weighted = sim.data.assign(w=np.where(np.arange(400) < 100, 2.0, 1.0))
    a = VCMoE(FORMULA, doubled, bandwidth=0.3).fit(rng=0, starts=3)
    b = VCMoE(FORMULA, weighted, bandwidth=0.3, weights="w").fit(rng=0, starts=3)
    assert a.llf == pytest.approx(b.llf, abs=1e-3)
    np.testing.assert_allclose(a.functions()["estimate"], b.functions()["estimate"], atol=1e-3)


@pytest.mark.parametrize("family", ["binomial", "poisson", "negbinomial"])
def test_other_families(family):
    sim = vcmoe(n=500, family=family, rng=2)
    options = {"trials": "trials"} if family == "binomial" else {"offset": "log_size"}
    fit = VCMoE(FORMULA, sim.data, family=family, bandwidth=0.4, n_grid=20, **options).fit(rng=0, starts=3)
    assert fit.converged
    assert fit.bands(rng=0)["std_error"].notna().mean() > 0.8
    limits = fit.predict(kind="mean", interval="prediction")
    assert sim.data["y"].between(limits["mean_low"], limits["mean_high"]).mean() > 0.9
    assert "family" in str(fit.summary()).lower()


def test_one_expert_is_the_varying_coefficient_model(sim):
    fit = VCMoE("y ~ z1 | vary: u", sim.data, experts=1, bandwidth=0.3).fit()
    assert (fit.responsibilities == 1.0).all(axis=None)
    assert fit.bands(rng=0)["std_error"].notna().all()
    assert set(fit.bands("mean", rng=0)["coefficient"]) == {"mean"}
    plt.close(fit.plot())
    with pytest.raises(ArgumentError, match="needs at least 2 experts, got 1"):
        fit.bands("probabilities")


@pytest.mark.parametrize("estimate", ["shrunken", "joint"])
def test_bands_rest_on_the_local_maxima_whatever_is_reported(sim, estimate):
    fit = VCMoE(FORMULA, sim.data, bandwidth=0.3, estimate=estimate).fit(rng=0, starts=3)
    local = VCMoE(FORMULA, sim.data, bandwidth=0.3, estimate="local").fit(rng=0, starts=3)
    bands = fit.bands(bias="none", rng=0).query("coefficient == 'expert1.z1'")
    centre = local.functions().query("coefficient == 'expert1.z1'")["estimate"]
    np.testing.assert_allclose(centre, bands["center"], atol=1e-6)
    assert np.abs(bands["estimate"] - bands["center"]).max() > 1e-3
    logs = fit.bse.index.str.startswith("sigma")  # of which the delta method takes the estimate itself
    np.testing.assert_allclose(fit.bse[~logs], local.bse[~logs], rtol=1e-5)


def test_an_estimate_that_does_not_exist_is_refused(sim):
    with pytest.raises(ArgumentError, match="estimate must be one of 'shrunken', 'local', 'joint', got 'polished'"):
        VCMoE(FORMULA, sim.data, estimate="polished")


def test_input_is_left_alone(sim):
    before = sim.data.copy(deep=True)
    VCMoE(FORMULA, sim.data, bandwidth=0.3).fit(rng=0, starts=2).predict(sim.data)
    pd.testing.assert_frame_equal(sim.data, before)


@pytest.mark.parametrize("expert", ["const(1) + z1", "const(1 + z1)", "const(z1)"])
def test_constants_are_constant_whatever_start_won(sim, expert):
    fit = VCMoE(f"y ~ {expert} | gate: x1 | vary: u", sim.data, bandwidth=0.3, n_grid=20).fit(rng=0)
    spread = np.ptp(fit.model.coef[:, 0], axis=0)
    assert fit.model.problem.const.any()
    assert ((spread == 0.0) == fit.model.problem.const).all()


def test_gate_bandwidth_is_found_by_cross_validation(sim):
    fit = VCMoE(FORMULA, sim.data, bandwidth=0.3, gate_bandwidth="cv", n_grid=20).fit(rng=0, starts=3)
    table = fit.gate_selection
    assert fit.bandwidth == 0.3
    assert fit.gate_bandwidth == table.loc[table["criterion"].idxmax(), "bandwidth"]
    assert len(table) >= 7
    assert fit.selection is None
    figure = fit.plot("gate_bandwidth")
    assert "gate bandwidth (u)" in figure.axes[0].get_xlabel()
    plt.close(figure)
    assert "Gate bandwidth" in str(fit.summary())
    with pytest.raises(ArgumentError, match=r"no search to draw, bandwidth=0\.3"):
        fit.plot("bandwidth")
    searched = VCMoE(FORMULA, sim.data, bandwidth=0.3, gate_bandwidth="cv", n_grid=20)
    found = searched.select_bandwidth(0, beside=0.3, candidates=[0.2, 0.4, 0.8])
    assert list(found.table["bandwidth"]) == [0.2, 0.4, 0.8]
    held_out = searched.select_bandwidth(0, candidates=[0.3]).table["criterion"]
    same = searched.select_bandwidth(0, beside=0.3, candidates=[0.3]).table["criterion"]
    np.testing.assert_allclose(held_out, same, atol=1e-10)


def test_both_bandwidths_are_found_one_after_the_other(sim, tmp_path):
    model = VCMoE(FORMULA, sim.data, gate_bandwidth="cv", n_grid=15)
    fit = model.fit(rng=0, starts=2, folds=2)
    assert fit.bandwidth in set(fit.selection["bandwidth"])
    assert fit.gate_bandwidth in set(fit.gate_selection["bandwidth"])
    fit.save(tmp_path / "fit.mm")
    again = load(tmp_path / "fit.mm")
    assert (again.bandwidth, again.gate_bandwidth) == (fit.bandwidth, fit.gate_bandwidth)
    pd.testing.assert_frame_equal(again.bands(rng=0), fit.bands(rng=0))


def test_gate_bandwidth_smooths_the_gate_alone(sim):
    narrow, wide = (
        VCMoE(FORMULA, sim.data, bandwidth=0.3, gate_bandwidth=h, n_grid=20).fit(rng=0, starts=3).functions()
        for h in (0.25, 0.8)
    )
    gates = narrow["block"] == "gate"
    bend = [np.abs(np.diff(f.loc[f["coefficient"] == "gate2.x1", "estimate"], 2)).sum() for f in (narrow, wide)]
    assert bend[1] < 0.3 * bend[0]
    np.testing.assert_allclose(narrow.loc[~gates, "estimate"], wide.loc[~gates, "estimate"], atol=1e-2)


def test_an_infinite_bandwidth_holds_its_functions_constant(sim, tmp_path):
    experts = VCMoE(FORMULA, sim.data, bandwidth=np.inf, gate_bandwidth=0.4, n_grid=20).fit(rng=0, starts=3)
    gate = VCMoE(FORMULA, sim.data, bandwidth=0.3, gate_bandwidth=np.inf, n_grid=20).fit(rng=0, starts=3)
    marked = VCMoE("y ~ z1 | gate: const(1 + x1) | vary: u", sim.data, bandwidth=0.3, n_grid=20).fit(rng=0, starts=3)
    for fit, varies in ((experts, "gate"), (gate, "expert")):
        frame = fit.functions()
        spread = frame.groupby("coefficient")["estimate"].agg(np.ptp)
        assert (spread[spread.index.str.startswith(varies)] > 0.0).all()
        assert (spread[spread.index.str.startswith("gate" if varies == "expert" else "expert")] == 0.0).all()
        fit.save(tmp_path / "fit.mm")
        pd.testing.assert_frame_equal(load(tmp_path / "fit.mm").functions(), frame)
    assert gate.llf == pytest.approx(marked.llf, abs=1e-4)
    assert "infinite (constant)" in str(gate.summary())


@pytest.mark.parametrize("size", [1e-10, 1e6])
def test_units_of_the_response_change_nothing_else(sim, fit, size):
    other = VCMoE(FORMULA, sim.data.assign(y=sim.data["y"] * size), bandwidth=0.3).fit(rng=0, starts=4)
    a, b = fit.bands(rng=0), other.bands(rng=0)
    unit = np.where(a["block"] == "gate", 1.0, size)
    for column in ("estimate", "center", "std_error", "band_low", "band_high"):
        np.testing.assert_allclose(b[column] / unit, a[column], rtol=1e-6, atol=1e-8)
    assert "0.000 to 0.000" not in str(other.summary())


def test_a_gate_without_columns_gives_equal_probabilities(sim):
    fit = VCMoE("y ~ z1 | gate: 0 | vary: u", sim.data, bandwidth=0.3).fit(rng=0, starts=3)
    assert (fit.predict(kind="probabilities") == 0.5).all(axis=None)
    assert "P const.: asymptotic GLR test" in str(fit.summary())


def test_limits_of_means_stay_in_their_range():
    sim = vcmoe(n=400, family="poisson", rng=2)
    fit = VCMoE(FORMULA, sim.data, family="poisson", bandwidth=0.4, offset="log_size").fit(rng=0, starts=3)
    for of in ("experts", "mean"):
        frame = fit.bands(of, rng=0)
        assert (frame["band_low"].dropna() > 0.0).all()
        assert (frame["band_low"].dropna() < frame["conf_low"].dropna()).all()
    later = fit.bands("mean", at={"log_size": 2.0}, rng=0)
    np.testing.assert_allclose(later["center"], np.exp(2.0) * fit.bands("mean", rng=0)["center"])
    with pytest.raises(ArgumentError, match="at names 'u', the index, along which bands run"):
        fit.bands("mean", at={"u": 0.5})


def test_a_skewed_index_is_said_and_its_functions_do_not_jump():
    rng = np.random.default_rng(1)
    u, w, x, second = np.exp(rng.normal(size=500)), rng.normal(size=500), rng.normal(size=500), rng.random(500) < 0.5
    y = np.where(second, 2 + np.log1p(u) + 0.5 * w, -1 - 0.3 * w) + 0.4 * rng.normal(size=500)
    data = pd.DataFrame({"u": u, "w": w, "x": x, "y": y})
    with pytest.warns(ConvergenceWarning, match="Four fifths of the rows lie between .* of u, but the thin rest"):
        fit = VCMoE("y ~ w | gate: x | vary: u", data, bandwidth=22.0).fit(rng=0)
    assert [flag.code for flag in fit.flags] == ["sparse_index"]
    level = fit.functions().query("coefficient == 'expert1.Intercept'")["estimate"].to_numpy()
    assert np.abs(np.diff(level)).max() < 0.5


def test_clusters_are_counted(sim):
    with pytest.warns(DegeneracyWarning, match="There are only 5 clusters: standard errors"):
        fit = VCMoE(FORMULA, sim.data.assign(site=np.arange(400) % 5), bandwidth=0.3, cluster="site").fit(
            rng=0, starts=2
        )
    assert "5 clusters" in str(fit.summary())
    with pytest.raises(DesignError, match=r"cluster= has the same value, 1, in all 400 rows"):
        VCMoE(FORMULA, sim.data.assign(site=1), bandwidth=0.3, cluster="site").fit(rng=0, starts=2)


def test_one_gaussian_expert_by_formula_is_kernel_weighted_least_squares():
    rng, h = np.random.default_rng(0), 0.3
    data = vcmoe(n=200, rng=1).data.assign(w=rng.uniform(0.5, 2.0, 200))
    frame = VCMoE("y ~ z1 | vary: u", data, 1, bandwidth=h, weights="w", n_grid=11).fit().functions()
    design = np.column_stack([np.ones(200), data["z1"]])
    expected = []
    for u in frame["u"].unique():
        t = (data["u"].to_numpy() - u) / h
        root = np.sqrt(np.clip(1.0 - t * t, 0.0, None) * data["w"].to_numpy())[:, None]
        local = np.hstack([design, design * t[:, None]])
        expected.append(np.linalg.lstsq(local * root, data["y"].to_numpy() * root[:, 0], rcond=None)[0][:2])
    for j, name in enumerate(("expert1.Intercept", "expert1.z1")):
        found = frame.loc[frame["coefficient"] == name, "estimate"]
        np.testing.assert_allclose(found, np.array(expected)[:, j], atol=1e-12)
