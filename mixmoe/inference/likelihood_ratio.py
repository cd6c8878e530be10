"""Likelihood-ratio test between nested fits, with the null distribution that the boundary asks for."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from mixmoe._typing import Array
from mixmoe.design.beside import BESIDE
from mixmoe.inference.wald import InvalidTest, printed_lines

_SPAN_TOLERANCE = 1e-8  # relative distance at which a column counts as a combination of others
_LOGLIK_TOLERANCE = 1e-7  # relative: a larger model that is worse by more has not reached its maximum
_GENERALITY = {"common": 0, "proportional": 1, "expert": 2}
_ERROR_SETTINGS: Mapping[str, object] = {
    "errors": "iid",
    "time": None,
    "errors_by": None,
    "errors_dist": "normal",
    "errors_df": None,
}
_NESTED_SETTINGS = ("cov_re", "residual", *_ERROR_SETTINGS)
_IRRELEVANT_SETTINGS = ("formula_engine", "engine", *BESIDE)  # of columns beside the formula values are compared
_DOUBTS = {
    "not_replicated": "the best log-likelihood of the {} fit was reached from one start only",
    "laplace_bias": "the log-likelihood of the {} fit is by a Laplace approximation that is too coarse, see its flag",
    "quadrature_bias": "the log-likelihood of the {} fit is by a quadrature that is too coarse, see its flag",
}
_BAD_FLAGS = {"boundary": "has a variance on its boundary", "separated_gate": "has infinite gate coefficients"}
_BAD_FLAGS |= {
    "edge": "has an error parameter at the end of its space",
    "degenerate": "has a degenerate expert",
    "interrupted": "was interrupted",
    "not_converged": "did not converge",
}


@dataclass(frozen=True, slots=True)
class FitSide:
    """What the test needs to know of one fit; arrays are in the order of the user's rows.

    Attributes
    ----------
    family : str
    varies : bool
        Whether coefficients are functions of an index.
    n_experts : int
    loglik : float
        With the penalty of the gate, if there is one.
    npar : int
    flags : tuple of str
        Codes of the flags of the fit; ``"not_converged"`` is among them if it did not.
    response : ndarray, shape (n,)
    rows : ndarray, shape (n,)
        Places of the rows in the user's frame.
    units : ndarray, shape (n,)
        Code of the unit of each row.
    expert, common : ndarray, shape (n, .)
        Columns with coefficients per expert, and shared ones.
    gate : ndarray, shape (n, m)
    random : ndarray, shape (n, q)
    random_names : tuple of str
    correlated : bool
    aux : Mapping of str to ndarray
        Weights, offsets ...
    settings : Mapping
        Settings of the model; ``cov_re``, ``residual`` and those of the errors may be nested, the others must agree.
    sigma, sigma_common : ndarray, shape (n, .), or None
        Covariates of the log standard deviation of errors with coefficients per expert, and shared ones.
    """

    family: str
    varies: bool
    n_experts: int
    loglik: float
    npar: int
    flags: tuple[str, ...]
    response: Array
    rows: NDArray[np.int64]
    units: NDArray[np.int64]
    expert: Array
    common: Array
    gate: Array
    random: Array
    random_names: tuple[str, ...]
    correlated: bool
    aux: Mapping[str, Array]
    settings: Mapping[str, object]
    sigma: Array | None = None
    sigma_common: Array | None = None

    def errors(self, name: str) -> object:
        """A setting of the errors, or its default."""
        return self.settings.get(name, _ERROR_SETTINGS[name])


@dataclass(frozen=True, slots=True)
class ChiBarSquared:
    """Mixture of chi-squared distributions.

    Attributes
    ----------
    df : tuple of int
    weights : tuple of float
    """

    df: tuple[int, ...]
    weights: tuple[float, ...]

    def sf(self, x: float) -> float:
        """Probability of a value of at least `x`; chi-squared with 0 degrees of freedom is a point mass at 0."""
        tails = (float(chi2.sf(x, d)) if d > 0 else float(x <= 0) for d in self.df)
        return sum(w * t for w, t in zip(self.weights, tails, strict=True))

    def __str__(self) -> str:
        if len(self.df) == 1:
            return f"chi2({self.df[0]})"
        return " + ".join(f"{w:g} chi2({d})" for w, d in zip(self.weights, self.df, strict=True))


@dataclass(frozen=True, slots=True)
class LRTest:
    """Likelihood-ratio test of a smaller fit against a larger one.

    Attributes
    ----------
    statistic : float
        Twice the difference in log-likelihood.
    df : int
        Difference in the number of parameters.
    null : ChiBarSquared
        Null distribution that gives `pvalue`.
    pvalue : float
        Exact to first order if at most one variance is tested; otherwise the upper bound.
    p_lower : float
        Lower bound of the p-value; equal to `pvalue` where that is not a bound.
    notes : tuple of str
    """

    statistic: float
    df: int
    null: ChiBarSquared
    pvalue: float
    p_lower: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        relation = "=" if self.p_lower == self.pvalue else "<="
        p = f"p {relation} {self.pvalue:.4g}, null {self.null}"
        head = f"Likelihood-ratio test: {self.statistic:.4f} on {self.df} df, {p}"
        return printed_lines(head, *(f"  {note}" for note in self.notes))


def lr_test(one: FitSide, two: FitSide) -> LRTest | InvalidTest:
    """Likelihood-ratio test between two nested fits, in either order.

    Parameters
    ----------
    one, two : FitSide

    Returns
    -------
    LRTest or InvalidTest

    Notes
    -----
    With d more parameters of which none is a variance that is zero in the smaller model, the null distribution is
    chi-squared with d degrees of freedom. If the larger model has one random effect more (one experts' covariance, q
    random effects stay), its variance lies on the boundary of the space and the null distribution is
    ``0.5 chi2(d - 1) + 0.5 chi2(d)`` (Self & Liang 1987, case 6; Stram & Lee 1994, case 2; d = q + 1 if nothing else
    differs). If several variances are tested - two random effects, or one in each of K experts - the weights of the
    mixture depend on the information matrix. Whatever that is, the cone of admissible values lies within a half-space
    and contains a half-space of dimension d - c + 1, where c is the dimension of the tested covariance blocks. So the
    p-value lies between those of ``0.5 chi2(d - c) + 0.5 chi2(d - c + 1)`` and ``0.5 chi2(d - 1) + 0.5 chi2(d)``; the
    second is reported, the first kept as `p_lower`. The variance of a Brownian motion among the errors and the
    reciprocals of the degrees of freedom of t errors are tested alike: zero is an end of their space.

    References
    ----------
    Self & Liang (1987), JASA 82, 605-610. Stram & Lee (1994), Biometrics 50, 1171-1177.
    """
    small, large = (one, two) if one.npar <= two.npar else (two, one)
    same = (_different_kind, _different_data, _irregular, _different_settings, _different_errors)
    for check in (*same, _restricted, _not_nested, _penalised):
        reason = check(small, large)
        if reason:
            return InvalidTest(reason)
    statistic = 2.0 * (large.loglik - small.loglik)
    # Below zero by rounding alone counts as zero; by more, the larger fit has missed its maximum.
    if statistic < -2 * _LOGLIK_TOLERANCE * max(1.0, abs(small.loglik)):
        return InvalidTest(
            f"the larger model has the smaller log-likelihood ({large.loglik:.6f} against {small.loglik:.6f}), so it "
            "has not reached its maximum; refit it with more starts or start it from the smaller fit"
        )
    # Dimension of the covariance blocks that are zero in the smaller model and free in the larger one; parameters of
    # the errors that are zero at an end of their space count with them.
    cone = _tested_effects(small, large) + _tested_errors(small, large)
    return _test(max(statistic, 0.0), large.npar - small.npar, cone, _notes(small, large))


def _tested_effects(small: FitSide, large: FitSide) -> int:
    extra = large.random.shape[1] - small.random.shape[1]
    if extra <= 0:
        return 0
    # A covariance block grows by the new effect's variance and its covariances with all the others.
    blocks = large.n_experts if large.settings.get("cov_re", "expert") == "expert" else 1
    return blocks * (extra * (extra + 1) // 2 if large.correlated else extra)


def _tested_errors(small: FitSide, large: FitSide) -> int:
    own = large.n_experts if large.errors("errors_by") == "expert" else 1
    motion = large.errors("errors") == "bm" and small.errors("errors") == "iid"
    tails = large.errors("errors_dist") == "t" and small.errors("errors_dist") == "normal"
    return own * (int(motion) + int(tails))


def _test(statistic: float, df: int, cone: int, notes: tuple[str, ...]) -> LRTest:
    """The test for `cone` = dimension of the tested covariance blocks."""
    if cone == 0:
        regular = ChiBarSquared((df,), (1.0,))
        p = regular.sf(statistic)
        return LRTest(statistic, df, regular, p, p, notes)
    # The cone of admissible values lies within a half-space, which bounds p from above, and holds one of lower
    # dimension.
    upper = ChiBarSquared((df - 1, df), (0.5, 0.5))
    lower = ChiBarSquared((df - cone, df - cone + 1), (0.5, 0.5))
    if cone > 1:
        bound = (
            "several variances are tested: p is an upper bound, valid whatever the weights of the chi-bar-squared "
            f"mixture; the lower bound is {lower.sf(statistic):.4g}; a parametric bootstrap gives the value between"
        )
        notes = (*notes, bound)
    return LRTest(statistic, df, upper, upper.sf(statistic), lower.sf(statistic), notes)


def _notes(small: FitSide, large: FitSide) -> tuple[str, ...]:
    """Doubts that do not forbid the test."""
    sides = (("smaller", small), ("larger", large))
    return tuple(text.format(name) for name, side in sides for code, text in _DOUBTS.items() if code in side.flags)


def _different_kind(small: FitSide, large: FitSide) -> str:
    if small.family != large.family:
        return f"the fits are of different families ({small.family} and {large.family}); compare them by bic or icl"
    if small.varies or large.varies:
        return "coefficients that vary along an index are not estimated by maximum likelihood; use test_varying"
    if small.n_experts != large.n_experts:
        return (
            f"the fits have {small.n_experts} and {large.n_experts} experts, where the likelihood ratio has no "
            "chi-squared distribution; compare bic or icl, or refit responses drawn by simulate() from the smaller fit"
        )
    return ""


def _different_data(small: FitSide, large: FitSide) -> str:
    if len(small.rows) != len(large.rows):
        return (
            f"the fits use {len(small.rows)} and {len(large.rows)} rows; fit both on the rows that are complete in all "
            "columns of the larger formula"
        )
    if not np.array_equal(small.rows, large.rows):
        return f"the fits use different rows (both {len(small.rows)}); fit both on the same rows"
    if not np.array_equal(small.response, large.response):
        return "the fits have different responses (other data, or a transformed response)"
    apart = {"time", "cluster"}  # one enters through the errors, which are compared by themselves, one not at all
    of_small, of_large = set(small.aux) - apart, set(large.aux) - apart
    if of_small != of_large or any(not np.array_equal(small.aux[k], large.aux[k]) for k in of_small):
        return f"the fits differ in weights, offset or the like ({sorted(small.aux)} and {sorted(large.aux)})"
    return ""


def _irregular(small: FitSide, large: FitSide) -> str:
    for name, side in (("smaller", small), ("larger", large)):
        codes = [c for c in side.flags if c in _BAD_FLAGS]
        if name == "larger" and _tested_effects(small, large):
            codes = [c for c in codes if c != "boundary"]
        if name == "larger" and _tested_errors(small, large):
            codes = [c for c in codes if c != "edge"]
        if codes:
            return (
                f"the {name} model {_BAD_FLAGS[codes[0]]}, where the null distribution is not known; "
                "use a parametric bootstrap or a simpler model"
            )
    return ""


def _restricted(small: FitSide, large: FitSide) -> str:
    """A restricted likelihood is that of error contrasts, which are others where the fixed effects are."""
    first, second = (np.column_stack([side.expert, side.common]) for side in (small, large))
    if large.settings.get("method") != "reml" or np.array_equal(first, second):
        return ""
    return (
        "REML log-likelihoods of fits with different fixed effects are of different error contrasts, so that their "
        "difference is no likelihood ratio; fit both with method='ml', or use wald_test_terms()"
    )


def _penalised(small: FitSide, large: FitSide) -> str:
    """Firth's penalty is of the columns of the gate: of two gates it is not one penalty."""
    if large.settings.get("gate_penalty") != "firth" or np.array_equal(small.gate, large.gate):
        return ""
    return (
        "gate_penalty='firth' depends on the gate's columns, which differ, so that twice the difference of penalised "
        "log-likelihoods is no likelihood ratio; use profile limits, wald_test_terms() or a gate_penalty that is a "
        "number"
    )


