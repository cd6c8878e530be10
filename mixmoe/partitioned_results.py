"""What results of partitioned data have in common: rows are those of a sample, or stay in their partitions."""

from dataclasses import replace
from typing import Any

import numpy as np

from mixmoe._typing import Array
from mixmoe.check.diagnosis import PANELS
from mixmoe.check.influence import GateEffects
from mixmoe.design.design import Design
from mixmoe.errors import ArgumentError
from mixmoe.families import Effects
from mixmoe.inference.likelihood_ratio import FitSide
from mixmoe.mixture_results import MoEResults
from mixmoe.output.records import Marks, Observed, Panel
from mixmoe.partitions.partwise_predictions import refused

_OF_SAMPLE = tuple(kind for kind in PANELS if kind not in ("profile", "starts"))
_BY_PARTITION = (
    "it is as long as the data, which stay in their partitions; predict(mm.scan(...), kind='subject') gives fitted "
    "values chunk by chunk, and sampled() those of a random sample"
)
_NO_ROWS = (
    "outcomes and covariates are matched with rows of the data, which stay in their partitions; sampled() has them for "
    "a random sample"
)


class OfPartitions(MoEResults):
    """Results of partitioned data, before those of a family.

    Notes
    -----
    Estimates, tests and tables come from all rows. Figures of residuals and the rows of a report are those of a random
    sample, see `sampled`. What is as long as the data is not in memory: `predict` takes partitions and gives them back.
    """

    def sampled(self) -> MoEResults:
        """The fit with a random sample of the units for its data: estimates and covariance stay those of all."""
        raise NotImplementedError

    def panels(self, kind: str, **options: Any) -> tuple[Panel, ...]:
        """What a diagnostic figure shows, see `Diagnosis.panels`: of rows and random effects those of the sample."""
        return self.sampled().panels(kind, **options) if kind in _OF_SAMPLE else super().panels(kind, **options)

    def _observed(self, kind: str, **options: Any) -> Observed | tuple[Marks, ...] | None:
        return self.sampled()._observed(kind, **options)

    def _predicted_effects(self) -> Effects | None:
        return self.sampled()._predicted_effects()

    @property
    def _sample(self) -> Design:
        """The rows of the sample."""
        raise NotImplementedError

    @property
    def _described(self) -> Design:
        """The rows that a report describes."""
        return self._sample

    @property
    def _responsibilities_described(self) -> Array:
        return self.sampled().em.responsibilities

    @property
    def _sample_words(self) -> str:
        n, of = self._sample.n_units, self.n_units
        if n == of:
            return ""
        if self._sample.names.group is None:
            return f"From a random sample of {n} of the {of} rows."
        return f"From all rows of a random sample of {n} of the {of} subjects."

    @property
    def _more_notes(self) -> tuple[str, ...]:
        words = self._sample_words
        return (*super()._more_notes, *([f"Figures: {words[0].lower()}{words[1:]}"] if words else []))

    def _side(self) -> FitSide:
        """What the likelihood-ratio test needs: columns and data are compared on the sample."""
        mine = self.sampled()._side()
        return replace(mine, aux={**mine.aux, "": np.array([self.nobs, self.n_units])})

    def gate_effects(self, covariates: Any = None, *, alpha: float = 0.05, dummy: bool = False) -> GateEffects:
        """Average marginal effects over the units of the sample, see `MoEResults.gate_effects`."""
        return self.sampled().gate_effects(covariates, alpha=alpha, dummy=dummy)

    distal = refused("distal()", _NO_ROWS)
    covariates = refused("covariates()", _NO_ROWS)
    fitted = refused("fitted()", _BY_PARTITION)
    resid = refused("resid()", _BY_PARTITION)
    augment = refused("augment()", _BY_PARTITION)
    simulate = refused("simulate()", _BY_PARTITION)
    test_experts = refused(
        "test_experts()", "it draws responses of all rows; compare bic, or use vlmr_test() of a MEMoE"
    )

    def to_excel(self, path: Any, alpha: float = 0.05, data: bool = False) -> None:
        """Write a workbook, see `Results.to_excel`; rows do not go into it, so that `data` must be False."""
        if data:
            raise ArgumentError("data=True would put all rows of the partitions into a workbook; leave it out")
        super().to_excel(path, alpha, data=False)
