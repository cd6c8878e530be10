"""Transitions of a CRF whose score is given, and the scores of ends: against enumeration and explicit models."""

import itertools
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError, DesignError, MixmoeWarning

pytest.importorskip("torch")

from mixmoe.neural.components import spread_estimates

STATES = "ABC"
FORMULA = "state ~ x | re: ({} | id) | seq: day"
NEVER = {"C": {"A": None}}


def chains(n_persons=25, n_days=8, seed=0):
    """No move from C to A; sequences begin in A more often than states come up, and end in B."""
    rng = np.random.default_rng(seed)
    rows = []
    for person in range(n_persons):
        table = rng.normal(size=(3, 3)) * 0.4 + 0.5 * np.eye(3)
        table[2, 0] = -np.inf
        state = rng.choice(3, p=[0.7, 0.15, 0.15])
        for day in range(n_days):
            x = rng.normal()
            if day:
                score = table[state] + np.array([0.0, 0.5, -0.5]) * x
                p = np.exp(score - score.max())
                state = rng.choice(3, p=p / p.sum())
            rows.append((f"p{person}", day, x, STATES[state]))
    return pd.DataFrame(rows, columns=["id", "day", "x", "state"])


DATA = chains()


def quiet(words="0", data=DATA, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        return mm.fit(FORMULA.format(words), data, **{"hidden": (), "baselines": False, "rng": 0, **options})


@pytest.fixture(scope="module")
def never():
    return quiet(transitions=NEVER)


@pytest.fixture(scope="module")
def personal():
    return quiet("transitions", epochs=60, transitions=NEVER)


def scores_of(fit, given=np.nan):
    """Transition scores and emission scores of rows as printed."""
    table = np.full((3, 3), given)
    for a, b in itertools.product(range(3), range(3)):
        table[a, b] = fit.params.get(f"transition({STATES[a]},{STATES[b]})", table[a, b])
    intercept = np.array([0.0, *(fit.params[f"Intercept({s})"] for s in "BC")])
    slope = np.array([0.0, *(fit.params[f"x({s})"] for s in "BC")])
    return table, lambda x: intercept + slope * x[:, None]


def path_logliks(table, emissions, starts=0.0, ends=0.0):
    """Log-probability of every path, by enumeration; starts and ends (3,)."""
    T = len(emissions)
    paths = np.array(list(itertools.product(range(3), repeat=T)))
    found = emissions[np.arange(T), paths].sum(1) + table[paths[:, :-1], paths[:, 1:]].sum(1)
    found = found + (np.zeros(3) + starts)[paths[:, 0]] + (np.zeros(3) + ends)[paths[:, -1]]
    return paths, found - np.logaddexp.reduce(found)


def test_the_likelihood_is_that_of_paths_without_the_move(never):
    table, emissions = scores_of(never, given=-np.inf)
    total = 0.0
    for _, rows in DATA.groupby("id"):
        paths, loglik = path_logliks(table, emissions(rows["x"].to_numpy()))
        total += loglik[(paths == rows["state"].map(STATES.index).to_numpy()).all(1)][0]
    assert never.llf == pytest.approx(total, abs=1e-7)
    assert never.df_model == 7 + 4  # eight moves less a constant, two intercepts and two slopes
    assert "transition(C,A)" not in never.params
    assert never.params.filter(like="transition").sum() == pytest.approx(0.0, abs=1e-12)


def test_a_move_that_is_not_made_costs_likelihood_where_it_is_allowed(never):
    """Its free score goes to minus infinity, and the likelihood to that of the model without it."""
    free = quiet()
    assert free.params["transition(C,A)"] < -3.0
    assert never.llf >= free.llf - 1e-6
    assert never.llf - free.llf < 1.0


def test_a_score_that_is_given_is_the_one_of_all(never):
    """Given what the free fit finds, less one of its scores, nothing is lost but the constant."""
    value = never.params["transition(A,A)"]
    fixed = quiet(transitions={"C": {"A": None}, "A": {"A": value}})
    assert fixed.llf == pytest.approx(never.llf, abs=1e-4)
    assert fixed.df_model == never.df_model  # one score less, and no constant to lose
    names = fixed.params.filter(like="transition").index
    np.testing.assert_allclose(fixed.params[names], never.params[names], atol=0.01)
    both = {"C": {"A": None}, "A": {"A": value, "B": never.params["transition(A,B)"] - 1.0}}
    assert quiet(transitions=both).llf < never.llf - 0.5


def test_probabilities_scores_and_paths_leave_the_move_out(never, personal, tmp_path):
    for fit in (never, personal):
        assert fit.transitions.matrix().loc["C", "A"] == 0.0
        assert (fit.transitions.scores[:, 2, 0] == -np.inf).all()
        assert fit.transitions.matrix("p1").loc["C", "A"] == 0.0
        states = fit.decode().reset_index(drop=True)
        follows = (states.shift() == "C") & (states == "A") & (DATA["id"] == DATA["id"].shift())
        assert not follows.any()
    personal.save(tmp_path / "fit.json")
    again = mm.load(tmp_path / "fit.json")
    assert again.problem.network.moves == ((2, 0, -np.inf),)
    pd.testing.assert_frame_equal(again.predict(), personal.predict())


def test_personal_effects_are_on_the_moves_that_there_are(personal):
    free = np.array([True] * 6 + [False] + [True] * 2)
    assert (personal.trained.s[~free] <= 1e-6).all()
    spread = personal.params.filter(like="sd(transition(")
    np.testing.assert_allclose(spread, np.sqrt(personal.trained.s[free]), rtol=1e-6)
    assert "sd(transition(C,A)|id)" not in spread.index
    # A move whose variance is zero has no standard error, and the others have theirs.
    s = np.where(np.arange(9) == 3, 0.0, 0.4)
    fit, logs = replace(personal.trained, s=s), np.diag(np.full(9, 0.04))
    found = spread_estimates(personal.problem, fit, personal.model.scaling, True, logs)
    errors = np.sqrt(np.diag(found.covariance))
    assert np.flatnonzero(np.isnan(errors)).tolist() == [3]
    np.testing.assert_allclose(errors[0], np.sqrt(0.4) * 0.2 / 2.0)  # by the delta method
    assert personal.df_model == 7 + 4 + 8


def test_tables_and_reports_say_what_is_given(never):
    text = str(never.summary())
    assert "C to A never" in text
    assert "Start and end scores" in text


@pytest.mark.parametrize("transitions", [None, NEVER])
def test_scores_of_ends_are_part_of_transitions_and_emissions(transitions):
    """Double-centred moves with explicit scores of ends give every path the probability that the fit gives it."""
    fit = quiet(transitions=transitions)
    table, emissions = scores_of(fit, given=-np.inf)
    ends = fit.end_scores
    start, end = ends["start"].to_numpy(), ends["end"].to_numpy()
    assert start.sum() == pytest.approx(0.0, abs=1e-9)
    x = np.array([0.3, -1.0, 0.5, 0.0])
    _, direct = path_logliks(table, emissions(x))
    inner = table + end[:, None] + start[None, :]
    _, explicit = path_logliks(inner, emissions(x) - start - end, start, end)
    possible = np.isfinite(direct)
    np.testing.assert_allclose(explicit[possible], direct[possible], atol=1e-9)
    rest = np.where(np.isfinite(inner), inner, np.nan)
    rest -= np.nanmean(rest)
    np.testing.assert_allclose(np.nansum(rest, 0), 0.0, atol=1e-9)
    np.testing.assert_allclose(np.nansum(rest, 1), 0.0, atol=1e-9)
    assert (ends[["start_se", "end_se"]] > 0).all().all()
    assert ends.loc["A", "start"] > 2 * ends.loc["A", "start_se"]  # seven of ten sequences begin there


@pytest.mark.parametrize(
    ("transitions", "message"),
    [
        ({"C": {"D": None}}, "names 'D', which is no state; there are A, B, C"),
        ({"C": None}, "mapping of mappings"),
        ([("C", "A")], "mapping of mappings"),
        ({"C": {"A": "never"}}, "from 'C' to 'A' is 'never'"),
        ({"C": {"A": np.inf}}, "from 'C' to 'A' is inf"),
        ({a: dict.fromkeys(STATES) for a in STATES}, "leaves no score to estimate"),
    ],
)
def test_what_cannot_be_given_is_refused(transitions, message):
    with pytest.raises(ArgumentError, match=message):
        mm.NME(FORMULA.format("0"), DATA, hidden=(), transitions=transitions)


def test_moves_that_are_ruled_out_are_no_data(never):
    with pytest.raises(DesignError, match="comes from 'A' to 'B', which transitions= rules out"):
        mm.NME(FORMULA.format("0"), DATA, hidden=(), transitions={"A": {"B": None}})
    # one missing state between: C, ?, A is possible by way of B, and A, ?, A is not if A can only be left
    hidden = pd.DataFrame({"id": "a", "day": range(6), "x": [0.0, 1, 3, 2, 1, 0]})
    hidden["state"] = ["C", None, "A", "B", "C", "B"]
    mm.NME(FORMULA.format("0"), hidden, hidden=(), transitions=NEVER)
    with pytest.raises(DesignError, match="to 'A', which transitions= rules out"):
        mm.NME(FORMULA.format("0"), hidden, hidden=(), transitions={"C": {"A": None, "B": None}})
    with pytest.raises(ArgumentError, match="not for family='gaussian'"):
        mm.NME("x ~ day | re: (last | id)", DATA, hidden=(), transitions=NEVER)
    rows = pd.DataFrame({"id": "new", "day": range(2), "x": 0.0, "state": ["C", "A"]})
    with pytest.raises(DesignError, match="rules out"):
        never.adapt(rows)
    with pytest.raises(ArgumentError, match="scores of ends belong to a CRF"):
        _ = quiet_gaussian().end_scores


def quiet_gaussian():
    return mm.fit("x ~ day | re: (last[1] | id)", DATA, hidden=(), baselines=False)
