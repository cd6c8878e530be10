"""A model with its estimate bound to it: what the results of this family are built from.

References
----------
Kish, L. (1965). Survey Sampling, section 11.7.
Lumley, T. and Scott, A. (2015). AIC and BIC for modeling with complex survey data. J. Surv. Statist. Methodol. 3, 1-18.
Rao, J. N. K. and Scott, A. J. (1984). On chi-squared tests for multiway contingency tables with cell proportions
estimated from survey data. Ann. Statist. 12, 46-60.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array, IntArray
from mixmoe.design.design import Design
from mixmoe.design.formula import MoEFormula
from mixmoe.errors import ArgumentError
from mixmoe.families import Estimated, FamilySpec, GatePoint
from mixmoe.inference.uncertainty import CovType, ParamCov, checked_cov_type, without_parameters
from mixmoe.mixture.estimate import Block, EMFit, Flag, Parameter, ParamLayout, Starts
from mixmoe.output.records import told_apart
from mixmoe.responses.zero_inflated import ZeroInflated, shown_dispersion, shown_slope
from mixmoe.varying.bands import NOISY, level_process
from mixmoe.varying.em_steps import Natural, own_natural, posterior
from mixmoe.varying.identifiability import find_flags, infinite_gate, n_clusters, separation_flag
from mixmoe.varying.joint_em import REFIT, Control, Run, draw_responses, run_around_means, shape_of, with_cluster_draw
from mixmoe.varying.local_likelihood import build_local, local_start
from mixmoe.varying.local_maximum import maximise_bounded
from mixmoe.varying.problem import Problem, Rows, centred, turned_covariance
from mixmoe.varying.sandwich import added_covariance, influence, level_covariance, small_sample_power
from mixmoe.varying.setup import Sorted, constant_slots
from mixmoe.varying.smoothing import From, maximise, with_experts, with_response
from mixmoe.varying.starts import label_flag, permute_experts
from mixmoe.varying.windows import Windows, wrapped

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)  # of the index, where functions are tabulated
SPEC = FamilySpec(
    name="VCMoE",
    title="A varying-coefficient mixture of experts: coefficients of experts and gate are smooth functions of an "
    "index.",
    estimation="Local maximum likelihood with one posterior probability per row at all points of the index.",
    asked_by="formulas with a section 'vary: u' and without 're:'",
    section="vary",
    unless=("random", "smoother"),
    covariance_options=("correction",),
    listed=("bandwidth", "span", "dispersion", "errors_dist", "family"),
    lacks={
        "HasScores": "it has no score per unit of one parameter vector; refit without the units in question, or, in "
        "a three-step analysis, use method='naive', which is not corrected for classification error",
        "HasLikelihood": "its local likelihoods have no joint likelihood of the parameters; see bands()",
        "HasErrorCovariance": "its errors have no serial correlation",
        "time": "its errors have no serial correlation; name the time in vary:, or rows of one unit by cluster=",
        "HasTerms": "coefficients that vary are tested as functions by test_varying() and bands(), constants by "
        "wald_test()",
        "HasProportions": "they vary along the index; bands('probabilities') has them with limits",
    },
)


@dataclass(frozen=True, slots=True)
class FunctionNames:
    """Names of the coefficient functions, in the order of the slots.

    Attributes
    ----------
    full : tuple of str
        ``expert1.z1``, ``sigma1``, ``gate2.x1``.
    terms : tuple of str
    blocks : tuple of str
        ``"expert"``, ``"residual"`` or ``"gate"``.
    experts : tuple of int
        Counted from 1.
    """

    full: tuple[str, ...]
    terms: tuple[str, ...]
    blocks: tuple[Block, ...]
    experts: tuple[int, ...]


@dataclass(frozen=True)
class FittedVCMoE:
    """A varying-coefficient mixture with its estimate.

    Attributes
    ----------
    formula : MoEFormula
    design : Design
    data : Sorted
        The rows in the order of the index.
    problem : Problem
    coef : ndarray, shape (G, 2, L)
        Level and slope per bandwidth of every function at every grid point.
    settings : mapping
        Arguments of `VCMoE`, the bandwidths in use and the functions.
    points : ndarray of int, shape (Q,)
        Grid points at which functions are tabulated.
    clusters : ndarray of int, shape (n,), or None
        Cluster of each sorted row.
    selection, gate_selection : DataFrame or None
        Criterion of each bandwidth tried, for all functions and for the gate alone.
    unforced : tuple of float, or None
        Bandwidths of experts and gate if no column had forced a wider one; None if none has.
    """

    spec: ClassVar[FamilySpec] = SPEC
    formula: MoEFormula
    design: Design
    data: Sorted
    problem: Problem
    coef: Array
    settings: Mapping[str, Any]
    points: IntArray
    clusters: IntArray | None
    selection: pd.DataFrame | None = None
    gate_selection: pd.DataFrame | None = None
    unforced: tuple[float, float] | None = None

    @property
    def n_experts(self) -> int:
        """Number of experts, K."""
        return self.problem.slots.n_experts

    @property
    def estimated_shape(self) -> float | None:
        """Degrees of freedom of t errors, or theta of zero-inflated counts, if they were estimated."""
        return shape_of(self.problem.family) if self.settings["errors_df"] is None else None

    @cached_property
    def names(self) -> FunctionNames:
        """Names of the coefficient functions."""
        slots, expert, gate = self.problem.slots, self.design.names.expert, self.design.names.gate
        zeros = isinstance(self.problem.family, ZeroInflated)
        symbol = "sigma" if self.problem.family.name == "gaussian" else "zeros" if zeros else "theta"
        each: list[tuple[str, str, Block, int]] = []
        for c in range(1, slots.n_experts + 1):
            each += [(f"expert{c}.{t}", t, "expert", c) for t in expert]
        for c in range(1, slots.n_experts * slots.has_dispersion + 1):
            each.append((f"{symbol}{c}", symbol, "residual", c))
        for c in range(2, slots.n_experts + 1):
            each += [(f"gate{c}.{t}", t, "gate", c) for t in gate]
        full, terms, blocks, experts = zip(*each, strict=True)
        return FunctionNames(full, terms, blocks, experts)

    @property
    def layout(self) -> ParamLayout:
        """Constants, then the varying functions at the tabulated points."""
        index = str(self.design.names.index)
        return build_layout(self.names, self.problem.const, self.points_shown(4), index)

    def points_shown(self, digits: int) -> tuple[str, ...]:
        """Index values of the tabulated points, in digits in which no two grid points look alike."""
        grid = told_apart(self.problem.windows.shown.tolist(), digits)
        return tuple(grid[g] for g in self.points)

    def covariance(self, fit: EMFit, kind: str, **options: Any) -> ParamCov:
        """Sandwich covariance of the constants and of the functions at the tabulated points.

        Parameters
        ----------
        fit : EMFit
        kind : {"robust", "cluster"}
        **options
            ``correction=False`` leaves out the small-sample correction.

        Returns
        -------
        ParamCov
            NaN for functions of the gate that are infinite somewhere.
        """
        checked_kind(kind)
        for name in options:
            if name == "cluster":
                raise ArgumentError(
                    f"cluster={options[name]!r} belongs to the model of a VCMoE, whose bands and folds use it too; "
                    "fit it with mm.fit(..., cluster='column')"
                )
            if name != "correction":
                raise ArgumentError(f"cov_type={kind!r} has no option {name!r}; it has 'correction'")
        correction = options.get("correction", True)
        if not isinstance(correction, bool | np.bool_):
            raise ArgumentError(f"correction must be True or False, got {correction!r}")
        if kind == "cluster" and self.clusters is None:
            raise ArgumentError("cov_type='cluster' needs the clusters, got None; pass cluster= to VCMoE or mm.fit")
        clusters = self.clusters if kind == "cluster" else None
        notes = [] if clusters is None else [f"{n_clusters(clusters)} clusters"]
        matrix = point_covariance(self.problem, self.coef, self.points, clusters, bool(correction))
        unit = "row" if clusters is None else "cluster"
        vary = ~self.problem.const
        of = "" if vary.all() else " of the functions"
        notes += [f"small-sample correction{of} by the leverage of each {unit}"] if correction and vary.any() else []
        jacobian = _reported_slopes(self.problem, self.coef, self.points)
        matrix = matrix * np.outer(jacobian, jacobian)
        own: CovType = "robust" if clusters is None else "cluster"
        infinite = np.tile(self.infinite.astype(float), (len(self.coef), 1))
        blank = np.flatnonzero(_pick(self.problem, infinite, self.points)).tolist()
        # Probabilities are finite where a coefficient is not.
        bounded = matrix if blank else None
        return ParamCov(without_parameters(matrix, blank), own, "; ".join(notes), bool(correction), bounded)

    @property
    def infinite(self) -> NDArray[np.bool_]:
        """Which functions run off to infinity where the gate leaves an expert no rows, (L,)."""
        return infinite_gate(self.problem, self.coef, own_natural(self.problem, self.coef))

    def gate_points(self) -> tuple[GatePoint, ...]:
        """The gate at the tabulated index values, with the places of its coefficients among the parameters."""
        slots, const, n_points = self.problem.slots, self.problem.const, len(self.points)
        first = np.where(const, np.cumsum(const) - 1, const.sum() + n_points * (np.cumsum(~const) - 1))
        shape = (slots.n_experts - 1, slots.n_gate_columns)
        return tuple(
            GatePoint(
                float(self.problem.windows.shown[g]),
                self.coef[g, 0, slots.gates].reshape(shape),
                np.asarray((first + np.where(const, 0, j))[slots.gates].reshape(shape), dtype=np.intp),
            )
            for j, g in enumerate(self.points)
        )

    def reordered(self, places: IntArray) -> "FittedVCMoE":
        """The same model with experts in another order.

        Parameters
        ----------
        places : ndarray of int, shape (K,)
            Present place of each new expert, from 0.
        """
        coef = permute_experts(self.problem.slots, self.coef, places)
        marks = permute_experts(self.problem.slots, self.problem.const.astype(float), places) != 0.0
        problem = replace(self.problem, const=marks)
        settings = {**self.settings, "functions": coef.tolist()}
        return replace(self, coef=coef, problem=problem, settings=settings)

    @property
    def n_units(self) -> int:
        """Independent units: clusters, or rows."""
        return self.nobs if self.clusters is None else n_clusters(self.clusters)

    @property
    def nobs(self) -> int:
        """Number of rows of the data that are used."""
        return self.problem.rows.n

    @property
    def weight_scale(self) -> float:
        """Factor of the weights by which they sum to the effective number of rows ``(sum w)^2 / sum w^2`` (Kish 1965).

        With it differences of log-likelihoods have the size that standard errors over rows give them, whatever the
        units of the weights (Rao and Scott 1984; Lumley and Scott 2015).
        """
        weights = self.problem.rows.weights
        return float(weights.sum() / (weights**2).sum())

    def refuse_tests(self) -> str | None:
        """Why the number of experts cannot be tested, None if it can."""
        if self.clusters is None:
            return None
        return (
            "rows of a cluster are not independent, and the model cannot draw them; where clusters are few, have them "
            "as a term, const(group), instead of cluster=; of kinds of whole clusters, a MEMoE with re: has a test"
        )

    def estimated(self, fit: EMFit) -> Estimated:
        """The fit as tests of the number of experts need it."""
        return Estimated(self.n_experts, self.coef, fit.loglik)

    def estimate(
        self,
        experts: int,
        n_starts: int,
        rng: np.random.Generator,
        start: Estimated | None = None,
        response: Array | None = None,
    ) -> Estimated:
        """The maximum for any number of experts and another response, see `mixmoe.families.HasExperts`."""
        problem = self._with_experts(experts)
        if response is not None:
            problem = with_response(problem, response[self.data.order], self.settings["sigma_floor"])
        values = None if start is None else start.values
        same = None if start is None or start.experts < experts else values
        smaller = values if same is None else None
        where = From(n_starts > 0, same, smaller)
        run = maximise(problem, Control(n_starts=n_starts), rng, where, self.settings["estimate"])
        return Estimated(experts, run.coef, run.loglik)

    def _with_experts(self, experts: int) -> Problem:
        if experts == self.n_experts:
            return self.problem
        slots = replace(self.problem.slots, n_experts=experts)
        s = self.settings
        width = float(s["bandwidth"] if s["span"] is None else s["span"])
        const = constant_slots(self.design, slots, s["dispersion"], width, s["gate_bandwidth"])
        return with_experts(self.problem, experts, const, self.settings["sigma_floor"])

    def drawn(self, estimated: Estimated, rng: np.random.Generator) -> Array:
        """A response drawn from the model at some estimates, shape (n,) in the order of the design."""
        out = np.empty(self.problem.rows.n)
        out[self.data.order] = draw_responses(self._with_experts(estimated.experts), estimated.values, rng)
        return out

    def reclassified(self, fit: EMFit, rng: np.random.Generator) -> IntArray:
        """Most probable expert of every row after a refit to a resample of rows or clusters; empty on failure."""
        units = np.arange(self.problem.rows.n) if self.clusters is None else self.clusters
        run = run_around_means(with_cluster_draw(self.problem, units, rng), self.coef, REFIT)
        if not run.converged:
            return np.zeros(0, dtype=np.intp)
        natural = own_natural(self.problem, run.coef)
        unit = posterior(self.problem.rows.with_weights(np.ones(self.problem.rows.n)), self.problem.family, natural)
        labels = np.empty(self.problem.rows.n, dtype=np.intp)
        labels[self.data.order] = unit.weighted.argmax(axis=0)
        return labels

    @property
    def searched(self) -> bool:
        """Whether a bandwidth was cross-validated."""
        return self.selection is not None or self.gate_selection is not None

    def values(self, derivative: int) -> Array:
        """Levels or derivatives by the index of all functions at the grid points, (G, L)."""
        return self.coef[:, 1] / self.problem.bandwidths if derivative else self.coef[:, 0]

    def record(self, run: Run, control: Control, starts: int) -> EMFit:
        """The fit as the base of the results wants it, responsibilities in the order of the design."""
        natural = own_natural(self.problem, run.coef)
        post = posterior(self.problem.rows, self.problem.family, natural)
        index_name = str(self.design.names.index)
        effective = post.weighted * self.weight_scale
        flags = find_flags(self.problem, run, natural, effective, control, index_name, self.clusters)
        best = run.candidates[0] if len(run.candidates) else run.loglik
        return EMFit(
            params=reported_values(self.problem, run.coef, self.points),
            loglik=run.loglik,
            trace=run.trace,
            n_iter=len(run.trace) - 1,
            n_evaluations=len(run.trace),
            converged=run.converged,
            responsibilities=self.memberships(natural),
            starts=Starts(starts, run.candidates, int((run.candidates > best - 0.5).sum())),
            flags=(*flags, *self.gate_flags(run.coef, natural)),
        )

    def gate_flags(self, coef: Array, natural: Natural) -> tuple[Flag, ...]:
        """Flags of gates that separate experts, or whose cells could exchange their labels."""
        found = (
            separation_flag(self.design, self.data.order, self.problem, coef, natural),
            label_flag(self.design, self.data.order, self.problem, natural),
        )
        return tuple(flag for flag in found if flag is not None)

    def memberships(self, natural: Natural) -> Array:
        """Responsibilities at given predictors, (n, K), in the order of the design."""
        rows, out = self.problem.rows, np.empty((self.problem.rows.n, self.n_experts))
        out[self.data.order] = posterior(rows.with_weights(np.ones(rows.n)), self.problem.family, natural).weighted.T
        return out


def checked_kind(kind: str) -> CovType:
    """`kind` if it is a covariance that this family has.

    Raises
    ------
    ArgumentError
    """
    if kind not in ("robust", "cluster"):
        raise ArgumentError(
            f"cov_type must be 'robust' or 'cluster' for VCMoE, got {kind!r}; kernel weights make the inverse "
            "information no covariance, and bands(method='bootstrap') offers the bootstrap"
        )
    return checked_cov_type(kind)


def build_layout(names: FunctionNames, const: NDArray[np.bool_], at: Sequence[str], index: str) -> ParamLayout:
    """Layout of the reported parameters: constants, then functions at index values."""
    made = []
    for slot in np.flatnonzero(const):
        tested = names.blocks[slot] != "residual"
        made.append(Parameter(names.full[slot], names.blocks[slot], names.terms[slot], names.experts[slot], tested))
    for slot in np.flatnonzero(~const):
        tested = names.blocks[slot] != "residual"
        for u in at:
            mark = f"({index}={u})"
            full, term = names.full[slot] + mark, names.terms[slot] + mark
            made.append(Parameter(full, names.blocks[slot], term, names.experts[slot], tested))
    return ParamLayout(tuple(made))


def tabulated_points(windows: Windows, rows: Rows) -> IntArray:
    """Grid points closest to quantiles of the index, of a circle to its quarters, in ascending order of the index."""
    wanted = np.arange(4) * 0.25 * rows.period if rows.period else np.quantile(rows.index, QUANTILES)
    points = np.abs(wrapped(windows.grid[:, None] - wanted, rows.period)).argmin(axis=0)
    found = np.unique(points)
    return found[np.argsort(windows.shown[found])]


def _pick(problem: Problem, levels: Array, points: IntArray) -> Array:
    """Levels (G, L) in the order of the layout."""
    const = np.flatnonzero(problem.const)
    vary = np.flatnonzero(~problem.const)
    return np.concatenate([levels[0, const], levels[np.ix_(points, vary)].T.ravel()])


def reported_values(problem: Problem, coef: Array, points: IntArray) -> Array:
    """Reported parameters: dispersions themselves instead of their logs or log odds."""
    levels = coef[:, 0].copy()
    levels[:, problem.slots.dispersions] = shown_dispersion(problem.family, levels[:, problem.slots.dispersions])
    return _pick(problem, levels, points)


def _reported_slopes(problem: Problem, coef: Array, points: IntArray) -> Array:
    """Derivatives of the reported parameters by the levels."""
    slopes = np.ones_like(coef[:, 0])
    slopes[:, problem.slots.dispersions] = shown_slope(problem.family, coef[:, 0, problem.slots.dispersions])
    return _pick(problem, slopes, points)


def point_covariance(
    problem: Problem, coef: Array, points: IntArray, clusters: IntArray | None, correction: bool
) -> Array:
    """Covariance of the levels in the order of the layout, on the scale of the functions.

    Without constants only the tabulated points are needed; with them the whole grid, through which the constants depend
    on all rows.
    """
    const, vary = np.flatnonzero(problem.const), np.flatnonzero(~problem.const)
    if problem.gate_windows is not problem.windows:
        process = level_process(problem, coef, "none", clusters, correction)
        return _select(_seen(process.covariance, process.noise), problem, const, vary, points)
    inner, centring = centred(problem)
    start, whole = centring.inwards(inner.slots, coef), len(const) > 0
    local = build_local(inner, 1, points=None if whole else points)
    found = maximise_bounded(local, local_start(local, start if whole else start[points]))
    fit, held = found.fit, found.held(inner.slots)
    power = small_sample_power(correction, clusters, problem.slots.n_experts)
    inf = influence(local, fit.coef, power, (), clusters, held)
    matrix = level_covariance(inf, clusters, correction).matrix
    matrix = matrix + added_covariance(inner, lambda k: influence(local, fit.coef, 0.0, held=held, added=k))
    shape = (len(fit.coef), inner.slots.n)
    covariance = turned_covariance(matrix.reshape(*shape, *shape), centring.matrix(inner.slots))
    return _select(_seen(covariance, inf.noise), problem, const, vary, points if whole else np.arange(len(points)))


def _seen(covariance: Array, noise: Array) -> Array:
    """Covariance (G, L, G, L) with NaN where the information behind a level is noise, see `NOISY`."""
    out, unknown = covariance.copy(), noise > NOISY
    out[unknown], out[:, :, unknown] = np.nan, np.nan
    return out


def _select(covariance: Array, problem: Problem, const: IntArray, vary: IntArray, rows: IntArray) -> Array:
    """Entries of a covariance of all levels in the order of the layout."""
    positions = np.concatenate([const, (rows[None, :] * problem.slots.n + vary[:, None]).ravel()]).astype(np.intp)
    flat = covariance.reshape(covariance.shape[0] * covariance.shape[1], -1)
    return flat[np.ix_(positions, positions)]
