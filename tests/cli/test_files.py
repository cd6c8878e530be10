"""Files of the command line: whole numbers that stay apart, cells that compute nothing, names of what is missing."""

import io
import sys
from pathlib import Path

import pandas as pd
import pytest

from mixmoe.cli.files import read_data, write_frame
from mixmoe.errors import DesignError

LARGE = 2**53


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "-"])
def test_labels_beyond_2_53_stay_apart_where_one_is_missing(name, monkeypatch):
    sep = "\t" if name.endswith("tsv") else ","
    text = f"id{sep}y\n" + "".join(f"{LARGE + i}{sep}{i}.5\n" for i in range(3)) + f"{sep}1\n"
    if name == "-":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    else:
        Path(name).write_text(text, encoding="utf-8")
    read = read_data(name)
    assert read["id"].tolist()[:3] == [LARGE, LARGE + 1, LARGE + 2]
    assert read["id"].isna().tolist() == [False, False, False, True]
    assert read["y"].tolist() == [0.5, 1.5, 2.5, 1.0]


@pytest.mark.parametrize("name", ["a.sav", "a.parquet", "a.csv", "a.xlsx", "a.dta"])
def test_a_missing_file_is_named(name):
    with pytest.raises(DesignError, match=f"the file '{name}' is not there; name a file with the data"):
        read_data(name)


def test_texts_that_spreadsheets_would_compute(capsys):
    frame = pd.DataFrame({"=name": ["=1+1", "@sum", "-x", "-2.5", "plain", None], "n": [-1.0, 2, 3, 4, 5, 6]})
    write_frame(frame, "a.csv")
    back = pd.read_csv("a.csv")
    assert back.columns.tolist() == ["'=name", "n"]
    assert back["'=name"].tolist()[:5] == ["'=1+1", "'@sum", "'-x", "-2.5", "plain"]
    assert back["n"].tolist() == frame["n"].tolist()
    write_frame(frame, "-")
    assert capsys.readouterr().out.splitlines()[1] == "'=1+1,-1.0"
    write_frame(frame, "a.json")
    assert pd.read_json("a.json")["=name"][0] == "=1+1"
