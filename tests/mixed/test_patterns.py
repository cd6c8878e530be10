"""Experts by patterns of the random-effects design give what experts subject by subject give."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from mixmoe.mixed.likelihood.gaussian import experts_of_products
from mixmoe.mixed.likelihood.patterns import PatternedExperts, patterned
from mixmoe.mixed.parameters import Params

N, p = 120, 3


def data(q, n_patterns, weighted=False):
    """Rows of subjects whose random-effects columns are powers of scheduled times, in no order of patterns."""
    rng = np.random.default_rng(q)
    kept = [np.arange(5), np.arange(3), np.array([0, 2, 3, 4])][:n_patterns]
    own = [kept[i] for i in rng.permutation(np.arange(N) % n_patterns)]
    starts, time = np.cumsum([0, *map(len, own[:-1])]), np.concatenate(own)
    Z = np.vander(time / 4.0, q, increasing=True)
    weights = np.array([0.5, 1.0, 2.0, 1.0, 4.0])[time] if weighted else None
    return rng.normal(size=time.size), rng.normal(size=(time.size, p)), Z, starts, weights


def parameters(q, S=2, K=2, step=0.0):
    rng = np.random.default_rng(9)
    factor = np.tril(rng.normal(size=(S, K, q, q)))
    factor[0, 0] *= 1e-3  # next to no random effects
    beta, sigma = rng.normal(size=(S, K, p)), rng.uniform(0.3, 2.0, (S, K))
    return Params(
        np.zeros((S, K - 1, 0)), beta * (1 + step), factor * (1 + step), sigma * (1 + step), np.zeros((S, K, 0))
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_patterns", [1, 3])
@pytest.mark.parametrize("q", [0, 1, 2, 3])
def test_densities_and_sums(q, n_patterns, weighted):
    plain = experts_of_products(*data(q, n_patterns, weighted))
    ours = patterned(plain)
    assert isinstance(ours, PatternedExperts)
    assert len(ours.pattern_n) == n_patterns
    some = np.random.default_rng(0).choice(N, 90)
    weights = np.random.default_rng(1).uniform(size=(2, 2, 90))
    for params in (parameters(q), parameters(q, step=1e-30j)):
        a, b = ours.take(some).densities(params), plain.take(some).densities(params)
        flat = weights.reshape(4, 90)
        pairs = [
            (a.log_density, b.log_density),
            (a.summed_scores(weights), b.summed_scores(weights)),
            (a.scores(), b.scores()),
            (a.second_moments(flat), b.second_moments(flat)),
            (a.normal_matrix(flat), b.normal_matrix(flat)),
            (a.effects().means, b.effects().means),
        ]
        for mine, theirs in pairs:
            assert mine.shape == theirs.shape
            np.testing.assert_allclose(mine.real, theirs.real, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(mine.imag * 1e30, theirs.imag * 1e30, rtol=1e-8, atol=1e-8)


def test_density_is_that_of_the_normal_distribution():
    y, X, Z, starts, _ = data(2, 3)
    params, ends = parameters(2), [*starts[1:], y.size]
    found = patterned(experts_of_products(y, X, Z, starts)).densities(params).log_density
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        rows, T = slice(start, end), Z[start:end] @ params.factor[1, 0]
        V = T @ T.T + params.sigma[1, 0] ** 2 * np.eye(end - start)
        assert found[1, 0, i] == pytest.approx(multivariate_normal(X[rows] @ params.beta[1, 0], V).logpdf(y[rows]))


def test_blocks_sorted_or_not():
    ours = patterned(experts_of_products(*data(1, 3)))
    for experts in (ours, ours.take(np.argsort(ours.pattern, kind="stable"))):
        blocks = list(experts.blocks(1_200))
        assert len(blocks) > 1
        whole = experts.densities(parameters(1)).log_density
        parts = [part.densities(parameters(1)).log_density for _, part in blocks]
        np.testing.assert_allclose(np.concatenate(parts, axis=2), whole, rtol=1e-12)
    assert ours.sort_keys()[-1].tolist() == ours.pattern.tolist()


def test_a_response_of_zero_and_no_random_effects():
    plain = experts_of_products(*data(2, 3))
    ours = patterned(plain)
    assert not ours.without_response().yy.any()
    found = ours.without_random_effects().densities(parameters(0)).log_density
    np.testing.assert_allclose(found, plain.without_random_effects().densities(parameters(0)).log_density, rtol=1e-10)


def test_irregular_visits_stay_as_they_are():
    y, X, Z, starts, _ = data(2, 1)
    Z[:, 1] += np.random.default_rng(5).normal(size=y.size)
    plain = experts_of_products(y, X, Z, starts)
    assert patterned(plain) is plain
