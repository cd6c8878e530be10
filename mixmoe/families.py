"""The contract between a family of models and the rest of the package.

A family is a model class with a `FamilySpec`, registered once. From the registry follow the door (`mixmoe.fit`), the
refusals of the parser, `mixmoe.load`, `mixmoe.select`, the report, the command line and the contract test: none of them
names a family.

To add one: write a class that has what `Model` asks for, results derived from `mixmoe.results.Results` (mixtures:
`mixmoe.mixture_results.MoEResults`), and call `register` with the class. What a family can do beyond that it shows by
having the methods of a capability below; a method of the results asks for it by type (`require`) and refuses with the
spec's reason where it is missing.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.design.design import Design
from mixmoe.design.formula import MoEFormula
from mixmoe.errors import ArgumentError, meant
from mixmoe.inference.uncertainty import ParamCov
from mixmoe.mixture.estimate import Block, EMFit, ParamLayout
from mixmoe.numerics.optimise import Evaluation
from mixmoe.output.saved import SavedFit

# --- what a family is ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FamilySpec:
    """What the package knows of a family.

    Attributes
    ----------
    name : str
        ``"MEMoE"`` ...
    title : str
        What kind of model it is, a sentence for reports.
    estimation : str
        How it is estimated, a sentence for reports.
    asked_by : str
        Which formulas or options ask for it, in words: ``"formulas with a section 'vary: u'"``.
    section : str or None
        The section of a formula that asks for it.
    markers : tuple of str
        Options that ask for it.
    unless : tuple of str
        Sections of a formula (as attributes of `MoEFormula`) and options with which it leaves a formula to others.
    covariance_options : tuple of str
        Options of its covariances, which `fit` takes beside its own.
    listed : tuple of str
        Options that may be lists in `mixmoe.select`: every combination is a candidate.
    has_experts : bool
        Whether it is a mixture, whose number of experts is to be chosen. The results of one derive from
        `mixmoe.mixture_results.MoEResults`, others from `mixmoe.results.Results` and `WithoutExperts`.
    effects : str
        Pattern of the words left of the bar in ``re:`` that it alone reads, unless they are columns.
    effects_hint : str
        What such a word is, and how to ask for it, in words.
    packages : tuple of str
        Packages that it needs beside those of mixmoe, for the versions in a report.
    lacks : Mapping of str to str
        Why a capability, or an argument that other families have, is missing, by its name.
    """

    name: str
    title: str
    estimation: str
    asked_by: str
    section: str | None = None
    markers: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    covariance_options: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()
    has_experts: bool = True
    effects: str = ""
    effects_hint: str = ""
    packages: tuple[str, ...] = ()
    lacks: Mapping[str, str] = field(default_factory=dict)

    def claims(self, formula: MoEFormula, options: Mapping[str, Any]) -> bool:
        """Whether a formula with these options asks for the family."""
        if any(getattr(formula, name, None) is not None or options.get(name) is not None for name in self.unless):
            return False
        section = self.section is not None and getattr(formula, self.section) is not None
        return section or any(options.get(name) is not None for name in self.markers)


class Model(Protocol):
    """Formula, data and settings of a model; what results need from it.

    Attributes
    ----------
    spec : FamilySpec
    formula : MoEFormula
    design : Design
    layout : ParamLayout
        Names, blocks and experts of the reported parameters.
    n_experts : int or None
        None where the spec says that there are none.
    settings : Mapping of str to JSON values
        Arguments of the constructor, without formula and data, that rebuild the model; those named ``cov_re`` and
        ``residual`` ("common" < "proportional" < "expert") may be nested in a likelihood-ratio test.
    """

    @property
    def spec(self) -> FamilySpec: ...  # noqa: D102
    @property
    def formula(self) -> MoEFormula: ...  # noqa: D102
    @property
    def design(self) -> Design: ...  # noqa: D102
    @property
    def layout(self) -> ParamLayout: ...  # noqa: D102
    @property
    def n_experts(self) -> int | None: ...  # noqa: D102
    @property
    def settings(self) -> Mapping[str, Any]: ...  # noqa: D102

    def covariance(self, fit: EMFit, kind: str, **options: Any) -> ParamCov:
        """Covariance of the estimates of `fit`."""
        ...


class MixtureModel(Model, Protocol):
    """The model of a family that has experts."""

    @property
    def n_experts(self) -> int: ...  # noqa: D102


class ModelClass(Protocol):
    """The class of a model: how one is made, fitted and read from a file."""

    spec: FamilySpec

    def __call__(self, formula: MoEFormula, data: Any, **options: Any) -> Any:
        """A model; `experts=` is among the options of a mixture."""
        ...

    def fit(self, *, rng: Any = None, **options: Any) -> Any:
        """Fit the model to its data: results of the family."""
        ...

    def from_saved(self, saved: SavedFit, context: Mapping[str, Any] | None) -> Any:
        """Results of a saved fit; ``saved.data`` is never None, and the design must pass through `results.restored`."""
        ...


# --- what a family may be able to do: capabilities of its results ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class FirstOrder:
    """How units move the estimates, to first order, in the coordinates in which the likelihood was maximised.

    Attributes
    ----------
    scores : ndarray, shape (N, Q)
        Score of each unit at the estimate.
    inverse : ndarray, shape (Q, Q)
        Inverse of the observed information, zero in directions without information.
    jacobian : ndarray, shape (P, Q)
        Derivatives of the reported parameters; NaN in rows of parameters on their boundary.
    slopes : ndarray, shape (N, K, Q)
        Derivatives of the responsibilities.
    """

    scores: Array
    inverse: Array
    jacobian: Array
    slopes: Array

    @property
    def moves(self) -> Array:
        """``A^-1 s_i``: how a unit pulls the estimate towards itself, shape (N, Q)."""
        return self.scores @ self.inverse


@runtime_checkable
class HasScores(Protocol):
    """A score per independent unit: influence of units, three-step standard errors."""

    def _first_order(self) -> FirstOrder: ...


@dataclass(frozen=True, slots=True)
class GatePoint:
    """The gate of a fit, at one value of the index if coefficients vary.

    Attributes
    ----------
    at : float or None
        Value of the index.
    gamma : ndarray, shape (K - 1, m)
    where : ndarray of int, shape (K - 1, m)
        Positions of the coefficients among the parameters.
    infinite : ndarray, shape ((K - 1) * m, s), or None
        Directions in which the coefficients are infinite.
    """

    at: float | None
    gamma: Array
    where: NDArray[np.intp]
    infinite: Array | None = None


@runtime_checkable
class HasOrder(Protocol):
    """Experts that can be put into another order: `relabel`."""

    def _in_order(self, places: Sequence[int]) -> Any:
        """The same results with the experts in the order of their present places, from 0."""
        ...


@runtime_checkable
class HasGate(Protocol):
    """A softmax gate: marginal effects of its covariates."""

    def _gate_points(self) -> tuple[GatePoint, ...]: ...


@runtime_checkable
class DrawsResponses(Protocol):
    """Responses drawn from the fit: `simulate`, parametric bootstrap."""

    def _draw(self, rng: np.random.Generator) -> Array: ...


@dataclass(frozen=True, slots=True)
class Distribution:
    """Where each response lies in its fitted distribution.

    Attributes
    ----------
    below, at : ndarray, shape (n,)
        ``P(Y < y)`` and ``P(Y <= y)``; equal if the response is continuous.
    beyond, above : ndarray, shape (n,)
        ``P(Y >= y)`` and ``P(Y > y)``, one minus the former without loss of digits.
    """

    below: Array
    at: Array
    beyond: Array
    above: Array


@runtime_checkable
class HasDistribution(Protocol):
    """The fitted distribution of each response: quantile residuals and the figures made of them."""

    def _distribution(self, given: str) -> Distribution: ...


@runtime_checkable
class HasErrorCovariance(Protocol):
    """Errors with a covariance: residuals free of their serial correlation, rows in the order of the design."""

    def _normalized(self) -> Array: ...


@dataclass(frozen=True, slots=True)
class Effects:
    """Predicted random effects of the units.

    Attributes
    ----------
    names : tuple of str
    means : ndarray, shape (N, K, q)
        Given the expert.
    implied : ndarray, shape (K, q, q)
        Covariance that the model implies for them: that of the effects minus their mean posterior covariance.
    modal : ndarray of int, shape (N,)
        From 1.
    """

    names: tuple[str, ...]
    means: Array
    implied: Array
    modal: NDArray[np.intp]


@runtime_checkable
class HasRandomEffects(Protocol):
    """Effects of units: their figure."""

    def _effects(self) -> Effects | None: ...


@dataclass(frozen=True, slots=True)
class Likelihood:
    """A log-likelihood in the coordinates in which it is maximised.

    Attributes
    ----------
    theta : ndarray, shape (Q,)
        Maximiser.
    inverse : ndarray, shape (Q, Q)
        Inverse information there.
    evaluate : callable
        From points (S, Q) to log-likelihood and score.
    reported : callable
        From a point (Q,) to the reported parameters (P,).
    jacobian : callable
        From a point (Q,) to their derivatives (P, Q).
    """

    theta: Array
    inverse: Array
    evaluate: Callable[[Array], Evaluation]
    reported: Callable[[Array], Array]
    jacobian: Callable[[Array], Array]


@runtime_checkable
class HasLikelihood(Protocol):
    """One joint likelihood of all parameters: profiles, likelihood-ratio tests."""

    def _likelihood(self) -> Likelihood: ...


@runtime_checkable
class HasTerms(Protocol):
    """Coefficients that belong to terms of the formula: joint tests of each term."""

    def _term_owners(self) -> Mapping[Block, Mapping[str, str]]:
        """The term of each coefficient, by block."""
        ...


# --- what a family may be able to do: capabilities of its models -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Estimated:
    """A maximum found for some number of experts.

    Attributes
    ----------
    experts : int
    values : ndarray
        Estimates, as the family stores them.
    loglik : float
    degenerate : bool
        Whether every maximum that was found is spurious.
    """

    experts: int
    values: Array
    loglik: float = np.nan
    degenerate: bool = False


@dataclass(frozen=True, slots=True)
class Curvature:
    """Derivatives of a log-likelihood at its maximum.

    Attributes
    ----------
    scores : ndarray, shape (N, P)
        Of each independent unit.
    information : ndarray, shape (P, P)
        Minus the second derivatives.
    """

    scores: Array
    information: Array


@runtime_checkable
class HasExperts(Protocol):
    """A mixture that can be estimated again, with other experts, on other responses and on resamples of the units."""

    def estimated(self, fit: EMFit) -> Estimated:
        """The present fit."""
        ...

    def estimate(
        self,
        experts: int,
        n_starts: int,
        rng: np.random.Generator,
        start: Estimated | None = None,
        response: Array | None = None,
    ) -> Estimated:
        """The highest maximum from random starts and from `start`, which has as many experts or one fewer.

        Raises
        ------
        KeyboardInterrupt
            After Ctrl-C.
        """
        ...

    def drawn(self, estimated: Estimated, rng: np.random.Generator) -> Array:
        """A response drawn from the model, shape (n,) in the order of the design."""
        ...

    def reclassified(self, fit: EMFit, rng: np.random.Generator) -> NDArray[np.intp]:
        """Most probable expert of every unit after a refit to a resample of the units; empty on failure."""
        ...

    def refuse_tests(self) -> str | None:
        """Why tests by refits would not be valid for these data, None if they are."""
        ...


@runtime_checkable
class HasCurvature(Protocol):
    """Scores and information of a maximum: the test of Vuong, Lo, Mendell and Rubin."""

    def curvature(self, estimated: Estimated) -> Curvature:
        """Derivatives of the log-likelihood at a maximum."""
        ...


@runtime_checkable
class ValidatesItself(Protocol):
    """A model that is compared by its error on held-out rows instead of by criteria."""

    def tried(self, *, holdout: float = 0.2, rng: Any = None, **options: Any) -> Any:
        """A fit to all rows, and the error of one without the held-out rows."""
        ...


Capability = TypeVar("Capability")
Registered = TypeVar("Registered", bound=type)


def require(found: object, capability: type[Capability], what: str, spec: FamilySpec) -> Capability:
    """The object as one that has a capability.

    Parameters
    ----------
    found : object
        Results or a model.
    capability : type
        One of the protocols of this file.
    what : str
        The method that needs it, as the user calls it.
    spec : FamilySpec

    Raises
    ------
    ArgumentError
        With the reason that the family gives, if it is missing.
    """
    if isinstance(found, capability):
        return found
    raise lacking(spec, capability.__name__, what)


def lacking(spec: FamilySpec, capability: str, what: str) -> ArgumentError:
    """The error for a method that a family does not have, with the reason that it gives."""
    reason = spec.lacks.get(capability) or "its models do not offer what that needs"
    return ArgumentError(f"{spec.name} has no {what}: {reason}")


# --- the registry ----------------------------------------------------------------------------------------------------

# Where the families of the package are; a module is imported when its family is first asked for, since importing all
# of them takes as long as importing statsmodels.
_HOME: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "NMoE": ("mixmoe.neural.mixture.model", "NMoE"),
        "NME": ("mixmoe.neural.model", "NME"),
        "VCMoE": ("mixmoe.varying.model", "VCMoE"),
        "MEMoE": ("mixmoe.mixed.model", "MEMoE"),
    }
)
# What fits data in partitions, by the family of data in memory.
_PARTITIONED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "MEMoE": ("mixmoe.mixed.partitioned", "PartitionedMEMoE"),
        "VCMoE": ("mixmoe.varying.partitioned_vcmoe", "PartitionedVCMoE"),
    }
)
# The one piece of state of the package: families that others add.
_ADDED: dict[str, ModelClass] = {}


def register(model: Registered) -> Registered:
    """Make a family known to `fit`, `load`, `select`, the report and the command line; also a decorator.

    Parameters
    ----------
    model : class
        With an attribute `spec`; see `Model` and `ModelClass`.

    Returns
    -------
    class
        The same.

    Raises
    ------
    ArgumentError
        If a family of the package has its name.
    """
    added = cast(ModelClass, model)
    name = added.spec.name
    if name in _HOME:
        raise ArgumentError(f"a family named {name!r} comes with the package; choose another name")
    _ADDED[name] = added
    return model


def unregister(name: str) -> None:
    """Forget a family that was added by `register`.

    Raises
    ------
    ArgumentError
        If none of that name was added.
    """
    if name not in _ADDED:
        raise ArgumentError(f"no family named {name!r} was added; added are {sorted(_ADDED)}")
    del _ADDED[name]


def families() -> Mapping[str, ModelClass]:
    """All registered model classes by name; those that others add come first, as they are asked first."""
    own = {name: getattr(import_module(module), attribute) for name, (module, attribute) in _HOME.items()}
    return MappingProxyType({**_ADDED, **own})


def family_of(formula: MoEFormula, options: Mapping[str, Any]) -> ModelClass:
    """The model class that fits a formula with these options; the last one takes what no other claims."""
    known = families()
    claimed = (model for model in known.values() if model.spec.claims(formula, options))
    return next(claimed, list(known.values())[-1])


def of_partitions(family: ModelClass) -> Any:
    """The class that fits the same model to data in partitions.

    Raises
    ------
    ArgumentError
        With the reason of the family, if there is none.
    """
    name = family.spec.name
    if name not in _PARTITIONED:
        reason = family.spec.lacks.get("Partitions", "its models need all rows in memory")
        raise ArgumentError(f"{name} takes no partitioned data: {reason}; pass a frame")
    module, attribute = _PARTITIONED[name]
    return getattr(import_module(module), attribute)


def model_options(family: ModelClass, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that go to the constructor of a family, where all others must be known to its fit.

    Raises
    ------
    ArgumentError
        If neither constructor, fit nor covariance has one of them.
    """
    for_model = _keywords(family)
    known = [*for_model, *_keywords(family.fit), *family.spec.covariance_options]
    for name in options:
        if name not in known and name in family.spec.lacks:
            raise ArgumentError(f"{family.spec.name} has no {name}=: {family.spec.lacks[name]}")
        if name not in known:
            others = [model for model in families().values() if model is not family]
            having = [model.spec for model in others if name in (*_keywords(model), *_keywords(model.fit))]
            # Families are asked from the most special one on; the most general is the likeliest to be meant.
            elsewhere = " ".join(f"{spec.name} has, which fits {spec.asked_by};" for spec in having[::-1])
            hint = elsewhere or meant(name, known)
            raise ArgumentError(f"fit has no option {name!r}; {hint}{' ' * bool(hint)}it has {', '.join(known)}")
    return {name: value for name, value in options.items() if name in for_model}


def _keywords(function: Callable[..., Any]) -> list[str]:
    """Names of the keyword arguments of a function, without formula, data and catch-alls."""
    apart = ("self", "formula", "data")
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.name not in apart and p.kind is not inspect.Parameter.VAR_KEYWORD]
