"""Rows of sequences behind those whose states are known (CRF)."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mixmoe._typing import IntArray
from mixmoe.design.design import Design
from mixmoe.design.frame import shown
from mixmoe.design.labels import places_of, units_of
from mixmoe.errors import ArgumentError
from mixmoe.neural.batches import Scaling
from mixmoe.neural.blocks import Blocks, build_blocks
from mixmoe.output.predictions import known_places


@dataclass(frozen=True, slots=True)
class Following:
    """Sequences of rows with known states and new ones behind them.

    Attributes
    ----------
    blocks : Blocks
        Codes of the known states; -1 on new rows.
    places : ndarray of int, shape (n,)
        Where the new rows of known persons, in the order of their design, are among the rows of the blocks.
    """

    blocks: Blocks
    places: IntArray


def following_rows(
    fit: Design, past: Design, new: Design, scaling: Scaling, known: IntArray, device: str
) -> Following | None:
    """The new rows of known persons behind their rows of the past; None where no row of the past comes before.

    Parameters
    ----------
    fit : Design
        Of the fit.
    past : Design
        Whose units are the known persons.
    new : Design
    known : ndarray of int, shape (N,)
        Place of each unit of `new` among the units of `past`, -1 for unknown ones.

    Notes
    -----
    Given the states of the past the new ones have the distribution of the whole sequence with the emissions of the past
    clamped to its states, so that forward-backward stays exact; states that are missing in the past are summed over.
    """
    before = sequences_ahead(fit, past, new, known)
    used, mine = before >= 0, (known >= 0)[new.codes]
    if not used.any() or new.sequence is None:
        return None
    members = np.concatenate([before[used], new.sequence[mine]])
    x = np.concatenate([scaling.inputs(past.expert)[used], scaling.inputs(new.expert)[mine]])
    y = np.concatenate([np.asarray(past.response)[used], np.full(int(mine.sum()), -1)]).astype(np.int64)
    owner = np.zeros(int(members.max()) + 1, dtype=np.intp)
    owner[new.sequence[mine]] = known[new.codes[mine]]
    order = np.argsort(members, kind="stable")  # rows of the past were put first, and stay so in each sequence
    blocks = build_blocks(x[order], y[order], members[order], len(owner), persons=owner, device=device)
    places = np.empty(len(order), dtype=np.intp)
    places[order] = np.arange(len(order))
    return Following(blocks, places[int(used.sum()) :])


def sequences_ahead(fit: Design, past: Design, new: Design, known: IntArray) -> IntArray:
    """The sequence of `new` that each row of the past comes before, shape (n,); -1 for none.

    A row comes before a sequence of the same person, and of the same value of the column that separates sequences, if
    its place is before that of the first new row there.
    """
    none, seq = np.full(past.n, -1, dtype=np.intp), past.formula.seq
    if seq is None or new.sequence is None or past.sequence is None:
        return none
    firsts = np.flatnonzero(np.diff(new.sequence, prepend=-1))
    begins = np.flatnonzero(np.diff(past.sequence, prepend=-1))
    parts_new, parts_past = np.zeros(len(firsts), dtype=np.intp), np.zeros(len(begins), dtype=np.intp)
    if seq.within is not None:
        labels = past.frame[seq.within].to_numpy(dtype=object)[begins]
        parts_past = known_places(labels, labels, seq.within)
        parts_new = known_places(new.frame[seq.within].to_numpy(dtype=object)[firsts], labels, seq.within)
    owners = known[new.codes[firsts]]
    found = {(int(owner), int(part)): k for k, (owner, part) in enumerate(zip(owners, parts_new, strict=True))}
    keys = zip(past.codes[begins], parts_past, strict=True)
    ahead = np.array([found.get((int(person), int(part)), -1) for person, part in keys], dtype=np.intp)[past.sequence]
    # A sequence of a stranger has the key (-1, part), which no row of the past has.
    if (ahead < 0).all():
        return none
    ranks = common_ranks(*(design.frame[seq.order] for design in (fit, past, new)))
    earlier = ranks[: past.n] < ranks[past.n :][firsts][np.maximum(ahead, 0)]
    return np.where((ahead >= 0) & earlier, ahead, none)


def common_ranks(fit: pd.Series, past: pd.Series, new: pd.Series) -> IntArray:
    """Ranks of two columns that order sequences as one, shape (n + m,); of categories those of the fit.

    Raises
    ------
    ArgumentError
        For a category that the fit has not: the rows at hand hold no other order of categories than that in the fit.
    """
    if not any(isinstance(values.dtype, pd.CategoricalDtype) for values in (fit, past, new)):
        return units_of(pd.concat([past, new], ignore_index=True)).codes
    levels = list(pd.Categorical(fit).categories)
    whole = [*past, *new]
    ranks = places_of(whole, levels)
    if (ranks < 0).any():
        raise ArgumentError(
            f"the column {new.name!r}, which orders the rows, has the category {shown(whole[int(ranks.argmin())])}, "
            "which the fit has not, so that nothing says whether it comes before or after the states that are known; "
            "make the column numbers or dates"
        )
    return ranks
