"""The figures of a report, with words for who cannot see them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mixmoe.errors import ArgumentError
from mixmoe.output.curves import Curve, Observed
from mixmoe.output.plots import canvas_axes, draw
from mixmoe.output.plots_file import svg
from mixmoe.report.evidence import Evidence
from mixmoe.report.page import Gallery, Image, Part, Prose

_SMALL = (4.2, 3.1)
_CAPTIONS = {
    "trajectories": "Estimated trajectory of each expert with pointwise limits, over observed courses in the colour of "
    "their most probable expert; other columns at their medians or most frequent levels.",
    "gate": "Probability of each expert along a covariate of the gate, with pointwise limits.",
    "functions": "Coefficient functions with pointwise limits and simultaneous bands.",
    "means": "Expected response of each expert and over all, with limits.",
    "effects": "Predictions along one input, for the population and for persons.",
    "learning": "Loss by epoch.",
    "responsibilities": "Posterior probabilities of the experts, one bar per unit, sorted by the most probable expert.",
}


def figures(e: Evidence) -> tuple[Part, ...]:
    """Every figure of the family; where one cannot be drawn, the reason."""
    parts = [_of_kind(e, kind) for kind in e.results._report_plots if kind != "gate" or e.n_experts > 1]
    split = _split(e)
    parts += [split] if split is not None else []
    if e.n_experts > 1:
        parts.append(_responsibilities(e))
    return tuple(parts)


def diagnostics(e: Evidence) -> Part:
    """The figure of `diagnose`, or the reason that there is none."""
    try:
        drawing = svg(e.results.diagnose)
    except ArgumentError as error:
        return Prose(f"No diagnostics: {error}.")
    caption = "Quantile residuals, normal and independent if the model is true; their QQ plot with a simultaneous "
    caption += "envelope; predicted random effects, if there are any; observed means, weighted by responsibilities, "
    caption += "beside predicted ones."
    return Image(drawing, caption, f"Panels for {e.design.n} rows of {e.design.n_units} {e.units}; see the caption.")


def candidates(selection: Any) -> tuple[Part, ...]:
    """The criteria, and the default figure of each candidate that was fitted."""
    tried = [c for c in selection.candidates if c.results is not None]
    words = f"Criteria of {len(tried)} candidates against the number of experts; the numbers are in the table."
    criteria = Image(svg(selection.plot), "Criteria against the number of experts, the smallest marked.", words)
    return (criteria, Gallery(tuple(_candidate(c.results, c.label) for c in tried)))


def _candidate(results: Any, label: str) -> Image | Prose:
    kind = results._default_plot
    return _drawn(lambda: _small(results, kind), f"{label}.", lambda: results.curves(kind))


def _small(results: Any, kind: str) -> Any:
    """The figure on less paper, so that its letters are not too small beside others; many panels keep their size."""
    if len({curve.panel for curve in results.curves(kind)}) > 1:
        return results.plot(kind)
    axes = canvas_axes(1, None, size=_SMALL)[0]
    results.plot(kind, axes)
    return axes.figure


def _of_kind(e: Evidence, kind: str) -> Part:
    level = f" Limits: {100 * (1 - e.alpha):g} %." if "limits" in _CAPTIONS[kind] else ""
    return _drawn(lambda: e.results.plot(kind), _CAPTIONS[kind] + level, lambda: e.results.curves(kind))


def _drawn(make: Callable[[], Any], caption: str, curves: Callable[[], Sequence[Curve]]) -> Image | Prose:
    """The image, or the reason that there is none, as with a gate that has no numeric covariate."""
    try:
        shown = curves()
        return Image(svg(make), caption, in_words(shown))
    except ArgumentError as error:
        return Prose(f"No figure ({caption.split(',')[0].rstrip('.')}): {error}.")


def _split(e: Evidence) -> Part | None:
    """Observed courses split by expert; None if there is nothing observed to draw or nothing to split."""
    kind = e.results._default_plot
    observed = None if e.n_experts == 1 else e.results._observed(kind)
    if observed is None:
        return None
    curves = [replace(c, panel=f"expert {c.expert}", label="") for c in e.results.curves(kind) if c.expert]
    caption = "The same, split by expert: observed proportions and the trajectory of that expert."
    if isinstance(observed, Observed):
        caption = "The same, split by the most probable expert: observed courses and the trajectory of that expert."
    words = f"One panel per expert. {in_words(curves)}"
    return Image(svg(lambda: _same_height(draw(curves, observed))), caption, words)


def _same_height(figure: Any) -> Any:
    """The figure with one scale for all panels, so that experts can be compared."""
    limits = [axes.get_ylim() for axes in figure.axes]
    for axes in figure.axes:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    return figure


def _responsibilities(e: Evidence) -> Part:
    tau = e.results.em.responsibilities
    sure = (tau.max(axis=1) > 0.9).mean()
    words = f"Bars of {len(tau)} {e.units}; {sure:.0%} have an expert with a probability above 0.9."
    return Image(svg(lambda: e.results.plot("responsibilities")), _CAPTIONS["responsibilities"], words)


def in_words(curves: Sequence[Curve]) -> str:
    """Where each curve begins and ends."""
    first = curves[0]
    axes = f"{first.ylabel or 'Value'} against {first.xlabel or 'the horizontal axis'}"
    return f"{axes}. {'; '.join(_ends(curve) for curve in curves[:12] if len(curve.x))}."


def _ends(curve: Curve) -> str:
    """First and last value of a curve, or the values of all categories."""
    name = curve.label or curve.panel or "curve"
    if curve.categories:
        values = (f"{y:.4g} at {label}" for label, y in zip(curve.categories, curve.y, strict=True))
        return f"{name}: {', '.join(values)}"
    return f"{name}: {curve.y[0]:.4g} at {curve.x[0]:.4g} to {curve.y[-1]:.4g} at {curve.x[-1]:.4g}"
