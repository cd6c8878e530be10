"""Which parameters of a network differ between persons: layers, tensors and columns by the names in ``re:``."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixmoe._typing import IntArray
from mixmoe.errors import FormulaError
from mixmoe.neural.network import BEHIND, SHARED_ONLY, Network, TensorSpec

LAST_COLUMNS = re.compile(r"last\[.*\]")  # of a linear network, by name


@dataclass(frozen=True, slots=True)
class Personal:
    """Which entries of the flat vector differ between persons.

    Attributes
    ----------
    tensors : tuple of TensorSpec
        Personal tensors, in the order of the network.
    index : ndarray of int, shape (q,)
        Their entries in the flat vector; column k of the effects belongs to entry ``index[k]``.
    group : ndarray of int, shape (q,)
        Number of the tensor that each column belongs to.
    """

    tensors: tuple[TensorSpec, ...]
    index: IntArray
    group: IntArray

    @property
    def q(self) -> int:
        """Personal parameters per person."""
        return len(self.index)

    def columns(self, name: str) -> slice | None:
        """Columns of the effects that belong to a tensor; None if it is shared by all."""
        for k, spec in enumerate(self.tensors):
            if spec.name == name:
                start, stop = np.searchsorted(self.group, (k, k + 1))
                return slice(int(start), int(stop))
        return None

    def places(self, spec: TensorSpec) -> IntArray:
        """Personal entries of a personal tensor, counted within it: all, or those of the columns that `re:` names."""
        return self.index[self.columns(spec.name)] - spec.start


def layer_words(network: Network) -> tuple[str, ...]:
    """Names that may stand left of the bar in ``re:``."""
    names = [spec.name for spec in network.tensors if spec.name not in SHARED_ONLY]
    if network.module is not None:
        own = [f"layer[{k + 1}]" for k in range(len(own_layers(network)))]
        return tuple(dict.fromkeys(("first", "last", "all", "bias", *own, *names)))
    layers = [f"layer[{k + 1}]" for k in range(network.depth)]
    words = ["first", "last", "all", "bias", *layers, *names]
    return tuple(dict.fromkeys(words))


def match_layer(network: Network, word: str) -> set[str]:
    """Names of the tensors that one word stands for; empty if none."""
    names = [spec.name for spec in network.tensors if spec.name not in SHARED_ONLY]
    own = [name for name in names if name != "transitions"]
    if network.module is not None:
        pattern = re.compile(re.escape(word).replace(r"\*", ".*") + r"(\..*)?")
        found = {name for name in names if pattern.fullmatch(name)}
        if found:
            return found
    if word == "all":
        return set(own)
    if word == "bias":
        return {name for name in own if name.split(".")[-1] == "bias"}
    if network.module is not None:
        return own_layer(network, word)
    word = {"first": "layer1", "last": f"layer{network.depth}"}.get(word, word)
    word = re.sub(r"layer\[(\d+)\]", r"layer\1", word)
    return {name for name in names if name == word or name.startswith(word + ".")}


def own_layers(network: Network) -> list[set[str]]:
    """Tensors of a user's module by the part that holds them, in the order in which the module registers these."""
    layers: dict[str, set[str]] = {}
    for spec in network.tensors:
        if spec.name not in BEHIND:
            layers.setdefault(spec.name.rpartition(".")[0], set()).add(spec.name)
    return list(layers.values())


def own_layer(network: Network, word: str) -> set[str]:
    """Tensors of the layer of a user's module that is meant by ``first``, ``last`` or ``layer[k]``; empty if none."""
    layers = own_layers(network)
    number = re.fullmatch(r"layer\[(\d+)\]", word)
    place = {"first": 1, "last": len(layers)}.get(word, int(number.group(1)) if number else 0)
    return layers[place - 1] if 1 <= place <= len(layers) else set()


