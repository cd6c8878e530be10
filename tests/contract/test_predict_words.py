"""The same calls of `predict` on every family: the same words, the same columns, or a refusal with its reason."""

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError, MixmoeWarning

ENDS = ("", "_se", "_low", "_high")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    unit = np.repeat(np.arange(40), 5)
    t, x, z = np.tile(np.linspace(0, 1, 5), 40) + rng.uniform(0, 0.01, 200), rng.normal(size=200), rng.normal(size=40)
    second = (rng.random(40) < 1 / (1 + np.exp(-z)))[unit]
    y = np.where(second, 3 + x, -1 - x) + 0.5 * rng.normal(size=40)[unit] + 0.4 * rng.normal(size=200)
    return pd.DataFrame({"y": y, "t": t, "x": x, "z": z[unit], "id": unit})


@pytest.fixture(scope="module")
def memoe(data):
    return mm.fit("y ~ x | gate: z | re: (1 | id)", data, experts=2, rng=0, starts=5)


@pytest.fixture(scope="module")
def rows(data):
    return mm.fit("y ~ x | gate: z", data, experts=2, rng=0, starts=5)


@pytest.fixture(scope="module")
def vcmoe(data):
    return mm.fit("y ~ x | gate: z | vary: t", data, experts=2, rng=0, starts=3, bandwidth=0.5, n_grid=11)


@pytest.fixture(scope="module")
def nme(data):
    pytest.importorskip("torch")
    return mm.fit("y ~ x | re: (last | id)", data, hidden=(), rng=0, baselines=False)


@pytest.fixture(params=["memoe", "rows", "vcmoe", "nme"])
def fit(request):
    return request.getfixturevalue(request.param)


def stems(fit, kind):
    """Quantities that a kind of prediction has."""
    each = range(1, fit.model.n_experts + 1) if fit.model.spec.has_experts else ()
    parts = {"probabilities": [f"probability{k}" for k in each], "experts": [f"expert{k}" for k in each]}
    parts |= {"mean": ["mean"], "subject": ["mean"]}
    return parts[kind] if kind != "all" else [*parts["probabilities"], *parts["experts"], "mean"]


@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize("kind", ["all", "mean", "experts", "probabilities", "subject"])
def test_kinds_have_the_same_columns_in_all_families(fit, data, kind, history):
    new = data.iloc[5:15]
    past = new if history else None
    if kind in ("experts", "probabilities") and not fit.model.spec.has_experts:
        with pytest.raises(ArgumentError, match=rf"NME has no predict\(kind='{kind}'\): a network has no experts"):
            fit.predict(new.drop(columns="y"), kind=kind, history=past)
        return
    found = fit.predict(new.drop(columns="y"), kind=kind, history=past)
    assert list(found) == stems(fit, kind)
    assert found.index.equals(new.index)
    assert np.isfinite(found).all(axis=None)


def test_the_default_is_everything(fit, data):
    pd.testing.assert_frame_equal(fit.predict(data), fit.predict(data, kind="all", history=None, interval=None))
    pd.testing.assert_frame_equal(fit.predict(), fit.predict(data))


@pytest.mark.parametrize("kind", ["mean", "subject"])
def test_limits_of_a_new_response(fit, data, kind):
    found = fit.predict(data, kind=kind, interval="prediction", alpha=0.2)
    assert list(found) == [f"mean{end}" for end in ENDS]
    np.testing.assert_allclose(found["mean"], fit.predict(data, kind=kind)["mean"], rtol=1e-9)
    assert 0.65 < data["y"].between(found["mean_low"], found["mean_high"]).mean() < 0.93
    wider = fit.predict(data, kind=kind, interval="prediction", alpha=0.02)
    assert (wider["mean_high"] > found["mean_high"]).all()
    assert (wider["mean_low"] < found["mean_low"]).all()
    everything = fit.predict(data, interval="prediction", alpha=0.2)
    assert [name for name in everything if name.endswith(ENDS[1:])] == ["mean_se", "mean_low", "mean_high"]


@pytest.mark.parametrize("kind", ["all", "mean", "subject"])
def test_limits_of_what_is_estimated(fit, data, kind):
    if fit.model.spec.name == "VCMoE":
        with pytest.raises(ArgumentError, match=r"VCMoE has no predict\(interval='confidence'\): .*bias.* use bands"):
            fit.predict(data, kind=kind, interval="confidence")
        return
    found = fit.predict(data, kind=kind, interval="confidence")
    assert list(found) == [f"{stem}{end}" for stem in stems(fit, kind) for end in ENDS]
    points = fit.predict(data, kind=kind)
    pd.testing.assert_frame_equal(found[list(points)], points, rtol=1e-9)
    wide = fit.predict(data, kind="mean" if kind == "all" else kind, interval="prediction")
    assert ((wide["mean_high"] - wide["mean_low"]) > (found["mean_high"] - found["mean_low"])).mean() > 0.95


@pytest.mark.parametrize("kind", ["experts", "probabilities"])
def test_only_responses_have_limits_of_a_response(fit, data, kind):
    with pytest.raises(ArgumentError, match=f"interval='prediction' holds a new response, .* got kind='{kind}'"):
        fit.predict(data, kind=kind, interval="prediction")


