"""Windows that hold a share of the rows, as in loess: widths, estimates, errors, search, files."""

import matplotlib

matplotlib.use("Agg")

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError, ConvergenceWarning, DesignError
from mixmoe.varying.leave_one_out import left_out_predictors
from mixmoe.varying.model import VCMoE
from mixmoe.varying.smoothing import local_linear_operator, second_kernel

FORMULA = "y ~ x | gate: z | vary: u"


def skewed(n: int, seed: int, experts: int = 2) -> pd.DataFrame:
    """Rows dense near zero, where the functions bend."""
    rng = np.random.default_rng(seed)
    u, x, z = rng.exponential(1.0, n), rng.normal(size=n), rng.normal(size=n)
    first = (rng.uniform(size=n) < 1.0 / (1.0 + np.exp(-0.2 - 0.5 * z))) | (experts == 1)
    mean = np.where(first, 1.5 + np.sin(3.0 * np.log1p(u)) + 0.5 * x, -1.2 + 0.5 * np.cos(u) - 0.4 * x)
    return pd.DataFrame({"y": mean + 0.3 * rng.normal(size=n), "x": x, "z": z, "u": u})


@pytest.fixture(scope="module")
def data():
    return skewed(200, 1, 1)


@pytest.fixture(scope="module")
def one(data):
    return VCMoE("y ~ x | vary: u", data, 1, span=0.3, n_grid=25, dispersion="const").fit(rng=0)


@pytest.fixture(scope="module")
def two():
    return VCMoE(FORMULA, skewed(400, 3), span=0.45, n_grid=25).fit(rng=1, starts=4)


def dense(data: pd.DataFrame, at: float, share: float):
    """Level and slope of intercept and x at one point, HC2 variances of the levels, and the half-width."""
    u = data["u"].to_numpy()
    h = np.sort(np.abs(u - at))[int(np.ceil(share * len(u))) - 1]
    kernel = 0.75 * np.clip(1.0 - ((u - at) / h) ** 2, 0.0, None)
    rows = np.column_stack([np.ones(len(u)), data["x"]])
    design = np.hstack([rows, rows * (u - at)[:, None]])
    inverse = np.linalg.inv(design.T @ (kernel[:, None] * design))
    coef = inverse @ (design.T @ (kernel * data["y"].to_numpy()))
    share_of_rows = kernel * np.einsum("nd,de,ne->n", design, inverse, design)
    error = data["y"].to_numpy() - design @ coef
    moves = (kernel * error / np.sqrt(1.0 - share_of_rows))[:, None] * (design @ inverse)
    return coef, (moves**2).sum(axis=0), h


def test_one_expert_is_dense_local_least_squares_over_the_nearest_rows(data, one):
    windows = one.model.problem.windows
    bands = one.bands(bias="none", method="asymptotic")
    for g in (0, 3, 12, windows.n_grid - 1):
        coef, variance, h = dense(data, windows.grid[g], 0.3)
        assert windows.widths[g] == pytest.approx(h, rel=1e-12)
        np.testing.assert_allclose(one.model.coef[g, 0, :2], coef[:2], rtol=1e-8)
        np.testing.assert_allclose(one.model.coef[g, 1, :2] / one.bandwidth, coef[2:], rtol=1e-7)
        here = bands[bands["u"] == windows.grid[g]].set_index("coefficient")
        found = here.loc[["expert1.Intercept", "expert1.x"], "std_error"].to_numpy()
        known = np.isfinite(found)  # but for the thin end
        assert known.all() or g == windows.n_grid - 1
        np.testing.assert_allclose(found[known], np.sqrt(variance[:2])[known], rtol=1e-3)
    inside = windows.hi - windows.lo
    assert (inside[1:-1] >= 59).all()  # the farthest of 60 has no weight
    assert windows.widths.max() > 10.0 * windows.widths.min()
    assert one.bandwidth == np.median(windows.widths)
    quantiles = np.quantile(data["u"], np.linspace(0.0, 1.0, 25))
    assert np.isclose(quantiles[:, None], windows.grid, atol=1e-12).any(axis=1).all()
    beside = np.minimum(windows.widths[:-1], windows.widths[1:])
    assert (np.diff(windows.grid) < 0.5 * beside).all()  # no step across a bend
    assert windows.relative == 0.15


