"""Results of a MEMoE of data in partitions, and predictions of partitions."""

import tempfile
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.check.diagnosis import PANELS
from mixmoe.design.design import Design
from mixmoe.design.frame import shown
from mixmoe.errors import ArgumentError, DesignError, MissingExtraError
from mixmoe.families import Effects
from mixmoe.mixed.glmm_results import GLMMResults
from mixmoe.mixed.results import MEMoEResults
from mixmoe.output.predictions import IntervalOf, Kind, Scale
from mixmoe.output.records import Curve, Marks, Observed, Panel
from mixmoe.output.saved import SavedFit, SavedRows, write
from mixmoe.partitions.scan import DaskFrame, Partitions, as_partitions
from mixmoe.partitions.streamed import units_of
from mixmoe.results import FitSide, PathLike, called

if TYPE_CHECKING:
    from mixmoe.mixed.partitioned import PartitionedMEMoE

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
        """Write the predictions, one file per chunk; they appear when all are complete.

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
        # Beside their place until all are there: where a later chunk is refused none is left.
        with tempfile.TemporaryDirectory(prefix=".part-", dir=where) as beside:
            names = []
            for i, frame in enumerate(self.frames()):
                names.append(f"part-{i:06d}.parquet")
                try:
                    frame.to_parquet(Path(beside) / names[-1])
                except ImportError as error:
                    raise MissingExtraError("to_parquet()", "pyarrow", "files") from error
            return [(Path(beside) / name).replace(where / name) for name in names]


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
        places = self.model.design.places_of_sample
        fit = replace(self.em, responsibilities=self.em.responsibilities[places])
        return called(self.model.on_sample().results(fit, self.cov), self.shown_names)

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


class PartitionedGLMMResults(PartitionedResults, GLMMResults):
    """A fitted mixture of generalised linear mixed models of partitioned data, see `PartitionedResults`."""
