"""What of a design is decided by formula and options, before any data are seen."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe import _formulaic, _patsy
from mixmoe._formulaic import Term, UsedName
from mixmoe._frame import FrameView, shown, unknown_column
from mixmoe._rows import Keys, Need, Rows, collect_rows
from mixmoe.errors import ArgumentError, DesignError
from mixmoe.formula import MoEFormula, Part, PartKind

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

_LARGE = 30_000  # the fourth power of which fits into 64 bits

_ELSEWHERE: Mapping[str, str] = {
    "ns": "cr(x, df=4) for a natural spline",
    "offset": "offset='column' as an argument of the fit, where the family has one",
    "pmax": "np.maximum(x, y)",
    "pmin": "np.minimum(x, y)",
    "maximum": "np.maximum(x, y)",
    "minimum": "np.minimum(x, y)",
    "ifelse": "np.where(condition, x, y)",
    "factor": "C(x)",
    "cbind": "successes as the response, 's ~ ...', with their trials as trials='column' of the fit",
}  # how functions of other programs are called here

ENGINES: Mapping[str, ModuleType] = {"formulaic": _formulaic, "patsy": _patsy}
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
    aux : mapping of str to str
    specs : object
        State of the transforms and codings; opaque.
    kept : mapping of str to ndarray of bool
        Columns of ``expert``, ``gate`` and ``sigma`` that are no combination of others.
    numeric : frozenset of str
        Columns of the formula that held numbers.
    levels : tuple or None
        Levels of a categorical or ordinal response.
    """

    formula: MoEFormula
    engine: Engine
    response_kind: ResponseKind
    context: Mapping[str, Any]
    sections: Mapping[str, tuple[Term, ...]]
    kinds: Mapping[str, tuple[PartKind, ...]]
    names: Mapping[str, tuple[UsedName, ...]]
    aux: Mapping[str, str]
    specs: Any = None
    kept: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    numeric: frozenset[str] = frozenset()
    levels: tuple[Any, ...] | None = None


def make_recipe(
    formula: MoEFormula,
    context: Mapping[str, Any] | None,
    engine: Engine,
    response: ResponseKind,
    aux: Mapping[str, str] | None,
    random_columns: bool,
) -> Recipe:
    if engine not in ENGINES:
        raise ArgumentError(f"formula_engine must be one of 'formulaic', 'patsy', got {engine!r}")
    if context is not None and not isinstance(context, Mapping):
        raise ArgumentError(f"context must map names to values, such as {{'f': f}}, got {context!r}")
    if response not in get_args(ResponseKind):
        raise ArgumentError(f"response must be one of {', '.join(map(repr, get_args(ResponseKind)))}, got {response!r}")
    for option, column in (aux or {}).items():
        _require_name(option, column)
    texts = _section_texts(formula, random_columns)
    if response != "numeric":
        _require_plain_response(formula, response)
        texts = {**texts, "response": ()}
    names = {name: _used_names(parts) for name, parts in texts.items()}
    _refuse_reserved(names)
    typed = {name: _typed_terms(ENGINES[engine], parts) for name, parts in texts.items()}
    return Recipe(
        formula=formula,
        engine=engine,
        response_kind=response,
        context=_used_context(names, context or {}),
        sections={name: tuple(term for term, _ in pairs) for name, pairs in typed.items()},
        kinds={name: tuple(kind for _, kind in pairs) for name, pairs in typed.items()},
        names=names,
        aux=dict(aux or {}),
    )


def _refuse_reserved(names: Mapping[str, tuple[UsedName, ...]]) -> None:
    """Refuse a column whose name parameters have already."""
    for section, used in names.items():
        if any(u.name == "Intercept" and not u.called for u in used):
            raise DesignError(
                f"{WHERE[section]} uses a column 'Intercept', which is the name of the constant; rename the column"
            )


def _require_name(option: str, column: Any) -> None:
    if not isinstance(column, str):
        got = repr(column) if isinstance(column, int | float) else f"a {type(column).__name__}"
        raise ArgumentError(
            f"{option} must be the name of a column, such as {option!r}, got {got}; put the values into the data: "
            f"data[{option!r}] = ..."
        )


def _used_context(names: Mapping[str, tuple[UsedName, ...]], context: Mapping[str, Any]) -> dict[str, Any]:
    used = {u.name for section in names.values() for u in section}
    return {name: value for name, value in context.items() if name in used}


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


