"""Threads share an evaluation and change nothing of it."""

import pickle
import threading

import numpy as np
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError
from mixmoe.mixed.likelihood.observed import evaluate, subject_logliks, subject_scores
from mixmoe.numerics.threads import ALONE, Workers, workers


@pytest.mark.parametrize("options", [{}, {"errors": "ar1"}, {"errors_dist": "t"}])
def test_results_do_not_depend_on_the_number_of_threads(options):
    sim = mm.simulate.memoe("separated", n_subjects=9_000, n_visits=4, rng=1)
    model = mm.MEMoE("y ~ time + x1 | gate: z1 | re: (1 + time | id)", sim.data, 2, **options)
    assert len(list(model.problem.experts.blocks(12))) > 4
    theta = np.random.default_rng(0).normal(0.0, 0.1, (6, model.problem.free.size))
    found = [model._threaded(Workers(n)).problem for n in (1, 2, 5)]
    for other in found[1:]:
        one, two = evaluate(found[0], theta), evaluate(other, theta)
        np.testing.assert_array_equal(one.loglik, two.loglik)
        np.testing.assert_array_equal(one.score, two.score)
        np.testing.assert_array_equal(subject_scores(found[0], theta[0]), subject_scores(other, theta[0]))
        np.testing.assert_array_equal(subject_logliks(found[0], theta[0]), subject_logliks(other, theta[0]))


def test_other_responses_share_their_blocks_too():
    sim = mm.simulate.memoe("binary", n_subjects=9_000, n_visits=5, rng=1)
    model = mm.MEMoE("y ~ time | gate: z1 | re: (1 | id)", sim.data, 2, family="binomial")
    theta = np.random.default_rng(0).normal(0.0, 0.1, (1, model.problem.free.size))
    assert len(list(model.problem.experts.blocks(2))) > 4
    again = mm.MEMoE("y ~ time | gate: z1 | re: (1 | id)", sim.data, 2, family="binomial")._threaded(Workers(3))
    one, two = evaluate(model.problem, theta), evaluate(again.problem, theta)
    np.testing.assert_array_equal(one.loglik, two.loglik)
    np.testing.assert_array_equal(one.score, two.score)


def test_items_are_shared_and_come_back_in_their_order():
    seen = set()
    wait = threading.Barrier(2, timeout=10)

    def task(item):
        if item < 2:  # both of these can only pass together: two threads are at work
            wait.wait()
        seen.add(threading.get_ident())
        return item * item

    assert list(Workers(2).map(task, range(8))) == [item * item for item in range(8)]
    assert threading.get_ident() not in seen


def test_what_numpy_is_told_here_holds_in_the_threads():
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        list(Workers(2).map(lambda _: np.log(np.zeros(1)), range(6)))
    with np.errstate(divide="ignore"):
        assert all(np.isneginf(x) for x in Workers(2).map(lambda _: np.log(np.zeros(1))[0], range(6)))


def test_a_copy_in_another_process_has_one_thread():
    assert pickle.loads(pickle.dumps(Workers(4))).n == 1


def test_the_number_is_a_count():
    assert workers(3).n == 3
    assert ALONE.n == 1
    with pytest.raises(ArgumentError, match="n_threads"):
        workers(0)


def test_a_fit_says_the_same_on_two_threads():
    sim = mm.simulate.memoe("separated", n_subjects=60, rng=1)
    one, two = (mm.fit(sim.formula, sim.data, experts=1, rng=0, n_threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one.params, two.params)
    assert two.model.problem.experts.workers.n == 2