def test_leaving_out_by_influence_is_leaving_out_of_the_same_windows(data, one):
    problem = one.model.problem
    found = left_out_predictors(problem, one.model.coef)
    rows, windows = problem.rows, problem.windows
    for i in (0, 90, 199):
        lines = []
        for u, h in zip(windows.grid, windows.widths, strict=True):
            kernel = np.clip(1.0 - ((rows.index - u) / h) ** 2, 0.0, None) * (np.arange(rows.n) != i)
            x = np.hstack([rows.design, rows.design * ((rows.index - u) / windows.bandwidth)[:, None]])
            lines.append(np.linalg.solve(x.T @ (kernel[:, None] * x), x.T @ (kernel * rows.outcome.y)).reshape(2, 2))
        at = problem.levels[[i]] @ np.array(lines).reshape(-1, 2)
        assert found[i] == pytest.approx(float(at[0] @ rows.design[i]), abs=1e-9)


def test_smoothing_leaves_lines_as_they_are(two):
    windows = two.model.problem.windows
    line = 2.0 - 3.0 * windows.grid
    operator = local_linear_operator(windows, np.ones(400))
    np.testing.assert_allclose(operator @ line, line, atol=1e-9)
    every = np.ones(windows.n_grid, dtype=bool)
    second = second_kernel(windows.grid, windows.bandwidth, every, widths=windows.widths)
    back = second.weights @ line + second.slopes @ np.full(windows.n_grid, -3.0 * windows.bandwidth)
    np.testing.assert_allclose(back, line, atol=1e-9)
    far = np.abs(windows.grid[:, None] - windows.grid) > 0.5 * windows.widths[:, None]
    assert (second.weights[far] == 0.0).all()
    assert (second.weights[~far] > 0.0).any(axis=None)


def test_the_unit_of_the_index_changes_nothing():
    data = skewed(250, 4)
    found, widths = [], []
    for unit in (1.0, 1000.0):
        fit = VCMoE(FORMULA, data.assign(u=unit * data["u"]), span=0.5, n_grid=20).fit(rng=1, starts=4)
        found.append(fit.functions()["estimate"].to_numpy())
        widths.append(fit.bandwidth)
    assert widths[1] == pytest.approx(1000.0 * widths[0], rel=1e-9)
    np.testing.assert_allclose(found[0], found[1], atol=1e-7)


def test_a_span_follows_a_skewed_index_better_than_a_bandwidth():
    at = np.linspace(0.05, 2.5, 30)
    truth = 1.5 + np.sin(3.0 * np.log1p(at))
    errors = {"span": [], "bandwidth": []}
    for seed in range(4):
        data = skewed(200, seed, 1)
        for name in errors:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the thin end forces a wide bandwidth
                fit = VCMoE("y ~ x | vary: u", data, 1, dispersion="const", **{name: "cv"}).fit(rng=0)
            found = fit.functions(at).query("coefficient == 'expert1.Intercept'")["estimate"].to_numpy()
            errors[name].append(np.sqrt(np.mean((found - truth) ** 2)))
    assert np.mean(errors["span"]) < np.mean(errors["bandwidth"])


def test_search_of_a_span():
    data = skewed(150, 2)
    model = VCMoE(FORMULA, data, span="cv", dispersion="const")
    found = model.select_bandwidth(0, candidates=[0.4, 0.8], folds=2)
    assert found.best in (0.4, 0.8)
    fit = VCMoE("y ~ x | vary: u", skewed(150, 2, 1), 1, span="cv", dispersion="const").fit(rng=0)
    assert fit.selection["bandwidth"].max() == 1.0
    assert fit.span == fit.selection.loc[fit.selection["criterion"].idxmax(), "bandwidth"]
    assert f"span {fit.span:.3g} (cross-validated)" in str(fit.summary())
    assert fit.curves("bandwidth")[0].xlabel == "span"
    with pytest.raises(ArgumentError, match="candidates must be spans"):
        model.select_bandwidth(0, candidates=[0.5, 2.0])


