"""Predictive distribution of each response of a GLMM mixture given the earlier responses of its subject."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixmoe.kernels.distribution import Outcome
from mixmoe.mixed.laplace import GlmmExperts
from mixmoe.mixed.likelihood import Problem
from mixmoe.mixed.predict import History, posterior_history
from mixmoe.mixed.response_scale import Covariates, LinkEstimate, Predictors, given_past
from mixmoe.mixed.structure import Params

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Predictive:
    """Mixture of normal linear predictors for each row.

    Attributes
    ----------
    where : Predictors
    weights : ndarray, shape (K, n)
        Expert probabilities.
    """

    where: Predictors
    weights: Array


def one_step_ahead(
    problem: "Problem[GlmmExperts]", working: Params, e: LinkEstimate, at: Covariates, back: Array, prior: History
) -> Predictive:
    """Predictive distributions, rows in the order of the problem; within a subject that order is time.

    Parameters
    ----------
    problem : Problem
    working : Params
        In the coordinates of the problem, S = 1.
    e : LinkEstimate
    at : Covariates
    back : ndarray, shape (q, q)
        From random effects in the problem's coordinates to the user's.
    prior : History
        Of each subject before her first row.

    Returns
    -------
    Predictive
    """
    rows = problem.experts.rows
    K, n = len(e.params.beta[0]), len(at.X)
    out = Predictive(Predictors(np.empty((K, n)), np.empty((K, n))), np.empty((K, n)))
    for t in range(int(rows.counts.max())):
        who = np.flatnonzero(rows.counts > t)
        here = rows.starts[who] + t
        past = prior.take(who) if t == 0 else _after(problem, working, who, t, back)
        where = given_past(e, at.take(here), past)
        out.where.mean[:, here], out.where.sd[:, here] = where.mean, where.sd
        out.weights[:, here] = past.probabilities.T
    return out


def _after(problem: "Problem[GlmmExperts]", working: Params, who: NDArray[np.intp], t: int, back: Array) -> History:
    """What the first `t` rows say about the subjects `who`, in the user's units."""
    experts = GlmmExperts(problem.experts.rows.take(who).first(t), problem.experts.response, problem.experts.nodes)
    past = posterior_history(Problem(problem.structure, problem.free, experts, problem.W[who]), working)
    covariances = np.einsum("ab,nkbc,dc->nkad", back, past.covariances, back, optimize=True)
    return History(past.probabilities, past.means @ back.T, covariances)


def conditional_variance(e: LinkEstimate, weights: Array, mean: Array, trials: Array) -> Array:
    """Variance of responses around their fitted values, averaged over experts, shape (n,)."""
    eta = e.response.predictor(mean, e.extra, trials)
    return (weights * e.response.variance(eta, e.extra, trials)).sum(axis=0)


def mean_deviance(e: LinkEstimate, weights: Array, mean: Array, out: Outcome) -> Array:
    """Deviance of each response at its fitted value, averaged over experts, shape (n,)."""
    return (weights * e.response.deviance(out, mean, e.extra)).sum(axis=0)
