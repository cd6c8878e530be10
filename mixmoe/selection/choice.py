"""Choosing among mixtures: one row per candidate, by criteria or by errors on held-out rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mixmoe.api import refuse_foreign_effects
from mixmoe.arguments import checked_choice, checked_count, checked_jobs
from mixmoe.atomic import PathLike
from mixmoe.design.beside import named_columns
from mixmoe.errors import ArgumentError
from mixmoe.mixture.estimate import clc
from mixmoe.mixture.resampling import Journal, checkpoint_path, fingerprint
from mixmoe.output.plots import COLOURS, Elbow, canvas_axes, canvas_result, draw_criteria, open_frame
from mixmoe.output.records import Cell, Table
from mixmoe.output.summary import Printed
from mixmoe.results import Results
from mixmoe.selection.candidates import Keeper, Trial, Workers, build_specs, check_data, run_trials


@dataclass(frozen=True, slots=True)
class Validated:
    """One candidate.

    Attributes
    ----------
    formula, label : str
    error, se : float
        Per held-out row, smaller is better, with its standard error; NaN without a fit.
    loglik : float
        Of all rows.
    parameters : int
    epochs : int
    converged : bool
    measure : str
    best : bool
        Whether its error is the smallest.
    """

    formula: str
    label: str
    error: float
    se: float
    loglik: float
    parameters: int
    epochs: int
    converged: bool
    measure: str
    best: bool


def validation_tables(rows: Sequence[Validated]) -> tuple[Table, ...]:
    """One table per formula; the smallest error is marked."""
    tables: list[Table] = []
    for text in dict.fromkeys(row.formula for row in rows):
        mine = [row for row in rows if row.formula == text]
        measure = next((row.measure for row in rows if row.measure), "error")
        tables.append(
            Table(
                key=f"candidates{len(tables) + 1}",
                title=text,
                columns=(f"held-out {measure}", "SE", "log-lik.", "par.", "epochs", "converged"),
                index=tuple(row.label for row in mine),
                # "failed" where there is no fit.
                cells=tuple(
                    ("failed", *[None] * 5)
                    if np.isnan(row.error)
                    else (
                        f"{row.error:.4f}{'*' if row.best else ' '}",
                        *(row.se, row.loglik, row.parameters, row.epochs),
                        "yes" if row.converged else "no",
                    )
                    for row in mine
                ),
                formats=("", ".4f", ".2f", ".4g", "", "text"),
            )
        )
    return tuple(tables)


def draw_validation(rows: Sequence[Validated], ax: Any = None) -> Any:
    """Errors with bars of one standard error, a line per candidate, the smallest marked.

    Parameters
    ----------
    rows : sequence of Validated
    ax : matplotlib Axes, optional

    Returns
    -------
    Figure, or `ax` if given
    """
    (axes,) = canvas = canvas_axes(1, ax)
    several = len({row.formula for row in rows}) > 1
    names = [f"{row.formula}\n{row.label}" if several else row.label for row in rows]
    for place, row in enumerate(rows):
        colour = COLOURS[1] if row.best else COLOURS[0]
        bar = row.se if np.isfinite(row.se) else None
        axes.errorbar(row.error, place, xerr=bar, color=colour, fmt="o", markersize=5, capsize=3)
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"held-out {next((row.measure for row in rows if row.measure), 'error')}, per row")
    open_frame(axes)
    return canvas_result(canvas, ax)


_CRITERIA = ("aic", "bic", "sabic", "icl", "clc", "cv", "validation")
_USELESS = ("degenerate", "interrupted")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model that was tried.

    Attributes
    ----------
    formula : str
    structure : tuple of (str, value)
        Options in which the candidates differ.
    experts : int
    results : Results or None
        None if the fit failed.
    seconds : float
        Time of all its fits.
    reason : str
        Why there is no fit.
    cv, cv_se : float
        Cross-validated log-likelihood of all units and its standard error over folds; NaN if there are no folds.
    validation, validation_se : float
        Of a network: error per held-out row and its standard error over persons.
    measure : str
        What that error is; empty for a mixture.
    network : bool
    """

    formula: str
    structure: tuple[tuple[str, Any], ...]
    experts: int
    results: Results | None = None
    seconds: float = 0.0
    reason: str = ""
    cv: float = np.nan
    cv_se: float = np.nan
    validation: float = np.nan
    validation_se: float = np.nan
    measure: str = ""
    network: bool = False

    @property
    def label(self) -> str:
        """Number of experts and structure in words."""
        words = [] if self.network else [f"{self.experts} expert{'s' if self.experts > 1 else ''}"]
        return ", ".join([*words, *(f"{name}={value}" for name, value in self.structure)]) or "network"

    def criterion(self, name: str) -> float:
        """Value of a criterion, smaller is better; infinite without a usable fit."""
        if self.results is None or any(flag.code in _USELESS for flag in self.results.flags):
            return np.inf
        own = {"cv": -self.cv, "clc": self.clc, "validation": self.validation}
        value = own[name] if name in own else getattr(self.results, name)
        return np.inf if np.isnan(value) else float(value)

    @property
    def clc(self) -> float:
        """Classification likelihood criterion."""
        return np.nan if self.results is None else clc(self.results.llf, self.results.em.responsibilities)


