"""NMoE: formula, data and structure of a mixture of networks with person effects."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.arguments import checked_choice, checked_count, checked_positive, checked_rng
from mixmoe.design.beside import cluster_codes, with_columns
from mixmoe.design.design import Design, build_design, column_terms
from mixmoe.design.formula import MoEFormula, parse_formula, refuse_several
from mixmoe.design.terms import inputs_of_network
from mixmoe.errors import (
    ArgumentError,
    BoundaryWarning,
    ConvergenceWarning,
    DegeneracyWarning,
    FormulaError,
    MixmoeWarning,
)
from mixmoe.families import FamilySpec
from mixmoe.inference.uncertainty import ParamCov, within_clusters, without_parameters
from mixmoe.loading import restored
from mixmoe.mixture.estimate import EMFit, Flag, ParamLayout, seeded, warn_flags
from mixmoe.neural.blocks import load_torch, one_thread, to_array, torch
from mixmoe.neural.mixture.likelihood import (
    Problem,
    Rows,
    evaluate,
    information,
    log_prior,
    responsibilities,
    unit_scores,
)
from mixmoe.neural.mixture.network_parameters import (
    Body,
    Scales,
    Sharing,
    Structure,
    columns_of,
    free,
    reported,
    scales_of,
)
from mixmoe.neural.mixture.network_search import Found, off_singular, searched, split_start
from mixmoe.neural.mixture.results import NMoEResults
from mixmoe.neural.network import ACTIVATIONS, checked_hidden
from mixmoe.numerics.optimise import Control
from mixmoe.output.saved import SavedFit

WIDTHS = (6,)  # of the hidden layers
STARTS = 12  # random ones for each expert beyond the first
KINDS = ("nonrobust", "robust", "cluster")
FEW_UNITS = 5  # for each coefficient beside the networks, below which a sandwich over them is rough
SINGULAR = 1e-8  # of one, by which a correlation may miss it
LACKS: Mapping[str, str] = {
    "HasExperts": "each refit of networks would need random starts of its own and may end at another maximum; compare "
    "numbers of experts by bic, with mixmoe.select",
    "HasLikelihood": "the weights of hidden layers are not regular, so that none can be held; the standard errors are "
    "those of the information",
    "HasGate": "its gate may hold a network; plot('gate') shows what covariates do to the probabilities",
    "HasTerms": "the weights of hidden layers are no coefficients of terms; plot('effects') shows what inputs do",
    "HasErrorCovariance": "its errors have no serial correlation",
    "PersonalLayers": "experts that are networks have random effects of columns: write re: (1 | id), which is the bias "
    "of the last layer, or slopes as in re: (1 + x | id)",
    "Partitions": "its networks need all rows in memory",
    "weights": "each row counts once; leave out rows that shall not count",
    "offset": "responses are Gaussian; subtract it from the response",
    "trials": "responses are Gaussian, one number in each row",
    "time": "its errors have no serial correlation, so that rows of a subject have no order",
    "family": "the exact likelihood is that of Gaussian responses; for others use functions s(...) instead of nn(...)",
}


class NMoE:
    """Mixture of networks with person effects.

    Each subject belongs to one of K experts; a softmax gate on baseline covariates, linear or a network, gives the
    probabilities, and each expert is a network with random effects::

        P(C_i = k | w_i) = softmax_k(g_k(w_i)),  g_1 = 0
        y_i | C_i = k  ~  N(f_k(X_i), Z_i D_k Z_i' + sigma_k^2 I)

    Parameters
    ----------
    formula : str
        ``"y ~ nn(x1, x2) + x3 | gate: nn(z) | re: (1 | id)"``. ``nn(...)`` is a network of columns of numbers, one in
        the experts and one in the gate at most; other terms are linear beside it. ``re: (1 + time | id)`` are random
        effects as of `MEMoE`, a double bar gives uncorrelated ones and ``(0 | id)`` none; without ``re:`` each row is
        a unit. Gate covariates are constant within subjects.
    data : DataFrame (pandas, or what narwhals reads: polars, pyarrow ...) or mapping of columns
    experts : int
        Number of experts, K.
    hidden : tuple of int, or mapping of "experts" and "gate" to one, optional
        Widths of the hidden layers, by default ``(6,)``; ``()`` for none: the network is then linear and the model that
        of `MEMoE`.
    activation : str
        ``tanh``, ``relu``, ``elu``, ``gelu``, ``silu``, ``softplus`` or ``sigmoid``.
    body : {"expert", "common"}
        Own hidden layers per expert, or one set for all with a linear head per expert.
    cov_re : {"expert", "common"}
        Own covariance of the random effects per expert, or one for all.
    residual : {"expert", "common"}
        Own residual standard deviation per expert, or one for all.
    weight_decay : float, optional
        Ridge penalty on the weights of networks with hidden layers, per row, as of `NME`. By default they have a
        standard normal prior on the scale of standardised inputs and response.
    cluster : str, array or Series, optional
        What holds several subjects that are not independent, as a school its children: each subject lies in one. The
        estimates stay; standard errors are by default those of a sandwich over the clusters.
    context : mapping, optional
        Functions and constants the formula may use.
    formula_engine : {"formulaic", "patsy"}

    Raises
    ------
    MissingExtraError
        If torch is not installed.
    FormulaError, DesignError, ArgumentError

    Notes
    -----
    Maximum of the observed-data likelihood, in which memberships and random effects are integrated out exactly, plus
    the log prior of the weights (of the hidden layers, and of the linear heads on them): random starts side by side, a
    quasi-Newton ascent of the best, Newton steps at the end, gradients by automatic differentiation. ``llf`` and the
    criteria that follow from it are of the log-likelihood without the prior and charge all weights. Single weights are
    not identified (hidden units may be exchanged, and change their sign): tables show what is, `curves` the functions.
    Standard errors are those of the information with the prior, which the delta method carries to functions.

    References
    ----------
    Jacobs, Jordan, Nowlan & Hinton (1991), Neural Computation 3, 79-87. Yue, Yan, Han & Fu (2026), arXiv:2603.07479.
    MacKay (1992), Neural Computation 4, 448-472, for the prior and the covariance. Friedman (2001), Annals of
    Statistics 29, 1189-1232, section 8.2, for partial dependence.
    """

    spec = FamilySpec(
        name="NMoE",
        title="A mixture of networks with person effects: each subject belongs to one expert; a softmax gate on "
        "baseline covariates gives the probabilities, and each expert is a network with random effects.",
        estimation="Maximum of the exact observed-data likelihood with a normal prior of the weights: quasi-Newton "
        "ascents from random starts, then Newton steps.",
        asked_by="formulas with a network nn(...)",
        section="networks",
        listed=("cov_re", "residual", "body", "activation"),
        packages=("torch",),
        lacks=LACKS,
    )

    def __init__(
        self,
        formula: str | MoEFormula,
        data: Any,
        experts: int = 2,
        *,
        hidden: Any = WIDTHS,
        activation: str = "tanh",
        body: Sharing = "expert",
        cov_re: Sharing = "expert",
        residual: Sharing = "expert",
        weight_decay: float | None = None,
        cluster: Any = None,
        context: Mapping[str, Any] | None = None,
        formula_engine: str = "formulaic",
    ) -> None:
        self.formula = checked_formula(formula)
        self.n_experts = checked_count(experts, "experts")
        for value, name in ((body, "body"), (cov_re, "cov_re"), (residual, "residual")):
            checked_choice(value, name, get_args(Sharing))
        checked_choice(activation, "activation", ACTIVATIONS)
        widths = checked_widths(hidden)
        if weight_decay is not None:
            checked_positive(weight_decay, "weight_decay")
        data, columns = with_columns(data, {"cluster": cluster})
        load_torch()  # what is wrong with the call is told first, as torch would not mend it
        self.design: Design = build_design(
            self.formula,
            data,
            context=context,
            engine=formula_engine,  # type: ignore[arg-type]
            networks=True,
            aux={name: column for name, column in columns.items() if column is not None},
        )
        self.clusters: NDArray[np.int64] | None = None if cluster is None else cluster_codes(self.design)
        check_rows(self.design)
        expert, gate = (network_columns(self.design, section, widths[section]) for section in ("expert", "gate"))
        self.columns = {"expert": expert[0], "gate": gate[0]}
        random = self.formula.random
        self.structure = Structure(
            n_experts=self.n_experts,
            terms=expert[2],
            gate_terms=gate[2],
            random=self.design.names.random,
            body=Body(expert[1], widths["expert"]) if expert[1] else None,
            gate_body=Body(gate[1], widths["gate"]) if gate[1] and self.n_experts > 1 else None,
            bodies=body,
            correlated=random is not None and random.correlated,
            cov_re=cov_re,
            residual=residual,
            group=self.design.names.group,
        )
        self.layout: ParamLayout = self.structure.layout
        self.scales: Scales = scales_of(self.design, *self._parts(self.design), correlated=self.structure.correlated)
        precision = 1.0 if weight_decay is None else 2.0 * self.design.n * float(weight_decay)
        self.problem = Problem(self.structure, self.scales, self.rows_of(self.design), activation, precision)
        self.settings: Mapping[str, Any] = {
            "experts": self.n_experts,
            "hidden": {"experts": list(widths["expert"]), "gate": list(widths["gate"])},
            "activation": activation,
            "body": body,
            "cov_re": cov_re,
            "residual": residual,
            "weight_decay": weight_decay,
            **columns,
            "formula_engine": formula_engine,
        }

    def __repr__(self) -> str:
        return f"<NMoE {self.formula.text!r}, {self.n_experts} experts, {len(self.layout.names)} parameters>"

    def _parts(self, design: Design) -> tuple[Array, Array, Array, Array]:
        """Linear columns of experts and gate, and inputs of their networks; zero where a section was left out."""
        x, w = self.columns["expert"], self.columns["gate"]
        X = design.expert if design.expert.shape[1] == x.size else np.zeros((design.n, x.size))
        W = design.gate if design.gate.shape[1] == w.size else np.zeros((design.n_units, w.size))
        return X[:, ~x], W[:, ~w], X[:, x], W[:, w]

    def rows_of(self, design: Design) -> Rows:
        """Rows of a design, of this model, on the scale of the network."""
        c, (X, W, inputs, gate_inputs) = self.scales, self._parts(design)
        y = None if design.response is None else (np.asarray(design.response, dtype=float) - X @ c.center) / c.response
        Z = design.random if design.random.shape[1] == len(c.random) else np.zeros((design.n, len(c.random)))
        arrays = (
            X @ np.linalg.inv(c.expert),
            (inputs - c.inputs[0]) / c.inputs[1],
            Z @ np.linalg.inv(c.random),
            W @ np.linalg.inv(c.gate),
            (gate_inputs - c.gate_inputs[0]) / c.gate_inputs[1],
            design.codes,
        )
        return Rows(None if y is None else torch.as_tensor(y), *map(torch.as_tensor, arrays))

    def fit(
        self,
        *,
        starts: int | None = None,
        start: Any = None,
        max_iter: int = 500,
        tol: float = 1e-6,
        rng: Any = None,
        cov_type: str | None = None,
        progress: bool | None = None,
    ) -> NMoEResults:
        """Estimates, their covariance and what they say of the subjects.

        Parameters
        ----------
        starts : int, optional
            Random starts; 12 for each expert beyond the first, 4 of one expert. The best quarter, four at least, is
            carried to the end, and `summary` says how many of these reached the best value.
        start : NMoEResults, Series or ndarray, optional
            Parameters from which a further start sets out, or a fit with one expert fewer, whose first one is split.
        max_iter : int
            Quasi-Newton iterations.
        tol : float
            Largest entry of the score per subject at which a fit has converged.
        rng : int, numpy.random.Generator or None
        cov_type : {"nonrobust", "robust", "cluster"}, optional
            Inverse information with the prior, or the sandwich over subjects, or over clusters of them; by default
            ``"cluster"`` if the model has clusters, else ``"nonrobust"``.
        progress : bool, optional

        Returns
        -------
        NMoEResults

        Warns
        -----
        ConvergenceWarning, DegeneracyWarning, BoundaryWarning
            Also in ``results.flags``.
        """
        kind = ("nonrobust" if self.clusters is None else "cluster") if cov_type is None else cov_type
        checked_kind(kind)
        if kind == "cluster":
            self.clusters_of(None)  # that there are none is told before the search
        plain = self.structure.body is None and self.structure.gate_body is None and self.n_experts == 1
        usual = 1 if plain else STARTS * max(self.n_experts - 1, 1)
        n_starts = checked_count(usual if starts is None else starts, "starts", least=0 if start is not None else 1)
        control = Control(
            max_iter=checked_count(max_iter, "max_iter"), tol=checked_positive(tol, "tol"), progress=progress
        )
        generator = checked_rng(rng)
        first = None if start is None else self._start(start, generator)
        found = searched(self.problem, n_starts, generator, control, first)
        fit = seeded(self.record(found), rng, starts)
        warn_flags(fit.flags, WARNINGS)
        cov = self.covariance(fit, kind)
        return NMoEResults(self, fit, cov)

    def _start(self, given: Any, rng: np.random.Generator) -> Array:
        """Free parameters from what a user gives: parameters, a fit of this model, or one with one expert fewer."""
        fewer = isinstance(given, NMoEResults) and given.model.n_experts == self.n_experts - 1
        if fewer and replace(given.model.structure, n_experts=self.n_experts, gate_body=None) == replace(
            self.structure, gate_body=None
        ):
            theta = given.model.free(given.em.params)
            return split_start(self.problem, given.model.structure, theta, rng)
        return self.free(checked_start(self.layout, given))

    def record(self, found: Found) -> EMFit:
        """The outcome of a search as an estimate, in the units of the data."""
        shift = self.design.n * np.log(self.scales.response)
        theta = off_singular(self.structure, found.theta)
        penalty = float(log_prior(self.problem, torch.as_tensor(theta)))
        params = self.natural(theta)
        ends = [self.layout.names[i] for i in self.at_end(params)]
        carried = responsibilities(self.problem, theta)
        told = data_flags(self.structure, self.design, carried)
        if ends:
            fact = (
                f"the covariance of the random effects is singular, {', '.join(ends)} lying at the end of the space, "
                "where there is no standard error; the others are estimated as if the direction were known to be zero"
            )
            told = (*told, Flag("boundary", fact, "use fewer or uncorrelated random effects, or cov_re='common'"))
        return EMFit(
            params=params,
            loglik=found.value - penalty - shift,
            penalty=penalty,
            trace=found.trace - shift,
            n_iter=len(found.trace),
            n_evaluations=found.n_evaluations,
            converged=found.converged,
            responsibilities=carried,
            starts=replace(found.starts, logliks=found.starts.logliks - shift, ends=found.starts.ends - shift),
            flags=(*found.flags, *told),
        )

    def natural(self, theta: Array) -> Array:
        """Reported parameters of free ones."""
        return np.asarray(to_array(reported(self.structure, self.scales, torch.as_tensor(theta))))

    def free(self, params: Array) -> Array:
        """Free parameters of reported ones."""
        return free(self.structure, self.scales, np.asarray(params, dtype=float))

    def at_end(self, params: Array) -> list[int]:
        """Positions of standard deviations of zero and correlations of one or minus one, or of such effects."""
        found = []
        for i, p in enumerate(self.layout.parameters):
            correlation = p.block == "random" and p.tested
            if (correlation and not abs(params[i]) < 1 - SINGULAR) or (p.block == "random" and params[i] == 0):
                found.append(i)
        return found

    def slopes(self, theta: Array) -> Array:
        """Derivatives of the reported parameters in the free ones, shape (P, P); NaN at an end of the space."""
        made = torch.func.jacrev(lambda point: reported(self.structure, self.scales, point))
        found = np.array(to_array(made(torch.as_tensor(theta))))
        found[self.at_end(self.natural(theta))] = np.nan
        return found

    def inverse(self, theta: Array) -> Array:
        """Inverse information of the free parameters, zero in directions of no random effect, shape (P, P)."""
        H, kept = information(self.problem, theta), np.ones(theta.size, dtype=bool)
        kept[self.structure.diagonal[theta[self.structure.diagonal] == 0]] = False
        values, vectors = np.linalg.eigh(H[np.ix_(kept, kept)])
        # At a maximum none is negative; rounding may say otherwise where weights say nothing, as of unused inputs.
        inverse = (vectors / np.maximum(values, 1e-10 * values.max())) @ vectors.T
        out = np.zeros_like(H)
        out[np.ix_(kept, kept)] = inverse
        return out

    def covariance(self, fit: EMFit, kind: str, **options: Any) -> ParamCov:
        """Covariance of the estimates of `fit`.

        Parameters
        ----------
        fit : EMFit
        kind : {"nonrobust", "robust", "cluster"}
        **options
            ``cluster=``, of the last one, names a column that the fit uses or gives the cluster of each row of the
            data, by default the clusters of the model.

        Returns
        -------
        ParamCov
        """
        checked_kind(kind)
        unknown = sorted(set(options) - ({"cluster"} if kind == "cluster" else set()))
        if unknown:
            raise ArgumentError(f"cov_type={kind!r} of NMoE has no option {unknown[0]!r}; leave it out")
        clusters = self.clusters_of(options.get("cluster")) if kind == "cluster" else None
        with one_thread():
            theta = self.free(fit.params)
            inverse, jacobian = self.inverse(theta), self.slopes(theta)
            lost = np.flatnonzero(np.isnan(jacobian).any(axis=1))
            if kind != "nonrobust":
                pulls = within_clusters(unit_scores(self.problem, theta) @ inverse, clusters)
                inverse = pulls.T @ pulls
        matrix = np.nan_to_num(jacobian) @ inverse @ np.nan_to_num(jacobian).T
        has_prior = self.structure.body is not None or self.structure.gate_body is not None
        word, n_units = "subjects", self.design.n_units
        if clusters is not None:
            word, n_units = "clusters", int(clusters.max()) + 1
        flags = few_units(self.structure, n_units, word) if kind != "nonrobust" else ()
        if kind != "nonrobust" and n_units <= theta.size:
            lost = np.arange(theta.size)
        warn_flags(flags, WARNINGS)
        notes = [f"{n_units} clusters"] if clusters is not None else []
        notes += ["with the prior of the weights"] if has_prior else []
        found = without_parameters(matrix, lost.tolist())
        return ParamCov(found, kind, "; ".join(notes), flags=flags)  # type: ignore[arg-type]

    def clusters_of(self, given: Any) -> NDArray[np.int64]:
        """Cluster of each subject, shape (N,), by a column or values of the rows; by those of the model if None."""
        return cluster_codes(self.design, given)

    def loglik_of(self, params: Array, design: Design) -> float:
        """Log-likelihood of the responses of a design at reported parameters."""
        problem = replace(self.problem, rows=self.rows_of(design))
        theta = self.free(params)
        whole = float(evaluate(problem, theta[None]).loglik[0]) - float(log_prior(problem, torch.as_tensor(theta)))
        return whole - design.n * float(np.log(self.scales.response))

    @classmethod
    def from_saved(cls, saved: SavedFit, context: Mapping[str, Any] | None) -> NMoEResults:
        """Results of a saved fit."""
        model = cls(saved.formula, saved.data, context=context, **saved.settings)
        model.design = restored(model.design, saved)
        return NMoEResults(model, saved.fit, saved.cov)


WARNINGS: Mapping[str, type[MixmoeWarning]] = {
    "not_converged": ConvergenceWarning,
    "not_replicated": ConvergenceWarning,
    "interrupted": ConvergenceWarning,
    "degenerate": DegeneracyWarning,
    "boundary": BoundaryWarning,
    "few_subjects": MixmoeWarning,
    "one_row": MixmoeWarning,
    "small_expert": DegeneracyWarning,
}


_ORDER = "; lag(x) goes by the rows as they stand, so sort these by subject and time"


def checked_formula(formula: Any) -> MoEFormula:
    """A parsed formula that this family can fit.

    Raises
    ------
    FormulaError
        If it has sections or marks of other families.
    """
    parsed = formula if isinstance(formula, MoEFormula) else parse_formula(formula)
    for section, there in (("vary", parsed.vary), ("seq", parsed.seq), ("sigma", parsed.sigma)):
        if there:
            raise FormulaError(
                f"a mixture of networks nn(...) has no section '{section}:'; leave it out, and let nn(...) have its "
                f"columns as inputs{_ORDER if section == 'seq' else ''}",
                parsed.text,
                max(parsed.text.find(section), 0),
                len(section) + 1,
            )
    for part in (*parsed.expert, *parsed.gate):
        if part.kind != "free":
            raise FormulaError(f"NMoE has no {part.kind}(...); write the terms without it", parsed.text)
    refuse_several(parsed)
    return parsed


def checked_widths(hidden: Any) -> dict[str, tuple[int, ...]]:
    """Widths of the hidden layers by section of the design.

    Raises
    ------
    ArgumentError
    """
    if not isinstance(hidden, Mapping):
        both = checked_hidden(hidden)
        return {"expert": both, "gate": both}
    unknown = set(hidden) - {"experts", "gate"}
    if unknown:
        raise ArgumentError(f"hidden has widths for 'experts' and 'gate', got {sorted(map(str, unknown))[0]!r}")
    return {"expert": checked_hidden(hidden.get("experts", WIDTHS)), "gate": checked_hidden(hidden.get("gate", WIDTHS))}


def network_columns(design: Design, section: str, hidden: Sequence[int]) -> Any:
    """Which columns of a section are inputs of its network with hidden layers, their names and those of the others.

    Raises
    ------
    FormulaError
        If the section has more than one network.
    """
    # As formulaic reads them, whatever computes the columns.
    parts = design.formula.expert if section == "expert" else design.formula.gate
    terms = [term for part in parts for term in part.terms]
    inside = {str(term): inputs for term in terms if (inputs := inputs_of_network(term)) is not None}
    if len(inside) > 1:
        raise FormulaError(
            f"the formula has the networks {', '.join(inside)} in one section; write one with all inputs",
            design.formula.text,
        )
    return columns_of(getattr(design.names, section), column_terms(design, section), inside, hidden)


def check_rows(design: Design) -> None:
    """Refuse data that cannot tell random effects from residuals, and responses that do not vary.

    Raises
    ------
    ArgumentError
    """
    y = np.asarray(design.response, dtype=float)
    if np.ptp(y) == 0:
        raise ArgumentError(
            f"the response {design.names.response!r} is {y[0]:g} in all {design.n} rows, so that there is nothing to "
            "explain; correct it, or choose another response"
        )
    if design.names.random and int(design.counts.max()) == 1:
        raise ArgumentError(
            f"each subject has one row, which cannot tell random effects from residuals; write re: (0 | "
            f"{design.names.group}), or leave re: out"
        )


def data_flags(structure: Structure, design: Design, responsibilities: Array) -> tuple[Flag, ...]:
    """Flags of subjects that tell little of their random effects, and of an expert that few subjects carry."""
    flags, single = [], int((design.counts == 1).sum())
    if single and structure.random:
        fact = f"{single} of {design.n_units} subjects have one row, which tells little of their random effects"
        flags.append(Flag("one_row", fact))
    # Weights of hidden layers have a prior; coefficients and heads are what an expert of few subjects runs after.
    own = len(structure.terms) + (structure.body.n_features if structure.body is not None else 0)
    size = responsibilities.sum(axis=0)
    if structure.n_experts > 1 and size.min() <= own + 1:
        k = int(size.argmin())
        fact = f"expert {k + 1} is carried by {size[k]:.1f} subjects for {own} coefficients and weights of its head"
        flags.append(Flag("small_expert", f"{fact}: it may describe outliers, not a group", "use fewer experts"))
    return tuple(flags)


def few_units(structure: Structure, n: int, word: str) -> tuple[Flag, ...]:
    """The flag of a sandwich over so few subjects or clusters that it is no covariance, or a rough one.

    Parameters
    ----------
    structure : Structure
    n : int
        Units.
    word : str
        What they are.
    """
    needed = max(len(structure.terms), len(structure.gate_terms))
    if n <= structure.size:  # their scores sum to zero
        fact = (
            f"the scores of {n} {word} have a rank below the {structure.size} parameters: a sandwich of them is not a "
            "covariance, and there are no standard errors"
        )
        return (Flag("few_subjects", fact, "use cov_type='nonrobust', which trusts the model, or smaller networks"),)
    if n >= FEW_UNITS * needed:
        return ()
    fact = (
        f"there are only {n} {word} for {needed} coefficients, fewer than {FEW_UNITS} for each, which makes them rough"
    )
    return (Flag("few_subjects", fact, "use a smaller model, or compare with cov_type='nonrobust'"),)


def checked_kind(kind: str) -> None:
    """Refuse covariances that there are not.

    Raises
    ------
    ArgumentError
    """
    if kind not in KINDS:
        raise ArgumentError(
            f"NMoE has standard errors of kind 'nonrobust', 'robust' and 'cluster', got {kind!r}: resampled networks "
            "exchange their hidden units, and may end at other maxima; use one of these"
        )


def checked_start(layout: ParamLayout, given: Any) -> Array:
    """Reported parameters, shape (P,), from what a user gives.

    Raises
    ------
    ArgumentError
    """
    values = np.asarray(getattr(given, "params", given), dtype=float)
    if values.shape != (len(layout.names),) or not np.isfinite(values).all():
        raise ArgumentError(
            f"start must have {len(layout.names)} finite values, one per parameter, or be another fit of the model, "
            f"with as many experts or one fewer, got shape {values.shape}"
        )
    return values
