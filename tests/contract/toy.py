"""A fourth family, as small as the contract allows: normal regressions with a known spread, one expert per unit."""

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from mixmoe.arguments import checked_choice, checked_rng
from mixmoe.design.design import build_design
from mixmoe.design.formula import parse_formula
from mixmoe.errors import ArgumentError
from mixmoe.families import FamilySpec
from mixmoe.inference.uncertainty import ParamCov
from mixmoe.loading import restored
from mixmoe.mixture.estimate import EMFit, Parameter, ParamLayout, Starts
from mixmoe.mixture_results import MoEResults
from mixmoe.output.records import Curve


class ToyResults(MoEResults):
    """What the toy says beyond the common base: predictions, curves, drawn responses."""

    _curve_kinds = ("trajectories",)
    _report_plots = ("trajectories",)
    _resid_kinds = ("marginal",)

    def predict(self, new=None, kind="mean", **options):
        """Means over the experts, of each, or their probabilities."""
        checked_choice(kind, "kind", ("mean", "experts", "probabilities"))
        if options:
            raise ArgumentError(f"predict of Toy has no option {sorted(options)[0]!r}; it has new and kind")
        design = self.model.design if new is None else self.model.design.for_new(new)
        means, share = self.model.means(design, self.em.params), self.model.shares(self.em.params)
        columns = {
            "mean": {"mean": means @ share},
            "experts": {f"expert{k + 1}": mean for k, mean in enumerate(means.T)},
            "probabilities": {f"probability{k + 1}": np.full(design.n, p) for k, p in enumerate(share)},
        }[kind]
        index = design.rows[np.argsort(design.position, kind="stable")]
        return pd.DataFrame({name: design.in_order(values) for name, values in columns.items()}, index=index)

    def fitted(self, kind="marginal"):
        """Mean of each row over the experts."""
        checked_choice(kind, "kind", ("marginal",))
        return self.predict()["mean"].rename("fitted")

    def curves(self, kind="trajectories", **options):
        """Mean of each expert along the last column."""
        checked_choice(kind, "kind", self._curve_kinds)
        x, means = self.model.design.expert[:, -1], self.model.means(self.model.design, self.em.params)
        at = np.argsort(x)
        label = self.model.design.names.expert[-1]
        return tuple(Curve(label, f"expert {k + 1}", x[at], y[at], y[at], y[at], k + 1) for k, y in enumerate(means.T))

    def _draw(self, rng):
        means, share = self.model.means(self.model.design, self.em.params), self.model.shares(self.em.params)
        expert = rng.choice(len(share), size=self.n_units, p=share)[self.model.design.codes]
        return means[np.arange(len(means)), expert] + self.model.spread * rng.normal(size=len(means))


class Toy:
    """Units of one expert each, rows normal around its regression with the spread `toy`."""

    spec = FamilySpec(
        name="Toy",
        title="A toy mixture of regressions.",
        estimation="EM from random starts.",
        asked_by="formulas with toy=",
        markers=("toy",),
        lacks={"HasScores": "it computes none", "HasGate": "its gate has an intercept only"},
    )

    def __init__(self, formula, data, experts=2, *, toy=1.0, context=None):
        self.formula = parse_formula(formula) if isinstance(formula, str) else formula
        self.design = build_design(self.formula, data, context=context)
        self.n_experts, self.spread = experts, float(toy)
        self.settings = {"experts": experts, "toy": self.spread}
        terms, numbers = self.design.names.expert, range(1, experts + 1)
        found = [Parameter(f"expert{k}.{t}", "expert", t, k) for k in numbers for t in terms]
        found += [Parameter(f"gate{k}.Intercept", "gate", "Intercept", k) for k in numbers[1:]]
        self.layout = ParamLayout(tuple(found))

    def means(self, design, params):
        """Mean of each row under each expert, shape (n, K)."""
        return design.expert @ params[: self.n_experts * design.expert.shape[1]].reshape(self.n_experts, -1).T

    def shares(self, params):
        """Probability of each expert, shape (K,)."""
        odds = np.exp(np.append(0.0, params[len(params) - self.n_experts + 1 :]))
        return odds / odds.sum()

    def joint(self, params):
        """Log joint density of the rows of each unit and its expert, shape (N, K)."""
        away = (np.asarray(self.design.response)[:, None] - self.means(self.design, params)) / self.spread
        rows = -0.5 * away**2 - np.log(self.spread * np.sqrt(2 * np.pi))
        return np.add.reduceat(rows, self.design.starts) + np.log(self.shares(params))

    def fit(self, *, starts=None, start=None, rng=None, progress=None):
        generator = checked_rng(rng)
        found = [self._ascend(generator) for _ in range(starts or 4 * self.n_experts)]
        logliks = np.sort([fit.loglik for fit in found])[::-1]
        best = max(found, key=lambda fit: fit.loglik)
        record = Starts(len(found), logliks, int((logliks > logliks[0] - 1e-3).sum()))
        fit = EMFit(best.params, best.loglik, best.trace, best.n_iter, best.n_iter, True, best.responsibilities, record)
        return ToyResults(self, fit, self.covariance(fit, "nonrobust"))

    def _ascend(self, rng):
        X, y, codes = self.design.expert, np.asarray(self.design.response), self.design.codes
        tau, trace = rng.dirichlet(np.ones(self.n_experts), size=self.design.n_units), [-np.inf]
        while len(trace) < 3 or trace[-1] - trace[-2] > 1e-10:
            weights, share = tau[codes].T, tau.mean(axis=0)
            beta = [np.linalg.lstsq(X * np.sqrt(w)[:, None], y * np.sqrt(w), rcond=None)[0] for w in weights]
            params = np.concatenate([*beta, np.log(share[1:] / share[0])])
            joint = self.joint(params)
            tau = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
            trace.append(float(logsumexp(joint, axis=1).sum()))
        n, record = len(trace), Starts(1, np.array(trace[-1:]), 1)
        return EMFit(params, trace[-1], np.array(trace[1:]), n, n, True, tau, record)

    def covariance(self, fit, kind, **options):
        """Inverse information of the complete data."""
        if kind != "nonrobust":
            raise ArgumentError(f"Toy has standard errors of kind 'nonrobust' only, got {kind!r}")
        X, weights = self.design.expert, fit.responsibilities[self.design.codes].T
        size, p = len(fit.params), X.shape[1]
        matrix = np.eye(size) / (self.design.n_units * self.shares(fit.params).min())
        for k, w in enumerate(weights):
            matrix[k * p : (k + 1) * p, k * p : (k + 1) * p] = self.spread**2 * np.linalg.inv((X.T * w) @ X)
        return ParamCov(matrix, kind)

    @classmethod
    def from_saved(cls, saved, context):
        model = cls(saved.formula, saved.data, context=context, **saved.settings)
        model.design = restored(model.design, saved)
        return ToyResults(model, saved.fit, saved.cov)
