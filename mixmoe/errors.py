"""Errors and warnings of the package, in one tree."""

import difflib
import sys
import warnings
from collections.abc import Iterable


class MixmoeError(Exception):
    """Any error that mixmoe raises on purpose."""


class FormulaError(MixmoeError, ValueError):
    """A formula that cannot be read.

    Parameters
    ----------
    message : str
        What is wrong, with the value; what is allowed; what to do.
    formula : str, optional
        The whole formula; it is shown below the message.
    position : int, optional
        Where in `formula` the offending token starts; a caret marks it.
    width : int
        Length of the offending token, in characters.
    """

    def __init__(self, message: str, formula: str | None = None, position: int | None = None, width: int = 1) -> None:
        self.formula, self.position = formula, position
        if formula is not None:
            message = f"{message}\n    {formula}"
        if formula is not None and position is not None:
            message = f"{message}\n    {' ' * position}{'^' * max(width, 1)}"
        super().__init__(message)


class DesignError(MixmoeError, ValueError):
    """Data that do not fit the formula or the model; names the column and the first offending row."""


class ArgumentError(MixmoeError, ValueError):
    """An argument outside its allowed values."""


class MissingExtraError(MixmoeError, ImportError):
    """A feature that needs an optional package which is not installed.

    Parameters
    ----------
    feature : str
        What was asked for, e.g. ``"plot()"``.
    package : str
        The package that is missing.
    extra : str
        The extra of mixmoe that installs it.
    """

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs {package}, which is not installed; install it with: pip install 'mixmoe[{extra}]'"
        )


class SavedFileError(MixmoeError, ValueError):
    """A file that is not a saved fit of this package, or that cannot be read safely."""


class MixmoeWarning(UserWarning):
    """Any warning that mixmoe gives."""


class ConvergenceWarning(MixmoeWarning):
    """The optimiser stopped before it converged, or the optimum was not replicated."""


class DroppedRowsWarning(MixmoeWarning):
    """Rows with missing values were left out."""


class CollinearityWarning(MixmoeWarning):
    """Columns that are linear combinations of others were left out."""


class BoundaryWarning(MixmoeWarning):
    """A variance is zero, a correlation is one, or a gate coefficient is infinite."""


class DegeneracyWarning(MixmoeWarning):
    """An expert is empty or has collapsed on a few subjects."""


class ApproximationWarning(MixmoeWarning):
    """The integral over the random effects is too coarse for the data."""


class AssumptionWarning(MixmoeWarning):
    """The data speak against an assumption of the analysis asked for."""


def meant(name: str, known: Iterable[str], most: int = 3) -> str:
    """``"did you mean 'x' or 'y'?"``, or nothing where no known name is like the one given."""
    hints = [repr(other) for other in close_names(name, known, most)]
    return f"did you mean {' or '.join(hints)}?" if hints else ""


def close_names(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Known names that the one given may have been meant for, those that differ in capitals alone first."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=most, cutoff=0.6)
    folded = [other for other in names if other.lower() == name.lower() and other not in close]
    return [*folded, *close][:most]


def warn(message: str, category: type[MixmoeWarning]) -> None:
    """Give a warning that points at the line of the user who called the package, however deep it arises."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
