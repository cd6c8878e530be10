"""Weights, offset and REML of Gaussian experts: dense algebra, and what must be the same whatever the method."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal, multivariate_t, norm

import mixmoe as mm
from mixmoe import MEMoE
from mixmoe.errors import ArgumentError, AssumptionWarning, DesignError
from mixmoe.inference.wald import InvalidTest
from mixmoe.mixed.likelihood.hessian import observed_information, unit_information
from mixmoe.mixed.likelihood.observed import subject_scores

MIXTURE = "y ~ t + x | gate: z | re: (1 + t | id)"
ONE = "y ~ t + x | re: (1 + t | id)"
KINDS = {
    "iid": {},
    "sigma": {},
    "ar1": {"errors": "ar1", "time": "visit"},
    "car1": {"errors": "car1", "time": "t"},
    "bm": {"errors": "bm", "time": "t"},
    "t": {"errors_dist": "t"},
    "car1 t": {"errors": "car1", "time": "t", "errors_dist": "t"},
}


def panel(N=24, seed=4, motion=0.0):
    """Two groups in unbalanced rows with weights and an offset, rows in no order; with a Brownian motion."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, 7, N)
    subject = np.repeat(np.arange(N), counts)
    first = np.cumsum(counts) - counts
    d = pd.DataFrame({"id": subject, "visit": np.arange(subject.size) - first[subject]})
    d["t"] = d["visit"] * 0.7 + rng.uniform(0.05, 0.5, len(d))
    d["x"], d["z"] = rng.normal(size=len(d)), rng.normal(size=N)[subject]
    d["w"], d["off"] = rng.uniform(0.2, 5.0, len(d)), rng.normal(size=len(d)) * 3
    mean = np.where(subject % 2 == 0, 1 + d["t"], -2 - 0.4 * d["t"] + 0.5 * d["x"])
    effects = rng.normal(size=(N, 2)) * [0.7, 0.3]
    noise = rng.normal(size=len(d)) / np.sqrt(d["w"])
    d["y"] = d["off"] + mean + effects[subject, 0] + effects[subject, 1] * d["t"] + noise
    gap = d.groupby("id")["t"].diff().fillna(d["t"])
    d["y"] += motion * (np.sqrt(gap) * rng.normal(size=len(d))).groupby(d["id"]).cumsum()
    return d.sample(frac=1, random_state=1).reset_index(drop=True)


def formula(kind, text):
    return f"{text} | sigma: x" if kind == "sigma" else text


def model(kind, data, experts=2, **options):
    text = formula(kind, MIXTURE if experts == 2 else ONE)
    return MEMoE(text, data, experts, weights="w", offset="off", **KINDS[kind], **options)


def some_parameters(m):
    """Values by name that no estimate would have."""
    size = {"sd": 0.8, "corr": 0.3, "sigma": 1.1, "rho": 0.4, "phi": 0.5, "df": 6.0, "sd_bm": 0.6}
    out = {}
    for i, name in enumerate(m.layout.names):
        start = "sigma.x" if name.startswith("sigma") and "x" in name else name.split("(")[0].rstrip("12")
        out[name] = size.get(start, 0.3 * np.cos(1.7 * i)) * (1 + 0.05 * i * (start in size))
    return out


def error_covariance(kind, p, k, rows):
    slope = next((p[name] for name in (f"sigma{k}.x", f"sigma{k}(x)") if name in p), 0.0)
    sd = p[f"sigma{k}"] * np.exp(slope * rows["x"].to_numpy()) / np.sqrt(rows["w"].to_numpy())
    lag = lambda name: np.abs(np.subtract.outer(rows[name].to_numpy(), rows[name].to_numpy()))  # noqa: E731
    if kind == "bm":
        t = rows["t"].to_numpy()
        return np.diag(sd**2) + p[f"sd_bm{k}"] ** 2 * np.minimum.outer(t, t)
    C = np.eye(len(rows))
    if kind == "ar1":
        C = p[f"rho{k}"] ** lag("visit")
    if kind.startswith("car1"):
        C = np.exp(-p[f"phi{k}"] * lag("t"))
    return np.outer(sd, sd) * C


