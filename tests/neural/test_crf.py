"""The CRF against all sequences, one by one."""

import itertools
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError, MixmoeWarning

torch = pytest.importorskip("torch")

from mixmoe.neural.blocks import Block, Blocks  # noqa: E402
from mixmoe.neural.crf import (  # noqa: E402
    centred,
    decode,
    effect_information,
    interior,
    log_partition,
    marginals,
    next_state,
    sequence_loss,
)
from mixmoe.neural.estimators.trained import Problem, block_loss, responses_in  # noqa: E402
from mixmoe.neural.network import build_network, chain_shapes  # noqa: E402
from mixmoe.neural.person_predictions import Uncertainty  # noqa: E402
from mixmoe.neural.personal_layers import select_personal  # noqa: E402
from mixmoe.neural.transitions import (  # noqa: E402
    common_ranks,
    hsic_test,
    standardised_effects,
)

STATES = 4


def batch(lengths, seed=0, personal=True):
    rng = np.random.default_rng(seed)
    B, T = len(lengths), max(lengths)
    mask = (np.arange(T) < np.array(lengths)[:, None]).astype(float)
    emissions = rng.normal(size=(B, T, STATES))
    table = rng.normal(size=(B, STATES, STATES) if personal else (STATES, STATES))
    states = rng.integers(0, STATES, (B, T))
    return (*(torch.tensor(a) for a in (emissions, table, states)), torch.tensor(mask))


def brute(emissions, table):
    """All sequences of one input and their scores."""
    paths = np.array(list(itertools.product(range(STATES), repeat=len(emissions))))
    scores = emissions[np.arange(len(emissions)), paths].sum(1)
    return paths, scores + table[paths[:, :-1], paths[:, 1:]].sum(1)


def test_the_next_state_is_that_in_the_middle_of_a_long_sequence():
    """All paths over nine equal rows, of which the third and the fourth are compared; the memory is short."""
    rng = np.random.default_rng(3)
    table, row = 0.3 * rng.normal(size=(STATES, STATES)), rng.normal(size=STATES)
    paths, scores = brute(np.tile(row, (9, 1)), table)
    joint = np.zeros((STATES, STATES))
    np.add.at(joint, (paths[:, 2], paths[:, 3]), np.exp(scores))
    found = next_state(torch.tensor(table), torch.tensor(row))
    np.testing.assert_allclose(found, joint / joint.sum(1, keepdims=True), atol=1e-5)
    assert (found - torch.softmax(torch.tensor(table + row), -1)).abs().max() > 0.02  # that at the last row


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        # Two states that persist, M = [[99, 1], [1, 9]]: the root of its characteristic polynomial by hand.
        (np.log([[99.0, 1.0], [1.0, 9.0]]), (54 + np.sqrt(2026), 1.0)),
        # Once left, the first state is not entered again, and weighs less than the other one: r = (1, 1).
        (np.array([[0.0, np.log(2.0)], [-1e30, np.log(3.0)]]), (3.0, 1.0)),
    ],
)
def test_the_next_state_of_slow_chains_and_of_moves_that_are_ruled_out(table, expected):
    M, (root, first) = np.exp(table), expected
    r = np.array([first, (root - M[0, 0]) * first / M[0, 1]])
    found = next_state(torch.tensor(table).expand(2, 2, 2), torch.zeros(2, dtype=torch.float64))
    np.testing.assert_allclose(found[1], M * r / (root * r[:, None]), atol=1e-12)
    np.testing.assert_allclose(found.sum(-1), 1.0)


@pytest.mark.parametrize("personal", [True, False])
@pytest.mark.parametrize("lengths", [(1, 2, 3), (6, 4, 5, 1), (1,), (6,)])
def test_everything_equals_brute_force(lengths, personal):
    emissions, table, states, mask = batch(lengths, personal=personal)
    loss = sequence_loss(emissions, table, states, mask)
    marginal, path = marginals(emissions, table, mask), decode(emissions, table, mask)
    for i, n in enumerate(lengths):
        own = (table[i] if personal else table).numpy()
        paths, scores = brute(emissions[i, :n].numpy(), own)
        total = np.logaddexp.reduce(scores)
        seen = (paths == states[i, :n].numpy()).all(1)
        weight = np.exp(scores - total)
        assert float(loss[i]) == pytest.approx(total - scores[seen][0], abs=1e-10)
        assert float(log_partition(emissions, table, mask)[i]) == pytest.approx(total, abs=1e-10)
        expected = np.array([[weight[paths[:, t] == s].sum() for s in range(STATES)] for t in range(n)])
        np.testing.assert_allclose(marginal[i, :n], expected, atol=1e-10)
        np.testing.assert_array_equal(path[i, :n], paths[scores.argmax()])


