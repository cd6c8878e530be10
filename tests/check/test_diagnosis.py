"""Profiles against the likelihood and refits, panels against hand computation, and what is on the figures."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy.stats import chi2, norm

import mixmoe as mm
from mixmoe.check.profile import SPACES, profile_around
from mixmoe.check.residuals import bin_rows, binned_means, effects_panels, residual_panel, starts_panels
from mixmoe.errors import ArgumentError, BoundaryWarning, DegeneracyWarning
from mixmoe.families import Effects, Likelihood
from mixmoe.mixture.estimate import EMFit, Starts
from mixmoe.numerics.optimise import Evaluation
from mixmoe.output.plots import COLOURS, draw_panels
from mixmoe.output.records import Cloud, Curve, Marks, Panel, Rule
from tests.check.helpers import pbc
from tests.fits import carried

pytestmark = pytest.mark.usefixtures("plt")


# ---- profiles ----


def test_profile_of_a_coefficient_is_the_fit_with_that_coefficient_as_offset():
    fit = pbc(1)
    data = fit.model.design.frame.reset_index(drop=True)
    found = fit.profile("expert1.year", values=[0.0, 0.1, 0.2])
    for value, loglik in zip(found.values, found.loglik, strict=True):
        moved = data.assign(y=np.log(data["bili"]) - value * data["year"])
        held = mm.fit("y ~ 1 | re: (1 + year | id)", moved, experts=1, rng=0)
        assert loglik == pytest.approx(held.llf, abs=1e-5)


@pytest.mark.parametrize("name", ["gate2.age", "sd1(year|id)", "corr2(Intercept,year|id)", "sigma2", "expert1.year"])
def test_profile_of_a_mixture(name):
    fit = pbc()
    found = fit.profile(name, points=9)
    assert found.maximum == pytest.approx(fit.llf)
    assert found.loglik.max() == pytest.approx(fit.llf, abs=1e-6)
    assert np.isfinite(found.loglik).all()
    assert (np.diff(found.loglik[found.values <= found.estimate]) > 0).all()
    low, high = fit.with_cov("nonrobust").conf_int().loc[name]
    reach = high - low
    assert found.lower == pytest.approx(low, abs=0.15 * reach)
    assert found.upper == pytest.approx(high, abs=0.15 * reach)
    at_limit = fit.profile(name, values=[found.lower, found.upper]).loglik
    np.testing.assert_allclose(2 * (fit.llf - at_limit), chi2.isf(0.05, 1), rtol=0.01)


@pytest.fixture(scope="module")
def small_slopes():
    """Two experts, the second with a random slope whose standard deviation is close to zero."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(100):
        z = rng.normal()
        second = rng.random() < 1 / (1 + np.exp(-z))
        b = rng.normal(size=2) * [0.6, 0.15]
        for t in np.sort(rng.uniform(0, 5, rng.integers(1, 7))):
            x = rng.normal()
            mean = 3 - 0.4 * t if second else 1 + 0.5 * t
            rows.append((i, t, x, z, mean + 0.3 * x + b[0] + b[1] * t + rng.normal() * 0.4))
    data = pd.DataFrame(rows, columns=["id", "t", "x", "z", "y"])
    with (
        pytest.warns(BoundaryWarning, match=r"do not determine the random-effects correlation corr\(Intercept,t\)"),
        pytest.warns(DegeneracyWarning, match=r"What is said about sd2\(t\|id\)"),
    ):
        return carried("y ~ t + x | gate: z | re: (1 + t | id)", data)


def test_profile_of_a_standard_deviation_near_zero(small_slopes):
    fit = small_slopes
    assert fit.bse["sd2(t|id)"] > 2 * fit.params["sd2(t|id)"]  # the Wald limits say nothing
    found = fit.profile("sd2(t|id)")
    assert found.lower == 0
    assert 0.1 < found.upper < 0.2
    assert np.isfinite(found.loglik).all()
    assert np.diff(found.root).max() < 1  # even steps down the likelihood
    assert found.root[-1] > 3
    at_limit = fit.profile("sd2(t|id)", values=[0.06, found.upper])
    assert 2 * (fit.llf - at_limit.loglik[-1]) == pytest.approx(chi2.isf(0.05, 1), rel=0.01)
    assert fit.profile("corr2(Intercept,t|id)", points=7).lower == -1


