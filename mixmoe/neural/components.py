"""Variance components and coefficients of a fitted network as named parameters with a covariance, and their number."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag

from mixmoe._typing import Array
from mixmoe.mixture.estimate import Parameter, ParamLayout
from mixmoe.neural.batches import Scaling
from mixmoe.neural.blocks import Tensor, to_array, torch
from mixmoe.neural.estimators.last_layer import (
    each_factor,
    factors_of,
    feature_columns,
    is_exact,
    moments,
)
from mixmoe.neural.estimators.mixed_model import Moments, profile
from mixmoe.neural.estimators.state import information_pieces
from mixmoe.neural.estimators.trained import Problem, Trained, parts_of
from mixmoe.neural.law_parameters import population_errors, population_parameters, population_values
from mixmoe.neural.marginal_likelihood import (
    correlated_pairs,
    correlation,
    is_marginal,
    is_regression,
    linear_names,
    marginal_covariance,
    random_correlations,
    random_map,
    random_parameters,
)
from mixmoe.neural.network import CHAIN, TensorSpec
from mixmoe.neural.person_predictions import MAX_CHAIN, chain_information, ridged_inverse, to_state
from mixmoe.neural.posterior import marginal_information, variance_information

BOUND = 1.0 - 1e-6  # correlations beyond are one
NEGLIGIBLE = 1e-6  # a variance on standardised data that counts as zero


@dataclass(frozen=True, slots=True)
class Estimates:
    """Values and covariance of the parameters of a layout.

    Attributes
    ----------
    values : ndarray, shape (P,)
    covariance : ndarray, shape (P, P)
        NaN where there is no valid standard error.
    zero : tuple of int
        Places of standard deviations that are zero.
    """

    values: Array
    covariance: Array
    zero: tuple[int, ...] = ()


def is_linear(problem: Problem) -> bool:
    """Whether the model is a linear mixed model, reported on the user's scale."""
    return is_exact(problem) and not problem.network.hidden


def build_layout(
    problem: Problem,
    scaling: Scaling,
    names: tuple[str, ...],
    group: str,
    levels: tuple[str, ...],
    gate: tuple[str, ...] = (),
    sigma: tuple[str, ...] = (),
) -> ParamLayout:
    """Names of the reported parameters, those of a mixed model without experts.

    The coefficients of a linear network are the terms of the formula (``age``; of several levels ``age(high)``), person
    effects ``sd(age|id)`` and ``corr(Intercept,age|id)``, of a network with hidden layers ``sd(layer2.bias|id)`` of its
    tensors, and ``sigma`` the residual standard deviation.

    Parameters
    ----------
    scaling : Scaling
        On which it depends whether effects that are independent for the network are so on the user's scale.
    names : tuple of str
        Columns of the expert design.
    group : str
        Column of the persons.
    levels : tuple of str
        Of the response; none if it is a number.
    gate : tuple of str
        Covariates of persons that transitions go with (CRF).
    sigma : tuple of str
        Covariates of the log dispersion.
    """
    parameters, groups = [], (group, *(grouping.name for grouping in problem.further))
    if is_linear(problem):
        parameters += [Parameter(n, "fixed", n) for n in linear_names(names)]
        for part, of in zip(parts_of(problem), groups, strict=True):
            mine = random_names(part, linear_names(names))
            parameters += [Parameter(f"sd({n}|{of})", "random", f"sd({n})", tested=False) for n in mine]
            pairs = zip(*correlated_pairs(part, linear_map(part, scaling)), strict=True)
            parameters += [correlation(mine[i], mine[j], of) for i, j in pairs]
    else:
        moves = [(a, b) for a in levels for b in levels] if problem.family == "crf" else []
        moves = [pair for pair, free in zip(moves, problem.network.free_moves[: len(moves)], strict=True) if free]
        for of in ("", *(f":{name}" for name in gate)):
            cells = [f"transition({a},{b}){of}" for a, b in moves]
            parameters += [Parameter(cell, "other", cell, tested=False) for cell in cells]
        parameters += population_parameters(problem, names, levels, sigma)
        if is_regression(problem):
            parameters += random_parameters(problem, names, levels, group)
        own_moves = [f"transition({a},{b})" for a, b in moves]
        parameters += [
            Parameter(f"sd({name}|{of})", "random", f"sd({name})", tested=False)
            for part, of in zip(parts_of(problem), groups, strict=True)
            for spec in named_tensors(part)
            for name in (own_moves if is_by_move(part, spec) else [spec.name])
        ]
        if is_regression(problem):
            parameters += random_correlations(problem, scaling, names, levels, group)
    if problem.family == "gaussian":
        parameters.append(Parameter("sigma", "residual", "sigma", tested=False))
    if problem.further:  # what tables show must say whose effects these are
        parameters = [replace(p, term=p.name) if p.block == "random" else p for p in parameters]
    return ParamLayout(tuple(parameters))


