"""What every fitted model offers, of whatever family: estimates, tests, tables, figures, files."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, TypeVar

import numpy as np
import pandas as pd

from mixmoe.arguments import checked_choice, checked_count, checked_rng
from mixmoe.atomic import PathLike, written
from mixmoe.check.diagnosis import PANELS, Diagnosis
from mixmoe.check.term_tests import TermTests, term_tests
from mixmoe.design.design import Design
from mixmoe.errors import ArgumentError
from mixmoe.families import DrawsResponses, HasTerms, Model, lacking, require
from mixmoe.inference.labelled import LabelledResults
from mixmoe.inference.likelihood_ratio import FitSide, LRTest, lr_test
from mixmoe.inference.uncertainty import DESCRIPTIONS, ParamCov, checked_alpha, checked_cov_type
from mixmoe.inference.wald import InvalidTest
from mixmoe.mixture.estimate import Block, EMFit, criteria
from mixmoe.numerics.optimise import loglik_name
from mixmoe.output.names import NO_NAMES, Names, checked_terms
from mixmoe.output.plots import draw, draw_panels
from mixmoe.output.records import Cell, Curve, Marks, Observed, Table, choose
from mixmoe.output.saved import SavedFit, SavedRows, checksum, fingerprints, write
from mixmoe.output.summary import Summary, header_table, named_summary, parameter_tables, tidy
from mixmoe.report.reporting import Reporting

R = TypeVar("R", bound="Results")


class Results(Diagnosis, Reporting, LabelledResults):
    """A fitted model of any family.

    Parameters
    ----------
    model : Model
    fit : EMFit
    cov : ParamCov

    Attributes
    ----------
    em : EMFit
        Estimates, trace, starts, as the optimiser returned them.
    llf, aic, bic, sabic : float
        Log-likelihood and criteria; N of the criteria is the number of subjects, not of rows.
    nobs, n_units : int
        Rows and independent units (subjects).
    df_model, df_resid : int
        Number of parameters, and rows minus parameters.
    converged : bool
    flags : tuple of Flag
        What a reader must know about the fit.
    params, bse, tvalues, pvalues : Series
        By parameter name.
    shown_names : Names
        What tables and figures call experts and terms, as `named` and `labelled` gave it.

    Notes
    -----
    A subclass may override `tables`, `curves` and `_observed`, from which all output derives.
    """

    _ratios: tuple[Block, ...] = ("gate",)  # blocks whose coefficients are logarithms of ratios

    def __init__(self, model: Model, fit: EMFit, cov: ParamCov) -> None:
        npar = len(fit.params)
        _check_sizes(model, fit, cov)
        super().__init__(model, model.layout, fit.params, cov, df_resid=model.design.n - npar)
        values = criteria(fit.loglik, npar, fit.responsibilities)
        self.em, self.flags, self.converged = fit, (*fit.flags, *cov.flags), fit.converged
        self.llf, self.aic, self.bic, self.sabic = values.loglik, values.aic, values.bic, values.sabic
        self.nobs, self.n_units, self.df_model = model.design.n, model.design.n_units, npar
        self.shown_names = NO_NAMES

    def __repr__(self) -> str:
        subjects = "" if self.model.design.names.group is None else f"{self.n_units} subjects, "
        return (
            f"<{self._title}: {subjects}{self.nobs} rows, log-likelihood {self.llf:.3f}; summary() prints the tables>"
        )

    def _repr_html_(self) -> str:
        return self.summary().as_html()

    def tables(self, alpha: float = 0.05) -> tuple[Table, ...]:
        """The tables of the summary: header, coefficients (of a mixture one per expert), gate, random, residual.

        Parameters
        ----------
        alpha : float
            One minus the level of the limits.

        Returns
        -------
        tuple of Table
        """
        shares = self.em.responsibilities.mean(axis=0)
        scarce = any(flag.code == "few_subjects" for flag in self.cov.flags)
        parameters = parameter_tables(self.model.layout, self.to_frame(alpha), shares, checked_alpha(alpha), scarce)
        return (header_table(_facts(self)), *parameters)

    def curves(self, kind: str, **options: Any) -> tuple[Curve, ...]:
        """The curves of one kind of figure; overridden by each family.

        Raises
        ------
        ArgumentError
            If there is no such kind.
        """
        raise ArgumentError(f"kind must be one of {', '.join(map(repr, self._curve_kinds))}, got {kind!r}")

    def summary(self, alpha: float = 0.05) -> Summary:
        """Header, tables and notes; prints as text, and has as_html(), as_latex(), as_markdown(). See `tables`."""
        return named_summary(self.shown_names, self._title, self.tables(alpha), self._remarks, self._printed)

    @property
    def _notes_of_table(self) -> tuple[str, ...]:
        """What a table of several fits says below about this one: its standard errors, and each flag."""
        about = (f"Standard errors: {self.cov.note}.",) if self.cov.note else ()
        return (*about, *(flag.note for flag in self.flags))

    @property
    def _title(self) -> str:
        """Heading of the summary."""
        return self.model.spec.name

    @property
    def _remarks(self) -> tuple[str, ...]:
        """What a reader must know: the covariance, and each flag of the fit with what to do about it."""
        return (*self._about_errors, *(flag.message for flag in self.flags))

    @property
    def _printed(self) -> tuple[str, ...]:
        """The same as a paper has it, without what to do."""
        return (*self._about_errors, *(flag.note for flag in self.flags))

    @property
    def _about_errors(self) -> tuple[str, ...]:
        """What a reader must know beside the flags: the covariance, and what the family adds."""
        how = DESCRIPTIONS[self.cov.kind].replace("independent units", self._unit_word)
        return (f"Standard errors: {how}{'; ' + self.cov.note if self.cov.note else ''}.", *self._more_notes)

    def to_latex(
        self,
        path: PathLike | None = None,
        tables: Sequence[str] | str | None = None,
        caption: str | None = None,
        label: str | None = None,
        standalone: bool = False,
        **options: Any,
    ) -> str:
        """Tables as LaTeX that needs only the package booktabs.

        Parameters
        ----------
        path : path-like, optional
            File to write.
        tables : sequence of str, optional
            Keys: ``"header"``, ``"expert1"``, ``"gate"``, ``"random"`` ...; by default all but the header.
        caption, label : str, optional
            Every text is escaped, so that a caption holds no commands or mathematics of LaTeX.
        standalone : bool
            A whole document instead of a fragment.
        **options
            Of `tables`: ``alpha=`` ...

        Returns
        -------
        str
        """
        return written(_chosen(self, tables, options).as_latex(caption, label, standalone), path)

    def to_markdown(
        self, path: PathLike | None = None, tables: Sequence[str] | str | None = None, **options: Any
    ) -> str:
        """Tables as Markdown; see `to_latex`."""
        return written(_chosen(self, tables, options).as_markdown(title=False), path)

    def to_frame(self, alpha: float = 0.05, exponentiate: bool = False) -> pd.DataFrame:
        """One row per parameter; with `exponentiate` coefficients as odds, rate or mean ratios.

        Parameters
        ----------
        alpha : float
            One minus the level of the limits.
        exponentiate : bool
            Whether estimates and limits of coefficients are exponentiated and their standard errors multiplied by the
            ratio (delta method); tests stay those of the coefficients. Those of the gate are odds ratios of an expert
            against expert 1, those of the experts are ratios of odds (of a success, or of a higher level), rates or
            means where the family has a log or logit link, else they stay differences.

        Returns
        -------
        DataFrame
            Index: parameter names. Columns: term, block, expert, estimate, std_error, statistic, p_value, conf_low,
            conf_high, df (of t statistics; infinite for normal ones). Its ``attrs["notes"]`` are the notes of the
            summary, which also say why a standard error is missing.

        Raises
        ------
        ArgumentError
            If no coefficient of the fit is the logarithm of a ratio.
        """
        frame = tidy(self.model.layout, self._estimate, self._errors, alpha, self._df)
        frame.attrs["notes"] = self._remarks
        return _as_ratios(frame, self._ratios) if exponentiate else frame

    def wald_test_terms(self) -> TermTests:
        """Joint Wald tests of every term: is it zero (in all experts), are the experts equal in it.

        Returns
        -------
        TermTests
            Prints as tables; ``to_frame()`` has one row per term of the experts and of the gate. All columns of a
            category are tested together, over all experts, or over all log odds of the gate.

        Raises
        ------
        ArgumentError
            If the family has no coefficients of terms.
        """
        family = require(self, HasTerms, "wald_test_terms", self.model.spec)
        tests = term_tests(family._term_owners(), self._layout, self._estimate, self.cov)
        return replace(tests, shown_names=self.shown_names)

    def loglik_of(self, data: Any) -> float:
        """Log-likelihood of other data under the estimates; for families that have one."""
        raise lacking(self.model.spec, "HasNewLikelihood", "loglik_of")

    def lr_test(self, other: "Results") -> LRTest | InvalidTest:
        """Likelihood-ratio test against a fit of a smaller or larger model on the same data.

        Parameters
        ----------
        other : Results

        Returns
        -------
        LRTest or InvalidTest
            With the chi-bar-squared null distribution if a variance is zero in the smaller model. An `InvalidTest`
            with its reason if the models are not nested, have different numbers of experts, or use different data.
        """
        if not isinstance(other, Results):
            raise ArgumentError(f"lr_test compares with the results of another fit, got {type(other).__name__}")
        return lr_test(self._side(), other._side())

    def _side(self) -> FitSide:
        """What a likelihood-ratio test needs of this fit."""
        return _side(self)

    def with_cov(self, kind: str, **options: Any) -> Self:
        """The same fit with another covariance of the estimates.

        Parameters
        ----------
        kind : {"nonrobust", "robust", "cluster", "bootstrap"}
        **options
            Of the covariance, e.g. ``cluster=`` or ``n_boot=``.

        Returns
        -------
        Results
        """
        cov = self.model.covariance(self.em, self._checked_cov(kind), **options)
        return called(type(self)(self.model, self.em, cov), self.shown_names)

    def labelled(self, labels: Mapping[str, str]) -> Self:
        """The same fit with labels in the place of columns and terms, for readers who do not know the data.

        Parameters
        ----------
        labels : mapping of str to str
            From columns (``"height"``) or terms (``"smoking[T.ex]"``), as tables show them, to what is to be shown
            instead: ``{"height": "Height (10 cm)"}``. Those that are not named stay as they are.

        Returns
        -------
        Results
            Of the same class. Tables (summary, LaTeX, Markdown, `mixmoe.table`, the report) and the axes of figures
            show the labels; names of parameters, columns of data frames and notes stay as they are. The labels are kept
            by `with_cov`, `relabel` and `save`.

        Raises
        ------
        ArgumentError
            If a key is no column or term of the fit, or a label no text.
        """
        known = [*self.model.design.frame.columns, *(p.term for p in self.model.layout.parameters)]
        return called(copy.copy(self), replace(self.shown_names, terms=checked_terms(labels, map(str, known))))

    def plot(self, kind: str | None = None, ax: Any = None, **options: Any) -> Any:
        """A figure; needs matplotlib.

        Parameters
        ----------
        kind : str, optional
            One of the kinds of `curves`, by default the first of these, or of `panels`:
            ``"residuals"``, ``"qq"``, ``"fit"``, ``"random_effects"``, ``"profile"``, ``"starts"``.
        ax : matplotlib Axes, optional
            Where to draw.
        **options
            Of a kind of `curves`: named there. ``"residuals"``: ``residuals=`` (kind of residuals), ``against=``
            (``"fitted"`` or a numeric column), ``given=``, ``rng=``. ``"qq"``: ``given=``, ``alpha=``, ``rng=``.
            ``"fit"``: ``x=`` (column), ``fitted=`` (``"mean"`` or ``"subject"``), ``bins=``, ``alpha=``.
            ``"random_effects"``: ``alpha=``, ``parameters=`` (names of effects; default: all, of more than five those
            that differ most). ``"profile"``: ``parameter=`` and others of `profile`.

        Returns
        -------
        Figure, or `ax` if given
        """
        if kind is not None and kind in PANELS:
            return draw_panels(tuple(map(self.shown_names.panel, self.panels(kind, **options))), ax)
        kind = self._default_plot if kind is None else kind
        checked_choice(kind, "kind", self._plot_kinds)
        curves = tuple(map(self.shown_names.curve, self.curves(kind, **options)))
        return draw(curves, self.shown_names.observed(self._observed(kind, **options)), ax)

    _default_plot = "trajectories"
    _checked_cov = staticmethod(checked_cov_type)

    @property
    def _curve_kinds(self) -> tuple[str, ...]:
        """Kinds that `curves` has, the default first."""
        return ("trajectories", "gate")

    @property
    def _plot_kinds(self) -> tuple[str, ...]:
        """Kinds that `plot` has."""
        return (*self._curve_kinds, *PANELS)

    @property
    def _rivals(self) -> int:
        """End points among which those that reached the best are counted."""
        return self.em.starts.n_starts

    @property
    def _starts_words(self) -> str:
        """What the starts led to."""
        n, best = self.em.starts.n_starts, self.em.starts.n_replicated
        return "1 start" if n == 1 else f"{n} starts, {best} of which reached the best log-likelihood"

    @property
    def _ends_words(self) -> tuple[str, str]:
        """Title of the table of the ends of the starts, and a note on how they are the fit's log-likelihood."""
        return "Maxima that were run to convergence", ""

    @property
    def _classification_facts(self) -> tuple[tuple[str, Cell], ...]:
        """Lines of the header on how well units are told apart."""
        return ()

    @property
    def _more_facts(self) -> tuple[tuple[str, Cell], ...]:
        """Further lines of the header."""
        return ()

    @property
    def _more_notes(self) -> tuple[str, ...]:
        """Further notes below the summary."""
        return ()

    def _observed(self, kind: str, **options: Any) -> Observed | tuple[Marks, ...] | None:
        """Observed series or means to draw with the curves of one kind of figure; for families that have them."""
        return None

    def simulate(self, rng: Any = None, n: int = 1) -> pd.DataFrame:
        """Responses drawn from the fitted model at the covariates of the data, on the scale of the response.

        Parameters
        ----------
        rng : int, numpy.random.Generator or None
        n : int
            Number of draws.

        Returns
        -------
        DataFrame
            One column per draw, rows in the order of the data.
        """
        n, generator = checked_count(n, "n"), checked_rng(rng)
        family = require(self, DrawsResponses, "simulate", self.model.spec)
        draws = [family._draw(generator) for _ in range(n)]
        columns = {f"draw{i + 1}": self.model.design.in_order(draw) for i, draw in enumerate(draws)}
        return pd.DataFrame(columns, index=self._row_index)

    @property
    def _fit_options(self) -> Mapping[str, Any]:
        """What the fit was told beyond the settings of the model: the code of a report repeats it."""
        return {}

    @property
    def _saved_settings(self) -> Mapping[str, Any]:
        """What a file holds of the model beside formula and data; more in a family whose fit is more than numbers."""
        return self.model.settings

    def save(self, path: PathLike, data: bool = True) -> None:
        """Write the fit to a file that `mixmoe.load` reads; no pickle.

        Parameters
        ----------
        path : path-like
        data : bool
            Whether the used columns of the data go into the file. Without them the file holds no row of the data, only
            estimates and posterior probabilities, and `load` must be given the data.

        Raises
        ------
        ArgumentError
            If a column holds objects that are neither numbers, text nor times.
        """
        model = self.model
        saved = SavedFit(
            family=model.spec.name,
            formula=model.formula.text,
            settings=self._saved_settings,
            names=model.layout.names,
            fit=self.em,
            cov=self.cov,
            checksum=checksum(np.asarray(model.design.response)),
            data=model.design.frame if data else None,
            rows=_saved_rows(model.design) if data else None,
            columns=fingerprints(model.design.frame),
            shown=self.shown_names,
        )
        write(path, saved)


