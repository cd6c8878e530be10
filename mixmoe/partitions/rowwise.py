"""Which terms of a formula can be computed row by row, or from what partitions say of all rows together."""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mixmoe.design.formulaic_engine import python_code
from mixmoe.design.recipe import WHERE, Recipe
from mixmoe.errors import ArgumentError, DesignError
from mixmoe.partitions.summaries import COLLECTORS

_PLAIN = frozenset({"C", "I", "Q", "hashed", "Treatment", "Sum", "Helmert", "Diff", "Poly", "exp10", "float", "int"})
_NUMPY = frozenset({"where", "clip", "round", "around", "nan_to_num", "isin"})  # row by row, but no ufuncs
_METHODS = frozenset({"fillna", "astype", "clip", "isin", "notna", "isna", "abs", "round", "between"})
_WITHOUT: Mapping[str, str] = {
    "poly": "its columns are made orthogonal over all rows, which loses digits when sums are merged; write I(x**2)",
    "cr": "its constraints need all rows at once; write bs(x, df=4)",
    "cs": "its constraints need all rows at once; write bs(x, df=4)",
    "cc": "its constraints need all rows at once; write sin and cos of the column",
    "lag": "rows of a subject may lie in several partitions; make the column beforehand",
    "s": "penalised functions need rows beside one another; write bs(x, df=5)",
}


@dataclass(frozen=True, slots=True)
class Elementwise:
    """A function of single values, applied to columns; one of `numpy.vectorize` does not travel once it was called.

    Attributes
    ----------
    function : callable
    otypes : str or None
        Types of its results, as `numpy.vectorize` has them.
    """

    function: Callable[..., Any]
    otypes: str | None

    def __call__(self, *columns: Any) -> Any:
        """The values of each row."""
        return np.vectorize(self.function, otypes=self.otypes)(*columns)


def rowwise(recipe: Recipe) -> Recipe:
    """The recipe, if its terms can be computed row by row, with functions that can be sent to other processes.

    Raises
    ------
    ArgumentError, DesignError
        See `check_rowwise`.
    """
    check_rowwise(recipe)
    own = {name: f for name, f in recipe.context.items() if isinstance(f, np.vectorize)}
    return replace(recipe, context={**recipe.context, **{n: Elementwise(f.pyfunc, f.otypes) for n, f in own.items()}})


def check_rowwise(recipe: Recipe) -> None:
    """Refuse terms whose values in a row depend on other rows in ways that partitions cannot tell.

    Raises
    ------
    ArgumentError
        For another engine than formulaic.
    DesignError
        Names the term and says what to write instead.
    """
    if recipe.engine != "formulaic":
        raise ArgumentError(f"partitioned data need formula_engine='formulaic', got {recipe.engine!r}")
    for section, terms in recipe.sections.items():
        for code in python_code(terms):
            tree = ast.parse(code, mode="eval")
            reason = next((r for node in ast.walk(tree) for r in [_reason(node, recipe.context)] if r), None)
            if reason is not None:
                raise DesignError(
                    f"{WHERE[section]} has {code!r}, which cannot be computed from partitions of the data: {reason}"
                )


def _reason(node: ast.AST, context: Mapping[str, Any]) -> str | None:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _reason_of_call(node, node.func.id, context)
    if isinstance(node, ast.Attribute):
        return _reason_of_member(node)
    if isinstance(node, ast.Subscript | ast.Lambda | ast.ListComp | ast.GeneratorExp | ast.Starred):
        return f"{ast.unparse(node)!r} may look at other rows; make the column beforehand"
    return None


def _reason_of_call(node: ast.Call, name: str, context: Mapping[str, Any]) -> str | None:
    if name in context:
        if isinstance(context[name], np.ufunc | np.vectorize):
            return None
        return (
            f"whether your function {name!r} looks at one row at a time is not known; pass "
            f"context={{{name!r}: np.vectorize({name})}} if it does"
        )
    if name in _WITHOUT:
        return _WITHOUT[name]
    if name in COLLECTORS:
        inside = [call for arg in node.args for call in ast.walk(arg) if isinstance(call, ast.Call)]
        nested = [call for call in inside if isinstance(call.func, ast.Name) and call.func.id in COLLECTORS]
        return f"{name}(...) of another such transform; make one of them beforehand" if nested else None
    if name in _PLAIN or isinstance(getattr(np, name, None), np.ufunc):
        return None
    return f"{name}(...) may look at other rows; make the column beforehand"


def _reason_of_member(node: ast.Attribute) -> str | None:
    base = node.value
    if isinstance(base, ast.Name) and base.id == "np":
        member = getattr(np, node.attr, None)
        if isinstance(member, np.ufunc | float) or node.attr in _NUMPY:
            return None
        return f"np.{node.attr} may look at other rows; make the column beforehand"
    if (isinstance(base, ast.Name) and base.id == "contr") or node.attr in {*_METHODS, "str", "dt"}:
        return None
    if isinstance(base, ast.Attribute) and base.attr in ("str", "dt"):
        return None
    return f"{ast.unparse(node)!r} may look at other rows; make the column beforehand"
