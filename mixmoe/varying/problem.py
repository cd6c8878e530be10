"""What the algorithms of the family work on: rows sorted by the index, windows, the layout of the functions.

Covariates around their means make another problem of the same kind: a line far from the origin of a covariate is hard
to find, for intercept and slope are then all but collinear. Around its mean the intercept is the predictor of an
average row, whatever the origin, and what is drawn towards a line function by function (`mixmoe.varying.smoothing`)
does not depend on where that is.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mixmoe._typing import Array, BoolArray
from mixmoe.mixture.gate import GatePenalty
from mixmoe.responses.distribution import Family, Outcome
from mixmoe.responses.zero_inflated import ZeroInflated
from mixmoe.varying.windows import LINE, Windows, build_windows, hermite_matrix, wrapped

THETA_OVER_MEAN = 1e4  # largest theta of a negative binomial, over the mean: variance 1.0001 means
RUN_ROWS = 100_000  # rows that are worked on together where they lie in files
ZEROS = 9.0  # largest log odds of a certain zero, or of none: one row in eight thousand
THETA_FLOOR = 1e-3  # smallest theta of a negative binomial: variance a thousand squared means


@dataclass(frozen=True)  # not slotted: what follows from the attributes is kept
class Slots:
    """Order of the coefficient functions: experts by columns, dispersions, gates of experts 2 .. K by columns.

    Attributes
    ----------
    n_experts, n_expert_columns, n_gate_columns : int
    has_dispersion : bool
    """

    n_experts: int
    n_expert_columns: int
    n_gate_columns: int
    has_dispersion: bool

    @cached_property
    def experts(self) -> slice:
        """All expert coefficients."""
        return slice(0, self.n_experts * self.n_expert_columns)

    @cached_property
    def dispersions(self) -> slice:
        """All log dispersions."""
        first = self.n_experts * self.n_expert_columns
        return slice(first, first + self.n_experts * self.has_dispersion)

    @cached_property
    def gates(self) -> slice:
        """All gate coefficients."""
        first = self.dispersions.stop
        return slice(first, first + (self.n_experts - 1) * self.n_gate_columns)

    @cached_property
    def n(self) -> int:
        """Number of coefficient functions, L."""
        return self.gates.stop

    def expert(self, c: int) -> slice:
        """Coefficients of expert c, counted from 0."""
        return slice(c * self.n_expert_columns, (c + 1) * self.n_expert_columns)

    def gate(self, c: int) -> slice:
        """Gate coefficients of expert c >= 1, counted from 0."""
        first = self.gates.start + (c - 1) * self.n_gate_columns
        return slice(first, first + self.n_gate_columns)


@dataclass(frozen=True)  # not slotted: what follows from the attributes is kept
class Rows:
    """The data, sorted by the index.

    Attributes
    ----------
    outcome : Outcome
    design : ndarray, shape (n, p)
    gate : ndarray, shape (n, m)
    index : ndarray, shape (n,)
        Ascending; on a circle from its origin once round.
    offset, weights : ndarray, shape (n,)
    period : float
        Of an index on a circle, else `LINE`.
    share : float
        Of the rows that each window holds, if the bandwidth is a span, else zero.
    penalty : GatePenalty or None
        Of the gate: a log prior that acts like further rows.
    in_files : callable or None
        Makes an array of a shape and type that lies in a file, where the rows do; None if they are in memory.
    """

    outcome: Outcome
    design: Array
    gate: Array
    index: Array
    offset: Array
    weights: Array
    period: float = LINE
    share: float = 0.0
    penalty: GatePenalty | None = None
    in_files: Callable[[tuple[int, ...], Any], Array] | None = None

    @cached_property
    def runs(self) -> tuple[slice, ...]:
        """Neighbouring rows that are worked on together: all, or where rows lie in files, some after the other."""
        step = max(self.n, 1) if self.in_files is None else RUN_ROWS
        return tuple(slice(start, min(start + step, self.n)) for start in range(0, self.n, step))

    def made(self, make: Callable[[slice], Array], axis: int = 0) -> Array:
        """An array of all rows, of which `make` gives those of a run along `axis`, first or last; kept as rows are."""
        if self.in_files is None:
            return make(self.runs[0])
        out: Array | None = None
        for run in self.runs:
            part = make(run)
            if out is None:
                shape = (self.n, *part.shape[1:]) if axis == 0 else (*part.shape[:-1], self.n)
                out = self.in_files(shape, part.dtype)
            out[run if axis == 0 else (..., run)] = part
        assert out is not None
        return out

    @cached_property
    def n(self) -> int:
        """Number of rows, n."""
        return len(self.index)

    @cached_property
    def span(self) -> float:
        """Range of the index, or its period."""
        return self.period or float(np.ptp(self.index))

    @cached_property
    def ends(self) -> Array:
        """First and last value of the index, shape (2,)."""
        return self.index[[0, -1]]

    @cached_property
    def widest(self) -> float:
        """Bandwidth, or span, beyond which windows no longer differ much; on a circle none is wider."""
        if self.share:
            return 1.0
        return 0.5 * self.period if self.period else 2.0 * self.span

    def with_weights(self, weights: Array) -> "Rows":
        """The same rows with other weights."""
        return replace(self, weights=weights)

    def with_response(self, y: Array, constant: Array) -> "Rows":
        """The same rows with another response."""
        return replace(self, outcome=Outcome(y, self.outcome.trials, constant))

    def take(self, rows: slice | NDArray[np.intp]) -> "Rows":
        """Some of the rows, in memory; `rows` ascending."""
        return Rows(
            self.outcome.take(rows),
            self.design[rows],
            self.gate[rows],
            self.index[rows],
            self.offset[rows],
            self.weights[rows],
            self.period,
            self.share,
            self.penalty,
        )


def even_grid(rows: Rows, points: Array, n_grid: int) -> Array:
    """Equally spaced grid points over the range of others, on a circle once round from the first."""
    if rows.period:
        return points[0] + rows.period * np.arange(n_grid) / n_grid
    return np.linspace(points[0], points[-1], n_grid)


def nearest_widths(rows: Rows, grid: Array) -> Array:
    """Distances to the nearest rows that are a share of all, shape (G,): the windows of a span (Cleveland 1979)."""
    last = max(int(np.ceil(rows.share * rows.n)), 1) - 1
    away = (np.abs(wrapped(rows.index - u, rows.period)) for u in grid)
    least = np.finfo(float).eps * rows.span  # ties may fill a window with one value of the index
    return np.array([max(float(np.partition(one, last)[last]), least) for one in away])


def place_columns(rows: Rows) -> Array:
    """Where rows lie along the index, (n, 1), or on the circle, (n, 2)."""
    angle = 2.0 * np.pi * rows.index / rows.period if rows.period else None
    return rows.index[:, None] if angle is None else np.column_stack([np.cos(angle), np.sin(angle)])


@dataclass(frozen=True)  # not slotted: what follows from the attributes is kept
class Problem:
    """Rows, windows and layout: everything that stays fixed while a model is fitted.

    Attributes
    ----------
    rows : Rows
    family : Family
    slots : Slots
    const : ndarray of bool, shape (L,)
        Functions held constant along the index.
    windows, gate_windows : Windows
        Windows of experts (and dispersions) and of the gate; the same object when the bandwidths agree.
    levels, gate_levels : csr_array, shape (n, 2 G)
        Interpolation from the grid to the rows.
    scale : ndarray, shape (L,)
        A change of a function by this much changes its predictor by about one unit of noise.
    floor : float
        Smallest log dispersion allowed.
    ceiling : float
        Largest log dispersion allowed, inf for families without one.
    design_t, gate_t : ndarray, shape (p, n), (m, n)
    products, gate_products : ndarray, shape (n, p * p), (n, m * m)
        Outer products of the design rows.
    """

    rows: Rows
    family: Family
    slots: Slots
    const: BoolArray
    windows: Windows
    gate_windows: Windows
    levels: sparse.csr_array
    gate_levels: sparse.csr_array
    scale: Array
    floor: float
    ceiling: float
    design_t: Array
    gate_t: Array
    products: Array
    gate_products: Array

    @cached_property
    def bandwidths(self) -> Array:
        """Bandwidth of each function, shape (L,); slopes are per this length."""
        out = np.full(self.slots.n, self.windows.bandwidth)
        out[self.slots.gates] = self.gate_windows.bandwidth
        return out

    @cached_property
    def order(self) -> NDArray[np.intp]:
        """Degree of the local polynomial of each function, shape (L,): 0 for log theta, which is hard to pin down."""
        out = np.ones(self.slots.n, dtype=np.intp)
        out[self.slots.dispersions] = self.family.name == "gaussian" or isinstance(self.family, ZeroInflated)
        return out

    @cached_property
    def free(self) -> BoolArray:
        """Levels and slopes that are estimated locally, shape (2, L)."""
        return (np.arange(2)[:, None] <= self.order) & ~self.const


def build_problem(
    rows: Rows,
    family: Family,
    slots: Slots,
    const: BoolArray,
    grid: Array,
    bandwidth: float,
    gate_bandwidth: float,
    sigma_floor: float,
) -> Problem:
    """Windows, interpolation and products for one bandwidth.

    Parameters
    ----------
    rows : Rows
    family : Family
    slots : Slots
    const : ndarray of bool, shape (L,)
    grid : ndarray, shape (G,)
    bandwidth, gate_bandwidth : float
    sigma_floor : float
        Smallest sigma as a fraction of the residual standard deviation of one regression for all rows.

    Returns
    -------
    Problem
    """
    widths = nearest_widths(rows, grid) if rows.share else None
    windows = build_windows(rows.index, grid, bandwidth, rows.period, widths, rows.share)
    same = gate_bandwidth == bandwidth
    gate_windows = windows if same else build_windows(rows.index, grid, gate_bandwidth, rows.period)
    levels = levels_of(rows, grid, bandwidth)
    spread = pooled_spread(rows, family)
    least = sigma_floor * spread if family.name == "gaussian" else THETA_FLOOR
    return Problem(
        rows,
        family,
        slots,
        const,
        windows,
        gate_windows,
        levels,
        levels if same else levels_of(rows, grid, gate_bandwidth),
        floor=-ZEROS if isinstance(family, ZeroInflated) else float(np.log(least)),
        ceiling=_ceiling(rows, family, spread),
        **_from_designs(rows, slots, spread),
    )


def with_rows(problem: Problem, some: NDArray[np.intp]) -> Problem:
    """The problem with some of its rows, in memory; windows, scales and limits are those of all."""
    rows, own, gates = problem.rows.take(some), problem.windows, problem.gate_windows

    def of(windows: Windows) -> Windows:
        at = (windows.grid, windows.bandwidth, windows.period, windows.widths, windows.share)
        return build_windows(rows.index, *at)

    windows, levels = of(own), levels_of(rows, own.grid, own.bandwidth)
    made = {**_from_designs(rows, problem.slots, 1.0), "scale": problem.scale}
    return replace(
        problem,
        rows=rows,
        windows=windows,
        gate_windows=windows if gates is own else of(gates),
        levels=levels,
        gate_levels=levels if gates is own else levels_of(rows, own.grid, gates.bandwidth),
        **made,
    )


def levels_of(rows: Rows, grid: Array, bandwidth: float) -> sparse.csr_array:
    """Interpolation of levels and slopes from the grid to the rows, see `hermite_matrix`."""
    if rows.in_files is None:
        return hermite_matrix(grid, bandwidth, rows.index, rows.period)

    def of(run: slice) -> sparse.csr_array:
        return hermite_matrix(grid, bandwidth, rows.index[run], rows.period)

    width = of(slice(0, 1)).nnz
    values = rows.made(lambda run: of(run).data.reshape(-1, width))
    columns = rows.made(lambda run: of(run).indices.reshape(-1, width).astype(np.int32))
    starts = np.arange(0, width * rows.n + 1, width, dtype=np.int32 if width * rows.n < 2**31 else np.int64)
    return sparse.csr_array((values.ravel(), columns.ravel(), starts), shape=(rows.n, 2 * len(grid)))


def _ceiling(rows: Rows, family: Family, spread: float) -> float:
    """Largest log dispersion.

    Squares of one regression for all rows leave no expert a larger sigma than that of all of them on one row. Only a
    line through the log sigma of the few rows beside a gap of the index would go on into it beyond every number.
    """
    if isinstance(family, ZeroInflated):
        return ZEROS
    if family.name == "negbinomial":
        return float(np.log(THETA_OVER_MEAN * max(1.0, rows.outcome.y.mean())))
    return float(np.log(spread * np.sqrt(rows.n))) if family.name == "gaussian" else np.inf


def with_designs(problem: Problem, design: Array, gate: Array) -> Problem:
    """The problem with other columns that span the same predictors, and all that follows from them."""
    rows = replace(problem.rows, design=design, gate=gate)
    return replace(problem, rows=rows, **_from_designs(rows, problem.slots, pooled_spread(rows, problem.family)))


def _from_designs(rows: Rows, slots: Slots, spread: float) -> dict[str, Any]:
    """What of a problem follows from its designs: scales, transposes and products."""

    def squares(design: Array) -> Array:
        return np.sum([(design[run] ** 2).sum(axis=0) for run in rows.runs], axis=0)

    experts, gates = (
        np.sqrt(np.where((size := squares(design) / rows.n) > 0.0, size, 1.0)) for design in (rows.design, rows.gate)
    )
    scale = np.ones(slots.n)
    scale[slots.experts] = np.tile(spread / experts, slots.n_experts)
    scale[slots.gates] = np.tile(1.0 / gates, slots.n_experts - 1)
    return {
        "scale": scale,
        "design_t": rows.made(lambda run: np.ascontiguousarray(rows.design[run].T), axis=-1),
        "gate_t": rows.made(lambda run: np.ascontiguousarray(rows.gate[run].T), axis=-1),
        "products": rows.made(lambda run: outer_rows(rows.design[run])),
        "gate_products": rows.made(lambda run: outer_rows(rows.gate[run])),
    }


def pooled_spread(rows: Rows, family: Family) -> float:
    """Residual standard deviation of one least-squares fit for all rows (Gaussian), else one."""
    if family.name != "gaussian":
        return 1.0
    root = np.sqrt(rows.weights)[:, None]
    y = rows.outcome.y - rows.offset
    design = rows.design
    still = (np.ptp(design, axis=0) == 0.0) & (design[0] != 0.0)
    if still.any():  # around their means: the same fit, with columns far from zero beside their spread told apart
        design = design - np.where(still, 0.0, np.average(design, axis=0, weights=rows.weights))
    coef = np.linalg.lstsq(design * root, y * root[:, 0], rcond=None)[0]
    residual = y - design @ coef
    return float(np.sqrt(np.average(residual**2, weights=rows.weights)))


def outer_rows(design: Array) -> Array:
    """Outer product of each row with itself, shape (n, p p)."""
    return (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)


@dataclass(frozen=True, slots=True)
class Centring:
    """Means that go from the covariates into the intercepts.

    Attributes
    ----------
    expert, gate : ndarray, shape (p,), (m,)
        What each coefficient adds to the intercept in the centred problem; zero for the intercept itself.
    expert_intercept, gate_intercept : int
        Column of the intercept; -1 if there is none, and nothing is centred.
    """

    expert: Array
    gate: Array
    expert_intercept: int
    gate_intercept: int

    def outwards(self, slots: Slots, coef: Array) -> Array:
        """Coefficients (..., L) of the centred problem as those of the original problem."""
        return self.inwards(slots, coef, -1.0)

    def matrix(self, slots: Slots) -> Array:
        """Coefficients of the original problem from those of the centred problem, shape (L, L)."""
        return self.outwards(slots, np.eye(slots.n)).T

    def inwards(self, slots: Slots, coef: Array, sign: float = 1.0) -> Array:
        """Coefficients (..., L) of the original problem as those of the centred problem; with a minus the way back."""
        out = coef.copy()
        for c in range(slots.n_experts):
            if self.expert_intercept >= 0:
                where = slots.expert(c)
                out[..., where.start + self.expert_intercept] += sign * (coef[..., where] @ self.expert)
            if c and self.gate_intercept >= 0:
                where = slots.gate(c)
                out[..., where.start + self.gate_intercept] += sign * (coef[..., where] @ self.gate)
        return out


def centred(problem: Problem) -> tuple[Problem, Centring]:
    """The problem with centred covariates, and the way between the two.

    Parameters
    ----------
    problem : Problem

    Returns
    -------
    tuple
        A covariate with a varying coefficient is not centred beside a constant intercept, which would have to vary.
    """
    rows, slots, const = problem.rows, problem.slots, problem.const
    p, m = slots.n_expert_columns, slots.n_gate_columns
    experts = const[slots.experts].reshape(slots.n_experts, p)
    gates = const[slots.gates].reshape(slots.n_experts - 1, m)
    expert, first = _means(rows.design, rows.weights, experts)
    shift, second = _means(rows.gate, rows.weights, gates)
    design, gate = _around(rows, rows.design, expert, first), _around(rows, rows.gate, shift, second)
    return with_designs(problem, design, gate), Centring(expert, shift, first, second)


def _around(rows: Rows, design: Array, shift: Array, intercept: int) -> Array:
    """Columns less multiples of the intercept."""
    if not shift.any():
        return design
    means = shift * design[0, intercept]
    return rows.made(lambda run: design[run] - means)


def _means(design: Array, weights: Array, const: BoolArray) -> tuple[Array, int]:
    """What each column adds to the intercept when it is centred, and the column of the intercept (-1 for none).

    Parameters
    ----------
    design : ndarray, shape (n, q)
    weights : ndarray, shape (n,)
    const : ndarray of bool, shape (experts, q)
    """
    still = np.flatnonzero((np.ptp(design, axis=0) == 0.0) & (design[0] != 0.0))
    if not len(still) or not len(const):
        return np.zeros(design.shape[1]), -1
    intercept = int(still[0])
    means = np.average(design, axis=0, weights=weights)
    fixed = const[:, [intercept]] & ~const
    # Columns that are zero outside a group of rows, indicators and others: their origin is the reference group. A
    # coefficient that runs off in one group would take a centred intercept along.
    groups = [column != 0.0 for column in design.T if ((column == 0.0) | (column == 1.0)).all() and np.ptp(column)]
    inside = [any(not column[~group].any() for group in groups) for column in design.T]
    means[fixed.any(axis=0) | np.array(inside)] = 0.0
    means[still] = 0.0
    return means / design[0, intercept], intercept


def turned_covariance(covariance: Array, turn: Array) -> Array:
    """Covariance of the original coefficients from that of the centred ones.

    Parameters
    ----------
    covariance : ndarray, shape (G, L, G, L)
        NaN of a function stays with those it is part of.
    turn : ndarray, shape (L, L)
        See `Centring.matrix`.

    Returns
    -------
    ndarray, shape (G, L, G, L)
    """
    parts = [np.flatnonzero(row) for row in turn]
    out = np.empty_like(covariance)
    for a, rows in enumerate(parts):
        left = np.einsum("r,grhl->ghl", turn[a, rows], covariance[:, rows])
        for b, columns in enumerate(parts):
            out[:, a, :, b] = left[:, :, columns] @ turn[b, columns]
    return out
