"""The contract of every registered family, and of a toy one: each public name answers, or refuses with a reason."""

import inspect
import re
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from statsmodels.stats.contrast import ContrastResults

import mixmoe as mm
from mixmoe.check.adequacy import Adequacy, ClassificationTable
from mixmoe.check.influence import GateEffects, Influence
from mixmoe.check.number_of_experts import ExpertsTest, Stability, VLMRTest
from mixmoe.check.profile import Profile
from mixmoe.check.term_tests import TermTests
from mixmoe.errors import ArgumentError, FormulaError, MixmoeError, MixmoeWarning
from mixmoe.families import FamilySpec, families, register, unregister
from mixmoe.inference.likelihood_ratio import LRTest
from mixmoe.inference.wald import InvalidTest, WaldTest
from mixmoe.mixture_results import MoEResults
from mixmoe.output.summary import Summary
from mixmoe.results import Results
from mixmoe.three_step.distal import Distal, Predictors
from mixmoe.varying.glr import GLRTest
from tests.contract.toy import Toy
from tests.typeset import faults_of_tables

GAUSSIAN = "y ~ time | re: (1 | id)"
CASES = {  # name -> family, formula, options of mm.fit
    "MEMoE": ("MEMoE", "y ~ time | gate: z1 | re: (1 | id)", {"experts": 2, "starts": 2}),
    "MEMoE, one expert": ("MEMoE", "y ~ time | re: (1 | id)", {"experts": 1}),
    "MEMoE, counts": ("MEMoE", "n ~ time | re: (1 | id)", {"experts": 2, "family": "zip", "starts": 2}),
    "VCMoE": ("VCMoE", "y ~ x1 | gate: z1 | vary: u", {"experts": 2, "bandwidth": 0.6, "n_grid": 8, "starts": 2}),
    "VCMoE, one expert": ("VCMoE", "y ~ x1 | vary: u", {"experts": 1, "bandwidth": 0.6, "n_grid": 8}),
    "NME, linear": ("NME", "y ~ time | re: (last | id)", {"hidden": ()}),
    "NME, network": ("NME", "y ~ time | re: (last | id)", {"hidden": (3,), "epochs": 5}),
    "NME, categories": ("NME", "state ~ x1 | re: (bias | id)", {"hidden": (), "epochs": 5}),
    "NME, states": ("NME", "state ~ x1 | re: (transitions | id) | seq: time", {"hidden": (), "epochs": 5}),
    "NMoE": ("NMoE", "y ~ nn(time) | gate: nn(z1) | re: (1 | id)", {"experts": 2, "hidden": (2,), "starts": 2}),
    "NMoE, linear": ("NMoE", "y ~ nn(time) | re: (0 | id)", {"experts": 2, "hidden": (), "starts": 2}),
    "Toy": ("Toy", "y ~ time | re: (0 | id)", {"experts": 2, "toy": 2.0}),
}


@pytest.fixture(scope="module", autouse=True)
def toy():
    register(Toy)
    yield
    unregister("Toy")


@pytest.fixture(scope="module")
def data():
    frame = mm.simulate.memoe(preset="separated", n_subjects=40, n_visits=4, rng=1).data
    g = np.random.default_rng(0)
    frame["u"] = g.random(len(frame))
    frame["n"] = g.poisson(np.exp(0.3 * frame["time"] * (frame["id"] % 2)))
    frame["state"] = g.choice(["a", "b", "c"], len(frame))
    return frame


class Case:
    """A fit with what it came from."""

    def __init__(self, name, data):
        self.family, self.formula, self.options = CASES[name]
        alone = {"baselines": False} if self.family == "NME" else {}
        self.data, self.fit = data, quiet(self.formula, data, rng=0, **self.options, **alone)
        self.spec, self.first = self.fit.model.spec, self.fit.params.index[0]


