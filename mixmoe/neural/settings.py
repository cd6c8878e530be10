"""Settings of a fit: defaults put in, and those that an estimator does not have refused or pointed out."""

import numbers
from typing import Any

from mixmoe._frame import shown
from mixmoe.errors import ArgumentError, MixmoeWarning, warn
from mixmoe.neural.exact import is_exact
from mixmoe.neural.problem import Control, Estimator, Problem

EPOCHS = {"laplace": 1500, "sgd": 5000}
CRF_EPOCHS = 400
PATIENCE = 400  # of the published rule
SHARE = 0.2  # validation rows of the published rule


def build_control(estimator: Estimator, problem: Problem, **given: Any) -> Control:
    """Control from the options of `NME.fit`; those that are None have the default of the estimator.

    Raises
    ------
    ArgumentError
        For values out of range, and for batches where the estimator needs everyone at once.
    """
    options = {name: value for name, value in given.items() if value is not None}
    control = Control(**{**defaults(estimator, problem), **options})
    if estimator == "laplace":
        for name in ("alpha", "penalty"):
            if name in options:
                warn(unused(name, options[name]), MixmoeWarning)
        if control.batch_size is not None and is_exact(problem):
            raise ArgumentError(
                f"batch_size={control.batch_size} is not possible with the exact likelihood of effects on the last "
                "layer, which needs everyone at each step; leave it out, or use estimator='sgd'"
            )
    return control


def defaults(estimator: Estimator, problem: Problem) -> dict[str, Any]:
    """Settings that depend on the estimator."""
    if estimator == "sgd":
        return {"epochs": EPOCHS["sgd"], "patience": PATIENCE}
    return {"epochs": CRF_EPOCHS if problem.family == "crf" else EPOCHS["laplace"]}


def unused(name: str, value: Any) -> str:
    """What a user must know who gives the default estimator a setting of the published rule."""
    what = {"alpha": "it has no annealing", "penalty": "its penalty has the weight that the model says"}[name]
    return f"{name}={value} is a setting of estimator='sgd'; 'laplace' does not use it, because {what}"


def checked_share(value: Any, name: str, *, zero: bool) -> float:
    """A share of rows: below one, and above zero or at least zero.

    Raises
    ------
    ArgumentError
        If it is none.
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (real and 0.0 <= value < 1.0 and (zero or value > 0.0)):
        raise ArgumentError(f"{name} must be a number {'from' if zero else 'above'} 0 and below 1, got {shown(value)}")
    return float(value)


def validation_share(value: Any, estimator: Estimator, patience: Any) -> float:
    """Share of validation rows, that of the estimator if none is given.

    Raises
    ------
    ArgumentError
        If it is no share, or if there is nothing to be patient for.
    """
    default = SHARE if estimator == "sgd" else 0.0
    share = default if value is None else checked_share(value, "validation", zero=True)
    if patience is not None and not share:
        raise ArgumentError(f"patience={patience!r} waits for the validation loss; give validation=, such as 0.2, too")
    return share
