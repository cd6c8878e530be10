"""The report: valid, self-contained, escaped, complete, and shown by a browser without complaint."""

import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import html5lib
import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.design.formula import parse_formula
from mixmoe.errors import ArgumentError, MissingExtraError, MixmoeWarning
from mixmoe.output.plots import draw
from mixmoe.output.plots_in_files import inlined, palette, svg
from mixmoe.output.records import Curve, Table
from mixmoe.output.summary import Summary
from mixmoe.report.checklists import grolts, metric_of_time, smart_lca
from mixmoe.report.described import (
    attrition_table,
    distinct_ends,
    elsewhere,
    end_points_table,
    profile_table,
)
from mixmoe.report.evidence import _time, code, gather
from mixmoe.report.reporting import _small, in_words
from tests.fake_model import make_results

EVIL = "<script>alert(1)</script>"
COLUMN = 'x"><img src=x onerror=alert(2)>'
TIME = "</style><script>t"
GROLTS_KEYS = re.findall(r"\w+", "1 2 3a 3b 3c 4 5 6a 6b 7 8 9 10 11 12 13 14a 14b 14c 15 16")


def evil_data():
    data = mm.simulate.memoe("separated", n_subjects=40, n_visits=4, rng=1).data
    data = data.rename(columns={"x1": COLUMN, "time": TIME})
    data["id"] = [f"{EVIL}&{i}" for i in data["id"]]
    data["g"] = np.where(data["id"].str.len() % 2, "<b>level</b>", "--><i>&amp;")
    data.loc[data.index[3], "y"] = np.nan
    return data


@pytest.fixture(scope="module")
def evil():
    formula = f"y ~ `{TIME}` + `{COLUMN}` + C(g) | gate: z1 | re: (1 | id)"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        return mm.fit(formula, evil_data(), experts=2, rng=0)


@pytest.fixture(scope="module")
def plain():
    data = mm.simulate.memoe("separated", n_subjects=40, n_visits=4, rng=1).data
    return mm.fit("y ~ time | gate: z1 | re: (1 | id)", data, experts=2, rng=5)


def written(fit, folder, **options):
    return fit.report(folder / "report.html", **options).read_text(encoding="utf-8")


def text_of(page):
    """What a reader sees, without markup."""
    tree = html5lib.parse(page, namespaceHTMLElements=False)
    for parent in tree.iter():
        for child in list(parent):
            if child.tag == "style":
                parent.remove(child)
    return " ".join("".join(tree.itertext()).split())


def elements(page):
    return list(html5lib.parse(page, namespaceHTMLElements=False).iter())


# ---- safety ----


def test_nothing_of_the_data_is_markup(evil, tmp_path):
    page = written(evil, tmp_path, title=EVIL, author=EVIL, notes=EVIL, answers={"G1": EVIL})
    html5lib.HTMLParser(strict=True).parse(page)
    tags = {str(element.tag) for element in elements(page)}
    assert not tags & {"script", "img", "b", "i", "iframe", "object", "link", "form"}
    attributes = {str(name) for element in elements(page) for name in element.attrib}
    assert not [name for name in attributes if name.startswith("on")]
    seen = text_of(page)
    for text in (f"{EVIL}&", COLUMN, TIME, "<b>level</b>", "--><i>&amp;"):
        assert text in seen


def test_comments_and_text_of_figures_are_no_markup(evil):
    drawing = svg(evil.plot)
    assert "<!--" not in drawing
    assert TIME not in drawing
    assert "script" not in drawing


def test_nothing_is_requested(plain, tmp_path):
    page = written(plain, tmp_path)
    assert re.findall(r"(?:src|action|data|poster)=", page) == []
    links = [e.attrib["href"] for e in elements(page) if "href" in e.attrib]
    assert all(link.startswith("#") for link in links)
    assert "url(http" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_subjects_are_named_only_if_allowed(evil, tmp_path):
    assert f"{EVIL}&" in text_of(written(evil, tmp_path))
    assert f"{EVIL}&" not in text_of(written(evil, tmp_path, subjects=False))


