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
from mixmoe.varying.model import VCMoE
from mixmoe.varying.simulate import vcmoe

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
    with pytest.raises(ArgumentError, match=r"bandwidth=1e-05 is smaller than half the largest gap"):
        VCMoE(FORMULA, frame, bandwidth=1e-5)
    with pytest.raises(ArgumentError, match="gate_bandwidth=1e-05"):
        VCMoE(FORMULA, frame, bandwidth=0.3, gate_bandwidth=1e-5)


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
    with pytest.raises(DesignError, match="weights must not be negative, got -1 in row 0"):
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


def test_wrong_arguments_of_results(frame):
    fit = VCMoE(FORMULA, frame, bandwidth=0.4).fit(rng=0, starts=3)
    with pytest.raises(ArgumentError, match="level must lie between 0 and 1, got 95"):
        fit.bands(level=95)
    with pytest.raises(ArgumentError, match="of must be one of"):
        fit.bands("sigma")
    with pytest.raises(ArgumentError, match="at names 'age'"):
        fit.bands("mean", at={"age": 3.0})
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
    with pytest.raises(DesignError, match=r"x1"):
        fit.predict(frame.drop(columns="x1"))


def test_offsets_and_trials_that_cannot_be(frame):
    counts = frame.assign(y=1.0 + (frame.index % 3), exposure=50.0, trials=2.5)
    with pytest.raises(DesignError, match=r"the offset is 50 in row 0; .* the logarithm of the exposure"):
        VCMoE(FORMULA, counts, family="poisson", offset="exposure", bandwidth=0.3)
    with pytest.raises(DesignError, match=r"the number of trials is 2\.5 in row 0; .* a whole number of at least 1"):
        VCMoE(FORMULA, counts, family="binomial", trials="trials", bandwidth=0.3)
    with pytest.raises(DesignError, match=r"column 'exposure' \(offset\) must hold numbers, got 'long' in row 0"):
        VCMoE(FORMULA, counts.assign(exposure="long"), family="poisson", offset="exposure", bandwidth=0.3)
