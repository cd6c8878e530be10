"""The search: ascents that race and stride, subsamples, agreement of searches; noise-free data; far origins."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import mixmoe as mm
from mixmoe.errors import ApproximationWarning, DegeneracyWarning, DesignError
from mixmoe.mixed import ascents, boundary, end_points
from mixmoe.mixed import degeneracy as flags
from mixmoe.mixed import search as estimate
from mixmoe.mixed.end_points import collapsed
from mixmoe.mixed.likelihood.observed import evaluate
from mixmoe.mixed.parameters import free_to_working, working_to_free
from mixmoe.numerics.linalg import logsumexp
from mixmoe.numerics.optimise import Control, Evaluation, climb
from tests import dense


@pytest.fixture(scope="module")
def data():
    return mm.simulate.memoe("moderate", n_subjects=150, n_visits=5, rng=1).data


def along_a_slope(rate):
    """Log-likelihood of a coefficient that separates: 1 - exp(-rate t) rises for ever."""

    def objective(theta):
        left = np.exp(-rate * theta[:, 0])
        return Evaluation(1 - left, rate * left[:, None])

    return objective


_CURVATURE = 0.01 * np.logspace(0, 4, 8)  # of the hills: quasi-Newton needs more than ten steps


def two_hills(theta):
    """Hills of height 0 at -3 and 10 at 3 of the first coordinate, and an endless slope beyond 20."""
    x = theta[:, 0]
    off = theta.copy()
    off[:, 0] = np.where(x < 0, x + 3, x - 3)
    value = np.where(x < 0, 0.0, 10.0) - 0.5 * (off * off) @ _CURVATURE
    endless = x > 20
    score = np.where(endless[:, None], 100.0 * (np.arange(8) == 0), -off * _CURVATURE)
    return Evaluation(np.where(endless, 100 * x, value), score)


def points(*first):
    """Points with these first coordinates, and inverse information of the size that makes steps short."""
    theta = np.ones((len(first), 8))
    theta[:, 0] = first
    return theta, np.tile(0.01 * np.eye(8), (len(first), 1, 1))


# ---- ascent ----


def test_steps_grow_towards_an_infinite_coefficient():
    """1 - exp(-t / 100) is within 1e-6 of its supremum at t = 1382, 2,764 steps of a half away."""
    end = climb(along_a_slope(0.01), np.zeros((1, 1)), np.eye(1)[None], 1, Control(tol=1e-8))
    assert end.converged.all()
    assert end.theta[0, 0] > 100 * np.log(1e6)
    assert end.n_iter[0] < 60


def test_steps_in_logarithms_stay_short():
    end = climb(along_a_slope(0.01), np.zeros((1, 1)), np.eye(1)[None], 1, Control(max_iter=50), logarithmic=[0])
    assert 20.0 < end.theta[0, 0] <= 50 * 0.5


def test_an_ascent_ends_when_little_is_promised():
    """Near a quadratic top the promise, half of score' H score, is the gain that is left."""
    found = [
        climb(
            lambda t: Evaluation(-0.5 * (t * t).sum(axis=1), -t),
            np.array([[x, 0.0]]),
            np.eye(2)[None],
            1,
            Control(tol=0.0, promise=0.5e-4),
        )
        for x in (0.0099, 0.0101)
    ]
    assert [int(end.n_iter[0]) for end in found] == [0, 1]
    assert all(end.converged.all() for end in found)


def test_the_lower_half_is_given_up_every_few_iterations():
    """Eight starts on the slopes of one hill, from ever farther away: one is left after three halvings."""
    control = Control(tol=1e-12, max_iter=9, halve=3)
    end = climb(two_hills, *points(3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0), 1, control)
    assert sorted(end.n_iter.tolist()) == [3, 3, 3, 3, 6, 6, 9, 9]
    assert end.n_iter.argmin() >= 4


@pytest.mark.parametrize(("reached", "kept"), [(-np.inf, [True, False, True]), (13.0, [False, False, False])])
def test_starts_that_are_left_behind_or_spurious_are_given_up(reached, kept):
    control = Control(tol=1e-9, max_iter=200, behind=2.0, reached=reached)
    end = climb(two_hills, *points(3.0, 30.0, 8.0), 1, control, lambda theta: theta[:, 0] > 20)
    assert end.converged.tolist() == kept
    assert end.n_iter[1] <= 10  # neither followed for ever, nor allowed to leave the others behind
    lower = climb(two_hills, *points(3.0, -8.0), 1, control, lambda theta: theta[:, 0] > 20)
    assert lower.converged.tolist() == [kept[0], False]
    assert lower.n_iter[1] <= 20


