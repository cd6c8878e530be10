"""Estimates without a finite maximum: flagged with their place, bounded, without a covariance."""

import re
from decimal import Decimal, localcontext

import numpy as np
import pandas as pd
import pytest

from mixmoe.errors import BoundaryWarning, ConvergenceWarning, DegeneracyWarning
from mixmoe.responses.distribution import LEAST_ETA, VANISHED, Outcome
from mixmoe.responses.exponential import family_named
from mixmoe.varying.function_frames import _on_link_scale
from mixmoe.varying.identifiability import _runs
from mixmoe.varying.likelihood_limits import distances
from mixmoe.varying.model import VCMoE

ALL = (BoundaryWarning, ConvergenceWarning, DegeneracyWarning)


@pytest.fixture(scope="module")
def counts() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"u": rng.uniform(size=300), "z1": rng.normal(size=300)})
    y = rng.poisson(np.exp(1.0 + 0.3 * data["z1"]))
    return data.assign(y=y, zeros=np.where(data["u"] < 0.3, 0, y), b=np.arange(300) % 3 == 0)


def test_constants_of_separated_responses_have_no_standard_error(counts):
    data = counts.assign(y=(counts["z1"] > 0.0) * 1.0)
    with pytest.warns(ALL):
        fit = VCMoE("y ~ z1 | vary: u", data, experts=1, family="binomial", bandwidth=np.inf).fit()
    assert fit.bse.isna().all()
    assert "separated_expert" in [flag.code for flag in fit.flags]
    assert "expert1.z1" in str(fit.summary())


@pytest.mark.parametrize("family", ["poisson", "negbinomial"])
def test_a_region_of_zeros_is_flagged_with_its_range(counts, family):
    model = VCMoE("zeros ~ z1 | vary: u", counts, experts=1, family=family, bandwidth=0.1, n_grid=30)
    with pytest.warns(ALL):
        fit = model.fit()
    said = next(flag.message for flag in fit.flags if flag.code == "separated_expert")
    assert re.search(r"Fitted means are zero .* expert 1 at u = 0\.000\d+ to 0\.\d+: all counts there are zero", said)
    assert fit.converged
    functions = fit.functions()
    level = functions[(functions["coefficient"] == "expert1.Intercept") & (functions["u"] < 0.15)]["estimate"]
    np.testing.assert_allclose(
        level, LEAST_ETA, atol=1e-6 if family == "poisson" else 1e-3
    )  # theta at its floor, 0.001
    assert functions["estimate"].abs()[functions["block"] == "expert"].max() < 100.0
    with pytest.warns(ALL, match="no bands"):
        bands = fit.bands(rng=0)
    late = bands[(bands["block"] == "expert") & (bands["u"] > 0.5)]
    assert bands["std_error"][bands["u"] < 0.15].isna().all()
    if family == "poisson":  # theta of counts without overdispersion is at its limit here and there
        assert np.isfinite(late["std_error"]).all()
    assert np.isnan(fit.bse.iloc[0])


def test_rows_with_counts_are_estimated_as_without_the_region(counts):
    options = {"experts": 1, "family": "poisson", "bandwidth": 0.1}
    with pytest.warns(ALL):
        fit = VCMoE("zeros ~ z1 | vary: u", counts, **options).fit()
    plain = VCMoE("y ~ z1 | vary: u", counts, **options).fit()
    at = [0.6, 0.8]  # farther than two bandwidths away
    np.testing.assert_allclose(fit.functions(at)["estimate"], plain.functions(at)["estimate"], rtol=1e-6)


def test_a_coefficient_that_ran_off_leaves_the_others_their_standard_errors(counts):
    data = counts.assign(y=np.where(counts["b"], 0, counts["y"]), b=1.0 * counts["b"])
    rest, both = data[data["b"] == 0.0], {"experts": 1, "family": "poisson", "n_grid": 15}
    with pytest.warns(ALL):
        fit = VCMoE("y ~ z1 + b | vary: u", data, bandwidth=0.3, **both).fit()
    assert "separated_expert" in [flag.code for flag in fit.flags]
    assert fit.bse[fit.bse.index.str.startswith("expert1.b")].isna().all()
    assert np.isfinite(fit.bse[fit.bse.index.str.startswith("expert1.z1")]).all()
    alone = VCMoE("y ~ z1 | vary: u", rest, bandwidth=0.3, grid=fit.model.problem.windows.grid, **both).fit()
    at = [0.25, 0.5, 0.75]
    of_rest = fit.functions(at)
    of_rest = of_rest[of_rest["term"] != "b"]["estimate"]
    np.testing.assert_allclose(of_rest, alone.functions(at)["estimate"], rtol=1e-5)


