"""Influence of rows against refits with a changed weight, and covariances against sums over rows."""

from dataclasses import replace

import numpy as np
import pytest

from mixmoe.inference.small_samples import leverage_power
from mixmoe.varying.bands import fit_levels, level_influence, level_process
from mixmoe.varying.em_steps import Natural, own_natural
from mixmoe.varying.joint_em import Control, fit_functions
from mixmoe.varying.leave_one_out import response_nodes
from mixmoe.varying.local_likelihood import build_local, local_information, local_pieces, natural_terms
from mixmoe.varying.local_maximum import at_points, local_maxima
from mixmoe.varying.presets import vcmoe
from mixmoe.varying.sandwich import LEAST_OWN, influence, level_covariance, unit_influence
from mixmoe.varying.windows import epanechnikov
from tests.varying.helpers import make_problem

EPS = 1e-4  # change of a weight
SAME = 2e-3  # of numerical and analytic influence, relative to the largest: Newton stops at 1e-8
INTERPOLATED = 0.02  # influence on the experts is interpolated between grid points
LATTICE = 5e-3  # 24 points stand for a discrete response
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
        found.append(fit_levels(heavier, coef, bias).values(0))
    return (found[1] - found[0]) / (2.0 * EPS)


@pytest.mark.parametrize("family", ["gaussian", "binomial"])
@pytest.mark.parametrize("bias", ["none", "rbc"])
def test_influence_is_the_derivative_by_the_weight(family, bias):
    """Of sigma in the local likelihoods in which it is a line, of the rest in those in which it is constant."""
    problem, coef = fitted(family=family)
    fits = fit_levels(problem, coef, bias)
    assert fits.bounded.fit.converged.all()
    each = unit_influence(level_influence(fits, 0.0), slice(None)).reshape(400, 50, -1)
    for row in ROWS:
        np.testing.assert_allclose(each[row], moved(problem, coef, row, bias), atol=SAME * np.abs(each[row]).max())


@pytest.mark.parametrize("bandwidth", [0.15, 0.7])
def test_influence_on_a_gate_of_its_own_goes_through_the_experts(bandwidth):
    problem, coef = fitted(bandwidth)
    fits = fit_levels(problem, coef, "none")
    each = unit_influence(level_influence(fits, 0.0), slice(None)).reshape(400, 50, -1)
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
    np.testing.assert_allclose(got, sums.T @ sums, rtol=1e-10, atol=1e-14)
    jackknife = level_covariance(inf, pairs, True).matrix
    np.testing.assert_allclose(jackknife, got * 199 / 200, rtol=1e-12)


def test_degrees_of_freedom_without_a_model_are_those_of_the_contributions():
    problem, coef = fitted()
    inf = influence(build_local(problem, 1), coef)
    each = unit_influence(inf, slice(None))
    want = 2.0 * (each**2).sum(axis=0) ** 2 / (each**4).sum(axis=0)
    np.testing.assert_allclose(level_covariance(inf).df, want, rtol=1e-8)


def test_a_gate_of_its_own_follows_constants_of_the_experts():
    """Both directly and by the functions of the experts, which follow them too; by refits at moved constants."""
    problem, coef = fitted(gate_bandwidth=0.5)
    const = np.zeros(problem.slots.n, dtype=bool)
    const[1] = True
    problem, coef = replace(problem, const=const), coef.copy()
    coef[:, 0, 1], coef[:, 1, 1] = coef[:, 0, 1].mean(), 0.0
    got = level_influence(fit_levels(problem, coef, "none"), 0.0).coupling[:, problem.slots.gates, 0]
    moves = []
    for change in (-1e-4, 1e-4):
        other = coef.copy()
        other[:, 0, 1] += change
        moves.append(fit_levels(problem, other, "none").values(0)[:, problem.slots.gates])
    want = (moves[1] - moves[0]) / 2e-4
    np.testing.assert_allclose(got, want, atol=INTERPOLATED * np.abs(want).max())


@pytest.mark.parametrize("power", [0.5, 1.0, -1.0])
def test_correction_is_the_power_of_the_factor(power):
    rng = np.random.default_rng(0)
    square = rng.normal(size=(6, 3, 3))
    leverage = square @ np.swapaxes(square, 1, 2)
    leverage[3:, 2] = leverage[3:, :, 2] = 0.0  # nothing free in one natural parameter
    curvature = rng.normal(size=(6, 3, 3))
    curvature = 0.02 * (curvature + np.swapaxes(curvature, 1, 2))  # indefinite
    factor = np.eye(3) - leverage @ curvature
    got = leverage_power(curvature, leverage, power)
    if power == 0.5:
        np.testing.assert_allclose(got @ got @ factor, np.broadcast_to(np.eye(3), factor.shape), atol=1e-9)
    else:
        np.testing.assert_allclose(got, np.linalg.inv(factor) if power == 1.0 else factor, atol=1e-9)


def test_a_row_of_a_mixture_keeps_a_quarter_of_its_score():
    """A row with nine tenths of the information in one direction counts four times there, not ten times."""
    curvature, leverage = np.diag([0.9, 0.3])[None], np.eye(2)[None]
    least = LEAST_OWN[False]
    np.testing.assert_allclose(
        leverage_power(curvature, leverage, 1.0, least)[0], np.diag([4.0, 1.0 / 0.7]), atol=1e-12
    )


