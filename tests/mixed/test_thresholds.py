"""Ordinal experts: kernels, likelihood by brute force, levels, thresholds, predictions on every scale."""

import re
import warnings
from dataclasses import replace
from functools import cache
from itertools import pairwise, product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

import mixmoe as mm
from mixmoe.cli.main import main
from mixmoe.errors import (
    ArgumentError,
    BoundaryWarning,
    CollinearityWarning,
    DesignError,
    DroppedRowsWarning,
    MixmoeWarning,
)
from mixmoe.inference.wald import WaldTest
from mixmoe.mixed.likelihood.glmm import GlmmExperts
from mixmoe.mixed.likelihood.observed import Problem, evaluate, subject_logliks, subject_scores
from mixmoe.mixed.parameters import free_to_working
from mixmoe.mixed.thresholds import OrdinalResponse, Thresholds, cuts_of, step_extra
from mixmoe.responses import cumulative_logit as kernel
from tests.mixed.glmm_helpers import numeric_score, problem
from tests.mixed.test_glmm_results import quiet

FORMULA = "y ~ time + x1 | gate: z1 | re: (1 | id)"
NAMES = ("none", "quite mild", "moderate", "severe")
CUTS = np.array([[-1.0, 0.5, 0.9], [-2.0, 1.0, 4.0]])
SCORES = np.array([1.0, 2.0, 4.0, 5.0])


@pytest.fixture(scope="module")
def data():
    frame = mm.simulate.memoe("ordinal", n_subjects=100, n_visits=5, rng=1).data
    return frame.assign(pain=pd.Categorical.from_codes(frame["y"].astype(int) - 1, NAMES, ordered=True))


@pytest.fixture(scope="module")
def sharing(data):
    """Fits by what their experts share, each made once."""

    @cache
    def fitted(terms, residual):
        return quiet(f"y ~ {terms} | gate: z1 | re: (1 | id)", data, family="ordinal", residual=residual)

    return fitted


@pytest.fixture(scope="module")
def fit(data):
    return quiet(FORMULA.replace("y ~", "pain ~"), data, family="ordinal")


def ordinal_problem(own=True, **options):
    """The problem of `tests.mixed.glmm_helpers` with counts cut off at 3 as categories."""
    p = problem("poisson", **options)
    y = np.minimum(p.experts.rows.outcome.y, 3.0)
    labels, steps = ("0|1", "1|2", "2|3"), step_extra(np.bincount(y.astype(int)), ("0|1", "1|2", "2|3"), own)
    response = OrdinalResponse(np.arange(4.0), tuple("0123"), steps)
    rows = replace(p.experts.rows, outcome=response.outcome(y, np.ones(len(y))))
    s = replace(p.structure, extras=steps, thresholds=Thresholds(0, labels, True, own))
    return Problem(s, GlmmExperts(rows, response, p.experts.nodes), p.W)


def points(p, n=2):
    return 0.5 * np.random.default_rng(5).normal(size=(n, p.free.size))


# ---- kernels ----


def test_probabilities_are_differences_of_the_distribution_function():
    eta = np.random.default_rng(0).normal(scale=2, size=(2, 30))
    codes = np.arange(30) % 4
    ends = np.column_stack([[-np.inf] * 2, CUTS, [np.inf] * 2])
    direct = expit(ends[:, codes + 1] - eta) - expit(ends[:, codes] - eta)
    found = kernel.log_probability(codes, kernel.borders(codes, eta, CUTS), np.diff(CUTS))
    np.testing.assert_allclose(found, np.log(direct), rtol=1e-10)
    every = kernel.category_probabilities(eta, CUTS)
    np.testing.assert_allclose(every.sum(axis=0), 1.0, rtol=1e-12)
    np.testing.assert_allclose(every[codes, :, np.arange(30)].T, direct, rtol=1e-10)
    np.testing.assert_allclose(np.tensordot(SCORES, every, 1), kernel.expected_score(eta, CUTS, SCORES))


def test_improbable_categories_keep_their_digits():
    codes, at = np.array([1]), kernel.borders(np.array([1]), np.array([[60.0]]), np.array([[0.0, 1.0]]))
    far = kernel.log_probability(codes, at, np.ones((1, 1)))
    np.testing.assert_allclose(far, -60.0 + np.log(np.expm1(1.0)), rtol=1e-14)  # 1 - (1 - 1e-26) would be lost


