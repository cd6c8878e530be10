"""A MEMoE of data in partitions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe.design.beside import BESIDE, check_clusters
from mixmoe.design.complete_rows import Dropped
from mixmoe.design.frame import exact
from mixmoe.design.frame import units_of as labelled_units
from mixmoe.errors import ArgumentError, DesignError
from mixmoe.inference.uncertainty import ParamCov
from mixmoe.mixed.from_moments import check_identified, coordinates_of_sums, experts_of_sums
from mixmoe.mixed.likelihood.observed import Problem
from mixmoe.mixed.model import MEMoE
from mixmoe.mixed.options import coordinates_of
from mixmoe.mixed.parameters import Coordinates, Structure
from mixmoe.mixed.partitioned_results import PartitionedResults, Subjects
from mixmoe.mixture.estimate import EMFit
from mixmoe.numerics.linalg import apply_inverse
from mixmoe.output.saved import SavedFit
from mixmoe.partitions.moments import Sums
from mixmoe.partitions.scan import Partitions
from mixmoe.partitions.streamed import Kept, Streamed, restored, stream
from mixmoe.partitions.survey import Source


class PartitionedMEMoE(MEMoE):
    """A MEMoE whose data come in partitions, as from `mixmoe.scan`; parameters as those of `MEMoE`.

    Raises
    ------
    ArgumentError
        For what needs the rows of a subject beside one another: other responses than Gaussian ones, errors that are not
        independent and normal.
    DesignError
        If the data do not fit the formula.

    Notes
    -----
    Design, starts, estimates, standard errors and tests are those of the same rows in memory; figures are drawn from a
    random sample of subjects.
    """

    design: Any  # a StreamedDesign: it has no rows, and what needs them is overridden
    source: Source | None

    def __init__(self, formula: Any, data: Any, experts: int = 2, **options: Any) -> None:
        for name in BESIDE:
            if not isinstance(options.get(name), str | None):
                raise ArgumentError(
                    f"{name} must be the name of a column where data come in partitions, got a "
                    f"{type(options[name]).__name__}, whose values belong to no partition"
                )
        self._sums: Sums | None = None
        super().__init__(formula, data, experts, **options)
        self._sums = None  # their content is in the moments

    def _build(self, data: Any, options: Mapping[str, Any]) -> Any:
        """The design, after refusing what moments do not hold."""
        _refuse_rows(self)
        if options["engine"] != "formulaic":
            raise ArgumentError(f"partitioned data need formula_engine='formulaic', got {options['engine']!r}")
        if isinstance(data, Kept):
            self.source = None
            return restored(self.formula, data, options["context"], options["aux"])
        made: Streamed = stream(self.formula, data, options["context"], options["aux"])
        self._sums, self.source = made.sums, made.source
        return made.design

    def _check_identified(self) -> None:
        if self._sums is not None:
            check_identified(self.design, self._sums, self.n_experts)

    def _coordinates(self, structure: Structure) -> Coordinates:
        if self._sums is None:
            return coordinates_of(self.design.sample, structure, self.response)
        return coordinates_of_sums(self._sums, self._kept, structure, self.design)

    def _problem_of_design(self) -> Problem | None:
        if self._sums is None:
            return None
        c, restricted = self.coordinates, self.settings["method"] == "reml"
        experts = experts_of_sums(self._sums, self._kept, c)
        return Problem(self.structure, experts, apply_inverse(self.design.gate, c.gate), self.gate_penalty, restricted)

    @property
    def _kept(self) -> NDArray[np.intp]:
        """Places of the expert columns that are no combination of others."""
        return np.flatnonzero(self.design.recipe.kept["expert"])

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
        return PartitionedResults(self, fit, cov)

    def on_sample(self) -> MEMoE:
        """The model with the rows of the sample of subjects for its data."""
        other = MEMoE.__new__(MEMoE)
        # All attributes but those of partitions; the constructor would build a design of other columns.
        own = ("design", "source", "_sums", "_problem_of_all")
        vars(other).update({name: value for name, value in vars(self).items() if name not in own})
        other.design = self.design.sample
        other.problem = self._problem(self.design.sample)
        return other


def _kept(saved: SavedFit) -> Kept:
    """What a file holds of the design."""
    if saved.data is None or saved.units is None or saved.rows is None:
        raise DesignError("the file holds no rows of the data; pass the partitions of the fit")
    dropped = Dropped(saved.rows.n_dropped, saved.rows.dropped_by_column)
    return Kept(saved.data, saved.units, dropped, saved.settings["partitions"])


def _refuse_rows(model: MEMoE) -> None:
    """Refuse models that need the rows of a subject beside one another."""
    instead = "sums over rows are all that is kept of partitions; pass a frame of the rows instead"
    if not model.response.gaussian:
        raise ArgumentError(
            f"partitioned data are for family='gaussian', got family={model.response.name!r}, whose likelihood needs "
            f"the rows of each subject: {instead}"
        )
    if model._options is not None and not model._options.plain:
        raise ArgumentError(
            f"errors={model._options.kind!r}, errors_dist={model._options.dist!r} need the rows of each subject beside "
            f"one another: {instead}"
        )
    if model.formula.sigma:
        raise ArgumentError(f"the section 'sigma:' needs the rows of each subject: {instead}")
    if model.formula.further:
        raise ArgumentError(f"several groupings in re: need the rows of each subject: {instead}")
    if model.formula.vary is not None:
        raise ArgumentError(f"the section 'vary:' needs penalised functions of the rows: {instead}")
