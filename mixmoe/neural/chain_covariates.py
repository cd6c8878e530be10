"""Tests of the covariates of persons that the transitions of a CRF go with: the terms of ``gate:``."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chi2

from mixmoe._typing import Array
from mixmoe.design.design import Design, column_terms
from mixmoe.errors import ArgumentError
from mixmoe.inference.wald import Hypotheses, WaldTest, wald_test
from mixmoe.neural.batches import Scaling, split_rows
from mixmoe.neural.displays import fit_starts
from mixmoe.neural.estimators.linearised import build_control
from mixmoe.neural.estimators.trained import Problem
from mixmoe.neural.network import CHAIN, chain_shapes, lay_out, personal_entries

if TYPE_CHECKING:
    from mixmoe.neural.results import NMEResults


def terms_of(design: Design, scaling: Scaling) -> list[str]:
    """The term of ``gate:`` that each covariate belongs to."""
    columns = column_terms(design, "gate")
    return [columns[k] for k in scaling.gate_columns]


def wald_rows(results: "NMEResults") -> pd.DataFrame:
    """Wald tests of all that each term of ``gate:`` adds to the transition scores, columns ``df, wald, wald_pvalue``.

    Notes
    -----
    A constant added to all scores changes nothing, so that a covariate has C^2 - 1 parameters: all but the last, which
    follows from them. Their covariance is that of the linearised model, the effects of persons integrated out and
    variances held.
    """
    model, rows = results.model, []
    names, terms = model.layout.names, np.array(terms_of(model.design, model.scaling))
    for term in dict.fromkeys(terms.tolist()):
        of_columns = [
            [k for k, name in enumerate(names) if name.endswith(f":{model.design.names.gate[column]}")]
            for column in model.scaling.gate_columns[terms == term]
        ]
        free = [k for places in of_columns for k in places[:-1]]
        zero = Hypotheses(np.eye(len(names))[free], np.zeros(len(free)), tuple(names[k] for k in free))
        found = wald_test(zero, results.em.params, results.cov.matrix, model.layout, results.cov.kind)
        told = isinstance(found, WaldTest)
        rows.append((len(free), *((found.statistic, found.pvalue) if told else (math.nan, math.nan))))
    index = pd.Index(dict.fromkeys(terms.tolist()), name="term")
    return pd.DataFrame(rows, index=index, columns=["df", "wald", "wald_pvalue"])


def reduced_problem(design: Design, problem: Problem, scaling: Scaling, kept: NDArray[np.bool_]) -> Problem:
    """The problem with some of the covariates of the transitions only.

    Parameters
    ----------
    kept : ndarray of bool, shape (m,)
    """
    network, index = problem.network, problem.personal.index
    columns = scaling.gate_columns[kept]
    smaller = replace(scaling, gate_columns=columns, gate_mean=scaling.gate_mean[kept], gate_sd=scaling.gate_sd[kept])
    shapes = [(spec.name, spec.shape) for spec in network.tensors if spec.name not in CHAIN]
    tensors = lay_out([*shapes, *chain_shapes(network.n_out, len(columns))])
    # The transition scores, which may be personal, come behind what covariates add to them.
    gone = network.n_parameters - tensors[-1].stop
    index = np.where(index >= network.tensors[-1].start, index - gone, index)
    levels = np.empty((design.n, 0), dtype=np.intp)
    train, validation = split_rows(design, problem.family, smaller, levels, problem.device)
    return replace(
        problem,
        network=replace(network, tensors=tensors),
        personal=personal_entries(tensors, index),
        train=train,
        validation=validation,
    )


def ratio_rows(results: "NMEResults") -> Array:
    """Twice the log-likelihood that each term of ``gate:`` brings, fits without it being made, shape (n_terms,)."""
    model, training = results.model, dict(results.training)
    terms, starts, found = np.array(terms_of(model.design, model.scaling)), training.pop("starts", 1), []
    for term in dict.fromkeys(terms.tolist()):
        smaller = reduced_problem(model.design, results.problem, model.scaling, terms != term)
        options: Mapping[str, Any] = {**training, "progress": False}
        control = build_control(model.estimator, smaller, **options)
        fit = fit_starts(smaller, control, model.estimator, starts, results.em.starts.seed or 0)
        found.append(2.0 * (results.trained.loglik - fit.trained.loglik))
    return np.array(found)


def covariate_tests(results: "NMEResults", lr: bool) -> pd.DataFrame:
    """Wald and likelihood-ratio tests of the covariates of the transitions, one row per term.

    Raises
    ------
    ArgumentError
        If there are no such covariates, or no likelihood.
    """
    model = results.model
    if not len(model.scaling.gate_columns):
        raise ArgumentError(
            "the transitions of this model go with no covariates; name some in gate:, as in 'state ~ x | gate: age | "
            "re: (transitions | id) | seq: day'"
        )
    if model.estimator == "sgd":
        raise ArgumentError("estimator='sgd' has no likelihood, and so no tests; use estimator='laplace'")
    if results.problem.validation.n_rows:
        raise ArgumentError(
            f"validation={results.problem.share:g} chose the epoch of this fit, which is at no maximum of the "
            "likelihood; fit without it for tests"
        )
    frame = wald_rows(results)
    if lr:
        ratio = ratio_rows(results)
        frame = frame.assign(lr=ratio, lr_pvalue=chi2.sf(ratio, frame["df"]))
    return frame
