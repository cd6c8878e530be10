"""Expressions in formulas: computed in double precision, with lags that do not depend on which rows are complete."""

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mixmoe.errors import DesignError

NUMBER = "number__"  # what makes numbers of the operands of arithmetic, in rewritten code
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)


@dataclass(frozen=True, slots=True)
class Lag:
    """A column some rows of the same subject back.

    Attributes
    ----------
    column : str
    k : int
        Rows back; ahead if negative.
    """

    column: str
    k: int

    @property
    def name(self) -> str:
        """As what the data of a design hold it."""
        return f"lag({self.column})" if self.k == 1 else f"lag({self.column}, {self.k})"

    @property
    def identifier(self) -> str:
        """As what rewritten code names it, whatever the column is called."""
        return f"lag_{'ahead' if self.k < 0 else 'back'}{abs(self.k)}_{self.column.encode().hex()}"


def lags_in(code: str, aliases: Mapping[str, str], is_column: Callable[[str], bool]) -> frozenset[Lag]:
    """The lagged columns that an expression needs.

    Parameters
    ----------
    code : str
        With plain names for those in backticks.
    aliases : mapping of str to str
        From those plain names to the columns.
    is_column : callable
        Whether a name is a column, not a function or constant.

    Raises
    ------
    DesignError
        If the number of rows is no whole number.
    """
    found = _Rewriting(aliases, is_column)
    found.visit(ast.parse(code, mode="eval"))
    return frozenset(found.lags)


def rewritten(code: str, aliases: Mapping[str, str], is_column: Callable[[str], bool]) -> str:
    """The code that is evaluated: lagged columns by name, and operands of arithmetic as numbers.

    Parameters
    ----------
    code, aliases, is_column
        See `lags_in`.

    Notes
    -----
    ``lag(f(x), k)`` is ``f(lag(x, k))`` for functions of one row, so that the lagged columns alone are needed. Truth
    values are added up as numbers, not as 'or'. The levels of ``C(day)`` stay as they are in the data.
    """
    tree = ast.parse(code, mode="eval")
    made = _Rewriting(aliases, is_column, arithmetic=not makes_categories(code)).visit(tree)
    return ast.unparse(ast.fix_missing_locations(made))


def makes_categories(code: str) -> bool:
    """Whether an expression is ``C(...)``, whose levels keep the type that they have in the data."""
    return code.lstrip().startswith("C(")


def floating(values: pd.Series) -> pd.Series:
    """Whole numbers as floats: at 64 bits powers such as x ** 5 would wrap around in silence."""
    whole = isinstance(values.dtype, np.dtype) and values.dtype.kind in "iu"
    return values.astype(np.float64) if whole else values


def number(value: Any) -> Any:
    """Whole numbers and truth values as floats, other values as they are."""
    if isinstance(value, pd.Series | np.ndarray) and isinstance(value.dtype, np.dtype) and value.dtype.kind in "iub":
        return value.astype(np.float64)
    return value


def under_lags(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes within calls of lag."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _calls(node, "lag"):
            for part in (*node.args, *node.keywords):
                yield from ast.walk(part)


def _calls(node: ast.Call, name: str) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id == name


class _Rewriting(ast.NodeTransformer):
    """Replaces lagged columns by their names and wraps the operands of arithmetic."""

    def __init__(self, aliases: Mapping[str, str], is_column: Callable[[str], bool], arithmetic: bool = True) -> None:
        self._aliases, self._is_column, self._arithmetic = aliases, is_column, arithmetic
        self._k: int | None = None
        self.lags: set[Lag] = set()

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if _calls(node, "lag") and node.args:
            before = self._k
            self._k = (before or 0) + _rows_back(node)
            inner = self.visit(node.args[0])
            self._k = before
            return inner
        if _calls(node, "Q") and len(node.args) == 1 and isinstance(node.args[0], ast.Constant):
            return self._lagged(str(node.args[0].value), node)
        node.args = [self.visit(part) for part in node.args]
        node.keywords = [self.visit(part) for part in node.keywords]
        if isinstance(node.func, ast.Attribute):
            node.func = self.visit(node.func)
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self._lagged(self._aliases.get(node.id, node.id), node)

    def _lagged(self, column: str, node: ast.expr) -> ast.AST:
        if self._k is None or not self._is_column(column):
            return node
        lag = Lag(column, self._k)
        self.lags.add(lag)
        return ast.Name(lag.identifier, ast.Load())

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if self._arithmetic and isinstance(node.op, _ARITHMETIC):
            node.left, node.right = _as_number(node.left), _as_number(node.right)
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        if self._arithmetic and isinstance(node.op, ast.USub):
            node.operand = _as_number(node.operand)
        return node


def _as_number(node: ast.expr) -> ast.expr:
    if isinstance(node, ast.Constant):
        return node
    return ast.Call(ast.Name(NUMBER, ast.Load()), [node], [])


def _rows_back(node: ast.Call) -> int:
    """The number of rows of a call of lag."""
    given = [*node.args[1:], *(keyword.value for keyword in node.keywords if keyword.arg in ("k", "offset"))]
    if len(given) + 1 != len(node.args) + len(node.keywords) or len(given) > 1:
        raise DesignError(f"{ast.unparse(node)!r} has arguments that lag does not have; write lag(x, k)")
    value = given[0] if given else ast.Constant(1)
    back = isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.USub)
    whole = value.operand if isinstance(value, ast.UnaryOp) else value
    if not isinstance(whole, ast.Constant) or type(whole.value) is not int:
        raise DesignError(
            f"{ast.unparse(node)!r}: the rows that lag goes back must be a whole number, as in lag(x, 2), got "
            f"{ast.unparse(value)}"
        )
    return -whole.value if back else whole.value
