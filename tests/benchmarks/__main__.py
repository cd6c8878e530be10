"""Measure speed against peers and bars, and print a Markdown table.

    python -m tests.benchmarks [SECTION ...] [--repeats 5] [--write]

`--write` also stores the table in tests/benchmarks/RESULTS.md. Times against peers are medians of CPU seconds.
"""

import argparse
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import mixedlm
import numpy as np
import statsmodels

from tests.benchmarks.sections import SECTIONS

VERDICT = {True: "yes", False: "**no**", None: ""}


def table(names, repeats):
    """Lines of a Markdown table, printed as they come."""
    lines = ["| measured | figure | bar | met |", "|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    for name in names:
        for row in SECTIONS[name](repeats):
            lines.append(f"| {row.what} | {row.figure} | {row.bar} | {VERDICT[row.met]} |")
            print(lines[-1], flush=True)
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    unknown = set(arguments.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"unknown section {', '.join(sorted(unknown))}; choose of {', '.join(SECTIONS)}")
    versions = (
        f"Python {platform.python_version()}, NumPy {np.__version__}, statsmodels {statsmodels.__version__}, "
        f"mixedlm {mixedlm.__version__}; {os.cpu_count()} CPUs, one BLAS thread; {datetime.now(UTC):%Y-%m-%d}"
    )
    lines = table(arguments.sections or list(SECTIONS), arguments.repeats)
    print(f"\n{versions}")
    if arguments.write:
        command = " ".join(["python -m tests.benchmarks", *sys.argv[1:]])
        text = "\n".join(["# Speed", "", f"`{command}`", "", *lines, "", versions, ""])
        Path(__file__).with_name("RESULTS.md").write_text(text)


if __name__ == "__main__":
    main()
