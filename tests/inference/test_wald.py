"""Wald tests by name, against statsmodels' own and against dense algebra."""

import numpy as np
import pytest
from scipy.stats import chi2, norm

from mixmoe.errors import ArgumentError
from mixmoe.inference.uncertainty import wald_limits
from mixmoe.inference.wald import InvalidTest, WaldTest, parse_hypotheses, wald_test
from mixmoe.mixture.estimate import Parameter, ParamLayout
from tests.fake_model import make_results

NAMES = ("expert1.time", "expert2.time", "gate2.C(g)[T.b & c]", "sd1(time|id)", "expert1.a&b%", "expert1.I(x ** 2)")


@pytest.fixture
def fit():
    return make_results()


@pytest.fixture
def names(fit):
    return list(fit.params.index)


def test_text_of_awkward_names():
    text = "gate2.C(g)[T.b & c] = expert1.a&b%, 2 * expert1.I(x ** 2) - expert1.time = 3, sd1(time|id)"
    found = parse_hypotheses(text, NAMES)
    np.testing.assert_array_equal(found.matrix, [[0, 0, 1, 0, -1, 0], [-1, 0, 0, 0, 0, 2], [0, 0, 0, 1, 0, 0]])
    np.testing.assert_array_equal(found.values, [0, 3, 0])
    assert found.labels[1] == "-expert1.time + 2 * expert1.I(x ** 2) = 3"
    assert found.labels[2] == "sd1(time|id) = 0"


def test_list_and_commas_say_the_same():
    one = parse_hypotheses("expert1.time = expert2.time, expert1.a&b% = 1", NAMES)
    two = parse_hypotheses(["expert1.time = expert2.time", "expert1.a&b% = 1"], NAMES)
    np.testing.assert_array_equal(one.matrix, two.matrix)
    assert one.labels == two.labels


def test_joint_test_by_hand(fit, names):
    found = fit.wald_test(["expert1.time = expert2.time", "gate2.z = 0.5"])
    r = np.zeros((2, len(names)))
    r[0, [names.index("expert1.time"), names.index("expert2.time")]] = 1, -1
    r[1, names.index("gate2.z")] = 1
    gap = r @ fit.params.to_numpy() - [0, 0.5]
    expected = gap @ np.linalg.inv(r @ fit.cov_params().to_numpy() @ r.T) @ gap
    assert found.statistic == pytest.approx(expected)
    assert found.df == found.df_denom == 2
    assert found.pvalue == pytest.approx(chi2.sf(expected, 2))
    assert fit.wald_test((r, np.array([0, 0.5]))).statistic == pytest.approx(expected)
    assert "chi2(2)" in str(found)
    assert "gate2.z = 0.5" in str(found)


def test_one_hypothesis_squares_z(fit):
    joint, single = fit.wald_test("expert1.x = expert2.x"), fit.t_test("expert1.x = expert2.x")
    assert joint.statistic == pytest.approx(float(single.statistic.squeeze()) ** 2)
    assert joint.pvalue == pytest.approx(float(single.pvalue))
    assert "expert1.x - expert2.x = 0" in str(single)


def test_t_test_of_a_parameter_equals_its_row(fit):
    found = fit.t_test(["expert1.time", "gate2.z"])
    np.testing.assert_allclose(found.pvalue, fit.pvalues[["expert1.time", "gate2.z"]])
    np.testing.assert_allclose(found.conf_int(), fit.conf_int().loc[["expert1.time", "gate2.z"]])


def test_a_hypothesis_said_twice_counts_once(fit):
    once = fit.wald_test("expert1.x = expert2.x")
    twice = fit.wald_test(["expert1.x = expert2.x", "2 * expert1.x = 2 * expert2.x"])
    assert twice.df == 1
    assert twice.statistic == pytest.approx(once.statistic)


@pytest.mark.parametrize(
    "text",
    [
        "sigma1 = 0",
        "sd1(time|id)",
        "sd1(time|id) + sd2(time|id) = 0",
        "sigma1 = sigma2, sigma1 = 0",
        "sigma1 = -2",
        "corr1(Intercept,time|id) = 1",
        "expert1.time = 0, sigma1 = 0",
    ],
)
def test_a_deviation_at_zero_is_refused(fit, text):
    for found in (fit.wald_test(text), fit.t_test(text)):
        assert isinstance(found, InvalidTest)
        assert "boundary" in found.reason
        assert "lr_test" in str(found)
        assert not found


@pytest.mark.parametrize(
    "text", ["sigma1 = sigma2", "sigma1 = 2", "sd1(time|id) = sd2(time|id)", "corr1(Intercept,time|id) = 0"]
)
def test_hypotheses_inside_the_space_are_tested(fit, text):
    assert isinstance(fit.wald_test(text), WaldTest)


