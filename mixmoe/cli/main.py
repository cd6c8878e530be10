"""Entry of the command line: runs a command, and says what went wrong without a traceback."""

import argparse
import inspect
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import pandas as pd

import mixmoe
from mixmoe import datasets
from mixmoe.api import fit
from mixmoe.cli.files import (
    FORMATS,
    OUT_ENDINGS,
    STREAM,
    check_writable,
    is_partitioned_source,
    read_data,
    write_frame,
    write_text,
)
from mixmoe.design.formula import MoEFormula, parse_formula
from mixmoe.design.transforms import require_safe
from mixmoe.errors import ArgumentError, DesignError, FormulaError, MixmoeError, MixmoeWarning
from mixmoe.families import family_of
from mixmoe.inference.uncertainty import checked_alpha
from mixmoe.loading import load
from mixmoe.output.plots_in_files import FIGURE_ENDINGS, save_figure
from mixmoe.output.summary import Summary
from mixmoe.partitioned_results import OfPartitions
from mixmoe.partitions.partwise_predictions import Predictions
from mixmoe.partitions.scan import Scan, scan
from mixmoe.report.described import describe
from mixmoe.results import Results
from mixmoe.selection.choice import select

CRITERIA = ("aic", "bic", "sabic", "icl", "clc", "cv", "validation")
FORMULA = "log(bili) ~ year | gate: age + sex | re: (1 + year | id)"
_NUMBER = re.compile(r"[+-]?(inf|(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)")  # what JSON does not know among them: .3, inf
CLUSTER = "column of the clusters, which are the independent units of standard errors and folds"
SOURCES = (
    "CSV, TSV, Parquet, Stata, SPSS or Excel; - for standard input (CSV); of fit and predict also a pattern "
    "'visits/*.parquet' or a folder of Parquet files, which need not fit into memory"
)


NETWORK = "log(bili) ~ year + age | re: (last | id)"
EXAMPLES = f"""
examples:
  mixmoe data pbcseq > pbcseq.csv
  mixmoe describe pbcseq.csv --id id --time year
  mixmoe fit pbcseq.csv "{FORMULA}" --experts 2 --rng 0 --save fit.mixmoe --latex table.tex
  mixmoe select pbcseq.csv "{FORMULA}" --experts 1:3 --rng 0 --out candidates.csv
  mixmoe predict fit.mixmoe pbcseq.csv --kind probabilities --out predicted.csv

exit codes:
  0  done
  1  failed: data that cannot be read or do not fit the formula, a file that is not there
  2  wrong use: an option, a value or a formula that cannot be read
  3  fitted and written, but the optimiser did not converge; with --strict also if the fit has any flag
  130  interrupted

Results go to standard output or to the files named, warnings and messages to standard error.
"""


FIT_EXAMPLES = f"""
examples:
  mixmoe fit pbcseq.csv "{FORMULA}" --rng 0
  mixmoe fit pbcseq.csv "{FORMULA}" --rng 0 --cov-re common --residual common --out estimates.csv
  cat pbcseq.csv | mixmoe fit - "log(bili) ~ year | re: (1 + year | id)" --experts 1 --markdown - --quiet
  mixmoe fit pbcseq.csv "{FORMULA}" --rng 0 --plot courses.png --save bare.mixmoe --no-data
  mixmoe fit pbcseq.csv "{FORMULA}" --rng 0 --quiet --report report.html

Other options of mm.fit go through --option NAME=VALUE, such as bandwidth=0.3, trials=COLUMN, weights=COLUMN:
  mixmoe fit pbcseq.csv "hepato ~ year | re: (1 | id)" --experts 1 --family binomial --option n_quad=5

With --hidden (or a section seq: in the formula) a network with person effects is fitted; "linear" has no hidden
layer, and settings of the fit go through --option:
  mixmoe fit pbcseq.csv "{NETWORK}" --hidden 3 --option baselines=false --rng 0

A formula from the command line may use only common transforms: log, sqrt, exp, scale, center, C, bs, cr, poly ...
"""


