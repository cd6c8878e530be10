"""Every example of --help and of the site runs: in a shell where it pipes or redirects, else in this process."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from mixmoe.cli.main import build_parser, main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "vignettes" / "reference" / "commandline.md").read_text(encoding="utf-8")
DATA = "mixmoe data pbcseq > pbcseq.csv"
FIT = (
    'mixmoe fit pbcseq.csv "log(bili) ~ year | gate: age + sex | re: (1 + year | id)" --rng 0 --save fit.mixmoe --quiet'
)


def helps():
    parser = build_parser()
    return [parser, *parser._subparsers._group_actions[0].choices.values()]


def examples():
    """Commands of the help texts and of the page on the command line, each once."""
    found = [
        line for parser in helps() for line in re.findall(r"^  (.*\bmixmoe .*)$", parser.epilog or "", re.MULTILINE)
    ]
    for block in re.findall(r"^```bash\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE):
        found += [line.partition("  #")[0] for line in block.splitlines() if re.search(r"\bmixmoe [a-z]+ ", line)]
    return list(dict.fromkeys(found))


def run(command, folder):
    shell = f'set -euo pipefail; mixmoe() {{ "{sys.executable}" -W error -m mixmoe "$@"; }}; {command}'
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    return subprocess.run(["bash", "-c", shell], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The first sixty patients, on whom everything goes as on all, and a saved fit."""
    place = tmp_path_factory.mktemp("examples")
    assert run(DATA, place).returncode == 0
    data = pd.read_csv(place / "pbcseq.csv")
    data[data["id"] <= 60].to_csv(place / "pbcseq.csv", index=False)
    assert run(FIT, place).returncode == 0
    return place


@pytest.mark.parametrize("command", [line for line in examples() if DATA not in line])
def test_examples_run(command, folder, monkeypatch, capsys):
    if "--report" in command or "--plot" in command:
        pytest.importorskip("matplotlib")
    if "--hidden" in command:
        pytest.importorskip("torch")
    words, arrives = shlex.split(command), "--hidden" not in command
    if not arrives:
        words += ["--option", "epochs=3"]  # too few, which the exit code says
    if words[0] == "mixmoe" and ">" not in words:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("MPLBACKEND", "Agg")
        code, errors = main(words[1:]), capsys.readouterr().err
    else:
        done = run(command, folder)
        code, errors = done.returncode, done.stderr
    assert code == (0 if arrives else 3), errors
    assert "Traceback" not in errors
    for name in re.findall(r"(?:--(?:out|latex|markdown|html|plot|save|report)|>) ([\w.]+\.\w+)", command):
        assert (folder / name).stat().st_size > 0


def test_there_are_examples_of_each_command():
    commands = {re.search(r"mixmoe ([a-z]+) ", line)[1] for line in examples()}
    parser = build_parser()
    assert commands == set(parser._subparsers._group_actions[0].choices)


def test_reader_may_leave_early(folder):
    done = run('(mixmoe data pbcseq; echo "code $?" >&2) | head -1', folder)
    assert done.stdout.startswith("id,")
    assert "Traceback" not in done.stderr


def test_help_is_printed_for_each_command(capsys):
    for name in ("fit", "predict", "describe", "data"):
        with pytest.raises(SystemExit) as ended:
            build_parser().parse_args([name, "--help"])
        assert ended.value.code == 0
        assert f"usage: mixmoe {name}" in capsys.readouterr().out
