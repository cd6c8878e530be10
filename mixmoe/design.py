"""Formula and data in, arrays sorted by subject out."""

import difflib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mixmoe import _formulaic
from mixmoe._formulaic import Materialized, Term, UsedName
from mixmoe._frame import FrameView, first_infinite, is_numeric, unknown_column, view
from mixmoe._rank import aliases
from mixmoe._rows import Dropped, Keys, Need, Rows, collect_rows, without_rows
from mixmoe.errors import ArgumentError, CollinearityWarning, DesignError, DroppedRowsWarning
from mixmoe.formula import MoEFormula, Part, PartKind

Array = NDArray[np.float64]
Integers = NDArray[np.intp]
Engine = Literal["formulaic", "patsy"]
ResponseKind = Literal["numeric", "categorical"]

_WHERE = {
    "response": "the response",
    "expert": "the expert part",
    "gate": "gate:",
    "random": "re:",
    "index": "vary:",
}
_ENGINES: Mapping[str, ModuleType] = {"formulaic": _formulaic}
_MANY_LEVELS = 200


@dataclass(frozen=True, slots=True)
class DesignNames:
    """Names of the columns of a design.

    Attributes
    ----------
    response : str
    expert, gate, random : tuple of str
        Plain column names: ``Intercept``, ``time``, ``C(g)[T.b]``, ``time:x``.
    group : str or None
        Column of the subjects; None if each row is a unit of its own.
    index : str or None
    """

    response: str
    expert: tuple[str, ...]
    gate: tuple[str, ...]
    random: tuple[str, ...] = ()
    group: str | None = None
    index: str | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is needed to build the same columns from other data.

    Attributes
    ----------
    formula : MoEFormula
    engine : {"formulaic", "patsy"}
    response_kind : {"numeric", "categorical"}
    context : mapping
        Names given by the user for use in the formula.
    sections : mapping of str to tuple
        Terms of ``response``, ``expert``, ``gate``, ``random``, ``index``.
    kinds : mapping of str to tuple of str
        Kind of each term of ``expert`` and ``gate``.
    names : mapping of str to tuple of UsedName
        Names that each section uses.
    aux : mapping of str to str
    specs : object
        State of the transforms and codings; opaque.
    kept : mapping of str to ndarray of bool
        Columns of ``expert`` and ``gate`` that are no combination of others.
    levels : tuple or None
        Levels of a categorical response.
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
    levels: tuple[Any, ...] | None = None


