"""Sections of a formula evaluated by patsy, for users who bring its transforms."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import patsy
from numpy.typing import NDArray

from mixmoe.design.expressions import NUMBER, floating, makes_categories, number, rewritten
from mixmoe.design.formulaic_engine import Categories, Materialized, Specs
from mixmoe.design.terms import EXTRA_FUNCTIONS, Term, category_argument
from mixmoe.errors import DesignError

_KEEP_MISSING = patsy.NAAction(NA_types=[])
# What terms of a user may raise while they are computed.
_FAILURES = (
    patsy.PatsyError,
    ValueError,
    TypeError,
    KeyError,
    NameError,
    AttributeError,
    ArithmeticError,
    MemoryError,
)
_FUNCTIONS: Mapping[str, Any] = {
    "np": np,
    "log": np.log,
    "log10": np.log10,
    "log2": np.log2,
    "exp": np.exp,
    **EXTRA_FUNCTIONS,
}


def parse_terms(text: str, intercept: bool = True) -> tuple[Term, ...]:
    """Terms of one section, ordered by degree.

    Raises
    ------
    DesignError
        If patsy cannot parse `text`.
    """
    try:
        terms = patsy.ModelDesc.from_formula(text if intercept else f"0 + {text}").rhs_termlist
    except patsy.PatsyError as error:
        first = str(error).strip().split("\n", 1)[0]
        raise DesignError(f"patsy cannot read {text!r} ({first}); use engine='formulaic'") from error
    return tuple(sorted(terms, key=degree))


class _InFloats(patsy.EvalFactor):
    """Patsy's factor, but computed in double precision, and with lags as columns of the data."""

    def __init__(self, factor: Any, columns: Collection[str]) -> None:
        super().__init__(rewritten(factor.code, {}, lambda name: name in columns), factor.origin)
        self._as_written = factor.name()

    def name(self) -> str:
        """The code as the user wrote it."""
        return str(self._as_written)

    def _eval(self, code: str, memorize_state: Any, data: Any) -> Any:
        if not makes_categories(self._as_written):
            data = {name: floating(data[name]) for name in data}
        return super()._eval(code, memorize_state, data)


def _computed(terms: Sequence[Term], columns: Collection[str]) -> list[Term]:
    """The terms as they are evaluated."""
    return [patsy.desc.Term([_InFloats(factor, columns) for factor in term.factors]) for term in terms]


def degree(term: Term) -> int:
    """Number of factors of a term; 0 for the intercept."""
    return len(term.factors)


def name_of(term: Term) -> str:
    """A term as messages show it."""
    return str(term.name())


def materialize(
    frame: pd.DataFrame, sections: Mapping[str, Sequence[Term]], context: Mapping[str, Any]
) -> Materialized:
    """Matrices of all sections, as `mixmoe.design.formulaic_engine.materialize` returns them."""
    env = patsy.EvalEnvironment([{**_FUNCTIONS, NUMBER: number, **context}])
    used = {name: _computed(terms, frame.columns) for name, terms in sections.items() if terms}
    try:
        with np.errstate(all="ignore"):
            infos = patsy.build.design_matrix_builders(
                list(used.values()), lambda: iter([frame]), env, NA_action=_KEEP_MISSING
            )
    except _FAILURES as error:
        raise _explained(error) from error
    return _run(frame, dict(zip(used, infos, strict=True)), sections)


def rematerialize(
    frame: pd.DataFrame, specs: Specs, sections: Mapping[str, Sequence[Term]], context: Mapping[str, Any]
) -> Materialized:
    """Matrices of new data, as `rematerialize` of the other engine returns them; patsy keeps `context` in `specs`."""
    return _run(frame, {name: specs[name] for name, terms in sections.items() if terms}, sections)


def _run(frame: pd.DataFrame, infos: Mapping[str, Any], sections: Mapping[str, Sequence[Term]]) -> Materialized:
    try:
        with np.errstate(all="ignore"):
            matrices = patsy.build_design_matrices(list(infos.values()), frame, NA_action=_KEEP_MISSING)
    except _FAILURES as error:
        raise _explained(error) from error
    arrays = {
        name: np.broadcast_to(np.asarray(matrix, dtype=np.float64), (len(frame), matrix.shape[1]))
        for name, matrix in zip(infos, matrices, strict=True)
    }
    # Patsy drops nothing here: a row missing in one section is left out of all, as with the other engine.
    missing = {name: np.isnan(array).any(axis=1) for name, array in arrays.items()}
    bad = np.logical_or.reduce([np.zeros(len(frame), dtype=bool), *missing.values()])
    return Materialized(
        matrices={
            name: np.ascontiguousarray(arrays[name][~bad]) if name in infos else np.empty((int((~bad).sum()), 0))
            for name in sections
        },
        names={name: tuple(infos[name].column_names) if name in infos else () for name in sections},
        owners={name: owners_of(infos[name], terms) if name in infos else () for name, terms in sections.items()},
        numeric={name: name not in infos or _is_numeric(infos[name]) for name in sections},
        bad_rows=np.flatnonzero(bad),
        bad_terms=_bad_terms(arrays, infos) if bad.any() else (),
        specs=dict(infos),
    )


def known_categories(specs: Specs) -> tuple[Categories, ...]:
    """Columns used as categories, as `mixmoe.design.formulaic_engine.known_categories` returns them."""
    found: dict[str, Categories] = {}
    for info in specs.values():
        for factor, state in info.factor_infos.items():
            code = factor.name()
            column = code if code.isidentifier() else category_argument(code)
            if column is not None and state.type == "categorical":
                found[column] = Categories(column, tuple(state.categories))
    return tuple(found.values())


def owners_of(info: Any, terms: Sequence[Term]) -> tuple[int, ...]:
    """For each column of a section the position of its term."""
    owners = [0] * len(info.column_names)
    place = {term.name(): i for i, term in enumerate(terms)}
    for term, columns in info.term_slices.items():
        for column in range(columns.start, columns.stop):
            owners[column] = place[term.name()]
    return tuple(owners)


def _is_numeric(info: Any) -> bool:
    return all(factor.type == "numerical" for factor in info.factor_infos.values())


def _bad_terms(arrays: Mapping[str, NDArray[np.float64]], infos: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    counts: dict[str, int] = {}
    for name, info in infos.items():
        for term, columns in info.term_slices.items():
            count = int(np.isnan(arrays[name][:, columns]).any(axis=1).sum())
            if count:
                counts[term.name()] = count
    return tuple(counts.items())


def _explained(error: Exception) -> DesignError:
    message = str(error).strip().split("\n", 1)[0]
    if "does not match any of the expected levels" in message:
        named = message.removeprefix("Error converting data to categorical: ")
        return DesignError(
            f"the data contain a category that the fit has not seen: {named}; "
            "only categories of the original data have coefficients; drop these rows or refit with them"
        )
    return DesignError(
        f"a term of the formula cannot be computed by patsy: {message}; check the term and the type of its columns"
    )
