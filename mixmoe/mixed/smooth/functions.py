"""The penalised functions of a MEMoE, what is written for them, and where their coefficients lie in the free vector."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array, IntArray
from mixmoe.design.design import Design, SmoothColumns
from mixmoe.design.formula import MoEFormula, Part
from mixmoe.design.formulaic_engine import name_of
from mixmoe.design.terms import category_argument, code_of, is_intercept, uses_of
from mixmoe.errors import FormulaError
from mixmoe.mixed.parameters import Coordinates, FreeVector, Structure, build_layout
from mixmoe.mixture.estimate import ParamLayout


def with_functions(formula: MoEFormula) -> MoEFormula:
    """The formula without ``vary:``, each coefficient that is not in ``const(...)`` as ``s(index, by=column)``.

    Gate coefficients vary too where each row is a unit of its own; of subjects, whose index changes, they are constant.

    Raises
    ------
    FormulaError
        If it has terms ``s(...)`` besides.
    """
    by_row = formula.random is None
    gate = formula.gate if by_row else tuple(replace(part, kind="free") for part in formula.gate)
    return replace(
        formula,
        expert=_spelled(formula, formula.expert),
        gate=_spelled(formula, gate) if by_row else _joined(gate),
        vary=None,
    )


def _spelled(formula: MoEFormula, parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Parts with a function in the place of each coefficient that varies."""
    free: list[str] = []
    common: list[str] = []
    for part in parts:
        for term in part.terms:
            if "s" in uses_of(term).calls:
                raise FormulaError(
                    f"the term {name_of(term)!r} stands beside vary:, which makes each coefficient a function of its "
                    "index; write s(...) for each function and leave vary: out, or put constants into const(...)",
                    formula.text,
                )
            if part.kind == "const":
                free.append("1" if is_intercept(term) else name_of(term))
            else:
                if is_intercept(term):  # for the coding of categories, which leaves out their first level beside it
                    free.append("1")
                (common if part.kind == "common" else free).append(_function(term, str(formula.vary)))
    made = [Part(" + ".join(free), "free", False)] if free else []
    return (*made, *([Part(" + ".join(common), "common", False)] if common else []))


def _function(term: object, index: str) -> str:
    """The function in the place of the coefficient of a term."""
    if is_intercept(term):
        return f"s({index}, by=1, whole='Intercept')"
    code = code_of(term)
    column = category_argument(code)
    return f"s({index}, by={code if column is None else column}, whole={name_of(term)!r})"


