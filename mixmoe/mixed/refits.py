"""A MEMoE estimated again: with other experts, on other responses and on resamples of the subjects."""

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mixmoe.assess.refits import Curvature, Estimated
from mixmoe.design import Design
from mixmoe.em import Control, EMFit, Starts
from mixmoe.inference.covariance import ParamCov
from mixmoe.layout import ParamLayout
from mixmoe.mixed.bootstrap import Resample
from mixmoe.mixed.coordinates import Coordinates
from mixmoe.mixed.disturbances import disturbances
from mixmoe.mixed.likelihood import Problem, build_problem, observed_information, subject_logliks, subject_scores
from mixmoe.mixed.natural import build_layout, positions
from mixmoe.mixed.predict import Estimate, draw_responses
from mixmoe.mixed.structure import Params, Structure

Array = NDArray[np.float64]

_REFIT = Control(max_iter=200, tol=1e-4)  # of tests that refit many times; log-likelihoods to about 0.1


class Refitting:
    """What tests of the number of experts ask of a MEMoE, see `mixmoe.assess.refits.Refits`."""

    n_experts: int
    design: Design
    settings: Mapping[str, Any]
    structure: Structure
    layout: ParamLayout
    coordinates: Coordinates
    problem: Problem
    errors: Any
    response: Any

    def estimated(self, fit: EMFit) -> Estimated:
        """A fit as tests of the number of experts need it."""
        degenerate = any(flag.code == "degenerate" for flag in fit.flags)
        return Estimated(fit.responsibilities.shape[1], fit.params, fit.loglik, degenerate)

    def estimate(
        self,
        experts: int,
        n_starts: int,
        rng: np.random.Generator,
        start: Estimated | None = None,
        response: Array | None = None,
    ) -> Estimated:
        """The maximum for any number of experts and another response, see `mixmoe.assess.refits.Refits`."""
        model = self if experts == self.n_experts else self.with_experts(experts)
        fit = (model if response is None else model.with_response(response)).maximum(n_starts, rng, start, _REFIT)
        if any(flag.code == "interrupted" for flag in fit.flags):
            raise KeyboardInterrupt  # climb() keeps it to itself; it ends the whole test, not one fit
        return model.estimated(fit)

    def draw(self, fit: EMFit, rng: np.random.Generator) -> Array:
        """A response drawn from the model at the estimates `fit`, shape (n,) in the order of the design."""
        d, blank = self.design, np.full((fit.params.size, fit.params.size), np.nan)
        if not self.response.gaussian:
            drawn: Array = self.results(fit, ParamCov(blank, "nonrobust"))._draw(rng)
            return drawn
        known = Estimate(self.user(fit.params), blank, positions(self.structure))
        return draw_responses(known, d.expert, d.random, d.gate, disturbances(d, known.params, self.errors), rng)

    def drawn(self, estimated: Estimated, rng: np.random.Generator) -> Array:
        """A response drawn from the model at some estimates, shape (n,) in the order of the design."""
        k, blank = estimated.experts, np.zeros(0)
        even = np.full((self.design.n_units, k), 1.0 / k)
        fit = EMFit(estimated.values, estimated.loglik, blank, 0, 0, True, even, Starts(0, blank, 0))
        return self.with_experts(k).draw(fit, rng)

    def reclassified(self, fit: EMFit, rng: np.random.Generator) -> NDArray[np.intp]:
        """Most probable expert of every subject after a refit to a resample of the subjects; empty on failure."""
        theta = Resample(self.problem, self.coordinates, self.working(fit.params)).refit(rng)
        if not np.isfinite(theta).all():
            return np.zeros(0, dtype=np.intp)
        return subject_logliks(self.problem, theta).argmax(axis=1)

    def curvature(self, estimated: Estimated) -> Curvature:
        """Scores of the subjects and information, in working coordinates."""
        model = self.with_experts(estimated.experts)
        theta = model.working(estimated.values)
        return Curvature(subject_scores(model.problem, theta), observed_information(model.problem, theta))

    def with_experts(self, experts: int) -> Self:
        """The model with another number of experts on the same data."""
        other = copy(self)
        other.n_experts, other.settings = experts, {**self.settings, "experts": experts}
        other.structure = replace(self.structure, n_experts=experts)
        other.layout = build_layout(other.structure, self.design.names)
        other.problem = build_problem(other.structure, self.problem.experts, self.problem.W, self.problem.penalty)
        return other

    def with_response(self, response: Array) -> Self:
        """The model with another response, shape (n,) in the order of the design."""
        other = copy(self)
        other.design = replace(self.design, response=response)
        other._arrange(other.structure)
        return other

    def _arrange(self, structure: Structure) -> None:
        """Structure, layout, coordinates and likelihood of the present design."""
        raise NotImplementedError

    def maximum(
        self, n_starts: int, rng: np.random.Generator, start: Estimated | None = None, control: Control = _REFIT
    ) -> EMFit:
        """The estimate alone."""
        raise NotImplementedError

    def results(self, fit: EMFit, cov: ParamCov) -> Any:
        """Results of a fit."""
        raise NotImplementedError

    def user(self, params: Array) -> Params:
        """Full parameters on the user's scale of reported ones."""
        raise NotImplementedError

    def working(self, params: Array) -> Array:
        """Free vector of reported parameters."""
        raise NotImplementedError
