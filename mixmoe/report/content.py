"""The sections of a report, from what is known of a fit."""

from typing import Any

from mixmoe.errors import ArgumentError
from mixmoe.output.tables import Cell, Table
from mixmoe.report.checklists import checklist_table, grolts, smart_lca
from mixmoe.report.code import code, remarks, versions_table
from mixmoe.report.data import columns_table, gaps, spread, visits_table
from mixmoe.report.evidence import Evidence
from mixmoe.report.figures import candidates, diagnostics, figures
from mixmoe.report.groups import (
    attrition_table,
    distinct_ends,
    effects_table,
    elsewhere,
    end_points_table,
    flow_table,
    profile_table,
    waves_table,
)
from mixmoe.report.page import Checklist, Code, Facts, Part, Prose, Remarks, Section

_WORDS = {
    "MEMoE": "A mixed-effects mixture of experts: each subject belongs to one expert; a softmax gate on baseline "
    "covariates gives the probabilities, and each expert is a mixed model with coefficients of its own.",
    "VCMoE": "A varying-coefficient mixture of experts: coefficients of experts and gate are smooth functions of an "
    "index, except those marked as constant.",
    "NME": "A neural mixed-effects model: a network some of whose parameters differ between persons.",
}


def sections(e: Evidence, notes: str | None, drawn: bool) -> tuple[Section, ...]:
    """All sections in their order; those without content have no parts."""
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
        Section("distal", "Distal outcomes", _distal(e)),
        Section("grolts", "GRoLTS checklist", _grolts(e)),
        Section("smart", "SMART-LCA checklist", _smart(e)),
        Section("software", "Software and code", _software(e)),
    )


def _overview(e: Evidence, notes: str | None) -> tuple[Part, ...]:
    r = e.results
    facts: list[tuple[str, Cell]] = [("Experts", e.n_experts)]
    facts += [("Subjects", r.n_units)] if e.design.names.group is not None else []
    facts += [("Rows", r.nobs), ("Parameters", r.df_model), ("Log-likelihood", r.llf), ("BIC", r.bic)]
    facts += [("Entropy", r.entropy)] if e.n_experts > 1 else []
    facts += [("Converged", "yes" if r.converged else "NO")]
    author = [Prose(text) for text in (notes or "").split("\n\n") if text.strip()]
    return (*author, Facts(tuple(facts)), Remarks(tuple(flag.message for flag in r.flags)))


def _model(e: Evidence) -> tuple[Part, ...]:
    formula, settings = e.design.formula, e.results.model.settings
    rows: list[tuple[str, Cell]] = [("Response", formula.response), ("Expert part", _terms(formula.expert))]
    rows += [("Gate part", _terms(formula.gate))]
    rows += [("Subjects in column", e.design.names.group)] if e.design.names.group is not None else []
    rows += [("Within subject", formula.random.design)] if formula.random is not None else []
    rows += [("Index", formula.vary)] if formula.vary is not None else []
    facts = [(label, value) for label, value in e.results._more_facts if value is not None]
    said = {label.lower().replace(" ", "_") for label, _ in facts}
    plain = [(n, str(v)) for n, v in settings.items() if n not in said and isinstance(v, str | int | float | bool)]
    rows += [*facts, *plain]
    table = Table(
        "parts", "Parts and settings", ("",), tuple(n for n, _ in rows), tuple((v,) for _, v in rows), ("text",)
    )
    words = _WORDS.get(e.results.model.family_name, e.results.model.family_name)
    return (Prose(words), Code(formula.text), table)


def _terms(parts: Any) -> str:
    return " + ".join(part.text if part.kind == "free" else f"{part.kind}({part.text})" for part in parts)


