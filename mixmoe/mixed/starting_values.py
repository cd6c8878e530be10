"""Starting values.

Random partitions, perturbed one-expert fits, splits and merges of a fit, fits with one expert fewer.

No single recipe reaches every optimum. Partitions of the subjects by what the one-expert model cannot explain find
experts that differ in their means; perturbed parameters find those that differ in their covariances; split-and-merge
moves (Ueda, Nakano, Ghahramani & Hinton 2000) leave a local maximum in which one expert covers two groups and two
experts share one.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.mixed.em import em_iterations, expectations, update_means, update_variances
from mixmoe.mixed.likelihood.hessian import observed_information
from mixmoe.mixed.likelihood.observed import (
    ClosedForm,
    Model,
    Problem,
    evaluate,
    subject_logliks,
    subject_scores,
    summed_products,
    summed_squares,
)
from mixmoe.mixed.parameters import Params, Sigma, Structure, free_to_working, working_to_free
from mixmoe.mixture.gate import posterior_probabilities
from mixmoe.numerics.linalg import floored_inverse
from mixmoe.numerics.optimise import MANY_PARAMETERS, Climb, Control, climb

_SOFT = 0.1  # share of a partition that is spread evenly over the experts
_ROUNDS_OF_MEANS = 3  # of K-means, from which a partition starts; it need not converge
_SHELLS = 0.5  # of the cuts are around the centre of an expert
_STEEP = 8.0  # log-odds per standard deviation of the covariates that a corner is cut off with
_TAIL = 0.01  # smallest share of an expert that is cut off it
_LEAST_INFORMATION = 1e-3  # per subject, in working coordinates, that ascents start with
_LEAST_SEPARABLE = 1e-6  # the same of the information itself where levels may be separated: steps along them are long
_FEW_POINTS = 2  # at which the information itself is worth its cost


@dataclass(frozen=True, slots=True)
class OneExpert:
    """The one-expert model of a data set.

    Attributes
    ----------
    params : Params
        With S = K = 1.
    features : ndarray, shape (N, d)
        Whitened scores of the subjects, the directions in which each departs from the one-expert model, and the gate
        covariates; where columns are many also what random effects and dispersions say of each.
    """

    params: Params
    features: Array

    @property
    def sigma(self) -> float:
        """Residual standard deviation of the one-expert model."""
        return float(self.params.sigma[0, 0])


def first_inverse(problem: Problem, theta: Array) -> Array:
    """First approximation of the inverse information at S points, shape (S, P, P), or of its diagonal, (S, P).

    Inverse of the summed outer products of subject scores. Where columns are many, of the information itself at a few
    points, and the diagonal at many.
    """
    if problem.has_many_columns and len(theta) > _FEW_POINTS and theta.shape[1] > MANY_PARAMETERS:
        sizes = np.nan_to_num(summed_squares(problem, theta))
        return 1.0 / np.maximum(sizes, _LEAST_INFORMATION * problem.n_subjects)
    exact = problem.has_many_columns and len(theta) <= _FEW_POINTS
    if exact:
        information = np.array([np.nan_to_num(observed_information(problem, point)) for point in theta])
    else:
        information = summed_products(problem, theta)
    least = least_information(problem) if exact else _LEAST_INFORMATION * problem.n_subjects
    return np.array([floored_inverse(each, least) for each in information])


def least_information(problem: Problem) -> float:
    """Curvature, in working coordinates, below which an information says nothing of how far a step may go."""
    # Levels of normal responses are never separated: there small curvature is that of a point far from a maximum.
    return (_LEAST_INFORMATION if problem.structure.has_sigma else _LEAST_SEPARABLE) * problem.n_subjects


def one_expert_problem(problem: Problem[Model]) -> Problem[Model]:
    """The likelihood of the one-expert model on the same data."""
    sigma: Sigma = "expert" if problem.structure.has_sigma else "none"
    single = replace(problem.structure, n_experts=1, cov_re="expert", residual=sigma)
    return Problem(single, problem.experts, problem.W, restricted=problem.restricted)


def closed_form_problem(problem: Problem, one: Params) -> ClosedForm:
    """The Gaussian problem on which starts are searched: the problem itself, or an approximation near `one`."""
    closed = replace(problem.structure, extras=())
    return Problem(closed, problem.experts.closed_form(one), problem.W, problem.penalty)


def without_extras(params: Params) -> Params:
    """The parameters of the closed form."""
    return replace(params, extra=params.extra[..., :0])


def with_extras(problem: Problem, theta: Array, one: Params) -> Array:
    """Free vectors of `problem`, from those of its closed form, shape (S, P), with further parameters as in `one`."""
    closed = replace(problem.structure, extras=())
    params = free_to_working(closed, theta)
    shape = (*params.sigma.shape, one.extra.shape[-1])
    return working_to_free(problem.structure, replace(params, extra=np.broadcast_to(one.extra, shape)))


def climb_one_expert(alone: Problem, control: Control) -> Climb:
    """Ascent to the maximum of a one-expert problem."""
    guess = alone.experts.first_guess(alone.structure)
    closed = closed_form_problem(alone, guess)
    theta, _ = em_iterations(closed, working_to_free(closed.structure, without_extras(guess)), 1)
    theta = with_extras(alone, theta, guess)
    inverse = first_inverse(alone, theta)
    logarithmic = np.append(alone.free.log_sigma, alone.free.extra)
    return climb(lambda point: evaluate(alone, point), theta, inverse, alone.n_subjects, control, None, logarithmic)


def fit_one_expert(problem: Problem, control: Control) -> OneExpert:
    """The one-expert model with the same designs, the base of all starts."""
    alone = one_expert_problem(problem)
    end = climb_one_expert(alone, control)
    params, scores = free_to_working(alone.structure, end.theta), subject_scores(alone, end.theta[0])
    blocks = [_whitened(scores), _whitened(problem.W)]
    if problem.has_many_columns:
        # Among hundreds of levels no random direction is that in which subjects differ as a whole: what random effects
        # and dispersions say of them weighs as much as all the levels together.
        effects = [there.densities(params).effects().means[0, 0].T for _, there in alone.experts.blocks(1)]
        others = np.delete(scores, alone.free.beta.ravel(), axis=1)
        few = _whitened(np.hstack([np.vstack(effects), others]))
        blocks.append(few * np.sqrt(blocks[0].shape[1] / max(few.shape[1], 1)))
    return OneExpert(params, np.hstack(blocks))


def _whitened(columns: Array) -> Array:
    """Uncorrelated columns of unit variance that span the centred ones."""
    left, size, _ = np.linalg.svd(columns - columns.mean(axis=0), full_matrices=False)
    return left[:, size > 1e-8 * max(size.max(initial=0.0), 1e-300)] * np.sqrt(columns.shape[0])


def random_starts(problem: ClosedForm, one: OneExpert, n: int, n_em: int, rng: np.random.Generator) -> Array:
    """`n` free vectors after a few EM steps, half from partitions and half from perturbed parameters, shape (n, P)."""
    n_partitions = n // 2
    given = np.array([_partition(one.features, problem.structure.n_experts, rng, i) for i in range(n_partitions)])
    parts = [perturbed(problem.structure, one.params, n - n_partitions, rng)]
    if n_partitions:
        base = repeat_expert(problem.structure, one.params, n_partitions)
        parts.insert(0, working_to_free(problem.structure, refit(problem, base, given)))
    theta, _ = em_iterations(problem, np.vstack(parts), n_em)
    return theta


def _partition(features: Array, K: int, rng: np.random.Generator, kind: int) -> Array:
    """Responsibilities, shape (K, N), of a random partition of the feature space."""
    N = features.shape[0]
    if kind % 4 == 0:  # at random
        label = np.asarray(rng.integers(K, size=N))
    elif kind % 4 == 1:  # a few rounds of K-means from random subjects, in directions of random weight
        points = features * rng.exponential(size=features.shape[1])
        centres = points[rng.choice(N, K, replace=False)]
        for _ in range(_ROUNDS_OF_MEANS):
            label = ((points[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
            centres = np.array(
                [points[label == k].mean(axis=0) if (label == k).any() else centres[k] for k in range(K)]
            )
    elif kind % 4 == 2:
        label = _slices(features, K, rng)
    else:  # a small expert of the subjects farthest from the centre, and slices of the others
        distance = ((features * rng.exponential(size=features.shape[1])) ** 2).sum(axis=1)
        far = distance > np.quantile(distance, 1 - np.exp(rng.uniform(np.log(0.01), np.log(0.3))))
        label = np.where(far, 0, _slices(features, K - 1, rng) + 1)
    given = np.full((K, N), _SOFT / K)
    given[label, np.arange(N)] += 1 - _SOFT
    return given


def _slices(features: Array, K: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Labels by cuts across a random direction, of random sizes."""
    direction = rng.normal(size=features.shape[1])
    position = features @ direction + 0.3 * np.linalg.norm(direction) * rng.normal(size=features.shape[0])
    cuts = np.cumsum(rng.dirichlet(np.ones(K)))[:-1]
    return np.searchsorted(np.quantile(position, cuts), position)


