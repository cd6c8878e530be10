"""The functions that are reported: what the second kernel and the drawing towards lines do, and where nothing."""

from dataclasses import replace

import numpy as np
import pytest

from mixmoe.errors import MixmoeWarning
from mixmoe.varying import smoothing
from mixmoe.varying.joint_em import Control, fit_functions
from mixmoe.varying.local_maximum import local_maxima, on_limit
from mixmoe.varying.model import VCMoE
from mixmoe.varying.presets import vcmoe
from mixmoe.varying.smoothing import (
    Curve,
    From,
    maximise,
    second_kernel,
    smoothed_functions,
    summed_influence,
    towards_line,
)
from mixmoe.varying.starts import permute_experts
from tests.varying.helpers import make_problem

H = 0.2
GRID = np.linspace(0.0, 1.0, 101)
EVERYWHERE = np.ones(len(GRID), dtype=bool)
EPS = 1e-4  # change of a weight
SAME = 2e-3  # of numerical and analytic influence, relative to the largest: Newton stops at 1e-8


def curve(levels, covariance):
    return Curve(GRID, np.full(len(GRID), 0.01), levels, H * np.gradient(levels, GRID), covariance, H)


def noise(scale):
    """Correlated noise as that of local lines has it, larger at the ends."""
    size = scale * (1.0 + 3.0 * np.abs(GRID - 0.5))
    return np.outer(size, size) * np.exp(-0.5 * ((GRID[:, None] - GRID) / 0.08) ** 2)


def test_averages_of_a_line_are_the_line():
    second = second_kernel(GRID, H, EVERYWHERE)
    levels = second.weights @ (2.0 - 3.0 * GRID) + second.slopes @ np.full(len(GRID), -3.0 * H)
    np.testing.assert_allclose(levels, 2.0 - 3.0 * GRID, atol=1e-12)


def test_a_quarter_of_the_leading_bias_goes():
    bias = H**2 / 5.0  # of a local line through a parabola, Epanechnikov kernel
    second = second_kernel(GRID, H, EVERYWHERE)
    levels = second.weights @ (GRID**2 + bias) + second.slopes @ (2.0 * GRID * H)
    inside = (GRID > H) & (GRID < 1.0 - H)
    np.testing.assert_allclose((levels - GRID**2)[inside], 0.75 * bias, rtol=0.01)  # a sum stands for an integral


def test_variance_falls_at_the_ends_and_rises_little_inside():
    t = (GRID - GRID[:, None]) / H
    kernel = np.clip(1.0 - t * t, 0.0, None)
    basis = np.stack([np.ones_like(t), t], axis=-1)
    normal = np.einsum("gi,gia,gib->gab", kernel, basis, basis)
    lines = np.einsum("gab,gib,gi->gai", np.linalg.inv(normal), basis, kernel)  # (G, 2, rows)
    second = second_kernel(GRID, H, EVERYWHERE)
    smoothed = second.weights @ lines[:, 0] + second.slopes @ lines[:, 1]
    ratio = (smoothed**2).sum(axis=1) / (lines[:, 0] ** 2).sum(axis=1)
    assert ratio[[0, -1]].max() < 0.86
    assert ratio.max() < 1.17


def test_points_without_a_maximum_keep_their_own_value_and_lend_none():
    regular = EVERYWHERE.copy()
    regular[[0, 40]] = False
    second = second_kernel(GRID, H, regular)
    np.testing.assert_allclose(second.weights.sum(axis=1), 1.0)
    for g in (0, 40):
        assert second.weights[g, g] == 1.0
        assert (np.delete(second.weights[:, g], g) == 0.0).all()


def test_grid_points_are_counted_by_the_length_they_stand_for():
    uneven = np.unique(np.concatenate([GRID, np.linspace(0.4, 0.5, 101)]))
    wave = np.sin(2.0 * np.pi * uneven)
    second = second_kernel(uneven, H, np.ones(len(uneven), dtype=bool))
    even = second_kernel(GRID, H, EVERYWHERE).weights @ np.sin(2.0 * np.pi * GRID)
    np.testing.assert_allclose((second.weights @ wave)[np.isin(uneven, GRID)], even, atol=2e-3)


