"""Puts faults into the arithmetic of modules, one at a time, and tells which of them no test sees.

``python -m tests.mutation mixmoe/mixture/gate.py --sample 60`` tries 60 faults of that module, drawn with a seed;
without ``--sample`` all. ``--named`` tries the faults of `NAMED` instead. MUTATION.md keeps the results.

Each fault is compiled in memory and served by an import hook to a process of its own, forked before the package is
imported: nothing is written to the working tree. The tests of the modules run once without fault, to learn how long
each takes and which lines it reaches; with a fault only those run that reach its line, the fastest first. POSIX only.
"""

import argparse
import ast
import importlib
import importlib.machinery
import importlib.util
import json
import os
import random
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

HEAVY = ("numpy", "scipy.stats", "scipy.optimize", "pandas", "statsmodels.api", "formulaic", "patsy")
# Tests of a module are those of its folder below tests/, and these
ALSO = {
    "mixmoe/mixture/": ("tests/mixed/test_likelihood.py", "tests/mixed/test_gaussian_likelihood.py"),
    "mixmoe/inference/": ("tests/mixed/test_standard_errors.py", "tests/mixed/test_information.py"),
    "mixmoe/numerics/": (
        "tests/mixed/test_gaussian_likelihood.py",
        "tests/mixed/test_likelihood.py",
        "tests/inference",
    ),
    "mixmoe/responses/": ("tests/mixed/test_glmm_likelihood.py", "tests/mixed/test_thresholds.py", "tests/varying"),
    "mixmoe/results.py": ("tests/mixed/test_standard_errors.py", "tests/test_results.py"),
}
WITHOUT = ("tests/mixture/test_resampling.py",)  # starts Python anew, where a fault in memory does not reach
PAIRS = ("min max", "minimum maximum", "argmin argmax", "cdf sf", "ppf isf", "floor ceil", "any all", "exp expm1")
WORDS = {a: b for pair in PAIRS for a, b in (pair.split(), pair.split()[::-1])}
WORDS |= {"log1p": "log", "log": "log1p", "sum": "mean", "mean": "sum", "sqrt": "abs", "ones": "zeros", "zeros": "ones"}
OPERATORS: dict[type, tuple[type, ...]] = {
    **{ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,), ast.Pow: (ast.Mult,)},
    **{ast.FloorDiv: (ast.Mult,), ast.And: (ast.Or,), ast.Or: (ast.And,), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,)},
    **{ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt)},
}
NUMBERS, INFORMATION = "tests/varying/test_numbers.py", "tests/mixed/test_information.py"
# Faults that once survived: module, text, what stands in its place, tests of which one must fail
NAMED = (
    ("mixmoe/varying/effective_parameters.py", "spare = n - df - 1.0", "spare = n - 1.0", NUMBERS),
    (
        "mixmoe/varying/effective_parameters.py",
        "(1.0 - share[rows]) * before + share[rows] * after",
        "share[rows] * before + (1.0 - share[rows]) * after",
        NUMBERS,
    ),
    (
        "mixmoe/varying/glr.py",
        "float(chi2.sf(law.scale * max(statistic, 0.0), law.df)), law.df",
        "float(chi2.sf(max(statistic, 0.0), law.df)), law.df",
        NUMBERS,
    ),
    ("mixmoe/varying/bands.py", "problem.rows.n**-0.05", "problem.rows.n**-0.2", NUMBERS),
    ("mixmoe/varying/smoothing.py", "SPLINE = 1.0 / 3.0", "SPLINE = 0.0", NUMBERS),
    (
        "mixmoe/responses/exponential.py",
        "betainc(trials - whole, whole + 1.0,",
        "betainc(trials - y, y + 1.0,",
        "tests/responses",
    ),
    ("mixmoe/responses/exponential.py", "expit(-eta)), y >= trials)", "expit(-eta)), y > trials)", "tests/responses"),
    (
        "mixmoe/responses/exponential.py",
        "betainc(whole + 1.0, trials - whole,",
        "betainc(y + 1.0, trials - y,",
        "tests/responses",
    ),
    (
        "mixmoe/mixed/search.py",
        'if problem.structure.cov_re != "proportional":',
        "if True:",
        "tests/mixed/test_maxima.py",
    ),
    ("mixmoe/mixed/information.py", "none[[0, top]] = False", "none[top] = False", "tests/mixed/test_maxima.py"),
    ("mixmoe/mixed/subject_refits.py", "permute(self.problem, theta, order.tolist())", "theta", INFORMATION),
    ("mixmoe/mixed/degeneracy.py", "size.min() > own + 1", "size.min() > own", "tests/mixed/test_maxima.py"),
    ("mixmoe/mixed/degeneracy.py", "size.min() > own + 1", "size.min() > own + 2", "tests/mixed/test_maxima.py"),
    (
        "mixmoe/varying/identifiability.py",
        "bad = mass < FEW * 2.0 * columns",
        "bad = mass < FEW * columns",
        "tests/varying/test_identification.py",
    ),
    ("mixmoe/varying/identifiability.py", "FEW = 1.5", "FEW = 3.0", "tests/varying/test_identification.py"),
    ("mixmoe/mixture/gate.py", "ridge = 1e-8", "ridge = 1e-5", "tests/mixed/test_gaussian_likelihood.py"),
    ("mixmoe/output/records.py", "value < 0.001 else", "value < 0.0005 else", "tests/output/test_text.py"),
    ("mixmoe/output/records.py", "value < 0.001 else", "value < 0.01 else", "tests/output/test_text.py"),
)