@dataclass(frozen=True, slots=True)
class Design:
    """Arrays of a formula and a data set, rows sorted by subject (stable within subject).

    Attributes
    ----------
    formula : MoEFormula
    response : ndarray, shape (n,), or None
        Integer codes if categorical; None for new data without response.
    response_levels : tuple or None
        Levels of a categorical response.
    expert : ndarray, shape (n, p)
    gate : ndarray, shape (N, m)
        One row per unit, or per row of the data if coefficients vary along an index.
    random : ndarray, shape (n, q)
    index : ndarray, shape (n,), or None
    codes : ndarray of int, shape (n,)
        Unit of each row, non-decreasing.
    starts : ndarray of int, shape (N,)
        First row of each unit.
    labels : ndarray of object, shape (N,)
        Labels of the units; row labels where there is no group.
    rows : Index, length n
        Labels of the kept rows, in sorted order.
    position : ndarray of int, shape (n,)
        Place of each kept row in the user's frame.
    sequence : ndarray of int, shape (n,), or None
        Sequence of each row, non-decreasing over all subjects.
    order : ndarray, shape (n,), or None
        Values of the column that orders sequences.
    aux : mapping of str to ndarray, shape (n,)
    names : DesignNames
    common, expert_const : ndarray of bool, shape (p,)
        Columns of `expert` within ``common(...)``, ``const(...)``.
    gate_const : ndarray of bool, shape (m,)
    dropped : Dropped
    n_input : int
        Rows of the user's frame.
    columns : tuple of str
        Columns of the user's frame that the design uses.
    recipe : Recipe
    """

    formula: MoEFormula
    response: NDArray[Any] | None
    response_levels: tuple[Any, ...] | None
    expert: Array
    gate: Array
    random: Array
    index: Array | None
    codes: Integers
    starts: Integers
    labels: NDArray[np.object_]
    rows: pd.Index
    position: Integers
    sequence: Integers | None
    order: Array | None
    aux: Mapping[str, NDArray[Any]]
    names: DesignNames
    common: NDArray[np.bool_]
    expert_const: NDArray[np.bool_]
    gate_const: NDArray[np.bool_]
    dropped: Dropped
    n_input: int
    columns: tuple[str, ...]
    recipe: Recipe = field(repr=False)

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.codes)

    @property
    def n_units(self) -> int:
        """Units: subjects, or rows where there is no group."""
        return len(self.starts)

    @property
    def counts(self) -> Integers:
        """Rows of each unit, shape (N,)."""
        return np.diff(np.append(self.starts, self.n))

    def for_new(self, data: Any, *, response: bool = False) -> "Design":
        """The same columns from other data, with the transforms and codings of this design.

        Parameters
        ----------
        data : DataFrame or mapping
            Subjects may be new. Without the column of the subjects each row is an unknown subject of its own, and
            ``names.group`` is None.
        response : bool
            Whether the response must be there.

        Raises
        ------
        DesignError
            If a column is missing or a category is new.
        """
        return _new_design(self.recipe, data, response)

    def in_order(self, values: ArrayLike, fill: bool = False) -> NDArray[Any]:
        """Row-aligned values in the order of the user's rows.

        Parameters
        ----------
        values : ndarray, shape (n, ...)
            In the order of this design.
        fill : bool
            Whether rows left out appear, as NaN.

        Returns
        -------
        ndarray, shape (n, ...) or (n_input, ...)
        """
        array = np.asarray(values)
        if not fill:
            return array[np.argsort(self.position, kind="stable")]
        out = np.full((self.n_input, *array.shape[1:]), np.nan)
        out[self.position] = array
        return out


def build_design(
    formula: MoEFormula,
    data: Any,
    *,
    context: Mapping[str, Any] | None = None,
    engine: Engine = "formulaic",
    response: ResponseKind = "numeric",
    aux: Mapping[str, str] | None = None,
    random_columns: bool = True,
) -> Design:
    """Arrays of a formula and a data set.

    Parameters
    ----------
    formula : MoEFormula
    data : pandas or polars DataFrame, or mapping of names to columns
        Never changed.
    context : mapping, optional
        Functions and constants that the formula may use. Nothing else of the caller is visible.
    engine : {"formulaic", "patsy"}
        What computes the terms.
    response : {"numeric", "categorical"}
    aux : mapping of str to str, optional
        Further row-aligned columns (weights, offset, clusters), by the name under which they are returned.
    random_columns : bool
        False to leave the left side of ``re: (... | id)`` alone, where it holds no terms but names of layers.

    Returns
    -------
    Design

    Raises
    ------
    DesignError
        If the data do not fit the formula; names the column and the first offending row.

    Warns
    -----
    DroppedRowsWarning
        If rows are left out because of missing values.
    CollinearityWarning
        If columns are left out because others make them superfluous.
    """
    recipe = _recipe(formula, context, engine, response, aux, random_columns)
    frame = view(data)
    if frame.n_rows == 0:
        raise DesignError("the data have no rows; pass at least one row per subject")
    rows = _collected(frame, recipe, tuple(recipe.sections), required=True)
    built = _ENGINES[engine].materialize(_formula_frame(rows, recipe), recipe.sections, recipe.context)
    rows = without_rows(rows, built.bad_rows, built.bad_terms, frame.n_rows)
    _warn_dropped(rows.dropped, frame.n_rows)
    _check_finite(built, rows, frame, recipe)
    recipe = _fitted(recipe, built, rows)
    design = _assembled(recipe, built, rows, frame)
    _check_fit(design, rows)
    return design


def _new_design(recipe: Recipe, data: Any, response: bool) -> Design:
    frame = view(data)
    if frame.n_rows == 0:
        raise DesignError("the new data have no rows; pass at least one row")
    wanted = tuple(name for name in recipe.sections if response or name != "response")
    rows = _collected(frame, recipe, wanted, required=False)
    sections = {name: recipe.sections[name] for name in wanted}
    made = _ENGINES[recipe.engine]
    built = made.rematerialize(_formula_frame(rows, recipe), recipe.specs, sections, recipe.context)
    rows = without_rows(rows, built.bad_rows, built.bad_terms, frame.n_rows)
    _warn_dropped(rows.dropped, frame.n_rows)
    _check_finite(built, rows, frame, recipe)
    return _assembled(recipe, built, rows, frame)


