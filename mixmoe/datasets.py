"""Public data that come with the package."""

from collections.abc import Callable, Mapping
from importlib.resources import files
from types import MappingProxyType

import pandas as pd

from mixmoe.errors import ArgumentError


def names() -> tuple[str, ...]:
    """Names that :func:`load` knows."""
    return tuple(_PREPARE)


def load(name: str) -> pd.DataFrame:
    """A public data set as a new frame, one row per visit.

    Parameters
    ----------
    name : str
        One of:

        ``"pbcseq"``
            Mayo Clinic trial of D-penicillamine in primary biliary cholangitis (cirrhosis), sequential visits:
            312 patients, 1,945 visits. ``id``; ``futime`` days from registration to death, transplant or end of
            study; ``status`` 0 censored, 1 transplant, 2 death; ``trt`` arm (1 D-penicillamine, 0 placebo); ``age`` in
            years at entry; ``sex`` "f" or "m"; ``day`` of the visit since enrolment and ``year`` = day / 365.25;
            ``ascites``, ``hepato`` (enlarged liver), ``spiders`` (blood vessel malformations) 0 or 1; ``edema`` 0 none,
            0.5 untreated or resolved, 1 despite diuretics; ``bili`` serum bilirubin (mg/dl); ``chol`` serum cholesterol
            (mg/dl); ``albumin`` (g/dl); ``alk_phos`` alkaline phosphatase (U/l); ``ast`` aspartate aminotransferase
            (U/ml); ``platelet`` count; ``protime`` prothrombin time (s); ``stage`` histologic stage 1 to 4.
        ``"sleepstudy"``
            Reaction times in sleep deprivation: 18 subjects on 10 days. ``subject``, ``days``, ``reaction`` (ms).
        ``"orthodont"``
            Distance from pituitary to pterygomaxillary fissure of 27 children at ages 8, 10, 12 and 14. ``subject``,
            ``sex`` "Male" or "Female", ``age`` in years, ``distance`` (mm).

    Returns
    -------
    DataFrame
        The caller may change it: each call reads the file again.

    Raises
    ------
    ArgumentError
        If no data set has this name.

    References
    ----------
    pbcseq: Fleming & Harrington (1991), Counting Processes and Survival Analysis, Wiley, appendix D; Therneau &
    Grambsch (2000), Modeling Survival Data: Extending the Cox Model, Springer; Murtaugh et al. (1994), Hepatology 20,
    126-134. sleepstudy: Belenky et al. (2003), Journal of Sleep Research 12, 1-12. orthodont: Potthoff & Roy (1964),
    Biometrika 51, 313-326.

    Examples
    --------
    >>> load("pbcseq").groupby("id").size().agg(["size", "sum"]).tolist()
    [312, 1945]
    """
    if name not in _PREPARE:
        raise ArgumentError(f"there is no data set {name!r}; the names are {', '.join(map(repr, names()))}")
    with (files("mixmoe") / "data" / f"{name}.csv").open("rb") as file:
        return _PREPARE[name](pd.read_csv(file))


def _with_year(data: pd.DataFrame) -> pd.DataFrame:
    """The same frame with the time of the visit in years behind that in days."""
    data.insert(list(data.columns).index("day") + 1, "year", data["day"] / 365.25)
    return data


def _as_read(data: pd.DataFrame) -> pd.DataFrame:
    return data


_PREPARE: Mapping[str, Callable[[pd.DataFrame], pd.DataFrame]] = MappingProxyType(
    {"pbcseq": _with_year, "sleepstudy": _as_read, "orthodont": _as_read}
)
