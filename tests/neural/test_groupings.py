"""Several groupings of the rows: crossed and nested effects on the last layer, against lme4 and dense algebra."""

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError, DesignError, FormulaError, MixmoeWarning

torch = pytest.importorskip("torch")

from mixmoe.neural.components import entries_of, linear_map  # noqa: E402
from mixmoe.neural.estimators.last_layer import (  # noqa: E402
    LastState,
    add_exact_gradients,
    each_factor,
    features_of,
    moments,
    profile_of,
    start_last,
)
from mixmoe.neural.estimators.linearised import build_control  # noqa: E402
from mixmoe.neural.estimators.trained import parts_of  # noqa: E402
from mixmoe.neural.network import initial_parameters  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden"
DATA = pd.read_csv(GOLDEN / "sim_crossed.csv")
LME4 = {case["name"]: case for case in json.loads((GOLDEN / "crossed.json").read_text())["cases"]}
PEERS = Path(__file__).parents[3] / "shared" / "peers" / "crossed" / "open"
LOGLIK, BLUP = 1e-5, 1e-4  # absolute
CROSSED = "y ~ t + x | re: (last[1, t] | person) + (last[1] | person:site) + (last[1, x] | culture)"


def fitted(formula, data=DATA, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        return mm.fit(formula, data, baselines=False, **{"hidden": (), **options})


@pytest.fixture(scope="module")
def both():
    return fitted(CROSSED)


def user_effects(fit):
    """Effects of each grouping on the user's scale, by its name in lme4."""
    names = [fit.model.formula.random, *(known.term for known in fit.model.levels)]
    loadings = [fit.trained.loading, *(g.loading for g in fit.trained.further)]
    labels = [fit.persons.labels, *(known.labels for known in fit.model.levels)]
    out = {}
    for term, part, L, of, z in zip(names, parts_of(fit.problem), loadings, labels, fit.persons.z_of_all, strict=True):
        b = z @ (linear_map(part, fit.model.scaling) @ L).T
        mine = {str(label): row for label, row in zip(of, b, strict=True)}
        out[term.name] = mine
        out[":".join(reversed(term.columns))] = {":".join(reversed(of.split(":"))): row for of, row in mine.items()}
    return out


@pytest.mark.parametrize("name", list(LME4))
def test_linear_networks_equal_lme4(name):
    case = LME4[name]
    fit = fitted(f"y ~ t + x | re: {case['effects']}")
    assert fit.llf == pytest.approx(case["loglik"], abs=LOGLIK)
    assert fit.df_model == case["df"]
    np.testing.assert_allclose(fit.params.iloc[:3], case["fixed"], atol=1e-5)
    np.testing.assert_allclose(fit.bse.iloc[:3], case["se"], rtol=1e-4)
    assert fit.params["sigma"] == pytest.approx(case["sigma"], abs=1e-5)
    effects = user_effects(fit)
    for blups in case["blups"]:
        values = np.array([effects[blups["grouping"]][level] for level in blups["levels"]])
        columns = np.atleast_1d(blups["columns"])
        order = sorted(range(len(columns)), key=lambda k: columns[k] != "(Intercept)")
        np.testing.assert_allclose(values, np.array(blups["values"], dtype=float)[:, order], atol=BLUP)


@pytest.mark.skipif(not PEERS.exists(), reason="../shared/peers/crossed is not there")
@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("penicillin_ml", "diameter ~ 1 | re: (last | plate) + (last | sample)"),
        ("pastes_batch_cask_ml", "strength ~ 1 | re: (last | batch / cask)"),
        ("pastes_ml", "strength ~ 1 | re: (last | batch) + (last | sample)"),
        ("people_cultures1_ml", "y ~ t + x + z | re: (last[1, t] | person) + (last[1] | culture)"),
        ("people_cultures2_ml", "y ~ t + x + z | re: (last[1, t] | person) + (last[1, x] || culture)"),
        ("people_cultures3_ml", "y ~ t + x + z | re: (last[1] | culture) + (last[1, t] | person)"),
    ],
)
def test_public_data_equal_lme4(name, formula):
    case = next(m for m in json.loads((PEERS / "results.json").read_text())["models"] if m["name"] == name)
    fit = fitted(formula, pd.read_csv(PEERS / case["data"]))
    assert fit.llf == pytest.approx(case["loglik"], abs=LOGLIK)
    assert fit.df_model == case["df"]
    effects = user_effects(fit)
    for grouping, units in case["blups_ten_units"].items():
        for unit in units:
            np.testing.assert_allclose(effects[grouping][unit["level"]], list(unit["blup"].values()), atol=BLUP)


