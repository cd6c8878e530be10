"""From a saved file to results."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from mixmoe.atomic import PathLike
from mixmoe.design.design import Design
from mixmoe.design.frame import whole_frame
from mixmoe.errors import ArgumentError, MixmoeError, MixmoeWarning, SavedFileError
from mixmoe.families import families, of_partitions
from mixmoe.output.saved import SavedFit, check_same_model, read, require_safe_formula
from mixmoe.partitions.scan import as_partitions
from mixmoe.results import Results, called


def load(
    path: PathLike,
    data: pd.DataFrame | None = None,
    context: Mapping[str, Any] | None = None,
    network: Any = None,
) -> Results:
    """A fit from a file that its `save` wrote; reading it cannot run code.

    Parameters
    ----------
    path : path-like
    data : DataFrame, optional
        The data of the fit, if it was saved without them; others are refused.
    context : mapping, optional
        Functions and constants that the formula uses. Giving it allows any formula to be evaluated, so do that only for
        files that you trust; without it a formula may use only the built-in transforms.
    network : torch.nn.Module, optional
        The network of a fit that had one of your own; the file holds its parameters, not its code.

    Returns
    -------
    Results

    Raises
    ------
    SavedFileError
        If the file is no saved fit, its formula is not safe, or the model cannot be rebuilt from it.
    """
    saved, known = read(path), families()
    if saved.family not in known:
        raise SavedFileError(f"{str(path)!r} holds a {saved.family!r}, known are {', '.join(map(repr, known))}")
    if "partitions" in saved.settings:
        return _load_partitioned(path, saved, data, context)
    if context is None:
        require_safe_formula(saved, path)
    if saved.data is None and data is None:
        raise SavedFileError(
            f"{str(path)!r} was saved without data, from which the terms of its formula are made; pass the data of the "
            "fit as load(..., data=frame)"
        )
    # Data that are passed have their own order: the places in the file are those of the data that it would hold.
    whole = saved if saved.data is not None else replace(saved, data=whole_frame(data), rows=None)
    if network is not None:
        if "network" not in known[saved.family].spec.markers:
            raise ArgumentError(f"network= is for networks, {str(path)!r} holds a {saved.family!r}; leave it out")
        whole = replace(whole, settings={**whole.settings, "network": network})
    with warnings.catch_warnings():  # dropped rows and columns were reported when the model was fitted
        warnings.simplefilter("ignore", MixmoeWarning)
        try:
            results: Results = known[saved.family].from_saved(whole, context)
        except MixmoeError as error:
            raise SavedFileError(
                f"the model in {str(path)!r} cannot be rebuilt from these data, which are not those of the fit: {error}"
            ) from error
    check_same_model(saved, path, results.model.layout.names, results.model.design)
    return called(results, saved.shown)


def _load_partitioned(path: PathLike, saved: SavedFit, data: Any, context: Mapping[str, Any] | None) -> Results:
    """A fit of partitioned data, with the partitions if they are given, else with the sample that the file holds."""
    if context is None:
        require_safe_formula(saved, path)
    partitions = None if data is None else as_partitions(data)
    if data is not None and partitions is None:
        raise ArgumentError(f"{str(path)!r} holds a fit of partitioned data; pass the partitions, as data=mm.scan(...)")
    if data is None and saved.data is None:
        raise SavedFileError(
            f"{str(path)!r} was saved without data, from which the terms of its formula are made; pass the partitions "
            "of the fit as load(..., data=mm.scan(...))"
        )
    with warnings.catch_warnings():  # dropped rows and columns were reported when the model was fitted
        warnings.simplefilter("ignore", MixmoeWarning)
        try:
            found: Results = of_partitions(families()[saved.family]).from_saved(saved, context, partitions)
        except MixmoeError as error:
            raise SavedFileError(f"the model in {str(path)!r} cannot be rebuilt from these data: {error}") from error
    return called(found, saved.shown)


def restored(design: Design, saved: SavedFit) -> Design:
    """A design rebuilt from a file, with the places of the rows in the user's frame and the count of those left out.

    Parameters
    ----------
    design : Design
        Built from ``saved.data``.
    saved : SavedFit

    Returns
    -------
    Design

    Raises
    ------
    SavedFileError
        If the file has another number of places than of rows.
    """
    rows = saved.rows
    if rows is None:
        return design
    if len(rows.position) != design.n_input:
        raise SavedFileError(f"a saved fit with {design.n_input} rows has {len(rows.position)} places for them")
    dropped = type(design.dropped)(rows.n_dropped, rows.dropped_by_column)
    return replace(design, position=rows.position[design.position], n_input=rows.n_input, dropped=dropped)
