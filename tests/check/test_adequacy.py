"""Adequacy by hand, on a table small enough to do so."""

import numpy as np
import pytest

from mixmoe.check.adequacy import adequacy, classification_table, memberships

TAU = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])


def test_figures_by_hand():
    found = adequacy(TAU, "subjects")
    np.testing.assert_allclose(found.proportion, [0.65, 0.35])
    np.testing.assert_array_equal(found.modal_count, [3, 1])
    np.testing.assert_allclose(found.mismatch, [0.1, -0.1])
    np.testing.assert_allclose(found.average_posterior, [2.3 / 3, 0.7])
    first = (2.3 / 0.7) / (0.65 / 0.35)
    np.testing.assert_allclose(found.odds_correct, [first, (0.7 / 0.3) / (0.35 / 0.65)])
    by_hand = sum(-t * np.log(t) for t in TAU[:, 0]) / (4 * np.log(2))
    assert found.doubt[0] == pytest.approx(by_hand)
    assert found.entropy == pytest.approx(1 - found.doubt.sum())
    assert found.smallest == 2
    frame = found.to_frame()
    assert list(frame.index) == [1, 2]
    np.testing.assert_allclose(frame["modal_share"], [0.75, 0.25])
    assert "Nagin 2005" in str(found)
    assert "expert 2" in found._repr_html_()


def test_an_expert_that_nobody_is_most_probably_in_is_blank():
    found = adequacy(np.array([[0.6, 0.4], [0.7, 0.3]]))
    assert np.isnan(found.average_posterior[1])
    assert np.isnan(found.odds_correct[1])
    assert found.modal_count[1] == 0
    assert "nan" not in str(found)


def test_one_expert_and_certain_experts():
    one = adequacy(np.ones((5, 1)), "rows")
    assert one.entropy == 1
    assert np.isnan(one.odds_correct[0])
    assert "5 rows" in str(one)
    certain = adequacy(np.eye(3))
    assert certain.entropy == 1
    assert np.isinf(certain.odds_correct).all()


def test_the_two_tables_by_hand():
    table = classification_table(TAU)
    np.testing.assert_allclose(table.mass, [[2.3, 0.7], [0.3, 0.7]])
    np.testing.assert_allclose(table.average, [[2.3 / 3, 0.7 / 3], [0.3, 0.7]])
    np.testing.assert_allclose(table.probabilities, [[2.3 / 2.6, 0.3 / 2.6], [0.5, 0.5]])
    assert table.to_frame().index.name == "expert"
    assert table.to_frame("mass").index.name == "modal"
    np.testing.assert_array_equal(table.to_frame("average"), table.average)
    assert "0.885" in str(table)


def test_memberships_by_hand():
    frame = memberships(np.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]]))
    assert list(frame["expert"]) == [2, 1]
    assert list(frame["second"]) == [3, 2]
    np.testing.assert_allclose(frame["margin"], [0.2, 1.0])
    doubt = -(0.2 * np.log(0.2) + 0.5 * np.log(0.5) + 0.3 * np.log(0.3)) / np.log(3)
    np.testing.assert_allclose(frame["entropy"], [doubt, 0.0], atol=1e-12)
    one = memberships(np.ones((2, 1)))
    assert one["second"].isna().all()
