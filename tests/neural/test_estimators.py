"""Steps of the estimators: batches, gradients block by block, updates, the uncertainty of chains."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError, MixmoeWarning

torch = pytest.importorskip("torch")

from mixmoe.neural.batches import split_batches  # noqa: E402
from mixmoe.neural.components import component_information  # noqa: E402
from mixmoe.neural.estimators import state as steps  # noqa: E402
from mixmoe.neural.estimators.trained import Control, Trace, Trained, total_loss  # noqa: E402
from mixmoe.neural.estimators.training import Objective, add_gradients, start_state  # noqa: E402
from mixmoe.neural.person_predictions import to_state, uncertainty  # noqa: E402


def rows(n_persons=9, seed=0):
    """Persons of unequal numbers of rows, with a state per row."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(n_persons), rng.integers(3, 12, n_persons))
    frame = pd.DataFrame({"id": codes, "x": rng.normal(size=len(codes)), "day": np.arange(len(codes))})
    frame["y"] = np.tanh(frame["x"] + rng.normal(size=n_persons)[codes]) + 0.2 * rng.normal(size=len(codes))
    frame["state"] = np.array(list("abc"))[rng.integers(0, 3, len(codes))]
    return frame


DATA = rows()
CHAIN = "state ~ x | re: (transitions | id) | seq: day"


