"""`mm.fit` and `mm.load` find the family by the formula."""

import warnings

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError
from mixmoe.varying.model import VCMoE
from mixmoe.varying.presets import vcmoe


def test_vary_makes_a_vcmoe(tmp_path):
    data = vcmoe(n=300, rng=1).data
    fit = mm.fit("y ~ z1 | gate: x1 | vary: u", data, experts=2, bandwidth=0.3, rng=0, starts=3)
    assert isinstance(fit, mm.VCMoEResults)
    fit.save(tmp_path / "a.mm")
    np.testing.assert_array_equal(mm.load(tmp_path / "a.mm").predict(), fit.predict())


def test_options_of_the_other_family_are_refused():
    data = vcmoe(n=300, rng=1).data
    with pytest.raises(ArgumentError, match="no option 'cov_re'"):
        mm.fit("y ~ z1 | vary: u", data, cov_re="common")
    with pytest.raises(ArgumentError, match="no option 'bandwidth'"):
        mm.fit("y ~ z1", data, bandwidth=0.3)


def rows_with_a_gap():
    rng = np.random.default_rng(3)
    u = np.concatenate([rng.uniform(0.0, 0.3, 150), rng.uniform(0.7, 1.0, 150)])
    data = pd.DataFrame({"u": u, "x": rng.normal(size=300), "z": rng.normal(size=300)})
    first = rng.random(300) < 0.5
    return data.assign(y=np.where(first, 1.0 + np.sin(4.0 * u), -1.0 + 0.5 * data["z"]) + 0.4 * rng.normal(size=300))


def test_warnings_point_at_the_line_of_the_user_and_come_once():
    data, options = rows_with_a_gap(), {"experts": 2, "bandwidth": 0.25, "n_grid": 30}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit = mm.fit("y ~ z | gate: x | vary: u", data, rng=0, starts=2, **options)
        VCMoE("y ~ z | gate: x | vary: u", data, **options).fit(rng=0, starts=2)
        fit.bands(rng=0)
        fit.summary()
        figures = len(seen)
        fit.curves("functions")
    assert {w.filename for w in seen} == {__file__}
    assert len({w.lineno for w in seen}) == 4
    assert len(seen) - figures == 1
    codes = [str(w.message) for w in seen[:figures]]
    assert all(codes.count(text) <= 2 for text in codes)  # two fits
