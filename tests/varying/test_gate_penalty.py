"""Penalised gates of VCMoE, against dense local logits of known memberships, closed forms of tables, and MEMoE.

Responses of the experts lie so far apart that memberships are known: the gate is then a local multinomial logit.
"""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

import mixmoe as mm
from mixmoe.cli.main import main
from mixmoe.errors import ArgumentError
from mixmoe.mixture.gate import PseudoUnits
from mixmoe.varying.local_likelihood import build_local, local_gradient, local_loglik, local_pieces, natural_terms

PEAK = 0.75  # of the Epanechnikov kernel


def known_rows(n=160, experts=2, seed=0):
    """Rows whose expert is plain to see; expert 2 has none of group b."""
    rng = np.random.default_rng(seed)
    u, group, x = rng.uniform(size=n), rng.integers(0, 2, n), rng.normal(size=n)
    expert = np.where(group == 0, rng.integers(0, experts, n), experts - 1 if experts == 3 else 0)
    expert = np.where((group == 1) & (rng.uniform(size=n) < 0.5), 0, expert)
    y = 20.0 * expert + np.sin(3.0 * u) + 0.3 * rng.normal(size=n)
    return pd.DataFrame({"y": y, "u": u, "group": np.array(["a", "b"])[group], "x": x + 0.5 * expert, "expert": expert})


def fitted(data, gate="group", experts=2, **options):
    given = {"bandwidth": 0.4, "n_grid": 12, "estimate": "local", "rng": 0} | options
    fit = mm.fit(f"y ~ 1 | gate: {gate} | vary: u", data, experts, **given)
    means = fit.functions().query("block == 'expert'").groupby("expert")["estimate"].mean()
    return fit.relabel([int(k) for k in means.sort_values().index])


def local_gate(data, columns, at, h, experts, penalty, powers=2):
    """Brute force: levels (K - 1, m) of the local penalised logit at one index value, by a general optimiser."""
    n = len(data)
    t = (data["u"].to_numpy() - at) / h
    inside = np.abs(t) < 1
    kernel = PEAK * (1 - t[inside] ** 2)
    Z = np.hstack([columns[inside] * t[inside, None] ** s for s in range(powers)])
    member = data["expert"].to_numpy()[inside]
    shape = (experts - 1, Z.shape[1])

    def minus(flat):
        odds = Z @ np.vstack([np.zeros(shape[1]), flat.reshape(shape)]).T
        log_p = odds - np.logaddexp.reduce(odds, axis=1, keepdims=True)
        value = kernel @ log_p[np.arange(len(Z)), member]
        if penalty != "firth":
            return -(value + penalty / (n * experts) * (kernel @ log_p).sum())
        information = np.zeros((len(flat), len(flat)))
        for k, z, p in zip(kernel, Z, np.exp(log_p)[:, 1:], strict=True):
            information += k / PEAK * np.kron(np.diag(p) - np.outer(p, p), np.outer(z, z))
        return -(value + PEAK * 0.5 * np.linalg.slogdet(information)[1])

    found = minimize(minus, np.zeros(shape[0] * shape[1]), method="BFGS", options={"gtol": 1e-7})
    return found.x.reshape(shape)[:, : columns.shape[1]]


@pytest.mark.parametrize(("gate", "experts"), [("group", 2), ("group", 3), ("x", 2)])
@pytest.mark.parametrize("penalty", ["firth", 2.0])
def test_functions_are_local_penalised_logits(gate, experts, penalty):
    data = known_rows(experts=experts)
    fit = fitted(data, gate, experts, gate_penalty=penalty)
    dummy = (data["group"] == "b").to_numpy(float) if gate == "group" else data["x"].to_numpy()
    columns, grid = np.column_stack([np.ones(len(data)), dummy]), fit.model.problem.windows.grid
    for g in (0, 6):
        right = local_gate(data, columns, grid[g], 0.4, experts, penalty)
        found = fit.model.coef[g, 0, fit.model.problem.slots.gates].reshape(right.shape)
        np.testing.assert_allclose(found, right, atol=2e-4)
    assert not [flag for flag in fit.flags if flag.code == "separated_gate"]


