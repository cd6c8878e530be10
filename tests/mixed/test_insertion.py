"""Starts that insert an expert: they find a handful of subjects, and what they promise is what they hold."""

from dataclasses import replace

import numpy as np
import pytest

from mixmoe import simulate
from mixmoe.mixed.end_points import nearly_exact
from mixmoe.mixed.insertion import (
    Inserted,
    _bred,
    _less_one,
    _tilted,
    beside,
    distinct,
    gains_little,
    inserted_starts,
    insertions,
    with_new,
    without_expert,
    worth,
)
from mixmoe.mixed.likelihood.observed import evaluate, subject_logliks
from mixmoe.mixed.model import MEMoE
from mixmoe.mixed.parameters import Params, free_to_working, working_to_free
from mixmoe.mixed.search import search, search_from
from mixmoe.mixed.starting_values import (
    carried_starts,
    fewer_experts,
    fit_one_expert,
    random_side,
    random_starts,
    refit,
    repeat_expert,
)
from mixmoe.mixture.gate import gate_log_probabilities
from mixmoe.numerics.linalg import logsumexp
from mixmoe.numerics.optimise import Control

HANDFUL = np.arange(7)


@pytest.fixture(scope="module")
def planted():
    """One group, in which seven of 240 subjects with one slope and little noise are hidden inside the spread."""
    sim = simulate.memoe("single", n_subjects=240, n_visits=5, rng=3)
    data = sim.data.copy()
    rows = data["id"].isin(HANDFUL + 1)
    rng = np.random.default_rng(8)
    data.loc[rows, "y"] = 10.5 + 0.6 * data["time"][rows] + 0.12 * rng.normal(size=rows.sum())
    return MEMoE(sim.formula, data, experts=2)


@pytest.fixture(scope="module")
def two_groups():
    """A problem of three experts whose data are two groups, and starts from the fit of these."""
    rng = np.random.default_rng(4)
    N = 200
    subject, age = np.repeat(np.arange(N), 4), rng.normal(size=N)
    group = rng.random(N) < 0.5
    data = {"id": subject, "age": age[subject], "y": np.where(group, 4.0, 0.0)[subject] + rng.normal(size=4 * N)}
    problem = MEMoE("y ~ 1 | gate: age | re: (0 | id)", data, 3).problem
    one = fit_one_expert(problem, Control(tol=1e-6))
    two = np.array([np.where(group, 0.99, 0.01), np.where(group, 0.01, 0.99)])[None]
    below = fewer_experts(problem)
    theta = working_to_free(below.structure, refit(below, repeat_expert(below.structure, one.params, 1), two))[0]
    return problem, carried_starts(problem, one, theta, 2, np.random.default_rng(0), 16)


@pytest.fixture(scope="module")
def one(planted):
    return fit_one_expert(planted.problem, Control(tol=1e-6))


@pytest.fixture(scope="module")
def smaller(planted, one):
    below = fewer_experts(planted.problem)
    return working_to_free(below.structure, one.params)[0]


def test_the_new_expert_that_gains_most_is_the_handful(planted, one, smaller):
    """A cut across the subjects cannot separate it: it lies inside the others."""
    starts = inserted_starts(planted.problem, one, smaller, 1, np.random.default_rng(0))
    joint = subject_logliks(planted.problem, starts[0])
    share = np.exp(joint[:, 1] - logsumexp(joint, axis=1))
    assert set(np.flatnonzero(share > 0.5)) >= set(HANDFUL)
    assert (share > 0.5).sum() <= 2 * HANDFUL.size


