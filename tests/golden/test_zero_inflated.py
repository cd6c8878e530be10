"""One expert with certain zeros is the zero-inflated mixed model of glmmTMB."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

import mixmoe as mm

HERE = Path(__file__).parent
ONE = json.loads((HERE / "zero_inflated.json").read_text())["one"]
LOGLIK = 1e-4  # absolute: what users of both packages compare
ERROR = 1e-3  # relative, of standard errors


@pytest.mark.filterwarnings("ignore::mixmoe.errors.ApproximationWarning")  # Laplace against Laplace
@pytest.mark.parametrize("case", ONE, ids=lambda case: case["name"])
def test_one_expert_is_the_zero_inflated_model(case):
    data, arguments = pd.read_csv(HERE / "sim_zeros.csv"), case["arguments"] or {}
    fit = mm.fit(case["formula"], data, 1, family=case["family"], cov_type="nonrobust", **arguments)
    p = len(case["beta"])
    assert fit.llf == pytest.approx(case["loglik"], abs=LOGLIK)
    np.testing.assert_allclose(fit.params.iloc[:p], case["beta"], atol=1e-4)
    np.testing.assert_allclose(fit.bse.iloc[:p], case["se"], rtol=ERROR)
    share = expit(case["log_odds"])
    assert fit.params["zeros1"] == pytest.approx(share, abs=1e-4)
    assert fit.bse["zeros1"] == pytest.approx(share * (1.0 - share) * case["log_odds_se"], rel=ERROR)
    if case["D"] is not None:
        sd = [value for name, value in fit.params.items() if name.startswith("sd")]
        np.testing.assert_allclose(sd, np.sqrt(np.diag(np.atleast_2d(case["D"]))), rtol=1e-3)
    if case["family"] == "zinb":
        assert fit.params["theta1"] == pytest.approx(case["theta"], rel=1e-3)
