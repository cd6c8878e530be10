"""Labels that could be exchanged in part of the data: found in the designs, and as likelihoods that are equal."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal

import mixmoe as mm
from mixmoe.inference.cells import Predictor, linked_cells

RNG = np.random.default_rng(8)
N = 40
TREAT, SEX = RNG.integers(0, 2, N), RNG.integers(0, 2, N)
ARM, AGE, ONE = RNG.integers(0, 3, N), RNG.normal(size=N), np.ones(N)


def dummies(codes):
    return np.eye(codes.max() + 1)[codes]


DESIGNS = {
    "intercept": np.column_stack([ONE]),
    "treatment": np.column_stack([ONE, TREAT]),
    "treatment and age": np.column_stack([ONE, TREAT, AGE]),
    "treatment times age": np.column_stack([ONE, TREAT, AGE, TREAT * AGE]),
    "main effects": np.column_stack([ONE, TREAT, SEX]),
    "interaction": np.column_stack([ONE, TREAT, SEX, TREAT * SEX]),
    "three arms": np.column_stack([ONE, dummies(ARM)[:, 1:]]),
    "two of three arms": np.column_stack([ONE, ARM == 2]),
    "deviations": np.column_stack([ONE, 1 - 2 * TREAT]),
    "a weak link": np.column_stack([ONE, TREAT, AGE * (TREAT == 0) + 0.01 * AGE * (TREAT == 1)]),
    "no columns": np.zeros((N, 0)),
}


def by_enumeration(X, strata):
    """Cells of strata: the finest partition whose unions A all have 1_A X in the span of X."""
    codes = np.unique(strata, axis=0, return_inverse=True)[1].ravel()
    H = X @ np.linalg.pinv(X) if X.shape[1] else np.zeros((len(X), len(X)))
    label = np.zeros((len(X), 0), dtype=int)
    for chosen in product([0, 1], repeat=codes.max() + 1):
        A = np.array(chosen)[codes].astype(float)
        if np.allclose(H * A, A[:, None] * H, atol=1e-10):
            label = np.column_stack([label, A.astype(int)])
    return np.unique(label, axis=0, return_inverse=True)[1].ravel()


def same_partition(a, b):
    pairs = len(set(zip(a.tolist(), b.tolist(), strict=True)))
    return pairs == len(set(a.tolist())) == len(set(b.tolist()))


@pytest.mark.parametrize("name", [name for name in DESIGNS if name != "no columns"])
def test_cells_are_those_of_all_sets_that_the_columns_allow(name):
    X = DESIGNS[name].astype(float)
    found = linked_cells([Predictor(X, np.arange(N))], N)
    assert same_partition(found, by_enumeration(X, np.column_stack([TREAT, SEX, ARM])))


@pytest.mark.parametrize(
    ("gate", "expert", "n_cells"),
    [
        ("treatment", "treatment", 2),
        ("treatment", "treatment times age", 2),
        ("treatment", "deviations", 2),
        ("treatment", "treatment and age", 1),
        ("treatment", "intercept", 1),
        ("intercept", "treatment", 1),
        ("interaction", "interaction", 4),
        ("interaction", "treatment", 2),
        ("interaction", "main effects", 1),
        ("three arms", "three arms", 3),
        ("three arms", "two of three arms", 2),
        ("no columns", "treatment", 2),
        ("treatment", "a weak link", 1),
    ],
)
def test_cells_of_gate_and_experts_together(gate, expert, n_cells):
    twice = np.repeat(np.arange(N), 2)  # two rows of each unit in the experts
    predictors = [Predictor(DESIGNS[gate].astype(float), np.arange(N)), Predictor(1e5 * DESIGNS[expert][twice], twice)]
    found = linked_cells(predictors, N)
    assert found.max() + 1 == n_cells
    assert set(found.tolist()) == set(range(n_cells))


@pytest.fixture(scope="module")
def trial():
    """Two arms, four visits of 120 subjects, two experts."""
    rng, n = np.random.default_rng(3), 120
    treat, age = np.arange(n) % 2, rng.normal(50, 8, n)
    second = rng.uniform(size=n) < 1 / (1 + np.exp(-(-0.3 + 0.6 * treat)))
    frame = pd.DataFrame({"id": np.arange(n), "treat": treat, "age": age, "second": second})
    d = frame.loc[np.repeat(np.arange(n), 4)].reset_index(drop=True).assign(t=np.tile(np.arange(4.0), n))
    effect = rng.normal(0, 0.5, n)[d["id"]]
    d["y"] = np.where(d["second"], 3 + 0.5 * d["treat"] + 0.2 * d["t"], d["treat"] - 0.4 * d["t"]) + effect
    d["y"] += rng.normal(0, 0.6, len(d))
    d["wide"] = d["y"] + np.where(d["second"], 1.5, 0.0) * rng.normal(size=len(d))
    d["count"] = rng.poisson(np.exp(np.where(d["second"], 1.4, 0.1) + 0.2 * d["treat"]))
    return d.assign(arm=np.where(d["treat"] == 1, "drug", "placebo"), trials=8, u=rng.uniform(size=len(d)))


def fitted(formula, data, **options):
    return mm.fit(formula, data, experts=2, rng=0, starts=6, **options)


def ambiguity(fit):
    return [flag.message for flag in fit.flags if flag.code == "ambiguous_labels"]


pytestmark = pytest.mark.filterwarnings("ignore::mixmoe.errors.MixmoeWarning")
VARYING = {"family": "poisson", "bandwidth": 0.6, "n_grid": 8, "max_iter": 30}
COMMON = {"residual": "common", "cov_re": "common"}


def test_swapped_experts_in_one_arm_have_the_same_density(trial):
    fit = fitted("y ~ treat * t | gate: treat | re: (1 | id)", trial, **COMMON)
    p = fit.params

    def density(experts, log_odds):
        """Of subjects, as mixtures of normals with dense covariances; experts (arm, expert, intercept and slope)."""
        out = 0.0
        for _, rows in trial.groupby("id"):
            arm, t = int(rows["treat"].iloc[0]), rows["t"].to_numpy()
            V = p["sd(Intercept|id)"] ** 2 + p["sigma"] ** 2 * np.eye(len(t))
            each = [multivariate_normal.pdf(rows["y"], a + b * t, V) for a, b in experts[arm]]
            q = 1 / (1 + np.exp(-log_odds[arm]))
            out += np.log((1 - q) * each[0] + q * each[1])
        return out

    def lines(k):
        control = np.array([p[f"expert{k}.Intercept"], p[f"expert{k}.t"]])
        return [control, control + np.array([p[f"expert{k}.treat"], p[f"expert{k}.treat:t"]])]

    experts = np.array([lines(1), lines(2)]).transpose(1, 0, 2)
    log_odds = np.array([p["gate2.Intercept"], p["gate2.Intercept"] + p["gate2.treat"]])
    swapped, other = experts.copy(), log_odds.copy()
    swapped[1], other[1] = experts[1, ::-1], -log_odds[1]
    np.testing.assert_allclose(density(experts, log_odds), fit.llf, atol=1e-6)
    np.testing.assert_allclose(density(swapped, other), fit.llf, atol=1e-6)
    (message,) = ambiguity(fit)
    assert "saturated in treat" in message
    assert "where treat = 1 gives other coefficients and the same log-likelihood" in message
    assert "one of 2 equally good answers" in message
    assert "common(treat), or a gate or experts without treat" in message


@pytest.mark.parametrize(
    ("formula", "options"),
    [
        ("y ~ arm * t | gate: arm | re: (1 + t | id)", COMMON),
        ("y ~ treat + common(t) | gate: treat | re: (1 | id)", COMMON),
        ("y ~ treat * t | gate: treat * age | re: (1 | id)", COMMON),
        ("y ~ treat * t | gate: treat | re: (0 + arm | id)", {"residual": "common"}),
        ("y ~ treat * t | gate: treat | re: (0 + arm || id) | sigma: treat", {}),
        ("count ~ treat | gate: treat | re: (0 | id)", {"family": "poisson"}),
        ("count ~ arm | gate: arm | vary: u", VARYING),
    ],
)
def test_saturated_factors_are_told(trial, formula, options):
    (message,) = ambiguity(fitted(formula, trial, **options))
    assert "the same log-likelihood" in message


@pytest.mark.parametrize(
    ("formula", "options"),
    [
        ("y ~ treat + t | gate: treat | re: (1 | id)", COMMON),
        ("y ~ common(treat) + t | gate: treat | re: (1 | id)", COMMON),
        ("y ~ treat * t | gate: treat + age | re: (1 | id)", COMMON),
        ("y ~ treat * t | gate: 1 | re: (1 | id)", COMMON),
        ("y ~ t | gate: treat | re: (1 | id)", COMMON),
        ("y ~ t | gate: age | re: (1 | id)", {}),
        ("wide ~ treat * t | gate: treat | re: (1 | id)", {"cov_re": "common"}),
        ("count ~ const(arm) | gate: arm | vary: u", VARYING),
    ],
)
def test_other_models_are_left_alone(trial, formula, options):
    assert not ambiguity(fitted(formula, trial, **options))


def exchanged(params, arm):
    """Parameters whose experts are exchanged in one arm, standard deviations where they are."""
    p = params.copy()
    for own, other in ((1, 2), (2, 1)):
        for base, effect in (("Intercept", "treat"), ("t", "treat:t")):
            here = [params[f"expert{own}.{base}"] + a * params[f"expert{own}.{effect}"] for a in (0, 1)]
            there = params[f"expert{other}.{base}"] + arm * params[f"expert{other}.{effect}"]
            here[arm] = there
            p[f"expert{own}.{base}"], p[f"expert{own}.{effect}"] = here[0], here[1] - here[0]
    odds = [params["gate2.Intercept"], params["gate2.Intercept"] + params["gate2.treat"]]
    odds[arm] = -odds[arm]
    p["gate2.Intercept"], p["gate2.treat"] = odds[0], odds[1] - odds[0]
    return p


def test_what_experts_have_of_their_own_costs_what_the_message_says(trial):
    """Exchange coefficients and log odds in one arm by hand, then let all parameters follow."""
    fit = fitted("y ~ treat * t | gate: treat | re: (1 | id)", trial, residual="common")
    p = fit.params

    def density(swapped_arm):
        out = 0.0
        for _, rows in trial.groupby("id"):
            arm, t, mass = int(rows["treat"].iloc[0]), rows["t"].to_numpy(), 0.0
            odds = p["gate2.Intercept"] + arm * p["gate2.treat"]
            for k in (1, 2):
                j = 3 - k if arm == swapped_arm else k
                share = 1 / (1 + np.exp(odds if j == 1 else -odds))
                line = p[f"expert{j}.Intercept"] + arm * p[f"expert{j}.treat"]
                line = line + (p[f"expert{j}.t"] + arm * p[f"expert{j}.treat:t"]) * t
                V = p[f"sd{k}(Intercept|id)"] ** 2 + p["sigma"] ** 2 * np.eye(len(t))
                mass += share * multivariate_normal.pdf(rows["y"], line, V)
            out += np.log(mass)
        return out

    drops = [fit.llf - density(arm) for arm in (0, 1)]
    least = int(np.argmin(drops))
    (message,) = ambiguity(fit)
    assert fit.model.loglike(exchanged(p, least)) == pytest.approx(fit.llf - drops[least], abs=1e-6)
    other = mm.fit(fit.model.formula.text, trial, 2, residual="common", start=exchanged(p, least), starts=0)
    drop = fit.llf - other.llf
    assert 1e-3 < drop < drops[least] < 1.92
    assert f"where treat = {least} gives other coefficients and a log-likelihood only {drop:.2g} lower" in message
