"""Tables in from files and standard input, and out to files and standard output."""

import io
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from mixmoe.errors import ArgumentError, DesignError, MissingExtraError
from mixmoe.report.excel import write_excel

STREAM = "-"
_COMPRESSED = (".gz", ".bz2", ".xz", ".zip", ".zst")
_ENDINGS: Mapping[str, str] = MappingProxyType(
    {
        ".csv": "csv",
        ".tsv": "tsv",
        ".tab": "tsv",
        ".parquet": "parquet",
        ".pq": "parquet",
        ".dta": "stata",
        ".sav": "spss",
        ".zsav": "spss",
        ".xlsx": "excel",
    }
)
FORMATS = tuple(dict.fromkeys(_ENDINGS.values()))
_NEEDS: Mapping[str, str] = MappingProxyType({"parquet": "pyarrow", "spss": "pyreadstat", "excel": "openpyxl"})
# Before version 3 pandas reads some numbers wrong in their last digit, by which data are not those of their fit.
_EXACT = {"float_precision": "round_trip"} if int(pd.__version__.partition(".")[0]) < 3 else {}
OUT_ENDINGS = (".csv", ".tsv", ".json", ".parquet", ".xlsx")


def read_data(name: str, kind: str | None = None, sep: str | None = None, decimal: str = ".") -> pd.DataFrame:
    """The data of a file.

    Parameters
    ----------
    name : str
        Path, or ``-`` for standard input, which is CSV unless `kind` says otherwise.
    kind : str, optional
        One of `FORMATS`; by default told by the ending.
    sep, decimal : str
        Of CSV.

    Returns
    -------
    DataFrame

    Raises
    ------
    DesignError
        If the file cannot be read as what it should be.
    MissingExtraError
        If the package that reads it is not installed.
    OSError
        If there is no such file.
    """
    kind = kind or _told_by_ending(name)
    if kind == "spss" and name == STREAM:
        raise ArgumentError("SPSS files cannot be read from standard input; give the path of the file")
    source = io.BytesIO(sys.stdin.buffer.read()) if name == STREAM else Path(name)
    try:
        return _readers(sep, decimal)[kind](source)
    except ImportError as error:
        raise MissingExtraError(f"reading {name}", _NEEDS.get(kind, str(error)), "files") from error
    except _damage() as error:
        raise DesignError(f"{_shown(name)} cannot be read as {kind}: {error}; --format says what it is") from error


def _told_by_ending(name: str) -> str:
    if name == STREAM:
        return "csv"
    endings = [ending.lower() for ending in Path(name).suffixes if ending.lower() not in _COMPRESSED]
    kind = _ENDINGS.get(endings[-1]) if endings else None
    if kind is None:
        known = ", ".join(_ENDINGS)
        raise ArgumentError(f"{name!r} has none of the endings {known}; say with --format what it is")
    return kind


def _readers(sep: str | None, decimal: str) -> Mapping[str, Callable[[Any], pd.DataFrame]]:
    exact: dict[str, Any] = {"decimal": decimal, "low_memory": False, **_EXACT}
    return {
        "csv": lambda source: pd.read_csv(source, sep=sep or ",", **exact),
        "tsv": lambda source: pd.read_csv(source, sep=sep or "\t", **exact),
        "parquet": pd.read_parquet,
        "stata": pd.read_stata,
        "spss": pd.read_spss,
        "excel": pd.read_excel,
    }


def _damage() -> tuple[type[Exception], ...]:
    """What reading an arbitrary file can end in; pyreadstat has an error of its own."""
    spss = sys.modules.get("pyreadstat")
    own = (spss.ReadstatError,) if spss is not None else ()
    return (ValueError, LookupError, EOFError, struct.error, zipfile.BadZipFile, *own)


def _shown(name: str) -> str:
    return "standard input" if name == STREAM else repr(name)


def write_frame(frame: pd.DataFrame, name: str, index: bool = False) -> None:
    """Write a frame in the format that the ending says; CSV for ``-``, standard output.

    Parameters
    ----------
    frame : DataFrame
    name : str
    index : bool
        Whether the index goes into the file.

    Raises
    ------
    MissingExtraError
        If the package that writes it is not installed.
    """
    whole = frame.reset_index() if index else frame
    ending = Path(name).suffix.lower()
    if name == STREAM:
        whole.to_csv(sys.stdout, index=False)
    elif ending == ".json":
        whole.to_json(name, orient="records", indent=2)
    elif ending == ".xlsx":
        write_excel(name, {"table": whole})
    elif ending == ".parquet":
        _write_parquet(whole, name)
    else:
        whole.to_csv(name, index=False, sep="\t" if ending == ".tsv" else ",")


def _write_parquet(frame: pd.DataFrame, name: str) -> None:
    try:
        frame.to_parquet(name, index=False)
    except ImportError as error:
        raise MissingExtraError(f"writing {name}", "pyarrow", "files") from error


def write_text(text: str, name: str) -> None:
    """Write text to a file, or to standard output for ``-``."""
    if name == STREAM:
        print(text)
    else:
        Path(name).write_text(text, encoding="utf-8")


def check_writable(name: str | None, option: str, endings: tuple[str, ...] = ()) -> None:
    """Refuse a place where nothing can be written, before hours of computing.

    Raises
    ------
    ArgumentError
        If the folder does not exist, the place is a folder, or the ending says nothing.
    """
    if name is None or name == STREAM:
        return
    path = Path(name)
    if path.is_dir() or not path.parent.is_dir():
        raise ArgumentError(
            f"{option} {name!r} cannot be written: {'it' if path.is_dir() else 'its folder'} is "
            f"{'a folder' if path.is_dir() else 'not there'}; name a file in an existing folder"
        )
    if endings and path.suffix.lower() not in endings:
        raise ArgumentError(f"{option} must end in one of {', '.join(endings)}, got {name!r}")
