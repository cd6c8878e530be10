"""Varying-coefficient mixtures of Parquet files and Dask frames equal those of the same rows in memory."""

import warnings

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError, DesignError, DroppedRowsWarning, SavedFileError
from mixmoe.partitions import gathered, survey, ungrouped
from mixmoe.varying import bandwidth, joint_em, problem, sandwich
from mixmoe.varying.results import VCMoEResults
from tests.partitions.test_scan import written

pytest.importorskip("pyarrow")
ignored = ("Degeneracy", "Boundary", "Convergence")
pytestmark = [pytest.mark.filterwarnings(f"ignore::mixmoe.errors.{name}Warning") for name in ignored]
TWO = "y ~ x | gate: z | vary: t"


def simulated(n=240, seed=4):
    """Rows in no order, with two separate experts, categories, weights and clusters; some are not complete."""
    rng = np.random.default_rng(seed)
    t, x, z = rng.uniform(0.0, 1.0, n), rng.normal(size=n), rng.normal(size=n)
    first = rng.random(n) < 1.0 / (1.0 + np.exp(-0.5 * z))
    y = np.where(first, 3.0 + np.sin(3.0 * t) + x, -3.0 + t - x) + 0.5 * rng.normal(size=n)
    data = pd.DataFrame({"y": y, "x": x, "z": z, "t": t, "g": np.array(["a", "b", "c"])[rng.integers(3, size=n)]})
    data["count"], data["hour"] = rng.poisson(np.exp(0.5 + t + 0.3 * x)), rng.integers(0, 24, n)
    data["w"], data["o"], data["site"] = rng.uniform(0.5, 2.0, n), 0.1 * rng.normal(size=n), rng.integers(12, size=n)
    data.loc[::41, "x"] = np.nan
    return data


def fitted(formula, data, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DroppedRowsWarning)
        return mm.fit(formula, data, **{"experts": 1, "bandwidth": 0.5, "rng": 0, "starts": 2, "n_grid": 8, **options})


