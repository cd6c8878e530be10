"""What a reader must know about a fitted network, and the warnings that tell it."""

from collections.abc import Mapping

from mixmoe.errors import ConvergenceWarning, DegeneracyWarning, MixmoeWarning
from mixmoe.mixture.estimate import Flag, Starts
from mixmoe.neural.estimators.trained import Problem, Trained

COLLAPSED = 1.001e-8  # residual variance beside that of the response, just above where estimators stop
WARNINGS: Mapping[str, type[MixmoeWarning]] = {
    "not_converged": ConvergenceWarning,
    "not_replicated": ConvergenceWarning,
    "not_finite": ConvergenceWarning,
    "separated": ConvergenceWarning,
    "degenerate": DegeneracyWarning,
}


def unconverged(trained: Trained, gain: float | None) -> Flag:
    """What a reader must know of a fit that did not arrive; `gain` is what it has left to gain, if that is much."""
    count = len(trained.trace.train)
    epochs = f"{count} epoch{'' if count == 1 else 's'}"
    if gain is None:
        return Flag("not_converged", f"the variances still moved after {epochs}; give more epochs")
    return Flag(
        "not_converged",
        f"after {epochs} the log-likelihood could still rise by {gain:.1f} or more, so that it and AIC and BIC "
        "are not those of the maximum; give more epochs, or choose the epoch by validation=",
    )


def collapsed(ratio: float) -> Flag:
    """What a reader must know of a fit without residuals, whose deviation is `ratio` of that of the response."""
    return Flag(
        "degenerate",
        f"the residual standard deviation collapsed to {ratio:.1g} of that of the response: the network fits all rows "
        "but exactly, where the likelihood is unbounded, so that likelihood and standard errors mean nothing; remove "
        "inputs that are functions of the response, use fewer hidden units or fewer person effects, or choose the "
        "epoch by validation=",
    )


def unreplicated(problem: Problem, starts: Starts) -> tuple[Flag, ...]:
    """A flag if only one of several starts reached the best log-likelihood.

    Notes
    -----
    Where validation rows choose the epoch, no start ends at a maximum, and none can be reached twice.
    """
    if starts.n_starts < 2 or starts.n_replicated > 1 or problem.validation.n_rows:
        return ()
    others = ", ".join(f"{starts.logliks[0] - loglik:.3g}" for loglik in starts.logliks[1:])
    return (
        Flag(
            "not_replicated",
            f"only one of {starts.n_starts} starts reached the best log-likelihood, and the others that were fitted to "
            f"the end are {others} below it: there may be a higher one; give more starts, for instance "
            f"starts={4 * starts.n_starts}, or fewer hidden units",
        ),
    )
