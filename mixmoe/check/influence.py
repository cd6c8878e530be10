"""What each unit does to the estimates, and what gate covariates do to the probabilities, to first order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from mixmoe._typing import Array
from mixmoe.design.design import Design, continuous_columns, levels_in_use, used_columns
from mixmoe.errors import ArgumentError
from mixmoe.families import FirstOrder, GatePoint
from mixmoe.inference.uncertainty import delta_se, two_sided
from mixmoe.mixture.estimate import ParamLayout
from mixmoe.mixture.gate import gate_log_probabilities
from mixmoe.numerics.linalg import jacobian
from mixmoe.output.names import NO_NAMES, Names
from mixmoe.output.records import Table, number_format
from mixmoe.output.summary import Printed

_SHOWN = 10


@dataclass(frozen=True, slots=True, repr=False)
class Influence(Printed):
    """What would happen without each unit, to first order.

    Attributes
    ----------
    labels : Index, length N
    names : tuple of str
        Parameters.
    change : ndarray, shape (N, P)
        Estimate without the unit minus the estimate; NaN for parameters on their boundary.
    std_error : ndarray, shape (P,)
        Of the fit.
    distance : ndarray, shape (N,)
        ``s_i' A^-1 s_i / P``, Cook's distance in the metric of the observed information.
    functions : mapping of str to tuple of int
        Penalised functions and networks, and the places of their parameters, which mean nothing one by one.
    function_change : ndarray, shape (N, F)
        Of each function the change of its parameters, ``sqrt(d' V^-1 d / p)`` with V their covariance: in standard
        errors, in the mean over uncorrelated directions, however the function is parametrised.

    Notes
    -----
    ``theta(-i) - theta = -A^-1 s_i`` with s_i the score of the unit and A the observed information of all. P times the
    distance approximates the likelihood displacement ``2 (l(theta) - l(theta(-i)))`` of Cook (1986).

    References
    ----------
    Cook & Weisberg (1982), Residuals and Influence in Regression, section 5.2. Cook (1986), JRSS B 48, 133-169.
    """

    labels: pd.Index
    names: tuple[str, ...]
    change: Array
    std_error: Array
    distance: Array
    functions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    function_change: Array = field(default_factory=lambda: np.empty((0, 0)))

    @property
    def standardised(self) -> Array:
        """Changes in units of the standard errors, shape (N, P)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.change / self.std_error)

    @property
    def title(self) -> str:
        """Heading above the table."""
        return "Influence of single units"

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the figures are."""
        functions = "Of a function or network it is the mean change of its parameters in uncorrelated directions."
        return (
            "Changes are one-step approximations (inverse information times score), in standard errors; "
            "refit without a unit to know.",
            *([functions] if self.functions else []),
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per unit: ``distance``, then the change of every parameter if the unit is left out."""
        frame = pd.DataFrame(self.change, index=self.labels, columns=list(self.names))
        frame.insert(0, "distance", self.distance)
        return frame

    def tables(self) -> tuple[Table, ...]:
        """The units with the largest distances, each with the parameter, or function, that changes most."""
        order = np.argsort(-self.distance, kind="stable")[:_SHOWN]
        inside = {place for places in self.functions.values() for place in places}
        alone = [i for i in range(len(self.names)) if i not in inside]
        names = [*(self.names[i] for i in alone), *self.functions]
        size = np.nan_to_num(np.column_stack([self.standardised[:, alone], self.function_change]))
        most = np.abs(size).argmax(axis=1)
        rows = tuple((float(self.distance[i]), names[most[i]], float(size[i, most[i]])) for i in order)
        return (
            Table(
                key="influence",
                title="Largest distances",
                columns=("Distance", "Changes most", "By std. errors"),
                index=tuple(str(self.labels[i]) for i in order),
                cells=rows,
                formats=("num", "num", ".3f"),
            ),
        )


def function_places(layout: ParamLayout) -> dict[str, tuple[int, ...]]:
    """Penalised functions and networks of a layout, and where their parameters are."""
    found: dict[str, list[int]] = {}
    for i in layout.where("smooth"):
        parameter = layout.parameters[i]
        function = parameter.term.rpartition(".")[0] if parameter.term.startswith("s(") else "network"
        whose = "" if parameter.expert is None else f"expert {parameter.expert}: "
        found.setdefault(f"{whose}{function}", []).append(i)
    return {name: tuple(places) for name, places in found.items()}


