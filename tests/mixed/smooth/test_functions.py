"""What a fit with penalised functions offers: bands, tests, tables, files, predictions."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2

import mixmoe as mm
from mixmoe.design.design import column_terms
from mixmoe.errors import ArgumentError
from mixmoe.inference.wald import InvalidTest
from mixmoe.mixed.ascents import permute
from mixmoe.mixed.likelihood.observed import evaluate
from mixmoe.mixed.smooth.fitting import _as_search, between_subjects
from mixmoe.mixed.smooth.functions import geometry_of
from mixmoe.mixed.smooth.hypotheses import wood_test
from mixmoe.mixed.smooth.marginal import Smoothed
from mixmoe.report.described import elsewhere
from tests.mixed.smooth.data import TRUTH, two_experts

pytestmark = pytest.mark.filterwarnings("ignore:There are only", "ignore:Nothing but")
UNMOVED = {"unconditional": False}


@pytest.fixture(scope="module")
def frame():
    return two_experts(120)


@pytest.fixture(scope="module")
def fit(frame):
    return mm.fit("y ~ s(t) + s(t, by=x) | gate: z | re: (1 | id)", frame, 2, rng=0, starts=8)


@pytest.fixture(scope="module")
def swapped(fit):
    """Which expert of the fit is which of the truth."""
    spread = [np.ptp(part["estimate"]) for _, part in fit.bands(rng=0).groupby("coefficient", sort=False)]
    return (0, 1) if spread[1] > spread[3] else (1, 0)


def test_functions_stand_beside_the_lines_of_other_fits(fit, frame):
    line = mm.fit("y ~ t + x | gate: z | re: (1 | id)", frame, 2, rng=0, starts=2)
    made = next(one for one in mm.table({"line": line, "s": fit}).tables if one.key == "functions")
    tests = fit.test_functions()
    assert made.index[::2] == tuple(fit.functions.index)
    for i, name in enumerate(fit.functions.index):
        p = tests.loc[name, "p_value"]
        assert made.cells[2 * i] == (None, f"edf {fit.functions.loc[name, 'edf']:.2f}")
        assert made.cells[2 * i + 1] == (None, "(p <0.001)" if p < 0.001 else f"(p {p:.3f})")
    assert "functions" not in [one.key for one in mm.table([line]).tables]


def test_a_hypothesis_about_a_function_is_sent_to_its_test(fit):
    with pytest.raises(
        ArgumentError, match=r"'expert1\.s\(t\)' is a function, which test_functions\('expert1\.s\(t\)'\)"
    ):
        fit.wald_test("expert1.s(t) = 0")


def test_terms_hold_functions(fit):
    """Each function's term is tested as by itself; the table stands beside those of other terms."""
    frame = fit.wald_test_terms().to_frame().set_index(["block", "term"])
    for term in ("s(t)", "s(t, by=x)"):
        zero = fit.test_functions(term, "zero")
        row = frame.loc[("expert", term)]
        assert (row["statistic"], row["df"], row["p_value"]) == (zero.statistic, zero.df, zero.pvalue)
        equal = fit.test_functions(term, "equal")
        assert row["p_value_equal"] == equal.pvalue
    assert ("gate", "z") in frame.index
    assert "effective degrees of freedom" in str(fit.wald_test_terms())


def test_equality_of_three_is_walds_of_all_differences():
    """With whole rank, whichever expert the others are taken from."""
    rng = np.random.default_rng(0)
    A = rng.normal(size=(9, 9))
    b, V, rows = rng.normal(size=9), A @ A.T, rng.normal(size=(40, 3))
    turn = np.hstack([-np.tile(np.eye(3), (2, 1)), np.eye(6)])
    stacked = np.kron(np.eye(2), rows)
    statistic, rank, _ = wood_test(stacked, turn @ b, turn @ V @ turn.T, 6.0)
    other = np.hstack([np.eye(6), -np.tile(np.eye(3), (2, 1))])
    assert rank == 6
    assert statistic == pytest.approx(b @ other.T @ np.linalg.solve(other @ V @ other.T, other @ b))


