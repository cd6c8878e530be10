"""Predictions of persons known, unknown and adapted, with their uncertainty, on padded blocks."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm

from mixmoe._typing import Array
from mixmoe.neural.blocks import Block, Blocks, Tensor, to_array, to_rows, torch
from mixmoe.neural.crf import clamped, decode, effect_information, marginals
from mixmoe.neural.estimators.state import (
    State,
    directions,
    effects,
    has_unlabelled,
    person_information,
    pieces,
    positive_part,
    settle_effects,
    without_given_moves,
)
from mixmoe.neural.estimators.trained import LAST_VARIANCE, Problem, Trained
from mixmoe.neural.network import CHAIN, forward, jacobian, law_jacobian, transition_scores, view_tensors
from mixmoe.neural.personal_layers import personal_tensors
from mixmoe.neural.posterior import posterior_covariance
from mixmoe.neural.response_law import (
    COUNTS,
    NORMAL_POINTS,
    OF_NORMAL,
    SHARED,
    count_quantile,
    curvature_root,
    mean_outputs,
    mean_slopes,
    response_variance,
)

N_DRAWS = 512
BISECTIONS = 32
MAX_PARAMETERS = 3000  # above, the uncertainty of the population parameters is left out
MAX_CHAIN = 300  # the same for a CRF, whose second derivatives cost a pass over the data per parameter


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted rows on the standardised scale.

    Attributes
    ----------
    mean : ndarray, shape (n, d)
        Mean of the response, or probability of each category.
    variance : ndarray, shape (n, d)
        Of the mean: effects and population parameters; without the noise of a row.
    lower, upper : ndarray, shape (n,), or None
        Limits where the distribution is not normal: of an unknown person's mean or response, of a known person's count.
    noise : ndarray, shape (n,), or None
        Variance of a response around its mean, where it differs between rows.
    """

    mean: Array
    variance: Array
    lower: Array | None = None
    upper: Array | None = None
    noise: Array | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What the limits of an unknown person's predictions are of.

    Attributes
    ----------
    alpha : float
    noise : bool
        Of a new response, instead of its mean.
    population : bool
        Of the mean over the distribution of effects, instead of one person's.
    """

    alpha: float = 0.05
    noise: bool = True
    population: bool = False


def to_state(problem: Problem, fit: Trained, z: Array | None = None) -> State:
    """A fit as tensors, with other effects if given."""
    tensor = problem.tensor
    scale = np.linalg.norm(fit.loading, axis=0) if fit.loading.size else np.ones(fit.loading.shape[1])
    scale = np.where(scale > 0, scale, 1.0)
    identity = fit.loading.shape[0] == fit.loading.shape[1] and np.array_equal(fit.loading, np.eye(len(fit.loading)))
    loading = None if identity else tensor(fit.loading / scale)
    latent = fit.z if z is None else z
    return State(tensor(fit.theta), loading, tensor(latent * scale), tensor(fit.s * scale**2), tensor(fit.sigma2))


def effects_from_rows(problem: Problem, fit: Trained, steps: int = 50) -> Array:
    """Latent effects of the persons of `problem` given her rows, population parameters held, shape (N, r)."""
    state = to_state(problem, fit, np.zeros((problem.n_persons, fit.z.shape[1])))
    settle_effects(problem, state, steps)
    scale = np.linalg.norm(fit.loading, axis=0) if fit.loading.size else np.ones(fit.loading.shape[1])
    return to_array(state.z) / np.where(scale > 0, scale, 1.0)


def whole_jacobian(problem: Problem, block: Block, state: State) -> Tensor:
    """Derivatives of a block's outputs in all parameters, shape (B, T, d, P)."""
    mine = state.z if state.loading is None else state.z @ state.loading.T
    tensors = view_tensors(problem.network, problem.personal, state.theta, mine[block.persons])
    return jacobian_of_all(problem, tensors, block)


def latent_jacobian(problem: Problem, J: Tensor, state: State) -> Tensor:
    """Columns of `whole_jacobian` in the latent effects, shape (B, T, d, r)."""
    personal = J[..., torch.as_tensor(problem.personal.index, device=J.device)]
    return personal if state.loading is None else personal @ state.loading


