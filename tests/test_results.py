"""What every fitted model offers, on a model with made-up estimates."""

import inspect

import numpy as np
import pandas as pd
import pytest
from statsmodels.base.model import LikelihoodModelResults

import mixmoe as mm
from mixmoe.errors import ArgumentError
from mixmoe.inference.uncertainty import ParamCov
from mixmoe.inference.wald import InvalidTest
from mixmoe.mixture.estimate import EMFit
from mixmoe.mixture_results import MoEResults
from mixmoe.output.summary import Summary
from mixmoe.results import Results
from tests.fake_model import BOUNDARY, FORMULA, FakeResults, make_data, make_results, replace

COLUMNS = ["term", "block", "expert", "estimate", "std_error", "statistic", "p_value", "conf_low", "conf_high", "df"]


@pytest.fixture
def fit():
    return make_results(blank=(12,), flags=(BOUNDARY,))


def test_estimates_are_labelled(fit):
    names = list(fit.model.layout.names)
    for series in (fit.params, fit.bse, fit.tvalues, fit.pvalues, fit.conf_int(), fit.to_frame(), fit.cov_params()):
        assert list(series.index) == names
    assert list(fit.cov_params().columns) == names
    assert list(fit.conf_int().columns) == [0, 1]
    assert isinstance(fit, LikelihoodModelResults)


def test_the_gate_of_any_mixture_has_odds_ratios(fit):
    plain, ratios = fit.to_frame(alpha=0.1), fit.to_frame(alpha=0.1, exponentiate=True)
    gate = plain["block"] == "gate"
    for column in ("estimate", "conf_low", "conf_high"):
        np.testing.assert_allclose(ratios.loc[gate, column], np.exp(plain.loc[gate, column]))
    np.testing.assert_allclose(ratios.loc[gate, "std_error"], (plain["std_error"] * np.exp(plain["estimate"]))[gate])
    pd.testing.assert_frame_equal(plain[~gate], ratios[~gate])


def test_nothing_to_exponentiate_is_an_error():
    sleep = mm.datasets.load("sleepstudy")
    with pytest.raises(ArgumentError, match="no gate, and experts on the scale of the response"):
        mm.fit("reaction ~ days", sleep, experts=1).to_frame(exponentiate=True)


def test_standard_errors_and_p_values(fit):
    np.testing.assert_allclose(fit.bse**2, np.diag(fit.cov.matrix))
    z = fit.params / fit.bse
    assert fit.tvalues["expert1.time"] == z["expert1.time"]
    assert fit.pvalues["expert1.time"] == pytest.approx(2 * (1 - norm_cdf(abs(z["expert1.time"]))))


def norm_cdf(x):
    from math import erf, sqrt

    return (1 + erf(x / sqrt(2))) / 2


def test_deviations_have_no_z(fit):
    untested = [p.name for p in fit.model.layout.parameters if not p.tested]
    assert len(untested) == 6
    assert fit.tvalues[untested].isna().all()
    assert fit.pvalues[untested].isna().all()
    assert fit.bse[untested].notna().sum() == 5
    assert fit.tvalues.drop(untested).notna().all()


def test_figures_of_fit(fit):
    assert (fit.llf, fit.nobs, fit.n_units, fit.df_model, fit.df_resid) == (-200, 160, 40, 16, 144)
    assert fit.aic == 432
    assert fit.bic == pytest.approx(400 + 16 * np.log(40))
    assert fit.icl >= fit.bic
    assert 0 <= fit.entropy <= 1
    assert fit.cov_type == "robust"
    assert fit.converged
    assert fit.flags == (BOUNDARY,)


def test_responsibilities_and_classes(fit):
    tau, classes = fit.responsibilities, fit.classify()
    assert list(tau.columns) == ["expert1", "expert2"]
    assert tau.index.name == "id"
    assert list(tau.index) == list(fit.model.design.labels)
    np.testing.assert_allclose(tau.sum(axis=1), 1)
    assert ((classes["expert"] == 1) == (tau["expert1"] > tau["expert2"])).all()
    np.testing.assert_array_equal(classes["probability"], tau.max(axis=1))


def test_results_do_not_hand_out_their_own_arrays(fit):
    before = fit.to_frame()
    for given in (fit.responsibilities, fit.cov_params(), fit.conf_int(), fit.to_frame()):
        given.iloc[0, -1] = 99
    fit.params.iloc[0] = 99
    fit.bse.iloc[0] = 99
    assert fit.em.params[0] != 99
    assert fit.em.responsibilities[0, -1] != 99
    assert not np.isin(99, fit.cov.matrix)
    pd.testing.assert_frame_equal(fit.to_frame(), before)


def test_tidy_frame(fit):
    frame = fit.to_frame()
    assert list(frame.columns) == COLUMNS
    row = frame.loc["gate2.z"]
    assert (row["term"], row["block"], row["expert"]) == ("z", "gate", 2)
    shared = make_results("y ~ time + common(x) | re: (1 | id)").to_frame().loc["common.x"]
    assert shared["block"] == "common"
    assert shared["expert"] is pd.NA
    narrow = fit.to_frame(alpha=0.5)
    assert (narrow["conf_low"].dropna() > frame["conf_low"].dropna()).all()


def test_tables_cover_all_parameters_once(fit):
    tables = fit.tables()
    assert [t.key for t in tables] == ["header", "expert1", "expert2", "gate", "random", "residual"]
    assert sum(len(t.index) for t in tables[1:]) == len(fit.params)
    assert tables[1].index == ("Intercept", "time", "x")
    assert tables[3].index == ("expert 2: Intercept", "expert 2: z")
    random = tables[4]
    assert random.cells[random.index.index("expert 2: sd(time)")][1:] == (None,) * 5
    assert "expert 2: sd(time): on the boundary" in random.notes[0]


