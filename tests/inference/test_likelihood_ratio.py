"""Which fits may be compared, and with which null distribution."""

import numpy as np
import pytest
from scipy.stats import chi2

from mixmoe.errors import ArgumentError
from mixmoe.inference.likelihood_ratio import ChiBarSquared, LRTest
from mixmoe.inference.wald import InvalidTest
from mixmoe.mixture.estimate import Flag
from tests.fake_model import BOUNDARY, make_data, make_results

BASE = "y ~ time | gate: z | re: (1 | id)"


def compare(small, large, gain=3.0, **shared):
    """Test of two formulas (or formula and settings) whose log-likelihoods differ by `gain`."""
    texts = [one if isinstance(one, tuple) else (one, {}) for one in (small, large)]
    fits = [
        make_results(text, loglik=value, **shared, **settings)
        for (text, settings), value in zip(texts, (-200 - gain, -200), strict=True)
    ]
    one, two = fits[0].lr_test(fits[1]), fits[1].lr_test(fits[0])
    assert one == two
    return one


@pytest.mark.parametrize(
    ("small", "large", "df"),
    [
        (BASE, "y ~ time + x | gate: z | re: (1 | id)", 2),
        (BASE, "y ~ poly(time, 3) | gate: z | re: (1 | id)", 4),
        ("y ~ common(time) | gate: z | re: (1 | id)", BASE, 1),
        ("y ~ time | re: (1 | id)", BASE, 1),
        ("y ~ time | gate: z | re: (1 + time || id)", "y ~ time | gate: z | re: (1 + time | id)", 2),
        ((BASE, {"cov_re": "common"}), BASE, 1),
        ((BASE, {"residual": "common"}), BASE, 1),
        ("y ~ time | gate: z | re: (0 | id)", "y ~ time + x | gate: z | re: (0 | id)", 2),
    ],
)
def test_regular_hypotheses_are_chi_squared(small, large, df):
    found = compare(small, large)
    assert isinstance(found, LRTest), found
    assert found.statistic == pytest.approx(6)
    assert (found.df, found.null) == (df, ChiBarSquared((df,), (1.0,)))
    assert found.pvalue == found.p_lower == pytest.approx(chi2.sf(6, df))


@pytest.mark.parametrize(
    ("small", "large", "df"),
    [
        ("y ~ time | re: (0 | id)", "y ~ time | re: (1 | id)", 1),
        ("y ~ time | re: (1 | id)", "y ~ time | re: (1 + time | id)", 2),
        ("y ~ time | re: (1 | id)", "y ~ time | re: (1 + time || id)", 1),
        ("y ~ time | re: (1 | id)", "y ~ time + x | re: (1 + time | id)", 3),
        ("y ~ time | re: (1 + time | id)", "y ~ time | re: (1 + time + x | id)", 3),
    ],
)
def test_one_variance_gives_half_and_half(small, large, df):
    found = compare(small, large, experts=1)
    assert (found.df, found.null) == (df, ChiBarSquared((df - 1, df), (0.5, 0.5)))
    first = chi2.sf(6, df - 1) if df > 1 else 0.0
    assert found.pvalue == pytest.approx(0.5 * first + 0.5 * chi2.sf(6, df))
    assert found.p_lower == found.pvalue


def test_one_variance_shared_by_two_experts_is_still_one():
    found = compare((BASE, {"cov_re": "common"}), ("y ~ time | gate: z | re: (1 + time | id)", {"cov_re": "common"}))
    assert found.null == ChiBarSquared((1, 2), (0.5, 0.5))
    assert found.p_lower == found.pvalue


def test_a_variance_in_each_of_two_experts_is_bounded():
    found = compare(BASE, "y ~ time | gate: z | re: (1 + time | id)")
    assert found.df == 4
    assert found.pvalue == pytest.approx(0.5 * chi2.sf(6, 3) + 0.5 * chi2.sf(6, 4))
    assert found.p_lower == pytest.approx(0.5 * chi2.sf(6, 2) + 0.5 * chi2.sf(6, 3))
    assert "p <=" in str(found)
    assert "upper bound" in str(found)
    independent = 0.25 * chi2.sf(6, 2) + 0.5 * chi2.sf(6, 3) + 0.25 * chi2.sf(6, 4)
    assert found.p_lower < independent < found.pvalue


def test_bounds_hold_for_cones_of_two_variances():
    """Two uncorrelated variances, zero in truth: the cone is an orthant in the metric of their information."""
    rng = np.random.default_rng(0)
    for correlation in (-0.8, 0.0, 0.8):
        root = np.linalg.cholesky([[1, correlation], [correlation, 1]])
        inside = orthant_statistics(rng.normal(size=(4000, 2)) @ root.T, np.array([[1, correlation], [correlation, 1]]))
        share = (inside > 3.0).mean()
        slack = 4 * np.sqrt(share * (1 - share) / 4000)
        assert (
            ChiBarSquared((0, 1), (0.5, 0.5)).sf(3.0) - slack
            < share
            < ChiBarSquared((1, 2), (0.5, 0.5)).sf(3.0) + slack
        )


def orthant_statistics(estimates, covariance):
    """Likelihood ratio of "both >= 0" against "both = 0" for normal estimates."""
    information = np.linalg.inv(covariance)
    full = np.einsum("ni,ij,nj->n", estimates, information, estimates)
    best = np.where((estimates > 0).all(axis=1), full, 0.0)
    for i in range(2):  # on the edge where the other one is zero
        edge = np.maximum(estimates @ information[:, i], 0) ** 2 / information[i, i]
        best = np.where((estimates > 0).all(axis=1), best, np.maximum(best, edge))
    return best


