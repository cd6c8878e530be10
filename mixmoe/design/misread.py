"""What users write in formulas and Python reads otherwise than they mean it, refused with the right spelling."""

import ast
import re
from collections.abc import Mapping

from mixmoe.errors import MixmoeError

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
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and _is_huge(node):
            raise SectionSyntaxError(
                f"{ast.unparse(node)!r} in {code!r} is a number too large to be computed with; write a smaller power",
                0,
                len(text),
            )
        if isinstance(node, ast.Call) and _columns_asked(node) > MAX_TERMS:
            raise SectionSyntaxError(
                f"{code!r} asks for {_columns_asked(node)} columns; at most {MAX_TERMS} make sense, and splines have "
                "about 5",
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


def _columns_asked(call: ast.Call) -> int:
    """About how many columns a call of a basis makes, by the number in its arguments; 0 for other calls."""
    if not any(is_name(call.func, name) for name in _BASES):
        return 0
    given = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg in _SIZES)]
    return max((n.value for n in given if isinstance(n, ast.Constant) and isinstance(n.value, int)), default=0)


def _is_huge(node: ast.BinOp) -> bool:
    """Whether a power of numbers is one that Python, whose whole numbers have no end, would compute for hours."""
    if any(isinstance(part, ast.Name | ast.Call) for part in ast.walk(node)):
        return False
    return not (_is_short(node.left) and _is_short(node.right) and abs(ast.literal_eval(node.right)) <= _LARGEST_POWER)


def _is_short(node: ast.expr) -> bool:
    """Whether a node is a number as it stands, perhaps with a sign."""
    value = node.operand if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd) else node
    return isinstance(value, ast.Constant) and isinstance(value.value, int | float)


def is_name(node: ast.AST, name: str) -> bool:
    """Whether a node is this name."""
    return isinstance(node, ast.Name) and node.id == name


def _joins(node: ast.AST) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr)
