"""LaTeX of the package as a journal would set it."""

import re
import shutil
import subprocess

import pytest

HAS_LATEX = shutil.which("pdflatex") is not None
needs_pdflatex = pytest.mark.skipif(not HAS_LATEX, reason="pdflatex is not installed")
_PREAMBLE = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
_OVERFULL = 1.0  # points


def compiled(source, folder):
    """A run of pdflatex on a whole document."""
    (folder / "t.tex").write_text(source, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)


def faults(source, folder):
    """What pdflatex says against a document: errors, boxes and floats that are too large, characters it lacks."""
    run = compiled(source, folder)
    wide = [
        points for points in re.findall(r"Overfull \\[hv]box \(([\d.]+)pt", run.stdout) if float(points) > _OVERFULL
    ]
    said = re.findall(r"Float too large|Missing character", run.stdout)
    return [*([run.stdout[-2000:]] if run.returncode else []), *wide, *said]


def faults_of_tables(tables, folder):
    """The same of tables that are no documents, one after the other; none where pdflatex is not installed."""
    if not HAS_LATEX or not tables:
        return []
    return faults(_PREAMBLE + "\\clearpage\n".join(tables) + "\\end{document}\n", folder)
