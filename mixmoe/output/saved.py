"""Fits in files: a zip of JSON and npz, read without running code."""

import hashlib
import io
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe.atomic import replacing
from mixmoe.design.design import Design
from mixmoe.design.formula import parse_formula
from mixmoe.design.transforms import require_safe
from mixmoe.errors import ArgumentError, FormulaError, SavedFileError
from mixmoe.inference.small_samples import Moments
from mixmoe.inference.uncertainty import COV_TYPES, Draws, ParamCov
from mixmoe.mixture.estimate import EMFit, Flag, Starts
from mixmoe.output.names import NO_NAMES, Names

FORMAT = "mixmoe-fit"
VERSION = 3  # since 2 a file says what its parts are, byte by byte, since 3 flags say apart what to do
_MAX_BYTES = 4 * 2**30  # a file that claims to hold more is not read
_DAMAGE = (  # what reading an arbitrary file can end in
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
_DOCUMENT, _ARRAYS, _SUMS = "fit.json", "arrays.npz", "sha256.json"  # the parts of a file
_SHAPES = {"responsibilities": 2, "trace": 1, "logliks": 1, "ends": 1, "smoothing": 1}  # dimensions of arrays
_EXACT = 2**53  # whole numbers up to which floats tell neighbours apart
_PLAIN_KINDS = "biuf"  # NumPy kinds stored as they are


@dataclass(frozen=True, slots=True)
class SavedRows:
    """Where the rows of the saved data came from.

    Attributes
    ----------
    position : ndarray of int, shape (n,)
        Place of each row in the user's frame.
    n_input : int
        Rows of the user's frame.
    n_dropped : int
        Rows left out because of missing values.
    dropped_by_column : tuple of (str, int)
    """

    position: NDArray[np.int64]
    n_input: int
    n_dropped: int
    dropped_by_column: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class SavedFit:
    """What a file holds.

    Attributes
    ----------
    family : str
    formula : str
    settings : Mapping
        Arguments of the model's constructor.
    names : tuple of str
        Parameter names.
    fit : EMFit
    cov : ParamCov
    checksum : str
        Of the response in the order of the design.
    columns : Mapping of str to str
        Fingerprints of the used columns of the data, see `fingerprints`.
    data : DataFrame or None
        Used columns of the complete rows, in the order of the design; None if saved without.
    rows : SavedRows or None
        None if `data` are the user's own frame, given to `load`.
    units : DataFrame or None
        What is known of each subject of partitioned data, of which `data` are a sample.
    shown : Names
        What the user calls experts and terms.
    """

    family: str
    formula: str
    settings: Mapping[str, Any]
    names: tuple[str, ...]
    fit: EMFit
    cov: ParamCov
    checksum: str
    data: pd.DataFrame | None
    rows: SavedRows | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    units: pd.DataFrame | None = None
    shown: Names = NO_NAMES


def checksum(response: NDArray[Any]) -> str:
    """Fingerprint of a response, to tell whether a model was rebuilt on the same data."""
    return hashlib.sha256(np.ascontiguousarray(response, dtype=float).tobytes()).hexdigest()


def fingerprints(frame: pd.DataFrame) -> dict[str, str]:
    """Fingerprint of each column, which tells numbers and texts apart but not types of numbers."""
    marks = {}
    for name in frame.columns:
        values, known = frame[name], frame[name].dropna()
        # Between whole numbers of that size floats do not tell.
        whole = pd.api.types.is_integer_dtype(values.dtype) and len(known) > 0
        beyond = whole and max(abs(int(known.min())), abs(int(known.max()))) > _EXACT
        if pd.api.types.is_numeric_dtype(values.dtype) and not beyond:
            marks[str(name)] = checksum(values.to_numpy(dtype=float, na_value=np.nan) + 0.0)  # minus zero is zero
        else:
            texts = json.dumps([str(value) for value in values.tolist()])
            marks[str(name)] = hashlib.sha256(texts.encode()).hexdigest()
    return marks


def write(path: str | os.PathLike[str], saved: SavedFit) -> None:
    """Write a fit; the file appears only when it is complete.

    Parameters
    ----------
    path : path-like
    saved : SavedFit

    Raises
    ------
    ArgumentError
        If settings or data cannot be written as plain values.
    """
    path = Path(path)
    if path.is_dir():
        raise ArgumentError(f"path must name a file to write, got the folder {str(path)!r}")
    document = _document(saved)
    arrays = _arrays(saved)
    document["data"] = _frame_entry(saved.data, "column", arrays)
    document["units"] = _frame_entry(saved.units, "unit", arrays)
    document["rows"] = _rows_entry(saved.rows, arrays)
    try:
        text = json.dumps(document, allow_nan=True)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"this fit cannot be saved, a setting is no plain value ({error}); settings: {saved.settings!r}"
        ) from error
    buffer = io.BytesIO()
    # Without objects, so that reading needs no pickle and can run no code.
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    parts = {_DOCUMENT: text.encode("utf-8"), _ARRAYS: buffer.getvalue()}
    # Checksums over the parts themselves: a file that was changed by hand is refused, never another fit.
    with replacing(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        archive.writestr(_DOCUMENT, parts[_DOCUMENT], compress_type=zipfile.ZIP_DEFLATED)
        archive.writestr(_ARRAYS, parts[_ARRAYS])
        archive.writestr(_SUMS, json.dumps({name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}))


def read(path: str | os.PathLike[str]) -> SavedFit:
    """What a file holds; nothing in it is executed.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    SavedFit

    Raises
    ------
    SavedFileError
        If the file is no saved fit, is damaged, or was written by a later format.
    FileNotFoundError
        If there is none.
    """
    path = Path(path)
    try:
        document, arrays = _contents(path)
        return _saved(document, arrays)
    except _DAMAGE as error:
        if isinstance(error, SavedFileError):
            raise
        raise SavedFileError(
            f"{str(path)!r} is not a saved fit of mixmoe or is damaged ({type(error).__name__}: {error}); "
            "expected a file written by save()"
        ) from error


def require_safe_formula(saved: SavedFit, path: str | os.PathLike[str]) -> None:
    """Refuse a formula that could run code.

    Raises
    ------
    SavedFileError
    """
    try:
        require_safe(parse_formula(saved.formula))
    except FormulaError as error:
        raise SavedFileError(
            f"the formula in {str(path)!r} is not limited to the built-in transforms, so it is not evaluated; if "
            f"you trust the file, give load(..., context={{...}}) with the names it uses.\n{error}"
        ) from error


def check_same_model(saved: SavedFit, path: str | os.PathLike[str], names: tuple[str, ...], design: Design) -> None:
    """Refuse a model that is not the one that was saved.

    Parameters
    ----------
    saved : SavedFit
    path : path-like
    names : tuple of str
        Parameters of the model that was rebuilt.
    design : Design
        Of the model that was rebuilt.

    Raises
    ------
    SavedFileError
    """
    if names != saved.names:
        wrong = next((a for a in (*saved.names, *names) if (a in saved.names) != (a in names)), saved.names[0])
        raise SavedFileError(
            f"the model rebuilt from {str(path)!r} has other parameters, the first is {wrong!r}; "
            "pass the data of the fit"
        )
    given = {} if saved.data is not None else fingerprints(design.frame)
    other = [f"the column {name!r}" for name, mark in saved.columns.items() if given.get(name, mark) != mark]
    if checksum(design.response) != saved.checksum:  # type: ignore[arg-type]
        other = ["the response"]
    if other:
        raise SavedFileError(
            f"the data given for {str(path)!r} are not those of the fit: {other[0]} differs; pass the data of the fit"
        )


def _document(saved: SavedFit) -> dict[str, Any]:
    fit = saved.fit
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "mixmoe": _version(),
        "numpy": np.__version__,
        "family": saved.family,
        "formula": saved.formula,
        "settings": _plain(saved.settings),
        "names": list(saved.names),
        "checksum": saved.checksum,
        "columns": dict(saved.columns),
        "shown": {"experts": list(saved.shown.experts), "terms": dict(saved.shown.terms)},
        "fit": {
            "loglik": float(fit.loglik),
            "penalty": float(fit.penalty),
            "n_iter": int(fit.n_iter),
            "n_evaluations": int(fit.n_evaluations),
            "converged": bool(fit.converged),
            "flags": [asdict(flag) for flag in fit.flags],
            "n_starts": int(fit.starts.n_starts),
            "n_replicated": int(fit.starts.n_replicated),
            "seed": fit.starts.seed,
            "asked": fit.starts.asked,
        },
        "cov": {
            "kind": saved.cov.kind,
            "note": saved.cov.note,
            "corrected": bool(saved.cov.corrected),
            "flags": [asdict(flag) for flag in saved.cov.flags],
        },
    }


