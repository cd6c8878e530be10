"""Fits of Parquet files equal fits of the same rows in memory."""

import re
import warnings

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError, CollinearityWarning, DesignError, DroppedRowsWarning, SavedFileError
from mixmoe.partitions.scan import Scan

pytest.importorskip("pyarrow")
FORMULA = "y ~ bs(time, df=4) + scale(x1) + C(g) | gate: center(z1) + h | re: (1 | id)"
SAME_LOGLIK, SAME_ESTIMATES, SAME_ERRORS = 1e-10, 1e-8, 1e-6  # relative; the searches end at the same maximum


@pytest.fixture(scope="module")
def rows():
    data = mm.simulate.memoe("separated", n_subjects=120, rng=1).data.drop(columns="expert")
    rng = np.random.default_rng(3)
    data["g"] = np.array(["low", "mid", "top"])[rng.integers(3, size=len(data))]
    data["h"] = np.where(data["id"] % 7 < 3, "b", "a")
    data["u"] = rng.uniform(0.5, 2.0, len(data))
    data["o"] = rng.normal(size=len(data))
    data.loc[[5, 17, 40], "x1"] = np.nan
    data.loc[[17, 90], "y"] = np.nan
    return data.iloc[rng.permutation(len(data))].reset_index(drop=True)


def written(folder, frame, n_files):
    """The frame in some files, rows as they stand; subjects lie in several of them."""
    for i, places in enumerate(np.array_split(np.arange(len(frame)), n_files)):
        frame.iloc[places].to_parquet(folder / f"part{i:02d}.parquet", index=False)
    return str(folder / "*.parquet")


def fitted(data, formula=FORMULA, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DroppedRowsWarning)
        return mm.fit(formula, data, **{"experts": 2, "rng": 0, "starts": 4, **options})


@pytest.fixture(scope="module")
def in_memory(rows):
    return fitted(rows)


@pytest.fixture(scope="module")
def scanned(rows, tmp_path_factory):
    return fitted(mm.scan(written(tmp_path_factory.mktemp("visits"), rows, 5)))


def same(one, other):
    assert list(one.params.index) == list(other.params.index)
    assert one.llf == pytest.approx(other.llf, rel=SAME_LOGLIK)
    np.testing.assert_allclose(one.params, other.params, rtol=SAME_ESTIMATES, atol=SAME_ESTIMATES)
    np.testing.assert_allclose(one.bse, other.bse, rtol=SAME_ERRORS)
    assert (one.nobs, one.n_units) == (other.nobs, other.n_units)
    assert one.model.design.dropped.n_rows == other.model.design.dropped.n_rows
    assert dict(one.model.design.dropped.by_column) == dict(other.model.design.dropped.by_column)


@pytest.mark.parametrize("n_files", [1, 50])
def test_any_number_of_files_gives_the_fit_in_memory(rows, in_memory, tmp_path, n_files):
    same(fitted(mm.scan(written(tmp_path, rows, n_files))), in_memory)


def test_sorted_rows_small_chunks_and_an_empty_file_change_nothing(rows, in_memory, tmp_path):
    pattern = written(tmp_path, rows.sort_values("id", kind="stable"), 3)
    rows.iloc[:0].to_parquet(tmp_path / "none.parquet", index=False)
    same(fitted(mm.scan(pattern, chunk_rows=37)), in_memory)


@pytest.mark.parametrize(
    ("formula", "options"),
    [
        ("y ~ time + x1 | gate: z1 | re: (1 + time || id)", {"weights": "u", "offset": "o"}),
        ("log(y + 40) ~ time + common(x1) | gate: z1 | re: (1 | id)", {"cov_re": "common", "residual": "common"}),
        ("y ~ standardize(x1) + bs(time, knots=[2.0]) + I(o > 0) | gate: z1 | re: (0 | id)", {}),
        ("y ~ scale(x1) * C(g) + bs(time, df=4) | re: (1 + time | id)", {"experts": 1, "method": "reml"}),
        ("y ~ 0 + C(g, Sum) + time:C(g) | gate: z1 | re: (1 | id)", {"gate_penalty": "firth"}),
    ],
)
def test_models_with_other_terms_and_options(rows, tmp_path, formula, options):
    found = fitted(mm.scan(written(tmp_path, rows, 4)), formula, **options)
    same(found, fitted(rows, formula, **options))


