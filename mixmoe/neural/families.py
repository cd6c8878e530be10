"""Response families: loss of an output, its curvature and score, as Laplace steps need them."""

from typing import Literal

from mixmoe.neural._torch import Tensor, torch

Family = Literal["gaussian", "binary", "multiclass", "crf"]


def full_logits(outputs: Tensor) -> Tensor:
    """Logits of all categories: zero for the first, then the outputs; shape (B, T, d + 1)."""
    return torch.cat([torch.zeros_like(outputs[..., :1]), outputs], dim=-1)


def row_loss(family: Family, outputs: Tensor, y: Tensor, sigma2: Tensor | float = 1.0) -> Tensor:
    """Negative log-density of each row, without the constant and log-variance terms of the Gaussian.

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
    logits = full_logits(outputs)
    chosen = torch.gather(logits, -1, y.unsqueeze(-1)).squeeze(-1)
    return torch.logsumexp(logits, dim=-1) - chosen


def curvature_root(family: Family, outputs: Tensor, sigma2: Tensor | float = 1.0) -> Tensor:
    """Matrix R with R R' the expected second derivative of the loss in the outputs.

    Returns
    -------
    Tensor, shape (B, T, d, d)
    """
    if family == "gaussian":
        return (torch.ones_like(outputs) / sigma2).sqrt().unsqueeze(-1)
    if family == "binary":
        p = torch.sigmoid(outputs)
        return (p * (1.0 - p)).clamp_min(1e-14).sqrt().unsqueeze(-1)  # beyond logits of 37 it would be divided by zero
    p = torch.softmax(full_logits(outputs), dim=-1)[..., 1:]
    weight = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    return torch.linalg.cholesky(weight + 1e-10 * torch.eye(p.shape[-1], dtype=p.dtype, device=p.device))


def score(family: Family, outputs: Tensor, y: Tensor, sigma2: Tensor | float = 1.0) -> Tensor:
    """Derivative of the log-density in the outputs, shape (B, T, d)."""
    if family == "gaussian":
        return (y.unsqueeze(-1) - outputs) / sigma2
    if family == "binary":
        return y.unsqueeze(-1) - torch.sigmoid(outputs)
    p = torch.softmax(full_logits(outputs), dim=-1)
    return torch.nn.functional.one_hot(y, p.shape[-1]).to(p.dtype)[..., 1:] - p[..., 1:]


def mean_outputs(family: Family, outputs: Tensor) -> Tensor:
    """Means on the response scale: (B, T, 1), or probabilities of all categories (B, T, C)."""
    if family == "gaussian":
        return outputs
    if family == "binary":
        p = torch.sigmoid(outputs)
        return torch.cat([1.0 - p, p], dim=-1)
    return torch.softmax(full_logits(outputs), dim=-1)
