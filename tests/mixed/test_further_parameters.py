"""Further parameters of experts: scales, names, and their way through layout, free vector and relabelling."""

import numpy as np
import pytest

from mixmoe.design.design import DesignNames
from mixmoe.errors import ArgumentError
from mixmoe.mixed.likelihood.further_parameters import Correlation, Extra, Positive, Unbounded
from mixmoe.mixed.parameters import (
    Structure,
    build_layout,
    checked_reported,
    derivatives_in_free,
    free_to_working,
    permute_reported,
    reported_to_user,
    user_to_reported,
    working_to_free,
)

GROUPS = (
    Extra("cut", ("a", "b", "c"), Unbounded(), (-1.0, 0.0, 0.0), block="other"),
    Extra("rho", ("",), Correlation(), (0.3,), own=False),
    Extra("shape", ("",), Positive(), (0.0,)),
)
NAMES = DesignNames("y", ("Intercept", "x"), ("Intercept",), ("Intercept",), "id")


def structure(residual="expert"):
    return Structure(2, 1, np.array([False, True]), 1, True, "expert", residual, GROUPS)


@pytest.mark.parametrize("scale", [Unbounded(), Positive(), Correlation()])
def test_scales_are_invertible_and_pass_complex_steps(scale):
    free = np.random.default_rng(1).normal(size=(4, 3))
    there = scale.natural(free)
    np.testing.assert_allclose(scale.free(there), free, rtol=1e-12)
    assert all(scale.allows(row) for row in there)
    step = np.full_like(free, 1e-7)
    slope = (scale.natural(free + step) - scale.natural(free - step)) / 2e-7
    np.testing.assert_allclose(scale.natural(free + 1e-30j).imag / 1e-30, slope, rtol=1e-6)


def test_names_follow_the_experts():
    names = build_layout(structure(), NAMES).names
    assert names[-11:] == (
        *("sigma1", "sigma2"),
        *("cut1(a)", "cut1(b)", "cut1(c)", "cut2(a)", "cut2(b)", "cut2(c)"),
        *("rho", "shape1", "shape2"),
    )


@pytest.mark.parametrize("residual", ["expert", "common", "none"])
def test_reported_and_free_vectors_are_two_views_of_the_same(residual):
    s = structure(residual)
    free = s.free
    theta = np.random.default_rng(2).normal(size=free.size)
    theta[free.factor] = np.abs(theta[free.factor])
    natural = user_to_reported(s, free_to_working(s, theta[None]))[0]
    assert natural.size == free.size == len(build_layout(s, NAMES).names)
    np.testing.assert_allclose(working_to_free(s, reported_to_user(s, natural))[0], theta, rtol=1e-12)
    layout = build_layout(s, NAMES)
    assert s.has_sigma == (residual != "none")
    np.testing.assert_array_equal(checked_reported(s, layout, natural), natural)


def test_relabelling_moves_own_ones_and_keeps_common_ones():
    s = structure()
    natural = np.arange(1.0, 1 + s.free.size)
    swapped = permute_reported(s, natural, [1, 0])
    old, new = natural[s.reported.last], swapped[s.reported.last]
    np.testing.assert_array_equal(new, np.concatenate([old[3:6], old[:3], old[6:7], old[8:9], old[7:8]]))
    np.testing.assert_array_equal(permute_reported(s, swapped, [1, 0]), natural)


def test_derivatives_reach_their_place():
    s = structure()
    free = s.free
    experts = np.zeros((1, 2, 2 + 1 + 1 + 5))
    experts[0, :, 4:] = [[1, 2, 3, 4, 5], [10, 20, 30, 40, 50]]
    out = derivatives_in_free(s, np.ones((1, free.size)), np.zeros((1, 1)), experts)[0]
    np.testing.assert_array_equal(out[free.size - 9 :], [1, 2, 3, 10, 20, 30, 44, 5, 50])


def test_values_outside_their_space_are_named():
    s = structure()
    natural = np.ones(s.reported.size)
    natural[s.reported.last] = [0.0, 1.0, 0.5, 0.0, 1.0, 2.0, 1.5, 1.0, 1.0]
    with pytest.raises(ArgumentError, match=f"rho = 1.5; it must be {Correlation().domain}"):
        checked_reported(s, build_layout(s, NAMES), natural)
