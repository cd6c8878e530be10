"""What the results of every family offer: each public method exists and returns the documented type and shape."""

import inspect

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from statsmodels.stats.contrast import ContrastResults

import mixmoe as mm
from mixmoe.check.number_of_experts import ExpertsTest, Stability, VLMRTest
from mixmoe.errors import ArgumentError
from mixmoe.inference.likelihood_ratio import LRTest
from mixmoe.inference.uncertainty import COV_TYPES
from mixmoe.inference.wald import InvalidTest, WaldTest
from mixmoe.mixture_results import MoEResults
from mixmoe.output.records import Curve, Panel, Table
from mixmoe.output.summary import Summary

SEPARATED = {"preset": "separated", "n_subjects": 60, "n_visits": 4, "rng": 1}
CASES = {  # name -> data, formula, options of mm.fit
    "MEMoE, one expert": (SEPARATED | {"preset": "single"}, "y ~ time + x1 | re: (1 + time | id)", {"experts": 1}),
    "MEMoE, two experts": (SEPARATED, "y ~ time + common(x1) | gate: z1 | re: (1 | id)", {"experts": 2}),
    "MEMoE, rows as units": (
        {"preset": "latent_class", "n_subjects": 200, "n_visits": 1, "beta": [[0.0, 0, 2], [9.0, 0, -1]], "rng": 1},
        "y ~ x1 | gate: z1",
        {"experts": 2},
    ),
    "MEMoE, no random effects": (SEPARATED, "y ~ time | gate: z1 | re: (0 | id)", {"experts": 2}),
    "MEMoE, correlated errors": (
        SEPARATED,
        "y ~ time | gate: z1 | re: (1 | id)",
        {"experts": 2, "errors": "car1", "time": "time", "errors_by": "common"},
    ),
    "MEMoE, unequal and t errors": (
        SEPARATED,
        "y ~ time | gate: z1 | re: (1 | id) | sigma: common(x1)",
        {"experts": 2, "errors": "bm", "time": "time", "errors_dist": "t", "errors_df": 6, "residual": "common"},
    ),
    "MEMoE, binomial": (
        {"preset": "binary", "n_subjects": 250, "D": [[[0.6]], [[2.0]]], "rng": 2},
        "y ~ time + x1 | gate: z1 | re: (1 | id)",
        {"experts": 2, "family": "binomial", "starts": 8},
    ),
    "MEMoE, Poisson": (
        {"preset": "count", "n_subjects": 80, "rng": 1},
        "y ~ time + x1 | gate: z1 | re: (1 | id)",
        {"experts": 2, "family": "poisson", "starts": 8},
    ),
    "MEMoE, negative binomial": (
        {"preset": "overdispersed", "n_subjects": 80, "rng": 1},
        "y ~ time + x1 | gate: z1 | re: (1 | id)",
        {"experts": 2, "family": "negativebinomial", "starts": 8},
    ),
    "MEMoE, gamma": (
        {"preset": "positive", "n_subjects": 50, "rng": 1},
        "y ~ time + x1 | gate: z1 | re: (1 | id)",
        {"experts": 2, "family": "gamma", "n_quad": 3, "starts": 8},
    ),
    "MEMoE, beta": (
        {"preset": "share", "n_subjects": 60, "rng": 1},
        "y ~ time + x1 | gate: z1 | re: (1 | id)",
        {"experts": 2, "family": "beta", "residual": "common", "starts": 8},
    ),
    "MEMoE, ordinal": (
        {"preset": "ordinal", "n_subjects": 100, "rng": 1},
        "y ~ time + x1 | gate: z1 | re: (1 | id)",
        {"experts": 2, "family": "ordinal", "starts": 8},
    ),
    "MEMoE, proportional": (
        SEPARATED,
        "y ~ time | gate: z1 | re: (1 | id)",
        {"experts": 2, "cov_re": "proportional", "residual": "common"},
    ),
}


class Fitted:
    """A fit with what it came from."""

    def __init__(self, name):
        arguments, self.formula, self.options = CASES[name]
        sim = mm.simulate.memoe(**arguments)
        self.data = sim.data.sample(frac=1, random_state=1).set_axis([f"row{i}" for i in range(len(sim.data))])
        self.fit = mm.fit(self.formula, self.data, rng=0, **self.options)
        self.K, self.P = self.options["experts"], len(self.fit.params)
        self.n, self.grouped = len(self.data), "re:" in self.formula
        self.units = self.data["id"].sort_values().unique() if self.grouped else self.data.index


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    return Fitted(request.param)