def test_nobody_is_given_up_without_a_race():
    end = climb(two_hills, *points(3.0, -8.0), 1, Control(tol=1e-9))
    assert end.converged.all()
    assert end.n_iter.min() > 10
    assert end.loglik == pytest.approx([10.0, 0.0], abs=1e-9)


# ---- search ----


def test_searches_go_on_until_two_agree(data, monkeypatch):
    model = mm.MEMoE("y ~ time | gate: z1 | re: (1 | id)", data, 2)
    calls = []
    original = estimate._search_once

    def once(problem, *args):
        calls.append(problem.n_subjects)
        found = original(problem, *args)
        return replace(found, rank=found.rank - 2 * len(calls)) if len(calls) < 3 else found

    monkeypatch.setattr(estimate, "_search_once", once)
    monkeypatch.setattr(estimate, "_with_nested", lambda problem, one, found, *args: found)  # would find the maximum
    found = estimate.search(model.problem, 6, Control(), np.random.default_rng(0))
    assert len(calls) == estimate._SEARCHES
    assert np.diff(found.summits) == pytest.approx([-2.0, -2.0], abs=1e-3)
    monkeypatch.undo()
    found = estimate.search(model.problem, 6, Control(), np.random.default_rng(0))
    assert found.summits == pytest.approx(np.full(2, found.loglik), abs=1e-3)


def test_searches_that_stopped_short_of_one_maximum_agree():
    """Two are .004 apart until both are at rest; a third one is at another maximum, .5 below."""
    loglik = np.array([-7.004, -7.0, -7.5, -9.0])
    end = climb(lambda theta: Evaluation(loglik, np.zeros((4, 1))), np.zeros((4, 1)), np.ones((4, 1, 1)), 1, Control())
    ends = replace(end_points.one_search(end, loglik), search=np.array([0, 1, 2, 2]))
    assert ends.agree
    assert not replace(ends, search=np.array([0, 0, 1, 1])).agree
    chosen = end_points.candidates(loglik, 1.0)
    done = end_points.finished(ends, chosen, np.array([-6.999, -6.9991, -7.49]))
    assert done.summits == pytest.approx([-6.999, -6.9991, -7.49])
    assert done.rank[3] == -9.0


def test_what_all_experts_reached_does_not_end_ascents_with_fewer(data):
    problem = mm.MEMoE("y ~ time | gate: z1 | re: (1 | id)", data, 3).problem
    one = estimate.fit_one_expert(problem, Control())
    found = [
        estimate._chain(problem, one, 2, True, Control(behind=2.0, reached=reached), np.random.default_rng(0)).theta
        for reached in (-np.inf, 1e6)
    ]
    assert np.array_equal(*found)


def test_a_move_that_falls_back_is_no_replication(data):
    model = mm.MEMoE("y ~ time | gate: z1 | re: (1 | id)", data, 2)
    found = estimate.search(model.problem, 2, Control(), np.random.default_rng(0))
    # two searches of one start and of 17 carried from one expert (itself, 8 splits, 8 corners of the gate), and the
    # first of two nested fits; eight moves each fall back to the one maximum and are not counted
    assert found.n_starts == 38


def test_many_subjects_are_searched_as_thoroughly_as_few(data, monkeypatch):
    """Three experts where there are two: what a subsample shows is not where the maximum of all subjects is."""
    model = mm.MEMoE("y ~ time | gate: z1 | re: (1 | id)", data, 3, residual="common")
    best = model.maximum(96, np.random.default_rng(9)).loglik
    monkeypatch.setattr(estimate, "_SEARCH_ABOVE", 100)
    monkeypatch.setattr(estimate, "_search_size", lambda problem: 60)
    found = model.maximum(96, np.random.default_rng(0))
    assert found.loglik == pytest.approx(best, abs=1e-3)
    assert found.starts.ends.size == found.starts.n_starts  # counted on all subjects


def test_a_fit_is_not_below_the_one_with_an_expert_fewer(data):
    """One random start alone would be; the smaller fit is carried."""
    formula = "y ~ time | gate: z1 | re: (1 | id)"
    two = mm.MEMoE(formula, data, 2).maximum(16, np.random.default_rng(0))
    for seed in range(2):
        assert mm.MEMoE(formula, data, 3).maximum(1, np.random.default_rng(seed)).loglik >= two.loglik - 1e-6


