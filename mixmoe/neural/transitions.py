"""Transition probabilities of a CRF and what they go with.

References
----------
Gretton, Fukumizu, Teo, Song, Schoelkopf & Smola (2008), A kernel statistical test of independence, NeurIPS (HSIC).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mixmoe._typing import Array, IntArray
from mixmoe.arguments import checked_count, checked_rng
from mixmoe.design.design import Design
from mixmoe.design.frame import places_of, shown, units_of
from mixmoe.errors import ArgumentError
from mixmoe.neural.batches import Scaling
from mixmoe.neural.blocks import Blocks, Tensor, build_blocks, to_array, torch
from mixmoe.neural.crf import centred, interior, next_state
from mixmoe.neural.network import Network, forward, view_tensors, with_given_moves
from mixmoe.neural.person_predictions import Uncertainty, to_state
from mixmoe.output.predictions import known_places

if TYPE_CHECKING:
    from mixmoe.neural.persons import Persons


N_DRAWS = 400
LITTLE = 1e-3  # share of a person's largest variance of a posterior mean below which a direction tells nothing of her


@dataclass(frozen=True, slots=True)
class Association:
    """A permutation test of independence between transitions and a covariate.

    Attributes
    ----------
    statistic : float
        HSIC with Gaussian kernels, median widths.
    pvalue : float
    n : int
        Persons.
    permutations : int
    """

    statistic: float
    pvalue: float
    n: int
    permutations: int


@dataclass(frozen=True, slots=True, repr=False)
class Transitions:
    """Transition scores and probabilities.

    Attributes
    ----------
    population : DataFrame
        Columns ``from``, ``to``, ``probability``, ``lower``, ``upper``: probabilities of the next state given the
        present one in the middle of a long sequence whose rows all have average inputs, of a person with effects of
        zero, and at average covariates of persons where ``gate:`` names some. Limits are 95 %, of draws.
    persons : DataFrame
        The same by person, at her effects and covariates.
    scores : ndarray, shape (N, C, C)
        Centred scores of the persons: without the constant, which no sequence can tell. Where ``transitions=`` gives
        scores, these, minus infinity for those that there are not, and the others beside them.
    scores_se : ndarray, shape (N, C, C)
        Their standard deviations: of the posterior of the effects and of the population scores.
    states : tuple of str
    labels : ndarray of object, shape (N,)
    standardised : ndarray, shape (N, m), or None
        Posterior means of the effects on identified scores over their standard deviations, see `standardised_effects`;
        None if transitions do not differ between persons.
    """

    population: pd.DataFrame
    persons: pd.DataFrame
    scores: Array
    scores_se: Array
    states: tuple[str, ...]
    labels: NDArray[np.object_]
    standardised: Array | None = None

    def __repr__(self) -> str:
        table = self.matrix().round(3).to_string()
        return (
            f"<Transitions between {len(self.states)} states of {len(self.labels)} persons; probabilities of the next "
            f"state (columns) given the present one, in the middle of a long sequence of average rows, in the "
            f"population:\n{table}>"
        )

    def matrix(self, person: Any = None) -> pd.DataFrame:
        """Probabilities of the next state, of the population or of a person, as a square table, rows the present state.

        In the middle of a long sequence of average rows, see `Transitions`.
        """
        frame = self.population if person is None else self.persons[self.persons["person"] == person]
        if not len(frame):
            raise ArgumentError(f"person must be one of the fit, got {shown(person)}")
        return frame.pivot(index="from", columns="to", values="probability").loc[list(self.states), list(self.states)]

    def association(
        self, covariate: Mapping[Any, Any] | pd.Series, *, permutations: int = 999, rng: Any = 0
    ) -> Association:
        """Permutation test of independence between the persons' transitions and a covariate of theirs.

        Posterior means of persons with long sequences are less shrunken, so that they go with whatever goes with the
        length. They are therefore divided by the standard deviations that they have if transitions go with nothing,
        which makes persons exchangeable up to second moments.

        Parameters
        ----------
        covariate : Series or mapping
            A number or a group (text, category, boolean) per person label.
        permutations : int
        rng : int or Generator

        Raises
        ------
        ArgumentError
            If a person has no value, or several.
        """
        checked_count(permutations, "permutations")
        if self.standardised is None:
            raise ArgumentError(
                "the transitions are those of the population for every person, so that they go with no covariate; make "
                "them personal, as in re: (transitions | id)"
            )
        values = person_values(covariate, self.labels)
        return hsic_test(self.standardised, values, permutations, checked_rng(rng))


def person_values(covariate: Any, labels: NDArray[np.object_]) -> Array:
    """A covariate of the persons as numbers, or as one column per group, shape (N, .).

    Raises
    ------
    ArgumentError
        If a person has no value, or several.
    """
    if not isinstance(covariate, Mapping | pd.Series):
        raise ArgumentError(f"covariate must be a Series or mapping by person label, got {type(covariate).__name__}")
    series = covariate if isinstance(covariate, pd.Series) else pd.Series(dict(covariate))
    missing = [label for label in labels if label not in series.index]
    if missing:
        raise ArgumentError(f"covariate has no value for person {shown(missing[0])}; give one per person")
    if series.index.has_duplicates:
        label = series.index[series.index.duplicated()][0]
        raise ArgumentError(
            f"covariate has several values for {shown(label)}; give one per person, as "
            "data.groupby(person)[name].first()"
        )
    mine = series.loc[list(labels)]
    if mine.isna().any():
        raise ArgumentError(
            f"covariate is missing for person {shown(labels[int(mine.isna().argmax())])}; leave none out"
        )
    if pd.api.types.is_numeric_dtype(mine.dtype) and not pd.api.types.is_bool_dtype(mine.dtype):
        z = mine.to_numpy(dtype=float)
        if not np.isfinite(z).all():
            raise ArgumentError(f"covariate is {z[~np.isfinite(z)][0]} for a person; it must be finite")
        return z[:, None]
    return pd.get_dummies(mine.astype(str)).to_numpy(dtype=float)


def gaussian_kernel(values: Array) -> Array:
    """Gaussian kernel matrix with the median distance as its width, doubly centred, shape (N, N)."""
    distance = np.square(values[:, None] - values[None]).sum(-1)
    positive = distance[distance > 0]
    K = np.exp(-distance / (np.median(positive) if positive.size else 1.0))
    return K - K.mean(0) - K.mean(1)[:, None] + K.mean()


def hsic_test(a: Array, b: Array, permutations: int, rng: np.random.Generator) -> Association:
    """HSIC of two sets of person-level values, its null distribution by permuting the second."""
    K, L = gaussian_kernel(a), gaussian_kernel(b)
    n = len(a)
    observed = float((K * L).sum()) / n**2
    orders = (rng.permutation(n) for _ in range(permutations))
    null = np.array([(K * L[np.ix_(order, order)]).sum() / n**2 for order in orders])
    p_value = float((1 + (null >= observed - 1e-15).sum()) / (1 + permutations))
    return Association(observed, p_value, n, permutations)


def build_transitions(persons: "Persons", covered: Uncertainty) -> Transitions:
    """Probabilities with intervals from draws of the posterior of the effects.

    Raises
    ------
    ArgumentError
        If the model is no CRF.
    """
    problem, fit = persons.problem, persons.trained
    if problem.family != "crf":
        raise ArgumentError(f"transitions belong to a CRF; this model's family is {problem.family!r}")
    states = tuple(str(level) for level in persons.design.response_levels or ())
    C = len(states)
    with torch.no_grad():
        state = to_state(problem, fit, persons.z)
        spec = problem.network.tensors[-1]
        base, network = state.theta[spec.start : spec.stop].view(C, C), problem.network
        tensors = view_tensors(problem.network, problem.personal, state.theta, None)
        average = forward(problem.network, tensors, problem.tensor(np.zeros((1, 1, problem.network.n_in))))[0, 0]
        point = with_given_moves(network, base + shift_sums(persons, state.theta, C) + effect_means(persons, C))
        personal = persons.problem.personal.columns("transitions") is not None
        draws = None  # where nothing is uncertain that was computed: shared transitions of a large network
        if personal or covered.population is not None:
            moved = base + shift_sums(persons, state.theta, C) + effect_draws(persons, covered, C)
            draws = with_given_moves(network, moved + population_draws(persons, covered, C))
        own = limits(next_state(point, average), None if draws is None else next_state(draws, average))
        whole = population_limits(network, base, average, covered.population)
        spread = torch.full_like(point, math.nan)
        if draws is not None:
            spread = centred_moves(network, draws).std(0, correction=0)
    frame = long_frame(states, own)
    frame.insert(0, "person", np.repeat(persons.labels, C * C))
    scores = (to_array(centred_moves(network, point)), to_array(spread))
    for a, b, score in network.moves:
        scores[0][:, a, b] = score
    free = standardised_effects(persons, covered, C)
    return Transitions(long_frame(states, whole), frame, *scores, states, persons.labels, free)


def centred_moves(network: Network, scores: Tensor) -> Tensor:
    """Transition scores (..., C, C) without the constant that no sequence can tell; zero for those that are given."""
    if not network.moves:
        return centred(scores)
    free = torch.as_tensor(network.free_moves, device=scores.device).view(scores.shape[-2:])
    constant = 0.0 if network.is_pinned else scores[..., free].mean(-1)[..., None, None]
    return torch.where(free, scores - constant, 0.0)


def standardised_effects(persons: "Persons", covered: Uncertainty, C: int) -> Array | None:
    """Posterior means of the transition effects over their standard deviations, shape (N, m); None without effects.

    Notes
    -----
    In the m directions that the rows within a sequence tell, see `interior`, the posterior mean of person i has the
    covariance ``V_i = S - C_i`` over persons like her: the prior less her posterior one (total variance). The result
    is ``V_i^-1/2`` times the mean.
    Directions in which a person's rows tell next to nothing count as zero.
    """
    loading = to_array(transition_loading(persons))
    if not len(loading) or covered.effects is None:
        return None
    state = to_state(persons.problem, persons.trained, persons.z)
    project = to_array(interior(persons.problem.tensor(np.eye(C * C)).view(-1, C, C))).reshape(C * C, C * C)
    roots, vectors = np.linalg.eigh(project)
    told = vectors[:, roots > 0.5].T @ loading  # (m, r)
    V = told @ (np.diag(to_array(state.s)) - to_array(covered.effects)) @ told.T
    roots, vectors = np.linalg.eigh(V)
    kept = roots > LITTLE * roots.max(axis=1, keepdims=True)
    scale = np.where(kept, 1.0 / np.sqrt(np.where(kept, roots, 1.0)), 0.0)
    return np.einsum("nij,nj,nkj,nk->ni", vectors, scale, vectors, to_array(state.z) @ told.T)


def shift_sums(persons: "Persons", theta: Tensor, C: int) -> Tensor:
    """What the covariates of the persons add to the transition scores, shape (..., N, C, C).

    Parameters
    ----------
    theta : Tensor, shape (..., P)
        Population parameters, or changes of them.
    """
    design, m = persons.history or persons.design, len(persons.scaling.gate_columns)
    W = persons.problem.tensor(persons.scaling.covariates(design.gate))
    each = theta[..., -(1 + m) * C * C : theta.shape[-1] - C * C].reshape(*theta.shape[:-1], m, C, C)
    return torch.einsum("nm,...mcd->...ncd", W, each)


def transition_loading(persons: "Persons") -> Tensor:
    """Rows of the unit-length loading that belong to the transitions, shape (C*C, r); empty if they are shared."""
    columns = persons.problem.personal.columns("transitions")
    rows = persons.directions[columns] if columns is not None else np.zeros((0, persons.z.shape[1]))
    return persons.problem.tensor(rows)


def effect_means(persons: "Persons", C: int) -> Tensor:
    """Posterior means of the persons' transition effects, shape (N, C, C)."""
    columns = persons.problem.personal.columns("transitions")
    if columns is None:
        return persons.problem.tensor(np.zeros((len(persons.labels), C, C)))
    return persons.problem.tensor((persons.z @ persons.trained.loading.T)[:, columns]).view(-1, C, C)


