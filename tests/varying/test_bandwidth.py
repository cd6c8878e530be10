"""Search for a bandwidth: leave-one-out against refits, range and grid, advice, columns that force one."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import ConvergenceWarning, DesignError
from mixmoe.varying.em_steps import own_natural
from mixmoe.varying.joint_em import Control, fit_functions, run_em
from mixmoe.varying.leave_one_out import held_out, left_out_logliks, left_out_predictors, without_rows
from mixmoe.varying.model import VCMoE
from mixmoe.varying.presets import vcmoe
from mixmoe.varying.problem import pooled_spread
from mixmoe.varying.windows import epanechnikov
from tests.varying.helpers import make_problem

EXACT = 1e-9  # sums in another order
ONE_STEP = 0.02  # of a predictor: one scoring step against convergence
LOCAL_LINES = 1.1  # RMSE over that of leave-one-out local lines, mean of a few sets


def waves(n: int, seed: int, frequency: float) -> tuple[pd.DataFrame, np.ndarray]:
    """A response that waves along a uniform index, and its mean."""
    rng = np.random.default_rng(seed)
    u = rng.uniform(size=n)
    mean = np.sin(2.0 * np.pi * frequency * u)
    return pd.DataFrame({"u": u, "y": mean + rng.normal(0.0, 0.3, n)}), mean


def late_dose(n: int = 300) -> pd.DataFrame:
    """A dose that is given only in the second half of the index."""
    rng = np.random.default_rng(3)
    u, x = rng.uniform(0.0, 10.0, n), rng.normal(size=n)
    dose = np.where(u > 5.0, rng.choice([0.0, 1.0, 2.0], n), 0.0)
    return pd.DataFrame({"u": u, "x": x, "dose": dose, "y": np.sin(u) + 0.5 * x + rng.normal(0.0, 0.3, n)})


def rmse(fit, mean: np.ndarray) -> float:
    return float(np.sqrt(np.mean((np.asarray(fit.fitted()) - mean) ** 2)))


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_left_out_of_least_squares_are_those_of_refits(weighted):
    problem = make_problem(vcmoe(n=60, experts=1, rng=0), 0.3, experts=1, n_grid=9)
    if weighted:
        rows = problem.rows.with_weights(np.random.default_rng(1).uniform(0.5, 3.0, 60))
        problem = replace(problem, rows=rows)
    control = Control(1e-12, 100)
    run = fit_functions(problem, control, np.random.default_rng(0))
    found = left_out_predictors(problem, run.coef)
    for i in range(0, 60, 7):
        again = run_em(without_rows(problem, np.array([i])), run.coef, control)
        assert found[i] == pytest.approx(own_natural(problem, again.coef).eta[0, i], abs=EXACT)


@pytest.mark.parametrize("family", ["binomial", "poisson", "negbinomial"])
def test_rows_left_out_of_other_families_are_nearly_those_of_refits(family):
    problem = make_problem(vcmoe(n=120, family=family, experts=1, rng=0), 0.3, experts=1, family=family, n_grid=9)
    control = Control(1e-9, 200)
    run = fit_functions(problem, control, np.random.default_rng(0))
    found = left_out_predictors(problem, run.coef)
    for i in range(0, 120, 11):
        again = run_em(without_rows(problem, np.array([i])), run.coef, control)
        assert found[i] == pytest.approx(own_natural(problem, again.coef).eta[0, i], abs=ONE_STEP)
    gone = problem.rows.with_weights(np.where(np.arange(120) == 5, 0.0, 1.0))
    assert left_out_predictors(replace(problem, rows=gone), run.coef)[5] == own_natural(problem, run.coef).eta[0, 5]


def test_a_row_that_was_held_out_counts_with_its_log_density():
    problem = make_problem(vcmoe(n=80, family="poisson", experts=1, rng=0), 0.4, experts=1, family="poisson", n_grid=9)
    control = Control(1e-9, 200)
    run = fit_functions(problem, control, np.random.default_rng(0))
    again = run_em(without_rows(problem, np.array([7])), run.coef, control)
    wanted = held_out(problem, again.coef, np.array([7]))[0]
    assert left_out_logliks(problem, run.coef)[7] == pytest.approx(wanted, abs=ONE_STEP)


def local_lines(u: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Fitted values of the leave-one-out local lines, by brute force."""
    best, chosen = np.inf, np.zeros(0)
    for h in np.geomspace(0.03, 1.0, 30):
        t = (u - u[:, None]) / h
        kernel = epanechnikov(t)
        s0, s1, s2 = kernel.sum(axis=1), (kernel * t).sum(axis=1), (kernel * t * t).sum(axis=1)
        determinant = s0 * s2 - s1**2
        if (determinant < 1e-10 * s0 * s2).any() or (s0**2 / (kernel**2).sum(axis=1) < 3.0).any():
            continue
        smoother = kernel * (s2[:, None] - s1[:, None] * t) / determinant[:, None]
        error = np.mean(((y - smoother @ y) / (1.0 - np.diag(smoother))) ** 2)
        if error < best:
            best, chosen = error, smoother @ y
    return chosen