def same(found, known):
    """Log-likelihood, functions and standard errors within the bars of partitioned data."""
    assert found.nobs == known.nobs
    np.testing.assert_allclose(found.llf, known.llf, rtol=1e-10)
    np.testing.assert_allclose(found.model.coef, known.model.coef, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(found.bse, known.bse, rtol=1e-6)
    np.testing.assert_allclose(found.effective_df, known.effective_df, rtol=1e-8)
    assert list(found.params.index) == list(known.params.index)


@pytest.fixture(autouse=True)
def several_runs(monkeypatch):
    for module in (problem, gathered, ungrouped):
        monkeypatch.setattr(module, "RUN_ROWS", 70)
    monkeypatch.setattr(sandwich, "CHUNK", 50)


@pytest.fixture(scope="module")
def data():
    return simulated()


@pytest.mark.parametrize(
    ("formula", "options", "n_files"),
    [
        (TWO, {"experts": 2, "cov_type": "robust"}, 7),
        ("y ~ scale(x) + g | gate: const(1) + z | vary: t", {"experts": 2, "weights": "w", "offset": "o"}, 1),
        ("y ~ x | gate: z | vary: t", {"experts": 2, "gate_bandwidth": 0.8, "estimate": "joint", "cluster": "site"}, 3),
        ("count ~ x + const(bs(z, df=4)) | vary: t", {"family": "poisson", "offset": "o"}, 20),
        ("count ~ x | vary: t", {"family": "negbinomial", "cluster": "site"}, 4),
        ("y ~ x | vary: cyclic(hour, 24)", {"bandwidth": 8.0, "errors_dist": "t", "errors_df": 4}, 2),
        ("y ~ x | vary: t", {"bandwidth": "rule", "weights": "w"}, 5),
        ("y ~ x | vary: t", {"bandwidth": "cv", "span": 0.6}, 5),
        (TWO, {"experts": 2, "bandwidth": np.inf, "gate_penalty": "firth"}, 5),
    ],
)
def test_any_number_of_files_gives_the_fit_in_memory(tmp_path, data, formula, options, n_files):
    pattern = written(tmp_path, data, n_files)
    data.iloc[:0].to_parquet(tmp_path / "none.parquet", index=False)
    same(fitted(formula, mm.scan(pattern, chunk_rows=37), **options), fitted(formula, data, **options))


def test_starts_are_compared_on_some_of_very_many_rows(tmp_path, data, monkeypatch, in_memory):
    monkeypatch.setattr(joint_em, "SCREENED", 90)
    seen = []
    short = joint_em.short_runs
    monkeypatch.setattr(joint_em, "short_runs", lambda p, *rest: seen.append(p.rows.n) or short(p, *rest))
    found = fitted(TWO, mm.scan(written(tmp_path, data, 2)), experts=2)
    assert set(seen) == {78}  # every third of 234
    same(found, fitted(TWO, data, experts=2))
    np.testing.assert_allclose(found.llf, in_memory.llf, rtol=1e-6)  # the same maximum as with all rows


@pytest.fixture(scope="module")
def scanned(data, tmp_path_factory):
    return fitted(TWO, mm.scan(written(tmp_path_factory.mktemp("cells"), data, 5)), experts=2)


@pytest.fixture(scope="module")
def in_memory(data):
    return fitted(TWO, data, experts=2)


def test_summary_bands_and_order_of_experts_are_those_in_memory(scanned, in_memory):
    assert scanned.summary().as_text() == in_memory.summary().as_text()
    pd.testing.assert_frame_equal(scanned.bands(rng=1), in_memory.bands(rng=1), rtol=1e-6)
    found, known = scanned.relabel([2, 1]), in_memory.relabel([2, 1])
    np.testing.assert_allclose(found.bse, known.bse, rtol=1e-6)
    np.testing.assert_allclose(found.responsibilities, known.responsibilities, rtol=1e-8)
    assert type(found) is type(scanned)


@pytest.mark.filterwarnings("ignore::mixmoe.errors.DroppedRowsWarning")
def test_predictions_of_partitions_and_frames(scanned, in_memory, data, tmp_path):
    complete = data.dropna().reset_index(drop=True)
    files = mm.scan(written(tmp_path, complete, 3), chunk_rows=50)
    for options in ({}, {"kind": "mean", "interval": "prediction"}):
        made = pd.concat(scanned.predict(files, **options).frames(), ignore_index=True)
        pd.testing.assert_frame_equal(made, in_memory.predict(complete, **options), rtol=1e-8)
        pd.testing.assert_frame_equal(scanned.predict(complete, **options), made)
    own = pd.concat(scanned.predict(kind="subject").frames(), ignore_index=True)
    np.testing.assert_allclose(own["mean"].dropna(), in_memory.predict(kind="subject")["mean"].dropna(), rtol=1e-8)
    assert len(scanned.predict(files).to_parquet(tmp_path / "out")) == 6


def test_rows_of_the_sample_and_a_file(scanned, in_memory, tmp_path):
    whole = scanned.sampled()  # all rows are in the sample
    assert type(whole) is VCMoEResults
    np.testing.assert_allclose(whole.resid("quantile", rng=0), in_memory.resid("quantile", rng=0), rtol=1e-6)
    assert [c.label for c in scanned.curves("means")] == [c.label for c in in_memory.curves("means")]
    with pytest.raises(ArgumentError, match=r"fits of partitioned data have no resid\(\)"):
        scanned.resid()
    scanned.save(tmp_path / "fit.mixmoe")
    again = mm.load(tmp_path / "fit.mixmoe", data=scanned.model.found.source.data)
    same(again, scanned)
    np.testing.assert_allclose(again.responsibilities, scanned.responsibilities, rtol=1e-12)
    with pytest.raises(SavedFileError, match=r"data=mm\.scan"):
        mm.load(tmp_path / "fit.mixmoe")
    simulated(200).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(SavedFileError, match="195 of 200 rows count"):
        mm.load(tmp_path / "fit.mixmoe", data=mm.scan(tmp_path / "other.parquet"))


def test_a_sample_is_the_same_in_any_order_and_partition(data, tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "SAMPLE_UNITS", 60)
    for name, frame, n in (("one", data, 1), ("many", data.sample(frac=1.0, random_state=3), 9)):
        (tmp_path / name).mkdir()
        written(tmp_path / name, frame, n)
    one, many = (fitted("y ~ x | vary: t", mm.scan(tmp_path / name)) for name in ("one", "many"))
    rows = [np.sort(found.model.found.sample.response) for found in (one, many)]
    assert len(rows[0]) == 60
    np.testing.assert_array_equal(*rows)
    np.testing.assert_allclose(many.model.coef, one.model.coef, rtol=1e-8, atol=1e-10)  # functions of all rows
    assert "From a random sample of 60 of the 234 rows." in one._sample_words
    assert len(one.sampled().resid()) == 60


def test_arrays_of_rows_lie_in_files(scanned):
    rows = scanned.model.problem.rows
    for array in (rows.outcome.y, rows.design, rows.index, scanned.model.problem.products):
        owner = array
        while owner is not None and not isinstance(owner, np.memmap):
            owner = owner.base
        assert isinstance(owner, np.memmap)


def test_dask_frames_give_the_same(data, in_memory):
    frames = pytest.importorskip("dask.dataframe")
    frame = frames.from_pandas(data, npartitions=4, sort=False)
    found = fitted(TWO, frame, experts=2)
    same(found, in_memory)
    complete = frames.from_pandas(data.dropna(), npartitions=2)
    made = found.predict(complete, kind="mean")
    assert hasattr(made, "compute")
    np.testing.assert_allclose(made.compute()["mean"], in_memory.predict(data.dropna(), kind="mean")["mean"], rtol=1e-8)


@pytest.mark.parametrize(
    ("change", "formula", "options", "error", "words"),
    [
        (lambda late: late.drop(columns="t"), TWO, {}, DesignError, "no column 't'"),
        (lambda late: late.assign(t="early"), TWO, {}, DesignError, "'t' holds"),
        (
            lambda late: late.assign(t=np.where(late.index == late.index[2], np.inf, late["t"])),
            TWO,
            {},
            DesignError,
            "inf",
        ),
        (lambda late: late.assign(count=-1), "count ~ x | vary: t", {"family": "poisson"}, DesignError, "part03"),
        (lambda late: late, "y ~ x | vary: nope", {}, DesignError, "'nope'"),
        (lambda late: late, "y ~ poly(x, 2) | vary: t", {}, DesignError, "cannot be computed from partitions"),
        (lambda late: late, TWO, {"weights": np.ones(3)}, ArgumentError, "must be the name of a column"),
        (lambda late: late, TWO, {"formula_engine": "patsy"}, ArgumentError, "'formulaic'"),
        (lambda late: late, TWO, {"bandwidth": 1e-4}, DesignError, "is wide enough"),
        (lambda late: late, "y ~ x | vary: const_t", {}, DesignError, "must vary"),
    ],
)
def test_what_is_wrong_is_said(data, tmp_path, change, formula, options, error, words):
    data = data.assign(const_t=1.0)
    pattern = written(tmp_path, data, 4)
    change(pd.read_parquet(tmp_path / "part03.parquet")).to_parquet(tmp_path / "part03.parquet", index=False)
    with pytest.raises(error, match=words):
        fitted(formula, mm.scan(pattern), **options)


def test_a_level_that_comes_late_has_its_functions_and_a_new_one_is_refused(data, tmp_path):
    late = data.assign(g=np.where(np.arange(len(data)) < 180, "a", np.where(np.arange(len(data)) % 2, "a", "b")))
    found = fitted("y ~ g | vary: t", mm.scan(written(tmp_path, late, 4)), bandwidth=0.9)
    same(found, fitted("y ~ g | vary: t", late, bandwidth=0.9))
    late.assign(g="new").to_parquet(tmp_path / "new.parquet", index=False)
    with pytest.raises(DesignError, match="'new'"):
        found.predict(mm.scan(tmp_path / "new.parquet")).head()


def test_with_many_rows_a_bandwidth_is_that_of_some_of_them(data, monkeypatch):
    complete = data.dropna().sort_values("t")
    known = mm.VCMoE("y ~ x | vary: t", complete.iloc[::3], experts=1, n_grid=8).select_bandwidth(0).best
    monkeypatch.setattr(bandwidth, "MOST", 100)
    found = mm.VCMoE("y ~ x | vary: t", complete, experts=1, n_grid=8).select_bandwidth(0).best
    assert found == pytest.approx(known * (len(complete.iloc[::3]) / len(complete)) ** 0.2)
