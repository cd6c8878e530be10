"""What each command does."""

import argparse
import inspect
from typing import Any

import pandas as pd

import mixmoe
from mixmoe import datasets
from mixmoe.api import fit, load
from mixmoe.candidates import LISTED, LISTED_NETWORK
from mixmoe.cli.files import OUT_ENDINGS, check_writable, read_data, write_frame, write_text
from mixmoe.cli.parser import collected, read_value
from mixmoe.errors import ArgumentError, DesignError
from mixmoe.formula import MoEFormula, parse_formula, require_safe
from mixmoe.inference.intervals import checked_alpha
from mixmoe.output.plots_file import FIGURE_ENDINGS, save_figure
from mixmoe.output.summary import Summary
from mixmoe.report.data import describe
from mixmoe.selection import Selection, select

OK, FAILED, USAGE, UNCONVERGED = 0, 1, 2, 3
INTERRUPTED = 130  # as a shell reports a program ended by Ctrl-C
_GIVEN = ("cov_re", "residual", "gate_penalty", "rng", "starts", "max_iter", "tol")
_REFUSED = (*_GIVEN, "experts", "cov_type", "cluster", "context", "start", "data", "formula")


def run_fit(arguments: argparse.Namespace) -> int:
    """Fit, print, write; the exit code."""
    _check_outputs(arguments)
    formula = safe_formula(arguments.formula)
    options = model_options(arguments)
    data = source(arguments)
    if arguments.cov_type is not None:
        options["cov_type"] = arguments.cov_type
    if arguments.cluster is not None:
        clusters = column(data, arguments.cluster, "--cluster")
        options["cluster"] = clusters if formula.vary is None else arguments.cluster
    results = _fitted(formula, data, arguments, options)
    _write_fit(results, arguments)
    return _soundness(results, arguments)


def _fitted(formula: MoEFormula, data: pd.DataFrame, arguments: argparse.Namespace, options: dict[str, Any]) -> Any:
    """A mixture, or a network if widths of its layers or an order of the rows are given."""
    if arguments.hidden is None and formula.seq is None:
        return fit(formula.text, data, 2 if arguments.experts is None else arguments.experts, **options)
    if arguments.experts is not None:
        raise ArgumentError(f"--experts {arguments.experts}: a network has no experts; leave it out")
    widths = {} if arguments.hidden is None else {"hidden": arguments.hidden}
    return mixmoe.nme(formula.text, data, **widths, **options)


def _soundness(results: Any, arguments: argparse.Namespace) -> int:
    """The exit code of a fit that was written."""
    unsound = not results.converged or (arguments.strict and bool(results.flags))
    return UNCONVERGED if unsound else OK


def run_select(arguments: argparse.Namespace) -> int:
    """Compare candidates, print, write; the exit code."""
    _check_outputs(arguments)
    if arguments.criterion == "cv" and arguments.folds is None:
        raise ArgumentError("--criterion cv needs --folds, such as --folds 5")
    formulas = [safe_formula(text).text for text in arguments.formula]
    options = {**model_options(arguments), "folds": arguments.folds, "n_jobs": arguments.jobs}
    several = LISTED_NETWORK if _networks(arguments) else LISTED
    texts = {name: options[name] for name in several if isinstance(options.get(name), str)}
    options |= {name: [read_value(part) for part in text.split(",")] for name, text in texts.items()}
    data = source(arguments)
    if arguments.cluster is not None:
        options["cluster"] = _units(data, arguments)
    if arguments.hidden is not None:
        options["hidden"] = arguments.hidden
    experts = [1, 2, 3, 4] if arguments.experts is None and not _networks(arguments) else arguments.experts
    found = select(formulas, data, experts, checkpoint=arguments.checkpoint, **options)
    _write_selection(found, arguments)
    if found.interrupted:
        return INTERRUPTED
    if all(candidate.results is None for candidate in found.candidates):
        raise DesignError("no candidate could be fitted; the table says why")
    best = found.best(arguments.criterion)
    if arguments.report is not None:
        best.report(arguments.report, alpha=arguments.alpha, selection=found)
    if arguments.save is not None:
        best.save(arguments.save, data=not arguments.no_data)
    return _soundness(best, arguments)


def _units(data: pd.DataFrame, arguments: argparse.Namespace) -> str:
    """The column of independent units of candidates that take one."""
    if any(parse_formula(text).vary is None for text in arguments.formula):
        raise ArgumentError(
            f"--cluster {arguments.cluster} is for formulas with vary:, got one without; subjects are named by re:"
        )
    return str(column(data, arguments.cluster, "--cluster").name)


def _networks(arguments: argparse.Namespace) -> bool:
    """Whether the candidates are networks."""
    return arguments.hidden is not None or any(parse_formula(text).seq is not None for text in arguments.formula)


