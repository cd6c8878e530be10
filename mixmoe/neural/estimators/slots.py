"""Where the effects of several groupings lie among the columns of the rows of a unit.

The rows of a unit are ``[nested slots | features | response | border slots]``. A slot holds the features of the rows of
one level that the unit meets, and zeros in other rows; nested are the levels that no other unit meets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from mixmoe.neural.blocks import Blocks, Tensor, torch


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
    within = [is_nested(slots) for slots in found]
    order = tuple(sorted(range(len(found)), key=lambda g: not within[g]))
    sizes = [len(block.persons) for block in blocks]
    ends = list(accumulate(sizes))
    units = tuple(slice(end - size, end) for end, size in zip(ends, sizes, strict=True))
    nested = tuple(found[g] for g in order if within[g])
    crossed = tuple(trimmed(found[g], units) for g in order if not within[g])
    masked = tuple(not bool(block.mask.all()) for block in blocks)
    return Plan(columns[0], n_features, nested, crossed, order, border_columns(crossed, units), units, masked)


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


def trimmed(slots: Slots, units: Sequence[slice]) -> Slots:
    """Slots without those that no unit of a block needs."""
    counts = [int((slots.levels[of_block] >= 0).sum(1).max()) for of_block in units]
    return replace(slots, hot=tuple(hot[..., :count] for hot, count in zip(slots.hot, counts, strict=True)))


def is_nested(slots: Slots) -> bool:
    """Whether no level is met by two units."""
    met = slots.levels[slots.levels >= 0]
    return len(torch.unique(met)) == len(met)


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
