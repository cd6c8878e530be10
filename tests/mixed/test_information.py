"""Standard errors against brute force; boundaries, clusters, bootstrap, relabelling, tests."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2

import mixmoe as mm
from mixmoe.errors import ArgumentError, BoundaryWarning, DegeneracyWarning, MixmoeWarning
from mixmoe.inference.wald import InvalidTest
from mixmoe.mixed import estimation as bootstrap
from mixmoe.mixed import information
from mixmoe.mixed.ascents import permute
from mixmoe.mixed.boundary import Basis, find_boundary, invert_information
from mixmoe.mixed.estimation import Resample, resampled
from mixmoe.mixed.likelihood.hessian import observed_information
from mixmoe.mixed.likelihood.observed import subject_scores
from mixmoe.mixed.parameters import free_to_reported_jacobian
from tests import dense
from tests.fits import carried

FORMULA = "y ~ time + common(x1) | gate: z1 | re: (1 + time | id)"
CLOSE = 1e-6  # relative, of variances; the brute-force Hessian is a difference of exact scores


@pytest.fixture(scope="module")
def data():
    return mm.simulate.memoe("separated", n_subjects=60, n_visits=4, rng=1).data


@pytest.fixture(scope="module")
def fit(data):
    return carried(FORMULA, data)


@pytest.fixture(scope="module")
def brute(fit):
    """Inverse information and subject scores of the fit, by dense algebra."""
    return np.linalg.inv(-dense.hessian(fit.model, fit.em.params)), dense.scores(fit.model, fit.em.params)


def assert_close(ours, theirs):
    """Equal on the scale of the standard errors."""
    se = np.sqrt(np.diag(theirs))
    np.testing.assert_allclose(np.asarray(ours) / np.outer(se, se), theirs / np.outer(se, se), rtol=0, atol=CLOSE)


# ---- sandwich ----


def test_nonrobust_is_the_inverse_information(fit, brute):
    assert_close(fit.with_cov("nonrobust").cov_params(), brute[0])


def test_robust_is_the_sandwich_over_subjects(fit, brute):
    inverse, scores = brute
    assert fit.cov_type == "robust"
    plain = fit.with_cov("robust", correction=False)
    assert_close(plain.cov_params(), inverse @ (scores.T @ scores) @ inverse)
    assert fit.bse.to_numpy() == pytest.approx(np.sqrt(np.diag(fit.cov.matrix)))


def test_what_is_known_at_a_fit_is_worked_out_once_and_not_taken_for_that_of_another(fit, monkeypatch):
    fit.with_cov("nonrobust")
    calls = []

    def counted(problem, coordinates, theta):
        calls.append(theta)
        return find_boundary(problem, coordinates, theta)

    monkeypatch.setattr(information, "find_boundary", counted)
    robust = fit.with_cov("robust")
    fit.with_cov("nonrobust")
    fit.profile("expert1.time")
    assert not calls
    turned = fit.relabel([2, 1])
    np.testing.assert_allclose(turned.with_cov("robust").bse["expert2.time"], robust.bse["expert1.time"], rtol=1e-7)
    assert len(calls) == 1


def test_default_scores_are_corrected_for_leverage(fit):
    """(I - H_i A^-1)^-1 s_i with the information H_i of each subject from a problem of one subject."""
    model, theta = fit.model, fit.model.working(fit.em.params)
    problem = model.problem
    A = observed_information(problem, theta)
    changes = []
    for i in range(problem.n_subjects):
        alone = problem.take(np.array([i]))
        share = observed_information(alone, theta) @ np.linalg.inv(A)
        values, vectors = np.linalg.eig(share)
        share = (vectors * np.maximum(values.real, 0.0)) @ np.linalg.inv(vectors)  # negative shares count as none
        changes.append(
            np.linalg.solve(A, np.linalg.solve(np.eye(len(A)) - share.real, subject_scores(alone, theta)[0]))
        )
    changes = np.array(changes) @ free_to_reported_jacobian(problem.structure, model.coordinates, theta).T
    assert_close(fit.cov_params(), changes.T @ changes)
    assert "corrected for leverage" in str(fit.summary())


@pytest.mark.filterwarnings("ignore:There are only")
@pytest.mark.parametrize("form", ["rows", "series of rows", "list"])
def test_clusters(form, fit, brute, data):
    inverse, scores = brute
    site = {label: label % 29 for label in fit.model.design.labels}
    series = data["id"].map(site)
    cluster = {"rows": series.to_numpy(), "series of rows": series, "list": series.tolist()}[form]
    summed = np.array([scores[[site[i] == g for i in fit.model.design.labels]].sum(axis=0) for g in range(29)])
    other = fit.with_cov("cluster", cluster=cluster, correction=False)
    ours, theirs = other.cov_params().to_numpy(), inverse @ (summed.T @ summed) @ inverse
    size = np.sqrt(np.diag(inverse))
    np.testing.assert_allclose(ours / np.outer(size, size), theirs / np.outer(size, size), atol=1e-5)
    assert "29 clusters" in str(other.summary())


def test_fewer_clusters_than_parameters_have_no_standard_errors(fit, data):
    site = (data["id"] % 7).to_numpy()
    with pytest.warns(
        DegeneracyWarning, match=r"7 clusters have rank 7 for 15 .*Use cov_type='nonrobust'.* or 'bootstrap'"
    ):
        other = fit.with_cov("cluster", cluster=site)
    assert other.bse.isna().all()
    assert other.pvalues.isna().all()
    assert other.conf_int().isna().all(axis=None)
    assert [flag.code for flag in other.flags] == ["few_subjects"]
    assert isinstance(other.wald_test("expert1.time"), InvalidTest)
    assert fit.flags == ()


def test_each_subject_its_own_cluster_is_robust(fit):
    own = fit.with_cov("cluster", cluster="id")
    assert own.cov_params().to_numpy() == pytest.approx(fit.cov_params().to_numpy())


@pytest.mark.filterwarnings("ignore:There are only", "ignore:What is said")
def test_clusters_at_the_door(fit, data):
    labels = data["id"] % 20
    direct = mm.fit(FORMULA, data, start=fit, cov_type="cluster", cluster=labels.to_numpy())
    assert direct.bse.to_numpy() == pytest.approx(
        fit.with_cov("cluster", cluster=labels.to_numpy()).bse.to_numpy(), rel=1e-5
    )


def test_bad_clusters_are_refused(fit, data):
    with pytest.raises(ArgumentError, match="cov_type='cluster' needs the clusters, got None; pass cluster="):
        fit.with_cov("cluster")
    with pytest.raises(ArgumentError, match=r"cluster='site' is not among the columns .* pass data\['site'\], or fit"):
        fit.with_cov("cluster", cluster="site")
    with pytest.raises(ArgumentError, match=r"cluster must have one value for each of the 240 rows .* got 3"):
        fit.with_cov("cluster", cluster=[1, 2, 3])
    with pytest.raises(ArgumentError, match=r"got a dict; for values by subject pass data\['id'\].map"):
        fit.with_cov("cluster", cluster={1: 1})
    with pytest.raises(ArgumentError, match="subject 1 lies in more than one cluster"):
        fit.with_cov("cluster", cluster=np.arange(240))
    missing = (data["id"] % 20).where(data["id"] != 9)
    with pytest.raises(ArgumentError, match=r"row \d+ has no cluster \(missing value\)"):
        fit.with_cov("cluster", cluster=missing.to_numpy())
    with pytest.raises(ArgumentError, match="cov_type='robust' has no option 'cluster'; it has"):
        fit.with_cov("robust", cluster=data["id"])


@pytest.mark.parametrize("cov_re", ["common", "proportional"])
@pytest.mark.parametrize("residual", ["expert", "common"])
def test_other_structures(cov_re, residual, data):
    few = data[data["id"] <= 36]
    fit = carried("y ~ time | gate: z1 | re: (1 | id)", few, cov_re=cov_re, residual=residual)
    inverse = np.linalg.inv(-dense.hessian(fit.model, fit.em.params))
    scores = dense.scores(fit.model, fit.em.params)
    assert_close(fit.with_cov("nonrobust").cov_params(), inverse)
    assert_close(fit.with_cov("robust", correction=False).cov_params(), inverse @ (scores.T @ scores) @ inverse)


def test_proportions_have_delta_method_errors(fit):
    """Derivatives of the mean probabilities, numerically."""
    table = fit.proportions()
    gates = [name for name in fit.params.index if name.startswith("gate")]

    def shares(gate):
        named = {**fit.params.to_dict(), **dict(zip(gates, gate, strict=True))}
        return np.exp(dense.log_gate(fit.model.design, named, 2)).mean(axis=0)

    at = fit.params[gates].to_numpy()
    J = np.array([(shares(at + h) - shares(at - h)) / 2e-6 for h in 1e-6 * np.eye(len(gates))]).T
    V = J @ fit.cov_params().loc[gates, gates].to_numpy() @ J.T
    np.testing.assert_allclose(table["estimate"], shares(at), rtol=1e-10)
    np.testing.assert_allclose(table["std_error"], np.sqrt(np.diag(V)), rtol=1e-6)
    logit = np.log(shares(at) / (1 - shares(at)))
    half = 1.959963984540054 * np.sqrt(np.diag(V)) / (shares(at) * (1 - shares(at)))
    np.testing.assert_allclose(table["conf_low"], 1 / (1 + np.exp(half - logit)), rtol=1e-6)
    np.testing.assert_allclose(table["conf_high"], 1 / (1 + np.exp(-half - logit)), rtol=1e-6)


def test_units_change_errors_as_they_change_estimates(fit, data):
    other = carried(FORMULA, data.assign(y=1000 * data["y"]))
    for name in fit.params.index:
        factor = 1 if name.startswith(("gate", "corr")) else 1000
        assert other.bse[name] == pytest.approx(factor * fit.bse[name], rel=1e-6)


# ---- boundary ----


@pytest.fixture(scope="module")
def flat():
    """A fit whose slopes do not vary between subjects."""
    rng = np.random.default_rng(3)
    subject = np.repeat(np.arange(60), 5)
    time = np.tile(np.arange(5.0) - 2, 60)
    noise = rng.normal(size=300)
    slope = pd.Series(noise * time).groupby(subject).transform("sum") / 10
    y = noise - 0.95 * slope * time + 2 * rng.normal(size=60)[subject] + time
    frame = pd.DataFrame({"id": subject, "time": time, "y": y})
    return frame


def test_a_zero_variance_has_no_standard_error_and_the_others_do(flat):
    with pytest.warns(BoundaryWarning, match="no Wald standard errors"):
        fit = mm.fit("y ~ time | re: (1 + time || id)", flat, 1)
    smaller = mm.fit("y ~ time | re: (1 | id)", flat, 1)
    assert fit.params["sd1(time|id)"] == 0
    blank = fit.bse.index[fit.bse.isna()]
    assert list(blank) == ["sd1(time|id)"]
    assert fit.cov_params().loc["sd1(time|id)"].isna().all()
    rest = fit.bse.drop("sd1(time|id)")
    np.testing.assert_allclose(rest, smaller.bse[rest.index], rtol=1e-6)
    assert fit.conf_int().loc["sd1(time|id)"].isna().all()
    assert "on the boundary" in str(fit.summary())
    refused = fit.wald_test("sd1(time|id) = 1")
    assert isinstance(refused, InvalidTest)
    assert not isinstance(fit.wald_test("expert1.time = 1"), InvalidTest)


def test_a_singular_covariance_blanks_its_correlations(flat):
    with pytest.warns(BoundaryWarning, match="singular"):
        fit = mm.fit("y ~ time | re: (1 + time | id)", flat, 1)
    assert np.isnan(fit.bse["corr1(Intercept,time|id)"])
    assert np.isfinite(fit.bse[["expert1.Intercept", "expert1.time", "sigma1"]]).all()
    assert fit.model.largest_score(fit.params) < 1e-5


def test_directions_without_information_are_set_apart():
    axes = np.eye(5)
    found = invert_information(np.diag([4.0, 1.0, 0.0, 9.0, 0.1]), Basis(axes[:, :3], axes[:, [4]]))
    np.testing.assert_allclose(found.matrix, np.diag([0.25, 1, 0, 0, 0]))
    np.testing.assert_allclose(np.abs(found.null), axes[:, [2, 4]])


def test_information_that_is_not_definite_gives_no_negative_variance():
    found = invert_information(np.diag([1.0, -1.0]), Basis(np.eye(2), np.zeros((2, 0))))
    np.testing.assert_allclose(found.matrix, np.diag([1.0, 0.0]))
    np.testing.assert_allclose(np.abs(found.null), [[0], [1]])


# ---- bootstrap ----


@pytest.fixture(scope="module")
def small(data):
    return carried("y ~ time | gate: z1 | re: (1 | id)", data)


def test_bootstrap_does_not_depend_on_the_number_of_workers(small):
    one = small.with_cov("bootstrap", n_boot=4, n_jobs=1, rng=7)
    two = small.with_cov("bootstrap", n_boot=4, n_jobs=2, rng=7)
    np.testing.assert_allclose(one.cov_params(), two.cov_params(), rtol=1e-12)
    assert one.cov_type == "bootstrap"
    assert one.cov.note == "4 resamples of subjects"


def test_bootstrap_is_close_to_the_sandwich(small):
    ratio = small.with_cov("bootstrap", n_boot=60, rng=1).bse / small.bse
    assert ratio.between(0.6, 1.7).all()
    assert ratio.median() == pytest.approx(1, abs=0.2)


def test_a_resample_is_a_fit_to_repeated_subjects(small, data):
    """Brute force: the frame with the drawn subjects, refitted."""
    model = small.model
    N = small.n_units
    drawn = np.sort(np.random.default_rng(5).integers(N, size=N))
    ours = Resample(model.problem, model.coordinates, model.working(small.em.params))(np.random.default_rng(5))
    pieces = [data[data["id"] == model.design.labels[i]].assign(id=copy) for copy, i in enumerate(drawn)]
    refit = mm.fit(model.formula.text, pd.concat(pieces, ignore_index=True), start=small)
    names = list(small.params.index)
    found = refit.params[names].to_numpy()
    flipped = refit.relabel([2, 1]).params[names].to_numpy()
    target = small.params.to_numpy()
    nearest = found if np.abs(found - target)[:4].sum() < np.abs(flipped - target)[:4].sum() else flipped
    assert ours == pytest.approx(nearest, rel=1e-3, abs=1e-3)


def test_resamples_hold_whole_clusters():
    clusters = np.array([0, 0, 1, 2, 2, 1])
    for seed in range(5):
        times = np.bincount(resampled(6, clusters, np.random.default_rng(seed)), minlength=6)
        assert sum(times[[0, 2, 3]]) == 3
        np.testing.assert_array_equal(times, times[[0, 0, 2, 3, 3, 2]])


def test_twins_in_clusters_are_one_subject_to_the_bootstrap(data):
    twins = pd.concat([data.assign(pair=data["id"], id=[f"{i}{t}" for i in data["id"]]) for t in "ab"])
    fit = mm.fit("y ~ time | re: (1 | id)", twins, experts=1, cluster="pair", cov_type="bootstrap", n_boot=80, rng=0)
    alone = mm.fit("y ~ time | re: (1 | id)", data, experts=1)
    assert "80 resamples of clusters" in str(fit.summary())
    assert (fit.bse / alone.bse).to_numpy() == pytest.approx(1, abs=0.3)  # those of subjects would be 0.7
    assert "subjects of a cluster are not independent" in two_with_clusters(twins).test_experts().reason


def two_with_clusters(twins):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        return mm.fit("y ~ time | re: (0 | id)", twins, experts=2, cluster="pair", starts=1, rng=0)


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 0, 1], [2, 1, 0]])
def test_replicates_get_the_labels_of_the_fit(order, three, monkeypatch):
    """A refit that ends with the experts in another order is the same estimate, not a draw from elsewhere."""
    model, theta = three.model, three.model.working(three.em.params)
    swapped = permute(model.problem, theta, order)
    assert np.abs(model.natural(swapped) - three.params.to_numpy()).max() > 0.1
    monkeypatch.setattr(Resample, "refit", lambda self, rng: swapped)
    draw = Resample(model.problem, model.coordinates, theta)(np.random.default_rng(0))
    assert draw == pytest.approx(three.params.to_numpy(), rel=1e-8)
    assert three.with_cov("bootstrap", n_boot=3, rng=0).bse.max() < 1e-6


def test_labels_are_matched_where_only_spread_tells_experts_apart(data, monkeypatch):
    """Coefficients that are all shared say nothing about labels; subjects do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        fit = mm.fit("y ~ common(1) + common(time) | gate: 1 | re: (1 | id)", data, experts=2, starts=4, rng=0)
    model, theta = fit.model, fit.model.working(fit.em.params)
    swapped = permute(model.problem, theta, [1, 0])
    monkeypatch.setattr(Resample, "refit", lambda self, rng: swapped)
    draw = Resample(model.problem, model.coordinates, theta)(np.random.default_rng(0))
    assert draw == pytest.approx(fit.params.to_numpy(), rel=1e-6, abs=1e-8)


