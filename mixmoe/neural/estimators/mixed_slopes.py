"""Derivatives of the profiled likelihood of `mixed_model` in rows and factors, in closed form."""

from dataclasses import dataclass

from mixmoe.neural.blocks import Tensor, torch
from mixmoe.neural.estimators.mixed_model import (
    Factors,
    Latent,
    Moments,
    Plan,
    Profile,
    among_rows,
    identity_like,
    latent_of,
    local_inverse,
    sum_of,
)


def features_slope(plan: Plan, block: int, rows: Tensor, slopes_of_rows: Tensor) -> Tensor:
    """Derivatives in the features of a block but the ones, those of its slots included, shape (B, T, p - 1).

    Parameters
    ----------
    rows : Tensor, shape (B, T, w)
    slopes_of_rows : Tensor, shape (B, w, w)
        Of the units of the block.
    """
    p, first = plan.n_features, plan.first
    if not plan.places:
        return rows @ slopes_of_rows[..., : p - 1]
    whole = rows @ slopes_of_rows
    found, start = whole[..., first : first + p].clone(), 0
    for slots in (*plan.nested, *plan.crossed):
        start = first + p + 1 if plan.crossed and slots is plan.crossed[0] else start
        mine = whole[..., start : start + slots.width(block)].unflatten(-1, (-1, len(slots.columns)))
        found[..., slots.columns] += (slots.hot[block].unsqueeze(-1) * mine).sum(-2)
        start += slots.width(block)
    return found[..., :-1]


@dataclass(frozen=True, slots=True)
class Slopes:
    """Derivatives of half the profiled deviance.

    Attributes
    ----------
    rows : tuple of Tensor, shape (B, w, w)
        Those in the rows of a unit are her rows times this, in the columns of features and slots; an array per block.
    own : Tensor, shape (Q, R)
        In the factor of the units' own blocks.
    border : tuple of Tensor, shape (S, S)
        In those of the border slots.
    """

    rows: tuple[Tensor, ...]
    own: Tensor
    border: tuple[Tensor, ...]


def slopes(m: Moments, factors: Factors, fit: Profile) -> Slopes:
    """Derivatives of half the profiled deviance in rows and factors.

    Notes
    -----
    Nothing is differentiated through a factorisation. By the envelope theorem and ``d log|A| = tr(A^-1 dA)``, with
    beta, sigma and the modes u at their best values and f a row, times ``c = (nested effects, beta + own effects, -1,
    border effects)`` is minus her residual e, the derivative is ``f (c c' / sigma^2 + L A^-1 L')``, and
    ``Z'Z L A^-1 - Z'e u' / sigma^2`` in L; of ``A^-1`` only blocks of effects that meet in a row are needed. Where beta
    is integrated out, with posterior covariance ``sigma^2 W`` and ``V^-1 X = F P`` for the rows F of a unit,
    ``f P W P'`` comes on top, and ``-Z'F P W X'Z L A^-1`` in L, as ``d log|X'V^-1 X + s| = tr(W d X'V^-1 X)``.
    """
    u, each = both_latents(m, fit)
    if fit.border is None or u.border is None:
        parts = [unit_slopes(m, factors, fit, (u, each), k) for k in range(len(m.gram))]
        return Slopes(tuple(part.rows for part in parts), sum_of([part.own for part in parts]), ())
    S = torch.cholesky_inverse(fit.border.root)
    parts = [crossed_slopes(m, factors, fit, (u, each), S, k) for k in range(len(m.gram))]
    border = tuple(part.border for part in parts)
    return Slopes(tuple(part.rows for part in parts), sum_of([part.own for part in parts]), border)


def both_latents(m: Moments, fit: Profile) -> tuple[Latent, Latent | None]:
    """Latent effects of the response less features times beta, and those that `beta_rows` takes (beta integrated out).

    Parameters
    ----------
    m : Moments
    fit : Profile
    """
    combine = torch.cat([-fit.beta, fit.beta.new_ones(1)]).unsqueeze(-1)
    if fit.spread is None:
        return latent_of(m, fit, combine), None
    features = torch.nn.functional.pad(torch.linalg.cholesky(fit.spread), (0, 0, 0, 1))  # without the response
    found = latent_of(m, fit, torch.cat([combine, features], dim=-1))  # products of many small matrices cost alike
    border = found.border
    first, others = (None, None) if border is None else (border[:, :1], border[:, 1:])
    return Latent(found.own[..., :1], first), Latent(found.own[..., 1:], others)