@dataclass(frozen=True)
class Fault:
    """A change of one module: first and last line of the statement, what is changed, and the changed code."""

    module: str
    lines: tuple[int, int]
    change: str
    code: Callable[[], CodeType]


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in a node's place: other operators, other numbers, no sign, functions of the other end."""
    for operator in OPERATORS.get(type(node), ()):
        yield operator()
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):  # tolerances a thousand times larger
            yield ast.Constant(value * (1000 if value < 1e-3 else 2) if value else 1.0)
        case ast.UnaryOp(op=ast.USub() | ast.Not()):
            yield node.operand
        case ast.Name(id=name) if name in ("min", "max", "any", "all"):
            yield ast.Name(WORDS[name], node.ctx)
        case ast.Attribute(attr=name) if name in WORDS:
            yield ast.Attribute(node.value, WORDS[name], node.ctx)


def places(node: ast.AST, lines: tuple[int, int] = (0, 0)) -> Iterator[tuple[ast.AST, str, int | None, ast.AST, tuple]]:
    """Parent, field, position in the field, node, and lines of the statement, for everything but types and messages."""
    for field, value in ast.iter_fields(node):
        if isinstance(node, ast.Raise | ast.JoinedStr) or field in ("annotation", "returns", "decorator_list"):
            continue
        for i, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST):
                compound = hasattr(node, "body") and isinstance(node, ast.stmt | ast.Module)
                span = (child.lineno, child.end_lineno) if compound and hasattr(child, "lineno") else lines
                yield node, field, i, child, span
                yield from places(child, span)


def faults_of(module: str) -> Iterator[Fault]:
    """All faults of a module. Their code must be asked for one at a time: they share a tree."""
    tree = ast.parse(Path(module).read_text())

    def put(parent: ast.AST, field: str, i: int | None, node: ast.AST) -> None:
        if i is None:
            setattr(parent, field, node)
        else:
            getattr(parent, field)[i] = node

    def code(*place: Any, new: ast.AST, old: ast.AST) -> CodeType:
        put(*place, new)
        compiled = compile(ast.fix_missing_locations(tree), module, "exec")
        put(*place, old)
        return compiled

    for parent, field, i, node, lines in list(places(tree)):
        for new in replacements(node):
            shown = parent if isinstance(parent, ast.expr | ast.keyword | ast.arguments | ast.Assign) else None
            before = ast.unparse(shown or node)
            put(parent, field, i, new)
            after = ast.unparse(shown or new)
            put(parent, field, i, node)
            yield Fault(module, lines, f"{before} -> {after}", partial(code, parent, field, i, new=new, old=node))