@pytest.mark.parametrize(("n", "frequency"), [(100, 3.0), (100, 1.0), (200, 6.0)])
def test_one_expert_reaches_leave_one_out_local_lines(n, frequency):
    ratios = []
    for seed in range(4):
        data, mean = waves(n, seed, frequency)
        theirs = np.sqrt(np.mean((local_lines(data["u"].to_numpy(), data["y"].to_numpy()) - mean) ** 2))
        ratios.append(rmse(VCMoE("y ~ 1 | vary: u", data, 1).fit(), mean) / theirs)
    assert np.mean(ratios) < LOCAL_LINES


def test_a_daily_cycle_over_two_weeks_is_found_on_a_grid_that_follows_it():
    rng = np.random.default_rng(4)
    hour, x = rng.uniform(0.0, 336.0, 1000), rng.normal(size=1000)
    mean = np.sin(2.0 * np.pi * hour / 24.0) + (0.5 + 0.5 * np.cos(2.0 * np.pi * hour / 24.0)) * x
    data = pd.DataFrame({"t": hour, "x": x, "y": mean + rng.normal(0.0, 0.3, 1000)})
    fit = mm.fit("y ~ x | vary: t", data, experts=1, rng=0)
    assert 2.0 < fit.bandwidth < 6.0
    assert rmse(fit, mean) < 0.17
    assert "coarse_grid" not in [flag.code for flag in fit.flags]
    assert fit.model.problem.windows.n_grid > 3.0 * 335.0 / fit.bandwidth


def test_a_mixture_whose_experts_wave_against_each_other():
    rng = np.random.default_rng(0)
    u, side = rng.uniform(size=400), rng.uniform(size=400) < 0.5
    wave = 2.0 * np.sin(10.0 * np.pi * u)
    data = pd.DataFrame({"u": u, "y": np.where(side, 3.0 + wave, -3.0 - wave) + rng.normal(0.0, 0.3, 400)})
    found = VCMoE("y ~ 1 | gate: 1 | vary: u", data, 2).select_bandwidth(0, folds=2)
    assert found.best < 0.08  # half a wave is 0.1; the rule of thumb is 0.23


def test_one_expert_needs_no_luck():
    data, _ = waves(50, 1, 3.0)
    model = VCMoE("y ~ 1 | vary: u", data, 1)
    assert model.select_bandwidth(0).best == model.select_bandwidth(1).best
    assert model.select_bandwidth(0, folds=5).table is not None


def test_one_column_that_forces_a_bandwidth_is_named():
    data = late_dose()
    with pytest.warns(ConvergenceWarning, match=r"as wide as 'dose' needs: at u=.* The other functions would have had"):
        fit = mm.fit("y ~ x + dose | vary: u", data, experts=1, rng=0)
    (flag,) = (one for one in fit.flags if one.code == "forced_bandwidth")
    alone = float(re.search(r"would have had (\S+)\. ", flag.message).group(1))
    rest = mm.fit("y ~ x + const(dose) | vary: u", data, experts=1, rng=0)
    assert rest.bandwidth == pytest.approx(alone, rel=1e-3)  # what the flag says is what its advice gives
    assert not rest.flags
    assert fit.bandwidth > 4.0 * rest.bandwidth