SELECT_EXAMPLES = f"""
examples:
  mixmoe select pbcseq.csv "{FORMULA}" --experts 1,2 --cov-re expert,common --rng 0 --plot criteria.png
  mixmoe select pbcseq.csv "{FORMULA}" --experts 1:2 --rng 0 --save best.mixmoe --report best.html

Networks with person effects are compared by their errors on the last rows of each person:
  mixmoe select pbcseq.csv "{NETWORK}" --hidden linear 3 --rng 0

--report and --save are of the best candidate by --criterion; the report has all candidates. --plot draws the criteria.
"""


PREDICT_EXAMPLES = """
examples:
  mixmoe predict fit.mixmoe pbcseq.csv --kind experts --keep year > predicted.csv
  mixmoe predict fit.mixmoe pbcseq.csv --kind subject --history pbcseq.csv --interval prediction --out predicted.csv
"""


DESCRIBE_EXAMPLES = """
examples:
  mixmoe describe pbcseq.csv
  mixmoe describe pbcseq.csv --id id --time year --markdown
"""


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments as a record; ends the program with code 2 if they are wrong."""
    given, unknown = build_parser().parse_known_args(arguments)
    flag = next((word.partition("=")[0] for word in unknown if word.startswith("--")), None)
    if unknown and flag is None:
        _complain(
            f"mixmoe {given.command} does not know what {unknown[0]!r} is; see mixmoe {given.command} --help", USAGE
        )
        raise SystemExit(USAGE)
    if flag is not None:
        takes = f"mixmoe {given.command} has no {flag}"
        # Options of the models are too many, and too many kinds, to have flags of their own.
        through = (
            f"options of mm.{given.command} without a flag are given as --option {flag[2:].replace('-', '_')}=VALUE; "
        )
        instead = through if given.command in ("fit", "select") else ""
        _complain(f"{takes}; {instead}see mixmoe {given.command} --help", USAGE)
        raise SystemExit(USAGE)
    return given


def build_parser() -> argparse.ArgumentParser:
    """The parser with its commands."""
    parser = _plain_parser(argparse.ArgumentParser, prog="mixmoe", epilog=EXAMPLES)
    parser.description = "Mixtures of experts for longitudinal and other structured data."
    parser.add_argument("--version", action="version", version=f"mixmoe {mixmoe.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_fit(commands)
    _add_select(commands)
    _add_predict(commands)
    about = "say what a data set holds: subjects, visits, spacing, missing values, columns usable in the gate"
    describing = _plain_parser(commands.add_parser, "describe", help=about, description=about, epilog=DESCRIBE_EXAMPLES)
    _add_source(describing)
    describing.add_argument("--id", metavar="COLUMN", help="column that names the subjects")
    describing.add_argument("--time", metavar="COLUMN", help="column of the times of the visits")
    describing.add_argument("--markdown", action="store_true", help="as Markdown")
    about = "write a public data set as CSV"
    public = _plain_parser(commands.add_parser, "data", help=about, description=about)
    public.add_argument("name", choices=datasets.names())
    public.add_argument("--out", metavar="FILE", default="-", help=f"{', '.join(OUT_ENDINGS)} (default: CSV)")
    return parser


def _plain_parser(make: Any, *names: str, **options: Any) -> argparse.ArgumentParser:
    """A parser that keeps the lines of its examples and knows no abbreviations, which later options would break."""
    formatter = argparse.RawDescriptionHelpFormatter
    return make(*names, formatter_class=formatter, allow_abbrev=False, **options)


def _add_fit(commands: Any) -> None:
    about = "fit a mixture of experts to a file and print its summary"
    parser = _plain_parser(commands.add_parser, "fit", help=about, description=about, epilog=FIT_EXAMPLES)
    _add_source(parser)
    parser.add_argument("formula", help='such as "y ~ time | gate: z | re: (1 + time | id)"')
    model = parser.add_argument_group("model")
    model.add_argument("-k", "--experts", type=int, metavar="K", help="number of experts (default 2)")
    model.add_argument("--hidden", type=_widths, metavar="WIDTHS", help="fit a network: 10,5 or linear")
    add_model_options(model)
    model.add_argument(
        "--cov-type", help="standard errors: robust (default, with --cluster cluster), nonrobust, bootstrap"
    )
    model.add_argument("--cluster", metavar="COLUMN", help=CLUSTER)
    out = _add_outputs(parser, rows="estimates", fit="the fit", shown="summary")
    out.add_argument("--plot-kind", metavar="KIND", help="kind of figure, such as gate or responsibilities")


def add_model_options(group: Any) -> None:
    """Options of a model and its optimiser that `fit` and its relatives share."""
    group.add_argument("--family", help="of the response: gaussian, binomial, poisson, negbinomial, zip, ordinal ...")
    group.add_argument("--offset", metavar="COLUMN", help="of the predictor; for counts the logarithm of the exposure")
    group.add_argument("--cov-re", help="covariance of random effects: expert (default), proportional, common")
    group.add_argument("--residual", help="residual standard deviation: expert (default) or common")
    group.add_argument(
        "--gate-penalty", type=read_value, metavar="firth|N", help="keep gate coefficients finite (default off)"
    )
    group.add_argument("--rng", type=int, metavar="SEED", help="seed, for a result that can be repeated")
    group.add_argument("--starts", type=int, metavar="N", help="random starts")
    group.add_argument("--max-iter", type=int, metavar="N", help="iterations of the optimiser")
    group.add_argument("--tol", type=float, help="tolerance of the optimiser")
    group.add_argument(
        "--option",
        action="append",
        default=[],
        type=_named_value,
        metavar="NAME=VALUE",
        help="any other option of mm.fit, such as --option bandwidth=0.3; may be repeated; select takes several "
        "values with commas",
    )


def _add_outputs(parser: argparse.ArgumentParser, rows: str, fit: str, shown: str) -> Any:
    """Options that say where results go, in words for what is tabulated (rows), kept (fit) and printed (shown)."""
    out = parser.add_argument_group("results (FILE may be - for standard output, where it is text)")
    out.add_argument("--out", metavar="FILE", help=f"{rows} as a table: {', '.join(OUT_ENDINGS)}")
    out.add_argument("--latex", metavar="FILE", help=f"the {shown} for LaTeX with booktabs")
    out.add_argument("--markdown", metavar="FILE", help=f"the {shown} in Markdown")
    out.add_argument("--html", metavar="FILE", help=f"the {shown} as a fragment of HTML")
    out.add_argument("--report", metavar="FILE", help=f"web page of {fit} with figures and checklists: .html")
    out.add_argument("--plot", metavar="FILE", help=f"figure: {', '.join(FIGURE_ENDINGS)}")
    out.add_argument("--save", metavar="FILE", help=f"{fit}, for mixmoe predict and mm.load")
    out.add_argument("--no-data", action="store_true", help="keep the data out of --save")
    out.add_argument("--alpha", type=float, default=0.05, help="one minus the level of the limits (default 0.05)")
    out.add_argument("--quiet", action="store_true", help=f"no {shown} and no progress bar")
    out.add_argument("--strict", action="store_true", help=f"exit code 3 also if {fit} has any flag")
    return out


def _add_select(commands: Any) -> None:
    about = "fit candidates that differ in experts, structure or formula, and compare them"
    parser = _plain_parser(commands.add_parser, "select", help=about, description=about, epilog=SELECT_EXAMPLES)
    _add_source(parser)
    parser.add_argument("formula", nargs="+", help="one formula or several with the same response")
    model = parser.add_argument_group("candidates")
    model.add_argument("-k", "--experts", type=_numbers, metavar="K", help="1:4 or 1,2,4 (default 1:4)")
    model.add_argument("--hidden", type=_widths, nargs="+", metavar="WIDTHS", help="networks: linear 5 10,5")
    add_model_options(model)
    model.add_argument("--cluster", metavar="COLUMN", help=CLUSTER)
    model.add_argument("--folds", type=int, metavar="N", help="adds the cross-validated log-likelihood")
    model.add_argument("--n-jobs", type=int, default=1, metavar="N", help="worker processes (default 1, -1 for all)")
    model.add_argument("--checkpoint", metavar="FOLDER", help="keep finished fits there, and continue from them")
    best = "what the best one is (default bic; of networks validation)"
    model.add_argument("--criterion", choices=CRITERIA, help=best)
    _add_outputs(parser, rows="candidates", fit="the best fit", shown="table")


def _add_predict(commands: Any) -> None:
    about = "predict from a saved fit"
    parser = _plain_parser(commands.add_parser, "predict", help=about, description=about, epilog=PREDICT_EXAMPLES)
    parser.add_argument("fit", help="file written by --save or by save()")
    _add_source(parser, "rows to predict")
    parser.add_argument("--kind", help="all (default), mean, experts, probabilities or subject")
    parser.add_argument(
        "--history", metavar="FILE", help="past rows of these subjects, with response: posterior predictions"
    )
    parser.add_argument(
        "--interval", help="limits: confidence, or prediction for those of a new response (default none)"
    )
    parser.add_argument("--scale", help="response (default), link, or categories of a response")
    parser.add_argument("--alpha", type=float, default=0.05, help="one minus the level of the limits (default 0.05)")
    parser.add_argument("--extrapolate", action="store_true", help="continue functions beyond the index of the fit")
    parser.add_argument("--fit-data", metavar="FILE", help="data of the fit, if it was saved without them")
    parser.add_argument("--keep", default="", metavar="COLUMNS", help="columns of the data to write too: a,b,c")
    parser.add_argument("--out", metavar="FILE", default="-", help=f"{', '.join(OUT_ENDINGS)} (default: CSV)")


def _add_source(parser: argparse.ArgumentParser, what: str = "data, one row per visit") -> None:
    parser.add_argument("data", help=f"{what}: {SOURCES}")
    reading = parser.add_argument_group("reading")
    reading.add_argument("--format", choices=FORMATS, help="what the data are, if their ending does not say it")
    reading.add_argument("--sep", help="separator of CSV (default , or a tabulator)")
    reading.add_argument("--decimal", default=".", help="decimal mark of CSV (default .)")


def _numbers(text: str) -> list[int]:
    """Numbers of ``1:4`` (both ends count) or ``1,2,4``."""
    first, colon, last = text.partition(":")
    try:
        return list(range(int(first), int(last) + 1)) if colon else [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be numbers such as 1:4 or 1,2,4, got {text!r}") from error


def _widths(text: str) -> tuple[int, ...]:
    """Widths of hidden layers, ``10,5``; none for ``linear``."""
    try:
        return () if text == "linear" else tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be widths such as 10,5, or linear, got {text!r}") from error


_WORDS = {"True": True, "False": False, "None": None}  # as the documentation of mm.fit has them


def _named_value(text: str) -> tuple[str, Any]:
    """Name and value of ``NAME=VALUE``."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    return name, read_value(value)