def test_a_report_does_not_pass_the_ends_of_the_search_for_its_own(fit, tmp_path):
    fit.report(tmp_path / "r.html", figures=False)
    page = (tmp_path / "r.html").read_text()
    assert "without penalties" in page
    assert "Maxima that were run to convergence" not in page


def test_functions_are_found(fit, swapped):
    frame = fit.bands(rng=0)
    for k in (0, 1):
        part = frame[frame["coefficient"] == f"expert{k + 1}.s(t, by=x)"]
        truth = TRUTH[swapped[k]][1](part["t"].to_numpy())
        assert np.sqrt(np.mean((part["estimate"] - truth) ** 2)) < 0.08
        inside = (truth >= part["band_low"]) & (truth <= part["band_high"])
        assert inside.mean() > 0.9
        assert (part["band_low"] < part["conf_low"]).all()


def test_limits_are_those_of_the_covariance(fit):
    part = fit.bands(rng=0).iloc[:101]
    f = fit.model.functions[0]
    rows = f.basis(part["t"].to_numpy())
    V = fit.cov_params().to_numpy()[np.ix_(f.where, f.where)]
    np.testing.assert_allclose(part["std_error"], np.sqrt(np.diag(rows @ V @ rows.T)), rtol=1e-8)
    np.testing.assert_allclose(part["conf_high"] - part["conf_low"], 2 * 1.959964 * part["std_error"], rtol=1e-6)
    centre = rows @ (fit.params.to_numpy() + fit.cov.shift)[f.where]
    for low, high in (("conf_low", "conf_high"), ("band_low", "band_high")):
        np.testing.assert_allclose((part[low] + part[high]) / 2, centre, atol=1e-10)
    factor = (part["band_high"] - part["band_low"]) / (2 * part["std_error"])
    assert np.ptp(factor) < 1e-8
    assert 2.3 < factor.iloc[0] < 3.5


def test_differences_and_derivatives(fit):
    of = dict(iter(fit.bands(rng=0).groupby("coefficient")))
    difference = fit.bands("differences", rng=0)
    first = difference[difference["term"] == "s(t)"]
    np.testing.assert_allclose(
        first["estimate"], of["expert2.s(t)"]["estimate"].to_numpy() - of["expert1.s(t)"]["estimate"].to_numpy()
    )
    slope = fit.bands(derivative=1, rng=0).iloc[:101]
    by_hand = np.gradient(of["expert1.s(t)"]["estimate"].to_numpy(), slope["t"].to_numpy())
    np.testing.assert_allclose(slope["estimate"].iloc[1:-1], by_hand[1:-1], atol=0.1)


def test_trajectories_and_mean_agree_with_predictions(fit):
    at = {"x": 0.5, "z": 0.3}
    experts, mean = fit.bands("experts", at=at, rng=0), fit.bands("mean", at=at, rng=0)
    rows = pd.DataFrame({"t": mean["t"], "id": -1, **at})
    wanted = fit.predict(rows, "experts", interval="confidence")
    part = experts[experts["coefficient"] == "expert2"]
    np.testing.assert_allclose(part["estimate"], wanted["expert2"], atol=1e-10)
    np.testing.assert_allclose(part["std_error"], wanted["expert2_se"], rtol=1e-6)
    wanted = fit.predict(rows, "mean", interval="confidence")
    np.testing.assert_allclose(mean["estimate"], wanted["mean"], atol=1e-10)
    np.testing.assert_allclose(mean["conf_low"], wanted["mean_low"], rtol=1e-6)


def test_hypotheses(fit, swapped):
    flat = f"expert{1 + swapped.index(1)}.s(t, by=x)"
    bent = f"expert{1 + swapped.index(0)}.s(t, by=x)"
    constant, zero = fit.test_varying(), fit.test_functions(hypothesis="zero")
    assert constant.loc[bent, "p_value"] < 1e-6
    assert constant.loc[flat, "p_value"] > 0.01
    assert zero.loc[flat, "p_value"] > 0.01
    assert fit.test_functions(hypothesis="linear").loc[bent, "p_value"] < 1e-6
    assert fit.test_functions(hypothesis="equal")["p_value"].max() < 1e-6
    both = fit.test_varying(f"{flat.split('.')[0]}")
    assert len(both.functions) == 2
    assert str(both).startswith("Test of functions, constant under the null")
    with pytest.raises(ArgumentError, match=r"'s\(u\)', which is no function of the fit"):
        fit.test_varying("s(u)")
    with pytest.raises(ArgumentError, match="'equal' has method='asymptotic'"):
        fit.test_functions(hypothesis="equal", method="bootstrap")


