"""Wald tests of linear hypotheses, and tests that are refused."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import NoReturn

import numpy as np
from patsy import DesignInfo, PatsyError
from scipy.optimize import linprog
from scipy.stats import chi2
from scipy.stats import f as f_distribution

from mixmoe._typing import Array
from mixmoe.errors import ArgumentError, close_names
from mixmoe.inference.small_samples import Moments, joint_degrees_of_freedom
from mixmoe.inference.uncertainty import delta_cov, on_scales, slopes_of_scales
from mixmoe.mixture.estimate import ParamLayout

HypothesisSpec = str | Sequence[str] | Array | tuple[Array, Array]
_WIDTH = 78  # places of a line: the usual terminal of 80 without its last two
_INTERIOR = 1e-10  # a null hypothesis whose best point is closer than this to the boundary lies on it


@dataclass(frozen=True, slots=True)
class InvalidTest:
    """A test that would not mean anything, with the reason; it has no statistic and no p-value.

    Attributes
    ----------
    reason : str
        Why not, and what to do instead.
    """

    reason: str

    def __str__(self) -> str:
        return f"Invalid test: {self.reason}"

    def __bool__(self) -> bool:
        return False

    @property
    def pvalue(self) -> NoReturn:
        """Not defined; raises AttributeError with the reason."""
        raise AttributeError(f"an invalid test has no p-value: {self.reason}")

    @property
    def statistic(self) -> NoReturn:
        """Not defined; raises AttributeError with the reason."""
        raise AttributeError(f"an invalid test has no statistic: {self.reason}")


@dataclass(frozen=True, slots=True)
class Hypotheses:
    """Linear hypotheses ``matrix @ params = values``.

    Attributes
    ----------
    matrix : ndarray, shape (R, P)
    values : ndarray, shape (R,)
    labels : tuple of str
        Each hypothesis in words.
    """

    matrix: Array
    values: Array
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WaldTest:
    """Joint test of linear hypotheses.

    Attributes
    ----------
    hypotheses : tuple of str
    estimate : ndarray, shape (R,)
        Left sides minus right sides.
    std_error : ndarray, shape (R,)
    statistic : float
        ``W = (R b - q)' (R V R')^-1 (R b - q)``, chi-squared; or, with few units and one expert, F =
        ``(eta - df + 1) / (eta df) W``.
    df : float
        Degrees of freedom: independent hypotheses, of an F the numerator; effective ones of penalised functions.
    pvalue : float
    cov_type : str
    df_resid : float
        ``eta - df + 1``, the denominator degrees of freedom of an F; infinite for chi-squared.

    References
    ----------
    Pustejovsky & Tipton (2018), Journal of Business & Economic Statistics 36, 672-683.
    """

    hypotheses: tuple[str, ...]
    estimate: Array
    std_error: Array
    statistic: float
    df: float
    pvalue: float
    cov_type: str
    df_resid: float = np.inf

    @property
    def distribution(self) -> str:
        """``"chi2"`` or ``"F"``."""
        return "F" if np.isfinite(self.df_resid) else "chi2"

    @property
    def df_denom(self) -> float:
        """Denominator degrees of freedom of an F, those of a chi-squared, under the name that statsmodels uses."""
        return self.df_resid if self.distribution == "F" else self.df

    def __str__(self) -> str:
        lines = [
            f"  {label}: difference {b:.4g} (SE {se:.4g})"
            for label, b, se in zip(self.hypotheses, self.estimate, self.std_error, strict=True)
        ]
        named = f"F({self.df}, {self.df_resid:.4g})" if self.distribution == "F" else f"chi2({self.df})"
        head = f"Wald test: {named} = {self.statistic:.4g}, p = {self.pvalue:.4g} ({self.cov_type} covariance)"
        return printed_lines(head, *lines)


def printed_lines(*lines: str) -> str:
    """Lines of a printed test, long ones broken and indented below their beginning."""
    return "\n".join(
        fill(line, _WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False) for line in lines
    )


def parse_hypotheses(spec: HypothesisSpec, names: Sequence[str]) -> Hypotheses:
    """Linear hypotheses from text or arrays.

    Parameters
    ----------
    spec : str, sequence of str, ndarray or (ndarray, ndarray)
        ``"expert1.time = expert2.time"``, several separated by commas or in a list, a matrix of coefficients with
        P columns (right sides zero), or a matrix with its right sides.
    names : sequence of str
        The P parameter names.

    Returns
    -------
    Hypotheses

    Raises
    ------
    ArgumentError
        If the text cannot be read or the array does not have P columns.
    """
    if isinstance(spec, str) or (isinstance(spec, list | tuple) and spec and all(isinstance(s, str) for s in spec)):
        matrix, values = _from_text([spec] if isinstance(spec, str) else list(spec), names)
    else:
        matrix, values = _from_arrays(spec, len(names))
    if not (np.isfinite(matrix).all() and np.isfinite(values).all()):
        raise ArgumentError(f"hypotheses must be finite numbers, got {matrix.tolist()} = {values.tolist()}")
    values = values + 0.0  # no negative zeros
    labels = tuple(_label(row, value, names) for row, value in zip(matrix, values, strict=True))
    for row, label in zip(matrix, labels, strict=True):
        if not row.any():
            raise ArgumentError(
                f"the hypothesis {label!r} involves no parameter; write it with names such as {names[0]!r}"
            )
    return Hypotheses(matrix, values, labels)


def wald_test(
    hypotheses: Hypotheses,
    params: Array,
    cov: Array,
    layout: ParamLayout,
    cov_type: str,
    moments: Moments | None = None,
) -> WaldTest | InvalidTest:
    """Joint Wald test of linear hypotheses.

    Parameters
    ----------
    hypotheses : Hypotheses
    params : ndarray, shape (P,)
    cov : ndarray, shape (P, P)
        NaN for parameters without valid standard error.
    layout : ParamLayout
    cov_type : str
    moments : Moments, optional
        Of the covariance, for an F statistic in place of a chi-squared one.

    Returns
    -------
    WaldTest or InvalidTest

    Raises
    ------
    ArgumentError
        If the hypotheses contradict one another.
    """
    refusal = refuse_wald(hypotheses, params, cov, layout)
    if refusal is not None:
        return refusal
    difference = hypotheses.matrix @ params - hypotheses.values
    errors = np.sqrt(np.diag(delta_cov(hypotheses.matrix, cov)))
    independent = _independent(hypotheses)
    tested = on_scales_of_limits(hypotheses, params, layout).take(independent)
    inner = delta_cov(tested.slopes, cov)
    scale = np.sqrt(np.diag(inner))
    if not (scale > 0).all():
        return InvalidTest(f"the covariance of {hypotheses.labels[independent[0]]!r} is singular; use lr_test")
    standard = tested.difference / scale
    correlation = inner / np.outer(scale, scale)
    if np.linalg.eigvalsh(correlation)[0] < 1e-12:
        return InvalidTest(
            f"the covariance of these {len(independent)} hypotheses has lower rank than {len(independent)}: there are "
            "more hypotheses than clusters or replicates; test fewer at a time"
        )
    statistic = float(standard @ np.linalg.solve(correlation, standard))
    q, eta = len(independent), joint_degrees_of_freedom(moments, tested.slopes)
    if np.isinf(eta):
        p_value = float(chi2.sf(statistic, q))
        return WaldTest(hypotheses.labels, difference, errors, statistic, q, p_value, cov_type)
    if not eta > q - 1:
        return InvalidTest(
            f"the covariance of these {q} hypotheses has {eta:.3g} degrees of freedom, too few for a joint test; "
            "test fewer at a time, or use cov_type='nonrobust'"
        )
    statistic *= (eta - q + 1) / (eta * q)
    p_value = float(f_distribution.sf(statistic, q, eta - q + 1))
    return WaldTest(hypotheses.labels, difference, errors, statistic, q, p_value, cov_type, eta - q + 1)


@dataclass(frozen=True, slots=True)
class Tested:
    """Hypotheses as they are tested.

    Attributes
    ----------
    difference : ndarray, shape (R,)
        Left sides minus right sides, on the scale on which limits are computed.
    slopes : ndarray, shape (R, P)
        Their derivatives in the parameters.
    """

    difference: Array
    slopes: Array

    def take(self, rows: Sequence[int]) -> "Tested":
        """Some of the hypotheses."""
        return Tested(self.difference[list(rows)], self.slopes[list(rows)])


def on_scales_of_limits(hypotheses: Hypotheses, params: Array, layout: ParamLayout) -> Tested:
    """Hypotheses that name the value of one standard deviation or correlation, on the scale of its limits.

    ``sd = c`` becomes ``log sd - log c = 0`` and ``r = c`` becomes ``atanh r - atanh c = 0`` (a probability that of the
    log odds), so that a value is rejected if and only if it lies outside the limits. Hypotheses about several
    parameters are tested as they are. Assumes that `refuse_wald` has let them pass.
    """
    difference, slopes = hypotheses.matrix @ params - hypotheses.values, hypotheses.matrix.copy()
    for i, row in enumerate(hypotheses.matrix):
        used = np.flatnonzero(row)
        if len(used) != 1:
            continue
        j = int(used[0])
        scale, value = layout.parameters[j].scale, hypotheses.values[i] / row[j]
        sign = np.sign(row[j])
        if scale != "identity":
            both, scales = np.array([params[j], value]), np.array([scale, scale], dtype=object)
            own, held = on_scales(both, scales)
            difference[i], slopes[i, j] = sign * (own - held), sign * slopes_of_scales(both[:1], scales[:1])[0]
    return Tested(difference, slopes)


def refuse_wald(hypotheses: Hypotheses, params: Array, cov: Array, layout: ParamLayout) -> InvalidTest | None:
    """The reason why hypotheses cannot be tested by a Wald statistic, if there is one.

    Parameters
    ----------
    hypotheses : Hypotheses
    params : ndarray, shape (P,)
    cov : ndarray, shape (P, P)
    layout : ParamLayout

    Returns
    -------
    InvalidTest or None
    """
    used = _used(hypotheses)
    blank = [layout.names[i] for i in used if np.isnan(cov[i, i])]
    if blank:
        return InvalidTest(
            f"{', '.join(blank)} has no valid standard error (it is on the boundary of its space or was not estimated "
            "freely); compare fits with lr_test instead"
        )
    weights = [
        layout.names[i] for i in used if layout.parameters[i].block == "smooth" and not layout.parameters[i].tested
    ]
    if weights:
        return InvalidTest(
            f"{', '.join(weights)} is a weight of a network, and single weights have no meaning: hidden units may be "
            "exchanged and change their sign; see plot() for the function"
        )
    if _margin(hypotheses, params, layout) <= _INTERIOR:
        return InvalidTest(
            f"the hypothesis {', '.join(hypotheses.labels)!r} puts a standard deviation or a correlation on the "
            "boundary of its space, where the Wald statistic is not chi-squared; fit the smaller model and use lr_test"
        )
    return None


def _from_text(spec: list[str], names: Sequence[str]) -> tuple[Array, Array]:
    """Matrix and right sides of hypotheses in text."""
    if not all(text.strip() for text in spec):
        raise ArgumentError(f"a hypothesis is empty, got {spec!r}; write e.g. '{names[0]} = 0'")
    try:
        found = DesignInfo(list(names)).linear_constraint(spec)
    except (PatsyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it is empty"
        raise ArgumentError(
            f"cannot read the hypothesis {', '.join(spec)!r} ({reason}); write e.g. '{names[0]} = 0'."
            f"{_suggestion(spec, names)}"
        ) from error
    return np.asarray(found.coefs, dtype=float), np.asarray(found.constants, dtype=float).ravel()


def _suggestion(spec: list[str], names: Sequence[str]) -> str:
    """Parameter names close to the words that are none."""
    words = [w for text in spec for w in re.split(r"[=+*/,]|\s+-\s*|\s+", text) if w and w not in names]
    words = [w for w in words if not re.fullmatch(r"-?[\d.]+(e-?\d+)?", w)]
    if not words:
        return ""
    functions = [word.rstrip(")") for word in words if re.match(r"(expert\d+\.|gate\d+\.)?s\(", word)]
    known = [one for one in functions if any(name.startswith((f"{one})", f"{one},")) for name in names)]
    if known:
        return f" {known[0] + ')'!r} is a function, which test_functions({known[0] + ')'!r}) tests"
    close = [m for w in words for m in close_names(w, names, most=2)]
    shown = close or list(names[:8])
    return f" {'Close' if close else 'Known'} names: {', '.join(shown)}{' ...' if not close and len(names) > 8 else ''}"


def _from_arrays(spec: object, n_params: int) -> tuple[Array, Array]:
    """Matrix and right sides of hypotheses in arrays."""
    left, right = spec if isinstance(spec, tuple) and len(spec) == 2 else (spec, None)
    try:
        matrix = np.atleast_2d(np.asarray(left, dtype=float))
        values = np.zeros(len(matrix)) if right is None else np.atleast_1d(np.asarray(right, dtype=float)).ravel()
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"a hypothesis is text, a list of texts or an array with {n_params} columns, got {spec!r}"
        ) from error
    if matrix.ndim != 2 or matrix.shape[1] != n_params or not len(matrix):
        raise ArgumentError(
            f"a matrix of hypotheses needs {n_params} columns, one per parameter, got shape {matrix.shape}"
        )
    if len(values) not in (1, len(matrix)):
        raise ArgumentError(f"{len(matrix)} hypotheses need {len(matrix)} right sides, got {len(values)}")
    return matrix, np.broadcast_to(values, len(matrix)).astype(float)


def _label(row: Array, value: float, names: Sequence[str]) -> str:
    """One hypothesis in words."""
    text = ""
    for i in np.flatnonzero(row).tolist():
        sign = "-" if row[i] < 0 else "+"
        size = "" if abs(row[i]) == 1 else f"{abs(row[i]):g} * "
        text += f" {sign} {size}{names[i]}" if text else f"{'-' if row[i] < 0 else ''}{size}{names[i]}"
    return f"{text or '0'} = {value:g}"


def _used(hypotheses: Hypotheses) -> list[int]:
    """Positions of the parameters that the hypotheses involve."""
    return [int(i) for i in np.flatnonzero(np.abs(hypotheses.matrix).sum(axis=0))]


def _independent(hypotheses: Hypotheses) -> list[int]:
    """Positions of a largest set of linearly independent hypotheses.

    Raises
    ------
    ArgumentError
        If one of the others contradicts them.
    """
    kept: list[int] = []
    for i, row in enumerate(hypotheses.matrix):
        if np.linalg.matrix_rank(hypotheses.matrix[[*kept, i]]) > len(kept):
            kept.append(i)
            continue
        weights = np.linalg.lstsq(hypotheses.matrix[kept].T, row, rcond=None)[0]
        implied = float(weights @ hypotheses.values[kept])
        if abs(implied - hypotheses.values[i]) > 1e-8 * max(1.0, abs(implied)):
            raise ArgumentError(f"the hypothesis {hypotheses.labels[i]!r} contradicts the others; leave it out")
    return kept


def _margin(hypotheses: Hypotheses, params: Array, layout: ParamLayout) -> float:
    """How far inside its space a parameter vector that obeys the hypotheses can be, at most 1; negative if none can.

    Standard deviations are measured in units of their estimates, so that the answer does not depend on units.
    """
    scales = layout.scales.tolist()
    if all(scales[i] == "identity" for i in _used(hypotheses)):
        return 1.0
    unit = np.array([b if s == "log" and b > 0 else 1.0 for b, s in zip(params, scales, strict=True)])
    inside = _inside(scales)
    answer = linprog(
        c=np.r_[np.zeros(len(scales)), -1.0],
        A_ub=inside.matrix,
        b_ub=inside.values,
        A_eq=np.column_stack([hypotheses.matrix * unit, np.zeros(len(hypotheses.matrix))]),
        b_eq=hypotheses.values,
        bounds=[(None, None)] * len(scales) + [(None, 1.0)],
    )
    return -float(answer.fun) if answer.status == 0 else 1.0


def _inside(scales: Sequence[str]) -> Hypotheses:
    """Inequalities ``matrix @ (params, t) <= values``: deviations and distances from ends are at least t."""
    rows, limits = [], []
    for i, scale in enumerate(scales):
        for sign in {"identity": (), "log": (1.0,), "atanh": (1.0, -1.0), "logit": (1.0, -1.0)}[scale]:
            row = np.zeros(len(scales) + 1)
            row[i], row[-1] = -sign, 1.0
            rows.append(row)
            limits.append(0.0 if scale == "log" or (scale == "logit" and sign > 0.0) else 1.0)
    return Hypotheses(np.array(rows), np.array(limits), ())
