"""Many fixed-effect columns: by rows and through linear predictors, against cross-products and single directions."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import MixmoeWarning
from mixmoe.inference.small_samples import corrected_by_factors, corrected_scores, leverage
from mixmoe.mixed.insertion import gains_little
from mixmoe.mixed.likelihood import columns
from mixmoe.mixed.likelihood.hessian import observed_information, predictor_information, unit_information
from mixmoe.mixed.likelihood.observed import evaluate, subject_scores, summed_squares
from mixmoe.mixed.parameters import free_to_working
from mixmoe.mixed.starting_values import fit_one_expert
from mixmoe.numerics.linalg import cholesky_of_one, derivative_along, floored_inverse, slope
from mixmoe.numerics.optimise import Control, Evaluation, bfgs_update, climb, inverse_information
from tests.benchmarks.columns import levels as two_groups
from tests.fits import carried

EXACT = 1e-12  # relative; complex steps on both sides
DIFFERENCES = 1e-7  # relative; central differences on both sides, of other functions
COLUMNS = {
    "iid": ("y ~ t + x | gate: z | re: (1 + t | id)", {}, EXACT),
    "none": ("y ~ t + x | gate: z | re: (0 | id)", {"residual": "common"}, EXACT),
    "weights": ("y ~ t + x | re: (1 | id)", {"weights": "w", "cov_re": "proportional"}, EXACT),
    "common": ("y ~ t + common(x) | gate: z | re: (1 | id)", {"errors": "ar1", "errors_dist": "t", "time": "t"}, EXACT),
    "bm": ("y ~ t + x | gate: z | re: (1 | id) | sigma: x", {"errors": "bm", "time": "t"}, EXACT),
    "reml": ("y ~ t + x | re: (1 | id)", {"experts": 1, "method": "reml"}, EXACT),
    "reml, ar1": ("y ~ t + x | re: (1 | id)", {"experts": 1, "method": "reml", "errors": "ar1", "time": "t"}, EXACT),
    "penalty": ("y ~ t + x | gate: z | re: (1 | id)", {"experts": 3, "gate_penalty": "firth"}, EXACT),
    "binomial": ("b ~ t + common(x) | gate: z | re: (1 | id)", {"family": "binomial", "n_quad": 3}, DIFFERENCES),
    "negbinomial": ("c ~ t + x | re: (1 | id)", {"family": "negbinomial", "weights": "w"}, DIFFERENCES),
    "poisson": ("c ~ t + x | re: (0 | id)", {"family": "poisson", "experts": 1}, DIFFERENCES),
}


def panel(most=5, n_subjects=25, seed=0):
    """Subjects of one to three rows, and one of `most`."""
    rng = np.random.default_rng(seed)
    counts = np.r_[most, rng.integers(1, 4, n_subjects - 1)]
    ident, n = np.repeat(np.arange(n_subjects), counts), int(counts.sum())
    level = rng.normal(size=n_subjects)[ident]
    data = pd.DataFrame({"id": ident, "t": np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts) + 0.0})
    data = data.assign(x=rng.normal(size=n), w=rng.uniform(0.5, 2, n), z=rng.normal(size=n_subjects)[ident])
    y = 0.3 * data["t"] + level + rng.normal(size=n)
    return data.assign(y=y, b=(y > 0).astype(float), c=rng.poisson(np.exp(0.3 * level)).astype(float))


@pytest.fixture(params=COLUMNS.values(), ids=COLUMNS)
def both(request, monkeypatch):
    """The same likelihood by cross-products or single directions, and as if columns were many."""
    formula, options, tolerance = request.param
    make = lambda: mm.MEMoE(formula, panel(), **{"experts": 2, **options}).problem  # noqa: E731
    few = make()
    monkeypatch.setattr(columns, "MANY_COLUMNS", 1)
    many = make()
    theta = 0.3 * np.random.default_rng(1).normal(size=few.free.size)
    return SimpleNamespace(few=few, many=many, theta=theta, tolerance=tolerance, patch=monkeypatch)


def as_few(both, function, *args):
    both.patch.setattr(columns, "MANY_COLUMNS", 10**6)
    found = function(both.few, *args)
    both.patch.setattr(columns, "MANY_COLUMNS", 1)
    return found


def relative(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def test_loglik_and_scores(both):
    assert both.many.has_many_columns
    points = np.vstack([both.theta, both.theta[::-1]])
    ours, theirs = evaluate(both.many, points), as_few(both, evaluate, points)
    np.testing.assert_allclose(ours.loglik, theirs.loglik, rtol=EXACT)
    assert relative(ours.score, theirs.score) < EXACT
    assert relative(subject_scores(both.many, both.theta), as_few(both, subject_scores, both.theta)) < EXACT


def test_information_through_the_predictors(both):
    theirs = as_few(both, observed_information, both.theta)
    assert relative(observed_information(both.many, both.theta), theirs) < both.tolerance


def test_information_of_every_subject(both):
    theirs = as_few(both, unit_information, both.theta)
    ours, seen = np.empty_like(theirs), []
    for part in predictor_information(both.many, both.theta):
        F = part.along(both.many, np.eye(both.theta.size))
        ours[part.subjects] = np.swapaxes(F, 1, 2) @ part.matrices @ F
        seen += part.subjects.tolist()
    assert sorted(seen) == list(range(25))
    assert relative(ours, theirs) < both.tolerance


def test_squares_are_those_of_rows_and_of_subjects():
    """One row per subject: sums over rows of squares are those over subjects."""
    text = "y ~ " + " + ".join(f"I(x > {cut})" for cut in np.linspace(-1, 1, 45)) + " | gate: z"
    data = panel(n_subjects=400).drop_duplicates("id")
    problem = mm.MEMoE(text, data, 2).problem
    assert problem.has_many_columns
    theta = 0.1 * np.random.default_rng(0).normal(size=problem.free.size)
    expected = (subject_scores(problem, theta) ** 2).sum(axis=0)
    np.testing.assert_allclose(summed_squares(problem, theta[None])[0], expected, rtol=1e-10)


def levels(n_levels=41, n_subjects=200, n_rows=3, seed=0):
    rng = np.random.default_rng(seed)
    n = n_subjects * n_rows
    ident, t = np.repeat(np.arange(n_subjects), n_rows), np.tile(np.arange(n_rows) + 0.0, n_subjects)
    g = rng.permutation(np.r_[np.arange(n_levels), rng.integers(0, n_levels, n - n_levels)])
    own = np.where(rng.random(n_subjects) < 0.4, 3.0, -3.0)[ident]
    y = own + own * 0.3 * t + rng.normal(size=n_levels)[g] + rng.normal(size=n_subjects)[ident] + rng.normal(size=n)
    data = pd.DataFrame({"id": ident, "t": t, "g": g, "y": y, "site": ident % 90, "w": rng.uniform(0.5, 2, n)})
    return data.assign(b=(y > 0).astype(float), c=rng.poisson(np.exp(0.2 * y)), o=np.digitize(y, [-3, 0, 3]))


@pytest.mark.parametrize(
    ("formula", "options", "close"),
    [
        ("y ~ C(g) + t | re: (1 | id)", {"experts": 1, "weights": "w", "cluster": "site"}, 1e-8),
        ("b ~ C(g) + t | re: (1 | id)", {"experts": 1, "family": "binomial", "cluster": "site"}, 1e-5),
        ("y ~ common(C(g)) + t | re: (1 | id)", {"experts": 2, "cluster": "site"}, 1e-7),
    ],
)
def test_fits_are_those_of_cross_products(formula, options, close, monkeypatch):
    data = levels()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        many = carried(formula, data, **options)
        assert many.model.problem.experts.columns.dense.shape == (42, len(data))
        monkeypatch.setattr(columns, "MANY_COLUMNS", 10**6)
        few = mm.MEMoE(formula, data, **options)
        assert few.loglike(many.params) == pytest.approx(many.llf, abs=1e-6)
        assert few.largest_score(many.params) < 1e-5
        for kind in ("robust", "nonrobust", "cluster"):
            theirs = few.covariance(many.em, kind, **({"cluster": "site"} if kind == "cluster" else {})).matrix
            monkeypatch.setattr(columns, "MANY_COLUMNS", 40)
            ours = many.model.covariance(many.em, kind, **({"cluster": "site"} if kind == "cluster" else {})).matrix
            monkeypatch.setattr(columns, "MANY_COLUMNS", 10**6)
            np.testing.assert_allclose(ours, theirs, rtol=close, atol=close * np.abs(theirs).max())


SPARSE = {
    "iid": ("y", {"weights": "w"}, EXACT),
    "reml": ("y", {"experts": 1, "method": "reml"}, EXACT),
    "ar1": ("y", {"errors": "ar1", "time": "t"}, EXACT),
    "car1": ("y", {"errors": "car1", "time": "t", "weights": "w"}, EXACT),
    "bm": ("y", {"errors": "bm", "time": "t"}, EXACT),
    "t": ("y", {"errors_dist": "t"}, EXACT),
    "binomial": ("b", {"family": "binomial"}, DIFFERENCES),
    "poisson": ("c", {"family": "poisson", "weights": "w"}, DIFFERENCES),
    "ordinal": ("o", {"family": "ordinal"}, DIFFERENCES),
}


@pytest.mark.parametrize(("response", "options", "close"), SPARSE.values(), ids=SPARSE)
def test_columns_that_are_mostly_zero_are_multiplied_as_such(response, options, close, monkeypatch):
    formula, data = f"{response} ~ C(g) + t | re: (1 | id)", levels()
    data = data[np.random.default_rng(1).random(len(data)) < 0.9]  # gaps, and unequal numbers of rows
    make = lambda: mm.MEMoE(formula, data, **{"experts": 2, **options}).problem  # noqa: E731
    sparse = make()
    monkeypatch.setattr(columns, "_SPARSE", 0.0)
    dense = make()
    assert sparse.experts.columns.sparse is not None
    assert dense.experts.columns.sparse is None
    theta = 0.1 * np.random.default_rng(0).normal(size=(2, dense.free.size))
    for some in (np.arange(sparse.n_subjects), np.r_[5, 2, 2, 0 : sparse.n_subjects]):
        ours, theirs = evaluate(sparse.take(some), theta), evaluate(dense.take(some), theta)
        np.testing.assert_allclose(ours.loglik, theirs.loglik, rtol=1e-12)
        assert relative(ours.score, theirs.score) < 1e-11
    assert relative(observed_information(sparse, theta[0]), observed_information(dense, theta[0])) < close
    one = sparse.experts.first_guess(replace(sparse.structure, n_experts=1))
    ours, theirs = (p.experts.closed_form(one) for p in (sparse, dense))
    v = np.random.default_rng(0).normal(size=(2, ours.y.size))
    np.testing.assert_allclose(ours.columns.gathered(v), theirs.columns.gathered(v), atol=1e-11)
    np.testing.assert_allclose(ours.columns.gram(v[0] ** 2), theirs.columns.gram(v[0] ** 2), atol=1e-10)


@pytest.mark.parametrize("errors", ["ar1", "car1", "bm"])
def test_closed_form_of_correlated_errors_keeps_zeros(errors, monkeypatch):
    problem = mm.MEMoE("y ~ C(g) + t | re: (1 | id)", levels(60), 2, errors=errors, time="t").problem
    one = problem.experts.first_guess(replace(problem.structure, n_experts=1))
    one.extra[..., 0] = 0.4
    closed = problem.experts.closed_form(one).columns
    assert closed.sparse is not None
    np.testing.assert_allclose(closed.predictor(np.eye(len(closed))), closed.dense, atol=1e-12)


@pytest.mark.parametrize("share", [0.1, 0.0])
def test_normal_matrices_are_those_of_cross_products(share, monkeypatch):
    formula, data = "y ~ C(g) + t | re: (1 + t | id)", levels()
    monkeypatch.setattr(columns, "_SPARSE", share)
    rows = mm.MEMoE(formula, data, 2, weights="w").problem
    monkeypatch.setattr(columns, "MANY_COLUMNS", 10**6)
    products = mm.MEMoE(formula, data, 2, weights="w").problem
    assert rows.experts.by_rows > products.experts.by_rows
    rng = np.random.default_rng(0)
    theta = 0.1 * rng.normal(size=(1, rows.free.size)) + 1e-20j * rng.normal(size=(1, rows.free.size))
    weights = rng.uniform(size=(2, 200))
    ours, theirs = (
        p.experts.densities(free_to_working(p.structure, theta)).normal_matrix(weights) for p in (rows, products)
    )
    assert relative(ours.real, theirs.real) < EXACT
    assert relative(ours.imag, theirs.imag) < EXACT


@pytest.mark.parametrize("shift", [0.0, 40.0])
def test_inverse_with_a_floor(shift):
    """Plain where all eigenvalues are above it, and by absolute eigenvalues where some are not."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(30, 60))
    A = root @ root.T - shift * np.eye(30)
    values, vectors = np.linalg.eigh(A)
    for options, least in (({"floor": 0.5}, 0.5), ({"share": 1e-2}, 1e-2 * np.abs(values).max())):
        expected = vectors @ np.diag(1 / np.maximum(np.abs(values), least)) @ vectors.T
        np.testing.assert_allclose(floored_inverse(A, **options), expected, atol=1e-12)