def dense(problem, theta, entries):
    """Features, ``V / sigma^2`` and the columns that effects multiply, rows in the order of the design."""
    each = each_factor(problem, entries)
    n = problem.train.n_rows
    H, y, codes = torch.zeros(n, problem.network.width + 1).double(), torch.zeros(n).double(), np.zeros((n, 0))
    codes = np.zeros((n, 1 + len(problem.further)), dtype=int)
    for block in problem.train:
        seen, at = block.mask > 0, block.rows[block.mask.numpy() > 0]
        H[at], y[at] = features_of(problem.network, theta, block.x)[seen], block.y[seen]
        codes[at, 0] = block.persons.unsqueeze(1).expand(seen.shape)[seen]
        codes[at, 1:] = block.levels[seen]
    V, columns = torch.eye(n).double(), []
    for g, (part, L) in enumerate(zip(parts_of(problem), each, strict=True)):
        Z = H[:, part.personal.index - problem.network.tensors[-2].start]
        same = torch.tensor(codes[:, g][:, None] == codes[:, g]).double()
        V, columns = V + (Z @ L @ L.T @ Z.T) * same, [*columns, (Z, L, codes[:, g])]
    return H, y, V, columns


@pytest.mark.parametrize(("cov", "prior"), [(None, 0.0), ("diagonal", 1.0)])
def test_value_and_gradient_of_a_network_are_those_of_dense_algebra(cov, prior):
    formula = "y ~ t + x | re: (last | person / site) + (last[1] | culture)"
    model = mm.NME(formula, DATA, hidden=(3,), cov=cov)
    problem = replace(model.problem, prior=prior)
    control = build_control("laplace", problem, progress=False, weight_decay=0.0)
    start = start_last(problem, initial_parameters(model.network, np.random.default_rng(1)))
    noise = torch.tensor(np.random.default_rng(2).normal(size=len(start.entries)))
    flat, P = torch.cat([start.theta, start.entries + 0.2 * noise]), len(start.theta)

    def value(at):
        state = LastState(*(v.clone().requires_grad_(True) for v in (at[:P], at[P:])), start.plan)
        return float(add_exact_gradients(problem, control, state)), torch.cat([state.theta.grad, state.entries.grad])

    H, y, V, _ = dense(problem, flat[:P], flat[P:])
    fit = profile_of(problem, LastState(flat[:P], flat[P:], start.plan)).fit
    normal = torch.distributions.MultivariateNormal(H @ fit.beta, fit.sigma2 * V)
    assert -0.5 * float(fit.deviance) == pytest.approx(float(normal.log_prob(y)), abs=1e-8)
    gradient, step = value(flat)[1], 1e-4
    for k in [*range(model.network.n_hidden), *range(P, len(flat))]:
        move = step * torch.eye(len(flat), dtype=torch.float64)[k]
        numeric = (value(flat + move)[0] - value(flat - move)[0]) / (2 * step)
        assert float(gradient[k]) == pytest.approx(numeric, rel=1e-5, abs=1e-5)


NEW = pd.DataFrame(
    {
        "person": ["p03", "p03", "nobody", "p03", "nobody"],
        "site": ["a", "z", "a", "a", "a"],
        "culture": [2, 2, 2, 99, 99],
        "t": [1.0, 2.0, 3.0, 0.5, 1.5],
        "x": [0.0, 1.0, -1.0, 2.0, 0.5],
    }
)


