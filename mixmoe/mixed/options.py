"""What users pass to a MEMoE, checked.

The response distribution and its arguments, parameters to start from, clusters.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.arguments import checked_choice, checked_count
from mixmoe.design.beside import check_beside
from mixmoe.design.checks import level_labels, level_scores
from mixmoe.design.complete_rows import check_weights
from mixmoe.design.design import Design, DesignNames, offset_of, weights_of
from mixmoe.design.formula import MoEFormula, parse_formula, refuse_several
from mixmoe.design.frame import shown
from mixmoe.errors import ArgumentError, DesignError, FormulaError
from mixmoe.mixed.error_structure import ErrorOptions
from mixmoe.mixed.likelihood.columns import columns_of
from mixmoe.mixed.likelihood.further_parameters import dispersion
from mixmoe.mixed.likelihood.glmm import MOST_NODES, GlmmExperts, build_nodes
from mixmoe.mixed.likelihood.modes import FamilyResponse, Response, Rows
from mixmoe.mixed.likelihood.patterns import independent_experts
from mixmoe.mixed.likelihood.protocol import Experts
from mixmoe.mixed.parameters import (
    Coordinates,
    CovRE,
    Residual,
    Sigma,
    Structure,
)
from mixmoe.mixed.smooth.functions import with_functions
from mixmoe.mixed.thresholds import OrdinalResponse, Thresholds, step_extra
from mixmoe.mixed.zero_inflation import ZeroInflatedResponse, certain_zeros
from mixmoe.numerics.linalg import apply_inverse, orthogonal_columns
from mixmoe.responses.distribution import (
    ETA_LIMIT,
    MOST_COUNTS,
    OFFSETS,
    Observed,
    check_maximum,
    constant_within,
)
from mixmoe.responses.exponential import family_named, name_of_family
from mixmoe.responses.zero_inflated import ZeroInflated


class HasUnits(Protocol):
    """What a MEMoE asks of its design where rows may lie in partitions: all but the rows."""

    @property
    def formula(self) -> MoEFormula:
        """The formula."""

    @property
    def names(self) -> DesignNames:
        """Names of the columns."""

    @property
    def response_levels(self) -> tuple[Any, ...] | None:
        """Levels of an ordinal response."""

    @property
    def n(self) -> int:
        """Rows that count."""

    @property
    def n_units(self) -> int:
        """Subjects."""

    @property
    def gate(self) -> Array:
        """Gate columns of each subject, shape (N, m)."""

    @property
    def common(self) -> NDArray[np.bool_]:
        """Which expert columns have coefficients that the experts share, shape (p,)."""


Method = Literal["ml", "reml"]
_NO_NOISE = 1e-10  # residual deviation beside that of the response
FAMILIES = (
    "gaussian",
    "binomial",
    "poisson",
    "negbinomial",
    "zipoisson",
    "zinegbinomial",
    "gamma",
    "beta",
    "ordinal",
)
_DISPERSIONS: Mapping[str, str] = {
    "negbinomial": "theta",
    "zinegbinomial": "theta",
    "gamma": "shape",
    "beta": "phi",
}


@dataclass(frozen=True, slots=True)
class ResponseModel:
    """Distribution of the responses given expert and random effects.

    Attributes
    ----------
    name : str
        Of the family.
    response : Response or None
        None for Gaussian responses, whose likelihood is known in closed form.
    residual : {"expert", "common"}
        Whether each expert has its own residual deviation or dispersion.
    n_quad : int
        Quadrature points per random effect; 1 is the Laplace approximation.
    thresholds : Thresholds or None
        Of ordinal responses, once their levels are known.
    """

    name: str
    response: Response | None
    residual: Residual
    n_quad: int
    thresholds: Thresholds | None = None

    @property
    def gaussian(self) -> bool:
        """Whether responses are Gaussian."""
        return self.response is None

    @property
    def sigma(self) -> Sigma:
        """What the structure says of the residual standard deviation."""
        return self.residual if self.gaussian else "none"


def build_response_model(
    family: str, residual: Residual, n_quad: int, columns: Mapping[str, str | None]
) -> ResponseModel:
    """The response distribution that the arguments of `MEMoE` describe; `with_levels` adds what data alone can tell.

    Parameters
    ----------
    family : str
    residual : {"expert", "common"}
    n_quad : int
    columns : mapping of str to str or None
        ``"trials"``, ``"offset"``, ``"weights"``.

    Raises
    ------
    ArgumentError
        If the family is unknown or an argument does not go with it.
    """
    known = name_of_family(family, FAMILIES)
    checked_count(n_quad, "n_quad")
    if n_quad > MOST_NODES:
        raise ArgumentError(f"n_quad must be at most {MOST_NODES}, got {n_quad}; 10 to 20 points are enough")
    if columns["trials"] is not None and known != "binomial":
        raise ArgumentError(
            f"trials={columns['trials']!r} is for family='binomial', got family={family!r}; leave it out"
        )
    if known == "gaussian":
        if n_quad != 1:
            raise ArgumentError(
                f"n_quad={n_quad} is not for family='gaussian', whose likelihood is exact; leave it out"
            )
        return ResponseModel(known, None, residual, 1)
    if known == "ordinal":
        return ResponseModel(known, OrdinalResponse(np.zeros(0)), residual, n_quad)
    own, response = residual == "expert", family_named(known, FAMILIES)
    extras = (dispersion(_DISPERSIONS[known], own),) if known in _DISPERSIONS else ()
    if isinstance(response, ZeroInflated):
        inflated = ZeroInflatedResponse(response, (*extras, certain_zeros(own)))
        return ResponseModel(known, inflated, residual, n_quad)
    return ResponseModel(known, FamilyResponse(response, extras), residual, n_quad)


def with_levels(model: ResponseModel, design: HasUnits, response: Array) -> ResponseModel:
    """The model with thresholds between the levels of an ordinal response; others as they are.

    Parameters
    ----------
    model : ResponseModel
    design : Design
        Whose columns and levels they are.
    response : ndarray, shape (n,)
        From whose frequencies ascents to the thresholds start.

    Raises
    ------
    DesignError
        If the expert part has no intercept whose place the thresholds take.
    """
    if model.name != "ordinal":
        return model
    if "Intercept" not in design.names.expert:
        raise DesignError(
            f"the expert part of {design.formula.text!r} leaves out the intercept, whose place the thresholds of "
            "family='ordinal' take; remove the 0 or -1 from it"
        )
    levels = design.response_levels or ()
    scores, names, own = level_scores(levels), level_labels(levels), model.residual == "expert"
    labels = tuple(f"{low}|{high}" for low, high in pairwise(names))
    # A sample of the rows, which is all that a file has of partitioned data, may lack a level.
    frequencies = np.array([max(1.0, float((response == score).sum())) for score in scores])
    extras = step_extra(frequencies, labels, own)
    at = design.names.expert.index("Intercept")
    thresholds = Thresholds(at, labels, not design.common[at], own)
    return replace(model, response=OrdinalResponse(scores, names, extras), thresholds=thresholds)


def check_no_errors(model: ResponseModel, formula: MoEFormula, options: ErrorOptions) -> None:
    """Refuse error structures for responses without an error term.

    Raises
    ------
    ArgumentError
        If ``errors=``, ``errors_dist=`` or ``sigma:`` is given.
    """
    if model.gaussian or (options.plain and not formula.sigma):
        return
    what = "the section 'sigma:'" if formula.sigma else f"errors={options.kind!r}, errors_dist={options.dist!r}"
    raise ArgumentError(
        f"{what} is for family='gaussian', got family={model.name!r}, which has no error term; leave it out"
    )


def check_method(method: str, n_experts: int, family: str, errors_dist: str | None) -> None:
    """Refuse REML where there are no error contrasts that are free of the fixed effects.

    Raises
    ------
    ArgumentError
    """
    checked_choice(method, "method", get_args(Method))
    if method == "ml":
        return
    if n_experts > 1:
        why = (
            f"is for experts=1, got experts={n_experts}: in a mixture no contrasts of the responses are free of the "
            "fixed effects, since memberships depend on them"
        )
    elif family != "gaussian":
        why = f"is for family='gaussian', got family={family!r}, where no contrasts are free of the fixed effects"
    elif errors_dist == "t":
        why = (
            "is for normal errors, got errors_dist='t': contrasts of several subjects, each with a scale factor of her "
            "own, have no density in closed form"
        )
    else:
        return
    raise ArgumentError(f"method='reml' {why}; use method='ml'")


def check_random(design: Design, model: ResponseModel) -> None:
    """Refuse random effects that these responses cannot tell from their own variation, or too many for quadrature.

    Raises
    ------
    DesignError
        If each subject has one row of a kind without room for random effects.
    ArgumentError
        If quadrature is asked for more than two random effects.
    """
    q = design.random.shape[1]
    if model.n_quad > 1 and q > 2:
        raise ArgumentError(f"n_quad={model.n_quad} is for at most 2 random effects, re: has {q}; use n_quad=1")
    # A binary response has no variance of its own: with one row each, an effect of a subject is not to be told from it.
    latent = model.name == "ordinal" or (model.name == "binomial" and (trials_of(design) == 1).all())
    if q and design.n == design.n_units and (model.gaussian or latent):
        raise one_row_each(design)


def one_row_each(design: HasUnits) -> DesignError:
    """The error for random effects of subjects that have one row each."""
    return DesignError(
        f"each of the {design.n} subjects has one row, where random effects cannot be told from residuals; "
        f"write re: (0 | {design.names.group})"
    )


def trials_of(design: Design) -> Array:
    """Number of trials of each row, shape (n,)."""
    return np.asarray(design.aux.get("trials", np.ones(design.n)), dtype=float)


def standardised(design: Design, model: ResponseModel) -> Array:
    """Responses at one trial and an offset of zero, shape (n,), as figures show them."""
    y = np.asarray(design.response, dtype=float)
    if model.name == "binomial":
        return y / trials_of(design)
    if model.gaussian:
        return y - offset_of(design)
    return y if model.name in ("beta", "ordinal") else y * np.exp(-offset_of(design))


def standardised_name(design: Design, settings: Mapping[str, Any]) -> str:
    """What `standardised` makes of the response, by the names of its columns."""
    name, trials, offset = design.names.response, settings["trials"], settings["offset"]
    if settings["family"] == "binomial":
        return f"probability of {name} = 1" if trials is None else f"{name} / {trials}"
    if offset is not None and settings["family"] == "gaussian":
        return f"{name} - {offset}"
    return name if offset is None or settings["family"] in ("beta", "ordinal") else f"{name} / exp({offset})"


def check_columns(design: Design, settings: Mapping[str, Any], response: bool = False) -> None:
    """Refuse new data without the columns of offset or trials, with their `response` also that of weights.

    Raises
    ------
    DesignError
        If one is missing, or a number of trials is impossible.
    """
    check_beside(design, settings, ("offset", "trials", *(["weights"] if response else [])))
    _check_trials(design)


def check_weights_ahead(design: Design, column: str, required: bool) -> None:
    """Refuse rows to predict whose errors have no variance.

    Raises
    ------
    DesignError
        If `required` weights are not there, or one is zero.
    """
    if "weights" not in design.aux:
        if not required:
            return
        raise DesignError(
            f"the new data lack the column {column!r} (weights), on which the variance of their errors depends; add it"
        )
    check_weights(weights_of(design), design.rows, np.ones(design.n, dtype=bool), ahead=True)


def check_response(design: Design, model: ResponseModel) -> None:
    """Refuse responses, trials and offsets that the family does not allow.

    Raises
    ------
    DesignError
        Names the first row.
    """
    if model.gaussian:
        return
    y, trials, name = np.asarray(design.response, dtype=float), trials_of(design), model.name
    what = f"the response {design.names.response!r}"
    if name == "gamma":
        _refuse(design, y <= 0, what, y, "above zero", name)
    elif name == "beta":
        _refuse(design, (y <= 0) | (y >= 1), what, y, "strictly between 0 and 1", name)
    elif name != "ordinal":
        _refuse(design, (y != np.floor(y)) | (y < 0), what, y, "a count 0, 1, 2 ...", name)
        _refuse(design, y > MOST_COUNTS, what, y, f"at most {MOST_COUNTS:g}", name)
    if name == "binomial":
        _check_trials(design)
        more = "at most the number of trials" if "trials" in design.aux else "0 or 1; pass trials= for successes"
        _refuse(design, y > trials, what, y, more, name)
    offset = offset_of(design)
    _refuse(design, np.abs(offset) > ETA_LIMIT, "the offset", offset, OFFSETS, name)


def _check_trials(design: Design) -> None:
    trials = trials_of(design)
    wrong = (trials != np.floor(trials)) | (trials < 1)
    _refuse(design, wrong, "the number of trials", trials, "a whole number of at least 1", "binomial")
    _refuse(design, trials > MOST_COUNTS, "the number of trials", trials, f"at most {MOST_COUNTS:g}", "binomial")


def _refuse(design: Design, bad: NDArray[np.bool_], what: str, values: Array, allowed: str, family: str) -> None:
    if bad.any():
        i = int(bad.argmax())
        raise DesignError(
            f"{what} is {values[i]:g} in row {shown(design.rows[i])}; for family={family!r} it must be {allowed}; "
            "correct it or choose another family"
        )


def without_noise(scale: float) -> DesignError:
    """The error for a response that the expert columns reproduce, all but this residual standard deviation."""
    return DesignError(
        f"the expert columns reproduce the response exactly (residual standard deviation {scale:.3g}); "
        "a mixture needs a response with noise: remove covariates that are functions of it"
    )


def coordinates_of(design: Design, s: Structure, model: ResponseModel) -> Coordinates:
    """Working coordinates: those of the response too if it is Gaussian, else of the columns alone.

    Raises
    ------
    DesignError
        If the expert columns reproduce a Gaussian response exactly.
    """
    X, Z, q, m = design.expert, design.random, design.random.shape[1], design.gate.shape[1]
    weights = weights_of(design) if model.gaussian else np.ones(len(X))
    weight = float(weights.mean())
    root = np.sqrt(weights / weight)
    X, Z = root[:, None] * X, root[:, None] * Z
    expert, gate = orthogonal_columns(X, ~s.common), orthogonal_columns(design.gate, np.ones(m, dtype=bool))
    diagonal = np.diag(np.sqrt((Z**2).mean(axis=0)))
    random = orthogonal_columns(Z, np.ones(q, dtype=bool)) if s.correlated else diagonal
    if not model.gaussian:
        return Coordinates(np.zeros(X.shape[1]), 1.0, expert, random, gate)
    y, Q = root * (np.asarray(design.response) - offset_of(design)), apply_inverse(X, expert)
    in_working = Q.T @ y / y.size
    scale = float(np.sqrt(np.mean((y - Q @ in_working) ** 2)))
    # Relative to the response: data in grams or tonnes are refused alike.
    if scale <= _NO_NOISE * np.sqrt(np.mean(y**2)):
        raise without_noise(scale)
    return Coordinates(np.linalg.solve(expert, in_working), scale, expert, random, gate, weight=weight)


def experts_of(design: Design, model: ResponseModel, c: Coordinates) -> Experts:
    """The likelihood of the responses of a design, in working coordinates."""
    X, Z = columns_of(design.expert, c.expert), apply_inverse(design.random, c.random)
    y = np.asarray(design.response, dtype=float)
    if model.response is None:
        # Around the least-squares centre and in units of its residual: moments of raw values would lose digits.
        residual = (y - offset_of(design) - design.expert @ c.center) / c.scale
        return independent_experts(residual, X, Z, design.starts, weights_of(design) / c.weight)
    weights = design.aux.get("weights")
    rows = Rows(
        model.response.outcome(y, trials_of(design)),
        offset_of(design),
        None if weights is None else np.asarray(weights, dtype=float),
        X,
        np.ascontiguousarray(Z.T),
        design.starts,
        design.counts,
    )
    return GlmmExperts(rows, model.response, build_nodes(model.n_quad, Z.shape[1]))


def check_identified(design: Design, n_experts: int, response: ResponseModel) -> None:
    """Raise unless data of this kind can tell the parameters apart.

    Raises
    ------
    ArgumentError
        For more experts than subjects.
    DesignError
        For an expert part without columns, or rows that cannot tell random effects from residuals.
    """
    check_numbers(design, n_experts)
    check_random(design, response)
    check_response(design, response)
    y = np.asarray(design.response, dtype=float)
    observed = Observed(design.names.response or "", y, trials_of(design), offset_of(design))
    check_maximum(response.name, observed, design.expert)
    if not response.gaussian:
        return
    y = y - offset_of(design)
    if "Intercept" in design.names.random and (y == y[design.starts][design.codes]).all():
        raise constant_within(design.names.response)
    if "Intercept" in design.names.random and _exact_within(design):
        raise exact_within(design.names.response)


def check_numbers(design: HasUnits, n_experts: int) -> None:
    """Refuse more experts than subjects, and an expert part without columns; errors as those of `check_identified`."""
    if n_experts > design.n_units:
        raise ArgumentError(
            f"experts={n_experts} is more than the {design.n_units} subjects in the data; "
            "use at most one expert per subject, in practice far fewer"
        )
    if not design.names.expert:
        raise DesignError(
            f"the expert part of {design.formula.text!r} has no columns; write at least 1, for an intercept"
        )


def exact_within(name: str) -> DesignError:
    """The error for a response that expert columns and an intercept of each subject reproduce."""
    return DesignError(
        f"within subjects the expert columns reproduce the response {name!r} exactly, so that "
        "residuals are zero beside random intercepts; a mixture needs a response with noise: remove covariates "
        "that are functions of it, or keep one row per subject and leave the random effects out"
    )


def _exact_within(design: Design) -> bool:
    """Whether least squares around the means of the subjects leaves nothing of the response."""
    y, size = np.asarray(design.response, dtype=float) - offset_of(design), np.bincount(design.codes)

    def centred(column: Array) -> Array:
        out: Array = column - (np.bincount(design.codes, column) / size)[design.codes]
        return out

    within, X = centred(y), np.column_stack([centred(x) for x in design.expert.T])
    left = within - X @ np.linalg.lstsq(X, within, rcond=None)[0]
    return bool(np.sqrt(np.mean(left**2)) <= _NO_NOISE * np.sqrt(np.mean((y - y.mean()) ** 2)))


def build_structure(design: HasUnits, n_experts: int, cov_re: CovRE, response: ResponseModel) -> Structure:
    """What the experts of a design share."""
    random = design.formula.random
    return Structure(
        n_experts=n_experts,
        n_gate=design.gate.shape[1],
        common=design.common,
        n_random=len(design.names.random),
        correlated=random is not None and random.correlated,
        cov_re=cov_re,
        residual=response.sigma,
        extras=() if response.response is None else response.response.extras,
        thresholds=response.thresholds,
    )


def checked_formula(formula: Any, smoother: str | None = None, family: str = "gaussian") -> MoEFormula:
    """A parsed formula that this family can fit, coefficients that vary along an index as penalised functions.

    Raises
    ------
    FormulaError
        If it has sections or markers of other families.
    ArgumentError
        If a smoother is asked for where nothing varies.
    """
    parsed = formula if isinstance(formula, MoEFormula) else parse_formula(formula)
    refuse_several(parsed)
    if parsed.seq is not None:
        raise FormulaError("MEMoE has no section 'seq:'; leave it out, or use NME, which has", parsed.text)
    if smoother not in (None, "spline"):
        raise ArgumentError(f"smoother must be 'spline' or None, got {smoother!r}")
    if smoother is not None and parsed.vary is None:
        raise ArgumentError("smoother='spline' is for formulas with a section 'vary:', and there is none; leave it out")
    if parsed.vary is not None:
        if parsed.random is None and smoother is None:
            raise FormulaError(
                "MEMoE has a section 'vary:' beside 're:' or with smoother='spline'; use VCMoE, whose rows are "
                "independent, or ask for the smoother",
                parsed.text,
            )
        if family == "ordinal":
            raise ArgumentError(
                "vary: lets the intercept vary, whose place the thresholds of family='ordinal' take; write s(time) and "
                "s(time, by=x) instead"
            )
        return with_functions(parsed)
    if any(part.kind == "const" for part in (*parsed.expert, *parsed.gate)):
        raise FormulaError(
            "const(...) marks what stays constant along the index of vary:, and there is no vary:; "
            "write common(...) for coefficients that the experts share",
            parsed.text,
            parsed.text.find("const"),
            len("const"),
        )
    return parsed