def select_personal(
    network: Network,
    words: Sequence[str],
    formula: str | None = None,
    inputs: Mapping[str, Sequence[int]] | None = None,
) -> Personal:
    """The personal part of a network from layer names.

    Parameters
    ----------
    network : Network
    words : sequence of str
        ``first``, ``last``, ``all``, ``bias``, ``layer[k]`` (counted from 1), full tensor names, ``transitions``,
        ``last[1, x]``.
    formula : str, optional
        For the error message.
    inputs : mapping, optional
        Places of the inputs that a name stands for, where the last layer sees inputs of the formula.

    Raises
    ------
    FormulaError
        For a name that stands for no tensor; lists the known ones.
    """
    chosen: set[str] = set()
    entries: set[int] = set()
    for word in words:
        if LAST_COLUMNS.fullmatch(word):
            entries |= last_entries(network, word, inputs, formula)
            continue
        found = match_layer(network, word)
        if not found:
            hint = "; a network's random intercept is the bias of its last layer" if word == "1" else ""
            raise FormulaError(
                f"unknown layer {word!r} in re:{hint}; this network has {', '.join(layer_words(network))}",
                formula,
                None if formula is None else max(formula.find(word, max(formula.find("re:"), 0)), 0),
                len(word),
            )
        chosen |= found
    entries |= {k for spec in network.tensors if spec.name in chosen for k in range(spec.start, spec.stop)}
    return personal_entries(network.tensors, np.array(sorted(entries), dtype=np.intp))


def last_entries(
    network: Network, word: str, inputs: Mapping[str, Sequence[int]] | None, formula: str | None
) -> set[int]:
    """Entries of the flat vector that ``last[1, x]`` names: the bias, and the weights of inputs.

    Raises
    ------
    FormulaError
        If the last layer does not see the inputs of the formula, or has no such input, or the bias is left out.
    """
    at = None if formula is None else max(formula.find(word), 0)
    names = [name.strip().strip("`") for name in re.split(r",(?![^(\[]*[)\]])", word[len("last[") : -1])]
    if names == ["1"] and network.module is None:
        bias = next(spec for spec in network.tensors if spec.name == f"layer{network.depth}.bias")
        return set(range(bias.start, bias.stop))
    if inputs is None:
        raise FormulaError(
            f"{word!r} names inputs of the last layer, which sees those of the formula in a linear network with a "
            "Gaussian response only; give hidden=(), or take last[1], the intercept, or all columns, re: (last | ...)",
            formula,
            at,
            len(word),
        )
    unknown = [name for name in names if name != "1" and name not in inputs]
    if unknown:
        raise FormulaError(
            f"{unknown[0]!r} in {word!r} is no input of the network; it has 1, {', '.join(inputs)}",
            formula,
            at,
            len(word),
        )
    if "1" not in names:
        raise FormulaError(
            f"{word!r} lacks the 1: a slope that differs between persons while the intercept does not depends on where "
            f"the input is zero; write last[1, {', '.join(names)}]",
            formula,
            at,
            len(word),
        )
    weights, bias = network.tensors[-2:]
    return {bias.start} | {weights.start + k for name in names if name != "1" for k in inputs[name]}


def personal_entries(tensors: Sequence[TensorSpec], entries: IntArray) -> Personal:
    """The record of the given entries of the flat vector, in increasing order."""
    touched = [spec for spec in tensors if ((entries >= spec.start) & (entries < spec.stop)).any()]
    starts = np.array([spec.start for spec in touched], dtype=np.intp)
    return Personal(tuple(touched), entries, np.searchsorted(starts, entries, side="right") - 1)


def personal_tensors(tensors: tuple[TensorSpec, ...]) -> Personal:
    """The record of the given personal tensors, in the order of the network."""
    pieces = [np.arange(spec.start, spec.stop) for spec in tensors]
    return personal_entries(tensors, np.concatenate([np.empty(0, dtype=np.intp), *pieces]))
