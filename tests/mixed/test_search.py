"""Maximum likelihood: EM never decreases, the score is zero at the optimum, experts in order, options, Ctrl-C."""

import inspect
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError, BoundaryWarning, ConvergenceWarning, DegeneracyWarning
from mixmoe.mixed import estimation
from mixmoe.mixed import search as estimate
from mixmoe.mixed.ascents import Guarded, permute
from mixmoe.mixed.em import em_iterations
from mixmoe.mixed.likelihood.observed import Problem, evaluate
from mixmoe.mixed.search import order_experts, search
from mixmoe.mixed.starting_values import fit_one_expert, random_starts, split_merge_starts
from mixmoe.numerics.optimise import Control, Evaluation, climb
from tests import dense
from tests.fits import carried

FORMULA = "y ~ time + x1 | gate: z1 + z2 | re: (1 + time | id)"
SCORE = 1e-5  # per subject, in working coordinates


@pytest.fixture(scope="module")
def data():
    return mm.simulate.memoe("separated", n_subjects=80, n_visits=4, rng=1).data


@pytest.fixture(scope="module")
def fit(data):
    return mm.fit(FORMULA, data, rng=0)


def starting_points(model, n, seed=0):
    rng = np.random.default_rng(seed)
    one = fit_one_expert(model.problem, Control())
    return random_starts(model.problem, one, n, 1, rng)


# ---- ascent ----


@pytest.mark.parametrize("residual", ["expert", "common"])
@pytest.mark.parametrize("cov_re", ["expert", "common", "proportional"])
@pytest.mark.parametrize("random", ["(1 + time | id)", "(1 + time || id)", "(0 | id)"])
def test_em_never_decreases(cov_re, residual, random, data):
    formula = f"y ~ time + common(x1) | gate: z1 | re: {random}"
    model = mm.MEMoE(formula, data, 3, cov_re=cov_re, residual=residual)
    _, trace = em_iterations(model.problem, starting_points(model, 6), 15)
    assert trace.shape == (6, 30)
    assert np.diff(trace, axis=1).min() > -1e-7
    assert (trace[:, -1] > trace[:, 0]).all()


def test_em_and_quasi_newton_have_the_same_fixed_points(fit):
    model = fit.model
    theta = model.working(fit.em.params)
    moved, trace = em_iterations(model.problem, theta[None], 3)
    assert trace[0] == pytest.approx(trace[0, 0], abs=1e-8)
    assert moved[0] == pytest.approx(theta, abs=1e-6)


def test_the_trace_never_decreases_and_ends_at_the_log_likelihood(fit):
    assert np.diff(fit.em.trace).min() > -1e-8
    assert fit.em.trace[-1] == pytest.approx(fit.llf, abs=1e-6)
    assert fit.em.n_iter >= 1
    assert fit.em.n_evaluations >= fit.em.n_iter


@pytest.mark.parametrize("cov_re", ["expert", "common", "proportional"])
@pytest.mark.parametrize("random", ["(1 + time | id)", "(1 | id)", "(0 | id)"])
def test_score_is_zero_at_the_optimum(cov_re, random, data):
    fit = carried(f"y ~ time + common(x1) | gate: z1 | re: {random}", data, cov_re=cov_re)
    assert fit.converged
    assert fit.model.largest_score(fit.params) < SCORE
    assert fit.llf == pytest.approx(fit.model.loglike(fit.params), abs=1e-8)
    score = dense.scores(fit.model, fit.params).sum(axis=0) / fit.n_units
    assert np.abs(score * np.maximum(np.abs(fit.params), 1)).max() < SCORE


@pytest.mark.parametrize("preset", ["moderate", "three"])
def test_parameters_are_recovered(preset):
    sim = mm.simulate.memoe(preset, n_subjects=800, n_visits=6, rng=3)
    fit = mm.fit(sim.formula, sim.data, sim.truth.n_experts, rng=0)
    found = fit.params[[f"expert{k}.Intercept" for k in range(1, sim.truth.n_experts + 1)]].to_numpy()
    order = np.abs(found[:, None] - sim.truth.beta[:, 0]).argmin(axis=1) + 1
    truth = sim.truth.relabel(order.tolist()).named()
    assert (((fit.params - truth[fit.params.index]) / fit.bse).abs() < 4).all()
    assert (order[fit.classify()["expert"] - 1] == sim.experts).mean() > 0.85


