"""The items of SMART-LCA in our own words, with how each is answered.

References
----------
van Lissa, Garnier-Villarreal & Anadria (2023), Recommended Practices in Latent Class Analysis using the Open-Source
R-Package tidySEM, Structural Equation Modeling, doi:10.1080/10705511.2023.2250920.
"""

from collections.abc import Callable
from functools import partial

from mixmoe.report import grolts
from mixmoe.report.evidence import Evidence


def authors(e: Evidence, what: str) -> str:
    """An item that only the author can answer."""
    return f"Not reported: {what} is not in data or fit; say it with answers={{...}}."


def see(e: Evidence, where: str) -> str:
    """An item that a section answers."""
    return where


def scaling(e: Evidence) -> str:
    """Item 3b."""
    return (
        f"The formula {e.design.formula.text!r} shows every transform. Columns are standardised inside the "
        "optimiser and results given in the units of the data, so that scales do not matter."
    )


def missing_per_variable(e: Evidence) -> str:
    """Item 4a."""
    by_column = ", ".join(f"{name}: {count} of {e.design.n_input}" for name, count in e.design.dropped.by_column)
    return f"Rows left out for a missing value, by column: {by_column or 'none'}."


def alternatives(e: Evidence) -> str:
    """Item 5a."""
    if e.selection is None:
        return grolts.number_of_models(e)
    return f"{grolts.number_of_models(e)} Section Choice of the model lists them."


def one_to_k(e: Evidence) -> str:
    """Item 6b."""
    if e.selection is None:
        return grolts.number_of_models(e)
    experts = sorted(set(e.candidates["experts"]))
    gap = sorted(set(range(1, experts[-1] + 1)) - set(experts))
    return f"Fitted: {', '.join(map(str, experts))}" + (f"; not fitted: {', '.join(map(str, gap))}." if gap else ".")


def identifiability(e: Evidence) -> str:
    """Item 8c."""
    own = [sum(p.expert == k + 1 for p in e.results.model.layout.parameters) for k in range(e.n_experts)]
    size = e.results.em.responsibilities.sum(axis=0)
    ratios = ", ".join(
        f"expert {k + 1}: {n:.1f} {e.units} for {p} parameters" for k, (n, p) in enumerate(zip(size, own, strict=True))
    )
    return f"{ratios}."


def convergence(e: Evidence) -> str:
    """Items 8a and 10b."""
    if e.results.converged:
        flags = ", ".join(flag.code for flag in e.results.flags)
        return f"Converged; flags: {flags or 'none'}. Section Starts and convergence."
    return "NOT converged: the estimates are not to be interpreted. Section Starts and convergence."


def method(e: Evidence) -> str:
    """Item 10a."""
    how = {
        "MEMoE": "Maximum likelihood: EM steps from many random starts, split-and-merge moves, then quasi-Newton",
        "VCMoE": "Local maximum likelihood with one posterior probability per row at all points of the index",
        "NME": "Maximum (approximate) marginal likelihood of a network with person effects",
    }
    return how.get(e.results.model.family_name, "Maximum likelihood") + "."


def follow_up(e: Evidence) -> str:
    """Item 14."""
    if e.distal:
        return "Section Distal outcomes, corrected for the error of classification unless it says otherwise."
    return "Not reported: no follow-up analysis was given; if there is one, give distal=fit.distal(...)."


def _author(what: str) -> Callable[[Evidence], str]:
    return partial(authors, what=what)


def _section(where: str) -> Callable[[Evidence], str]:
    return partial(see, where=where)


ITEMS: tuple[tuple[str, str, Callable[[Evidence], str]], ...] = (
    ("S1a", "Which question, and does the design suit it?", _author("the research question")),
    ("S1b", "Is the analysis confirmatory or exploratory?", _author("the intention")),
    ("S1c", "Are the indicators valid, reliable and of a suitable type?", _author("the quality of the measurements")),
    ("S1d", "Why this sample size?", _author("the reason for the sample size")),
    ("S1e", "Was the analysis registered beforehand?", _author("a registration")),
    ("S2", "How are the indicators distributed, and on which scales?", grolts.distributions),
    ("S3a", "Do the variables have the types that the model takes them for?", grolts.distributions),
    ("S3b", "Was anything rescaled or transformed?", scaling),
    ("S4a", "What share of each variable is missing?", missing_per_variable),
    ("S4b", "Was the mechanism of missingness examined?", grolts.attrition),
    ("S4c", "How were missing values handled?", grolts.missing_handled),
    ("S5a", "Which other specifications were sensible?", alternatives),
    ("S5b", "Is the model stated with all of its parameters?", _section("Sections Model and Estimates.")),
    ("S6a", "Why this largest number of classes?", _author("the reason for the largest number")),
    ("S6b", "Were all numbers of classes from one upwards fitted?", one_to_k),
    ("S7", "By which criteria was the number of classes chosen, and why?", grolts.comparison_tools),
    ("S8a", "Did convergence decide which models were kept?", convergence),
    ("S8b", "Did diagnostics of classification?", _section("Section Classification.")),
    ("S8c", "Did the number of observations per parameter in each class?", identifiability),
    ("S8d", "Did interpretability?", _author("the interpretation of the classes")),
    ("S9a", "Is the software free and open?", grolts.software),
    ("S9b", "Is the code shared?", grolts.syntax),
    (
        "S9c",
        "Are the data shared, or synthetic ones?",
        _author("where the data are (fit.simulate() makes synthetic ones)"),
    ),
    ("S10a", "How was the model estimated?", method),
    ("S10b", "Was convergence examined?", convergence),
    ("S11a", "Is the fit of all models in a table?", grolts.number_of_models),
    ("S11b", "Are sizes of classes reported for all models?", grolts.class_sizes),
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
    ("S13", "Are raw data, estimates and their uncertainty shown in figures?", grolts.observed_by_class),
    ("S14", "Do follow-up analyses allow for errors of classification?", follow_up),
)
