"""Pieces of the two passes against computations with all rows at once."""

import warnings

import numpy as np
import pandas as pd
import pytest
from formulaic.transforms import TRANSFORMS

import mixmoe as mm
from mixmoe.design.transforms import TRANSFORMS as ALL_TRANSFORMS
from mixmoe.errors import DesignError
from mixmoe.mixed.model import MEMoE
from mixmoe.mixed.partitioned import PartitionedMEMoE
from mixmoe.partitions.moments import BySubject, Gathering, packed_products, signs_in_memory, unpacked
from mixmoe.partitions.summaries import COLLECTORS, merge, summaries_of

X = np.random.default_rng(5).gamma(2.0, 3.0, 311)


def collected(name, splits, *args, **options):
    """The state of a transform from records of parts."""
    known = {}
    for part in np.split(X, splits):
        state = {}
        COLLECTORS[name](part, *args, _state=state, **options)
        known = merge(known, summaries_of({"x": state}))
    return known["x"].state()


@pytest.mark.parametrize("splits", [[], [1, 2, 150], list(range(10, 311, 10))])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("scale", {}),
        ("scale", {"center": False}),
        ("scale", {"center": 2.5, "ddof": 0}),
        ("scale", {"scale": False}),
        ("center", {}),
        ("standardize", {}),
        ("bs", {"df": 7}),
        ("bs", {"df": 5, "include_intercept": True, "degree": 2}),
        ("bs", {"knots": [3.0, 9.0]}),
        ("bs", {"df": 6, "lower_bound": 2.0, "upper_bound": 12.0, "extrapolation": "clip"}),
        ("bs", {"df": 3}),
    ],
)
def test_states_are_those_of_all_rows(name, options, splits):
    whole = {}
    TRANSFORMS[name](X, _state=whole, **options)
    found = collected(name, splits, **options)
    assert found.keys() == whole.keys()
    for key, value in whole.items():
        if name == "bs":
            assert found[key] == value  # quantiles are those of NumPy, to the last digit
        else:
            assert found[key] == value or found[key] == pytest.approx(value, rel=1e-13)


def test_what_the_design_calls_merged_is_what_partitions_collect():
    assert {name for name, known in ALL_TRANSFORMS.items() if known.merged} == set(COLLECTORS)


def test_too_many_different_values_are_refused(monkeypatch):
    monkeypatch.setattr("mixmoe.partitions.summaries.MOST_VALUES", 100)
    with pytest.raises(DesignError, match=r"more than 100 different values.*knots="):
        collected("bs", [150], df=5)
    collected("bs", [150])


@pytest.mark.parametrize("seed", range(6))
def test_signs_are_those_of_a_decomposition_in_memory(seed):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(40, 5)) + rng.normal(size=5)
    R = np.linalg.qr(A, mode="r")
    other = rng.choice([-1.0, 1.0], 5)[:, None] * R
    np.testing.assert_allclose(signs_in_memory(other, A[:5])[:, None] * other, R, rtol=1e-12)


def test_sums_by_subject_do_not_depend_on_how_rows_are_spread():
    rng = np.random.default_rng(2)
    ids, rows, gate = rng.integers(50, size=600), rng.normal(size=(3, 600)), rng.normal(size=50)
    gathering = Gathering()
    for at in np.array_split(np.arange(600), 23):
        order = at[np.argsort(ids[at], kind="stable")]
        labels, starts = np.unique(ids[order], return_index=True)
        sums = packed_products(rows[:, order], starts)
        away = np.zeros(len(labels))
        gathering.add(BySubject(pd.Index(labels), sums, (gate[labels],), (away,)))
        gathering._join()
    whole = gathering.whole()
    assert list(whole.labels) == sorted(set(ids))
    found = unpacked(whole.sums, slice(3, 9))
    for i, label in enumerate(whole.labels[3:9]):
        mine = rows[:, ids == label]
        np.testing.assert_allclose(found[..., i], mine @ mine.T, rtol=1e-12)
    np.testing.assert_array_equal(whole.first[0], gate[whole.labels])
    assert not whole.away[0].any()


def test_a_baseline_that_changes_between_parts_is_seen():
    gathering = Gathering()
    for value in (1.0, 1.0, 1.5):
        gathering.add(BySubject(pd.Index([7]), (np.ones(1),), (np.array([value]),), (np.zeros(1),)))
    whole = gathering.whole()
    assert (whole.first[0][0], whole.away[0][0]) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("formula", "options"),
    [
        ("y ~ time + x1 + C(g) | gate: z1 | re: (1 + time | id)", {}),
        ("y ~ 0 + common(time) + x1 + C(g) | gate: z1 | re: (1 + time || id)", {"weights": "u"}),
    ],
)
def test_coordinates_and_moments_are_those_of_memory(tmp_path, formula, options):
    pytest.importorskip("pyarrow")
    data = mm.simulate.memoe("separated", n_subjects=40, rng=1).data
    rng = np.random.default_rng(0)
    data = data.assign(u=rng.uniform(0.5, 2.0, len(data)), g=np.where(data["x1"] > 0, "a", "b"))
    data = data.iloc[rng.permutation(len(data))].reset_index(drop=True)
    for i, at in enumerate(np.array_split(np.arange(len(data)), 5)):
        data.iloc[at].to_parquet(tmp_path / f"{i}.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        here, there = (
            MEMoE(formula, data, 2, **options),
            PartitionedMEMoE(formula, mm.scan(tmp_path), 2, **options),
        )
    for name in ("center", "scale", "expert", "random", "gate", "weight"):
        mine, theirs = getattr(here.coordinates, name), getattr(there.coordinates, name)
        np.testing.assert_allclose(theirs, mine, rtol=1e-11, atol=1e-12)
    for name in ("n", "yy", "Xy", "XX", "Zy", "ZX", "ZZ", "log_weight"):
        mine, theirs = getattr(here.problem.experts, name), getattr(there.problem.experts, name)
        np.testing.assert_allclose(theirs, mine, atol=1e-11)
    np.testing.assert_array_equal(there.problem.W, here.problem.W)
