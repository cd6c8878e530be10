"""What a user may get wrong about a network is told in the user's words, before anything is fitted."""

import re

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError, FormulaError

torch = pytest.importorskip("torch")

from mixmoe.neural import model as model_module  # noqa: E402
from mixmoe.neural.own_modules import wrap_module  # noqa: E402
from mixmoe.neural.transitions import person_values  # noqa: E402

nn = torch.nn
FORMULA = "y ~ x + w | re: (last | id)"


def data():
    g = np.random.default_rng(0)
    return pd.DataFrame(g.normal(size=(60, 3)), columns=["y", "x", "w"]).assign(id=np.repeat(np.arange(6), 10))


DATA = data()


class Own(nn.Module):
    """Two layers with names."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, x):
        return self.fc2(torch.tanh(self.fc1(x)))


class Deciding(Own):
    """One that looks at the values of all rows."""

    def forward(self, x):
        return self.fc2(torch.tanh(self.fc1(x)) * (2.0 if x.sum() > 0 else 1.0))


class InPlace(Own):
    """One that writes into a tensor of its own."""

    def forward(self, x):
        out = torch.zeros(len(x), 1, dtype=x.dtype)
        out[:] = self.fc2(torch.tanh(self.fc1(x)))
        return out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 5}, "one per hidden layer, such as (10, 5), or () for none; got 5"),
        ({"hidden": "5"}, "hidden must hold positive whole numbers"),
        ({"hidden": (3,), "network": Own()}, "hidden=(3,) says nothing about a network of your own"),
        ({"network": Own}, "network must be a torch.nn.Module, got the class Own; call it"),
        ({"network": "mlp"}, "network must be a torch.nn.Module, got str 'mlp'"),
        ({"network": nn.Tanh()}, "network Tanh has no parameters"),
        ({"network": nn.Linear(5, 1)}, "network must take rows of the 2 inputs of the formula, shape (rows, 2)"),
        ({"network": nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.2), nn.Linear(3, 1))}, "network has a Dropout"),
        ({"network": nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))}, "network has a BatchNorm1d"),
        ({"network": Deciding()}, "network Deciding mixes rows"),
        ({"network": InPlace()}, "network InPlace cannot be mapped over persons with torch.func.vmap"),
        ({"epochs": 2.5}, "epochs must be a whole number of at least 1, got 2.5"),
        ({"lr": float("nan")}, "lr must be a finite number above zero, got nan"),
    ],
)
def test_settings(options, message):
    own = {} if "network" in options else {"hidden": (10,)}
    with pytest.raises(ArgumentError, match=re.escape(message)):
        mm.fit(FORMULA, DATA, **{**own, "rng": 0, "baselines": False, **options})


def test_the_holdout_is_checked_before_the_fit(monkeypatch):
    monkeypatch.setattr(model_module, "fit_starts", lambda *args: pytest.fail("fitted first"))
    with pytest.raises(ArgumentError, match="holdout must be a number above 0 and below 1, got 2"):
        mm.fit(FORMULA, DATA, hidden=(2,), holdout=2, rng=0)


def test_the_left_side_of_the_bar():
    with pytest.raises(FormulaError, match="for a network the layers that are personal, such as last"):
        mm.NME("y ~ x | re: ( | id)", DATA)
    with pytest.raises(FormulaError, match="a network's random intercept is the bias of its last layer"):
        mm.NME("y ~ x | re: (1 | id)", DATA)


@pytest.mark.parametrize(
    ("words", "tensors"),
    [
        ("last", ["fc2.weight", "fc2.bias"]),
        ("first", ["fc1.weight", "fc1.bias"]),
        ("layer[2]", ["fc2.weight", "fc2.bias"]),
        ("bias", ["fc1.bias", "fc2.bias"]),
        ("`fc1`", ["fc1.weight", "fc1.bias"]),
        ("`*.bias`", ["fc1.bias", "fc2.bias"]),
    ],
)
def test_layers_of_a_network_of_ones_own(words, tensors):
    module = Own()
    model = mm.NME(f"y ~ x + w | re: ({words} | id)", DATA, network=module)
    assert [spec.name for spec in model.personal.tensors] == tensors
    assert module.fc1.weight.dtype == torch.float32  # the user's module is left as it was


def test_a_layer_that_a_network_of_ones_own_has_not():
    with pytest.raises(FormulaError, match=r"unknown layer 'layer\[3\]' in re:; this network has first, last"):
        mm.NME("y ~ x + w | re: (layer[3] | id)", DATA, network=Own())
    assert wrap_module(Own().double(), 2, 1).n_parameters == 13


def test_covariates_of_persons():
    labels = np.array(["a", "b", "c"], dtype=object)
    groups = pd.Series(["u", "v", "u"], index=["a", "b", "c"])
    np.testing.assert_array_equal(person_values(groups, labels), [[1, 0], [0, 1], [1, 0]])
    np.testing.assert_array_equal(person_values({"a": 1, "b": 2, "c": 4}, labels), [[1], [2], [4]])
    for covariate, message in (
        (pd.concat([groups, groups]), "covariate has several values for 'a'"),
        (groups.drop("b"), "covariate has no value for person 'b'"),
        (groups.replace("v", None), "covariate is missing for person 'b'"),
        ({"a": 1.0, "b": np.inf, "c": 0.0}, "covariate is inf for a person"),
        ([1, 2, 3], "covariate must be a Series or mapping by person label, got list"),
    ):
        with pytest.raises(ArgumentError, match=message):
            person_values(covariate, labels)
