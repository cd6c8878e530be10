"""The page of a report: its parts, and the template that makes HTML of them, every text escaped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files

from mixmoe.errors import MissingExtraError
from mixmoe.output.plots_in_files import inlined, palette
from mixmoe.output.records import Cell, Table, format_cell
from mixmoe.output.text import html

# No script runs and nothing is requested, even if a text should get past the escaping.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True, slots=True)
class Prose:
    """A paragraph of a report."""

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

    Raises
    ------
    MissingExtraError
        If jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from markupsafe import Markup
    except ModuleNotFoundError as error:
        raise MissingExtraError("report()", "jinja2", "report") from error

    def drawing(image: Image) -> Markup:
        # The names inside a drawing are made its own: two figures of one page may not share an anchor.
        name = f"i{sha256(image.svg.encode() + image.caption.encode()).hexdigest()[:8]}"
        opening = Markup('<svg role="img" aria-label="{}" ').format(image.alt)
        return Markup(inlined(image.svg, name).replace("<svg ", opening, 1))

    environment = Environment(
        loader=PackageLoader("mixmoe.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Callable[..., object]] = {
        "kind": lambda part: type(part).__name__,
        "cell": lambda value: format_cell(value, ".3f"),
        "table": lambda table: Markup(html((table,))),  # has escaped its texts
        "drawing": drawing,
    }
    environment.filters.update(filters)
    shown = [section for section in sections if section.parts]
    parts = [part for section in shown for part in section.parts]
    parts += [image for part in parts if isinstance(part, Gallery) for image in part.images]
    images = [part.svg for part in parts if isinstance(part, Image)]
    style = files("mixmoe.report").joinpath("style.css").read_text(encoding="utf-8")
    if images:  # the colours of all figures, on a light and on a dark page
        dark = f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {palette(images, True)} }} }}"
        style += f":root {{ {palette(images, False)} }}\n{dark}\n"
    return environment.get_template("page.html").render(
        title=title, byline=byline, foot=foot, sections=shown, policy=Markup(_POLICY), style=Markup(style)
    )
