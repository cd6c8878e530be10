"""What GLMM fits report: scales of prediction, residuals, flags, errors of input."""

import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.special import expit

import mixmoe as mm
from mixmoe.errors import ArgumentError, BoundaryWarning, DesignError, MixmoeWarning
from mixmoe.inference.likelihood_ratio import LRTest
from tests.fits import carried

FORMULA = "y ~ time + x1 | gate: z1 | re: (1 | id)"


def quiet(formula, data, experts=2, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        return carried(formula, data, experts, **options)


@pytest.fixture(scope="module")
def binary():
    return mm.simulate.memoe("binary", n_subjects=150, rng=4).data


@pytest.fixture(scope="module")
def count():
    data, rng = mm.simulate.memoe("count", n_subjects=80, rng=5).data, np.random.default_rng(1)
    share = rng.uniform(0.3, 1.0, len(data))  # a thinned Poisson variable is one of a smaller mean
    return data.assign(y=rng.binomial(data["y"].astype(int), share), exposure=np.log(share))


@pytest.fixture(scope="module")
def fitted(binary):
    return quiet(FORMULA, binary, family="binomial")


@pytest.fixture(scope="module")
def counted(count):
    return quiet(FORMULA, count, family="poisson", offset="exposure")


# ---- predictions ----


def test_expert_means_are_averages_over_the_random_effects(fitted, binary):
    rows, e = binary.iloc[:20], fitted.model.user(fitted.em.params)
    X = np.column_stack([np.ones(20), rows["time"], rows["x1"]])
    b = np.random.default_rng(0).normal(size=200_000)
    for k in (0, 1):
        brute = [expit(eta + e.factor[0, k, 0, 0] * b).mean() for eta in X @ e.beta[0, k]]
        np.testing.assert_allclose(fitted.predict(rows, kind="experts")[f"expert{k + 1}"], brute, atol=3e-3)
    link = fitted.predict(rows, kind="experts", scale="link")
    np.testing.assert_allclose(link["expert1"], X @ e.beta[0, 0], atol=1e-10)


def test_population_mean_mixes_the_experts(fitted):
    frame = fitted.predict(kind="all")
    mixed = sum(frame[f"probability{k}"] * frame[f"expert{k}"] for k in (1, 2))
    np.testing.assert_allclose(frame["mean"], mixed, atol=1e-12)


def test_limits_of_means_are_those_of_the_delta_method(counted, count):
    rows = count.iloc[:5]
    frame = counted.predict(rows, kind="mean", interval="confidence")
    draws = np.random.default_rng(1).multivariate_normal(counted.params, counted.cov_params(), 4_000)
    simulated = []
    for vector in draws:
        sd = counted.params.index.str.startswith("sd")
        vector[sd] = np.maximum(vector[sd], 1e-3)
        e = counted.model.user(vector)
        X = np.column_stack([np.ones(5), rows["time"], rows["x1"]])
        variance = e.factor[0, :, 0, 0] ** 2
        means = np.exp(X @ e.beta[0].T + rows["exposure"].to_numpy()[:, None] + 0.5 * variance)
        second = expit(np.column_stack([np.ones(5), rows["z1"]]) @ e.gamma[0, 0])
        simulated.append((1 - second) * means[:, 0] + second * means[:, 1])
    np.testing.assert_allclose(frame["mean_se"], np.std(simulated, axis=0), rtol=0.15)
    assert (frame["mean_low"] < frame["mean"]).all()
    assert (frame["mean_low"] > 0).all()


def test_prediction_limits_hold_new_responses(counted):
    frame = counted.predict(kind="subject", interval="prediction")
    y = counted.model.design.in_order(counted.model.design.response)
    assert ((frame["mean_low"] <= y) & (y <= frame["mean_high"])).mean() > 0.93
    assert (frame["mean_low"] == np.floor(frame["mean_low"])).all()


def test_more_history_moves_a_subject_towards_her_data(fitted, binary):
    first = binary["time"] < 2
    before = fitted.predict(binary[~first], kind="subject")["mean"]
    after = fitted.predict(binary[~first], kind="subject", history=binary[first])["mean"]
    y = binary.loc[~first, "y"]
    assert ((after - y) ** 2).mean() < ((fitted.predict(binary[~first], kind="mean")["mean"] - y) ** 2).mean()
    assert before.index.equals(after.index)


def test_offset_multiplies_counts(counted, count):
    rows = count.iloc[:6]
    plain = counted.predict(rows, kind="experts")["expert1"]
    more = counted.predict(rows.assign(exposure=rows["exposure"] + np.log(2)), kind="experts")["expert1"]
    np.testing.assert_allclose(more, 2 * plain)
    with pytest.raises(DesignError, match="lack the column 'exposure'"):
        counted.predict(rows.drop(columns="exposure"))


def test_trials_are_rows_of_single_ones(binary):
    data = binary[["id", "time", "z1", "y"]].assign(time=lambda d: d["time"].round(0))
    single = quiet("y ~ time | gate: z1 | re: (1 | id)", data, 1, family="binomial")
    together = data.groupby(["id", "time", "z1"], as_index=False)["y"].agg(y="sum", m="size")
    grouped = quiet("y ~ time | gate: z1 | re: (1 | id)", together, 1, family="binomial", trials="m")
    np.testing.assert_allclose(grouped.params, single.params, atol=1e-5)
    doubled = quiet("y ~ time | re: (1 | id)", data.assign(w=2.0), 1, family="binomial", weights="w")
    twice = quiet("y ~ time | re: (1 | id)", pd.concat([data, data]), 1, family="binomial")
    np.testing.assert_allclose(doubled.params, twice.params, atol=1e-5)


# ---- tables and residuals ----


def test_ratios_of_odds(fitted):
    plain, ratios = fitted.to_frame(), fitted.to_frame(exponentiate=True)
    rows = plain["block"].isin(["expert", "gate"])
    for column in ("estimate", "conf_low", "conf_high"):
        np.testing.assert_allclose(ratios.loc[rows, column], np.exp(plain.loc[rows, column]))
    pd.testing.assert_frame_equal(plain[~rows], ratios[~rows])
    assert not any(name.startswith("sigma") for name in plain.index)


@pytest.mark.parametrize("kind", ["pearson", "deviance", "quantile"])
def test_standardised_residuals_have_about_unit_variance(counted, kind):
    r = counted.resid(kind, rng=1)
    assert r.index.equals(counted.resid("subject").index)
    assert abs(r.mean()) < 0.3
    assert 0.7 < r.std() < 1.2


@pytest.mark.parametrize("family", ["poisson", "binomial", "gamma", "negbinomial"])
def test_residuals_are_those_of_statsmodels(family):
    """One expert without random effects is a generalised linear model; prior weights are statsmodels' variance ones."""
    rng = np.random.default_rng(7)
    frame = pd.DataFrame({"id": np.arange(200), "x": rng.normal(size=200), "w": rng.uniform(0.5, 2.0, 200), "n": 6.0})
    mean = np.exp(0.4 + 0.3 * frame["x"])
    frame["y"] = {
        "poisson": lambda: rng.poisson(mean),
        "binomial": lambda: rng.binomial(6, mean / (1 + mean)),
        "gamma": lambda: rng.gamma(2.0, mean / 2.0),
        "negbinomial": lambda: rng.poisson(rng.gamma(2.0, mean / 2.0)),
    }[family]().astype(float)
    options = {"trials": "n"} if family == "binomial" else {}
    fit = quiet("y ~ x | re: (0 | id)", frame, 1, family=family, weights="w", **options)
    spread = fit.params.iloc[-1]  # theta or shape
    peer = {
        "poisson": sm.families.Poisson(),
        "binomial": sm.families.Binomial(),
        "gamma": sm.families.Gamma(sm.families.links.Log()),
        "negbinomial": sm.families.NegativeBinomial(alpha=1.0 / spread),
    }[family]
    y = frame["y"] / 6.0 if family == "binomial" else frame["y"]
    trials = 6.0 if family == "binomial" else 1.0
    glm = sm.GLM(y, sm.add_constant(frame["x"]), peer, var_weights=trials * frame["w"]).fit(tol=1e-12)
    scale = np.sqrt(spread) if family == "gamma" else 1.0  # statsmodels' residuals are without the dispersion
    np.testing.assert_allclose(fit.resid("pearson"), scale * glm.resid_pearson, atol=2e-4)
    np.testing.assert_allclose(fit.resid("deviance"), scale * glm.resid_deviance, atol=2e-4)


def test_quadrature_and_laplace_agree_where_there_is_much_data(count):
    laplace = quiet(FORMULA, count, 1, family="poisson")
    quadrature = quiet(FORMULA, count, 1, family="poisson", n_quad=9)
    np.testing.assert_allclose(laplace.params, quadrature.params, atol=0.02)
    assert laplace.llf != quadrature.llf
    assert quadrature.model.settings["n_quad"] == 9


# ---- flags ----


def test_separated_responses_of_an_expert_are_said():
    rng = np.random.default_rng(1)
    data = pd.DataFrame({"id": np.repeat(np.arange(60), 4), "g": np.repeat(rng.integers(0, 2, 60), 4)})
    data["y"] = np.where(data["g"] == 1, 1.0, rng.integers(0, 2, len(data)))
    with pytest.warns(BoundaryWarning, match="have no variance left"):
        fit = mm.fit("y ~ g | re: (0 | id)", data, 1, family="binomial", rng=0)
    assert np.isnan(fit.bse["expert1.g"])
    assert "separated_expert" in {flag.code for flag in fit.flags}


def test_counts_without_clumping_are_said():
    rng = np.random.default_rng(2)
    data = pd.DataFrame({"id": np.repeat(np.arange(60), 4), "x": rng.normal(size=240), "y": rng.binomial(10, 0.4, 240)})
    with pytest.warns(BoundaryWarning, match="no more spread than Poisson"):
        fit = mm.fit("y ~ x | re: (0 | id)", data, 1, family="negbinomial", rng=0)
    assert fit.llf == pytest.approx(quiet("y ~ x | re: (0 | id)", data, 1, family="poisson").llf, abs=0.01)


# ---- bad input ----

BAD = [
    ({"y": 0.5}, {"family": "binomial"}, "it must be a count"),
    ({"y": 2.0}, {"family": "binomial"}, "0 or 1; pass trials="),
    ({"y": -1.0}, {"family": "poisson"}, "it must be a count"),
    ({"y": 0.0}, {"family": "gamma"}, "above zero"),
    ({"y": 1.0}, {"family": "beta"}, "strictly between 0 and 1"),
    ({"m": 0.0}, {"family": "binomial", "trials": "m"}, "number of trials is 0"),
    ({"y": 4.0}, {"family": "binomial", "trials": "m"}, "at most the number of trials"),
    ({"m": 2.5}, {"family": "binomial", "trials": "m"}, "number of trials is 2.5 .* a whole number of at least 1"),
    ({"y": 1.5}, {"family": "negativebinomial"}, "it must be a count"),
    ({"w": 40.0}, {"family": "poisson", "offset": "w"}, "the offset is 40 .* the logarithm of the exposure"),
    ({"w": -1.0}, {"family": "poisson", "weights": "w"}, "weights must be finite and not negative, got -1"),
    ({"w": np.inf}, {"family": "poisson", "weights": "w"}, "weights must be finite and not negative, got inf"),
    ({"w": np.nan}, {"family": "poisson", "weights": "w"}, "weights must be finite .* got a missing value"),
]


@pytest.mark.parametrize(("change", "options", "message"), BAD)
def test_impossible_data_name_the_row(change, options, message):
    y = {"gamma": 0.7, "beta": 0.4}.get(options["family"], 1.0)
    data = pd.DataFrame({"id": np.repeat(np.arange(10), 3), "x": np.arange(30.0), "y": y, "m": 3.0, "w": 1.0})
    data["y"] = data["y"] - 0.1 * (y < 1) * (data.index % 2) - (y == 1) * (data.index % 2)
    data = data.set_axis([f"r{i}" for i in range(30)])
    for column, value in change.items():
        data.loc["r7", column] = value
    with pytest.raises(DesignError, match=message) as found:
        mm.fit("y ~ x | re: (1 | id)", data, 1, **options)
    assert "'r7'" in str(found.value)


def test_columns_that_are_no_numbers_or_no_names(count):
    def fit(**columns):
        mm.fit("y ~ time | re: (1 | id)", count.assign(text="3"), 1, family="poisson", **columns)

    with pytest.raises(DesignError, match=r"column 'text' \(offset\) must hold numbers, got '3' in row 0; convert"):
        fit(offset="text")
    with pytest.raises(ArgumentError, match=r"offset must be the name of a column, or an array .* got 3"):
        fit(offset=3)
    with pytest.raises(ArgumentError, match=rf"weights must have one value for each of the {len(count)} rows"):
        fit(weights=np.ones(len(count) - 1))


def test_new_data_need_what_their_likelihood_needs(binary):
    data = binary.assign(m=3.0, w=2.0)
    fit = quiet("y ~ time | re: (1 | id)", data, 1, family="binomial", trials="m", weights="w")
    rows = data.iloc[:10]
    with pytest.raises(DesignError, match=r"lack the column 'w' \(weights\)"):
        fit.loglik_of(data.drop(columns="w"))
    with pytest.raises(DesignError, match=r"lack the column 'w' \(weights\)"):
        fit.predict(rows, kind="subject", history=data.drop(columns="w"))
    with pytest.raises(DesignError, match=r"the response 'y' is 4 in row 0; .* at most the number of trials"):
        fit.loglik_of(rows.assign(y=4.0))
    for trials in (-1.0, 0.0, 1.5):
        with pytest.raises(DesignError, match=rf"number of trials is {trials:g} in row 0; .* whole number"):
            fit.predict(rows.assign(m=trials))
    assert len(fit.predict(rows.drop(columns="w"))) == 10


@pytest.mark.parametrize("name", ["negbinomial", "negativebinomial", "NegativeBinomial", "negative-binomial", "nb"])
def test_the_negative_binomial_has_one_name_inside(name, tmp_path, count):
    fit = quiet("y ~ time | re: (0 | id)", count, 1, family=name)
    assert fit.model.settings["family"] == "negbinomial"
    fit.save(tmp_path / "fit.mixmoe")
    assert mm.load(tmp_path / "fit.mixmoe").llf == fit.llf
    assert isinstance(fit.lr_test(quiet("y ~ 1 | re: (0 | id)", count, 1, family="negbinomial")), LRTest)


def test_names_of_a_family_are_one_candidate(count):
    families = ["poisson", "negativebinomial", "negbinomial"]
    found = mm.select("y ~ time | re: (0 | id)", count, experts=1, family=families, rng=0)
    assert [dict(c.structure)["family"] for c in found.candidates] == ["poisson", "negbinomial"]


def test_summaries_say_on_which_scale_limits_are(count):
    fit = quiet("y ~ time | re: (1 | id)", count, 1, family="negbinomial")
    assert "Limits of theta are computed on the log scale." in str(fit.summary())


def test_arguments_that_do_not_go_together(binary):
    def fit(**options):
        mm.fit("y ~ time | re: (1 + time + x1 | id)", binary, 1, **options)

    with pytest.raises(ArgumentError, match="family must be one of 'gaussian', 'binomial'"):
        fit(family="tweedie")
    with pytest.raises(ArgumentError, match="trials='z1' is for family='binomial'"):
        fit(family="poisson", trials="z1")
    with pytest.raises(ArgumentError, match="n_quad=5 is for at most 2 random effects, re: has 3"):
        fit(family="binomial", n_quad=5)
    with pytest.raises(ArgumentError, match="n_quad=5 is not for family='gaussian'"):
        fit(n_quad=5)
    with pytest.raises(ArgumentError, match="errors='ar1', errors_dist='normal' is for family='gaussian'"):
        fit(family="binomial", errors="ar1")
    with pytest.raises(DesignError, match="each of the 150 subjects has one row"):
        mm.fit("y ~ x1 | re: (1 | id)", binary.groupby("id").head(1), 1, family="binomial")


# ---- figures ----


def binary_pair(seed=2, n=120, visits=5):
    """Successes out of trials in two groups, their zeros and ones, and counts with an exposure."""
    rng = np.random.default_rng(seed)
    ids, time = np.repeat(np.arange(n), visits), np.tile(np.arange(visits, dtype=float), n)
    eta = np.where(ids % 2 == 0, -2 + time, 2 - time) + 0.3 * rng.normal(size=n)[ids]
    m = rng.integers(5, 30, ids.size)
    p = 1 / (1 + np.exp(-eta))
    return pd.DataFrame(
        {
            "id": ids, "time": time, "m": m, "s": rng.binomial(m, p), "one": rng.binomial(1, p),
            "n": rng.poisson(m * np.exp(0.3 * eta)), "exposure": np.log(m),
        }
    )  # fmt: skip


def test_zeros_and_ones_are_drawn_as_proportions():
    data = binary_pair()
    fit = mm.fit("one ~ time | re: (0 | id)", data, 2, family="binomial", starts=4, rng=0)
    marks = fit._observed("trajectories")
    tau = fit.model.design.in_order(fit.em.responsibilities[fit.model.design.codes])
    for k, one in enumerate(marks):
        shares = [np.average(data["one"][data["time"] == t], weights=tau[data["time"] == t, k]) for t in range(5)]
        np.testing.assert_allclose(one.y, shares)
        assert one.lower.min() >= 0
        assert one.upper.max() <= 1
    axes = fit.plot().axes[0]
    assert not [line for line in axes.lines if line.get_linewidth() < 1]  # no courses from zero to one and back
    assert len(axes.containers) == 2
    assert axes.get_ylabel() == "probability of one = 1"


def test_trajectories_say_what_they_show():
    data = binary_pair()
    trials = mm.fit("s ~ time | re: (0 | id)", data, 2, family="binomial", trials="m", starts=4, rng=0)
    assert trials.plot().axes[0].get_ylabel() == "s / m"
    assert trials.plot("fit").axes[0].get_ylabel() == "s"
    assert max(line.get_ydata().max() for line in trials.plot().axes[0].lines) <= 1
    rates = mm.fit("n ~ time | re: (0 | id)", data, 2, family="poisson", offset="exposure", starts=4, rng=0)
    assert rates.plot().axes[0].get_ylabel() == "n / exp(exposure)"
