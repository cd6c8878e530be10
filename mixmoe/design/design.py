"""Formula and data in, arrays sorted by subject out."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mixmoe._typing import Array, IntArray
from mixmoe.design.aliases import aliases, check_effects, independent, refuse_overlaps, warn_empty_terms
from mixmoe.design.checks import (
    auxiliary,
    check_columns,
    check_finite,
    check_names,
    check_replay,
    check_types,
    level_codes,
    level_scores,
    response_levels,
    warn_doubtful,
    with_gate_by_unit,
)
from mixmoe.design.complete_rows import Dropped, Rows, warn_dropped, without_rows
from mixmoe.design.formula import MoEFormula
from mixmoe.design.formulaic_engine import Materialized
from mixmoe.design.frame import FrameView, check_sizes, is_numeric, plain, refuse_size, view
from mixmoe.design.recipe import (
    ENGINES,
    WHERE,
    Engine,
    Recipe,
    ResponseKind,
    check_row_by_row,
    collect,
    formula_frame,
    make_recipe,
)
from mixmoe.design.smooth_basis import SmoothTerm
from mixmoe.design.terms import arguments_of_smooth
from mixmoe.errors import DesignError

_SIZES = (1e-150, 1e150)  # of the largest value of a column; squares of others leave the range of the numbers
_SIZED = ("offset", "weights")  # columns beside the formula of which products are computed


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
    sigma : tuple of str
    """

    response: str
    expert: tuple[str, ...]
    gate: tuple[str, ...]
    random: tuple[str, ...] = ()
    group: str | None = None
    index: str | None = None
    sigma: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SmoothColumns:
    """Where the columns of one penalised function lie.

    Attributes
    ----------
    section : {"expert", "gate"}
    name : str
        Index and multiplier, ``s(time, by=x)``, with the level of a factor in ``by=``.
    columns : ndarray of int, shape (c,)
        Of the section.
    penalised : ndarray of bool, shape (c,)
    common : bool
        Whether the experts share it.
    term : SmoothTerm
    level : int
        Which function of the term.
    of : ndarray of int, shape (c,)
        Columns of the function itself that these are.
    arguments : mapping of str to str
        Code of the arguments of ``s(...)``.
    """

    section: str
    name: str
    columns: IntArray
    penalised: NDArray[np.bool_]
    common: bool
    term: SmoothTerm
    level: int
    of: IntArray
    arguments: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Design:
    """Arrays of a formula and a data set, rows sorted by subject (stable within subject).

    Attributes
    ----------
    formula : MoEFormula
    response : ndarray, shape (n,), or None
        Integer codes if categorical, -1 where it is missing and rows without it are kept; what the levels count as if
        ordinal, themselves if they are numbers, else 1, 2 ...; None for new data without response.
    response_levels : tuple or None
        Levels of a categorical or ordinal response.
    expert : ndarray, shape (n, p)
    gate : ndarray, shape (N, m)
        One row per unit, or per row of the data if coefficients vary along an index.
    random : ndarray, shape (n, q)
    sigma : ndarray, shape (n, v)
        Covariates of the log standard deviation of the errors, without an intercept.
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
    sigma_common : ndarray of bool, shape (v,)
        Columns of `sigma` within ``common(...)``.
    gate_const : ndarray of bool, shape (m,)
    dropped : Dropped
    n_input : int
        Rows of the user's frame.
    frame : DataFrame, length n
        The columns of the data that are in use, complete and sorted; its index is `rows`. A design built from it
        has the same arrays.
    recipe : Recipe
    smooths : tuple of SmoothColumns
        Functions ``s(...)`` of experts and gate.
    """

    formula: MoEFormula
    response: NDArray[Any] | None
    response_levels: tuple[Any, ...] | None
    expert: Array
    gate: Array
    random: Array
    sigma: Array
    index: Array | None
    codes: IntArray
    starts: IntArray
    labels: NDArray[np.object_]
    rows: pd.Index
    position: IntArray
    sequence: IntArray | None
    order: Array | None
    aux: Mapping[str, NDArray[Any]]
    names: DesignNames
    common: NDArray[np.bool_]
    sigma_common: NDArray[np.bool_]
    expert_const: NDArray[np.bool_]
    gate_const: NDArray[np.bool_]
    dropped: Dropped
    n_input: int
    frame: pd.DataFrame = field(repr=False)
    recipe: Recipe = field(repr=False)
    smooths: "tuple[SmoothColumns, ...]" = ()

    @property
    def n(self) -> int:
        """Number of rows of the data that are used."""
        return len(self.codes)

    @property
    def n_units(self) -> int:
        """Units: subjects, or rows where there is no group."""
        return len(self.starts)

    @property
    def n_uncounted(self) -> int:
        """Complete rows that were left out because their weight is zero."""
        return self.n_input - self.dropped.n_rows - self.n

    @property
    def counts(self) -> IntArray:
        """Rows of each unit, shape (N,)."""
        return np.diff(np.append(self.starts, self.n))

    def for_new(self, data: Any, *, response: bool = False, without: Sequence[str] = ()) -> "Design":
        """The same columns from other data, with the transforms and codings of this design.

        Parameters
        ----------
        data : DataFrame or mapping
            Subjects may be new. Without the column of the subjects each row is an unknown subject of its own, and
            ``names.group`` is None.
        response : bool
            Whether the response must be there.
        without : sequence of {"expert", "gate", "random", "sigma"}
            Sections that are not needed: their columns may be missing, and the design has none of them.

        Raises
        ------
        DesignError
            If a column is missing or a category is new.
        """
        return replay(self.recipe, data, response, without)

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


