"""Sandwich and delta method against loops."""

import numpy as np
import pytest

from mixmoe.errors import ArgumentError
from mixmoe.inference.uncertainty import checked_cov_type, delta_cov, delta_se, within_clusters, without_parameters


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
