"""Choosing among candidates: the table, carried starts, workers, interruption, failures."""

import inspect
import json
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import mixmoe as mm
from mixmoe.errors import ArgumentError, DesignError, MixmoeWarning
from mixmoe.families import families
from mixmoe.mixed.likelihood.observed import evaluate
from mixmoe.mixed.search import _ROUGH
from mixmoe.mixed.starting_values import carried_starts, fewer_experts, fit_one_expert
from mixmoe.mixture.estimate import EMFit, Flag, Starts, better, clc
from mixmoe.mixture.resampling import Journal, run_calls

SIM = mm.simulate.memoe("moderate", n_subjects=80, n_visits=4, rng=5)
FORMULA = "y ~ time | gate: z1 | re: (1 | id)"
COLUMNS = ["formula", "experts", "llf", "parameters", "aic", "bic", "sabic", "icl", "clc", "entropy", "smallest"]
COLUMNS += ["shares", "replicated", "starts", "converged", "cv", "cv_se", "seconds", "flags", "reason"]
VARYING = "y ~ z1 | gate: x1 | vary: u"
select = partial(mm.select, FORMULA, SIM.data, starts=4, rng=0)
few = partial(mm.select, FORMULA, SIM.data[SIM.data["id"] <= 40], starts=1, rng=0)


def same(a, b):
    """Whether two selections hold the same numbers."""
    drop = ["seconds"]
    pd.testing.assert_frame_equal(a.to_frame().drop(columns=drop), b.to_frame().drop(columns=drop))
    for one, other in zip(a.candidates, b.candidates, strict=True):
        if one.results is not None:
            np.testing.assert_array_equal(one.results.em.params, other.results.em.params)


@pytest.fixture(scope="module")
def table():
    return select(range(1, 4))


@pytest.fixture(scope="module")
def varying():
    return mm.simulate.vcmoe("well_separated", n=300, rng=1).data


# ---- the table ----


def test_one_row_per_candidate(table):
    frame = table.to_frame()
    assert list(frame.columns) == COLUMNS
    assert frame["experts"].tolist() == [1, 2, 3]
    assert frame["converged"].all()
    for row, candidate in zip(frame.itertuples(), table.candidates, strict=True):
        fit = candidate.results
        assert row.llf == fit.llf
        assert row.bic == fit.bic == pytest.approx(-2 * fit.llf + len(fit.params) * np.log(80))
        tau = fit.responsibilities.to_numpy()
        entropy = -np.sum(tau[tau > 0] * np.log(tau[tau > 0]))
        assert row.clc == pytest.approx(-2 * fit.llf + 2 * entropy)
        assert row.icl - row.bic == pytest.approx(2 * entropy)
        assert row.smallest == min(row.shares) == pytest.approx(tau.mean(axis=0).min())
        assert sum(row.shares) == pytest.approx(1)
        carried = 1 + 4 * (row.experts - 1)
        # two searches of two random and the carried starts each, and the starts carried from the candidate before;
        # moves count where they did not fall back
        assert row.starts >= (1 if row.experts == 1 else 2 * (2 + carried) + carried)


def test_best_is_a_fit_with_standard_errors(table):
    frame = table.to_frame()
    best = table.best("bic")
    assert best.bic == frame["bic"].min()
    assert isinstance(best, mm.MEMoEResults)
    assert np.isfinite(best.bse).all()
    assert table.best("aic").aic == frame["aic"].min()
    with pytest.raises(ArgumentError, match=r"criterion must be one of 'aic', .*, got 'hqc'"):
        table.best("hqc")
    with pytest.raises(ArgumentError, match=r"no candidate has the criterion 'cv'; give select\(\.\.\., folds=5\)"):
        table.best("cv")


def test_printing(table):
    text = str(table)
    assert text == str(table.summary())
    assert "2 experts" in text
    assert text.count("*") == 1 + 3  # one mark per criterion, and its explanation
    assert "<table>" in table._repr_html_()
    assert r"\begin{tabular}" in table.to_latex()


def test_texts_go_to_files(table, tmp_path):
    text = table.to_markdown(tmp_path / "t.md")
    assert (tmp_path / "t.md").read_text(encoding="utf-8") == text


def test_figure_has_a_line_per_criterion_and_marks_the_best(table, plt):
    figure = table.plot(("bic", "icl"))
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["BIC", "ICL"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), table.to_frame()["bic"])
    assert axes.lines[1].get_ydata()[0] == table.to_frame()["bic"].min()
    with pytest.raises(ArgumentError, match="criteria must be one of"):
        table.plot(("llf",))