def test_information_of_reml_is_the_slope_of_its_score():
    model = mm.MEMoE("y ~ t + x | re: (1 + t | id)", panel(), 1, method="reml")
    problem, theta = model.problem, 0.3 * np.random.default_rng(1).normal(size=model.problem.free.size)
    direct = -np.array(
        [derivative_along(lambda at: evaluate(problem, at[None]).score[0], theta, d) for d in np.eye(theta.size)]
    )
    assert relative(observed_information(problem, theta), direct) < EXACT
    units = unit_information(problem, theta)
    assert relative(units.sum(axis=0), direct) < EXACT
    each = -np.stack(
        [derivative_along(lambda at: subject_scores(problem, at), theta, d) for d in np.eye(theta.size)], axis=1
    )
    assert relative(units, 0.5 * (each + np.swapaxes(each, 1, 2))) < EXACT


def test_no_expert_of_a_handful_is_inserted_where_it_would_fit_exactly():
    problem = mm.MEMoE("y ~ C(g) + t | re: (1 | id)", levels(), 2).problem
    assert not gains_little(problem, np.zeros(0), 0.0)


@pytest.mark.parametrize(("jackknife", "further"), [(False, None), (True, None), (False, np.arange(9) > 4)])
@pytest.mark.parametrize("d", [3, 12])
def test_leverage_of_low_rank(d, jackknife, further):
    rng = np.random.default_rng(d)
    factors, matrices = rng.normal(size=(4, d, 9)), rng.normal(size=(4, d, d))
    matrices = matrices + np.swapaxes(matrices, 1, 2)  # indefinite, as those of a mixture
    factors[1, 1:] = 0.0  # rows that are not there
    factors[2, -1] = factors[2, 0]  # and one that is there twice
    half, scores = 0.1 * rng.normal(size=(9, 9)), rng.normal(size=(4, 9))
    information = np.swapaxes(factors, 1, 2) @ matrices @ factors
    units = leverage(half.T @ information @ half, jackknife, further)
    expected = corrected_scores(scores, half, units)
    ours, heavy = corrected_by_factors(scores, factors @ half, matrices, half, jackknife, further)
    assert heavy.tolist() == units.heavy.tolist()
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)