# ---- order of experts ----


def test_experts_are_ordered_by_gate_probability(data):
    fit = mm.fit("y ~ time + x1 | gate: z1 | re: (1 | id)", data, 3, rng=0)
    share = fit.proportions()["estimate"]
    assert share.is_monotonic_decreasing
    assert share.sum() == pytest.approx(1)


@pytest.mark.parametrize("cov_re", ["expert", "common", "proportional"])
def test_permuting_experts_keeps_the_likelihood(cov_re, data):
    model = mm.MEMoE("y ~ time + common(x1) | gate: z1 | re: (1 + time | id)", data, 3, cov_re=cov_re)
    theta = starting_points(model, 1)[0]
    value = evaluate(model.problem, theta[None]).loglik[0]
    for order in ([0, 1, 2], [2, 0, 1], [1, 0, 2]):
        moved = permute(model.problem, theta, order)
        assert evaluate(model.problem, moved[None]).loglik[0] == pytest.approx(value, rel=1e-11)
        back = permute(model.problem, moved, list(np.argsort(order)))
        assert back == pytest.approx(theta, abs=1e-9)
        assert order_experts(model.problem, moved) == pytest.approx(order_experts(model.problem, theta), abs=1e-9)


# ---- options ----


def test_the_result_does_not_depend_on_the_seed_of_an_easy_problem(fit, data):
    for seed in (1, 2, np.random.default_rng(3)):
        other = mm.fit(FORMULA, data, rng=seed)
        assert other.llf == pytest.approx(fit.llf, abs=1e-7)
        assert other.params.to_numpy() == pytest.approx(fit.params.to_numpy(), rel=1e-5, abs=1e-5)


def test_the_same_seed_gives_the_same_bits(data):
    first, second = (mm.fit(FORMULA, data, rng=5, starts=4) for _ in range(2))
    pd.testing.assert_series_equal(first.params, second.params, check_exact=True)


def test_starts_are_counted(fit, data):
    assert fit.em.starts.n_starts >= 64
    assert 1 <= fit.em.starts.n_replicated <= fit.em.starts.n_starts
    assert fit.em.starts.logliks[0] == pytest.approx(fit.llf, abs=1e-6)
    assert (np.diff(fit.em.starts.logliks) <= 0).all()
    assert mm.fit(FORMULA, data, 1).em.starts.n_starts == 1


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            {"summits": np.array([-1.0, -1.25, -4.0])},
            r"one of 3 independent searches \(9 starts in all\) .* the others ended 0\.25, 3 below it: .* to 36\)",
        ),
        ({"summits": np.array([-1.0, -np.inf])}, r"Only one of 9 starts reached .* raise starts= .*to 36\)"),
        ({"summits": np.array([-1.0])}, r"Only one of 9 starts reached .* raise starts= .*to 36\)"),
    ],
)
def test_a_value_that_one_search_or_start_reached_is_flagged(facts, message, data, monkeypatch):
    facts = {"n_starts": 9, "n_replicated": 1, **facts}
    monkeypatch.setattr(estimation, "search", lambda *args: replace(search(*args), **facts))
    with pytest.warns(ConvergenceWarning, match=message):
        fit = mm.fit("y ~ time | re: (1 | id)", data, rng=0, starts=2)
    assert [flag.code for flag in fit.flags] == ["not_replicated"]
    assert fit.converged


def test_two_searches_that_agree_are_enough(data, monkeypatch):
    facts = {"summits": np.array([-1.0, -1.0005, -4.0]), "n_starts": 9, "n_replicated": 2}
    monkeypatch.setattr(estimation, "search", lambda *args: replace(search(*args), **facts))
    assert mm.fit("y ~ time | re: (1 | id)", data, rng=0, starts=2).flags == ()


