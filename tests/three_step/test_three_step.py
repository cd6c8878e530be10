"""Three-step estimates: hand computation, special cases that must collapse, peers, the jackknife."""

import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from scipy.optimize import minimize
from scipy.stats import chi2, skew

import mixmoe as mm
from mixmoe.errors import (
    ArgumentError,
    AssumptionWarning,
    BoundaryWarning,
    ConvergenceWarning,
    DesignError,
    FormulaError,
)
from mixmoe.inference.wald import InvalidTest
from mixmoe.three_step.distal import Distal, Predictors
from mixmoe.three_step.estimates import Normal, StepThree, build_assignment, skewness
from tests.check.helpers import pbc
from tests.fits import carried

SIMPLEX = {"method": "Nelder-Mead", "options": {"maxiter": 9000, "xatol": 1e-9, "fatol": 1e-10}}
METHODS = ["bch", "ml", "naive"]


def overlapping(n_subjects=160, seed=3, K=2):
    """A fit whose experts overlap, with outcomes that depend on the true ones."""
    rng = np.random.default_rng(seed)
    beta = [[0.0, 0.0], [1.6, 0.4], [-1.6, -0.4]][:K]
    gamma = [[0.1, 0.7], [-0.2, -0.5]][: K - 1]
    sim = mm.simulate.memoe(
        n_subjects=n_subjects, n_visits=5, beta=beta, gamma=gamma, D=[[[0.5]]] * K, sigma=[1.0] * K, rng=rng
    )
    options = {"experts": K, "cov_re": "common", "residual": "common"}
    fit = carried("y ~ time | re: (1 | id)", sim.data, **options)
    first = sim.data.groupby("id", sort=True).first()
    k = sim.experts - 1
    outcomes = pd.DataFrame(
        {"id": first.index, "z": first["z1"].to_numpy(), "age": rng.normal(50, 10, size=n_subjects)}
    )
    outcomes["o"] = k + 0.02 * outcomes["age"] + rng.normal(size=n_subjects)
    outcomes["b"] = (rng.random(n_subjects) < 0.3 + 0.2 * k).astype(int)
    outcomes["c"] = np.array(["lo", "mid", "hi"])[rng.binomial(2, 0.3 + 0.15 * k)]
    return fit, outcomes, options


@pytest.fixture(scope="module")
def case():
    return overlapping()


@pytest.fixture(scope="module")
def clear():
    """Memberships beyond doubt."""
    rng = np.random.default_rng(0)
    sim = mm.simulate.memoe("separated", n_subjects=200, rng=1, beta=[[0.0, 0, 0], [40.0, 0, 0]])
    fit = carried("y ~ time | re: (1 | id)", sim.data)
    out = pd.DataFrame({"id": fit.responsibilities.index, "x": rng.normal(size=200)})
    out["k"] = pd.Categorical(fit.classify()["expert"].to_numpy(), categories=[1, 2])
    out["o"] = 2.0 * (out["k"] == 2) + out["x"] + rng.normal(size=200)
    out["b"] = (rng.random(200) < np.where(out["k"] == 2, 0.6, 0.3)).astype(int)
    return fit, out


@pytest.mark.parametrize("method", METHODS)
def test_without_doubt_all_methods_are_ordinary_regression(clear, method):
    fit, out = clear
    found = fit.distal("o ~ expert * x", out, method=method)
    peer = smf.ols("o ~ C(k) * x", out).fit(cov_type="HC0")
    np.testing.assert_allclose(found.coefficients.values, peer.params, rtol=1e-5)
    np.testing.assert_allclose(found.coefficients.std_errors, peer.bse, rtol=1e-4)
    logit = fit.distal("b ~ expert + x", out, method=method)
    other = smf.logit("b ~ C(k) + x", out).fit(disp=False, cov_type="HC0")
    np.testing.assert_allclose(logit.coefficients.values, other.params, rtol=1e-5)
    np.testing.assert_allclose(logit.coefficients.std_errors, other.bse, rtol=1e-4)
    margins = [other.predict(out.assign(k=pd.Categorical([k] * 200, categories=[1, 2]))).mean() for k in (1, 2)]
    np.testing.assert_allclose(logit.to_frame()["estimate"], margins, rtol=1e-5)
    gate = fit.covariates("~ x", out, method=method)
    known = sm.Logit((out["k"] == 2).astype(float), sm.add_constant(out["x"])).fit(disp=False, cov_type="HC0")
    np.testing.assert_allclose(gate.coefficients.values, known.params, rtol=1e-5)
    np.testing.assert_allclose(gate.coefficients.std_errors, known.bse, rtol=1e-3)


