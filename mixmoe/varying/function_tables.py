"""Tables and curves of a fitted varying-coefficient mixture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mixmoe._typing import Array
from mixmoe.errors import ArgumentError, ConvergenceWarning, warn
from mixmoe.inference.cells import infinite_words
from mixmoe.mixture.estimate import Flag, Remark
from mixmoe.output.records import Cell, Curve, Table, told_apart, value_format
from mixmoe.output.text import GAP, WIDTH
from mixmoe.results import column_facts
from mixmoe.varying.bands import LEAST_DF
from mixmoe.varying.fitted import FittedVCMoE
from mixmoe.varying.function_frames import (
    AT_COVARIATES,
    AT_LIMIT,
    LOST,
    OUTSIDE,
    THIN,
    UNSTEADY,
    BandRequest,
    function_frame,
    profile_values,
)
from mixmoe.varying.glr import untested
from mixmoe.varying.identifiability import WANTS_WIDER, WIDE
from mixmoe.varying.joint_em import shape_of
from mixmoe.varying.setup import checked_numbers
from mixmoe.varying.windows import interpolated

if TYPE_CHECKING:
    from mixmoe.varying.results import VCMoEResults

STAR = "*"  # beside an estimate outside its band
INFINITE_MARK = "^"  # beside estimates of coefficients that are infinite somewhere
_BANDLESS = "\n(a line alone: no band there)"
_IN_A_LINE = 3  # covariates whose values are named in a line beside a figure, in two lines
PLOTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "functions": ("coefficients", "probabilities"),
        "derivatives": ("coefficients",),
        "probabilities": ("probabilities",),
        "means": ("experts", "mean"),
        "differences": ("differences",),
        "bandwidth": (),
        "gate_bandwidth": (),
    }
)


def title(results: "VCMoEResults") -> str:
    """Heading of the summary."""
    k = results.model.n_experts
    return f"VCMoE with {k} expert{'s' if k > 1 else ''}"


def facts(results: "VCMoEResults") -> tuple[tuple[str, Cell], ...]:
    """Label and value of each line of the header."""
    model, em = results.model, results.em
    problem, dropped = model.problem, model.design.dropped
    ends = (0.0, problem.rows.period) if problem.rows.period else problem.windows.grid[[0, -1]]
    span = f"{model.design.names.index}, {ends[0]:.4g} to {ends[1]:.4g}"
    if problem.rows.period:
        turns = float(np.ptp(model.design.frame[str(model.design.names.index)].to_numpy(float))) / problem.rows.period
        span += f" (cyclic; the data go round {turns:.3g} times)" if turns > 1.0 else " (cyclic)"
    return (
        ("Formula", model.formula.text),
        ("Family", problem.family.name),
        ("Errors" if problem.family.name == "gaussian" else "theta", _shape_text(model)),
        ("Experts", model.n_experts),
        ("Rows", results.nobs),
        ("Clusters", None if model.clusters is None else results.n_units),
        ("Rows dropped", f"{dropped.n_rows} ({dropped})" if dropped.n_rows else 0),
        *column_facts(model),
        ("Index", span),
        *bandwidth_facts(results),
        ("Grid points", problem.windows.n_grid),
        ("Log-likelihood", results.llf),
        ("Effective parameters", float(results.effective_df)),
        ("AIC", results.aic),
        ("AICc", results.aicc),
        ("BIC", results.bic),
        ("Entropy", results.entropy if model.n_experts > 1 else None),
        ("Covariance", results.cov_type),
        ("Converged", "yes" if results.converged else "NO"),
        ("Random starts", results._starts_words if em.starts.n_starts > 1 and model.n_experts > 1 else None),
    )


def _shape_text(model: FittedVCMoE) -> str | None:
    """Degrees of freedom of t errors, or theta of zero-inflated counts; None of others."""
    value = shape_of(model.problem.family)
    if value is None:
        return None
    what = "t, df " if model.problem.family.name == "gaussian" else ""
    return f"{what}{value:.3g}{'' if model.estimated_shape is None else ' (estimated)'}"


def bandwidth_facts(results: "VCMoEResults") -> tuple[tuple[str, Cell], ...]:
    """The bandwidths and how they were found."""
    gate = results.model.settings["gate_bandwidth"]
    return (
        ("Bandwidth", _bandwidth_text(results)),
        ("Gate bandwidth", None if gate is None else _searched(_width(gate), results.gate_selection)),
    )


def _bandwidth_text(results: "VCMoEResults") -> str:
    if results.span is None:
        return _searched(_width(results.bandwidth), results.selection)
    widths = results.model.problem.windows.widths
    return _searched(f"{widths.min():.3g} to {widths.max():.3g}, span {results.span:.3g}", results.selection)


def _width(bandwidth: float) -> str:
    return "infinite (constant)" if np.isinf(bandwidth) else f"{bandwidth:.4g}"


def _searched(text: str, table: pd.DataFrame | None) -> str:
    return text if table is None else f"{text} (cross-validated)"


def about_penalty(model: FittedVCMoE) -> tuple[str, ...]:
    """What a reader must know of a penalised gate."""
    penalty = model.problem.rows.penalty
    if penalty is None or model.n_experts == 1:
        return ()
    return (
        f"Gate penalised by {penalty.described}: functions, standard errors and bands are of the penalised local "
        "log-likelihoods; log-likelihood and criteria are without the penalty.",
    )


def constant_tables(model: FittedVCMoE, frame: pd.DataFrame, alpha: float) -> tuple[Table, ...]:
    """Table of the constants, which are the first parameters, if there are any."""
    part = frame.iloc[: int(model.problem.const.sum())]
    if part.empty:
        return ()
    columns = ("estimate", "std_error", "statistic", "p_value", "conf_low", "conf_high")
    infinite = _infinite_names(model)
    blank = [str(name) for name in part.index[part["std_error"].isna()] if name not in infinite]
    unidentified = (
        f"No valid standard error for {', '.join(blank)}: on the boundary or not identified, alone or within a window "
        "of the index in which a local fit is not.",
    ) * bool(blank)
    return (
        Table(
            key="constants",
            title="Coefficients constant along the index",
            columns=("Estimate", "Std. Err.", "z", "P>|z|", f"[{alpha / 2:.3g}", f"{1 - alpha / 2:.3g}]"),
            index=tuple(str(name) for name in part.index),
            cells=tuple(tuple(_cell(v) for v in row) for row in part[list(columns)].to_numpy(dtype=float)),
            formats=("num", "num", ".3f", "p", "num", "num"),
            notes=(*_infinite_note([name for name in infinite if name in part.index], ""), *unidentified),
        ),
    )


def _infinite_names(model: FittedVCMoE) -> list[str]:
    return [model.names.full[s] for s in np.flatnonzero(model.infinite)]


def _infinite_note(names: list[str], mark: str) -> tuple[str, ...]:
    """In words: which coefficients of the gate are infinite."""
    if not names:
        return ()
    return (
        f"{mark}{infinite_words(names)} where the gate leaves an expert no rows (flag separated_gate): numbers only "
        "say so, and no test of them is valid.",
    )


@dataclass(frozen=True, slots=True)
class Places:
    """Index values at which functions are tabulated.

    Attributes
    ----------
    shown : tuple of str
        The values, as printed.
    values : ndarray, shape (Q,), or None
        Index values; None for the tabulated points of the model.
    estimates : mapping of str to ndarray, shape (Q,)
        Of each function at the values; empty for the tabulated points.
    """

    shown: tuple[str, ...]
    values: Array | None
    estimates: Mapping[str, Array]


def places(model: FittedVCMoE, at: Any) -> Places:
    """The tabulated points of the model, or other index values.

    Raises
    ------
    ArgumentError
        If a value lies outside the range of the index.
    """
    if at is None:
        return Places(model.points_shown(3), None, {})
    values = np.unique(checked_numbers(at, "at"))
    frame = function_frame(model, values, "at")
    estimates = {str(name): part["estimate"].to_numpy() for name, part in frame.groupby("coefficient", sort=False)}
    return Places(told_apart(values.tolist(), 3), values, estimates)


def function_tables(
    model: FittedVCMoE,
    bands: pd.DataFrame | None,
    tests: pd.DataFrame | None,
    flags: Sequence[Flag],
    alpha: float,
    at: Any = None,
) -> tuple[Table, ...]:
    """Range and test of constancy (if any) of each function; per expert and for the gate, values with bands."""
    if bands is None:
        return ()
    shown = places(model, at)
    index = str(model.design.names.index)
    heads = tuple(f"{index}={u}" for u in shown.shown)
    of = "of the index"
    names = model.names
    labels = [
        full if b == "gate" else term for full, term, b in zip(names.full, names.terms, names.blocks, strict=True)
    ]
    if max(map(len, labels)) + sum(len(head) + GAP for head in heads) > WIDTH:
        of, heads = f"at values of {index}", shown.shown  # the name once, so that a table is not cut
    p_values = None if tests is None else {str(name): float(p) for name, p in tests["p_value"].items()}
    tables = [_ranges(model, bands, p_values)]
    for c in range(1, model.problem.slots.n_experts + 1):
        part = bands[(bands["expert"] == c) & bands["block"].isin(["expert", "residual"])]
        tables.append(_function_table(model, part, f"expert{c}", f"Expert {c}: functions {of}", shown, heads))
    gate = bands[bands["block"] == "gate"]
    title = f"Gate: functions {of} (log odds against expert 1)"
    tables.append(_function_table(model, gate, "gate", title, shown, heads))
    varying = [name for name in _infinite_names(model) if name in set(bands["coefficient"])]
    infinite = _infinite_note(varying, f"{INFINITE_MARK} ")
    *others, last = [table for table in tables if table.index]
    about = _about_functions(index, alpha, None if tests is not None else untested(model), _own_bandwidth(model, bands))
    marks, remarks = [Remark(note) for note in infinite], band_remarks(model, bands, flags)
    below = [about, *marks, *remarks]
    told, printed = tuple(r.message for r in below), tuple(r.note for r in below)
    return (*others, replace(last, notes=told, printed=printed))


def _ranges(model: FittedVCMoE, bands: pd.DataFrame, p_values: Mapping[str, float] | None) -> Table:
    """Smallest and largest value of each function, and the test that it is constant (if any)."""
    names: list[str] = []
    cells: list[tuple[Cell, ...]] = []
    infinite = _infinite_names(model)
    for name, part in bands.groupby("coefficient", sort=False):
        estimate = part["estimate"].to_numpy()
        show = value_format(float(np.abs(estimate).max()))
        test = () if p_values is None else (p_values.get(str(name)),)
        mark = INFINITE_MARK if str(name) in infinite else ""
        names.append(str(name))
        cells.append((f"{show(estimate.min())}{mark}", f"{show(estimate.max())}{mark}", *test))
    tested = p_values is not None
    if (
        p_values is not None and "all" in p_values and len(p_values) > 2
    ):  # many small changes may say together what none says alone
        names.append("all")
        cells.append((None, None, p_values["all"]))
    return Table(
        key="functions",
        title=f"Functions of {model.design.names.index}" + (": range, test of constancy" if tested else ": range"),
        columns=("Smallest", "Largest", *(["P const."] if tested else [])),
        index=tuple(names),
        cells=tuple(cells),
        formats=("num", "num", *(["p"] if tested else [])),
    )


def _own_bandwidth(model: FittedVCMoE, bands: pd.DataFrame) -> str:
    """The bandwidth of the bands, if it is not that of the functions."""
    fitted, own = model.problem.windows.bandwidth, float(bands.attrs["bandwidth"])
    return "" if np.isclose(own, fitted) else f" at bandwidth {own:.4g}"


def _about_functions(index: str, alpha: float, why_not: Remark | None, at: str) -> Remark:
    """What the columns and the lines of limits in the tables of functions are, and why there are no tests, if so."""
    test = Remark(
        "P const.: asymptotic GLR test that the function is constant",
        "test_varying() has the bootstrap, which assumes less.",
    )
    tests = why_not or test
    return Remark(
        f"Lower, upper: {100 * (1.0 - alpha):g} % simultaneous bands over the whole range of {index}, robust bias "
        f"correction{at}. {tests.fact}",
        tests.remedy,
    )


def band_remarks(model: FittedVCMoE, bands: pd.DataFrame, flags: Sequence[Flag]) -> list[Remark]:
    """What a reader of bands must know, with one advice about the bandwidth.

    Where local fits fail for want of rows, a smaller bandwidth makes more of them fail: it is no advice for bands that
    are off as long as others lack. Where the bandwidth is wide already, a larger one is none for those that lack.
    """
    windows = model.problem.windows
    wide = windows.bandwidth >= WIDE * windows.span
    wanting = bool(bands["mark"].isin([LOST, THIN]).any()) or any(flag.code in WANTS_WIDER for flag in flags)
    found = (
        lost_bands(bands, wide),
        unsteady_bands(bands),
        thin_bands(bands, wide, windows.period > 0.0),
        limited_bands(bands),
        wide_bands(windows.bandwidth, wanting) if wide else None,
        outside_bands(bands, wanting),
    )
    return [remark for remark in found if remark is not None]


def lost_bands(bands: pd.DataFrame, wide: bool = False) -> Remark | None:
    """In words: for which functions there are no bands for want of a maximum; None if there is one everywhere."""
    where = _marked(bands, LOST)
    if where is None:
        return None
    return Remark(
        f"There are no bands {where}: the local fit behind them (local-quadratic by default) has no maximum near the "
        "fit there",
        f"use {'' if wide else 'a larger bandwidth or '}fewer experts, or bias='none', whose bands leave out the bias.",
    )


def unsteady_bands(bands: pd.DataFrame) -> Remark | None:
    """In words: for which functions the information is noise; None if for none."""
    where = _marked(bands, UNSTEADY)
    if where is None:
        return None
    return Remark(
        f"There are no bands {where}: the information about an expert alone is less certain than it is large, as where "
        "experts coincide",
        "bands('mean') has bands there, and bands(method='bootstrap') those of refitted data.",
    )


def wide_bands(bandwidth: float, wanting: bool) -> Remark:
    """What a bandwidth of half the range means for bands; a smaller one is the way out unless bands are wanting."""
    return Remark(
        f"The bandwidth {bandwidth:.4g} is at least half the range of the index: bands hold the functions only "
        f"if they bend no more than parabolas within such windows{'.' if wanting else ''}",
        "" if wanting else "a smaller bandwidth gives wider, safer bands.",
    )


def thin_bands(bands: pd.DataFrame, wide: bool, closed: bool) -> Remark | None:
    """In words: for which functions there are no bands because too few rows carry them; None if enough do."""
    where = _marked(bands, THIN)
    if where is None:
        return None
    return Remark(
        f"Bands hold over the range of the index that the rows support; there are none {where}, where standard errors "
        f"have fewer than {LEAST_DF:g} degrees of freedom{'' if closed else ', as at thin ends of the index'}",
        f"use {'fewer experts or terms' if wide else 'a larger bandwidth'}.",
    )


def limited_bands(bands: pd.DataFrame) -> Remark | None:
    """In words: which dispersions run to their limits; None if none does."""
    where = _marked(bands, AT_LIMIT)
    if where is None:
        return None
    return Remark(
        f"The dispersion behind the band runs to its limit {where}: it has no standard error there. Limits of theta "
        "are those of its likelihood, and an infinite one says that counts are no more variable than Poisson."
    )


def outside_bands(bands: pd.DataFrame, wanting: bool) -> Remark | None:
    """In words: which estimates lie outside their bands; None if none does."""
    where = _marked(bands, OUTSIDE)
    if where is None:
        return None
    advice = (
        "believe the band, and look again once what is said above is mended."
        if wanting
        else "use a smaller bandwidth, or believe the band."
    )
    return Remark(
        f"Estimates lie outside their own bands {where} ({STAR} in the tables): the correction for bias moves the "
        "function by more than the half-width of its band",
        advice,
    )


def _marked(bands: pd.DataFrame, mark: str) -> str | None:
    """In words: at how many grid points which functions have a mark; None if none has."""
    counts = (bands["mark"] == mark).groupby(bands["coefficient"], sort=False).sum()
    counts = counts[counts > 0]
    if counts.empty:
        return None
    n_grid = int((bands["coefficient"] == bands["coefficient"].iloc[0]).sum())
    several = f"{len(counts)} functions" if len(counts) > 4 else ", ".join(str(name) for name in counts.index)
    return f"at up to {counts.max()} of {n_grid} grid points for {several}"


def _function_table(
    model: FittedVCMoE, bands: pd.DataFrame, key: str, heading: str, at: Places, heads: tuple[str, ...]
) -> Table:
    """Three lines per function: its values at some index values, and the limits of its simultaneous band."""
    windows = model.problem.windows
    grid = np.sort(windows.shown)
    points = np.searchsorted(grid, windows.shown[model.points])
    names: list[str] = []
    cells: list[tuple[Cell, ...]] = []
    infinite = _infinite_names(model)
    for name, part in bands.groupby("coefficient", sort=False):
        estimate = part["estimate"].to_numpy()
        show = value_format(float(np.abs(estimate).max()))
        value = at.estimates.get(str(name), estimate[points])
        low, high = (
            values[points] if at.values is None else interpolated(at.values, grid, values, windows.period)
            for values in (part["band_low"].to_numpy(), part["band_high"].to_numpy())
        )
        stars = np.where((value < low) | (value > high), STAR, INFINITE_MARK if str(name) in infinite else "")
        names += [str(part["term"].iloc[0]) if key != "gate" else str(name), "  lower", "  upper"]
        cells.append(tuple(f"{show(v)}{star}" for v, star in zip(value, stars, strict=True)))
        cells += [tuple("-" if np.isnan(v) else show(v) for v in limits) for limits in (low, high)]
    return Table(
        key=key,
        title=heading,
        columns=heads,
        index=tuple(names),
        cells=tuple(cells),
        formats=("num",) * len(heads),
    )


def _cell(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def drawn_bands(results: "VCMoEResults", kind: str, options: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Bands that a figure shows, by what they are of; covariate values go to those that depend on some.

    Parameters
    ----------
    results : VCMoEResults
    kind : str
        One of `PLOTS`.
    options : mapping
        Of `VCMoEResults.bands`.

    Raises
    ------
    ArgumentError
        If nothing varies along the index, or there is no such option.
    """
    model = results.model
    if model.problem.const.all():
        raise ArgumentError(
            f"no function of this fit varies along {model.design.names.index}, so there is no curve to draw, "
            f"got kind={kind!r}; to_frame() has the constants, and plot('responsibilities') draws the experts"
        )
    allowed = [field.name for field in fields(BandRequest) if field.name not in ("of", "clusters")]
    allowed.append("rng")
    for name in options:
        if name not in allowed:
            raise ArgumentError(f"plot({kind!r}) has no option {name!r}; it has {', '.join(allowed)}")
    alone = model.n_experts == 1 and kind == "functions"
    wanted = [of for of in PLOTS[kind] if of != "probabilities" or not alone]
    shared = any(of in AT_COVARIATES for of in wanted)
    without = {name: value for name, value in options.items() if name != "at" or not shared}
    frames = {}
    for of in wanted:
        given = dict(options if of in AT_COVARIATES else without)
        rng = given.pop("rng", None)
        frames[of] = results._bands(BandRequest(of, **given).checked(), rng)
    shown = pd.concat(frames.values())
    for gaps in (lost_bands(shown), unsteady_bands(shown)):
        if gaps is not None:
            warn(gaps.message, ConvergenceWarning)  # once for the figure
    return frames