def _version() -> str:
    """Version of the installed package."""
    try:
        return metadata.version("mixmoe")
    except metadata.PackageNotFoundError:
        return "unknown"


def _plain(value: Any) -> Any:
    """NumPy scalars, arrays and tuples as what JSON knows."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value


def _arrays(saved: SavedFit) -> dict[str, NDArray[Any]]:
    fit, cov = saved.fit, saved.cov
    arrays: dict[str, NDArray[Any]] = {
        "params": fit.params,
        "trace": fit.trace,
        "responsibilities": fit.responsibilities,
        "logliks": fit.starts.logliks,
        "ends": fit.starts.ends,
        "smoothing": fit.smoothing,
        "cov": cov.matrix,
    }
    # What t statistics, bootstrap limits, infinite gate coefficients and functions need beyond the matrix.
    if cov.moments is not None:
        arrays |= {"cov_mean": cov.moments.mean, "cov_spread": cov.moments.spread}
    if cov.draws is not None:
        arrays |= {"draws": cov.draws.values, "acceleration": cov.draws.acceleration}
    limits = {"bounded": cov.bounded, "infinite": cov.infinite, "given": cov.given, "shift": cov.shift}
    return arrays | {name: array for name, array in limits.items() if array is not None}


def _rows_entry(rows: SavedRows | None, arrays: dict[str, NDArray[Any]]) -> dict[str, Any] | None:
    """Description of where the rows came from; places go to `arrays`."""
    if rows is None:
        return None
    arrays["position"] = rows.position
    by_column = [[str(name), int(count)] for name, count in rows.dropped_by_column]
    return {"n_input": int(rows.n_input), "n_dropped": int(rows.n_dropped), "dropped_by_column": by_column}


def _saved_rows(entry: dict[str, Any] | None, arrays: dict[str, NDArray[Any]]) -> SavedRows | None:
    """Where the rows came from, with the places checked."""
    if entry is None:
        return None
    position, n_input = arrays["position"], int(entry["n_input"])
    if position.dtype.kind != "i" or position.ndim != 1 or len(np.unique(position)) != len(position):
        raise SavedFileError(f"places of the rows of a saved fit are distinct integers, got {position!r}")
    if len(position) and not 0 <= position.min() <= position.max() < n_input:
        raise SavedFileError(
            f"places of the rows of a saved fit lie below {n_input}, got {position.min()} to {position.max()}"
        )
    by_column = tuple((str(name), int(count)) for name, count in entry["dropped_by_column"])
    return SavedRows(position, n_input, int(entry["n_dropped"]), by_column)


def _frame_entry(frame: pd.DataFrame | None, kind: str, arrays: dict[str, NDArray[Any]]) -> dict[str, Any] | None:
    """Description of a frame; numbers go to `arrays`."""
    if frame is None:
        return None
    parts = [(f"index{i}", pd.Series(frame.index.get_level_values(i))) for i in range(frame.index.nlevels)]
    parts += [(str(name), frame[name].reset_index(drop=True)) for name in frame.columns]
    columns = [_column(f"{kind}{i}", name, values, arrays) for i, (name, values) in enumerate(parts)]
    return {"columns": columns, "index_names": [None if name is None else str(name) for name in frame.index.names]}


def _column(key: str, name: str, values: pd.Series, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Description of one column; numbers go to `arrays`."""
    dtype = values.dtype
    entry: dict[str, Any] = {"name": name, "dtype": str(dtype)}
    if isinstance(dtype, np.dtype) and dtype.kind in _PLAIN_KINDS:
        arrays[key] = values.to_numpy()
        return entry | {"kind": "array"}
    if isinstance(dtype, pd.CategoricalDtype):
        arrays[key] = np.asarray(values.cat.codes)
        arrays_of: dict[str, NDArray[Any]] = {}
        levels = _column(key, "levels", pd.Series(dtype.categories), arrays_of)
        arrays |= {f"{k}_levels": v for k, v in arrays_of.items()}
        return entry | {"kind": "category", "levels": levels, "ordered": bool(dtype.ordered)}
    if pd.api.types.is_datetime64_any_dtype(dtype) or pd.api.types.is_timedelta64_dtype(dtype):
        arrays[key] = values.astype("int64").to_numpy() if not values.isna().any() else _ticks(values)
        return entry | {"kind": "time"}
    return entry | {"kind": "json", "values": [_json_value(name, v) for v in values.tolist()]}


