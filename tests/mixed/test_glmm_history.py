"""Predictions given a history against dense grids of the random effects, with densities from SciPy.

Nothing of what is tested is used: the posterior of the random effects of every expert is a table over a fine grid in
one or two dimensions, and means, standard deviations, quantiles and distribution functions are weighted sums over it.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import norm

import mixmoe as mm
from mixmoe.errors import ApproximationWarning
from tests.fits import carried

FAMILIES = ("binomial", "poisson", "negbinomial", "gamma", "beta", "ordinal", "zinegbinomial")
PROBABILITIES = {"zinegbinomial": 1e-3}  # 25 points under a density that zeros make flat at its top; else 1e-4
BAR = 0.01  # of the value; limits of counts are whole numbers and must agree


def simulated(family, q, n_subjects=150, seed=0):
    """Two groups of subjects with four visits."""
    rng = np.random.default_rng(seed)
    subject, visit = np.repeat(np.arange(n_subjects), 4), np.tile(np.arange(4.0), n_subjects)
    z = rng.normal(size=n_subjects)
    high = (rng.random(n_subjects) < expit(z))[subject]
    b = rng.normal(size=(n_subjects, 2)) * [1.3, 0.4 if q == 2 else 0.0]
    eta = -1.0 + 2.0 * high + 0.15 * visit + b[subject, 0] + b[subject, 1] * visit
    trials, log_time = rng.integers(1, 6, len(eta)), rng.uniform(-0.5, 0.5, len(eta))
    share = expit(eta)
    y = {
        "binomial": lambda: rng.binomial(trials, share),
        "poisson": lambda: rng.poisson(np.exp(eta + log_time)),
        "negbinomial": lambda: rng.poisson(np.exp(eta + log_time) * rng.gamma(3.0, 1 / 3, len(eta))),
        "zinegbinomial": lambda: (
            rng.poisson(np.exp(eta + log_time) * rng.gamma(3.0, 1 / 3, len(eta)))
            * (rng.random(len(eta)) > 0.15 + 0.3 * high)
        ),
        "gamma": lambda: rng.gamma(4.0, np.exp(eta) / 4.0),
        "beta": lambda: np.clip(rng.beta(15 * share, 15 * (1 - share)), 1e-4, 1 - 1e-4),
        "ordinal": lambda: 1 + (eta[:, None] + rng.logistic(size=(len(eta), 1)) > [-0.5, 0.5, 2.0]).sum(axis=1),
    }[family]()
    columns = {"id": subject, "t": visit, "z": z[subject], "y": y, "n": trials, "lt": log_time}
    return pd.DataFrame(columns)


COUNTS = ("poisson", "negbinomial", "zinegbinomial")
OPTIONS = {"binomial": {"trials": "n"}} | {name: {"offset": "lt"} for name in COUNTS}


# Coefficients, of the gate too, standard deviations, theta, probabilities of certain zeros: a search would take longer.
START = {1: [-0.5, 0.15, 1.3, 3.0, 0.3], 2: [1.0, 0.15, -1.0, 0.15, 0.0, -1.0, 1.2, 1.2, 3.0, 3.0, 0.4, 0.15]}


@pytest.fixture(scope="module")
def fitted():
    """Fits by family, experts and random effects; how good they are does not matter."""
    kept = {}

    def fit(family, experts, q, n_quad=1):
        key = (family, experts, q, n_quad)
        if key not in kept:
            gate, re = " | gate: z" if experts > 1 else "", "1 + t" if q == 2 else "1"
            data = simulated(family, q)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                options = {"family": family, "n_quad": n_quad, "max_iter": 15, "cov_type": "nonrobust"}
                formula, given = f"y ~ t{gate} | re: ({re} | id)", OPTIONS.get(family, {})
                if family == "zinegbinomial":
                    there = {"start": START[experts], "starts": 0}
                    kept[key] = mm.fit(formula, data, experts, **options, **given, **there)
                else:
                    kept[key] = carried(formula, data, experts, **options, **given)
        return kept[key]

    return fit


@dataclass
class Inflated:
    """A distribution of SciPy beside zeros that are certain."""

    zeros: float
    base: object

    def mean(self):
        return (1.0 - self.zeros) * self.base.mean()

    def logpmf(self, y):
        return np.log(self.zeros * (y == 0) + (1.0 - self.zeros) * self.base.pmf(y))

    def cdf(self, y):
        return self.zeros * (y >= 0) + (1.0 - self.zeros) * self.base.cdf(y)


def distribution(fit, k, eta, trials):
    """The response distribution of an expert, from those of SciPy."""
    family, params = fit.model.settings["family"], fit.model.user(fit.em.params)
    size = np.exp(params.extra[0, k, 0]) if params.extra.shape[2] else None
    mu = np.exp(eta) if family in (*COUNTS, "gamma") else expit(eta)
    return {
        "binomial": lambda: stats.binom(trials, mu),
        "poisson": lambda: stats.poisson(mu),
        "negbinomial": lambda: stats.nbinom(size, size / (size + mu)),
        "zinegbinomial": lambda: Inflated(fit.params[f"zeros{k + 1}"], stats.nbinom(size, size / (size + mu))),
        "gamma": lambda: stats.gamma(size, scale=mu / size),
        "beta": lambda: stats.beta(mu * size, (1 - mu) * size),
    }[family]()


def cuts(fit, k):
    """Thresholds of an ordinal expert as reported, with the infinite ones."""
    names = [name for name in fit.params.index if name.startswith(("cut", "step"))]
    K = fit.model.n_experts
    mine = [name for name in names if name.startswith(f"cut{k + 1 if K > 1 else ''}(") or K == 1]
    return np.array([-np.inf, *fit.params[mine], np.inf])


def category_table(fit, k, eta):
    """Probabilities of the categories where the expert has no intercept, shape (C, ...)."""
    c = cuts(fit, k)
    above = expit(np.asarray(eta)[None] - c.reshape(-1, *[1] * np.ndim(eta)))
    return above[:-1] - above[1:]


def mean_of(fit, k, eta, trials):
    if fit.model.settings["family"] != "ordinal":
        return distribution(fit, k, eta, trials).mean()
    return np.tensordot(np.arange(1.0, 5.0), category_table(fit, k, eta), axes=1)


def log_density(fit, k, y, eta, trials):
    if fit.model.settings["family"] == "ordinal":
        return np.log(category_table(fit, k, eta)[int(y) - 1])
    law = distribution(fit, k, eta, trials)
    return law.logpmf(y) if fit.model.response.response.discrete else law.logpdf(y)


def cdf(fit, k, y, eta, trials):
    if fit.model.settings["family"] == "ordinal":
        return category_table(fit, k, eta)[: max(int(y), 0)].sum(axis=0)
    return distribution(fit, k, eta, trials).cdf(y)


@dataclass
class Dense:
    """Predictors of one row over experts and grid, what they weigh, and how wide their cells are."""

    eta: list
    mass: np.ndarray
    within: np.ndarray
    width: list


def predictor(fit, k, rows):
    """Fixed part for rows; of ordinal experts without the intercept, which thresholds hold."""
    beta = fit.model.user(fit.em.params).beta[0, k]
    intercept = 0.0 if fit.model.settings["family"] == "ordinal" else beta[0]
    offset = rows["lt"].to_numpy() if "offset" in fit.model.design.aux else 0.0
    return intercept + beta[1] * rows["t"].to_numpy() + offset


def dense(fit, past, row, points):
    """The posterior of a row's predictor given the past of its subject, by brute force."""
    params, q = fit.model.user(fit.em.params), fit.model.structure.n_random
    w = np.array([1.0, row["z"].iloc[0]])[: fit.model.design.gate.shape[1]]
    gate = np.concatenate([[0.0], params.gamma[0] @ w])
    etas, logs, widths = [], [], []
    into = np.array([1.0, row["t"].iloc[0]])[:q]
    for k in range(fit.model.n_experts):
        box = [(-9.0, 9.0)] * q
        for n in (101, points):  # first to see where the posterior is
            axes = [np.linspace(*ends, n) for ends in box]
            steps = np.array([axis[1] - axis[0] for axis in axes])
            u = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(q, -1)
            log = log_posterior(fit, k, past, u)
            near = u[:, log > log.max() - 25.0]
            box = list(zip(near.min(axis=1) - 2 * steps, near.max(axis=1) + 2 * steps, strict=True))
        etas.append(predictor(fit, k, row)[0] + into @ params.factor[0, k] @ u)
        widths.append(np.sqrt(((into @ params.factor[0, k] * steps) ** 2).sum()))
        logs.append(log + gate[k] + np.log(steps).sum())
    mass = np.exp(np.array(logs) - np.max(logs))
    within = np.exp(np.array(logs) - np.max(logs, axis=1, keepdims=True))  # also of experts without mass to all digits
    return Dense(etas, mass / mass.sum(), within / within.sum(axis=1, keepdims=True), widths)