@pytest.mark.parametrize("late", ["late level", "rare dummy"])
def test_columns_that_force_the_rule_of_thumb(late):
    rng = np.random.default_rng(0)
    data = late_dose().drop(columns="dose")
    if late == "late level":
        data["group"] = np.where(data["u"] > 6.0, rng.choice(["a", "b"], len(data)), "a")
    else:
        data["group"] = 0.0
        data.loc[[0, 1, 2, 3], "group"] = 1.0
        data.loc[[0, 1, 2, 3], "u"] = [0.2, 0.9, 1.8, 0.5]
    with pytest.warns(ConvergenceWarning, match=r"as wide as 'group.*' needs: .* would have had"):
        fit = mm.fit("y ~ x + group | vary: u", data, experts=1, bandwidth="rule")
    assert [flag.code for flag in fit.flags] == ["forced_bandwidth"]
    kept = mm.fit("y ~ x + const(group) | vary: u", data, experts=1, bandwidth="rule")
    assert f"would have had {kept.bandwidth:.4g}" in fit.flags[0].message


def gap_in_the_index(rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([rng.uniform(0.0, 0.3, 100), rng.uniform(0.7, 1.0, 100)])


INDICES = {
    "gap": (gap_in_the_index, 0.1),
    "days": (lambda rng: rng.integers(1, 9, 200).astype(float), 0.5),
    "skewed": (lambda rng: rng.uniform(size=200) ** 6, 0.02),
    "far": (lambda rng: 1e6 + rng.uniform(size=200), 1e-4),
    "few": (lambda rng: np.repeat([0.0, 1.0, 2.5, 7.0, 7.5], 40), 1.0),
}


@pytest.mark.parametrize("name", INDICES)
@pytest.mark.parametrize("experts", [1, 2])
def test_a_bandwidth_that_is_recommended_can_be_used(name, experts):
    draw, narrow = INDICES[name]
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"u": draw(rng), "x": rng.normal(size=200), "y": rng.normal(size=200)})
    model = VCMoE("y ~ x | gate: x | vary: u" if experts > 1 else "y ~ x | vary: u", data, experts)
    for given, pattern in (((narrow, None), " bandwidth"), ((None, narrow), "gate_bandwidth")):
        if given[0] is None and experts == 1:
            continue
        wide = 4.0 * float(np.ptp(data["u"]))
        both = [wide if given[0] is None else given[0], given[1]]
        with pytest.raises(DesignError) as caught:
            model.problem(*both)
        (found,) = re.findall(r"\((gate_)?bandwidth=(\S+) is wide enough\)", str(caught.value))
        assert found[0].strip() == ("gate_" if "gate" in pattern else "")
        both[int(given[0] is None)] = float(found[1])
        model.problem(*both)


def test_a_grid_that_leaves_out_a_gap_needs_no_wide_bandwidth():
    rng = np.random.default_rng(0)
    u = gap_in_the_index(rng)
    data = pd.DataFrame({"u": u, "x": rng.normal(size=200), "y": np.sin(6.0 * u) + rng.normal(0.0, 0.3, 200)})
    grid = np.concatenate([np.linspace(u.min(), 0.3, 20), np.linspace(0.7, u.max(), 20)])
    fit = VCMoE("y ~ x | vary: u", data, 1, bandwidth=0.1, grid=grid).fit()
    assert not fit.flags
    assert rmse(fit, np.sin(6.0 * u)) < 0.12


@pytest.mark.parametrize("far", [1e3, 1e6, 1e7])
def test_a_covariate_far_from_its_origin_is_no_constant(far):
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"u": rng.uniform(size=200), "x": rng.normal(size=200)})
    data["y"] = np.sin(6.0 * data["u"]) + data["x"] + rng.normal(0.0, 0.3, 200)
    near = VCMoE("y ~ x | vary: u", data, 1, bandwidth=0.3).fit()
    away = VCMoE("y ~ x | vary: u", data.assign(x=data["x"] + far), 1, bandwidth=0.3).fit()
    assert away.llf == pytest.approx(near.llf, abs=1e-10 * far)
    floors = [pooled_spread(fit.model.problem.rows, fit.model.problem.family) for fit in (near, away)]
    assert floors[1] == pytest.approx(floors[0], rel=1e-12 * far)


