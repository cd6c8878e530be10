"""Outcomes by expert and experts by covariates, as records that print themselves."""

import re
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy.stats import norm

from mixmoe._typing import Array
from mixmoe.design.design import Design
from mixmoe.errors import AssumptionWarning, BoundaryWarning, FormulaError, warn
from mixmoe.inference.cells import columns_of, described, infinite_words
from mixmoe.inference.uncertainty import (
    delta_cov,
    probability_errors,
    probability_limits,
    two_sided,
    without_parameters,
)
from mixmoe.inference.wald import InvalidTest, WaldTest, parse_hypotheses, wald_test
from mixmoe.mixture.estimate import Flag, Parameter, ParamLayout, Remark
from mixmoe.mixture.gate import MOVED, units_without
from mixmoe.numerics.linalg import jacobian
from mixmoe.output.names import NO_NAMES, Names
from mixmoe.output.records import Cell, Table, format_cell
from mixmoe.output.summary import Printed, tidy
from mixmoe.three_step.estimates import (
    Assignment,
    Categorical,
    Membership,
    Method,
    Normal,
    Part,
    Skewness,
    Solution,
    skewness,
    three_step,
)
from mixmoe.three_step.outcomes import EXPERT, Outcomes, build_outcomes, covariate_columns, parse_step_three

DESCRIPTIONS = {
    "bch": "Bolck, Croon & Hagenaars 2004, as generalised by Vermunt 2010 and Bakk, Tekle & Vermunt 2013",
    "ml": "maximum likelihood, Vermunt 2010 and Asparouhov & Muthen 2014",
    "naive": "most probable expert taken as known, NOT corrected for classification error",
}
_CERTAIN = 1e-6  # a probability closer to zero or one has no delta method
ANY_LEVEL = "any level"
COV_TYPE = "three-step"


@dataclass(frozen=True, slots=True)
class Estimates:
    """Named estimates with their covariance.

    Attributes
    ----------
    layout : ParamLayout
    values : ndarray, shape (P,)
    cov : ndarray, shape (P, P)
        NaN for those that have no standard error.
    """

    layout: ParamLayout
    values: Array
    cov: Array

    @property
    def std_errors(self) -> Array:
        """Standard errors, shape (P,)."""
        return np.sqrt(np.maximum(np.diag(self.cov), 0.0))  # rounding may put a variance of zero below it

    def test(self, matrix: Array) -> WaldTest | InvalidTest:
        """Joint Wald test that linear functions of the estimates are zero."""
        blank = np.isnan(np.diag(self.cov)) & (matrix != 0).any(axis=0)
        if blank.any():
            names = ", ".join(name for name, missing in zip(self.layout.names, blank, strict=True) if missing)
            return InvalidTest(f"{names} has no standard error, as the notes say; test what else there is")
        asked = parse_hypotheses((matrix, np.zeros(len(matrix))), self.layout.names)
        return wald_test(asked, self.values, self.cov, self.layout, COV_TYPE)


@dataclass(frozen=True, slots=True, repr=False)
class ThreeStep(Printed):
    """What every analysis of the third step says of itself.

    Attributes
    ----------
    formula : str
    method : {"bch", "ml", "naive"}
    coefficients : Estimates
        Of the regression on, or of, the experts.
    n_used, n_missing, n_strangers : int
        Units in step 3; units of the fit without complete data; rows of units the fit does not know.
    flags : tuple of Flag
        What has no standard errors, and why: ``"separated_gate"`` of covariates, ``"separated"`` of an outcome.
    shown_names : Names
        Of the experts and of terms, as `named` and `labelled` gave them.
    """

    formula: str
    method: Method
    coefficients: Estimates
    n_used: int
    n_missing: int
    n_strangers: int
    flags: tuple[Flag, ...]
    shown_names: Names = field(default=NO_NAMES, kw_only=True)

    @property
    def title(self) -> str:
        """Heading above the tables."""
        return f"Three-step analysis of {self.formula}"

    @property
    def remarks(self) -> tuple[str, ...]:
        """Method, standard errors, counts and flags."""
        return (*self._about, *(flag.message for flag in self.flags))

    @property
    def printed_remarks(self) -> tuple[str, ...]:
        """The same without what can be done about flags."""
        return (*self._about, *(flag.note for flag in self.flags))

    @property
    def _about(self) -> tuple[str, ...]:
        errors = "over units, as if memberships were known" if self.method == "naive" else "over all three steps"
        strangers = f"; {self.n_strangers} rows of units that the fit does not know were left out"
        return (
            f"Method '{self.method}': {DESCRIPTIONS[self.method]}.",
            f"Standard errors: sandwich {errors}.",
            f"{self.n_used} units used, {self.n_missing} of the fit without complete data"
            f"{strangers if self.n_strangers else ''}.",
        )


