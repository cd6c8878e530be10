"""A small coverage study: far too few replicates for the bar, enough to see an interval that is wrong."""

import pytest

from tests.simulation.coverage import study, summarise

REPLICATES = 60


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["moderate", "heavy_tails"])
def test_robust_intervals_hold_the_truth(preset):
    found = study(preset, n_subjects=500, replicates=REPLICATES, jobs=1)
    table = summarise(found)
    effects = table[table.index.str.startswith(("expert", "gate"))]
    assert sum(r.converged for r in found) >= 0.95 * REPLICATES
    # Four standard errors below 95 % at 60 replicates, for the least of nine effects.
    assert effects["robust coverage"].min() > 0.84
    assert effects["robust coverage"].mean() > 0.92
    assert (effects["bias"].abs() < 4 * effects["SD"] / REPLICATES**0.5).all()
