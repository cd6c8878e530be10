"""Experts with certain zeros: maxima against SciPy and the other family, what experts share, ends of the space."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logsumexp
from scipy.stats import nbinom, poisson

import mixmoe as mm
from mixmoe.errors import ArgumentError, BoundaryWarning


def counts(n_subjects=150, visits=5, levels=(1.6, 0.5), zeros=(0.15, 0.4), theta=None, seed=3):
    """Two groups of subjects by a covariate of theirs."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n_subjects)
    group = (rng.random(n_subjects) < expit(-0.3 + z)).astype(int)
    subject, t = np.repeat(np.arange(n_subjects), visits), np.tile(np.linspace(0.0, 1.0, visits), n_subjects)
    of_row = group[subject]
    mean = np.exp(np.array(levels)[of_row] + np.array([0.6, -0.4])[of_row] * t)
    scatter = 1.0 if theta is None else rng.gamma(theta, 1.0 / theta, t.size)
    y = np.where(rng.random(t.size) < np.array(zeros)[of_row], 0, rng.poisson(mean * scatter))
    return pd.DataFrame({"id": subject, "t": t, "z": z[subject], "y": y})


@pytest.fixture(scope="module")
def data():
    return counts()


@pytest.fixture(scope="module")
def fit(data):
    return mm.fit("y ~ t | gate: z | re: (0 | id)", data, family="zip", starts=1, rng=0)


def dense(params, data, theta=None):
    """Log-likelihood of a mixture without random effects: two coefficients and a log odds of each expert, the gate."""
    y, t, joint = data["y"].to_numpy(), data["t"].to_numpy(), []
    for k in (0, 1):
        intercept, slope, odds = params[3 * k : 3 * k + 3]
        mu = np.exp(intercept + slope * t)
        law = poisson(mu) if theta is None else nbinom(np.exp(params[8 + k]), 1.0 / (1.0 + mu / np.exp(params[8 + k])))
        each = np.logaddexp(log_expit(odds) + np.where(y == 0, 0.0, -np.inf), log_expit(-odds) + law.logpmf(y))
        joint.append(pd.Series(each).groupby(data["id"].to_numpy()).sum().to_numpy())
    gate = params[6] + params[7] * data.groupby("id")["z"].first().to_numpy()
    return logsumexp([joint[0] + log_expit(-gate), joint[1] + log_expit(gate)], axis=0).sum()


@pytest.mark.parametrize("family", ["zip", "zinb"])
def test_the_maximum_is_that_of_scipy_from_the_truth(fit, data, family):
    truth, theta = [1.6, 0.6, -1.7, 0.5, -0.4, -0.4, -0.3, 1.0], None if family == "zip" else 4.0
    if theta is not None:
        data, truth = counts(80, theta=theta), [*truth, np.log(theta), np.log(theta)]
        model = mm.MEMoE("y ~ t | gate: z | re: (0 | id)", data, family=family)
        start = [1.6, 0.6, 0.5, -0.4, -0.3, 1.0, theta, theta, 0.15, 0.4]
        fit = model.fit(start=pd.Series(start, index=model.layout.names), cov_type="nonrobust")
    best = minimize(lambda p: -dense(p, data, theta), truth, method="BFGS", options={"gtol": 1e-4})
    assert fit.llf == pytest.approx(-best.fun, abs=1e-5)
    found = fit.params[[f"zeros{k}" for k in (1, 2)]].to_numpy()
    assert np.sort(found) == pytest.approx(np.sort(expit(best.x[[2, 5]])), abs=1e-4)


def test_rows_of_the_other_family_have_the_same_mixture(data):
    """One response in both families: with everything constant along the index VCMoE is the model of single rows."""
    rows = data.assign(row=data.index)
    ours = mm.fit("y ~ z | re: (0 | row)", rows, 1, family="zinb", cov_type="nonrobust")
    theirs = mm.fit("y ~ z | vary: t", rows, 1, family="zinb", bandwidth=np.inf, dispersion="const", tol=1e-9)
    assert type(ours.model.response.response.family) is type(theirs.model.problem.family)
    assert ours.llf == pytest.approx(theirs.llf, abs=1e-5)
    assert ours.params["zeros1"] == pytest.approx(theirs.params["zeros1"], abs=1e-3)
    assert ours.params["theta1"] == pytest.approx(theirs.model.estimated_shape, rel=5e-3)


