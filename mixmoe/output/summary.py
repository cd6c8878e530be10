"""The summary of a fit (header, a table per block of parameters, notes), tidy frames, printed records."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mixmoe._typing import Array
from mixmoe.atomic import PathLike, written
from mixmoe.design.frame import view
from mixmoe.errors import DroppedRowsWarning, warn
from mixmoe.inference.uncertainty import two_sided, wald_limits, wald_statistics
from mixmoe.mixture.estimate import Block, Parameter, ParamLayout
from mixmoe.output.latex import latex
from mixmoe.output.names import NO_NAMES, Names
from mixmoe.output.records import Cell, Table, in_light_of, number_format
from mixmoe.output.text import html, markdown, text

BLOCK_TITLES: dict[Block, str] = {  # in the order of the tables
    "fixed": "Coefficients",
    "common": "Coefficients common to all experts",
    "gate": "Gate (log odds against expert 1)",
    "random": "Random effects (standard deviations and correlations)",
    "residual": "Residual standard deviations",
    "dispersion": "Dispersion",
    "zeros": "Probability of a certain zero",
    "threshold": "Thresholds",
    "other": "Other parameters",
}
_SCALES_NOTE = (
    "Limits of standard deviations are computed on the log scale, limits and tests of correlations on Fisher's z scale."
)


@dataclass(frozen=True, slots=True)
class Summary:
    """Tables with a title and notes; prints as text, shows as HTML in notebooks.

    Attributes
    ----------
    title : str
    tables : tuple of Table
    notes : tuple of str
    printed : tuple of str, or None
        The notes as LaTeX and Markdown have them, see `Table.printed`; None if they are the same.
    """

    title: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()
    printed: tuple[str, ...] | None = None

    def __str__(self) -> str:
        return self.as_text()

    def __repr__(self) -> str:
        return self.as_text()

    def as_text(self) -> str:
        """The summary as plain text, for a fixed-width font."""
        return text(self.tables, self.title, self.notes)

    def as_html(self) -> str:
        """The summary as an HTML fragment."""
        return html(self.tables, self.title, self.notes)

    def as_latex(self, caption: str | None = None, label: str | None = None, standalone: bool = False) -> str:
        """The summary as LaTeX that needs only booktabs; the title is the caption unless another is given."""
        title = self.title if caption is None else caption
        return latex([t.in_print for t in self.tables], title, label, self._in_print, standalone)

    def as_markdown(self, title: bool = True) -> str:
        """The summary as Markdown, with or without its title."""
        return markdown([t.in_print for t in self.tables], self.title if title else "", self._in_print)

    @property
    def _in_print(self) -> tuple[str, ...]:
        return self.notes if self.printed is None else self.printed

    def _repr_html_(self) -> str:
        return self.as_html()


def named_summary(
    names: Names, title: str, tables: Sequence[Table], notes: Sequence[str], printed: Sequence[str] | None = None
) -> Summary:
    """A summary that shows what the user calls experts and terms."""
    if names == NO_NAMES:
        return Summary(title, tuple(tables), tuple(notes), None if printed is None else tuple(printed))
    told, in_print = (None if lines is None else tuple(map(names.prose, lines)) for lines in (notes, printed))
    return Summary(names.heading(title), tuple(map(names.table, tables)), told or (), in_print)


def header_table(facts: Sequence[tuple[str, Cell]], notes: tuple[str, ...] = ()) -> Table:
    """The header of a summary, one row per fact; facts whose value is None are left out.

    Parameters
    ----------
    facts : sequence of (str, float or int or str or None)
        Label and value.
    notes : tuple of str

    Returns
    -------
    Table
    """
    kept = [(name, value) for name, value in facts if value is not None]
    return Table(
        key="header",
        title="",
        columns=("",),
        index=tuple(name for name, _ in kept),
        cells=tuple((value,) for _, value in kept),
        formats=(".3f",),
        notes=notes,
    )


def parameter_tables(
    layout: ParamLayout, frame: pd.DataFrame, shares: Array, alpha: float = 0.05, scarce: bool = False
) -> tuple[Table, ...]:
    """A table per expert and per block, in the order expert, common, gate, random, residual and further ones.

    Parameters
    ----------
    layout : ParamLayout
    frame : DataFrame
        As `tidy` makes it, with limits at level 1 - `alpha`.
    shares : ndarray, shape (K,)
        Mean probability of each expert, printed in the titles.
    alpha : float
    scarce : bool
        Whether standard errors may be missing because subjects or clusters are few.

    Returns
    -------
    tuple of Table
    """
    tables = []
    for k, share in enumerate(shares, 1):
        title = "Coefficients" if len(shares) == 1 else f"Expert {k} (mean probability {share:.3f})"
        tables.append((f"expert{k}", title, layout.where("expert", k)))
    for block, title in BLOCK_TITLES.items():
        where = layout.where(block)
        # Errors that are correlated or have tails have more parameters than standard deviations.
        further = block == "residual" and any(layout.parameters[i].term != "sigma" for i in where)
        tables.append((block, "Residuals" if further else title, where))
    return tuple(block_table(*table, layout, frame, alpha, scarce) for table in tables if table[2])


def block_table(
    key: str,
    title: str,
    positions: Sequence[int],
    layout: ParamLayout,
    frame: pd.DataFrame,
    alpha: float = 0.05,
    scarce: bool = False,
) -> Table:
    """A table of some of the parameters.

    Parameters
    ----------
    key, title : str
    positions : sequence of int
        Which parameters, by position.
    layout : ParamLayout
    frame : DataFrame
        As `tidy` makes it, with limits at level 1 - `alpha`.
    alpha, scarce
        As of `parameter_tables`.

    Returns
    -------
    Table
    """
    parameters = [layout.parameters[i] for i in positions]
    n_experts = max((p.expert or 1 for p in layout.parameters), default=1)
    limits = (f"[{alpha / 2:.3g}", f"{1 - alpha / 2:.3g}]")
    with_t = bool(np.isfinite(frame["df"]).any())
    names = ["estimate", "std_error", "statistic", *(["df"] if with_t else []), "p_value", "conf_low", "conf_high"]
    heads = ("t", "df", "P>|t|") if with_t else ("z", "P>|z|")
    numbers = frame[names].to_numpy(dtype=float, copy=True)
    numbers[:, 0] = [in_light_of(value, error) for value, error in numbers[:, :2]]
    shown = number_format(numbers[list(positions), 1])
    return Table(
        key=key,
        title=title,
        columns=("Estimate", "Std. Err.", *heads, *limits),
        index=tuple(_row_label(p, key, n_experts) for p in parameters),
        cells=tuple(tuple(None if np.isnan(v) else float(v) for v in numbers[i]) for i in positions),
        formats=(shown, shown, ".3f", *(["df"] if with_t else []), "p", shown, shown),
        notes=_block_notes(key, parameters, numbers[list(positions), 1], n_experts, scarce),
    )


def _row_label(parameter: Parameter, key: str, n_experts: int) -> str:
    if n_experts == 1 or parameter.expert is None or key == f"expert{parameter.expert}":
        return parameter.term
    return f"expert {parameter.expert}: {parameter.term}"


def _block_notes(
    key: str, parameters: Sequence[Parameter], errors: Array, n_experts: int, scarce: bool
) -> tuple[str, ...]:
    """Notes that explain blank cells, and on which scale limits were computed where it is not that of the estimates."""
    blank = [_row_label(p, "", n_experts) for p, se in zip(parameters, errors, strict=True) if np.isnan(se)]
    reason = "on the boundary or not identified"
    if scarce:
        reason = "too few subjects or clusters tell them apart, on the boundary, or not identified; see the notes below"
    if blank and len(blank) == len(parameters):
        return (f"No valid standard errors for {', '.join(blank)}: {reason}.",)
    notes = [f"No valid standard error for {', '.join(blank)}: {reason}."] if blank else []
    if key == "random":
        return (*notes, _SCALES_NOTE)
    for scale, words in (("log", "the log scale"), ("atanh", "Fisher's z scale"), ("logit", "log odds")):
        terms = dict.fromkeys(p.term for p in parameters if p.scale == scale and p.term != "sigma")
        if terms:
            what = "Limits and tests" if scale == "atanh" else "Limits"
            notes.append(f"{what} of {', '.join(terms)} are computed on {words}.")
    return tuple(notes)


class Printed:
    """What a record of results offers once it has `tables`, a `title` and `remarks`.

    A record that speaks of experts or terms has a field `shown_names`, which the fit that made it fills in.
    """

    __slots__ = ()
    shown_names: Names = NO_NAMES

    @property
    def title(self) -> str:
        """Heading above the tables."""
        return ""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader must know, printed below the tables."""
        return ()

    @property
    def printed_remarks(self) -> tuple[str, ...]:
        """The remarks as LaTeX and Markdown have them: without what can be done about it."""
        return self.remarks

    def tables(self) -> tuple[Table, ...]:
        """The tables of the record."""
        return ()

    def summary(self) -> Summary:
        """Title, tables and remarks; has as_text(), as_html(), as_latex(), as_markdown()."""
        return named_summary(self.shown_names, self.title, self.tables(), self.remarks, self.printed_remarks)

    def __str__(self) -> str:
        return self.summary().as_text()

    def __repr__(self) -> str:
        return self.summary().as_text()  # what a console shows of a record is what it is asked for

    def _repr_html_(self) -> str:
        return self.summary().as_html()

    def to_latex(
        self,
        path: PathLike | None = None,
        caption: str | None = None,
        label: str | None = None,
        standalone: bool = False,
    ) -> str:
        """The tables as LaTeX that needs only the package booktabs.

        Parameters
        ----------
        path : path-like, optional
            File to write.
        caption, label : str, optional
            A caption is printed as it is, dollar signs and backslashes too; for mathematics put a word in its place and
            replace it in what comes back, as in ``fit.to_latex(caption="Courses of FEV").replace("FEV", "FEV$_1$")``.
        standalone : bool
            A whole document instead of a fragment.

        Returns
        -------
        str
        """
        return written(self.summary().as_latex(caption, label, standalone), path)

    def to_markdown(self, path: PathLike | None = None) -> str:
        """The tables as Markdown, also in a file if there is a path."""
        return written(self.summary().as_markdown(), path)