def effect_draws(persons: "Persons", covered: Uncertainty, C: int) -> Tensor:
    """Draws from the posterior of the persons' transition effects, shape (n_draws, N, C, C)."""
    mean, loading = effect_means(persons, C), transition_loading(persons)
    if not len(loading) or covered.effects is None:
        return mean.unsqueeze(0)
    tensor = persons.problem.tensor
    root = torch.linalg.cholesky(covered.effects + tensor(1e-12 * np.eye(covered.effects.shape[-1])))
    noise = tensor(np.random.default_rng(0).standard_normal((N_DRAWS, *covered.effects.shape[:2])))
    moved = torch.einsum("nrs,dns->dnr", root, noise) @ loading.T
    return mean + moved.view(N_DRAWS, -1, C, C)


def population_draws(persons: "Persons", covered: Uncertainty, C: int) -> Tensor | float:
    """What the uncertainty of the population parameters adds to each person's scores, shape (n_draws, N, C, C).

    A person's effects make up for a change of the population parameters as far as her rows tell, see `person_gain`.
    """
    if covered.population is None or covered.gain is None:
        return 0.0
    moved, N = parameter_draws(covered.population), len(persons.labels)
    whole = moved[:, -C * C :].view(-1, 1, C, C) + shift_sums(persons, moved, C)
    if not len(transition_loading(persons)):  # those of the population, with its uncertainty
        return whole
    taken = torch.einsum("cr,nrp,dp->dnc", transition_loading(persons), covered.gain, moved)
    return whole - taken.view(N_DRAWS, N, C, C)


