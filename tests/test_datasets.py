"""The data that come with the package."""

import pytest

from mixmoe import datasets
from mixmoe.errors import ArgumentError


def test_pbcseq_is_the_mayo_trial():
    data = datasets.load("pbcseq")
    patients = data.groupby("id")
    assert len(data) == 1945
    assert patients.ngroups == 312
    assert patients["trt"].first().value_counts().to_dict() == {1: 158, 0: 154}
    assert (patients[["age", "sex", "trt", "futime", "status"]].nunique() == 1).all(axis=None)
    assert data["bili"].gt(0.0).all()
    assert data["year"].to_numpy() == pytest.approx(data["day"].to_numpy() / 365.25)


@pytest.mark.parametrize(("name", "rows", "subjects"), [("sleepstudy", 180, 18), ("orthodont", 108, 27)])
def test_small_sets_are_whole(name, rows, subjects):
    data = datasets.load(name)
    assert (len(data), data["subject"].nunique()) == (rows, subjects)
    assert not data.isna().any(axis=None)


def test_each_load_is_a_new_frame():
    changed = datasets.load("sleepstudy")
    changed["reaction"] = 0.0
    assert datasets.load("sleepstudy")["reaction"].min() > 0.0


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ArgumentError, match="no data set 'pbc'; the names are 'pbcseq', 'sleepstudy', 'orthodont'"):
        datasets.load("pbc")
    assert datasets.names() == ("pbcseq", "sleepstudy", "orthodont")