@pytest.mark.parametrize("form", ["results", "series", "dict", "array"])
def test_start_takes_several_forms(form, fit, data):
    start = {"results": fit, "series": fit.params, "dict": fit.params.to_dict(), "array": fit.params.to_numpy()}[form]
    again = mm.fit(FORMULA, data, start=start)
    assert again.em.starts.n_starts == 1
    assert again.llf == pytest.approx(fit.llf, abs=1e-9)
    assert again.em.n_iter <= 3
    assert again.params.to_numpy() == pytest.approx(fit.params.to_numpy(), rel=1e-6, abs=1e-6)


def test_start_may_come_from_other_data(fit):
    other = mm.simulate.memoe("separated", n_subjects=60, n_visits=5, rng=9).data
    warm = mm.fit(FORMULA, other, start=fit)
    cold = mm.fit(FORMULA, other, rng=0)
    assert warm.llf == pytest.approx(cold.llf, abs=1e-6)


def test_start_adds_to_random_starts(fit, data):
    both = mm.fit(FORMULA, data, start=fit, starts=4, rng=0)
    assert both.em.starts.n_starts >= 5
    assert both.llf == pytest.approx(fit.llf, abs=1e-7)


def test_a_bad_start_is_refused(fit, data):
    with pytest.raises(ArgumentError, match=r"start has no value for 'expert1\.x1'; give all of expert1\.Intercept"):
        mm.fit(FORMULA, data, start=fit.params.drop("expert1.x1"))
    with pytest.raises(ArgumentError, match=r"start must have 17 values, one per parameter, got shape \(3,\)"):
        mm.fit(FORMULA, data, start=[1.0, 2.0, 3.0])
    for name, value in (("sigma1", -1.0), ("expert1.time", np.nan), ("sd1(time|id)", np.inf)):
        with pytest.raises(ArgumentError, match=f"has {name.replace('(', '.').replace('|', '.')[:5]}.* = {value}"):
            mm.fit(FORMULA, data, start=fit.params.where(fit.params.index != name, value))


def test_a_start_without_noise_or_beyond_correlation_one_is_refused(fit, data):
    for name, value in (("sigma1", 0.0), ("corr2(Intercept,time|id)", 1.5)):
        start = fit.params.copy()
        start[name] = value
        with pytest.raises(ArgumentError, match=f"= {value}; values must be finite, .*correlations between -1 and 1"):
            mm.fit(FORMULA, data, start=start)


def test_a_start_on_the_boundary_is_accepted(fit, data):
    start = fit.params.copy()
    start["sd1(time|id)"], start["corr1(Intercept,time|id)"] = 0.0, np.nan
    again = mm.fit(FORMULA, data, start=start, starts=4, rng=0)
    assert again.llf == pytest.approx(fit.llf, abs=1e-6)


@pytest.mark.parametrize("cov_re", ["expert", "common", "proportional"])
def test_a_start_without_random_effects_is_left(cov_re, data):
    """At a variance of zero the score is zero by symmetry; an ascent must not take that for a maximum."""
    formula = "y ~ time + x1 | gate: z1 | re: (1 + time || id)"
    fit = mm.fit(formula, data, rng=0, cov_re=cov_re)
    start = fit.params.where(~fit.params.index.str.startswith("sd"), 0.0)
    again = mm.fit(formula, data, start=start, cov_re=cov_re)
    assert again.llf == pytest.approx(fit.llf, abs=1e-6)


@pytest.mark.filterwarnings("ignore:Only one of", "ignore::mixmoe.errors.BoundaryWarning")
def test_too_few_iterations_are_flagged(data):
    with pytest.warns(ConvergenceWarning, match=r"stopped before it converged \(largest score .* raise max_iter"):
        fit = mm.fit(FORMULA, data, starts=6, rng=0, max_iter=1, tol=1e-16)
    assert not fit.converged
    assert "not_converged" in [flag.code for flag in fit.flags]
    assert "NO" in str(fit.summary())


