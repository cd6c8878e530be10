"""Tables as GitHub-flavoured Markdown."""

import re
from collections.abc import Sequence

from mixmoe.output.tables import Table, body

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
    return "\n\n".join([*head, *(_table(t) for t in tables), *foot]) + "\n"


def _table(table: Table) -> str:
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