def test_bootstrap_keeps_what_it_has_when_interrupted(small, monkeypatch):
    original, calls = Resample.__call__, []

    def tired(self, rng):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(self, rng)

    monkeypatch.setattr(Resample, "__call__", tired)
    stopped = small.with_cov("bootstrap", n_boot=50, rng=1)
    assert stopped.cov.note == "5 resamples of subjects, interrupted before 50 were done"
    assert "interrupted" in str(stopped.summary())
    assert np.isfinite(stopped.bse).all()


def test_an_interrupt_inside_an_ascent_ends_the_bootstrap(small, monkeypatch):
    """climb() returns what it has after Ctrl-C; that must not count as one resample that failed."""
    real, calls = bootstrap.climb, []

    def tired(*args, **options):
        calls.append(1)
        return replace(real(*args, **options), interrupted=len(calls) == 6)

    monkeypatch.setattr(bootstrap, "climb", tired)
    stopped = small.with_cov("bootstrap", n_boot=50, rng=1)
    assert len(calls) == 6
    assert stopped.cov.note == "5 resamples of subjects, interrupted before 50 were done"


def test_an_interrupt_before_two_resamples_keeps_the_fit(small, monkeypatch):
    def interrupted(self, rng):
        raise KeyboardInterrupt

    monkeypatch.setattr(Resample, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small.with_cov("bootstrap", n_boot=50, rng=1)
    kept = small.model.fit(start=small, cov_type="bootstrap", n_boot=50, rng=1)
    assert kept.llf == pytest.approx(small.llf)
    assert "interrupted" in kept.cov.note


def test_bootstrap_that_fails_says_so(small, monkeypatch):
    monkeypatch.setattr(Resample, "__call__", lambda self, rng: np.full(self.theta.size, np.nan))
    with pytest.raises(ArgumentError, match="only 0 of 3 bootstrap resamples could be fitted; use another cov_type"):
        small.with_cov("bootstrap", n_boot=3)
    with pytest.raises(ArgumentError, match="n_jobs must be a whole number of at least 1, got 0"):
        small.with_cov("bootstrap", n_boot=3, n_jobs=0)
    with pytest.raises(ArgumentError, match="n_boot must be a whole number of at least 2, got 1"):
        small.with_cov("bootstrap", n_boot=1)


# ---- relabel ----


@pytest.fixture(scope="module")
def three():
    sim = mm.simulate.memoe("three", n_subjects=90, n_visits=5, rng=2)
    return carried("y ~ time | gate: z1 | re: (1 | id)", sim.data, 3)


@pytest.mark.parametrize("order", [[1, 2, 3], [2, 1, 3], [3, 1, 2]])
def test_relabelling_moves_everything(order, three):
    moved = three.relabel(order)
    for k, old in enumerate(order, start=1):
        for what in ("expert{}.Intercept", "expert{}.time", "sd{}(Intercept|id)", "sigma{}"):
            assert moved.params[what.format(k)] == pytest.approx(three.params[what.format(old)])
            assert moved.bse[what.format(k)] == pytest.approx(three.bse[what.format(old)], rel=1e-9)
        assert moved.responsibilities[f"expert{k}"].equals(three.responsibilities[f"expert{old}"])
    assert moved.llf == three.llf
    assert moved.model.loglike(moved.params) == pytest.approx(three.llf, abs=1e-8)
    np.testing.assert_allclose(moved.fitted(), three.fitted(), rtol=1e-9)
    np.testing.assert_allclose(
        moved.predict(interval="confidence")["mean_se"], three.predict(interval="confidence")["mean_se"], rtol=1e-7
    )


def test_the_relabelled_covariance_is_that_of_the_relabelled_fit(three):
    moved = three.relabel([3, 1, 2])
    again = moved.with_cov("robust")
    size = np.sqrt(np.diag(again.cov.matrix))
    np.testing.assert_allclose(
        moved.cov.matrix / np.outer(size, size), again.cov.matrix / np.outer(size, size), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("cov_re", ["common", "proportional"])
def test_relabelling_shared_covariances(cov_re, data):
    fit = carried("y ~ time | gate: z1 | re: (1 | id)", data, cov_re=cov_re)
    moved = fit.relabel([2, 1])
    assert moved.model.loglike(moved.params) == pytest.approx(fit.llf, abs=1e-8)
    back = moved.relabel([2, 1])
    np.testing.assert_allclose(back.params, fit.params, rtol=1e-10)
    np.testing.assert_allclose(back.bse, fit.bse, rtol=1e-8)
    size = np.sqrt(np.diag(moved.cov.matrix))
    # The leverage of a subject depends on how ratios are written, to second order; the sandwich itself does not.
    again = moved.with_cov("robust", correction=cov_re == "common").cov.matrix
    moved = fit.with_cov("robust", correction=cov_re == "common").relabel([2, 1])
    size = np.sqrt(np.diag(moved.cov.matrix))
    np.testing.assert_allclose(moved.cov.matrix / np.outer(size, size), again / np.outer(size, size), rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", [[1, 2], [0, 1, 2], [1, 1, 2], [1, 2, 3, 4], None])
def test_a_relabelling_that_is_no_permutation_is_refused(order, three):
    with pytest.raises(ArgumentError, match=r"order must be a permutation of 1\.\.3, got (\[|None)"):
        three.relabel(order)


# ---- tests ----


def test_wald_test_by_hand(fit):
    matrix = np.zeros(len(fit.params))
    names = list(fit.params.index)
    matrix[names.index("expert1.time")], matrix[names.index("expert2.time")] = 1, -1
    difference = fit.params["expert1.time"] - fit.params["expert2.time"]
    expected = difference**2 / (matrix @ fit.cov.matrix @ matrix)
    test = fit.wald_test("expert1.time = expert2.time")
    assert test.statistic == pytest.approx(expected)
    assert test.pvalue == pytest.approx(chi2.sf(expected, 1))
    contrast = fit.t_test("expert1.time = expert2.time")
    assert contrast.effect[0] == pytest.approx(difference)
    assert contrast.tvalue.item() ** 2 == pytest.approx(expected)


def test_likelihood_ratio_of_a_random_slope():
    data = mm.simulate.memoe("single", n_subjects=60, n_visits=5, rng=4).data
    small = mm.fit("y ~ time | re: (1 | id)", data, 1)
    large = mm.fit("y ~ time | re: (1 + time | id)", data, 1)
    test = large.lr_test(small)
    statistic = 2 * (large.llf - small.llf)
    assert test.statistic == pytest.approx(statistic)
    mixture = 0.5 * chi2.sf(statistic, 1) + 0.5 * chi2.sf(statistic, 2)  # Stram & Lee (1994), case 3
    assert test.pvalue == pytest.approx(mixture)
    assert small.lr_test(large).pvalue == pytest.approx(mixture)


def test_likelihood_ratio_of_fixed_effects(data):
    small = carried("y ~ time | gate: z1 | re: (1 | id)", data)
    large = carried("y ~ time + x1 | gate: z1 | re: (1 | id)", data)
    test = large.lr_test(small)
    assert test.df == 2
    assert test.pvalue == pytest.approx(chi2.sf(2 * (large.llf - small.llf), 2))


def test_numbers_of_experts_cannot_be_compared_by_chi_squared(data, small):
    one = mm.fit("y ~ time | re: (1 | id)", data, 1)
    test = small.lr_test(one)
    assert isinstance(test, InvalidTest)
    assert "experts" in str(test)


def test_the_score_of_the_model_is_that_of_its_log_likelihood(fit):
    model, at = fit.model, fit.params.to_numpy() * 1.01
    numeric = [(model.loglike(at + h) - model.loglike(at - h)) / (2 * h.max()) for h in 1e-5 * np.eye(len(at))]
    assert model.score(at) == pytest.approx(numeric, rel=1e-4, abs=1e-4)


def test_infinite_gate_coefficients_have_no_standard_errors():
    rng = np.random.default_rng(9)
    subject = np.repeat(np.arange(80), 4)
    group = (subject % 2).astype(float)
    frame = pd.DataFrame({"id": subject, "g": group, "y": 20 * group + rng.normal(size=320) * (1 + group)})
    with pytest.warns(BoundaryWarning, match="gate covariate g leaves no subjects to expert 1 where g ="):
        fit = mm.fit("y ~ 1 | gate: g | re: (0 | id)", frame, rng=0)
    gates = ["gate2.Intercept", "gate2.g"]
    assert fit.bse[gates].isna().all()
    means = frame.groupby("g")["y"].mean()
    found = sorted(fit.params[["expert1.Intercept", "expert2.Intercept"]])
    np.testing.assert_allclose(found, means, rtol=1e-8, atol=1e-8)  # one mean is .005 beside errors of deviation 1
    assert fit.bse.drop(gates).notna().all()
    assert isinstance(fit.wald_test("gate2.g = 0"), InvalidTest)