def test_derivatives_in_predictor_and_steps():
    rng, h = np.random.default_rng(1), 1e-5
    response = OrdinalResponse(np.arange(4.0), tuple("0123"), step_extra(np.ones(4), ("a", "b", "c"), True))
    out = response.outcome(np.arange(24.0) % 4, np.ones(24))
    eta, extra = rng.normal(size=(2, 24)), rng.normal(size=(2, 2))
    found = response.terms(out, eta, extra)

    def change(of, deta, dextra):
        return (of(eta + deta, extra + dextra) - of(eta - deta, extra - dextra)) / (2 * h)

    quantities = [lambda e, x, n=n: getattr(response.curvature(out, e, x), n) for n in ("value", "slope", "weight")]
    np.testing.assert_allclose(found.slope, change(quantities[0], h, 0), atol=1e-9)
    np.testing.assert_allclose(found.weight, -change(quantities[1], h, 0), atol=1e-9)
    np.testing.assert_allclose(found.third, -change(quantities[2], h, 0), atol=1e-9)
    for j, further in enumerate(found.further):
        step = h * np.eye(2)[j]
        np.testing.assert_allclose(further.value, change(quantities[0], 0, step), atol=1e-9)
        np.testing.assert_allclose(further.slope, change(quantities[1], 0, step), atol=1e-9)
        np.testing.assert_allclose(further.curve, -change(quantities[2], 0, step), atol=1e-9)


def test_predictor_of_an_expected_score_is_its_inverse():
    eta = np.random.default_rng(2).normal(scale=5, size=(2, 200))
    mean = kernel.expected_score(eta, CUTS, SCORES)
    for k in (0, 1):
        np.testing.assert_allclose(kernel.predictor_of_score(mean[k], CUTS, SCORES)[k], eta[k], atol=1e-8)
    assert np.isfinite(kernel.predictor_of_score(SCORES[[0, -1]], CUTS, SCORES)).all()


@pytest.mark.parametrize("category", range(4))
def test_where_a_category_has_at_most_a_probability(category):
    eta, ends = np.linspace(-12, 12, 40_001), kernel.with_ends(CUTS[1:])
    probability = kernel.category_probabilities(eta[None], CUTS[1:])[category, 0]
    for p in (1e-3, 0.1, 0.5, 0.95):
        found = kernel.at_most(np.array([p]), ends[:, category], ends[:, category + 1])
        outside = (eta <= found.left) | (eta >= found.right)
        clear = np.abs(probability - p) > 1e-9
        np.testing.assert_array_equal(outside[clear], (probability <= p)[clear])


# ---- likelihood ----


@pytest.mark.parametrize(
    ("q", "n_quad", "own"), [(0, 1, True), (1, 1, True), (1, 4, False), (2, 1, True), (2, 3, True)]
)
def test_score_is_the_derivative(q, n_quad, own):
    p = ordinal_problem(q=q, n_quad=n_quad, weights=q == 1, own=own)
    theta = points(p)
    ours, numeric = evaluate(p, theta).score, numeric_score(p, theta)
    np.testing.assert_allclose(ours, numeric, atol=1e-6 * np.abs(numeric).max())
    np.testing.assert_allclose([subject_scores(p, point).sum(axis=0) for point in theta], ours, atol=1e-8)


@pytest.mark.parametrize("q", [0, 1, 2])
def test_quadrature_reaches_brute_force(q):
    p, n_points = ordinal_problem(n_subjects=3, q=q, n_quad=15 if q else 1), 40
    theta, rows = points(p)[0], p.experts.rows
    params, (x, w) = free_to_working(p.structure, theta[None]), np.polynomial.hermite_e.hermegauss(n_points)
    w = w / w.sum()
    gate = free_to_working(p.structure, theta[None]).gamma[0] @ p.W.T
    share = np.vstack([expit(-gate), expit(gate)])
    for i in range(3):
        mine, total = slice(rows.starts[i], rows.starts[i] + rows.counts[i]), 0.0
        codes = rows.outcome.y[mine].astype(int)
        for k, at in product((0, 1), product(range(n_points), repeat=q)):
            b = params.factor[0, k] @ x[list(at)]
            eta = rows.X.dense[:, mine].T @ params.beta[0, k] + rows.offset[mine] + rows.Z[:, mine].T @ b
            ends = np.r_[-np.inf, cuts_of(params.extra[0])[k], np.inf]
            row = expit(ends[codes + 1] - eta) - expit(ends[codes] - eta)
            total += share[k, i] * np.prod(w[list(at)]) * row.prod()
        ours = np.log(np.exp(subject_logliks(p, theta)[i]).sum())
        assert ours == pytest.approx(np.log(total), abs=1e-6)


