"""The columns of s(...): the penalty they stand for, centring, periods, what is refused."""

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import trapezoid

import mixmoe as mm
from mixmoe.design.design import build_design
from mixmoe.design.formula import parse_formula
from mixmoe.errors import CollinearityWarning, DesignError, FormulaError
from tests.mixed.smooth.data import two_experts


@pytest.fixture(scope="module")
def frame():
    return two_experts(60)


def spline(frame, term):
    return build_design(parse_formula(f"y ~ {term} | re: (1 | id)"), frame, smooths=True).smooths[0].term.spline


def test_ridge_is_the_difference_penalty(frame):
    s = spline(frame, "s(t, k=9)")
    b = np.random.default_rng(0).normal(size=7)
    differences = np.diff(s.range_space @ b, 2)
    assert differences @ differences == pytest.approx(b @ b, rel=1e-10)


def test_free_columns_are_what_the_penalty_leaves(frame):
    """Constant, line and penalised columns span the B-splines, and the line is not penalised."""
    s = spline(frame, "s(t, k=8)")
    u = np.linspace(s.low, s.high, 50)
    from scipy.interpolate import BSpline

    B = BSpline.design_matrix(u, s.knots, 3).toarray()
    ours = np.column_stack([np.ones(50), s.free(u), s.penalised(u)])
    assert np.linalg.matrix_rank(np.hstack([B, ours]), tol=1e-9) == 8
    line = np.linalg.lstsq(B, u, rcond=None)[0]
    np.testing.assert_allclose(np.diff(line, 2), 0.0, atol=1e-10)


def test_gaps_in_the_index_put_knots_at_quantiles(frame):
    data = frame.assign(t=frame["t"] + 2.0 * (frame["t"] > 0.9))
    s = spline(data, "s(t, k=12)")
    assert np.ptp(np.diff(s.knots)) > 0.1
    b, u = np.random.default_rng(0).normal(size=10), np.linspace(s.low, s.high, 40001)
    bend = np.gradient(np.gradient(s.penalised(u) @ b, u), u)
    step = (s.high - s.low) / 9
    assert trapezoid(bend**2, u) * step**3 == pytest.approx(b @ b, rel=2e-2)


def test_periodic_spline_closes_smoothly_and_penalises_its_bend(frame):
    s = spline(frame, "s(t, bs='cc', k=9, ends=(0, 1))")
    e = 1e-5
    ends = s.penalised(np.array([0.0, e, 2 * e, 1 - 2 * e, 1 - e, 1.0]))
    np.testing.assert_allclose(ends[0], ends[-1], atol=1e-10)
    np.testing.assert_allclose((ends[1] - ends[0]) / e, (ends[-1] - ends[-2]) / e, atol=1e-3)
    b = np.random.default_rng(1).normal(size=7)
    u = np.linspace(0, 1, 20001)
    bend = np.gradient(np.gradient(s.penalised(u) @ b, u), u)
    assert trapezoid(bend[2:-2] ** 2, u[2:-2]) == pytest.approx(b @ b, rel=5e-3)


def test_functions_are_centred_and_multiplied(frame):
    design = build_design(parse_formula("y ~ s(z, k=6) + s(t, by=x, k=6) + s(t, by=g, k=6)"), frame, smooths=True)
    centred, by_x, by_a, by_b = design.smooths
    np.testing.assert_allclose(design.expert[:, centred.columns].mean(axis=0), 0.0, atol=1e-12)
    x = frame["x"].to_numpy()
    np.testing.assert_allclose(design.expert[:, by_x.columns[0]], x)
    np.testing.assert_allclose(
        design.expert[:, by_x.columns[2:]], x[:, None] * by_x.term.spline.penalised(frame["t"].to_numpy())
    )
    rows = (frame["g"] == "a").to_numpy()
    assert not design.expert[~rows][:, by_a.columns].any()
    np.testing.assert_allclose(design.expert[rows][:, by_a.columns].mean(axis=0), 0.0, atol=1e-12)
    assert by_b.name == "s(t, by=g).b"


