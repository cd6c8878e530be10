"""Defaults arrive at a maximum: seen from outside, by another optimiser on dense densities; several starts."""

import warnings
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

import mixmoe as mm
from mixmoe.errors import ArgumentError, MixmoeWarning

torch = pytest.importorskip("torch")

from mixmoe.neural.estimators.last_layer import (  # noqa: E402
    LastState,
    add_exact_gradients,
    factors_of,
    moments,
    start_last,
)
from mixmoe.neural.estimators.linearised import build_control  # noqa: E402
from mixmoe.neural.estimators.mixed_model import profile  # noqa: E402
from mixmoe.neural.estimators.mixed_slopes import factor_curvature  # noqa: E402
from mixmoe.neural.estimators.training import ascend, near_enough  # noqa: E402
from mixmoe.neural.network import initial_parameters  # noqa: E402


def saturating(n_persons=15, n_rows=8, seed=0):
    """Growth towards an asymptote; both it and the rate differ between persons."""
    rng = np.random.default_rng(seed)
    id_ = np.repeat(np.arange(n_persons), n_rows)
    t = rng.uniform(0, 4, len(id_))
    top, rate = 3 * np.exp(0.3 * rng.normal(size=n_persons)), np.exp(0.5 * rng.normal(size=n_persons))
    y = top[id_] * (1 - np.exp(-rate[id_] * t)) + 0.3 * rng.normal(size=len(id_))
    return pd.DataFrame({"id": id_, "t": t, "y": y})


DATA = saturating()


