"""Two reporting guidelines in our own words, each item answered from the fit or said not to be reported, and why.

References
----------
van de Schoot, Sijbrandij, Winter, Depaoli & Vermunt (2017), The GRoLTS-Checklist: Guidelines for Reporting on Latent
Trajectory Studies, Structural Equation Modeling 24, 451-467.
van Lissa, Garnier-Villarreal & Anadria (2023), Recommended Practices in Latent Class Analysis using the Open-Source
R-Package tidySEM, Structural Equation Modeling, doi:10.1080/10705511.2023.2250920.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mixmoe.errors import ArgumentError
from mixmoe.output.records import Table
from mixmoe.report.evidence import Evidence

_NO_SELECTION = "Not reported: this report was made from one fit; give selection=mm.select(...) to report all of them."
_NO_TIME = "no numeric column is known to be the time, in whose order the rows stand; give time= to mm.fit"
CRITERIA = (
    "log L is the maximised log-likelihood, P the number of parameters, N the number of {units}. "
    "AIC = -2 log L + 2 P; BIC = -2 log L + P log N; adjusted BIC has (N + 2) / 24 in place of N; "
    "ICL = BIC + 2 EN with EN the entropy of the posterior classification. Smaller is better."
)


def metric_of_time(e: Evidence) -> str:
    """Answers 'In which unit, and from which origin, is time measured?' (GRoLTS 1)."""
    if e.times is None:
        return f"Not reported: {_NO_TIME}; or say it with answers={{'G1': ...}}."
    low, high = e.times.min(), e.times.max()
    return (
        f"In part: time is the column {e.time!r} as it is in the data, from {low:.4g} to {high:.4g}. Its unit and "
        "origin are not in the data; say them with answers={'G1': ...}."
    )


def time_within_wave(e: Evidence) -> str:
    """Answers 'How do the times within a wave of measurement vary (mean, variance)?' (GRoLTS 2)."""
    if e.times is None:
        return f"Not reported: {_NO_TIME}."
    return "Section Data: mean, standard deviation and range of the time of each visit, and how many subjects had it."


def missing_mechanism(e: Evidence) -> str:
    """Answers 'Which mechanism of missingness is assumed?' (GRoLTS 3a)."""
    return (
        "Not reported: data alone cannot tell the mechanism. The estimates hold if values are missing at random given "
        "the covariates and the observed responses; say why that is plausible with answers={'G3a': ...}."
    )


def attrition(e: Evidence) -> str:
    """Answers 'Which variables go with dropping out or missing values?' (GRoLTS 3b)."""
    if e.design.names.group is None:
        return "Not reported: each row is a unit of its own, so nobody can drop out."
    return (
        "In part: section Data has the rank correlation of the number of visits with the first value of each column of "
        "the formula; other columns were not looked at."
    )


def missing_handled(e: Evidence) -> str:
    """Answers 'What was done about missing values in the analysis?' (GRoLTS 3c)."""
    dropped = e.design.dropped.n_rows
    rows = f"{dropped} of {e.design.n_input} rows with a missing value in a column of the formula were left out"
    others = "each complete row is used" if e.units == "rows" else "subjects contribute all their other rows"
    how = "restricted maximum likelihood" if e.results.model.settings.get("method") == "reml" else "maximum likelihood"
    return f"{rows}; {others}, by {how}; nothing was imputed."


def distributions(e: Evidence) -> str:
    """Answers 'How are the observed variables distributed?' (GRoLTS 4)."""
    return "Section Data: type, distinct values, mean, standard deviation and range or levels of every column used."


def software(e: Evidence) -> str:
    """Answers 'Which software was used?' (GRoLTS 5)."""
    return "Section Software and code: mixmoe, Python and the packages beneath, with versions."


def within_class(e: Evidence) -> str:
    """Answers 'Were other forms of heterogeneity within classes considered?' (GRoLTS 6a)."""
    random = e.design.formula.random
    if random is None:
        now = "no random effects"
    elif e.design.names.random:
        now = f"random effects {', '.join(e.design.names.random)}"
    else:
        now = f"random part {random.design!r}"
    if e.varied("formula"):
        return f"This fit has {now}; section Choice of the model has the alternatives."
    return f"Not reported: this fit has {now}, and no alternatives were given; compare formulas in mm.select(...)."


def between_class(e: Evidence) -> str:
    """Answers 'Were other variance structures between classes considered?' (GRoLTS 6b)."""
    settings = e.results.model.settings
    parts = [
        f"{name}={settings[name]!r}"
        for name in ("cov_re", "residual", "errors", "errors_dist", "dispersion")
        if name in settings
    ]
    now = f"This fit has {' and '.join(parts)}" if parts else "This family has one variance structure"
    if e.varied("cov_re", "residual", "errors", "errors_dist", "dispersion"):
        return f"{now}; section Choice of the model has the alternatives."
    option = next((f"{name}=[...]" for name in ("cov_re", "dispersion") if name in settings), "...")
    return f"Not reported: {now[0].lower() + now[1:]}, and no alternatives were given; see mm.select({option})."


def shapes(e: Evidence) -> str:
    """Answers 'Were other shapes of the trajectories considered?' (GRoLTS 7)."""
    now = f"The expert part of the formula is {' + '.join(part.text for part in e.design.formula.expert)!r}"
    if e.varied("formula"):
        return f"{now}; section Choice of the model has the alternatives."
    return f"Not reported: {now[0].lower() + now[1:]}, and no other shapes were given; compare formulas in mm.select."


def covariates(e: Evidence) -> str:
    """Answers 'Can the use of covariates be replicated?' (GRoLTS 8)."""
    names = [name for name in (*e.design.names.expert, *e.design.names.gate) if name != "Intercept"]
    listed = ", ".join(dict.fromkeys(names)) or "none"
    return f"Columns of experts and gate, as coded: {listed}. The formula with its settings reproduces them."


def starts(e: Evidence) -> str:
    """Answers 'How many random starts and final iterations were there?' (GRoLTS 9)."""
    em = e.results.em
    return f"{e.results._starts_words}; {em.n_iter} iterations of the best. Section Starts and convergence."


def comparison_tools(e: Evidence) -> str:
    """Answers 'Which statistics compared the models, and how are they defined?' (GRoLTS 10)."""
    return _NO_SELECTION if e.selection is None else CRITERIA.format(units=e.units)


def number_of_models(e: Evidence) -> str:
    """Answers 'How many models were fitted, with the one-class solution among them?' (GRoLTS 11)."""
    if e.selection is None:
        return _NO_SELECTION
    experts = sorted(set(e.candidates["experts"]))
    one = "with" if 1 in experts else "WITHOUT"
    return f"{len(e.candidates)} models with {', '.join(map(str, experts))} experts, {one} the one-expert solution."


def class_sizes(e: Evidence) -> str:
    """Answers 'How many cases has each class of each model?' (GRoLTS 12)."""
    sizes = np.bincount(e.results.em.responsibilities.argmax(axis=1), minlength=e.n_experts)
    shares = e.results.em.responsibilities.mean(axis=0)
    own = ", ".join(f"expert {k + 1}: {n} ({s:.1%})" for k, (n, s) in enumerate(zip(sizes, shares, strict=True)))
    text = f"{own} (most probable expert, and mean posterior probability)"
    if e.selection is None:
        return f"In part: {text}; of this model only, as no selection= was given."
    return f"{text}; of the others in section Choice of the model."


def entropy(e: Evidence) -> str:
    """Answers 'If cases are to be classified: how large is the entropy?' (GRoLTS 13)."""
    if e.n_experts == 1:
        return "One expert: there is no classification."
    return f"Relative entropy {e.mixture.entropy:.3f}; more in section Classification."


def final_trajectories(e: Evidence) -> str:
    """Answers 'Is there a figure of the mean trajectories of the final model?' (GRoLTS 14a)."""
    return "Section Figures."


def all_trajectories(e: Evidence) -> str:
    """Answers 'Are there figures of the mean trajectories of every model?' (GRoLTS 14b)."""
    return (
        _NO_SELECTION if e.selection is None else "Section Choice of the model, a figure per candidate that was fitted."
    )


def observed_by_class(e: Evidence) -> str:
    """Answers 'Is there a figure of mean and observed individual trajectories for each class?' (GRoLTS 14c)."""
    if e.results._observed(e.results._default_plot) is None:
        return "Not reported: this family has no observed courses to draw."
    return "Section Figures: observed courses split by the most probable expert, under the estimated trajectory."


def characteristics(e: Evidence) -> str:
    """Answers 'Are the classes described by numbers (means, SD or SE, n, CI)?' (GRoLTS 15)."""
    return (
        "Section Estimates: estimates, standard errors and limits; section Classification: size of each expert and "
        "means and standard deviations of the columns used, by expert."
    )


def syntax(e: Evidence) -> str:
    """Answers 'Is the code available?' (GRoLTS 16)."""
    return "Section Software and code."


GROLTS: tuple[tuple[str, str, Callable[[Evidence], str]], ...] = (
    ("G1", "In which unit, and from which origin, is time measured?", metric_of_time),
    ("G2", "How do the times within a wave of measurement vary (mean, variance)?", time_within_wave),
    ("G3a", "Which mechanism of missingness is assumed?", missing_mechanism),
    ("G3b", "Which variables go with dropping out or missing values?", attrition),
    ("G3c", "What was done about missing values in the analysis?", missing_handled),
    ("G4", "How are the observed variables distributed?", distributions),
    ("G5", "Which software was used?", software),
    (
        "G6a",
        "Were other forms of heterogeneity within classes considered (with and without random effects)?",
        within_class,
    ),
    ("G6b", "Were other variance structures between classes considered?", between_class),
    ("G7", "Were other shapes of the trajectories considered?", shapes),
    ("G8", "Can the use of covariates be replicated?", covariates),
    ("G9", "How many random starts and final iterations were there?", starts),
    ("G10", "Which statistics compared the models, and how are they defined?", comparison_tools),
    ("G11", "How many models were fitted, with the one-class solution among them?", number_of_models),
    ("G12", "How many cases has each class of each model?", class_sizes),
    ("G13", "If cases are to be classified: how large is the entropy?", entropy),
    ("G14a", "Is there a figure of the mean trajectories of the final model?", final_trajectories),
    ("G14b", "Are there figures of the mean trajectories of every model?", all_trajectories),
    ("G14c", "Is there a figure of mean and observed individual trajectories for each class?", observed_by_class),
    ("G15", "Are the classes described by numbers (means, SD or SE, n, CI)?", characteristics),
    ("G16", "Is the code available?", syntax),
)


def authors(e: Evidence, what: str) -> str:
    """An item that only the author can answer."""
    return f"Not reported: {what} is not in data or fit; say it with answers={{...}}."


def see(e: Evidence, where: str) -> str:
    """An item that a section answers."""
    return where


def scaling(e: Evidence) -> str:
    """Answers 'Was anything rescaled or transformed?' (SMART-LCA 3b)."""
    return (
        f"The formula {e.design.formula.text!r} shows every transform. Columns are standardised inside the "
        "optimiser and results given in the units of the data, so that scales do not matter."
    )


def missing_per_variable(e: Evidence) -> str:
    """Answers 'What share of each variable is missing?' (SMART-LCA 4a)."""
    by_column = ", ".join(f"{name}: {count} of {e.design.n_input}" for name, count in e.design.dropped.by_column)
    return f"Rows left out for a missing value, by column: {by_column or 'none'}."


def alternatives(e: Evidence) -> str:
    """Answers 'Which other specifications were sensible?' (SMART-LCA 5a)."""
    if e.selection is None:
        return number_of_models(e)
    return f"{number_of_models(e)} Section Choice of the model lists them."


def one_to_k(e: Evidence) -> str:
    """Answers 'Were all numbers of classes from one upwards fitted?' (SMART-LCA 6b)."""
    if e.selection is None:
        return number_of_models(e)
    experts = sorted(set(e.candidates["experts"]))
    gap = sorted(set(range(1, experts[-1] + 1)) - set(experts))
    return f"Fitted: {', '.join(map(str, experts))}" + (f"; not fitted: {', '.join(map(str, gap))}." if gap else ".")


def identifiability(e: Evidence) -> str:
    """Answers 'Observations per parameter in each class' (SMART-LCA 8c)."""
    # The ratio of proportional covariances belongs to one expert, although it stands in the table of all.
    parameters, K = e.results.model.layout.parameters, e.n_experts
    own = [sum(p.expert == k + 1 or p.name == f"omega{k + 1}" for p in parameters) for k in range(K)]
    size = e.results.em.responsibilities.sum(axis=0)
    ratios = ", ".join(
        f"expert {k + 1}: {n:.1f} {e.units} for {p} parameters" for k, (n, p) in enumerate(zip(size, own, strict=True))
    )
    return f"{ratios}."


def convergence(e: Evidence) -> str:
    """Answers whether convergence was examined and decided which models were kept (SMART-LCA 8a, 10b)."""
    if e.results.converged:
        flags = ", ".join(flag.code for flag in e.results.flags)
        return f"Converged; flags: {flags or 'none'}. Section Starts and convergence."
    return "NOT converged: the estimates are not to be interpreted. Section Starts and convergence."


def method(e: Evidence) -> str:
    """Answers 'How was the model estimated?' (SMART-LCA 10a)."""
    if e.results.model.settings.get("method") == "reml":
        return "Restricted maximum likelihood (REML) of one expert: quasi-Newton, then Newton steps."
    return str(e.results.model.spec.estimation)


def follow_up(e: Evidence) -> str:
    """Answers 'Do follow-up analyses allow for errors of classification?' (SMART-LCA 14)."""
    if e.distal:
        return "Section Distal outcomes, corrected for the error of classification unless it says otherwise."
    return "Not reported: no follow-up analysis was given; if there is one, give distal=fit.distal(...)."


def _author(what: str) -> Callable[[Evidence], str]:
    return partial(authors, what=what)


def _section(where: str) -> Callable[[Evidence], str]:
    return partial(see, where=where)


SMART: tuple[tuple[str, str, Callable[[Evidence], str]], ...] = (
    ("S1a", "Which question, and does the design suit it?", _author("the research question")),
    ("S1b", "Is the analysis confirmatory or exploratory?", _author("the intention")),
    ("S1c", "Are the indicators valid, reliable and of a suitable type?", _author("the quality of the measurements")),
    ("S1d", "Why this sample size?", _author("the reason for the sample size")),
    ("S1e", "Was the analysis registered beforehand?", _author("a registration")),
    ("S2", "How are the indicators distributed, and on which scales?", distributions),
    ("S3a", "Do the variables have the types that the model takes them for?", distributions),
    ("S3b", "Was anything rescaled or transformed?", scaling),
    ("S4a", "What share of each variable is missing?", missing_per_variable),
    ("S4b", "Was the mechanism of missingness examined?", attrition),
    ("S4c", "How were missing values handled?", missing_handled),
    ("S5a", "Which other specifications were sensible?", alternatives),
    ("S5b", "Is the model stated with all of its parameters?", _section("Sections Model and Estimates.")),
    ("S6a", "Why this largest number of classes?", _author("the reason for the largest number")),
    ("S6b", "Were all numbers of classes from one upwards fitted?", one_to_k),
    ("S7", "By which criteria was the number of classes chosen, and why?", comparison_tools),
    ("S8a", "Did convergence decide which models were kept?", convergence),
    ("S8b", "Did diagnostics of classification?", _section("Section Classification.")),
    ("S8c", "Did the number of observations per parameter in each class?", identifiability),
    ("S8d", "Did interpretability?", _author("the interpretation of the classes")),
    ("S9a", "Is the software free and open?", software),
    ("S9b", "Is the code shared?", syntax),
    (
        "S9c",
        "Are the data shared, or synthetic ones?",
        _author("where the data are (fit.simulate() makes synthetic ones)"),
    ),
    ("S10a", "How was the model estimated?", method),
    ("S10b", "Was convergence examined?", convergence),
    ("S11a", "Is the fit of all models in a table?", number_of_models),
    ("S11b", "Are sizes of classes reported for all models?", class_sizes),
    ("S11c", "Are estimates given with standard errors and intervals?", _section("Section Estimates.")),
    ("S11d", "Do the classes have names, said to be only shorthand?", _author("a name of each expert")),
    (
        "S12",
        "Are the hypotheses tested meaningful, and their number allowed for?",
        _section(
            "z-tests of zero in section Estimates, not corrected for their number; none for standard deviations, where "
            "zero lies on the boundary."
        ),
    ),
    ("S13", "Are raw data, estimates and their uncertainty shown in figures?", observed_by_class),
    ("S14", "Do follow-up analyses allow for errors of classification?", follow_up),
)
_OPEN = ("Not reported", "In part")


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a guideline with its answer.

    Attributes
    ----------
    key : str
    asked : str
    answer : str
    """

    key: str
    asked: str
    answer: str

    @property
    def status(self) -> str:
        """How far it is answered: the answer begins with it where it is not, or not wholly."""
        return next((word.lower() for word in _OPEN if self.answer.startswith(word)), "reported")