def used_columns(design: Design, section: str) -> list[str]:
    """Columns of the data that a section uses, in the order of the formula, and those that are lagged, ``lag(x)``."""
    names = dict.fromkeys(used.name for used in design.recipe.names[section])
    names |= dict.fromkeys(lag.name for lag in design.recipe.lags[section])
    return [name for name in names if name in design.frame.columns]


def offset_of(design: Design) -> Array:
    """Offset of each row, shape (n,); zero without one."""
    return np.asarray(design.aux.get("offset", np.zeros(design.n)), dtype=float)


def weights_of(design: Design) -> Array:
    """Weight of each row, shape (n,); one without weights."""
    return np.asarray(design.aux.get("weights", np.ones(design.n)), dtype=float)


def column_terms(design: Design, section: str) -> tuple[str, ...]:
    """Name of the term of each column of a section ``"expert"``, ``"gate"`` or ``"sigma"``, as the formula has it."""
    recipe, made = design.recipe, ENGINES[design.recipe.engine]
    terms = recipe.sections[section]
    if not terms:
        return ()
    names = ["Intercept" if made.degree(term) == 0 else str(made.name_of(term)) for term in terms]
    owners = made.owners_of(recipe.specs[section], terms)
    return selected(tuple(names[i] for i in owners), recipe.kept[section])


def continuous_columns(design: Design) -> frozenset[str]:
    """Columns of numbers that no term reads as categories, as C(stage) does."""
    known = ENGINES[design.recipe.engine].known_categories(design.recipe.specs)
    return design.recipe.numeric - {categories.column for categories in known}


