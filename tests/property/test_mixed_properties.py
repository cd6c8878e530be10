"""What must hold for any data: order of rows, units of columns, labels, doubled data, replayed transforms, files."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mixmoe as mm
from mixmoe.errors import MixmoeWarning
from mixmoe.mixed import search
from tests.fits import carried

FORMULA = "y ~ time + x1 | gate: z1 | re: (1 + time | id)"
FEW = settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SEEDS = st.integers(0, 2**20)
LOGLIK = 1e-6  # absolute; a maximum found twice
SHIFTS = st.floats(-1e3, 1e3, allow_subnormal=False)
SCALES = st.sampled_from([1e-6, 1e-3, 0.7, 12.0, 1e6])


def simulated(seed, preset="separated", n_subjects=60):
    return mm.simulate.memoe(preset, n_subjects=n_subjects, n_visits=(2, 5), rng=seed).data.drop(columns="expert")


def quietly(fit, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)  # flags are not what is tested here
        return fit(*args, **options)


def fitted(data, formula=FORMULA, experts=2, **options):
    """A fit with its search, for what must hold of this too."""
    return quietly(mm.fit, data=data, formula=formula, experts=experts, rng=0, **({"starts": 4} | options))


def found(data, formula, experts=2, **options):
    """A fit for what must hold of any maximum."""
    return quietly(carried, formula, data, experts, **options)


DATA = simulated(3, n_subjects=80)
FIT = fitted(DATA)


def close(ours, theirs, tolerance=1e-5):
    """Parameters equal in units of their standard errors."""
    se = FIT.bse[ours.index].fillna(1)
    return (((ours - theirs[ours.index]).abs() / se) < tolerance).all()


# ---- order ----


@FEW
@given(SEEDS)
def test_order_of_rows(seed):
    shuffled = DATA.sample(frac=1, random_state=seed % 2**32)
    fit = fitted(shuffled)
    assert fit.llf == pytest.approx(FIT.llf, abs=LOGLIK)
    assert close(fit.params, FIT.params)
    np.testing.assert_allclose(fit.bse, FIT.bse, rtol=1e-5)
    pd.testing.assert_frame_equal(fit.responsibilities, FIT.responsibilities, atol=1e-6)
    pd.testing.assert_series_equal(fit.fitted().sort_index(), FIT.fitted(), rtol=1e-6)


@FEW
@given(SEEDS)
def test_order_of_subjects(seed):
    rng = np.random.default_rng(seed)
    names = dict(zip(DATA["id"].unique(), rng.permutation(10_000)[: DATA["id"].nunique()], strict=True))
    fit = fitted(DATA.assign(id=DATA["id"].map(names)))
    assert fit.llf == pytest.approx(FIT.llf, abs=LOGLIK)
    assert close(fit.params, FIT.params)
    tau = fit.responsibilities.loc[FIT.responsibilities.index.map(names)]
    np.testing.assert_allclose(tau, FIT.responsibilities, atol=1e-6)


def test_order_of_subjects_when_only_some_are_searched(monkeypatch):
    monkeypatch.setattr("mixmoe.mixed.search._SEARCH_ABOVE", 50)
    monkeypatch.setattr("mixmoe.mixed.search._search_size", lambda problem: 60)
    some, chosen = search._some, []
    monkeypatch.setattr(search, "_some", lambda *args: chosen.append(some(*args)) or chosen[-1])
    first = fitted(DATA)
    n_first = len(chosen)
    second = fitted(DATA.assign(id=-DATA["id"]))
    assert first.llf == pytest.approx(FIT.llf, abs=LOGLIK)
    labels = [fit.model.design.labels for fit in (first, second)]
    np.testing.assert_array_equal(labels[0][chosen[0]], -labels[1][chosen[n_first]])  # in the same order
    np.testing.assert_array_equal(chosen[1], chosen[n_first + 1])  # and the same of them
    assert chosen[1].size == 60 < first.model.problem.n_subjects
    assert close(first.params, second.params, 1e-6)


@FEW
@given(st.permutations([1, 2, 3]), SEEDS)
def test_relabelling_there_and_back(order, seed):
    fit = found(simulated(seed, "three", 60), "y ~ time | gate: z1 | re: (1 | id)", 3)
    back = [order.index(k) + 1 for k in (1, 2, 3)]
    again = fit.relabel(order).relabel(back)
    np.testing.assert_allclose(again.params, fit.params, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(again.bse, fit.bse, rtol=1e-7)
    assert fit.relabel(order).model.loglike(fit.relabel(order).params) == pytest.approx(fit.llf, abs=1e-7)


# ---- units ----


@FEW
@given(SCALES, SHIFTS)
def test_units_of_the_response(scale, shift):
    fit = fitted(DATA.assign(y=scale * DATA["y"] + shift * scale))
    assert fit.llf == pytest.approx(FIT.llf - len(DATA) * np.log(scale), abs=LOGLIK)
    expected = FIT.params.copy()
    unit = expected.index.str.match(r"expert|common|sd|sigma")
    expected[unit] *= scale
    expected[expected.index.str.endswith("Intercept") & expected.index.str.startswith("expert")] += shift * scale
    se = FIT.bse.where(~unit, FIT.bse * scale)
    assert ((fit.params - expected).abs() / se < 1e-4).all()
    np.testing.assert_allclose(fit.bse, se, rtol=1e-4)
    assert fit.em.n_evaluations == pytest.approx(FIT.em.n_evaluations, abs=2)  # the same path, but for rounding


@FEW
@given(st.sampled_from(["time", "x1"]), SCALES)
def test_scale_of_a_covariate(column, scale):
    fit = fitted(DATA.assign(**{column: scale * DATA[column]}))
    assert fit.llf == pytest.approx(FIT.llf, abs=LOGLIK)
    power = {f"expert{k}.{column}": -1 for k in (1, 2)} | {f"sd{k}({column}|id)": -1 for k in (1, 2)}
    factors = pd.Series([scale ** power.get(name, 0) for name in FIT.params.index], FIT.params.index)
    assert ((fit.params / factors - FIT.params).abs() / FIT.bse < 1e-4).all()
    np.testing.assert_allclose(fit.tvalues.dropna(), FIT.tvalues.dropna(), rtol=1e-3, atol=1e-4)


@FEW
@given(SHIFTS)
def test_shift_of_covariates(shift):
    """The model is the same, with another intercept and another covariance of intercept and slope."""
    fit = fitted(DATA.assign(time=DATA["time"] + shift, x1=DATA["x1"] - shift, z1=DATA["z1"] + shift))
    assert fit.llf == pytest.approx(FIT.llf, abs=LOGLIK)
    slopes = [name for name in FIT.params.index if name.endswith((".time", ".x1", ".z1"))] + ["sigma1", "sd1(time|id)"]
    assert close(fit.params[slopes], FIT.params, 1e-4)
    np.testing.assert_allclose(fit.fitted(), FIT.fitted(), rtol=1e-5)
    np.testing.assert_allclose(fit.responsibilities, FIT.responsibilities, atol=1e-5)


# ---- data ----


@FEW
@given(SEEDS, st.sampled_from(["expert", "common", "proportional"]))
def test_doubled_data_double_the_log_likelihood(seed, cov_re):
    data = simulated(seed)
    plain = {"cov_re": cov_re, "correction": False}  # the correction for leverage is one for few subjects
    once = found(data, "y ~ time | gate: z1 | re: (1 | id)", **plain)
    twice = fitted(
        pd.concat([data, data.assign(id=data["id"] + 1000)], ignore_index=True),
        once.model.formula,
        start=once,
        **plain,
    )
    assert twice.llf == pytest.approx(2 * once.llf, abs=2 * LOGLIK)
    np.testing.assert_allclose(twice.params, once.params, rtol=1e-3, atol=1e-3)
    ratio = once.bse / twice.bse
    np.testing.assert_allclose(ratio.dropna(), np.sqrt(2), rtol=1e-2)


@FEW
@given(SEEDS)
def test_a_row_of_missing_values_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    rows = DATA.iloc[rng.integers(len(DATA), size=5)].copy()
    column = rng.choice(["y", "time", "x1", "z1"])
    rows[column] = np.nan
    mixed = pd.concat([DATA, rows], ignore_index=True)
    before = mixed.copy()
    fit = fitted(mixed, start=FIT.params, starts=0)
    assert fit.llf == pytest.approx(FIT.llf, abs=LOGLIK)
    assert fit.model.design.dropped.n_rows == 5
    assert len(fit.fitted()) == len(DATA)
    pd.testing.assert_frame_equal(mixed, before)


# ---- replay ----

TERMS = [
    "scale(time)",
    "bs(time, df=4)",
    "C(g)",
    "C(g):time",
    "center(x1)",
    "poly(time, 2)",
    "log(time + 1)",
    "scale(x1):C(g)",
]


def with_groups():
    return DATA.assign(g=np.where(DATA["id"] % 3 == 0, "a", np.where(DATA["id"] % 3 == 1, "b", "c")))


@settings(FEW, max_examples=4)
@given(st.lists(st.sampled_from(TERMS), min_size=1, max_size=3, unique=True), SEEDS)
def test_predicting_the_training_data_gives_the_fit(terms, seed):
    data = with_groups()
    fit = found(data, f"y ~ {' + '.join(terms)} | gate: scale(z1) + C(g) | re: (1 | id)")
    fitted_values = fit.fitted("mean")
    np.testing.assert_allclose(fit.predict(data, kind="mean")["mean"], fitted_values, rtol=1e-9)
    np.testing.assert_allclose(fit.predict(data, kind="subject")["mean"], fit.fitted(), rtol=1e-9)
    some = data.sample(n=7, random_state=seed % 2**32)  # transforms remember the whole data, not these rows
    np.testing.assert_allclose(fit.predict(some, kind="mean")["mean"], fitted_values[some.index], rtol=1e-9)


@pytest.mark.parametrize("engine", ["formulaic", "patsy"])
def test_both_formula_engines_replay(engine):
    data = with_groups()
    fit = found(data, "y ~ bs(time, df=4) + C(g) | gate: z1 | re: (1 | id)", formula_engine=engine)
    some = data.iloc[5:9]
    np.testing.assert_allclose(fit.predict(some, kind="mean")["mean"], fit.fitted("mean")[some.index], rtol=1e-9)


@FEW
@given(
    st.sampled_from(
        [
            "y ~ scale(time) + C(g) | gate: z1 | re: (1 + time || id)",
            "y ~ time + common(x1) | re: (0 | id)",
            "y ~ x1 | gate: z1",
        ]
    ),
    st.booleans(),
)
def test_save_and_load(tmp_path_factory, formula, with_data):
    path = tmp_path_factory.mktemp("saved") / "fit.mixmoe"
    data = with_groups()
    fit = found(data, formula)
    fit.save(path, data=with_data)
    back = mm.load(path) if with_data else mm.load(path, data=data)
    assert str(back.summary()) == str(fit.summary())
    assert back.summary().as_latex() == fit.summary().as_latex()
    pd.testing.assert_frame_equal(back.to_frame(), fit.to_frame())
    pd.testing.assert_frame_equal(back.predict(data.iloc[:5]), fit.predict(data.iloc[:5]))
    pd.testing.assert_frame_equal(back.random_effects, fit.random_effects)
    assert fitted(data, formula, start=back, starts=None).llf == pytest.approx(fit.llf, abs=1e-5)


# ---- the caller's objects ----


def test_nothing_of_the_caller_changes():
    data = with_groups()
    data["g"] = data["g"].astype("category")
    before = data.copy(deep=True)
    state = np.random.get_state()[1].copy()  # noqa: NPY002 (the legacy state is what is tested)
    fit = found(data, "y ~ scale(time) + C(g) | gate: z1 | re: (1 | id)")
    fit.predict(data, history=data)
    fit.simulate(0)
    fit.with_cov("bootstrap", n_boot=2, rng=0)
    fit.plot()
    pd.testing.assert_frame_equal(data, before)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_no_warnings_from_below(recwarn):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        fitted(simulated(11), experts=4, starts=6)
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]
