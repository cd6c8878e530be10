"""The linear mixed model of the last layer given its features, with one grouping of the rows or several.

``y = H beta + sum_g Z_g b_g + e`` with Z_g some columns of the features H for each level of grouping g, and effects of
a level ``b ~ N(0, sigma^2 L_g L_g')``.

Units are the levels of the first grouping. Effects of groupings whose levels lie
within units, as sites within persons, belong to the unit's own block; effects of crossed groupings are the border:

``A = I + L'Z'Z L = [[A_1, B], [B', S]]``, A_1 block-diagonal by unit with Cholesky factors R_i, ``S - B'A_1^-1 B``
dense.

Everything is in terms of the cross-products of each unit's rows, see `slots`. beta and sigma are profiled out; or beta,
with a normal prior, is integrated out, ``y ~ N(0, sigma^2 V + tau^2 X X')``, so that sigma has the degrees of freedom
that beta leaves.

References
----------
Lindstrom & Bates (1988), Journal of the American Statistical Association 83, 1014-1022 (the profiled deviance and
its derivatives).
Bates, Maechler, Bolker & Walker (2015), Journal of Statistical Software 67(1), equations 30-42 (maximum likelihood, and
the Cholesky factor in blocks, for several groupings). MacKay (1992), Neural Computation 4, 415-447 (the residual
variance where coefficients with a prior are integrated out: ``n - edf`` degrees of freedom).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from mixmoe.neural.blocks import Blocks, Tensor, torch

TINIEST = 1e-300  # sum of squares, so that its logarithm is a number
NEWTON = 50  # steps at most; five are usual


@dataclass(frozen=True, slots=True)
class Slots:
    """The levels of one further grouping that each unit meets.

    Attributes
    ----------
    columns : Tensor of int, shape (q,)
        Features that the effects multiply.
    levels : Tensor of int, shape (N, K)
        Level in each slot of a unit, units in the order of the blocks; -1 where a unit meets fewer than K.
    hot : tuple of Tensor, shape (B, T, K)
        One where a row belongs to the level of a slot, one array per block; with as many slots as its units need where
        the grouping is crossed, as units differ much in how many levels they meet.
    n_levels : int
    """

    columns: Tensor
    levels: Tensor
    hot: tuple[Tensor, ...]
    n_levels: int

    def width(self, block: int) -> int:
        """Columns of the rows of a block that the slots take."""
        return self.hot[block].shape[-1] * len(self.columns)


@dataclass(frozen=True, slots=True)
class Plan:
    """Where effects lie among the columns of the rows.

    Attributes
    ----------
    columns : Tensor of int, shape (q,)
        Features that the effects of the units multiply.
    n_features : int
    nested, crossed : tuple of Slots
        Groupings within units, and the others.
    places : tuple of int
        Place of each of them, nested ones first, among the further groupings of the model.
    border : tuple of Tensor of int, shape (B, S)
        Column of the border that each border slot of a unit is, one array per block.
    units : tuple of slice
        Units of each block among all.
    masked : tuple of bool
        Whether a block has cells without a row.
    """

    columns: Tensor
    n_features: int
    nested: tuple[Slots, ...]
    crossed: tuple[Slots, ...]
    places: tuple[int, ...]
    border: tuple[Tensor, ...]
    units: tuple[slice, ...]
    masked: tuple[bool, ...]

    @property
    def first(self) -> int:
        """Columns before the features."""
        return sum(slots.width(0) for slots in self.nested)

    @property
    def end(self) -> int:
        """Columns up to the response."""
        return self.first + self.n_features + 1

    @property
    def fixed(self) -> slice:
        """Features and response."""
        return slice(self.first, self.end)

    @property
    def n_border(self) -> int:
        """Effects of crossed groupings."""
        return sum(slots.n_levels * len(slots.columns) for slots in self.crossed)

    @property
    def own(self) -> Tensor:
        """Columns of the rows that the effects of a unit's own block multiply: features, then nested slots."""
        return torch.cat([self.columns + self.first, torch.arange(self.first, device=self.columns.device)])

    def random(self, block: int) -> Tensor:
        """Columns of the rows that any effects multiply: those of a unit's own, then border slots."""
        width = sum(slots.width(block) for slots in self.crossed)
        return torch.cat([self.own, torch.arange(self.end, self.end + width, device=self.columns.device)])


