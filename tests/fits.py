"""Fits for tests that ask what follows from a maximum, not how it is found."""

import warnings

import mixmoe as mm
from mixmoe.errors import MixmoeWarning


def carried(formula, data, experts=2, **options):
    """A MEMoE by splits of the fit with one expert fewer alone, in a fraction of the time of a search."""
    start = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)  # that hardly any start is replicated is no news here
        for k in range(1, experts + 1):
            start = mm.fit(formula, data, k, start=start, rng=0, **options)
    return mm.fit(formula, data, experts, start=start, rng=0, **options)  # warns of all else