def _typed_terms(made: ModuleType, parts: tuple[Part, ...]) -> list[tuple[Term, PartKind]]:
    typed = [(term, part.kind) for part in parts for term in made.parse_terms(part.text, part.intercept)]
    return sorted(typed, key=lambda pair: made.degree(pair[0]))


def _used_names(parts: tuple[Part, ...]) -> tuple[UsedName, ...]:
    return _formulaic.used_names([term for part in parts for term in _formulaic.parse_terms(part.text, part.intercept)])


def response_column(formula: MoEFormula) -> str | None:
    """The column of the response if it is untransformed."""
    (term,) = _formulaic.parse_terms(formula.response, False)
    return _formulaic.column_of(term) if _formulaic.is_plain_column(term) else None


def _require_plain_response(formula: MoEFormula, kind: ResponseKind) -> None:
    if response_column(formula) is None:
        what = f"a{'n' if kind == 'ordinal' else ''} {kind} response"
        raise DesignError(f"{what} must be a column, got {formula.response!r}; make such a column")


def collect(frame: FrameView, recipe: Recipe, wanted: tuple[str, ...], required: bool) -> Rows:
    """Complete sorted rows of the columns that the wanted sections use."""
    formula = recipe.formula
    needs = [need for name in wanted for need in _section_needs(frame, recipe, name)]
    group = None if formula.random is None else formula.random.group
    if group is not None and group not in frame and not required:
        group = None
    if "response" in wanted and recipe.response_kind != "numeric":
        needs.append(Need(str(response_column(formula)), WHERE["response"]))
    keys = Keys(group)
    if formula.seq is not None and group is not None:
        keys = Keys(group, formula.seq.within, formula.seq.order)
    needs += [Need(name, where) for name, where in _key_columns(keys) if name is not None]
    needs += [
        Need(column, f"{label}={column!r}") for label, column in recipe.aux.items() if required or column in frame
    ]
    _refuse_unknown(frame, needs)
    return collect_rows(frame, _unique(needs), keys)


def _key_columns(keys: Keys) -> tuple[tuple[str | None, str], ...]:
    return ((keys.group, "re:"), (keys.order, "seq:"), (keys.within, "seq:"))


def _unique(needs: list[Need]) -> list[Need]:
    complete = {need.name for need in needs if need.complete}
    return [replace(need, complete=need.name in complete) for need in {n.name: n for n in reversed(needs)}.values()][
        ::-1
    ]


def _refuse_unknown(frame: FrameView, needs: list[Need]) -> None:
    absent = {need.name: need for need in reversed(needs) if need.name not in frame}
    if not absent:
        return
    first, *others = reversed(absent.values())
    raise unknown_column(first.name, frame.places, first.where, tuple(need.name for need in others))


def _section_needs(frame: FrameView, recipe: Recipe, section: str) -> list[Need]:
    needs = []
    for used in recipe.names[section]:
        if used.called:
            _check_function(frame, used, recipe, section)
        elif used.name in recipe.context and used.name not in frame:
            _check_constant(recipe.context[used.name], used, frame.n_rows)
        elif used.name in frame or used.plain or not _formulaic.is_function(used.name):
            needs.append(Need(used.name, WHERE[section], used.complete))
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
    if used.name in recipe.context or _formulaic.is_function(used.name):
        return
    known = sorted({*_formulaic.function_names(), *recipe.context})
    close = difflib.get_close_matches(used.name, known, n=2)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    hint = f"write {_ELSEWHERE[used.name]}; " if used.name in _ELSEWHERE else hint
    raise DesignError(
        f"{WHERE[section]} calls {used.name!r}, which is not a function that formulas know; {hint}"
        f"pass your own functions as context={{{used.name!r}: {used.name}}}"
    )


def formula_frame(rows: Rows, recipe: Recipe) -> pd.DataFrame:
    """The columns that formulas use, as formulaic takes them."""
    used = dict.fromkeys(u.name for names in recipe.names.values() for u in names if not u.called)
    columns = {name: _safe_for_powers(rows.columns[name]) for name in used if name in rows.columns}
    return pd.DataFrame(columns, index=pd.RangeIndex(rows.n), copy=False)


def _safe_for_powers(values: pd.Series) -> pd.Series:
    """Large whole numbers as floats: their cubes, as in I(t ** 3), would wrap around silently at 64 bits."""
    if not (isinstance(values.dtype, np.dtype) and values.dtype.kind == "i") or not len(values):
        return values
    return values.astype(np.float64) if max(abs(int(values.min())), abs(int(values.max()))) > _LARGE else values
