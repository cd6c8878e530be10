"""Checkpoints and workers: locked, whole or refused, and nothing left behind by a run that was ended."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mixmoe.atomic import replacing, write_text
from mixmoe.errors import ArgumentError
from mixmoe.mixture.resampling import Journal, fingerprint

CALLS = [partial(float, i) for i in range(5)]
VALUES = (0.0, 1.0, 2.0, 3.0, 4.0)


@pytest.fixture
def path(tmp_path):
    with Journal(tmp_path / "j.jsonl", "k", 0) as journal:
        journal.run(CALLS[:4])
    return tmp_path / "j.jsonl"


def test_a_second_run_waits_for_the_first(path):
    with Journal(path, "k", 0) as first:
        with pytest.raises(ArgumentError, match="is in use by another run; two would mix their results"):
            Journal(path, "k", 0)
        assert first.run(CALLS).values == VALUES
    with Journal(path, "k", 0) as second:
        assert second.run(CALLS).values == VALUES


def test_another_process_cannot_write_between(path):
    code = f"from mixmoe.mixture.resampling import Journal; Journal({str(path)!r}, 'k', 0)"
    with Journal(path, "k", 0):
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "is in use by another run" in found.stderr


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines(keepends=True)


DAMAGE = {
    "a value was changed": lambda lines: [*lines[:2], lines[2].replace("1.0", "7.0"), *lines[3:]],
    "two lines were swapped": lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]],
    "a line is missing": lambda lines: [*lines[:2], *lines[3:]],
    "a line came twice": lambda lines: [*lines[:3], *lines[2:]],
    "a line of another kind": lambda lines: [*lines[:2], '{"value": 1.0}\n', *lines[2:]],
    "a list": lambda lines: [*lines[:2], "[1]\n", *lines[2:]],
    "no JSON": lambda lines: [*lines[:2], "value 1\n", *lines[2:]],
    "deep brackets": lambda lines: [*lines[:2], "[" * 100_000 + "\n", *lines[2:]],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_line_is_named_and_never_used(path, name):
    path.write_text("".join(DAMAGE[name](lines_of(path))), encoding="utf-8")
    with pytest.raises(ArgumentError, match=r"line [34] of the checkpoint .* is damaged, was changed, or is not where"):
        Journal(path, "k", 0)
    number = 3 if name != "a line came twice" else 4
    path.write_text("".join(lines_of(path)[: number - 1]), encoding="utf-8")  # as the message says
    with Journal(path, "k", 0) as journal:
        assert journal.run(CALLS).values == VALUES


def test_bytes_that_are_no_text(path):
    path.write_bytes(path.read_bytes() + b"\xff\xfe\n")
    with pytest.raises(ArgumentError, match="line 6 of the checkpoint"):
        Journal(path, "k", 0)


SPAWNED = {"entropy": 0, "spawn_key": []}


@pytest.mark.parametrize(
    "seed",
    [None, 3, {}, SPAWNED | {"spawned": -1}, SPAWNED | {"spawned": 10**30}, SPAWNED | {"entropy": "x", "spawned": 0}],
)
def test_a_damaged_head(path, seed):
    head = json.loads(lines_of(path)[0]) | {"seed": seed}
    path.write_text(json.dumps(head) + "\n", encoding="utf-8")
    with pytest.raises(ArgumentError, match=r"the first line of the checkpoint .* is damaged"):
        Journal(path, "k", None)
    with pytest.raises(ArgumentError, match="was written for another rng"):
        Journal(path, "k", 0)


@pytest.mark.parametrize("content", [b"notes", b"a,b\n1,2\n", b"\x00\xff\n", b"{}\n", b"3\n"])
def test_other_files_stay_as_they_are(tmp_path, content):
    other = tmp_path / "other"
    other.write_bytes(content)
    with pytest.raises(ArgumentError, match="is no journal of mixmoe"):
        Journal(other, "k", 0)
    assert other.read_bytes() == content


@pytest.mark.parametrize("path", [Path("/dev/null"), "nowhere/j.jsonl", Path(__file__) / "j", 300 * "a", "a\0"])
def test_files_that_cannot_keep_anything(path):
    with pytest.raises(
        ArgumentError, match=r"must name a file that can|cannot be written \(.*\); name a|must be a path, or None"
    ):
        Journal(path, "k", 0)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as a full disk does")
def test_where_the_disk_is_full_what_was_written_counts(path):
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    resource = importlib.import_module("resource")  # not on Windows
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path, "k", 0) as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) - 5, before[1]))
        try:
            with pytest.raises(ArgumentError, match=r"cannot be written on \(File too large\); what is in it counts"):
                journal.run(CALLS)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == whole[:-5]
    with Journal(path, "k", 0) as journal:
        assert journal.run(CALLS).values == VALUES


FACTS = """
import numpy as np
import pandas as pd
from functools import partial
from mixmoe.mixture.resampling import fingerprint