def covariance_of(kind, p, k, rows):
    Z = np.column_stack([np.ones(len(rows)), rows["t"]])
    sd = np.array([p[f"sd{k}(Intercept|id)"], p[f"sd{k}(t|id)"]])
    D = np.outer(sd, sd) * np.array([[1, p[f"corr{k}(Intercept,t|id)"]], [p[f"corr{k}(Intercept,t|id)"], 1]])
    return Z @ D @ Z.T + error_covariance(kind, p, k, rows)


def dense_loglik(kind, p, data, experts):
    total = 0.0
    for _, rows in data.sort_values("t").groupby("id"):
        X = np.column_stack([np.ones(len(rows)), rows["t"], rows["x"]])
        z = np.array([0.0, p["gate2.Intercept"] + p["gate2.z"] * rows["z"].iloc[0]])[:experts] if experts > 1 else [0.0]
        parts = []
        for k in range(1, experts + 1):
            mean = rows["off"] + X @ [p[f"expert{k}.{name}"] for name in ("Intercept", "t", "x")]
            V = covariance_of(kind, p, k, rows)
            law = multivariate_t(mean, V, p[f"df{k}"]) if kind.endswith("t") else multivariate_normal(mean, V)
            parts.append(z[k - 1] - np.logaddexp.reduce(z) + law.logpdf(rows["y"]))
        total += np.logaddexp.reduce(parts)
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_the_likelihood_is_the_dense_one(kind):
    data = panel()
    m = model(kind, data)
    p = some_parameters(m)
    assert m.loglike(p) == pytest.approx(dense_loglik(kind, p, data, 2), abs=1e-9)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.endswith("t")])
def test_the_restricted_likelihood_is_the_dense_one(kind):
    data = panel()
    m = model(kind, data, 1, method="reml")
    p = some_parameters(m)
    A = np.zeros((3, 3))
    for _, rows in data.sort_values("t").groupby("id"):
        X = np.column_stack([np.ones(len(rows)), rows["t"], rows["x"]])
        A += X.T @ np.linalg.solve(covariance_of(kind, p, 1, rows), X)
    right = dense_loglik(kind, p, data, 1) - 0.5 * np.linalg.slogdet(A)[1] + 1.5 * np.log(2 * np.pi)
    assert m.loglike(p) == pytest.approx(right, abs=1e-9)


@pytest.mark.parametrize(("kind", "method"), [("iid", "ml"), ("iid", "reml"), ("bm", "reml"), ("car1", "reml")])
def test_the_score_is_the_derivative(kind, method):
    m = model(kind, panel(), 1, method=method)
    p = pd.Series(some_parameters(m))
    step = 1e-5 * np.eye(len(p))
    numeric = [(m.loglike(p + h) - m.loglike(p - h)) / 2e-5 for h in step]
    np.testing.assert_allclose(m.score(p), numeric, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["iid", "ar1", "bm"])
def test_weights_of_one_and_an_offset_of_zero_change_no_digit(kind):
    data = panel().assign(w=1.0, off=0.0)
    bare = MEMoE(MIXTURE, data, **KINDS[kind])
    p = some_parameters(bare)
    assert model(kind, data).loglike(p) == bare.loglike(p)
    if kind == "iid":
        text = "y ~ t + x | re: (1 | id)"
        fits = [mm.fit(text, data, 1, method="reml", **columns) for columns in ({}, {"weights": "w", "offset": "off"})]
        np.testing.assert_array_equal(fits[0].params, fits[1].params)
        np.testing.assert_array_equal(fits[0].bse, fits[1].bse)