@pytest.fixture
def plt(monkeypatch):
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    yield plt
    plt.close("all")


# ---- starts ----


def test_a_smaller_fit_is_a_start_of_the_same_log_likelihood():
    for options in ({}, {"cov_re": "proportional", "residual": "common"}, {"cov_re": "common"}):
        small = mm.fit("y ~ time + common(x1) | gate: z1 + z2 | re: (1 + time | id)", SIM.data, 2, rng=0, **options)
        model = small.model.with_experts(3)
        one = fit_one_expert(model.problem, _ROUGH)
        smaller = small.model.working(small.em.params)
        starts = carried_starts(model.problem, one, smaller, 2, np.random.default_rng(0))
        # the fit itself, four splits of two experts, two corners of two gate covariates
        assert starts.shape == (1 + 4 * 2 + 2 * 2, model.problem.free.size)
        nested, below = evaluate(model.problem, starts[:1]), evaluate(fewer_experts(model.problem), smaller[None])
        assert nested.loglik[0] == pytest.approx(below.loglik[0], abs=1e-8)
        assert np.abs(nested.score).max() < 1e-3 * model.problem.n_subjects
        assert evaluate(model.problem, starts[1:]).loglik.max() > nested.loglik[0]


def test_more_experts_never_fit_worse():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        small = mm.fit(FORMULA, SIM.data, 2, rng=0)
        larger = mm.fit(FORMULA, SIM.data, 3, start=small, rng=0, max_iter=1)
    assert larger.llf >= small.llf - 1e-8
    llf = select(range(1, 5), starts=1).to_frame()["llf"]
    assert (np.diff(llf) >= -1e-8).all()


def test_a_fit_with_two_experts_fewer_is_no_start():
    with pytest.raises(ArgumentError, match="start has no value for"):
        mm.fit(FORMULA, SIM.data, 3, start=mm.fit(FORMULA, SIM.data, 1))


def fit_record(loglik, replicated, *codes):
    flags = tuple(Flag(code, code) for code in codes)
    starts = Starts(4, np.array([loglik]), replicated)
    return EMFit(np.zeros(1), loglik, np.zeros(1), 1, 1, True, np.ones((2, 1)), starts, flags)


def test_the_better_of_two_fits_counts_the_starts_of_both():
    a, b = fit_record(-10.0, 1, "not_replicated"), fit_record(-10.0 + 1e-5, 2, "boundary")
    both = better(a, b)
    assert both.loglik == b.loglik
    assert (both.starts.n_starts, both.starts.n_replicated) == (8, 3)
    assert [flag.code for flag in better(a, fit_record(-12.0, 4)).flags] == ["not_replicated"]
    assert [flag.code for flag in better(a, a).flags] == []
    assert better(a, fit_record(5.0, 4, "degenerate")).loglik == -10.0
    stopped = better(fit_record(-20.0, 1, "interrupted"), a)
    assert stopped.loglik == -10.0
    assert not stopped.converged


# ---- structures, formulas, families ----


