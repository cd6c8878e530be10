"""Code that repeats a fit, and the versions it ran with."""

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

from mixmoe.output.saved import checksum
from mixmoe.output.tables import Table
from mixmoe.report.evidence import Evidence

_PACKAGES = ("mixmoe", "numpy", "scipy", "pandas", "formulaic", "statsmodels", "patsy", "matplotlib", "torch")
_DEFAULTS: Mapping[str, Any] = {"formula_engine": "formulaic"}


def versions_table(family: str) -> Table:
    """Versions of Python and the packages that have a part in the result."""
    rows = [("Python", platform.python_version())]
    rows += [(name, _version(name)) for name in _PACKAGES if name != "torch" or family == "NME"]
    return Table(
        key="versions",
        title="Software",
        columns=("version",),
        index=tuple(name for name, _ in rows),
        cells=tuple((version,) for _, version in rows),
        formats=("text",),
        notes=(f"{platform.system()} {platform.machine()}",),
    )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def code(e: Evidence) -> str:
    """A program that repeats the fit on the data."""
    results = e.results
    model, em = results.model, results.em
    door = "nme" if model.family_name == "NME" else "fit"
    settings = {k: v for k, v in model.settings.items() if _plain(v) and _DEFAULTS.get(k) != v}
    settings |= {} if door == "nme" else {"cov_type": results.cov_type}
    settings |= {"rng": em.starts.seed} if em.starts.seed is not None else {}
    lines = [f"    {name}={value!r}," for name, value in settings.items()]
    return "\n".join(
        [
            "import pandas as pd",
            "import mixmoe as mm",
            "",
            f'data = pd.read_csv("data.csv")  # {e.design.n_input} rows',
            f"fit = mm.{door}(",
            f"    {model.formula.text!r},",
            "    data,",
            *lines,
            ")",
            "print(fit.summary())",
            f"assert abs(fit.llf - ({results.llf:.6f})) < 1e-3",
        ]
    )


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def remarks(e: Evidence) -> tuple[str, ...]:
    """What the code does not say: seed, starts, the data."""
    seed = e.results.em.starts.seed
    notes = [
        "The seed was not kept, because the fit was given none or a generator: other starts may be drawn, and the best "
        "end point should be the same."
        if seed is None
        else f"Random numbers: seed {seed}."
    ]
    if e.results.model.family_name != "NME":
        notes.append(f"The fit used {e.results.em.starts.n_starts} starts; give starts= if that is not the default.")
    if e.results.cov_type in ("cluster", "bootstrap"):
        notes.append(f"cov_type={e.results.cov_type!r} needs its own options, which are not in the fit.")
    notes.append(f"Fingerprint (SHA-256) of the response in the order of the fit: {checksum(e.design.response)}.")  # type: ignore[arg-type]
    return tuple(notes)