@pytest.mark.parametrize(("kind", "method"), [("iid", "ml"), ("iid", "reml"), ("bm", "ml"), ("car1", "reml")])
def test_all_weights_times_a_number_only_move_sigma(kind, method):
    data = panel(N=40)
    fits = [
        mm.fit("y ~ t | re: (1 | id)", d, 1, weights="w", offset="off", method=method, **KINDS[kind])
        for d in (data, data.assign(w=1e6 * data["w"]))
    ]
    p, q = (fit.params for fit in fits)
    assert fits[1].llf == pytest.approx(fits[0].llf, abs=1e-6)  # lme4: 1/2 sum log w makes up for n log sigma
    assert q["sigma1"] == pytest.approx(1e3 * p["sigma1"], rel=1e-5)
    others = [name for name in p.index if name != "sigma1"]
    np.testing.assert_allclose(q[others], p[others], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(fits[1].bse[others[:2]], fits[0].bse[others[:2]], rtol=1e-4)


def test_a_weight_of_two_is_the_mean_of_two_rows():
    """Two rows of one subject with the same columns say about the coefficients what their mean of weight two says."""
    data = panel().assign(w=1.0, off=0.0)
    with pytest.warns(AssumptionWarning, match="are copies of other rows"):
        m = MEMoE("y ~ t + x | re: (1 | id)", pd.concat([data, data]), 1)
    once = MEMoE("y ~ t + x | re: (1 | id)", data.assign(w=2.0), 1, weights="w")
    p = pd.Series(some_parameters(once))
    moved = p.copy()
    moved["expert1.t"] += 0.4
    moved["sd1(Intercept|id)"] *= 1.3
    assert m.loglike(moved) - m.loglike(p) == pytest.approx(once.loglike(moved) - once.loglike(p), abs=1e-9)


@pytest.mark.parametrize("family", ["gaussian", "poisson"])
def test_rows_of_weight_zero_are_not_counted(family):
    data = panel(N=30)
    if family == "poisson":
        data["y"] = np.random.default_rng(2).poisson(2.0, len(data)).astype(float)
    zero = data.index % 5 == 0  # their values would move every transform and estimate
    data = data.assign(w=np.where(zero, 0.0, data["w"]), t=np.where(zero, 1e3, data["t"]))
    text, options = "y ~ scale(t) | re: (1 | id)", {"family": family, "weights": "w", "cov_type": "nonrobust"}
    fit, right = mm.fit(text, data, 1, **options), mm.fit(text, data[~zero], 1, **options)
    np.testing.assert_array_equal(fit.params, right.params)
    assert fit.nobs == right.nobs == (~zero).sum()
    assert list(fit.fitted().index) == list(data.index[~zero])
    facts = dict(zip(fit.tables()[0].index, fit.tables()[0].cells, strict=True))
    assert facts["Rows of weight zero"][0] == zero.sum()
    assert fit.loglik_of(data) == pytest.approx(fit.llf, abs=1e-9)
    rows = data[zero].assign(t=1.0).drop(columns="y")
    assert np.isfinite(fit.predict(rows)).all().all()  # nothing that is predicted depends on the weight


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-0.5, "weights must be finite and not negative, got -0.5 in row 'r7'"),
        (np.nan, "weights must be finite and not negative, got a missing value in row 'r7'"),
        (np.inf, "weights must be finite and not negative, got inf in row 'r7'"),
    ],
)
def test_impossible_weights_name_the_row(value, message):
    data = panel()
    data.index = [f"r{i}" for i in data.index]
    data.loc["r7", "w"] = value
    with pytest.raises(DesignError, match=message):
        mm.fit(ONE, data, 1, weights="w")
    with pytest.raises(DesignError, match=r"positive in some rows, got \d+ zeros"):
        mm.fit(ONE, data.assign(w=0.0), 1, weights="w")


@pytest.fixture(scope="module")
def shifted():
    """A fit with weights and offset, and the same to the response less the offset."""
    data = panel(N=60)
    without = data.assign(y=data["y"] - data["off"])
    options, text = {"weights": "w", "rng": 0, "starts": 4}, MIXTURE.replace("1 + t |", "1 |")
    return data, mm.fit(text, data, offset="off", **options), mm.fit(text, without, **options)