@pytest.mark.parametrize("formula", ["~ g + x", "~ C(g) + x", "~ x + g:x"])
def test_a_factor_is_tested_as_a_whole(clear, formula):
    fit, out = clear
    out = out.assign(g=np.array(list("abc"))[np.arange(len(out)) % 3])
    found = fit.covariates(formula, out)
    tests = found.tests()
    factor = next(term for term in tests.index if "g" in term)
    peer = smf.logit(f"second {formula}", out.assign(second=(out["k"] == 2) * 1.0)).fit(disp=False, cov_type="HC0")
    columns = [i for i, name in enumerate(peer.model.exog_names) if "g" in name]
    joint = peer.wald_test(np.eye(len(peer.params))[columns], scalar=True)
    assert tests.loc[factor, "df"] == len(columns) == 2
    np.testing.assert_allclose(tests.loc[factor, "statistic"], joint.statistic, rtol=5e-3)
    assert list(tests.index) == list(
        dict.fromkeys(["Intercept", *(["x", "g:x"] if "x + g" in formula else [factor, "x"])])
    )


def test_bch_means_by_hand(case):
    fit, out, _ = case
    D = fit.classification_table().probabilities
    modal = fit.classify()["expert"].to_numpy() - 1
    weights = np.linalg.inv(D)[modal]
    means = (weights * out[["o"]].to_numpy()).sum(axis=0) / weights.sum(axis=0)
    found = fit.distal("o ~ expert", out, method="bch")
    np.testing.assert_allclose(found.to_frame()["estimate"], means, rtol=1e-8)
    risks = (weights * out[["b"]].to_numpy()).sum(axis=0) / weights.sum(axis=0)
    np.testing.assert_allclose(fit.distal("b ~ expert", out, method="bch").to_frame()["estimate"], risks, rtol=1e-8)
    naive = out.groupby(modal)["o"].mean()
    np.testing.assert_allclose(fit.distal("o ~ expert", out, method="naive").to_frame()["estimate"], naive, rtol=1e-8)
    assert abs(np.diff(naive)[0]) < abs(np.diff(means)[0])  # doubt attenuates


def test_ml_by_brute_force(case):
    fit, out, _ = case
    D = fit.classification_table().probabilities
    modal = fit.classify()["expert"].to_numpy() - 1
    o = out["o"].to_numpy()

    def minus(t):
        p = 1 / (1 + np.exp(-t[0]))
        density = [np.exp(-0.5 * ((o - t[1 + k]) / np.exp(t[3 + k])) ** 2 - t[3 + k]) for k in (0, 1)]
        return -np.log((1 - p) * D[0, modal] * density[0] + p * D[1, modal] * density[1]).sum()

    best = minimize(minus, [0, o.mean() - 0.5, o.mean() + 0.5, 0, 0], **SIMPLEX)
    found = fit.distal("o ~ expert", out, method="ml")
    np.testing.assert_allclose(found.to_frame()["estimate"], best.x[1:3], rtol=1e-4)


def test_without_covariates_membership_is_the_posterior_mass(case):
    fit, out, _ = case
    share = fit.adequacy().proportion
    for method in ("ml", "bch"):
        found = fit.covariates("~ 1", out, method=method)
        assert found.coefficients.values[0] == pytest.approx(np.log(share[1] / share[0]), rel=1e-6)


def test_standard_errors_are_those_of_the_jackknife_over_all_steps():
    fit, out, options = overlapping(120)
    data = fit.model.design.frame

    def steps(f, known):
        for method in ("bch", "ml"):
            yield f.distal("o ~ expert", known, method=method).margins
            yield f.covariates("~ z", known, method=method).coefficients

    def refit(some):
        part = data[~data["id"].isin(some)]
        again = mm.fit(fit.model.formula.text, part, start=fit, cov_type="nonrobust", **options)
        return np.concatenate([found.values for found in steps(again, out[~out["id"].isin(some)])])

    pairs = np.asarray(fit.responsibilities.index).reshape(-1, 2)  # two subjects at a time: half of the refits
    left_out = np.array([refit(pair) for pair in pairs])
    spread = left_out - left_out.mean(axis=0)
    jackknife = np.sqrt((spread**2).sum(axis=0) * (len(spread) - 1) / len(spread))
    errors = np.concatenate([found.std_errors for found in steps(fit, out)])
    np.testing.assert_allclose(errors, jackknife, rtol=0.12)


