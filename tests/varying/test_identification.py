"""Constant coefficients that the functions beside them make superfluous are refused, others are not."""

import numpy as np
import pandas as pd
import pytest

from mixmoe.errors import DesignError
from mixmoe.varying import identifiability
from mixmoe.varying.model import VCMoE
from mixmoe.varying.presets import vcmoe
from tests.varying.helpers import make_problem


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng, data = np.random.default_rng(3), vcmoe(n=300, rng=1).data
    z2, site = rng.normal(size=300), rng.integers(0, 3, 300)
    late, year = (data["u"] > 0.5) * 1.0, 2000.0 + np.floor(20.0 * data["u"])
    after = (year > 2010) * 1.0
    return data.assign(z2=z2, site=site, late=late, year=year, after=after, days=10.0 * data["u"], far=z2 + 1e4)


@pytest.mark.parametrize(
    ("formula", "named"),
    [
        ("y ~ z1 + const(u) | vary: u", "'u'"),
        ("y ~ z1 + const(I(u**2)) | vary: u", r"'I\(u \*\* 2\)'"),
        ("y ~ z1 + const(sin(2*u)) | vary: u", r"'sin\(2 \* u\)'"),
        ("y ~ z1 + const(I(z1*u)) | vary: u", r"'I\(z1 \* u\)'"),
        ("y ~ z1 + const(z2) + const(I(z2 + u)) | vary: u", r"'z2', 'I\(z2 \+ u\)'"),
        ("y ~ z1 + const(C(year)) | vary: year", r"'C\(year\)\[T.20\d\d.0\]', .* and \d+ more"),
    ],
)
def test_functions_of_the_index_have_no_constant_coefficient(frame, formula, named):
    model = VCMoE(formula, frame, experts=1)
    with pytest.raises(DesignError, match=rf"a constant coefficient of {named} cannot be told from the functions of"):
        model.problem(4.0 if "year" in formula else 0.3)


def test_the_gate_is_asked_too(frame):
    with pytest.raises(DesignError, match=r"a constant coefficient of 'u' .* beside it, those of 'Intercept'"):
        VCMoE("y ~ z1 | gate: const(u) | vary: u", frame).problem(0.3)


@pytest.mark.parametrize(
    ("formula", "bandwidth"),
    [
        ("y ~ z1 + const(late) | vary: u", 0.3),  # a step is no smooth function
        ("y ~ z1 + const(late) | vary: u", 0.1),
        ("y ~ z1 + const(after) | vary: year", 4.0),
        ("y ~ z1 + const(z2) + const(I(z2**2)) + const(I(z2**3)) | vary: u", 0.05),
        ("y ~ z1 + const(C(site)) | vary: u", 0.2),
        ("y ~ z1 + const(far) | vary: u", 0.3),
        ("y ~ z1 + const(sin(3*days)) | vary: days", 6.0),  # a season beside a trend that cannot follow it
        ("y ~ const(1) + const(u) + z1 | vary: u", 0.3),  # no function that could take its place
        ("y ~ z1 | gate: const(1) + const(u) | vary: u", 0.3),
    ],
)
def test_constants_that_say_something_of_their_own_stand(frame, formula, bandwidth):
    model = VCMoE(formula, frame, experts=2 if "gate" in formula else 1)
    assert model.problem(bandwidth).const.any()


def test_constants_far_apart_in_scale_are_judged_alike(frame):
    for factor in (1e-8, 1.0, 1e8):
        data = frame.assign(big=factor * frame["u"], noise=factor * frame["z2"])
        VCMoE("y ~ z1 + const(noise) | vary: u", data, experts=1).problem(0.3)
        with pytest.raises(DesignError, match="a constant coefficient of 'big'"):
            VCMoE("y ~ z1 + const(big) | vary: u", data, experts=1).problem(0.3)


def test_advice_depends_on_whether_a_constant_would_do(frame):
    with pytest.raises(DesignError, match=r"'Intercept', 'u' apart .*leave it out, since const\(\.\.\.\) would not"):
        VCMoE("y ~ z1 + u | vary: u", frame, experts=1).problem(0.3)
    with pytest.raises(DesignError, match=r"'late' apart .*use a larger bandwidth, const\(\.\.\.\) for a column"):
        VCMoE("y ~ z1 + late | vary: u", frame, experts=1).problem(0.3)


def test_the_search_for_a_bandwidth_says_why_none_can_be_used(frame):
    with pytest.raises(DesignError, match="no bandwidth can be used; the widest fails because a constant coefficient"):
        VCMoE("y ~ z1 + const(u) | vary: u", frame, experts=1).fit(rng=0)


@pytest.mark.parametrize("held", [0, 1])
def test_an_expert_is_small_below_three_rows_per_function(held):
    """Rows counted by hand, weighted by the kernel ``1 - t^2``; a line has two coefficients, each needs 1.5."""
    const = np.arange(8) == 1 if held else None
    problem = make_problem(vcmoe(n=300, rng=1), 0.3, const=const)
    t = (problem.rows.index - problem.windows.grid[:, None]) / 0.3
    fewest = np.maximum(1.0 - t**2, 0.0).sum(axis=1).min()

    def flagged(rows):
        share = np.full((2, 300), [[rows / fewest], [0.5]])
        return identifiability._thin(problem, share, "u") is not None

    limit = 3.0 * (2 - held)
    assert [flagged(limit * factor) for factor in (0.99, 1.01)] == [True, False]


def test_ten_clusters_are_enough():
    flagged = [identifiability._few_clusters(np.arange(30) % g) is not None for g in (2, 9, 10, 11)]
    assert flagged == [True, True, False, False]