def test_an_offset_comes_back_in_everything_that_is_a_response(shifted):
    data, fit, bare = shifted
    off = data["off"].to_numpy()
    np.testing.assert_allclose(fit.params, bare.params, rtol=1e-12)
    for kind in ("subject", "mean"):
        np.testing.assert_allclose(fit.fitted(kind) - off, bare.fitted(kind), atol=1e-9)
        np.testing.assert_allclose(fit.resid(kind), bare.resid(kind), atol=1e-9)
    for kind in ("quantile", "normalized"):
        np.testing.assert_allclose(fit.resid(kind), bare.resid(kind), atol=1e-8)
    np.testing.assert_allclose(fit.simulate(1).iloc[:, 0] - off, bare.simulate(1).iloc[:, 0], atol=1e-9)
    new, past = data.drop(columns="y").iloc[:9], data.iloc[9:]
    asked = [
        {"kind": kind, "interval": interval}
        for kind in ("all", "mean", "subject", "experts")
        for interval in (None, "confidence", "prediction")
        if (kind, interval) != ("experts", "prediction")
    ]
    asked += [{**one, "history": past} for one in asked]
    for options in asked:
        a, b = fit.predict(new, **options), bare.predict(new, **_without(options, bare))
        for name in a:
            moved = 0.0 if name.endswith("_se") or name.startswith("probability") else off[:9]
            np.testing.assert_allclose(a[name] - moved, b[name], atol=1e-8, err_msg=name)
    with pytest.raises(DesignError, match=r"lack the column 'off' \(offset\)"):
        fit.predict(new.drop(columns="off"))


def _without(options, bare):
    if "history" not in options:
        return options
    history = options["history"]
    return {**options, "history": history.assign(y=history["y"] - history["off"])}


def test_resamples_folds_and_three_steps_know_the_offset(shifted):
    data, fit, bare = shifted
    resampled = [one.with_cov("bootstrap", n_boot=3, rng=5).bse for one in (fit, bare)]
    np.testing.assert_allclose(resampled[0], resampled[1], rtol=1e-6)
    outcomes = data.groupby("id", as_index=False).first()
    steps = [one.distal("x ~ expert", outcomes).to_frame()["estimate"] for one in (fit, bare)]
    np.testing.assert_allclose(steps[0], steps[1], rtol=1e-6)
    text, options = "y ~ t | re: (1 | id)", {"experts": 1, "weights": "w", "folds": 2, "rng": 0}
    shift = data.assign(y=data["y"] - data["off"])
    chosen = [mm.select(text, d, **options, **more) for d, more in ((data, {"offset": "off"}), (shift, {}))]
    left = [one.to_frame()["cv"].to_numpy() for one in chosen]
    np.testing.assert_allclose(left[0], left[1], rtol=1e-9)


def test_figures_are_drawn_at_an_offset_of_zero(shifted):
    _, fit, bare = shifted
    for a, b in zip(fit.curves(), bare.curves(), strict=True):
        np.testing.assert_allclose(a.y, b.y, atol=1e-9)
        assert (a.ylabel.split("\n")[0], b.ylabel.split("\n")[0]) == ("y - off", "y")
    np.testing.assert_allclose(fit._observed("trajectories").y, bare._observed("trajectories").y)


@pytest.mark.parametrize("kind", ["iid", "car1", "bm", "sigma"])
def test_predictions_given_a_history_are_the_dense_conditional_distribution(kind):
    data = panel(N=60, motion=1.5 * (kind == "bm"))
    text = formula(kind, "y ~ t + x | re: (1 + t || id)")
    fit = mm.fit(text, data, 1, weights="w", offset="off", **KINDS[kind])
    p = {**fit.params, "corr1(Intercept,t|id)": 0.0}
    rows = data[data["id"] == data["id"].value_counts().idxmax()].sort_values("t")
    past, new = rows.iloc[:-2], rows.iloc[-2:]
    X = np.column_stack([np.ones(len(rows)), rows["t"], rows["x"]])
    mean = rows["off"] + X @ fit.params.iloc[:3]
    V = covariance_of(kind, p, 1, rows)
    back = np.linalg.solve(V[:-2, :-2], V[:-2, -2:]).T
    right = mean.iloc[-2:] + back @ (past["y"] - mean.iloc[:-2])
    spread = np.sqrt(np.diag(V[-2:, -2:] - back @ V[:-2, -2:]))
    found = fit.predict(new, kind="subject", history=past, interval="prediction")
    np.testing.assert_allclose(found["mean"], right, rtol=1e-7)
    np.testing.assert_allclose(found["mean_se"], spread, rtol=1e-6)
    with pytest.raises(DesignError, match=r"lack the column 'w' \(weights\), on which the variance"):
        fit.predict(new.drop(columns="w"), kind="subject", history=past, interval="prediction")
    with pytest.raises(DesignError, match="weights must be above zero in rows to predict, got 0 in row"):
        fit.predict(new.assign(w=0.0), kind="subject", history=past, interval="prediction")


