"""One model for many responses: the same fits as one by one, adjusted p-values, failures, continuation, AnnData."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

import mixmoe as mm
from mixmoe.errors import ArgumentError, DesignError, DroppedRowsWarning, FormulaError
from mixmoe.selection import many_responses
from mixmoe.selection.many_responses import holm

FORMULA = "~ age | re: (1 | subject)"


@pytest.fixture(scope="module")
def data():
    given = mm.datasets.load("orthodont")
    rng = np.random.default_rng(0)
    noise = {f"noise{i}": rng.normal(size=len(given)) for i in range(4)}
    return given.assign(half=given["distance"] / 2, constant=1.0, **noise)


@pytest.fixture(scope="module")
def each(data):
    names = ["distance", "constant", "half", *(f"noise{i}" for i in range(4))]
    return mm.fit_each(names, FORMULA, data, experts=1, rng=0, progress=False)


def test_every_response_has_the_fit_that_it_has_alone(each, data):
    frame = each.to_frame()
    for name in ("distance", "half"):
        alone = mm.fit(f"{name} {FORMULA}", data, experts=1)
        mine = frame[frame["response"] == name].set_index("name")
        np.testing.assert_allclose(mine["estimate"], alone.params, rtol=1e-8)
        np.testing.assert_allclose(mine["std_error"].astype(float), alone.bse, rtol=1e-8)
        assert each.fits.loc[name, "llf"] == pytest.approx(alone.llf)
    assert list(dict.fromkeys(frame["response"])) == list(each.fits.index)  # in the order in which they were given


def test_p_values_are_adjusted_over_responses_for_each_name(each):
    frame = each.to_frame()
    p = frame.loc[frame["name"] == "expert1.age", "p_value"].to_numpy(dtype=float)
    order, m = np.argsort(p), len(p)
    by_hand = np.empty(m)
    by_hand[order] = np.minimum.accumulate((p[order] * m / np.arange(1, m + 1))[::-1])[::-1]
    steps = np.empty(m)
    steps[order] = np.minimum(np.maximum.accumulate(p[order] * (m - np.arange(m))), 1.0)
    found = frame[frame["name"] == "expert1.age"]
    np.testing.assert_allclose(found["p_bh"].astype(float), np.minimum(by_hand, 1.0))
    np.testing.assert_allclose(found["p_holm"].astype(float), steps)


@pytest.mark.parametrize("p", [[0.3], [0.01, 0.02, 0.02, 0.9, 0.0], [0.5, 0.6, 0.9]])
def test_holm_is_that_of_statsmodels(p):
    np.testing.assert_allclose(holm(np.array(p)), multipletests(p, method="holm")[1], rtol=1e-14)


def test_tables_hold_each_response_with_its_estimate_or_those_with_the_smallest_p_values(each, monkeypatch):
    slopes = each.only("expert1.age")
    (table,) = [t for t in slopes.tables() if t.key == "expert1.age"]
    row = each.to_frame().set_index(["name", "response"]).loc[("expert1.age", "half")]
    shown = dict(zip(table.index, table.cells, strict=True))["half"]
    np.testing.assert_allclose(shown, row[["estimate", "std_error", "p_value", "p_bh", "p_holm"]].astype(float))
    assert "noise3" in slopes.to_latex()
    assert "expert1.Intercept" not in str(slopes)
    monkeypatch.setattr(many_responses, "_MOST_ROWS", 2)
    (table,) = [t for t in slopes.tables() if t.key == "expert1.age"]
    assert set(table.index) == {"distance", "half"}
    assert "2 of 6 responses" in table.notes[0]
    with pytest.raises(
        ArgumentError, match=r"no response has a row 'age'; rows are 'expert1.Intercept', 'expert1.age'"
    ):
        each.only("age")


def test_functions_of_an_index_are_tested_for_constancy(data):
    given = mm.simulate.vcmoe("well_separated", n=120, rng=1).data
    given["other"] = given["y"].sample(frac=1.0, random_state=0).to_numpy()
    options = {"experts": 1, "bandwidth": 0.5, "rng": 0, "progress": False}
    found = mm.fit_each(["y", "other"], "~ 1 | vary: u", given, **options)
    alone = mm.fit("other ~ 1 | vary: u", given, **options).test_varying(method="asymptotic")
    mine = found.to_frame().query("response == 'other'").set_index("name")
    np.testing.assert_allclose(mine["p_value"].astype(float), alone["p_value"])
    (table,) = [t for t in found.tables() if t.key == "expert1.Intercept"]
    assert table.columns == ("Statistic", "df", "P", "P (BH)", "P (Holm)")
    clustered = mm.fit_each(["y"], "~ 1 | vary: u", given.assign(c=given.index % 20), cluster="c", **options)
    assert "estimate" in clustered.to_frame()


def test_failures_are_rows_with_their_reason(each):
    row = each.to_frame().query("response == 'constant'")
    assert len(row) == 1
    assert "it must vary" in row["reason"].iloc[0]
    assert not each.fits.loc["constant", "converged"]
    text = str(each)
    assert "Without a fit:" in text
    assert "constant" in text
    assert max(map(len, text.splitlines())) <= 80


def test_workers_change_nothing_and_an_interrupted_run_continues(data, tmp_path):
    mixture = {"experts": 2, "rng": 3, "starts": 2, "progress": False}
    names = ["distance", "half", "noise0"]
    whole = mm.fit_each(names, FORMULA, data, checkpoint=tmp_path / "run", **mixture)
    lines = (tmp_path / "run").read_bytes().splitlines(keepends=True)
    (tmp_path / "run").write_bytes(b"".join(lines[:2]))  # the seed and the first response
    again = mm.fit_each(names, FORMULA, data, checkpoint=tmp_path / "run", n_jobs=2, **mixture)
    pd.testing.assert_frame_equal(again.estimates, whole.estimates)
    assert json.loads(lines[1])["value"]["response"] == "distance"
    with pytest.raises(ArgumentError, match="other data, another model or other options"):
        mm.fit_each(names, FORMULA, data.assign(half=0.1 * data["half"]), checkpoint=tmp_path / "run", **mixture)


def test_a_frame_of_responses_is_aligned_by_its_index(each, data):
    responses = data[["distance", "half"]].sample(frac=1.0, random_state=1)
    covariates = data[["age", "subject"]]
    found = mm.fit_each(responses, FORMULA, covariates, experts=1)
    np.testing.assert_allclose(found.fits["llf"], each.fits.loc[["distance", "half"], "llf"])
    with pytest.raises(ArgumentError, match="index of the responses is not that of the data"):
        mm.fit_each(responses.set_axis(np.arange(1000, 1108)), FORMULA, covariates, experts=1)
    with pytest.raises(ArgumentError, match="responses have 10 rows, the data 108"):
        mm.fit_each(responses.head(10), FORMULA, covariates, experts=1)
    with pytest.raises(ArgumentError, match="'distance' is a column of the responses and of the data"):
        mm.fit_each(responses, FORMULA, data, experts=1)


def test_columns_beside_the_formula_belong_to_rows_and_to_a_checkpoint(data, tmp_path):
    weights = pd.Series(np.linspace(0.5, 2.0, len(data)), index=data.index)
    shuffled, options = weights.sample(frac=1.0, random_state=0), {"experts": 1, "rng": 0, "progress": False}
    alone = mm.fit(f"distance {FORMULA}", data.assign(w=weights), 1, weights="w", progress=False)
    found = mm.fit_each(["distance"], FORMULA, data, weights=shuffled, checkpoint=tmp_path / "run", **options)
    assert found.fits.loc["distance", "llf"] == pytest.approx(alone.llf, abs=1e-10)
    changed = weights.to_numpy().copy()
    changed[50] += 1e-9  # in the middle, where the text of an array leaves out
    with pytest.raises(ArgumentError, match="was written for other data"):
        mm.fit_each(["distance"], FORMULA, data, weights=changed, checkpoint=tmp_path / "run", **options)
    with pytest.raises(ArgumentError, match="weights has no single value for the row"):
        mm.fit_each(["distance"], FORMULA, data, weights=weights.set_axis(weights.index + 5), **options)


def test_what_is_kept_of_a_fit_can_be_chosen(data):
    found = mm.fit_each(["distance", "half"], FORMULA, data, experts=1, extract=_slopes)
    assert list(found.to_frame()["name"]) == ["slope"] * 2
    assert {"twice", "p_value", "p_bh"} <= set(found.to_frame().columns)


def _slopes(results):
    return pd.DataFrame({"twice": [2 * results.params["expert1.age"]], "p_value": [0.01]}, index=["slope"])


@pytest.mark.parametrize(
    ("responses", "formula", "options", "error", "message"),
    [
        (["distance"], "distance ~ age", {}, ArgumentError, "begins with '~'"),
        (["distance"], "~ age |", {}, FormulaError, "section"),
        (["distance", "distance"], "~ age", {}, ArgumentError, "'distance' is given twice"),
        (["nothing"], "~ age", {}, DesignError, "'nothing', which is not a column"),
        ("distance", "~ age", {}, ArgumentError, "list of columns or a frame"),
        (None, "~ age", {}, ArgumentError, "list of columns or a frame"),
        ([], "~ age", {}, ArgumentError, "at least one column"),
        ([3], "~ age", {}, ArgumentError, "texts without backticks, got 3"),
        (["distance"], "~ age", {"layer": "counts"}, ArgumentError, "layer= belongs to an AnnData object"),
        (["distance"], "~ age", {"bandwith": 1}, ArgumentError, "no option 'bandwith'"),
        (["distance", "half"], "~ agee", {}, DesignError, "no response could be fitted; 'distance': .*agee"),
    ],
)
def test_wrong_arguments(data, responses, formula, options, error, message):
    with pytest.raises(error, match=message):
        mm.fit_each(responses, formula, data, experts=1, **options)


# ---- AnnData ----


@pytest.fixture(scope="module")
def cells():
    anndata = pytest.importorskip("anndata")
    sparse = pytest.importorskip("scipy.sparse")
    rng = np.random.default_rng(5)
    dose, depth = rng.normal(size=150), rng.uniform(0.5, 2.0, size=150)
    counts = rng.poisson(depth[:, None] * np.exp(2.0 + np.outer(dose, [0.0, 0.4, -0.4])))
    obs = pd.DataFrame({"dose": dose, "depth": depth}, index=[f"cell{i}" for i in range(150)])
    var = pd.DataFrame(index=["flat", "up", "down"])
    return anndata.AnnData(sparse.csr_matrix(counts.astype(float)), obs=obs, var=var, layers={"dense": counts})


def test_genes_of_anndata_are_responses_with_size_factors_as_offset(cells):
    given = {"experts": 1, "family": "poisson", "progress": False}
    found = mm.fit_each(None, "~ dose", cells, size_factors="depth", **given)
    frame = cells.obs.assign(up=np.asarray(cells.layers["dense"])[:, 1], off=np.log(cells.obs["depth"]))
    alone = mm.fit("up ~ dose", frame, offset="off", **given)
    mine = found.to_frame().query("response == 'up'").set_index("name")
    np.testing.assert_allclose(mine["estimate"], alone.params, rtol=1e-8)
    layer = mm.fit_each(["up"], "~ dose", cells, layer="dense", size_factors="depth", **given)
    np.testing.assert_allclose(layer.to_frame()["estimate"], alone.params, rtol=1e-8)
    total = mm.fit_each(["up"], "~ dose", cells, size_factors="total", **given)
    assert abs(total.to_frame()["estimate"] - alone.params.to_numpy()).max() > 1e-3
    found.add_to(cells, "moe")
    assert cells.uns["moe"].equals(found.to_frame())
    assert cells.var["moe.expert1.dose.estimate"]["up"] == pytest.approx(alone.params["expert1.dose"])
    assert cells.var["moe.converged"].all()
    flagged = replace(found, fits=found.fits.assign(flags=["", "boundary, small_expert", ""]))
    flagged.add_to(cells, "moe")
    assert cells.var["moe.flags"].tolist() == ["", "boundary, small_expert", ""]
    assert (cells.var["moe.reason"] == "").all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_factors": "nothing"}, "must be a column of obs or 'total'"),
        ({"layer": "nothing"}, "no layer 'nothing'; layers are 'dense'"),
        (
            {"size_factors": "dose"},
            r"must be positive; \d+ of 150 cells have none, the first of them 'cell\d+' with -.*leave",
        ),
        ({"size_factors": "depth", "offset": "dose"}, "leave one out"),
    ],
)
def test_what_anndata_lacks_is_said(cells, options, message):
    with pytest.raises(ArgumentError, match=message):
        mm.fit_each(None, "~ dose", cells, experts=1, family="poisson", **options)


def test_add_to_takes_anndata_only(each):
    with pytest.raises(ArgumentError, match="takes an AnnData object, got dict"):
        each.add_to({})


def test_a_cell_without_counts_is_named_and_the_way_of_one_gene_is_told(cells):
    emptied = cells.copy()
    emptied.X = emptied.X.multiply((np.arange(150) != 7)[:, None]).tocsr()
    with pytest.raises(
        ArgumentError, match="1 of 150 cells have none, the first of them 'cell7' with 0, that is, no c"
    ):
        mm.fit_each(None, "~ dose", emptied, experts=1, family="poisson", size_factors="total")
    with pytest.raises(DesignError, match=r"got AnnData; mm\.fit_each takes it"):
        mm.fit("up ~ dose", cells, experts=1)
    one = mm.fit("up ~ dose", cells.obs.join(cells.to_df()), experts=1, family="poisson")
    assert one.nobs == 150


def test_an_error_that_all_responses_share_is_not_told_of_the_first(data):
    wrong = data.assign(depth=np.where(np.arange(len(data)) == 3, -np.inf, 0.0))
    with pytest.raises(DesignError, match=r"no response could be fitted, all for one reason: .*'depth' \(offset\)"):
        mm.fit_each(["distance", "half"], "~ age", wrong, experts=1, offset="depth")


def test_rows_that_are_left_out_are_told_and_counted(data):
    holes = data.assign(age=data["age"].where(data.index != 3), half=data["half"].where(data.index > 1))
    with pytest.warns(DroppedRowsWarning, match="up to 3 of 108 rows were left out of a fit"):
        each = mm.fit_each(["distance", "half"], FORMULA, holes, experts=1, progress=False)
    assert list(each.fits["nobs"]) == [107, 105]
    assert "105 to 107" in str(each.summary())