def _joined(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Parts of one kind as one."""
    intercept = parts[0].intercept and parts[0].kind == "free"
    return (Part(" + ".join(part.text for part in parts), "free", intercept),)


COARSE, COARSEST = 3, 1  # penalised columns of the bases on which starts are searched; they are the smoothest


@dataclass(frozen=True, slots=True)
class Function:
    """One function of one expert or log odds, with a smoothing parameter of its own.

    Attributes
    ----------
    name : str
        ``expert1.s(time)``, ``common.s(time)``, ``gate2.s(age)``.
    columns : SmoothColumns
    expert : int or None
        From 1; None if shared.
    where : ndarray of int, shape (c,)
        Its coefficients among the reported parameters.
    """

    name: str
    columns: SmoothColumns
    expert: int | None
    where: IntArray

    @property
    def rank(self) -> int:
        """Penalised coefficients."""
        return int(self.columns.penalised.sum())

    @property
    def index(self) -> str:
        """The index as the formula has it."""
        return self.columns.arguments["x"]

    @property
    def centred(self) -> bool:
        """Whether the intercept has its level."""
        return not self.columns.term.by

    def basis(self, u: Array) -> Array:
        """Values of its columns at index values, shape (n, c), without the multiplier of ``by=``."""
        term = self.columns.term
        return np.asarray((term.columns(u) - term.means[self.columns.level])[:, self.columns.of])


def functions_of(design: Design, structure: Structure) -> tuple[Function, ...]:
    """The penalised functions of a design, expert by expert, then those that are shared, then those of the gate."""
    where, experts = structure.reported, range(1, structure.n_experts + 1)
    in_experts = [c for c in design.smooths if c.section == "expert"]
    in_gate = [c for c in design.smooths if c.section == "gate"]
    own = [(k, c) for k in experts for c in in_experts if not c.common]
    return (
        *(Function(f"expert{k}.{c.name}", c, k, where.beta[k - 1, c.columns]) for k, c in own),
        *(Function(f"common.{c.name}", c, None, where.beta[0, c.columns]) for c in in_experts if c.common),
        *(Function(f"gate{k}.{c.name}", c, k, where.gate[k - 2, c.columns]) for k in experts[1:] for c in in_gate),
    )


def layout_of(design: Design, structure: Structure) -> ParamLayout:
    """Names of the reported parameters; coefficients of functions are a block of their own."""
    layout = build_layout(structure, design.names)
    inside = {int(i) for f in functions_of(design, structure) for i in f.where}
    parameters = (replace(p, block="smooth") if i in inside else p for i, p in enumerate(layout.parameters))
    return ParamLayout(tuple(parameters))


@dataclass(frozen=True, slots=True)
class Geometry:
    """The free vector in the user's coefficients.

    Attributes
    ----------
    basis : ndarray, shape (P, P)
        Columns are the changes of the free vector with each coefficient; further parameters are themselves.
    inverse : ndarray, shape (P, P)
    places : tuple of ndarray of int
        Coefficients of each function, by their column of `basis`.
    penalised : tuple of ndarray of int
        Those of them that are penalised.
    """

    basis: Array
    inverse: Array
    places: tuple[IntArray, ...]
    penalised: tuple[IntArray, ...]

    @property
    def ranks(self) -> Array:
        """Penalised coefficients of each function."""
        return np.array([float(len(at)) for at in self.penalised])

    @property
    def directions(self) -> Array:
        """Changes of the free vector with the penalised coefficients of all functions, shape (P, M)."""
        return self.basis[:, np.concatenate(self.penalised)]

    @property
    def owners(self) -> IntArray:
        """Function of each penalised coefficient, shape (M,)."""
        return np.repeat(np.arange(len(self.penalised)), [len(at) for at in self.penalised])

    def root(self, lambdas: Array) -> Array:
        """R with R'R the penalty matrix, shape (M, P)."""
        rows = self.inverse[np.concatenate(self.penalised)]
        return np.sqrt(lambdas[self.owners])[:, None] * rows

    def penalty(self, lambdas: Array) -> Array:
        """S with ``1/2 theta'S theta`` the penalty, shape (P, P)."""
        root = self.root(lambdas)
        return root.T @ root

    def squares(self, theta: Array) -> Array:
        """Squared penalised coefficients of each function."""
        b = self.inverse[np.concatenate(self.penalised)] @ theta
        return np.asarray(np.bincount(self.owners, weights=b * b, minlength=len(self.penalised)), dtype=float)


def geometry_of(functions: Sequence[Function], free: FreeVector, structure: Structure, c: Coordinates) -> Geometry:
    """Where the coefficients of functions lie."""
    basis = np.eye(free.size)
    for beta in free.beta:
        basis[np.ix_(beta, beta)] = c.expert / c.scale
    m = structure.n_gate
    starts = free.gate.start + m * np.arange(structure.n_experts - 1)
    for start in starts:
        basis[start : start + m, start : start + m] = c.gate
    places = []
    for f in functions:
        if f.columns.section == "gate":
            places.append(starts[int(f.expert or 0) - 2] + f.columns.columns)
        else:
            places.append(free.beta[(f.expert or 1) - 1, f.columns.columns])
    penalised = tuple(at[f.columns.penalised] for at, f in zip(places, functions, strict=True))
    # A change of basis is wanted, not a solution.
    return Geometry(basis, np.asarray(np.linalg.inv(basis), dtype=float), tuple(places), penalised)


def uncentred(c: Coordinates, design: Design) -> Coordinates:
    """Coordinates whose origin has no part in functions, so that penalties, those of tests too, are quadratic forms."""
    center = c.center.copy()
    for smooth in design.smooths:
        if smooth.section == "expert":
            center[smooth.columns] = 0.0
    return replace(c, center=center)


def coarse_columns(design: Design, section: str, penalised: int) -> IntArray:
    """Columns of a section with as many of each function, the smoothest, as are `penalised`, and those that are not."""
    width = design.expert.shape[1] if section == "expert" else design.gate.shape[1]
    left = np.ones(width, dtype=bool)
    for smooth in design.smooths:
        if smooth.section == section:
            left[smooth.columns[smooth.penalised][penalised:]] = False
    return np.flatnonzero(left)


def coarse_design(design: Design, penalised: int = COARSE) -> Design:
    """The design with a coarse basis for each function, without penalties; see `coarse_columns`."""
    x, w = (coarse_columns(design, section, penalised) for section in ("expert", "gate"))
    names = replace(
        design.names,
        expert=tuple(design.names.expert[j] for j in x),
        gate=tuple(design.names.gate[j] for j in w),
    )
    kept = {name: _left(design.recipe.kept[name], at) for name, at in (("expert", x), ("gate", w))}
    return replace(
        design,
        expert=design.expert[:, x],
        gate=design.gate[:, w],
        common=design.common[x],
        expert_const=design.expert_const[x],
        gate_const=design.gate_const[w],
        names=names,
        recipe=replace(design.recipe, kept={**design.recipe.kept, **kept}),
        smooths=(),
    )


def _left(kept: NDArray[np.bool_], columns: IntArray) -> NDArray[np.bool_]:
    """Which of all built columns are kept when only some of those that were stay."""
    left = np.zeros_like(kept)
    left[np.flatnonzero(kept)[columns]] = True
    return left
