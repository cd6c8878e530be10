"""A MEMoE of data in partitions: fitted from cross-products of the subjects, which add over rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.design.beside import BESIDE
from mixmoe.design.complete_rows import Dropped
from mixmoe.errors import ArgumentError, DesignError
from mixmoe.inference.uncertainty import ParamCov
from mixmoe.mixed.likelihood.gaussian import GaussianExperts
from mixmoe.mixed.likelihood.observed import Problem
from mixmoe.mixed.model import MEMoE
from mixmoe.mixed.options import (
    check_numbers,
    coordinates_of,
    exact_within,
    one_row_each,
    without_noise,
)
from mixmoe.mixed.parameters import Coordinates, Structure
from mixmoe.mixed.partitioned_results import PartitionedResults, Subjects
from mixmoe.mixture.estimate import EMFit
from mixmoe.numerics.linalg import apply_inverse, orthogonal_columns
from mixmoe.output.saved import SavedFit
from mixmoe.partitions.moments import Reference, Sums, signs_in_memory
from mixmoe.partitions.scan import Partitions
from mixmoe.partitions.streamed import Kept, Streamed, StreamedDesign, restored, stream
from mixmoe.partitions.subjects import unpacked
from mixmoe.partitions.survey import Source
from mixmoe.responses.distribution import constant_within

_RUN = 20_000  # subjects whose matrices are unpacked at a time
_NO_NOISE = 1e-10  # of the size of the response, a residual that is none
_NOTHING_LEFT = 1e-7  # the same where it is known from cross-products, which lose half of the digits


class PartitionedMEMoE(MEMoE):
    """A MEMoE whose data come in partitions, as from `mixmoe.scan`; parameters as those of `MEMoE`.

    Raises
    ------
    ArgumentError
        For what needs the rows of a subject beside one another: other responses than Gaussian ones, errors that are not
        independent and normal, clusters.
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
        _refuse_rows(self, options["aux"])
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


def _refuse_rows(model: MEMoE, aux: Mapping[str, str]) -> None:
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
    if "cluster" in aux:
        raise ArgumentError(f"cluster={aux['cluster']!r} is not offered for partitioned data; {instead}")


def coordinates_of_sums(sums: Sums, kept: NDArray[np.intp], s: Structure, design: StreamedDesign) -> Coordinates:
    """Working coordinates from triangles of all rows; see `mixmoe.mixed.options.coordinates_of`.

    Parameters
    ----------
    sums : Sums
    kept : ndarray of int, shape (p,)
        Places of the expert columns that are no combination of others.
    s : Structure
    design : StreamedDesign

    Raises
    ------
    DesignError
        If the expert columns reproduce the response exactly.
    """
    n, near = design.n, sums.reference
    weight = sums.weight / n
    # Columns and response of the data, rotated: products of n rows are those of these few.
    rows = sums.expert / np.sqrt(weight)
    X, y = rows[:, :-1] @ near.expert[:, kept], rows[:, -1]
    root, order = np.sqrt(weight), np.argsort(s.common, kind="stable")
    expert = _with_signs(
        orthogonal_columns(X, ~s.common) * np.sqrt(len(X) / n), sums.first.expert[:, kept] / root, order, n
    )
    Q = apply_inverse(X, expert)
    inside = Q.T @ y / n
    left = y - Q @ inside
    scale = float(np.sqrt((left @ left) / n)) * near.scale
    response = near.scale * y + rows[:, :-1] @ (near.expert @ near.center)
    if scale <= _NO_NOISE * np.sqrt((response @ response) / n):
        raise without_noise(scale)
    # What is left out as superfluous has a coefficient of zero: its part of the reference goes to the others.
    center = np.linalg.lstsq(X, rows[:, :-1] @ (near.expert @ near.center), rcond=None)[0]
    center = center + near.scale * np.linalg.solve(expert, inside)
    Z = sums.random @ near.random / np.sqrt(weight)
    if s.correlated:
        whole = orthogonal_columns(Z, np.ones(Z.shape[1], dtype=bool)) * np.sqrt(max(len(Z), 1) / n)
        random = _with_signs(whole, sums.first.random / root, np.arange(Z.shape[1]), n)
    else:
        random = np.diag(np.sqrt((Z**2).sum(axis=0) / n))
    gate = orthogonal_columns(design.gate, np.ones(design.gate.shape[1], dtype=bool))
    return Coordinates(center, scale, expert, random, gate, weight=weight)