def grolts(evidence: Evidence) -> tuple[Item, ...]:
    """GRoLTS, for latent trajectory studies (van de Schoot et al. 2017)."""
    return _answered(GROLTS, evidence)


def smart_lca(evidence: Evidence) -> tuple[Item, ...]:
    """SMART-LCA, for latent class analysis (van Lissa et al. 2023)."""
    return _answered(SMART, evidence)


def _answered(items: Sequence[tuple[str, str, Callable[[Evidence], str]]], evidence: Evidence) -> tuple[Item, ...]:
    own = {key: f"Author: {text}" for key, text in evidence.answers.items() if text}
    return tuple(Item(key, asked, own.get(key) or answer(evidence)) for key, asked, answer in items)


def check_answers(evidence: Evidence) -> None:
    """Refuse answers to items that do not exist, or not for this fit.

    Raises
    ------
    ArgumentError
    """
    known = [key for key, _, _ in (*GROLTS, *SMART)]
    if evidence.answers and not evidence.is_mixture:
        raise ArgumentError(
            f"answers has {next(iter(evidence.answers))!r}, but the checklists are for mixtures, which "
            f"{evidence.results.model.spec.name} is not; leave answers= out"
        )
    courses = [key for key, _, _ in GROLTS]
    for key in evidence.answers:
        if key not in known:
            raise ArgumentError(f"answers has {key!r}; the items are {', '.join(known)}")
        if key in courses and not evidence.has_subjects:
            raise ArgumentError(
                f"answers has {key!r}, an item of GRoLTS, which is about courses of subjects; rows of this fit belong "
                "to none, so leave it out"
            )


def checklist_table(key: str, title: str, items: Sequence[Item]) -> Table:
    """Items, what they ask, and the answers."""
    counts = Counter(item.status for item in items)
    found = ", ".join(f"{counts[status]} {status}" for status in ("reported", "in part", "not reported"))
    return Table(
        key=key,
        title=title,
        columns=("Asked", "Status", "Answer"),
        index=tuple(item.key for item in items),
        cells=tuple((i.asked, i.status, i.answer) for i in items),
        formats=("text", "text", "text"),
        notes=(
            f"{len(items)} items: {found}. The items are in our own words; what only the author knows is given with "
            f"answers={{'{items[0].key}': '...'}}.",
        ),
    )