def test_a_gate_with_a_bandwidth_of_its_own_is_penalised_in_its_windows():
    data = known_rows()
    fit = fitted(data, gate_penalty="firth", gate_bandwidth=0.6)
    columns = np.column_stack([np.ones(len(data)), data["group"] == "b"])
    right = local_gate(data, columns, fit.model.problem.windows.grid[4], 0.6, 2, "firth")
    np.testing.assert_allclose(fit.model.coef[4, 0, fit.model.problem.slots.gates], right[0], atol=2e-4)
    assert np.isfinite(fit.bands()["std_error"]).any()


@pytest.mark.parametrize("penalty", ["firth", 2.0])
def test_constants_of_the_gate_are_those_of_a_table(penalty):
    """Beside functions of the experts: half a row more in each cell, or the cell's share of the constant."""
    data = known_rows()
    fit = fitted(data, "const(1) + const(group)", gate_penalty=penalty, estimate="joint")
    counts = pd.crosstab(data["group"], data["expert"]).to_numpy()
    total = counts.sum(axis=1)
    more = np.full(2, 0.5) if penalty == "firth" else penalty * total / total.sum() / 2
    odds = np.log(counts[:, 1] + more) - np.log(counts[:, 0] + more)
    found = fit.params.filter(like="gate2").to_numpy()
    np.testing.assert_allclose(found, [odds[0], odds[1] - odds[0]], atol=1e-5)
    # Binomial variances, of the rows and of those added (closed form, no correction for leverage).
    p = (counts[:, 1] + more) / (total + 2 * more)
    own = 1.0 / ((total + 2 * more) * p * (1 - p))
    plain = fit.with_cov("robust", correction=False).bse.filter(like="gate2")
    np.testing.assert_allclose(plain, np.sqrt([own[0], own.sum()]), rtol=1e-3)


@pytest.mark.parametrize("penalty", ["firth", 1.0])
def test_without_windows_it_is_the_penalty_of_memoe(penalty):
    data = known_rows()
    fit = mm.fit(
        "y ~ x | gate: group | vary: u", data, 2, bandwidth=np.inf, dispersion="const", gate_penalty=penalty, rng=0
    )
    right = mm.fit("y ~ x | gate: group", data, 2, gate_penalty=penalty, rng=0)
    np.testing.assert_allclose(fit.params, right.params[fit.params.index], atol=1e-5)
    gates = [name for name in fit.params.index if name.startswith("gate")]
    plain = [one.with_cov("robust", correction=False).bse[gates] for one in (fit, right)]
    np.testing.assert_allclose(*plain, rtol=1e-3)


@pytest.mark.parametrize("penalty", ["firth", 3.0])
def test_scores_and_values_of_local_likelihoods_agree(penalty):
    """Overlapping experts, degree two: the gradient is the derivative of the penalised local likelihood."""
    sim = mm.simulate.vcmoe("overlapping", 150, rng=4)
    fit = mm.fit(sim.formula, sim.data, 2, bandwidth=0.5, n_grid=6, rng=0, starts=2, gate_penalty=penalty)
    local = build_local(fit.model.problem, 2)
    coef = np.concatenate([fit.model.coef, 0.1 * fit.model.coef[:, :1]], axis=1) * local.free
    (block, terms), slots = next(iter(local_pieces(local, coef))), fit.model.problem.slots
    gradient = local_gradient(local, block, terms)
    for power in range(3):
        for slot in (0, slots.gates.start, slots.gates.start + 1):
            step = np.zeros_like(coef)
            step[:, power, slot] = 1e-5
            up, down = (local_loglik(block, natural_terms(local, block, coef + s * step)) for s in (1.0, -1.0))
            np.testing.assert_allclose(gradient[:, power, slot], (up - down) / 2e-5, rtol=1e-5, atol=1e-5)