def _ticks(values: pd.Series) -> NDArray[np.int64]:
    """Times as integers, missing ones as the smallest integer."""
    return np.asarray(values.array.asi8 if hasattr(values.array, "asi8") else values.to_numpy().view("int64"))


def _json_value(name: str, value: Any) -> Any:
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str | bool | int | float):
        return value
    raise ArgumentError(
        f"column {name!r} cannot be saved, it holds {value!r} of type {type(value).__name__}; convert it to numbers or "
        "text before fitting, or use save(..., data=False)"
    )


def _contents(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The JSON document and the arrays of a file."""
    # Read whole: a damaged directory of the archive would have the file itself sought before its first byte.
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        _refuse_huge(archive, path)
        text = archive.read(_DOCUMENT)
        document = json.loads(text.decode("utf-8"))
        _refuse_others(document, path)
        raw = archive.read(_ARRAYS)
        _refuse_changed({_DOCUMENT: text, _ARRAYS: raw}, archive, path)
    with zipfile.ZipFile(io.BytesIO(raw)) as inner:
        _refuse_huge(inner, path)
        _refuse_false_headers(inner, path)
    with np.load(io.BytesIO(raw), allow_pickle=False) as stored:
        return document, {name: stored[name] for name in stored.files}


def _refuse_changed(parts: Mapping[str, bytes], archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse parts that are not those that were written: another fit would come of them without a word."""
    if _SUMS not in archive.namelist():
        raise SavedFileError(f"{str(path)!r} has lost the part {_SUMS!r} with the checksums; it is no longer as saved")
    sums = json.loads(archive.read(_SUMS).decode("utf-8"))
    for name, part in parts.items():
        if not isinstance(sums, dict) or sums.get(name) != hashlib.sha256(part).hexdigest():
            raise SavedFileError(
                f"the part {name!r} of {str(path)!r} was damaged or changed after it was saved; use a copy of the file "
                "as save() wrote it, or fit again"
            )


def _refuse_false_headers(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse arrays whose head claims more than they hold: memory for all of it would be taken before reading."""
    for entry in archive.infolist():
        with archive.open(entry) as member:
            version = np.lib.format.read_magic(member)
            head = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = head(member)
            claimed, held = math.prod(shape) * dtype.itemsize, entry.file_size - member.tell()
        if not dtype.hasobject and claimed != held:
            raise SavedFileError(
                f"the array {entry.filename!r} of {str(path)!r} claims to hold {claimed} bytes and holds {held}"
            )


def _refuse_huge(archive: zipfile.ZipFile, path: Path) -> None:
    size = sum(entry.file_size for entry in archive.infolist())
    if size > _MAX_BYTES:
        raise SavedFileError(f"{str(path)!r} claims to hold {size} bytes, more than the {_MAX_BYTES} that are read")


def _refuse_others(document: Any, path: Path) -> None:
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise SavedFileError(
            f"{str(path)!r} is a zip archive but not a saved fit of mixmoe; expected one written by save()"
        )
    version = document.get("format_version")
    if version != VERSION:
        raise SavedFileError(
            f"{str(path)!r} has format version {version!r}, this mixmoe reads version {VERSION}; "
            f"it was written by mixmoe {document.get('mixmoe')!r}, install that one"
        )


def _saved(document: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> SavedFit:
    """Records from the contents of a file, with the shapes checked."""
    fit, cov = document["fit"], document["cov"]
    names = tuple(str(name) for name in document["names"])
    n_params = len(names)
    _check_shape("params", arrays["params"], (n_params,))
    for name in ("cov", *(name for name in ("bounded", "given") if name in arrays)):
        _check_shape(name, arrays[name], (n_params, n_params))
    if "shift" in arrays:
        _check_shape("shift", arrays["shift"], (n_params,))
    for name, ndim in _SHAPES.items():
        array = arrays[name]
        if array.ndim != ndim or array.dtype.kind != "f":
            raise SavedFileError(
                f"{name} of a saved fit are numbers in {ndim} dimensions, got {array.dtype} of shape {array.shape}"
            )
    shown = document["shown"]
    experts = tuple(str(name) for name in shown["experts"])
    if experts and len(experts) != arrays["responsibilities"].shape[1]:
        raise SavedFileError(
            f"a saved fit has a name for each of its {arrays['responsibilities'].shape[1]} experts, got {len(experts)}"
        )
    if cov["kind"] not in COV_TYPES:
        raise SavedFileError(f"the covariance of a saved fit is one of {COV_TYPES}, got {cov['kind']!r}")
    return SavedFit(
        family=str(document["family"]),
        formula=str(document["formula"]),
        settings=dict(document["settings"]),
        names=names,
        fit=_em_fit(fit, arrays),
        cov=_cov(cov, arrays),
        checksum=str(document["checksum"]),
        data=_frame(document["data"], "column", arrays),
        units=_frame(document["units"], "unit", arrays),
        rows=_saved_rows(document["rows"], arrays),
        columns={str(name): str(value) for name, value in document["columns"].items()},
        shown=Names(experts, {str(term): str(label) for term, label in shown["terms"].items()}),
    )


def _cov(entry: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> ParamCov:
    """The covariance, with the shapes of what belongs to it checked."""
    n = len(arrays["cov"])
    moments = draws = None
    if "cov_mean" in arrays:
        _check_shape("cov_mean", arrays["cov_mean"], (n, n))
        _check_shape("cov_spread", arrays["cov_spread"], (n * (n + 1) // 2, n * (n + 1) // 2))
        moments = Moments(arrays["cov_mean"], arrays["cov_spread"])
    if "draws" in arrays:
        _check_shape("draws", arrays["draws"], (len(arrays["draws"]), n))
        _check_shape("acceleration", arrays["acceleration"], (n,))
        draws = Draws(arrays["draws"], arrays["acceleration"])
    flags = _flags(entry["flags"])
    corrected = bool(entry["corrected"])
    return ParamCov(
        arrays["cov"],
        entry["kind"],
        str(entry["note"]),
        corrected,
        arrays.get("bounded"),
        arrays.get("infinite"),
        flags,
        moments,
        draws,
        arrays.get("given"),
        arrays.get("shift"),
    )


def _flags(entries: list[dict[str, Any]]) -> tuple[Flag, ...]:
    return tuple(Flag(str(flag["code"]), str(flag["fact"]), str(flag["remedy"])) for flag in entries)


def _em_fit(fit: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> EMFit:
    return EMFit(
        params=arrays["params"],
        loglik=float(fit["loglik"]),
        trace=arrays["trace"],
        n_iter=int(fit["n_iter"]),
        n_evaluations=int(fit["n_evaluations"]),
        converged=bool(fit["converged"]),
        responsibilities=arrays["responsibilities"],
        starts=Starts(
            n_starts=int(fit["n_starts"]),
            logliks=arrays["logliks"],
            n_replicated=int(fit["n_replicated"]),
            ends=arrays["ends"],
            seed=None if fit["seed"] is None else int(fit["seed"]),
            asked=None if fit["asked"] is None else int(fit["asked"]),
        ),
        flags=_flags(fit["flags"]),
        penalty=float(fit["penalty"]),
        smoothing=arrays["smoothing"],
    )


def _check_shape(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype.kind != "f":
        raise SavedFileError(
            f"{name} of this saved fit should be numbers of shape {shape}, got {array.dtype} of {array.shape}"
        )


def _frame(entry: dict[str, Any] | None, kind: str, arrays: dict[str, NDArray[Any]]) -> pd.DataFrame | None:
    """The saved columns as a frame."""
    if entry is None:
        return None
    names = entry["index_names"]
    series = [_series(f"{kind}{place}", column, arrays) for place, column in enumerate(entry["columns"])]
    levels = [pd.Index(values, name=name) for values, name in zip(series, names, strict=False)]
    index = levels[0] if len(levels) == 1 else pd.MultiIndex.from_arrays(levels, names=names)
    columns = entry["columns"][len(names) :]
    frame = pd.DataFrame({c["name"]: s.array for c, s in zip(columns, series[len(names) :], strict=True)}, index=index)
    return frame


def _series(key: str, column: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> pd.Series:
    """One column as it was."""
    kind = column["kind"]
    if kind != "json" and arrays[key].ndim != 1:
        raise SavedFileError(f"columns of a saved fit have one dimension, got shape {arrays[key].shape} of {key!r}")
    if kind == "array":
        return pd.Series(arrays[key])
    if kind == "category":
        levels = _series(f"{key}_levels", column["levels"], arrays)
        return pd.Series(pd.Categorical.from_codes(arrays[key], categories=pd.Index(levels), ordered=column["ordered"]))
    dtype = _known_dtype(column["dtype"])
    if kind == "time":
        return pd.Series(arrays[key]).astype(dtype)
    return pd.Series(column["values"], dtype=dtype)


def _known_dtype(name: str) -> Any:
    """The dtype of that name, which must be one of NumPy's or pandas' own."""
    try:
        return pd.api.types.pandas_dtype(name)
    except TypeError as error:
        raise SavedFileError(
            f"a column of this saved fit has the unknown type {name!r}; save the fit without data"
        ) from error