def test_first_steps_count(case):
    """With doubt, all-step standard errors differ from those that take the matrix of errors as known."""
    fit, out, _ = case
    made = fit._assignment("test", "bch")
    X = np.broadcast_to(np.eye(2), (len(out), 2, 2))
    step = StepThree((Normal(out["o"].to_numpy(), X, False),), made.modal, "bch")
    found = fit.distal("o ~ expert", out, method="bch")
    psi = step.psi(found.margins.values, made.errors)
    third = np.linalg.solve(step.jacobian(found.margins.values, made.errors), psi.T)
    alone = np.sqrt((third**2).sum(axis=1))
    assert (np.abs(found.margins.std_errors / alone - 1) > 0.005).any()


def test_influence_on_the_classification_errors(case):
    fit, _, options = case
    made = fit._assignment("test", "bch")
    influence = made.influence_on_errors()
    data = fit.model.design.frame
    changes, predicted = [], []
    for i in (0, 40, 90, 130):
        part = data[data["id"] != fit.responsibilities.index[i]]
        without = mm.fit(fit.model.formula.text, part, start=fit, **options)
        tau, modal = without.em.responsibilities, np.delete(made.modal, i)  # assignments stay as they were
        mass = tau.T @ np.eye(2)[modal]
        changes.append(mass / mass.sum(axis=1, keepdims=True) - made.errors)
        predicted.append(-influence[i])
    np.testing.assert_allclose(predicted, changes, atol=0.1 * np.abs(changes).max())


def test_units_do_not_matter(case):
    fit, out, _ = case
    for method in METHODS:
        small = fit.distal("o ~ expert + age", out, method=method)
        large = fit.distal("o ~ expert + age", out.assign(o=1e6 * out["o"], age=out["age"] / 1e3), method=method)
        np.testing.assert_allclose(large.margins.values, 1e6 * small.margins.values, rtol=1e-5)
        np.testing.assert_allclose(large.margins.std_errors, 1e6 * small.margins.std_errors, rtol=1e-4)
        assert large.overall.statistic == pytest.approx(small.overall.statistic, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_categories(method):
    fit, out, _ = overlapping(300, K=3)
    found = fit.distal("c ~ expert", out, method=method)
    frame = found.to_frame()
    assert list(frame["level"]) == ["hi", "lo", "mid"] * 3
    np.testing.assert_allclose(frame.groupby("expert")["estimate"].sum(), 1)
    assert ((frame["conf_low"] > 0) & (frame["conf_high"] < 1)).all()
    assert found.overall.df == 4
    pairs = found.pairwise().to_frame()
    assert list(pairs["contrast"].unique()) == ["2 - 1", "3 - 1", "3 - 2"]
    joint = pairs["level"] == "any level"
    assert joint.sum() == 3
    assert (pairs.loc[joint, "df"] == 2).all()
    single = pairs[~joint]
    np.testing.assert_allclose(single["statistic"], (single["estimate"] / single["std_error"]) ** 2, rtol=1e-8)
    np.testing.assert_allclose(single["p_value"], chi2.sf(single["statistic"], 1), rtol=1e-8)
    assert "any level" in str(found)
    binary = fit.distal("b ~ expert", out.assign(b=out["b"] == 1), method=method)
    assert list(binary.to_frame()["level"]) == ["True"] * 3
    assert binary.overall.df == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AssumptionWarning)  # of "ml": zeros and ones are not normal
        number = fit.distal("b ~ expert", out, method=method, kind="numeric")
    assert "level" not in number.to_frame()
    if method != "ml":
        np.testing.assert_allclose(number.margins.values, binary.margins.values, rtol=1e-7)
        np.testing.assert_allclose(number.margins.std_errors, binary.margins.std_errors, rtol=1e-6)


# ---- is the outcome normal, as "ml" takes it to be? ----


def test_skewness_without_doubt_is_the_ordinary_one(clear):
    fit, out = clear
    found = fit.distal("o ~ expert + x", out, method="ml").skewness
    residuals = smf.ols("o ~ C(k) + x", out).fit().resid
    own = [skew(residuals[out["k"] == k] - residuals[out["k"] == k].mean()) for k in (1, 2)]
    np.testing.assert_allclose(found.values, own, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.std_errors, np.sqrt(6 / out["k"].value_counts().sort_index()), rtol=0.02)


