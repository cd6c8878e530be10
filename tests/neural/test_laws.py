"""Counts, ordered categories and Gaussian responses of varying variance: densities, GLMMs, predictions, files."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import mixmoe as mm
from mixmoe.errors import ArgumentError, DesignError, FormulaError

torch = pytest.importorskip("torch")

from mixmoe.neural.response_law import (  # noqa: E402
    curvature_root,
    mean_outputs,
    mean_slopes,
    row_loss,
    score,
    tails,
)

SCORES = (1.0, 2.0, 4.0)
EQUAL = 1e-6  # of log-likelihoods by the same quadrature
OUTPUTS = {"poisson": 1, "negbinomial": 2, "heteroscedastic": 2, "ordinal": 2}
RESPONSES = {
    "poisson": ("events", "", {"family": "poisson", "offset": "log_time"}),
    "negbinomial": ("n", "", {"family": "negbinomial", "offset": "log_time"}),
    "ordinal": ("grade", "", {"family": "ordinal"}),
    "gaussian": ("y", " | sigma: z", {}),
}


def drawn(family):
    """Outputs (2, 4, d) and responses (2, 4) of a family."""
    rng = np.random.default_rng(5)
    outputs = torch.tensor(rng.normal(size=(2, 4, OUTPUTS[family])))
    if family == "ordinal":
        return outputs, torch.tensor(rng.integers(0, 3, (2, 4)))
    y = rng.normal(size=(2, 4)) if family == "heteroscedastic" else rng.poisson(3.0, (2, 4)).astype(float)
    return outputs, torch.tensor(y)


def log_density(family, outputs, y):
    """By scipy."""
    eta, rest = outputs[..., 0].numpy(), outputs[..., 1:].numpy()
    y = y.numpy()
    if family == "poisson":
        return stats.poisson.logpmf(y, np.exp(eta))
    if family == "negbinomial":
        theta = np.exp(rest[..., 0])
        return stats.nbinom.logpmf(y, theta, theta / (theta + np.exp(eta)))
    if family == "heteroscedastic":
        return stats.norm.logpdf(y, eta, np.exp(rest[..., 0]))
    ends = np.stack([np.full(eta.shape, -np.inf), -eta, np.exp(rest[..., 0]) - eta, np.full(eta.shape, np.inf)], -1)
    F = stats.logistic.cdf(np.take_along_axis(ends, np.stack([y, y + 1], -1), -1))
    return np.log(F[..., 1] - F[..., 0])


@pytest.mark.parametrize("family", OUTPUTS)
def test_densities_are_those_of_scipy_and_twice_differentiable(family):
    outputs, y = drawn(family)
    np.testing.assert_allclose(-row_loss(family, outputs, y), log_density(family, outputs, y), rtol=1e-12)
    leaf = outputs.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda v: row_loss(family, v, y), leaf)
    assert torch.autograd.gradgradcheck(lambda v: row_loss(family, v, y), leaf)
    slope = torch.autograd.grad(-row_loss(family, leaf, y).sum(), leaf)[0]
    np.testing.assert_allclose(score(family, outputs, y), slope[..., :1], atol=1e-12)


@pytest.mark.parametrize("family", OUTPUTS)
def test_expected_curvature_and_slopes_of_means(family):
    outputs, _ = drawn(family)
    R = curvature_root(family, outputs)
    told = (R @ R.transpose(-1, -2)).numpy()
    support = np.arange(3 if family == "ordinal" else 400)
    if family == "heteroscedastic":
        sd = np.exp(outputs[..., 1].numpy())
        np.testing.assert_allclose(told[..., 0, 0], sd**-2, rtol=1e-12)
        np.testing.assert_allclose(told[..., 1, 1], 2.0)
    else:  # the outer product of scores, summed over all responses
        expected = np.zeros(told.shape)
        for value in support:
            y = torch.full(outputs.shape[:2], value, dtype=torch.int64 if family == "ordinal" else torch.float64)
            leaf = outputs.clone().requires_grad_(True)
            s = torch.autograd.grad(-row_loss(family, leaf, y).sum(), leaf)[0].numpy()
            expected += np.exp(log_density(family, outputs, y))[..., None, None] * s[..., None] * s[..., None, :]
        seen = slice(None) if family == "ordinal" else slice(1)  # that of theta has no closed form
        np.testing.assert_allclose(told[..., seen, seen], expected[..., seen, seen], rtol=1e-6, atol=1e-9)
    scores = SCORES if family == "ordinal" else ()
    step = 1e-6
    for k in range(OUTPUTS[family]):
        moved = torch.zeros_like(outputs)
        moved[..., k] = step
        ends = [mean_outputs(family, outputs + sign * moved, scores) for sign in (1, -1)]
        slopes = mean_slopes(family, outputs, scores)[..., k]
        np.testing.assert_allclose(slopes, (ends[0] - ends[1]) / (2 * step), atol=1e-7)


@pytest.mark.parametrize("family", ["negbinomial", "ordinal", "binary"])
def test_tails_are_sums_of_probabilities(family):
    if family == "binary":
        outputs, y = torch.tensor([[[0.3], [-1.0]]]), torch.tensor([[1.0, 0.0]])
        p = torch.sigmoid(outputs[..., 0])
        low = torch.stack([1 - p, p], -1).numpy()
    else:
        outputs, y = drawn(family)
        low = [torch.full(y.shape, v, dtype=y.dtype) for v in range(3 if family == "ordinal" else 400)]
        low = np.stack([np.exp(log_density(family, outputs, v)) for v in low], -1)
    found, at = tails(family, outputs, y).numpy(), y.numpy().astype(int)
    for index in np.ndindex(at.shape):
        p, k = low[index], at[index]
        np.testing.assert_allclose(found[index], [p[:k].sum(), p[: k + 1].sum(), p[k:].sum(), p[k + 1 :].sum()])


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    code = np.repeat(np.arange(24), 5)
    x, z, time = rng.normal(size=120) + 2.0, rng.normal(size=120), rng.uniform(0.5, 3.0, 120)
    b = 0.7 * rng.normal(size=24)
    rate = time * np.exp(0.5 + 0.4 * x + b[code])
    latent = 1.2 * x + 2.0 * b[code] + rng.logistic(size=120)
    return pd.DataFrame(
        {
            "id": code,
            "x": x,
            "z": z,
            "log_time": np.log(time),
            "events": rng.poisson(rate),
            "n": rng.poisson(rate * rng.gamma(2.0, 0.5, 120)),
            "grade": pd.cut(latent, [-99, 1.5, 2.5, 4, 99], labels=["none", "mild", "much", "all"]),
            "y": 5.0 + 3.0 * (x + b[code]) + np.exp(0.4 * z) * rng.normal(size=120),
        }
    )


def network(data, case, **options):
    response, extra, arguments = RESPONSES[case]
    given = {"hidden": (), "baselines": False, "rng": 0, "epochs": 300, **arguments, **options}
    return mm.fit(f"{response} ~ x | re: (last[1] | id){extra}", data, **given)


@pytest.fixture(scope="module")
def fits(data):
    return {case: network(data, case) for case in RESPONSES}


@pytest.mark.parametrize("case", RESPONSES)
def test_linear_network_is_the_generalised_mixed_model(data, fits, case):
    response, extra, arguments = RESPONSES[case]
    points = {} if case == "gaussian" else {"n_quad": 21}
    formula = f"{response} ~ x | re: (1 | id){extra}"
    peer = mm.fit(formula, data, experts=1, cov_type="nonrobust", **arguments, **points)
    fit = fits[case]
    assert fit.llf == pytest.approx(peer.llf, abs=EQUAL)
    assert fit.df_model == peer.df_model
    names = [
        n.replace("expert1.", "").replace("1(", "(").replace("1.", ".").removesuffix("1") for n in peer.params.index
    ]
    theirs = [peer.params.set_axis(names), peer.bse.set_axis(names)]
    np.testing.assert_allclose(fit.params, theirs[0][fit.params.index], rtol=2e-4, atol=1e-4)
    np.testing.assert_allclose(fit.bse, theirs[1][fit.bse.index], rtol=2e-3)
    np.testing.assert_allclose(fit.fitted("mean"), peer.predict(kind="mean")["mean"], rtol=2e-3)
    if case == "poisson":  # given a person's earlier rows, by other approximations of her posterior, and given none
        history, alone = (
            [found.resid("quantile", given=given, rng=0) for found in (fit, peer)]
            for given in ("history", "covariates")
        )
        assert np.corrcoef(*history)[0, 1] > 0.99
        np.testing.assert_allclose(*alone, atol=0.05)


def test_weights_multiply_log_densities(data):
    """Those of persons, of classes and of rows are columns; two of a row are the row twice."""
    weighted = data.assign(w=1 + data["id"] % 2)
    fit = network(weighted, "poisson", weights="w")
    peer = mm.fit(
        "events ~ x | re: (1 | id)", weighted, experts=1, family="poisson", offset="log_time", weights="w", n_quad=21,
        cov_type="nonrobust",
    )  # fmt: skip
    assert fit.llf == pytest.approx(peer.llf, abs=EQUAL)
    np.testing.assert_allclose(fit.params, peer.params, atol=1e-4)
    np.testing.assert_allclose(fit.bse, peer.bse, rtol=2e-3)
    twice = weighted.loc[weighted.index.repeat(weighted["w"])]
    with pytest.warns(mm.errors.AssumptionWarning):  # rows that are there twice
        assert network(twice, "poisson").llf == pytest.approx(fit.llf, abs=EQUAL)
    rows = weighted[weighted["id"] == 3].assign(id="new")
    np.testing.assert_allclose(
        fit.predict(rows, history=rows)["mean"], fit.predict(kind="subject")["mean"][rows.index], rtol=0.05
    )
    with pytest.raises(DesignError, match="'w'"):
        fit.predict(rows, history=rows.drop(columns="w"))


def test_varying_variance_is_the_dense_normal_density(data, fits):
    fit = fits["gaussian"]
    p, total = fit.params, 0.0
    for _, mine in data.groupby("id"):
        sd = p["sigma"] * np.exp(p["sigma.z"] * mine["z"])
        V = np.diag(sd**2) + p["sd(Intercept|id)"] ** 2
        total += stats.multivariate_normal.logpdf(mine["y"], p["Intercept"] + p["x"] * mine["x"], V)
    assert fit.llf == pytest.approx(total, abs=1e-8)
    predicted = fit.predict(data.iloc[:3], kind="subject", interval="prediction")
    confidence = fit.predict(data.iloc[:3], kind="subject", interval="confidence")
    noise = p["sigma"] * np.exp(p["sigma.z"] * data["z"].iloc[:3])
    np.testing.assert_allclose(predicted["mean_se"] ** 2, confidence["mean_se"] ** 2 + noise**2, rtol=1e-8)
    bare = fit.predict(data.drop(columns="z").iloc[:3], kind="mean", interval="confidence")
    np.testing.assert_allclose(bare, fit.predict(data.iloc[:3], kind="mean", interval="confidence"))
    with pytest.raises(DesignError, match="'z'"):
        fit.predict(data.drop(columns="z").iloc[:3], interval="prediction")


def test_limits_of_counts_hold_their_share(fits):
    """A stranger's count: drawn from the model that the fit says, with many draws of persons."""
    fit, rng = fits["negbinomial"], np.random.default_rng(1)
    p, row = fit.params, fit.model.frame.iloc[[0]]
    found = fit.predict(row, kind="mean", interval="prediction", alpha=0.2).iloc[0]
    draws = 40_000
    eta = p["Intercept"] + p["x"] * row["x"].iloc[0] + row["log_time"].iloc[0]
    rate = np.exp(eta + p["sd(Intercept|id)"] * rng.normal(size=draws)) * rng.gamma(p["theta"], 1 / p["theta"], draws)
    counts = rng.poisson(rate)
    assert found["mean"] == pytest.approx(counts.mean(), rel=0.05)
    low, high = found["mean_low"], found["mean_high"]
    assert low == np.floor(low)
    assert (counts < low).mean() <= 0.11
    assert (counts > high).mean() <= 0.11
    assert ((counts >= low) & (counts <= high)).mean() < 0.92