def test_log_sigma_beside_a_gap_does_not_go_on_beyond_the_numbers():
    rng = np.random.default_rng(0)
    u = np.sort(np.concatenate([rng.uniform(0.0, 0.28, 150), rng.uniform(0.7, 1.0, 150), rng.uniform(0.7, 0.702, 60)]))
    inside = np.clip(0.702 - u, 0.0, 0.002)  # errors grow towards the gap, fifty times within a hundredth of a window
    data = pd.DataFrame({"u": u, "y": 0.02 * np.exp(2000.0 * inside) * rng.normal(size=len(u))})
    grid = np.array([u[0], 0.1, 0.2, 0.499, 0.7, 0.8, 0.9, u[-1]])
    problem = VCMoE("y ~ 1 | vary: u", data, 1, grid=grid).problem(0.202)
    run = fit_functions(problem, Control(1e-6, 1000), np.random.default_rng(0))
    level = run.coef[:, 0, problem.slots.dispersions]
    assert problem.ceiling == pytest.approx(np.log(np.std(data["y"]) * np.sqrt(len(u))))
    assert level.max() == problem.ceiling
    free = run_em(replace(problem, ceiling=np.inf), run.coef, Control(1e-6, 300))
    assert free.coef[3, 0, 1] > 100.0  # where its line would go: exp(100) times the errors


def test_fits_for_a_criterion_end_where_a_function_runs_off():
    rng = np.random.default_rng(1)
    u = rng.uniform(size=300)
    data = pd.DataFrame({"u": u, "y": rng.poisson(np.where(u < 0.4, 0.0, np.exp(1.0 + np.sin(4.0 * u))))})
    problem = VCMoE("y ~ 1 | vary: u", data, 1, family="poisson").problem(0.1)
    whole = fit_functions(problem, Control(1e-6, 500), np.random.default_rng(0))
    brief = fit_functions(problem, Control(3e-4, 500, gain=1e-5), np.random.default_rng(0))
    assert len(brief.trace) < 40
    assert abs(whole.loglik - brief.loglik) < 1e-2


def test_a_rare_column_does_not_make_scoring_run_off():
    rng = np.random.default_rng(1)
    u, rare = rng.uniform(size=600), (rng.uniform(size=600) < 0.02).astype(float)
    chance = 1.0 / (1.0 + np.exp(-(np.sin(5.0 * u) + rare)))
    data = pd.DataFrame({"u": u, "rare": rare, "y": rng.binomial(1, chance)})
    problem = VCMoE("y ~ rare | vary: u", data, 1, family="binomial").problem(0.9)
    far = np.zeros((problem.windows.n_grid, 2, 2))
    far[:, 0] = [30.0, -60.0]
    run = run_em(problem, far, Control(1e-6, 100))
    known = fit_functions(problem, Control(1e-6, 100), np.random.default_rng(0))
    assert run.loglik == pytest.approx(known.loglik, abs=1e-4)


def test_tests_beside_a_column_that_forced_the_bandwidth_are_made_at_that_of_the_others(tmp_path):
    data = late_dose()
    with pytest.warns(ConvergenceWarning, match="as wide as 'dose' needs"):
        fit = mm.fit("y ~ x + dose | vary: u", data, experts=1, rng=0)
    rest = mm.fit("y ~ x + const(dose) | vary: u", data, experts=1, rng=0)
    assert fit.model.unforced == pytest.approx((rest.bandwidth, rest.bandwidth), rel=1e-3)
    constant = fit.test_varying("expert1.dose", n_boot=39, rng=0)  # its effect is .6 everywhere
    assert constant.pvalue > 0.1
    assert fit.test_varying("expert1.dose", method="asymptotic").pvalue > 0.1
    assert fit.test_varying("expert1.Intercept", method="asymptotic").pvalue < 1e-6  # a sine
    fit.save(tmp_path / "fit.mixmoe")
    assert mm.load(tmp_path / "fit.mixmoe").test_varying("expert1.dose", n_boot=39, rng=0).pvalue == constant.pvalue