def called(results: R, names: Names) -> R:
    """Results that were just made, with the names of those they were made from."""
    results.shown_names = names
    return results


def _check_sizes(model: Model, fit: EMFit, cov: ParamCov) -> None:
    """Refuse records that do not belong together; a defect of a family, not of a user's input."""
    n_params, n_units, n_experts = len(model.layout.names), model.design.n_units, model.n_experts or 1
    if fit.params.shape != (n_params,) or cov.matrix.shape != (n_params, n_params):
        raise ArgumentError(
            f"{n_params} parameters are named, but the fit has {fit.params.shape} and the covariance {cov.matrix.shape}"
        )
    if fit.responsibilities.shape != (n_units, n_experts):
        raise ArgumentError(
            f"responsibilities must have shape {(n_units, n_experts)}, got {fit.responsibilities.shape}"
        )


def _facts(results: Results) -> tuple[tuple[str, Cell], ...]:
    """Label and value of each line of the header."""
    design, em = results.model.design, results.em
    grouped = design.names.group is not None
    counts = design.counts
    visits = f"{counts.min()} / {np.median(counts):g} / {counts.max()}"
    replicated = f"{em.starts.n_replicated} of {em.starts.n_starts} starts"
    dropped = f"{design.dropped.n_rows} ({design.dropped})" if design.dropped.n_rows else 0
    return (
        ("Formula", results.model.formula.text),
        ("Model", results.model.spec.name),
        ("Experts", results.model.n_experts),
        ("Subjects", results.n_units if grouped else None),
        ("Rows", results.nobs),
        ("Rows per subject", f"{visits} (min / median / max)" if grouped else None),
        ("Rows dropped", dropped),  # with the columns that were missing
        ("Rows of weight zero", design.n_uncounted or None),
        *results._more_facts,
        *column_facts(results.model),
        (loglik_name(results.model.settings), results.llf),
        ("Effective parameters" if em.smoothing.size else "Parameters", results.df_model),
        ("AIC", results.aic),
        ("BIC", results.bic),
        *results._classification_facts,
        ("Covariance", results.cov_type),
        ("Converged", "yes" if results.converged else "NO"),
        ("Best value reached by", replicated if em.starts.n_starts > 1 else None),
    )