def _with_signs(A: Array, top: Array, order: NDArray[np.intp], n: int) -> Array:
    """A of orthogonal columns with the signs that it has in memory; `top` are the first of the n rows."""
    signs = np.ones(len(A))
    signs[order] = signs_in_memory(A[np.ix_(order, order)] * np.sqrt(n), top[: len(A), order])
    return signs[:, None] * A


def experts_of_sums(sums: Sums, kept: NDArray[np.intp], c: Coordinates) -> GaussianExperts:
    """Cross-products of every subject in working coordinates.

    Parameters
    ----------
    sums : Sums
    kept : ndarray of int, shape (p,)
        Places of the expert columns that are no combination of others.
    c : Coordinates
    """
    near = sums.reference
    M = _change(near, kept, c)
    n, log_weight, *packed = sums.subjects.sums
    N, p, q = n.size, len(c.expert), len(c.random)
    x, z = slice(1, 1 + p), slice(1 + p, 1 + p + q)
    out = GaussianExperts(
        n=n,
        yy=np.empty(N),
        Xy=np.empty((p, N)),
        XX=np.empty((p, p, N)),
        Zy=np.empty((q, N)),
        ZX=np.empty((q, p, N)),
        ZZ=np.empty((q, q, N)),
        # Weights are divided by their mean.
        log_weight=log_weight - n * np.log(c.weight),
    )
    for start in range(0, N, _RUN):
        at = slice(start, min(start + _RUN, N))
        gram = unpacked(tuple(packed), at) / c.weight
        gram = np.einsum("ca,cdn->adn", M, gram, optimize=True)
        gram = np.einsum("adn,db->abn", gram, M, optimize=True)
        out.yy[at], out.Xy[:, at], out.XX[..., at] = gram[0, 0], gram[x, 0], gram[x, x]
        out.Zy[:, at], out.ZX[..., at], out.ZZ[..., at] = gram[z, 0], gram[z, x], gram[z, z]
    return out


def _change(near: Reference, kept: NDArray[np.intp], c: Coordinates) -> Array:
    """Working response and columns as combinations of those near the reference, shape (1 + p0 + q, 1 + p + q)."""
    p0, p, q = len(near.expert), len(kept), len(near.random)
    M = np.zeros((1 + p0 + q, 1 + p + q))
    M[0, 0] = near.scale / c.scale
    whole = np.zeros(p0)
    whole[kept] = c.center
    M[1 : 1 + p0, 0] = near.expert @ (near.center - whole) / c.scale
    M[1 : 1 + p0, 1 : 1 + p] = np.linalg.solve(c.expert.T, near.expert[:, kept].T).T
    M[1 + p0 :, 1 + p :] = np.linalg.solve(c.random.T, near.random.T).T
    return M


def check_identified(design: Any, sums: Sums, n_experts: int) -> None:
    """Raise unless data of this kind can tell the parameters apart; see `mixmoe.mixed.options.check_identified`.

    Raises
    ------
    ArgumentError
        For more experts than subjects.
    DesignError
        For an expert part without columns, or rows that cannot tell random effects from residuals.
    """
    check_numbers(design, n_experts)
    if design.names.random and design.n == design.n_units:
        raise one_row_each(design)
    if "Intercept" in design.names.random:
        _check_within(design, sums)


def _check_within(design: StreamedDesign, sums: Sums) -> None:
    """Refuse responses that random intercepts, alone or with the expert columns, reproduce exactly."""
    near, width = sums.reference, 1 + len(sums.reference.expert) + len(sums.reference.random)
    constant, response = np.zeros(width), np.zeros(width)
    constant[1 + len(near.expert) :] = near.random[:, design.names.random.index("Intercept")]
    response[0], response[1 : 1 + len(near.expert)] = near.scale, near.expert @ near.center
    within, whole = np.zeros((width, width)), np.zeros((width, width))
    n, _, *packed = sums.subjects.sums
    for start in range(0, n.size, _RUN):
        gram = unpacked(tuple(packed), slice(start, min(start + _RUN, n.size)))
        along = np.einsum("abn,b->an", gram, constant)
        whole += gram.sum(axis=2)
        # Around the weighted mean of each subject.
        within += gram.sum(axis=2) - (along / (constant @ along)) @ along.T
    size = np.sqrt(response @ whole @ response)
    if np.sqrt(max(float(response @ within @ response), 0.0)) <= _NOTHING_LEFT * size:
        raise constant_within(design.names.response)
    x, left = slice(1, 1 + len(near.expert)), response.copy()
    left[x] -= np.linalg.lstsq(within[x, x], within[x] @ response, rcond=None)[0]
    if np.sqrt(max(float(left @ within @ left), 0.0)) <= _NOTHING_LEFT * size:
        raise exact_within(design.names.response)
