"""The one file that touches parts of formulaic which its documentation does not promise (written for 1.2.2).

Terms of a formula, their evaluation on data, and its replay on new data.
"""

import ast
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from formulaic import Formula, ModelSpec, ModelSpecs
from formulaic.errors import DataMismatchWarning, FormulaicError
from formulaic.materializers import PandasMaterializer
from formulaic.parser import DefaultFormulaParser, DefaultOperatorResolver
from formulaic.parser.types import Operator, OrderedSet
from formulaic.utils.code import format_expr, sanitize_variable_names
from formulaic.utils.layered_mapping import LayeredMapping
from formulaic.utils.null_handling import find_nulls
from formulaic.utils.stateful_transforms import stateful_eval
from interface_meta import override
from numpy.typing import NDArray

from mixmoe.design.expressions import (
    MAX_TERMS,
    NUMBER,
    SectionSyntaxError,
    floating,
    makes_categories,
    number,
    refuse_misread,
    refuse_r,
    rewritten,
)
from mixmoe.design.smooth_basis import STATE, SmoothTerm
from mixmoe.design.terms import EXTRA_FUNCTIONS, Term, category_argument, is_intercept, python_code, uses_of
from mixmoe.errors import DesignError, MixmoeError

Specs = Mapping[str, Any]  # by section what an engine needs to replay its coding; opaque likewise
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_MARKED = re.compile(r"⧛(.*?)⧚", re.DOTALL)


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
                operator._to_terms = _without if operator.arity == 2 else partial(_without, OrderedSet())
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
    except (
        FormulaicError,
        ValueError,
        TypeError,
        LookupError,
        NameError,
        AttributeError,
        ArithmeticError,
        MemoryError,
    ) as error:
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
        if uses_of(term).whole == "s":
            aliases: dict[str, str] = {}
            columns = {str(name): None for name in frame.columns}
            code = sanitize_variable_names(str(term.factors[0].expr), columns, aliases)
            code = rewritten(code, aliases, lambda name: name in frame.columns)
            found[i] = spec.transform_state[format_expr(ast.parse(code, mode="eval"))][STATE]
    return found


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
