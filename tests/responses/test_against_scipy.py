"""Densities, moments, deviances, derivatives and draws of the response families against SciPy's distributions."""

from decimal import Decimal, getcontext

import numpy as np
import pytest
from scipy import optimize, stats

from mixmoe.mixed.options import FAMILIES
from mixmoe.responses.distribution import LEAST_ETA, LogLink, Outcome
from mixmoe.responses.exponential import SMALL_RATIO, family_named

TRIALS, DELTA = 7.0, 0.8  # dispersion: log standard deviation, log theta, log shape, log phi
D = np.exp(DELTA)
OF_MEAN = {
    "gaussian": lambda m: stats.norm(m, D),
    "binomial": lambda m: stats.binom(int(TRIALS), m / TRIALS),
    "poisson": lambda m: stats.poisson(m),
    "negbinomial": lambda m: stats.nbinom(D, D / (D + m)),
    "gamma": lambda m: stats.gamma(D, scale=m / D),
    "beta": lambda m: stats.beta(m * D, (1 - m) * D),
}
MEAN = {  # of a predictor
    "gaussian": lambda eta: eta,
    "binomial": lambda eta: TRIALS / (1 + np.exp(-eta)),
    "beta": lambda eta: 1 / (1 + np.exp(-eta)),
}
LINEAR = np.array([-1.7, -0.4, 0.3, 1.2])
NAMES = [name for name in FAMILIES if name in OF_MEAN]


def mean_of(name, eta):
    return MEAN.get(name, np.exp)(eta)


def responses(name):
    """Ordinary responses, and for counts the ends of their range."""
    return {"binomial": [0, 2, 5, 7], "gaussian": [-3.1, 0.2, 1.0, 4.0], "beta": [0.02, 0.4, 0.7, 0.93]}.get(
        name, [0, 1, 4, 9] if name != "gamma" else [0.03, 0.8, 1.9, 6.0]
    )


def case(name):
    """Family, outcome of every response under every predictor, predictors, dispersions and expectations, all (16,)."""
    family = family_named(name, FAMILIES)
    y, eta = (x.ravel().astype(float) for x in np.meshgrid(responses(name), LINEAR))
    trials = np.full(len(y), TRIALS if name == "binomial" else 1.0)
    return family, Outcome(y, trials, family.constant(y, trials)), eta[None], np.full((1, len(y)), DELTA)


def log_density(name, y, m):
    frozen = OF_MEAN[name](m)
    return frozen.logpmf(y) if hasattr(frozen.dist, "pmf") else frozen.logpdf(y)