# ---- form ----


def test_structure_for_all_readers(plain, tmp_path):
    page = written(plain, tmp_path)
    found = elements(page)
    root = next(e for e in found if e.tag == "html")
    assert root.attrib["lang"] == "en"
    assert [e.tag for e in found if e.tag in ("h1", "h2", "h3", "h4")] == ["h1"] + ["h2"] * 11
    drawings = [e for e in found if e.attrib.get("role") == "img"]
    assert len(drawings) == 5
    assert all(len(e.attrib["aria-label"]) > 40 for e in drawings)
    assert all(e.attrib.get("scope") in ("col", "row") for e in found if e.tag == "th")
    anchors = {e.attrib["href"][1:] for e in found if e.tag == "a"}
    names = [e.attrib["id"] for e in found if "id" in e.attrib]
    assert anchors <= set(names)
    assert len(names) == len(set(names))
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


@pytest.mark.skipif(shutil.which("vnu") is None, reason="the Nu HTML checker (vnu) is not installed")
def test_nu_html_checker(evil, tmp_path):
    written(evil, tmp_path)
    done = subprocess.run(["vnu", str(tmp_path / "report.html")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def shown(path, *options):
    """Console messages of a browser that shows a page, and its picture."""
    picture = path.with_suffix(".png")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *options]
    command += ["--virtual-time-budget=5000", "--window-size=1100,3000", f"--screenshot={picture}", path.as_uri()]
    log = path.with_suffix(".log")
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "start_new_session": True}
    # Helpers of a browser may outlive it and hold its pipes, for whose end one would wait forever: a file has no end.
    with log.open("w", encoding="utf-8") as stderr, subprocess.Popen(command, stderr=stderr, **quiet) as browser:
        try:
            assert browser.wait(timeout=120) == 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(browser.pid, signal.SIGKILL)
    console = re.findall(r"CONSOLE.*", log.read_text(encoding="utf-8", errors="replace"))
    return SimpleNamespace(console=console, picture=picture)


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
def test_browser_shows_it_without_complaint(evil, tmp_path):
    from matplotlib.image import imread

    pages = {}
    path = evil.report(tmp_path / "report.html", title=EVIL)
    for name, options in (("light", []), ("dark", ["--blink-settings=preferredColorScheme=0"])):
        seen = shown(path, *options)
        assert seen.console == []
        pages[name] = imread(seen.picture)[..., :3]
    assert np.median(pages["light"]) > 0.9
    assert np.median(pages["dark"]) < 0.2
    assert (pages["light"].std(axis=(1, 2)) > 0.02).mean() > 0.3


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
def test_browser_would_complain(tmp_path):
    path = tmp_path / "bad.html"
    path.write_text('<!DOCTYPE html><title>bad</title><script>console.error("boom")</script>', encoding="utf-8")
    assert "boom" in shown(path).console[0]


# ---- contents ----


def test_sections_and_numbers(plain, tmp_path):
    seen = text_of(written(plain, tmp_path, author="A. Author", notes="First.\n\nSecond."))
    for heading in ("Overview", "Model", "Data", "Estimates", "Figures", "Classification", "GRoLTS checklist"):
        assert heading in seen
    assert "First. Second." in seen
    assert "A. Author; mixmoe," in seen
    assert f"{plain.llf:.3f}" in seen
    assert f"{plain.bic:.3f}" in seen
    for name in ("numpy", "statsmodels", "formulaic"):
        assert name in seen
    assert plain.model.formula.text in seen


@pytest.mark.filterwarnings("ignore::mixmoe.errors.MixmoeWarning")
@pytest.mark.parametrize(
    ("data", "options", "column"),
    [
        ("in order", {}, "time"),
        ("shuffled", {}, None),  # what goes up and down from row to row may be any covariate
        ("shuffled", {"errors": "car1", "time": "time"}, "time"),
    ],
)
def test_what_the_report_takes_for_the_time(data, options, column):
    frame = mm.simulate.memoe("separated", n_subjects=30, n_visits=4, rng=1).data
    frame = frame if data == "in order" else frame.sample(frac=1.0, random_state=0)
    fit = mm.fit("y ~ time | re: (1 | id)", frame, experts=1, **options)
    evidence = gather(fit, 0.05, None, None, None, True)
    assert evidence.time == column
    assert (evidence.times is None) == (column is None)


