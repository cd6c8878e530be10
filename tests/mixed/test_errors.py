"""Correlated, unequal and heavy-tailed errors of a MEMoE: likelihood, score, information, refusals."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_t
from statsmodels.tsa.statespace.structural import UnobservedComponents

import mixmoe as mm
from mixmoe.errors import ArgumentError, DesignError, FormulaError
from mixmoe.mixed.error_structure import ErrorOptions
from mixmoe.mixed.likelihood.hessian import observed_information
from mixmoe.mixed.likelihood.observed import subject_scores
from mixmoe.mixed.parameters import permute_reported
from tests import dense

# Rows of the small data are in no order of time on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:errors='ar1' takes the row before as the rows stand")

CLOSE = 1e-8  # relative; rounding of two orders of summation
ERRORS = {
    "ar1": {"errors": "ar1", "time": "visit"},
    "order": {"errors": "ar1"},
    "car1": {"errors": "car1", "time": "time"},
    "bm": {"errors": "bm", "time": "time"},
    "t": {"errors_dist": "t"},
    "t5": {"errors_dist": "t", "errors_df": 5.0},
    "car1 t": {"errors": "car1", "time": "time", "errors_dist": "t"},
    "bm t": {"errors": "bm", "time": "time", "errors_dist": "t"},
    "sigma": {},
}
SIGMA = {"none": "", "own": " | sigma: time", "mixed": " | sigma: year + common(x)"}
RANDOM = {"full": "(1 + time | id)", "diagonal": "(1 + time || id)", "none": "(0 | id)"}


def small_data(seed=0, n_subjects=14):
    """Subjects with 1 to 6 rows in no order of time; a response far from zero, years away from zero."""
    rng = np.random.default_rng(seed)
    counts = np.r_[1, 6, rng.integers(1, 7, n_subjects - 2)]
    subject = np.repeat(np.arange(n_subjects), counts)
    n = len(subject)
    time = rng.uniform(0.1, 4, n)
    data = pd.DataFrame({"id": subject, "time": time, "x": rng.normal(size=n), "year": 20 + time})
    data["visit"] = data.groupby("id")["time"].rank() * 2
    data["z"] = rng.normal(size=n_subjects)[subject]
    return data.assign(y=1000 + 30 * rng.normal(size=n))


def build(errors="car1", experts=2, random="full", sigma="none", **options):
    formula = f"y ~ time + common(x) | gate: z | re: {RANDOM[random]}{SIGMA[sigma]}"
    return mm.MEMoE(formula, small_data(), experts, **ERRORS[errors], **options)


def some_point(model, seed=1):
    """Reported parameters at a random place inside the parameter space, with positive correlations."""
    rng = np.random.default_rng(seed)
    free = model.problem.free
    theta = 0.4 * rng.normal(size=free.size)
    if model.structure.n_random:
        theta[free.factor] += 0.3 * np.eye(model.structure.n_random)[model.structure.factor_entries]
    for at in free.scale[free.scale >= 0]:
        theta[at] = rng.uniform(0.5, 2)
    theta[free.extra] = np.abs(theta[free.extra])
    return model.natural(theta)


def fixed_df(model):
    return None if model.errors is None else model.errors.form.df


STRUCTURES = [
    *itertools.product(ERRORS, ("full", "none"), ("none", "own", "mixed"), ("expert",), ("expert", "common")),
    *itertools.product(("car1 t", "bm", "sigma"), RANDOM, ("mixed",), ("common", "proportional"), ("expert", "common")),
]
STRUCTURES = [case for case in STRUCTURES if case[0] != "sigma" or case[2] != "none"]


@pytest.mark.parametrize(("errors", "random", "sigma", "cov_re", "residual"), STRUCTURES)
def test_log_likelihood_and_score(errors, random, sigma, cov_re, residual):
    model = build(errors, random=random, sigma=sigma, cov_re=cov_re, residual=residual)
    params = some_point(model)
    named = dense.as_named(model.layout, params)
    df = fixed_df(model)
    assert model.loglike(params) == pytest.approx(dense.logliks(model.design, named, 2, df).sum(), rel=CLOSE)
    expected = dense.scores(model, params, df).sum(axis=0)
    assert np.abs(model.score(params) - expected).max() / np.abs(expected).max() < CLOSE


def test_a_brownian_motion_is_the_local_level_model_of_statsmodels():
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"id": np.repeat(np.arange(8), 5), "time": np.tile(np.arange(1.0, 6.0), 8)})
    data["y"] = 2.0 + rng.normal(size=40).cumsum() + rng.normal(size=40)
    model = mm.MEMoE("y ~ 1 | re: (0 | id)", data, 1, errors="bm", time="time")
    peer = 0.0
    for _, rows in data.groupby("id"):
        kalman = UnobservedComponents(rows["y"].to_numpy() - 1.5, "llevel")
        kalman.ssm.initialize_known(np.zeros(1), np.array([[0.7**2]]))  # the motion starts at time zero, one before
        kalman.loglikelihood_burn = 0
        peer += kalman.loglike([1.2**2, 0.7**2])
    named = {"expert1.Intercept": 1.5, "sigma1": 1.2, "sd_bm1": 0.7}
    assert model.loglike(named) == pytest.approx(peer, rel=1e-10)


def test_t_errors_are_the_multivariate_t_of_scipy():
    data = small_data()
    model = mm.MEMoE("y ~ time | re: (1 | id)", data, 1, errors_dist="t")
    named = {"expert1.Intercept": 990.0, "expert1.time": 3.0, "sd1(Intercept|id)": 8.0, "sigma1": 20.0, "df1": 4.5}
    peer = 0.0
    for _, rows in data.groupby("id"):
        shape = 8.0**2 + 20.0**2 * np.eye(len(rows))
        peer += multivariate_t(990.0 + 3.0 * rows["time"], shape, df=4.5).logpdf(rows["y"])
    assert model.loglike(named) == pytest.approx(peer, rel=1e-10)


@pytest.mark.parametrize("by", ["expert", "common"])
@pytest.mark.parametrize("errors", ["ar1", "car1 t", "bm t"])
def test_names_of_own_and_common_parameters(errors, by):
    names = build(errors, sigma="mixed", errors_by=by).layout.names
    kind = {"ar1": "rho", "car1 t": "phi", "bm t": "sd_bm"}[errors]
    shape = (f"{kind}1", f"{kind}2") if by == "expert" else (kind,)
    tails = (("df1", "df2") if by == "expert" else ("df",)) if errors != "ar1" else ()
    assert names[-len((*shape, *tails)) - 5 :] == (
        *("sigma1", "sigma2", "sigma1.year", "sigma2.year", "sigma.x"),
        *shape,
        *tails,
    )


def test_parameters_of_errors_follow_the_residual_unless_told_otherwise():
    assert "phi" in build("car1", residual="common").layout.names
    assert "phi2" in build("car1", residual="common", errors_by="expert").layout.names


@pytest.mark.parametrize("errors", ["ar1", "car1 t", "bm", "t5"])
def test_information_is_the_derivative_of_the_score(errors):
    model = build(errors, sigma="own")
    theta = model.working(some_point(model))
    information = observed_information(model.problem, theta)
    step = 1e-6
    numeric = [
        (
            subject_scores(model.problem, theta + step * e).sum(axis=0)
            - subject_scores(model.problem, theta - step * e).sum(axis=0)
        )
        / (2 * step)
        for e in np.eye(theta.size)
    ]
    np.testing.assert_allclose(information, -np.array(numeric), atol=1e-6 * np.abs(information).max())


@pytest.mark.parametrize("errors", ["order", "car1 t", "bm"])
def test_relabelling_keeps_the_likelihood(errors):
    model = build(errors, experts=3, sigma="mixed")
    params = some_point(model)
    moved = permute_reported(model.structure, params, [2, 0, 1])
    assert model.loglike(moved) == pytest.approx(model.loglike(params), rel=1e-12)


@pytest.mark.parametrize("errors", ["car1", "bm"])
def test_the_order_of_rows_does_not_matter_where_there_are_times(errors):
    model = build(errors, sigma="own")
    params = some_point(model)
    shuffled = small_data().sample(frac=1, random_state=1)
    other = mm.MEMoE(model.formula, shuffled, 2, **ERRORS[errors])
    assert other.loglike(params) == pytest.approx(model.loglike(params), rel=1e-12)


def serial_data(seed=3, n_subjects=60):
    """Random intercepts, a Brownian motion and measurement error."""
    rng = np.random.default_rng(seed)
    data = pd.DataFrame({"id": np.repeat(np.arange(n_subjects), 6), "time": np.tile([0.5, 1, 2, 3, 5, 6], n_subjects)})
    steps = rng.normal(size=len(data)) * np.sqrt(np.tile([0.5, 0.5, 1, 1, 2, 1], n_subjects))
    motion = pd.Series(steps).groupby(data["id"]).cumsum()
    effect = rng.normal(size=n_subjects)[data["id"]]
    data["x"] = rng.normal(size=len(data))
    return data.assign(y=5 + data["time"] + effect + motion + np.exp(0.3 * data["x"]) * rng.normal(size=len(data)))


def test_units_of_time_and_response_change_nothing_but_units():
    data = serial_data()
    formula = "y ~ time | re: (1 | id) | sigma: x"
    days = data.assign(day=data["time"] * 365.25, ten=data["y"] * 10)
    for kind, name in (("car1", "phi1"), ("bm", "sd_bm1")):
        one = mm.fit(formula, data, 1, errors=kind, time="time")
        two = mm.fit(formula.replace("y ~", "ten ~"), days, 1, errors=kind, time="day")
        assert two.llf == pytest.approx(one.llf - one.nobs * np.log(10), rel=1e-9)
        factor = 1 / 365.25 if kind == "car1" else 10 / np.sqrt(365.25)
        assert two.params[name] == pytest.approx(one.params[name] * factor, rel=1e-3)


def shifted(column, value):
    data = small_data()
    data.loc[5, column] = value
    return data


REFUSED = [
    ({"errors": "arma"}, ArgumentError, "errors must be one of 'iid', 'ar1', 'car1', 'bm', got 'arma'"),
    ({"errors": "car1"}, ArgumentError, "errors='car1' needs time="),
    ({"errors": "bm"}, ArgumentError, "errors='bm' needs time="),
    ({"errors": "car1", "time": 3}, ArgumentError, "time must be the name of a column, or an array"),
    ({"errors_by": "common"}, ArgumentError, "has no use"),
    ({"errors": "ar1", "errors_by": "all"}, ArgumentError, "errors_by must be one of 'expert', 'common', got 'all'"),
    ({"errors_dist": "cauchy"}, ArgumentError, "errors_dist must be one of 'normal', 't', got 'cauchy'"),
    ({"errors_df": 4}, ArgumentError, "errors_df=4 is for errors_dist='t'"),
    ({"errors_dist": "t", "errors_df": -1}, ArgumentError, "errors_df must be a finite number above zero, got -1"),
    ({"errors": "car1", "time": "yaer"}, DesignError, "'yaer'"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_refused_options(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        mm.MEMoE("y ~ time | re: (1 | id)", small_data(), 1, **options)


def with_text():
    data = small_data()
    return data.assign(time=data["time"].map("{:.2f}".format))


BAD_TIMES = [
    ("car1", shifted("time", small_data().loc[4, "time"]), r"'time' of time= is \S+ twice for subject 1.*row 5"),
    ("bm", shifted("time", -1.0), "'time' of time= is -1 in row 5; the Brownian motion"),
    ("ar1", shifted("visit", 2.5), "'visit' of time= is 2.5 in row 5; errors='ar1' needs whole numbers"),
    ("car1", shifted("time", np.inf), r"column 'time' \(time\) is inf in row 5"),
    ("car1", with_text(), "must hold numbers, got '"),
]


@pytest.mark.parametrize(("errors", "data", "message"), BAD_TIMES, ids=[message for _, _, message in BAD_TIMES])
def test_bad_times(errors, data, message):
    with pytest.raises(DesignError, match=message):
        mm.MEMoE("y ~ x | re: (1 | id)", data, 1, **ERRORS[errors])


def test_missing_times_leave_the_row_out():
    with pytest.warns(mm.errors.DroppedRowsWarning, match="1 of"):
        model = mm.MEMoE("y ~ x | re: (1 | id)", shifted("time", np.nan), 1, **ERRORS["car1"])
    assert model.design.n == len(small_data()) - 1


def test_times_without_correlation_only_choose_the_rows(tmp_path):
    data = shifted("time", np.nan)
    with pytest.warns(mm.errors.DroppedRowsWarning):
        fit = mm.fit("y ~ x | re: (0 | id)", data, 1, time="time")
    assert fit.nobs == len(data) - 1
    fit.save(tmp_path / "fit.mixmoe")
    assert mm.load(tmp_path / "fit.mixmoe").llf == fit.llf


def test_correlated_errors_need_subjects_with_several_rows():
    with pytest.raises(DesignError, match="names no subjects"):
        mm.MEMoE("y ~ x", small_data(), 1, errors="ar1")
    with pytest.raises(DesignError, match="cannot be told from"):
        mm.MEMoE("y ~ x | re: (0 | id)", small_data().drop_duplicates("id"), 1, errors="ar1")


def test_covariates_of_the_standard_deviation_far_from_zero_are_refused():
    data = small_data().assign(year=lambda d: 2000 + d["time"])
    with pytest.raises(DesignError, match=r"'year' of sigma: has mean 200.*shift it, as in I\(year - 200"):
        mm.MEMoE("y ~ x | re: (1 | id) | sigma: year", data, 1)


def test_varying_coefficients_have_no_sigma():
    with pytest.raises(FormulaError, match="VCMoE has no section 'sigma:'"):
        mm.VCMoE("y ~ x | vary: time | sigma: x", small_data(), 1)


@pytest.mark.parametrize(
    ("time", "words"),
    [
        (None, "AR(1) over rows in the order of the data (no time=), normal"),
        ("visit", "AR(1) over visit, normal"),
    ],
)
def test_the_header_says_what_orders_the_errors(time, words):
    assert ErrorOptions("ar1", time, "expert", "normal", None).described == words
