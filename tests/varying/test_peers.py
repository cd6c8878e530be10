"""Against the R package's stored fits, where the shared folder is at hand."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mixmoe.responses.distribution import Outcome
from mixmoe.responses.exponential import family_named
from mixmoe.varying.joint_em import Control, fit_functions
from mixmoe.varying.local_likelihood import build_local, local_start
from mixmoe.varying.local_maximum import maximise_local
from mixmoe.varying.problem import Rows, Slots, build_problem
from mixmoe.varying.smoothing import From, maximise
from mixmoe.varying.starts import permute_experts
from tests.simulation.varying_peer import TIGHT, TOLERANCE, peer_functions

FOLDER = Path(__file__).parents[3] / "shared" / "peers" / "vcmoe"
WORSE = 1.02  # the bar: coefficient RMSE over that of the R package with labels repaired
BELOW = 0.98  # found: 0.92, 0.90, 0.97
POLISHED = 0.02  # both maximise the same local likelihood; theirs stops at 1e-9 with ridge 1e-6

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the shared peer fits are not at hand")


def peer(name):
    data = pd.read_csv(FOLDER / f"{name}.csv").sort_values("u")
    return data, json.loads((FOLDER / f"{name}.json").read_text())


def problem_of(data, stored, grid):
    family = family_named(stored["meta"]["family"])
    one = np.ones(len(data))
    y = data["y"].to_numpy(float)
    offset = data["log_size_factor"].to_numpy() if "log_size_factor" in data else 0.0 * one
    design, gate = np.column_stack([one, data["z1"]]), np.column_stack([one, data["x1"]])
    rows = Rows(Outcome(y, one, family.constant(y, one)), design, gate, data["u"].to_numpy(), offset, one)
    slots = Slots(2, 2, 2, family.has_dispersion)
    low, high = stored["meta"]["u_range"]
    h = stored["meta"]["bandwidth"] * (high - low)
    return build_problem(rows, family, slots, np.zeros(slots.n, dtype=bool), grid, h, h, 0.01)


def full_grid(stored):
    """50 points over the range, with those of the peer among them."""
    low, high = stored["meta"]["u_range"]
    return np.unique(np.concatenate([np.linspace(low, high, 50), stored["fit_tight_greedy"]["u_grid_original"]]))


def repaired(fit, truth):
    """The peer's expert coefficients (G, 2, 2) with experts put in the order of the truth at each point."""
    found = np.array(fit["expert"])
    return np.stack([min((f, f[::-1]), key=lambda a: ((a - t) ** 2).sum()) for f, t in zip(found, truth, strict=True)])


def ours(coef, problem, stored, truth):
    at = np.searchsorted(problem.windows.grid, stored["fit_tight_greedy"]["u_grid_original"])
    orders = [permute_experts(problem.slots, coef, np.array(o)) for o in ([0, 1], [1, 0])]
    levels = [c[at, 0, :4].reshape(-1, 2, 2) for c in orders]
    return min(levels, key=lambda a: ((a - truth) ** 2).sum())


def rmse(found, truth):
    return float(np.sqrt(((found - truth) ** 2).mean()))


def ratio(name):
    """Error of the reported functions over that of the peer."""
    data, stored = peer(name)
    truth = np.array(stored["truth_on_fit_grid"]["expert"])
    problem = problem_of(data, stored, full_grid(stored))
    run = maximise(problem, Control(), np.random.default_rng(0), From())
    found, theirs = ours(run.coef, problem, stored, truth), repaired(stored["fit_tight_greedy"], truth)
    return rmse(found, truth) / rmse(theirs, truth)


def test_error_is_not_above_the_repaired_peer_and_in_the_median_below():
    ratios = [ratio(name) for name in ("g2_sep", "g2_const", "nb2")]
    assert max(ratios) <= WORSE
    assert np.median(ratios) < BELOW


@pytest.mark.parametrize("name", ["g2_sep", "g2_const"])
def test_local_maximum_is_that_of_the_peer(name):
    data, stored = peer(name)
    truth = np.array(stored["truth_on_fit_grid"]["expert"])
    problem = problem_of(data, stored, full_grid(stored))
    run = fit_functions(problem, Control(), np.random.default_rng(0))
    local = build_local(problem, 1)
    fit = maximise_local(local, local_start(local, run.coef))
    assert fit.converged.all()
    theirs = repaired(stored["fit_tight_greedy"], truth)
    np.testing.assert_allclose(ours(fit.coef, problem, stored, truth), theirs, atol=POLISHED)


@pytest.mark.parametrize("name", ["g2_sep", "g2_const", "nb2"])
@pytest.mark.parametrize(
    ("fit", "starts", "tolerance", "atol"),
    [("fit_default_label", 2, TOLERANCE, 0.01), ("fit_tight_greedy", 1, TIGHT, 0.001)],
)
def test_our_copy_of_the_algorithm_finds_the_same(name, fit, starts, tolerance, atol):
    data, stored = peer(name)
    truth = np.array(stored["truth_on_fit_grid"]["expert"])
    problem = problem_of(data, stored, np.array(stored[fit]["u_grid_original"]))
    found = peer_functions(problem, np.random.default_rng(0), n_starts=starts, tolerance=tolerance)
    np.testing.assert_allclose(repaired({"expert": found}, truth), repaired(stored[fit], truth), atol=atol)