@pytest.mark.parametrize("kind", ["iid", "ar1", "sigma"])
def test_limits_of_new_subjects_are_those_of_the_dense_marginal_distribution(kind):
    data = panel(N=60)
    fit = mm.fit(formula(kind, "y ~ t + x | re: (1 + t || id)"), data, 1, weights="w", offset="off", **KINDS[kind])
    p = {**fit.params, "corr1(Intercept,t|id)": 0.0}
    rows = data[data["id"] == data["id"].value_counts().idxmax()].sort_values("t").drop(columns="y")
    mean = rows["off"] + np.column_stack([np.ones(len(rows)), rows["t"], rows["x"]]) @ fit.params.iloc[:3]
    spread = np.sqrt(np.diag(covariance_of(kind, p, 1, rows)))
    found = fit.predict(rows, kind="mean", interval="prediction")
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-7)
    np.testing.assert_allclose(found["mean_se"], spread, rtol=1e-6)
    np.testing.assert_allclose(found["mean_high"], mean + norm.ppf(0.975) * spread, rtol=1e-6)
    bare = rows.drop(columns="w")
    assert list(fit.predict(bare, kind="mean", interval="confidence")) == list(found)
    with pytest.raises(DesignError, match=r"lack the column 'w' \(weights\), on which the variance"):
        fit.predict(bare, kind="mean", interval="prediction")


def test_quantile_residuals_are_the_whitened_residuals():
    data = panel(N=40)
    fit = mm.fit("y ~ t + x | re: (1 + t || id)", data, 1, weights="w", offset="off")
    p = {**fit.params, "corr1(Intercept,t|id)": 0.0}
    right = pd.Series(np.nan, data.index)
    for _, rows in data.groupby("id"):
        X = np.column_stack([np.ones(len(rows)), rows["t"], rows["x"]])
        left = rows["y"] - rows["off"] - X @ fit.params.iloc[:3]
        right[rows.index] = np.linalg.solve(np.linalg.cholesky(covariance_of("iid", p, 1, rows)), left)
    np.testing.assert_allclose(fit.resid("quantile"), right, atol=1e-7)


def test_responses_are_drawn_with_their_weights():
    data = panel(N=60)
    fit = mm.fit("y ~ t + x | re: (0 | id)", data, 1, weights="w", offset="off")
    away = fit.simulate(400, 1).sub(fit.fitted("mean"), axis=0).to_numpy()
    scaled = away * np.sqrt(data["w"].to_numpy())[:, None] / fit.params["sigma1"]
    light = data["w"].to_numpy() < data["w"].median()
    for rows in (light, ~light):
        assert (scaled[rows] ** 2).mean() == pytest.approx(1.0, abs=5 * np.sqrt(2 / scaled[rows].size))


# ---- REML


def test_reml_of_ordinary_regression_divides_by_n_less_p():
    data = panel()
    fit = mm.fit("y ~ t + x | re: (0 | id)", data, 1, method="reml", weights="w", offset="off", cov_type="nonrobust")
    X, root = np.column_stack([np.ones(len(data)), data["t"], data["x"]]), np.sqrt(data["w"].to_numpy())
    b, rss, *_ = np.linalg.lstsq(root[:, None] * X, root * (data["y"] - data["off"]), rcond=None)
    variance = rss[0] / (len(data) - 3)
    np.testing.assert_allclose(fit.params, [*b, np.sqrt(variance)], rtol=1e-6)
    right = np.sqrt(np.diag(variance * np.linalg.inv(X.T @ (root[:, None] ** 2 * X))))
    np.testing.assert_allclose(fit.bse[:3], right, rtol=1e-6)


