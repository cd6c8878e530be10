"""The rule of imports, read from the source: each module knows only what lies below it."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import mixmoe

ROOT = Path(mixmoe.__file__).parent
FAMILIES = ("mixed", "varying", "neural")
LAYERS = (
    {"errors", "_typing", "atomic"},
    {"design"},
    {"arguments"},
    {"partitions"},
    {"numerics"},
    {"responses"},
    {"mixture"},
    {"inference"},
    {"output"},
    {"families"},
    {"three_step"},
    {"check"},
    {"report"},
    {"results", "mixture_results", "partitioned_results", "loading"},
    set(FAMILIES),
    {"api", "multiple_imputation"},
    {"selection"},
    {"__init__"},
    {"cli"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# These two know data, not models: they lie beside the families and use nothing but the errors.
LEVEL |= {"simulate": LEVEL["mixed"], "datasets": LEVEL["mixed"]}
LATE = {"dask", "pyarrow", "torch", "matplotlib", "joblib", "tqdm", "IPython", "jinja2", "markupsafe"}
ONLY_IN = {"matplotlib": ("output/plots",), "torch": ("neural/",), "jinja2": ("report/page",)}
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


@cache
def tree(source):
    return ast.parse((ROOT / source).read_text(encoding="utf-8"))


def imported(node):
    """Dotted names that one import statement brings in."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        return [f"{base}.{alias.name}" for alias in node.names] if base == "mixmoe" else [base]
    return []


@cache
def imports(source):
    return [(name, node) for node in ast.walk(tree(source)) for name in imported(node)]


def layer(source):
    return source.removesuffix(".py").split("/")[0]


def inside_functions(source):
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    functions = (node for node in ast.walk(tree(source)) if isinstance(node, kinds))
    return {name for function in functions for node in ast.walk(function) for name in imported(node)}


@pytest.mark.parametrize("source", SOURCES)
def test_each_module_has_a_layer(source):
    assert layer(source) in LEVEL, f"{source}: give {layer(source)!r} a place in LAYERS"


@pytest.mark.parametrize("source", SOURCES)
def test_imports_point_down(source):
    mine = layer(source)
    for name, node in imports(source):
        if not name.startswith("mixmoe."):
            continue
        other = name.split(".")[1]
        where = f"{source}:{node.lineno} imports {name}"
        assert other in LEVEL, f"{where}: not a module of the package"
        assert LEVEL[other] <= LEVEL[mine], f"{where}, which lies above it"
        assert mine == other or not {mine, other} <= set(FAMILIES), f"{where}: families do not know one another"
        data_only = other in ("errors", "_typing")
        assert mine not in ("simulate", "datasets") or data_only, f"{where}: it may use only errors"


@pytest.mark.parametrize("source", SOURCES)
def test_own_imports_are_absolute_and_at_the_top(source):
    for name, node in imports(source):
        assert not getattr(node, "level", 0), f"{source}:{node.lineno}: relative import of {name!r}"
    late = {name.split(".")[0] for name in inside_functions(source)}
    assert late <= LATE, f"{source}: imported inside a function: {sorted(late - LATE)}"


@pytest.mark.parametrize("source", SOURCES)
def test_optional_packages_stay_in_their_place(source):
    for name, node in imports(source):
        allowed = ONLY_IN.get(name.split(".")[0])
        fits = allowed is None or source.startswith(allowed)
        assert fits, f"{source}:{node.lineno} imports {name}; allowed in {allowed}"


def test_heavy_packages_are_loaded_only_when_used():
    code = "import sys, mixmoe; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "mixmoe" in loaded
    assert not (LATE - {"pyarrow"}) & set(loaded)  # pandas brings pyarrow if it is installed


def test_the_rule_is_not_vacuous():
    assert {"errors.py", "simulate.py", "numerics/linalg.py"} <= set(SOURCES)
    assert any(name.startswith("mixmoe.") for source in SOURCES for name, _ in imports(source))
