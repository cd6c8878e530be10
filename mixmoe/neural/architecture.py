"""The network that a design and a family of responses ask for."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

from mixmoe.design.checks import level_scores
from mixmoe.design.design import Design
from mixmoe.design.recipe import ResponseKind
from mixmoe.errors import ArgumentError
from mixmoe.neural.batches import Scaling
from mixmoe.neural.network import Network, build_network, chain_shapes, checked_hidden
from mixmoe.neural.own_modules import check_module, wrap_module
from mixmoe.neural.response_law import NUMBERS, Family

WIDTHS = (10,)  # of the hidden layers


def checked_widths(hidden: Any, network: Any) -> tuple[int, ...]:
    """Widths of the hidden layers, those of a network of one's own being its own affair.

    Raises
    ------
    ArgumentError
        If they are no sequence, or given beside a network.
    """
    if network is not None:
        if hidden is not None:
            raise ArgumentError(f"hidden={hidden!r} says nothing about a network of your own; leave one of them out")
        return ()
    return checked_hidden(WIDTHS if hidden is None else hidden)


def architecture(
    design: Design, family: Family, scaling: Scaling, hidden: tuple[int, ...], activation: str, module: Any
) -> Network:
    """The network that a design and a family ask for."""
    n_in, levels = len(scaling.columns), len(design.response_levels or ())
    n_out = {"multiclass": levels - 1, "crf": levels}.get(family, 1)
    if not n_in and (hidden or module is not None):
        what = f"a network with hidden={hidden}" if module is None else f"network {type(module).__name__}"
        raise ArgumentError(f"{what} needs inputs, but the formula has none; add terms, or use hidden=()")
    behind = chain_shapes(levels if family == "crf" else 0, len(scaling.gate_columns))
    if family in ("negbinomial", "heteroscedastic"):
        behind.append(("scale", (1 + len(scaling.scale_mean),)))
    if family == "ordinal" and levels > 2:
        behind.append(("steps", (levels - 2,)))
    if module is not None:
        check_module(module)
        found = wrap_module(deepcopy(module).double(), n_in, n_out, behind, scaling.inputs(design.expert))
    else:
        found = build_network(n_in, n_out, hidden, activation, behind)
    scores = level_scores(design.response_levels or ()).tolist() if family == "ordinal" else []
    return replace(found, has_offset=scaling.has_offset, scores=tuple(scores))


def response_kind(family: Family) -> ResponseKind:
    """How the response is read from the data."""
    if family == "ordinal":
        return "ordinal"
    return "numeric" if family in NUMBERS else "categorical"
