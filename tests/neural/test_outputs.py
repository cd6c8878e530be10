"""What a fitted network reports: parameters charged, likelihood, limits, residuals, draws, figures, coefficients."""

import itertools
import warnings

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

import mixmoe as mm
from mixmoe.errors import ArgumentError, BoundaryWarning, ConvergenceWarning, DesignError, MixmoeWarning
from mixmoe.inference.wald import InvalidTest

torch = pytest.importorskip("torch")
mpl.use("Agg")

from mixmoe.neural.crf import sample_states, sequence_score  # noqa: E402
from mixmoe.neural.estimators.linearised import build_control, left_to_gain  # noqa: E402
from mixmoe.neural.person_predictions import mixture_quantile  # noqa: E402

LAST = "y ~ x + w | re: (last | id)"
SHIFT = "y ~ x + w | re: (layer2.bias | id)"
CHAIN = "st ~ x | re: (transitions | id) | seq: day"


def quiet(formula, data, **options):
    """A fit whose few epochs need not converge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        return mm.fit(formula, data, **{"hidden": (10,), "baselines": False, "rng": 0, **options})


def persons_data():
    g = np.random.default_rng(0)
    i, x, w = np.repeat(np.arange(25), 14), g.normal(size=350), g.normal(size=350)
    y = np.sin(1.5 * x) + 0.8 * g.normal(size=25)[i] + 0.3 * w + 0.4 * g.normal(size=350)
    cls = np.array(["lo", "mid", "hi"])[np.digitize(y, [-0.5, 0.6])]
    frame = pd.DataFrame({"y": y, "x": x, "w": w, "id": i, "bin": (y > 0).astype(int), "cls": cls})
    return frame.assign(sex=np.where(i % 2, "m", "f")).sample(frac=1.0, random_state=1)


def chains_data(states="ABC"):
    g = np.random.default_rng(1)
    rows = [(f"p{a}", t, g.normal(), states[g.integers(len(states))]) for a in range(15) for t in range(12)]
    return pd.DataFrame(rows, columns=["id", "day", "x", "st"])


DATA, CHAINS = persons_data(), chains_data()


@pytest.fixture(scope="module")
def linear():
    return quiet(LAST, DATA, hidden=())


@pytest.fixture(scope="module")
def mixed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        return mm.fit("y ~ x + w | re: (1 + x + w | id)", DATA, experts=1, rng=0)


@pytest.fixture(scope="module")
def binary():
    return quiet("bin ~ x + w | re: (bias | id)", DATA, hidden=(3,), epochs=200)


@pytest.fixture(scope="module")
def chain():
    return quiet(CHAIN, CHAINS, hidden=(), epochs=40)


# ---- convergence ----


@pytest.mark.parametrize(("formula", "epochs"), [(SHIFT, 1), (SHIFT, 20), ("y ~ x + w | re: (0 | id)", 10)])
def test_a_few_epochs_are_no_maximum(formula, epochs):
    with pytest.warns(ConvergenceWarning, match=f"after {epochs} epochs? the log-likelihood could still rise by"):
        fit = mm.fit(formula, DATA, hidden=(5,), epochs=epochs, baselines=False, rng=0)
    assert not fit.converged
    assert [flag.code for flag in fit.flags] == ["not_converged"]


@pytest.mark.parametrize(("random", "hidden"), [("bias", ()), ("last", (2,)), ("last[1]", (2,))])
def test_a_response_constant_within_persons_is_refused(random, hidden):
    flat = DATA.assign(y=DATA.groupby("id")["y"].transform("mean"))
    with pytest.raises(DesignError, match="the response 'y' does not vary within any subject, so that residuals are"):
        mm.fit(f"y ~ x | re: ({random} | id)", flat, hidden=hidden, rng=0)


@pytest.mark.parametrize("formula", ["y ~ x | re: (0 | id)", "y ~ x | re: (last | id)", "y ~ x | re: (bias | id)"])
def test_residuals_of_zero_are_told(formula):
    exact = DATA.assign(y=2.0 * DATA["x"] + DATA["id"] * ("0" not in formula))
    assert "degenerate" in {flag.code for flag in quiet(formula, exact, hidden=()).flags}
    assert "degenerate" not in {flag.code for flag in quiet(formula, DATA, hidden=()).flags}


def test_one_start_that_was_reached_once_is_told():
    options = {"hidden": (3,), "epochs": 20, "starts": 2}
    alone = quiet(SHIFT, DATA, **options)
    assert alone.em.starts.n_replicated == 1
    assert [flag.code for flag in alone.flags if flag.code == "not_replicated"] == ["not_replicated"]
    assert "only one of 2 starts reached the best log-likelihood" in alone.flags[-1].message
    for other in (quiet(SHIFT, DATA, **options, validation=0.2), quiet(SHIFT, DATA, hidden=(3,), epochs=20)):
        assert "not_replicated" not in {flag.code for flag in other.flags}


def test_many_epochs_arrive():
    fit = mm.fit(SHIFT, DATA, hidden=(2,), epochs=700, baselines=False, rng=0)
    assert fit.converged
    assert fit.flags == ()


def test_what_is_left_to_gain_is_gained_by_more_epochs():
    short, long = (quiet(SHIFT, DATA, hidden=(2,), epochs=epochs) for epochs in (30, 700))
    model = short.model
    left = left_to_gain(model.problem, build_control("laplace", model.problem), short.trained)
    assert left == pytest.approx(long.llf - short.llf, rel=0.3)


def test_a_linear_mixed_model_has_nothing_left(linear):
    model = linear.model
    assert left_to_gain(model.problem, build_control("laplace", model.problem), linear.trained) < 1e-5


# ---- number of parameters ----


@pytest.mark.parametrize(
    ("layers", "cov", "expected"),
    [
        ("last", "full", 21 + 21 + 1),
        ("last", "diagonal", 21 + 6 + 1),
        ("last", "tensor", 21 + 2 + 1),
        ("last", 2, 21 + (12 - 1) + 1),
        ("last", 6, 21 + 21 + 1),
        ("first", "diagonal", 21 + 15 + 1),
        ("0", None, 21 + 1),
    ],
)
def test_free_parameters_are_charged(layers, cov, expected):
    fit = quiet(f"y ~ x + w | re: ({layers} | id)", DATA, hidden=(5,), cov=cov, epochs=2)
    assert fit.df_model == expected
    assert fit.aic == pytest.approx(2 * expected - 2 * fit.llf)
    assert fit.bic == pytest.approx(expected * np.log(25) - 2 * fit.llf)
    assert fit.df_resid == 350 - expected
    assert fit.glance()["df"].item() == expected


def test_a_linear_network_has_the_parameters_of_its_mixed_model(linear, mixed):
    assert linear.df_model == mixed.df_model
    assert linear.bic == pytest.approx(mixed.bic, rel=1e-6)


@pytest.mark.parametrize(("states", "expected"), [("ABC", 12 + 9), ("AB", 8 - 3 + 4)])
def test_a_chain_is_charged_what_is_identified(states, expected):
    fit = quiet(CHAIN, chains_data(states), family="crf", hidden=(), epochs=2)
    assert fit.df_model == expected


def test_directions_that_a_chain_cannot_tell(chain):
    from mixmoe.neural.estimators.trained import total_loss

    problem = chain.problem

    def loss(theta):
        return total_loss(problem, problem.train, theta, None, 1.0)

    hessian = torch.func.jacrev(torch.func.jacrev(loss))(problem.tensor(chain.trained.theta))
    roots = torch.linalg.eigvalsh(hessian)
    assert int((roots > 1e-9 * roots.max()).sum()) == chain.df_model - 9


def test_networks_have_no_likelihood_ratio_test(linear, chain):
    found = linear.lr_test(chain)
    assert isinstance(found, InvalidTest)
    assert "mm.select" in found.reason


# ---- validation rows ----


def test_the_likelihood_is_of_all_rows(linear):
    held = quiet(LAST, DATA, hidden=(), validation=0.5)
    model, fit = held.model, held.trained
    cov = fit.covariance * model.scaling.y_sd**2
    design = model.design
    Z = np.column_stack([model.scaling.inputs(design.expert), np.ones(design.n)])
    residual = design.response - model.scaling.y_mean - model.scaling.y_sd * Z @ fit.theta
    total = 0.0
    for i in range(design.n_units):
        rows = design.codes == i
        V = Z[rows] @ cov @ Z[rows].T + fit.sigma2 * model.scaling.y_sd**2 * np.eye(rows.sum())
        total -= 0.5 * (np.linalg.slogdet(2 * np.pi * V)[1] + residual[rows] @ np.linalg.solve(V, residual[rows]))
    assert held.llf == pytest.approx(total, abs=1e-6)
    assert held.llf < linear.llf
    assert "175 of these" in str(held.summary())


# ---- limits of unknown persons ----


def test_limits_of_unknown_persons_are_those_of_a_normal_distribution(linear):
    new = pd.DataFrame({"x": [0.0, 1.5], "w": [0.0, -1.0], "id": "new"})
    frame = linear.predict(new, interval="prediction")
    pd.testing.assert_frame_equal(frame, linear.predict(new, interval="prediction", rng=5))
    np.testing.assert_allclose(frame["mean_high"] - frame["mean"], frame["mean"] - frame["mean_low"], rtol=1e-9)
    fit, scaling = linear.trained, linear.model.scaling
    z = np.column_stack([(new[["x", "w"]].to_numpy() - scaling.mean) / scaling.sd, np.ones(2)])
    between = np.einsum("ij,jk,ik->i", z, fit.covariance, z) * (25 + 1) / (25 - 3)
    half = norm.ppf(0.975) * scaling.y_sd * np.sqrt(between + fit.sigma2)
    np.testing.assert_allclose(frame["mean_high"] - frame["mean"], half, rtol=0.02)  # the rest: population parameters


def test_a_diagonal_covariance_has_limits_of_about_the_same_width(linear):
    new = DATA.assign(id="new")
    diagonal = quiet(LAST, DATA, hidden=(), cov="diagonal")
    frames = [fit.predict(new, interval="prediction") for fit in (diagonal, linear)]
    widths = [(frame["mean_high"] - frame["mean_low"]).mean() for frame in frames]
    assert widths[0] == pytest.approx(widths[1], rel=0.1)
    assert DATA["y"].between(frames[0]["mean_low"], frames[0]["mean_high"]).mean() == pytest.approx(0.95, abs=0.04)


def test_quantiles_of_mixtures():
    means, sd = torch.tensor([[0.0], [3.0]]).double(), torch.tensor([[1.0], [0.5]]).double()
    q = mixture_quantile(means, sd, 0.9).item()
    assert 0.5 * (norm.cdf(q) + norm.cdf((q - 3) / 0.5)) == pytest.approx(0.9, abs=1e-6)


# ---- missing values ----


@pytest.mark.filterwarnings("ignore:1 of 4 rows were left out", "ignore:kind='subject'. 1 of the 3 subjects")
def test_rows_with_missing_values_come_back_missing(linear, chain):
    new = pd.DataFrame({"x": [0.0, np.nan, 1.0, 2.0], "w": 0.0, "id": [0, 1, 1, 99]}, index=list("abcd"))
    frame = linear.predict(new, "subject", interval="prediction")
    assert list(frame.index) == list("abcd")
    assert frame.isna().any(axis=1).tolist() == [False, True, False, False]
    full = linear.predict(new.dropna(), "subject")
    np.testing.assert_allclose(frame["mean"].dropna(), full["mean"])
    states = CHAINS.iloc[:4].assign(x=[0.0, np.nan, 1.0, 2.0])
    assert chain.decode(states).isna().tolist() == [False, True, False, False]


def test_one_person_tells_nothing_about_persons():
    with pytest.raises(DesignError, match=r"the column 'id' has one person, 0.* write re: \(0 \| \.\.\.\)"):
        mm.NME(LAST, DATA[DATA.id == 0])
    assert mm.NME("y ~ x + w | re: (0 | id)", DATA[DATA.id == 0]).personal.q == 0


@pytest.mark.parametrize("day", [CHAINS.day.astype(str), pd.Categorical(CHAINS.day.astype(str))])
def test_texts_do_not_order_rows(day):
    with pytest.raises(DesignError, match=r"order 'day' of seq: is '0' in row 0, a text.*pd\.to_numeric"):
        mm.NME(CHAIN, CHAINS.assign(day=day))


def test_ordered_categories_and_dates_order_rows():
    names = [str(k) for k in range(12)]
    ordered = pd.Categorical(CHAINS.day.astype(str), categories=names, ordered=True)
    dates = pd.Timestamp("2024-01-01") + pd.to_timedelta(CHAINS.day, unit="D")
    shuffled = CHAINS.sample(frac=1.0, random_state=0)
    for day in (ordered, dates):
        model = mm.NME(CHAIN, CHAINS.assign(day=day).loc[shuffled.index])
        assert model.design.rows.equals(mm.NME(CHAIN, CHAINS).design.rows)


# ---- fitted values, residuals, draws ----


def test_residuals_are_those_of_the_mixed_model(linear, mixed):
    assert linear.fittedvalues.index.equals(DATA.index)
    assert linear.llf == pytest.approx(mixed.llf, abs=1e-7)
    # A network rests where twenty iterations gain less than 1e-10 a row: 2e-8 in all, effects within 2e-4 of their SE.
    for kind in ("subject", "mean"):
        np.testing.assert_allclose(linear.fitted(kind), mixed.fitted(kind), atol=3e-5)
        np.testing.assert_allclose(linear.resid(kind), mixed.resid(kind), atol=3e-5)
    for given in ("history", "covariates"):
        ours, theirs = (fit.resid("quantile", given=given) for fit in (linear, mixed))
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_residuals_of_a_deep_network_are_standard_normal():
    fit = quiet(SHIFT, DATA, hidden=(4,), cov="diagonal", epochs=300)
    deep = quiet("y ~ x + w | re: (first | id)", DATA, hidden=(4,), epochs=300)
    for one in (fit, deep):
        residuals = one.resid("quantile")
        assert residuals.std() == pytest.approx(1.0, abs=0.08)
        assert residuals.groupby(DATA["id"]).mean().std() * np.sqrt(14) == pytest.approx(1.0, abs=0.35)


def test_residuals_of_a_binary_response(binary):
    history, alone = (binary.resid("quantile", given=given, rng=0) for given in ("history", "covariates"))
    for residuals in (history, alone):
        assert residuals.std() == pytest.approx(1.0, abs=0.12)
    between = [np.sqrt(14) * r.groupby(DATA["id"]).mean().std() for r in (history, alone)]
    assert between[0] == pytest.approx(1.0, abs=0.3)
    assert between[1] > 1.6  # those of a person are correlated
    np.testing.assert_allclose(binary.resid("subject"), DATA["bin"] - binary.fitted(), atol=1e-12)


def test_the_first_row_of_a_person_has_no_history(binary):
    from mixmoe.neural.fitted_rows import history_tails, unknown_tails

    first = binary.model.design.starts
    one = binary.model.design.response > 0  # of a one P(Y >= 1), of a zero P(Y > 0)
    tails = history_tails(binary.persons), unknown_tails(binary.persons)
    by_history, alone = (np.where(one, found[:, 2], found[:, 3]) for found in tails)
    assert np.abs(by_history[first] - alone[first]).mean() < 0.03
    assert np.abs(by_history - alone).mean() > 0.1


def test_more_than_two_categories_have_no_residuals(chain):
    with pytest.raises(ArgumentError, match=r"NME has no resid\(\) for this response"):
        chain.resid()
    with pytest.raises(ArgumentError, match="NME has no figure 'qq' for this response"):
        chain.plot("qq")
    assert list(chain.fitted().columns) == ["P(A)", "P(B)", "P(C)"]


def test_draws_have_the_moments_of_the_model(linear):
    draws = linear.simulate(rng=0, n=400)
    assert draws.index.equals(DATA.index)
    assert draws.to_numpy().mean() == pytest.approx(linear.fitted("mean").mean(), abs=0.05)
    half = (linear.predict(interval="prediction")["mean_high"] - linear.fitted("mean")) / norm.ppf(0.975)
    np.testing.assert_allclose(draws.std(axis=1), half, rtol=0.25)
    means = draws.groupby(DATA["id"]).mean()
    between = means.sub(means.mean()).to_numpy().std()
    assert between > 0.5  # persons are drawn anew, and differ


def test_draws_of_categories(binary, chain):
    draws = binary.simulate(rng=0, n=50)
    assert set(np.unique(draws)) == {0, 1}
    assert draws.to_numpy().mean() == pytest.approx(binary.fitted("mean").mean(), abs=0.03)
    states = chain.simulate(rng=0, n=100)
    shares = states.stack().value_counts(normalize=True).loc[list("ABC")]
    np.testing.assert_allclose(shares, chain.fitted("mean").mean(), atol=0.03)


def test_drawn_sequences_have_their_probabilities():
    g = np.random.default_rng(3)
    emissions, table = (torch.tensor(g.normal(size=shape)) for shape in ((1, 3, 2), (2, 2)))
    n = 20_000
    noise = torch.tensor(g.gumbel(size=(n, 3, 2)))
    drawn = sample_states(emissions.expand(n, 3, 2), table, torch.ones(n, 3), noise)
    paths = torch.tensor(list(itertools.product(range(2), repeat=3)))
    score = sequence_score(emissions.expand(8, 3, 2), table, paths, torch.ones(8, 3))
    counts = torch.bincount(drawn[:, 0] * 4 + drawn[:, 1] * 2 + drawn[:, 2], minlength=8)
    np.testing.assert_allclose(counts / n, torch.softmax(score, 0), atol=0.015)
    short = sample_states(emissions, table, torch.tensor([[1.0, 1.0, 0.0]]), noise[:1])
    assert short[0, 2] == 0


# ---- frames, figures ----


def test_categories_go_into_frames(chain, binary, tmp_path):
    assert set(chain.augment()[".fitted"]) <= set("ABC")
    assert set(binary.augment()[".fitted"]) == {0, 1}
    accuracy = (binary.augment()[".fitted"] == binary.augment()["bin"]).mean()
    assert accuracy > 0.75
    pytest.importorskip("openpyxl")
    chain.to_excel(tmp_path / "chain.xlsx")


@pytest.mark.parametrize("seq", ["day", "day / ses"])
def test_effects_of_a_chain_are_drawn(seq, tmp_path):
    data = CHAINS.assign(ses=CHAINS.day // 6)
    fit = quiet(f"st ~ x | re: (transitions | id) | seq: {seq}", data, hidden=(), epochs=40)
    population, *persons = fit.curves("effects", persons=["p3", "p1"], category="C")
    assert [curve.label for curve in persons] == ["id p3", "id p1"]
    assert np.abs(persons[0].y - persons[1].y).max() > 1e-3  # their transitions differ
    assert ((population.y > 0) & (population.y < 1)).all()
    assert population.ylabel == "P(st = C)"
    page = fit.report(tmp_path / "chain.html").read_text(encoding="utf-8")
    assert "epochs=40" in page
    assert "Predictions along one input" in page
    assert "No figure" not in page


def test_effects_of_a_held_input_are_those_of_a_long_sequence(chain):
    curve = chain.curves("effects", persons=["p1"], category="C")[1]
    rows = pd.DataFrame({"x": curve.x[30], "day": np.arange(15), "id": "p1"})
    assert curve.y[30] == pytest.approx(chain.marginals(rows)["C"][7])


def test_transition_scores_have_no_tests(chain):
    """They are centred, so that each holds all the others."""
    names = [f"transition({a},{b})" for a in "ABC" for b in "ABC"]
    assert chain.params[names].sum() == pytest.approx(0.0, abs=1e-12)
    assert chain.pvalues[names].isna().all()
    assert chain.tvalues[names].isna().all()
    middle = chain.conf_int().loc[names].mean(axis=1)
    np.testing.assert_allclose(middle, chain.params[names], atol=1e-12)
    assert "Transition scores are centred: only differences mean something" in chain.to_latex()
    assert "Other parameters" not in str(chain.summary())
    assert np.isfinite(chain.wald_test("transition(A,A) - transition(A,B) = 0").pvalue)


def test_categories_without_a_mean_are_predicted_by_default(chain):
    classes = quiet("cls ~ x | re: (bias | id)", DATA, hidden=(), epochs=20)
    for fit, rows in ((chain, CHAINS.head(4)), (classes, DATA.head(4))):
        pd.testing.assert_frame_equal(fit.predict(rows), fit.predict(rows, scale="categories"))
        pd.testing.assert_frame_equal(fit.persons.predict(rows), fit.persons.predict(rows, scale="categories"))
        with pytest.raises(ArgumentError, match="have no mean"):
            fit.predict(rows, scale="response")


def test_each_state_has_a_panel(chain, binary, linear):
    curves = chain.curves("effects", n_persons=1)
    panels = [f"P(st = {state})" for state in "ABC"]
    assert [curve.panel for curve in curves] == np.repeat(panels, 2).tolist()
    for part in (curves[::2], curves[1::2]):
        np.testing.assert_allclose(np.sum([curve.y for curve in part], axis=0), 1.0)
    assert len(chain.plot("effects").axes) == 3
    chosen = chain.curves("effects", n_persons=1, category="A")
    np.testing.assert_array_equal([curve.y for curve in chosen], [curve.y for curve in curves[:2]])
    assert {curve.panel for curve in binary.curves("effects")} == {"x"}  # of two, one tells the other
    with pytest.raises(ArgumentError, match="category must be one of 'A', 'B', 'C', got 'Z'"):
        chain.plot("effects", category="Z")
    with pytest.raises(ArgumentError, match="category= is for a response of categories, got 'A'"):
        linear.plot("effects", category="A")


def test_an_unknown_option_of_a_figure_is_named(chain):
    with pytest.raises(ArgumentError, match="no option 'state'; it has variable, persons, n_persons, category"):
        chain.plot("effects", state="A")
    with pytest.raises(ArgumentError, match=r"plot\(.learning.\) has no option .epochs.; it has none"):
        chain.plot("learning", epochs=3)


def test_effects_along_a_category():
    fit = quiet("y ~ x + sex | re: (last | id)", DATA, hidden=())
    population, person = fit.curves("effects", variable="sex", persons=[0])
    assert population.categories == ("f", "m")
    difference = fit.params["sex[T.m]"]
    assert population.y[1] - population.y[0] == pytest.approx(difference, rel=1e-6)
    assert person.x.tolist() == [0.0, 1.0]
    assert fit.plot("effects", variable="sex") is not None


def test_persons_without_names_share_a_legend_entry(linear):
    curves = linear.curves("effects", n_persons=5)
    assert [curve.label for curve in curves] == ["population", "5 of 25 persons", "", "", "", ""]
    assert all(curve.thin for curve in curves[1:])
    axes = linear.plot("effects", n_persons=5).axes[0]
    words = [text.get_text() for text in axes.get_legend().get_texts()]
    assert words == ["population", "5 of 25 persons", "95 % of new observations"]
    named = linear.curves("effects", persons=[3, 4])[1:]
    assert [curve.expert for curve in named] == [2, 3]
    with pytest.raises(ArgumentError, match="n_persons must be a whole number of at least 0, got -3"):
        linear.curves("effects", n_persons=-3)
    with pytest.raises(ArgumentError, match="persons must name persons of the fit, such as 0, 1, 2, 3, 4; got 77"):
        linear.curves("effects", persons=[77])
    with pytest.raises(ArgumentError, match="variable must be a column of the formula: 'x', 'w'; got 'id'"):
        linear.curves("effects", variable="id")


def test_there_is_no_empty_figure(linear):
    with pytest.raises(ArgumentError, match="fitted without epochs, so no loss is drawn"):
        linear.plot("learning")
    with pytest.raises(ArgumentError, match="NME has one start"):
        linear.plot("starts")
    assert "linear)" in str(linear.summary())
    assert len(linear.diagnose().axes) == 4


def test_reprs_are_short(chain):
    for value in (chain.persons, chain.uncertainty, chain.transitions, chain.adapt(CHAINS[CHAINS.id == "p1"])):
        assert len(repr(value)) < 400


def test_adapted_persons_have_transitions(chain):
    found = chain.adapt(CHAINS[CHAINS.id == "p1"]).transitions
    np.testing.assert_allclose(found.matrix("p1"), chain.transitions.matrix("p1"), atol=1e-3)


def test_the_published_rule_says_that_it_has_no_likelihood():
    fit = quiet(LAST, DATA, hidden=(), estimator="sgd", epochs=5)
    assert np.isnan(fit.llf)
    assert "Likelihood:" in str(fit.summary())
    assert "the published rule has none" in str(fit.summary())


# ---- coefficients ----


def test_a_linear_network_of_categories_is_the_logit():
    import statsmodels.formula.api as smf

    ours = quiet("bin ~ x + w | re: (0 | id)", DATA, hidden=(), epochs=800)
    theirs = smf.logit("bin ~ x + w", DATA).fit(disp=0)
    np.testing.assert_allclose(ours.params, theirs.params, atol=1e-4)
    np.testing.assert_allclose(ours.bse, theirs.bse, rtol=1e-3)
    assert list(ours.params.index) == ["Intercept", "x", "w"]
    codes = DATA["cls"].astype("category").cat.codes
    ours = quiet("cls ~ x + w | re: (0 | id)", DATA, hidden=(), epochs=800)
    theirs = smf.mnlogit("k ~ x + w", DATA.assign(k=codes)).fit(disp=0)
    np.testing.assert_allclose(ours.params, theirs.params.to_numpy().T.ravel(), atol=2e-3)  # where Adam stops
    np.testing.assert_allclose(ours.bse, theirs.bse.to_numpy().T.ravel(), rtol=1e-3)
    assert ours.params.index[4] == "x(mid)"


def test_a_generic_linear_network_is_the_regression():
    import statsmodels.formula.api as smf

    ours, theirs = quiet("y ~ x + w | re: (0 | id)", DATA, hidden=(), epochs=800), smf.ols("y ~ x + w", DATA).fit()
    np.testing.assert_allclose(ours.params[:-1], theirs.params, atol=1e-4)
    np.testing.assert_allclose(ours.bse[:-1], theirs.bse * np.sqrt(347 / 350), rtol=1e-3)


def test_random_intercepts_of_categories_are_on_the_scale_of_the_user():
    one = quiet("bin ~ x | re: (last | id)", DATA, hidden=(), epochs=300)
    ten = quiet("bin ~ x | re: (last | id)", DATA.assign(x=10 * DATA["x"]), hidden=(), epochs=300)
    assert list(one.params.index) == ["Intercept", "x", "sd(Intercept|id)", "sd(x|id)"]
    slopes = ["x", "sd(x|id)"]
    np.testing.assert_allclose(one.params[slopes], 10 * ten.params[slopes], rtol=1e-5)
    moved = DATA.assign(x=10 * DATA["x"] + 3)  # independent at another origin, but for a variance per tensor
    one, ten = (quiet("bin ~ x | re: (last | id)", d, hidden=(), epochs=300, cov="tensor") for d in (DATA, moved))
    np.testing.assert_allclose(one.params[slopes], 10 * ten.params[slopes], rtol=1e-5)
    assert 0.5 < one.params["sd(Intercept|id)"] < 3.0


def test_coefficients_of_a_chain_do_not_depend_on_the_units(chain):
    other = quiet(CHAIN, CHAINS.assign(x=5 * CHAINS["x"] - 1), hidden=(), epochs=40)
    for name in ("x(B)", "x(C)"):
        assert chain.params[name] == pytest.approx(5 * other.params[name])
        assert chain.bse[name] == pytest.approx(5 * other.bse[name], rel=1e-6)
    assert np.isfinite(chain.bse[["x(B)", "x(C)"]]).all()


def test_effects_of_categories_and_transitions_have_names_and_the_users_scale(chain):
    assert list(chain.random_effects.columns)[:2] == ["transition(A,A)", "transition(A,B)"]
    fit = quiet("bin ~ x + w | re: (last | id)", DATA, hidden=(), epochs=40)
    assert list(fit.random_effects.columns) == ["Intercept", "x", "w"]
    scaling, own = fit.model.scaling, fit.persons.z @ fit.trained.loading.T
    np.testing.assert_allclose(fit.random_effects["x"], own[:, 0] / scaling.sd[0], atol=1e-12)
    by_hand = own[:, 2] - own[:, :2] @ (scaling.mean / scaling.sd)
    np.testing.assert_allclose(fit.random_effects["Intercept"], by_hand, atol=1e-12)
    assert (fit.random_effects_se > 0).all().all()


def test_many_effects_are_drawn_a_few_at_a_time():
    fit = quiet(LAST, DATA, epochs=5)
    panels = fit.panels("random_effects")
    assert len(panels) == 10
    assert f"5 of {fit.model.personal.q} effects" in panels[0].note
    names = list(fit.random_effects.columns)[:3]
    assert len(fit.panels("random_effects", parameters=names)) == 3
    with pytest.raises(ArgumentError, match=r"must name random effects, .*; got 'slope'"):
        fit.panels("random_effects", parameters=["slope"])


def test_a_standard_deviation_of_zero_has_a_flag_and_no_error():
    level = DATA.groupby("id")["y"].transform("mean")
    same = DATA.assign(y=DATA["y"] - level, site=np.arange(len(DATA)) % 4)
    with pytest.warns(BoundaryWarning, match=r"zero is the estimate of the standard deviation.* sd\(Intercept\|id\)"):
        fit = mm.fit("y ~ x + w | re: (last[1] | id) + (last[1] | site)", same, hidden=(), baselines=False)
    assert fit.params["sd(Intercept|id)"] < 1e-3
    assert np.isnan(fit.bse["sd(Intercept|id)"])
    assert np.isfinite(fit.bse["sigma"])


def test_states_held_out_are_the_last_of_sequences():
    fit = quiet(CHAIN, CHAINS, hidden=(), epochs=10, baselines=True)
    text = str(fit.summary())
    assert "the last of each sequence" in text
    assert "given those before them in the sequence" in " ".join(text.split())
    table = next(t for t in fit.tables() if t.key == "comparison")
    ratios = dict(zip(table.index, (row[1] for row in table.cells), strict=True))
    assert ratios.pop("one network per person") is None  # it saw the rows
    assert min(ratios.values()) == 1.0
