"""One-step influence against refits without the subject."""

import numpy as np
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError
from tests.check.helpers import pbc, simulated


@pytest.mark.parametrize("options", [{}, {"cov_re": "proportional", "residual": "common"}])
def test_one_step_predicts_the_refit_without_the_subject(options):
    fit = simulated(n_subjects=250, **options)
    found = fit.influence()
    frame = found.to_frame()
    data = fit.model.design.frame
    order = np.argsort(-found.distance)
    chosen = [*order[:4], *order[len(order) // 2 : len(order) // 2 + 3]]
    steps, truth = [], []
    for i in chosen:
        without = data[data["id"] != found.labels[i]]
        refit = mm.fit(fit.model.formula.text, without, start=fit, **{"experts": 2, **options})
        truth.append((refit.params - fit.params) / fit.bse)
        steps.append(frame.iloc[i, 1:] / fit.bse)
    steps, truth = np.array(steps, dtype=float), np.array(truth)
    assert np.corrcoef(steps.ravel(), truth.ravel())[0, 1] > 0.98
    assert np.abs(steps[4:] - truth[4:]).max() < 0.02  # ordinary subjects, in standard errors
    loss = [(t * fit.bse.to_numpy()) for t in truth]
    displacement = [d @ np.linalg.solve(fit.with_cov("nonrobust").cov.matrix, d) for d in loss]
    np.testing.assert_allclose(found.distance[chosen] * len(fit.params), displacement, rtol=0.5)
    np.testing.assert_allclose(found.distance[chosen[4:]] * len(fit.params), displacement[4:], rtol=0.1)


def test_influences_cancel_and_make_up_the_sandwich():
    fit = pbc()
    found = fit.influence()
    np.testing.assert_allclose(found.change.sum(axis=0) / fit.bse, 0, atol=1e-3)  # score zero at the maximum
    plain = fit.with_cov("robust", correction=False)  # one step is that of the scores as they are
    np.testing.assert_allclose(found.change.T @ found.change, plain.cov_params(), rtol=1e-6, atol=1e-12)
    assert list(found.to_frame().columns) == ["distance", *fit.params.index]
    assert str(found.labels[found.distance.argmax()]) in str(found)


def test_slopes_of_the_responsibilities_are_derivatives():
    model, fit = pbc().model, pbc()
    theta = model.working(fit.em.params)
    slopes = fit._first_order().slopes
    step = 1e-5

    def tau(at):
        joint = np.exp(_joint(model.problem, at))
        return joint / joint.sum(axis=1, keepdims=True)

    for j in (0, len(theta) // 2, len(theta) - 1):
        move = step * np.eye(len(theta))[j]
        np.testing.assert_allclose(slopes[:, :, j], (tau(theta + move) - tau(theta - move)) / (2 * step), atol=1e-6)
    np.testing.assert_allclose(slopes.sum(axis=1), 0, atol=1e-12)


def _joint(problem, theta):
    from mixmoe.mixed.likelihood.observed import subject_logliks

    joint = subject_logliks(problem, theta)
    return joint - joint.max(axis=1, keepdims=True)


def test_parameters_on_the_boundary_are_blank():
    data = mm.simulate.memoe("single", n_subjects=40, n_visits=4, rng=3).data
    data["y"] -= 0.8 * data.groupby("id")["y"].transform("mean")  # subjects are more alike than chance
    with pytest.warns(mm.errors.BoundaryWarning):
        fit = mm.fit("y ~ time | re: (1 + time | id)", data, experts=1)
    found = fit.influence()
    blank = fit.bse.isna().to_numpy()
    assert blank.any()
    assert np.isnan(found.change[:, blank]).all()
    assert np.isfinite(found.change[:, ~blank]).all()


def test_varying_coefficients_refuse():
    data = mm.simulate.vcmoe("well_separated", n=300, rng=1).data
    fit = mm.fit("y ~ z1 | gate: x1 | vary: u", data, experts=2, bandwidth=0.3, rng=0)
    with pytest.raises(ArgumentError, match="VCMoE has no influence: it has no score per unit"):
        fit.influence()
