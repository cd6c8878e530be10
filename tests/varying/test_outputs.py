"""What a reader sees of a varying-coefficient mixture: names, tables, figures, messages, files."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError, DesignError, DroppedRowsWarning, FormulaError, SavedFileError
from mixmoe.output.records import told_apart

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
    columns = fit.tables()[2].columns
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
    [(1.0, r"-?0\.\d{3}"), (0.03, r"-?0\.0\d{3}"), (3e4, r"-?\d{4,5}")],
)
def test_functions_keep_digits_whatever_their_scale(data, factor, shown):
    fit = quick("y ~ z1 | vary: u", data.assign(y=factor * data["y"]), experts=1)
    ends = next(table for table in fit.tables() if table.key == "functions").cells[1][:2]
    assert pd.Series(ends).str.fullmatch(shown).all(), ends


# ---- files ----


def test_searches_survive_a_file(data, tmp_path):
    fit = quick(FORMULA, data, bandwidth="cv", gate_bandwidth="cv", folds=2, n_grid=10)
    fit.save(tmp_path / "fit.mixmoe")
    back = mm.load(tmp_path / "fit.mixmoe")
    pd.testing.assert_frame_equal(back.selection, fit.selection)
    pd.testing.assert_frame_equal(back.gate_selection, fit.gate_selection)
    assert str(back.summary()) == str(fit.summary())
    criterion, used = back.curves("bandwidth")
    assert (used.x == back.bandwidth).all()
    assert used.label == f"used: {back.bandwidth:.4g}"
    assert used.y[0] <= criterion.lower.min() < criterion.upper.max() <= used.y[1]


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


@pytest.mark.parametrize("kind", ["all", "mean", "experts", "probabilities", "subject"])
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


# ---- figures ----


def test_a_figure_says_what_its_lines_and_shades_are(fit):
    figure = fit.plot(at={"x1": 0.5}, alpha=0.1)
    first, *others = figure.axes
    entries = [text.get_text() for text in first.get_legend().get_texts()]
    assert entries == ["expert 1", "expert 2", "90 % pointwise", "90 % simultaneous"]
    assert first.get_ylabel() == "value; bands corrected for bias"
    assert others[-1].get_ylabel() == "probability; bands corrected for bias\nx1 = 0.5"
    assert len(others[-1].get_legend().get_texts()) == 2
    alone = fit.plot("means", bias="none").axes[0].get_ylabel()
    assert alone.startswith("expected response; bands around local maxima\nz1 = ")
    assert "x1 = " in alone
    plt.close("all")


def test_options_that_no_figure_has_are_named(fit):
    with pytest.raises(ArgumentError, match=r"plot\('means'\) has no option 'covariates'; it has alpha, .*at"):
        fit.plot("means", covariates={"x1": 0})


def test_a_line_is_what_the_tables_say_also_where_there_is_no_band(fit):
    curves = fit.curves("functions")
    functions = fit.functions()
    for curve, name in ((curves[0], "expert1.Intercept"), (curves[1], "expert1.z1")):
        np.testing.assert_array_equal(curve.y, functions.loc[functions["coefficient"] == name, "estimate"])
    assert [curve.panel for curve in curves if curve.log] == ["sigma", "sigma"]
    for curve in curves:
        assert ("no band there" in curve.xlabel) == np.isnan(curve.band_lower).any()
    axes = {axes.get_title(loc="left"): axes for axes in fit.plot().axes}
    assert axes["sigma"].get_yscale() == "log"
    plt.close("all")


def test_figures_that_cannot_be_say_why(data):
    with pytest.raises(ArgumentError, match="needs at least 2 experts, got 1, whose probability is one"):
        quick("y ~ z1 | vary: u", data, experts=1).plot("probabilities")
    with pytest.raises(ArgumentError, match="no function of this fit varies along u, so there is no curve to draw"):
        quick(FORMULA, data, bandwidth=np.inf).plot()


# ---- arguments ----


@pytest.mark.parametrize(
    ("of", "at", "message"),
    [
        ("coefficients", {"q": 1}, r"at={'q': 1} is for of= 'probabilities', 'experts', 'mean', got of='coefficients'"),
        ("differences", {"z1": "a"}, "got of='differences', which depends on no covariates"),
        ("mean", {"y": 3}, "at names 'y', which is no covariate of the model; it has 'z1', 'x1'"),
        ("mean", {"z1": "a"}, "at={'z1': 'a'} cannot be used"),
    ],
)
def test_covariate_values_that_cannot_be_used(fit, of, at, message):
    with pytest.raises(ArgumentError, match=message):
        fit.bands(of, at=at)


def test_no_processes(fit):
    for call in (fit.bands, fit.test_varying):
        with pytest.raises(ArgumentError, match="n_jobs must be a whole number of at least 1, got 0"):
            call(n_jobs=0)


@pytest.mark.parametrize("name", ["estimate", "center", "expert", "term", "coefficient", "band_high"])
def test_an_index_is_not_called_as_a_column_of_the_frames(data, name):
    with pytest.raises(DesignError, match=f"the index is called '{name}', as is a column of functions"):
        quick(f"y ~ z1 | vary: {name}", data.assign(**{name: data["u"]}), experts=1)


def test_covariances_that_it_does_not_have(data, fit):
    for call in (fit.with_cov, lambda kind: quick(FORMULA, data, cov_type=kind)):
        with pytest.raises(ArgumentError, match="cov_type must be 'robust' or 'cluster' for VCMoE, got 'hc3'"):
            call("hc3")
    with pytest.raises(ArgumentError, match=r"fit it with mm.fit\(..., cluster='column'\)"):
        fit.with_cov("cluster", cluster="id")


def test_a_start_of_another_model_says_how_it_differs(data, fit):
    with pytest.raises(ArgumentError, match=r"start has experts=2, 2 columns of .*, this model experts=4, .*one fewer"):
        quick(FORMULA, data, experts=4, start=fit)
    with pytest.raises(ArgumentError, match="start must be the results of a VCMoE, got Series"):
        quick(FORMULA, data, start=fit.params)


def test_a_candidate_that_cannot_be_fitted_keeps_its_row(data):
    model = mm.VCMoE(FORMULA, data.head(120), n_grid=20)
    found = model.select_bandwidth(0, candidates=[0.04, 0.4], folds=2)
    assert list(found.table["bandwidth"]) == [0.04, 0.4]
    assert list(found.table["criterion"].isna()) == [True, False]
    assert found.best == 0.4


@pytest.mark.parametrize(
    ("formula", "options", "message"),
    [
        (
            "y ~ z1",
            {"bandwidth": 0.3},
            "no option 'bandwidth'; VCMoE has, which fits formulas with a section 'vary: u'",
        ),
        ("y ~ z1 | vary: u", {"cov_re": "common"}, "no option 'cov_re'; MEMoE has, which fits formulas without"),
        ("y ~ z1", {"bandwith": 0.3}, "no option 'bandwith'; it has"),
    ],
)
def test_options_of_the_other_family_say_whose_they_are(data, formula, options, message):
    with pytest.raises(ArgumentError, match=message):
        mm.fit(formula, data, **options)


def test_trials_are_not_written_into_the_response(data):
    counts = data.assign(s=1, m=2)
    with pytest.raises(FormulaError, match=r"successes of trials as s ~ \.\.\. with trials='column'"):
        mm.fit("s/m ~ z1 | vary: u", counts, family="binomial")
    with pytest.raises(DesignError, match=r"write successes as the response, .* trials='column'"):
        mm.fit("cbind(s, m) ~ z1 | vary: u", counts, family="binomial")


def test_an_index_of_another_type_is_told_what_to_do(data):
    with pytest.raises(DesignError, match=r"must be numeric, .*to days: differences / pd.Timedelta\(days=1\)"):
        quick(FORMULA, data.assign(u=pd.to_timedelta(data["u"], unit="D")))
    with pytest.raises(DesignError, match=r"only 2 different values, .*leave out 'vary: u' and let"):
        quick(FORMULA, data.assign(u=data["u"] > 0.5))


def test_a_lag_is_not_taken_for_a_logarithm(data):
    with pytest.warns(DroppedRowsWarning, match=r"lag\(z1\) has nothing before the first rows$"):
        quick("y ~ lag(z1) | vary: u", data, experts=1)
    with pytest.warns(DroppedRowsWarning, match=r"log\(z1\) may be undefined there"), np.errstate(all="ignore"):
        quick("y ~ log(z1) | vary: u", data.assign(z1=data["z1"] + 2.0), experts=1)


@pytest.mark.parametrize(("experts", "said"), [([2], False), ([1, 2], True)])
def test_one_number_of_experts_is_not_the_largest(data, experts, said):
    found = mm.select(FORMULA, data, experts, bandwidth=0.4, n_grid=10, rng=0, starts=2, progress=False)
    assert ("at the largest number of experts" in str(found.summary())) is said


# ---- tables at other index values ----


@pytest.mark.parametrize("door", ["to_latex", "to_markdown", "summary"])
def test_functions_are_tabulated_at_chosen_values(fit, door):
    text = str(getattr(fit, door)(at=[0.6, 0.25, 0.3333]))
    assert [text.count(head) > 0 for head in ("u=0.25", "u=0.333", "u=0.6")] == [True] * 3
    assert "u=0.1" not in text.replace("Index", "")


def test_values_at_chosen_places_are_those_of_the_functions(fit):
    at = [0.25, 0.6]
    table = next(table for table in fit.tables(at=at) if table.key == "expert2")
    slopes = fit.functions(at).query("coefficient == 'expert2.z1'")["estimate"]
    assert list(table.cells[3]) == [f"{value:.3f}" for value in slopes]
    low, high = float(table.cells[4][0]), float(table.cells[5][0])
    bands = fit.bands(rng=20260101).query("coefficient == 'expert2.z1'")
    near = bands[bands["u"].between(0.25 - 0.08, 0.25 + 0.08)]
    assert near["band_low"].min() <= low + 1e-3
    assert high - 1e-3 <= near["band_high"].max()
    with pytest.raises(ArgumentError, match="must lie within the range of the index"):
        fit.to_latex(at=[2.0])
    with pytest.raises(ArgumentError, match=r"tables of VCMoE have no option 'att'; they have alpha, at"):
        fit.to_latex(att=[0.5])


def test_the_simulator_has_its_formula():
    for experts, formula in ((1, "y ~ z1 | vary: u"), (2, FORMULA)):
        sim = mm.simulate.vcmoe(n=200, experts=experts, rng=1)
        assert sim.formula == formula
        assert mm.VCMoE(sim.formula, sim.data, experts=experts).n_experts == experts


# ---- reports ----


def test_what_starts_led_to_is_counted_among_those_that_went_on(data):
    fit = quick(FORMULA, data, starts=6)
    kept, best = len(fit.em.starts.logliks), fit.em.starts.n_replicated
    words = f"6 of each kind; {best} of {kept} distinct solutions within 0.5 of the best"
    words = "6 of each kind; they led to one solution" if kept == 1 else words
    assert words in " ".join(str(fit.summary()).split())
    found = mm.select(FORMULA, data, [2], bandwidth=0.3, n_grid=15, rng=0, starts=6, progress=False)
    chosen = found.candidates[0].results.em.starts
    assert f"{chosen.n_replicated}/{len(chosen.logliks)}" in str(found.summary())


def test_a_report_speaks_of_this_family(data, tmp_path):
    fit = quick(FORMULA, data, bandwidth="cv", folds=2)
    fit.report(tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert f"{fit.bandwidth:.4g} (cross-validated)" in page
    assert "each complete row is used" in page
    assert "GRoLTS checklist" not in page  # of trajectories of subjects
    assert "cov_re" not in page
    assert "subjects contribute" not in page


def test_all_constant_with_clusters(data):
    fit = quick(FORMULA, data.assign(id=np.arange(len(data)) // 5), bandwidth=np.inf, cluster="id")
    assert np.isfinite(fit.bse).all()
    assert "60 clusters" in str(fit.summary())


def test_the_first_summary_says_how_far_it_is(data, capsys):
    fit = quick(FORMULA, data)
    fit.summary(progress=True)
    assert "tests of constancy" in capsys.readouterr().err
    fit.summary(progress=True)  # kept
    assert not capsys.readouterr().err
    silent = quick(FORMULA, data)
    silent.summary()  # no terminal
    assert not capsys.readouterr().err


def test_experts_keep_the_numbers_of_the_start(data, fit):
    """Another bandwidth, from a fit in which the larger expert is the second."""
    turned = fit.relabel([2, 1])
    again = quick(FORMULA, data, bandwidth=0.35, start=turned, starts=None)
    means = [one.functions().groupby("coefficient")["estimate"].mean() for one in (turned, again, fit)]
    near, far = ((means[1] - other).abs().filter(like="expert").max() for other in (means[0], means[2]))
    assert near < 0.3 < far
