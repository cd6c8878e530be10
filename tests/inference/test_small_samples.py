"""Few independent units: CR2 and its degrees of freedom against dense algebra and lme4; what has no number."""

import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import sqrtm
from scipy.stats import f as f_distribution
from scipy.stats import t as student

import mixmoe as mm
from mixmoe.errors import MixmoeWarning
from mixmoe.inference.small_samples import corrected_scores, leverage
from mixmoe.inference.wald import InvalidTest
from mixmoe.mixed import information
from mixmoe.mixture.estimate import Parameter, ParamLayout
from tests.simulation.few_subjects import one_expert, two_experts

SIZES = (3, 9, 4, 6, 12, 5, 8)  # rows per cluster


@pytest.fixture(scope="module")
def clustered():
    rng = np.random.default_rng(5)
    site = np.repeat(np.arange(len(SIZES)), SIZES)
    x, z = rng.normal(size=site.size), rng.normal(size=len(SIZES))[site]
    y = 1 + 0.5 * x + rng.normal(size=len(SIZES))[site] + rng.normal(size=site.size)
    return pd.DataFrame({"site": site, "x": x, "z": z, "y": y})


@pytest.fixture(scope="module")
def least_squares(clustered):
    """One Gaussian expert without random effects is least squares."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        return mm.fit("y ~ x + z", clustered, experts=1, cov_type="cluster", cluster=clustered["site"])


class BellMcCaffrey:
    """CR2 of least squares by matrices of n rows, as in Bell & McCaffrey (2002) and Pustejovsky & Tipton (2018)."""

    def __init__(self, data):
        X = np.column_stack([np.ones(len(data)), data["x"], data["z"]])
        y, site = data["y"].to_numpy(), data["site"].to_numpy()
        M = np.linalg.inv(X.T @ X)
        H = X @ M @ X.T
        residual = y - H @ y
        self.parts = []  # (3, n) for each cluster: its change of the estimate is a linear function of the errors
        self.V = np.zeros((3, 3))
        for g in np.unique(site):
            at = site == g
            root = np.linalg.inv(np.real(sqrtm((np.eye(len(y)) - H)[np.ix_(at, at)])))
            to_estimate = M @ X[at].T @ root
            self.V += np.outer(to_estimate @ residual[at], to_estimate @ residual[at])
            self.parts.append(to_estimate @ (np.eye(len(y)) - H)[at])

    def df(self, c):
        G = np.array([[c @ a @ b.T @ c for b in self.parts] for a in self.parts])
        return np.trace(G) ** 2 / (G**2).sum()

    def eta(self, C):
        """Variances of all entries of the covariance of C b, standardised by its mean."""
        mean = sum(C @ a @ a.T @ C.T for a in self.parts)
        root = np.linalg.inv(np.real(sqrtm(mean)))
        vectors = [root @ C @ a for a in self.parts]
        total = 0.0
        for s in range(len(C)):
            for t in range(len(C)):
                for a in vectors:
                    for b in vectors:
                        cross = a @ b.T
                        total += cross[s, s] * cross[t, t] + cross[s, t] * cross[t, s]
        return len(C) * (len(C) + 1) / total


def test_cr2_of_least_squares(least_squares, clustered):
    dense = BellMcCaffrey(clustered)
    names = ["expert1.Intercept", "expert1.x", "expert1.z"]
    np.testing.assert_allclose(least_squares.cov_params().loc[names, names], dense.V, rtol=1e-6)
    df = [dense.df(row) for row in np.eye(3)]
    np.testing.assert_allclose(least_squares.df_t[names], df, rtol=1e-6)
    assert min(df) < 4  # the covariate that is constant in clusters: they matter


def test_everything_uses_the_same_degrees_of_freedom(least_squares, clustered):
    dense = BellMcCaffrey(clustered)
    df, V = dense.df(np.eye(3)[2]), dense.V[2, 2]
    estimate = least_squares.params["expert1.z"]
    p = 2 * student.sf(abs(estimate) / np.sqrt(V), df)
    limits = estimate + np.array([-1, 1]) * student.isf(0.05, df) * np.sqrt(V)
    row = least_squares.to_frame(alpha=0.1).loc["expert1.z"]
    assert least_squares.pvalues["expert1.z"] == pytest.approx(p, rel=1e-6)
    assert [row["p_value"], row["conf_low"], row["conf_high"]] == pytest.approx([p, *limits], rel=1e-6)
    assert least_squares.conf_int(alpha=0.1).loc["expert1.z"].to_numpy() == pytest.approx(limits, rel=1e-6)
    t = least_squares.t_test("expert1.z")
    assert float(t.pvalue) == pytest.approx(p, rel=1e-6)
    assert t.conf_int(0.1)[0] == pytest.approx(limits, rel=1e-6)
    wald = least_squares.wald_test("expert1.z")
    assert (wald.pvalue, wald.df_denom) == (pytest.approx(p, rel=1e-6), pytest.approx(df, rel=1e-6))
    assert least_squares.f_test("expert1.z").pvalue == wald.pvalue
    tidy = least_squares.tidy().set_index("name").loc["expert1.z"]
    assert (tidy["p.value"], tidy["df"]) == (pytest.approx(p, rel=1e-6), pytest.approx(df, rel=1e-6))
    terms = least_squares.wald_test_terms().to_frame().set_index("term").loc["z"]
    assert (terms["p_value"], terms["df_resid"]) == (pytest.approx(p, rel=1e-6), pytest.approx(df, rel=1e-6))
    assert "P>|t|" in str(least_squares.summary())


def test_a_joint_test_is_hotellings_with_matched_variance(least_squares, clustered):
    dense, C = BellMcCaffrey(clustered), np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    b, eta = least_squares.params.to_numpy()[1:3], dense.eta(C)
    F = (eta - 1) / (eta * 2) * b @ np.linalg.solve(dense.V[1:, 1:], b)
    found = least_squares.wald_test("expert1.x = 0, expert1.z = 0")
    assert (found.statistic, found.df_denom) == (pytest.approx(F, rel=1e-6), pytest.approx(eta - 1, rel=1e-6))
    assert found.pvalue == pytest.approx(f_distribution.sf(F, 2, eta - 1), rel=1e-6)
    assert f"F(2, {eta - 1:.4g})" in str(found)


def test_a_contrast_has_its_own_degrees_of_freedom(least_squares, clustered):
    dense, c = BellMcCaffrey(clustered), np.array([0.0, 1.0, -2.0])
    t = least_squares.t_test("expert1.x - 2 * expert1.z = 0")
    assert float(t.df_denom[0]) == pytest.approx(dense.df(c), rel=1e-6)


def test_limits_of_a_prediction_have_those_of_its_contrast(least_squares, clustered):
    dense, new = BellMcCaffrey(clustered), pd.DataFrame({"x": [0.7, -1.0], "z": [-1.2, 0.0]})
    X = np.column_stack([np.ones(2), new])
    half = [student.isf(0.05, dense.df(c)) * np.sqrt(c @ dense.V @ c) for c in X]
    for kind, name in (("mean", "mean"), ("experts", "expert1")):
        found = least_squares.predict(new, kind=kind, interval="confidence", alpha=0.1)
        assert (found[f"{name}_high"] - found[name]).to_numpy() == pytest.approx(half, rel=1e-6)
        assert (found[name] - found[f"{name}_low"]).to_numpy() == pytest.approx(half, rel=1e-6)


def test_limits_of_a_mean_of_counts_have_those_of_its_contrast():
    fit = mm.fit("y ~ x + z | re: (0 | c)", few("poisson", 16), experts=1, family="poisson")
    test = fit.t_test("expert1.Intercept + 0.5 * expert1.x - expert1.z = 0")
    assert test.df_denom[0] < 20
    for scale, to_link in (("link", np.asarray), ("response", np.log)):
        new = pd.DataFrame({"x": [0.5], "z": [-1.0]})
        found = fit.predict(new, kind="mean", interval="confidence", scale=scale)[["mean_low", "mean_high"]]
        np.testing.assert_allclose(to_link(found), test.conf_int(), rtol=1e-6)


def test_sleepstudy_has_the_errors_of_lme4():
    """Balanced: CR2 makes up for maximum likelihood exactly. lmer, REML: 6.825 and 1.546; lmerTest: 17 df."""
    fit = mm.fit("reaction ~ days | re: (1 + days | subject)", mm.datasets.load("sleepstudy"), experts=1, rng=0)
    assert fit.bse.iloc[:2].to_numpy() == pytest.approx([6.8246, 1.5458], rel=1e-4)
    assert fit.df_t.iloc[:2].to_numpy() == pytest.approx([17.0, 17.0], abs=0.05)


def few(family, n, seed=0):
    rng = np.random.default_rng(seed)
    c = np.arange(40 * n) % n
    data = pd.DataFrame({"x": rng.normal(size=c.size), "z": rng.normal(size=c.size), "c": c})
    eta = 1 + 0.2 * data["x"] + rng.normal(size=n)[c]
    draws = {
        "gaussian": lambda: eta + rng.normal(size=c.size),
        "binomial": lambda: (rng.random(c.size) < 1 / (1 + np.exp(-eta))) * 1.0,
        "poisson": lambda: rng.poisson(np.exp(eta)) * 1.0,
    }
    return data.assign(y=draws[family]())


@pytest.mark.parametrize("family", ["gaussian", "binomial", "poisson"])
@pytest.mark.parametrize("n", [2, 3])
def test_fewer_subjects_than_parameters_have_no_robust_errors(family, n):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        fit = mm.fit("y ~ x + z | re: (1 | c)", few(family, n), experts=1, family=family)
        model_based = fit.with_cov("nonrobust")
    message = next(flag.message for flag in fit.flags if flag.code == "few_subjects")
    assert "'nonrobust'" in message
    assert "'bootstrap'" in message
    assert fit.bse.isna().all()
    assert isinstance(fit.wald_test("expert1.x"), InvalidTest)
    assert np.isfinite(model_based.bse["expert1.x"])
    assert any(flag.code == "few_subjects" for flag in model_based.flags)


def test_a_column_of_one_subject_has_no_robust_error_and_the_others_have():
    data = few("gaussian", 20).assign(one=lambda d: (d["c"] == 3) * 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        fit = mm.fit("y ~ x + one | re: (1 | c)", data, experts=1)
    assert list(fit.bse.index[fit.bse.isna()]) == ["expert1.one"]


def test_degrees_of_freedom_are_saved(least_squares, tmp_path):
    least_squares.save(tmp_path / "fit.mixmoe")
    again = mm.load(tmp_path / "fit.mixmoe")
    pd.testing.assert_frame_equal(again.to_frame(), least_squares.to_frame())
    assert str(again.wald_test("expert1.x = 0, expert1.z = 0")) == str(
        least_squares.wald_test("expert1.x = 0, expert1.z = 0")
    )
    assert again.flags == least_squares.flags


def test_many_subjects_change_nothing():
    data = mm.simulate.memoe("single", n_subjects=500, rng=1)
    fit = mm.fit(data.formula, data.data, experts=1, rng=0)
    plain = fit.with_cov("robust", correction=False)
    np.testing.assert_allclose(fit.bse, plain.bse, rtol=0.01)
    np.testing.assert_allclose(fit.pvalues.dropna(), plain.pvalues.dropna(), atol=5e-3)
    assert np.isinf(plain.df_t).all()


# ---- mixtures, where a subject may hold more information than all together ----


def test_scores_of_a_unit_that_holds_more_than_all_are_doubled():
    """Shares of 1.3, 0.2 and -0.5 of an information of one: (1 - h)^-1 bounded at 2, 1.25, and never below 1."""
    shares = np.array([1.3, 0.2, -0.5]).reshape(3, 1, 1)
    units = leverage(shares, jackknife=True)
    scores = corrected_scores(np.full((3, 1), 2.0), np.array([[0.5]]), units)
    np.testing.assert_allclose(scores[:, 0], [2.0, 1.25, 1.0])
    assert units.heavy.tolist() == [True, False, False]
    assert not leverage(shares).heavy.any()


def test_scores_of_a_variance_are_doubled_at_most_with_one_expert():
    """Shares of 0.9 in a coefficient and in a variance: (1 - h)^-1/2 is 3.16, and at most 2."""
    units = leverage(np.diag([0.9, 0.9])[None], further=np.array([False, True]))
    np.testing.assert_allclose(np.diag(units.factor[0]), [0.1**-0.5, 2.0])


def test_a_standard_deviation_that_one_subject_tells_does_not_explode():
    """Six subjects of binary responses: 22 times the plain error without the bound."""
    data = one_expert(np.random.default_rng([6, 0]), "binomial", 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        fit = mm.fit("y ~ x + z | re: (1 | id)", data, experts=1, family="binomial")
        plain = fit.with_cov("robust", correction=False)
    assert 1.0 < fit.bse["sd1(Intercept|id)"] / plain.bse["sd1(Intercept|id)"] < 2.5


SMALL_MIXTURE = [
    *(f"expert{k}.{name}" for k in (1, 2) for name in ("Intercept", "z")),
    "gate2.Intercept",
    *(f"sd{k}(Intercept|id)" for k in (1, 2)),
    *("sigma1", "sigma2"),
]


@pytest.fixture(scope="module")
def small_mixture():
    """A data set of the simulation study for which an unbounded correction gives 350 times the jackknife."""
    data = two_experts(np.random.default_rng([30, 14]), 30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        # Not the highest maximum, at which an expert has no random effects.
        start = pd.Series([1.74, -0.06, 0.10, -0.20, -1.98, 1.50, 0.37, 0.72, 0.18], index=SMALL_MIXTURE)
        fit = mm.fit("y ~ z | re: (1 | id)", data, experts=2, start=start)
        left_out = [
            mm.fit("y ~ z | re: (1 | id)", data[data["id"] != i], experts=2, start=fit, cov_type="nonrobust").params
            for i in range(30)
        ]
    return fit, np.array(left_out)


def test_standard_errors_of_a_small_mixture_are_those_of_the_jackknife(small_mixture):
    fit, left_out = small_mixture
    jackknife = np.sqrt(((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0) * 29 / 30)
    np.testing.assert_allclose(fit.bse, jackknife, rtol=0.5)
    (message,) = [flag.message for flag in fit.flags if flag.code == "weak_identification"]
    assert "What is said about expert2.Intercept" in message
    assert "rests on 2 of the subjects" in message
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        plain = fit.with_cov("robust", correction=False)
    assert "weak_identification" not in [flag.code for flag in plain.flags]
    shares = fit.proportions()
    assert shares["std_error"].between(0.0, 0.2).all()


def test_a_log_likelihood_that_is_not_quadratic_is_said(monkeypatch):
    """It falls by 10.5, printed as 10, over one standard error of the first parameter, by 0.5 over the second's."""

    class Evaluated:
        def __init__(self, theta):
            self.loglik = -0.5 * (theta**2).sum(axis=1) - 10.0 * theta[:, 0] ** 4

    monkeypatch.setattr(information, "evaluate", lambda problem, theta: Evaluated(theta))
    monkeypatch.setattr(information, "replace", lambda problem, ridge: problem)
    layout = ParamLayout(tuple(Parameter(f"expert1.{x}", "expert", x, 1) for x in ("a", "b")))
    inverse = information.InverseInformation(np.eye(2), np.zeros((2, 0)), np.zeros((2, 0)))
    known, units = information.Identified(np.eye(2), inverse, [], ()), information.Units(None, 4)
    scores = np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, -0.7], [0.0, 0.7]])
    boundary = SimpleNamespace(theta=np.zeros(2))
    at = SimpleNamespace(problem=None, boundary=boundary, score_rows=scores, jacobian=np.eye(2), layout=layout)
    flag = information._about_shape(at, None, units, known)
    assert flag.code == "weak_identification"
    assert "in expert1.a: one standard error away it lies 10 below" in flag.message
    at.score_rows = scores / 3
    assert information._about_shape(at, None, units, known) is None
