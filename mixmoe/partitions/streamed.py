"""The design of partitioned data, in two passes.

1. Survey: levels of categories, means, ranges and quantiles that transforms need, missing values, and the rows of a
   random sample of subjects. From levels and sample comes the recipe, by which any rows become columns.
2. Moments: cross-products of each subject's columns, which add over rows, so that a subject may be spread over
   partitions; triangles of all rows, for redundant columns and working coordinates.

Likelihoods that no cross-products give need a third pass, see `mixmoe.partitions.gathered`.

Columns are those that the design of all rows in memory has, but for the rounding of merged means.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.design.aliases import aliases, check_effects, dependent, independent
from mixmoe.design.complete_rows import Dropped
from mixmoe.design.design import Design, DesignNames, check_design_sizes, check_largest, offset_of, replay
from mixmoe.design.formula import MoEFormula
from mixmoe.design.frame import shown
from mixmoe.design.recipe import Recipe, ResponseKind, make_recipe
from mixmoe.errors import DesignError
from mixmoe.partitions.moments import BySubject, Sums, accumulate, reference_of
from mixmoe.partitions.scan import Partitions
from mixmoe.partitions.survey import Source, coded, group_of, rowwise, surveyed

_VARIES = 1e-9  # of the largest value, as in designs in memory


@dataclass(frozen=True, slots=True)
class StreamedDesign:
    """What is known of the design of partitioned data: all but the rows, of which it has a sample.

    Attributes
    ----------
    formula : MoEFormula
    names : DesignNames
    recipe : Recipe
    n, n_input : int
        Rows that count, and those of the data.
    dropped : Dropped
    counts : ndarray of int, shape (N,)
        Rows of each subject.
    labels : Index, length N
        Of the subjects, sorted.
    gate : ndarray, shape (N, m)
    common, expert_const : ndarray of bool, shape (p,)
    gate_const : ndarray of bool, shape (m,)
    sample : Design
        Of all rows of some subjects, drawn at random.
    witnesses : DataFrame
        Rows that hold a level of a category first, which the sample may lack.
    states : mapping of str to mapping
        Of the transforms in all rows, by the code of their calls.
    aux : mapping of str to ndarray, shape (N,)
        Of ``"cluster"``, if there are clusters, that of each subject.
    """

    formula: MoEFormula
    names: DesignNames
    recipe: Recipe
    n: int
    n_input: int
    dropped: Dropped
    counts: NDArray[np.intp]
    labels: pd.Index
    gate: Array
    common: NDArray[np.bool_]
    expert_const: NDArray[np.bool_]
    gate_const: NDArray[np.bool_]
    sample: Design
    witnesses: pd.DataFrame = field(repr=False)
    states: Mapping[str, Mapping[str, Any]] = field(repr=False)
    aux: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    smooths: tuple[Any, ...] = ()

    @property
    def response_levels(self) -> tuple[Any, ...] | None:
        """Levels of an ordinal response."""
        return self.recipe.levels

    @property
    def n_units(self) -> int:
        """Subjects."""
        return len(self.counts)

    @property
    def places_of_sample(self) -> NDArray[np.intp]:
        """The subjects of the sample among all."""
        return self.labels.get_indexer(pd.Index(self.sample.labels))

    @property
    def n_uncounted(self) -> int:
        """Complete rows that were left out because their weight is zero."""
        return self.n_input - self.dropped.n_rows - self.n

    def with_recipe(self, recipe: Recipe) -> "StreamedDesign":
        """The design by another recipe of the same columns of experts and gate, as one that keeps fewer of others."""
        sample = replay(recipe, self.sample.frame, response=True)
        return replace(self, recipe=recipe, sample=sample, names=sample.names)

    def for_new(self, data: Any, *, response: bool = False, without: Any = ()) -> Design:
        """The same columns from other data, see `Design.for_new`."""
        return self.sample.for_new(data, response=response, without=without)


@dataclass(frozen=True, slots=True)
class Streamed:
    """A design of partitioned data, and what its likelihood is made of.

    Attributes
    ----------
    design : StreamedDesign
    sums : Sums
    source : Source
    """

    design: StreamedDesign
    sums: Sums
    source: Source


def stream(
    formula: MoEFormula,
    data: Partitions,
    context: Mapping[str, Any] | None,
    aux: Mapping[str, str],
    gaussian: bool = True,
    spread: bool = False,
    response: ResponseKind = "numeric",
) -> Streamed:
    """The design of partitioned data, in two passes.

    Parameters
    ----------
    formula : MoEFormula
    data : Partitions
    context : mapping, optional
        Functions, which must be ufuncs or `numpy.vectorize`d, and constants that the formula may use.
    aux : mapping of str to str
        Columns of offset, weights and clusters.
    gaussian : bool
        Whether the response is normal, see `mixmoe.partitions.moments.accumulate`.
    spread : bool
        Whether cross-products may stay with the workers of a cluster.
    response : {"numeric", "ordinal"}

    Raises
    ------
    DesignError
        If the data do not fit the formula, or a term cannot be computed from partitions.

    Warns
    -----
    DroppedRowsWarning, CollinearityWarning
    """
    recipe = rowwise(make_recipe(formula, context, "formulaic", response, aux, True, smooths=True))
    group = group_of(recipe)
    found, made, source = surveyed(recipe, data)
    near = replay(made.recipe, found.sample, response=True)
    check_design_sizes(near)
    y = np.asarray(near.response) - offset_of(near)
    reference = reference_of(y, near.expert, near.random)
    # Labels of several types have an order in pandas only, not one by which they could be cut elsewhere.
    spread = spread and not pd.api.types.infer_dtype(near.labels).startswith("mixed")
    sums = accumulate(made.recipe, source, reference, gaussian, near.labels if spread else None)
    check_largest(sums.largest)
    counts = sums.subjects.sums[0].astype(np.intp)
    check_effects(near.names.random, dependent(*_triangles(sums.random, sums.reference.random)), int(counts.max()))
    gate = _baseline(sums.subjects, made.built.names["gate"], group)
    expert = dependent(*_triangles(sums.expert[:, :-1], sums.reference.expert, sums.shifted))
    kept = {
        **made.recipe.kept,
        "expert": independent("expert", expert, made.built.names["expert"]),
        "gate": independent("gate", aliases(gate), made.built.names["gate"]),
    }
    recipe = replace(made.recipe, kept=kept)
    sample = replay(recipe, found.sample, response=True)
    design = StreamedDesign(
        formula=formula,
        names=sample.names,
        recipe=recipe,
        n=int(counts.sum()),
        n_input=found.n_input,
        dropped=found.dropped,
        counts=counts,
        labels=sums.subjects.labels,
        gate=gate if kept["gate"].all() else gate[:, kept["gate"]],
        common=sample.common,
        expert_const=sample.expert_const,
        gate_const=sample.gate_const,
        sample=sample,
        witnesses=found.witnesses,
        states=found.transforms(),
        aux=_aux_of(sums.subjects.clusters),
    )
    return Streamed(design, sums, source)


def _triangles(R: Array, reference: Array, shifted: Array | None = None) -> tuple[Array, Array]:
    """Triangles of the columns near zero, and of the columns as they are, from that of the columns near a reference."""
    written = R @ reference
    size = np.sqrt((written * written).sum(axis=0))
    size[size == 0] = 1.0
    # The product of the small matrices first: they cancel, so that the digits of the rows are not touched.
    return R @ (reference if shifted is None else reference @ shifted) / size, written / size


def _baseline(subjects: BySubject, names: tuple[str, ...], group: str) -> Array:
    """The gate columns of each subject, shape (N, m), after checking that they are constant there."""
    for name, values, away in zip(names, subjects.first, subjects.away, strict=True):
        varies = away > _VARIES * np.abs(values).max()
        if varies.any():
            i = int(varies.argmax())
            raise DesignError(
                f"the gate covariate {name!r} varies within subject {shown(subjects.labels[i])}, by {away[i]:g} from "
                f"her first row on; the gate routes whole subjects, so it must be constant within {group!r}; use a "
                f"baseline value in all rows, or move {name!r} to the expert part"
            )
    return np.column_stack(subjects.first) if names else np.empty((len(subjects.labels), 0))


def _aux_of(clusters: pd.Index | None) -> dict[str, NDArray[Any]]:
    return {} if clusters is None else {"cluster": np.asarray(clusters)}


def units_of(design: StreamedDesign) -> pd.DataFrame:
    """Label, number of rows, gate columns and cluster of each subject, as files hold them."""
    gate = {f"gate{j}": column for j, column in enumerate(design.gate.T)}
    return pd.DataFrame({"label": design.labels, "rows": design.counts, **gate, **design.aux})


@dataclass(frozen=True, slots=True)
class Kept:
    """What a file holds of a streamed design.

    Attributes
    ----------
    rows : DataFrame
        Witnesses, then the sample.
    units : DataFrame
        See `units_of`.
    dropped : Dropped
    known : mapping
        Numbers of rows, columns that are kept, states of transforms, and how many rows are witnesses.
    """

    rows: pd.DataFrame
    units: pd.DataFrame
    dropped: Dropped
    known: Mapping[str, Any]


def restored(
    formula: MoEFormula,
    saved: Kept,
    context: Mapping[str, Any] | None,
    aux: Mapping[str, str],
    response: ResponseKind = "numeric",
) -> StreamedDesign:
    """The design of a saved fit from what its file holds; other parameters as in `stream`."""
    known = saved.known
    # Clusters are known of subjects, and rows need none of them.
    of_rows = {name: column for name, column in aux.items() if name != "cluster"}
    recipe = rowwise(make_recipe(formula, context, "formulaic", response, of_rows, True))
    n_witnesses = int(known["n_witnesses"])
    witnesses, rows = saved.rows.iloc[:n_witnesses], saved.rows.iloc[n_witnesses:]
    made = coded(recipe, witnesses, rows, known["states"])
    kept = {name: np.array(mask, dtype=bool) for name, mask in known["kept"].items()}
    recipe = replace(made.recipe, kept=kept)
    sample = replay(recipe, rows, response=True)
    gate = saved.units.filter(regex="^gate").to_numpy(dtype=float)
    return StreamedDesign(
        formula=formula,
        names=sample.names,
        recipe=recipe,
        n=int(known["n"]),
        n_input=int(known["n_input"]),
        dropped=saved.dropped,
        counts=saved.units["rows"].to_numpy(dtype=np.intp),
        labels=pd.Index(saved.units["label"], name=None),
        gate=gate,
        common=sample.common,
        expert_const=sample.expert_const,
        gate_const=sample.gate_const,
        sample=sample,
        witnesses=witnesses,
        states=known["states"],
        aux=_aux_of(pd.Index(saved.units["cluster"]) if "cluster" in saved.units else None),
    )
