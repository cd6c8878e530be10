"""What each unit does to the estimates, to first order."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe.output.printed import Printed
from mixmoe.output.tables import Table

Array = NDArray[np.float64]

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class FirstOrder:
    """How units move the estimates, to first order, in the coordinates in which the likelihood was maximised.

    Attributes
    ----------
    scores : ndarray, shape (N, Q)
        Score of each unit at the estimate.
    inverse : ndarray, shape (Q, Q)
        Inverse of the observed information, zero in directions without information.
    jacobian : ndarray, shape (P, Q)
        Derivatives of the reported parameters; NaN in rows of parameters on their boundary.
    slopes : ndarray, shape (N, K, Q)
        Derivatives of the responsibilities.
    """

    scores: Array
    inverse: Array
    jacobian: Array
    slopes: Array

    @property
    def moves(self) -> Array:
        """``A^-1 s_i``: how a unit pulls the estimate towards itself, shape (N, Q)."""
        return self.scores @ self.inverse


@dataclass(frozen=True, slots=True)
class Influence(Printed):
    """What would happen without each unit, to first order.

    Attributes
    ----------
    labels : Index, length N
    names : tuple of str
        Parameters.
    change : ndarray, shape (N, P)
        Estimate without the unit minus the estimate; NaN for parameters on their boundary.
    std_error : ndarray, shape (P,)
        Of the fit.
    distance : ndarray, shape (N,)
        ``s_i' A^-1 s_i / P``, Cook's distance in the metric of the observed information.

    Notes
    -----
    ``theta(-i) - theta = -A^-1 s_i`` with s_i the score of the unit and A the observed information of all. P times the
    distance approximates the likelihood displacement ``2 (l(theta) - l(theta(-i)))`` of Cook (1986).

    References
    ----------
    Cook & Weisberg (1982), Residuals and Influence in Regression, section 5.2. Cook (1986), JRSS B 48, 133-169.
    """

    labels: pd.Index
    names: tuple[str, ...]
    change: Array
    std_error: Array
    distance: Array

    @property
    def standardised(self) -> Array:
        """Changes in units of the standard errors, shape (N, P)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.change / self.std_error)

    @property
    def title(self) -> str:
        """Heading above the table."""
        return "Influence of single units"

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the figures are."""
        return (
            "Changes are one-step approximations (inverse information times score), in standard errors; "
            "refit without a unit to know.",
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per unit: ``distance``, then the change of every parameter if the unit is left out."""
        frame = pd.DataFrame(self.change, index=self.labels, columns=list(self.names))
        frame.insert(0, "distance", self.distance)
        return frame

    def tables(self) -> tuple[Table, ...]:
        """The units with the largest distances, each with the parameter that changes most."""
        order = np.argsort(-self.distance, kind="stable")[:_SHOWN]
        size = np.nan_to_num(self.standardised)
        most = np.abs(size).argmax(axis=1)
        rows = tuple((float(self.distance[i]), self.names[most[i]], float(size[i, most[i]])) for i in order)
        return (
            Table(
                key="influence",
                title="Largest distances",
                columns=("Distance", "Changes most", "By std. errors"),
                index=tuple(str(self.labels[i]) for i in order),
                cells=rows,
                formats=("num", "num", ".3f"),
            ),
        )


def influence(at: FirstOrder, labels: pd.Index, names: tuple[str, ...], std_error: Array) -> Influence:
    """What would happen without each unit, to first order.

    Parameters
    ----------
    at : FirstOrder
    labels : Index, length N
    names : tuple of str
    std_error : ndarray, shape (P,)

    Returns
    -------
    Influence
    """
    moves = at.moves
    distance = np.einsum("np,np->n", moves, at.scores) / max(int((np.diag(at.inverse) > 0).sum()), 1)
    blank = np.asarray(np.isnan(at.jacobian).any(axis=1))
    change = -moves @ np.where(blank[:, None], 0.0, at.jacobian).T
    change[:, blank] = np.nan
    return Influence(labels, names, change, std_error, distance)