def only(*names):
    """For what fits again, or draws all that there is, and knows nothing of the response: some of the cases."""
    return pytest.mark.parametrize("case", [f"MEMoE, {name}" for name in names], indirect=True)


CHECKED = {
    "f_test",
    "adequacy",
    "classification_table",
    "augment",
    "classify",
    "conf_int",
    "covariates",
    "cov_params",
    "curves",
    "diagnose",
    "distal",
    "fitted",
    "gate_effects",
    "influence",
    "labelled",
    "glance",
    "load",
    "loglik_of",
    "lr_test",
    "memberships",
    "named",
    "panels",
    "plot",
    "predict",
    "profile",
    "proportions",
    "relabel",
    "report",
    "resid",
    "save",
    "simulate",
    "stability",
    "summary",
    "t_test",
    "tables",
    "test_experts",
    "tidy",
    "to_excel",
    "to_frame",
    "to_latex",
    "to_markdown",
    "vlmr_test",
    "wald_test",
    "wald_test_terms",
    "with_cov",
}
REFUSED = {"remove_data", "t_test_pairwise"}
INHERITED = {"initialize", "normalized_cov_params"}  # statsmodels' own, untouched
ATTRIBUTES = {
    "bse",
    "df_t",
    "llf",
    "pvalues",
    "tvalues",
    "use_t",
    "df_resid",
    "cov_re",
    "random_effects",
    "responsibilities",
}


def test_every_public_method_is_checked_here():
    public = {name for name, _ in inspect.getmembers(mm.MEMoEResults) if not name.startswith("_")}
    assert public - CHECKED - REFUSED - INHERITED - ATTRIBUTES == set()
    assert public >= CHECKED | REFUSED


@pytest.mark.parametrize("name", sorted(CHECKED))
def test_every_method_is_documented(name):
    assert len(inspect.getdoc(getattr(mm.MEMoEResults, name)) or "") > 20


# ---- estimates ----


def test_numbers(case):
    fit = case.fit
    assert isinstance(fit, MoEResults)
    for name in ("llf", "aic", "bic", "sabic", "icl", "entropy"):
        value = getattr(fit, name)
        assert isinstance(value, float)
        assert np.isfinite(value)
    assert fit.aic == pytest.approx(-2 * fit.llf + 2 * case.P)
    assert fit.bic == pytest.approx(-2 * fit.llf + case.P * np.log(len(case.units)))
    assert (fit.nobs, fit.n_units, fit.df_model) == (case.n, len(case.units), case.P)
    assert fit.df_resid == case.n - case.P
    assert fit.converged is True
    assert fit.flags == ()
    assert fit.cov_type == "robust"
    assert f"{case.K} expert" in repr(fit)


def test_loglikelihood_of_the_data_of_the_fit(case):
    assert case.fit.loglik_of(case.data) == pytest.approx(case.fit.llf)


def test_series_by_parameter(case):
    fit = case.fit
    for series in (fit.params, fit.bse, fit.tvalues, fit.pvalues):
        assert isinstance(series, pd.Series)
        assert list(series.index) == list(fit.model.layout.names)
    assert np.isfinite(fit.params).all()
    assert (fit.bse > 0).all()
    tested = [p.name for p in fit.model.layout.parameters if p.tested]
    assert fit.pvalues[tested].between(0, 1).all()
    assert fit.pvalues.drop(tested).isna().all()


def test_names_of_parameters(case):
    allowed = r"^(expert\d\.|common\.|gate[2-9]\.|sd\d?\(|corr\d?\(|omega[2-9]$|sigma\d?(\.|$)|cut\d\()"
    allowed += r"|^(rho|phi|sd_bm|df|theta|shape)\d?$"
    assert case.fit.params.index.str.match(allowed).all()
    assert case.fit.params.index.is_unique