def test_units_of_columns_and_response_change_the_restricted_likelihood_as_contrasts_say():
    data = panel(N=40)
    other = data.assign(y=100 * data["y"], off=100 * data["off"], t=data["t"] / 7)
    text = "y ~ t + x | re: (1 | id)"
    one, two = (mm.fit(text, d, 1, method="reml", weights="w", offset="off") for d in (data, other))
    right = one.llf - (len(data) - 3) * np.log(100) + np.log(7)  # -1/2 log|X'V^-1 X| with a column over 7
    assert two.llf == pytest.approx(right, abs=1e-7)
    assert two.params["sigma1"] == pytest.approx(100 * one.params["sigma1"], rel=1e-6)


def test_scores_of_subjects_add_up_to_zero_and_their_informations_to_the_whole():
    fit = mm.fit("y ~ t + x | re: (1 | id)", panel(N=40), 1, method="reml", weights="w", offset="off")
    m = fit.model
    theta = m.working(fit.params.to_numpy())
    assert np.abs(subject_scores(m.problem, theta).sum(axis=0)).max() < 1e-4
    whole = observed_information(m.problem, theta)
    np.testing.assert_allclose(unit_information(m.problem, theta).sum(axis=0), whole, atol=1e-8 * np.abs(whole).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": 2}, "method='reml' is for experts=1, got experts=2: in a mixture no contrasts"),
        ({"errors_dist": "t"}, "method='reml' is for normal errors, got errors_dist='t': contrasts of several"),
        ({"family": "poisson"}, "method='reml' is for family='gaussian', got family='poisson'"),
        ({"method": "REML"}, "method must be one of 'ml', 'reml', got 'REML'"),
    ],
)
def test_reml_is_refused_where_there_are_no_contrasts(change, message):
    with pytest.raises(ArgumentError, match=message):
        mm.fit(ONE, panel(), **{"experts": 1, "method": "reml", **change})


def test_reml_fits_are_compared_only_with_the_same_fixed_effects(tmp_path):
    data = panel(N=60)
    small, large, slopes = (
        mm.fit(text, data, 1, method="reml", offset="off")
        for text in ("y ~ t | re: (1 | id)", "y ~ t + x | re: (1 | id)", "y ~ t + x | re: (1 + t | id)")
    )
    refused = large.lr_test(small)
    assert isinstance(refused, InvalidTest)
    assert "different fixed effects" in refused.reason
    allowed = slopes.lr_test(large)
    assert allowed.statistic == pytest.approx(2 * (slopes.llf - large.llf))
    ml = mm.fit("y ~ t + x | re: (1 + t | id)", data, 1, offset="off")
    assert isinstance(ml.lr_test(large), InvalidTest)
    with pytest.raises(ArgumentError, match="different fixed effects, which method='reml' cannot compare"):
        mm.select(["y ~ t | re: (1 | id)", "y ~ t + x | re: (1 | id)"], data, experts=1, method="reml")
    large.save(tmp_path / "reml.mixmoe")
    again = mm.load(tmp_path / "reml.mixmoe")
    assert again.model.settings["method"] == "reml"
    assert again.llf == large.llf == pytest.approx(again.model.loglike(again.params), abs=1e-9)
    for text in (str(large.summary()), str(again.summary()), large.to_latex()):
        assert "REML" in text
    assert "REML" not in str(ml.summary())


def test_profiles_are_of_the_restricted_likelihood():
    data = panel(N=40)
    fit = mm.fit("y ~ t | re: (0 | id)", data, 1, method="reml", weights="w", offset="off")
    profile = fit.profile("sigma1")
    n, s = len(data) - 2, fit.params["sigma1"]
    right = -n * np.log(profile.values / s) - n / 2 * ((s / profile.values) ** 2 - 1)
    np.testing.assert_allclose(profile.loglik - fit.llf, right, atol=1e-6)
