"""Mixtures of responses with a dispersion, one row per subject: a mixture must not pass for noise."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.optimize import minimize

import mixmoe as mm
from mixmoe.errors import DegeneracyWarning


def counts(n, seed):
    rng = np.random.default_rng(seed)
    mean = np.where(rng.uniform(size=n) < 0.5, 5.0, 40.0)
    return pd.DataFrame({"y": rng.negative_binomial(5.0, 5.0 / (5.0 + mean))})


def shares(n, seed):
    rng = np.random.default_rng(seed)
    first = rng.uniform(size=n) < 0.4
    return pd.DataFrame({"y": np.where(first, rng.beta(4, 16, size=n), rng.beta(20, 5, size=n))})


def amounts(n, seed):
    rng = np.random.default_rng(seed)
    first = rng.uniform(size=n) < 0.4
    return pd.DataFrame({"y": np.where(first, rng.gamma(6.0, 0.5, size=n), rng.gamma(6.0, 5.0, size=n))})


def negbinomial(y, eta, log_theta):
    mean, theta = np.exp(eta), np.exp(log_theta)
    return stats.nbinom.logpmf(y, theta, theta / (theta + mean))


def beta(y, eta, log_phi):
    mean, phi = 1.0 / (1.0 + np.exp(-eta)), np.exp(log_phi)
    return stats.beta.logpdf(y, mean * phi, (1.0 - mean) * phi)


def gamma(y, eta, log_shape):
    shape = np.exp(log_shape)
    return stats.gamma.logpdf(y, shape, scale=np.exp(eta) / shape)


def direct_maximum(y, log_density, start):
    """Log-likelihood of two experts maximised from the truth by scipy, from scipy's densities."""

    def minus(p):
        parts = [
            log_density(y, p[1], p[2]) - np.logaddexp(0, p[0]),
            log_density(y, p[3], p[4]) - np.logaddexp(0, -p[0]),
        ]
        return -np.logaddexp(*parts).sum()

    return -minimize(minus, start, method="BFGS").fun


CASES = {
    "negbinomial": (counts, negbinomial, [0.0, np.log(5), np.log(5), np.log(40), np.log(5)]),
    "beta": (shares, beta, [0.4, np.log(0.2 / 0.8), np.log(20), np.log(0.8 / 0.2), np.log(25)]),
    "gamma": (amounts, gamma, [0.4, np.log(3), np.log(6), np.log(30), np.log(6)]),
}


@pytest.mark.parametrize("n", [150, 700])
@pytest.mark.parametrize("family", CASES)
def test_two_groups_are_found_although_one_dispersion_explains_them(family, n):
    draw, log_density, start = CASES[family]
    data = draw(n, 3)
    fit = mm.fit("y ~ 1", data, experts=2, family=family, starts=8, rng=0)
    assert fit.llf == pytest.approx(direct_maximum(data["y"].to_numpy(), log_density, start), abs=1e-3)
    assert not fit.flags


def test_groups_are_found_with_one_dispersion_for_both():
    data = counts(400, 5)
    fit = mm.fit("y ~ 1", data, experts=2, family="negbinomial", residual="common", starts=8, rng=0)
    single = mm.fit("y ~ 1", data, experts=1, family="negbinomial")
    assert fit.llf > single.llf + 50.0  # the groups lie eightfold apart


def exchanged_where_treated(params):
    """The same model with the experts of the treated exchanged, their dispersions left as they are."""
    p = params.copy()
    for own, other in ((1, 2), (2, 1)):
        there = params[f"expert{other}.Intercept"] + params[f"expert{other}.treat"]
        p[f"expert{own}.treat"] = there - params[f"expert{own}.Intercept"]
    p["gate2.treat"] = -2.0 * params["gate2.Intercept"] - params["gate2.treat"]
    return p


@pytest.mark.parametrize("seed", [0, 2])
def test_labels_that_only_dispersions_tell_apart_are_flagged_after_all_have_followed(seed):
    rng = np.random.default_rng(seed)
    treat = rng.integers(2, size=400)
    second = rng.uniform(size=400) < np.where(treat, 0.3, 0.6)
    mean, theta = np.exp(np.where(second, 3.5, 1.5) + 0.1 * treat), np.where(second, 4.0, 2.5)
    data = pd.DataFrame({"y": rng.negative_binomial(theta, theta / (theta + mean)), "treat": treat})
    with pytest.warns(DegeneracyWarning):
        fit = mm.fit("y ~ treat | gate: treat", data, experts=2, family="negbinomial", starts=8, rng=0)
    there = exchanged_where_treated(fit.params)
    assert fit.model.loglike(there) < fit.llf - 1.92  # not yet: the dispersions have to follow
    with pytest.warns(DegeneracyWarning):
        other = mm.fit(fit.model.formula.text, data, 2, family="negbinomial", start=there, starts=0)
    (flag,) = (flag for flag in fit.flags if flag.code == "ambiguous_labels")
    assert f"only {fit.llf - other.llf:.2g} lower" in flag.message
