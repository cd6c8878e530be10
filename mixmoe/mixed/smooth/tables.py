"""Tables and curves of penalised functions."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mixmoe.mixed.smooth.bands import LABELS, VALUES
from mixmoe.mixed.smooth.fitting import Smoothing
from mixmoe.output.records import Cell, Curve, Table, told_apart, value_format

_SHOWN = (0.0, 0.25, 0.5, 0.75, 1.0)  # places along the range of an index


def function_table(smoothing: Smoothing, bands: pd.DataFrame, p_values: Sequence[float], alpha: float) -> Table:
    """Degrees of freedom, smoothing parameter, test of constancy, range and values with bands of each function.

    Parameters
    ----------
    smoothing : Smoothing
    bands : DataFrame
        Of the coefficients, see `bands.band_frame`.
    p_values : sequence of float
        Of tests that each function is constant.
    alpha : float
    """
    names: list[str] = []
    cells: list[tuple[Cell, ...]] = []
    indices = list(dict.fromkeys(f.index for f in smoothing.functions))
    heads = _heads(bands, indices)
    for f, lam, edf, p in zip(smoothing.functions, smoothing.lambdas, smoothing.edf, p_values, strict=True):
        part = bands[bands["coefficient"] == f.name]
        values = part["estimate"].to_numpy()
        places = [round(q * (len(part) - 1)) for q in _SHOWN]
        low, high = part["band_low"].to_numpy(), part["band_high"].to_numpy()
        show = value_format(float(np.abs(values).max()))
        names += [f.name, "  simultaneous band"]
        cells.append(
            (
                float(edf),
                float(lam),
                None if np.isnan(p) else p,
                f"{show(values.min())} to {show(values.max())}",
                *(show(values[i]) for i in places),
            )
        )
        cells.append((None, None, None, None, *(f"{show(low[i])}, {show(high[i])}" for i in places)))
    return Table(
        key="functions",
        title="Functions",
        columns=("edf", "lambda", "P const.", "Range", *heads),
        index=tuple(names),
        cells=tuple(cells),
        formats=(".2f", ".4g", "p", "text", *("num" for _ in heads)),
        notes=(
            f"Second lines: {100 * (1.0 - alpha):g} % simultaneous bands over the whole range of the index. P const.: "
            "Wood's test that the function is constant. Functions without by= are centred over the rows.",
        ),
    )


def _heads(bands: pd.DataFrame, indices: list[str]) -> tuple[str, ...]:
    """Heads of the columns of values: places of the one index, or shares of the range of several."""
    if len(indices) > 1:
        return tuple(f"{100 * q:g} %" for q in _SHOWN)
    u = bands[indices[0]].to_numpy()
    places = u.min() + np.array(_SHOWN) * np.ptp(u)
    return tuple(f"{indices[0]}={v}" for v in told_apart(places.tolist(), 3))


def function_curves(bands: pd.DataFrame, alpha: float) -> tuple[Curve, ...]:
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
        if str(name).startswith("d "):
            panel = f"derivative of {panel}"
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
