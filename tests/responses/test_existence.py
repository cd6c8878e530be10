"""Responses that do not vary: refused only where their likelihood has no maximum."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, gammaln

import mixmoe as mm
from mixmoe.errors import DesignError
from mixmoe.responses.distribution import Observed, check_maximum

N = 90


@pytest.fixture(scope="module")
def constant():
    rng = np.random.default_rng(4)
    d = pd.DataFrame({"x": rng.normal(size=N), "u": rng.uniform(size=N), "n": rng.integers(3, 30, N)})
    return d.assign(lo=np.log(rng.uniform(0.5, 8, N)), one=1, zero=0, all=d["n"], half=0.5, id=np.arange(N) // 3)


def newton(slope_weight, X, steps=30):
    """Maximiser of a concave log-likelihood from the slope and weight of each row."""
    beta = np.zeros(X.shape[1])
    for _ in range(steps):
        slope, weight = slope_weight(X @ beta)
        beta = beta + np.linalg.solve((X.T * weight) @ X, X.T @ slope)
    return beta


@pytest.mark.parametrize("re", ["", " | re: (1 | id)"])
@pytest.mark.filterwarnings("ignore::mixmoe.errors.BoundaryWarning")
def test_one_success_of_varying_trials_is_fitted(constant, re):
    d = constant
    X, n = np.column_stack([np.ones(N), d["x"]]), d["n"].to_numpy()
    beta = newton(lambda eta: (1 - n * expit(eta), n * expit(eta) * expit(-eta)), X)
    fit = mm.fit("one ~ x" + re, d, experts=1, family="binomial", trials="n")
    np.testing.assert_allclose(fit.params[["expert1.Intercept", "expert1.x"]], beta, atol=1e-4)
    if not re:
        eta = X @ beta
        np.testing.assert_allclose(fit.llf, (np.log(n) + eta - n * np.logaddexp(0, eta)).sum(), atol=1e-6)


@pytest.mark.parametrize("experts", [1, 2])
@pytest.mark.filterwarnings("ignore::mixmoe.errors.MixmoeWarning")
def test_one_event_in_varying_exposures_is_fitted(constant, experts):
    d = constant
    X, lo = np.column_stack([np.ones(N), d["x"]]), d["lo"].to_numpy()
    beta = newton(lambda eta: (1 - np.exp(lo + eta), np.exp(lo + eta)), X)
    best = (lo + X @ beta - np.exp(lo + X @ beta)).sum()
    fit = mm.fit("one ~ x", d, experts=experts, family="poisson", offset="lo", starts=4, rng=0)
    assert fit.llf >= best - 1e-6
    if experts == 1:
        np.testing.assert_allclose(fit.params.to_numpy(), beta, atol=1e-5)
        np.testing.assert_allclose(fit.llf, best, atol=1e-8)


def test_a_constant_gamma_response_in_varying_exposures_is_fitted(constant):
    fit = mm.fit("one ~ x", constant, experts=1, family="gamma", offset="lo")
    b0, b1, shape = fit.params.to_numpy()
    mu = np.exp(constant["lo"] + b0 + b1 * constant["x"])
    value = (shape * np.log(shape / mu) - shape / mu - gammaln(shape)).sum()
    np.testing.assert_allclose(fit.llf, value, atol=1e-6)
    np.testing.assert_allclose((1 / mu - 1).sum(), 0.0, atol=1e-4)  # the score of the intercept


@pytest.mark.parametrize(
    ("family", "column"), [("binomial", "n"), ("poisson", "lo"), ("negbinomial", "lo"), ("poisson", None)]
)
@pytest.mark.filterwarnings("ignore::mixmoe.errors.MixmoeWarning")
def test_constants_along_an_index_are_those_of_the_other_family(constant, family, column):
    option = {} if column is None else {"trials" if family == "binomial" else "offset": column}
    fit = mm.fit("one ~ x | vary: u", constant, experts=1, family=family, bandwidth=np.inf, **option)
    straight = mm.fit("one ~ x", constant, experts=1, family="poisson" if column == "lo" else family, **option)
    ceiling = 0.01 if family == "negbinomial" else 0.0  # theta, which is infinite here, ends at its ceiling
    np.testing.assert_allclose(fit.llf, straight.llf, atol=1e-5 + ceiling)


def test_a_line_through_the_origin_is_fitted_to_a_constant(constant):
    x = constant["x"].to_numpy()
    fit = mm.fit("one ~ 0 + x", constant, experts=1)
    np.testing.assert_allclose(fit.params["expert1.x"], x.sum() / (x @ x), atol=1e-6)


@pytest.mark.parametrize("end", ["", " | vary: u"])
@pytest.mark.parametrize(
    ("response", "options", "message"),
    [
        ("one", {}, r"'one' is 1 in all 90 rows; it must vary"),
        ("zero", {"family": "poisson"}, "'zero' is 0 in all 90 rows; .*without any events"),
        ("zero", {"family": "negbinomial"}, "'zero' is 0 in all 90 rows; .*without any events"),
        ("zero", {"family": "binomial", "trials": "n"}, "'zero' is 0 in all 90 rows; .*without any successes"),
        ("all", {"family": "binomial", "trials": "n"}, "'all' is the number of trials .*without any failures"),
        ("one", {"family": "binomial"}, "'one' is the number of trials .*without any failures"),
    ],
)
def test_responses_at_one_end_are_refused(constant, response, options, message, end):
    with pytest.raises(DesignError, match=message):
        mm.fit(f"{response} ~ x{end}", constant, experts=1, **options)


@pytest.mark.parametrize(("family", "response"), [("gamma", "one"), ("beta", "half"), ("gamma", "np.exp(1 + 2 * x)")])
def test_exact_responses_with_a_free_dispersion_are_refused(constant, family, response):
    d = constant.assign(r=np.exp(1 + 2 * constant["x"]) if "exp" in response else constant[response])
    with pytest.raises(DesignError, match="the expert columns reproduce the response 'r' exactly in all 90 rows"):
        mm.fit("r ~ x", d, experts=1, family=family)


def test_zeros_without_an_intercept_have_a_maximum():
    x = np.array([-1.0, 2.0, 1.0, -3.0])
    zeros = Observed("y", np.zeros(4), np.ones(4), np.zeros(4))
    check_maximum("poisson", zeros, x[:, None])
    with pytest.raises(DesignError, match="is 0 in all 4 rows"):
        check_maximum("poisson", zeros, np.column_stack([x > 0, x <= 0]).astype(float))  # levels add up to a constant


def test_a_constant_distal_outcome_is_refused():
    sim = mm.simulate.memoe("separated", n_subjects=60, rng=1)
    fit = mm.fit(sim.formula, sim.data, experts=2, rng=0, starts=4)
    outcomes = sim.data.drop_duplicates("id")[["id"]].assign(w=3.0)
    with pytest.raises(DesignError, match=r"'w' is 3 in all .* rows; it must vary"):
        fit.distal("w ~ expert", outcomes)


def test_responses_that_are_nearly_exact_are_fitted(constant):
    mean = np.exp(0.3 + 0.5 * constant["x"])
    data = constant.assign(r=mean * np.exp(0.02 * np.random.default_rng(1).normal(size=N)))
    fit = mm.fit("r ~ x", data, experts=1, family="gamma")
    np.testing.assert_allclose(fit.params[["expert1.Intercept", "expert1.x"]], [0.3, 0.5], atol=0.01)