def test_scores_of_any_size_have_a_likelihood():
    emissions, table, states, mask = batch((5, 3))
    far = 1e5 * emissions
    assert torch.isfinite(sequence_loss(far, table, states, mask)).all()
    shifted = sequence_loss(emissions + 1e4, table - 1e3, states, mask)
    np.testing.assert_allclose(shifted, sequence_loss(emissions, table, states, mask), atol=1e-9)


def test_the_partition_function_is_twice_differentiable():
    emissions, table, _, mask = batch((4, 2))
    leaves = emissions.clone().requires_grad_(True), table.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda e, m: log_partition(e, m, mask), leaves)
    assert torch.autograd.gradgradcheck(lambda e, m: log_partition(e, m, mask), leaves)


def test_padding_changes_nothing():
    emissions, table, states, mask = batch((3, 2))
    longer = [torch.cat([a, a[:, :2]], 1) for a in (emissions, states)]
    padded = torch.cat([mask, torch.zeros(2, 2)], 1)
    np.testing.assert_allclose(
        sequence_loss(longer[0], table, longer[1], padded), sequence_loss(emissions, table, states, mask), atol=1e-12
    )
    assert not decode(longer[0], table, padded)[:, 3:].any()


def test_centred_scores_keep_the_distribution_and_interior_ones_up_to_the_ends():
    emissions, table, states, mask = batch((5,))
    expected = sequence_loss(emissions, table, states, mask)
    np.testing.assert_allclose(sequence_loss(emissions, centred(table), states, mask), expected, atol=1e-10)
    # u_a - u_b telescopes to u at the first row less u at the last one: put these into the emissions
    moved = table - interior(table)
    constant = moved[0].mean()
    u = (moved[0] - constant).sum(-1) / STATES
    np.testing.assert_allclose(moved[0], constant + u[:, None] - u[None, :], atol=1e-12)
    ends = emissions.clone()
    ends[0, 0] += u
    ends[0, 4] -= u
    np.testing.assert_allclose(sequence_loss(ends, interior(table), states, mask), expected, atol=1e-10)


def test_held_out_states_are_scored_given_those_before_them():
    emissions, table, states, mask = batch((5, 3), personal=False)
    known = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    rows = Blocks(
        (Block(torch.arange(2), emissions, states, mask, None, torch.zeros(2, 5, 0), known, mask),), int(mask.sum())
    )
    network = build_network(STATES, STATES, (), behind=chain_shapes(STATES, 0))
    problem = Problem("crf", network, select_personal(network, []), rows, rows, 2)
    theta = torch.cat([torch.eye(STATES).double().reshape(-1), torch.zeros(STATES).double(), table.reshape(-1)])
    found = block_loss(problem, rows.blocks[0], theta, None, 1.0)
    for k, (n, before) in enumerate([(5, 3), (3, 2)]):
        paths, scores = brute(emissions[k, :n].numpy(), table.numpy())
        seen = states[k, :n].numpy()
        possible = np.exp(scores[(paths[:, :before] == seen[:before]).all(1)]).sum()
        expected = np.log(possible) - scores[(paths == seen).all(1)][0]
        assert float(found[k]) == pytest.approx(expected, abs=1e-10)
    scored = responses_in(problem, rows.blocks[0])
    assert scored.tolist() == (mask * (1.0 - known)).tolist()


