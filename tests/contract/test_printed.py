"""What is printed beside the plain fits of each family: 80 columns on a terminal, the width of an article in LaTeX."""

import warnings

import numpy as np
import pytest

import mixmoe as mm
from mixmoe.errors import MixmoeWarning
from tests.typeset import faults_of_tables

LONG = "`a covariate with a long name`"
PLAIN = f"y ~ time + {LONG} | re: (1 | id)"


def frame():
    data = mm.simulate.memoe(preset="separated", n_subjects=24, n_visits=5, rng=1).data
    g = np.random.default_rng(0)
    data["a covariate with a long name"] = g.normal(size=len(data))
    data["days since the first visit"] = g.random(len(data))
    data["cells"] = g.poisson(3.0, len(data)) * g.integers(0, 2, len(data))
    data["other cells"] = g.poisson(3.0, len(data))
    return data


def smooth(data, folder):
    return mm.fit(f"y ~ s(`days since the first visit`, k=5) + {LONG} | re: (0 | id)", data, 1)


def zero_inflated(data, folder):
    options = {"family": "zinb", "bandwidth": 0.7, "n_grid": 4}
    return mm.fit(f"cells ~ {LONG} | vary: `days since the first visit`", data, 1, **options)


def partitioned(data, folder):
    data.to_parquet(folder / "part.parquet")
    return mm.fit(PLAIN, mm.scan(folder / "*.parquet"), 1)


def pooled(data, folder):
    moved = data.assign(y=data["y"] + 0.1 * np.random.default_rng(1).normal(size=len(data)))
    return mm.pool([mm.fit(PLAIN, d, 1) for d in (data, moved)])


def each(data, folder):
    return mm.fit_each(["cells", "other cells"], f"~ {LONG}", data, experts=1, family="poisson", n_jobs=1)


def beside(data, folder):
    fit = mm.fit(PLAIN, data, 1)
    return mm.table({"with a slope that has a name": fit, "again, model-based": fit.with_cov("nonrobust"), "3": fit})


def chosen(data, folder):
    return mm.select([PLAIN, f"{PLAIN} | sigma: time"], data, 1, cov_re=["expert", "common"], rng=0)


@pytest.mark.parametrize("make", [smooth, zero_inflated, partitioned, pooled, each, beside, chosen])
def test_it_fits_terminal_and_page(make, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        found = make(frame(), tmp_path)
        shown = found.summary() if hasattr(found, "summary") else found
    lines = str(shown).splitlines()
    assert len(lines) > 5
    assert max(map(len, lines)) <= 80, str(shown)
    assert faults_of_tables([shown.as_latex()], tmp_path) == []
