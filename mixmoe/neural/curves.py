"""Curves of an NME: marginal effects per person and of the population, losses per epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._frame import shown
from mixmoe.arguments import checked_count
from mixmoe.design import levels_in_use
from mixmoe.errors import ArgumentError
from mixmoe.neural.blocks import build_blocks
from mixmoe.neural.persons import Persons, known_means, predict_design, predict_frame, unknown_means
from mixmoe.neural.predict import uncertainty
from mixmoe.neural.problem import Trace
from mixmoe.output.curves import Curve

Array = NDArray[np.float64]

GRID = 60
LENGTH = 15  # rows of a sequence along which an input is held, of which the one in the middle is shown (CRF)


def learning_curves(trace: Trace) -> tuple[Curve, ...]:
    """Training and validation loss per epoch, and the mean variance of the effects.

    Raises
    ------
    ArgumentError
        If there were no epochs.
    """
    if not len(trace.train):
        raise ArgumentError("a linear network with an exact likelihood is fitted without epochs, so no loss is drawn")
    x = np.arange(1, len(trace.train) + 1, dtype=float)
    curves = [Curve("loss", "training", x, trace.train, xlabel="epoch", ylabel="loss per row")]
    if np.isfinite(trace.validation).any():
        curves.append(Curve("loss", "validation", x, trace.validation, expert=2, xlabel="epoch"))
    curves.append(Curve("variance", "effects", x, trace.variance, xlabel="epoch", ylabel="mean variance of effects"))
    return tuple(curves)


@dataclass(frozen=True, slots=True)
class Along:
    """Rows along one variable.

    Attributes
    ----------
    variable : str
    rows : DataFrame, length G
        Other columns at their means or most frequent values; without the column of the persons.
    x : ndarray, shape (G,)
        Values of the variable; places 0, 1 ... of its levels.
    levels : tuple of str
        Names of the levels; empty for a number.
    ylabel : str
    outcome : str
        Column of a prediction that is drawn.
    """

    variable: str
    rows: pd.DataFrame
    x: Array
    levels: tuple[str, ...]
    ylabel: str
    outcome: str

    def curve(self, label: str, values: Array, **options: Any) -> Curve:
        """A curve of predictions of these rows."""
        return Curve(
            self.variable, label, self.x, values, xlabel=self.variable, ylabel=self.ylabel, categories=self.levels,
            **options,
        )  # fmt: skip


def shown_columns(persons: Persons) -> list[str]:
    """Columns of the formula that may lie along the axis, numbers before categories."""
    design = persons.design
    seq = design.formula.seq
    other = {design.names.group, design.names.response}
    other |= set() if seq is None else {seq.order, seq.within}
    used = {name.name for name in design.recipe.names["expert"]}
    known = [name for name in design.frame.columns if name in used and name not in other]
    return sorted(known, key=lambda name: not is_number(pd.Series(design.frame[name])))


def is_number(column: pd.Series) -> bool:
    """Whether a column lies along an axis: numbers, but not booleans."""
    return pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)


def typical_rows(persons: Persons, variable: str | None) -> Along:
    """Rows along one variable, the others at their means or most frequent values.

    Raises
    ------
    ArgumentError
        If there is no such variable.
    """
    design, known = persons.design, shown_columns(persons)
    chosen = variable if variable is not None else (known[0] if known else None)
    if chosen is None or chosen not in known:
        names = ", ".join(map(repr, known)) or "none, as the formula has no inputs"
        raise ArgumentError(f"variable must be a column of the formula: {names}; got {variable!r}")
    column = design.frame[chosen]
    levels = [] if is_number(column) else levels_in_use(column)
    values = np.linspace(float(column.min()), float(column.max()), GRID) if is_number(column) else None
    size = GRID if values is not None else len(levels)
    rows = {str(name): held(design.frame[name], size) for name in design.frame.columns if name != design.names.group}
    rows[chosen] = pd.Series(values) if values is not None else pd.Series(levels, dtype=column.dtype)
    x = values if values is not None else np.arange(float(size))
    response, states = design.names.response, design.response_levels
    outcome = "mean" if states is None else str(states[-1])
    ylabel = response if states is None else f"P({response} = {outcome})"
    return Along(chosen, pd.DataFrame(rows), x, tuple(str(v) for v in levels), ylabel, outcome)


def held(column: pd.Series, size: int) -> pd.Series:
    """A column at its mean, or its most frequent value."""
    if is_number(column):
        return pd.Series(np.full(size, float(column.mean())))
    return pd.Series([column.mode().iloc[0]] * size, dtype=column.dtype)


def effect_curves(
    fitted: Persons,
    /,
    variable: str | None = None,
    persons: Sequence[Any] | None = None,
    n_persons: int = 8,
) -> tuple[Curve, ...]:
    """Predictions along one input for the population, with limits for a new person's mean, and for some persons.

    Parameters
    ----------
    variable : str, optional
        Column of the formula; default: the first numeric one.
    persons : sequence, optional
        Labels of persons to show, each with a colour and a name.
    n_persons : int
        Persons to show as thin lines where none are named.
    """
    along = typical_rows(fitted, variable)
    population = population_curve(fitted, along)
    count = checked_count(n_persons, "n_persons", least=0)
    group = fitted.design.names.group
    if persons is None:
        each = [person_values(fitted, along, place) for place in range(min(count, len(fitted.labels)) if group else 0)]
        name = f"{len(each)} of {len(fitted.labels)} persons"
        lines = [along.curve("" if k else name, values, thin=True) for k, values in enumerate(each)]
    else:
        places = places_of(fitted, persons)
        lines = [
            along.curve(f"{group} {fitted.labels[place]}", person_values(fitted, along, place), expert=k + 2)
            for k, place in enumerate(places)
        ]
    return (population, *lines)


def places_of(fitted: Persons, labels: Sequence[Any]) -> list[int]:
    """Places of some persons among those of the fit.

    Raises
    ------
    ArgumentError
        If one is not among them.
    """
    named = [labels] if isinstance(labels, str) else list(labels)
    known = {label: k for k, label in enumerate(fitted.labels)}
    for label in named:
        if label not in known:
            some = ", ".join(map(shown, fitted.labels[:5]))
            raise ArgumentError(f"persons must name persons of the fit, such as {some}; got {shown(label)}")
    return [known[label] for label in named]


def population_curve(fitted: Persons, along: Along) -> Curve:
    """The mean over the distribution of effects, with limits of a new observation (Gaussian)."""
    if fitted.problem.family == "crf":
        return along.curve("population", held_states(fitted, along, None), expert=1)
    covered = uncertainty(fitted.problem, fitted.trained, fitted.z, population=False)
    design = fitted.design.for_new(along.rows)
    nobody = np.full(design.n_units, -1, dtype=np.intp)
    found = predict_design(fitted, covered, design, nobody, along.rows, 0.05, 0)
    low, high = (found[name].to_numpy() if along.outcome == "mean" else None for name in ("lower", "upper"))
    return along.curve("population", found[along.outcome].to_numpy(), lower=low, upper=high, expert=1)


def person_values(fitted: Persons, along: Along, place: int) -> Array:
    """Predictions of one person."""
    if fitted.problem.family == "crf":
        return held_states(fitted, along, place)
    label = pd.Series([fitted.labels[place]] * len(along.rows))
    mine = along.rows.assign(**{str(fitted.design.names.group): label})
    return predict_frame(fitted, None, mine, 0.05, 0)[along.outcome].to_numpy()


def held_states(fitted: Persons, along: Along, place: int | None) -> Array:
    """Probability of the last state in the middle of sequences that hold the inputs, shape (G,) (CRF).

    What a row alone would show leaves out the transitions, and with them what is personal.

    Parameters
    ----------
    place : int or None
        The person's; None for the mean over the distribution of effects.
    """
    problem, size = fitted.problem, len(along.rows)
    x = fitted.scaling.inputs(fitted.design.for_new(along.rows).expert)
    rows = np.repeat(np.arange(size), LENGTH)
    owner = np.full(size, place or 0)
    y = np.zeros(len(rows), dtype=np.int64)
    blocks = build_blocks(x[rows], y, rows, size, persons=owner, device=problem.device)
    found = unknown_means(fitted, blocks) if place is None else known_means(fitted, blocks)
    return found[LENGTH // 2 :: LENGTH, -1]