def named_tensors(problem: Problem) -> tuple[TensorSpec, ...]:
    """Personal tensors that are reported as such: all, or what has no coefficients."""
    tensors = problem.personal.tensors
    return tuple(spec for spec in tensors if not is_regression(problem) or spec.name == "transitions")


def is_by_move(problem: Problem, spec: TensorSpec) -> bool:
    """Whether the spread of a personal tensor is reported by its entries: of transitions with a variance each."""
    return spec.name == "transitions" and problem.cov == "diagonal"


def random_names(problem: Problem, names: tuple[str, ...]) -> list[str]:
    """Coefficients of a linear network that vary between persons, on the user's scale."""
    return [names[k] for k in random_coefficients(problem)]


def random_coefficients(problem: Problem) -> list[int]:
    """Places of these coefficients: the intercept, which every slope of a standardised input moves, and the slopes."""
    width = problem.network.width
    return [0, *(int(k) + 1 for k in feature_columns(problem) if k < width)]


def linear_map(problem: Problem, scaling: Scaling) -> Array:
    """Matrix from a linear network's person effects to those on coefficients on the user's scale, shape (R, q)."""
    return user_map(scaling)[random_coefficients(problem)][:, feature_columns(problem)]


def user_map(scaling: Scaling) -> Array:
    """Matrix from (weights, bias), standardised, to (Intercept, slopes) on the user's scale, shape (p + 1, p + 1)."""
    p = len(scaling.mean)
    T = np.zeros((p + 1, p + 1))
    T[0, :p], T[0, p] = -scaling.mean / scaling.sd, 1.0
    T[1:, :p] = np.diag(1.0 / scaling.sd)
    return T * scaling.y_sd


def estimates(problem: Problem, fit: Trained, scaling: Scaling, *, errors: bool = True) -> Estimates:
    """Reported parameters and their covariance, in the order of `build_layout`.

    Notes
    -----
    Last layer, Gaussian: inverse observed information of the profiled marginal likelihood given the hidden layers.
    Others: inverse expected information of the variances in the linearised model, hidden layers held.
    """
    if "separated" in {flag.code for flag in fit.flags}:  # a likelihood that rises without end has no curvature to tell
        errors = False
    if is_exact(problem):
        return exact_estimates(problem, fit, scaling, errors)
    return laplace_estimates(problem, fit, scaling, errors)


def entries_of(problem: Problem, fit: Trained) -> Tensor:
    """Free entries of the factors L of all groupings of an exact fit, and the log of sigma behind them."""
    sigma = np.sqrt(fit.sigma2)
    loadings = [fit.loading * np.sqrt(fit.s), *(mine.loading for mine in fit.further)]
    free = [free_entries(part, L / sigma) for part, L in zip(parts_of(problem), loadings, strict=True)]
    return torch.cat([*free, problem.tensor([np.log(sigma)])])


def free_entries(problem: Problem, factor: Array) -> Tensor:
    """Free entries of the factor L of one grouping."""
    L = problem.tensor(factor)
    if problem.cov in ("diagonal", "tensor"):
        basis = problem.tensor(np.eye(problem.personal.q) if problem.basis is None else problem.basis)
        return (basis * L).sum(0)[np.unique(problem.group, return_index=True)[1]]
    rows, columns = np.tril_indices(L.shape[0], 0, L.shape[1])
    return L[rows, columns]


