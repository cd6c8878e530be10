"""LaTeX that compiles whatever the names are."""

import re

import numpy as np
import pytest

from mixmoe.errors import ArgumentError
from mixmoe.output.latex import latex
from mixmoe.output.latex import latex_escape as escape
from mixmoe.output.records import Table
from tests.fake_model import make_data, make_results
from tests.typeset import compiled, faults, needs_pdflatex

AWKWARD = (
    "x_1",
    "a&b%",
    "#",
    "~",
    "^",
    "\\",
    "\\end{document}",
    "{",
    "}}",
    "$5",
    "[0]",
    "*",
    "a--b",
    "<|>",
    "`q'",
    '"r"',
    "ünï ñ ç ß ø å Ł ő š ı",
    "αβγδεζηθικλμνξοπρστυφχψως ΑΒΓΔΘΛΞΠΣΥΦΨΩ ά",
    "漢字 😀 \u200b\x07",
    "m² ± 3° × 4 ≤ 5 µ",
    "",
    "?` !`",
)


def table(names=AWKWARD, key="one", title="Panel a_b", columns=("Estimate", "P>|z|"), notes=("note %",)):
    return Table(key, title, columns, tuple(names), tuple((-1.5, 0.0001) for _ in names), ("num", "p"), notes)


@needs_pdflatex
def test_awkward_names_compile(tmp_path):
    source = latex([table()], "Caption with 50 % & _x_", "tab:awkward_1", ["A note: \\ {"], standalone=True)
    run = compiled(source, tmp_path)
    assert run.returncode == 0, run.stdout[-2000:]
    assert (tmp_path / "t.pdf").exists()


@needs_pdflatex
def test_a_fit_compiles_as_a_fragment(tmp_path):
    data = (
        make_data().rename(columns={"x": "x_1", "z": "a&b%"}).assign(g=lambda d: np.where(d["time"] > 1, "#1", "^~\\"))
    )
    fit = make_results("y ~ time * x_1 + C(g) | gate: `a&b%` | re: (1 + time | id)", data, blank=(16,))
    fit.to_latex(tmp_path / "table.tex", caption="Trajectories", label="tab:one")
    document = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n\\input{table.tex}\n"
    assert faults(document + "See~\\ref{tab:one}.\n\\end{document}\n", tmp_path) == []


_LONG = "C(treatment, Treatment('placebo'))[T.D-penicillamine]:bs(years_since_entry, df=4)[3]"


@needs_pdflatex
@pytest.mark.parametrize("n_columns", [1, 6, 9])
def test_nothing_stands_out_of_the_text(tmp_path, n_columns):
    columns = tuple(f"{i}: MODEL_OF_WOMEN" for i in range(n_columns))
    label = ("x", _LONG, "MWMWMW" * 12, "a sum of many words and more words " * 3, "  lower")
    cells = tuple((cell,) * n_columns for cell in ("-1.5", "12.345**", "(0.123)", "", "-25.547, 20.613"))
    wide = Table("a", "A title", columns, label, cells, ("num",) * n_columns)
    words = Table("b", "", ("message", "n"), ("flag",), (("many words " * 20, 3),), ("text", "num"))
    assert faults(latex([wide, words], "Cap", notes=[f"note on {_LONG}" * 3], standalone=True), tmp_path) == []


def test_a_label_is_broken_only_where_the_line_has_no_room():
    heads = ("Estimate", "Std. Err.", "z", "P>|z|", "[0.025", "0.975]")
    row = (-0.1153, 0.1122, -1.019, 0.3082, -0.3261, 0.1066)
    random = Table(
        "random", "", heads, ("expert 1: corr(Intercept,years)",), (row,), ("num", "num", ".3f", "p", "num", "num")
    )
    assert r"expert 1: corr(Intercept,years) &" in latex([random])
    wider = latex([Table("a", "", ("Std. Err. of it",) * 8, ("x" * 20,), ((-1.5,) * 8,), ("num",) * 8)])
    assert r"\raggedleft Std. Err.\newline of it\strut}" in wider  # headings before labels
    assert "x" * 20 in wider


@needs_pdflatex
@pytest.mark.parametrize(("n_rows", "n_notes", "n_floats"), [(30, 3, 1), (46, 12, 2), (110, 2, 3), (8, 40, 3)])
def test_notes_and_rows_stay_on_the_page(tmp_path, n_rows, n_notes, n_floats):
    note = "There are no bands at up to 5 of 50 grid points for 6 functions: the local fit has no maximum there. " * 2
    rows = [f"expert1.Intercept.{i}" for i in range(n_rows)]
    source = latex([table(rows, notes=())], "A caption of several lines " * 5, notes=[note] * n_notes, standalone=True)
    assert faults(source, tmp_path) == []
    assert source.count(r"\begin{table}") == n_floats
    assert source.count("There are no bands") == 2 * n_notes  # none is lost


