"""Networks without hidden layers are mixed regressions.

Their coefficients, and the maximum of the marginal likelihood.

Coefficients at the mode of the effects are too small, as the mode makes up for each person what the coefficient lacks:
200 persons with five binary rows and an intercept of standard deviation 1.5 have a slope of .855 there and .978 at the
maximum; in a set of 40 chains of two states the four scores that a covariate adds were 6 to 26 % too small, and twice
the log-likelihood that it brings 4.0 and not 5.0. Where effects are few and the network is linear, the integral over
them is cheap, and the fit ends at it.

References
----------
Pinheiro & Bates (1995), Journal of Computational and Graphical Statistics 4, 12-35, section 2.4 (adaptive quadrature);
Breslow & Lin (1995), Biometrika 82, 81-91 (bias of the penalised estimates).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import norm, qmc

from mixmoe._typing import Array
from mixmoe.mixture.estimate import Flag, Parameter
from mixmoe.neural.batches import Scaling
from mixmoe.neural.blocks import Block, Blocks, Tensor, to_array, torch
from mixmoe.neural.estimators.last_layer import is_exact
from mixmoe.neural.estimators.mixed_model import identity_like
from mixmoe.neural.estimators.state import (
    State,
    directions,
    effects,
    importance_loglik,
    information_pieces,
    person_information,
    pieces,
    repeated,
    replace_effects,
    settle_effects,
)
from mixmoe.neural.estimators.trained import Control, Problem, Trained, block_loss, block_outputs, ridge
from mixmoe.neural.network import no_clumping
from mixmoe.neural.person_predictions import (
    MAX_CHAIN,
    MAX_PARAMETERS,
    chain_information,
    gather,
    population_information,
    to_state,
)
from mixmoe.neural.personal_layers import select_personal
from mixmoe.neural.posterior import marginal_information, posterior_covariance, variance_information
from mixmoe.neural.response_law import OF_NORMAL, mean_outputs
from mixmoe.numerics.optimise import progress_bar

MOST_EFFECTS = 6  # per person; of more, points around the mode no longer cover the posterior
MOST_OF_CHAINS = 16  # the same for chains, whose posteriors are near to normal ones: four states
NODES = {1: 21, 2: 11, 3: 7}  # per effect
MOST_CELLS = 2_000_000  # rows times points: a fifth of a second or so for an evaluation with its gradient
POINTS = 256  # of a quasi-random rule, for more effects
POINTS_OF_CHAINS, FEWEST_POINTS = 128, 64  # the same, and where there are many rows
COARSE = 32  # points of a rule that leads near the maximum
ROUNDS, STEPS = 8, 60  # of a quasi-Newton method that knows no curvature yet, and its steps
SETTLED = 1e-4  # largest move of an effect at which it is at its mode, while the method climbs
FAR = 15.0  # parameters on standardised inputs that are on their way to infinity
SMALL, LARGE = 1e-8, 1e4  # bounds of variances
MOST_SAMPLED, N_DRAWS = 20, 64  # effects that importance sampling copes with, and its draws
NOTICED = 0.05  # share of the last layer that it lacks at the mode of the effects, above which a flag says so
TOLD = 0.25  # curvature in the logarithm of a variance, below which its standard deviation is less than its error
FLAT = 1e-10  # share of the largest curvature at which a direction has none
NEAR = 1e-5  # gain of a round, in log-likelihood, at which no other is made
SEPARATED = Flag(
    "separated",
    "inputs or persons separate the levels of the response: the likelihood rises without end with a coefficient "
    "or a variance; estimates are where the penalised fit stopped",
    "leave the term out, or give weight_decay=; moves "
    "between states that no sequence makes are ruled out by transitions=",
)
UNSETTLED = Flag(
    "not_converged", "the marginal likelihood by quadrature still rose when it was left", "give more epochs"
)


def is_marginal(problem: Problem) -> bool:
    """Whether the fit ends at the maximum of the marginal likelihood: a linear network of categories, few effects.

    And no more rows than can be looked at at all points some hundred times.
    """
    network = problem.network
    linear = network.module is None and not network.hidden and not problem.published
    if not linear or problem.family == "gaussian":
        return False
    most = MOST_OF_CHAINS if problem.family == "crf" else MOST_EFFECTS
    return 0 < problem.n_effects <= most and cells(problem) * n_points(problem) <= MOST_CELLS


def cells(problem: Problem) -> int:
    """Numbers that one point of the integrals costs: rows, of a chain times the moves between two states."""
    return problem.train.n_rows * (problem.network.n_out**2 if problem.family == "crf" else 1)


def n_points(problem: Problem) -> int:
    """Points of the integrals: a grid's of few effects, else those of a quasi-random rule."""
    r = problem.n_effects
    if r in NODES:
        return NODES[r] ** r
    if problem.family != "crf":
        return POINTS
    return FEWEST_POINTS if cells(problem) * POINTS_OF_CHAINS > MOST_CELLS else POINTS_OF_CHAINS