def test_covariances_and_limits(case):
    fit = case.fit
    V = fit.cov_params()
    assert isinstance(V, pd.DataFrame)
    assert V.shape == (case.P, case.P)
    np.testing.assert_allclose(V, V.T)
    np.testing.assert_allclose(np.diag(V), fit.bse**2)
    assert np.linalg.eigvalsh(V / np.outer(fit.bse, fit.bse)).min() > -1e-9
    limits = fit.conf_int(alpha=0.1)
    assert limits.shape == (case.P, 2)
    assert ((limits[0] < fit.params) & (fit.params < limits[1])).all()
    assert (fit.conf_int()[0] < limits[0]).all()


def test_tidy_frame(case):
    frame = case.fit.to_frame()
    columns = ["term", "block", "expert", "estimate", "std_error", "statistic", "p_value", "conf_low", "conf_high"]
    assert list(frame.columns) == [*columns, "df"]
    assert list(frame.index) == list(case.fit.params.index)
    blocks = {"expert", "common", "gate", "random", "residual", "dispersion", "threshold"}
    assert set(frame["block"]) <= blocks
    np.testing.assert_array_equal(frame["estimate"], case.fit.params)


def test_frames_of_broom(case):
    tidy, glance, augment = case.fit.tidy(), case.fit.glance(), case.fit.augment(case.data)
    np.testing.assert_array_equal(tidy["std.error"], case.fit.to_frame()["std_error"])
    assert (len(glance), glance["logLik"][0], glance["df"][0]) == (1, case.fit.llf, case.P)
    assert list(augment.columns) == [*case.data.columns, ".fitted", ".resid", ".class", ".probability"]
    assert augment.index.equals(case.data.index)
    np.testing.assert_allclose(augment[".fitted"] + augment[".resid"], case.data["y"])
    own = case.fit.classify().loc[case.data["id"] if case.grouped else case.data.index]
    np.testing.assert_array_equal(augment[".class"].astype(int), own["expert"])
    np.testing.assert_array_equal(augment[".probability"], own["probability"])


