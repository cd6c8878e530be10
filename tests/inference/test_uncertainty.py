"""Sandwich and delta method against loops."""

import numpy as np
import pytest

from mixmoe.errors import ArgumentError
from mixmoe.inference.uncertainty import checked_cov_type, delta_cov, delta_se, meat, sandwich, without_parameters


@pytest.fixture
def scores():
    return np.random.default_rng(0).normal(size=(30, 4))


def test_meat_is_the_sum_of_outer_products(scores):
    expected = sum(np.outer(s, s) for s in scores)
    np.testing.assert_allclose(meat(scores), expected)


def test_meat_adds_scores_within_clusters(scores):
    clusters = np.arange(30) % 7
    sums = [scores[clusters == g].sum(axis=0) for g in range(7)]
    expected = sum(np.outer(s, s) for s in sums)
    np.testing.assert_allclose(meat(scores, clusters), expected)


def test_sandwich_of_least_squares_is_white():
    rng = np.random.default_rng(1)
    x, e = rng.normal(size=(50, 3)), rng.normal(size=50)
    bread = np.linalg.inv(x.T @ x)
    expected = bread @ (x.T * e**2) @ x @ bread
    found = sandwich(bread, meat(x * e[:, None]))
    np.testing.assert_allclose(found, expected)
    np.testing.assert_array_equal(found, found.T)


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
