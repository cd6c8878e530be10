"""Expressions in formulas: which may be written, what they mean, and how they are computed."""

import ast
import builtins
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mixmoe.errors import DesignError, FormulaError, MixmoeError

OPENING, CLOSING, _QUOTES = "([{", ")]}", "`'\""

NUMBER = "number__"  # what makes numbers of the operands of arithmetic, in rewritten code
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)


def mask_brackets(text: str) -> str:
    """`text` with everything in brackets or quotes blanked, brackets themselves kept; same length."""
    out, quote = list(text), ""
    stack: list[int] = []
    for i, char in enumerate(text):
        if quote or stack:
            out[i] = "\0"
        if quote:
            quote = "" if char == quote[0] else quote
        elif char in _QUOTES:
            quote, out[i] = char, "\0"
        elif char in OPENING:
            stack.append(i)
            out[i] = char if len(stack) == 1 else "\0"
        elif char in CLOSING:
            if not stack:
                raise FormulaError(f"the bracket {char!r} was never opened; remove it", text, i)
            opened = text[stack.pop()]
            if OPENING.index(opened) != CLOSING.index(char):
                raise FormulaError(f"the bracket {opened!r} is closed by {char!r}; make them match", text, i)
            out[i] = "\0" if stack else char
    if quote:
        at = text.rfind(quote)
        raise FormulaError(f"the quote {quote} is opened but not closed; close it", text, at)
    if stack:
        raise FormulaError(f"the bracket {text[stack[-1]]!r} is not closed; close it", text, stack[-1])
    return "".join(out)


def unquoted(text: str) -> str:
    """`text` with everything in quotes or backticks blanked; same length."""
    return _QUOTED.sub(lambda m: "\0" * len(m.group(0)), text)


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a formula, with its place in the whole.

    Attributes
    ----------
    whole : str
    mask : str
        The whole as `mask_brackets` makes it.
    start, stop : int
    """

    whole: str
    mask: str
    start: int
    stop: int

    @property
    def text(self) -> str:
        """The piece as it is written."""
        return self.whole[self.start : self.stop]

    @property
    def masked(self) -> str:
        """The piece without what stands in brackets or quotes."""
        return self.mask[self.start : self.stop]

    @property
    def blank(self) -> bool:
        """Whether nothing is written there."""
        return not self.text.strip()

    def sub(self, start: int, stop: int) -> "Span":
        """A piece of this one, by places in it."""
        return Span(self.whole, self.mask, self.start + start, self.start + stop)

    def error(self, message: str, start: int | None = None, width: int | None = None) -> FormulaError:
        """An error that marks this piece, or what begins at a place in it."""
        lead = len(self.text) - len(self.text.lstrip())
        at = lead if start is None else start
        span = max(len(self.text.strip()), 1) if width is None else width
        return FormulaError(message, self.whole, self.start + at, span)


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


def lags_in(code: str, aliases: Mapping[str, str]) -> frozenset[Lag]:
    """The lagged columns that an expression needs.

    Parameters
    ----------
    code : str
        With plain names for those in backticks.
    aliases : mapping of str to str
        From those plain names to the columns.

    Raises
    ------
    DesignError
        If the number of rows is no whole number.
    """
    found = _Rewriting(aliases, lambda _: True)
    found.visit(ast.parse(code, mode="eval"))
    return frozenset(found.lags)


def rewritten(code: str, aliases: Mapping[str, str], is_column: Callable[[str], bool]) -> str:
    """The code that is evaluated: lagged columns by name, and operands of arithmetic as numbers.

    Parameters
    ----------
    code, aliases
        See `lags_in`.
    is_column : callable
        Whether a name is a column, not a function or constant.

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


MAX_TERMS = 2000  # of a section; many more than a model can have, and few enough to expand at once
_OF_R: Mapping[str, str] = {
    r"\bas\.factor\s*\(": "write C(x) for categories",
    r"\bas\.ordered\s*\(": "write C(x), and order the categories in the data with pd.Categorical",
    r"\b(as|is)\.[A-Za-z]\w*\s*\(": "convert the column in the data beforehand",
    r"\b\d+L\b": "write whole numbers without the L",
    r"\$": "name the column alone, of the data that are passed",
    r"&&": "write & between conditions in brackets, as in I((t > 2) & (b < 1))",
    r"!(?!=)": "write ~ for not, or a != b",
}
"""What R users type that Python reads otherwise or not at all."""
_QUOTED = re.compile(r"`[^`]*`|'[^']*'|\"[^\"]*\"")
_BASES = ("bs", "cc", "cr", "cs", "hashed", "poly", "s")


