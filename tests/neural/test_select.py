"""`select` over networks: validation errors, grids of architectures, workers, checkpoints, failures."""

import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError, FormulaError

torch = pytest.importorskip("torch")

FORMULAS = ["y ~ x1 + x2 | re: (last | id)", "y ~ x1 + x2 | re: (layer[2] | id)"]
GRID = [(), (3,)]


def curved(n_persons=20):
    """Persons whose response shifts along a bent input."""
    rng = np.random.default_rng(1)
    codes = np.repeat(np.arange(n_persons), rng.integers(6, 12, n_persons))
    x, b = rng.normal(size=(len(codes), 2)), 0.8 * rng.normal(size=n_persons)
    y = 2.0 * np.tanh(x[:, 0] + b[codes]) + 0.5 * x[:, 1] + 0.2 * rng.normal(size=len(codes))
    return pd.DataFrame(x, columns=["x1", "x2"]).assign(y=y, id=codes)


DATA = curved()
select = partial(mm.select, FORMULAS, DATA, hidden=GRID, epochs=40, rng=0)


def numbers(table):
    return table.to_frame().drop(columns="seconds")


@pytest.fixture(scope="module")
def table():
    return select()


def test_one_row_per_formula_and_architecture(table):
    frame = table.to_frame()
    assert frame["formula"].tolist() == [FORMULAS[0]] * 2 + [FORMULAS[1]] * 2
    assert frame["hidden"].tolist() == GRID * 2
    assert (frame["measure"][frame["reason"] == ""] == "squared error").all()
    assert {"validation", "validation_se", "llf", "parameters", "epochs", "converged", "flags"} <= set(frame)


def test_best_is_the_fit_to_all_rows_with_the_least_error(table):
    frame, best = table.to_frame(), table.best()
    place = frame["validation"].idxmin()
    assert best is table.best("validation") is table.candidates[place].results
    assert best.nobs == len(DATA)
    hidden, seed = frame["hidden"][place], best.em.starts.seed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mm.errors.ConvergenceWarning)  # after so few epochs
        again = mm.fit(frame["formula"][place], DATA, hidden=hidden, epochs=40, baselines=False, rng=seed)
    np.testing.assert_allclose(again.params, best.params, rtol=1e-6)
    assert table.best("aic").aic == min(c.results.aic for c in table.candidates if c.results is not None)
    with pytest.raises(ArgumentError, match="no candidate has the criterion 'cv'"):
        table.best("cv")


def test_the_error_is_that_of_the_last_rows_of_each_person(table):
    best = table.best()
    model = mm.NME(best.model.formula.text, DATA, hidden=best.model.network.hidden)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mm.errors.MixmoeWarning)
        found = model.validate(epochs=40, rng=best.em.starts.seed)
    row = table.to_frame().loc[table.to_frame()["validation"].idxmin()]
    assert found.error == pytest.approx(row["validation"], rel=1e-6)
    assert found.se == pytest.approx(row["validation_se"], rel=1e-6)
    assert found.n_rows == sum(int(0.2 * n + 0.5) for n in DATA["id"].value_counts())


def test_held_out_error_and_its_standard_error_by_hand():
    even = DATA[DATA.groupby("id").cumcount() < 6]
    model = mm.NME("y ~ x1 + x2 | re: (last | id)", even, hidden=())
    found = model.validate(holdout=1 / 3, rng=0)
    last = even.groupby("id").cumcount() >= 4
    fit = mm.fit("y ~ x1 + x2 | re: (last | id)", even[~last], hidden=(), rng=0, baselines=False)
    squares = (even["y"][last] - fit.predict(even[last], "subject")["mean"]) ** 2
    assert found.error == pytest.approx(squares.mean(), rel=1e-4)
    by_person = squares.groupby(even["id"][last]).mean()
    assert found.se == pytest.approx(by_person.std(ddof=1) / np.sqrt(len(by_person)), rel=1e-3)


