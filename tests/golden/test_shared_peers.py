"""Reference results outside the repository, in ../shared/peers/memoe: best known maxima, estimates, standard errors.

Skipped where that folder is absent. The whole list at default settings and many seeds is run by
`python -m tests.simulation.reference`.
"""

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm

FOLDER = Path(__file__).parents[3] / "shared" / "peers" / "memoe"
ENTRIES = json.loads((FOLDER / "reference.json").read_text()) if (FOLDER / "reference.json").exists() else []
LOGLIK = 1e-3  # what the reference itself is asked to be reached within
SCORE = 1e-5  # per subject
ESTIMATE = 1e-3  # three digits, or a hundredth of a standard error where an estimate is near zero
ERROR = 5e-3  # relative, of standard errors: those of the reference come from numerical Hessians
FAST = {
    "data_hlme_K1_Dcommon_scommon_full",
    "data_hlme_K2_Dcommon_scommon_full",
    "data_hlme_K2_Dprop_scommon_full",
    "orthodont_K2_Dcommon_scommon_full",
    "paquid_mmse_K1_Dcommon_scommon_diag",
    "sim_k2_K2_Dclass_sclass_full",
    "sim_k2_K2_Dcommon_scommon_diag",
    "sim_k2_K2_Dprop_scommon_full",
    "sleepstudy_K2_Dcommon_sclass_full",
}

pytestmark = [
    pytest.mark.skipif(not ENTRIES, reason="../shared/peers/memoe is not there"),
    pytest.mark.filterwarnings("ignore::mixmoe.errors.MixmoeWarning"),  # the list holds boundaries on purpose
]


def parameters():
    return [
        pytest.param(entry, id=entry["key"], marks=[] if entry["key"] in FAST else [pytest.mark.slow])
        for entry in ENTRIES
    ]


def fitted(entry, seed=0):
    data = pd.read_csv(FOLDER / entry["data"])
    options = {"cov_re": entry["cov_re"], "residual": entry["residual"]}
    return mm.fit(entry["formula"], data, entry["experts"], rng=seed, **options)


def matched(fit, entry):
    """The fit with experts in the order of the entry, its last expert first because it is the reference of the gate."""
    ours, theirs = fit.model.user(fit.em.params).beta[0], np.array(entry["beta"])
    K = entry["experts"]
    order = min(permutations(range(K)), key=lambda order: float(((ours[list(order)] - theirs) ** 2).sum()))
    return fit.relabel([order[-1] + 1, *(k + 1 for k in order[:-1])])


def translated(name, fit, K):
    """Our name of a coefficient of the entry, or None where the two parametrise differently."""
    kind, _, inside = name.rstrip("]").partition("[")
    if kind not in ("beta", "gamma"):
        return None
    who, column = inside.split(",")
    names = fit.model.design.names
    if kind == "gamma":
        return f"gate{int(who) + 1}.{names.gate[int(column)]}"
    if who == "common":
        return f"common.{names.expert[int(column)]}"
    return f"expert{1 if int(who) == K else int(who) + 1}.{names.expert[int(column)]}"


@pytest.mark.parametrize("entry", parameters())
def test_best_known_maximum(entry):
    fit = fitted(entry)
    assert (fit.nobs, fit.n_units) == (entry["rows"], entry["subjects"])
    assert fit.llf > entry["loglik"] - LOGLIK
    assert fit.model.largest_score(fit.params) < SCORE
    if not entry["regular"]:
        singular = entry["flags"]["boundary_D"] or entry["flags"]["separated_gating"]
        assert fit.flags or not singular or fit.llf > entry["loglik"] + LOGLIK
        return
    assert fit.converged
    if fit.llf > entry["loglik"] + LOGLIK:
        return  # a better maximum than the best known one
    assert_same_estimates(matched(fit, entry), entry)


def assert_same_estimates(fit, entry):
    K = entry["experts"]
    plain = fit.with_cov("nonrobust")
    for name, estimate, se in zip(*(entry["natural"][what] for what in ("names", "est", "se")), strict=True):
        ours = translated(name, fit, K)
        if ours is not None:
            assert fit.params[ours] == pytest.approx(estimate, rel=ESTIMATE, abs=0.01 * se), ours
            assert plain.bse[ours] == pytest.approx(se, rel=ERROR), ours
    params = fit.model.user(fit.em.params)
    back = [*range(1, K), 0]
    D = (params.factor[0] @ params.factor[0].swapaxes(1, 2))[back]
    size = np.sqrt(np.abs(np.einsum("kii,kjj->kij", np.array(entry["D"]), np.array(entry["D"]))))
    np.testing.assert_array_less(np.abs(D - entry["D"]), 3 * ESTIMATE * size)
    sigma = np.broadcast_to(entry["sigma"], K)
    np.testing.assert_allclose(params.sigma[0][back], sigma, rtol=ESTIMATE)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("entry", [p for p in parameters() if p.id in FAST])
def test_other_seeds(entry, seed):
    assert fitted(entry, seed).llf > entry["loglik"] - LOGLIK