def log_posterior(fit, k, past, u):
    """Log density of random effects T u and responses under an expert, up to a constant that experts share."""
    log = -0.5 * (u**2).sum(axis=0)
    if past is None:
        return log
    b = fit.model.user(fit.em.params).factor[0, k] @ u
    for eta, t, y, n in zip(predictor(fit, k, past), past["t"], past["y"], past["n"], strict=True):
        log = log + log_density(fit, k, y, eta + np.array([1.0, t])[: len(u)] @ b, n)
    return log


def below(d, k, eta):
    """Mass of an expert at predictors below `eta`: every point spread over its cell by a kernel of fourth order."""
    away = (eta - d.eta[k]) / d.width[k]
    return d.mass[k] @ (norm.cdf(away) + 0.5 * away * norm.pdf(away))


def quantile(fit, d, of, level):
    """Quantile of an increasing function of the predictor, which may differ between experts."""
    eta = np.linspace(min(map(np.min, d.eta)), max(map(np.max, d.eta)), 20_001)
    tables = [of(k, eta) for k in range(len(d.eta))]

    def excess(place):  # place on the scale of the first expert
        value = np.interp(place, eta, tables[0])
        places = [place, *(np.interp(value, table, eta) for table in tables[1:])]
        return sum(below(d, k, at) for k, at in enumerate(places)) - level

    return np.interp(brentq(excess, eta[0], eta[-1], xtol=1e-7), eta, tables[0])


