"""Tables as LaTeX that fits the text of an article."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from mixmoe.errors import ArgumentError
from mixmoe.output.records import Table, body
from mixmoe.output.text import broken_lines, given_way, indentation, least_widths, shown_rows, side_by_side

_TEXT_POINTS = 343.0  # of the 345 of an article at 10 pt
_PAGE_POINTS = 540.0  # of the 550 of its height
_CAPTION_LINE, _NOTE_LINE, _SKIP = 12.0, 9.5, 8.0  # points of lines in normal and footnote size, of a medskip
_RULES, _PANEL = 14.0, 6.0  # points of the three rules of a tabular with the space around them, of that of a panel
_LABEL_POINTS = 90.0  # that row labels and columns of words keep when a table is too wide
_LEAST_POINTS = 10.0  # that a column by itself keeps
# Points of characters of Computer Modern at 9 pt, rounded up; a character that the fonts lack is printed as [U+4E2D].
_POINTS = (
    ("ijl.,:;|'![]`", 3.0),
    ("frst()- ", 3.8),
    ("0123456789aceovyz*?/", 4.8),
    ("bdhknpqux", 5.3),
    ("mw@%&=+<>~^−ABCDEFGHIJKLNOPQRSTUVXYZ", 7.9),
    ("MW", 9.7),
    ("_", 5.0),
)
_OTHER_POINTS = 40.0
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


@dataclass(frozen=True, slots=True)
class _Type:
    """A size of type: LaTeX's command, its share of 9 pt, points beside each column and from line to line."""

    command: str
    share: float
    sep: int
    line: float

    def width(self, value: str) -> float:
        """Width of a text in points in Computer Modern, rather too much than too little."""
        return self.share * sum(next((points for those, points in _POINTS if c in those), _OTHER_POINTS) for c in value)


_TYPES = (_Type(r"\small", 1.0, 4, 11.0), _Type(r"\footnotesize", 8 / 9, 3, _NOTE_LINE))