@pytest.mark.parametrize("name", NAMES)
def test_density_and_moments(name):
    family, out, eta, delta = case(name)
    m = mean_of(name, eta)
    np.testing.assert_allclose(family.log_density(out, eta, delta), log_density(name, out.y, m), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(family.mean(eta, out.trials), m, rtol=1e-13)
    np.testing.assert_allclose(family.link(m, out.trials), eta, rtol=1e-12)
    np.testing.assert_allclose(family.variance(m, delta, out.trials), OF_MEAN[name](m).var(), rtol=1e-12)
    slope = (mean_of(name, eta + 1e-6) - mean_of(name, eta - 1e-6)) / 2e-6
    np.testing.assert_allclose(family.mean_slope(eta, out.trials), slope, rtol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_deviance_is_what_the_best_expectation_gains(name):
    """Of a beta response against an expectation equal to it, which is not quite the best one."""
    family, out, eta, delta = case(name)
    m = mean_of(name, eta)
    found = family.deviance(out, m, delta)[0]
    high = {"binomial": TRIALS - 1e-10, "beta": 1 - 1e-9}.get(name, 60.0)
    low = -60.0 if name == "gaussian" else 1e-10
    for value, y, at in zip(found, out.y, m[0], strict=True):
        best = float(log_density(name, y, y)) if name == "beta" else -minimum(name, y, low, high)
        assert value == pytest.approx(2.0 * (best - float(log_density(name, y, at))), rel=1e-6, abs=1e-7)


def minimum(name, y, low, high):
    inside = optimize.minimize_scalar(
        lambda m: -log_density(name, y, m), bounds=(low, high), method="bounded", options={"xatol": 1e-11}
    ).fun
    return min(float(inside), *(-float(log_density(name, y, m)) for m in (low, high)))


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_in_predictor_and_dispersion(name):
    """Differences of the log density, which the tests above compare with SciPy's."""
    family, out, eta, delta = case(name)
    found, h = family.derivatives(out, eta, delta), 1e-4

    def value(a, b):
        return family.log_density(out, eta + a * h, delta + b * h)

    def stacked(*parts):
        return np.stack([part + 0 * eta for part in parts])

    first = [value(1, 0) - value(-1, 0), value(0, 1) - value(0, -1)]
    np.testing.assert_allclose(stacked(found.eta, found.delta), np.stack(first) / (2 * h), rtol=1e-6, atol=1e-6)
    second = [
        value(1, 0) - 2 * value(0, 0) + value(-1, 0),
        (value(1, 1) - value(1, -1) - value(-1, 1) + value(-1, -1)) / 4,
        value(0, 1) - 2 * value(0, 0) + value(0, -1),
    ]
    minus = stacked(found.eta_eta, found.eta_delta, found.delta_delta)
    np.testing.assert_allclose(minus, -np.stack(second) / h**2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_curvature_and_third_derivatives(name):
    family, out, eta, delta = case(name)
    once, found, h = family.curvature(out, eta, delta), family.third(out, eta, delta), 1e-5
    np.testing.assert_allclose(once.value + out.constant, family.log_density(out, eta, delta), rtol=1e-11, atol=1e-12)
    first = family.derivatives(out, eta, delta)
    np.testing.assert_allclose(once.slope, first.eta, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(once.weight, first.eta_eta + 0 * eta, rtol=1e-11)

    def second(a, b):
        return -family.derivatives(out, eta + a * h, delta + b * h).eta_eta + 0 * eta

    in_eta, in_delta = second(1, 0) - second(-1, 0), second(0, 1) - second(0, -1)
    np.testing.assert_allclose(found.eta + 0 * eta, in_eta / (2 * h), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.delta + 0 * eta, in_delta / (2 * h), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_scoring_has_the_expected_information(name):
    """Integrals over the response; those of normal ones are in units of the residual variance."""
    family, out, eta, delta = case(name)
    slope, information = (part + 0 * eta for part in family.scoring(out, eta, delta))
    unit = D**2 if name == "gaussian" else 1.0
    np.testing.assert_allclose(slope, unit * family.derivatives(out, eta, delta).eta, rtol=1e-12, atol=1e-12)
    z = np.linspace(-60.0, 60.0, 6001)
    y, step = {
        "gaussian": (z, np.ones_like(z)),
        "gamma": (np.exp(z), np.exp(z)),
        "beta": (1 / (1 + np.exp(-z)), 1 / (2 + np.exp(z) + np.exp(-z))),
    }.get(name, (np.arange(8.0 if name == "binomial" else 400.0), 1.0))
    kept = (y >= 0) & (y < 1) if name == "beta" else slice(None)
    y, step = y[kept], (step * np.ones_like(y) if family.discrete else 0.02 * step)[kept]
    for i, at in enumerate(eta[0]):
        one = Outcome(y, np.full(len(y), out.trials[0]), np.zeros(len(y)))
        score = family.derivatives(one, np.full((1, len(y)), at), np.full((1, len(y)), DELTA)).eta[0]
        expected = (score**2 * np.exp(log_density(name, y, mean_of(name, at)))) @ step
        assert information[0, i] == pytest.approx(unit * expected, rel=1e-5)  # shares end at 1 - 1e-16


@pytest.mark.parametrize("name", NAMES)
def test_draws_have_mean_and_variance_of_the_distribution(name):
    family, n = family_named(name, FAMILIES), 40_000
    trials = np.full(n, TRIALS if name == "binomial" else 1.0)
    drawn = family.draw(np.random.default_rng(2), np.full(n, 0.3), np.full(n, DELTA), trials)
    frozen = OF_MEAN[name](mean_of(name, 0.3))
    spread, excess = frozen.std(), float(frozen.stats(moments="k"))
    assert abs(drawn.mean() - frozen.mean()) < 4 * spread / np.sqrt(n)
    assert abs(drawn.var() / spread**2 - 1) < 4 * np.sqrt((excess + 2) / n)


@pytest.mark.parametrize("ratio", [0.5, 0.99 * SMALL_RATIO, 1.01 * SMALL_RATIO, 1e-8])
def test_a_count_of_zero_says_little_of_a_large_theta_but_says_it_exactly(ratio):
    """``-theta log(1 + mu / theta)`` with fifty digits; what the family's own sums lose to rounding is bounded."""
    getcontext().prec = 50
    family, theta = family_named("negbinomial", FAMILIES), Decimal(4)
    mu = theta * Decimal(ratio)
    first = mu / (theta + mu) - (1 + mu / theta).ln()
    second = mu**2 / (theta * (theta + mu) ** 2)
    delta, eta = np.full((1, 1), float(theta.ln())), np.full((1, 1), float(mu.ln()))
    found = family.derivatives(Outcome(np.zeros(1), np.ones(1), np.zeros(1)), eta, delta)
    assert found.delta[0, 0] == pytest.approx(float(theta * first), rel=1e-3, abs=1e-15)
    assert found.delta_delta[0, 0] == pytest.approx(float(-theta * first - theta**2 * second), rel=1e-3, abs=1e-14)


@pytest.mark.parametrize(
    ("name", "y", "trials", "expected"),
    [
        ("gaussian", 1.5, 1.0, 1.5),
        ("binomial", 0.0, 7.0, np.log(0.5 / 7.5)),
        ("binomial", 5.0, 7.0, np.log(5.5 / 2.5)),
        ("poisson", 0.0, 1.0, np.log(0.5)),
        ("negbinomial", 3.0, 1.0, np.log(3.5)),
        ("gamma", 3.0, 1.0, np.log(3.0)),
        ("beta", 0.2, 1.0, np.log(0.25)),
    ],
)
def test_responses_on_the_scale_of_the_predictor(name, y, trials, expected):
    out = Outcome(np.array([y]), np.array([trials]), np.zeros(1))
    assert family_named(name, FAMILIES).start_predictor(out)[0] == pytest.approx(expected)


def test_means_as_good_as_zero_are_held_where_their_loss_is_that_of_the_docstring():
    """``-exp(eta) - k (eta + 15)^2 / 2`` with k = exp(-15) has its maximum at -15 - d, where exp(-d) = d."""
    eta, k = np.array([[LEAST_ETA, -16.0, -14.0]]), np.exp(-15.0)
    score, information = LogLink.held(eta, -np.exp(eta), np.exp(eta))
    np.testing.assert_allclose(score / k, [[0.0, 1.0 - np.exp(-1.0), -np.exp(1.0)]], atol=1e-12)
    np.testing.assert_allclose(information / k, [[0.5671432904 + 1.0, np.exp(-1.0) + 1.0, np.exp(1.0)]], rtol=1e-9)


@pytest.mark.parametrize("theta", [0.3, 20.0, 49.99, 50.0, 700.0, 3e7, 1e13])
def test_rounding_of_counts_does_not_grow_towards_the_poisson(theta):
    """Near the Poisson the two gamma functions grow with theta, and an ascent would be lost in their rounding."""
    getcontext().prec = 60
    family = family_named("negbinomial", FAMILIES)
    y = np.repeat([0.0, 1.0, 6.0, 250.0], 4)
    eta, delta = np.tile([-2.0, 0.5, 2.0, 5.0], 4), np.full(16, np.log(theta))
    values, slopes = [], []
    for count, predictor, dispersion in zip(y, eta, delta, strict=True):
        t, mu = Decimal(dispersion).exp(), Decimal(predictor).exp()
        steps, away = [t + j for j in range(int(count))], (1 + mu / t).ln()
        rising = sum(((step / (t * (j + 1))).ln() for j, step in enumerate(steps)), Decimal(0))
        values.append(float(rising + Decimal(count) * Decimal(predictor) - (Decimal(count) + t) * away))
        rise = sum((1 / step for step in steps), Decimal(0))
        slopes.append(float(t * (rise - away + (mu - Decimal(count)) / (t + mu))))
    out = Outcome(y, np.ones(16), family.constant(y, np.ones(16)))
    exact = {"rtol": 1e-12, "atol": 1e-11}
    np.testing.assert_allclose(family.log_density(out, eta[None], delta[None])[0], values, **exact)
    np.testing.assert_allclose(family.curvature(out, eta[None], delta[None]).value[0] + out.constant, values, **exact)
    np.testing.assert_allclose(family.derivatives(out, eta[None], delta[None]).delta[0], slopes, **exact)