def curves(results: "VCMoEResults", kind: str, options: Mapping[str, Any]) -> tuple[Curve, ...]:
    """Curves of a figure, see `VCMoEResults.curves`."""
    if kind not in ("bandwidth", "gate_bandwidth"):
        wanted = {**options, "derivative": 1} if kind == "derivatives" else options
        return band_curves(results.model, drawn_bands(results, kind, wanted), wanted)
    table = results.selection if kind == "bandwidth" else results.gate_selection
    if table is None:
        raise ArgumentError(f"there is no search to draw, {kind}={getattr(results, kind):.4g}; use {kind}='cv'")
    index = results.model.design.names.index
    x, y, se = (table[c].to_numpy() for c in ("bandwidth", "criterion", "std_error"))
    label = "span" if results.span else f"{kind.replace('_', ' ')} ({index})"
    chosen, ends = float(getattr(results, "span" if results.span else kind)), np.array([(y - se).min(), (y + se).max()])
    return (
        Curve("", "", x, y, y - se, y + se, xlabel=label, ylabel="held-out log-likelihood per row"),
        Curve("", f"used: {chosen:.4g}", np.full(2, chosen), ends, shade=2),
    )


def band_curves(
    model: FittedVCMoE, frames: Mapping[str, pd.DataFrame], options: Mapping[str, Any]
) -> tuple[Curve, ...]:
    """Curves of frames of bands: a panel per term of the experts, one for probabilities.

    Parameters
    ----------
    model : FittedVCMoE
    frames : mapping of str to DataFrame
        By what they are of.
    options : mapping
        Those of `VCMoEResults.bands` that were given.
    """
    curves = []
    constant = {model.names.terms[s] for s in np.flatnonzero(model.problem.const)}
    for of, frame in frames.items():
        if of == "coefficients":
            frame = frame[frame["block"] != "gate"]
        if of == "differences" and not set(frame["term"]) <= constant:  # those of constants are no curves
            frame = frame[~frame["term"].isin(constant)]
        for name, part in frame.groupby("coefficient", sort=False):
            curves.append(_curve(model, of, str(name), part, options))
    return tuple(curves)


