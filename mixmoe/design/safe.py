"""Which formulas may be evaluated although a stranger wrote them: a whitelist of transforms."""

import ast
from collections.abc import Sequence

from mixmoe.design.expressions import unquoted
from mixmoe.design.formula import MoEFormula
from mixmoe.design.formulaic_engine import parse_terms
from mixmoe.design.terms import Term, python_code
from mixmoe.errors import FormulaError

# fmt: off
FUNCTIONS = frozenset(
    {
        "C", "I", "Q", "bs", "cc", "center", "cr", "cs", "hashed", "lag", "poly", "scale",
        "standardize", "Treatment", "Sum", "Helmert", "Diff", "Poly", "log", "log10", "log2",
        "log1p", "exp", "exp2", "exp10", "expm1", "sqrt", "abs", "floor", "ceil", "sin", "cos", "s",
    }
)
"""Functions that a formula from a stranger may call."""
MEMBERS = {
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
}
"""Members of modules that it may use."""
# fmt: on

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
    if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
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
