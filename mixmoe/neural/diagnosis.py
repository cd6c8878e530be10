"""Fitted values, residuals and drawn responses of a network, as the common figures and tests want them."""

from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe.arguments import checked_choice
from mixmoe.assess.diagnosis import LEVELS
from mixmoe.assess.panels import Effects
from mixmoe.assess.residuals import Distribution
from mixmoe.errors import ArgumentError
from mixmoe.neural._torch import to_array
from mixmoe.neural.persons import Persons, parameter_names, persons_of
from mixmoe.neural.predict import Uncertainty
from mixmoe.neural.problem import Problem, Trained
from mixmoe.neural.rowwise import draw_rows, places, row_means
from mixmoe.output.panels import Panel
from mixmoe.results import MoEResults

Array = NDArray[np.float64]


class NetworkDiagnosis(MoEResults):
    """What a fitted network says of its own rows."""

    problem: Problem
    trained: Trained

    @cached_property
    def uncertainty(self) -> Uncertainty:
        """Covariances of the person effects and of the population parameters."""
        return self.persons.uncertainty()

    @cached_property
    def persons(self) -> Persons:
        """The persons of the fit with their effects."""
        return persons_of(self.model, self.problem, self.trained)

    def fitted(self, kind: str = "conditional") -> Any:
        """Fitted values, one per row used, in the order of the data.

        Parameters
        ----------
        kind : {"conditional", "marginal"}
            With each person's effects, or over the distribution of effects.

        Returns
        -------
        Series or DataFrame
            Gaussian: means; binary: probabilities of the second level; else a column of probabilities per level.
        """
        checked_choice(kind, "kind", LEVELS)
        values = self.model.design.in_order(row_means(self.persons, kind))
        levels = [str(level) for level in self.model.design.response_levels or ()]
        if len(levels) > 2 or self.problem.family == "crf":
            return pd.DataFrame(values, index=self._row_index, columns=levels)
        return pd.Series(values[:, -1], index=self._row_index, name="fitted")

    @property
    def fittedvalues(self) -> Any:
        """The fitted values with each person's effects; see `fitted`."""
        return self.fitted()

    def _by_row(self) -> pd.DataFrame:
        if self.problem.family == "gaussian":
            return super()._by_row()
        probabilities = row_means(self.persons, "conditional").argmax(axis=1)
        levels = pd.Series(list(self.model.design.response_levels)).to_numpy()
        return pd.DataFrame({".fitted": levels[self.model.design.in_order(probabilities)]})

    @property
    def _resid_kinds(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("conditional", "marginal", "quantile") if self.problem.family in ("gaussian", "binary") else ()

    def _distribution(self, given: str) -> Distribution:
        return places(self.persons, given)

    def _draw(self, rng: np.random.Generator) -> Any:
        values, levels = draw_rows(self.persons, rng), self.model.design.response_levels
        return values if levels is None else pd.Series(list(levels)).to_numpy()[values.astype(np.intp)]

    def _expert_means(self, level: str) -> Array:
        return self._in_design(self.fitted(level).to_numpy())[:, None]

    def _effects(self) -> Effects | None:
        problem = self.problem
        if not problem.personal.q:
            return None
        directions = self.persons.directions
        within = directions @ to_array(self.uncertainty.effects).mean(axis=0) @ directions.T
        means = (self.persons.z @ self.trained.loading.T)[:, None, :]
        implied = (self.trained.covariance - within)[None]
        return Effects(tuple(parameter_names(problem)), means, implied, np.ones(len(means), dtype=np.intp))

    def _starts_panels(self) -> tuple[Panel, ...]:
        raise ArgumentError(f"{self.model.family_name} has one start, so none are compared; see plot('learning')")
