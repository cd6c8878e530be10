"""From a design to padded blocks (standardisation, the split of rows, sequences), and persons in batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array, IntArray
from mixmoe.design.checks import level_scores
from mixmoe.design.design import Design, column_terms, offset_of, weights_of
from mixmoe.design.formula import MoEFormula
from mixmoe.errors import AssumptionWarning, warn
from mixmoe.mixture.estimate import Flag
from mixmoe.neural.blocks import Block, Blocks, Tensor, build_blocks, torch
from mixmoe.neural.estimators.trained import Problem
from mixmoe.neural.network import Network
from mixmoe.neural.response_law import COUNTS, OF_NORMAL, Family


@dataclass(frozen=True, slots=True)
class Scaling:
    """Location and scale of inputs and response.

    Attributes
    ----------
    columns : ndarray of int, shape (p,)
        Columns of the expert design that the network sees: all but the intercept.
    mean, sd : ndarray, shape (p,)
    y_mean, y_sd : float
        0 and 1 unless the response is Gaussian; of counts `y_mean` is the log of their mean rate, from which outputs
        of the network are reckoned.
    gate_columns : ndarray of int, shape (m,)
        Columns of the gate's design: covariates of persons that transitions go with (CRF).
    gate_mean, gate_sd : ndarray, shape (m,)
        Over persons.
    scale_mean, scale_sd : ndarray, shape (v,)
        Of the covariates of the log dispersion.
    has_offset : bool
        Whether rows have an offset, of counts the log of their mean rate beside that of the exposure.
    """

    columns: IntArray
    mean: Array
    sd: Array
    y_mean: float
    y_sd: float
    gate_columns: IntArray
    gate_mean: Array
    gate_sd: Array
    scale_mean: Array
    scale_sd: Array
    has_offset: bool = False

    def inputs(self, expert: Array) -> Array:
        """Standardised inputs, shape (n, p)."""
        return (expert[:, self.columns] - self.mean) / self.sd

    def covariates(self, gate: Array) -> Array:
        """Standardised covariates of persons, shape (N, m)."""
        return (gate[:, self.gate_columns] - self.gate_mean) / self.gate_sd

    def rows(self, design: Design) -> Array:
        """What the network sees of each row, shape (n, p + m).

        Inputs, and behind them the person's covariates (CRF), or those of the log dispersion, at their means where the
        design has none, and the offset.
        """
        columns = [self.inputs(design.expert)]
        if len(self.gate_columns):
            columns.append(self.covariates(design.gate)[design.codes])
        if len(self.scale_mean):
            absent = np.broadcast_to(self.scale_mean, (design.n, len(self.scale_mean)))
            z = design.sigma if design.sigma.shape[1] else absent
            columns.append((z - self.scale_mean) / self.scale_sd)
        if self.has_offset:
            columns.append((self.y_mean + offset_of(design))[:, None])
        return np.hstack(columns)

    def response(self, y: Array) -> Array:
        """Standardised response of numbers."""
        return (y - self.y_mean) / self.y_sd


def coded_response(design: Design, family: Family, scaling: Scaling) -> NDArray:
    """The response as the likelihood has it, shape (n,): standardised, counts, or codes of categories; zero without."""
    kind = np.int64 if family in ("multiclass", "crf", "ordinal") else float
    if design.response is None:
        return np.zeros(design.n, dtype=kind)
    if family == "ordinal":
        return np.searchsorted(level_scores(design.response_levels or ()), design.response).astype(kind)
    y = design.response.astype(kind)
    return scaling.response(y) if family in OF_NORMAL else y


def build_scaling(design: Design, family: Family) -> Scaling:
    """Means and standard deviations (n - 1) of the training data."""
    offset = offset_of(design)
    columns = np.array([k for k, name in enumerate(design.names.expert) if name != "Intercept"], dtype=np.intp)
    x = design.expert[:, columns]
    sd = x.std(axis=0, ddof=1) if design.n > 1 else np.ones(x.shape[1])
    sd = np.where(sd > 0, sd, 1.0)
    of_gate = np.array([k for k, name in enumerate(design.names.gate) if name != "Intercept"], dtype=np.intp)
    w = design.gate[:, of_gate]
    spread = w.std(axis=0, ddof=1) if design.n_units > 1 else np.ones(w.shape[1])
    z = design.sigma
    of_scale = z.std(axis=0, ddof=1) if design.n > 1 else np.ones(z.shape[1])
    of_gates = (of_gate, w.mean(axis=0), np.where(spread > 0, spread, 1.0))
    of_scales = (z.mean(axis=0), np.where(of_scale > 0, of_scale, 1.0))
    has_offset = family in COUNTS or "offset" in design.aux
    y_mean, y_sd, y = 0.0, 1.0, design.response
    if family in COUNTS and y is not None:
        y_mean = float(np.log(y.sum() / np.exp(offset).sum()))
    if family in OF_NORMAL and y is not None:
        y_mean, y_sd = float(y.mean()), float(y.std(ddof=1))
    return Scaling(columns, x.mean(axis=0), sd, y_mean, y_sd, *of_gates, *of_scales, has_offset)


def named_inputs(
    design: Design, scaling: Scaling, network: Network, family: Family
) -> Mapping[str, Sequence[int]] | None:
    """Inputs of the last layer that each term or column stands for; None where it sees no inputs of the formula."""
    if network.hidden or network.module is not None or family != "gaussian":
        return None
    terms = column_terms(design, "expert")
    places: dict[str, list[int]] = {}
    for place, column in enumerate(scaling.columns):
        for name in {design.names.expert[column], terms[column]}:
            places.setdefault(name, []).append(place)
    return places


def sequence_codes(design: Design, family: Family) -> IntArray:
    """Member of a block that each row belongs to: its sequence (CRF) or its person, shape (n,)."""
    if family == "crf" and design.sequence is not None:
        return design.sequence
    return design.codes


def held_out_rows(members: IntArray, share: float) -> NDArray[np.bool_]:
    """Rows of the validation set: the last `share` of each member's rows, never all of them.

    Parameters
    ----------
    members : ndarray of int, shape (n,)
        Non-decreasing; rows of a member in the order of time.
    share : float

    Returns
    -------
    ndarray of bool, shape (n,)
    """
    counts = np.bincount(members)
    starts = np.cumsum(counts) - counts
    place = np.arange(len(members)) - starts[members]
    kept = counts - np.minimum(np.floor(share * counts + 0.5), counts - 1)
    return place >= kept[members]


def blocks_of(
    design: Design,
    family: Family,
    scaling: Scaling,
    rows: NDArray[np.bool_],
    persons: IntArray,
    device: str,
    levels: IntArray | None = None,
    given: NDArray[np.bool_] | None = None,
) -> Blocks:
    """Blocks of some rows of a design.

    Parameters
    ----------
    rows : ndarray of bool, shape (n,)
    persons : ndarray of int, shape (N,)
        Row of the effects that each unit of the design has.
    levels : ndarray of int, shape (n, G), optional
        Level of each row of the design in each further grouping.
    given : ndarray of bool, shape (n,), optional
        Rows of the design whose state is known beforehand.
    """
    members = sequence_codes(design, family)
    n_members = int(members.max()) + 1 if len(members) else 0
    owner = np.zeros(n_members, dtype=np.intp)
    owner[members] = persons[design.codes]
    y = coded_response(design, family, scaling)
    x = scaling.rows(design)
    mine = None if levels is None else levels[rows]
    known = None if given is None else given[rows]
    return build_blocks(
        x[rows],
        y[rows],
        members[rows],
        n_members,
        persons=owner,
        levels=mine,
        given=known,
        weights=weights_of(design)[rows],
        device=device,
    )


def split_rows(
    design: Design,
    family: Family,
    scaling: Scaling,
    levels: IntArray,
    device: str,
    share: float = 0.0,
    holdout: float = 0.0,
) -> tuple[Blocks, Blocks]:
    """Blocks of the training and of the validation rows, persons (or sequences) being split by the order of time.

    Parameters
    ----------
    levels : ndarray of int, shape (n, G)
    share : float
        Of each member's last rows, which are for validation.
    holdout : float
        Of the rows behind these, which are left out of both.

    Notes
    -----
    Validation rows of a CRF stand with those before them in the sequence, given whose states they are scored: what a
    state was is most of what there is to know of the next one.
    """
    members = sequence_codes(design, family)
    used = ~held_out_rows(members, holdout)
    held = np.zeros(design.n, dtype=bool)
    held[used] = held_out_rows(members[used], share)
    persons = np.arange(design.n_units)
    train, kept = (blocks_of(design, family, scaling, rows, persons, device, levels) for rows in (used & ~held, held))
    if family != "crf":
        return train, kept
    whole = used & np.isin(members, members[held])
    kept = blocks_of(design, family, scaling, whole, persons, device, levels, given=~held)
    return train, Blocks(kept.blocks, int(held.sum()))


def gap_rows(design: Design) -> int:
    """Rows of sequences that follow a gap: a step longer than 1.5 times the usual one."""
    if design.order is None or design.sequence is None or design.n < 3:
        return 0
    same = design.sequence[1:] == design.sequence[:-1]
    steps = np.diff(design.order)[same]
    return int((steps > 1.5 * np.median(steps)).sum()) if len(steps) else 0


def gap_flag(gaps: int, formula: MoEFormula) -> Flag:
    """What a reader must know about sequences with gaps."""
    order, within = (None, None) if formula.seq is None else (formula.seq.order, formula.seq.within)
    apart = "" if within is not None else f", or separate sequences with seq: {order} / column"
    return Flag(
        "gaps",
        f"{gaps} rows follow a gap in {order!r}, a step longer than 1.5 times the usual one, and count as neighbours "
        "of the row before",
        "put rows of occasions that were missed back with their inputs and without a state, over "
        f"which the likelihood sums{apart}",
    )


FAR = 0.5  # of the range of an input in the fit: rows so far beyond its ends are far outside


def warn_outside(fit: Design, new: Design, inputs: Mapping[str, NDArray[np.bool_]]) -> None:
    """Tell that rows to predict lie far outside the data, where a network with hidden layers is anybody's guess.

    Parameters
    ----------
    fit, new : Design
    inputs : mapping of str to ndarray of bool
        Of the sections ``"expert"`` and ``"gate"``: columns that pass through hidden layers.

    Warns
    -----
    AssumptionWarning
    """
    for section, chosen in inputs.items():
        seen, rows = getattr(fit, section), getattr(new, section)
        low, high = seen.min(axis=0), seen.max(axis=0)
        beyond = np.maximum(low - rows, rows - high) > FAR * (high - low)
        for column in np.flatnonzero(beyond.any(axis=0) & (high > low) & chosen):
            count, value = int(beyond[:, column].sum()), rows[beyond[:, column], column][0]
            warn(
                f"the input {getattr(fit.names, section)[column]!r} is {value:g} in rows to predict ({count} of "
                f"{len(rows)}), far outside the data of the fit, {low[column]:g} to {high[column]:g}: there a network "
                "follows its activations and no data, and limits do not show it; predict within the data, or use a "
                "linear network, hidden=()",
                AssumptionWarning,
            )


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
    batches = []
    for k in range(n_batches):
        members = (number == k).double()
        chosen = [take_members(block, members[block.persons] > 0) for block in train]
        kept = tuple(block for block in chosen if len(block.persons))
        batches.append(Batch(kept, sum(int(block.mask.sum()) for block in kept), scale, members))
    return tuple(batch for batch in batches if batch.n_rows)


def shuffled(batches: tuple[Batch, ...], rng: np.random.Generator) -> tuple[Batch, ...]:
    """The batches in a random order; the generator is not used where there is one."""
    return batches if len(batches) < 2 else tuple(batches[k] for k in rng.permutation(len(batches)))


def take_members(block: Block, chosen: Tensor) -> Block:
    """The members of a block where `chosen` (B,) is true, padded to the longest among them."""
    mask = block.mask[chosen]
    longest = int(mask.sum(1).max()) if len(mask) else 0
    x, y = (values[chosen, :longest] for values in (block.x, block.y))
    rows, levels = block.rows[chosen.cpu().numpy(), :longest], block.levels[chosen, :longest]
    given, weights = block.given[chosen, :longest], block.weights[chosen, :longest]
    return Block(block.persons[chosen], x, y, mask[:, :longest], rows, levels, given, weights)
