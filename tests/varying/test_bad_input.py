"""Bad input: each item is a clear error or a flagged warning, never a silent number."""

import numpy as np
import pandas as pd
import pytest

from mixmoe.errors import (
    ArgumentError,
    BoundaryWarning,
    ConvergenceWarning,
    DegeneracyWarning,
    DesignError,
    DroppedRowsWarning,
    FormulaError,
)
from mixmoe.varying.bandwidth import rule_of_thumb, usable_rule
from mixmoe.varying.model import VCMoE
from mixmoe.varying.presets import vcmoe

FORMULA = "y ~ z1 | gate: x1 | vary: u"


@pytest.fixture(scope="module")
def frame():
    return vcmoe(n=300, rng=1).data


def test_constant_index(frame):
    with pytest.raises(DesignError, match=r"index 'u' of vary: is 0\.5 in all 300 rows"):
        VCMoE(FORMULA, frame.assign(u=0.5))


def test_index_with_too_few_values(frame):
    with pytest.raises(DesignError, match="only 3 different values"):
        VCMoE(FORMULA, frame.assign(u=np.arange(300) % 3.0))


def test_index_that_is_a_factor(frame):
    with pytest.raises(DesignError, match="'u'"):
        VCMoE(FORMULA, frame.assign(u=np.where(frame["u"] > 0.5, "late", "early")))


def test_missing_index_drops_the_row(frame):
    gaps = frame.assign(u=frame["u"].where(np.arange(300) > 4))
    with pytest.warns(DroppedRowsWarning, match="5 of 300"):
        model = VCMoE(FORMULA, gaps, bandwidth=0.3)
    assert model.design.n == 295


def test_infinite_index(frame):
    with pytest.raises(DesignError, match="inf"):
        VCMoE(FORMULA, frame.assign(u=frame["u"].mask(frame.index == 7, np.inf)))


def test_ties_are_fine_as_long_as_windows_hold_three_values(frame):
    tied = frame.assign(u=np.round(frame["u"] * 20.0) / 20.0)
    fit = VCMoE(FORMULA, tied, bandwidth=0.3).fit(rng=0, starts=3)
    assert fit.converged
    with pytest.raises(DesignError, match=r"different values .*ties"):
        VCMoE(FORMULA, tied, bandwidth=0.06).fit(rng=0)


@pytest.mark.parametrize("value", [0.0, -0.2, np.nan, True, None, [0.2]])
def test_impossible_bandwidths(frame, value):
    with pytest.raises(ArgumentError, match="bandwidth must be a positive number"):
        VCMoE(FORMULA, frame, bandwidth=value)


def test_unknown_bandwidth_rule(frame):
    with pytest.raises(ArgumentError, match="bandwidth must be one of 'cv', 'rule', got 'silverman'"):
        VCMoE(FORMULA, frame, bandwidth="silverman")


def test_bandwidth_smaller_than_the_gaps(frame):
    with pytest.raises(DesignError, match=r"window of bandwidth 1e-05 .* \(bandwidth=\S+ is wide enough\)"):
        VCMoE(FORMULA, frame, bandwidth=1e-5).fit(rng=0)
    with pytest.raises(DesignError, match=r"window of bandwidth 1e-05 .* \(gate_bandwidth=\S+ is wide enough\)"):
        VCMoE(FORMULA, frame, bandwidth=0.3, gate_bandwidth=1e-5).fit(rng=0)


def test_thin_windows_are_named_with_their_effective_size(frame):
    with pytest.raises(DesignError, match=r"at u=0\.\d+ the window of bandwidth 0\.03 has an effective sample size of"):
        VCMoE(FORMULA, frame, bandwidth=0.03).fit(rng=0)


def test_grid_must_cover_the_range(frame):
    with pytest.raises(ArgumentError, match="grid must cover the whole range"):
        VCMoE(FORMULA, frame, grid=[0.2, 0.5, 0.8])
    with pytest.raises(ArgumentError, match="ascending"):
        VCMoE(FORMULA, frame, grid=[0.0, 0.5, 0.5, 1.0])