def repeat_expert(s: Structure, one: Params, S: int) -> Params:
    """The one-expert parameters for every expert of S starts, without further ones."""
    K, q = s.n_experts, s.n_random
    return Params(
        np.zeros((S, K - 1, s.n_gate)),
        np.broadcast_to(one.beta, (S, K, s.n_columns)).copy(),
        np.broadcast_to(one.factor, (S, K, q, q)).copy(),
        np.broadcast_to(one.sigma, (S, K)).copy(),
        np.zeros((S, K, 0)),
    )


def refit(problem: ClosedForm, params: Params, given: Array) -> Params:
    """Parameters that fit given responsibilities, shape (S, K, N)."""
    for _ in range(2):
        params = update_means(problem, params, expectations(problem, params, given))
        params = update_variances(problem, params, expectations(problem, params, given))
    return params


def perturbed(s: Structure, one: Params, S: int, rng: np.random.Generator) -> Array:
    """Free vectors, shape (S, P), scattered around the one-expert fit on the scale of its random effects."""
    params = repeat_expert(s, one, S)
    K, q = s.n_experts, s.n_random
    spread = np.sqrt(max(float((one.factor**2).sum(axis=-1).max(initial=0.0)), 0.1))
    width = spread * rng.uniform(0.2, 1.2, size=(S, 1, 1))
    beta = params.beta + width * rng.normal(size=params.beta.shape)
    beta[:, :, s.common] = one.beta[:, :, s.common]
    stretch = np.exp(0.7 * rng.normal(size=(S, K, 1, 1)) + 0.5 * rng.normal(size=(S, K, q, 1)))
    sigma = params.sigma * np.exp(0.7 * rng.normal(size=(S, K)) - 0.3)
    gamma = 0.3 * rng.normal(size=params.gamma.shape)
    factor = params.factor * (stretch if s.cov_re != "common" else stretch[:, :1])
    return working_to_free(s, replace(params, gamma=gamma, beta=beta, factor=factor, sigma=sigma))


