"""What of a design is decided by formula and options, before any data are seen."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe.design import formulaic_engine, patsy_engine
from mixmoe.design.complete_rows import Keys, Lagged, Need, Rows, collect_rows
from mixmoe.design.expressions import Lag
from mixmoe.design.formula import MoEFormula, Part, PartKind
from mixmoe.design.formulaic_engine import Materialized, Specs
from mixmoe.design.frame import FrameView, is_numeric, shown, unknown_column
from mixmoe.design.terms import (
    Term,
    UsedName,
    Uses,
    function_names,
    is_function,
    is_plain_column,
    keywords_of,
    used_names,
    uses_of,
)
from mixmoe.design.transforms import unsafe_reason
from mixmoe.errors import ArgumentError, DesignError, meant

Engine = Literal["formulaic", "patsy"]
ResponseKind = Literal["numeric", "categorical", "ordinal"]
WHERE: Mapping[str, str] = {
    "response": "the response",
    "expert": "the expert part",
    "gate": "gate:",
    "random": "re:",
    "index": "vary:",
    "sigma": "sigma:",
}
"""How messages name the sections."""
_ELSEWHERE: Mapping[str, str] = {
    "ns": "cr(x, df=4) for a natural spline",
    "offset": "offset='column' as an argument of the fit, where the family has one",
    "pmax": "np.maximum(x, y)",
    "pmin": "np.minimum(x, y)",
    "maximum": "np.maximum(x, y)",
    "minimum": "np.minimum(x, y)",
    "ifelse": "np.where(condition, x, y)",
    "factor": "C(x)",
    "relevel": "C(x, contr.treatment(base='level'))",
    "cut": "a column made beforehand, data['group'] = pd.cut(data['x'], ...)",
    "Error": "the section re: (1 | subject)",
    "diff": "I(x - lag(x))",
    "shift": "lag(x), and lag(x, -1) for the row after",
    "lead": "lag(x, -1)",
    "cbind": "successes as the response, 's ~ ...', with their trials as trials='column' of the fit",
}  # how functions of other programs are called here
_CONSTANTS: Mapping[str, str] = {
    "TRUE": "True",
    "T": "True",
    "FALSE": "False",
    "F": "False",
    "NULL": "None",
    "NA": "np.nan",
    "Inf": "np.inf",
}  # of R
ENGINES: Mapping[str, ModuleType] = {"formulaic": formulaic_engine, "patsy": patsy_engine}
"""What turns terms into columns."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is needed to build the same columns from other data.

    Attributes
    ----------
    formula : MoEFormula
    engine : {"formulaic", "patsy"}
    response_kind : {"numeric", "categorical", "ordinal"}
    context : mapping
        Names given by the user for use in the formula.
    sections : mapping of str to tuple
        Terms of ``response``, ``expert``, ``gate``, ``random``, ``index``, ``sigma``.
    kinds : mapping of str to tuple of str
        Kind of each term of ``expert``, ``gate`` and ``sigma``.
    names : mapping of str to tuple of UsedName
        Names that each section uses.
    lags : mapping of str to tuple of Lag
        Lagged columns that each section uses, if they are columns.
    aux : mapping of str to str
    partial_response : bool
        Whether rows whose (categorical) response is missing are kept.
    specs : mapping of str to object
        State of the transforms and codings; opaque.
    kept : mapping of str to ndarray of bool
        Columns of ``expert``, ``gate`` and ``sigma`` that are no combination of others.
    numeric : frozenset of str
        Columns of the formula that held numbers.
    levels : tuple or None
        Levels of a categorical or ordinal response.
    foreign : mapping of str to tuple of str
        Terms, by section, that call more than functions known to work row by row or with a memory.
    """

    formula: MoEFormula
    engine: Engine
    response_kind: ResponseKind
    context: Mapping[str, Any]
    sections: Mapping[str, tuple[Term, ...]]
    kinds: Mapping[str, tuple[PartKind, ...]]
    names: Mapping[str, tuple[UsedName, ...]]
    lags: Mapping[str, tuple[Lag, ...]]
    aux: Mapping[str, str]
    partial_response: bool = False
    specs: Specs = field(default_factory=dict)
    kept: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    numeric: frozenset[str] = frozenset()
    levels: tuple[Any, ...] | None = None
    foreign: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def make_recipe(
    formula: MoEFormula,
    context: Mapping[str, Any] | None,
    engine: Engine,
    response: ResponseKind,
    aux: Mapping[str, str] | None,
    random_columns: bool,
    partial_response: bool = False,
    smooths: bool = False,
    networks: bool = False,
) -> Recipe:
    """The recipe of a design: which columns each section of a formula uses, and how they are made."""
    if engine not in ENGINES:
        raise ArgumentError(f"formula_engine must be one of 'formulaic', 'patsy', got {engine!r}")
    if context is not None and not isinstance(context, Mapping):
        raise ArgumentError(f"context must map names to values, such as {{'f': f}}, got {context!r}")
    for name in ("lag", "nn", "s"):
        if name in (context or {}):
            raise ArgumentError(
                f"context must not name a function {name!r}, which formulas have; give yours another name"
            )
    if response not in get_args(ResponseKind):
        raise ArgumentError(f"response must be one of {', '.join(map(repr, get_args(ResponseKind)))}, got {response!r}")
    texts = _section_texts(formula, random_columns)
    if response != "numeric":
        if response_column(formula) is None:
            what = f"a{'n' if response == 'ordinal' else ''} {response} response"
            raise DesignError(f"{what} must be a column, got {formula.response!r}; make such a column")
        texts = {**texts, "response": ()}
    # Names are looked up in the terms as formulaic reads them, whatever computes the columns.
    read = {
        name: [_Read(term, part.kind, uses_of(term)) for part in parts for term in part.terms]
        for name, parts in texts.items()
    }
    names = {name: used_names(term.uses for term in terms) for name, terms in read.items()}
    _refuse_reserved(names)
    for section, terms in read.items():
        for term in terms:
            if "s" in term.uses.calls and (reason := _wrong_smooth(term, section, engine, smooths)):
                raise DesignError(f"{WHERE[section]} has the term {term.name!r}: {reason}")
            alone = term.uses.whole == "nn" and networks and section in ("expert", "gate")
            if "nn" in term.uses.calls and not alone:
                raise DesignError(
                    f"{WHERE[section]} has the term {term.name!r}: a network nn(...) is a term of "
                    "its own of experts or gate, without vary: and seq:, as in y ~ nn(x1, x2) | gate: nn(z)"
                )
    made = ENGINES[engine]
    typed = {name: [(term.term, term.kind) for term in terms] for name, terms in read.items()}
    if engine != "formulaic":
        typed = {
            name: [(term, part.kind) for part in parts for term in made.parse_terms(part.text, part.intercept)]
            for name, parts in texts.items()
        }
    typed = {name: sorted(pairs, key=lambda pair: made.degree(pair[0])) for name, pairs in typed.items()}
    used, given = {u.name for section in names.values() for u in section}, context or {}
    return Recipe(
        formula=formula,
        engine=engine,
        response_kind=response,
        context={name: value for name, value in given.items() if name in used},
        sections={name: tuple(term for term, _ in pairs) for name, pairs in typed.items()},
        kinds={name: tuple(kind for _, kind in pairs) for name, pairs in typed.items()},
        names=names,
        lags={
            name: tuple(sorted({lag for term in terms for lag in term.uses.lags}, key=lambda lag: lag.name))
            for name, terms in read.items()
        },
        aux=dict(aux or {}),
        partial_response=partial_response,
        foreign={name: those for name, terms in read.items() if (those := _foreign(terms, given))},
    )


@dataclass(frozen=True, slots=True)
class _Read:
    """A term as formulaic reads it, its kind, and what it uses."""

    term: Term
    kind: PartKind
    uses: Uses

    @property
    def name(self) -> str:
        """As messages show it."""
        return formulaic_engine.name_of(self.term)


def _foreign(terms: Sequence[_Read], context: Mapping[str, Any]) -> tuple[str, ...]:
    """Terms that call functions of the user, methods of columns, or others about which nothing is known."""
    return tuple(
        term.name for term in terms if unsafe_reason([term.term]) is not None or not term.uses.calls.isdisjoint(context)
    )


def _refuse_reserved(names: Mapping[str, tuple[UsedName, ...]]) -> None:
    """Refuse a column whose name the constant or a number has already."""
    for section, used in names.items():
        numbered = [u.name for u in used if re.fullmatch(r"\s*[\d.]*\s*", u.name)]
        if numbered:
            raise DesignError(
                f"{WHERE[section]} uses a column called {numbered[0]!r}, which cannot stand in a formula, where 1 is "
                "the intercept and other numbers are numbers; rename the column"
            )
        if any(u.name == "Intercept" and not u.called for u in used):
            raise DesignError(
                f"{WHERE[section]} uses a column 'Intercept', which is the name of the constant; rename the column"
            )


_OF_SMOOTHS = ("k", "m", "by", "bs", "ends")


def _wrong_smooth(term: _Read, section: str, engine: Engine, allowed: bool) -> str:
    """Why a term with ``s(...)`` cannot stand where it does; empty if it can."""
    if not allowed:
        return (
            "penalised functions s(...) are for mixed-effects mixtures, without vary: or a network; use bs(x, df=5) "
            "for a spline without penalty"
        )
    if section not in ("expert", "gate"):
        return "penalised functions s(...) are for experts and gate; use bs(x, df=5) for a spline without penalty"
    if term.uses.whole != "s":
        return "s(...) must be a term of its own; write s(time, by=x) for a coefficient of x that varies with time"
    if term.kind == "const":
        return "a function s(...) is not constant along the index; take it out of const(...)"
    if engine != "formulaic":
        return "s(...) needs formula_engine='formulaic'"
    known = (*_OF_SMOOTHS, "whole")  # the last is that of a vary: spelt out
    wrong = [name for name in keywords_of(term.term) if name not in known]
    if wrong:
        hint = meant(wrong[0], _OF_SMOOTHS) or f"it has {', '.join(_OF_SMOOTHS)}"
        return f"s(...) has no argument {wrong[0]!r}; {hint}"
    return ""


def _section_texts(formula: MoEFormula, random_columns: bool) -> dict[str, tuple[Part, ...]]:
    random = formula.random.design if formula.random is not None and random_columns else "0"
    return {
        "response": (Part(formula.response, intercept=False),),
        "expert": formula.expert,
        "gate": formula.gate,
        "random": (Part(random),),
        "index": () if formula.vary is None else (Part(formula.vary, intercept=False),),
        "sigma": formula.sigma,
    }


def response_column(formula: MoEFormula) -> str | None:
    """The column of the response if it is untransformed."""
    (term,) = formulaic_engine.parse_terms(formula.response, False)
    return str(term.factors[0].expr) if is_plain_column(term) else None


def collect(frame: FrameView, recipe: Recipe, wanted: tuple[str, ...], required: bool) -> Rows:
    """Complete sorted rows of the columns that the wanted sections use.

    Rows of weight zero are not counted: where the response is wanted, they are left out, so that transforms do not see
    them either. Only coefficients that vary along an index are reported there too.
    """
    keys, needs = _keys_of(frame, recipe, required), needs_of(frame, recipe, wanted, required)
    lags = [lag for name in wanted for lag in recipe.lags[name] if lag.column in frame]
    alone = recipe.formula.random is not None and keys.group is None
    beside, counted = _beside(frame, recipe, required), "response" in wanted
    filled = any(u.name == "lag" and not u.complete for names in recipe.names.values() for u in names)
    lagged = Lagged(tuple(dict.fromkeys(lags)), alone, not filled)
    return collect_rows(frame, needs, keys, lagged, beside.get("weights") if counted else None)


def needs_of(frame: FrameView, recipe: Recipe, wanted: tuple[str, ...], required: bool) -> list[Need]:
    """The columns of the data that the wanted sections use, and those beside them.

    Raises
    ------
    DesignError
        If one is no column of the data.
    """
    formula, keys = recipe.formula, _keys_of(frame, recipe, required)
    needs = [need for name in wanted for need in _section_needs(frame, recipe, name)]
    if "response" in wanted and recipe.response_kind != "numeric":
        gaps = recipe.partial_response
        name = str(response_column(formula))
        needs.append(Need(name, WHERE["response"], complete=not gaps, gaps=gaps, response=True))
    named = [*((name, "re:") for name in (keys.group, *keys.further)), (keys.order, "seq:"), (keys.within, "seq:")]
    needs += [Need(name, where, term=False) for name, where in named if name is not None]
    beside, counted = _beside(frame, recipe, required), "response" in wanted
    needs += [
        Need(column, f"{label}={column!r}", complete=label != "weights" or not counted, term=label != "cluster")
        for label, column in beside.items()
    ]
    _refuse_unknown(frame, needs)
    # One need per column: what is asked of it anywhere is asked of it.
    complete, terms = {need.name for need in needs if need.complete}, {need.name for need in needs if need.term}
    first = {need.name: need for need in reversed(needs)}
    return [replace(n, complete=n.name in complete, term=n.name in terms) for n in first.values()][::-1]


def _keys_of(frame: FrameView, recipe: Recipe, required: bool) -> Keys:
    """The columns by which rows are arranged; that of the subjects only if it is there or required."""
    formula = recipe.formula
    group = None if formula.random is None else formula.random.group
    if group is not None and group not in frame and not required:
        group = None
    time, further = _beside(frame, recipe, required).get("time"), _further_groups(frame, recipe, required)
    keys = Keys(group, cluster=recipe.aux.get("cluster"), further=further, time=time)
    if formula.seq is not None and group is not None:
        keys = replace(keys, within=formula.seq.within, order=formula.seq.order)
    return keys


def _beside(frame: FrameView, recipe: Recipe, required: bool) -> dict[str, str]:
    """Columns beside the formula that are in use: clusters only in a fit."""
    if required:
        return dict(recipe.aux)
    return {label: column for label, column in recipe.aux.items() if label != "cluster" and column in frame}


def _further_groups(frame: FrameView, recipe: Recipe, required: bool) -> tuple[str, ...]:
    """Columns that name levels of the groupings behind the first one; of new data those that there are."""
    first = recipe.formula.random
    names = dict.fromkeys(name for term in recipe.formula.further for name in term.columns)
    return tuple(name for name in names if (required or name in frame) and first is not None and name != first.group)


def _refuse_unknown(frame: FrameView, needs: list[Need]) -> None:
    absent = {need.name: need for need in reversed(needs) if need.name not in frame}
    if not absent:
        return
    first, *others = reversed(absent.values())
    if first.name in _CONSTANTS:
        raise DesignError(
            f"{first.where} uses {first.name!r}, which is not a column of the data, nor Python; write "
            f"{_CONSTANTS[first.name]} for what R calls {first.name}"
        )
    raise unknown_column(first.name, frame.places, first.where, tuple(need.name for need in others))


def _section_needs(frame: FrameView, recipe: Recipe, section: str) -> list[Need]:
    needs = []
    for used in recipe.names[section]:
        if used.called:
            _check_function(frame, used, recipe, section)
        elif used.name in recipe.context and used.name not in frame:
            _check_constant(recipe.context[used.name], used, frame.n_rows)
        elif used.name in frame or used.plain or not is_function(used.name):
            needs.append(Need(used.name, WHERE[section], used.complete, response=section == "response"))
    return needs


def _check_constant(value: Any, used: UsedName, n_rows: int) -> None:
    name = used.name
    if used.plain and not callable(value) and np.ndim(value) == 0:
        raise DesignError(
            f"context[{name!r}] is {shown(value)}, one value for all rows, which cannot be a term of its own; use it "
            f"inside an expression such as I({name} * x)"
        )
    if isinstance(value, np.ndarray | pd.Series) and value.shape == (n_rows,) and n_rows > 1:
        raise DesignError(
            f"context[{name!r}] holds one value per row, but rows are sorted and those with missing values left out; "
            f"make {name!r} a column of the data"
        )


def _check_function(frame: FrameView, used: UsedName, recipe: Recipe, section: str) -> None:
    columns = {u.name for names in recipe.names.values() for u in names if not u.called}
    if used.name in columns and used.name in frame:
        raise DesignError(
            f"{WHERE[section]} calls {used.name!r} as a function, but the formula also uses a column of that name; "
            "rename the column"
        )
    if used.name in recipe.context or is_function(used.name):
        return
    known = sorted({*function_names(), *recipe.context})
    close = meant(used.name, known, most=2)
    hint = f"write {_ELSEWHERE[used.name]}; " if used.name in _ELSEWHERE else close and f"{close} "
    raise DesignError(
        f"{WHERE[section]} calls {used.name!r}, which is not a function that formulas know; {hint}"
        f"pass your own functions as context={{{used.name!r}: {used.name}}}"
    )


def formula_frame(rows: Rows, recipe: Recipe) -> pd.DataFrame:
    """The columns that formulas use, as formulaic takes them."""
    used = dict.fromkeys(u.name for names in recipe.names.values() for u in names if not u.called)
    columns = {name: rows.columns[name] for name in used if name in rows.columns}
    # Under names that are valid code: rewritten expressions refer to them.
    columns |= {lag.identifier: rows.columns[lag.name] for lag in rows.lags}
    return pd.DataFrame(columns, index=pd.RangeIndex(rows.n), copy=False)


_LOOKED_AT = 2000  # rows at most; what depends on others does so almost everywhere
_ROUNDING = 1e-8  # part of a column's largest value by which products of another length may differ


def check_row_by_row(built: Materialized, recipe: Recipe, table: pd.DataFrame) -> None:
    """Refuse terms such as ``x.shift(1)``, ``np.cumsum(x)`` and ``x - x.mean()``.

    A shift that knows no subjects goes from one to the next and skips the rows that are left out; a mean is another one
    in the data of a prediction. Functions with a memory, such as scale, bs and those made with formulaic's
    ``stateful_transform``, give a row the same value whatever stands around it.

    Parameters
    ----------
    built : Materialized
    recipe : Recipe
        Before the fit: without state.
    table : DataFrame
        What `built` was computed from.

    Raises
    ------
    DesignError
        Names the term.

    Notes
    -----
    Halves of the rows are computed again by themselves and in another order, with the state of the transforms. What
    looks at neighbours, at the order, or at all rows has other values then. Sections that call nothing but functions
    known to work row by row, or with a memory, are not computed again.
    """
    sections = {name: recipe.sections[name] for name in recipe.foreign}
    if not sections:
        return
    complete = table.drop(index=pd.Index(built.bad_rows))
    for half in _halves(complete, {used.name for section in sections for used in recipe.names[section]}):
        alone = complete.iloc[half].reset_index(drop=True)
        try:
            again = ENGINES[recipe.engine].rematerialize(alone, built.specs, sections, recipe.context)
        except DesignError as error:
            section, names = next(iter(recipe.foreign.items()))
            raise _mixing(section, names[0]) from error
        _compare(built, again, half, recipe)


def _halves(table: pd.DataFrame, names: Collection[str]) -> Iterator[NDArray[np.intp]]:
    """Places of the first and the last rows, and of those with the smallest values of each column, backwards."""
    places = np.unique(np.linspace(0, len(table) - 1, min(len(table), _LOOKED_AT)).astype(np.intp))
    middle = len(places) // 2
    orders = [places, places[::-1]]
    # Halves by place may have the same median; those by value have another one, and another mean and largest value.
    orders += [
        places[np.argsort(values.to_numpy()[places], kind="stable")]
        for name, values in table.items()
        if name in names and is_numeric(values)
    ]
    return (order[:middle][::-1] for order in orders if middle)


def _compare(built: Materialized, again: Materialized, half: NDArray[np.intp], recipe: Recipe) -> None:
    """Raise for a column that is not the same in the rows `half` alone."""
    for section, names in recipe.foreign.items():
        # A row that is missing now was none among all.
        missing = [name for name, _ in again.bad_terms if name in names]
        if missing:
            raise _mixing(section, missing[0])
        if again.bad_rows.size:
            continue
        values, expected = again.matrices[section], built.matrices[section][half]
        size = np.abs(expected).max(axis=0, initial=0.0)
        with np.errstate(invalid="ignore"):  # infinite in both, which is told as such
            same = (values == expected) | (np.abs(values - expected) <= _ROUNDING * size)
        differing = np.flatnonzero(~same.all(axis=0))
        if differing.size:
            term = recipe.sections[section][built.owners[section][differing[0]]]
            raise _mixing(section, ENGINES[recipe.engine].name_of(term))


def _mixing(section: str, name: str) -> DesignError:
    return DesignError(
        f"the term {name!r} of {WHERE[section]} has other values in a row where other rows are left out or stand in "
        "another order, as shifts, sums so far and means of the column have; terms are computed row by row, so that "
        "they mean the same for new data: write lag(x), center(x) or scale(x), or make a column of it beforehand, by "
        "subject with data.groupby(...)"
    )
