"""t errors: the distribution, the maxima, their degrees of freedom, through the door."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.stats import t as student

import mixmoe as mm
from mixmoe.errors import ArgumentError, BoundaryWarning
from mixmoe.mixed.model import MEMoE
from mixmoe.responses.distribution import Outcome
from mixmoe.responses.exponential import Gaussian, StudentT
from mixmoe.varying.em_steps import own_natural
from mixmoe.varying.leave_one_out import response_nodes
from mixmoe.varying.local_likelihood import complete_scores
from mixmoe.varying.model import VCMoE
from tests.varying.helpers import check_derivatives

FORMULA = "y ~ x | gate: z | vary: u"


def heavy(n: int, seed: int, df: float = 3.0, experts: int = 2) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    u, x, z = rng.uniform(size=n), rng.normal(size=n), rng.normal(size=n)
    first = (rng.uniform(size=n) < 1.0 / (1.0 + np.exp(-0.2 - 0.5 * z))) | (experts == 1)
    mean = np.where(first, 1.5 + 0.7 * np.cos(3.0 * u) + 0.5 * x, -1.2 + 0.5 * u - 0.4 * x)
    return pd.DataFrame({"y": mean + 0.4 * rng.standard_t(df, size=n), "x": x, "z": z, "u": u})


@pytest.fixture(scope="module")
def data():
    return heavy(500, 3)


@pytest.fixture(scope="module")
def fit(data):
    return VCMoE(FORMULA, data, errors_dist="t", bandwidth=0.35, n_grid=12).fit(rng=1, starts=4)


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    y, eta, delta = rng.normal(size=40) * 3.0, rng.normal(size=(2, 40)), rng.normal(size=(2, 40)) * 0.3
    family = StudentT(df=3.5)
    return family, Outcome(y, np.ones(40), family.constant(y, np.ones(40))), eta, delta


def test_distribution_is_that_of_scipy(points):
    family, out, eta, delta = points
    law = student(3.5, eta, np.exp(delta))
    np.testing.assert_allclose(family.log_density(out, eta, delta), law.logpdf(out.y), rtol=1e-12)
    np.testing.assert_allclose(family.cdf(out.y, eta, delta, out.trials), law.cdf(out.y), rtol=1e-10)
    np.testing.assert_allclose(family.sf(out.y, eta, delta, out.trials), law.sf(out.y), rtol=1e-10)
    np.testing.assert_allclose(family.variance(eta, delta, out.trials), law.var(), rtol=1e-12)
    assert np.isinf(StudentT(df=2.0).variance(eta, delta, out.trials)).all()
    lost = student.logpdf(0.0, 3.5) - student.logpdf((out.y - eta) / np.exp(delta), 3.5)
    np.testing.assert_allclose(family.deviance(out, eta, delta), 2.0 * lost, rtol=1e-10)
    draws = family.draw(np.random.default_rng(1), np.full(20_000, 1.0), np.full(20_000, np.log(2.0)), np.ones(1))
    np.testing.assert_allclose(np.quantile(draws, [0.1, 0.5, 0.9]), student.ppf([0.1, 0.5, 0.9], 3.5, 1, 2), atol=0.1)


def test_derivatives_are_those_of_the_density(points):
    family, out, eta, delta = points
    parts = check_derivatives(family, out, eta, delta, rtol=1e-6)
    np.testing.assert_allclose(family.curvature(out, eta, delta).weight, parts.eta_eta)


def test_many_degrees_of_freedom_are_normal(points):
    _, out, eta, delta = points
    wide, normal = StudentT(df=1e9), Gaussian()
    for name in ("log_density", "derivatives", "scoring", "third"):
        a, b = (getattr(family, name)(_own(out, family), eta, delta) for family in (wide, normal))
        pairs = [(a, b)] if isinstance(a, np.ndarray) else zip(_arrays(a), _arrays(b), strict=True)
        for one, other in pairs:
            np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-5)


def _own(out, family):
    return Outcome(out.y, out.trials, family.constant(out.y, out.trials))


def _arrays(record):
    return list(record) if isinstance(record, tuple) else [getattr(record, n) for n in type(record).__slots__]


def test_constants_are_the_t_mixture_of_the_other_family(data):
    options = {"errors_dist": "t", "errors_df": 4.0}
    varying = VCMoE(FORMULA, data, bandwidth=np.inf, dispersion="const", **options).fit(rng=0, tol=1e-8)
    plain = MEMoE("y ~ x | gate: z", data, errors_by="common", **options).fit(rng=0)
    assert varying.llf == pytest.approx(plain.llf, abs=1e-5)
    assert varying.df_model == 8.0
    names = [n for n in varying.params.index if n in plain.params.index]
    assert len(names) == 8
    np.testing.assert_allclose(varying.params[names], plain.params[names], atol=1e-4)


def test_degrees_of_freedom_are_at_the_maximum_of_the_likelihood(data):
    fit = VCMoE(FORMULA, data, bandwidth=np.inf, dispersion="const", errors_dist="t").fit(rng=0, tol=1e-8)
    p, x, z = fit.params, data["x"].to_numpy(), data["z"].to_numpy()
    names = ["expert1.Intercept", "expert1.x", "expert2.Intercept", "expert2.x", "gate2.Intercept", "gate2.z"]

    def minus(b):
        first, second = (student.pdf(data["y"], b[8], b[2 * k] + b[2 * k + 1] * x, b[6 + k]) for k in (0, 1))
        share = 1.0 / (1.0 + np.exp(-(b[4] + b[5] * z)))
        return -float(np.log((1.0 - share) * first + share * second).sum())

    start = np.concatenate([p[names], p[["sigma1", "sigma2"]], [fit.model.estimated_shape]])
    best = minimize(minus, start, method="BFGS", options={"gtol": 1e-6})
    assert fit.llf == pytest.approx(-minus(start), abs=1e-8)
    assert -best.fun == pytest.approx(fit.llf, abs=1e-5)
    np.testing.assert_allclose(best.x, start, rtol=5e-3)
    assert fit.df_model == 9.0


def test_one_expert_is_the_maximum_of_the_local_likelihood():
    data = heavy(200, 5, experts=1)
    fit = VCMoE("y ~ x | vary: u", data, 1, errors_dist="t", errors_df=4.0, bandwidth=0.4, n_grid=9).fit(rng=0)
    problem = fit.model.problem
    for g in (0, 4, 8):
        t = (problem.rows.index - problem.windows.grid[g]) / 0.4
        kernel = 0.75 * np.clip(1.0 - t * t, 0.0, None)
        x = np.hstack([problem.rows.design, problem.rows.design * t[:, None]])

        def minus(b, kernel=kernel, x=x, t=t):
            scale = np.exp(b[4] + b[5] * t)
            return -float(kernel @ student.logpdf(problem.rows.outcome.y, 4.0, x @ b[:4], scale))

        start = np.concatenate([fit.model.coef[g, 0, :2], fit.model.coef[g, 1, :2], fit.model.coef[g, :, 2]])
        best = minimize(minus, start, method="BFGS", options={"gtol": 1e-8})
        np.testing.assert_allclose(best.x, start, atol=1e-5)


def test_functions_stand_outliers():
    u = np.linspace(0.1, 0.9, 9)
    truth, data = 1.5 + 0.7 * np.cos(3.0 * u), heavy(300, 2, 1e6, 1)
    spoiled = data.assign(y=np.where(np.arange(len(data)) % 20 == 0, data["y"] + 15.0, data["y"]))
    errors = []
    for dist in ("normal", "t"):
        fit = VCMoE("y ~ x | vary: u", spoiled, 1, bandwidth=0.35, n_grid=12, errors_dist=dist, dispersion="const")
        found = fit.fit(rng=1).functions(u).query("coefficient == 'expert1.Intercept'")["estimate"].to_numpy()
        errors.append(np.abs(found - truth).max())
    assert errors[1] < 0.15 < errors[0]


def test_normal_errors_have_a_flag():
    data = heavy(300, 1, 1e6, 1)
    data = data.assign(y=data["x"] + np.random.default_rng(0).uniform(-1.0, 1.0, 300))
    model = VCMoE("y ~ x | vary: u", data, 1, errors_dist="t", bandwidth=0.5, n_grid=12)
    with pytest.warns(BoundaryWarning, match="errors_dist='normal' does"):
        fit = model.fit(rng=0)
    normal = VCMoE("y ~ x | vary: u", data, 1, bandwidth=0.5, n_grid=12).fit(rng=0)
    assert fit.llf == pytest.approx(normal.llf, abs=0.2)


def test_nodes_have_the_second_moment_of_the_scores(fit):
    problem = fit.model.problem
    natural = own_natural(problem, fit.model.coef)
    squares = sum(
        n.weight * complete_scores(problem, n.outcome, natural).score ** 2 for n in response_nodes(problem, natural)
    )
    family, row = problem.family, 7
    eta, scale, prob = natural.eta[:, row], np.exp(natural.delta[:, row]), np.exp(natural.log_gate[:, row])
    y = np.linspace(-60.0, 60.0, 240_001)
    density = prob[:, None] * student.pdf(y, family.df, eta[:, None], scale[:, None])
    z = (y - eta[:, None]) / scale[:, None]
    score = density / density.sum(axis=0) * (family.df + 1.0) / (family.df + z * z) * z / scale[:, None]
    wanted = (score**2 * density.sum(axis=0)).sum(axis=1) * (y[1] - y[0])
    np.testing.assert_allclose(squares[:2, row], wanted, rtol=0.05)


def test_through_the_door(fit, data, tmp_path):
    assert fit.model.estimated_shape == pytest.approx(3.0, abs=1.5)
    assert f"t, df {fit.model.estimated_shape:.3g} (estimated)" in str(fit.summary())
    fit.save(tmp_path / "fit.mixmoe")
    again = mm.load(tmp_path / "fit.mixmoe")
    assert again.llf == fit.llf
    pd.testing.assert_frame_equal(again.predict(data.head(4)), fit.predict(data.head(4)))
    pd.testing.assert_frame_equal(again.functions(), fit.functions())
    assert fit.loglik_of(data) == pytest.approx(fit.llf, abs=1e-6)
    assert np.isfinite(fit.test_varying("expert1.x", method="asymptotic").pvalue)
    places = fit.resid("quantile")
    assert abs(float(np.quantile(places, 0.975)) - 1.96) < 0.35


def test_limits_of_a_response_are_those_of_t():
    data = heavy(200, 5, experts=1)
    fit = VCMoE("y ~ x | vary: u", data, 1, errors_dist="t", errors_df=4.0, bandwidth=0.4).fit(rng=0)
    found = fit.predict(data.head(3), kind="mean", interval="prediction")
    natural = own_natural(fit.model.problem, fit.model.coef)
    back = np.argsort(fit.model.data.order)
    scale = np.exp(natural.delta[0, back][:3])
    np.testing.assert_allclose(found["mean_high"] - found["mean"], student.ppf(0.975, 4.0) * scale, rtol=1e-6)
    np.testing.assert_allclose(found["mean_se"], np.sqrt(2.0) * scale, rtol=1e-9)
    assert fit.model.estimated_shape is None
    assert "t, df 4" in str(fit.summary())


@pytest.mark.parametrize("experts", [1, 2])
def test_a_bandwidth_is_found(experts):
    data = heavy(150, 7, experts=experts)
    model = VCMoE(FORMULA if experts > 1 else "y ~ x | vary: u", data, experts, errors_dist="t", dispersion="const")
    found = model.select_bandwidth(0, candidates=[0.3, 0.5], folds=None if experts == 1 else 2)
    assert np.isfinite(found.table["criterion"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"errors_dist": "cauchy"}, "errors_dist must be one of"),
        ({"errors_df": 4.0}, "errors_df=4.0 is for errors_dist='t'"),
        ({"errors_dist": "t", "errors_df": -1.0}, "errors_df must be"),
        ({"errors_dist": "t", "family": "poisson"}, "errors_dist='t' is for family='gaussian'"),
    ],
)
def test_what_t_errors_do_not_take(data, options, message):
    with pytest.raises(ArgumentError, match=message):
        VCMoE(FORMULA, data.assign(y=np.arange(len(data)) % 3), **options)