def test_a_looser_tolerance_takes_fewer_iterations(fit, data):
    start = fit.params + 0.05
    start = start.where(~start.index.str.startswith("corr"), 0.0)
    counts = [mm.fit(FORMULA, data, start=start, tol=tol).em.n_iter for tol in (1e-2, 1e-9)]
    assert counts[0] < counts[1]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"starts": 0}, "starts must be a whole number of at least 1, got 0"),
        ({"starts": 2.5}, "starts must be a whole number of at least 1, got 2.5"),
        ({"max_iter": 0}, "max_iter must be a whole number of at least 1, got 0"),
        ({"tol": 0.0}, "tol must be a finite number above zero, got 0.0"),
        ({"tol": "small"}, "tol must be a finite number above zero, got 'small'"),
        ({"rng": "seed"}, "rng must be a whole number, a numpy.random.Generator or None, got 'seed'"),
        ({"cov_type": "hc3"}, "cov_type must be one of 'nonrobust', .* got 'hc3'"),
        ({"cov_re": "shared"}, "cov_re must be one of 'expert', 'common', 'proportional', got 'shared'"),
        ({"residual": None}, "residual must be one of 'expert', 'common', got None"),
        ({"strats": 4}, "fit has no option 'strats'; did you mean 'starts'"),
    ],
)
def test_bad_options(option, message, data):
    with pytest.raises(ArgumentError, match=message):
        mm.fit(FORMULA, data, **option)


