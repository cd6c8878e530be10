"""What a fit with varying coefficients offers of the common methods: a result of the documented kind, or a refusal."""

import inspect

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import mixmoe as mm
from mixmoe.errors import ArgumentError
from mixmoe.output.records import Panel, Table
from mixmoe.varying.results import VCMoEResults
from tests.contract.test_results_contract import ATTRIBUTES, CHECKED, INHERITED, REFUSED

OWN = {"bands", "functions", "test_varying"}
ABSENT = {"proportions"}  # of MEMoE only


@pytest.fixture(scope="module")
def data():
    made = mm.simulate.vcmoe("well_separated", n=300, rng=1).data
    return made.sample(frac=1, random_state=1).set_axis([f"row{i}" for i in range(len(made))])


@pytest.fixture(scope="module", params=[1, 2])
def fit(request, data):
    formula = "y ~ z1 | gate: x1 | vary: u" if request.param > 1 else "y ~ z1 | vary: u"
    return mm.fit(formula, data, experts=request.param, bandwidth=0.3, rng=0)


def test_no_method_is_unknown_to_the_contracts():
    public = {name for name, _ in inspect.getmembers(VCMoEResults) if not name.startswith("_")}
    assert public - CHECKED - REFUSED - INHERITED - ATTRIBUTES - OWN == set()
    assert public | ABSENT >= CHECKED | REFUSED | OWN


def test_classification(fit, data):
    K = fit.model.n_experts
    assert len(fit.adequacy().to_frame()) == K
    assert "300 rows" in str(fit.adequacy())
    assert all(isinstance(table, Table) for table in fit.classification_table().tables())
    assert fit.memberships().index.equals(data.index)


def test_names_and_labels(fit, tmp_path):
    if fit.model.n_experts == 1:
        with pytest.raises(ArgumentError, match="for each of the 1 experts"):
            fit.named("high", "low")
        return
    named = fit.named("high", "low").labelled({"z1": "Dose"})
    text = str(named.summary(progress=False))
    assert "Expert 1: high, functions" in text
    assert "Dose" in text
    words = [text.get_text() for text in named.plot("means").axes[0].get_legend().get_texts()]
    plt.close("all")
    assert {"high", "low"} <= set(words)
    assert named.relabel([2, 1]).shown_names.experts == ("low", "high")
    named.save(tmp_path / "fit.mixmoe")
    assert mm.load(tmp_path / "fit.mixmoe").shown_names == named.shown_names


def test_effects(fit):
    if fit.model.n_experts == 1:
        with pytest.raises(ArgumentError, match="at least 2 experts"):
            fit.gate_effects()
    else:
        assert list(fit.gate_effects().to_frame().columns[:4]) == ["covariate", "contrast", "expert", "u"]


def test_what_needs_a_likelihood_of_one_vector_says_so(fit, data):
    with pytest.raises(ArgumentError, match=r"VCMoE has no influence: .* refit without the units"):
        fit.influence()
    with pytest.raises(ArgumentError, match="VCMoE has no profile: its local likelihoods have no joint likelihood"):
        fit.profile(fit.params.index[0])
    outcomes = pd.DataFrame({"o": np.random.default_rng(0).normal(size=300)}, index=data.index)
    reason = "at least 2 experts" if fit.model.n_experts == 1 else "has no score per unit .* method='naive'"
    for run, text in ((fit.distal, "o ~ expert"), (fit.covariates, "~ o")):
        with pytest.raises(ArgumentError, match=reason):
            run(text, outcomes, method="bch")
    if fit.model.n_experts == 2:
        assert len(fit.distal("o ~ expert", outcomes, method="naive").to_frame()) == 2
        assert len(fit.covariates("~ o", outcomes, method="naive").to_frame()) == 2


def test_rows(fit, data):
    for kind in ("mean", "subject", "quantile"):
        resid = fit.resid(kind)
        assert resid.index.equals(data.index)
        assert np.isfinite(resid).all()
    np.testing.assert_allclose(fit.fitted() + fit.resid(), data["y"])
    with pytest.raises(ArgumentError, match="kind must be one of 'mean', 'subject', 'quantile', got 'normalized'"):
        fit.resid("normalized")
    draws = fit.simulate(rng=0, n=2)
    assert draws.index.equals(data.index)
    pd.testing.assert_frame_equal(draws, fit.simulate(rng=0, n=2))


@pytest.mark.parametrize("kind", ["residuals", "qq", "fit", "starts"])
def test_diagnostic_figures(kind, fit):
    assert all(isinstance(panel, Panel) for panel in fit.panels(kind))
    assert isinstance(fit.plot(kind), Figure)
    with pytest.raises(ArgumentError, match="has no random effects to draw"):
        fit.plot("random_effects")
    plt.close("all")


def test_diagnose(fit):
    assert len(fit.diagnose().axes) == 3
    plt.close("all")
