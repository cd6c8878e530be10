"""Densities from rows against dense multivariate normals and t, and their scores by complex steps."""

import itertools

import numpy as np
import pytest
from scipy.stats import multivariate_normal, multivariate_t

from mixmoe.mixed.likelihood.columns import Columns
from mixmoe.mixed.likelihood.correlated import (
    ErrorModel,
    SerialRows,
    row_covariances,
    row_errors,
    row_means,
    row_posterior,
    row_scores,
)
from mixmoe.mixed.likelihood.serial import Visits, factorise

CLOSE = 1e-10  # relative
STEP = 1e-30
COUNTS = np.array([1, 5, 2, 7, 3])
KINDS = ("iid", "ar1", "car1", "bm")
SHAPES = {"iid": None, "ar1": np.array([-0.6, 0.8]), "car1": np.array([0.3, 2.5]), "bm": np.array([0.7, 0.2])}


def times(seed=0):
    """Whole, increasing, with gaps of one to three; the first above zero."""
    rng = np.random.default_rng(seed)
    return np.concatenate([np.cumsum(rng.integers(1, 4, n)) for n in COUNTS]).astype(float)


def rows(q=2, v=1, seed=0):
    rng = np.random.default_rng(seed)
    n = COUNTS.sum()
    starts = np.cumsum(COUNTS) - COUNTS
    t = times(seed)
    gap = np.diff(t, prepend=0.0)
    gap[starts] = t[starts]
    return SerialRows(
        y=rng.normal(size=n) * 3 + 2,
        X=Columns(np.vstack([np.ones(n), t / 5])),
        Z=np.vstack([np.ones(n), t / 5, rng.normal(size=n)])[:q],
        V=rng.normal(size=(v, n)) * 0.5,
        visits=Visits(starts, COUNTS, gap),
        unit=np.ones(n),
    )


def parameters(kind, q=2, v=1, heavy=False, seed=1):
    rng = np.random.default_rng(seed)
    return {
        "beta": rng.normal(size=(2, 2)),
        "T": np.tril(rng.normal(size=(2, q, q))),
        "sigma": np.array([0.8, 1.4]),
        "slope": rng.normal(size=(2, v)),
        "shape": SHAPES[kind],
        "df": np.array([3.5, 40.0]) if heavy else None,
    }


def error_model(kind, p):
    return ErrorModel(kind, p["sigma"], p["slope"], p["shape"], p["df"])


def covariance(kind, t, sd, shape):
    lag = np.abs(t[:, None] - t)
    if kind == "bm":
        return np.diag(sd**2) + shape**2 * np.minimum(t[:, None], t)
    correlation = {"iid": lambda: np.eye(len(t)), "ar1": lambda: shape**lag, "car1": lambda: np.exp(-shape * lag)}
    return np.outer(sd, sd) * correlation[kind]()


def subject(data, kind, p, e, i):
    """Residuals, random-effects columns, R and V of subject i under expert e."""
    at = slice(*np.append(data.visits.starts, data.y.size)[[i, i + 1]])
    sd = p["sigma"][e] * np.exp(p["slope"][e] @ data.V[:, at])
    R = covariance(kind, times()[at], sd, None if p["shape"] is None else p["shape"][e])
    Z = data.Z[:, at].T
    T = p["T"][e]
    return data.y[at] - p["beta"][e] @ data.X.dense[:, at], Z, R, Z @ T @ T.T @ Z.T + R


CASES = list(itertools.product(KINDS, (0, 1, 3), (0, 2), (False, True)))


@pytest.mark.parametrize(("kind", "q", "v", "heavy"), CASES)
def test_log_density(kind, q, v, heavy):
    data, p = rows(q, v), parameters(kind, q, v, heavy)
    ours = row_posterior(data, p["beta"], p["T"], error_model(kind, p)).density.log_density
    for e, i in itertools.product(range(2), range(len(COUNTS))):
        r, _, _, V = subject(data, kind, p, e, i)
        law = multivariate_t(shape=V, df=p["df"][e]) if heavy else multivariate_normal(cov=V)
        assert ours[e, i] == pytest.approx(law.logpdf(r), rel=CLOSE)