def test_through_the_door(two, tmp_path):
    widths = two.model.problem.windows.widths
    assert f"{widths.min():.3g} to {widths.max():.3g}, span 0.45" in str(two.summary())
    two.save(tmp_path / "fit.mixmoe")
    again = mm.load(tmp_path / "fit.mixmoe")
    assert again.span == 0.45
    pd.testing.assert_frame_equal(again.functions(), two.functions())
    pd.testing.assert_frame_equal(again.bands(rng=2), two.bands(rng=2))
    rows = skewed(400, 3).head(6)
    pd.testing.assert_frame_equal(again.predict(rows), two.predict(rows))
    assert 0.0 < two.test_varying("expert1.Intercept", method="asymptotic").pvalue < 0.01
    slopes = two.bands(derivative=1, bias="none", method="asymptotic")
    assert np.isfinite(slopes["std_error"]).mean() > 0.9
    plt.close(two.plot())


def test_a_span_on_a_circle_does_not_depend_on_its_origin():
    rng = np.random.default_rng(0)
    n = 200
    hour, x, z = np.mod(rng.normal(9.0, 4.0, n), 24.0), rng.normal(size=n), rng.normal(size=n)
    y = np.where(rng.uniform(size=n) < 0.5, 2.0 + np.cos(hour / 24 * 2 * np.pi), -1.0) + 0.3 * rng.normal(size=n) + x
    data = pd.DataFrame({"y": y, "x": x, "z": z, "hour": hour})
    fits = [
        VCMoE("y ~ x | gate: z | vary: cyclic(hour, 24)", frame, span=0.5, n_grid=20).fit(rng=1, starts=4)
        for frame in (data, data.assign(hour=np.mod(data["hour"] + 7.3, 24.0)))
    ]
    u = np.arange(24.0)
    np.testing.assert_allclose(fits[1].functions(u + 7.3)["estimate"], fits[0].functions(u)["estimate"], atol=1e-8)
    assert fits[0].model.problem.windows.widths.max() <= 12.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"span": 0.0}, "span must be the share of the rows in a window, above 0 and at most 1, or 'cv', got 0.0"),
        ({"span": 1.5}, "got 1.5"),
        ({"span": "rule"}, "got 'rule'"),
        ({"span": 0.5, "bandwidth": 0.3}, "both settle the width of the windows"),
        ({"span": 0.5, "gate_bandwidth": 0.3}, "gate_bandwidth=0.3 is in units of the index"),
    ],
)
def test_what_a_span_does_not_take(data, options, message):
    with pytest.raises(ArgumentError, match=message):
        VCMoE(FORMULA, data, **options)


def test_a_recommended_span_can_be_used(data):
    with pytest.raises(DesignError, match=r"window of span 0.01 .* use a larger span .*\(span=") as error:
        VCMoE("y ~ x | vary: u", data, 1, span=0.01).fit()
    span = float(str(error.value).split("(span=")[1].split(" ")[0])
    fit = VCMoE("y ~ x | vary: u", data, 1, span=span, dispersion="const")
    assert fit.problem(span).windows.share == span


def test_ties_may_fill_a_window(data):
    tied = data.assign(u=np.repeat([0.0, 1.0, 2.0, 3.0, 4.0], 40))
    with pytest.raises(DesignError, match=r"window of span 0.1 .*use a larger span"):
        VCMoE("y ~ x | vary: u", tied, 1, span=0.1).fit()
    fit = VCMoE("y ~ x | vary: u", tied, 1, span=0.9, dispersion="const").fit(rng=0)
    assert np.isfinite(fit.functions()["estimate"]).all()