def test_bootstrap_of_constancy(frame):
    fit = mm.fit("y ~ s(t, k=7) | re: (1 | id)", frame[frame["id"] < 50], 1, rng=0)
    bent = fit.test_varying("s(t)", method="bootstrap", n_boot=19, rng=0)
    assert bent.n_boot == bent.null.size == 19
    assert bent.null.min() > -1e-3  # of draws of constants: the wider model is never worse
    assert bent.pvalue == 1 / 20
    assert bent.statistic > 5 * bent.null.max()


def test_woods_statistic_of_whole_rank_is_walds():
    """Without penalty the rank is the number of columns, and the test is the chi-squared one."""
    rng = np.random.default_rng(0)
    X, b, A = rng.normal(size=(50, 4)), rng.normal(size=4), rng.normal(size=(4, 6))
    V = A @ A.T
    statistic, rank, p = wood_test(X, b, V, 4.0)
    assert rank == 4.0
    assert statistic == pytest.approx(b @ np.linalg.solve(V, b))
    assert p == pytest.approx(chi2.sf(statistic, 4))


def test_criteria_count_effective_parameters(fit):
    edf = fit.functions["edf"]
    plain = [p for p in fit.model.layout.parameters if p.block != "smooth"]
    assert fit.df_model == pytest.approx(edf.sum() + len(plain), abs=0.3)
    assert fit.aic == pytest.approx(-2 * fit.llf + 2 * fit.df_model)
    assert fit.bic == pytest.approx(-2 * fit.llf + np.log(120) * fit.df_model)
    assert (edf <= fit.functions["max_df"]).all()


def test_summary_has_a_table_of_functions(fit):
    table = next(t for t in fit.tables() if t.key == "functions")
    assert table.columns == ("edf", "lambda", "P const.", "Minimum", "Maximum")
    values = next(t for t in fit.tables() if t.key == "function_values")
    assert values.index[:3] == ("expert1.s(t)", "  lower", "  upper")
    lines = [line.split() for line in str(mm.table([fit])).splitlines()]
    at = lines.index(["expert1.s(t)", "edf", f"{fit.functions.loc['expert1.s(t)', 'edf']:.2f}"])
    assert lines[at + 1] == ["(p", "<0.001)"]
    assert not any("s(t).line" in word for line in lines for word in line)
    assert "s(t).line" not in str(fit.summary())
    assert "expert1.s(t).line" in fit.to_frame().index
    assert "expert1.s(t)" in fit.to_latex()


def test_a_file_holds_the_smoothing_parameters(fit, tmp_path):
    fit.save(tmp_path / "fit.moe")
    again = mm.load(tmp_path / "fit.moe")
    assert type(again) is type(fit)
    pd.testing.assert_frame_equal(again.functions, fit.functions)
    pd.testing.assert_frame_equal(again.bands(rng=1), fit.bands(rng=1))
    pd.testing.assert_frame_equal(again.test_varying(), fit.test_varying())
    assert again.bic == fit.bic


def test_relabelling_takes_the_functions_along(fit):
    other = fit.relabel([2, 1])
    assert other.functions.loc["expert1.s(t)", "lambda"] == fit.functions.loc["expert2.s(t)", "lambda"]
    assert other.bic == pytest.approx(fit.bic, abs=1e-6)
    a, b = fit.bands(rng=0), other.bands(rng=0)
    mine, theirs = a[a["coefficient"] == "expert2.s(t)"], b[b["coefficient"] == "expert1.s(t)"]
    np.testing.assert_allclose(mine["std_error"], theirs["std_error"], rtol=1e-6)


def test_predictions_with_history(fit, frame):
    known, new = frame[frame["id"] < 3], frame[frame["id"] < 3].iloc[::2]
    found = fit.predict(new, "subject", history=known, interval="confidence")
    np.testing.assert_allclose(found["mean"], fit.predict(kind="subject")["mean"].loc[new.index], atol=1e-8)
    assert (found["mean_se"] > 0).all()


