"""From a design to padded blocks (standardisation, the split of rows, sequences), and persons in batches."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array, IntArray
from mixmoe.design.design import Design
from mixmoe.design.formula import MoEFormula, parse_formula
from mixmoe.design.frame import shown, view
from mixmoe.errors import DesignError, FormulaError
from mixmoe.mixture.estimate import Flag
from mixmoe.neural.blocks import Block, Blocks, Tensor, build_blocks, torch
from mixmoe.neural.estimators.trained import Problem
from mixmoe.neural.network import Network, Personal
from mixmoe.neural.posterior import Family
from mixmoe.responses.distribution import check_varies, constant_within

MAX_LEVELS = 50  # of categories; a transition matrix grows with their square
MAX_LABELS = 12  # different whole numbers as text that are taken for names of categories
LARGEST = 1e100  # number in the data, and one over the least difference: their squares and fourth powers are finite


@dataclass(frozen=True, slots=True)
class Scaling:
    """Location and scale of inputs and response.

    Attributes
    ----------
    columns : ndarray of int, shape (p,)
        Columns of the expert design that the network sees: all but the intercept.
    mean, sd : ndarray, shape (p,)
    y_mean, y_sd : float
        0 and 1 unless the response is Gaussian.
    """

    columns: IntArray
    mean: Array
    sd: Array
    y_mean: float
    y_sd: float

    def inputs(self, expert: Array) -> Array:
        """Standardised inputs, shape (n, p)."""
        return (expert[:, self.columns] - self.mean) / self.sd

    def response(self, y: NDArray) -> NDArray:
        """Standardised response; codes of categories stay as they are."""
        return y if y.dtype.kind in "iu" else (y - self.y_mean) / self.y_sd


def build_scaling(design: Design, family: Family) -> Scaling:
    """Means and standard deviations (n - 1) of the training data."""
    columns = np.array([k for k, name in enumerate(design.names.expert) if name != "Intercept"], dtype=np.intp)
    x = design.expert[:, columns]
    sd = x.std(axis=0, ddof=1) if design.n > 1 else np.ones(x.shape[1])
    sd = np.where(sd > 0, sd, 1.0)
    if family != "gaussian" or design.response is None:
        return Scaling(columns, x.mean(axis=0), sd, 0.0, 1.0)
    y = design.response
    return Scaling(columns, x.mean(axis=0), sd, float(y.mean()), float(y.std(ddof=1)))


def response_of(design: Design, family: Family, scaling: Scaling) -> NDArray:
    """Response as the loss wants it: standardised, 0/1, or integer codes; zeros where there is none."""
    if design.response is None:
        return np.zeros(design.n, dtype=np.int64 if family in ("multiclass", "crf") else float)
    if family == "gaussian":
        return scaling.response(design.response.astype(float))
    return design.response.astype(np.int64 if family in ("multiclass", "crf") else float)


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
) -> Blocks:
    """Blocks of some rows of a design.

    Parameters
    ----------
    rows : ndarray of bool, shape (n,)
    persons : ndarray of int, shape (N,)
        Row of the effects that each unit of the design has.
    levels : ndarray of int, shape (n, G), optional
        Level of each row of the design in each further grouping.
    """
    members = sequence_codes(design, family)
    n_members = int(members.max()) + 1 if len(members) else 0
    owner = np.zeros(n_members, dtype=np.intp)
    owner[members] = persons[design.codes]
    y = response_of(design, family, scaling)
    x = scaling.inputs(design.expert)
    mine = None if levels is None else levels[rows]
    return build_blocks(x[rows], y[rows], members[rows], n_members, persons=owner, levels=mine, device=device)


def gap_rows(design: Design) -> int:
    """Rows of sequences that follow a gap: a step longer than 1.5 times the usual one."""
    if design.order is None or design.sequence is None or design.n < 3:
        return 0
    same = design.sequence[1:] == design.sequence[:-1]
    steps = np.diff(design.order)[same]
    return int((steps > 1.5 * np.median(steps)).sum()) if len(steps) else 0


def gap_flag(gaps: int, formula: MoEFormula) -> Flag:
    """What a reader must know about sequences with gaps."""
    order = None if formula.seq is None else formula.seq.order
    apart = "" if formula.seq is None or formula.seq.within else f"separate sequences with seq: {order} / column, and "
    return Flag(
        "gaps",
        f"{gaps} rows follow a gap in {order!r} and count as neighbours of the row before; {apart}put rows that are not in "
        "the data back, with the response missing, over which the likelihood sums",
    )


def checked_formula(formula: Any) -> MoEFormula:
    """A parsed formula that this family can fit.

    Raises
    ------
    FormulaError
        If it has sections of other families.
    """
    parsed = formula if isinstance(formula, MoEFormula) else parse_formula(formula)
    if parsed.vary is not None:
        raise FormulaError("NME has no section 'vary:'; leave it out, or use VCMoE, which has", parsed.text)
    if len(parsed.gate) != 1 or parsed.gate[0].text != "1":
        raise FormulaError("NME has no section 'gate:'; leave it out, or use MEMoE, which has", parsed.text)
    if parsed.sigma:
        raise FormulaError("NME has no section 'sigma:'; leave it out, or use MEMoE, which has", parsed.text)
    for part in parsed.expert:
        if part.kind != "free":
            raise FormulaError(f"NME has no {part.kind}(...); write the terms without it", parsed.text)
    return parsed


def chosen_family(family: str, formula: MoEFormula, data: Any) -> Family:
    """The family asked for, or the one that the response suggests."""
    if family != "auto":
        return family  # type: ignore[return-value]
    frame = view(data)
    if formula.random is not None and "transitions" in formula.random.design:
        return "crf"
    if formula.response not in frame:
        return "gaussian"
    values = frame.column(formula.response).dropna()
    refuse_numbers_as_text(values, formula.response)
    if pd.api.types.is_bool_dtype(values.dtype) or not pd.api.types.is_numeric_dtype(values.dtype):
        if formula.seq is not None:
            return "crf"
        return "binary" if values.nunique() == 2 else "multiclass"
    return "binary" if values.isin([0, 1]).all() and values.nunique() == 2 else "gaussian"


def refuse_numbers_as_text(values: pd.Series, name: str) -> None:
    """Refuse a response of texts that all read as numbers and are no labels of a few states.

    Raises
    ------
    DesignError
    """
    if isinstance(values.dtype, pd.CategoricalDtype) or pd.api.types.infer_dtype(values) != "string":
        return
    levels = pd.Series(values.unique())
    numbers = pd.to_numeric(levels, errors="coerce")
    if numbers.isna().any() or (len(levels) <= MAX_LABELS and (numbers == numbers.round()).all()):
        return
    raise DesignError(
        f"the response {name!r} holds numbers as text, such as {shown(levels.iloc[0])}; convert it, for example with "
        "pd.to_numeric, or say family='multiclass' or 'crf' if these are names of categories"
    )


def check_magnitudes(design: Design, family: Family) -> None:
    """Refuse numbers so large or so close together that their squares are beyond double precision.

    Raises
    ------
    DesignError
        Names the column.
    """
    columns = [(name, design.expert[:, k]) for k, name in enumerate(design.names.expert) if name != "Intercept"]
    if family == "gaussian" and design.response is not None:
        columns.insert(0, (design.names.response, design.response.astype(float)))
    for name, values in columns:
        largest, spread = float(np.abs(values).max()), float(np.ptp(values / 2.0)) * 2.0
        if largest > LARGEST or 0.0 < spread < 1.0 / LARGEST:
            what = f"reaches {largest:g}" if largest > LARGEST else f"differs by {spread:g} at most"
            raise DesignError(
                f"column {name!r} {what}, and squares of such numbers are beyond double precision; bring it into other "
                f"units, between {1.0 / LARGEST:g} and {LARGEST:g}"
            )


def check_response(design: Design, family: Family) -> None:
    """Refuse responses that the family cannot have."""
    levels = design.response_levels or ()
    if family == "gaussian":
        check_varies(str(design.names.response), np.asarray(design.response, dtype=float))
    if family == "binary" and len(levels) != 2:
        raise DesignError(f"the response {design.names.response!r} has {len(levels)} levels; family='binary' needs 2")
    if len(levels) > MAX_LEVELS:
        raise DesignError(
            f"the response {design.names.response!r} has {len(levels)} levels; family={family!r} takes at most "
            f"{MAX_LEVELS}; a response of numbers is for family='gaussian'"
        )
    if family == "crf" and design.sequence is None:
        raise FormulaError("a CRF needs the order of the rows within a person; add | seq: column", design.formula.text)


def check_persons(design: Design, personal: Personal) -> None:
    """Refuse person effects where there is one person, whom nothing can be compared with."""
    if personal.q and design.n_units < 2:
        raise DesignError(
            f"the column {design.names.group!r} has one person, {shown(design.labels[0])}, so that nothing tells how "
            "persons differ; give the rows of several, or write re: (0 | ...) for a network without person effects"
        )


def check_within(design: Design, family: Family, network: Network, personal: Personal) -> None:
    """Refuse numbers that an intercept of each person reproduces.

    Raises
    ------
    DesignError
    """
    last_bias = f"layer{network.depth}.bias"
    if family != "gaussian" or network.module is not None or last_bias not in {t.name for t in personal.tensors}:
        return
    y = np.asarray(design.response, dtype=float)
    if (y == y[design.starts][design.codes]).all():
        raise constant_within(str(design.names.response))


def check_rows(design: Design, personal: Personal) -> None:
    """Refuse data in which no person has a second row."""
    if personal.q and design.counts.max() == 1:
        raise DesignError(
            f"each of the {design.n_units} persons has one row, which cannot tell her effects from noise; give persons "
            "with several rows, or fit the generic network with re: (0 | person)"
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
    rows, levels = block.rows[chosen.cpu().numpy(), :longest], block.levels[chosen, :longest]
    return Block(block.persons[chosen], x, y, mask[:, :longest], rows, levels)
