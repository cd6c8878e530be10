"""One expert with correlated or unequal errors is nlme's lme or gls, and glmmTMB's dispersion formula."""

import json
from pathlib import Path

import numpy as np
import pytest

import mixmoe as mm
from tests.golden.make_robust import read

PEERS = json.loads((Path(__file__).parent / "nlme.json").read_text())
LOGLIK = 1e-4  # absolute: nlme's own convergence on sleep_ar1, "singular", is 2e-5 short of the maximum
LOWER = 1e-6  # absolute: how far below the peer's value ours may be
FIXED = 1e-4  # relative to the standard error or the value, whichever is larger
SHAPE = 2e-3  # relative: the likelihood is flat in the parameters of the errors
NORMALIZED = 1e-3  # absolute, in standard deviations


def data(name):
    """The data of a case, with the columns that the peers' script adds."""
    frame = read(name)
    if name == "pbcseq":
        frame["logbili"] = np.log(frame["bili"])
        frame["visit"] = frame.groupby("id")["year"].rank()
    if name == "orthodont":
        frame["visit"] = (frame["age"] - 6) / 2
    return frame


def fit(case):
    return mm.fit(case["formula"], data(case["data"]), experts=1, rng=0, **case.get("options", {}))


@pytest.fixture(scope="module")
def fitted():
    """Each case fitted once."""
    done = {}

    def of(case):
        if case["name"] not in done:
            done[case["name"]] = fit(case)
        return done[case["name"]]

    return of


@pytest.mark.filterwarnings("ignore::mixmoe.errors.BoundaryWarning")  # sim_car1 has no serial correlation
@pytest.mark.parametrize("case", PEERS["cases"], ids=lambda case: case["name"])
def test_estimates_equal_nlme(case, fitted):
    ours = fitted(case)
    assert ours.converged
    assert case["loglik"] - LOWER <= ours.llf <= case["loglik"] + LOGLIK
    beta = ours.params[[name for name in ours.params.index if name.startswith("expert1.")]].to_numpy()
    assert np.all(np.abs(beta - case["beta"]) <= FIXED * np.maximum(np.abs(case["beta"]), case["se"]))
    assert ours.params["sigma1"] == pytest.approx(case["sigma"], rel=SHAPE)
    if "rho1" in ours.params:
        assert ours.params["rho1"] == pytest.approx(case["correlation"], rel=SHAPE)
    if "phi1" in ours.params:
        assert np.exp(-ours.params["phi1"]) == pytest.approx(case["correlation"], rel=SHAPE, abs=1e-5)
    slopes = ours.params[[name for name in ours.params.index if name.startswith("sigma1.")]].to_numpy()
    if slopes.size:
        ratio = "T.Male" in str(ours.params.index[-1])
        assert (np.exp(slopes) if ratio else slopes) == pytest.approx(np.ravel(case["variance"]), rel=SHAPE)


@pytest.mark.filterwarnings("ignore::mixmoe.errors.BoundaryWarning")
@pytest.mark.parametrize("case", PEERS["cases"], ids=lambda case: case["name"])
def test_normalized_residuals_equal_nlme(case, fitted):
    ours = fitted(case).resid("normalized").iloc[:5]
    np.testing.assert_allclose(ours, case["normalized"], atol=NORMALIZED)


def test_estimates_equal_glmmtmb():
    case = PEERS["glmmTMB"]
    ours = fit(case)
    assert case["loglik"] - LOWER <= ours.llf <= case["loglik"] + LOGLIK
    beta = ours.params[["expert1.Intercept", "expert1.year", "expert1.age"]].to_numpy()
    assert beta == pytest.approx(case["beta"], rel=1e-3)
    log_variance = [
        2 * np.log(ours.params["sigma1"]),
        2 * ours.params["sigma1.year"],
        2 * ours.params["sigma1.sex[T.m]"],
    ]
    assert log_variance == pytest.approx(case["slopes"], rel=1e-2)