def _recipe(
    formula: MoEFormula,
    context: Mapping[str, Any] | None,
    engine: Engine,
    response: ResponseKind,
    aux: Mapping[str, str] | None,
    random_columns: bool,
) -> Recipe:
    if engine not in _ENGINES:
        raise ArgumentError(f"engine must be one of 'formulaic', 'patsy', got {engine!r}")
    if response not in ("numeric", "categorical"):
        raise ArgumentError(f"response must be one of 'numeric', 'categorical', got {response!r}")
    texts = _section_texts(formula, random_columns)
    if response == "categorical":
        _require_plain_response(formula)
        texts = {**texts, "response": ()}
    typed = {name: _typed_terms(_ENGINES[engine], parts) for name, parts in texts.items()}
    return Recipe(
        formula=formula,
        engine=engine,
        response_kind=response,
        context=dict(context or {}),
        sections={name: tuple(term for term, _ in pairs) for name, pairs in typed.items()},
        kinds={name: tuple(kind for _, kind in pairs) for name, pairs in typed.items()},
        names={name: _used_names(parts) for name, parts in texts.items()},
        aux=dict(aux or {}),
    )


def _section_texts(formula: MoEFormula, random_columns: bool) -> dict[str, tuple[Part, ...]]:
    random = formula.random.design if formula.random is not None and random_columns else "0"
    return {
        "response": (Part(formula.response, intercept=False),),
        "expert": formula.expert,
        "gate": formula.gate,
        "random": (Part(random),),
        "index": () if formula.vary is None else (Part(formula.vary, intercept=False),),
    }


def _typed_terms(made: ModuleType, parts: tuple[Part, ...]) -> list[tuple[Term, PartKind]]:
    typed = [(term, part.kind) for part in parts for term in made.parse_terms(part.text, part.intercept)]
    return sorted(typed, key=lambda pair: made.degree(pair[0]))


def _used_names(parts: tuple[Part, ...]) -> tuple[UsedName, ...]:
    return _formulaic.used_names([term for part in parts for term in _formulaic.parse_terms(part.text, part.intercept)])


def _response_column(formula: MoEFormula) -> str | None:
    """The column of the response if it is untransformed."""
    (term,) = _formulaic.parse_terms(formula.response, False)
    return _formulaic.column_of(term) if _formulaic.is_plain_column(term) else None


def _require_plain_response(formula: MoEFormula) -> None:
    if _response_column(formula) is None:
        raise DesignError(f"a categorical response must be a column, got {formula.response!r}; make such a column")


def _collected(frame: FrameView, recipe: Recipe, wanted: tuple[str, ...], required: bool) -> Rows:
    """Complete sorted rows of the columns that the wanted sections use."""
    formula = recipe.formula
    needs = [need for name in wanted for need in _section_needs(frame, recipe, name)]
    group = None if formula.random is None else formula.random.group
    if group is not None and group not in frame and not required:
        group = None
    if "response" in wanted and recipe.response_kind == "categorical":
        needs.append(Need(_known(frame, str(_response_column(formula)), "the response")))
    if group is not None:
        needs.append(Need(_known(frame, group, "re:")))
    keys = Keys(group)
    if formula.seq is not None and group is not None:
        keys = Keys(group, formula.seq.within, formula.seq.order)
        needs += [Need(_known(frame, name, "seq:")) for name in (keys.order, keys.within) if name is not None]
    for label, column in recipe.aux.items():
        if required or column in frame:
            needs.append(Need(_known(frame, column, f"{label}={column!r}")))
    return collect_rows(frame, _unique(needs), keys)


def _unique(needs: list[Need]) -> list[Need]:
    complete = {need.name for need in needs if need.complete}
    return [Need(name, name in complete) for name in dict.fromkeys(need.name for need in needs)]


