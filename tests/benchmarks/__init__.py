"""Timing comparisons: python -m tests.benchmarks."""

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # one thread for all, settled before NumPy is loaded
    os.environ.setdefault(variable, "1")
