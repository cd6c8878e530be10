"""Records that print themselves as tables."""

from mixmoe.output.summary import Summary
from mixmoe.output.tables import Table


class Printed:
    """What a record of results offers once it has `tables`, a `title` and `remarks`."""

    __slots__ = ()

    @property
    def title(self) -> str:
        """Heading above the tables."""
        return ""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader must know, printed below the tables."""
        return ()

    def tables(self) -> tuple[Table, ...]:
        """The tables of the record."""
        return ()

    def summary(self) -> Summary:
        """Title, tables and remarks; has as_text(), as_html(), as_latex(), as_markdown()."""
        return Summary(self.title, self.tables(), self.remarks)

    def __str__(self) -> str:
        return self.summary().as_text()

    def _repr_html_(self) -> str:
        return self.summary().as_html()
