"""Sandwich and delta method against loops."""

import numpy as np
import pytest
from scipy.stats import norm, skew
from scipy.stats import t as student

from mixmoe.errors import ArgumentError
from mixmoe.inference.uncertainty import (
    acceleration,
    bca_limits,
    checked_cov_type,
    critical,
    delta_cov,
    delta_se,
    probability_errors,
    probability_limits,
    two_sided,
    wald_limits,
    wald_statistics,
    within_clusters,
    without_parameters,
)
from mixmoe.mixture.estimate import Parameter, ParamLayout


def test_values_add_up_within_clusters():
    scores, clusters = np.random.default_rng(0).normal(size=(30, 4)), np.arange(30) % 7
    sums = [scores[clusters == g].sum(axis=0) for g in range(7)]
    np.testing.assert_allclose(within_clusters(scores, clusters), sums)
    np.testing.assert_array_equal(within_clusters(scores), scores)


def test_delta_ignores_missing_parameters_that_are_not_used():
    cov = without_parameters(np.diag([1.0, 4.0, 9.0]), [1])
    jacobian = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    found = delta_cov(jacobian, cov)
    assert found[0, 0] == 37
    assert np.isnan(found[1]).all()
    assert np.isnan(found[:, 1]).all()
    np.testing.assert_allclose(delta_se(jacobian, cov)[0], np.sqrt(37))


def test_without_parameters_leaves_its_input_alone():
    matrix = np.eye(2)
    without_parameters(matrix, [0])
    np.testing.assert_array_equal(matrix, np.eye(2))


def test_unknown_cov_type():
    assert checked_cov_type("robust") == "robust"
    with pytest.raises(ArgumentError, match="'bootstrap', got 'hc3'"):
        checked_cov_type("hc3")


# ---- limits ----

LAYOUT = ParamLayout(
    (
        Parameter("expert1.x", "expert", "x", 1),
        Parameter("sd1(x|id)", "random", "sd(x)", 1, tested=False),
        Parameter("corr1(a,b|id)", "random", "corr(a,b)", 1),
        Parameter("rho1", "residual", "rho", 1),
        Parameter("cut2", "threshold", "cut2"),
    )
)
PARAMS, BSE = np.array([0.5, 0.5, 0.9, -0.4, 2.0]), np.array([1.0, 0.3, 0.5, 0.2, 0.5])


def test_quantiles_and_p_values_of_tables():
    """Two-sided 5 % points of Student's t with 1, 10 and 120 degrees of freedom, and of the normal distribution."""
    table = np.array([12.7062, 2.2281, 1.9799, 1.95996])
    df = np.array([1.0, 10.0, 120.0, np.inf])
    np.testing.assert_allclose(critical(0.05, df), table, atol=5e-5)
    np.testing.assert_allclose(two_sided(-table, df), 0.05, atol=1e-5)
    assert np.isnan(two_sided(np.array([np.nan]))).all()


@pytest.mark.parametrize("df", [np.inf, np.array([3.0, 4.0, 5.0, 6.0, 7.0])])
def test_limits_by_hand(df):
    t = student.ppf(0.95, np.broadcast_to(df, 5)) if np.isfinite(df).all() else np.full(5, norm.ppf(0.95))
    found = wald_limits(PARAMS, BSE, LAYOUT, 0.1, df)
    for sign, limit in ((-1, found.lower), (1, found.upper)):
        z = sign * t
        expected = [
            0.5 + z[0],
            0.5 * np.exp(z[1] * 0.3 / 0.5),
            np.tanh(np.arctanh(0.9) + z[2] * 0.5 / 0.19),  # 1 - 0.81
            np.tanh(np.arctanh(-0.4) + z[3] * 0.2 / 0.84),
            2.0 + 0.5 * z[4],
        ]
        np.testing.assert_allclose(limit, expected, rtol=1e-12)


def test_statistics_by_hand():
    expected = [0.5, np.nan, np.arctanh(0.9) * 0.19 / 0.5, np.arctanh(-0.4) * 0.84 / 0.2, 4.0]
    np.testing.assert_allclose(wald_statistics(PARAMS, BSE, LAYOUT), expected)


def test_acceleration_is_a_sixth_of_the_skewness_of_the_mean():
    influence = np.random.default_rng(0).normal(size=(30, 4)) ** 2 + 3.0  # of no mean zero
    np.testing.assert_allclose(acceleration(influence), skew(influence) / (6.0 * np.sqrt(30)))


@pytest.mark.parametrize("a", [0.0, 0.07])
@pytest.mark.parametrize(("estimate", "below"), [(500.0, 499.5), (300.5, 300.0), (-1.0, 0.5), (2000.0, 998.5)])
def test_bca_limits_of_replicates_one_to_999(estimate, below, a):
    """The quantile at a level is a thousand times the level; a replicate equal to the estimate counts half."""
    z0 = norm.ppf(below / 999)
    found = bca_limits(np.array([estimate]), np.arange(1.0, 1000.0)[:, None], np.array([a]), alpha=0.1)
    for z, limit in ((norm.ppf(0.05), found.lower), (norm.ppf(0.95), found.upper)):
        level = norm.cdf(z0 + (z0 + z) / (1.0 - a * (z0 + z)))
        assert limit[0] == pytest.approx(np.clip(1000.0 * level, 1.0, 999.0), rel=1e-9)
    assert np.isnan(bca_limits(np.array([estimate]), np.ones((9, 1)), np.array([np.nan])).lower).all()


def test_limits_of_probabilities():
    """By hand: log odds of 0.2 are -1.386, and 1.96 times 0.04 / 0.16 is 0.490; what cannot be is not said."""
    p, errors = np.array([0.2, 0.5, 0.9, 0.3, 0.7]), np.array([0.04, 0.0, 12.8, np.nan, 0.5])
    found = probability_limits(p, errors)
    low, high = (1 / (1 + np.exp(1.3863 + side * 0.49)) for side in (1, -1))
    np.testing.assert_allclose(found.lower[:4], [low, 0.5, 0.0, np.nan], atol=1e-4)
    np.testing.assert_allclose(found.upper[:4], [high, 0.5, 1.0, np.nan], atol=1e-4)
    np.testing.assert_array_equal(probability_errors(errors), [0.04, 0.0, np.nan, np.nan, 0.5])