def column_facts(model: Model) -> tuple[tuple[str, Cell], ...]:
    """Lines of the header for what enters the likelihood beside the formula: columns, and a penalty."""
    used = (("Trials", "trials"), ("Offset", "offset"), ("Weights", "weights"), ("Gate penalty", "gate_penalty"))
    given = ((label, model.settings.get(key)) for label, key in used)
    return tuple((label, f"{value:g}" if isinstance(value, float) else value) for label, value in given)


def _as_ratios(frame: pd.DataFrame, blocks: Sequence[Block]) -> pd.DataFrame:
    """The frame with the coefficients of some blocks as ratios."""
    rows = frame["block"].isin(blocks)
    if not rows.any():
        raise ArgumentError(
            "exponentiate=True makes ratios of coefficients on a log scale, and this fit has none: no gate, and "
            "experts on the scale of the response; leave it out"
        )
    values = ["estimate", "conf_low", "conf_high"]
    frame.loc[rows, values] = np.exp(frame.loc[rows, values])
    frame.loc[rows, "std_error"] *= frame.loc[rows, "estimate"]
    return frame


def _size_and_fit(results: Results) -> str:
    """Units, rows, log-likelihood and BIC, for tables without the header."""
    word = "clusters" if results.model.design.names.group is None else results._unit_word
    units = f"{results.n_units} {word}, " if results.n_units != results.nobs else ""
    fit = f"{loglik_name(results.model.settings).lower()} {results.llf:.3f}, BIC {results.bic:.3f}"
    return f"N = {units}{results.nobs} rows; {fit}."