def exact_estimates(problem: Problem, fit: Trained, scaling: Scaling, errors: bool) -> Estimates:
    """Parameters of a last-layer mixed model."""
    theta = problem.tensor(fit.theta)
    free = entries_of(problem, fit)
    m = moments(problem, theta)
    report = linear_report(problem, scaling) if is_linear(problem) else tensor_report(problem, scaling)
    values = to_array(report(free))
    p, T = (len(fit.theta), user_map(scaling)) if is_linear(problem) else (0, np.zeros((0, 0)))
    covariance = np.full((p + len(values), p + len(values)), np.nan)
    beta = T @ fit.theta + np.eye(p)[0] * scaling.y_mean if p else np.empty(0)
    if errors:
        covariance[:] = 0.0
        if p:
            inner = profile(m, factors_of(problem, m.plan, free[:-1]), free[-1])
            covariance[:p, :p] = T @ np.linalg.inv(to_array(inner.information)) @ T.T * fit.sigma2
        covariance[p:, p:] = variance_covariance(problem, m, free, report)
    # At a correlation of one, or a standard deviation of zero, no curvature tells an error.
    reach = reach_of(problem, scaling)
    shown = values[: len(reach)]
    zero = p + np.flatnonzero(shown**2 < NEGLIGIBLE * reach**2)
    lost = np.r_[zero, p + np.flatnonzero(np.isnan(reach) & (np.abs(shown) > BOUND))]
    covariance[lost], covariance[:, lost] = np.nan, np.nan
    return Estimates(np.concatenate([beta, values]), covariance, tuple(zero.tolist()))


def reach_of(problem: Problem, scaling: Scaling) -> Array:
    """How large each reported spread of an exact fit is where effects have variance one, NaN of correlations."""
    found: list[float] = []
    for part in parts_of(problem):
        if not is_linear(problem):
            found += [1.0] * len(named_tensors(part))
            continue
        T = linear_map(part, scaling)
        found += [*np.linalg.norm(T, axis=1), *[np.nan] * len(correlated_pairs(part, T)[0])]
    return np.array(found)


def variance_covariance(problem: Problem, m: Moments, free: Tensor, report: Callable[[Tensor], Tensor]) -> Array:
    """Covariance of reported variance parameters by the delta method; NaN on the boundary."""

    def deviance(entries: Tensor) -> Tensor:
        return 0.5 * profile(m, factors_of(problem, m.plan, entries[:-1]), entries[-1]).objective

    hessian = torch.func.jacrev(torch.func.jacrev(deviance))(free)
    jacobian = torch.func.jacrev(report)(free)
    roots = torch.linalg.eigvalsh(hessian)
    if not bool(torch.isfinite(jacobian).all()) or float(roots.min()) < 1e-8 * float(roots.max()):
        return np.full((len(jacobian), len(jacobian)), np.nan)
    return to_array(jacobian @ torch.linalg.solve(hessian, jacobian.T))  # (R, R)


def linear_report(problem: Problem, scaling: Scaling) -> Callable[[Tensor], Tensor]:
    """Function from free entries to standard deviations, correlations and sigma on the user's scale."""
    parts = parts_of(problem)
    maps = [problem.tensor(linear_map(part, scaling)) for part in parts]
    pairs = [correlated_pairs(part, linear_map(part, scaling)) for part in parts]

    def report(free: Tensor) -> Tensor:
        sigma, found = free[-1].exp(), []
        for L, to_user, (rows, cols) in zip(each_factor(problem, free[:-1]), maps, pairs, strict=True):
            mine = to_user @ L * sigma
            covariance = mine @ mine.T
            sd = covariance.diagonal().sqrt()
            found += [sd, covariance[rows, cols] / (sd[rows] * sd[cols])]
        return torch.cat([*found, sigma.unsqueeze(0) * scaling.y_sd])

    return report


def tensor_report(problem: Problem, scaling: Scaling) -> Callable[[Tensor], Tensor]:
    """Function from free entries to the root-mean-square standard deviation of each tensor, and sigma."""
    members = [membership(part) for part in parts_of(problem)]

    def report(free: Tensor) -> Tensor:
        sigma, each = free[-1].exp(), each_factor(problem, free[:-1])
        sds = [(m @ (L * sigma).square().sum(-1)).sqrt() for m, L in zip(members, each, strict=True)]
        return torch.cat([*sds, sigma.unsqueeze(0) * scaling.y_sd])

    return report


def membership(problem: Problem) -> Tensor:
    """Weights that average over the columns of each personal tensor, shape (n_tensors, q)."""
    group = problem.personal.group
    one_hot = (group[None, :] == np.arange(len(problem.personal.tensors))[:, None]).astype(float)
    columns = problem.personal.columns("transitions")
    if columns is not None:
        one_hot[:, columns] *= problem.network.free_moves  # scores that are given are everybody's
    return problem.tensor(one_hot / np.maximum(one_hot.sum(1, keepdims=True), 1.0))


