"""Persons in batches: which rows one optimiser step sees."""

from dataclasses import dataclass

import numpy as np

from mixmoe.neural._torch import Tensor, torch
from mixmoe.neural.blocks import Block
from mixmoe.neural.problem import Problem


@dataclass(frozen=True, slots=True)
class Batch:
    """Some persons with all their rows.

    Attributes
    ----------
    blocks : tuple of Block
    n_rows : int
    scale : float
        Rows of the batches on average: what a loss is divided by, so that each row counts the same in every batch.
    members : Tensor, shape (N,), or None
        One for the persons of the batch, zero for others; None if it holds everyone.
    """

    blocks: tuple[Block, ...]
    n_rows: int
    scale: float
    members: Tensor | None = None


def split_batches(problem: Problem, batch_size: int | None, rng: np.random.Generator) -> tuple[Batch, ...]:
    """The training rows in batches of persons drawn at random.

    Parameters
    ----------
    problem : Problem
    batch_size : int or None
        Persons per batch at most; None for one batch of all.
    rng : Generator
        Not used where there is one batch.
    """
    train = problem.train
    if batch_size is None or batch_size >= problem.n_persons:
        return (Batch(train.blocks, train.n_rows, float(max(train.n_rows, 1))),)
    n_batches = -(-problem.n_persons // batch_size)
    number = torch.as_tensor(rng.permutation(problem.n_persons) % n_batches, device=problem.device)
    scale = train.n_rows / n_batches
    batches = (one_batch(train.blocks, (number == k).double(), scale) for k in range(n_batches))
    return tuple(batch for batch in batches if batch.n_rows)


def shuffled(batches: tuple[Batch, ...], rng: np.random.Generator) -> tuple[Batch, ...]:
    """The batches in a random order; the generator is not used where there is one."""
    return batches if len(batches) < 2 else tuple(batches[k] for k in rng.permutation(len(batches)))


def one_batch(blocks: tuple[Block, ...], members: Tensor, scale: float) -> Batch:
    """The rows of the persons marked in `members`, shape (N,)."""
    chosen = [take_members(block, members[block.persons] > 0) for block in blocks]
    kept = tuple(block for block in chosen if len(block.persons))
    return Batch(kept, sum(int(block.mask.sum()) for block in kept), scale, members)


def take_members(block: Block, chosen: Tensor) -> Block:
    """The members of a block where `chosen` (B,) is true, padded to the longest among them."""
    mask = block.mask[chosen]
    longest = int(mask.sum(1).max()) if len(mask) else 0
    x, y = (values[chosen, :longest] for values in (block.x, block.y))
    return Block(block.persons[chosen], x, y, mask[:, :longest], block.rows[chosen.cpu().numpy(), :longest])
