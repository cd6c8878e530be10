"""Likelihoods that need the rows of each subject, of Parquet files and Dask frames, equal those in memory."""

import warnings

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError, DesignError, DroppedRowsWarning
from mixmoe.partitions import gathered, survey
from tests.partitions.test_scan import same, written

pytest.importorskip("pyarrow")
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::mixmoe.errors.{name}Warning")
    for name in ("Degeneracy", "Boundary", "Collinearity")
]


def shuffled(preset, n_subjects):
    """Rows in no order, of subjects in many files, some of which are not complete."""
    data = mm.simulate.memoe(preset, n_subjects=n_subjects, rng=1).data.drop(columns="expert")
    rng = np.random.default_rng(3)
    data["g"] = np.array(["low", "mid", "top"])[rng.integers(3, size=len(data))]
    data["w"], data["o"] = rng.uniform(0.5, 2.0, len(data)), 0.1 * rng.normal(size=len(data))
    grades = np.digitize(data["y"], data["y"].quantile([0.2, 0.6, 0.97]))
    data["grade"] = pd.Categorical.from_codes(grades, ["low", "mid", "high", "top"], ordered=True)
    data["one"], data["visit"], data["site"] = 3.0, data.groupby("id").cumcount(), data["id"] % 9
    data.loc[data.index[::41], "x1"] = np.nan
    return data.iloc[rng.permutation(len(data))].reset_index(drop=True)


def fitted(formula, data, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DroppedRowsWarning)
        warnings.filterwarnings("ignore", "errors='ar1' takes the row before as the rows stand")  # rows are shuffled
        return mm.fit(formula, data, **{"experts": 1, "rng": 0, "starts": 1, **options})


GATED = "y ~ time + x1 | gate: z1 | re: (1 | id)"
ALONE = "y ~ scale(x1) * C(g) + bs(time, df=4) | re: (1 | id)"


@pytest.mark.parametrize(
    ("preset", "formula", "options", "n_files"),
    [
        ("count", GATED, {"experts": 2, "family": "poisson", "weights": "w", "offset": "o"}, 12),
        ("binary", ALONE, {"family": "binomial", "cluster": "site", "n_quad": 3}, 4),
        ("positive", "y ~ x1 | re: (1 + time || id)", {"family": "gamma"}, 1),
        ("moderate", GATED, {"experts": 2, "errors": "ar1", "weights": "w"}, 50),  # rows counted as they come
        ("moderate", ALONE, {"errors": "car1", "time": "time", "errors_dist": "t", "errors_df": 5}, 7),
        ("unbalanced", "y ~ time + x1 | re: (0 | id)", {"errors": "bm", "time": "time", "offset": "o"}, 3),
        ("moderate", "y ~ time | re: (1 | id)", {"errors": "ar1", "time": "visit", "method": "reml"}, 2),
        ("moderate", "y ~ x1 | re: (1 | id) | sigma: time + C(g) + one", {}, 9),  # one is superfluous
        (
            "moderate",
            "grade ~ time + x1 | gate: z1 | re: (1 | id)",
            {"experts": 2, "family": "ordinal", "residual": "common"},
            5,
        ),
    ],
)
def test_any_number_of_files_gives_the_fit_in_memory(tmp_path, monkeypatch, preset, formula, options, n_files):
    data = shuffled(preset, 50)
    monkeypatch.setattr(gathered, "RUN_ROWS", 70)  # so that runs of subjects are several
    pattern = written(tmp_path, data, n_files)
    data.iloc[:0].to_parquet(tmp_path / "none.parquet", index=False)
    found, known = fitted(formula, mm.scan(pattern, chunk_rows=37), **options), fitted(formula, data, **options)
    same(found, known)
    assert found.summary().as_text() == known.summary().as_text()


@pytest.fixture(scope="module")
def counts():
    return shuffled("count", 60)


@pytest.fixture(scope="module")
def scanned(counts, tmp_path_factory):
    pattern = written(tmp_path_factory.mktemp("counts"), counts, 5)
    return fitted(GATED, mm.scan(pattern), family="poisson", experts=2)


@pytest.fixture(scope="module")
def in_memory(counts):
    return fitted(GATED, counts, family="poisson", experts=2)


def test_results_of_all_rows_of_the_sample_and_of_a_file(scanned, in_memory, counts, tmp_path):
    np.testing.assert_allclose(scanned.responsibilities, in_memory.responsibilities, rtol=1e-8)
    np.testing.assert_allclose(scanned.random_effects, in_memory.random_effects, rtol=1e-6, atol=1e-9)
    complete = counts.dropna()
    complete.to_parquet(tmp_path / "rows.parquet", index=False)
    for kind in ("mean", "subject"):
        made = scanned.predict(mm.scan(tmp_path / "rows.parquet"), kind).head(20)
        known = in_memory.predict(complete.iloc[:20], kind)
        np.testing.assert_allclose(made[known.columns], known, rtol=1e-8)
    whole = scanned.sampled()  # all subjects are in the sample
    np.testing.assert_allclose(np.sort(whole.resid("pearson")), np.sort(in_memory.resid("pearson")), rtol=1e-6)
    assert type(whole) is type(in_memory)
    assert len(scanned.curves()) == len(in_memory.curves())
    with pytest.raises(ArgumentError, match=r"fits of partitioned data have no resid\(\)"):
        scanned.resid()
    scanned.save(tmp_path / "fit.mixmoe")
    again = mm.load(tmp_path / "fit.mixmoe")
    assert again.summary().as_text() == scanned.summary().as_text()
    np.testing.assert_allclose(again.predict(complete.iloc[:9]), in_memory.predict(complete.iloc[:9]))
    with pytest.raises(ArgumentError, match="holds a sample of its data"):
        again.influence()
    bare = mm.load(tmp_path / "fit.mixmoe", data=mm.scan(scanned.model.source.data.paths))
    np.testing.assert_allclose(bare.with_cov("nonrobust").bse, in_memory.with_cov("nonrobust").bse, rtol=1e-6)