def test_coarse_grid_is_flagged(frame):
    with pytest.warns(ConvergenceWarning, match="grid step"):
        fit = VCMoE(FORMULA, frame, bandwidth=0.3, n_grid=5).fit(rng=0, starts=3)
    assert [f.code for f in fit.flags] == ["coarse_grid"]


@pytest.mark.parametrize(
    ("family", "bad", "message"),
    [
        ("poisson", 1.5, r"response 'y' is 1\.5 in row 3; for family='poisson' it must be a count"),
        ("negbinomial", -1.0, r"response 'y' is -1 in row 3"),
        ("binomial", 11.0, r"response 'y' is 11 in row 3; .* at most the number of trials"),
    ],
)
def test_impossible_responses(family, bad, message):
    data = vcmoe(n=200, family=family, rng=1).data
    data.loc[3, "y"] = bad
    options = {"trials": "trials"} if family == "binomial" else {}
    with pytest.raises(DesignError, match=message):
        VCMoE(FORMULA, data, family=family, bandwidth=0.4, **options)


def test_impossible_trials_and_weights(frame):
    data = vcmoe(n=200, family="binomial", rng=1).data
    with pytest.raises(DesignError, match=r"number of trials is 0 in row 0"):
        VCMoE(FORMULA, data.assign(trials=0.0), family="binomial", trials="trials")
    with pytest.raises(DesignError, match="pass trials= for successes"):
        VCMoE(FORMULA, data.assign(y=np.arange(200) % 5.0), family="binomial")
    with pytest.raises(DesignError, match="weights must be finite and not negative, got -1 in row 0"):
        VCMoE(FORMULA, frame.assign(w=-1.0), weights="w")
    with pytest.raises(ArgumentError, match="trials='x1' is for family='binomial'"):
        VCMoE(FORMULA, frame, trials="x1")


def test_unknown_choices(frame):
    with pytest.raises(ArgumentError, match=r"family must be one of 'gaussian'.*got 'gamma'"):
        VCMoE(FORMULA, frame, family="gamma")
    with pytest.raises(ArgumentError, match="dispersion must be one of"):
        VCMoE(FORMULA, frame, dispersion="shared")
    with pytest.raises(ArgumentError, match="experts must be a whole number"):
        VCMoE(FORMULA, frame, experts=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("y ~ z1 | gate: x1", "needs the section 'vary: u'"),
        ("y ~ z1 | vary: u | re: (1 | x1)", "no section 're:'"),
        ("y ~ common(z1) | vary: u", r"no common\(...\)"),
    ],
)
def test_formulas_of_other_families(frame, text, message):
    with pytest.raises(FormulaError, match=message):
        VCMoE(text, frame)


def test_one_trial_per_row_is_flagged():
    data = vcmoe(n=400, family="binomial", trials=1, rng=1).data.drop(columns="trials")
    with pytest.warns((DegeneracyWarning, BoundaryWarning, ConvergenceWarning)):
        fit = VCMoE(FORMULA, data, family="binomial", bandwidth=0.5).fit(rng=0, starts=3, max_iter=50)
    assert "weak_identification" in [f.code for f in fit.flags]


def test_separated_responses_are_flagged():
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"u": rng.uniform(size=300), "z1": rng.normal(size=300)})
    data["y"] = (data["z1"] > 0.0).astype(float)
    with pytest.warns((BoundaryWarning, ConvergenceWarning)):
        fit = VCMoE("y ~ z1 | vary: u", data, experts=1, family="binomial", bandwidth=0.4).fit()
    assert "separated_expert" in [f.code for f in fit.flags]


def test_an_expert_that_dies_out_is_flagged(frame):
    gone = frame.assign(y=np.where(frame["u"] > 0.4, -1.0 + 0.01 * frame["y"], frame["y"]))
    with pytest.warns((DegeneracyWarning, BoundaryWarning, ConvergenceWarning)):
        fit = VCMoE(FORMULA, gone, bandwidth=0.15).fit(rng=0, starts=3, max_iter=60)
    assert {"small_expert", "degenerate", "separated_gate"} & {f.code for f in fit.flags}