@pytest.mark.parametrize(("kind", "q", "v", "heavy"), CASES)
def test_scores(kind, q, v, heavy):
    data, p = rows(q, v), parameters(kind, q, v, heavy)
    model = error_model(kind, p)
    found = row_scores(data, row_posterior(data, p["beta"], p["T"], model), model)
    in_beta = data.visits.per_subject(data.X.dense * found.predictor[:, None])
    ours = np.concatenate([in_beta, found.others], axis=1)

    def slope(name, where, chain=1.0):
        moved = {k: None if a is None else np.asarray(a, dtype=complex) for k, a in p.items()}
        moved[name][where] += 1j * STEP * chain
        post = row_posterior(data, moved["beta"], moved["T"], error_model(kind, moved))
        return post.density.log_density.imag / STEP

    places = [("beta", (slice(None), j), 1.0) for j in range(2)]
    places += [("T", (slice(None), a, b), 1.0) for a in range(q) for b in range(q)]
    places += [("sigma", slice(None), p["sigma"])]
    places += [("slope", (slice(None), j), 1.0) for j in range(v)]
    places += [("shape", slice(None), 1.0)] if kind != "iid" else []
    places += [("df", slice(None), p["df"])] if heavy else []
    expected = np.stack([slope(*place) for place in places], axis=1)
    assert ours == pytest.approx(expected, rel=1e-9, abs=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize(("kind", "q"), list(itertools.product(KINDS, (0, 1, 3))))
def test_posterior_of_the_random_effects(kind, q):
    data, p = rows(q), parameters(kind, q)
    post = row_posterior(data, p["beta"], p["T"], error_model(kind, p))
    means, covariances = row_means(post), row_covariances(post)
    left = row_errors(data, post)
    for e, i in itertools.product(range(2), range(len(COUNTS))):
        r, Z, _, V = subject(data, kind, p, e, i)
        D = p["T"][e] @ p["T"][e].T
        gain = D @ Z.T @ np.linalg.inv(V)
        assert means[e, :, i] == pytest.approx(gain @ r, rel=1e-8, abs=1e-10)
        assert covariances[e, :, :, i] == pytest.approx(D - gain @ Z @ D, rel=1e-8, abs=1e-10)
        at = data.visits.starts[i] + np.arange(COUNTS[i])
        assert left[e, at] == pytest.approx(r - Z @ gain @ r, abs=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_factor(kind):
    data, p = rows(), parameters(kind)
    rng = np.random.default_rng(3)
    factor = factorise(kind, error_model(kind, p).deviations(data.V, data.unit), p["shape"], data.visits)
    c = rng.normal(size=(2, 3, data.y.size))
    white = factor.whiten(c)
    solved, back = factor.solved(white), factor.colour(white)
    assert back == pytest.approx(c)
    for e, i in itertools.product(range(2), range(len(COUNTS))):
        _, _, R, _ = subject(data, kind, p, e, i)
        at = data.visits.starts[i] + np.arange(COUNTS[i])
        L = np.linalg.cholesky(R)
        assert pytest.approx(c[e][:, at].T) == L @ white[e][:, at].T
        assert pytest.approx(c[e][:, at].T) == R @ solved[e][:, at].T
        assert factor.log_det[e, i] == pytest.approx(np.linalg.slogdet(R)[1], abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_runs_of_subjects_and_chosen_subjects(kind):
    data, p = rows(), parameters(kind)
    model = error_model(kind, p)
    whole = row_posterior(data, p["beta"], p["T"], model).density.log_density
    pieces = [data.run(slice(0, 2)), data.run(slice(2, 5))]
    parts = [row_posterior(part, p["beta"], p["T"], model).density.log_density for part in pieces]
    assert np.hstack(parts) == pytest.approx(whole)
    some = np.array([3, 0, 3, 1])
    chosen = row_posterior(data.take(some), p["beta"], p["T"], model).density.log_density
    assert chosen == pytest.approx(whole[:, some])
    assert [where for where, _ in data.blocks(2)] == [slice(0, 5)]


def test_independent_errors_are_the_limit_of_each_kind():
    data, p = rows(), parameters("iid", heavy=False)
    exact = row_posterior(data, p["beta"], p["T"], error_model("iid", p)).density.log_density
    for kind, shape in (("ar1", 0.0), ("car1", 800.0), ("bm", 0.0)):
        q = {**p, "shape": np.full(2, shape)}
        assert row_posterior(data, p["beta"], p["T"], error_model(kind, q)).density.log_density == pytest.approx(exact)
    heavy = row_posterior(data, p["beta"], p["T"], error_model("iid", {**p, "df": np.full(2, 1e9)}))
    assert heavy.density.log_density == pytest.approx(exact, rel=1e-7)


def test_recursions_along_many_rows_are_those_row_by_row():
    """Doubling gives the filter of a Brownian motion that a loop over the rows gives, also for a step near zero."""
    rng = np.random.default_rng(4)
    counts = np.array([1, 9, 64, 3])
    visits = Visits(np.cumsum(counts) - counts, counts, rng.exponential(size=77))
    visits.gap[12] = 0.0  # two rows at the same time
    sd, tau = np.exp(0.5 * rng.normal(size=(2, 77))), np.array([0.7, 1e-8])
    c = rng.normal(size=(2, 1, 77))
    found = factorise("bm", sd, tau, visits)
    gain, variance, white = np.empty((2, 77)), np.empty((2, 77)), np.empty((2, 77))
    for row in range(77):
        if row in visits.starts:
            left, state = np.zeros(2), np.zeros(2)
        ahead = left + tau**2 * visits.gap[row]
        variance[:, row] = ahead + sd[:, row] ** 2
        gain[:, row] = ahead / variance[:, row]
        white[:, row] = (c[:, 0, row] - state) / np.sqrt(variance[:, row])
        left, state = gain[:, row] * sd[:, row] ** 2, state + gain[:, row] * (c[:, 0, row] - state)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-13)
    np.testing.assert_allclose(found.gain, gain, rtol=1e-12)
    np.testing.assert_allclose(found.whiten(c)[:, 0], white, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.colour(found.whiten(c)), c, rtol=1e-10, atol=1e-12)


def test_cost_of_long_series_grows_with_rows_not_with_visits():
    """Passes over the data, not arithmetic, are counted: 4 subjects with 4,000 rows take 12, not 4,000."""
    visits = Visits(4000 * np.arange(4), np.full(4, 4000), np.ones(16_000))
    assert len(list(visits.doublings())) == 12