def test_exposure_multiplies_counts(fits):
    fit = fits["poisson"]
    rows = fit.model.frame.iloc[:4]
    doubled = rows.assign(log_time=rows["log_time"] + np.log(2.0))
    np.testing.assert_allclose(fit.predict(doubled)["mean"], 2.0 * fit.predict(rows)["mean"])
    with pytest.raises(DesignError, match="log_time"):
        fit.predict(rows.drop(columns="log_time"))


def test_ordered_categories_count_as_their_places(fits):
    fit = fits["ordinal"]
    rows = fit.model.frame.iloc[:5]
    p = fit.predict(rows, scale="categories")
    assert list(p) == ["P(none)", "P(mild)", "P(much)", "P(all)"]
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    np.testing.assert_allclose(fit.predict(rows)["mean"], p @ [1.0, 2.0, 3.0, 4.0])
    limits = fit.predict(rows, interval="confidence")
    assert ((limits["mean_low"] < limits["mean"]) & (limits["mean"] < limits["mean_high"])).all()
    assert set(np.ravel(fit.predict(rows, interval="prediction")[["mean_low", "mean_high"]])) <= {1.0, 2.0, 3.0, 4.0}


@pytest.mark.parametrize("case", RESPONSES)
def test_the_whole_slice(fits, case, tmp_path):
    fit = fits[case]
    r = fit.resid("quantile", rng=0)
    assert abs(r.mean()) < 0.3
    assert 0.75 < r.std() < 1.3
    drawn_rows = fit.simulate(rng=3)
    levels = fit.model.design.response_levels
    assert levels is None or set(np.ravel(drawn_rows)) <= set(levels)
    fit.save(tmp_path / "fit.json")
    again = mm.load(tmp_path / "fit.json")
    pd.testing.assert_frame_equal(again.predict(interval="prediction"), fit.predict(interval="prediction"))
    assert str(again.summary()) == str(fit.summary())
    frame = fit.model.frame
    history = fit.predict(frame[frame["id"] == 3].assign(id="new"), history=frame[frame["id"] == 3].assign(id="new"))
    known = fit.predict(frame[frame["id"] == 3], kind="subject")
    np.testing.assert_allclose(history["mean"], known["mean"], rtol=0.05)  # known ones at the mean of the posterior
    assert fit.curves("effects")


