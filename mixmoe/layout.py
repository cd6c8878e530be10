"""The parameter vector of a model: a name, a block and an expert for each entry."""

from dataclasses import dataclass
from typing import Literal

Block = Literal["expert", "common", "gate", "random", "residual", "dispersion", "threshold", "other"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One entry of a parameter vector.

    Attributes
    ----------
    name : str
        Full name as used in hypotheses, e.g. ``expert1.time``, ``gate2.z``, ``sd1(time|id)``, ``sigma1``.
    block : str
        ``"expert"``, ``"common"``, ``"gate"``, ``"random"``, ``"residual"``, ``"dispersion"``, ``"threshold"`` or
        ``"other"``.
    term : str
        Name within its block, e.g. ``time`` or ``sd(time)``.
    expert : int or None
        Expert it belongs to, counted from 1; None if shared by all.
    tested : bool
        Whether "equal to zero" is a meaningful hypothesis: false for standard deviations.
    """

    name: str
    block: Block
    term: str
    expert: int | None = None
    tested: bool = True


@dataclass(frozen=True, slots=True)
class ParamLayout:
    """Names and blocks of a parameter vector, in its order."""

    parameters: tuple[Parameter, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Full names in the order of the vector."""
        return tuple(p.name for p in self.parameters)

    def where(self, block: Block, expert: int | None = None) -> list[int]:
        """Positions of the parameters of one block, of one expert if given."""
        return [i for i, p in enumerate(self.parameters) if p.block == block and (expert is None or p.expert == expert)]
