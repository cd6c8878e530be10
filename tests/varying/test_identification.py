"""Constant coefficients that the functions beside them make superfluous are refused, others are not."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.stats import norm

from mixmoe.errors import DesignError, MixmoeWarning
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


def test_dispersions_follow_an_exchange_of_labels():
    """With sigmas held the exchange costs 2.5, enough to decide; the sigmas that fit it best leave 1.6."""
    rng = np.random.default_rng(3)
    arm = rng.integers(0, 2, 400)
    second = rng.random(400) < np.where(arm, 0.35, 0.6)
    y = np.where(second, 4.0, 0.0) + 0.5 * arm + np.where(second, 1.25, 1.0) * rng.normal(size=400)
    data = pd.DataFrame({"y": y, "arm": arm.astype(str), "u": rng.random(400)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        fit = VCMoE("y ~ arm | gate: arm | vary: u", data, bandwidth=np.inf, dispersion="const").fit(rng=0, starts=4)
    (flag,) = (flag for flag in fit.flags if flag.code == "ambiguous_labels")
    b, first = fit.params, data["arm"] == "0"
    odds = b["gate2.Intercept"] + b["gate2.arm[T.1]"] * ~first
    logs = np.stack([-np.logaddexp(0.0, odds), -np.logaddexp(0.0, -odds)])
    means = [b[f"expert{k}.Intercept"] + b[f"expert{k}.arm[T.1]"] * ~first for k in (1, 2)]

    def highest(exchanged):
        def deviance(log_sigma):
            sigma = np.exp(log_sigma)
            each = [
                log + norm.logpdf(y, mean, np.where(exchanged, sigma[1 - k], sigma[k]))
                for k, (log, mean) in enumerate(zip(logs, means, strict=True))
            ]
            return -np.logaddexp(*each).sum()

        return -minimize(deviance, np.log([b["sigma1"], b["sigma2"]]), method="Nelder-Mead").fun

    drop = min(highest(first & False) - highest(first), highest(first & False) - highest(~first))
    assert f"only {drop:.2g} lower" in flag.message
    assert drop < 1.92
