"""Fits that several tests look at."""

from functools import cache

import mixmoe as mm


@cache
def pbc(experts=2, gate="age + sex", random="1 + year"):
    data = mm.datasets.load("pbcseq")
    section = f" | gate: {gate}" if gate and experts > 1 else ""
    return mm.fit(f"log(bili) ~ year{section} | re: ({random} | id)", data, experts=experts, rng=0)


@cache
def simulated(preset="moderate", n_subjects=150, experts=2, seed=1, **options):
    sim = mm.simulate.memoe(preset, n_subjects=n_subjects, rng=seed)
    return mm.fit(sim.formula, sim.data, experts=experts, rng=0, **options)
