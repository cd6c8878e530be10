"""The errors of fitted experts on the rows of a design, in the units of the user, one form for all structures."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixmoe.design import Design
from mixmoe.kernels.rows import ErrorModel
from mixmoe.kernels.serial import ErrorFactor, Filter, Visits, factorise
from mixmoe.mixed.error_options import ErrorSetup, times_of
from mixmoe.mixed.extras import spans
from mixmoe.mixed.structure import Params

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Disturbances:
    """Errors of the rows of a design under each of K experts.

    Attributes
    ----------
    model : ErrorModel
        With E = K.
    factor : Independent, Chain or Filter
        Of the covariances of the errors, rows in the order `order`.
    order : ndarray of int, shape (n,)
        Rows of the design by subject and time.
    time : ndarray, shape (n,)
        Of the rows in that order.
    """

    model: ErrorModel
    factor: ErrorFactor
    order: NDArray[np.intp]
    time: Array

    @property
    def motion(self) -> Array:
        """Variance of the Brownian motion at each row in that order, shape (K, n); zero without one."""
        if isinstance(self.factor, Filter):
            return np.asarray(self.factor.tau[:, None] ** 2 * self.time)
        return np.zeros_like(self.factor.sd)

    def by_row(self, values: Array) -> Array:
        """Values in the order `order` on the last axis, with the rows of the design first."""
        out = np.empty(values.shape[::-1])
        out[self.order] = values.T
        return out


def disturbances(design: Design, params: Params, setup: ErrorSetup | None, ties: bool = False) -> Disturbances:
    """The errors of fitted experts on the rows of a design.

    Parameters
    ----------
    design : Design
    params : Params
        On the user's scale, S = 1.
    setup : ErrorSetup or None
        None for iid normal errors.
    ties : bool
        Whether times may repeat within a subject.

    Returns
    -------
    Disturbances
    """
    if setup is None:
        order, gap = np.arange(design.n), np.ones(design.n)
        model, V, time = ErrorModel("iid", params.sigma[0], np.zeros((params.sigma.shape[1], 0)), None, None), None, gap
        sd = np.repeat(params.sigma[0][:, None], design.n, axis=1)
    else:
        times = times_of(design, setup.options, ties)
        order, gap, time = times.order, times.gap, times.time
        model, V = user_errors(params, setup), design.sigma[order][:, setup.columns].T
        sd = model.deviations(V)
    visits = Visits(design.starts, design.counts, gap)
    return Disturbances(model, factorise(model.kind, sd, model.shape, visits), order, time)


def user_errors(params: Params, setup: ErrorSetup) -> ErrorModel:
    """Error parameters of each expert in the units of the user, E = K."""
    natural = params.extra[0].copy()
    for extra, where in spans(setup.extras):
        natural[:, where] = extra.scale.natural(natural[:, where])
    form, v = setup.form, setup.form.n_slopes
    df = None
    if form.heavy:
        df = natural[:, -1] if form.df is None else np.full(len(natural), form.df)
    return ErrorModel(form.kind, params.sigma[0], natural[:, :v], None if form.kind == "iid" else natural[:, v], df)