@pytest.mark.parametrize("cov_re", ["expert", "proportional"])
def test_a_fit_is_not_below_those_of_models_nested_in_it(cov_re, data, monkeypatch):
    """Common variances, or no random effects: where other starts lead nowhere, these are still reached."""
    formula, control = "y ~ time | gate: z1 | re: (1 + time || id)", Control()
    model = mm.MEMoE(formula, data, 2, cov_re=cov_re)
    one = estimate.fit_one_expert(model.problem, control)
    starts, interrupted = estimate.nested_starts(model.problem, one, control, np.random.default_rng(0))
    shared = mm.MEMoE(formula, data, 2, cov_re="common", residual="common").maximum(16, np.random.default_rng(1))
    fixed = mm.MEMoE(formula.replace("1 + time ||", "0 |"), data, 2).maximum(16, np.random.default_rng(1))
    logliks = evaluate(model.problem, starts).loglik - model.log_scale
    assert logliks == pytest.approx([shared.loglik, fixed.loglik], abs=0.02)
    assert not interrupted
    nowhere = np.zeros((1, model.problem.free.size))
    monkeypatch.setattr(estimate, "random_starts", lambda *args: nowhere)
    monkeypatch.setattr(estimate, "carried_starts", lambda problem, *args: np.zeros((1, problem.free.size)))
    monkeypatch.setattr(estimate, "nested_starts", lambda *args: (starts, False))
    found = estimate.search(model.problem, 2, control, np.random.default_rng(2))
    assert found.loglik - model.log_scale >= max(shared.loglik, fixed.loglik)


@pytest.mark.parametrize(
    ("fine", "kept"),
    [
        ([-9.75, -9.5, -14.0], [-9.8, -10.1, -10.9]),  # the first is what it seems; the second is too low
        ([-10.6, -10.0, -14.0], [-np.inf, -10.1, -10.9]),
        ([-np.inf, -12.0, -11.0], [-np.inf, -np.inf, -10.9]),
    ],
)
def test_a_maximum_of_the_approximation_alone_is_put_last(fine, kept, monkeypatch):
    monkeypatch.setattr(end_points, "finer_logliks", lambda problem, theta: np.array(fine))
    rank = np.array([-9.8, -10.1, -10.9])
    assert end_points.without_artefacts(None, np.zeros((3, 1)), rank).tolist() == kept


def test_an_expert_of_zeros_does_not_climb_to_the_peak_of_laplaces_method():
    """By it random effects that grow without end, of subjects without events, gain 8 that the likelihood has not."""
    rng = np.random.default_rng(3)
    N, visits, z = 200, 4, np.linspace(-12, 12, 1201)
    none, b = rng.random(N) < 0.5, rng.normal(size=N)
    count = rng.poisson(np.exp(0.5 + 0.3 * b[np.repeat(np.arange(N), visits)]))
    count[np.repeat(none, visits)] = 0
    frame = pd.DataFrame({"id": np.repeat(np.arange(N), visits), "count": count})
    model = mm.MEMoE("count ~ 1 | re: (1 | id)", frame, 2, family="poisson")
    fit = model.maximum(8, np.random.default_rng(0))
    p = dict(zip(model.layout.names, fit.params, strict=True))
    assert p["sd2(Intercept|id)"] == 0.0
    assert "boundary" in [flag.code for flag in fit.flags]
    parts = []
    for k, log_share in ((1, -np.logaddexp(0, p["gate2.Intercept"])), (2, -np.logaddexp(0, -p["gate2.Intercept"]))):
        rate = np.exp(p[f"expert{k}.Intercept"] + p[f"sd{k}(Intercept|id)"] * z)
        given = stats.poisson.logpmf(count.reshape(N, visits, 1), rate).sum(axis=1)
        parts.append(log_share + logsumexp(given + stats.norm.logpdf(z), axis=1) + np.log(z[1] - z[0]))
    assert fit.loglik == pytest.approx(np.logaddexp(*parts).sum(), abs=0.1)


@pytest.mark.parametrize("seed", [1, 3])
def test_an_ordinal_fit_ends_at_its_highest_known_maximum(seed):
    """Two of three seeds ended .5 lower, in agreement, when splits were few and only across planes."""
    data = mm.datasets.load("pbcseq")
    data["stage0"] = data.groupby("id")["stage"].transform("first")
    model = mm.MEMoE("edema ~ year | gate: stage0 | re: (1 | id)", data, 2, family="ordinal", n_quad=9)
    assert model.maximum(8, np.random.default_rng(seed)).loglik == pytest.approx(-1019.819, abs=2e-3)


