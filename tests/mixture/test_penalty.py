"""Penalised gates and gates without a finite maximum, against closed forms of tables of known memberships.

Responses lie so far apart that memberships are known: the gate is then a multinomial logit of the experts.
"""

import re
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.stats import chi2

import mixmoe as mm
from mixmoe.cli.main import main
from mixmoe.errors import ArgumentError, MixmoeWarning
from mixmoe.inference.cells import described
from mixmoe.inference.wald import InvalidTest
from mixmoe.mixed.end_points import newton_polish
from mixmoe.mixed.likelihood.hessian import observed_information
from mixmoe.mixed.likelihood.observed import evaluate
from mixmoe.mixture.estimate import better
from mixmoe.mixture.gate import (
    JeffreysPenalty,
    PseudoUnits,
    checked_gate_penalty,
    gate_log_probabilities,
    penalty_meat,
    penalty_score,
    penalty_value,
)
from tests.fits import carried

LEVELS = np.array([0.0, 400.0, 900.0])


def table_data(counts, seed=0):
    """One row per subject, from numbers of subjects by cell (rows) and expert."""
    rng = np.random.default_rng(seed)
    cell, expert = (np.repeat(place, np.ravel(counts)) for place in np.indices(np.shape(counts)).reshape(2, -1))
    y = LEVELS[expert] + rng.normal(size=len(cell))
    frame = {"y": y, "cell": np.array(list("abcd"))[cell], "age": rng.normal(size=len(cell)), "expert": expert}
    return pd.DataFrame(frame).assign(z=frame["age"] + 0.5 * expert)


def fitted(data, formula="y ~ 1 | gate: cell", experts=2, **options):
    return carried(formula, data, experts, residual="common", **options)


def cell_log_odds(fit):
    """Log odds of each later expert in each cell, experts in the order of their means."""
    K = fit.model.n_experts
    order = np.argsort([fit.params[f"expert{k + 1}.Intercept"] for k in range(K)])
    cells = sorted(fit.model.design.frame["cell"].unique())
    odds = np.zeros((len(cells), K))
    for k in range(1, K):
        for i, cell in enumerate(cells):
            odds[i, k] = fit.params[f"gate{k + 1}.Intercept"] + fit.params.get(f"gate{k + 1}.cell[T.{cell}]", 0.0)
    odds = odds[:, order]
    return odds[:, 1:] - odds[:, :1]


SEPARATED = np.array([[40, 10], [30, 0], [9, 21]])
THREE = np.array([[20, 10, 5], [30, 0, 6], [9, 21, 0]])


@pytest.mark.parametrize("counts", [SEPARATED, THREE])
def test_firth_adds_half_a_subject_to_every_cell_of_a_table(counts):
    fit = fitted(table_data(counts), experts=counts.shape[1], gate_penalty="firth")
    right = np.log(counts[:, 1:] + 0.5) - np.log(counts[:, :1] + 0.5)
    np.testing.assert_allclose(cell_log_odds(fit), right, atol=1e-5)
    assert not [flag for flag in fit.flags if flag.code == "separated_gate"]


@pytest.mark.parametrize(("counts", "constant"), [(SEPARATED, 1.0), (THREE, 2.5)])
def test_a_bayes_constant_adds_its_share_to_every_cell(counts, constant):
    fit = fitted(table_data(counts), experts=counts.shape[1], gate_penalty=constant)
    share = constant * counts.sum(axis=1, keepdims=True) / counts.sum() / counts.shape[1]
    right = np.log(counts[:, 1:] + share) - np.log(counts[:, :1] + share)
    np.testing.assert_allclose(cell_log_odds(fit), right, atol=1e-5)


@pytest.mark.parametrize(("penalty", "extra"), [("firth", None), (1.0, 1.0)])
@pytest.mark.parametrize("options", [{}, {"correction": False}, {"cov_type": "nonrobust"}])
def test_standard_errors_are_those_of_the_table_with_the_added_subjects(penalty, extra, options):
    """By default subjects' scores, not those of the added ones, are divided by one minus the leverage in their cell."""
    counts = SEPARATED
    fit = fitted(table_data(counts), gate_penalty=penalty, **options)
    total = counts.sum(axis=1)
    a = np.full(3, 0.5) if extra is None else extra * total / counts.sum() / 2
    p = (counts[:, 1] + a) / (total + 2 * a)
    information = (total + 2 * a) * p * (1 - p)
    kept = 1.0 if options else 1 - 1 / (total + 2 * a)
    middle = (counts[:, 1] / kept**2 + a) * (1 - p) ** 2 + (counts[:, 0] / kept**2 + a) * p**2
    variance = 1 / information if "cov_type" in options else middle / information**2
    right = np.sqrt([variance[0], variance[0] + variance[1], variance[0] + variance[2]])
    np.testing.assert_allclose(fit.bse.filter(like="gate"), right, rtol=1e-3)


