"""Curves of predictions along one input, of the population and of persons."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.arguments import checked_count
from mixmoe.design.design import levels_in_use
from mixmoe.design.frame import shown
from mixmoe.errors import ArgumentError
from mixmoe.neural.blocks import build_blocks
from mixmoe.neural.person_predictions import uncertainty
from mixmoe.neural.persons import Persons, category_names, predict_frame
from mixmoe.neural.predicted_rows import at_mean_levels, known_means, unknown_means
from mixmoe.neural.transitions import Transitions
from mixmoe.output.predictions import IntervalOf, Scale, Wanted
from mixmoe.output.records import Curve

GRID = 60
LENGTH = 15  # rows of a sequence along which an input is held, of which the one in the middle is shown (CRF)


def check_options(options: Mapping[str, Any], kind: str, make: Callable[..., Any]) -> None:
    """Refuse options that a figure does not have.

    Raises
    ------
    ArgumentError
    """
    parameters = inspect.signature(make).parameters.values()
    known = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    for name in options:
        if name not in known:
            raise ArgumentError(f"plot({kind!r}) has no option {name!r}; it has {', '.join(known) or 'none'}")


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
    outcomes : tuple of (str, str)
        Columns of a prediction that are drawn, and what they are called on the axis.
    """

    variable: str
    rows: pd.DataFrame
    x: Array
    levels: tuple[str, ...]
    outcomes: tuple[tuple[str, str], ...]

    @property
    def scale(self) -> Scale:
        """The scale of the prediction that is drawn."""
        return "response" if self.outcomes[0][0] == "mean" else "categories"

    @property
    def interval(self) -> IntervalOf | None:
        """Limits of the population's curve: those of a new response, which probabilities are not."""
        return "prediction" if self.scale == "response" else None

    def curve(self, place: int, label: str, found: pd.DataFrame, **options: Any) -> Curve:
        """A curve of one outcome of predictions of these rows, several outcomes having a panel each."""
        name, called = self.outcomes[place]
        low, high = (found[end].to_numpy() if end in found else None for end in (f"{name}_low", f"{name}_high"))
        panel = self.variable if len(self.outcomes) == 1 else called
        return Curve(
            panel, label, self.x, found[name].to_numpy(), low, high, xlabel=self.variable, ylabel=called,
            categories=self.levels, **options,
        )  # fmt: skip


def shown_columns(persons: Persons) -> list[str]:
    """Columns of the formula that may lie along the axis, numbers before categories."""
    design = persons.design
    seq = design.formula.seq
    other = {design.names.group, design.names.response, *(c for known in persons.levels for c in known.term.columns)}
    other |= set() if seq is None else {seq.order, seq.within}
    used = {name.name for name in design.recipe.names["expert"]}
    known = [name for name in design.frame.columns if name in used and name not in other]
    return sorted(known, key=lambda name: not is_number(pd.Series(design.frame[name])))


def is_number(column: pd.Series) -> bool:
    """Whether a column lies along an axis: numbers, but not booleans."""
    return pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)


def typical_rows(persons: Persons, variable: str | None, category: Any = None) -> Along:
    """Rows along one variable, the others at their means or most frequent values.

    Raises
    ------
    ArgumentError
        If there is no such variable, or category of the response.
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
    return Along(chosen, pd.DataFrame(rows), x, tuple(str(v) for v in levels), shown_outcomes(persons, category))


def shown_outcomes(persons: Persons, category: Any) -> tuple[tuple[str, str], ...]:
    """What is drawn: the mean, the probability of the last of two categories, or those of all; or of the one asked for.

    Raises
    ------
    ArgumentError
        If the response has no such category.
    """
    response, levels = str(persons.design.names.response), persons.design.response_levels
    if levels is None:
        if category is not None:
            raise ArgumentError(f"category= is for a response of categories, got {shown(category)}; leave it out")
        return (("mean", response),)
    drawn = [level for level in levels if level == category]
    if category is not None and not drawn:
        raise ArgumentError(f"category must be one of {', '.join(map(shown, levels))}, got {shown(category)}")
    drawn = drawn or list(levels if len(levels) > 2 else levels[-1:])
    return tuple((f"P({level})", f"P({response} = {level})") for level in drawn)


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
    category: Any = None,
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
    category : optional
        Label of the category whose probability is drawn; default: of two the last one, of more a panel each.
    """
    along = typical_rows(fitted, variable, category)
    count, group = checked_count(n_persons, "n_persons", least=0), fitted.design.names.group
    first = list(range(min(count, len(fitted.labels)) if group else 0))
    places = first if persons is None else places_of(fitted.labels, persons)
    population, each = population_frame(fitted, along), [person_frame(fitted, along, place) for place in places]
    limits = "95 % of new observations" if along.interval == "prediction" else ""
    curves = []
    for k in range(len(along.outcomes)):
        curves.append(along.curve(k, "population", population, expert=1, limits=limits))
        for j, (place, found) in enumerate(zip(places, each, strict=True)):
            if persons is None:  # of thin lines the first has the entry of the legend
                label = "" if j else f"{len(places)} of {len(fitted.labels)} persons"
                curves.append(along.curve(k, label, found, thin=True))
            else:
                curves.append(along.curve(k, f"{group} {fitted.labels[place]}", found, expert=j + 2))
    return tuple(curves)


