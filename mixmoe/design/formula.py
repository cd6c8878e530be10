"""The formula language: text in, sections out.

``response ~ EXPERT | gate: GATE | re: (DESIGN | GROUP) | sigma: TERMS | vary: INDEX | seq: ORDER / WITHIN``
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from mixmoe.design.expressions import CLOSING, OPENING, SectionSyntaxError, Span, mask_brackets, unquoted
from mixmoe.design.formulaic_engine import parse_terms
from mixmoe.design.terms import Term, is_intercept
from mixmoe.errors import FormulaError, close_names

PartKind = Literal["free", "common", "const"]
SECTIONS = ("gate", "re", "sigma", "vary", "seq")
SHAPE = "response ~ terms | gate: terms | re: (terms | subject) | sigma: terms | vary: index | seq: order"
_HEAD = re.compile(r"\s*([^\W\d]\w*)\s*:")
_NETWORK = re.compile(r"(?<![\w.])nn\s*\(")
_WRAPPER = re.compile(r"(?<![\w.])(common|const)\s*\(")
_NAME = re.compile(r"\s*(?:`([^`]+)`|([^\W\d][\w.]*))\s*\Z")
_POWER = re.compile(r"(?:\*\*|\^)\s*(\d+)")
_MAX_POWER = 9
_WHY_NOT = {
    ("gate:", "common"): "the gate has coefficients per expert only",
    ("sigma:", "const"): "it has no index along which coefficients vary; write common(...) for shared ones",
}
_SEVERAL = (
    "experts take one: an expert is chosen for a whole subject, and subjects must be independent of one another; keep "
    "the factor of the subjects, and let the other be a term, such as C(site), or the clusters of the standard errors, "
    "cluster=. Networks take several; one without hidden layers is the linear mixed model, as in mixmoe.fit('y ~ x | "
    "re: (last[1] | id) + (last[1] | site)', data, hidden=())"
)  # grouping factors
_KNOWN = ", ".join(f"{name}:" for name in SECTIONS)
_WHEN_EMPTY = {
    "gate": "write gate: 1 for constant proportions, or leave it out",
    "re": "write re: (1 | subject), or leave it out",
    "sigma": "write sigma: 1 for a constant standard deviation, or leave it out",
    "vary": "name the index, or leave it out",
    "seq": "name the column that orders the rows, or leave it out",
}


@dataclass(frozen=True, slots=True)
class Part:
    """Terms of one kind within a section.

    Attributes
    ----------
    text : str
        Ordinary formulaic text.
    kind : {"free", "common", "const"}
        ``common``: coefficients shared by the experts; ``const``: coefficients constant along the index.
    intercept : bool
        Whether `text` implies an intercept.
    read : tuple of Term or None
        Its terms, if they have been read.
    """

    text: str
    kind: PartKind = "free"
    intercept: bool = True
    read: tuple[Term, ...] | None = field(default=None, compare=False, repr=False)

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms as formulaic reads them, ordered by degree."""
        return parse_terms(self.text, self.intercept) if self.read is None else self.read


