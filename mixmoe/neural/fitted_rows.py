"""What a network says of the rows it was fitted to: fitted values, residuals, drawn responses."""

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import ndtr

from mixmoe._typing import Array
from mixmoe.arguments import checked_choice
from mixmoe.check.diagnosis import FITTED
from mixmoe.check.residuals import continuous
from mixmoe.errors import ArgumentError
from mixmoe.families import Distribution, Effects
from mixmoe.mixture_results import WithoutExperts
from mixmoe.neural.blocks import Block, Blocks, Tensor, to_array, to_rows, torch
from mixmoe.neural.crf import sample_states
from mixmoe.neural.estimators.last_layer import hidden_of, last_outputs
from mixmoe.neural.estimators.mixed_model import row_columns
from mixmoe.neural.estimators.state import (
    State,
    effects,
    linearise,
    person_information,
    pieces,
    replace_effects,
    settle_effects,
)
from mixmoe.neural.estimators.trained import Problem, Trained, block_outputs
from mixmoe.neural.groupings import joint_of
from mixmoe.neural.network import forward, transition_scores, view_tensors
from mixmoe.neural.person_predictions import Uncertainty, gather, to_state
from mixmoe.neural.persons import Persons, category_names, parameter_names, persons_of
from mixmoe.neural.posterior import posterior_covariance, root_of
from mixmoe.neural.predicted_rows import even_effects, known_means, unknown_draws, unknown_means
from mixmoe.neural.response_law import LAWS, OF_NORMAL, drawn_responses, tails
from mixmoe.output.records import Panel
from mixmoe.results import Results

if TYPE_CHECKING:
    from mixmoe.neural.model import NME

N_DRAWS = 64  # of a person's effects given her earlier rows


def row_means(persons: Persons, kind: str) -> Array:
    """Means or probabilities of the rows of the fit, on the scale of the response, shape (n, d).

    Parameters
    ----------
    kind : {"subject", "mean"}
        With each person's effects, or over their distribution.
    """
    rows = persons.problem.train
    found = known_means(persons, rows) if kind == "subject" else unknown_means(persons, rows)
    scaling = persons.scaling
    if persons.problem.family == "ordinal":
        return found[:, -1:]
    return scaling.y_mean + scaling.y_sd * found if persons.problem.family in OF_NORMAL else found


def places(persons: Persons, given: str) -> Distribution:
    """Where each response of the fit lies in its distribution, rows in the order of the design.

    Parameters
    ----------
    given : {"history", "covariates"}
        Given the person's earlier rows, or none of her rows.
    """
    if persons.problem.family in OF_NORMAL:
        r = normal_residuals(persons, given)
        return continuous(ndtr(r), ndtr(-r))
    found = unknown_tails(persons) if given == "covariates" else history_tails(persons)
    below, at, beyond, above = np.clip(found, 0.0, 1.0).T
    return Distribution(below, at, beyond, above)


def unknown_tails(persons: Persons) -> Array:
    """`tails` of each row as if nobody were known, the mean over draws of the effects, shape (n, 4)."""
    problem, blocks, fit = persons.problem, persons.problem.train, persons.trained
    even = problem.family in LAWS
    draws = even_effects(fit, widened=False) if even else unknown_draws(persons, None, np.random.default_rng(0))
    parts = []
    with torch.no_grad():
        state, eta = to_state(problem, fit), problem.tensor(draws @ fit.loading.T)
        for block in (piece for whole in blocks for piece in pieces(problem, whole, len(draws))):
            total = 0.0
            for draw in eta:
                tensors = view_tensors(problem.network, problem.personal, state.theta, draw.expand(len(block.mask), -1))
                total = total + tails(problem.family, forward(problem.network, tensors, block.x), block.y)
            parts.append((block, total / len(draws)))
    return gather(blocks, parts)


def normal_residuals(persons: Persons, given: str) -> Array:
    """Residuals over their standard deviation, independent given the history, shape (n,) (Gaussian).

    Notes
    -----
    Of the model linearised at the modes of the effects, ``V_i = sigma^2 (I + A_i S A_i')``: exact where outputs are
    linear in the effects. With L the Cholesky factor of V_i, row j of ``L^-1 (y_i - mean_i)`` is what row j says beyond
    those before it.
    """
    problem, parts = persons.problem, []
    if persons.levels:
        return joint_residuals(persons, given)
    with torch.no_grad():
        state = to_state(problem, persons.trained, persons.z)
        for whole in problem.train:
            width = max(problem.personal.q, whole.mask.shape[1])
            for block in pieces(problem, whole, width):
                A, residual = linearise(problem, block, state)
                away = residual + (A @ state.z[block.persons].unsqueeze(-1)).squeeze(-1)
                if given == "covariates":
                    white = away / (1.0 + (A.square() * state.s).sum(-1)).sqrt()
                else:
                    root = root_of(A, state.s)
                    white = torch.linalg.solve_triangular(root, away.unsqueeze(-1), upper=False).squeeze(-1)
                parts.append((block, white))
    return gather(problem.train, parts)


