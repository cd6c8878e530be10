"""Networks of the user's own: those that mix rows are refused, the others fit, predict and come back from a file."""

import warnings

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError, MixmoeWarning, SavedFileError

torch = pytest.importorskip("torch")

from mixmoe.neural.network import chain_shapes, jacobian, view_tensors  # noqa: E402
from mixmoe.neural.own_modules import wrap_module  # noqa: E402
from mixmoe.neural.personal_layers import select_personal  # noqa: E402

nn = torch.nn


def data(family="gaussian", persons=8, rows=7):
    g = np.random.default_rng(0)
    frame = pd.DataFrame(g.normal(size=(persons * rows, 2)), columns=["x1", "x2"])
    frame["id"], frame["day"] = np.repeat(np.arange(persons), rows), np.tile(np.arange(rows), persons)
    states = g.choice(list("pqr"), len(frame))
    y = {"gaussian": g.normal(size=len(frame)), "binary": states == "p", "multiclass": states, "crf": states}
    return frame.assign(y=y[family])


def quiet(formula, frame, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        own = {} if "network" in options else {"hidden": (10,)}
        return mm.fit(formula, frame, **{**own, "epochs": 6, "baselines": False, "rng": 0, **options})


def mlp(n_out=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, n_out))


class Mixing(nn.Module):
    """A linear layer behind something that looks at several rows, or in front of it."""

    def __init__(self, mix):
        super().__init__()
        self.mix, self.fc, self.out = mix, nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, x):
        return self.out(self.mix(torch.tanh(self.fc(x))))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn, self.out = kind(2, 3), nn.Linear(3, 1)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.out = nn.TransformerEncoderLayer(2, 1, 4, dropout=0.0), nn.Linear(2, 1)

    def forward(self, x):
        return self.out(self.block(x.unsqueeze(1))[:, 0])


class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 1, 3)

    def forward(self, x):
        return self.conv(nn.functional.pad(x.T, (2, 0)).unsqueeze(0))[0].T


MIXES = {
    "cumsum": lambda h: h.cumsum(0),
    "mean": lambda h: h - h.mean(0),
    "maximum": lambda h: h + h.max(0).values,
    "softmax over rows": lambda h: h.softmax(0),
    "last row": lambda h: h + h[-1],
    "order": lambda h: h.sort(0).values,
    "place": lambda h: h + torch.arange(len(h), dtype=h.dtype).unsqueeze(1),
    "count": lambda h: h / len(h),
}


@pytest.mark.parametrize("name", MIXES)
def test_a_network_that_mixes_rows_is_refused(name):
    with pytest.raises(ArgumentError, match="network Mixing mixes rows"):
        mm.NME("y ~ x1 + x2 | re: (last | id)", data(), network=Mixing(MIXES[name]))


@pytest.mark.parametrize(
    "module",
    [lambda: Recurrent(nn.GRU), lambda: Recurrent(nn.LSTM), Attention, Causal],
    ids=["GRU", "LSTM", "attn", "conv"],
)
def test_sequence_networks_are_refused_with_the_real_reason(module):
    with pytest.raises(ArgumentError, match=r"mixes rows.*recurrent, convolutional and attention networks"):
        mm.NME("y ~ x1 + x2 | re: (last | id)", data(), network=module())


def test_a_layer_of_zeros_does_not_hide_that_rows_are_mixed():
    module = Mixing(MIXES["cumsum"])
    nn.init.zeros_(module.out.weight)
    with pytest.raises(ArgumentError, match="mixes rows"):
        wrap_module(module, 2, 1)
    assert not module.out.weight.any()  # the user's parameters are as they were


def test_chance_and_memory_are_refused():
    class Counting(Mixing):
        def forward(self, x):
            self.calls = getattr(self, "calls", 0.0) + 1.0
            return super().forward(x) + self.calls

    for module in (Mixing(lambda h: nn.functional.dropout(h, 0.5)), Counting(lambda h: h)):
        with pytest.raises(ArgumentError, match="other outputs at a second call"):
            mm.NME("y ~ x1 + x2 | re: (last | id)", data(), network=module)


