"""One model for many responses: genes, regions, items."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import fdrcorrection

from mixmoe._typing import Array
from mixmoe.api import fit as fit_formula
from mixmoe.arguments import checked_jobs
from mixmoe.atomic import PathLike
from mixmoe.design.beside import named_columns
from mixmoe.design.formula import parse_formula
from mixmoe.design.frame import unknown_column, whole_frame
from mixmoe.errors import ArgumentError, DesignError, DroppedRowsWarning, MixmoeWarning, warn
from mixmoe.families import family_of, model_options
from mixmoe.inference.wald import InvalidTest
from mixmoe.mixture.resampling import Journal, fingerprint
from mixmoe.output.records import Table
from mixmoe.output.saved import fingerprints
from mixmoe.output.summary import Printed, header_table
from mixmoe.results import Results
from mixmoe.selection.candidates import FAILURES

_SIZE_FACTOR = "log_size_factor"  # column that holds the offset of an AnnData object
_SHOWN = 12  # reasons of failures that are printed
_MOST_ROWS = 40  # of a table of responses, which is a page of a publication
_OF_ESTIMATES = {"estimate": ("Estimate", "num"), "std_error": ("Std. error", "num")}
_OF_TESTS = {"statistic": ("Statistic", "num"), "df": ("df", "df")}
_P_VALUES = {"p_value": ("P", "p"), "p_bh": ("P (BH)", "p"), "p_holm": ("P (Holm)", "p")}
Extract = Callable[[Results], pd.DataFrame]


class TestsFunctions(Protocol):
    """Results that test their functions of an index."""

    def test_varying(self, *, method: str) -> "pd.DataFrame | InvalidTest":
        """One row per function with its test of constancy, or why there is none."""
        ...


@dataclass(frozen=True, slots=True)
class _Input:
    """Covariates and responses with the same rows.

    Attributes
    ----------
    covariates : DataFrame
    names : tuple of str
    column : callable
        From the name of a response to its values, shape (n,).
    """

    covariates: pd.DataFrame
    names: tuple[str, ...]
    column: Callable[[str], Any]


@dataclass(frozen=True, repr=False)
class Each(Printed):
    """Fits of one model to many responses.

    Attributes
    ----------
    estimates : DataFrame
        One row per response and parameter: response, name, then the columns of `Results.to_frame` (where coefficients
        vary along an index of the tests that they are constant, or of what ``extract=`` returned), and where it has
        p-values p_bh (Benjamini & Hochberg) and p_holm (Holm), adjusted over the responses for each name. A response
        without a fit has one row with its reason.
    fits : DataFrame
        By response: llf, aic, bic, nobs, n_units, converged, flags, seconds, reason.
    interrupted : bool
        Whether Ctrl-C ended the run; the responses are those that were finished.
    n_rows : int
        Rows of the data, of which those with a missing value or a weight of zero are left out of a fit.
    """

    estimates: pd.DataFrame
    fits: pd.DataFrame
    interrupted: bool = False
    n_rows: int = 0

    def to_frame(self) -> pd.DataFrame:
        """A copy of `estimates`."""
        return self.estimates.copy()

    def tables(self) -> tuple[Table, ...]:
        """Counts, and for each parameter its row of every response, or of those with the smallest p-values."""
        failed = self.fits["reason"] != ""
        used = sorted({int(n) for n in self.fits.loc[~failed, "nobs"]})
        facts = (
            ("Responses", len(self.fits)),
            ("Rows", self.n_rows),
            ("Rows of a fit", " to ".join(str(n) for n in dict.fromkeys((*used[:1], *used[-1:])))),
            ("Without a fit", int(failed.sum())),
            ("Not converged", int((~failed & ~self.fits["converged"].astype(bool)).sum())),
            ("With flags", int((self.fits["flags"] != "").sum())),
            ("Seconds", float(self.fits["seconds"].sum())),
        )
        reasons = self.fits.loc[failed, "reason"].head(_SHOWN)
        failures = Table(
            key="failures",
            title="Responses without a fit",
            columns=("Reason",),
            index=tuple(str(name) for name in reasons.index),
            cells=tuple((reason,) for reason in reasons),
            formats=("text",),
        )
        return (header_table(facts), *(t for t in (self._discoveries(), *self._by_name(), failures) if t.index))

    def _by_name(self) -> list[Table]:
        """For each parameter what is known of each response, smallest p-values first if they do not all fit."""
        has_estimates = "estimate" in self.estimates
        heads = {**(_OF_ESTIMATES if has_estimates else _OF_TESTS), **_P_VALUES}
        heads = {column: head for column, head in heads.items() if column in self.estimates}
        tables = []
        for name, part in self.estimates.dropna(subset=["name"]).groupby("name", sort=False):
            if len(part) > _MOST_ROWS and "p_value" in part:
                part = part.sort_values("p_value", kind="stable")
            rows = part.head(_MOST_ROWS).set_index("response")[list(heads)].astype(float)
            more = f"The {len(rows)} of {len(part)} responses with the smallest p-values; to_frame() has all."
            tables.append(
                Table(
                    key=str(name),
                    title=str(name),
                    columns=tuple(head for head, _ in heads.values()),
                    index=tuple(map(str, rows.index)),
                    cells=tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in rows.to_numpy()),
                    formats=tuple(form for _, form in heads.values()),
                    notes=(more,) if len(part) > len(rows) else (),
                )
            )
        return tables if heads else []

    def only(self, names: str | Sequence[str]) -> "Each":
        """The same for some of the parameters or functions, as in ``each.only("expert1.x").to_latex()``.

        Parameters
        ----------
        names : str or sequence of str
            As in the column ``name`` of `estimates`.

        Raises
        ------
        ArgumentError
            If no response has a name.
        """
        wanted = (names,) if isinstance(names, str) else tuple(names)
        known = list(dict.fromkeys(self.estimates["name"].dropna()))
        for name in wanted:
            if name not in known:
                raise ArgumentError(f"no response has a row {name!r}; rows are {', '.join(map(repr, known))}")
        kept = self.estimates["name"].isin(wanted) | self.estimates["name"].isna()
        return replace(self, estimates=self.estimates[kept].reset_index(drop=True))

    def _discoveries(self) -> Table:
        """How many responses have small p-values."""
        columns = [c for c in ("p_value", "p_bh", "p_holm") if c in self.estimates]
        tested = self.estimates.dropna(subset=columns) if columns else self.estimates.head(0)
        groups = list(tested.groupby("name", sort=False))
        heads = {"p_value": "P < 0.05", "p_bh": "Benjamini-Hochberg", "p_holm": "Holm"}
        return Table(
            key="discoveries",
            title="Responses with p-values below 0.05",
            columns=("Tested", *(heads[c] for c in columns)),
            index=tuple(str(name) for name, _ in groups),
            cells=tuple((len(part), *(int((part[c] < 0.05).sum()) for c in columns)) for _, part in groups),
            formats=("num",) * (1 + len(columns)),
        )

    @property
    def title(self) -> str:
        """Heading above the tables."""
        return f"One model for {len(self.fits)} responses"

    @property
    def remarks(self) -> tuple[str, ...]:
        """How p-values were adjusted, and what a name means."""
        cut = ("Interrupted: the responses are those that were finished.",) if self.interrupted else ()
        return (
            *cut,
            "P-values are adjusted over the responses, for each parameter on its own. Experts are numbered by size "
            "within each fit, so that expert 2 of one response need not hold the same units as expert 2 of another.",
        )

    def add_to(self, adata: Any, key: str = "mixmoe") -> None:
        """Write into an AnnData object: the estimates to ``uns[key]``, those and flags of genes to columns of ``var``.

        Parameters
        ----------
        adata : AnnData
            Its ``var_names`` hold the responses.
        key : str
            Columns are called ``key.converged``, ``key.flags`` (codes, empty if there are none), ``key.reason`` (why
            there is no fit), ``key.name.estimate``, ``key.name.p_bh`` ...
        """
        if not _is_anndata(adata):
            raise ArgumentError(f"add_to takes an AnnData object, got {type(adata).__name__}")
        adata.uns[key] = self.to_frame()
        adata.var[f"{key}.converged"] = self.fits["converged"].astype(bool).reindex(adata.var_names, fill_value=False)
        for column in ("flags", "reason"):
            adata.var[f"{key}.{column}"] = self.fits[column].reindex(adata.var_names, fill_value="")
        known = self.estimates.dropna(subset=["name"])
        for name, part in known.groupby("name", sort=False):
            for column in ("estimate", "std_error", "statistic", "p_value", "p_bh"):
                if column in part:
                    values = part.set_index("response")[column].astype(float)
                    adata.var[f"{key}.{name}.{column}"] = values.reindex(adata.var_names)


def fit_each(
    responses: Sequence[str] | pd.DataFrame | None,
    formula: str,
    data: Any,
    experts: int = 2,
    *,
    layer: str | None = None,
    size_factors: str | None = None,
    extract: Extract | None = None,
    rng: Any = None,
    n_jobs: int = 1,
    progress: bool | None = None,
    checkpoint: PathLike | None = None,
    **options: Any,
) -> Each:
    """Fit one model to each of many responses.

    Parameters
    ----------
    responses : sequence of str, DataFrame or None
        Columns of `data`; or a frame of responses with the rows of `data`; of an AnnData object names of genes, None
        for all.
    formula : str
        Without a response: ``"~ dose | gate: batch | vary: pseudotime"``.
    data : DataFrame (pandas, or what narwhals reads), mapping of columns, or AnnData
        Of an AnnData object covariates are the columns of ``obs``, responses those of ``X`` or of a layer.
    experts : int
    layer : str, optional
        Of an AnnData object.
    size_factors : str, optional
        Column of ``obs`` of an AnnData object, or ``"total"`` for the total count of each cell over the mean of these:
        its logarithm is the offset.
    extract : callable, optional
        From the results of a fit to a frame with one row per name and a column ``p_value`` if it has tests. By default
        `Results.to_frame`; for a formula with ``vary:``, whose rows would be values of functions at places of the
        index, the asymptotic tests that these are constant, ``results.test_varying(method="asymptotic")``, unless rows
        are clustered, which these tests are not for. Picklable if `n_jobs` is not 1.
    rng : int, numpy.random.Generator or None
        Every response has a generator of its own: results do not depend on `n_jobs`.
    n_jobs : int
        Worker processes (joblib; an active backend such as Dask's is used), -1 for all cores.
    progress : bool, optional
    checkpoint : path-like, optional
        A file. Finished responses are kept there, and the same call continues where an earlier one stopped.
    **options
        Of the model and of its fit, as in `fit`.

    Returns
    -------
    Each

    Raises
    ------
    ArgumentError, FormulaError, DesignError
        If arguments are wrong, or no response can be fitted.

    Warns
    -----
    DroppedRowsWarning
        If rows were left out of a fit.

    References
    ----------
    Benjamini & Hochberg (1995), JRSS B 57, 289-300. Holm (1979), Scandinavian Journal of Statistics 6, 65-70.

    Examples
    --------
    >>> import mixmoe as mm
    >>> data = mm.datasets.load("orthodont").assign(half=lambda d: d["distance"] / 2)
    >>> each = mm.fit_each(["distance", "half"], "~ age | re: (1 | subject)", data, experts=1)
    >>> each.to_frame().query("name == 'expert1.age'")["estimate"].round(2).tolist()
    [0.66, 0.33]
    """
    given = _input(responses, data, layer, size_factors)
    if size_factors is not None:
        if "offset" in options:
            raise ArgumentError("size_factors= makes the offset, so offset= cannot be given as well; leave one out")
        options = {**options, "offset": _SIZE_FACTOR}
    covariates, options = named_columns(given.covariates, options)
    given = replace(given, covariates=covariates)
    if not isinstance(formula, str) or not formula.lstrip().startswith("~"):
        raise ArgumentError(f"the formula of fit_each has no response and begins with '~', got {formula!r}")
    # The formula of the first response is read, and options are those of its family.
    parsed = parse_formula(_formula(given.names[0], formula))
    model_options(family_of(parsed, options), options)
    if extract is None and parsed.vary is not None and "cluster" not in options:
        extract = _constancy
    # What tells data apart for a checkpoint: the covariates, and names and values of the responses.
    responses_key = tuple(tuple(fingerprints(pd.DataFrame({n: given.column(n)})).items()) for n in given.names)
    data_key = (tuple(sorted(fingerprints(given.covariates).items())), responses_key)
    key = fingerprint((formula, experts, options, data_key, extract))
    with Journal(checkpoint, key, rng) as journal:
        generators = journal.rng.spawn(len(given.names))
        fit_one = partial(_fit_one, formula=formula, experts=experts, options=options, extract=extract)
        calls = _Calls(given, tuple(zip(given.names, generators, strict=True)), fit_one)
        found = journal.run(calls, checked_jobs(n_jobs), "responses", progress)
    records = [dict(value) for value in found.values]
    if records and all(record["reason"] for record in records):
        reasons = {record["reason"] for record in records}
        # One reason of several responses is that of what they share: the formula, the covariates, the offset.
        if len(reasons) == 1 and len(records) > 1:
            raise DesignError(f"no response could be fitted, all for one reason: {records[0]['reason']}")
        raise DesignError(f"no response could be fitted; {records[0]['response']!r}: {records[0]['reason']}")
    n, fits = len(given.covariates), _fits(records)
    most = max((n - int(used) for used in fits.loc[fits["reason"] == "", "nobs"]), default=0)
    if most:
        warn(
            f"up to {most} of {n} rows were left out of a fit, for a missing value or a weight of zero; column nobs of "
            "fits has what is left for each response",
            DroppedRowsWarning,
        )
    return Each(_estimates(records), fits, found.interrupted, n)


def _input(responses: Any, data: Any, layer: str | None, size_factors: str | None) -> _Input:
    """Covariates and responses from the forms in which they may come."""
    if _is_anndata(data):
        return _from_anndata(responses, data, layer, size_factors)
    for name, value in (("layer", layer), ("size_factors", size_factors)):
        if value is not None:
            way = "; give the logarithms of the size factors as offset=" if name == "size_factors" else ""
            raise ArgumentError(f"{name}= belongs to an AnnData object, got data of type {type(data).__name__}{way}")
    frame = whole_frame(data)
    if isinstance(responses, pd.DataFrame):
        return _from_frames(responses, frame)
    if responses is None or isinstance(responses, str):
        raise ArgumentError(f"responses must be a list of columns or a frame of responses, got {responses!r}")
    names = _checked_names(responses)
    for name in names:
        if name not in frame:
            raise unknown_column(str(name), map(str, frame.columns), "responses=")
    return _Input(frame.drop(columns=list(names)), names, frame.loc[:, list(names)].__getitem__)


def _from_frames(responses: pd.DataFrame, data: pd.DataFrame) -> _Input:
    names = _checked_names(responses.columns)
    if len(responses) != len(data):
        raise ArgumentError(f"responses have {len(responses)} rows, the data {len(data)}; they must be the same rows")
    if not responses.index.equals(data.index):
        if not (responses.index.is_unique and data.index.isin(responses.index).all()):
            raise ArgumentError("the index of the responses is not that of the data; give both the same labels of rows")
        responses = responses.loc[data.index]
    shared = [name for name in names if name in data]
    if shared:
        raise ArgumentError(f"{shared[0]!r} is a column of the responses and of the data; rename one of them")
    return _Input(data, names, responses.__getitem__)


def _from_anndata(responses: Any, adata: Any, layer: str | None, size_factors: str | None) -> _Input:
    names = _checked_names(adata.var_names if responses is None else responses)
    unknown = [name for name in names if name not in adata.var_names]
    if unknown:
        raise DesignError(f"the response {unknown[0]!r} is none of the {adata.n_vars} variables of the AnnData object")
    if layer is not None and layer not in adata.layers:
        raise ArgumentError(f"there is no layer {layer!r}; layers are {', '.join(map(repr, adata.layers)) or 'none'}")
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        raise ArgumentError("the AnnData object has no X; name a layer")
    matrix = matrix.tocsc() if hasattr(matrix, "tocsc") else np.asarray(matrix)
    places = dict(zip(names, adata.var_names.get_indexer(list(names)), strict=True))
    covariates = pd.DataFrame(adata.obs)  # with the names of the cells, by which Series beside the formula are aligned
    if size_factors is not None:
        covariates = covariates.assign(**{_SIZE_FACTOR: np.log(_size_factors(covariates, matrix, size_factors))})

    def column(name: str) -> Array:
        found = matrix[:, [places[name]]]
        return np.asarray(found.toarray() if hasattr(found, "toarray") else found, dtype=float).ravel()

    return _Input(covariates, names, column)


def _size_factors(covariates: pd.DataFrame, matrix: Any, size_factors: str) -> Array:
    if size_factors in covariates:
        values = covariates[size_factors].to_numpy(dtype=float)
    elif size_factors == "total":
        totals = np.asarray(matrix.sum(axis=1), dtype=float).ravel()
        values = totals / totals.mean()
    else:
        raise ArgumentError(f"size_factors must be a column of obs or 'total', got {size_factors!r}")
    if not (values > 0).all():
        bad = np.flatnonzero(~(values > 0))
        counted = size_factors not in covariates
        of_total = ", that is, no counts" if counted else ""
        positive = "adata.to_df().sum(axis=1) > 0" if counted else f"adata.obs[{size_factors!r}] > 0"
        raise ArgumentError(
            f"size factors must be positive; {len(bad)} of {len(values)} cells have none, the first of them "
            f"{covariates.index[bad[0]]!r} with {values[bad[0]]:g}{of_total}; leave these cells out first, as with "
            f"adata[{positive}]"
        )
    return values


def _is_anndata(data: Any) -> bool:
    return type(data).__module__.partition(".")[0] == "anndata" and hasattr(data, "var_names")


def _checked_names(given: Any) -> tuple[str, ...]:
    names = tuple(given)
    for name in names:
        if not isinstance(name, str) or "`" in name:
            raise ArgumentError(f"names of responses must be texts without backticks, got {name!r}")
    if not names:
        raise ArgumentError("responses must name at least one column, got none")
    twice = pd.Index(names)[pd.Index(names).duplicated()]
    if len(twice):
        raise ArgumentError(f"the response {twice[0]!r} is given twice")
    return names


def _formula(name: str, formula: str) -> str:
    return f"`{name}` {formula.lstrip()}"


@dataclass(frozen=True, slots=True)
class _Calls(Sequence[Callable[[], Any]]):
    """One call per response, each made when it is asked for: a worker gets one column, memory holds a few of them."""

    given: _Input
    each: tuple[tuple[str, np.random.Generator], ...]
    fit_one: Callable[..., Any]

    def __len__(self) -> int:
        return len(self.each)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return replace(self, each=self.each[i])
        name, rng = self.each[i]
        return partial(self.fit_one, name, self.given.covariates.assign(**{name: self.given.column(name)}), rng)


def _fit_one(
    name: str,
    frame: pd.DataFrame,
    rng: np.random.Generator,
    formula: str,
    experts: int,
    options: Mapping[str, Any],
    extract: Extract | None,
) -> dict[str, Any]:
    """What is kept of one response; a fit that fails leaves its reason."""
    started = time.perf_counter()
    record: dict[str, Any] = {"response": name, "reason": ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MixmoeWarning)  # what they say is in the flags
            found = fit_formula(_formula(name, formula), frame, experts=experts, rng=rng, progress=False, **options)
            rows = found.to_frame() if extract is None else extract(found)
        record |= {
            "llf": found.llf,
            "aic": found.aic,
            "bic": found.bic,
            "nobs": found.nobs,
            "n_units": found.n_units,
            "converged": bool(found.converged),
            "flags": ", ".join(dict.fromkeys(flag.code for flag in found.flags)),
            "names": [str(label) for label in rows.index],
            "columns": {str(c): _plain(rows[c]) for c in rows.columns},
        }
    except FAILURES as error:
        record["reason"] = f"{type(error).__name__}: {error}"
    return {**record, "seconds": time.perf_counter() - started}


def _constancy(results: Results) -> pd.DataFrame:
    """Tests that functions of an index are constant, one row each.

    Raises
    ------
    ArgumentError
        If they cannot be tested.
    """
    found = cast(TestsFunctions, results).test_varying(method="asymptotic")
    if isinstance(found, InvalidTest):
        raise ArgumentError(f"no test that functions are constant ({found.reason}); give extract= what to keep instead")
    return found


def _plain(values: pd.Series) -> list[Any]:
    """Values as JSON has them; missing ones are None."""
    return [None if pd.isna(v) else v.item() if isinstance(v, np.generic) else v for v in values.tolist()]


def _estimates(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """All rows below one another, with adjusted p-values."""
    parts = [
        pd.DataFrame({"response": record["response"], "name": record["names"], **record["columns"], "reason": ""})
        if not record["reason"]
        else pd.DataFrame({"response": [record["response"]], "name": [None], "reason": [record["reason"]]})
        for record in records
    ]
    # Rows of failures have missing cells; they come last so that columns keep the types of the fits.
    fitted = [part for part in parts if part["name"].notna().all()]
    failed = [part for part in parts if part["name"].isna().any()]
    frame: pd.DataFrame = pd.concat([*fitted, *failed], ignore_index=True)
    order = {record["response"]: i for i, record in enumerate(records)}
    frame = frame.sort_values("response", key=lambda names: names.map(order), kind="stable", ignore_index=True)
    if "p_value" in frame:
        p = frame["p_value"].astype(float)
        for column, adjust in (("p_bh", lambda p: fdrcorrection(p)[1]), ("p_holm", holm)):
            frame[column] = p.groupby(frame["name"]).transform(partial(_adjusted, adjust=adjust))
    return frame[[*(c for c in frame.columns if c != "reason"), "reason"]]


def _adjusted(p_values: pd.Series, adjust: Callable[[Array], Array]) -> pd.Series:
    """Adjusted p-values of those that are known."""
    known = p_values.notna()
    result = p_values.copy()
    if known.any():
        result[known] = adjust(p_values[known].to_numpy())
    return result


def holm(p_values: Array) -> Array:
    """P-values adjusted by Holm (1979), shape (n,).

    `statsmodels.stats.multitest.multipletests` gives the same, but collects garbage in each call: with a call for each
    parameter this took as long as many of the fits.
    """
    order, n = np.argsort(p_values), len(p_values)
    adjusted = np.empty(n)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * np.arange(n, 0, -1)), 1.0)
    return adjusted


def _fits(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    columns = ("llf", "aic", "bic", "nobs", "n_units", "converged", "flags", "seconds", "reason")
    empty = {"converged": False, "flags": "", "llf": np.nan, "aic": np.nan, "bic": np.nan, "nobs": 0, "n_units": 0}
    rows = [[record.get(c, empty.get(c)) for c in columns] for record in records]
    return pd.DataFrame(rows, columns=list(columns), index=pd.Index([r["response"] for r in records], name="response"))
