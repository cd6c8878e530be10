"""How well units are told apart: average posterior probabilities, odds, entropy, classification tables."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import entr

from mixmoe._typing import Array
from mixmoe.mixture.estimate import entropy_r2
from mixmoe.output.names import NO_NAMES, Names
from mixmoe.output.records import Cell, Table
from mixmoe.output.summary import Printed

_RULES = (
    "Rules of thumb, not applied here (Nagin 2005, chapter 5): in every expert an average posterior probability of at "
    "least 0.7, odds of correct classification of at least 5, and a modal share close to the estimated proportion.",
    "They describe how well units are told apart, not whether the number of experts is right.",
)


@dataclass(frozen=True, slots=True, repr=False)
class Adequacy(Printed):
    """How well units are told apart.

    Attributes
    ----------
    n_units : int
    units : str
        ``"subjects"`` or ``"rows"``.
    proportion : ndarray, shape (K,)
        Estimated proportion: mean posterior probability, at the maximum also the mean gate probability if the gate has
        an intercept.
    modal_count : ndarray of int, shape (K,)
        Units whose most probable expert it is.
    average_posterior : ndarray, shape (K,)
        Mean posterior probability of the expert among those units (AvePP); NaN if there are none.
    odds_correct : ndarray, shape (K,)
        Odds of correct classification, odds of `average_posterior` over odds of `proportion`; NaN for one expert.
    doubt : ndarray, shape (K,)
        ``-sum_i tau_ik log tau_ik / (N log K)``, the expert's part of one minus the relative entropy.
    entropy : float
        Relative entropy, one minus the sum of `doubt`; 1 for one expert.
    shown_names : Names
        Of the experts, as `named` gave them.

    References
    ----------
    Nagin (2005), Group-Based Modeling of Development, chapter 5. Ramaswamy et al. (1993), Marketing Science 12,
    103-124.
    """

    n_units: int
    units: str
    proportion: Array
    modal_count: NDArray[np.int64]
    average_posterior: Array
    odds_correct: Array
    doubt: Array
    entropy: float
    shown_names: Names = NO_NAMES

    @property
    def modal_share(self) -> Array:
        """Share of the units whose most probable expert it is, shape (K,)."""
        return self.modal_count / self.n_units

    @property
    def mismatch(self) -> Array:
        """Modal share minus estimated proportion, shape (K,)."""
        return self.modal_share - self.proportion

    @property
    def smallest(self) -> int:
        """The expert with the smallest estimated proportion, counted from 1."""
        return int(self.proportion.argmin()) + 1

    @property
    def title(self) -> str:
        """Heading above the table."""
        return "Adequacy of classification"

    @property
    def remarks(self) -> tuple[str, ...]:
        """Entropy, smallest expert, and the rules of thumb by name."""
        k = self.smallest
        return (
            f"Relative entropy {self.entropy:.3f} over {self.n_units} {self.units}; 'doubt' is each expert's part "
            "of 1 - entropy.",
            f"The smallest is expert {k}: {self.proportion[k - 1]:.3f} of the {self.units}, "
            f"{self.modal_count[k - 1]} by most probable expert.",
            *_RULES,
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per expert.

        Returns
        -------
        DataFrame
            Columns: proportion, modal_count, modal_share, mismatch, average_posterior, odds_correct, doubt.
        """
        columns = {
            "proportion": self.proportion,
            "modal_count": self.modal_count,
            "modal_share": self.modal_share,
            "mismatch": self.mismatch,
            "average_posterior": self.average_posterior,
            "odds_correct": self.odds_correct,
            "doubt": self.doubt,
        }
        return pd.DataFrame(columns, index=expert_index(len(self.proportion)))

    def tables(self) -> tuple[Table, ...]:
        """One table with a row per expert."""
        heads = ("Proportion", "Modal n", "Modal share", "Mismatch", "AvePP", "Odds correct", "Doubt")
        frame = self.to_frame().astype({"modal_count": object})
        return (
            Table(
                key="adequacy",
                title="Classification by most probable expert",
                columns=heads,
                index=tuple(f"expert {k}" for k in frame.index),
                cells=tuple(tuple(_cell(value) for value in row) for row in frame.to_numpy(dtype=object)),
                formats=(".3f", "num", ".3f", ".3f", ".3f", ".4g", ".3f"),
            ),
        )


