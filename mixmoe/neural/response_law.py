"""The law of a row's response given the outputs of a network: losses, scores, curvature and means by family.

Outputs are those of the network, with the offset on the first one, and behind them what else the law has: the log
standard deviation of a normal response of its own variance, the log dispersion of counts, the logs of the distances
between the thresholds of ordered categories. Counts and normal responses of varying variance have the densities and
derivatives of `mixmoe.responses`, which back-propagation goes through; the ordered categories are those of
`mixmoe.responses.cumulative_logit`, written as a sum of logarithms.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from scipy.stats import norm

from mixmoe._typing import Array
from mixmoe.neural.blocks import Tensor, to_array, torch
from mixmoe.responses.distribution import Family as SharedFamily
from mixmoe.responses.distribution import Outcome
from mixmoe.responses.exponential import family_named

Family = Literal["gaussian", "binary", "multiclass", "crf", "poisson", "negbinomial", "ordinal", "heteroscedastic"]
COUNTS = ("poisson", "negbinomial")
SHARED: Mapping[str, str] = {"poisson": "poisson", "negbinomial": "negbinomial", "heteroscedastic": "gaussian"}
LAWS = (*SHARED, "ordinal")
NUMBERS = ("gaussian", "heteroscedastic", *COUNTS)  # responses with a mean and no categories
OF_NORMAL = ("gaussian", "heteroscedastic")  # on a standardised response
NORMAL_POINTS = norm.ppf((np.arange(21) + 0.5) / 21.0)  # of equal probability
LEAST = 1e-14  # information, which roots of are divided by


def shared_family(family: Family) -> SharedFamily:
    """The distribution of `mixmoe.responses` that a family is."""
    return family_named(SHARED[family])


def asked_family(family: Family) -> str:
    """The family as users write it: that of varying variances is Gaussian with a section ``sigma:``."""
    return "gaussian" if family == "heteroscedastic" else family


def full_logits(outputs: Tensor) -> Tensor:
    """Logits of all categories: zero for the first, then the outputs; shape (B, T, d + 1)."""
    return torch.cat([torch.zeros_like(outputs[..., :1]), outputs], dim=-1)


def predictors(outputs: Array) -> tuple[Array, Array]:
    """Linear predictor and log dispersion (zero without one) of rows, each (1, n)."""
    flat = outputs.reshape(-1, outputs.shape[-1])
    return flat[None, :, 0], flat[None, :, 1] if flat.shape[1] > 1 else np.zeros((1, len(flat)))


def outcome_of(law: SharedFamily, y: Array) -> Outcome:
    """The responses of rows as the shared distributions take them."""
    flat = np.ravel(y)
    trials = np.ones(flat.size)
    return Outcome(flat, trials, law.constant(flat, trials))


@cache
def log_density_function() -> Any:
    """``f(law, outputs, y)``, the log density (B, T), differentiable twice.

    Made on first use, as its classes need torch.
    """

    def derivatives(law: SharedFamily, outputs: Tensor, y: Tensor) -> Any:
        eta, delta = predictors(to_array(outputs))
        return law.derivatives(outcome_of(law, to_array(y)), eta, delta)

    def stacked(like: Tensor, *values: Array) -> Tensor:
        n = like.numel() // like.shape[-1]
        columns = [torch.as_tensor(np.broadcast_to(v, (1, n)).reshape(n).copy(), device=like.device) for v in values]
        return torch.stack(columns, -1).reshape(*like.shape[:-1], len(values))

    class Slope(torch.autograd.Function):
        """Derivatives of the log density in the outputs, (B, T, d)."""

        @staticmethod
        def forward(ctx: Any, law: SharedFamily, outputs: Tensor, y: Tensor) -> Tensor:
            found = derivatives(law, outputs, y)
            ctx.law = law
            ctx.save_for_backward(outputs, y)
            return stacked(outputs, *(found.eta, found.delta)[: outputs.shape[-1]])

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
            outputs, y = ctx.saved_tensors
            found = derivatives(ctx.law, outputs, y)
            if outputs.shape[-1] == 1:
                return None, -grad * stacked(outputs, found.eta_eta), None
            first = (grad * stacked(outputs, found.eta_eta, found.eta_delta)).sum(-1)
            second = (grad * stacked(outputs, found.eta_delta, found.delta_delta)).sum(-1)
            return None, -torch.stack([first, second], -1), None

    class LogDensity(torch.autograd.Function):
        """The log density, (B, T)."""

        @staticmethod
        def forward(ctx: Any, law: SharedFamily, outputs: Tensor, y: Tensor) -> Tensor:
            ctx.law = law
            ctx.save_for_backward(outputs, y)
            value = law.log_density(outcome_of(law, to_array(y)), *predictors(to_array(outputs)))
            return torch.as_tensor(value.reshape(tuple(outputs.shape[:-1])), device=outputs.device)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
            outputs, y = ctx.saved_tensors
            return None, grad.unsqueeze(-1) * Slope.apply(ctx.law, outputs, y), None

    return LogDensity.apply


def ordered_logs(outputs: Tensor) -> Tensor:
    """Log-probabilities of ordered categories, (B, T, C), the first threshold being zero.

    Notes
    -----
    ``log P = log F(high - eta) + log F(eta - low) + log(1 - exp(low - high))``, see
    `mixmoe.responses.cumulative_logit`.
    """
    eta, steps = outputs[..., :1], outputs[..., 1:].exp()
    away = torch.cat([torch.zeros_like(eta), steps.cumsum(-1)], -1) - eta
    width = torch.log(-torch.expm1(-steps))
    log_sigmoid, pad = torch.nn.functional.logsigmoid, torch.nn.functional.pad
    return pad(log_sigmoid(away), (0, 1)) + pad(log_sigmoid(-away), (1, 0)) + pad(width, (1, 1))


def ordered_slopes(outputs: Tensor) -> Tensor:
    """Derivatives of the probabilities of ordered categories in the outputs, (B, T, C, C - 1)."""
    steps = outputs[..., 1:].exp()
    cuts = torch.cat([torch.zeros_like(outputs[..., :1]), steps.cumsum(-1)], -1)
    above = torch.sigmoid(cuts - outputs[..., :1])
    density = (above * (1.0 - above)).unsqueeze(-1)  # (B, T, C - 1, 1)
    size = steps.shape[-1]
    beyond = torch.ones(size + 1, size, dtype=steps.dtype, device=steps.device).tril(-1)  # thresholds behind each step
    of_cumulative = torch.cat([-density, density * beyond * steps.unsqueeze(-2)], -1)
    padded = torch.nn.functional.pad(of_cumulative, (0, 0, 1, 1))
    return padded[..., 1:, :] - padded[..., :-1, :]


def row_loss(family: Family, outputs: Tensor, y: Tensor, sigma2: Tensor | float = 1.0) -> Tensor:
    """Negative log-density of each row, of the Gaussian without its constant and log-variance.

    Parameters
    ----------
    outputs : Tensor, shape (B, T, d)
    y : Tensor, shape (B, T)
    sigma2 : float
        Residual variance (Gaussian).

    Returns
    -------
    Tensor, shape (B, T)
    """
    if family == "gaussian":
        return (y - outputs[..., 0]).square() / (2.0 * sigma2)
    if family == "binary":
        return torch.nn.functional.softplus(outputs[..., 0]) - y * outputs[..., 0]
    if family in SHARED:
        return -log_density_function()(shared_family(family), outputs, y)
    if family == "ordinal":
        return -torch.gather(ordered_logs(outputs), -1, y.unsqueeze(-1)).squeeze(-1)
    logits = full_logits(outputs)
    chosen = torch.gather(logits, -1, y.unsqueeze(-1)).squeeze(-1)
    return torch.logsumexp(logits, dim=-1) - chosen


def curvature_root(family: Family, outputs: Tensor, sigma2: Tensor | float = 1.0) -> Tensor:
    """Lower triangular R with R R' the expected second derivative of the loss in the outputs.

    Returns
    -------
    Tensor, shape (B, T, d, d)

    Notes
    -----
    That in the log dispersion theta of counts has no closed form. In its place is ``theta^2 (psi'(theta) -
    psi'(theta + mu) - 1 / theta + 1 / (theta + mu))``, with the mean where the expectation of ``psi'(theta + y)`` is
    meant; means of counts, whose information it is orthogonal to, do not depend on it.
    """
    if family == "gaussian":
        return (torch.ones_like(outputs) / sigma2).sqrt().unsqueeze(-1)
    if family == "binary":
        p = torch.sigmoid(outputs)
        return (p * (1.0 - p)).clamp_min(LEAST).sqrt().unsqueeze(-1)  # beyond logits of 37 it would be divided by zero
    if family in SHARED:
        law, (eta, delta), one = shared_family(family), predictors(to_array(outputs)), np.ones(1)
        mean = law.mean(eta, one)
        told = [law.mean_slope(eta, one) ** 2 / np.maximum(law.variance(mean, delta, one), 1e-300)]
        if family == "heteroscedastic":
            told.append(np.full_like(eta, 2.0))
        if family == "negbinomial":
            theta, mu = outputs[..., 1].exp(), torch.as_tensor(mean, device=outputs.device).view(outputs.shape[:-1])
            bend = torch.polygamma(1, theta) - torch.polygamma(1, theta + mu)
            told.append(to_array(theta.square() * (bend - 1.0 / theta + 1.0 / (theta + mu))).reshape(eta.shape))
        values = np.maximum(np.stack(told, -1), LEAST).reshape(tuple(outputs.shape))
        return torch.diag_embed(torch.as_tensor(values, device=outputs.device).sqrt())
    if family == "ordinal":
        G = ordered_slopes(outputs) / (0.5 * ordered_logs(outputs)).exp().clamp_min(1e-150).unsqueeze(-1)
        weight = G.transpose(-1, -2) @ G
    else:
        p = torch.softmax(full_logits(outputs), dim=-1)[..., 1:]
        weight = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    return torch.linalg.cholesky(weight + 1e-10 * torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device))


def score(family: Family, outputs: Tensor, y: Tensor, sigma2: Tensor | float = 1.0) -> Tensor:
    """Derivative of the log-density in the network's own outputs, shape (B, T, d)."""
    if family == "gaussian":
        return (y.unsqueeze(-1) - outputs) / sigma2
    if family == "binary":
        return y.unsqueeze(-1) - torch.sigmoid(outputs)
    if family in SHARED:
        law = shared_family(family)
        found = law.derivatives(outcome_of(law, to_array(y)), *predictors(to_array(outputs)))
        return torch.as_tensor(found.eta.reshape(*y.shape, 1), device=outputs.device)
    if family == "ordinal":
        cuts = torch.cat([torch.zeros_like(outputs[..., :1]), outputs[..., 1:].exp().cumsum(-1)], -1)
        above = torch.nn.functional.pad(torch.sigmoid(cuts - outputs[..., :1]), (1, 0))
        above = torch.nn.functional.pad(above, (0, 1), value=1.0)  # F at both ends of all categories
        ends = torch.stack([y, y + 1], -1)
        return torch.gather(above, -1, ends).sum(-1, keepdim=True) - 1.0
    p = torch.softmax(full_logits(outputs), dim=-1)
    return torch.nn.functional.one_hot(y, p.shape[-1]).to(p.dtype)[..., 1:] - p[..., 1:]


def mean_outputs(family: Family, outputs: Tensor, scores: Sequence[float] = ()) -> Tensor:
    """Means on the response scale: (B, T, 1), or probabilities of all categories (B, T, C).

    Behind those of ordered categories, which count as `scores`, is the mean, (B, T, C + 1).
    """
    if family in OF_NORMAL:
        return outputs[..., :1]
    if family == "binary":
        p = torch.sigmoid(outputs)
        return torch.cat([1.0 - p, p], dim=-1)
    if family in COUNTS:
        return torch.as_tensor(
            shared_family(family).mean(to_array(outputs[..., :1]), np.ones(1)), device=outputs.device
        )
    if family == "ordinal":
        p = ordered_logs(outputs).exp()
        return torch.cat([p, p @ p.new_tensor(scores).unsqueeze(-1)], -1)
    return torch.softmax(full_logits(outputs), dim=-1)


def mean_slopes(family: Family, outputs: Tensor, scores: Sequence[float] = ()) -> Tensor:
    """Derivatives of `mean_outputs` in the outputs, (B, T, means, d)."""
    if family in OF_NORMAL:
        return torch.eye(1, outputs.shape[-1], dtype=outputs.dtype, device=outputs.device).expand(
            *outputs.shape[:-1], 1, -1
        )
    if family in COUNTS:
        slope = mean_outputs(family, outputs)
        return torch.nn.functional.pad(slope, (0, outputs.shape[-1] - 1)).unsqueeze(-2)
    if family == "ordinal":
        G = ordered_slopes(outputs)
        return torch.cat([G, (G.transpose(-1, -2) @ G.new_tensor(scores).unsqueeze(-1)).transpose(-1, -2)], -2)
    p = mean_outputs(family, outputs)
    return torch.diag_embed(p)[..., 1:] - p.unsqueeze(-1) * p[..., 1:].unsqueeze(-2)


def n_means(family: Family, n_out: int, n_levels: int) -> int:
    """Columns of `mean_outputs`."""
    if family in NUMBERS:
        return 1
    return {"binary": 2, "multiclass": n_out + 1, "crf": n_out, "ordinal": n_levels + 1}[family]


def tails(family: Family, outputs: Tensor, y: Tensor) -> Tensor:
    """``P(Y < y), P(Y <= y), P(Y >= y), P(Y > y)`` of rows whose responses have an order, (B, T, 4)."""
    if family in SHARED:
        law, (eta, delta), flat = shared_family(family), predictors(to_array(outputs)), np.ravel(to_array(y))
        step, one = float(law.discrete), np.ones(1)
        values = [f(flat - away, eta, delta, one) for f in (law.cdf, law.sf) for away in (step, 0.0)]
        found = np.stack(values, -1).reshape(*y.shape, 4)
        return torch.as_tensor(found, device=outputs.device)
    p = ordered_logs(outputs).exp() if family == "ordinal" else mean_outputs(family, outputs)
    up = torch.nn.functional.pad(p.cumsum(-1), (1, 0))
    down = torch.nn.functional.pad(p.flip(-1).cumsum(-1).flip(-1), (0, 1))
    places = torch.stack([y, y + 1], -1).long()
    return torch.cat([torch.gather(up, -1, places), torch.gather(down, -1, places)], -1)


def drawn_responses(family: Family, outputs: Tensor, rng: np.random.Generator) -> Tensor:
    """Responses drawn given the outputs, (B, T); codes of categories, of which the largest noisy logarithm wins."""
    if family in SHARED:
        values = shared_family(family).draw(rng, *predictors(to_array(outputs)), np.ones(1))
        return torch.as_tensor(values.reshape(tuple(outputs.shape[:-1])), device=outputs.device)
    scores = ordered_logs(outputs) if family == "ordinal" else full_logits(outputs)
    noise = torch.as_tensor(rng.gumbel(size=tuple(scores.shape)), device=outputs.device)
    return (scores + noise).argmax(-1)


def response_variance(family: Family, outputs: Tensor) -> Tensor:
    """Variance of a response given its outputs, (..., B, T), of families of `mixmoe.responses`."""
    law, (eta, delta), one = shared_family(family), predictors(to_array(outputs)), np.ones(1)
    found = law.variance(law.mean(eta, one), delta, one)
    return torch.as_tensor(np.array(found).reshape(tuple(outputs.shape[:-1])), device=outputs.device)


def count_quantile(family: Family, outputs: Tensor, level: float) -> Tensor:
    """Least count up to which a mixture of laws has at least a probability, (B, T), by bisection.

    Parameters
    ----------
    outputs : Tensor, shape (M, B, T, d)
        Of the laws, which have equal weights.
    level : float
    """
    law, values = shared_family(family), to_array(outputs)
    M, rows = len(values), values[0, ..., 0].size
    eta = values[..., 0].reshape(M, rows)
    delta = values[..., 1].reshape(M, rows) if values.shape[-1] > 1 else np.zeros((M, rows))

    def reached(y: Array) -> Array:
        return np.asarray(law.cdf(y, eta, delta, np.ones(1)).mean(axis=0) >= level)

    low, high = np.full(rows, -1.0), np.ceil(law.mean(eta, np.ones(1)).max(axis=0))
    while not (inside := reached(high)).all():
        high = np.where(inside, high, 2.0 * high + 1.0)
    while (high - low > 1.0).any():
        middle = np.floor(0.5 * (low + high))
        inside = reached(middle)
        low, high = np.where(inside, low, middle), np.where(inside, middle, high)
    return torch.as_tensor(high.reshape(values.shape[1:-1]), device=outputs.device)
