"""`mm.fit` and `mm.load` find the family by the formula."""

import numpy as np
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError
from mixmoe.varying.simulate import vcmoe


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
