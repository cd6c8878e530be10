"""The measurements, each a function from the number of repeats to rows of a table."""

import json
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass

import numpy as np

import mixmoe as mm
from mixmoe.errors import MixmoeWarning
from mixmoe.mixed.likelihood.gaussian import experts_of_products
from mixmoe.mixed.likelihood.observed import Problem, evaluate
from mixmoe.mixed.parameters import Structure
from tests.benchmarks import timing

ONE = "y ~ time + x1 | re: (1 + time | id)"
TWO = "y ~ time + x1 | gate: z1 + z2 | re: (1 + time | id)"
EVALUATIONS = 60
IMPORT_SHARE = 1.15
VISITS_SHARE = 1.10
GIGABYTES = 10.0
SELECT = 60


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, the figure, the bar, and whether it is met (None: no bar)."""

    what: str
    figure: str
    bar: str = ""
    met: bool | None = None


def faster(what, ours, peer, factor):
    """A comparison of two times in seconds."""
    ratio = peer / ours
    return Row(what, f"{ours:.3g} s against {peer:.3g} s: {ratio:.1f}x", f"at least {factor}x faster", ratio >= factor)


def fit(formula, data, **options):
    """A fit whose warnings about the data at hand do not matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        return mm.fit(formula, data, rng=0, **options)


def single(repeats):
    """One expert, 10,000 subjects x 6 visits, CPU time of a whole fit with robust standard errors."""
    data = mm.simulate.memoe("single", n_subjects=10_000, rng=1).data
    ours = timing.cpu_seconds(lambda: fit(ONE, data, experts=1), repeats)
    yield faster("K=1, N=10,000 x 6, against mixedlm", ours, timing.mixedlm_seconds(data, repeats), 3)
    lmer = timing.lmer_seconds(data, repeats)
    if lmer is None:
        yield Row("K=1, N=10,000 x 6, against lme4", "no R with lme4 here")
    else:
        yield faster(f"K=1, N=10,000 x 6, against lme4 {lmer[0]}", ours, lmer[1], 3)
    yield faster("K=1, N=10,000 x 6, against statsmodels MixedLM", ours, timing.statsmodels_seconds(data, 1), 100)


def mixture(repeats):
    """Two experts at default settings against one expert of statsmodels."""
    data = mm.simulate.memoe("moderate", n_subjects=2_000, rng=2).data
    ours = timing.cpu_seconds(lambda: fit(TWO, data, experts=2), repeats)
    peer = timing.statsmodels_seconds(data, min(repeats, 3))
    yield faster("K=2, default starts, N=2,000 x 6, against one MixedLM", ours, peer, 3)


def selection(repeats):
    """One to six experts at default settings against one expert of statsmodels, on 500 subjects."""
    data = mm.simulate.memoe("moderate", n_subjects=500, rng=3).data
    ours = timing.cpu_seconds(lambda: mm.select(TWO, data, range(1, 7), rng=0), 1)
    peer = timing.statsmodels_seconds(data, min(repeats, 3))
    ratio = ours / peer
    figure = f"{ours:.3g} s against {peer:.3g} s: {ratio:.1f}x"
    yield Row(
        "select over K=1..6, default starts, N=500 x 6, against one MixedLM", figure, f"below {SELECT}x", ratio < SELECT
    )


def evaluations(repeats):
    """Likelihood evaluations from one start."""
    counts = []
    for seed in range(repeats):
        data = mm.simulate.memoe("moderate", n_subjects=1_000, rng=seed).data
        counts.append(fit(TWO, data, experts=2, starts=1).em.n_evaluations)
    most = max(counts)
    yield Row("evaluations from one start, K=2, N=1,000", f"{counts}", f"at most {EVALUATIONS}", most <= EVALUATIONS)


def visits(repeats):
    """Time of one evaluation of log-likelihood and score against visits per subject."""
    structure = Structure(2, 3, np.zeros(3, dtype=bool), 2, True, "expert", "expert")
    problems = {n: problem_with(structure, n) for n in (6, 25, 100, 400)}
    theta = np.zeros((1, problems[6].free.size))
    theta[:, problems[6].free.factor] = 0.5
    rounds = [[timed(problem, theta) for problem in problems.values()] for _ in range(20 * repeats)]
    seconds = dict(zip(problems, np.median(rounds, axis=0), strict=True))
    ratio = max(seconds.values()) / seconds[6]
    shown = ", ".join(f"{n}: {1e3 * s:.2f} ms" for n, s in seconds.items())
    bar = f"within {VISITS_SHARE - 1:.0%} of 6 visits"
    yield Row(f"evaluation at N=2,000, visits {shown}", f"{ratio:.2f}", bar, bool(ratio <= VISITS_SHARE))


def timed(problem, theta):
    started = time.process_time()
    for _ in range(5):
        evaluate(problem, theta)
    return (time.process_time() - started) / 5


def problem_with(structure, n_visits):
    """The likelihood of 2,000 subjects with so many visits, in coordinates that do not matter here."""
    sim = mm.simulate.memoe("moderate", n_subjects=2_000, n_visits=n_visits, rng=3)
    data, first = sim.data, np.arange(0, 2_000 * n_visits, n_visits)
    X = np.column_stack([np.ones(len(data)), data["time"], data["x1"]])
    W = np.column_stack([np.ones(2_000), data[["z1", "z2"]].to_numpy()[first]])
    y = (data["y"] - data["y"].mean()).to_numpy() / data["y"].std()
    return Problem(structure, experts_of_products(y, X, X[:, :2], first), W)


BIG = """
import json, time
import mixmoe as mm
from tests.benchmarks.sections import TWO, fit
from tests.benchmarks.timing import peak_gigabytes
data = mm.simulate.memoe("moderate", n_subjects={n}, n_visits=5, rng=4).data
before, started = peak_gigabytes(), time.process_time()
result = fit(TWO, data, experts=2)
print(json.dumps([time.process_time() - started, peak_gigabytes(), before, bool(result.converged)]))
"""


def subjects(repeats):
    """CPU time and memory of whole fits, K=2, by number of subjects, each in a process of its own."""
    seconds = {}
    for n in (10_000, 100_000, 1_000_000):
        seconds[n], peak, before, converged = timing.in_own_process(BIG.format(n=n))
        figure = f"{seconds[n]:.1f} s, peak {peak:.1f} GB (data alone {before:.1f}), converged: {converged}"
        bar, met = (f"below {GIGABYTES:.0f} GB", peak < GIGABYTES) if n == 1_000_000 else ("", None)
        yield Row(f"K=2, default starts, N={n:,} x 5", figure, bar, met)
    growth = np.log10(seconds[1_000_000] / seconds[100_000])
    yield Row("time grows as N to the power", f"{growth:.2f}", "linear (at most 1.1)", bool(growth <= 1.1))


def imports(repeats):
    """Time to import, each in a process of its own, in turn."""
    ours, theirs = [], []
    for _ in range(2 * repeats + 1):
        ours.append(import_seconds("mixmoe"))
        theirs.append(import_seconds("statsmodels.formula.api"))
    a, b = statistics.median(ours), statistics.median(theirs)
    bar = f"at most {IMPORT_SHARE - 1:.0%} more than statsmodels.formula.api"
    yield Row("import mixmoe", f"{a:.2f} s against {b:.2f} s: {a / b:.2f}", bar, a / b <= IMPORT_SHARE)


def import_seconds(module):
    code = f"import time; t = time.process_time(); import {module}; print(time.process_time() - t)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


SECTIONS = {f.__name__: f for f in (single, mixture, selection, evaluations, visits, subjects, imports)}
