"""Tables as HTML without style sheets or requests."""

from collections.abc import Sequence
from html import escape

from mixmoe.output.tables import Table, body


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
    return f'<div class="mixmoe">\n{head}{"".join(_table(t) for t in tables)}{foot}</div>'


def _table(table: Table) -> str:
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
