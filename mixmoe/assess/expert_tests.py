"""Methods of every fit that ask for the number of experts."""

from functools import partial
from typing import Any

import numpy as np

from mixmoe.arguments import checked_choice, checked_count, checked_jobs, checked_rng
from mixmoe.assess.experts import (
    STOPS,
    ExpertsTest,
    Stability,
    VLMRTest,
    bootstrap_test,
    resampled_labels,
    stability,
    vlmr,
)
from mixmoe.assess.refits import refuse_tests
from mixmoe.em import EMFit
from mixmoe.errors import ArgumentError
from mixmoe.inference.intervals import checked_alpha
from mixmoe.inference.journal import Journal, PathLike, fingerprint
from mixmoe.inference.tests import InvalidTest

_UNUSABLE = ("degenerate", "interrupted")


class ExpertTests:
    """Tests of the number of experts, and stability of what they are."""

    model: Any
    em: EMFit

    def test_experts(
        self,
        n_boot: int = 200,
        *,
        starts: int = 8,
        stop: str = "binomial",
        alpha: float = 0.05,
        rng: Any = None,
        n_jobs: int = 1,
        progress: bool | None = None,
        checkpoint: PathLike | None = None,
    ) -> ExpertsTest | InvalidTest:
        """Parametric bootstrap likelihood-ratio test of K against K - 1 experts.

        Parameters
        ----------
        n_boot : int
            Largest number of draws.
        starts : int
            Random starts per expert of each fit. With K experts each expert of the fit with K - 1 is split besides, and
            the K - 1 experts are fitted to a draw from the truth too.
        stop : {"binomial", "besag-clifford", "never"}
            When to stop early. ``"binomial"``: as soon as the exceedances so far reject a p-value equal to `alpha` at
            the level 0.001, so that the decision at `alpha` is clear. ``"besag-clifford"``: after 10 exceedances, with
            the p-value 10 / draws.
        alpha : float
            Level of the decision.
        rng : int, numpy.random.Generator or None
            The result depends on it and not on `n_jobs`.
        n_jobs : int
            Worker processes (joblib), -1 for all cores.
        progress : bool, optional
        checkpoint : path-like, optional
            A file. The same call continues where an earlier one stopped, with the same answer.

        Returns
        -------
        ExpertsTest or InvalidTest
            After Ctrl-C from the draws that were ready.

        Notes
        -----
        Responses are drawn from the fit with K - 1 experts at the covariates of the data, and both models are fitted to
        each draw. A mixture with one expert too many has many maxima, of which more starts find higher ones. The
        statistic of the data is therefore found anew, by the same starts as those of the draws, and may lie below twice
        the difference of the log-likelihoods of two fits with more starts: comparing that with draws from few starts
        would reject too often. The p-value is ``(1 + exceedances) / (1 + draws)``. Random effects and errors are drawn
        as normal: the test asks for the number of experts given that the model within an expert holds.

        References
        ----------
        McLachlan (1987), Applied Statistics 36, 318-324. Feng & McCulloch (1996), JRSS B 58, 609-617. Besag & Clifford
        (1991), Biometrika 78, 301-304. Davidson & MacKinnon (2000), Econometric Reviews 19, 55-68.
        """
        checked_choice(stop, "stop", STOPS)
        checked_count(n_boot, "n_boot")
        checked_count(starts, "starts", least=0)
        refused = self._refused()
        if refused is not None:
            return refused
        key = ("experts", self._identity(), n_boot, starts, stop, checked_alpha(alpha))
        n_jobs, experts = checked_jobs(n_jobs), self.model.n_experts
        with Journal(checkpoint, fingerprint(key), rng) as journal:
            return bootstrap_test(self.model, experts, journal, n_boot, starts, stop, alpha, n_jobs, progress)

    def vlmr_test(self, *, starts: int = 8, rng: Any = None) -> VLMRTest | InvalidTest:
        """Vuong-Lo-Mendell-Rubin test of K against K - 1 experts; quick, but without a valid theory.

        Parameters
        ----------
        starts : int
            Random starts per expert of the fit with K - 1 experts.
        rng : int, numpy.random.Generator or None

        Returns
        -------
        VLMRTest or InvalidTest

        Notes
        -----
        The statistic is compared with a sum of chi-squares whose weights are the eigenvalues of Vuong's matrix W at the
        estimates. Lo, Mendell and Rubin (2001) claimed that this holds for mixtures of normals with K - 1 and K
        components. Jeffries (2003) showed that it does not: under K - 1 experts the parameters of the K-th are not
        identified and the information of the larger model is singular, so that the conditions of Vuong's theorem fail.
        It is offered because it is often reported; use `test_experts` to decide.

        References
        ----------
        Vuong (1989), Econometrica 57, 307-333. Lo, Mendell & Rubin (2001), Biometrika 88, 767-778. Jeffries (2003),
        Biometrika 90, 991-994.
        """
        refused = self._refused()
        if refused is not None:
            return refused
        if not hasattr(self.model, "curvature"):
            return InvalidTest("these estimates do not maximise a likelihood; use test_experts")
        below = self.model.n_experts - 1
        null = self.model.estimate(below, checked_count(starts, "starts") * below, checked_rng(rng))
        return vlmr(self.model, self.model.estimated(self.em), null)

    def stability(
        self,
        n_boot: int = 100,
        *,
        rng: Any = None,
        n_jobs: int = 1,
        progress: bool | None = None,
        checkpoint: PathLike | None = None,
    ) -> Stability:
        """Whether the units would be classified alike by fits to resamples of the units.

        Parameters
        ----------
        n_boot : int
            Resamples, each refitted from the present estimates.
        rng : int, numpy.random.Generator or None
        n_jobs : int
        progress : bool, optional
        checkpoint : path-like, optional
            A file, see `test_experts`.

        Returns
        -------
        Stability
            Adjusted Rand index of the most probable experts of all units, resample by resample.

        Raises
        ------
        ArgumentError
            If the fit has one expert, the family offers no refits, or none converged.

        References
        ----------
        Hubert & Arabie (1985), Journal of Classification 2, 193-218. Hennig (2007), Computational Statistics & Data
        Analysis 52, 258-271.
        """
        checked_count(n_boot, "n_boot")
        reason = refuse_tests(self.model) if not hasattr(self.model, "reclassified") else None
        if self.model.n_experts == 1 or reason is not None:
            raise ArgumentError(reason or "stability needs at least two experts, got a fit with one")
        task, n_jobs = resampled_labels(self.model, self.em), checked_jobs(n_jobs)
        with Journal(checkpoint, fingerprint(("stability", self._identity(), n_boot)), rng) as journal:
            calls = [partial(task, seed) for seed in journal.rng.spawn(n_boot)]
            found = journal.run(calls, n_jobs, "resamples", progress)
        refits = [np.array(labels, dtype=np.intp) for labels in found.values]
        if not any(len(labels) for labels in refits):
            if found.interrupted:
                raise KeyboardInterrupt
            raise ArgumentError(f"none of the {n_boot} resamples could be refitted; look at the flags of the fit")
        return stability(self.em.responsibilities.argmax(axis=1), refits, found.interrupted)

    def _identity(self) -> tuple[Any, ...]:
        """What tells this fit from others."""
        design = self.model.design
        return (self.model.formula.text, self.model.n_experts, self.em.loglik, self.em.params.tolist(), design.n)

    def _refused(self) -> InvalidTest | None:
        if self.model.n_experts == 1:
            return InvalidTest("one expert is the smallest model; fit two experts and test those")
        reason = refuse_tests(self.model)
        bad = [flag.code for flag in self.em.flags if flag.code in _UNUSABLE]
        if reason is None and bad:
            reason = f"the fit is {bad[0]}, so that its log-likelihood is not the maximum; fit it again first"
        return None if reason is None else InvalidTest(reason)
