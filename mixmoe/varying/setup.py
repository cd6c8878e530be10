"""From a design to sorted rows, with the checks that only this family needs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixmoe._frame import shown
from mixmoe.design import Design
from mixmoe.errors import ArgumentError, DesignError, FormulaError
from mixmoe.formula import MoEFormula, parse_formula
from mixmoe.kernels.distribution import ETA_LIMIT, OFFSETS, Family, Outcome
from mixmoe.kernels.local import effective_rows
from mixmoe.varying.problem import Problem, Rows, Slots

Array = NDArray[np.float64]
IntArray = NDArray[np.intp]

MIN_EFFECTIVE = 2.0  # effective rows a window needs for each local coefficient of one expert


@dataclass(frozen=True, slots=True)
class Sorted:
    """Rows in the order of the index.

    Attributes
    ----------
    rows : Rows
    order : ndarray of int, shape (n,)
        Row of the design behind each sorted row.
    labels : ndarray of object, shape (n,)
        Row labels in the order of the index, for messages.
    """

    rows: Rows
    order: IntArray
    labels: NDArray[Any]


def checked_varying_formula(formula: Any) -> MoEFormula:
    """A parsed formula that this family can fit.

    Raises
    ------
    FormulaError
        If it has no ``vary:``, or sections or marks of other families.
    """
    parsed = formula if isinstance(formula, MoEFormula) else parse_formula(formula)
    if parsed.vary is None:
        raise FormulaError("VCMoE needs the section 'vary: u' that names the index; add it, or use MEMoE", parsed.text)
    for section in ("random", "seq"):
        if getattr(parsed, section) is not None:
            name = {"random": "re", "seq": "seq"}[section]
            raise FormulaError(
                f"VCMoE has no section '{name}:'; leave it out, and pass cluster= for rows of one subject", parsed.text
            )
    if parsed.sigma:
        raise FormulaError("VCMoE has no section 'sigma:'; leave it out, or use MEMoE, which has", parsed.text)
    if any(part.kind == "common" for part in parsed.expert):
        raise FormulaError(
            "VCMoE has no common(...); mark coefficients constant along the index by const(...)", parsed.text
        )
    return parsed


def sorted_rows(design: Design, family: Family, response: bool = True) -> Sorted:
    """The rows of a design in the order of the index.

    Parameters
    ----------
    design : Design
        With index, and auxiliary columns ``weights``, ``offset``, ``trials`` if used.
    family : Family
    response : bool
        Whether the response must be there; zeros stand in for it otherwise.

    Returns
    -------
    Sorted

    Raises
    ------
    DesignError
        If a response, weight or number of trials is impossible; names the first row.
    """
    index = np.asarray(design.index, dtype=float)
    order = np.argsort(index, kind="stable")
    n, aux = design.n, design.aux
    trials = np.asarray(aux.get("trials", np.ones(n)), dtype=float)
    weights = np.asarray(aux.get("weights", np.ones(n)), dtype=float)
    offset = np.asarray(aux.get("offset", np.zeros(n)), dtype=float)
    y = np.asarray(design.response, dtype=float) if response else np.zeros(n)
    _check_trials(design, family, trials)
    if response:
        _check_response(design, family, y, trials)
        _check_offset(design, family, offset)
        _check_weights(design, weights)
    outcome = Outcome(y, trials, family.constant(y, trials)).take(order)
    rows = Rows(outcome, design.expert[order], design.gate[order], index[order], offset[order], weights[order])
    return Sorted(rows, order, np.asarray(design.rows, dtype=object)[order])


def _check_response(design: Design, family: Family, y: Array, trials: Array) -> None:
    name = design.names.response
    if family.name == "gaussian":
        return
    _refuse(design, (y != np.floor(y)) | (y < 0), f"the response {name!r}", y, "a count 0, 1, 2 ...", family)
    if family.name == "binomial":
        more = "at most the number of trials" if "trials" in design.aux else "0 or 1; pass trials= for successes"
        _refuse(design, y > trials, f"the response {name!r}", y, more, family)


def _check_offset(design: Design, family: Family, offset: Array) -> None:
    if family.name != "gaussian":
        _refuse(design, np.abs(offset) > ETA_LIMIT, "the offset", offset, OFFSETS, family)


def _check_trials(design: Design, family: Family, trials: Array) -> None:
    wrong = (trials != np.floor(trials)) | (trials < 1)
    _refuse(design, wrong, "the number of trials", trials, "a whole number of at least 1", family)


def _check_weights(design: Design, weights: Array) -> None:
    bad = ~(weights >= 0.0)
    if bad.any():
        i = int(bad.argmax())
        raise DesignError(
            f"weights must not be negative, got {weights[i]:g} in row {shown(design.rows[i])}; correct it"
        )
    if not (weights > 0.0).any():
        raise DesignError(f"weights must be positive in some rows, got {len(weights)} zeros; leave weights out")


def _refuse(design: Design, bad: NDArray[np.bool_], what: str, values: Array, allowed: str, family: Family) -> None:
    if bad.any():
        i = int(bad.argmax())
        raise DesignError(
            f"{what} is {values[i]:g} in row {shown(design.rows[i])}; for family={family.name!r} it must be {allowed}; "
            "correct it or choose another family"
        )


def checked_index(index: Array, name: str) -> None:
    """Refuse an index with too few values for local lines.

    Raises
    ------
    DesignError
        If it has fewer than four values.
    """
    distinct = len(np.unique(index))
    if distinct < 4:
        raise DesignError(
            f"the index {name!r} has only {distinct} different values, at least 4 are needed for local lines; "
            f"use it as a factor, C({name}), in the formula"
        )


def make_grid(index: Array, grid: Any, n_grid: int) -> Array:
    """Grid points over the whole range of the index, or the user's.

    Raises
    ------
    ArgumentError
        If the user's grid is not ascending, finite, or leaves out part of the range.
    """
    low, high = float(index.min()), float(index.max())
    if grid is None:
        return np.linspace(low, high, n_grid)
    points = np.asarray(grid, dtype=float).ravel()
    if len(points) < 2 or not np.isfinite(points).all() or not (np.diff(points) > 0.0).all():
        raise ArgumentError(
            f"grid must be at least 2 finite ascending values, got {np.array2string(points, threshold=6)}"
        )
    if points[0] > low or points[-1] < high:
        raise ArgumentError(
            f"grid must cover the whole range of the index, {low:g} to {high:g}, got {points[0]:g} to {points[-1]:g}"
        )
    return points


def checked_bandwidth(value: Any, index: Array, name: str = "bandwidth") -> float:
    """A bandwidth in units of the index; infinity means constants.

    Raises
    ------
    ArgumentError
        If it is no positive number, or smaller than the largest gap of the index.
    """
    span = float(np.ptp(index))
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not float(value) > 0.0:
        raise ArgumentError(
            f"{name} must be a positive number in units of the index (range {span:g}), 'cv' or 'rule', got {value!r}"
        )
    h, gap = float(value), float(np.diff(np.sort(index)).max())
    if h <= gap / 2.0:
        raise ArgumentError(
            f"{name}={h:g} is smaller than half the largest gap between index values, {gap:g}; use a larger one, "
            f"for instance {span / 5.0:.3g}"
        )
    return h


def check_windows(problem: Problem, index_name: str) -> None:
    """Refuse a bandwidth that leaves too few rows at a grid point.

    Raises
    ------
    DesignError
        Names the grid point with the fewest effective rows.
    """
    slots, rows = problem.slots, problem.rows
    for windows, columns, what in (
        (problem.windows, slots.n_expert_columns, "experts"),
        (problem.gate_windows, slots.n_gate_columns * (slots.n_experts > 1), "gate"),
    ):
        needed = MIN_EFFECTIVE * columns + slots.n_experts
        effective = effective_rows(windows, rows.weights)
        worst = int(effective.argmin())
        if effective[worst] < needed:
            raise DesignError(
                f"at {index_name}={windows.grid[worst]:.4g} the window of bandwidth {windows.bandwidth:.4g} has an "
                f"effective sample size of {effective[worst]:.1f}, the local model of the {what} needs {needed:.0f}; "
                "use a larger bandwidth, fewer terms, or transform the index so that it is spread more evenly"
            )
        _check_distinct(windows.index, windows.lo, windows.hi, windows.grid, windows.bandwidth, index_name)


def _check_distinct(index: Array, lo: IntArray, hi: IntArray, grid: Array, h: float, name: str) -> None:
    """Refuse windows in which the index takes fewer than three values."""
    new = np.concatenate([[0], np.cumsum(np.diff(index) > 0.0)])
    distinct = new[hi - 1] - new[lo] + 1
    worst = int(distinct.argmin())
    if distinct[worst] < 3:
        raise DesignError(
            f"at {name}={grid[worst]:.4g} the window of bandwidth {h:.4g} holds {distinct[worst]} different values "
            "of the index (ties), a local line needs 3; use a larger bandwidth"
        )


def constant_slots(design: Design, slots: Slots, dispersion: str, everything: bool) -> NDArray[np.bool_]:
    """Which coefficient functions are held constant, shape (L,)."""
    out = np.zeros(slots.n, dtype=bool)
    out[slots.experts] = np.tile(design.expert_const, slots.n_experts)
    out[slots.dispersions] = dispersion == "const"
    out[slots.gates] = np.tile(design.gate_const, slots.n_experts - 1)
    return out | everything