def run_predict(arguments: argparse.Namespace) -> int:
    """Predict from a saved fit; the exit code."""
    check_writable(arguments.out, "--out", OUT_ENDINGS)
    known = read_data(arguments.fit_data) if arguments.fit_data else None
    results = load(arguments.fit, known)
    new = source(arguments)
    options = {name: getattr(arguments, name) for name in ("kind", "interval", "scale", "alpha")}
    if arguments.history is not None:
        options["history"] = read_data(arguments.history, sep=arguments.sep, decimal=arguments.decimal)
    options["extrapolate"] = arguments.extrapolate or None
    given = {name: value for name, value in options.items() if value is not None}
    predicted = results.predict(new, **_accepted(results, given))
    kept = [column(new, name, "--keep") for name in arguments.keep.split(",") if name]
    group = results.model.design.names.group
    if group in new.columns and group not in [values.name for values in kept]:
        kept.insert(0, new[group])
    write_frame(pd.concat([*kept, predicted], axis=1), arguments.out)
    return OK


def run_describe(arguments: argparse.Namespace) -> int:
    """Print what a data set holds; the exit code."""
    tables = describe(source(arguments), arguments.id, arguments.time)
    found = Summary("" if arguments.data == "-" else arguments.data, tables)
    print(found.as_markdown() if arguments.markdown else found.as_text())
    return OK


def run_data(arguments: argparse.Namespace) -> int:
    """Write a public data set; the exit code."""
    check_writable(arguments.out, "--out", OUT_ENDINGS)
    write_frame(datasets.load(arguments.name), arguments.out)
    return OK


def source(arguments: argparse.Namespace) -> pd.DataFrame:
    """The data that the command names."""
    return read_data(arguments.data, arguments.format, arguments.sep, arguments.decimal)


def safe_formula(text: str) -> MoEFormula:
    """A formula that runs no code of its own."""
    formula = parse_formula(text)
    require_safe(formula)
    return formula


def model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options of `mixmoe.fit` that were given."""
    options = {name: getattr(arguments, name) for name in _GIVEN if getattr(arguments, name) is not None}
    if arguments.quiet:
        options["progress"] = False
    return {**options, **collected(arguments.option, _REFUSED)}


def column(data: pd.DataFrame, name: str, option: str) -> pd.Series:
    """A column of the data.

    Raises
    ------
    DesignError
        If there is none of that name.
    """
    if name not in data.columns:
        raise DesignError(f"{option}: the data have no column {name!r}; they have {', '.join(map(str, data.columns))}")
    return data[name]


def _accepted(results: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options, if this family's `predict` has them; the level only if it has one."""
    known = inspect.signature(results.predict).parameters
    family = results.model.family_name
    for name in options:
        if name not in known and name != "alpha":
            raise ArgumentError(f"--{name}: predict of {family} has no such option; it has {', '.join(known)}")
    return {name: value for name, value in options.items() if name in known}


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse places and levels that would fail after the fit."""
    checked_alpha(arguments.alpha)
    check_writable(arguments.out, "--out", OUT_ENDINGS)
    check_writable(arguments.plot, "--plot", FIGURE_ENDINGS)
    check_writable(arguments.report, "--report", (".html", ".htm"))
    for name in ("latex", "markdown", "html", "save"):
        check_writable(getattr(arguments, name), f"--{name}")
    for name in ("plot", "save", "report"):
        if getattr(arguments, name) == "-":
            raise ArgumentError(f"--{name} cannot go to standard output; name a file")


def _write_texts(summary: Summary, arguments: argparse.Namespace) -> None:
    """The summary to standard output and in the formats asked for."""
    if not arguments.quiet:
        print(summary)
    for name in ("latex", "markdown", "html"):
        if getattr(arguments, name) is not None:
            write_text(getattr(summary, f"as_{name}")(), getattr(arguments, name))


def _write_selection(found: Selection, arguments: argparse.Namespace) -> None:
    _write_texts(found.summary(), arguments)
    if arguments.out is not None:
        frame = found.to_frame()
        lists = [name for name in ("shares", "flags") if name in frame]
        joined = {name: [" ".join(map(str, values)) for values in frame[name]] for name in lists}
        write_frame(frame.assign(**joined), arguments.out)
    if arguments.plot is not None:
        save_figure(found.plot, arguments.plot)


def _write_fit(results: Any, arguments: argparse.Namespace) -> None:
    _write_texts(results.summary(arguments.alpha), arguments)
    if arguments.out is not None:
        write_frame(results.tidy(arguments.alpha), arguments.out)
    if arguments.report is not None:
        results.report(arguments.report, alpha=arguments.alpha)
    if arguments.save is not None:
        results.save(arguments.save, data=not arguments.no_data)
    if arguments.plot is not None:
        save_figure(lambda: results.plot(arguments.plot_kind), arguments.plot)
