"""Puts faults into the arithmetic of modules, one at a time, and tells which of them no test sees.

``python -m tests.mutation mixmoe/mixture/gate.py --sample 60`` tries 60 faults of that module, drawn with a seed;
without ``--sample`` all. ``--named`` tries the faults of `NAMED` instead. MUTATION.md keeps the results.

Nothing is written to the working tree. Tests are collected once; then every fault gets a process of its own, forked
from there, in which functions and constants of the module are exchanged for those of its changed source. Tests run
once without fault, to learn how long each takes and which lines it reaches; with a fault only those run that reach its
line, the fastest first, until one fails. POSIX only.
"""

import argparse
import ast
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

FIXTURE = 0.02  # seconds from which on preparing a test means that fixtures were computed
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
NUMBERS, TAILS = "tests/varying/test_numbers.py", "tests/responses/test_tails.py"
PROPORTIONAL = "tests/mixed/test_maxima.py::test_proportional_covariances"
SMALL, THIN = (
    "tests/mixed/test_maxima.py::test_an_expert_is_small",
    "tests/varying/test_identification.py::test_an_expert",
)
MATCHED = "tests/mixed/test_information.py::test_labels_are_matched"
GATE, CELLS = "tests/mixed/test_gaussian_likelihood.py::test_gate_step", "tests/output/test_text.py::test_cells"
# Faults that once survived: module, text, what stands in its place, tests of which one must fail
NAMED = (
    ("varying/leave_one_out", "spare = n - df - 1.0", "spare = n - 1.0", NUMBERS),
    ("varying/leave_one_out", "(1.0 - share[rows]) * before + share[rows] *", "before + 0.0 *", NUMBERS),
    ("varying/windows", "share = np.clip((here.at - here.left)", "share = np.clip((here.right - here.at)", NUMBERS),
    (
        "varying/glr",
        "chi2.sf(law.scale * max(statistic, 0.0), law.df))",
        "chi2.sf(statistic, law.df))",
        NUMBERS,
    ),
    ("varying/bands", "float(n**-0.05)", "float(n**-0.2)", NUMBERS),
    ("varying/smoothing", "SPLINE = 1.0 / 3.0", "SPLINE = 0.0", NUMBERS),
    ("responses/exponential", "betainc(trials - whole, whole + 1.0,", "betainc(trials - y, y + 1.0,", TAILS),
    ("responses/exponential", "betainc(whole + 1.0, trials - whole,", "betainc(y + 1.0, trials - y,", TAILS),
    ("responses/exponential", "expit(-eta)), y >= trials)", "expit(-eta)), y > trials)", TAILS),
    ("mixed/ascents", 'if problem.structure.cov_re != "proportional":', "if True:", PROPORTIONAL),
    ("mixed/boundary", "none[[0, top]] = False", "none[top] = False", PROPORTIONAL),
    ("mixed/estimation", "permute(self.problem, theta, order.tolist())", "theta", MATCHED),
    ("mixed/degeneracy", "size[k] > own[k] + 1", "size[k] > own[k]", SMALL),
    ("mixed/degeneracy", "size[k] > own[k] + 1", "size[k] > own[k] + 2", SMALL),
    ("varying/identifiability", "bad = mass < FEW * 2.0 * columns", "bad = mass < FEW * columns", THIN),
    ("varying/identifiability", "FEW = 1.5", "FEW = 3.0", THIN),
    ("mixture/gate", "ridge = 1e-8", "ridge = 1e-5", GATE),
    ("output/records", "value < 0.001 else", "value < 0.0005 else", CELLS),
    ("output/records", "value < 0.001 else", "value < 0.01 else", CELLS),
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
                if isinstance(
                    node, ast.Module | ast.ClassDef
                ):  # a constant is used where it is named: any test may see it
                    span = (-child.lineno, 1 << 30)
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


def named_faults() -> Iterator[tuple[Fault, str]]:
    """The faults of `NAMED`, each with the file of its tests."""
    for name, old, new, tests in NAMED:
        module = f"mixmoe/{name}.py"
        source = Path(module).read_text()
        if source.count(old) != 1:
            raise SystemExit(f"{module} has {source.count(old)} places with {old!r}: write the fault anew")
        line = source[: source.index(old)].count("\n") + 1
        code = partial(compile, source.replace(old, new), module, "exec")
        yield Fault(module, (line, line), f"{old} -> {new}", code), tests


def exchange(old: Any, new: Any) -> Any:
    """What takes the place of an object of a module; functions and classes, which others hold, change in place."""
    inner_old, inner_new = (getattr(x, "__wrapped__", getattr(x, "__func__", x)) for x in (old, new))
    if isinstance(inner_old, FunctionType):
        inner_old.__code__, inner_old.__defaults__ = inner_new.__code__, inner_new.__defaults__
        inner_old.__kwdefaults__ = inner_new.__kwdefaults__
    elif isinstance(old, property):
        exchange(old.fget, new.fget)
    elif isinstance(old, type):
        for name, value in vars(new).items():
            if isinstance(value, FunctionType | property | staticmethod | classmethod):
                exchange(vars(old)[name], value)
            elif isinstance(value, int | float | tuple) and not name.startswith("__"):
                setattr(old, name, value)
    elif isinstance(old, int | float | tuple | dict):
        return new
    return old


def put_in(fault: Fault) -> None:
    """Exchange everything that the faulty source defines, and numbers also where other modules have imported them."""
    module = sys.modules[fault.module.removesuffix(".py").replace("/", ".")]
    changed = dict(vars(module))
    exec(fault.code(), changed)
    for name, old in list(vars(module).items()):
        own = getattr(old, "__module__", module.__name__) == module.__name__ and not name.startswith("__")
        new = exchange(old, changed[name]) if own and changed[name] is not old else old
        for other in list(sys.modules.values()) if new is not old else ():
            if vars(other).get(name) is old:
                setattr(other, name, new)


class Reach:
    """Seconds of each passing test and the lines of modules that it reaches."""

    def __init__(self, modules: Sequence[str]) -> None:
        self.modules = {str(Path(m).resolve()): m for m in modules}
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, dict[str, set[int]]] = {}

    def run(self, item: pytest.Item, following: pytest.Item | None) -> None:
        """Run a test and note what it reaches."""
        self.now: dict[str, set[int]] = {}
        begun = time.process_time()
        sys.settrace(self.trace)
        reports = runtestprotocol(item, nextitem=following, log=False)
        sys.settrace(None)
        self.lines[item.nodeid] = self.now
        if reports[0].duration > FIXTURE:  # what a fixture reached once counts for all tests of the file
            whole = self.lines.setdefault(item.nodeid.split("::")[0], {})
            for module, lines in self.now.items():
                whole.setdefault(module, set()).update(lines)
        if all(report.passed for report in reports):
            self.seconds[item.nodeid] = time.process_time() - begun

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
            parts = (self.lines.get(part, {}).get(fault.module, set()) for part in (name, name.split("::")[0]))
            if any(first <= line <= last for lines in parts for line in lines) and (not found or spent < seconds):
                found.append(name)
                spent += self.seconds[name]
        return found


