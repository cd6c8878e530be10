"""Critical values of simultaneous bands against an independent simulation of the limiting process."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from mixmoe.inference.uncertainty import multiplier_critical
from mixmoe.varying.bands import asymptotic_critical, equivalent_kernel
from tests.golden.make_critical import correlation

EXACT = json.loads((Path(__file__).parents[1] / "golden" / "critical.json").read_text())
CLOSE = 0.03  # the bar; both sides are simulated, with errors of 0.003 and 0.008
SPEED = 2.5  # integral of the squared slope of the kernel over that of its square


@pytest.mark.parametrize("h", EXACT)
def test_asymptotic_values_are_those_of_the_process(h):
    assert asymptotic_critical(float(h), 0.05) == pytest.approx(EXACT[h], abs=CLOSE)


@pytest.mark.parametrize("h", ["0.1", "0.3"])
def test_multiplier_values_are_those_of_the_process(h):
    u = np.arange(0.0, 1.0 + 1e-9, float(h) / 20.0)
    covariance = correlation(np.abs(u[:, None] - u) / float(h)) * np.outer(1.0 + u, 1.0 + u)
    assert multiplier_critical(covariance, 0.05, 20_000, np.random.default_rng(0)) == pytest.approx(EXACT[h], abs=CLOSE)
    covariance[3] = covariance[:, 3] = np.nan  # a point without an estimate is left out
    assert multiplier_critical(covariance, 0.05, 4_000, np.random.default_rng(0)) == pytest.approx(EXACT[h], abs=0.06)


@pytest.mark.parametrize("h", EXACT)
def test_expected_crossings_bound_the_values(h):
    expected = lambda c: 2.0 * norm.sf(c) + np.sqrt(SPEED) / (np.pi * float(h)) * np.exp(-0.5 * c * c)  # noqa: E731
    bound = brentq(lambda c: expected(c) - 0.05, 1.0, 6.0)  # Rice: at least their probability
    assert bound - 0.1 < asymptotic_critical(float(h), 0.05) < bound


def test_values_grow_with_the_range_the_level_and_the_degree():
    assert asymptotic_critical(0.1) > asymptotic_critical(0.2) > asymptotic_critical(0.5)
    assert asymptotic_critical(0.2, 0.01) > asymptotic_critical(0.2, 0.05) > norm.ppf(0.975)
    assert asymptotic_critical(0.2, degree=2) > asymptotic_critical(0.2, degree=1)  # the wider stencil moves faster
    t = np.linspace(-1.0, 1.0, 2001)
    kernel = equivalent_kernel(t, 2) * (t[1] - t[0])
    np.testing.assert_allclose([kernel.sum(), (kernel * t * t).sum()], [1.0, 0.0], atol=1e-5)