def test_words_of_other_times_are_told(fit, data):
    for kind in ("marginal", "posterior", "interval"):
        with pytest.raises(ArgumentError, match=f"kind must be one of 'all', 'mean', .*, got '{kind}'"):
            fit.predict(data, kind=kind)
    for interval in (True, False, "wide"):
        with pytest.raises(
            ArgumentError, match=f"interval must be None, 'confidence' or 'prediction', got {interval!r}"
        ):
            fit.predict(data, interval=interval)


def test_a_history_makes_probabilities_posterior(fit, data):
    if not fit.model.spec.has_experts:
        pytest.skip("a network has no probabilities of experts")
    found = fit.predict(data, kind="probabilities", history=data)
    own = fit.responsibilities
    expected = own.loc[data["id"]].to_numpy() if len(own) < len(data) else own.to_numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not np.allclose(found, fit.predict(data, kind="probabilities"))
    with pytest.raises(ArgumentError, match="posterior probabilities have no limits"):
        fit.predict(data, kind="probabilities", history=data, interval="confidence")


def test_the_subject_is_known_by_her_history_or_by_the_fit(fit, data):
    own, fitted = fit.predict(kind="subject")["mean"], fit.fitted("subject")
    np.testing.assert_allclose(own, fitted, atol=1e-8)
    np.testing.assert_allclose(fit.predict(data, kind="subject", history=data)["mean"], fitted, atol=1e-5)
    np.testing.assert_allclose(fit.predict(data, history=data)["mean"], fitted, atol=1e-5)
    np.testing.assert_allclose(fit.predict(kind="mean")["mean"], fit.fitted("mean"), atol=1e-8)
    np.testing.assert_allclose(fit.resid("subject"), data["y"] - fitted, atol=1e-8)
    strangers = data.assign(id=data["id"] + 1000)
    if fit.model.design.names.group is not None:
        n = strangers["id"].nunique()
        with pytest.warns(
            MixmoeWarning, match=f"'subject': {n} of the {n} subjects of the new data are not in the fit"
        ):
            unknown = fit.predict(strangers, kind="subject")["mean"]
        some = pd.concat([data, strangers.iloc[:1]])
        with pytest.warns(MixmoeWarning, match=f"kind='subject': 1 of the {n + 1} subjects of the new data are not in"):
            fit.predict(some, kind="subject")
        np.testing.assert_allclose(unknown, fit.predict(data, kind="mean")["mean"], rtol=1e-6)


@pytest.mark.parametrize("name", ["rows", "vcmoe"])
def test_rows_have_no_history_but_themselves(request, data, name):
    fit = request.getfixturevalue(name)
    for past in (data.iloc[:5], data.iloc[5:10]):
        with pytest.raises(ArgumentError, match=r"has no subjects: .* history= must be the rows to predict \(10, with"):
            fit.predict(data.iloc[:10], kind="probabilities", history=past)
    with pytest.raises(ArgumentError, match="the same index"):
        fit.predict(data.iloc[:10], kind="probabilities", history=data.iloc[10:20])
    with pytest.raises(mm.errors.DesignError, match="gate"):
        fit.predict(data.iloc[:10], kind="probabilities", history=data.iloc[:10].assign(z=7.0))


def test_categories_of_a_network_have_the_columns_of_an_ordinal_response(data):
    pytest.importorskip("torch")
    named = data.assign(y=pd.cut(data["y"], [-np.inf, 1, np.inf], labels=["low", "high"]).astype(str))
    network = mm.fit("y ~ x | re: (bias | id)", named, hidden=(), rng=0, baselines=False)
    found = network.predict(named, kind="subject", scale="categories", interval="confidence")
    assert list(found) == [f"P({level}){end}" for level in network.model.design.response_levels for end in ENDS]
    np.testing.assert_allclose(found["P(high)"] + found["P(low)"], 1.0)
    second = network.model.design.response_levels[-1]
    means = network.predict(named, kind="subject")["mean"]
    np.testing.assert_allclose(means, found[f"P({second})"])
    limits = network.predict(named, kind="mean", interval="prediction")
    assert set(limits["mean_low"]) | set(limits["mean_high"]) <= {0.0, 1.0}


def test_adapted_persons_predict_with_the_same_words(nme, data):
    first, rest = data[data["t"] < 0.4], data[data["t"] > 0.4]
    adapted = nme.adapt(first)
    for interval in (None, "confidence", "prediction"):
        ours = adapted.predict(rest, kind="subject", interval=interval)
        pd.testing.assert_frame_equal(ours, nme.predict(rest, kind="subject", history=first, interval=interval))
    pd.testing.assert_frame_equal(adapted.predict(rest), nme.predict(rest, history=first))


def test_confidence_limits_of_a_networks_mean_are_those_of_the_mixed_model(nme, data):
    mixed = mm.fit("y ~ x | re: (1 + x | id)", data, experts=1, cov_type="nonrobust")
    ours, theirs = (fit.predict(data, kind="mean", interval="confidence") for fit in (nme, mixed))
    np.testing.assert_allclose(ours["mean"], theirs["mean"], atol=1e-3)
    np.testing.assert_allclose(ours["mean_se"], theirs["mean_se"], rtol=0.1)