def influence(at: FirstOrder, labels: pd.Index, layout: ParamLayout, std_error: Array, cov: Array) -> Influence:
    """What would happen without each unit, to first order.

    Parameters
    ----------
    at : FirstOrder
    labels : Index, length N
    layout : ParamLayout
    std_error : ndarray, shape (P,)
    cov : ndarray, shape (P, P)
        Of the parameters.

    Returns
    -------
    Influence
    """
    moves = at.moves
    # s' A^-1 s over the number of directions that have information.
    distance = np.einsum("np,np->n", moves, at.scores) / max(int((np.diag(at.inverse) > 0).sum()), 1)
    blank = np.asarray(np.isnan(at.jacobian).any(axis=1))
    # Leaving a unit out takes its pull away: minus A^-1 s, in the reported parameters.
    change = -moves @ np.where(blank[:, None], 0.0, at.jacobian).T
    change[:, blank] = np.nan
    functions = function_places(layout)
    sizes = [np.empty((len(change), 0))]
    for places in functions.values():
        known = [i for i in places if np.isfinite(cov[i, i]) and not blank[i]]
        inverse = np.linalg.pinv(cov[np.ix_(known, known)], hermitian=True)
        squares = np.einsum("np,pq,nq->n", change[:, known], inverse, change[:, known])
        sizes.append(np.sqrt(np.maximum(squares, 0.0) / max(len(known), 1))[:, None])
    return Influence(labels, layout.names, change, std_error, distance, functions, np.concatenate(sizes, axis=1))


@dataclass(frozen=True, slots=True, repr=False)
class GateEffects(Printed):
    """Average marginal effects of gate covariates on the probabilities of the experts.

    Attributes
    ----------
    effects : DataFrame
        One row per covariate (and level) and expert, as `to_frame` returns it.
    alpha : float
        One minus the level of the limits.
    shown_names : Names
        Of the experts and of terms, as `named` and `labelled` gave them.
    """

    effects: pd.DataFrame
    alpha: float
    shown_names: Names = NO_NAMES

    def to_frame(self) -> pd.DataFrame:
        """One row per covariate (and level) and expert.

        Returns
        -------
        DataFrame
            Columns: covariate, contrast (``"dy/dx"``, or a level minus the first), expert, for varying coefficients the
            index, estimate, std_error, statistic, p_value, conf_low, conf_high.
        """
        return self.effects.copy()

    def tables(self) -> tuple[Table, ...]:
        """One table, with a row per covariate, level, expert and, if coefficients vary, index value."""
        effects, alpha = self.effects, self.alpha
        slopes = effects["contrast"] == "dy/dx"
        named = effects["covariate"].where(slopes, effects["covariate"] + ": " + effects["contrast"])
        for index in effects.columns[3 : list(effects.columns).index("estimate")]:
            named += f", {index} = " + effects[index].map("{:.4g}".format)
        shown = effects[["estimate", "std_error", "statistic", "p_value", "conf_low", "conf_high"]]
        number = number_format(effects["std_error"])
        return (
            Table(
                key="gate_effects",
                title="Average marginal effects on the probabilities of the experts",
                columns=("Estimate", "Std. Err.", "z", "P>|z|", f"[{alpha / 2:.3g}", f"{1 - alpha / 2:.3g}]"),
                index=tuple(f"{name}: expert {k}" for name, k in zip(named, effects["expert"], strict=True)),
                cells=tuple(tuple(float(value) for value in row) for row in shown.to_numpy(dtype=float)),
                formats=(number, number, ".3f", "p", number, number),
                notes=("Mean over the units of the slope, or of the difference between two levels; delta method.",),
            ),
        )


Effect = Callable[[Array], Array]
_FLAT = 1e-3  # change of an effect along a direction to infinity, where log odds change by about one
_STEP = 1e-5  # of the range of a covariate, for the slope of its columns


@dataclass(frozen=True, slots=True)
class Change:
    """How the gate columns react to a covariate.

    Attributes
    ----------
    covariate, contrast : str
        ``"age"``, ``"dy/dx"``; ``"stage"``, ``"3 - 1"``.
    before : ndarray, shape (N, m)
        Columns as they are, or at the reference.
    after : ndarray, shape (N, m)
        Derivatives of the columns, or columns at the other level.
    derivative : bool
    """

    covariate: str
    contrast: str
    before: Array
    after: Array
    derivative: bool


