"""Small problems of every response family, and their likelihood by brute force."""

from itertools import product

import numpy as np

from mixmoe.mixed.likelihood.columns import Columns
from mixmoe.mixed.likelihood.further_parameters import dispersion
from mixmoe.mixed.likelihood.glmm import GlmmExperts, build_nodes
from mixmoe.mixed.likelihood.modes import FamilyResponse, Rows
from mixmoe.mixed.likelihood.observed import Problem, evaluate
from mixmoe.mixed.parameters import Structure, free_to_working
from mixmoe.mixed.zero_inflation import ZeroInflatedResponse, certain_zeros
from mixmoe.responses.distribution import Outcome
from mixmoe.responses.exponential import family_named
from mixmoe.responses.zero_inflated import ZeroInflated

DRAWS = {
    "gaussian": lambda rng, n: rng.normal(size=n),
    "binomial": lambda rng, n: rng.integers(0, 4, n) * 1.0,
    "poisson": lambda rng, n: rng.poisson(2, n) * 1.0,
    "negbinomial": lambda rng, n: rng.poisson(2, n) * 1.0,
    "zipoisson": lambda rng, n: rng.poisson(2, n) * (rng.uniform(size=n) < 0.7),
    "zinegbinomial": lambda rng, n: rng.poisson(2, n) * (rng.uniform(size=n) < 0.7),
    "gamma": lambda rng, n: rng.gamma(2.0, size=n),
    "beta": lambda rng, n: rng.beta(2.0, 2.0, size=n),
}


def problem(name, n_subjects=30, q=2, n_quad=1, weights=False, common=True, seed=0, correlated=True):
    """A mixture of two experts; subjects have one to six rows."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 7, n_subjects)
    starts, n = np.cumsum(counts) - counts, int(counts.sum())
    X = np.column_stack([np.ones(n), rng.normal(size=n), rng.normal(size=n)])
    family, y = family_named(name, tuple(DRAWS)), DRAWS[name](rng, n)
    trials = np.full(n, 3.0) if name == "binomial" else np.ones(n)
    rows = Rows(
        Outcome(y, trials, family.constant(y, trials)),
        0.1 * rng.normal(size=n),
        rng.uniform(0.5, 2.0, n) if weights else None,
        Columns(X.T),
        np.ascontiguousarray(X[:, :q].T),
        starts,
        counts,
    )
    response = response_of(family)
    shared = np.array([False, common, False])
    s = Structure(2, 2, shared, q, correlated, "expert", "none", response.extras)
    W = np.column_stack([np.ones(n_subjects), rng.normal(size=n_subjects)])
    return Problem(s, GlmmExperts(rows, response, build_nodes(n_quad, q)), W)


def response_of(family):
    """A family with all further parameters of each expert's own."""
    if not isinstance(family, ZeroInflated):
        return FamilyResponse(family, (dispersion("d", own=True),) if family.has_dispersion else ())
    of_counts = (dispersion("d", own=True),) if family.base.has_dispersion else ()
    return ZeroInflatedResponse(family, (*of_counts, certain_zeros(own=True)))


def numeric_score(p, theta, step=1e-5):
    """Central differences of the log-likelihood, shape (S, P)."""
    out = np.zeros_like(theta)
    for j in range(theta.shape[1]):
        d = np.zeros(theta.shape[1])
        d[j] = step
        out[:, j] = (evaluate(p, theta + d).loglik - evaluate(p, theta - d).loglik) / (2 * step)
    return out


def brute_force(p, theta, n_points=60):
    """Log density of each subject under each expert, (N, K), on a fixed grid of Gauss-Hermite points."""
    rows, params = p.experts.rows, free_to_working(p.structure, theta[None])
    q, K = len(rows.Z), p.structure.n_experts
    x, w = np.polynomial.hermite_e.hermegauss(n_points)
    w = w / w.sum()
    out = np.empty((rows.n_subjects, K))
    for i, k in product(range(rows.n_subjects), range(K)):
        mine = slice(rows.starts[i], rows.starts[i] + rows.counts[i])
        total = 0.0
        for at in product(range(n_points), repeat=q):
            b = params.factor[0, k] @ x[list(at)]
            eta = rows.X.dense[:, mine].T @ params.beta[0, k] + rows.offset[mine] + rows.Z[:, mine].T @ b
            density = p.experts.response.log_density(rows.outcome.take(mine), eta[None], params.extra[0, [k]])[0]
            total += np.prod(w[list(at)]) * np.exp(density.sum())
        out[i, k] = np.log(total)
    return out