@dataclass(frozen=True, slots=True)
class RandomTerm:
    """The section ``re: (design | group)``.

    Attributes
    ----------
    design : str
        Text left of the bar: random-effect terms, or layer names of a network.
    group : str
        Column that names the subjects.
    correlated : bool
        False for the double bar ``||``.
    within : tuple of str
        Columns whose combinations with `group` name the levels, as sites within persons do; none for `group` alone.
    """

    design: str
    group: str
    correlated: bool = True
    within: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns whose values, taken together, name the levels."""
        return (self.group, *self.within)

    @property
    def name(self) -> str:
        """The grouping as tables name it: ``person``, ``person:site``."""
        return ":".join(self.columns)


@dataclass(frozen=True, slots=True)
class Sequence:
    """The section ``seq: order / within``.

    Attributes
    ----------
    order : str
        Column that orders the rows of a sequence.
    within : str or None
        Column that separates the sequences of a subject; None if each subject has one.
    """

    order: str
    within: str | None = None


@dataclass(frozen=True, slots=True)
class MoEFormula:
    """A parsed formula.

    Attributes
    ----------
    text : str
        The formula as written.
    response : str
        Left-hand side.
    expert, gate : tuple of Part
        Terms of the experts and of the gate.
    random : RandomTerm or None
    vary : str or None
        Index along which coefficients vary.
    seq : Sequence or None
    sigma : tuple of Part
        Terms of the log standard deviation of the errors; empty if it is constant.
    period : float or None
        Of an index that runs round a circle.
    further : tuple of RandomTerm
        The terms of ``re:`` behind the first one, each with a grouping of its own.
    """

    text: str
    response: str
    expert: tuple[Part, ...]
    gate: tuple[Part, ...]
    random: RandomTerm | None = None
    vary: str | None = None
    seq: Sequence | None = None
    sigma: tuple[Part, ...] = ()
    period: float | None = None
    further: tuple[RandomTerm, ...] = ()

    def __str__(self) -> str:
        return self.text

    @property
    def index(self) -> str | None:
        """The index as it is written."""
        return self.vary if self.period is None else f"cyclic({self.vary}, {self.period:g})"

    @property
    def networks(self) -> str | None:
        """The first part of experts or gate that holds a network ``nn(...)``; None if there is none."""
        parts = (part.text for part in (*self.expert, *self.gate))
        return next((text for text in parts if _NETWORK.search(unquoted(text))), None)


def parse_formula(text: str) -> MoEFormula:
    """The sections of a formula.

    Parameters
    ----------
    text : str
        For example ``"y ~ time + x | gate: z | re: (1 + time | id)"``. Sections after the first bar carry a name, come
        in any order, and each at most once.

    Returns
    -------
    MoEFormula

    Raises
    ------
    FormulaError
        If the formula cannot be read; a caret marks the place.
    """
    if not isinstance(text, str):
        raise FormulaError(f"the formula must be text such as {SHAPE!r}, got {type(text).__name__}")
    whole = re.sub(r"\s", " ", text)
    if not whole.strip():
        raise FormulaError(f"the formula is empty; write {SHAPE!r}")
    _refuse_namesakes(whole)
    # Brackets and quotes are blanked in the mask: what it shows of '~', '|' and names stands at the top level.
    response, rest = _split_at_tilde(Span(whole, mask_brackets(whole), 0, len(whole)))
    # Behind the experts' terms each piece between bars is a section with its name in front.
    expert, *pieces = _split(rest, "|")
    if expert.blank:
        raise expert.error("the experts have no terms after '~'; write 1 for an intercept alone", -1, 1)
    sections: dict[str, Span] = {}
    for piece in pieces:
        name, body, head = _head(piece)
        if name in sections:
            remedy = "write its terms in one, re: (... | a) + (... | b)" if name == "re" else "join the two"
            raise piece.error(f"the section {name}: is given twice; {remedy}", head, len(name))
        if body.blank:
            raise piece.error(f"the section {name}: is empty; {_WHEN_EMPTY[name]}", head, len(name) + 1)
        sections[name] = body
    period = None
    if "vary" in sections:
        sections["vary"], period = _without_circle(sections["vary"])
    first, *further = _random(sections["re"]) if "re" in sections else (None,)
    formula = MoEFormula(
        text=whole.strip(),
        response=_response(response),
        expert=_parts(expert, ("common", "const"), "the expert part"),
        gate=_parts(sections["gate"], ("const",), "gate:") if "gate" in sections else (Part("1"),),
        random=first,
        vary=_index(sections["vary"]) if "vary" in sections else None,
        seq=_sequence(sections["seq"]) if "seq" in sections else None,
        sigma=_sigma(sections["sigma"]) if "sigma" in sections else (),
        period=period,
        further=tuple(further),
    )
    if formula.seq is not None and formula.random is None:
        raise sections["seq"].error(
            "seq: orders the rows of a subject, but no section names the subjects; add | re: (last | subject)"
        )
    return formula


def _refuse_namesakes(whole: str) -> None:
    """Refuse a column called as an expression of the formula is written: the two would be taken for one."""
    code = re.sub(r"\s", "", unquoted(whole))
    for quoted in re.finditer(r"`([^`]*)`", whole):
        if "(" in quoted.group(1) and re.sub(r"\s", "", quoted.group(1)) in code:
            raise FormulaError(
                f"the formula names a column {quoted.group(1)!r} and computes {quoted.group(1)!r} as well, which would "
                "be taken for one; rename the column",
                whole,
                quoted.start(),
                len(quoted.group(0)),
            )


def _split(span: Span, mark: str) -> Iterator[Span]:
    """Pieces of `span` between marks outside brackets and quotes."""
    start = 0
    for match in re.finditer(re.escape(mark), span.masked):
        yield span.sub(start, match.start())
        start = match.end()
    yield span.sub(start, len(span.text))


def _split_at_tilde(span: Span) -> tuple[Span, Span]:
    pieces = list(_split(span, "~"))
    if len(pieces) == 1:
        raise FormulaError(f"the formula has no '~' between response and terms; write {SHAPE!r}", span.whole)
    if len(pieces) > 2:
        raise pieces[2].error("the formula has a second '~'; one separates response and terms", -1, 1)
    if pieces[0].blank:
        raise pieces[1].error("the formula has no response left of '~'; name a column there", -1, 1)
    if "|" in pieces[0].masked:
        raise pieces[0].error(
            "a '|' stands left of '~'; sections follow the experts' terms", pieces[0].masked.index("|"), 1
        )
    return pieces[0], pieces[1]


def _head(piece: Span) -> tuple[str, Span, int]:
    if piece.blank:
        raise piece.error(
            f"a stray '|': nothing follows it; a section is one of {_KNOWN}, so name one or remove the bar", -1, 1
        )
    match = _HEAD.match(piece.masked)
    if match is None:
        text, before = piece.text.strip(), piece.whole[: piece.start - 1]
        if re.search(r"\bre\s*:[^|]*\|?\Z", before):
            raise piece.error(f"re: needs brackets around the bar; write re: (1 | {text})")
        if "|" in text:
            effects = text if text[0] == "(" else f"({text})"
            raise piece.error(f"{text!r} has no section name; random effects are written re: {effects}")
        raise piece.error(
            f"a stray '|': {text!r} has no section name; write for example | gate: {text}; known are {_KNOWN}"
        )
    name = match.group(1)
    if name not in SECTIONS:
        close = close_names(name.lower(), SECTIONS, most=1)
        hint = f"; did you mean {close[0]}:?" if close else "; interactions belong inside a section"
        raise piece.error(f"unknown section {name + ':'!r}; known are {_KNOWN}{hint}", match.start(1), len(name))
    return name, piece.sub(match.end(), len(piece.text)), match.start(1)


def _response(span: Span) -> str:
    _refuse_bars(span, "the response")
    _refuse_wrappers(span, 0)
    terms = _terms(span, span.text, intercept=False)
    if len(terms) != 1:
        trials = ", and successes of trials as s ~ ... with trials='column' of the fit" if "/" in span.text else ""
        raise span.error(
            f"the response must be one column or one transformed column, got {len(terms)} terms; "
            f"write arithmetic as I(a - b){trials}"
        )
    return span.text.strip()


def _parts(span: Span, allowed: tuple[str, ...], where: str) -> tuple[Part, ...]:
    """The free terms and the terms in common(...) or const(...)."""
    _refuse_bars(span, where)
    wrapped: list[Part] = []
    free = list(span.text)
    for match in _WRAPPER.finditer(span.masked):
        inside = _wrapper_body(span, match, allowed, where)
        # Blanks take the place of the wrapper and of the plus sign in front, so that carets still point where they did.
        before = span.masked[: match.start()].rstrip()
        start, stop = len(before) - 1 if before.endswith("+") else match.start(), inside.stop - span.start + 1
        free[start:stop] = " " * (stop - start)
        kind: PartKind = "common" if match.group(1) == "common" else "const"
        nested = _WRAPPER.search(inside.text)
        if nested is not None:
            raise inside.error(f"{nested.group(1)}(...) stands inside {kind}(...); keep one of them", nested.start())
        read = _terms(inside, inside.text, intercept=False)
        if not read:
            raise inside.error(f"{kind}(...) holds no terms; write the terms inside, as in {kind}(x1 + x2)")
        wrapped.append(Part(inside.text.strip(), kind, False, read))
    text = re.sub(r"^(\s*)\+", r"\1 ", "".join(free)) if wrapped else span.text
    owns_intercept = any(_has_intercept(part) for part in wrapped)
    _refuse_wrappers(span, len(wrapped))
    terms = _terms(span, text, intercept=not owns_intercept) if text.strip() or not owns_intercept else ()
    of_all = Part(text.strip() or "1", "free", not owns_intercept, terms)
    parts = ((of_all,) if terms or not wrapped else ()) + tuple(wrapped)
    seen: dict[Term, str] = {}
    for part in parts if wrapped else ():
        for term in part.terms:
            if seen.get(term, part.kind) != part.kind:
                raise span.error(
                    f"the term {str(term)!r} is both {seen[term]} and {part.kind}; a term has one kind, so remove one"
                )
            seen[term] = part.kind
    return parts


def _wrapper_body(span: Span, match: re.Match[str], allowed: tuple[str, ...], where: str) -> Span:
    kind, opened = match.group(1), match.end() - 1
    closed = span.masked.index(")", opened)
    if kind not in allowed:
        raise span.error(
            f"{kind}(...) is not allowed in {where}; {_WHY_NOT[where, kind]}",
            match.start(),
            closed + 1 - match.start(),
        )
    before, after = span.masked[: match.start()].rstrip(), span.masked[closed + 1 :].lstrip()
    if (before and before[-1] != "+") or (after and after[0] not in "+-"):
        raise span.error(
            f"{kind}(...) must be a term of its own, joined by '+'; write {kind}(a:b) for an interaction",
            match.start(),
            closed + 1 - match.start(),
        )
    body = span.sub(opened + 1, closed)
    if body.blank:
        raise span.error(
            f"{kind}() is empty; write the terms inside, as in {kind}(x1 + x2)",
            match.start(),
            closed + 1 - match.start(),
        )
    return body


def _has_intercept(part: Part) -> bool:
    return any(is_intercept(term) for term in part.terms)


def _refuse_wrappers(span: Span, expected: int) -> None:
    """Raise if common(...) or const(...) stands deeper than at the top level."""
    visible = unquoted(span.text)
    found = list(_WRAPPER.finditer(visible))
    if len(found) > expected:
        deep = next(m for m in found if span.masked[m.start()] == "\0" or not expected)
        raise span.error(
            f"{deep.group(1)}(...) must be a term of its own at the top level of a section; unwrap it",
            deep.start(),
            len(deep.group(1)),
        )


def _refuse_bars(span: Span, where: str) -> None:
    """Raise for a bar in plain brackets: random effects outside re:."""
    stack: list[bool] = []
    for i, char in enumerate(unquoted(span.text)):
        if char in OPENING:
            before = span.text[:i].rstrip()
            stack.append(char != "(" or (bool(before) and (before[-1].isalnum() or before[-1] in "_.`")))
        elif char in CLOSING:
            stack.pop()
        elif char == "|" and not any(stack):
            raise span.error(
                f"random effects stand in {where}; move them to their own section, as in | re: (1 + time | id)", i, 1
            )


def _terms(span: Span, text: str, intercept: bool = True, columns: bool = True) -> tuple[Term, ...]:
    """The terms of a part; its names may be layers of a network where they need not be `columns`."""
    _refuse_misread(span, text, columns)
    try:
        return parse_terms(text, intercept)
    except SectionSyntaxError as error:
        raise span.error(error.message[:1].lower() + error.message[1:], error.start, error.width) from error


def _refuse_misread(span: Span, text: str, columns: bool) -> None:
    """Refuse what formulaic would read otherwise than it is meant, or without an end."""
    for quoted in re.finditer(r"`([^`]*)`", text if columns else ""):
        if re.fullmatch(r"\s*[\d.]*\s*", quoted.group(1)):
            raise span.error(
                f"a column called {quoted.group(1)!r} cannot stand in a formula, where 1 is the intercept and other "
                "numbers are numbers; rename the column",
                quoted.start(),
                len(quoted.group(0)),
            )
    masked = "".join(a if m != "\0" else "\0" for a, m in zip(text, span.masked, strict=True))
    dot = re.search(r"(?<![\w.\0])\.(?![\w.])", masked)
    if dot is not None:
        raise span.error("'.' for all other columns is not supported; name the columns", dot.start(), 1)
    for match in _POWER.finditer(masked):
        if int(match.group(1)) > _MAX_POWER:
            raise span.error(
                f"the power {match.group(1)} expands to too many terms; at most {_MAX_POWER} is allowed, "
                "and I(x**2) squares a column",
                match.start(),
                len(match.group(0)),
            )


def _sigma(span: Span) -> tuple[Part, ...]:
    """Terms of the log standard deviation, whose intercept is the residual standard deviation itself."""
    parts = _parts(span, ("common",), "sigma:")
    shared = next((part for part in parts if part.kind == "common" and _has_intercept(part)), None)
    if shared is not None:
        raise span.error(
            "the intercept of sigma: is the residual standard deviation, which residual='common' shares; "
            "take it out of common(...)",
            span.text.index("common"),
            len("common"),
        )
    if not any(_has_intercept(part) for part in parts):
        raise span.error(
            "sigma: cannot do without its intercept, the residual standard deviation; remove the 0 or -1 from it"
        )
    return parts


def refuse_several(formula: MoEFormula) -> None:
    """Refuse a formula with several grouping factors, for models that take one.

    Raises
    ------
    FormulaError
    """
    if not formula.further:
        return
    span = Span(formula.text, mask_brackets(formula.text), 0, len(formula.text))
    *_, body = (found[1] for found in map(_head, list(_split(span, "|"))[1:]) if found[0] == "re")
    raise body.error(f"re: {body.text.strip()} has more than one grouping factor; {_SEVERAL}")


def _random(span: Span) -> tuple[RandomTerm, ...]:
    """The terms of ``re:``, those of nested groupings taken apart."""
    terms: list[RandomTerm] = []
    for piece in _split(span, "+"):
        masked, lead = piece.masked.strip(), len(piece.text) - len(piece.text.lstrip())
        if not (masked.startswith("(") and masked.endswith(")") and masked.count("(") == 1):
            raise span.error(f"re: must be one bracket, as in re: (1 + time | id), got {span.text.strip()!r}")
        terms += _inside_bracket(piece.sub(lead + 1, lead + len(masked) - 1))
    names = [frozenset(term.columns) for term in terms]
    twice = next((term for k, term in enumerate(terms) if names[k] in names[:k]), None)
    if twice is not None:
        raise span.error(
            f"re: {span.text.strip()} names {twice.name!r} more than once; write the terms in one bracket, as in "
            f"(1 + time | {twice.name}), or with a double bar, (1 + time || {twice.name}), for no correlations"
        )
    if len(terms) > 1 and any(term.design.strip() == "0" for term in terms):
        raise span.error(
            f"re: {span.text.strip()} has a term (0 | ...) beside others, which adds no effects; remove it"
        )
    if all(term.within for term in terms):
        a, *others = terms[0].columns
        raise span.error(
            f"the subjects must be one column, got the combinations {terms[0].name!r}; make a column of them: "
            f"data['{a}_{others[0]}'] = data['{a}'].astype(str) + '/' + data['{others[0]}'].astype(str), and write "
            f"(... | {a}_{others[0]})"
        )
    return tuple(terms)


def _inside_bracket(span: Span) -> list[RandomTerm]:
    span = Span(
        span.whole, span.whole[: span.start] + mask_brackets(span.text) + span.whole[span.stop :], span.start, span.stop
    )
    bars = list(re.finditer(r"\|+", span.masked))
    if not bars:
        raise span.error(f"re: names no subjects; write re: ({span.text.strip()} | id) with the column of the subjects")
    if len(bars) > 1 or len(bars[0].group(0)) > 2:
        bar = bars[-1]
        raise span.error(
            "re: has more than one bar; write (terms | id), or (terms || id) without correlations",
            bar.start(),
            len(bar.group(0)),
        )
    design, group = span.sub(0, bars[0].start()), span.sub(bars[0].end(), len(span.text))
    if design.blank:
        raise span.error(
            "re: has no terms left of the bar; write 1 for a random intercept, 0 for none, or for a network the layers "
            "that are personal, such as last",
            bars[0].start(),
        )
    _refuse_wrappers(design, 0)
    _terms(design, design.text, columns=False)
    correlated = len(bars[0].group(0)) == 1
    return [RandomTerm(design.text.strip(), first, correlated, tuple(within)) for first, *within in _groupings(group)]


def _groupings(span: Span) -> list[tuple[str, ...]]:
    """Columns of each grouping right of a bar: ``a`` of ``a``, ``a`` and ``a:b`` of ``a/b``, ``a:b`` of ``a:b``."""
    if span.blank:
        raise span.error("re: names no subjects right of the bar; put the column of the subjects there", -1, 1)
    slashed, joined = list(_split(span, "/")), list(_split(span, ":"))
    if len(slashed) > 1:
        names = tuple(_grouping(piece, span) for piece in slashed)
        return [names[: k + 1] for k in range(len(names))]
    return [tuple(_grouping(piece, span) for piece in joined)]


def _grouping(piece: Span, span: Span) -> str:
    match = _NAME.match(piece.text)
    if match is None:
        raise span.error(
            f"the subjects must be one column, got {span.text.strip()!r}; make such a column and name it, or write "
            "several groupings as (... | a) + (... | b), and b within a as (... | a / b)"
        )
    return match.group(1) or match.group(2)


def _without_circle(span: Span) -> tuple[Span, float | None]:
    """The index inside ``cyclic(index, period)`` with its period, or the index as it stands and None."""
    found = re.fullmatch(r"\s*cyclic\s*\((.*)\)\s*", span.masked)
    if found is None:
        return span, None
    inner = span.sub(found.start(1), found.end(1))
    commas = [i for i, char in enumerate(mask_brackets(inner.text)) if char == ","]
    text = inner.text[commas[-1] + 1 :].strip() if commas else ""
    try:
        period = float(text) if len(commas) == 1 else math.nan
    except ValueError:
        period = math.nan
    if not 0.0 < period < math.inf:
        raise span.error(
            f"cyclic(...) takes an index and its period, a positive number, got {inner.text.strip()!r}; write for "
            "instance vary: cyclic(hour, 24)"
        )
    return span.sub(found.start(1), found.start(1) + commas[0]), period


def _index(span: Span) -> str:
    _refuse_bars(span, "vary:")
    _refuse_wrappers(span, 0)
    terms = _terms(span, span.text, intercept=False)
    if len(terms) != 1:
        raise span.error(
            f"vary: must be one index, got {len(terms)} terms in {span.text.strip()!r}; name one numeric column"
        )
    return span.text.strip()


def _sequence(span: Span) -> Sequence:
    pieces = list(_split(span, "/"))
    if len(pieces) > 2:
        raise pieces[2].error("seq: has more than one '/'; write seq: order, or seq: order / within")
    names: list[str] = []
    for piece in pieces:
        match = _NAME.match(piece.text)
        if match is None:
            raise piece.error(f"seq: takes column names, as in seq: day / session, got {piece.text.strip()!r}")
        names.append(match.group(1) or match.group(2))
    return Sequence(names[0], names[1] if len(names) == 2 else None)