def laplace_estimates(problem: Problem, fit: Trained, scaling: Scaling, errors: bool) -> Estimates:
    """Parameters of a fit by the linearised model."""
    P = problem.network.n_parameters
    whole = marginal_covariance(problem, fit) if errors and is_marginal(problem) else None
    transitions, moved = population_transitions(problem, fit, scaling, errors, None if whole is None else whole[:P, :P])
    values, blocks = [transitions], [moved]
    found = population_values(problem, fit, scaling)
    values.append(found.values)
    known = None if whole is None else whole[:P, :P]
    unknown = np.full((len(found.values), len(found.values)), np.nan)
    blocks.append(population_errors(problem, fit, found, known) if errors else unknown)
    spread = spread_estimates(problem, fit, scaling, errors, None if whole is None else whole[P:, P:])
    return Estimates(np.concatenate([*values, spread.values]), block_diag(*blocks, spread.covariance))


def spread_weights(problem: Problem, fit: Trained, scaling: Scaling) -> Array:
    """Weights of the variances s in the reported ones, shape (R, r): of coefficients, and means over tensors."""
    pooled = to_array(membership(problem))
    rows = [
        np.eye(problem.personal.q)[problem.personal.columns(spec.name)][problem.network.free_moves]
        if is_by_move(problem, spec)
        else pooled[[problem.personal.tensors.index(spec)]]
        for spec in named_tensors(problem)
    ]
    tensors = np.vstack([np.empty((0, problem.personal.q)), *rows]) @ (fit.loading**2)
    if not is_regression(problem):
        return tensors
    return np.vstack([(random_map(problem, scaling) @ fit.loading) ** 2, tensors])


def correlations(problem: Problem, fit: Trained, scaling: Scaling) -> tuple[Array, Array]:
    """Correlations of the coefficients that differ between persons (m,), and their derivatives in s (m, r)."""
    if not is_regression(problem):
        return np.empty(0), np.empty((0, len(fit.s)))
    T = random_map(problem, scaling)
    rows, cols = correlated_pairs(problem, T)
    G = T @ fit.loading
    variance = (G**2) @ fit.s
    size = np.sqrt(np.maximum(variance[rows] * variance[cols], 1e-300))
    found = (G[rows] * G[cols]) @ fit.s / size
    shares = [G[k] ** 2 / np.maximum(variance[k], 1e-300)[:, None] for k in (rows, cols)]
    return found, G[rows] * G[cols] / size[:, None] - 0.5 * found[:, None] * (shares[0] + shares[1])


def spread_estimates(
    problem: Problem, fit: Trained, scaling: Scaling, errors: bool, of_logs: Array | None = None
) -> Estimates:
    """Standard deviations between persons, their correlations, and the residual one behind them (Gaussian).

    Parameters
    ----------
    of_logs : ndarray, shape (G, G), optional
        Covariance of the logarithms of the variances, if it is known; NaN for those that have none.
    """
    weights = spread_weights(problem, fit, scaling)
    sd, (corr, bent) = np.sqrt(weights @ fit.s), correlations(problem, fit, scaling)
    sigma = [] if problem.family != "gaussian" else [np.sqrt(fit.sigma2) * scaling.y_sd]
    size = len(sd) + len(corr) + len(sigma)
    block = np.full((size, size), np.nan)
    if errors and problem.n_effects:
        if of_logs is None:
            found = component_covariance(problem, fit)
        else:  # from logarithms to variances, zero on their bound
            zero = fit.s <= NEGLIGIBLE
            found = of_logs[np.ix_(problem.group, problem.group)] * fit.s * fit.s[:, None]
            found = np.where(zero | zero[:, None], 0.0, found)
        slopes = np.zeros((size, len(found)))
        slopes[: len(sd), : len(fit.s)] = weights / (2.0 * np.maximum(sd, 1e-12))[:, None]
        slopes[len(sd) : len(sd) + len(corr), : len(fit.s)] = bent
        if sigma:
            slopes[-1, -1] = scaling.y_sd / (2.0 * np.sqrt(fit.sigma2))
        block = slopes @ found @ slopes.T
    elif errors and sigma:
        block[-1, -1] = (sigma[0] ** 2) / (2.0 * problem.train.n_rows)
    lost = boundary(sd / np.sqrt(np.maximum(weights.max(axis=1, initial=0.0), 1e-300)), sd, np.diag(block)[: len(sd)])
    block[lost], block[:, lost] = np.nan, np.nan
    return Estimates(np.concatenate([sd, corr, sigma]), block)