def test_memory_of_the_check_for_collapse_does_not_grow_with_the_starts():
    N, S, K = 20_000, 60, 2
    frame = pd.DataFrame({"y": np.random.default_rng(0).normal(size=N)})
    problem = mm.MEMoE("y ~ 1", frame, K).problem
    theta = np.zeros((S, problem.free.size))
    tracemalloc.start()
    collapsed(problem, 1.0, theta)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < S * N * K * 8 / 4


# ---- responses without noise ----


def exact(n_subjects=60, share=2):
    rng = np.random.default_rng(0)
    subject = np.repeat(np.arange(n_subjects), 4)
    group, x = (subject % share == 0).astype(float), rng.normal(size=4 * n_subjects)
    return pd.DataFrame({"id": subject, "x": x, "group": group, "y": group + 2 * x})


@pytest.mark.parametrize("random", ["(1 | id)", "(1 + x | id)", "(1 || id)"])
def test_a_response_without_noise_within_subjects_is_refused(random):
    with pytest.raises(DesignError, match="within subjects the expert columns reproduce the response 'y' exactly"):
        mm.MEMoE(f"y ~ x | re: {random}", exact(), 2)


@pytest.mark.filterwarnings("ignore::mixmoe.errors.ConvergenceWarning")
@pytest.mark.parametrize("formula", ["y ~ x | re: (0 | id)", "y ~ x"])
def test_experts_without_noise_are_found_and_flagged(formula):
    with pytest.warns(DegeneracyWarning, match=r"expert [12] has collapsed on the .*\(50\.0%\) that it carries"):
        fit = mm.fit(formula, exact(), 2, rng=0)
    found = fit.params[[f"expert{k}.{c}" for k in (1, 2) for c in ("Intercept", "x")]].to_numpy().reshape(2, 2)
    assert found[np.argsort(found[:, 0])] == pytest.approx(np.array([[0.0, 2.0], [1.0, 2.0]]), abs=1e-3)
    codes = [flag.code for flag in fit.flags]
    assert "degenerate" in codes
    assert not {"not_replicated", "flat_likelihood", "few_subjects"} & set(codes)


def test_of_collapsed_solutions_the_highest_is_taken():
    rank, loglik = np.array([-np.inf, -np.inf]), np.array([3.0, 5.0])
    np.testing.assert_array_equal(estimate.or_any(rank, loglik), loglik)
    rank = np.array([-7.0, -np.inf])
    np.testing.assert_array_equal(estimate.or_any(rank, loglik), rank)


# ---- origins ----

SLOPES = "y ~ time + x1 | gate: z1 | re: (1 + time | id)"


@pytest.fixture(scope="module")
def near(data):
    return mm.fit(SLOPES, data, rng=0, starts=6)


@pytest.mark.parametrize(
    ("column", "shift"), [("time", 3e3), ("time", 3e6), ("time", -3e6), ("x1", 1e7), ("z1", 1e5), ("y", 1e7)]
)
def test_an_origin_far_away_changes_no_other_standard_error(column, shift, data, near):
    far = mm.fit(SLOPES, data.assign(**{column: data[column] + shift}), rng=0, starts=6)
    assert far.llf == pytest.approx(near.llf, abs=1e-5)
    assert np.isfinite(far.bse).all()
    same = [name for name in near.params.index if "Intercept" not in name]
    assert far.params[same].to_numpy() == pytest.approx(near.params[same].to_numpy(), rel=1e-4, abs=1e-4)
    assert far.bse[same].to_numpy() == pytest.approx(near.bse[same].to_numpy(), rel=1e-3)
    assert far.flags == near.flags == ()


def test_quadratic_slopes_far_from_their_origin(data):
    rng = np.random.default_rng(0)
    bent = data.assign(y=data["y"] + 0.3 * rng.normal(size=150)[data["id"] - 1] * (data["time"] - 2.5) ** 2)
    formula = "y ~ time + I(time**2) | re: (1 + time + I(time**2) | id)"
    near, far = (mm.fit(formula, bent.assign(time=bent["time"] + shift), 1) for shift in (0.0, 2000.0))
    assert far.llf == pytest.approx(near.llf, abs=1e-6)
    for name in ("expert1.I(time ** 2)", "sd1(I(time ** 2)|id)", "sigma1"):
        assert far.bse[name] == pytest.approx(near.bse[name], rel=1e-3)