def test_share_is_that_of_bock():
    levels, covariance = np.sin(2.0 * np.pi * GRID), noise(0.1)
    found = towards_line(curve(levels, covariance))
    weight = 1.0 / np.diag(covariance)
    basis = np.column_stack([np.ones_like(GRID), GRID])
    line = basis @ np.linalg.solve(basis.T @ (weight[:, None] * basis), basis.T @ (weight * levels))
    rest = np.eye(len(GRID)) - basis @ np.linalg.solve(basis.T @ (weight[:, None] * basis), basis.T * weight)
    spread = np.sqrt(weight)[:, None] * (rest @ covariance @ rest.T) * np.sqrt(weight)
    share = (np.trace(spread) - 2.0 * np.linalg.eigvalsh(spread)[-1]) / (weight * (levels - line) ** 2).sum()
    assert 0.05 < share < 0.95
    np.testing.assert_allclose(found[:, 0], line + (1.0 - share) * (levels - line), atol=1e-9)


def test_bends_within_noise_become_a_line_and_plain_bends_stay():
    wave = 0.05 * np.sin(2.0 * np.pi * GRID)
    flat = towards_line(curve(1.0 + GRID + wave, noise(0.5)))
    np.testing.assert_allclose(np.diff(flat[:, 0], 2), 0.0, atol=1e-10)
    np.testing.assert_allclose(flat[:, 1] / H, np.gradient(flat[:, 0], GRID), atol=1e-10)
    bent = towards_line(curve(1.0 + GRID + wave, noise(0.001)))
    np.testing.assert_allclose(bent[:, 0], 1.0 + GRID + wave, atol=0.005 * 0.05)


@pytest.mark.parametrize("amplitude", [0.0, 0.1, 0.3, 1.0])
def test_errors_in_standard_errors_are_smaller_on_average_whatever_the_function(amplitude):
    rng, covariance, truth = np.random.default_rng(0), noise(0.1), amplitude * np.sin(2.0 * np.pi * GRID)
    draws = rng.multivariate_normal(truth, covariance, size=200, method="eigh")
    drawn = np.array([towards_line(curve(levels, covariance))[:, 0] for levels in draws])
    risk = [(((one - truth) ** 2) / np.diag(covariance)).sum(axis=1).mean() for one in (drawn, draws)]
    assert risk[0] < risk[1]


@pytest.mark.parametrize("family", ["gaussian", "binomial"])
def test_influence_is_the_derivative_by_the_weight(family):
    problem = make_problem(vcmoe(n=300, family=family, rng=1), 0.35, family=family, n_grid=12)
    run = fit_functions(problem, Control(n_starts=3), np.random.default_rng(0))
    maxima = local_maxima(problem, run.coef)
    functions = np.arange(problem.slots.n)
    found = summed_influence(maxima.parts[0], functions)
    for row in (3, 150, 298):
        states = []
        for change in (-EPS, EPS):
            weights = problem.rows.weights.copy()
            weights[row] += change
            heavier = replace(problem, rows=problem.rows.with_weights(weights))
            states.append(local_maxima(heavier, maxima.state).state)
        numeric = (states[1] - states[0]) / (2.0 * EPS)
        np.testing.assert_allclose(found[row], numeric, atol=SAME * np.abs(numeric).max())


def test_rows_are_taken_together_where_there_are_many(monkeypatch):
    problem = make_problem(vcmoe(n=300, rng=1), 0.35, n_grid=12)
    part = local_maxima(problem, fit_functions(problem, Control(n_starts=2), np.random.default_rng(0)).coef).parts[0]
    functions = np.arange(problem.slots.n)
    each = summed_influence(part, functions)
    monkeypatch.setattr(smoothing, "NUMBERS_HELD", 50 * 2 * 12 * problem.slots.n)
    together = summed_influence(part, functions)
    assert len(together) == 50
    np.testing.assert_allclose(together, each.reshape(6, 50, *each.shape[1:]).sum(axis=0), atol=1e-12)


def test_order_of_the_experts_does_not_matter():
    problem = make_problem(vcmoe(n=500, rng=2), 0.2)
    coef = fit_functions(problem, Control(n_starts=3), np.random.default_rng(0)).coef
    order = np.array([1, 0])
    other = smoothed_functions(problem, local_maxima(problem, permute_experts(problem.slots, coef, order)))
    own = smoothed_functions(problem, local_maxima(problem, coef))
    np.testing.assert_allclose(permute_experts(problem.slots, other, order), own, atol=1e-6)


