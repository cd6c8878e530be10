"""Bandwidth by cross-validated log-likelihood, and a rule of thumb.

References
----------
Fan, J. and Gijbels, I. (1996). Local Polynomial Modelling and Its Applications, section 4.2.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from mixmoe._typing import Array, BoolArray, IntArray
from mixmoe.errors import DesignError
from mixmoe.mixture.estimate import Flag
from mixmoe.mixture.resampling import run_all
from mixmoe.varying.joint_em import fit_functions
from mixmoe.varying.leave_one_out import COMPARED, State, fold_chain, fold_members, left_out_chain
from mixmoe.varying.problem import Problem, Rows, Slots
from mixmoe.varying.setup import WindowFault, needed_rows

STEP = 1.4  # between candidates
CHUNK = 2  # candidates that are compared at once, then it is seen whether to go on
FALLEN = 0.1  # held-out log-likelihood per row below the best at which narrower candidates are given up
REFINED = 2  # rounds of further candidates around the best
NEAR = 1.15  # between candidates around a bandwidth that is known roughly
WIDER = 1.1  # factor by which a bandwidth is widened where the index is thin
CLEARLY = 1.2  # ratio of bandwidths from which on a column is said to force one
FOLDS = 5
FEW_ROWS = 400  # with fewer, folds are repeated so that they are about this many together
MOST_REPEATS = 3
HELD_ROWS = 10_000  # held out together at most, if there is more than one fold
MANY = 8_000  # rows above which the range of bandwidths is searched on some of them
MOST = 50_000  # rows above which candidates are compared on some of them only


@dataclass(frozen=True, slots=True)
class Forced:
    """Columns that forced a wide bandwidth, since they do not change in part of the index.

    Attributes
    ----------
    fault : WindowFault
        Why the widest of the narrower ones cannot be used.
    columns : tuple of tuple of int
        Columns of the experts or of the gate, in the order in which they stood in the way.
    alone : float or None
        Bandwidth that the other functions would have had beside these columns held constant, if that is known.
    """

    fault: WindowFault
    columns: tuple[tuple[int, ...], ...]
    alone: float | None


@dataclass(frozen=True, slots=True)
class BandwidthSearch:
    """Result of a search.

    Attributes
    ----------
    best : float
        Bandwidth in units of the index.
    table : DataFrame or None
        Columns ``bandwidth`` (or span), ``criterion`` (held-out log-likelihood per row) and ``std_error``, by
        bandwidth; missing for a given candidate with too few rows in some window.
    forced : Forced or None
        What stood in the way of narrower ones.
    """

    best: float
    table: pd.DataFrame | None
    forced: Forced | None = None


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
    forced : tuple of Forced or None
        What stood in the way of narrower ones; not kept in files, which have the flags.
    unforced : tuple of float, or None
        Bandwidths of experts and gate if no column had forced a wider one; None if none has, as far as is known.
    """

    experts: float
    gate: float | None
    table: pd.DataFrame | None = None
    gate_table: pd.DataFrame | None = None
    forced: tuple[Forced | None, ...] = ()
    unforced: tuple[float, float] | None = None

    @property
    def searches(self) -> dict[str, Any]:
        """The tables as plain lists, and the bandwidths beside forced columns, for files."""
        tables = {"bandwidth": self.table, "gate_bandwidth": self.gate_table}
        lists = {name: None if table is None else table.to_dict("list") for name, table in tables.items()}
        return lists | {"unforced": self.unforced}

    @classmethod
    def chosen(cls, found: BandwidthSearch, gate: float | None, of_gate: BandwidthSearch | None = None) -> "Bandwidths":
        """From the search of the experts, and the bandwidth or the search of the gate if it has its own."""
        forced = (found.forced, None if of_gate is None else of_gate.forced)
        rest = [None if one is None else one.alone for one in forced]
        experts = found.best if rest[0] is None else rest[0]
        own = gate if of_gate is None else of_gate.best if rest[1] is None else rest[1]
        unforced = None if rest == [None, None] else (experts, experts if own is None else own)
        gate, table = (gate, None) if of_gate is None else (of_gate.best, of_gate.table)
        return cls(found.best, gate, found.table, table, forced, unforced)

    @classmethod
    def from_lists(cls, experts: float, gate: float | None, searches: Mapping[str, Any]) -> "Bandwidths":
        """From the plain lists of `searches`."""
        found = (searches[name] for name in ("bandwidth", "gate_bandwidth"))
        table, gate_table = (None if lists is None else pd.DataFrame(lists) for lists in found)
        unforced = searches["unforced"]
        return cls(experts, gate, table, gate_table, unforced=None if unforced is None else tuple(unforced))


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
    if rows.share:  # of an index spread evenly, whose windows are twice as long as the bandwidth
        return float(min(2.0 * 2.34 / np.sqrt(12.0) * (rows.n / q) ** -0.2, 1.0))
    # q functions share the rows: n / q of them are there for each.
    # On a circle that of an index spread evenly: a spread around a mean depends on where the circle is cut.
    spread = rows.period / np.sqrt(12.0) if rows.period else float(np.std(rows.index))
    return float(min(2.34 * spread * (rows.n / q) ** -0.2, rows.span, rows.widest))


