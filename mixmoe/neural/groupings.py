"""Several groupings of the rows: which level each row belongs to, and predictions by what is known of its levels.

Sources
-------
Bates, Maechler, Bolker & Walker (2015), Journal of Statistical Software 67(1), section 2 (crossed and nested
groupings).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array, IntArray
from mixmoe.design.design import Design
from mixmoe.design.formula import MoEFormula, RandomTerm
from mixmoe.design.frame import units_of, view
from mixmoe.errors import DesignError, FormulaError
from mixmoe.neural.blocks import Block, Blocks, Tensor, build_blocks, to_array, to_rows, torch
from mixmoe.neural.components import entries_of
from mixmoe.neural.estimators.last_layer import (
    by_level,
    factors_of,
    hidden_of,
    is_exact,
    moments,
    plan_of,
)
from mixmoe.neural.estimators.mixed_model import (
    Factors,
    Latent,
    Moments,
    Plan,
    Profile,
    own_inverse,
    own_on_border,
    posterior_means,
    profile,
    row_columns,
    solve_latent,
)
from mixmoe.neural.estimators.trained import Estimator, Problem, Trained, parts_of
from mixmoe.neural.network import jacobian, view_tensors
from mixmoe.neural.person_predictions import (
    MAX_PARAMETERS,
    Prediction,
    Uncertainty,
    known_rows,
    ridged_inverse,
    widening_of,
)
from mixmoe.neural.personal_layers import personal_entries, personal_tensors
from mixmoe.output.predictions import known_places

MOST_CELLS = 4_000_000  # numbers in the largest array of one step
MOST_NUMBERS = 20_000_000  # latent effects times population parameters for whose covariance there is room
MOST_CROSSED = 4000  # effects of crossed groupings, whose covariance is a dense matrix


@dataclass(frozen=True, slots=True)
class Levels:
    """The levels of a further grouping.

    Attributes
    ----------
    term : RandomTerm
    labels : ndarray of object, shape (N,)
        Of a column its own labels, of combinations texts such as ``3:a``.
    parts : tuple of ndarray of object
        Labels of each column.
    places : ndarray of int, shape (N, n_columns)
        Label of each column that a level has.
    """

    term: RandomTerm
    labels: NDArray[np.object_]
    parts: tuple[NDArray[np.object_], ...]
    places: IntArray


def largest_first(formula: MoEFormula, data: Any) -> MoEFormula:
    """The formula with the column of most levels as its first grouping: the effects of the others are fewer.

    Which is first says what units are; the model is the same.
    """
    if not formula.further or formula.random is None:
        return formula
    frame, terms = view(data), [formula.random, *formula.further]
    counts = [frame.column(t.group).nunique() if not t.within and t.group in frame else -1 for t in terms]
    first = int(np.argmax(counts))
    return replace(formula, random=terms[first], further=tuple(t for k, t in enumerate(terms) if k != first))


def layer_names(term: RandomTerm | None) -> list[str]:
    """Names left of a bar in ``re:``; none for a generic network."""
    if term is None or term.design.strip() == "0":
        return []
    words = [word.strip().strip("`") for word in re.split(r"\+(?![^\[]*\])", term.design)]
    return [word for word in words if word]


def check_last_only(parts: Sequence[Problem], formula: MoEFormula, estimator: Estimator) -> None:
    """Refuse several groupings where the likelihood is not that of a linear mixed model given the features.

    Raises
    ------
    FormulaError
    """
    if estimator == "laplace" and all(is_exact(part) for part in parts):
        return
    family = parts[0].family
    why = "effects on other layers than the last one"
    if estimator != "laplace":
        why = f"estimator={estimator!r}"
    elif parts[0].network.module is not None:
        why = "a network of your own"
    elif family != "gaussian":
        why = f"family={family!r}"
    raise FormulaError(
        f"several groupings are for effects on the last layer of a Gaussian response, whose likelihood is exact, not "
        f"for {why}; write last, or last[1] for its intercept alone, in each bracket of re:, or keep one grouping",
        formula.text,
        formula.text.find("re:"),
        3,
    )


def levels_of(design: Design, *, checked: bool = True) -> tuple[Levels, ...]:
    """The levels of the further groupings of a design.

    Parameters
    ----------
    checked : bool
        Whether groupings that tell nothing are refused.

    Raises
    ------
    DesignError
        If a grouping has one level, a level per row, or the same rows together as another.
    """
    found, seen = [], {str(design.names.group): design.codes}
    for term in design.formula.further:
        units = [units_of(design.frame[column]) for column in term.columns]
        places, codes = np.unique(np.column_stack([u.codes for u in units]), axis=0, return_inverse=True)
        parts = tuple(u.labels for u in units)
        labels = parts[0]
        if term.within:
            texts = [":".join(str(part[k]) for part, k in zip(parts, row, strict=True)) for row in places]
            labels = np.array(texts, dtype=object)
        if checked:
            check_grouping(term.name, codes.reshape(-1), seen)
        seen[term.name] = codes.reshape(-1)
        found.append(Levels(term, labels, parts, places.astype(np.intp)))
    return tuple(found)


def check_grouping(name: str, codes: IntArray, others: dict[str, IntArray]) -> None:
    """Refuse a grouping that tells nothing.

    Raises
    ------
    DesignError
    """
    count = int(codes.max()) + 1
    if count < 2:
        raise DesignError(f"the grouping {name!r} has one level, so that nothing tells how levels differ; leave it out")
    if count == len(codes):
        raise DesignError(
            f"the grouping {name!r} has a level for each of {count} rows, which is the noise; leave it out"
        )
    for other, theirs in others.items():
        pairs = len(np.unique(np.column_stack([codes, theirs]), axis=0))
        if pairs == count == int(theirs.max()) + 1:
            raise DesignError(
                f"the groupings {other!r} and {name!r} have the same rows together, so that their effects cannot be "
                "told apart; leave one of them out"
            )


def level_codes(levels: Sequence[Levels], design: Design, own: bool = True) -> IntArray:
    """Level of each row in each further grouping, -1 for unknown ones, all of them if not `own`; shape (n, G).

    Raises
    ------
    DesignError
        If a column is missing although it matters, or a label is of another type than in the fit.
    """
    out = np.full((design.n, len(levels)), -1, dtype=np.intp)
    for g, known in enumerate(levels if own else ()):
        absent = next((column for column in known.term.columns if column not in design.frame), None)
        if absent is not None:
            raise DesignError(
                f"the column {absent!r} of the grouping {known.term.name!r} is missing, so that nothing says which "
                f"level these rows belong to; for one never seen give a label that the fit has not, as "
                f"data.assign({absent}=...)"
            )
        columns = []
        for column, part in zip(known.term.columns, known.parts, strict=True):
            units = units_of(design.frame[column])
            columns.append(known_places(units.labels, part, column)[units.codes])
        places = np.column_stack(columns)
        code = {tuple(row): k for k, row in enumerate(known.places.tolist())}
        out[:, g] = [code.get(tuple(row), -1) for row in places.tolist()]
    return out


def check_crossed(problem: Problem) -> None:
    """Refuse more crossed effects than a dense matrix can hold.

    Raises
    ------
    DesignError
    """
    plan = plan_of(problem)
    if plan.n_border > MOST_CROSSED:
        names = ", ".join(repr(problem.further[g].name) for g in plan.places[len(plan.nested) :])
        raise DesignError(
            f"{names} and the largest grouping are crossed, and have {plan.n_border} effects beside those of the "
            f"largest one; at most {MOST_CROSSED} are possible, as their covariance is a dense matrix; give them fewer "
            "columns, as last[1] for an intercept"
        )


@dataclass(frozen=True, slots=True)
class Joint:
    """The effects of all groupings given the rows of a problem, at the parameters of a fit.

    Attributes
    ----------
    moments : Moments
    profile : Profile
    factors : Factors
    """

    moments: Moments
    profile: Profile
    factors: Factors


def joint_of(problem: Problem, fit: Trained) -> Joint:
    """The effects of all groupings given the rows of `problem`."""
    free = entries_of(problem, fit)
    m = moments(problem, problem.tensor(fit.theta))
    factors = factors_of(problem, m.plan, free[:-1])
    return Joint(m, profile(m, factors, free[-1]), factors)


def estimated_effects(problem: Problem, fit: Trained) -> list[Array]:
    """Latent effects of each grouping given the rows of `problem`, shape (N_g, r_g), that by persons first."""
    with torch.no_grad():
        joint, beta = joint_of(problem, fit), problem.tensor(fit.theta)[problem.network.tensors[-2].start :]
        found = posterior_means(joint.moments, joint.profile, beta)
        return [to_array(u) / np.sqrt(fit.sigma2) for u in by_level(problem, joint.moments.plan, found)]


def loglik_at(problem: Problem, fit: Trained) -> float:
    """Marginal log-likelihood of the rows of `problem` at all parameters of a fit."""
    with torch.no_grad():
        joint, beta = joint_of(problem, fit), problem.tensor(fit.theta)[problem.network.tensors[-2].start :]
        free = replace(joint.moments, ridge=0.0, wide=0.0, prior=0.0)
        best = profile(free, joint.factors, problem.tensor(0.5 * np.log(fit.sigma2)))
        away = beta - best.beta
        return -0.5 * float(best.deviance + away @ best.information @ away / fit.sigma2)


@dataclass(frozen=True, slots=True)
class Combinations:
    """Which levels of all groupings rows have, and their rows.

    Attributes
    ----------
    levels : ndarray of int, shape (C, 1 + G)
        Person and further levels of each combination; -1 for one that is not known.
    rows : Blocks
        Of combinations as persons.
    order : ndarray of int, shape (n,)
        Place of the rows among those given.
    """

    levels: IntArray
    rows: Blocks
    order: IntArray


def combinations_of(problem: Problem, blocks: Blocks) -> Combinations:
    """Rows by the combination of levels that they have."""
    persons = [block.persons.unsqueeze(-1).expand(block.mask.shape) for block in blocks]
    keys = np.column_stack([to_rows(blocks, persons), to_rows(blocks, [block.levels for block in blocks])])
    levels, codes = np.unique(keys.astype(np.intp), axis=0, return_inverse=True)
    order, x = np.argsort(codes, kind="stable"), to_rows(blocks, [block.x for block in blocks])
    rows = build_blocks(x[order], np.zeros(len(x)), codes[order], len(levels), device=problem.device)
    return Combinations(levels, rows, order)


def of_combinations(problem: Problem, fit: Trained, z: Sequence[Array], levels: IntArray) -> Trained:
    """The fit with the effects of combinations in place of persons; effects of unknown levels are zero.

    Parameters
    ----------
    z : sequence of ndarray, shape (N_g, r_g)
    levels : ndarray of int, shape (C, 1 + G)
    """
    index, parts = union_index(problem), parts_of(problem)
    loadings = [fit.loading * np.sqrt(fit.s), *(mine.loading for mine in fit.further)]
    lifted = [np.zeros((len(index), L.shape[1])) for L in loadings]
    for whole, part, L in zip(lifted, parts, loadings, strict=True):
        whole[np.searchsorted(index, part.personal.index)] = L
    latent = [u[k] * (k >= 0)[:, None] for u, k in zip(z, levels.T, strict=True)]
    s = np.ones(sum(L.shape[1] for L in loadings))
    return replace(fit, loading=np.hstack(lifted), z=np.hstack(latent), s=s, further=())


def union_index(problem: Problem) -> IntArray:
    """Entries of the flat vector that differ between levels of any grouping."""
    return np.unique(np.concatenate([part.personal.index for part in parts_of(problem)]))


def combined_rows(
    problem: Problem, fit: Trained, z: Sequence[Array], blocks: Blocks, spread: "Spread | None" = None
) -> Prediction:
    """Predictions of rows by what is known of their person and their levels in the other groupings.

    Parameters
    ----------
    problem : Problem
        With the rows from which the effects come.
    z : sequence of ndarray, shape (N_g, r_g)
    blocks : Blocks
        Rows to predict; persons and levels that are not known are -1.
    spread : Spread, optional
        Default: no variances.
    """
    found = combinations_of(problem, blocks)
    every = of_combinations(problem, fit, z, found.levels)
    covered = Uncertainty(None, None)
    if spread is not None:
        covered = spread.uncertainty(problem, every, found.levels)
    personal, count = personal_entries(problem.network.tensors, union_index(problem)), len(found.levels)
    mine = replace(problem, personal=personal, cov="full", further=(), train=found.rows, n_persons=count)
    predicted = known_rows(mine, every, found.rows, every.z, covered)
    back = np.argsort(found.order)
    return Prediction(predicted.mean[back], predicted.variance[back])


@dataclass(frozen=True, slots=True)
class LatentPlaces:
    """Where latent effects of combinations are, shape (C, r) each; -1 for those that are not known or elsewhere.

    Attributes
    ----------
    unit, own : ndarray of int
        Unit, and place within its own block.
    border : ndarray of int
        Place in the border.
    """

    unit: IntArray
    own: IntArray
    border: IntArray


def latent_places(problem: Problem, plan: Plan, levels: IntArray) -> LatentPlaces:
    """Places of the latent effects of all groupings for some combinations of levels (C, 1 + G)."""
    parts = parts_of(problem)
    position = np.full(problem.n_persons + 1, -1)
    persons = np.concatenate([to_array(block.persons) for block in problem.train])
    position[persons] = np.arange(len(persons))
    r = parts[0].n_effects
    unit = {0: np.repeat(position[levels[:, :1]], r, axis=1)}
    own, border = {0: np.tile(np.arange(r), (len(levels), 1))}, {0: np.full((len(levels), r), -1)}
    start = r
    for g, slots in zip(plan.places, plan.nested, strict=False):
        q, table = len(slots.columns), np.full((slots.n_levels + 1, 2), -1)  # the last row is for levels not known
        met = to_array(slots.levels)
        table[met[met >= 0]] = np.argwhere(met >= 0)
        mine = table[levels[:, g + 1]]
        unit[g + 1] = np.repeat(mine[:, :1], q, axis=1)
        own[g + 1] = start + mine[:, 1:] * q + np.arange(q)
        border[g + 1] = np.full((len(levels), q), -1)
        start += slots.width(0)
    start = 0
    for g, slots in zip(plan.places[len(plan.nested) :], plan.crossed, strict=True):
        q, level = len(slots.columns), levels[:, g + 1 : g + 2]
        border[g + 1] = np.where(level >= 0, start + level * q + np.arange(q), -1)
        unit[g + 1] = own[g + 1] = np.full((len(levels), q), -1)
        start += slots.n_levels * q
    return LatentPlaces(*(np.hstack([part[g] for g in range(len(parts))]) for part in (unit, own, border)))


@dataclass(frozen=True, slots=True)
class Spread:
    """What covariances of the effects of combinations are made of.

    Attributes
    ----------
    joint : Joint
    population : Tensor, shape (P, P), or None
        Covariance of the population parameters; None if there are too many.
    gain : Latent or None
        How far latent effects follow a change of the population parameters, one column each.
    fixed : bool
        Whether effects of unknown levels are their mean, zero, and no draw.
    """

    joint: Joint
    population: Tensor | None
    gain: Latent | None
    fixed: bool = False

    def uncertainty(self, problem: Problem, every: Trained, levels: IntArray) -> Uncertainty:
        """Covariances of the effects of combinations (C, 1 + G), in the units of a `State`."""
        at = latent_places(problem, self.joint.moments.plan, levels)
        scale = problem.tensor(np.linalg.norm(every.loading, axis=0))
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        prior = prior_variances(problem) * (not self.fixed)
        C = combination_covariances(self.joint, at, problem.tensor(prior))
        gain = None if self.gain is None else gather_latent(self.gain, at) * scale.unsqueeze(-1)
        return Uncertainty(C * scale * scale.unsqueeze(-1), self.population, gain)


def prior_variances(problem: Problem) -> Array:
    """Variance of each latent effect of a level never seen, shape (r,): as estimated from those that there are."""
    counts = [problem.n_persons, *(grouping.n_levels for grouping in problem.further)]
    sizes = [part.n_effects for part in parts_of(problem)]
    return np.concatenate([np.full(r, widening_of(N, r)) for N, r in zip(counts, sizes, strict=True)])


def combination_covariances(joint: Joint, at: LatentPlaces, prior: Tensor) -> Tensor:
    """Posterior covariances of the latent effects of combinations, shape (C, r, r).

    Parameters
    ----------
    joint : Joint
    at : LatentPlaces
    prior : Tensor, shape (r,)
        Variances of effects that are not known.
    """
    fit, plan = joint.profile, joint.moments.plan
    unit, own, border = (torch.as_tensor(v, device=prior.device) for v in (at.unit, at.own, at.border))
    inverse = own_inverse(fit)
    known = (unit >= 0).unsqueeze(-1) & (unit.unsqueeze(-1) == unit.unsqueeze(-2))
    u, a = unit.clamp_min(0), own.clamp_min(0)
    C = torch.where(known, inverse[u.unsqueeze(-1), a.unsqueeze(-1), a.unsqueeze(-2)], 0.0)
    strange = (unit < 0) & (border < 0)
    C = C + torch.diag_embed(torch.where(strange, prior, 0.0))
    if fit.border is None:
        return C
    S, padded = torch.cholesky_inverse(fit.border.root), max(index.shape[1] for index in plan.border)
    V, index = fit.inverse_root.new_zeros(*fit.inverse_root.shape[:2], padded), unit.new_zeros(len(inverse), padded)
    for k, (units, mine) in enumerate(zip(plan.units, plan.border, strict=True)):
        V[units, :, : mine.shape[1]], index[units, : mine.shape[1]] = own_on_border(plan, fit, k), mine
    size = max(MOST_CELLS // max(plan.n_border * unit.shape[1], 1), 1)
    parts = []
    for k in range(0, len(unit), size):
        here = slice(k, k + size)
        F = S.new_zeros(unit[here].numel(), plan.n_border)
        mine = torch.nonzero(unit[here].reshape(-1) >= 0).squeeze(-1)
        whose, which = unit[here].reshape(-1)[mine], own[here].reshape(-1)[mine]
        F.index_put_((mine.unsqueeze(-1), index[whose]), -V[whose, which], accumulate=True)
        theirs = torch.nonzero(border[here].reshape(-1) >= 0).squeeze(-1)
        F[theirs, border[here].reshape(-1)[theirs]] = 1.0
        F = F.view(*unit[here].shape, plan.n_border)
        parts.append(C[here] + F @ S @ F.transpose(-1, -2))
    return torch.cat(parts)


def gather_latent(found: Latent, at: LatentPlaces) -> Tensor:
    """Columns along the latent effects of combinations, shape (C, r, k); zero for those that are not known."""
    unit, own, border = (torch.as_tensor(v, device=found.own.device) for v in (at.unit, at.own, at.border))
    out = found.own[unit.clamp_min(0), own.clamp_min(0)] * (unit >= 0).unsqueeze(-1)
    if found.border is not None:
        out = out + found.border[border.clamp_min(0)] * (border >= 0).unsqueeze(-1)
    return out


def spread_of(problem: Problem, fit: Trained, z: Sequence[Array], *, population: bool = True) -> Spread:
    """Covariances of the effects given the rows of `problem`, and of the population parameters if wanted."""
    with torch.no_grad():
        joint = joint_of(problem, fit)
        P = problem.network.n_parameters
        if not population or P > MAX_PARAMETERS or P * joint.profile.inverse_root[..., 0].numel() > MOST_NUMBERS:
            return Spread(joint, None, None)
        plan, total, own, border = joint.moments.plan, 0.0, [], 0.0
        for k, block in enumerate(problem.train):
            H = hidden_of(problem.network, problem.tensor(fit.theta), block.x)
            J = row_jacobian(problem, fit, z, block)
            cross = row_columns(plan, k, H, block.y, block.mask)[..., plan.random(k)].mT @ J
            own.append(cross[:, : joint.factors.own.shape[0]])
            total = total + J.flatten(0, 1).T @ J.flatten(0, 1)
            if joint.factors.border:  # cross-products of border slots, the last rows, summed over units
                mine = joint.factors.border[k].T @ cross[:, joint.factors.own.shape[0] :]
                zeros = mine.new_zeros(plan.n_border, cross.shape[-1])
                border = border + zeros.index_add(0, plan.border[k].reshape(-1), mine.flatten(0, 1))
        right = Latent(joint.factors.own.T @ torch.cat(own), border if joint.factors.border else None)
        found = solve_latent(plan, joint.profile, right)
        taken = torch.einsum("nrp,nrq->pq", right.own, found.own)
        taken = taken if right.border is None else taken + right.border.T @ found.border
        sigma = np.sqrt(fit.sigma2)
        gain = Latent(found.own / sigma, None if found.border is None else found.border / sigma)
        return Spread(joint, ridged_inverse(problem, (total - taken) / fit.sigma2), gain)


def row_jacobian(problem: Problem, fit: Trained, z: Sequence[Array], block: Block) -> Tensor:
    """Derivatives of a block's outputs in all parameters at the effects of all groupings, (B, T, P); zero if padded."""
    B, T = block.mask.shape
    persons = block.persons[:, None, None].expand(B, T, 1)
    levels = to_array(torch.cat([persons, block.levels], dim=-1)).reshape(B * T, -1)
    eta = problem.tensor(of_combinations(problem, fit, z, levels).eta)
    personal = personal_entries(problem.network.tensors, union_index(problem))
    tensors = view_tensors(problem.network, personal, problem.tensor(fit.theta), eta)
    every = personal_tensors(problem.network.tensors)
    J = jacobian(problem.network, every, tensors, block.x.reshape(B * T, 1, -1))
    return J.view(B, T, -1) * block.mask.unsqueeze(-1)