def test_two_experts_without_random_effects_by_hand(data):
    fit = quiet("y ~ time + x1 | gate: z1 | re: (0 | id)", data, family="ordinal")
    v, codes = fit.params, data["y"].astype(int).to_numpy()
    first = data.groupby("id").first()
    gate = expit(v["gate2.Intercept"] + v["gate2.z1"] * first["z1"])
    joint = []
    for k, share in ((1, 1 - gate), (2, gate)):
        ends = np.r_[-np.inf, [v[f"cut{k}({j}|{j + 1})"] for j in (1, 2, 3)], np.inf]
        eta = v[f"expert{k}.time"] * data["time"] + v[f"expert{k}.x1"] * data["x1"]
        row = np.log(expit(ends[codes] - eta) - expit(ends[codes - 1] - eta))
        joint.append(np.log(share) + row.groupby(data["id"]).sum())
    assert fit.llf == pytest.approx(np.logaddexp(*joint).sum(), abs=1e-9)
    assert fit.model.loglike(fit.params) == pytest.approx(fit.llf, abs=1e-9)


@pytest.mark.parametrize("n_quad", [1, 5])
def test_two_levels_are_a_binary_response(data, n_quad):
    binary = data.assign(y=(data["y"] > 2).astype(int))
    ours = quiet(FORMULA, binary, 1, family="ordinal", n_quad=n_quad)
    theirs = quiet(FORMULA, binary, 1, family="binomial", n_quad=n_quad)
    assert ours.llf == pytest.approx(theirs.llf, abs=1e-8)
    slopes = ["expert1.time", "expert1.x1", "sd1(Intercept|id)"]
    np.testing.assert_allclose(ours.params[slopes], theirs.params[slopes], atol=1e-8)
    np.testing.assert_allclose(ours.params["cut1(0|1)"], -theirs.params["expert1.Intercept"], atol=1e-8)
    np.testing.assert_allclose(ours.bse[slopes], theirs.bse[slopes], rtol=1e-8)
    for scale in ("response", "link"):
        pd.testing.assert_frame_equal(ours.predict(scale=scale), theirs.predict(scale=scale), rtol=1e-6)


def test_reversed_levels_mirror_the_model(data):
    up = quiet("y ~ time | re: (1 | id)", data, 1, family="ordinal")
    down = quiet("y ~ time | re: (1 | id)", data.assign(y=5 - data["y"]), 1, family="ordinal")
    assert down.llf == pytest.approx(up.llf, abs=1e-8)
    assert down.params["expert1.time"] == pytest.approx(-up.params["expert1.time"], abs=1e-6)
    np.testing.assert_allclose(down.params.filter(like="cut"), -up.params.filter(like="cut")[::-1], atol=1e-6)


def test_weights_count_as_copies_and_an_offset_has_the_coefficient_one(data):
    twice = quiet("y ~ time | re: (1 | id)", pd.concat([data, data]), 1, family="ordinal")
    weighted = quiet("y ~ time | re: (1 | id)", data.assign(w=2.0), 1, family="ordinal", weights="w")
    np.testing.assert_allclose(weighted.params, twice.params, atol=1e-5)
    moved = quiet("y ~ time | re: (1 | id)", data.assign(o=0.3 * data["time"] + 1), 1, family="ordinal", offset="o")
    plain = quiet("y ~ time | re: (1 | id)", data, 1, family="ordinal")
    assert moved.llf == pytest.approx(plain.llf, abs=1e-8)
    assert moved.params["expert1.time"] == pytest.approx(plain.params["expert1.time"] - 0.3, abs=1e-5)
    np.testing.assert_allclose(moved.params.filter(like="cut"), plain.params.filter(like="cut") + 1, atol=1e-5)