def exact(fit, past, row, points):
    """Mean, standard deviation and limits of the expected response, and the probabilities of the experts."""
    d, n = dense(fit, past, row, points), row["n"].iloc[0]

    def of(k, eta):
        return mean_of(fit, k, eta, n)

    mu = np.array([of(k, eta) for k, eta in enumerate(d.eta)])
    mean = (d.mass * mu).sum()
    se = np.sqrt((d.mass * (mu - mean) ** 2).sum())
    limits = [quantile(fit, d, of, level) for level in (0.025, 0.975)]
    return np.array([mean, se, *limits]), d.mass.sum(axis=1)


HISTORIES = ("low", "one", "drawn", "eight")


def history(family, kind, data):
    """Past rows of subject 9999: all at the least value, one row, four as drawn, eight at a high value."""
    rows = data[data["id"] == 3].reset_index(drop=True)
    if kind == "one":
        rows = rows.iloc[:1].copy()
    elif kind == "eight":
        rows = pd.concat([rows, rows.assign(t=rows["t"] + 4.0)], ignore_index=True)
        rows["y"] = {"binomial": rows["n"], "ordinal": 4, "beta": 0.95}.get(family, 6)
    elif kind == "low":
        rows["y"] = {"gamma": 0.05, "beta": 0.02, "ordinal": 1}.get(family, 0)
    return rows.assign(id=9999)


def future(past, t=5.0):
    return past.iloc[:1].assign(t=t, n=3, lt=0.2)


@pytest.mark.parametrize("experts", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_means_errors_and_limits_are_those_of_a_dense_grid(fitted, family, experts):
    fit = fitted(family, experts, 1)
    for kind in HISTORIES:
        past = history(family, kind, simulated(family, 1))
        new = future(past)
        shown = fit.predict(new.drop(columns="y"), history=past, interval="confidence")
        right, probabilities = exact(fit, past, new, 801)
        np.testing.assert_allclose(shown[["mean", "mean_se", "mean_low", "mean_high"]].iloc[0], right, rtol=0.3 * BAR)
        close = PROBABILITIES.get(family, 1e-4)
        np.testing.assert_allclose(shown.filter(like="probability").iloc[0], probabilities, rtol=close, atol=1e-6)


@pytest.mark.parametrize(("family", "experts"), [("binomial", 2), ("poisson", 1), ("gamma", 2), ("ordinal", 1)])
def test_two_random_effects(fitted, family, experts):
    fit = fitted(family, experts, 2)
    for kind in ("low", "eight"):
        past = history(family, kind, simulated(family, 2))
        new = future(past, t=4.0)
        shown = fit.predict(new.drop(columns="y"), history=past, interval="confidence")
        right, probabilities = exact(fit, past, new, 161)
        np.testing.assert_allclose(shown[["mean", "mean_se", "mean_low", "mean_high"]].iloc[0], right, rtol=0.5 * BAR)
        np.testing.assert_allclose(shown.filter(like="probability").iloc[0], probabilities, rtol=2e-3, atol=1e-5)


def distribution_at(fit, past, row, y, points=801):
    """``P(Y <= y)`` of a row given the past of its subject."""
    d, n = dense(fit, past, row, points), row["n"].iloc[0]
    return sum(d.mass[k] @ cdf(fit, k, y, eta, n) for k, eta in enumerate(d.eta))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("family", "experts"), [(f, 1 + i % 2) for i, f in enumerate(FAMILIES)])
