"""Units and columns of step 3: rows of the user beside the units of a fit, and the design of outcome or covariates."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.design.aliases import aliases
from mixmoe.design.design import Design, build_design, column_terms
from mixmoe.design.formula import MoEFormula, parse_formula
from mixmoe.design.frame import places_of, shown, unhashable, whole_frame
from mixmoe.design.recipe import response_column
from mixmoe.errors import ArgumentError, DesignError, DroppedRowsWarning, FormulaError
from mixmoe.output.predictions import known_places
from mixmoe.responses.distribution import check_varies

_PLACEHOLDER = "row_of_outcomes"
EXPERT = "expert"
_MOST = 0.5  # share of the labels of a column from which on they are taken to be those of subjects


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What step 3 works on.

    Attributes
    ----------
    units : ndarray of int, shape (n,)
        Units of the fit that have complete outcomes.
    X : ndarray, shape (n, K, p)
        Columns of each unit were it to belong to each expert.
    Z : ndarray, shape (n, m)
        Columns without the expert.
    names, z_names : tuple of str
    response : ndarray, shape (n,)
        Values, or codes of `levels`.
    levels : tuple or None
        Categories of the outcome; None if it is numeric.
    n_missing : int
        Units of the fit without complete outcomes.
    n_strangers : int
        Rows of units that the fit does not know.
    z_terms : tuple of str
        Term of the formula that each column of `Z` belongs to; only of covariates of membership.
    z_design : Design or None
        Whose columns, by position of its rows, are `Z`; only of covariates of membership.
    """

    units: NDArray[np.intp]
    X: Array
    Z: Array
    names: tuple[str, ...]
    z_names: tuple[str, ...]
    response: NDArray[Any]
    levels: tuple[Any, ...] | None
    n_missing: int
    n_strangers: int
    z_terms: tuple[str, ...] = ()
    z_design: Design | None = None


@dataclass(frozen=True, slots=True)
class Matched:
    """Rows of a frame beside the units of a fit.

    Attributes
    ----------
    frame : DataFrame
        One row per unit that both know.
    units : ndarray of int
    n_strangers : int
    """

    frame: pd.DataFrame
    units: NDArray[np.intp]
    n_strangers: int


def match_units(design: Design, data: Any) -> Matched:
    """One row of `data` for each unit, by the column of the subjects, or by the index where the fit has none.

    Raises
    ------
    ArgumentError
        If a subject has several rows, or none is known.
    """
    group = design.names.group
    frame = whole_frame(data)
    named = group is not None and group in frame
    if group is not None and not named and frame is not data:
        raise ArgumentError(
            f"outcomes have no column {group!r}, and a {type(data).__name__} has no index to name the subjects; add it"
        )
    # Counting rows names nobody where a column does, although subjects called 1, 2, 3 ... would be found.
    if group is not None and not named and frame.index.equals(pd.RangeIndex(len(frame))) and frame.index.name is None:
        other = _another_name(frame, design)
        if other is not None:
            raise ArgumentError(_no_column_of_subjects(frame, design, group, other))
    keys = frame[group] if named else pd.Series(frame.index)
    wrong = unhashable(keys)
    if wrong is not None:
        raise ArgumentError(
            f"outcomes name a {'subject' if group else 'row'} by {keys.iloc[wrong]!r}; use single values"
        )
    column = str(group) if named else "the index"
    where = known_places(np.fromiter(keys, object, len(keys)), design.labels, column)
    known = where >= 0
    twice = pd.Series(where[known]).duplicated().to_numpy()
    if twice.any():
        label = design.labels[where[known][twice.argmax()]]
        raise ArgumentError(
            f"outcomes must have one row per {'subject' if group else 'row'}, got several for {shown(label)}; "
            "keep one, e.g. by drop_duplicates()"
        )
    if not known.any():
        by = f"the column {group!r}" if named else "the index"
        if group and not named:
            raise ArgumentError(_no_column_of_subjects(frame, design, group, _another_name(frame, design)))
        raise ArgumentError(
            f"none of the {len(keys)} rows of outcomes belongs to the fit (matched by {by}); "
            f"name the {'subjects' if group else 'rows'} as in the fit, e.g. {shown(design.labels[0])}"
        )
    return Matched(frame[known].reset_index(drop=True), where[known], int((~known).sum()))


def _another_name(frame: pd.DataFrame, design: Design) -> Any:
    """The one column that names subjects of the fit, each once; None if there is none, or several."""
    columns = [frame.iloc[:, i].to_numpy(dtype=object) for i in range(frame.shape[1])]
    found = [
        name
        for name, labels in zip(frame.columns, columns, strict=True)
        if not pd.Series(labels).duplicated().any() and (places_of(labels, design.labels) >= 0).mean() > _MOST
    ]
    return found[0] if len(found) == 1 else None


