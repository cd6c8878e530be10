"""Offsets that were probably meant otherwise, in all families that have them."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import mixmoe as mm
from mixmoe.errors import AssumptionWarning
from mixmoe.mixed.model import MEMoE
from mixmoe.responses import offsets
from mixmoe.varying.model import VCMoE

RNG = np.random.default_rng(0)
SIZE = RNG.gamma(4.0, 0.5, 240)
DATA = pd.DataFrame(
    {
        "n": RNG.poisson(RNG.gamma(4.0, 0.25, 240) * 3.0 * SIZE),
        "size": SIZE,
        "log_size": np.log(SIZE),
        "years": np.log(20.0 * SIZE) + 1.0,  # a logarithm that is positive everywhere
        "u": RNG.uniform(size=240),
        "id": np.repeat(np.arange(40), 6),
    }
)
DATA["cases"] = RNG.poisson(np.exp(DATA["years"] - 3.0))
MADE = {
    "MEMoE": lambda data, **options: MEMoE("n ~ u | re: (1 | id)", data, 1, **options),
    "VCMoE": lambda data, **options: VCMoE("n ~ 1 | vary: u", data, 2, bandwidth=0.4, **options),
}


def said(make):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()
    return [str(w.message) for w in caught if w.category is AssumptionWarning]


@pytest.mark.parametrize("name", MADE)
def test_counts_with_an_offset_and_no_family(name):
    (told,) = said(lambda: MADE[name](DATA, offset="log_size"))
    assert "the responses 'n' are whole numbers" in told
    assert "family='negbinomial' or 'poisson'" in told
    assert said(lambda: MADE[name](DATA)) == []  # scores may be whole numbers
    assert said(lambda: MADE[name](DATA.assign(n=DATA["n"] - 1.0), offset="log_size")) == []
    assert said(lambda: MADE[name](DATA.assign(n=DATA["n"] > 3).astype({"n": int}), offset="log_size")) == []


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("family", ["poisson", "negbinomial", "zip", "zinb"])
def test_a_size_factor_that_is_no_logarithm(name, family):
    (told,) = said(lambda: MADE[name](DATA, family=family, offset="size"))
    assert "the counts 'n' are proportional to the offset 'size'" in told
    assert said(lambda: MADE[name](DATA, family=family, offset="log_size")) == []
    assert said(lambda: MADE[name](DATA.assign(n=DATA["cases"]), family=family, offset="years")) == []


def test_what_the_logarithm_saves():
    y = DATA["n"].to_numpy(float)

    def loglik(offset):
        mean = np.exp(offset) * y.sum() / np.exp(offset).sum()
        return stats.poisson.logpmf(y, mean).sum(), mean

    as_it_is, _ = loglik(SIZE)
    logged, mean = loglik(np.log(SIZE))
    dispersion = ((y - mean) ** 2 / mean).mean()
    assert dispersion > 1.2
    assert offsets._deviance_saved(y, SIZE) == pytest.approx(2 * (logged - as_it_is) / dispersion, rel=1e-10)


def test_partitions_say_it_too(tmp_path):
    DATA.to_parquet(tmp_path / "part.parquet")
    (told,) = said(lambda: mm.fit("n ~ u | re: (0 | id)", mm.scan(tmp_path / "*.parquet"), 1, offset="log_size"))
    assert "whole numbers" in told


def test_networks_say_it_too():
    pytest.importorskip("torch")
    from mixmoe.neural.model import NME

    (told,) = said(lambda: NME("n ~ u | re: (last | id)", DATA, hidden=(), family="poisson", offset="size"))
    assert "proportional to the offset" in told