def test_a_grid_over_structures_and_formulas(plt):
    formulas = ["y ~ time | re: (1 | id)", "y ~ time + x1 | gate: z1 | re: (1 | id)"]
    table = mm.select(formulas, SIM.data, [1, 2], cov_re=["expert", "common"], starts=2, rng=0)
    frame = table.to_frame()
    assert len(frame) == 8
    assert frame["formula"].tolist() == [formulas[0]] * 4 + [formulas[1]] * 4
    assert frame["cov_re"].tolist() == ["expert", "expert", "common", "common"] * 2
    assert frame["llf"][3] <= frame["llf"][1] + 1e-6  # common is nested in expert
    assert len(table.summary().tables) == 2
    assert "2 experts, cov_re=common" in table.summary().tables[0].index  # its text is broken where it is wide
    assert len(table.plot().axes) == 4


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ArgumentError, match="one response, got 'y' and 'x1'"):
        mm.select(["y ~ time | re: (1 | id)", "x1 ~ time | re: (1 | id)"], SIM.data, 1)
    holes = SIM.data.assign(x1=SIM.data["x1"].where(SIM.data.index != 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mm.errors.DroppedRowsWarning)
        with pytest.raises(ArgumentError, match=r"missing values leave 320 rows to .* and 319"):
            mm.select(["y ~ time | re: (1 | id)", "y ~ time + x1 | re: (1 | id)"], holes, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": []}, "experts must name at least one value"),
        ({"experts": [0]}, "experts must be a whole number of at least 1, got 0"),
        ({"folds": 1}, "folds must be a whole number of at least 2, got 1"),
        ({"starts": 0}, "starts must be a whole number of at least 1"),
        ({"n_jobs": 0}, "n_jobs must be a whole number"),
        ({"cov_res": "x"}, "fit has no option 'cov_res'"),
        ({"cov_re": []}, "cov_re must name at least one value"),
        ({"folds": 100}, "folds=100 is more than the 80 units"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ArgumentError, match=message):
        mm.select(FORMULA, SIM.data, **{"experts": [1], "rng": 0, **options})


def test_an_error_of_all_candidates_is_raised():
    with pytest.raises(DesignError, match="nowhere"):
        mm.select("y ~ nowhere | re: (1 | id)", SIM.data, [1, 2])


def test_a_candidate_that_fails_says_why():
    few = SIM.data[SIM.data["id"] <= 6]
    table = mm.select("y ~ 1 | re: (0 | id)", few, [1, 2, 9], rng=0, starts=2)
    frame = table.to_frame()
    assert frame["reason"].tolist()[:2] == ["", ""]
    assert "experts=9 is more than the 6 subjects" in frame["reason"][2]
    assert np.isnan(frame["llf"][2])
    assert "failed" in str(table)
    assert "9 experts: ArgumentError: experts=9 is more" in " ".join(str(table).split())
    assert table.best("aic") is not None


def test_varying_coefficients(varying):
    options = {"bandwidth": 0.4, "n_grid": 10, "starts": 1, "rng": 0}
    table = mm.select(VARYING, varying, [1, 2, 3], **options)
    frame = table.to_frame()
    assert isinstance(table.best(), mm.VCMoEResults)
    assert table.best().model.n_experts == 2
    assert (np.diff(frame["llf"]) >= -1e-6).all()
    assert (frame["reason"] == "").all()


def test_a_smaller_varying_fit_is_never_beaten_by_a_larger_one(varying):
    for bandwidth in (0.3, np.inf):
        small = mm.fit(VARYING, varying, 1, bandwidth=bandwidth, rng=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MixmoeWarning)
            larger = mm.fit(VARYING, varying, 2, bandwidth=bandwidth, start=small, rng=0, max_iter=1)
        assert larger.llf >= small.llf - 1e-6


# ---- cross-validation ----


def test_held_out_log_likelihood_by_subject():
    table = select([1, 2], folds=4)
    frame = table.to_frame()
    assert np.isfinite(frame["cv"]).all()
    assert (frame["cv"] < frame["llf"]).all()
    assert (frame["cv_se"] > 0).all()
    assert table.best("cv").llf == frame["llf"][frame["cv"].argmax()]
    assert "CV" in str(table)
    fit = table.candidates[1].results
    assert fit.loglik_of(SIM.data) == pytest.approx(fit.llf)
    half = SIM.data["id"] <= 40
    parts = fit.loglik_of(SIM.data[half]) + fit.loglik_of(SIM.data[~half])
    assert parts == pytest.approx(fit.llf)


def test_held_out_log_likelihood_of_rows(varying):
    table = mm.select(VARYING, varying, [1, 2], bandwidth=0.4, n_grid=10, starts=1, rng=0, folds=3)
    frame = table.to_frame()
    assert (frame["cv"] < frame["llf"]).all()
    fit = table.candidates[1].results
    assert fit.loglik_of(varying) == pytest.approx(fit.llf, rel=1e-6)


# ---- workers and interruption ----


def test_the_number_of_workers_plays_no_part(table):
    same(table, select(range(1, 4), n_jobs=2))


class Stops:
    """A journal's `run` that meets Ctrl-C after so many computations."""

    def __init__(self, n):
        self.left = n

    def __call__(self, call):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return call()


@pytest.fixture(scope="module")
def folded():
    return few([1, 2], folds=2)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_an_interrupted_run_continues_with_the_same_answer(n, folded, monkeypatch, tmp_path):
    stop = Stops(n)

    def stopped(calls, *args):
        return run_calls([partial(stop, call) for call in calls], *args)

    monkeypatch.setattr("mixmoe.mixture.resampling.run_calls", stopped)
    part = few([1, 2], folds=2, checkpoint=tmp_path / "fits")
    assert part.interrupted
    assert len(part.candidates) == min(n, 2)
    assert "Interrupted" in str(part)
    monkeypatch.undo()
    resumed = few([1, 2], folds=2, checkpoint=tmp_path / "fits")
    assert not resumed.interrupted
    same(resumed, folded)
    monkeypatch.setattr("mixmoe.mixture.resampling.run_calls", None)  # all is there, nothing may be computed
    same(few([1, 2], folds=2, checkpoint=tmp_path / "fits", rng=None), folded)  # the seed is there too


def test_ctrl_c_within_a_fit_ends_the_run(monkeypatch):
    fit = mm.MEMoE.fit

    def interrupted(self, **options):
        results = fit(self, **options)
        if self.n_experts < 3:
            return results
        return type(results)(
            results.model,
            replace(
                results.em,
                flags=(Flag("interrupted", ""),),
            ),
            results.cov,
        )

    monkeypatch.setattr(mm.MEMoE, "fit", interrupted)
    table = select(range(1, 4))
    assert table.interrupted
    assert table.to_frame()["experts"].tolist() == [1, 2]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    folder = tmp_path / "fits"
    select([1], checkpoint=folder)
    for options, message in (
        ({"cov_re": "common"}, "other data, another model or other options"),
        ({"rng": 1}, "another rng"),
        ({"folds": 2}, "other data"),
    ):
        with pytest.raises(ArgumentError, match=message):
            select([1], checkpoint=folder, **options)
    with pytest.raises(ArgumentError, match="other data"):
        mm.select(FORMULA, SIM.data.assign(y=SIM.data["y"] + 1), [1], starts=4, rng=0, checkpoint=folder)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArgumentError, match="checkpoint must name a folder"):
        select([1], checkpoint=tmp_path / "file")


def test_a_checkpoint_knows_the_index_and_the_files_of_its_fits(varying, tmp_path):
    data, folder = varying.assign(unused=0.0), tmp_path / "fits"
    formulas = ["y ~ z1 | vary: u", "y ~ 1 | vary: u"]
    options = {"checkpoint": folder, "bandwidth": 0.3, "rng": 0, "progress": False}
    first = mm.select(formulas, data, [1], **options)
    again = mm.select(formulas, data.assign(unused=1.0), [1], **options)
    assert again.to_frame()["llf"].tolist() == first.to_frame()["llf"].tolist()
    with pytest.raises(ArgumentError, match="was written for other data"):  # response, expert and gate are as before
        mm.select(formulas, data.assign(u=data["u"] ** 2), [1], **options)
    one, two = folder / "fit1.mixmoe", folder / "fit2.mixmoe"
    held = one.read_bytes()
    for content in (two.read_bytes(), held[:-1]):
        one.write_bytes(content)
        with pytest.raises(ArgumentError, match=r"has lost or replaced its file 'fit1.mixmoe'"):
            mm.select(formulas, data, [1], **options)


@pytest.mark.parametrize("path", ["", 3, b"fits"])
def test_a_checkpoint_is_a_path(path):
    with pytest.raises(ArgumentError, match="checkpoint must be a path, or None to keep nothing"):
        select([1], checkpoint=path)


def test_a_journal_drops_a_line_cut_short_and_refuses_other_files(tmp_path):
    path = tmp_path / "j.jsonl"
    calls = [partial(float, i) for i in range(4)]
    with Journal(path, "k", 0) as journal:
        assert journal.run(calls[:3]).values == (0.0, 1.0, 2.0)
    path.write_text(path.read_text()[:-3])
    with Journal(path, "k", None) as journal:
        assert len(path.read_text().splitlines()) == 3
        assert journal.rng.bit_generator.seed_seq.entropy == 0
        assert journal.run(calls).values == (0.0, 1.0, 2.0, 3.0)
    assert [json.loads(line).get("value") for line in path.read_text().splitlines()] == [None, 0.0, 1.0, 2.0, 3.0]
    path.write_text("no journal\n")
    with pytest.raises(ArgumentError, match="is no journal of mixmoe"):
        Journal(path, "k", 0)
    path.write_text("[1, 2]\n")
    with pytest.raises(ArgumentError, match="is no journal of mixmoe"):
        Journal(path, "k", None)
    with pytest.raises(ArgumentError, match="must name a file, got the folder"):
        Journal(tmp_path, "k", 0)


def test_a_run_may_stop_early_at_the_same_place_for_any_number_of_workers(tmp_path):
    calls = [partial(float, i) for i in range(20)]
    for n_jobs in (1, 2):
        found = run_calls(calls, n_jobs, after=lambda value: value >= 5, stops=True)
        assert found.values == (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
        assert not found.interrupted


def test_clc_by_hand():
    tau = np.array([[0.5, 0.5], [1.0, 0.0]])
    assert clc(-3.0, tau) == pytest.approx(6.0 + 2 * np.log(2))


def test_listed_options_are_those_of_the_families():
    for model in families().values():
        known = {*inspect.signature(model.__init__).parameters, *inspect.signature(model.fit).parameters}
        assert set(model.spec.listed) <= known
