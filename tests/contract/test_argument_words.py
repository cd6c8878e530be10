"""The same arguments in all families: columns beside the formula by name, array and Series; levels, progress, seeds.

Each call is made on a MEMoE, a VCMoE and an NME: the same words lead to the result of the column's name, or to a
refusal with the reason of the family.
"""

import inspect
from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError, ConvergenceWarning, DesignError
from mixmoe.families import families
from mixmoe.mixture_results import MoEResults

FORMULAS = {"MEMoE": "y ~ x | re: (1 | id)", "VCMoE": "y ~ x | vary: u"}
OPTIONS = {"MEMoE": {}, "VCMoE": {"bandwidth": 0.6, "n_grid": 7}}
ROWS = 120
WORDS = ("offset", "weights", "cluster")  # and trials, time, of fewer models
pytestmark = pytest.mark.filterwarnings("ignore:There are only", "ignore:.*clusters have rank")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    subject = np.repeat(np.arange(ROWS // 3), 3)
    frame = pd.DataFrame({"id": subject, "site": [f"s{i}" for i in subject // 2], "u": rng.uniform(size=ROWS)})
    frame.loc[[1, 2], "u"] = 0.0, 1.0  # rows with weight reach over the whole index
    frame["x"], frame["size"] = rng.normal(size=ROWS), rng.uniform(-0.3, 0.3, size=ROWS)
    frame["w"] = np.where(np.arange(ROWS) % 5 == 0, 0.0, rng.uniform(0.5, 2.0, size=ROWS))
    frame["m"] = rng.integers(3, 7, size=ROWS)
    eta = frame["x"] * 0.5 + frame["size"] + rng.normal(size=ROWS // 3)[subject] * 0.6
    frame["y"] = rng.poisson(np.exp(eta))
    frame["s"] = rng.binomial(frame["m"], 1.0 / (1.0 + np.exp(-eta)))
    frame["t"] = np.tile([0.0, 1.0, 2.5], ROWS // 3)
    return frame.set_axis([f"r{i}" for i in range(ROWS)])


def fit(name, data, **options):
    return mm.fit(FORMULAS[name], data, 1, rng=0, **{"family": "poisson", **OPTIONS[name], **options})


@pytest.fixture(scope="module")
def by_name(data):
    return {name: fit(name, data, offset="size", weights="w", cluster="site") for name in FORMULAS}


def as_arrays(data):
    return {"offset": data["size"].to_numpy(), "weights": data["w"].tolist(), "cluster": data["site"].to_numpy()}


def as_series(data):
    """Series in other orders than the data, with names of their own."""
    columns = zip(WORDS, ("size", "w", "site"), strict=True)
    return {word: data[c].rename("other").sample(frac=1, random_state=1) for word, c in columns}


def assert_same(one, other):
    np.testing.assert_allclose(one.params, other.params, rtol=1e-10)
    np.testing.assert_allclose(one.bse, other.bse, rtol=1e-8)
    assert (one.nobs, one.n_units, one.bic) == pytest.approx((other.nobs, other.n_units, other.bic))
    assert one.cov_type == other.cov_type == "cluster"


@pytest.mark.parametrize("form", [as_arrays, as_series])
@pytest.mark.parametrize("name", FORMULAS)
def test_columns_by_array_are_columns_by_name(name, form, data, by_name, tmp_path):
    found = fit(name, data, **form(data))
    assert_same(found, by_name[name])
    assert [found.model.settings[word] for word in WORDS] == list(WORDS)
    found.save(tmp_path / "f.mixmoe")
    assert_same(mm.load(tmp_path / "f.mixmoe").with_cov("cluster"), by_name[name])
    with pytest.raises(DesignError, match=r"lack the column 'offset' \(offset\), the values that were passed as an"):
        found.predict(data)
    new = data.assign(offset=data["size"])
    pd.testing.assert_frame_equal(found.predict(new), by_name[name].predict(data), rtol=1e-8)
    with pytest.raises(DesignError, match="lack the column 'weights'"):
        found.loglik_of(new)
    assert found.loglik_of(new.assign(weights=data["w"])) == pytest.approx(found.llf, rel=1e-6)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_column_of_the_data_is_itself(name, data, by_name):
    found = fit(name, data, offset=data["size"], weights=data["w"][::-1], cluster=data["site"])
    assert_same(found, by_name[name])
    assert [found.model.settings[word] for word in WORDS] == ["size", "w", "site"]
    assert len(found.predict(data)) == ROWS


def test_nested_fits_may_name_their_columns_otherwise(data):
    """The likelihood ratio compares the values of columns; clusters play no part in it."""
    small = mm.fit("y ~ 1 | re: (1 | id)", data, 1, family="poisson", rng=0, **as_arrays(data))
    large = fit("MEMoE", data, offset="size", weights="w")
    assert large.lr_test(small).statistic == pytest.approx(2 * (large.llf - small.llf))
    other = fit("MEMoE", data, offset=data["size"] + 0.1 * data["x"], weights="w")
    assert "differ in weights, offset or the like" in other.lr_test(small).reason


@pytest.mark.parametrize("kind", ["dict", "polars"])
@pytest.mark.parametrize("name", FORMULAS)
def test_any_frame_takes_arrays(name, kind, data, by_name):
    frame = data.to_dict("list")
    frame = pytest.importorskip("polars").DataFrame(frame) if kind == "polars" else frame
    before = list(frame) if kind == "dict" else frame.columns
    assert_same(fit(name, frame, **as_arrays(data)), by_name[name])
    assert (list(frame) if kind == "dict" else frame.columns) == before


@pytest.mark.parametrize("name", FORMULAS)
def test_another_column_of_the_name_stays_itself(name, data, by_name):
    clash = data.assign(weights=1.0, cluster=0, offset=data["x"])
    assert_same(fit(name, clash, **as_arrays(data)), by_name[name])


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"offset": d["size"].set_axis(range(ROWS))}, "offset has no single value for the row 'r0' of the"),
        (lambda d: {"weights": d["w"].set_axis(["r0", *d.index[:-1]])}, "weights has no single value for the row"),
        (lambda d: {"cluster": d["site"].to_numpy()[1:]}, f"one value for each of the {ROWS} rows .* got {ROWS - 1}"),
        (lambda d: {"cluster": d[["site"]].to_numpy()}, rf"cluster must have one value .* got shape \({ROWS}, 1\)"),
        (lambda d: {"weights": 1.0}, r"weights must be the name of a column, or an array or Series .* got 1\.0"),
        (lambda d: {"cluster": {0: 1}}, "cluster must be the name of a column, .* got a dict; for values by subject"),
    ],
)
def test_what_has_no_place_is_refused(name, change, message, data):
    with pytest.raises(ArgumentError, match=message):
        fit(name, data, **change(data))


@pytest.mark.parametrize("name", FORMULAS)
def test_rows_of_weight_zero_are_not_counted(name, data, by_name):
    counted = data[data["w"] > 0]
    assert_same(fit(name, counted, offset="size", weights="w", cluster="site"), by_name[name])
    assert by_name[name].nobs == len(counted) == 96
    gone = fit(name, data, weights=(data["id"] > 4).astype(float), cluster="site")  # whole subjects, whole clusters
    assert gone.nobs == ROWS - 15
    assert gone.n_units == {"MEMoE": 35, "VCMoE": 18}[name]


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize(("value", "shown"), [(-1.0, "-1"), (np.inf, "inf"), (np.nan, "a missing value")])
def test_impossible_weights_name_the_row(name, value, shown, data):
    weights = data["w"].to_numpy().copy()
    weights[7] = value
    with pytest.raises(DesignError, match=f"weights must be finite and not negative, got {shown} in row 'r7'"):
        fit(name, data, weights=weights)
    with pytest.raises(DesignError, match=f"weights must be positive in some rows, got {ROWS} zeros"):
        fit(name, data, weights=np.zeros(ROWS))


@pytest.mark.parametrize("name", FORMULAS)
def test_trials_by_array(name, data):
    formula = FORMULAS[name].replace("y ~", "s ~")
    options = {"family": "binomial", "rng": 0, **OPTIONS[name]}
    one, other = (mm.fit(formula, data, 1, trials=m, **options) for m in ("m", data["m"].to_numpy()))
    np.testing.assert_allclose(one.params, other.params, rtol=1e-10)
    with pytest.raises(ArgumentError, match="trials='m' is for family='binomial', got family='poisson'"):
        fit(name, data, trials=data["m"])


def test_times_by_array(data):
    options = {"errors": "car1", "rng": 0}
    fits = [mm.fit("x ~ u | re: (0 | id)", data, 1, time=t, **options) for t in ("t", data["t"].to_numpy())]
    assert fits[0].llf == pytest.approx(fits[1].llf, rel=1e-10)
    with pytest.raises(ArgumentError, match="VCMoE has no time=: "):
        fit("VCMoE", data, time="t")


def test_clusters_of_the_model_serve_its_folds(data):
    one, other = (
        mm.select(FORMULAS["MEMoE"], data, 1, family="poisson", folds=3, rng=0, weights=w, cluster=c).candidates[0]
        for w, c in (("w", "site"), (data["w"].to_numpy(), data["site"].to_numpy()))
    )
    assert one.cv == pytest.approx(other.cv)
    assert one.cv != pytest.approx(
        mm.select(FORMULAS["MEMoE"], data, 1, family="poisson", folds=3, rng=0, weights="w").candidates[0].cv
    )


def test_a_subject_lies_in_one_cluster(data):
    with pytest.raises(ArgumentError, match="subject 0 lies in more than one cluster"):
        fit("MEMoE", data, cluster=np.arange(ROWS))


@pytest.mark.parametrize("word", ["cluster", "trials", "time"])
def test_networks_say_why_they_have_no_such_column(word, data):
    pytest.importorskip("torch")
    for value in ("w", data["w"].to_numpy()):
        with pytest.raises(ArgumentError, match=f"NME has no {word}=: ") as found:
            mm.fit("x ~ u | re: (bias | id)", data, hidden=(), **{word: value})
        assert found.value.args[0].endswith(families()["NME"].spec.lacks[word])


# ---- levels, progress, seeds, workers ----


def public_calls():
    """Every public method of models and results, and the functions of the package, by name."""
    pytest.importorskip("torch")
    owners = [*families().values(), MoEResults, mm.MEMoEResults, mm.VCMoEResults, mm.NMEResults, mm.Selection]
    found = {f"{o.__name__}.{name}": getattr(o, name) for o in owners for name in dir(o) if not name.startswith("_")}
    found |= {"fit": mm.fit, "select": mm.select, "load": mm.load}
    return MappingProxyType({name: call for name, call in found.items() if callable(call)})


def test_no_argument_has_a_second_word():
    aliases = {"level", "confidence", "seed", "random_state", "jobs", "workers", "verbose", "resume", "clusters"}
    for name, call in public_calls().items():
        if name == "NME.results":  # which keeps the seed of a fit that was made
            continue
        parameters = inspect.signature(call).parameters
        assert not aliases & set(parameters), name
        defaults = {"alpha": 0.05, "progress": None, "n_jobs": 1, "checkpoint": None}
        for word, default in defaults.items():
            if word in parameters:
                assert parameters[word].default in (default, inspect.Parameter.empty), f"{name}({word}=)"


@pytest.mark.parametrize("name", FORMULAS)
def test_progress_is_silent_outside_a_terminal(name, data, capsys):
    fit(name, data)
    assert capsys.readouterr().err == ""


def test_progress_of_a_network(data, capsys):
    pytest.importorskip("torch")
    for progress, shown in ((None, False), (True, True)):
        with pytest.warns(ConvergenceWarning):  # five epochs are too few
            mm.fit("x ~ u | re: (all | id)", data, hidden=(2,), epochs=5, baselines=False, rng=0, progress=progress)
        assert ("epochs" in capsys.readouterr().err) is shown


def test_levels_are_alpha(by_name):
    wide, narrow = (by_name["VCMoE"].bands(alpha=alpha, rng=0) for alpha in (0.01, 0.2))
    assert (wide["band_low"] < narrow["band_low"]).all()
    half = (wide["conf_high"] - wide["conf_low"]) / (narrow["conf_high"] - narrow["conf_low"])
    assert (half > 2.5758293 / 1.2815516).all()  # of normal limits; those of t are wider
    with pytest.raises(ArgumentError, match="alpha must be a number between 0 and 1"):
        by_name["VCMoE"].bands(alpha=95)
    assert by_name["MEMoE"].conf_int(alpha=0.2).shape == by_name["MEMoE"].conf_int().shape
