"""Tables of an NME beyond the common ones."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixmoe.neural._torch import torch
from mixmoe.neural.compare import Comparison
from mixmoe.neural.exact import is_exact
from mixmoe.neural.predict import to_state, whole_jacobian
from mixmoe.neural.problem import Problem, Trained, block_outputs
from mixmoe.neural.steps import pieces
from mixmoe.output.tables import Cell, Table


def architecture_table(model: Any, problem: Problem, fit: Trained) -> Table:
    """What the network is, what is personal in it, and how it was estimated."""
    network = problem.network
    widths = " - ".join(map(str, (network.n_in, *network.hidden, network.n_out)))
    shape = network.activation if network.hidden else "linear"
    own = ", ".join(spec.name for spec in problem.personal.tensors) or "nothing"
    exact = is_exact(problem) and model.estimator == "laplace"
    how = (
        "exact marginal likelihood"
        if exact
        else {"laplace": "linearised Laplace", "sgd": "published rule"}[model.estimator]
    )
    rows: list[tuple[str, Cell]] = [
        ("Family", problem.family),
        (
            "Network",
            type(network.module).__name__ if network.module is not None else f"{widths} ({shape})",
        ),
        ("Shared parameters", network.n_parameters),
        ("Personal", own),
        ("Personal parameters", problem.personal.q),
        ("Covariance of effects", f"rank {problem.cov}" if isinstance(problem.cov, int) else problem.cov),
        ("Estimator", how),
        ("Epochs (best)", f"{len(fit.trace.train)} ({fit.trace.best + 1})"),
    ]
    return Table(
        "architecture",
        "Network",
        ("value",),
        tuple(name for name, _ in rows),
        tuple((value,) for _, value in rows),
        ("num",),
        held_out_notes(model, problem),
    )


def held_out_notes(model: Any, problem: Problem) -> tuple[str, ...]:
    """What the log-likelihood is of, where some rows were held out."""
    if not problem.validation.n_rows or model.estimator == "sgd":
        return ()
    return ("Log-likelihood of all rows, at parameters estimated without the validation rows.",)


def comparison_table(found: Comparison) -> Table:
    """Held-out errors of the models, best marked by its ratio of one."""
    best = float(np.nanmin(found.errors))
    return Table(
        "comparison",
        f"Held-out {found.measure} ({found.n_rows} rows, the last of each person)",
        ("error", "ratio to best"),
        found.models,
        tuple((float(e), float(e / best) if best > 0 else None) for e in found.errors),
        ("num", ".3f"),
        ("One network per person is stopped where its held-out error is least, which flatters it.",),
    )


def share_table(problem: Problem, fit: Trained) -> Table | None:
    """Shares of the response's variance: population, person effects (linearised), residual (Gaussian)."""
    if problem.family != "gaussian" or not problem.personal.q:
        return None
    variances = {"population": population_variance(problem, fit)}
    if problem.cov in ("diagonal", "tensor") and problem.basis is None:
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
