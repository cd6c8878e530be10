"""Execute every vignette and fail at the first error.

    python vignettes/run.py                     run all, keep the files as they are (what CI does)
    python vignettes/run.py --write             run all and store the outputs in the notebooks
    python vignettes/run.py --write NAME ...    only these

A vignette is a notebook, or a script, which must run from an empty folder. Needs the extra `docs`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
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


def execute(path: Path, write: bool) -> None:
    """Run one vignette in an empty folder of its own, and say how long it took."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if path.suffix == ".ipynb":
            execute_notebook(path, folder, write)
        else:
            subprocess.run(
                [sys.executable, str(path)],
                cwd=folder,
                check=True,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"MPLBACKEND": "Agg"},
            )
    print(f"{path.name}: passed in {time.perf_counter() - started:.0f} s", flush=True)


def vignettes(names: list[str]) -> list[Path]:
    """The vignettes of this folder, or those named."""
    if names:
        return [HERE / Path(name).name for name in names]
    found = [*HERE.glob("*.py"), *HERE.glob("*.ipynb")]
    return sorted(path for path in found if path.name != Path(__file__).name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="file names; all by default")
    parser.add_argument("--write", action="store_true", help="store the outputs in the notebooks")
    arguments = parser.parse_args()
    # Each vignette computes in a process of its own, so that threads keep as many cores busy as there are.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(partial(execute, write=arguments.write), vignettes(arguments.names)))


if __name__ == "__main__":
    main()
