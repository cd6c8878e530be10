"""Joint Wald tests of the terms of a formula over all experts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mixmoe._typing import Array
from mixmoe.design.design import Design, column_terms
from mixmoe.inference.uncertainty import ParamCov
from mixmoe.inference.wald import InvalidTest, WaldTest, parse_hypotheses, wald_test
from mixmoe.mixture.estimate import Block, ParamLayout
from mixmoe.output.names import NO_NAMES, Names
from mixmoe.output.records import Cell, Table
from mixmoe.output.summary import Printed

Found = WaldTest | InvalidTest
Owners = Mapping[Block, Mapping[str, str]]
_TITLES: Mapping[Block, str] = {
    "fixed": "Terms",
    "expert": "Terms of the experts, all experts together",
    "common": "Terms that the experts share",
    "gate": "Terms of the gate, all log odds together",
}


@dataclass(frozen=True, slots=True)
class TermTest:
    """The tests of one term.

    Attributes
    ----------
    block : {"fixed", "expert", "common", "gate"}
    term : str
        As in the formula; a category has all its columns.
    zero : WaldTest or InvalidTest
        All its coefficients are zero.
    equal : WaldTest, InvalidTest or None
        The experts have the same; None where there is nothing to compare.
    """

    block: Block
    term: str
    zero: Found
    equal: Found | None


@dataclass(frozen=True, slots=True, repr=False)
class TermTests(Printed):
    """Joint tests of every term.

    Attributes
    ----------
    tests : tuple of TermTest
    cov_type : str
    shown_names : Names
        Of terms, as `labelled` gave them.
    notes : tuple of str
        What else a reader must know.
    """

    tests: tuple[TermTest, ...]
    cov_type: str
    shown_names: Names = NO_NAMES
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Heading above the tables."""
        return "Wald tests of the terms"

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is tested by which covariance, and why a test is missing."""
        about = f"{'F' if self._with_f else 'Chi-squared'} tests with the {self.cov_type} covariance"
        mixture = any(test.block != "fixed" for test in self.tests)
        about += "; they do not depend on the order of the experts." if mixture else "."
        found = [(test.term, one) for test in self.tests for one in (test.zero, test.equal)]
        reasons = [f"{term}: {one.reason}." for term, one in found if isinstance(one, InvalidTest)]
        return (about, *dict.fromkeys(reasons), *self.notes)

    @property
    def _with_f(self) -> bool:
        """Whether statistics are F."""
        return any(isinstance(t.zero, WaldTest) and t.zero.distribution == "F" for t in self.tests)

    def to_frame(self) -> pd.DataFrame:
        """One row per term.

        Returns
        -------
        DataFrame
            Columns: block, term, df, statistic, p_value (all its coefficients are zero), df_equal, statistic_equal,
            p_value_equal (the experts have the same), df_resid (denominator of an F, infinite for chi-squared); NaN
            where there is no such test.
        """
        rows = [
            {"block": t.block, "term": t.term, **_numbers(t.zero, ""), **_numbers(t.equal, "_equal")}
            | {"df_resid": t.zero.df_resid if isinstance(t.zero, WaldTest) else np.nan}
            for t in self.tests
        ]
        return pd.DataFrame(rows)

    def tables(self) -> tuple[Table, ...]:
        """One table each for the terms of the experts, the shared ones, and those of the gate."""
        made = (self._table(block) for block in _TITLES)
        return tuple(table for table in made if table.index)

    def _table(self, block: Block) -> Table:
        chosen = [test for test in self.tests if test.block == block]
        compared = any(test.equal is not None for test in chosen)
        if self._with_f:  # one expert: there is nothing to compare
            of_f = tuple(_cells_of_f(t.zero) for t in chosen)
            index, of_columns = tuple(t.term for t in chosen), (".4g", "num", ".1f", "p")
            return Table(block, _TITLES[block], ("Zero: F", "df", "df2", "p"), index, of_f, of_columns)
        heads = ("Zero: chi2", "df", "p", *(("Equal: chi2", "df", "p") if compared else ()))
        cells = [(*_cells(t.zero), *(_cells(t.equal) if compared else ())) for t in chosen]
        formats = (".4g", "num", "p") * (2 if compared else 1)
        return Table(block, _TITLES[block], heads, tuple(t.term for t in chosen), tuple(cells), formats)


def owners_of(design: Design) -> dict[Block, dict[str, str]]:
    """The term of each column of the parts ``"expert"`` and ``"gate"`` of a design."""
    return {
        "expert": dict(zip(design.names.expert, column_terms(design, "expert"), strict=True)),
        "gate": dict(zip(design.names.gate, column_terms(design, "gate"), strict=True)),
    }


def term_tests(owners: Owners, layout: ParamLayout, params: Array, cov: ParamCov) -> TermTests:
    """Joint tests of every term.

    Parameters
    ----------
    owners : mapping of block to mapping of str to str
        The term that each coefficient of a block belongs to.
    layout : ParamLayout
    params : ndarray, shape (P,)
    cov : ParamCov

    Returns
    -------
    TermTests
    """

    def tested(matrix: Array) -> Found:
        return wald_test(parse_hypotheses(matrix, layout.names), params, cov.matrix, layout, cov.kind, cov.moments)

    found = []
    for block, owner in owners.items():
        by_term: dict[str, list[int]] = {}  # positions of the coefficients of each term
        for i in layout.where(block):
            by_term.setdefault(owner[layout.parameters[i].term], []).append(i)
        for term, places in by_term.items():
            unit = np.eye(len(layout.parameters))
            equal = _differences(layout, places, unit) if block == "expert" else unit[:0]
            found.append(TermTest(block, term, tested(unit[places]), tested(equal) if len(equal) else None))
    return TermTests(tuple(found), cov.kind)


def _differences(layout: ParamLayout, places: Sequence[int], unit: Array) -> Array:
    """Coefficients of each later expert minus those of the first, shape (R, P)."""
    first = {layout.parameters[i].term: i for i in places if layout.parameters[i].expert == 1}
    later = [i for i in places if layout.parameters[i].expert != 1]
    return np.array([unit[i] - unit[first[layout.parameters[i].term]] for i in later]).reshape(-1, unit.shape[1])


def _numbers(test: Found | None, suffix: str) -> dict[str, float]:
    values = (np.nan, np.nan, np.nan)
    if isinstance(test, WaldTest):
        values = (float(test.df), test.statistic, test.pvalue)
    return dict(zip((f"df{suffix}", f"statistic{suffix}", f"p_value{suffix}"), values, strict=True))


def _cells(test: Found | None) -> tuple[Cell, Cell, Cell]:
    return (test.statistic, test.df, test.pvalue) if isinstance(test, WaldTest) else (None, None, None)


def _cells_of_f(test: Found) -> tuple[Cell, ...]:
    if not isinstance(test, WaldTest):
        return (None, None, None, None)
    return (test.statistic, test.df, test.df_resid, test.pvalue)
