"""Numbers that sentences of the site quote from simulations, benchmarks and outputs stand where they come from."""

import json
import math
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "vignettes"
# Sentence of a page, its source, and the words there that hold its numbers. Where a table is made anew with other
# numbers, its words are gone and the sentence is to be written again.
STUDIES = [
    (
        "explanation/vcmoe.md",
        "with 30 sets of overlapping experts an oracle would gain 1.3 % of error by it, and the best rule that was "
        "tried, risk in draws from the fit, lost 1.1 %",
        "tests/simulation/VARYING.md",
        ("on 30 sets", "an oracle would have lowered the mean error by 1.3 %, the choice by draws raised it by 1.1 %"),
    ),
    (
        "reference/options.md",
        "Wald and BCa limits hold the truth in 88 to 89 % of sets, and a studentised bootstrap, which is therefore not "
        "offered, would in 91 %",
        "tests/simulation/HEAVY_VARIANCES.md",
        ("| 88.2% | 88.2% | 91.0% |", "| `sd1(Intercept\\|id)` | 89% |"),
    ),
    (
        "explanation/nme.md",
        "the errors of their curves were .066 and .068, of experts whose memberships were known .063",
        "tests/simulation/NEURAL.md",
        ("| .066 (.006) | .068 (.005) | .063 |",),
    ),
    (
        "explanation/nme.md",
        "of 100 subjects limits of 95 % held the curves of the experts at 91 % of all places",
        "tests/simulation/NEURAL.md",
        ("Limits of 95 % of the curves of experts, 24 sets of 100 subjects", "pointwise .910"),
    ),
    (
        "howto/large.md",
        "Ten thousand subjects with all the default starts take about a second, a million less than a minute",
        "tests/benchmarks/RESULTS.md",
        ("N=10,000 x 5 | 1.0 s", "N=1,000,000 x 5 | 36.5 s"),
    ),
]
# Notebook, where its stored outputs have the numbers, and the sentence that is written with them.
OUTPUTS = [
    (
        "tutorials/cohort.ipynb",
        (r"expert1\.year +(\S+)",),
        lambda slope: f"rises by {slope:.2f} a year, that is by {percent(slope)} %",
    ),
    (
        "tutorials/cohort.ipynb",
        (r"Expert 1 \(mean probability (\S+)\)", r"mean probability[\s\S]*?\nIntercept +(\S+)", r"\nyear {10,}(\S+)"),
        lambda share, level, slope: (
            f"Expert 1, {100 * share:.0f} % of the patients: bilirubin of exp({level:.1f}) = {math.exp(level):.1f} "
            f"mg/dl at entry (the normal range ends at about 1.2), rising by {percent(slope)} % a year. "
            f"Expert 2, {100 * (1 - share):.0f} %"
        ),
    ),
    (
        "tutorials/cohort.ipynb",
        (r"expert 2: stage0 +(\S+)",),
        lambda odds: f"exp({odds:.2f}) = {math.exp(odds):.2f}",
    ),
    (
        "tutorials/growth.ipynb",
        (r"expert 2: weight +(\S+)",),
        lambda odds: f"by exp({odds:.1f}) = {math.exp(odds):.2f}",
    ),
    ("tutorials/trial.ipynb", (r"Likelihood-ratio test: .* p = (\S+),",), lambda p: f"Perhaps: p = {p:.2f}"),
]
MEASURED = re.compile(
    r"simulat|data sets|\bsets\b|processor|\bGB\b|\bCPU\b|hold the truth|of all places", re.IGNORECASE
)
NUMBER = re.compile(r"(?<![\w.])\d*\.?\d+ (?:%|GB)|(?<!\w)0?\.\d+\b")
# Figures that follow from a table of the same page, a level, and an arithmetic of theirs.
OWN = ("share of 95 % intervals", "range of the middle 90 %", "10<sup>9</sup> rows")


def prose(text):
    """The words of a page on one line, without code and equations."""
    for pattern in (r"```.*?```", r"\$\$.*?\$\$", r"\$[^$\n]*\$", r"\]\([^)]*\)"):
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    return re.sub(r"[\[\]]|\s+", lambda found: " " if found[0].isspace() else "", text)


def words_of(path):
    if path.suffix != ".ipynb":
        return prose(path.read_text(encoding="utf-8"))
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return prose("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"))


PAGES = {
    path.relative_to(SITE).as_posix(): words_of(path)
    for path in sorted(SITE.rglob("*"))
    if path.suffix in (".md", ".rst", ".ipynb") and "simulations" not in path.parts
}


def percent(slope):
    """Change by a slope of a logarithm, in whole percent."""
    return round(100 * math.expm1(slope))


def printed(page):
    """What the code of a notebook printed."""
    cells = json.loads((SITE / page).read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "\n".join("".join(o.get("text", []) or o.get("data", {}).get("text/plain", [])) for o in outputs)


@pytest.mark.parametrize(("page", "found", "write"), OUTPUTS)
def test_a_quoted_number_stands_in_the_output(page, found, write):
    numbers = [float(re.search(pattern, printed(page))[1]) for pattern in found]
    assert write(*numbers) in PAGES[page]


@pytest.mark.parametrize(("page", "sentence", "source", "held"), STUDIES)
def test_a_quoted_number_stands_in_its_table(page, sentence, source, held):
    assert sentence in PAGES[page]
    table = re.sub(r"\s+", " ", (ROOT / source).read_text(encoding="utf-8"))
    for words in held:
        assert words in table


def test_no_sentence_quotes_what_is_not_listed():
    listed = [(page, sentence) for page, sentence, *_ in STUDIES]
    loose = [
        f"{page}: {said}"
        for page, text in PAGES.items()
        for said in re.split(r"(?<=[.:;]) ", text)
        if MEASURED.search(said) and NUMBER.search(said) and not any(words in said for words in OWN)
        if not any(
            page == of and (said.rstrip(".;:") in sentence or sentence in said or _meets(said, sentence))
            for of, sentence in listed
        )
    ]
    assert loose == []


def _meets(said, sentence):
    """Whether a part of a sentence holds the beginning or the end of the one that is listed."""
    return sentence[:40] in said or sentence[-40:] in said