def _known(frame: FrameView, name: str, where: str) -> str:
    if name not in frame:
        raise unknown_column(name, frame.places, where)
    return name


def _section_needs(frame: FrameView, recipe: Recipe, section: str) -> list[Need]:
    needs = []
    for used in recipe.names[section]:
        if used.called:
            _check_function(frame, used, recipe, section)
        elif used.name in frame:
            needs.append(Need(used.name, used.complete))
        elif used.name not in recipe.context and (used.plain or not _formulaic.is_function(used.name)):
            raise unknown_column(used.name, frame.places, _WHERE[section])
    return needs


def _check_function(frame: FrameView, used: UsedName, recipe: Recipe, section: str) -> None:
    columns = {u.name for names in recipe.names.values() for u in names if not u.called}
    if used.name in columns and used.name in frame:
        raise DesignError(
            f"{_WHERE[section]} calls {used.name!r} as a function, but the formula also uses a column of that name; "
            "rename the column"
        )
    if used.name in recipe.context or _formulaic.is_function(used.name):
        return
    known = sorted({*_formulaic.function_names(), *recipe.context})
    close = difflib.get_close_matches(used.name, known, n=2)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise DesignError(
        f"{_WHERE[section]} calls {used.name!r}, which is not a function that formulas know; {hint}"
        f"pass your own functions as context={{{used.name!r}: {used.name}}}"
    )


def _formula_frame(rows: Rows, recipe: Recipe) -> pd.DataFrame:
    """The columns that formulas use, as formulaic takes them."""
    used = dict.fromkeys(u.name for names in recipe.names.values() for u in names if not u.called)
    columns = {name: rows.columns[name] for name in used if name in rows.columns}
    return pd.DataFrame(columns, index=pd.RangeIndex(rows.n), copy=False)


def _warn_dropped(dropped: Dropped, n_input: int) -> None:
    if dropped.n_rows:
        warnings.warn(
            f"{dropped.n_rows} of {n_input} rows were left out because of missing values ({dropped}); "
            "fill them in beforehand to keep them",
            DroppedRowsWarning,
            stacklevel=4,
        )


def _label(rows: Rows, frame: FrameView, i: int) -> Any:
    return frame.labels[rows.position[i]]


def _check_finite(built: Materialized, rows: Rows, frame: FrameView, recipe: Recipe) -> None:
    for section, matrix in built.matrices.items():
        with np.errstate(over="ignore", invalid="ignore"):
            finite = bool(np.isfinite(matrix.sum()))
        if not finite and not np.isfinite(matrix).all():
            raise _infinite_error(section, built, rows, frame, recipe)


def _infinite_error(section: str, built: Materialized, rows: Rows, frame: FrameView, recipe: Recipe) -> DesignError:
    for used in recipe.names[section]:
        i = first_infinite(rows.columns[used.name]) if used.name in rows.columns else None
        if i is not None:
            return DesignError(
                f"column {used.name!r} is {rows.columns[used.name].iloc[i]} in row {_label(rows, frame, i)!r}; "
                "values must be finite, so correct them or set them missing"
            )
    i, j = (int(k) for k in np.argwhere(~np.isfinite(built.matrices[section]))[0])
    names = [u.name for u in recipe.names[section] if not u.called and u.name in rows.columns]
    values = ", ".join(f"{name} = {rows.columns[name].iloc[i]}" for name in names)
    return DesignError(
        f"the term {built.names[section][j]!r} of {_WHERE[section]} is {built.matrices[section][i, j]} in row "
        f"{_label(rows, frame, i)!r} ({values}); terms must be finite, so change the transform or the values"
    )


def _fitted(recipe: Recipe, built: Materialized, rows: Rows) -> Recipe:
    """The recipe with what only the original data can tell."""
    gate = built.matrices["gate"] if _gate_by_row(recipe) else built.matrices["gate"][rows.starts]
    kept = {
        "expert": _independent("expert", built.matrices["expert"], built.names["expert"]),
        "gate": _independent("gate", gate, built.names["gate"]),
    }
    levels = _levels(rows, recipe.formula) if recipe.response_kind == "categorical" else None
    return replace(recipe, specs=built.specs, kept=kept, levels=levels)


