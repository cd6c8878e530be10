"""One expert is the linear mixed model: lme4's maximum likelihood, and standard errors by dense algebra."""

import json
from pathlib import Path

import numpy as np
import pytest

import mixmoe as mm
from tests.golden.make_robust import read

HERE = Path(__file__).parent
STORED = json.loads((HERE / "lme4.json").read_text())
LME4 = STORED["cases"]
ROBUST = json.loads((HERE / "robust.json").read_text())["cases"]
LOGLIK = 1e-6  # absolute: what users of both packages compare
FIXED = 1e-5  # relative to the standard error or the value, whichever is larger
VARIANCE = 1e-4  # relative: the likelihood is flat in the variances
ERROR = 1e-4  # relative, of standard errors: they inherit the tolerance of the optimum
PROFILE = 5e-4  # of the length of an interval: both interpolate


@pytest.fixture(scope="module")
def fit():
    """A function from a case to its fit, each done once."""
    done = {}

    def of(case, cov_type="robust"):
        key = (case["name"], cov_type)
        if key not in done:
            done[key] = mm.fit(case["formula"], complete(case), experts=1, cov_type=cov_type, rng=0)
        return done[key]

    return of


def complete(case):
    """The data of a case, without the rows that its formula would drop."""
    data = read(case["data"])
    used = [name for name in data.columns if name in case["formula"]]
    return data.dropna(subset=used)


def block(fit, start):
    return fit.params[[name for name in fit.params.index if name.startswith(start)]].to_numpy()


def natural(D):
    """Standard deviations, then the correlations that are not fixed at zero."""
    D = np.asarray(D)
    sd = np.sqrt(np.diag(D))
    corr = (D / np.outer(sd, sd))[np.tril_indices(len(sd), -1)]
    return sd, corr[corr != 0.0]


@pytest.mark.parametrize("case", LME4, ids=lambda case: case["name"])
def test_estimates_equal_lme4(case, fit):
    ours = fit(case)
    assert ours.nobs == case["n"]
    assert ours.llf == pytest.approx(case["loglik"], abs=LOGLIK)
    difference = np.abs(block(ours, "expert1.") - case["beta"])
    assert np.all(difference <= FIXED * np.maximum(np.abs(case["beta"]), case["se"]))
    sd, corr = natural(case["D"])
    assert block(ours, "sd1(") == pytest.approx(sd, rel=VARIANCE)
    assert block(ours, "corr1(") == pytest.approx(corr, rel=VARIANCE, abs=VARIANCE)
    assert ours.params["sigma1"] == pytest.approx(case["sigma"], rel=VARIANCE)


@pytest.mark.parametrize("cov_type", ["nonrobust", "robust"])
@pytest.mark.parametrize("case", ROBUST, ids=lambda case: case["name"])
def test_standard_errors_equal_dense_algebra(case, cov_type, fit):
    ours = fit(case, cov_type)
    if cov_type == "robust":  # the sandwich of the dense algebra is White's, without correction
        ours = ours.with_cov("robust", correction=False)
    assert ours.llf == pytest.approx(case["loglik"], abs=LOGLIK)
    names = list(ours.params.index)
    groups = ("expert1.", "sd1(", "corr1(", "sigma1")
    ordered = [name for start in groups for name in names if name.startswith(start)]
    assert sorted(ordered) == sorted(names)
    assert ours.bse[ordered].to_numpy() == pytest.approx(case[f"se_{cov_type}"], rel=ERROR)


def peer_name(parameter):
    """The name that lme4 gives to a parameter: ``sd_days|subject``, ``cor_days.(Intercept)|subject``, ``days``."""
    term = (
        parameter.removeprefix("expert1.").replace("Intercept", "(Intercept)").replace("sex[T.Male]", "factor(sex)Male")
    )
    if term.startswith("corr1"):
        first, second = term.removeprefix("corr1(").partition("|")[0].split(",")
        return f"cor_{second}.{first}|subject"
    if term.startswith("sd1"):
        return f"sd_{term.removeprefix('sd1(').removesuffix(')')}"
    return term.replace("sigma1", "sigma")


@pytest.mark.parametrize("peer", STORED["profiles"], ids=lambda peer: peer["name"])
def test_limits_of_profiles_equal_lme4(peer, fit):
    """Among them a standard deviation whose lower limit is zero, and a correlation that may be anything."""
    case = next(case for case in LME4 if case["name"] == peer["name"])
    ours = fit(case)
    seen = []
    for name in ours.params.index:
        at = peer["parameter"].index(peer_name(name))
        found, low, high = ours.profile(name, points=15), peer["lower"][at], peer["upper"][at]
        assert [found.lower, found.upper] == pytest.approx([low, high], abs=PROFILE * (high - low))
        seen.append(at)
    assert len(set(seen)) == len(peer["parameter"])
