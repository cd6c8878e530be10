"""Clocks, and the peers against which we run them."""

import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import mixedlm
import statsmodels.formula.api as smf

LMER = """
suppressPackageStartupMessages(library(lme4))
data <- read.csv(commandArgs(TRUE)[1])
seconds <- sapply(seq_len(as.integer(commandArgs(TRUE)[2])), function(i) {
  gc()
  sum(system.time(lmer(y ~ time + x1 + (1 + time | id), data, REML = FALSE))[c("user.self", "sys.self")])
})
cat(as.character(packageVersion("lme4")), seconds)
"""


def cpu_seconds(function, repeats):
    """Median CPU time of a call, after one call that warms up when there are repeats."""
    if repeats > 1:
        function()
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        function()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def mixedlm_seconds(data, repeats):
    return cpu_seconds(lambda: mixedlm.lmer("y ~ time + x1 + (1 + time | id)", data, REML=False), repeats)


def statsmodels_seconds(data, repeats):
    """Median CPU time of MixedLM, maximum likelihood, at its default settings."""

    def fit():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            smf.mixedlm("y ~ time + x1", data, groups="id", re_formula="~time").fit(reml=False)

    return cpu_seconds(fit, repeats)


def lmer_seconds(data, repeats):
    """Median CPU time of lme4::lmer with its version, or None without R and lme4."""
    if shutil.which("Rscript") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.csv"
        data.to_csv(path, index=False)
        command = ["Rscript", "-e", LMER, str(path), str(repeats)]
        run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if run.returncode:
        return None
    version, *seconds = run.stdout.split()
    return version, statistics.median(map(float, seconds))


def in_own_process(code):
    """What a piece of Python prints as JSON, from a fresh process."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if run.returncode:
        raise RuntimeError(f"{code}\nfailed with\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def peak_gigabytes():
    """Largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