def dense_penalised(W, expert, K, constant):
    """Brute force: the penalised multinomial logit by loops over subjects and a general optimiser."""
    N, m = W.shape

    def minus(flat):
        gamma = np.vstack([np.zeros(m), flat.reshape(K - 1, m)])
        value, information = 0.0, np.zeros(((K - 1) * m,) * 2)
        for w, k in zip(W, expert, strict=True):
            p = np.exp(gamma @ w - np.logaddexp.reduce(gamma @ w))
            value += np.log(p[k]) + (0 if constant is None else constant * np.log(p).sum() / (N * K))
            information += np.kron(np.diag(p[1:]) - np.outer(p[1:], p[1:]), np.outer(w, w))
        return -value - (0.5 * np.linalg.slogdet(information)[1] if constant is None else 0.0)

    return minimize(minus, np.zeros((K - 1) * m), method="BFGS", options={"gtol": 1e-6}).x


@pytest.mark.parametrize(("penalty", "constant"), [("firth", None), (3.0, 3.0)])
def test_a_numeric_covariate_by_brute_force(penalty, constant):
    data = table_data(THREE[:, :2] // 2 + 1)
    fit = fitted(data, "y ~ 1 | gate: z", gate_penalty=penalty)
    W = np.column_stack([np.ones(len(data)), data["z"]])
    right = dense_penalised(W, data["expert"].to_numpy(), 2, constant)
    sign = 1.0 if fit.params["expert1.Intercept"] < fit.params["expert2.Intercept"] else -1.0
    np.testing.assert_allclose(sign * fit.params.filter(like="gate"), right, atol=1e-4)


@pytest.mark.parametrize("penalty", [JeffreysPenalty(), PseudoUnits(2.0)])
def test_scores_and_units_of_a_penalty(penalty):
    rng = np.random.default_rng(5)
    W, gamma = np.column_stack([np.ones(30), rng.normal(size=(30, 2))]), 0.8 * rng.normal(size=(2, 2, 3))
    score = penalty_score(penalty, W, gamma)
    for at in np.ndindex(score.shape):
        step = np.zeros_like(gamma)
        step[at] = 1e-6
        slope = (penalty_value(penalty, W, gamma + step) - penalty_value(penalty, W, gamma - step))[at[0]] / 2e-6
        np.testing.assert_allclose(score[at], slope, atol=1e-7)
    assert (penalty.units(W, gate_log_probabilities(W, gamma)) > 0).all()
    A = np.array([[1.0, 0.3, 0.0], [0.0, 2.0, 0.5], [0.0, 0.0, 0.1]])  # other units and origins of the covariates
    moved = penalty_value(penalty, W @ A, np.linalg.solve(A, gamma[..., None])[..., 0])
    change = penalty_value(penalty, W, gamma)
    np.testing.assert_allclose(moved[0] - moved[1], change[0] - change[1], atol=1e-8)
    other = np.stack([-gamma[:, 0], gamma[:, 1] - gamma[:, 0]], axis=1)  # expert 2 as the reference
    np.testing.assert_allclose(penalty_value(penalty, W, other), change, atol=1e-8)


def test_units_of_jeffreys_prior_are_half_a_unit_for_each_expert_in_each_cell():
    cell = np.repeat([0, 1], [4, 9])
    W, gamma = np.column_stack([np.ones(13), cell]), np.random.default_rng(6).normal(size=(1, 2, 2))
    units = JeffreysPenalty().units(W, gate_log_probabilities(W, gamma))[0]
    np.testing.assert_allclose(units, np.tile(0.5 / np.array([4, 9])[cell], (3, 1)))


def test_the_meat_of_a_penalty_by_loops():
    rng = np.random.default_rng(7)
    W, gamma = np.column_stack([np.ones(12), rng.normal(size=12)]), rng.normal(size=(1, 2, 2))
    penalty = PseudoUnits(1.5)
    right = np.zeros((4, 4))
    for w in W:
        odds = np.array([0.0, *(gamma[0] @ w)])
        p = np.exp(odds - np.logaddexp.reduce(odds))
        for k in range(3):
            s = np.kron(np.eye(3)[k, 1:] - p[1:], w)
            right += 1.5 / (3 * len(W)) * np.outer(s, s)
    np.testing.assert_allclose(penalty_meat(penalty, W, gamma), right)


@pytest.mark.parametrize("penalty", ["firth", 2.0])
def test_information_is_the_derivative_of_the_score_that_is_zero_at_the_estimate(penalty):
    sim = mm.simulate.memoe("moderate", n_subjects=80, rng=3)
    fit = carried(sim.formula, sim.data, gate_penalty=penalty)
    problem, theta = fit.model.problem, fit.model.working(fit.em.params)
    here = evaluate(problem, theta[None])
    assert np.abs(here.score).max() < 1e-3
    np.testing.assert_allclose(here.loglik[0] - fit.model.log_scale, fit.llf + fit.em.penalty, atol=1e-8)
    np.testing.assert_allclose(fit.model.loglike(fit.params), fit.llf, atol=1e-8)
    steps = 1e-5 * np.eye(theta.size)
    slopes = [(evaluate(problem, np.vstack([theta + h, theta - h])).score) for h in steps]
    hessian = np.array([up - down for up, down in slopes]) / 2e-5
    np.testing.assert_allclose(observed_information(problem, theta), -0.5 * (hessian + hessian.T), rtol=1e-4, atol=1e-3)


def test_estimates_of_ordinary_data_hardly_move():
    sim = mm.simulate.memoe("separated", n_subjects=300, rng=4)
    plain = carried(sim.formula, sim.data)
    for penalty in ("firth", 1):
        fit = carried(sim.formula, sim.data, gate_penalty=penalty)
        assert (np.abs(fit.params - plain.params) < 0.15 * plain.bse).all()
        assert plain.llf - 0.1 < fit.llf <= plain.llf + 1e-6


def test_profile_limits_of_a_separated_cell_are_those_of_the_penalised_table():
    counts = np.array([[40, 10], [30, 0]])
    fit = fitted(table_data(counts), gate_penalty="firth")
    more = counts + 0.5

    def best(difference):
        def minus(intercept):
            odds = np.array([intercept, intercept + difference])
            return -(more[:, 1] * odds - more.sum(axis=1) * np.logaddexp(0, odds)).sum()

        return -minimize_scalar(minus, bracket=(-3, 1), tol=1e-12).fun

    estimate = np.log(more[1, 1] / more[1, 0]) - np.log(more[0, 1] / more[0, 0])
    drop = chi2.isf(0.05, 1) / 2

    def root(low, high):
        return brentq(lambda d: best(d) - best(estimate) + drop, low, high)

    right = [root(estimate - 12, estimate), root(estimate, estimate + 5)]
    found = fit.profile("gate2.cell[T.b]")
    np.testing.assert_allclose([found.estimate, found.lower, found.upper], [estimate, *right], atol=5e-3)


def test_a_penalised_fit_is_kept_printed_selected_and_compared(tmp_path, capsys):
    data = table_data(SEPARATED)
    fit = fitted(data, gate_penalty=1)
    fit.save(tmp_path / "fit.mixmoe")
    again = mm.load(tmp_path / "fit.mixmoe")
    assert again.em.penalty == fit.em.penalty < 0
    assert again.model.gate_penalty == PseudoUnits(1.0)
    pd.testing.assert_frame_equal(again.to_frame(), fit.to_frame())
    np.testing.assert_allclose(again.with_cov("robust").bse, fit.bse)
    assert "Gate penalised by Bayes constant 1" in str(fit.summary())
    assert "Gate penalty" in fit.summary().as_markdown()
    table = mm.select("y ~ 1 | gate: cell", data, experts=2, gate_penalty="firth", residual="common", rng=0, starts=3)
    np.testing.assert_allclose(np.exp(cell_log_odds(table.best("bic"))[1]), 0.5 / 30.5, rtol=1e-4)
    smaller = fitted(data, "y ~ 1 | gate: 1", gate_penalty=1)
    test = fit.lr_test(smaller)
    np.testing.assert_allclose(test.statistic, 2 * (fit.llf + fit.em.penalty - smaller.llf - smaller.em.penalty))
    firth = [fitted(data, f"y ~ 1 | gate: {gate}", gate_penalty="firth") for gate in ("cell", "1")]
    refused = firth[0].lr_test(firth[1])
    assert isinstance(refused, InvalidTest)
    assert "depends on the gate's columns" in refused.reason
    data.to_csv(tmp_path / "data.csv", index=False)
    options = ["--rng", "0", "--starts", "3", "--residual", "common", "--gate-penalty", "firth"]
    assert main(["fit", str(tmp_path / "data.csv"), "y ~ 1 | gate: cell", *options]) == 0
    assert "Firth (Jeffreys prior)" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["jeffreys", 0, -1.0, True, np.inf, [1]])