def parameter_draws(cov: Tensor) -> Tensor:
    """Draws of the population parameters around their estimates, shape (n_draws, P)."""
    roots, vectors = torch.linalg.eigh(cov)
    noise = np.random.default_rng(1).standard_normal((N_DRAWS, len(cov)))
    return (torch.as_tensor(noise, device=cov.device) * roots.clamp_min(0.0).sqrt()) @ vectors.T


def population_limits(network: Network, base: Tensor, average: Tensor, cov: Tensor | None) -> Array:
    """Population probabilities and their limits, (3, C, C); limits are NaN without a covariance of the parameters."""
    C = base.shape[0]
    point = next_state(with_given_moves(network, base), average)
    if cov is None:
        return limits(point, None)
    moved = with_given_moves(network, base + parameter_draws(cov)[:, -C * C :].view(-1, C, C))
    return limits(point, next_state(moved, average))


def limits(point: Tensor, draws: Tensor | None) -> Array:
    """Point estimates and 95 % limits of draws, shape (3, ...); NaN for limits without draws."""
    if draws is None:
        return np.stack([to_array(point), *np.full((2, *point.shape), np.nan)])
    low, high = np.quantile(to_array(draws), [0.025, 0.975], axis=0)
    return np.stack([to_array(point), low, high])


