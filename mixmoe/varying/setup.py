"""From a design to sorted rows, with the checks that only this family needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array, IntArray
from mixmoe.arguments import checked_count, checked_positive
from mixmoe.design.beside import check_clusters
from mixmoe.design.design import Design
from mixmoe.design.formula import MoEFormula, parse_formula
from mixmoe.design.frame import check_sizes, shown
from mixmoe.errors import ArgumentError, DesignError, FormulaError
from mixmoe.responses.distribution import ETA_LIMIT, MOST_COUNTS, OFFSETS, Family, Observed, Outcome, check_maximum
from mixmoe.varying.identifiability import constants_fault
from mixmoe.varying.problem import Problem, Rows, Slots, centred, even_grid, nearest_widths, pooled_spread
from mixmoe.varying.windows import LINE, Windows, blocks, effective_rows, hankel, local_moments, once_round, origin

WIDEST = 100  # bandwidths over the range of the index beyond which windows no longer differ
EXACT = 1e-10  # residual standard deviation over largest response below which a response has no error
SIZES = (1e-60, 1e60)  # of the largest value of a column; fourth powers of others leave the range of the numbers
SINGULAR = 1e-10  # smallest eigenvalue of a local normal matrix in correlation form that counts as positive
SOMEWHERE = (
    "(a column that is constant there, or a function of the index); use a larger {}, const(...) for a column that "
    "is constant there, or leave it out"
)
EVERYWHERE = (
    "(nor can any other window: functions of the index with the others describe one of them already); leave it out, "
    "since const(...) would not be identified either"
)
FEWEST_POINTS = 50  # of a grid that nobody asked for
FEWEST_COMPARED = 12  # of such a grid where bandwidths are only compared
POINTS_PER_BANDWIDTH = 3  # of such a grid: interpolation between them adds nothing to the error of the functions
MOST_BETWEEN = 20  # grid points between two quantiles of the index: ties leave windows without any width
MIN_EFFECTIVE = 2.0  # effective rows a window of a mixture needs for each column of the experts


@dataclass(frozen=True, slots=True)
class Sorted:
    """Rows in the order of the index.

    Attributes
    ----------
    rows : Rows
    order : ndarray of int, shape (n,)
        Row of the design behind each sorted row.
    """

    rows: Rows
    order: IntArray


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


def _in_memory(values: Array, rows: IntArray) -> Array:
    """Some rows of an array."""
    return values[rows]


def sorted_rows(
    design: Design,
    family: Family,
    response: bool = True,
    period: float = LINE,
    taken: Callable[[Array, IntArray], Array] = _in_memory,
) -> Sorted:
    """The rows of a design in the order of the index, of a circle once round from where its grid begins.

    Parameters
    ----------
    design : Design
        With index, and auxiliary columns ``weights``, ``offset``, ``trials`` if used.
    family : Family
    response : bool
        Whether the response must be there; zeros stand in for it otherwise.
    period : float
        Of an index on a circle, else `LINE`.
    taken : callable
        From an array and places of its rows to these rows, where they are to be kept.

    Returns
    -------
    Sorted

    Raises
    ------
    DesignError
        If a response or number of trials is impossible; names the first row.
    """
    n = design.n
    trials = _column(design, "trials", 1.0)
    weights = _column(design, "weights", 1.0)
    offset = _column(design, "offset", 0.0)
    y = np.asarray(design.response, dtype=float) if response else np.zeros(n)
    _check_trials(design, family, trials)
    if response:
        _check_response(design, family, y, trials)
        if family.name != "gaussian":
            _refuse(design, np.abs(offset) > ETA_LIMIT, "the offset", offset, OFFSETS, family)
        _check_sizes(design, y, weights, offset)
    index = np.asarray(design.index, dtype=float)
    index = once_round(index, origin(index, y, period), period) if period else index
    order = np.argsort(index, kind="stable")
    columns = (y, trials, family.constant(y, trials), design.expert, design.gate, index, offset, weights)
    y, trials, constant, expert, gate, index, offset, weights = (taken(values, order) for values in columns)
    return Sorted(Rows(Outcome(y, trials, constant), expert, gate, index, offset, weights, period), order)


def _column(design: Design, name: str, default: float) -> Array:
    """An auxiliary column, or its default in all rows."""
    return np.asarray(design.aux.get(name, np.full(design.n, default)), dtype=float)


def _check_response(design: Design, family: Family, y: Array, trials: Array) -> None:
    name = design.names.response
    if family.name == "gaussian":
        return
    _refuse(design, (y != np.floor(y)) | (y < 0), f"the response {name!r}", y, "a count 0, 1, 2 ...", family)
    if family.name == "binomial":
        more = "at most the number of trials" if "trials" in design.aux else "0 or 1; pass trials= for successes"
        _refuse(design, y > trials, f"the response {name!r}", y, more, family)
    else:
        _refuse(design, y > MOST_COUNTS, f"the response {name!r}", y, f"at most {MOST_COUNTS:g}", family)


def _check_trials(design: Design, family: Family, trials: Array) -> None:
    wrong = (trials != np.floor(trials)) | (trials < 1)
    _refuse(design, wrong, "the number of trials", trials, "a whole number of at least 1", family)
    _refuse(design, trials > MOST_COUNTS, "the number of trials", trials, f"at most {MOST_COUNTS:g}", family)


def _check_sizes(design: Design, y: Array, weights: Array, offset: Array) -> None:
    """Refuse columns so large or small that fourth powers of their values leave the range of the numbers."""
    index = np.asarray(design.index, dtype=float)
    names = design.names
    singles = {f"the response {names.response!r}": y, f"the index {names.index!r}": index}
    singles |= {"weights": weights, "the offset": offset}
    terms = {f"the term {name!r}": column for name, column in zip(names.expert, design.expert.T, strict=True)}
    terms |= {f"the gate term {name!r}": column for name, column in zip(names.gate, design.gate.T, strict=True)}
    check_sizes(singles | terms, design.rows, SIZES)


def _refuse(design: Design, bad: NDArray[np.bool_], what: str, values: Array, allowed: str, family: Family) -> None:
    if bad.any():
        i = int(bad.argmax())
        raise DesignError(
            f"{what} is {values[i]:g} in row {shown(design.rows[i])}; for family={family.name!r} it must be {allowed}; "
            "correct it or choose another family"
        )


def check_designs(design: Design, slots: Slots) -> None:
    """Refuse experts without columns, and clusters that are one.

    Raises
    ------
    DesignError
    """
    if slots.n_expert_columns == 0:
        raise DesignError("the expert part has no columns, got only 0; write at least an intercept, 1")
    if "cluster" in design.aux:
        check_clusters(pd.Series(design.aux["cluster"], dtype=object), design.rows)


def checked_floor(value: Any) -> float:
    """The smallest sigma as a fraction of the residual standard deviation of one regression for all rows.

    Raises
    ------
    ArgumentError
        If it is not between 0 and 1.
    """
    if checked_positive(value, "sigma_floor") >= 1.0:
        raise ArgumentError(
            f"sigma_floor must be below 1, got {shown(value)}: it is a fraction of the residual standard deviation "
            "of one regression for all rows, which experts are there to undercut; use for instance 0.01"
        )
    return float(value)


def check_errors(rows: Rows, family: Family, response: str) -> None:
    """Refuse responses whose likelihood has no maximum, or, of a normal one without error, no bound.

    Raises
    ------
    DesignError
        If one regression for all rows leaves nothing, or all responses lie at one end of their range.
    """
    check_maximum(family.name, Observed(response, rows.outcome.y, rows.outcome.trials, rows.offset), rows.design)
    if family.name != "gaussian":
        return
    root = np.sqrt(rows.weights)
    y = (rows.outcome.y - rows.offset) * root
    if pooled_spread(rows, family) <= EXACT * float(np.abs(y).max()) / float(root.max()):
        raise DesignError(
            f"the response {response!r} is an exact linear function of the expert part, without any error in "
            f"{rows.n} rows; a mixture has nothing to explain, so check the response"
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
            f"leave out 'vary: {name}' and let coefficients differ between its values as those of a factor do, for "
            f"instance '(z1 + z2) * C({name})' among the terms of a MEMoE"
        )


def default_grid(rows: Rows, experts: int, bandwidth: float, n_grid: int | None, fewest: int) -> Array:
    """Equally spaced grid points over the whole range of the index, or round the circle; or the values of few rows.

    Parameters
    ----------
    rows : Rows
    experts : int
        With one expert and at most `FEWEST_POINTS` rows the grid is made of their values: between them windows may be
        empty that no row needs, and would force a wider bandwidth.
    bandwidth : float
        The narrowest in use.
    n_grid : int or None
        By default `fewest`, or as many as make the step a third of the bandwidth; no more than there are rows, since a
        bandwidth that would need more leaves no rows in its windows.
    fewest : int
    """
    if rows.share:
        return _grid_of_rows(rows, n_grid or max(fewest, int(np.ceil(2.0 * POINTS_PER_BANDWIDTH / rows.share)) + 1))
    if n_grid is None and experts == 1 and rows.n <= FEWEST_POINTS and not rows.period:
        return np.unique(rows.index)
    if n_grid is None:
        fine = min(POINTS_PER_BANDWIDTH * rows.span / bandwidth, float(rows.n))
        n_grid = max(fewest, int(np.ceil(fine)) + 1)
    return even_grid(rows, rows.ends, n_grid)


def _grid_of_rows(rows: Rows, n_grid: int) -> Array:
    """Quantiles of the index, since windows are narrow where rows are dense, and more points between distant ones."""
    shares = np.arange(n_grid) / n_grid if rows.period else np.linspace(0.0, 1.0, n_grid)
    points = np.unique(np.quantile(rows.index, shares))
    ends = np.append(points, points[0] + rows.period) if rows.period else points
    widths = nearest_widths(rows, ends)
    needed = POINTS_PER_BANDWIDTH * np.diff(ends) / np.minimum(widths[:-1], widths[1:])
    parts = np.ceil(np.clip(needed, 1.0, MOST_BETWEEN)).astype(int)
    pieces = [np.linspace(a, b, k, endpoint=False) for a, b, k in zip(ends[:-1], ends[1:], parts, strict=True)]
    return np.concatenate([*pieces, [] if rows.period else ends[-1:]])


def checked_grid(rows: Rows, grid: Any) -> Array:
    """The user's grid points.

    Raises
    ------
    ArgumentError
        If the user's grid is not ascending, finite, or leaves out part of the range; if the index is on a circle.
    """
    if rows.period:
        raise ArgumentError(
            f"grid={shown(grid)} is for an index with two ends; the grid of cyclic(...) goes round the circle in equal "
            "steps, use n_grid= for how many, and functions(u) for values in between"
        )
    low, high = (float(end) for end in rows.ends)
    points = checked_numbers(grid, "grid")
    if len(points) < 2 or not np.isfinite(points).all() or not (np.diff(points) > 0.0).all():
        raise ArgumentError(
            f"grid must be at least 2 finite ascending values, got {np.array2string(points, threshold=6)}"
        )
    if points[0] > low or points[-1] < high:
        raise ArgumentError(
            f"grid must cover the whole range of the index, {low:g} to {high:g}, got {points[0]:g} to {points[-1]:g}"
        )
    return points


def checked_numbers(values: Any, name: str) -> Array:
    """`values` as an array of numbers.

    Raises
    ------
    ArgumentError
        If they are no numbers.
    """
    try:
        return np.atleast_1d(np.asarray(values, dtype=float)).ravel()
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{name} must be numbers, got {shown(values)}; pass a list or an array") from error


def checked_bandwidth(value: Any, rows: Rows, name: str = "bandwidth") -> float:
    """A bandwidth in units of the index; infinity means constants.

    Raises
    ------
    ArgumentError
        If it is no positive number, or far beyond the range of the index, or beyond half the period of a circle.
    """
    span = rows.span
    words = {"bandwidth": ", 'cv' or 'rule'", "gate_bandwidth": ", 'cv' or None for that of the experts"}.get(name, "")
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not float(value) > 0.0:
        raise ArgumentError(
            f"{name} must be a positive number in units of the index (range {span:g}){words}, got {shown(value)}"
        )
    h = float(value)
    if rows.period and rows.widest < h < np.inf:
        raise ArgumentError(
            f"{name}={h:g} is more than half the period {span:g}, at which a window holds every row already; use at "
            f"most {rows.widest:g}, or inf for constants"
        )
    if WIDEST * span < h < np.inf:
        raise ArgumentError(
            f"{name}={h:g} is more than {WIDEST} times the range of the index, {span:g}, where functions have long "
            "been straight lines; use a smaller one, or inf for constants"
        )
    return h


def checked_span(value: Any) -> float | str:
    """A share of the rows, or ``"cv"``.

    Raises
    ------
    ArgumentError
        If it is neither.
    """
    if isinstance(value, str) and value == "cv":
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0.0 < float(value) <= 1.0:
        raise ArgumentError(
            f"span must be the share of the rows in a window, above 0 and at most 1, or 'cv', got {shown(value)}"
        )
    return float(value)


def checked_candidates(values: Any, rows: Rows) -> list[float]:
    """Finite bandwidths to be compared.

    Raises
    ------
    ArgumentError
        If there are none, or one is impossible.
    """
    numbers = checked_numbers(values, "candidates")
    if rows.share and not ((numbers > 0.0) & (numbers <= 1.0)).all():
        raise ArgumentError(f"candidates must be spans, above 0 and at most 1, got {shown(values)}")
    found = numbers.tolist() if rows.share else [checked_bandwidth(float(h), rows, "candidates") for h in numbers]
    if not found or not np.isfinite(found).all():
        raise ArgumentError(f"candidates must be finite bandwidths, at least one, got {shown(values)}")
    return found


def checked_folds(folds: Any, units: int) -> int:
    """Number of folds, at most one for each row or cluster.

    Raises
    ------
    ArgumentError
        If it is no whole number of at least 2, or there are fewer units.
    """
    if checked_count(folds, "folds", least=2) > units:
        raise ArgumentError(f"folds={folds} is more than the {units} rows or clusters; use at most {units}")
    return int(folds)


@dataclass(frozen=True, slots=True)
class WindowFault:
    """Why a bandwidth cannot be used.

    Attributes
    ----------
    text : str
        What is wrong, where, and what to do.
    place : float
        Value of the index at which it is worst.
    columns : tuple of int
        Columns of which local lines cannot be told apart there, without those that never change; none if rows or values
        of the index are too few for any column.
    gate : bool
        Whether the columns are those of the gate.
    """

    text: str
    place: float
    columns: tuple[int, ...] = ()
    gate: bool = False


def window_fault(problem: Problem, design: Design) -> WindowFault | None:
    """The first reason why a bandwidth cannot be used, None if it can.

    Parameters
    ----------
    problem : Problem
    design : Design

    Returns
    -------
    WindowFault or None
        Too few effective rows or values of the index at a grid point, columns that are one there, or constants that
        functions make superfluous.

    Notes
    -----
    Columns are compared around their means, in which the model is fitted: a covariate far from its origin beside its
    spread is no constant.
    """
    index_name, slots = str(design.names.index), problem.slots
    inner = centred(problem)[0]
    rows, is_gate = inner.rows, slots.n_experts > 1
    parts = [(problem.windows, rows.design, slots.expert(0), design.names.expert, False)]
    parts += [(problem.gate_windows, rows.gate, slots.gate(1), design.names.gate, True)] if is_gate else []
    for windows, columns, _, _, gate in parts:
        fault = _too_few(windows, rows.weights, columns.shape[1], slots.n_experts, gate, index_name)
        if fault is not None:
            return fault
    for windows, columns, where, names, gate in parts:
        fault = _collinear(rows, windows, columns, ~problem.const[where], names, gate, index_name)
        if fault is not None:
            return fault
        text = constants_fault(problem, windows, columns, problem.const[where], names, index_name)
        if text is not None:
            return WindowFault(text, np.nan)
    return None


def needed_rows(columns: int, experts: int) -> float:
    """Effective rows that a window needs: more for each column of a mixture, whose experts have only some of them."""
    return (MIN_EFFECTIVE if experts > 1 else 1.0) * columns + experts


def _too_few(windows: Windows, weights: Array, columns: int, experts: int, gate: bool, name: str) -> WindowFault | None:
    """Windows with too few effective rows, or values of the index, for local lines."""
    needed = needed_rows(columns, experts)
    effective = effective_rows(windows, weights)
    worst = int(effective.argmin())
    place, what = float(windows.grid[worst]), "gate" if gate else "experts"
    if effective[worst] < needed:
        return WindowFault(
            f"at {name}={place:.4g} the window of {windows.words(worst)} has an "
            f"effective sample size of {effective[worst]:.1f}, the local model of the {what} needs {needed:.0f}; "
            + (
                "use a larger span or fewer terms"
                if windows.share
                else "use a larger bandwidth, fewer terms, or transform the index so that it is spread more evenly"
            ),
            place,
            gate=gate,
        )
    new = np.concatenate([[0], np.cumsum(np.diff(windows.index) > 0.0)])
    turn = new[-1] + 1  # values met once round a circle; no value lies on both sides of its origin
    last, first = np.divmod(windows.hi - 1, len(new)), np.divmod(windows.lo, len(new))
    distinct = new[last[1]] + turn * last[0] - new[first[1]] - turn * first[0] + 1
    worst = int(distinct.argmin())
    if distinct[worst] >= 3:
        return None
    place = float(windows.grid[worst])
    return WindowFault(
        f"at {name}={place:.4g} the window of {windows.words(worst)} holds {distinct[worst]} different "
        f"values of the index (ties), a local line needs 3; use a larger {'span' if windows.share else 'bandwidth'}",
        place,
        gate=gate,
    )


def _collinear(
    rows: Rows,
    windows: Windows,
    design: Array,
    vary: NDArray[np.bool_],
    names: Sequence[str],
    gate: bool,
    index_name: str,
) -> WindowFault | None:
    """Windows in which local lines of some columns are collinear."""
    varying = np.flatnonzero(vary)
    if not len(varying):
        return None
    columns, q = design[:, varying], len(varying)
    products = (columns[:, :, None] * columns[:, None, :]).reshape(len(columns), -1)
    pieces = [local_moments(b, (b.kernel * rows.weights[b.rows])[None], products, 3) for b in blocks(windows)]
    normal = hankel(np.concatenate(pieces).reshape(-1, 3, q, q), 1)  # (G, 2 q, 2 q)
    size = np.einsum("gii->gi", normal)
    root = 1.0 / np.sqrt(np.where(size > 0.0, size, np.inf))
    values, vectors = np.linalg.eigh(normal * root[:, :, None] * root[:, None, :])
    worst = int(values[:, 0].argmin())
    if values[worst, 0] >= SINGULAR:
        return None
    loading = np.abs(vectors[worst, :, 0]).reshape(2, q).max(axis=0)
    found = varying[loading > 0.1 * loading.max()]
    inside = design[windows.parts[worst]]
    still = [j for j in found if np.ptp(inside[:, j]) == 0.0 < np.ptp(design[:, j])]
    found = np.array(still) if still else found  # constant there, beside an intercept that need not be named
    named = ", ".join(repr(names[j]) for j in found)
    everywhere, place = bool((values[:, 0] < SINGULAR).all()), float(windows.grid[worst])
    return WindowFault(
        f"at {index_name}={place:.4g} the window of {windows.words(worst)} cannot tell local lines of {named} apart "
        + (EVERYWHERE if everywhere else SOMEWHERE.format("span" if windows.share else "bandwidth")),
        place,
        tuple(int(j) for j in found if np.ptp(design[:, j]) > 0.0),
        gate,
    )


def constant_slots(
    design: Design, slots: Slots, dispersion: str, bandwidth: float, gate_bandwidth: float | None
) -> NDArray[np.bool_]:
    """Which coefficient functions are held constant, shape (L,): marked ones, and all with an infinite bandwidth."""
    out = np.zeros(slots.n, dtype=bool)
    out[slots.experts] = np.tile(design.expert_const, slots.n_experts)
    out[slots.dispersions] = dispersion == "const"
    out[: slots.gates.start] |= np.isinf(bandwidth)
    out[slots.gates] = np.tile(design.gate_const, slots.n_experts - 1)
    out[slots.gates] |= np.isinf(bandwidth if gate_bandwidth is None else gate_bandwidth)
    return out
