"""Predictions: delta method against numerical derivatives, posteriors against dense formulas, histories, coverage."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

import mixmoe as mm
from mixmoe.errors import ArgumentError, DesignError, DroppedRowsWarning, MixmoeWarning
from mixmoe.output.predictions import MixtureLaw
from tests import dense
from tests.fits import carried

FORMULA = "y ~ time + x1 | gate: z1 + z2 | re: (1 + time | id)"
Z = 1.959963984540054


@pytest.fixture(scope="module")
def data():
    return mm.simulate.memoe("moderate", n_subjects=150, n_visits=(1, 7), rng=5).data


@pytest.fixture(scope="module")
def fit(data):
    return carried(FORMULA, data)


@pytest.fixture(scope="module")
def named(fit):
    return fit.params.to_dict()


@pytest.fixture(scope="module")
def new():
    frame = mm.simulate.memoe("moderate", n_subjects=6, n_visits=3, rng=8).data.drop(columns=["y", "expert"])
    return frame.assign(id=frame["id"] + 1000).sample(frac=1, random_state=1)


def parts(fit, frame):
    """Trajectories (n, K) and gate probabilities (n, K) as functions of the reported parameters."""
    d = fit.model.design.for_new(frame)

    def of(vector):
        named = dense.as_named(fit.model.layout, vector)
        means = np.column_stack([d.expert @ e.beta for e in dense.experts(d, named, fit.model.n_experts)])
        gate = np.exp(dense.log_gate(d, named, fit.model.n_experts))[d.codes]
        return d.in_order(means), d.in_order(gate)

    return of


def delta_errors(function, at, cov):
    """Standard errors of a function of the parameters, with numerical derivatives."""
    steps = 1e-5 * np.maximum(np.abs(at), 0.1)
    J = [(function(at + h) - function(at - h)) / (2 * h.max()) for h in np.diag(steps)]
    return np.sqrt(np.einsum("p...,pr,r...->...", np.array(J), cov, np.array(J)))


# ---- population ----


def test_expert_trajectories(fit, new):
    of = parts(fit, new)
    frame = fit.predict(new, kind="experts", interval="confidence")
    error = delta_errors(lambda v: of(v)[0], fit.em.params, fit.cov.matrix)
    for k in range(2):
        name = f"expert{k + 1}"
        np.testing.assert_allclose(frame[name], of(fit.em.params)[0][:, k], rtol=1e-10)
        np.testing.assert_allclose(frame[f"{name}_se"], error[:, k], rtol=1e-6)
        np.testing.assert_allclose(frame[f"{name}_high"], frame[name] + Z * frame[f"{name}_se"])
        np.testing.assert_allclose(frame[f"{name}_low"], frame[name] - Z * frame[f"{name}_se"])
    assert frame.index.equals(new.index)


def test_expert_probabilities(fit, new):
    of = parts(fit, new)
    frame = fit.predict(new, kind="probabilities", interval="confidence")
    pi = of(fit.em.params)[1]
    error = delta_errors(lambda v: of(v)[1], fit.em.params, fit.cov.matrix)
    logit_error = delta_errors(lambda v: np.log(of(v)[1] / (1 - of(v)[1])), fit.em.params, fit.cov.matrix)
    for k in range(2):
        name = f"probability{k + 1}"
        np.testing.assert_allclose(frame[name], pi[:, k], rtol=1e-10)
        np.testing.assert_allclose(frame[f"{name}_se"], error[:, k], rtol=1e-6)
        upper = 1 / (1 + np.exp(-np.log(pi[:, k] / (1 - pi[:, k])) - Z * logit_error[:, k]))
        np.testing.assert_allclose(frame[f"{name}_high"], upper, rtol=1e-6)
    np.testing.assert_allclose(frame["probability1"] + frame["probability2"], 1)
    assert ((frame["probability1_low"] > 0) & (frame["probability1_high"] < 1)).all()


def test_marginal_mean(fit, new):
    of = parts(fit, new)

    def mean(v):
        trajectories, pi = of(v)
        return (trajectories * pi).sum(axis=1)

    frame = fit.predict(new, kind="mean", alpha=0.1, interval="confidence")
    np.testing.assert_allclose(frame["mean"], mean(fit.em.params), rtol=1e-10)
    np.testing.assert_allclose(frame["mean_se"], delta_errors(mean, fit.em.params, fit.cov.matrix), rtol=1e-6)
    np.testing.assert_allclose(frame["mean_high"] - frame["mean"], norm.isf(0.05) * frame["mean_se"])


def test_three_experts_with_common_coefficients():
    apart = [[0.0, 1.0], [12.0, 1.0], [24.0, 1.0]]
    sim = mm.simulate.memoe("three", n_subjects=150, n_visits=4, beta=apart, rng=9)
    fit = carried("y ~ common(time) | gate: z1 | re: (1 | id)", sim.data, 3)
    of = parts(fit, sim.data)
    frame = fit.predict(sim.data, interval="confidence")
    pi, error = of(fit.em.params)[1], delta_errors(lambda v: of(v)[1], fit.em.params, fit.cov.matrix)
    np.testing.assert_allclose(frame[[f"probability{k}" for k in (1, 2, 3)]], pi, rtol=1e-9)
    np.testing.assert_allclose(frame[[f"probability{k}_se" for k in (1, 2, 3)]], error, rtol=1e-5, atol=1e-9)
    error = delta_errors(lambda v: of(v)[0], fit.em.params, fit.cov.matrix)
    np.testing.assert_allclose(frame[[f"expert{k}_se" for k in (1, 2, 3)]], error, rtol=1e-6)
    error = delta_errors(lambda v: (of(v)[0] * of(v)[1]).sum(axis=1), fit.em.params, fit.cov.matrix)
    np.testing.assert_allclose(frame["mean_se"], error, rtol=1e-6)


def test_one_expert_is_certain():
    sim = mm.simulate.memoe("single", n_subjects=40, n_visits=4, rng=2)
    frame = mm.fit("y ~ time | re: (1 | id)", sim.data, 1).predict(sim.data, interval="confidence")
    assert (frame[["probability1", "probability1_low", "probability1_high"]] == 1).all(axis=None)
    assert (frame["probability1_se"] == 0).all()
    np.testing.assert_allclose(frame["mean"], frame["expert1"])
    np.testing.assert_allclose(frame["mean_se"], frame["expert1_se"])


# ---- subjects of the fit ----


def test_responsibilities_are_posterior_probabilities(fit, named):
    joint = dense.log_joint(fit.model.design, named, 2)
    expected = np.exp(joint - dense.logsumexp(joint)[:, None])
    np.testing.assert_allclose(fit.responsibilities, expected, rtol=1e-7, atol=1e-12)


def test_random_effects_are_blups(fit, named):
    means, covariances = dense.blups(fit.model.design, named, 2)
    ours = fit.random_effects
    tau = fit.responsibilities.to_numpy()[..., None]
    for k in range(2):
        for j, name in enumerate(("Intercept", "time")):
            np.testing.assert_allclose(ours[f"expert{k + 1}", name], means[:, k, j], rtol=1e-6, atol=1e-8)
            sd = np.sqrt(covariances[:, k, j, j])
            np.testing.assert_allclose(ours[f"expert{k + 1}", f"{name}_se"], sd, rtol=1e-6)
    mixed = (tau * means).sum(axis=1)
    second = (tau * (np.einsum("nkjj->nkj", covariances) + means**2)).sum(axis=1)
    np.testing.assert_allclose(ours["mixed"][["Intercept", "time"]], mixed, rtol=1e-6, atol=1e-8)
    sd = np.sqrt(second - mixed**2)
    np.testing.assert_allclose(ours["mixed"][["Intercept_se", "time_se"]], sd, rtol=1e-6)
    assert ours.index.equals(fit.responsibilities.index)


def subject_means(design, named, known, tau, means):
    """Mixture of expert trajectories plus random effects, for rows of `design`, subjects as in `known`."""
    of = pd.Index(known.labels).get_indexer(pd.Index(design.labels))[design.codes]
    betas = np.array([e.beta for e in dense.experts(known, named, tau.shape[1])])
    courses = design.expert @ betas.T + np.einsum("nq,nkq->nk", design.random, means[of])
    return (tau[of] * courses).sum(axis=1)


def test_conditional_fit_is_the_posterior_mean(fit, named, data):
    d = fit.model.design
    means, _ = dense.blups(d, named, 2)
    expected = d.in_order(subject_means(d, named, d, fit.responsibilities.to_numpy(), means))
    np.testing.assert_allclose(fit.fitted(), expected, rtol=1e-8)
    np.testing.assert_allclose(fit.predict(data, kind="subject")["mean"], expected, rtol=1e-8)
    np.testing.assert_allclose(fit.resid(), data["y"] - expected, atol=1e-7)
    np.testing.assert_allclose(fit.resid("mean"), data["y"] - fit.predict(data, kind="mean")["mean"], atol=1e-9)
    assert fit.fitted().index.equals(data.index)
    with pytest.raises(ArgumentError, match="kind must be one of 'subject', 'mean', got 'marginal'"):
        fit.fitted("marginal")


def test_interval_of_a_subject_is_that_of_a_normal_mixture(fit, named, data):
    """Mean, variance and quantiles of one row by hand."""
    d = fit.model.design
    means, covariances = dense.blups(d, named, 2)
    for interval, noise in (("confidence", 0.0), ("prediction", 1.0)):
        frame = fit.predict(data, kind="subject", interval=interval, alpha=0.2)
        for place in (0, 17, 60):
            row = int(np.flatnonzero(d.position == place)[0])
            unit = d.codes[row]
            x, z = d.expert[row], d.random[row]
            tau = fit.responsibilities.to_numpy()[unit]
            experts = dense.experts(d, named, 2)
            m = np.array([x @ e.beta + z @ means[unit, k] for k, e in enumerate(experts)])
            v = np.array([z @ covariances[unit, k] @ z + noise * e.sigma**2 for k, e in enumerate(experts)])
            mean = tau @ m
            assert frame["mean"].iloc[place] == pytest.approx(mean)
            assert frame["mean_se"].iloc[place] == pytest.approx(np.sqrt(tau @ (v + (m - mean) ** 2)))

            def below(q, tau=tau, m=m, v=v):
                return tau @ norm.cdf(q, m, np.sqrt(v))

            for column, level in (("mean_low", 0.1), ("mean_high", 0.9)):
                found = brentq(lambda q, level=level, below=below: below(q) - level, -1e3, 1e3, xtol=1e-10)
                assert frame[column].iloc[place] == pytest.approx(found, abs=1e-7)


# ---- dynamic prediction ----


@pytest.fixture(scope="module")
def strangers():
    """Past and future rows of subjects that the fit has not seen."""
    frame = mm.simulate.memoe("moderate", n_subjects=12, n_visits=5, rng=11).data
    frame = frame.assign(id=[f"new{i}" for i in frame["id"]]).sample(frac=1, random_state=2)
    return frame[frame["time"] < 3], frame[frame["time"] >= 3]


def test_history_of_strangers(fit, named, strangers):
    past, future = strangers
    known = fit.model.design.for_new(past, response=True)
    joint = dense.log_joint(known, named, 2)
    tau = np.exp(joint - dense.logsumexp(joint)[:, None])
    means, _ = dense.blups(known, named, 2)
    design = fit.model.design.for_new(future)
    frame = fit.predict(future, history=past)
    expected = design.in_order(subject_means(design, named, known, tau, means))
    np.testing.assert_allclose(frame["mean"], expected, rtol=1e-7)
    of = pd.Index(known.labels).get_indexer(future["id"])
    np.testing.assert_allclose(frame[["probability1", "probability2"]], tau[of], rtol=1e-6, atol=1e-10)
    assert frame.index.equals(future.index)
    pd.testing.assert_series_equal(frame["mean"], fit.predict(future, kind="subject", history=past)["mean"])


def test_history_given_is_the_history_used(fit, data):
    """For a subject of the fit, her rows given as history say the same as the fit's own; fewer rows say less."""
    subject = data.groupby("id").size().idxmax()
    own = data[data["id"] == subject]
    implicit, explicit = (
        fit.predict(own, kind="subject", interval="confidence"),
        fit.predict(own, kind="subject", history=own, interval="confidence"),
    )
    np.testing.assert_allclose(implicit, explicit, rtol=1e-9)
    less = fit.predict(own, kind="subject", history=own.iloc[:1], interval="confidence")
    assert (less["mean_se"] > implicit["mean_se"]).all()


