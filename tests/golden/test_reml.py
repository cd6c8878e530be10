"""Weights, offset and REML of one Gaussian expert: lme4, and with correlated or unequal errors nlme."""

import json
from pathlib import Path

import numpy as np
import pytest

import mixmoe as mm
from tests.golden.make_robust import read

STORED = json.loads((Path(__file__).parent / "reml.json").read_text())
LOGLIK = 1e-6  # absolute
FIXED = 1e-5  # relative to the standard error or the value, whichever is larger
VARIANCE = 1e-4  # relative: the likelihood is flat in the variances
ERROR = 5e-3  # relative: ours are of the observed information, lme4's of X'V^-1 X at the variances
SHAPE = 2e-3  # relative, of the parameters of errors by nlme
OFFSETS = {
    "sleepstudy": lambda d: 3 * d["days"] ** 2,
    "sim_unbalanced": lambda d: -0.5 * d["x1"],
    "orthodont": lambda d: 0.1 * d["age"],
}


def data(name):
    """The data of a case with the columns that make_reml.R adds."""
    frame = read(name)
    return frame.assign(w=0.25 + (7 * np.arange(len(frame))) % 5, off=OFFSETS[name](frame))


def block(fit, start):
    return fit.params[[name for name in fit.params.index if name.startswith(start)]].to_numpy()


def named(case):
    return "-".join(str(case.get(key)) for key in ("name", "method", "weights", "offset"))


def close(ours, peer, errors, tolerance):
    return np.all(np.abs(ours - peer) <= tolerance * np.maximum(np.abs(peer), errors))


@pytest.mark.parametrize("case", STORED["lmer"], ids=named)
def test_estimates_equal_lme4(case):
    columns = {"weights": case.get("weights"), "offset": case.get("offset")}
    fit = mm.fit(case["formula"], data(case["data"]), 1, method=case["method"], cov_type="nonrobust", **columns)
    assert fit.llf == pytest.approx(case["loglik"], abs=LOGLIK)
    assert fit.model.loglike(fit.params) == pytest.approx(fit.llf, abs=1e-9)
    assert close(block(fit, "expert1."), case["beta"], case["se"], FIXED)
    np.testing.assert_allclose(block(fit, "sd1("), case["sd"], rtol=VARIANCE)
    assert fit.params["sigma1"] == pytest.approx(case["sigma"], rel=VARIANCE)
    np.testing.assert_allclose(fit.bse[: len(case["se"])], case["se"], rtol=ERROR)
    np.testing.assert_allclose(fit.fitted().to_numpy()[:20], case["fitted"], rtol=1e-4)
    np.testing.assert_allclose(fit.resid().to_numpy()[:20], case["residual"], atol=1e-4 * case["sigma"] / 0.5)


@pytest.mark.parametrize("case", STORED["lme"], ids=named)
def test_weighted_correlated_and_unequal_errors_equal_nlme(case):
    fit = mm.fit(case["formula"], data(case["data"]), 1, weights="w", method=case["method"], **case["options"])
    assert case["loglik"] - LOGLIK <= fit.llf <= case["loglik"] + 1e-4  # nlme stops a little short
    assert close(block(fit, "expert1."), case["beta"], case["se"], 1e-3)
    assert fit.params["sigma1"] == pytest.approx(case["sigma"], rel=SHAPE)
    if "rho1" in fit.params:
        assert fit.params["rho1"] == pytest.approx(case["correlation"], rel=SHAPE)
    if "phi1" in fit.params:
        assert np.exp(-fit.params["phi1"]) == pytest.approx(case["correlation"], rel=SHAPE, abs=1e-5)