def quiet(formula="y ~ t | re: (last | id)", **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        return mm.fit(formula, DATA, **{"hidden": (2,), "baselines": False, "rng": 0, **options})


def dense_pieces(values, x):
    """Features (N, T, 3) and covariance of the rows given the last layer (N, T, T) of a network 1 - 2 - 1."""
    hidden, entries, log_sigma = values[:4], values[4:10], values[10]
    H = torch.cat([torch.tanh(x.unsqueeze(-1) * hidden[:2] + hidden[2:]), torch.ones_like(x).unsqueeze(-1)], dim=-1)
    L = torch.zeros(3, 3, dtype=torch.float64).index_put(tuple(torch.tril_indices(3, 3)), entries)
    Z = H @ L
    return H, (2 * log_sigma).exp() * (torch.eye(x.shape[1]) + Z @ Z.mT)


def dense_objective(values, x, y):
    """Log-likelihood with the population's last layer, N(0, 9), integrated out, and the priors: one dense density.

    Parameters
    ----------
    x, y : Tensor, shape (persons, rows)
    """
    H, V = dense_pieces(values, x)
    flat = H.flatten(0, 1)
    whole = torch.block_diag(*V) + 9.0 * flat @ flat.T
    normal = torch.distributions.MultivariateNormal(torch.zeros(y.numel(), dtype=torch.float64), whole)
    priors = values[:4].square().sum() + (2 * values[10]).exp() * values[4:10].square().sum()
    return normal.log_prob(y.flatten()) - 0.5 * priors


def test_another_optimiser_finds_nothing_above_a_default_fit():
    fit = quiet()
    scaling, trained = fit.model.scaling, fit.trained
    shape = (15, 8)
    x = torch.tensor(scaling.inputs(fit.model.design.expert)[:, 0].reshape(shape))
    y = torch.tensor(scaling.response(np.asarray(fit.model.design.response, dtype=float)).reshape(shape))
    sigma = np.sqrt(trained.sigma2)
    start = np.concatenate([trained.theta[:4], (trained.loading / sigma)[np.tril_indices(3)], [np.log(sigma)]])
    here = float(dense_objective(torch.tensor(start), x, y))
    H, V = dense_pieces(torch.tensor(start), x)
    precision = (H.mT @ torch.linalg.solve(V, H)).sum(0) + torch.eye(3) / 9.0
    beta = torch.linalg.solve(precision, (H.mT @ torch.linalg.solve(V, y.unsqueeze(-1))).sum(0)).squeeze(-1)
    np.testing.assert_allclose(trained.theta[4:], beta, rtol=1e-7)  # the posterior mean
    normal = torch.distributions.MultivariateNormal(torch.zeros_like(x), V)
    printed = float(normal.log_prob(y - H @ beta).sum())
    assert trained.loglik == pytest.approx(printed, abs=1e-8)  # what is printed is the plain likelihood

    def downhill(values):
        leaf = torch.tensor(values, requires_grad=True)
        loss = -dense_objective(leaf, x, y)
        return float(loss.detach()), torch.autograd.grad(loss, leaf)[0].numpy()

    found = minimize(downhill, start, jac=True, method="BFGS", options={"maxiter": 200})
    assert fit.converged
    assert -found.fun - here < near_enough(len(trained.theta))


@pytest.mark.parametrize("prior", [0.0, 1.0])
@pytest.mark.parametrize("cov", ["full", "diagonal"])
def test_gradients_through_no_factorisation_are_those_of_the_value(cov, prior):
    model = mm.NME("y ~ t | re: (last | id)", DATA, hidden=(3,), cov=cov)
    problem = replace(model.problem, prior=prior)
    control = build_control("laplace", problem, progress=False)
    start = start_last(problem, initial_parameters(model.network, np.random.default_rng(1)))
    flat = torch.cat([start.theta, start.entries + 0.1])
    P = len(start.theta)

    def value(at):
        state = LastState(*(v.clone().requires_grad_(True) for v in (at[:P], at[P:])), start.plan)
        loss = float(add_exact_gradients(problem, control, state))
        return loss, torch.cat([state.theta.grad, state.entries.grad])

    gradient, step = value(flat)[1], 1e-4
    for k in [*range(model.network.n_hidden), *range(P, len(flat))]:
        move = step * torch.eye(len(flat), dtype=torch.float64)[k]
        numeric = (value(flat + move)[0] - value(flat - move)[0]) / (2 * step)
        assert float(gradient[k]) == pytest.approx(numeric, rel=1e-5, abs=1e-5)


def test_other_layers_converge_at_defaults():
    fit = quiet("y ~ t | re: (all | id)")
    assert fit.converged
    assert not any(flag.code == "not_converged" for flag in fit.flags)


def test_starts_are_counted_and_the_best_is_kept():
    one, several = quiet(epochs=30), quiet(epochs=30, starts=5)
    starts = several.em.starts
    assert starts.n_starts == 5
    assert len(starts.logliks) == 4
    assert len(starts.ends) == 5
    assert several.llf == pytest.approx(starts.logliks[0], abs=1e-9)
    assert several.llf >= one.llf - 1e-9
    assert starts.n_replicated == int((starts.logliks >= starts.logliks[0] - 0.1).sum())
    assert "of 5 starts" in str(several.summary())


def test_a_linear_network_has_one_start_and_no_penalty():
    fit, plain = quiet(hidden=(), starts=5), quiet(hidden=(), weight_decay=0.0)
    assert fit.em.starts.n_starts == 1
    np.testing.assert_array_equal(fit.params, plain.params)


def test_the_prior_of_hidden_layers_and_loadings_can_be_left_out():
    fits = [quiet(weight_decay=decay, epochs=150).trained for decay in (None, 0.0)]
    # Both together: small loadings on features that large weights make steep are no less than the other way round.
    sizes = [np.square(fit.theta[:4]).sum() + np.square(fit.loading).sum() for fit in fits]
    assert sizes[0] < sizes[1]
    assert fits[0].loglik < fits[1].loglik


def test_the_prior_is_in_the_file_and_in_effects_of_new_rows(tmp_path):
    fit = quiet(epochs=60)
    assert fit.problem.prior == 1.0
    fit.save(tmp_path / "fit.json")
    again = mm.load(tmp_path / "fit.json")
    assert again.problem.prior == 1.0
    assert again.training == {"epochs": 60}
    pd.testing.assert_frame_equal(again.predict(kind="subject"), fit.predict(kind="subject"))
    assert quiet(epochs=60, weight_decay=0.01).problem.prior == pytest.approx(2 * 120 * 0.01)
    assert quiet(hidden=()).problem.prior == 0.0


def test_the_residual_variance_is_at_its_maximum_given_the_rest():
    model = mm.NME("y ~ t | re: (last | id)", DATA, hidden=(3,))
    problem = replace(model.problem, prior=1.0)
    start = start_last(problem, initial_parameters(model.network, np.random.default_rng(1)))
    m = moments(problem, start.theta)
    factors = factors_of(problem, m.plan, start.entries + 0.3)
    best = profile(m, factors)
    tried = [profile(m, factors, 0.5 * best.sigma2.log() + away).objective for away in (-1e-3, 0.0, 1e-3)]
    assert float(tried[1]) == pytest.approx(float(best.objective), abs=1e-9)
    assert tried[0] > tried[1] < tried[2]
    assert float(tried[2] - tried[0]) == pytest.approx(0.0, abs=1e-5)


def test_a_network_without_effects_ends_at_the_maximum_with_its_prior():
    """By the formula of the objective, and what is printed is the plain likelihood."""
    fit = quiet("y ~ t | re: (0 | id)")
    x = fit.model.scaling.inputs(fit.model.design.expert)[:, 0]
    y = fit.model.scaling.response(np.asarray(fit.model.design.response, dtype=float))
    n = len(y)

    def rss(v):
        return np.square(y - np.tanh(x[:, None] * v[:2] + v[2:4]) @ v[4:6] - v[6]).sum()

    def objective(v):
        return 0.5 * n * np.log(rss(v)) + 0.5 * np.square(v).sum()

    theta = fit.trained.theta
    found = minimize(objective, theta, method="BFGS")
    assert fit.converged
    assert objective(theta) - found.fun < near_enough(len(theta))
    plain = -0.5 * n * (np.log(2 * np.pi * rss(theta) / n) + 1)
    assert fit.llf == pytest.approx(plain - n * np.log(fit.model.scaling.y_sd), abs=1e-6)
    free = quiet("y ~ t | re: (0 | id)", weight_decay=0.0)
    assert np.square(free.trained.theta[:4]).sum() > np.square(theta[:4]).sum()
    assert free.llf > fit.llf


def test_starts_of_the_published_rule_are_refused():
    with pytest.raises(ArgumentError, match="starts=3 are compared by their likelihood, which the published rule"):
        quiet(estimator="sgd", starts=3)
    with pytest.raises(ArgumentError, match="starts"):
        quiet(starts=0)


def test_an_ascent_does_not_stay_where_the_loss_is_no_number():
    leaf = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)

    def backward():
        loss = (leaf - 0.01 * torch.log(leaf)).sum()  # least at 0.01, and no number below zero
        loss.backward()
        return loss

    found = ascend([leaf], backward, budget=200, least=1e-12)
    assert found.settled
    assert float(leaf.detach()) == pytest.approx(0.01, rel=1e-3)