@dataclass(frozen=True, slots=True, repr=False)
class ClassificationTable(Printed):
    """Most probable expert against posterior mass.

    Attributes
    ----------
    mass : ndarray, shape (K, K)
        ``sum_i 1{w_i = s} tau_it``: units with most probable expert s (rows), spread over the experts t (columns).
    shown_names : Names
        Of the experts, as `named` gave them.

    References
    ----------
    Vermunt (2010), Political Analysis 18, 450-469, equation 6.
    """

    mass: Array
    shown_names: Names = NO_NAMES

    @property
    def average(self) -> Array:
        """Mean posterior probabilities of the units with each most probable expert (rows), shape (K, K)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.mass / self.mass.sum(axis=1, keepdims=True))

    @property
    def probabilities(self) -> Array:
        """The matrix D of three-step methods, ``P(most probable s | expert t)``, experts in rows, shape (K, K)."""
        return np.asarray(self.mass.T / self.mass.sum(axis=0)[:, None])

    @property
    def title(self) -> str:
        """Heading above the tables."""
        return "Most probable expert against posterior mass"

    def to_frame(self, kind: str = "probabilities") -> pd.DataFrame:
        """One of the tables as a frame.

        Parameters
        ----------
        kind : {"probabilities", "average", "mass"}
            ``"probabilities"``: rows are experts, columns the most probable one; the others the other way round.

        Returns
        -------
        DataFrame, shape (K, K)
        """
        names = ("expert", "modal") if kind == "probabilities" else ("modal", "expert")
        k = len(self.mass)
        return pd.DataFrame(
            {"probabilities": self.probabilities, "average": self.average, "mass": self.mass}[kind],
            index=expert_index(k, names[0]),
            columns=expert_index(k, names[1]),
        )

    def tables(self) -> tuple[Table, ...]:
        """Average posterior probabilities by most probable expert, and the matrix D."""
        average = "Mean posterior probability, by most probable expert"
        probabilities = "Probability of being classified as, by expert"
        return (
            _square("average", average, self.average, "most probable: ", "expert "),
            _square("probabilities", probabilities, self.probabilities, "expert ", "as "),
        )


def adequacy(responsibilities: Array, units: str = "subjects") -> Adequacy:
    """How well units are told apart.

    Parameters
    ----------
    responsibilities : ndarray, shape (N, K)
    units : str

    Returns
    -------
    Adequacy
    """
    n_units, n_experts = responsibilities.shape
    proportion = responsibilities.mean(axis=0)
    count = np.bincount(responsibilities.argmax(axis=1), minlength=n_experts)
    average = np.diag(classification_table(responsibilities).average).copy()
    with np.errstate(divide="ignore", invalid="ignore"):
        # Odds of correct classification over those of assignment at random in the estimated proportions.
        odds = average / (1 - average) / (proportion / (1 - proportion))
    # Each expert's part of the relative entropy; the bound keeps log 1 = 0 of one expert out of the denominator.
    doubt = entr(np.clip(responsibilities, 0.0, 1.0)).sum(axis=0) / (n_units * max(np.log(n_experts), 1.0e-300))
    if n_experts == 1:
        odds, doubt = np.full(1, np.nan), np.zeros(1)
    return Adequacy(n_units, units, proportion, count, average, odds, doubt, entropy_r2(responsibilities))


def classification_table(responsibilities: Array) -> ClassificationTable:
    """Most probable expert against posterior mass; ties go to the first expert.

    Parameters
    ----------
    responsibilities : ndarray, shape (N, K)

    Returns
    -------
    ClassificationTable
    """
    modal = np.eye(responsibilities.shape[1])[responsibilities.argmax(axis=1)]
    return ClassificationTable(modal.T @ responsibilities)


def memberships(responsibilities: Array) -> pd.DataFrame:
    """Most and second most probable expert of each unit and how certain the choice is.

    Parameters
    ----------
    responsibilities : ndarray, shape (N, K)

    Returns
    -------
    DataFrame, length N
        Columns: expert, probability, second, second_probability (missing for one expert), margin (difference of the
        two probabilities), entropy (``-sum_k tau_ik log tau_ik / log K``, 0 certain, 1 no idea).
    """
    n_units, n_experts = responsibilities.shape
    # Stable, so that of equal probabilities the expert with the lower number comes first.
    order = np.argsort(-responsibilities, axis=1, kind="stable")
    each = np.arange(n_units)
    first = responsibilities[each, order[:, 0]]
    columns: dict[str, object] = {"expert": order[:, 0] + 1, "probability": first}
    if n_experts == 1:
        missing = pd.array([pd.NA] * n_units, dtype="Int64")
        nothing = np.full(n_units, np.nan)
        return pd.DataFrame(
            columns | {"second": missing, "second_probability": nothing, "margin": first, "entropy": 0.0}
        )
    second = responsibilities[each, order[:, 1]]
    doubt = entr(np.clip(responsibilities, 0.0, 1.0)).sum(axis=1) / np.log(n_experts)
    number = pd.array(order[:, 1] + 1, dtype="Int64")
    columns |= {"second": number, "second_probability": second, "margin": first - second, "entropy": doubt}
    return pd.DataFrame(columns)


def expert_index(n_experts: int, name: str = "expert") -> pd.Index:
    """Experts counted from 1 as an index."""
    return pd.RangeIndex(1, n_experts + 1, name=name)


def _square(key: str, title: str, values: Array, row: str, column: str) -> Table:
    each = range(1, len(values) + 1)
    return Table(
        key=key,
        title=title,
        columns=tuple(f"{column}{k}" for k in each),
        index=tuple(f"{row}{k}" for k in each),
        cells=tuple(tuple(_cell(value) for value in line) for line in values),
        formats=(".3f",) * len(values),
    )


def _cell(value: object) -> Cell:
    if isinstance(value, int | np.integer):
        return int(value)
    number = float(value)  # type: ignore[arg-type]
    return None if np.isnan(number) else number