def _different_settings(small: FitSide, large: FitSide) -> str:
    ignored = (*_NESTED_SETTINGS, *_IRRELEVANT_SETTINGS)
    for key in sorted({*small.settings, *large.settings} - set(ignored)):
        if small.settings.get(key) != large.settings.get(key):
            return f"the fits differ in {key} ({small.settings.get(key)!r} and {large.settings.get(key)!r})"
    return ""


def _different_errors(small: FitSide, large: FitSide) -> str:
    one, two = small.errors("errors"), large.errors("errors")
    if one not in ("iid", two):
        return f"errors={one!r} is no special case of errors={two!r}; compare bic"
    if one == two and small.errors("time") != large.errors("time"):
        return f"the fits take times from {small.errors('time')!r} and {large.errors('time')!r}; use the same column"
    if one == "iid" and two == "car1":
        return (
            "the correlation of errors='car1' vanishes only where phi is infinite, and its derivative there depends on "
            "the spacing of the rows, so that no mixture of chi-squares holds; compare bic, use errors='ar1' with "
            "whole-number times, or refit responses drawn by simulate() from the smaller fit"
        )
    if small.errors("errors_dist") == "t" and large.errors("errors_dist") == "normal":
        return "t errors are no special case of normal ones; compare bic"
    if large.errors("errors_df") not in (None, small.errors("errors_df")):
        return (
            f"the larger model fixes errors_df={large.errors('errors_df')!r} and the smaller one does not; compare bic"
        )
    if small.errors("errors_by") == "expert" and large.errors("errors_by") == "common" and small.n_experts > 1:
        return "own parameters of the errors are no special case of common ones (errors_by=); compare bic"
    return ""