def test_a_statistic_of_zero_has_p_one():
    assert compare("y ~ time | re: (0 | id)", "y ~ time | re: (1 | id)", gain=0.0, experts=1).pvalue == 1
    assert compare("y ~ time | re: (0 | id)", "y ~ time | re: (1 | id)", gain=-1e-9, experts=1).statistic == 0


@pytest.mark.parametrize(
    ("small", "large", "reason"),
    [
        (BASE, "y ~ x | gate: z | re: (1 + time | id)", "the expert columns"),
        ("y ~ time | gate: x1 | re: (1 | id)", "y ~ time + x | gate: z | re: (1 | id)", "the gate columns"),
        ("y ~ time | re: (1 + x || id)", "y ~ time + x | re: (1 + time | id)", "the random effects"),
        ("y ~ time | re: (1 + time | id)", "y ~ time + x + z | re: (1 + time || id)", "the random effects"),
        (BASE, (BASE.replace("time", "time + x"), {"cov_re": "common"}), "the random effects"),
        (BASE, (BASE.replace("time", "time + x"), {"residual": "common"}), "the residual variances"),
        (BASE, BASE, "same number of parameters"),
        ("y ~ time | gate: z", BASE, "routes subjects to experts"),
        (BASE, "log(y + 100) ~ time + x | gate: z | re: (1 | id)", "different responses"),
        (
            "y ~ time | re: (0 | id)",
            ("y ~ time | re: (1 | id)", {"cov_re": "proportional"}),
            "proportionality factors",
        ),
    ],
)
def test_fits_that_are_not_nested(small, large, reason):
    data = make_data().assign(x1=lambda d: d["z"] ** 2)
    found = compare(small, large, data=data)
    assert isinstance(found, InvalidTest)
    assert reason in found.reason


def test_another_number_of_experts_points_to_bic_or_simulation():
    found = make_results(experts=1).lr_test(make_results(experts=2))
    assert isinstance(found, InvalidTest)
    assert "1 and 2 experts" in found.reason
    assert "compare bic or icl, or refit responses drawn by simulate()" in found.reason


def test_other_rows_are_refused():
    data = make_data()
    holes = data.copy()
    holes.loc[7, "x"] = np.nan
    small, large = make_results(BASE, data), make_results(data=holes)
    assert "160 and 159 rows" in small.lr_test(large).reason
    other = data.copy()
    other.loc[0, "y"] += 1
    assert "different responses" in small.lr_test(make_results(data=other)).reason
    first, last = data.assign(x=data["x"].where(data.index > 0)), data.assign(x=data["x"].where(data.index < 159))
    found = make_results("y ~ time + x | re: (1 | id)", first).lr_test(
        make_results("y ~ time + x | gate: z | re: (1 | id)", last)
    )
    assert "different rows" in found.reason


def test_the_order_of_the_rows_does_not_matter():
    """A fit without subjects keeps the user's order, one with subjects sorts."""
    shuffled = make_data().sample(frac=1, random_state=1)
    small = make_results("y ~ time", shuffled, experts=1, loglik=-203)
    found = small.lr_test(make_results("y ~ time | re: (1 | id)", shuffled, experts=1))
    assert found.null == ChiBarSquared((0, 1), (0.5, 0.5))


@pytest.mark.parametrize(
    ("code", "word"), [("boundary", "boundary"), ("separated_gate", "infinite gate"), ("interrupted", "interrupted")]
)
def test_an_irregular_smaller_fit_is_refused(code, word):
    small = make_results(BASE, flags=(Flag(code, "message"),), loglik=-203)
    assert word in small.lr_test(make_results()).reason


def test_a_boundary_in_the_larger_fit_is_what_the_mixture_is_for():
    small = make_results("y ~ time | re: (1 | id)", experts=1, loglik=-200.1)
    at_zero = make_results("y ~ time | re: (1 + time | id)", experts=1, flags=(BOUNDARY,))
    assert isinstance(small.lr_test(at_zero), LRTest)
    found = small.lr_test(make_results("y ~ time + x | re: (1 | id)", experts=1, flags=(BOUNDARY,)))
    assert "boundary" in found.reason


def test_a_fit_that_did_not_converge_is_refused():
    found = make_results(BASE, converged=False, loglik=-203).lr_test(make_results())
    assert "did not converge" in found.reason


def test_a_larger_model_that_is_worse_is_refused():
    found = make_results(BASE, loglik=-199).lr_test(make_results(loglik=-200))
    assert "has not reached its maximum" in found.reason


def test_an_optimum_that_was_not_replicated_is_noted():
    once = Flag("not_replicated", "reached once")
    found = make_results(BASE, flags=(once,), loglik=-203).lr_test(make_results())
    assert "smaller fit was reached from one start" in str(found)


@pytest.mark.parametrize("code", ["laplace_bias", "quadrature_bias"])
def test_a_coarse_integral_is_noted(code):
    found = make_results(flags=(Flag(code, "coarse"),)).lr_test(make_results(BASE, loglik=-203))
    assert "the larger fit is by a" in str(found)
    assert "too coarse, see its flag" in " ".join(str(found).split())


@pytest.mark.parametrize("other", [None, 3.0, "fit"])
def test_other_must_be_a_fit(other):
    with pytest.raises(ArgumentError, match=f"results of another fit, got {type(other).__name__}"):
        make_results().lr_test(other)
