"""What a network cannot fit: formulas, responses, rows and covariances that are refused, each with its reason."""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe.arguments import checked_choice
from mixmoe.design.design import Design, offset_of
from mixmoe.design.formula import MoEFormula, RandomTerm, parse_formula
from mixmoe.design.frame import shown, view
from mixmoe.errors import ArgumentError, DesignError, FormulaError
from mixmoe.neural.estimators.last_layer import is_exact
from mixmoe.neural.estimators.trained import Problem
from mixmoe.neural.network import Network
from mixmoe.neural.personal_layers import Personal
from mixmoe.neural.response_law import COUNTS, OF_NORMAL, Family, asked_family
from mixmoe.responses.distribution import (
    ETA_LIMIT,
    MOST_COUNTS,
    OFFSETS,
    Observed,
    check_maximum,
    check_varies,
    constant_within,
)
from mixmoe.responses.exponential import canonical_family

MAX_LEVELS = 50  # of categories; a transition matrix grows with their square
MAX_LABELS = 12  # different whole numbers as text that are taken for names of categories
LARGEST = 1e100  # number in the data, and one over the least difference: their squares and fourth powers are finite
COVS = ("diagonal", "tensor", "full")
FAMILIES = ("auto", "gaussian", "binary", "multiclass", "crf", "poisson", "negbinomial", "ordinal")


def checked_formula(formula: Any) -> MoEFormula:
    """A parsed formula that this family can fit.

    Raises
    ------
    FormulaError
        If it has sections of other families.
    """
    parsed = formula if isinstance(formula, MoEFormula) else parse_formula(formula)
    if parsed.vary is not None:
        raise FormulaError("NME has no section 'vary:'; leave it out, or use VCMoE, which has", parsed.text)
    for part in (*parsed.expert, *parsed.gate, *parsed.sigma):
        if part.kind != "free":
            raise FormulaError(f"NME has no {part.kind}(...); write the terms without it", parsed.text)
    return parsed


def chosen_family(family: Any, formula: MoEFormula, data: Any) -> Family:
    """The family asked for, or the one that the response suggests.

    A Gaussian response with a section ``sigma:`` is ``"heteroscedastic"``.

    Raises
    ------
    ArgumentError, FormulaError
        If there is no such family, or it has no dispersion that ``sigma:`` could be about.
    """
    known = canonical_family(family)
    checked_choice(known, "family", FAMILIES)
    found = suggested_family(known, formula, data)
    if found == "gaussian" and formula.sigma:
        return "heteroscedastic"
    if formula.sigma and found != "negbinomial":
        raise FormulaError(
            f"sigma: is about the residual standard deviation of family='gaussian', or the theta of 'negbinomial'; "
            f"family={found!r} has neither; leave the section out",
            formula.text,
        )
    return found


def suggested_family(family: str, formula: MoEFormula, data: Any) -> Family:
    """The family asked for, or the one that the response suggests."""
    if family != "auto":
        return family  # type: ignore[return-value]
    frame = view(data)
    if formula.random is not None and "transitions" in formula.random.design:
        return "crf"
    if formula.response not in frame:
        return "gaussian"
    values = frame.column(formula.response).dropna()
    refuse_numbers_as_text(values, formula.response)
    if pd.api.types.is_bool_dtype(values.dtype) or not pd.api.types.is_numeric_dtype(values.dtype):
        if formula.seq is not None:
            return "crf"
        return "binary" if values.nunique() == 2 else "multiclass"
    return "binary" if values.isin([0, 1]).all() and values.nunique() == 2 else "gaussian"


def refuse_numbers_as_text(values: pd.Series, name: str) -> None:
    """Refuse a response of texts that all read as numbers and are no labels of a few states.

    Raises
    ------
    DesignError
    """
    if isinstance(values.dtype, pd.CategoricalDtype) or pd.api.types.infer_dtype(values) != "string":
        return
    levels = pd.Series(values.unique())
    numbers = pd.to_numeric(levels, errors="coerce")
    if numbers.isna().any() or (len(levels) <= MAX_LABELS and (numbers == numbers.round()).all()):
        return
    raise DesignError(
        f"the response {name!r} holds numbers as text, such as {shown(levels.iloc[0])}; convert it, for example with "
        "pd.to_numeric, or say family='multiclass' or 'crf' if these are names of categories"
    )


def check_magnitudes(design: Design, family: Family) -> None:
    """Refuse numbers so large or so close together that their squares are beyond double precision.

    Raises
    ------
    DesignError
        Names the column.
    """
    columns = [(name, design.expert[:, k]) for k, name in enumerate(design.names.expert) if name != "Intercept"]
    if family in OF_NORMAL and design.response is not None:
        columns.insert(0, (design.names.response, design.response.astype(float)))
    for name, values in columns:
        largest, spread = float(np.abs(values).max()), float(np.ptp(values / 2.0)) * 2.0
        if largest > LARGEST or 0.0 < spread < 1.0 / LARGEST:
            what = f"reaches {largest:g}" if largest > LARGEST else f"differs by {spread:g} at most"
            raise DesignError(
                f"column {name!r} {what}, and squares of such numbers are beyond double precision; bring it into other "
                f"units, between {1.0 / LARGEST:g} and {LARGEST:g}"
            )


