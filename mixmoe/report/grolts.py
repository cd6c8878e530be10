"""The items of GRoLTS in our own words, with how each is answered.

References
----------
van de Schoot, Sijbrandij, Winter, Depaoli & Vermunt (2017), The GRoLTS-Checklist: Guidelines for Reporting on Latent
Trajectory Studies, Structural Equation Modeling 24, 451-467.
"""

from collections.abc import Callable

import numpy as np

from mixmoe.report.evidence import Evidence

_NO_SELECTION = "Not reported: this report was made from one fit; give selection=mm.select(...) to report all of them."
CRITERIA = (
    "log L is the maximised log-likelihood, P the number of parameters, N the number of {units}. "
    "AIC = -2 log L + 2 P; BIC = -2 log L + P log N; adjusted BIC has (N + 2) / 24 in place of N; "
    "ICL = BIC + 2 EN with EN the entropy of the posterior classification. Smaller is better."
)


def metric_of_time(e: Evidence) -> str:
    """Item 1."""
    if e.times is None:
        return "Not reported: no numeric column of the data is the time of the curves; say it with answers={'G1': ...}."
    low, high = e.times.min(), e.times.max()
    return (
        f"In part: time is the column {e.axis!r} as it is in the data, from {low:.4g} to {high:.4g}. Its unit and "
        "origin are not in the data; say them with answers={'G1': ...}."
    )


def time_within_wave(e: Evidence) -> str:
    """Item 2."""
    if e.times is None or e.design.names.group is None:
        return "Not reported: without subjects and a numeric time there are no waves."
    return "Section Data: mean, standard deviation and range of the time of each visit, and how many subjects had it."


def missing_mechanism(e: Evidence) -> str:
    """Item 3a."""
    return (
        "Not reported: data alone cannot tell the mechanism. The estimates hold if values are missing at random given "
        "the covariates and the observed responses; say why that is plausible with answers={'G3a': ...}."
    )


def attrition(e: Evidence) -> str:
    """Item 3b."""
    if e.design.names.group is None:
        return "Not reported: each row is a unit of its own, so nobody can drop out."
    return (
        "In part: section Data has the rank correlation of the number of visits with the first value of each column of "
        "the formula; other columns were not looked at."
    )


def missing_handled(e: Evidence) -> str:
    """Item 3c."""
    dropped = e.design.dropped.n_rows
    rows = f"{dropped} of {e.design.n_input} rows with a missing value in a column of the formula were left out"
    others = "each complete row is used" if e.units == "rows" else "subjects contribute all their other rows"
    return f"{rows}; {others}, by maximum likelihood; nothing was imputed."


def distributions(e: Evidence) -> str:
    """Item 4."""
    return "Section Data: type, distinct values, mean, standard deviation and range or levels of every column used."


def software(e: Evidence) -> str:
    """Item 5."""
    return "Section Software and code: mixmoe, Python and the packages beneath, with versions."


def within_class(e: Evidence) -> str:
    """Item 6a."""
    random = e.design.formula.random
    if e.results.model.family_name == "VCMoE" or random is None:
        now = "no random effects"
    elif e.design.names.random:
        now = f"random effects {', '.join(e.design.names.random)}"
    else:
        now = f"random part {random.design!r}"
    if e.varied("formula"):
        return f"This fit has {now}; section Choice of the model has the alternatives."
    return f"Not reported: this fit has {now}, and no alternatives were given; compare formulas in mm.select(...)."


def between_class(e: Evidence) -> str:
    """Item 6b."""
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
    """Item 7."""
    now = f"The expert part of the formula is {' + '.join(part.text for part in e.design.formula.expert)!r}"
    if e.varied("formula"):
        return f"{now}; section Choice of the model has the alternatives."
    return f"Not reported: {now[0].lower() + now[1:]}, and no other shapes were given; compare formulas in mm.select."


def covariates(e: Evidence) -> str:
    """Item 8."""
    names = [name for name in (*e.design.names.expert, *e.design.names.gate) if name != "Intercept"]
    listed = ", ".join(dict.fromkeys(names)) or "none"
    return f"Columns of experts and gate, as coded: {listed}. The formula with its settings reproduces them."


def starts(e: Evidence) -> str:
    """Item 9."""
    em = e.results.em
    return f"{e.results._starts_words}; {em.n_iter} iterations of the best. Section Starts and convergence."


def comparison_tools(e: Evidence) -> str:
    """Item 10."""
    return _NO_SELECTION if e.selection is None else CRITERIA.format(units=e.units)


def number_of_models(e: Evidence) -> str:
    """Item 11."""
    if e.selection is None:
        return _NO_SELECTION
    experts = sorted(set(e.candidates["experts"]))
    one = "with" if 1 in experts else "WITHOUT"
    return f"{len(e.candidates)} models with {', '.join(map(str, experts))} experts, {one} the one-expert solution."


def class_sizes(e: Evidence) -> str:
    """Item 12."""
    sizes = np.bincount(e.results.em.responsibilities.argmax(axis=1), minlength=e.n_experts)
    shares = e.results.em.responsibilities.mean(axis=0)
    own = ", ".join(f"expert {k + 1}: {n} ({s:.1%})" for k, (n, s) in enumerate(zip(sizes, shares, strict=True)))
    text = f"{own} (most probable expert, and mean posterior probability)"
    if e.selection is None:
        return f"In part: {text}; of this model only, as no selection= was given."
    return f"{text}; of the others in section Choice of the model."


def entropy(e: Evidence) -> str:
    """Item 13."""
    if e.n_experts == 1:
        return "One expert: there is no classification."
    return f"Relative entropy {e.results.entropy:.3f}; more in section Classification."


def final_trajectories(e: Evidence) -> str:
    """Item 14a."""
    return "Section Figures."


def all_trajectories(e: Evidence) -> str:
    """Item 14b."""
    return (
        _NO_SELECTION if e.selection is None else "Section Choice of the model, a figure per candidate that was fitted."
    )


def observed_by_class(e: Evidence) -> str:
    """Item 14c."""
    if e.results._observed(e.results._default_plot) is None:
        return "Not reported: this family has no observed courses to draw."
    return "Section Figures: observed courses split by the most probable expert, under the estimated trajectory."


def characteristics(e: Evidence) -> str:
    """Item 15."""
    return (
        "Section Estimates: estimates, standard errors and limits; section Classification: size of each expert and "
        "means and standard deviations of the columns used, by expert."
    )


def syntax(e: Evidence) -> str:
    """Item 16."""
    return "Section Software and code."


ITEMS: tuple[tuple[str, str, Callable[[Evidence], str]], ...] = (
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