def test_skewness_by_hand_with_doubt(case):
    fit, out, _ = case
    weights = np.linalg.inv(fit.classification_table().probabilities)[fit.classify()["expert"].to_numpy() - 1]
    y = out[["o"]].to_numpy()
    mean = (weights * y).sum(axis=0) / weights.sum(axis=0)
    second, third = ((weights * (y - mean) ** j).sum(axis=0) / weights.sum(axis=0) for j in (2, 3))
    found = fit.distal("o ~ expert", out, method="ml").skewness
    np.testing.assert_allclose(found.values, third / second**1.5, rtol=1e-6)


def test_spread_of_the_skewness_of_normal_outcomes(case):
    """The standard error, over outcomes drawn from normal distributions whose spread differs between experts."""
    fit, out, _ = case
    made, rng = fit._assignment("test", "bch"), np.random.default_rng(5)
    X, used = np.broadcast_to(np.eye(2), (len(out), 2, 2)), np.arange(len(out))
    cumulative = fit.responsibilities.to_numpy()[:, 0]
    drawn = []
    for _ in range(400):
        k = (rng.random(len(out)) > cumulative).astype(int)  # memberships anew, as the errors of assignment say
        drawn.append(
            skewness(made, used, np.array([0.0, 1.0])[k] + np.array([1.0, 1.5])[k] * rng.normal(size=len(k)), X)
        )
    spread = np.std([one.values for one in drawn], axis=0)
    assert np.median([one.std_errors for one in drawn], axis=0) == pytest.approx(spread, rel=0.25)


def test_a_skewed_outcome_is_said_by_ml_alone(case):
    fit, out, _ = case
    skewed = out.assign(o=np.exp(1.2 * out["o"]))
    with pytest.warns(AssumptionWarning, match=r"not normal given the expert \(skewness .* expert 2; .*method='bch'"):
        found = fit.distal("o ~ expert", skewed, method="ml")
    assert found.skewness.doubtful
    assert "not normal given the expert" in str(found)
    for method in ("bch", "naive"):
        assert fit.distal("o ~ expert", skewed, method=method).skewness is None
    assert fit.distal("b ~ expert", out, method="ml").skewness is None
    plain = fit.distal("o ~ expert", out, method="ml")
    assert not plain.skewness.doubtful
    assert "not normal" not in str(plain)


def test_records_print_and_count(case):
    fit, out, _ = case
    part = pd.concat([out.iloc[:-10], out.iloc[:1].assign(id="stranger")]).reset_index(drop=True)
    part.loc[:4, "o"] = np.nan
    found = fit.distal("o ~ expert", part.sample(frac=1, random_state=0))
    assert isinstance(found, Distal)
    assert (found.n_used, found.n_missing, found.n_strangers) == (len(out) - 15, 15, 1)
    text = str(found)
    for piece in ("Bolck, Croon & Hagenaars 2004", "15 of the fit without complete data", "1 rows of units", "2 - 1"):
        assert piece in text
    by_index = fit.distal("o ~ expert", part.set_index("id"))
    np.testing.assert_allclose(by_index.margins.values, found.margins.values)
    assert "\n" + "Means by expert".center(78).rstrip() in text
    adjusted = fit.distal("o ~ expert + z", out)
    assert adjusted.adjusted
    assert not any(fit.distal(formula, out).adjusted for formula in ("o ~ expert", "o ~ 0 + C(expert)"))
    assert adjusted.tables()[0].title == "Adjusted means by expert"
    assert "averaged over the other predictors of all units used" in str(adjusted)
    both = fit.distal("expert ~ z", out), fit.covariates("~ z", out, method="bch")
    assert isinstance(both[0], Predictors)
    np.testing.assert_allclose(both[0].coefficients.values, both[1].coefficients.values)
    assert list(both[1].to_frame().index) == ["gate2.Intercept", "gate2.z"]
    assert list(both[1].tests().index) == ["Intercept", "z"]
    assert "NOT corrected" in str(fit.covariates("~ z", out, method="naive"))


