"""The reference names everything that is public; that it builds without warnings is checked by .ci/run."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import mixmoe as mm
from mixmoe.inference.labelled import LabelledResults
from mixmoe.mixture_results import WithoutExperts

PAGES = Path(__file__).parents[1] / "vignettes" / "reference"
SOURCES = {page.stem: page.read_text(encoding="utf-8") for page in PAGES.iterdir()}
TEXT = "\n".join(SOURCES.values())
NAMED = sorted(set(re.findall(r"\.\. auto(?:function|class):: ([\w.]+)", TEXT)))
MEMBERS = set(re.findall(r"\.\. auto(?:method|property|attribute):: mixmoe\.(\w+\.\w+)", TEXT))
MODULES = {"datasets": mm.datasets, "simulate": mm.simulate}
STATSMODELS = {"f_test", "initialize", "load", "normalized_cov_params", "remove_data", "t_test_pairwise", "use_t"}


def public(cls):
    """Public members of a class that are its own: neither refusals nor leftovers of statsmodels."""
    refused = {name for name in vars(WithoutExperts) if not name.startswith("_")} if "NME" in cls.__name__ else set()
    return {name for name in dir(cls) if not name.startswith("_")} - STATSMODELS - refused


def test_every_public_name_has_an_entry():
    wanted = {f"mixmoe.{name}" for name in mm.__all__ if name not in (*MODULES, "errors", "__version__")}
    for short, module in MODULES.items():
        own = [n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_")]
        wanted |= {f"mixmoe.{short}.{n}" for n in own if getattr(module, n).__module__ == module.__name__}
    last = {name.rpartition(".")[2] for name in NAMED}
    assert {name for name in wanted if name not in NAMED and name.rpartition(".")[2] not in last} == set()


@pytest.mark.parametrize("name", ["MEMoEResults", "VCMoEResults", "NMEResults", "NMoEResults"])
def test_every_member_of_the_results_has_an_entry(name):
    if "NM" in name:
        pytest.importorskip("torch")
    documented = {entry.partition(".")[2] for entry in MEMBERS if entry.partition(".")[0] in (name, "MEMoEResults")}
    for line in re.findall(r"^ *([\w, ]+) : ", inspect.getdoc(LabelledResults), re.MULTILINE):
        documented |= set(line.split(", "))  # attributes that are set when there are results
    assert public(getattr(mm, name)) - documented == set()


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_every_member_exists(name):
    owner, _, member = name.partition(".")
    if "NM" in owner:
        pytest.importorskip("torch")
    assert inspect.getdoc(inspect.getattr_static(getattr(mm, owner), member, None) or getattr(mm, owner))


@pytest.mark.parametrize("name", NAMED)
def test_every_entry_exists(name):
    if "NM" in name:
        pytest.importorskip("torch")
    place, _, last = name.rpartition(".")
    assert inspect.getdoc(getattr(importlib.import_module(place), last))


def test_every_page_is_listed():
    listed = re.findall(r"^(\w+)$", SOURCES["index"], re.MULTILINE)
    assert sorted(listed) == sorted(set(SOURCES) - {"index"})