def long_frame(states: tuple[str, ...], values: Array) -> pd.DataFrame:
    """Probabilities (3, ..., C, C) as rows ``from, to, probability, lower, upper``."""
    C = len(states)
    n = values[0].size // (C * C)
    pairs = [(a, b) for a in states for b in states] * n
    columns = {"from": [a for a, _ in pairs], "to": [b for _, b in pairs]}
    named = dict(zip(("probability", "lower", "upper"), values.reshape(3, -1), strict=True))
    return pd.DataFrame({**columns, **named})


@dataclass(frozen=True, slots=True)
class Following:
    """Sequences of rows with known states and new ones behind them.

    Attributes
    ----------
    blocks : Blocks
        Codes of the known states; -1 on new rows.
    places : ndarray of int, shape (n,)
        Where the new rows of known persons, in the order of their design, are among the rows of the blocks.
    """

    blocks: Blocks
    places: IntArray


def following_rows(
    fit: Design, past: Design, new: Design, scaling: Scaling, known: IntArray, device: str
) -> Following | None:
    """The new rows of known persons behind their rows of the past; None where no row of the past comes before.

    Parameters
    ----------
    fit : Design
        Of the fit.
    past : Design
        Whose units are the known persons.
    new : Design
    known : ndarray of int, shape (N,)
        Place of each unit of `new` among the units of `past`, -1 for unknown ones.

    Notes
    -----
    Given the states of the past the new ones have the distribution of the whole sequence with the emissions of the past
    clamped to its states, so that forward-backward stays exact; states that are missing in the past are summed over.
    """
    before = sequences_ahead(fit, past, new, known)
    used, mine = before >= 0, (known >= 0)[new.codes]
    if not used.any() or new.sequence is None:
        return None
    members = np.concatenate([before[used], new.sequence[mine]])
    x = np.concatenate([scaling.rows(past)[used], scaling.rows(new)[mine]])
    y = np.concatenate([np.asarray(past.response)[used], np.full(int(mine.sum()), -1)]).astype(np.int64)
    owner = np.zeros(int(members.max()) + 1, dtype=np.intp)
    owner[new.sequence[mine]] = known[new.codes[mine]]
    order = np.argsort(members, kind="stable")  # rows of the past were put first, and stay so in each sequence
    blocks = build_blocks(x[order], y[order], members[order], len(owner), persons=owner, device=device)
    places = np.empty(len(order), dtype=np.intp)
    places[order] = np.arange(len(order))
    return Following(blocks, places[int(used.sum()) :])