@dataclass(frozen=True, slots=True, repr=False)
class Pairwise(Printed):
    """Differences of experts in an outcome.

    Attributes
    ----------
    differences : DataFrame
        One row per pair (and category), as `to_frame` returns it.
    alpha : float
        One minus the level of the limits.
    outcome : str
    shown_names : Names
        Of the experts, as `named` gave them.
    """

    differences: pd.DataFrame
    alpha: float
    outcome: str
    shown_names: Names = NO_NAMES

    def to_frame(self) -> pd.DataFrame:
        """One row per pair of experts and category.

        Returns
        -------
        DataFrame
            Columns: contrast (``"2 - 1"``), level (categorical outcomes), estimate, std_error, conf_low, conf_high,
            statistic (chi-squared), df, p_value. An outcome of three or more categories has one row per level and one
            with the joint test of all of them, ``"any level"``.
        """
        return self.differences.copy()

    def tables(self) -> tuple[Table, ...]:
        """One table with a row per difference."""
        pairs = self.to_frame()
        if names := self.shown_names.experts:
            apart = pairs["contrast"].str.split(" - ")
            pairs["contrast"] = [" - ".join(names[int(k) - 1] for k in two) for two in apart]
        labels = [column for column in ("contrast", "level") if column in pairs]
        rows = pairs[labels].itertuples(index=False)
        return (
            Table(
                key="pairwise",
                title="Differences of experts",
                columns=(
                    "Difference",
                    "Std. Err.",
                    f"[{self.alpha / 2:.3g}",
                    f"{1 - self.alpha / 2:.3g}]",
                    "chi2",
                    "df",
                    "p",
                ),
                index=tuple(f": {self.outcome} = ".join(map(str, row)) for row in rows),
                cells=_cells(pairs.drop(columns=labels)),
                formats=("num",) * 4 + (".3f", ".0f", "p"),
            ),
        )