def test_likelihood_ratios_are_refused(fit, frame):
    line = mm.fit("y ~ t + x | gate: z | re: (1 | id)", frame, 2, rng=0, starts=4)
    for test in (fit.lr_test(line), line.lr_test(fit)):
        assert isinstance(test, InvalidTest)
    refused = fit.test_experts(n_boot=19)
    assert isinstance(refused, InvalidTest)
    assert "do not maximise the likelihood" in refused.reason


def test_restricted_likelihood_is_refused(frame):
    with pytest.raises(ArgumentError, match="method='reml' is not offered with functions"):
        mm.MEMoE("y ~ s(t) | re: (1 | id)", frame, 1, method="reml")


def test_lines_and_small_bases_are_flagged(frame):
    rough = frame.assign(y=np.sin(4 * np.pi * frame["t"]) + 0.1 * frame["y"])
    with pytest.warns(mm.errors.ApproximationWarning, match="close to what the basis has"):
        assert "small_basis" in [f.code for f in mm.fit("y ~ s(t, k=7) | re: (1 | id)", rough, 1).flags]
    rng = np.random.default_rng(0)
    flat = frame.assign(y=rng.normal(size=len(frame)) + rng.normal(size=120)[frame["id"]])
    with pytest.warns(mm.errors.BoundaryWarning, match="A line would do"):
        assert "line" in [f.code for f in mm.fit("y ~ s(t) | re: (1 | id)", flat, 1).flags]


def test_an_index_that_is_constant_within_subjects_is_flagged(frame):
    """In the experts, beside random effects; not in the gate, nor where its multiplier varies."""
    data = frame[frame["id"] < 60]
    with pytest.warns(mm.errors.DegeneracyWarning, match=r"The index of expert1.s\(z\) does not vary within"):
        mm.fit("y ~ s(z, k=5) + s(t, k=5) | re: (1 | id)", data, 1)
    design = mm.MEMoE("y ~ s(z, k=5, by=x) | gate: s(z, k=5) | re: (1 | id)", data, 2)
    assert not between_subjects(design.functions, design.design)
    rows = mm.MEMoE("y ~ s(z, k=5)", data, 1)
    assert not between_subjects(rows.functions, rows.design)


def test_a_fit_starts_from_another(fit, frame):
    again = mm.fit(fit.model.formula, frame, 2, start=fit, cov_type="nonrobust")
    assert again.llf == pytest.approx(fit.llf, abs=1e-2)
    np.testing.assert_allclose(again.functions["edf"], fit.functions["edf"], rtol=0.01)


def test_other_covariances(fit):
    plain = fit.with_cov("nonrobust")
    ratio = plain.bands(rng=0)["std_error"] / fit.bands(rng=0)["std_error"]
    assert ratio.between(0.6, 1.6).all()
    drawn = fit.with_cov("bootstrap", n_boot=4, rng=0)
    assert drawn.cov.note.startswith("4 resamples")
    assert "did not converge" not in drawn.cov.note
    assert np.isfinite(drawn.bands(rng=0)["std_error"]).all()