@pytest.mark.filterwarnings("ignore::mixmoe.errors.MixmoeWarning")
def test_the_first_row_is_the_first_visit_only_where_the_order_is_known():
    frame = mm.simulate.memoe("separated", n_subjects=30, rng=1).data
    frame = frame[(frame["time"] < 3) | (frame["id"] % 2 == 0)].sample(frac=1.0, random_state=0)
    seen = {}
    for options in ({}, {"time": "time"}):
        fit = mm.fit("y ~ time + x1 | gate: z1 | re: (1 | id)", frame, experts=2, rng=0, starts=4, **options)
        e = gather(fit, 0.05, None, None, None, True)
        profile = profile_table(e.rows, fit._responsibilities_described, e.times, "subjects")
        tables, columns = (attrition_table(e.rows, e.times), profile), {"time", "x1", "z1"}
        seen[bool(options)] = [{word.split(",")[0] for word in table.index} & columns for table in tables]
        assert ("give time=" in tables[0].notes[-1]) == ("give time=" in metric_of_time(e)) == (not options)
    # x1 changes within subjects; at the first visit the time is zero for all, so that it has no rank correlation.
    assert seen == {False: [{"z1"}, {"z1"}], True: [{"x1", "z1"}, {"time", "x1", "z1"}]}


@pytest.mark.filterwarnings("ignore::mixmoe.errors.MixmoeWarning")
def test_a_covariate_is_no_time():
    frame = mm.simulate.memoe("separated", n_subjects=30, n_visits=4, rng=1).data
    frame["stress"] = np.random.default_rng(0).normal(size=len(frame))
    fit = mm.fit("y ~ stress | re: (1 | id)", frame, experts=1)
    assert gather(fit, 0.05, None, None, None, True).time is None
    timed = mm.fit("y ~ stress | re: (1 | id)", frame, experts=1, errors="car1", time="time")
    assert gather(timed, 0.05, None, None, None, True).time == "time"


