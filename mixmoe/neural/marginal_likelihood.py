"""Networks without hidden layers are mixed regressions.

Their coefficients, and the maximum of the marginal likelihood.

Coefficients at the mode of the effects are too small, as the mode makes up for each person what the coefficient lacks:
200 persons with five binary rows and an intercept of standard deviation 1.5 have a slope of .855 there and .978 at the
maximum. Where effects are few and the network is linear, the integral over them is cheap, and the fit ends at it.

References
----------
Pinheiro & Bates (1995), Journal of Computational and Graphical Statistics 4, 12-35, section 2.4 (adaptive quadrature);
Breslow & Lin (1995), Biometrika 82, 81-91 (bias of the penalised estimates).
"""

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
from mixmoe.neural.estimators.state import (
    State,
    effects,
    importance_loglik,
    person_information,
    pieces,
    repeated,
    replace_effects,
    settle_effects,
)
from mixmoe.neural.estimators.trained import Control, Problem, Trained, block_loss, block_outputs, ridge
from mixmoe.neural.network import select_personal
from mixmoe.neural.person_predictions import (
    MAX_CHAIN,
    MAX_PARAMETERS,
    chain_information,
    gather,
    population_information,
    to_state,
)
from mixmoe.neural.posterior import mean_outputs, posterior_covariance

MOST_EFFECTS = 6  # per person; of more, points around the mode no longer cover the posterior
NODES = {1: 21, 2: 11, 3: 7}  # per effect
MOST_CELLS = 2_000_000  # rows times points: a fifth of a second or so for an evaluation with its gradient
POINTS = 256  # of a quasi-random rule, for more effects
ROUNDS, STEPS = 8, 60  # of new places of the points, and of a quasi-Newton method within one
FAR = 15.0  # parameters on standardised inputs that are on their way to infinity
SMALL, LARGE = 1e-8, 1e4  # bounds of variances
MOST_SAMPLED, N_DRAWS = 20, 64  # effects that importance sampling copes with, and its draws
NOTICED = 0.05  # share of the last layer that it lacks at the mode of the effects, above which a flag says so
NEAR = 1e-5  # gain of a round, in log-likelihood, at which no other is made
SEPARATED = Flag(
    "separated",
    "inputs or persons separate the levels of the response: the likelihood rises without end with a coefficient "
    "or a variance; estimates are where the penalised fit stopped; leave the term out, or give weight_decay=",
)
UNSETTLED = Flag("not_converged", "the marginal likelihood by quadrature still rose when it was left; give more epochs")


def is_marginal(problem: Problem) -> bool:
    """Whether the fit ends at the maximum of the marginal likelihood: a linear network of categories, few effects.

    And no more rows than can be looked at at all points some hundred times.
    """
    network = problem.network
    linear = network.module is None and not network.hidden and not problem.published
    if not (linear and problem.family in ("binary", "multiclass") and 0 < problem.n_effects <= MOST_EFFECTS):
        return False
    return problem.train.n_rows * len(points(problem.n_effects)[1]) <= MOST_CELLS


@lru_cache
def points(r: int) -> tuple[Array, Array]:
    """Points (D, r) and logarithms of their weights (D,) for integrals over a standard normal distribution."""
    if r not in NODES:
        drawn = norm.ppf(qmc.Sobol(r, scramble=True, rng=np.random.default_rng(0)).random(POINTS))
        return drawn, np.full(POINTS, -np.log(POINTS))
    x, w = np.polynomial.hermite_e.hermegauss(NODES[r])
    grid = np.array(list(product(x, repeat=r)))
    weights = np.array(list(product(np.log(w / w.sum()), repeat=r))).sum(1)
    return grid, weights


@dataclass(frozen=True, slots=True)
class Rule:
    """Where the integrals over the effects are taken.

    Attributes
    ----------
    places : Tensor, shape (D, N, r)
        Effects, spread around each person's mode as her posterior is.
    log_weight : Tensor, shape (D, N)
    """

    places: Tensor
    log_weight: Tensor


