"""Every tensor is made where the problem lives: without a GPU, by watching where tensors are made."""

import warnings

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm

torch = pytest.importorskip("torch")

from torch.overrides import TorchFunctionMode  # noqa: E402

MAKERS = {torch.tensor, torch.as_tensor, torch.zeros, torch.ones, torch.eye, torch.arange, torch.full, torch.empty}
MAKERS |= {torch.rand, torch.randn, torch.tril_indices, torch.triu_indices, torch.linspace, torch.from_numpy}


class Watch(TorchFunctionMode):
    """Collects the calls that make a tensor on the default device, whatever the problem's is."""

    def __init__(self):
        super().__init__()
        self.calls, self.careless = 0, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        options = kwargs or {}
        if function in MAKERS:
            self.calls += 1
            if "device" not in options and "generator" not in options:
                self.careless.append((function.__name__, args))
        return function(*args, **options)


def rows():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"id": np.repeat(range(6), 7), "day": list(range(7)) * 6, "x": rng.normal(size=42)})
    frame["y"] = frame["x"] + rng.normal(size=42)
    frame["state"] = np.where(frame["y"] > 0, "on", "off")
    return frame


CASES = {
    "exact": ("y ~ x | re: (last | id)", {}),
    "linearised": ("y ~ x | re: (first | id)", {"validation": 0.3, "baselines": True}),
    "tensor": ("y ~ x | re: (all | id)", {"cov": "tensor", "batch_size": 2}),
    "low rank": ("y ~ x | re: (all | id)", {"cov": 2}),
    "published": ("y ~ x | re: (all | id)", {"cov": "tensor", "estimator": "sgd"}),
    "categories": ("state ~ x | re: (bias | id)", {}),
    "chain": ("state ~ x | re: (transitions | id) | seq: day", {"hidden": ()}),
}


@pytest.mark.parametrize("case", CASES)
def test_no_tensor_is_made_on_the_default_device(case):
    formula, options = CASES[case]
    data = rows()
    with warnings.catch_warnings(), Watch() as seen:
        warnings.simplefilter("ignore", mm.errors.MixmoeWarning)
        fit = mm.fit(formula, data, **{"hidden": (2,), "epochs": 6, "baselines": False, "rng": 0, **options})
        scale = "response" if fit.model.family in ("gaussian", "binary") else "categories"
        interval = None if fit.model.family == "crf" else "confidence"
        for kind in ("mean", "subject"):
            fit.predict(data, kind, scale=scale, interval=interval)
            fit.predict(data.assign(id=data["id"] + 100), kind, scale=scale, interval=interval)
            fit.adapt(data[data["id"] < 2]).predict(data[data["id"] < 3], kind, scale=scale, interval=interval)
        fit.summary()
        _ = fit.random_effects_se
        if fit.model.family == "crf":
            fit.decode(data)
            _ = fit.transitions
    assert seen.calls > 20
    assert seen.careless == []


def test_a_problem_says_where_its_tensors_live():
    model = mm.NME("y ~ x | re: (first | id)", rows(), device="cpu")
    assert model.problem.device == "cpu"
    assert model.problem.tensor([1.0]).device == torch.device("cpu")