def test_code_repeats_a_network(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    frame = mm.simulate.memoe("separated", n_subjects=10, n_visits=4, rng=1).data
    fit = mm.fit("y ~ time | re: (last | id)", frame, hidden=(), rng=0)
    frame.to_csv(tmp_path / "data.csv", index=False)
    monkeypatch.chdir(tmp_path)
    exec(compile(code(gather(fit, 0.05, None, None, None, True)), "code", "exec"), {})  # it checks the log-likelihood


def test_code_repeats_the_fit(plain, tmp_path, monkeypatch):
    page = written(plain, tmp_path, figures=False)
    blocks = [e for e in elements(page) if e.tag == "code"]
    code = next("".join(e.itertext()) for e in blocks if "read_csv" in "".join(e.itertext()))
    assert "rng=5," in code
    monkeypatch.chdir(tmp_path)
    plain.model.design.frame.to_csv("data.csv", index=False)
    names = {}
    exec(compile(code.replace("print(fit.summary())", ""), "report", "exec"), names)
    pd.testing.assert_series_equal(names["fit"].params, plain.params)


def test_seed_is_kept_in_files(plain, tmp_path):
    plain.save(tmp_path / "fit.mixmoe")
    loaded = mm.load(tmp_path / "fit.mixmoe").em.starts
    assert (loaded.seed, loaded.asked) == (5, plain.em.starts.asked)
    unseeded = mm.fit("y ~ time | re: (1 | id)", plain.model.design.frame, experts=1, starts=3)
    assert (unseeded.em.starts.seed, unseeded.em.starts.asked) == (None, 3)
    assert "    starts=3," in code(gather(unseeded, 0.05, None, None, None, True))
    assert "The seed was not kept" in text_of(written(unseeded, tmp_path, figures=False))


def test_every_item_of_grolts_is_answered(plain):
    items = grolts(gather(plain, 0.05, None, None, None, True))
    assert [item.key for item in items] == [f"G{key}" for key in GROLTS_KEYS]
    assert all(len(item.answer) > 15 for item in items)
    status = {item.key: item.status for item in items}
    assert {key for key, value in status.items() if value == "not reported"} == {
        *("G3a", "G6a", "G6b", "G7", "G10", "G11", "G14b")
    }
    assert {key for key, value in status.items() if value == "in part"} == {"G1", "G3b", "G12"}
    reasons = [item.answer for item in items if item.status == "not reported"]
    assert all(re.match(r"Not reported: .{20,}", reason) for reason in reasons)


def test_every_item_of_smart_lca_is_answered(plain):
    items = smart_lca(gather(plain, 0.05, None, None, {"S1d": "All that there were."}, True))
    assert len({item.key for item in items}) == len(items) == 32
    assert all(len(item.answer) > 15 for item in items)
    answered = {item.key: item for item in items}
    assert (answered["S1d"].status, answered["S1d"].answer) == ("reported", "Author: All that there were.")
    assert answered["S1a"].status == "not reported"


class Candidates:
    """What `mixmoe.select` returns, in outline."""

    def __init__(self, fits):
        self.candidates = [SimpleNamespace(results=fit, label=f"{fit.model.n_experts} experts") for fit in fits]

    def to_frame(self):
        made = [(c.results.model.n_experts, c.results.model.formula.text) for c in self.candidates]
        return pd.DataFrame(made, columns=["experts", "formula"])

    def plot(self):
        return self.candidates[-1].results.plot()

    def summary(self):
        rows = tuple((c.results.bic,) for c in self.candidates)
        index = tuple(c.label for c in self.candidates)
        return Summary("Choice", (Table("selection", "Candidates", ("BIC",), index, rows, (".3f",)),), ("A note.",))


def test_selection_answers_what_one_fit_cannot(plain, tmp_path):
    data = plain.model.design.frame
    fits = [mm.fit("y ~ 1 | re: (1 | id)", data, experts=1), mm.fit("y ~ time | re: (0 | id)", data, experts=1), plain]
    distal = SimpleNamespace(summary=lambda: Summary("Distal outcome of z", (), ("Corrected.",)))
    options = {"selection": Candidates(fits), "distal": distal}
    page = written(plain, tmp_path, **options)
    seen = text_of(page)
    assert page.count("<figure>") == 5 + 4
    assert "Candidates" in seen
    assert "Distal outcome of z" in seen
    items = {i.key: i for i in grolts(gather(plain, 0.05, options["selection"], distal, None, True))}
    assert items["G11"].answer == "3 models with 1, 2 experts, with the one-expert solution."
    assert {items[key].status for key in ("G6a", "G7", "G10", "G12", "G14b")} == {"reported"}
    assert items["G6b"].status == "not reported"


def vcmoe():
    data = mm.simulate.vcmoe("well_separated", n=200, rng=1).data
    return mm.fit("y ~ z1 | gate: x1 | vary: u", data, experts=2, bandwidth=0.3, rng=0)


def nme():
    pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        data = mm.datasets.load("orthodont")
        return mm.fit("distance ~ age | re: (last | subject)", data, hidden=(2,), epochs=5, rng=0, baselines=False)


def one_expert():
    return mm.fit("reaction ~ days | re: (1 + days | subject)", mm.datasets.load("sleepstudy"), experts=1)


def rows_as_units():
    means = [[0.0, 0, 2], [9.0, 0, -1]]
    data = mm.simulate.memoe("latent_class", n_subjects=150, n_visits=1, beta=means, rng=1).data
    return mm.fit("y ~ 1", data, experts=2, rng=0)


@pytest.mark.parametrize("make", [vcmoe, nme, one_expert, rows_as_units])
def test_other_models(make, tmp_path):
    fit = make()
    page = written(fit, tmp_path)
    html5lib.HTMLParser(strict=True).parse(page)
    heads = {e.text for e in elements(page) if e.tag == "th"}
    items = {f"G{key}" for key in GROLTS_KEYS}
    courses = fit.model.spec.has_experts and fit.model.design.names.group is not None
    assert heads >= items if courses else not heads & items
    assert fit.model.formula.text in text_of(page)


def test_end_points_are_counted_once():
    ends = np.array([-10.0, -12.0, -10.0000001, -11.0, -12.0])
    np.testing.assert_array_equal(distinct_ends(ends), [-10, -11, -12])
    assert len(distinct_ends(np.zeros(0))) == 0
    assert end_points_table(distinct_ends(ends), "Ends", "").cells == ((-10.0, 0.0), (-11.0, 1.0), (-12.0, 2.0))


def test_where_the_other_starts_ended_is_said(plain):
    ends = np.array([-10.0, -10.0000001, -11.0, -30.0, -np.inf])
    em = replace(plain.em, loglik=-10.0, starts=replace(plain.em.starts, n_starts=5, n_replicated=2, ends=ends))
    assert elsewhere(em) == "Of the other starts, 2 ended 1 to 20 below the best and 1 collapsed when the search ended."
    assert elsewhere(replace(em, starts=replace(em.starts, n_replicated=5))) == ""
    assert elsewhere(replace(em, starts=replace(em.starts, ends=np.empty(0)))) == ""


def test_effects_of_the_gate_have_a_table(plain, tmp_path):
    effects = plain.gate_effects()
    (table,) = effects.tables()
    assert table.index == ("z1: expert 1", "z1: expert 2")
    np.testing.assert_allclose([row[0] for row in table.cells], effects.to_frame()["estimate"])
    assert "Average marginal effects" in text_of(written(plain, tmp_path))
    (varying,) = vcmoe().gate_effects(alpha=0.1).tables()
    assert varying.index[1].startswith("x1, u = 0.")
    assert varying.columns[-2:] == ("[0.05", "0.95]")


# ---- figures ----


@pytest.mark.parametrize("n_experts", [1, 4, 8])
def test_the_legend_of_a_small_figure_stays_inside(n_experts):
    pytest.importorskip("matplotlib").use("Agg")
    x = np.linspace(0, 1, 5)
    curves = [Curve("", f"expert {k + 1}", x, x + k, expert=k + 1) for k in range(n_experts)]
    results = SimpleNamespace(curves=lambda _: curves, plot=lambda _, ax: draw(curves, None, ax))
    figure = _small(results, "trajectories")
    figure.draw_without_rendering()
    paper, legend = figure.bbox, figure.axes[0].get_legend().get_window_extent()
    assert (legend.x0 >= paper.x0, legend.x1 <= paper.x1, legend.y1 <= paper.y1) == (True, True, True)
    assert figure.axes[0].get_window_extent().width > 0.7 * paper.width


def test_what_cannot_be_drawn_is_said(tmp_path):
    seen = text_of(written(make_results(), tmp_path))
    assert "No figure (Probability of each expert along a covariate of the gate): kind must be" in seen
    assert "No diagnostics: " in seen
    assert "Influence of single subjects: " in seen


def test_curves_in_words():
    line = Curve("p", "expert 1", np.array([0.0, 2.0]), np.array([1.5, 3.0]), xlabel="time", ylabel="y")
    bars = Curve("p", "expert 2", np.arange(2.0), np.array([4.0, 5.0]), categories=("a", "b"))
    words = in_words([line, bars])
    assert words == "y against time. expert 1: 1.5 at 0 to 3 at 2; expert 2: 4 at a, 5 at b."


def test_inlined_figures_do_not_share_names():
    image = '<svg id="a"><use href="#b"/><path style="fill: #0072B2" clip-path="url(#c)"/></svg>'
    made = inlined(image, "i1")
    assert made == (
        '<svg fill="currentColor" id="i1-a"><use href="#i1-b"/>'
        '<path style="fill: var(--h0072b2)" clip-path="url(#i1-c)"/></svg>'
    )
    assert palette([image], dark=False) == "--h0072b2: #0072b2;"


def test_colours_read_on_a_dark_page():
    image = "#ffffff #000000 #0072b2 #d55e00"
    dark = dict(re.findall(r"--h(\w{6}): #(\w{6});", palette([image], dark=True)))
    brightness = {colour: sum(int(to[i : i + 2], 16) for i in (0, 2, 4)) / 765 for colour, to in dark.items()}
    assert brightness["ffffff"] < 0.15
    assert min(brightness[colour] for colour in ("000000", "0072b2", "d55e00")) > 0.5


def test_figures_are_forgotten(plain):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    assert svg(plain.plot) == svg(plain.plot)
    assert plt.get_fignums() == before


def test_figures_need_matplotlib(plain, tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match="a figure needs matplotlib"):
        written(plain, tmp_path)
    assert "Estimates" in written(plain, tmp_path, figures=False)


# ---- refusals ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answers": {"G99": "x"}}, "answers has 'G99'; the items are G1, G2, G3a"),
        ({"answers": "x"}, "answers must map items such as 'G1' to texts, got str"),
        ({"selection": 3}, "selection must be what mm.select returned, got int"),
        ({"distal": [3]}, "distal must be what fit.distal returned, got int"),
        ({"alpha": 2}, "alpha"),
    ],
)
def test_wrong_arguments(options, message, plain, tmp_path):
    with pytest.raises(ArgumentError, match=re.escape(message)):
        plain.report(tmp_path / "r.html", **options)