@pytest.mark.parametrize(
    ("formula", "extra", "message"),
    [
        ("y ~ u | gate: x1 | vary: u", {}, r"cannot tell local lines of 'Intercept', 'u' apart"),
        ("y ~ z1 + late | gate: x1 | vary: u", {}, r"cannot tell local lines of 'late' apart .*const\(\.\.\.\)"),
        ("y ~ z1 | gate: late | vary: u", {}, r"cannot tell local lines of 'late' apart"),
        ("y ~ 0 | gate: x1 | vary: u", {}, "the expert part has no columns"),
        ("exact ~ z1 | gate: x1 | vary: u", {}, "'exact' is an exact linear function of the expert part"),
        (FORMULA, {"cluster": "one"}, "cluster= has the same value"),
        (FORMULA, {"weights": "text"}, r"column 'text' \(weights\) must hold numbers, got 'a'"),
    ],
)
def test_what_no_window_can_estimate(frame, formula, extra, message):
    data = frame.assign(late=(frame["u"] > 0.8) * 1.0, exact=2.0 * frame["z1"] - 1.0, one=1, text="a")
    with pytest.raises(DesignError, match=message):
        VCMoE(formula, data, bandwidth=0.3, **extra).fit(rng=0, starts=2)


def test_a_column_that_is_absent_from_windows_may_be_constant(frame):
    data = frame.assign(late=(frame["u"] > 0.8) * 1.0)
    fit = VCMoE("y ~ z1 + const(late) | gate: x1 | vary: u", data, bandwidth=0.3, n_grid=15).fit(rng=0, starts=2)
    assert np.isfinite(fit.bse["expert1.late"])


def test_few_clusters_are_flagged(frame):
    with pytest.warns(DegeneracyWarning, match="only 3 clusters"):
        fit = VCMoE(FORMULA, frame.assign(g=np.arange(300) % 3), bandwidth=0.4, cluster="g").fit(rng=0, starts=2)
    assert [f.code for f in fit.flags] == ["few_clusters"]


def test_one_huge_count_is_flagged_not_a_crash():
    data = vcmoe(n=200, family="negbinomial", rng=1).data
    data["y"] = data["y"].mask(data.index == 3, 10**7)
    with pytest.warns((DegeneracyWarning, BoundaryWarning, ConvergenceWarning)):
        fit = VCMoE(FORMULA, data, family="poisson", bandwidth=0.4, n_grid=8).fit(rng=0, starts=2, max_iter=40)
    assert fit.flags


def test_huge_counts_keep_a_likelihood_below_one():
    data = vcmoe(n=150, family="negbinomial", rng=1).data
    with pytest.warns((DegeneracyWarning, BoundaryWarning, ConvergenceWarning)):
        fit = VCMoE(FORMULA, data.assign(y=data["y"] * 10_000), family="negbinomial", bandwidth=0.4, n_grid=8).fit(
            rng=0, starts=2, max_iter=40
        )
    assert fit.llf < 0.0


def test_wrong_settings_of_the_search(frame):
    model = VCMoE(FORMULA, frame)
    with pytest.raises(ArgumentError, match="gate_bandwidth must be one of 'cv', got 'rule'"):
        VCMoE(FORMULA, frame, gate_bandwidth="rule")
    with pytest.raises(ArgumentError, match="grid must be numbers, got 'abc'"):
        VCMoE(FORMULA, frame, grid="abc")
    with pytest.raises(ArgumentError, match="folds=301 is more than the 300 rows or clusters"):
        model.select_bandwidth(0, folds=301)
    for candidates in ([], [0.3, np.inf]):
        with pytest.raises(ArgumentError, match="candidates must be finite bandwidths"):
            model.select_bandwidth(0, candidates=candidates)
    with pytest.raises(ArgumentError, match="beside must be a positive number"):
        model.select_bandwidth(0, beside="cv")
    with pytest.raises(ArgumentError, match="n_jobs must be a whole number"):
        model.select_bandwidth(0, candidates=[0.4], n_jobs=0)