def _curve(model: FittedVCMoE, of: str, name: str, part: pd.DataFrame, options: Mapping[str, Any]) -> Curve:
    index = str(model.design.names.index)
    expert = None if pd.isna(part["expert"].iloc[0]) else int(part["expert"].iloc[0])
    panel = {
        "coefficients": f"{'derivative of the ' * options.get('derivative', 0)}coefficient of {part['term'].iloc[0]}",
        "probabilities": "probability of the expert",
        "experts": "expected response",
        "mean": "expected response",
        "differences": name,
    }[of]
    if part["block"].iloc[0] == "residual":
        panel = str(part["term"].iloc[0])
    value = {
        c: part[c].to_numpy(dtype=float)
        for c in part.columns
        if c not in ("coefficient", "block", "expert", "term", "mark")
    }
    return Curve(
        panel=panel,
        label="population mean" if of == "mean" else "" if expert is None else f"expert {expert}",
        x=value[index],
        y=value["estimate"],  # what the tables say, also where there is no band
        lower=value["conf_low"],
        upper=value["conf_high"],
        band_lower=value["band_low"],
        band_upper=value["band_high"],
        expert=expert,
        xlabel=index + (_BANDLESS if np.isnan(value["band_low"]).any() else ""),
        ylabel=_value_label(model, of, options),
        log=part["block"].iloc[0] == "residual" and not options.get("derivative", 0),
        limits=f"{100 * (1.0 - options.get('alpha', 0.05)):g} % pointwise",
        bands=f"{100 * (1.0 - options.get('alpha', 0.05)):g} % simultaneous",
    )


def _value_label(model: FittedVCMoE, of: str, options: Mapping[str, Any]) -> str:
    """What a line and its bands show, and at which covariates."""
    line = {"rbc": "corrected for bias", "undersmooth": "undersmoothed", "none": "around local maxima"}
    what = {"probabilities": "probability", "experts": "expected response", "mean": "expected response"}.get(
        of, "value"
    )
    label = f"{what}; bands {line[options.get('bias', 'rbc')]}"
    values = {} if of not in AT_COVARIATES else profile_values(model, of, options.get("at"))
    at = [
        f"{name} = {value:.3g}" if isinstance(value, float) else f"{name} = {value}" for name, value in values.items()
    ]
    lines = [", ".join(at[i : i + _IN_A_LINE]) for i in range(0, min(len(at), 2 * _IN_A_LINE), _IN_A_LINE)]
    return "\n".join([label, *lines]) + (" ..." if len(at) > 2 * _IN_A_LINE else "")
