"""What a report knows: the fit, what was compared with it, and what its author says."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe.design import Design
from mixmoe.errors import ArgumentError

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the sections of a report are made from.

    Attributes
    ----------
    results : MoEResults
    axis : str or None
        Column along which the curves run; None if there are no curves.
    alpha : float
        One minus the level of the limits.
    selection : Selection or None
        What `mixmoe.select` returned.
    distal : tuple of records with `summary`
        Analyses of distal outcomes.
    answers : mapping of str to str
        What the author answers to items of the checklists.
    subjects : bool
        Whether single subjects may be named.
    """

    results: Any
    axis: str | None
    alpha: float = 0.05
    selection: Any = None
    distal: tuple[Any, ...] = ()
    answers: Mapping[str, str] = field(default_factory=dict)
    subjects: bool = True

    @property
    def design(self) -> Design:
        """Arrays and frame of the fit."""
        return self.results.model.design

    @property
    def n_experts(self) -> int:
        """Number of experts."""
        return int(self.results.model.n_experts)

    @property
    def units(self) -> str:
        """What the independent units are."""
        return "rows" if self.design.names.group is None else "subjects"

    @property
    def times(self) -> Array | None:
        """Time of each row, shape (n,); None if no numeric column of the data is the axis."""
        frame = self.design.frame
        if self.axis is None or self.axis not in frame or not pd.api.types.is_numeric_dtype(frame[self.axis].dtype):
            return None
        return frame[self.axis].to_numpy(dtype=float)

    @property
    def candidates(self) -> pd.DataFrame:
        """One row per model that was compared; none without a selection."""
        if self.selection is None:
            return pd.DataFrame({"experts": pd.Series(dtype=int), "formula": pd.Series(dtype=object)})
        return self.selection.to_frame()

    def varied(self, *columns: str) -> bool:
        """Whether the candidates differ in one of these columns."""
        frame = self.candidates
        return any(name in frame and frame[name].astype(str).nunique() > 1 for name in columns)


def gather(
    results: Any, alpha: float, selection: Any, distal: Any, answers: Mapping[str, str] | None, subjects: bool
) -> Evidence:
    """Evidence from the arguments of `report`, checked.

    Raises
    ------
    ArgumentError
        If the selection or a distal analysis is none.
    """
    if selection is not None and not (hasattr(selection, "to_frame") and hasattr(selection, "summary")):
        raise ArgumentError(f"selection must be what mm.select returned, got {type(selection).__name__}")
    several = tuple(distal) if isinstance(distal, list | tuple) else () if distal is None else (distal,)
    for analysis in several:
        if not hasattr(analysis, "summary"):
            raise ArgumentError(f"distal must be what fit.distal returned, got {type(analysis).__name__}")
    if answers is not None and not isinstance(answers, Mapping):
        raise ArgumentError(f"answers must map items such as 'G1' to texts, got {type(answers).__name__}")
    return Evidence(results, _axis(results), alpha, selection, several, dict(answers or {}), bool(subjects))


def _axis(results: Any) -> str | None:
    """The column along which the curves of the fit run; an intercept has none."""
    try:
        return next((curve.xlabel for curve in results.curves(results._default_plot)), None) or None
    except ArgumentError:
        return None