def test_options_of_fit_are_those_that_are_documented():
    named = {name for name, p in inspect.signature(mm.MEMoE.fit).parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert named == {"starts", "start", "max_iter", "tol", "rng", "cov_type", "checkpoint", "progress"}


# ---- sizes ----


def test_subjects_with_one_row():
    sim = mm.simulate.memoe("separated", n_subjects=120, n_visits=(1, 3), rng=2)
    counts = sim.data.groupby("id").size()
    assert (counts == 1).sum() > 10
    fit = mm.fit("y ~ time + x1 | gate: z1 | re: (1 | id)", sim.data, rng=0)
    assert fit.converged
    assert np.isfinite(fit.bse).all()
    named = fit.params.to_dict()
    assert fit.llf == pytest.approx(dense.logliks(fit.model.design, named, 2).sum(), rel=1e-9)
    assert len(fit.random_effects) == 120


def test_only_one_row_per_subject_needs_no_random_effects():
    sim = mm.simulate.memoe("latent_class", n_subjects=200, n_visits=1, beta=[[0.0, 0.0, 2.0], [9.0, 0.0, -1.0]], rng=2)
    by_subject = mm.fit("y ~ x1 | gate: z1 | re: (0 | id)", sim.data, rng=0)
    by_row = mm.fit("y ~ x1 | gate: z1", sim.data, rng=0)
    assert by_subject.llf == pytest.approx(by_row.llf, abs=1e-9)
    pd.testing.assert_series_equal(by_subject.params, by_row.params, rtol=1e-6)
    pd.testing.assert_series_equal(by_subject.bse, by_row.bse, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Only one of")
@pytest.mark.parametrize("bars", ["|", "||"])
def test_six_random_effects(bars):
    rng = np.random.default_rng(4)
    subject = np.repeat(np.arange(60), 14)
    Z = rng.normal(size=(len(subject), 5))
    effects = rng.normal(size=(60, 6))
    frame = pd.DataFrame(Z, columns=list("abcde")).assign(id=subject)
    noise = rng.normal(size=len(subject))
    frame["y"] = (
        10 * (subject % 2) + (np.column_stack([np.ones(len(subject)), Z]) * effects[subject]).sum(axis=1) + noise
    )
    fit = carried(f"y ~ a | re: (1 + a + b + c + d + e {bars} id)", frame)
    assert fit.converged
    assert fit.model.largest_score(fit.params) < SCORE
    named = fit.params.to_dict()
    assert fit.llf == pytest.approx(dense.logliks(fit.model.design, named, 2).sum(), rel=1e-9)
    assert fit.random_effects["mixed"].shape == (60, 12)
    n_random = 2 * (6 + (15 if bars == "|" else 0))
    assert len(fit.params) == 4 + 1 + n_random + 2


def test_forty_expert_columns():
    rng = np.random.default_rng(5)
    subject = np.repeat(np.arange(100), 5)
    X = rng.normal(size=(len(subject), 39))
    columns = [f"c{j}" for j in range(39)]
    slopes = np.where(subject[:, None] % 2, rng.normal(size=39), rng.normal(size=39))
    y = (X * slopes).sum(axis=1) + rng.normal(size=100)[subject] + rng.normal(size=len(subject))
    frame = pd.DataFrame(X, columns=columns).assign(id=subject, y=y)
    with pytest.warns(DegeneracyWarning, match="only 50 subjects for 40 coefficients of expert 1, 50 subjects for 40"):
        fit = mm.fit(f"y ~ {' + '.join(columns)} | re: (1 | id)", frame, rng=0, starts=2)
    assert fit.converged
    assert fit.model.largest_score(fit.params) < SCORE
    assert fit.entropy > 0.9
    found = fit.params[[f"expert{fit.classify()['expert'].iloc[1]}.{c}" for c in columns]]
    assert found.to_numpy() == pytest.approx(slopes[5], abs=0.5)


@pytest.mark.filterwarnings("ignore:Only one of")
def test_eight_experts():
    rng = np.random.default_rng(6)
    subject = np.repeat(np.arange(240), 3)
    time = np.tile(np.arange(3.0), 240)
    y = 10 * (subject % 8) + 0.5 * rng.normal(size=240)[subject] + rng.normal(size=len(subject)) + time
    fit = mm.fit(
        "y ~ common(time) | re: (1 | id)", pd.DataFrame({"id": subject, "time": time, "y": y}), 8, rng=0, starts=16
    )
    assert fit.converged
    centres = np.sort([fit.params[f"expert{k}.Intercept"] for k in range(1, 9)])
    assert centres == pytest.approx(np.arange(8) * 10, abs=1)
    assert fit.proportions()["estimate"].to_numpy() == pytest.approx(1 / 8, abs=0.02)


def test_more_subjects_than_the_search_uses(monkeypatch, data):
    monkeypatch.setattr(estimate, "_SEARCH_ABOVE", 50)
    monkeypatch.setattr(estimate, "_SEARCH_SUBJECTS", 40)
    model = mm.MEMoE("y ~ time | re: (1 | id)", data, 2)
    seen = []
    original = Problem.take

    def take(self, subjects):
        seen.append(len(subjects))
        return original(self, subjects)

    monkeypatch.setattr(Problem, "take", take)
    part = model.fit(rng=0, starts=6)
    assert max(seen) < 80 or 80 in seen
    monkeypatch.undo()
    assert part.llf == pytest.approx(model.fit(rng=0, starts=6).llf, abs=1e-6)


# ---- flags ----


def test_a_zero_variance_is_flagged():
    rng = np.random.default_rng(8)
    subject = np.repeat(np.arange(50), 4)
    noise = rng.normal(size=200)
    noise -= pd.Series(noise).groupby(subject).transform("mean").to_numpy()  # subjects vary less than chance
    frame = pd.DataFrame({"id": subject, "x": rng.normal(size=200), "y": noise})
    with pytest.warns(BoundaryWarning, match="The random-effects covariance is singular"):
        fit = mm.fit("y ~ x | re: (1 | id)", frame, 1)
    assert [flag.code for flag in fit.flags] == ["boundary"]
    assert fit.params["sd1(Intercept|id)"] == 0
    assert np.isnan(fit.bse["sd1(Intercept|id)"])
    assert fit.bse.drop("sd1(Intercept|id)").notna().all()
    assert fit.llf == pytest.approx(mm.fit("y ~ x | re: (0 | id)", frame, 1).llf, abs=1e-8)


def test_a_separating_gate_is_flagged():
    rng = np.random.default_rng(9)
    subject = np.repeat(np.arange(80), 4)
    group = (subject % 2).astype(float)
    frame = pd.DataFrame({"id": subject, "g": group, "y": 20 * group + rng.normal(size=320) * (1 + group)})
    with pytest.warns(  # two experts of forty subjects: either comes first
        BoundaryWarning,
        match="g leaves no subjects to expert 1 where g = (0; to expert 2 where g = 1|1; to expert 2 where g = 0)",
    ):
        fit = mm.fit("y ~ 1 | gate: g | re: (0 | id)", frame, rng=0)
    assert "separated_gate" in [flag.code for flag in fit.flags]


@pytest.mark.filterwarnings("ignore:What is said about")
def test_a_tiny_expert_is_flagged():
    rng = np.random.default_rng(10)
    subject = np.repeat(np.arange(80), 4)
    frame = pd.DataFrame({"id": subject, "x": rng.normal(size=320), "y": rng.normal(size=320) + 50.0 * (subject == 7)})
    with (
        pytest.warns(DegeneracyWarning, match=r"Expert 2 is carried by 1\.0 subjects for 2 coefficients of its own"),
        pytest.warns(DegeneracyWarning, match=r"expert2\.Intercept, expert2\.x, sigma2 have no standard errors"),
    ):
        fit = mm.fit("y ~ x | re: (0 | id)", frame, rng=0)
    assert [flag.code for flag in fit.flags] == ["small_expert", "few_subjects", "weak_identification"]


def test_an_exact_fit_of_two_subjects_is_not_preferred():
    sim = mm.simulate.memoe("separated", n_subjects=60, n_visits=4, rng=3).data
    line = sim["id"].isin([5, 9])
    sim.loc[line, "y"] = 12.0 + 0.7 * sim.loc[line, "time"] + 1e-2 * np.random.default_rng(1).normal(size=line.sum())
    fit = mm.fit("y ~ time | re: (1 | id)", sim, 2, rng=0)
    assert fit.params[["sigma1", "sigma2"]].min() > 0.3
    assert fit.em.responsibilities.sum(axis=0).min() > 10


def test_collapsed_solutions_are_not_preferred():
    """A subject whose rows lie on a line makes the likelihood unbounded."""
    sim = mm.simulate.memoe("separated", n_subjects=60, n_visits=3, rng=3).data
    sim.loc[sim["id"] == 5, "y"] = 12.0
    fit = mm.fit("y ~ time | re: (1 | id)", sim, rng=0)
    assert min(fit.params["sigma1"], fit.params["sigma2"]) > 0.1
    assert "degenerate" not in [flag.code for flag in fit.flags]


def test_candidates_are_distinct_and_close_to_the_best():
    logliks = np.array([-np.inf, -5.0, -1.0, -1.0 - 1e-6, -np.inf, -2.0, -90.0])
    assert list(estimate.candidates(logliks, 10.0)) == [2, 5, 1]
    assert list(estimate.candidates(np.full(3, -np.inf), 10.0)) == [0]


# ---- optimiser ----


def quadratic(centre, curvature):
    def objective(theta):
        off = theta - centre
        return Evaluation(-0.5 * ((off @ curvature) * off).sum(axis=1), -off @ curvature)

    return objective


def test_climb_reaches_the_top_from_every_start():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4))
    centre = rng.normal(size=4)
    end = climb(
        quadratic(centre, root @ root.T + np.eye(4)),
        rng.normal(size=(5, 4)),
        np.tile(np.eye(4), (5, 1, 1)),
        1,
        Control(),
    )
    assert end.converged.all()
    assert end.theta == pytest.approx(np.tile(centre, (5, 1)), abs=1e-5)
    assert not end.interrupted
    assert all(len(trace) == n + 1 for trace, n in zip(end.traces, end.n_iter, strict=True))


