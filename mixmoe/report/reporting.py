"""What every fitted model offers to other programs and to readers: frames, files, the report and its sections."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mixmoe._typing import Array
from mixmoe.atomic import write_text
from mixmoe.design.design import Design
from mixmoe.errors import ArgumentError
from mixmoe.families import Model
from mixmoe.inference.uncertainty import checked_alpha
from mixmoe.mixture.estimate import EMFit
from mixmoe.numerics.optimise import loglik_name
from mixmoe.output.plots import canvas_axes, draw
from mixmoe.output.plots_in_files import svg
from mixmoe.output.records import Cell, Curve, Observed, Table
from mixmoe.report.checklists import check_answers, checklist_table, grolts, smart_lca
from mixmoe.report.described import (
    attrition_table,
    columns_table,
    distinct_ends,
    elsewhere,
    end_points_table,
    flow_table,
    gaps,
    profile_table,
    spread,
    visits_table,
    waves_table,
)
from mixmoe.report.evidence import Comparison, Evidence, Fitted, code, gather, remarks, versions_table
from mixmoe.report.page import Checklist, Code, Facts, Gallery, Image, Part, Prose, Remarks, Section, page
from mixmoe.report.tidy import broom_augment, broom_glance, broom_tidy, write_excel

_SMALL = (4.2, 3.1)
_CAPTIONS = {
    "trajectories": "Estimated trajectory of each expert with pointwise limits, over observed courses in the colour of "
    "their most probable expert; other columns at their medians or most frequent levels.",
    "gate": "Probability of each expert along a covariate of the gate, with pointwise limits.",
    "functions": "Coefficient functions with pointwise limits and simultaneous bands.",
    "means": "Expected response of each expert and over all, with limits.",
    "effects": "Predictions along one input, for the population and for persons.",
    "learning": "Loss by epoch.",
    "responsibilities": "Posterior probabilities of the experts, one bar per unit, sorted by the most probable expert.",
}


def figures(e: Evidence) -> tuple[Part, ...]:
    """Every figure of the family; where one cannot be drawn, the reason."""
    r = e.results
    parts: list[Part] = []
    for kind in (kind for kind in r._report_plots if kind != "gate" or e.n_experts > 1):
        level = f" Limits: {100 * (1 - e.alpha):g} %." if "limits" in _CAPTIONS[kind] else ""
        parts.append(
            _drawn(partial(r.plot, kind), _CAPTIONS[kind] + level + e.sampled, partial(_named_curves, r, kind))
        )
    split = _split(e)
    parts += [split] if split is not None else []
    if e.n_experts > 1:
        tau = r.em.responsibilities
        words = f"Bars of {len(tau)} {e.units}; {(tau.max(axis=1) > 0.9).mean():.0%} have an expert with a probability "
        words += "above 0.9."
        caption = _CAPTIONS["responsibilities"] + e.sampled
        parts.append(Image(svg(lambda: r.plot("responsibilities")), caption, words))
    return tuple(parts)


def diagnostics(e: Evidence) -> Part:
    """The figure of `diagnose`, or the reason that there is none."""
    try:
        drawing = svg(e.results.diagnose)
    except ArgumentError as error:
        return Prose(f"No diagnostics: {error}.")
    caption = "Quantile residuals, normal and independent if the model is true; their QQ plot with a simultaneous "
    caption += "envelope; predicted random effects, if there are any; observed means"
    caption += ", weighted by responsibilities, beside predicted ones." if e.is_mixture else " beside predicted ones."
    caption += e.sampled
    return Image(drawing, caption, f"Panels for {e.rows.n} rows of {e.rows.n_units} {e.units}; see the caption.")


def candidates(selection: Comparison) -> tuple[Part, ...]:
    """The criteria, and the default figure of each candidate that was fitted."""
    tried = [(c.results, c.label) for c in selection.candidates if c.results is not None]
    words = f"Criteria of {len(tried)} candidates against the number of experts; the numbers are in the table."
    criteria = Image(svg(selection.plot), "Criteria against the number of experts, the smallest marked.", words)
    return (criteria, Gallery(tuple(_candidate(results, label) for results, label in tried)))


def _candidate(results: Fitted, label: str) -> Image | Prose:
    kind = results._default_plot
    return _drawn(lambda: _small(results, kind), f"{label}.", lambda: _named_curves(results, kind))


def _small(results: Fitted, kind: str) -> Any:
    """The figure on less paper, so that its letters are not too small beside others; many panels keep their size."""
    if len({curve.panel for curve in results.curves(kind)}) > 1:
        return results.plot(kind)
    axes = canvas_axes(1, None, size=_SMALL)[0]
    results.plot(kind, axes)
    return axes.figure


def _named_curves(results: Fitted, kind: str) -> tuple[Curve, ...]:
    return tuple(map(results.shown_names.curve, results.curves(kind)))


def _drawn(make: Callable[[], Any], caption: str, curves: Callable[[], Sequence[Curve]]) -> Image | Prose:
    """The image, or the reason that there is none, as with a gate that has no numeric covariate."""
    try:
        shown = curves()
        return Image(svg(make), caption, in_words(shown))
    except ArgumentError as error:
        return Prose(f"No figure ({caption.split(',')[0].rstrip('.')}): {error}.")


def _split(e: Evidence) -> Part | None:
    """Observed courses split by expert; None if there is nothing observed to draw or nothing to split."""
    kind = e.results._default_plot
    observed = None if e.n_experts == 1 else e.results._observed(kind)
    if observed is None:
        return None
    split = (replace(c, panel=f"expert {c.expert}", label="") for c in e.results.curves(kind) if c.expert)
    curves = tuple(map(e.results.shown_names.curve, split))
    observed = e.results.shown_names.observed(observed)
    caption = "The same, split by expert: observed proportions and the trajectory of that expert."
    if isinstance(observed, Observed):
        caption = "The same, split by the most probable expert: observed courses and the trajectory of that expert."
    words = f"One panel per expert. {in_words(curves)}"
    caption += e.sampled
    return Image(svg(lambda: draw(curves, observed)), caption, words)


def in_words(curves: Sequence[Curve]) -> str:
    """Where each curve begins and ends."""
    first = curves[0]
    axes = f"{first.ylabel or 'Value'} against {first.xlabel or 'the horizontal axis'}"
    return f"{axes}. {'; '.join(_ends(curve) for curve in curves[:12] if len(curve.x))}."


def _ends(curve: Curve) -> str:
    """First and last value of a curve, or the values of all categories."""
    name = curve.label or curve.panel or "curve"
    if curve.categories:
        values = (f"{y:.4g} at {label}" for label, y in zip(curve.categories, curve.y, strict=True))
        return f"{name}: {', '.join(values)}"
    return f"{name}: {curve.y[0]:.4g} at {curve.x[0]:.4g} to {curve.y[-1]:.4g} at {curve.x[-1]:.4g}"


_GUIDELINES = (
    (
        "grolts",
        "GRoLTS",
        "Guidelines for Reporting on Latent Trajectory Studies",
        grolts,
        "van de Schoot, Sijbrandij, Winter, Depaoli & Vermunt (2017), Structural Equation Modeling 24, 451-467.",
    ),
    (
        "smart",
        "SMART-LCA",
        "Standards for More Accuracy in Reporting of Latent Class Analysis",
        smart_lca,
        "van Lissa, Garnier-Villarreal & Anadria (2023), Structural Equation Modeling, 10.1080/10705511.2023.2250920.",
    ),
)


def sections(e: Evidence, notes: str | None, drawn: bool) -> tuple[Section, ...]:
    """All sections in their order; those without content have no parts."""
    analyses = [analysis.summary() for analysis in e.distal]
    outcomes = tuple(p for s in analyses for p in (Prose(s.title), *s.tables, *(Prose(note) for note in s.notes)))
    versions = versions_table(e.results.model.spec.packages)
    return (
        Section("overview", "Overview", _overview(e, notes)),
        Section("model", "Model", _model(e)),
        Section("data", "Data", _data(e)),
        Section("estimates", "Estimates", _estimates(e)),
        Section("figures", "Figures", figures(e) if drawn else ()),
        Section("diagnostics", "Diagnostics", (diagnostics(e),) if drawn else ()),
        Section("classification", "Classification", _classification(e)),
        Section("starts", "Starts and convergence", _starts(e)),
        Section("choice", "Choice of the model", _choice(e, drawn)),
        Section("distal", "Distal outcomes", outcomes),
        *(
            Section(
                key,
                f"{short} checklist",
                (Checklist(_named_answers(e, checklist_table(key, title, items(e)))), Prose(source)),
            )
            for key, short, title, items, source in _GUIDELINES
            if e.is_mixture and (e.has_subjects or key != "grolts")
        ),
        Section("software", "Software and code", (Code(code(e)), *(Prose(note) for note in remarks(e)), versions)),
    )


def _overview(e: Evidence, notes: str | None) -> tuple[Part, ...]:
    r = e.results
    facts: list[tuple[str, Cell]] = [("Experts", e.n_experts)] if e.is_mixture else []
    facts += [("Subjects", r.n_units)] if e.design.names.group is not None else []
    facts += [("Rows", r.nobs), ("Parameters", r.df_model), (loglik_name(r.model.settings), r.llf), ("BIC", r.bic)]
    facts += [("Entropy", e.mixture.entropy)] if e.n_experts > 1 else []
    facts += [("Converged", "yes" if r.converged else "NO")]
    author = [Prose(text) for text in (notes or "").split("\n\n") if text.strip()]
    return (*author, Facts(tuple(facts)), Remarks(tuple(r.shown_names.prose(flag.message) for flag in r.flags)))


def _model(e: Evidence) -> tuple[Part, ...]:
    formula, settings = e.design.formula, e.results.model.settings
    rows: list[tuple[str, Cell]] = [("Response", formula.response)]
    rows += [("Expert part", _terms(formula.expert))] if e.is_mixture else [("Terms", _terms(formula.expert))]
    rows += [("Gate part", _terms(formula.gate))] if e.is_mixture else []
    rows += [("Subjects in column", e.design.names.group)] if e.design.names.group is not None else []
    rows += [("Within subject", formula.random.design)] if formula.random is not None else []
    rows += [(f"Within {term.name}", term.design) for term in formula.further]
    rows += [("Index", formula.index)] if formula.vary is not None else []
    facts = [(label, value) for label, value in e.results._more_facts if value is not None]
    said = {label.lower().replace(" ", "_") for label, _ in facts}
    shown = {name: _UNSET.get(name) if value is None else _in_words(value) for name, value in settings.items()}
    rows += [*facts, *((name, text) for name, text in shown.items() if name not in said and text is not None)]
    table = Table(
        "parts", "Parts and settings", ("",), tuple(n for n, _ in rows), tuple((v,) for _, v in rows), ("text",)
    )
    return (Prose(e.results.model.spec.title), Code(formula.text), table)


_UNSET = {"weight_decay": "none but the prior of the weights"}  # what settings that were not given stand for


def _in_words(value: Any) -> str | None:
    """A setting as a table shows it; None for what text cannot, such as arrays and modules."""
    if isinstance(value, str | int | float | bool):
        return str(value)
    if isinstance(value, Mapping):
        parts = [(name, _in_words(one)) for name, one in value.items()]
        return "; ".join(f"{name}: {text}" for name, text in parts if text is not None) or None
    if isinstance(value, list | tuple) and all(isinstance(one, str | int | float) for one in value):
        return ", ".join(map(str, value)) or "none"
    return None


def _terms(parts: Any) -> str:
    return " + ".join(part.text if part.kind == "free" else f"{part.kind}({part.text})" for part in parts)


def _data(e: Evidence) -> tuple[Part, ...]:
    design, rows, times = e.design, e.rows, e.times
    parts: list[Part] = [flow_table(design, e.units)]
    if design.names.group is not None:
        parts.append(visits_table(design.counts))
        parts += [Prose(f"What follows:{e.sampled}")] if e.sampled else []
        if times is not None:
            between = spread(gaps(rows.codes, times))
            parts += [Prose(f"Time between visits ({e.time}): {between}.")] if between else []
            parts.append(waves_table(rows, times, str(e.time)))
        attrition = attrition_table(rows, times)
        parts.append(Prose("All subjects have as many visits.") if attrition is None else attrition)
    codes = rows.codes if design.names.group is not None else None
    columns = columns_table(rows.frame, codes, design.names.group, "Columns, rows fitted")
    return (*parts, columns if e.is_mixture else replace(columns, notes=()))  # the notes are about the gate


def _estimates(e: Evidence) -> tuple[Part, ...]:
    summary = e.results.summary(e.alpha)
    flags = {e.results.shown_names.prose(flag.message) for flag in e.results.flags}
    notes = [Prose(note) for note in summary.notes if note not in flags]
    parts: list[Part] = [*(table for table in summary.tables if table.key != "header"), *notes]
    if e.is_mixture:
        # Unlike log odds, average marginal effects do not depend on which expert is the first.
        with suppress(ArgumentError):  # no covariates, or a single expert
            parts += e.mixture.gate_effects(alpha=e.alpha).summary().tables
    return tuple(parts)


def _classification(e: Evidence) -> tuple[Part, ...]:
    if not e.is_mixture:
        return ()
    profile = profile_table(e.rows, e.results._responsibilities_described, e.times, e.units)
    parts: list[Part] = [e.results.shown_names.table(profile)]
    parts += [Prose(f"First values by expert:{e.sampled}")] if e.sampled else []
    if e.n_experts > 1:
        found = e.mixture.adequacy().summary()
        parts = [*found.tables, *(Prose(note) for note in found.notes), *parts]
        parts += e.mixture.classification_table().summary().tables
    if e.subjects:
        try:
            moved = e.results.influence().summary()
            parts += [*moved.tables, *(Prose(note) for note in moved.notes)]
        except ArgumentError as error:
            parts.append(Prose(f"Influence of single {e.units}: {error}."))
    return tuple(parts)


def _starts(e: Evidence) -> tuple[Part, ...]:
    em = e.results.em
    gain = float(em.trace[-1] - em.trace[-2]) if len(em.trace) > 1 else 0.0
    facts: tuple[tuple[str, Cell], ...] = (
        ("Starts", e.results._starts_words),
        ("Iterations", em.n_iter),
        ("Evaluations", em.n_evaluations),
        ("Last change of the log-likelihood", f"{gain:.2g}"),
        ("Converged", "yes" if em.converged else "NO"),
    )
    if not e.is_mixture:
        return (Facts(facts),)
    if em.smoothing.size:  # their log-likelihoods are of another model than the fit's
        searched = (
            "Starts were searched with few columns for each function and without penalties; from the best of them"
        )
        return (Facts(facts), Prose(f"{searched} the fit went on with penalties, so that their ends are not its own."))
    others = elsewhere(em)
    return (
        Facts(facts),
        *([Prose(others)] if others else []),
        end_points_table(distinct_ends(em.starts.logliks), *e.results._ends_words),
    )


def _choice(e: Evidence, drawn: bool) -> tuple[Part, ...]:
    if e.selection is None:
        return ()
    summary = e.selection.summary()
    parts: list[Part] = [*summary.tables, *(Prose(note) for note in summary.notes)]
    return (*parts, *(candidates(e.selection) if drawn else ()))


def _named_answers(e: Evidence, table: Table) -> Table:
    """A checklist whose answers call experts by their names; what the author answered stays as it is."""
    name, own = e.results.shown_names.prose, set(e.answers.values())
    cells = tuple(
        tuple(name(cell) if isinstance(cell, str) and cell not in own else cell for cell in row) for row in table.cells
    )
    return replace(table, cells=cells)


class Reporting:
    """Frames shaped as those of R's broom, Excel, and the report.

    Notes
    -----
    The column names are broom's, with dots, so that frames of both worlds can be stacked. The same numbers with names
    that are attributes in Python are in `Results.to_frame`.
    """

    model: Model
    to_frame: Callable[..., pd.DataFrame]
    fitted: Callable[..., Any]
    resid: Callable[..., pd.Series]
    em: EMFit

    @property
    def _described(self) -> Design:
        """The rows that a report describes and draws: those of the fit."""
        return self.model.design

    @property
    def _responsibilities_described(self) -> Array:
        """Posterior probabilities of the units of these rows, shape (N, K)."""
        return self.em.responsibilities

    @property
    def _sample_words(self) -> str:
        """In words which units these rows are of; empty if they are all."""
        return ""

    def tidy(self, alpha: float = 0.05) -> pd.DataFrame:
        """One row per parameter, as `Results.to_frame` but with its name in a column and the column names of broom.

        Returns
        -------
        DataFrame
            Columns: name, term, block, expert, estimate, std.error, statistic, p.value, conf.low, conf.high, df.
        """
        return broom_tidy(self.to_frame(alpha))

    def glance(self: Fitted) -> pd.DataFrame:
        """One row for the whole fit.

        Returns
        -------
        DataFrame
            Columns: family, nobs, n.units (subjects, or rows where there are none), df, df.residual, logLik, AIC, BIC,
            sABIC, converged; of a mixture also experts, ICL and entropy.
        """
        return broom_glance(self)

    def augment(self, data: Any = None) -> pd.DataFrame:
        """The data with what the fit says about each row.

        Parameters
        ----------
        data : DataFrame, optional
            The frame that was fitted, to have all of its columns and rows, in any order if its index tells rows apart;
            rows left out of the fit then have missing values. By default the used columns of the used rows, in their
            order.

        Returns
        -------
        DataFrame
            The columns of the data, then ``.fitted`` and ``.resid`` (on the scale of the response in the formula; of
            the subject, where subjects have random effects); of a mixture ``.class`` (most probable expert) and
            ``.probability`` (of that expert).

        Raises
        ------
        ArgumentError
            If `data` are not the data of the fit.
        """
        return broom_augment(self.model.design, self._by_class(), self._by_row(), data)

    def to_excel(self: Fitted, path: str | os.PathLike[str], alpha: float = 0.05, data: bool = True) -> None:
        """Write a workbook with the sheets estimates, fit, notes, subjects and rows; needs openpyxl.

        Parameters
        ----------
        path : path-like
            Ends in ``.xlsx``.
        alpha : float
            One minus the level of the limits.
        data : bool
            Whether subjects and rows go into the workbook.

        Raises
        ------
        MissingExtraError
            If openpyxl is not installed.
        ArgumentError
            If the path has another ending.
        """
        estimates = self.tidy(alpha)
        notes = pd.DataFrame({"note": list(estimates.attrs["notes"])})
        sheets = {"estimates": estimates, "fit": self.glance(), "notes": notes}
        subjects = self._by_unit() if data else None
        if subjects is not None:
            sheets["subjects"] = subjects.rename_axis(self.model.design.names.group or "row").reset_index()
        if data:
            sheets["rows"] = self.augment()
        write_excel(path, sheets)

    def report(
        self: Fitted,
        path: str | os.PathLike[str],
        *,
        title: str | None = None,
        author: str | None = None,
        notes: str | None = None,
        selection: Any = None,
        distal: Any = None,
        answers: Mapping[str, str] | None = None,
        alpha: float = 0.05,
        figures: bool = True,
        subjects: bool = True,
    ) -> Path:
        """Write one self-contained web page: data, estimates, figures, classification, checklists, code.

        Parameters
        ----------
        path : path-like
            Ends in ``.html``.
        title, author : str, optional
        notes : str, optional
            Text at the top; an empty line begins a new paragraph.
        selection : Selection, optional
            What `mixmoe.select` returned: all models that were compared.
        distal : Distal or sequence of Distal, optional
            What `distal` returned.
        answers : mapping of str to str, optional
            Answers to items of the checklists that no fit can give, e.g. ``{"G1": "Years since enrolment."}``.
        alpha : float
            One minus the level of the limits.
        figures : bool
            Whether to draw; needs matplotlib.
        subjects : bool
            Whether subjects may be named, as the most influential ones are.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        ArgumentError
            If the path has another ending or an answer belongs to no item.
        MissingExtraError
            If jinja2 is not installed, or if matplotlib is not and figures are wanted.

        Notes
        -----
        The page needs no other file and no network, runs no script, follows the light or dark setting of its reader and
        prints. Whatever comes from the data is shown as text. Of a mixture it answers the items of GRoLTS (van de
        Schoot et al. 2017) where rows belong to subjects, and of SMART-LCA (van Lissa et al. 2023), or says what is not
        reported and why.

        References
        ----------
        van de Schoot, Sijbrandij, Winter, Depaoli & Vermunt (2017), Structural Equation Modeling 24, 451-467.
        van Lissa, Garnier-Villarreal & Anadria (2023), Structural Equation Modeling, doi:10.1080/10705511.2023.2250920.
        """
        if Path(path).suffix.lower() not in (".html", ".htm"):
            raise ArgumentError(
                f"path must end in .html, got {str(path)!r}; a report is a web page, which a browser prints as PDF; "
                "to_latex(), to_markdown() and to_excel() write tables for other documents"
            )
        evidence = gather(self, checked_alpha(alpha), selection, distal, answers, subjects)
        check_answers(evidence)
        made = f"mixmoe, {datetime.now(UTC):%d %B %Y}"
        heading = title or f"{self.model.spec.name} of {self.model.formula.response}"
        byline = f"{author}; {made}" if author else made
        foot = "Made by mixmoe from the fit; nothing on this page was typed in, but what is marked as the author's."
        write_text(path, page(heading, byline, sections(evidence, notes, figures), foot))
        return Path(path)

    _report_plots: tuple[str, ...] = ("trajectories", "gate")

    def _by_class(self) -> pd.DataFrame | None:
        """Most probable expert of each unit and its probability; None in a family without experts."""
        return None

    def _by_unit(self) -> pd.DataFrame | None:
        """What is known of each unit, for a sheet of its own; None if that is nothing."""
        return None

    def _by_row(self) -> pd.DataFrame:
        """Fitted values and residuals of the rows used, in the order of the data; families without them override."""
        return pd.DataFrame({".fitted": np.asarray(self.fitted()), ".resid": np.asarray(self.resid())})
