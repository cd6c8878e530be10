"""Fixtures that tests of several folders share."""

import pytest


@pytest.fixture
def plt():
    """Matplotlib's pyplot without a screen; a test may neither leave figures open nor change the user's settings."""
    mpl = pytest.importorskip("matplotlib")
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    before = dict(mpl.rcParams)
    yield plt
    plt.close("all")
    assert dict(mpl.rcParams) == before
