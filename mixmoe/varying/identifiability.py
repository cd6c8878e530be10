"""What a reader must know about a fitted VCMoE, and constants that functions make superfluous.

Notes
-----
A constant coefficient of a function of the index, beside an intercept that varies, has no value of its own: the
intercept takes over whatever the constant gives up. The same holds for ``const(z * u)`` beside a function of z, and for
combinations of several constants. Such columns are found by what functions of the varying terms leave of them: cubic
Hermite functions with knots at quantiles of the index, about one for each bandwidth, so that they bend as much as the
model's functions can. A step along the index is no such function, and its constant coefficient stands.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit

from mixmoe._typing import Array, BoolArray
from mixmoe.design.design import Design
from mixmoe.errors import BoundaryWarning, ConvergenceWarning, DegeneracyWarning, MixmoeWarning
from mixmoe.inference.cells import columns_of, described, infinite_words
from mixmoe.mixture.estimate import Flag
from mixmoe.responses.distribution import LEAST_ETA
from mixmoe.responses.zero_inflated import ZeroInflated
from mixmoe.varying.em_steps import Natural, own_coefficients
from mixmoe.varying.joint_em import Control, Run
from mixmoe.varying.problem import Problem, Rows
from mixmoe.varying.windows import Windows, blocks, hermite_matrix, local_moments

INFINITE = 12.0  # a predictor beyond this means a probability of zero or one, below minus this a mean count of zero
SEPARATED = 0.02  # share of the rows of an expert with such predictors from which on it is said
REGION = 0.5  # the same within one window
MOST_RUNS = 5  # runs of grid points that a message lists
FEW = 1.5  # rows of an expert per local coefficient below which its local estimates are not to be trusted
WIDE = 0.5  # bandwidth over range from which on functions have hardly room to bend
CROWDED = 0.4  # share of the range that holds four fifths of the rows; 0.8 if they are spread evenly
FEW_CLUSTERS = 10  # with fewer a sandwich over clusters says little
COARSE = 0.5  # grid step over bandwidth above which interpolation is no longer negligible
WANTS_WIDER = ("not_converged", "no_local_maximum", "degenerate", "small_expert")  # mended by a larger bandwidth
CATEGORIES: Mapping[str, type[MixmoeWarning]] = {
    "not_converged": ConvergenceWarning,
    "coarse_grid": ConvergenceWarning,
    "no_local_maximum": ConvergenceWarning,
    "sparse_index": ConvergenceWarning,
    "forced_bandwidth": ConvergenceWarning,
    "degenerate": DegeneracyWarning,
    "small_expert": DegeneracyWarning,
    "ambiguous_labels": DegeneracyWarning,
    "weak_identification": DegeneracyWarning,
    "few_clusters": DegeneracyWarning,
    "separated_gate": BoundaryWarning,
    "separated_expert": BoundaryWarning,
    "boundary": BoundaryWarning,
}


def find_flags(
    problem: Problem,
    run: Run,
    natural: Natural,
    weighted: Array,
    control: Control,
    index_name: str,
    clusters: NDArray[np.intp] | None,
) -> tuple[Flag, ...]:
    """Flags of a finished run.

    Parameters
    ----------
    problem : Problem
    run : Run
    natural : Natural
        Predictors of the rows at the estimate.
    weighted : ndarray, shape (K, n)
        Responsibilities times weights.
    control : Control
    index_name : str
    clusters : ndarray of int, shape (n,), or None

    Returns
    -------
    tuple of Flag
    """
    found = (
        _convergence(run, control),
        _coarse(problem),
        _sparse(problem, index_name),
        _lost(problem, run, index_name),
        _limits(problem, run.coef, index_name),
        _thin(problem, weighted, index_name),
        _separated_expert(problem, natural, weighted, index_name),
        _one_trial(problem),
        _few_clusters(clusters),
    )
    return tuple(flag for flag in found if flag is not None)


def _sparse(problem: Problem, index_name: str) -> Flag | None:
    """Said where the thin ends of an index force a window upon its dense middle."""
    index, h = problem.rows.index, problem.windows.bandwidth
    width = float(np.ptp(index))
    low, high = np.quantile(index, [0.1, 0.9])
    evened = problem.rows.period or problem.rows.share  # no ends, or windows that follow the rows
    if problem.const.all() or evened or h < WIDE * width or high - low >= CROWDED * width:
        return None
    return Flag(
        "sparse_index",
        f"Four fifths of the rows lie between {low:.4g} and {high:.4g} of {index_name}, but the thin rest of its range "
        f"forces a bandwidth of {h:.4g}, in which functions are nearly straight lines",
        "spread the index more evenly, for instance by its logarithm or its ranks, or give a span= in the place of "
        "the bandwidth.",
    )


def _convergence(run: Run, control: Control) -> Flag | None:
    if run.converged:
        return None
    return Flag(
        "not_converged",
        f"The functions still changed by {run.change:.2g} of their scale after {len(run.trace) - 1} iterations "
        f"(tolerance {control.tolerance:g})",
        "raise max_iter, use a larger bandwidth or fewer experts.",
    )


def _coarse(problem: Problem) -> Flag | None:
    if problem.const.all():
        return None
    grid, index = problem.windows.grid, problem.rows.index
    inside = np.diff(np.searchsorted(index, grid)) > 0  # a gap of the index has no rows to interpolate for
    widths = np.minimum(problem.windows.widths, problem.gate_windows.widths)
    steps, beside = np.diff(grid)[inside], np.minimum(widths[:-1], widths[1:])[inside]
    worst = int((steps / beside).argmax())
    step, narrow = float(steps[worst]), float(beside[worst])
    if step <= COARSE * narrow:
        return None
    return Flag(
        "coarse_grid",
        f"The grid step {step:.3g} is more than half the bandwidth {narrow:.3g}, so that functions are interpolated "
        "across bends",
        f"use n_grid of at least {int(np.ceil(4.0 * problem.windows.span / narrow)) + 1}.",
    )


def _lost(problem: Problem, run: Run, name: str) -> Flag | None:
    """Grid points whose local likelihood has no maximum near the joint fit."""
    if run.lost is None or not run.lost.any():
        return None
    return Flag(
        "no_local_maximum",
        f"At {run.lost.sum()} of {len(run.lost)} grid points, {name} = {_runs(problem.windows.shown, run.lost)}, "
        "the local likelihood has no maximum near the joint fit: the functions there are those of the joint fit, and "
        "bands, where there are any, those of another, local-quadratic fit",
        "use a larger bandwidth, fewer experts or bands(method='bootstrap').",
    )


def _limits(problem: Problem, coef: Array, name: str) -> Flag | None:
    """Log dispersions on their limits."""
    if not problem.slots.has_dispersion:
        return None
    level = coef[:, 0, problem.slots.dispersions]
    low, high = level <= problem.floor + 1e-9, level >= problem.ceiling - 1e-9
    if low.any() and problem.family.name == "gaussian":
        where = _where(problem, low, name)
        return Flag(
            "degenerate",
            f"sigma is held at its floor {np.exp(problem.floor):.3g} for {where}: the expert has collapsed on a few "
            "rows",
            "use fewer experts, a larger bandwidth, or lower sigma_floor if errors that small are real.",
        )
    if high.any() and problem.family.name == "gaussian":
        where = _where(problem, high, name)
        return Flag(
            "degenerate",
            f"sigma runs off to its ceiling {np.exp(problem.ceiling):.3g} for {where}: hardly a row speaks for the "
            "expert there, as across a gap of the index",
            "use a larger bandwidth, or fewer experts.",
        )
    if isinstance(problem.family, ZeroInflated):
        return _certain_zeros(problem, low, high, name)
    if high.any():
        where = _where(problem, high, name)
        return Flag(
            "boundary",
            f"theta is at its ceiling {np.exp(problem.ceiling):.3g} for {where}: no more variable than Poisson there",
            "family='poisson' or dispersion='const' may do.",
        )
    return None


def _certain_zeros(problem: Problem, low: BoolArray, high: BoolArray, name: str) -> Flag | None:
    """Probabilities of a certain zero on their limits, (G, K) each."""
    assert isinstance(problem.family, ZeroInflated)
    facts, remedies = [], []
    if low.any():
        facts.append(
            f"The probability of a certain zero is at its least value, {expit(problem.floor):.1g}, for "
            f"{_where(problem, low, name)}: no more zeros there than the counts themselves have."
        )
        remedies.append(f"There family={problem.family.base.name!r} may do.")
    if high.any():
        facts.append(
            f"The probability of a certain zero is at its largest value, {expit(problem.ceiling):.4g}, for "
            f"{_where(problem, high, name)}: hardly a count there but zero."
        )
        remedies.append("For counts that are hardly but zero use a larger bandwidth or fewer experts.")
    return Flag("boundary", " ".join(facts), " ".join(remedies)) if facts else None


def _where(problem: Problem, bad: BoolArray, name: str) -> str:
    """In words: which experts, over which part of the grid."""
    found = np.flatnonzero(bad.any(axis=0))
    parts = [f"expert {c + 1} at {name} = {_runs(problem.windows.shown, bad[:, c])}" for c in found]
    return "; ".join(parts)


def _runs(grid: Array, bad: BoolArray) -> str:
    """In words: the runs of consecutive grid points at which something holds."""
    order = np.argsort(grid, kind="stable")  # a circle begins at zero for the reader
    grid = grid[order]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], bad[order], [False]]).astype(int)))
    words = []
    for first, stop in edges.reshape(-1, 2):
        low, high = f"{grid[first]:.3g}", f"{grid[stop - 1]:.3g}"
        words.append(low if low == high else f"{low} to {high}")
    more = f" and {len(words) - MOST_RUNS} more places" if len(words) > MOST_RUNS else ""
    return ", ".join(words[:MOST_RUNS]) + more


def _thin(problem: Problem, weighted: Array, name: str) -> Flag | None:
    """Experts with hardly any rows at some grid points."""
    slots = problem.slots
    if slots.n_experts == 1:
        return None
    columns = np.maximum((~problem.const[slots.experts]).reshape(slots.n_experts, -1).sum(axis=1), 1)
    mass = _window_mass(problem, weighted)
    bad = mass < FEW * 2.0 * columns
    if not bad.any():
        return None
    least = np.unravel_index(np.argmin(mass), mass.shape)
    return Flag(
        "small_expert",
        f"Too few rows for {_where(problem, bad, name)} (down to {mass[least]:.1f} rows): its functions there rest on "
        "the gate alone",
        "use fewer experts or a larger bandwidth.",
    )


def separation_flag(
    design: Design, order: NDArray[np.intp], problem: Problem, coef: Array, natural: Natural
) -> Flag | None:
    """A flag that says which gate coefficients run off, and where the gate leaves no rows to an expert.

    None with a penalty of the gate, under which all are finite.

    Parameters
    ----------
    design : Design
    order : ndarray of int, shape (n,)
        Row of the design behind each row of `natural`.
    problem : Problem
    coef : ndarray, shape (G, 2, L)
    natural : Natural
    """
    below = _excluded(natural)
    share = float(below.any(axis=0).mean())
    if share <= SEPARATED or problem.rows.penalty is not None:
        return None
    infinite = _beyond(problem, coef, below)
    index = str(design.names.index)
    causes = columns_of(design, "gate", np.asarray(infinite.any(axis=0)))
    columns = dict.fromkeys([*causes, *([index] if index in design.frame else [])])
    places = []
    for k in np.flatnonzero(below.any(axis=1)):
        inside = np.zeros(design.n, dtype=bool)
        inside[order] = below[k]
        places.append(f"expert {k + 1} {described(design, inside, list(columns))}")
    many = len(causes) > 1
    cause = f"The gate covariate{'s' * many} {', '.join(causes)}" if causes else "The gate"
    names = [f"gate{k + 2}.{design.names.gate[j]}" for k, j in np.argwhere(infinite)]
    leave = f"leave out {' or '.join(causes)} (or merge levels), " if causes else ""
    return Flag(
        "separated_gate",
        f"{cause} leave{'' if many else 's'} no rows to {'; to '.join(places)}: the probability is zero there (log "
        f"odds beyond {INFINITE:g} for {100 * share:.0f} % of the rows), and "
        f"{infinite_words(names) if names else 'the gate coefficients are infinite'} there; printed values only say "
        f"so.",
        f"Use gate_penalty='firth' (or a number such as 1) for finite coefficients, {leave}a larger gate_bandwidth "
        "or fewer experts.",
    )


def infinite_gate(problem: Problem, coef: Array, natural: Natural) -> BoolArray:
    """Which functions of the gate run off to infinity somewhere, (L,): those that `separation_flag` names, or all.

    Parameters
    ----------
    problem : Problem
    coef : ndarray, shape (G, 2, L)
    natural : Natural

    Returns
    -------
    ndarray of bool, shape (L,)
    """
    out = np.zeros(coef.shape[-1], dtype=bool)
    below = _excluded(natural)
    if below.any(axis=0).mean() > SEPARATED and problem.rows.penalty is None:
        found = _beyond(problem, coef, below).ravel()
        out[problem.slots.gates] = found | ~found.any()  # together without any one of them: none of them is known
    return out


def _excluded(natural: Natural) -> BoolArray:
    """Rows whose gate leaves nothing to an expert, (K, n)."""
    return np.asarray(natural.log_gate - natural.log_gate.max(axis=0) < -INFINITE)


def _beyond(problem: Problem, coef: Array, below: BoolArray) -> BoolArray:
    """Gate coefficients that alone make such rows (K, n), (K - 1, m); half of `INFINITE` is odds of one in 400.

    Where the reference level has no rows, the intercept runs off there, and coefficients of levels that have some run
    off against it: of columns with two values, what lies between the two counts as well.
    """
    apart = below.any(axis=0)
    gates = own_coefficients(problem, coef)[apart][:, problem.slots.gates]
    gates = gates.reshape(len(gates), -1, problem.slots.n_gate_columns)
    columns = problem.rows.gate
    two = np.array([len(np.unique(column)) == 2 for column in columns.T])
    steps = np.where(two, np.ptp(columns, axis=0), 0.0)
    parts = np.maximum(np.abs(gates * columns[apart, None]), np.abs(gates) * steps)
    return np.asarray((parts > 0.5 * INFINITE).any(axis=0))


def _separated_expert(problem: Problem, natural: Natural, weighted: Array, name: str) -> Flag | None:
    """Experts whose predictors run off to where means are zero, or probabilities zero or one."""
    if problem.family.name == "gaussian":
        return None
    binomial = problem.family.name == "binomial"
    beyond = (np.abs(natural.eta) if binomial else -natural.eta) > INFINITE
    total = float((beyond * weighted).sum() / weighted.sum())
    carried = _window_mass(problem, weighted)
    within = _window_mass(problem, weighted * beyond) / np.maximum(carried, np.finfo(float).tiny)
    region = (within > REGION) & (carried > FEW)  # fewer rows are the business of another flag
    if total <= SEPARATED and not region.any():
        return None
    where = _where(problem, (within > SEPARATED) & (carried > FEW), name)
    share = f"for {100 * total:.0f} % of the rows" + (f", {where}" if where else "")
    if binomial:
        return Flag(
            "separated_expert",
            f"Fitted probabilities are zero or one (log odds beyond {INFINITE:g}) {share}: a covariate separates "
            "the responses and its coefficient has no finite maximum",
            "use a larger bandwidth or fewer terms.",
        )
    return Flag(
        "separated_expert",
        f"Fitted means are zero (below {np.exp(-INFINITE):.1g}) {share}: all counts there are zero, and the "
        f"predictor, which has no finite maximum, is held near {LEAST_ETA:.3g}",
        "use a larger bandwidth, fewer terms or experts, or leave out the part of the index without counts.",
    )


def _window_mass(problem: Problem, weighted: Array) -> Array:
    """Rows that carry each expert at each grid point, (G, K), from responsibilities times weights (K, n)."""
    if problem.const.all():
        return weighted.sum(axis=1)[None].repeat(problem.windows.n_grid, axis=0)
    pieces = [local_moments(b, b.kernel[None] / 0.75, weighted.T, 1)[:, 0, 0] for b in blocks(problem.windows)]
    return np.concatenate(pieces)


def _one_trial(problem: Problem) -> Flag | None:
    if problem.family.name != "binomial" or problem.slots.n_experts == 1 or problem.rows.outcome.trials.max() > 1.0:
        return None
    return Flag(
        "weak_identification",
        f"A mixture of {problem.slots.n_experts} experts for a response with one trial per row is hardly identified: "
        "different experts can give the same probabilities",
        "pool rows into successes of trials, or use experts=1.",
    )


def n_clusters(clusters: NDArray[np.intp]) -> int:
    """Number of clusters, from their codes."""
    return int(clusters.max()) + 1


def _few_clusters(clusters: NDArray[np.intp] | None) -> Flag | None:
    if clusters is None or n_clusters(clusters) >= FEW_CLUSTERS:
        return None
    return Flag(
        "few_clusters",
        f"There are only {n_clusters(clusters)} clusters: standard errors and bands over clusters rest on as many "
        "independent units and are too small",
        "treat the cluster as a term of the formula, or collect more.",
    )


LEFT = 1e-4  # share of the squares of a constant term that functions of the varying terms must leave
MOST_INTERVALS = 20  # of the functions with which constant terms are compared
COLLINEAR = 1e-10  # share of the largest eigenvalue below which functions count as collinear
SHOWN = 4  # terms that a message names
VALUES_PER_BEND = 4  # different index values for each coefficient of these functions, at least


def constants_fault(
    problem: Problem, windows: Windows, design: Array, const: BoolArray, names: Sequence[str], index_name: str
) -> str | None:
    """What is wrong with constant coefficients of what functions of the varying terms explain, None if there are none.

    Parameters
    ----------
    problem : Problem
    windows : Windows
        Of these functions.
    design : ndarray, shape (n, p)
        Columns of the experts or of the gate.
    const : ndarray of bool, shape (p,)
        Which coefficients are constant.
    names : sequence of str
    index_name : str

    Returns
    -------
    str or None
        Names the columns.
    """
    if const.all() or not const.any():
        return None
    loading = superfluous(problem.rows, design, const, _knots(windows, int((~const).sum())))
    if loading is None:
        return None
    held = [name for name, constant in zip(names, const, strict=True) if constant]
    found = np.flatnonzero(loading > 0.1 * loading.max())
    named = ", ".join(repr(held[j]) for j in found[:SHOWN]) + (f" and {len(found) - SHOWN} more" * (len(found) > SHOWN))
    beside = ", ".join(repr(name) for name, constant in zip(names, const, strict=True) if not constant)
    return (
        f"a constant coefficient of {named} cannot be told from the functions of {index_name} beside it, those of "
        f"{beside}: as a function of the index, times one of these terms, it is part of them already; leave it out, "
        "or hold these constant too"
    )


def _knots(windows: Windows, varying: int) -> Array:
    """Quantiles of the index, about a bandwidth apart, with enough different values between them."""
    distinct = np.unique(windows.index)
    wanted = int(np.ceil(np.ptp(distinct) / windows.bandwidth))
    intervals = max(1, min(wanted, MOST_INTERVALS, len(distinct) // (2 * VALUES_PER_BEND * varying)))
    return np.unique(np.quantile(distinct, np.linspace(0.0, 1.0, intervals + 1)))


def superfluous(rows: Rows, design: Array, const: BoolArray, knots: Array) -> Array | None:
    """Loadings on the constant terms of the combination that functions explain, None if they explain none.

    Parameters
    ----------
    rows : Rows
    design : ndarray, shape (n, p)
    const : ndarray of bool, shape (p,)
    knots : ndarray, shape (g,)

    Returns
    -------
    ndarray, shape (C,), or None
    """
    root = np.sqrt(rows.weights)[:, None]
    held, varying = design[:, const] * root, design[:, ~const] * root
    basis = hermite_matrix(knots, float(np.ptp(knots)), rows.index)
    functions = sparse.hstack([basis.multiply(column[:, None]) for column in varying.T]).tocsr()
    inside, beside = _unit(held), _unit(varying)
    unit, upper = np.linalg.qr(inside - beside @ np.linalg.lstsq(beside, inside, rcond=None)[0])
    values, vectors = np.linalg.eigh(_squares_left(unit, functions))
    if values[0] >= LEFT:
        return None
    coefficients = np.linalg.lstsq(upper, vectors[:, 0], rcond=None)[0]
    out: Array = np.abs(coefficients) * np.sqrt(np.einsum("ij,ij->j", upper, upper))
    return out


def _unit(columns: Array) -> Array:
    length = np.sqrt((columns**2).sum(axis=0))
    out: Array = columns / np.where(length > 0.0, length, 1.0)
    return out


def _squares_left(columns: Array, functions: sparse.csr_array) -> Array:
    """Products of what functions, which may be collinear, leave of columns of unit length, shape (C, C)."""
    gram = (functions.T @ functions).toarray()
    size = np.sqrt(np.diag(gram))
    size = np.where(size > 0.0, size, 1.0)
    cross = (functions.T @ columns) / size[:, None]
    explained = cross.T @ np.linalg.pinv(gram / np.outer(size, size), rcond=COLLINEAR, hermitian=True) @ cross
    return np.asarray(columns.T @ columns - explained, dtype=np.float64)