def test_information_is_the_second_derivative():
    emissions, table, states, mask = batch((4, 2))
    slopes = torch.zeros(2, 4, STATES, 0, dtype=torch.float64)
    H = effect_information(emissions, table, slopes, mask, True)

    def loss(values):
        return sequence_loss(emissions[:1], values.view(1, STATES, STATES), states[:1], mask[:1])[0]

    numeric = torch.autograd.functional.hessian(loss, table[0].reshape(-1))
    np.testing.assert_allclose(H[0], numeric, atol=1e-10)
    assert torch.linalg.eigvalsh(H).min() > -1e-10


def test_agrees_with_pytorch_crf():
    peer = pytest.importorskip("torchcrf").CRF(STATES, batch_first=True).double()
    emissions, table, states, mask = batch((6, 4, 1), personal=False)
    with torch.no_grad():
        peer.transitions.copy_(table)
        peer.start_transitions.zero_()
        peer.end_transitions.zero_()
        expected = -peer(emissions, states, mask=mask.bool(), reduction="none")
    np.testing.assert_allclose(sequence_loss(emissions, table, states, mask), expected, atol=1e-10)
    paths = decode(emissions, table, mask)
    for i, path in enumerate(peer.decode(emissions, mask=mask.bool())):
        assert paths[i, : len(path)].tolist() == path


@pytest.mark.parametrize("hidden", [[(0, 1)], [(0, 0), (0, 4)], [(0, 2), (0, 3), (1, 0)], [(0, t) for t in range(5)]])
def test_missing_states_are_summed_over(hidden):
    emissions, table, states, mask = batch((5, 3))
    for i, t in hidden:
        states[i, t] = -1
    loss = sequence_loss(emissions, table, states, mask)
    for i, n in enumerate((5, 3)):
        paths, scores = brute(emissions[i, :n].numpy(), table[i].numpy())
        given = states[i, :n].numpy()
        fits = ((paths == given) | (given < 0)).all(1)
        assert float(loss[i]) == pytest.approx(
            np.logaddexp.reduce(scores) - np.logaddexp.reduce(scores[fits]), abs=1e-10
        )


def test_missing_states_tell_less_but_not_nothing():
    emissions, table, states, mask = batch((5,))
    states[0, [1, 3]] = -1
    slopes = torch.tensor(np.random.default_rng(0).normal(size=(1, 5, STATES, 2)))
    H = effect_information(emissions, table, slopes, mask, True, states)

    def loss(values):
        moved = emissions + (slopes @ values[:2]).reshape(emissions.shape)
        return sequence_loss(moved, table + values[2:].view(1, STATES, STATES), states, mask)[0]

    zero = torch.zeros(2 + STATES**2, dtype=torch.float64)
    np.testing.assert_allclose(H[0], torch.autograd.functional.hessian(loss, zero), atol=1e-10)
    states[:] = -1
    np.testing.assert_allclose(effect_information(emissions, table, slopes, mask, True, states), 0.0, atol=1e-12)


# ---- association of transitions with covariates ----


def persons_with(means, covariances):
    """Persons of a chain of three states with given posteriors of their transition effects, prior variance .64."""
    columns = slice(0, 9)
    trained = SimpleNamespace(
        theta=np.zeros(9), loading=np.eye(9), z=means, s=np.full(9, 0.64), sigma2=1.0, covariance=0.64 * np.eye(9)
    )
    problem = SimpleNamespace(tensor=torch.tensor, personal=SimpleNamespace(columns=lambda name: columns))
    persons = SimpleNamespace(problem=problem, trained=trained, z=means, directions=np.eye(9))
    return standardised_effects(persons, Uncertainty(torch.tensor(covariances), None), 3)


def posteriors(g, lengths, shift):
    """Normal posteriors of nine effects of standard deviation .8, the longer a sequence the narrower."""
    effects = 0.8 * g.normal(size=(len(lengths), 9)) + shift[:, None] * np.eye(3).ravel()
    information = np.repeat(lengths[:, None] / 9.0, 9, axis=1)
    C = 1.0 / (1.0 / 0.64 + information)
    seen = effects + g.normal(size=effects.shape) / np.sqrt(information)
    return C * information * seen, C[:, :, None] * np.eye(9)


