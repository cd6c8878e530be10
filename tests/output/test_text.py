"""Tables as text, HTML and Markdown."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from mixmoe.errors import ArgumentError
from mixmoe.output.latex import latex
from mixmoe.output.records import Table, choose, format_cell, in_light_of, number_format
from mixmoe.output.text import broken_lines, html, markdown, text

AWKWARD = "<script>alert(1)</script> & a|b *c* `d` \\e\n_f_ \"g\" 'h'"


def table(key="one", names=("a", "b"), title="Title", notes=()):
    cells = tuple((1.5 * i, None, 0.04) for i in range(len(names)))
    return Table(key, title, ("Estimate", "z", "P>|z|"), tuple(names), cells, ("num", ".3f", "p"), tuple(notes))


@pytest.mark.parametrize(
    ("label", "width", "lines"),
    [
        ("expert 1: corr(Intercept,year)", 20, ["expert 1: corr", "  (Intercept,year)"]),
        ("expert 12: smoking[T.unknown]", 20, ["expert 12:", "  smoking[T.unknown]"]),
        ("gate: incomeclass", 18, ["gate: incomeclass"]),
        ("gate: unpunctuated_name", 20, ["gate:", "  unpunctuated_name"]),
    ],
)
def test_labels_are_broken_at_their_punctuation(label, width, lines):
    found = broken_lines(label, width)
    assert "".join(line.strip() for line in found).replace(" ", "") == label.replace(" ", "")
    assert all(len(line) <= width for line in found)
    assert found == lines


@pytest.mark.parametrize(
    ("cell", "spec", "expected"),
    [
        (None, "num", ""),
        (np.nan, "num", ""),
        (3, ".4f", "3"),
        ("text", ".4f", "text"),
        (0.0, "num", "0.0000"),
        (1.23456, "num", "1.2346"),
        (-123456.0, "num", "-1.235e+05"),
        (26.04, "df", "26.0"),
        (2230004.4, "df", "2.23e+06"),
        (np.inf, "df", "inf"),
        (1.2e-5, "num", "1.2e-05"),
        (0.001, "num", "0.0010"),  # four decimals from a thousandth to a hundred thousand
        (0.00099912, "num", "0.0009991"),
        (99999.0, "num", "99999.0000"),
        (100000.0, "num", "1e+05"),
        (0.0004, "p", "<0.001"),
        (0.0007, "p", "<0.001"),  # as R: format.pval(c(.0007, .0009999, .001, .0015), digits = 1, eps = .001)
        (0.0009999, "p", "<0.001"),
        (0.001, "p", "0.001"),
        (0.0014, "p", "0.001"),
        (0.0016, "p", "0.002"),
        (0.05, "p", "0.050"),
        (np.inf, "num", "inf"),
        (2.5, ".1f", "2.5"),
        (-0.0002, ".3f", "0.000"),
        (-0.0, "num", "0.0000"),
        (-0.0102, ".3f", "-0.010"),
        (np.float64(2.5), ".1f", "2.5"),
    ],
)
def test_cells(cell, spec, expected):
    assert format_cell(cell, spec) == expected


def test_text_columns_are_aligned():
    lines = text([table(), table("two", ("a much longer name", "ß漢字é"))], "Everything").splitlines()
    rows = [line for line in lines if line.endswith("0.040")]
    assert len(rows) == 4
    assert {display_width(line) for line in rows} == {display_width(rows[0])}
    assert lines[0].strip() == "Everything"
    assert max(map(display_width, lines)) == 78


def display_width(line):
    return sum(2 if ord(c) > 0x2E80 else 1 for c in line)


def test_a_short_formula_too_has_a_line_of_its_own_at_the_top():
    pairs = {"Rows per subject": "1 / 1 / 1 (min / median / max)", "Rows": 10, "Formula": "y ~ x"}
    header = Table("header", "", ("",), tuple(pairs), tuple((v,) for v in pairs.values()), (".3f",))
    lines = text([header]).splitlines()
    assert sum("Formula" in line for line in lines) == 1
    assert next(line for line in lines if "Formula" in line).split() == ["Formula:", "y", "~", "x"]


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (5.378e-11, 7.334e-06, "0.0000"),
        (-2.1e-14, 0.3, "0.0000"),
        (2.5e-5, 1e-5, "2.5e-05"),
        (1.23456, 0.1, "1.2346"),
        (18421.123, 5e4, "18421.1230"),
        (1.23456, np.nan, "1.2346"),
        (np.inf, 0.1, "inf"),
        (0.5, 1e-310, "0.5000"),
    ],
)
def test_estimates_show_no_digits_that_their_error_drowns(value, error, shown):
    assert format_cell(in_light_of(value, error)) == shown


@pytest.mark.parametrize(
    ("errors", "shown"),
    [
        ((1.3466,), ["-5.160", "1.347", "421.354"]),  # four digits of the least error
        ((1.3466, 0.05), ["-5.1596", "1.3466", "421.3541"]),
        ((112.0,), ["-5.2", "1.3", "421.4"]),
        ((5000.0, np.nan), ["-5", "1", "421"]),
        ((np.nan,), ["-5.1596", "1.3466", "421.3541"]),
        ((0.0,), ["-5.1596", "1.3466", "421.3541"]),
    ],
)
def test_a_table_has_the_decimals_of_its_least_error(errors, shown):
    assert [format_cell(v, number_format(errors)) for v in (-5.159614, 1.3466, 421.354054)] == shown


def test_small_numbers_beside_larger_errors_have_the_decimals_of_their_column():
    assert [format_cell(v, number_format([0.0112, 0.004])) for v in (0.0009522, 0.0112)] == ["0.0010", "0.0112"]
    assert format_cell(0.0009522, number_format([0.0002])) == "0.0009522"  # an error that small needs the digits


def test_large_numbers_with_few_decimals_have_no_exponent():
    assert format_cell(1234567.0, "num0") == "1234567"
    assert format_cell(123456.7, "num") == "1.235e+05"


def _wide(n_before):
    heads = (*(f"column {i}" for i in range(n_before)), "[0.025", "0.975]")
    return Table("a", "A", heads, ("x" * 20,), ((12345.6789,) * len(heads),), ("num",) * len(heads))


@pytest.mark.parametrize("n_before", range(1, 9))
def test_limits_stay_together(n_before):
    heads = [line for line in text([_wide(n_before)]).splitlines() if "[0.025" in line or "0.975]" in line]
    assert len(heads) == 1
    assert heads[0].split()[-2:] == ["[0.025", "0.975]"]
    tabulars = [line for line in latex([_wide(n_before)]).splitlines() if "0.975" in line]
    assert len(tabulars) == 1
    assert "0.025" in tabulars[0]


def test_text_header_is_two_columns():
    pairs = {"Rows": 10, "Subjects": 3, "Formula": "y ~ " + " + ".join(f"x{i}" for i in range(30)), "AIC": 1.23456}
    header = Table("header", "", ("",), tuple(pairs), tuple((v,) for v in pairs.values()), (".3f",))
    lines = text([header]).splitlines()
    assert lines[1].startswith("Formula:  y ~ x0")
    assert lines[2].startswith(" " * 10)  # the formula goes on
    assert re.fullmatch(r"Rows: +10 +AIC: +1.235", lines[-3])
    assert re.fullmatch(r"Subjects: +3", lines[-2])


_LONG = "C(treatment, Treatment('placebo'))[T.D-penicillamine]:bs(years_since_entry, df=4)[3]"


@pytest.mark.parametrize("n_columns", [1, 6, 14])
@pytest.mark.parametrize("label", ["x", _LONG, "x" * 200, "名" * 60])
def test_text_keeps_to_eighty_columns_and_loses_nothing(label, n_columns):
    columns = tuple(f"model number {i}" for i in range(n_columns))
    wide = Table("a", "A title", columns, (label, "  lower"), ((-1.5,) * n_columns,) * 2, ("num",) * n_columns)
    words = Table("b", "Words", ("message", "n"), ("flag",), (("many words " * 20, 3),), ("text", "num"))
    header = Table("header", "", ("",), ("Formula",), ((f"y ~ {label}",),), (".3f",))
    shown = text([header, wide, words], "Title", [f"note on {label}"])
    lines = shown.splitlines()
    assert max(sum(2 if c > "\u2e80" else 1 for c in line) for line in lines) <= 80
    assert all(len(re.findall(rf"\b{word}\b", shown)) >= n_columns for word in ("model", "number"))
    assert len(re.findall(r"-1\.50(?:00)?\b", shown)) == 2 * n_columns
    assert "many words " in shown
    assert "".join(f"note on {label}".split()) in "".join(shown.split())


def test_a_long_label_is_broken_not_cut():
    shown = text([Table("a", "", ("z",), (_LONG,), ((None,),), ("num",))])
    assert _LONG.replace(" ", "") in "".join(shown.split())


def test_numbers_that_do_not_fit_beside_one_another_stand_below():
    wide = Table("a", "T", tuple(f"model number {i}" for i in range(16)), ("x",), ((1.0,) * 16,), ("num",) * 16)
    lines = text([wide]).splitlines()
    assert sum("T (continued)" in line for line in lines) == 1
    assert [line.count("1.0000") for line in lines if line.startswith("x ")] == [8, 8]  # cut in the middle


@pytest.mark.parametrize(("n", "each"), [(9, [3, 3, 3]), (13, [4, 3, 3, 3]), (5, [5]), (11, [4, 4, 3])])
def test_tables_are_cut_evenly(n, each):
    wide = Table("a", "T", tuple(map(str, range(n))), ("x" * 20,), ((-1234.5678,) * n,), ("num",) * n)
    narrow = Table("b", "S", wide.columns, ("y",), ((0.5,) * n,), ("num",) * n)
    shown = text([wide, narrow]).splitlines()
    rows = [line.split()[1:] for line in shown if line.startswith("x" * 12)]
    assert sorted(map(len, rows), reverse=True) == each
    assert [len(line.split()[1:]) for line in shown if line.startswith("y ")] == list(map(len, rows))
    assert not any(cell.startswith("[") for row in rows for cell in row)


def _records(name):
    """Tables as the records of a fit have them, too wide for a line as they are."""
    limits = ("[0.025", "0.975]")
    if name == "pooled":
        heads = ("Estimate", "Std. Err.", "t", "df", "P>|t|", *limits)
        row = (-0.1739, 0.0698, -12.494, 6.28e5, 0.0131, -0.3107, -0.0372)
        return Table(
            "a",
            name,
            heads,
            ("expert 1: corr(Intercept,year)",),
            (row,),
            ("num", "num", ".3f", "df", "p") + ("num",) * 2,
        )
    if name == "pairwise":
        heads = ("Difference", "Std. Err.", *limits, "chi2", "df", "p")
        row = (-0.5445, 0.0545, -0.6513, -0.4377, 99.832, 1.0, 1e-9)
        return Table("a", name, heads, ("2 - 1: died = True",), (row,), ("num",) * 4 + (".3f", ".0f", "p"))
    if name == "adequacy":
        heads = ("Proportion", "Modal n", "Modal share", "Mismatch", "AvePP", "Odds correct", "Doubt")
        row = (0.5524, 170, 0.545, -0.007, 0.94, 12.345, 0.182)
        return Table("a", name, heads, ("expert 1",), (row,), (".3f", "num", ".3f", ".3f", ".3f", ".4g", ".3f"))
    heads = ("Estimate", "Std. Err.", "t", "df", "P>|t|", *limits)
    row = (-112.1739, 11.0698, -12.494, 12.3, 0.013, -134.3107, -101.0372)
    return Table("a", name, heads, ("Intercept_of_all",), (row,), ("num", "num", ".3f", "df", "p", "num", "num"))


@pytest.mark.parametrize("name", ["pooled", "pairwise", "adequacy", "large numbers"])
def test_a_table_is_not_cut_for_one_column(name):
    record = _records(name)
    lines = text([record]).splitlines()
    assert "(continued)" not in "".join(lines)
    assert max(map(len, lines)) == 78
    assert all(word in " ".join(lines) for head in record.columns for word in head.split())
    assert not any(line.endswith(" ") for line in lines)
    # Headings stand on their columns.
    last_of_head = lines[lines.index("-" * 78, 3) - 1].split()
    assert {head for head in record.columns if " " not in head} <= set(last_of_head)


def test_numbers_lose_decimals_before_a_table_is_cut_but_keep_two_digits():
    heads = tuple(f"{i}" for i in range(8))
    wide = Table("a", "T", heads, ("x" * 20,), ((-123.4567,) * 8,), ("num",) * 8)
    shown = text([wide])
    assert shown.count("-123.46") == 8  # eight columns of nine places, gaps of one, beside labels of twelve: 92
    assert "(continued)" not in shown
    small = Table("a", "T", heads, ("x" * 20, "y"), ((-1234.5678,) * 8, (0.0123,) * 8), ("num",) * 8)
    assert text([small]).count("-1234.5678") == 8
    assert "(continued)" in text([small])


def test_notes_are_wrapped_and_numbered():
    shown = text([table(notes=["short"])], notes=["word " * 40, "second"])
    assert "\nshort\n[1] word" in shown
    assert "\n    word" in shown
    assert shown.endswith("[2] second")


def test_text_keeps_rows_on_one_line():
    shown = text([table(names=("a\nb\tc\x1b[31m", "d"))])
    assert "a b c [31m" in shown
    assert "\x1b" not in shown


class Checker(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.data, self.seen = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.data.append(data)


def test_html_is_balanced_and_escaped():
    source = html([table(names=(AWKWARD, "b"), title=AWKWARD, notes=[AWKWARD])], AWKWARD, [AWKWARD])
    parser = Checker()
    parser.feed(source)
    assert not parser.open
    assert "script" not in parser.seen
    assert parser.data.count(AWKWARD) == 5


def test_markdown_has_as_many_bars_in_each_line():
    source = markdown([table(names=(AWKWARD, "b"), notes=[AWKWARD])], AWKWARD, ["note"])
    rows = [line for line in source.splitlines() if line.startswith("| ")]
    assert len(rows) == 4
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}
    assert "<script>" not in source.replace(r"\<", "")
    assert source.endswith("\n\n- note\n")


def test_choosing_tables():
    tables = (table("gate"), table("random"))
    assert [t.key for t in choose(tables, ["random", "gate"])] == ["random", "gate"]
    assert choose(tables, "gate") == tables[:1]
    assert choose(tables, None) == tables
    with pytest.raises(ArgumentError, match="no table 'gat'; tables are 'gate', 'random'"):
        choose(tables, ["gat"])
    with pytest.raises(ArgumentError, match="at least one of"):
        choose(tables, [])
    with pytest.raises(ArgumentError, match="tables must be names such as 'gate', 'random', got 3"):
        choose(tables, 3)
