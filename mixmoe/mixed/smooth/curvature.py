"""Information of a mixture with many coefficients: analytic in these, by complex steps in the few others."""

import numpy as np

from mixmoe._typing import Array
from mixmoe.mixed.likelihood.observed import Problem, observed_information


def information(problem: Problem, theta: Array) -> Array:
    """Minus the Hessian of the log-likelihood, shape (P, P)."""
    return observed_information(problem, theta)
