"""Residuals, profiles, influence of single units and diagnostic figures of every fitted model."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from mixmoe._typing import Array
from mixmoe.arguments import checked_choice, checked_count, checked_rng
from mixmoe.check.influence import Influence, influence
from mixmoe.check.profile import SPACES, Profile, profile_around, profile_at
from mixmoe.check.residuals import (
    binned_means,
    effects_panels,
    fit_panel,
    ordered_residuals,
    profile_panel,
    qq_panel,
    quantile_residuals,
    residual_panel,
    starts_panels,
)
from mixmoe.design.design import Axis, axis_of, continuous_columns
from mixmoe.errors import ArgumentError
from mixmoe.families import (
    Distribution,
    Effects,
    HasDistribution,
    HasErrorCovariance,
    HasLikelihood,
    HasRandomEffects,
    HasScores,
    Model,
    require,
)
from mixmoe.inference.uncertainty import checked_alpha
from mixmoe.mixture.estimate import EMFit, ParamLayout
from mixmoe.output.names import Names
from mixmoe.output.plots import draw_panels
from mixmoe.output.records import Panel

GIVEN = ("history", "covariates")
FittedKind = Literal["subject", "mean"]
FITTED = get_args(FittedKind)
_ENVELOPE_SEED = 20260101  # of the level of the envelope, so that a figure is the same every time


class Diagnosis:
    """Residuals, profiles of the log-likelihood, influence of single units, diagnostic figures.

    Notes
    -----
    A family names its kinds of residuals in `_resid_kinds` and has `fitted(kind)` for all but ``"quantile"``, which
    needs the capability `HasDistribution`. `_axis`, `_expert_means` and `_mean_errors` supply the figure of means;
    profiles need `HasLikelihood`, influence `HasScores`, the figure of random effects `HasRandomEffects`.
    """

    model: Model
    em: EMFit
    bse: pd.Series
    shown_names: Names
    cov_params: Callable[[], pd.DataFrame]
    fitted: Callable[..., pd.Series]
    predict: Callable[..., pd.DataFrame]
    _layout: ParamLayout
    _resid_kinds: tuple[str, ...] = ()

    def resid(self, kind: str | None = None, *, given: str = "history", rng: Any = None) -> pd.Series:
        """Residuals, one per row used, in the order of the data.

        Parameters
        ----------
        kind : str, optional
            ``"subject"`` or ``"mean"``: response minus `fitted` of that kind;
            ``"quantile"``: place of the response in its fitted distribution, as a standard normal value;
            ``"normalized"`` (MEMoE): residuals of the subject over the standard deviation of the errors, free of their
            serial correlation. By default the first of these that the family has.
        given : {"history", "covariates"}
            For ``"quantile"``: the distribution given the earlier rows of the same unit (by ``time=`` where the model
            has it, else in the order of the data), so that residuals are independent under the model; or given the
            covariates alone, the mixture of the population, so that those of a unit are correlated. The same where each
            row is a unit.
        rng : int, numpy.random.Generator or None
            For quantile residuals of discrete responses, which are randomised.

        Returns
        -------
        Series

        References
        ----------
        Dunn & Smyth (1996), Journal of Computational and Graphical Statistics 5, 236-244.
        """
        if not self._resid_kinds:
            raise ArgumentError(f"{self.model.spec.name} has no resid() for this response; compare predict() with it")
        kind = self._resid_kinds[0] if kind is None else kind
        checked_choice(kind, "kind", self._resid_kinds)
        checked_choice(given, "given", GIVEN)
        design, index = self.model.design, self._row_index
        if kind == "quantile":
            values = design.in_order(quantile_residuals(self._places(given), checked_rng(rng)))
        elif kind == "normalized":
            family = require(self, HasErrorCovariance, "resid('normalized')", self.model.spec)
            values = design.in_order(family._normalized())
        else:
            values = design.in_order(np.asarray(design.response)) - self.fitted(kind).to_numpy()
        return pd.Series(values, index=index, name="resid")

    @property
    def _row_index(self) -> pd.Index:
        """Labels of the rows used, in the order of the data."""
        design = self.model.design
        return design.rows[np.argsort(design.position, kind="stable")]

    def _places(self, given: str) -> Distribution:
        """Where each response lies in its fitted distribution, rows in the order of the design."""
        return require(self, HasDistribution, "resid('quantile')", self.model.spec)._distribution(given)

    def profile(self, parameter: str, *, values: Any = None, points: int = 21, alpha: float = 0.05) -> Profile:
        """Log-likelihood with one parameter held, maximised over the rest.

        Parameters
        ----------
        parameter : str
            Name, as in `params`.
        values : array-like, optional
            Where to hold it; by default about `points` values from the estimate outwards until the log-likelihood has
            fallen beyond the limits, or to the end of the space.
        points : int
        alpha : float
            One minus the level of the likelihood-ratio limits.

        Returns
        -------
        Profile
            Prints as a table; ``to_frame()`` has one row per value; `lower` and `upper` are the limits, of a standard
            deviation zero where the likelihood there is within them.

        Raises
        ------
        ArgumentError
            If there is no such parameter, it lies on its boundary, or the family has no likelihood to profile.
        """
        likelihood = require(self, HasLikelihood, "profile", self.model.spec)._likelihood()
        names = list(self._layout.names)
        checked_choice(parameter, "parameter", names)
        i = names.index(parameter)
        error = float(self.bse.iloc[i])
        if np.isnan(error):
            raise ArgumentError(f"{parameter} lies on its boundary, where its profile is no parabola; use lr_test")
        level = checked_alpha(alpha)
        if values is not None:
            return profile_at(likelihood, i, parameter, np.unique(np.asarray(values, dtype=float)), error, level)
        space = SPACES[self._layout.parameters[i].scale]
        return profile_around(likelihood, i, parameter, space, error, checked_count(points, "points", 3), level)

    def influence(self) -> Influence:
        """What would happen to the estimates without each unit, to first order.

        Returns
        -------
        Influence
            ``to_frame()`` has one row per unit: a distance like Cook's, then the change of every parameter.

        Raises
        ------
        ArgumentError
            If the family has no score per unit.
        """
        found = require(self, HasScores, "influence", self.model.spec)._first_order()
        cov = self.cov_params().to_numpy()
        return influence(found, self._unit_index, self.model.layout, self.bse.to_numpy(), cov)

    def panels(self, kind: str, **options: Any) -> tuple[Panel, ...]:
        """What a diagnostic figure shows, as records; ``plot(kind, **options)`` draws it.

        Parameters
        ----------
        kind : {"residuals", "qq", "fit", "random_effects", "profile", "starts"}
        **options
            ``"residuals"``: ``residuals=`` (kind of residuals), ``against=`` (``"fitted"`` or a numeric column),
            ``given=``, ``rng=``. ``"qq"``: ``given=``, ``alpha=``, ``rng=``. ``"fit"``: ``x=`` (column),
            ``fitted=`` (``"mean"`` or ``"subject"``), ``bins=``, ``alpha=``. ``"random_effects"``: ``alpha=``,
            ``parameters=`` (names of effects; default: all, of more than five those that differ most).
            ``"profile"``: those of `profile`.

        Returns
        -------
        tuple of Panel
        """
        checked_choice(kind, "kind", tuple(PANELS))
        if not self._resid_kinds and kind not in ("starts", "random_effects"):
            raise ArgumentError(
                f"{self.model.spec.name} has no figure {kind!r} for this response; compare predict() with it"
            )
        made = getattr(self, PANELS[kind])
        allowed = list(inspect.signature(made).parameters)
        for name in options:
            if name not in allowed:
                raise ArgumentError(f"plot({kind!r}) has no option {name!r}; it has {', '.join(allowed) or 'none'}")
        if kind == "profile" and "parameter" not in options:
            raise ArgumentError(f"plot('profile') needs parameter=, e.g. parameter={self._layout.names[0]!r}")
        found: tuple[Panel, ...] = made(**options)
        return found

    def diagnose(self, ax: Any = None) -> Any:
        """One figure to judge the fit by: residuals, their QQ plot, random effects, observed against predicted means.

        Parameters
        ----------
        ax : sequence of matplotlib Axes, optional
            Where to draw, as many as there are panels (three without random effects).

        Returns
        -------
        Figure, or `ax` if given

        Notes
        -----
        Residuals are quantile residuals given the history of the unit, independent and standard normal if the model
        is true; the QQ envelope is simultaneous. Observed means are weighted by responsibilities. Of more than two
        random effects the first two are shown; ``plot("random_effects")`` has all pairs.
        """
        effects = () if self._predicted_effects() is None else self.panels("random_effects")
        if len(effects) > 1:
            effects = (replace(effects[0], note="all pairs: plot('random_effects')"),)
        made = [*self.panels("residuals"), *self.panels("qq"), *effects, *self.panels("fit")]
        return draw_panels(tuple(map(self.shown_names.panel, made)), ax, columns=2 if len(made) == 4 else len(made))

    @property
    def _unit_index(self) -> pd.Index:
        """Labels of the independent units."""
        design = self.model.design
        return pd.Index(design.labels, name=design.names.group)

    @property
    def _unit_word(self) -> str:
        """What the independent units are."""
        return "rows" if self.model.design.names.group is None else "subjects"

    def _residual_panels(
        self, residuals: str = "quantile", against: str = "fitted", given: str = "history", rng: Any = None
    ) -> tuple[Panel, ...]:
        design = self.model.design
        values = self._in_design(self.resid(residuals, given=given, rng=rng).to_numpy())
        if against == "fitted":
            kind = "mean" if residuals in ("mean", "quantile") else "subject"
            x, xlabel = self._in_design(self.fitted(kind).to_numpy()), f"fitted value ({kind})"
        else:
            x, xlabel = self._numeric(against, "against"), against
        ylabel = f"quantile residual (given {given})" if residuals == "quantile" else f"{residuals} residual"
        modal = self.em.responsibilities.argmax(axis=1)[design.codes] + 1
        return (residual_panel(x, values, modal, xlabel, ylabel),)

    def _qq_panels(self, given: str = "history", alpha: float = 0.05, rng: Any = None) -> tuple[Panel, ...]:
        design, residuals = self.model.design, self.resid("quantile", given=given, rng=rng).to_numpy()
        found = ordered_residuals(residuals, checked_alpha(alpha), np.random.default_rng(_ENVELOPE_SEED))
        return (qq_panel(found, independent=given == "history" or design.n == design.n_units),)

    def _fit_panels(
        self, x: str | None = None, fitted: str = "mean", bins: int = 8, alpha: float = 0.05
    ) -> tuple[Panel, ...]:
        design = self.model.design
        checked_choice(fitted, "fitted", FITTED)
        bins = checked_count(bins, "bins", 2)
        name = self._axis() if x is None else x
        known = [column for column in design.frame if column != design.names.group]
        if name is not None and name not in known:
            raise ArgumentError(f"x must be a column of the model, one of {known}, got {name!r}")
        along = axis_of(design, name) if name else Axis(self._in_design(self.fitted("mean").to_numpy()), ())
        y, tau = np.asarray(design.response, dtype=float), self.em.responsibilities[design.codes]
        predicted, bins = self._expert_means(fitted), max(bins, len(along.categories))
        means = binned_means(along.values, y, tau, predicted, design.codes, bins)
        errors = self._mean_errors(means.weights) if fitted == "mean" else None
        xlabel, ylabel = name or "fitted value", design.names.response
        return (fit_panel(means, errors, checked_alpha(alpha), xlabel, ylabel, along.categories),)

    def _effects_panels(self, alpha: float = 0.05, parameters: Sequence[str] | None = None) -> tuple[Panel, ...]:
        effects = self._predicted_effects()
        if effects is None:
            raise ArgumentError(f"{self.model.formula.text!r} has no random effects to draw; see plot('residuals')")
        return effects_panels(effects, checked_alpha(alpha), parameters)

    def _profile_panels(
        self, parameter: str, values: Any = None, points: int = 21, alpha: float = 0.05
    ) -> tuple[Panel, ...]:
        return (profile_panel(self.profile(parameter, values=values, points=points, alpha=alpha)),)

    def _starts_panels(self) -> tuple[Panel, ...]:
        return starts_panels(self.em)

    def _numeric(self, name: str, what: str) -> Array:
        """Values of a numeric column in use, rows in the order of the design."""
        design = self.model.design
        known = sorted(continuous_columns(design) - {design.names.group})
        if name not in known or name not in design.frame:
            raise ArgumentError(f"{what} must be a numeric column of the model, one of {known}, got {name!r}")
        return design.frame[name].to_numpy(dtype=float)

    def _in_design(self, values: Array) -> Array:
        """Values in the order of the data put into the order of the design."""
        out = np.empty_like(values)
        out[np.argsort(self.model.design.position, kind="stable")] = values
        return out

    def _axis(self) -> str | None:
        """The column along which means are compared; None for the fitted values."""
        return None

    def _expert_means(self, kind: str) -> Array:
        """Mean of each row under each expert, rows in the order of the design, shape (n, K).

        Without random effects that of a subject is that of the population.
        """
        frame = self.predict(kind="experts")
        return self._in_design(frame[[f"expert{k + 1}" for k in range(self.em.responsibilities.shape[1])]].to_numpy())

    def _mean_errors(self, weights: Array) -> Array | None:
        """Standard errors of weighted means of the experts, shape (B, K), from weights (B, n, K); None if not known."""
        return None

    def _predicted_effects(self) -> Effects | None:
        """Predicted random effects; None if there are none."""
        return self._effects() if isinstance(self, HasRandomEffects) else None


PANELS: Mapping[str, str] = MappingProxyType(
    {
        "residuals": "_residual_panels",
        "qq": "_qq_panels",
        "fit": "_fit_panels",
        "random_effects": "_effects_panels",
        "profile": "_profile_panels",
        "starts": "_starts_panels",
    }
)
