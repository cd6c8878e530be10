"""Tables and curves of an NME beyond the common ones, and its rivals on held-out rows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.arguments import checked_count
from mixmoe.errors import ArgumentError, DesignError
from mixmoe.mixture.estimate import Starts
from mixmoe.neural.blocks import to_array, torch
from mixmoe.neural.estimators.last_layer import fit_last_layer, fit_on_features, is_exact, last_outputs
from mixmoe.neural.estimators.linearised import fit_laplace
from mixmoe.neural.estimators.state import pieces
from mixmoe.neural.estimators.trained import (
    Control,
    Estimator,
    Problem,
    Trace,
    Trained,
    block_loss,
    block_outputs,
    parts_of,
    responses_in,
)
from mixmoe.neural.estimators.training import fit_published
from mixmoe.neural.marginal_likelihood import n_points
from mixmoe.neural.network import initial_parameters
from mixmoe.neural.person_predictions import to_state, whole_jacobian
from mixmoe.neural.personal_layers import select_personal
from mixmoe.neural.response_law import Family, asked_family
from mixmoe.numerics.optimise import progress_bar
from mixmoe.output.records import Cell, Curve, Table


def learning_curves(trace: Trace, /) -> tuple[Curve, ...]:
    """Training and validation loss per epoch, and the mean variance of the effects.

    Raises
    ------
    ArgumentError
        If there were no epochs.
    """
    if not len(trace.train):
        raise ArgumentError("a linear network with an exact likelihood is fitted without epochs, so no loss is drawn")
    x = np.arange(1, len(trace.train) + 1, dtype=float)
    curves = [Curve("loss", "training", x, trace.train, xlabel="epoch", ylabel="loss per row")]
    if np.isfinite(trace.validation).any():
        curves.append(Curve("loss", "validation", x, trace.validation, expert=2, xlabel="epoch"))
    curves.append(Curve("variance", "effects", x, trace.variance, xlabel="epoch", ylabel="mean variance of effects"))
    return tuple(curves)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Errors on rows that no model was fitted to.

    Attributes
    ----------
    models : tuple of str
    errors : ndarray, shape (n_models,)
        Mean squared error on the response's scale, or negative log-likelihood per row.
    n_rows : int
        Rows held out: the last of each person (or sequence), of a CRF those with a state.
    measure : str
    """

    models: tuple[str, ...]
    errors: Array
    n_rows: int
    measure: str


def fit_network(problem: Problem, control: Control, estimator: Estimator, rng: np.random.Generator) -> Trained:
    """A network with person effects by the estimator that suits it.

    Notes
    -----
    ``"laplace"`` with a Gaussian response and effects on the last layer only is the exact marginal likelihood.
    """
    theta = initial_parameters(problem.network, rng)
    try:
        if estimator == "sgd":
            return fit_published(problem, control, theta, rng)
        exact = is_exact(problem)
        return fit_last_layer(problem, control, theta) if exact else fit_laplace(problem, control, theta, rng)
    except torch.linalg.LinAlgError as error:
        raise DesignError(
            f"a matrix of the fit has no Cholesky factor ({str(error).splitlines()[0]}): too few rows for a network of "
            f"{problem.network.n_parameters} parameters, or numbers too large; use fewer hidden units, or rescale"
        ) from error


KEPT = 4  # starts that are fitted to the end
SAME = 0.1  # log-likelihood by which two ends of one maximum may differ


@dataclass(frozen=True, slots=True)
class Found:
    """The best of several starts, and what all led to.

    Attributes
    ----------
    trained : Trained
    starts : Starts
        Log-likelihoods on the scale of the network.
    """

    trained: Trained
    starts: Starts


def checked_starts(starts: Any, estimator: Estimator) -> int:
    """A number of starts.

    Raises
    ------
    ArgumentError
        If it is none, or if there is no likelihood to compare starts by.
    """
    count = checked_count(starts, "starts")
    if count > 1 and estimator == "sgd":
        raise ArgumentError(
            f"starts={starts} are compared by their likelihood, which the published rule has not; use "
            "estimator='laplace', or fit with several rng= and compare validate()"
        )
    return count