# The second argument of these, or one called so, says how many columns they make.
_SIZES = ("df", "degree", "levels", "k")
_CONTRASTS = ("treatment", "SAS", "sum", "helmert", "diff", "poly", "custom")
_ARGUMENTS_OF_C = ("contrasts", "levels", "spans_intercept")
_LARGEST_POWER = 300  # of numbers in expressions; 10**309 is beyond the range of floats
_SHOWN = 80  # characters of an expression in a message
_LARGEST_SIZE = 10**6  # of what an expression makes out of numbers alone
# Functions of Python that take time and memory of the order of what they are given, which is bounded elsewhere.
_ALLOWED = ("abs", "bool", "float", "int", "len", "max", "min", "round", "str", "sum")
# What makes something as large as a number beside a column says.
_SIZED = ("center", "ljust", "pad", "repeat", "resize", "rjust", "tile", "vander", "zfill")
_LOOPS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda, ast.NamedExpr, ast.JoinedStr)
_OF_NUMBERS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: math.pow,
    ast.LShift: lambda a, b: math.ldexp(a, int(b)),
}


class SectionSyntaxError(MixmoeError):
    """A section that formulaic cannot parse.

    Parameters
    ----------
    message : str
        What formulaic says, without its colours, and what to do.
    start, width : int
        The offending token, counted from the start of the section.
    """

    def __init__(self, message: str, start: int, width: int) -> None:
        self.message, self.start, self.width = message, start, width
        super().__init__(message)


def refuse_r(text: str) -> None:
    """Refuse spellings of R, with the one of Python, before formulaic stumbles over them."""
    visible = _QUOTED.sub(lambda match: " " * len(match.group(0)), text)
    for pattern, remedy in _OF_R.items():
        found = re.search(pattern, visible)
        if found is not None:
            written = found.group(0).rstrip("( ")
            raise SectionSyntaxError(f"{written!r} is R, not Python; {remedy}", found.start(), len(written))


def refuse_misread(code: str, text: str) -> None:
    """Refuse an expression whose operators do in Python what a formula hardly means."""
    try:
        tree = ast.parse(code, mode="eval")
    except (SyntaxError, ValueError):
        return  # told with its reason by who needs the names in it
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor):
            raise SectionSyntaxError(
                f"'^' inside {code!r} is Python's exclusive or, not a power; write ** for powers, as in I(t**2)",
                max(text.find("^"), 0),
                1,
            )
        if isinstance(node, ast.Call) and is_name(node.func, "C"):
            _refuse_contrasts(node, code, text)
        endless = _endless(node)
        if endless is not None:
            raise SectionSyntaxError(f"{ast.unparse(node)[:_SHOWN]!r} in {code[:_SHOWN]!r} {endless}", 0, len(text))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Mod) and _repeats(node):
            raise SectionSyntaxError(
                f"{ast.unparse(node)!r} in {code!r} repeats what stands in quotes or brackets, and is no arithmetic; "
                "write numbers and columns beside *",
                0,
                len(text),
            )
        if isinstance(node, ast.Call) and _columns_asked(node) > MAX_TERMS:
            raise SectionSyntaxError(
                f"{code!r} asks for {_columns_asked(node):.0f} columns; at most {MAX_TERMS} make sense, and splines "
                "have about 5",
                0,
                len(text),
            )
        if isinstance(node, ast.Compare) and any(_joins(part) for part in (node.left, *node.comparators)):
            raise SectionSyntaxError(
                f"in {code!r} the & or | binds more tightly than the comparisons beside it; put these in brackets, as "
                "in (t > 2) & (b < 1)",
                0,
                len(text),
            )


def _repeats(product: ast.BinOp) -> bool:
    """Whether a factor is a text or a list, of which Python's product makes copies, ten billion if asked."""
    whole = (ast.JoinedStr, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.ListComp)
    return any(
        isinstance(factor, whole) or (isinstance(factor, ast.Constant) and isinstance(factor.value, str | bytes))
        for factor in (product.left, product.right)
    )


def _refuse_contrasts(call: ast.Call, code: str, text: str) -> None:
    """Refuse contrasts of ``C(g, ...)`` that neither engine knows, and arguments that C does not have."""
    given = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "contrasts")]
    unknown = [keyword.arg for keyword in call.keywords if keyword.arg not in (None, *_ARGUMENTS_OF_C)]
    wrong = next((node for node in given if _is_no_contrast(node)), None)
    where = text.find(ast.unparse(call.args[0])) if call.args else 0
    if wrong is not None and is_name(wrong, "Treatment"):
        raise SectionSyntaxError(
            f"{code!r} names no reference; write Treatment(reference=...) with a level, or contr.treatment for the "
            "first one",
            max(text.find("Treatment"), 0),
            len("Treatment"),
        )
    if wrong is None and not unknown:
        return
    what = f"has no argument {unknown[0]!r}" if wrong is None else f"gives {ast.unparse(wrong)!r} for contrasts"
    level = wrong.value if isinstance(wrong, ast.Constant) else "level"
    raise SectionSyntaxError(
        f"{code!r} {what}; contrasts are Sum, Helmert, Diff, Poly and Treatment(reference={level!r}), or contr.sum, "
        f"contr.helmert, contr.diff, contr.poly, contr.SAS and contr.treatment(base={level!r}), and levels=[...] puts "
        "the levels in order",
        max(where, 0),
        len(text.strip()) - max(where, 0),
    )


