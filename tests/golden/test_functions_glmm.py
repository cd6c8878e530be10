"""A penalised function beside random intercepts, binary responses and counts, against brute force and peers."""

import json
from pathlib import Path

import numpy as np
import pytest

import mixmoe as mm
from tests.golden.make_robust import read

HERE = Path(__file__).parent
STORED = json.loads((HERE / "functions.json").read_text())


def data():
    """The rows with the responses that make_functions.R adds."""
    frame = read("sim_responses")
    bend = np.sin(2 * frame["x"])
    return frame.assign(
        bent=(frame["share"] > 0.5 + 0.25 * bend).astype(int), waved=np.floor(frame["count"] * (1.5 + bend)).astype(int)
    )


def fitted(frame, case):
    """The function, constant, coefficients, smoothing parameter, deviation of subjects, covariance of coefficients."""
    formula = f"{case['response']} ~ s(x, k=10) | re: (1 | id)"
    fit = mm.fit(formula, frame, 1, family=case["family"], n_quad=11, cov_type="nonrobust", unconditional=False)
    f, params = fit.model.functions[0], fit.params.to_numpy()
    cov = fit.cov_params().to_numpy()[np.ix_(f.where, f.where)]
    lam, sd = float(fit.functions["lambda"].iloc[0]), float(fit.params["sd1(Intercept|id)"])
    return f, float(params[0]), params[f.where], lam, sd, cov


@pytest.mark.parametrize("i", [0, 1], ids=["binomial", "poisson"])
def test_functions_of_glmms_are_nearer_to_brute_force_than_joint_modes(i):
    frame, case = data(), STORED["cases"][i]
    brute = json.loads((HERE / "functions_exact.json").read_text())[i]
    f, constant, coefficients, lam, sd, _ = fitted(frame, case)
    at_ours = [constant, *coefficients[~f.columns.penalised], lam, sd]
    np.testing.assert_allclose(at_ours, brute["parameters"], rtol=1e-3)  # where brute force was run
    curve = constant + f.basis(frame["x"].to_numpy()[case["rows"]]) @ coefficients
    mean, by_mgcv, by_lme4 = (np.array(c) for c in (brute["mean"], case["mgcv"]["curve"], case["lme4"]["curve"]))
    size = np.ptp(mean)
    away, theirs = (float(np.sqrt(np.mean((c - mean) ** 2))) / size for c in (curve, by_mgcv))
    assert brute["error"] < 0.004 * size
    assert away < 0.01
    assert theirs > 3 * away
    assert brute["loglik"] > brute["loglik_mgcv"] + 0.2
    if case["family"] == "poisson":  # counts tell so much of a subject that joint modes of functions and effects serve
        assert np.abs(by_lme4 - curve).max() < 0.003 * size
        assert sd == pytest.approx(case["lme4"]["sd"], rel=0.01)