@pytest.mark.filterwarnings("ignore:What is said about")  # pairs of subjects as clusters may weigh much
@pytest.mark.parametrize("kind", COV_TYPES)
def test_every_covariance(kind, case):
    design = case.fit.model.design
    options = {"cluster": {"cluster": design.in_order(design.codes // 2, fill=True)}}
    options["bootstrap"] = {"n_boot": 2, "rng": 0}
    other = case.fit.with_cov(kind, **options.get(kind, {}))
    assert type(other) is type(case.fit)
    assert other.cov_type == kind
    assert other.cov_params().shape == (case.P, case.P)
    pd.testing.assert_series_equal(other.params, case.fit.params)


# ---- tests ----


def test_hypotheses(case):
    fit = case.fit
    first = fit.params.index[0]
    test = fit.wald_test(f"{first} = 0")
    assert isinstance(test, WaldTest)
    assert 0 <= test.pvalue <= 1
    assert isinstance(fit.wald_test(np.eye(case.P)[:2]), WaldTest)
    assert isinstance(fit.t_test(f"{first} = 0"), ContrastResults)
    bounded = [p.name for p in fit.model.layout.parameters if p.block != "threshold" and not p.tested]
    assert isinstance(fit.wald_test(f"{bounded[-1]} = 0"), InvalidTest)


@only("two experts", "rows as units", "binomial", "proportional")
def test_likelihood_ratio(case):
    smaller = case.formula.replace(" | gate: z1", "") if case.K > 1 else case.formula.replace(" + x1", "")
    assert smaller != case.formula
    reduced = mm.fit(smaller, case.data, rng=0, **case.options)
    test = case.fit.lr_test(reduced)
    assert isinstance(test, LRTest)
    assert test.df == 1
    assert test.statistic == pytest.approx(2 * (case.fit.llf - reduced.llf))
    assert 0 <= test.pvalue <= 1
    assert isinstance(case.fit.lr_test(case.fit), InvalidTest)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_defined_says_what_to_use(name, case):
    with pytest.raises(ArgumentError, match=f"the results of mixmoe have no {name}; use "):
        getattr(case.fit, name)()


@only("one expert", "rows as units", "correlated errors", "binomial")
def test_number_of_experts(case):
    if case.K == 1:
        assert isinstance(case.fit.test_experts(2), InvalidTest)
        assert isinstance(case.fit.vlmr_test(), InvalidTest)
        with pytest.raises(ArgumentError, match="at least two experts"):
            case.fit.stability(2)
        return
    test = case.fit.test_experts(1, starts=1, rng=0)
    assert isinstance(test, ExpertsTest)
    assert test.n_boot == 1
    assert 0 < test.pvalue <= 1
    assert isinstance(case.fit.vlmr_test(starts=1, rng=0), VLMRTest)
    assert isinstance(case.fit.stability(3, rng=0), Stability)


# ---- subjects ----


def test_responsibilities_and_classes(case):
    tau = case.fit.responsibilities
    assert list(tau.columns) == [f"expert{k}" for k in range(1, case.K + 1)]
    assert list(tau.index) == list(case.units)
    assert tau.index.name == ("id" if case.grouped else None)
    np.testing.assert_allclose(tau.sum(axis=1), 1)
    classes = case.fit.classify()
    assert list(classes.columns) == ["expert", "probability"]
    assert classes["expert"].isin(range(1, case.K + 1)).all()
    assert classes.index.equals(tau.index)


def test_adequacy(case):
    found = case.fit.adequacy()
    frame = found.to_frame()
    assert len(frame) == case.K
    assert frame["modal_count"].sum() == len(case.units)
    np.testing.assert_allclose(frame["proportion"], case.fit.responsibilities.mean())
    assert found.entropy == pytest.approx(case.fit.entropy)
    assert all(isinstance(table, Table) for table in found.tables())
    assert ("subjects" if case.grouped else "rows") in str(found)


def test_classification(case):
    table = case.fit.classification_table()
    np.testing.assert_allclose(table.to_frame().sum(axis=1), 1)
    assert table.to_frame("mass").to_numpy().sum() == pytest.approx(len(case.units))
    frame = case.fit.memberships()
    pd.testing.assert_frame_equal(frame[["expert", "probability"]], case.fit.classify())


def test_influence(case):
    frame = case.fit.influence().to_frame()
    assert frame.shape == (len(case.units), case.P + 1)
    assert list(frame.index) == list(case.units)
    assert np.isfinite(frame).all(axis=None)
    assert (frame["distance"] >= 0).all()


def test_gate_effects(case):
    if case.K == 1:
        with pytest.raises(mm.errors.ArgumentError, match="at least 2 experts"):
            case.fit.gate_effects()
        return
    frame = case.fit.gate_effects().to_frame()
    assert list(frame["covariate"]) == ["z1"] * case.K
    assert list(frame["expert"]) == list(range(1, case.K + 1))
    assert frame["estimate"].sum() == pytest.approx(0, abs=1e-12)
    assert (frame["conf_low"] < frame["conf_high"]).all()


@pytest.mark.parametrize("method", ["bch", "ml", "naive"])
def test_three_steps(method, case):
    index = pd.Index(case.units, name="id" if case.grouped else None)
    outcomes = pd.DataFrame({"o": np.random.default_rng(0).normal(size=len(index))}, index=index)
    if case.K == 1:
        for run in (case.fit.distal, case.fit.covariates):
            with pytest.raises(mm.errors.ArgumentError, match="at least 2 experts"):
                run("o ~ expert", outcomes, method=method)
        return
    found = case.fit.distal("o ~ expert", outcomes, method=method)
    assert list(found.to_frame()["expert"]) == list(range(1, case.K + 1))
    assert (found.to_frame()["std_error"] > 0).all()
    assert len(found.pairwise().to_frame()) == case.K * (case.K - 1) // 2
    assert isinstance(found.overall, WaldTest)
    frame = case.fit.covariates("~ o", outcomes, method=method).to_frame()
    assert list(frame.index) == [f"gate{k}.{t}" for k in range(2, case.K + 1) for t in ("Intercept", "o")]


def test_random_effects(case):
    names = case.fit.model.design.names.random
    frame = case.fit.random_effects
    assert isinstance(frame, pd.DataFrame)
    assert frame.shape == (len(case.units), (case.K + 1) * 2 * len(names))
    if names:
        assert list(frame.columns.levels[0]) == [*(f"expert{k + 1}" for k in range(case.K)), "mixed"]
        assert np.isfinite(frame).all(axis=None)
    assert list(frame.index) == list(case.units)


def test_proportions(case):
    frame = case.fit.proportions()
    assert list(frame.columns) == ["estimate", "std_error", "conf_low", "conf_high"]
    assert len(frame) == case.K
    assert frame["estimate"].sum() == pytest.approx(1)
    assert frame["estimate"].is_monotonic_decreasing
    assert ((frame["conf_low"] <= frame["estimate"]) & (frame["estimate"] <= frame["conf_high"])).all()


# ---- rows ----


@pytest.mark.parametrize("kind", ["subject", "mean"])
def test_fitted_and_residuals(kind, case):
    fitted, resid = case.fit.fitted(kind), case.fit.resid(kind)
    assert isinstance(fitted, pd.Series)
    assert fitted.index.equals(case.data.index)
    np.testing.assert_allclose(fitted + resid, case.data["y"])


@pytest.mark.parametrize("given", ["history", "covariates"])
def test_quantile_residuals(given, case):
    resid = case.fit.resid("quantile", given=given)
    assert resid.index.equals(case.data.index)
    assert np.isfinite(resid).all()
    assert 0.7 < resid.std() < 1.3


PANELS = {
    "all": ["probability", "expert", "mean"],
    "mean": ["mean"],
    "experts": ["expert"],
    "probabilities": ["probability"],
    "subject": ["mean"],
}


@pytest.mark.parametrize("kind", list(PANELS))
def test_predictions(kind, case):
    frame = case.fit.predict(case.data, kind=kind, interval="confidence")
    stems = [
        s
        for panel in PANELS[kind]
        for s in ([panel] if panel == "mean" else [f"{panel}{k + 1}" for k in range(case.K)])
    ]
    assert list(frame.columns) == [f"{stem}{end}" for stem in stems for end in ("", "_se", "_low", "_high")]
    assert frame.index.equals(case.data.index)
    assert np.isfinite(frame).all(axis=None)
    for stem in stems:
        assert (frame[f"{stem}_low"] <= frame[f"{stem}_high"]).all()
        assert (frame[f"{stem}_se"] >= 0).all()
    own = case.fit.predict(kind=kind, interval="confidence")
    if case.grouped or kind != "subject":
        pd.testing.assert_frame_equal(own, frame)


def test_simulation(case):
    draws = case.fit.simulate(rng=0, n=3)
    assert list(draws.columns) == ["draw1", "draw2", "draw3"]
    assert draws.index.equals(case.data.index)
    assert np.isfinite(draws).all(axis=None)


def test_relabelling(case):
    order = list(range(case.K, 0, -1))
    moved = case.fit.relabel(order)
    assert type(moved) is type(case.fit)
    assert moved.llf == case.fit.llf
    assert list(moved.params.index) == list(case.fit.params.index)
    pd.testing.assert_series_equal(moved.relabel(order).params, case.fit.params, rtol=1e-9)


def test_names_and_labels(case, tmp_path):
    names = [f"course {'abc'[k]}" for k in range(case.K)]
    column = "time" if "time" in case.formula else "x1"
    fit = case.fit.named(*names).labelled({column: "Years since entry"})
    assert type(fit) is type(case.fit)
    pd.testing.assert_series_equal(fit.params, case.fit.params)  # names of parameters stay
    for text in (str(fit.summary()), fit.to_markdown(), fit.to_latex()):
        assert ("Expert 1: course a" in text) == (case.K > 1)
        assert "expert 2: " not in text
        assert "Years since entry" in text
    assert "course" not in str(case.fit.summary())
    fit.save(tmp_path / "fit.mixmoe")
    assert mm.load(tmp_path / "fit.mixmoe").shown_names == fit.shown_names
    moved = fit.relabel(list(range(case.K, 0, -1)))
    assert moved.shown_names.experts == tuple(names[::-1])
    assert moved.shown_names.terms == fit.shown_names.terms
    assert fit.with_cov("nonrobust").shown_names == fit.shown_names


# ---- output ----


def test_tables_and_summary(case):
    tables = case.fit.tables()
    assert all(isinstance(table, Table) for table in tables)
    keys = [table.key for table in tables]
    assert keys[0] == "header"
    assert "expert1" in keys
    assert ("gate" in keys) == ("proportions" in keys) == (case.K > 1)
    estimates = [t for t in tables if t.key not in ("header", "proportions")]
    assert sum(len(t.index) for t in estimates) == case.P
    summary = case.fit.summary(alpha=0.1)
    assert isinstance(summary, Summary)
    assert max(map(len, str(summary).splitlines())) <= 90
    for text in (summary.as_html(), summary.as_latex(), summary.as_markdown(), case.fit._repr_html_()):
        assert isinstance(text, str)
        assert "Intercept" in text


def test_texts(case, tmp_path):
    for method, name in ((case.fit.to_latex, "t.tex"), (case.fit.to_markdown, "t.md")):
        text = method(tmp_path / name)
        assert isinstance(text, str)
        assert (tmp_path / name).read_text(encoding="utf-8") == text
        assert len(method(tables="expert1")) < len(text)
    assert r"\begin{document}" in case.fit.to_latex(standalone=True)


def test_workbook(case, tmp_path):
    case.fit.to_excel(tmp_path / "fit.xlsx")
    sheets = pd.read_excel(tmp_path / "fit.xlsx", sheet_name=None)
    assert list(sheets) == ["estimates", "fit", "notes", "subjects", "rows"]
    assert tuple(sheets["notes"]["note"]) == case.fit.summary().notes
    np.testing.assert_allclose(sheets["estimates"]["estimate"], case.fit.params)
    assert len(sheets["subjects"]) == len(case.units)
    assert len(sheets["rows"]) == case.n


@only("one expert", "rows as units", "unequal and t errors", "ordinal")
def test_report(case, tmp_path):
    path = case.fit.report(tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert page.count("<figure>") == (2 if case.K == 1 else 5)


def test_curves_and_plots(case):
    curves = case.fit.curves()
    assert [type(c) for c in curves] == [Curve] * case.K
    assert all(len(c.x) == len(c.y) == len(c.lower) == len(c.upper) for c in curves)
    for kind in ("trajectories", "responsibilities", *(["gate"] if case.K > 1 else [])):
        figure = case.fit.plot(kind)
        assert isinstance(figure, Figure)
    axes = figure.axes[0]
    assert case.fit.plot("trajectories", ax=axes) is axes


DIAGNOSTICS = {"residuals": 1, "qq": 1, "fit": 1, "random_effects": 1, "starts": 2, "profile": 1}


@pytest.mark.parametrize("kind", list(DIAGNOSTICS))
def test_diagnostic_figures(kind, case):
    options = {"parameter": case.fit.params.index[0], "points": 5} if kind == "profile" else {}
    if kind == "random_effects" and not case.fit.model.design.names.random:
        with pytest.raises(mm.errors.ArgumentError, match="has no random effects"):
            case.fit.plot(kind)
        return
    panels = case.fit.panels(kind, **options)
    assert len(panels) == DIAGNOSTICS[kind]
    assert all(isinstance(panel, Panel) for panel in panels)
    assert isinstance(case.fit.plot(kind, **options), Figure)
    plt.close("all")


@only("one expert", "rows as units", "unequal and t errors", "beta", "proportional")
def test_profile_and_diagnose(case):
    found = case.fit.profile(case.fit.params.index[-1], points=5)
    assert found.lower < found.estimate < found.upper
    assert found.loglik.max() == pytest.approx(case.fit.llf, abs=1e-5)
    assert isinstance(case.fit.diagnose(), Figure)
    plt.close("all")


def test_save_and_load(case, tmp_path):
    case.fit.save(tmp_path / "fit.mixmoe")
    back = mm.load(tmp_path / "fit.mixmoe")
    assert type(back) is type(case.fit)
    assert str(back.summary()) == str(case.fit.summary())
    pd.testing.assert_frame_equal(back.predict(case.data), case.fit.predict(case.data))
    pd.testing.assert_frame_equal(back.random_effects, case.fit.random_effects)
    case.fit.save(tmp_path / "bare.mixmoe", data=False)
    bare = mm.load(tmp_path / "bare.mixmoe", data=case.data)
    pd.testing.assert_series_equal(bare.params, case.fit.params)
    with pytest.raises(mm.errors.ArgumentError, match=r"results are read by mixmoe\.load"):
        type(case.fit).load("file")
