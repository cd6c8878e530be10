"""Bands of dispersions that run to their limits, of functions at thin ends, and marks of what a value lacks."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import nbinom
from scipy.stats import t as student

from mixmoe.errors import MixmoeWarning
from mixmoe.varying import likelihood_limits
from mixmoe.varying.bands import LEAST_DF, level_process
from mixmoe.varying.em_steps import own_natural, posterior
from mixmoe.varying.function_frames import _with_theta_limits
from mixmoe.varying.joint_em import Control, fit_functions
from mixmoe.varying.local_likelihood import build_local, local_start
from mixmoe.varying.local_maximum import maximise_bounded
from mixmoe.varying.model import VCMoE
from mixmoe.varying.presets import vcmoe
from mixmoe.varying.sandwich import influence
from mixmoe.varying.windows import epanechnikov
from tests.varying.helpers import make_problem

FORMULA = "y ~ z1 | gate: x1 | vary: u"


def silent_fit(formula, data, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        fit = VCMoE(formula, data, *args, **options).fit(rng=0, starts=2)
        return fit, fit.bands(rng=0)


@pytest.fixture(scope="module")
def one():
    """One negative binomial expert: some windows overdispersed, some not."""
    data = vcmoe(n=250, family="negbinomial", experts=1, rng=4).data
    rng = np.random.default_rng(0)
    early = data["u"] < 0.35
    data.loc[early, "y"] = rng.binomial(10, 0.5, early.sum())  # less variable than Poisson
    return silent_fit("y ~ z1 | vary: u", data, 1, family="negbinomial", bandwidth=0.25, n_grid=12)


def adjusted_profile(fit, g, log_theta, best):
    """Local log-likelihood at a log theta, maximised over the local parabolas by a quasi-Newton method, over the share
    by which its score varies less than it bends, less half the log determinant of the information of the parabolas.
    """
    rows, grid = fit.model.problem.rows, fit.model.problem.windows.grid
    t = (rows.index - grid[g]) / 0.25
    kernel = epanechnikov(t)
    basis = (rows.design[:, None] * (t[:, None] ** np.arange(3))[:, :, None]).reshape(len(t), -1)
    theta, y = np.exp(log_theta), rows.outcome.y

    def minus(beta):
        mean = np.exp(basis @ beta + rows.offset)
        return -float(kernel @ nbinom.logpmf(y, theta, theta / (theta + mean)))

    found = minimize(minus, best, method="BFGS", options={"gtol": 1e-6})
    mean = np.exp(basis @ found.x + rows.offset)
    curvature = kernel * mean * theta / (theta + mean)  # expected
    spread = np.linalg.slogdet(basis.T @ (basis * curvature[:, None]))[1]
    return -found.fun / ((kernel**2).sum() / kernel.sum()) - 0.5 * spread, found.x


def test_limits_of_theta_are_those_of_a_dense_adjusted_profile(one):
    fit, bands = one
    theta = bands[bands["block"] == "residual"].reset_index(drop=True)
    units = fit._thetas["rbc"].units[0]
    for g in (3, 9):
        start = np.zeros(6)
        start[0] = 2.0
        level = np.log(theta["center"][g])
        top, beta = adjusted_profile(fit, g, level, start)
        assert top > max(adjusted_profile(fit, g, level + move, beta)[0] for move in (-0.1, 0.1))  # its maximum
        for end in ("conf_low", "conf_high"):
            limit = theta[end][g]
            if np.isfinite(limit):
                root = np.sqrt(2.0 * (top - adjusted_profile(fit, g, np.log(limit), beta)[0])) / units
                assert root == pytest.approx(1.96, abs=0.06)  # rungs of the profile are joined by lines


def test_a_theta_without_maximum_has_a_lower_limit_no_upper_one_and_a_mark(one):
    fit, bands = one
    theta = bands[bands["block"] == "residual"]
    early = theta[theta["u"] < 0.1]
    assert (early["mark"] == "limit").all()
    assert early["std_error"].isna().all()
    assert np.isinf(early[["conf_high", "band_high"]]).all().all()
    assert (early["band_low"] < early["conf_low"]).all()
    assert (early["conf_low"] < 1e3).all()  # not around the ceiling
    rest = bands[(bands["block"] == "expert") & (bands["u"] < 0.2)]
    assert np.isfinite(rest["std_error"]).all()  # a flat theta takes nothing from the others
    text = " ".join(str(fit.summary()).split())
    assert "The dispersion behind the band runs to its limit" in text
    assert " inf " in text


def test_no_normal_standard_error_around_a_limit(one):
    fit, _ = one
    names = fit.params.index[fit.params.index.str.startswith("theta1")]
    at_limit = fit.bse[names].isna().to_numpy()
    assert at_limit.any()
    assert not at_limit.all()


@pytest.mark.parametrize("bias", ["none", "undersmooth"])
def test_other_corrections_have_limits_of_the_likelihood_too(one, bias):
    bands = one[0].bands(bias=bias, rng=0)
    theta = bands[bands["block"] == "residual"]
    assert np.isinf(theta["band_high"][theta["mark"] == "limit"]).all()
    assert (theta["mark"] == "limit").any()


def test_a_constant_theta_on_its_ceiling_has_no_standard_error():
    rng = np.random.default_rng(0)
    data = vcmoe(n=200, family="poisson", experts=1, rng=4).data
    data["y"] = rng.binomial(12, 0.5, 200)
    fit, _ = silent_fit("y ~ z1 | vary: u", data, 1, family="negbinomial", bandwidth=0.3, dispersion="const", n_grid=8)
    assert "boundary" in [flag.code for flag in fit.flags]
    assert np.isnan(fit.bse["theta1"])
    assert np.isfinite(fit.bse.drop("theta1")).all()


def test_held_functions_have_no_influence_and_leave_the_others_theirs():
    problem = make_problem(
        vcmoe(n=250, family="negbinomial", experts=1, rng=2), 0.3, n_grid=6, experts=1, family="negbinomial"
    )
    coef = fit_functions(problem, Control(), np.random.default_rng(0)).coef
    local = build_local(problem, 1)
    found = maximise_bounded(local, local_start(local, coef))
    held = np.zeros((6, 3), dtype=bool)
    held[2, 2] = True
    inf = influence(local, found.fit.coef, power=0.0, held=held)
    assert np.isnan(inf.local[2][:, 2]).all()
    t = (problem.rows.index - problem.windows.grid[2]) / 0.3
    inside = slice(inf.lo[2], inf.hi[2])
    design = np.hstack([problem.rows.design, problem.rows.design * t[:, None]])[inside]
    kernel, y = epanechnikov(t)[inside], problem.rows.outcome.y[inside]
    mean = np.exp(design @ found.fit.coef[2, :, :2].ravel() + problem.rows.offset[inside])
    theta = np.exp(found.fit.coef[2, 0, 2])
    score = (y - mean) * theta / (theta + mean)
    curvature = mean * theta * (theta + y) / (theta + mean) ** 2
    inverse = np.linalg.inv(design.T @ (design * (kernel * curvature)[:, None]))
    want = (kernel * score)[:, None] * (design @ inverse)[:, :2]
    np.testing.assert_allclose(inf.local[2][:, :2], want, atol=1e-8 * np.abs(want).max())


def test_bands_end_where_fewer_than_two_degrees_of_freedom_carry_them():
    data = vcmoe(n=300, index_shape=(2.0, 2.0), rng=3).data
    fit, bands = silent_fit(FORMULA, data, bandwidth=0.25)
    process = level_process(fit.model.problem, fit.model.coef)
    thin = (bands["mark"] == "thin").to_numpy().reshape(8, -1).T
    finite = np.isfinite(np.einsum("glgl->gl", process.covariance))
    np.testing.assert_array_equal(thin, (process.df < LEAST_DF) & finite)
    assert thin[[0, -1]].any()
    assert not thin[20:30].any()
    assert bands["band_low"][bands["mark"] == "thin"].isna().all()
    text = " ".join(str(fit.summary()).split())
    assert "Bands hold over the range of the index that the rows support" in text


def test_an_estimate_outside_its_band_is_marked_everywhere():
    data = vcmoe(n=600, rng=1).data
    data["y"] += 3.0 * np.sin(6.0 * np.pi * data["u"])  # far too much for the bandwidth
    fit, bands = silent_fit("y ~ z1 | vary: u", data, 1, bandwidth=0.3)
    outside = (bands["estimate"] < bands["band_low"]) | (bands["estimate"] > bands["band_high"])
    assert outside.any()
    assert ((bands["mark"] == "outside") == outside).all()
    beyond = ((bands["estimate"] < bands["conf_low"]) | (bands["estimate"] > bands["conf_high"])) & ~outside
    assert beyond.any()
    assert ((bands["mark"] == "outside limits") == beyond).all()
    assert "Estimates lie outside their own bands" in " ".join(str(fit.summary()).split())
    points = fit.model.points
    shown = outside.to_numpy().reshape(-1, len(fit.model.problem.windows.grid))[:, points].sum()
    cells = [str(cell) for table in fit.tables()[1:] for row in table.cells for cell in row]
    assert sum(cell.endswith("*") for cell in cells) == shown


def test_sigma_is_bounded_from_above_whatever_slope_a_gap_gives_it():
    problem = make_problem(vcmoe(n=200, rng=1), 0.3)
    spread = np.exp(problem.ceiling) / np.sqrt(200)  # all squares of one regression on one row
    y = problem.rows.outcome.y
    rest = y - problem.rows.design @ np.linalg.lstsq(problem.rows.design, y, rcond=None)[0]
    assert spread == pytest.approx(np.sqrt((rest**2).mean()))
    steep = np.zeros((50, 2, problem.slots.n))
    steep[20, 1, problem.slots.dispersions] = 1e5
    natural = own_natural(problem, steep)
    assert natural.delta.max() == problem.ceiling
    assert np.isfinite(posterior(problem.rows, problem.family, natural).loglik)


@pytest.fixture(scope="module")
def two():
    """Two negative binomial experts."""
    data = vcmoe(n=300, family="negbinomial", rng=2).data
    return silent_fit(FORMULA, data, family="negbinomial", bandwidth=0.4, n_grid=6, offset="log_size")


def test_limits_of_theta_in_a_mixture_take_the_degrees_of_freedom_into_account(two):
    """Where few rows carry an expert its limits lie at a root above 1.96, that of Student's t."""
    fit, bands = two
    theta, profile = bands[bands["coefficient"] == "theta1"].reset_index(drop=True), fit._thetas["rbc"]
    process = level_process(fit.model.problem, fit.model.coef)
    df = process.df[:, fit.model.problem.slots.dispersions.start]
    checked = 0
    for g in range(6):
        if np.isfinite(df[g]) and np.isfinite(theta["conf_low"][g]):
            walk = profile.below[0]
            order = np.argsort(walk.values[:, g])
            root = np.interp(np.log(theta["conf_low"][g]), walk.values[order, g], walk.roots[order, g])
            assert root / profile.units[0] == pytest.approx(student.isf(0.025, max(df[g], LEAST_DF)), rel=1e-6)
            checked += 1
    assert checked > 2