def make_plan(blocks: Blocks, columns: Sequence[Tensor], n_levels: Sequence[int], n_features: int) -> Plan:
    """Where effects lie in rows of some blocks.

    Parameters
    ----------
    blocks : Blocks
        With the levels of the further groupings.
    columns : sequence of Tensor of int
        Features that the effects of each grouping multiply, the first one included.
    n_levels : sequence of int
        Levels of the further groupings.
    n_features : int
    """
    found = [slots_of(blocks, g, columns[g + 1], count) for g, count in enumerate(n_levels)]
    within = []  # whether no level is met by two units
    for slots in found:
        met = slots.levels[slots.levels >= 0]
        within.append(len(torch.unique(met)) == len(met))
    order = tuple(sorted(range(len(found)), key=lambda g: not within[g]))
    sizes = [len(block.persons) for block in blocks]
    ends = list(accumulate(sizes))
    units = tuple(slice(end - size, end) for end, size in zip(ends, sizes, strict=True))
    nested = tuple(found[g] for g in order if within[g])
    crossed = []
    for slots in (found[g] for g in order if not within[g]):  # as many slots as the units of each block need
        counts = [int((slots.levels[of_block] >= 0).sum(1).max()) for of_block in units]
        hot = tuple(hot[..., :count] for hot, count in zip(slots.hot, counts, strict=True))
        crossed.append(replace(slots, hot=hot))
    masked = tuple(not bool(block.mask.all()) for block in blocks)
    return Plan(columns[0], n_features, nested, tuple(crossed), order, border_columns(crossed, units), units, masked)


def slots_of(blocks: Blocks, g: int, columns: Tensor, n_levels: int) -> Slots:
    """The slots of further grouping `g`."""
    met = [[torch.unique(row[row >= 0]) for row in block.levels[..., g]] for block in blocks]
    K = max((len(levels) for of_block in met for levels in of_block), default=0)
    rows = []
    for of_block, block in zip(met, blocks, strict=True):
        table = torch.full((len(of_block), K), -1, dtype=torch.int64, device=block.mask.device)
        for i, levels in enumerate(of_block):
            table[i, : len(levels)] = levels
        rows.append(table)
    hot = tuple(
        ((block.levels[..., g].unsqueeze(-1) == table.unsqueeze(1)) & (table.unsqueeze(1) >= 0)).double()
        for table, block in zip(rows, blocks, strict=True)
    )
    return Slots(columns, torch.cat(rows), hot, n_levels)


def border_columns(crossed: Sequence[Slots], units: Sequence[slice]) -> tuple[Tensor, ...]:
    """Column of the border of each border slot, (B, S) for each block; zero for empty slots, where it adds nothing."""
    if not crossed:
        return ()
    out = []
    for block, of_block in enumerate(units):
        parts, start = [], 0
        for slots in crossed:
            q, levels = len(slots.columns), slots.levels[of_block, : slots.hot[block].shape[-1]]
            each = levels.clamp_min(0).unsqueeze(-1) * q + torch.arange(q, device=levels.device)
            parts.append(start + each.flatten(1))
            start += slots.n_levels * q
        out.append(torch.cat(parts, dim=1))
    return tuple(out)


def slot_columns(features: Tensor, slots: Slots, block: int) -> Tensor:
    """Features of the rows of each slot, zero in other rows, shape (B, T, K q)."""
    return (slots.hot[block].unsqueeze(-1) * features[..., slots.columns].unsqueeze(-2)).flatten(-2)


