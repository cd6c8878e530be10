"""Standard errors where experts coincide in part of the index, against the Fisher information of the mixture."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, poisson

import mixmoe as mm
from mixmoe.errors import MixmoeWarning

STEP = 1e-4
WIDEST = 4.0  # standard error of a function over that of a parabola over the whole index, at most
OFF = 0.4  # largest log ratio of a standard error to that of the mixture with parabolas, whose parameters are the truth


def _truth(family):
    """Two parabolas per index that start together, constants of batch and gate, log dispersions."""
    rise = 1.8 if family != "gaussian" else 3.0
    functions = [1.2, 0.2, rise, 1.2, 0.0, 0.0, -0.2, 0.0, 0.0]
    constants = [0.2, 0.2, 0.9]
    dispersions = {"poisson": [], "gaussian": [-0.7, -0.7]}[family]
    return np.array(functions + constants + dispersions)


def _loglik(family, p, y, u, b, c):
    powers = np.column_stack([np.ones_like(u), u, u**2])
    gate = powers @ p[6:9] + p[11] * c
    parts = []
    for k, share in enumerate((-np.logaddexp(0.0, gate), -np.logaddexp(0.0, -gate))):
        eta = powers @ p[3 * k : 3 * k + 3] + p[9 + k] * b
        if family == "poisson":
            parts.append(share + poisson.logpmf(y, np.exp(eta)))
        else:
            parts.append(share + norm.logpdf(y, eta, np.exp(p[12 + k])))
    return np.logaddexp(*parts)


def _fisher(family, p, u, b, c):
    """Standard errors of all parameters from the mean of squared numerical scores over a lattice of responses."""
    lattice, cell = (np.linspace(-4.0, 9.0, 131), 0.1) if family == "gaussian" else (np.arange(80.0), 1.0)
    information = np.zeros((len(p), len(p)))
    for y in lattice:
        at = np.full_like(u, y)
        ends = [[_loglik(family, p + s * STEP * e, at, u, b, c) for s in (1, -1)] for e in np.eye(len(p))]
        score = np.array([(up - down) / (2.0 * STEP) for up, down in ends])
        information += (score * cell * np.exp(_loglik(family, p, at, u, b, c))) @ score.T
    return np.linalg.inv(information)


def _drawn(family, n, seed):
    rng, p = np.random.default_rng(seed), _truth(family)
    u, b, c = np.sort(rng.uniform(size=n)), rng.integers(0, 2, n).astype(float), rng.normal(size=n)
    powers = np.column_stack([np.ones_like(u), u, u**2])
    second = rng.uniform(size=n) < 1.0 / (1.0 + np.exp(-powers @ p[6:9] - p[11] * c))
    eta = np.where(second, powers @ p[3:6] + p[10] * b, powers @ p[:3] + p[9] * b)
    y = rng.normal(eta, np.exp(-0.7)) if family == "gaussian" else rng.poisson(np.exp(eta))
    return pd.DataFrame({"y": y, "u": u, "b": b, "c": c}), p


@pytest.mark.parametrize(("family", "seed"), [("poisson", 7), ("gaussian", 3)])
def test_standard_errors_are_those_of_the_mixture(family, seed):
    """The observed information of the windows there made those of constants two to three times as large.

    Those of functions were up to 200 times as large, where a single row takes up the information of a window.
    """
    data, p = _drawn(family, 600, seed)
    options = {"dispersion": "const"} if family == "gaussian" else {}
    formula = "y ~ const(b) | gate: const(c) | vary: u"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        fit = mm.fit(formula, data, 2, family=family, bandwidth=0.35, starts=3, rng=0, n_grid=21, **options)
        bands = fit.bands(rng=0, draws=100)
    frame = fit.to_frame()
    estimate, error = frame["estimate"], frame["std_error"]
    ends = [next(name for name in frame.index[::-1] if name.startswith(f"expert{k}.Intercept")) for k in (1, 2)]
    first, second = sorted((1, 2), key=lambda k: -estimate[ends[k - 1]])  # the rising one was drawn first
    covariance = _fisher(family, p, *(data[name].to_numpy() for name in "ubc"))
    at = float(ends[0].split("=")[1].rstrip(")")) ** np.arange(3)
    levels = [np.sqrt(at @ covariance[s : s + 3, s : s + 3] @ at) for s in (0, 3)]
    want = [*np.sqrt(np.diag(covariance))[9:], *levels]
    names = [f"expert{first}.b", f"expert{second}.b", "gate2.c"]
    scale = [f"sigma{first}", f"sigma{second}"] if options else []
    got = [*error[names], *(error[scale] / estimate[scale]), *error[[ends[first - 1], ends[second - 1]]]]
    np.testing.assert_allclose(np.log(got), np.log(want), rtol=0.0, atol=OFF)
    at = bands["u"].unique()[:, None] ** np.arange(3)
    for name, s in ((f"expert{first}.Intercept", 0), (f"expert{second}.Intercept", 3), ("gate2.Intercept", 6)):
        want = np.sqrt(np.einsum("ij,jk,ik->i", at, covariance[s : s + 3, s : s + 3], at))
        part = bands[bands["coefficient"] == name]
        ratio = part["std_error"].to_numpy() / want
        seen = np.isfinite(ratio)
        assert seen.mean() > 0.8
        assert (ratio[seen] < WIDEST).all()
        assert set(part["mark"][~seen]) <= {"unsteady", "thin", "no maximum"}