def read_value(text: str) -> Any:
    """The value of a text that is JSON, Python's True, False or None, a number as ``.3`` or ``inf``, else the text."""
    if text in _WORDS:
        return _WORDS[text]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return float(text) if _NUMBER.fullmatch(text) else text


def collected(pairs: Sequence[tuple[str, Any]], refused: Sequence[str]) -> dict[str, Any]:
    """The values of ``--option`` by name.

    Raises
    ------
    ArgumentError
        For a name that has an option of its own or cannot be given as text.
    """
    for name, _ in pairs:
        if name in refused:
            raise ArgumentError(f"--option {name}=... is not allowed; {name} has an option of its own or is code")
    return dict(pairs)


OK, FAILED, USAGE, UNCONVERGED = 0, 1, 2, 3
INTERRUPTED = 130  # as a shell reports a program ended by Ctrl-C
_GIVEN = ("family", "offset", "cov_re", "residual", "gate_penalty", "rng", "starts", "max_iter", "tol")
_REFUSED = (*_GIVEN, "experts", "cov_type", "cluster", "context", "start", "data", "formula")


def run_fit(arguments: argparse.Namespace) -> int:
    """Fit, print, write; the exit code."""
    _check_outputs(arguments)
    formula = safe_formula(arguments.formula)
    options = model_options(arguments)
    data = scan(arguments.data) if is_partitioned_source(arguments.data) else source(arguments)
    if arguments.cov_type is not None:
        options["cov_type"] = arguments.cov_type
    if arguments.cluster is not None:
        options["cluster"] = _known_column(data, arguments.cluster, "--cluster")
    if arguments.hidden is not None:
        options["hidden"] = arguments.hidden
    results = fit(formula.text, data, arguments.experts, **options)
    _write_texts(results.summary(arguments.alpha), arguments)
    if arguments.out is not None:
        estimates = results.tidy(arguments.alpha)
        write_frame(estimates, arguments.out)
        if arguments.quiet:  # a file of rows has no place for notes, and no summary shows them
            told = {flag.message for flag in results.flags}
            for note in (note for note in estimates.attrs["notes"] if note not in told):
                print(f"mixmoe: note: {note}", file=sys.stderr)
    if arguments.report is not None:
        results.report(arguments.report, alpha=arguments.alpha)
    if arguments.save is not None:
        results.save(arguments.save, data=not arguments.no_data)
    if arguments.plot is not None:
        save_figure(lambda: results.plot(arguments.plot_kind), arguments.plot)
    return _soundness(results, arguments)


