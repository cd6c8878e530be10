"""What a diagnostic panel shows, as records: points, curves, marks with limits, and rules."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixmoe.output.curves import Curve, Marks

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Cloud:
    """Points without order.

    Attributes
    ----------
    x, y : ndarray, shape (n,)
    expert : int or None
        Counted from 1, settles the colour.
    label : str
        Legend entry; empty for none.
    """

    x: Array
    y: Array
    expert: int | None = None
    label: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """A straight line across a panel.

    Attributes
    ----------
    at : float
    across : {"x", "y"}
        The axis on which `at` lies.
    label : str
        Text beside the line.
    """

    at: float
    across: str = "y"
    label: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One axes.

    Attributes
    ----------
    title, xlabel, ylabel : str
    clouds : tuple of Cloud
    curves : tuple of Curve
        Their own labels and panels are not used.
    marks : tuple of Marks
    rules : tuple of Rule
    note : str
        Small print above the panel.
    points_first : bool
        Whether points lie under the curves, as data do under a smooth line, and not over them.
    xlim : (float, float) or None
        Ends of the horizontal axis.
    categories : tuple of str
        Names of the places 0, 1 ... on the horizontal axis, if it has no numbers.
    """

    title: str
    xlabel: str
    ylabel: str
    clouds: tuple[Cloud, ...] = ()
    curves: tuple[Curve, ...] = ()
    marks: tuple[Marks, ...] = ()
    rules: tuple[Rule, ...] = ()
    note: str = ""
    points_first: bool = True
    xlim: tuple[float, float] | None = None
    categories: tuple[str, ...] = ()
