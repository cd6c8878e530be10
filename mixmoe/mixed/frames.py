"""Predictions and random effects as frames, and the history of subjects they rest on."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._frame import shown
from mixmoe._labels import places_of
from mixmoe.design import Design, DesignNames, used_columns
from mixmoe.errors import DesignError, MixmoeWarning, warn
from mixmoe.mixed.coordinates import Coordinates
from mixmoe.mixed.predict import Estimate, History, Interval, posterior_history, prior_history
from mixmoe.output.frames import row_labels

Array = NDArray[np.float64]

_ALIKE = 1e-9  # of the largest value of a gate column


class _Model(Protocol):
    @property
    def coordinates(self) -> Coordinates: ...
    def problem_of(self, design: Design) -> Any: ...


def past_of_subjects(model: _Model, e: Estimate, known: Design, wanted: Design) -> History:
    """What the rows of `known` say about the subjects of `wanted`; subjects without rows there keep what the gate says.

    Parameters
    ----------
    model : MEMoE
    e : Estimate
    known : Design
        With response.
    wanted : Design

    Returns
    -------
    History
        One entry per subject of `wanted`.
    """
    history = prior_history(e, wanted.gate)
    where = places(known, wanted)
    found = where >= 0
    if not found.any():
        return history
    problem = model.problem_of(known)
    past = posterior_history(problem, model.coordinates.to_working(e.params))
    past = _in_user_units(past, model.coordinates).take(where[found])
    history.probabilities[found] = past.probabilities
    history.means[found] = past.means
    history.covariances[found] = past.covariances
    return history


def places(known: Design, wanted: Design) -> NDArray[np.intp]:
    """Place of each subject of `wanted` among those of `known`, shape (N,); -1 where it is not there."""
    if wanted.names.group is None and known is not wanted:
        return np.full(wanted.n_units, -1)  # rows without a subject are strangers, whatever their labels
    return places_of(wanted.labels, known.labels)


def warn_strangers(known: Design, wanted: Design, *, given: bool) -> None:
    """Say so if no subject to be predicted is known, where that looks like a slip.

    Parameters
    ----------
    known, wanted : Design
    given : bool
        Whether `known` is a history that the user passed, not the data of the fit.

    Warns
    -----
    MixmoeWarning
        If a history meets no subject, or the subjects of the fit are met once names are read as text.
    """
    if (places(known, wanted) >= 0).any():
        return
    alike = set(map(str, known.labels)) & set(map(str, wanted.labels))
    if not (given or (alike and wanted.names.group is not None)):
        return
    whose = "of history=" if given else "of the fit"
    types = " and ".join(f"{shown(d.labels[0])} ({type(d.labels[0]).__name__})" for d in (known, wanted))
    reason = f"their names are of other types, {types}" if alike else "their names differ"
    warn(
        f"no subject {whose} is in the new data ({reason}), so all are predicted by the gate alone; "
        "give the subjects the same names in both",
        MixmoeWarning,
    )


def check_baseline(known: Design, wanted: Design) -> None:
    """Refuse rows to predict whose gate covariates are not those of the past of their subject, which count.

    Raises
    ------
    DesignError
        Names the subject and the column.
    """
    where = places(known, wanted)
    mine = np.flatnonzero(where >= 0)
    if known is wanted or not mine.size:
        return
    before, now = known.gate[where[mine]], wanted.gate[mine]
    wrong = np.abs(now - before) > _ALIKE * np.maximum(np.abs(before), np.abs(now)).max(axis=0)
    if not wrong.any():
        return
    i = int(wrong.any(axis=1).argmax())
    first, second = known.frame.iloc[known.starts[where[mine[i]]]], wanted.frame.iloc[wanted.starts[mine[i]]]
    differing = [name for name in used_columns(wanted, "gate") if first[name] != second[name]]
    column = differing[0] if differing else wanted.names.gate[int(wrong[i].argmax())]
    values = f", {shown(first[column])} and {shown(second[column])}" if differing else ""
    raise DesignError(
        f"the gate covariate {column!r} of subject {shown(wanted.labels[mine[i]])} differs between her history and the "
        f"rows to predict{values}; the gate routes whole subjects by their baseline, so give it one value per subject"
    )


def _in_user_units(past: History, c: Coordinates) -> History:
    back = np.linalg.inv(c.random) * c.scale  # a change of basis is wanted, not a solution
    covariances = np.einsum("ab,nkbc,dc->nkad", back, past.covariances, back, optimize=True)
    return History(past.probabilities, past.means @ back.T, covariances)


def by_expert(prefix: str, values: Interval | Array, codes: NDArray[np.intp] | None = None) -> dict[str, Array]:
    """Columns ``prefix1``, ``prefix1_se`` ... from arrays of shape (n, K), repeated over `codes` if given."""
    rows: Any = slice(None) if codes is None else codes
    if not isinstance(values, Interval):
        return {f"{prefix}{k + 1}": column for k, column in enumerate(values[rows].T)}
    parts = (values.estimate[rows], values.std_error[rows], values.lower[rows], values.upper[rows])
    return interval_columns([f"{prefix}{k + 1}" for k in range(values.estimate.shape[1])], Interval(*parts))


def interval_columns(names: Sequence[str], values: Interval) -> dict[str, Array]:
    """Columns ``name``, ``name_se``, ``name_low``, ``name_high`` for each column of values of shape (n, J)."""
    out: dict[str, Array] = {}
    for j, name in enumerate(names):
        out[name] = values.estimate[:, j]
        out[f"{name}_se"] = values.std_error[:, j]
        out[f"{name}_low"] = values.lower[:, j]
        out[f"{name}_high"] = values.upper[:, j]
    return out


def mean_columns(values: Interval) -> dict[str, Array]:
    """Columns ``mean``, ``mean_se``, ``mean_low``, ``mean_high``."""
    parts = (values.estimate, values.std_error, values.lower, values.upper)
    return interval_columns(("mean",), Interval(*(part[:, None] for part in parts)))


def in_user_order(columns: Mapping[str, Array], design: Design, new: Any) -> pd.DataFrame:
    """A frame whose rows are those of `new`, NaN where a row could not be used; or those of the fit."""
    values = np.column_stack(list(columns.values()))
    if new is None:
        index = design.rows[np.argsort(design.position, kind="stable")]
        return pd.DataFrame(design.in_order(values), index=index, columns=list(columns))
    index = row_labels(new, design.n_input)
    return pd.DataFrame(design.in_order(values, fill=True), index=index, columns=list(columns))


def random_effects_frame(past: History, names: DesignNames, index: pd.Index) -> pd.DataFrame:
    """Random effects mixed over experts and given each expert, with standard errors, one row per subject."""
    p = past.probabilities[..., None]
    mixed = (p * past.means).sum(axis=1)
    variances = np.einsum("nkqq->nkq", past.covariances)
    mixed_variance = (p * (variances + (past.means - mixed[:, None]) ** 2)).sum(axis=1)
    parts = {"mixed": (mixed, mixed_variance)}
    parts |= {f"expert{k + 1}": (past.means[:, k], variances[:, k]) for k in range(past.means.shape[1])}
    columns: dict[tuple[str, str], Array] = {}
    for part, (means, variance) in parts.items():
        for j, name in enumerate(names.random):
            columns[part, name] = means[:, j]
            columns[part, f"{name}_se"] = np.sqrt(np.maximum(variance[:, j], 0.0))
    return pd.DataFrame(columns, index=index)