def quiet(formula, data, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        return mm.fit(formula, data, **options)


@pytest.fixture(scope="module", params=list(CASES))
def case(request, data):
    if request.param.startswith(("NME", "NMoE")):
        pytest.importorskip("torch")
    return Case(request.param, data)


def outcomes(case):
    return case.data.groupby("id", as_index=False).agg(o=("x1", "mean")) if "re:" in case.formula else case.data[["u"]]


# name -> types of what comes back, and arguments made from a case and a folder
FRAME, SERIES = pd.DataFrame, pd.Series
NONE = type(None)
CALLS = {
    "adapt": (object, lambda c, p: {"data": c.data[c.data["id"] == c.data["id"].iloc[0]]}),
    "adequacy": (Adequacy, None),
    "augment": (FRAME, lambda c, p: {"data": c.data}),
    "bands": (FRAME, lambda c, p: {"draws": 100, "rng": 0}),
    "classification_table": (ClassificationTable, None),
    "classify": (FRAME, None),
    "conf_int": (FRAME, None),
    "cov_params": (FRAME, None),
    "covariates": (Predictors, lambda c, p: {"formula": "~ o", "data": outcomes(c), "method": "naive"}),
    "curves": (tuple, lambda c, p: {"kind": c.fit._curve_kinds[0]}),
    "decode": (SERIES, None),
    "diagnose": (Figure, None),
    "distal": (Distal, lambda c, p: {"formula": "o ~ expert", "outcomes": outcomes(c), "method": "naive"}),
    "f_test": (WaldTest, lambda c, p: {"hypotheses": f"{c.first} = 0"}),
    "fitted": ((SERIES, FRAME), None),
    "functions": (FRAME, None),
    "gate_effects": (GateEffects, None),
    "glance": (FRAME, None),
    "influence": (Influence, None),
    "initialize": (NONE, lambda c, p: {"model": c.fit.model, "params": c.fit.params}),
    "load": (Results, lambda c, p: {"fname": "file"}),
    "labelled": (Results, lambda c, p: {"labels": {c.data.columns[0]: "Label"}}),
    "loglik_of": (float, lambda c, p: {"data": c.data}),
    "lr_test": (LRTest, lambda c, p: {"other": c.fit}),
    "marginals": (FRAME, None),
    "memberships": (FRAME, None),
    "named": (Results, lambda c, p: {}),
    "panels": (tuple, lambda c, p: {"kind": "residuals"}),
    "plot": (Figure, None),
    "predict": (FRAME, None),
    "profile": (Profile, lambda c, p: {"parameter": c.first, "points": 3}),
    "proportions": (FRAME, None),
    "relabel": (Results, lambda c, p: {"order": list(range(c.options.get("experts", 1), 0, -1))}),
    "remove_data": (NONE, None),
    "report": (object, lambda c, p: {"path": p / "report.html", "figures": False}),
    "resid": (SERIES, None),
    "save": (NONE, lambda c, p: {"path": p / "fit.mixmoe"}),
    "simulate": (FRAME, lambda c, p: {"rng": 0}),
    "stability": (Stability, lambda c, p: {"n_boot": 1, "rng": 0}),
    "summary": (Summary, None),
    "t_test": (ContrastResults, lambda c, p: {"hypotheses": f"{c.first} = 0"}),
    "t_test_pairwise": (NONE, lambda c, p: {"term_name": c.first}),
    "tables": (tuple, None),
    "test_experts": (ExpertsTest, lambda c, p: {"n_boot": 1, "starts": 1, "rng": 0}),
    "test_varying": (GLRTest, lambda c, p: {"which": "experts", "method": "asymptotic", "rng": 0}),
    "tidy": (FRAME, None),
    "transition_tests": (FRAME, None),
    "to_excel": (NONE, lambda c, p: {"path": p / "fit.xlsx"}),
    "to_frame": (FRAME, None),
    "to_latex": (str, None),
    "to_markdown": (str, None),
    "vlmr_test": (VLMRTest, lambda c, p: {"starts": 1, "rng": 0}),
    "wald_test": (WaldTest, lambda c, p: {"hypotheses": f"{c.first} = 0"}),
    "wald_test_terms": (TermTests, None),
    "with_cov": (Results, lambda c, p: {"kind": "nonrobust"}),
}
ATTRIBUTES = {
    "bse": SERIES,
    "cov_re": FRAME,
    "df_resid": (int, float),
    "df_t": SERIES,
    "end_scores": FRAME,
    "entropy": float,
    "fittedvalues": (SERIES, FRAME),
    "icl": float,
    "llf": float,
    "normalized_cov_params": np.ndarray,
    "persons": object,
    "pvalues": SERIES,
    "random_effects": FRAME,
    "random_effects_se": FRAME,
    "responsibilities": FRAME,
    "transitions": object,
    "tvalues": SERIES,
    "uncertainty": object,
    "use_t": bool,
}


def public_names(results):
    return {name for name in dir(type(results)) if not name.startswith("_")}


def answer(case, name, folder):
    """What a public name gives: an object, or the error of the package with which it refuses."""
    try:
        if name in ATTRIBUTES:
            return getattr(case.fit, name), ATTRIBUTES[name]
        expected, arguments = CALLS[name]
        return getattr(case.fit, name)(**({} if arguments is None else arguments(case, folder))), expected
    except MixmoeError as error:
        return error, MixmoeError


def printed_width(found):
    """Longest line of what a record prints with words of this package, not of pandas or statsmodels."""
    own = getattr(type(found).__str__, "__module__", "").startswith("mixmoe") and not isinstance(found, InvalidTest)
    return max(map(len, str(found).splitlines()), default=0) if own else 0


@pytest.mark.filterwarnings("ignore::mixmoe.errors.MixmoeWarning")
def test_every_public_name_answers_or_says_why_not(case, tmp_path):
    tables = [case.fit.summary().as_latex(), case.fit.to_latex(tables="header")]
    for name in sorted(public_names(case.fit)):
        assert name in CALLS or name in ATTRIBUTES, f"give {name} arguments in CALLS, or its type in ATTRIBUTES"
        found, expected = answer(case, name, tmp_path)
        assert isinstance(found, (expected, InvalidTest)), f"{name}: {found!r}"
        assert printed_width(found) <= 80, f"{name}:\n{found}"
        tables += [found.to_latex()] if printed_width(found) and hasattr(found, "to_latex") else []
        if isinstance(found, InvalidTest | MixmoeError):
            reason = found.reason if isinstance(found, InvalidTest) else str(found)
            assert len(reason) > 20, name
            assert case.spec.has_experts or not re.search("fit two experts|at least (2|two) experts", reason), name
    plt.close("all")
    assert faults_of_tables(tables, tmp_path) == []


def test_the_names_of_mixtures_are_known_to_every_family(case):
    mixtures = {name for name in dir(MoEResults) if not name.startswith("_")} | {"entropy", "icl"}
    assert {name for name in mixtures if not hasattr(type(case.fit), name) and name not in vars(case.fit)} == set()


def test_every_name_is_documented(case):
    for name in public_names(case.fit) & set(CALLS):
        assert len(inspect.getdoc(getattr(type(case.fit), name)) or "") > 15, name


def test_experts_have_names_or_the_family_says_why_not(case):
    if not case.spec.has_experts:
        with pytest.raises(ArgumentError, match=f"{case.spec.name} has no named: .*no experts"):
            case.fit.named("a", "b")
        return
    names = [f"course {'abcd'[k]}" for k in range(case.fit.model.n_experts)]
    text = str(case.fit.named(*names).summary())
    assert len(names) == 1 or "Expert 1: course a" in text
    assert not re.search(r"Expert 1\b(?!: course a)", text)


def test_the_spec_is_that_of_the_family(case):
    assert isinstance(case.spec, FamilySpec)
    assert families()[case.family].spec is case.spec
    assert isinstance(case.fit, MoEResults) == case.spec.has_experts
    assert (case.fit.model.n_experts is None) != case.spec.has_experts


def test_saved_fits_come_back(case, tmp_path):
    case.fit.save(tmp_path / "fit.mixmoe")
    back = mm.load(tmp_path / "fit.mixmoe")
    assert type(back) is type(case.fit)
    pd.testing.assert_series_equal(back.params, case.fit.params)
    assert str(back.summary()) == str(case.fit.summary())


@pytest.mark.filterwarnings("ignore::mixmoe.errors.MixmoeWarning")
def test_reports_hold_what_the_family_has(case, tmp_path):
    page = case.fit.report(tmp_path / "report.html", figures=False).read_text(encoding="utf-8")
    assert case.spec.title.split(":")[0] in page
    for word in ("SMART-LCA", "Experts", "Gate part", "Classification"):
        assert (word in page) == case.spec.has_experts, word
    assert ("GRoLTS" in page) == (case.spec.has_experts and "re:" in case.formula)  # it is about courses of subjects
    if not case.spec.has_experts:
        assert "ntropy" not in page
        with pytest.raises(ArgumentError, match="the checklists are for mixtures, which NME is not"):
            case.fit.report(tmp_path / "report.html", answers={"G1": "Years."})


def test_candidates_can_be_compared(case):
    options = {name: value for name, value in case.options.items() if name != "experts"}
    if case.spec.has_experts:
        options |= {"experts": [case.options["experts"]]}
    found = mm.select(case.formula, case.data, rng=0, progress=False, **options)
    assert isinstance(found.best(), type(case.fit))
    assert isinstance(found.summary(), Summary)


def test_a_network_is_no_mixture_with_one_expert(data):
    pytest.importorskip("torch")
    fit = quiet(GAUSSIAN.replace("1", "last"), data, hidden=(), rng=0, baselines=False)
    assert list(fit.params.index) == [
        *("Intercept", "time", "sd(Intercept|id)", "sd(time|id)", "corr(Intercept,time|id)", "sigma"),
    ]
    assert set(fit.to_frame()["block"]) == {"fixed", "random", "residual"}
    assert fit.to_frame()["expert"].isna().all()
    text = str(fit.summary())
    assert "expert" not in text.lower()
    assert "Entropy" not in text
    assert not {"experts", "entropy", "ICL"} & set(fit.glance().columns)
    assert not {".class", ".probability"} & set(fit.augment().columns)
    terms = fit.wald_test_terms().to_frame()
    assert list(terms["term"]) == ["Intercept", "time"]
    assert terms["statistic"].to_numpy() == pytest.approx((fit.params / fit.bse).iloc[:2].to_numpy() ** 2)
    beside = str(mm.table([fit, quiet(GAUSSIAN, data, experts=1)], statistics=["bic", "icl", "entropy"]))
    assert "sd(Intercept)" in beside


@pytest.mark.parametrize("word", ["last", "all", "first", "layer[2]", "layer1.bias", "transitions", "last + bias"])
def test_layers_without_a_network_say_how_to_ask_for_one(word, data):
    for door in (mm.fit, mm.select):
        with pytest.raises(FormulaError, match=r"person-specific layers belong to networks: give hidden="):
            door(f"y ~ time | re: ({word} | id)", data, experts=1)


def test_a_column_named_like_a_layer_is_a_column(data):
    fit = quiet("y ~ 1 | re: (1 + last | id)", data.rename(columns={"time": "last"}), experts=1)
    assert "sd1(last|id)" in fit.params.index


def test_families_of_the_package_keep_their_names():
    with pytest.raises(ArgumentError, match="a family named 'NME' comes with the package"):
        register(families()["NME"])
    with pytest.raises(ArgumentError, match="no family named 'NME' was added"):
        unregister("NME")