def places_of(known_labels: NDArray[np.object_], labels: Sequence[Any]) -> list[int]:
    """Places of some persons among those of the fit, whose labels are `known_labels` (N,).

    Raises
    ------
    ArgumentError
        If one is not among them.
    """
    named = [labels] if isinstance(labels, str) else list(labels)
    known = {label: k for k, label in enumerate(known_labels)}
    for label in named:
        if label not in known:
            some = ", ".join(map(shown, known_labels[:5]))
            raise ArgumentError(f"persons must name persons of the fit, such as {some}; got {shown(label)}")
    return [known[label] for label in named]


def population_frame(fitted: Persons, along: Along) -> pd.DataFrame:
    """The mean over the distribution of effects, with limits of a new observation (Gaussian)."""
    if fitted.problem.family == "crf":
        return held_states(fitted, along, None)
    covered = uncertainty(fitted.problem, fitted.trained, fitted.z, population=False)
    return predict_frame(fitted, covered, along.rows, Wanted("mean", along.interval, scale=along.scale), 0)


def person_frame(fitted: Persons, along: Along, place: int) -> pd.DataFrame:
    """Predictions of one person."""
    if fitted.problem.family == "crf":
        return held_states(fitted, along, place)
    if fitted.levels:
        return pd.DataFrame({"mean": at_mean_levels(fitted, along.rows, place)})
    label = pd.Series([fitted.labels[place]] * len(along.rows))
    mine = along.rows.assign(**{str(fitted.design.names.group): label})
    return predict_frame(fitted, None, mine, Wanted("subject", scale=along.scale), 0)


def held_states(fitted: Persons, along: Along, place: int | None) -> pd.DataFrame:
    """Probabilities of the states in the middle of sequences that hold the inputs, G rows (CRF).

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
    return pd.DataFrame(found[LENGTH // 2 :: LENGTH], columns=category_names(fitted))


def transition_curves(
    found: Transitions, group: str, /, persons: Sequence[Any] | None = None, n_persons: int = 8
) -> tuple[Curve, ...]:
    """Probabilities of the next state, a panel for each present one, of the population with limits and of persons.

    In the middle of a long sequence of average rows.

    Parameters
    ----------
    found : Transitions
    group : str
        Column of the persons.
    persons : sequence, optional
        Labels of persons to show, each with a colour and a name.
    n_persons : int
        Persons to show as thin lines where none are named; none where transitions are the same for everybody.
    """
    count, shared = checked_count(n_persons, "n_persons", least=0), found.standardised is None
    first = found.labels[: 0 if shared else count].tolist()
    chosen = first if persons is None else found.labels[places_of(found.labels, persons)].tolist()
    of_persons = dict(tuple(found.persons.groupby("person", sort=False)))
    axis: dict[str, Any] = {
        "xlabel": "next state in a long sequence",
        "ylabel": "probability",
        "categories": tuple(map(str, found.states)),
        "compared": True,
    }
    x, curves = np.arange(float(len(found.states))), []
    for state in found.states:
        panel = f"from {state}"
        rows = found.population[found.population["from"] == state]
        limits = (rows["lower"].to_numpy(), rows["upper"].to_numpy())
        curves.append(Curve(panel, "population", x, rows["probability"].to_numpy(), *limits, expert=1, **axis))
        for j, label in enumerate(chosen):
            mine = of_persons[label]
            y = mine.loc[mine["from"] == state, "probability"].to_numpy()
            if persons is None:  # of thin lines the first has the entry of the legend
                name = "" if j else f"{len(chosen)} of {len(found.labels)} persons"
                curves.append(Curve(panel, name, x, y, thin=True, **axis))
            else:
                curves.append(Curve(panel, f"{group} {label}", x, y, expert=j + 2, **axis))
    return tuple(curves)
