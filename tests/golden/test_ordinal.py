"""One ordinal expert is the cumulative logit model of ordinal, MASS and statsmodels."""

import json
from pathlib import Path

import numpy as np
import pytest
from statsmodels.miscmodels.ordinal_model import OrderedModel

import mixmoe as mm
from tests.golden.test_glmm import read

CASES = json.loads((Path(__file__).parent / "ordinal.json").read_text())["cases"]
LOGLIK = 1e-4  # absolute: what users of both packages compare
FIXED = 1e-4  # absolute, on the scale of the link
ERROR = 1e-3  # relative, of standard errors: the peers differentiate numerically
ERROR_CLMM = 0.03  # by so much those of clmm move with the tolerance of its inner iterations, and with repeated rows


def data_of(name):
    data = read(name)
    if name == "sim_responses":
        data = data.assign(grade=np.minimum(data["count"], 4), weight=1 + data["id"] % 3)
    return data


@pytest.mark.filterwarnings("ignore::mixmoe.errors.ApproximationWarning")  # the peers have it too
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['peer']}-{case['name']}")
def test_one_expert_is_the_cumulative_logit_model(case):
    fit = mm.fit(
        case["formula"], data_of(case["data"]), 1, family="ordinal", cov_type="nonrobust", **(case["arguments"] or {})
    )
    p, cuts = len(case["beta"]), fit.params.index.str.startswith("cut")
    assert fit.llf == pytest.approx(case["loglik"], abs=LOGLIK)
    np.testing.assert_allclose(fit.params.iloc[:p], case["beta"], atol=FIXED)
    np.testing.assert_allclose(fit.params[cuts], case["cuts"], atol=FIXED)
    error = ERROR_CLMM if case["peer"] == "ordinal::clmm" else ERROR
    np.testing.assert_allclose([*fit.bse[cuts], *fit.bse.iloc[:p]], case["se"], rtol=error)
    sd = [value for name, value in fit.params.items() if name.startswith("sd")]
    np.testing.assert_allclose(sd, np.ravel(case["sd"]), rtol=1e-3)


def test_without_random_effects_as_statsmodels():
    data = data_of("pbcseq")
    ours = mm.fit("stage ~ year + age10", data, 1, family="ordinal", cov_type="nonrobust")
    model = OrderedModel(data["stage"], data[["year", "age10"]], distr="logit")
    theirs = model.fit(method="newton", disp=False, maxiter=100)
    assert ours.llf == pytest.approx(theirs.llf, abs=1e-8)
    np.testing.assert_allclose(ours.params.iloc[:2], theirs.params.iloc[:2], atol=1e-6)
    np.testing.assert_allclose(ours.params.iloc[2:], model.transform_threshold_params(theirs.params)[1:-1], atol=1e-6)
    np.testing.assert_allclose(ours.bse.iloc[:2], theirs.bse.iloc[:2], rtol=1e-4)