@pytest.mark.parametrize("case", ["negbinomial", "ordinal", "gaussian"])
def test_networks_with_hidden_layers(data, case):
    with pytest.warns(mm.errors.MixmoeWarning):  # few epochs
        fit = network(data, case, hidden=(3,), epochs=40, baselines=True)
    name = {"negbinomial": "theta", "ordinal": "step(mild|much)", "gaussian": "sigma"}[case]
    assert np.isfinite([fit.params[name], fit.bse[name]]).all()
    assert "this model" in str(fit.summary())
    assert np.isfinite(fit.predict(interval="prediction")).all(axis=None)


def test_counts_without_clumps_are_poisson(data):
    even = data.assign(n=np.random.default_rng(2).poisson(3.0, 120), events=lambda d: d["n"])
    with pytest.warns(mm.errors.BoundaryWarning, match="no more spread than Poisson"):
        fit = network(even, "negbinomial", offset=None)
    assert np.isnan(fit.bse["theta"])
    assert np.isfinite(fit.bse["x"])
    assert fit.llf == pytest.approx(network(even, "poisson", offset=None).llf, abs=1e-3)


def test_a_theta_of_covariates(data):
    fit = mm.fit("n ~ x | re: (0 | id) | sigma: z", data, hidden=(), family="nb", offset="log_time", rng=0)
    p = fit.params
    mu = fit.fitted("mean")
    theta = p["theta"] * np.exp(p["theta.z"] * data["z"])
    assert fit.llf == pytest.approx(stats.nbinom.logpmf(data["n"], theta, theta / (theta + mu)).sum(), abs=1e-6)