def gate_effects(
    design: Design, points: Sequence[GatePoint], cov: Array, alpha: float, covariates: Any = None, dummy: bool = False
) -> GateEffects:
    """Average marginal effects of the gate covariates on the probability of each expert.

    Parameters
    ----------
    design : Design
    points : sequence of GatePoint
    cov : ndarray, shape (P, P)
        Of the parameters.
    alpha : float
    covariates : str or sequence of str, optional
        By default every column that the gate uses.
    dummy : bool
        Whether numeric columns of zeros and ones change from 0 to 1.

    Returns
    -------
    GateEffects
        NaN for the slope of a covariate with an infinite coefficient.
    """
    changes = [change for name in _chosen(design, covariates) for change in gate_changes(design, name, dummy)]
    index = design.names.index
    rows = []
    for change in changes:
        for point in points:
            effect = _slope_of(change) if change.derivative else _difference_of(change)
            # Delta method: the effect's derivatives in the gate's coefficients are exact, by complex steps.
            slopes = jacobian(effect, point.gamma)
            errors = delta_se(slopes, cov[np.ix_(point.where.ravel(), point.where.ravel())])
            values = effect(point.gamma)
            if (
                not change.derivative
            ):  # more than a difference of probabilities can vary: the delta method does not hold
                errors = np.where(errors > 1.0, np.nan, errors)
            if point.infinite is not None:  # what still grows with a coefficient that is infinite has no finite value
                grows = np.abs(slopes @ point.infinite).max(axis=1) > _FLAT
                unknown = grows | (np.abs(slopes).max(axis=1) < _FLAT)  # or does not depend on finite ones at all
                values, errors = np.where(grows, np.nan, values), np.where(unknown, np.nan, errors)
            place = {} if point.at is None else {str(index): point.at}
            rows += [
                {"covariate": change.covariate, "contrast": change.contrast, "expert": k + 1}
                | place
                | {"estimate": float(values[k]), "std_error": float(errors[k])}
                for k in range(len(values))
            ]
    frame = pd.DataFrame(rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        frame["statistic"] = frame["estimate"] / frame["std_error"]
    frame["p_value"] = two_sided(frame["statistic"].to_numpy())
    half = norm.isf(alpha / 2) * frame["std_error"]
    return GateEffects(frame.assign(conf_low=frame["estimate"] - half, conf_high=frame["estimate"] + half), alpha)


def gate_changes(design: Design, name: str, dummy: bool = False) -> list[Change]:
    """Changes of the gate columns with one covariate: its derivative, or each level against the first.

    Parameters
    ----------
    design : Design
    name : str
    dummy : bool
        Whether a numeric column of zeros and ones changes from 0 to 1.

    Returns
    -------
    list of Change
    """
    if name not in continuous_columns(design):
        levels = levels_in_use(design.frame[name])
    elif dummy and np.isin(design.frame[name].to_numpy(dtype=float), (0.0, 1.0)).all():
        levels = [0.0, 1.0]
    else:
        return [Change(name, "dy/dx", design.gate, _column_slopes(design, name), True)]
    reference = _gate_at(design, name, levels[0])
    return [
        Change(name, f"{_shown(level)} - {_shown(levels[0])}", reference, _gate_at(design, name, level), False)
        for level in levels[1:]
    ]


def _chosen(design: Design, covariates: Any) -> list[str]:
    known = used_columns(design, "gate")
    if not known:
        raise ArgumentError(f"the gate of {design.formula.text!r} has no covariates; write them after 'gate:'")
    if covariates is None:
        return known
    names = [covariates] if isinstance(covariates, str) else list(covariates)
    if not names:
        raise ArgumentError(f"covariates must name at least one of the gate's, {known}, got none; leave it out for all")
    for name in names:
        if name not in known:
            raise ArgumentError(f"covariates must be among the gate's, {known}, got {name!r}")
    return names


def _shown(level: Any) -> str:
    return f"{level:g}" if isinstance(level, float) else str(level)


def _gate_at(design: Design, name: str, level: Any) -> Array:
    """Gate columns with a covariate at one level for all units."""
    values = pd.Series([level] * design.n, index=design.frame.index).astype(design.frame[name].dtype)
    return design.for_new(design.frame.assign(**{name: values})).gate


def _column_slopes(design: Design, name: str) -> Array:
    """Derivatives of the gate columns in a numeric covariate, shape (N, m), by differences that stay in its range."""
    values = design.frame[name].astype(float)
    low, high = float(values.min()), float(values.max())
    step = _STEP * (high - low)
    ends = [(values + shift).clip(low, high) for shift in (step, -step)]
    up, down = (design.for_new(design.frame.assign(**{name: end})).gate for end in ends)
    width = (ends[0] - ends[1]).to_numpy()
    width = width if len(up) == design.n else width[design.starts]
    return np.asarray((up - down) / width[:, None])


def _slope_of(change: Change) -> Effect:
    """Mean derivative of the probabilities, as a function of the gate coefficients; complex-safe."""

    def effect(gamma: Array) -> Array:
        pi = np.exp(gate_log_probabilities(change.before, gamma[None]))[0]
        rate = gamma @ change.after.T
        rate = np.vstack([np.zeros_like(rate[:1]), rate])
        return np.asarray((pi * (rate - (pi * rate).sum(axis=0))).mean(axis=1))

    return effect


def _difference_of(change: Change) -> Effect:
    """Mean difference of the probabilities, as a function of the gate coefficients; complex-safe."""

    def effect(gamma: Array) -> Array:
        both = [np.exp(gate_log_probabilities(W, gamma[None]))[0] for W in (change.after, change.before)]
        return np.asarray((both[0] - both[1]).mean(axis=1))

    return effect
