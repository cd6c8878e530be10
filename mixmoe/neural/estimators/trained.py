"""What is to be estimated (Problem), how (Control) and what came out (Trained), on plain arrays."""

import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mixmoe._typing import Array
from mixmoe.arguments import checked_count, checked_positive
from mixmoe.design.frame import shown
from mixmoe.errors import ArgumentError
from mixmoe.mixture.estimate import Flag
from mixmoe.neural.blocks import Block, Blocks, Tensor, torch
from mixmoe.neural.crf import sequence_loss
from mixmoe.neural.network import Network, forward, transition_scores, view_tensors
from mixmoe.neural.personal_layers import Personal
from mixmoe.neural.response_law import Family, row_loss

Estimator = Literal["laplace", "sgd"]
# Of the normal prior of a last layer with effects, on the standardised response, where hidden layers have a prior too.
LAST_VARIANCE = 9.0


@dataclass(frozen=True, slots=True)
class Grouping:
    """A grouping of the rows behind that by persons, crossed with it or within it.

    Attributes
    ----------
    name : str
        ``site``, or ``person:site`` for combinations.
    personal : Personal
        What differs between its levels.
    cov : str or int
    n_levels : int
    """

    name: str
    personal: Personal
    cov: str | int
    n_levels: int


@dataclass(frozen=True, slots=True)
class Problem:
    """A network, what is personal in it, and the rows in blocks.

    Attributes
    ----------
    family : str
        ``"gaussian"``, ``"binary"``, ``"multiclass"``, ``"crf"``, ``"poisson"``, ``"negbinomial"``, ``"ordinal"``, or
        ``"heteroscedastic"``: Gaussian with a log standard deviation that is linear in covariates.
    network : Network
    personal : Personal
    train, validation : Blocks
        Of persons, or of sequences for a CRF; `validation` may hold no rows. Those of a CRF stand with the rows before
        them, which are given.
    n_persons : int
    cov : str or int
        ``"diagonal"`` (a variance per parameter), ``"tensor"`` (per tensor), ``"full"``, or a rank.
    share : float
        Share of each person's last rows that are in `validation`.
    device : str
        Where all tensors of the problem live.
    origin : ndarray, shape (p,), or None
        Mean over standard deviation of the inputs: how far from the user's zero the standardised one is. None: not at
        all.
    published : bool
        Whether the published rule is to be fitted, whose effects are independent on standardised inputs and whose
        predictions are those at its effects.
    further : tuple of Grouping
        Behind that by persons, all of them on the last layer of a Gaussian response.
    prior : float
        Precision of the normal prior of the loadings of effects on the last layer, see `prior_of`.
    """

    family: Family
    network: Network
    personal: Personal
    train: Blocks
    validation: Blocks
    n_persons: int
    cov: str | int = "diagonal"
    share: float = 0.0
    device: str = "cpu"
    origin: Array | None = None
    published: bool = False
    further: tuple[Grouping, ...] = ()
    prior: float = 0.0

    def tensor(self, values: Any) -> Tensor:
        """Numbers as a tensor beside those of the problem."""
        return torch.tensor(np.asarray(values, dtype=float), dtype=torch.float64, device=self.device)

    @property
    def groups(self) -> Tensor:
        """`group` as a tensor."""
        return torch.as_tensor(self.group, device=self.device)

    @property
    def rank(self) -> int | None:
        """Rank of the covariance of the effects; None if it is not restricted."""
        return None if isinstance(self.cov, str) else int(self.cov)

    @property
    def n_effects(self) -> int:
        """Columns of the latent effects: q, or the rank."""
        return self.personal.q if self.rank is None else self.rank

    @property
    def basis(self) -> Array | None:
        """Directions of the independent effects of a linear network, columns of length one, shape (q, q).

        With a variance per parameter, intercepts and slopes are to be independent on the user's scale: a slope there
        moves the output at the mean of its input too. None where independent effects are those of single parameters.
        """
        if self.cov != "diagonal" or self.origin is None or self.published:
            return None
        if self.network.hidden or self.network.module is not None:
            return None
        weights, bias = (self.personal.columns(f"layer1.{part}") for part in ("weight", "bias"))
        if weights is None or bias is None:
            return None
        found, d = np.eye(self.personal.q), self.network.n_out
        for column, entry in enumerate(self.personal.places(self.network.tensors[0]), weights.start):
            found[bias.start + entry % d, column] = self.origin[entry // d]
        return found / np.linalg.norm(found, axis=0)

    @property
    def group(self) -> NDArray[np.intp]:
        """Variance that each latent effect has."""
        return self.personal.group if self.cov == "tensor" else np.arange(self.n_effects)


def parts_of(problem: Problem) -> tuple[Problem, ...]:
    """The problem as each grouping sees it, that by persons first: with what is personal there, and no other."""
    return (
        replace(problem, further=()),
        *(replace(problem, personal=g.personal, cov=g.cov, further=()) for g in problem.further),
    )


@dataclass(frozen=True, slots=True)
class Control:
    """Settings of the iterations.

    Attributes
    ----------
    epochs : int
        Full-batch steps at most.
    lr : float
        Learning rate of Adam on standardised data; decays to zero over the last part (``"laplace"``).
    annealing : float
        Factor by which annealed variances shrink per epoch (``"sgd"``).
    update_every : int
        Steps between Laplace updates of the variances.
    penalty : float
        Weight of the penalty on the effects (``"sgd"``; the model says 1).
    weight_decay : float or None
        Ridge penalty on the shared parameters, per row; None: see `ridge`.
    batch_size : int or None
        Persons per step; None: all of them.
    patience : int or None
        Stop after so many epochs without a better validation loss; None: never.
    tol : float
        Length of the last step of the variances, in their standard errors, at which the fit counts as converged.
    progress : bool or None
        Show a progress bar; None: only in a terminal, and if it takes more than a few seconds.
    """

    epochs: int = 1500
    lr: float = 0.01
    annealing: float = 0.97
    update_every: int = 20
    penalty: float = 1.0
    weight_decay: float | None = None
    batch_size: int | None = None
    patience: int | None = None
    tol: float = 0.1
    progress: bool | None = False

    def __post_init__(self) -> None:
        checked_count(self.epochs, "epochs")
        checked_count(self.update_every, "update_every")
        for name in ("batch_size", "patience"):
            if getattr(self, name) is not None:
                checked_count(getattr(self, name), name)
        checked_positive(self.lr, "lr")
        if not checked_positive(self.annealing, "annealing") < 1.0:
            raise ArgumentError(f"annealing must lie between 0 and 1, got {shown(self.annealing)}")
        for name in ("weight_decay", "penalty"):
            value = getattr(self, name)
            if name == "weight_decay" and value is None:
                continue
            if not isinstance(value, numbers.Real) or not 0.0 <= float(value) < np.inf:
                raise ArgumentError(f"{name} must be a finite number of at least zero, got {shown(value)}")


@dataclass(frozen=True, slots=True)
class Trace:
    """What each epoch brought.

    Attributes
    ----------
    train, validation : ndarray, shape (n_epochs,)
        Mean loss per row; NaN where there is no validation set.
    variance : ndarray, shape (n_epochs,)
        Mean variance of the effects.
    best : int
        Epoch whose state was kept.
    """

    train: Array
    validation: Array
    variance: Array
    best: int


@dataclass(frozen=True, slots=True)
class LevelEffects:
    """Effects of the levels of a further grouping, ``z @ loading.T``.

    Attributes
    ----------
    loading : ndarray, shape (q, r)
    z : ndarray, shape (N, r)
        Of variance one between levels.
    """

    loading: Array
    z: Array


@dataclass(frozen=True, slots=True)
class Trained:
    """Estimates of a network with person effects, on the standardised scale.

    Attributes
    ----------
    theta : ndarray, shape (P,)
        Population parameters.
    loading : ndarray, shape (q, r)
        Effects are ``z @ loading.T``; the identity unless the covariance has a low rank or is full.
    z : ndarray, shape (N, r)
        Latent effects.
    s : ndarray, shape (r,)
        Their variances.
    sigma2 : float
        Residual variance; 1 for families without one.
    loglik : float
        Marginal log-likelihood (Laplace; exact for a last layer with a Gaussian response); NaN for ``"sgd"``.
    trace : Trace
    converged : bool
    flags : tuple of Flag
    further : tuple of LevelEffects
        Of the groupings behind that by persons.
    """

    theta: Array
    loading: Array
    z: Array
    s: Array
    sigma2: float
    loglik: float
    trace: Trace
    converged: bool
    flags: tuple[Flag, ...] = field(default=())
    further: tuple[LevelEffects, ...] = field(default=())

    @property
    def eta(self) -> Array:
        """Effects of the persons on their parameters, shape (N, q)."""
        return self.z @ self.loading.T

    @property
    def covariance(self) -> Array:
        """Covariance of the effects between persons, shape (q, q)."""
        return (self.loading * self.s) @ self.loading.T


def block_outputs(problem: Problem, block: Block, theta: Tensor, eta: Tensor | None) -> Sequence[Tensor]:
    """Outputs (B, T, d) of a block, and behind them its parameter tensors."""
    mine = None if eta is None or not problem.personal.q else eta[block.persons]
    tensors = view_tensors(problem.network, problem.personal, theta, mine)
    return [forward(problem.network, tensors, block.x), *tensors]


def block_loss(problem: Problem, block: Block, theta: Tensor, eta: Tensor | None, sigma2: Tensor | float) -> Tensor:
    """Negative log-density of each member of a block, shape (B,)."""
    outputs, *tensors = block_outputs(problem, block, theta, eta)
    if problem.family == "crf":
        scores = transition_scores(problem.network, tensors, block.x)
        loss = sequence_loss(outputs, scores, block.y, block.mask)
        if bool(block.given.any()):
            known = torch.where(block.given > 0, block.y, -1)
            loss = loss - sequence_loss(outputs, scores, known, block.mask)
        return loss
    return (row_loss(problem.family, outputs, block.y, sigma2) * block.weights).sum(-1)


def responses_in(problem: Problem, block: Block) -> Tensor:
    """Weights of the cells of a block whose response is scored, (B, T).

    All rows, but those of a CRF whose state is missing or known beforehand.
    """
    return block.mask * (block.y >= 0) * (1.0 - block.given) if problem.family == "crf" else block.weights


def total_loss(
    problem: Problem, blocks: Blocks, theta: Tensor, eta: Tensor | None, sigma2: Tensor | float = 1.0
) -> Tensor:
    """Negative log-density of all rows given the effects, without the Gaussian's constant and log-variance."""
    parts = [block_loss(problem, block, theta, eta, sigma2).sum() for block in blocks]
    return torch.stack(parts).sum() if parts else theta.new_zeros(())


def ridge(problem: Problem, control: Control, theta: Tensor, *, exact: bool = False) -> Tensor:
    """Penalty on the population's parameters that is added to minus the log-likelihood.

    Parameters
    ----------
    exact : bool
        Whether the likelihood is that of effects on the last layer of a Gaussian response.

    Notes
    -----
    Unless the user gives a weight decay, hidden layers below effects on the last layer (Gaussian) have a standard
    normal prior, and so has a whole network without effects, on standardised inputs and response: with few rows the
    likelihood rises as hidden weights grow without end and features become collinear, so that without a prior there is
    no maximum to arrive at, or one that predicts badly. That of the loadings of effects on the last layer is in their
    likelihood, see `mixed_model`. Effects on hidden layers have a penalty of their own; linear
    networks, transitions of a CRF and networks of a user's own, whose scales are not known, have no prior.
    """
    if control.weight_decay is None:
        return 0.5 * theta[: n_with_prior(problem, exact)].square().sum()
    return problem.train.n_rows * control.weight_decay * theta.square().sum()


def n_with_prior(problem: Problem, exact: bool) -> int:
    """Entries of the flat vector, from its beginning, that have a standard normal prior; see `ridge`."""
    network = problem.network
    if exact or network.module is not None or not network.hidden:
        return network.n_hidden if exact else 0
    return 0 if problem.personal.q else network.tensors[2 * network.depth - 1].stop