def test_replay_on_other_rows(frame):
    design = build_design(parse_formula("y ~ s(z) + s(t, by=g)"), frame, smooths=True)
    again = design.for_new(frame.iloc[[5, 3, 40]])
    np.testing.assert_allclose(again.expert, design.expert[[5, 3, 40]], atol=1e-12)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ("s(g)", "must be one column of numbers"),
        ("s(t, k=4)", "whole number from 5 to 200, got 4"),
        ("s(d, k=15)", r"12 distinct values, fewer than k=15 basis functions need; write k=12 or less"),
        ("s(b)", "2 distinct values, too few for a spline"),
        ("s(t, by=rare)", "where by= is 'odd', too few"),
        ("s(t, bs='tp')", "bs= of s.* must be 'ps' or 'cc', got 'tp'"),
        ("s(t, bs='cc', m=1)", "m=1 is for bs='ps'"),
        ("s(t, ends=(0.5, 1))", "two numbers around the index"),
        ("s(t, x)", "k= of s.* got a Series"),
        ("s(t, K=5)", r"'s\(t, K=5\)': s\(...\) has no argument 'K'; did you mean 'k'"),
        ("s(t, degree=2)", r"has no argument 'degree'; it has k, m, by, bs, ends"),
        ("s(t):x", r"must be a term of its own; write s\(time, by=x\)"),
        ("I(s(t) * 2)", "must be a term of its own"),
    ],
)
def test_bad_terms_are_refused(frame, term, message):
    data = frame.assign(d=np.arange(len(frame)) % 12, b=np.arange(len(frame)) % 2)
    data["rare"] = np.where(np.arange(len(frame)) < 3, "odd", "even")
    with pytest.raises(DesignError, match=message):
        mm.MEMoE(f"y ~ {term} | re: (1 | id)", data, experts=1)


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("y ~ x | re: (s(t) | id)", "are for experts and gate"),
        ("y ~ s(t) | vary: x", "are for mixed-effects mixtures"),
        ("y ~ 1 | gate: s(t) | re: (1 | id)", "varies within subject"),
    ],
)
def test_functions_where_there_are_none(frame, formula, message):
    with pytest.raises(DesignError, match=message):
        mm.fit(formula, frame, experts=2)


def test_functions_that_overlap(frame):
    with (
        pytest.warns(CollinearityWarning),
        pytest.raises(DesignError, match=r"'s\(t, by=g\)' of the expert part overlaps"),
    ):
        mm.MEMoE("y ~ s(t) + s(t, by=g) | re: (1 | id)", frame, experts=1)


def test_functions_beside_vary(frame):
    with pytest.raises(FormulaError, match="stands beside vary:"):
        mm.fit("y ~ s(t) | re: (1 | id) | vary: t", frame, experts=1)


def test_new_rows_outside_the_range_or_of_a_new_category(frame):
    model = mm.MEMoE("y ~ s(t, by=g) | re: (1 | id)", frame, experts=1)
    with pytest.raises(DesignError, match="is 2, outside the range of the fit"):
        model.new_design(pd.DataFrame({"t": [2.0], "g": ["a"], "id": [1]}))
    with pytest.raises(DesignError, match="'c', a category that the fit has not seen"):
        model.new_design(pd.DataFrame({"t": [0.5], "g": ["c"], "id": [1]}))


def test_vary_is_spelled_out(frame):
    short = mm.MEMoE("y ~ x + const(z) | re: (1 | id) | vary: t", frame, experts=1)
    names = [f.name for f in short.functions]
    assert names == ["expert1.Intercept", "expert1.x"]
    assert "expert1.z" in short.layout.names
    by_hand = mm.MEMoE("y ~ 0 + s(t, by=1) + s(t, by=x) + z | re: (1 | id)", frame, experts=1)
    order = [short.design.names.expert.index(n) for n in ("Intercept.level", "x.level", "z")]
    other = [by_hand.design.names.expert.index(n) for n in ("s(t, by=1).level", "s(t, by=x).level", "z")]
    np.testing.assert_allclose(short.design.expert[:, order], by_hand.design.expert[:, other])
    assert short.design.expert.shape == by_hand.design.expert.shape