def strangers(blocks: Blocks) -> Blocks:
    """Rows of which neither person nor any other level is known."""
    unknown = [replace(b, persons=-torch.ones_like(b.persons), levels=-torch.ones_like(b.levels)) for b in blocks]
    return Blocks(tuple(unknown), blocks.n_rows)


def joint_uncertainty(problem: Problem, fit: Trained, z: Sequence[Array]) -> Uncertainty:
    """Covariances of the persons' effects, in the units of a `State`, and of the population parameters."""
    spread = spread_of(problem, fit, z)
    return Uncertainty(level_covariances(problem, fit, spread.joint, 0), spread.population)


def level_covariances(problem: Problem, fit: Trained, joint: Joint, grouping: int) -> Tensor:
    """Posterior covariances of the effects of each level of one grouping, the units of a `State`, (N_g, r_g, r_g)."""
    parts = parts_of(problem)
    counts = [problem.n_persons, *(g.n_levels for g in problem.further)]
    levels = np.full((counts[grouping], len(parts)), -1)
    levels[:, grouping] = np.arange(counts[grouping])
    at = latent_places(problem, joint.moments.plan, levels)
    C = combination_covariances(joint, at, problem.tensor(prior_variances(problem)))
    sizes = np.cumsum([0, *(part.n_effects for part in parts)])
    mine = slice(int(sizes[grouping]), int(sizes[grouping + 1]))
    loading = [fit.loading, *(theirs.loading for theirs in fit.further)][grouping]
    scale = problem.tensor(np.linalg.norm(loading, axis=0))
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return C[:, mine, mine] * scale * scale.unsqueeze(-1)


def level_errors(problem: Problem, fit: Trained, z: Sequence[Array], onto: Sequence[Array]) -> list[Array]:
    """Posterior standard deviations of the reported effects of all groupings, shape (N_g, R_g) each.

    Parameters
    ----------
    onto : sequence of ndarray, shape (R_g, q_g)
        From effects on the standardised parameters to those that are reported.
    """
    out, joint = [], spread_of(problem, fit, z, population=False).joint
    for g, loading in enumerate([fit.loading, *(mine.loading for mine in fit.further)]):
        C = to_array(level_covariances(problem, fit, joint, g))
        norms = np.linalg.norm(loading, axis=0)
        directions = onto[g] @ (loading / np.where(norms > 0, norms, 1.0))
        out.append(np.sqrt(np.maximum(np.einsum("qr,nrs,qs->nq", directions, C, directions), 0.0)))
    return out