@dataclass(frozen=True, slots=True, repr=False)
class Distal(ThreeStep):
    """An outcome by expert; `coefficients` are linear, logit or multinomial logit.

    Attributes
    ----------
    levels : tuple or None
        Categories of the outcome, of which all but the first are reported if there are two; None if it is numeric.
    margins : Estimates
        Mean, or probability of each category, under each expert, averaged over the covariates of all units in step 3.
    overall : WaldTest or InvalidTest
        That all experts are alike.
    skewness : Skewness or None
        Of a numeric outcome under each expert, where the method takes it as normal.
    """

    levels: tuple[Any, ...] | None
    margins: Estimates
    overall: WaldTest | InvalidTest
    skewness: Skewness | None

    @property
    def remarks(self) -> tuple[str, ...]:
        """Method, standard errors, counts, what speaks against the assumptions, and the overall test."""
        doubts = () if self._doubts is None else (self._doubts.message,)
        return (*super(Distal, self).remarks, *doubts, f"All experts alike: {_shown(self.overall)}")

    @property
    def printed_remarks(self) -> tuple[str, ...]:
        """The same without what can be done about flags and doubts."""
        doubts = () if self._doubts is None else (self._doubts.note,)
        return (*super(Distal, self).printed_remarks, *doubts, f"All experts alike: {_shown(self.overall)}")

    @property
    def _about(self) -> tuple[str, ...]:
        adjusted = ("Adjusted: averaged over the other predictors of all units used.",) if self.adjusted else ()
        return (*super(Distal, self)._about, *adjusted)

    @property
    def _doubts(self) -> Remark | None:
        """What speaks against normal outcomes."""
        return _normality_doubts(self.skewness) if self.skewness is not None and self.skewness.doubtful else None

    def to_frame(self, alpha: float = 0.05) -> pd.DataFrame:
        """Mean or probabilities by expert, with limits of level 1 - `alpha`.

        Returns
        -------
        DataFrame
            Columns: expert, level (categorical outcomes), estimate, std_error, conf_low, conf_high.
        """
        shown, values, errors = self._experts_levels(), self.margins.values, self.margins.std_errors
        half = norm.isf(alpha / 2) * errors
        low, high = values - half, values + half
        if self.levels is not None:
            limits = probability_limits(values, errors, alpha)
            low, high, errors = limits.lower, limits.upper, probability_errors(errors)
        columns: dict[str, Any] = {"expert": [k for k, _ in shown]}
        columns |= {} if self.levels is None else {"level": [level for _, level in shown]}
        return pd.DataFrame(columns | {"estimate": values, "std_error": errors, "conf_low": low, "conf_high": high})

    @property
    def adjusted(self) -> bool:
        """Whether the formula has predictors besides the experts, over which means and probabilities are averaged."""
        return re.sub(r"[\s01()+-]", "", self.formula.partition("~")[2]).removeprefix("C") != EXPERT

    def pairwise(self, alpha: float = 0.05) -> Pairwise:
        """Differences of experts, each with limits of level 1 - `alpha` and its Wald test."""
        shown = self._experts_levels()
        levels = list(dict.fromkeys(level for _, level in shown))
        rows: list[dict[str, Any]] = []
        for a, b in combinations(sorted({k for k, _ in shown}), 2):
            matrix = np.array(
                [[((k == b) * 1.0 - (k == a) * 1.0) * (level == own) for k, level in shown] for own in levels]
            )
            several = [ANY_LEVEL] if len(levels) > 1 else []
            parts = [matrix[[i]] for i in range(len(levels))] + [matrix[1:] for _ in several]  # one level is implied
            for level, part in zip([*levels, *several], parts, strict=True):
                place = {} if self.levels is None else {"level": level}
                rows.append({"contrast": f"{b} - {a}"} | place | self._difference(part, level in several, alpha))
        outcome = self.formula.partition("~")[0].strip()
        return Pairwise(pd.DataFrame(rows), alpha, outcome, shown_names=self.shown_names)

    def _difference(self, matrix: Array, joint: bool, alpha: float) -> dict[str, Any]:
        """Estimate, error, limits and test of a contrast of the margins; of a joint one the test alone."""
        value, error = np.nan, np.nan
        if not joint:
            value, variance = (matrix @ self.margins.values).item(), delta_cov(matrix, self.margins.cov).item()
            error = float(np.sqrt(np.maximum(variance, 0.0)))
        half = float(norm.isf(alpha / 2)) * error
        limits = {"conf_low": value - half, "conf_high": value + half}
        return {"estimate": value, "std_error": error} | limits | _test_columns(self.margins.test(matrix))

    def tables(self) -> tuple[Table, ...]:
        """Means or probabilities, differences, and the coefficients of the regression."""
        what = "means" if self.levels is None else "probabilities"
        margins, level = self.to_frame(), self.levels is not None
        is_ = f"{self.formula.partition('~')[0].strip()} = "
        return (
            Table(
                key="distal",
                title=f"{f'Adjusted {what}' if self.adjusted else what.capitalize()} by expert",
                columns=("Estimate", "Std. Err.", "[0.025", "0.975]"),
                index=tuple(f"expert {k}" + (f": {is_}{term}" if level else "") for k, term in self._experts_levels()),
                cells=_cells(margins[["estimate", "std_error", "conf_low", "conf_high"]]),
                formats=("num",) * 4,
            ),
            *self.pairwise().tables(),
            _coefficient_table(self.coefficients, "Regression coefficients", self.shown_names),
        )

    def _experts_levels(self) -> list[tuple[int, str]]:
        return [(int(p.expert or 1), p.term) for p in self.margins.layout.parameters]