def share_rejected(lengths, shift, covariate, sets=200, standardise=True):
    rejected = 0
    for seed in range(sets):
        g = np.random.default_rng(seed)
        means, covariances = posteriors(g, lengths, shift)
        values = persons_with(means, covariances) if standardise else means
        rejected += hsic_test(values, covariate[:, None].astype(float), 39, g).pvalue <= 0.05
    return rejected / sets


def test_a_covariate_that_goes_with_the_length_is_not_taken_for_one_of_the_transitions():
    lengths, none = np.repeat([6, 40], 20), np.zeros(40)
    assert share_rejected(lengths, none, lengths, sets=40, standardise=False) > 0.5  # what shrinkage alone does
    assert 0.02 <= share_rejected(lengths, none, lengths) <= 0.085  # .05 within 2.3 standard errors
    noisy = lengths + 10 * np.random.default_rng(0).normal(size=40)
    assert 0.02 <= share_rejected(lengths, none, noisy) <= 0.085


def test_a_covariate_of_the_transitions_is_found_whatever_the_lengths():
    group = np.arange(40) % 2
    equal, mixed = np.full(40, 25), np.random.default_rng(0).permutation(np.repeat([12, 40], 20))
    for lengths in (equal, mixed):
        assert share_rejected(lengths, 1.2 * group, group, sets=30) > 0.6


def test_standardised_effects_by_hand():
    means, covariances = posteriors(np.random.default_rng(0), np.array([3, 9, 30]), np.zeros(3))
    found = persons_with(means, covariances)
    assert found.shape == (3, 6)  # nine less a constant and two differences of states
    variance = 0.64 - covariances[:, 0, 0]
    expected = np.square(interior(torch.tensor(means).view(3, 3, 3)).numpy()).sum((1, 2)) / variance
    np.testing.assert_allclose(np.square(found).sum(1), expected)


def test_days_are_compared_in_their_order():
    """Dates over a change of month, and names in no order of letters, unused ones lost on the way."""
    past, new = (pd.Series(pd.Timestamp("2026-01-22") + pd.to_timedelta(d, unit="D")) for d in ([8, 9, 11], [10, 12]))
    np.testing.assert_array_equal(common_ranks(past, past, new), [0, 1, 3, 2, 4])
    names = pd.Series(pd.Categorical([f"day {d}" for d in range(8, 13)], [f"day {d}" for d in range(8, 13)]))
    parts = [names[k].cat.remove_unused_categories() for k in ([0, 1, 3], [2, 4])]
    np.testing.assert_array_equal(common_ranks(names, *parts), [0, 1, 3, 2, 4])
    with pytest.raises(ArgumentError, match="the category 'day 12', which the fit has not"):
        common_ranks(names[:4].cat.remove_unused_categories(), *parts)


# ---- states of the days before ----

CHAIN = "state ~ x | re: (transitions | id) | seq: day / session"


