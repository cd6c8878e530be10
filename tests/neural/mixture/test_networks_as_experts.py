"""Networks as experts and gate: the likelihood against dense algebra, linear networks against MEMoE, true functions."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal

import mixmoe as mm
from mixmoe.errors import ArgumentError, BoundaryWarning, ConvergenceWarning, DesignError, FormulaError, MixmoeWarning

torch = pytest.importorskip("torch")

from mixmoe.neural.mixture.likelihood import evaluate, expert_means, log_gate, log_joint, log_prior  # noqa: E402
from mixmoe.neural.mixture.network_prediction import errors_of, means_at, values_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:only one of the")
FORMULA = "y ~ nn(x, v) + u | gate: nn(z) | re: (1 + u | id)"
CURVES = (lambda x: np.sin(2.5 * x), lambda x: 1.5 * np.exp(-2 * x**2) + 0.5)


def sample(n_subjects=60, n_visits=5, seed=0, sd=0.3):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n_subjects)
    own = (rng.random(n_subjects) < 1 / (1 + np.exp(-2 * np.sin(2 * z)))).astype(int)
    id_ = np.repeat(np.arange(n_subjects), n_visits)
    x, v, u = rng.uniform(-1.5, 1.5, (3, len(id_)))
    f = np.where(own[id_] == 0, CURVES[0](x), CURVES[1](x))
    y = f + sd * rng.normal(size=n_subjects)[id_] + 0.3 * rng.normal(size=len(id_))
    return pd.DataFrame({"id": id_, "x": x, "v": v, "u": u, "z": z[id_], "y": y, "own": own[id_]})


@pytest.fixture(scope="module")
def data():
    return sample()


@pytest.fixture(scope="module")
def fit(data):
    return mm.fit("y ~ nn(x) | gate: z | re: (1 | id)", data, hidden=(3,), starts=6, rng=0)


@pytest.mark.parametrize("options", [{}, {"body": "common", "cov_re": "common", "residual": "common"}])
def test_likelihood_is_that_of_dense_normals_and_its_score_that_of_differences(data, options):
    part = data[data["id"] < 20].drop(index=[3, 4, 17])
    model = mm.NMoE(FORMULA, part, 3, hidden={"experts": (3, 2), "gate": (2,)}, **options)
    problem, s = model.problem, model.structure
    theta = 0.5 * np.random.default_rng(1).normal(size=s.size)
    rows, point = problem.rows, torch.as_tensor(theta)
    joint, means, gate = (
        f(*a).numpy()
        for f, a in (
            (log_joint, (problem, point)),
            (expert_means, (problem, rows, point)),
            (log_gate, (problem, rows, point)),
        )
    )
    y, Z, codes = rows.y.numpy(), rows.Z.numpy(), rows.codes.numpy()
    for k in range(3):
        T, sigma = np.zeros((2, 2)), np.exp(theta[s.places["sigma"][k]])
        T[np.tril_indices(2)] = theta[s.places["factor"][k]]
        for i in range(20):
            mine = codes == i
            V = Z[mine] @ T @ T.T @ Z[mine].T + sigma**2 * np.eye(mine.sum())
            dense = multivariate_normal(means[mine, k], V).logpdf(y[mine]) + gate[i, k]
            assert joint[i, k] == pytest.approx(dense, abs=1e-10)
    whole = evaluate(problem, theta[None])
    prior = float(log_prior(problem, point))
    assert whole.loglik[0] == pytest.approx(np.logaddexp.reduce(joint, axis=1).sum() + prior, abs=1e-9)
    steps = 1e-5 * np.eye(s.size)
    ends = evaluate(problem, np.concatenate([theta + steps, theta - steps])).loglik.reshape(2, -1)
    np.testing.assert_allclose(whole.score[0], (ends[0] - ends[1]) / 2e-5, atol=1e-6 * np.abs(whole.score).max())


@pytest.mark.filterwarnings("ignore:.*covariance.* is singular")  # of slopes that the data do not show
@pytest.mark.parametrize(
    ("re", "options"), [("(1 + u | id)", {}), ("(1 || id)", {"cov_re": "common", "residual": "common"})]
)
def test_linear_networks_are_a_memoe(data, re, options):
    data = data.assign(school=data["id"] % 20)
    formula = f"y ~ nn(x, u) + v | gate: nn(z) | re: {re}"
    clustered = mm.fit(formula, data, hidden=(), starts=6, rng=0, cluster="school", **options)
    one = clustered.with_cov("nonrobust")
    other = mm.fit(f"y ~ x + u + v | gate: z | re: {re}", data, rng=0, starts=6, cov_type="nonrobust", **options)
    assert one.llf == pytest.approx(other.llf, abs=1e-6)
    assert one.em.penalty == 0
    pd.testing.assert_series_equal(one.params, other.params, atol=1e-6)
    pd.testing.assert_series_equal(one.bse, other.bse, rtol=1e-5)
    together = other.with_cov("cluster", cluster=data["school"], correction=False)
    assert clustered.cov_type == "cluster"
    pd.testing.assert_series_equal(clustered.bse, together.bse, rtol=1e-5)
    robust = other.with_cov("robust", correction=False)
    pd.testing.assert_series_equal(one.with_cov("robust").bse, robust.bse, rtol=1e-5)
    for options in ({}, {"interval": "confidence"}, {"history": data[data["u"] > 0], "interval": "prediction"}):
        new = data.iloc[:30]
        pd.testing.assert_frame_equal(one.predict(new, **options), other.predict(new, **options), atol=1e-5)
    for given in ("history", "covariates"):
        pd.testing.assert_series_equal(
            one.resid("quantile", given=given), other.resid("quantile", given=given), atol=1e-5
        )
    pd.testing.assert_frame_equal(one.proportions(), other.proportions(), atol=1e-5)
    pd.testing.assert_frame_equal(one.random_effects, other.random_effects[one.random_effects.columns], atol=1e-5)
    assert one.influence().to_frame()["distance"].to_numpy() == pytest.approx(
        other.influence().to_frame()["distance"], abs=1e-6
    )
    assert one.loglik_of(data) == pytest.approx(one.llf)


def test_it_finds_the_functions_of_the_experts_nearly_as_well_as_if_memberships_were_known(data, fit):
    assert fit.converged
    grid = np.linspace(-1.4, 1.4, 101)
    found = fit.predict(pd.DataFrame({"x": grid, "z": 0.0}), kind="experts").to_numpy()
    own = data.groupby("id")["own"].first()
    of = [round(own[fit.classify()["expert"] == k].mean()) for k in (1, 2)]
    assert sorted(of) == [0, 1]
    agreement = np.array(of)[fit.classify()["expert"] - 1] == own
    assert agreement.mean() > 0.95
    errors = [found[:, k] - CURVES[of[k]](grid) for k in range(2)]
    oracles = [mm.fit("y ~ nn(x) | re: (1 | id)", data[data["own"] == of[k]], 1, hidden=(3,), rng=0) for k in range(2)]
    best = [
        o.predict(pd.DataFrame({"x": grid}), kind="experts")["expert1"] - CURVES[of[k]](grid)
        for k, o in enumerate(oracles)
    ]
    assert np.std(np.concatenate(errors)) < 1.1 * np.std(np.concatenate(best))


def test_standard_errors_of_functions_are_those_of_the_parameters(fit):
    """The delta method in the reported parameters, derivatives by differences."""
    model, e = fit.model, fit._known()
    rows = model.rows_of(model.design.for_new(fit.model.design.frame.iloc[[0, 7, 40]]))
    kept = np.flatnonzero(~np.isin([p.block for p in model.layout.parameters], ("random", "residual")))
    slopes = np.zeros((3, 2, len(fit.params)))
    for j in kept:
        ends = []
        for step in (1e-5, -1e-5):
            moved = fit.params.to_numpy().copy()
            moved[j] += step
            ends.append(means_at(e, rows, torch.as_tensor(model.free(moved))).numpy())
        slopes[..., j] = (ends[0] - ends[1]) / 2e-5
    expected = np.sqrt(np.einsum("nkp,pr,nkr->nk", slopes, fit.cov.matrix, slopes))
    np.testing.assert_allclose(errors_of(e, means_at, rows), expected, rtol=1e-5)
    np.testing.assert_allclose(values_of(e, means_at, rows), fit.predict(kind="experts").iloc[[0, 7, 40]])


def test_partial_dependence_is_the_mean_over_the_data(fit, data):
    frame = fit.bands("probabilities", x="z", draws=100, rng=0)
    z = frame["x"].iloc[3]
    first = data.groupby("id", as_index=False).first().assign(z=z)
    expected = fit.predict(first, kind="probabilities").mean().to_numpy()
    np.testing.assert_allclose(frame.loc[frame["x"] == z, "estimate"], expected)
    assert (frame["band_low"] <= frame["conf_low"]).all()
    assert frame[["band_low", "band_high"]].stack().between(0, 1).all()
    assert set(fit.bands(draws=100, rng=0)["column"]) == {"x"}


def test_experts_in_another_order_say_the_same(fit, data):
    moved = fit.relabel([2, 1])
    assert moved.loglik_of(data) == pytest.approx(fit.llf)
    new = data.iloc[:5]
    pd.testing.assert_series_equal(
        moved.predict(new, kind="mean", interval="confidence")["mean_se"],
        fit.predict(new, kind="mean", interval="confidence")["mean_se"],
    )
    np.testing.assert_allclose(
        moved.predict(new, kind="experts")["expert1"], fit.predict(new, kind="experts")["expert2"]
    )


def test_a_past_of_another_baseline_is_refused(fit, data):
    past = data.iloc[:3].assign(z=data["z"].iloc[0] + 1.0)
    with pytest.raises(DesignError, match="the gate covariate 'z' of subject 0 differs between her history"):
        fit.predict(data.iloc[3:5], history=past)
    with pytest.raises(DesignError, match="'z' of subject 0 differs"):
        fit.predict(past, "subject")
    assert len(fit.predict(data.iloc[3:5], history=data.iloc[:3])) == 2


def test_clusters_are_kept_and_refused(data, tmp_path):
    schools = np.asarray(data["id"] // 2)
    formula = "y ~ nn(x) | gate: z | re: (1 | id)"
    fit = mm.fit(formula, data, hidden=(2,), starts=2, rng=0, cluster=schools)
    assert "30 clusters" in str(fit.summary())
    fit.save(tmp_path / "f.mixmoe")
    back = mm.load(tmp_path / "f.mixmoe")
    pd.testing.assert_frame_equal(back.cov_params(), fit.cov_params())
    np.testing.assert_array_equal(back.model.clusters, fit.model.clusters)
    # Each subject a cluster: the sandwich over subjects.
    alone = fit.with_cov("cluster", cluster=data["id"])
    pd.testing.assert_series_equal(alone.bse, fit.with_cov("robust").bse)
    with pytest.warns(MixmoeWarning, match=r"scores of 12 clusters have a rank below the 2[0-9] parameters"):
        assert fit.with_cov("cluster", cluster=data["id"] // 5).bse.isna().all()
    with pytest.raises(ArgumentError, match="cov_type='robust' of NMoE has no option 'cluster'"):
        fit.with_cov("robust", cluster=data["id"])
    with pytest.raises(ArgumentError, match=r"subject 1 .*cluster"):
        mm.fit(formula, data, hidden=(2,), cluster=np.arange(len(data)) // 7)
    with pytest.raises(ArgumentError, match="needs the clusters, got None"):
        mm.fit(formula, data, hidden=(2,), cov_type="cluster")


def test_subjects_of_one_row_and_experts_of_few_are_told(data):
    some = data.groupby("id").head(2)
    some = some[(some["id"] > 8) | ~some.duplicated("id")]
    with pytest.warns(MixmoeWarning, match="9 of 60 subjects have one row"):
        mm.fit("y ~ nn(x) | re: (1 | id)", some, 1, hidden=(2,), starts=1, rng=0)
    own = data.groupby("id")["own"].first()
    few = data[data["id"].isin([*own.index[own == 0][:20], *own.index[own == 1][:2]])]
    with pytest.warns(MixmoeWarning, match=r"expert 2 is carried by [23]\.\d subjects for 3 coefficients"):
        mm.fit("y ~ nn(x) | re: (0 | id)", few, 2, hidden=(2,), starts=6, rng=0)


def test_saved_without_data(fit, data, tmp_path):
    fit.save(tmp_path / "f.mixmoe", data=False)
    back = mm.load(tmp_path / "f.mixmoe", data=data)
    assert str(back.summary()) == str(fit.summary())
    pd.testing.assert_frame_equal(back.predict(data.iloc[:4]), fit.predict(data.iloc[:4]))


def test_rows_and_subjects_that_lack_something(fit, data):
    new = data.iloc[:6].assign(id=[0, 0, 0, 991, 991, 992])
    new.loc[new.index[1], "x"] = np.nan
    with pytest.warns(MixmoeWarning):
        found = fit.predict(new, kind="subject")
    assert found["mean"].isna().tolist() == [False, True, False, False, False, False]
    strangers = new.iloc[3:]
    with pytest.warns(MixmoeWarning, match="of the new data are not in the fit, without history="):
        by_gate = fit.predict(strangers, kind="subject")
    np.testing.assert_allclose(by_gate, fit.predict(strangers, kind="mean"))


def test_draws_have_the_moments_of_the_model(fit):
    draws = fit.simulate(rng=0, n=300).to_numpy()
    law = fit.predict(kind="mean", interval="prediction")
    assert np.abs(draws.mean(axis=1) - law["mean"]).max() < 5 * law["mean_se"].max() / np.sqrt(300)
    assert (draws.std(axis=1) / law["mean_se"]).mean() == pytest.approx(1, abs=0.02)


def test_random_effects_that_the_data_do_not_show_are_told():
    data = sample(sd=0.0, seed=3)
    with pytest.warns(BoundaryWarning, match=r"is singular, sd1\(Intercept\|id\) lying"):
        fit = mm.fit("y ~ nn(x) | re: (1 | id)", data[data["own"] == 1], 1, hidden=(2,), starts=2, rng=0)
    assert np.isnan(fit.bse["sd1(Intercept|id)"])
    assert np.isfinite(fit.predict(data.iloc[:3], interval="confidence")).all(axis=None)


def test_a_start_is_taken_and_the_fit_repeated(fit, data):
    again = mm.fit("y ~ nn(x) | gate: z | re: (1 | id)", data, hidden=(3,), start=fit, starts=0, rng=0)
    assert again.llf == pytest.approx(fit.llf, abs=1e-8)
    one = mm.fit("y ~ nn(x) | gate: z | re: (1 | id)", data, 1, hidden=(3,), starts=1, rng=0)
    split = mm.fit("y ~ nn(x) | gate: z | re: (1 | id)", data, hidden=(3,), start=one, starts=0, rng=0)
    assert split.llf > one.llf + 20
    with pytest.warns(ConvergenceWarning, match="the score is not zero"):
        mm.fit("y ~ nn(x) | gate: z | re: (1 | id)", data, hidden=(3,), starts=1, rng=3, max_iter=1, tol=1e-14)


@pytest.mark.parametrize(
    ("formula", "options", "error", "message"),
    [
        ("y ~ nn(x) + nn(v)", {}, FormulaError, "in one section; write one with all inputs"),
        ("y ~ nn(x):u", {}, DesignError, "is a term of its own of experts or gate"),
        ("y ~ nn(g)", {}, DesignError, "input 1 of nn.* must be one column of numbers.* read as text"),
        ("y ~ nn()", {}, DesignError, r"nn\(\) has no inputs"),
        ("y ~ nn(x) + common(u)", {}, FormulaError, r"NMoE has no common"),
        ("y ~ nn(x) | vary: u", {}, FormulaError, "has no section 'vary:'"),
        ("y ~ nn(x) | re: (last | id)", {}, FormulaError, "have random effects of columns: write"),
        ("one ~ nn(x)", {}, ArgumentError, "the response 'one' is 1 in all 300 rows"),
        ("y ~ nn(x) | re: (1 | row)", {}, ArgumentError, "each subject has one row"),
        ("y ~ nn(x) | re: (1 | id) + (1 | g)", {}, FormulaError, "more than one grouping factor"),
        ("y ~ nn(x)", {"hidden": {"expert": (2,)}}, ArgumentError, "hidden has widths for 'experts' and 'gate'"),
        ("y ~ nn(x)", {"hidden": 3}, ArgumentError, "hidden must hold positive whole numbers"),
        ("y ~ nn(x)", {"body": "own"}, ArgumentError, "body must be one of 'expert', 'common'"),
        ("y ~ nn(x)", {"family": "poisson"}, ArgumentError, "NMoE has no family=: the exact likelihood"),
        ("y ~ nn(x)", {"weights": "u"}, ArgumentError, "NMoE has no weights=: each row counts once"),
        ("y ~ nn(x)", {"cov_type": "bootstrap"}, ArgumentError, "'nonrobust', 'robust' and 'cluster', got 'bootstrap'"),
        ("y ~ nn(x)", {"start": [1.0]}, ArgumentError, "start must have 41 finite values"),
        ("y ~ x | gate: nn(x) | re: (0 | id)", {}, DesignError, "constant"),
    ],
)
def test_what_cannot_be_fitted_is_refused(data, formula, options, error, message):
    frame = data.assign(g="a", one=1.0, row=np.arange(len(data)))
    with pytest.raises(error, match=message):
        mm.fit(formula, frame, rng=0, **options)


@pytest.mark.parametrize("family", [mm.MEMoE, mm.NME])
def test_other_families_have_no_networks_in_the_formula(data, family):
    with pytest.raises(DesignError, match="a network nn"):
        family("y ~ nn(x) | re: (0 | id)", data)


def test_influence_names_functions_not_weights(fit):
    found = fit.influence()
    assert ".weight[" not in str(found)
    assert set(found.functions) == {"expert 1: network", "expert 2: network"}
    V = fit.cov_params().to_numpy()
    for j, places in enumerate(found.functions.values()):
        at = list(places)
        d = found.change[0, at]
        expected = np.sqrt(d @ np.linalg.solve(V[np.ix_(at, at)], d) / len(at))
        assert found.function_change[0, j] == pytest.approx(expected, rel=1e-5)


def test_figures_and_tables_say_what_networks_are(data, fit):
    curves = fit.curves("effects")
    assert {(c.limits, c.bands, c.compared) for c in curves} == {("95 % pointwise", "95 % simultaneous", True)}
    other = mm.fit("y ~ x | gate: z | re: (1 | id)", data, experts=1)
    words = str(mm.table({"linear": other, "network": fit}))
    assert "blank cells of x of the experts are a network" in " ".join(words.split())
    assert "intercepts are those at features of zero" in " ".join(words.split())
