"""What a reader sees of a varying-coefficient mixture: names, tables, figures, messages, files."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import DroppedRowsWarning, SavedFileError
from mixmoe.output.tables import told_apart

FORMULA = "y ~ z1 | gate: x1 | vary: u"


@pytest.fixture(scope="module")
def data():
    return mm.simulate.vcmoe("well_separated", n=300, rng=1).data


@pytest.fixture(scope="module")
def fit(data):
    return quick(FORMULA, data)


def quick(formula, data, **options):
    return mm.fit(formula, data, **{"bandwidth": 0.3, "rng": 0, "starts": 2, "n_grid": 15, **options})


# ---- names ----


@pytest.mark.parametrize(
    ("values", "digits", "shown"),
    [
        ([0.10659, 0.25], 4, ("0.1066", "0.25")),
        ([2020.1, 2020.25, 2020.5], 4, ("2020.1", "2020.2", "2020.5")),
        ([18421.4, 18430.2], 3, ("18421", "18430")),
        ([9999.7, 1.0], 4, ("10000", "1")),
        ([1.0, np.nextafter(1.0, 2.0)], 3, ("1.0", "1.0000000000000002")),
        ([2e16, 3e16], 3, ("2e+16", "3e+16")),
    ],
)
def test_numbers_are_told_apart_by_few_digits(values, digits, shown):
    assert told_apart(values, digits) == shown


@pytest.mark.parametrize(("origin", "unit"), [(2020.0, 1.0), (2000.0, 20.0), (18250.0, 365.0)])
def test_calendar_times_have_names_of_their_own(data, origin, unit):
    fit = quick("y ~ z1 | vary: yr", data.assign(yr=origin + unit * data["u"]), experts=1, bandwidth=0.3 * unit)
    assert fit.params.index.is_unique
    assert not fit.params.index.str.contains("e+", regex=False).any()
    grid, names = fit.model.problem.windows.grid, fit.params.filter(like="expert1.z1(yr=").index
    for point, name in zip(fit.model.points, names, strict=True):
        assert np.abs(grid - float(name[len("expert1.z1(yr=") : -1])).argmin() == point
    assert fit.t_test(f"{names[0]} = 0").effect == pytest.approx(fit.params[names[0]])
    columns = fit.tables()[1].columns[2:]
    assert len(set(columns)) == 5
    assert "e+" not in "".join(columns)
    assert all(column in fit.to_latex() for column in columns)


def test_constants_with_an_equals_sign_are_in_every_table(data):
    more = data.assign(z2=np.random.default_rng(1).normal(size=len(data)))
    fit = quick("y ~ z1 + const(poly(z2, degree=2)) | vary: u", more, experts=1)
    constants = next(table for table in fit.tables() if table.key == "constants")
    assert constants.index == tuple(fit.params.index[:2])
    assert "degree=2" in str(fit.summary())


@pytest.mark.parametrize(
    ("factor", "shown"),
    [(1.0, r"-?0\.\d{3} to -?0\.\d{3}"), (0.03, r"-?0\.0\d{3} to -?0\.0\d{3}"), (3e4, r"-?\d{4,5} to -?\d{4,5}")],
)
def test_functions_keep_digits_whatever_their_scale(data, factor, shown):
    fit = quick("y ~ z1 | vary: u", data.assign(y=factor * data["y"]), experts=1)
    slope = next(table for table in fit.tables() if table.key == "expert1").cells[2][0]
    assert pd.Series([slope]).str.fullmatch(shown).all(), slope


# ---- files ----


def test_searches_survive_a_file(data, tmp_path):
    fit = quick(FORMULA, data, bandwidth="cv", gate_bandwidth="cv", folds=2, n_grid=10)
    fit.save(tmp_path / "fit.mixmoe")
    back = mm.load(tmp_path / "fit.mixmoe")
    pd.testing.assert_frame_equal(back.selection, fit.selection)
    pd.testing.assert_frame_equal(back.gate_selection, fit.gate_selection)
    assert str(back.summary()) == str(fit.summary())
    assert len(back.curves("bandwidth")) == 1


@pytest.mark.parametrize("name", ["y", "z1", "x1", "u", "id"])
def test_other_data_are_refused_when_a_fit_is_loaded(data, tmp_path, name):
    data = data.assign(id=[f"s{i // 5}" for i in range(len(data))])
    fit = quick(FORMULA, data, cluster="id")
    fit.save(tmp_path / "fit.mixmoe", data=False)
    pd.testing.assert_frame_equal(mm.load(tmp_path / "fit.mixmoe", data).predict(), fit.predict())
    other = data.copy()
    other.loc[7, name] = other.loc[8, name] if name != "id" else "s99"
    with pytest.raises(SavedFileError, match=f"not those of the fit: the {'response' if name == 'y' else 'column'}"):
        mm.load(tmp_path / "fit.mixmoe", other)


def test_a_saved_fit_can_be_cross_validated(data, tmp_path):
    found = mm.select(
        FORMULA, data, 1, bandwidth="cv", n_grid=10, folds=2, rng=0, starts=1, progress=False, checkpoint=tmp_path
    )
    assert np.isfinite(found.candidates[0].cv)


# ---- predictions ----


@pytest.mark.parametrize("kind", ["mean", "experts", "probabilities", "posterior", "interval"])
@pytest.mark.parametrize("column", ["z1", "u"])
def test_rows_that_are_all_incomplete_are_predicted_as_missing(data, fit, kind, column):
    new = data.head(2).assign(**{column: np.nan})
    with pytest.warns(DroppedRowsWarning, match=f"no row can be predicted: all 2 rows .*{column}: 2"):
        found = fit.predict(new, kind)
    assert found.isna().all(axis=None)
    assert list(found.columns) == list(fit.predict(kind=kind).columns)
    assert list(found.index) == list(new.index)
    with pytest.warns(DroppedRowsWarning, match="no row can be predicted"):
        assert len(fit.predict(new.to_dict("list"), kind)) == 2
