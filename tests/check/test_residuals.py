"""Quantile residuals: the filter against the likelihood and dense algebra, uniformity under the truth, envelopes."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtr, ndtri
from scipy.stats import binom, kstest, multivariate_normal, norm, poisson

import mixmoe as mm
from mixmoe.check.residuals import continuous, local_level, ordered_residuals, placed, quantile_residuals
from mixmoe.errors import ArgumentError
from mixmoe.mixed.prediction.dynamic import given_covariates, given_history
from mixmoe.mixed.prediction.trajectories import disturbances
from tests.check.helpers import pbc, simulated


@pytest.mark.parametrize("random", ["1 + year", "0"])
def test_one_step_ahead_densities_multiply_to_the_likelihood(random):
    fit = pbc(3 if random == "0" else 2, random=random)
    d, e = fit.model.design, fit.model.user(fit.em.params)
    found = given_history(e, d.response, d.expert, d.random, d.gate, disturbances(d, e, None))
    density = (found.weights * norm.pdf(d.response[:, None], found.means, found.sd)).sum(axis=1)
    assert np.log(density).sum() == pytest.approx(fit.llf, abs=1e-6)
    alone = given_covariates(e, d.expert, d.random, d.gate, d.codes, disturbances(d, e, None))
    for name in ("weights", "means", "sd"):
        np.testing.assert_allclose(getattr(found, name)[d.starts], getattr(alone, name)[d.starts], rtol=1e-10)


def test_last_visit_given_the_others_by_dense_algebra():
    fit = pbc()
    d, e = fit.model.design, fit.model.user(fit.em.params)
    found = given_history(e, d.response, d.expert, d.random, d.gate, disturbances(d, e, None))
    i = int(np.flatnonzero(d.counts == 6)[0])
    rows = np.arange(d.starts[i], d.starts[i] + 6)
    pi = np.exp(d.gate[i] @ e.gamma[0, 0])
    prior = np.array([1, pi]) / (1 + pi)
    for k in range(2):
        Z, T = d.random[rows], e.factor[0, k]
        V = Z @ T @ T.T @ Z.T + e.sigma[0, k] ** 2 * np.eye(6)
        r = d.response[rows] - d.expert[rows] @ e.beta[0, k]
        solve = np.linalg.solve(V[:5, :5], V[:5, 5])
        assert found.means[rows[5], k] == pytest.approx(d.expert[rows[5]] @ e.beta[0, k] + solve @ r[:5])
        assert found.sd[rows[5], k] == pytest.approx(np.sqrt(V[5, 5] - solve @ V[:5, 5]))
        prior[k] *= multivariate_normal.pdf(r[:5], cov=V[:5, :5])
    np.testing.assert_allclose(found.weights[rows[5]], prior / prior.sum(), rtol=1e-8)


@pytest.mark.parametrize("given", ["history", "covariates"])
def test_standard_normal_when_the_model_is_true(given):
    fit = simulated(n_subjects=400)
    residuals = fit.resid("quantile", given=given)
    assert kstest(residuals, "norm").pvalue > 0.05
    by_subject = residuals.groupby(fit.model.design.frame["id"].to_numpy())
    together = by_subject.mean().std() * np.sqrt(by_subject.size().mean())
    assert (together < 1.15) if given == "history" else (together > 1.3)  # independent, or correlated within subjects


def test_one_expert_without_random_effects_gives_standardised_residuals():
    sim = mm.simulate.memoe("single", n_subjects=50, rng=1)
    fit = mm.fit("y ~ time | re: (0 | id)", sim.data, experts=1)
    for given in ("history", "covariates"):
        found = fit.resid("quantile", given=given)
        np.testing.assert_allclose(found, fit.resid("mean") / fit.params.iloc[-1], rtol=1e-8)
        assert found.index.equals(sim.data.index)


def test_far_tails_keep_their_digits():
    z = np.array([-20.0, -3.0, 0.0, 3.0, 20.0])
    np.testing.assert_allclose(quantile_residuals(continuous(ndtr(z), ndtr(-z)), None), z, atol=1e-12)


def test_discrete_residuals_are_randomised_between_the_steps():
    rng = np.random.default_rng(1)
    y = rng.binomial(5, 0.3, size=4000)
    where = placed(lambda y: binom.cdf(y, 5, 0.3), lambda y: binom.sf(y, 5, 0.3), y, True)
    found = quantile_residuals(where, np.random.default_rng(2))
    assert kstest(found, "norm").pvalue > 0.05
    assert ((ndtri(where.below) <= found) & (found <= ndtri(where.at))).all()
    assert (found == quantile_residuals(where, np.random.default_rng(2))).all()


def test_counts_far_out_keep_their_digits_on_both_sides():
    y, mean = np.array([0.0, 400.0]), np.array([60.0, 100.0])
    where = placed(lambda y: poisson.cdf(y, mean), lambda y: poisson.sf(y, mean), y, True)
    found = quantile_residuals(where, np.random.default_rng(0))
    assert ndtri(np.exp(-60.0)) > found[0]  # below the place of a zero, whose probability this is
    share, (beyond, above) = np.random.default_rng(0).random(2)[1], poisson.sf([399, 400], 100.0)
    np.testing.assert_allclose(found[1], -ndtri((1 - share) * beyond + share * above), rtol=1e-12)
    assert 20 < found[1] < 25


@pytest.mark.parametrize("family", ["binomial", "poisson"])
def test_an_extreme_response_of_a_varying_fit_is_placed_in_its_own_tail(family):
    """One minus the distribution function is zero to double precision there, and the residual was 37."""
    rng = np.random.default_rng(0)
    u = np.linspace(0, 1, 300)
    data = pd.DataFrame({"u": u, "x": rng.normal(size=300), "n": 60})
    data["y"] = rng.binomial(60, 0.1, 300) if family == "binomial" else rng.poisson(3.0, 300)
    data.loc[150, "y"] = 58 if family == "binomial" else 45
    trials = {"trials": "n"} if family == "binomial" else {}
    fit = mm.fit("y ~ x | vary: u", data, experts=1, bandwidth=0.5, rng=0, family=family, **trials)
    found = fit.resid("quantile", rng=7)[150]
    mean = fit.fitted()[150]
    if family == "binomial":
        low, high = -norm.ppf(binom.sf([57, 58], 60, mean / 60))
    else:
        low, high = -norm.ppf(poisson.sf([44, 45], mean))
    assert low - 1e-6 < found < high + 1e-6


@pytest.mark.parametrize("family", ["gaussian", "binomial", "poisson"])
def test_varying_coefficients(family):
    extra = {} if family == "gaussian" else {"family": family}
    data = mm.simulate.vcmoe("well_separated", n=500, rng=1).data
    rng = np.random.default_rng(0)
    if family != "gaussian":
        rate = 0.4 * (1 + data["u"])
        data["y"] = rng.poisson(5 * rate) if family == "poisson" else (rng.random(500) < rate).astype(float)
    experts = 2 if family == "gaussian" else 1
    fit = mm.fit("y ~ z1 | vary: u", data, experts=experts, bandwidth=0.5, rng=0, **extra)
    found = fit.resid("quantile", rng=7)
    assert abs(found.mean()) < 0.15
    assert 0.85 < found.std() < 1.15
    assert found.index.equals(data.index)
    if family == "gaussian":
        limits = fit.predict(kind="mean", interval="prediction", alpha=0.1)
        low, high = limits["mean_low"], limits["mean_high"]
        inside = (found.abs() < norm.isf(0.05)).to_numpy()
        np.testing.assert_array_equal(inside, ((low < data["y"]) & (data["y"] < high)).to_numpy())


def test_envelope_holds_what_it_promises():
    rng = np.random.default_rng(0)
    samples = np.sort(rng.normal(size=(4000, 40)), axis=1)
    found = ordered_residuals(samples[0, ::-1], 0.1, np.random.default_rng(1))  # the limits depend on the size alone
    np.testing.assert_array_equal(found.observed, samples[0])
    inside = ((found.lower <= samples) & (samples <= found.upper)).all(axis=1)
    assert 0.88 < inside.mean() < 0.92
    assert 0 < local_level(40, 0.1, rng) < 0.1
    assert local_level(1, 0.1, rng) == pytest.approx(0.1, abs=0.03)


def test_refusals():
    fit = pbc()
    with pytest.raises(ArgumentError, match="kind must be one of 'subject', 'mean', 'quantile', 'normalized'"):
        fit.resid("pearson")
    with pytest.raises(ArgumentError, match="given must be one of 'history', 'covariates', got 'future'"):
        fit.resid("quantile", given="future")