def test_predictions_are_conditional_means_whatever_is_known(both):
    """A known person in an unknown culture, at an unknown site, and the other way round: dense kriging."""
    fit, problem = both, both.problem
    theta = torch.tensor(fit.trained.theta)
    sigma = np.sqrt(fit.trained.sigma2)
    loadings = [fit.trained.loading, *(g.loading for g in fit.trained.further)]
    everyone = pd.concat([DATA, NEW.assign(y=0.0)], ignore_index=True)
    x = fit.model.scaling.inputs(fit.model.design.for_new(everyone.assign(person="p00")).expert)
    H = np.column_stack([x, np.ones(len(x))])
    keys = {
        "person": everyone["person"],
        "person:site": everyone["person"] + ":" + everyone["site"],
        "culture": everyone["culture"].astype(str),
    }
    C, N = np.zeros((len(H), len(H))), len(DATA)
    names = ["person", *(known.term.name for known in fit.model.levels)]
    for name, part, L in zip(names, parts_of(problem), loadings, strict=True):
        Z = H[:, part.personal.index - problem.network.tensors[-2].start] @ L
        codes = pd.factorize(keys[name])[0]
        C += (Z @ Z.T) * (codes[:, None] == codes)
    y = fit.model.scaling.response(DATA["y"].to_numpy())
    V = C[:N, :N] + sigma**2 * np.eye(N)
    weights = np.linalg.solve(V, C[:N, N:])
    away = H[N:] - weights.T @ H[:N]
    mean = H[N:] @ theta.numpy() + weights.T @ (y - H[:N] @ theta.numpy())
    variance = np.diag(C[N:, N:]) - np.sum(C[:N, N:] * weights, axis=0)
    variance += np.sum(away @ np.linalg.inv(H[:N].T @ np.linalg.solve(V, H[:N])) * away, axis=1)
    found = fit.predict(NEW, kind="subject", interval="confidence")
    np.testing.assert_allclose((found["mean"] - fit.model.scaling.y_mean) / fit.model.scaling.y_sd, mean, atol=1e-6)
    se = found["mean_se"].to_numpy() / fit.model.scaling.y_sd
    np.testing.assert_allclose(se[0], np.sqrt(variance[0]), rtol=0.02)  # parameters have a wide prior there
    # Levels never seen are a little wider than those that were estimated from few, see `widening_of`.
    assert (se[1:] > np.sqrt(variance[1:])).all()
    np.testing.assert_allclose(se[1:], np.sqrt(variance[1:]), rtol=0.35)


def test_populations_have_neither_persons_nor_cultures(both):
    found = both.predict(NEW, kind="mean", interval="confidence")
    b = both.params
    expected = b["Intercept"] + b["t"] * NEW["t"] + b["x"] * NEW["x"]
    np.testing.assert_allclose(found["mean"], expected, atol=1e-8)
    X = np.column_stack([np.ones(5), NEW["t"], NEW["x"]])
    cov = both.cov_params().to_numpy()[:3, :3]
    np.testing.assert_allclose(found["mean_se"], np.sqrt(np.einsum("ij,jk,ik->i", X, cov, X)), rtol=0.06)
    wide = both.predict(NEW, kind="mean", interval="prediction")
    assert (wide["mean_se"] > found["mean_se"] + 0.5).all()
    pd.testing.assert_series_equal(wide["mean"], found["mean"])
    rows = NEW.drop(columns=["person", "site", "culture"])
    pd.testing.assert_frame_equal(both.predict(rows, kind="mean", interval="prediction"), wide)
    population, *persons = both.curves("effects", variable="t", n_persons=3)
    assert len(persons) == 3
    assert (population.upper > population.lower).all()


