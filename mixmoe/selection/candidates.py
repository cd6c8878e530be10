"""The fits behind `select`: random starts, starts carried from one expert fewer, cross-validation."""

import hashlib
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe.arguments import checked_count
from mixmoe.design.design import Design
from mixmoe.design.formula import MoEFormula, parse_formula
from mixmoe.design.frame import places_of, units_of
from mixmoe.errors import ArgumentError, MixmoeError, MixmoeWarning
from mixmoe.families import ModelClass, ValidatesItself, family_of, model_options, require
from mixmoe.loading import load
from mixmoe.mixture.estimate import better
from mixmoe.mixture.resampling import Journal, fingerprint
from mixmoe.output.saved import fingerprints
from mixmoe.responses.exponential import canonical_family
from mixmoe.results import Results

_ESTIMATED = ("functions", "searches")  # settings of a fit that are no arguments of its model
STARTS = 8  # random starts per expert; those carried from one expert fewer come on top
FAILURES = (MixmoeError, ArithmeticError, np.linalg.LinAlgError)


@dataclass(frozen=True, slots=True)
class Spec:
    """A model to be fitted.

    Attributes
    ----------
    formula : MoEFormula
    structure : tuple of (str, value)
        Options in which the candidates differ.
    experts : int
    model, fit : Mapping
        Options of the constructor and of `fit`.
    family : class
        The registered model class that fits it.
    """

    formula: MoEFormula
    structure: tuple[tuple[str, Any], ...]
    experts: int
    model: Mapping[str, Any]
    fit: Mapping[str, Any]
    family: ModelClass

    @property
    def has_experts(self) -> bool:
        """Whether a candidate is a mixture; other models are compared by their errors on held-out rows."""
        return bool(self.family.spec.has_experts)

    def build(self, data: Any, **changed: Any) -> Any:
        """The model on some data."""
        experts = {"experts": self.experts} if self.has_experts else {}
        return self.family(self.formula, data, **{**experts, **self.model, **changed})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one computation led to: a fit, a value (with its standard error), or the reason why there is neither."""

    results: Results | None = None
    seconds: float = 0.0
    reason: str = ""
    value: float = np.nan
    se: float = np.nan
    measure: str = ""


@dataclass(frozen=True, slots=True)
class Workers:
    """How computations are spread and shown."""

    n_jobs: int
    progress: bool | None


@dataclass(frozen=True, slots=True)
class Trial:
    """All that was found for one model; `cv` and `cv_se` are NaN without folds."""

    spec: Spec
    outcome: Outcome
    cv: float = np.nan
    cv_se: float = np.nan


@dataclass(frozen=True, slots=True)
class Trials:
    """What was found, in the order of the specs; those not reached because of Ctrl-C are left out."""

    trials: tuple[Trial, ...]
    interrupted: bool


def build_specs(
    formulas: str | MoEFormula | Sequence[str | MoEFormula],
    experts: int | Iterable[int] | None,
    options: Mapping[str, Any],
) -> tuple[Spec, ...]:
    """One spec per formula, combination of listed options and number of experts, in this order.

    Raises
    ------
    FormulaError, ArgumentError
        If a formula cannot be read, there is no such option, or a list is empty.
    """
    several = [formulas] if isinstance(formulas, str | MoEFormula) else list(formulas)
    if not several:
        raise ArgumentError("formula must be a formula or a list of them, got an empty list")
    parsed = [text if isinstance(text, MoEFormula) else parse_formula(text) for text in several]
    family = {one.text: family_of(one, options) for one in parsed}
    counts = _counts(experts, {model.spec.has_experts for model in family.values()}, options)
    listed = dict.fromkeys(name for model in family.values() for name in model.spec.listed)
    lists = {name: _listed(options[name], name) for name in listed if isinstance(options.get(name), list | tuple)}
    if "family" in lists:  # "negbinomial" and "negativebinomial" are one candidate
        lists["family"] = list(dict.fromkeys(map(canonical_family, lists["family"])))
    if "hidden" in options:
        lists = {**_hidden(options["hidden"]), **lists}
    specs = []
    for formula in parsed:
        for values in product(*lists.values()):
            structure = tuple(zip(lists, values, strict=True))
            used = {**options, **dict(structure)}
            model = model_options(family[formula.text], used)
            fit = {name: value for name, value in used.items() if name not in model}
            specs += [Spec(formula, structure, k, model, fit, family[formula.text]) for k in counts]
    return tuple(specs)


def _counts(experts: int | Iterable[int] | None, mixtures: set[bool], options: Mapping[str, Any]) -> list[int]:
    """Numbers of experts; one for models that have none, which are not compared with mixtures."""
    if len(mixtures) > 1:
        raise ArgumentError("mixtures and networks cannot be compared by one criterion; select among each on their own")
    if True in mixtures:
        given = range(1, 7) if experts is None else experts
        return sorted({checked_count(k, "experts") for k in _listed(given, "experts")})
    if experts not in (None, 1):
        raise ArgumentError(f"a network has no experts, got experts={experts!r}; leave it out")
    if "baselines" in options:
        raise ArgumentError(
            "select takes no baselines=, since candidates are compared with each other; for the generic network add "
            "the formula with re: (0 | person)"
        )
    return [1]


def _hidden(value: Any) -> dict[str, list[Any]]:
    """A grid of architectures, if `value` holds several; told from one architecture by what it holds.

    Whole numbers are the widths of one network, tuples are architectures to be compared.
    """
    if isinstance(value, Mapping):
        return {}  # widths of the experts and of the gate
    if not isinstance(value, list | tuple):
        raise ArgumentError(f"hidden must be a tuple of widths or a list of such tuples, got {value!r}")
    inner = [isinstance(entry, list | tuple | Mapping) for entry in value]
    if not any(inner) and not (isinstance(value, list) and not value):
        return {}
    if not all(inner) or not value:
        raise ArgumentError(
            f"hidden must be the widths of one network, such as (10, 5), or a list of networks, such as [(), (5,), "
            f"(10, 5)], where () is linear and (5,) has one layer; got {value!r}"
        )
    return {"hidden": [entry if isinstance(entry, Mapping) else tuple(entry) for entry in value]}


def _listed(value: Any, name: str) -> list[Any]:
    found = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    if not found:
        raise ArgumentError(f"{name} must name at least one value, got {value!r}")
    return found


def check_data(specs: Sequence[Spec], data: Any) -> str:
    """Fingerprint of the designs, after checking that the candidates can be compared.

    Raises
    ------
    MixmoeError
        The first error, if no candidate can be built.
    ArgumentError
        If the candidates have different responses or use different rows.
    """
    designs: list[Design] = []
    errors: list[MixmoeError] = []
    for chain in _chains(specs):
        try:
            with warnings.catch_warnings():
                if designs:
                    warnings.simplefilter("ignore", MixmoeWarning)
                designs.append(specs[chain[0]].build(data).design)
        except MixmoeError as error:
            errors.append(error)
    if not designs:
        raise errors[0]
    first = designs[0]
    for other in designs[1:]:
        if other.names.response != first.names.response:
            raise ArgumentError(
                f"candidates must have one response, got {first.names.response!r} and {other.names.response!r}; "
                "log-likelihoods of different responses cannot be compared"
            )
        if set(other.position.tolist()) != set(first.position.tolist()):
            raise ArgumentError(
                f"candidates must use the same rows, but missing values leave {first.n} rows to {first.formula.text!r} "
                f"and {other.n} to {other.formula.text!r}; leave out the rows with missing values beforehand"
            )
    if any(spec.model.get("method") == "reml" for spec in specs) and len({d.names.expert for d in designs}) > 1:
        raise ArgumentError(
            "candidates have different fixed effects, which method='reml' cannot compare: their log-likelihoods are of "
            "different error contrasts; use method='ml'"
        )
    # The checkpoint is of these columns: a change in any that is in use, subjects and index included, is another run.
    return fingerprint([(design.formula.text, fingerprints(design.frame)) for design in designs])


def _chains(specs: Sequence[Spec]) -> list[list[int]]:
    """Places of the specs that differ in nothing but the number of experts, fewest first."""
    chains: dict[Any, list[int]] = {}
    for i, spec in enumerate(specs):
        chains.setdefault((spec.formula.text, spec.structure), []).append(i)
    return list(chains.values())


def run_trials(
    specs: Sequence[Spec], data: Any, starts: int | None, folds: int | None, journal: Journal, workers: Workers
) -> Trials:
    """All candidates from random starts, then, by the number of experts, from those with one fewer, then by folds.

    Parameters
    ----------
    specs : sequence of Spec
    data : DataFrame or mapping
    starts, folds : int, optional
    journal : Journal
    workers : Workers

    Returns
    -------
    Trials
    """
    n = len(specs)
    # One stream for each computation: neither the number of workers nor an interruption changes a result.
    seeds, carry_seeds, fold_seed = journal.rng.spawn(n), journal.rng.spawn(n), journal.rng.spawn(1)[0]
    calls = [
        partial(_fit_random, s, data, starts, seed) if s.has_experts else partial(_fit_validated, s, data, seed)
        for s, seed in zip(specs, seeds, strict=True)
    ]
    first = journal.run(calls, workers.n_jobs, "candidates", workers.progress)
    outcomes = list(first.values)
    # A larger mixture holds the smaller one: from it, its log-likelihood cannot be missed from below.
    interrupted = first.interrupted or _carry(specs, data, outcomes, carry_seeds, journal, workers)
    trials = [Trial(spec, outcome) for spec, outcome in zip(specs, outcomes, strict=False)]
    if folds is None or interrupted:
        return Trials(tuple(trials), interrupted)
    return _cross_validate(trials, folds, starts, fold_seed, journal, workers)


def _carry(
    specs: Sequence[Spec],
    data: Any,
    outcomes: list[Outcome],
    seeds: Sequence[np.random.Generator],
    journal: Journal,
    workers: Workers,
) -> bool:
    """Improve `outcomes` in place by splitting the experts of the fit with one fewer; whether it was interrupted."""
    below = {b: a for chain in _chains(specs) for a, b in pairwise(chain) if specs[b].experts == specs[a].experts + 1}
    for k in sorted({specs[i].experts for i in below}):
        places = [i for i in below if specs[i].experts == k and outcomes[below[i]].results is not None]
        calls = [partial(_fit_carried, specs[i], data, outcomes[i], outcomes[below[i]], seeds[i]) for i in places]
        found = journal.run(calls, workers.n_jobs, f"{k} experts", workers.progress)
        for i, outcome in zip(places, found.values, strict=False):
            outcomes[i] = outcome
        if found.interrupted:
            return True
    return False


def _attempt(compute: Callable[[], Outcome], before: Outcome | None = None) -> Outcome:
    """The outcome with its time, or `before` with the reason why there is no new one."""
    started = time.perf_counter()
    before = Outcome() if before is None else before
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MixmoeWarning)  # they are flags of the fits
            found = compute()
    except FAILURES as error:
        found = replace(before, reason=before.reason or f"{type(error).__name__}: {error}".splitlines()[0])
    return replace(found, seconds=before.seconds + time.perf_counter() - started)


def _checked_whole(fitted: Results) -> Results:
    """The fit, unless Ctrl-C cut it short: then the whole run ends, not this fit."""
    if any(flag.code == "interrupted" for flag in fitted.flags):
        raise KeyboardInterrupt
    return fitted


def _n_starts(spec: Spec, starts: int | None) -> dict[str, int]:
    """Random starts; one expert has one optimum, unless it is a network, which has as many as `fit` gives it."""
    if starts is not None:
        return {"starts": starts}
    if spec.experts > 1:
        return {"starts": STARTS * spec.experts}
    return {} if spec.family.spec.section == "networks" else {"starts": 1}


def _fit_random(spec: Spec, data: Any, starts: int | None, rng: np.random.Generator) -> Outcome:
    def compute() -> Outcome:
        model = spec.build(data)
        options = {**_n_starts(spec, starts), "progress": False, **spec.fit}
        return Outcome(_checked_whole(model.fit(rng=rng, **options)))

    return _attempt(compute)


def _fit_validated(spec: Spec, data: Any, rng: np.random.Generator) -> Outcome:
    def compute() -> Outcome:
        model = require(spec.build(data), ValidatesItself, "comparison on held-out rows", spec.family.spec)
        found = model.tried(rng=rng, **{"progress": False, **spec.fit})
        seen = found.held_out
        return Outcome(found.results, value=seen.error, se=seen.se, measure=seen.measure)

    return _attempt(compute)


def _fit_carried(spec: Spec, data: Any, present: Outcome, smaller: Outcome, rng: np.random.Generator) -> Outcome:
    """The better of the present fit and of what the smaller one leads to; the latter alone if the first failed."""

    def compute() -> Outcome:
        options = {"progress": False, **spec.fit}
        carried = _checked_whole(spec.build(data).fit(start=smaller.results, rng=rng, **options))
        if present.results is None:
            return Outcome(carried)
        merged = better(present.results.em, carried.em)
        best = carried if merged.params is carried.em.params else present.results
        return Outcome(type(best)(best.model, merged, best.cov))

    return _attempt(compute, present)


def _cross_validate(
    trials: list[Trial], folds: int, starts: int | None, rng: np.random.Generator, journal: Journal, workers: Workers
) -> Trials:
    """The trials with the log-likelihood of the units of each fold under the fit to the others."""
    fitted = {i: trial.outcome.results for i, trial in enumerate(trials) if trial.outcome.results is not None}
    every = [label for one in fitted.values() for label in _units(one.model.design)]
    units = units_of(pd.Series(every, dtype=object)).labels
    if len(units) < folds:
        raise ArgumentError(f"folds={folds} is more than the {len(units)} units in the data; use fewer folds")
    fold = Folds(units, rng.permutation(len(units)) % folds)
    places = [(i, f) for i in fitted for f in range(folds)]
    calls = [
        partial(_held_out, trials[i].spec, fitted[i], fold, f, starts, seed)
        for (i, f), seed in zip(places, rng.spawn(len(places)), strict=True)
    ]
    found = journal.run(calls, workers.n_jobs, "folds", workers.progress)
    values: dict[int, list[Outcome]] = {}
    for (i, _), outcome in zip(places, found.values, strict=False):
        values.setdefault(i, []).append(outcome)
    done = [_with_folds(t, values[i]) if len(values.get(i, ())) == folds else t for i, t in enumerate(trials)]
    return Trials(tuple(done), found.interrupted)


def _with_folds(trial: Trial, found: Sequence[Outcome]) -> Trial:
    values = np.array([one.value for one in found])
    reasons = [f"cross-validation: {one.reason}" for one in found if one.reason]
    spent = sum(one.seconds for one in found)
    outcome = replace(
        trial.outcome,
        seconds=trial.outcome.seconds + spent,
        reason="; ".join(filter(None, [trial.outcome.reason, *reasons[:1]])),
    )
    error = float(np.sqrt(len(values)) * values.std(ddof=1))
    return replace(trial, outcome=outcome, cv=float(values.sum()), cv_se=error)


def _units(design: Design) -> NDArray[np.object_]:
    """Label of the independent unit of each row."""
    return np.asarray(design.aux["cluster"] if "cluster" in design.aux else design.labels[design.codes], dtype=object)


@dataclass(frozen=True, slots=True)
class Folds:
    """The fold of each independent unit, by its label.

    Attributes
    ----------
    units : ndarray of object, shape (N,)
    fold : ndarray of int, shape (N,)
    """

    units: NDArray[np.object_]
    fold: NDArray[np.intp]

    def of(self, design: Design) -> NDArray[np.intp]:
        """The fold of each row of a design, shape (n,)."""
        return self.fold[places_of(_units(design), self.units)]


def _held_out(
    spec: Spec, whole: Results, folds: Folds, f: int, starts: int | None, rng: np.random.Generator
) -> Outcome:
    """Log-likelihood of one fold under the fit to the others."""

    def compute() -> Outcome:
        design = whole.model.design
        out = folds.of(design) == f
        settings = {name: value for name, value in whole.model.settings.items() if name not in _ESTIMATED}
        model = spec.build(design.frame[~out], **settings)
        options = {**_n_starts(spec, starts), "progress": False, **spec.fit}
        fitted = _checked_whole(model.fit(start=whole, rng=rng, **options))
        return Outcome(value=fitted.loglik_of(design.frame[out]))

    return _attempt(compute)


def _sum_of(file: Path) -> str:
    """Checksum of a file: the fit of another candidate in its place would be read without a word."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


