"""Execute every notebook of the site and fail at the first error.

    python vignettes/run.py                     run all, keep the files as they are (what CI does)
    python vignettes/run.py --write             run all and store the outputs in the notebooks
    python vignettes/run.py --write NAME ...    only these, such as tutorials/cohort.ipynb

Each runs from an empty folder of its own, as does the script `quickstart.py`; `--jobs` of them at once, by default as many
as there are cores. Needs the extra `docs`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
SCRIPT = "quickstart.py"
CELL_TIMEOUT = 600  # seconds: a cell that takes longer is a simulation and belongs in tests/simulation


def execute_notebook(path: Path, folder: str, write: bool) -> None:
    """Run one notebook with `folder` as its working directory; store its outputs if asked."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": folder}}
    NotebookClient(notebook, timeout=CELL_TIMEOUT, kernel_name="python3", resources=resources).execute()
    if write:
        notebook.metadata["language_info"] = {"name": "python"}  # not the version of whoever ran it
        for cell in notebook.cells:
            cell.get("metadata", {}).pop("execution", None)  # times of execution change at every run
        nbformat.write(notebook, path)


def execute(path: Path, write: bool) -> float:
    """Run one notebook or script in an empty folder of its own; the seconds that it took."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if path.suffix == ".ipynb":
            execute_notebook(path, folder, write)
        else:
            environment = os.environ | {"MPLBACKEND": "Agg"}
            command = [sys.executable, str(path)]
            quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
            subprocess.run(command, cwd=folder, check=True, env=environment, **quiet)
    return time.perf_counter() - started


def notebooks(names: list[str]) -> list[Path]:
    """The notebooks and the script of this folder, or those named; large ones, which tend to be slow, first."""
    if names:
        return [HERE / name for name in names]
    found = [path for path in HERE.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts]
    return [*sorted(found, key=lambda path: -path.stat().st_size), HERE / SCRIPT]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="paths below this folder; all by default")
    parser.add_argument("--write", action="store_true", help="store the outputs in the notebooks")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many run at once")
    arguments = parser.parse_args()
    started = time.perf_counter()
    with ProcessPoolExecutor(arguments.jobs) as pool:
        running = {pool.submit(execute, path, arguments.write): path for path in notebooks(arguments.names)}
        for done in as_completed(running):
            try:
                seconds = done.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                print(f"{running[done].relative_to(HERE)} failed", file=sys.stderr)
                raise
            print(f"{running[done].relative_to(HERE)}: passed in {seconds:.0f} s", flush=True)
    print(f"all in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