def test_other_penalties_are_refused(value):
    with pytest.raises(ArgumentError, match="gate_penalty must be 'firth'"):
        checked_gate_penalty(value)


def leave_one_out(total):
    """Factor of the corrected standard error of a proportion: each of `total` subjects has leverage 1 / total."""
    return total / (total - 1)


def separated(data, **options):
    with pytest.warns(mm.errors.BoundaryWarning):
        fit = fitted(data, **options)
    (message,) = [flag.message for flag in fit.flags if flag.code == "separated_gate"]
    return fit, message


def test_separation_names_covariate_and_cell_and_leaves_the_rest_alone(tmp_path):
    fit, message = separated(table_data(SEPARATED))
    assert "The gate covariate cell leaves no subjects to expert 2 where cell = b" in message
    assert "gate2.cell[T.b] is infinite" in message
    assert "Elsewhere it is 0.2 to 0.7 for expert 2" in message
    assert "gate_penalty='firth'" in message
    assert np.isnan(fit.bse["gate2.cell[T.b]"])
    p, total = SEPARATED[:, 1] / SEPARATED.sum(axis=1), SEPARATED.sum(axis=1)
    variance = p * (1 - p) / total * leave_one_out(total) ** 2
    error = np.sqrt((total**2 * variance).sum()) / total.sum()
    shares = fit.proportions()
    np.testing.assert_allclose(shares.loc["expert2", "estimate"], p @ total / total.sum(), atol=1e-6)
    np.testing.assert_allclose(shares["std_error"], error, rtol=1e-3)
    effects = fit.gate_effects().to_frame().set_index(["contrast", "expert"])
    for contrast, i in (("b - a", 1), ("c - a", 2)):
        right = np.sqrt(variance[[0, i]].sum())
        np.testing.assert_allclose(effects.loc[(contrast, 2), "estimate"], p[i] - p[0], atol=1e-6)
        np.testing.assert_allclose(effects.loc[(contrast, 2), "std_error"], right, rtol=1e-3)
    alone = np.sqrt(variance)
    rows = fit.predict(pd.DataFrame({"cell": ["a", "b", "c"]}), kind="probabilities", interval="confidence")
    np.testing.assert_allclose(rows["probability2_se"], [alone[0], np.nan, alone[2]], rtol=1e-3)
    fit.save(tmp_path / "fit.mixmoe")
    for other in (mm.load(tmp_path / "fit.mixmoe"), fit.relabel([2, 1])):
        np.testing.assert_allclose(sorted(other.proportions()["std_error"]), sorted(shares["std_error"]))
        np.testing.assert_allclose(
            other.gate_effects().to_frame()["std_error"], fit.gate_effects().to_frame()["std_error"]
        )


