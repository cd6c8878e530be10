"""Influence of rows against refits with a changed weight, and covariances against sums over rows."""

from dataclasses import replace

import numpy as np
import pytest

from mixmoe.varying.bands import fit_levels
from mixmoe.varying.estimate import Control, fit_functions
from mixmoe.varying.local_likelihood import build_local, local_maxima, local_start, maximise_local, state_of
from mixmoe.varying.sandwich import gate_influence, influence, level_covariance, unit_influence
from mixmoe.varying.simulate import vcmoe
from tests.varying.helpers import make_problem

EPS = 1e-4  # change of a weight
SAME = 2e-3  # of numerical and analytic influence, relative to the largest: Newton stops at 1e-8
INTERPOLATED = 0.02  # influence on the experts is interpolated between grid points
ROWS = (3, 150, 199, 260, 398)


def fitted(gate_bandwidth=None, family="gaussian"):
    problem = make_problem(vcmoe(n=400, family=family, rng=1), 0.3, family=family, gate_bandwidth=gate_bandwidth)
    run = fit_functions(problem, Control(n_starts=3), np.random.default_rng(0))
    return problem, local_maxima(problem, run.coef).state


def moved(problem, coef, row, bias):
    """Change of the levels per change of the weight of a row."""
    found = []
    for change in (-EPS, EPS):
        weights = problem.rows.weights.copy()
        weights[row] += change
        heavier = replace(problem, rows=problem.rows.with_weights(weights))
        found.append(fit_levels(heavier, coef, bias).levels)
    return (found[1] - found[0]) / (2.0 * EPS)


@pytest.mark.parametrize("family", ["gaussian", "binomial"])
@pytest.mark.parametrize("bias", ["none", "rbc"])
def test_influence_is_the_derivative_by_the_weight(family, bias):
    problem, coef = fitted(family=family)
    local = build_local(problem, 2 if bias == "rbc" else 1)
    fit = maximise_local(local, local_start(local, coef))
    assert fit.converged.all()
    each = unit_influence(influence(local, fit.coef, correction=False), slice(None)).reshape(400, 50, -1)
    for row in ROWS:
        np.testing.assert_allclose(each[row], moved(problem, coef, row, bias), atol=SAME * np.abs(each[row]).max())


@pytest.mark.parametrize("bandwidth", [0.15, 0.7])
def test_influence_on_a_gate_of_its_own_goes_through_the_experts(bandwidth):
    problem, coef = fitted(bandwidth)
    local = build_local(problem, 1)
    fit = maximise_local(local, local_start(local, coef))
    alone = build_local(problem, 1, bandwidth, held=state_of(local, fit.coef))
    gate = maximise_local(alone, local_start(alone, coef))
    first = influence(local, fit.coef, correction=False)
    both = gate_influence(alone, gate.coef, first, correction=False)
    each = unit_influence(both, slice(None)).reshape(400, 50, -1)
    gates = problem.slots.gates
    for row in ROWS:
        want = moved(problem, coef, row, "none")[:, gates]
        np.testing.assert_allclose(each[row][:, gates], want, atol=INTERPOLATED * np.abs(want).max())


def test_covariance_is_the_sum_of_squared_influence_by_cluster():
    problem, coef = fitted()
    local = build_local(problem, 1)
    inf = influence(local, coef)
    each = unit_influence(inf, slice(None))
    np.testing.assert_allclose(level_covariance(inf).matrix, each.T @ each, rtol=1e-10, atol=1e-14)
    pairs = np.arange(400) // 2
    sums = each[::2] + each[1::2]
    got = level_covariance(inf, pairs).matrix
    np.testing.assert_allclose(got, sums.T @ sums * 200 / 199, rtol=1e-10, atol=1e-14)