def joint_residuals(persons: Persons, given: str) -> Array:
    """Residuals over their standard deviation with several groupings, shape (n,).

    Notes
    -----
    The history of a row are the rows of the units before, and those before it of its own unit. Unit after unit, with
    mean m and covariance P of the crossed effects given the units before: ``V_i = sigma^2 (I + Z_i L L'Z_i') + Z_b P
    Z_b'``, whose Cholesky factor whitens her rows, and by which m and P are updated.
    """
    problem, fit = persons.problem, persons.trained
    with torch.no_grad():
        joint, theta = joint_of(problem, fit), problem.tensor(fit.theta)
        plan, factors = joint.moments.plan, joint.factors
        mean = problem.tensor(np.zeros(plan.n_border))
        P = torch.eye(plan.n_border, dtype=mean.dtype, device=mean.device)
        parts = []
        for k, block in enumerate(problem.train):
            rows = row_columns(plan, k, hidden_of(problem.network, theta, block.x), block.y, block.mask)
            combine = torch.cat([-theta[problem.network.tensors[-2].start :], theta.new_ones(1)])
            away = rows[..., plan.fixed] @ combine / fit.sigma2**0.5
            A = rows[..., plan.own] @ factors.own
            A_border = rows[..., plan.end :] @ factors.border[k] if factors.border else None
            if given == "covariates":
                squares = A.square().sum(-1) + (0.0 if A_border is None else A_border.square().sum(-1))
                parts.append((block, away / (1.0 + squares).sqrt()))
                continue
            V = A @ A.transpose(1, 2) + torch.eye(A.shape[1], dtype=A.dtype, device=A.device)
            if A_border is None:
                root = torch.linalg.cholesky(V)
                parts.append((block, torch.linalg.solve_triangular(root, away.unsqueeze(-1), upper=False).squeeze(-1)))
                continue
            white = torch.empty_like(away)
            for i, index in enumerate(plan.border[k]):
                moved = A_border[i] @ P[index]  # (T, M)
                root = torch.linalg.cholesky(V[i] + moved[:, index] @ A_border[i].T)
                gain = torch.linalg.solve_triangular(root, moved, upper=False)
                rest = (away[i] - A_border[i] @ mean[index]).unsqueeze(-1)
                white[i] = torch.linalg.solve_triangular(root, rest, upper=False).squeeze(-1)
                mean, P = mean + gain.T @ white[i], P - gain.T @ gain
            parts.append((block, white))
    return gather(problem.train, parts)


