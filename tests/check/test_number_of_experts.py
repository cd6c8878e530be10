"""Tests of the number of experts, and stability of the classification."""

import itertools
import warnings
from functools import cache, partial

import numpy as np
import pytest
from scipy.stats import binom, chi2

import mixmoe as mm
from mixmoe.check.number_of_experts import (
    LRDraw,
    adjusted_rand_index,
    best_jaccard,
    decided,
    observed_fits,
    vuong_weights,
    weighted_chi2_sf,
)
from mixmoe.errors import ArgumentError, MixmoeWarning
from mixmoe.families import Curvature, Estimated
from mixmoe.inference.wald import InvalidTest
from mixmoe.mixture.resampling import run_calls

FORMULA = "y ~ time + x1 | re: (1 | id)"
VARYING = "y ~ z1 | gate: x1 | vary: u"


def fitted(preset, experts, n=60, **options):
    effects = [[[1.0]]] if preset == "single" else None
    data = mm.simulate.memoe(preset, n_subjects=n, n_visits=4, D=effects, rng=3).data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        return mm.fit(FORMULA, data, experts, rng=0, **options)


@pytest.fixture(scope="module")
def two():
    return fitted("separated", 2)


@pytest.fixture(scope="module")
def spurious():
    """Two experts in data from one."""
    return fitted("single", 2)


@pytest.fixture(scope="module")
def varying():
    data = mm.simulate.vcmoe("well_separated", n=150, rng=1).data
    return mm.fit(VARYING, data, 2, bandwidth=0.5, n_grid=10, rng=0)


# ---- bootstrap test ----


def test_experts_that_are_there_are_found(two):
    test = two.test_experts(3, starts=1, rng=0)
    assert test.experts == 2
    assert test.statistic == pytest.approx(2 * (test.loglik - test.loglik_null))
    assert test.loglik == pytest.approx(two.llf, abs=0.1)
    assert test.exceeded == 0
    assert test.pvalue == pytest.approx(1 / 4)
    assert test.n_boot == len(test.null) == 3
    assert (test.null >= -1e-6).all()
    assert "2 experts against 1" in str(test)
    assert "0 of 3 draws from 1 experts" in str(test)


@pytest.fixture
def instant(monkeypatch):
    """Draws of the statistic that need no fits."""
    monkeypatch.setattr(LRDraw, "__call__", lambda self, rng: rng.chisquare(12))


def test_experts_that_are_not_there_end_the_draws_early(spurious, instant):
    test = spurious.test_experts(200, starts=2, rng=0)
    assert test.pvalue > 0.05
    assert test.n_boot < 100
    assert "stopped early" in str(test)
    assert decided("binomial", test.exceeded, test.n_boot, 0.05)
    assert not test.interrupted
    sequential = spurious.test_experts(200, starts=2, rng=0, stop="besag-clifford")
    assert sequential.exceeded == 10
    assert sequential.pvalue == 10 / sequential.n_boot
    np.testing.assert_array_equal(sequential.null[: test.n_boot], test.null[: sequential.n_boot])


def test_the_number_of_workers_plays_no_part(spurious):
    one = spurious.test_experts(2, starts=1, rng=1, stop="never")
    two = spurious.test_experts(2, starts=1, rng=1, stop="never", n_jobs=2)
    np.testing.assert_array_equal(one.null, two.null)
    assert one.pvalue == two.pvalue
    assert "no early stopping" in str(one)


def test_an_interrupted_test_continues_with_the_same_answer(spurious, instant, monkeypatch, tmp_path):
    options = {"starts": 1, "rng": 2, "stop": "never"}
    whole = spurious.test_experts(5, **options)
    path = tmp_path / "test.jsonl"

    def stopped(calls, *args):
        def after_two(i, call):
            if i == 2:
                raise KeyboardInterrupt
            return call()

        return run_calls([partial(after_two, i, call) for i, call in enumerate(calls)], *args)

    with monkeypatch.context() as patched:
        patched.setattr("mixmoe.mixture.resampling.run_calls", stopped)
        part = spurious.test_experts(5, **options, checkpoint=path)
    assert part.interrupted
    assert part.n_boot == 2
    assert "interrupted" in str(part)
    resumed = spurious.test_experts(5, starts=1, stop="never", checkpoint=path)  # the seed is in the file
    np.testing.assert_array_equal(resumed.null, whole.null)
    assert resumed.pvalue == whole.pvalue
    with pytest.raises(ArgumentError, match="other data, another model or other options"):
        spurious.test_experts(6, **options, checkpoint=path)