@pytest.mark.parametrize("std_error", [0.02, 0.2, 5.0])
def test_steps_follow_the_likelihood_and_not_the_standard_error(std_error):
    """A standard deviation near zero whose square has a normal likelihood, so that its limits are known."""

    def evaluate(theta):
        away = (theta[:, 0] ** 2 - 1e-4) / 0.02
        return Evaluation(-0.5 * away**2, -away[:, None] * 2 * theta / 0.02)

    known = Likelihood(np.array([0.01]), np.eye(1), evaluate, np.abs, lambda theta: np.sign(theta)[:, None])
    found = profile_around(known, 0, "sd", SPACES["log"], std_error, 21, 0.05)
    assert found.lower == 0
    assert found.upper == pytest.approx(np.sqrt(1e-4 + 0.02 * norm.isf(0.025)), rel=1e-3)
    assert np.isfinite(found.loglik).all()
    assert 3 < found.root[-1] < 4


def test_a_correlation_that_is_not_determined_is_flagged(small_slopes):
    assert [flag.code for flag in small_slopes.flags] == ["vague_correlation", "weak_identification"]
    assert "uncorrelated random effects, (... || ...)" in " ".join(str(small_slopes.summary()).split())
    assert small_slopes.relabel([2, 1]).flags == small_slopes.flags


def test_a_profile_prints_as_a_table():
    found = pbc().profile("gate2.age", points=5)
    text = str(found)
    assert text.splitlines()[0].strip() == "Profile of the log-likelihood: gate2.age"
    assert f"{found.lower:.4g} to {found.upper:.4g}" in " ".join(text.split())
    frame = found.to_frame()
    assert list(frame.columns) == ["value", "loglik", "drop", "root"]
    assert frame["drop"].min() == pytest.approx(0, abs=1e-8)
    np.testing.assert_allclose(frame["root"] ** 2, 2 * frame["drop"], atol=1e-8)
    short = str(pbc().profile("gate2.age", values=[-0.02, 0.0]))
    assert "not reached" in short
    assert "<table" in found._repr_html_()


def test_profile_is_a_maximum_over_the_rest():
    """No nearby point with the same value of the parameter is higher."""
    fit = pbc()
    found = fit.profile("gate2.age", values=[-0.02])
    rng = np.random.default_rng(0)
    for _ in range(20):
        trial = fit.params + 0.05 * fit.bse * rng.normal(size=len(fit.params))
        trial["gate2.age"] = -0.02
        assert fit.model.loglike(trial) < found.loglik[0]


def test_profiles_that_do_not_exist():
    with pytest.raises(ArgumentError, match=r"parameter must be one of 'expert1\.Intercept'.*got 'slope'"):
        pbc().profile("slope")
    with pytest.raises(ArgumentError, match=r"needs parameter=, e\.g\. parameter='expert1\.Intercept'"):
        pbc().plot("profile")


# ---- data of the panels ----


def test_weighted_means_by_hand():
    x = np.array([0.0, 0, 1, 1, 1])
    y = np.array([1.0, 3, 5, 7, 9])
    tau = np.array([[0.5, 0.5], [0.25, 0.75], [1, 0], [0.5, 0.5], [0.1, 0.9]])
    predicted = np.arange(10.0).reshape(5, 2)
    found = binned_means(x, y, tau, predicted, np.arange(5), 4)
    weights = tau[2:, 0] / tau[2:, 0].sum()
    assert found.weights[1, 2:, 0] == pytest.approx(weights)
    np.testing.assert_allclose(found.weights.sum(axis=1), 1)
    enough = 1 / (weights**2).sum() >= 3
    assert np.isnan(found.observed[1, 0]) != enough
    nine = [np.repeat(values, 9, axis=0) for values in (x, y, tau, predicted)]
    many = binned_means(*nine, np.arange(45), 4)
    assert many.observed[1, 0] == pytest.approx(weights @ y[2:])
    assert many.predicted[0, 1] == pytest.approx((0.5 * 1 + 0.75 * 3) / 1.25)
    spread = np.repeat(weights / 9 * (y[2:] - weights @ y[2:]), 9)
    assert many.std_error[1, 0] == pytest.approx(np.sqrt((spread**2).sum()))


def test_rows_of_one_unit_are_not_independent():
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(50), 4)
    y = np.repeat(rng.normal(size=50), 4)
    x, tau = np.zeros(200), np.ones((200, 1))
    found = binned_means(x, y, tau, tau, units, 3)
    assert found.std_error[0, 0] == pytest.approx(y.std() / np.sqrt(50))


