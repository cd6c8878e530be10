"""A MEMoE of data in partitions: fitted from cross-products of the subjects, which add over rows."""

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.atomic import replacing
from mixmoe.check.diagnosis import PANELS
from mixmoe.design.beside import BESIDE, check_clusters
from mixmoe.design.complete_rows import Dropped
from mixmoe.design.design import Design
from mixmoe.design.frame import exact, shown
from mixmoe.design.frame import units_of as labelled_units
from mixmoe.errors import ArgumentError, DesignError, MissingExtraError
from mixmoe.families import Effects
from mixmoe.inference.uncertainty import ParamCov
from mixmoe.mixed.likelihood.gaussian import GaussianExperts
from mixmoe.mixed.likelihood.observed import Problem
from mixmoe.mixed.likelihood.patterns import patterned
from mixmoe.mixed.model import MEMoE
from mixmoe.mixed.options import check_numbers, coordinates_of, exact_within, one_row_each, without_noise
from mixmoe.mixed.parameters import Coordinates, Structure
from mixmoe.mixed.results import MEMoEResults
from mixmoe.mixture.estimate import EMFit
from mixmoe.numerics.linalg import apply_inverse, orthogonal_columns
from mixmoe.output.predictions import IntervalOf, Kind, Scale
from mixmoe.output.records import Curve, Marks, Observed, Panel
from mixmoe.output.saved import SavedFit, SavedRows, write
from mixmoe.partitions.moments import Reference, Sums, signs_in_memory, unpacked
from mixmoe.partitions.scan import DaskFrame, Partitions, as_partitions
from mixmoe.partitions.streamed import Kept, Streamed, StreamedDesign, restored, stream, units_of
from mixmoe.partitions.survey import Source
from mixmoe.responses.distribution import constant_within
from mixmoe.results import FitSide, PathLike, called

_ALIKE = 1e-9  # of the largest value of a gate column
_OF_SAMPLE = tuple(kind for kind in PANELS if kind not in ("profile", "starts"))


@dataclass(frozen=True, slots=True, repr=False)
class Predictions:
    """Predictions of partitioned rows, computed when they are asked for.

    Attributes
    ----------
    data : Partitions
    columns : tuple of str
        Columns of the data that are needed.
    kept : tuple of str
        Columns of the data that stand before the predictions: that of the subjects.
    make : callable
        From rows to their predictions.
    """

    data: Partitions
    columns: tuple[str, ...]
    kept: tuple[str, ...]
    make: Callable[[pd.DataFrame], pd.DataFrame]

    def __repr__(self) -> str:
        return "<Predictions, computed when asked for: frames(), head(), to_parquet(folder)>"

    def frames(self) -> Iterator[pd.DataFrame]:
        """The predictions of one chunk of rows after the other, with the index of the rows in their partition."""
        for part in self.data.parts(self.columns):
            with part.named():
                yield self._made(part.frame)

    def head(self, n: int = 5) -> pd.DataFrame:
        """Predictions of the first rows."""
        for part in self.data.parts(self.columns):
            with part.named():
                return self._made(part.frame.iloc[:n])
        raise DesignError("the new data have no rows; pass at least one row")

    def _made(self, rows: pd.DataFrame) -> pd.DataFrame:
        return _with_kept(rows, self.kept, self.make)

    def to_parquet(self, folder: PathLike) -> list[Path]:
        """Write the predictions, one file per chunk; each appears only when it is complete.

        Parameters
        ----------
        folder : path-like
            Made if it is not there; must hold no ``part-*.parquet``.

        Returns
        -------
        list of Path
            The files, in the order of the rows.

        Raises
        ------
        ArgumentError
            If the folder holds such files.
        MissingExtraError
            If pyarrow is not installed.
        """
        where = Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        if any(where.glob("part-*.parquet")):
            raise ArgumentError(f"the folder {str(where)!r} holds predictions already; name another one")
        written = []
        for i, frame in enumerate(self.frames()):
            path = where / f"part-{i:06d}.parquet"
            with replacing(path) as partly:
                try:
                    frame.to_parquet(partly)
                except ImportError as error:
                    raise MissingExtraError("to_parquet()", "pyarrow", "files") from error
            written.append(path)
        return written