def test_wrong_arguments_of_results(frame):
    fit = VCMoE(FORMULA, frame, bandwidth=0.4).fit(rng=0, starts=3)
    with pytest.raises(ArgumentError, match=r"alpha must be a number between 0 and 1, .* got 95"):
        fit.bands(alpha=95)
    with pytest.raises(ArgumentError, match="of must be one of"):
        fit.bands("sigma")
    with pytest.raises(ArgumentError, match="at names 'age'"):
        fit.bands("mean", at={"age": 3.0})
    with pytest.raises(ArgumentError, match="at must map names of columns to values, got 3"):
        fit.bands("mean", at=3)
    with pytest.raises(ArgumentError, match="n_boot must be a whole number of at least 19, got 1"):
        fit.bands(method="bootstrap", n_boot=1)
    with pytest.raises(ArgumentError, match="which must be a name or names of functions, got 3"):
        fit.test_varying(3)
    with pytest.raises(ArgumentError, match="correction must be True or False, got 'yes'"):
        fit.with_cov("robust", correction="yes")
    with pytest.raises(ArgumentError, match="u must be numbers, got 'a'"):
        fit.functions("a")
    with pytest.raises(ArgumentError, match="cov_type must be 'robust' or 'cluster'"):
        fit.with_cov("nonrobust")
    with pytest.raises(ArgumentError, match="needs the clusters"):
        fit.with_cov("cluster")
    with pytest.raises(ArgumentError, match="kind must be one of"):
        fit.predict(kind="median")
    with pytest.raises(ArgumentError, match="no search to draw"):
        fit.plot("bandwidth")
    with pytest.raises(ArgumentError, match="u must lie within the range"):
        fit.functions([2.0])
    with pytest.raises(ArgumentError, match=r"within the range .* with at least one value, got none"):
        fit.functions([])
    for order in (None, 2, "12", ["a", 1], [1, 1], [1.5, 2]):
        with pytest.raises(ArgumentError, match=r"order must be a permutation of 1\.\.2, got"):
            fit.relabel(order)
    with pytest.raises(DesignError, match=r"x1"):
        fit.predict(frame.drop(columns="x1"))


def test_bandwidth_far_beyond_the_range(frame):
    with pytest.raises(ArgumentError, match=r"is more than 100 times the range of the index, .* or inf for constants"):
        VCMoE(FORMULA, frame, bandwidth=1e5)


def test_dates_say_how_they_become_numbers(frame):
    days = pd.Timestamp("2020-01-01") + pd.to_timedelta(np.round(1000 * frame["u"]), unit="D")
    with pytest.raises(DesignError, match=r"'u' must be numeric, .* to days: \(dates - dates.min\(\)\)"):
        VCMoE(FORMULA, frame.assign(u=days))


def test_index_values_that_are_no_numbers(frame):
    fit = VCMoE(FORMULA, frame, bandwidth=np.inf).fit(rng=0, starts=2)
    with pytest.raises(ArgumentError, match="u must be numbers, got 'late'"):
        fit.functions(u="late")
    with pytest.raises(ArgumentError, match="no function varies along the index"):
        fit.test_varying()


def test_offsets_and_trials_that_cannot_be(frame):
    counts = frame.assign(y=1.0 + (frame.index % 3), exposure=50.0, trials=2.5)
    with pytest.raises(DesignError, match=r"the offset is 50 in row 0; .* the logarithm of the exposure"):
        VCMoE(FORMULA, counts, family="poisson", offset="exposure", bandwidth=0.3)
    with pytest.raises(DesignError, match=r"the number of trials is 2\.5 in row 0; .* a whole number of at least 1"):
        VCMoE(FORMULA, counts, family="binomial", trials="trials", bandwidth=0.3)
    with pytest.raises(DesignError, match=r"column 'exposure' \(offset\) must hold numbers, got 'long' in row 0"):
        VCMoE(FORMULA, counts.assign(exposure="long"), family="poisson", offset="exposure", bandwidth=0.3)


