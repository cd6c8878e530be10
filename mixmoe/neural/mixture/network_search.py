"""The maximum of the penalised likelihood: random starts in lockstep, quasi-Newton ascents, Newton steps at the end."""

from dataclasses import dataclass, replace

import numpy as np

from mixmoe._typing import Array
from mixmoe.mixture.estimate import Flag, Starts
from mixmoe.neural.blocks import one_thread, to_array, torch
from mixmoe.neural.mixture.likelihood import Problem, evaluate, features, information, log_gate
from mixmoe.neural.mixture.network_parameters import Body, Structure, permuted
from mixmoe.numerics.optimise import ROUNDING, Control, Evaluation, climb

FIRST_SIZE = 0.6  # of the spread of the response: random effects and residual at the start
FIRST_LAPS = 40  # iterations of all starts before the best ones are carried on
CARRIED = 4  # starts at least that are carried to the end
ENOUGH = 48  # starts: advice to give fewer would be none, since twelve are the default
PROMISE = 1e-5  # log-likelihood left to gain, below which ascents are near enough for Newton steps
NEWTON_STEPS = 20
NEAR = 1e-3  # of the tolerance: where Newton steps end
ALIKE = 0.1  # log-likelihood: networks have maxima that differ by less than data can tell, and count as one
RIDGE = 1.0  # of the regressions that give the first heads
APART = 0.3  # standard deviation of what parts the two halves of an expert that is split
COLLAPSED = 1e-3  # residual deviation beside that of the response, below which an expert fits a few rows exactly
BOUNDARY = 1e-4  # of the residual deviation, below which a random effect has none
FLOOR = float(np.log(COLLAPSED / 10))


@dataclass(frozen=True, slots=True)
class Found:
    """End point of a search.

    Attributes
    ----------
    theta : ndarray, shape (P,)
        Experts by decreasing mean probability of the gate.
    value : float
        Penalised log-likelihood of the standardised responses.
    trace : ndarray
    n_evaluations : int
    converged : bool
    starts : Starts
        Penalised log-likelihoods of the standardised responses.
    flags : tuple of Flag
    """

    theta: Array
    value: float
    trace: Array
    n_evaluations: int
    converged: bool
    starts: Starts
    flags: tuple[Flag, ...]


