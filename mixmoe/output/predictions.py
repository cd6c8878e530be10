"""What `predict` is asked for, in the words of all families; laws of responses and means; columns that come back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr, stdtrit
from scipy.stats import norm

from mixmoe._typing import Array
from mixmoe.arguments import checked_choice
from mixmoe.design.design import Design, used_columns
from mixmoe.design.frame import places_of, shown, view
from mixmoe.errors import ArgumentError, DesignError, MixmoeWarning, warn
from mixmoe.inference.uncertainty import checked_alpha
from mixmoe.output.summary import row_labels

_ALIKE = 1e-9  # of the largest value of a gate column

Kind = Literal["all", "mean", "experts", "probabilities", "subject"]
IntervalOf = Literal["confidence", "prediction"]
Scale = Literal["response", "link", "categories"]
_BISECTIONS = 60  # halvings, which leave a quantile its digits


@dataclass(frozen=True, slots=True)
class MixtureLaw:
    """A normal or t mixture per row.

    Attributes
    ----------
    weights, means : ndarray, shape (n, K)
    sd : ndarray, shape (n, K)
        Standard deviations, or for t the scales.
    df : ndarray, shape (n, K), or None
        Degrees of freedom; None for normal components.
    """

    weights: Array
    means: Array
    sd: Array
    df: Array | None = None

    @property
    def mean(self) -> Array:
        """Means of the mixtures, shape (n,)."""
        return np.asarray((self.weights * self.means).sum(axis=1))

    @property
    def deviation(self) -> Array:
        """Standard deviations of the mixtures, infinite where they do not exist, shape (n,)."""
        inside = self.sd**2
        if self.df is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                inside = np.where(self.df > 2, inside * self.df / (self.df - 2), np.inf)
        return np.sqrt((self.weights * (inside + (self.means - self.mean[:, None]) ** 2)).sum(axis=1))

    def below(self, y: Array) -> Array:
        """Probability of a value below each of `y`, shape (n,)."""
        z = self._standardised(y)
        return np.asarray((self.weights * (ndtr(z) if self.df is None else stdtr(self.df, z))).sum(axis=1))

    def beyond(self, y: Array) -> Array:
        """Probability of a value above each of `y`, shape (n,), without loss of digits."""
        z = self._standardised(-y, sign=-1.0)
        return np.asarray((self.weights * (ndtr(z) if self.df is None else stdtr(self.df, z))).sum(axis=1))

    def quantile(self, level: float) -> Array:
        """Quantiles, shape (n,), by bisection."""
        tail = min(level, 1 - level) / 2
        reach = (norm.isf(tail) if self.df is None else -stdtrit(self.df, tail)) + 1
        low = (self.means - reach * self.sd).min(axis=1)
        high = (self.means + reach * self.sd).max(axis=1)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            under = self.below(middle) < level
            low, high = np.where(under, middle, low), np.where(under, high, middle)
        return 0.5 * (low + high)

    def _standardised(self, y: Array, sign: float = 1.0) -> Array:
        scale = np.maximum(self.sd, np.finfo(float).tiny)
        with np.errstate(over="ignore"):  # without random effects a subject's mean has no spread within an expert
            return np.asarray((y[:, None] - sign * self.means) / scale)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What `predict` is asked for, checked.

    Attributes
    ----------
    kind : str
    interval : {"confidence", "prediction"} or None
    alpha : float
    scale : str
    """

    kind: Kind = "all"
    interval: IntervalOf | None = None
    alpha: float = 0.05
    scale: Scale = "response"

    @property
    def limits(self) -> bool:
        """Whether standard errors and limits are asked for."""
        return self.interval is not None

    @property
    def confidence(self) -> bool:
        """Whether they are those of what is estimated."""
        return self.interval == "confidence"

    @property
    def noise(self) -> bool:
        """Whether limits are those of a new response."""
        return self.interval == "prediction"


def checked_wanted(kind: Any, interval: Any, alpha: float, scale: Any) -> Wanted:
    """The arguments of `predict` that all families share.

    Raises
    ------
    ArgumentError
        For a word that is none of them, and where limits of a response are asked of what is no response.
    """
    checked_choice(kind, "kind", get_args(Kind))
    checked_choice(scale, "scale", get_args(Scale))
    if interval not in (None, *get_args(IntervalOf)):
        raise ArgumentError(f"interval must be None, 'confidence' or 'prediction', got {interval!r}")
    if interval == "prediction" and kind in ("experts", "probabilities"):
        raise ArgumentError(
            f"interval='prediction' holds a new response, which kind='mean' and kind='subject' predict, got "
            f"kind={kind!r}; use one of these, or interval='confidence'"
        )
    if interval == "prediction" and scale == "categories":
        raise ArgumentError(
            "interval='prediction' holds a new response, got scale='categories', which are probabilities; use "
            "scale='response', or interval='confidence'"
        )
    return Wanted(kind, interval, checked_alpha(alpha), scale)


