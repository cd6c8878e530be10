"""Fits of Dask frames equal fits of the same rows in memory, on threads and on workers of a cluster."""

import gc
import os
import signal
import warnings
from contextlib import contextmanager

import numpy as np
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError, DesignError
from mixmoe.mixed.likelihood.gaussian import GaussianExperts
from mixmoe.mixed.likelihood.spread import SpreadExperts
from mixmoe.mixed.partitioned import PartitionedMEMoE
from mixmoe.partitions.scan import as_partitions

frames = pytest.importorskip("dask.dataframe")
FORMULA = "y ~ bs(time, df=4) + scale(x1) + C(g) | gate: z1 | re: (1 | id)"


@pytest.fixture(scope="module")
def rows():
    data = mm.simulate.memoe("separated", n_subjects=120, rng=1).data.drop(columns="expert")
    rng = np.random.default_rng(3)
    data["g"] = np.array(["low", "mid", "top"])[rng.integers(3, size=len(data))]
    return data.iloc[rng.permutation(len(data))].reset_index(drop=True)


def fitted(data, **options):
    return mm.fit(FORMULA, data, experts=2, rng=0, starts=4, **options)


@pytest.fixture(scope="module")
def in_memory(rows):
    return fitted(rows)


def same(one, other):
    assert list(one.params.index) == list(other.params.index)
    assert one.llf == pytest.approx(other.llf, rel=1e-10)
    np.testing.assert_allclose(one.params, other.params, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(one.bse, other.bse, rtol=1e-6)


def partitioned(rows, n):
    return frames.from_pandas(rows, npartitions=n, sort=False)


@pytest.mark.parametrize("n", [1, 7])
def test_any_number_of_partitions_gives_the_fit_in_memory(rows, in_memory, n):
    same(fitted(partitioned(rows, n)), in_memory)


def test_predictions_are_a_frame_of_which_nothing_is_computed(rows, in_memory):
    data = partitioned(rows, 3)
    found = fitted(data)
    for kind in ("probabilities", "subject"):
        predicted = found.predict(data, kind)
        assert hasattr(predicted, "compute")
        known = in_memory.predict(rows, kind)
        np.testing.assert_allclose(predicted.compute()[known.columns], known, rtol=1e-8)


def test_errors_name_the_partition(rows):
    with pytest.raises(DesignError, match=r"'x1' is inf .*rows counted in partition 0"):
        fitted(partitioned(rows.assign(x1=np.inf), 2))
    with pytest.raises(DesignError, match="'x1', which is not a column"):
        fitted(partitioned(rows.drop(columns="x1"), 2))


class Killer:
    """A function of the formula that ends its process, once, in the middle of the second pass."""

    def __init__(self, mark):
        self.mark = mark

    def __call__(self, value):
        if value > 2.0 and not os.path.exists(self.mark) and os.environ.get("DASK_WORKER_OF_TEST"):
            with open(self.mark, "w", encoding="utf-8"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        return value


@contextmanager
def a_client(**options):
    """A client of a local cluster."""
    distributed = pytest.importorskip("distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the cluster: ports in use, workers that are restarted
        cluster = distributed.LocalCluster(threads_per_worker=1, dashboard_address=None, **options)
        with cluster, distributed.Client(cluster) as client:
            yield client


def test_what_workers_keep_gives_the_fit_in_memory_and_is_here_afterwards(rows, in_memory):
    rows = rows.assign(w=1.0 + rows["id"] % 3, h=np.where(rows["id"] % 7 < 3, "b", "a"))
    formula = "y ~ time * h + x1 | re: (1 + time | id)"
    options = {"experts": 1, "rng": 0, "weights": "w", "cluster": "g7"}
    rows["g7"] = rows["id"] % 17
    partial = rows.assign(x1=np.where(rows["id"] < 9, np.nan, rows["x1"]))
    seen = []
    with a_client(processes=False, n_workers=2) as client:
        with pytest.MonkeyPatch.context() as patch:
            mapped = SpreadExperts.mapped
            patch.setattr(SpreadExperts, "mapped", lambda self, task: seen.append(task) or mapped(self, task))
            found = fitted(partitioned(rows, 7))
            other = mm.fit(formula, partitioned(partial, 3), **options)
            alone = mm.fit("y ~ time | re: (1 | id)", partitioned(rows, 2), experts=1, method="reml", rng=0)
        gc.collect()
        assert not client.futures  # nothing is left with the workers
        with pytest.raises(DesignError, match=r"'x1' is inf .*rows counted in partition 0"):
            fitted(partitioned(rows.assign(x1=np.inf), 2))
        with pytest.raises(ArgumentError, match="lies in more than one cluster"):
            mm.fit(formula, partitioned(rows.assign(g7=range(len(rows))), 3), **options)
    assert len(seen) > 10
    assert isinstance(found.model.problem.experts, GaussianExperts)
    same(found, in_memory)
    np.testing.assert_allclose(found.random_effects, in_memory.random_effects, rtol=1e-6, atol=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same(other, mm.fit(formula, partial, **options))
    same(alone, mm.fit("y ~ time | re: (1 | id)", rows, experts=1, method="reml", rng=0))


def test_a_cluster_that_is_gone_is_told(rows):
    with a_client(processes=False, n_workers=1):
        model = PartitionedMEMoE(FORMULA, as_partitions(partitioned(rows, 3)), 2)
    with pytest.raises(ArgumentError, match="if the client is closed or its workers are lost, open another"):
        model.fit(rng=0)


@pytest.mark.slow
def test_workers_of_a_cluster_and_the_death_of_one_change_nothing(rows, in_memory, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    mapped, left, mark = SpreadExperts.mapped, [8], tmp_path / "killed"

    def mapped_and_killed(self, task):
        left[0] -= 1
        if not left[0]:  # in the middle of an ascent
            client = distributed.default_client()
            one = next(iter(client.scheduler_info()["workers"]))
            os.kill(client.run(os.getpid, workers=[one])[one], signal.SIGKILL)
        return mapped(self, task)

    monkeypatch.setattr(SpreadExperts, "mapped", mapped_and_killed)
    with a_client(n_workers=2, env={"DASK_WORKER_OF_TEST": "1"}):
        killed = FORMULA.replace("bs(time, df=4)", "bs(f(time), df=4)")
        context = {"f": np.vectorize(Killer(str(mark)), otypes=[float])}
        found = mm.fit(killed, partitioned(rows, 5), experts=2, rng=0, starts=4, context=context)
    assert mark.exists()
    assert left[0] < 0
    assert found.llf == pytest.approx(in_memory.llf, rel=1e-10)
    np.testing.assert_allclose(found.params, in_memory.params, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(found.bse, in_memory.bse, rtol=1e-6)