def searched(problem: Problem, n_starts: int, rng: np.random.Generator, control: Control, start: Array | None) -> Found:
    """The best of the maxima that random starts lead to.

    Parameters
    ----------
    problem : Problem
    n_starts : int
        Random starts.
    rng : numpy.random.Generator
    control : Control
    start : ndarray, shape (P,), optional
        A further start.

    Returns
    -------
    Found
    """
    N = problem.rows.n_units
    with one_thread():
        # 1. All starts go a short way side by side, and the best of them to the end.
        drawn = [random_start(problem, rng) for _ in range(n_starts)]
        points = np.array([*drawn, *([] if start is None else [start])])

        def objective(theta: Array) -> Evaluation:
            # Below the floor, where an expert follows a few rows exactly, the likelihood has no maximum.
            inside = (theta[:, problem.structure.logarithmic] > FLOOR).all(axis=1)
            found = evaluate(problem, theta)
            return Evaluation(np.where(inside, found.loglik, -np.inf), found.score)

        # Inverse information of one unit each, which the ascents correct as they go.
        first = np.repeat(np.eye(points.shape[1])[None] / N, len(points), axis=0)
        logarithmic = problem.structure.logarithmic
        short = replace(control, max_iter=min(FIRST_LAPS, control.max_iter), progress=False)
        rough = climb(objective, points, first, N, short, logarithmic=logarithmic)
        best = np.argsort(-rough.loglik, kind="stable")[: max(CARRIED, len(points) // 4)]
        near = replace(control, promise=PROMISE)
        ends = climb(objective, rough.theta[best], first[best], N, near, logarithmic=logarithmic)
        # 2. Degenerate ends are set aside while there are others.
        collapsed = (ends.theta[:, logarithmic] < np.log(COLLAPSED)).any(axis=1)
        value = np.where(collapsed & ~collapsed.all(), -np.inf, ends.loglik)
        winner = int(value.argmax())
        theta, converged = newton(problem, ends.theta[winner], control.tol)
        theta = by_probability(problem, theta)
        top = float(evaluate(problem, theta[None]).loglik[0])
    logliks = np.sort(np.append(value[np.isfinite(value)][np.argsort(-value[np.isfinite(value)])][1:], top))[::-1]
    record = Starts(len(points), logliks, int((logliks > top - ALIKE).sum()), np.sort(rough.loglik)[::-1])
    trace = np.array([*rough.traces[best[winner]], *ends.traces[winner][1:]])
    converged = converged and not (rough.interrupted or ends.interrupted)
    flags = _flags(record, converged, rough.interrupted or ends.interrupted, bool(collapsed[winner]))
    return Found(theta, top, trace, int(ends.n_evaluations[winner]), converged, record, flags)


def newton(problem: Problem, theta: Array, tol: float) -> tuple[Array, bool]:
    """Newton steps from near a maximum, and whether the score then is zero to the tolerance."""
    enough = tol * problem.rows.n_units
    now = evaluate(problem, theta[None])
    for _ in range(NEWTON_STEPS):
        values, vectors = np.linalg.eigh(information(problem, theta))
        # Along directions that bend upwards, and those without information, a step of bounded length along the score.
        step = vectors @ ((vectors.T @ now.score[0]) / np.maximum(np.abs(values), 1e-6 * np.abs(values).max()))
        for size in (1.0, 0.25, 0.05, 0.01):
            after = evaluate(problem, (theta + size * step)[None])
            flatter = np.abs(after.score).max() < np.abs(now.score).max()
            # At the end gains are below rounding, and the score alone tells.
            if after.loglik[0] - now.loglik[0] > (-ROUNDING * abs(now.loglik[0]) if flatter else 0.0):
                break
        else:
            break
        theta, now = theta + size * step, after
        if np.abs(now.score).max() <= NEAR * enough:
            break
    return theta, bool(np.abs(now.score).max() <= enough)


def random_start(problem: Problem, rng: np.random.Generator) -> Array:
    """Random hidden layers, and heads that follow a few subjects for each expert.

    The subjects of an expert's first regression are drawn without those of the others, a tenth of all but at least two.
    """
    s, rows, at = problem.structure, problem.rows, problem.structure.places
    theta, codes = np.zeros(s.size), to_array(rows.codes)
    theta[s.penalised] = rng.normal(size=s.penalised.size)
    for body, name in ((s.body, "body"), (s.gate_body, "gate_body")):
        for places in () if body is None else np.unique(np.atleast_2d(at[name]), axis=0):
            theta[places] *= _fan_in(body)
    members = rng.permutation(rows.n_units)
    share = max(2, rows.n_units // 10)
    for k in range(s.n_experts):
        chosen = np.isin(codes, members[k * share : (k + 1) * share]) if s.n_experts > 1 else codes >= 0
        columns = to_array(rows.X)
        if s.body is not None:
            shown = features(s.body, problem.activation, torch.as_tensor(theta[at["body"][k]]), rows.inputs)
            columns = np.column_stack([columns, to_array(shown)])
        X, y = columns[chosen], to_array(rows.y)[chosen]
        theta[np.append(at["beta"][k], at["head"][k])] = np.linalg.solve(X.T @ X + RIDGE * np.eye(X.shape[1]), X.T @ y)
    theta[at["sigma"]] = np.log(FIRST_SIZE)
    theta[s.diagonal] = FIRST_SIZE
    return theta


def split_start(problem: Problem, smaller: Structure, theta: Array, rng: np.random.Generator) -> Array:
    """The free parameters of a fit with one expert fewer, with its most probable expert twice, moved a little apart.

    Parameters
    ----------
    problem : Problem
    smaller : Structure
        Of that fit.
    theta : ndarray
        Its free parameters.
    rng : numpy.random.Generator
    """
    s, out = problem.structure, random_start(problem, rng)
    for name in ("beta", "factor", "sigma", "body", "head"):
        old = theta[smaller.places[name]]
        out[s.places[name]] = np.concatenate([old, old[:1]])
    for name in ("gamma", "gate_head"):
        # The new expert is as probable as the one that it came from, which is the reference.
        old, places = theta[smaller.places[name]], s.places[name]
        out[places[-1:]] = 0.0
        if old.size:
            out[places[:-1]] = old
    if smaller.gate_body is not None:
        out[s.places["gate_body"]] = theta[smaller.places["gate_body"]]
    for name in ("beta", "head"):
        new = s.places[name][-1]
        out[new] += APART * rng.normal(size=new.size)
    return out


def _fan_in(body: Body | None) -> Array:
    """Standard deviations of the first weights of hidden layers, one over the root of the number of inputs."""
    layers = () if body is None else body.layers
    return np.concatenate([np.append(np.full(a * b, 1.5 / np.sqrt(a)), np.ones(b)) for a, b in layers])


def by_probability(problem: Problem, theta: Array) -> Array:
    """The same point with the experts by decreasing mean probability of the gate."""
    share = to_array(log_gate(problem, problem.rows, torch.as_tensor(theta)).exp().mean(0))
    return permuted(problem.structure, theta, np.argsort(-share, kind="stable").tolist())


def off_singular(s: Structure, theta: Array) -> Array:
    """The same point with factors of random effects exactly singular that are so beside the residual deviation."""
    out, least = theta.copy(), BOUNDARY * np.exp(theta[s.places["sigma"]].min(initial=0.0))
    entries = np.unique(s.places["factor"])
    out[entries] = np.where(np.abs(theta[entries]) < least, 0.0, theta[entries])
    return out


def _flags(starts: Starts, converged: bool, interrupted: bool, degenerate: bool) -> tuple[Flag, ...]:
    flags = []
    if interrupted:
        flags.append(Flag("interrupted", "the search was interrupted; these are the best values so far"))
    elif not converged:
        flags.append(
            Flag(
                "not_converged", "the score is not zero at the end of the search", "give max_iter= more, or more starts"
            )
        )
    if degenerate:
        flags.append(
            Flag(
                "degenerate",
                "an expert follows a few rows exactly, where the likelihood is unbounded: estimates mean nothing",
                "use fewer experts or hidden units, or residual='common'",
            )
        )
    if len(starts.logliks) > 1 and starts.n_replicated == 1:
        others = ", ".join(f"{starts.logliks[0] - value:.3g}" for value in starts.logliks[1:4])
        flags.append(
            Flag(
                "not_replicated",
                f"only one of the {len(starts.logliks)} best of {starts.n_starts} starts, which were carried to the "
                f"end, reached the best value, the next ones are {others} below it: there may be a higher one",
                f"give more starts, for instance starts={max(4 * starts.n_starts, ENOUGH)}",
            )
        )
    return tuple(flags)