@dataclass(frozen=True, slots=True)
class BlockSlopes:
    """The part of one block in `Slopes`."""

    rows: Tensor
    own: Tensor
    border: Tensor


def residual_columns(m: Moments, fit: Profile, L: Tensor, latent: Tensor, block: int) -> Tensor:
    """What rows are multiplied by to be minus their residuals, shape (B, w).

    Parameters
    ----------
    L : Tensor, shape (w, R)
        Factor of effects, with a row for each column of the rows.
    latent : Tensor, shape (B, R)
    """
    plan, c = m.plan, latent @ L.T
    c[:, plan.first : plan.end - 1] += fit.beta
    c[:, plan.end - 1] = -1.0
    return c


def beta_rows(m: Moments, fit: Profile, L: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
    """What beta, integrated out, adds to the derivatives, as factors of products.

    Parameters
    ----------
    L : Tensor, shape (w, R)
        As in `residual_columns`.
    latent : Tensor, shape (B, R, p)
        Posterior means of the latent effects were the features times J the response, ``J J' = W``.

    Returns
    -------
    S : Tensor, shape (B, p, w)
        ``J'P'``, so that ``S'S`` is added for the rows, and ``-F'F S' M`` in the factor.
    M : Tensor, shape (B, p, R)
    """
    M = latent.mT.contiguous()
    S = -(M @ L.T)
    S[..., m.plan.first : m.plan.first + m.plan.n_features] += torch.linalg.cholesky(fit.spread).T
    return S, M


def unit_slopes(
    m: Moments, factors: Factors, fit: Profile, latent: tuple[Latent, Latent | None], block: int
) -> BlockSlopes:
    """Derivatives in a block of rows and in the factor, units having nothing in common.

    Parameters
    ----------
    latent : tuple of Latent
        Those of the response less features times beta, and of what `beta_rows` takes where beta is integrated out.
    """
    plan, L, gram = m.plan, among_rows(m, factors, block), m.gram[block]
    root = fit.inverse_root[plan.units[block]]
    half, (right, left) = root @ L.T, residual_rows(m, fit, L, latent, block)
    of_rows = torch.cat([half, right], dim=1)  # one product of many small matrices instead of three
    whole = fit.cross[block].flatten(0, 1).T @ root.flatten(0, 1) + (right @ gram).flatten(0, 1).T @ left.flatten(0, 1)
    rows = of_rows.mT @ of_rows
    return BlockSlopes(rows, whole[plan.own], whole[:0])


def residual_rows(
    m: Moments, fit: Profile, L: Tensor, latent: tuple[Latent, Latent | None], block: int
) -> tuple[Tensor, Tensor]:
    """What a unit's rows are multiplied by for her residuals over sigma and, beta integrated out, its features' part.

    Parameters
    ----------
    L : Tensor, shape (w, R)
        As in `residual_columns`.
    latent : tuple of Latent
        As in `unit_slopes`.

    Returns
    -------
    right : Tensor, shape (B, 1 + p, w)
        One row where beta is profiled.
    left : Tensor, shape (B, 1 + p, R)
        ``right' left`` times the cross-products of the rows is a part of the derivative in the factor.
    """
    u, each = latent
    mine = u.own[m.plan.units[block]].squeeze(-1)
    right = residual_columns(m, fit, L, mine, block).unsqueeze(1) / fit.sigma2.sqrt()
    left = mine.unsqueeze(1) / fit.sigma2.sqrt()
    if each is None:
        return right, left
    S, M = beta_rows(m, fit, L, each.own[m.plan.units[block]])
    return torch.cat([right, S], dim=1), torch.cat([left, -M], dim=1)


def factor_curvature(m: Moments, factors: Factors, fit: Profile) -> Tensor:
    """Second derivatives of half the profiled deviance in the units' own factor, about, shape (Q R, Q R), by rows.

    Notes
    -----
    With ``G_i = Z'V^-1 Z`` and ``e_i = V^-1 (y - X beta)``, expected ones in the covariance ``D = L L'``,
    ``tr(G dD G dD) / 2`` summed over units, less what sigma takes, and observed ones in ``d^2 D = 2 dL dL'``, which
    are all that there is along directions in which L has no length: ``sum_i G_i - Z'e e'Z / sigma^2``, with the part
    of beta where it is integrated out. Units have no border. See Bates et al. (2015), and Harville (1977), Journal of
    the American Statistical Association 72, 320-338, equation 5.4, for expected ones.
    """
    (Q, R), z = factors.own.shape, m.plan.own
    latent, L = both_latents(m, fit), factors.own
    crossed, within, left, G_sum = L.new_zeros(R * Q, R * Q), L.new_zeros(Q * Q, R * R), L.new_zeros(Q, Q), 0.0
    for k, gram in enumerate(m.gram):
        U = fit.cross[k][..., z]
        G = gram[:, z][..., z] - U.mT @ U
        g = (G @ L).mT.contiguous()  # (B, R, Q)
        crossed = crossed + g.flatten(1).T @ g.flatten(1)
        within = within + G.flatten(1).T @ (g @ L).flatten(1)
        seen = (residual_rows(m, fit, among_rows(m, factors, k), latent, k)[0] @ gram)[..., z].flatten(0, 1)
        left, G_sum = left - seen.T @ seen, G_sum + G.sum(0)
    found = crossed.view(R, Q, R, Q).permute(3, 0, 1, 2) + within.view(Q, Q, R, R).permute(0, 2, 1, 3)
    found = found + torch.einsum("ab,rs->arbs", left + G_sum, identity_like(L))
    of_sigma = (G_sum @ L).reshape(-1)
    return found.reshape(Q * R, Q * R) - 2.0 / m.n * torch.outer(of_sigma, of_sigma)


def with_border(plan: Plan, u: Latent, block: int) -> Tensor:
    """Latent effects of the units of a block and of the border slots that they meet, shape (B, R + S, k)."""
    if u.border is None:
        raise TypeError("these effects have no border; use u.own")
    return torch.cat([u.own[plan.units[block]], u.border[plan.border[block]]], dim=1)


def crossed_slopes(
    m: Moments, factors: Factors, fit: Profile, latents: tuple[Latent, Latent | None], S: Tensor, block: int
) -> BlockSlopes:
    """Derivatives in a block of rows and in its factors, units having the border in common.

    Parameters
    ----------
    latents : tuple of Latent
        As in `unit_slopes`.
    S : Tensor, shape (M, M)
        The border's block of ``A^-1``.
    """
    plan, gram, z = m.plan, m.gram[block], m.plan.random(block)
    L, (Q, R) = torch.block_diag(factors.own, factors.border[block]), factors.own.shape
    u, features = latents
    latent = with_border(plan, u, block).squeeze(-1)
    whole = L.new_zeros(gram.shape[-1], L.shape[1]).index_copy(0, z, L)
    c, half = residual_columns(m, fit, whole, latent, block), L @ local_inverse(plan, fit, S, block)
    rows = c.unsqueeze(-1) * (c / fit.sigma2).unsqueeze(-2)
    rows[:, z.unsqueeze(-1), z] += half @ L.T
    away = (gram @ c.unsqueeze(-1)).squeeze(-1) / fit.sigma2
    slope = (gram[:, z][..., z] @ half).sum(0) + away[:, z].T @ latent
    if features is not None:
        added, M = beta_rows(m, fit, whole, with_border(plan, features, block))
        rows, slope = rows + added.mT @ added, slope - (added @ gram)[..., z].flatten(0, 1).T @ M.flatten(0, 1)
    return BlockSlopes(rows, slope[:Q, :R], slope[Q:, R:])