def test_draws_that_cannot_be_fitted_are_counted(spurious, monkeypatch):
    estimate, calls = mm.MEMoE.estimate, itertools.count()

    def sometimes(self, *args):
        if next(calls) in (2, 4):  # two fits to the data, then two per draw
            raise np.linalg.LinAlgError("singular")
        return estimate(self, *args)

    monkeypatch.setattr(mm.MEMoE, "estimate", sometimes)
    test = spurious.test_experts(3, starts=1, rng=0, stop="never")
    assert test.n_failed == 2
    assert test.n_boot == 1
    assert "2 more failed" in str(test)


def test_a_degenerate_fit_to_a_draw_is_no_statistic():
    class Collapses:
        def drawn(self, estimated, rng):
            return rng.normal(size=3)

        def estimate(self, experts, n_starts, rng, start=None, response=None):
            return Estimated(experts, response, 50.0 * experts, degenerate=experts == 2)

    assert np.isnan(LRDraw(Collapses(), Estimated(1, np.zeros(1), 0.0), 1)(np.random.default_rng(0)))


def test_the_recipe_misses_little(spurious):
    """Split experts and 8 starts per expert against 64 in a draw from one expert: the higher of both is the maximum."""
    model = spurious.model
    null, _ = observed_fits(model, 2, 1, np.random.default_rng(5))
    response = model.drawn(null, np.random.default_rng(0))
    small = model.estimate(1, 1, np.random.default_rng(0), None, response)
    few, many = (model.estimate(2, n, np.random.default_rng(0), small, response).loglik for n in (16, 64))
    assert 2 * (max(few, many) - few) < 2.0


def test_draws_come_from_the_smaller_fit(two):
    null = two.model.estimate(1, 1, np.random.default_rng(0))
    draws = np.array([two.model.drawn(null, np.random.default_rng(i)) for i in range(200)])
    single = fitted("separated", 1)
    np.testing.assert_allclose(null.loglik, single.llf, atol=1e-3)
    mean = single.model.design.expert @ single.params[["expert1.Intercept", "expert1.time", "expert1.x1"]].to_numpy()
    assert np.abs(draws.mean(axis=0) - mean).max() < 5 * draws.std(axis=0).max() / np.sqrt(200)


def test_varying_coefficients(varying):
    test = varying.test_experts(2, starts=1, rng=0)
    assert test.loglik == pytest.approx(varying.llf, abs=1.0)
    assert test.statistic > test.null.max() > 0