# ---- thresholds ----


def test_thresholds_take_the_place_of_the_intercept(fit):
    blocks = {p.name: p.block for p in fit.model.layout.parameters}
    assert not any("expert" in name and "Intercept" in name for name in blocks)
    cuts = [name for name, block in blocks.items() if block == "threshold"]
    assert cuts == [f"cut{k}({a}|{b})" for k in (1, 2) for a, b in pairwise(NAMES)]
    frame = fit.to_frame().loc[cuts]
    assert frame["p_value"].isna().all()
    np.testing.assert_allclose(frame["conf_low"], frame["estimate"] - 1.959964 * frame["std_error"], rtol=1e-6)
    assert "Thresholds" in str(fit.summary())
    ratios = fit.to_frame(exponentiate=True)
    np.testing.assert_allclose(ratios.loc[cuts, "estimate"], frame["estimate"])
    np.testing.assert_allclose(ratios.loc["expert1.time", "estimate"], np.exp(fit.params["expert1.time"]))


def test_hypotheses_about_thresholds(fit):
    one = fit.wald_test("cut1(none|quite mild) = cut2(none|quite mild), expert1.time = -expert2.time")
    assert isinstance(one, WaldTest)
    assert one.df == 2
    spread = "cut{0}(moderate|severe) - cut{0}(none|quite mild)"
    assert isinstance(fit.wald_test(f"{spread.format(1)} = {spread.format(2)}"), WaldTest)
    with pytest.raises(ArgumentError, match=r"Close names: .*cut1\(none\|quite mild\)"):
        fit.wald_test("cut1(none|mild) = 0")


