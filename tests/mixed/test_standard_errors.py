"""Standard errors that do not exist, p-values and limits that agree, limits from bootstrap replicates."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, poisson

import mixmoe as mm
from mixmoe.errors import ArgumentError, MixmoeWarning
from mixmoe.inference.uncertainty import acceleration, bca_limits
from mixmoe.inference.wald import InvalidTest
from tests.fits import carried

ALPHAS = (0.5, 0.2, 0.05, 0.01)


def quiet(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        return mm.fit(*args, **options)


# ---- flat likelihoods ----


@pytest.fixture(scope="module")
def zeros():
    """A class of subjects whose counts are all zero: its random effects leave no trace."""
    rng = np.random.default_rng(3)
    n, m = 80, 5
    id, t = np.repeat(np.arange(n), m), np.tile(np.arange(m), n) * 1.0
    none, b = rng.random(n) < 0.4, rng.normal(size=n)
    counts = np.where(none[id], 0, rng.poisson(np.exp(0.8 + 0.2 * t + 0.3 * b[id])))
    return pd.DataFrame({"id": id, "t": t, "c": counts})


FINE = 15  # points: with fewer the integral has a maximum at huge random effects that explain both classes


ARTEFACT = {
    "expert1.Intercept": -10.0,
    "expert1.t": 0.0,
    "expert2.Intercept": 0.8,
    "expert2.t": 0.2,
    "gate2.Intercept": 0.3,
    "sd1(Intercept|id)": 10.0,
    "sd2(Intercept|id)": 0.2,
}


@pytest.mark.parametrize("options", [{"start": ARTEFACT}, {"starts": 6}])
def test_a_maximum_that_only_laplace_has_is_not_taken(zeros, options):
    """An expert of the zeros with random effects of sd 10, of which Laplace's method does not see the positive ones.

    Neither an ascent that begins there nor the search ends there: the random effects of that expert are left out.
    """
    fit = quiet("c ~ t | re: (1 | id)", zeros, experts=2, family="poisson", rng=0, **options)
    assert fit.params[["sd1(Intercept|id)", "sd2(Intercept|id)"]].max() < 1
    right = sum(dense_poisson(fit.params, zeros))
    assert fit.llf == pytest.approx(right, abs=0.5)
    assert right > sum(dense_poisson(pd.Series(ARTEFACT), zeros)) + 5
    assert not [flag for flag in fit.flags if flag.code == "laplace_bias"]


def test_a_fine_integral_is_that_of_brute_force(zeros):
    fine = quiet("c ~ t | re: (1 | id)", zeros, experts=2, family="poisson", starts=6, rng=0, n_quad=FINE)
    assert fine.llf == pytest.approx(sum(dense_poisson(fine.params, zeros)), abs=1e-3)
    assert not [flag for flag in fine.flags if "bias" in flag.code]


def dense_poisson(params, data):
    """Log-likelihoods of the subjects, the integrals over the intercepts by sums over a fine grid."""
    grid = np.linspace(-10, 10, 4001)
    gate = np.array([0.0, params["gate2.Intercept"]])
    share = np.exp(gate) / np.exp(gate).sum()
    for _, rows in data.groupby("id"):
        total = 0.0
        for k in (1, 2):
            eta = params[f"expert{k}.Intercept"] + params[f"expert{k}.t"] * rows["t"].to_numpy()[:, None]
            rates = np.exp(eta + params[f"sd{k}(Intercept|id)"] * grid)
            density = poisson.pmf(rows["c"].to_numpy()[:, None], rates).prod(axis=0)
            total += share[k - 1] * (density * norm.pdf(grid)).sum() * (grid[1] - grid[0])
        yield np.log(total)


@pytest.mark.parametrize(("family", "flat"), [("poisson", ["sd"]), ("negbinomial", ["sd", "theta"])])
@pytest.mark.parametrize("unit", [1.0, 1000.0])
def test_what_the_data_say_nothing_about_has_no_number(zeros, family, flat, unit):
    data = zeros.assign(t=zeros["t"] * unit)
    fit = quiet("c ~ t | re: (1 | id)", data, experts=2, family=family, starts=6, rng=0, n_quad=FINE)
    empty = int(np.argmin([fit.params[f"expert{k}.Intercept"] for k in (1, 2)])) + 1
    names = [n for n in fit.params.index if any(n.startswith(f"{start}{empty}") for start in flat)]
    assert len(names) == len(flat)
    for name in names:  # the likelihood is flat indeed
        moved = fit.params.copy()
        moved[name] *= 1.5
        assert fit.model.loglike(moved) == pytest.approx(fit.llf, abs=1e-4)
    for kind in ("robust", "nonrobust"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MixmoeWarning)
            other = fit.with_cov(kind)
        assert other.bse[names].isna().all()
        assert other.conf_int().loc[names].isna().all(axis=None)
        assert np.isfinite(other.bse[f"sd{3 - empty}(Intercept|id)"])
        said = " ".join(flag.message for flag in other.flags if flag.code in ("flat_likelihood", "edge"))
        assert all(name in said for name in names)
        assert any(flag.code == "flat_likelihood" for flag in other.flags)
        assert isinstance(other.wald_test(f"{names[0]} = 1"), InvalidTest)


def test_correlation_of_an_expert_of_zeros(zeros):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        fit = carried("c ~ t | re: (1 + t | id)", zeros, family="poisson", n_quad=7)
    empty = int(np.argmin([fit.params[f"expert{k}.Intercept"] for k in (1, 2)])) + 1
    names = [n for n in fit.params.index if n.startswith((f"sd{empty}(", f"corr{empty}("))]
    assert len(names) == 3
    assert fit.bse[names].isna().all()


# ---- p-values and limits ----


def agree(fit, names):
    """A p-value below alpha and limits at level 1 - alpha that exclude zero are the same."""
    for alpha in ALPHAS:
        frame = fit.to_frame(alpha)
        for name in names:
            excluded = frame.loc[name, "conf_low"] > 0 or frame.loc[name, "conf_high"] < 0
            assert (frame.loc[name, "p_value"] < alpha) == excluded, (name, alpha)
    assert fit.pvalues[names].to_numpy() == pytest.approx(fit.to_frame().loc[names, "p_value"].to_numpy())


@pytest.fixture(scope="module")
def slopes():
    rng = np.random.default_rng(8)
    n, m = 30, 5
    id, t = np.repeat(np.arange(n), m), np.tile(np.arange(m), n) * 1.0
    b = rng.multivariate_normal([0, 0], [[1.0, 0.35], [0.35, 0.25]], size=n)
    y = 1 + b[id, 0] + b[id, 1] * t + rng.normal(size=id.size)
    return pd.DataFrame({"id": id, "t": t, "y": y})


def test_correlations_are_tested_on_fishers_scale(slopes):
    fit = quiet("y ~ t | re: (1 + t | id)", slopes, experts=1, cov_type="nonrobust")
    name = "corr1(Intercept,t|id)"
    r, se = fit.params[name], fit.bse[name]
    z = np.arctanh(r) / (se / (1 - r**2))
    assert fit.tvalues[name] == pytest.approx(z)
    assert fit.pvalues[name] == pytest.approx(2 * norm.sf(abs(z)))
    assert float(fit.t_test(f"{name} = 0").pvalue) == pytest.approx(fit.pvalues[name])
    assert fit.wald_test(f"{name} = 0").pvalue == pytest.approx(fit.pvalues[name])
    for kind in ("nonrobust", "robust"):
        agree(fit.with_cov(kind), [name, "expert1.Intercept", "expert1.t"])


def test_serial_correlations_too(slopes):
    fit = quiet("y ~ t | re: (1 | id)", slopes, experts=1, errors="ar1")
    agree(fit, ["rho1" if "rho1" in fit.params else "rho"])


@pytest.mark.parametrize("kind", ["nonrobust", "robust"])
def test_a_value_of_any_parameter_is_rejected_if_it_lies_outside_its_limits(slopes, kind):
    """Standard deviations, correlations and coefficients; t_test, wald_test and conf_int."""
    fit = quiet("y ~ t | re: (1 + t | id)", slopes, experts=1, cov_type=kind)
    limits = fit.conf_int(0.05)
    for name in fit.params.index:
        for end in (0, 1):
            for factor, rejected in ((0.999, False), (1.001, True)):
                value = float(fit.params[name] + factor * (limits.loc[name, end] - fit.params[name]))
                assert (float(fit.t_test(f"{name} = {value!r}").pvalue) < 0.05) == rejected
                assert (fit.wald_test(f"{name} = {value!r}").pvalue < 0.05) == rejected
        ours = fit.t_test(f"{name} = {float(fit.params[name])}").conf_int(0.05)[0] + fit.params[name]
        assert ours == pytest.approx(limits.loc[name].to_numpy(), rel=1e-9)


# ---- bootstrap limits ----


def test_bca_limits_by_hand():
    """Efron & Tibshirani (1993), chapter 14, formula by formula, for a variance of 20 numbers."""
    rng = np.random.default_rng(2)
    x = rng.exponential(size=20)
    draws = np.array([np.var(rng.choice(x, 20)) for _ in range(999)])
    influence = (x - x.mean()) ** 2 - np.var(x)
    a = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5)
    z0 = norm.ppf(np.mean(draws < np.var(x)))
    expected = []
    for z in (norm.ppf(0.05), norm.ppf(0.95)):
        level = norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z)))
        expected.append(np.sort(draws)[round(level * 1000) - 1])
    found = bca_limits(np.array([np.var(x)]), draws[:, None], acceleration(influence[:, None]), alpha=0.1)
    spacing = np.diff(np.sort(draws)).max()
    assert found.lower[0] == pytest.approx(expected[0], abs=spacing)
    assert found.upper[0] == pytest.approx(expected[1], abs=spacing)
    logs = bca_limits(np.log([np.var(x)]), np.log(draws)[:, None], acceleration(influence[:, None]), alpha=0.1)
    assert np.exp(logs.lower) == pytest.approx(found.lower, rel=1e-2)  # they follow a change of scale


def test_bootstrap_offers_bca_limits(slopes, tmp_path):
    fit = quiet("y ~ t | re: (1 | id)", slopes, experts=1).with_cov("bootstrap", n_boot=25, rng=0)
    limits, wald = fit.conf_int(0.2, method="bca"), fit.conf_int(0.2)
    assert (limits[0] < fit.params).all()
    assert (fit.params < limits[1]).all()
    width = (limits[1] - limits[0]) / (wald[1] - wald[0])
    assert width.between(0.6, 1.6).all()
    fit.save(tmp_path / "fit.mixmoe")
    pd.testing.assert_frame_equal(mm.load(tmp_path / "fit.mixmoe").conf_int(0.2, method="bca"), limits)
    with pytest.raises(ArgumentError, match="needs the replicates of a bootstrap, got cov_type='robust'"):
        fit.with_cov("robust").conf_int(method="bca")
    with pytest.raises(ArgumentError, match="method must be one of 'wald', 'bca', got 'percentile'"):
        fit.conf_int(method="percentile")


def test_relabelled_replicates_are_those_of_the_relabelled_fit():
    sim = mm.simulate.memoe("separated", n_subjects=60, n_visits=4, rng=1)
    fit = mm.fit("y ~ time | re: (1 | id)", sim.data, starts=4, rng=0).with_cov("bootstrap", n_boot=10, rng=0)
    moved = fit.relabel([2, 1])
    names = {"expert1.time": "expert2.time", "sigma2": "sigma1"}
    for old, new in names.items():
        assert moved.conf_int(method="bca").loc[new].to_numpy() == pytest.approx(
            fit.conf_int(method="bca").loc[old].to_numpy()
        )