@dataclass(slots=True)
class Keeper:
    """Outcomes as entries of a journal, their fits as files beside it."""

    folder: Path | None
    context: Mapping[str, Any] | None
    n_files: int = field(default=0)

    def encode(self, outcome: Outcome) -> dict[str, Any]:
        """What the journal holds of an outcome; its fit goes to a file."""
        name = held = None
        if outcome.results is not None and self.folder is not None:
            name = self._next()
            outcome.results.save(self.folder / name)
            held = _sum_of(self.folder / name)
        told = {part: getattr(outcome, part) for part in ("seconds", "reason", "value", "se", "measure")}
        return {"fit": name, "fit_sum": held, **told}

    def decode(self, entry: Mapping[str, Any]) -> Outcome:
        """The outcome that was encoded."""
        fit = None
        if entry["fit"] is not None and self.folder is not None:
            self._next()
            file = self.folder / entry["fit"]
            if not file.is_file() or _sum_of(file) != entry["fit_sum"]:
                state = "lost or replaced" if file.is_file() else "lost"
                raise ArgumentError(
                    f"the checkpoint {str(self.folder)!r} has {state} its file {entry['fit']!r}; delete the folder or "
                    "name another one"
                )
            fit = load(file, context={} if self.context is None else self.context)
        return Outcome(fit, **{part: value for part, value in entry.items() if not part.startswith("fit")})

    def _next(self) -> str:
        self.n_files += 1
        return f"fit{self.n_files}.mixmoe"
