"""Distribution functions of the response families against sums and closed forms worked out with the standard library.

None comes from SciPy or the families: binomial, Poisson and negative binomial ones are sums of probabilities, those
of gamma and beta responses with whole shapes are such sums too (Abramowitz & Stegun 26.4.21 and 26.5.24), those of
normal and ordinal ones are the error function and logistic functions of differences. Every family is asked on and
between the steps, at both ends of its range and beyond, and in tails where one minus the other side has no digits.
"""

from math import comb, erfc, exp, fsum, lgamma, log, sqrt

import numpy as np
import pytest

from mixmoe.mixed.options import FAMILIES
from mixmoe.mixed.thresholds import OrdinalResponse
from mixmoe.responses.distribution import ETA_LIMIT
from mixmoe.responses.exponential import family_named

CLOSE = 1e-11


def logit(p):
    return log(p / (1 - p))


def binomial(y, eta, dispersion, n):
    p, q = 1 / (1 + exp(-eta)), 1 / (1 + exp(eta))
    mass = [comb(n, k) * p**k * q ** (n - k) for k in range(n + 1)]
    return split(mass, y)


def poisson(y, eta, dispersion, n):
    mu = exp(eta)
    return split([exp(k * eta - mu - lgamma(k + 1)) for k in range(600)], y)


def negbinomial(y, eta, theta, n):
    mu = exp(eta)
    p = theta / (theta + mu)
    mass = [
        exp(lgamma(k + theta) - lgamma(theta) - lgamma(k + 1) + theta * log(p) + k * log(1 - p)) for k in range(4000)
    ]
    return split(mass, y)


def gamma(y, eta, shape, n):
    """Whole shapes: P(Y > y) is that of fewer than `shape` events of a Poisson process."""
    x = shape * max(y, 0.0) / exp(eta)
    mass = [exp(-x)]
    for k in range(1, int(shape) + 1500):
        mass.append(mass[-1] * x / k)
    return fsum(mass[int(shape) :]), fsum(mass[: int(shape)])


def beta(y, eta, phi, n):
    """Whole shapes a and b: P(Y <= y) is that of at least a successes out of a + b - 1."""
    a = round(phi / (1 + exp(-eta)))
    y, m = min(max(y, 0.0), 1.0), int(phi) - 1
    mass = [comb(m, k) * y**k * (1 - y) ** (m - k) for k in range(m + 1)]
    return fsum(mass[a:]), fsum(mass[:a])


def gaussian(y, eta, sigma, n):
    z = (y - eta) / (sigma * sqrt(2))
    return 0.5 * erfc(-z), 0.5 * erfc(z)


def split(mass, y):
    """``P(Y <= y)`` and ``P(Y > y)`` from the probabilities of 0, 1, 2 ..."""
    return fsum(m for k, m in enumerate(mass) if k <= y), fsum(m for k, m in enumerate(mass) if k > y)


def ladder(top):
    """On, between and beyond the steps of 0 ... top."""
    return [-2.0, -1.0, -0.5, 0.0, 0.5, top - 1.0, top - 0.5, float(top), top + 0.5, top + 3.0]


CASES = [
    *(("binomial", binomial, y, eta, 1.0, n) for n in (1, 2, 7, 40) for eta in (-2.5, 0.3, 4.0) for y in ladder(n)),
    *(("poisson", poisson, y, eta, 1.0, 1) for eta in (-3.0, 0.4, 3.5) for y in ladder(9)),
    *(("negbinomial", negbinomial, y, eta, theta, 1) for theta in (0.4, 3.0) for eta in (-2.0, 1.5) for y in ladder(9)),
    *(
        ("gamma", gamma, y, eta, shape, 1)
        for shape in (1.0, 5.0)
        for eta in (-1.0, 2.0)
        for y in (-1.0, 0.0, 0.2, 1.0, 30.0)
    ),
    *(("beta", beta, y, logit(a / 9), 9.0, 1) for a in (1, 3, 8) for y in (-0.1, 0.0, 0.05, 0.5, 0.97, 1.0, 1.2)),
    *(
        ("gaussian", gaussian, y, eta, sigma, 1)
        for sigma in (0.3, 2.0)
        for eta in (-1.0, 2.0)
        for y in (-3.0, 0.0, 2.5)
    ),
    # far out, where one side is one to all digits
    ("binomial", binomial, 39.0, -2.5, 1.0, 40),
    ("binomial", binomial, 0.0, 4.0, 1.0, 40),
    ("poisson", poisson, 60.0, 0.4, 1.0, 1),
    ("poisson", poisson, 0.0, 4.5, 1.0, 1),
    ("negbinomial", negbinomial, 90.0, -2.0, 3.0, 1),
    ("gamma", gamma, 40.0, -1.0, 5.0, 1),
    ("gamma", gamma, 1e-5, 2.0, 5.0, 1),
    ("beta", beta, 1e-4, logit(8 / 9), 9.0, 1),
    ("gaussian", gaussian, 20.0, 0.0, 1.0, 1),
    ("gaussian", gaussian, -20.0, 0.0, 1.0, 1),
]


@pytest.mark.parametrize("name", ["gaussian", "binomial", "poisson", "negbinomial", "gamma", "beta"])
def test_both_tails_of_the_families(name):
    family = family_named(name, FAMILIES)
    for _, exactly, y, eta, dispersion, n in (case for case in CASES if case[0] == name):
        at = np.array([y]), np.array([[eta]]), np.array([[log(dispersion)]]), np.array([float(n)])
        below, above = exactly(y, eta, dispersion, n)
        np.testing.assert_allclose(family.cdf(*at)[0, 0], below, rtol=CLOSE, atol=1e-300, err_msg=f"cdf {y, eta, n}")
        np.testing.assert_allclose(family.sf(*at)[0, 0], above, rtol=CLOSE, atol=1e-300, err_msg=f"sf {y, eta, n}")


def test_ordinal_tails_are_logistic_functions_of_the_distance_to_the_threshold():
    response = OrdinalResponse(np.array([1.0, 2.0, 5.0, 9.0]))
    extra = np.log(np.array([[0.7, 1.8]]))
    cuts = [-np.inf, 0.0, 0.7, 2.5, np.inf]
    for y in (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0):
        cut = cuts[int(min(max(y, -1), 3)) + 1]
        for eta in (-40.0, -1.0, 0.4, 40.0):
            at = np.array([y]), np.array([[eta]]), extra, np.ones(1)
            np.testing.assert_allclose(response.cdf(*at)[0, 0], 1 / (1 + np.exp(eta - cut)), rtol=CLOSE)
            np.testing.assert_allclose(response.sf(*at)[0, 0], 1 / (1 + np.exp(cut - eta)), rtol=CLOSE)


@pytest.mark.parametrize(
    ("name", "eta", "y"),
    [
        ("poisson", ETA_LIMIT, exp(ETA_LIMIT)),
        ("negbinomial", ETA_LIMIT, exp(ETA_LIMIT)),
        ("gamma", -ETA_LIMIT, exp(-ETA_LIMIT)),
        ("beta", ETA_LIMIT, 1 - 1e-13),
        ("beta", -ETA_LIMIT, 1e-13),
    ],
)
def test_predictors_beyond_the_limit_count_as_the_limit(name, eta, y):
    family = family_named(name, FAMILIES)
    for tail in (family.cdf, family.sf):
        beyond, at, inside = (
            tail(np.array([y]), np.array([[scale * eta]]), np.zeros((1, 1)), np.ones(1)) for scale in (1.3, 1.0, 0.99)
        )
        assert beyond == at != inside