def test_standard_errors_are_those_of_a_local_sandwich_with_the_added_rows():
    """Dense: scores of rows and of two added rows for each, one for each expert, at one grid point."""
    data, constant, h = known_rows(), 3.0, 0.5
    fit = fitted(data, gate_penalty=constant, bandwidth=h).with_cov("robust", correction=False)
    place = int(fit.model.points[2])
    t = (data["u"].to_numpy() - fit.model.problem.windows.grid[place]) / h
    kernel = PEAK * np.clip(1 - t**2, 0, None)
    W = np.column_stack([np.ones(len(data)), data["group"] == "b"])
    Z = np.hstack([W, W * t[:, None]])
    gamma = fit.model.coef[place][:, fit.model.problem.slots.gates].ravel()
    p, units = 1 / (1 + np.exp(-Z @ gamma)), constant / (2 * len(data))
    bread, meat = np.zeros((4, 4)), np.zeros((4, 4))
    for k, z, prob, member in zip(kernel, Z, p, data["expert"], strict=True):
        bread += k * (1 + 2 * units) * prob * (1 - prob) * np.outer(z, z)
        meat += k**2 * ((member - prob) ** 2 + units * ((1 - prob) ** 2 + prob**2)) * np.outer(z, z)
    covariance = np.linalg.solve(bread, np.linalg.solve(bread, meat).T)
    found = [fit.bse[name] for name in fit.bse.index if name.startswith("gate2")][2::5]
    np.testing.assert_allclose(found, np.sqrt(np.diag(covariance)[:2]), rtol=1e-3)


def test_bands_of_an_empty_cell_are_finite_and_wide():
    data = known_rows(300)
    bands = fitted(data, gate_penalty=1.0, bandwidth=0.5).bands(bias="none", rng=0)
    empty = bands[bands["coefficient"] == "gate2.group[T.b]"]
    assert np.isfinite(empty[["center", "std_error"]]).all(axis=None)
    assert np.isfinite(empty["band_high"]).all()
    assert (empty["std_error"] > 1.0).all()  # the prior is worth less than one row of the cell


def test_ordinary_data_hardly_move():
    sim = mm.simulate.vcmoe("well_separated", 400, rng=4)
    options = {"bandwidth": 0.35, "n_grid": 15, "rng": 0, "starts": 2}
    plain = mm.fit(sim.formula, sim.data, 2, **options)
    for penalty in ("firth", 1):
        fit = mm.fit(sim.formula, sim.data, 2, gate_penalty=penalty, **options)
        gates = fit.params.index.str.startswith("gate")
        assert (np.abs(fit.params - plain.params)[gates] < 0.5 * plain.bse[gates]).all()
        assert (fit.params != plain.params)[gates].all()


def test_the_flag_names_covariate_cell_and_coefficients():
    with pytest.warns(mm.errors.BoundaryWarning, match="separated|leave"):
        fit = fitted(known_rows())
    (message,) = [flag.message for flag in fit.flags if flag.code == "separated_gate"]
    assert "The gate covariate group leaves no rows to expert 2 where group = b" in message
    assert "gate2.group[T.b] is infinite" in message
    assert "gate_penalty='firth'" in message


def test_a_penalised_fit_is_kept_and_printed(tmp_path, capsys):
    data = known_rows()
    fit = fitted(data, gate_penalty=1)
    assert fit.model.settings["gate_penalty"] == 1.0
    fit.save(tmp_path / "fit.mixmoe")
    again = mm.load(tmp_path / "fit.mixmoe")
    assert again.model.problem.rows.penalty == PseudoUnits(1.0)
    pd.testing.assert_frame_equal(again.to_frame(), fit.to_frame())
    np.testing.assert_allclose(again.with_cov("robust").bse, fit.bse)
    assert "Gate penalised by Bayes constant 1" in str(fit.summary())
    assert "Gate penalty" in fit.summary().as_markdown()
    data.to_csv(tmp_path / "data.csv", index=False)
    options = ["--rng", "0", "--gate-penalty", "firth", "--option", "bandwidth=0.5", "--option", "n_grid=6"]
    assert main(["fit", str(tmp_path / "data.csv"), "y ~ 1 | gate: group | vary: u", *options]) == 0
    assert "Firth (Jeffreys prior)" in capsys.readouterr().out


def test_other_penalties_are_refused():
    with pytest.raises(ArgumentError, match="gate_penalty must be 'firth'"):
        mm.fit("y ~ 1 | gate: group | vary: u", known_rows(), 2, gate_penalty="ridge")
