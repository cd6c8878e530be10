"""NME as a user has it: special cases that must collapse, every family, prediction, adaption, files, bad input."""

import re
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError, DesignError, FormulaError
from tests.neural.names import of_one_expert

torch = pytest.importorskip("torch")

from mixmoe.neural.displays import held_out_error  # noqa: E402
from mixmoe.neural.estimators.linearised import fit_laplace  # noqa: E402
from mixmoe.neural.estimators.trained import Control  # noqa: E402

WIDE = {"hidden": (10,)}
FAST = {"epochs": 150, "baselines": False, "rng": 0}


def quiet(formula, data, **options):
    """A fit whose few epochs need not converge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mm.errors.MixmoeWarning)
        return mm.fit(formula, data, **{**WIDE, **FAST, **options} if "network" not in options else {**FAST, **options})


@pytest.fixture(scope="module")
def orthodont():
    return mm.datasets.load("orthodont").rename(columns={"subject": "id"})


@pytest.fixture(scope="module")
def curved():
    """Persons whose response shifts along a bent input."""
    rng = np.random.default_rng(1)
    codes = np.repeat(np.arange(30), rng.integers(8, 16, 30))
    x = rng.normal(size=(len(codes), 2))
    b = 0.8 * rng.normal(size=30)
    y = 2.0 * np.tanh(x[:, 0] + b[codes]) + 0.5 * x[:, 1] + 0.2 * rng.normal(size=len(codes))
    names = np.array([f"p{k:02d}" for k in range(30)])
    frame = pd.DataFrame(x, columns=["x1", "x2"]).assign(y=y + 5.0, id=names[codes])
    return frame.sample(frac=1.0, random_state=0)


@pytest.fixture(scope="module")
def sequences():
    """Three states, persons with own transitions, two sessions each, one of them of one row now and then."""
    rng = np.random.default_rng(2)
    rows = []
    for person in range(25):
        table = rng.normal(size=(3, 3)) * 0.8 + np.eye(3)
        for session in range(2):
            state, length = 0, 1 if session and person % 5 == 0 else int(rng.integers(8, 14))
            for day in range(length):
                x = rng.normal()
                logits = table[state] + np.array([0.0, x, -x])
                state = rng.choice(3, p=np.exp(logits) / np.exp(logits).sum())
                rows.append((person, session, day, x, "abc"[state]))
    return pd.DataFrame(rows, columns=["id", "session", "day", "x", "state"])


@pytest.fixture(scope="module")
def deep(curved):
    return quiet("y ~ x1 + x2 | re: (first + last | id)", curved, hidden=(6, 3), epochs=400)


@pytest.fixture(scope="module")
def chain(sequences):
    return quiet("state ~ x | re: (transitions | id) | seq: day / session", sequences, hidden=(), epochs=120)


@pytest.mark.parametrize("layers", ["last", "all", "first", "bias"])
def test_linear_network_is_the_mixed_model(orthodont, layers):
    formula, effects = ("distance ~ age + sex", "1") if layers == "bias" else ("distance ~ age", "1 + age")
    ours = mm.fit(f"{formula} | re: ({layers} | id)", orthodont, hidden=(), rng=0, baselines=False)
    theirs = mm.fit(f"{formula} | re: ({effects} | id)", orthodont, experts=1, cov_type="nonrobust", rng=0)
    assert of_one_expert(ours.params.index) == list(theirs.params.index)
    np.testing.assert_allclose(ours.params, theirs.params, rtol=1e-4)
    np.testing.assert_allclose(ours.bse, theirs.bse, rtol=1e-3)
    assert ours.llf == pytest.approx(theirs.llf, abs=1e-5)
    assert ours.converged


def test_linear_network_on_sleepstudy_is_lme4():
    data = mm.datasets.load("sleepstudy")
    fit = mm.fit("reaction ~ days | re: (all | subject)", data, hidden=(), rng=0, baselines=False)
    assert fit.llf == pytest.approx(-875.9697, abs=1e-3)  # lme4, REML = FALSE
    sds = fit.params[["sd(Intercept|subject)", "sd(days|subject)", "sigma"]]
    np.testing.assert_allclose(sds, [23.7806, 5.7168, 25.5918], rtol=1e-3)


def test_laplace_updates_reach_the_maximum_that_the_exact_way_finds(orthodont):
    exact = mm.fit("distance ~ age | re: (all | id)", orthodont, hidden=(), cov="diagonal", rng=0, baselines=False)
    model = exact.model
    found = fit_laplace(model.problem, Control(epochs=1500), np.zeros(2), np.random.default_rng(0))
    np.testing.assert_allclose(found.theta, exact.trained.theta, atol=2e-3)
    np.testing.assert_allclose(found.covariance, exact.trained.covariance, rtol=0.03, atol=1e-3)
    assert found.loglik == pytest.approx(exact.trained.loglik, abs=0.01)


@pytest.mark.parametrize("seed", [0, 1])
def test_sgd_is_the_published_rule(orthodont, seed):
    model = mm.NME("distance ~ age | re: (all | id)", orthodont, hidden=(), estimator="sgd")
    fit = model.fit(epochs=600, annealing=0.98, validation=0.25, rng=seed, baselines=False)  # the last of four visits
    assert fit.trained.sigma2 == pytest.approx(0.138, rel=0.05)
    assert fit.trained.s[1] == pytest.approx(0.42, rel=0.05)
    assert fit.trained.trace.best == pytest.approx(170, rel=0.05)


@pytest.mark.parametrize("cov", ["diagonal", "tensor", 2])
@pytest.mark.parametrize("layers", ["first", "all", "layer[2]", "bias", "layer1.bias + last"])
def test_every_choice_of_layers_and_covariance_runs(curved, layers, cov):
    fit = quiet(f"y ~ x1 + x2 | re: ({layers} | id)", curved, hidden=(4, 3), cov=cov, epochs=40)
    assert np.isfinite(fit.params).all()
    assert np.isfinite(fit.llf)
    assert fit.random_effects.shape == (30, fit.model.personal.q)


def test_deep_effects_beat_the_generic_network(curved, deep):
    generic = quiet("y ~ x1 + x2 | re: (0 | id)", curved, hidden=(6, 3), epochs=400)
    errors = [((f.predict(curved, "subject")["mean"] - curved.y) ** 2).mean() for f in (deep, generic)]
    assert errors[0] < 0.4 * errors[1]
    assert np.sqrt(errors[0]) < 0.3


def test_predictions_keep_the_order_of_the_rows(curved, deep):
    frame = deep.predict(curved, "subject", interval="prediction")
    assert frame.index.equals(curved.index)
    assert list(frame.columns) == ["mean", "mean_se", "mean_low", "mean_high"]
    shuffled = curved.sample(frac=1.0, random_state=3)
    pd.testing.assert_frame_equal(
        deep.predict(shuffled, "subject", interval="prediction").loc[curved.index], frame, rtol=1e-9
    )
    np.testing.assert_allclose(deep.fittedvalues, frame["mean"], rtol=1e-9)
    inside = ((curved.y > frame["mean_low"]) & (curved.y < frame["mean_high"])).mean()
    assert 0.9 < inside <= 1.0


def test_unknown_persons_have_wider_intervals_and_adapting_narrows_them(curved, deep):
    new = curved[curved.id == "p03"].assign(id="new")
    with pytest.warns(mm.errors.MixmoeWarning, match="are not in the fit"):
        unknown = deep.predict(new, "subject", interval="prediction")
    known = deep.adapt(new).predict(new, "subject", interval="prediction")
    pd.testing.assert_frame_equal(deep.predict(new, "subject", interval="prediction", history=new), known)
    widths = [frame["mean_high"] - frame["mean_low"] for frame in (unknown, known)]
    assert (widths[0] > widths[1]).mean() > 0.9
    own = deep.predict(curved[curved.id == "p03"], "subject", interval="prediction")
    np.testing.assert_allclose(known["mean"], own["mean"], atol=0.02)
    np.testing.assert_allclose(deep.predict(new)["mean"], unknown["mean"])


def test_adapting_a_known_person_of_a_linear_network_gives_her_effects(orthodont):
    fit = mm.fit("distance ~ age | re: (last | id)", orthodont, hidden=(), rng=0, baselines=False)
    again = fit.adapt(orthodont[orthodont.id == "M05"]).effects()
    np.testing.assert_allclose(again.loc["M05"], fit.random_effects.loc["M05"], atol=1e-8)


def test_a_fit_is_the_same_for_the_same_rng(curved):
    one, two = (quiet("y ~ x1 | re: (last | id)", curved, hidden=(3,), epochs=30, rng=7) for _ in range(2))
    pd.testing.assert_series_equal(one.params, two.params)


def test_units_of_the_response_change_units_only(curved):
    one = quiet("y ~ x1 | re: (last | id)", curved, hidden=(3,), epochs=60)
    two = quiet("y ~ x1 | re: (last | id)", curved.assign(y=curved.y * 1e6), hidden=(3,), epochs=60)
    assert two.params["sigma"] == pytest.approx(1e6 * one.params["sigma"], rel=1e-6)
    assert two.llf == pytest.approx(one.llf - len(curved) * np.log(1e6), rel=1e-6)


def test_validation_keeps_the_best_epoch_and_uses_all_rows_for_effects(curved):
    fit = quiet("y ~ x1 + x2 | re: (first | id)", curved, hidden=(5,), validation=0.25, epochs=300)
    seen = fit.trained.trace.validation
    assert fit.trained.trace.best == np.nanargmin(np.where(np.arange(len(seen)) >= 60, seen, np.inf))
    assert fit.problem.validation.n_rows > 50
    assert held_out_error(fit.problem, fit.trained) == pytest.approx(seen.min(), rel=0.5)
    assert fit.persons.problem.train.n_rows == len(curved)


@pytest.mark.parametrize("levels", [2, 3])
def test_categories(curved, levels):
    response = pd.qcut(curved.y, levels, labels=list("uvw")[:levels])
    data = curved.assign(y=response)
    fit = quiet("y ~ x1 + x2 | re: (bias | id)", data, hidden=(4,))
    assert fit.model.family == {2: "binary", 3: "multiclass"}[levels]
    names = [f"P({level})" for level in "uvw"[:levels]]
    probabilities = fit.predict(data, "subject", scale="categories")
    assert list(probabilities) == names
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    assert (probabilities.idxmax(axis=1) == "P(" + response.astype(str) + ")").mean() > 0.6
    with pytest.warns(mm.errors.MixmoeWarning, match="are not in the fit"):
        unknown = fit.predict(data.assign(id="new"), "subject", scale="categories")
    np.testing.assert_allclose(unknown.sum(axis=1), 1.0)


def test_zero_and_one_are_binary(curved):
    assert mm.NME("y ~ x1 | re: (last | id)", curved.assign(y=(curved.y > 5) * 1)).family == "binary"


def test_a_chain_gives_probabilities_states_and_transitions(sequences, chain):
    decoded, marginal = chain.decode(sequences), chain.marginals(sequences)
    assert decoded.index.equals(sequences.index)
    assert set(decoded) <= set("abc")
    np.testing.assert_allclose(marginal.sum(axis=1), 1.0)
    table = chain.transitions
    np.testing.assert_allclose(table.matrix().sum(axis=1), 1.0)
    assert len(table.persons) == 25 * 9
    assert (table.persons.lower <= table.persons.probability).mean() > 0.97
    test = table.association(pd.Series(table.scores[:, 0, 0], index=table.labels), permutations=99)
    assert test.pvalue < 0.05
    np.testing.assert_allclose(table.scores.mean(axis=(1, 2)), 0.0, atol=1e-12)
    adapted = chain.adapt(sequences[sequences.id < 3])
    np.testing.assert_allclose(adapted.effects(), chain.random_effects.iloc[:3], atol=1e-4)
    assert adapted.decode(sequences[sequences.id < 3]).index.equals(sequences.index[sequences.id < 3])
    with pytest.warns(mm.errors.MixmoeWarning, match="are not in the fit"):
        strangers = chain.predict(sequences.assign(id=sequences.id + 100), "subject", scale="categories")
    np.testing.assert_allclose(strangers, chain.predict(sequences, "mean", scale="categories"))


@pytest.mark.parametrize("which", ["deep", "chain"])
def test_saved_fits_come_back(which, request, tmp_path):
    fit = request.getfixturevalue(which)
    fit.save(tmp_path / "fit.zip")
    again = mm.load(tmp_path / "fit.zip")
    data = fit.model.frame
    scale = {"deep": "response", "chain": "categories"}[which]
    pd.testing.assert_frame_equal(
        again.predict(data, "subject", scale=scale), fit.predict(data, "subject", scale=scale)
    )
    pd.testing.assert_series_equal(again.params, fit.params)
    assert str(again.summary()) == str(fit.summary())


def test_summary_tables_and_latex(curved, tmp_path):
    fit = quiet("y ~ x1 + x2 | re: (first | id)", curved, hidden=(4,), baselines=True, epochs=60)
    assert [table.key for table in fit.tables()] == [
        "header", "architecture", "random", "residual", "shares", "comparison",
    ]  # fmt: skip
    assert fit.comparison.models[:3] == ("generic network", "one network per person", "generic network + LME")
    text = fit.to_latex(tmp_path / "t.tex", standalone=True)
    assert "squared error" in text
    assert "layer1.weight" in str(fit.summary())


def test_a_network_of_ones_own(curved):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    fit = quiet("y ~ x1 + x2 | re: (`0` | id)", curved, network=module, epochs=60)
    assert [spec.name for spec in fit.model.personal.tensors] == ["0.weight", "0.bias"]
    assert np.isfinite(fit.predict(curved)["mean"]).all()
    with pytest.raises(ArgumentError, match=r"must map \(rows, 1\)"):
        mm.fit("y ~ x1 | re: (all | id)", curved, network=torch.nn.Sequential(torch.nn.Linear(1, 2)))


def test_figures(deep):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    assert {curve.label for curve in deep.curves("effects", persons=["p01"])} == {"population", "id p01"}
    assert deep.plot() is not None
    assert deep.plot("learning") is not None
    with pytest.raises(ArgumentError, match="kind must be"):
        deep.curves("bands")


@pytest.mark.parametrize(
    ("formula", "options", "error", "message"),
    [
        ("y ~ x1 | re: (second | id)", {}, FormulaError, "unknown layer 'second' in re:; this network has first, last"),
        ("y ~ x1 | re: (layer[4] | id)", {}, FormulaError, "unknown layer"),
        ("y ~ x1 | re: (transitions | id) | seq: x1", {"family": "gaussian"}, FormulaError, "unknown layer 'transi"),
        ("y ~ x1 | gate: x2 | re: (last | id)", {}, FormulaError, "'gate:' for sequences of states only"),
        ("y ~ x1 | vary: x2", {}, FormulaError, "no section 'vary:'"),
        ("y ~ common(x1) | re: (last | id)", {}, FormulaError, "no common"),
        ("y ~ x1 | re: (last | id)", {"hidden": (0,)}, ArgumentError, "hidden must hold positive whole numbers"),
        ("y ~ x1 | re: (last | id)", {"hidden": 5}, ArgumentError, "such as (10, 5), or () for none; got 5"),
        ("y ~ x1 | re: (last | id)", {"hidden": (True,)}, ArgumentError, "or () for none; got (True,)"),
        ("y ~ x1 | re: (last | id)", {"hidden": [(3,), (4,)]}, ArgumentError, "are compared by mm.select"),
        ("y ~ x1 | re: (last | id)", {"family": "multiclass"}, DesignError, "takes at most 50; a response of numbers"),
        ("y ~ x1 | re: (last | id)", {"activation": "cosine"}, ArgumentError, "activation must be one of"),
        ("y ~ x1 | re: (first | id)", {"cov": "full"}, ArgumentError, "cov must be 'diagonal'"),
        ("y ~ x1 | re: (first | id)", {"cov": 99}, ArgumentError, "got 99"),
        ("y ~ x1 | re: (first | id)", {"estimator": "adam"}, ArgumentError, "estimator must be one of"),
        ("y ~ x1 | re: (first | id)", {"device": "abacus"}, ArgumentError, "device 'abacus'"),
        ("y ~ x1 | re: (first | id)", {"lr": 0.0}, ArgumentError, "lr must be a finite number above zero, got 0.0"),
        ("y ~ x1 | re: (first | id)", {"annealing": 1.5}, ArgumentError, "annealing must lie between 0 and 1, got 1.5"),
        ("y ~ x1 | re: (first | id)", {"validation": 1.0}, ArgumentError, "validation must be a number from 0"),
        (
            "y ~ x1 | re: (first | id)",
            {"holdout": 0.0, "baselines": True},
            ArgumentError,
            "holdout must be",
        ),
        ("y ~ x1 | re: (first | id)", {"layers": 3}, ArgumentError, "fit has no option 'layers'"),
        ("y ~ 1 | re: (first | id)", {}, ArgumentError, "needs inputs"),
    ],
)
def test_bad_input_is_told(curved, formula, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        mm.fit(formula, curved, **{**WIDE, **FAST, **options})


def test_a_constant_response_is_refused(curved):
    with pytest.raises(DesignError, match="it must vary"):
        mm.fit("y ~ x1 | re: (last | id)", curved.assign(y=1.0), **WIDE)


def test_data_that_tell_nothing_are_refused(curved):
    with pytest.raises(DesignError, match="each of the 30 persons has one row"):
        mm.fit("y ~ x1 | re: (last | id)", curved.groupby("id").head(1), **WIDE, **FAST)


def test_a_singular_matrix_is_told_in_words(curved, monkeypatch):
    def singular(*_):
        raise torch.linalg.LinAlgError("not positive-definite\nat length")

    monkeypatch.setattr("mixmoe.neural.displays.fit_last_layer", singular)
    with pytest.raises(DesignError, match=r"no Cholesky factor \(not positive-definite\): too few rows .* or rescale"):
        mm.fit("y ~ x1 | re: (last | id)", curved, **WIDE, **FAST)


def test_a_network_that_is_none_is_refused(curved):
    with pytest.raises(ArgumentError, match=r"network must be a torch\.nn\.Module, got str"):
        mm.fit("y ~ x1 | re: (all | id)", curved, network="mlp", **FAST)
    with pytest.raises(ArgumentError, match="validate has no option 'layers'"):
        mm.NME("y ~ x1 | re: (all | id)", curved).validate(layers=3)


def test_an_unseen_state_is_refused(sequences, chain):
    odd = sequences[sequences.id == 0].assign(state="z")
    with pytest.raises(DesignError, match="has not seen"):
        chain.adapt(odd)


@pytest.mark.filterwarnings("ignore:the variances still moved")
@pytest.mark.filterwarnings("ignore:after . epochs? the log-likelihood could still rise")
def test_ties_are_refused_and_gaps_are_told(sequences):
    with pytest.raises(DesignError, match="share"):
        mm.fit("state ~ x | re: (transitions | id) | seq: day", sequences, hidden=())
    formula = "state ~ x | re: (transitions | id) | seq: day / session"
    with pytest.warns(mm.errors.MixmoeWarning, match="follow a gap in 'day'"):
        mm.fit(formula, sequences[sequences.day != 4], hidden=(), epochs=5, baselines=False, rng=0)
    with pytest.raises(FormulaError, match=r"add \| seq: column"):
        mm.fit("state ~ x | re: (transitions | id)", sequences, hidden=())


def test_a_person_with_one_row_and_one_without_any(curved):
    one = pd.concat([curved, pd.DataFrame({"x1": [0.1], "x2": [0.2], "y": [5.0], "id": ["single"]})])
    with pytest.warns(mm.errors.MixmoeWarning, match="1 of 31 persons have one row"):
        fit = mm.fit("y ~ x1 + x2 | re: (last | id)", one, hidden=(), **FAST)
    assert "single" in fit.random_effects.index
    gone = one.assign(x1=one.x1.where(one.id != "p00"))
    with pytest.warns(mm.errors.MixmoeWarning):
        fit = mm.fit("y ~ x1 + x2 | re: (last | id)", gone, hidden=(), **FAST)
    assert "p00" not in fit.random_effects.index


@pytest.mark.filterwarnings("ignore:the variances still moved")
@pytest.mark.filterwarnings("ignore:after . epochs? the log-likelihood could still rise")
def test_a_lost_loss_stops_and_restores(curved):
    with pytest.warns(mm.errors.ConvergenceWarning, match="was not finite at epoch"):
        fit = mm.fit("y ~ x1 + x2 | re: (first | id)", curved, hidden=(4,), activation="relu", lr=1e160, **FAST)
    assert np.isfinite(fit.params).all()


def test_transitions_belong_to_a_chain(deep):
    with pytest.raises(ArgumentError, match="belong to a CRF"):
        _ = deep.transitions
    with pytest.raises(ArgumentError, match="belongs to a CRF"):
        deep.decode()


def test_without_torch_the_rest_works():
    code = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] == 'torch':\n            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "import mixmoe as mm\n"
        "try:\n    mm.NME('y ~ x | re: (last | id)', {'y': [1.0, 2.0], 'x': [1.0, 2.0], 'id': [1, 1]})\n"
        "except mm.errors.MissingExtraError as error:\n    print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "mixmoe[neural]" in out
