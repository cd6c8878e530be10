"""What follows from a fit with correlated, unequal or heavy-tailed errors: predictions, residuals, draws, files."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest, multivariate_normal, multivariate_t, norm, t

import mixmoe as mm
from mixmoe.errors import BoundaryWarning, DesignError, MixmoeWarning
from mixmoe.inference.wald import InvalidTest
from mixmoe.mixed.prediction.dynamic import given_covariates, given_history
from mixmoe.mixed.prediction.trajectories import disturbances
from tests import dense
from tests.fits import carried
from tests.mixed.test_errors import ERRORS, serial_data

FITTED = {
    "ar1": {"errors": "ar1", "time": "visit"},
    "car1": {"errors": "car1", "time": "time"},
    "bm": {"errors": "bm", "time": "time"},
    "t": {"errors_dist": "t", "errors_df": 5.0},
    "car1 t": {"errors": "car1", "time": "time", "errors_dist": "t", "errors_df": 4.0},
    "bm t": {"errors": "bm", "time": "time", "errors_dist": "t", "errors_df": 6.0},
    "sigma": {},
}


def two_groups(seed=5, n_subjects=80):
    """The data of `serial_data` with random slopes of x and a second group that grows faster."""
    data = serial_data(seed, n_subjects)
    effect = np.random.default_rng(seed).normal(size=(2, n_subjects))[:, data["id"]]
    data["y"] += 2 * effect[0] + 1.5 * data["x"] * effect[1]
    data["visit"] = data.groupby("id").cumcount() + 1
    late = data["id"] >= n_subjects // 2
    return data.assign(y=data["y"] + late * (4 + 1.5 * data["time"]))


@pytest.fixture(scope="module")
def fitted():
    """Two experts per kind of errors, each fitted once."""
    done = {}

    def of(kind):
        if kind not in done:
            formula = "y ~ time | re: (1 + x | id) | sigma: x"
            done[kind] = carried(formula, two_groups(), **FITTED[kind])
        return done[kind]

    return of


def law(fit, k, rows, times):
    """Mean, covariance of all rows, and of the errors without measurement error, of one subject under expert k."""
    d = fit.model.design
    expert = dense.experts(d, dense.as_named(fit.model.layout, fit.params.to_numpy()), 2)[k]
    X = np.column_stack([np.ones(len(rows)), rows["time"]])
    Z = np.column_stack([np.ones(len(rows)), rows["x"]])
    R = dense.error_covariance(expert, rows[["x"]].to_numpy(), times)
    return X @ expert.beta, Z @ expert.D @ Z.T, R


def by_hand(fit, kind, past, new, df):
    """Probabilities, means, scales of signal and noise, and degrees of freedom at one new row, per expert."""
    both = pd.concat([past, new])
    column = {"ar1": "visit", "car1": "time", "car1 t": "time", "bm": "time", "bm t": "time"}.get(kind)
    times = both[column].to_numpy(dtype=float) if column else np.arange(len(both)) * 1.0
    y, n = past["y"].to_numpy(), len(past)
    out, log_weight = [], []
    share = fit.predict(new, kind="probabilities", interval="confidence").to_numpy()[0][[0, 4]]
    for k in range(2):
        mean, effects, R = law(fit, k, both, times)
        V = effects + R
        gain = np.linalg.solve(V[:n, :n], V[:n, n])
        r = y - mean[:n]
        total = V[n, n] - gain @ V[:n, n]
        prior = multivariate_normal(cov=V[:n, :n]) if df is None else multivariate_t(shape=V[:n, :n], df=df)
        log_weight.append(np.log(share[k]) + prior.logpdf(r))
        stretch = 1.0 if df is None else (df + r @ np.linalg.solve(V[:n, :n], r)) / (df + n)
        out.append((mean[n] + gain @ r, np.sqrt(total * stretch)))
    weight = np.exp(np.array(log_weight) - np.logaddexp(*log_weight))
    means, scales = np.array(out).T
    return weight, means, scales, None if df is None else df + n


@pytest.mark.parametrize("kind", FITTED)
def test_dynamic_prediction_is_the_conditional_distribution(kind, fitted):
    fit = fitted(kind)
    one = two_groups().query("id == 3")
    past, new = one.iloc[[3, 0, 1]], one.iloc[[5]]
    weight, means, scales, df = by_hand(fit, kind, past.sort_values("time"), new, FITTED[kind].get("errors_df"))
    found = fit.predict(new, kind="subject", history=past, interval="prediction", alpha=0.1).iloc[0]
    assert found["mean"] == pytest.approx((weight * means).sum(), rel=1e-8)
    cdf = norm.cdf if df is None else t(df).cdf
    for side, level in (("mean_low", 0.05), ("mean_high", 0.95)):
        assert (weight * cdf((found[side] - means) / scales)).sum() == pytest.approx(level, abs=1e-8)


def test_neighbours_in_time_pull_the_prediction(fitted):
    fit = fitted("car1")
    past = two_groups().query("id == 3 and time < 5")
    ahead = pd.DataFrame({"id": 3, "time": [3.001, 3.5, 4, 6, 60], "x": past["x"].iloc[-1]})
    near = fit.predict(ahead, kind="subject", history=past, interval="prediction")
    assert near["mean"].iloc[0] == pytest.approx(past["y"].iloc[-1], abs=0.05)
    spread = near["mean_high"] - near["mean_low"]
    assert (np.diff(spread.iloc[:4]) > 0).all()


@pytest.mark.parametrize("kind", ["car1", "bm t"])
def test_strangers_are_predicted_from_the_gate(kind, fitted):
    fit = fitted(kind)
    new = pd.DataFrame({"id": [999, 999], "time": [1.0, 4.0], "x": [0.0, 1.0]})
    with pytest.warns(MixmoeWarning, match="1 of the 1 subjects of the new data are not in the fit"):
        found = fit.predict(new, kind="subject", interval="prediction")
    assert found["mean"].to_numpy() == pytest.approx(
        fit.predict(new, kind="mean", interval="confidence")["mean"].to_numpy()
    )
    d = fit.model.design.for_new(new)
    e = fit.model.user(fit.em.params)
    mixture = given_covariates(e, d.expert, d.random, d.gate, d.codes, disturbances(d, e, fit.model.errors))
    assert found["mean_high"].to_numpy() == pytest.approx(mixture.quantile(0.975), rel=1e-8)


@pytest.mark.parametrize("kind", FITTED)
def test_predictions_at_the_rows_of_the_fit(kind, fitted):
    fit, data = fitted(kind), two_groups()
    found = fit.predict(data, kind="subject", interval="prediction")
    if "ar1" in kind:  # all of the error is serial, none of it measurement error
        for column in ("mean", "mean_low", "mean_high"):
            assert found[column].to_numpy() == pytest.approx(data["y"].to_numpy(), abs=1e-5)
    else:
        assert found["mean"].to_numpy() == pytest.approx(fit.fitted().to_numpy(), rel=1e-10)
        assert (found["mean_high"] - found["mean_low"]).min() > 0.1
    if "bm" not in kind:  # x'beta + z'b, mixed over the experts
        d, e = fit.model.design, fit.model.user(fit.em.params)
        b = fit.random_effects
        effects = [b[f"expert{k + 1}"].to_numpy()[d.codes, ::2] for k in range(2)]
        given = [d.expert @ e.beta[0, k] + (d.random * effects[k]).sum(axis=1) for k in range(2)]
        mixed = (fit.em.responsibilities[d.codes] * np.column_stack(given)).sum(axis=1)
        assert d.in_order(mixed) == pytest.approx(fit.fitted().to_numpy(), rel=1e-8)
        assert fit.resid("subject").to_numpy() == pytest.approx(data["y"].to_numpy() - d.in_order(mixed), abs=1e-6)


@pytest.mark.parametrize("interval", ["confidence", "prediction"])
@pytest.mark.parametrize("kind", ["car1", "bm", "car1 t", "bm t"])
def test_the_course_of_a_subject_is_continuous_in_time(kind, interval, fitted):
    fit, one = fitted(kind), two_groups().query("id == 3")
    beside = pd.concat([one.assign(time=one["time"] + h) for h in (0.0, 1e-9, -1e-9)])
    for past in (None, one):  # subjects of the fit, and the same as a history
        found = fit.predict(beside, kind="subject", history=past, interval=interval).to_numpy().reshape(3, len(one), 4)
        assert found[1] == pytest.approx(found[0], abs=1e-3)
        assert found[2] == pytest.approx(found[0], abs=1e-3)


def test_visits_without_times_follow_those_of_the_history():
    data = serial_data().assign(visit=lambda d: d.groupby("id").cumcount())
    timed = mm.fit("y ~ x | re: (0 | id)", data, 1, errors="ar1", time="visit")
    counted = mm.fit("y ~ x | re: (0 | id)", data, 1, errors="ar1")
    new = data.query("id < 4").groupby("id").head(2)
    after = timed.predict(new.assign(visit=new["visit"] + 6), kind="subject", interval="prediction")
    found = counted.predict(new, kind="subject", interval="prediction")
    np.testing.assert_allclose(found, after, rtol=1e-6)
    own = counted.predict(kind="subject")["mean"].to_numpy()
    assert own == pytest.approx(data["y"].to_numpy(), abs=1e-6)


@pytest.mark.parametrize("kind", FITTED)
def test_one_step_ahead_densities_multiply_to_the_likelihood(kind, fitted):
    fit = fitted(kind)
    d, e = fit.model.design, fit.model.user(fit.em.params)
    found = given_history(e, d.response, d.expert, d.random, d.gate, disturbances(d, e, fit.model.errors))
    z = (d.response[:, None] - found.means) / found.sd
    density = (norm.pdf(z) if found.df is None else t.pdf(z, found.df)) / found.sd
    assert np.log((found.weights * density).sum(axis=1)).sum() == pytest.approx(fit.llf, rel=1e-8)


def test_random_effects_of_t_experts_have_their_covariance(fitted):
    fit = fitted("t")
    d = fit.model.design
    named = dense.as_named(fit.model.layout, fit.params.to_numpy())
    means, covariances = dense.blups(d, named, 2)
    found = fit.random_effects
    df = FITTED["t"]["errors_df"]
    for k, expert in enumerate(dense.experts(d, named, 2)):
        assert found[f"expert{k + 1}", "x"].to_numpy() == pytest.approx(means[:, k, 1], abs=1e-6)
        rows = d.codes == 0
        Z, r = d.random[rows], d.response[rows] - d.expert[rows] @ expert.beta
        V = Z @ expert.D @ Z.T + dense.error_covariance(expert, d.sigma[rows], np.arange(rows.sum()) * 1.0)
        factor = (df + r @ np.linalg.solve(V, r)) / (df + rows.sum() - 2)
        assert found[f"expert{k + 1}", "x_se"].iloc[0] ** 2 == pytest.approx(factor * covariances[0, k, 1, 1], rel=1e-5)


@pytest.mark.parametrize("kind", ["ar1", "bm", "car1 t"])
def test_draws_have_the_moments_of_the_model(kind, fitted):
    fit = fitted(kind)
    d = fit.model.design
    draws = fit.simulate(rng=1, n=1500).to_numpy().T  # (draws, rows)
    e = fit.model.user(fit.em.params)
    one = two_groups().query("id == 0")
    times = one["visit" if kind == "ar1" else "time"].to_numpy(dtype=float)
    share = fit.predict(one, kind="probabilities", interval="confidence").to_numpy()[0][[0, 4]]
    df = FITTED[kind].get("errors_df")
    laws = [law(fit, k, one, times) for k in range(2)]
    mean = sum(p * m for p, (m, _, _) in zip(share, laws, strict=True))
    inflated = 1.0 if df is None else df / (df - 2)
    V = sum(p * (inflated * (D + R) + np.outer(m - mean, m - mean)) for p, (m, D, R) in zip(share, laws, strict=True))
    sample = draws[:, :6]
    assert d.codes[:6].tolist() == [0] * 6
    assert e.beta.shape[1] == 2
    assert sample.mean(axis=0) == pytest.approx(mean, abs=5 * np.sqrt(V.max() / 1500))
    assert np.abs(np.cov(sample.T) - V).max() < (0.12 if df is None else 0.35) * V.max()


def test_quantile_residuals_are_standard_normal_when_the_model_is_true(fitted):
    fit = fitted("car1 t")
    redrawn = two_groups().assign(y=fit.simulate(rng=3)["draw1"])
    again = mm.MEMoE(fit.model.formula, redrawn, 2, **FITTED["car1 t"])
    true = mm.MEMoE.fit(again, start=fit.params, starts=0, max_iter=200, rng=1)
    assert kstest(true.resid("quantile"), "norm").pvalue > 0.01


def test_normalized_residuals_whiten_the_errors():
    data = serial_data(n_subjects=200)
    fit = mm.fit("y ~ time | re: (0 | id) | sigma: x", data, 1, errors="bm", time="time")
    whole = fit.resid("normalized").to_numpy().reshape(200, 6)
    assert np.corrcoef(whole.T)[np.triu_indices(6, 1)] == pytest.approx(np.zeros(15), abs=0.25)
    assert whole.std() == pytest.approx(1, abs=0.02)
    plain = mm.fit("y ~ time | re: (1 | id)", data, 1)
    np.testing.assert_allclose(plain.resid("normalized"), plain.resid("subject") / plain.params["sigma1"])


@pytest.mark.parametrize("kind", ["ar1", "car1 t", "bm t", "sigma"])
def test_files_and_relabelling_keep_everything(kind, fitted, tmp_path):
    fit = fitted(kind)
    fit.save(tmp_path / "fit.mixmoe")
    again = mm.load(tmp_path / "fit.mixmoe")
    pd.testing.assert_series_equal(again.params, fit.params)
    np.testing.assert_allclose(again.fitted(), fit.fitted())
    np.testing.assert_allclose(again.resid("quantile"), fit.resid("quantile"))
    swapped = fit.relabel([2, 1])
    np.testing.assert_allclose(swapped.fitted(), fit.fitted(), rtol=1e-10)
    assert swapped.params["sigma1.x"] == fit.params["sigma2.x"]
    assert swapped.bse["sigma1.x"] == pytest.approx(fit.bse["sigma2.x"])
    assert swapped.model.loglike(swapped.params) == pytest.approx(fit.llf)


def test_bootstrap_and_covariances_agree(fitted):
    fit = fitted("car1")
    robust, nonrobust = fit.bse, fit.with_cov("nonrobust").bse
    drawn = fit.with_cov("bootstrap", n_boot=40, rng=1).bse
    assert np.median(nonrobust / robust) == pytest.approx(1, abs=0.25)
    assert np.median(drawn / robust) == pytest.approx(1, abs=0.3)


def test_new_rows_need_their_times(fitted):
    with pytest.raises(DesignError, match="needs the column 'visit' of time= also here"):
        fitted("ar1").predict(pd.DataFrame({"id": [3], "time": [1.0], "x": [0.0]}), kind="subject")
    assert len(fitted("ar1").predict(pd.DataFrame({"id": [3], "time": [1.0], "x": [0.0]}), kind="mean")) == 1


def test_ends_of_the_space_are_flagged():
    data = serial_data()
    rng = np.random.default_rng(8)
    flat = data.assign(y=data["time"] + rng.normal(size=len(data)) + rng.normal(size=60)[data["id"]])
    with pytest.warns(BoundaryWarning, match="there is no Brownian motion left"):
        still = mm.fit("y ~ time | re: (1 | id)", flat, 1, errors="bm", time="time")
    assert [flag.code for flag in still.flags] == ["edge"]
    assert np.isnan(still.bse["sd_bm1"])
    assert np.isfinite(still.bse.drop("sd_bm1")).all()
    plain = mm.fit("y ~ time | re: (1 | id)", flat, 1)
    assert still.llf == pytest.approx(plain.llf, abs=1e-4)
    assert still.bse["expert1.time"] == pytest.approx(plain.bse["expert1.time"], rel=1e-3)


def test_heavy_tails_are_robust():
    data = serial_data(n_subjects=120).assign(y=lambda d: d["y"] + 40 * (d["id"] < 3))
    plain = mm.fit("y ~ time | re: (1 | id)", data, 1)
    robust = mm.fit("y ~ time | re: (1 | id)", data, 1, errors_dist="t")
    assert robust.llf > plain.llf + 50
    assert robust.params["df1"] < 5
    assert abs(robust.params["expert1.Intercept"] - 5) < abs(plain.params["expert1.Intercept"] - 5)
    assert set(ERRORS) >= {"t"}


@pytest.fixture(scope="module")
def nested():
    """One-expert fits of the same data with several errors."""
    data = serial_data().assign(visit=lambda d: d.groupby("id").cumcount())
    options = {
        "iid": {},
        "ar1": {"errors": "ar1", "time": "visit"},
        "order": {"errors": "ar1"},
        "car1": {"errors": "car1", "time": "time"},
        "bm": {"errors": "bm", "time": "time"},
        "bm t": {"errors": "bm", "time": "time", "errors_dist": "t"},
        "bm t5": {"errors": "bm", "time": "time", "errors_dist": "t", "errors_df": 5},
        "sigma": {},
    }
    formulas = {"sigma": "y ~ time | re: (1 | id) | sigma: x"}
    with pytest.warns(BoundaryWarning):  # the errors are normal
        return {k: mm.fit(formulas.get(k, "y ~ time | re: (1 | id)"), data, 1, **v) for k, v in options.items()}


@pytest.mark.parametrize(
    ("small", "large", "null"),
    [
        ("iid", "ar1", "chi2(1)"),
        ("iid", "sigma", "chi2(1)"),
        ("iid", "bm", "0.5 chi2(0) + 0.5 chi2(1)"),
        ("bm", "bm t", "0.5 chi2(0) + 0.5 chi2(1)"),
        ("iid", "bm t", "0.5 chi2(1) + 0.5 chi2(2)"),
        ("bm t5", "bm t", "chi2(1)"),
    ],
)
def test_likelihood_ratio_tests_of_errors(small, large, null, nested):
    if large == "bm t" and small == "bm t5":  # df of the larger one ran to its end, where nothing is known
        assert "end of its space" in str(nested[small].lr_test(nested[large]))
        return
    found = nested[small].lr_test(nested[large])
    assert str(found.null) == null
    assert found.statistic == pytest.approx(2 * (nested[large].llf - nested[small].llf), abs=1e-3)


@pytest.mark.parametrize(
    ("one", "two", "reason"),
    [
        ("iid", "car1", "vanishes only where phi is infinite"),
        ("ar1", "bm t", "is no special case of"),
        ("order", "ar1", "take times from"),
        ("sigma", "bm t", "the covariates of the standard deviation"),
        ("bm", "bm t5", "fixes errors_df=5.0"),
    ],
)
def test_tests_that_would_mean_nothing(one, two, reason, nested):
    found = nested[one].lr_test(nested[two])
    assert isinstance(found, InvalidTest)
    assert re.search(reason, found.reason)


def test_the_summary_says_what_the_errors_are(fitted):
    text = str(fitted("car1 t").summary())
    assert re.search(r"Errors: +continuous AR\(1\) over time, t, df 4", text)
    assert "expert 2: phi" in text
    assert "  Residuals\n" in text
    assert "Residual standard deviations" in str(mm.fit("y ~ time | re: (1 | id)", serial_data(), 1).summary())
    ar1 = fitted("ar1")
    frame = ar1.to_frame()
    low, high = np.arctanh(frame.loc["rho1", ["conf_low", "conf_high"]].to_numpy(dtype=float))
    assert (low + high) / 2 == pytest.approx(np.arctanh(frame.loc["rho1", "estimate"]))
    assert frame.loc["sigma1.x", "p_value"] < 1
    assert np.isnan(fitted("bm").to_frame().loc["sd_bm1", "p_value"])
    assert "rho" in ar1.to_latex()
    assert ar1.wald_test("rho1 = rho2").pvalue > 0
    assert ar1.wald_test("sigma1.x = sigma2.x").pvalue > 0


def test_a_profile_of_the_correlation(fitted):
    profile = fitted("ar1").profile("rho1", points=5)
    assert profile is not None