def check_response(design: Design, family: Family) -> None:
    """Refuse responses that the family cannot have."""
    levels = design.response_levels or ()
    if family in OF_NORMAL:
        check_varies(str(design.names.response), np.asarray(design.response, dtype=float))
    if family in COUNTS:
        check_counts(design, family)
    if "offset" in design.aux:
        check_offset(design, family)
    if "weights" in design.aux and family in ("crf", *OF_NORMAL):
        why = "whose sequences have one probability" if family == "crf" else "whose variance they would change"
        mend = "leave out sequences that shall not count" if family == "crf" else "use MEMoE, where they do, or sigma:"
        raise ArgumentError(
            f"weights= multiply log-densities of rows of categories or counts, not of responses {why}; {mend}"
        )
    if family == "binary" and len(levels) != 2:
        raise DesignError(f"the response {design.names.response!r} has {len(levels)} levels; family='binary' needs 2")
    if len(levels) > MAX_LEVELS:
        raise DesignError(
            f"the response {design.names.response!r} has {len(levels)} levels; family={family!r} takes at most "
            f"{MAX_LEVELS}; a response of numbers is for family='gaussian'"
        )
    if family == "crf" and design.sequence is None:
        raise FormulaError("a CRF needs the order of the rows within a person; add | seq: column", design.formula.text)


def check_counts(design: Design, family: Family, *, vary: bool = True) -> None:
    """Refuse responses that are no counts, or, if they must vary, that are all zero.

    Raises
    ------
    DesignError
        Names the first row.
    """
    y, name = np.asarray(design.response, dtype=float), str(design.names.response)
    wrong = (y != np.floor(y)) | (y < 0) | (y > MOST_COUNTS)
    if wrong.any():
        k = earliest(design, wrong)
        raise DesignError(
            f"the response {name!r} is {y[k]:g} in row {shown(design.rows[k])}; family={family!r} needs counts 0, 1, 2 "
            f"..., at most {MOST_COUNTS:g}; correct it, or choose another family"
        )
    if vary:
        observed = Observed(name, y, np.ones(design.n), offset_of(design))
        check_maximum(family, observed, np.ones((design.n, 1)))


def check_offset(design: Design, family: Family) -> None:
    """Refuse offsets that the likelihood has no place for, or that are far off.

    Raises
    ------
    ArgumentError, DesignError
        Names the first row.
    """
    if family not in (*COUNTS, "binary", "ordinal"):
        what = "subtract it from the response" if family in OF_NORMAL else "make it an input"
        raise ArgumentError(
            f"offset= is for one linear predictor of counts, of two or of ordered categories, got "
            f"family={asked_family(family)!r}; "
            f"{what}"
        )
    far = np.abs(offset_of(design)) > ETA_LIMIT
    if far.any():
        k = earliest(design, far)
        raise DesignError(
            f"the offset is {offset_of(design)[k]:g} in row {shown(design.rows[k])}; it must lie {OFFSETS}; correct it"
        )


def earliest(design: Design, wrong: NDArray[np.bool_]) -> int:
    """Row of the design that comes first in the data among those that are wrong."""
    places = np.flatnonzero(wrong)
    return int(places[design.position[places].argmin()])


def refuse_gate(formula: MoEFormula, family: Family) -> None:
    """Refuse covariates of transitions where there are no transitions.

    Raises
    ------
    FormulaError
    """
    if family != "crf" and not (len(formula.gate) == 1 and formula.gate[0].text == "1"):
        raise FormulaError(
            "NME has a section 'gate:' for sequences of states only, where it names what transitions go with; leave it "
            "out, or use MEMoE, which has",
            formula.text,
        )


def check_gate(design: Design, family: Family) -> None:
    """Refuse covariates of transitions in the place of the scores that these have of their own.

    Raises
    ------
    FormulaError
    """
    if family == "crf" and "Intercept" not in design.names.gate:
        raise FormulaError(
            "transitions have scores of their own, so that gate: keeps its intercept; take out 0", design.formula.text
        )


