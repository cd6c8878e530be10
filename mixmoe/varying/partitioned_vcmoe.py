"""A VCMoE of data in partitions.

The columns in use of all rows lie in files, in the order of the index, so that the window of every grid point is a run
of neighbouring rows: likelihoods, scores, curvature and influence are sums over windows that are read one after the
other, and the fit is that of the same rows in memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.design.beside import BESIDE
from mixmoe.design.design import Design
from mixmoe.errors import ArgumentError, DesignError
from mixmoe.inference.uncertainty import ParamCov
from mixmoe.mixture.estimate import EMFit, Flag
from mixmoe.output.predictions import IntervalOf, Kind, Scale, Wanted, checked_wanted
from mixmoe.output.saved import SavedFit, write
from mixmoe.partitioned_results import OfPartitions
from mixmoe.partitions.gathered import on_disk
from mixmoe.partitions.partwise_predictions import Predictions
from mixmoe.partitions.scan import as_partitions
from mixmoe.partitions.ungrouped import Ungrouped, gathered_rows, taken_to_files
from mixmoe.responses.distribution import Family
from mixmoe.results import PathLike, called
from mixmoe.varying.bandwidth import Bandwidths
from mixmoe.varying.em_steps import Natural, own_natural
from mixmoe.varying.fitted import FittedVCMoE
from mixmoe.varying.model import VCMoE
from mixmoe.varying.prediction import predicted
from mixmoe.varying.problem import Problem, build_problem
from mixmoe.varying.results import VCMoEResults
from mixmoe.varying.setup import Sorted, sorted_rows
from mixmoe.varying.windows import LINE

FEW = 8  # rows that a model needs to be one


@dataclass(frozen=True)
class PartitionedFit(FittedVCMoE):
    """A varying-coefficient mixture of partitioned data with its estimate.

    Attributes
    ----------
    found : Ungrouped
        The data.
    """

    found: Ungrouped = field(kw_only=True)

    @cached_property
    def of_sample(self) -> FittedVCMoE:
        """The same functions, with the rows of the sample for data."""
        return self._with_rows(self.found.sample)

    @cached_property
    def of_few(self) -> FittedVCMoE:
        """The same functions with a few rows, as they go to other processes that predict new rows."""
        sample = self.found.sample
        return self._with_rows(sample.for_new(sample.frame.iloc[:FEW], response=True))

    def _with_rows(self, design: Design) -> FittedVCMoE:
        """The same functions with other rows for data."""
        own, period = self.problem, self.problem.rows.period
        data = sorted_rows(design, own.family, period=period)
        data = replace(data, rows=replace(data.rows, share=own.rows.share, penalty=own.rows.penalty))
        widths = own.windows.bandwidth, own.gate_windows.bandwidth
        made = build_problem(
            data.rows, own.family, own.slots, own.const, own.windows.grid, *widths, self.settings["sigma_floor"]
        )
        # Limits of the dispersions are those of all rows.
        made = replace(made, floor=own.floor, ceiling=own.ceiling)
        known = {part.name: getattr(self, part.name) for part in fields(FittedVCMoE)}
        return FittedVCMoE(**{**known, "design": design, "data": data, "problem": made, "clusters": None})

    def gate_flags(self, coef: Array, natural: Natural) -> tuple[Flag, ...]:
        """Flags as those of rows in memory, judged by the rows of the sample."""
        return self.of_sample.gate_flags(coef, own_natural(self.of_sample.problem, coef))


class PartitionedVCMoE(VCMoE):
    """A VCMoE whose data come in partitions, as from `mixmoe.scan`; parameters as those of `VCMoE`.

    Raises
    ------
    ArgumentError
        If columns beside the formula are no names, or another engine than formulaic is asked for.
    DesignError
        If the data do not fit the formula; names the partition.

    Notes
    -----
    Design, bandwidth, starts, estimates, standard errors and bands are those of the same rows in memory. The columns in
    use are written into temporary files, sorted by the index.
    """

    def __init__(self, formula: Any, data: Any, experts: int = 2, **options: Any) -> None:
        for name in BESIDE:
            if not isinstance(options.get(name), str | None):
                raise ArgumentError(
                    f"{name} must be the name of a column where data come in partitions, got a "
                    f"{type(options[name]).__name__}, whose values belong to no partition"
                )
        super().__init__(formula, data, experts, **options)

    def _built(self, data: Any, context: Mapping[str, Any] | None, engine: Any, aux: Mapping[str, str]) -> Design:
        if engine != "formulaic":
            raise ArgumentError(f"partitioned data need formula_engine='formulaic', got {engine!r}")
        self.found = gathered_rows(self.formula, data, context, aux, partial(_check_rows, family=self.family))
        return self.found.design

    def _sorted(self) -> Sorted:
        found = sorted_rows(self.design, self.family, period=self.formula.period or LINE, taken=taken_to_files)
        return replace(found, rows=replace(found.rows, in_files=on_disk))

    @property
    def clusters(self) -> NDArray[np.intp] | None:
        """Cluster of each sorted row as codes, or None."""
        return self.design.aux["cluster"][self.data.order] if "cluster" in self.design.aux else None

    def bound(self, problem: Problem, coef: Array, used: Bandwidths) -> PartitionedFit:
        """The model with an estimate, as results need it."""
        fitted = super().bound(problem, coef, used)
        return PartitionedFit(**{part.name: getattr(fitted, part.name) for part in fields(fitted)}, found=self.found)

    def results(self, fitted: FittedVCMoE, fit: EMFit, cov: ParamCov) -> "PartitionedVCMoEResults":
        """An estimate of this model as results; responsibilities, which files do not hold, follow from functions."""
        if not len(fit.responsibilities):
            natural = own_natural(fitted.problem, fitted.coef)
            fit = replace(fit, responsibilities=fitted.memberships(natural))
        return PartitionedVCMoEResults(fitted, fit, cov)

    @classmethod
    def from_saved(cls, saved: SavedFit, context: Mapping[str, Any] | None, data: Any = None) -> VCMoEResults:
        """Results of a saved fit from its partitions."""
        settings = {name: value for name, value in saved.settings.items() if name != "partitions"}
        found = super().from_saved(replace(saved, settings=settings, data=data), context)
        n, n_input = found.model.design.n, found.model.design.n_input
        known = saved.settings["partitions"]
        if found.model.layout.names != saved.names or (n, n_input) != (known["n"], known["n_input"]):
            raise DesignError(
                f"{n} of {n_input} rows count, where in those of the fit {known['n']} of {known['n_input']} did; or "
                "columns differ; pass the data of the fit"
            )
        return found


def _check_rows(design: Design, family: Family) -> None:
    """Refuse values that the family does not allow, of the rows of a part."""
    sorted_rows(design, family)


def _predicted(
    rows: pd.DataFrame, model: FittedVCMoE, history: Any, wanted: Wanted, extrapolate: bool, own: bool
) -> pd.DataFrame:
    """Predictions of some rows, given their own responses if `own`."""
    return predicted(model, rows, rows if own else history, wanted, extrapolate)


class PartitionedVCMoEResults(OfPartitions, VCMoEResults):
    """A fitted VCMoE of partitioned data.

    Parameters
    ----------
    model : PartitionedFit
    fit : EMFit
    cov : ParamCov

    Notes
    -----
    Estimates, bands, tests and tables come from all rows. Figures of rows and residuals, the covariate values at which
    probabilities and means are shown, and the rows of a report are those of a random sample, see `sampled`. What is as
    long as the data is not in memory: `predict` takes partitions and gives them back.
    """

    model: PartitionedFit

    def sampled(self) -> VCMoEResults:
        """The fit with a random sample of the rows for its data: estimates and covariance stay those of all.

        Returns
        -------
        VCMoEResults
            With `fitted`, `resid`, `diagnose` and whatever needs rows, of at most 20,000 of them; they are the same in
            whatever order rows come.
        """
        model = self.model.of_sample
        fit = replace(self.em, responsibilities=model.memberships(own_natural(model.problem, model.coef)))
        return called(VCMoEResults(model, fit, self.cov), self.shown_names)

    @property
    def _sample(self) -> Design:
        return self.model.found.sample

    def predict(  # type: ignore[override]
        self,
        new: Any = None,
        kind: Kind = "all",
        *,
        history: Any = None,
        interval: IntervalOf | None = None,
        alpha: float = 0.05,
        scale: Scale = "response",
        extrapolate: bool = False,
    ) -> "pd.DataFrame | Predictions":
        """Predictions, see `VCMoEResults.predict`.

        Parameters
        ----------
        new : DataFrame, mapping or partitions, optional
            Also a Dask frame; by default the partitions of the fit.
        kind, history, interval, alpha, scale, extrapolate
            As those of `VCMoEResults.predict`; a `history` is a frame.

        Returns
        -------
        DataFrame, or of partitions Predictions
            See `mixmoe.partitions.partwise_predictions.Predictions`; of a Dask frame a Dask frame, not yet computed.
        """
        data = self.model.found.source.data if new is None else as_partitions(new)
        model, wanted = self.model.of_few, checked_wanted(kind, interval, alpha, scale)
        if data is None:
            return predicted(model, new, history, wanted, extrapolate)
        recipe = self.model.design.recipe
        used = [used.name for names in recipe.names.values() for used in names if not used.called]
        columns = tuple(c for c in dict.fromkeys([*used, *recipe.aux.values()]) if c in data.columns)
        own = new is None and kind == "subject" and history is None
        make = partial(_predicted, model=model, history=history, wanted=wanted, extrapolate=extrapolate, own=own)
        found: pd.DataFrame | Predictions = Predictions(data, columns, (), make).delivered()
        return found

    def save(self, path: PathLike, data: bool = True) -> None:
        """Write the fit to a file that `mixmoe.load` reads; no pickle.

        Parameters
        ----------
        path : path-like
        data : bool
            Plays no part: no rows go into the file, and `load` must be given the partitions.
        """
        model, d = self.model, self.model.design
        saved = SavedFit(
            family=model.spec.name,
            formula=model.formula.text,
            settings={**model.settings, "partitions": {"n": d.n, "n_input": d.n_input}},
            names=model.layout.names,
            fit=replace(self.em, responsibilities=self.em.responsibilities[:0]),
            cov=self.cov,
            checksum="",
            data=None,
            shown=self.shown_names,
        )
        write(path, saved)