def population_information(problem: Problem, state: State, C: Tensor) -> Tensor:
    """Information about all population parameters, the effects integrated out, shape (P, P).

    Notes
    -----
    ``sum_i Abar_i'(I - A_i C_i A_i') Abar_i`` with Abar the whitened Jacobian in all parameters and A in the effects.
    """
    P = problem.network.n_parameters
    total = torch.zeros(P, P, dtype=torch.float64, device=state.theta.device)
    for whole in problem.train:
        for block in pieces(problem, whole, 2 * P * problem.network.n_out):
            full, mine = whitened(problem, block, state)
            cross = mine.transpose(-1, -2) @ full
            flat = full.reshape(-1, P)
            total += flat.T @ flat - torch.einsum("brp,brs,bsq->pq", cross, C[block.persons], cross)
    return total


def whitened(problem: Problem, block: Block, state: State) -> tuple[Tensor, Tensor]:
    """Whitened Jacobians of a block in all parameters (B, T d, P) and in the latent effects (B, T d, r)."""
    J = whole_jacobian(problem, block, state)
    mine = state.z if state.loading is None else state.z @ state.loading.T
    tensors = view_tensors(problem.network, problem.personal, state.theta, mine[block.persons])
    R = curvature_root(problem.family, forward(problem.network, tensors, block.x), state.sigma2).transpose(-1, -2)
    R = R * block.weights.sqrt()[..., None, None]
    return (R @ J).flatten(1, 2), (R @ latent_jacobian(problem, J, state)).flatten(1, 2)


def ridged_inverse(problem: Problem, information: Tensor) -> Tensor:
    """Inverse of an information matrix that may have flat directions.

    A network's parameters are not identified one by one; along flat directions the prior of the fit, or where it has
    none that they are of order one (on standardised data), takes the place of the data.
    """
    precision = torch.ones_like(information[0])
    if problem.prior:  # that of hidden layers, and that of the last one, see `prior_of`
        precision *= problem.prior
        precision[problem.network.n_hidden :] = 1.0 / LAST_VARIANCE
    return torch.cholesky_inverse(torch.linalg.cholesky(information + torch.diag(precision)))


@dataclass(frozen=True, slots=True, repr=False)
class Uncertainty:
    """Covariances that predictions of known persons need.

    Attributes
    ----------
    effects : Tensor, shape (N, r, r), or None
        Posterior covariance of the latent effects; None where no variance is wanted.
    population : Tensor, shape (P, P), or None
        Covariance of the population parameters; None if there are too many.
    gain : Tensor, shape (N, r, P), or None
        How far the latent effects follow a change of the population parameters, see `person_gain`; None where it is
        computed for the rows that are predicted.
    """

    effects: Tensor | None
    population: Tensor | None
    gain: Tensor | None = None

    def __repr__(self) -> str:
        shapes = (None if v is None else tuple(v.shape) for v in (self.effects, self.population))
        return "<Covariances: effects {}, population {}>".format(*shapes)


def uncertainty(problem: Problem, fit: Trained, z: Array | None = None, *, population: bool = True) -> Uncertainty:
    """Posterior covariances of the effects, and the covariance of the population parameters if wanted."""
    with torch.no_grad():
        state = to_state(problem, fit, z)
        limit = MAX_CHAIN if problem.family == "crf" else MAX_PARAMETERS
        if problem.family == "crf" and problem.network.n_parameters <= limit:
            found = chain_information(problem, state)
            found_population = ridged_inverse(problem, found.population) if population else None
            return Uncertainty(found.effects, found_population, found.gain)
        C = posterior_covariance(person_information(problem, state), state.s)
        if problem.network.n_parameters > limit or not population:
            return Uncertainty(C, None)
        return Uncertainty(C, ridged_inverse(problem, population_information(problem, state, C)))


@dataclass(frozen=True, slots=True)
class ChainInformation:
    """What the sequences tell about the parameters of a CRF.

    Attributes
    ----------
    effects : Tensor, shape (N, r, r)
        Posterior covariance of the latent effects.
    gain : Tensor, shape (N, r, P)
        As in `Uncertainty`.
    population : Tensor, shape (P, P)
        Information about the population parameters, the effects integrated out.
    """

    effects: Tensor
    gain: Tensor
    population: Tensor


