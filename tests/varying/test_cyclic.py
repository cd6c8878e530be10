"""An index on a circle: nothing depends on where it is cut, and the estimator is that of data repeated for ever."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.design.formula import parse_formula
from mixmoe.errors import ArgumentError, DesignError, FormulaError
from mixmoe.varying import model as doors
from mixmoe.varying import setup
from mixmoe.varying.bands import asymptotic_critical, equivalent_kernel
from mixmoe.varying.glr import null_law
from mixmoe.varying.leave_one_out import left_out_predictors, without_rows
from mixmoe.varying.model import VCMoE
from mixmoe.varying.smoothing import integrated_wiener
from mixmoe.varying.windows import interpolated, once_round, origin

FORMULA = "y ~ x | gate: z | vary: cyclic(hour, 24)"
SHIFT = 7.3
SAME = 1e-8
LIMITS = ("center", "std_error", "conf_low", "conf_high", "band_low", "band_high")


def day(n: int, seed: int, experts: int = 2) -> pd.DataFrame:
    """Rows with a daily cycle in everything."""
    rng = np.random.default_rng(seed)
    hour, x, z = rng.uniform(0.0, 24.0, n), rng.normal(size=n), rng.normal(size=n)
    angle = 2.0 * np.pi * hour / 24.0
    first = rng.uniform(size=n) < 1.0 / (1.0 + np.exp(-(0.2 + 0.6 * np.sin(angle) + 0.5 * z)))
    high, low = 1.5 + 0.7 * np.cos(angle) + 0.5 * x, -1.2 + 0.5 * np.sin(2.0 * angle) - 0.4 * x
    y = np.where(first | (experts == 1), high, low) + 0.4 * rng.normal(size=n)
    return pd.DataFrame({"y": y, "x": x, "z": z, "hour": hour, "site": rng.integers(0, 40, n)})


@pytest.fixture(scope="module")
def data():
    return day(300, 3)


@pytest.fixture(scope="module")
def fit(data):
    return VCMoE(FORMULA, data, bandwidth=4.5).fit(rng=1, starts=4)


def wide(frame: pd.DataFrame, column: str, shift: float = 0.0) -> pd.DataFrame:
    """One column of functions or bands by index value, moved back by `shift`."""
    moved = frame.assign(hour=np.round(np.mod(frame["hour"] - shift, 24.0), 9))
    return moved.pivot(index="hour", columns="coefficient", values=column)


def shifted(data: pd.DataFrame, shift: float = SHIFT) -> pd.DataFrame:
    return data.assign(hour=np.mod(data["hour"] + shift, 24.0))


@pytest.mark.parametrize("options", [{}, {"gate_bandwidth": 7.0}, {"cluster": "site", "estimate": "joint"}])
def test_the_origin_of_the_circle_changes_nothing(data, options):
    first, second = (
        VCMoE(FORMULA, frame, bandwidth=4.5, n_grid=30, **options).fit(rng=1, starts=4)
        for frame in (data, shifted(data))
    )
    assert second.llf == pytest.approx(first.llf, abs=SAME)
    assert second.effective_df == pytest.approx(first.effective_df, abs=SAME)
    u = np.linspace(0.0, 24.0, 37)
    here, there = first.functions(u), second.functions(u + SHIFT)
    np.testing.assert_allclose(there["estimate"], here["estimate"], atol=SAME)
    bands = first.bands(rng=0), second.bands(rng=0)
    for column in LIMITS:
        a, b = wide(bands[0], column), wide(bands[1], column, SHIFT)
        np.testing.assert_allclose(b.to_numpy(), a.to_numpy(), atol=SAME)
    if "cluster" not in options:
        tests = [fit.test_varying("all", method="asymptotic") for fit in (first, second)]
        assert tests[0].statistic == pytest.approx(tests[1].statistic, abs=SAME)
        assert tests[0].df == pytest.approx(tests[1].df, abs=SAME)


@pytest.mark.parametrize("experts", [1, 2])
def test_the_bandwidth_found_does_not_depend_on_the_origin(experts):
    data, options = day(150, 5, experts), {} if experts == 1 else {"candidates": [4.0, 7.0, 12.0], "folds": 2}
    found = [
        VCMoE(FORMULA, frame, experts, dispersion="const").select_bandwidth(1, **options)
        for frame in (data, shifted(data))
    ]
    assert found[0].best == pytest.approx(found[1].best, abs=SAME)
    np.testing.assert_allclose(found[0].table["criterion"], found[1].table["criterion"], atol=1e-6)
    assert found[0].table["bandwidth"].max() == pytest.approx(12.0)


@pytest.mark.parametrize("options", [{}, {"gate_bandwidth": 7.0}, {"cluster": "site"}])
def test_where_the_circle_is_cut_changes_nothing(data, options, monkeypatch):
    """The cut itself, moved by whole steps of the grid: every window that reached over it now does not."""
    fits = []
    for start in (2.0, 2.0 + 24.0 * 11 / 30):
        grid = start + 24.0 * np.arange(30) / 30
        monkeypatch.setattr(setup, "origin", lambda index, response, period, start=start: start)
        monkeypatch.setattr(doors, "default_grid", lambda *_, grid=grid: grid)
        model = VCMoE(FORMULA, data, bandwidth=4.5, estimate="local", **options)
        fits.append(model.fit(rng=1, starts=4, tol=1e-10) if not fits else model.fit(start=fits[0], tol=1e-10))
    assert fits[1].llf == pytest.approx(fits[0].llf, abs=SAME)
    assert fits[1].effective_df == pytest.approx(fits[0].effective_df, abs=SAME)
    np.testing.assert_allclose(fits[1].functions()["estimate"], fits[0].functions()["estimate"], atol=SAME)
    np.testing.assert_allclose(fits[1].bse, fits[0].bse, rtol=1e-6)
    bands = [fit.bands(method="asymptotic") for fit in fits]
    for column in LIMITS:
        np.testing.assert_allclose(bands[1][column], bands[0][column], atol=1e-6)
    laws = [null_law(fit.model.problem, fit.model.coef, np.arange(2)) for fit in fits]
    assert laws[0].df == pytest.approx(laws[1].df, rel=0.02)  # rows are put together from the cut on


@pytest.mark.parametrize("family", ["gaussian", "poisson"])
def test_one_expert_is_the_ordinary_estimator_on_data_repeated_periodically(family):
    data = day(150, 8, 1)
    if family == "poisson":
        data["y"] = np.random.default_rng(0).poisson(np.exp(0.5 * data["y"]))
    around = pd.concat([data.assign(hour=data["hour"] + turn) for turn in (-24.0, 0.0, 24.0)])
    closed = VCMoE("y ~ x | vary: cyclic(hour, 24)", data, 1, family=family, bandwidth=3.5).fit(rng=0)
    grid = np.sort(closed.model.problem.windows.shown)
    ends = np.array([around["hour"].min(), around["hour"].max()])
    whole = np.concatenate([ends[:1], grid - 24.0, grid, grid + 24.0, ends[1:]])
    whole = np.unique(np.clip(whole, *ends))
    line = VCMoE("y ~ x | vary: hour", around, 1, family=family, bandwidth=3.5, grid=whole).fit(rng=0)
    expert = [n for n in closed.functions()["coefficient"].unique() if n.startswith("expert")]
    np.testing.assert_allclose(
        wide(closed.functions(grid), "estimate")[expert], wide(line.functions(grid), "estimate")[expert], atol=SAME
    )
    here, there = (wide(one.bands(method="asymptotic"), "std_error")[expert] for one in (closed, Middle(line, grid)))
    np.testing.assert_allclose(here, there, rtol=1e-6)


class Middle:
    """The bands of a line at the grid points of one turn."""

    def __init__(self, fit, grid):
        self.fit, self.grid = fit, grid

    def bands(self, **options):
        frame = self.fit.bands(**options)
        return frame[np.isclose(frame["hour"].to_numpy()[:, None], self.grid).any(axis=1)]


def test_the_mixture_is_the_ordinary_one_on_data_repeated_periodically(data):
    """Far from the ends of nine turns: responsibilities carry the ends on from window to window."""
    around = pd.concat([data.assign(hour=data["hour"] + 24.0 * turn) for turn in range(-2, 3)])
    closed = VCMoE(FORMULA, data, bandwidth=4.5, estimate="joint", n_grid=24).fit(rng=1, starts=4, tol=1e-9)
    start = closed.model.problem.windows.grid[0]
    grid = start + np.arange(-2 * 24 - 24, 2 * 24 + 49.0)
    ends = around["hour"].min(), around["hour"].max()
    grid = np.concatenate([ends[:1], grid[(grid > ends[0]) & (grid < ends[1])], ends[1:]])
    line = VCMoE("y ~ x | gate: z | vary: hour", around, bandwidth=4.5, estimate="joint", grid=grid)
    line = line.fit(rng=1, starts=4, tol=1e-9)
    u = np.arange(24.0)
    here, there = (wide(one.functions(u), "estimate") for one in (closed, line))
    np.testing.assert_allclose(here, there, atol=1e-5)


def test_leaving_out_by_influence_is_leaving_out():
    data = day(60, 2, 1)
    fit = VCMoE("y ~ x | vary: cyclic(hour, 24)", data, 1, bandwidth=5.0, dispersion="const").fit(rng=0)
    problem = fit.model.problem
    found = left_out_predictors(problem, fit.model.coef)
    for i in (0, 17, 59):  # the first and the last row lie at the cut
        rest = without_rows(problem, np.array([i]))
        refit = VCMoE(
            "y ~ x | vary: cyclic(hour, 24)", data.drop(index=data.index[fit.model.data.order[i]]), 1, bandwidth=5.0
        )
        assert refit.data.rows.n == rest.rows.n
        coef = _least_squares(rest)
        at = problem.levels[[i]] @ coef.reshape(-1, 2)
        assert found[i] == pytest.approx(float(at[0] @ problem.rows.design[i]), abs=1e-10)


def _least_squares(problem):
    """Local lines by dense weighted least squares with distances round the circle, (G, 2, p)."""
    rows, h, out = problem.rows, problem.windows.bandwidth, []
    for u in problem.windows.grid:
        away = (rows.index - u + 12.0) % 24.0 - 12.0
        weight = np.clip(1.0 - (away / h) ** 2, 0.0, None)
        x = np.hstack([rows.design, rows.design * (away / h)[:, None]])
        out.append(np.linalg.solve(x.T @ (weight[:, None] * x), x.T @ (weight * rows.outcome.y)).reshape(2, -1))
    return np.array(out)


def test_local_lines_and_degrees_of_freedom_are_those_of_dense_least_squares():
    data = day(80, 4, 1)
    fit = VCMoE("y ~ x | vary: cyclic(hour, 24)", data, 1, bandwidth=4.0, dispersion="const").fit(rng=0)
    problem = fit.model.problem
    np.testing.assert_allclose(fit.model.coef[:, :, :2], _least_squares(problem), atol=1e-10)
    rows, total = problem.rows, 0.0
    for g, u in enumerate(problem.windows.grid):  # leverages at the two grid points beside each row, by their shares
        away = (rows.index - u + 12.0) % 24.0 - 12.0
        near = np.clip(1.0 - np.abs(away) / (24.0 / len(problem.windows.grid)), 0.0, None)
        weight = 0.75 * np.clip(1.0 - (away / 4.0) ** 2, 0.0, None)
        x = np.hstack([rows.design, rows.design * (away / 4.0)[:, None]])
        inverse = np.linalg.inv(x.T @ (weight[:, None] * x))[:2, :2]
        total += 0.75 * float((near * np.einsum("np,pq,nq->n", rows.design, inverse, rows.design)).sum())
        assert g < 50
    assert fit.effective_df == pytest.approx(total + 1.0, abs=1e-8)


def test_predictions_know_no_turn(fit, data):
    rows = data.head(5)
    here = fit.predict(rows)
    for turn in (-48.0, 24.0, 240.0):
        again = fit.predict(rows.assign(hour=rows["hour"] + turn))
        np.testing.assert_allclose(again.to_numpy(), here.to_numpy(), atol=SAME)
    ends = fit.functions([0.0, 24.0, 1e-9])
    values = ends["estimate"].to_numpy().reshape(-1, 3)
    np.testing.assert_allclose(values - values[:, :1], 0.0, atol=1e-6)  # no step at midnight


def test_summary_files_figures(fit, tmp_path):
    text = str(fit.summary(at=[0.0, 12.0]))
    assert "hour, 0 to 24 (cyclic)" in text
    assert "hour=12" in text
    assert [name for name in fit.params.index if "Intercept(hour=" in name and name.startswith("expert1")]
    fit.save(tmp_path / "fit.mixmoe")
    again = mm.load(tmp_path / "fit.mixmoe")
    pd.testing.assert_frame_equal(again.functions(), fit.functions())
    pd.testing.assert_frame_equal(again.bands(rng=3), fit.bands(rng=3))
    curve = fit.curves("functions")[0]
    assert (np.diff(curve.x) > 0.0).all()
    assert curve.x[0] >= 0.0
    assert curve.x[-1] < 24.0
    plt.close(fit.plot())


def test_tables_between_grid_points_follow_the_circle(fit):
    bands = fit.bands(rng=20260101)
    part = bands[bands["coefficient"] == "expert1.x"]
    grid, low = part["hour"].to_numpy(), part["band_low"].to_numpy()
    wanted = np.interp(0.0, [grid[-1] - 24.0, grid[0]], [low[-1], low[0]])
    assert interpolated(np.zeros(1), grid, low, 24.0)[0] == pytest.approx(wanted)
    shown = str(fit.summary(at=[0.0]))
    assert f"{wanted:.3f}" in shown or f"{wanted:.4f}" in shown


def test_the_closed_spline_is_the_series_of_its_harmonics():
    grid = 3.0 + 24.0 * np.arange(40) / 40
    process = integrated_wiener(grid, 4.0, 24.0)
    angle = 2.0 * np.pi * (grid[:, None] - grid) / 24.0
    k = np.arange(1, 4001)[:, None, None]
    some = angle[:3]
    series = (2.0 * np.cos(k * some) / (2.0 * np.pi * k) ** 4).sum(axis=0)
    slopes = (-2.0 * np.sin(k * some) / (2.0 * np.pi * k) ** 3).sum(axis=0) * 4.0 / 24.0
    np.testing.assert_allclose(process.kernel[:3], series, atol=1e-12)
    np.testing.assert_allclose(process.kernel_slope[:3], slopes, atol=1e-9)


def test_critical_value_of_the_closed_process_from_its_covariance():
    h, mesh = 0.2, 120
    t = (np.arange(mesh) / mesh + 0.5) % 1.0 - 0.5
    fine = np.linspace(-1.0, 1.0, 2001)
    kernel = equivalent_kernel(fine, 1)
    lag = np.array([np.interp(fine + one / h, fine, kernel, 0.0, 0.0) @ kernel for one in t]) / (kernel @ kernel)
    covariance = lag[(np.arange(mesh)[:, None] - np.arange(mesh)) % mesh]
    values, vectors = np.linalg.eigh(covariance)
    draws = np.random.default_rng(1).standard_normal((20_000, mesh)) @ (vectors * np.sqrt(np.clip(values, 0, None))).T
    wanted = np.quantile(np.abs(draws).max(axis=1), 0.95)
    assert asymptotic_critical(h, closed=True) == pytest.approx(wanted, abs=0.03)
    assert asymptotic_critical(h, closed=True) < asymptotic_critical(h)
    assert asymptotic_critical(0.5, closed=True) > 1.96


def test_origin_turns_with_the_data():
    rng = np.random.default_rng(0)
    index, y = rng.uniform(0.0, 24.0, 50), rng.normal(size=50)
    first = origin(index, y, 24.0)
    assert origin(np.mod(index + 5.0, 24.0), y, 24.0) == pytest.approx(np.mod(first + 5.0, 24.0))
    assert origin(np.arange(24.0), np.cos(2.0 * np.pi * np.arange(24.0) / 24.0), 24.0) == pytest.approx(12.0)
    around = once_round(np.array([-1e-18, 0.0, 23.0, 47.0]), 0.0, 24.0)
    np.testing.assert_allclose(around, [0.0, 0.0, 23.0, 23.0])


def test_formula_with_a_circle():
    parsed = parse_formula(FORMULA)
    assert (parsed.vary, parsed.period, parsed.index) == ("hour", 24.0, "cyclic(hour, 24)")
    assert parse_formula("y ~ x | vary: cyclic(log(1 + t), 1e2)").vary == "log(1 + t)"
    assert parse_formula("y ~ x | vary: hour").period is None


@pytest.mark.parametrize(
    "inside", ["hour", "hour, 0", "hour, -24", "hour, day", "hour, 24, 3", "hour, inf", "", "hour, period=24"]
)
def test_circles_that_are_none(inside):
    with pytest.raises(FormulaError, match="takes an index and its period, a positive number, got"):
        parse_formula(f"y ~ x | vary: cyclic({inside})")


def test_circle_of_two_columns():
    with pytest.raises(FormulaError, match="must be one index, got 2 terms"):
        parse_formula("y ~ x | vary: cyclic(a + b, 24)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bandwidth": 12.5}, "more than half the period 24"),
        ({"bandwidth": 3.0, "gate_bandwidth": 13.0}, "gate_bandwidth=13 is more than half the period"),
        ({"grid": [0, 12, 24]}, "use n_grid="),
    ],
)
def test_what_a_circle_does_not_take(data, options, message):
    with pytest.raises(ArgumentError, match=message):
        VCMoE(FORMULA, data, **options)


def test_a_recommended_bandwidth_can_be_used(data):
    with pytest.raises(DesignError, match=r"\(bandwidth=([\d.]+) is wide enough\)") as error:
        VCMoE(FORMULA, data, bandwidth=0.05).fit()
    h = float(str(error.value).split("(bandwidth=")[1].split(" ")[0])
    assert VCMoE(FORMULA, data, bandwidth=h).problem(h).windows.bandwidth == h


def test_rows_at_full_hours_and_half_the_period():
    data = day(240, 6, 1).assign(hour=np.arange(240) % 24.0)
    fit = VCMoE("y ~ x | vary: cyclic(hour, 24)", data, 1, bandwidth=12.0).fit(rng=0)
    lines = _least_squares(fit.model.problem)
    np.testing.assert_allclose(fit.model.coef[:, :, :2], lines, atol=1e-9)
    rule = VCMoE("y ~ x | vary: cyclic(hour, 24)", data, 1, bandwidth="rule").fit(rng=0)
    assert rule.bandwidth == pytest.approx(2.34 * 24.0 / np.sqrt(12.0) * (240 / 3) ** -0.2)