def test_the_units_of_a_deviation_do_not_matter():
    layout = ParamLayout((Parameter("sigma1", "residual", "sigma", 1, tested=False),))
    for unit in (1e-12, 1.0, 1e12):
        spec = parse_hypotheses((np.ones((1, 1)), np.array([0.5 * unit])), layout.names)
        from_inside = wald(spec, np.array([unit]), np.array([[unit**2]]), layout)
        assert from_inside.statistic == pytest.approx(np.log(2.0) ** 2)  # of log sd, whose standard error is one


def wald(spec, params, cov, layout):
    return wald_test(spec, params, cov, layout, "robust")


def test_a_parameter_without_standard_error_is_refused_only_where_used():
    fit = make_results(blank=(9,))
    found = fit.wald_test("sd1(time|id) = sd2(time|id)")
    assert isinstance(found, InvalidTest)
    assert "sd1(time|id)" in found.reason
    assert isinstance(fit.t_test("sd1(time|id) = 1"), InvalidTest)
    assert np.isfinite(fit.wald_test("expert1.time = expert2.time").pvalue)
    assert np.isfinite(fit.t_test("expert1.time").pvalue)


def test_an_invalid_test_has_no_number(fit):
    found = fit.wald_test("sigma1 = 0")
    with pytest.raises(AttributeError, match="no p-value"):
        _ = found.pvalue
    with pytest.raises(AttributeError, match="no statistic"):
        _ = found.statistic


def test_more_hypotheses_than_rank_of_the_covariance(fit):
    matrix = np.array(fit.cov.matrix)
    matrix[:3, :3] = np.ones((3, 3))
    flat = type(fit)(fit.model, fit.em, type(fit.cov)(matrix, "cluster"))
    found = flat.wald_test("expert1.Intercept, expert1.time, expert1.x")
    assert isinstance(found, InvalidTest)
    assert "lower rank" in found.reason


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("expert1.tme = 0", "Close names: expert1.time"),
        ("expert1.time2", "Close names"),
        ("", "empty"),
        (["expert1.time", " "], "empty"),
        ("1 = 0", "no variables"),
        ("expert1.time * expert2.time = 0", "multiply"),
        (np.zeros(16), "involves no parameter"),
        (["expert1.time = 0", "expert1.time = 1"], "'expert1.time = 1' contradicts"),
        ([], "needs 16 columns"),
        (np.ones(3), r"16 columns, one per parameter, got shape \(1, 3\)"),
        ((np.ones((2, 16)), np.ones(3)), "2 hypotheses need 2 right sides, got 3"),
        (np.full((1, 16), np.nan), "finite"),
        ({"a": 1}, "got {'a': 1}"),
        (None, "columns"),
    ],
)
def test_wrong_hypotheses(fit, spec, message):
    with pytest.raises(ArgumentError, match=message):
        fit.wald_test(spec)


def test_limits_stay_inside_the_space():
    layout = ParamLayout(
        (
            Parameter("expert1.x", "expert", "x", 1),
            Parameter("sd1(x|id)", "random", "sd(x)", 1, tested=False),
            Parameter("corr1(a,b|id)", "random", "corr(a,b)", 1),
        )
    )
    params, bse = np.array([0.5, 0.5, 0.9]), np.array([1.0, 1.0, 0.5])
    found = wald_limits(params, bse, layout)
    z = norm.ppf(0.975)
    assert found.lower[0] == pytest.approx(0.5 - z)
    assert found.upper[0] == pytest.approx(0.5 + z)
    assert found.lower[1] * found.upper[1] == pytest.approx(0.25)
    assert found.lower[1] > 0
    assert -1 < found.lower[2] < 0.9 < found.upper[2] < 1
    small = wald_limits(params, bse * 1e-5, layout)
    np.testing.assert_allclose(small.upper - small.lower, 2 * z * bse * 1e-5, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, "5%", True, None, np.nan])
def test_wrong_alpha(fit, alpha):
    with pytest.raises(ArgumentError, match="alpha must be a number between 0 and 1"):
        fit.conf_int(alpha)


@pytest.mark.parametrize("value", [1.0, -3.0, 1e9])
def test_a_hypothesis_said_twice_may_have_any_right_side(value):
    """Three times b = v is 3 b = 3 v, to the rounding of v: neither a contradiction nor a second degree of freedom."""
    layout = ParamLayout((Parameter("expert1.a", "expert", "a", 1), Parameter("expert1.b", "expert", "b", 1)))
    spec = parse_hypotheses((np.array([[1.0, 1 / 7], [3.0, 3 / 7]]), value * np.array([1 / 7, 3 / 7])), layout.names)
    found = wald(spec, np.array([value / 7 + 2.0, 0.0]), np.diag([4.0, 0.0]), layout)
    assert found.df == 1
    assert found.statistic == pytest.approx(1.0)  # (2 / 2)^2
    with pytest.raises(ArgumentError, match="contradicts"):
        wald(parse_hypotheses((spec.matrix, spec.values * [1.0, -1.0]), layout.names), np.ones(2), np.eye(2), layout)