def scatter(problem: Problem, theta: Array, n: int, rng: np.random.Generator) -> Array:
    """`n` free vectors around one, shape (n, P), farther away in the further parameters."""
    out = theta + 0.3 * rng.normal(size=(n, theta.size))
    further = np.unique(problem.free.extra)
    out[:, further] += rng.normal(size=(n, further.size))
    return out


def split_merge_starts(
    problem: ClosedForm, one: OneExpert, theta: Array, n: int, n_em: int, rng: np.random.Generator
) -> Array:
    """`n` free vectors near the fit `theta`, shape (P,): one expert dissolved, another split in a random direction."""
    s = problem.structure
    params = free_to_working(s, theta[None])
    current = expectations(problem, params).responsibilities[0]  # (K, N)
    given = np.array([_split_merge(current, one.features, rng) for _ in range(n)])
    start = Params(*(np.repeat(part, n, axis=0) for part in parts_of(params)))
    found, _ = em_iterations(problem, working_to_free(s, refit(problem, start, given)), n_em)
    return found


def _split_merge(current: Array, features: Array, rng: np.random.Generator) -> Array:
    K, N = current.shape
    dissolved = int(rng.integers(K))
    others = np.delete(np.arange(K), dissolved)
    given = current.copy()
    rest = current[others] + 1e-10
    given[others] = rest / rest.sum(axis=0)
    split = int(rng.choice(others, p=given[others].sum(axis=1) / N))
    given[dissolved] = given[split] * random_side(given[split], features, rng)
    given[split] -= given[dissolved]
    return given


def random_side(inside: Array, features: Array, rng: np.random.Generator, shells: float = _SHELLS) -> Array:
    """Share of each subject, shape (N,), on one side of a random cut through an expert.

    Across a random direction; or, a share `shells` of the cuts, around the centre, which parts those that are scattered
    widely from those near it: such groups have hardly another mean, and no plane cuts them off.
    """
    if rng.uniform() < shells:
        centre = inside @ features / np.maximum(inside.sum(), 1e-10)
        position = (features - centre) ** 2 @ rng.exponential(size=features.shape[1])
    else:
        position = features @ rng.normal(size=features.shape[1])
    own = position[inside > 0.5]
    share = rng.uniform(0.2, 0.8) if rng.uniform() < 0.5 else np.exp(rng.uniform(np.log(_TAIL), np.log(0.3)))
    cut = np.quantile(own if own.size else position, 1 - share)
    return np.where(position > cut, 1 - _SOFT, _SOFT)


_SPLITS = 4  # of each expert, and corners of the gate's covariates, in fits that are but starting points


def fewer_experts(problem: Problem[Model]) -> Problem[Model]:
    """The likelihood of the model with one expert fewer on the same data."""
    s = problem.structure
    return Problem(replace(s, n_experts=s.n_experts - 1), problem.experts, problem.W, problem.penalty)