def named_faults() -> Iterator[tuple[Fault, list[str]]]:
    """The faults of `NAMED`, each with its tests; and before them the same tests with a module as it is."""
    for tests in dict.fromkeys(named[3] for named in NAMED):
        whole = partial(compile, Path("mixmoe/errors.py").read_text(), "mixmoe/errors.py", "exec")
        yield Fault("mixmoe/errors.py", (1, 1), f"no fault, {tests}: must survive", whole), [tests]
    for module, old, new, tests in NAMED:
        source = Path(module).read_text()
        if source.count(old) != 1:
            raise SystemExit(f"{module} has {source.count(old)} places with {old!r}: write the fault anew")
        line = source[: source.index(old)].count("\n") + 1
        code = partial(compile, source.replace(old, new), module, "exec")
        yield Fault(module, (line, line), f"{old} -> {new}", code), [tests]


class Served(importlib.machinery.SourceFileLoader):
    """Import hook: finds and loads the faulty module in place of its file."""

    def __init__(self, module: str, code: CodeType) -> None:
        super().__init__(module.removesuffix(".py").replace("/", "."), str(Path(module).resolve()))
        self.code = code

    def get_code(self, fullname: str) -> CodeType:
        return self.code

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None


class Reach:
    """pytest plugin: seconds of each passing test and the lines it reaches; those of fixtures count for the file."""

    def __init__(self, modules: Sequence[str]) -> None:
        self.modules = {str(Path(m).resolve()): m for m in modules}
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, dict[str, set[int]]] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.now: dict[str, set[int]] = self.lines.setdefault(item.nodeid, {})
        sys.settrace(self.trace)
        yield
        sys.settrace(None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "setup":
            whole = self.lines.setdefault(report.nodeid.split("::")[0], {})
            for module, lines in self.now.items():
                whole.setdefault(module, set()).update(lines)
        if report.when == "call" and report.passed:
            self.seconds[report.nodeid] = report.duration

    def trace(self, frame: FrameType, event: str, arg: object) -> Any:
        module = self.modules.get(frame.f_code.co_filename)
        if module is None:
            return None
        lines = self.now.setdefault(module, set())

        def local(inner: FrameType, event: str, arg: object) -> Any:
            lines.add(inner.f_lineno)
            return local

        return local

    def tests(self, fault: Fault, seconds: float) -> list[str]:
        """Tests that reach a fault (all that reach the module, if it is outside functions), the fastest first."""
        first, last = fault.lines
        found, spent = [], 0.0
        for name in sorted(self.seconds, key=self.seconds.__getitem__):
            reached = set()
            for part in (name, name.split("::")[0]):
                reached |= self.lines.get(part, {}).get(fault.module, set())
            spent += self.seconds[name]
            if spent < seconds and any(first <= line <= last for line in reached):
                found.append(name)
            else:
                spent -= self.seconds[name]
        return found


class Chosen:
    """pytest plugin: runs some tests in a given order."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.order = {name: i for i, name in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((x for x in items if x.nodeid in self.order), key=lambda x: self.order[x.nodeid])


def in_fork(arguments: Sequence[str], plugins: Sequence[object], seconds: int, hook: Served | None = None) -> int:
    """Process number of a fork that runs pytest, silently and for so many seconds of the processor."""
    pid = os.fork()
    if pid:
        return pid
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    if hook is not None:
        sys.meta_path.insert(0, hook)
    options = ["-q", "-m", "not slow", "-p", "no:cacheprovider", *arguments]
    os._exit(int(pytest.main(options, plugins=list(plugins))))


def reach_of(modules: Sequence[str], files: Sequence[str]) -> Reach:
    """What the tests in some files reach in modules without a fault."""
    reach = Reach(modules)
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder, "reach.json")

        class Keep:
            def pytest_sessionfinish(self) -> None:
                lines = {t: {m: sorted(x) for m, x in of.items()} for t, of in reach.lines.items()}
                kept.write_text(json.dumps([reach.seconds, lines]))

        os.waitpid(in_fork(files, [reach, Keep()], 3600), 0)
        reach.seconds, lines = json.loads(kept.read_text())
    reach.lines = {t: {m: set(x) for m, x in of.items()} for t, of in lines.items()}
    return reach


def tried(jobs: Sequence[tuple[Fault, list[str]]], n_jobs: int, chosen: bool) -> Iterator[tuple[Fault, str]]:
    """Each fault and what became of it: caught (a test failed, or took longer than its time), survived, not reached.

    Tests are names of tests if `chosen`, else arguments of pytest.
    """
    running: dict[int, Fault] = {}
    todo = list(jobs)[::-1]
    while todo or running:
        while todo and len(running) < n_jobs:
            fault, tests = todo.pop()
            if not tests:
                yield fault, "not reached"
                continue
            files = sorted({t.split("::")[0] for t in tests}) if chosen else tests
            hook = Served(fault.module, fault.code())
            running[in_fork(["-x", *files], [Chosen(tests)] if chosen else [], 120, hook)] = fault
        pid, status = os.wait() if running else (0, 0)
        if pid in running:
            if os.waitstatus_to_exitcode(status) in (4, 5):  # pytest's codes for wrong arguments, and for no tests
                raise SystemExit(f"pytest could not run the tests of {running[pid]}")
            yield running.pop(pid), "caught" if status else "survived"


def tests_of(module: str) -> list[str]:
    """Files of the tests that belong to a module."""
    places = [
        f"tests/{module.split('/')[1]}",
        *(t for start, found in ALSO.items() if module.startswith(start) for t in found),
    ]
    files = [f for p in places for f in ([p] if p.endswith(".py") else map(str, sorted(Path(p).rglob("test_*.py"))))]
    return [f for f in dict.fromkeys(files) if f not in WITHOUT]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help="files of the package")
    parser.add_argument("--sample", type=int, help="number of faults per module, drawn at random (all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0, help="of tests per fault, the fastest first")
    parser.add_argument("--tests", nargs="+", help="files of tests in the place of those that belong to the modules")
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--named", action="store_true", help="the faults of NAMED")
    options = parser.parse_args()
    folder = tempfile.mkdtemp()
    sys.pycache_prefix = os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = folder
    for name in HEAVY:
        importlib.import_module(name)
    if options.named:
        for fault, fate in tried(list(named_faults()), options.n_jobs, chosen=False):
            print(f"| {fault.module} | `{fault.change}` | {fate} |", flush=True)
    groups: dict[tuple[str, ...], list[str]] = {}
    for module in options.modules:
        groups.setdefault(tuple(options.tests or tests_of(module)), []).append(module)
    for files, modules in groups.items():
        reach = reach_of(modules, files)
        for module in modules:
            every = list(faults_of(module))
            size = len(every) if options.sample is None else min(options.sample, len(every))
            drawn = random.Random(options.seed).sample(every, size)
            fates = list(tried([(f, reach.tests(f, options.seconds)) for f in drawn], options.n_jobs, chosen=True))
            left = sorted((f.lines[0], f.change, fate) for f, fate in fates if fate != "caught")
            print(f"| {module} | {len(every)} | {size} | {size - len(left)} | {len(left)} |", flush=True)
            for line, change, fate in left:
                print(f"  {module}:{line} {change} ({fate})", flush=True)


if __name__ == "__main__":
    main()