def fit_starts(problem: Problem, control: Control, estimator: Estimator, n_starts: int, seed: int) -> Found:
    """The best fit from several starts: all for a fifth of the epochs, the best few of them to the end.

    Notes
    -----
    Starts are compared by the log-likelihood, with a validation set by the error there. The first start is that of a
    fit from one start.
    """
    several = n_starts if problem.network.hidden else 1
    seeds = [seed, *np.random.default_rng(seed).integers(2**32, size=several - 1).tolist()]
    short = replace(control, epochs=max(control.epochs // 5, 1), progress=False)
    tried = [fit_network(problem, short, estimator, np.random.default_rng(s)) for s in seeds] if several > KEPT else []
    order = sorted(range(several), key=lambda k: -standing(problem, tried[k])) if tried else list(range(several))
    ends = [fit_network(problem, control, estimator, np.random.default_rng(seeds[k])) for k in order[:KEPT]]
    ends.sort(key=lambda fit: -standing(problem, fit))
    logliks = np.array([fit.loglik for fit in ends])
    replicated = int((logliks >= logliks[0] - SAME).sum()) if several > 1 else 1
    others = [tried[k].loglik for k in order[KEPT:]] if tried else []
    return Found(ends[0], Starts(several, logliks, replicated, np.array([*logliks, *others])))


def standing(problem: Problem, fit: Trained) -> float:
    """What starts are compared by; higher is better."""
    if not problem.validation.n_rows:
        return fit.loglik
    losses = fit.trace.validation  # none of a linear network, which has no epochs, nor of a first step that was lost
    return -float(losses[fit.trace.best]) if len(losses) else -np.inf


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Error of one model on rows that it was not fitted to.

    Attributes
    ----------
    error, se : float
        Mean per row as in `Comparison`, and its standard error, persons being independent; NaN for one person.
    n_rows : int
    measure : str
    """

    error: float
    se: float
    n_rows: int
    measure: str


def held_out(problem: Problem, fit: Trained, scale: float) -> HeldOut:
    """Error per validation row with its standard error.

    Parameters
    ----------
    problem : Problem
        With the held-out rows as its validation set.
    fit : Trained
    scale : float
        Variance of the response; 1 for families without one.
    """
    with torch.no_grad():
        eta, theta = problem.tensor(fit.eta) if problem.personal.q else None, problem.tensor(fit.theta)
        others = [problem.tensor(mine.z @ mine.loading.T) for mine in fit.further]
        losses, counts = (problem.tensor(np.zeros(problem.n_persons)) for _ in range(2))
        for block in problem.validation:
            each = block_loss(problem, block, theta, eta, 1.0)
            if others:
                away = block.y - last_outputs(problem, block, theta, eta, others)
                each = 0.5 * (away.square() * block.mask).sum(-1)
            losses.index_add_(0, block.persons, each)
            counts.index_add_(0, block.persons, responses_in(problem, block).sum(1))
    loss, n = to_array(losses) * (2.0 * scale if problem.family == "gaussian" else 1.0), to_array(counts)
    if problem.family == "heteroscedastic":  # of a response in the user's units
        loss += n * 0.5 * np.log(scale)
    total, seen = float(n.sum()), n > 0
    error = float(loss.sum()) / total
    part = (loss - error * n)[seen]
    se = float(np.sqrt(np.square(part).sum() * len(part) / max(len(part) - 1, 1))) / total if len(part) > 1 else np.nan
    return HeldOut(error, se, scored_rows(problem), measure_of(problem))


def scored_rows(problem: Problem) -> int:
    """Validation rows whose response is scored."""
    return sum(int((responses_in(problem, block) > 0).sum()) for block in problem.validation)


def measure_of(problem: Problem) -> str:
    """What an error is."""
    return "squared error" if problem.family == "gaussian" else "negative log-likelihood"


def held_out_error(problem: Problem, fit: Trained) -> float:
    """Error per validation row with the estimated effects, on the standardised scale."""
    return held_out(problem, fit, 1.0).error


def without_validation(problem: Problem) -> Problem:
    """Problem of which no training stops early."""
    return replace(problem, validation=type(problem.validation)((), 0))


def generic(problem: Problem, control: Control, seed: int) -> Trained:
    """The network without person effects."""
    plain = replace(problem, personal=select_personal(problem.network, []), cov="diagonal", further=())
    return fit_network(without_validation(plain), control, "laplace", np.random.default_rng(seed))


def compare(problem: Problem, control: Control, estimator: Estimator, seed: int, scale: float) -> Comparison:
    """Held-out errors of the generic network, one network per person, network + LME, and the model itself.

    Parameters
    ----------
    problem : Problem
        With the rows to hold out as its validation set.
    seed : int
        Start of each.
    scale : float
        Variance of the response, to report errors on its scale; 1 for families without one.
    """
    plain = replace(control, patience=None, progress=False)
    base = generic(problem, plain, seed)
    rows: list[tuple[str, Callable[[], Trained]]] = [("generic network", lambda: base)]
    words = personal_of(problem, PEEKS).personal
    own = replace(problem, personal=words, cov="diagonal", published=True, further=())
    alone = replace(plain, penalty=0.0)  # stopped where the held-out error is least, which flatters it
    rows.append((PEEKS, lambda: fit_network(own, alone, "sgd", np.random.default_rng(seed))))
    if problem.family == "gaussian" and problem.network.module is None:
        last = replace(personal_of(problem, "generic network + LME"), cov="full", prior=0.0)
        rows.append(("generic network + LME", lambda: fit_on_features(last, base.theta)))
    # The published rule stops early on the rows held out, which flatters it.
    others = problem if estimator == "sgd" else without_validation(problem)
    rows.append(("this model", lambda: fit_network(others, plain, estimator, np.random.default_rng(seed))))
    fits = []
    with progress_bar(len(rows), "networks to compare with", control.progress) as bar:
        for _, fit in rows:
            fits.append(fit())
            bar.update()
    errors = [
        held_out_error(personal_of(problem, name), fit) * scale for (name, _), fit in zip(rows, fits, strict=True)
    ]
    return Comparison(tuple(n for n, _ in rows), np.array(errors), scored_rows(problem), measure_of(problem))


def personal_of(problem: Problem, name: str) -> Problem:
    """The problem with the personal part that a row of the comparison has."""
    words = {
        "generic network": [],
        "generic network + LME": ["last"],
        PEEKS: ["all", *(["transitions"] if problem.family == "crf" else [])],
    }
    if name not in words:
        return problem
    return replace(problem, personal=select_personal(problem.network, words[name]))


def personal_words(problem: Problem) -> list[str]:
    """Personal tensors, and how many of their entries where not all are."""
    counts = [(spec, len(problem.personal.places(spec))) for spec in problem.personal.tensors]
    sizes = [spec.stop - spec.start for spec, _ in counts]
    return [
        spec.name if mine == size else f"{spec.name} ({mine} of {size})"
        for (spec, mine), size in zip(counts, sizes, strict=True)
    ]


def given_moves(problem: Problem, states: Sequence[str]) -> str:
    """Transitions of a CRF whose score is given, as text."""
    each = (f"{states[a]} to {states[b]} {'never' if math.isinf(v) else f'{v:g}'}" for a, b, v in problem.network.moves)
    return ", ".join(each)


ROUGH = 0.05  # error of a log-likelihood from which on a reader must know it: AIC and ratios have twice that


def architecture_table(
    estimator: Estimator, problem: Problem, fit: Trained, states: Sequence[str] = (), error: float | None = None
) -> Table:
    """What the network is, what is personal in it, and how it was estimated.

    Parameters
    ----------
    states : sequence of str
        Of a CRF.
    error : float, optional
        Of the integrals over the effects, in log-likelihood, where the fit is at the maximum of these.
    """
    network = problem.network
    widths = " - ".join(map(str, (network.n_in, *network.hidden, network.n_out)))
    shape = network.activation if network.hidden else "linear"
    parts = parts_of(problem)
    own = [", ".join(personal_words(part)) or "nothing" for part in parts]
    exact = is_exact(problem) and estimator == "laplace"
    held = bool(problem.validation.n_rows) and estimator == "laplace"
    how = {"laplace": "linearised Laplace", "sgd": "published rule"}[estimator]
    if exact:
        how = "exact marginal likelihood"
    elif error is not None:
        how = f"marginal likelihood, {n_points(problem)} points (error {error:.1g})"
    notes = ("Log-likelihood of all rows, at parameters estimated without the validation rows.",) * held
    if error is not None and error >= ROUGH:
        both = f"{error:.1g}, criteria and likelihood ratios to {2.0 * error:.1g}"
        notes += (f"The log-likelihood is known to {both}: models that differ by less are not told apart.",)
    rows: list[tuple[str, Cell]] = [
        ("Family", asked_family(problem.family)),
        (
            "Network",
            type(network.module).__name__ if network.module is not None else f"{widths} ({shape})",
        ),
        ("Shared parameters", network.n_parameters),
        ("Personal", own[0]),
        *((f"By {g.name}", f"{mine}; {g.n_levels} levels") for g, mine in zip(problem.further, own[1:], strict=True)),
        *((("Given transitions", given_moves(problem, states)),) if network.moves else ()),
        ("Personal parameters", sum(part.personal.q for part in parts)),
        (
            "Covariance of effects",
            ", ".join(dict.fromkeys(f"rank {p.cov}" if isinstance(p.cov, int) else p.cov for p in parts)),
        ),
        ("Estimator", how),
        ("Epochs (best)", f"{len(fit.trace.train)} ({fit.trace.best + 1})" if len(fit.trace.train) else "none needed"),
    ]
    return Table(
        "architecture",
        "Network",
        ("value",),
        tuple(name for name, _ in rows),
        tuple((value,) for _, value in rows),
        ("num",),
        notes,
    )


PEEKS = "one network per person"  # stopped where its held-out error is least, as it has no other way to end


def comparison_table(found: Comparison, family: Family) -> Table:
    """Held-out errors of the models; the best of those that did not see the rows has a ratio of one."""
    fair = [error for name, error in zip(found.models, found.errors, strict=True) if name != PEEKS]
    best, of = float(np.nanmin(fair)), "sequence" if family == "crf" else "person"
    given = ("States are scored given those before them in the sequence.",) if family == "crf" else ()
    return Table(
        "comparison",
        f"Held-out {found.measure} ({found.n_rows} rows, the last of each {of})",
        ("error", "ratio to best"),
        found.models,
        tuple(
            (float(e), float(e / best) if best > 0 and name != PEEKS else None)
            for name, e in zip(found.models, found.errors, strict=True)
        ),
        ("num", ".3f"),
        (
            "One network per person is stopped where its held-out error is least, which flatters it, so that it has no "
            "ratio.",
            *given,
        ),
    )


def share_table(problem: Problem, fit: Trained) -> Table | None:
    """Shares of the response's variance: population, person effects (linearised), residual (Gaussian)."""
    if problem.family != "gaussian" or not problem.personal.q:
        return None
    variances = {"population": population_variance(problem, fit)}
    if problem.further:
        loadings = [fit.loading, *(mine.loading for mine in fit.further)]
        names = ["persons", *(grouping.name for grouping in problem.further)]
        for name, part, L in zip(names, parts_of(problem), loadings, strict=True):
            mine = replace(fit, loading=L, s=np.ones(L.shape[1]), z=np.zeros((problem.n_persons, L.shape[1])))
            variances[f"effects, {name}"] = effect_variance(part, mine, part.personal.group >= 0)
    elif problem.cov in ("diagonal", "tensor") and problem.basis is None:
        names = [spec.name for spec in problem.personal.tensors]
        masks = [problem.personal.group == k for k in range(len(names))]
        parts = zip(names, masks, strict=True)
        variances |= {f"person effects, {name}": effect_variance(problem, fit, mask) for name, mask in parts}
    else:  # effects of several tensors are correlated, and their parts do not add up
        variances["person effects"] = effect_variance(problem, fit, problem.personal.group >= 0)
    variances["residual"] = fit.sigma2
    total = sum(variances.values())
    cells = tuple((float(value / total),) for value in variances.values())
    return Table("shares", "Share of variance", ("share",), tuple(variances), cells, (".3f",))


def effect_variance(problem: Problem, fit: Trained, chosen: NDArray[np.bool_]) -> float:
    """Mean variance of the output due to the chosen effects (q,), at the population's parameters."""
    covariance = problem.tensor(fit.covariance[np.ix_(chosen, chosen)])
    columns = torch.as_tensor(problem.personal.index[chosen], device=problem.device)
    total = 0.0
    with torch.no_grad():
        state = to_state(problem, fit, np.zeros_like(fit.z))
        for whole in problem.train:
            for block in pieces(problem, whole, 2 * problem.network.n_parameters):
                J = whole_jacobian(problem, block, state)[..., 0, columns] * block.mask.unsqueeze(-1)
                total += float(((J @ covariance) * J).sum())
    return total / problem.train.n_rows


def population_variance(problem: Problem, fit: Trained) -> float:
    """Variance between rows of the population's prediction."""
    values = []
    with torch.no_grad():
        for block in problem.train:
            out = block_outputs(problem, block, problem.tensor(fit.theta), None)[0][..., 0]
            values.append(out[block.mask > 0])
        return float(torch.cat(values).var(correction=0))
