"""The pages of the site say what the code does; that they build without warnings is checked by .ci/run."""

import ast
import configparser
import inspect
import json
import re
from pathlib import Path

import pytest

import mixmoe as mm
from mixmoe.check.diagnosis import PANELS
from mixmoe.design.formula import parse_formula
from mixmoe.varying.function_tables import PLOTS
from tests.typeset import faults_of_tables

ROOT = Path(__file__).parents[1]
SITE = ROOT / "vignettes"
PAGES = {path.relative_to(SITE).as_posix(): path.read_text(encoding="utf-8") for path in sorted(SITE.rglob("*.md"))}
NOTEBOOKS = {
    path.relative_to(SITE).as_posix(): json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(SITE.rglob("*.ipynb"))
}
BLOCKS = {
    f"{name}[{i}]": code
    for name, text in PAGES.items()
    for i, code in enumerate(re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE))
}


def source(notebook, kind=None):
    return "\n\n".join("".join(cell["source"]) for cell in notebook["cells"] if kind in (None, cell["cell_type"]))


def terms(text):
    """Names before the definitions of a page, `a`, `b` on one line being two."""
    lines = re.findall(r"^(`.*`(?: \(default\))?)\n: ", text, re.MULTILINE)
    return [name for line in lines for name in re.findall(r"`([^`]*)`", line)]


def section(text, head):
    return re.search(rf"^## {re.escape(head)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)[1]


def flag_codes():
    """Codes of all flags that the package makes: first arguments of `Flag(...)`, both branches of a choice."""
    found = set()
    for path in (ROOT / "mixmoe").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Flag" and node.args:
                first = node.args[0]
                choices = [first.body, first.orelse] if isinstance(first, ast.IfExp) else [first]
                found |= {c.value for c in choices if isinstance(c, ast.Constant)}
    return found


def test_every_flag_has_its_paragraph():
    listed = terms(PAGES["reference/flags.md"])
    assert len(listed) == len(set(listed))
    assert set(listed) == flag_codes()


@pytest.mark.parametrize("name", ["MEMoE", "VCMoE", "NME", "NMoE"])
def test_every_option_has_its_paragraph(name):
    if name.startswith("NM"):
        pytest.importorskip("torch")
    family = getattr(mm, name)
    own = {*inspect.signature(family.__init__).parameters, *inspect.signature(family.fit).parameters}
    own -= {"self", "formula", "data", "cov_options"}
    listed = terms(section(PAGES["reference/options.md"], name))
    assert set(listed) == own | set(family.spec.covariance_options)


def test_every_option_of_select_has_its_paragraph():
    own = set(inspect.signature(mm.select).parameters) - {"formula", "data", "options", "starts", "rng", "progress"}
    assert set(terms(section(PAGES["reference/options.md"], "Choosing"))) == own


def test_every_extra_of_users_is_listed():
    config = configparser.RawConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = set(config["options.extras_require"]) - {"test", "docs", "dev"}
    assert set(re.findall(r"^\| `(\w+)` \|", PAGES["start/install.md"], re.MULTILINE)) == extras


def test_every_kind_of_standard_errors_has_its_paragraph():
    listed = {name.strip('"') for name in terms(section(PAGES["reference/options.md"], "Standard errors"))}
    assert listed == {"robust", "nonrobust", "cluster", "bootstrap"}


def test_the_gallery_draws_every_figure():
    code = source(NOTEBOOKS["gallery.ipynb"])
    kinds = {*PANELS, *PLOTS, "trajectories", "gate", "categories", "responsibilities", "effects", "learning"}
    assert {kind for kind in kinds if f'plot("{kind}"' not in code} == set()
    assert "table.plot()" in code
    assert ".diagnose()" in code


def formulas():
    texts = [*PAGES.values(), *map(source, NOTEBOOKS.values())]
    return sorted({found for text in texts for found in re.findall(r'mm\.fit\(\s*"([^"{]*~[^"{]*)"', text)})


@pytest.mark.parametrize("text", formulas())
def test_formulas_are_read(text):
    assert parse_formula(text.replace("\\|", "|")).response


@pytest.mark.parametrize("name", BLOCKS)
def test_python_blocks_of_pages_run(name, tmp_path, monkeypatch):
    code = BLOCKS[name]
    if "hidden=" in code:
        pytest.importorskip("torch")
    if "dask" in code:
        pytest.importorskip("dask")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    exec(compile(code, name, "exec"), {})


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_carry_their_outputs(name):
    cells = [cell for cell in NOTEBOOKS[name]["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    drawn = [cell for cell in cells if re.search(r"plt\.show\(\)|^figure = ", "".join(cell["source"]), re.MULTILINE)]
    for cell in drawn:
        assert any("image/png" in output.get("data", {}) for output in cell["outputs"])
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    assert not any(output.get("name") == "stderr" for cell in cells for output in cell["outputs"])


def test_latex_on_pages_is_typeset_without_faults(tmp_path):
    outputs = [o for notebook in NOTEBOOKS.values() for cell in notebook["cells"] for o in cell.get("outputs", [])]
    shown = ["".join(output.get("text", [])) for output in outputs]
    tables = [found for text in shown for found in re.findall(r"\\begin\{table\}.*\\end\{table\}\n", text, re.DOTALL)]
    assert len(tables) > 2
    assert faults_of_tables(tables, tmp_path) == []


def test_every_table_of_the_simulations_is_shown():
    shown = set(re.findall(r"\{include\} \S*tests/(\w+/\w+\.md)", "\n".join(PAGES.values())))
    tables = {f"{path.parent.name}/{path.name}" for path in (ROOT / "tests").glob("[bs]*/[A-Z]*.md")}
    assert tables
    assert tables - shown == set()