def levels_in_use(values: pd.Series) -> list[Any]:
    """Levels of a column that occur, in the order of its categories, or sorted."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        used = set(values)
        return [level for level in values.cat.categories if level in used]
    return sorted(values.unique().tolist())


@dataclass(frozen=True, slots=True)
class Axis:
    """A column laid out on an axis.

    Attributes
    ----------
    values : ndarray, shape (n,)
        Numbers, or places of categories from zero.
    categories : tuple of str
        Names of the places; empty if the column is numeric.
    """

    values: Array
    categories: tuple[str, ...]


def axis_of(design: Design, column: str) -> Axis:
    """Values of a column in use along an axis, rows in the order of the design."""
    values = design.frame[column]
    if column in continuous_columns(design):
        return Axis(values.to_numpy(dtype=float), ())
    levels = levels_in_use(values)
    return Axis(pd.Index(levels).get_indexer(values).astype(float), tuple(map(str, levels)))


def build_design(
    formula: MoEFormula,
    data: Any,
    *,
    context: Mapping[str, Any] | None = None,
    engine: Engine = "formulaic",
    response: ResponseKind = "numeric",
    aux: Mapping[str, str] | None = None,
    random_columns: bool = True,
    partial_response: bool = False,
    smooths: bool = False,
    networks: bool = False,
    counting: str = "",
) -> Design:
    """Arrays of a formula and a data set.

    Parameters
    ----------
    formula : MoEFormula
    data : DataFrame (pandas, or what narwhals reads: polars, pyarrow ...) or mapping of columns
        Never changed.
    context : mapping, optional
        Functions and constants that the formula may use. Nothing else of the caller is visible.
    engine : {"formulaic", "patsy"}
        What computes the terms.
    response : {"numeric", "categorical", "ordinal"}
    aux : mapping of str to str, optional
        Further row-aligned columns (weights, offset, clusters), by the name under which they are returned. Rows whose
        ``"weights"`` are zero are left out, without a warning.
    random_columns : bool
        False to leave the left side of ``re: (... | id)`` alone, where it holds no terms but names of layers.
    partial_response : bool
        Whether rows whose categorical response is missing are kept, with the code -1.
    smooths : bool
        Whether the family has penalised functions ``s(...)``.
    networks : bool
        Whether it has networks ``nn(...)``, whose columns are their inputs.
    counting : str
        What beside ``lag()`` takes the row before as the rows stand, such as ``errors='ar1'``.

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
    AssumptionWarning
        If levels seem to stand for missing values, rows to be there twice or in no order.
    """
    recipe = make_recipe(formula, context, engine, response, aux, random_columns, partial_response, smooths, networks)
    frame = view(data)
    if frame.n_rows == 0:
        raise DesignError("the data have no rows; pass at least one row per subject")
    rows = collect(frame, recipe, tuple(recipe.sections), required=True)
    check_types(rows, frame, recipe, tuple(recipe.sections))
    warn_doubtful(rows, frame, recipe, counting)
    table = formula_frame(rows, recipe)
    built = ENGINES[engine].materialize(table, recipe.sections, recipe.context)
    check_row_by_row(built, recipe, table)
    rows = _cleaned(recipe, built, rows, frame)
    built = with_gate_by_unit(recipe, built, rows, frame)
    recipe = _fitted(recipe, built, rows, frame)
    design = assembled(recipe, built, rows, frame)
    check_effects(design.names.random, aliases(design.random), int(design.counts.max()))
    if design.index is None:  # models along an index have limits of their own, by family
        check_design_sizes(design)
    else:
        check_index(design.index, str(design.names.index))
    return design


def check_index(index: Array, name: str) -> None:
    """Refuse an index that is one number."""
    if (index == index[0]).all():
        raise DesignError(f"the index {name!r} of vary: is {index[0]:g} in all {len(index)} rows; it must vary")


def replay(recipe: Recipe, data: Any, response: bool, without: Sequence[str] = ()) -> Design:
    """The columns of a recipe from any data; parameters as in `Design.for_new`."""
    frame = view(data)
    if frame.n_rows == 0:
        raise DesignError("the new data have no rows; pass at least one row")
    wanted = tuple(name for name in recipe.sections if name not in without and (response or name != "response"))
    rows = collect(frame, recipe, wanted, required=False)
    check_types(rows, frame, recipe, wanted)
    check_replay(rows, frame, recipe)
    sections = {name: recipe.sections[name] for name in wanted}
    built = ENGINES[recipe.engine].rematerialize(formula_frame(rows, recipe), recipe.specs, sections, recipe.context)
    rows = _cleaned(recipe, built, rows, frame)
    # Sections that are not asked for are there all the same, with no columns.
    built = replace(
        built,
        matrices={**built.matrices, **{name: np.empty((rows.n, 0)) for name in without}},
        names={**built.names, **dict.fromkeys(without, ())},
        owners={**built.owners, **dict.fromkeys(without, ())},
    )
    partial = replace(recipe, kept={**recipe.kept, **{name: np.ones(0, dtype=bool) for name in without}})
    return replace(assembled(partial, with_gate_by_unit(recipe, built, rows, frame), rows, frame), recipe=recipe)


def _cleaned(recipe: Recipe, built: Materialized, rows: Rows, frame: FrameView) -> Rows:
    """Rows for which all terms exist, after checking the terms."""
    rows = without_rows(rows, built.bad_rows, built.bad_terms, frame.n_rows)
    check_columns(built, recipe)
    check_names(built)
    random = recipe.formula.random
    warn_dropped(rows, frame, None if random is None else random.group)
    check_finite(built, rows, frame, recipe)
    return rows


def _fitted(recipe: Recipe, built: Materialized, rows: Rows, frame: FrameView) -> Recipe:
    """The recipe with what only the original data can tell."""
    warn_empty_terms(recipe, built)
    kept = {section: _columns_kept(section, built) for section in ("expert", "gate", "sigma")}
    # The intercept of sigma: is the residual standard deviation, a parameter of its own.
    kept["sigma"] &= np.array([name != "Intercept" for name in built.names["sigma"]], dtype=bool)
    refuse_overlaps(recipe, built, kept)
    levels = response_levels(recipe, rows, frame)
    columns = formula_frame(rows, recipe)
    lagged = {lag.name: rows.columns[lag.name] for lag in rows.lags}
    used = {str(name): columns[name] for name in columns if name in rows.columns} | lagged
    numeric = frozenset(name for name, values in used.items() if is_numeric(values))
    return replace(recipe, specs=built.specs, kept=kept, numeric=numeric, levels=levels)


def _columns_kept(section: str, built: Materialized) -> NDArray[np.bool_]:
    """Which columns of a section are kept, shape (p,), with warnings for the superfluous."""
    names = np.array(built.names[section], dtype=object)
    # Beside an intercept that is a function as a whole the constant one only tells how categories are coded.
    kept = np.ones(len(names), dtype=bool) if "Intercept.level" not in names else names != "Intercept"
    others = independent(section, aliases(built.matrices[section][:, kept]), tuple(names[kept]))
    kept[np.flatnonzero(kept)] = others
    return kept


def assembled(recipe: Recipe, built: Materialized, rows: Rows, frame: FrameView) -> Design:
    """A design from columns that are computed, by a recipe that knows which of them are kept."""
    formula, gate = recipe.formula, built.matrices["gate"]
    keep_x, keep_z = recipe.kept["expert"], recipe.kept["gate"]
    grouped = formula.random is not None and formula.random.group in rows.keys
    labels = frame.labels.take(rows.position)
    x_kinds, keep_v = column_kinds(recipe, built, "expert")[keep_x], recipe.kept["sigma"]
    return Design(
        formula=formula,
        response=response_of(recipe, built, rows, frame),
        response_levels=recipe.levels,
        expert=built.matrices["expert"] if keep_x.all() else built.matrices["expert"][:, keep_x],
        gate=gate if keep_z.all() else gate[:, keep_z],
        random=built.matrices["random"],
        sigma=built.matrices["sigma"][:, keep_v],
        index=built.matrices["index"][:, 0] if formula.vary is not None else None,
        codes=rows.codes,
        starts=rows.starts,
        labels=rows.labels,
        rows=labels,
        position=rows.position,
        sequence=rows.sequence,
        order=None if formula.seq is None or rows.sequence is None else _numbers(plain(rows.keys[formula.seq.order])),
        aux=auxiliary(recipe, rows, frame),
        names=DesignNames(
            response=formula.response,
            expert=selected(built.names["expert"], keep_x),
            gate=selected(built.names["gate"], keep_z),
            random=built.names["random"],
            group=formula.random.group if formula.random is not None and grouped else None,
            index=formula.vary,
            sigma=selected(built.names["sigma"], keep_v),
        ),
        common=x_kinds == "common",
        sigma_common=column_kinds(recipe, built, "sigma")[keep_v] == "common",
        expert_const=x_kinds == "const",
        gate_const=column_kinds(recipe, built, "gate")[keep_z] == "const",
        dropped=rows.dropped,
        n_input=frame.n_rows,
        frame=pd.DataFrame({**rows.columns, **rows.keys}, copy=False).set_axis(labels),
        recipe=recipe,
        smooths=(*_smooths("expert", recipe, built), *_smooths("gate", recipe, built)),
    )


def response_of(recipe: Recipe, built: Materialized, rows: Rows, frame: FrameView) -> NDArray[Any] | None:
    """Responses of rows, shape (n,), see `Design`; None if the data have none.

    Raises
    ------
    DesignError
        For a level that the fit has not seen.
    """
    if recipe.response_kind == "numeric":
        return built.matrices["response"][:, 0] if "response" in built.matrices else None
    codes = level_codes(recipe, rows, frame)
    return (
        level_scores(recipe.levels or ())[codes] if codes is not None and recipe.response_kind == "ordinal" else codes
    )


def _smooths(section: str, recipe: Recipe, built: Materialized) -> list[SmoothColumns]:
    """Functions ``s(...)`` of a section, one per level of a factor in ``by=``."""
    found, kept = [], recipe.kept[section]
    owners, place = np.array(built.owners[section], dtype=int), np.cumsum(kept) - 1
    for i, term in built.smooths.get(section, {}).items():
        where = np.flatnonzero(owners == i).reshape(term.n_functions, term.width)
        for level, columns in enumerate(where):
            of = np.flatnonzero(kept[columns])
            arguments = arguments_of_smooth(recipe.sections[section][i])
            whole = arguments.get("whole")
            of_by = f", by={arguments['by']}" if "by" in arguments else ""
            name = f"s({arguments['x']}{of_by})" if whole is None else ast.literal_eval(whole)
            found.append(
                SmoothColumns(
                    section=section,
                    name=f"{name}.{term.levels[level]}" if term.levels else name,
                    columns=place[columns[of]],
                    penalised=of >= term.n_free,
                    common=recipe.kinds[section][i] == "common",
                    term=term,
                    level=level,
                    of=of,
                    arguments=arguments,
                )
            )
    return found


def selected(names: tuple[str, ...], keep: NDArray[np.bool_]) -> tuple[str, ...]:
    """The names of the columns that are kept."""
    return tuple(name for name, k in zip(names, keep, strict=True) if k)


def column_kinds(recipe: Recipe, built: Materialized, section: str) -> NDArray[np.str_]:
    """Kind of each column of a section before any is left out: ``"free"``, ``"common"`` or ``"const"``."""
    kinds = recipe.kinds[section]
    return np.array([kinds[i] for i in built.owners[section]], dtype="U6")


def _numbers(values: pd.Series) -> Array:
    """Values as numbers: seconds for dates, ranks for text."""
    if is_numeric(values):
        return np.array(values, dtype=np.float64)
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return values.to_numpy(dtype="datetime64[ns]").astype(np.int64) / 1e9
    return pd.factorize(values, sort=True)[0].astype(np.float64)


def check_design_sizes(design: Design) -> None:
    """Refuse columns whose squares leave the range of floating-point numbers."""
    names = design.names
    columns: dict[str, Array] = {}
    if design.recipe.response_kind == "numeric" and design.response is not None:
        columns[f"the response {names.response!r}"] = np.asarray(design.response, dtype=float)
    for section in ("expert", "random", "sigma"):
        made = zip(getattr(names, section), getattr(design, section).T, strict=True)
        columns |= {f"the term {name!r} of {WHERE[section]}": values for name, values in made}
    columns |= {f"{label}={design.recipe.aux[label]!r}": design.aux[label] for label in _SIZED if label in design.aux}
    check_sizes(columns, design.rows, _SIZES)
    gate = zip(names.gate, design.gate.T, strict=True)
    check_sizes({f"the term {name!r} of gate:": values for name, values in gate}, design.rows[design.starts], _SIZES)


def largest_values(recipe: Recipe, built: Materialized, beside: Mapping[str, Array]) -> dict[str, float]:
    """Largest absolute value of each column of which products are computed, by what they are, as messages say it."""
    out: dict[str, float] = {}
    if recipe.response_kind == "numeric":
        out[f"the response {built.names['response'][0]!r}"] = float(np.abs(built.matrices["response"]).max())
    for section in ("expert", "random", "sigma", "gate"):
        for name, values in zip(built.names[section], built.matrices[section].T, strict=True):
            out[f"the term {name!r} of {WHERE[section]}"] = float(np.abs(values).max())
    return out | {f"{x}={recipe.aux[x]!r}": float(np.abs(beside[x]).max()) for x in _SIZED if x in beside}


def check_largest(largest: Mapping[str, float]) -> None:
    """Refuse columns of partitions whose squares leave the range of floating-point numbers, by `largest_values`."""
    for what, value in largest.items():
        refuse_size(what, value, _SIZES)