@dataclass(frozen=True, slots=True)
class Space:
    """Problems of one model among which a bandwidth is sought.

    Attributes
    ----------
    rows : Rows
    slots : Slots
    clusters : ndarray of int, shape (n,), or None
    made : callable
        The problem with a bandwidth and functions held constant (L,), on some of the rows.
    faulty : callable
        Why a bandwidth cannot be used, with the same arguments.
    held : ndarray of bool, shape (L,)
        Functions held constant beside those of the model.
    some : ndarray of int, or None
        The rows, if not all of the model.
    """

    rows: Rows
    slots: Slots
    clusters: IntArray | None
    made: Callable[[float, BoolArray, IntArray | None], Problem]
    faulty: Callable[[float, BoolArray, IntArray | None], WindowFault | None]
    held: BoolArray
    some: IntArray | None = None

    def problem(self, bandwidth: float) -> Problem:
        """The problem with a bandwidth."""
        return self.made(bandwidth, self.held, self.some)

    def fault(self, bandwidth: float) -> WindowFault | None:
        """Why a bandwidth cannot be used, None if it can."""
        return self.faulty(bandwidth, self.held, self.some)

    def take(self, some: IntArray) -> "Space":
        """Models of some of the rows only; `some` ascending."""
        clusters = None if self.clusters is None else np.unique(self.clusters[some], return_inverse=True)[1]
        return replace(self, rows=self.rows.take(some), clusters=clusters, some=some)

    def holding(self, fault: WindowFault) -> "Space":
        """Models in which the columns of a fault are constant."""
        held = self.held.copy()
        for c in range(int(fault.gate), self.slots.n_experts):
            where = self.slots.gate(c) if fault.gate else self.slots.expert(c)
            held[where.start + np.array(fault.columns)] = True
        return replace(self, held=held)


def smallest_usable(usable: Callable[[float], bool], low: float, high: float) -> float | None:
    """The first bandwidth of a ladder from `low` to `high`, in round numbers, that can be used; None if none can."""
    steps = max(1, int(np.ceil(np.log(high / low) / np.log(WIDER))))
    for h in low * WIDER ** np.arange(1, steps + 1):
        up = float(f"{h:.2g}")
        if up <= high and usable(up):
            return up
    return None


def usable_rule(space: Space) -> BandwidthSearch:
    """The rule of thumb, widened in steps of a tenth until every window holds enough rows.

    Parameters
    ----------
    space : Space

    Returns
    -------
    BandwidthSearch
        With the columns that forced it to be wider, if some did.

    Raises
    ------
    DesignError
        If not even windows of twice the range of the index do.
    """
    h, widest = rule_of_thumb(space.rows, space.slots), space.rows.widest
    steps = max(1, int(np.ceil(np.log(widest / h) / np.log(WIDER))))
    last: WindowFault | None = None
    why = ""
    for one in np.minimum(h * WIDER ** np.arange(steps + 1), max(h, widest)):
        fault = space.fault(float(one))
        if fault is None:
            best = float(one)
            return BandwidthSearch(best, None, _forced(space, best, last, usable_rule))
        # The last fault with columns is the one that decided the width; others are about the number of rows.
        last, why = fault if fault.columns else last, fault.text
    raise DesignError(why)