def test_limits_of_responses(fitted, family, experts, known):
    fit, data = fitted(family, experts, 1), simulated(family, 1)
    past = history(family, "low", data)
    new = future(past)
    given = past if known else past.assign(id=77_777)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nobody in the history is predicted
        shown = fit.predict(new, kind="subject", history=given, interval="prediction").iloc[0]
    before = past if known else None
    for name, level in (("mean_low", 0.025), ("mean_high", 0.975)):
        at = distribution_at(fit, before, new, shown[name])
        if fit.model.response.response.discrete:
            assert distribution_at(fit, before, new, shown[name] - 1) < level + 1e-5
            assert at > level - 1e-5
        else:
            np.testing.assert_allclose(at, level, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "q"), [("poisson", 1), ("poisson", 2), ("negbinomial", 1), ("gamma", 1), ("ordinal", 1)]
)
@pytest.mark.parametrize("given", ["history", "covariates"])
def test_quantile_residuals_lie_in_their_exact_intervals(fitted, family, q, given):
    fit, data = fitted(family, 1, q), simulated(family, q)
    residuals = fit.resid("quantile", given=given, rng=0).to_numpy()
    for row in [*range(0, 12), *range(300, 304)]:
        here = data.iloc[[row]]
        past = data[(data["id"] == here["id"].iloc[0]) & (data["t"] < here["t"].iloc[0])]
        past = None if given == "covariates" or past.empty else past
        y = here["y"].iloc[0]
        high = norm.ppf(min(distribution_at(fit, past, here, y, 121 if q == 2 else 801), 1.0))  # a sum may exceed one
        low = high
        if fit.model.response.response.discrete:
            low = norm.ppf(max(distribution_at(fit, past, here, y - 1, 121 if q == 2 else 801), 0.0))
        assert low - 2e-3 < residuals[row] < high + 2e-3


def test_fitted_values_and_random_effects_are_posterior_means(fitted):
    fit, data = fitted("poisson", 2, 1), simulated("poisson", 1)
    values, effects = fit.fitted().to_numpy(), fit.random_effects
    for subject in (0, 5, 100):
        mine = data[data["id"] == subject]
        for i in mine.index:
            np.testing.assert_allclose(values[i], exact(fit, mine, mine.loc[[i]], 801)[0][0], rtol=1e-4)
        for k in (0, 1):
            d = dense(fit, mine, mine.iloc[:1], 801)
            share = d.within[k]
            b = d.eta[k] - predictor(fit, k, mine.iloc[:1])[0]
            mean, part = share @ b, effects.loc[subject, f"expert{k + 1}"]
            np.testing.assert_allclose(part["Intercept"], mean, atol=1e-5)
            np.testing.assert_allclose(part["Intercept_se"], np.sqrt(share @ (b - mean) ** 2), rtol=1e-4)


def test_linear_predictors_have_the_quantiles_of_the_posterior(fitted):
    fit, data = fitted("binomial", 2, 1), simulated("binomial", 1)
    past = history("binomial", "low", data)
    new = future(past).assign(lt=0.0)
    shown = fit.predict(new, kind="subject", history=past, scale="link", interval="confidence").iloc[0]
    d = dense(fit, past, new, 1601)
    eta, mass = np.concatenate(d.eta), d.mass.ravel()
    mean = mass @ eta
    np.testing.assert_allclose(shown["mean"], mean, rtol=1e-4)
    np.testing.assert_allclose(shown["mean_se"], np.sqrt(mass @ (eta - mean) ** 2), rtol=1e-4)
    for name, level in (("mean_low", 0.025), ("mean_high", 0.975)):
        np.testing.assert_allclose(sum(below(d, k, shown[name]) for k in (0, 1)), level, atol=2e-4)


