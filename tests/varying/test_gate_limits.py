"""Limits of gate coefficients from the signed root of the likelihood ratio."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import expit, xlogy

from mixmoe.varying import likelihood_limits
from mixmoe.varying.bands import symmetric
from mixmoe.varying.likelihood_limits import curvature, distances, with_gate_limits
from mixmoe.varying.presets import vcmoe
from mixmoe.varying.windows import epanechnikov
from tests.varying.helpers import make_problem

GRID_POINT = 20
SHIFTS = np.linspace(-7.0, 7.0, 17)


def problem(experts=2, **options):
    return make_problem(vcmoe(n=400, experts=experts, rng=1), 0.2, experts=experts, **options)


def binomial_root(estimate, se, distance):
    """Root of twice the log-likelihood ratio of a log odds at a distance in standard errors, known in closed form."""
    p, q = expit(estimate), expit(estimate + distance * se)
    n = 1.0 / (se**2 * p * (1.0 - p))
    return np.sqrt(2.0 * n * (xlogy(p, p / q) + xlogy(1.0 - p, (1.0 - p) / (1.0 - q))))


@pytest.mark.parametrize("estimate", [0.0, 0.8, -1.5])
@pytest.mark.parametrize("factor", [1.96, 3.0])
def test_one_log_odds_has_the_limits_of_the_binomial_likelihood(estimate, factor):
    se = 0.3
    p = expit(estimate + se * SHIFTS)
    shape = p * (1.0 - p) / (expit(estimate) * expit(-estimate))
    expected = [
        brentq(lambda d, s=sign: binomial_root(estimate, se, s * d) - factor, 0.1, 20.0) for sign in (-1.0, 1.0)
    ]
    np.testing.assert_allclose(distances(SHIFTS, shape, factor), expected, rtol=2e-3)


def test_constant_curvature_leaves_the_factor():
    np.testing.assert_allclose(distances(SHIFTS, np.ones(17), 3.0), [3.0, 3.0], atol=1e-9)
    np.testing.assert_allclose(distances(SHIFTS, np.ones(17), 9.0), [9.0, 9.0], atol=1e-9)


@pytest.mark.parametrize("experts", [2, 3])
def test_curvature_is_that_of_a_dense_multinomial_logit(experts):
    pr = problem(experts)
    slots = pr.slots
    levels = np.random.default_rng(0).normal(0.0, 0.7, slots.n)
    slot, shift = slots.gates.start + 1, 0.9
    weights = epanechnikov((pr.rows.index - pr.windows.grid[GRID_POINT]) / 0.2)

    def variance(at):
        gate = levels[slots.gates].copy()
        gate[1] += at
        out = np.zeros((len(gate), len(gate)))
        for x, w in zip(pr.rows.gate, weights, strict=True):
            e = np.exp(np.append(0.0, gate.reshape(experts - 1, 2) @ x))
            p = (e / e.sum())[1:]
            out += w * np.kron(np.diag(p) - np.outer(p, p), np.outer(x, x))
        return np.linalg.inv(out)[1, 1]

    found = curvature(pr, levels, GRID_POINT, slot, np.array([-shift, 0.0, shift]))
    np.testing.assert_allclose(found, [variance(0.0) / variance(s) for s in (-shift, 0.0, shift)], rtol=1e-8)


def test_constant_gate_coefficients_count_as_known():
    pr = problem(const=None)
    const = pr.const.copy()
    const[pr.slots.gates.start + 1] = True
    pr = replace(pr, const=const)
    levels = np.full(pr.slots.n, 0.4)
    x, t = pr.rows.gate, (pr.rows.index - pr.windows.grid[GRID_POINT]) / 0.2
    mass = [(epanechnikov(t) * expit(e) * expit(-e)).sum() for e in (x @ [0.4, 0.4], x @ [1.0, 0.4])]
    found = curvature(pr, levels, GRID_POINT, pr.slots.gates.start, np.array([-0.6, 0.0, 0.6]))
    assert found[2] == pytest.approx(mass[1] / mass[0])


def bands_of(pr, level, se):
    ones = np.ones((len(pr.windows.grid), pr.slots.n))
    return symmetric(level * ones, se * ones, 3.0 * ones, 1.96 * ones, ones == 0.0)


def test_only_gates_change_and_their_far_side_is_longer():
    pr = problem()
    bands, shown = bands_of(pr, 1.0, 0.3), np.arange(pr.slots.n)
    found = with_gate_limits(pr, np.ones((50, pr.slots.n)), bands, shown)
    first = pr.slots.gates.start
    np.testing.assert_array_equal(found.simultaneous[:, :, :first], 3.0)
    below, above = found.simultaneous[:, :, first:]
    assert (above > 3.05).all()
    assert (below < above - 0.1).all()
    assert (found.pointwise[1, :, first:] - 1.96 < above - 3.0).all()


def test_no_change_without_standard_error_or_with_many_rows(monkeypatch):
    pr = problem()
    shown, levels = np.arange(pr.slots.n), np.ones((50, pr.slots.n))
    lost = bands_of(pr, 1.0, np.nan)
    np.testing.assert_array_equal(with_gate_limits(pr, levels, lost, shown).simultaneous, 3.0)
    monkeypatch.setattr(likelihood_limits, "MOST_ROWS", 100)
    bands = bands_of(pr, 1.0, 0.3)
    assert with_gate_limits(pr, levels, bands, shown) is bands


def test_separated_gate_is_left_alone():
    pr = problem()
    levels = np.zeros(pr.slots.n)
    levels[pr.slots.gates.start] = 900.0
    np.testing.assert_array_equal(curvature(pr, levels, GRID_POINT, pr.slots.gates.start, SHIFTS), 1.0)
