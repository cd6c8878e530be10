"""From a formula and a frame of outcomes to the arrays of step 3, and whether an outcome looks normal."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray
from scipy.stats import chi2

from mixmoe._typing import Array
from mixmoe.design.checks import aliases
from mixmoe.design.design import Design, build_design, column_terms
from mixmoe.design.formula import MoEFormula, parse_formula
from mixmoe.design.frame import shown, whole_frame
from mixmoe.design.labels import unhashable
from mixmoe.design.recipe import response_column
from mixmoe.errors import ArgumentError, DesignError, DroppedRowsWarning, FormulaError
from mixmoe.output.predictions import known_places
from mixmoe.responses.distribution import check_varies
from mixmoe.three_step.estimates import Assignment, Normal, StepThree, solve

EXPERT = "expert"


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
        raise ArgumentError(
            f"none of the {len(keys)} rows of outcomes belongs to the fit (matched by {by}); "
            f"name the {'subjects' if group else 'rows'} as in the fit, e.g. {shown(design.labels[0])}"
        )
    return Matched(frame[known].reset_index(drop=True), where[known], int((~known).sum()))


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
    frame = _expanded(matched.frame, n_experts)
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


def _expanded(frame: pd.DataFrame, n_experts: int) -> pd.DataFrame:
    copies = pd.concat([frame] * n_experts, ignore_index=True)
    codes = np.repeat(np.arange(1, n_experts + 1), len(frame))
    return copies.assign(**{EXPERT: pd.Categorical(codes, categories=range(1, n_experts + 1))})


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
    )


_PLACEHOLDER = "row_of_outcomes"
LEVEL = 0.001  # of the test behind the warning
LEAST = 0.5  # skewness that is worth a warning
_NODES = 4  # of the quadrature, exact for sixth powers


@dataclass(frozen=True, slots=True)
class Skewness:
    """Skewness of an outcome under each expert, corrected for classification error.

    Attributes
    ----------
    values : ndarray, shape (K,)
        NaN if the corrected variance of an expert is not above zero.
    std_errors : ndarray, shape (K,)
        Were the outcome normal.
    pvalue : float
        Of the joint Wald test that all are zero.
    """

    values: Array
    std_errors: Array
    pvalue: float

    @property
    def doubtful(self) -> bool:
        """Whether the skewness is too large for a normal outcome, beyond chance and by an amount that matters."""
        return self.pvalue < LEVEL and bool(np.abs(self.values).max() >= LEAST)


def skewness(made: Assignment, used: NDArray[np.intp], y: Array, X: Array) -> Skewness:
    """Third standardised moment of the residuals of an outcome under each expert, by the weights of ``"bch"``.

    Parameters
    ----------
    made : Assignment
    used : ndarray of int, shape (n,)
        Units of step 3 among those of the fit.
    y : ndarray, shape (n,)
        In units of its standard deviation.
    X : ndarray, shape (n, K, p)
        With a column, or a combination of columns, for each expert.

    Returns
    -------
    Skewness

    Notes
    -----
    The weights have the mean one under the true expert and zero under the others, whatever the distribution of the
    outcome, so that weighted moments need no normality. The influence of a unit on the skewness of a normal variable
    is ``u^3 - 3 u`` of its standardised residual (Hampel, Ronchetti, Rousseeuw & Stahel 1986, section 2.1), to which
    what it does to the classification errors is added. Its variance is taken where the outcome is normal, not from
    the sixth powers of what was observed, which a long tail inflates so that the test would not see it.
    """
    step = StepThree((Normal(y, X, own_sigma=False),), made.modal[used], "bch")
    beta = solve(step, made, used, np.zeros(X.shape[2])).beta
    weights, centres = step.weights(beta, made.errors), X @ beta
    residuals, mass = y[:, None] - centres, weights.sum(axis=0)
    variances = (weights * residuals**2).sum(axis=0) / mass
    if not (variances > 0).all():
        unknown = np.full(len(mass), np.nan)
        return Skewness(unknown, unknown, np.nan)
    values = (weights * residuals**3).sum(axis=0) / mass / variances**1.5
    cov = _normal_cov(made, used, weights, centres, np.sqrt(variances)) / np.outer(mass, mass)
    statistic = values @ np.linalg.lstsq(cov, values, rcond=None)[0]
    return Skewness(values, np.sqrt(np.diag(cov)), float(chi2.sf(statistic, len(values))))


def _normal_cov(made: Assignment, used: NDArray[np.intp], weights: Array, centres: Array, sigma: Array) -> Array:
    """Covariance of the sums of influences over the units were outcomes normal given the expert, shape (K, K)."""
    nodes, shares = hermegauss(_NODES)
    drawn = centres[:, :, None] + sigma[:, None] * nodes  # (n, K, Q), outcomes of each true expert
    u = (drawn[..., None] - centres[:, None, None]) / sigma
    pull = u**3 - 3 * u  # (n, K, Q, K), the last one the expert that the unit is counted for
    behind = made.responsibilities.T @ made.indicators  # of each assignment, the true experts
    chances = (behind / behind.sum(axis=0)).T[made.modal[used]][..., None] * shares / shares.sum()  # (n, K, Q)
    by_unit = np.zeros((len(made.modal), len(sigma)))
    by_unit[used] = np.einsum("ntq,ntqk->nk", chances, pull)
    drift = _drift(made, by_unit)
    total = weights[:, None, None] * pull + drift[used][:, None, None]
    spared = np.delete(drift, used, axis=0)
    return np.asarray(np.einsum("ntq,ntqk,ntql->kl", chances, total, total) + spared.T @ spared)


def _drift(made: Assignment, pull: Array) -> Array:
    """What each unit does to the weighted sums of `pull` through the classification errors, shape (N, K)."""
    inverse = np.linalg.inv(made.errors)
    slopes = -np.einsum("bk,ak->kab", inverse, inverse.T @ (made.indicators.T @ pull))
    return np.einsum("nab,kab->nk", made.influence_on_errors(), slopes)