class Mutation:
    """pytest plugin: in the place of running the collected tests once, runs them with one fault after the other."""

    def __init__(self, modules: Sequence[str], options: argparse.Namespace) -> None:
        self.modules, self.options = modules, options

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if self.options.named:
            self.report_named(session.items)
        else:
            reach = self.reach(session)
            for module in self.modules:
                self.report(module, reach, {item.nodeid: item for item in session.items})
        return True

    def in_fork(self, items: Sequence[pytest.Item], fault: Fault | None) -> int:
        """Number of a process in which tests run, silently, until one fails."""
        pid = os.fork()
        if pid:
            return pid
        resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        try:
            if fault is not None:
                put_in(fault)
            for item, following in zip(items, [*items[1:], None], strict=True):
                reports = runtestprotocol(item, nextitem=following, log=False)
                if any(report.failed for report in reports):
                    os._exit(1)
        except BaseException:  # noqa: BLE001 - whatever a fault does to pytest, the fork must end here
            os._exit(1)
        os._exit(0)

    def reach(self, session: pytest.Session) -> Reach:
        """What the tests reach without a fault, learnt in a fork, so that no state is left behind."""
        reach = Reach(self.modules)
        with tempfile.TemporaryDirectory() as folder:
            kept = Path(folder, "reach.json")
            pid = os.fork()
            if not pid:
                for item, following in zip(session.items, [*session.items[1:], None], strict=True):
                    reach.run(item, following)
                lines = {t: {m: sorted(x) for m, x in of.items()} for t, of in reach.lines.items()}
                kept.write_text(json.dumps([reach.seconds, lines]))
                os._exit(0)
            os.waitpid(pid, 0)
            reach.seconds, lines = json.loads(kept.read_text())
        reach.lines = {t: {m: set(x) for m, x in of.items()} for t, of in lines.items()}
        return reach

    def tried(self, jobs: Sequence[tuple[Fault | None, list[pytest.Item]]]) -> Iterator[tuple[Fault | None, str]]:
        """Each fault, and what became of it; tests that cannot be reached at all are not run."""
        running: dict[int, Fault | None] = {}
        todo = list(jobs)[::-1]
        while todo or running:
            while todo and len(running) < self.options.n_jobs:
                fault, items = todo.pop()
                if items:
                    running[self.in_fork(items, fault)] = fault
                else:
                    yield fault, "not reached"
            pid, status = os.wait() if running else (0, 0)
            if pid in running:
                yield running.pop(pid), "caught" if status else "survived"

    def report(self, module: str, reach: Reach, items: dict[str, pytest.Item]) -> None:
        every = list(faults_of(module))
        size = len(every) if self.options.sample is None else min(self.options.sample, len(every))
        drawn = random.Random(self.options.seed).sample(every, size)
        names = [reach.tests(fault, self.options.seconds) for fault in drawn]
        used = [items[name] for name in dict.fromkeys(name for own in names for name in own)]
        source = partial(compile, Path(module).read_text(), module, "exec")
        for _, fate in self.tried([(Fault(module, (0, 0), "none", source), used)]) if used else ():
            if fate == "caught":
                raise SystemExit(f"the tests of {module} fail without a fault: {names}")
        jobs = [(fault, [items[name] for name in own]) for fault, own in zip(drawn, names, strict=True)]
        left = sorted((abs(f.lines[0]), f.change, fate) for f, fate in self.tried(jobs) if f and fate != "caught")
        print(f"| {module} | {len(every)} | {size} | {size - len(left)} | {len(left)} |", flush=True)
        for line, change, fate in left:
            print(f"  {module}:{line} {change} ({fate})", flush=True)

    def report_named(self, items: Sequence[pytest.Item]) -> None:
        named = list(named_faults())
        jobs = [(fault, [item for item in items if item.nodeid.startswith(tests)]) for fault, tests in named]
        used = list({item.nodeid: item for _, own in jobs for item in own}.values())
        for _, fate in self.tried([(None, used)]):
            print(f"| no fault | {len(used)} tests | {fate} |", flush=True)
        for fault, fate in self.tried(jobs):
            print(f"| {fault.module}:{fault.lines[0]} | `{fault.change}` | {fate} |" if fault else "", flush=True)


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
    sys.pycache_prefix = os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = tempfile.mkdtemp()
    groups: dict[tuple[str, ...], list[str]] = {}
    if options.named:
        groups[tuple(dict.fromkeys(named[3].split("::")[0] for named in NAMED))] = []
    for module in options.modules:
        groups.setdefault(tuple(options.tests or tests_of(module)), []).append(module)
    for files, modules in groups.items():
        arguments = ["-q", "-s", "-m", "not slow", "-p", "no:cacheprovider", *files]
        pytest.main(arguments, plugins=[Mutation(modules, options)])


if __name__ == "__main__":
    main()
