"""Tables and curves of penalised functions."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mixmoe.mixed.smooth.bands import LABELS, VALUES
from mixmoe.mixed.smooth.fitting import Smoothing
from mixmoe.output.records import Cell, Curve, Table, told_apart, value_format

_SHOWN = (0.0, 0.25, 0.5, 0.75, 1.0)  # places along the range of an index


def function_tables(
    smoothing: Smoothing, bands: pd.DataFrame, p_values: Sequence[float], alpha: float
) -> tuple[Table, Table]:
    """Degrees of freedom, smoothing parameter, test of constancy and range of each function; values with bands.

    Parameters
    ----------
    smoothing : Smoothing
    bands : DataFrame
        Of the coefficients, see `bands.band_frame`.
    p_values : sequence of float
        Of tests that each function is constant.
    alpha : float
    """
    names = tuple(f.name for f in smoothing.functions)
    rows: list[tuple[Cell, ...]] = []
    labels: list[str] = []
    values: list[tuple[Cell, ...]] = []
    indices = list(dict.fromkeys(f.index for f in smoothing.functions))
    for f, lam, edf, p in zip(smoothing.functions, smoothing.lambdas, smoothing.edf, p_values, strict=True):
        part = bands[bands["coefficient"] == f.name]
        estimate, low, high = (part[c].to_numpy() for c in ("estimate", "band_low", "band_high"))
        show = value_format(float(np.abs(estimate).max()))
        at = [round(q * (len(part) - 1)) for q in _SHOWN]
        rows.append(
            (float(edf), float(lam), None if np.isnan(p) else float(p), show(estimate.min()), show(estimate.max()))
        )
        labels += [f.name, "  lower", "  upper"]
        values += [tuple(show(v[i]) for i in at) for v in (estimate, low, high)]
    heads = _heads(bands, indices)
    about = Table(
        key="functions",
        title="Functions",
        columns=("edf", "lambda", "P const.", "Minimum", "Maximum"),
        index=names,
        cells=tuple(rows),
        formats=(".2f", ".4g", "p", "num", "num"),
        notes=(
            "P const.: Wood's test that the function is constant; edf: effective degrees of freedom. Functions without "
            "by= are centred over the rows.",
        ),
    )
    return about, Table(
        key="function_values",
        title=f"Functions with {100 * (1.0 - alpha):g} % simultaneous bands over the whole range of the index",
        columns=heads,
        index=tuple(labels),
        cells=tuple(values),
        formats=tuple("num" for _ in heads),
    )


def _heads(bands: pd.DataFrame, indices: list[str]) -> tuple[str, ...]:
    """Heads of the columns of values: places of the one index, or shares of the range of several."""
    if len(indices) > 1:
        return tuple(f"{100 * q:g} %" for q in _SHOWN)
    u = bands[indices[0]].to_numpy()
    places = u.min() + np.array(_SHOWN) * np.ptp(u)
    return tuple(f"{indices[0]}={v}" for v in told_apart(places.tolist(), 3))


def function_curves(bands: pd.DataFrame, alpha: float, derivative: int = 0) -> tuple[Curve, ...]:
    """Curves of a frame of bands: a panel per term, with the experts in it."""
    indices = [str(name) for name in bands.columns if name not in (*LABELS, *VALUES)]
    curves = []
    for name, part in bands.groupby("coefficient", sort=False):
        index = next(i for i in indices if part[i].notna().all())
        expert = None if pd.isna(part["expert"].iloc[0]) else int(part["expert"].iloc[0])
        block, term = part["block"].iloc[0], str(part["term"].iloc[0])
        value = {c: part[c].to_numpy(dtype=float) for c in (index, *VALUES)}
        of_gate = block == "gate"
        panel = str(name) if block == "difference" else f"gate: {term}" if of_gate else term
        panel = f"derivative of {panel}" if derivative else panel
        curves.append(
            Curve(
                panel=panel,
                label="" if expert is None else f"expert {expert}",
                x=value[index],
                y=value["estimate"],
                lower=value["conf_low"],
                upper=value["conf_high"],
                band_lower=value["band_low"],
                band_upper=value["band_high"],
                expert=expert,
                xlabel=index,
                ylabel="log odds" if of_gate else "value",
                limits=f"{100 * (1.0 - alpha):g} % pointwise",
                bands=f"{100 * (1.0 - alpha):g} % simultaneous",
            )
        )
    return tuple(curves)