def test_residuals_given_the_history_are_white(both):
    fit, problem = both, both.problem
    white = fit.resid("quantile").to_numpy()
    m = moments(problem, torch.tensor(fit.trained.theta))
    H, y, V, _ = dense(problem, torch.tensor(fit.trained.theta), entries_of(fit.problem, fit.trained)[:-1])
    r = y - H @ torch.tensor(fit.trained.theta)
    assert m.n == len(white)
    assert np.square(white).sum() == pytest.approx(float(r @ torch.linalg.solve(V, r)) / fit.trained.sigma2, rel=1e-6)


def test_effects_of_all_groupings_come_in_one_frame(both):
    effects, errors = both.random_effects, both.random_effects_se
    assert effects.index.names == ["grouping", "level"]
    assert list(dict.fromkeys(effects.index.get_level_values("grouping"))) == ["person", "person:site", "culture"]
    assert effects.loc["culture"].index.tolist() == [0, 1, 2, 3, 4]
    assert "p03:a" in effects.loc["person:site"].index
    assert errors.shape == effects.shape
    assert (errors.to_numpy()[effects.notna().to_numpy()] > 0).all()
    assert effects.loc["person:site", "t"].isna().all()


def test_the_order_of_terms_does_not_matter():
    one, two = (
        fitted(f"y ~ t + x | re: {effects}")
        for effects in ("(last[1] | culture) + (last[1, t] | person)", "(last[1, t] | person) + (last[1] | culture)")
    )
    assert one.llf == pytest.approx(two.llf, abs=1e-8)
    assert repr(one.model).count("24 persons") == 1
    pd.testing.assert_series_equal(one.params, two.params)


def test_files_hold_all_groupings(both, tmp_path):
    both.save(tmp_path / "fit.zip")
    again = mm.load(tmp_path / "fit.zip")
    for kind in ("subject", "mean"):
        pd.testing.assert_frame_equal(again.predict(NEW, kind), both.predict(NEW, kind))
    pd.testing.assert_frame_equal(again.random_effects, both.random_effects)
    assert str(again.summary()) == str(both.summary())


def test_summaries_name_the_groupings(both):
    text = re.sub(r"\|\n *", "|", str(both.summary()))
    for line in ("By person:site", "By culture", "sd(x|culture)", "sd(t|person)", "effects, culture"):
        assert line in text


def test_new_persons_learn_from_their_rows_and_from_their_culture(both):
    """As if the rows of the new person had been there, population parameters held."""
    rows = DATA[DATA["person"] == "p05"].assign(person="new")
    adapted = both.adapt(rows)
    without = fitted(CROSSED, DATA[DATA["person"] != "p05"])
    assert "new" in adapted.labels
    assert len(adapted.labels) == 25
    ask = rows.drop(columns="y").iloc[:3]
    found = adapted.predict(ask, interval="prediction")
    own = both.predict(ask.assign(person="p05"), kind="subject")["mean"]
    # p05 is there twice now, so that what is known of cultures and slopes moves a little.
    np.testing.assert_allclose(found["mean"], own, atol=0.15)
    assert (found["mean_low"] < found["mean"]).all()
    strange = both.predict(ask, kind="subject")["mean"]
    assert np.abs(found["mean"] - own).max() < 0.5 * np.abs(strange - own).max()
    same = both.adapt(DATA[DATA["person"] == "p05"])
    np.testing.assert_allclose(
        same.predict(ask.assign(person="p05"))["mean"], both.predict(ask.assign(person="p05"), kind="subject")["mean"]
    )
    assert without.nobs < both.nobs