def tidy(
    layout: ParamLayout, params: Array, bse: Array, alpha: float = 0.05, df: Array | float = np.inf
) -> pd.DataFrame:
    """One row per parameter.

    Parameters
    ----------
    layout : ParamLayout
    params, bse : ndarray, shape (P,)
    alpha : float
        One minus the level of the limits.
    df : ndarray, shape (P,), or float
        Degrees of freedom of t statistics and limits; infinite for normal ones.

    Returns
    -------
    DataFrame
        Index: full parameter names. Columns: term, block, expert (missing if shared), estimate, std_error, statistic
        and p_value (missing where zero is no meaningful hypothesis), conf_low, conf_high, df.
    """
    limits = wald_limits(params, bse, layout, alpha, df)
    statistic = wald_statistics(params, bse, layout)
    return pd.DataFrame(
        {
            "term": [p.term for p in layout.parameters],
            "block": [p.block for p in layout.parameters],
            "expert": pd.array([p.expert for p in layout.parameters], dtype="Int64"),
            "estimate": params.copy(),
            "std_error": bse.copy(),
            "statistic": statistic,
            "p_value": two_sided(statistic, df),
            "conf_low": limits.lower,
            "conf_high": limits.upper,
            "df": np.broadcast_to(df, params.shape).astype(float),
        },
        index=pd.Index(layout.names, name="name"),
    )


def row_labels(new: Any, n_rows: int) -> pd.Index:
    """Labels of the rows of a user's frame."""
    return new.index if isinstance(new, pd.DataFrame) else pd.RangeIndex(n_rows)


def proportions_table(shares: pd.DataFrame, alpha: float) -> Table:
    """The table of the mean probabilities of the experts.

    Parameters
    ----------
    shares : DataFrame
        As `MoEResults.proportions` makes it at this level.
    alpha : float
    """
    return Table(
        key="proportions",
        title="Expert proportions (mean gate probability)",
        columns=("Estimate", "Std. Err.", f"[{alpha / 2:.3g}", f"{1 - alpha / 2:.3g}]"),
        index=tuple(f"expert {k + 1}" for k in range(len(shares))),
        cells=tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in shares.to_numpy()),
        formats=("num", "num", "num", "num"),
    )


def nothing_predicted(new: Any, names: Sequence[str], why: Exception) -> pd.DataFrame:
    """NaN in all rows, with the warning that rows left out have."""
    warn(f"no row can be predicted: {why}", DroppedRowsWarning)
    return pd.DataFrame(np.nan, index=row_labels(new, view(new).n_rows), columns=list(names))
