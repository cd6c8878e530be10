"""One expert is the GLMM of lme4 and glmmTMB; several without random effects are the mixture of flexmix."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm

HERE = Path(__file__).parent
GLMM = json.loads((HERE / "glmm.json").read_text())
ONE = GLMM["one"]
LOGLIK = 1e-4  # absolute: what users of both packages compare
FIXED = 1e-4  # absolute, on the scale of the link
DISPERSIONS = {"theta1": float, "phi1": float, "shape1": lambda s: s**-2}  # of glmmTMB's sigma()
ERROR = 1e-3  # relative, of standard errors: lme4 differentiates numerically


def read(name):
    if name == "sim_responses":
        return pd.read_csv(HERE / "sim_responses.csv")
    data = mm.datasets.load(name).dropna(subset=["hepato", "spiders"])
    return data.assign(age10=(data["age"] - 50) / 10)


def fit(case, experts, **options):
    arguments = case["arguments"] or {}
    return mm.fit(case["formula"], read(case["data"]), experts, family=case["family"], **arguments, **options)


@pytest.mark.filterwarnings(
    "ignore::mixmoe.errors.ApproximationWarning"
)  # the peers' approximation is what is compared
@pytest.mark.parametrize("case", ONE, ids=lambda case: f"{case['peer']}-{case['name']}")
def test_one_expert_is_the_glmm(case):
    results = fit(case, 1, cov_type="nonrobust")
    p = len(case["beta"])
    if not case["relative"]:  # nAGQ > 1 of lme4 leaves the constant of the responses out
        assert results.llf == pytest.approx(case["loglik"], abs=LOGLIK)
    np.testing.assert_allclose(results.params.iloc[:p], case["beta"], atol=FIXED)
    np.testing.assert_allclose(results.bse.iloc[:p], case["se"], rtol=ERROR)
    D = np.reshape(case["D"], (int(np.sqrt(np.size(case["D"]))), -1))
    sd = [value for name, value in results.params.items() if name.startswith("sd")]
    np.testing.assert_allclose(sd, np.sqrt(np.diag(D)), rtol=1e-3)
    for name, by_peer in DISPERSIONS.items():
        if name in results.params:
            assert results.params[name] == pytest.approx(by_peer(case["dispersion"]), rel=1e-3)


@pytest.mark.parametrize("case", GLMM["mixtures"], ids=lambda case: case["name"])
def test_mixtures_without_random_effects_are_flexmix(case):
    results = fit(case, 2, rng=1)
    assert results.llf == pytest.approx(case["loglik"], abs=LOGLIK)
    assert results.em.starts.n_replicated > 1
    ours = results.model.user(results.em.params)
    np.testing.assert_allclose(ours.beta[0], case["beta"], atol=1e-3)  # EM of flexmix stops where the surface is flat
    np.testing.assert_allclose(ours.gamma[0], case["gamma"], atol=1e-3)