def _soundness(results: Results, arguments: argparse.Namespace) -> int:
    """The exit code of a fit that was written."""
    unsound = not results.converged or (arguments.strict and bool(results.flags))
    return UNCONVERGED if unsound else OK


def run_select(arguments: argparse.Namespace) -> int:
    """Compare candidates, print, write; the exit code."""
    _check_outputs(arguments)
    if arguments.criterion == "cv" and arguments.folds is None:
        raise ArgumentError("--criterion cv needs --folds, such as --folds 5")
    formulas = [safe_formula(text).text for text in arguments.formula]
    options = {**model_options(arguments), "folds": arguments.folds, "n_jobs": arguments.n_jobs}
    specs = [family_of(parse_formula(text), {"hidden": arguments.hidden}).spec for text in arguments.formula]
    # A comma in an option that may be listed separates candidates; in others it is part of the value.
    texts = {name: options[name] for spec in specs for name in spec.listed if isinstance(options.get(name), str)}
    options |= {name: [read_value(part) for part in text.split(",")] for name, text in texts.items()}
    data = source(arguments)
    if arguments.cluster is not None:
        options["cluster"] = _known_column(data, arguments.cluster, "--cluster")
    if arguments.hidden is not None:
        options["hidden"] = arguments.hidden
    mixtures = any(spec.has_experts for spec in specs)
    experts = [1, 2, 3, 4] if arguments.experts is None and mixtures else arguments.experts
    found = select(formulas, data, experts, checkpoint=arguments.checkpoint, **options)
    _write_texts(found.summary(), arguments)
    if arguments.out is not None:
        frame = found.to_frame()
        lists = [name for name in ("shares", "flags") if name in frame]
        joined = {name: [" ".join(map(str, values)) for values in frame[name]] for name in lists}
        write_frame(frame.assign(**joined), arguments.out)
    if arguments.plot is not None:
        save_figure(found.plot, arguments.plot)
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