@pytest.mark.parametrize(
    ("formula", "options", "error", "words"),
    [
        ("y ~ x | re: (last[1] | id)", {"family": "poisson"}, DesignError, "needs counts"),
        ("y ~ x | re: (last[1] | id)", {"offset": "log_time"}, ArgumentError, "subtract it"),
        ("n ~ x | re: (last[1] | id) | sigma: z", {"family": "poisson"}, FormulaError, "has neither"),
        ("n ~ x | re: (last[1] | id)", {"family": "gamma"}, ArgumentError, "family must be one of"),
        ("n ~ x | re: (last[1] | id)", {"family": "poisson", "offset": "far"}, DesignError, "the offset is 99"),
        ("y ~ x | re: (last[1] | id)", {"weights": "n"}, ArgumentError, "whose variance they would change"),
        ("zero ~ x | re: (last[1] | id)", {"family": "poisson"}, DesignError, "is 0 in all"),
    ],
)
def test_what_does_not_go_together_is_refused(data, formula, options, error, words):
    with pytest.raises(error, match=words):
        mm.fit(formula, data.assign(far=99.0, zero=0), hidden=(), **options)


def test_rows_far_outside_the_data_are_told(data):
    with pytest.warns(mm.errors.MixmoeWarning):  # few epochs
        fit = network(data, "gaussian", hidden=(3,), epochs=20)
    rows = data.iloc[:3]
    fit.predict(rows.assign(x=data["x"].max() + 0.1))  # a little outside is no matter
    with pytest.warns(mm.errors.AssumptionWarning, match="'x' is 90 in rows to predict .1 of 3., far outside"):
        fit.predict(rows.assign(x=[2.0, 90.0, 2.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mm.errors.MixmoeWarning)  # of few starts, which need not agree
        mixture = mm.fit("y ~ nn(x) + z | re: (1 | id)", data, experts=1, hidden=(2,), rng=0, starts=2)
    mixture.predict(rows.assign(z=90.0))  # linear
    with pytest.warns(mm.errors.AssumptionWarning, match="far outside"):
        mixture.predict(rows.assign(x=-90.0))
