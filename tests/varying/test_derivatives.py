"""Derivatives of the functions by the index: estimates, standard errors, critical values, through the door."""

import matplotlib

matplotlib.use("Agg")

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError
from mixmoe.varying.bands import equivalent_kernel, fit_levels, level_influence, level_process
from mixmoe.varying.joint_em import Control, fit_functions
from mixmoe.varying.local_maximum import local_maxima
from mixmoe.varying.model import VCMoE
from mixmoe.varying.presets import vcmoe
from mixmoe.varying.sandwich import unit_influence
from tests.varying.helpers import make_problem

EPS = 1e-4
SAME = 2e-6
DEGREES = {"none": 2, "rbc": 3}


def curve(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    u, x = rng.uniform(0.0, 2.0, n), rng.normal(size=n)
    y = np.sin(3.0 * u) + np.cos(2.0 * u) * x + 0.3 * rng.normal(size=n)
    return pd.DataFrame({"y": y, "x": x, "u": u})


@pytest.fixture(scope="module")
def data():
    return curve(250, 0)


@pytest.fixture(scope="module")
def one(data):
    return VCMoE("y ~ x | vary: u", data, 1, bandwidth=0.6, n_grid=15, dispersion="const").fit(rng=0)


def dense(data: pd.DataFrame, at: float, h: float, degree: int):
    """Slopes of intercept and x at one point and their HC2 variances, by dense local least squares."""
    t = (data["u"].to_numpy() - at) / h
    kernel = 0.75 * np.clip(1.0 - t * t, 0.0, None)
    rows = np.column_stack([np.ones(len(t)), data["x"]])
    design = (t[:, None] ** np.arange(degree + 1))[:, :, None] * rows[:, None]
    design = design.reshape(len(t), -1)
    inverse = np.linalg.inv(design.T @ (kernel[:, None] * design))
    coef = inverse @ (design.T @ (kernel * data["y"].to_numpy()))
    error = data["y"].to_numpy() - design @ coef
    share = kernel * np.einsum("nd,de,ne->n", design, inverse, design)
    moves = (kernel * error / np.sqrt(1.0 - share))[:, None] * (design @ inverse)
    return coef[2:4] / h, (moves**2).sum(axis=0)[2:4] / h**2


@pytest.mark.parametrize("bias", ["none", "rbc", "undersmooth"])
def test_one_normal_expert_is_dense_local_least_squares(data, one, bias):
    bands = one.bands(derivative=1, bias=bias, method="asymptotic")
    assert list(bands["coefficient"].unique()) == ["expert1.Intercept", "expert1.x"]
    h = 0.6 * len(data) ** -0.05 if bias == "undersmooth" else 0.6
    grid = one.model.problem.windows.grid
    for g in (0, 1, 7, 14):
        slope, variance = dense(data, grid[g], h, DEGREES.get(bias, 2))
        here = bands[bands["u"] == grid[g]]
        np.testing.assert_allclose(here["center"], slope, rtol=1e-8)
        np.testing.assert_allclose(here["std_error"], np.sqrt(variance), rtol=1e-3)  # HC2 with sigma constant
    np.testing.assert_allclose(
        bands["estimate"], (one.model.coef[:, 1, :2] / 0.6).T.ravel(), rtol=1e-12
    )  # the slope of the fit


def test_cubics_are_exact_and_the_index_has_units(data):
    rng = np.random.default_rng(1)
    u = data["u"].to_numpy()
    exact = data.assign(y=1.0 - u + 2.0 * u**3 + (u**2) * data["x"] + 1e-6 * rng.normal(size=len(u)))
    for unit in (1.0, 60.0):
        scaled = exact.assign(u=unit * u)
        fit = VCMoE("y ~ x | vary: u", scaled, 1, bandwidth=0.6 * unit, n_grid=9, dispersion="const").fit(rng=0)
        bands = fit.bands(derivative=1)
        at = bands["u"].to_numpy()[:9] / unit
        wanted = np.concatenate([-1.0 + 6.0 * at**2, 2.0 * at]) / unit
        np.testing.assert_allclose(bands["center"], wanted, atol=2e-4 / unit)


def fitted(gate_bandwidth=None):
    sim = vcmoe(n=400, rng=2)
    problem = make_problem(sim, 0.35, n_grid=12, gate_bandwidth=gate_bandwidth)
    run = fit_functions(problem, Control(tolerance=1e-8), np.random.default_rng(0))
    return problem, local_maxima(problem, run.coef).state


@pytest.mark.parametrize("bias", ["none", "rbc"])
def test_influence_on_a_slope_is_its_derivative_by_the_weight(bias):
    problem, coef = fitted()
    fits = fit_levels(problem, coef, bias, 1)
    assert fits.bounded.fit.converged.all()
    inf = level_influence(fits, 0.0, derivative=1)
    np.testing.assert_allclose(inf.levels, fits.values(1), rtol=1e-12)
    each = unit_influence(inf, slice(None)).reshape(400, 12, -1)
    for row in (0, 77, 399):
        want = _moved(problem, coef, row, bias)
        scale = np.abs(each[row]).max(axis=0)
        np.testing.assert_allclose(each[row], want, atol=SAME * scale.max())


def test_influence_on_the_slope_of_a_gate_of_its_own_goes_through_the_experts():
    problem, coef = fitted(0.5)
    fits = fit_levels(problem, coef, "none", 1)
    both = level_influence(fits, 0.0, derivative=1)
    np.testing.assert_allclose(both.levels, fits.values(1), rtol=1e-10)
    each = unit_influence(both, slice(None)).reshape(400, 12, -1)
    for row in (5, 200):
        want = _moved(problem, coef, row, "none")
        scale = np.abs(want).max(axis=0)
        np.testing.assert_allclose(each[row] / scale, want / scale, atol=0.1)  # experts interpolated between points
        np.testing.assert_allclose(each[row][:, :6], want[:, :6], atol=SAME * np.abs(want).max())


def _moved(problem, coef, row, bias):
    found = []
    for change in (-EPS, EPS):
        weights = problem.rows.weights.copy()
        weights[row] += change
        found.append(fit_levels(replace(problem, rows=problem.rows.with_weights(weights)), coef, bias, 1).values(1))
    return (found[1] - found[0]) / (2.0 * EPS)


@pytest.mark.parametrize("degree", [2, 3])
def test_kernel_of_a_slope_is_that_of_dense_least_squares(degree):
    t = np.linspace(-1.0, 1.0, 20_001)
    kernel = 0.75 * (1.0 - t * t)
    powers = t[:, None] ** np.arange(degree + 1)
    weights = np.linalg.solve(powers.T @ (kernel[:, None] * powers), (kernel[:, None] * powers).T)[1]
    np.testing.assert_allclose(equivalent_kernel(t, degree, 1), weights * 10_000.0, atol=1e-3)


def test_constants_keep_their_influence_and_have_no_derivative():
    sim = vcmoe(n=400, rng=2)
    const = np.zeros(make_problem(sim, 0.35).slots.n, dtype=bool)
    const[[1, 3]] = True
    problem = make_problem(sim, 0.35, n_grid=12, const=const)
    run = fit_functions(problem, Control(tolerance=1e-8), np.random.default_rng(0))
    slopes, levels = (level_process(problem, run.coef, "none", derivative=d) for d in (1, 0))
    at = np.einsum("glgl->gl", slopes.covariance)
    assert (at[:, [1, 3]] == 0.0).all()
    assert (slopes.levels[:, [1, 3]] == 0.0).all()
    assert (at[:, [0, 2]] > 0.0).all()
    assert (np.einsum("glgl->gl", levels.covariance)[:, [1, 3]] > 0.0).all()


@pytest.fixture(scope="module")
def mixture():
    return VCMoE("y ~ z1 | gate: x1 | vary: u", vcmoe(n=400, rng=1).data, bandwidth=0.4, n_grid=20).fit(rng=0, starts=4)


def test_through_the_door(mixture, tmp_path):
    bands = mixture.bands(derivative=1, bias="none", rng=1)
    names = {n for n in mixture.functions()["coefficient"] if "sigma" not in n}
    assert set(bands["coefficient"]) == names
    inside = bands[bands["mark"] == ""]
    assert (inside["band_low"] < inside["conf_low"]).all()
    assert (inside["conf_low"] < inside["center"]).all()
    differences = mixture.bands("differences", derivative=1, bias="none", rng=1)
    part = bands.pivot(index="u", columns="coefficient", values="center")
    wanted = part["expert2.z1"] - part["expert1.z1"]
    found = differences[differences["term"] == "z1"]["center"]
    np.testing.assert_allclose(found, wanted)
    mixture.save(tmp_path / "fit.mixmoe")
    again = mm.load(tmp_path / "fit.mixmoe").bands(derivative=1, bias="none", rng=1)
    pd.testing.assert_frame_equal(again, bands)
    curves = mixture.curves("derivatives", bias="none")
    assert {c.panel for c in curves} == {f"derivative of the coefficient of {t}" for t in ("Intercept", "z1")}
    plt.close(mixture.plot("derivatives", bias="none"))


def test_the_parametric_bootstrap_has_the_spread_of_the_model(data, one):
    sandwich = one.bands(derivative=1, bias="none", method="asymptotic")
    drawn = one.bands(derivative=1, bias="none", method="bootstrap", n_boot=99, rng=0)
    sigma = float(one.functions([1.0]).query("coefficient == 'sigma1'")["estimate"].iloc[0])
    ones = [np.sqrt(_noise_gain(data, at, 0.6)) for at in one.model.problem.windows.grid]
    ratio = drawn["std_error"].to_numpy().reshape(2, 15).T / (sigma * np.array(ones))
    assert np.median(ratio) == pytest.approx(1.0, abs=0.12)
    np.testing.assert_allclose(drawn["center"], sandwich["center"])


def _noise_gain(data: pd.DataFrame, at: float, h: float) -> np.ndarray:
    """Sums of the squared weights of the responses in the slopes of a local quadratic."""
    pieces = [dense(data.assign(y=np.eye(len(data))[i]), at, h, 2)[0] for i in range(len(data))]
    return (np.array(pieces) ** 2).sum(axis=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"derivative": 2}, "derivative must be 0 or 1, got 2"),
        ({"derivative": 1, "of": "mean"}, "derivative=1 is for of= 'coefficients', 'differences', got of='mean'"),
    ],
)
def test_what_derivatives_do_not_take(mixture, options, message):
    with pytest.raises(ArgumentError, match=message):
        mixture.bands(**options)


def test_simultaneous_bands_hold_the_derivative():
    """25 samples of 250 rows with two functions each: the fewest that tell 95 % from 80 %."""
    held = []
    for seed in range(25):
        data = curve(250, seed)
        fit = VCMoE("y ~ x | vary: u", data, 1, bandwidth=0.6, n_grid=15, dispersion="const").fit(rng=0)
        bands = fit.bands(derivative=1, rng=0, draws=1000)
        u = bands["u"].to_numpy()[:15]
        truth = np.concatenate([3.0 * np.cos(3.0 * u), -2.0 * np.sin(2.0 * u)])
        inside = (bands["band_low"].to_numpy() <= truth) & (truth <= bands["band_high"].to_numpy())
        held.append(inside.reshape(2, 15).all(axis=1))
    assert np.mean(held) > 0.87