def test_rows_are_tried_at_values_that_the_data_have():
    class Embedding(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(3, 4), nn.Linear(4, 1)

        def forward(self, x):
            return self.out(self.table(x[:, 0].round().long() + 1))

    frame = data()
    frame["x1"] = np.tile([-1.0, 0.0, 1.0], 19)[: len(frame)]  # standardised nearly the same
    fit = quiet("y ~ x1 + x2 | re: (last | id)", frame, network=Embedding())
    assert np.isfinite(fit.predict(frame, "subject")["mean"]).all()


@pytest.mark.parametrize("words", [["transitions"], ["last", "transitions"], ["bias"]])
def test_the_jacobian_of_a_module_has_a_column_per_personal_parameter(words):
    wrapped = wrap_module(mlp(3).double(), 2, 3, chain_shapes(3, 0))
    personal = select_personal(wrapped, words)
    theta = torch.zeros(wrapped.n_parameters, dtype=torch.float64)
    x = torch.ones(2, 5, 2, dtype=torch.float64)
    J = jacobian(wrapped, personal, view_tensors(wrapped, personal, theta, torch.zeros(2, personal.q).double()), x)
    assert J.shape == (2, 5, 3, personal.q)
    moves = personal.columns("transitions")
    assert moves is None or not J[..., moves].any()


@pytest.mark.parametrize("words", ["0", "last", "transitions", "bias + transitions"])
def test_a_chain_with_a_network_of_ones_own(words):
    frame = data("crf")
    own = quiet(f"y ~ x1 + x2 | re: ({words} | id) | seq: day", frame, network=nn.Linear(2, 3), family="crf")
    assert np.isfinite(own.llf)
    np.testing.assert_allclose(own.transitions.matrix().sum(axis=1), 1.0)
    np.testing.assert_allclose(own.predict(frame, "subject", scale="categories").sum(axis=1), 1.0)
    assert set(own.decode()) <= set("pqr")


def test_a_linear_module_and_the_built_in_network_are_the_same_chain(monkeypatch):
    # Nothing knows that the module is linear, so that its fit ends at the modes of the effects; so must the other one.
    monkeypatch.setattr("mixmoe.neural.marginal_likelihood.MOST_OF_CHAINS", 0)
    frame = data("crf")
    module = nn.Linear(2, 3)
    for p in module.parameters():
        nn.init.zeros_(p)
    formula = "y ~ x1 + x2 | re: (transitions | id) | seq: day"
    ours, theirs = quiet(formula, frame, hidden=(), epochs=40), quiet(formula, frame, network=module, epochs=40)
    assert theirs.llf == pytest.approx(ours.llf, abs=1e-6)
    np.testing.assert_allclose(theirs.transitions.scores, ours.transitions.scores, atol=1e-6)


@pytest.mark.parametrize(("words", "options"), [("0", {}), ("last", {}), ("bias", {}), ("0", {"estimator": "sgd"})])
def test_shared_transitions_are_those_of_the_population(words, options):
    fit = quiet(f"y ~ x1 | re: ({words} | id) | seq: day", data("crf"), hidden=(), **options)
    found = fit.transitions
    for column in ("probability", "lower", "upper"):
        each = found.persons[column].to_numpy().reshape(8, 9)
        np.testing.assert_allclose(each, np.tile(found.population[column], (8, 1)), atol=1e-12)
    assert (found.persons["lower"] < found.persons["upper"]).all()
    with pytest.raises(ArgumentError, match="the transitions are those of the population for every person"):
        found.association(pd.Series(range(8)))


def test_limits_that_were_not_computed_are_missing(monkeypatch):
    monkeypatch.setattr("mixmoe.neural.person_predictions.MAX_CHAIN", 3)
    found = quiet("y ~ x1 | re: (0 | id) | seq: day", data("crf"), hidden=()).transitions
    assert found.persons[["lower", "upper"]].isna().all(axis=None)
    assert np.isnan(found.scores_se).all()


CASES = [
    (family, estimator, words, cov, hidden)
    for family, words, cov in [
        ("gaussian", "0", None),
        ("gaussian", "last", "full"),
        ("gaussian", "last", 2),
        ("gaussian", "bias", "tensor"),
        ("binary", "0", None),
        ("binary", "all", "diagonal"),
        ("multiclass", "0", None),
        ("multiclass", "last", 2),
        ("crf", "0", None),
        ("crf", "first + transitions", None),
    ]
    for estimator in ("laplace", "sgd")
    for hidden in ((), (3,))
    if not (estimator == "sgd" and cov == "full")
]


@pytest.mark.parametrize(("family", "estimator", "words", "cov", "hidden"), CASES)
def test_every_fit_comes_back_from_its_file(family, estimator, words, cov, hidden, tmp_path):
    frame = data(family)
    seq = " | seq: day" if family == "crf" else ""
    fit = quiet(
        f"y ~ x1 + x2 | re: ({words} | id){seq}", frame, hidden=hidden, family=family, estimator=estimator, cov=cov
    )
    check_round_trip(fit, frame, tmp_path / "fit.mixmoe")


def check_round_trip(fit, frame, path, **given):
    fit.save(path)
    again = mm.load(path, **given)
    stranger = frame.assign(id=100)[frame["id"] == 0]
    for rows in (frame, stranger):
        scale = "response" if fit.model.family in ("gaussian", "binary") else "categories"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MixmoeWarning)  # that nobody knows the stranger
            ours, theirs = (one.predict(rows, "subject", scale=scale) for one in (again, fit))
        pd.testing.assert_frame_equal(ours, theirs, rtol=1e-12)
    pd.testing.assert_series_equal(again.params, fit.params)
    pd.testing.assert_frame_equal(again.random_effects, fit.random_effects)
    assert str(again.summary()) == str(fit.summary())