@dataclass(frozen=True, slots=True, repr=False)
class Predictors(ThreeStep):
    """Covariates of membership; `coefficients` are log odds of each expert against expert 1, ``gate2.z1`` ...

    Attributes
    ----------
    terms : tuple of str
        Term of the formula that each coefficient belongs to; a factor has several columns.
    """

    terms: tuple[str, ...]

    def to_frame(self, alpha: float = 0.05) -> pd.DataFrame:
        """One row per coefficient, with the columns of `Results.to_frame`."""
        c = self.coefficients
        return tidy(c.layout, c.values, c.std_errors, alpha)

    def tests(self) -> pd.DataFrame:
        """Joint Wald test of each term over all experts, all columns of a factor together: statistic, df, p_value.

        Without infinite coefficients, which have no standard errors; NaN if a term has no others.
        """
        terms, finite = list(dict.fromkeys(self.terms)), np.isfinite(self.coefficients.std_errors)
        rows = []
        for term in terms:
            where = [i for i, owner in enumerate(self.terms) if owner == term]
            tested = [i for i in where if finite[i]] or where
            rows.append(_test_columns(self.coefficients.test(np.eye(len(finite))[tested])))
        return pd.DataFrame(rows, index=pd.Index(terms, name="term"))

    def tables(self) -> tuple[Table, ...]:
        """Coefficients, and joint tests over the experts."""
        tests = self.tests()
        return (
            _coefficient_table(self.coefficients, "Log odds against expert 1", self.shown_names),
            Table(
                key="tests",
                title="Joint tests over the experts",
                columns=("chi2", "df", "p"),
                index=tuple(tests.index),
                cells=_cells(tests),
                formats=(".3f", ".0f", "p"),
            ),
        )


