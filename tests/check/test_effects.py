"""Average marginal effects against finite differences of predictions, and against statsmodels."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

import mixmoe as mm
from mixmoe.errors import ArgumentError
from tests.check.helpers import pbc


def certain(n=400, seed=0):
    """Three groups so far apart that memberships are known."""
    rng = np.random.default_rng(seed)
    z, w = rng.normal(size=n), rng.integers(0, 2, size=n).astype(float)
    eta = np.column_stack([np.zeros(n), 0.3 + 0.8 * z - 0.5 * w, -0.4 - 0.6 * z + 0.7 * w])
    group = (eta + rng.gumbel(size=eta.shape)).argmax(axis=1)
    return pd.DataFrame({"y": 100.0 * group + rng.normal(size=n), "z": z, "w": w, "group": group})


@pytest.mark.parametrize("dummy", [False, True])
def test_equal_to_multinomial_logit_where_memberships_are_certain(dummy):
    data = certain()
    fit = mm.fit("y ~ 1 | gate: z + w", data, experts=3, rng=0, cov_type="nonrobust")
    modal = fit.classify()["expert"].to_numpy()
    peer = sm.MNLogit(modal, sm.add_constant(data[["z", "w"]])).fit(disp=False, method="newton")
    margins = peer.get_margeff(dummy=dummy)
    found = fit.gate_effects(dummy=dummy).to_frame().sort_values(["covariate", "expert"])
    order = np.argsort(["z", "w"])
    np.testing.assert_allclose(found["estimate"], margins.margeff[order].ravel(), atol=2e-5)
    np.testing.assert_allclose(found["std_error"], margins.margeff_se[order].ravel(), rtol=2e-3)
    assert (found.loc[found["covariate"] == "w", "contrast"] == ("1 - 0" if dummy else "dy/dx")).all()


def test_equal_to_differences_of_predictions():
    fit = pbc(gate="poly(age, 2) * sex")
    frame = fit.model.design.frame
    found = fit.gate_effects().to_frame().set_index(["covariate", "expert"])["estimate"]
    first = frame.groupby("id").head(1).drop(columns="id")

    def mean(data):
        return fit.predict(data, kind="probabilities")[["probability1", "probability2"]].mean().to_numpy()

    step = 1e-3
    slope = (mean(first.assign(age=first["age"] + step)) - mean(first.assign(age=first["age"] - step))) / (2 * step)
    np.testing.assert_allclose(found["age"], slope, rtol=1e-4)
    levels = fit.gate_effects("sex").to_frame()["contrast"].iloc[0].split(" - ")
    jump = mean(first.assign(sex=levels[0])) - mean(first.assign(sex=levels[1]))
    np.testing.assert_allclose(found["sex"], jump, rtol=1e-10)
    np.testing.assert_allclose(found.groupby("covariate").sum(), 0, atol=1e-12)


def test_standard_errors_are_those_of_the_delta_method():
    fit = pbc(gate="poly(age, 2) * sex")
    found = fit.gate_effects("age").to_frame()
    names = [name for name in fit.params.index if name.startswith("gate")]
    gradient = []
    for name in names:
        moved = []
        for sign in (1, -1):
            point = fit._gate_points()[0]
            gamma = point.gamma.ravel().copy()
            gamma[names.index(name)] += sign * 1e-5
            moved.append(_effect(fit, gamma))
        gradient.append((moved[0] - moved[1]) / 2e-5)
    V = fit.cov_params().loc[names, names].to_numpy()
    by_hand = np.sqrt(gradient @ V @ np.array(gradient))
    np.testing.assert_allclose(found["std_error"], by_hand, rtol=1e-5)
    assert (found["std_error"] != fit.with_cov("nonrobust").gate_effects("age").to_frame()["std_error"]).all()


def _effect(fit, gamma):
    """Mean slope of the first expert's probability in age, with two experts."""
    from mixmoe.check.influence import gate_changes

    change = gate_changes(fit.model.design, "age")[0]
    p = 1 / (1 + np.exp(change.before @ gamma))
    return (-p * (1 - p) * (change.after @ gamma)).mean()


def test_varying_coefficients_have_effects_at_index_values():
    data = mm.simulate.vcmoe("well_separated", n=300, rng=1).data
    fit = mm.fit("y ~ z1 | gate: const(1) + x1 | vary: u", data, experts=2, bandwidth=0.3, rng=0)
    found = fit.gate_effects().to_frame()
    assert "u" in found
    for point in fit._gate_points():
        np.testing.assert_allclose(fit.params.to_numpy()[point.where], point.gamma)
        rows = found[(found["u"] == point.at) & (found["expert"] == 2)]
        p = 1 / (1 + np.exp(-(fit.model.design.gate @ point.gamma[0])))
        slope = point.gamma[0][list(fit.model.design.names.gate).index("x1")]
        np.testing.assert_allclose(rows["estimate"], (p * (1 - p) * slope).mean(), rtol=1e-6)
    assert (found["std_error"] > 0).all()


def test_refusals():
    with pytest.raises(ArgumentError, match="needs at least 2 experts, got 1"):
        pbc(1).gate_effects()
    with pytest.raises(ArgumentError, match="has no covariates"):
        pbc(2, "").gate_effects()
    with pytest.raises(ArgumentError, match=r"covariates must name at least one of the gate's, .* got none"):
        pbc().gate_effects([])
    with pytest.raises(ArgumentError, match=r"covariates must be among the gate's, \['age', 'sex'\], got 'year'"):
        pbc().gate_effects("year")
