"""Log-likelihood, score and information against dense multivariate normals, for every structure."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal

import mixmoe as mm
from mixmoe.mixed.likelihood.hessian import observed_information
from mixmoe.mixed.likelihood.observed import evaluate, subject_logliks, subject_scores
from mixmoe.numerics.linalg import logsumexp
from tests import dense

CLOSE = 1e-8  # relative; both sides lose a few digits more than machine precision
RANDOM = {"full": "(1 + time | id)", "diagonal": "(1 + time || id)", "none": "(0 | id)", "three": "(1 + time + x | id)"}
EXPERT = {"own": "time + x", "common": "time + common(x)", "most common": "time + common(x + time:x)"}
STRUCTURES = list(itertools.product(("expert", "common", "proportional"), ("expert", "common"), RANDOM, EXPERT))


def small_data(seed=0, n_subjects=14):
    """Subjects with 1 to 6 rows; a response far from zero."""
    rng = np.random.default_rng(seed)
    counts = np.r_[1, 6, rng.integers(1, 7, n_subjects - 2)]
    subject = np.repeat(np.arange(n_subjects), counts)
    n = len(subject)
    return pd.DataFrame(
        {
            "id": subject,
            "time": rng.uniform(0, 4, n),
            "x": rng.normal(size=n),
            "z": rng.normal(size=n_subjects)[subject],
            "y": 1000 + 30 * rng.normal(size=n),
        }
    )


def build(experts=2, random="full", expert="own", cov_re="expert", residual="expert"):
    formula = f"y ~ {EXPERT[expert]} | gate: z | re: {RANDOM[random]}"
    return mm.MEMoE(formula, small_data(), experts, cov_re=cov_re, residual=residual)


def some_point(model, seed=1):
    """Reported parameters at a random place inside the parameter space."""
    rng = np.random.default_rng(seed)
    theta = 0.4 * rng.normal(size=model.problem.free.size)
    if model.structure.n_random:
        theta[model.problem.free.factor] += 0.3 * np.eye(model.structure.n_random)[model.structure.factor_entries]
    for at in model.problem.free.scale[model.problem.free.scale >= 0]:
        theta[at] = rng.uniform(0.5, 2)
    return model.natural(theta)


def relative(ours, theirs):
    """Largest difference, relative to the largest entry."""
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def test_the_dense_version_agrees_with_scipy():
    model = build(3)
    named = dense.as_named(model.layout, some_point(model))
    expected = np.empty((model.design.n_units, 3))
    d = model.design
    for k, expert in enumerate(dense.experts(d, named, 3)):
        for i in range(d.n_units):
            rows = d.codes == i
            Z = d.random[rows]
            V = Z @ expert.D @ Z.T + expert.sigma**2 * np.eye(rows.sum())
            expected[i, k] = multivariate_normal.logpdf(d.response[rows], d.expert[rows] @ expert.beta, V)
    expected += dense.log_gate(d, named, 3)
    assert dense.log_joint(d, named, 3) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("cov_re", "residual", "random", "expert"), STRUCTURES)
def test_log_likelihood(cov_re, residual, random, expert):
    model = build(2, random, expert, cov_re, residual)
    params = some_point(model)
    named = dense.as_named(model.layout, params)
    assert model.loglike(params) == pytest.approx(dense.logliks(model.design, named, 2).sum(), rel=CLOSE)


@pytest.mark.parametrize(("cov_re", "residual", "random", "expert"), STRUCTURES)
def test_score(cov_re, residual, random, expert):
    model = build(2, random, expert, cov_re, residual)
    params = some_point(model)
    assert relative(model.score(params), dense.scores(model, params).sum(axis=0)) < CLOSE


@pytest.mark.parametrize("experts", [1, 3, 5])
@pytest.mark.parametrize("cov_re", ["expert", "common", "proportional"])
def test_other_numbers_of_experts(experts, cov_re):
    model = build(experts, cov_re=cov_re)
    params = some_point(model)
    named = dense.as_named(model.layout, params)
    joint = dense.log_joint(model.design, named, experts)
    assert model.loglike(params) == pytest.approx(dense.logsumexp(joint).sum(), rel=CLOSE)
    assert relative(model.score(params), dense.scores(model, params).sum(axis=0)) < CLOSE
    ours = subject_logliks(model.problem, model.working(params))
    assert relative(posterior(ours), posterior(joint)) < CLOSE


def posterior(log_joint):
    return np.exp(log_joint - logsumexp(log_joint, axis=1)[:, None])


def by_theta(model, theta):
    """Dense log-likelihood as a function of the free vector."""
    named = dense.as_named(model.layout, model.natural(theta))
    return dense.logliks(model.design, named, model.n_experts).sum()


@pytest.mark.parametrize("cov_re", ["expert", "common", "proportional"])
@pytest.mark.parametrize("residual", ["expert", "common"])
@pytest.mark.parametrize(("random", "expert"), [("full", "own"), ("diagonal", "common"), ("none", "own")])
def test_information(cov_re, residual, random, expert):
    model = build(2, random, expert, cov_re, residual)
    theta = model.working(some_point(model))

    def gradient(point):
        steps = point + 1e-30j * np.eye(point.size)
        return np.array([by_theta(model, row).imag for row in steps]) / 1e-30

    numeric = []
    for j in range(theta.size):
        h = np.zeros(theta.size)
        h[j] = 5e-4
        near, far = (gradient(theta + i * h) - gradient(theta - i * h) for i in (1, 2))
        numeric.append((8 * near - far) / (12 * h[j]))
    assert relative(observed_information(model.problem, theta), -np.array(numeric)) < CLOSE


def test_subject_scores_add_up_and_match_the_dense_ones():
    model = build(3, "diagonal", "common")
    params = some_point(model)
    theta = model.working(params)
    ours = subject_scores(model.problem, theta)
    assert ours.shape == (model.design.n_units, theta.size)
    assert relative(ours.sum(axis=0), evaluate(model.problem, theta[None]).score[0]) < 1e-12
    steps = theta + 1e-30j * np.eye(theta.size)
    columns = [dense.logliks(model.design, dense.as_named(model.layout, model.natural(row)), 3) for row in steps]
    assert relative(ours, np.array(columns).imag.T / 1e-30) < CLOSE


def test_several_starts_are_evaluated_as_if_alone():
    model = build(2)
    points = np.vstack([model.working(some_point(model, seed)) for seed in range(4)])
    together = evaluate(model.problem, points)
    for s, point in enumerate(points):
        alone = evaluate(model.problem, point[None])
        assert together.loglik[s] == pytest.approx(alone.loglik[0], rel=1e-13)
        assert relative(together.score[s], alone.score[0]) < 1e-12


def test_blocks_of_subjects_change_nothing():
    one = small_data()
    many = pd.concat([one.assign(id=one["id"] + 100 * i) for i in range(200)], ignore_index=True)
    formula = "y ~ time + x | gate: z | re: (1 + time | id)"
    small, large = mm.MEMoE(formula, one, 4), mm.MEMoE(formula, many, 4)
    params, n_starts = some_point(small), 50
    assert sum(1 for _ in large.problem.experts.blocks(4 * n_starts)) > 1
    found = evaluate(large.problem, np.tile(large.working(params), (n_starts, 1)))
    assert found.loglik - large.log_scale == pytest.approx(200 * small.loglike(params), rel=1e-11)
    assert relative(found.score[7], 200 * evaluate(small.problem, small.working(params)[None]).score[0]) < 1e-9
    assert large.loglike(params) == pytest.approx(200 * small.loglike(params), rel=1e-11)
    assert relative(large.score(params), 200 * small.score(params)) < 1e-9


@pytest.mark.parametrize("cov_re", ["expert", "common", "proportional"])
@pytest.mark.parametrize("random", list(RANDOM))
def test_reported_parameters_and_free_vector_are_one_to_one(cov_re, random):
    model = build(3, random, "common", cov_re)
    params = some_point(model)
    assert model.natural(model.working(params)) == pytest.approx(params, rel=1e-9)


def test_rows_as_units():
    model = mm.MEMoE("y ~ time + x | gate: z", small_data(), 2)
    params = some_point(model)
    named = dense.as_named(model.layout, params)
    assert model.design.n_units == len(model.design.codes)
    assert model.loglike(params) == pytest.approx(dense.logliks(model.design, named, 2).sum(), rel=CLOSE)
    assert relative(model.score(params), dense.scores(model, params).sum(axis=0)) < CLOSE


def test_a_large_mean_costs_no_digits():
    data = small_data()
    params = some_point(build(2))
    far = mm.MEMoE("y ~ time + x | gate: z | re: (1 + time | id)", data.assign(y=data["y"] + 1e9), 2)
    moved = pd.Series(params, far.layout.names, copy=True)
    moved[["expert1.Intercept", "expert2.Intercept"]] += 1e9
    assert far.loglike(moved) == pytest.approx(build(2).loglike(params), rel=1e-6)  # y itself has 7 decimals left


def test_score_does_not_exist_on_the_boundary():
    model = build(2)
    named = pd.Series(some_point(model), model.layout.names)
    named["sd1(time|id)"] = 0.0
    named["corr1(Intercept,time|id)"] = np.nan
    assert np.isfinite(model.loglike(named))
    assert np.isnan(model.score(named)).all()
    inside = named.copy()
    inside["sd1(time|id)"], inside["corr1(Intercept,time|id)"] = 1e-9, 0.0
    assert model.loglike(named) == pytest.approx(model.loglike(inside), abs=1e-8)