def test_rows_without_subjects_have_no_courses_to_report(tmp_path):
    fit = vcmoe()
    seen = text_of(written(fit, tmp_path, figures=False))
    assert "GRoLTS checklist" not in seen
    assert "SMART-LCA checklist" in seen
    # Starts are compared before the fit has gone on, and the EM is none whose every step gains.
    first, *_ = fit.em.starts.logliks
    assert f"{first:.3f}" in seen
    assert first != pytest.approx(fit.llf, abs=5e-4)
    assert f"whose log-likelihood is {fit.llf:.3f}" in seen
    assert "Last change of the log-likelihood" in seen
    with pytest.raises(ArgumentError, match="answers has 'G1', an item of GRoLTS, which is about courses of subjects"):
        fit.report(tmp_path / "r.html", answers={"G1": "months"})


def test_wrong_ending(plain):
    with pytest.raises(ArgumentError, match=r"'report\.pdf'; a report is a web page, which a browser prints as PDF"):
        plain.report("report.pdf")


def diary():
    """Days in the data, a stress that goes up and down, and a mood that follows both."""
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"person": np.repeat(np.arange(30), 6), "day": np.tile(np.arange(1, 7), 30)})
    data["stress"] = rng.normal(size=180)
    return data.assign(mood=data["stress"] + 0.1 * data["day"] + rng.normal(size=180))


@pytest.mark.parametrize(
    ("formula", "options", "column"),
    [
        ("mood ~ stress | re: (1 | person)", {"errors": "ar1", "time": "day"}, "day"),
        ("mood ~ stress | re: (1 + day | person)", {}, "day"),
        ("mood ~ stress | re: (1 | person)", {}, None),
    ],
)
def test_time_is_what_orders_the_visits_and_no_covariate(formula, options, column):
    data = diary()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evidence = gather(mm.fit(formula, data, 1, progress=False, **options), 0.05, None, (), None, True)
    assert evidence.time == column
    if column is not None:
        np.testing.assert_array_equal(evidence.times, data["day"])


@pytest.mark.parametrize(("seq", "time"), [("beep", "beep"), ("beep / day", None)])
def test_an_order_that_begins_anew_each_day_is_no_time_of_visits(seq, time):
    formula = parse_formula(f"state ~ x | re: (last | id) | seq: {seq}")
    design = SimpleNamespace(recipe=SimpleNamespace(aux={}))
    assert _time(SimpleNamespace(model=SimpleNamespace(formula=formula), _described=design)) == time
