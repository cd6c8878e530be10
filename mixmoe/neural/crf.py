"""Linear-chain conditional random field on padded batches: likelihood, marginals, decoding.

The score of a state sequence is the sum of its emission scores and of its transition scores; transitions may differ
between the sequences of a batch. All functions loop over the steps of the longest sequence and over nothing else.

References
----------
Lafferty, McCallum & Pereira (2001), ICML; Rabiner (1989), Proceedings of the IEEE 77, 257-286.
"""

from mixmoe.neural.blocks import Tensor, torch
from mixmoe.neural.network import FORBIDDEN

LOWEST = 600.0  # below the best state of a row no score lies: of so little probability nothing is seen
DOUBLINGS = 16  # of the rows after a move: 65536, beyond which no chain that data can tell has a memory


def per_sequence(transitions: Tensor, n_sequences: int) -> Tensor:
    """Transition scores per sequence (B, C, C) from shared (C, C) or personal (B, C, C) ones."""
    return transitions if transitions.dim() == 3 else transitions.expand(n_sequences, *transitions.shape)


def sequence_score(emissions: Tensor, transitions: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    """Unnormalised log-score of the given states.

    Parameters
    ----------
    emissions : Tensor, shape (B, T, C)
    transitions : Tensor, shape (C, C) or (B, C, C)
        From (row) to (column).
    states : Tensor of int, shape (B, T)
    mask : Tensor, shape (B, T)
        One on rows that exist; these come first.

    Returns
    -------
    Tensor, shape (B,)
    """
    B, _, C = emissions.shape
    emitted = (torch.gather(emissions, 2, states.unsqueeze(-1)).squeeze(-1) * mask).sum(-1)
    table = per_sequence(transitions, B).reshape(B, C * C)
    moved = torch.gather(table, 1, states[:, :-1] * C + states[:, 1:])
    return emitted + (moved * mask[:, 1:]).sum(-1)


def log_partition(emissions: Tensor, transitions: Tensor, mask: Tensor) -> Tensor:
    """Log of the sum over all state sequences, shape (B,).

    Parameters
    ----------
    emissions, transitions, mask
        As in `sequence_score`.

    Notes
    -----
    The forward recursion on probabilities that are brought to sum one at each row (Rabiner 1989, section V.A): a step
    is a product, where logarithms would take as many exponentials as there are transitions, and its derivative them
    once more.
    """
    high = transitions.amax((-2, -1), keepdim=True).detach()
    best = emissions.amax(-1, keepdim=True).detach()
    moves, there = (transitions - high).exp(), (emissions - best).clamp_min(-LOWEST).exp()
    present = mask.unsqueeze(-1) > 0
    sizes = [there[:, 0].sum(-1, keepdim=True)]
    alpha = there[:, 0] / sizes[0]
    for t in range(1, emissions.shape[1]):
        moved = alpha @ moves if moves.dim() == 2 else (alpha.unsqueeze(-1) * moves).sum(1)
        moved = moved * there[:, t]
        size = moved.sum(-1, keepdim=True)
        # Padding passes the last real row on, so that sequences of any length share one batch.
        alpha = torch.where(present[:, t], moved / size, alpha)
        sizes.append(torch.where(present[:, t], size, 1.0))
    steps = mask.sum(-1) - 1.0
    return torch.cat(sizes, -1).log().sum(-1) + (best.squeeze(-1) * mask).sum(-1) + high.flatten() * steps


def sequence_loss(emissions: Tensor, transitions: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    """Negative log-probability of the given states, summed over those that are missing (-1), shape (B,)."""
    # Missing states are summed over: a second forward pass with the seen ones clamped.
    if bool((states < 0).any()):
        seen = log_partition(clamped(emissions, states), transitions, mask)
    else:
        seen = sequence_score(emissions, transitions, states, mask)
    return log_partition(emissions, transitions, mask) - seen


def clamped(emissions: Tensor, states: Tensor) -> Tensor:
    """Emission scores that leave a row its given state only, all of them where it is missing; shape (B, T, C)."""
    other = torch.arange(emissions.shape[-1], device=emissions.device) != states.unsqueeze(-1)
    return emissions.masked_fill(other & (states >= 0).unsqueeze(-1), FORBIDDEN)


def marginals(emissions: Tensor, transitions: Tensor, mask: Tensor) -> Tensor:
    """Probability of every state at every row given the whole sequence of inputs.

    Returns
    -------
    Tensor, shape (B, T, C)
        Zero where padded.

    Notes
    -----
    The derivative of the log-partition function in an emission score is the marginal: forward-backward by
    back-propagation.
    """
    with torch.enable_grad():
        scores = emissions.detach().requires_grad_(True)
        total = log_partition(scores, transitions.detach(), mask).sum()
        return torch.autograd.grad(total, scores)[0] * mask.unsqueeze(-1)


def decode(emissions: Tensor, transitions: Tensor, mask: Tensor) -> Tensor:
    """Most probable state sequence (Viterbi), shape (B, T); zero where padded."""
    table = per_sequence(transitions, emissions.shape[0])
    present = mask > 0
    best, back = emissions[:, 0], []
    for t in range(1, emissions.shape[1]):
        top = (best.unsqueeze(-1) + table).max(dim=1)
        stay = torch.arange(best.shape[1], device=best.device).expand_as(top.indices)
        back.append(torch.where(present[:, t : t + 1], top.indices, stay))
        best = torch.where(present[:, t : t + 1], top.values + emissions[:, t], best)
    states = [best.argmax(dim=-1)]
    for pointer in reversed(back):
        states.append(pointer.gather(1, states[-1].unsqueeze(-1)).squeeze(-1))
    return torch.stack(states[::-1], dim=1) * present


def effect_information(
    emissions: Tensor, transitions: Tensor, slopes: Tensor, mask: Tensor, moves: bool, states: Tensor | None = None
) -> Tensor:
    """Second derivatives of the loss of each sequence in the effects, emissions linearised in them.

    Parameters
    ----------
    emissions, transitions, mask
        As in `sequence_score`.
    slopes : Tensor, shape (B, T, C, l)
        Derivatives of the emissions in the effects on layers; l may be 0.
    moves : bool
        Whether the transition scores have effects; these come behind the others.
    states : Tensor of int, shape (B, T), optional
        Given states; needed where some are missing (-1).

    Returns
    -------
    Tensor, shape (B, l + C*C, l + C*C) or (B, l, l)
        A covariance of statistics given the inputs; it does not depend on the states that were seen. Where states are
        missing, less their covariance given those that were seen: what these do not tell.
    """
    if states is not None and bool((states < 0).any()):
        whole = effect_information(emissions, transitions, slopes, mask, moves)
        # Louis: what was not seen carries the information that the complete sequence would add.
        return whole - effect_information(clamped(emissions, states), transitions, slopes, mask, moves)
    B, T, C = emissions.shape
    n_layers = slopes.shape[-1]
    moved = torch.eye(C * C if moves else 0, dtype=emissions.dtype, device=emissions.device)
    counted = torch.nn.functional.pad(moved, (n_layers, 0)).view(C, C, -1) if moves else moved.new_zeros(C, C, n_layers)
    emitted = torch.nn.functional.pad(slopes, (0, C * C if moves else 0))
    table, present = per_sequence(transitions, B), mask > 0
    # Of the paths that end in each state: log of their weight, mean and covariance of their statistics (recursion of
    # total covariance). Second derivatives by back-propagation would cost ten times as much.
    alpha, mean = emissions[:, 0], emitted[:, 0]
    cov = mean.new_zeros(B, C, mean.shape[-1], mean.shape[-1])
    for t in range(1, T):
        scores = alpha.unsqueeze(-1) + table
        before = torch.softmax(scores, dim=1)  # of the state before given this one, (B, from, to)
        along = mean.unsqueeze(2) + counted
        now = torch.einsum("zab,zabn->zbn", before, along)
        away = along - now.unsqueeze(1)
        spread = torch.einsum("zab,zanm->zbnm", before, cov)
        # Total covariance: the mean of the covariances plus the covariance of the means over the state before.
        spread = spread + torch.einsum("zabn,zabm->zbnm", before.unsqueeze(-1) * away, away)
        there = present[:, t, None]
        alpha = torch.where(there, torch.logsumexp(scores, dim=1) + emissions[:, t], alpha)
        mean = torch.where(there.unsqueeze(-1), now + emitted[:, t], mean)
        cov = torch.where(there.unsqueeze(-1).unsqueeze(-1), spread, cov)
    weight = torch.softmax(alpha, dim=-1)
    away = mean - torch.einsum("zb,zbn->zn", weight, mean).unsqueeze(1)
    return torch.einsum("zb,zbnm->znm", weight, cov) + (weight.unsqueeze(-1) * away).transpose(1, 2) @ away


def next_state(transitions: Tensor, emissions: Tensor) -> Tensor:
    """Probabilities of the next state given the present one in the middle of a long sequence of equal inputs.

    Parameters
    ----------
    transitions : Tensor, shape (..., C, C)
    emissions : Tensor, shape (C,) or broadcastable to (..., 1, C)
        Scores of every row.

    Returns
    -------
    Tensor, shape (..., C, C)

    Notes
    -----
    With ``M = exp(transitions + emissions)`` and n rows after the next one the probability of b after a is
    ``M_ab m_b / (M m)_a``, where ``m = M^n 1`` is the message back from these rows. As n grows, m becomes the right
    eigenvector of the largest eigenvalue of M: a conditional random field is no Markov chain that is normalised row by
    row, and ``n = 0``, a softmax of the scores, holds at the end of a sequence only. Here ``n = 2^DOUBLINGS``, which
    needs no eigenvalues and stays defined where moves are ruled out.
    """
    scores = transitions + emissions
    # Of the paths over n rows from each state: the share that ends in each state, and the log of their sum.
    share, ahead = torch.softmax(scores, dim=-1), torch.logsumexp(scores, dim=-1)
    for _ in range(DOUBLINGS):
        joint = share.log() + ahead.unsqueeze(-2)
        share, ahead = torch.softmax(joint, dim=-1) @ share, ahead + torch.logsumexp(joint, dim=-1)
        ahead = ahead - ahead.amax(-1, keepdim=True)  # a constant has no part, and would take digits
    return torch.softmax(scores + ahead.unsqueeze(-2), dim=-1)


def centred(transitions: Tensor) -> Tensor:
    """Transition scores without what no sequence can tell: a constant, which changes all paths of one length alike."""
    return transitions - transitions.mean(dim=(-2, -1), keepdim=True)


def interior(transitions: Tensor) -> Tensor:
    """Transition scores without what the ends of a sequence alone tell, which is little: differences ``u_a - u_b``.

    Notes
    -----
    ``u_a - u_b`` telescopes to u at the first row less u at the last one.
    """
    C = transitions.shape[-1]
    centred_scores = centred(transitions)
    u = (centred_scores.sum(-1) - centred_scores.sum(-2)) / (2.0 * C)
    return centred_scores - (u.unsqueeze(-1) - u.unsqueeze(-2))


def messages_back(emissions: Tensor, transitions: Tensor, mask: Tensor) -> Tensor:
    """Log of the sum over all that may follow each state of each row, shape (B, T, C); zero at the last row."""
    table = per_sequence(transitions, emissions.shape[0])
    ahead = torch.zeros_like(emissions[:, 0])
    found = [ahead]
    for t in range(emissions.shape[1] - 1, 0, -1):
        moved = torch.logsumexp(table + (emissions[:, t] + ahead).unsqueeze(1), dim=2)
        ahead = torch.where(mask[:, t : t + 1] > 0, moved, ahead)
        found.append(ahead)
    return torch.stack(found[::-1], dim=1)


def sample_states(emissions: Tensor, transitions: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
    """State sequences drawn from the distribution given the inputs: messages backwards, then states forwards.

    Parameters
    ----------
    emissions, transitions, mask
        As in `sequence_score`.
    noise : Tensor, shape (B, T, C)
        Independent standard Gumbel values.

    Returns
    -------
    Tensor of int, shape (B, T)
        Zero where padded.
    """
    B = emissions.shape[0]
    table, each = per_sequence(transitions, B), torch.arange(B, device=emissions.device)
    # Gumbel noise turns the draw of a category into an argmax: a whole batch at once, and the same noise on any device.
    scores = emissions + messages_back(emissions, transitions, mask) + noise
    states = [scores[:, 0].argmax(-1)]
    for t in range(1, emissions.shape[1]):
        states.append((scores[:, t] + table[each, states[-1]]).argmax(-1))
    return torch.stack(states, dim=1) * (mask > 0)