@pytest.mark.parametrize(
    ("formula", "options"),
    [
        ("y ~ time | re: (1 + time | id)", {}),
        ("y ~ time + common(x1) | gate: z1 | re: (1 + time || id)", {"cov_re": "proportional"}),
        ("y ~ time | gate: z1 + z2 | re: (1 | id)", {"cov_re": "common", "residual": "common"}),
        ("y ~ x1 | gate: 0 + z1 | re: (0 | id)", {}),
    ],
)
def test_a_new_expert_gains_what_it_promises(formula, options):
    """The log-likelihood with it is not below that of the fit plus its gain, which leaves out subjects far away."""
    data = simulate.memoe("moderate", n_subjects=90, n_visits=4, rng=4).data
    problem = MEMoE(formula, data, experts=3, **options).problem
    one = fit_one_expert(problem, Control())
    below = fewer_experts(problem)
    start = random_starts(below, one, 2, 4, np.random.default_rng(2))[0]
    fit = beside(below, start)
    new = insertions(fit, one.features, np.random.default_rng(1))
    with_one_more = evaluate(problem, with_new(problem, fit.params, new)).loglik - fit.base.sum()
    usable = np.isfinite(new.gain)
    assert usable.any()
    np.testing.assert_allclose(with_one_more[usable], new.gain[usable], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("far", [40.0, 1e4])
def test_a_gate_that_separates_tilts_by_a_finite_step_without_overflow(planted, one, smaller, far):
    """Log-odds of thousands are met beside covariates that separate; warnings are errors here."""
    fit = beside(fewer_experts(planted.problem), smaller)
    new = insertions(fit, one.features, np.random.default_rng(1))
    gamma = np.full_like(new.params.gamma, far) * np.where(np.arange(len(new.gain)) % 2, 1, -1)[:, None, None]
    found = _tilted(fit, replace(new, params=replace(new.params, gamma=gamma)))
    assert np.isfinite(found).all()


def test_no_new_expert_is_worth_more_to_a_subject_than_her_own(planted, smaller):
    """Under any coefficients, covariances and residual deviations above the floor her density is lower."""
    below = fewer_experts(planted.problem)
    fit = beside(below, smaller)
    bound = worth(fit, np.arange(fit.base.size)[:, None]) + fit.base
    rng = np.random.default_rng(3)
    for _ in range(200):
        p = fit.params
        beta = p.beta + rng.normal(size=p.beta.shape)
        factor = p.factor * rng.exponential(size=(1, 1, 1, 1))
        sigma = p.sigma * rng.uniform(0.1, 3.0)
        other = replace(p, beta=beta, factor=factor, sigma=sigma)
        assert (below.experts.densities(other).log_density[0, 0] <= bound + 1e-9).all()


def test_the_worth_of_a_pair_is_that_of_one_expert_for_both(planted, smaller):
    """Without random effects no coefficients and deviation give the two more, and their own least squares as much."""
    below = fewer_experts(planted.problem)
    fit = beside(below, smaller)
    pairs = np.array([[0, 1], [0, 100], [57, 203]])
    bound = worth(fit, pairs) + fit.base[pairs].sum(axis=1)
    flat = replace(fit.params, factor=np.zeros_like(fit.params.factor))
    rng = np.random.default_rng(3)

    def given(beta, sigma):
        other = replace(flat, beta=beta[None, None], sigma=np.full_like(flat.sigma, sigma))
        return below.experts.densities(other).log_density[0, 0][pairs].sum(axis=1)

    for _ in range(100):
        near = flat.beta[0, 0] + rng.normal(size=flat.beta.shape[2])
        assert (given(near, flat.sigma.max() * rng.uniform(0.1, 3.0)) <= bound + 1e-9).all()
    m = below.experts
    for i, pair in enumerate(pairs):
        beta = np.linalg.lstsq(m.XX[..., pair].sum(axis=-1), m.Xy[:, pair].sum(axis=1), rcond=None)[0]
        squares = m.yy[pair].sum() - beta @ m.Xy[:, pair].sum(axis=1)
        sigma = max(np.sqrt(squares / m.n[pair].sum()), 0.1 * flat.sigma.max())
        assert given(beta, sigma)[i] == pytest.approx(bound[i], abs=1e-4)  # worth pays 1e-5 for its ridge


def of_subjects(gain, *members):
    """New experts of some of ten subjects, without parameters that matter."""
    share = np.array([np.isin(np.arange(10), own) for own in members], dtype=float)
    C = len(share)
    blank = Params(*(np.zeros((C, 1, *size)) for size in ((1,), (2,), (1, 1), (), (0,))))
    return Inserted(np.array(gain), blank, np.arange(10), share, np.zeros(C, dtype=np.intp))


def test_new_experts_that_differ_in_one_of_five_subjects_are_two_and_so_are_nested_ones():
    """A handful has maxima with and without one of its subjects; of those with the same subjects the higher stays."""
    new = of_subjects([3.0, 4.0, 2.0, 5.0, -np.inf], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1], [0, 1, 2, 3], [7, 8])
    assert distinct(new, 9).tolist() == [3, 1, 2]
    assert distinct(new, 2).tolist() == [3, 1]
    assert distinct(new, 9, 0.79).tolist() == [3, 2]  # of parents


