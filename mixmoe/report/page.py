"""One web page out of records; the only place where a report becomes HTML, so that all of its text is escaped here."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from importlib.resources import files

from mixmoe.output.html import html
from mixmoe.output.plots_file import inlined, palette
from mixmoe.output.tables import Cell, Table, format_cell

# No script runs and nothing is requested, even if a text should get past the escaping.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True, slots=True)
class Prose:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Short figures with their labels, shown large."""

    pairs: tuple[tuple[str, Cell], ...]


@dataclass(frozen=True, slots=True)
class Remarks:
    """What a reader must know; nothing if empty."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Text to be copied into a program."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A figure.

    Attributes
    ----------
    svg : str
    caption : str
    alt : str
        What the figure shows, for who cannot see it.
    """

    svg: str
    caption: str
    alt: str


@dataclass(frozen=True, slots=True)
class Checklist:
    """A table whose cells are sentences."""

    table: Table


@dataclass(frozen=True, slots=True)
class Gallery:
    """Small figures side by side, or the reasons that there are none."""

    images: tuple[Image | Prose, ...]


Part = Prose | Facts | Remarks | Code | Image | Gallery | Checklist | Table


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page with a heading of its own.

    Attributes
    ----------
    key : str
        Letters only; the anchor.
    title : str
    parts : tuple of Part
    """

    key: str
    title: str
    parts: tuple[Part, ...]


def page(title: str, byline: str, sections: Sequence[Section], foot: str) -> str:
    """A whole document that needs nothing but itself.

    Parameters
    ----------
    title, byline, foot : str
    sections : sequence of Section
        Those without parts are left out.

    Returns
    -------
    str
    """
    shown = [section for section in sections if section.parts]
    style = files("mixmoe.report").joinpath("style.css").read_text(encoding="utf-8")
    links = "".join(f'<li><a href="#{s.key}">{escape(s.title)}</a></li>\n' for s in shown)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}{_colours(shown)}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">To the content</a>\n'
        f'<header>\n<h1>{escape(title)}</h1>\n<p class="by">{escape(byline)}</p>\n</header>\n'
        f'<nav aria-label="Contents">\n<ol>\n{links}</ol>\n</nav>\n<main id="main">\n'
        f"{''.join(_section(section) for section in shown)}</main>\n"
        f"<footer>\n<p>{escape(foot)}</p>\n</footer>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    heading = f'<h2 id="{section.key}-title">{escape(section.title)}</h2>\n'
    body = "".join(_part(part) for part in section.parts)
    return f'<section id="{section.key}" aria-labelledby="{section.key}-title">\n{heading}{body}</section>\n'


def _part(part: Part) -> str:
    match part:
        case Prose(text):
            return f"<p>{escape(text)}</p>\n"
        case Code(text):
            return f"<pre><code>{escape(text)}</code></pre>\n"
        case Image():
            return _image(part)
        case Gallery(images):
            return f'<div class="gallery">\n{"".join(_part(image) for image in images)}</div>\n'
        case Facts(pairs):
            return _facts(pairs)
        case Remarks(texts):
            return _remarks(texts)
        case Checklist(table):
            return _table(table, "scroll checklist")
        case Table():
            return _table(part, "scroll")


def _table(table: Table, kind: str) -> str:
    name = escape(table.title or "Summary")
    return f'<div class="{kind}" role="region" aria-label="{name}" tabindex="0">\n{html((table,))}\n</div>\n'


def _facts(pairs: Sequence[tuple[str, Cell]]) -> str:
    boxes = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(format_cell(value, '.3f'))}</dd></div>\n" for label, value in pairs
    )
    return f'<dl class="facts">\n{boxes}</dl>\n'


def _remarks(texts: Sequence[str]) -> str:
    lines = "".join(f"<li>{escape(text)}</li>\n" for text in texts)
    return f'<div class="remarks">\n<ul>\n{lines}</ul>\n</div>\n' if texts else ""


def _image(image: Image) -> str:
    """The figure in place, named by its alternative text."""
    name = f"i{sha256(image.svg.encode() + image.caption.encode()).hexdigest()[:8]}"
    drawing = inlined(image.svg, name).replace("<svg ", f'<svg role="img" aria-label="{escape(image.alt)}" ', 1)
    return f"<figure>\n{drawing}\n<figcaption>{escape(image.caption)}</figcaption>\n</figure>\n"


def _colours(sections: Sequence[Section]) -> str:
    """Rules for the colours of all figures, on a light and on a dark page."""
    parts = [part for section in sections for part in section.parts]
    parts += [image for part in parts if isinstance(part, Gallery) for image in part.images]
    images = [part.svg for part in parts if isinstance(part, Image)]
    dark = f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {palette(images, True)} }} }}"
    return f":root {{ {palette(images, False)} }}\n{dark}\n" if images else ""
