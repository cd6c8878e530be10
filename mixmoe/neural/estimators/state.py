"""Steps of a fit on its state: linearisation, posterior modes, marginal likelihood."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize_scalar

from mixmoe.neural.blocks import Block, Blocks, Tensor, torch
from mixmoe.neural.crf import effect_information
from mixmoe.neural.estimators.trained import Problem, block_loss, total_loss
from mixmoe.neural.network import forward, jacobian, transition_scores, view_tensors
from mixmoe.neural.posterior import (
    Shrinkage,
    posterior_covariance,
    shrinkage,
    shrinkage_from_information,
)
from mixmoe.neural.response_law import curvature_root, score

MAX_CELLS = 2_000_000  # numbers in the largest array of one Laplace step: 16 MB
NEAR_CELLS = 250_000  # the same where arrays are gone through several times: 2 MB, which stay in a cache


@dataclass(slots=True)
class State:
    """What changes from step to step.

    Attributes
    ----------
    theta : Tensor, shape (P,)
    loading : Tensor, shape (q, r), or None
        Directions of a low-rank covariance, which the optimiser moves (columns need not have length one), or fixed
        ones of independent effects.
    z : Tensor, shape (N, r)
        Latent effects; the effects themselves without a `loading`.
    s : Tensor, shape (r,)
    sigma2 : Tensor, shape ()
    """

    theta: Tensor
    loading: Tensor | None
    z: Tensor
    s: Tensor
    sigma2: Tensor

    @property
    def trained(self) -> list[Tensor]:
        """Tensors that the optimiser moves."""
        return [t for t in (self.theta, self.loading, self.z) if t is not None and t.numel() and t.requires_grad]

    def copy(self) -> "State":
        """The state as it is now, detached."""
        loading = None if self.loading is None else self.loading.detach().clone()
        return State(self.theta.detach().clone(), loading, self.z.detach().clone(), self.s.clone(), self.sigma2.clone())


def directions(loading: Tensor) -> Tensor:
    """Columns of length one."""
    return loading / loading.norm(dim=0, keepdim=True).clamp_min(1e-12)


def effects(state: State) -> Tensor:
    """Effects of the persons on their parameters, shape (N, q)."""
    return state.z if state.loading is None else state.z @ directions(state.loading).T


def pieces(problem: Problem, block: Block, width: int, most: int = MAX_CELLS) -> list[Block]:
    """A block cut so that `width` numbers per cell are `most` in one step."""
    cells = block.mask.shape[1] * width
    size = max(int(most / max(cells, 1)), 1)
    if size >= len(block.persons):
        return [block]
    cuts, fields = range(0, len(block.persons), size), tuple(Block.__dataclass_fields__)
    return [Block(*(getattr(block, f)[a : a + size] for f in fields)) for a in cuts]


def linearise(problem: Problem, block: Block, state: State) -> tuple[Tensor, Tensor]:
    """Whitened Jacobian and residual of a block of persons.

    Returns
    -------
    A : Tensor, shape (B, T * d, r)
        ``R'J``, derivatives in the latent effects.
    residual : Tensor, shape (B, T * d)
        ``R^-1`` times the score.
    """
    eta = effects(state)[block.persons]
    tensors = view_tensors(problem.network, problem.personal, state.theta, eta)
    outputs = forward(problem.network, tensors, block.x)
    J = jacobian(problem.network, problem.personal, tensors, block.x)
    if state.loading is not None:
        J = J @ directions(state.loading)
    # Effects move the outputs of the layers alone: that is the leading part of the triangular root.
    n = problem.network.n_out
    R = curvature_root(problem.family, outputs, state.sigma2)[..., :n, :n]
    root = block.weights.sqrt()
    u = score(problem.family, outputs, block.y, state.sigma2) * root.unsqueeze(-1)
    if n == 1:  # products of as many matrices of one entry as there are rows take ten times as long
        return (J.squeeze(2) * (R.squeeze(-1) * root.unsqueeze(-1)), (u / R.squeeze(-1)).flatten(1))
    A = R.transpose(-1, -2) @ J * root[..., None, None]
    residual = torch.linalg.solve_triangular(R, u.unsqueeze(-1), upper=False).squeeze(-1)
    return A.flatten(1, 2), residual.flatten(1)


def linearised_pieces(problem: Problem, state: State) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Whitened Jacobian and residual of the training rows, and whose they are, a piece of a block at a time."""
    for whole in problem.train:
        for block in pieces(problem, whole, problem.personal.q * problem.network.n_out, NEAR_CELLS):
            yield (*linearise(problem, block, state), block.persons)


