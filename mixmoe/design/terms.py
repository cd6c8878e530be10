"""What a term of a formula names and holds, read from its code."""

import ast
import builtins
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from formulaic.transforms import TRANSFORMS
from formulaic.utils.code import sanitize_variable_names
from numpy.typing import NDArray

from mixmoe.design.expressions import Lag, is_name, lags_in, under_lags
from mixmoe.design.smooth_basis import smooth
from mixmoe.errors import DesignError


def network_inputs(*columns: Any) -> NDArray[np.float64]:
    """The inputs of a network ``nn(x1, x2)``, one column each, shape (n, p).

    Raises
    ------
    DesignError
        If there are none, or one is no column of numbers.
    """
    if not columns:
        raise DesignError("nn() has no inputs; name them, as in nn(x1, x2)")
    values = [np.asarray(column) for column in columns]
    for i, column in enumerate(values):
        if column.ndim != 1 or column.dtype.kind not in "biuf":
            raise DesignError(
                f"input {i + 1} of nn(...) must be one column of numbers, got {column.ravel()[:1].tolist()} and so on; "
                "convert numbers read as text with pd.to_numeric, and make columns of zeros and ones of categories "
                "beforehand, or put them beside the network, as in nn(x1) + C(g)"
            )
    return np.column_stack([column.astype(float) for column in values])


Term = Any  # formulaic.parser.types.Term; opaque outside this file
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
    "nn": network_inputs,
}
"""Functions that formulas may use beyond those that formulaic brings."""


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


def is_intercept(term: Term) -> bool:
    """Whether a term is the intercept."""
    return term.degree == 0


def is_plain_column(term: Term) -> bool:
    """Whether a term is one column, untransformed."""
    return len(term.factors) == 1 and term.factors[0].eval_method.value == "lookup"


def used_names(terms: Sequence[Term]) -> tuple[UsedName, ...]:
    """Names that terms use, in order of first use."""
    found: dict[tuple[str, bool], UsedName] = {}
    for term in terms:
        for factor in term.factors:
            for name in _names_of_factor(factor):
                known = found.get((name.name, name.called), name)
                found[name.name, name.called] = replace(
                    name, plain=known.plain or name.plain, complete=known.complete or name.complete
                )
    return tuple(found.values())


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


def lags_of(terms: Sequence[Term]) -> frozenset[Lag]:
    """The lagged columns that terms need, see `mixmoe.design.expressions.lags_in`."""
    found: set[Lag] = set()
    for term in terms:
        for factor in term.factors:
            if factor.eval_method.value == "python":
                aliases: dict[str, str] = {}
                found |= lags_in(sanitize_variable_names(factor.expr, {}, aliases), aliases)
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


def is_call(term: Term, function: str) -> bool:
    """Whether a term is a call of a function, as ``s(...)``."""
    return len(term.factors) == 1 and _names_call(term.factors[0], function, whole=True)


def holds_call(term: Term, function: str) -> bool:
    """Whether a term has a call of a function anywhere."""
    return any(_names_call(factor, function, whole=False) for factor in term.factors)


def _names_call(factor: Any, function: str, whole: bool) -> bool:
    if factor.eval_method.value != "python":
        return False
    body = ast.parse(sanitize_variable_names(factor.expr, {}, {}), mode="eval").body
    nodes = [body] if whole else list(ast.walk(body))
    return any(isinstance(node, ast.Call) and is_name(node.func, function) for node in nodes)


def keywords_of(term: Term) -> list[str]:
    """Names of the arguments of a term that is a call, as ``k`` in ``s(x, k=5)``."""
    body = ast.parse(sanitize_variable_names(term.factors[0].expr, {}, {}), mode="eval").body
    return [str(keyword.arg) for keyword in body.keywords] if isinstance(body, ast.Call) else []


def code_of(term: Term) -> str:
    """A term as one expression: the product of its factors."""
    factors = []
    for factor in term.factors:
        text = str(factor.expr)
        plain = factor.eval_method.value != "lookup" or text.isidentifier()
        factors.append(text if plain else f"`{text}`")
    return "*".join(f"({text})" if len(factors) > 1 else text for text in factors)


def arguments_of_smooth(term: Term) -> Mapping[str, str]:
    """Code of the arguments of a term that is a call ``s(...)``, by name; the index is ``"x"``."""
    aliases: dict[str, str] = {}
    call: Any = ast.parse(sanitize_variable_names(term.factors[0].expr, {}, aliases), mode="eval").body
    names = ("x", "k", "m", "by", "bs", "ends", "whole")
    given = dict(zip(names, call.args, strict=False))
    given |= {str(keyword.arg): keyword.value for keyword in call.keywords}

    def text(node: ast.AST) -> str:
        code = ast.unparse(node)
        return aliases.get(code, code)

    return {name: text(node) for name, node in given.items()}


def inputs_of_network(term: Term) -> tuple[str, ...] | None:
    """Code of the inputs of a term ``nn(x1, x2)``; None for any other term."""
    if not is_call(term, "nn"):
        return None
    aliases: dict[str, str] = {}
    call: Any = ast.parse(sanitize_variable_names(term.factors[0].expr, {}, aliases), mode="eval").body
    return tuple(aliases.get(code, code) for code in map(ast.unparse, call.args))


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