def quiet(formula, data=DATA, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        return mm.fit(formula, data, **{"hidden": (3,), "baselines": False, "rng": 0, "epochs": 40, **options})


def some_fit(model, seed=3):
    """Arbitrary values in place of estimates, that no step has made smooth."""
    rng, q = np.random.default_rng(seed), model.personal.q
    theta = 0.4 * rng.normal(size=model.network.n_parameters)
    z = 0.3 * rng.normal(size=(model.problem.n_persons, q))
    trace = Trace(*np.empty((3, 0)), 0)
    return Trained(theta, np.eye(q), z, rng.uniform(0.2, 0.6, q), 0.3, 0.0, trace, True)


@pytest.mark.parametrize("batch_size", [1, 4, 8])
def test_each_person_is_in_one_batch_with_all_her_rows(batch_size):
    problem = mm.NME("y ~ x | re: (first | id)", DATA, hidden=(3,)).problem
    batches = split_batches(problem, batch_size, np.random.default_rng(0))
    assert len(batches) == -(-9 // batch_size)
    assert sum(batch.n_rows for batch in batches) == len(DATA)
    np.testing.assert_array_equal(sum(batch.members for batch in batches), 1.0)
    for batch in batches:
        inside = {int(k) for block in batch.blocks for k in block.persons}
        assert inside == set(np.flatnonzero(batch.members))
        assert batch.n_rows == DATA["id"].isin(inside).sum()


@pytest.mark.parametrize("centre", [True, False])
def test_gradients_are_those_of_the_whole_loss(centre):
    model = mm.NME("y ~ x | re: (all | id)", DATA, hidden=(3,), cov=2)
    state = start_state(model.problem, some_fit(model).theta, np.random.default_rng(0))
    with torch.no_grad():
        state.z += 0.3 * torch.randn(state.z.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    control, n = Control(weight_decay=0.01), len(DATA)
    (batch,) = split_batches(model.problem, None, np.random.default_rng(0))
    seen = add_gradients(model.problem, control, state, batch, Objective(0.7, centre))
    found = [values.grad.clone() for values in state.trained]
    z = state.z - state.z.mean(0) if centre else state.z
    eta = steps.effects(replace(state, z=z))
    data = total_loss(model.problem, model.problem.train, state.theta, eta, state.sigma2)
    loss = (data + 0.35 * (z.square() / state.s).sum()) / n + 0.01 * state.theta.square().sum()
    assert seen.loss == pytest.approx(float(loss.detach()), rel=1e-12)
    for gradient, expected in zip(found, torch.autograd.grad(loss, state.trained), strict=True):
        np.testing.assert_allclose(gradient, expected, atol=1e-12)


def test_batches_lead_to_the_fit_of_all_at_once():
    frame = DATA.assign(high=(DATA["y"] > 0) * 1)  # logistic regression: one maximum
    options = {"hidden": (), "epochs": 300, "lr": 0.05}
    whole, parts = (quiet("high ~ x | re: (0 | id)", frame, batch_size=size, **options) for size in (None, 4))
    np.testing.assert_allclose(parts.trained.theta, whole.trained.theta, atol=0.02)


def test_a_fit_by_batches_is_the_same_for_the_same_rng():
    one, two = (quiet("y ~ x | re: (first | id)", batch_size=4) for _ in range(2))
    np.testing.assert_array_equal(one.params, two.params)
    assert ((one.fittedvalues - DATA["y"]) ** 2).mean() < 0.5 * DATA["y"].var()


def test_the_exact_likelihood_has_no_batches():
    with pytest.raises(ArgumentError, match="batch_size=3 is not possible with the exact likelihood"):
        quiet("y ~ x | re: (last | id)", batch_size=3)


@pytest.mark.filterwarnings("ignore:after 300 epochs the log-likelihood could still rise")
def test_the_default_estimator_has_no_annealing_and_says_so():
    found = []
    for alpha in (0.93, 0.99):
        with pytest.warns(
            MixmoeWarning, match=f"annealing={alpha} is a setting of estimator='sgd'; 'laplace' does not"
        ):
            fit = mm.fit(
                "y ~ x | re: (bias | id)", DATA, hidden=(3,), annealing=alpha, epochs=300, baselines=False, rng=0
            )
        found.append(fit.params.to_numpy())
    np.testing.assert_array_equal(*found)
    published = [
        quiet("y ~ x | re: (bias | id)", estimator="sgd", annealing=alpha).trained.s.mean() for alpha in (0.93, 0.99)
    ]
    assert published[0] < published[1]


def test_patience_needs_a_validation_set():
    with pytest.raises(ArgumentError, match="patience=5 waits for the validation loss; give validation="):
        quiet("y ~ x | re: (bias | id)", patience=5)


@pytest.mark.parametrize("formula", ["y ~ x | re: (all | id)", "state ~ x | re: (bias | id)"])
def test_information_does_not_depend_on_the_pieces(formula, monkeypatch):
    model = mm.NME(formula, DATA, hidden=(3,))
    fit = some_fit(model)
    whole = component_information(model.problem, fit)
    monkeypatch.setattr(steps, "MAX_CELLS", 300)
    np.testing.assert_allclose(component_information(model.problem, fit), whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("formula", ["y ~ x | re: (first | id)", "state ~ x | re: (bias | id)", CHAIN])
def test_steps_lead_to_the_mode(formula):
    model = mm.NME(formula, DATA, hidden=(2,))
    state = to_state(model.problem, some_fit(model))
    steps.settle_effects(model.problem, state, 200)
    z = state.z.clone().requires_grad_(True)
    objective = steps.person_objective(model.problem, steps.replace_effects(state, z)).sum()
    np.testing.assert_allclose(torch.autograd.grad(objective, z)[0], 0.0, atol=1e-4)


def test_uncertainty_of_a_chain_is_that_of_all_its_parameters():
    model = mm.NME(CHAIN, DATA, hidden=())
    problem, fit = model.problem, some_fit(model)
    state = to_state(problem, fit)
    steps.settle_effects(problem, state, 50)
    fit = replace(fit, z=state.z.numpy())
    covered = uncertainty(problem, fit)
    N, q = fit.z.shape

    def objective(flat):
        trial = replace(state, theta=flat[: len(fit.theta)], z=flat[len(fit.theta) :].view(N, q))
        return steps.person_objective(problem, trial).sum()

    flat = torch.cat([state.theta, state.z.reshape(-1)])
    H = torch.func.jacrev(torch.func.jacrev(objective))(
        flat
    ).numpy()  # emissions are linear here, so nothing is approximate
    P = len(fit.theta)
    effects = np.linalg.solve(H[P:, P:], H[P:, :P])
    information = H[:P, :P] - H[:P, P:] @ effects
    np.testing.assert_allclose(covered.gain.reshape(N * q, P), effects, atol=1e-8)
    np.testing.assert_allclose(covered.population, np.linalg.inv(information + np.eye(P)), atol=1e-8)
    np.testing.assert_allclose(covered.effects[0], np.linalg.inv(H[P : P + q, P : P + q]), atol=1e-8)


def test_scores_of_a_chain_are_less_certain_than_with_emissions_held():
    fit = quiet(CHAIN, rows(20, 1), hidden=(), epochs=60)
    held = uncertainty(fit.persons.problem, fit.trained, fit.persons.z)
    spread = np.sqrt(np.diag(fit.cov.matrix)[:9])
    C = held.effects.numpy()
    assert np.isfinite(spread).all()
    assert (fit.transitions.scores_se.mean(0).reshape(-1) ** 2 > 0.3 * np.einsum("nii->ni", C).mean(0)).all()
    assert (spread > np.sqrt(fit.trained.s.mean() / 20) / 2).all()


def test_a_rank_that_is_restricted_has_an_uncertainty_too():
    fit = quiet(CHAIN, hidden=(), cov=2)
    table = fit.transitions
    assert np.isfinite(table.scores_se).all()
    assert (table.population["lower"] <= table.population["upper"]).all()