def test_an_origin_so_far_that_correlations_have_no_digits_left_is_flagged():
    rng = np.random.default_rng(3)
    subject = np.repeat(np.arange(100), 6)
    time = np.tile(np.arange(6.0), 100) - 2.5
    effects = rng.normal(size=(100, 2)) * [0.05, 1.0]
    y = effects[subject, 0] + time * effects[subject, 1] + 0.02 * rng.normal(size=600)
    frame = pd.DataFrame({"id": subject, "time": time + 3e6, "y": y})
    with pytest.warns(ApproximationWarning, match=r"origin of 'time' lies 1\.8e\+06 standard deviations .* Subtract"):
        fit = mm.fit("y ~ time | re: (1 + time | id)", frame, 1)
    assert "far_origin" in [flag.code for flag in fit.flags]


# ---- structure and flags ----


def test_an_expert_is_small_up_to_one_subject_more_than_its_own_coefficients(data):
    def flagged(formula, size):
        problem = mm.MEMoE(formula, data, 2).problem
        responsibilities = np.repeat([[1 - size / 150, size / 150]], 150, axis=0)
        return flags._small(responsibilities, problem) is not None

    assert [flagged("y ~ time + x1", size) for size in (3.9, 3.999, 4.1)] == [True, True, False]
    assert [flagged("y ~ time + common(x1)", size) for size in (2.9, 2.999, 3.1)] == [True, True, False]


@pytest.mark.parametrize("tiny", [0, 1, 2])
def test_proportional_covariances_of_which_one_all_but_vanishes(tiny, data):
    """The reference is a number that others are multiples of: it is kept, others are set to zero exactly."""
    model = mm.MEMoE("y ~ time | gate: z1 | re: (1 + time | id)", data, 3, cov_re="proportional")
    s, problem = model.structure, model.problem
    theta = np.random.default_rng(1).normal(size=problem.free.size) * 0.3
    params = free_to_working(s, theta[None])
    factor = np.array([[0.6, 0.0], [0.2, 0.4]]) * np.array([1.0, 0.8, 0.5])[:, None, None]
    factor[tiny] *= 1e-6
    theta = working_to_free(s, replace(params, factor=factor[None]))[0]
    before = evaluate(problem, theta[None]).loglik[0]
    at = boundary.find_boundary(problem, model.coordinates, theta)
    kept = free_to_working(s, at.theta[None]).factor[0]
    assert at.dead[problem.free.scale[1:]].tolist() == [tiny == 1, tiny == 2]
    assert not at.dead[np.setdiff1d(np.arange(theta.size), problem.free.scale[1:])].any()
    size = np.linalg.norm(factor, axis=(1, 2))
    expected = [size[k] if k == 0 or k != tiny else 0.0 for k in range(3)]
    assert np.linalg.norm(kept, axis=(1, 2)) == pytest.approx(expected, rel=1e-9)
    assert evaluate(problem, at.theta[None]).loglik[0] == pytest.approx(before, abs=1e-6)
    first = ascents.largest_first(problem, theta)
    turned = free_to_working(s, first[None]).factor[0]
    assert np.linalg.norm(turned, axis=(1, 2)).argmax() == 0
    assert evaluate(problem, first[None]).loglik[0] == pytest.approx(before, abs=1e-8)


@pytest.mark.parametrize(
    ("cov_re", "residual", "size"),
    [("expert", "expert", 25), ("common", "expert", 19), ("proportional", "expert", 21), ("expert", "common", 23)],
)
def test_the_free_vector_has_as_many_entries_as_the_model_parameters(cov_re, residual, size, data):
    """Counted by hand: gate 2 x 2, coefficients 3 x 3, covariances 3 x 3, 3 or 3 + 2, residuals 3 or 1."""
    model = mm.MEMoE("y ~ time + x1 | gate: z1 | re: (1 + time | id)", data, 3, cov_re=cov_re, residual=residual)
    assert model.structure.free.size == size


def test_the_likelihood_at_a_far_origin_is_that_of_dense_matrices(data):
    """Against multivariate normal densities whose covariances are built from what is reported."""
    fit = mm.fit(SLOPES, data.assign(time=data["time"] + 3e3), rng=0, starts=4)
    named = fit.params.to_dict()
    assert fit.llf == pytest.approx(dense.logliks(fit.model.design, named, 2).sum(), abs=1e-4)
