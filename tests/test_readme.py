"""What the README shows works as it stands."""

import re
from pathlib import Path

import pytest

from mixmoe.design.formula import parse_formula

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
FORMULAS = sorted(set(re.findall(r'"([^"]*~[^"]*)"', README)))
LONGEST = 140  # lines: what is more belongs to the site


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_run(code, tmp_path, monkeypatch):
    if "hidden=" in code:
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    code = re.sub(r"n_boot=\d+", "n_boot=3", code)  # what 3 resamples show about names and types, 99 do not show better
    exec(compile(code, "README.md", "exec"), {})
    if "to_latex" in code:
        assert {"table.tex", "trajectories.png"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_are_read(text):
    assert parse_formula(text.replace("\\|", "|")).response


@pytest.mark.parametrize(("marker", "environment"), [("main command", ".venv/"), ("test command", ".venv-test/")])
def test_commands_are_one_line_under_their_marker(marker, environment):
    block = re.search(rf"^<!-- {marker} -->\n```bash\n(.*?)\n```$", README, flags=re.DOTALL | re.MULTILINE)
    assert block is not None
    assert "\n" not in block[1]
    assert block[1].startswith("python3 -m venv .venv")
    assert environment in block[1]


def test_linked_files_exist():
    linked = re.findall(r"\]\(([\w./]+)\)", README)
    assert linked
    assert [name for name in linked if not (ROOT / name).exists()] == []


def test_it_is_short():
    assert len(README.splitlines()) <= LONGEST