def test_superfluous_columns_are_left_out_alike(rows, tmp_path):
    data = rows.assign(twice=2 * rows["x1"] + 1, date=1.7e9 + rows["time"], one=3.0)
    formula = "y ~ date + x1 + twice + one | gate: z1 + h | re: (1 | id)"
    with pytest.warns(CollinearityWarning) as said:
        found = fitted(mm.scan(written(tmp_path, data, 4)), formula)
    with pytest.warns(CollinearityWarning) as also_said:
        known = fitted(data, formula)
    assert [str(one.message) for one in said] == [str(one.message) for one in also_said]
    assert len(said) == 2
    assert list(found.params.index) == list(known.params.index)
    # Seconds since 1970 leave seven digits of a time, however sums are taken.
    exact = fitted(data, formula.replace("date", "time").replace(" + twice + one", ""))
    assert found.llf == pytest.approx(exact.llf, abs=1e-4)


@pytest.mark.parametrize("kind", ["text", "whole", "category"])
def test_standard_errors_over_clusters_are_those_in_memory(rows, tmp_path, kind):
    numbers = rows["id"] % 23
    site = numbers.map("s{}".format) if kind == "text" else numbers.astype("Int64" if kind == "whole" else "category")
    data = rows.assign(site=site)
    data.loc[7, "site"] = None  # left out, as a row without a response
    formula = "y ~ time + x1 | gate: z1 | re: (1 | id)"
    pattern = written(tmp_path, data, 6)
    found, known = fitted(mm.scan(pattern), formula, cluster="site"), fitted(data, formula, cluster="site")
    same(found, known)
    assert found.cov_type == "cluster"
    assert found.summary().as_text() == known.summary().as_text()
    drawn = [one.with_cov("bootstrap", n_boot=4, rng=3).bse for one in (found, known)]
    np.testing.assert_allclose(*drawn, rtol=1e-4)
    assert "subjects of a cluster are not independent" in str(found.vlmr_test())
    found.save(tmp_path / "fit.mixmoe")
    again = mm.load(tmp_path / "fit.mixmoe")
    assert again.summary().as_text() == found.summary().as_text()
    np.testing.assert_array_equal(again.model.clusters, known.model.clusters)
    found.save(tmp_path / "bare.mixmoe", data=False)
    bare = mm.load(tmp_path / "bare.mixmoe", data=mm.scan(pattern))
    np.testing.assert_allclose(bare.with_cov("cluster").bse, known.bse, rtol=SAME_ERRORS)


def test_clusters_that_cannot_be_used_are_refused(rows, tmp_path):
    formula, subject = "y ~ time | re: (1 | id)", rows["id"].iloc[0]
    data = rows.assign(site=rows["id"] % 5, one=1, split=rows["id"] % 5)
    data.loc[data.index[data["id"] == subject][-1], "split"] = 99
    for n_files in (1, 7):  # within a part, and between parts
        folder = tmp_path / str(n_files)
        folder.mkdir()
        with pytest.raises(ArgumentError, match=f"subject {subject} lies in more than one cluster"):
            fitted(mm.scan(written(folder, data, n_files)), formula, experts=1, cluster="split")
    scanned = mm.scan(written(tmp_path, data, 3))
    with pytest.raises(DesignError, match="the same value, 1, in all 120 subjects"):
        fitted(scanned, formula, experts=1, cluster="one")
    with pytest.raises(DesignError, match="'nowhere'"):
        fitted(scanned, formula, experts=1, cluster="nowhere")
    with pytest.raises(ArgumentError, match="must be the name of a column"):
        fitted(scanned, formula, experts=1, cluster=data["site"])
    plain = fitted(scanned, formula, experts=1)
    with pytest.raises(ArgumentError, match="needs the clusters, got None; fit with cluster="):
        plain.with_cov("cluster")
    with pytest.raises(ArgumentError, match="is named when it is fitted"):
        plain.with_cov("cluster", cluster="site")