def test_limited_memory_is_bfgs_as_long_as_it_remembers_all():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(30, 30)) / 5 + np.eye(30)
    first = rng.uniform(0.5, 2.0, (1, 30))
    limited, who = inverse_information(first), np.array([0])
    steps = rng.normal(size=(5, 1, 30))
    changes = steps @ (root @ root.T)
    for s, y in zip(steps, changes, strict=True):
        limited.update(who, s, y)
    dense = limited.scale[0] * np.diag(first[0])[None]
    for s, y in zip(steps, changes, strict=True):
        dense = bfgs_update(dense, s, y)
    score = rng.normal(size=(1, 30))
    np.testing.assert_allclose(limited.times(who, score)[0], dense[0] @ score[0], rtol=1e-10)


def test_updates_in_place_are_those_of_small_matrices():
    rng = np.random.default_rng(0)
    H = np.eye(200)[None].repeat(2, axis=0)
    large = inverse_information(H)
    s, score = rng.normal(size=(1, 200)), rng.normal(size=(2, 200))
    y = 2.0 * s + 0.1 * rng.normal(size=(1, 200))
    large.update(np.array([1]), s, y)
    wanted = np.concatenate([H[:1], bfgs_update(H[1:], s, y)])
    np.testing.assert_allclose(large.times(np.arange(2), score), (wanted @ score[..., None])[..., 0], atol=1e-12)
    large.stretch(np.array([0]))
    large.restart(np.array([1]), 3.0)
    both = np.array([2.0 * score[0], 3.0 * score[1]])
    np.testing.assert_allclose(large.times(np.arange(2), score), both, atol=1e-12)


