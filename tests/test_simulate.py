"""Simulated data: moments, names, repeatability and the errors."""

import numpy as np
import pytest

from mixmoe import simulate
from mixmoe.errors import ArgumentError


@pytest.mark.parametrize("preset", list(simulate._PRESETS))
def test_presets_agree_with_their_truth(preset):
    sim = simulate.memoe(preset, n_subjects=40, rng=0)
    truth = sim.truth
    assert sim.data["id"].nunique() == 40
    assert sim.data[["id", "time"]].equals(sim.data[["id", "time"]].sort_values(["id", "time"]))
    assert set(sim.experts) <= set(range(1, truth.n_experts + 1))
    assert sim.random_effects.shape == (40, truth.D.shape[1])
    assert (sim.data.groupby("id")[["expert", *[c for c in sim.data if c[0] == "z"]]].nunique() == 1).all(axis=None)
    for term in ("~", "time", "| id)"):
        assert term in sim.formula


def test_same_seed_gives_same_data_and_leaves_global_state():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (simulate.memoe("unbalanced", n_subjects=30, rng=7).data for _ in range(2))
    assert first.equals(second)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_unbalanced_visits_stay_in_range():
    data = simulate.memoe("single", n_subjects=500, n_visits=(1, 4), follow_up=3.0, rng=1).data
    assert set(data.groupby("id").size()) == {1, 2, 3, 4}
    assert data["time"].between(0.0, 3.0).all()


@pytest.mark.parametrize("shape", ["normal", "t5", "skewed"])
def test_moments_are_those_asked_for(shape):
    sim = simulate.memoe("moderate", n_subjects=100_000, n_visits=2, errors=shape, effects=shape, rng=2)
    for k in range(2):
        mine = sim.experts == k + 1
        assert np.cov(sim.random_effects[mine].T) == pytest.approx(sim.truth.D[k], rel=0.05, abs=0.02)
        rows = sim.data[sim.data["expert"] == k + 1]
        ids = rows["id"].to_numpy() - 1
        X = np.column_stack([np.ones(len(rows)), rows["time"], rows["x1"]])
        b = sim.random_effects[ids]
        error = rows["y"] - X @ sim.truth.beta[k] - np.einsum("nj,nj->n", X[:, :2], b)
        assert error.std() == pytest.approx(sim.truth.sigma[k], rel=0.02)
        assert abs(error.mean()) < 0.02


def test_memberships_follow_the_gate():
    sim = simulate.memoe("three", n_subjects=200_000, n_visits=1, rng=3)
    subjects = sim.data[sim.data["z2"] == 1.0]
    subjects = subjects[subjects["z1"].abs() < 0.1]
    logits = np.append(0.0, sim.truth.gamma @ [1.0, 0.0, 1.0])
    expected = np.exp(logits) / np.exp(logits).sum()
    seen = subjects["expert"].value_counts(normalize=True).sort_index()
    assert seen.to_numpy() == pytest.approx(expected, abs=0.02)


def test_relabel_keeps_the_distribution():
    truth = simulate.memoe("three", n_subjects=1, rng=0).truth
    order = [3, 1, 2]
    moved = truth.relabel(order)
    w = np.array([1.0, 0.4, 1.0])

    def probabilities(t):
        weights = np.exp(np.append(0.0, t.gamma @ w))
        return weights / weights.sum()

    assert probabilities(moved) == pytest.approx(probabilities(truth)[[2, 0, 1]])
    assert moved.named()["sd1(time|id)"] == truth.named()["sd3(time|id)"]
    assert moved.relabel([2, 3, 1]).gamma == pytest.approx(truth.gamma)
    with pytest.raises(ArgumentError, match=r"order=\[1, 1, 2\]"):
        truth.relabel([1, 1, 2])


