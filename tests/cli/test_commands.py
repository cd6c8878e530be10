"""Commands, called in this process: exit codes, messages, files."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.cli.files import read_data
from mixmoe.cli.main import INTERRUPTED, main, read_value
from mixmoe.errors import ArgumentError, ConvergenceWarning, DesignError, MissingExtraError

FORMULA = "y ~ time | gate: z1 | re: (1 | id)"


@pytest.fixture(scope="module")
def data():
    return mm.simulate.memoe("separated", n_subjects=60, n_visits=4, rng=1).data


@pytest.fixture
def here(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    data.to_csv("data.csv", index=False)
    return tmp_path


# ---- fit ----


def test_fit_prints_what_the_package_prints(here, capsys):
    assert main(["fit", "data.csv", FORMULA, "--rng", "0"]) == 0
    printed = capsys.readouterr()
    fit = mm.fit(FORMULA, pd.read_csv("data.csv"), rng=0)
    assert printed.out == f"{fit.summary()}\n"
    assert printed.err == ""


def test_fit_writes_what_the_package_writes(here, capsys):
    outputs = ["--out", "e.csv", "--latex", "t.tex", "--markdown", "t.md", "--html", "t.html", "--save", "f.mixmoe"]
    options = ["--rng", "0", "--cov-re", "common", "--residual", "common", "--cov-type", "nonrobust", "--alpha", "0.1"]
    assert main(["fit", "data.csv", FORMULA, *outputs, *options, "--plot", "p.png", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    data = pd.read_csv("data.csv")
    fit = mm.fit(FORMULA, data, rng=0, cov_re="common", residual="common", cov_type="nonrobust")
    written, wanted = (
        frame.astype(object).where(frame.notna(), None) for frame in (pd.read_csv("e.csv"), fit.tidy(0.1))
    )
    pd.testing.assert_frame_equal(written, wanted, check_dtype=False)
    assert (here / "t.tex").read_text() == fit.summary(0.1).as_latex()
    assert (here / "t.md").read_text() == fit.summary(0.1).as_markdown()
    assert (here / "t.html").read_text() == fit.summary(0.1).as_html()
    assert (here / "p.png").read_bytes()[1:4] == b"PNG"
    pd.testing.assert_series_equal(mm.load("f.mixmoe").params, fit.params)


def test_other_families_and_options(here, capsys):
    mm.simulate.vcmoe("well_separated", n=200, rng=1).data.to_csv("v.csv", index=False)
    assert main(["fit", "v.csv", "y ~ z1 | gate: x1 | vary: u", "--option", "bandwidth=0.3", "--rng", "0"]) == 0
    assert "VCMoE with 2 experts" in capsys.readouterr().out


def test_clusters(here, data, capsys):
    data.assign(site=data["id"] // 3).to_csv("data.csv", index=False)
    assert main(["fit", "data.csv", FORMULA, "--rng", "0", "--cluster", "site"]) == 0
    assert "sandwich over clusters" in capsys.readouterr().out
    assert main(["fit", "data.csv", FORMULA, "--cluster", "nosite"]) == 1
    assert "--cluster: the data have no column 'nosite'" in capsys.readouterr().err


def test_several_files_are_fitted_and_predicted(here, data, capsys):
    pytest.importorskip("pyarrow")
    (here / "visits").mkdir()
    for i in range(3):
        data.iloc[i::3].to_parquet(here / "visits" / f"part{i}.parquet", index=False)
    assert main(["fit", "visits/*.parquet", FORMULA, "--rng", "0", "--save", "f.mixmoe"]) == 0
    assert capsys.readouterr().out == f"{mm.fit(FORMULA, pd.read_parquet('visits'), rng=0).summary()}\n"
    assert main(["predict", "f.mixmoe", "visits", "--kind", "experts", "--out", "predicted"]) == 0
    rows = pd.concat(map(pd.read_parquet, sorted((here / "predicted").iterdir())))
    assert list(rows.columns) == ["id", "expert1", "expert2"]
    assert len(rows) == len(data)
    assert main(["predict", "f.mixmoe", "visits/*.parquet"]) == 2
    assert "give --out FOLDER" in capsys.readouterr().err
    assert main(["fit", "nothing/*.parquet", FORMULA]) == 2
    assert "no file matches 'nothing/*.parquet'" in capsys.readouterr().err
    assert main(["fit", "visits/*.parquet", FORMULA, "--cluster", "site"]) == 1
    assert "no column 'site'" in capsys.readouterr().err


def test_a_fit_that_did_not_converge_has_its_own_code(here, capsys):
    mm.datasets.load("pbcseq").to_csv("pbcseq.csv", index=False)
    formula = "bili ~ year | gate: age | re: (1 + year | id)"
    options = ["--rng", "0", "--max-iter", "2", "--starts", "2", "--out", "e.csv", "--quiet"]
    assert main(["fit", "pbcseq.csv", formula, *options]) == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "mixmoe: warning: The optimiser stopped before it converged" in printed.err
    assert "mixmoe: note: Standard errors: sandwich" in printed.err
    assert (here / "e.csv").exists()


def test_strict_counts_every_flag(here, capsys):
    command = ["fit", "data.csv", "y ~ time | re: (1 + time | id)", "--experts", "4", "--rng", "0", "--starts", "2"]
    assert main([*command, "--quiet", "--strict"]) == 3
    assert "mixmoe: warning:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nofile.csv", FORMULA], 1, "the file 'nofile.csv' is not there; name a file with the data"),
        (["data.csv", "y ~ nocolumn"], 1, "'nocolumn', which is not a column of the data"),
        (["data.csv", "y ~ time | gaet: z1"], 2, "^^^^"),
        (["data.csv", "y ~ __import__('os')"], 2, "calls __import__ of Python; formulas know"),
        (["data.csv", "y ~ {time}"], 2, "code in braces is not allowed"),
        (["data.csv", FORMULA, "--cov-re", "none"], 2, "cov_re must be one of 'expert'"),
        (["data.csv", FORMULA, "--alpha", "2"], 2, "alpha"),
        (["data.csv", FORMULA, "--latex", "no/where.tex"], 2, "--latex 'no/where.tex' cannot be written: its folder"),
        (["data.csv", FORMULA, "--out", "."], 2, "--out '.' cannot be written: it is a folder"),
        (["data.csv", FORMULA, "--out", "e.doc"], 2, "--out must end in one of .csv, .tsv"),
        (["data.csv", FORMULA, "--plot", "-"], 2, "--plot cannot go to standard output"),
        (["data.csv", FORMULA, "--option", "context={}"], 2, "--option context=... is not allowed"),
        (["data.csv", FORMULA, "--option", "nosuch=1"], 2, "fit has no option 'nosuch'"),
        (["data.doc", FORMULA], 2, "'data.doc' has none of the endings .csv"),
    ],
)
def test_what_goes_wrong_is_said_without_a_traceback(arguments, code, message, here, capsys):
    assert main(["fit", *arguments]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("mixmoe: error: ")
    assert message in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("arguments", [[], ["nosuch"], ["fit", "data.csv"], ["fit", "d.csv", "y~x", "--option", "x"]])
def test_wrong_use_ends_with_two(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: mixmoe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "d.csv", "y~x", "--errors-dist", "t"], "given as --option errors_dist=VALUE; see mixmoe fit --help"),
        (["select", "d.csv", "y~x", "--errors-by=expert"], "given as --option errors_by=VALUE"),
        (["predict", "fit.mixmoe", "d.csv", "--knd", "mean"], "mixmoe predict has no --knd; see mixmoe predict --help"),
        (["fit", "d.csv", "y~x", "z"], "mixmoe fit does not know what 'z' is"),
    ],
)
def test_options_without_a_flag_of_their_own(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_interruption(monkeypatch, here, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mixmoe.cli.main.read_data", interrupted)
    assert main(["describe", "data.csv"]) == INTERRUPTED
    assert capsys.readouterr().err == "mixmoe: error: interrupted\n"


# ---- select ----


def test_selection(here, data, capsys):
    outputs = ["--out", "c.csv", "--latex", "c.tex", "--plot", "c.png", "--save", "best.mixmoe", "--report", "b.html"]
    options = ["--experts", "1:2", "--residual", "expert,common", "--rng", "0", "--starts", "4"]
    assert main(["select", "data.csv", FORMULA, *options, *outputs]) == 0
    printed = capsys.readouterr()
    residual = ["expert", "common"]
    found = mm.select(FORMULA, pd.read_csv("data.csv"), [1, 2], residual=residual, rng=0, starts=4, progress=False)
    assert printed.out == f"{found.summary()}\n"
    frame = pd.read_csv("c.csv")
    np.testing.assert_allclose(frame["bic"], found.to_frame()["bic"])
    assert mm.load("best.mixmoe").bic == pytest.approx(frame["bic"].min())
    assert "Choice of the model" in (here / "b.html").read_text()
    assert (here / "c.tex").stat().st_size > 0


def test_selection_among_families(here, capsys):
    counts = mm.simulate.memoe("count", n_subjects=40, rng=1).data
    counts.to_csv("counts.csv", index=False)
    options = ["--experts", "1", "--family", "poisson,negativebinomial", "--offset", "x1", "--out", "c.csv", "--quiet"]
    assert main(["select", "counts.csv", "y ~ time | re: (1 | id)", *options]) == 0
    frame = pd.read_csv("c.csv")
    assert list(frame["family"]) == ["poisson", "negbinomial"]
    alone = mm.fit("y ~ time | re: (1 | id)", counts, 1, family="poisson", offset="x1")
    assert frame["bic"][0] == pytest.approx(alone.bic, abs=1e-3)


def test_selection_that_fails(here, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["select", "data.csv", FORMULA, "--experts", "two"])
    assert ended.value.code == 2
    assert "must be numbers such as 1:4 or 1,2,4, got 'two'" in capsys.readouterr().err
    assert main(["select", "data.csv", FORMULA, "--criterion", "cv"]) == 2
    assert "--criterion cv needs --folds" in capsys.readouterr().err
    assert main(["select", "data.csv", "y ~ {time}"]) == 2
    assert "code in braces" in capsys.readouterr().err


# ---- predict ----


def test_predictions(here, data, capsys):
    fit = mm.fit(FORMULA, data, rng=0)
    fit.save("f.mixmoe", data=False)
    command = ["predict", "f.mixmoe", "data.csv", "--fit-data", "data.csv", "--keep", "time"]
    assert main([*command, "--kind", "experts"]) == 0
    frame = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert list(frame.columns[:2]) == ["id", "time"]
    np.testing.assert_allclose(frame["expert1"], fit.predict(data, kind="experts")["expert1"])
    past = data[data["time"] < 2]
    past.to_csv("past.csv", index=False)
    options = ["--kind", "subject", "--history", "past.csv", "--interval", "prediction", "--out", "p.json"]
    assert main([*command, *options]) == 0
    wanted = fit.predict(data, kind="subject", history=past, interval="prediction")
    np.testing.assert_allclose(pd.read_json("p.json")["mean_low"], wanted["mean_low"])


def test_predictions_of_rows_whose_history_is_themselves(here, capsys):
    frame = mm.simulate.vcmoe("well_separated", n=200, rng=1).data
    mm.fit("y ~ z1 | gate: x1 | vary: u", frame, bandwidth=0.3, rng=0).save("v.mixmoe")
    frame.to_csv("v.csv", index=False)
    assert main(["predict", "v.mixmoe", "v.csv", "--kind", "mean"]) == 0
    assert capsys.readouterr().out.startswith("mean")
    assert main(["predict", "v.mixmoe", "v.csv", "--kind", "probabilities", "--history", "v.csv"]) == 0
    printed = pd.read_csv(io.StringIO(capsys.readouterr().out))
    expected = mm.load("v.mixmoe").responsibilities
    np.testing.assert_allclose(printed[["probability1", "probability2"]], expected, rtol=1e-6)
    frame.head(3).to_csv("few.csv", index=False)
    assert main(["predict", "v.mixmoe", "v.csv", "--history", "few.csv"]) != 0
    assert "history" in capsys.readouterr().err


def test_what_is_no_fit(here, capsys):
    assert main(["predict", "data.csv", "data.csv"]) == 1
    assert "is not a saved fit of mixmoe" in capsys.readouterr().err


# ---- describe ----


def test_description_counts_right(here, capsys):
    frame = pd.DataFrame(
        {
            "who": ["b", "a", "a", "b", "c", None],
            "when": [4.0, 0.0, 1.0, 1.0, 2.0, 3.0],
            "sex": ["f", "m", "m", "f", "m", "f"],
            "x": [1.0, 2.0, np.nan, 1.0, 5.0, 6.0],
            "w": [1, 1, 2, 3, 3, 3],
        }
    )
    frame.to_csv("small.csv", index=False)
    assert main(["describe", "small.csv", "--id", "who", "--time", "when"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Subjects (who): 3" in text
    assert "Rows without subject: 1" in text
    assert "Complete rows: 4" in text
    assert "Visits per subject: median 2 (1 to 2)" in text
    assert "Time between visits: median 2 (1 to 3)" in text
    assert "1 visit 1 0.333 0.333" in text
    assert "sex text 0 2 m: 2, f: 1 constant" in text  # counted by subject, the row without one left out
    # Words that do not fit beside one another go on below.
    assert "x numbers 1 (16.7 %) 4 2.667 (SD 2.082), 1 constant where to 5 known" in text
    assert "w whole numbers 0 3 2.167 (SD 0.9832), varies (2 subjects) 1 to 3" in text


def test_description_refuses_what_is_not_there(here, capsys):
    assert main(["describe", "data.csv", "--id", "nobody"]) == 1
    assert "the data have no column 'nobody'; they have id" in capsys.readouterr().err
    mm.datasets.load("orthodont").to_csv("o.csv", index=False)
    assert main(["describe", "o.csv", "--time", "sex"]) == 1
    assert "the column of times 'sex' must hold numbers, it holds text" in capsys.readouterr().err


# ---- files ----


def test_formats_hold_the_same_data(here, data, capsys):
    plain = data.reset_index(drop=True)
    plain.to_csv("d.csv.gz", index=False)
    plain.to_csv("d.tsv", index=False, sep="\t")
    plain.to_csv("d.txt", index=False, sep=";", decimal=",")
    plain.to_stata("d.dta", write_index=False)
    plain.to_excel("d.xlsx", index=False)
    for name in ("d.csv.gz", "d.tsv", "d.dta", "d.xlsx"):
        pd.testing.assert_frame_equal(read_data(name), plain, check_dtype=False)
    pd.testing.assert_frame_equal(read_data("d.txt", "csv", ";", ","), plain, check_dtype=False)


def test_parquet(here, data):
    pytest.importorskip("pyarrow", exc_type=ImportError)  # there, but made for another NumPy
    plain = data.reset_index(drop=True)
    plain.to_parquet("d.parquet")
    pd.testing.assert_frame_equal(read_data("d.parquet"), plain, check_dtype=False)


def test_spss(here, data):
    pyreadstat = pytest.importorskip("pyreadstat")
    plain = data.reset_index(drop=True)
    pyreadstat.write_sav(plain, "d.sav")
    pd.testing.assert_frame_equal(read_data("d.sav"), plain, check_dtype=False)
    (here / "bad.sav").write_bytes(b"nothing")
    with pytest.raises(DesignError, match=r"'bad\.sav' cannot be read as spss"):
        read_data("bad.sav")


def test_standard_input(here, data, monkeypatch, capsys):
    stream = SimpleNamespace(buffer=io.BytesIO(data.to_csv(index=False).encode()))
    monkeypatch.setattr("sys.stdin", stream)
    assert main(["fit", "-", FORMULA, "--rng", "0", "--quiet", "--out", "e.json"]) == 0
    fit = mm.fit(FORMULA, data, rng=0)
    assert json.loads((here / "e.json").read_text())[0]["estimate"] == pytest.approx(fit.params.iloc[0])
    with pytest.raises(ArgumentError, match="SPSS files cannot be read from standard input"):
        read_data("-", "spss")


@pytest.mark.parametrize("name", ["bad.dta", "bad.xlsx", "empty.csv"])
def test_damaged_files(name, here, capsys):
    (here / name).write_bytes(b"" if name.startswith("empty") else b"PK nothing")
    assert main(["describe", name]) == 1
    assert f"'{name}' cannot be read as" in capsys.readouterr().err


def test_missing_packages_are_named(here, monkeypatch):
    def missing(_):
        raise ImportError("no pyreadstat")

    monkeypatch.setattr(pd, "read_spss", missing)
    (here / "d.sav").write_bytes(b"")
    with pytest.raises(MissingExtraError, match=r"reading d\.sav needs pyreadstat.*mixmoe\[files\]"):
        read_data("d.sav")


def test_public_data(here, capsys):
    assert main(["data", "orthodont", "--out", "o.xlsx"]) == 0
    pd.testing.assert_frame_equal(pd.read_excel("o.xlsx"), mm.datasets.load("orthodont"), check_dtype=False)


# ---- networks ----

NETWORK = "y ~ time + x1 | re: (last | id)"


def test_fit_select_and_predict_networks(here, capsys):
    pytest.importorskip("torch")
    options = ["--rng", "0", "--option", "epochs=20", "--option", "baselines=false"]
    code = main(["fit", "data.csv", NETWORK, "--hidden", "3,2", *options, "--save", "net.mixmoe", "--plot", "n.png"])
    assert code == 3  # 20 epochs do not arrive
    with pytest.warns(ConvergenceWarning, match="could still rise"):
        fit = mm.fit(NETWORK, pd.read_csv("data.csv"), hidden=(3, 2), epochs=20, baselines=False, rng=0)
    assert capsys.readouterr().out == f"{fit.summary()}\n"
    asked = ["--kind", "subject", "--interval", "prediction", "--alpha", "0.1"]
    assert main(["predict", "net.mixmoe", "data.csv", *asked, "--out", "p.csv"]) == 0
    predicted = pd.read_csv("p.csv")
    assert list(predicted) == ["id", "mean", "mean_se", "mean_low", "mean_high"]
    own = fit.predict(kind="subject", interval="prediction", alpha=0.1)
    np.testing.assert_allclose(predicted["mean_low"], own["mean_low"], rtol=1e-6)
    outputs = ["--out", "c.csv", "--save", "best.mixmoe", "--plot", "c.png"]
    assert main(["select", "data.csv", NETWORK, "--hidden", "linear", "2", *options[:4], *outputs]) == 0
    assert "held-out squared error" in capsys.readouterr().out
    table = pd.read_csv("c.csv")
    assert table["hidden"].tolist() == ["()", "(2,)"]
    best = mm.load("best.mixmoe").model.network.hidden
    assert str(best) == table["hidden"][table["validation"].idxmin()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hidden", "10;5"], "must be widths such as 10,5, or linear, got '10;5'"),
        (["--hidden", "4", "--experts", "2"], "NME has no experts, got experts=2; leave it out"),
        (["--hidden", "4", "--cov-type", "robust"], "fit has no option 'cov_type'"),
        (["--hidden", "0"], "hidden must hold positive whole numbers"),
    ],
)
def test_wrong_use_of_networks(here, capsys, options, message):
    pytest.importorskip("torch")
    try:
        code = main(["fit", "data.csv", NETWORK, *options])
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert message in capsys.readouterr().err


# ---- models with vary: ----

VARYING = "y ~ z1 | gate: x1 | vary: u"


@pytest.fixture
def varying(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = mm.simulate.vcmoe("well_separated", n=200, rng=1).data.assign(id=np.arange(200) // 4)
    data.to_csv("v.csv", index=False)
    return data


@pytest.mark.parametrize(
    ("text", "value"),
    [(".3", 0.3), ("0.3", 0.3), ("inf", np.inf), ("1e-2", 0.01), ("cv", "cv"), ("true", True), ("False", False)],
)
def test_values_of_options(text, value):
    assert read_value(text) == value


@pytest.mark.parametrize("bandwidth", ["inf", ".4"])
def test_clusters_by_name_and_bandwidths(varying, bandwidth, capsys):
    options = ["--cluster", "id", "--option", f"bandwidth={bandwidth}", "--rng", "0", "--starts", "2"]
    assert main(["fit", "v.csv", VARYING, *options, "--save", "f.mixmoe"]) == 0
    assert "50 clusters" in capsys.readouterr().out
    assert mm.load("f.mixmoe").bandwidth == float(bandwidth)


def test_candidates_differ_in_bandwidth(varying, capsys):
    options = ["--experts", "1:2", "--option", "bandwidth=0.3,.6", "--option", "n_grid=10", "--cluster", "id"]
    assert main(["select", "v.csv", VARYING, *options, "--rng", "0", "--starts", "2", "--out", "c.csv"]) == 0
    assert sorted(set(pd.read_csv("c.csv")["bandwidth"])) == [0.3, 0.6]


def test_clusters_of_candidates_without_an_index(varying, capsys):
    assert main(["select", "v.csv", "y ~ z1", "--experts", "1", "--cluster", "id", "--rng", "0"]) == 0
    assert main(["select", "v.csv", "y ~ z1", "--experts", "1", "--cluster", "nobody"]) == 1
    assert "--cluster: the data have no column 'nobody'" in capsys.readouterr().err


def test_predictions_beyond_the_index(varying, data, capsys):
    fit = mm.fit(VARYING, varying, bandwidth=0.4, n_grid=10, rng=0, starts=2)
    fit.save("f.mixmoe")
    outside = varying.head(3).assign(u=1.5)
    outside.to_csv("n.csv", index=False)
    assert main(["predict", "f.mixmoe", "n.csv", "--out", "p.csv"]) == 1
    assert main(["predict", "f.mixmoe", "n.csv", "--extrapolate", "--out", "p.csv"]) == 0
    np.testing.assert_allclose(pd.read_csv("p.csv")["mean"], fit.predict(outside, extrapolate=True)["mean"])
    mm.fit(FORMULA, data, experts=1).save("m.mixmoe")
    data.head(3).to_csv("n.csv", index=False)
    assert main(["predict", "m.mixmoe", "n.csv", "--extrapolate"]) == 2
    assert "--extrapolate: predict of MEMoE has no such option" in capsys.readouterr().err


def test_numbers_are_read_as_they_were_written(here, data):
    pd.testing.assert_frame_equal(
        read_data("data.csv"), data.reset_index(drop=True), check_exact=True, check_dtype=False
    )
