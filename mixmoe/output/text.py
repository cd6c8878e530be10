"""Tables as plain text in the manner of statsmodels, as Markdown, HTML and LaTeX."""

import re
import unicodedata
from collections.abc import Sequence
from html import escape

from mixmoe.errors import ArgumentError
from mixmoe.output.records import Table, body

_GAP = 2
_WIDTH = 78


def text(tables: Sequence[Table], title: str = "", notes: Sequence[str] = ()) -> str:
    """All tables below one another, at one width.

    Parameters
    ----------
    tables : sequence of Table
        The one with key ``"header"`` is printed as two columns of label and value.
    title : str
    notes : sequence of str
        Printed at the end, numbered.

    Returns
    -------
    str
    """
    widths = _widths(tables)
    blocks = [(t, _header_lines(t) if t.key == "header" else _lines(t, widths[t.columns])) for t in tables]
    width = max([_WIDTH, *(_columns(line) for _, lines in blocks for line in lines)])
    parts = [_centred(title, width)] if title else []
    for table, lines in blocks:
        parts += _framed(table, lines, width)
    parts.append("=" * width)
    parts += [line for table in tables for note in table.notes for line in _wrapped(note, "", width)]
    parts += [line for i, note in enumerate(notes, 1) for line in _wrapped(note, f"[{i}] ", width)]
    return "\n".join(parts)


def _framed(table: Table, lines: list[str], width: int) -> list[str]:
    """Lines of one table with its title and rules."""
    if table.key == "header":
        return ["=" * width, *lines]
    return ["=" * width, _centred(table.title, width), "-" * width, lines[0], "-" * width, *lines[1:]]


def _rows(table: Table) -> list[tuple[str, ...]]:
    """Head and rows of a table as texts of one line."""
    rows = [("", *table.columns), *((name, *row) for name, row in zip(table.index, body(table), strict=True))]
    return [tuple(_one_line(cell) for cell in row) for row in rows]


def _widths(tables: Sequence[Table]) -> dict[tuple[str, ...], list[int]]:
    """Widths of the columns, shared by tables with the same heads."""
    widths: dict[tuple[str, ...], list[int]] = {}
    for table in tables:
        for row in _rows(table):
            known = widths.setdefault(table.columns, [0] * len(row))
            widths[table.columns] = [max(w, _columns(cell)) for w, cell in zip(known, row, strict=True)]
    return widths


def _lines(table: Table, widths: list[int]) -> list[str]:
    """Head and rows of a table, labels to the left and cells to the right."""
    lines = []
    for name, *cells in _rows(table):
        padded = [
            " " * _GAP + _padded(cell, width, right=spec != "text")
            for cell, width, spec in zip(cells, widths[1:], table.formats, strict=True)
        ]
        lines.append((_padded(name, widths[0]) + "".join(padded)).rstrip())
    return lines