@lru_cache
def quasi_normal(r: int, size: int) -> Array:
    """Evenly spread points of a standard normal distribution, shape (size, r)."""
    half = norm.ppf(qmc.Sobol(r, scramble=True, seed=np.random.default_rng(0)).random(size // 2))
    drawn = np.concatenate([half, -half])
    # Of mean zero and covariance one, so that their mean is exact for polynomials of degree three.
    return np.linalg.solve(np.linalg.cholesky(drawn.T @ drawn / size), drawn.T).T


@lru_cache
def points(r: int, size: int) -> tuple[Array, Array]:
    """Points (D, r) and logarithms of their weights (D,) for integrals over a standard normal distribution."""
    if r not in NODES:
        return quasi_normal(r, size), np.full(size, -np.log(size))
    x, w = np.polynomial.hermite_e.hermegauss(round(size ** (1.0 / r)))
    grid = np.array(list(product(x, repeat=r)))
    weights = np.array(list(product(np.log(w / w.sum()), repeat=r))).sum(1)
    return grid, weights


@dataclass(frozen=True, slots=True)
class Rule:
    """Where the integrals over the effects are taken.

    Attributes
    ----------
    places : Tensor, shape (D, N, r)
        Effects in standard deviations, spread around each person's mode as her posterior is. They follow the variances:
        at places that do not, the prior's density grows without end at the one nearest to zero as a variance vanishes.
    log_weight : Tensor, shape (D, N)
    """

    places: Tensor
    log_weight: Tensor


def adapted_rule(problem: Problem, state: State, tol: float = 1e-7, size: int | None = None) -> Rule:
    """Points around the modes of the effects, which are settled for it to within `tol`; `size` of them at most."""
    # Nodes are placed around modes: those of the last epoch lag behind the network that has moved since.
    settle_effects(problem, state, tol=tol)
    x, log_w = (problem.tensor(v) for v in points(problem.n_effects, size or n_points(problem)))
    with torch.no_grad():
        sd = state.s.sqrt()
        C = posterior_covariance(person_information(problem, state) * sd * sd.unsqueeze(-1), torch.ones_like(sd))
        root = torch.linalg.cholesky(C + 1e-12 * torch.eye(len(sd), dtype=C.dtype, device=C.device))
        logdet = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        # Importance weights: the rule integrates against a normal density, which is divided out again.
        log_weight = (log_w + 0.5 * x.square().sum(-1)).unsqueeze(-1) + logdet
        return Rule(state.z / sd + torch.einsum("nrs,ds->dnr", root, x), log_weight)


def part_loglik(problem: Problem, part: Sequence[Block], rule: Rule, state: State) -> Tensor:
    """Marginal log-likelihood of the persons of a part of the rows, which holds all that they have, summed."""
    mine, places = torch.unique(torch.cat([piece.persons for piece in part]), return_inverse=True)
    terms, start = (rule.log_weight - 0.5 * rule.places.square().sum(-1))[:, mine], 0
    for piece in part:  # a person may have several sequences
        stop = start + len(piece.persons)
        terms = terms.index_add(1, places[start:stop], -losses_at(problem, piece, rule, state))
        start = stop
    return torch.logsumexp(terms, 0).sum()


def losses_at(problem: Problem, piece: Block, rule: Rule, state: State) -> Tensor:
    """Negative log-density of the rows of each member of a piece at her person's points, shape (D, B)."""
    many, eta = at_points(piece, rule, state)
    return block_loss(problem, many, state.theta, eta, state.sigma2).view(len(rule.places), -1)


def at_points(piece: Block, rule: Rule, state: State) -> tuple[Block, Tensor]:
    """A piece of a block once per point, and the effects (D * B, q) there."""
    D, B = len(rule.places), len(piece.persons)
    own = replace(piece, persons=torch.arange(B, device=piece.persons.device))
    eta = effects(replace_effects(state, rule.places[:, piece.persons].reshape(D * B, -1) * state.s.sqrt()))
    return repeated(own, D, B), eta


def rule_parts(problem: Problem, rule: Rule) -> list[list[Block]]:
    """The rows in pieces whose values at all points fit into the memory of one step, those of a person together."""
    width = len(rule.places) * (problem.network.n_out + problem.personal.q)
    found = [piece for block in problem.train for piece in pieces(problem, block, width)]
    # Members of a chain's blocks are sequences, which stand by their lengths and not by their persons.
    return [found] if problem.family == "crf" else [[piece] for piece in found]


def moved_state(problem: Problem, state: State, theta: Tensor, log_s: Tensor) -> State:
    """The state at other parameters; `log_s` has an entry per variance of the model."""
    return replace(state, theta=theta, s=log_s.exp()[problem.groups].clamp(SMALL, LARGE))


def first_logs(problem: Problem, state: State) -> Tensor:
    """Logarithms of the variances of the model, shape (G,)."""
    return state.s[np.unique(problem.group, return_index=True)[1]].clamp(SMALL, LARGE).log()


def maximise_marginal(problem: Problem, control: Control, state: State) -> tuple[Flag, ...]:
    """Bring population parameters and variances to the maximum of the marginal likelihood.

    The points are placed anew at each evaluation around the modes that belong to it: a method that climbs on points
    that stay finds parameters at which these miss the posteriors. Gradients are those at the points as they are.

    Returns
    -------
    tuple of Flag
        None if the maximum was reached; why not otherwise.
    """
    last = -np.inf
    # Steps cost by the number of points: a coarse rule leads near the maximum of the fine one.
    coarse, fine = COARSE if problem.n_effects <= COARSE // 3 else 2 * COARSE, n_points(problem)
    for size in [coarse] * (fine > 3 * COARSE) + [fine] * ROUNDS:
        before = state.copy()
        found, settled = climb(problem, control, state, size)
        # Odds of e^15 are none that data can tell.
        finite = bool(torch.isfinite(state.theta).all() and torch.isfinite(state.s).all())
        law = problem.network.law  # dispersions of counts that are Poisson ones are large, and no matter
        of_layers = state.theta if law is None else state.theta[: law.start]
        if not finite or float(of_layers.abs().max()) >= FAR or float(state.s.max()) >= FAR**2:
            state.theta, state.z, state.s = before.theta, before.z, before.s
            return (SEPARATED,)
        if size != fine:
            continue
        if settled or found - last < NEAR:
            return ()
        last = found
    return (UNSETTLED,)


def climb(problem: Problem, control: Control, state: State, size: int) -> tuple[float, bool]:
    """Bring a state towards the maximum by quasi-Newton steps, behind a progress bar if one is wanted.

    Parameters
    ----------
    size : int
        Points of the integrals.

    Returns
    -------
    float
        The log-likelihood there.
    bool
        Whether the last step brought next to nothing.
    """
    start, first = state.theta.detach().clone(), first_logs(problem, state).detach().clone()
    # Steps in about standard errors, as a quasi-Newton method that knows no curvature yet takes its first ones alike.
    root, sizes = unit_steps(problem, state)
    moved, logs = (torch.zeros_like(v).requires_grad_(True) for v in (start, first))
    optimiser = torch.optim.LBFGS(
        [moved, logs],
        max_iter=STEPS,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=0.1 * NEAR,
        line_search_fn="strong_wolfe",
    )
    best, point = np.inf, state.copy()
    # As many as the optimiser makes at most by default, five evaluations in four steps.
    bar = progress_bar(STEPS * 5 // 4, f"integrals, {size} points", control.progress)

    def closure() -> Tensor:
        nonlocal best, point
        optimiser.zero_grad()
        bar.update()
        with torch.no_grad():
            now = moved_state(problem, state, start + root @ moved, first + sizes * logs)
            rule = adapted_rule(problem, now, tol=SETTLED, size=size)
            state.z = now.z  # where the next search for modes begins
        total = torch.zeros_like(state.sigma2)
        for part in rule_parts(problem, rule):
            trial = moved_state(problem, state, start + root @ moved, first + sizes * logs)
            loss = -part_loglik(problem, part, rule, trial)
            loss.backward()
            total += loss.detach()
        decay = ridge(problem, control, start + root @ moved)
        decay.backward()
        total += decay.detach()
        if float(total) < best:
            best, point = float(total), now.copy()
        return total

    with bar:
        optimiser.step(closure)
    state.theta, state.z, state.s = point.theta, point.z, point.s
    return -best, optimiser.state[moved]["n_iter"] < STEPS


def unit_steps(problem: Problem, state: State) -> tuple[Tensor, Tensor]:
    """Steps of about a standard error by the linearised model.

    Returns
    -------
    root : Tensor, shape (P, P)
        Columns are steps of the population parameters; of directions that no row tells steps of one.
    sizes : Tensor, shape (G,)
        Steps of the logarithms of the variances.
    """
    with torch.no_grad():
        if state.loading is not None:  # of which the optimiser may have moved the lengths
            state = replace(state, loading=directions(state.loading))
        if problem.family == "crf":
            information = chain_information(problem, state).population
        else:
            C = posterior_covariance(person_information(problem, state), state.s)
            information = population_information(problem, state, C)
        root = torch.linalg.inv(torch.linalg.cholesky(information + identity_like(information))).mT
        told = torch.zeros_like(first_logs(problem, state))
        for H in information_pieces(problem, state):
            told += variance_information(marginal_information(H, state.s), problem.groups).diagonal()
        s = first_logs(problem, state).exp()
        return root, (told * s.square() + 1.0).rsqrt()


def quadrature_loglik(problem: Problem, state: State, size: int | None = None) -> float:
    """Marginal log-likelihood by adaptive quadrature at the present parameters, by `size` points if given."""
    rule = adapted_rule(problem, state, size=size)
    with torch.no_grad():
        return float(sum(part_loglik(problem, part, rule, state) for part in rule_parts(problem, rule)))


def integral_error(problem: Problem, fit: Trained) -> float:
    """What a finer rule changes in the log-likelihood: the order of the error of its integrals.

    Of a grid three more nodes for each effect, of a quasi-random rule four times as many points.
    """
    r, state = problem.n_effects, to_state(problem, fit)
    finer = (NODES[r] + 3) ** r if r in NODES else 4 * n_points(problem)
    return abs(quadrature_loglik(problem, state, finer) - fit.loglik)


def marginal_covariance(problem: Problem, fit: Trained) -> Array:
    """Inverse observed information of the population parameters and of the logarithms of the variances.

    Returns
    -------
    ndarray, shape (P + G, P + G)
        NaN for variances that the data do not tell, and all of it at no maximum. Of a chain a generalised inverse: what
        is the same for all of them has its covariance, and directions that no sequence tells have none.

    Notes
    -----
    Of the logarithms of the variances, population parameters eliminated, directions of little curvature are held: two
    variances of a chain may be told together and not apart, and one that is nearly zero tells nothing of the others.
    """
    state = to_state(problem, fit)
    rule = adapted_rule(problem, state)
    P, log_s = len(state.theta), first_logs(problem, state)
    whole = torch.cat([state.theta, log_s])

    def loss(values: Tensor, part: Sequence[Block]) -> Tensor:
        return -part_loglik(problem, part, rule, moved_state(problem, state, values[:P], values[P:]))

    H = to_array(
        sum(torch.autograd.functional.hessian(lambda v, p=p: loss(v, p), whole) for p in rule_parts(problem, rule))
    )
    out = np.full(H.shape, np.nan)
    roots, vectors = np.linalg.eigh(H[:P, :P])
    flat = problem.family == "crf" or no_clumping(problem.network, fit.theta)
    told = np.abs(roots) > FLAT * np.abs(roots).max() if flat else np.ones(P, dtype=bool)
    if not (roots[told] > FLAT * np.abs(roots).max()).all():
        return out
    held = (vectors[:, told] / roots[told]) @ vectors[:, told].T  # variances held
    live = np.flatnonzero(to_array(log_s) > np.log(100.0 * SMALL))
    cross = held @ H[:P, P + live]
    curvature, directions = np.linalg.eigh(H[np.ix_(P + live, P + live)] - H[P + live, :P] @ cross)
    seen = curvature > TOLD
    spread = (directions[:, seen] / curvature[seen]) @ directions[:, seen].T
    out[:P, :P] = held + cross @ spread @ cross.T
    apart = np.square(directions[:, ~seen]).sum(1) < 0.5  # variances that are mostly told
    places = P + live[apart]
    out[np.ix_(places, places)] = spread[np.ix_(apart, apart)]
    out[:P, places] = -cross @ spread[:, apart]
    out[places, :P] = out[:P, places].T
    return out


def posterior_means(problem: Problem, fit: Trained, z: Array, rows: Blocks) -> Array:
    """Probabilities of rows of known persons, the mean over their posterior, shape (n, C).

    At the mode of the effects probabilities are too far from one half.

    Parameters
    ----------
    problem : Problem
        With the rows from which the effects `z` were estimated.
    rows : Blocks
        Rows to predict.
    """
    state = to_state(problem, fit, z)
    rule = adapted_rule(problem, state)
    with torch.no_grad():
        terms = rule.log_weight - 0.5 * rule.places.square().sum(-1)
        for piece in (p for part in rule_parts(problem, rule) for p in part):
            terms[:, piece.persons] -= losses_at(problem, piece, rule, state)
        weights = torch.softmax(terms, 0)  # (D, N)
        parts = []
        for block in (p for whole in rows for p in pieces(problem, whole, len(weights) * (problem.network.n_out + 1))):
            many, eta = at_points(block, rule, state)
            outputs = block_outputs(problem, many, state.theta, eta)[0]
            p = mean_outputs(problem.family, outputs, problem.network.scores)
            parts.append(
                (block, (weights[:, block.persons, None, None] * p.view(len(weights), -1, *p.shape[1:])).sum(0))
            )
    return gather(rows, parts)


def shrunken_share(problem: Problem, fit: Trained) -> float:
    """By how much the marginal likelihood wants the population's last layer larger, as a share of it.

    Zero where it was not looked for: at the maximum of the marginal likelihood, for numbers and chains, and for more
    effects than importance sampling copes with.

    Notes
    -----
    Penalised estimates of categories make up for each person what the population's coefficients lack. One factor on the
    last layer, by importance sampling around the modes that belong to it, says how much that is.
    """
    if problem.family in ("crf", *OF_NORMAL) or problem.published or is_marginal(problem):
        return 0.0
    if not 0 < problem.n_effects <= MOST_SAMPLED:
        return 0.0
    state, last = to_state(problem, fit), select_personal(problem.network, ["last"]).index
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(N_DRAWS // 2, *state.z.shape, dtype=torch.float64, generator=generator).to(problem.device)
    noise, places = torch.cat([half, -half]), torch.as_tensor(last, device=problem.device)

    def loss(log_factor: float) -> float:
        trial = replace(state, theta=state.theta.clone(), z=state.z.clone())
        trial.theta[places] *= float(np.exp(log_factor))
        settle_effects(problem, trial, steps=4, tol=1e-3)
        with torch.no_grad():
            return -importance_loglik(problem, trial, noise)

    found = minimize_scalar(loss, bounds=(-0.3, 0.7), method="bounded", options={"xatol": 0.01, "maxiter": 10})
    return float(np.exp(found.x)) - 1.0


def shrunken_flags(problem: Problem, fit: Trained) -> list[Flag]:
    """What a reader must know of coefficients that are too small; empty if they are hardly so."""
    share = shrunken_share(problem, fit)
    if share < NOTICED:
        return []
    flag = Flag(
        "penalised_bias",
        f"the population's last layer is that of a penalised likelihood; at the marginal maximum it would be about "
        f"{100.0 * share:.0f} % larger",
        "give fewer personal parameters or more rows per person, or hidden=() with at "
        f"most {MOST_EFFECTS} personal parameters, which is fitted by quadrature",
    )
    return [flag]


def is_regression(problem: Problem) -> bool:
    """Whether the network is a regression whose coefficients come from a linearised fit."""
    network = problem.network
    return network.module is None and not network.hidden and not is_exact(problem)


def linear_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Coefficients of a linear network: the intercept first, as a network always has one."""
    return ("Intercept", *(name for name in names if name != "Intercept"))


def outcome_names(problem: Problem, names: tuple[str, ...], levels: tuple[str, ...]) -> list[str]:
    """Terms of the coefficients: of more than one outcome with the level that is set against the first one."""
    terms = linear_names(names)
    if problem.family not in ("multiclass", "crf"):
        return list(terms)
    return [f"{term}({level})" for level in levels[1:] for term in terms]


def random_parameters(problem: Problem, names: tuple[str, ...], levels: tuple[str, ...], group: str) -> list[Parameter]:
    """Standard deviations of the coefficients that differ between persons."""
    terms = np.array(outcome_names(problem, names, levels), dtype=object)
    mine = terms[random_rows(problem, len(linear_names(names)) - 1)]
    return [Parameter(f"sd({name}|{group})", "random", f"sd({name})", tested=False) for name in mine]


def random_rows(problem: Problem, p: int) -> NDArray[np.intp]:
    """Coefficients that differ between persons: the intercepts alone, or with the slopes, which move them too."""
    columns = [problem.personal.columns(f"layer1.{part}") for part in ("weight", "bias")]
    n_outcomes = max(problem.network.n_out - (problem.family == "crf"), 1)
    every = np.arange(n_outcomes * (p + 1))
    if columns[0] is not None:
        return every
    return every[:: p + 1] if columns[1] is not None else every[:0]


def coefficient_map(problem: Problem, scaling: Scaling) -> Array:
    """Matrix from the flat parameters to the coefficients on the user's scale, shape (R, P).

    Notes
    -----
    Of a CRF the scores of a state less those of the first one, which is what inputs tell.
    """
    network, d = problem.network, problem.network.n_out
    p = network.n_in
    each = np.zeros((d, p + 1, network.n_parameters))
    for k in range(d):
        weights, bias = np.arange(p) * d + k, p * d + k
        each[k, 0, weights], each[k, 0, bias] = -scaling.mean / scaling.sd, 1.0
        each[k, np.arange(1, p + 1), weights] = 1.0 / scaling.sd
    shown = each[1:] - each[:1] if problem.family == "crf" else each
    return scaling.y_sd * shown.reshape(-1, network.n_parameters)


def random_map(problem: Problem, scaling: Scaling) -> Array:
    """Matrix from the effects to those on the coefficients that differ between persons, shape (R, q)."""
    rows = random_rows(problem, problem.network.n_in)
    return coefficient_map(problem, scaling)[rows][:, problem.personal.index]


def random_correlations(
    problem: Problem, scaling: Scaling, names: tuple[str, ...], levels: tuple[str, ...], group: str
) -> list[Parameter]:
    """Correlations of the coefficients that differ between persons, where the model has any."""
    mine = np.array(outcome_names(problem, names, levels), dtype=object)
    mine = mine[random_rows(problem, len(linear_names(names)) - 1)]
    pairs = zip(*correlated_pairs(problem, random_map(problem, scaling)), strict=True)
    return [correlation(mine[i], mine[j], group) for i, j in pairs]


def correlation(a: str, b: str, group: str) -> Parameter:
    """The correlation of the effects on two coefficients; tested by its limits, as it is no regular parameter at 1."""
    return Parameter(f"corr({a},{b}|{group})", "random", f"corr({a},{b})")


def correlated_pairs(problem: Problem, to_user: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Coefficients whose person effects are correlated on the user's scale, as two arrays of places.

    Parameters
    ----------
    to_user : ndarray, shape (R, q)
        From the effects to those on coefficients.

    Notes
    -----
    Without them the printed standard deviations would have another likelihood than the printed one: effects that are
    independent on standardised inputs are not so on the user's, unless the mean of the input is zero, and the scores of
    two states of a chain are both set against the first.
    """
    rows, cols = np.triu_indices(len(to_user), 1)
    if problem.cov not in ("diagonal", "tensor"):
        return rows, cols
    parts = to_user if problem.basis is None else to_user @ problem.basis
    moved = np.abs(parts) > 1e-9 * np.abs(parts).max(axis=1, initial=1e-300, keepdims=True)
    together = (moved[rows] & moved[cols]).any(axis=1)
    return rows[together], cols[together]


def population_covariance(problem: Problem, fit: Trained) -> Array:
    """Covariance of the flat parameters, the effects integrated out and variances held, shape (P, P)."""
    P, limit = problem.network.n_parameters, MAX_CHAIN if problem.family == "crf" else MAX_PARAMETERS
    if limit < P:
        return np.full((P, P), np.nan)
    with torch.no_grad():
        state = to_state(problem, fit)
        if problem.family == "crf":
            information = chain_information(problem, state).population
        else:
            C = posterior_covariance(person_information(problem, state), state.s)
            information = population_information(problem, state, C)
    return np.linalg.pinv(to_array(information), rcond=1e-10, hermitian=True)