def test_three_experts_keep_the_numbers_of_the_start_and_do_not_depend_on_them():
    problem = make_problem(vcmoe(n=600, experts=3, rng=1), 0.35, experts=3, n_grid=15)
    coef, order = fit_functions(problem, Control(n_starts=5), np.random.default_rng(0)).coef, np.array([2, 0, 1])
    turned = permute_experts(problem.slots, coef, order)
    a, b = (maximise(problem, Control(), np.random.default_rng(0), From(False, same=c)) for c in (coef, turned))
    np.testing.assert_allclose(permute_experts(problem.slots, a.coef, order), b.coef, atol=1e-4)


def test_constants_are_left_alone_and_a_gate_may_have_its_own_bandwidth():
    sim = vcmoe("constant", n=400, rng=3)
    const = np.zeros(8, dtype=bool)
    const[[1, 3]] = True
    problem = make_problem(sim, 0.3, const=const, gate_bandwidth=0.5)
    maxima = local_maxima(problem, fit_functions(problem, Control(n_starts=3), np.random.default_rng(0)).coef)
    found = smoothed_functions(problem, maxima)
    np.testing.assert_array_equal(found[:, :, const], maxima.state[:, :, const])
    assert [len(part.functions) for part in maxima.parts] == [6, 2]
    bends = [np.abs(np.diff(state[:, 0, ~const], 2, axis=0)).max(axis=0) for state in (found, maxima.state)]
    assert (bends[0] < bends[1]).all()


def test_theta_that_runs_to_its_limit_keeps_the_joint_value():
    problem = make_problem(vcmoe("moderate", n=300, family="negbinomial", rng=1), 0.3, family="negbinomial", n_grid=15)
    coef = fit_functions(problem, Control(n_starts=3), np.random.default_rng(0)).coef
    assert not on_limit(problem, coef).any()
    maxima = local_maxima(problem, coef)
    same = (maxima.state[:, 0, problem.slots.dispersions] == coef[:, 0, problem.slots.dispersions]).all(axis=1)
    assert 0 < same.sum() < 15
    assert not on_limit(problem, maxima.state).any()
    assert np.abs(maxima.state[same] - coef[same])[:, 0, problem.slots.experts].max() > 1e-3


def test_error_is_smaller_than_that_of_the_local_maxima_where_nothing_bends():
    sim = vcmoe("constant", n=500, rng=4)
    fits = {e: VCMoE("y ~ z1 | gate: x1 | vary: u", sim.data, bandwidth=0.2, estimate=e) for e in ("shrunken", "local")}
    found = {e: model.fit(rng=0, starts=3).functions().query("block == 'expert'") for e, model in fits.items()}
    spread = {e: frame.groupby("coefficient")["estimate"].std().mean() for e, frame in found.items()}
    assert spread["shrunken"] < 0.9 * spread["local"]


def test_one_expert_is_reported_as_it_is():
    sim = vcmoe(n=200, rng=1)
    fits = [VCMoE("y ~ z1 | vary: u", sim.data, 1, bandwidth=0.3, estimate=e).fit() for e in ("shrunken", "joint")]
    np.testing.assert_array_equal(fits[0].functions()["estimate"], fits[1].functions()["estimate"])


def test_functions_that_the_data_contradict_are_not_reported():
    data = vcmoe(n=300, rng=2).data  # two experts
    formula, options = "y ~ z1 | gate: x1 | vary: u", {"bandwidth": 0.4, "n_grid": 20}
    with pytest.warns(MixmoeWarning):
        fits = {e: VCMoE(formula, data, 3, estimate=e, **options).fit(rng=0) for e in ("shrunken", "local", "joint")}
    two = VCMoE(formula, data, 2, **options).fit(rng=0)
    least = min(fits["local"].llf, fits["joint"].llf)
    assert fits["shrunken"].llf > least - 0.5 * fits["local"].effective_df
    assert fits["shrunken"].llf > two.llf - 0.5 * two.effective_df


def test_clusters_do_not_move_the_functions():
    data = vcmoe(n=300, rng=1).data.assign(pair=np.arange(300) // 2)
    a = VCMoE("y ~ z1 | gate: x1 | vary: u", data, bandwidth=0.3).fit(rng=0)
    b = VCMoE("y ~ z1 | gate: x1 | vary: u", data, bandwidth=0.3, cluster="pair").fit(rng=0)
    np.testing.assert_array_equal(a.functions()["estimate"], b.functions()["estimate"])