def test_rows_as_units():
    rng = np.random.default_rng(1)
    x = rng.normal(size=300)
    k = rng.random(300) < 0.5
    data = pd.DataFrame({"y": np.where(k, 2 + x, -1 - x) + rng.normal(size=300), "x": x})
    data["o"] = k + rng.normal(size=300)
    fit = mm.fit("y ~ x", data, experts=2, rng=0)
    found = fit.distal("o ~ expert", data[["o"]])
    assert found.n_used == 300
    assert abs(found.pairwise().to_frame()["estimate"].iloc[0]) == pytest.approx(1, abs=0.4)


def test_a_category_that_never_occurs_is_said():
    fit, out, _ = overlapping(300, K=3)
    out["b"] = np.where(fit.classify()["expert"] == 1, 0, out["b"])
    with pytest.raises(ArgumentError, match=r"'bch' has no solution here.*or for an outcome of zeros and ones kind"):
        fit.distal("b ~ expert", out, method="bch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AssumptionWarning)
        assert np.isfinite(fit.distal("b ~ expert", out, kind="numeric").margins.std_errors).all()
    for method in ("ml", "naive"):
        with pytest.warns(BoundaryWarning, match="never, or always, occurs under expert 1: "):
            found = fit.distal("b ~ expert", out, method=method)
        assert [flag.code for flag in found.flags] == ["separated"]
        assert found.flags[0].message in found.remarks
        frame = found.to_frame()
        assert frame.loc[0, "estimate"] == 0.0
        assert frame.loc[0, ["std_error", "conf_low", "conf_high"]].isna().all()
        assert frame.loc[1:].notna().all(axis=None)
        assert np.isnan(found.coefficients.std_errors).all()  # those of the others are against expert 1
        assert isinstance(found.overall, InvalidTest)
        assert found.pairwise().to_frame()["std_error"].notna().tolist() == [False, False, True]
    modal = fit.classify()["expert"].to_numpy()
    share = out["b"].to_numpy()[modal == 2].mean()  # naive: of those assigned, as if there were no other experts
    assert frame.loc[1, "estimate"] == pytest.approx(share, rel=1e-6)
    assert frame.loc[1, "std_error"] == pytest.approx(np.sqrt(share * (1 - share) / (modal == 2).sum()), rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_covariate_that_leaves_no_units_to_an_expert(clear, method):
    """The other coefficients, and the joint test, are those of a logit without the level."""
    fit, out = clear
    site = np.array(list("abc"))[np.arange(len(out)) % 3]
    site[np.flatnonzero(out["k"] == 1)[:12]] = "d"  # all of them in expert 1
    out = out.assign(site=site)
    with pytest.warns(BoundaryWarning, match="covariate site leaves no units to expert 2 where site = d: "):
        found = fit.covariates("~ site + x", out, method=method)
    assert [flag.code for flag in found.flags] == ["separated_gate"]
    assert "gate2.site[T.d] is infinite" in str(found)
    frame = found.to_frame()
    assert frame.loc["gate2.site[T.d]", ["std_error", "statistic", "p_value", "conf_low"]].isna().all()
    rest = out[out["site"] != "d"]
    peer = smf.logit("second ~ site + x", rest.assign(second=(rest["k"] == 2) * 1.0)).fit(disp=False, cov_type="HC0")
    kept = ["gate2.Intercept", "gate2.site[T.b]", "gate2.site[T.c]", "gate2.x"]
    np.testing.assert_allclose(frame.loc[kept, "estimate"], peer.params, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(frame.loc[kept, "std_error"], peer.bse, rtol=2e-3)
    joint = peer.wald_test(np.eye(4)[1:3], scalar=True)
    tests = found.tests()
    assert tests.loc["site", "df"] == 2
    np.testing.assert_allclose(tests.loc["site", "statistic"], joint.statistic, rtol=5e-3)


def test_a_covariate_all_of_whose_coefficients_are_infinite(clear):
    fit, out = clear
    out = out.assign(z=np.where(out["k"] == 2, 1.0, -1.0) * (1 + out["x"].abs()))
    with pytest.warns(BoundaryWarning, match="covariate z leaves no units to expert 1"):
        found = fit.covariates("~ z", out)
    assert found.to_frame()["std_error"].isna().all()
    assert found.tests().isna().all(axis=None)


def test_an_outcome_that_does_not_vary_under_an_expert(clear):
    fit, out = clear
    out = out.assign(o=np.where(out["k"] == 1, 0.0, out["o"]))
    with pytest.warns(ConvergenceWarning, match="did not converge; use another method"):
        fit.distal("o ~ expert", out, method="ml")  # whose likelihood has no bound
    for method in ("bch", "naive"):
        found = fit.distal("o ~ expert", out, method=method)
        second = out.loc[out["k"] == 2, "o"]
        assert found.margins.values[1] == pytest.approx(second.mean(), rel=1e-4)
        assert found.margins.std_errors[1] == pytest.approx(second.std(ddof=0) / np.sqrt(len(second)), rel=2e-3)


def test_refusals(case):
    fit, out, _ = case
    with pytest.raises(ArgumentError, match="needs at least 2 experts, got 1"):
        pbc(1).distal("o ~ expert", out)
    with pytest.raises(ArgumentError, match="method must be one of 'bch', 'ml', 'naive', got 'modal'"):
        fit.distal("o ~ expert", out, method="modal")
    with pytest.raises(FormulaError, match="must contain 'expert'"):
        fit.distal("o ~ age", out)
    with pytest.raises(FormulaError, match="without sections"):
        fit.distal("o ~ expert | gate: age", out)
    with pytest.raises(FormulaError, match=r"covariates are written '~ z1 \+ z2'"):
        fit.covariates("z", out)
    with pytest.raises(ArgumentError, match="one row per subject, got several for"):
        fit.distal("o ~ expert", pd.concat([out, out.head(1)]))
    with pytest.raises(DesignError, match=r"\(str\) in the new data and .* \(int\) in what is known"):
        fit.distal("o ~ expert", out.set_axis(out.index.map(str)) if "id" not in out else out.astype({"id": str}))
    with pytest.raises(ArgumentError, match="none of the 3 rows of outcomes belongs to the fit"):
        fit.distal("o ~ expert", out.head(3).assign(id=["a", "b", "c"]))
    with pytest.raises(ArgumentError, match=r"no column 'id'.* those of 'ID' are; rename it: .*'ID': 'id'"):
        fit.distal("o ~ expert", out.rename(columns={"id": "ID"}).sample(frac=1, random_state=0, ignore_index=True))
    with pytest.raises(ArgumentError, match=r"no column 'id'.* name the subjects as in the fit, e.g. "):
        fit.distal("o ~ expert", out[["o"]].set_axis([f"P{i}" for i in range(len(out))]))
    with pytest.raises(ArgumentError, match="has a column 'expert'"):
        fit.distal("o ~ expert", out.assign(expert=1))
    with pytest.raises(ArgumentError, match=r"have no column 'id', and a dict has no index"):
        fit.distal("o ~ expert", {"o": [1]})
    with pytest.raises(DesignError, match="nowhere"):
        fit.distal("o ~ expert + nowhere", out)
    data = mm.simulate.vcmoe("well_separated", n=300, rng=1).data
    varying = mm.fit("y ~ z1 | gate: x1 | vary: u", data, experts=2, bandwidth=0.3, rng=0)
    with pytest.raises(ArgumentError, match="VCMoE has no distal with method='bch': it has no score per unit"):
        varying.distal("z1 ~ expert", data)


def test_an_expert_without_modal_units_is_refused():
    tau = np.column_stack([np.full(10, 0.6), np.full(10, 0.4)])
    with pytest.raises(ArgumentError, match="expert 2 is the most probable one of no unit"):
        build_assignment(tau, np.zeros((10, 1)), np.zeros((10, 2, 1)))


@pytest.mark.parametrize("method", METHODS)
def test_labels_only_permute(method, case):
    fit, out, _ = case
    other = fit.relabel([2, 1])
    np.testing.assert_allclose(other.adequacy().odds_correct, fit.adequacy().odds_correct[::-1])
    np.testing.assert_allclose(other.influence().distance, fit.influence().distance, rtol=1e-5)
    here, there = (f.distal("o ~ expert + age", out, method=method) for f in (fit, other))
    np.testing.assert_allclose(there.margins.values, here.margins.values[::-1], rtol=1e-5)
    np.testing.assert_allclose(there.margins.std_errors, here.margins.std_errors[::-1], rtol=1e-4)
    gates = [f.covariates("~ z", out, method=method).coefficients for f in (fit, other)]
    np.testing.assert_allclose(gates[1].values, -gates[0].values, rtol=1e-4)
    np.testing.assert_allclose(gates[1].std_errors, gates[0].std_errors, rtol=1e-4)