@needs_pdflatex
def test_lines_of_broken_labels_count(tmp_path):
    cells = (("-1.5",) * 9,) * 20
    long = Table("a", "Title", tuple("abcdefghi"), (_LONG,) * 20, cells, ("num",) * 9, notes=("About it.",) * 3)
    source = latex([long, long], "Cap", notes=["And a note."] * 5, standalone=True)
    assert faults(source, tmp_path) == []
    assert source.count("(continued)") > 1
    for text, n in (("And a note.", 5), ("About it.", 6), ("$-$1.5", 360)):
        assert source.count(text) == n


@needs_pdflatex
def test_long_tables_continue_on_the_next_page(tmp_path):
    source = latex([table([f"x_{i}" for i in range(95)])], "Long", "tab:long", ["last"], standalone=True)
    assert source.count(r"\begin{table}") == 3
    assert source.count(r"\label{tab:long}") == 1
    assert source.count("Long (continued)") == 2
    assert source.count("last") == 1
    assert faults(source, tmp_path) == []


@needs_pdflatex
def test_titles_wider_than_their_tables(tmp_path):
    few = Table("a", "Probability of being classified as, by expert", ("as 1",), ("expert 1",), ((1.0,),), ("num",))
    other = Table("b", "A title of many words " * 8, ("x", "y"), ("b",), ((1.0, 2.0),), ("num", "num"))
    assert faults(latex([few, other], standalone=True), tmp_path) == []
    assert faults(latex([few], standalone=True), tmp_path) == []


def test_the_output_is_ascii():
    assert latex([table()]).isascii()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("x_1", r"x\_1"),
        ("a&b%", r"a\&b\%"),
        ("\\", r"\textbackslash{}"),
        ("é", r"\'{e}"),
        ("e\u0301", r"\'{e}"),
        ("í", r"\'{\i}"),
        ("λ", r"$\lambda$"),
        ("Α", "$A$"),
        ("ς", r"$\varsigma$"),
        ("漢", "{[}U+6F22{]}"),
        ("a\n\tb", "a b"),
        ("--", "{-}{-}"),
    ],
)
def test_escapes(given, expected):
    assert escape(given) == expected


def test_panels_share_a_tabular_and_others_do_not():
    one, two = table(["a"], "one", "First"), table(["b"], "two", "Second")
    other = table(["c"], "three", "Third", ("Value", "Share"))
    source = latex([one, two, other])
    widths = re.findall(r"\\begin\{tabular\*\}\{([\d.]+)pt\}", source)
    assert len(widths) == 2
    assert len(set(widths)) == 1  # they stand below each other, so they are of one width
    assert r"\begin{tabular}" in latex([one, two])
    assert source.count(r"\begin{table}") == 1
    assert source.count(r"\addlinespace") == 1
    assert r"\caption" not in source
    assert r"\label" not in source


def test_numbers_have_a_true_minus():
    assert "$-$1.5000 & \\textless{}0.001" in latex([table(["a"])])


def test_environments_are_balanced():
    source = latex([table()], "c", "l", ["n"], standalone=True)
    begun, ended = (re.findall(rf"\\{word}{{(\w+\*?)}}", source) for word in ("begin", "end"))
    assert sorted(begun) == sorted(ended)


@pytest.mark.parametrize("label", ["a b", "a%", "a}", "ü", "", 3])
def test_a_label_that_latex_cannot_read(label):
    with pytest.raises(ArgumentError, match="label may have letters"):
        latex([table()], label=label)


def test_a_caption_that_is_no_text():
    with pytest.raises(ArgumentError, match="caption must be text, got 3"):
        latex([table()], caption=3)


@pytest.mark.parametrize(
    ("cell", "printed"),
    [
        ("-0.840, -0.166", "$-$0.840, $-$0.166"),
        ("-1.2 to -0.5", "$-$1.2 to $-$0.5"),
        ("0.1, -inf", "0.1, $-$inf"),
        ("-3.2e-05", "$-$3.2e{-}05"),
        ("2020-01-05", "2020{-}01{-}05"),
        ("y ~ x -1", r"y $\sim$ x {-}1"),
    ],
)
def test_every_negative_number_has_a_minus_sign(cell, printed):
    table = Table("a", "", ("u=-1.5",), ("row",), ((cell,),), ("text",))
    text = latex([table])
    assert f"row & {printed} " in text
    assert "u=$-$1.5" in text
