"""Bandwidth by cross-validated log-likelihood, and a rule of thumb.

References
----------
Fan, J. and Gijbels, I. (1996). Local Polynomial Modelling and Its Applications, section 4.2.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe.errors import DesignError
from mixmoe.kernels.local import hermite_matrix
from mixmoe.varying.estimate import Control, fit_functions, run_em
from mixmoe.varying.parallel import run_all
from mixmoe.varying.problem import Problem, Rows, Slots, build_problem
from mixmoe.varying.steps import Natural, natural_parameters

Array = NDArray[np.float64]
IntArray = NDArray[np.intp]

N_CANDIDATES = 7
SMALLEST = 0.35  # first candidate over the rule of thumb
WIDER = 1.1  # factor by which the rule of thumb is widened where the index is thin
REFINED = 2  # further candidates on each side of the best, between its neighbours
TOLERANCE = 3e-4  # of fits that only serve a criterion
LOWEST = -30.0  # log density of a held-out row counts at least this much, so that one outlier does not decide


@dataclass(frozen=True, slots=True)
class BandwidthSearch:
    """Result of a search.

    Attributes
    ----------
    best : float
        Bandwidth in units of the index.
    table : DataFrame or None
        Columns ``bandwidth``, ``criterion`` (held-out log-likelihood per row) and ``std_error``, by bandwidth; missing
        for a given candidate with too few rows in some window.
    """

    best: float
    table: pd.DataFrame | None


@dataclass(frozen=True, slots=True)
class Bandwidths:
    """Bandwidths of a fit and how they were found.

    Attributes
    ----------
    experts : float
        Of experts and dispersions; infinity holds them constant.
    gate : float or None
        Of the gate, if it has one of its own.
    table, gate_table : DataFrame or None
        Criterion of each bandwidth tried, see `BandwidthSearch`.
    """

    experts: float
    gate: float | None
    table: pd.DataFrame | None = None
    gate_table: pd.DataFrame | None = None

    @property
    def searches(self) -> dict[str, Any]:
        """The tables as plain lists, for files."""
        tables = {"bandwidth": self.table, "gate_bandwidth": self.gate_table}
        return {name: None if table is None else table.to_dict("list") for name, table in tables.items()}

    @classmethod
    def from_lists(cls, experts: float, gate: float | None, searches: Mapping[str, Any]) -> "Bandwidths":
        """From the plain lists of `searches`; files of earlier versions have none."""
        found = (searches.get(name) for name in ("bandwidth", "gate_bandwidth"))
        return cls(experts, gate, *(None if lists is None else pd.DataFrame(lists) for lists in found))


class _Model(Protocol):
    data: Any
    slots: Slots
    formula: Any

    @property
    def clusters(self) -> IntArray | None: ...


def rule_of_thumb(rows: Rows, slots: Slots) -> float:
    """Bandwidth from spread and size alone.

    Parameters
    ----------
    rows : Rows
    slots : Slots

    Returns
    -------
    float
        ``2.34 sd(u) (n / q)^(-1/5)`` with q coefficients of all experts and dispersions: Silverman's constant for the
        Epanechnikov kernel, and the rows that are there for each function; at most the range of the index. Where the
        index is thin its windows may hold too few rows, see `usable_rule`.
    """
    q = slots.n_experts * (slots.n_expert_columns + slots.has_dispersion)
    h = 2.34 * float(np.std(rows.index)) * (rows.n / q) ** -0.2
    return float(min(h, np.ptp(rows.index)))


def usable_rule(make: Callable[[float], Problem], rows: Rows, slots: Slots) -> float:
    """The rule of thumb, widened in steps of a tenth until every window holds enough rows.

    Parameters
    ----------
    make : callable
        The problem with a bandwidth.
    rows : Rows
    slots : Slots

    Returns
    -------
    float

    Raises
    ------
    DesignError
        If not even windows of twice the range of the index do.
    """
    h, widest = rule_of_thumb(rows, slots), 2.0 * float(np.ptp(rows.index))
    tried = h * WIDER ** np.arange(max(1, int(np.ceil(np.log(widest / h) / np.log(WIDER)))) + 1)
    for h in tried[:-1]:
        try:
            make(float(h))
        except DesignError:
            continue
        return float(h)
    make(float(tried[-1]))
    return float(tried[-1])


def search_bandwidth(
    model: _Model,
    make: Callable[[float], Problem],
    rng: np.random.Generator,
    folds: int,
    candidates: list[float] | None,
    n_jobs: int,
    progress: bool | None,
) -> BandwidthSearch:
    """Bandwidth with the highest held-out log-likelihood.

    Parameters
    ----------
    model : VCMoE
    make : callable
        The problem with the bandwidth that is sought.
    rng : numpy.random.Generator
    folds : int
    candidates : list of float, optional
    n_jobs : int
    progress : bool, optional

    Returns
    -------
    BandwidthSearch

    Raises
    ------
    DesignError
        If no candidate leaves enough rows in every window.
    """
    rows = model.data.rows
    members = fold_members(rows.n, model.clusters, folds, rng)
    wanted = _candidates(rows, model.slots) if candidates is None else sorted(candidates)
    tried = _usable(make, wanted)
    pilot = _pilot(make, tried, rule_of_thumb(rows, model.slots), rng)
    scores = _scored(make, pilot, tried, members, n_jobs, progress)
    if candidates is None:
        finer = _between(tried, int(np.argmax(scores.mean(axis=1))))
        scores = np.vstack([scores, _scored(make, pilot, finer, members, n_jobs, progress)]) if finer else scores
        tried = [*tried, *finer]
    else:  # what was asked for has a row, be there no value
        unusable = [h for h in wanted if h not in tried]
        scores = np.vstack([scores, np.full((len(unusable), folds), np.nan)])
        tried = [*tried, *unusable]
    order = np.argsort(tried)
    table = pd.DataFrame(
        {
            "bandwidth": np.array(tried)[order],
            "criterion": scores.mean(axis=1)[order],
            "std_error": scores.std(axis=1, ddof=1)[order] / np.sqrt(folds),
        }
    )
    return BandwidthSearch(float(table["bandwidth"].iloc[int(np.nanargmax(table["criterion"].to_numpy()))]), table)


def fold_members(n: int, clusters: IntArray | None, folds: int, rng: np.random.Generator) -> list[IntArray]:
    """Rows of each fold, ascending; whole clusters if there are any."""
    units = np.arange(n) if clusters is None else clusters
    n_units = int(units.max()) + 1
    assigned = rng.permutation(np.arange(n_units) % folds)
    return [np.flatnonzero(assigned[units] == f) for f in range(folds)]


def _candidates(rows: Rows, slots: Slots) -> list[float]:
    rule, span = rule_of_thumb(rows, slots), float(np.ptp(rows.index))
    return list(np.geomspace(SMALLEST * rule, max(span, rule), N_CANDIDATES))


def _usable(make: Callable[[float], Problem], candidates: Iterable[float]) -> list[float]:
    """Candidates whose windows hold enough rows, even without a fold."""
    kept, reason = [], None
    for h in candidates:
        try:
            make(h)
            kept.append(h)
        except DesignError as error:
            reason = error
    if not kept:
        raise DesignError(f"no bandwidth can be used; the widest fails because {reason}")
    return kept


def _between(tried: list[float], best: int) -> list[float]:
    """Geometric points between the best candidate and its neighbours."""
    out: list[float] = []
    if best > 0:
        out += list(np.geomspace(tried[best - 1], tried[best], REFINED + 1)[1:-1])
    if best < len(tried) - 1:
        out += list(np.geomspace(tried[best], tried[best + 1], REFINED + 1)[1:-1])
    return out


@dataclass(frozen=True, slots=True)
class _Pilot:
    """A fit of all rows at one bandwidth, from which every fold starts: the folds differ little, labels do not."""

    coef: Array
    bandwidths: Array


def _pilot(make: Callable[[float], Problem], tried: list[float], rule: float, rng: np.random.Generator) -> _Pilot:
    """A fit at the candidate closest to the rule of thumb, from several starts."""
    problem = make(min(tried, key=lambda one: abs(np.log(one / rule))))
    return _Pilot(fit_functions(problem, Control(TOLERANCE, 200), rng).coef, problem.bandwidths)


def _scored(
    make: Callable[[float], Problem],
    pilot: _Pilot,
    bandwidths: list[float],
    members: list[IntArray],
    n_jobs: int,
    progress: bool | None,
) -> Array:
    """Held-out log-likelihood per row, (bandwidths, folds)."""
    problems = [make(h) for h in bandwidths]
    tasks = [(problems, held, pilot) for held in members]
    return np.column_stack(run_all(_fold_scores, tasks, n_jobs, progress, "bandwidth"))


def _fold_scores(problems: list[Problem], held: IntArray, pilot: _Pilot) -> Array:
    """Held-out log-likelihood per row of one fold, from wide to narrow, each started from the one before."""
    out, start, before = np.full(len(problems), LOWEST), pilot.coef, pilot.bandwidths
    control = Control(tolerance=TOLERANCE, max_iter=200)
    for j in np.argsort([-p.bandwidths.sum() for p in problems]):
        training = without_rows(problems[j], held)
        run = run_em(training, _rescaled(start, training, before), control)
        start, before = run.coef, training.bandwidths
        out[j] = held_out(problems[j], run.coef, held)
    return out


def _rescaled(coef: Array, problem: Problem, before: Array) -> Array:
    """A state at other bandwidths: same functions, slopes in the new units."""
    out = coef.copy()
    out[:, 1] *= problem.bandwidths / before
    return out


def without_rows(problem: Problem, held: IntArray) -> Problem:
    """The same problem on the other rows."""
    keep = np.setdiff1d(np.arange(problem.rows.n), held)
    return build_problem(
        problem.rows.take(keep),
        problem.family,
        problem.slots,
        problem.const,
        problem.windows.grid,
        problem.windows.bandwidth,
        problem.gate_windows.bandwidth,
        0.01,
    )


def held_out(problem: Problem, coef: Array, held: IntArray) -> float:
    """Mean log density of some rows under given functions."""
    rows, flat, stop = problem.rows.take(held), coef.reshape(-1, coef.shape[-1]), problem.slots.gates.start
    grid = problem.windows.grid
    experts = hermite_matrix(grid, problem.windows.bandwidth, rows.index) @ flat[:, :stop]
    gates = hermite_matrix(grid, problem.gate_windows.bandwidth, rows.index) @ flat[:, stop:]
    natural = natural_parameters(rows, problem.slots, np.hstack([experts, gates]))
    bounded = Natural(natural.eta, np.clip(natural.delta, problem.floor, problem.ceiling), natural.log_gate)
    each = row_logliks(rows, problem, bounded)
    return float(np.average(np.maximum(each, LOWEST), weights=rows.weights))


def row_logliks(rows: Rows, problem: Problem, natural: Natural) -> Array:
    """Log density of each row, shape (n,)."""
    joint = natural.log_gate + problem.family.log_density(rows.outcome, natural.eta, natural.delta)
    top = joint.max(axis=0)
    out: Array = top + np.log(np.exp(joint - top).sum(axis=0))
    return out
