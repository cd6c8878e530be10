"""How many parameters a network with person effects has: what information criteria charge."""

import math

from mixmoe.neural.network import TensorSpec
from mixmoe.neural.problem import Problem


def free_parameters(problem: Problem) -> int:
    """Identified parameters of the network, of the covariance of the effects, and the residual variance."""
    return shared_parameters(problem) + covariance_parameters(problem) + (problem.family == "gaussian")


def shared_parameters(problem: Problem) -> int:
    """Parameters of the network, without those that no sequence can tell.

    Notes
    -----
    A CRF stays the same if a constant is added to all transition scores, or the same weights to the scores of all
    states: one direction of the transitions and one per input of the last layer and its bias. The last layer of a
    network of one's own is not known, so that nothing but the constant is left out there.
    """
    network = problem.network
    if problem.family != "crf":
        return network.n_parameters
    return network.n_parameters - 1 - (network.width + 1 if network.module is None else 0)


def covariance_parameters(problem: Problem) -> int:
    """Free parameters of the covariance of the effects.

    Notes
    -----
    A factor ``L`` with q rows and r columns has ``q r`` entries, of which ``r (r - 1) / 2`` are a rotation that leaves
    ``L L'`` as it is.
    """
    tensors = problem.personal.tensors
    if not tensors:
        return 0
    if problem.cov == "tensor":
        return len(tensors)
    if problem.cov == "diagonal":
        return sum(variances(problem, spec) for spec in tensors)
    q = sum(dimensions(problem, spec) for spec in tensors)
    r = q if problem.rank is None else min(problem.rank, q)
    return q * r - r * (r - 1) // 2


def dimensions(problem: Problem, spec: TensorSpec) -> int:
    """Directions of a tensor's effects that the data can tell."""
    size = math.prod(spec.shape)
    if problem.family != "crf":
        return size
    if spec.name == "transitions":
        return size - 1
    return size - size // problem.network.n_out if is_emission(problem, spec) else size


def variances(problem: Problem, spec: TensorSpec) -> int:
    """Variances of a tensor's effects that the data can tell, one per effect.

    Notes
    -----
    Effects on the scores of three or more states have a variance each, although their sum is lost; of two states only
    the difference is seen, and with it the sum of the two variances.
    """
    size = math.prod(spec.shape)
    return size // 2 if is_emission(problem, spec) and problem.network.n_out == 2 else size


def is_emission(problem: Problem, spec: TensorSpec) -> bool:
    """Whether a tensor is of the layer that gives a CRF the scores of its states."""
    network = problem.network
    return problem.family == "crf" and network.module is None and spec.name.startswith(f"layer{network.depth}.")
