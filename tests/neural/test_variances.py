"""Printed variances and correlations are those under which the printed likelihood holds."""

import warnings

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import MixmoeWarning
from tests.neural.names import of_one_expert

torch = pytest.importorskip("torch")

from mixmoe.neural.components import correlations  # noqa: E402
from mixmoe.neural.marginal_likelihood import shrunken_share  # noqa: E402


def quiet(formula, frame, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        return mm.fit(formula, frame, **{"baselines": False, "rng": 0, "hidden": (), **options})


def slopes(persons=40, seed=0):
    g = np.random.default_rng(seed)
    n = g.integers(2, 10, persons)
    code = np.repeat(np.arange(persons), n)
    x, w = g.normal(2, 3, len(code)), g.normal(-1, 1, len(code))
    b = g.multivariate_normal([0, 0, 0], [[1, 0.3, 0], [0.3, 0.5, 0.1], [0, 0.1, 0.2]], persons)[code]
    y = 1 + 0.5 * x - w + b[:, 0] + b[:, 1] * x + b[:, 2] * w + 0.7 * g.normal(size=len(code))
    return pd.DataFrame({"y": y, "x": x, "w": w, "id": code})


DATA = slopes()
TERMS = ("Intercept", "x", "w")


def printed_covariance(params, terms):
    sd = np.array([params[f"sd({t}|id)"] for t in terms])
    R = np.eye(len(terms))
    for i, a in enumerate(terms):
        for j, b in enumerate(terms[i + 1 :], i + 1):
            R[i, j] = R[j, i] = params.get(f"corr({a},{b}|id)", 0.0)
    return sd[:, None] * R * sd


def dense_loglik(params, frame, terms=TERMS):
    X, total = np.column_stack([np.ones(len(frame)), *(frame[t] for t in terms[1:])]), 0.0
    D, beta = printed_covariance(params, terms), params[list(terms)].to_numpy()
    for rows in frame.groupby("id").indices.values():
        V = X[rows] @ D @ X[rows].T + params["sigma"] ** 2 * np.eye(len(rows))
        e = frame["y"].to_numpy()[rows] - X[rows] @ beta
        total -= 0.5 * (np.linalg.slogdet(2 * np.pi * V)[1] + e @ np.linalg.solve(V, e))
    return total


@pytest.mark.parametrize("words", ["last", "bias", "layer1.weight"])
@pytest.mark.parametrize("cov", ["diagonal", "tensor", "full", 1])
def test_printed_parameters_have_the_printed_likelihood(words, cov):
    fit = quiet(f"y ~ x + w | re: ({words} | id)", DATA, cov=cov)
    params = fit.params.copy()
    for term in TERMS:
        if f"sd({term}|id)" not in params:
            params[f"sd({term}|id)"] = 0.0
    assert dense_loglik(params, DATA) == pytest.approx(fit.llf, abs=1e-6)


def test_a_variance_per_parameter_is_the_double_bar_of_a_mixed_model():
    mixed = mm.fit("y ~ x + w | re: (1 + x + w || id)", DATA, experts=1)
    for formula, options in (
        ("y ~ x + w | re: (last || id)", {}),
        ("y ~ x + w | re: (last | id)", {"cov": "diagonal"}),
    ):
        fit = quiet(formula, DATA, **options)
        assert fit.llf == pytest.approx(mixed.llf, abs=1e-5)
        shared = fit.params.index
        theirs = of_one_expert(shared)
        assert set(theirs) == set(mixed.params.index)
        np.testing.assert_allclose(fit.params, mixed.params[theirs], rtol=1e-3)
        np.testing.assert_allclose(fit.bse[shared[3:]], mixed.with_cov("nonrobust").bse[theirs[3:]], rtol=2e-2)
    predicted = fit.predict(DATA, "subject")["mean"]
    np.testing.assert_allclose(
        predicted, mixed.predict(DATA, kind="subject", history=DATA)["mean"], rtol=1e-2, atol=1e-2
    )


def test_laplace_steps_reach_the_same_maximum_on_the_same_scale():
    from mixmoe.neural.estimators.linearised import fit_laplace
    from mixmoe.neural.estimators.trained import Control

    exact = quiet("y ~ x + w | re: (last || id)", DATA)
    problem = exact.problem
    start = np.zeros(problem.network.n_parameters)
    fit = fit_laplace(problem, Control(epochs=1000, lr=0.02), start, np.random.default_rng(0))
    assert fit.loglik == pytest.approx(exact.trained.loglik, abs=0.01)
    np.testing.assert_allclose(fit.covariance, exact.trained.covariance, rtol=0.05, atol=0.02)


def test_the_origin_of_an_input_decides_what_is_independent():
    """As for lme4's double bar: other origins are other models, the full covariance is one for all."""
    moved = DATA.assign(x=DATA.x + 5.0)
    double = [quiet("y ~ x + w | re: (last || id)", frame).llf for frame in (DATA, moved)]
    full = [quiet("y ~ x + w | re: (last | id)", frame).llf for frame in (DATA, moved)]
    assert abs(double[0] - double[1]) > 0.1
    assert full[0] == pytest.approx(full[1], abs=1e-4)
    mixed = mm.fit("y ~ x + w | re: (1 + x + w || id)", moved, experts=1)
    assert double[1] == pytest.approx(mixed.llf, abs=1e-5)


@pytest.mark.parametrize(
    ("family", "cov"), [("binary", "diagonal"), ("multiclass", "tensor"), ("crf", "diagonal"), ("multiclass", 2)]
)
def test_printed_covariances_of_categories_are_those_of_the_fit(family, cov):
    g = np.random.default_rng(1)
    frame = DATA.assign(s=g.choice(list("abc")[: 2 if family == "binary" else 3], len(DATA)), t=np.arange(len(DATA)))
    seq = " | seq: t" if family == "crf" else ""
    fit = quiet(f"s ~ x + w | re: (last | id){seq}", frame, family=family, cov=cov, epochs=30)
    levels = ["b", "c"] if family != "binary" else [None]
    terms = [t if level is None else f"{t}({level})" for level in levels for t in TERMS]
    # brute force: the difference of two persons' linear predictors at inputs of the user
    fitted, personal = fit.trained, fit.problem.personal.index
    whole = np.zeros((fit.problem.network.n_parameters,) * 2)
    whole[np.ix_(personal, personal)] = fitted.covariance
    mean, sd = fit.model.scaling.mean, fit.model.scaling.sd
    for point in ([0.0, 0.0], [1.0, -2.0], [5.0, 3.0]):
        z, n_out = (np.array(point) - mean) / sd, fit.problem.network.n_out
        each = np.zeros((n_out, len(whole)))
        for k in range(n_out):
            each[k, [0 + k, n_out + k]], each[k, 2 * n_out + k] = z, 1.0
        each = each[1:] - each[:1] if family == "crf" else each
        expected = each @ whole @ each.T
        A = np.kron(np.eye(len(each)), np.array([[1.0, *point]]))
        np.testing.assert_allclose(A @ printed_covariance(fit.params, terms) @ A.T, expected, rtol=1e-6)


def test_derivatives_of_correlations():
    g = np.random.default_rng(1)
    frame = DATA.assign(s=g.choice(list("abc"), len(DATA)))
    fit = quiet("s ~ x + w | re: (last | id)", frame, cov=3, epochs=5)
    s = np.array([0.5, 1.0, 2.0])

    def at(values):
        trained = type(fit.trained)(**{k: getattr(fit.trained, k) for k in fit.trained.__slots__} | {"s": values})
        return correlations(fit.problem, trained, fit.model.scaling)

    numeric = np.column_stack([(at(s + h)[0] - at(s - h)[0]) / 2e-5 for h in 1e-5 * np.eye(3)])
    np.testing.assert_allclose(at(s)[1], numeric, atol=1e-8)


def test_shares_of_correlated_effects_are_not_taken_apart():
    tables = {t.key: t for t in quiet("y ~ x + w | re: (last || id)", DATA).tables()}
    assert tables["shares"].index == ("population", "person effects", "residual")


# ---- categories: the maximum of the marginal likelihood ----


def binary(persons, rows, sd, slope_sd, seed=1):
    g = np.random.default_rng(seed)
    code = np.repeat(np.arange(persons), rows)
    x = g.normal(size=len(code)) + 0.5
    eta = -0.5 + x + sd * g.normal(size=persons)[code] + slope_sd * g.normal(size=persons)[code] * x
    return pd.DataFrame({"y": (g.random(len(code)) < 1 / (1 + np.exp(-eta))).astype(int), "x": x, "id": code})


@pytest.mark.parametrize(
    ("words", "terms", "data"),
    [("bias", "1", binary(60, 5, 1.5, 0.0)), ("last", "1 + x", binary(40, 10, 1.0, 0.7))],
)
def test_binary_responses_have_the_estimates_of_quadrature(words, terms, data):
    fit = quiet(f"y ~ x | re: ({words} | id)", data, epochs=200)
    peer = mm.fit(f"y ~ x | re: ({terms} || id)", data, experts=1, family="binomial", n_quad=15)
    assert fit.converged
    assert fit.llf == pytest.approx(peer.llf, abs=2e-3)
    np.testing.assert_allclose(fit.params, peer.params[of_one_expert(fit.params.index)], atol=2e-3)
    np.testing.assert_allclose(fit.bse, peer.with_cov("nonrobust").bse[of_one_expert(fit.params.index)], rtol=0.03)
    np.testing.assert_allclose(fit.fitted(), peer.fitted(), atol=5e-3)
    np.testing.assert_allclose(fit.predict(data, "subject")["mean"], fit.fitted())


def test_three_levels_have_the_likelihood_of_brute_force():
    g = np.random.default_rng(2)
    code = np.repeat(np.arange(25), 6)
    x = g.normal(size=len(code))
    eta = np.stack([np.zeros(len(code)), 0.5 + x + g.normal(size=25)[code], -x + 1.5 * g.normal(size=25)[code]])
    y = np.array(list("abc"))[(eta + g.gumbel(size=eta.shape)).argmax(0)]
    fit = quiet("y ~ x | re: (bias | id)", pd.DataFrame({"y": y, "x": x, "id": code}), epochs=200)

    def loglik(params):
        nodes, weights = np.polynomial.hermite_e.hermegauss(40)
        z = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
        w = np.outer(weights, weights).ravel() / (2 * np.pi)
        b = z * params[[f"sd(Intercept({k})|id)" for k in "bc"]].to_numpy()
        total = 0.0
        for i in range(25):
            mine = code == i
            lin = [params[f"Intercept({k})"] + params[f"x({k})"] * x[mine] for k in "bc"]
            score = np.stack([np.zeros((len(z), 6)), *(v + b[:, [j]] for j, v in enumerate(lin))])
            p = np.exp(score - np.logaddexp.reduce(score, axis=0))
            chosen = p[np.searchsorted(list("abc"), y[mine]), :, np.arange(6)]
            total += np.log((w * chosen.prod(0)).sum())
        return total

    assert fit.llf == pytest.approx(loglik(fit.params), abs=2e-3)
    for name in fit.params.index:  # a maximum: no parameter gains by moving
        for step in (-0.05, 0.05):
            moved = fit.params.copy()
            moved[name] += step
            assert loglik(moved) < fit.llf


def test_the_published_rule_keeps_its_own_estimates():
    data = binary(20, 5, 1.0, 0.0)
    fit = quiet("y ~ x | re: (bias | id)", data, epochs=50, estimator="sgd")
    assert np.isnan(fit.llf)
    assert np.isfinite(fit.predict(data)).all(axis=None)


def test_a_variance_of_zero_is_survived():
    g = np.random.default_rng(0)
    data = pd.DataFrame({"x": g.normal(size=120), "id": np.tile(np.arange(12), 10)})
    data["y"] = np.repeat([0, 1], 60)  # everyone has five of each
    fit = quiet("y ~ x | re: (bias | id)", data, epochs=100)
    import statsmodels.formula.api as smf

    plain = smf.logit("y ~ x", data).fit(disp=0)
    assert fit.params["sd(Intercept|id)"] < 0.05
    np.testing.assert_allclose(fit.params[:2], plain.params, atol=1e-2)
    assert np.isfinite(fit.predict(data)).all(axis=None)


def test_the_flag_says_how_far_penalised_coefficients_are_off(monkeypatch):
    data = binary(100, 5, 1.5, 0.0)
    right = quiet("y ~ x | re: (bias | id)", data).params["x"]
    monkeypatch.setattr("mixmoe.neural.marginal_likelihood.MOST_EFFECTS", 0)
    penalised = quiet("y ~ x | re: (bias | id)", data)
    share = shrunken_share(penalised.problem, penalised.trained)
    assert share == pytest.approx(right / penalised.params["x"] - 1.0, abs=0.04)
    assert share > 0.1
    assert f"about {100 * share:.0f} % larger" in next(f.message for f in penalised.flags if f.code == "penalised_bias")


@pytest.mark.parametrize(("rows", "sd", "flagged"), [(4, 1.5, True), (40, 0.4, False)])
def test_networks_with_hidden_layers_are_flagged_where_rows_are_few(rows, sd, flagged):
    fit = quiet("y ~ x | re: (layer2.bias | id)", binary(60, rows, sd, 0.0), hidden=(3,), epochs=150)
    assert ("penalised_bias" in {flag.code for flag in fit.flags}) is flagged


@pytest.mark.parametrize("words", ["bias", "last"])
@pytest.mark.parametrize("what", ["input", "person", "both"])
def test_levels_that_are_separated_are_told_and_have_no_standard_errors(words, what):
    g = np.random.default_rng(0)
    frame = pd.DataFrame({"x": g.normal(size=90), "id": np.repeat(np.arange(10), 9)})
    y = {"input": frame.x > 0, "person": frame.id % 2 == 0, "both": (frame.x > 0) | (frame.id == 3)}[what]
    fit = quiet(f"y ~ x | re: ({words} | id)", frame.assign(y=y), epochs=20)
    assert [flag.code for flag in fit.flags] == ["separated"]
    assert not fit.converged
    assert fit.bse.isna().all()
    assert fit.predict(frame.assign(y=y)).notna().all(axis=None)