def _is_no_contrast(node: ast.expr) -> bool:
    """Whether a second argument of C is clearly none: a level, a function of Python, a name with other capitals."""
    if isinstance(node, ast.Constant):
        return node.value is not None
    if isinstance(node, ast.Call):
        return _is_no_contrast(node.func) and not is_name(node.func, "Treatment")
    if isinstance(node, ast.Attribute) and is_name(node.value, "contr"):
        return node.attr not in _CONTRASTS
    if isinstance(node, ast.List):
        return not any(isinstance(part, ast.List) for part in node.elts)
    known = ("Sum", "Helmert", "Diff", "Poly")
    return isinstance(node, ast.Name) and node.id not in known and node.id.lower() in (*_CONTRASTS, "contr", "simple")


def _columns_asked(call: ast.Call) -> float:
    """About how many columns a call of a basis makes, by the numbers in its arguments; 0 for other calls."""
    if not any(is_name(call.func, name) for name in _BASES):
        return 0
    given = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg in _SIZES)]
    return max((value for value in map(_value, given) if value is not None), default=0)


def _endless(node: ast.AST) -> str | None:
    """What is wrong with a node that could take hours or all memory before any data are looked at; None if nothing.

    Whatever is computed of columns is as long as they are, in floating point. Of numbers alone Python makes whole
    numbers without end, and its functions lists as long as they say.
    """
    if isinstance(node, _LOOPS):
        return "is a program, not a formula; make the column in the data"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift) and _is_huge(node):
        return "is a number too large to be computed with; write a smaller power"
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Name) and hasattr(builtins, node.func.id) and node.func.id not in _ALLOWED:
        known = ", ".join(_ALLOWED)
        return f"calls {node.func.id} of Python; formulas know {known} and functions of NumPy, as np.exp"
    called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    if called not in _SIZED and (_has_names(node) or isinstance(getattr(np, called, None), np.ufunc)):
        return None
    given = [*node.args, *(keyword.value for keyword in node.keywords)]
    if isinstance(node.func, ast.Name) or max(map(_size, given), default=0) <= _LARGEST_SIZE:
        return None
    return f"makes more than {_LARGEST_SIZE} values; at most as many make sense, and a column is as long as the data"


def _has_names(node: ast.AST) -> bool:
    """Whether a node holds a name, of a column or whatever is not known yet, beside those of functions and of NumPy."""
    functions = [id(part.func) for part in ast.walk(node) if isinstance(part, ast.Call)]
    names = (part for part in ast.walk(node) if isinstance(part, ast.Name) and id(part) not in functions)
    return any(part.id not in ("np", "numpy") for part in names)


def _value(node: ast.AST) -> float | None:
    """The number that an expression of numbers alone comes to, infinite where it overflows; None for others."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value) if abs(node.value) < 10**_LARGEST_POWER else math.inf
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        inner = _value(node.operand)
        return -inner if inner is not None and isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _ALLOWED and node.args:
        return _value(node.args[0])
    if not isinstance(node, ast.BinOp) or type(node.op) not in _OF_NUMBERS:
        return None
    left, right = _value(node.left), _value(node.right)
    if left is None or right is None:
        return None
    try:
        return _OF_NUMBERS[type(node.op)](left, right)
    except (ArithmeticError, ValueError):
        return math.inf


def _size(node: ast.AST) -> float:
    """How many values an argument asks for: a number of them, or the product of the numbers of a shape."""
    if isinstance(node, ast.Tuple):
        return math.prod(max(1.0, _size(part)) for part in node.elts)
    return _value(node) or 0.0


def _is_huge(node: ast.BinOp) -> bool:
    """Whether a power of numbers is one that Python, whose whole numbers have no end, would compute for hours."""
    if _has_names(node):
        return False
    exponent, base = _value(node.right), _value(node.left)
    if exponent is None or abs(exponent) > _LARGEST_POWER:
        return True
    powers = any(isinstance(part, ast.Pow | ast.LShift) for part in ast.walk(node.left))
    return powers if base is None else not math.isfinite(_value(node) or 0.0)


def is_name(node: ast.AST, name: str) -> bool:
    """Whether a node is this name."""
    return isinstance(node, ast.Name) and node.id == name


def _joins(node: ast.AST) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr)
