"""The one file that touches parts of formulaic which its documentation does not promise (written for 1.2.2)."""

import ast
import builtins
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from formulaic import Formula, ModelSpec, ModelSpecs
from formulaic.errors import DataMismatchWarning, FormulaicError
from formulaic.materializers import PandasMaterializer
from formulaic.parser import DefaultFormulaParser, DefaultOperatorResolver
from formulaic.parser.types import Operator, OrderedSet
from formulaic.transforms import TRANSFORMS
from formulaic.utils.code import format_expr, sanitize_variable_names
from formulaic.utils.layered_mapping import LayeredMapping
from formulaic.utils.null_handling import find_nulls
from formulaic.utils.stateful_transforms import stateful_eval
from interface_meta import override
from numpy.typing import NDArray

from mixmoe.design.expressions import (
    MAX_TERMS,
    NUMBER,
    Lag,
    SectionSyntaxError,
    floating,
    is_name,
    lags_in,
    makes_categories,
    number,
    refuse_misread,
    refuse_r,
    rewritten,
    under_lags,
)
from mixmoe.design.smooth_basis import STATE, SmoothTerm, smooth
from mixmoe.errors import DesignError, MixmoeError

Term = Any  # formulaic.parser.types.Term; opaque outside this file
Specs = Mapping[str, Any]  # by section what an engine needs to replay its coding; opaque likewise
EXTRA_FUNCTIONS: Mapping[str, Any] = {
    "sqrt": np.sqrt,
    "abs": np.abs,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "floor": np.floor,
    "ceil": np.ceil,
    "sin": np.sin,
    "cos": np.cos,
    "s": smooth,
}
"""Functions that formulas may use beyond those that formulaic brings."""
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_MARKED = re.compile(r"⧛(.*?)⧚", re.DOTALL)


@dataclass(frozen=True, slots=True)
class UsedName:
    """A name that a formula uses.

    Attributes
    ----------
    name : str
        Column, function or constant.
    called : bool
        Whether it is called as a function.
    plain : bool
        Whether it stands alone as a term, outside any expression.
    complete : bool
        Whether rows where it is missing can be left out before anything is computed; false where the formula calls
        a method of the column, such as ``fillna``.
    """

    name: str
    called: bool
    plain: bool
    complete: bool