def checked_moves(given: Any, design: Design, family: Family) -> tuple[tuple[int, int, float], ...]:
    """Transitions whose score is given, by the codes of their states; minus infinity for those that there are not.

    Parameters
    ----------
    given : mapping or None
        Of states from which to mappings of states to which: a number, or None where there is no such transition.

    Raises
    ------
    ArgumentError
    """
    if given is None:
        return ()
    form = "write {'low': {'high': None}} for a transition that there is not, and a number for a score that is given"
    if family != "crf":
        raise ArgumentError(f"transitions={shown(given)} are between the states of a CRF, not for family={family!r}")
    if not isinstance(given, Mapping) or not all(isinstance(to, Mapping) for to in given.values()):
        raise ArgumentError(f"transitions must be a mapping of mappings, got {shown(given)}; {form}")
    states, found = [str(level) for level in design.response_levels or ()], []
    for a, b, score in ((a, b, score) for a, to in given.items() for b, score in to.items()):
        for state in (a, b):
            if str(state) not in states:
                raise ArgumentError(
                    f"transitions= names {shown(state)}, which is no state; there are {', '.join(states)}"
                )
        real = isinstance(score, numbers.Real) and not isinstance(score, bool)
        if score is not None and not (real and math.isfinite(score)):
            raise ArgumentError(f"the score of the transition from {a!r} to {b!r} is {shown(score)}; {form}")
        found.append((states.index(str(a)), states.index(str(b)), -math.inf if score is None else float(score)))
    if len(found) >= len(states) ** 2:
        raise ArgumentError(f"transitions= leaves no score to estimate of {len(states)} states; leave some pairs out")
    return tuple(found)


def check_moves(design: Design, network: Network) -> None:
    """Refuse sequences that make a transition which there is not; over states that are missing any way may lead.

    Raises
    ------
    DesignError
        Names the first such row.
    """
    if design.sequence is None or design.response is None or not any(np.isinf(score) for *_, score in network.moves):
        return
    allowed = np.ones((network.n_out, network.n_out), dtype=bool)
    for a, b, score in network.moves:
        allowed[a, b] = np.isfinite(score)
    codes, levels, reached = np.asarray(design.response), design.response_levels or (), allowed[0]
    for row, (sequence, code) in enumerate(zip(design.sequence, codes, strict=True)):
        first = row == 0 or sequence != design.sequence[row - 1]
        reached = np.ones(len(allowed), dtype=bool) if first else allowed[reached].any(axis=0)
        if code >= 0:
            if not reached[code]:
                before = codes[row - 1]
                come = f"from {levels[before]!r} " if before >= 0 else ""
                raise DesignError(
                    f"{design.names.group or 'row'} {shown(design.labels[design.codes[row]])} comes {come}to "
                    f"{levels[code]!r}, which transitions= rules out; leave that pair out of transitions=, or correct "
                    "the states"
                )
            reached = np.arange(len(allowed)) == code


def check_persons(design: Design, personal: Personal) -> None:
    """Refuse person effects where there is one person, whom nothing can be compared with."""
    if personal.q and design.n_units < 2:
        raise DesignError(
            f"the column {design.names.group!r} has one person, {shown(design.labels[0])}, so that nothing tells how "
            "persons differ; give the rows of several, or write re: (0 | ...) for a network without person effects"
        )


def check_within(design: Design, family: Family, network: Network, personal: Personal) -> None:
    """Refuse numbers that an intercept of each person reproduces.

    Raises
    ------
    DesignError
    """
    last_bias = f"layer{network.depth}.bias"
    if family not in OF_NORMAL or network.module is not None or last_bias not in {t.name for t in personal.tensors}:
        return
    y = np.asarray(design.response, dtype=float)
    if (y == y[design.starts][design.codes]).all():
        raise constant_within(str(design.names.response))


def check_rows(design: Design, personal: Personal) -> None:
    """Refuse data in which no person has a second row."""
    if personal.q and design.counts.max() == 1:
        raise DesignError(
            f"each of the {design.n_units} persons has one row, which cannot tell her effects from noise; give persons "
            "with several rows, or fit the generic network with re: (0 | person)"
        )


def checked_cov(cov: str | int | None, term: RandomTerm | None, problem: Problem, several: bool) -> str | int:
    """Covariance of the effects of one grouping: the one asked for, or full where it can be, else diagonal.

    Parameters
    ----------
    cov : str, int or None
    term : RandomTerm or None
        Of the grouping in ``re:``.
    problem : Problem
        With what is personal in that grouping.
    several : bool
        Whether there are further groupings.

    Raises
    ------
    ArgumentError
        If the likelihood, or the bars in ``re:``, have no such covariance.
    """
    if several and cov not in (None, *COVS):
        raise ArgumentError(
            f"cov must be 'diagonal', 'tensor' or 'full' with several groupings, got {cov!r}; a double bar makes "
            "the effects of one of them uncorrelated"
        )
    if term is not None and not term.correlated:
        if cov not in (None, "diagonal", "tensor"):
            raise ArgumentError(
                f"cov={cov!r} has correlated effects, but the double bar in re: says that they are uncorrelated; "
                "leave cov= out or write a single bar"
            )
        return "diagonal" if cov is None else cov
    exact = is_exact(problem) and not problem.published
    if cov is None:
        return "full" if exact else "diagonal"
    if cov in COVS and (cov != "full" or exact):
        return cov
    if isinstance(cov, int) and not isinstance(cov, bool) and 1 <= cov <= problem.personal.q:
        return cov
    raise ArgumentError(
        f"cov must be 'diagonal', 'tensor', a rank from 1 to {problem.personal.q}, or 'full' with effects on the last "
        f"layer, a Gaussian response and estimator='laplace'; got {cov!r}"
    )