def row_columns(plan: Plan, block: int, features: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """The rows of a block, ``[nested slots | features | response | border slots]``, shape (B, T, w); zero where padded.

    Parameters
    ----------
    features : Tensor, shape (B, T, p - 1)
        Without the column of ones for the bias, which is appended.
    y, mask : Tensor, shape (B, T)
    """
    if not plan.places:
        rows = torch.cat([features, torch.ones_like(y).unsqueeze(-1), y.unsqueeze(-1)], dim=-1)
        return rows.mul_(mask.unsqueeze(-1)) if plan.masked[block] else rows
    features = torch.cat([features, torch.ones_like(y).unsqueeze(-1)], dim=-1)
    nested, crossed = ([slot_columns(features, s, block) for s in part] for part in (plan.nested, plan.crossed))
    rows = torch.cat([*nested, features, y.unsqueeze(-1), *crossed], dim=-1)
    return rows * mask.unsqueeze(-1) if plan.masked[block] else rows


@dataclass(frozen=True, slots=True)
class Moments:
    """Cross-products of the rows of each unit.

    Attributes
    ----------
    gram : tuple of Tensor, shape (B, w, w)
        One array per block.
    plan : Plan
    n : int
        Rows.
    ridge : float
        Penalty on beta in units of sigma^2: ``rss + ridge |beta|^2``.
    wide : float
        Variance tau^2 of the normal prior over which beta is integrated; 0: beta is profiled, with the `ridge`.
    prior : float
        Precision of a normal prior of the free entries of the factors sigma L; 0 for none.
    """

    gram: tuple[Tensor, ...]
    plan: Plan
    n: int
    ridge: float = 0.0
    wide: float = 0.0
    prior: float = 0.0


@dataclass(frozen=True, slots=True)
class Factors:
    """Factors of the covariances of the effects, laid out as the columns are.

    Attributes
    ----------
    own : Tensor, shape (Q, R)
        Of a unit's own block.
    border : tuple of Tensor, shape (S, S)
        Of the border slots of each block.
    size : Tensor, shape (), or float
        Sum of the squares of the free entries, on which there may be a prior.
    """

    own: Tensor
    border: tuple[Tensor, ...] = ()
    size: Tensor | float = 0.0


def lay_out_factors(plan: Plan, each: Sequence[Tensor]) -> Factors:
    """The factors L_g (q_g, r_g) of all groupings, the first one included, in their places."""
    ordered = [each[g + 1] for g in plan.places]
    nested = [repeat_factor(L, s.hot[0].shape[-1]) for L, s in zip(ordered, plan.nested, strict=False)]
    own = torch.block_diag(each[0], *nested) if nested else each[0]
    others = ordered[len(plan.nested) :]
    border = [
        torch.block_diag(*(repeat_factor(L, s.hot[k].shape[-1]) for L, s in zip(others, plan.crossed, strict=True)))
        for k in range(len(plan.border))
    ]
    return Factors(own, tuple(border))


def repeat_factor(L: Tensor, times: int) -> Tensor:
    """The factor of several levels side by side, ``I x L``."""
    return torch.kron(torch.eye(times, dtype=L.dtype, device=L.device), L)


@dataclass(frozen=True, slots=True)
class Border:
    """The crossed effects, the units' own ones eliminated.

    Attributes
    ----------
    root : Tensor, shape (M, M)
        Lower Cholesky factor of their Schur complement.
    cross : Tensor, shape (M, p + 1)
        It solved for the columns of features and response.
    """

    root: Tensor
    cross: Tensor


@dataclass(frozen=True, slots=True)
class Profile:
    """Likelihood profiled over beta and sigma, or over sigma.

    Attributes
    ----------
    objective : Tensor, shape ()
        Minus twice the marginal log-likelihood, with the penalty on beta, or integrated over it, and the prior.
    deviance : Tensor, shape ()
        That at beta, without them.
    beta : Tensor, shape (p,)
        Where it is integrated out, its posterior mean.
    sigma2 : Tensor, shape ()
    inverse_root : Tensor, shape (N, R, R)
        Inverse of the lower Cholesky factor of the units' own blocks ``I + L'Z'ZL``.
    cross : tuple of Tensor, shape (B, R, w)
        It times ``L'Z'`` and the columns of the rows of each block, those of the border times their factor.
    border : Border or None
    information : Tensor, shape (p, p)
        ``sigma^2 X'V^-1 X``.
    spread : Tensor, shape (p, p), or None
        Posterior covariance of beta over sigma^2, where it is integrated out.
    """

    objective: Tensor
    deviance: Tensor
    beta: Tensor
    sigma2: Tensor
    inverse_root: Tensor
    cross: tuple[Tensor, ...]
    border: Border | None
    information: Tensor
    spread: Tensor | None = None


def identity_like(matrix: Tensor) -> Tensor:
    """The identity of the size of the last dimension."""
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def profile(m: Moments, factors: Factors, log_sigma: Tensor | None = None) -> Profile:
    """Marginal likelihood at the factors, the best beta put in, and the best sigma unless it is given.

    Parameters
    ----------
    m : Moments
    factors : Factors
    log_sigma : Tensor, shape (), optional

    Notes
    -----
    (1) Each unit's own effects are eliminated, ``U_i = R_i^-1 L'Z_i'[X_i, y_i, Z_bi L_b]``. (2) What the units leave of
    the border is summed over them, and eliminated likewise. (3) What is left of features and response is the least
    squares problem for beta.
    """
    p = m.plan.n_features
    parts = [eliminate_units(m, factors, k) for k in range(len(m.gram))]
    left = sum_of([part.left for part in parts])
    logdet, border = sum_of([part.logdet for part in parts]), None
    if factors.border:
        border = eliminate_border(m, factors, [part.cross for part in parts])
        left = left - border.cross.T @ border.cross
        logdet = logdet + 2.0 * border.root.diagonal().log().sum()
    information, moment, yy = left[:p, :p], left[:p, p], left[p, p]
    sigma2 = None if log_sigma is None else (2.0 * log_sigma).exp()
    ridge: Tensor = information.new_tensor(m.ridge)
    if m.wide:
        sigma2 = best_sigma2(m, information, moment, yy, factors.size) if sigma2 is None else sigma2
        ridge = sigma2 / m.wide
    penalised = information + ridge * identity_like(information)
    # Without a penalty, so little on the diagonal that features which are collinear can be factored changes no digit.
    little = ridge if m.wide or m.ridge else 1e-10 * information.diagonal().mean().clamp_min(1e-12)
    chol = torch.linalg.cholesky(information + little * identity_like(information))
    beta = torch.cholesky_solve(moment.unsqueeze(-1), chol).squeeze(-1)
    rss = yy - (2.0 * moment - penalised @ beta) @ beta
    sigma2 = rss / m.n if sigma2 is None else sigma2
    of_factors = m.prior * sigma2 * factors.size if m.prior else 0.0
    objective = m.n * (math.log(2.0 * math.pi) + sigma2.log()) + logdet + rss / sigma2 + of_factors
    deviance = objective - ridge * beta.square().sum() / sigma2 - of_factors
    inverse_root = joined([part.inverse_root for part in parts])
    cross, spread = tuple(part.cross for part in parts), None
    if m.wide:
        objective = objective + 2.0 * chol.diagonal().log().sum() - p * ridge.log()
        spread = torch.cholesky_inverse(chol)
    return Profile(objective, deviance, beta, sigma2, inverse_root, cross, border, information, spread)


def best_sigma2(m: Moments, information: Tensor, moment: Tensor, yy: Tensor, size: Tensor | float) -> Tensor:
    """The residual variance at which the likelihood with beta integrated out is highest, shape ().

    Parameters
    ----------
    information : Tensor, shape (p, p)
        ``X'V^-1 X``.
    moment : Tensor, shape (p,)
        ``X'V^-1 y``.
    yy : Tensor, shape ()
        ``y'V^-1 y``.
    size : Tensor, shape (), or float
        Sum of squares of the free entries of the factors.

    Notes
    -----
    It solves ``n - edf = rss / sigma^2 - prior size sigma^2``, where rss at beta and ``edf = sum_k lambda_k / (lambda_k
    + s)`` depend on ``s = sigma^2 / tau^2``. Newton's method on the logarithm, in the eigenvectors of the information.
    """
    roots, vectors = torch.linalg.eigh(information.detach())
    of, squares = roots.clamp_min(0.0).tolist(), (vectors.mT @ moment.detach()).square().tolist()
    pairs, total = list(zip(of, squares, strict=True)), float(yy.detach())
    weight, log_s = m.prior * float(size), math.log(max(total, TINIEST) / m.n)
    for _ in range(NEWTON):
        sigma2 = math.exp(log_s)
        s = sigma2 / m.wide
        edf = sum(root / (root + s) for root, _ in pairs)
        rss = total - sum(c2 * (root + 2.0 * s) / (root + s) ** 2 for root, c2 in pairs)
        slope = sum(root * s / (root + s) ** 2 - 2.0 * s * s * c2 / (root + s) ** 3 / sigma2 for root, c2 in pairs)
        rest = max(rss, TINIEST) / sigma2
        move = (m.n - edf - rest + weight * sigma2) / max(slope + rest + weight * sigma2, 0.1)
        log_s -= max(-2.0, min(2.0, move))
        if abs(move) < 1e-13:
            break
    return information.new_tensor(math.exp(log_s))


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Arrays of all units from those of the blocks."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def sum_of(parts: Sequence[Tensor]) -> Tensor:
    """The sum of arrays of one shape."""
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum(0)


@dataclass(frozen=True, slots=True)
class Eliminated:
    """What is left of the rows of a block, her own effects eliminated from each unit's.

    Attributes
    ----------
    inverse_root, cross
        Of the block, as in `Profile`.
    left : Tensor, shape (p + 1, p + 1)
        Cross-products of features and response less what own effects take.
    logdet : Tensor, shape ()
    """

    inverse_root: Tensor
    cross: Tensor
    left: Tensor
    logdet: Tensor


def eliminate_units(m: Moments, factors: Factors, block: int) -> Eliminated:
    """The effects of the units' own blocks, ``U_i = R_i^-1 L'Z_i'[X_i, y_i, Z_bi L_b]``."""
    plan, L, gram = m.plan, among_rows(m, factors, block), m.gram[block]
    fixed, eye = plan.fixed, identity_like(L)
    right = (gram @ L).mT.contiguous()  # (B, R, w); one product instead of one for each unit
    root = torch.linalg.cholesky(right @ L + eye)  # (B, R, R)
    # Triangular systems of many small matrices cost by their number: the inverses of the roots serve all that follows.
    # Transposed twice, as the solutions come column by column, and what follows multiplies rows.
    inverse_root = torch.linalg.solve_triangular(root.mT, eye.expand_as(root), upper=True).mT
    U = inverse_root @ right
    flat = U[..., fixed].flatten(0, 1)
    left = gram[:, fixed, fixed].sum(0) - flat.T @ flat
    if factors.border:
        U = torch.cat([U[..., : plan.end], U[..., plan.end :] @ factors.border[block]], dim=-1)
    return Eliminated(inverse_root, U, left, 2.0 * root.diagonal(dim1=-2, dim2=-1).log().sum())


def among_rows(m: Moments, factors: Factors, block: int) -> Tensor:
    """The factor of a unit's own block with a row for each column of the rows, shape (w, R); zero where none are."""
    L = factors.own
    return L.new_zeros(m.gram[block].shape[-1], L.shape[1]).index_copy(0, m.plan.own, L)


def eliminate_border(m: Moments, factors: Factors, cross: Sequence[Tensor]) -> Border:
    """The crossed effects, from what the units' own ones leave of them.

    Parameters
    ----------
    cross : sequence of Tensor, shape (B, R, w)
        As in `Profile`.
    """
    plan, at, M = m.plan, slice(m.plan.end, None), m.plan.n_border
    S, right = (factors.own.new_zeros(size) for size in (M * M, (M, plan.n_features + 1)))
    for gram, K, U, index in zip(m.gram, factors.border, cross, plan.border, strict=True):
        mine = U[..., at].mT
        inner = K.T @ gram[:, at, at] @ K - mine @ U[..., at]  # (B, S, S)
        fixed = K.T @ gram[:, at, plan.fixed] - mine @ U[..., plan.fixed]  # (B, S, p + 1)
        pairs = index.unsqueeze(-1) * M + index.unsqueeze(-2)
        S = S.index_add(0, pairs.reshape(-1), inner.reshape(-1))
        right = right.index_add(0, index.reshape(-1), fixed.flatten(0, 1))
    S = S.view(M, M)
    root = torch.linalg.cholesky(S + identity_like(S))
    return Border(root, torch.linalg.solve_triangular(root, right, upper=False))


@dataclass(frozen=True, slots=True)
class Latent:
    """Columns along the latent effects.

    Attributes
    ----------
    own : Tensor, shape (N, R, k)
        Of the units' own blocks.
    border : Tensor, shape (M, k), or None
    """

    own: Tensor
    border: Tensor | None


def solve_latent(plan: Plan, fit: Profile, right: Latent) -> Latent:
    """``A^-1`` times some columns, given as the units' own blocks (N, R, k) and the border (M, k)."""
    own, found = fit.inverse_root @ right.own, None
    if fit.border is not None and right.border is not None:
        left = right.border
        for U, index, units in zip(fit.cross, plan.border, plan.units, strict=True):
            taken = U[..., plan.end :].mT @ own[units]
            left = left.index_add(0, index.reshape(-1), -taken.flatten(0, 1))
        found = torch.cholesky_solve(left, fit.border.root)
        own = own - taken_by_border(plan, fit, found)
    return Latent(fit.inverse_root.mT @ own, found)


def taken_by_border(plan: Plan, fit: Profile, found: Tensor) -> Tensor:
    """What border effects (M, k) take from the units' own, times the inverse of the roots, shape (N, R, k)."""
    return joined([U[..., plan.end :] @ found[index] for U, index in zip(fit.cross, plan.border, strict=True)])


def posterior_means(m: Moments, fit: Profile, beta: Tensor | None = None) -> Latent:
    """Posterior means of the latent effects, in units of which ``b = L u``, one column.

    Parameters
    ----------
    beta : Tensor, shape (p,), optional
        Default: those of the profile.
    """
    combine = torch.cat([-(fit.beta if beta is None else beta), fit.beta.new_ones(1)]).unsqueeze(-1)
    return latent_of(m, fit, combine)


def latent_of(m: Moments, fit: Profile, combine: Tensor) -> Latent:
    """Posterior means of the latent effects were combinations of features and response (p + 1, k) the response."""
    plan, found = m.plan, None
    own = joined([U[..., plan.fixed] @ combine for U in fit.cross])
    if fit.border is not None:
        found = torch.linalg.solve_triangular(fit.border.root.T, fit.border.cross @ combine, upper=True)  # (M, 1)
        own = own - taken_by_border(plan, fit, found)
    return Latent(fit.inverse_root.mT @ own, found)


def own_inverse(fit: Profile) -> Tensor:
    """``A_1^-1`` unit by unit, shape (N, R, R)."""
    return fit.inverse_root.mT @ fit.inverse_root


def own_on_border(plan: Plan, fit: Profile, block: int) -> Tensor:
    """``A_1^-1 B`` of the units of a block, shape (B, R, S): how far own effects give way to those of the border."""
    return fit.inverse_root[plan.units[block]].mT @ fit.cross[block][..., plan.end :]


def local_inverse(plan: Plan, fit: Profile, S: Tensor, block: int) -> Tensor:
    """Blocks of ``A^-1`` for each unit's own effects and the border slots that it meets, shape (B, R + S, R + S).

    Parameters
    ----------
    S : Tensor, shape (M, M)
        That of the border.
    """
    index, V = plan.border[block], own_on_border(plan, fit, block)
    mine = S[index.unsqueeze(-1), index.unsqueeze(-2)]
    VS, root = V @ mine, fit.inverse_root[plan.units[block]]
    top = torch.cat([root.mT @ root + VS @ V.mT, -VS], dim=-1)
    return torch.cat([top, torch.cat([-VS.mT, mine], dim=-1)], dim=-2)