def _gate_by_row(recipe: Recipe) -> bool:
    return recipe.formula.vary is not None


def _independent(section: str, matrix: Array, names: tuple[str, ...]) -> NDArray[np.bool_]:
    kept = np.ones(matrix.shape[1], dtype=bool)
    for alias in aliases(matrix):
        kept[alias.column] = False
        warnings.warn(
            f"column {names[alias.column]!r} of {_WHERE[section]} was left out: {_reason(alias.others, names)}; "
            "remove it from the formula",
            CollinearityWarning,
            stacklevel=5,
        )
    return kept


def _reason(others: tuple[int, ...], names: tuple[str, ...]) -> str:
    if not others:
        return "it is zero everywhere"
    if [names[k] for k in others] == ["Intercept"]:
        return "it is constant, as 'Intercept' is"
    if len(others) == 1:
        return f"it is a multiple of {names[others[0]]!r}"
    return f"it is a linear combination of {', '.join(repr(names[k]) for k in others)}"


def _levels(rows: Rows, formula: MoEFormula) -> tuple[Any, ...]:
    values = rows.columns[str(_response_column(formula))]
    levels = tuple(pd.factorize(values, sort=True)[1])
    if len(levels) < 2:
        raise DesignError(f"the response {formula.response!r} is {levels[0]!r} in every row; it needs two states")
    return levels


def _assembled(recipe: Recipe, built: Materialized, rows: Rows, frame: FrameView) -> Design:
    formula, keep_x, keep_z = recipe.formula, recipe.kept["expert"], recipe.kept["gate"]
    gate = built.matrices["gate"]
    grouped = formula.random is not None and formula.random.group in rows.columns
    if not _gate_by_row(recipe):
        gate = _gate_by_unit(gate, built, rows, frame, recipe)
    x_kinds = _column_kinds(recipe, built, "expert")[keep_x]
    return Design(
        formula=formula,
        response=_response(recipe, built, rows, frame),
        response_levels=recipe.levels,
        expert=built.matrices["expert"] if keep_x.all() else built.matrices["expert"][:, keep_x],
        gate=gate if keep_z.all() else gate[:, keep_z],
        random=built.matrices["random"],
        index=built.matrices["index"][:, 0] if formula.vary is not None else None,
        codes=rows.codes,
        starts=rows.starts,
        labels=rows.labels,
        rows=frame.labels.take(rows.position),
        position=rows.position,
        sequence=rows.sequence,
        order=None if formula.seq is None or rows.sequence is None else _numbers(rows.columns[formula.seq.order]),
        aux=_auxiliary(recipe, rows, frame),
        names=_names(recipe, built, grouped),
        common=x_kinds == "common",
        expert_const=x_kinds == "const",
        gate_const=_column_kinds(recipe, built, "gate")[keep_z] == "const",
        dropped=rows.dropped,
        n_input=frame.n_rows,
        columns=tuple(rows.columns),
        recipe=recipe,
    )


def _names(recipe: Recipe, built: Materialized, grouped: bool) -> DesignNames:
    formula = recipe.formula
    return DesignNames(
        response=formula.response,
        expert=_selected(built.names["expert"], recipe.kept["expert"]),
        gate=_selected(built.names["gate"], recipe.kept["gate"]),
        random=built.names["random"],
        group=formula.random.group if formula.random is not None and grouped else None,
        index=formula.vary,
    )