def test_unknown_smoothing_parameters_move_limits_and_leave_tests(fit, frame):
    """Limits are wider, and lie around the fit with the smoothing parameters that its model says."""
    given = fit.with_cov("robust", **UNMOVED)
    assert given.cov.shift is None
    narrow, wide = (fit.with_cov("nonrobust", **o).bands(rng=0)["std_error"] for o in (UNMOVED, {}))
    assert (narrow <= wide * (1 + 1e-9)).all()
    of_limits = fit.model.smoothing.of_limits
    moved = of_limits < 0.9 * fit.functions["lambda"].to_numpy()
    assert moved.any()
    assert not moved.all()
    names = dict(zip(fit.functions.index, of_limits, strict=True))
    formula = fit.model.formula.text
    there = mm.fit(formula, frame, 2, smoothing=names, start=fit, starts=0, cov_type="nonrobust")
    ours, theirs = (f.bands(rng=0) for f in (fit.with_cov("nonrobust"), there))
    away = (ours["conf_low"] + ours["conf_high"]) / 2 - theirs["estimate"]
    assert np.abs(away / ours["std_error"]).max() < 0.1  # a step of the quadratic model against the maximum
    assert np.abs((ours["estimate"] - theirs["estimate"]) / ours["std_error"]).max() > 0.3
    assert (
        ours["std_error"] <= 1.1 * theirs["std_error"]
    ).all()  # which takes the prior that it is given for the truth
    pd.testing.assert_frame_equal(given.test_varying(), fit.test_varying())
    assert "errors are given the smoothing parameters" in " ".join(str(given.summary()).split())
    assert "hold the uncertainty of the smoothing parameters" in " ".join(str(fit.summary()).split())
    with pytest.raises(ArgumentError, match="'bootstrap' has no option 'unconditional'"):
        fit.with_cov("bootstrap", **UNMOVED)
    for name in ("unconditional", "correction"):  # a text would be taken for yes
        with pytest.raises(ArgumentError, match=f"{name}= must be True or False, got 'False'"):
            fit.with_cov("robust", **{name: "False"})
    with pytest.raises(ArgumentError, match="unconditional= is for formulas with functions"):
        mm.fit("y ~ t | re: (1 | id)", frame, 1, **UNMOVED)


def test_figures(fit):
    pytest.importorskip("matplotlib").use("Agg")
    for kind in ("functions", "derivatives", "trajectories"):
        assert fit.plot(kind).axes
    labels = {curve.panel: curve.ylabel for curve in fit.curves()}
    assert labels == {"s(t)": "value, centred over the rows", "s(t, by=x)": "value"}
    assert {curve.ylabel for curve in fit.curves("derivatives")} == {"value"}
    with pytest.raises(ArgumentError, match="derivative=1 is for of='coefficients'"):
        fit.bands("mean", derivative=1)
    with pytest.raises(ArgumentError, match=r"at=.* is for of='experts'"):
        fit.bands(at={"x": 1.0})


@pytest.mark.filterwarnings("ignore:The Laplace")
@pytest.mark.parametrize("family", ["binomial", "ordinal"])
def test_bands_of_other_families_agree_with_predictions(frame, family):
    """Linear predictors of experts, of ordinal ones with minus a threshold for an intercept; the mean by its link."""
    y = pd.cut(frame["y"], [-9, 0, 1, 9], labels=False) if family == "ordinal" else (frame["y"] > 0.5).astype(int)
    fit = mm.fit("y ~ s(t, k=6) + x | re: (1 | id)", frame.assign(y=y), 1, family=family, rng=0)
    experts, mean = fit.bands("experts", at={"x": 0.5}, rng=0), fit.bands("mean", at={"x": 0.5}, rng=0)
    rows = pd.DataFrame({"t": mean["t"], "x": 0.5, "id": -1})
    wanted = fit.predict(rows, "experts", interval="confidence", scale="link")
    np.testing.assert_allclose(experts["estimate"], wanted["expert1"], atol=1e-10)
    np.testing.assert_allclose(experts["std_error"], wanted["expert1_se"], rtol=1e-6)
    wanted = fit.predict(rows, "mean", interval="confidence")
    for ours, theirs in {"estimate": "mean", "std_error": "mean_se", "conf_low": "mean_low"}.items():
        np.testing.assert_allclose(mean[ours], wanted[theirs], rtol=1e-6)
    assert (mean["band_low"] < mean["conf_low"]).all()
    assert mean["band_low"].min() > 0


@pytest.mark.filterwarnings("ignore:The Laplace", "ignore:The quadrature")
def test_functions_hardly_depend_on_how_effects_are_integrated_out(frame):
    """Laplace's method per subject, as in every other MEMoE: a finer integral moves functions by hundredths."""
    data = frame[frame["id"] < 40].assign(y=(frame["y"] > 0.5).astype(int))
    curves = [
        mm.fit("y ~ s(t, k=7) | re: (1 | id)", data, 1, family="binomial", n_quad=q).bands(rng=0)["estimate"]
        for q in (1, 5)
    ]
    assert np.abs(curves[0] - curves[1]).max() < 2e-2 * np.ptp(curves[1])