def carried_starts(
    problem: Problem, one: OneExpert, smaller: Array, n_em: int, rng: np.random.Generator, n_splits: int = _SPLITS
) -> Array:
    """Free vectors that split the experts of a fit with one expert fewer.

    Parameters
    ----------
    problem : Problem
        With K experts.
    one : OneExpert
    smaller : ndarray, shape (P',)
        Free vector of the fit with K - 1 experts.
    n_em : int
        EM steps of each split.
    rng : numpy.random.Generator
    n_splits : int
        Of each expert.

    Returns
    -------
    ndarray, shape (1 + n_splits (K - 1), P) or (1 + n_splits K, P)
        First the smaller fit itself, written with its largest expert twice, whose log-likelihood no later ascent can
        fall below; then each expert split; then, with covariates in the gate, corners of these as a new expert.
    """
    below = fewer_experts(problem)
    params = free_to_working(below.structure, smaller[None])
    joint = subject_logliks(below, smaller).T
    current = posterior_probabilities(joint, axis=0)  # (K - 1, N)
    doubled = [double_expert(problem, params, k) for k in range(len(current))]
    nested = working_to_free(problem.structure, doubled[int(current.sum(axis=1).argmax())])
    at = np.repeat(np.arange(len(current)), n_splits)
    given = [_split(current, int(k), one.features, rng) for k in at]
    slopes = _corners(problem.W, n_splits, rng)
    if len(slopes):  # a corner of the gate's covariates, whichever experts its subjects belong to
        given += [np.vstack([current * (1 - side), side]) for side in 1.0 * (slopes @ problem.W.T > 0)]
        at = np.append(at, np.full(len(slopes), current.sum(axis=1).argmax()))
    closed = closed_form_problem(problem, one.params)
    parts = zip(*(parts_of(without_extras(doubled[k])) for k in at), strict=True)
    start = refit(closed, Params(*(np.concatenate(part) for part in parts)), np.array(given))
    # With a flat gate the subjects of a corner would disperse before the steps of the gate have found it.
    start.gamma[len(given) - len(slopes) :, -1] = slopes
    found, _ = em_iterations(closed, working_to_free(closed.structure, start), n_em)
    return np.vstack([nested, with_extras(problem, found, one.params)])


def _corners(W: Array, n: int, rng: np.random.Generator) -> Array:
    """Gate coefficients, shape (n', m), that are steep across cuts through the covariates W, (N, m); none without any.

    Both ends of random directions, with shares of the subjects spread evenly on the scale of logarithms.
    """
    points = _whitened(W)
    if not points.shape[1]:
        return np.empty((0, W.shape[1]))
    directions = np.repeat(rng.normal(size=((n + 1) // 2, points.shape[1])), 2, axis=0)[:n]
    directions[1::2] *= -1
    position = points @ (directions / np.linalg.norm(directions, axis=1, keepdims=True)).T  # (N, n)
    each = np.arange(n) // 2
    share = np.exp(
        np.log(_TAIL)
        + np.log(0.5 / _TAIL) * (rng.permutation(each.max() + 1)[each] + rng.uniform(size=n)) / (each.max() + 1)
    )
    cut = np.array([np.quantile(at, 1 - size) for at, size in zip(position.T, share, strict=True)])
    return np.linalg.lstsq(W, _STEEP * (position - cut), rcond=None)[0].T


def parts_of(params: Params) -> tuple[Array, ...]:
    """The arrays of some parameters, in the order of their record."""
    return params.gamma, params.beta, params.factor, params.sigma, params.extra


def double_expert(problem: Problem, params: Params, k: int) -> Params:
    """Parameters in which expert k stands twice, the second time last, each with half of its probability."""
    intercept = np.linalg.lstsq(problem.W, np.ones(problem.n_subjects), rcond=None)[0]
    first = np.zeros((params.beta.shape[0], 1, intercept.size))
    full = np.concatenate([first, params.gamma], axis=1)
    full = np.concatenate([full, full[:, k : k + 1]], axis=1)
    full[:, [k, -1]] -= np.log(2.0) * intercept
    others = (np.concatenate([part, part[:, k : k + 1]], axis=1) for part in parts_of(params)[1:])
    return Params(full[:, 1:] - full[:, :1], *others)


def _split(current: Array, k: int, features: Array, rng: np.random.Generator) -> Array:
    """Responsibilities, shape (K, N), of which part of expert k of K - 1 goes to a new, last expert."""
    given = np.vstack([current, current[k] * random_side(current[k], features, rng)])
    given[k] -= given[-1]
    return given