@pytest.mark.parametrize(
    ("formula", "residual", "expected"),
    [
        ("time", "expert", ["cut1(1|2)", "cut1(2|3)", "cut1(3|4)", "cut2(1|2)", "cut2(2|3)", "cut2(3|4)"]),
        ("time", "common", ["cut1(1|2)", "cut2(1|2)", "step(2|3)", "step(3|4)"]),
        ("common(1) + time", "common", ["cut(1|2)", "cut(2|3)", "cut(3|4)"]),
        ("common(1) + time", "expert", ["cut(1|2)", "step1(2|3)", "step1(3|4)", "step2(2|3)", "step2(3|4)"]),
    ],
)
def test_what_experts_share(data, sharing, formula, residual, expected):
    fit = sharing(formula, residual)
    names = [p.name for p in fit.model.layout.parameters if p.block == "threshold"]
    assert names == expected
    assert fit.converged
    # A step of zero width, where an expert has no responses in a category, has no standard error.
    widths = fit.params[[name for name in names if name.startswith("step")]]
    shut = widths.index[widths < 1e-6]
    assert bool(len(shut)) == any(flag.code == "empty_category" for flag in fit.flags)
    assert fit.bse[shut].isna().all()
    assert (fit.bse.drop(shut) > 0).all()
    away, h = fit.params.to_numpy() * 1.05 + 0.02, 1e-5 * np.eye(len(fit.params))
    numeric = [(fit.model.loglike(away + step) - fit.model.loglike(away - step)) / 2e-5 for step in h]
    np.testing.assert_allclose(fit.model.score(away), numeric, atol=1e-6 * np.abs(numeric).max())
    back = fit.relabel([2, 1]).relabel([2, 1])
    pd.testing.assert_series_equal(back.params, fit.params, rtol=1e-9)
    assert fit.model.loglike(fit.relabel([2, 1]).params) == pytest.approx(fit.llf, abs=1e-8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        again = mm.fit(fit.model.formula.text, data, family="ordinal", residual=residual, start=fit.params, starts=0)
    assert again.llf == pytest.approx(fit.llf, abs=1e-8)
    means = fit.predict(data.head(), kind="all", scale="link")
    mixed = sum(means[f"probability{k}"] * means[f"expert{k}"] for k in (1, 2))
    np.testing.assert_allclose(means["mean"], mixed, atol=1e-12)


def test_sharing_thresholds_is_nested(sharing):
    fits = [sharing("time", "expert"), sharing("time", "common"), sharing("common(1) + time", "common")]
    assert fits[0].llf > fits[1].llf > fits[2].llf
    assert fits[0].lr_test(fits[1]).df == 2
    assert fits[1].lr_test(fits[2]).df == 1


def test_start_must_have_increasing_thresholds(fit):
    start = fit.params.copy()
    start["cut1(moderate|severe)"] = -9.0
    with pytest.raises(ArgumentError, match=r"start has thresholds .* of expert 1; they must increase"):
        fit.model.fit(start=start)


def test_intercept_alone_and_none(data):
    fit = quiet("y ~ 1 | re: (1 | id)", data, 1, family="ordinal")
    assert list(fit.params.index) == ["sd1(Intercept|id)", "cut1(1|2)", "cut1(2|3)", "cut1(3|4)"]
    flat = quiet("y ~ 1", data, 1, family="ordinal")
    share = np.cumsum(data["y"].value_counts(normalize=True).sort_index().to_numpy())[:-1]
    np.testing.assert_allclose(flat.params, logit(share), atol=1e-6)
    with pytest.raises(DesignError, match="leaves out the intercept, whose place the thresholds"):
        mm.fit("y ~ 0 + time | re: (1 | id)", data, 1, family="ordinal")


# ---- levels ----


def test_numbers_and_ordered_categories_are_one_model(data):
    unordered = data["y"].astype(int).astype("category")  # of numbers, which have an order
    named, numbers, categories = (
        quiet("y ~ time | re: (1 | id)", data.assign(y=y), 1, family="ordinal")
        for y in (data["pain"], data["y"], unordered)
    )
    np.testing.assert_allclose(numbers.params, named.params, atol=1e-8)
    pd.testing.assert_series_equal(numbers.params, categories.params)
    assert list(numbers.params.index)[-1] == "cut1(3|4)"
    pd.testing.assert_frame_equal(numbers.predict(), named.predict(), rtol=1e-6)  # no numbers count as 1, 2, 3 ...


def test_levels_that_are_numbers_count_as_themselves(data):
    half = data.assign(y=data["y"].map({1: 0.0, 2: 0.5, 3: 1.0, 4: 3.0}))
    plain, uneven = (quiet("y ~ time | re: (1 | id)", d, 1, family="ordinal") for d in (data, half))
    assert uneven.llf == pytest.approx(plain.llf, abs=1e-9)
    assert "cut1(0.5|1)" in uneven.params
    by_level = uneven.predict(kind="mean", scale="categories")[["P(0)", "P(0.5)", "P(1)", "P(3)"]]
    np.testing.assert_allclose(uneven.predict(kind="mean")["mean"], by_level @ [0, 0.5, 1, 3], rtol=1e-10)
    np.testing.assert_allclose(uneven.fitted() + uneven.resid(), half["y"])


def test_booleans_are_two_levels(data):
    fit = quiet("y ~ time | re: (1 | id)", data.assign(y=data["y"] > 2), 1, family="ordinal")
    assert "cut1(False|True)" in fit.params


@pytest.mark.parametrize("kind", ["object", "category"])
def test_texts_have_no_order(data, kind):
    texts = data.assign(pain=data["pain"].astype(str).astype(kind))
    with pytest.raises(
        DesignError, match=r"whose order is not known; put them in order.*pd\.Categorical\(data\['pain'\]"
    ):
        mm.fit("pain ~ time | re: (1 | id)", texts, 1, family="ordinal")


def test_empty_levels_are_left_out(data):
    wider = data.assign(pain=data["pain"].cat.set_categories([*NAMES[:2], "unseen", *NAMES[2:]]))
    with pytest.warns(CollinearityWarning, match="'pain' has no rows at 'unseen', which was left out"):
        fit = mm.fit("pain ~ time | re: (1 | id)", wider, 1, family="ordinal")
    assert "cut1(quite mild|moderate)" in fit.params


def test_levels_that_do_not_do(data):
    def fit(y):
        mm.fit("y ~ time | re: (1 | id)", data.assign(y=y), 1, family="ordinal")

    with pytest.raises(DesignError, match="the response 'y' is 2 in every row; it needs two levels"):
        fit(2)
    with pytest.raises(DesignError, match="'y' has 500 different values; family='ordinal' is for at most 50"):
        fit(np.arange(len(data)))
    with pytest.raises(DesignError, match="an ordinal response must be a column, got 'log\\(y\\)'"):
        mm.fit("log(y) ~ time | re: (1 | id)", data, 1, family="ordinal")
    with pytest.raises(DesignError, match="each of the 100 subjects has one row"):
        mm.fit("y ~ x1 | re: (1 | id)", data.groupby("id").head(1), 1, family="ordinal")


def test_missing_and_unseen_levels(data, fit):
    holes = data.copy()
    holes.loc[holes.index[:3], "pain"] = np.nan
    with pytest.warns(DroppedRowsWarning, match="3 of 500 rows were left out"):
        left = mm.fit("pain ~ time | re: (1 | id)", holes, 1, family="ordinal")
    assert left.nobs == 497
    new = data.head(5).assign(pain="dreadful")
    with pytest.raises(DesignError, match="is 'dreadful' in row 0, which the fit has not seen; known are 'none'"):
        fit.predict(data.tail(3), kind="subject", history=new)
    texts = data.head(5).assign(pain=data["pain"].astype(str))
    known = fit.predict(data.head(5), kind="subject", history=data.head(5))
    pd.testing.assert_frame_equal(fit.predict(data.head(5), kind="subject", history=texts), known)


# ---- predictions ----


def test_categories_add_up_to_the_response(fit):
    for kind, stem, mean in (("mean", "", "mean"), ("subject", "", "mean"), ("experts", "expert2.", "expert2")):
        frame = fit.predict(kind=kind, scale="categories", interval="confidence")
        by_level = frame[[f"{stem}P({name})" for name in NAMES]]
        np.testing.assert_allclose(by_level.sum(axis=1), 1.0, atol=1e-10)
        np.testing.assert_allclose(
            by_level @ [1, 2, 3, 4], fit.predict(kind=kind, interval="confidence")[mean], atol=1e-8
        )
        for name in by_level:
            assert ((frame[f"{name}_low"] <= frame[name]) & (frame[name] <= frame[f"{name}_high"])).all()
    assert list(fit.predict(kind="probabilities", scale="categories", interval="confidence")) == list(
        fit.predict(kind="probabilities", interval="confidence")
    )


def test_categories_of_experts_are_averages_over_the_random_effects(fit, data):
    e, b = fit.model.user(fit.em.params), np.random.default_rng(0).normal(size=400_000)
    row, k = data.iloc[:1], 1
    cuts = fit.params.filter(like="cut2(").to_numpy()
    eta = row[["time", "x1"]].to_numpy()[0] @ fit.params[["expert2.time", "expert2.x1"]] + e.factor[0, k, 0, 0] * b
    below = np.array([0.0, *(expit(c - eta).mean() for c in cuts), 1.0])
    found = fit.predict(row, kind="experts", scale="categories", interval="confidence")[
        [f"expert2.P({name})" for name in NAMES]
    ]
    np.testing.assert_allclose(found.to_numpy()[0], np.diff(below), atol=3e-3)
    link = fit.predict(row, kind="experts", scale="link", interval="confidence")
    np.testing.assert_allclose(link["expert2"], (eta - e.factor[0, k, 0, 0] * b)[0] - cuts[0], atol=1e-10)
    at = f"{row['time'].iloc[0]} * expert2.time + {row['x1'].iloc[0]} * expert2.x1 - cut2(none|quite mild)"
    np.testing.assert_allclose(fit.wald_test(f"{at} = 0").std_error[0], link["expert2_se"].iloc[0])


def test_limits_of_subjects_are_quantiles_over_experts_and_effects(fit, data, sharing):
    who = data["id"] == 7
    past = fit.predict(data[who], kind="all", history=data[who], interval="confidence")
    rng, e = np.random.default_rng(3), fit.model.user(fit.em.params)
    effects = fit.random_effects.loc[7]
    member = rng.random(200_000) < past["probability2"].iloc[0]
    X = data.loc[who, ["time", "x1"]].to_numpy()[2]
    cuts = fit.params.filter(like="cut").to_numpy().reshape(2, 3)
    draws = []
    for k in (0, 1):
        b = rng.normal(effects[f"expert{k + 1}", "Intercept"], effects[f"expert{k + 1}", "Intercept_se"], member.size)
        draws.append(kernel.category_probabilities((X @ e.beta[0, k, 1:] + b)[None], cuts[k : k + 1])[:, 0])
    drawn = np.where(member, draws[1], draws[0])  # (C, B)
    shown = fit.predict(data[who], kind="subject", scale="categories", interval="confidence").iloc[2]
    for j, name in enumerate(NAMES):
        limits = shown[[f"P({name})_low", f"P({name})_high"]]
        np.testing.assert_allclose(limits, np.quantile(drawn[j], [0.025, 0.975]), atol=4e-3)
        assert shown[f"P({name})_se"] == pytest.approx(drawn[j].std(), abs=2e-3)
    mean = fit.predict(data[who], kind="subject", interval="confidence").iloc[2]
    score = np.arange(1, 5) @ drawn
    np.testing.assert_allclose(mean[["mean_low", "mean_high"]], np.quantile(score, [0.025, 0.975]), atol=0.01)
    shared = sharing("time", "common").predict(kind="subject", interval="confidence")
    assert ((shared["mean_low"] < shared["mean"]) & (shared["mean"] < shared["mean_high"])).all()


def test_prediction_limits_hold_new_responses(fit, data):
    frame = fit.predict(kind="subject", interval="prediction", alpha=0.2)
    assert set(frame["mean_low"]) | set(frame["mean_high"]) <= {1.0, 2.0, 3.0, 4.0}
    assert ((frame["mean_low"] <= data["y"]) & (data["y"] <= frame["mean_high"])).mean() > 0.8
    with pytest.raises(ArgumentError, match="interval='prediction' holds a new response, got scale='categories'"):
        fit.predict(kind="subject", interval="prediction", scale="categories")


def test_categories_are_for_ordinal_responses(data):
    with pytest.raises(ArgumentError, match="scale='categories' is for family='ordinal', got family='gaussian'"):
        quiet("x1 ~ time | re: (1 | id)", data, 1).predict(scale="categories")


def test_pearson_residuals_and_draws(fit, data):
    pearson = fit.resid("pearson")
    assert 0.7 < pearson.std() < 1.1
    assert (np.sign(fit.resid("deviance")) == np.sign(fit.resid("subject"))).all()
    drawn = fit.simulate(rng=0, n=20)
    expected = fit.predict(kind="mean", scale="categories")[[f"P({name})" for name in NAMES]].mean()
    found = [(drawn == j).to_numpy().mean() for j in (1, 2, 3, 4)]
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_figures_name_the_levels(fit):
    axes = fit.plot("trajectories").axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == list(NAMES)
    figure = fit.plot("categories")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["expert 1", "expert 2"]
    sums = np.sum([curve.y for curve in fit.curves("categories")[:4]], axis=0)
    np.testing.assert_allclose(sums, 1.0, atol=1e-10)
    plt.close("all")


# ---- flags ----


def test_an_expert_without_responses_in_a_category():
    cuts = [[-25.0, 1.5, 3.0], [-3.0, -1.5, -1.5 + 1e-9]]
    sim = mm.simulate.memoe("ordinal", n_subjects=120, rng=1, cuts=cuts)
    with pytest.warns(BoundaryWarning, match="no responses in an ordered category"):
        fit = mm.fit(FORMULA, sim.data, rng=0, starts=8, family="ordinal")
    (flag,) = fit.flags
    assert flag.code == "empty_category"
    assert "(expert 1 in '1'; expert 2 in '3')" in flag.message
    assert list(fit.bse.index[fit.bse.isna()]) == ["cut1(1|2)"]  # infinite; two that meet have one standard error
    assert fit.bse["cut2(2|3)"] == pytest.approx(fit.bse["cut2(3|4)"], rel=1e-3)
    assert fit.params["cut1(1|2)"] < -12
    fewer = sim.data[~((sim.data["expert"] == 1) & (sim.data["y"] == 1))]
    single = quiet("y ~ time + x1 | re: (1 | id)", fewer[fewer["expert"] == 1], 1, family="ordinal")
    np.testing.assert_allclose(fit.params["cut1(2|3)"], single.params["cut1(2|3)"], atol=0.15)
    shared = quiet(FORMULA, sim.data, family="ordinal", residual="common")
    assert "empty_category" not in {flag.code for flag in shared.flags}
    assert fit.predict(scale="categories").notna().all(axis=None)


# ---- around ----


def test_truth_under_the_names_of_a_fit():
    sim = mm.simulate.memoe("ordinal", n_subjects=400, rng=3)
    fit = quiet(sim.formula, sim.data, family="ordinal")
    truth = sim.truth.named()
    assert set(truth.index) == set(fit.params.index)
    assert (np.abs(fit.params[truth.index] - truth) < 4 * fit.bse[truth.index]).all()
    turned = sim.truth.relabel([2, 1])
    np.testing.assert_array_equal(turned.cuts, sim.truth.cuts[::-1])
    shifted = mm.simulate.memoe("ordinal", n_subjects=5, beta=[[1.0, 0.6], [0.0, -0.6]], rng=0).truth.named()
    assert shifted["cut1(1|2)"] == pytest.approx(truth["cut1(1|2)"] - 1.0)
    with pytest.raises(ArgumentError, match="cuts must be increasing in each of 2 rows"):
        mm.simulate.memoe("ordinal", cuts=[[0.0, 1.0], [1.0, 0.0]])
    with pytest.raises(ArgumentError, match="cuts= is for ordinal responses, those of this preset are gaussian"):
        mm.simulate.memoe("moderate", cuts=[[0.0, 1.0], [0.0, 1.0]])


def test_selection_and_files(data, fit, tmp_path):
    table = mm.select("pain ~ time | gate: z1 | re: (1 | id)", data, experts=(1, 2), family="ordinal", starts=2, rng=0)
    assert table.best("bic").model.n_experts == 2
    fit.save(tmp_path / "fit.mixmoe")
    back = mm.load(tmp_path / "fit.mixmoe")
    pd.testing.assert_frame_equal(back.predict(scale="categories"), fit.predict(scale="categories"))
    assert back.model.design.response_levels == NAMES


def test_command_line(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data[["id", "time", "x1", "z1", "y", "pain"]].to_csv("data.csv", index=False)
    fit = ["fit", "data.csv", "y ~ time | gate: z1 | re: (1 | id)", "--family", "ordinal", "--starts", "4"]
    assert main([*fit, "--rng", "0", "--save", "f.mixmoe", "--plot", "p.png", "--plot-kind", "categories"]) == 0
    assert "expert 2: cut(3|4)" in capsys.readouterr().out
    assert (
        main(["predict", "f.mixmoe", "data.csv", "--kind", "mean", "--scale", "categories", "--interval", "confidence"])
        == 0
    )
    assert capsys.readouterr().out.startswith("id,P(1),P(1)_se,P(1)_low,P(1)_high,P(2)")
    fit[2] = "pain ~ time | re: (1 | id)"
    assert main(fit) != 0
    assert "whose order is not known" in capsys.readouterr().err


def test_shifted_covariates_and_patsy_change_nothing(data, fit):
    later = quiet("pain ~ year + x1 | gate: z1 | re: (1 | id)", data.assign(year=data["time"] + 2000), family="ordinal")
    assert later.llf == pytest.approx(fit.llf, abs=1e-8)
    moved = fit.params["cut1(none|quite mild)"] + 2000 * fit.params["expert1.time"]
    assert later.params["cut1(none|quite mild)"] == pytest.approx(moved, rel=1e-8)
    patsy = quiet("pain ~ time + x1 | gate: z1 | re: (1 | id)", data, family="ordinal", formula_engine="patsy")
    pd.testing.assert_series_equal(patsy.params, fit.params, rtol=1e-8)


def test_polars_enums_are_ordered(data):
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({name: data[name].to_numpy() for name in ("id", "time")})
    frame = frame.with_columns(polars.Series("pain", data["pain"].astype(str).tolist(), dtype=polars.Enum(NAMES)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = mm.fit("pain ~ time | re: (1 | id)", frame, 1, family="ordinal")
    assert re.match(r"cut1\(none\|quite mild\)", fit.params.index[-3])