def refuse_posterior_limits(wanted: Wanted) -> None:
    """Refuse limits of posterior probabilities, which no family has.

    Raises
    ------
    ArgumentError
    """
    if wanted.kind == "probabilities" and wanted.limits:
        raise ArgumentError(
            f"posterior probabilities have no limits, got interval={wanted.interval!r} with history=; leave interval= "
            "out, or history= for the limits of those by the gate"
        )


@dataclass(frozen=True, slots=True)
class Interval:
    """Estimates with limits.

    Attributes
    ----------
    estimate, std_error, lower, upper : ndarray
    """

    estimate: Array
    std_error: Array
    lower: Array
    upper: Array


def mixture_intervals(law: MixtureLaw, alpha: float) -> Interval:
    """Means, standard deviations and equal-tailed limits, each shape (n,)."""
    return Interval(law.mean, law.deviation, law.quantile(alpha / 2), law.quantile(1 - alpha / 2))


def joined(parts: Sequence[Interval | Array]) -> Interval | Array:
    """Runs of rows one after the other."""
    columns = [(p.estimate, p.std_error, p.lower, p.upper) for p in parts if isinstance(p, Interval)]
    if columns:
        return Interval(*map(np.concatenate, zip(*columns, strict=True)))
    return np.concatenate([p for p in parts if not isinstance(p, Interval)])


def named_columns(names: Sequence[str], values: Interval | Array) -> dict[str, Array]:
    """Columns ``name`` of values of shape (n, J), and ``name_se``, ``name_low``, ``name_high`` if they have limits."""
    if not isinstance(values, Interval):
        return dict(zip(names, values.T, strict=True))
    out: dict[str, Array] = {}
    for j, name in enumerate(names):
        out[name] = values.estimate[:, j]
        out[f"{name}_se"] = values.std_error[:, j]
        out[f"{name}_low"] = values.lower[:, j]
        out[f"{name}_high"] = values.upper[:, j]
    return out


def by_expert(prefix: str, values: Interval | Array, codes: NDArray[np.intp] | None = None) -> dict[str, Array]:
    """Columns ``prefix1``, ``prefix1_se`` ... from arrays of shape (n, K), repeated over `codes` if given."""
    rows: Any = slice(None) if codes is None else codes
    if not isinstance(values, Interval):
        return named_columns([f"{prefix}{k + 1}" for k in range(values.shape[1])], values[rows])
    parts = (values.estimate[rows], values.std_error[rows], values.lower[rows], values.upper[rows])
    return named_columns([f"{prefix}{k + 1}" for k in range(values.estimate.shape[1])], Interval(*parts))


def mean_columns(values: Interval | Array) -> dict[str, Array]:
    """Columns ``mean``, ``mean_se`` ... from arrays of shape (n,)."""
    if not isinstance(values, Interval):
        return {"mean": values}
    parts = (values.estimate, values.std_error, values.lower, values.upper)
    return named_columns(("mean",), Interval(*(part[:, None] for part in parts)))


def with_offset(columns: Mapping[str, Array], offset: Array) -> dict[str, Array]:
    """Means and limits with offset; probabilities and standard errors as they are."""
    fixed = ("probability",)
    return {
        name: values if name.startswith(fixed) or name.endswith("_se") else values + offset
        for name, values in columns.items()
    }


def in_user_order(columns: Mapping[str, Array], design: Design, new: Any) -> pd.DataFrame:
    """A frame whose rows are those of `new`, NaN where a row could not be used; or those of the fit."""
    # One array for all columns: rows are put in the user's order once.
    values = np.column_stack(list(columns.values()))
    if new is None:
        index = design.rows[np.argsort(design.position, kind="stable")]
        return pd.DataFrame(design.in_order(values), index=index, columns=list(columns))
    index = row_labels(new, design.n_input)
    return pd.DataFrame(design.in_order(values, fill=True), index=index, columns=list(columns))


def known_places(labels: NDArray[np.object_], known: NDArray[np.object_], column: str) -> NDArray[np.intp]:
    """Place of each label among those that are known, -1 where it is new.

    Parameters
    ----------
    labels, known : ndarray of object
    column : str
        What the labels are of, for messages.

    Raises
    ------
    DesignError
        If a new label reads as one that is known but is of another type, as text where the fit had numbers: a unit that
        is known would pass as a stranger.
    """
    found = places_of(labels, known)
    readings = {_reading(label): label for label in known} if (found < 0).any() else {}
    for label in labels[found < 0]:
        alike = readings.get(_reading(label))
        if alike is not None and isinstance(label, str) != isinstance(alike, str):
            raise DesignError(
                f"{column!r} is {shown(label)} ({type(label).__name__}) in the new data and {shown(alike)} "
                f"({type(alike).__name__}) in what is known, which are not the same label; convert the column to the "
                "type that it had"
            )
    return found