@pytest.mark.parametrize("family", ["gaussian", "binary", "multiclass", "crf"])
@pytest.mark.parametrize("words", ["0", "last"])
def test_a_network_of_ones_own_comes_back_with_its_module(family, words, tmp_path):
    frame, n_out = data(family), {"gaussian": 1, "binary": 1, "multiclass": 2, "crf": 3}[family]
    seq = " | seq: day" if family == "crf" else ""
    fit = quiet(f"y ~ x1 + x2 | re: ({words} | id){seq}", frame, network=mlp(n_out), family=family)
    check_round_trip(fit, frame, tmp_path / "fit.mixmoe", network=nn.Sequential(*mlp(n_out)))


@pytest.mark.filterwarnings("ignore:There are only 8 subjects")
def test_what_a_file_does_not_hold_is_asked_for(tmp_path):
    frame, own, built_in = data(), tmp_path / "own.mixmoe", tmp_path / "built.mixmoe"
    quiet("y ~ x1 + x2 | re: (last | id)", frame, network=mlp()).save(own)
    quiet("y ~ x1 + x2 | re: (last | id)", frame, hidden=(2,)).save(built_in)
    with pytest.raises(SavedFileError, match="a network of your own \\(Sequential\\), whose code no file holds"):
        mm.load(own)
    with pytest.raises(SavedFileError, match="this fit has a built-in network; leave it out"):
        mm.load(built_in, network=mlp())
    other = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    with pytest.raises(SavedFileError, match="is not the network of the fit \\(Sequential\\): it gives other outputs"):
        mm.load(own, network=other)
    larger = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))
    with pytest.raises(SavedFileError, match="has another number of parameters"):
        mm.load(own, network=larger)
    mixed = mm.fit("y ~ x1 | re: (1 | id)", frame, experts=1)
    mixed.save(tmp_path / "mixed.mixmoe")
    with pytest.raises(ArgumentError, match="network= is for networks"):
        mm.load(tmp_path / "mixed.mixmoe", network=mlp())
