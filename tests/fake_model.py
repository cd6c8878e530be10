"""A model with made-up estimates, to test what every fitted model offers without fitting one."""

import warnings
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pandas as pd

from mixmoe.design.design import build_design
from mixmoe.design.formula import parse_formula
from mixmoe.errors import MixmoeWarning
from mixmoe.families import FamilySpec
from mixmoe.inference.uncertainty import ParamCov
from mixmoe.loading import restored
from mixmoe.mixture.estimate import EMFit, Flag, Parameter, ParamLayout, Starts
from mixmoe.mixture_results import MoEResults
from mixmoe.output.records import Curve, Observed

FORMULA = "y ~ time + x | gate: z | re: (1 + time | id)"


def make_data(n_subjects=40, n_visits=4, seed=1):
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(n_subjects), n_visits)
    late = subject % 2
    time = np.tile(np.arange(n_visits, dtype=float), n_subjects)
    return pd.DataFrame(
        {
            "y": 1 + time * np.where(late, 1.0, -0.5) + rng.normal(size=len(time)),
            "time": time,
            "x": rng.normal(size=len(time)),
            "z": rng.normal(size=n_subjects)[subject],
            "id": [f"s{i:03d}" for i in subject],
        }
    )


def layout_of(design, n_experts, cov_re="expert", residual="expert"):
    made = []
    experts = range(1, n_experts + 1)
    own = [name for name, shared in zip(design.names.expert, design.common, strict=True) if not shared]
    shared = [name for name, common in zip(design.names.expert, design.common, strict=True) if common]
    made += [Parameter(f"expert{k}.{t}", "expert", t, k) for k in experts for t in own]
    made += [Parameter(f"common.{t}", "common", t) for t in shared]
    made += [Parameter(f"gate{k}.{t}", "gate", t, k) for k in experts[1:] for t in design.names.gate]
    for k in experts if cov_re == "expert" else [None]:
        made += random_parameters(design, k)
    for k in experts if residual == "expert" else [None]:
        made.append(Parameter(f"sigma{k or ''}", "residual", "sigma", k, tested=False))
    return ParamLayout(tuple(made))


def random_parameters(design, k):
    group, names, mark = design.names.group, design.names.random, k or ""
    made = [Parameter(f"sd{mark}({t}|{group})", "random", f"sd({t})", k, tested=False) for t in names]
    if not design.formula.random or not design.formula.random.correlated:
        return made
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return made + [Parameter(f"corr{mark}({a},{b}|{group})", "random", f"corr({a},{b})", k) for a, b in pairs]


SPEC = FamilySpec(
    name="Fake", title="Made-up estimates.", estimation="Not estimated.", asked_by="formulas of tests", section="vary"
)


@dataclass(frozen=True)
class FakeModel:
    text: str
    data: pd.DataFrame
    n_experts: int = 2
    cov_re: str = "expert"
    residual: str = "expert"
    context: dict | None = None
    spec: ClassVar[FamilySpec] = SPEC
    design: object = field(init=False)

    def __post_init__(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MixmoeWarning)
            object.__setattr__(self, "design", build_design(self.formula, self.data, context=self.context))

    @property
    def formula(self):
        return parse_formula(self.text)

    @property
    def layout(self):
        return layout_of(self.design, self.n_experts, self.cov_re, self.residual)

    @property
    def settings(self):
        return {"experts": self.n_experts, "cov_re": self.cov_re, "residual": self.residual}

    @classmethod
    def from_saved(cls, saved, context):
        options = dict(saved.settings)
        model = cls(saved.formula, saved.data, options.pop("experts"), context=context, **options)
        object.__setattr__(model, "design", restored(model.design, saved))
        return FakeResults(model, saved.fit, saved.cov)

    def covariance(self, fit, kind, **options):
        return ParamCov(np.eye(len(fit.params)) * 0.04, kind, f"options {sorted(options)}" if options else "")


class FakeResults(MoEResults):
    _curve_kinds = ("trajectories",)

    def curves(self, kind, **options):
        if kind != "trajectories":
            return super().curves(kind, **options)
        x = np.linspace(0, 3, 20)
        return tuple(
            Curve("time", f"expert {k}", x, k * x, k * x - 0.5, k * x + 0.5, expert=k, xlabel="time", ylabel="y")
            for k in range(1, self.model.n_experts + 1)
        )

    def _observed(self, kind):
        design = self.model.design
        return Observed(design.expert[:, 1], design.response, design.codes, self.classify()["expert"].to_numpy())


def make_fit(model, loglik=-200.0, flags=(), converged=True, seed=0):
    rng = np.random.default_rng(seed)
    layout = model.layout
    params = np.round(rng.normal(size=len(layout.names)), 3)
    for i, p in enumerate(layout.parameters):
        if not p.tested:
            params[i] = 0.5 + abs(params[i])
        elif p.term.startswith("corr"):
            params[i] = np.tanh(params[i]) / 2
    tau = rng.dirichlet(np.full(model.n_experts, 0.3), size=model.design.n_units)
    starts = Starts(20, np.array([loglik, loglik, loglik - 3.0]), 2)
    return EMFit(params, loglik, np.array([loglik - 9, loglik]), 2, 30, converged, tau, starts, flags)


def make_cov(model, kind="robust", blank=()):
    n_params = len(model.layout.names)
    root = np.random.default_rng(5).normal(size=(n_params, n_params)) / 20 + np.eye(n_params) / 5
    matrix = root @ root.T
    matrix[list(blank), :] = np.nan
    matrix[:, list(blank)] = np.nan
    return ParamCov(matrix, kind)


def make_results(text=FORMULA, data=None, experts=2, blank=(), loglik=-200.0, flags=(), converged=True, **settings):
    model = FakeModel(text, make_data() if data is None else data, experts, **settings)
    return FakeResults(model, make_fit(model, loglik, flags, converged), make_cov(model, blank=blank))


BOUNDARY = Flag("boundary", "The variance of time in expert 2 is zero; its random effect can be left out.")
__all__ = [
    "BOUNDARY",
    "FORMULA",
    "FakeModel",
    "FakeResults",
    "make_cov",
    "make_data",
    "make_fit",
    "make_results",
    "replace",
]