def test_climb_survives_values_that_are_not_finite():
    def objective(theta):
        bad = theta[:, 0] > 1
        e = quadratic(np.array([0.9]), np.eye(1))(theta)
        return Evaluation(np.where(bad, np.nan, e.loglik), np.where(bad[:, None], np.nan, e.score))

    starts = np.array([[-3.0], [2.0]])
    end = climb(objective, starts, np.tile(5 * np.eye(1), (2, 1, 1)), 1, Control())
    assert end.theta[0] == pytest.approx(0.9, abs=1e-5)
    assert list(end.converged) == [True, False]
    assert end.loglik[1] == -np.inf


def test_climb_stops_at_max_iter():
    end = climb(
        quadratic(np.zeros(2), np.diag([1.0, 100.0])), np.ones((1, 2)), np.eye(2)[None] / 50, 1, Control(max_iter=2)
    )
    assert end.n_iter[0] == 2
    assert not end.converged[0]


# ---- Ctrl-C ----


class _Interrupting:
    """An objective of which the user tires after a number of evaluations."""

    def __init__(self, monkeypatch, after):
        self.calls, self.after, original = 0, after, Guarded.__call__

        def call(guarded, theta):
            self.calls += 1
            if self.calls == self.after:
                raise KeyboardInterrupt
            return original(guarded, theta)

        monkeypatch.setattr(Guarded, "__call__", call)


