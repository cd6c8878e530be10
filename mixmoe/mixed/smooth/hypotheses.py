"""Tests of penalised functions: are they constant, lines, zero, equal in two experts.

The quick test is Wood's: with the values f of what is tested on the rows of the data and their covariance V,
``T = f'V^-f`` with a pseudo-inverse of the rank that the effective degrees of freedom say. The careful one refits
responses drawn from the model with the hypothesis imposed, which a penalty without bound does.

References
----------
Wood (2013), Biometrika 100, 221-228.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from mixmoe._typing import Array, IntArray
from mixmoe.check.term_tests import TermTest
from mixmoe.errors import ArgumentError
from mixmoe.inference.uncertainty import CovType
from mixmoe.inference.wald import WaldTest
from mixmoe.mixed.curvature import information
from mixmoe.mixed.smooth.fitting import SIGMA_FLOOR
from mixmoe.mixed.smooth.functions import Function, geometry_of
from mixmoe.mixed.smooth.marginal import Smoothed, estimate, marginal_loglik, typical_smoothing
from mixmoe.mixture.estimate import Block, EMFit, Starts
from mixmoe.mixture.resampling import replicate
from mixmoe.numerics.optimise import Control

if TYPE_CHECKING:
    from mixmoe.mixed.model import MEMoE

Hypothesis = Literal["constant", "linear", "zero", "equal"]
HYPOTHESES = ("constant", "linear", "zero", "equal")
METHODS = ("asymptotic", "bootstrap")
_WITHOUT_BOUND = 1e6  # penalty over the information of what it holds
_REFIT = Control(max_iter=200, tol=1e-5)


@dataclass(frozen=True, slots=True)
class FunctionTest:
    """Test of penalised functions.

    Attributes
    ----------
    functions : tuple of str
    hypothesis : {"constant", "linear", "zero", "equal"}
    statistic : float
        Wood's statistic, or the likelihood ratio of the bootstrap.
    df : float
        Its rank; NaN for the bootstrap.
    pvalue : float
    method : {"asymptotic", "bootstrap"}
    n_boot : int
        Draws behind the null distribution; 0 for the asymptotic one.
    null : ndarray, shape (n_boot,)
        Statistics of the draws.
    """

    functions: tuple[str, ...]
    hypothesis: str
    statistic: float
    df: float
    pvalue: float
    method: str
    n_boot: int
    null: Array

    def __str__(self) -> str:
        how = f"{self.method}, {self.n_boot} draws" if self.n_boot else self.method
        rank = "" if np.isnan(self.df) else f", df {self.df:.2f}"
        return (
            f"Test of functions, {self.hypothesis} under the null: {', '.join(self.functions)}\n"
            f"statistic {self.statistic:.3f}{rank}, p-value {self.pvalue:.4f} ({how})"
        )


def tested_columns(f: Function, hypothesis: str) -> NDArray[np.bool_]:
    """Columns of a function that vanish under a hypothesis, shape (c,) of bool."""
    of, term = f.columns.of, f.columns.term
    if hypothesis == "constant":
        return np.asarray(of >= int(term.by))
    if hypothesis == "linear":
        return np.asarray(of >= term.n_free)
    return np.ones(of.size, dtype=bool)


def wood_test(rows: Array, b: Array, cov: Array, edf: float) -> tuple[float, float, float]:
    """Statistic, rank and p-value of the hypothesis that a function is zero.

    Parameters
    ----------
    rows : ndarray, shape (n, c)
        Columns of what is tested on the rows of the data.
    b : ndarray, shape (c,)
    cov : ndarray, shape (c, c)
    edf : float
        Effective degrees of freedom of what is tested.

    Notes
    -----
    The rank is not rounded: the part of the next direction enters with a weight, as in section 2.3 of Wood (2013), and
    the null distribution is the chi-squared one with so many degrees of freedom. Where coefficients have no standard
    errors (NaN in `cov`), all three are NaN.
    """
    R = np.asarray(np.linalg.qr(rows, mode="r"))
    f, V = R @ b, R @ cov @ R.T
    if not np.isfinite(V).all():
        return np.nan, np.nan, np.nan
    values, vectors = np.linalg.eigh((V + V.T) / 2)
    order = np.argsort(values)[::-1]
    values, vectors = values[order], vectors[:, order]
    usable = int((values > 1e-10 * values[0]).sum()) if values[0] > 0 else 0
    rank = float(np.clip(edf, 1.0, max(usable, 1)))
    if usable == 0:
        return np.nan, rank, np.nan
    whole = int(np.floor(rank + 1e-9))
    part = (vectors.T @ f) ** 2 / np.where(values > 0, values, np.inf)
    statistic = float(part[:whole].sum())
    if whole < usable:
        statistic += (rank - whole) * float(part[whole])
    return statistic, rank, float(chi2.sf(statistic, rank))


def held(functions: Sequence[Function], names: Sequence[str], hypothesis: str) -> tuple[Function, ...]:
    """Functions of which the named ones have all that vanishes under a hypothesis penalised."""
    out = []
    for f in functions:
        if f.name in names:
            f = replace(f, columns=replace(f.columns, penalised=tested_columns(f, hypothesis)))
        out.append(f)
    return tuple(out)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which functions are tested, and how the null distribution is found."""

    functions: tuple[Function, ...]
    hypothesis: str
    n_boot: int = 199
    n_jobs: int = 1
    progress: bool | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the functions."""
        return tuple(f.name for f in self.functions)


def named_functions(functions: Sequence[Function], which: str | Sequence[str]) -> tuple[Function, ...]:
    """Functions by name, by that of their term in all experts, or ``"expert1"``, ``"experts"``, ``"gate"``, ``"all"``.

    Raises
    ------
    ArgumentError
        If there is none of a name.
    """
    groups = {"all": functions, "experts": [f for f in functions if f.columns.section == "expert"]}
    found: dict[str, Function] = {}
    for name in (which,) if isinstance(which, str) else tuple(which):
        own = [f for f in functions if name in (f.name, f.columns.name, f.name.split(".")[0])]
        some = [f for f in functions if f.columns.section == "gate"] if name == "gate" else groups.get(name, own)
        if not some:
            names = ", ".join(f.name for f in functions)
            raise ArgumentError(f"which names {name!r}, which is no function of the fit; it has {names}")
        found |= {f.name: f for f in some}
    return tuple(found.values())


def asymptotic_test(model: "MEMoE", wanted: Wanted, params: Array, cov: Array) -> FunctionTest:
    """Wood's test of functions together."""
    rows, where, edf = [], [], 0.0
    smoothing = model.smoothing
    for f in wanted.functions:
        tested = tested_columns(f, wanted.hypothesis)
        columns = model.design.expert if f.columns.section == "expert" else model.design.gate
        rows.append(columns[:, f.columns.columns[tested]])
        where.append(f.where[tested])
        edf += float(smoothing.weights[f.where][tested].sum()) if smoothing is not None else 0.0
    return _wood(wanted, _side_by_side(rows), np.concatenate(where), params, cov, edf)


