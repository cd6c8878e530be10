"""Penalised functions beside random effects, one Gaussian expert: mgcv with ``method="ML"``."""

import json
from pathlib import Path

import numpy as np
import pytest

import mixmoe as mm
from tests.golden.make_robust import read

STORED = json.loads((Path(__file__).parent / "mgcv.json").read_text())
FUNCTION = 1e-5  # of the range of a function
VARIANCE = 1e-5  # relative
DEGREES = 5e-3  # relative: mgcv's are at the residual variance of Pearson's residuals, ours at the maximum
ERROR = 5e-3  # relative, with the same residual variance: ours are of the observed information, of variances too


def data():
    """The rows with the columns that make_mgcv.R adds."""
    frame = read("sim_unbalanced")
    i = np.arange(len(frame))
    frame = frame.assign(
        w=0.25 + (7 * i) % 5,
        off=-0.5 * frame["x1"],
        g=np.where(frame["id"] % 2 == 0, "even", "odd"),
        hour=(5 * frame["time"]) % 1,
    )
    bends = np.sin(2 * np.pi * frame["hour"]) + frame["x1"] * np.cos(2 * frame["time"])
    return frame.assign(r=frame["y"] + bends + (frame["g"] == "even") * np.sin(3 * frame["time"]))


@pytest.mark.parametrize("case", STORED["cases"], ids=lambda case: case["name"])
def test_functions_equal_mgcv(case):
    weighted = {} if case["weights"] is None else {"weights": "w", "offset": "off"}
    fit = mm.fit(case["formula"], data(), 1, cov_type="nonrobust", unconditional=False, **weighted)
    covariance = fit.cov_params().to_numpy() * (case["pearson"] / case["sigma"]) ** 2
    for f, term in zip(fit.model.functions, case["terms"], strict=True):
        rows = fit.model.design.expert[case["rows"]][:, f.columns.columns]
        ours, theirs = rows @ fit.params.to_numpy()[f.where], np.array(term["fit"])
        away = ours - theirs
        if f.columns.term.levels:  # mgcv centres the function of a level over all rows, we over those of the level
            rows, away = rows[rows.any(axis=1)], away[rows.any(axis=1)]
            away = away - away.mean()
        assert np.abs(away).max() < FUNCTION * np.ptp(theirs)
        if not f.columns.term.levels:
            error = np.sqrt(np.einsum("np,pq,nq->n", rows, covariance[np.ix_(f.where, f.where)], rows))
            np.testing.assert_allclose(error, term["se"], rtol=ERROR)
    np.testing.assert_allclose(fit.functions["edf"], case["edf"], rtol=DEGREES)
    names = [name for name in fit.params.index if name.startswith("sd")]
    np.testing.assert_allclose(fit.params[names], case["sd"], rtol=VARIANCE)
    assert fit.params["sigma1"] == pytest.approx(case["sigma"], rel=VARIANCE)