def _spread_nested(small: FitSide, large: FitSide) -> bool:
    if small.sigma is None or small.sigma_common is None or large.sigma is None or large.sigma_common is None:
        return True
    level = np.ones((len(small.rows), 1))
    own, everything = np.hstack([level, large.sigma]), np.hstack([level, large.sigma, large.sigma_common])
    if small.n_experts == 1:
        return _in_span(np.hstack([small.sigma, small.sigma_common]), everything)
    return _in_span(small.sigma, own) and _in_span(small.sigma_common, everything)


def _not_nested(small: FitSide, large: FitSide) -> str:
    if small.npar == large.npar:
        return f"the fits have the same number of parameters ({small.npar}), so neither is nested in the other"
    if small.n_experts > 1 and not np.array_equal(small.units, large.units):
        return "one model routes subjects to experts and the other rows or other subjects; compare bic or icl"
    fixed = "" if _fixed_nested(small, large) else "the expert columns"
    gate = "" if small.n_experts == 1 or _in_span(small.gate, large.gate) else "the gate columns"
    random = "" if _random_nested(small, large) else "the random effects"
    residual = "" if _generality(small, "residual") <= _generality(large, "residual") else "the residual variances"
    spread = "" if _spread_nested(small, large) else "the covariates of the standard deviation"
    outside = [part for part in (fixed, gate, random, residual, spread) if part]
    if outside:
        parts = ", ".join(outside)
        return f"the smaller model is not nested in the larger one: {parts} are not special cases of it; compare bic"
    if (
        large.settings.get("cov_re") == "proportional"
        and small.n_experts > 1
        and not small.random.shape[1]
        and large.random.shape[1]
    ):
        return (
            "without random effects the proportionality factors of cov_re='proportional' do not exist, so the null "
            "distribution is not a mixture of chi-squares; use cov_re='common' in the larger model"
        )
    return ""


