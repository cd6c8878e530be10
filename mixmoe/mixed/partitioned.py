"""A MEMoE of data in partitions."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Self, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe.design.beside import BESIDE, check_clusters
from mixmoe.design.complete_rows import Dropped
from mixmoe.design.design import Design
from mixmoe.design.frame import exact
from mixmoe.design.frame import units_of as labelled_units
from mixmoe.errors import ArgumentError, DesignError
from mixmoe.families import MixtureModel
from mixmoe.inference.uncertainty import ParamCov
from mixmoe.mixed.boundary import Boundary
from mixmoe.mixed.degeneracy import separation_flags, with_label_flag
from mixmoe.mixed.error_structure import ErrorOptions, ErrorSetup, build_errors, times_of
from mixmoe.mixed.from_moments import check_identified, coordinates_of_sums, experts_of_sums
from mixmoe.mixed.likelihood.columns import Columns
from mixmoe.mixed.likelihood.observed import Problem
from mixmoe.mixed.likelihood.spread import SpreadExperts
from mixmoe.mixed.model import MEMoE
from mixmoe.mixed.options import ResponseModel, check_response, coordinates_of, with_levels
from mixmoe.mixed.options import check_identified as check_identified_by_rows
from mixmoe.mixed.parameters import Coordinates, Structure
from mixmoe.mixed.results_of_partitions import PartitionedGLMMResults, PartitionedResults, Subjects
from mixmoe.mixture.estimate import EMFit, Flag
from mixmoe.output.saved import SavedFit
from mixmoe.partitions.gathered import gather, joined_on_disk, of_run, runs
from mixmoe.partitions.moments import Sums
from mixmoe.partitions.scan import Partitions
from mixmoe.partitions.streamed import Kept, Streamed, StreamedDesign, restored, stream, units_of
from mixmoe.partitions.survey import Source
from mixmoe.responses.offsets import warn_of_offset


class PartitionedMEMoE(MEMoE):
    """A MEMoE whose data come in partitions, as from `mixmoe.scan`; parameters as those of `MEMoE`.

    Raises
    ------
    ArgumentError
        For what partitions do not tell: several groupings, functions.
    DesignError
        If the data do not fit the formula.

    Notes
    -----
    Design, starts, estimates, standard errors and tests are those of the same rows in memory; figures are drawn from a
    random sample of subjects. Of Gaussian responses with independent normal errors the cross-products of each subject
    are in memory. Other likelihoods need her rows: the columns in use are sorted by subject into temporary files, and
    evaluations read them run by run.
    """

    # It has no rows: what needs them is overridden, what does not asks for `HasUnits`.
    design: StreamedDesign  # type: ignore[assignment]
    source: Source | None

    def __init__(self, formula: Any, data: Any, experts: int = 2, **options: Any) -> None:
        for name in BESIDE:
            if not isinstance(options.get(name), str | None):
                raise ArgumentError(
                    f"{name} must be the name of a column where data come in partitions, got a "
                    f"{type(options[name]).__name__}, whose values belong to no partition"
                )
        self._sums: Sums | None = None
        self._rows: Design | None = None
        super().__init__(formula, data, experts, **options)
        self._sums = self._rows = None  # their content is in the likelihood

    def _build(self, data: Any, options: Mapping[str, Any]) -> StreamedDesign:  # type: ignore[override]
        """The design, after refusing what moments do not hold."""
        _refuse_rows(self)
        if options["engine"] != "formulaic":
            raise ArgumentError(f"partitioned data need formula_engine='formulaic', got {options['engine']!r}")
        if isinstance(data, Kept):
            self.source = None
            return restored(self.formula, data, options["context"], options["aux"], options["response"])
        gaussian, by_rows = self.response.gaussian, not self.response.gaussian or self._options is not None
        given = options["context"], options["aux"], gaussian, not by_rows, options["response"]
        made: Streamed = stream(self.formula, data, *given)
        self._sums, self.source, design = made.sums, made.source, made.design
        if by_rows:
            check = partial(_check_rows, response=self.response, errors=self._options)
            self._rows = gather(design.recipe, made.source, design.sample, units_of(design), check)
            if self.formula.sigma:  # which of its columns are superfluous is known of all rows only
                design = design.with_recipe(self._rows.recipe)
        return design

    def _with_levels(self) -> ResponseModel:
        rows = self.design.sample if self._rows is None else self._rows
        return with_levels(self.response, self.design, np.asarray(rows.response))

    def _check_identified(self) -> None:
        if self._sums is None:  # read from a file
            return
        warn_of_offset(self.design.sample, self.response.name)
        if self.response.gaussian:
            check_identified(self.design, self._sums, self.n_experts)
        elif self._rows is not None:
            check_identified_by_rows(self._rows, self.n_experts, self.response)

    def _coordinates(self, structure: Structure) -> Coordinates:
        if self._sums is None:
            return coordinates_of(self.design.sample, structure, self.response)
        return coordinates_of_sums(self._sums, self._kept, structure, self.design, self.response.gaussian)

    def _errors_of_design(self, options: ErrorOptions, response_unit: float) -> ErrorSetup:
        design = self.design.sample if self._rows is None else self._rows
        return build_errors(design, options, self.settings["residual"], response_unit)

    def _problem_of_design(self) -> Problem | None:
        if self._sums is None:
            return None
        if self._rows is None:
            experts: Any = experts_of_sums(self._sums, self.design.recipe.kept, self.coordinates)
        else:
            experts = experts_in_files(self._rows, self._experts)
        problem = self._with_gate(experts, self.design.gate)
        return here(problem) if problem.restricted else problem

    @property
    def _kept(self) -> NDArray[np.intp]:
        """Places of the expert columns that are no combination of others."""
        return np.flatnonzero(self.design.recipe.kept["expert"])

    def fit(self, **options: Any) -> Any:
        """Maximum likelihood estimates, see `MEMoE.fit`.

        With a Dask client that is open the workers keep the cross-products of Gaussian responses while the model is
        fitted, and evaluate the likelihood. Afterwards they are here, so that results need no cluster.
        """
        found = super().fit(**options)
        self.problem = here(self.problem)
        return found

    def _separation(self, at: Boundary) -> tuple[Flag, ...]:
        """Flags of infinite coefficients, which are found with all subjects and told by rows of the sample."""
        sample = self.design.sample
        return separation_flags(sample, self.problem, self.coordinates, at, self.design.places_of_sample)

    def _with_label_flag(self, fit: EMFit) -> EMFit:
        """The fit, with a flag if labels could be exchanged within cells: judged by the subjects of the sample."""
        sample = self.on_sample()
        return with_label_flag(fit, sample.design, sample.problem, self.working(fit.params), self.coordinates)

    @property
    def problem(self) -> Problem:
        """The likelihood of all rows.

        Raises
        ------
        ArgumentError
            If the model was read from a file, which holds the rows of a sample only.
        """
        if self._problem_of_all is None:
            raise ArgumentError(
                "this fit was read from a file, which holds a sample of its data; what needs all of them is there with "
                "load(path, data=mm.scan(...))"
            )
        return self._problem_of_all

    @problem.setter
    def problem(self, problem: Problem | None) -> None:
        self._problem_of_all = problem

    def problem_of(self, design: Any) -> Problem:
        """The likelihood of other data under the same coordinates, or of some subjects of these."""
        return self.problem.take(design.places) if isinstance(design, Subjects) else super().problem_of(design)

    def clusters_of(self, given: Any) -> NDArray[np.int64]:
        """Cluster of each subject as codes 0..G-1, shape (N,), numbered as those of rows in memory.

        Raises
        ------
        ArgumentError, DesignError
            If the model has no clusters, others are given, or all subjects lie in one.
        """
        if given is not None:
            raise ArgumentError(
                "cluster= of a fit of partitioned data is named when it is fitted, mm.fit(..., cluster='site'): "
                "afterwards no row is there to look it up; fit again"
            )
        if "cluster" not in self.design.aux:
            raise ArgumentError(
                "cov_type='cluster' needs the clusters, got None; fit with cluster=, the name of a column"
            )
        clusters = pd.Series(self.design.aux["cluster"])
        check_clusters(clusters, self.design.labels, "subject")
        return labelled_units(exact(clusters)).codes.astype(np.int64)

    def source_of_fit(self) -> Partitions:
        """The partitions of the fit.

        Raises
        ------
        ArgumentError
            If the model was read from a file.
        """
        if self.source is None:
            raise ArgumentError("this fit was read from a file, without its partitions; pass the rows to predict")
        return self.source.data

    @classmethod
    def from_saved(cls, saved: SavedFit, context: Mapping[str, Any] | None, data: Any = None) -> PartitionedResults:
        """Results of a saved fit, with all data if they are given, else with the sample that the file holds."""
        settings = {name: value for name, value in saved.settings.items() if name != "partitions"}
        model = cls(saved.formula, _kept(saved) if data is None else data, context=context, **settings)
        known = saved.settings["partitions"]
        wrong = {name for name, value in model.described().items() if known[name] != value}
        if wrong or model.layout.names != saved.names:
            raise DesignError(
                f"{model.design.n} of {model.design.n_input} rows count, of {model.design.n_units} subjects, where in "
                f"those of the fit {known['n']} of {known['n_input']} did, of {known['n_units']}; or columns differ; "
                "pass the data of the fit"
            )
        return model.results(saved.fit, saved.cov)

    def described(self) -> dict[str, Any]:
        """What a file holds of the design beside sample and subjects."""
        d = self.design
        kept = {name: mask.tolist() for name, mask in d.recipe.kept.items()}
        return {"n": d.n, "n_input": d.n_input, "n_units": d.n_units, "kept": kept}

    def results(self, fit: EMFit, cov: ParamCov) -> PartitionedResults:
        """An estimate of this model as results."""
        kind = PartitionedResults if self.response.gaussian else PartitionedGLMMResults
        # Results of models in general may ask for rows; those of partitions ask their sample.
        return kind(cast(MixtureModel, self), fit, cov)

    def bound(self, fit: EMFit) -> Self:
        """The model itself: what is known at a fit would hold the subjects a second time, or their workers."""
        return self

    def on_sample(self) -> MEMoE:
        """The model with the rows of the sample of subjects for its data."""
        other = MEMoE.__new__(MEMoE)
        # All attributes but those of partitions; the constructor would build a design of other columns.
        own = ("design", "source", "_sums", "_rows", "_problem_of_all")
        vars(other).update({name: value for name, value in vars(self).items() if name not in own})
        other.design = self.design.sample
        other.problem = self._problem(self.design.sample)
        return other


def here(problem: Problem) -> Problem:
    """The likelihood with the subjects that workers keep brought here."""
    experts = problem.experts
    return replace(problem, experts=experts.here()) if isinstance(experts, SpreadExperts) else problem


def _kept(saved: SavedFit) -> Kept:
    """What a file holds of the design."""
    if saved.data is None or saved.units is None or saved.rows is None:
        raise DesignError("the file holds no rows of the data; pass the partitions of the fit")
    dropped = Dropped(saved.rows.n_dropped, saved.rows.dropped_by_column)
    return Kept(saved.data, saved.units, dropped, saved.settings["partitions"])


def _refuse_rows(model: MEMoE) -> None:
    """Refuse models that partitions do not tell enough for."""
    instead = "pass a frame of the rows instead"
    if model.formula.further:
        raise ArgumentError(f"several groupings in re: need the rows of each subject: {instead}")
    if model.formula.vary is not None:
        raise ArgumentError(f"the section 'vary:' needs penalised functions of the rows: {instead}")


def _check_rows(design: Design, response: ResponseModel, errors: ErrorOptions | None) -> None:
    """Refuse responses and times that a likelihood does not allow, of the rows of a part."""
    check_response(design, response)
    if errors is not None:
        times_of(design, errors)


def experts_in_files(design: Design, make: Callable[[Design], Any]) -> Any:
    """Experts of all rows, whose arrays lie in files, from those that `make` makes of runs of subjects."""

    def rows_of(run: Design) -> Any:
        rows = make(run).rows
        # A sparse form of many columns would be in memory.
        return replace(rows, X=Columns(rows.X.dense))

    first = make(of_run(design, next(runs(design))))
    return replace(first, rows=joined_on_disk(design, rows_of))