def test_serial_errors_after_a_file(tmp_path):
    data = shuffled("moderate", 40)
    options = {"errors": "car1", "time": "time"}
    found = fitted("y ~ time | re: (1 | id)", mm.scan(written(tmp_path, data, 3)), **options)
    found.save(tmp_path / "fit.mixmoe")
    again = mm.load(tmp_path / "fit.mixmoe")
    assert again.summary().as_text() == found.summary().as_text()
    known = fitted("y ~ time | re: (1 | id)", data, **options)
    at = {"history": data[data["id"] == 3], "interval": "prediction"}
    np.testing.assert_allclose(again.predict(data.iloc[:5], **at), known.predict(data.iloc[:5], **at), rtol=1e-6)


def test_levels_that_a_sample_lacks_are_known_after_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "SAMPLE_ROWS", 1)  # one subject
    data = shuffled("moderate", 40)
    data["grade"] = data["grade"].cat.codes + 0.0  # whole numbers, with 3 in few rows
    whole = [data["grade"] < 3, data["grade"] == 3]
    for i, rows in enumerate(whole):
        data[rows].astype({"grade": ["int64", "float64"][i]}).to_parquet(tmp_path / f"{i}.parquet", index=False)
    options = {"family": "ordinal", "residual": "common"}
    found = fitted("grade ~ time | re: (1 | id)", mm.scan(str(tmp_path / "*.parquet")), **options)
    known = fitted("grade ~ time | re: (1 | id)", pd.concat([data[rows] for rows in whole]), **options)
    same(found, known)
    found.save(tmp_path / "fit.mixmoe")
    again = mm.load(tmp_path / "fit.mixmoe")
    assert len(set(again.model.design.sample.response)) < 4
    np.testing.assert_allclose(again.predict(data.iloc[:9]), known.predict(data.iloc[:9]), rtol=1e-8)
    data.assign(grade=1.0).to_parquet(tmp_path / "one", index=False)
    with pytest.raises(DesignError, match=r"'grade' is 1\.0 in every row"):
        fitted("grade ~ time | re: (1 | id)", mm.scan(str(tmp_path / "one")), **options)


def test_dask_frames_give_the_same(counts, in_memory):
    frames = pytest.importorskip("dask.dataframe")
    same(fitted(GATED, frames.from_pandas(counts, npartitions=4, sort=False), family="poisson", experts=2), in_memory)


def test_rows_stay_in_files(scanned):
    rows = scanned.model.problem.experts.rows
    for array in (rows.outcome.y, rows.X.dense, rows.Z, rows.offset):
        assert isinstance(array.base, np.memmap)
    blocks = [part.rows for _, part in scanned.model.problem.experts.blocks(2)]
    assert all(np.shares_memory(block.X.dense, rows.X.dense) for block in blocks)


def test_what_rows_may_not_hold_is_refused_with_the_file(counts, tmp_path, monkeypatch):
    wrong = counts.assign(y=counts["y"].astype(float))
    wrong.loc[7, "y"] = 2.5
    with pytest.raises(DesignError, match=r"'y' is 2.5 in row 7.*rows counted in file .*part00"):
        fitted(GATED, mm.scan(written(tmp_path, wrong, 3)), family="poisson")
    data = shuffled("moderate", 30)
    twice = data.assign(time=np.where(data["id"] == data["id"].iloc[0], 1.0, data["time"]))
    with pytest.raises(DesignError, match=r"'time' of time= is 1 twice for subject"):
        fitted("y ~ x1 | re: (1 | id)", mm.scan(written(tmp_path, twice, 30)), errors="car1", time="time")
    halves = data.assign(time=data["time"] / 3)
    with pytest.raises(DesignError, match=r"errors='ar1' needs whole numbers.*rows counted in file"):
        fitted("y ~ x1 | re: (1 | id)", mm.scan(written(tmp_path, halves, 30)), errors="ar1", time="time")
    monkeypatch.setattr(gathered.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 100}))
    with pytest.raises(ArgumentError, match=r"temporary file, and .* TMPDIR"):
        fitted(GATED, mm.scan(written(tmp_path, counts, 30)), family="poisson")


@pytest.mark.parametrize(("preset", "expert"), [("separated", "time"), ("binary", "arm * time")])
def test_flags_that_name_rows_are_told_by_those_of_the_sample(tmp_path, preset, expert):
    data = mm.simulate.memoe(preset, n_subjects=80, rng=1).data
    # One arm holds one expert, with binary responses no events either; labels could be exchanged in each.
    data["arm"] = np.where((data["expert"] == 2) | (data["id"] % 2 == 0), "a", "b")
    if preset == "binary":
        data.loc[data["arm"] == "b", "y"] = 0.0
    options = {"family": "binomial" if preset == "binary" else "gaussian", "experts": 2}
    formula, pattern = f"y ~ {expert} | gate: arm | re: (0 | id)", written(tmp_path, data, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, known = fitted(formula, mm.scan(pattern), **options), fitted(formula, data, **options)
    told = [
        [f.message for f in one.flags if f.code in ("separated_gate", "separated_expert")] for one in (found, known)
    ]
    assert told[0] == told[1] != []
    assert [flag.code for flag in found.flags] == [flag.code for flag in known.flags]