def information_pieces(problem: Problem, state: State) -> Iterator[Tensor]:
    """``A'A`` of the persons, shape (B, r, r), for some of them at a time: that of all would be the largest array."""
    if problem.family == "crf":
        yield crf_information(problem, state)
        return
    for whole in problem.train:
        width = max(problem.personal.q * problem.network.n_out, 4 * problem.n_effects**2 // whole.mask.shape[1])
        for block in pieces(problem, whole, width):
            A = linearise(problem, block, state)[0]
            yield A.transpose(-1, -2) @ A


def crf_information(problem: Problem, state: State) -> Tensor:
    """Second derivatives of the loss in each person's effects, summed over her sequences, shape (N, r, r)."""
    r = state.z.shape[1]
    total = torch.zeros(state.z.shape[0], r, r, dtype=torch.float64, device=state.theta.device)
    moves = problem.personal.columns("transitions") is not None
    n_layers = problem.personal.q - (problem.network.n_out**2 if moves else 0)
    for whole in problem.train:
        for block in pieces(problem, whole, problem.personal.q**2):
            tensors = view_tensors(problem.network, problem.personal, state.theta, effects(state)[block.persons])
            outputs = forward(problem.network, tensors, block.x)
            slopes = jacobian(problem.network, problem.personal, tensors, block.x)[..., :n_layers]
            scores = transition_scores(problem.network, tensors, block.x)
            H = effect_information(outputs, scores, slopes, block.mask, moves, block.y)
            if moves:
                H = without_given_moves(problem, H)
            if state.loading is not None:
                Q = directions(state.loading)
                H = Q.T @ H @ Q
            total.index_add_(0, block.persons, H)
    return positive_part(total) if has_unlabelled(problem) else total


def without_given_moves(problem: Problem, H: Tensor) -> Tensor:
    """Information whose last columns are transition scores, nothing being told of those that are given."""
    if not problem.network.moves:
        return H
    free = torch.ones_like(H[0, 0])
    free[-(problem.network.n_out**2) :] = torch.as_tensor(problem.network.free_moves, device=H.device).double()
    return H * free * free.unsqueeze(-1)


def has_unlabelled(problem: Problem) -> bool:
    """Whether states of the training rows are missing (CRF)."""
    return problem.family == "crf" and any(bool((block.y < 0).any()) for block in problem.train)


def positive_part(H: Tensor) -> Tensor:
    """Symmetric matrices without their negative eigenvalues, shape (..., r, r).

    Where states are missing a loss is not convex: away from its minimum, or for a person who has told little, its
    second derivative may have directions of negative curvature, along which the rows are taken to tell nothing.
    """
    roots, vectors = torch.linalg.eigh(0.5 * (H + H.transpose(-1, -2)))
    return (vectors * roots.clamp_min(0.0).unsqueeze(-2)) @ vectors.transpose(-1, -2)


def information_trace(problem: Problem, state: State) -> float:
    """Information of all rows about the effects of their persons, summed over effects."""
    with torch.no_grad():
        if problem.family == "crf":
            return float(crf_information(problem, state).diagonal(dim1=-2, dim2=-1).sum())
        return sum(float(A.square().sum()) for A, _, _ in linearised_pieces(problem, state))


def person_shrinkage(problem: Problem, state: State) -> Shrinkage:
    """Information about the effects, and log-determinant, both summed over persons, and everyone's mode (N, r).

    The modes are those of the model linearised at the present effects.
    """
    if problem.family == "crf":
        return crf_shrinkage(problem, state)
    information, logdet, mode = (torch.zeros_like(v) for v in (state.s, state.sigma2, state.z))
    with torch.no_grad():
        for A, residual, persons in linearised_pieces(problem, state):
            working = residual + (A @ state.z[persons].unsqueeze(-1)).squeeze(-1)
            found = shrinkage(A, state.s, working)
            information += found.information.sum(0)
            logdet += found.logdet.sum()
            mode[persons] = found.mode
    return Shrinkage(information, logdet, mode)


def crf_shrinkage(problem: Problem, state: State) -> Shrinkage:
    """Shrinkage of persons for a CRF, whose loss is no sum over rows: the moment is ``H z`` less its gradient."""
    with torch.enable_grad():
        z = state.z.detach().clone().requires_grad_(True)
        gradient = torch.autograd.grad(person_loss(problem, replace_effects(state, z)).sum(), z)[0]
    with torch.no_grad():
        H = crf_information(problem, state)
        moment = H @ state.z.unsqueeze(-1) - gradient.unsqueeze(-1)
        found = shrinkage_from_information(H, state.s, moment)
    return Shrinkage(found.information.sum(0), found.logdet.sum(), found.mode)


def person_loss(problem: Problem, state: State) -> Tensor:
    """Loss of the rows of each person, shape (N,)."""
    total, eta = torch.zeros_like(state.z[:, :1]).squeeze(-1), effects(state)
    for block in problem.train:
        total = total.index_add(0, block.persons, block_loss(problem, block, state.theta, eta, state.sigma2))
    return total


def person_objective(problem: Problem, state: State) -> Tensor:
    """Penalised loss of each person, shape (N,)."""
    return person_loss(problem, state) + 0.5 * (state.z.square() / state.s.clamp_min(1e-10)).sum(-1)


def replace_effects(state: State, z: Tensor) -> State:
    """State of a fit with other person effects."""
    return replace(state, z=z)


def gauss_newton(problem: Problem, state: State) -> tuple[Shrinkage, float]:
    """One step of everyone's effects towards their mode, halved for persons whose penalised loss it makes worse.

    Returns
    -------
    Shrinkage
        At the effects before the step.
    float
        Largest move of an effect.
    """
    with torch.no_grad():
        before = person_objective(problem, state)
        found = person_shrinkage(problem, state)
        move = found.mode - state.z
        for _ in range(6):
            worse = person_objective(problem, replace_effects(state, state.z + move)) > before + 1e-9
            if not bool(worse.any()):
                break
            move = torch.where(worse.unsqueeze(-1), 0.5 * move, move)
        state.z += torch.where(worse.unsqueeze(-1), 0.0, move)
        return found, float(move.abs().max())


def settle_effects(problem: Problem, state: State, steps: int = 10, tol: float = 1e-7) -> None:
    """Bring the effects to the mode of their posterior, population parameters and variances held."""
    if not problem.n_effects or not float(state.s.max()) > 0:
        return
    for _ in range(steps):
        if gauss_newton(problem, state)[1] < tol:
            break


def marginal_loglik(problem: Problem, state: State) -> float:
    """Laplace approximation of the marginal log-likelihood at the modes of the effects."""
    with torch.no_grad():
        n = problem.train.n_rows
        constant = 0.5 * n * math.log(2.0 * math.pi * float(state.sigma2)) if problem.family == "gaussian" else 0.0
        if not problem.n_effects:
            return -float(total_loss(problem, problem.train, state.theta, None, state.sigma2)) - constant
        fitted = float(person_objective(problem, state).sum())
        return -fitted - 0.5 * float(person_shrinkage(problem, state).logdet) - constant


def person_information(problem: Problem, state: State) -> Tensor:
    """``A'A`` of every person from the rows of `problem`, shape (N, r, r)."""
    if problem.family == "crf":
        return crf_information(problem, state)
    r = state.z.shape[1]
    total = torch.zeros(state.z.shape[0], r, r, dtype=torch.float64, device=state.theta.device)
    for A, _, persons in linearised_pieces(problem, state):
        total.index_add_(0, persons, A.transpose(-1, -2) @ A)
    return total


def importance_loglik(problem: Problem, state: State, noise: Tensor) -> float:
    """Marginal log-likelihood by importance sampling around the posterior modes.

    Parameters
    ----------
    noise : Tensor, shape (n_draws, N, r)
        Standard normal draws; the same for every state that is compared.
    """
    C = posterior_covariance(person_information(problem, state), state.s)
    jitter = 1e-10 * torch.eye(C.shape[-1], dtype=C.dtype, device=C.device) * state.s.mean()
    root = torch.linalg.cholesky(C + jitter)
    constant = root.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * state.s.clamp_min(1e-10).log().sum()
    trials = state.z + (root @ noise.unsqueeze(-1)).squeeze(-1)
    terms = 0.5 * noise.square().sum(-1) - draw_objectives(problem, state, trials)
    return float((torch.logsumexp(terms, 0) - math.log(len(noise)) + constant).sum())


def draw_objectives(problem: Problem, state: State, trials: Tensor) -> Tensor:
    """Penalised loss of each person at several values of her effects at once.

    Parameters
    ----------
    trials : Tensor, shape (n_draws, N, r)

    Returns
    -------
    Tensor, shape (n_draws, N)

    Notes
    -----
    Persons at another draw are persons of their own, so that a chain's steps are taken for many draws together.
    """
    width = problem.personal.q + problem.network.n_parameters
    cells = sum(block.mask.numel() for block in problem.train) * max(width, 1)
    size = max(MAX_CELLS // max(cells, 1), 1)
    parts = []
    for some in torch.split(trials, size):
        D, N, r = some.shape
        blocks = tuple(repeated(block, D, N) for block in problem.train)
        many = replace(problem, train=Blocks(blocks, D * problem.train.n_rows), n_persons=D * N)
        parts.append(person_objective(many, replace_effects(state, some.reshape(D * N, r))).view(D, N))
    return torch.cat(parts)


def repeated(block: Block, times: int, n_persons: int) -> Block:
    """A block several times over, each time with persons of its own."""
    shift = n_persons * torch.arange(times, device=block.persons.device)
    persons = (block.persons + shift.unsqueeze(-1)).reshape(-1)
    x, y, mask, levels, given, weights = (
        t.repeat(times, *[1] * (t.dim() - 1))
        for t in (block.x, block.y, block.mask, block.levels, block.given, block.weights)
    )
    return Block(persons, x, y, mask, np.tile(block.rows, (times, 1)), levels, given, weights)


def calibrate(problem: Problem, state: State, n_draws: int = 64) -> None:
    """Scale all variances by the factor that maximises the marginal likelihood, effects settled anew.

    The fixed point of the variance updates holds the curvature of the loss still; with categorical responses the
    curvature falls as effects grow, and variances come out too small: on simulated CRFs with standard deviations of .79
    it gives .66, the maximum of the Laplace approximation is at .75, that of importance sampling at .77.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n_draws // 2, *state.z.shape, dtype=torch.float64, generator=generator).to(state.z.device)
    noise = torch.cat([noise, -noise])

    def loss(log_factor: float) -> float:
        trial = replace(state, z=state.z.clone(), s=state.s * math.exp(log_factor))
        settle_effects(problem, trial, steps=4, tol=1e-3)
        with torch.no_grad():
            return -importance_loglik(problem, trial, noise)

    found = minimize_scalar(loss, bounds=(-0.7, 1.1), method="bounded", options={"xatol": 0.03, "maxiter": 10})
    state.s.mul_(math.exp(float(found.x)))
