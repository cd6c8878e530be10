"""The quasi-Newton ascent that ends a fit after its warm-up.

References
----------
Liu & Nocedal (1989), Mathematical Programming 45, 503-528 (L-BFGS).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mixmoe.neural.blocks import Tensor, torch

CHUNK = 20  # iterations between two looks at what they gained
HISTORY = 40  # steps that the curvature is learnt from
NEAR = 0.5  # standard errors from the maximum, root mean square over the parameters, that count as having reached it
FAR = 1e6  # times the first loss is what a point counts as whose loss is no number
TINY = 0.01  # share of the log-likelihood that this distance costs below which a look brings nothing more


def near_enough(n_parameters: int) -> float:
    """Log-likelihood below its maximum at a root mean square distance of `NEAR` standard errors."""
    return 0.5 * NEAR**2 * n_parameters


class SpentError(Exception):
    """All evaluations were used, perhaps amid a line search."""


@dataclass(frozen=True, slots=True)
class Ascent:
    """What an ascent brought.

    Attributes
    ----------
    gain : float
        Log-likelihood.
    losses : list of float
        Minus the log-likelihood at each evaluation.
    settled : bool
        Whether it ended because there was next to nothing left to gain.
    """

    gain: float
    losses: list[float]
    settled: bool


def ascend(
    leaves: Sequence[Tensor],
    backward: Callable[[], Tensor],
    *,
    budget: int,
    least: float,
    enough: float = math.inf,
) -> Ascent:
    """L-BFGS on some tensors, in place, until twenty iterations bring next to nothing.

    Parameters
    ----------
    leaves : sequence of Tensor
    backward : callable
        Sets the gradients of the leaves and returns minus the log-likelihood.
    budget : int
        Evaluations at most, of which there is one; where they end amid a line search, the best point of all is kept.
    least : float
        Gain of twenty iterations below which they end.
    enough : float
        Gain from which on nobody asks for more.
    """
    losses: list[float] = []
    best, point = math.inf, [leaf.detach().clone() for leaf in leaves]

    def closure() -> Tensor:
        nonlocal best, point
        if len(losses) >= budget:
            raise SpentError
        for leaf in leaves:
            leaf.grad = None
        loss = number(backward)
        if not math.isfinite(loss) and losses:
            # The line search must see that a step was too long, and cannot reckon with what is no number.
            loss = losses[0] + FAR * (1.0 + abs(losses[0]))
            for leaf in leaves:
                leaf.grad = torch.zeros_like(leaf)
        losses.append(loss)
        if loss < best:
            best, point = loss, [leaf.detach().clone() for leaf in leaves]
        return torch.tensor(loss, dtype=torch.float64, device=leaves[0].device)

    optimiser, fresh = new_optimiser(leaves), True
    first = last = float(closure())
    while len(losses) < budget and first - last < enough:
        before = [leaf.detach().clone() for leaf in leaves]
        try:
            optimiser.step(closure)
            now = float(closure())
        except SpentError:
            put(leaves, point)
            return Ascent(first - min(best, last), losses, settled=False)
        if not now <= last:  # a line search that failed leaves the point that it tried last, which may be lower
            put(leaves, before)
            if fresh:
                return Ascent(first - last, losses, settled=True)
            optimiser, fresh = new_optimiser(leaves), True  # what was learnt of the curvature misled it
            continue
        fresh = False
        gained, last = last - now, now
        if gained < least:
            return Ascent(first - last, losses, settled=True)
    return Ascent(first - last, losses, settled=False)


def put(leaves: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Give some tensors the values of others."""
    with torch.no_grad():
        for leaf, value in zip(leaves, values, strict=True):
            leaf.copy_(value)


def new_optimiser(leaves: Sequence[Tensor]) -> Any:
    """L-BFGS that has seen nothing yet."""
    return torch.optim.LBFGS(
        leaves, max_iter=CHUNK, history_size=HISTORY, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )


def number(backward: Callable[[], Tensor]) -> float:
    """What a loss is; no number where a matrix has no Cholesky factor."""
    try:
        return float(backward().detach())
    except torch.linalg.LinAlgError:
        return math.nan