def chain_information(problem: Problem, state: State) -> ChainInformation:
    """Information from the second derivatives in all parameters, emissions linearised in theirs.

    A score that is added wherever a state is entered is, but for the first row of a sequence, one that the emission
    has at this state: with the emission network held, standard errors of transition scores would be far too small.
    """
    P, index = problem.network.n_parameters, torch.as_tensor(problem.personal.index, device=problem.device)
    total = torch.zeros(P, P, dtype=torch.float64, device=problem.device)
    cross = torch.zeros(*state.z.shape, P, dtype=torch.float64, device=problem.device)
    eta = effects(state)
    for whole in problem.train:
        for block in pieces(problem, whole, P * problem.network.n_out**2):
            tensors = view_tensors(problem.network, problem.personal, state.theta, eta[block.persons])
            outputs = forward(problem.network, tensors, block.x)
            scores = transition_scores(problem.network, tensors, block.x)
            first, C2 = min(t.start for t in problem.network.tensors if t.name in CHAIN), problem.network.n_out**2
            slopes = whole_jacobian(problem, block, state)[..., :first]
            H = without_given_moves(problem, effect_information(outputs, scores, slopes, block.mask, True, block.y))
            if first < P - C2:  # what a covariate adds moves the scores of her sequences by as much as it is
                each = block.x[:, 0, problem.network.n_in :]
                eye = torch.eye(C2, dtype=H.dtype, device=H.device)
                onto = torch.einsum("bm,cd->bcmd", each, eye).flatten(2)  # (B, C2, m C2)
                onto = torch.cat([onto, eye.expand(len(each), -1, -1)], dim=-1)
                top = H[:, :first, first:] @ onto
                H = torch.cat(
                    [
                        torch.cat([H[:, :first, :first], top], dim=-1),
                        torch.cat([top.mT, onto.mT @ H[:, first:, first:] @ onto], dim=-1),
                    ],
                    dim=-2,
                )
            rows = H[:, index]
            total += H.sum(0)
            cross.index_add_(0, block.persons, rows if state.loading is None else directions(state.loading).T @ rows)
    H = cross[..., index]
    H = H if state.loading is None else H @ directions(state.loading)
    convex = not has_unlabelled(problem)
    C = posterior_covariance(H if convex else positive_part(H), state.s)
    gain = C @ cross
    population = total - torch.einsum("nrp,nrq->pq", cross, gain)
    return ChainInformation(C, gain, population if convex else positive_part(population))


def person_gain(problem: Problem, state: State, C: Tensor) -> Tensor:
    """How far each person's latent effects follow a change of the population parameters, shape (N, r, P).

    ``C_i A_i' Abar_i``: effects estimated at other population parameters would be smaller by this.
    """
    P = problem.network.n_parameters
    gain = torch.zeros(C.shape[0], C.shape[1], P, dtype=torch.float64, device=state.theta.device)
    for whole in problem.train:
        for block in pieces(problem, whole, 2 * P * problem.network.n_out):
            full, mine = whitened(problem, block, state)
            gain.index_add_(0, block.persons, mine.transpose(-1, -2) @ full)
    return C @ gain


def known_rows(
    problem: Problem, fit: Trained, blocks: Blocks, z: Array, covered: Uncertainty, limits: Limits | None = None
) -> Prediction:
    """Predictions of persons whose effects are estimated.

    Parameters
    ----------
    problem : Problem
        With the rows from which the effects were estimated.
    blocks : Blocks
        Rows to predict.
    z : ndarray, shape (N, r)
    covered : Uncertainty
    limits : Limits, optional
        Of a new response of a family of `mixmoe.responses`, where they are wanted.
    """
    means, variances = [], []
    noise: list[tuple[Block, Tensor]] = []
    ends: list[list[tuple[Block, Tensor]]] = [[], []]
    with torch.no_grad():
        state = to_state(problem, fit, z)
        gain = covered.gain
        if gain is None and covered.population is not None:
            gain = person_gain(problem, state, covered.effects)
        for whole in blocks:
            for block in pieces(problem, whole, 2 * problem.network.n_parameters * problem.network.n_out):
                outputs, cov = block_moments(problem, block, state, covered, gain)
                means.append((block, mean_outputs(problem.family, outputs, problem.network.scores)))
                variances.append((block, spread(problem, outputs, cov)))
                if limits is None:
                    continue
                noise.append((block, response_variance(problem.family, outputs)))
                if problem.family in COUNTS:
                    moved = outputs.unsqueeze(0).repeat(len(NORMAL_POINTS), 1, 1, 1)
                    moved[..., 0] += problem.tensor(NORMAL_POINTS)[:, None, None] * cov[..., 0, 0].clamp_min(0.0).sqrt()
                    for part, level in zip(ends, (limits.alpha / 2.0, 1.0 - limits.alpha / 2.0), strict=True):
                        part.append((block, count_quantile(problem.family, moved, level)))
    found = Prediction(gather(blocks, means), gather(blocks, variances))
    if limits is None:
        return found
    if problem.family in COUNTS:
        found = replace(found, lower=gather(blocks, ends[0]), upper=gather(blocks, ends[1]))
    return replace(found, noise=gather(blocks, noise))


