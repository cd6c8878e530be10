"""Simulation studies, each run by a command of its own."""

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # the processes share the cores, not BLAS
    os.environ.setdefault(variable, "1")