def boundary(standard: Array, sd: Array, variance: Array) -> NDArray[np.intp]:
    """Standard deviations that cannot be told from zero: negligible on standardised data, or below their error."""
    return np.flatnonzero((standard**2 < NEGLIGIBLE) | ~(variance < sd**2))


def component_covariance(problem: Problem, fit: Trained) -> Array:
    """Covariance of the variances s, and of the residual variance behind them (Gaussian).

    Returns
    -------
    ndarray, shape (r, r) or (r + 1, r + 1)
        Zero for variances that are negligible.
    """
    info = component_information(problem, fit)
    n_groups = len(info) - 1
    live = np.zeros(n_groups + 1, dtype=bool)
    live[:-1] = [fit.s[problem.group == g].mean() > NEGLIGIBLE for g in range(n_groups)]
    live[-1] = problem.family == "gaussian"
    small = np.zeros_like(info)
    small[np.ix_(live, live)] = np.linalg.pinv(info[np.ix_(live, live)], rcond=1e-12, hermitian=True)
    spread = np.zeros((len(fit.s) + 1, n_groups + 1))
    spread[np.arange(len(fit.s)), problem.group], spread[-1, -1] = 1.0, 1.0
    scale = np.ones(len(fit.s) + 1)
    scale[:-1] = 1.0 / np.maximum(np.linalg.norm(fit.loading, axis=0) ** 2, 1e-300) if fit.loading.size else 1.0
    whole = (spread @ small @ spread.T) * scale[:, None] * scale
    return whole if problem.family == "gaussian" else whole[:-1, :-1]


def component_information(problem: Problem, fit: Trained) -> Array:
    """Expected information of the variances (one per group), and of the residual variance behind them.

    Returns
    -------
    ndarray, shape (G + 1, G + 1)
        The last row and column are zero unless the response is Gaussian.
    """
    group = problem.groups
    size = int(group.max()) + 2
    with torch.no_grad():
        state = to_state(problem, fit)
        info = torch.zeros(size, size, dtype=torch.float64, device=problem.device)
        if problem.family == "gaussian":
            info[-1, -1] = problem.train.n_rows / (2.0 * fit.sigma2**2)
        for H in information_pieces(problem, state):
            M = marginal_information(H, state.s)
            info[:-1, :-1] += variance_information(M, group)
            if problem.family == "gaussian":
                add_residual(info, state.s, H, M, fit.sigma2, group)
    info[-1, :-1] = info[:-1, -1]
    return to_array(info)


def add_residual(info: Tensor, s: Tensor, H: Tensor, M: Tensor, sigma2: float, group: Tensor) -> None:
    """Add some persons' part of ``1/2 tr(V^-1 V^-1 dV_k)`` and ``1/2 tr(V^-2)`` to the last column."""
    shrunk = M * s
    rest = torch.eye(len(s), dtype=s.dtype, device=s.device) - shrunk
    both = (rest @ H @ rest.transpose(-1, -2)).diagonal(dim1=-2, dim2=-1).sum(0) / sigma2
    info[:-1, -1].index_add_(0, group, 0.5 * both)
    trace = (shrunk @ shrunk - 2.0 * shrunk).diagonal(dim1=-2, dim2=-1).sum()
    info[-1, -1] += 0.5 * trace / sigma2**2