def _no_column_of_subjects(frame: pd.DataFrame, design: Design, group: str, other: Any) -> str:
    """What to do about outcomes without the column of the subjects, whose index does not name them either."""
    cure = f"name the subjects as in the fit, e.g. {shown(design.labels[0])}, in a column {group!r} or as the index"
    if other is not None:
        cure = f"those of {other!r} are; rename it: outcomes.rename(columns={{{other!r}: {group!r}}})"
    return (
        f"outcomes have no column {group!r}, and the {len(frame)} labels of their index are not those of subjects of "
        f"the fit; {cure}"
    )


def parse_step_three(text: Any) -> MoEFormula:
    """A formula without sections.

    Raises
    ------
    FormulaError
        If it has sections or marks.
    """
    parsed = text if isinstance(text, MoEFormula) else parse_formula(text)
    marked = any(part.kind != "free" for part in parsed.expert)
    if marked or "|" in parsed.text:
        raise FormulaError("step 3 takes 'outcome ~ expert + x', without sections and marks", parsed.text)
    return parsed


def build_outcomes(design: Design, n_experts: int, formula: MoEFormula, data: Any, kind: str) -> Outcomes:
    """Arrays of ``outcome ~ expert + x``.

    Parameters
    ----------
    design : Design
        Of the fit.
    n_experts : int
    formula : MoEFormula
    data : DataFrame
        One row per unit.
    kind : {"auto", "numeric", "categorical"}

    Returns
    -------
    Outcomes

    Raises
    ------
    ArgumentError, DesignError
        If the frame does not fit the formula or the fit.
    """
    matched = match_units(design, data)
    if EXPERT in matched.frame:
        raise ArgumentError(f"outcomes has a column {EXPERT!r}, which names the experts in the formula; rename it")
    kind = response_kind(formula, matched.frame) if kind == "auto" else kind
    # The frame once for each expert, as if every unit belonged to it.
    codes = np.repeat(np.arange(1, n_experts + 1), len(matched.frame))
    copies = pd.concat([matched.frame] * n_experts, ignore_index=True)
    frame = copies.assign(**{EXPERT: pd.Categorical(codes, categories=range(1, n_experts + 1))})
    made = _quiet_design(formula, frame, kind)
    order = np.argsort(made.position, kind="stable")
    place = made.position[order]
    if kind != "categorical":
        check_varies(str(made.names.response), np.asarray(made.response, dtype=float))
    n = len(matched.frame)
    kept = place[place < n]  # the copies come one after the other, and a row is complete in all of them or in none
    X = made.expert[order].reshape(n_experts, len(kept), -1).transpose(1, 0, 2)
    plain = np.column_stack([np.ones(len(kept)), X[:, 0]])
    spare = {alias.column for alias in aliases(plain)}
    chosen = [j for j in range(plain.shape[1]) if j not in spare]
    names = ("Intercept", *made.names.expert)
    return Outcomes(
        units=matched.units[kept],
        X=X,
        Z=plain[:, chosen],
        names=made.names.expert,
        z_names=tuple(names[j] for j in chosen),
        response=np.asarray(made.response)[order][: len(kept)],
        levels=made.response_levels,
        n_missing=design.n_units - len(kept),
        n_strangers=matched.n_strangers,
    )


def response_kind(formula: MoEFormula, frame: pd.DataFrame) -> str:
    """``"categorical"`` for text, categories, truth values, and numbers that are only 0 and 1; else ``"numeric"``."""
    name = response_column(formula)
    if name is None or name not in frame:
        return "numeric"
    values = frame[name].dropna()
    if not pd.api.types.is_numeric_dtype(values.dtype) or pd.api.types.is_bool_dtype(values.dtype):
        return "categorical"
    return "categorical" if set(values.unique()) == {0, 1} else "numeric"


def _quiet_design(formula: MoEFormula, frame: pd.DataFrame, kind: str) -> Design:
    """The design of the copies; missing outcomes are counted by subjects, not by copies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DroppedRowsWarning)
        return build_design(formula, frame, response="categorical" if kind == "categorical" else "numeric")


def covariate_columns(design: Design, text: str, data: Any) -> Outcomes:
    """Arrays of ``expert ~ x``; `X` and `response` are empty.

    Raises
    ------
    ArgumentError, DesignError, FormulaError
        If the frame does not fit the formula or the fit.
    """
    right = text.partition("~")[2].strip()
    if not right:
        raise FormulaError(f"covariates are written '~ z1 + z2', got {text!r}")
    parsed = parse_step_three(f"{_PLACEHOLDER} ~ {right}")
    matched = match_units(design, data)
    counting = np.arange(len(matched.frame), dtype=float)  # a response is asked for, and only its rows are of use
    made = _quiet_design(parsed, matched.frame.assign(**{_PLACEHOLDER: counting}), "numeric")
    order = np.argsort(made.position, kind="stable")
    if not made.expert.shape[1]:
        raise DesignError(f"covariates {text!r} have no columns; write at least one")
    return Outcomes(
        units=matched.units[made.position[order]],
        X=np.empty((made.n, 0, 0)),
        Z=made.expert[order],
        names=(),
        z_names=made.names.expert,
        response=np.empty(0),
        levels=None,
        n_missing=design.n_units - made.n,
        n_strangers=matched.n_strangers,
        z_terms=column_terms(made, "expert"),
        z_design=made,
    )