@dataclass(frozen=True, slots=True)
class Categories:
    """Levels of a column that is used as categories.

    Attributes
    ----------
    column : str
    levels : tuple
    """

    column: str
    levels: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Materialized:
    """Matrices of the sections of a formula.

    Attributes
    ----------
    matrices : mapping of str to ndarray, shape (rows kept, columns)
        One per section, in double precision.
    names : mapping of str to tuple of str
        Column names of each section.
    owners : mapping of str to tuple of int
        Per section and column the position of the term that made the column.
    numeric : mapping of str to bool
        Whether a section consists of numeric factors alone.
    bad_rows : ndarray of int, shape (b,)
        Rows left out because a term is not a number there, ascending.
    bad_terms : tuple of (str, int)
        The terms that are not a number, and in how many rows.
    specs : mapping of str to object
        What `rematerialize` needs to replay the same coding.
    smooths : mapping of str to mapping of int to SmoothTerm
        Per section the terms ``s(...)``, by their positions.
    """

    matrices: Mapping[str, NDArray[np.float64]]
    names: Mapping[str, tuple[str, ...]]
    owners: Mapping[str, tuple[int, ...]]
    numeric: Mapping[str, bool]
    bad_rows: NDArray[np.intp]
    bad_terms: tuple[tuple[str, int], ...]
    specs: Specs
    smooths: Mapping[str, Mapping[int, SmoothTerm]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What some of the rows say about the terms of a formula, before anything is coded.

    Attributes
    ----------
    states : mapping of str to mapping
        What each stateful transform has kept, by the code of its call.
    levels : mapping of str to Series
        Per categorical factor the first row of each of its levels, as the index, and the level.
    bad_rows : ndarray of int, shape (b,)
        Rows where a term is not a number, ascending.
    bad_terms : tuple of (str, int)
        The terms that are not a number, and in how many rows.
    """

    states: Mapping[str, Mapping[str, Any]]
    levels: Mapping[str, pd.Series]
    bad_rows: NDArray[np.intp]
    bad_terms: tuple[tuple[str, int], ...]


class _RefusedTermsError(Exception):
    """Terms that formulaic would read, but not as they are meant."""


class _CarefulOperators(DefaultOperatorResolver):
    """Formulaic's operators, but a product is bounded before it is expanded, and what is taken out must be there."""

    @property
    def operators(self) -> list[Operator]:
        made = super().operators
        for operator in made:
            expand = operator._to_terms
            if operator.symbol in ("**", "^"):
                # m^n products for a sum of m columns would take minutes to find the few that differ.
                operator._to_terms = _power(expand)
            elif operator.symbol in ("*", ":", "/", "in") or (operator.symbol == "+" and operator.arity == 2):
                operator._to_terms = _bounded(
                    expand, beside=operator.symbol in ("*", "+"), products=operator.symbol != "+"
                )
            elif operator.symbol == "-":
                operator._to_terms = _without if operator.arity == 2 else _nothing_without
        return made


def _bounded(expand: Any, beside: bool, products: bool) -> Any:
    """A product of sets of terms, or a sum of them, refused if it has too many."""

    def bounded(left: Any, right: Any) -> Any:
        _check_number(beside * (len(left) + len(right)) + products * len(left) * len(right))
        return expand(left, right)

    return bounded


def _check_number(n_terms: int) -> None:
    if n_terms > MAX_TERMS:
        raise _RefusedTermsError(
            f"this part expands to more than {MAX_TERMS} terms; write out the products that are meant, joined by '+', "
            "or make one column of them"
        )


def _power(expand: Any) -> Any:
    """A power of a sum by repeated products without repetitions: a sum of m columns has at most 2^m of them.

    Formulaic goes through all m^n products; the set and its order are the same.
    """

    def power(terms: Any, exponent: Any) -> Any:
        single = OrderedSet(list(terms)[:1])
        expand(single, exponent)  # formulaic refuses what is no whole number
        out, times = terms, int(next(iter(exponent)).factors[0].expr)
        if len(terms) == 1 and times > 1:
            raise _RefusedTermsError(
                f"a power of {str(next(iter(terms)))!r} alone is that term itself, for powers of sums are products of "
                f"their terms; write I({next(iter(terms))}**{times}) for the power of its values"
            )
        for _ in range(times - 1):
            before = len(out)
            _check_number(len(out) * len(terms) // 50)
            out = OrderedSet(a * b for a in out for b in terms)
            _check_number(len(out))
            if len(out) == before:
                break
        return out

    return power


def _without(left: Any, right: Any) -> Any:
    """The terms on the left but for those on the right, all of which must be there."""
    absent = [term for term in right if term not in left and not is_intercept(term)]
    if absent:
        raise _RefusedTermsError(
            f"'-' takes out the term {str(absent[0])!r}, which does not stand before it; only terms that are there can "
            "be taken out, so correct the name or leave it out; a column with '-' in its name goes between backticks"
        )
    return left - right


def _nothing_without(right: Any) -> Any:
    return _without(OrderedSet(), right)


def parse_terms(text: str, intercept: bool = True) -> tuple[Term, ...]:
    """Terms of one section, ordered by degree.

    Parameters
    ----------
    text : str
        Formulaic text without ``~`` and top-level ``|``.
    intercept : bool
        Whether an intercept is implied.

    Raises
    ------
    SectionSyntaxError
        If formulaic cannot parse `text`.
    """
    refuse_r(text)
    operators = _CarefulOperators()
    parser = DefaultFormulaParser(operator_resolver=operators, feature_flags=set(), include_intercept=intercept)
    try:
        terms = parser.get_terms(text)
    except _RefusedTermsError as error:
        raise SectionSyntaxError(str(error), len(text) - len(text.lstrip()), len(text.strip())) from error
    except FormulaicError as error:
        raise _located(str(error), text) from error
    except (SyntaxError, ValueError, TypeError, AttributeError, KeyError, IndexError, RuntimeError) as error:
        reason = getattr(error, "msg", None) or error  # without "(<unknown>, line 1)"
        raise SectionSyntaxError(
            f"{text.strip()!r} cannot be read as a formula ({reason}); correct the marked part", 0, len(text)
        ) from error
    for code in python_code(terms):
        refuse_misread(code, text)
    return tuple(sorted(terms, key=lambda term: term.degree))


def _located(message: str, text: str) -> SectionSyntaxError:
    plain = _ANSI.sub("", message)
    first = plain.split("\n", 1)[0].rstrip(". ") + "; correct the marked part"
    marked = _MARKED.search(plain)
    if marked is None:
        lead = len(text) - len(text.lstrip())
        return SectionSyntaxError(first, lead, len(text.strip()))
    start = marked.start() - (plain.rfind("\n", 0, marked.start()) + 1)
    return SectionSyntaxError(first, start, len(marked.group(1)))


def is_intercept(term: Term) -> bool:
    """Whether a term is the intercept."""
    return term.degree == 0


def is_plain_column(term: Term) -> bool:
    """Whether a term is one column, untransformed."""
    return len(term.factors) == 1 and term.factors[0].eval_method.value == "lookup"


def column_of(term: Term) -> str:
    """Name of the column of a term for which `is_plain_column` holds."""
    return str(term.factors[0].expr)


def used_names(terms: Sequence[Term]) -> tuple[UsedName, ...]:
    """Names that terms use, in order of first use."""
    found: dict[tuple[str, bool], UsedName] = {}
    for term in terms:
        for factor in term.factors:
            for name in _names_of_factor(factor):
                known = found.get((name.name, name.called))
                found[name.name, name.called] = name if known is None else _stricter(known, name)
    return tuple(found.values())


def _stricter(a: UsedName, b: UsedName) -> UsedName:
    return UsedName(a.name, a.called, a.plain or b.plain, a.complete or b.complete)


def _names_of_factor(factor: Any) -> list[UsedName]:
    if factor.eval_method.value == "literal":
        return []
    if factor.eval_method.value == "lookup":
        return [UsedName(str(factor.expr), False, True, True)]
    aliases: dict[str, str] = {}
    code = sanitize_variable_names(factor.expr, {}, aliases)
    try:
        tree = ast.parse(code, mode="eval")
    except (SyntaxError, ValueError) as error:
        raise DesignError(f"{factor.expr!r} is not a valid expression ({error}); correct it") from error
    return [UsedName(aliases.get(u.name, u.name), u.called, u.plain, u.complete) for u in _names_of_tree(tree)]


def _names_of_tree(tree: ast.AST) -> list[UsedName]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    functions = {id(call.func) for call in calls}
    methods = {id(_root(call.func)) for call in calls if isinstance(call.func, ast.Attribute)}
    bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    bound |= {a.arg for a in ast.walk(tree) if isinstance(a, ast.arg)}
    absent = methods | {id(node) for node in under_lags(tree)}  # rows where such a column is missing may be complete
    quoted = [call for call in calls if _is_quotation(call)]
    return [
        UsedName(node.id, id(node) in functions, False, id(node) not in absent)
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id not in bound
    ] + [UsedName(str(call.args[0].value), False, False, id(call) not in absent) for call in quoted]  # type: ignore[attr-defined]


def lags_of(terms: Sequence[Term], is_column: Callable[[str], bool]) -> frozenset[Lag]:
    """The lagged columns that terms need, see `mixmoe._expressions.lags_in`."""
    found: set[Lag] = set()
    for term in terms:
        for factor in term.factors:
            if factor.eval_method.value == "python":
                aliases: dict[str, str] = {}
                found |= lags_in(sanitize_variable_names(factor.expr, {}, aliases), aliases, is_column)
    return frozenset(found)


def _root(node: ast.AST) -> ast.AST:
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node


def _is_quotation(call: ast.Call) -> bool:
    """Whether a call is patsy's ``Q("name")``."""
    quoted = bool(call.args) and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)
    return isinstance(call.func, ast.Name) and call.func.id == "Q" and quoted


def python_code(terms: Iterable[Term]) -> tuple[str, ...]:
    """The Python expressions within terms, with plain names for those in backticks."""
    factors = [factor for term in terms for factor in term.factors if factor.eval_method.value == "python"]
    return tuple(sanitize_variable_names(factor.expr, {}, {}) for factor in factors)


def is_function(name: str) -> bool:
    """Whether formulas know `name` as a function or module, whatever the data."""
    return name in TRANSFORMS or name in EXTRA_FUNCTIONS or hasattr(builtins, name)


def function_names() -> tuple[str, ...]:
    """Names of the functions that formulas know."""
    return tuple(sorted({*TRANSFORMS, *EXTRA_FUNCTIONS}))


def name_of(term: Term) -> str:
    """A term as messages show it."""
    return str(term)


def survey(frame: pd.DataFrame, sections: Mapping[str, Sequence[Term]], context: Mapping[str, Any]) -> Surveyed:
    """Factors of all sections on some of the rows, uncoded; parameters as in `materialize`.

    Stateful transforms in `context` take the place of those of the same name.

    Raises
    ------
    DesignError
        If a term cannot be computed.
    """
    formula = Formula(**{name: list(terms) for name, terms in sections.items() if terms})
    materializer, bad = _InFloats(frame, context={**EXTRA_FUNCTIONS, **context}), set[int]()
    specs = ModelSpec.from_spec(formula, context=materializer.layered_context, output="numpy")
    factors, pooled = materializer._prepare_factor_evaluation_model_spec(materializer._prepare_model_specs(specs))
    with _errors_of_design():
        for factor in factors:
            materializer._evaluate_factor(factor, pooled, bad)
    bad_rows = np.sort(np.fromiter(bad, dtype=np.intp, count=len(bad)))
    levels = {}
    for code, factor in materializer.factor_cache.items():
        if factor.metadata.kind.value == "categorical":
            values = pd.Series(factor.values.__wrapped__).reset_index(drop=True).drop(index=pd.Index(bad_rows))
            levels[code] = values[~values.duplicated()]
    return Surveyed(pooled.transform_state, levels, bad_rows, _bad_terms(materializer) if bad else ())


def materialize(
    frame: pd.DataFrame,
    sections: Mapping[str, Sequence[Term]],
    context: Mapping[str, Any],
    states: Mapping[str, Mapping[str, Any]] | None = None,
) -> Materialized:
    """Matrices of all sections, built together so that a row is in all of them or in none.

    Parameters
    ----------
    frame : DataFrame
        The columns in use, with a range index.
    sections : mapping of str to sequence of terms
    context : mapping
        Names that formulas may use beside columns and transforms.
    states : mapping of str to mapping, optional
        What stateful transforms know already, by the code of their calls; by default they learn it from the frame.

    Raises
    ------
    DesignError
        If a term cannot be computed.
    """
    used = {name: terms for name, terms in sections.items() if terms}
    if not used:
        return _collected(frame, {}, sections, {}, PandasMaterializer(frame), set(), None)
    known = {code: dict(state) for code, state in (states or {}).items()}
    specs = {name: ModelSpec(formula=list(terms), transform_state=dict(known)) for name, terms in used.items()}
    return _run(frame, ModelSpecs(**specs), sections, context, replayed=False)


def rematerialize(
    frame: pd.DataFrame,
    specs: Specs,
    sections: Mapping[str, Sequence[Term]],
    context: Mapping[str, Any],
) -> Materialized:
    """Matrices of new data, coded as the data were from which `specs` came.

    Raises
    ------
    DesignError
        If a category was not seen before, or a term cannot be computed.
    """
    wanted = {name: specs[name] for name, terms in sections.items() if terms}
    if not wanted:
        return _collected(frame, {}, sections, {}, PandasMaterializer(frame), set(), None)
    return _run(frame, ModelSpecs(**wanted), sections, context, replayed=True)


class _InFloats(PandasMaterializer):
    """Formulaic's, but expressions are computed in double precision, and lags are columns of the frame."""

    @override
    def _evaluate(self, expr: str, metadata: Any, spec: Any) -> tuple[Any, set[Any]]:
        columns: dict[str, Any] = {str(name): self.data[name] for name in self.data.columns}
        aliases: dict[str, str] = {}
        code = sanitize_variable_names(expr, columns, aliases)
        code = rewritten(code, aliases, lambda name: name in self.data.columns)
        if not makes_categories(expr):
            columns = {name: floating(values) for name, values in columns.items()}
        names = LayeredMapping({**columns, NUMBER: number}, self.layered_context)
        variables: set[Any] = set()
        return stateful_eval(code, names, {code: metadata}, spec.transform_state, spec, variables=variables), variables


def _run(
    frame: pd.DataFrame,
    recipe: ModelSpecs,
    sections: Mapping[str, Sequence[Term]],
    context: Mapping[str, Any],
    replayed: bool,
) -> Materialized:
    materializer = _InFloats(frame, context={**EXTRA_FUNCTIONS, **context})
    bad: set[int] = set()
    with _errors_of_design(replayed):
        built = materializer.get_model_matrix(recipe, drop_rows=bad, output="numpy")
    parts = {name: getattr(built, name) for name in built._to_dict()}
    specs = {name: part.model_spec for name, part in parts.items()}
    return _collected(frame, parts, sections, specs, materializer, bad, specs)


@contextmanager
def _errors_of_design(replayed: bool = False) -> Iterator[None]:
    """What formulaic raises, as an error of the package; `replayed` where the levels are those of a fit."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            # An unseen category only warns and would be coded as the reference level: it is made an error.
            warnings.simplefilter("error", DataMismatchWarning)
            yield
    except DataMismatchWarning as error:
        raise DesignError(_unseen(str(error), replayed)) from error
    except (FormulaicError, ValueError, TypeError, LookupError, NameError, AttributeError, ArithmeticError) as error:
        if isinstance(error, MixmoeError):
            raise
        raise DesignError(_explained(error)) from error


def _collected(
    frame: pd.DataFrame,
    parts: Mapping[str, Any],
    sections: Mapping[str, Sequence[Term]],
    specs: Mapping[str, Any],
    materializer: PandasMaterializer,
    bad: set[int],
    kept: Any,
) -> Materialized:
    n = len(frame) - len(bad)
    bad_rows = np.sort(np.fromiter(bad, dtype=np.intp, count=len(bad)))
    return Materialized(
        matrices={
            name: np.ascontiguousarray(parts[name], dtype=np.float64) if name in parts else np.empty((n, 0))
            for name in sections
        },
        names={name: tuple(specs[name].column_names) if name in specs else () for name in sections},
        owners={name: owners_of(specs[name], terms) if name in specs else () for name, terms in sections.items()},
        numeric={name: name not in specs or _is_numeric(specs[name]) for name in sections},
        bad_rows=bad_rows,
        bad_terms=_bad_terms(materializer) if bad else (),
        specs=kept or {},
        smooths={name: _smooths(specs[name], terms, frame) for name, terms in sections.items() if name in specs},
    )


def _smooths(spec: Any, terms: Sequence[Term], frame: pd.DataFrame) -> dict[int, SmoothTerm]:
    """The terms ``s(...)`` of a section by their positions, from the state that formulaic keeps of each."""
    found = {}
    for i, term in enumerate(terms):
        if is_smooth(term):
            aliases: dict[str, str] = {}
            columns = {str(name): None for name in frame.columns}
            code = sanitize_variable_names(str(term.factors[0].expr), columns, aliases)
            code = rewritten(code, aliases, lambda name: name in frame.columns)
            found[i] = spec.transform_state[format_expr(ast.parse(code, mode="eval"))][STATE]
    return found


def is_smooth(term: Term) -> bool:
    """Whether a term is a call ``s(...)``."""
    return len(term.factors) == 1 and _names_call(term.factors[0], whole=True)


def holds_smooth(term: Term) -> bool:
    """Whether a term has a call ``s(...)`` anywhere."""
    return any(_names_call(factor, whole=False) for factor in term.factors)


def _names_call(factor: Any, whole: bool) -> bool:
    if factor.eval_method.value != "python":
        return False
    body = ast.parse(sanitize_variable_names(factor.expr, {}, {}), mode="eval").body
    nodes = [body] if whole else list(ast.walk(body))
    return any(isinstance(node, ast.Call) and is_name(node.func, "s") for node in nodes)


def code_of(term: Term) -> str:
    """A term as one expression: the product of its factors."""
    factors = []
    for factor in term.factors:
        text = str(factor.expr)
        plain = factor.eval_method.value != "lookup" or text.isidentifier()
        factors.append(text if plain else f"`{text}`")
    return "*".join(f"({text})" if len(factors) > 1 else text for text in factors)


def arguments_of_smooth(term: Term) -> Mapping[str, str]:
    """Code of the arguments of a term for which `is_smooth` holds, by name; the index is ``"x"``."""
    aliases: dict[str, str] = {}
    call: Any = ast.parse(sanitize_variable_names(term.factors[0].expr, {}, aliases), mode="eval").body
    names = ("x", "k", "m", "by", "bs", "ends", "whole")
    given = dict(zip(names, call.args, strict=False))
    given |= {str(keyword.arg): keyword.value for keyword in call.keywords}

    def text(node: ast.AST) -> str:
        code = ast.unparse(node)
        return aliases.get(code, code)

    return {name: text(node) for name, node in given.items()}


def owners_of(spec: Any, terms: Sequence[Term]) -> tuple[int, ...]:
    """For each column of a section the position of its term."""
    place = {term: i for i, term in enumerate(terms)}
    return tuple(place[row.term] for row in spec.structure for _ in row.columns)


def _is_numeric(spec: Any) -> bool:
    return all(kind.value != "categorical" for kind, _ in spec.encoder_state.values())


def _bad_terms(materializer: PandasMaterializer) -> tuple[tuple[str, int], ...]:
    counts = ((expr, len(find_nulls(factor.values))) for expr, factor in materializer.factor_cache.items())
    return tuple((expr, count) for expr, count in counts if count)


def known_categories(specs: Specs) -> tuple[Categories, ...]:
    """Columns used as categories, untransformed, with the levels that have a coding."""
    found: dict[str, Categories] = {}
    for spec in specs.values():
        for factor in spec.factors:
            column, state = _category_column(factor), spec.encoder_state.get(factor.expr)
            if column is not None and state is not None and "categories" in state[1]:
                found[column] = Categories(column, tuple(state[1]["categories"]))
    return tuple(found.values())


def _category_column(factor: Any) -> str | None:
    """The column of `g`, `C(g)` or `C(g, contrast)`."""
    return str(factor.expr) if factor.eval_method.value == "lookup" else category_argument(str(factor.expr))


def category_argument(code: str) -> str | None:
    """The column `g` of the code `C(g, ...)`; None for any other code."""
    aliases: dict[str, str] = {}
    try:
        body = ast.parse(sanitize_variable_names(code, {}, aliases), mode="eval").body
    except (SyntaxError, ValueError):
        return None
    if not (isinstance(body, ast.Call) and isinstance(body.func, ast.Name) and body.func.id == "C" and body.args):
        return None
    first = body.args[0]
    if isinstance(first, ast.Call) and _is_quotation(first):
        return str(ast.literal_eval(first.args[0]))
    return aliases.get(first.id, first.id) if isinstance(first, ast.Name) else None


def _unseen(message: str, replayed: bool) -> str:
    levels = re.search(r"\{.*\}", message)
    named = re.sub(r"np\.\w+\(([^)]*)\)", r"\1", levels.group(0).strip("{}") if levels else message)
    if not replayed:
        return f"the levels=[...] of a category leave out {named}, which the data have; add it, or leave these rows out"
    return (
        f"the data contain a category that the fit has not seen: {named}; "
        "only categories of the original data have coefficients; drop these rows or refit with them"
    )


def _explained(error: Exception) -> str:
    text = _ANSI.sub("", str(error)).strip()
    if isinstance(error, IndexError):
        text = (
            f"{text} (contrasts in C(...) are one of those that formulas know, or a matrix with a row for each level)"
        )
    cause = error.__cause__
    if isinstance(cause, DesignError):
        term = re.search(r"factor `(.*)`", text)
        return f"{cause} (term {term.group(1)})" if term else str(cause)
    if cause is not None and str(cause) and str(cause) not in text:
        text = f"{text} ({cause})"
    if "extrapolation" in text:
        return (
            f"a spline of the formula is not defined outside the range of the data of the fit: {text}; leave such rows "
            "out, or fit with extrapolation='extend' inside the term, as in bs(x, df=4, extrapolation='extend')"
        )
    return f"a term of the formula cannot be computed: {text}; check the term and the type of its columns"


def degree(term: Term) -> int:
    """Number of factors of a term; 0 for the intercept."""
    return int(term.degree)