def test_an_ascent_steps_back_from_a_matrix_without_a_factor():
    leaf = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)

    def backward():
        root = torch.linalg.cholesky(torch.diag(torch.stack([leaf.sum(), leaf.sum() + 1.0])))
        loss = leaf.sum() - 0.02 * root.diagonal().log().sum()
        loss.backward()
        return loss

    assert ascend([leaf], backward, budget=200, least=1e-12).settled
    assert float(leaf.detach()) == pytest.approx(0.0101, rel=0.05)


def test_an_ascent_keeps_to_its_evaluations_and_the_best_of_them():
    leaf, seen = torch.tensor([4.0, -3.0], dtype=torch.float64, requires_grad=True), []

    def backward():
        loss = (leaf.square().square() * torch.tensor([1.0, 50.0])).sum()
        loss.backward()
        seen.append(float(loss.detach()))
        return loss

    found = ascend([leaf], backward, budget=7, least=1e-12)
    assert len(found.losses) == len(seen) == 7
    assert not found.settled
    assert found.gain == pytest.approx(seen[0] - min(seen))
    assert float((leaf.detach().square().square() * torch.tensor([1.0, 50.0])).sum()) == pytest.approx(min(seen))


@pytest.mark.parametrize("words", ["last", "all", "0"])
@pytest.mark.parametrize("epochs", [1, 20])
def test_a_fit_has_no_more_epochs_than_were_given(words, epochs):
    assert len(quiet(f"y ~ t | re: ({words} | id)", epochs=epochs).trained.trace.train) <= epochs


@pytest.mark.parametrize("prior", [0.0, 1.0])
def test_the_curvature_of_a_covariance_is_that_of_dense_matrices(prior):
    """Expected derivatives in ``D = L L'``, what sigma takes, and observed ones in what is quadratic in L."""
    rng = np.random.default_rng(3)
    ids = np.repeat(np.arange(7), [3, 4, 5, 4, 6, 3, 5])
    data = pd.DataFrame({"x": rng.normal(size=len(ids)), "id": ids})
    data["y"] = 1.0 + data["x"] * (1.0 + rng.normal(size=7)[ids]) + rng.normal(size=len(ids))
    problem = replace(mm.NME("y ~ x | re: (last | id)", data, hidden=()).problem, cov="full", prior=prior)
    state = start_last(problem, np.zeros(2))
    state.entries[:] = torch.tensor([0.7, 0.4, 0.5], dtype=torch.float64)
    m, factors = moments(problem, state.theta, state.plan), factors_of(problem, state.plan, state.entries)
    fit = profile(m, factors)
    found = factor_curvature(m, factors, fit).numpy()

    L, sigma2, n = factors.own.numpy(), float(fit.sigma2), m.n
    expected, of_sigma = np.zeros((4, 4)), np.zeros(4)
    units = [E for a in range(2) for r in range(2) for E in [np.eye(2)[:, [a]] @ np.eye(2)[[r]]]]
    V, X, y = [], [], []
    for block in problem.train:
        for i in range(len(block.persons)):
            there = block.mask[i].numpy() > 0
            H = np.column_stack([block.x[i].numpy()[there], np.ones(there.sum())])
            X, y, V = [*X, H], [*y, block.y[i].numpy()[there]], [*V, np.eye(there.sum()) + H @ L @ L.T @ H.T]
    inverse = [np.linalg.inv(v) for v in V]
    W = np.zeros((2, 2)) if fit.spread is None else fit.spread.numpy()
    for v, H, own in zip(inverse, X, y, strict=True):
        moves = [H @ (E @ L.T + L @ E.T) @ H.T for E in units]
        e = v @ (own - H @ fit.beta.numpy())
        rest = v - np.outer(e, e) / sigma2 - v @ H @ W @ H.T @ v
        of_sigma += [0.5 * np.trace(v @ d) for d in moves]
        for j, k in product(range(4), range(4)):
            twice = H @ units[j] @ units[k].T @ H.T
            expected[j, k] += 0.5 * np.trace(v @ moves[j] @ v @ moves[k]) + np.trace(rest @ twice)
    np.testing.assert_allclose(found, expected - 2.0 / n * np.outer(of_sigma, of_sigma), atol=1e-10)