def _chosen(results: Results, keys: Sequence[str] | str | None, options: Mapping[str, Any]) -> Summary:
    """What goes into a paper: the tables asked for, or all but the header, whose numbers are then in the notes."""
    known = inspect.signature(results.tables).parameters
    for name in options:
        if name not in known:
            raise ArgumentError(
                f"tables of {results.model.spec.name} have no option {name!r}; they have {', '.join(known)}"
            )
    tables = results.tables(**options)
    chosen = choose(tables, [t.key for t in tables if t.key != "header"] if keys is None else keys)
    return named_summary(results.shown_names, results._title, chosen, (_size_and_fit(results), *results._printed))


def _side(results: Results) -> FitSide:
    """What the likelihood-ratio test needs, rows in the user's order."""
    model, em = results.model, results.em
    design, formula = model.design, model.formula
    # Designs are sorted by subject, which two formulas may name differently: rows are compared as the user has them.
    order = np.argsort(design.position, kind="stable")
    unconverged = () if em.converged else ("not_converged",)
    gate = design.gate if len(design.gate) == design.n else design.gate[design.codes]
    return FitSide(
        family=model.spec.name,
        varies=formula.vary is not None or em.smoothing.size > 0,
        n_experts=em.responsibilities.shape[1],
        loglik=em.loglik + em.penalty,
        npar=len(em.params),
        flags=(*unconverged, *(flag.code for flag in em.flags)),
        response=np.asarray(design.response)[order],
        rows=design.position[order],
        units=design.codes[order],
        expert=design.expert[order][:, ~design.common],
        common=design.expert[order][:, design.common],
        gate=gate[order],
        random=design.random[order],
        random_names=design.names.random,
        correlated=formula.random is not None and formula.random.correlated,
        aux={name: values[order] for name, values in design.aux.items()},
        settings=model.settings,
        sigma=design.sigma[order][:, ~design.sigma_common],
        sigma_common=design.sigma[order][:, design.sigma_common],
    )


def _saved_rows(design: Design) -> SavedRows:
    return SavedRows(design.position, design.n_input, design.dropped.n_rows, design.dropped.by_column)
