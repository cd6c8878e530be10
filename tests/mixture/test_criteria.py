"""Criteria against hand computation."""

import numpy as np
import pytest

from mixmoe.mixture.estimate import classification_entropy, clc, criteria, entropy_r2

LOGLIK, NPAR = -100.0, 5


def test_criteria_by_hand():
    tau = np.array([[1.0, 0.0], [0.5, 0.5], [0.9, 0.1]])
    doubt = -2 * 0.5 * np.log(0.5) - 0.9 * np.log(0.9) - 0.1 * np.log(0.1)
    found = criteria(LOGLIK, NPAR, tau)
    assert found.aic == 210
    assert found.bic == pytest.approx(200 + 5 * np.log(3))
    assert found.sabic == pytest.approx(200 + 5 * np.log(5 / 24))
    assert found.icl == pytest.approx(found.bic + 2 * doubt)
    assert found.entropy == pytest.approx(1 - doubt / (3 * np.log(2)))
    assert classification_entropy(tau) == pytest.approx(doubt)
    assert clc(LOGLIK, tau) == pytest.approx(200 + 2 * doubt)


@pytest.mark.parametrize("n_experts", [2, 3, 8])
def test_entropy_runs_from_zero_to_one(n_experts):
    assert entropy_r2(np.full((10, n_experts), 1 / n_experts)) == pytest.approx(0, abs=1e-12)
    assert entropy_r2(np.eye(n_experts)) == 1


def test_a_single_expert_leaves_no_doubt():
    found = criteria(LOGLIK, NPAR, np.ones((4, 1)))
    assert found.entropy == 1
    assert found.icl == found.bic


def test_rounding_beyond_zero_and_one_does_no_harm():
    tau = np.array([[1 + 1e-16, -1e-17], [0.0, 1.0]])
    assert entropy_r2(tau) == 1