def history_tails(persons: Persons) -> Array:
    """`tails` of each row given the earlier rows of the person, shape (n, 4).

    Notes
    -----
    By the Laplace approximation of the posterior of the effects given the rows before, for each place in turn.
    """
    problem = persons.problem
    blocks = problem.train.blocks
    noise = problem.tensor(np.random.default_rng(0).standard_normal((N_DRAWS // 2, problem.n_effects)))
    noise = torch.cat([noise, -noise])
    state = to_state(problem, persons.trained, np.zeros_like(persons.z))
    columns: list[list[Tensor]] = [[] for _ in blocks]
    for place in range(max(block.mask.shape[1] for block in blocks)):
        earlier = replace(problem, train=Blocks(tuple(before(block, place) for block in blocks), problem.train.n_rows))
        settle_effects(earlier, state, steps=5, tol=1e-4)
        with torch.no_grad():
            C = posterior_covariance(person_information(earlier, state), state.s)
            root = torch.linalg.cholesky(C + 1e-12 * torch.eye(C.shape[-1], dtype=C.dtype, device=C.device))
            for column, block in zip(columns, blocks, strict=True):
                if place >= block.mask.shape[1]:
                    continue
                x, y, total = block.x[:, place : place + 1], block.y[:, place : place + 1], 0.0
                for draw in noise:
                    eta = effects(replace_effects(state, state.z + root @ draw))[block.persons]
                    tensors = view_tensors(problem.network, problem.personal, state.theta, eta)
                    total = total + tails(problem.family, forward(problem.network, tensors, x), y)[:, 0]
                column.append(total / len(noise))
    return to_rows(problem.train, [torch.stack(column, dim=1) for column in columns])


def before(block: Block, place: int) -> Block:
    """A block without its rows from `place` on."""
    mask, weights = block.mask.clone(), block.weights.clone()
    mask[:, place:], weights[:, place:] = 0.0, 0.0
    return replace(block, mask=mask, weights=weights)


def draw_rows(persons: Persons, rng: np.random.Generator) -> Array:
    """Responses of persons with newly drawn effects, at the inputs of the fit: numbers, or codes of levels, shape (n,).

    Rows in the order of the design.
    """
    problem, fit = persons.problem, persons.trained
    state = to_state(problem, fit)
    fresh = problem.tensor(rng.standard_normal(state.z.shape)) * state.s.sqrt()
    with torch.no_grad():
        eta = effects(replace_effects(state, fresh)) if problem.n_effects else None
        if persons.levels:
            others = [problem.tensor(rng.standard_normal(g.z.shape) @ g.loading.T) for g in fit.further]
            drawn = []
            for block in problem.train:
                outputs = last_outputs(problem, block, state.theta, eta, others)
                drawn.append(outputs + state.sigma2.sqrt() * problem.tensor(rng.standard_normal(outputs.shape)))
            return persons.scaling.y_mean + persons.scaling.y_sd * to_rows(problem.train, drawn)
        drawn = [draw_block(problem, block, state, eta, rng) for block in problem.train]
    values = to_rows(problem.train, drawn)
    return persons.scaling.y_mean + persons.scaling.y_sd * values if problem.family in OF_NORMAL else values


def draw_block(problem: Problem, block: Block, state: State, eta: Tensor | None, rng: np.random.Generator) -> Tensor:
    """Responses of a block, shape (B, T)."""
    outputs, *tensors = block_outputs(problem, block, state.theta, eta)
    if problem.family == "gaussian":
        return outputs[..., 0] + state.sigma2.sqrt() * problem.tensor(rng.standard_normal(outputs.shape[:2]))
    if problem.family == "crf":
        noise = problem.tensor(rng.gumbel(size=tuple(outputs.shape)))
        return sample_states(outputs, transition_scores(problem.network, tensors, block.x), block.mask, noise)
    return drawn_responses(problem.family, outputs, rng)


class NetworkDiagnosis(WithoutExperts, Results):
    """What a fitted network says of its own rows."""

    model: "NME"
    problem: Problem
    trained: Trained

    @cached_property
    def uncertainty(self) -> Uncertainty:
        """Covariances of the person effects and of the population parameters."""
        return self.persons.uncertainty()

    @cached_property
    def persons(self) -> Persons:
        """The persons of the fit with their effects."""
        return persons_of(self.model, self.problem, self.trained)

    def fitted(self, kind: str = "subject") -> Any:
        """Fitted values, one per row used, in the order of the data.

        Parameters
        ----------
        kind : {"subject", "mean"}
            With each person's effects, or over the distribution of effects.

        Returns
        -------
        Series or DataFrame
            Numbers: means; ordered categories: means of what they count as; binary: probabilities of the second level;
            else probabilities in columns ``P(level)``.
        """
        checked_choice(kind, "kind", FITTED)
        values = self.model.design.in_order(row_means(self.persons, kind))
        names = category_names(self.persons)
        if self.problem.family in ("multiclass", "crf"):
            return pd.DataFrame(values, index=self._row_index, columns=names)
        return pd.Series(values[:, -1], index=self._row_index, name="fitted")

    @property
    def fittedvalues(self) -> Any:
        """The fitted values with each person's effects; see `fitted`."""
        return self.fitted()

    def _by_row(self) -> pd.DataFrame:
        if self.problem.family not in ("binary", "multiclass", "crf"):
            return super()._by_row()
        probabilities = row_means(self.persons, "subject").argmax(axis=1)
        levels = pd.Series(list(self.model.design.response_levels or ())).to_numpy()
        return pd.DataFrame({".fitted": levels[self.model.design.in_order(probabilities)]})

    @property
    def _resid_kinds(self) -> tuple[str, ...]:  # type: ignore[override]
        return () if self.problem.family in ("multiclass", "crf") else ("subject", "mean", "quantile")

    def _distribution(self, given: str) -> Distribution:
        return places(self.persons, given)

    def _draw(self, rng: np.random.Generator) -> Any:
        values, levels = draw_rows(self.persons, rng), self.model.design.response_levels
        return values if levels is None else pd.Series(list(levels)).to_numpy()[values.astype(np.intp)]

    def _expert_means(self, kind: str) -> Array:
        return self._in_design(self.fitted(kind).to_numpy())[:, None]

    def _effects(self) -> Effects | None:
        problem = self.problem
        if not problem.personal.q:
            return None
        directions = self.persons.directions
        within = directions @ to_array(self.uncertainty.effects).mean(axis=0) @ directions.T
        means = (self.persons.z @ self.trained.loading.T)[:, None, :]
        implied = (self.trained.covariance - within)[None]
        return Effects(tuple(parameter_names(problem)), means, implied, np.ones(len(means), dtype=np.intp))

    def _starts_panels(self) -> tuple[Panel, ...]:
        if self.em.starts.n_starts == 1:
            raise ArgumentError(
                f"{self.model.spec.name} has one start in this fit; give starts= for several, or see plot('learning')"
            )
        return super()._starts_panels()
