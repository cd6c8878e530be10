"""Rows without a label, labels of persons in another type, columns in odd units: nothing is misread in silence."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp

import mixmoe as mm
from mixmoe.errors import ArgumentError, DesignError, MixmoeWarning

torch = pytest.importorskip("torch")

CHAIN = "s ~ x | re: ({} | id) | seq: t"


def quiet(formula, frame, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        return mm.fit(formula, frame, **{"epochs": 40, "baselines": False, "rng": 0, "hidden": (), **options})


def sequences(persons=15, length=12, seed=3):
    g, rows = np.random.default_rng(seed), []
    for i in range(persons):
        s = g.integers(3)
        for t in range(length):
            x = g.normal()
            score = 1.5 * np.eye(3)[s] + np.array([0, x, -x])
            s = g.choice(3, p=np.exp(score) / np.exp(score).sum())
            rows.append((i, t, x, "abc"[s]))
    return pd.DataFrame(rows, columns=["id", "t", "x", "s"])


DATA = sequences()
GAPS = np.random.default_rng(0).uniform(size=len(DATA)) < 0.4


def test_a_chain_without_some_labels_reaches_the_maximum_of_the_exact_likelihood():
    persons, length = 15, 12
    X = ((DATA.x - DATA.x.mean()) / DATA.x.std()).to_numpy().reshape(persons, length)
    Y = np.where(GAPS, -1, DATA.s.map({"a": 0, "b": 1, "c": 2})).reshape(persons, length)
    M = np.where((Y[..., None] < 0) | (np.arange(3) == Y[..., None]), 0.0, -1e9)

    def forward(E, A):
        a = E[:, 0]
        for t in range(1, length):
            a = logsumexp(a[:, :, None] + A[None], axis=1) + E[:, t]
        return logsumexp(a, axis=1).sum()

    def loss(p):
        E, A = X[..., None] * np.r_[0, p[:2]] + np.r_[0, p[2:4]], p[4:].reshape(3, 3)
        return forward(E, A) - forward(E + M, A)

    best = minimize(loss, np.zeros(13), method="BFGS")
    fit = quiet(CHAIN.format("0"), DATA.assign(s=DATA.s.where(~GAPS)), epochs=400, lr=0.05)
    assert fit.llf == pytest.approx(-best.fun, abs=2e-3)
    assert fit.nobs == len(DATA)
    assert "the likelihood sums over them" in str(fit.summary())


@pytest.fixture(scope="module")
def with_gaps():
    return quiet(CHAIN.format("0"), DATA.assign(s=DATA.s.where(~GAPS)))


@pytest.mark.parametrize("cast", [object, "string", "category"])
def test_missing_labels_are_missing_in_every_type(with_gaps, cast):
    assert quiet(CHAIN.format("0"), DATA.assign(s=DATA.s.where(~GAPS).astype(cast))).llf == with_gaps.llf


@pytest.mark.parametrize("cast", ["Int64", float])
def test_numbers_as_states_may_be_missing(with_gaps, cast):
    codes = DATA.s.map({"a": 1, "b": 2, "c": 3})
    fit = quiet(CHAIN.format("0"), DATA.assign(s=codes.where(~GAPS).astype(cast)), family="crf")
    assert fit.llf == pytest.approx(with_gaps.llf, abs=1e-9)


def test_rows_without_a_label_are_predicted_decoded_adapted_saved_and_held_out(tmp_path):
    frame = DATA.assign(s=DATA.s.where(~GAPS))
    fit = quiet(CHAIN.format("transitions"), frame, baselines=True, validation=0.2, epochs=25)
    assert fit.predict(frame, "subject", scale="categories").notna().all(axis=None)
    assert fit.decode(frame).notna().all()
    assert np.isfinite(fit.transitions.scores_se).all()
    assert np.isfinite(fit.comparison.errors).all()
    last = pd.Series(GAPS).groupby(DATA.id).tail(2)  # a fifth of twelve rows
    assert fit.comparison.n_rows == int((~last).sum())
    np.testing.assert_allclose(fit.adapt(frame).effects(), fit.random_effects, atol=1e-4)
    fit.save(tmp_path / "fit.mixmoe")
    again = mm.load(tmp_path / "fit.mixmoe")
    pd.testing.assert_frame_equal(again.transitions.persons, fit.transitions.persons)
    fit.save(tmp_path / "bare.mixmoe", data=False)
    assert mm.load(tmp_path / "bare.mixmoe", frame).llf == fit.llf


def test_a_response_without_any_label_is_told():
    with pytest.raises(DesignError, match="the response 's' is missing in every row"):
        mm.NME(CHAIN.format("transitions"), DATA.assign(s=pd.Series([None] * len(DATA), dtype=object)), family="crf")


def test_other_families_still_leave_rows_without_a_response_out():
    with pytest.warns(mm.errors.DroppedRowsWarning, match="63 of 180 rows were left out"):
        model = mm.NME("s ~ x | re: (last | id)", DATA.assign(s=DATA.s.where(~GAPS)), family="multiclass")
    assert model.design.n == int((~GAPS).sum())


NUMBERS = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 2)), columns=["y", "x"]).assign(
    id=np.repeat(np.arange(1, 7), 10)
)


@pytest.mark.parametrize("write", [str, lambda i: f"{i:02d}", lambda i: f"{i}.0", lambda i: f" {i}"])
def test_ids_that_became_text_are_not_new_persons(write):
    fit = quiet("y ~ x | re: (last | id)", NUMBERS)
    new = NUMBERS.assign(id=NUMBERS.id.map(write))
    message = r"'id' is .* \(str\) in the new data and 1 \(int\) in what is known, which are not the same label"
    with pytest.raises(DesignError, match=message):
        fit.predict(new, "subject")
    adapted = fit.adapt(new)
    with pytest.raises(DesignError, match=r"\(int\) in the new data"):
        adapted.predict(NUMBERS, "subject")


def test_text_ids_that_became_numbers_and_dates_that_became_text():
    text = quiet("y ~ x | re: (bias | id)", NUMBERS.assign(id=NUMBERS.id.astype(str)))
    with pytest.raises(DesignError, match="which are not the same label"):
        text.predict(NUMBERS, "subject")
    days = pd.to_datetime("2020-01-01") + pd.to_timedelta(NUMBERS.id, unit="D")
    dated = quiet("y ~ x | re: (bias | id)", NUMBERS.assign(id=days))
    with pytest.raises(DesignError, match="which are not the same label"):
        dated.predict(NUMBERS.assign(id=days.dt.strftime("%Y-%m-%d")), "subject")


@pytest.mark.parametrize("cast", ["int8", "float64", "Int64", "category", object])
def test_ids_of_another_number_type_are_the_same_persons(cast):
    fit = quiet("y ~ x | re: (last | id)", NUMBERS)
    found = fit.predict(NUMBERS.assign(id=NUMBERS.id.astype(cast)), "subject")
    pd.testing.assert_frame_equal(found, fit.predict(NUMBERS, "subject"))
    np.testing.assert_allclose(found["mean"], fit.fitted())


def test_a_history_of_others_is_said():
    fit = quiet("y ~ x | re: (last | id)", NUMBERS)
    with pytest.warns(mm.errors.MixmoeWarning, match="no subject of history= is in the new data"):
        fit.predict(NUMBERS.assign(id=NUMBERS.id + 50), "subject", history=NUMBERS.head(20))


def test_new_labels_are_persons_never_seen():
    fit = quiet("y ~ x | re: (last | id)", NUMBERS)
    for label in (100, "new", "7"):
        with pytest.warns(mm.errors.MixmoeWarning, match="are not in the fit"):
            strangers = fit.predict(NUMBERS.assign(id=label), "subject")
        np.testing.assert_allclose(strangers["mean"], fit.fitted("mean"))


def test_a_missing_column_of_persons_is_told():
    bare, fit = NUMBERS.drop(columns="id"), quiet("y ~ x | re: (last | id)", NUMBERS)
    with pytest.raises(DesignError, match="the column 'id' of the persons is missing"):
        fit.predict(bare, "subject")
    np.testing.assert_allclose(fit.predict(bare, "mean"), fit.predict(NUMBERS, "mean"))  # it needs to know nobody
    chain = quiet(CHAIN.format("0"), DATA)
    for method in (chain.decode, chain.marginals, lambda data: chain.predict(data, scale="categories")):
        with pytest.raises(DesignError, match="the column 'id' of the persons is missing"):
            method(DATA.drop(columns="id"))
    generic = quiet("y ~ x | re: (0 | id)", NUMBERS)
    np.testing.assert_allclose(generic.predict(bare)["mean"], generic.predict(NUMBERS)["mean"])


@pytest.mark.parametrize("unit", [1e-300, 1e200, 1e307])
@pytest.mark.parametrize("column", ["y", "x"])
def test_numbers_beyond_double_precision_are_told(unit, column):
    with pytest.raises(
        DesignError,
        match=f"'{column}'( of the expert part)? (reaches|differs by|has the largest).*(other units|change the unit)",
    ):
        mm.NME("y ~ x | re: (last | id)", NUMBERS.assign(**{column: NUMBERS[column] * unit}))


def test_one_huge_number_is_told_and_large_units_are_fine():
    with pytest.raises(DesignError, match=r"the response 'y' has the largest value 1e\+308, in row 3"):
        mm.NME("y ~ x | re: (last | id)", NUMBERS.assign(y=NUMBERS.y.where(NUMBERS.index != 3, 1e308)))
    small, large = (quiet("y ~ x | re: (last | id)", NUMBERS.assign(y=NUMBERS.y * unit)) for unit in (1.0, 1e90))
    np.testing.assert_allclose(large.params["x"], 1e90 * small.params["x"], rtol=1e-6)


def test_numbers_read_as_text_are_told():
    with pytest.raises(DesignError, match=r"the response 'y' holds numbers as text.*pd\.to_numeric"):
        mm.NME("y ~ x | re: (last | id)", NUMBERS.assign(y=NUMBERS.y.astype(str)))
    stages = NUMBERS.assign(y=np.tile(["1", "2", "3"], 20))
    assert mm.NME("y ~ x | re: (last | id)", stages).family == "multiclass"


def test_a_double_bar_is_a_diagonal_covariance():
    double = quiet("y ~ x | re: (last || id)", NUMBERS)
    assert double.model.cov == "diagonal"
    assert double.llf == quiet("y ~ x | re: (last | id)", NUMBERS, cov="diagonal").llf
    assert not [name for name in double.params.index if name.startswith("corr")]
    assert mm.NME("y ~ x | re: (last || id)", NUMBERS, cov="tensor").cov == "tensor"
    for cov in ("full", 1):
        with pytest.raises(ArgumentError, match="the double bar in re: says that they are uncorrelated"):
            mm.NME("y ~ x | re: (last || id)", NUMBERS, cov=cov)


def test_the_double_bar_comes_back_from_a_file(tmp_path):
    fit = quiet("y ~ x | re: (last || id)", NUMBERS)
    fit.save(tmp_path / "fit.mixmoe")
    assert mm.load(tmp_path / "fit.mixmoe").model.cov == "diagonal"


@pytest.mark.parametrize("device", ["mps", "cuda:99", "meta", "xpu", "hpu", "nonsense", 5])
def test_a_device_that_is_not_there_is_told_in_one_line(device):
    with pytest.raises(
        ArgumentError, match="is none on which torch can compute here in double precision; use 'cpu'"
    ) as e:
        mm.NME("y ~ x | re: (last | id)", NUMBERS, device=device)
    assert len(str(e.value)) < 160


CURVE = NUMBERS.assign(y=np.sin(3 * NUMBERS.x))
WARNED = [
    # A curve, which two epochs do not reach; noise has its maximum next to any start.
    lambda: mm.fit("y ~ x | re: (last | id)", CURVE, hidden=(3,), epochs=2, baselines=False, rng=0),
    lambda: mm.NME("y ~ x | re: (bias | id)", NUMBERS, hidden=(3,)).fit(epochs=2, baselines=False, rng=0),
    lambda: mm.NME("y ~ x | re: (bias | id)", NUMBERS, hidden=()).fit(annealing=0.9, baselines=False, rng=0),
    lambda: mm.NME("y ~ x | re: (bias | id)", NUMBERS.assign(x=NUMBERS.x.where(NUMBERS.index > 0))),
]


@pytest.mark.parametrize("call", WARNED)
def test_warnings_point_at_the_line_of_the_user_and_come_once(call):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call()
    assert seen
    assert {w.filename for w in seen} == {__file__}
    assert len({str(w.message) for w in seen}) == len(seen)


def test_every_state_of_three_rows_by_hand():
    """The likelihood of one sequence with a gap in the middle, all 27 paths written out."""
    frame = pd.concat(
        [DATA[DATA.t < 3].assign(s=lambda d: d.s.where(d.t != 1)), DATA[DATA.t < 3].assign(id=lambda d: d.id + 50)]
    )
    fit = quiet(CHAIN.format("0"), frame.reset_index(drop=True), epochs=10)
    theta, scaling = fit.trained.theta, fit.model.scaling
    W, b, A = theta[:3], theta[3:6], theta[6:].reshape(3, 3)
    total = 0.0
    for _, rows in frame.groupby("id"):
        E = scaling.inputs(np.column_stack([np.ones(3), rows.x]))[:, :1] * W + b
        paths = np.array(list(itertools.product(range(3), repeat=3)))
        score = E[np.arange(3), paths].sum(1) + A[paths[:, :-1], paths[:, 1:]].sum(1)
        given = rows.s.map({"a": 0, "b": 1, "c": 2}).fillna(-1).to_numpy()
        total += logsumexp(score[((paths == given) | (given < 0)).all(1)]) - logsumexp(score)
    assert fit.llf == pytest.approx(total, abs=1e-8)