def test_hidden_layers_and_held_out_rows():
    formula = "y ~ t + x | re: (last | person) + (last[1] | culture)"
    fit = fitted(formula, hidden=(3,), epochs=40, validation=0.2, rng=0)
    assert np.isfinite(fit.llf)
    assert {"sd(layer2.weight|person)", "sd(layer2.bias|person)", "sd(layer2.bias|culture)"} <= set(fit.params.index)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        few = DATA[DATA["person"] < "p08"]
        compared = mm.NME(formula, few, hidden=(2,)).fit(epochs=10, rng=0).comparison
        assert mm.NME(formula, few, hidden=(2,)).validate(epochs=10, rng=0).error > 0
    assert compared is not None
    assert np.isfinite(compared.errors).all()
    for kind in ("effects", "learning"):
        assert fit.curves(kind)
    low, high = (fit.predict(DATA, kind="subject", interval="prediction")[f"mean_{end}"] for end in ("low", "high"))
    assert 0.85 < ((low < DATA["y"]) & (DATA["y"] < high)).mean() <= 1.0


@pytest.mark.parametrize(
    ("effects", "options", "message"),
    [
        ("(all | person) + (last | culture)", {"hidden": (3,)}, "not for effects on other layers than the last one"),
        ("(last | person) + (bias | culture)", {"hidden": (3,)}, "write last, or last[1] for its intercept alone"),
        ("(last | person) + (last | culture)", {"hidden": (3,), "estimator": "sgd"}, "not for estimator='sgd'"),
        ("(last | person) + (nowhere | culture)", {"hidden": ()}, "unknown layer 'nowhere'"),
        ("(last | person) + (last[1, z] | culture)", {"hidden": ()}, "'z' in 'last[1, z]' is no input"),
    ],
)
def test_groupings_that_have_no_exact_likelihood_are_refused(effects, options, message):
    with pytest.raises(FormulaError, match=re.escape(message)):
        mm.NME(f"y ~ t + x | re: {effects}", DATA, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"culture": 1}, "the grouping 'culture' has one level"),
        ({"culture": range(len(DATA))}, "each of the 243 persons has one row"),
        ({"culture": DATA["person"].str.upper()}, "'person' and 'culture' have the same rows together"),
    ],
)
def test_groupings_that_tell_nothing_are_refused(change, message):
    with pytest.raises(DesignError, match=message):
        mm.NME("y ~ t + x | re: (last | person) + (last | culture)", DATA.assign(**change), hidden=())


def test_a_number_as_covariance_is_refused():
    with pytest.raises(ArgumentError, match="'diagonal', 'tensor' or 'full' with several groupings, got 2"):
        mm.NME("y ~ t + x | re: (last | person) + (last | culture)", DATA, hidden=(), cov=2)


def test_labels_of_new_rows_are_held_to_those_of_the_fit(both):
    with pytest.raises(DesignError, match="the column 'culture' of the grouping 'culture' is missing"):
        both.predict(NEW.drop(columns="culture"), kind="subject")
    with pytest.raises(DesignError, match="not the same label"):
        both.predict(NEW.assign(culture=NEW["culture"].astype(str)), kind="subject")
    gaps = NEW.assign(culture=[2.0, np.nan, 2.0, 99.0, 99.0])
    with pytest.warns(MixmoeWarning, match="missing values"):
        assert both.predict(gaps, kind="subject")["mean"].isna().tolist() == [False, True, False, False, False]


def test_drawn_responses_have_the_variance_of_all_groupings(both):
    draws = np.array([both._draw(np.random.default_rng(k)) for k in range(60)])
    with pytest.warns(mm.errors.MixmoeWarning, match="1 of the 1 subjects of the new data are not in the fit"):
        sd = both.predict(DATA.assign(person="nobody", culture=99), kind="subject", interval="prediction")["mean_se"]
    assert np.sqrt(draws.var(axis=0).mean()) == pytest.approx(np.sqrt((sd**2).mean()), rel=0.2)


def test_too_many_crossed_effects_are_refused(monkeypatch):
    monkeypatch.setattr("mixmoe.neural.groupings.MOST_CROSSED", 4)
    with pytest.raises(DesignError, match="have 5 effects beside those of the largest one; at most 4"):
        mm.NME("y ~ t + x | re: (last[1] | person) + (last[1] | culture)", DATA, hidden=())