def block_moments(
    problem: Problem, block: Block, state: State, covered: Uncertainty, gain: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, d) and their covariance (B, T, d, d), linearised."""
    mine = state.z if state.loading is None else state.z @ state.loading.T
    tensors = view_tensors(problem.network, problem.personal, state.theta, mine[block.persons])
    outputs = forward(problem.network, tensors, block.x)
    if covered.effects is None:
        return outputs, torch.zeros_like(outputs).unsqueeze(-1).expand(*outputs.shape, outputs.shape[-1])
    J = whole_jacobian(problem, block, state)
    latent = latent_jacobian(problem, J, state)
    cov = latent @ covered.effects[block.persons].unsqueeze(1) @ latent.transpose(-1, -2)
    if covered.population is not None and gain is not None:
        D = J - latent @ gain[block.persons].unsqueeze(1)
        cov = cov + D @ covered.population @ D.transpose(-1, -2)
    return outputs, cov


def spread(problem: Problem, outputs: Tensor, cov: Tensor) -> Tensor:
    """Variance of the means on the response scale from the covariance of the outputs (delta method)."""
    slope = mean_slopes(problem.family, outputs, problem.network.scores)
    return (slope @ cov @ slope.transpose(-1, -2)).diagonal(dim1=-2, dim2=-1)


def gather(blocks: Blocks, parts: list[tuple[Block, Tensor]]) -> Array:
    """Values of cells of (pieces of) blocks in the order of the rows."""
    return to_rows(Blocks(tuple(block for block, _ in parts), blocks.n_rows), [value for _, value in parts])


def widening(fit: Trained) -> float:
    """Factor of the variances for one more person.

    They were estimated from N persons by maximum likelihood, so that those of one more are ``(N + 1) / (N - r)`` of
    them.
    """
    return widening_of(*fit.z.shape)


def widening_of(N: int, r: int) -> float:
    """That of `r` effects of `N` levels."""
    return (N + 1.0) / (N - r) if 2 * r < N else 1.0


def prior_draws(fit: Trained, rng: np.random.Generator, n_draws: int = N_DRAWS) -> Array:
    """Latent effects of unknown persons in antithetic pairs, shape (n_draws, r)."""
    half = rng.standard_normal((n_draws // 2, fit.z.shape[1])) * np.sqrt(fit.s * widening(fit))
    return np.concatenate([half, -half])


@dataclass(frozen=True, slots=True)
class Components:
    """The distribution of the effects of unknown persons as a mixture of normal ones with equal weights.

    Attributes
    ----------
    means : Tensor, shape (M, r)
        In the units of a `State`.
    covariances : Tensor, shape (M, r, r)
    """

    means: Tensor
    covariances: Tensor


def prior_component(problem: Problem, fit: Trained) -> Components:
    """The distribution that the model says, as one component."""
    state = to_state(problem, fit)
    return Components(torch.zeros_like(state.z[:1]), torch.diag(state.s * widening(fit)).unsqueeze(0))


def linear_unknown_rows(
    problem: Problem, fit: Trained, blocks: Blocks, effects: Components, covered: Uncertainty, limits: Limits
) -> Prediction:
    """Predictions of persons never seen where outputs are linear in the effects: a mixture of normal distributions.

    Nothing is drawn: with one component the limits are those of a normal distribution.
    """
    parts: list[list[tuple[Block, Tensor]]] = [[], [], [], []]
    with torch.no_grad():
        state = to_state(problem, fit)
        for block in (piece for whole in blocks for piece in pieces(problem, whole, 2 * len(effects.means))):
            tensors = view_tensors(problem.network, problem.personal, state.theta, None)
            J = latent_jacobian(problem, jacobian_of_all(problem, tensors, block), state)[..., 0, :]  # (B, T, r)
            means = forward(problem.network, tensors, block.x)[..., 0] + torch.einsum("btr,mr->mbt", J, effects.means)
            within = torch.einsum("btr,mrs,bts->mbt", J, effects.covariances, J)
            extra = torch.zeros_like(J[..., :1]) + population_spread(problem, block, state, covered)
            extra = extra[..., 0]
            sd = (within + extra + (fit.sigma2 if limits.noise else 0.0)).sqrt()
            ends = [mixture_quantile(means, sd, level) for level in (limits.alpha / 2.0, 1.0 - limits.alpha / 2.0)]
            variance = extra
            if not limits.population:
                variance = within.mean(0) + means.var(0, correction=0) + extra
            for part, value in zip(parts, (means.mean(0), variance, *ends), strict=True):
                part.append((block, value.unsqueeze(-1)))
    return over_persons(blocks, parts, limits)


def over_persons(blocks: Blocks, parts: list[list[tuple[Block, Tensor]]], limits: Limits) -> Prediction:
    """Means, variances and limits of pieces of blocks; the population's mean has normal limits."""
    mean, variance, lower, upper = (gather(blocks, part) for part in parts)
    if limits.population:
        return Prediction(mean, variance)
    return Prediction(mean, variance, lower[:, 0], upper[:, 0])