@dataclass(frozen=True, slots=True, repr=False)
class Selection(Printed):
    """Candidates side by side; prints as a table.

    Attributes
    ----------
    candidates : tuple of Candidate
    interrupted : bool
        Whether Ctrl-C ended the search; the candidates are those that were finished.
    """

    candidates: tuple[Candidate, ...]
    interrupted: bool = False

    def to_frame(self) -> pd.DataFrame:
        """One row per candidate.

        Returns
        -------
        DataFrame
            Columns: formula, those options in which candidates differ, experts, llf, parameters, aic, bic, sabic, icl,
            clc, entropy, smallest (share of the smallest expert), shares, replicated, starts, converged, cv, cv_se,
            seconds, flags, reason. Of networks: formula, those options, validation (error per held-out row),
            validation_se, measure, llf, parameters, epochs, converged, seconds, flags, reason.
        """
        return pd.DataFrame([(_network_record if c.network else _record)(c) for c in self.candidates])

    def best(self, criterion: str | None = None) -> Results:
        """The fit with the best value of a criterion.

        Parameters
        ----------
        criterion : {"aic", "bic", "sabic", "icl", "clc", "cv", "validation"}, optional
            Default: ``"bic"``; for networks ``"validation"``, the least error on held-out rows.

        Returns
        -------
        Results
            Of all rows. Failed, interrupted and degenerate fits are left out.

        Raises
        ------
        ArgumentError
            If the criterion is unknown or no candidate has it.
        """
        chosen = ("validation" if self.networks else "bic") if criterion is None else criterion
        checked_choice(chosen, "criterion", _CRITERIA)
        place = _best(self.candidates, chosen)
        found = None if place is None else self.candidates[place].results
        if found is None:
            needs = {"cv": "give select(..., folds=5)", "validation": "it belongs to networks"}
            need = "see the column reason" if self.networks else needs.get(chosen, "see the column reason")
            raise ArgumentError(f"no candidate has the criterion {chosen!r}; {need}")
        return found

    @property
    def networks(self) -> bool:
        """Whether the candidates are networks, compared by their errors on held-out rows."""
        return any(candidate.network for candidate in self.candidates)

    @property
    def title(self) -> str:
        """Heading above the table."""
        return "Choosing among networks" if self.networks else "Choosing among mixtures of experts"

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader must know, printed below the table."""
        return _network_notes(self) if self.networks else _notes(self)

    def tables(self) -> tuple[Table, ...]:
        """The candidates, one per row."""
        return validation_tables(_validated(self)) if self.networks else _tables(self.candidates)

    def plot(self, criteria: Sequence[str] = ("aic", "bic", "icl"), ax: Any = None) -> Any:
        """Criteria against the number of experts, a panel per structure; needs matplotlib.

        For networks, the errors on held-out rows with bars of one standard error.

        Parameters
        ----------
        criteria : sequence of str
            Of mixtures.
        ax : matplotlib Axes or sequence of them, optional
            One per structure.

        Returns
        -------
        Figure, or `ax` if given
        """
        for name in criteria:
            checked_choice(name, "criteria", _CRITERIA)
        if self.networks:
            return draw_validation(_validated(self), ax)
        return draw_criteria(_panels(self.candidates, criteria), ax)


def select(
    formula: str | Sequence[str],
    data: Any,
    experts: int | Iterable[int] | None = None,
    *,
    starts: int | None = None,
    folds: int | None = None,
    rng: Any = None,
    n_jobs: int = 1,
    progress: bool | None = None,
    checkpoint: PathLike | None = None,
    **options: Any,
) -> Selection:
    """Fit candidates that differ in the number of experts, in structure or in formula, and compare them.

    Networks with person effects (`NME`) are compared by their errors on the last rows of each person: candidates are
    networks where one of ``hidden=``, ``network=``, ``activation=``, ``estimator=`` is given, or a formula has
    ``seq:``.

    Parameters
    ----------
    formula : str or sequence of str
        As in `fit`; several must have the same response.
    data : DataFrame (pandas, or what narwhals reads: polars, pyarrow ...) or mapping of columns
    experts : int or iterable of int, optional
        Numbers of experts; 1 to 6. Networks as experts (`NMoE`) have it like other mixtures, networks with person
        effects (`NME`) have no experts.
    starts : int, optional
        Random starts of each candidate; by default 8 per expert, of one expert 1 (of one network as many as in `fit`).
        Starts carried from the fit with one expert fewer, each of its experts split, come on top, where that fit is a
        candidate too, and so do the splits and merges of a search: the column ``starts`` counts all that were made.
    folds : int, optional
        Adds the cross-validated log-likelihood: each candidate is fitted without each fold of the units
        (subjects), from random starts and from the fit to all data, and evaluated on the fold.
    rng : int, numpy.random.Generator or None
        The results depend on it and not on `n_jobs`.
    n_jobs : int
        Worker processes (joblib), -1 for all cores.
    progress : bool, optional
    checkpoint : path-like, optional
        A folder. Finished fits are kept there, and the same call continues where an earlier one stopped.
    **options
        Of the model and of its fit, as in `fit`. ``cov_re=``, ``residual=``, ``errors=``, ``errors_dist=``,
        ``bandwidth=``, ``dispersion=`` and ``family=`` may be lists: then every combination is a candidate. Of
        networks, as in `NME`, with ``holdout=`` for the share of each person's (or sequence's) last rows that are
        held out (0.2): ``hidden=`` may be a list of tuples, such as ``[(), (5,), (10, 5)]``, while whole numbers are
        the widths of one network; ``activation=``, ``estimator=``, ``cov=``, ``family=``, ``lr=``, ``annealing=`` and
        ``weight_decay=`` may be lists, and formulas may differ in what is personal. Of networks as experts (`NMoE`)
        ``hidden=`` may be a list likewise, of tuples or of ``{"experts": ..., "gate": ...}``, and ``activation=`` and
        ``body=`` may be lists.

    Returns
    -------
    Selection
        A candidate that fails has a row that says why. After Ctrl-C the candidates that are ready.

    Raises
    ------
    FormulaError, DesignError, ArgumentError
        If arguments are wrong, or if no candidate can be built.

    Notes
    -----
    Within a structure the log-likelihood of maximum-likelihood candidates does not decrease in the number of experts,
    because the fit with one expert fewer is itself among the starts (except for a gate without intercept, where it is
    not nested). A network is fitted twice: without the held-out rows for its error, and to all rows, which is the fit
    that `best` returns. N of the criteria is the number of independent units, see the results of the family. The
    log-likelihood of K against K - 1 experts has no chi-squared null distribution; use ``best().test_experts()``.

    References
    ----------
    McLachlan & Peel (2000), Finite Mixture Models, chapter 6. Smyth (2000), Statistics and Computing 10, 63-72
    (cross-validated likelihood).

    Examples
    --------
    >>> import mixmoe as mm
    >>> sim = mm.simulate.memoe("separated", n_subjects=120, rng=1)
    >>> table = mm.select(sim.formula, sim.data, experts=range(1, 4), rng=0)
    >>> table.best("bic").model.n_experts
    2
    """
    if starts is not None:
        checked_count(starts, "starts")
    if folds is not None:
        checked_count(folds, "folds", least=2)
    checked_jobs(n_jobs)
    data, options = named_columns(data, options)
    specs = build_specs(formula, experts, options)
    for spec in specs:
        refuse_foreign_effects(spec.formula, spec.family, data)
    for name, value in (("starts", starts), ("folds", folds)):
        if value is not None and not specs[0].has_experts:
            raise ArgumentError(
                f"{name}={value!r} is for mixtures, leave it out; networks are compared on held-out rows, see holdout="
            )
    facts = [(s.formula.text, s.experts, sorted(s.model.items()), sorted(s.fit.items())) for s in specs]
    key = fingerprint((check_data(specs, data), facts, starts, folds))
    folder = _folder(checkpoint)
    if folder is not None and "network" in options:
        raise ArgumentError(
            "checkpoint cannot keep fits of a network of your own, which a file without code cannot hold; leave it out"
        )
    keeper = Keeper(folder, options.get("context"))
    file = None if folder is None else folder / "journal.jsonl"
    with Journal(file, key, rng, keeper.encode, keeper.decode) as journal:
        found = run_trials(specs, data, starts, folds, journal, Workers(n_jobs, progress))
    return Selection(tuple(_candidate(trial) for trial in found.trials), found.interrupted)


def _folder(checkpoint: PathLike | None) -> Path | None:
    """The folder of a checkpoint, made if there is none."""
    if checkpoint is None:
        return None
    folder = checkpoint_path(checkpoint)
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"checkpoint must name a folder for the fits of select, got the file {str(folder)!r}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(
            f"the folder {str(folder)!r} of checkpoint cannot be made ({error.strerror}); name one that you may make"
        ) from error
    return folder


def _candidate(trial: Trial) -> Candidate:
    spec, outcome = trial.spec, trial.outcome
    return Candidate(
        formula=spec.formula.text,
        structure=spec.structure,
        experts=spec.experts,
        results=outcome.results,
        seconds=outcome.seconds,
        reason=outcome.reason,
        cv=trial.cv,
        cv_se=trial.cv_se,
        validation=outcome.value,
        validation_se=outcome.se,
        measure=outcome.measure,
        network=not spec.has_experts,
    )


def _best(candidates: Sequence[Candidate], criterion: str) -> int | None:
    """Place of the candidate with the smallest value of a criterion, None if none has it."""
    values = [candidate.criterion(criterion) for candidate in candidates]
    return int(np.argmin(values)) if np.isfinite(values).any() else None


def _record(c: Candidate) -> dict[str, Any]:
    """One row of the frame."""
    row: dict[str, Any] = {"formula": c.formula, **dict(c.structure), "experts": c.experts}
    fit = c.results
    if fit is None:
        blank = dict.fromkeys(("llf", "parameters", "aic", "bic", "sabic", "icl", "clc", "entropy", "smallest"), np.nan)
        row |= blank | {"shares": (), "replicated": 0, "starts": 0, "converged": False}
    else:
        share = fit.em.responsibilities.mean(axis=0)
        row |= {"llf": fit.llf, "parameters": fit.df_model, "aic": fit.aic, "bic": fit.bic, "sabic": fit.sabic}
        row |= {"icl": fit.icl, "clc": c.clc, "entropy": fit.entropy, "smallest": float(share.min())}
        row |= {"shares": tuple(share.tolist()), "replicated": fit.em.starts.n_replicated}
        row |= {"starts": fit.em.starts.n_starts, "converged": fit.converged}
    flags = () if fit is None else tuple(flag.code for flag in fit.flags)
    return row | {"cv": c.cv, "cv_se": c.cv_se, "seconds": c.seconds, "flags": flags, "reason": c.reason}


def _network_record(c: Candidate) -> dict[str, Any]:
    """One row of the frame, of a network."""
    row: dict[str, Any] = {"formula": c.formula, **dict(c.structure)}
    row |= {"validation": c.validation, "validation_se": c.validation_se, "measure": c.measure}
    fit = c.results
    if fit is None:
        row |= {"llf": np.nan, "parameters": np.nan, "epochs": 0, "converged": False}
    else:
        row |= {"llf": fit.llf, "parameters": fit.df_model, "epochs": fit.em.n_iter, "converged": fit.converged}
    flags = () if fit is None else tuple(flag.code for flag in fit.flags)
    return row | {"seconds": c.seconds, "flags": flags, "reason": c.reason}


def _validated(table: Selection) -> tuple[Validated, ...]:
    """What the table and the figure of networks show."""
    best = _best(table.candidates, "validation")
    records = [_network_record(c) for c in table.candidates]
    return tuple(
        Validated(
            formula=c.formula,
            label=c.label,
            error=c.validation,
            se=c.validation_se,
            loglik=row["llf"],
            parameters=row["parameters"],
            epochs=row["epochs"],
            converged=row["converged"],
            measure=c.measure,
            best=i == best,
        )
        for i, (c, row) in enumerate(zip(table.candidates, records, strict=True))
    )


def _network_notes(table: Selection) -> tuple[str, ...]:
    """What the columns mean, and what must be known of single candidates."""
    notes = [
        "* least error per held-out row (the last rows of each person or sequence) of a fit to the other rows, with "
        "its standard error over persons. Log-likelihood, epochs and convergence are of the fit to all rows."
    ]
    if table.interrupted:
        notes.append("Interrupted: candidates are missing.")
    return (*notes, *_remarks(table.candidates))


def _remarks(candidates: Sequence[Candidate]) -> list[str]:
    """Flags and failures of single candidates."""
    remarks = []
    for c in candidates:
        codes = [] if c.results is None else [flag.code for flag in c.results.flags]
        if codes or c.reason:
            where = f"{c.formula}: {c.label}" if c.network else c.label
            remarks.append(f"{where}: {'; '.join([*codes, *([c.reason] if c.reason else [])])}.")
    return remarks


def _tables(candidates: Sequence[Candidate]) -> tuple[Table, ...]:
    """One table per formula; the best value of each criterion is marked."""
    shown = ["aic", "bic", "icl", *(["cv"] if any(np.isfinite(c.cv) for c in candidates) else [])]
    marked = {(name, _best(candidates, name)) for name in shown}
    tables: list[Table] = []
    for text in dict.fromkeys(c.formula for c in candidates):
        places = [i for i, c in enumerate(candidates) if c.formula == text]
        tables.append(
            Table(
                key=f"candidates{len(tables) + 1}",
                title=text,
                columns=("log-lik.", "par.", *(name.upper() for name in shown), "entropy", "least share", "starts"),
                index=tuple(candidates[i].label for i in places),
                cells=tuple(_cells(candidates[i], shown, {n for n, best in marked if best == i}) for i in places),
                formats=(".2f", ".4g", *("" for _ in shown), ".3f", ".3f", ""),
            )
        )
    return tuple(tables)


def _cells(c: Candidate, shown: Sequence[str], marked: set[str]) -> tuple[Cell, ...]:
    fit = c.results
    if fit is None:
        return ("failed", *([None] * (len(shown) + 4)))
    values = {"aic": fit.aic, "bic": fit.bic, "icl": fit.icl, "cv": c.cv}
    texts = [
        f"{values[name]:.1f}{'*' if name in marked else ' '}" if values[name] == values[name] else "" for name in shown
    ]
    smallest = float(fit.em.responsibilities.mean(axis=0).min())
    entropy = fit.entropy if c.experts > 1 else None
    starts = f"{fit.em.starts.n_replicated}/{fit._rivals}"
    return (fit.llf, fit.df_model, *texts, entropy, smallest, starts)


def _notes(table: Selection) -> tuple[str, ...]:
    """What the columns mean, and what must be known of single candidates."""
    notes = [
        "* best value of the criterion (CV: largest). least share: of the smallest expert. starts: how many of the "
        "starts, splits and merges counted (of a VCMoE: of the distinct ones that went on), reached the best "
        "log-likelihood."
    ]
    if table.interrupted:
        notes.append("Interrupted: candidates are missing, or were not yet fitted from all starts.")
    notes += _remarks(table.candidates)
    tried = {c.experts for c in table.candidates}
    most = max(tried) if len(tried) > 1 else 0  # of one number none is the largest
    for name in ("bic", "icl"):
        place = _best(table.candidates, name)
        if place is not None and table.candidates[place].experts == most:
            notes.append(f"{name.upper()} is best at the largest number of experts that was tried: try more.")
    return tuple(notes)


def _panels(candidates: Sequence[Candidate], criteria: Sequence[str]) -> tuple[Elbow, ...]:
    """One panel per formula and structure."""
    several = len({c.formula for c in candidates}) > 1
    panels = []
    for formula, structure in dict.fromkeys((c.formula, c.structure) for c in candidates):
        inside = [c for c in candidates if (c.formula, c.structure) == (formula, structure) and c.results is not None]
        words = [*([formula] if several else []), *(f"{name}={value}" for name, value in structure)]
        values = tuple((name.upper(), np.array([c.criterion(name) for c in inside])) for name in criteria)
        panels.append(Elbow(", ".join(words), np.array([c.experts for c in inside]), values))
    return tuple(panels)