def search_bandwidth(
    space: Space,
    rng: np.random.Generator,
    folds: int | None,
    candidates: list[float] | None,
    n_jobs: int,
    progress: bool | None,
) -> BandwidthSearch:
    """Bandwidth with the highest held-out log-likelihood.

    Parameters
    ----------
    space : Space
    rng : numpy.random.Generator
    folds : int, optional
        By default each row is left out by its influence where there is one expert and no clusters; otherwise
        `FOLDS`, repeated where rows are few.
    candidates : list of float, optional
        By default all from the range of the index down to where rows run out or the criterion has long fallen.
    n_jobs : int
    progress : bool, optional

    Returns
    -------
    BandwidthSearch

    Raises
    ------
    DesignError
        If no candidate leaves enough rows in every window.

    Notes
    -----
    With more than `MANY` rows the whole range is searched on every few rows; around the best of that, narrower by the
    rate ``n^(-1/5)``, candidates are compared on all rows until one beats its neighbours. With more than `MOST` all of
    this is done on about that many, and the best bandwidth is that of these rows, narrower by the same rate.
    """
    scoring = _Scoring(folds, rng, n_jobs, progress)
    if candidates is not None:
        return _compared(space, sorted(candidates), scoring)
    n = space.rows.n
    if n > MOST:
        some = space.take(_every_few(n, space.clusters, MOST))
        of_some = search_bandwidth(some, rng, folds, None, n_jobs, progress)
        rate, stands = (some.rows.n / n) ** 0.2, of_some.forced
        if stands is not None and stands.alone is not None:
            stands = replace(stands, alone=rate * stands.alone)
        return replace(of_some, best=_first_usable(space, rate * of_some.best), forced=stands)
    if n > MANY:
        some = space.take(_every_few(n, space.clusters, MANY // 2))
        region = _scanned(some, scoring)
        # The best bandwidth falls as n^(-1/5): the region found on fewer rows is moved by that.
        start = float(region.tried[region.best]) * (some.rows.n / n) ** 0.2
        found = _climbed(space, start, scoring)
        refused = region.refused
    else:
        found = _scanned(space, scoring)
        refused = found.refused
    best = float(found.tried[found.best])
    # Only a fault narrower than the best can have kept the criterion from turning.
    narrower = [fault for h, fault in refused if fault.columns and h < best]
    near = space.slots.n_experts == 1 or found.best <= 1  # where the criterion has turned, nothing was forced

    def again(other: Space) -> BandwidthSearch:
        return search_bandwidth(other, rng, folds, None, n_jobs, progress)

    forced = _forced(space, best, narrower[0] if narrower and near else None, again)
    return BandwidthSearch(best, found.table(space.clusters, space.rows.weights), forced)


def _forced(
    space: Space, best: float, fault: WindowFault | None, search: Callable[[Space], BandwidthSearch]
) -> Forced | None:
    """What the model would have without the columns of a fault, if that is clearly narrower."""
    if fault is None:
        return None
    other = space.holding(fault)
    if other.problem(best).const.all() or other.fault(best) is not None:
        return Forced(fault, (fault.columns,), None)
    found = search(other)
    if found.best * CLEARLY > best:
        return None
    more = () if found.forced is None else found.forced.columns
    return Forced(fault, (fault.columns, *more), found.best if found.forced is None else found.forced.alone)


def forced_flag(forced: Forced, names: Sequence[str], bandwidth: float, word: str = "bandwidth") -> Flag:
    """What a reader must know about a bandwidth that columns have forced.

    Parameters
    ----------
    forced : Forced
    names : sequence of str
        Of the columns of the experts or of the gate.
    bandwidth : float
        In use.
    word : {"bandwidth", "span"}
    """
    named = ", ".join(repr(names[j]) for group in forced.columns for j in group)
    rest = "" if forced.alone is None else f" The other functions would have had {forced.alone:.4g}."
    return Flag(
        "forced_bandwidth",
        f"The {word} {bandwidth:.4g} is as wide as {named} needs: {forced.fault.text.split(' (')[0]}.{rest} "
        f"Functions that bend more are cut off",
        f"hold {named} constant by const(...), leave it out, or leave out that part of the index.",
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """Candidates that were compared, ascending.

    Attributes
    ----------
    tried : ndarray, shape (B,)
    logliks : ndarray, shape (B, n)
        Held-out log-likelihood of each row, NaN of rows that were never held out.
    criterion : ndarray, shape (B,)
    refused : list
        Candidates that cannot be used, widest first, with the reasons.
    """

    tried: Array
    logliks: Array
    criterion: Array
    refused: list[tuple[float, WindowFault]]

    @property
    def best(self) -> int:
        """Place of the best candidate."""
        return int(np.nanargmax(self.criterion))

    def joined(self, other: "_Found") -> "_Found":
        """Both, ascending."""
        tried = np.concatenate([self.tried, other.tried])
        order = np.argsort(tried)
        logliks = np.vstack([self.logliks, other.logliks])[order]
        criterion = np.concatenate([self.criterion, other.criterion])[order]
        return _Found(tried[order], logliks, criterion, self.refused)

    def table(self, clusters: IntArray | None, weights: Array) -> pd.DataFrame:
        """Criterion with its standard error over rows or clusters."""
        seen = ~np.isnan(self.logliks).all(axis=0) & (weights > 0.0)
        share = weights * seen / (weights * seen).sum()
        away = share * (np.where(seen, self.logliks, 0.0) - self.criterion[:, None])
        units = np.arange(len(weights)) if clusters is None else clusters
        sums = np.array([np.bincount(units, weights=one) for one in away])
        error = np.sqrt((sums**2).sum(axis=1))
        return pd.DataFrame({"bandwidth": self.tried, "criterion": self.criterion, "std_error": error})


@dataclass(frozen=True, slots=True)
class _Scoring:
    """How candidates are compared."""

    folds: int | None
    rng: np.random.Generator
    n_jobs: int
    progress: bool | None

    def started(self, space: Space, pilot: float) -> "_Scorer":
        """Ready for the problems of a space; mixtures begin at a fit with the bandwidth `pilot`."""
        n = space.rows.n
        problem = space.problem(pilot)
        start = State(problem, fit_functions(problem, COMPARED, self.rng).coef)
        if self.folds is None and space.slots.n_experts == 1 and space.clusters is None:
            return _Scorer(self, n, (), (start,))
        folds = FOLDS if self.folds is None else self.folds
        units = n if space.clusters is None else int(space.clusters.max()) + 1
        folds = min(folds, units)
        repeats = 1 if self.folds is not None else int(np.clip(np.ceil(FEW_ROWS / n), 1, MOST_REPEATS))
        members = [m for _ in range(repeats) for m in fold_members(n, space.clusters, folds, self.rng)]
        enough = int(np.ceil(folds * HELD_ROWS / n)) if self.folds is None else folds * repeats
        members = members[: max(enough, 1)]
        return _Scorer(self, n, tuple(members), (start,) * len(members))


@dataclass(frozen=True, slots=True)
class _Scorer:
    """Comparison of candidates on rows that are held out, each fold with its state."""

    scoring: _Scoring
    n: int
    members: tuple[IntArray, ...]
    states: tuple[State, ...]

    def logliks(self, problems: list[Problem]) -> tuple[Array, "_Scorer"]:
        """Held-out log-likelihoods (B, n) under a chain of problems, and the scorer to go on with."""
        if not self.members:
            chain = left_out_chain(problems, self.states[0])
            return chain.logliks, replace(self, states=(chain.state,))
        tasks = [(problems, held, state) for held, state in zip(self.members, self.states, strict=True)]
        chains = run_all(fold_chain, tasks, self.scoring.n_jobs, self.scoring.progress, "bandwidth")
        total, times = np.zeros((len(problems), self.n)), np.zeros(self.n)
        for held, chain in zip(self.members, chains, strict=True):
            total[:, held] += chain.logliks
            times[held] += 1.0
        mean = np.where(times > 0.0, total / np.maximum(times, 1.0), np.nan)
        return mean, replace(self, states=tuple(chain.state for chain in chains))


def _criterion(logliks: Array, weights: Array) -> Array:
    """Mean held-out log-likelihood of each candidate, shape (B,)."""
    seen = ~np.isnan(logliks).all(axis=0)
    return np.asarray(np.average(logliks[:, seen], axis=1, weights=weights[seen]))


def _compared(space: Space, wanted: list[float], scoring: _Scoring) -> BandwidthSearch:
    """The best of given candidates; the table has a row for each, without values where it cannot be used."""
    faults = {h: fault for h in wanted if (fault := space.fault(h)) is not None}
    usable = [h for h in wanted if h not in faults]
    if not usable:
        raise DesignError(f"no bandwidth can be used; the widest fails because {faults[wanted[-1]].text}")
    rule = rule_of_thumb(space.rows, space.slots)
    scorer = scoring.started(space, min(usable, key=lambda h: abs(np.log(h / rule))))
    logliks, _ = scorer.logliks([space.problem(h) for h in usable[::-1]])
    found = _Found(np.array(usable), logliks[::-1], _criterion(logliks, space.rows.weights)[::-1], [])
    table = found.table(space.clusters, space.rows.weights)
    empty = pd.DataFrame({"bandwidth": [h for h in wanted if h in faults]})
    table = pd.concat([table, empty]).sort_values("bandwidth", ignore_index=True) if len(empty) else table
    return BandwidthSearch(float(found.tried[found.best]), table, None)


def _candidates(rows: Rows, slots: Slots) -> list[float]:
    """From the range of the index down to where windows cannot hold enough rows, widest first."""
    span = 1.0 if rows.share else rows.span
    needed = needed_rows(slots.n_expert_columns, slots.n_experts)
    distinct = len(np.unique(rows.index))
    low = span * max(needed / (2.0 * rows.n), 1.0 / distinct)  # the thinnest window is thinner than the average
    low *= 2.0 if rows.share else 1.0  # a span is the whole window, a bandwidth half of it
    top = min(max(span, rule_of_thumb(rows, slots)), rows.widest)
    return list(top / STEP ** np.arange(max(1, int(np.log(top / low) / np.log(STEP)) + 1)))


def _scanned(space: Space, scoring: _Scoring) -> _Found:
    """All candidates, with folds narrower ones until the criterion has long fallen, and more around the best."""
    usable, refused = [], []
    for h in _candidates(space.rows, space.slots):
        fault = space.fault(h)
        if fault is None:
            usable.append(h)
        else:
            refused.append((h, fault))
    if not usable:
        raise DesignError(f"no bandwidth can be used; the widest fails because {refused[0][1].text}")
    rule = rule_of_thumb(space.rows, space.slots)
    pilot = min(usable, key=lambda h: abs(np.log(h / rule)))
    scorer = scoring.started(space, pilot)
    weights = space.rows.weights
    found = _Found(np.zeros(0), np.zeros((0, space.rows.n)), np.zeros(0), refused)
    narrower = [h for h in usable if h <= pilot]
    for way in ([h for h in usable[::-1] if h > pilot], narrower):  # away from the pilot, whose labels are known
        walking = scorer
        for first in range(0, len(way), CHUNK):
            part = way[first : first + CHUNK]
            logliks, walking = walking.logliks([space.problem(h) for h in part])
            found = found.joined(_Found(np.array(part), logliks, _criterion(logliks, weights), refused))
            value = found.criterion
            fallen = len(value) > 2 and value[:2].max() < value.max() - FALLEN and value[0] < value[1]
            if scorer.members and way is narrower and fallen:
                break
    for _ in range(REFINED):
        finer = [h for h in _between(found.tried, found.best, refused) if space.fault(h) is None]
        if finer:
            logliks, _ = scorer.logliks([space.problem(h) for h in finer[::-1]])
            more = _Found(np.array(finer), logliks[::-1], _criterion(logliks, weights)[::-1], refused)
            found = found.joined(more)
    return found


def _between(tried: Array, best: int, refused: list[tuple[float, WindowFault]]) -> list[float]:
    """Geometric means of the best candidate and its neighbours, refused ones among them, ascending."""
    here = tried[best]
    below = [h for h in tried if h < here] + [h for h, _ in refused if h < here]
    above = [h for h in tried if h > here] + [h for h, _ in refused if h > here]
    ends = [*([max(below)] if below else []), *([min(above)] if above else [])]
    return [float(np.sqrt(here * end)) for end in ends]


def _climbed(space: Space, start: float, scoring: _Scoring) -> _Found:
    """Candidates on all rows from a start outwards until one beats its neighbours, or none can be used beyond."""
    usable = _first_usable(space, start)
    scorer = scoring.started(space, usable)
    weights = space.rows.weights

    def scored(bandwidths: list[float]) -> _Found:
        logliks, _ = scorer.logliks([space.problem(h) for h in bandwidths[::-1]])
        return _Found(np.array(bandwidths), logliks[::-1], _criterion(logliks, weights)[::-1], [])

    widest = space.rows.widest

    def possible(bandwidths: list[float]) -> list[float]:
        return [h for h in bandwidths if h <= widest and space.fault(h) is None]

    found = scored(possible([usable / NEAR, usable, usable * NEAR]))
    while found.best in (0, len(found.tried) - 1):
        beyond = found.tried[0] / NEAR if found.best == 0 else found.tried[-1] * NEAR
        more = possible([float(beyond)])
        if not more:
            break
        found = found.joined(scored(more))
    return found


def _first_usable(space: Space, start: float) -> float:
    """The start, widened until every window holds enough rows."""
    h, widest = start, space.rows.widest
    while (fault := space.fault(h)) is not None:
        if h >= widest:
            raise DesignError(fault.text)
        h = min(h * WIDER, widest)
    return h


def _every_few(n: int, clusters: IntArray | None, most: int) -> IntArray:
    """Rows spread evenly along the index, or whole clusters, about `most`; ascending."""
    units = np.arange(n) if clusters is None else clusters
    every = int(np.ceil(n / most))
    return np.flatnonzero(units % every == 0)
