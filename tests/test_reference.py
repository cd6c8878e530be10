"""The API reference names everything that is public; that it builds without warnings is checked by .ci/run."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import mixmoe as mm

PAGES = Path(__file__).parents[1] / "vignettes" / "reference"
SOURCES = {page.stem: page.read_text(encoding="utf-8") for page in PAGES.glob("*.rst")}
NAMED = sorted(set(re.findall(r"\.\. auto(?:function|class):: ([\w.]+)", "\n".join(SOURCES.values()))))
MODULES = {"datasets": mm.datasets, "simulate": mm.simulate}


def test_every_public_name_has_an_entry():
    wanted = {f"mixmoe.{name}" for name in mm.__all__ if name not in (*MODULES, "errors", "__version__")}
    for short, module in MODULES.items():
        own = [n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_")]
        wanted |= {f"mixmoe.{short}.{n}" for n in own if getattr(module, n).__module__ == module.__name__}
    last = {name.rpartition(".")[2] for name in NAMED}
    assert {name for name in wanted if name not in NAMED and name.rpartition(".")[2] not in last} == set()


@pytest.mark.parametrize("name", NAMED)
def test_every_entry_exists(name):
    if "NME" in name:
        pytest.importorskip("torch")
    place, _, last = name.rpartition(".")
    assert inspect.getdoc(getattr(importlib.import_module(place), last))


def test_every_page_is_listed():
    listed = set(re.findall(r"^   (\w+)$", SOURCES["index"], re.MULTILINE))
    assert listed == set(SOURCES) - {"index"}