def population_transitions(
    problem: Problem, fit: Trained, scaling: Scaling, errors: bool, known: Array | None = None
) -> tuple[Array, Array]:
    """Transition scores where covariates are zero, and what a unit of each of these adds to them.

    Shape (F * (1 + m),) for F scores that are not given, centred unless some are, with their covariance, NaN where
    there is none.

    Parameters
    ----------
    known : ndarray, shape (P, P), optional
        Covariance of the flat parameters, if it need not be computed.
    """
    if problem.family != "crf":
        return np.empty(0), np.empty((0, 0))
    C2, m = problem.network.n_out**2, len(scaling.gate_columns)
    # From (shifts, scores), standardised, to (scores, shifts) on the scale of the covariates.
    onto = np.zeros((1 + m, m + 1))
    onto[0, m], onto[0, :m] = 1.0, -scaling.gate_mean / scaling.gate_sd
    onto[1:, :m] = np.diag(1.0 / scaling.gate_sd)
    free = np.eye(C2)[problem.network.free_moves]
    # A constant added to all scores changes nothing.
    to_user = np.kron(onto, free if problem.network.is_pinned else free - free.sum(0) / len(free))
    values = to_user @ fit.theta[-(1 + m) * C2 :]
    if not errors or (known is None and problem.network.n_parameters > MAX_CHAIN):
        return values, np.full((len(values), len(values)), np.nan)
    whole = chain_covariance(problem, fit) if known is None else known
    tail = whole[-(1 + m) * C2 :, -(1 + m) * C2 :]
    return values, to_user @ tail @ to_user.T


def chain_covariance(problem: Problem, fit: Trained) -> Array:
    """Covariance of the flat parameters of a chain by the linearised model, variances held, shape (P, P)."""
    with torch.no_grad():
        information = chain_information(problem, to_state(problem, fit)).population
    if is_regression(problem):  # what no sequence tells is left out of the values, and need not be held by a prior
        return np.linalg.pinv(to_array(information), rcond=1e-10, hermitian=True)
    return to_array(ridged_inverse(problem, information))


def free_parameters(problem: Problem) -> int:
    """Identified parameters of the network, of the covariance of the effects, and the residual variance."""
    covariances = sum(covariance_parameters(part) for part in parts_of(problem))
    return shared_parameters(problem) + covariances + (problem.family == "gaussian")


def shared_parameters(problem: Problem) -> int:
    """Parameters of the network, without those that no sequence can tell.

    Notes
    -----
    A CRF stays the same if a constant is added to all transition scores, unless some are given, or to all that a
    covariate adds to them, or the same weights to the scores of all states: one direction of each of these, and one per
    input of the last layer and its bias. The last layer of a network of one's own is not known, so that nothing but the
    constants is left out.
    """
    network = problem.network
    if problem.family != "crf":
        return network.n_parameters
    each = int((~network.free_moves).sum()) + (not network.is_pinned)
    lost = sum(each * math.prod(spec.shape[:-2]) for spec in network.tensors if spec.name in CHAIN)
    return network.n_parameters - lost - (network.width + 1 if network.module is None else 0)


def covariance_parameters(problem: Problem) -> int:
    """Free parameters of the covariance of the effects.

    Notes
    -----
    A factor ``L`` with q rows and r columns has ``q r`` entries, of which ``r (r - 1) / 2`` are a rotation that leaves
    ``L L'`` as it is.
    """
    tensors = problem.personal.tensors
    if not tensors:
        return 0
    if problem.cov == "tensor":
        return len(tensors)
    if problem.cov == "diagonal":
        return sum(variances(problem, spec) for spec in tensors)
    q = sum(dimensions(problem, spec) for spec in tensors)
    r = q if problem.rank is None else min(problem.rank, q)
    return q * r - r * (r - 1) // 2


def dimensions(problem: Problem, spec: TensorSpec) -> int:
    """Directions of a tensor's effects that the data can tell."""
    size = len(problem.personal.places(spec))
    if problem.family != "crf":
        return size
    if spec.name == "transitions":
        return int(problem.network.free_moves.sum()) - (not problem.network.is_pinned)
    return size - size // problem.network.n_out if is_emission(problem, spec) else size


def variances(problem: Problem, spec: TensorSpec) -> int:
    """Variances of a tensor's effects that the data can tell, one per effect.

    Notes
    -----
    Effects on the scores of three or more states have a variance each, although their sum is lost; of two states only
    the difference is seen, and with it the sum of the two variances.
    """
    if problem.family == "crf" and spec.name == "transitions":
        return int(problem.network.free_moves.sum())
    size = len(problem.personal.places(spec))
    return size // 2 if is_emission(problem, spec) and problem.network.n_out == 2 else size


def is_emission(problem: Problem, spec: TensorSpec) -> bool:
    """Whether a tensor is of the layer that gives a CRF the scores of its states."""
    network = problem.network
    return problem.family == "crf" and network.module is None and spec.name.startswith(f"layer{network.depth}.")
