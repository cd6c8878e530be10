"""What a report knows: the fit, what was compared with it, the code that repeats it."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import pandas as pd

from mixmoe._typing import Array
from mixmoe.check.adequacy import Adequacy, ClassificationTable
from mixmoe.check.influence import GateEffects, Influence
from mixmoe.design.design import Design
from mixmoe.errors import ArgumentError
from mixmoe.families import Model
from mixmoe.mixture.estimate import EMFit, Flag
from mixmoe.output.names import Names
from mixmoe.output.records import Cell, Curve, Marks, Observed, Table
from mixmoe.output.saved import checksum
from mixmoe.output.summary import Summary


class Fitted(Protocol):
    """What a report asks of the results of any family, see `mixmoe.results.Results`."""

    model: Model
    em: EMFit
    flags: tuple[Flag, ...]
    converged: bool
    cov_type: str
    llf: float
    aic: float
    bic: float
    sabic: float
    nobs: int
    n_units: int
    df_model: int
    df_resid: float
    shown_names: Names
    _default_plot: str
    _report_plots: tuple[str, ...]

    @property
    def _fit_options(self) -> Mapping[str, Any]: ...
    @property
    def _starts_words(self) -> str: ...
    @property
    def _ends_words(self) -> tuple[str, str]: ...
    @property
    def _described(self) -> Design: ...
    @property
    def _sample_words(self) -> str: ...
    @property
    def _responsibilities_described(self) -> Array: ...
    @property
    def _more_facts(self) -> tuple[tuple[str, Cell], ...]: ...
    def _observed(self, kind: str) -> Observed | tuple[Marks, ...] | None: ...
    def curves(self, kind: str) -> tuple[Curve, ...]: ...  # noqa: D102
    def plot(self, kind: str | None = None, ax: Any = None) -> Any: ...  # noqa: D102
    def diagnose(self) -> Any: ...  # noqa: D102
    def influence(self) -> Influence: ...  # noqa: D102
    def tidy(self, alpha: float = 0.05) -> pd.DataFrame: ...  # noqa: D102
    def glance(self) -> pd.DataFrame: ...  # noqa: D102
    def augment(self, data: Any = None) -> pd.DataFrame: ...  # noqa: D102
    def _by_unit(self) -> pd.DataFrame | None: ...
    def summary(self, alpha: float = 0.05) -> Summary: ...  # noqa: D102


class FittedMixture(Fitted, Protocol):
    """What it asks of those of a mixture besides, see `mixmoe.mixture_results.MoEResults`."""

    icl: float
    entropy: float

    def adequacy(self) -> Adequacy: ...  # noqa: D102
    def classification_table(self) -> ClassificationTable: ...  # noqa: D102
    def gate_effects(self, covariates: Any = None, alpha: float = 0.05) -> GateEffects: ...  # noqa: D102


class Candidate(Protocol):
    """A model that was compared with others, see `mixmoe.selection.choice.Candidate`."""

    @property
    def results(self) -> Fitted | None: ...  # noqa: D102
    @property
    def label(self) -> str: ...  # noqa: D102


@runtime_checkable
class Comparison(Protocol):
    """What `mixmoe.select` returns, see `mixmoe.selection.choice.Selection`."""

    @property
    def candidates(self) -> Sequence[Candidate]: ...  # noqa: D102
    def to_frame(self) -> pd.DataFrame: ...  # noqa: D102
    def summary(self) -> Summary: ...  # noqa: D102
    def plot(self) -> Any: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the sections of a report are made from.

    Attributes
    ----------
    results : Results
    time : str or None
        Column of the times of the rows, see `_time`.
    alpha : float
        One minus the level of the limits.
    selection : Selection or None
        What `mixmoe.select` returned.
    distal : tuple of records with `summary`
        Analyses of distal outcomes.
    answers : mapping of str to str
        What the author answers to items of the checklists.
    subjects : bool
        Whether single subjects may be named.
    """

    results: Fitted
    time: str | None
    alpha: float = 0.05
    selection: Comparison | None = None
    distal: tuple[Any, ...] = ()
    answers: Mapping[str, str] = field(default_factory=dict)
    subjects: bool = True

    @property
    def design(self) -> Design:
        """Arrays and frame of the fit."""
        return self.results.model.design

    @property
    def rows(self) -> Design:
        """The rows that are described and drawn: those of the fit, or of a random sample of its subjects."""
        return self.results._described

    @property
    def sampled(self) -> str:
        """In words which subjects the rows are of, behind a blank; empty if they are all."""
        words = self.results._sample_words
        return f" {words}" if words else ""

    @property
    def n_experts(self) -> int:
        """Number of experts; 1 in a family that has none."""
        return int(self.results.model.n_experts or 1)

    @property
    def mixture(self) -> FittedMixture:
        """The results of a family that `is_mixture`."""
        return cast(FittedMixture, self.results)

    @property
    def is_mixture(self) -> bool:
        """Whether the family has experts, so that the guidelines for latent classes apply."""
        return bool(self.results.model.spec.has_experts)

    @property
    def has_subjects(self) -> bool:
        """Whether rows belong to subjects, so that there are courses."""
        return self.design.names.group is not None

    @property
    def units(self) -> str:
        """What the independent units are."""
        return "subjects" if self.has_subjects else "rows"

    @property
    def times(self) -> Array | None:
        """Time of each row, shape (n,); None if no numeric column of the data is the time."""
        return None if self.time is None else _numbers(self.rows, self.time)

    @property
    def candidates(self) -> pd.DataFrame:
        """One row per model that was compared; none without a selection."""
        if self.selection is None:
            return pd.DataFrame({"experts": pd.Series(dtype=int), "formula": pd.Series(dtype=object)})
        return self.selection.to_frame()

    def varied(self, *columns: str) -> bool:
        """Whether the candidates differ in one of these columns."""
        frame = self.candidates
        return any(name in frame and frame[name].astype(str).nunique() > 1 for name in columns)


