"""Fits that several tests look at."""

from functools import cache

import mixmoe as mm
from tests.fits import carried


@cache
def pbc(experts=2, gate="age + sex", random="1 + year"):
    data = mm.datasets.load("pbcseq")
    section = f" | gate: {gate}" if gate and experts > 1 else ""
    return carried(f"log(bili) ~ year{section} | re: ({random} | id)", data, experts)


@cache
def simulated(preset="moderate", n_subjects=150, experts=2, seed=1, **options):
    sim = mm.simulate.memoe(preset, n_subjects=n_subjects, rng=seed)
    return carried(sim.formula, sim.data, experts, **options)
