"""Predictions of partitioned rows, and methods that fits of such rows lack."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd

from mixmoe.atomic import PathLike
from mixmoe.errors import ArgumentError, DesignError, MissingExtraError
from mixmoe.partitions.scan import DaskFrame, Partitions


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

    def delivered(self) -> Any:
        """These, or of a Dask frame a Dask frame, of which nothing is computed yet."""
        if not isinstance(self.data, DaskFrame):
            return self
        rows, meta = self.data.frame[list(self.columns)], self.head(1).iloc[:0]
        return rows.map_partitions(_with_kept, self.kept, self.make, meta=meta)

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


def refused(name: str, why: str) -> Callable[..., NoReturn]:
    """A method that partitioned data do not have."""

    def method(self: object, *args: object, **options: object) -> NoReturn:
        raise ArgumentError(f"fits of partitioned data have no {name}: {why}")

    method.__name__, method.__doc__ = name, f"Refused: {why}."
    return method
