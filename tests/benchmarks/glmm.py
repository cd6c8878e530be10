"""GLMM experts against lme4::glmer, in one run: python -m tests.benchmarks.glmm."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import mixmoe as mm
from tests.benchmarks import timing
from tests.benchmarks.sections import Row, faster, fit

GLMER = """
suppressPackageStartupMessages(library(lme4))
data <- read.csv(commandArgs(TRUE)[1])
seconds <- sapply(seq_len(as.integer(commandArgs(TRUE)[2])), function(i) {
  gc()
  sum(system.time(glmer(y ~ time + x1 + (1 + time | id), data, family = binomial))[c("user.self", "sys.self")])
})
cat(median(seconds))
"""
COST = 10.0  # default starts of two experts, in single fits of glmer


def glmer_seconds(data, repeats):
    """Median CPU time of glmer at its default settings, or None without R."""
    if shutil.which("Rscript") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.csv"
        data.to_csv(path, index=False)
        run = subprocess.run(
            ["Rscript", "-e", GLMER, str(path), str(repeats)], capture_output=True, text=True, check=True
        )
    return float(run.stdout)


def glmm(repeats):
    """Binomial, N = 2,000 x 6: one expert against glmer, and two experts at default settings against the same."""
    D = [[[0.64, 0.0], [0.0, 0.09]], [[0.36, 0.0], [0.0, 0.09]]]
    data = mm.simulate.memoe("binary", n_subjects=2_000, n_visits=6, D=D, rng=1).data
    one, two = (f"y ~ time + x1 | {gate}re: (1 + time | id)" for gate in ("", "gate: z1 + z2 | "))
    single = timing.cpu_seconds(lambda: fit(one, data, experts=1, family="binomial"), repeats)
    double = timing.cpu_seconds(lambda: fit(two, data, experts=2, family="binomial"), repeats)
    peer = glmer_seconds(data, repeats)
    if peer is None:
        yield Row("binomial, N=2,000 x 6, against glmer", "no R with lme4 here")
        return
    yield faster("binomial, K=1, random intercept and slope, N=2,000 x 6, against glmer", single, peer, 1)
    ratio = double / peer
    figure = f"{double:.3g} s against {peer:.3g} s: {ratio:.1f} of its fits"
    yield Row("binomial, K=2, default starts, against one glmer", figure, f"under {COST:g}", ratio < COST)


if __name__ == "__main__":
    for row in glmm(3):
        print(row)
