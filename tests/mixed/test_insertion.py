"""Starts that insert an expert: they find a handful of subjects, and what they promise is what they hold."""

import numpy as np
import pytest

from mixmoe import simulate
from mixmoe.mixed.insertion import gains_little, inserted_starts, insertions, without_expert
from mixmoe.mixed.likelihood.observed import evaluate, subject_logliks
from mixmoe.mixed.model import MEMoE
from mixmoe.mixed.parameters import contract, expand
from mixmoe.mixed.search import search, search_from
from mixmoe.mixed.starting_values import carried_starts, fewer_experts, fit_one_expert, from_responsibilities
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
def one(planted):
    return fit_one_expert(planted.problem, Control(tol=1e-6))


@pytest.fixture(scope="module")
def smaller(planted, one):
    below = fewer_experts(planted.problem)
    return contract(below.structure, one.params)[0]


def test_the_new_expert_that_gains_most_is_the_handful(planted, one, smaller):
    """A cut across the subjects cannot separate it: it lies inside the others."""
    starts = inserted_starts(planted.problem, one, smaller, 1, np.random.default_rng(0))
    joint = subject_logliks(planted.problem, starts[0])
    share = np.exp(joint[:, 1] - logsumexp(joint, axis=1))
    assert set(np.flatnonzero(share > 0.5)) >= set(HANDFUL)
    assert (share > 0.5).sum() <= 2 * HANDFUL.size


def test_the_gain_of_a_new_expert_is_a_lower_bound_of_that_of_the_mixture(planted, one, smaller):
    """Beside one expert it is a point of the mixture with two, less what subjects far away would add."""
    below = fewer_experts(planted.problem)
    params = expand(below.structure, below.free, smaller[None])
    joint = subject_logliks(below, smaller).T
    best = max(insertions(below, one, params, joint, np.random.default_rng(1)), key=lambda new: new.gain)
    start = inserted_starts(planted.problem, one, smaller, 1, np.random.default_rng(1))
    end = search_from(planted.problem, start, Control()).loglik - evaluate(below, smaller[None]).loglik[0]
    assert 0.5 * end < best.gain <= end


def test_the_default_search_is_not_below_the_maximum_at_the_handful(planted, one):
    given = np.zeros((1, 2, planted.problem.n_subjects))
    given[0, 1, HANDFUL] = 1.0
    given[0, 0] = 1.0 - given[0, 1]
    start = from_responsibilities(planted.problem, one.params, given)
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