@pytest.mark.parametrize("factor", [1e160, 1e-160])
@pytest.mark.parametrize(
    ("column", "named"), [("y", "the response 'y'"), ("z1", "the term 'z1'"), ("x1", "the gate term 'x1'")]
)
def test_values_whose_products_leave_the_range_of_numbers(frame, column, named, factor):
    with pytest.raises(DesignError, match=f"{named} has the largest value .*, in row .* change the unit"):
        VCMoE(FORMULA, frame.assign(**{column: factor * frame[column]}))


@pytest.mark.parametrize("factor", [1e50, 1e-50])
def test_values_in_any_sensible_unit_are_fitted(frame, factor):
    options = {"bandwidth": 0.4, "n_grid": 10}
    fit = VCMoE(FORMULA, frame.assign(y=factor * frame["y"]), **options).fit(rng=0, starts=2)
    plain = VCMoE(FORMULA, frame, **options).fit(rng=0, starts=2)
    where = fit.params.index.str.startswith("gate")
    np.testing.assert_allclose(fit.params[where], plain.params[where], rtol=1e-3)
    np.testing.assert_allclose(fit.bse[~where] / factor, plain.bse[~where], rtol=1e-3)


def test_counts_beyond_what_a_predictor_can_reach(frame):
    data = frame.assign(y=np.where(frame.index == 4, 1e300, 1.0), trials=1e300)
    with pytest.raises(DesignError, match=r"the response 'y' is 1e\+300 in row 4; .* it must be at most 1e\+13"):
        VCMoE(FORMULA, data, family="poisson", bandwidth=0.3)
    with pytest.raises(DesignError, match=r"the number of trials is 1e\+300 in row 0; .* at most 1e\+13"):
        VCMoE(FORMULA, data, family="binomial", trials="trials", bandwidth=0.3)


def test_clusters_of_two_kinds(frame):
    mixed = [str(i // 5) if i % 2 else i // 5 for i in range(300)]
    with pytest.raises(DesignError, match=r"values of different types, 0 in row 0 and '0' in row 1, .* astype\(str\)"):
        VCMoE(FORMULA, frame.assign(g=mixed), bandwidth=0.3, cluster="g")


def test_indices_that_are_durations_or_answers(frame):
    with pytest.raises(DesignError, match=r"to days: differences / pd\.Timedelta\(days=1\)"):
        VCMoE(FORMULA, frame.assign(u=pd.to_timedelta(1000.0 * frame["u"], unit="D")))
    with pytest.raises(DesignError, match=r"only 2 different values, .* leave out 'vary: u' and .* \* C\(u\)'"):
        VCMoE(FORMULA, frame.assign(u=frame["u"] > 0.5))


@pytest.mark.parametrize("value", [1, 5, 1.0])
def test_a_floor_of_sigma_above_the_spread_of_one_regression(frame, value):
    with pytest.raises(ArgumentError, match=r"sigma_floor must be below 1, got .*: it is a fraction of the residual"):
        VCMoE(FORMULA, frame, sigma_floor=value)


@pytest.mark.parametrize("skewed", [lambda u: u**8, lambda u: 1.0 / u, lambda u: u.where(u.index != 7, 50.0)])
def test_the_rule_of_thumb_leaves_enough_rows_on_a_skewed_index(frame, skewed):
    data = frame.assign(u=skewed(frame["u"]))
    model = VCMoE(FORMULA, data, bandwidth="rule")
    rows, slots = model.data.rows, model.slots
    h = usable_rule(model.space()).best
    assert h > rule_of_thumb(rows, slots)
    model.problem(h)
    with pytest.raises(DesignError, match="effective sample size"):
        model.problem(h / 1.1)


def test_the_rule_of_thumb_is_kept_where_it_works(frame):
    model = VCMoE(FORMULA, frame, bandwidth="rule")
    rule = rule_of_thumb(model.data.rows, model.slots)
    assert usable_rule(model.space()).best == rule
    assert model.fit(rng=0, starts=2).bandwidth == rule