def gather(
    results: Fitted, alpha: float, selection: Any, distal: Any, answers: Mapping[str, str] | None, subjects: bool
) -> Evidence:
    """Evidence from the arguments of `report`, checked.

    Raises
    ------
    ArgumentError
        If the selection or a distal analysis is none.
    """
    if selection is not None and not isinstance(selection, Comparison):
        raise ArgumentError(f"selection must be what mm.select returned, got {type(selection).__name__}")
    several = tuple(distal) if isinstance(distal, list | tuple) else () if distal is None else (distal,)
    for analysis in several:
        if not hasattr(analysis, "summary"):
            raise ArgumentError(f"distal must be what fit.distal returned, got {type(analysis).__name__}")
    if answers is not None and not isinstance(answers, Mapping):
        raise ArgumentError(f"answers must map items such as 'G1' to texts, got {type(answers).__name__}")
    return Evidence(results, _time(results), alpha, selection, several, dict(answers or {}), bool(subjects))


def _time(results: Fitted) -> str | None:
    """The column that says when: that of ``time=``, ``seq:`` or ``vary:``, else the one along which the curves run.

    Without one of those words the latter is a time only where it goes forward in the rows of a subject as they stand in
    the data: a covariate that goes up and down is none. An order that begins anew in each sequence is none either.
    """
    model = results.model
    formula, design = model.formula, results._described
    if formula.seq is not None and formula.seq.within is not None:
        return None
    named = design.recipe.aux.get("time") or (formula.seq.order if formula.seq is not None else formula.vary)
    if named is not None:
        return str(named)
    try:
        axis = next((curve.xlabel for curve in results.curves(results._default_plot)), None) or None
    except ArgumentError:
        return None
    values = None if axis is None else _numbers(design, axis)
    if values is None:
        return None
    order = np.lexsort((design.position, design.codes))
    steps = np.diff(values[order])[np.diff(design.codes[order]) == 0]
    return axis if steps.size and float(np.mean(steps >= 0.0)) >= _FORWARD else None


def _numbers(design: Design, column: str) -> Array | None:
    """A numeric column of the data, shape (n,); None if there is none of this name."""
    if column not in design.frame or not pd.api.types.is_numeric_dtype(design.frame[column].dtype):
        return None
    return design.frame[column].to_numpy(dtype=float)


_FORWARD = 0.95  # share of steps within subjects that go forward in a column of times
_PACKAGES = ("mixmoe", "numpy", "scipy", "pandas", "formulaic", "statsmodels", "patsy", "matplotlib")
_READ_ALL, _SCAN = 'pd.read_csv("data.csv")', 'mm.scan("data/*.parquet")'
_DEFAULTS: Mapping[str, Any] = {"formula_engine": "formulaic"}


def versions_table(packages: Sequence[str]) -> Table:
    """Versions of Python and the packages that have a part in the result."""
    rows = [("Python", platform.python_version())]
    rows += [(name, _version(name)) for name in (*_PACKAGES, *packages)]
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
    model, em, shown = results.model, results.em, results.shown_names
    settings = {k: v for k, v in model.settings.items() if _plain(v) and _DEFAULTS.get(k) != v}
    settings |= {k: v for k, v in results._fit_options.items() if _plain(v)}
    settings |= {"cov_type": results.cov_type} if model.spec.has_experts else {}
    settings |= {"starts": em.starts.asked} if em.starts.asked is not None else {}
    settings |= {"rng": em.starts.seed} if em.starts.seed is not None else {}
    lines = [f"    {name}={value!r}," for name, value in settings.items()]
    return "\n".join(
        [
            "import pandas as pd",
            "import mixmoe as mm",
            "",
            f"data = {_READ_ALL if e.rows is e.design else _SCAN}  # {e.design.n_input} rows",
            "fit = mm.fit(",
            f"    {model.formula.text!r},",
            "    data,",
            *lines,
            ")",
            *([f"fit = fit.named({', '.join(map(repr, shown.experts))})"] if shown.experts else []),
            *([f"fit = fit.labelled({dict(shown.terms)!r})"] if shown.terms else []),
            "print(fit.summary())",
            f"assert abs(fit.llf - ({results.llf:.6f})) < 1e-3",
        ]
    )


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _plain(one) for name, one in value.items())
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
    starts = e.results.em.starts
    if starts.n_starts:
        more = starts.asked is not None and starts.n_starts > starts.asked
        of_experts = f"; asked for were {starts.asked}, the others are splits and merges of experts" if more else ""
        notes.append(f"The fit made {e.results._starts_words}{of_experts}.")
    own = [name for name, value in e.results.model.settings.items() if not _plain(value)]
    notes += [f"The fit was given {name}= of its own, which text cannot repeat; add it to the code." for name in own]
    if e.results.cov_type in ("cluster", "bootstrap"):
        notes.append(f"cov_type={e.results.cov_type!r} needs its own options, which are not in the fit.")
    response = np.asarray(e.rows.response, dtype=float)
    notes.append(f"Fingerprint (SHA-256) of the response in the order of the fit: {checksum(response)}.{e.sampled}")
    return tuple(notes)