def test_bins():
    assert (bin_rows(np.array([3.0, 1, 3, 2]), 8) == [2, 0, 2, 1]).all()
    codes = bin_rows(np.random.default_rng(0).normal(size=1000), 5)
    np.testing.assert_allclose(np.bincount(codes), 200, atol=1)


def test_fit_panel_is_what_the_predictions_say():
    fit = pbc()
    marginal, conditional = fit.panels("fit")[0], fit.panels("fit", fitted="subject")[0]
    assert [m.expert for m in marginal.marks] == [1, 2]
    assert marginal.curves[0].lower is not None
    assert conditional.curves[0].lower is None
    gap = [np.abs(p.marks[0].y - p.curves[0].y).max() for p in (marginal, conditional)]
    assert gap[1] < gap[0]  # patients with a steep course die early: given their own effects the means agree
    design = fit.model.design
    means = fit._expert_means("mean")
    np.testing.assert_allclose(
        fit._in_design(fit.predict(kind="experts", interval="confidence")["expert1"].to_numpy()), means[:, 0]
    )
    weights = np.zeros((1, design.n, 2))
    weights[0, 3] = 1
    expected = fit.predict(kind="experts", interval="confidence")["expert2_se"].to_numpy()
    assert fit._mean_errors(weights)[0, 1] == pytest.approx(fit._in_design(expected)[3])


def test_random_effects_panel_and_what_the_model_implies():
    fit = pbc()
    effects = fit._effects()
    frame = fit.random_effects
    np.testing.assert_allclose(effects.means[:, 0], frame["expert1"][["Intercept", "year"]])
    sd = fit.params[["sd1(Intercept|id)", "sd1(year|id)"]].to_numpy()
    tau = fit.responsibilities["expert1"].to_numpy()
    doubt = np.average(frame["expert1"][["Intercept_se", "year_se"]].to_numpy() ** 2, axis=0, weights=tau)
    np.testing.assert_allclose(np.diag(effects.implied[0]), sd**2 - doubt)
    panel = fit.panels("random_effects")[0]
    assert (panel.xlabel, panel.ylabel) == ("Intercept", "year")
    assert sum(len(c.x) for c in panel.clouds) == fit.n_units
    one = pbc(random="1").panels("random_effects")[0]
    assert one.xlabel == "normal quantile"
    with pytest.raises(ArgumentError, match="has no random effects to draw"):
        pbc(random="0").plot("random_effects")


def test_ellipse_holds_what_it_says():
    rng = np.random.default_rng(0)
    cov = np.array([[2.0, 0.5], [0.5, 1.0]])
    draws = rng.multivariate_normal([0, 0], cov, size=(4000, 1))
    (panel,) = effects_panels(Effects(("a", "b"), draws, cov[None], np.ones(4000, dtype=int)), 0.1)
    edge = np.column_stack([panel.curves[0].x, panel.curves[0].y])
    radius = np.einsum("ni,ij,nj->n", edge, np.linalg.inv(cov), edge)
    np.testing.assert_allclose(radius, chi2.ppf(0.9, 2))


def test_starts_panels():
    starts = Starts(4, np.array([-10.0]), 2, np.array([-10.0, -10.0001, -12.0, -np.inf]))
    em = EMFit(np.zeros(1), -10.0, np.array([-3.0, -2.0, -20.0, -11.0, -10.0]), 4, 4, True, np.ones((3, 1)), starts)
    reached, way = starts_panels(em)
    np.testing.assert_allclose(reached.clouds[0].y, [0, 0, -2])
    assert reached.note == "2 of 4 reached the best, 1 collapsed"
    np.testing.assert_allclose(way.curves[0].y, [-10, -1, 0])  # from where the search went on with all units


def test_ends_of_the_starts_are_kept_and_saved(tmp_path):
    fit = pbc()
    assert len(fit.em.starts.ends) == fit.em.starts.n_starts
    assert fit.em.starts.ends[0] == pytest.approx(fit.llf, abs=1e-2)
    assert (fit.em.starts.ends > fit.em.starts.ends[0] - 1e-3).sum() == fit.em.starts.n_replicated
    fit.save(tmp_path / "f.mixmoe")
    np.testing.assert_array_equal(mm.load(tmp_path / "f.mixmoe").em.starts.ends, fit.em.starts.ends)


