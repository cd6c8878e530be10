"""Tests of the number of experts, and stability of the classification."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import comb
from scipy.stats import binom

from mixmoe._typing import Array
from mixmoe.families import Curvature, Estimated, HasCurvature, HasExperts, MixtureModel, require
from mixmoe.inference.wald import InvalidTest, printed_lines
from mixmoe.mixture.estimate import EMFit
from mixmoe.mixture.resampling import Journal
from mixmoe.output.names import NO_NAMES, Names, expert_words

Labels = NDArray[np.intp]
STOPS = ("binomial", "besag-clifford", "never")
_ERROR = 0.001  # probability at which a count speaks against a p-value equal to alpha
_EXCEEDED = 10  # exceedances that end the rule of Besag & Clifford
_DRAWS = 100_000  # of the weighted sum of chi-squares; error of a p-value below 0.002
_SEED = 20260101  # of these draws, so that a test prints the same every time
_UNUSABLE = ("degenerate", "interrupted")


def _p_shown(value: float) -> str:
    return "p < 0.0001" if value < 0.00005 else f"p = {value:.4f}"


def testable(model: MixtureModel, fit: EMFit, what: str) -> HasExperts | InvalidTest:
    """The model, if its number of experts can be tested by `what` with these data, else the reason why not."""
    known = require(model, HasExperts, what, model.spec)
    if model.n_experts == 1:
        return InvalidTest("one expert is the smallest model; fit two experts and test those")
    reason = known.refuse_tests()
    bad = [flag.code for flag in fit.flags if flag.code in _UNUSABLE]
    if reason is None and bad:
        reason = f"the fit is {bad[0]}, so that its log-likelihood is not the maximum; fit it again first"
    return known if reason is None else InvalidTest(reason)


@dataclass(frozen=True, slots=True)
class ExpertsTest:
    """Bootstrap likelihood-ratio test of K against K - 1 experts.

    Attributes
    ----------
    experts : int
        K.
    statistic : float
        Twice the difference of the log-likelihoods.
    pvalue : float
    loglik, loglik_null : float
        From as many starts as in the draws.
    n_boot : int
        Draws that were used.
    n_failed : int
        Draws without a usable fit, left out.
    exceeded : int
        Draws with a statistic at least as large.
    stop : str
        The stopping rule, and whether it ended the draws.
    alpha : float
        Level at which the rule decides.
    interrupted : bool
    null : ndarray, shape (n_boot,)
        Statistics of the draws.
    """

    experts: int
    statistic: float
    pvalue: float
    loglik: float
    loglik_null: float
    n_boot: int
    n_failed: int
    exceeded: int
    stop: str
    alpha: float
    interrupted: bool
    null: Array

    def __str__(self) -> str:
        failed = f", {self.n_failed} more failed" if self.n_failed else ""
        cut = "; interrupted" if self.interrupted else ""
        return printed_lines(
            f"Bootstrap likelihood-ratio test: {self.experts} experts against {self.experts - 1}",
            f"  2 (log L{self.experts} - log L{self.experts - 1}) = {self.statistic:.3f}, {_p_shown(self.pvalue)}",
            f"  {self.exceeded} of {self.n_boot} draws from {self.experts - 1} experts are as large{failed}{cut}",
            f"  {self.stop}",
        )


@dataclass(frozen=True, slots=True)
class LRDraw:
    """The statistic in data drawn from the null fit; NaN if a fit is not usable. Picklable.

    Attributes
    ----------
    model : HasExperts
    null : Estimated
        With K - 1 experts.
    n_starts : int
        Random starts per expert of both fits, beside the truth for K - 1 and the split experts for K.
    """

    model: HasExperts
    null: Estimated
    n_starts: int

    def __call__(self, rng: np.random.Generator) -> float:
        """The statistic of one draw."""
        response = self.model.drawn(self.null, rng)
        try:
            k, n = self.null.experts, self.n_starts
            small = self.model.estimate(k, _random(n, k), rng, self.null, response)
            large = self.model.estimate(k + 1, _random(n, k + 1), rng, small, response)
        except (np.linalg.LinAlgError, ArithmeticError):
            return np.nan
        return np.nan if small.degenerate or large.degenerate else 2.0 * (large.loglik - small.loglik)


def bootstrap_test(
    model: HasExperts,
    experts: int,
    journal: Journal,
    n_boot: int,
    n_starts: int,
    stop: str,
    alpha: float,
    n_jobs: int,
    progress: bool | None,
) -> ExpertsTest:
    """See `ExpertTests.test_experts`."""
    # The fits to the data draw from a stream of their own: more draws do not change them.
    first, *seeds = journal.rng.spawn(n_boot + 1)
    null, full = observed_fits(model, experts, n_starts, first)
    statistic = 2.0 * (full.loglik - null.loglik)
    task, seen = LRDraw(model, null, n_starts), _Count(statistic, stop, alpha)
    draws = journal.run([partial(task, seed) for seed in seeds], n_jobs, "bootstrap", progress, seen)
    values = np.array(draws.values, dtype=float)
    used = values[np.isfinite(values)]
    exceeded = int((used >= statistic).sum())
    stopped = len(values) < n_boot and not draws.interrupted
    rule = {
        "binomial": f"stops when a p-value of {alpha:g} is rejected at {_ERROR:g} (Davidson & MacKinnon 2000)",
        "besag-clifford": f"stops after {_EXCEEDED} exceedances (Besag & Clifford 1991)",
        "never": "no early stopping",
    }[stop]
    rule += "" if stop == "never" else f": {'stopped early' if stopped else f'all of {n_boot} draws'}"
    return ExpertsTest(
        experts=experts,
        statistic=statistic,
        pvalue=exceeded / len(used) if stopped and stop == "besag-clifford" else (1 + exceeded) / (1 + len(used)),
        loglik=full.loglik,
        loglik_null=null.loglik,
        n_boot=len(used),
        n_failed=len(values) - len(used),
        exceeded=exceeded,
        stop=rule,
        alpha=alpha,
        interrupted=draws.interrupted,
        null=used,
    )


def observed_fits(
    model: HasExperts, experts: int, n_starts: int, rng: np.random.Generator
) -> tuple[Estimated, Estimated]:
    """The fits with K - 1 and K experts to the data, found as those to the draws are."""
    null = model.estimate(experts - 1, _random(n_starts, experts - 1), rng)
    return null, model.estimate(experts, _random(n_starts, experts), rng, null)


def _random(n_starts: int, experts: int) -> int:
    """Random starts; one expert has one optimum."""
    return n_starts * experts if experts > 1 else 1


@dataclass(slots=True)
class _Count:
    """Counts draws and says when the decision is clear."""

    statistic: float
    stop: str
    alpha: float
    n: int = 0
    exceeded: int = 0

    def __call__(self, value: float) -> bool:
        self.n += int(np.isfinite(value))
        self.exceeded += int(value >= self.statistic)
        return decided(self.stop, self.exceeded, self.n, self.alpha)


def decided(stop: str, exceeded: int, n: int, alpha: float) -> bool:
    """Whether a stopping rule ends the draws after `exceeded` of `n` were as large as the statistic.

    Parameters
    ----------
    stop : {"binomial", "besag-clifford", "never"}
    exceeded, n : int
    alpha : float

    Returns
    -------
    bool
    """
    if stop == "besag-clifford":
        return exceeded >= _EXCEEDED
    if stop == "never" or n == 0:
        return False
    # A p-value of alpha would lead to so few, or so many, exceedances with less than the tolerated probability.
    below, above = binom.cdf(exceeded, n, alpha), binom.sf(exceeded - 1, n, alpha)
    return bool(min(below, above) < _ERROR / 2)


@dataclass(frozen=True, slots=True)
class VLMRTest:
    """Likelihood-ratio test of K against K - 1 experts with the weights of Vuong, Lo, Mendell and Rubin.

    Attributes
    ----------
    experts : int
        K.
    statistic, pvalue : float
        Twice the difference of the log-likelihoods against the weighted sum of chi-squares.
    adjusted, pvalue_adjusted : float
        The statistic divided by ``1 + 1 / ((P - P') log N)``, the ad-hoc adjustment of Lo, Mendell and Rubin.
    loglik, loglik_null : float
    weights : ndarray, shape (P + P',)
        Weights of the chi-squares with one degree of freedom.
    """

    experts: int
    statistic: float
    pvalue: float
    adjusted: float
    pvalue_adjusted: float
    loglik: float
    loglik_null: float
    weights: Array

    def __str__(self) -> str:
        return printed_lines(
            f"Vuong-Lo-Mendell-Rubin test: {self.experts} experts against {self.experts - 1}",
            f"  2 (log L{self.experts} - log L{self.experts - 1}) = {self.statistic:.3f}, {_p_shown(self.pvalue)}",
            f"  adjusted {self.adjusted:.3f}, {_p_shown(self.pvalue_adjusted)}",
            "  the conditions of its theory fail for mixtures (Jeffries 2003); prefer test_experts()",
        )


def vuong_weights(large: Curvature, small: Curvature) -> Array:
    """Weights of the chi-squares, shape (P + P',): eigenvalues of the matrix W of Vuong (1989, equation 3.6).

    Parameters
    ----------
    large, small : Curvature
        Of the models with K and K - 1 experts, on the same units.

    Returns
    -------
    ndarray, shape (P + P',)
    """
    f, g = large.scores, small.scores
    to_f, to_g = np.linalg.pinv(large.information, hermitian=True), np.linalg.pinv(small.information, hermitian=True)
    # W of Vuong's equation 3.6 in blocks; outer products of scores stand for his B, inverse information for A^-1.
    upper = np.hstack([f.T @ f @ to_f, f.T @ g @ to_g])
    lower = np.hstack([-g.T @ f @ to_f, -g.T @ g @ to_g])
    return np.sort(np.linalg.eigvals(np.vstack([upper, lower])).real)[::-1]


def weighted_chi2_sf(values: Array, weights: Array) -> Array:
    """Probabilities that a weighted sum of chi-squares with one degree of freedom exceeds each value, by simulation.

    Parameters
    ----------
    values : ndarray, shape (R,)
    weights : ndarray, shape (m,)

    Returns
    -------
    ndarray, shape (R,)
    """
    rng, exceeded = np.random.default_rng(_SEED), np.zeros(len(values))
    for _ in range(10):
        total = rng.standard_normal((_DRAWS // 10, len(weights))) ** 2 @ weights
        exceeded += (total[:, None] >= values).sum(axis=0)
    return exceeded / _DRAWS


def vlmr(model: HasCurvature, full: Estimated, null: Estimated) -> VLMRTest:
    """See `ExpertTests.vlmr_test`."""
    large, small = model.curvature(full), model.curvature(null)
    weights = vuong_weights(large, small)
    statistic = 2.0 * (full.loglik - null.loglik)
    units, extra = len(large.scores), large.scores.shape[1] - small.scores.shape[1]
    adjusted = statistic / (1.0 + 1.0 / (extra * np.log(units)))
    p, q = weighted_chi2_sf(np.array([statistic, adjusted]), weights)
    return VLMRTest(full.experts, statistic, float(p), adjusted, float(q), full.loglik, null.loglik, weights)


@dataclass(frozen=True, slots=True)
class Stability:
    """Agreement of the classification with those of refits to resamples of the units.

    Attributes
    ----------
    ari : ndarray, shape (B,)
        Adjusted Rand index of each resample: 1 for the same classification, 0 as good as chance.
    jaccard : ndarray, shape (K,)
        Mean over resamples of the largest Jaccard similarity of each expert's units with those of one in the refit.
    n_failed : int
        Resamples whose refit did not converge.
    interrupted : bool
    shown_names : Names
        Of the experts, as `named` gave them.
    """

    ari: Array
    jaccard: Array
    n_failed: int
    interrupted: bool
    shown_names: Names = NO_NAMES

    def to_frame(self) -> pd.DataFrame:
        """One row per resample with its adjusted Rand index."""
        return pd.DataFrame({"ari": self.ari}, index=pd.RangeIndex(1, len(self.ari) + 1, name="resample"))

    def __str__(self) -> str:
        low, middle, high = np.quantile(self.ari, [0.05, 0.5, 0.95])
        failed = f", {self.n_failed} more did not converge" if self.n_failed else ""
        words = expert_words(self.shown_names, len(self.jaccard))
        jaccard = "\n".join(f"    {word}: {value:.3f}" for word, value in zip(words, self.jaccard, strict=True))
        return (
            f"Stability of the classification over {len(self.ari)} resamples of the units{failed}"
            f"{'; interrupted' if self.interrupted else ''}\n"
            f"  adjusted Rand index: mean {self.ari.mean():.3f}, median {middle:.3f}, 5 % {low:.3f}, 95 % {high:.3f}\n"
            f"  mean Jaccard similarity (below 0.6: not stable; above 0.75: stable):\n{jaccard}"
        )


def stability(labels: Labels, refits: list[Labels], interrupted: bool) -> Stability:
    """Agreement of labels, shape (N,), with those of refits; empty refits count as failed."""
    usable = [other for other in refits if len(other)]
    ari = np.array([adjusted_rand_index(labels, other) for other in usable])
    jaccard = np.array([best_jaccard(labels, other) for other in usable])
    return Stability(ari, jaccard.mean(axis=0), len(refits) - len(usable), interrupted)


def contingency(a: Labels, b: Labels) -> Array:
    """Units by their labels in two classifications, shape (A, B)."""
    table = np.zeros((int(a.max()) + 1, int(b.max()) + 1))
    np.add.at(table, (a, b), 1.0)
    return table


def adjusted_rand_index(a: Labels, b: Labels) -> float:
    """Share of pairs on which two classifications agree, corrected for chance (Hubert & Arabie 1985).

    Parameters
    ----------
    a, b : ndarray of int, shape (N,)

    Returns
    -------
    float
        1 for the same classification, 0 on average for unrelated ones.
    """
    table = contingency(a, b)
    together, of_a, of_b = (float(comb(t, 2).sum()) for t in (table, table.sum(axis=1), table.sum(axis=0)))
    chance = of_a * of_b / max(float(comb(len(a), 2)), 1.0)
    most = 0.5 * (of_a + of_b)
    return 1.0 if most == chance else (together - chance) / (most - chance)


def best_jaccard(a: Labels, b: Labels) -> Array:
    """Largest Jaccard similarity of the units of each label of `a` with those of a label of `b` (Hennig 2007)."""
    table = contingency(a, b)
    union = table.sum(axis=1)[:, None] + table.sum(axis=0) - table
    return (table / np.maximum(union, 1.0)).max(axis=1)


def resampled_labels(model: HasExperts, fit: EMFit, rng: np.random.Generator) -> list[int]:
    """The labels by a refit to one resample, as a list, which a checkpoint can hold."""
    found: list[int] = model.reclassified(fit, rng).tolist()
    return found