def check_baseline(known: Design, wanted: Design, where: NDArray[np.intp]) -> None:
    """Refuse rows to predict whose gate covariates are not those of the past of their subject, which count.

    Parameters
    ----------
    known, wanted : Design
    where : ndarray of int, shape (N,)
        Place of each subject of `wanted` among those of `known`; -1 where it is not there.

    Raises
    ------
    DesignError
        Names the subject and the column.
    """
    mine = np.flatnonzero(where >= 0)
    if known is wanted or not mine.size:
        return
    before, now = known.gate[where[mine]], wanted.gate[mine]
    wrong = np.abs(now - before) > _ALIKE * np.maximum(np.abs(before), np.abs(now)).max(axis=0)
    if not wrong.any():
        return
    i = int(wrong.any(axis=1).argmax())
    first, second = known.frame.iloc[known.starts[where[mine[i]]]], wanted.frame.iloc[wanted.starts[mine[i]]]
    differing = [name for name in used_columns(wanted, "gate") if first[name] != second[name]]
    column = differing[0] if differing else wanted.names.gate[int(wrong[i].argmax())]
    values = f", {shown(first[column])} and {shown(second[column])}" if differing else ""
    raise DesignError(
        f"the gate covariate {column!r} of subject {shown(wanted.labels[mine[i]])} differs between her history and the "
        f"rows to predict{values}; the gate routes whole subjects by their baseline, so give it one value per subject"
    )


def _reading(label: Any) -> str:
    """A label as one reads it: numbers without regard to how they are written, times as pandas shows them."""
    text = (label.decode(errors="replace") if isinstance(label, bytes) else str(label)).strip()
    try:
        return repr(float(text))
    except ValueError:
        return text.removesuffix(" 00:00:00")


def warn_strangers(means: str, found: NDArray[np.bool_], given: bool) -> None:
    """Say that nothing is known of subjects that are predicted as known, which then have the `means` of strangers.

    Parameters
    ----------
    means : str
    found : ndarray of bool, shape (N,)
        Which of the subjects to predict are known.
    given : bool
        Whether they are known by a history that the user passed, which may hold some of them only, not by the fit.

    Warns
    -----
    MixmoeWarning
    """
    if given and not found.any():
        warn(
            f"no subject of history= is in the new data, so all are predicted by {means} alone; give the subjects the "
            "same names in both",
            MixmoeWarning,
        )
    elif not given and not found.all():
        warn(
            f"kind='subject': {int((~found).sum())} of the {found.size} subjects of the new data are not in the fit, "
            f"without history=, so predicted by {means} alone; give their past rows as history=, or write "
            "kind='mean'",
            MixmoeWarning,
        )


def check_own_rows(history: Any, wanted: Design, new: Any) -> None:
    """Refuse a history of rows without subjects that is not made of the rows to predict.

    Where the units of a model are rows, nothing but its own response is known of a row.

    Parameters
    ----------
    history : frame
        As the user passed it.
    wanted : Design
        The rows to predict.
    new : frame or None
        What `wanted` was made of; None for the data of the fit.

    Raises
    ------
    ArgumentError
    """
    past, order = view(history), np.argsort(wanted.position, kind="stable")

    def same() -> bool:
        if new is None:
            return bool(past.labels[wanted.position[order]].equals(wanted.rows[order]))
        return bool(past.labels.equals(view(new).labels))

    if past.n_rows != wanted.n_input or not same():
        raise ArgumentError(
            f"the model {wanted.formula.text!r} has no subjects: nothing is known of a row but its own response, so "
            f"that history= must be the rows to predict ({wanted.n_input}, with the same index) with their responses, "
            f"got {past.n_rows} rows; leave it out, or name the subject of each row in re: (0 | subject)"
        )


def random_effects_frame(
    probabilities: Array, means: Array, covariances: Array, names: Sequence[str], index: pd.Index
) -> pd.DataFrame:
    """Random effects mixed over experts and given each expert, with standard errors, one row per subject.

    Parameters
    ----------
    probabilities : ndarray, shape (N, K)
    means : ndarray, shape (N, K, q)
    covariances : ndarray, shape (N, K, q, q)
    names : sequence of str, length q
    index : Index, length N
    """
    p = probabilities[..., None]
    mixed = (p * means).sum(axis=1)
    variances = np.einsum("nkqq->nkq", covariances)
    mixed_variance = (p * (variances + (means - mixed[:, None]) ** 2)).sum(axis=1)
    parts = {"mixed": (mixed, mixed_variance)}
    parts |= {f"expert{k + 1}": (means[:, k], variances[:, k]) for k in range(means.shape[1])}
    columns: dict[tuple[str, str], Array] = {}
    for part, (value, variance) in parts.items():
        for j, name in enumerate(names):
            columns[part, name] = value[:, j]
            columns[part, f"{name}_se"] = np.sqrt(np.maximum(variance[:, j], 0.0))
    return pd.DataFrame(columns, index=index)