def distal(design: Design, made: Assignment, text: str, data: Any, method: Method, kind: str) -> Distal:
    """An outcome by expert; `design` and `made` are of the fit, for the rest see `Assessment.distal`."""
    K = made.responsibilities.shape[1]
    formula = parse_step_three(text)
    outcomes = build_outcomes(design, K, formula, data, kind)
    if not any(EXPERT in name for name in outcomes.names):
        raise FormulaError(f"the right side of {text!r} must contain 'expert'; write 'outcome ~ expert'")
    whitening = _whitening(outcomes.X.reshape(-1, outcomes.X.shape[2]))
    scale = 1.0 if outcomes.levels is not None else max(float(np.std(outcomes.response)), 1e-300)
    X = outcomes.X @ whitening
    parts = _parts(outcomes, X, scale, method, K)
    found = three_step(parts, made, outcomes.units, method)
    size = X.shape[2] * (1 if outcomes.levels is None else len(outcomes.levels) - 1)
    at = slice(found.beta.size - parts[-1].size, found.beta.size - parts[-1].size + size)
    beta, cov, infinite = found.beta[at], found.cov[at, at], found.infinite[at]
    margins = _margins(parts[-1], X, scale, beta, cov, outcomes.levels)
    back = np.asarray(scale * np.kron(np.eye(size // X.shape[2]), whitening), dtype=float)
    coefficients = _estimates(_regression_layout(outcomes), back, beta, cov, infinite)
    flags = _about_outcome(margins, coefficients, outcomes.levels, found.infinite)
    for flag in flags:
        warn(flag.message, BoundaryWarning)
    # That all experts are alike: each against the first, in every level but one.
    n_levels = len(margins.layout.parameters) // K
    kept = np.eye(n_levels)[1:] if n_levels > 1 else np.eye(1)
    against = np.column_stack([-np.ones(K - 1), np.eye(K - 1)])
    return Distal(
        formula=formula.text,
        method=method,
        coefficients=coefficients,
        n_used=len(outcomes.units),
        n_missing=outcomes.n_missing,
        n_strangers=outcomes.n_strangers,
        flags=flags,
        levels=outcomes.levels,
        margins=margins,
        overall=margins.test(np.asarray(np.kron(against, kept))),
        skewness=_checked_normality(made, outcomes, X, scale, method),
    )


def _estimates(layout: ParamLayout, back: Array, beta: Array, cov: Array, infinite: Array) -> Estimates:
    """Coefficients for columns as the user wrote them; none that changes along a direction to infinity has an error."""
    moved = np.abs(back @ infinite) > MOVED * np.abs(back).max(axis=1, keepdims=True)
    return Estimates(
        layout, back @ beta, without_parameters(back @ cov @ back.T, list(np.flatnonzero(moved.any(axis=1))))
    )


def _checked_normality(made: Assignment, outcomes: Outcomes, X: Array, scale: float, method: Method) -> Skewness | None:
    """Skewness of a numeric outcome where the method takes it as normal, with a warning if it is doubtful."""
    if method != "ml" or outcomes.levels is not None:
        return None
    found = skewness(made, outcomes.units, outcomes.response.astype(float) / scale, X)
    if found.doubtful:
        warn(_normality_doubts(found).message, AssumptionWarning)
    return found


def _normality_doubts(found: Skewness) -> Remark:
    each = ", ".join(f"{value:.2f} in expert {k + 1}" for k, value in enumerate(found.values))
    return Remark(
        f"The outcome is not normal given the expert (skewness {each}; {_p_shown(found.pvalue)}), as method='ml' takes "
        "it to be, which may bias the means by more than the error of classification does",
        "use method='bch'.",
    )


def predictors(design: Design, made: Assignment, text: str, data: Any, method: Method) -> Predictors:
    """Covariates of membership; `design` and `made` are of the fit, for the rest see `Assessment.covariates`."""
    K = made.responsibilities.shape[1]
    columns = covariate_columns(design, text, data)
    whitening = _whitening(columns.Z)
    found = three_step((Membership(columns.Z @ whitening, K),), made, columns.units, method)
    back = np.asarray(np.kron(np.eye(K - 1), whitening), dtype=float)
    layout = ParamLayout(
        tuple(Parameter(f"gate{k}.{name}", "gate", name, k) for k in range(2, K + 1) for name in columns.z_names)
    )
    coefficients = _estimates(layout, back, found.beta, found.cov, found.infinite)
    flags = _about_covariates(columns, columns.Z @ whitening, found, coefficients, K)
    for flag in flags:
        warn(flag.message, BoundaryWarning)
    return Predictors(
        formula=f"expert ~{text.partition('~')[2]}",
        method=method,
        coefficients=coefficients,
        n_used=len(columns.units),
        n_missing=columns.n_missing,
        n_strangers=columns.n_strangers,
        flags=flags,
        terms=columns.z_terms * (K - 1),
    )


def _about_covariates(
    columns: Outcomes, Z: Array, found: Solution, coefficients: Estimates, n_experts: int
) -> tuple[Flag, ...]:
    """Which coefficients are infinite, and in which cells experts have no units."""
    if not found.infinite.shape[1]:
        return ()
    made, J = cast(Design, columns.z_design), n_experts - 1
    prior = np.exp(Membership(Z, n_experts).log_density(found.beta)).T
    none = units_without(prior, Z, found.infinite.reshape(J, Z.shape[1], -1))
    blank = np.isnan(coefficients.std_errors)
    names = columns_of(made, "expert", np.asarray(blank.reshape(J, -1).any(axis=0)))
    by_row = np.empty_like(none)
    by_row[:, np.argsort(made.position, kind="stable")] = none
    places = [f"expert {k + 1} {described(made, where, names)}" for k, where in enumerate(by_row) if where.any()]
    infinite = infinite_words([name for name, b in zip(coefficients.layout.names, blank, strict=True) if b])
    cause = f"The covariate{'s' if len(names) > 1 else ''} {', '.join(names)}" if names else "The assignments"
    return (
        Flag(
            "separated_gate",
            f"{cause} leave{'s' if len(names) == 1 else ''} no units to {'; to '.join(places)}: the probability there "
            f"is zero, and {infinite}; the printed values only say so and have no standard errors, and joint tests are "
            "without them.",
            "Merge levels or leave out covariates, or use fewer experts.",
        ),
    )


def _about_outcome(
    margins: Estimates, coefficients: Estimates, levels: tuple[Any, ...] | None, infinite: Array
) -> tuple[Flag, ...]:
    """Under which experts a category never, or always, occurs."""
    if not infinite.shape[1]:
        return ()
    blank = np.isnan(np.diag(margins.cov))
    if levels is None or not blank.any():
        return (
            Flag(
                "separated",
                "Predictors leave no units to an expert somewhere, or the outcome does not vary under one: what says "
                "so is infinite and has no standard error.",
                "Leave out predictors, merge levels, or use method='bch'.",
            ),
        )
    experts = sorted({p.expert for p, b in zip(margins.layout.parameters, blank, strict=True) if b and p.expert})
    return (
        Flag(
            "separated",
            f"A category of the outcome never, or always, occurs under expert {', '.join(map(str, experts))}: its "
            "coefficients are infinite, the printed values only say so, and neither they nor the probabilities there "
            "have standard errors or tests.",
            "For their limits take those of a proportion of none among the units of the expert, or merge categories.",
        ),
    )


def _whitening(columns: Array) -> Array:
    """R^-1 with orthonormal columns X R^-1 of unit mean square, so that tolerances mean the same for any units."""
    triangle = np.linalg.qr(columns, mode="r") / np.sqrt(len(columns))
    return np.asarray(np.linalg.solve(triangle, np.eye(len(triangle))))


def _parts(outcomes: Outcomes, X: Array, scale: float, method: Method, n_experts: int) -> tuple[Part, ...]:
    """The model of the outcome; maximum likelihood also needs one of the membership given the other predictors."""
    if outcomes.levels is None:
        outcome: Part = Normal(outcomes.response.astype(float) / scale, X, own_sigma=method == "ml")
    else:
        outcome = Categorical(outcomes.response.astype(np.intp), X, len(outcomes.levels))
    if method != "ml":
        return (outcome,)
    return (Membership(outcomes.Z @ _whitening(outcomes.Z), n_experts), outcome)


def _margins(part: Part, X: Array, scale: float, beta: Array, cov: Array, levels: tuple[Any, ...] | None) -> Estimates:
    """Means or probabilities under each expert, averaged over the units, by the delta method."""
    if levels is None:
        mean = scale * X.mean(axis=0)
        return Estimates(_margin_layout(len(mean), ("mean",)), mean @ beta, mean @ cov @ mean.T)
    shown = levels[1:] if len(levels) == 2 else levels

    def probabilities(b: Array) -> Array:
        all_levels = np.exp(part.log_probabilities(b)).mean(axis=0)  # type: ignore[attr-defined]
        return np.asarray(all_levels[:, len(levels) - len(shown) :].ravel())

    values = probabilities(beta)
    slopes = jacobian(probabilities, beta)
    layout = _margin_layout(X.shape[1], tuple(str(level) for level in shown))
    never, always = values < _CERTAIN, values > 1 - _CERTAIN
    cov = without_parameters(slopes @ cov @ slopes.T, list(np.flatnonzero(never | always)))
    return Estimates(layout, np.where(never, 0.0, np.where(always, 1.0, values)), cov)


def _margin_layout(n_experts: int, terms: tuple[str, ...]) -> ParamLayout:
    """Experts by levels."""
    return ParamLayout(
        tuple(Parameter(f"expert{k}.{term}", "expert", term, k) for k in range(1, n_experts + 1) for term in terms)
    )


def _regression_layout(outcomes: Outcomes) -> ParamLayout:
    if outcomes.levels is None or len(outcomes.levels) == 2:
        return ParamLayout(tuple(Parameter(name, "common", name) for name in outcomes.names))
    return ParamLayout(
        tuple(
            Parameter(f"{level}: {name}", "common", f"{level}: {name}")
            for level in outcomes.levels[1:]
            for name in outcomes.names
        )
    )


def _test_columns(test: WaldTest | InvalidTest) -> dict[str, float]:
    if isinstance(test, InvalidTest):
        return {"statistic": np.nan, "df": np.nan, "p_value": np.nan}
    return {"statistic": test.statistic, "df": float(test.df), "p_value": test.pvalue}


def _shown(test: WaldTest | InvalidTest) -> str:
    if isinstance(test, InvalidTest):
        return str(test)
    return f"chi2({test.df}) = {test.statistic:.2f}, {_p_shown(test.pvalue)}."


def _p_shown(pvalue: float) -> str:
    p = format_cell(pvalue, "p")
    return f"p < {p[1:]}" if p.startswith("<") else f"p = {p}"


def _coefficient_table(estimates: Estimates, title: str, names: Names) -> Table:
    with np.errstate(divide="ignore", invalid="ignore"):
        z = estimates.values / estimates.std_errors
    columns = np.column_stack([estimates.values, estimates.std_errors, z, two_sided(z)])
    index = estimates.layout.names
    if names.experts:  # what names of parameters say by number
        parameters = estimates.layout.parameters
        index = tuple(p.term if p.expert is None else f"expert {p.expert}: {p.term}" for p in parameters)
        index = tuple(re.sub(r"\bexpert\[T\.(\d+)\]", lambda m: names.experts[int(m[1]) - 1], row) for row in index)
    return Table(
        key="coefficients",
        title=title,
        columns=("Estimate", "Std. Err.", "z", "P>|z|"),
        index=index,
        cells=_cells(pd.DataFrame(columns)),
        formats=("num", "num", ".3f", "p"),
    )


def _cells(frame: pd.DataFrame) -> tuple[tuple[Cell, ...], ...]:
    return tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in frame.to_numpy(dtype=float))