def adapted_rule(problem: Problem, state: State) -> Rule:
    """Points around the modes of the effects, which are settled for it."""
    # Nodes are placed around modes: those of the last epoch lag behind the network that has moved since.
    settle_effects(problem, state)
    x, log_w = (problem.tensor(v) for v in points(problem.n_effects))
    with torch.no_grad():
        C = posterior_covariance(person_information(problem, state), state.s)
        # The jitter is relative to the prior variances, so that units of the effects have no part in it.
        root = torch.linalg.cholesky(
            C + 1e-12 * state.s.mean() * torch.eye(len(state.s), dtype=C.dtype, device=C.device)
        )
        logdet = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        # Importance weights: the rule integrates against a normal density, which is divided out again.
        log_weight = (log_w + 0.5 * x.square().sum(-1)).unsqueeze(-1) + logdet
        return Rule(state.z + torch.einsum("nrs,ds->dnr", root, x), log_weight)


def piece_loglik(problem: Problem, piece: Block, rule: Rule, state: State) -> Tensor:
    """Marginal log-likelihood of the persons of a piece of a block, summed."""
    prior = 0.5 * (rule.places[:, piece.persons].square() / state.s).sum(-1) + 0.5 * state.s.log().sum()
    loss = losses_at(problem, piece, rule, state)
    return torch.logsumexp(rule.log_weight[:, piece.persons] - loss - prior, 0).sum()


def losses_at(problem: Problem, piece: Block, rule: Rule, state: State) -> Tensor:
    """Negative log-density of the rows of each person of a piece at her points, shape (D, B)."""
    many, eta = at_points(piece, rule, state)
    return block_loss(problem, many, state.theta, eta, state.sigma2).view(len(rule.places), -1)


def at_points(piece: Block, rule: Rule, state: State) -> tuple[Block, Tensor]:
    """A piece of a block once per point, and the effects (D * B, q) there."""
    D, B = len(rule.places), len(piece.persons)
    own = replace(piece, persons=torch.arange(B, device=piece.persons.device))
    eta = effects(replace_effects(state, rule.places[:, piece.persons].reshape(D * B, -1)))
    return repeated(own, D, B), eta


def rule_pieces(problem: Problem, rule: Rule) -> list[Block]:
    """The rows in pieces whose values at all points fit into the memory of one step."""
    width = len(rule.places) * (problem.network.n_out + problem.personal.q)
    return [piece for block in problem.train for piece in pieces(problem, block, width)]


def moved_state(problem: Problem, state: State, theta: Tensor, log_s: Tensor) -> State:
    """The state at other parameters; `log_s` has an entry per variance of the model."""
    return replace(state, theta=theta, s=log_s.exp()[problem.groups].clamp(SMALL, LARGE))


def first_logs(problem: Problem, state: State) -> Tensor:
    """Logarithms of the variances of the model, shape (G,)."""
    return state.s[np.unique(problem.group, return_index=True)[1]].clamp(SMALL, LARGE).log()


def maximise_marginal(problem: Problem, control: Control, state: State) -> tuple[Flag, ...]:
    """Bring population parameters and variances to the maximum of the marginal likelihood.

    The points stay where they are while a quasi-Newton method climbs, and are placed anew around the modes that belong
    to where it came to.

    Returns
    -------
    tuple of Flag
        None if the maximum was reached; why not otherwise.
    """
    last = -np.inf
    for _ in range(ROUNDS):
        before = state.copy()
        found = climb(problem, control, state, adapted_rule(problem, state))
        # Odds of e^15 are none that data can tell.
        finite = bool(torch.isfinite(state.theta).all() and torch.isfinite(state.s).all())
        if not finite or float(state.theta.abs().max()) >= FAR or float(state.s.max()) >= FAR**2:
            state.theta, state.z, state.s = before.theta, before.z, before.s
            return (SEPARATED,)
        if found - last < NEAR:
            return ()
        last = found
    return (UNSETTLED,)


def climb(problem: Problem, control: Control, state: State, rule: Rule) -> float:
    """Bring a state to the maximum at fixed points; the log-likelihood there."""
    theta = state.theta.detach().clone().requires_grad_(True)
    log_s = first_logs(problem, state).detach().clone().requires_grad_(True)
    parts, n = rule_pieces(problem, rule), problem.train.n_rows
    optimiser = torch.optim.LBFGS(
        [theta, log_s], max_iter=STEPS, history_size=20, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )
    seen = [np.inf]

    def closure() -> Tensor:
        optimiser.zero_grad()
        total = torch.zeros_like(state.sigma2)
        for piece in parts:
            part = -piece_loglik(problem, piece, rule, moved_state(problem, state, theta, log_s)) / n
            part.backward()
            total += part.detach()
        decay = ridge(problem, control, theta) / n
        decay.backward()
        total += decay.detach()
        seen[0] = min(seen[0], float(total))
        return total

    optimiser.step(closure)
    with torch.no_grad():
        now = moved_state(problem, state, theta.detach(), log_s.detach())
        state.theta, state.s = now.theta, now.s
    return -n * seen[0]