def test_tables_name_the_level(fit):
    assert fit.tables(alpha=0.1)[1].columns[-2:] == ("[0.05", "0.95]")


def test_one_expert_has_no_gate_and_no_entropy():
    fit = make_results(experts=1)
    assert [t.key for t in fit.tables()] == ["header", "expert1", "random", "residual"]
    header = fit.tables()[0]
    assert "Entropy" not in header.index
    assert fit.entropy == 1
    assert fit.tables()[1].title == "Coefficients"


def test_header_says_what_was_dropped():
    data = make_data()
    data.loc[[0, 5], "x"] = np.nan
    data = data.drop(index=[8, 9, 10])
    header = make_results(data=data).tables()[0]
    facts = dict(zip(header.index, (row[0] for row in header.cells), strict=True))
    assert facts["Formula"] == FORMULA
    assert facts["Rows"] == 155
    assert facts["Subjects"] == 40
    assert facts["Rows per subject"] == "1 / 4 / 4 (min / median / max)"
    assert facts["Rows dropped"].startswith("2 (x: 2")
    assert facts["Best value reached by"] == "2 of 20 starts"


def test_rows_as_units_have_no_subjects():
    header = make_results("y ~ x | gate: z").tables()[0]
    assert "Subjects" not in header.index
    assert "Rows per subject" not in header.index


def test_summary_in_all_formats(fit):
    summary = fit.summary()
    assert isinstance(summary, Summary)
    for text in (str(summary), summary.as_html(), summary.as_latex(), summary.as_markdown()):
        for word in (
            "Fake with 2 experts",
            "Gate (log odds against expert 1)",
            BOUNDARY.message,
            "sandwich over subjects",
        ):
            assert word in " ".join(text.replace("\\", "").split())
    assert summary._repr_html_() == fit._repr_html_() == summary.as_html()
    assert repr(summary) == str(summary)
    assert max(map(len, str(summary).splitlines())) <= 80


def test_not_converged_is_shown():
    assert "NO" in str(make_results(converged=False).summary())


def test_to_latex_writes_what_it_returns(fit, tmp_path):
    text = fit.to_latex(tmp_path / "t.tex", tables=["gate", "random"], caption="A caption", label="tab:a")
    assert (tmp_path / "t.tex").read_text() == text
    assert text.index("Gate") < text.index("Random effects")
    assert "Expert 1" not in text
    assert r"\caption{A caption}" in text
    assert r"\label{tab:a}" in text
    everything = fit.to_latex()
    assert "Log{-}likelihood" not in everything
    assert "Expert 1" in everything
    with pytest.raises(ArgumentError, match="no table 'gates'"):
        fit.to_latex(tables=["gates"])


def test_to_markdown_writes_what_it_returns(fit, tmp_path):
    text = fit.to_markdown(tmp_path / "t.md", tables="residual")
    assert (tmp_path / "t.md").read_text() == text
    assert text.count("| ") > 4
    assert "Expert 1" not in text
    assert "Standard errors: " in text


def test_another_covariance_is_another_result(fit):
    other = fit.with_cov("cluster", cluster="site")
    assert isinstance(other, FakeResults)
    assert (other.cov_type, fit.cov_type) == ("cluster", "robust")
    assert "options ['cluster']" in str(other.summary())
    np.testing.assert_array_equal(other.params, fit.params)
    with pytest.raises(ArgumentError, match=r"cov_type must be one of 'nonrobust'.*got 'hc3'"):
        fit.with_cov("hc3")


@pytest.mark.parametrize("name", ["t_test_pairwise", "remove_data"])
def test_what_is_not_defined_says_so(fit, name):
    with pytest.raises(ArgumentError, match=f"the results of mixmoe have no {name}; use "):
        getattr(fit, name)()


def test_f_needs_denominator_degrees_of_freedom(fit):
    found = fit.f_test("expert1.time")
    assert isinstance(found, InvalidTest)
    assert "normal here, with cov_type='robust'" in found.reason


def test_statsmodels_pickle_reader_is_closed(fit):
    with pytest.raises(ArgumentError, match="never unpickles"):
        type(fit).load("file")


def test_records_that_do_not_belong_together_are_refused(fit):
    with pytest.raises(ArgumentError, match="16 parameters are named"):
        FakeResults(fit.model, fit.em, ParamCov(np.eye(3), "robust"))
    with pytest.raises(ArgumentError, match=r"must have shape \(40, 2\), got \(3, 2\)"):
        FakeResults(fit.model, replace(fit.em, responsibilities=np.ones((3, 2))), fit.cov)
    assert isinstance(fit.em, EMFit)


def test_a_failed_variance_gives_no_number(fit):
    matrix = np.eye(16)
    matrix[0, 0] = -1e-3
    broken = FakeResults(fit.model, fit.em, ParamCov(matrix, "nonrobust"))
    assert np.isnan(broken.bse.iloc[0])
    assert np.isnan(broken.pvalues.iloc[0])
    assert "Intercept: on the boundary or not identified" in " ".join(str(broken.summary()).split())


def test_the_class_stays_small():
    for base in (Results, MoEResults):
        own = [n for n, v in vars(base).items() if not n.startswith("_") and callable(v)]
        assert len(own) <= 15
        assert len(inspect.getsource(base).splitlines()) <= 400


def test_a_note_on_a_blank_cell_names_the_expert(fit):
    parameters = fit.model.layout.parameters
    i = next(i for i, p in enumerate(parameters) if p.block == "expert" and p.expert == 2)
    text = str(make_results(blank=(i,)).summary())
    assert f"No valid standard error for expert 2: {parameters[i].term}: on the boundary" in text