def test_an_ascent_with_limited_memory_reaches_the_maximum():
    rng = np.random.default_rng(0)
    size = np.exp(rng.normal(size=60))
    top = rng.normal(size=60)

    def objective(theta):
        away = theta - top
        return Evaluation(-(np.cosh(away) * size).sum(axis=1), -np.sinh(away) * size)

    end = climb(objective, np.zeros((3, 60)), np.ones((3, 60)), 1, Control(tol=1e-5))
    assert end.converged.all()
    np.testing.assert_allclose(end.theta, np.broadcast_to(top, (3, 60)), atol=1e-4)


def test_derivative_of_a_cholesky_factor():
    rng = np.random.default_rng(0)
    A, B = (x @ x.T + np.eye(4) for x in rng.normal(size=(2, 4, 4)))
    exact = slope(lambda h: cholesky_of_one(A + h * B), analytic=True)
    numeric = slope(lambda h: cholesky_of_one(A + h * B), analytic=False)
    np.testing.assert_allclose(exact, numeric, atol=1e-7)


def test_random_cuts_see_what_subjects_are_as_a_whole():
    """Of two groups far apart beside a factor of many levels; a direction among 80 has a correlation of .09."""
    data = two_groups(80, 200)
    model = mm.MEMoE("y ~ C(g) | re: (1 | id)", data, 2)
    features = fit_one_expert(model.problem, Control(max_iter=80, tol=1e-4)).features
    group = (data.groupby("id")["y"].mean() > 0).to_numpy()
    cuts = features @ np.random.default_rng(0).normal(size=(features.shape[1], 300))
    assert np.abs(np.corrcoef(cuts.T, group)[-1, :-1]).mean() > 0.25
