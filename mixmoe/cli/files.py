"""Tables in from files and standard input, and out to files and standard output."""

import io
import re
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from mixmoe.atomic import replacing
from mixmoe.atomic import write_text as write_whole
from mixmoe.errors import ArgumentError, DesignError, MissingExtraError
from mixmoe.report.tidy import write_excel

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
_SEPARATORS: Mapping[str, str] = MappingProxyType({"csv": ",", "tsv": "\t"})
_NEEDS: Mapping[str, str] = MappingProxyType({"parquet": "pyarrow", "spss": "pyreadstat", "excel": "openpyxl"})
# Before version 3 pandas reads some numbers wrong in their last digit, by which data are not those of their fit.
_EXACT: dict[str, Any] = {"float_precision": "round_trip"} if int(pd.__version__.partition(".")[0]) < 3 else {}
_TOLD_APART = 2**53  # whole numbers up to which floats tell neighbours apart
_FORMULA = re.compile(r"[=@\t\r]|[+-](?![\d.])")  # how a text begins that a spreadsheet computes
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
    if kind is None:
        endings = [ending.lower() for ending in Path(name).suffixes if ending.lower() not in _COMPRESSED]
        kind = "csv" if name == STREAM else _ENDINGS.get(endings[-1]) if endings else None
    if kind is None:
        known = ", ".join(_ENDINGS)
        raise ArgumentError(f"{name!r} has none of the endings {known}; say with --format what it is")
    if kind == "spss" and name == STREAM:
        raise ArgumentError("SPSS files cannot be read from standard input; give the path of the file")
    if name != STREAM and not Path(name).is_file():
        what = "is a folder" if Path(name).is_dir() else "is not there"
        raise DesignError(f"the file {name!r} {what}; name a file with the data, or - for standard input")
    source = io.BytesIO(sys.stdin.buffer.read()) if name == STREAM else Path(name)
    separator = sep or _SEPARATORS.get(kind)
    try:
        if kind not in _SEPARATORS:
            return getattr(pd, f"read_{kind}")(source)
        read = pd.read_csv(source, sep=separator, decimal=decimal, low_memory=False, **_EXACT)
        return _with_whole_numbers(read, source, separator)
    except ImportError as error:
        raise MissingExtraError(f"reading {name}", _NEEDS.get(kind, str(error)), "files") from error
    except _damage() as error:
        raise DesignError(f"{_shown(name)} cannot be read as {kind}: {error}; --format says what it is") from error


def is_partitioned_source(name: str) -> bool:
    """Whether a name stands for several files: a pattern or a folder."""
    return name != STREAM and (any(sign in name for sign in "*?[") or Path(name).is_dir())


def _with_whole_numbers(frame: pd.DataFrame, source: Any, sep: str | None) -> pd.DataFrame:
    """Columns of whole numbers beyond 2^53 with missing cells, which pandas makes floats that merge neighbours."""
    floats = [name for name in frame.columns if frame[name].dtype.kind == "f"]
    large = [name for name in floats if (frame[name].abs() >= _TOLD_APART).any() and frame[name].isna().any()]
    if not large:
        return frame
    if isinstance(source, io.BytesIO):
        source.seek(0)
    texts = pd.read_csv(source, sep=sep, usecols=large, dtype=str)
    whole = [name for name in large if texts[name].dropna().str.fullmatch(r"\s*[+-]?\d+\s*").all()]
    exact = {name: [None if pd.isna(text) else int(text) for text in texts[name]] for name in whole}
    return frame.assign(**{name: pd.Series(values, dtype=object, index=frame.index) for name, values in exact.items()})


def _damage() -> tuple[type[Exception], ...]:
    """What reading an arbitrary file can end in; pyreadstat has an error of its own."""
    spss = sys.modules.get("pyreadstat")
    own = (spss.ReadstatError,) if spss is not None else ()
    return (ValueError, LookupError, EOFError, struct.error, zipfile.BadZipFile, *own)


def _shown(name: str) -> str:
    return "standard input" if name == STREAM else repr(name)


def write_frame(frame: pd.DataFrame, name: str, index: bool = False) -> None:
    """Write a frame in the format that the ending says; CSV for ``-``, standard output.

    In CSV, texts that begin as formulas do, with ``=`` or ``@``, have an apostrophe before them, so that spreadsheets
    show them and compute nothing.

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
        _inert(whole).to_csv(sys.stdout, index=False)
    elif ending == ".xlsx":
        write_excel(name, {"table": whole})
    else:
        with replacing(name) as partial:
            if ending == ".json":
                whole.to_json(partial, orient="records", indent=2)
            elif ending == ".parquet":
                try:
                    whole.to_parquet(partial, index=False)
                except ImportError as error:
                    raise MissingExtraError(f"writing {name}", "pyarrow", "files") from error
            else:
                _inert(whole).to_csv(partial, index=False, sep="\t" if ending == ".tsv" else ",")


def _inert(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with an apostrophe before texts that a spreadsheet would take for a formula and compute."""
    texts = {i for i in range(frame.shape[1]) if not pd.api.types.is_numeric_dtype(frame.dtypes.iloc[i])}
    columns = [frame.iloc[:, i].map(_quoted) if i in texts else frame.iloc[:, i] for i in range(frame.shape[1])]
    return pd.concat(columns, axis=1).set_axis([_quoted(name) for name in frame.columns], axis=1)


def _quoted(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def write_text(text: str, name: str) -> None:
    """Write text to a file, or to standard output for ``-``."""
    if name == STREAM:
        print(text)
    else:
        write_whole(name, text)


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
