"""The items of two reporting guidelines, each answered from the fit or said not to be reported, and why."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mixmoe.errors import ArgumentError
from mixmoe.output.tables import Table
from mixmoe.report.evidence import Evidence
from mixmoe.report.grolts import ITEMS as GROLTS
from mixmoe.report.smart import ITEMS as SMART

_OPEN = ("Not reported", "In part")


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a guideline with its answer.

    Attributes
    ----------
    key : str
    asked : str
    answer : str
    """

    key: str
    asked: str
    answer: str

    @property
    def status(self) -> str:
        """How far it is answered: the answer begins with it where it is not, or not wholly."""
        return next((word.lower() for word in _OPEN if self.answer.startswith(word)), "reported")


def grolts(evidence: Evidence) -> tuple[Item, ...]:
    """GRoLTS, for latent trajectory studies (van de Schoot et al. 2017)."""
    return _answered(GROLTS, evidence)


def smart_lca(evidence: Evidence) -> tuple[Item, ...]:
    """SMART-LCA, for latent class analysis (van Lissa et al. 2023)."""
    return _answered(SMART, evidence)


def _answered(items: Sequence[tuple[str, str, Callable[[Evidence], str]]], evidence: Evidence) -> tuple[Item, ...]:
    return tuple(_item(evidence, key, asked, answer) for key, asked, answer in items)


def _item(evidence: Evidence, key: str, asked: str, answer: Callable[[Evidence], str]) -> Item:
    given = evidence.answers.get(key)
    text = f"Author: {given}" if given else answer(evidence)
    return Item(key, asked, text)


def check_answers(evidence: Evidence) -> None:
    """Refuse answers to items that do not exist.

    Raises
    ------
    ArgumentError
    """
    known = [key for key, _, _ in (*GROLTS, *SMART)]
    for key in evidence.answers:
        if key not in known:
            raise ArgumentError(f"answers has {key!r}; the items are {', '.join(known)}")


def checklist_table(key: str, title: str, items: Sequence[Item]) -> Table:
    """Items, what they ask, and the answers."""
    counts = Counter(item.status for item in items)
    found = ", ".join(f"{counts[status]} {status}" for status in ("reported", "in part", "not reported"))
    return Table(
        key=key,
        title=title,
        columns=("Asked", "Status", "Answer"),
        index=tuple(item.key for item in items),
        cells=tuple((i.asked, i.status, i.answer) for i in items),
        formats=("text", "text", "text"),
        notes=(
            f"{len(items)} items: {found}. The items are in our own words; what only the author knows is given with "
            f"answers={{'{items[0].key}': '...'}}.",
        ),
    )
