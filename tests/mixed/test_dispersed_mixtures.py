"""Mixtures of responses with a dispersion, one row per subject: a mixture must not pass for noise."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.optimize import minimize

import mixmoe as mm


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
        parts = [log_density(y, p[1], p[2]) - np.logaddexp(0, p[0]), log_density(y, p[3], p[4]) - np.logaddexp(0, -p[0])]
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