def test_a_zero_state_keeps_a_bounded_predictor():
    rng = np.random.default_rng(1)
    data = pd.DataFrame({"u": rng.uniform(size=400), "x": rng.normal(size=400)})
    zero = rng.uniform(size=400) < 0.4
    data["y"] = np.where(zero, 0, rng.poisson(np.exp(2.0 + np.sin(3.0 * data["u"]))))
    with pytest.warns(ALL):
        fit = VCMoE("y ~ 1 | vary: u", data, experts=2, family="poisson", bandwidth=np.inf).fit(rng=0, starts=3)
    assert fit.converged
    assert fit.params["expert2.Intercept"] == pytest.approx(LEAST_ETA, abs=1e-3)
    assert np.isnan(fit.bse["expert2.Intercept"])
    assert np.isfinite(fit.bse.drop("expert2.Intercept")).all()


@pytest.mark.parametrize("family", ["poisson", "negbinomial"])
def test_scoring_steps_of_zeros_end_at_the_limit(family):
    dist = family_named(family)
    out = Outcome(np.zeros(5), np.ones(5), np.zeros(5))
    eta = np.array([[-5.0, VANISHED + 0.1, LEAST_ETA, -100.0, -1e9]])
    score, information = dist.scoring(out, eta, np.zeros((1, 5)))
    expected = [-1.0, -1.0, 0.0, VANISHED + 100.0, VANISHED + 1e9]
    np.testing.assert_allclose((score / information)[0], expected, rtol=1e-6, atol=1e-6)


def test_scoring_lifts_predictors_where_there_are_counts():
    score, _ = family_named("poisson").scoring(
        Outcome(np.ones(1), np.ones(1), np.zeros(1)), np.full((1, 1), -40.0), 0.0
    )
    assert score[0, 0] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("mean", [1e-13, 1e-8, 1e-5])
def test_derivatives_by_theta_of_zero_counts_with_small_means(mean):
    theta = 0.37
    parts = family_named("negbinomial").derivatives(
        Outcome(np.zeros(1), np.ones(1), np.zeros(1)), np.full((1, 1), np.log(mean)), np.full((1, 1), np.log(theta))
    )
    with localcontext() as context:
        context.prec = 60
        x, t = Decimal(float(np.exp(np.log(mean)))) / Decimal(float(np.exp(np.log(theta)))), Decimal(theta)
        first = x / (1 + x) - (1 + x).ln()
        slope, curve = t * first, -t * first - t * (x / (1 + x)) ** 2
    assert parts.delta[0, 0] == pytest.approx(float(slope), rel=1e-4)
    assert parts.delta_delta[0, 0] == pytest.approx(float(curve), rel=1e-4)


def test_runs_of_grid_points_are_named_apart():
    grid = np.linspace(0.0, 1.0, 11)
    bad = np.isin(np.arange(11), [0, 1, 2, 5, 9, 10])
    assert _runs(grid, bad) == "0 to 0.2, 0.5, 0.9 to 1"
    assert _runs(np.arange(14.0), np.arange(14) % 2 == 0) == "0, 2, 4, 6, 8 and 2 more places"


def test_limits_without_end_are_infinite():
    shifts = np.linspace(-4.0, 4.0, 17)
    shape = np.exp(-8.0 * np.abs(shifts))
    flat = np.where(np.abs(shifts) > 1.0, 0.0, shape)
    assert np.isfinite(distances(shifts, np.ones(17), 2.0)).all()
    assert np.isfinite(distances(shifts, flat, 0.01)).all()
    assert (distances(shifts, flat, 50.0) > shifts[-1]).all()
    assert np.isinf(distances(shifts, np.zeros(17), 5.0)).all()


@pytest.mark.parametrize(("family", "end"), [("binomial", 0.0), ("binomial", 1.0), ("poisson", 0.0)])
def test_limits_of_a_mean_at_the_end_of_its_range(family, end):
    half = np.array([[end], [0.5], [0.5]])
    far = {
        name: half + np.array([[1e-9], [0.1], [np.nan]]) for name in ("conf_low", "conf_high", "band_low", "band_high")
    }
    out = _on_link_scale({"center": half, **far}, family_named(family), 1.0)
    assert out["conf_high"][0, 0] == end
    assert 0.5 < out["conf_high"][1, 0] < 0.62
    assert np.isnan(out["conf_high"][2, 0])
