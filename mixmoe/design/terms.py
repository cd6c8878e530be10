"""What a term of a formula names and holds, read from its code."""

import ast
import builtins
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from formulaic.transforms import TRANSFORMS
from formulaic.utils.code import sanitize_variable_names
from numpy.typing import NDArray

from mixmoe.design.expressions import Lag, lags_in, under_lags
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


@dataclass(frozen=True, slots=True)
class Code:
    """The Python code of an expression in a formula.

    Attributes
    ----------
    text : str
        With plain names for those in backticks.
    tree : ast.expr
    aliases : mapping of str to str
        From those plain names to the columns.
    """

    text: str
    tree: ast.expr
    aliases: Mapping[str, str]

    def written(self, node: ast.AST) -> str:
        """A part of the code, a name in backticks as it is."""
        code = ast.unparse(node)
        return self.aliases.get(code, code)


def read_code(expression: str) -> Code:
    """The code of an expression.

    Raises
    ------
    DesignError
        If it is none.
    """
    aliases: dict[str, str] = {}
    text = sanitize_variable_names(expression, {}, aliases)
    try:
        return Code(text, ast.parse(text, mode="eval").body, aliases)
    except (SyntaxError, ValueError) as error:
        raise DesignError(f"{expression!r} is not a valid expression ({error}); correct it") from error


@dataclass(frozen=True, slots=True)
class Uses:
    """What a term uses.

    Attributes
    ----------
    names : tuple of UsedName
    calls : frozenset of str
        Functions that it calls by their names.
    whole : str or None
        The function, if the term is a call of one and nothing else, as ``s(...)``.
    lags : frozenset of Lag
        Lagged columns, see `mixmoe.design.expressions.lags_in`.
    """

    names: tuple[UsedName, ...]
    calls: frozenset[str]
    whole: str | None
    lags: frozenset[Lag]


def uses_of(term: Term) -> Uses:
    """What a term uses, its code read once."""
    names: list[UsedName] = []
    calls, lags, whole = set[str](), set[Lag](), None
    for factor in term.factors:
        if factor.eval_method.value == "lookup":
            names.append(UsedName(str(factor.expr), False, True, True))
        if factor.eval_method.value != "python":
            continue
        code = read_code(str(factor.expr))
        found = _names_of_tree(code.tree)
        names += [replace(used, name=code.aliases.get(used.name, used.name)) for used in found]
        called = {used.name for used in found if used.called}
        calls |= called
        if "lag" in called:
            lags |= lags_in(code.text, code.aliases)
        if isinstance(code.tree, ast.Call) and isinstance(code.tree.func, ast.Name) and len(term.factors) == 1:
            whole = code.tree.func.id
    return Uses(tuple(names), frozenset(calls), whole, frozenset(lags))


def used_names(terms: Iterable[Uses]) -> tuple[UsedName, ...]:
    """Names that terms use, in order of first use."""
    found: dict[tuple[str, bool], UsedName] = {}
    for uses in terms:
        for name in uses.names:
            known = found.get((name.name, name.called), name)
            found[name.name, name.called] = replace(
                name, plain=known.plain or name.plain, complete=known.complete or name.complete
            )
    return tuple(found.values())


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


def keywords_of(term: Term) -> list[str]:
    """Names of the arguments of a term that is a call, as ``k`` in ``s(x, k=5)``."""
    call = read_code(str(term.factors[0].expr)).tree
    return [str(keyword.arg) for keyword in call.keywords] if isinstance(call, ast.Call) else []


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
    code = read_code(str(term.factors[0].expr))
    call: Any = code.tree
    given = dict(zip(("x", "k", "m", "by", "bs", "ends", "whole"), call.args, strict=False))
    given |= {str(keyword.arg): keyword.value for keyword in call.keywords}
    return {name: code.written(node) for name, node in given.items()}


def inputs_of_network(term: Term) -> tuple[str, ...] | None:
    """Code of the inputs of a term ``nn(x1, x2)``; None for any other term."""
    if uses_of(term).whole != "nn":
        return None
    code = read_code(str(term.factors[0].expr))
    call: Any = code.tree
    return tuple(map(code.written, call.args))


def category_argument(expression: str) -> str | None:
    """The column `g` of the code `C(g, ...)`; None for any other code."""
    try:
        code = read_code(expression)
    except DesignError:
        return None
    call = code.tree
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "C" and call.args):
        return None
    first = call.args[0]
    if isinstance(first, ast.Call) and _is_quotation(first):
        return str(ast.literal_eval(first.args[0]))
    return code.aliases.get(first.id, first.id) if isinstance(first, ast.Name) else None