def _side_by_side(rows: Sequence[Array]) -> Array:
    """Columns of functions of different experts as blocks of a diagonal: each has values of its own on the rows."""
    out = np.zeros((sum(len(r) for r in rows), sum(r.shape[1] for r in rows)))
    at = row = 0
    for r in rows:
        out[row : row + len(r), at : at + r.shape[1]] = r
        row, at = row + len(r), at + r.shape[1]
    return out


def _wood(wanted: Wanted, rows: Array, where: IntArray, params: Array, cov: Array, edf: float) -> FunctionTest:
    statistic, rank, p = wood_test(rows, params[where], cov[np.ix_(where, where)], edf)
    return FunctionTest(wanted.names, wanted.hypothesis, statistic, rank, p, "asymptotic", 0, np.empty(0))


def equality_test(model: "MEMoE", functions: Sequence[Function], params: Array, cov: Array) -> FunctionTest:
    """Wood's test that experts have one function, with their levels where the functions have them."""
    first, *later = functions
    if any(not np.array_equal(f.columns.of, first.columns.of) for f in later) or model.smoothing is None:
        listed = " and ".join(f.name for f in functions)
        raise ArgumentError(f"{listed} are no functions of one term, so they cannot be compared")
    where, weights, size = np.concatenate([f.where for f in functions]), model.smoothing.weights, first.where.size
    turn = np.hstack([-np.tile(np.eye(size), (len(later), 1)), np.eye(len(later) * size)])
    inner = turn @ cov[np.ix_(where, where)] @ turn.T
    edf = sum(float(np.maximum(weights[first.where], weights[f.where]).sum()) for f in later)
    rows = _side_by_side([model.design.expert[:, first.columns.columns]] * len(later))
    statistic, rank, p = wood_test(rows, turn @ params[where], inner, edf)
    names = tuple(f.name for f in functions)
    return FunctionTest(names, "equal", statistic, rank, p, "asymptotic", 0, np.empty(0))