@pytest.mark.parametrize("family", ["poisson", "ordinal"])
def test_other_families(frame, family):
    data = frame.assign(y=np.minimum(frame["count"], 3))
    fit = mm.fit("y ~ s(t, k=8) | re: (1 | id)", data, 1, family=family, rng=0)
    assert fit.converged
    assert fit.functions["edf"].iloc[0] > 1.5
    assert np.isfinite(fit.bands(rng=0)[["band_low", "band_high"]]).all().all()
    assert len(fit.predict(kind="mean")) == len(data)


def test_serial_errors(frame):
    fit = mm.fit("y ~ s(t, k=8) | re: (1 | id)", frame, 1, errors="car1", time="t", rng=0)
    assert fit.converged
    assert fit.functions["edf"].iloc[0] > 3


def test_vary_beside_re(frame):
    fit = mm.fit("y ~ x + const(z) | gate: z | re: (1 | id) | vary: t", frame, 2, rng=0, starts=8)
    assert fit.functions.index.tolist() == [
        "expert1.Intercept", "expert1.x", "expert2.Intercept", "expert2.x",
    ]  # fmt: skip
    assert fit.test_varying("expert1.x").functions == ("expert1.x",)
    assert "Gate coefficients are constant" in str(fit.summary())


def test_spline_smoother_for_independent_rows():
    drawn = mm.simulate.vcmoe(n=200, rng=0)
    model = mm.MEMoE(drawn.formula, drawn.data, 2, smoother="spline")
    assert {f.columns.section for f in model.functions} == {"expert", "gate"}
    fit = mm.fit(drawn.formula, drawn.data, 1, smoother="spline", rng=0)
    assert fit.converged
    with pytest.raises(ArgumentError, match="is for formulas with a section 'vary:'"):
        mm.fit("y ~ x", drawn.data, 2, smoother="spline")


@pytest.mark.filterwarnings("ignore:Only one of")
def test_spline_smoother_is_functions_of_rows():
    """Spelled out by hand, by rows or with one row per subject, it is the same likelihood, penalties and limits."""
    drawn = mm.simulate.vcmoe(n=80, rng=0)
    short = mm.fit(
        drawn.formula, drawn.data, 2, smoother="spline", smoothing=2.0, starts=1, rng=0, cov_type="nonrobust"
    )
    points = short.model.working(short.em.params) + 0.1 * np.random.default_rng(0).normal(size=(3, short.params.size))
    expected = evaluate(short.model.problem, points)
    for units in ("", " | re: (0 | row)"):
        formula = f"y ~ 0 + s(u, by=1) + s(u, by=z1) | gate: 0 + s(u, by=1) + s(u, by=x1){units}"
        plain = mm.MEMoE(formula, drawn.data.assign(row=np.arange(80)), 2, smoothing=2.0)
        long = plain.at(short.em.smoothing, plain.working(short.em.params))
        found = evaluate(long.problem, points)
        np.testing.assert_allclose(found.loglik, expected.loglik, rtol=1e-10)
        np.testing.assert_allclose(found.score, expected.score, rtol=1e-8, atol=1e-8)
        assert long.smoothing.marginal == pytest.approx(short.marginal_llf, abs=1e-8)
        again = long.results(short.em, long.covariance(short.em, "nonrobust"))
        np.testing.assert_allclose(again.bands(rng=0)["band_low"], short.bands(rng=0)["band_low"], rtol=1e-8, atol=1e-9)


def test_an_estimate_keeps_the_order_of_its_smoothing_parameters(fit):
    """Also where experts are not in the order of their probabilities: each has its own smoothing parameters."""
    model = fit.model
    theta = permute(model.problem, model.working(fit.em.params), [1, 0])
    at = model.at(fit.em.smoothing[[2, 3, 0, 1]], theta)
    geometry = geometry_of(at.functions, at.problem.free, at.structure, at.coordinates)
    nothing = np.zeros(theta.size)
    found = Smoothed(theta, at.smoothing.lambdas, nothing, np.empty(0), 0, 0, True, False)
    recorded = at.record(_as_search(at, geometry, found))
    assert recorded.loglik == pytest.approx(fit.llf, abs=1e-8)
    np.testing.assert_allclose(recorded.params, model.natural(theta), rtol=1e-10)
    assert recorded.penalty == pytest.approx(fit.em.penalty, rel=1e-8)