def count_calls(monkeypatch, data):
    counter = _Interrupting(monkeypatch, after=-1)
    mm.fit(FORMULA, data, rng=0, starts=8)
    monkeypatch.undo()
    return counter.calls


@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_ctrl_c_gives_the_best_fit_so_far(share, fit, data, monkeypatch):
    total = count_calls(monkeypatch, data)
    _Interrupting(monkeypatch, after=max(2, int(share * total)))
    with pytest.warns(ConvergenceWarning, match=r"The fit was interrupted .* pass the results as start= to go on"):
        stopped = mm.fit(FORMULA, data, rng=0, starts=8)
    monkeypatch.undo()
    assert "interrupted" in [flag.code for flag in stopped.flags]
    assert not stopped.converged
    assert np.isfinite(stopped.params.drop([n for n in stopped.params.index if n.startswith("corr")])).all()
    assert stopped.llf <= fit.llf + 1e-9
    assert "interrupted" in str(stopped.summary())
    resumed = mm.fit(FORMULA, data, start=stopped)
    assert resumed.llf >= stopped.llf - 1e-9


@pytest.mark.parametrize("where", ["fit_one_expert", "random_starts", "split_merge_starts"])
def test_ctrl_c_outside_the_optimiser(where, data, monkeypatch):
    original = getattr(estimate, where)

    def interrupted(*args, **kwargs):
        original(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(estimate, where, interrupted)
    if where == "split_merge_starts":
        with pytest.warns(ConvergenceWarning, match="was interrupted"):
            assert not mm.fit(FORMULA, data, rng=0, starts=8).converged
    else:
        with pytest.raises(KeyboardInterrupt):  # there is nothing yet that could be returned
            mm.fit(FORMULA, data, rng=0, starts=8)


def test_searching_and_moves_are_reproducible(data):
    model = mm.MEMoE(FORMULA, data, 3)
    one = fit_one_expert(model.problem, Control())
    theta = starting_points(model, 1)[0]
    moves = [split_merge_starts(model.problem, one, theta, 3, 2, np.random.default_rng(1)) for _ in range(2)]
    np.testing.assert_array_equal(*moves)
    found = [search(model.problem, 4, Control(), np.random.default_rng(1)) for _ in range(2)]
    np.testing.assert_array_equal(found[0].theta, found[1].theta)


def test_a_progress_bar_only_when_asked(data, capsys):
    mm.fit(FORMULA, data, rng=0, starts=4)
    assert capsys.readouterr().err == ""
    mm.fit(FORMULA, data, rng=0, starts=4, progress=True)
    assert "starts" in capsys.readouterr().err
    assert Control().progress is False