def test_a_profile_that_stays_behind_is_raised_from_the_grid_point_beside(two):
    """Rungs whose other coefficients are far from their maximum reach the height of those that were followed there."""
    process = level_process(two[0].model.problem, two[0].model.coef)
    local, fit = process.fits.local, process.fits.bounded.free
    resp = np.full(local.problem.rows.n, 0.5)
    profile = likelihood_limits._Profile(local, 0, resp, np.stack([resp, resp]))
    path = likelihood_limits._path(profile, fit, 2.0)
    tops, g = path.heights.max(axis=0), 3
    behind, coef = path.heights.copy(), path.coef.copy()
    rungs = np.arange(path.start + 1, len(behind))
    behind[rungs, g] -= 4.0
    coef[rungs, g] = coef[path.start, 0]
    raised = likelihood_limits._raised(profile, replace(path, heights=behind, coef=coef))
    assert (raised.heights[:, g] >= path.heights[:, g] - 0.01).all()
    assert (raised.heights.max(axis=0) <= tops).all()  # what lies above is another solution


def test_points_without_a_standard_error_take_the_degrees_of_freedom_beside_them(two):
    profile, shape = two[0]._thetas["rbc"], two[0]._thetas["rbc"].level.shape
    values = {name: np.zeros(shape) for name in ("center", "conf_low", "conf_high", "band_low", "band_high")}
    known = np.full(shape, 4.0)
    known[:3] = 8.0
    lacking = known.copy()
    lacking[[0, 5]] = np.nan
    both = [_with_theta_limits(values, profile, np.arange(2), 0.05, 2.5, df) for df in (known, lacking)]
    for name in values:
        np.testing.assert_array_equal(both[0][name], both[1][name])
    normal = _with_theta_limits(values, profile, np.arange(2), 0.05, 2.5, np.full(shape, np.inf))
    assert (normal["band_low"] > both[0]["band_low"])[np.isfinite(both[0]["band_low"])].all()