def test_what_cannot_be_tested_says_why(two, varying):
    one = fitted("single", 1)
    for refused, reason in (
        (one.test_experts(), "one expert is the smallest model"),
        (one.vlmr_test(), "one expert is the smallest model"),
        (varying.vlmr_test(), "do not maximise a likelihood; use test_experts"),
    ):
        assert isinstance(refused, InvalidTest)
        assert reason in refused.reason
    data = mm.simulate.vcmoe("well_separated", n=200, rng=1).data.assign(site=np.arange(200) // 4)
    clustered = mm.fit(VARYING, data, 2, bandwidth=0.5, rng=0, cluster="site", starts=2)
    assert "rows of a cluster are not independent" in clustered.test_experts().reason
    for options, message in (
        ({"stop": "soon"}, "stop must be one of 'binomial', 'besag-clifford', 'never', got 'soon'"),
        ({"n_boot": 0}, "n_boot must be a whole number"),
        ({"starts": -1}, "starts must be a whole number"),
        ({"alpha": 2.0}, "alpha"),
        ({"n_jobs": 0}, "n_jobs must be a whole number"),
    ):
        with pytest.raises(ArgumentError, match=message):
            two.test_experts(**options)


# ---- stopping ----


def test_the_binomial_rule_stops_when_the_count_speaks_against_alpha():
    assert not decided("binomial", 0, 0, 0.05)
    for n in (1, 10, 100, 500):
        for exceeded in range(n + 1):
            tail = min(binom.cdf(exceeded, n, 0.05), binom.sf(exceeded - 1, n, 0.05))
            assert decided("binomial", exceeded, n, 0.05) == (tail < 0.0005)
    assert not decided("binomial", 5, 100, 0.05)
    assert decided("besag-clifford", 10, 12, 0.05)
    assert not decided("besag-clifford", 9, 900, 0.05)
    assert not decided("never", 100, 100, 0.05)


def test_early_stopping_seldom_changes_the_decision():
    """Over many sequences of draws with p = 0.1 or 0.02 the rule decides as all draws would."""
    rng, known = np.random.default_rng(0), cache(decided)
    for p in (0.02, 0.1):
        agree = []
        for _ in range(60):
            exceeded = np.cumsum(rng.random(199) < p)
            stop = next((n for n in range(1, 200) if known("binomial", int(exceeded[n - 1]), n, 0.05)), 199)
            rejected = [(1 + exceeded[n - 1]) / (1 + n) <= 0.05 for n in (stop, 199)]
            agree.append(rejected[0] == rejected[1])
        assert np.mean(agree) > 0.97


# ---- Vuong, Lo, Mendell, Rubin ----


def test_weights_of_regular_nested_models_are_ones():
    """A normal mean of zero against any mean and slope: two weights are one, the others zero."""
    rng = np.random.default_rng(0)
    n = 200_000
    x, y = rng.normal(size=n), rng.normal(size=n)
    full = np.column_stack([y, x * y, (y**2 - 1) / 2])  # scores in mean, slope, log variance / 2
    large = Curvature(full, np.diag([n, n, n / 2]) * 1.0)
    small = Curvature(full[:, 2:], np.array([[n / 2]]))
    weights = vuong_weights(large, small)
    np.testing.assert_allclose(weights, [1, 1, 0, 0], atol=0.08)  # the zeros are a double root, their error its square


def test_weighted_chi_squares():
    values = np.array([0.5, 3.84, 9.0])
    np.testing.assert_allclose(weighted_chi2_sf(values, np.array([2.0, 2.0, 2.0])), chi2.sf(values / 2, 3), atol=0.005)
    np.testing.assert_allclose(weighted_chi2_sf(values, np.array([1.0, 0.0])), chi2.sf(values, 1), atol=0.005)
    assert weighted_chi2_sf(np.array([0.0]), np.array([1.0, -1.0])) == pytest.approx(0.5, abs=0.005)


def test_vlmr_of_a_fit(two):
    test = two.vlmr_test(rng=0)
    assert test.statistic == pytest.approx(2 * (two.llf - test.loglik_null))
    n_params = len(two.params)
    assert test.weights.shape == (n_params + 5,)
    assert test.adjusted == pytest.approx(test.statistic / (1 + 1 / ((n_params - 5) * np.log(60))))
    assert test.pvalue <= test.pvalue_adjusted < 0.01
    assert "Jeffries 2003" in str(test)
    assert str(two.vlmr_test(rng=0)) == str(test)


# ---- stability ----


def pairs(a, b):
    """Adjusted Rand index by counting pairs."""
    both = same_a = same_b = 0
    n = len(a)
    for i, j in itertools.combinations(range(n), 2):
        both += a[i] == a[j] and b[i] == b[j]
        same_a += a[i] == a[j]
        same_b += b[i] == b[j]
    chance = same_a * same_b / (n * (n - 1) / 2)
    return (both - chance) / ((same_a + same_b) / 2 - chance)


def test_adjusted_rand_index_by_counting_pairs():
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = rng.integers(3, size=30), rng.integers(4, size=30)
        assert adjusted_rand_index(a, b) == pytest.approx(pairs(a, b))
    assert adjusted_rand_index(a, (a + 1) % 3) == 1.0
    assert adjusted_rand_index(np.zeros(5, dtype=int), np.zeros(5, dtype=int)) == 1.0


def test_jaccard_by_hand():
    a, b = np.array([0, 0, 0, 1, 1, 1]), np.array([1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(best_jaccard(a, b), [2 / 3, 3 / 4])


def test_separated_experts_are_stable_and_spurious_ones_are_not(two, spurious):
    found = two.stability(20, rng=0)
    assert found.ari.shape == (20 - found.n_failed,)
    assert found.ari.mean() > 0.9
    assert (found.jaccard > 0.75).all()
    assert list(found.to_frame().columns) == ["ari"]
    assert "adjusted Rand index: mean" in str(found)
    other = spurious.stability(20, rng=0)
    assert other.ari.mean() < 0.8
    np.testing.assert_array_equal(two.stability(20, rng=0, n_jobs=2).ari, found.ari)


def test_stability_of_varying_coefficients(varying, tmp_path):
    found = varying.stability(5, rng=0, checkpoint=tmp_path / "s.jsonl")
    assert found.ari.mean() > 0.5
    again = varying.stability(5, checkpoint=tmp_path / "s.jsonl")
    np.testing.assert_array_equal(found.ari, again.ari)


def test_one_expert_has_no_stability():
    with pytest.raises(ArgumentError, match="stability needs at least two experts"):
        fitted("single", 1).stability()


def test_stability_says_when_nothing_converged(two, monkeypatch):
    monkeypatch.setattr(mm.MEMoE, "reclassified", lambda *args: np.zeros(0, dtype=int))
    with pytest.raises(ArgumentError, match="none of the 3 resamples could be refitted"):
        two.stability(3, rng=0)


def test_resampling_nothing_gives_the_labels_of_the_fit(two):
    """The refit of a resample that holds every subject once classifies as the fit does."""

    class Everyone:
        def integers(self, n, size):
            return np.arange(size)

    labels = two.model.reclassified(two.em, Everyone())
    np.testing.assert_array_equal(labels, two.em.responsibilities.argmax(axis=1))