def diaries(n_persons=8, n_days=10):
    g = np.random.default_rng(3)
    rows, names = [], np.array(["calm", "low", "tense"])
    for person in range(n_persons):
        state = 0
        for day in range(n_days):
            state = state if g.random() < 0.7 else int(g.integers(3))
            rows.append((f"p{person}", day, day // 6, g.normal(), names[state]))
    return pd.DataFrame(rows, columns=["id", "day", "session", "x", "state"])


def test_printed_scores_and_coefficients_have_the_printed_likelihood():
    """By the forward algorithm on the user's inputs: only a constant and the first state's coefficients are free."""
    data = diaries()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        fit = mm.fit("state ~ x | re: (0 | id) | seq: day / session", data, hidden=(), epochs=60, baselines=False)
    states = sorted(data["state"].unique())
    table = np.array([[fit.params[f"transition({a},{b})"] for b in states] for a in states])
    total = 0.0
    for _, rows in data.sort_values("day").groupby(["id", "session"]):
        scores = np.zeros((len(rows), len(states)))
        for k, state in enumerate(states[1:], 1):
            scores[:, k] = fit.params[f"Intercept({state})"] + fit.params[f"x({state})"] * rows["x"]
        codes, alpha = rows["state"].map(states.index).to_numpy(), scores[0]
        path = scores[np.arange(len(rows)), codes].sum() + table[codes[:-1], codes[1:]].sum()
        for now in scores[1:]:
            alpha = np.log(np.exp(alpha[:, None] + table).sum(0)) + now
        total += path - np.log(np.exp(alpha).sum())
    assert fit.llf == pytest.approx(total, abs=1e-8)


@pytest.fixture(scope="module", params=["transitions", "0"])
def chain(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        formula = CHAIN.replace("transitions", request.param)
        return mm.fit(formula, diaries(), hidden=(), epochs=40, baselines=False, rng=0)


def by_enumeration(persons, place, rows, seen):
    """Probabilities of the states of the rows that follow those seen, by all sequences."""
    fit, C = persons.trained, 3
    theta, p = fit.theta.copy(), persons.problem.personal
    if p.q:
        theta[p.index] += persons.z[place] @ fit.loading.T
    x = persons.scaling.inputs(persons.design.for_new(rows).expert)
    emissions = x @ theta[:C].reshape(C, 1).T + theta[C : 2 * C]
    table = theta[-C * C :].reshape(C, C)
    paths = np.array(list(itertools.product(range(C), repeat=len(rows))))
    paths = paths[(paths[:, : len(seen)] == seen).all(1)]
    scores = emissions[np.arange(len(rows)), paths].sum(1) + table[paths[:, :-1], paths[:, 1:]].sum(1)
    weight = np.exp(scores - np.logaddexp.reduce(scores))
    steps = range(len(seen), len(rows))
    return np.array([[weight[paths[:, t] == s].sum() for s in range(C)] for t in steps])


@pytest.mark.parametrize("state", ["calm", "low", "tense"])
def test_new_rows_are_predicted_given_the_states_before_them(chain, state):
    """Three days with states, two without: against all sequences, whatever the order of the rows."""
    mine = diaries(1, 5).assign(id="new", state=state)
    past, new = mine[:3].sample(frac=1.0, random_state=0), mine[3:].drop(columns="state").iloc[::-1]
    code = ["calm", "low", "tense"].index(state)
    adapted = chain.adapt(past)
    expected = by_enumeration(adapted, 0, mine, [code] * 3)[::-1]
    got = chain.predict(new, "subject", history=past, scale="categories")
    np.testing.assert_allclose(got, expected, atol=1e-10)
    np.testing.assert_allclose(adapted.predict(new, scale="categories"), expected, atol=1e-10)
    elsewhere = chain.predict(new.assign(session=7), "subject", history=past, scale="categories")
    np.testing.assert_allclose(elsewhere, by_enumeration(adapted, 0, mine[3:], [])[::-1], atol=1e-10)
    before = new.assign(day=[-1, -2])  # rows of the history that come later tell about the effects only
    found = chain.predict(before, "subject", history=past, scale="categories")
    np.testing.assert_allclose(found, elsewhere, atol=1e-10)


def test_persons_of_the_fit_have_their_data_as_history(chain):
    data = diaries()
    mine = data[(data["id"] == "p2") & (data["session"] == 1)]
    tomorrow = mine[-1:].assign(day=10, x=0.3)
    codes = [["calm", "low", "tense"].index(s) for s in mine["state"]]
    expected = by_enumeration(chain.persons, 2, pd.concat([mine, tomorrow]), codes)
    new = pd.concat([tomorrow.assign(id="nobody"), tomorrow.drop(columns="state")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mm.errors.MixmoeWarning)  # nobody is a stranger where persons differ
        found = chain.predict(new, "subject", scale="categories")
    np.testing.assert_allclose(found[1:], expected, atol=1e-10)
    for kind in ("mean", "all"):  # the population has no states
        alone = chain.predict(tomorrow.assign(session=9), kind, scale="categories")
        np.testing.assert_allclose(chain.predict(tomorrow, kind, scale="categories"), alone, atol=1e-12)


def test_states_missing_in_the_history_are_summed_over(chain):
    mine = diaries(1, 5).assign(id="new", state=["low", "tense", None, None, None])
    expected = by_enumeration(chain.adapt(mine[:3]), 0, mine, [1, 2])[1:]
    got = chain.predict(mine[3:], "subject", history=mine[:3], scale="categories")
    np.testing.assert_allclose(got, expected, atol=1e-10)