def jacobian_of_all(problem: Problem, tensors: list[Tensor], block: Block) -> Tensor:
    """Derivatives of a block's outputs in all parameters, at given ones, shape (B, T, d, P)."""
    found = jacobian(problem.network, personal_tensors(problem.network.tensors), tensors, block.x)
    if problem.network.law is None:
        return found
    return torch.cat([found, law_jacobian(problem.network, block.x)], dim=-2)


def mixture_quantile(means: Tensor, sd: Tensor, level: float) -> Tensor:
    """Quantile of mixtures of normal distributions with equal weights, by bisection.

    Parameters
    ----------
    means, sd : Tensor, shape (M, ...)
        `sd` may be broadcast.
    level : float

    Returns
    -------
    Tensor, shape (...)
    """
    each = means + float(norm.ppf(level)) * sd
    low, high = each.min(0).values, each.max(0).values
    for _ in range(BISECTIONS if len(means) > 1 else 0):
        middle = 0.5 * (low + high)
        under = torch.special.ndtr((middle - means) / sd).mean(0) < level
        low, high = torch.where(under, middle, low), torch.where(under, high, middle)
    return 0.5 * (low + high)


def mixture_draws(fit: Trained, z: Array, C: Array, rng: np.random.Generator, n_draws: int = N_DRAWS) -> Array:
    """Latent effects of unknown persons from the mixture of the known persons' posteriors, shape (n_draws, r).

    One step of EM from the diagonal prior towards the distribution of effects: it has the correlations between effects
    that a diagonal covariance leaves out, and without which intervals of unknown persons were far too wide (97 %
    instead of 90).
    """
    who = rng.permutation(np.arange(n_draws) % len(z))
    roots, vectors = np.linalg.eigh(C)
    half = vectors * np.sqrt(np.maximum(roots, 0.0))[:, None, :]
    return z[who] + np.einsum("nrs,ns->nr", half[who], rng.standard_normal((n_draws, z.shape[1])))


def unknown_rows(
    problem: Problem, fit: Trained, blocks: Blocks, draws: Array, covered: Uncertainty, limits: Limits
) -> Prediction:
    """Predictions of persons never seen: mean, variance and limits over the prior of the effects.

    The uncertainty of the population parameters is that at effects of zero.
    """
    parts: list[list[tuple[Block, Tensor]]] = [[], [], [], []]
    noise: list[tuple[Block, Tensor]] = []
    noisy = limits.noise and problem.family in SHARED
    with torch.no_grad():
        state, eta = to_state(problem, fit), problem.tensor(draws @ fit.loading.T)
        for block in (piece for whole in blocks for piece in pieces(problem, whole, 2 * len(draws))):
            drawn = (draw.expand(len(block.persons), -1) for draw in eta)
            each = (view_tensors(problem.network, problem.personal, state.theta, mine) for mine in drawn)
            if noisy:
                outputs = torch.stack([forward(problem.network, tensors, block.x) for tensors in each])
                values = mean_outputs(problem.family, outputs)
                noise.append((block, response_variance(problem.family, outputs).mean(0)))
            else:
                outputs, values = None, torch.stack([block_means(problem, block, tensors) for tensors in each])
            mean, between = values.mean(0), values.var(0, correction=0)
            extra = population_spread(problem, block, state, covered, mean)
            variance = 0.0 * mean + extra if limits.population else between + extra
            found = (mean, variance, *draw_limits(problem, fit, values, extra, limits, outputs))
            for part, value in zip(parts, found, strict=True):
                part.append((block, value))
    predicted = over_persons(blocks, parts, limits)
    return replace(predicted, noise=gather(blocks, noise)) if noisy else predicted