def _selected(names: tuple[str, ...], keep: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(name for name, k in zip(names, keep, strict=True) if k)


def _column_kinds(recipe: Recipe, built: Materialized, section: str) -> NDArray[np.str_]:
    kinds = recipe.kinds[section]
    return np.array([kinds[i] for i in built.owners[section]], dtype="U6")


def _numbers(values: pd.Series) -> Array:
    """Values as numbers: seconds for dates, ranks for text."""
    if is_numeric(values):
        return values.to_numpy(dtype=np.float64)
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return values.to_numpy(dtype="datetime64[ns]").astype(np.int64) / 1e9
    return pd.factorize(values, sort=True)[0].astype(np.float64)


def _auxiliary(recipe: Recipe, rows: Rows, frame: FrameView) -> dict[str, NDArray[Any]]:
    out: dict[str, NDArray[Any]] = {}
    for label, column in recipe.aux.items():
        if column not in rows.columns:
            continue
        values = rows.columns[column]
        i = first_infinite(values)
        if i is not None:
            raise DesignError(
                f"column {column!r} ({label}) is {values.iloc[i]} in row {_label(rows, frame, i)!r}; it must be finite"
            )
        out[label] = values.to_numpy(dtype=np.float64) if is_numeric(values) else np.asarray(values, dtype=object)
    return out


def _response(recipe: Recipe, built: Materialized, rows: Rows, frame: FrameView) -> NDArray[Any] | None:
    if recipe.response_kind == "categorical":
        return _state_codes(recipe, rows, frame)
    return built.matrices["response"][:, 0] if "response" in built.matrices else None


def _state_codes(recipe: Recipe, rows: Rows, frame: FrameView) -> Integers | None:
    column = str(_response_column(recipe.formula))
    if column not in rows.columns:
        return None
    codes = pd.Index(list(recipe.levels or ())).get_indexer(pd.Index(np.asarray(rows.columns[column])))
    if (codes < 0).any():
        i = int((codes < 0).argmax())
        raise DesignError(
            f"the response {column!r} is {rows.columns[column].iloc[i]!r} in row {_label(rows, frame, i)!r}, a state "
            f"that the fit has not seen; known are {', '.join(map(repr, recipe.levels or ()))}"
        )
    return codes.astype(np.intp)


def _gate_by_unit(gate: Array, built: Materialized, rows: Rows, frame: FrameView, recipe: Recipe) -> Array:
    """One row of the gate per unit, after checking that it is constant there."""
    starts = rows.starts
    first = gate[starts]
    if len(starts) == rows.n:
        return first
    for j in range(gate.shape[1]):
        off = gate[:, j] - first[rows.codes, j]
        if not off.any():
            continue
        varies = np.abs(off) > 1e-9 * np.abs(gate[:, j]).max()
        if varies.any():
            raise _varying_error(int(varies.argmax()), built.names["gate"][j], rows, frame, recipe)
    return first


def _varying_error(i: int, term: str, rows: Rows, frame: FrameView, recipe: Recipe) -> DesignError:
    start = rows.starts[rows.codes[i]]
    names = [u.name for u in recipe.names["gate"] if u.name in rows.columns and not u.called]
    differing = [name for name in names if rows.columns[name].iloc[i] != rows.columns[name].iloc[start]]
    column = differing[0] if differing else term
    subject = f"subject {rows.labels[rows.codes[i]]!r}"
    if column in rows.columns:
        values = rows.columns[column]
        subject += (
            f" ({values.iloc[start]!s} in row {_label(rows, frame, start)!r}, "
            f"{values.iloc[i]!s} in row {_label(rows, frame, i)!r})"
        )
    group = recipe.formula.random.group if recipe.formula.random is not None else ""
    return DesignError(
        f"the gate covariate {column!r} varies within {subject}; the gate routes whole subjects, so it must "
        f"be constant within {group!r}; use a baseline value, such as "
        f"data.groupby({group!r})[{column!r}].transform('first'), or move {column!r} to the expert part"
    )


def _check_fit(design: Design, rows: Rows) -> None:
    _check_random(design)
    if design.recipe.response_kind == "numeric" and design.response is not None:
        first = design.response[0]
        if (design.response == first).all():
            raise DesignError(
                f"the response {design.names.response!r} is {first:g} in all {design.n} rows; it must vary"
            )
    if design.index is not None and (design.index == design.index[0]).all():
        raise DesignError(
            f"the index {design.names.index!r} of vary: is {design.index[0]:g} in all {design.n} rows; it must vary"
        )


def _check_random(design: Design) -> None:
    for alias in aliases(design.random):
        raise DesignError(
            f"the random effect {design.names.random[alias.column]!r} of re: cannot be told from the others: "
            f"{_reason(alias.others, design.names.random)}; remove it from re:"
        )
    q, most = design.random.shape[1], int(design.counts.max())
    if q > most:
        raise DesignError(
            f"re: has {q} random effects per subject ({', '.join(design.names.random)}), but no subject has more than "
            f"{most} rows; remove random effects until there are at most {most}"
        )