def run_predict(arguments: argparse.Namespace) -> int:
    """Predict from a saved fit; the exit code."""
    several = is_partitioned_source(arguments.data)
    if not several:
        check_writable(arguments.out, "--out", OUT_ENDINGS)
    name = arguments.fit_data
    several_fitted = name is not None and is_partitioned_source(name)
    fitted: Any = None if name is None else scan(name) if several_fitted else read_data(name)
    results = load(arguments.fit, fitted)
    options = {name: getattr(arguments, name) for name in ("kind", "interval", "scale", "alpha")}
    if arguments.history is not None:
        options["history"] = read_data(arguments.history, sep=arguments.sep, decimal=arguments.decimal)
    options["extrapolate"] = arguments.extrapolate or None
    given = {name: value for name, value in options.items() if value is not None}
    if several:
        return _predict_partitions(results, _accepted(results, given), arguments)
    new = source(arguments)
    predicted = results.predict(new, **_accepted(results, given))
    kept = [new[_known_column(new, name, "--keep")] for name in arguments.keep.split(",") if name]
    group = results.model.design.names.group
    if group in new.columns and group not in [values.name for values in kept]:
        kept.insert(0, new[group])
    write_frame(pd.concat([*kept, predicted], axis=1), arguments.out)
    return OK


def _predict_partitions(results: Results, options: dict[str, Any], arguments: argparse.Namespace) -> int:
    """Predict rows of several files into a folder; the exit code."""
    if not isinstance(results, OfPartitions):
        raise ArgumentError(
            f"{arguments.data!r} names several files, for fits of such files; {arguments.fit!r} holds one of a table"
        )
    if arguments.out == STREAM or arguments.keep:
        raise ArgumentError(
            "predictions of several files go into a folder, with the column of the subjects; give --out FOLDER and no "
            "--keep"
        )
    predicted = results.predict(scan(arguments.data), **options)
    if isinstance(predicted, Predictions):
        predicted.to_parquet(arguments.out)
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


