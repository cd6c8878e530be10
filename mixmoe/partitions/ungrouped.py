"""The design of partitioned data whose rows are units of their own: columns of all rows, gathered into files.

1. Survey, as of subjects: what transforms and codings must know of all rows, and a random sample of the rows.
2. Columns of all rows, in the order of the data. Which of them others make superfluous is found in these.

Columns are those that the design of all rows in memory has, but for the rounding of merged means.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array, IntArray
from mixmoe.design.aliases import aliases, independent
from mixmoe.design.design import Design, check_index, replay
from mixmoe.design.formula import MoEFormula
from mixmoe.design.recipe import Recipe, make_recipe
from mixmoe.errors import DesignError
from mixmoe.partitions.gathered import RUN_ROWS, on_disk, rows_of_part
from mixmoe.partitions.scan import ROWS_AT_ONCE, Partitions
from mixmoe.partitions.survey import Source, rowwise, surveyed


@dataclass(frozen=True, slots=True)
class Ungrouped:
    """A design of partitioned data without subjects.

    Attributes
    ----------
    design : Design
        Of all rows, in the order of the data; its arrays lie in files, its frame holds the rows of the sample only.
    sample : Design
        Of a random sample of the rows, in the order of the data.
    source : Source
    """

    design: Design
    sample: Design
    source: Source


def gathered_rows(
    formula: MoEFormula,
    data: Partitions,
    context: Mapping[str, Any] | None,
    aux: Mapping[str, str],
    check: Callable[[Design], None],
) -> Ungrouped:
    """The design of partitioned data, in two passes.

    Parameters
    ----------
    formula : MoEFormula
        Without subjects.
    data : Partitions
    context : mapping or None
    aux : mapping of str to str
        Columns beside the formula, by argument.
    check : callable
        Refuses rows of a part; picklable.

    Raises
    ------
    DesignError
        If the data do not fit the formula, or a term cannot be computed from partitions.

    Warns
    -----
    DroppedRowsWarning, CollinearityWarning
    """
    recipe = rowwise(make_recipe(formula, context, "formulaic", "numeric", aux, True))
    found, made, source = surveyed(recipe, data)
    recipe = made.recipe
    every = replay(recipe, found.sample, response=True)
    columns = _columns(recipe, source, every, found.n, check)
    check_index(columns["index"], str(every.names.index))
    kept = {name: independent(name, aliases(columns[name]), getattr(every.names, name)) for name in ("expert", "gate")}
    sample = replay(replace(recipe, kept={**recipe.kept, **kept}), found.sample, response=True)
    place = np.arange(found.n)
    design = replace(
        sample,
        response=columns["response"],
        expert=columns["expert"] if kept["expert"].all() else columns["expert"][:, kept["expert"]],
        gate=columns["gate"] if kept["gate"].all() else columns["gate"][:, kept["gate"]],
        random=np.empty((found.n, 0)),
        sigma=np.empty((found.n, 0)),
        index=columns["index"],
        codes=place,
        starts=place,
        labels=columns["position"],
        rows=pd.Index(columns["position"], copy=False),
        position=columns["position"],
        aux={name: columns[f"aux {name}"] for name in recipe.aux},
        dropped=found.dropped,
        n_input=found.n_input,
    )
    return Ungrouped(design, sample, source)


def _columns(
    recipe: Recipe, source: Source, sample: Design, n: int, check: Callable[[Design], None]
) -> dict[str, NDArray[Any]]:
    """Columns of all rows in files; clusters as codes in the order of their labels."""
    shapes = {"expert": (n, sample.expert.shape[1]), "gate": (n, sample.gate.shape[1])}
    floats = [name for name in recipe.aux if name != "cluster"]
    out = {name: on_disk(shapes.get(name, (n,))) for name in ("response", "expert", "gate", "index")}
    out |= {f"aux {name}": on_disk((n,)) for name in floats}
    out["position"] = on_disk((n,), np.intp)
    clusters: dict[Any, int] = {}
    codes = np.zeros(n if "cluster" in recipe.aux else 0, dtype=np.intp)
    at = first = 0
    task = partial(rows_of_part, recipe=recipe, types=source.types, check=check)
    for found in source.data.mapped(task, source.columns, ROWS_AT_ONCE):
        part, before, first = found.design, first, first + found.n_input
        if part is None:
            continue
        to, at = slice(at, at + part.n), at + part.n
        if at > n:
            break
        for name in ("response", "expert", "gate", "index"):
            out[name][to] = getattr(part, name)
        for name in floats:
            out[f"aux {name}"][to] = part.aux[name]
        out["position"][to] = before + part.position
        if codes.size:
            labels, own = np.unique(part.aux["cluster"], return_inverse=True)
            codes[to] = np.array([clusters.setdefault(label, len(clusters)) for label in labels])[own]
    if at != n:
        raise DesignError("rows count in this pass that did not in the one before; the data have changed, fit again")
    if "cluster" in recipe.aux:
        out["aux cluster"] = np.argsort(np.argsort(np.array(list(clusters), dtype=object), kind="stable"))[codes]
    return out


def taken_to_files(values: Array, rows: IntArray) -> Array:
    """Some rows of an array, in a file."""
    out = on_disk((len(rows), *values.shape[1:]), values.dtype)
    for start in range(0, len(rows), RUN_ROWS):
        some = slice(start, start + RUN_ROWS)
        out[some] = values[rows[some]]
    return out
