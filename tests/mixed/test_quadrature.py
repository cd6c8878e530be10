"""The flags that say that the integral over the random effects is too coarse."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

import mixmoe as mm
from mixmoe.errors import ApproximationWarning, MixmoeWarning
from mixmoe.mixed.end_points import finer_logliks, integral_shift
from mixmoe.mixed.likelihood.glmm import build_nodes, finer_points
from mixmoe.mixed.likelihood.observed import evaluate, subject_scores
from mixmoe.mixed.parameters import Coordinates, free_to_working, user_to_reported
from tests.mixed.glmm_helpers import problem

FORMULA = "y ~ time + x1 | re: (1 | id)"


def binary(visits, sd, base=0.0, n_subjects=200, rng=1):
    arguments = {"beta": [[base, 0.3, 0.5]], "gamma": np.zeros((0, 1)), "D": [[[sd**2]]], "sigma": [1.0]}
    return mm.simulate.memoe("binary", n_subjects=n_subjects, n_visits=visits, rng=rng, **arguments).data


def quiet(data, formula=FORMULA, family="binomial", **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        return mm.fit(formula, data, 1, family=family, rng=0, cov_type="nonrobust", **options)


def codes(fit):
    return {flag.code for flag in fit.flags}


@pytest.mark.parametrize(("n_quad", "q", "finer"), [(1, 1, 9), (1, 2, 5), (9, 1, 19), (1, 3, None), (30, 1, None)])
def test_points_to_compare_with(n_quad, q, finer):
    assert finer_points(n_quad, q) == finer


@pytest.mark.parametrize(("q", "n_quad", "finer"), [(1, 1, 9), (1, 3, 7), (2, 1, 5)])
def test_shift_is_a_scoring_step(q, n_quad, finer):
    p = problem("binomial", q=q, n_quad=n_quad, n_subjects=60)
    plain = Coordinates(np.zeros(3), 1.0, np.eye(3), np.eye(q), np.eye(2))
    theta = 0.3 + 0.3 * np.random.default_rng(1).normal(size=p.free.size)
    fine = replace(p, experts=replace(p.experts, nodes=build_nodes(finer, q), parts=[]))
    scores = subject_scores(fine, theta)
    inverse = np.linalg.inv(scores.T @ scores)
    found = integral_shift(p, plain, theta)
    assert found.n_quad == finer
    now, then = (evaluate(each, theta[None]).loglik[0] for each in (p, fine))
    assert found.loglik == pytest.approx(then - now)
    more = (scores - subject_scores(p, theta)).sum(axis=0)
    np.testing.assert_allclose(found.working, inverse @ more, rtol=1e-6)
    moved = user_to_reported(p.structure, free_to_working(p.structure, (theta + 1e-6 * np.eye(theta.size))))
    jacobian = (moved - user_to_reported(p.structure, free_to_working(p.structure, theta[None]))).T / 1e-6
    errors = np.abs(jacobian @ found.working) / np.sqrt(np.diag(jacobian @ inverse @ jacobian.T))
    np.testing.assert_allclose(found.errors, errors, rtol=1e-3)


def test_few_visits_are_flagged_and_the_step_is_the_shift_of_a_refit():
    data = binary(3, 2.0)
    with pytest.warns(ApproximationWarning, match=r"too coarse .* 9 points .* higher, and sd1\(Intercept\|id\) would"):
        laplace = mm.fit(FORMULA, data, 1, family="binomial", rng=0, cov_type="nonrobust")
    fine = quiet(data, n_quad=9)
    assert "laplace_bias" in codes(laplace)
    assert codes(fine) == set()
    name = "sd1(Intercept|id)"
    shift = (fine.params[name] - laplace.params[name]) / fine.bse[name]
    message = next(flag.message for flag in laplace.flags if flag.code == "laplace_bias")
    assert f"about {shift:.1f} standard errors" in message
    assert message.endswith("Fit with n_quad=9.")
    assert "The Laplace approximation is too coarse" in str(laplace.summary())


def test_a_spurious_maximum_is_flagged():
    data = binary(2, 0.5, base=-4.0)
    laplace, fine = quiet(data), quiet(data, n_quad=9)
    assert laplace.params["sd1(Intercept|id)"] > 10  # the truth is 0.5
    assert "laplace_bias" in codes(laplace)
    said = next(flag.message for flag in laplace.flags if flag.code == "laplace_bias")
    assert "lower, and sd1(Intercept|id) would move by more than 5 standard errors" in said
    assert fine.params["sd1(Intercept|id)"] < 1
    assert "quadrature_bias" not in codes(fine)


@pytest.mark.parametrize(("q", "n_quad"), [(1, 1), (2, 1), (1, 9)])
def test_the_highest_by_a_finer_integral(q, n_quad):
    """Of vectors with large random effects, where few points are far off, the one that many points find highest."""
    p = problem("binomial", q=q, n_quad=n_quad, n_subjects=40)
    thetas = 1.5 * np.random.default_rng(2).normal(size=(6, p.free.size))
    dense = replace(p, experts=replace(p.experts, nodes=build_nodes(50 if q == 1 else 25, q), parts=[]))
    found = finer_logliks(p, thetas)
    assert found is not None
    assert found.argmax() == evaluate(dense, thetas).loglik.argmax()


def test_nothing_is_higher_where_no_finer_integral_is_offered():
    p = problem("binomial", q=3, n_subjects=10)
    assert finer_logliks(p, np.zeros((2, p.free.size))) is None


def test_too_few_points_are_flagged():
    assert "quadrature_bias" in codes(quiet(binary(4, 4.0, n_subjects=300), n_quad=2))


def test_what_is_fine_is_not_flagged():
    assert codes(quiet(binary(10, 0.6))) == set()
    counts = mm.simulate.memoe("count", n_subjects=100, rng=1).data
    assert codes(quiet(counts, family="poisson")) == set()
    assert codes(quiet(counts, "y ~ time + x1 | re: (0 | id)", family="poisson")) == set()


def test_three_random_effects_have_no_quadrature_to_compare_with():
    assert "laplace_bias" not in codes(quiet(binary(3, 2.0), "y ~ time | re: (1 + time + x1 || id)"))


def test_rare_counts_at_few_visits_are_flagged():
    arguments = {"beta": [[-4.0, 0.1, 0.3]], "gamma": np.zeros((0, 1)), "D": [[[4.0]]], "sigma": [1.0]}
    data = mm.simulate.memoe("count", n_subjects=300, n_visits=2, rng=1, **arguments).data
    laplace, fine = quiet(data, family="poisson"), quiet(data, family="poisson", n_quad=9)
    assert "laplace_bias" in codes(laplace)
    assert codes(fine) == set()
    assert laplace.params["sd1(Intercept|id)"] > 1.5 * fine.params["sd1(Intercept|id)"]