def quadrature_loglik(problem: Problem, state: State) -> float:
    """Marginal log-likelihood by adaptive quadrature at the present parameters."""
    rule = adapted_rule(problem, state)
    with torch.no_grad():
        return float(sum(piece_loglik(problem, piece, rule, state) for piece in rule_pieces(problem, rule)))


def marginal_covariance(problem: Problem, fit: Trained) -> Array:
    """Inverse observed information of the population parameters and of the logarithms of the variances.

    Returns
    -------
    ndarray, shape (P + G, P + G)
        NaN for variances on a bound and for directions that the data do not tell.
    """
    state = to_state(problem, fit)
    rule = adapted_rule(problem, state)
    P, log_s = len(state.theta), first_logs(problem, state)
    whole = torch.cat([state.theta, log_s])

    def loss(values: Tensor, piece: Block) -> Tensor:
        return -piece_loglik(problem, piece, rule, moved_state(problem, state, values[:P], values[P:]))

    H = sum(torch.autograd.functional.hessian(lambda v, p=p: loss(v, p), whole) for p in rule_pieces(problem, rule))
    live = np.r_[np.ones(P, dtype=bool), to_array(log_s) > np.log(100.0 * SMALL)]
    out = np.full(H.shape, np.nan)
    information = to_array(H)[np.ix_(live, live)]
    if np.linalg.eigvalsh(information).min() > 1e-10 * np.abs(information).max():
        out[np.ix_(live, live)] = np.linalg.inv(information)
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
        terms = rule.log_weight - 0.5 * (rule.places.square() / state.s).sum(-1)
        for piece in rule_pieces(problem, rule):
            terms[:, piece.persons] -= losses_at(problem, piece, rule, state)
        weights = torch.softmax(terms, 0)  # (D, N)
        parts = []
        for block in (p for whole in rows for p in pieces(problem, whole, len(weights) * (problem.network.n_out + 1))):
            many, eta = at_points(block, rule, state)
            p = mean_outputs(problem.family, block_outputs(problem, many, state.theta, eta)[0])
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
    if problem.family not in ("binary", "multiclass") or problem.published or is_marginal(problem):
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
    """What a reader must know of coefficients of categories that are too small; empty if they are hardly so."""
    share = shrunken_share(problem, fit)
    if share < NOTICED:
        return []
    flag = Flag(
        "penalised_bias",
        f"the population's last layer is that of a penalised likelihood; at the marginal maximum it would be about "
        f"{100.0 * share:.0f} % larger; give fewer personal parameters or more rows per person, or hidden=() with at "
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
    if problem.family in ("gaussian", "binary"):
        return list(terms)
    return [f"{term}({level})" for level in levels[1:] for term in terms]


def coefficient_parameters(problem: Problem, names: tuple[str, ...], levels: tuple[str, ...]) -> list[Parameter]:
    """The coefficients as parameters of a layout."""
    return [Parameter(name, "fixed", name) for name in outcome_names(problem, names, levels)]


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


def coefficients(problem: Problem, fit: Trained, scaling: Scaling) -> Array:
    """Coefficients on the user's scale, shape (R,)."""
    values = coefficient_map(problem, scaling) @ fit.theta
    values[0] += scaling.y_mean
    return values


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


def coefficient_covariance(problem: Problem, fit: Trained, scaling: Scaling) -> Array:
    """Covariance of the coefficients, the effects integrated out and variances held, shape (R, R)."""
    T, limit = coefficient_map(problem, scaling), MAX_CHAIN if problem.family == "crf" else MAX_PARAMETERS
    if problem.network.n_parameters > limit:
        return np.full((len(T), len(T)), np.nan)
    with torch.no_grad():
        state = to_state(problem, fit)
        if problem.family == "crf":
            information = chain_information(problem, state).population
        else:
            C = posterior_covariance(person_information(problem, state), state.s)
            information = population_information(problem, state, C)
    return T @ np.linalg.pinv(to_array(information), rcond=1e-10, hermitian=True) @ T.T
