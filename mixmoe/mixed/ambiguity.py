"""Labels of MEMoE experts that the data do not determine between cells of the gate's factors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixmoe.design import Design
from mixmoe.em import EMFit
from mixmoe.inference.cells import Predictor, ambiguity_flag, cheapest_exchange, linked_cells, pairs_of
from mixmoe.kernels.linalg import logsumexp
from mixmoe.mixed.estimate import permute_params
from mixmoe.mixed.likelihood import Problem, subject_logliks
from mixmoe.mixed.structure import Params, Structure, contract, expand

Array = NDArray[np.float64]


def with_label_flag(fit: EMFit, design: Design, problem: Problem, theta: Array, n_sigma: int) -> EMFit:
    """The fit, with a flag if labels could be exchanged within cells at hardly any cost.

    Parameters
    ----------
    fit : EMFit
    design : Design
    problem : Problem
    theta : ndarray, shape (P,)
        Its estimates in working coordinates.
    n_sigma : int
        How many of the further parameters are coefficients of the log standard deviation, v; they come first.

    Returns
    -------
    EMFit

    Notes
    -----
    What experts have beside coefficients and gate (residual deviations, covariances, dispersions) is exchanged with
    them where it is made of cells too. What is not must stay as it is, and the log-likelihood falls by what that costs:
    units of the cell have the parameters of the other expert there.
    """
    s = problem.structure
    if s.n_experts == 1:
        return fit
    cells = _cells(design, s)
    if not cells.any():
        return fit
    here = logsumexp(subject_logliks(problem, theta), axis=1)
    params = expand(s, problem.free, theta[None])
    made_of_cells = _Rest(
        s.cov_re != "proportional" and _of_cells(cells, _random_predictors(design, s)),
        _of_cells(cells, [_sigma_predictor(design, s)]),
        n_sigma,
    )
    exchanged = {}
    for first, second in pairs_of(s.n_experts):
        order = list(range(s.n_experts))
        order[first], order[second] = second, first
        moved = contract(s, _rest_permuted(params, order, made_of_cells))[0]
        exchanged[first, second] = logsumexp(subject_logliks(problem, moved), axis=1)
    found = cheapest_exchange(cells, here, exchanged)
    flag = ambiguity_flag(design, cells, s.n_experts, found, "common({})")
    return fit if flag is None else replace(fit, flags=(*fit.flags, flag))


@dataclass(frozen=True, slots=True)
class _Rest:
    """Whether what experts have beside coefficients and gate can be exchanged within the cells too.

    Attributes
    ----------
    random, sigma : bool
        Covariances of the random effects; residual deviations with their coefficients.
    n_sigma : int
        Coefficients of the log standard deviation among the further parameters.
    """

    random: bool
    sigma: bool
    n_sigma: int


def _cells(design: Design, s: Structure) -> NDArray[np.intp]:
    """Cells of the subjects by gate and own coefficients of the experts, shape (N,)."""
    units = np.arange(design.n_units)
    gate = Predictor(design.gate, units)
    if not linked_cells([gate], design.n_units).any():  # the usual case, at the least cost
        return np.zeros(design.n_units, dtype=np.intp)
    return linked_cells([gate, Predictor(design.expert[:, ~s.common], design.codes)], design.n_units)


def _rest_permuted(params: Params, order: Sequence[int], rest: _Rest) -> Params:
    """Parameters with what is not made of the cells in another order of the experts."""
    other, extra, v = permute_params(params, order), params.extra.copy(), rest.n_sigma
    extra[..., v:] = other.extra[..., v:]
    if not rest.sigma:
        extra[..., :v] = other.extra[..., :v]
    factor = params.factor if rest.random else other.factor
    return replace(params, factor=factor, sigma=params.sigma if rest.sigma else other.sigma, extra=extra)


def _of_cells(cells: NDArray[np.intp], predictors: Sequence[Predictor]) -> bool:
    """Whether predictors link no unit of one cell with a unit of another."""
    if not predictors:
        return True
    n_cells = int(cells.max()) + 1
    members = Predictor(np.eye(n_cells)[cells], np.arange(len(cells)))
    return all(linked_cells([members, one], len(cells)).max() + 1 == n_cells for one in predictors)


def _random_predictors(design: Design, s: Structure) -> list[Predictor]:
    """Columns of the random effects, together where they are correlated."""
    q = s.n_random
    groups = [list(range(q))] if s.correlated else [[j] for j in range(q)]
    return [Predictor(design.random[:, group], design.codes) for group in groups if group]


def _sigma_predictor(design: Design, s: Structure) -> Predictor:
    """Columns of the log standard deviation of which each expert has a coefficient."""
    own = design.sigma[:, ~design.sigma_common]
    level = np.ones((design.n, int(s.residual == "expert")))
    return Predictor(np.hstack([level, own]), design.codes)
