"""Without random effects the model is a mixture of regressions with a gate: flexmix's maximum likelihood."""

import json
from pathlib import Path

import numpy as np
import pytest

import mixmoe as mm
from tests.golden.make_robust import read

HERE = Path(__file__).parent
CASES = json.loads((HERE / "flexmix.json").read_text())["cases"]
LOGLIK = 1e-4  # flexmix stops EM, and nnet its gate, at a relative change of about 1e-8
ESTIMATE = 2e-3  # for the same reason, in units of the estimate or of 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_estimates_equal_flexmix(case):
    fit = mm.fit(case["formula"], read(case["data"]), experts=case["experts"], rng=0)
    assert fit.llf == pytest.approx(case["loglik"], abs=LOGLIK)
    K = case["experts"]
    for letter, first, peer in (("expert", 1, case["beta"]), ("gate", 2, case["gamma"])):
        for k, row in enumerate(peer, start=first):
            ours = [v for name, v in fit.params.items() if name.startswith(f"{letter}{k}.")]
            assert ours == pytest.approx(row, rel=ESTIMATE, abs=ESTIMATE)
    assert [fit.params[f"sigma{k + 1}"] for k in range(K)] == pytest.approx(case["sigma"], rel=ESTIMATE)
    assert np.asarray(fit.responsibilities).mean(axis=0) == pytest.approx(case["probabilities"], abs=ESTIMATE)
