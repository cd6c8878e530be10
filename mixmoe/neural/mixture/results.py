"""What a fitted mixture of networks offers beyond the common base."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from mixmoe._typing import Array
from mixmoe.arguments import checked_choice, checked_count, checked_rng
from mixmoe.check.diagnosis import FITTED, FittedKind
from mixmoe.check.residuals import continuous
from mixmoe.design.complete_rows import NothingLeftError
from mixmoe.design.design import Design
from mixmoe.design.frame import view
from mixmoe.errors import ArgumentError
from mixmoe.families import Distribution, Effects, FirstOrder
from mixmoe.inference.uncertainty import ParamCov, checked_alpha
from mixmoe.inference.wald import InvalidTest
from mixmoe.mixture.estimate import EMFit
from mixmoe.mixture_results import MoEResults
from mixmoe.neural.batches import warn_outside
from mixmoe.neural.blocks import one_thread
from mixmoe.neural.mixture import network_prediction as made
from mixmoe.neural.mixture.likelihood import responsibility_slopes, unit_scores
from mixmoe.neural.mixture.network_parameters import Structure, permuted
from mixmoe.output.predictions import (
    Interval,
    IntervalOf,
    Kind,
    Scale,
    Wanted,
    by_expert,
    check_baseline,
    check_own_rows,
    checked_wanted,
    in_user_order,
    known_places,
    mean_columns,
    mixture_intervals,
    random_effects_frame,
    refuse_posterior_limits,
    warn_strangers,
)
from mixmoe.output.records import Curve, Table
from mixmoe.output.summary import nothing_predicted, proportions_table
from mixmoe.results import Results

if TYPE_CHECKING:
    from mixmoe.neural.mixture.model import NMoE

SEED = 20260101  # of the critical values of bands in figures, so that they are drawn the same every time
SUBJECTS = {"experts": "expert", "probabilities": "gate"}


class NMoEResults(MoEResults):
    """A fitted mixture of networks with person effects.

    Parameters
    ----------
    model : NMoE
    fit : EMFit
    cov : ParamCov

    Notes
    -----
    `params` holds the weights of the networks, on the scale of standardised inputs and response, behind what tables
    show. Hidden units may be exchanged and change their sign, so that single weights mean nothing; functions of them,
    as `predict`, `bands` and figures have them, do.
    """

    model: "NMoE"
    _resid_kinds = ("subject", "mean", "quantile")

    def __init__(self, model: "NMoE", fit: EMFit, cov: ParamCov) -> None:
        super().__init__(model, fit, cov)
        self._default_plot = self._curve_kinds[0]

    def predict(
        self,
        new: Any = None,
        kind: Kind = "all",
        *,
        history: Any = None,
        interval: IntervalOf | None = None,
        alpha: float = 0.05,
        scale: Scale = "response",
    ) -> pd.DataFrame:
        """Expert probabilities, means of the experts, of the population and of subjects.

        Parameters
        ----------
        new : DataFrame or mapping, optional
            Rows to predict; the response is not needed and never used. By default the data of the fit.
        kind : {"all", "mean", "experts", "probabilities", "subject"}
            ``"mean"``: population mean; ``"experts"``: of each expert; ``"probabilities"``: of the experts, by the
            gate, or with `history` posterior ones; ``"subject"``: of each subject given her history; ``"all"``:
            probabilities, experts, and the subject's mean if there is a `history`, else the population's.
        history : DataFrame or mapping, optional
            Past rows, with response, of the subjects in `new`. For ``kind="subject"`` without it, subjects of the fit
            keep the data of the fit. Others are predicted from the gate alone. In a model without subjects the rows of
            `new` themselves. It plays no part in ``"mean"`` and ``"experts"``.
        interval : {None, "confidence", "prediction"}
            Limits, in columns ``_low`` and ``_high``, with standard errors in ``_se``: none, those of what is
            estimated, or of means those of a new response.
        alpha : float
            One minus the level of the limits.
        scale : {"response", "link"}
            The same for Gaussian responses.

        Returns
        -------
        DataFrame
            One row per row of `new`, in its order; NaN where a covariate is missing.

        Raises
        ------
        ArgumentError, DesignError

        Warns
        -----
        MixmoeWarning
            If no subject of `history` is in `new`, or, for ``kind="subject"`` without one, if some are not in the fit.

        Notes
        -----
        Confidence limits of probabilities, experts and population mean are by the delta method, those of subjects, and
        limits of responses, carry membership, random effects and (of responses) residual error, with the estimates
        taken as given. Posterior probabilities have none.
        """
        wanted = checked_wanted(kind, interval, alpha, scale)
        if scale == "categories":
            raise ArgumentError("scale='categories' is for categories, and responses are numbers; use 'response'")
        known = self._history(history, kind == "subject")
        if history is not None:
            refuse_posterior_limits(wanted)
        known = None if kind in ("experts", "mean") else known
        try:
            design = self.model.design if new is None else self.model.design.for_new(new)
        except NothingLeftError as error:
            first = self.model.design.for_new(self.model.design.frame.iloc[:1])
            return nothing_predicted(new, list(self._columns(first, None, wanted)), error)
        warn_outside(self.model.design, design, self.model.columns)
        if history is not None and self.model.design.names.group is None:
            check_own_rows(history, design, new)
        past = None if known is None else self._past(known, design, history is not None)
        return in_user_order(self._columns(design, past, wanted), design, new)

    def _history(self, history: Any, use_fit: bool) -> Design | None:
        """The rows from which subjects are known; None where there are none."""
        if history is None:
            return self.model.design if use_fit else None
        if not view(history).n_rows:
            raise ArgumentError("history has no rows; leave it out to predict new subjects by the gate")
        known = self.model.design.for_new(history, response=True)
        group = self.model.design.names.group
        if group is not None and known.names.group is None:
            raise ArgumentError(
                f"history needs the column {group!r} that names the subjects; without it its rows cannot be assigned"
            )
        return known

    def _past(self, known: Design, design: Design, given: bool) -> made.Past:
        """What is known of the subjects of a design."""
        e = self._known()
        past = made.unknown(e, e.rows_of(design))
        grouped = self.model.design.names.group
        if known is design:
            where = np.arange(design.n_units)
        elif grouped is None:
            places = {place: i for i, place in enumerate(known.position.tolist())}
            where = np.array([places.get(p, -1) if given else -1 for p in design.position.tolist()])
        elif design.names.group is None:
            where = np.full(design.n_units, -1)
        else:
            where = known_places(design.labels, known.labels, grouped)
        check_baseline(known, design, where)
        found = where >= 0
        if grouped is not None:
            warn_strangers("the gate", found, given)
        seen = made.posterior(e, known)
        for name in ("probabilities", "means", "covariances"):
            getattr(past, name)[found] = getattr(seen, name)[where[found]]
        return past

    def _columns(self, design: Design, past: made.Past | None, wanted: Wanted) -> dict[str, Array]:
        e, kind, columns = self._known(), wanted.kind, dict[str, Array]()
        rows = e.rows_of(design)
        single = made.by_row(rows)
        if kind in ("all", "probabilities"):
            pi: Interval | Array = (
                past.probabilities[design.codes] if past else made.values_of(e, made.probabilities_at, single)
            )
            if wanted.confidence and past is None:
                pi = made.bounded(np.asarray(pi), made.errors_of(e, made.probabilities_at, single), wanted.alpha)
            columns |= by_expert("probability", pi)
        if kind in ("all", "experts"):
            means: Interval | Array = made.values_of(e, made.means_at, rows)
            if wanted.confidence:
                means = made.wald(np.asarray(means), made.errors_of(e, made.means_at, single), wanted.alpha)
            columns |= by_expert("expert", means)
        if kind in ("experts", "probabilities"):
            return columns
        if past is not None or wanted.noise:
            law = made.subject_law(e, design, past or made.unknown(e, rows), wanted.noise)
            return columns | mean_columns(mixture_intervals(law, wanted.alpha) if wanted.limits else law.mean)
        mean = made.values_of(e, made.population_at, single)[:, 0]
        if not wanted.confidence:
            return columns | mean_columns(mean)
        error = made.errors_of(e, made.population_at, single)[:, 0]
        return columns | mean_columns(made.wald(mean, error, wanted.alpha))

    def fitted(self, kind: FittedKind = "mean") -> pd.Series:
        """Fitted values, one per row used, in the order of the data.

        Parameters
        ----------
        kind : {"mean", "subject"}
            Population mean, or mean of the subject given all her responses.

        Returns
        -------
        Series
        """
        checked_choice(kind, "kind", FITTED)
        return self.predict(kind=kind)["mean"].rename("fitted")

    @property
    def random_effects(self) -> pd.DataFrame:
        """Random effects mixed over experts and given each expert, with standard errors, one row per subject."""
        past, names = made.posterior(self._known(), self.model.design), self.model.design.names.random
        return random_effects_frame(past.probabilities, past.means, past.covariances, names, self._unit_index)

    def proportions(self, alpha: float = 0.05) -> pd.DataFrame:
        """Mean probability of each expert over the subjects; see `MoEResults.proportions`."""
        e = self._known()
        rows = e.rows_of(self.model.design)
        share = made.values_of(e, made.probabilities_at, rows).mean(axis=0)
        J = made.jacobian(e, lambda theta: made.probabilities_at(e, rows, theta).mean(0))
        found = made.bounded(share, np.sqrt(np.einsum("kp,pr,kr->k", J, e.cov, J)), checked_alpha(alpha))
        index = [f"expert{k + 1}" for k in range(self.model.n_experts)]
        columns = {"estimate": found.estimate, "std_error": found.std_error}
        return pd.DataFrame({**columns, "conf_low": found.lower, "conf_high": found.upper}, index=index)

    def bands(
        self, of: str = "experts", alpha: float = 0.05, *, x: str | None = None, draws: int = 4000, rng: Any = None
    ) -> pd.DataFrame:
        """Partial dependence of experts or gate on their inputs, with pointwise limits and simultaneous bands.

        Parameters
        ----------
        of : {"experts", "probabilities"}
            Means of the experts, averaged over the rows of the data (2,000 spread over them, if there are more), or
            probabilities by the gate, averaged over the subjects, with one column set to each value of a grid.
        alpha : float
            One minus the level of the limits.
        x : str, optional
            The column; by default all columns of numbers that the section uses, one after the other.
        draws : int
            Draws of the process behind the critical value of a band.
        rng : int, numpy.random.Generator or None

        Returns
        -------
        DataFrame
            One row per column, expert and grid point: column, expert, x, estimate, std_error, conf_low, conf_high,
            band_low, band_high.

        Raises
        ------
        ArgumentError
            If the section has no such column.

        References
        ----------
        Friedman (2001), Annals of Statistics 29, 1189-1232, section 8.2.
        """
        checked_choice(of, "of", tuple(SUBJECTS))
        checked_count(draws, "draws", least=100)
        generator = checked_rng(rng)
        known = made.inputs_along(self.model.design, SUBJECTS[of])
        if not known or (of == "probabilities" and self.model.n_experts == 1):
            raise ArgumentError(f"of={of!r} has no column of numbers to go along; look at predict()")
        if x is not None:
            checked_choice(x, "x", known)
        parts = []
        for column in known if x is None else [x]:
            d = made.dependence(
                self._known(), self.model.design, column, SUBJECTS[of], checked_alpha(alpha), draws, generator
            )
            names = ("estimate", "std_error", "conf_low", "conf_high", "band_low", "band_high")
            values = (d.values, d.errors, d.low, d.high, d.band_low, d.band_high)
            for k in range(self.model.n_experts):
                each = {name: value[:, k] for name, value in zip(names, values, strict=True)}
                parts.append(pd.DataFrame({"column": column, "expert": k + 1, "x": d.x, **each}))
        return pd.concat(parts, ignore_index=True)

    def curves(self, kind: str | None = None, **options: Any) -> tuple[Curve, ...]:
        """Curves of a figure.

        Parameters
        ----------
        kind : {"effects", "gate"}
            Partial dependence of the experts on each of their inputs, a panel for each, or of the probabilities of the
            gate; with pointwise limits and simultaneous bands, see `bands`.
        **options
            ``x=``, ``alpha=``, ``draws=``, ``rng=`` of `bands`.

        Returns
        -------
        tuple of Curve
        """
        kind = self._default_plot if kind is None else kind
        checked_choice(kind, "kind", self._curve_kinds)
        for name in options:
            if name not in ("x", "alpha", "draws", "rng"):
                raise ArgumentError(f"curves({kind!r}) has no option {name!r}; it has x, alpha, draws, rng")
        of = "experts" if kind == "effects" else "probabilities"
        frame = self.bands(of, **{"rng": SEED, **options})
        response, level = self.model.design.names.response, 100 * (1.0 - options.get("alpha", 0.05))
        return tuple(
            Curve(
                panel=str(column),
                label=f"expert {k}",
                x=part["x"].to_numpy(),
                y=part["estimate"].to_numpy(),
                lower=part["conf_low"].to_numpy(),
                upper=part["conf_high"].to_numpy(),
                band_lower=part["band_low"].to_numpy(),
                band_upper=part["band_high"].to_numpy(),
                expert=int(str(k)),
                xlabel=str(column),
                ylabel=f"{response}, averaged" if kind == "effects" else "probability of the expert",
                limits=f"{level:g} % pointwise",
                bands=f"{level:g} % simultaneous",
                compared=True,
            )
            for (column, k), part in frame.groupby(["column", "expert"], sort=False)
        )

    def tables(self, alpha: float = 0.05) -> tuple[Table, ...]:
        """Header, networks, what experts have beside them, proportions, gate, random effects, residuals."""
        header, *tables = super().tables(alpha)
        if self.model.n_experts > 1:
            later = ("gate", "random", "residual")
            at = next(i for i, table in enumerate(tables) if table.key in later)
            tables.insert(at, proportions_table(self.proportions(alpha), alpha))
        settings, n = self.model.settings, len(self.model.layout.where("smooth"))
        return (header, networks_table(self.model.structure, settings["activation"], n), *tables)

    @property
    def _notes_of_table(self) -> tuple[str, ...]:
        """What a table of several fits says below about this one: what its networks leave blank, and the rest."""
        body, gate = self.model.structure.body, self.model.structure.gate_body
        blank = [f"{', '.join(one.inputs)} of the {part}" for one, part in ((body, "experts"), (gate, "gate")) if one]
        about = f"blank cells of {' and of '.join(blank)} are a network, plot() shows it" if blank else ""
        intercepts = "its intercepts are those at features of zero, not at inputs of zero; " if body else ""
        return (*([f"{intercepts}{about}."] if about else []), *super()._notes_of_table)

    def lr_test(self, other: Results) -> InvalidTest:
        """Refused: likelihood-ratio tests need regular parameters, which those of a network are not.

        Parameters
        ----------
        other : Results

        Returns
        -------
        InvalidTest
        """
        return InvalidTest(
            "the weights of networks are not regular and are estimated with a prior, so that twice the difference of "
            "log-likelihoods has no chi-squared distribution; compare bic, and linear models by mm.fit without nn(...)"
        )

    def loglik_of(self, data: Any) -> float:
        """Log-likelihood of other data, with their response, under the estimates."""
        return self.model.loglik_of(self.em.params, self.model.design.for_new(data, response=True))

    def _known(self) -> made.Estimate:
        """The estimate with its covariance in the coordinates of the network."""
        theta = self.model.free(self.em.params)
        return made.estimate_of(
            self.model.problem, self.model.rows_of, self.em.params, theta, self.model.slopes(theta), self.cov.matrix
        )

    def _in_order(self, places: Sequence[int]) -> Self:
        s, order = self.model.structure, list(places)
        fit = replace(
            self.em,
            params=permuted(s, self.em.params, order),
            responsibilities=self.em.responsibilities[:, order],
        )
        return type(self)(self.model, fit, self.cov.turned(permuted(s, np.eye(s.size), order)))

    def _first_order(self) -> FirstOrder:
        theta = self.model.free(self.em.params)
        with one_thread():
            scores, slopes = unit_scores(self.model.problem, theta), responsibility_slopes(self.model.problem, theta)
            return FirstOrder(scores, self.model.inverse(theta), self.model.slopes(theta), slopes)

    def _effects(self) -> Effects | None:
        names = self.model.design.names.random
        if not names:
            return None
        e = self._known()
        past = made.posterior(e, self.model.design)
        share = past.probabilities / past.probabilities.sum(axis=0)
        doubt = np.einsum("nk,nkqr->kqr", share, past.covariances)
        implied = e.roots @ np.swapaxes(e.roots, 1, 2) - doubt
        return Effects(names, past.means, implied, past.probabilities.argmax(axis=1) + 1)

    def _distribution(self, given: str) -> Distribution:
        e, design = self._known(), self.model.design
        if given == "history":
            law = made.one_step_ahead(e, design)
        else:
            law = made.subject_law(e, design, made.unknown(e, e.rows_of(design)), noise=True)
        y = np.asarray(design.response, dtype=float)
        return continuous(law.below(y), law.beyond(y))

    def _draw(self, rng: np.random.Generator) -> Array:
        return made.drawn(self._known(), self.model.design, rng)

    def _axis(self) -> str | None:
        return next(iter(made.inputs_along(self.model.design, "expert")), None)

    @property
    def _report_plots(self) -> tuple[str, ...]:  # type: ignore[override]
        return self._curve_kinds

    @property
    def _curve_kinds(self) -> tuple[str, ...]:
        design = self.model.design
        gate = self.model.n_experts > 1 and made.inputs_along(design, "gate")
        return (
            *(("effects",) if made.inputs_along(design, "expert") or not gate else ()),
            *(("gate",) if gate else ()),
        )


def networks_table(structure: Structure, activation: str, n_weights: int) -> Table:
    """What the networks of experts and gate are: inputs, widths, whose they are, how many weights."""
    rows = []
    for name, body in (("Experts", structure.body), ("Gate", structure.gate_body)):
        if body is not None:
            widths = " - ".join(map(str, (len(body.inputs), *body.widths, 1)))
            rows.append((name, f"{', '.join(body.inputs)}: {widths} ({activation})"))
    whose = "one set for all experts" if structure.bodies == "common" else "own ones of each expert"
    rows.append(("Hidden layers", whose if structure.body is not None else "none in the experts"))
    rows.append(("Weights", str(n_weights)))
    note = "Intercepts are those at features of zero; plot('effects') shows the functions."
    return Table(
        "architecture",
        "Networks",
        ("value",),
        tuple(name for name, _ in rows),
        tuple((value,) for _, value in rows),
        ("text",),
        (note,) * (structure.body is not None),
    )