def _data(e: Evidence) -> tuple[Part, ...]:
    design, times = e.design, e.times
    parts: list[Part] = [flow_table(design, e.units)]
    if design.names.group is not None:
        parts.append(visits_table(design.codes))
        if times is not None:
            between = spread(gaps(design.codes, times))
            parts += [Prose(f"Time between visits ({e.axis}): {between}.")] if between else []
            parts.append(waves_table(design, times, str(e.axis)))
        attrition = attrition_table(design, times)
        parts.append(Prose("All subjects have as many visits.") if attrition is None else attrition)
    codes = design.codes if design.names.group is not None else None
    return (*parts, columns_table(design.frame, codes, design.names.group, "Columns, rows fitted"))


def _estimates(e: Evidence) -> tuple[Part, ...]:
    summary = e.results.summary(e.alpha)
    flags = {flag.message for flag in e.results.flags}
    notes = [Prose(note) for note in summary.notes if note not in flags]
    return (*(table for table in summary.tables if table.key != "header"), *notes, *_gate_effects(e))


def _gate_effects(e: Evidence) -> tuple[Part, ...]:
    """Average marginal effects, which unlike log odds do not depend on which expert is the first."""
    try:
        return (effects_table(e.results.gate_effects(alpha=e.alpha), e.alpha),)
    except ArgumentError:  # no covariates, or a single expert
        return ()


def _classification(e: Evidence) -> tuple[Part, ...]:
    tau = e.results.em.responsibilities
    parts: list[Part] = [profile_table(e.design, tau, e.times, e.units)]
    if e.n_experts > 1:
        found = e.results.adequacy().summary()
        parts = [*found.tables, *(Prose(note) for note in found.notes), *parts]
        parts += e.results.classification_table().summary().tables
    return (*parts, *(_influence(e) if e.subjects else ()))


def _influence(e: Evidence) -> tuple[Part, ...]:
    """Units that move the estimates most, or why that is not known."""
    try:
        found = e.results.influence().summary()
    except ArgumentError as error:
        return (Prose(f"Influence of single {e.units}: {error}."),)
    return (*found.tables, *(Prose(note) for note in found.notes))


def _starts(e: Evidence) -> tuple[Part, ...]:
    em = e.results.em
    gain = float(em.trace[-1] - em.trace[-2]) if len(em.trace) > 1 else 0.0
    facts: tuple[tuple[str, Cell], ...] = (
        ("Starts", e.results._starts_words),
        ("Iterations", em.n_iter),
        ("Evaluations", em.n_evaluations),
        ("Last gain", f"{gain:.2g}"),
        ("Converged", "yes" if em.converged else "NO"),
    )
    if e.results.model.family_name == "NME":
        return (Facts(facts),)
    others = elsewhere(em)
    return (Facts(facts), *([Prose(others)] if others else []), end_points_table(distinct_ends(em.starts.logliks)))


def _choice(e: Evidence, drawn: bool) -> tuple[Part, ...]:
    if e.selection is None:
        return ()
    summary = e.selection.summary()
    parts: list[Part] = [*summary.tables, *(Prose(note) for note in summary.notes)]
    return (*parts, *(candidates(e.selection) if drawn else ()))


def _distal(e: Evidence) -> tuple[Part, ...]:
    summaries = [analysis.summary() for analysis in e.distal]
    return tuple(part for s in summaries for part in (Prose(s.title), *s.tables, *(Prose(note) for note in s.notes)))


def _grolts(e: Evidence) -> tuple[Part, ...]:
    table = checklist_table("grolts", "Guidelines for Reporting on Latent Trajectory Studies", grolts(e))
    source = "van de Schoot, Sijbrandij, Winter, Depaoli & Vermunt (2017), Structural Equation Modeling 24, 451-467."
    return (Checklist(table), Prose(source))


def _smart(e: Evidence) -> tuple[Part, ...]:
    table = checklist_table("smart", "Standards for More Accuracy in Reporting of Latent Class Analysis", smart_lca(e))
    source = (
        "van Lissa, Garnier-Villarreal & Anadria (2023), Structural Equation Modeling, 10.1080/10705511.2023.2250920."
    )
    return (Checklist(table), Prose(source))


def _software(e: Evidence) -> tuple[Part, ...]:
    return (Code(code(e)), *(Prose(note) for note in remarks(e)), versions_table(e.results.model.family_name))