def test_residual_panel_against_columns():
    fit = pbc()
    panel = fit.panels("residuals", residuals="subject", against="year")[0]
    assert (panel.xlabel, panel.ylabel) == ("year", "subject residual")
    shown = np.sort(np.concatenate([c.y for c in panel.clouds]))
    np.testing.assert_allclose(shown, np.sort(fit.resid("subject")))
    pair = pd.Series(np.concatenate([c.y for c in panel.clouds]), np.concatenate([c.x for c in panel.clouds]))
    data = fit.model.design.in_order(fit.model.design.frame["year"].to_numpy())
    np.testing.assert_allclose(pair.groupby(level=0).sum(), fit.resid("subject").groupby(data).sum(), atol=1e-9)
    with pytest.raises(ArgumentError, match=r"against must be a numeric column .*got 'sex'"):
        fit.plot("residuals", against="sex")


def test_smooth_line_follows_a_bend():
    x = np.linspace(-2, 2, 400)
    panel = residual_panel(x, x**2, np.ones(400, dtype=int), "x", "r")
    line = panel.curves[0]
    assert line.y[0] > 2 > 1 > line.y[len(line.y) // 2]
    assert residual_panel(np.repeat([0.0, 1.0], 200), x, np.ones(400, dtype=int), "x", "r").curves == ()


# ---- figures ----


def by_category(seed=3, n=80, visits=4):
    """Two groups whose means differ by a category, without any numbers."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(n), visits)
    late, arm = (ids % 2 == 0), rng.choice(list("abc"), ids.size)
    y = 4.0 * late + (arm == "b") * (1 + late) + rng.normal(size=n)[ids] * 0.5 + rng.normal(size=ids.size) * 0.5
    return pd.DataFrame({"id": ids, "arm": arm, "y": y})


def test_categories_are_the_axis_where_there_are_no_numbers():
    data = by_category()
    fit = mm.fit("y ~ arm | re: (1 | id)", data, 2, starts=4, rng=0)
    (panel,) = fit.panels("fit")
    assert (panel.xlabel, panel.categories) == ("arm", ("a", "b", "c"))
    tau = fit.model.design.in_order(fit.em.responsibilities[fit.model.design.codes])
    for k, marks in enumerate(panel.marks):
        means = [np.average(data["y"][data["arm"] == a], weights=tau[data["arm"] == a, k]) for a in "abc"]
        np.testing.assert_allclose(marks.y, means)
        np.testing.assert_allclose(marks.x, [0, 1, 2])
    predicted = fit.predict(pd.DataFrame({"id": 0, "arm": list("abc")}), kind="experts")
    for k, curve in enumerate(panel.curves):  # level lines that do not meet
        assert np.isnan(curve.x).sum() == 2
        np.testing.assert_allclose(curve.y[::3], predicted[f"expert{k + 1}"], rtol=1e-8)
        np.testing.assert_allclose(curve.y[::3], curve.y[1::3])
    axes = fit.diagnose().axes[-1]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["a", "b", "c"]
    with pytest.raises(ArgumentError, match=r"x must be a column of the model, one of \['y', 'arm'\]"):
        fit.panels("fit", x="sex")


def test_all_pairs_of_three_random_effects():
    rng = np.random.default_rng(1)
    means = rng.normal(size=(50, 2, 3))
    implied = np.array([np.diag([1.0, 4.0, 9.0])] * 2)
    made = effects_panels(Effects(("a", "b", "c"), means, implied, np.repeat([1, 2], 25)), 0.05)
    assert [(p.xlabel, p.ylabel) for p in made] == [("a", "b"), ("a", "c"), ("b", "c")]
    np.testing.assert_allclose(made[1].clouds[1].y, means[25:, 1, 2])
    assert made[2].curves[0].y.max() / made[2].curves[0].x.max() == pytest.approx(1.5)
    data = mm.simulate.memoe("moderate", n_subjects=60, rng=1).data
    fit = mm.fit("y ~ time | re: (1 + time + x1 || id)", data, 1, rng=0)
    assert len(fit.panels("random_effects")) == 3
    axes = fit.diagnose().axes
    assert len(axes) == 4
    assert axes[2].get_title(loc="right") == "all pairs: plot('random_effects')"


def test_legends_do_not_lie_on_the_data():
    curves = [Curve("", "", np.arange(3.0), np.arange(3.0) + k, expert=k) for k in range(1, 7)]
    marks = [Marks(c.x, c.y, c.y, c.y, c.expert, f"expert {c.expert}") for c in curves]
    figure = draw_panels([Panel("Title", "x", "`my y`", (), tuple(curves), tuple(marks), note="small")])
    figure.draw_without_rendering()
    axes = figure.axes[0]
    legend, title = axes.get_legend().get_window_extent(), axes._left_title.get_window_extent()
    assert legend.y0 >= axes.get_window_extent().y1 - 1
    assert title.y0 >= legend.y1 - 2
    assert axes.get_ylabel() == "my y"


def test_one_figure_to_judge_by(plt):
    figure = pbc().diagnose()
    assert isinstance(figure, Figure)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Residuals", "Normal QQ", "Random effects", "Observed and predicted means"]
    assert len(pbc(random="0").diagnose().axes) == 3
    _, four = plt.subplots(2, 2)
    assert pbc().diagnose(ax=four) is four


@pytest.mark.parametrize("kind", ["residuals", "qq", "fit", "random_effects", "starts"])
def test_each_figure_alone(kind, plt):
    figure = pbc().plot(kind)
    assert len(figure.axes) == (2 if kind == "starts" else 1)
    for axes in figure.axes:
        assert axes.get_xlabel()
        assert axes.get_ylabel()
    with pytest.raises(ArgumentError, match=rf"plot\('{kind}'\) has no option 'colour'"):
        pbc().plot(kind, colour="red")
    if kind != "starts":
        _, ax = plt.subplots()
        assert pbc().plot(kind, ax=ax) is ax


def test_figures_do_not_change_from_call_to_call():
    first, second = (pbc().panels("qq")[0].curves[0].lower for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_what_is_drawn():
    x = np.arange(4.0)
    panel = Panel(
        "t", "x", "y", (Cloud(x, x, 2, "expert 2"),), (), (Marks(x, x, x - 1, x + 2, 1, "expert 1"),),
        (Rule(1.0, "x", "here"),), note="small", xlim=(-1, 5),
    )  # fmt: skip
    axes = draw_panels([panel]).axes[0]
    assert {t.get_text() for t in axes.get_legend().get_texts()} == {"expert 1", "expert 2"}
    assert axes.get_xlim() == (-1, 5)
    assert axes.get_title(loc="right") == "small"
    assert "here" in [t.get_text() for t in axes.texts]
    assert COLOURS[1] == mpl.colors.to_hex(axes.collections[0].get_facecolor()[0]).upper()
    many = Cloud(np.arange(9000.0), np.arange(9000.0))
    assert len(draw_panels([Panel("", "x", "y", (many,))]).axes[0].collections[0].get_offsets()) == 4000


def test_varying_coefficients_and_rows():
    data = mm.simulate.vcmoe("well_separated", n=300, rng=1).data
    fit = mm.fit("y ~ z1 | gate: x1 | vary: u", data, experts=2, bandwidth=0.3, rng=0)
    assert len(fit.diagnose().axes) == 3
    assert fit.panels("fit")[0].xlabel == "u"
    own, population = (fit.panels("fit", fitted=kind)[0] for kind in ("subject", "mean"))
    np.testing.assert_array_equal(own.curves[0].y, population.curves[0].y)  # there are no random effects
    with pytest.raises(ArgumentError, match="fitted must be one of 'subject', 'mean', got 'marginal'"):
        fit.plot("fit", fitted="marginal")
    with pytest.raises(ArgumentError, match="VCMoE has no profile: its local likelihoods have no joint"):
        fit.plot("profile", parameter=fit.params.index[0])
    rows = mm.fit("y ~ z1", data, experts=2, rng=0)
    assert len(rows.diagnose().axes) == 3
    bare = mm.fit("y ~ 1", data, experts=1)
    assert len(bare.diagnose().axes) == 3


def test_networks_say_what_they_do_not_have():
    pytest.importorskip("torch")
    data = mm.datasets.load("orthodont")
    fit = mm.fit("distance ~ age | re: (all | subject)", data, hidden=(), rng=0, baselines=False)
    assert len(fit.diagnose().axes) == 4
    for run, what in (
        (lambda: fit.plot("starts"), "NME has one start"),
        (lambda: fit.profile("sigma"), "NME has no profile: the parameters of a network"),
        (fit.influence, "NME has no influence: the parameters of a network"),
        (fit.adequacy, "NME has no adequacy: a network has no experts"),
        (lambda: fit.distal("o ~ expert", data), "NME has no distal: a network has no experts"),
    ):
        with pytest.raises(ArgumentError, match=what):
            run()
