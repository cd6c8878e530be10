"""Names of experts and labels of terms, put into whatever is shown; names of parameters stay as they are."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mixmoe.errors import ArgumentError, meant
from mixmoe.output.records import Curve, Marks, Observed, Panel, Table

# What the package itself writes of an expert: in headings, at the head of labels, within sentences.
_IN_HEADING = re.compile(r"\b(Expert|expert) (\d+)(: )?")
_IN_LABEL = re.compile(r"(?:^|(?<=: ))(expert |as |most probable: )(\d+)(?=$|[: (])")
_IN_PROSE = re.compile(r"\b[Ee]xpert (\d+)\b")
_A_NUMBER = re.compile(r"\s*(?:expert\s*)?\d+\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Names:
    """What a user calls the experts and the terms of a fit.

    Attributes
    ----------
    experts : tuple of str
        In the order of the experts; empty where they are numbers.
    terms : mapping of str to str
        From columns and terms, as the formula has them, to what tables and figures show instead.
    """

    experts: tuple[str, ...] = ()
    terms: Mapping[str, str] = field(default_factory=dict)

    def in_order(self, places: Sequence[int]) -> "Names":
        """The names of experts in another order, by their present places from 0."""
        return replace(self, experts=tuple(self.experts[k] for k in places) if self.experts else ())

    def heading(self, text: str) -> str:
        """``"Expert 1 (mean probability 0.4)"`` as ``"Expert 1: stable (mean probability 0.4)"``."""

        def shown(match: re.Match[str], name: str) -> str:
            if match.group(1) == "expert":
                return name + (match.group(3) or "")
            return f"Expert {match.group(2)}: {name}{', ' if match.group(3) else ''}"

        return self._called(_IN_HEADING, 2, text, shown)

    def label(self, text: str) -> str:
        """``"expert 1: age"`` as ``"stable: age"``, with the label of the term."""
        shown = self._called(_IN_LABEL, 2, text, _after_lead)
        if not self.terms:
            return shown
        known = "|".join(re.escape(term) for term in sorted(self.terms, key=len, reverse=True))
        return re.sub(rf"(?<![\w.`])`?({known})`?(?![\w.`])", lambda m: self.terms[m.group(1)], shown)

    def prose(self, text: str) -> str:
        """``"expert 1 has collapsed"`` as ``"expert 1 (stable) has collapsed"``."""
        return self._called(_IN_PROSE, 1, text, lambda m, name: f"{m.group(0)} ({name})")

    def _called(
        self, pattern: re.Pattern[str], group: int, text: str, shown: Callable[[re.Match[str], str], str]
    ) -> str:
        """The text with what `shown` makes of each place where the pattern finds an expert that has a name."""

        def one(match: re.Match[str]) -> str:
            k = int(match.group(group))
            return shown(match, self.experts[k - 1]) if 0 < k <= len(self.experts) else match.group(0)

        return pattern.sub(one, text)

    def table(self, table: Table) -> Table:
        """A table with names in its title, heads, row labels and notes; the header is of the fit, not of its terms."""
        index = table.index if table.key == "header" else tuple(map(self.label, table.index))
        return replace(
            table,
            title=self.heading(table.title),
            columns=tuple(self._called(_IN_LABEL, 2, head, _after_lead) for head in table.columns),
            index=index,
            notes=tuple(map(self.prose, table.notes)),
            printed=None if table.printed is None else tuple(map(self.prose, table.printed)),
        )

    def curve(self, curve: Curve) -> Curve:
        """A curve with names in the legend, above its panel and beside the axes."""
        return replace(
            curve,
            panel=self.label(curve.panel),
            label=self.label(curve.label),
            xlabel=self.label(curve.xlabel),
            ylabel=self.label(curve.ylabel),
        )

    def observed(self, observed: Observed | Sequence[Marks] | None) -> Observed | tuple[Marks, ...] | None:
        """What was observed, with names in the legend."""
        if observed is None or isinstance(observed, Observed):
            return observed
        return tuple(replace(marks, label=self.label(marks.label)) for marks in observed)

    def panel(self, panel: Panel) -> Panel:
        """A panel with names in its title and legend and beside its axes."""
        return replace(
            panel,
            title=self.label(panel.title),
            xlabel=self.label(panel.xlabel),
            ylabel=self.label(panel.ylabel),
            clouds=tuple(replace(cloud, label=self.label(cloud.label)) for cloud in panel.clouds),
            marks=tuple(replace(marks, label=self.label(marks.label)) for marks in panel.marks),
        )


NO_NAMES = Names()


def _after_lead(match: re.Match[str], name: str) -> str:
    return name if match.group(1) == "expert " else match.group(1) + name


def expert_words(names: Names, n_experts: int) -> tuple[str, ...]:
    """What a legend calls each expert: its name, or ``expert 1``."""
    return names.experts or tuple(f"expert {k + 1}" for k in range(n_experts))


def checked_experts(names: Sequence[Any], n_experts: int) -> tuple[str, ...]:
    """Names of the experts, one for each, no two alike.

    Raises
    ------
    ArgumentError
    """
    if len(names) == 1 and not isinstance(names[0], str) and isinstance(names[0], Iterable):
        raise ArgumentError(f"names are given one by one, got {names[0]!r}; write named(*names)")
    if len(names) != n_experts:
        listed = ", ".join(map(repr, names)) or "none"
        raise ArgumentError(
            f"named needs a name for each of the {n_experts} experts, in their order, got {len(names)}: {listed}"
        )
    for name in names:
        if not isinstance(name, str) or not name.strip() or "\n" in name:
            raise ArgumentError(f"a name of an expert is text in one line, got {name!r}; write for instance 'stable'")
        if _A_NUMBER.fullmatch(name):
            raise ArgumentError(
                f"the name {name!r} is that of a number; call the expert by what it is, or change the order of the "
                "experts with relabel(order)"
            )
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ArgumentError(f"two experts are named {twice!r}; give each a name of its own")
    return tuple(name.strip() for name in names)


def checked_terms(labels: Any, known: Iterable[str]) -> dict[str, str]:
    """Labels of columns and terms, each of which must occur among the known ones.

    Raises
    ------
    ArgumentError
    """
    if not isinstance(labels, Mapping):
        raise ArgumentError(f"labels map terms to texts, as in {{'height': 'Height (10 cm)'}}, got {labels!r}")
    terms = list(dict.fromkeys(known))
    for term, label in labels.items():
        if not isinstance(label, str) or not label.strip() or "\n" in label:
            raise ArgumentError(f"the label of {term!r} is text in one line, got {label!r}")
        if not isinstance(term, str) or not any(re.search(rf"(?<![\w.]){re.escape(term)}(?![\w.])", t) for t in terms):
            raise ArgumentError(
                f"labels has {term!r}, which is no column or term of the fit; {meant(str(term), terms)} "
                f"known are {', '.join(terms[:8])}{', ...' if len(terms) > 8 else ''}".replace(";  ", "; ")
            )
    return {term: label.strip() for term, label in labels.items()}
