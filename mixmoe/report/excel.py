"""Frames as sheets of an Excel workbook."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mixmoe._files import replacing
from mixmoe.errors import ArgumentError, MissingExtraError

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_MAX_ROWS = 1_048_575  # of a sheet, below its head


def write_excel(path: str | os.PathLike[str], sheets: Mapping[str, pd.DataFrame]) -> None:
    """Write one sheet per frame; text stays text, also where it looks like a formula.

    Parameters
    ----------
    path : path-like
        Ends in ``.xlsx``.
    sheets : mapping of str to DataFrame
        By the name of the sheet.

    Raises
    ------
    ArgumentError
        If the path has another ending, or a frame more rows than a sheet.
    MissingExtraError
        If openpyxl is not installed.
    """
    if Path(path).suffix.lower() != ".xlsx":
        raise ArgumentError(f"path must end in .xlsx, got {str(path)!r}")
    for name, frame in sheets.items():
        if len(frame) > _MAX_ROWS:
            raise ArgumentError(
                f"the sheet {name!r} has {len(frame)} rows, and Excel holds {_MAX_ROWS}; leave the rows out with "
                "data=False, or write augment() to another format"
            )
    with replacing(path) as partial:
        try:
            writer = pd.ExcelWriter(partial, engine="openpyxl")
        except ImportError as error:
            raise MissingExtraError("to_excel()", "openpyxl", "files") from error
        with writer:
            for name, frame in sheets.items():
                _storable(frame).to_excel(writer, sheet_name=name, index=False, freeze_panes=(1, 0))
                _text_is_text(writer.sheets[name])


def _storable(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with what a cell cannot hold as text, and without control characters."""
    return pd.DataFrame({_cleaned(str(name)): frame[name].map(_cleaned) for name in frame})


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return _CONTROL.sub(" ", value)
    if isinstance(value, pd.Timestamp) and value.tzinfo is not None:
        return value.isoformat()
    return value if pd.api.types.is_scalar(value) else str(value)


def _text_is_text(sheet: Any) -> None:
    """Cells that begin with an equals sign are no formulas: nothing that we write is one."""
    for row in sheet.iter_rows():
        for cell in row:
            if cell.data_type == "f":
                cell.data_type, cell.quotePrefix = "s", True
