"""Zero-inflated counts: distribution, maxima against glmmTMB and dense likelihoods, means, bands, files."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.special import expit, gammaln
from scipy.stats import nbinom, poisson

import mixmoe as mm
from mixmoe.errors import BoundaryWarning, DesignError
from mixmoe.responses.distribution import Outcome
from mixmoe.responses.exponential import NegativeBinomial, Poisson
from mixmoe.responses.zero_inflated import ZeroInflated, expected
from mixmoe.varying.em_steps import own_natural
from mixmoe.varying.function_frames import expert_target
from mixmoe.varying.identifiability import _certain_zeros
from mixmoe.varying.leave_one_out import response_nodes
from mixmoe.varying.local_likelihood import complete_scores
from mixmoe.varying.model import VCMoE
from tests.varying.helpers import check_derivatives

EPS = 1e-6
# glmmTMB 1.1.5 under R 4.2.2 for inflated(300, 1): y ~ x with ziformula = ~ 1, family poisson, and over ~ x, nbinom2:
# log-likelihood, intercept, x, probability of a certain zero, theta.
GLMMTMB = {
    "zipoisson": ("y", (-631.004134202, 1.463419530, 0.389147606, 0.305666278)),
    "zinegbinomial": ("over", (-668.145032587, 1.390683466, 0.493351780, 0.256371697, 1.861437950)),
}


def inflated(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    u, x = np.round(rng.uniform(size=n), 3), np.round(rng.normal(size=n), 3)
    mean = np.exp(1.2 + 0.5 * np.sin(4.0 * u) + 0.4 * x)
    certain = rng.uniform(size=n) < 0.15 + 0.3 * u
    y, over = rng.poisson(mean), rng.poisson(mean * rng.gamma(2.0, 0.5, n))
    return pd.DataFrame({"y": np.where(certain, 0, y), "over": np.where(certain, 0, over), "x": x, "u": u})


@pytest.fixture(scope="module")
def data():
    return inflated(300, 1)


@pytest.fixture(scope="module")
def fit(data):
    return VCMoE("y ~ x | vary: u", data, 1, family="zip", bandwidth=0.45, n_grid=12).fit(rng=0)


@pytest.fixture(params=["poisson", "negbinomial"])
def points(request):
    rng = np.random.default_rng(0)
    y = np.concatenate([np.zeros(15), rng.poisson(3.0, 25)]).astype(float)
    eta, delta = rng.normal(size=(2, 40)), rng.normal(size=(2, 40))
    base = Poisson() if request.param == "poisson" else NegativeBinomial()
    family = ZeroInflated(f"zi{request.param}", base, np.log(2.5))
    mu, pi = np.exp(eta), expit(delta)
    law = poisson(mu) if request.param == "poisson" else nbinom(2.5, 2.5 / (2.5 + mu))
    return family, Outcome(y, np.ones(40), family.constant(y, np.ones(40))), eta, delta, pi, law


def test_distribution_is_the_mixture_of_zero_and_the_base(points):
    family, out, eta, delta, pi, law = points
    wanted = pi * (out.y == 0.0) + (1.0 - pi) * law.pmf(out.y)
    np.testing.assert_allclose(family.log_density(out, eta, delta), np.log(wanted), rtol=1e-10)
    for y in (np.full(40, -1.0), np.zeros(40), np.full(40, 2.0)):
        below = np.where(y < 0.0, 0.0, pi + (1.0 - pi) * law.cdf(y))
        np.testing.assert_allclose(family.cdf(y, eta, delta, out.trials), below, atol=1e-12)
        np.testing.assert_allclose(family.sf(y, eta, delta, out.trials), 1.0 - below, atol=1e-12)
    mean = expected(family, eta, delta, out.trials)
    np.testing.assert_allclose(mean, (1.0 - pi) * law.mean(), rtol=1e-12)
    square = (1.0 - pi) * (law.var() + law.mean() ** 2)
    np.testing.assert_allclose(family.variance(mean, delta, out.trials), square - mean**2, rtol=1e-9)
    lost = family.deviance(out, mean, delta)
    np.testing.assert_allclose(lost[:, :15], -2.0 * np.log(wanted[:, :15]), rtol=1e-9)
    draws = family.draw(np.random.default_rng(1), np.full(20_000, 1.0), np.full(20_000, -0.5), np.ones(1))
    assert draws.mean() == pytest.approx((1.0 - expit(-0.5)) * np.e, rel=0.03)


def test_derivatives_are_those_of_the_density(points):
    family, out, eta, delta = points[:4]
    parts = check_derivatives(family, out, eta, delta, rtol=2e-6)
    np.testing.assert_allclose(family.curvature(out, eta, delta).slope, parts.eta)


@pytest.mark.parametrize("family", list(GLMMTMB))
def test_constants_are_those_of_glmmtmb(data, family):
    column, (loglik, intercept, slope, zeros, *theta) = GLMMTMB[family]
    model = VCMoE(f"{column} ~ x | vary: u", data, 1, family=family, bandwidth=np.inf, dispersion="const")
    fit = model.fit(rng=0, tol=1e-9)
    assert fit.llf == pytest.approx(loglik, abs=1e-5)
    np.testing.assert_allclose(fit.params, [intercept, slope, zeros], rtol=1e-3)
    assert list(fit.params.index) == ["expert1.Intercept", "expert1.x", "zeros1"]
    assert fit.df_model == 3.0 + len(theta)
    if theta:
        assert fit.model.estimated_shape == pytest.approx(theta[0], rel=5e-3)
    limits = fit.conf_int().loc["zeros1"].to_numpy()
    p, half = fit.params["zeros1"], 1.959964 * fit.bse["zeros1"]
    reach = half / (p * (1.0 - p))
    np.testing.assert_allclose(limits, expit(np.log(p / (1.0 - p)) + np.array([-reach, reach])), rtol=1e-5)
    wald = fit.wald_test(f"zeros1 = {float(limits[0])!r}")
    assert wald.pvalue == pytest.approx(0.05, abs=1e-4)  # limits and tests agree


def test_one_expert_is_the_maximum_of_the_local_likelihood(data):
    fit = VCMoE("y ~ x | vary: u", data, 1, family="zip", bandwidth=0.45, n_grid=9, estimate="local").fit(rng=0)
    problem = fit.model.problem
    y = problem.rows.outcome.y
    for g in (0, 4, 8):
        t = (problem.rows.index - problem.windows.grid[g]) / 0.45
        kernel = 0.75 * np.clip(1.0 - t * t, 0.0, None)
        x = np.hstack([problem.rows.design, problem.rows.design * t[:, None]])

        def minus(b, kernel=kernel, x=x, t=t):
            pi, mu = expit(b[4] + b[5] * t), np.exp(x @ b[:4])
            return -float(kernel @ np.log(pi * (y == 0.0) + (1.0 - pi) * np.exp(y * np.log(mu) - mu - gammaln(y + 1))))

        start = np.concatenate([fit.model.coef[g, 0, :2], fit.model.coef[g, 1, :2], fit.model.coef[g, :, 2]])
        best = minimize(minus, start, method="BFGS", options={"gtol": 1e-8})
        np.testing.assert_allclose(best.x, start, atol=2e-5)


def test_two_experts_are_at_a_maximum_of_the_likelihood():
    rng = np.random.default_rng(4)
    n = 400
    x, z, u = rng.normal(size=n), rng.normal(size=n), rng.uniform(size=n)
    first = rng.uniform(size=n) < expit(0.3 + z)
    mean = np.exp(np.where(first, 3.0 + 0.3 * x, 1.2 - 0.4 * x))
    y = np.where(rng.uniform(size=n) < np.where(first, 0.1, 0.3), 0, rng.poisson(mean))
    data = pd.DataFrame({"y": y, "x": x, "z": z, "u": u})
    model = VCMoE("y ~ x | gate: z | vary: u", data, family="zipoisson", bandwidth=np.inf, dispersion="const")
    fit = model.fit(rng=0, tol=1e-9)
    names = ["expert1.Intercept", "expert1.x", "expert2.Intercept", "expert2.x", "gate2.Intercept", "gate2.z"]

    def minus(b):
        rates = np.exp(b[0] + b[1] * x), np.exp(b[2] + b[3] * x)
        parts = [b[6 + k] * (y == 0) + (1.0 - b[6 + k]) * poisson.pmf(y, rates[k]) for k in (0, 1)]
        second = expit(b[4] + b[5] * z)
        return -float(np.log((1.0 - second) * parts[0] + second * parts[1]).sum())

    start = np.concatenate([fit.params[names], fit.params[["zeros1", "zeros2"]]])
    assert fit.llf == pytest.approx(-minus(start), abs=1e-8)
    best = minimize(minus, start, method="BFGS", options={"gtol": 1e-6})
    assert -best.fun == pytest.approx(fit.llf, abs=1e-5)


def test_means_are_those_of_all_counts(fit, data):
    found = fit.predict(data.head(5), interval="prediction")
    natural = own_natural(fit.model.problem, fit.model.coef)
    back = np.argsort(fit.model.data.order)
    eta, pi = natural.eta[0, back][:5], expit(natural.delta[0, back][:5])
    np.testing.assert_allclose(found["mean"], (1.0 - pi) * np.exp(eta), rtol=1e-10)
    np.testing.assert_allclose(fit.predict(data.head(5), kind="mean", scale="link")["mean"], eta, rtol=1e-10)
    mean = (1.0 - pi) * np.exp(eta)
    variance = (1.0 - pi) * (np.exp(eta) + np.exp(2.0 * eta)) - mean**2
    np.testing.assert_allclose(found["mean_se"], np.sqrt(variance), rtol=1e-9)
    for i, high in enumerate(found["mean_high"]):
        law = pi[i] + (1.0 - pi[i]) * poisson.cdf([high - 1.0, high], np.exp(eta[i]))
        assert law[0] < 0.975 <= law[1]
    bands = fit.bands("mean", at={"x": 0.0}, method="asymptotic")
    values = fit.functions().pivot(index="u", columns="coefficient", values="estimate")
    wanted = (1.0 - values["zeros1"]) * np.exp(values["expert1.Intercept"])
    np.testing.assert_allclose(bands["estimate"], wanted, rtol=1e-9)


def test_derivatives_of_means_by_the_functions(fit):
    problem, row = fit.model.problem, np.array([1.0, 0.7])
    levels = fit.model.coef[:, 0]
    target = expert_target(problem.slots, problem.family, levels, row)
    for slot in range(problem.slots.n):
        ends = []
        for sign in (1.0, -1.0):
            moved = levels.copy()
            moved[:, slot] += sign * EPS
            ends.append(expert_target(problem.slots, problem.family, moved, row).values[:, 0])
        np.testing.assert_allclose(target.jacobian[:, 0, slot], (ends[0] - ends[1]) / (2.0 * EPS), atol=1e-7)


@pytest.mark.parametrize("family", ["zip", "zinb"])
def test_through_the_door(data, family, tmp_path):
    column = {"zip": "y", "zinb": "over"}[family]
    model = VCMoE(f"{column} ~ x | vary: u", data, 1, family=family, bandwidth=0.5, n_grid=10)
    fit = model.fit(rng=0)
    values = fit.functions().query("coefficient == 'zeros1'")["estimate"]
    assert values.between(0.0, 1.0).all()
    bands = fit.bands(rng=0)
    part = bands[bands["coefficient"] == "zeros1"]
    for column in ("conf_low", "conf_high", "band_low", "band_high"):
        assert part[column].dropna().between(0.0, 1.0).all()
    assert part["std_error"].notna().any()
    text = str(fit.summary())
    assert "zeros" in text
    assert ("theta:" in text) == (family == "zinb")
    fit.save(tmp_path / "fit.mixmoe")
    again = mm.load(tmp_path / "fit.mixmoe")
    assert again.llf == fit.llf
    pd.testing.assert_frame_equal(again.functions(), fit.functions())
    pd.testing.assert_frame_equal(again.predict(data.head(3)), fit.predict(data.head(3)))
    assert fit.loglik_of(data) == pytest.approx(fit.llf, abs=1e-6)
    assert abs(float(np.quantile(fit.resid("quantile"), 0.9)) - 1.28) < 0.3


def test_nodes_have_the_second_moment_of_the_scores(fit):
    problem = fit.model.problem
    natural, row = own_natural(problem, fit.model.coef), 11
    nodes = response_nodes(problem, natural)
    np.testing.assert_allclose(sum(node.weight for node in nodes), 1.0, rtol=1e-12)
    squares = sum(node.weight * complete_scores(problem, node.outcome, natural).score ** 2 for node in nodes)
    y = np.arange(200.0)
    eta, delta = np.full((1, 200), natural.eta[0, row]), np.full((1, 200), natural.delta[0, row])
    out = Outcome(y, np.ones(200), problem.family.constant(y, np.ones(200)))
    parts, density = problem.family.derivatives(out, eta, delta), np.exp(problem.family.log_density(out, eta, delta))
    wanted = [(density * score**2).sum() for score in (parts.eta, parts.delta)]
    np.testing.assert_allclose(squares[:, row], wanted, rtol=1e-3)


def test_counts_without_more_zeros_have_a_flag():
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"y": rng.poisson(6.0, 300) + 1, "x": rng.normal(size=300), "u": rng.uniform(size=300)})
    model = VCMoE("y ~ x | vary: u", data, 1, family="zip", bandwidth=0.5, n_grid=10)
    with pytest.warns(BoundaryWarning, match="family='poisson' may do"):
        fit = model.fit(rng=0)
    plain = VCMoE("y ~ x | vary: u", data, 1, family="poisson", bandwidth=0.5, n_grid=10).fit(rng=0)
    assert fit.llf == pytest.approx(plain.llf, abs=0.1)


def test_a_bandwidth_is_found(data):
    found = VCMoE("y ~ x | vary: u", data, 1, family="zip").select_bandwidth(0, candidates=[0.3, 0.6])
    assert np.isfinite(found.table["criterion"]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"y": -1.0}, "a count 0, 1, 2"), ({"y": 0.5}, "a count 0, 1, 2"), ({"y": 0.0}, "is 0 in all")],
)
def test_responses_that_are_none(data, change, message):
    spoiled = (
        data.assign(y=change["y"])
        if change["y"] == 0.0
        else data.assign(y=data["y"].where(data.index > 0, change["y"]))
    )
    with pytest.raises(DesignError, match=message):
        VCMoE("y ~ x | vary: u", spoiled, 1, family="zip")


def test_probabilities_at_a_limit_are_said_one_by_one(data, fit):
    rng = np.random.default_rng(5)
    few = data.assign(y=rng.binomial(10, 0.3 + 0.2 * data["u"]))  # fewer zeros than Poisson counts have
    with pytest.warns(BoundaryWarning, match=r"at its least value, 0.0001, for .*family='poisson' may do\."):
        VCMoE("y ~ 1 | vary: u", few, 1, family="zip", bandwidth=0.45, n_grid=12).fit(rng=0)
    low = np.arange(12)[:, None] < 3
    flag = _certain_zeros(fit.model.problem, ~low & low, ~low, "u")
    assert "at its largest value, 0.9999, for expert 1 at u = " in flag.message
    assert "least" not in flag.message
    assert _certain_zeros(fit.model.problem, low & ~low, low & ~low, "u") is None