def _known_column(data: pd.DataFrame | Scan, name: str, option: str) -> str:
    """The name, if it is that of a column; a DesignError that lists the columns if not."""
    if name not in data.columns:
        raise DesignError(f"{option}: the data have no column {name!r}; they have {', '.join(map(str, data.columns))}")
    return name


def _accepted(results: Results, options: dict[str, Any]) -> dict[str, Any]:
    """The options, if this family's `predict` has them."""
    known = inspect.signature(results.predict).parameters
    family = results.model.spec.name
    for name in options:
        if name not in known:
            raise ArgumentError(f"--{name}: predict of {family} has no such option; it has {', '.join(known)}")
    return options


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


_COMMANDS: Mapping[str, Callable[[Any], int]] = MappingProxyType(
    {"fit": run_fit, "select": run_select, "predict": run_predict, "describe": run_describe, "data": run_data}
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the program.

    Returns
    -------
    int
        Exit code: 0 done; 1 failed; 2 wrong use; 3 fitted, but not converged; 130 interrupted.
    """
    given = parsed(arguments)
    try:
        with _warnings_on_stderr():
            code = _COMMANDS[given.command](given)
            sys.stdout.flush()
        return code
    except (ArgumentError, FormulaError) as error:
        return _complain(error, USAGE)
    except MixmoeError as error:
        return _complain(error, FAILED)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        return _complain(f"{error.strerror or error}: {error.filename}" if error.filename else error, FAILED)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)


def _complain(error: object, code: int) -> int:
    print(f"mixmoe: error: {error}", file=sys.stderr)
    return code


@contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """Warnings as single lines, without the place in the code, which means nothing in a shell."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"mixmoe: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", MixmoeWarning)
        warnings.showwarning = show
        yield
