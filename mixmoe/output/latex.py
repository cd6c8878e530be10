"""Tables as LaTeX with booktabs rules; plain ASCII that compiles whatever the names are."""

import re
import unicodedata
from collections.abc import Sequence

from mixmoe.errors import ArgumentError
from mixmoe.output.tables import Table, body

_ROWS_PER_FLOAT = 40

_PREAMBLE = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"

_CHARACTERS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"$\sim$",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': r"{''}",
    "'": r"{'}",
    "-": r"{-}",
    "[": r"{[}",
    "]": r"{]}",
    "*": r"{*}",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "œ": r"\oe{}",
    "Œ": r"\OE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "ı": r"\i{}",
    "−": r"$-$",
    "–": r"--",
    "—": r"---",
    "‘": r"{`}",
    "’": r"{'}",
    "“": r"{``}",
    "”": r"{''}",
    "…": r"\dots{}",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≠": r"$\neq$",
    "≈": r"$\approx$",
    "∞": r"$\infty$",
    "→": r"$\rightarrow$",
    "°": r"$^{\circ}$",
    "²": r"$^2$",
    "³": r"$^3$",
    "¹": r"$^1$",
    "µ": r"$\mu$",
    "ς": r"$\varsigma$",
    "√": r"$\surd$",
    "§": r"\S{}",
    "£": r"\pounds{}",
    "©": r"\copyright{}",
}

_ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0304": "=",
    "\u0306": "u",
    "\u0307": ".",
    "\u0308": '"',
    "\u030a": "r",
    "\u030b": "H",
    "\u030c": "v",
    "\u0327": "c",
}

_GREEK_AS_LATIN = {"omicron": "o", "Alpha": "A", "Beta": "B", "Epsilon": "E", "Zeta": "Z", "Eta": "H", "Iota": "I"}
_GREEK_AS_LATIN |= {"Kappa": "K", "Mu": "M", "Nu": "N", "Omicron": "O", "Rho": "P", "Tau": "T", "Chi": "X"}


def latex(
    tables: Sequence[Table],
    caption: str | None = None,
    label: str | None = None,
    notes: Sequence[str] = (),
    standalone: bool = False,
) -> str:
    """A ``table`` environment that needs only the package booktabs; every text is escaped.

    Parameters
    ----------
    tables : sequence of Table
        Consecutive tables with the same columns become panels of one tabular. More rows than fit on a page continue in
        further ``table`` environments.
    caption : str, optional
    label : str, optional
        For cross-references; letters, digits and ``: _ . / + -``.
    notes : sequence of str
        Printed below the last tabular.
    standalone : bool
        A whole document instead of a fragment.

    Returns
    -------
    str

    Raises
    ------
    ArgumentError
        If the label has other characters or the caption is no text.
    """
    if caption is not None and not isinstance(caption, str):
        raise ArgumentError(f"caption must be text, got {caption!r}")
    if label is not None and not (isinstance(label, str) and re.fullmatch(r"[A-Za-z0-9:_./+-]+", label)):
        raise ArgumentError(f"label may have letters, digits and any of : _ . / + -, got {label!r}")
    floats = _floats(tables)
    text = "\n".join(
        _float(
            part,
            escape(caption or "") + (" (continued)" if i and caption else ""),
            label if i == 0 else None,
            notes if i == len(floats) - 1 else (),
        )
        for i, part in enumerate(floats)
    )
    return f"{_PREAMBLE}{text}\\end{{document}}\n" if standalone else text


def escape(value: str) -> str:
    """The text in ASCII that LaTeX prints literally.

    Parameters
    ----------
    value : str

    Returns
    -------
    str
        Characters that LaTeX's own fonts lack are printed as ``[U+4E2D]``.
    """
    return "".join(_character(c) for c in " ".join(unicodedata.normalize("NFC", value).split()))


def _character(c: str) -> str:
    if c in _CHARACTERS:
        return _CHARACTERS[c]
    if " " <= c <= "~":
        return c
    if unicodedata.category(c)[0] == "C":
        return " "
    greek = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", unicodedata.name(c, ""))
    if greek:
        return _greek(greek[2].lower() if greek[1] == "SMALL" else greek[2].capitalize())
    base, *marks = list(unicodedata.normalize("NFD", c))
    if len(marks) == 1 and marks[0] in _ACCENTS and base.isascii():
        letter = rf"\{base}" if base in "ij" else base
        return rf"\{_ACCENTS[marks[0]]}{{{letter}}}"
    return f"{{[}}U+{ord(c):04X}{{]}}"