def test_weights_of_zero_and_partitions_without_complete_rows(rows, tmp_path):
    data = rows.assign(u=np.where(np.arange(len(rows)) % 9 == 0, 0.0, rows["u"]))
    data.loc[data.index[:30], "x1"] = np.nan  # the whole first file
    pattern = written(tmp_path, data, len(data) // 30)
    formula = "y ~ time + x1 | gate: z1 | re: (1 | id)"
    found = fitted(mm.scan(pattern), formula, weights="u")
    same(found, fitted(data, formula, weights="u"))
    assert found.model.design.n_uncounted == fitted(data, formula, weights="u").model.design.n_uncounted


def test_whole_numbers_with_missing_values_in_one_file_name_columns_as_in_memory(rows, tmp_path):
    data = rows.assign(k=(rows["id"] % 3).astype("Int64"))
    data.loc[3, "k"] = pd.NA
    formula = "y ~ time + C(k) | gate: z1 | re: (1 | id)"
    pattern = written(tmp_path, data, 4)
    same(fitted(mm.scan(pattern), formula), fitted(pd.read_parquet(tmp_path), formula))


def test_categories_keep_their_order(rows, tmp_path):
    data = rows.assign(g=pd.Categorical(rows["g"], ["top", "low", "mid", "none"]))
    formula = "y ~ time + g | gate: z1 | re: (1 | id)"
    found = fitted(mm.scan(written(tmp_path, data, 4)), formula)
    assert "expert1.g[T.low]" in found.params.index
    same(found, fitted(data, formula))


def test_the_summary_is_that_of_memory(scanned, in_memory):
    assert str(scanned.summary()) == str(in_memory.summary())
    assert scanned.to_latex() == in_memory.to_latex()
    pd.testing.assert_frame_equal(scanned.proportions(), in_memory.proportions(), rtol=1e-6)
    tests, known = scanned.wald_test_terms().to_frame(), in_memory.wald_test_terms().to_frame()
    pd.testing.assert_frame_equal(tests, known, rtol=1e-6)


def test_what_is_said_of_subjects_is_that_of_memory(scanned, in_memory):
    alike = {"check_index_type": False, "atol": 1e-8}
    pd.testing.assert_frame_equal(scanned.responsibilities, in_memory.responsibilities, **alike)
    pd.testing.assert_frame_equal(scanned.random_effects, in_memory.random_effects, **alike)
    influence, known = scanned.influence().to_frame(), in_memory.influence().to_frame()
    pd.testing.assert_frame_equal(influence, known, **alike)
    pd.testing.assert_frame_equal(scanned.gate_effects().to_frame(), in_memory.gate_effects().to_frame(), rtol=1e-6)


def test_predictions_come_by_partition(rows, scanned, in_memory, tmp_path):
    complete = rows.dropna()
    pattern = written(tmp_path, complete, 3)
    for kind in ("all", "experts", "probabilities", "subject"):
        found = scanned.predict(mm.scan(pattern, chunk_rows=50), kind)
        known = in_memory.predict(complete, kind)
        frames = pd.concat(list(found.frames()), ignore_index=True)
        assert list(frames["id"]) == list(complete["id"])
        np.testing.assert_allclose(frames[known.columns], known, rtol=1e-8)
    files = found.to_parquet(tmp_path / "out")
    pd.testing.assert_frame_equal(pd.concat(map(pd.read_parquet, files), ignore_index=True), frames)
    assert len(scanned.predict(kind="mean", interval="confidence").head(7)) == 7
    with pytest.raises(ArgumentError, match="holds predictions already"):
        found.to_parquet(tmp_path / "out")


def test_a_file_holds_the_fit_and_a_sample(rows, scanned, tmp_path):
    scanned.save(tmp_path / "fit.mixmoe")
    again = mm.load(tmp_path / "fit.mixmoe")
    assert str(again.summary()) == str(scanned.summary())
    new = rows.dropna().head(20)
    pd.testing.assert_frame_equal(
        again.predict(new, interval="confidence"), scanned.predict(new, interval="confidence")
    )
    np.testing.assert_allclose(again.curves()[0].y, scanned.curves()[0].y)
    with pytest.raises(ArgumentError, match=r"holds a sample of its data.*data=mm\.scan"):
        again.with_cov("nonrobust")
    with pytest.raises(ArgumentError, match="without its partitions"):
        again.predict()
    whole = mm.load(tmp_path / "fit.mixmoe", data=scanned.model.source.data)
    np.testing.assert_allclose(whole.with_cov("nonrobust").bse, scanned.with_cov("nonrobust").bse)


def test_a_file_without_data_needs_the_partitions(rows, scanned, tmp_path):
    path, other = tmp_path / "bare.mixmoe", tmp_path / "other"
    scanned.save(path, data=False)
    other.mkdir()
    assert mm.load(path, data=scanned.model.source.data).llf == scanned.llf
    with pytest.raises(SavedFileError, match=r"was saved without data.*data=mm\.scan"):
        mm.load(path)
    with pytest.raises(ArgumentError, match="holds a fit of partitioned data"):
        mm.load(path, data=rows)
    with pytest.raises(SavedFileError, match="rows count, of 119 subjects"):
        mm.load(path, data=mm.scan(written(other, rows[rows["id"] != rows["id"].iloc[0]], 2)))


def test_nested_fits_of_partitions_are_compared(rows, scanned, in_memory):
    smaller = FORMULA.replace("+ C(g) ", "")
    found = scanned.lr_test(fitted(scanned.model.source.data, smaller))
    known = in_memory.lr_test(fitted(rows, smaller))
    assert (found.df, found.statistic) == (known.df, pytest.approx(known.statistic, abs=1e-6))


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr("mixmoe.partitions.survey.SAMPLE_SUBJECTS", 25)


def test_figures_and_report_say_that_they_are_of_a_sample(rows, few, tmp_path):
    pytest.importorskip("jinja2")
    found = fitted(mm.scan(written(tmp_path, rows, 6)), "y ~ time + x1 | gate: z1 | re: (1 | id)")
    assert found.sampled().n_units == 25
    words = "random sample of 25 of the 120 subjects"
    assert words in str(found.summary())
    found.report(tmp_path / "report.html")
    text = " ".join((tmp_path / "report.html").read_text().split())
    assert text.count(words) > 6
    assert "mm.scan(" in text
    assert sum(len(cloud.x) for cloud in found.panels("residuals")[0].clouds) == found.sampled().nobs
    assert len(found.panels("profile", parameter="expert1.time", points=3)) == 1


def test_the_sample_does_not_depend_on_partitions(rows, few, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    first = fitted(mm.scan(written(one, rows, 7)), "y ~ time | gate: z1 | re: (1 | id)", experts=1)
    second = fitted(mm.scan(written(other, rows[::-1], 2)), "y ~ time | gate: z1 | re: (1 | id)", experts=1)
    assert list(first.sampled().model.design.labels) == list(second.sampled().model.design.labels)
    assert first.sampled().nobs == second.sampled().nobs


@pytest.mark.parametrize("name", ["fitted", "resid", "augment", "simulate", "test_experts", "distal", "covariates"])
def test_what_needs_all_rows_refuses(scanned, name):
    with pytest.raises(ArgumentError, match=rf"partitioned data have no {name}\(\): "):
        getattr(scanned, name)()


@pytest.mark.parametrize(
    ("formula", "options", "match"),
    [
        ("y ~ poly(time, 2) | re: (1 | id)", {}, r"'poly\(time, 2\)'.*made orthogonal over all rows"),
        ("y ~ cr(time, df=4) | re: (1 | id)", {}, r"cr\(time, df=4\).*bs\(x, df=4\)"),
        ("y ~ s(time) | re: (1 | id)", {}, "penalised functions need rows beside"),
        ("y ~ lag(x1) | re: (1 | id)", {}, "several partitions"),
        ("y ~ I(time - time.mean()) | re: (1 | id)", {}, r"time\.mean"),
        ("y ~ I(np.cumsum(time)) | re: (1 | id)", {}, r"'np\.cumsum' may look at other rows"),
        ("y ~ scale(bs(time, df=4)) | re: (1 | id)", {}, "of another such transform"),
        ("y ~ f(time) | re: (1 | id)", {"context": {"f": np.sin and (lambda x: x - x.mean())}}, "np.vectorize"),
        ("y ~ time | gate: z1", {}, "no section re:"),
        ("y ~ time | re: (1 | id)", {"errors": "car1"}, "errors='car1' needs time="),
        ("y ~ time | re: (1 | id)", {"family": "ordinal"}, "family='ordinal' is for at most.*rows counted in"),
        ("h ~ time | re: (1 | id)", {"family": "ordinal"}, "whose order is not known"),
        ("g ~ time | re: (1 | id)", {"family": "binomial"}, "response.*'g'"),
        ("y ~ time | re: (1 | id)", {"weights": np.ones(720)}, "name of a column"),
        ("y ~ time | re: (1 | id)", {"formula_engine": "patsy"}, "formula_engine='formulaic'"),
        ("y ~ time | gate: x1 | re: (1 | id)", {}, "'x1' varies within subject"),
        ("y ~ absent | re: (1 | id)", {}, "'absent', which is not a column"),
        ("y ~ time | re: (1 | id)", {"experts": 200}, "more than the 120 subjects"),
        ("y ~ time | re: (1 + time + time:time + I(2*time) | id)", {}, "cannot be told from the others"),
    ],
)
def test_what_partitions_cannot_give_is_refused(scanned, formula, options, match):
    with pytest.raises((ArgumentError, DesignError), match=match):
        fitted(scanned.model.source.data, formula, **options)


def test_responses_without_noise_are_refused_as_in_memory(rows, tmp_path):
    formula = "y ~ time + x1 | gate: z1 | re: (1 | id)"
    of_subject = rows.groupby("id")["y"].transform("first")
    for i, y in enumerate((of_subject, of_subject + 2 * rows["x1"], 3 * rows["time"] + rows["x1"])):
        data = rows.assign(y=y).dropna()
        (tmp_path / str(i)).mkdir()
        with pytest.raises(DesignError) as here:
            fitted(data, formula)
        with pytest.raises(DesignError) as there:
            fitted(mm.scan(written(tmp_path / str(i), data, 3)), formula)
        assert str(there.value).split("(")[0] == str(here.value).split("(")[0]


def test_errors_name_the_file(rows, tmp_path):
    pattern = written(tmp_path, rows, 3)
    bad = tmp_path / "part01.parquet"

    def error(frame=None, formula="y ~ time + x1 + g | gate: z1 | re: (1 | id)"):
        if frame is not None:
            frame.to_parquet(bad, index=False)
        with pytest.raises(DesignError) as caught:
            fitted(mm.scan(pattern), formula)
        return str(caught.value)

    third = rows.iloc[240:480]
    assert "'x1' holds double (number)" in error(third.assign(x1="3"))
    assert "text" in error(third.assign(x1="3"))
    assert f"{str(bad)!r} has no column 'x1'" in error(third.drop(columns="x1"))
    assert f"rows counted in file {str(bad)!r}" in error(third.assign(x1=np.inf))
    bad.write_bytes(bad.read_bytes()[:-700] + b"\0" * 700)
    assert f"{str(bad)!r} cannot be read as Parquet" in error()
    bad.write_text("a,b\n1,2\n")
    assert f"{str(bad)!r} cannot be read as Parquet" in error()


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize(
    ("column", "what", "options"),
    [
        ("y", "the response 'y'", {}),
        ("x1", "the term 'x1' of the expert part", {}),
        ("time", "the term 'time' of re:", {}),
        ("u", "weights='u'", {"weights": "u"}),
        ("o", "offset='o'", {"offset": "o"}),
    ],
)
def test_values_whose_products_cannot_be_computed(rows, tmp_path, monkeypatch, column, what, options, sampled):
    """In the sample, where the row is known, and in rows of which sums alone are kept."""
    some = rows.dropna().head(60)
    wrong = some["id"].to_numpy() == some["id"].max()
    if not sampled:
        monkeypatch.setattr("mixmoe.partitions.survey.SAMPLE_SUBJECTS", 2)
    data = some.assign(**{column: some[column].mask(wrong, 1e200)})
    where = "y ~ x1 | re: (1 + time | id)"
    place = ", in row .*" if sampled else ""
    with pytest.raises(
        DesignError, match=re.escape(what) + rf" has the largest value 1e\+200{place}; it must lie betwe"
    ):
        mm.fit(where, mm.scan(written(tmp_path, data, 3)), experts=1, **options)


def test_cells_that_hold_lists(rows, tmp_path):
    some = rows.head(60)
    for formula in ("y ~ C(l) | re: (1 | id)", "y ~ l | re: (1 | id)", "y ~ x1 | gate: C(l) | re: (1 | id)"):
        with pytest.raises(DesignError, match=r"column 'l' holds ndarray values, .* single values \(rows counted in"):
            mm.fit(formula, mm.scan(written(tmp_path, some.assign(l=[[1, 2]] * 60), 2)), experts=2)


def test_whole_and_other_numbers_may_be_mixed(rows, tmp_path):
    data = rows.assign(time=rows["time"].round())
    pattern = written(tmp_path, data, 3)
    data.iloc[240:480].astype({"time": int}).to_parquet(tmp_path / "part01.parquet", index=False)
    formula = "y ~ time | gate: z1 | re: (1 | id)"
    same(fitted(mm.scan(pattern), formula), fitted(data, formula))


def test_new_levels_and_other_baselines_are_refused_in_predictions(rows, scanned, tmp_path):
    new = rows.dropna().head(4)
    with pytest.raises(DesignError, match=r"'g' is 'other' in row .*has not seen"):
        scanned.predict(new.assign(g="other"))
    with pytest.raises(DesignError, match=r"'center\(z1\)' of subject .* differs between the data of the fit"):
        scanned.predict(new.assign(z1=new["z1"] + 1), "subject")
    # The last chunk is the wrong one: what was written before it is gone, too.
    later = written(tmp_path, pd.concat([new, new.assign(g="other")]), 2)
    with pytest.raises(DesignError, match=r"'g' is 'other' .*part01"):
        scanned.predict(mm.scan(later)).to_parquet(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_scan_refuses_what_matches_nothing(tmp_path):
    with pytest.raises(ArgumentError, match="no file matches"):
        mm.scan(tmp_path / "*.parquet")
    with pytest.raises(ArgumentError, match=r"holds no \*\.parquet"):
        mm.scan(tmp_path)
    with pytest.raises(ArgumentError, match="empty list"):
        mm.scan([])
    with pytest.raises(ArgumentError, match="chunk_rows"):
        mm.scan(tmp_path, chunk_rows=0)


def test_scan_reads_folders_and_lists(rows, tmp_path):
    written(tmp_path, rows, 2)
    both = mm.scan([tmp_path / "part00.parquet", tmp_path / "part01.parquet"])
    assert isinstance(both, Scan)
    assert mm.scan(tmp_path).paths == both.paths
    assert "bs" not in both.columns
    assert both.columns[:2] == ("id", "time")
