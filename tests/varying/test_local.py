"""Windows, local moments and interpolation against loops."""

import numpy as np
import pytest

from mixmoe.varying.windows import (
    blocks,
    build_windows,
    effective_rows,
    epanechnikov,
    hankel,
    hermite_matrix,
    local_moments,
    local_predictor,
)


@pytest.fixture
def windows():
    index = np.sort(np.random.default_rng(0).uniform(2.0, 5.0, 60))
    return build_windows(index, np.linspace(index[0], index[-1], 7), 0.6)


def test_windows_hold_exactly_the_rows_with_positive_weight(windows):
    for g, u in enumerate(windows.grid):
        inside = np.flatnonzero(epanechnikov((windows.index - u) / windows.bandwidth) > 0.0)
        assert windows.lo[g] == inside[0]
        assert windows.hi[g] == inside[-1] + 1


def test_moments_equal_the_double_loop(windows):
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(60, 3))
    (block,) = blocks(windows)
    values = np.stack([block.kernel, block.kernel * rng.normal(size=len(block.t))])
    got = local_moments(block, values, rows, 3)
    for g in range(windows.n_grid):
        a, b = block.offsets[g], block.offsets[g + 1]
        inside = rows[windows.lo[g] : windows.hi[g]]
        for s in range(3):
            want = (values[:, a:b] * block.t[a:b] ** s) @ inside
            np.testing.assert_allclose(got[g, s], want, rtol=1e-12, atol=1e-12)


def test_predictor_equals_the_double_loop(windows):
    rng = np.random.default_rng(2)
    design = rng.normal(size=(4, 60))
    coef = rng.normal(size=(7, 3, 2, 4))
    (block,) = blocks(windows)
    got = local_predictor(block, coef, design)
    for g in range(7):
        span = slice(block.offsets[g], block.offsets[g + 1])
        rows = slice(windows.lo[g], windows.hi[g])
        want = sum(block.t[span] ** s * (coef[g, s] @ design[:, rows]) for s in range(3))
        np.testing.assert_allclose(got[:, span], want, rtol=1e-12)


def test_small_blocks_give_the_same_moments(windows, monkeypatch):
    rows = np.random.default_rng(3).normal(size=(60, 2))
    whole = np.concatenate([local_moments(b, b.kernel[None], rows, 2) for b in blocks(windows)])
    monkeypatch.setattr("mixmoe.varying.windows.PAIRS_PER_BLOCK", 10)
    monkeypatch.setattr("mixmoe.varying.windows.PAIRS_KEPT", 0)
    again = build_windows(windows.index, windows.grid, windows.bandwidth)
    pieces = [local_moments(b, b.kernel[None], rows, 2) for b in blocks(again)]
    assert len(pieces) == 7
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=1e-13)


def test_hankel_has_moment_of_the_summed_powers():
    moments = np.arange(3.0)[None, :, None, None] * np.ones((1, 3, 2, 2))
    np.testing.assert_array_equal(hankel(moments, 1)[0][::2, ::2], [[0.0, 1.0], [1.0, 2.0]])


def test_hermite_reproduces_cubics_from_levels_and_slopes():
    grid, h = np.linspace(-1.0, 2.0, 5), 0.7
    at = np.linspace(-1.0, 2.0, 41)
    f, df = (lambda u: u**3 - u), (lambda u: 3 * u**2 - 1)
    state = np.column_stack([f(grid), h * df(grid)]).ravel()
    np.testing.assert_allclose(hermite_matrix(grid, h, at) @ state, f(at), atol=1e-12)


def test_hermite_continues_the_boundary_line_outside():
    grid = np.array([0.0, 1.0])
    state = np.array([1.0, 0.5 * 2.0, 3.0, 0.5 * 4.0])
    got = hermite_matrix(grid, 0.5, np.array([-0.5, 1.5])) @ state
    np.testing.assert_allclose(got, [1.0 - 0.5 * 2.0, 3.0 + 0.5 * 4.0])


def test_effective_rows_of_equal_weights_is_below_the_count(windows):
    got = effective_rows(windows, np.ones(60))
    assert (got <= windows.hi - windows.lo).all()
    assert (got > 0.5 * (windows.hi - windows.lo)).all()
