"""A fit that was killed goes on from its checkpoint, with the result of one that was not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mixmoe as mm
from mixmoe.errors import ArgumentError, ConvergenceWarning
from mixmoe.mixed import ascents
from mixmoe.mixture import resampling

pytest.importorskip("pyarrow")
FORMULA = "y ~ time + x1 | gate: z1 | re: (1 | id)"
# A fit that ends its own process, as the system would, in the middle of an ascent, every step of which was kept.
KILLED = """
import os, signal, sys
import mixmoe as mm
from mixmoe.mixed import ascents
from mixmoe.mixture import resampling
resampling._EVERY = 0.0
evaluate, left = ascents.evaluate, [int(sys.argv[3])]
def dying(problem, theta):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return evaluate(problem, theta)
ascents.evaluate = dying
mm.fit({formula!r}, mm.scan(sys.argv[1]), experts=2, rng=0, starts=4, checkpoint=sys.argv[2])
"""


@pytest.fixture(scope="module")
def visits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("visits")
    data = mm.simulate.memoe("moderate", n_subjects=80, rng=1).data.drop(columns="expert")
    for i, places in enumerate(np.array_split(np.arange(len(data)), 3)):
        data.iloc[places].to_parquet(folder / f"part{i}.parquet", index=False)
    return folder


def fitted(visits, **options):
    return mm.fit(FORMULA, mm.scan(visits), **{"experts": 2, "rng": 0, "starts": 4, **options})


def counted(visits, **options):
    """A fit, and how often its ascents asked for the likelihood."""
    evaluate, count = ascents.evaluate, [0]

    def counting(problem, theta):
        count[0] += 1
        return evaluate(problem, theta)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ascents, "evaluate", counting)
        return fitted(visits, **options), count[0]


@pytest.fixture(scope="module")
def counted_whole(visits):
    return counted(visits)


@pytest.fixture(scope="module")
def whole(counted_whole):
    return counted_whole[0]


def same(one, other):
    assert one.llf == other.llf
    np.testing.assert_array_equal(one.params, other.params)
    np.testing.assert_array_equal(one.bse, other.bse)
    assert one.summary().as_text() == other.summary().as_text()


def test_a_killed_process_is_continued_with_the_same_result(visits, counted_whole, tmp_path):
    (whole, of_all), path = counted_whole, tmp_path / "fit.checkpoint"
    done = subprocess.run(
        [sys.executable, "-c", KILLED.format(formula=FORMULA), str(visits), str(path), str(of_all - 5)],
        env={**os.environ, "PYTHONPATH": str(Path(mm.__file__).parents[1])},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    path.write_bytes(path.read_bytes()[:-7])  # its last line cut short, as where a disk was full
    found, n = counted(visits, checkpoint=path)
    same(found, whole)
    assert n < 30 < of_all
    # A fit that has ended is there at once, and the seed is that of the file.
    again, n = counted(visits, checkpoint=path, rng=None)
    np.testing.assert_array_equal(again.params, whole.params)
    assert n == 1  # of the score at the end


@pytest.mark.parametrize("at", [3, 40, 90])
def test_after_ctrl_c_the_best_is_kept_and_the_next_call_goes_on(visits, whole, tmp_path, monkeypatch, at):
    evaluate, left = ascents.evaluate, [at]

    def stopped(problem, theta):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return evaluate(problem, theta)

    monkeypatch.setattr(ascents, "evaluate", stopped)
    with pytest.warns(ConvergenceWarning, match="interrupted"):
        cut = fitted(visits, checkpoint=tmp_path / "c")
    assert np.isfinite(cut.llf)
    assert not cut.converged
    same(fitted(visits, checkpoint=tmp_path / "c"), whole)


def test_what_is_no_checkpoint_of_this_fit_is_refused(visits, tmp_path):
    path = tmp_path / "c"
    fitted(visits, checkpoint=path)
    for options in ({"starts": 5}, {"experts": 3}, {"residual": "common"}, {"tol": 1e-5}):
        with pytest.raises(ArgumentError, match="other data, another model or other options"):
            fitted(visits, checkpoint=path, **options)
    with pytest.raises(ArgumentError, match="written for another rng"):
        fitted(visits, checkpoint=path, rng=1)
    with pytest.raises(ArgumentError, match="other data"):
        mm.fit(FORMULA, mm.scan(visits / "part0.parquet"), experts=2, rng=0, starts=4, checkpoint=path)
    text = path.read_bytes()
    assert text.count(b"0.") > 100
    path.write_bytes(text.replace(b"0.", b"1.", 50))
    with pytest.raises(ArgumentError, match=r"line [0-9]+ of the checkpoint .* is damaged"):
        fitted(visits, checkpoint=path)
    path.write_text("id,y\n1,2\n")
    with pytest.raises(ArgumentError, match="no journal of mixmoe"):
        fitted(visits, checkpoint=path)
    with pytest.raises(ArgumentError, match="must name a file, got the folder"):
        fitted(visits, checkpoint=tmp_path)
    with pytest.raises(ArgumentError, match="has no option 'checkpoint'"):
        mm.fit("y ~ x1 | vary: time", mm.simulate.memoe(n_subjects=20, rng=1).data, bandwidth=1.0, checkpoint=path)


def test_rows_in_memory_functions_and_a_generator_are_continued_too(tmp_path, monkeypatch):
    data = mm.simulate.memoe("single", n_subjects=60, n_visits=12, rng=1).data
    data["y"] += 2 * np.sin(data["time"])
    formula, options = "y ~ s(time, k=8) | re: (1 | id)", {"experts": 1, "checkpoint": tmp_path / "c"}
    known = mm.fit(formula, data, experts=1, rng=np.random.default_rng(3))
    monkeypatch.setattr(resampling, "_EVERY", 0.0)
    for _ in range(2):
        found = mm.fit(formula, data, rng=np.random.default_rng(3), **options)
        np.testing.assert_array_equal(found.params, known.params)
    used = np.random.default_rng(3)
    used.random()
    with pytest.raises(ArgumentError, match="other options"):
        mm.fit(formula, data, rng=used, **options)