def test_a_subject_without_history_is_predicted_from_the_gate(fit, strangers):
    past, future = strangers
    gone = past["id"].iloc[0]
    frame = fit.predict(future, kind="subject", history=past[past["id"] != gone])
    mine = future["id"] == gone
    marginal = fit.predict(future, kind="mean")
    np.testing.assert_allclose(frame["mean"][mine], marginal["mean"][mine], rtol=1e-10)
    assert not np.allclose(frame["mean"][~mine], marginal["mean"][~mine])


def test_more_history_sharpens_prediction(fit, strangers):
    past, future = strangers
    errors = [
        fit.predict(future, kind="subject", history=past[past["time"] <= last], interval="confidence")["mean_se"].mean()
        for last in (0.0, 1.3, 3)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_without_the_subject_column_rows_are_strangers(fit, data):
    with pytest.warns(MixmoeWarning, match="of the new data are not in the fit"):
        frame = fit.predict(data.drop(columns="id"), kind="subject")
    np.testing.assert_allclose(frame["mean"], fit.predict(data, kind="mean")["mean"], rtol=1e-10)


def test_rows_as_units_have_no_history(data):
    fit = carried("y ~ time | gate: z1", data)
    frame = fit.predict(data.iloc[:4], interval="confidence")
    assert list(frame.columns[-4:]) == ["mean", "mean_se", "mean_low", "mean_high"]
    assert len(fit.fitted()) == len(data)
    assert (fit.fitted() != fit.fitted("mean")).any()  # the row's own response tells its expert


def test_history_of_rows_without_subjects_is_refused(data):
    fit = carried("y ~ time | gate: z1", data)
    with pytest.raises(
        ArgumentError, match=r"has no subjects: nothing is known of a row but its own response, .* re: \(0 \| subject\)"
    ):
        fit.predict(data, history=data.head(3))


def test_prediction_interval_covers(fit):
    """New subjects of the fitted model, half of their visits known."""
    rng = np.random.default_rng(0)
    shape = mm.simulate.memoe("moderate", n_subjects=400, n_visits=6, rng=1).data.drop(columns="expert")
    twin = mm.MEMoE(FORMULA, shape, 2)
    drawn = type(fit)(twin, twin_record(twin, fit), fit.cov).simulate(rng)["draw1"]
    shape = shape.assign(y=drawn.to_numpy(), id=shape["id"] + 10_000)
    past, future = shape[shape["time"] < 2.5], shape[shape["time"] > 2.5]
    for level in (0.5, 0.9):
        frame = fit.predict(future, kind="subject", history=past, interval="prediction", alpha=1 - level)
        covered = future["y"].between(frame["mean_low"], frame["mean_high"])
        assert covered.mean() == pytest.approx(level, abs=0.05)  # 1,200 rows of 400 subjects


def twin_record(model, fit):
    """The estimates of `fit` as a record of a model of other data."""
    from dataclasses import replace

    return replace(fit.em, responsibilities=np.full((model.design.n_units, model.n_experts), 0.5))


# ---- missing values, order of rows ----


def test_missing_covariates_give_nan(fit, new):
    holed = new.copy()
    holed.iloc[2, holed.columns.get_loc("x1")] = np.nan
    holed.iloc[5, holed.columns.get_loc("z1")] = np.nan
    before = holed.copy()
    with pytest.warns(
        DroppedRowsWarning, match=r"2 of 18 rows were left out because of missing values \(x1: 1, z1: 1\)"
    ):
        frame = fit.predict(holed)
    assert frame.index.equals(new.index)
    assert list(np.flatnonzero(frame.isna().all(axis=1))) == [2, 5]
    pd.testing.assert_frame_equal(frame.drop(index=new.index[[2, 5]]), fit.predict(new).drop(index=new.index[[2, 5]]))
    pd.testing.assert_frame_equal(holed, before)


def test_the_response_of_new_rows_is_not_used(fit, new):
    pd.testing.assert_frame_equal(fit.predict(new), fit.predict(new.assign(y=np.nan)))


def test_rows_do_not_depend_on_one_another(fit, new):
    whole = fit.predict(new)
    pd.testing.assert_frame_equal(fit.predict(new.iloc[3:4]), whole.iloc[3:4])
    pd.testing.assert_frame_equal(fit.predict(new[::-1]), whole[::-1])


def test_other_kinds_of_frames(fit, new):
    polars = pytest.importorskip("polars")
    expected = fit.predict(new).to_numpy()
    for frame in (polars.DataFrame(new.to_dict("list")), {c: list(new[c]) for c in new}):
        np.testing.assert_allclose(fit.predict(frame).to_numpy(), expected)


# ---- kernels of prediction ----


def test_mixture_quantiles():
    rng = np.random.default_rng(3)
    weights, means = rng.dirichlet(np.ones(3), size=40), 10 * rng.normal(size=(40, 3))
    sd = rng.uniform(0.01, 5, size=(40, 3))
    for level in (0.001, 0.025, 0.5, 0.9, 0.9999):
        q = MixtureLaw(weights, means, sd).quantile(level)
        np.testing.assert_allclose((weights * norm.cdf(q[:, None], means, sd)).sum(axis=1), level, atol=1e-9)


def test_mixture_quantiles_at_the_edges():
    one = MixtureLaw(np.ones((1, 1)), np.array([[2.0]]), np.array([[3.0]])).quantile(0.975)
    assert one[0] == pytest.approx(2 + 3 * Z)
    points = MixtureLaw(np.array([[0.3, 0.7]]), np.array([[0.0, 1.0]]), np.zeros((1, 2))).quantile(0.5)
    assert points[0] == pytest.approx(1)
    sure = MixtureLaw(np.array([[1.0, 0.0]]), np.array([[0.0, 1e6]]), np.ones((1, 2))).quantile(0.025)
    assert sure[0] == pytest.approx(-Z, abs=1e-6)


# ---- simulation ----


def test_simulated_responses_have_the_moments_of_the_model(fit, data):
    draws = fit.simulate(rng=1, n=400)
    assert list(draws.columns[:2]) == ["draw1", "draw2"]
    assert draws.index.equals(data.index)
    mean, sd = draws.mean(axis=1), draws.std(axis=1)
    off = (mean - fit.predict(data, kind="mean", interval="confidence")["mean"]) / (sd / np.sqrt(400))
    assert off.abs().max() < 5
    strangers = fit.predict(data.drop(columns="id"), kind="mean", interval="prediction")
    np.testing.assert_allclose(sd, strangers["mean_se"], rtol=0.25)
    assert (sd / strangers["mean_se"]).mean() == pytest.approx(1, abs=0.03)


def test_simulation_is_reproducible(fit):
    pd.testing.assert_frame_equal(fit.simulate(3, n=2), fit.simulate(np.random.default_rng(3), n=2))
    assert not fit.simulate(3).equals(fit.simulate(4))
    with pytest.raises(ArgumentError, match=r"n must be a whole number of at least 1, got 2\.5"):
        fit.simulate(0, n=2.5)


# ---- curves ----


def test_trajectory_curves_are_predictions(fit, data):
    curves = fit.curves("trajectories", at={"x1": 0.5})
    assert [c.expert for c in curves] == [1, 2]
    grid = pd.DataFrame({"time": curves[0].x, "x1": 0.5, "z1": 0.0, "z2": 0.0})
    frame = fit.predict(grid, kind="experts", interval="confidence")
    for k, curve in enumerate(curves, start=1):
        np.testing.assert_allclose(curve.y, frame[f"expert{k}"])
        np.testing.assert_allclose(curve.upper, frame[f"expert{k}_high"])
    assert (curves[0].x[0], curves[0].x[-1]) == (data["time"].min(), data["time"].max())


def test_gate_curves_are_probabilities(fit):
    curves = fit.curves("gate", x="z1", at={"z2": 1.0})
    grid = pd.DataFrame({"z1": curves[0].x, "z2": 1.0, "time": 0.0, "x1": 0.0})
    frame = fit.predict(grid, kind="probabilities", interval="confidence")
    for k, curve in enumerate(curves, start=1):
        np.testing.assert_allclose(curve.y, frame[f"probability{k}"])
        np.testing.assert_allclose(curve.lower, frame[f"probability{k}_low"])
    np.testing.assert_allclose(curves[0].y + curves[1].y, 1)


def test_numbers_that_are_categories_are_held_at_one_of_them(data):
    """Their median, here 2.5, may be no category at all; and a curve cannot run along them."""
    stages = data.assign(stage=data["id"] % 4 + 1)
    fit = carried("y ~ C(stage) + time | gate: C(stage) | re: (1 | id)", stages, cov_type="nonrobust")
    curves = fit.curves()
    assert curves[0].xlabel == "time"
    frame = fit.predict(
        pd.DataFrame({"time": curves[0].x, "stage": stages["stage"].mode()[0]}), kind="experts", interval="confidence"
    )
    np.testing.assert_allclose(curves[0].y, frame["expert1"])
    assert curves[0].categories == ()
    gate = fit.curves("gate")
    assert gate[0].categories == ("1", "2", "3", "4")
    frame = fit.predict(pd.DataFrame({"time": 0.0, "stage": [1, 2, 3, 4]}), kind="probabilities", interval="confidence")
    for k, curve in enumerate(gate, start=1):
        np.testing.assert_allclose(curve.y, frame[f"probability{k}"])
        np.testing.assert_allclose(curve.upper, frame[f"probability{k}_high"])
    along = fit.curves(x="stage", at={"time": 2.0})
    frame = fit.predict(pd.DataFrame({"time": 2.0, "stage": [1, 2, 3, 4]}), kind="experts", interval="confidence")
    np.testing.assert_allclose(along[0].y, frame["expert1"])
    assert along[0].xlabel == "stage"


@pytest.mark.parametrize(("right", "places"), [("kind", ("a", "b")), ("1", ("all",))])
def test_without_a_numeric_column_there_are_points(right, places, data):
    named = data.assign(kind=np.where(data["id"] % 3 == 0, "a", "b"))
    fit = carried(f"y ~ {right} | gate: {right} | re: (0 | id)", named, cov_type="nonrobust")
    for kind in ("trajectories", "gate"):
        curves = fit.curves(kind)
        assert curves[0].categories == places
        assert len(curves[0].y) == len(places)
        axes = fit.plot(kind).axes[0]
        assert [label.get_text() for label in axes.get_xticklabels()] == list(places)
    np.testing.assert_allclose(sum(curve.y for curve in curves), 1)
    plt.close("all")


def test_curves_that_do_not_exist(fit):
    with pytest.raises(ArgumentError, match="kind must be one of 'trajectories', 'gate', got 'trace'"):
        fit.curves("trace")
    with pytest.raises(
        ArgumentError, match=r"one of 'trajectories', 'gate', 'responsibilities', 'residuals', 'qq', .*, got"
    ):
        fit.plot("trace")
    with pytest.raises(ArgumentError, match=r"x must be a column of the gate part, .*got 'time'"):
        fit.curves("gate", x="time")
    with pytest.raises(ArgumentError, match=r"at= holds 'w', which is not among the other columns \['x1'"):
        fit.curves("trajectories", at={"w": 1})


def test_an_unknown_option_of_a_figure_is_named(fit):
    with pytest.raises(ArgumentError, match="a figure has the options x=, at= and alpha=, got 'colour'"):
        fit.plot(colour="red")


def test_a_folder_is_no_file_to_save_to(fit, tmp_path):
    with pytest.raises(ArgumentError, match="path must name a file to write, got the folder"):
        fit.save(tmp_path)


def test_a_figure_that_does_not_exist(fit):
    with pytest.raises(ArgumentError, match=r"kind must be one of 'trajectories', 'gate', 'responsibilities', .*'qq'"):
        fit.plot("trace")


def test_a_history_of_others_is_said(fit, strangers):
    past, future = strangers
    with pytest.warns(MixmoeWarning, match="no subject of history= is in the new data"):
        fit.predict(future, kind="subject", history=past.assign(id=past["id"] + "x"))
    with pytest.raises(ArgumentError, match="history has no rows"):
        fit.predict(future, kind="subject", history=past.head(0))


def test_names_of_another_type_are_said(fit, data):
    as_text = data.head(3).astype({"id": str})
    for history in (None, data.head(3)):
        with pytest.raises(DesignError, match=r"'id' is '.*' \(str\) in the new data and .* \(int\) in what is known"):
            fit.predict(as_text, kind="subject", history=history)
    assert len(fit.predict(as_text, kind="mean")) == 3  # which needs to know nobody
