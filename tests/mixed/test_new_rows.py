"""What rows to predict must hold: columns that are needed, baselines that agree with the history, complete values."""

import numpy as np
import pandas as pd
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError, DesignError, DroppedRowsWarning

KINDS = ("all", "mean", "experts", "probabilities", "subject")


def build(family="gaussian", formula="y ~ t + C(arm) | gate: z + arm | re: (1 + dose | id)", **options):
    rng = np.random.default_rng(1)
    subject = np.repeat(np.arange(60), 4)
    data = pd.DataFrame({"id": subject, "t": np.tile([0.0, 1, 2, 3], 60), "dose": rng.uniform(size=240)})
    data["z"], data["arm"] = rng.normal(size=60)[subject], np.where(subject % 2, "a", "b")
    eta = np.where(rng.random(60) < 0.5, 2.0, -1.0)[subject] + 0.3 * data["t"] + rng.normal(size=60)[subject]
    data["y"] = rng.poisson(np.exp(0.3 * eta)) if family == "poisson" else eta + 0.5 * rng.normal(size=240)
    model = mm.MEMoE(formula, data, 2, family=family, **options)
    return model.results(model.maximum(2, np.random.default_rng(0)), blank(model)), data


def blank(model):
    from mixmoe.inference.uncertainty import ParamCov

    return ParamCov(np.eye(len(model.layout.names)), "nonrobust", None)


@pytest.fixture(scope="module", params=["gaussian", "poisson"])
def fitted(request):
    return build(request.param)


@pytest.mark.parametrize(
    ("kind", "needless"), [("experts", ["z", "y", "id"]), ("probabilities", ["t", "dose", "y"]), ("mean", ["y"])]
)
def test_columns_that_a_kind_does_not_use_may_be_missing(fitted, kind, needless):
    fit, data = fitted
    whole = fit.predict(data, kind=kind)
    pd.testing.assert_frame_equal(fit.predict(data.drop(columns=needless), kind=kind), whole)
    without = data.assign(**{name: np.nan for name in needless if name != "id"})
    pd.testing.assert_frame_equal(fit.predict(without, kind=kind), whole)


def test_random_effects_play_no_part_in_means_of_gaussian_experts():
    fit, data = build()
    for kind in ("experts", "mean"):
        pd.testing.assert_frame_equal(fit.predict(data.drop(columns="dose"), kind=kind), fit.predict(data, kind=kind))
    counts, data = build("poisson")
    with pytest.raises(DesignError, match="'dose', which is not a column"):
        counts.predict(data.drop(columns="dose"), kind="experts")


def test_a_column_that_is_used_is_still_asked_for(fitted):
    fit, data = fitted
    for kind, column in (("experts", "t"), ("probabilities", "z"), ("mean", "z"), ("subject", "dose")):
        with pytest.raises(DesignError, match=f"'{column}', which is not a column"):
            fit.predict(data.drop(columns=column), kind=kind)


def test_a_baseline_that_contradicts_the_history_is_an_error(fitted):
    fit, data = fitted
    past, ahead = data[data["t"] < 2], data[data["t"] >= 2].copy()
    assert fit.predict(ahead, history=past).notna().all(axis=None)
    ahead.loc[ahead["id"] == 7, "z"] += 0.5
    with pytest.raises(DesignError, match=r"gate covariate 'z' of subject 7 differs between her history and the rows"):
        fit.predict(ahead, history=past)
    with pytest.raises(DesignError, match="subject 7"):  # the data of the fit are a history too
        fit.predict(ahead, kind="subject")
    assert fit.predict(ahead, kind="experts", history=past).notna().all(axis=None)  # where the gate plays no part
    ahead["z"] = data["z"] * (1 + 1e-13)  # rounding is no contradiction
    assert fit.predict(ahead, history=past).notna().all(axis=None)


def test_the_values_of_a_contradicting_category_are_shown(fitted):
    fit, data = fitted
    ahead = data[data["id"] == 4].assign(arm="a")
    with pytest.raises(DesignError, match=r"gate covariate 'arm' of subject 4 .*, 'b' and 'a';"):
        fit.predict(ahead, history=data[data["id"] == 4])
    pd.testing.assert_frame_equal(  # strangers contradict nobody
        fit.predict(ahead.assign(id=-1), kind="probabilities"), fit.predict(ahead, kind="probabilities")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_frames_without_a_complete_row_give_missing_values(fitted, kind):
    fit, data = fitted
    part = data.iloc[[4, 9, 2]]
    incomplete = part.assign(**{"z" if kind == "probabilities" else "t": np.nan})
    with pytest.warns(DroppedRowsWarning, match="no row can be predicted"):
        shown = fit.predict(incomplete, kind=kind)
    assert list(shown.columns) == list(fit.predict(part, kind=kind).columns)
    assert list(shown.index) == [4, 9, 2]
    assert shown.isna().all(axis=None)


def test_frames_without_a_complete_row_with_a_history(fitted):
    fit, data = fitted
    with pytest.warns(DroppedRowsWarning, match="no row can be predicted"):
        shown = fit.predict(data.iloc[:2].assign(t=np.nan), history=data)
    assert list(shown.columns) == list(fit.predict(data.iloc[:2], history=data).columns)
    assert shown.isna().all(axis=None)


def test_what_is_wrong_with_a_history_is_said_of_the_history(fitted):
    fit, data = fitted
    response = fit.model.design.names.response
    with pytest.raises(DesignError, match=rf"history=, whose rows need the response too: .*{response}"):
        fit.predict(data, history=data.drop(columns=response))
    with pytest.raises(ArgumentError, match=rf"no row of history= is complete \({response}: 2\).*leave history= out"):
        fit.predict(data, history=data.iloc[:2].assign(**{response: np.nan}))


def test_rows_without_subjects_are_told_how_to_have_a_history():
    fit, data = build(formula="y ~ t | gate: z")
    with pytest.raises(
        ArgumentError, match=r"has no subjects: .* or name the subject of each row in re: \(0 \| subject\)"
    ):
        fit.predict(data, history=data.head(3))
