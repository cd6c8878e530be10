"""The numbers of other programs that the page on coming from elsewhere shows are those stored here."""

import json
import re
from itertools import chain
from pathlib import Path

import pytest

HERE = Path(__file__).parent
VIGNETTE = HERE.parents[1] / "vignettes" / "start" / "coming.ipynb"
SOURCES = ["".join(cell["source"]) for cell in json.loads(VIGNETTE.read_text(encoding="utf-8"))["cells"]]


def stored(file, name):
    return next(case for case in json.loads((HERE / file).read_text())["cases"] if case["name"] == name)


def shown(name):
    """Numbers between the name and the closing bracket of its value."""
    source = next(source for source in SOURCES if name in source)
    value = re.search(rf"{name} [\[{{].*?(?:\n[\]}}]|\]  #|\]\n)", source, flags=re.DOTALL)[0]
    return [float(number) for number in re.findall(r"-?\d+\.\d{6,}", value)]


def test_lme4():
    case = stored("lme4.json", "sleep_slope")
    wanted = [case["loglik"], *case["beta"], case["D"][0][0], case["D"][1][1], case["sigma"]]
    assert shown("LME4 =") == pytest.approx(wanted, rel=1e-13)
    assert shown("LME4_ERRORS =") == pytest.approx(stored("lme4.json", "pbc_slope")["se"], rel=1e-13)


def test_flexmix():
    case = stored("flexmix.json", "pbc_three")
    wanted = [case["loglik"], *chain(*case["beta"], *case["gamma"]), *case["sigma"]]
    assert shown("FLEXMIX =") == pytest.approx(wanted, rel=1e-12)
    runs = json.loads((HERE / "defaults.json").read_text())
    assert shown("DEFAULT_RUNS =") == pytest.approx(runs["logliks"], rel=1e-13)
    assert set(runs["experts"]) == {3}
