"""One expert against mixedlm, a re-implementation of lme4 on PyPI, live; skipped where it is not installed."""

import numpy as np
import pytest

import mixmoe as mm
from tests.golden.make_robust import read

mixedlm = pytest.importorskip("mixedlm")

LOGLIK = 1e-6  # absolute
FIXED = 1e-5  # relative to the standard error or the value, whichever is larger
VARIANCE = 1e-4  # relative
CASES = {  # name -> data, our formula, theirs
    "sleep, intercept": ("sleepstudy", "reaction ~ days | re: (1 | subject)", "reaction ~ days + (1 | subject)"),
    "sleep, slope": (
        "sleepstudy",
        "reaction ~ days | re: (1 + days | subject)",
        "reaction ~ days + (1 + days | subject)",
    ),
    "orthodont": ("orthodont", "distance ~ age | re: (1 + age | subject)", "distance ~ age + (1 + age | subject)"),
    "unbalanced": ("sim_unbalanced", "y ~ time + x1 + z1 | re: (1 | id)", "y ~ time + x1 + z1 + (1 | id)"),
    "unbalanced, slope": (
        "sim_unbalanced",
        "y ~ time * z1 + x1 | re: (1 + time | id)",
        "y ~ time * z1 + x1 + (1 + time | id)",
    ),
    "unbalanced, no correlation": (
        "sim_unbalanced",
        "y ~ time + x1 | re: (1 + time || id)",
        "y ~ time + x1 + (1 + time || id)",
    ),
    "unbalanced, slope only": ("sim_unbalanced", "y ~ time | re: (0 + time | id)", "y ~ time + (0 + time | id)"),
}


@pytest.mark.parametrize("name", list(CASES))
def test_estimates_equal_mixedlm(name):
    data, ours, theirs = CASES[name]
    frame = read(data)
    fit = mm.fit(ours, frame, experts=1, cov_type="nonrobust")
    peer = mixedlm.lmer(theirs, frame, REML=False)
    assert fit.llf > peer.logLik().value - LOGLIK
    assert fit.llf == pytest.approx(peer.logLik().value, abs=LOGLIK)
    for column, value in peer.fixef().items():
        term = "Intercept" if column == "(Intercept)" else column
        parameter = f"expert1.{term}"
        assert fit.params[parameter] == pytest.approx(value, rel=FIXED, abs=FIXED * fit.bse[parameter]), term
    assert fit.params["sigma1"] == pytest.approx(peer.sigma, rel=VARIANCE)
    theta = peer.theta * peer.sigma
    sd = fit.params[[n for n in fit.params.index if n.startswith("sd1")]].to_numpy()
    if "||" in theirs or len(theta) == 1:
        assert sd == pytest.approx(np.abs(theta), rel=VARIANCE)
    else:
        factor = np.array([[theta[0], 0.0], [theta[1], theta[2]]])
        D = factor @ factor.T
        assert sd == pytest.approx(np.sqrt(np.diag(D)), rel=VARIANCE)
        corr = next(v for n, v in fit.params.items() if n.startswith("corr1"))
        assert corr == pytest.approx(D[0, 1] / np.sqrt(D[0, 0] * D[1, 1]), rel=VARIANCE, abs=VARIANCE)