def test_a_candidate_that_fails_says_why(table):
    frame = table.to_frame()
    assert frame["reason"][2].startswith("FormulaError: unknown layer 'layer[2]' in re:")
    assert np.isnan(frame["validation"][2])
    text = " ".join(str(table).split())
    assert "failed" in text
    assert "re: (layer[2] | id): hidden=(): FormulaError: unknown layer" in text
    with pytest.raises(FormulaError, match="unknown layer"):
        mm.select(FORMULAS[1], DATA, hidden=())


def test_printing_and_figure(table):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    assert "held-out squared error" in str(table)
    assert sum(f"{value:.4f}*" in str(table) for value in table.to_frame()["validation"]) == 1
    assert r"\begin{tabular}" in table.to_latex()
    (axes,) = table.plot().axes
    assert axes.get_xlabel() == "held-out squared error, per row"
    assert len(axes.get_yticks()) == 4


def test_workers_find_the_same(table):
    pd.testing.assert_frame_equal(numbers(select(n_jobs=2)), numbers(table))


def test_a_checkpoint_is_continued(table, tmp_path):
    folder = tmp_path / "kept"
    select(checkpoint=folder)
    journal = folder / "journal.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:3]))
    again = select(checkpoint=folder)
    pd.testing.assert_frame_equal(numbers(again), numbers(table))
    pd.testing.assert_series_equal(again.candidates[0].results.params, table.candidates[0].results.params)


def test_chains_are_compared_by_their_log_likelihood():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"id": np.repeat(range(8), 10), "day": list(range(10)) * 8, "x": rng.normal(size=80)})
    frame["state"] = np.where(frame["x"] + rng.normal(size=80) > 0, "on", "off")
    formulas = ["state ~ x | re: (0 | id) | seq: day", "state ~ x | re: (transitions | id) | seq: day"]
    table = mm.select(formulas, frame, hidden=(), epochs=30, rng=0)
    frame = table.to_frame()
    assert (frame["measure"] == "negative log-likelihood").all()
    assert frame["validation"].between(0.2, 1.1).all()
    assert table.best().model.family == "crf"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": [10, (5,)]}, r"hidden must be the widths of one network, such as \(10, 5\), or a list of networks"),
        ({"hidden": []}, r"where \(\) is linear and \(5,\) has one layer; got \[\]"),
        ({"hidden": 10}, "hidden must be a tuple of widths or a list of such tuples, got 10"),
        ({"experts": [1, 2]}, r"a network has no experts, got experts=\[1, 2\]"),
        ({"folds": 5}, "folds=5 is for mixtures"),
        ({"starts": 5}, "starts=5 is for mixtures"),
        ({"baselines": True}, "select takes no baselines="),
        ({"layers": 3}, "no option 'layers'"),
        ({"activation": []}, "activation must name at least one value"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ArgumentError, match=message):
        select(**options)


def test_whole_numbers_are_one_network_and_tuples_are_several():
    one = mm.select(FORMULAS[0], DATA, hidden=[3, 2], epochs=5, rng=0)
    assert [c.results.model.network.hidden for c in one.candidates] == [(3, 2)]
    assert one.candidates[0].label == "network"
    several = mm.select(FORMULAS[0], DATA, hidden=([2], ()), lr=[0.01, 0.02], epochs=5, rng=0)
    assert [c.label for c in several.candidates] == [
        "hidden=(2,), lr=0.01",
        "hidden=(2,), lr=0.02",
        "hidden=(), lr=0.01",
        "hidden=(), lr=0.02",
    ]


def test_a_network_of_ones_own_cannot_be_kept(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(2, 1))
    with pytest.raises(ArgumentError, match="checkpoint cannot keep fits of a network of your own"):
        mm.select("y ~ x1 + x2 | re: (all | id)", DATA, network=module, checkpoint=tmp_path)