def test_probabilities_of_categories(fitted):
    fit = fitted("ordinal", 2, 1)
    past = history("ordinal", "low", simulated("ordinal", 1))
    new = future(past)
    shown = fit.predict(new, kind="subject", history=past, scale="categories", interval="confidence").iloc[0]
    d = dense(fit, past, new, 801)
    tables = [category_table(fit, k, eta) for k, eta in enumerate(d.eta)]
    for j in range(4):
        p = np.array([table[j] for table in tables])
        mean = (d.mass * p).sum()
        np.testing.assert_allclose(shown[f"P({j + 1})"], mean, rtol=1e-3)
        np.testing.assert_allclose(shown[f"P({j + 1})_se"], np.sqrt((d.mass * (p - mean) ** 2).sum()), rtol=1e-3)
        for limit, level in (("low", 0.025), ("high", 0.975)):
            at = d.mass[p <= shown[f"P({j + 1})_{limit}"]].sum()
            np.testing.assert_allclose(at, level, atol=4e-3)  # a point of the table weighs as much


def test_large_counts_of_strangers_are_placed_exactly():
    """The distribution function of a large count rises within a small part of the spread of the random effects."""
    rng = np.random.default_rng(3)
    subject = np.repeat(np.arange(60), 3)
    data = pd.DataFrame({"id": subject, "n": 1, "z": 0.0, "t": np.tile([0.0, 1, 2], 60)})
    data["y"] = rng.poisson(np.exp(7.0 + rng.normal(size=60))[subject])
    fit = mm.fit("y ~ t | re: (1 | id)", data, 1, family="poisson", rng=0)
    residuals = fit.resid("quantile", rng=0).to_numpy()
    for row in (0, 3, 6, 9):
        exactly = distribution_at(fit, None, data.iloc[[row]], data["y"].iloc[row], 20_001)
        np.testing.assert_allclose(norm.cdf(residuals[row]), exactly, atol=2e-3)
    high = fit.predict({"t": [0.0]}, kind="mean", interval="prediction")["mean_high"].iloc[0]
    np.testing.assert_allclose(distribution_at(fit, None, data.iloc[[0]], high, 20_001), 0.975, atol=1e-4)


@pytest.mark.parametrize("q", [3, 4])
def test_more_random_effects_against_draws_from_their_prior(q):
    rng = np.random.default_rng(2)
    subject, t = np.repeat(np.arange(80), 6), np.tile(np.linspace(-1.0, 1.0, 6), 80)
    x = rng.normal(size=480)
    b = rng.normal(size=(80, 4)) * [1.2, 0.8, 0.6, 0.5]
    columns = np.column_stack([np.ones(480), t, x, t * x])[:, :q]
    y = rng.poisson(np.exp(-0.3 + (columns * b[subject, :q]).sum(axis=1)))
    data = pd.DataFrame({"id": subject, "t": t, "x": x, "y": y})
    re = " + ".join(["1", "t", "x", "t:x"][:q])
    model = mm.MEMoE(f"y ~ 1 | re: ({re} || id)", data, 1, family="poisson")
    start = pd.Series([-0.3, 1.2, 0.8, 0.6, 0.5][: q + 1], index=model.layout.names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = model.fit(start=start, starts=0, max_iter=1, cov_type="nonrobust")
    past, new = data.iloc[:3].assign(y=[0, 0, 1]), data.iloc[[3]]
    if q == 4:
        with pytest.warns(ApproximationWarning, match="4 random effects is an approximation within a few per cent"):
            shown = fit.predict(new, kind="subject", history=past, interval="confidence").iloc[0]
    else:
        shown = fit.predict(new, kind="subject", history=past, interval="confidence").iloc[0]
    e = model.user(fit.em.params)
    draws = stats.qmc.MultivariateNormalQMC(np.zeros(q), seed=0).random(2**20) @ e.factor[0, 0].T
    mu = np.exp(e.beta[0, 0, 0] + draws @ columns[:4].T)
    weight = stats.poisson.pmf(past["y"].to_numpy(), mu[:, :3]).prod(axis=1)
    weight /= weight.sum()
    mean, order = weight @ mu[:, 3], np.argsort(mu[:, 3])
    cumulated = np.cumsum(weight[order])
    limits = [np.interp(level, cumulated, mu[order, 3]) for level in (0.025, 0.975)]
    right = [mean, np.sqrt(weight @ (mu[:, 3] - mean) ** 2), *limits]
    np.testing.assert_allclose(
        shown[["mean", "mean_se", "mean_low", "mean_high"]], right, rtol=0.015 if q == 3 else 0.03
    )