def _greek(name: str) -> str:
    name = {"lamda": "lambda", "Lamda": "Lambda", "Upsilon": "Upsilon"}.get(name, name)
    return f"${_GREEK_AS_LATIN[name]}$" if name in _GREEK_AS_LATIN else f"$\\{name}$"


def _floats(tables: Sequence[Table]) -> list[list[Table]]:
    """Tables gathered into floats of at most `_ROWS_PER_FLOAT` rows, long tables cut."""
    floats: list[list[Table]] = [[]]
    room = _ROWS_PER_FLOAT
    for table in tables:
        for piece in _pieces(table):
            if len(piece.index) > room and floats[-1]:
                floats.append([])
                room = _ROWS_PER_FLOAT
            floats[-1].append(piece)
            room -= len(piece.index) + 2
    return floats


def _pieces(table: Table) -> list[Table]:
    """The table cut into parts that fit on a page."""
    cuts = range(0, max(len(table.index), 1), _ROWS_PER_FLOAT)
    last = cuts[-1]
    return [
        Table(
            key=table.key,
            title=table.title + (" (continued)" if i else ""),
            columns=table.columns,
            index=table.index[i : i + _ROWS_PER_FLOAT],
            cells=table.cells[i : i + _ROWS_PER_FLOAT],
            formats=table.formats,
            notes=table.notes if i == last else (),
        )
        for i in cuts
    ]


def _float(tables: Sequence[Table], caption: str, label: str | None, notes: Sequence[str]) -> str:
    groups: list[list[Table]] = []
    for table in tables:
        if groups and groups[-1][-1].columns == table.columns:
            groups[-1].append(table)
        else:
            groups.append([table])
    lines = [r"\begin{table}[htbp]", r"\centering"]
    lines += [rf"\caption{{{caption}}}", r"\medskip"] if caption else []
    lines += [rf"\label{{{label}}}"] if label else []
    lines += [r"\small", r"\setlength{\tabcolsep}{4pt}"]
    lines += ["\n\\medskip\n\n".join(_tabular(group) for group in groups)]
    remarks = [escape(note) for table in tables for note in table.notes] + [escape(note) for note in notes]
    if remarks:
        lines += [
            "",
            r"\medskip",
            r"\begin{minipage}{\linewidth}\footnotesize",
            " \\par\n".join(remarks),
            r"\end{minipage}",
        ]
    return "\n".join([*lines, r"\end{table}", ""])


def _tabular(tables: Sequence[Table]) -> str:
    """One tabular whose panels are the tables."""
    width = len(tables[0].columns) + 1
    sides = "".join("l" if spec == "text" else "r" for spec in tables[0].formats)
    lines = [rf"\begin{{tabular}}{{l{sides}}}", r"\toprule"]
    if any(tables[0].columns):
        lines += [" & ".join(["", *(escape(_with_minus(c)) for c in tables[0].columns)]) + r" \\", r"\midrule"]
    for i, table in enumerate(tables):
        lines += [r"\addlinespace"] if i else []
        lines += [rf"\multicolumn{{{width}}}{{l}}{{\textit{{{escape(table.title)}}}}} \\"] if table.title else []
        lines += [_row(name, cells) for name, cells in zip(table.index, body(table), strict=True)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _row(name: str, cells: Sequence[str]) -> str:
    return " & ".join([escape(name), *(_number(cell) for cell in cells)]) + r" \\"


def _number(cell: str) -> str:
    """A cell with true minus signs if it is a number or begins with one, as a range or limits do."""
    return escape(_with_minus(cell) if re.match(r"-?(\d|inf|nan)", cell) else cell)


def _with_minus(text: str) -> str:
    """The text with the sign of negative numbers in place of their hyphens; those of dates and exponents stay."""
    return re.sub(r"(?<![\w.)])-(?=\d|inf)", "−", text)