def test_noise_of_the_information_is_that_of_second_differences_of_the_rows():
    """In the direction in which a level moves, row by row, by differences of log densities."""
    problem, coef = fitted()
    local, g, step = build_local(problem, 1), 7, 1e-3
    found = influence(local, coef)
    block, terms = next(iter(local_pieces(at_points(local, np.array([g])), coef[[g]])))
    inverse = np.linalg.inv(local_information(local, block, terms.information, terms.kernel)[0])
    for slot in (0, 3, problem.slots.gates.start):
        move = step * inverse[slot].reshape(1, *coef.shape[1:]) / np.abs(inverse[slot]).max()
        density = [natural_terms(local, block, coef[[g]] + s * move).logdensity for s in (1.0, 0.0, -1.0)]
        each = -terms.kernel * (density[0] - 2.0 * density[1] + density[2])
        np.testing.assert_allclose(found.noise[g, slot], np.sqrt((each**2).sum()) / abs(each.sum()), rtol=1e-4)


def one_poisson():
    problem = make_problem(
        vcmoe(n=250, family="poisson", experts=1, rng=2), 0.3, n_grid=10, experts=1, family="poisson"
    )
    run = fit_functions(problem, Control(), np.random.default_rng(0))
    return problem, local_maxima(problem, run.coef).state


def test_one_poisson_expert_is_hc2_with_the_degrees_of_freedom_of_bell_and_mccaffrey():
    problem, coef = one_poisson()
    local = build_local(problem, 1)
    inf = influence(local, coef, nodes=response_nodes(problem, own_natural(problem, coef)))
    for g in (0, 4, 9):
        t = (problem.rows.index - problem.windows.grid[g]) / problem.windows.bandwidth
        kernel = epanechnikov(t)
        design = np.hstack([problem.rows.design, problem.rows.design * t[:, None]])
        mean = np.exp(design @ coef[g].ravel() + problem.rows.offset)
        inverse = np.linalg.inv(design.T @ (design * (kernel * mean)[:, None]))
        lever = kernel[:, None] * (design @ inverse)[:, :2]
        share = kernel * mean * np.einsum("nd,de,ne->n", design, inverse, design)
        lever /= np.sqrt(1.0 - share)[:, None]
        inside = slice(inf.lo[g], inf.hi[g])
        want = lever * (problem.rows.outcome.y - mean)[:, None]
        np.testing.assert_allclose(inf.local[g], want[inside], atol=1e-8 * np.abs(want).max())
        own = np.exp(own_natural(problem, coef).eta[0])  # responses are drawn from the functions, not from the line
        about = own + (own - mean) ** 2
        spread = own + 2.0 * own**2 + 4.0 * own * (own - mean) ** 2 + 4.0 * own * (own - mean)
        df = 2.0 * (lever**2 * about[:, None]).sum(axis=0) ** 2 / (lever**4 * spread[:, None]).sum(axis=0)
        np.testing.assert_allclose(inf.df[g], df, rtol=LATTICE)


def test_clusters_use_the_whole_factor_and_observed_fourth_powers():
    problem, coef = one_poisson()
    alone = level_process(problem, coef, "none")
    each = level_process(problem, coef, "none", np.arange(250))
    assert (np.einsum("glgl->gl", each.covariance) > np.einsum("glgl->gl", alone.covariance)).all()
    plain = level_process(problem, coef, "none", correction=False)
    assert (np.einsum("glgl->gl", plain.covariance) < np.einsum("glgl->gl", alone.covariance)).all()
    assert not np.allclose(each.df, alone.df, rtol=0.01)


@pytest.mark.parametrize("family", ["gaussian", "binomial", "poisson", "negbinomial"])
def test_nodes_have_the_moments_of_the_mixture(family):
    problem = make_problem(vcmoe(n=60, family=family, rng=1), 0.5, family=family, n_grid=5)
    rng = np.random.default_rng(0)
    shape = (2, 60)
    gate = rng.uniform(0.2, 0.8, 60)
    eta, delta = rng.normal(0.5, 0.5, shape), np.full(shape, {"gaussian": -0.3, "negbinomial": 2.0}.get(family, 0.0))
    natural = Natural(eta, delta, np.log(np.stack([gate, 1.0 - gate])))
    nodes = response_nodes(problem, natural)
    weights, y = np.array([n.weight for n in nodes]), np.array([n.outcome.y for n in nodes])
    trials = problem.rows.outcome.trials
    mean = problem.family.mean(eta, trials)
    variance = problem.family.variance(mean, delta, trials)
    prob = np.exp(natural.log_gate)
    np.testing.assert_allclose(weights.sum(axis=0), 1.0, atol=1e-12)
    np.testing.assert_allclose((weights * y).sum(axis=0), (prob * mean).sum(axis=0), rtol=LATTICE)
    second = (prob * (variance + mean**2)).sum(axis=0)
    np.testing.assert_allclose((weights * y**2).sum(axis=0), second, rtol=LATTICE)