def cut(x, at=2):
    return np.where(x > at, [y for y in x], 0)

print(fingerprint({"f": cut, "g": lambda x: x + 1, "h": partial(cut, at=3), "n": np.float64(2), "a": np.arange(5000.0),
                   "s": pd.Series([1, 2]), "u": np.log, "c": {"b": 1, "a": None}}))
"""


def test_fingerprints_are_those_of_any_process(capsys):
    """Of functions too, whose addresses differ."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    other = subprocess.run([sys.executable, "-c", FACTS], env=environment, capture_output=True, text=True, check=True)
    exec(FACTS, {"__name__": "__main__"})
    assert capsys.readouterr().out == other.stdout


def _with(value):
    return lambda x: x + value


def test_fingerprints_tell_values_apart_that_print_alike():
    long = np.arange(5000.0)
    other = long.copy()
    other[2500] += 1e-9  # where an array is abridged
    values = [
        long, other, long.astype(np.float32), long[:2], [0.0, 1.0], (0.0, 1.0), "[0.0, 1.0]", _with(1), _with(2), len,
        partial(len, []), partial(len, [1]), {"a": 1}, {"a": "1"}, None, pd.Series(long), pd.Series(other),
    ]  # fmt: skip
    assert repr(long) == repr(other)
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint({"a": np.int64(1), "b": 2}) == fingerprint({"b": 2, "a": 1})


RUN = """
import os, sys, time
from functools import partial
from mixmoe.mixture.resampling import Journal, fingerprint

def task(folder, i):
    open(os.path.join(folder, f"pid{os.getpid()}"), "w").close()
    until = time.monotonic() + 0.4
    while time.monotonic() < until:
        sum(range(10_000))
    return float(i)

if __name__ == "__main__":
    folder, n = sys.argv[1], int(sys.argv[2])
    with Journal(os.path.join(folder, "j.jsonl"), "k", 0) as journal:
        print(journal.run([partial(task, folder, i) for i in range(n)], n_jobs=2), flush=True)
    sys.stdin.read()
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=240.0):
    """Generous: workers take minutes to start on a machine with much else to do; the test ends as soon as they have."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processes from /proc")
@pytest.mark.parametrize("how", ["SIGKILL", "Ctrl-C"])
def test_no_worker_outlives_its_run_and_the_checkpoint_goes_on(tmp_path, how):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path), "200"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    journal = tmp_path / "j.jsonl"
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as run:
        try:
            wait_for(lambda: journal.exists() and len(lines_of(journal)) > 3 and len(list(tmp_path.glob("pid*"))) == 2)
            if how == "Ctrl-C":  # reaches all processes of a terminal
                os.killpg(run.pid, signal.SIGINT)
            else:
                run.kill()
            workers = [int(file.name[3:]) for file in tmp_path.glob("pid*")]
            wait_for(lambda: not any(map(alive, workers)))
            if how == "Ctrl-C":
                assert "interrupted=True" in run.stdout.readline()
        finally:  # else a test that fails would wait for it
            run.kill()
    with Journal(journal, "k", 0) as again:
        stored = len(lines_of(journal)) - 1
        found = again.run([partial(float, i) for i in range(stored + 2)])
    assert found.values == tuple(map(float, range(stored + 2)))


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    file, link = tmp_path / "a.txt", tmp_path / "link.txt"
    write_text(file, "before")
    file.chmod(0o640)
    link.symlink_to(file)
    with pytest.raises(KeyError), replacing(file) as half:
        half.write_text({"text": "half"}["txt"])
    assert file.read_text() == "before"
    write_text(link, "after")
    assert (link.is_symlink(), file.read_text(), file.stat().st_mode & 0o777) == (True, "after", 0o640)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "link.txt"]
    write_text(os.devnull, "nothing")
    assert not Path(os.devnull).is_file()