def sequences_ahead(fit: Design, past: Design, new: Design, known: IntArray) -> IntArray:
    """The sequence of `new` that each row of the past comes before, shape (n,); -1 for none.

    A row comes before a sequence of the same person, and of the same value of the column that separates sequences, if
    its place is before that of the first new row there.
    """
    none, seq = np.full(past.n, -1, dtype=np.intp), past.formula.seq
    if seq is None or new.sequence is None or past.sequence is None:
        return none
    firsts = np.flatnonzero(np.diff(new.sequence, prepend=-1))
    begins = np.flatnonzero(np.diff(past.sequence, prepend=-1))
    parts_new, parts_past = np.zeros(len(firsts), dtype=np.intp), np.zeros(len(begins), dtype=np.intp)
    if seq.within is not None:
        labels = past.frame[seq.within].to_numpy(dtype=object)[begins]
        parts_past = known_places(labels, labels, seq.within)
        parts_new = known_places(new.frame[seq.within].to_numpy(dtype=object)[firsts], labels, seq.within)
    owners = known[new.codes[firsts]]
    found = {(int(owner), int(part)): k for k, (owner, part) in enumerate(zip(owners, parts_new, strict=True))}
    keys = zip(past.codes[begins], parts_past, strict=True)
    ahead = np.array([found.get((int(person), int(part)), -1) for person, part in keys], dtype=np.intp)[past.sequence]
    # A sequence of a stranger has the key (-1, part), which no row of the past has.
    if (ahead < 0).all():
        return none
    ranks = common_ranks(*(design.frame[seq.order] for design in (fit, past, new)))
    earlier = ranks[: past.n] < ranks[past.n :][firsts][np.maximum(ahead, 0)]
    return np.where((ahead >= 0) & earlier, ahead, none)


def common_ranks(fit: pd.Series, past: pd.Series, new: pd.Series) -> IntArray:
    """Ranks of two columns that order sequences as one, shape (n + m,); of categories those of the fit.

    Raises
    ------
    ArgumentError
        For a category that the fit has not: the rows at hand hold no other order of categories than that in the fit.
    """
    if not any(isinstance(values.dtype, pd.CategoricalDtype) for values in (fit, past, new)):
        return units_of(pd.concat([past, new], ignore_index=True)).codes
    levels = list(pd.Categorical(fit).categories)
    whole = [*past, *new]
    ranks = places_of(whole, levels)
    if (ranks < 0).any():
        raise ArgumentError(
            f"the column {new.name!r}, which orders the rows, has the category {shown(whole[int(ranks.argmin())])}, "
            "which the fit has not, so that nothing says whether it comes before or after the states that are known; "
            "make the column numbers or dates"
        )
    return ranks
