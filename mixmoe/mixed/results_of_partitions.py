"""Results of a MEMoE of data in partitions."""

from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.design.design import Design
from mixmoe.design.frame import shown
from mixmoe.errors import DesignError
from mixmoe.mixed.glmm_results import GLMMResults
from mixmoe.mixed.results import MEMoEResults
from mixmoe.output.predictions import IntervalOf, Kind, Scale
from mixmoe.output.records import Curve
from mixmoe.output.saved import SavedFit, SavedRows, write
from mixmoe.partitioned_results import OfPartitions
from mixmoe.partitions.partwise_predictions import Predictions
from mixmoe.partitions.scan import as_partitions
from mixmoe.partitions.streamed import units_of
from mixmoe.results import PathLike, called

if TYPE_CHECKING:
    from mixmoe.mixed.partitioned import PartitionedMEMoE

_ALIKE = 1e-9  # of the largest value of a gate column


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


def _predicted(results: MEMoEResults, rows: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """Predictions of some rows."""
    found: pd.DataFrame = MEMoEResults.predict(results, rows, **options)
    return found


class PartitionedResults(OfPartitions, MEMoEResults):
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
        return Predictions(data, columns, kept, make).delivered()

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

    def plot(self, kind: str | None = None, ax: Any = None, **options: Any) -> Any:
        """A figure, see `MEMoEResults.plot`; of rows, courses and subjects those of the sample."""
        if kind in ("profile", "starts"):
            return super().plot(kind, ax, **options)
        return self.sampled().plot(kind, ax, **options)

    @property
    def _sample(self) -> Design:
        return self.model.design.sample

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