def test_experts_that_differ_in_their_zeros_alone_are_found():
    data = counts(80, levels=(1.2, 1.2), zeros=(0.1, 0.6), seed=5)
    fit = mm.fit("y ~ common(1 + t) | gate: z | re: (0 | id)", data, family="zip", starts=1, rng=0)
    assert fit.em.starts.n_replicated > 1
    assert np.sort(fit.params[["zeros1", "zeros2"]]) == pytest.approx([0.1, 0.6], abs=0.08)
    one = mm.fit("y ~ t | re: (0 | id)", data, 1, family="zip", rng=0)
    assert fit.llf > one.llf + 10.0


def test_experts_may_share_the_probability(data, fit):
    shared = mm.MEMoE("y ~ t | gate: z | re: (0 | id)", data, family="zip", residual="common")
    start = fit.params.drop("zeros2").rename({"zeros1": "zeros"})
    shared = shared.fit(start=start, cov_type="nonrobust")
    assert [name for name in shared.params.index if "zeros" in name] == ["zeros"]
    assert shared.llf < fit.llf
    assert shared.df_model == fit.df_model - 1


def test_ends_of_the_space_are_said():
    rng = np.random.default_rng(0)
    data = counts(levels=(1.6, 1.6), zeros=(0.0, 0.0))
    with pytest.warns(BoundaryWarning, match="zeros1: there are no more zeros than the counts themselves have"):
        fit = mm.fit("y ~ t | re: (0 | id)", data.assign(y=rng.binomial(8, 0.4, len(data))), 1, family="zip")
    assert np.isnan(fit.bse["zeros1"])
    assert np.isfinite(fit.bse.drop("zeros1")).all()
    plain = mm.fit("y ~ t | re: (0 | id)", data.assign(y=fit.model.design.response), 1, family="poisson")
    assert fit.llf == pytest.approx(plain.llf, abs=0.05)
    limits, right = (f.predict(data.head(3), interval="confidence") for f in (fit, plain))
    np.testing.assert_allclose(limits["mean_se"], right["mean_se"], rtol=0.01)  # the share of zeros is taken as known


def test_outputs_carry_the_zeros(data, fit, tmp_path):
    text = str(fit.summary())
    assert "Probability of a certain zero" in text
    assert "Limits of zeros are computed on log odds." in text
    p, half = fit.params["zeros1"], 1.959964 * fit.bse["zeros1"]
    odds = np.log(p / (1.0 - p)) + np.array([-1.0, 1.0]) * half / (p * (1.0 - p))
    np.testing.assert_allclose(fit.conf_int().loc["zeros1"], expit(odds), rtol=1e-5)
    fit.save(tmp_path / "fit.mixmoe")
    again = mm.load(tmp_path / "fit.mixmoe")
    pd.testing.assert_series_equal(again.params, fit.params)
    pd.testing.assert_frame_equal(again.predict(data.head()), fit.predict(data.head()))
    mean = np.exp(fit.params["expert1.Intercept"] + fit.params["expert1.t"] * data["t"].head(3)) * (1.0 - p)
    np.testing.assert_allclose(fit.predict(data.head(3), kind="experts")["expert1"], mean, rtol=1e-10)
    draws = fit.simulate(rng=0)["draw1"]
    assert (draws == 0).mean() == pytest.approx((data["y"] == 0).mean(), abs=0.06)


def test_arguments():
    data = counts(30)
    with pytest.raises(ArgumentError, match="trials='t' is for family='binomial', got family='zip'"):
        mm.fit("y ~ t | re: (0 | id)", data, 1, family="zip", trials="t")
    found = mm.select("y ~ t | re: (0 | id)", data, experts=[1], family=["poisson", "zip", "zipoisson"], rng=0)
    assert [dict(c.structure)["family"] for c in found.candidates] == ["poisson", "zipoisson"]