def term_tests(model: "MEMoE", params: Array, cov: Array, kind: CovType) -> tuple[TermTest, ...]:
    """Tests of the functions of each term together: they are zero, and experts have the same."""
    if model.smoothing is None:
        return ()
    by_term: dict[tuple[Block, str], list[Function]] = {}
    for f in model.smoothing.functions:
        block: Block = "gate" if f.columns.section == "gate" else "common" if f.expert is None else "expert"
        by_term.setdefault((block, f.columns.name), []).append(f)

    def as_wald(test: FunctionTest, where: IntArray) -> WaldTest:
        error = np.sqrt(np.maximum(np.diag(cov)[where], 0.0))
        return WaldTest(test.functions, params[where], error, test.statistic, test.df, test.pvalue, kind)

    found = []
    for (block, term), functions in by_term.items():
        where = np.concatenate([f.where for f in functions])
        zero = as_wald(asymptotic_test(model, Wanted(tuple(functions), "zero"), params, cov), where)
        compared = block == "expert" and len(functions) > 1
        equal = as_wald(equality_test(model, functions, params, cov), where) if compared else None
        found.append(TermTest(block, term, zero, equal))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Refit:
    """Twice the gain in marginal log-likelihood over a null, on responses drawn from its fit; picklable."""

    model: "MEMoE"
    null: EMFit
    names: tuple[str, ...]
    hypothesis: str
    lambdas: Array

    def __call__(self, rng: np.random.Generator) -> float:
        """The statistic of one draw."""
        drawn = self.model.with_response(self.model.draw(self.null, rng))
        return gain(drawn, self.names, self.hypothesis, drawn.working(self.null.params), self.lambdas).statistic


@dataclass(frozen=True, slots=True)
class Gain:
    """A likelihood ratio, and the fits of which it is."""

    statistic: float
    found: Smoothed
    null: Smoothed


def gain(model: "MEMoE", names: Sequence[str], hypothesis: str, theta: Array, lambdas: Array | None = None) -> Gain:
    """Twice the gain in marginal log-likelihood of a model over one with functions held to a hypothesis."""
    own = np.array([f.name in names for f in model.functions])
    found = _maximum(model, model.functions, model.given_smoothing, theta, lambdas)
    functions = held(model.functions, names, hypothesis)
    plain = replace(model.problem, ridge=None, effective=None)
    geometry = geometry_of(functions, plain.free, model.structure, model.coordinates)
    unit = typical_smoothing(information(plain, found.theta), geometry)
    given = np.where(own, _WITHOUT_BOUND * unit, model.given_smoothing)
    coefficients = geometry.inverse @ found.theta
    for i in np.flatnonzero(own):
        coefficients[geometry.penalised[i]] = 0.0
    null = _maximum(model, functions, given, geometry.basis @ coefficients, found.lambdas)
    return Gain(2 * (_height(model, model.functions, found) - _height(model, functions, null)), found, null)


def _maximum(
    model: "MEMoE", functions: Sequence[Function], given: Array, theta: Array, start: Array | None
) -> Smoothed:
    plain = replace(model.problem, ridge=None, effective=None)
    geometry = geometry_of(functions, plain.free, model.structure, model.coordinates)
    return estimate(plain, geometry, theta, given, SIGMA_FLOOR, _REFIT, start)


def _height(model: "MEMoE", functions: Sequence[Function], found: Smoothed) -> float:
    plain = replace(model.problem, ridge=None, effective=None)
    geometry = geometry_of(functions, plain.free, model.structure, model.coordinates)
    return marginal_loglik(plain, geometry, found.lambdas, found.theta)


def bootstrap_test(model: "MEMoE", wanted: Wanted, fit: EMFit, rng: np.random.Generator) -> FunctionTest:
    """Likelihood-ratio test with the distribution of responses drawn from the fit under the hypothesis."""
    own = gain(model, wanted.names, wanted.hypothesis, model.working(fit.params), fit.smoothing)
    nothing = np.empty(0)
    even = np.full((model.design.n_units, model.n_experts), 1.0 / model.n_experts)
    null = EMFit(model.natural(own.null.theta), np.nan, nothing, 0, 0, True, even, Starts(0, nothing, 0))
    known = np.array([f.name in wanted.names for f in model.functions])
    # Under the hypothesis the tested functions bend no more than noise does: their penalties start from the data.
    lambdas = np.where(known, np.nan, own.null.lambdas)
    task = Refit(model, null, wanted.names, wanted.hypothesis, lambdas)
    draws = replicate(task, wanted.n_boot, rng, wanted.n_jobs, "bootstrap", wanted.progress)
    if draws.interrupted:
        raise KeyboardInterrupt
    values = np.array(draws.values)
    # The fit is one of the draws: a p-value of zero would claim more than so many draws can say.
    p = (1 + int((values >= own.statistic).sum())) / (1 + len(values))
    return FunctionTest(wanted.names, wanted.hypothesis, own.statistic, np.nan, p, "bootstrap", len(values), values)
