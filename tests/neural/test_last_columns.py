"""Effects on some columns of the last layer of a linear network: the mixed model with these random effects."""

import warnings

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import FormulaError, MixmoeWarning

pytest.importorskip("torch")


def rows(n_persons=25, n_rows=8, seed=0):
    rng = np.random.default_rng(seed)
    id_ = np.repeat(np.arange(n_persons), n_rows)
    frame = pd.DataFrame({"id": id_, "t": rng.uniform(1, 6, len(id_)), "x": rng.normal(2, 3, len(id_))})
    frame["g"] = np.array(list("abc"))[rng.integers(0, 3, len(id_))]
    b = rng.multivariate_normal([0, 0], [[0.5, 0.1], [0.1, 0.2]], n_persons)
    frame["y"] = 1 + b[id_, 0] + (0.5 + b[id_, 1]) * frame["t"] - 0.3 * frame["x"] + 0.4 * rng.normal(size=len(id_))
    return frame


DATA = rows()


def network(effects, formula="y ~ t + x + g"):
    return mm.fit(f"{formula} | re: ({effects} | id)", DATA, hidden=(), baselines=False)


def mixed(effects, formula="y ~ t + x + g"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        return mm.fit(f"{formula} | re: ({effects} | id)", DATA, experts=1)


@pytest.mark.parametrize(("columns", "effects"), [("1, t", "1 + t"), ("1", "1"), ("1, t, x", "1 + t + x")])
def test_columns_of_the_last_layer_are_random_effects(columns, effects):
    one, two = network(f"last[{columns}]"), mixed(effects)
    assert one.llf == pytest.approx(two.llf, abs=1e-5)
    assert one.df_model == two.df_model
    np.testing.assert_allclose(one.params.to_numpy(), two.params.to_numpy(), rtol=2e-3, atol=2e-3)
    assert [name.replace("sd(", "sd1(").replace("corr(", "corr1(") for name in one.params.index if "(" in name][-2:]
    known = [fit.predict(DATA, kind="subject")["mean"] for fit in (one, two)]
    np.testing.assert_allclose(*known, atol=1e-3)


def test_a_network_without_inputs_has_an_intercept():
    one, two = network("last", "y ~ 1"), mixed("1", "y ~ 1")
    assert one.llf == pytest.approx(two.llf, abs=1e-5)
    np.testing.assert_allclose(one.params.to_numpy(), two.params.to_numpy(), rtol=2e-3)


def test_the_intercept_of_the_last_layer_may_be_all_that_is_personal():
    found = mm.NME("y ~ t + x | re: (last[1] | id)", DATA, hidden=(3,)).personal
    assert [spec.name for spec in found.tensors] == ["layer2.bias"]
    assert found.q == 1


def test_the_double_bar_holds_for_some_columns():
    one = mm.fit("y ~ t + x | re: (last[1, t] || id)", DATA, hidden=(), baselines=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        two = mm.fit("y ~ t + x | re: (1 + t || id)", DATA, experts=1)
    assert one.llf == pytest.approx(two.llf, abs=1e-5)
    assert one.df_model == two.df_model


def test_effects_and_limits_are_those_of_the_named_columns(tmp_path):
    fit = network("last[1, t]")
    assert list(fit.random_effects.columns) == ["Intercept", "t"]
    assert fit.random_effects_se.shape == (25, 2)
    low, high = (fit.predict(DATA, kind="subject", interval="prediction")[f"mean_{end}"] for end in ("low", "high"))
    assert 0.85 < ((low < DATA["y"]) & (DATA["y"] < high)).mean() <= 1.0
    path = tmp_path / "fit.zip"
    fit.save(path)
    again = mm.load(path)
    np.testing.assert_array_equal(again.params, fit.params)
    new = DATA.assign(id=DATA["id"] + 20)  # some known, some not
    np.testing.assert_allclose(again.predict(new), fit.predict(new), atol=1e-12)


def test_effects_are_those_of_the_mixed_model_on_the_users_scale():
    fit, peer = network("last[1, t]"), mixed("1 + t")
    found, expected = fit.random_effects, peer.random_effects["mixed"]
    np.testing.assert_allclose(found, expected[["Intercept", "t"]], atol=1e-4)
    np.testing.assert_allclose(fit.random_effects_se, expected[["Intercept_se", "t_se"]], atol=1e-4)
    new = DATA[DATA["id"] == DATA["id"].iloc[0]]
    np.testing.assert_allclose(fit.adapt(new).effects(), found.loc[[new["id"].iloc[0]]], atol=1e-6)


def test_all_columns_of_a_category_go_together():
    fit = network("last[1, g]")
    assert list(fit.random_effects.columns) == ["Intercept", "g[T.b]", "g[T.c]"]
    np.testing.assert_allclose(fit.llf, mixed("1 + g").llf, atol=1e-4)


@pytest.mark.parametrize(
    ("effects", "options", "message"),
    [
        ("last[1, z]", {"hidden": ()}, "'z' in 'last\\[1, z\\]' is no input of the network; it has 1, t, x"),
        ("last[t]", {"hidden": ()}, "lacks the 1: a slope that differs between persons"),
        ("last[1, t]", {"hidden": (3,)}, "linear network with a Gaussian response only; give hidden=\\(\\)"),
    ],
)
def test_columns_that_do_not_exist_are_refused(effects, options, message):
    with pytest.raises(FormulaError, match=message):
        mm.NME(f"y ~ t + x | re: ({effects} | id)", DATA, **options)


def test_the_summary_says_what_is_personal():
    assert "layer1.weight (1 of 4), layer1.bias" in str(network("last[1, t]").summary())