def _header_lines(table: Table) -> list[str]:
    """Label and value twice per line; the formula and values too long for half a line get their own."""
    half = _WIDTH // 2 - 1
    pairs = [(_one_line(f"{label}:"), _one_line(row[0])) for label, row in zip(table.index, body(table), strict=True)]
    long = [(a, b) for a, b in pairs if a == "Formula:" or _columns(a) + _columns(b) + _GAP > half]
    short = [pair for pair in pairs if pair not in long]
    indent = max([_columns(a) for a, _ in long], default=0) + _GAP
    lines = [_padded(a, indent) + b for a, b in long]
    left, right = short[: (len(short) + 1) // 2], short[(len(short) + 1) // 2 :]
    for i, (a, b) in enumerate(left):
        line = a + _padded(b, half - _columns(a), right=True)
        if i < len(right):
            line += "  " + right[i][0] + _padded(right[i][1], half - _columns(right[i][0]), right=True)
        lines.append(line)
    return lines


def _one_line(value: str) -> str:
    """The value without line breaks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())


def _columns(value: str) -> int:
    """Places that a text takes on a terminal."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in value)


def _padded(value: str, width: int, right: bool = False) -> str:
    fill = " " * max(width - _columns(value), 0)
    return fill + value if right else value + fill


def _centred(value: str, width: int) -> str:
    return (" " * max((width - _columns(_one_line(value))) // 2, 0)) + _one_line(value)


def _wrapped(note: str, mark: str, width: int) -> list[str]:
    """A note broken at blanks, later lines indented below the first."""
    lines, line = [], mark
    for word in _one_line(note).split(" "):
        if _columns(line) + _columns(word) + 1 > width and line.strip():
            lines.append(line.rstrip())
            line = " " * len(mark)
        line += word + " "
    return [*lines, line.rstrip()]


_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~#&$])")


def markdown(tables: Sequence[Table], title: str = "", notes: Sequence[str] = ()) -> str:
    """Pipe tables below one another; every text is escaped.

    Parameters
    ----------
    tables : sequence of Table
    title : str
    notes : sequence of str

    Returns
    -------
    str
    """
    head = [f"**{_escaped(title)}**"] if title else []
    foot = ["\n".join(f"- {_escaped(note)}" for note in notes)] if notes else []
    return "\n\n".join([*head, *(_markdown_table(t) for t in tables), *foot]) + "\n"


def _markdown_table(table: Table) -> str:
    head = ["", *(_escaped(c) for c in table.columns)]
    rule = [":---", *(":---" if spec == "text" else "---:" for spec in table.formats)]
    rows = [
        [_escaped(label), *(_escaped(cell) for cell in cells)]
        for label, cells in zip(table.index, body(table), strict=True)
    ]
    lines = ["| " + " | ".join(row) + " |" for row in [head, rule, *rows]]
    title = [f"**{_escaped(table.title)}**", ""] if table.title else []
    notes = ["", *(_escaped(note) for note in table.notes)] if table.notes else []
    return "\n".join([*title, *lines, *notes])


def _escaped(value: str) -> str:
    """The text with a backslash before each character that Markdown reads."""
    return _SPECIAL.sub(r"\\\1", " ".join(value.split()))


def html(tables: Sequence[Table], title: str = "", notes: Sequence[str] = ()) -> str:
    """A fragment with one ``<table>`` per table; every text is escaped.

    Parameters
    ----------
    tables : sequence of Table
    title : str
    notes : sequence of str

    Returns
    -------
    str
    """
    head = f"<h4>{escape(title)}</h4>\n" if title else ""
    lines = "".join(f"<li>{escape(note)}</li>\n" for note in notes)
    foot = f'<ul class="mixmoe-notes">\n{lines}</ul>\n' if notes else ""
    return f'<div class="mixmoe">\n{head}{"".join(_html_table(t) for t in tables)}{foot}</div>'


def _html_table(table: Table) -> str:
    caption = f"<caption>{escape(table.title)}</caption>\n" if table.title else ""
    sides = ["left" if spec == "text" else "right" for spec in table.formats]
    heads = "".join(
        f'<th scope="col" style="text-align:{side}">{escape(c)}</th>'
        for c, side in zip(table.columns, sides, strict=True)
    )
    head = f"<thead><tr><td></td>{heads}</tr></thead>\n" if any(table.columns) else ""
    rows = "".join(_row(label, cells, sides) for label, cells in zip(table.index, body(table), strict=True))
    notes = "".join(f"<p><small>{escape(note)}</small></p>\n" for note in table.notes)
    return f"<table>\n{caption}{head}<tbody>\n{rows}</tbody>\n</table>\n{notes}"


def _row(label: str, cells: Sequence[str], sides: Sequence[str]) -> str:
    values = "".join(
        f'<td style="text-align:{side}">{escape(cell)}</td>' for cell, side in zip(cells, sides, strict=True)
    )
    return f'<tr><th scope="row" style="text-align:left">{escape(label)}</th>{values}</tr>\n'


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
            latex_escape(caption or "") + (" (continued)" if i and caption else ""),
            label if i == 0 else None,
            notes if i == len(floats) - 1 else (),
        )
        for i, part in enumerate(floats)
    )
    return f"{_PREAMBLE}{text}\\end{{document}}\n" if standalone else text


def latex_escape(value: str) -> str:
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
    remarks = [latex_escape(note) for table in tables for note in table.notes] + [latex_escape(note) for note in notes]
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
        lines += [" & ".join(["", *(latex_escape(_with_minus(c)) for c in tables[0].columns)]) + r" \\", r"\midrule"]
    for i, table in enumerate(tables):
        lines += [r"\addlinespace"] if i else []
        lines += [rf"\multicolumn{{{width}}}{{l}}{{\textit{{{latex_escape(table.title)}}}}} \\"] if table.title else []
        lines += [_latex_row(name, cells) for name, cells in zip(table.index, body(table), strict=True)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _latex_row(name: str, cells: Sequence[str]) -> str:
    return " & ".join([latex_escape(name), *(_number(cell) for cell in cells)]) + r" \\"


def _number(cell: str) -> str:
    """A cell with true minus signs if it is a number or begins with one, as a range or limits do."""
    return latex_escape(_with_minus(cell) if re.match(r"-?(\d|inf|nan)", cell) else cell)


def _with_minus(text: str) -> str:
    """The text with the sign of negative numbers in place of their hyphens; those of dates and exponents stay."""
    return re.sub(r"(?<![\w.)])-(?=\d|inf)", "−", text)
