"""Each response of a GLMM mixture given the earlier ones of its subject, and how far it is from its fitted value."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mixmoe.kernels.distribution import Outcome
from mixmoe.mixed.course import Seen, remember
from mixmoe.mixed.laplace import GlmmExperts
from mixmoe.mixed.likelihood import Problem
from mixmoe.mixed.predict import posterior_history
from mixmoe.mixed.response_scale import LinkEstimate
from mixmoe.mixed.structure import Params

Array = NDArray[np.float64]
Index = NDArray[np.intp]


def one_step_ahead(problem: "Problem[GlmmExperts]", working: Params, prior: Array) -> Iterator[tuple[Index, Seen]]:
    """Each row of a problem with what the earlier rows of its subject say; within a subject their order is time.

    Parameters
    ----------
    problem : Problem
    working : Params
        In the coordinates of the problem, S = 1.
    prior : ndarray, shape (N, K)
        Expert probabilities of each subject before her first row.

    Yields
    ------
    rows : ndarray of int
        Rows that have equally many before them.
    seen : Seen
        With these rows.
    """
    rows, factor = problem.experts.rows, working.factor[0]
    for t in range(int(rows.counts.max())):
        who = np.flatnonzero(rows.counts > t)
        here = rows.starts[who] + t
        Z = rows.Z[:, here].T
        if t == 0:
            yield here, Seen(None, factor, Z, np.full(len(who), -1), prior[who])
            continue
        experts = GlmmExperts(rows.take(who).first(t), problem.experts.response, problem.experts.nodes)
        past = posterior_history(Problem(problem.structure, problem.free, experts, problem.W[who]), working)
        yield here, Seen(remember(experts, working), factor, Z, np.arange(len(who)), past.probabilities)


def conditional_variance(e: LinkEstimate, weights: Array, mean: Array, trials: Array) -> Array:
    """Variance of responses around their fitted values, averaged over experts, shape (n,)."""
    eta = e.response.predictor(mean, e.extra, trials)
    return (weights * e.response.variance(eta, e.extra, trials)).sum(axis=0)


def mean_deviance(e: LinkEstimate, weights: Array, mean: Array, out: Outcome) -> Array:
    """Deviance of each response at its fitted value, averaged over experts, shape (n,)."""
    return (weights * e.response.deviance(out, mean, e.extra)).sum(axis=0)