@dataclass(slots=True)
class _Page:
    """What goes into one float: tables, the notes below them, and the points that are left."""

    left: float
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
        Consecutive tables with the same columns become panels of one tabular. Rows and notes that do not fit on a page
        of an article continue in further ``table`` environments.
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
    size, pages = _pages(tables, caption or "", notes)
    groups = [group for page in pages for group in _alike(page.tables)]
    width = max((_points_of(group, size) for group in groups), default=0.0) if len(groups) > 1 else None
    text = "\n".join(
        _float(
            page,
            size,
            width,
            latex_escape(caption or "") + (" (continued)" if i and caption else ""),
            label if i == 0 else None,
        )
        for i, page in enumerate(pages)
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


def _pages(tables: Sequence[Table], caption: str, notes: Sequence[str]) -> tuple[_Type, list[_Page]]:
    """Tables, wide ones cut, and notes gathered into floats that a page can hold.

    In the type that cuts the fewest tables and breaks the fewest row labels, the largest of those that are equal. A
    table that one page can hold is not parted, nor a note; the notes of a table stand in its float if they can.
    """
    tried = [(size, _parts(tables, size)) for size in _TYPES]
    size, parts = min(tried, key=lambda each: (len(each[1]), _n_broken_labels(*each)))
    height = _PAGE_POINTS - (2 * _SKIP + _CAPTION_LINE * _n_lines(f"Table 10: {caption} (continued)", 10 / 9))
    pages = [_Page(height)]

    def put(note: str) -> None:
        points = _NOTE_LINE * _n_lines(note, 8 / 9)
        first = 0.0 if pages[-1].notes else _SKIP
        if points + first > pages[-1].left:
            pages.append(_Page(height))
        pages[-1].notes.append(note)
        pages[-1].left -= points + first

    for part in parts:
        room = _room([other for other in parts if other.columns == part.columns], size)
        for piece, points, head in _pieces(part, room, size, height):
            below = sum(_NOTE_LINE * _n_lines(note, 8 / 9) for note in piece.notes)
            panel = bool(pages[-1].tables) and pages[-1].tables[-1].columns == piece.columns
            if points + below + (_PANEL if panel else head) > pages[-1].left and pages[-1].tables:
                pages.append(_Page(height))
                panel = False
            pages[-1].tables.append(piece)
            pages[-1].left -= points + (_PANEL if panel else head)
            for note in piece.notes:
                put(note)
    for note in notes:
        put(note)
    return size, pages


def _n_lines(text: str, share: float) -> int:
    """Lines that a paragraph takes in type of so many times 9 points."""
    measure = replace(_TYPES[0], share=share).width
    return len(broken_lines(text, _TEXT_POINTS, measure, indent=False))


def _parts(tables: Sequence[Table], size: _Type) -> list[Table]:
    """The tables, those that are too wide cut into as many columns as fit beside one another."""
    parts: list[Table] = []
    for table in tables:
        least = _least([t for t in tables if t.columns == table.columns], size)
        parts += side_by_side(table, least, _TEXT_POINTS)
    return parts


def _n_broken_labels(size: _Type, tables: Sequence[Table]) -> int:
    """Row labels that go over several lines."""
    groups = [[t for t in tables if t.columns == heads] for heads in dict.fromkeys(t.columns for t in tables)]
    return sum(
        size.width(row[0]) > _room(group, size)[0] + 1e-6 for group in groups for t in group for row in shown_rows(t)
    )


def _points(tables: Sequence[Table], size: _Type) -> list[float]:
    """Widths of row labels and columns of tables with the same heads, space between columns included."""
    rows = [row for table in tables for row in shown_rows(table)]
    return [max(map(size.width, column)) + 2 * size.sep for column in zip(*rows, strict=True)]


def _least(tables: Sequence[Table], size: _Type) -> list[float]:
    """What row labels and columns keep of these widths; a cell that is wider than the text is broken."""
    least = least_widths(tables, size.width, _LABEL_POINTS, _LABEL_POINTS)
    return [min(w + 2 * size.sep, _TEXT_POINTS) for w in least]


def _points_of(tables: Sequence[Table], size: _Type) -> float:
    """Width of a tabular of these tables, whose titles it must hold."""
    columns = sum(_room(tables, size)) + 2 * size.sep * (len(tables[0].columns) + 1)
    titles = max(size.width(table.title) for table in tables) + 2 * size.sep
    return min(max(columns, titles), _TEXT_POINTS)


def _alike(tables: Sequence[Table]) -> list[list[Table]]:
    """Consecutive tables with the same heads together: the panels of one tabular."""
    groups: list[list[Table]] = []
    for table in tables:
        if groups and groups[-1][-1].columns == table.columns:
            groups[-1].append(table)
        else:
            groups.append([table])
    return groups


def _pieces(table: Table, room: Sequence[float], size: _Type, height: float) -> Iterator[tuple[Table, float, float]]:
    """The table cut where a page is full, each part with the points of its rows and of the head above them."""
    lines = [
        max(len(_lines(value, w, size, indent=i > 0)) for value, w in zip(row, room, strict=True))
        for i, row in enumerate(shown_rows(table))
    ]
    head, title = (
        _RULES + _SKIP + size.line * lines[0],
        size.line * _n_lines(table.title, size.share) * bool(table.title),
    )
    first, points = 0, title
    for i, n in enumerate(lines[1:]):
        if points + n * size.line > height - head and i > first:
            yield _rows_of(table, first, i), points, head
            first, points = i, title
        points += n * size.line
    yield _rows_of(table, first, len(table.index)), points, head


def _rows_of(table: Table, first: int, end: int) -> Table:
    """Some rows of a table; its notes stand below the last."""
    return replace(
        table,
        title=table.title + (" (continued)" if first else ""),
        index=table.index[first:end],
        cells=table.cells[first:end],
        notes=table.notes if end == len(table.index) else (),
    )


def _float(page: _Page, size: _Type, width: float | None, caption: str, label: str | None) -> str:
    """One ``table`` environment; several tabulars, also of several floats, are of one width."""
    lines = [r"\begin{table}[htbp]", r"\centering"]
    lines += [rf"\caption{{{caption}}}", r"\medskip"] if caption else []
    lines += [rf"\label{{{label}}}"] if label else []
    lines += [size.command, rf"\setlength{{\tabcolsep}}{{{size.sep}pt}}"]
    lines += ["\n\\medskip\n\n".join(_tabular(group, size, width) for group in _alike(page.tables))]
    if page.notes:
        lines += [
            "",
            r"\medskip",
            r"\begin{minipage}{\linewidth}\footnotesize\sloppy",
            " \\par\n".join(map(latex_escape, page.notes)),
            r"\end{minipage}",
        ]
    return "\n".join([*lines, r"\end{table}", ""])


def _tabular(tables: Sequence[Table], size: _Type, width: float | None) -> str:
    """One tabular whose panels are the tables, stretched to the width if there is one."""
    n_columns = len(tables[0].columns) + 1
    formats = tables[0].formats
    sides = "".join("l" if spec == "text" else "r" for spec in formats)
    room = _room(tables, size)
    name, columns = "tabular", f"l{sides}"
    if width is not None:
        name, columns = "tabular*", rf"l@{{\extracolsep{{\fill}}}}{sides}"
    lines = [rf"\begin{{{name}}}{f'{{{width:.1f}pt}}' if width else ''}{{{columns}}}", r"\toprule"]
    if any(tables[0].columns):
        heads = [
            _boxed(
                c,
                w,
                size,
                lambda head: latex_escape(_with_minus(head)),
                "raggedright" if spec == "text" else "raggedleft",
            )
            for c, w, spec in zip(tables[0].columns, room[1:], formats, strict=True)
        ]
        lines += [" & ".join(["", *heads]) + r" \\", r"\midrule"]
    for i, table in enumerate(tables):
        lines += [r"\addlinespace"] if i else []
        if table.title:
            title = _boxed(table.title, _TEXT_POINTS - 2 * size.sep, size, lambda t: rf"\textit{{{latex_escape(t)}}}")
            lines += [rf"\multicolumn{{{n_columns}}}{{l}}{{{title}}} \\"]
        lines += [_latex_row(name, cells, room, size) for name, cells in zip(table.index, body(table), strict=True)]
    return "\n".join([*lines, r"\bottomrule", rf"\end{{{name}}}"])


def _room(tables: Sequence[Table], size: _Type) -> list[float]:
    """Points for the texts of row labels and columns, which give way to fit the page, as a last resort all of them."""
    formats = tables[0].formats
    widths = given_way(_points(tables, size), _least(tables, size), formats, _TEXT_POINTS)
    floor = 2 * size.sep + _LEAST_POINTS
    widths = given_way(widths, [min(w, floor) for w in widths], formats, _TEXT_POINTS)
    return [w - 2 * size.sep for w in widths]


def _boxed(value: str, room: float, size: _Type, show: Callable[[str], str], heading: str = "") -> str:
    """A text as LaTeX, in lines below one another where it is wider than the room; a heading stands on its column."""
    lines = _lines(value, room, size, indent=not heading)
    if len(lines) == 1:
        return show(value)
    shown = r"\newline ".join(indentation(line) * r"\quad " + show(line) for line in lines)
    where, side = ("b", heading) if heading else ("t", "raggedright")
    return rf"\parbox[{where}]{{{room:.1f}pt}}{{\{side} {shown}\strut}}"


def _lines(value: str, room: float, size: _Type, indent: bool) -> list[str]:
    """The text, broken where it is wider than the room."""
    if size.width(value) <= room + 1e-6:  # the sum of the same widths in another order
        return [value]
    return broken_lines(value, room, size.width, indent=indent)


def _latex_row(name: str, cells: Sequence[str], room: Sequence[float], size: _Type) -> str:
    label = indentation(name) * r"\quad " + _boxed(name, room[0], size, latex_escape)
    return " & ".join([label, *(_boxed(c, w, size, _number) for c, w in zip(cells, room[1:], strict=True))]) + r" \\"


def _number(cell: str) -> str:
    """A cell with true minus signs if it is a number or begins with one, as a range or limits do."""
    return latex_escape(_with_minus(cell) if re.match(r"-?(\d|inf|nan)", cell) else cell)


def _with_minus(text: str) -> str:
    """The text with the sign of negative numbers in place of their hyphens; those of dates and exponents stay."""
    return re.sub(r"(?<![\w.)])-(?=\d|inf)", "−", text)
