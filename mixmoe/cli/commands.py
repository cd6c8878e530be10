"""What each command does."""

import argparse
import inspect
from typing import Any

import pandas as pd

from mixmoe import datasets
from mixmoe.api import fit, load
from mixmoe.cli.files import OUT_ENDINGS, check_writable, read_data, write_frame, write_text
from mixmoe.cli.parser import collected
from mixmoe.errors import ArgumentError, DesignError
from mixmoe.formula import MoEFormula, parse_formula, require_safe
from mixmoe.inference.intervals import checked_alpha
from mixmoe.output.plots_file import FIGURE_ENDINGS, save_figure
from mixmoe.output.summary import Summary
from mixmoe.report.data import describe

OK, FAILED, USAGE, UNCONVERGED = 0, 1, 2, 3
_GIVEN = ("cov_re", "residual", "rng", "starts", "max_iter", "tol")
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
        options["cluster"] = column(data, arguments.cluster, "--cluster")
    results = fit(formula.text, data, arguments.experts, **options)
    _write_fit(results, arguments)
    unsound = not results.converged or (arguments.strict and bool(results.flags))
    return UNCONVERGED if unsound else OK


def run_predict(arguments: argparse.Namespace) -> int:
    """Predict from a saved fit; the exit code."""
    check_writable(arguments.out, "--out", OUT_ENDINGS)
    known = read_data(arguments.fit_data) if arguments.fit_data else None
    results = load(arguments.fit, known)
    new = source(arguments)
    options = {"kind": arguments.kind, "interval": arguments.interval, "alpha": arguments.alpha}
    if arguments.history is not None:
        options["history"] = read_data(arguments.history, sep=arguments.sep, decimal=arguments.decimal)
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


def _write_fit(results: Any, arguments: argparse.Namespace) -> None:
    summary = results.summary(arguments.alpha)
    if not arguments.quiet:
        print(summary)
    if arguments.latex is not None:
        write_text(summary.as_latex(), arguments.latex)
    if arguments.markdown is not None:
        write_text(summary.as_markdown(), arguments.markdown)
    if arguments.html is not None:
        write_text(summary.as_html(), arguments.html)
    if arguments.out is not None:
        write_frame(results.tidy(arguments.alpha), arguments.out)
    if arguments.report is not None:
        results.report(arguments.report, alpha=arguments.alpha)
    if arguments.save is not None:
        results.save(arguments.save, data=not arguments.no_data)
    if arguments.plot is not None:
        save_figure(lambda: results.plot(arguments.plot_kind), arguments.plot)
