"""Figures as files, and as pictures inside a page that is light or dark."""

import colorsys
import io
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from mixmoe.atomic import replacing
from mixmoe.output.plots import pyplot

FIGURE_ENDINGS = (".png", ".pdf", ".svg")
_HEX = re.compile(r"#[0-9a-fA-F]{6}\b")
_REFERENCE = re.compile(r'(\bid="|url\(#|href="#)')
_UNWANTED = re.compile(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", flags=re.DOTALL)
_LOOK = {"svg.fonttype": "path", "svg.hashsalt": "mixmoe", "savefig.transparent": True, "font.size": 9.5}
_GREY = 0.12  # saturation below which a colour counts as grey
_READABLE = 0.62  # lightness of a colour on a dark page


def save_figure(draw: Callable[[], Any], path: str | os.PathLike[str]) -> None:
    """Draw a figure into a file and forget it.

    Parameters
    ----------
    draw : callable
        Returns the figure.
    path : path-like
        Ends in one of `FIGURE_ENDINGS`.
    """
    plt = pyplot("a figure")
    with plt.ioff():
        figure = draw()
        try:
            with replacing(path) as partial:
                figure.savefig(partial, dpi=150)
        finally:
            plt.close(figure)


def svg(draw: Callable[[], Any]) -> str:
    """A figure as SVG with letters as shapes; without comments, dates, a background and a style sheet of its own.

    Parameters
    ----------
    draw : callable
        Returns the figure.

    Returns
    -------
    str
        From ``<svg`` to ``</svg>``; the same figure gives the same text.
    """
    plt, buffer = pyplot("a figure"), io.StringIO()
    with plt.ioff(), plt.rc_context(_LOOK):
        figure = draw()
        try:
            figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        finally:
            plt.close(figure)
    text = _UNWANTED.sub("", buffer.getvalue())
    return text[text.index("<svg") :]


def inlined(image: str, name: str) -> str:
    """An SVG to be put into a web page: identifiers of its own, and colours that the page's style sheet sets.

    Parameters
    ----------
    image : str
        As `svg` returns it.
    name : str
        Different for each image of a page; letters and digits.

    Returns
    -------
    str
        Every colour ``#0072b2`` is the variable ``--h0072b2`` of `palette`; letters have the colour of the text.
    """
    own = _REFERENCE.sub(lambda found: f"{found[1]}{name}-", image)
    themed = _HEX.sub(lambda found: f"var(--h{found[0][1:].lower()})", own)
    return themed.replace("<svg ", '<svg fill="currentColor" ', 1)


def palette(images: Sequence[str], dark: bool) -> str:
    """Declarations of the colours of images, as drawn or changed so that they read on a dark page.

    Parameters
    ----------
    images : sequence of str
        As `svg` returns them.
    dark : bool

    Returns
    -------
    str
        ``--h0072b2: #0072b2; ...``
    """
    colours = sorted({found.lower() for image in images for found in _HEX.findall(image)})
    return " ".join(f"--h{colour[1:]}: {_on_dark(colour) if dark else colour};" for colour in colours)


def _on_dark(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    if saturation < _GREY:
        lightness = 0.92 - 0.82 * lightness
    else:
        lightness, saturation = max(lightness, _READABLE), min(saturation, 0.75)
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, lightness, saturation))