def test_sets_are_bred_of_subjects_of_one_or_two_and_the_best_lose_each_of_theirs():
    new = of_subjects([1.0, 2.0], [0, 1, 2, 3], [4, 5, 6])
    sets, first = _bred(new, np.random.default_rng(0))
    assert set(np.unique(sets)) == {0.0, 1.0}
    assert (sets[np.arange(len(sets)), first] == 1).all()
    assert not sets[:, 7:].any()
    one, other = sets[:, :4].sum(axis=1), sets[:, 4:].sum(axis=1)
    assert (np.minimum(one, other) <= 2).all()
    assert ((one + other >= 2) & (one + other <= 6)).all()
    assert (np.minimum(one, other) > 0).any()
    less, _ = _less_one(new)
    rows = {tuple(np.flatnonzero(each).tolist()) for each in less}
    assert rows == {(5, 6), (4, 6), (4, 5), (1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)}
    assert len(_less_one(of_subjects([1.0], [0, 1]))[0]) == 0  # a pair has nothing to lose


def test_experts_that_fit_a_few_subjects_nearly_exactly(planted):
    """Up to two subjects more than the three coefficients, with less than a tenth of the largest deviation."""
    noise, subjects = np.array([0.099, 0.099, 0.101]), np.array([5.0, 5.1, 5.0])
    assert list(nearly_exact(planted.structure, noise, 1.0, subjects)) == [True, False, False]


def test_a_cut_around_the_centre_takes_who_is_far_out_on_either_side():
    features = np.linspace(-3, 3, 61)[:, None]
    shells = [random_side(np.ones(61), features, np.random.default_rng(seed)) for seed in range(40)]
    ends = [side for side in shells if side[0] == side[-1] > 0.5]
    assert 5 <= len(ends) <= 25  # the others are cut across
    for side in ends:
        outside = side > 0.5
        assert np.abs(features[outside]).min() >= np.abs(features[~outside]).max()


def test_corners_of_the_gates_covariates_are_starts_that_do_not_dissolve(two_groups):
    """Who is at an end of age goes to an own expert, and a gate that is steep there keeps them until others join."""
    problem, starts = two_groups
    assert len(starts) == 1 + 2 * 16 + 16
    gamma = free_to_working(problem.structure, starts[1 + 2 * 16 :]).gamma
    last = np.exp(gate_log_probabilities(problem.W, gamma))[:, -1]  # (16, N)
    assert np.median(last.max(axis=1)) > 0.8  # a tenth at most where the steps of a flat gate have to find the corner
    young = np.array([np.corrcoef(each, problem.W[:, 1])[0, 1] < 0 for each in last])
    for end in (young, ~young):  # in sizes from a hundredth to a half
        sizes = np.sort(last[end].sum(axis=1))
        assert len(sizes) == 8
        assert sizes[0] < 4
        assert sizes[-1] > 30


def test_the_default_search_is_not_below_the_maximum_at_the_handful(planted, one):
    given = np.zeros((1, 2, planted.problem.n_subjects))
    given[0, 1, HANDFUL] = 1.0
    given[0, 0] = 1.0 - given[0, 1]
    s = planted.problem.structure
    start = working_to_free(s, refit(planted.problem, repeat_expert(s, one.params, 1), given))
    known = search_from(planted.problem, start, Control())
    assert not known.degenerate
    assert search(planted.problem, 4, Control(), np.random.default_rng(5)).loglik >= known.loglik - 1e-3


def test_without_an_expert_the_others_keep_their_proportions(planted, one, smaller):
    """Gate probabilities of those that stay are the former ones over their sum."""
    problem = planted.with_experts(3).problem
    two = carried_starts(planted.problem, one, smaller, 2, np.random.default_rng(2))[1]
    three = carried_starts(problem, one, two, 2, np.random.default_rng(2))[2]
    before = subject_logliks(problem, three)
    after = subject_logliks(fewer_experts(problem), without_expert(problem, three, 0))
    np.testing.assert_allclose(np.diff(after, axis=1), np.diff(before[:, 1:], axis=1), atol=1e-8)


def test_a_group_of_its_own_is_no_handful(planted, smaller):
    below = evaluate(fewer_experts(planted.problem), smaller[None]).loglik[0]
    added = planted.problem.free.size - smaller.size
    assert gains_little(planted.problem, smaller, below + 9.9 * added)
    assert not gains_little(planted.problem, smaller, below + 10.1 * added)