def test_separation_along_a_number_and_of_a_combination():
    data = table_data(np.array([[40, 0], [20, 20]]))
    data["x"] = np.where(data["cell"] == "a", -1.0 - np.arange(80), np.arange(80)) / 10
    fit, message = separated(data, formula="y ~ 1 | gate: cell + age")
    assert "The gate covariate cell leaves no subjects to expert 2 where cell = a:" in message
    assert np.isfinite(fit.bse["gate2.age"])
    sign = data.assign(u=np.where(data["expert"] == 1, 0.1 + data["age"].abs(), -0.1 - data["age"].abs()))
    fit, message = separated(sign, formula="y ~ 1 | gate: u")
    assert "The gate covariate u leaves no subjects to expert 1 where u is 0.1" in message
    assert "to expert 2 where u is -" in message
    assert "Finite are all other coefficients." in message
    assert fit.proportions()["std_error"].isna().all()


def test_the_share_of_an_expert_that_is_certain_everywhere_has_no_standard_error():
    """Expert 3 is a cell of its own; the other two share the rest."""
    counts = np.array([[30, 20, 0], [25, 25, 0], [0, 0, 15]])
    fit, message = separated(table_data(counts), experts=3)
    shares = fit.proportions()
    alone = int(np.argmin(np.abs(shares["estimate"] - 15 / 115)))
    assert shares.iloc[alone, 1:].isna().all()
    assert f"with their standard errors, but for expert {alone + 1}, of which every probability is" in message
    p, total = np.array([20 / 50, 25 / 50]), np.array([50, 50])
    error = np.sqrt((total * p * (1 - p) * leave_one_out(total) ** 2).sum()) / 115
    np.testing.assert_allclose(shares.drop(index=shares.index[alone])["std_error"], error, rtol=1e-3)


