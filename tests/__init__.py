"""Tests; a package, so that `python -m tests.benchmarks` finds these and not some other `tests`."""
