"""Coefficients that vary along an index, ``vary: time``, as penalised functions of it."""

from dataclasses import replace

from mixmoe.design.formula import MoEFormula, Part
from mixmoe.design.formulaic_engine import category_argument, code_of, holds_smooth, is_intercept, name_of, parse_terms
from mixmoe.errors import FormulaError


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
        for term in parse_terms(part.text, part.intercept):
            if holds_smooth(term):
                raise FormulaError(
                    f"the term {name_of(term)!r} stands beside vary:, which makes each coefficient a function of its "
                    "index; write s(...) for each function and leave vary: out, or put constants into const(...)",
                    formula.text,
                )
            if part.kind == "const":
                free.append("1" if is_intercept(term) else name_of(term))
            else:
                (common if part.kind == "common" else free).append(_function(term, str(formula.vary)))
    constant = "1" in free
    made = [Part(" + ".join(free) or "0", "free", False)] if free or constant else []
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
