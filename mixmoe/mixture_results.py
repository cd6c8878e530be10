"""What only fitted mixtures of experts offer, and what families without experts say instead."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Self

import pandas as pd

from mixmoe.check.assessment import Assessment, ExpertTests
from mixmoe.errors import ArgumentError
from mixmoe.families import MixtureModel, Model, lacking
from mixmoe.inference.uncertainty import ParamCov
from mixmoe.mixture.estimate import EMFit, criteria
from mixmoe.output.plots import draw_responsibilities
from mixmoe.output.records import Cell
from mixmoe.results import Results


class MoEResults(Assessment, ExpertTests, Results):
    """A fitted mixture of experts.

    Parameters
    ----------
    model : MixtureModel
    fit : EMFit
    cov : ParamCov

    Attributes
    ----------
    icl : float
        BIC plus twice the entropy of the classification.
    entropy : float
        Relative entropy R^2 in [0, 1].

    See Also
    --------
    Results : what every family offers.
    """

    model: MixtureModel

    def __init__(self, model: MixtureModel, fit: EMFit, cov: ParamCov) -> None:
        super().__init__(model, fit, cov)
        values = criteria(fit.loglik, len(fit.params), fit.responsibilities)
        self.icl, self.entropy = values.icl, values.entropy

    @property
    def responsibilities(self) -> pd.DataFrame:
        """Posterior expert probabilities, one row per subject and one column per expert."""
        tau = self.em.responsibilities
        return pd.DataFrame(
            tau, index=self._unit_index, columns=[f"expert{k + 1}" for k in range(tau.shape[1])], copy=True
        )

    def classify(self) -> pd.DataFrame:
        """The most probable expert of each subject and its probability.

        Returns
        -------
        DataFrame
            Columns ``expert`` (from 1) and ``probability``.
        """
        tau = self.responsibilities
        return pd.DataFrame(
            {"expert": tau.to_numpy().argmax(axis=1) + 1, "probability": tau.to_numpy().max(axis=1)}, index=tau.index
        )

    def proportions(self, alpha: float = 0.05) -> pd.DataFrame:
        """Mean probability of each expert by the gate; for families that have one for all rows.

        Parameters
        ----------
        alpha : float
            One minus the level of the limits.

        Returns
        -------
        DataFrame
            One row per expert; columns estimate, std_error, conf_low, conf_high (delta method on the logit scale).
        """
        raise lacking(self.model.spec, "HasProportions", "proportions")

    def relabel(self, order: Sequence[int]) -> Self:
        """The same fit with experts in another order; for families that say how.

        Parameters
        ----------
        order : sequence of int
            ``order[0]`` is the present number (from 1) of the expert that comes first.

        Returns
        -------
        MoEResults
            Of the same class.
        """
        raise lacking(self.model.spec, "HasOrder", "relabel")

    def plot(self, kind: str | None = None, ax: Any = None, **options: Any) -> Any:
        """A figure; needs matplotlib. Beside the kinds of `Results.plot` also ``"responsibilities"``."""
        if kind != "responsibilities":
            return super().plot(kind, ax, **options)
        if options:
            raise ArgumentError(f"plot('responsibilities') has no option {sorted(options)[0]!r}")
        return draw_responsibilities(self.em.responsibilities, ax, self._unit_word)

    @property
    def _title(self) -> str:
        k = self.model.n_experts
        return f"{self.model.spec.name} with {k} expert{'s' if k > 1 else ''}"

    @property
    def _plot_kinds(self) -> tuple[str, ...]:
        # Behind the family's own curves, before the diagnostics that all families have.
        kinds = super()._plot_kinds
        return (*self._curve_kinds, "responsibilities", *kinds[len(self._curve_kinds) :])

    @property
    def _classification_facts(self) -> tuple[tuple[str, Cell], ...]:
        return (("Entropy", self.entropy),) if self.model.n_experts > 1 else ()

    def _by_class(self) -> pd.DataFrame:
        return self.classify()

    def _by_unit(self) -> pd.DataFrame:
        return pd.concat([self.classify(), self.responsibilities], axis=1)


def _without(name: str, capability: str = "HasExperts") -> Callable[..., NoReturn]:
    """A method of mixtures in a family without experts, which says why it is none of its."""

    def method(self: "WithoutExperts", *args: Any, **options: Any) -> NoReturn:
        raise lacking(self.model.spec, capability, name)

    method.__name__ = method.__qualname__ = name
    method.__doc__ = f"Refused, with the reason of the family: `{name}` is for mixtures of experts."
    return method


class WithoutExperts:
    """The methods of mixtures in a family that has no experts: each refuses with the reason that the spec gives."""

    model: Model

    adequacy = _without("adequacy")
    classification_table = _without("classification_table")
    classify = _without("classify")
    covariates = _without("covariates")
    distal = _without("distal")
    gate_effects = _without("gate_effects", "HasGate")
    memberships = _without("memberships")
    proportions = _without("proportions")
    relabel = _without("relabel")
    stability = _without("stability")
    test_experts = _without("test_experts")
    vlmr_test = _without("vlmr_test")

    @property
    def responsibilities(self) -> NoReturn:
        """Refused, with the reason of the family: posterior probabilities are for mixtures of experts."""
        raise lacking(self.model.spec, "HasExperts", "responsibilities")

    @property
    def entropy(self) -> NoReturn:
        """Refused, with the reason of the family: the entropy is that of a classification by experts."""
        raise lacking(self.model.spec, "HasExperts", "entropy")

    @property
    def icl(self) -> NoReturn:
        """Refused, with the reason of the family: this criterion holds the entropy of a classification by experts."""
        raise lacking(self.model.spec, "HasExperts", "icl")