def test_cells_that_only_several_columns_tell_apart_are_not_named_by_one():
    n = np.arange(40)
    data = pd.DataFrame({"y": n * 1.0, "g": np.array(list("abc"))[n % 3], "z": np.sin(n)})
    design = mm.MEMoE("y ~ z | gate: g + z", data, 2).design
    inside = data["z"] > np.array([0.0, 0.2, 0.5])[n % 3]
    low, high = data["z"][inside].min(), data["z"][inside].max()
    words = f"for {inside.sum()} of 40 rows with a combination of g and z from {low:.4g} to {high:.4g}"
    assert described(design, inside.to_numpy(), ["g", "z"]) == words
    inside = (data["z"] > 0) & ((data["g"] == "a") | (data["z"] > 0.3) & (data["g"] == "b"))
    low, high = data["z"][inside].min(), data["z"][inside].max()
    words = (
        f"for {inside.sum()} of 40 rows with a combination of g and z from {low:.4g} to {high:.4g} (g is one of a, b)"
    )
    assert described(design, inside.to_numpy(), ["g", "z"]) == words
    assert described(design, (data["g"] == "a").to_numpy(), ["g", "z"]) == "where g = a"


def test_a_slope_that_grows_with_an_infinite_coefficient_has_no_value():
    data = table_data(np.array([[40, 10], [30, 0]])).assign(b=lambda d: (d["cell"] == "b") * 1.0)
    fit, _ = separated(data, formula="y ~ 1 | gate: b")
    assert fit.gate_effects().to_frame()[["estimate", "std_error"]].isna().all(axis=None)
    difference = fit.gate_effects(dummy=True).to_frame()
    np.testing.assert_allclose(difference["estimate"].abs(), 0.2, atol=1e-6)
    np.testing.assert_allclose(difference["std_error"], np.sqrt(0.2 * 0.8 / 50) * leave_one_out(50), rtol=1e-3)


def test_a_rare_expert_is_not_taken_for_a_missing_one():
    """One of 2000 in a cell: finite log odds, whose standard error is that of the table."""
    counts = np.array([[1999, 1], [400, 600]])
    fit = fitted(table_data(counts), cov_type="nonrobust")
    assert not [flag for flag in fit.flags if flag.code == "separated_gate"]
    order = np.sign(fit.params["expert2.Intercept"] - fit.params["expert1.Intercept"])
    np.testing.assert_allclose(order * fit.params["gate2.Intercept"], np.log(1 / 1999), atol=1e-4)
    np.testing.assert_allclose(fit.bse["gate2.Intercept"], np.sqrt(1 + 1 / 1999), rtol=1e-4)


def test_a_rare_expert_keeps_its_errors_beside_a_cell_without_it():
    counts = np.array([[1999, 1], [60, 0], [400, 600]])
    fit, message = separated(table_data(counts))
    assert "leaves no subjects to expert 2 where cell = b: " in message or "expert 1 where cell = b: " in message
    rows = fit.predict(pd.DataFrame({"cell": ["a", "b", "c"]}), kind="probabilities", interval="confidence")
    rare, often = np.sqrt(1 / 2000 * (1 - 1 / 2000) / 2000), np.sqrt(0.6 * 0.4 / 1000)
    right = [rare * leave_one_out(2000), np.nan, often * leave_one_out(1000)]
    np.testing.assert_allclose(rows["probability1_se"], right, rtol=1e-3)


