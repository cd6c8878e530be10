"""What the algorithms of the family work on: rows sorted by the index, windows, and the layout of the functions."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mixmoe.kernels.distribution import Family, Outcome
from mixmoe.kernels.local import Windows, build_windows, hermite_matrix

Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


THETA_OVER_MEAN = 1e4  # largest theta of a negative binomial, over the mean: variance 1.0001 means
THETA_FLOOR = 1e-3  # smallest theta of a negative binomial: variance a thousand squared means


@dataclass(frozen=True, slots=True)
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

    @property
    def experts(self) -> slice:
        """All expert coefficients."""
        return slice(0, self.n_experts * self.n_expert_columns)

    @property
    def dispersions(self) -> slice:
        """All log dispersions."""
        first = self.n_experts * self.n_expert_columns
        return slice(first, first + self.n_experts * self.has_dispersion)

    @property
    def gates(self) -> slice:
        """All gate coefficients."""
        first = self.dispersions.stop
        return slice(first, first + (self.n_experts - 1) * self.n_gate_columns)

    @property
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


@dataclass(frozen=True, slots=True)
class Rows:
    """The data, sorted by the index.

    Attributes
    ----------
    outcome : Outcome
    design : ndarray, shape (n, p)
    gate : ndarray, shape (n, m)
    index : ndarray, shape (n,)
        Ascending.
    offset, weights : ndarray, shape (n,)
    """

    outcome: Outcome
    design: Array
    gate: Array
    index: Array
    offset: Array
    weights: Array

    @property
    def n(self) -> int:
        """Number of rows, n."""
        return len(self.index)

    def with_weights(self, weights: Array) -> "Rows":
        """The same rows with other weights."""
        return replace(self, weights=weights)

    def with_response(self, y: Array, constant: Array) -> "Rows":
        """The same rows with another response."""
        return replace(self, outcome=Outcome(y, self.outcome.trials, constant))

    def take(self, rows: NDArray[np.intp]) -> "Rows":
        """Some of the rows; `rows` ascending."""
        return Rows(
            self.outcome.take(rows),
            self.design[rows],
            self.gate[rows],
            self.index[rows],
            self.offset[rows],
            self.weights[rows],
        )


@dataclass(frozen=True, slots=True)
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

    @property
    def bandwidths(self) -> Array:
        """Bandwidth of each function, shape (L,); slopes are per this length."""
        out = np.full(self.slots.n, self.windows.bandwidth)
        out[self.slots.gates] = self.gate_windows.bandwidth
        return out

    @property
    def order(self) -> NDArray[np.intp]:
        """Degree of the local polynomial of each function, shape (L,): 0 for log theta, which is hard to pin down."""
        out = np.ones(self.slots.n, dtype=np.intp)
        out[self.slots.dispersions] = self.family.name == "gaussian"
        return out

    @property
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
    windows = build_windows(rows.index, grid, bandwidth)
    same = gate_bandwidth == bandwidth
    gate_windows = windows if same else build_windows(rows.index, grid, gate_bandwidth)
    levels = hermite_matrix(grid, bandwidth, rows.index)
    spread = pooled_spread(rows, family)
    return Problem(
        rows,
        family,
        slots,
        const,
        windows,
        gate_windows,
        levels,
        levels if same else hermite_matrix(grid, gate_bandwidth, rows.index),
        floor=float(np.log(sigma_floor * spread)) if family.name == "gaussian" else float(np.log(THETA_FLOOR)),
        ceiling=_ceiling(rows, family, spread),
        **_from_designs(rows, slots, spread),
    )


def _ceiling(rows: Rows, family: Family, spread: float) -> float:
    """Largest log dispersion.

    Squares of one regression for all rows leave no expert a larger sigma than that of all of them on one row. Only a
    line through the log sigma of the few rows beside a gap of the index would go on into it beyond every number.
    """
    if family.name == "negbinomial":
        return float(np.log(THETA_OVER_MEAN * max(1.0, rows.outcome.y.mean())))
    return float(np.log(spread * np.sqrt(rows.n))) if family.name == "gaussian" else np.inf


def with_designs(problem: Problem, design: Array, gate: Array) -> Problem:
    """The problem with other columns that span the same predictors, and all that follows from them."""
    rows = replace(problem.rows, design=design, gate=gate)
    return replace(problem, rows=rows, **_from_designs(rows, problem.slots, pooled_spread(rows, problem.family)))


def _from_designs(rows: Rows, slots: Slots, spread: float) -> dict[str, Any]:
    """What of a problem follows from its designs: scales, transposes and products."""
    return {
        "scale": _scales(rows, slots, spread),
        "design_t": np.ascontiguousarray(rows.design.T),
        "gate_t": np.ascontiguousarray(rows.gate.T),
        "products": outer_rows(rows.design),
        "gate_products": outer_rows(rows.gate),
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


def _scales(rows: Rows, slots: Slots, spread: float) -> Array:
    out = np.ones(slots.n)
    out[slots.experts] = np.tile(spread / _rms(rows.design), slots.n_experts)
    out[slots.gates] = np.tile(1.0 / _rms(rows.gate), slots.n_experts - 1)
    return out


def _rms(design: Array) -> Array:
    value = np.sqrt((design**2).mean(axis=0))
    return np.where(value > 0.0, value, 1.0)


def outer_rows(design: Array) -> Array:
    """Outer product of each row with itself, shape (n, p p)."""
    return (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