def test_columns_of_the_coarse_design_have_their_terms(fit):
    coarse = fit.model.coarse().design
    for section in ("gate", "expert"):
        assert len(column_terms(coarse, section)) == getattr(coarse, section).shape[1]


def test_simulate(fit):
    assert fit.simulate(rng=0, n=2).shape == (720, 2)


def test_report_tells_that_starts_were_searched_without_penalties(fit, tmp_path):
    """Distances are among the starts: the fit's log-likelihood is that of another model."""
    ends = fit.em.starts.logliks.max() - np.array([0.0, 3.0])
    starts = replace(fit.em.starts, ends=ends, n_replicated=1)
    assert elsewhere(replace(fit.em, starts=starts)).startswith("Of the other starts, 1 ended 3 to 3 below the best")
    fit.report(tmp_path / "fit.html")
    assert "Starts were searched with few columns for each function and without penalties" in " ".join(
        (tmp_path / "fit.html").read_text().split()
    )


def test_functions_of_experts_that_meet_are_joined_as_the_marginal_likelihood_says():
    """Two lines that cross: joined as two kinks the likelihood without penalties is as high, their bends cost."""
    rng = np.random.default_rng(0)
    u, k = rng.uniform(size=200), rng.integers(2, size=200)
    frame = pd.DataFrame({"u": u, "y": np.where(k == 0, 2 * u - 1, 1 - 2 * u) + 0.2 * rng.normal(size=200)})
    fit = mm.fit("y ~ 1 | vary: u", frame, 2, smoother="spline", rng=0, starts=8, cov_type="nonrobust")
    assert (fit.functions["edf"] < 2.1).all()
    found = fit.bands(rng=0).query("block == 'expert'").set_index("u")["estimate"]
    slopes = [part.iloc[-1] - part.iloc[0] for part in (found.iloc[:101], found.iloc[101:])]
    np.testing.assert_allclose(sorted(slopes), [-2.0, 2.0], atol=0.3)


@pytest.mark.filterwarnings("ignore::mixmoe.errors.DegeneracyWarning")
def test_functions_of_fewer_subjects_than_parameters_have_no_tests():
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"t": rng.uniform(size=90), "x": rng.normal(size=90), "id": np.repeat([1, 2, 3], 30)})
    data["y"] = np.sin(3 * data["t"]) + 0.2 * data["id"] + rng.normal(size=90, scale=0.4)
    fit = mm.fit("y ~ s(t) + x | re: (1 | id)", data, experts=1, rng=0)
    # The three subjects are three, whatever the number of coefficients that are penalised.
    assert any("The scores of the 3 subjects, with" in flag.message for flag in fit.flags)
    functions = fit.test_varying()
    assert functions[["statistic", "df", "p_value"]].isna().all(axis=None)
    invalid = fit.test_varying("s(t)")
    assert isinstance(invalid, InvalidTest)
    assert "no standard errors" in invalid.reason
    summary = str(fit.summary())
    assert "expert1.s(t)" in summary
    assert "nan" not in summary
    assert "nan" not in fit.to_latex()
    assert "nan" not in str(fit.wald_test_terms())
    trusted = mm.fit("y ~ s(t) + x | re: (1 | id)", data, experts=1, rng=0, cov_type="nonrobust")
    assert trusted.test_varying("s(t)").pvalue < 0.05


def test_constants_beside_an_intercept_that_varies_are_coded_against_their_first_level():
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"t": rng.uniform(size=120), "g": np.tile(["a", "b", "c"], 40)})
    data["y"] = np.sin(6 * data["t"]) + 0.5 * (data["g"] == "b") + rng.normal(scale=0.3, size=120)
    fit = mm.fit("y ~ const(g) | vary: t", data, experts=1, smoother="spline")
    assert [name for name in fit.params.index if "g[" in name] == ["expert1.g[T.b]", "expert1.g[T.c]"]
    assert fit.params["expert1.g[T.b]"] == pytest.approx(0.5, abs=0.2)
    shifted = fit.predict(data.assign(g="b"))["mean"] - fit.predict(data.assign(g="a"))["mean"]
    np.testing.assert_allclose(shifted, fit.params["expert1.g[T.b]"])
