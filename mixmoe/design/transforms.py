"""What functions of formulas do: which a stranger may call, and which need no other row than their own."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from mixmoe.design.expressions import unquoted
from mixmoe.design.formula import MoEFormula
from mixmoe.design.formulaic_engine import parse_terms
from mixmoe.design.terms import Term, python_code
from mixmoe.errors import FormulaError


@dataclass(frozen=True, slots=True)
class Transform:
    """What is known of a function that formulas call.

    Attributes
    ----------
    safe : bool
        Whether a formula that a stranger wrote may call it.
    merged : bool
        Whether what it must know of all rows can be merged from parts of them.
    needs_rows : str
        Why it cannot be computed from parts of the rows, and what to write instead; empty if it can.
    """

    safe: bool = True
    merged: bool = False
    needs_rows: str = ""


_BASIS = "its constraints need all rows at once; write bs(x, df=4)"
TRANSFORMS: Mapping[str, Transform] = MappingProxyType(
    {
        # Of the values of a row alone.
        **dict.fromkeys(("C", "I", "Q", "hashed", "Treatment", "Sum", "Helmert", "Diff", "Poly"), Transform()),
        **dict.fromkeys(("log", "log10", "log2", "log1p", "exp", "exp2", "exp10", "expm1", "sqrt"), Transform()),
        **dict.fromkeys(("abs", "floor", "ceil", "sin", "cos"), Transform()),
        **dict.fromkeys(("float", "int"), Transform(safe=False)),
        # Of means, ranges and quantiles of all rows.
        **dict.fromkeys(("scale", "center", "standardize", "bs"), Transform(merged=True)),
        # Of all rows at once.
        "poly": Transform(
            needs_rows="its columns are made orthogonal over all rows, which loses digits when sums are merged; write "
            "I(x**2)"
        ),
        "cr": Transform(needs_rows=_BASIS),
        "cs": Transform(needs_rows=_BASIS),
        "cc": Transform(needs_rows="its constraints need all rows at once; write sin and cos of the column"),
        "nn": Transform(needs_rows="networks need all rows in memory; write bs(x, df=5)"),
        "lag": Transform(needs_rows="rows of a subject may lie in several partitions; make the column beforehand"),
        "s": Transform(needs_rows="penalised functions need rows beside one another; write bs(x, df=5)"),
    }
)
"""Functions that formulas may call by their names; others are refused to strangers and to partitions of data."""

# fmt: off
MEMBERS: Mapping[str, frozenset[str]] = MappingProxyType({
    "np": frozenset(
        {
            "abs", "absolute", "arctan", "ceil", "clip", "cos", "cosh", "e", "exp", "exp2", "expm1",
            "fabs", "floor", "isnan", "log", "log10", "log1p", "log2", "maximum", "minimum", "pi",
            "power", "rint", "round", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh",
            "where",
        }
    ),
    "contr": frozenset(
        {
            "treatment", "SAS", "sum", "helmert", "diff", "poly", "custom",
        }
    ),
})
"""Members of modules that a stranger may use, all of them row by row."""
# fmt: on
_FURTHER_MEMBERS = frozenset({"around", "nan_to_num", "isin"})  # of NumPy, row by row, but no ufuncs
_METHODS = frozenset({"fillna", "astype", "clip", "isin", "notna", "isna", "abs", "round", "between"})  # row by row

MAX_EXPONENT = 16
_NODES = (
    ast.Expression,
    ast.Call,
    ast.keyword,
    ast.Name,
    ast.Load,
    ast.Constant,
    ast.Attribute,
    ast.Subscript,
    ast.UnaryOp,
    ast.BinOp,
    ast.BoolOp,
    ast.Compare,
    ast.List,
    ast.Tuple,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
)


def require_safe(formula: MoEFormula) -> None:
    """Refuse a formula that could run foreign code.

    Raises
    ------
    FormulaError
        If the formula holds code in braces or anything but whitelisted transforms.
    """
    parts = (*formula.expert, *formula.gate, *formula.sigma)
    texts = [formula.response, *(part.text for part in parts)]
    effects = [term.design for term in (formula.random, *formula.further) if term is not None]
    texts += [*effects, *([formula.vary] if formula.vary else [])]
    braces = "{" in unquoted(formula.text)
    terms = [] if braces else [term for text in texts for term in parse_terms(text)]
    reason = "code in braces is not allowed" if braces else unsafe_reason(terms)
    if reason is not None:
        raise FormulaError(
            f"the formula comes from outside and may hold only common transforms such as log, scale, C, bs, poly: "
            f"{reason}; compute such a column beforehand",
            formula.text,
        )


def unsafe_reason(terms: Sequence[Term]) -> str | None:
    """Why terms must not be evaluated; None if they may."""
    for code in python_code(terms):
        try:
            tree = ast.parse(code, mode="eval")
        except (SyntaxError, ValueError):
            return f"{code!r} is not an expression"
        for node in ast.walk(tree):
            reason = _reason(node)
            if reason is not None:
                return reason
    return None


def _reason(node: ast.AST) -> str | None:
    if not isinstance(node, _NODES):
        return f"{type(node).__name__} expressions are not allowed"
    if isinstance(node, ast.Call):
        return _call_reason(node)
    if isinstance(node, ast.Attribute):
        return _member_reason(node)
    if isinstance(node, ast.Name) and node.id.startswith("__"):
        return f"the name {node.id!r} is not allowed"
    if isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Constant) and not _is_layer(node):
        return f"{ast.unparse(node)!r} is not allowed; an index must be a number"
    if isinstance(node, ast.BinOp):
        return _operator_reason(node)
    return None


def _is_layer(node: ast.Subscript) -> bool:
    """Whether columns of a layer of a network are named, as in re: (last[1, x] | id), which nothing evaluates."""
    return isinstance(node.value, ast.Name) and node.value.id == "last"


def _call_reason(node: ast.Call) -> str | None:
    if isinstance(node.func, ast.Attribute):
        return None
    if not isinstance(node.func, ast.Name) or not TRANSFORMS.get(node.func.id, Transform(False)).safe:
        return f"{ast.unparse(node.func)!r} is not a function that may be called"
    if any(keyword.arg is None for keyword in node.keywords):
        return f"{ast.unparse(node)!r} unpacks arguments, which is not allowed"
    return None


def _member_reason(node: ast.Attribute) -> str | None:
    if isinstance(node.value, ast.Name) and node.attr in MEMBERS.get(node.value.id, ()):
        return None
    return f"{ast.unparse(node)!r} is not a member that may be used"


def _operator_reason(node: ast.BinOp) -> str | None:
    if isinstance(node.op, ast.LShift | ast.MatMult):
        return f"the operator in {ast.unparse(node)!r} is not allowed"
    if any(isinstance(s, ast.Constant) and isinstance(s.value, str | bytes) for s in (node.left, node.right)):
        return f"{ast.unparse(node)!r} computes with text, which is not allowed"
    if isinstance(node.op, ast.Pow) and not _small(node.right):
        return f"the exponent in {ast.unparse(node)!r} must be a number of at most {MAX_EXPONENT}"
    return None


def _small(node: ast.AST) -> bool:
    if isinstance(node, ast.UnaryOp):
        node = node.operand
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and abs(node.value) <= MAX_EXPONENT


def other_rows_reason(code: str, context: Mapping[str, Any]) -> str | None:
    """Why values of a term in a row may depend on other rows in ways that parts of the rows cannot tell.

    Parameters
    ----------
    code : str
        Python, as a formula has it.
    context : mapping
        Functions of the user.

    Returns
    -------
    str or None
        With what to write instead; None if they do not.
    """
    for node in ast.walk(ast.parse(code, mode="eval")):
        reason = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            reason = _call_needs_rows(node, node.func.id, context)
        elif isinstance(node, ast.Attribute):
            own = _member_of_row(node)
            reason = None if own else f"{ast.unparse(node)!r} may look at other rows; make the column beforehand"
        elif isinstance(node, ast.Subscript | ast.Lambda | ast.ListComp | ast.GeneratorExp | ast.Starred):
            reason = f"{ast.unparse(node)!r} may look at other rows; make the column beforehand"
        if reason is not None:
            return reason
    return None


def _call_needs_rows(node: ast.Call, name: str, context: Mapping[str, Any]) -> str | None:
    if name in context:
        if isinstance(context[name], np.ufunc | np.vectorize):
            return None
        return (
            f"whether your function {name!r} looks at one row at a time is not known; pass "
            f"context={{{name!r}: np.vectorize({name})}} if it does"
        )
    known = TRANSFORMS.get(name)
    if known is None:
        plain = isinstance(getattr(np, name, None), np.ufunc)
        return None if plain else f"{name}(...) may look at other rows; make the column beforehand"
    if known.merged:
        inside = [c.func for a in node.args for c in ast.walk(a) if isinstance(c, ast.Call)]
        if any(isinstance(f, ast.Name) and f.id in TRANSFORMS and TRANSFORMS[f.id].merged for f in inside):
            return f"{name}(...) of another such transform; make one of them beforehand"
    return known.needs_rows or None


def _member_of_row(node: ast.Attribute) -> bool:
    """Whether a member of NumPy, a contrast or a method of a column computes each row by itself."""
    base = node.value
    if isinstance(base, ast.Name) and base.id == "np":
        of_numpy = isinstance(getattr(np, node.attr, None), np.ufunc | float)
        return of_numpy or node.attr in MEMBERS["np"] or node.attr in _FURTHER_MEMBERS
    if (isinstance(base, ast.Name) and base.id == "contr") or node.attr in {*_METHODS, "str", "dt"}:
        return True
    return isinstance(base, ast.Attribute) and base.attr in ("str", "dt")