def _fixed_nested(small: FitSide, large: FitSide) -> bool:
    everything = np.column_stack([large.expert, large.common])
    if small.n_experts == 1:
        return _in_span(np.column_stack([small.expert, small.common]), everything)
    return _in_span(small.expert, large.expert) and _in_span(small.common, everything)


def _random_nested(small: FitSide, large: FitSide) -> bool:
    if not small.random.shape[1]:
        return True
    if _generality(small, "cov_re") > _generality(large, "cov_re"):
        return False
    if large.correlated or large.random.shape[1] == 1:
        return _in_span(small.random, large.random)
    diagonal = not small.correlated or small.random.shape[1] == 1
    return diagonal and set(small.random_names) <= set(large.random_names) and _in_span(small.random, large.random)


def _generality(side: FitSide, setting: str) -> int:
    if side.n_experts == 1:
        return 0
    return _GENERALITY.get(str(side.settings.get(setting, "expert")), 2)


def _in_span(columns: Array, others: Array) -> bool:
    """Whether each column is a linear combination of the others."""
    sizes = np.linalg.norm(columns, axis=0)
    columns = columns[:, sizes > 0] / sizes[sizes > 0]
    if not columns.shape[1]:
        return True
    if not others.shape[1]:
        return False
    scaled = others / np.maximum(np.linalg.norm(others, axis=0), np.finfo(float).tiny)
    weights = np.linalg.lstsq(scaled, columns, rcond=None)[0]
    return bool(np.linalg.norm(columns - scaled @ weights, axis=0).max() < _SPAN_TOLERANCE)