def draw_limits(
    problem: Problem, fit: Trained, values: Tensor, extra: Tensor | float, limits: Limits, outputs: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Limits of a new response or its mean (numbers), or of a person's probability, from draws; each (B, T, d).

    Parameters
    ----------
    outputs : Tensor, shape (n_draws, B, T, d), or None
        Where limits of a new response are wanted and its law has more than a mean.
    """
    low, high = limits.alpha / 2.0, 1.0 - limits.alpha / 2.0
    noise: Tensor | float = fit.sigma2 if limits.noise and problem.family == "gaussian" else 0.0
    if outputs is not None and problem.family in COUNTS:
        first, last = (count_quantile(problem.family, outputs, level).unsqueeze(-1) for level in (low, high))
        return first, last
    if outputs is not None:
        noise = response_variance(problem.family, outputs).unsqueeze(-1)
    sd = (torch.zeros_like(values[:1]) + extra + noise).sqrt()
    if problem.family in OF_NORMAL and bool((sd > 0).all()):
        return mixture_quantile(values, sd, low), mixture_quantile(values, sd, high)
    ends = torch.quantile(values, problem.tensor([low, high]), dim=0)
    return ends[0], ends[1]


def block_means(problem: Problem, block: Block, tensors: list[Tensor]) -> Tensor:
    """Means on the response scale; marginal state probabilities for a CRF."""
    outputs = forward(problem.network, tensors, block.x)
    if problem.family == "crf":
        return marginals(outputs, transition_scores(problem.network, tensors, block.x), block.mask)
    return mean_outputs(problem.family, outputs, problem.network.scores)


def population_spread(
    problem: Problem, block: Block, state: State, covered: Uncertainty, mean: Tensor | None = None
) -> Tensor | float:
    """Variance of the population prediction from that of the population parameters; none for a CRF's marginals.

    At effects of zero; of counts that of their `mean` over the effects (B, T, 1), which is so many times larger.
    """
    if covered.population is None or problem.family == "crf":
        return 0.0
    tensors = view_tensors(problem.network, problem.personal, state.theta, None)
    outputs = forward(problem.network, tensors, block.x)
    J = jacobian_of_all(problem, tensors, block)
    found = spread(problem, outputs, J @ covered.population @ J.transpose(-1, -2))
    if problem.family in COUNTS and mean is not None:
        found = found * (mean / mean_outputs(problem.family, outputs)).square()
    return found


def crf_rows(problem: Problem, fit: Trained, blocks: Blocks, z: Array, *, states: bool, given: bool = False) -> Array:
    """State probabilities (n, C) of known persons, or their most probable state sequence (n,).

    Parameters
    ----------
    given : bool
        Whether rows of the blocks have states that are known, those with codes of zero and more.
    """
    parts = []
    with torch.no_grad():
        state = to_state(problem, fit, z)
        eta = state.z if state.loading is None else state.z @ state.loading.T
        for block in blocks:
            tensors = view_tensors(problem.network, problem.personal, state.theta, eta[block.persons])
            outputs = forward(problem.network, tensors, block.x)
            outputs = clamped(outputs, block.y) if given else outputs
            found = decode if states else marginals
            scores = transition_scores(problem.network, tensors, block.x)
            parts.append((block, found(outputs, scores, block.mask)))
    return gather(blocks, parts)


def normal_limits(mean: Array, variance: Array, alpha: float) -> tuple[Array, Array]:
    """Limits of a normal interval of level ``1 - alpha``."""
    half = norm.ppf(1.0 - alpha / 2.0) * np.sqrt(np.maximum(variance, 0.0))
    return mean - half, mean + half