def _with_kept(rows: pd.DataFrame, kept: tuple[str, ...], make: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """Predictions of some rows behind columns that are kept."""
    return pd.concat([rows[list(kept)], make(rows)], axis=1)


@dataclass(frozen=True, slots=True)
class Subjects:
    """Some subjects of a fit, known by their moments.

    Attributes
    ----------
    labels : ndarray of object, shape (N,)
    gate : ndarray, shape (N, m)
    places : ndarray of int, shape (N,)
        Among those of the fit.
    group : str
    """

    labels: NDArray[np.object_]
    gate: Array
    places: NDArray[np.intp]
    group: str

    @property
    def names(self) -> Any:
        """Names, as those of a design."""
        return self


def _refused(name: str, why: str) -> Callable[..., NoReturn]:
    """A method that partitioned data do not have."""

    def method(self: object, *args: object, **options: object) -> NoReturn:
        raise ArgumentError(f"fits of partitioned data have no {name}: {why}")

    method.__name__, method.__doc__ = name, f"Refused: {why}."
    return method


_BY_PARTITION = (
    "it is as long as the data, which stay in their partitions; predict(mm.scan(...), kind='subject') gives fitted "
    "values chunk by chunk, and sampled() those of a random sample of subjects"
)


def _predicted(results: MEMoEResults, rows: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """Predictions of some rows."""
    found: pd.DataFrame = MEMoEResults.predict(results, rows, **options)
    return found


_NO_ROWS = (
    "outcomes and covariates are matched with rows of the data, which stay in their partitions; sampled() has them for "
    "a random sample of subjects"
)


class PartitionedResults(MEMoEResults):
    """A fitted MEMoE of partitioned data.

    Parameters
    ----------
    model : PartitionedMEMoE
    fit : EMFit
    cov : ParamCov

    Notes
    -----
    Estimates, tests, tables and what is said of subjects (`responsibilities`, `random_effects`, `influence`) come from
    all rows. Curves, figures of residuals and the rows of a report are those of a random sample of subjects, see
    `sampled`. What is as long as the data is not in memory: `predict` takes partitions and gives them back.
    """

    model: "PartitionedMEMoE"

    def sampled(self) -> MEMoEResults:
        """The fit with a random sample of the subjects for its data: estimates and covariance stay those of all.

        Returns
        -------
        MEMoEResults
            With `fitted`, `resid`, `diagnose` and whatever needs rows, of these subjects. The sample holds all rows of
            at most 2,000 subjects and 200,000 rows; it is the same in whatever order rows come.
        """
        design = self.model.design
        places = design.labels.get_indexer(pd.Index(design.sample.labels))
        fit = replace(self.em, responsibilities=self.em.responsibilities[places])
        return called(MEMoEResults(self.model.on_sample(), fit, self.cov), self.shown_names)

    def predict(  # type: ignore[override]
        self,
        new: Any = None,
        kind: Kind = "all",
        *,
        history: Any = None,
        interval: IntervalOf | None = None,
        alpha: float = 0.05,
        scale: Scale = "response",
    ) -> "pd.DataFrame | Predictions":
        """Predictions, see `MEMoEResults.predict`.

        Parameters
        ----------
        new : DataFrame, mapping or partitions, optional
            Also a Dask frame; by default the partitions of the fit.
        kind, history, interval, alpha, scale
            As those of `MEMoEResults.predict`; a `history` is a frame.

        Returns
        -------
        DataFrame, or of partitions Predictions
            Their ``frames()`` come chunk by chunk, ``to_parquet(folder)`` writes them, ``head()`` shows the first. Of a
            Dask frame a Dask frame, of which nothing is computed yet.
        """
        data = self.model.source_of_fit() if new is None else as_partitions(new)
        options: dict[str, Any] = {"history": history, "interval": interval, "alpha": alpha, "scale": scale}
        if data is None:
            return super().predict(new, kind, **options)
        used = [used.name for names in self.model.design.recipe.names.values() for used in names if not used.called]
        group, beside = str(self.model.design.names.group), self.model.design.recipe.aux.values()
        columns = tuple(c for c in dict.fromkeys([*used, group, *beside]) if c in data.columns)
        kept = tuple(name for name in (group,) if name in data.columns)
        known = self if kind == "subject" else self._without_subjects()
        make = partial(_predicted, known, kind=kind, **options)
        predictions = Predictions(data, columns, kept, make)
        if not isinstance(data, DaskFrame):
            return predictions
        # Of a Dask frame a Dask frame, of which nothing is computed yet.
        frame: pd.DataFrame = data.frame[list(columns)].map_partitions(
            _with_kept, kept, make, meta=predictions.head(1).iloc[:0]
        )
        return frame

    def _without_subjects(self) -> "PartitionedResults":
        """The fit without moments and responsibilities, as it goes to other processes that predict new rows."""
        other, model = copy(self), copy(self.model)
        model.problem, model.source = None, None
        other.model, other.em = model, replace(self.em, responsibilities=self.em.responsibilities[:0])
        return other

    def _met(self, known: Any, rows: Design) -> Any:
        """Of the subjects of the fit those that are among the rows to predict, after comparing their baselines."""
        if known is not self.model.design:
            return known
        design = self.model.design
        places = design.labels.get_indexer(pd.Index(rows.labels))
        found = np.flatnonzero(places >= 0)
        labels, at = rows.labels[found], places[found]
        before, now = design.gate[at], rows.gate[found]
        wrong = np.abs(now - before) > _ALIKE * np.maximum(np.abs(before), np.abs(now)).max(axis=0, initial=0.0)
        if wrong.any():
            i = int(wrong.any(axis=1).argmax())
            raise DesignError(
                f"the gate covariate {design.names.gate[int(wrong[i].argmax())]!r} of subject {shown(labels[i])} "
                "differs between the data of the fit and the rows to predict; the gate routes whole subjects by their "
                "baseline, so give it one value per subject"
            )
        return Subjects(labels, before, at, str(design.names.group))

    def curves(self, kind: str = "trajectories", **options: Any) -> tuple[Curve, ...]:
        """Curves of a figure over the range of the sample, see `MEMoEResults.curves`."""
        return self.sampled().curves(kind, **options)

    def panels(self, kind: str, **options: Any) -> tuple[Panel, ...]:
        """What a diagnostic figure shows, see `Diagnosis.panels`: of rows and random effects those of the sample."""
        return self.sampled().panels(kind, **options) if kind in _OF_SAMPLE else super().panels(kind, **options)

    def plot(self, kind: str | None = None, ax: Any = None, **options: Any) -> Any:
        """A figure, see `MEMoEResults.plot`; of rows, courses and subjects those of the sample."""
        if kind in ("profile", "starts"):
            return super().plot(kind, ax, **options)
        return self.sampled().plot(kind, ax, **options)

    def _observed(self, kind: str, **options: Any) -> Observed | tuple[Marks, ...] | None:
        return self.sampled()._observed(kind, **options)

    def _predicted_effects(self) -> Effects | None:
        return self.sampled()._predicted_effects()

    @property
    def _described(self) -> Design:
        """The rows that a report describes."""
        return self.model.design.sample

    @property
    def _responsibilities_described(self) -> Array:
        return self.sampled().em.responsibilities

    @property
    def _sample_words(self) -> str:
        sample, design = self.model.design.sample, self.model.design
        if sample.n_units == design.n_units:
            return ""
        return f"From all rows of a random sample of {sample.n_units} of the {design.n_units} subjects."

    @property
    def _more_notes(self) -> tuple[str, ...]:
        words = self._sample_words
        return (*super()._more_notes, *([f"Figures: {words[0].lower()}{words[1:]}"] if words else []))

    def _side(self) -> FitSide:
        """What the likelihood-ratio test needs: columns and data are compared on the sample."""
        mine = self.sampled()._side()
        return replace(mine, aux={**mine.aux, "": np.array([self.nobs, self.n_units])})

    def gate_effects(self, covariates: Any = None, *, alpha: float = 0.05, dummy: bool = False) -> pd.DataFrame:
        """Average marginal effects over the subjects of the sample, see `MoEResults.gate_effects`."""
        return self.sampled().gate_effects(covariates, alpha=alpha, dummy=dummy)

    distal = _refused("distal()", _NO_ROWS)
    covariates = _refused("covariates()", _NO_ROWS)
    fitted = _refused("fitted()", _BY_PARTITION)
    resid = _refused("resid()", _BY_PARTITION)
    augment = _refused("augment()", _BY_PARTITION)
    simulate = _refused("simulate()", _BY_PARTITION)
    test_experts = _refused("test_experts()", "it draws responses of all rows; compare bic, or use vlmr_test()")

    def to_excel(self, path: Any, alpha: float = 0.05, data: bool = False) -> None:
        """Write a workbook, see `Results.to_excel`; rows do not go into it, so that `data` must be False."""
        if data:
            raise ArgumentError("data=True would put all rows of the partitions into a workbook; leave it out")
        super().to_excel(path, alpha, data=False)

    def save(self, path: PathLike, data: bool = True) -> None:
        """Write the fit to a file that `mixmoe.load` reads; no pickle.

        Parameters
        ----------
        path : path-like
        data : bool
            Whether the sample of subjects goes into the file, with which figures and predictions need no other data.
            Without it the file holds no row of the data, and `load` must be given the partitions.
        """
        model, d = self.model, self.model.design
        described = model.described()
        if data:
            described |= {"n_witnesses": len(d.witnesses), "states": {c: dict(s) for c, s in d.states.items()}}
        kept = pd.concat([d.witnesses[list(d.sample.frame)], d.sample.frame])
        n = len(kept)
        saved = SavedFit(
            family=model.spec.name,
            formula=model.formula.text,
            settings={**model.settings, "partitions": described},
            names=model.layout.names,
            fit=self.em,
            cov=self.cov,
            checksum="",
            data=kept if data else None,
            rows=SavedRows(np.arange(n), n, d.dropped.n_rows, d.dropped.by_column) if data else None,
            units=units_of(d) if data else None,
            shown=self.shown_names,
        )
        write(path, saved)


_RUN = 20_000  # subjects whose matrices are unpacked at a time
_NO_NOISE = 1e-10  # of the size of the response, a residual that is none
_NOTHING_LEFT = 1e-7  # the same where it is known from cross-products, which lose half of the digits


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
    return patterned(out)


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
