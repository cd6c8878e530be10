"""Centred covariates: the same model, whatever the origin of a covariate."""

import numpy as np
import pytest

from mixmoe.varying.em_steps import own_natural
from mixmoe.varying.model import VCMoE
from mixmoe.varying.presets import vcmoe
from mixmoe.varying.problem import centred
from tests.varying.helpers import make_problem

FORMULA = "y ~ z1 | gate: x1 | vary: u"


@pytest.fixture(scope="module")
def data():
    return vcmoe(n=300, rng=1).data


@pytest.fixture(scope="module")
def fit(data):
    return VCMoE(FORMULA, data, bandwidth=0.25).fit(rng=0)


@pytest.mark.parametrize(
    ("const", "moved"), [([], True), ([1, 3], True), ([0, 2], False), ([0, 1, 2, 3], True)], ids=str
)
def test_predictors_are_the_same_and_the_way_back_leads_home(const, moved):
    held = np.zeros(8, dtype=bool)
    held[const] = True
    sim = vcmoe(n=300, rng=1)
    sim.data["z1"] += 7.0
    problem = make_problem(sim, 0.3, const=held)
    inner, centring = centred(problem)
    coef = np.random.default_rng(0).normal(size=(50, 2, 8))
    there = centring.inwards(problem.slots, coef)
    np.testing.assert_allclose(centring.outwards(problem.slots, there), coef, atol=1e-12)
    for a, b in zip(
        (own_natural(problem, coef).eta, own_natural(problem, coef).log_gate),
        (own_natural(inner, there).eta, own_natural(inner, there).log_gate),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-10)
    assert (abs(np.average(inner.rows.design[:, 1])) < 1e-12) == moved  # a constant intercept stays constant


def test_without_an_intercept_nothing_moves(data):
    model = VCMoE("y ~ 0 + z1 | gate: 0 + x1 | vary: u", data.assign(z1=data["z1"] + 3.0), 2, bandwidth=0.3)
    problem = model.problem(0.3, None)
    inner, centring = centred(problem)
    np.testing.assert_array_equal(inner.rows.design, problem.rows.design)
    coef = np.ones((50, 2, problem.slots.n))
    np.testing.assert_array_equal(centring.inwards(problem.slots, coef), coef)


@pytest.mark.parametrize("shift", [10.0, 2000.0])
def test_origin_of_the_covariates_does_not_matter(data, fit, shift):
    other = data.assign(z1=data["z1"] + shift, x1=data["x1"] - shift)
    moved = VCMoE(FORMULA, other, bandwidth=0.25).fit(rng=0)
    assert moved.converged
    assert moved.llf == pytest.approx(fit.llf, abs=1e-3)
    np.testing.assert_allclose(moved.responsibilities, fit.responsibilities, atol=1e-3)
    np.testing.assert_allclose(moved.predict(), fit.predict(), atol=1e-3)
    ours, theirs = (f.bands(rng=1).set_index("coefficient").loc["expert2.z1"] for f in (fit, moved))
    np.testing.assert_allclose(theirs["center"], ours["center"], atol=1e-3)
    np.testing.assert_allclose(theirs["std_error"], ours["std_error"], rtol=1e-3)
    slopes = [name for name in fit.params.index if ".z1(" in name or ".x1(" in name]
    np.testing.assert_allclose(moved.bse[slopes], fit.bse[slopes], rtol=1e-3)
    assert moved.effective_df == pytest.approx(fit.effective_df, abs=1e-3)
    tests = [f.test_varying("expert1.z1", method="asymptotic") for f in (fit, moved)]
    assert tests[1].statistic == pytest.approx(tests[0].statistic, abs=1e-3)


def test_unit_of_the_covariates_does_not_matter(data, fit):
    moved = VCMoE(FORMULA, data.assign(z1=1e4 * data["z1"], x1=1e-4 * data["x1"]), bandwidth=0.25).fit(rng=0)
    assert moved.llf == pytest.approx(fit.llf, abs=1e-4)