def test_explicit_parameters_and_their_formula():
    sim = simulate.memoe(
        beta=np.ones((3, 4)), gamma=np.zeros((2, 1)), D=np.zeros((3, 3, 3)), sigma=[1.0, 2.0, 3.0], n_subjects=5, rng=0
    )
    assert sim.formula == "y ~ time + x1 + x2 | re: (1 + time + x1 | id)"
    assert not sim.random_effects.any()
    assert simulate.memoe("latent_class", n_subjects=2, rng=0).formula.endswith("re: (0 | id)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "easy"}, "preset must be one of 'moderate'.*got 'easy'"),
        ({"n_subjects": 0}, "n_subjects must be .* got 0"),
        ({"n_subjects": 2.5}, "n_subjects must be .* got 2.5"),
        ({"n_visits": 0}, "n_visits must be .* got 0"),
        ({"n_visits": (3, 2)}, r"n_visits must be .* got \(3, 2\)"),
        ({"follow_up": 0.0}, "follow_up must be positive, got 0.0"),
        ({"errors": "cauchy"}, "errors must be one of 'normal'.*got 'cauchy'"),
        ({"effects": "cauchy"}, "effects must be one of 'normal'.*got 'cauchy'"),
        ({"sigma": [1.0, -1.0]}, "sigma must be positive"),
        ({"sigma": [1.0]}, r"sigma \(1,\).*do not go together"),
        ({"beta": [1.0, 2.0]}, "beta has 1 dimensions; it must have 2"),
        ({"D": [[[1.0, 2.0], [2.0, 1.0]]] * 2}, "D of expert 1 .* no negative eigenvalue"),
    ],
)
def test_errors_carry_the_value(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        simulate.memoe(**arguments)


@pytest.mark.parametrize(("preset", "family"), [("binary", "binomial"), ("count", "poisson")])
def test_presets_of_other_families(preset, family):
    sim = simulate.memoe(preset, n_subjects=400, rng=3)
    y = sim.data["y"].to_numpy()
    assert sim.truth.family == family
    assert (y == np.floor(y)).all()
    assert y.min() == 0
    assert (y.max() == 1) == (preset == "binary")
    assert not any(name.startswith("sigma") for name in sim.truth.named().index)
    first = sim.data["expert"] == 1
    eta = sim.truth.beta[0, 0] + np.sqrt(sim.truth.D[0, 0, 0]) * np.polynomial.hermite_e.hermegauss(30)[0]
    w = np.polynomial.hermite_e.hermegauss(30)[1]
    mean = (w * (1 / (1 + np.exp(-eta)) if family == "binomial" else np.exp(eta))).sum() / w.sum()
    start = sim.data["time"] == 0
    x_part = 1.0 if family == "binomial" else np.exp(0.5 * sim.truth.beta[0, 2] ** 2)
    assert y[first & start].mean() == pytest.approx(mean * x_part, abs=4 * y[first & start].std() / np.sqrt(150))


VARIANCES = {  # of responses with mean mu and dispersion d
    "overdispersed": lambda mu, d: mu + mu**2 / d,
    "positive": lambda mu, d: mu**2 / d,
    "share": lambda mu, d: mu * (1 - mu) / (1 + d),
}


@pytest.mark.parametrize("preset", list(VARIANCES))
def test_dispersions_are_those_asked_for(preset):
    given = {"beta": [[0.5], [-0.3]], "gamma": [[0.0]], "D": np.empty((2, 0, 0)), "sigma": [2.0, 6.0]}
    sim = simulate.memoe(preset, **given, n_subjects=40_000, n_visits=1, rng=4)
    for k, eta in enumerate((0.5, -0.3)):
        y = sim.data.loc[sim.data["expert"] == k + 1, "y"]
        mu = 1 / (1 + np.exp(-eta)) if preset == "share" else np.exp(eta)
        assert y.mean() == pytest.approx(mu, rel=0.02)
        assert y.var() == pytest.approx(VARIANCES[preset](mu, given["sigma"][k]), rel=0.05)
    name = {"overdispersed": "theta", "positive": "shape", "share": "phi"}[preset]
    assert sim.truth.named()[[f"{name}1", f"{name}2"]].tolist() == [2.0, 6.0]
    assert sim.truth.relabel([2, 1]).named()[f"{name}1"] == 6.0