def test_of_two_penalised_fits_the_better_has_the_higher_penalised_value():
    one = fitted(table_data(SEPARATED), gate_penalty="firth").em
    other = replace(one, loglik=one.loglik + 1.0, penalty=one.penalty - 2.0)
    assert better(one, other).params is one.params
    assert better(other, one).loglik == one.loglik


@pytest.mark.filterwarnings("ignore::mixmoe.errors.MixmoeWarning")
@pytest.mark.parametrize(
    ("start", "where"), [(0.0, "where sex = f:"), (0.5, r"where sex = f and u is 0\.[5-7]\d+ to 0\.9")]
)
def test_separation_along_an_index_names_levels_and_range(start, where):
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"u": rng.uniform(size=300), "sex": np.array(["f", "m"])[np.arange(300) % 2]})
    second = ((data["sex"] == "m") | (data["u"] < start)) & (rng.uniform(size=300) < 0.4)
    data = data.assign(y=6.0 * second + rng.normal(size=300) * 0.5)
    fit = mm.fit("y ~ 1 | gate: sex | vary: u", data, bandwidth=0.2, n_grid=15, rng=0, starts=2, estimate="joint")
    (message,) = [flag.message for flag in fit.flags if flag.code == "separated_gate"]
    assert re.search(f"The gate covariate sex leaves no rows to expert 2 {where}", message)


def test_resamples_say_nothing_of_infinite_coefficients_and_something_of_the_rest():
    fit, _ = separated(table_data(SEPARATED))
    again = fit.with_cov("bootstrap", n_boot=150, rng=0)
    assert np.isnan(again.bse["gate2.cell[T.b]"])
    by_bootstrap, right = again.proportions()["std_error"], fit.proportions()["std_error"]
    np.testing.assert_allclose(by_bootstrap, right, rtol=0.25)  # Monte Carlo error 6 %
    effect, table = again.gate_effects().to_frame()["std_error"], fit.gate_effects().to_frame()["std_error"]
    np.testing.assert_allclose(effect, table, rtol=0.25)


def test_a_penalty_of_one_expert_changes_nothing():
    data = table_data(SEPARATED)
    fits = [fitted(data, experts=1, gate_penalty=penalty) for penalty in (None, "firth", 2)]
    for fit in fits[1:]:
        assert fit.llf == pytest.approx(fits[0].llf)
        np.testing.assert_allclose(fit.bse, fits[0].bse)
        assert "penalised" not in str(fit.summary())


@pytest.mark.parametrize(("family", "value"), [("poisson", 0), ("binomial", 1)])
def test_separated_responses_name_coefficient_and_cell(family, value):
    rng = np.random.default_rng(0)
    cell = np.repeat(["a", "b", "c"], 60)
    y = rng.poisson(1.5, 180) if family == "poisson" else rng.integers(0, 2, 180)
    data = pd.DataFrame({"cell": cell, "t": rng.normal(size=180), "y": np.where(cell == "b", value, y)})
    with pytest.warns(mm.errors.BoundaryWarning):
        fit = mm.fit("y ~ t + cell", data, experts=1, family=family)
    (message,) = [flag.message for flag in fit.flags if flag.code == "separated_expert"]
    assert "Fitted responses of expert 1 where cell = b have no variance left" in message
    assert "expert1.cell[T.b] is infinite" in message
    assert fit.bse.index[fit.bse.isna()].tolist() == ["expert1.cell[T.b]"]
    alone = mm.fit("y ~ t + cell", data[data["cell"] != "b"], experts=1, family=family)
    np.testing.assert_allclose(fit.params["expert1.t"], alone.params["expert1.t"], atol=1e-4)


def test_the_last_steps_go_on_towards_an_infinite_coefficient():
    """Each Newton step goes one further in log-odds, which leaves a third of the rest: two would leave .025 of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        fit = fitted(table_data(SEPARATED[:2]), cov_type="nonrobust")
    name, problem = "gate2.cell[T.b]", fit.model.problem
    sign = np.sign(fit.params[name])
    near, far = (fit.model._free(fit.params.where(fit.params.index != name, sign * size)) for size in (5.0, 40.0))
    reached, most = (evaluate(problem, theta[None]).loglik[0] for theta in (newton_polish(problem, near), far))
    assert 0 <= most - reached < 1e-4
