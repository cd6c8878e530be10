"""Covariates of persons in the transitions of a CRF: likelihood, information, tests, what is refused."""

import warnings

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError, DesignError, FormulaError, MixmoeWarning

torch = pytest.importorskip("torch")

from mixmoe.neural.crf import centred  # noqa: E402
from mixmoe.neural.displays import architecture_table  # noqa: E402
from mixmoe.neural.estimators.trained import total_loss  # noqa: E402
from mixmoe.neural.person_predictions import chain_information, to_state  # noqa: E402

STATES = "ABC"
FORMULA = "state ~ x | gate: age + group | re: (0 | id) | seq: day"


def chains(n_persons=24, n_days=12, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for person in range(n_persons):
        age, group, table = rng.normal(40, 10), "uv"[person % 2], rng.normal(size=(3, 3)) * 0.3
        table += 0.1 * (age - 40) * np.eye(3)
        state = 0
        for day in range(n_days):
            x = rng.normal()
            p = np.exp(table[state] + np.array([0.0, 0.5, -0.5]) * x)
            state = rng.choice(3, p=p / p.sum())
            rows.append((f"p{person}", day, x, STATES[state], age, group))
    return pd.DataFrame(rows, columns=["id", "day", "x", "state", "age", "group"])


DATA = chains()


def quiet(formula=FORMULA, data=DATA, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        return mm.fit(formula, data, **{"hidden": (), "baselines": False, "rng": 0, **options})


@pytest.fixture(scope="module")
def shared():
    return quiet()


@pytest.fixture(scope="module")
def personal():
    return quiet("state ~ x | gate: age | re: (transitions | id) | seq: day", epochs=60)


def matrix(fit, of=""):
    return np.array([[fit.params[f"transition({a},{b}){of}"] for b in STATES] for a in STATES])


def chain_loglik(fit, data):
    """By the forward algorithm, from the printed parameters."""
    total = 0.0
    for _, rows in data.groupby("id"):
        table = matrix(fit) + rows["age"].iloc[0] * matrix(fit, ":age")
        table = table + (rows["group"].iloc[0] == "v") * matrix(fit, ":group[T.v]")
        scores = np.zeros((len(rows), 3))
        for k, state in enumerate("BC", 1):
            scores[:, k] = fit.params[f"Intercept({state})"] + fit.params[f"x({state})"] * rows["x"]
        codes, alpha = rows["state"].map(STATES.index).to_numpy(), scores[0]
        for now in scores[1:]:
            alpha = np.log(np.exp(alpha[:, None] + table).sum(0)) + now
        path = scores[np.arange(len(rows)), codes].sum() + table[codes[:-1], codes[1:]].sum()
        total += path - np.log(np.exp(alpha).sum())
    return total


def test_printed_parameters_have_the_printed_likelihood(shared):
    assert shared.llf == pytest.approx(chain_loglik(shared, DATA), abs=1e-7)
    # 9 scores and 9 for each covariate, less a constant each; 2 intercepts and 2 slopes
    assert shared.df_model == 3 * 8 + 4


def test_information_is_the_second_derivative(shared):
    problem = shared.problem
    theta = torch.tensor(shared.trained.theta)
    expected = torch.autograd.functional.hessian(lambda v: total_loss(problem, problem.train, v, None), theta)
    with torch.no_grad():
        found = chain_information(problem, to_state(problem, shared.trained)).population
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_likelihood_ratio_is_that_of_two_fits(shared):
    tests = shared.transition_tests()
    assert tests.index.tolist() == ["age", "group"]
    assert tests["df"].tolist() == [8, 8]
    for term, other in (("age", "group"), ("group", "age")):
        without = quiet(f"state ~ x | gate: {other} | re: (0 | id) | seq: day")
        assert tests.loc[term, "lr"] == pytest.approx(2 * (shared.llf - without.llf), abs=0.02)
    assert tests.loc["age", "wald_pvalue"] < 0.001
    assert tests.loc["group", "lr_pvalue"] > 0.01
    assert tests.loc["group", "wald"] == pytest.approx(tests.loc["group", "lr"], rel=0.2)  # near zero they agree


def test_wald_is_that_of_the_named_parameters(shared):
    """Seven cells of eight free ones and the last as their sum: the quadratic form by hand."""
    names = [f"transition({a},{b}):age" for a in STATES for b in STATES]
    values, V = shared.params[names].to_numpy(), shared.cov_params().loc[names, names].to_numpy()
    assert values.sum() == pytest.approx(0.0, abs=1e-12)
    free = slice(0, 8)
    by_hand = values[free] @ np.linalg.solve(V[free, free], values[free])
    assert shared.transition_tests(lr=False).loc["age", "wald"] == pytest.approx(by_hand, rel=1e-6)


def test_units_and_origin_of_a_covariate_have_no_part(shared):
    other = quiet(data=DATA.assign(age=1000 * DATA["age"] + 7))
    np.testing.assert_allclose(other.transition_tests(lr=False), shared.transition_tests(lr=False), rtol=1e-3)
    np.testing.assert_allclose(matrix(other, ":age") * 1000, matrix(shared, ":age"), atol=1e-3)


def test_persons_have_the_probabilities_of_their_covariates(shared, personal):
    for fit in (shared, personal):
        spec = fit.problem.network.tensors
        base, shifts = (torch.tensor(fit.trained.theta[s.start : s.stop]).view(s.shape) for s in (spec[-1], spec[-2]))
        own = fit.persons.z @ fit.trained.loading.T
        W = fit.model.scaling.covariates(fit.model.design.gate)
        for k, label in enumerate(fit.model.design.labels[:3]):
            table = base + torch.einsum("m,mcd->cd", torch.tensor(W[k]), shifts)
            table = table + (torch.tensor(own[k]).view(3, 3) if own.shape[1] else 0.0)
            M = np.exp((table + torch.tensor(fit.trained.theta[3:6])).numpy())
            roots, vectors = np.linalg.eig(M)
            r = np.abs(vectors[:, roots.real.argmax()].real)
            expected = M * r / (roots.real.max() * r[:, None])
            np.testing.assert_allclose(fit.transitions.matrix(label), expected, atol=1e-10)
            np.testing.assert_allclose(fit.transitions.scores[k], centred(table), atol=1e-10)


def test_a_stranger_is_predicted_by_her_covariates(shared):
    old = pd.DataFrame({"id": "new", "day": range(6), "x": 0.0, "age": 70.0, "group": "u"})
    young = old.assign(age=20.0)
    found = [shared.predict(rows, kind="mean") for rows in (old, young)]
    assert not np.allclose(found[0], found[1])
    # by hand: marginals of a chain of six from the printed parameters
    table = matrix(shared) + 70.0 * matrix(shared, ":age")
    scores = np.array([0.0, shared.params["Intercept(B)"], shared.params["Intercept(C)"]])
    ahead, behind = np.zeros((6, 3)), np.zeros((6, 3))
    behind[0] = scores
    for t in range(1, 6):
        behind[t] = np.log(np.exp(behind[t - 1][:, None] + table).sum(0)) + scores
        ahead[5 - t] = np.log(np.exp(table + scores + ahead[6 - t]).sum(1))
    p = np.exp(behind + ahead)
    np.testing.assert_allclose(found[0], p / p.sum(1, keepdims=True), atol=1e-8)


def test_saved_and_loaded(personal, tmp_path):
    personal.save(tmp_path / "fit.json")
    again = mm.load(tmp_path / "fit.json")
    pd.testing.assert_frame_equal(again.predict(), personal.predict())
    pd.testing.assert_frame_equal(again.transition_tests(lr=False), personal.transition_tests(lr=False))
    pd.testing.assert_frame_equal(again.transitions.persons, personal.transitions.persons)


def test_tables_say_what_transitions_go_with(personal):
    text = str(personal.summary())
    assert "Covariates of the transitions, Wald tests" in text
    assert "transition(A,B):age" in text
    assert "Covariates of the transitions" in personal.to_latex()


def test_new_persons_adapt_with_their_covariates(personal):
    rows = DATA[DATA["id"] == "p3"].assign(id="someone")
    found = personal.adapt(rows)
    np.testing.assert_allclose(found.transitions.matrix("someone"), personal.transitions.matrix("p3"), atol=0.02)


@pytest.mark.parametrize(
    ("formula", "error", "message"),
    [
        ("x ~ age | gate: group | re: (last | id)", FormulaError, "'gate:' for sequences of states only"),
        ("state ~ x | gate: x | re: (0 | id) | seq: day", DesignError, "'x' varies within"),
        ("state ~ x | gate: 0 + group | re: (0 | id) | seq: day", FormulaError, "keeps its intercept"),
        ("state ~ x | gate: s(age) | re: (0 | id) | seq: day", DesignError, r"s\(age\)"),
    ],
)
def test_what_transitions_cannot_have_is_refused(formula, error, message):
    with pytest.raises(error, match=message):
        mm.NME(formula, DATA, hidden=())


def test_fits_without_tests_say_why():
    plain = "state ~ x | re: (0 | id) | seq: day"
    cases = [
        (quiet(plain, epochs=5), "name some in gate:"),
        (quiet(epochs=5, estimator="sgd"), "estimator='sgd' has no likelihood"),
        (quiet(epochs=5, validation=0.2), "chose the epoch of this fit"),
    ]
    for fit, message in cases:
        with pytest.raises(ArgumentError, match=message):
            fit.transition_tests()


def test_an_error_of_the_integrals_that_matters_is_told(personal):
    """Of criteria and ratios, twice the log-likelihood, it is twice as large."""
    fine, rough = (
        architecture_table("laplace", personal.problem, personal.trained, STATES, error) for error in (0.04, 0.31)
    )
    assert fine.notes == ()
    assert rough.notes == (
        "The log-likelihood is known to 0.3, criteria and likelihood ratios to 0.6: models that differ by less are not "
        "told apart.",
    )
