"""What the transitions of a CRF tell beside their scores.

Tests of the covariates of persons that they go with, the terms of ``gate:``, and scores of the ends of sequences.
"""

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
from mixmoe.neural.network import CHAIN, chain_shapes, lay_out
from mixmoe.neural.personal_layers import personal_entries
from mixmoe.numerics.optimise import progress_bar
from mixmoe.output.records import Table

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
    A constant added to all scores changes nothing, so that a covariate has C^2 - 1 parameters, less scores that are
    given. Their covariance is the inverse observed information where the fit ends at the maximum of the marginal
    likelihood, see `is_marginal`, else that of the linearised model, effects integrated out and variances held.
    """
    model, network, rows = results.model, results.problem.network, []
    names, terms = model.layout.names, np.array(terms_of(model.design, model.scaling))
    for term in dict.fromkeys(terms.tolist()):
        of_columns = [
            [k for k, name in enumerate(names) if name.endswith(f":{model.design.names.gate[column]}")]
            for column in model.scaling.gate_columns[terms == term]
        ]
        # Where a constant may be added to all scores of a column the last follows from the others.
        free = [k for places in of_columns for k in (places if network.is_pinned else places[:-1])]
        zero = Hypotheses(np.eye(len(names))[free], np.zeros(len(free)), tuple(names[k] for k in free))
        found = wald_test(zero, results.em.params, results.cov.matrix, model.layout, results.cov.kind)
        told = isinstance(found, WaldTest)
        rows.append((len(free), *((found.statistic, found.pvalue) if told else (math.nan, math.nan))))
    index = pd.Index(dict.fromkeys(terms.tolist()), name="term")
    return pd.DataFrame(rows, index=index, columns=["df", "wald", "wald_pvalue"])


def end_scores(results: "NMEResults") -> pd.DataFrame:
    """Scores of starting and of ending a sequence in each state, columns ``start, start_se, end, end_se``.

    NaN where the transitions that there are do not tell rows and columns of their table apart.

    Raises
    ------
    ArgumentError
        If the model is no CRF.

    Notes
    -----
    A chain with emissions and transitions has them already. With ``r_a`` the mean of the scores that leave state a and
    ``c_b`` of those that enter b, both centred, the sum over a sequence of ``r + c`` at its transitions is that over
    all its rows less ``c`` at the first row and ``r`` at the last: so that ``-c`` and ``-r`` are what starting and
    ending there adds, beside emissions ``+ r + c`` and transitions without r and c.
    """
    model, network = results.model, results.problem.network
    if results.problem.family != "crf":
        raise ArgumentError(f"scores of ends belong to a CRF; this model's family is {results.problem.family!r}")
    C, free = network.n_out, np.flatnonzero(network.free_moves)
    rows, columns = np.divmod(free, C)
    centred = np.vstack([np.eye(C - 1), -np.ones(C - 1)])  # effects that sum to zero, (C, C - 1)
    X = np.hstack([np.ones((len(free), 1)), centred[rows], centred[columns]])
    to_ends = np.full((2 * C, len(free)), math.nan)
    if np.linalg.matrix_rank(X) == X.shape[1]:
        leave, enter = np.split(np.linalg.pinv(X)[1:], 2)
        to_ends = -np.vstack([centred @ enter, centred @ leave])
    found = to_ends @ results.em.params[: len(free)]
    V = to_ends @ results.cov.matrix[: len(free), : len(free)] @ to_ends.T
    errors = np.sqrt(np.maximum(np.diag(V), 0.0))
    names = [str(level) for level in model.design.response_levels or ()]
    values = {"start": found[:C], "start_se": errors[:C], "end": found[C:], "end_se": errors[C:]}
    return pd.DataFrame(values, index=pd.Index(names, name="state"))


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


def ratio_rows(results: "NMEResults", progress: bool | None) -> Array:
    """Twice the log-likelihood that each term of ``gate:`` brings, fits without it being made, shape (n_terms,).

    Parameters
    ----------
    progress : bool or None
        Show a bar of the terms; None: in a terminal, and if it takes more than a few seconds.
    """
    model, training = results.model, dict(results.training)
    terms, starts, found = np.array(terms_of(model.design, model.scaling)), training.pop("starts", 1), []
    each = list(dict.fromkeys(terms.tolist()))
    bar = progress_bar(len(each), "fits without a term", progress)
    for term in each:
        smaller = reduced_problem(model.design, results.problem, model.scaling, terms != term)
        options: Mapping[str, Any] = {**training, "progress": False}
        control = build_control(model.estimator, smaller, **options)
        fit = fit_starts(smaller, control, model.estimator, starts, results.em.starts.seed or 0)
        found.append(2.0 * (results.trained.loglik - fit.trained.loglik))
        bar.update()
    bar.close()
    return np.array(found)


def chain_tables(results: "NMEResults") -> list[Table]:
    """Start and end scores, and Wald tests of the covariates of the transitions; none of other families."""
    if results.problem.family != "crf":
        return []
    ends = end_scores(results)
    tables = [
        Table(
            "ends",
            "Start and end scores",
            ("start", "SE start", "end", "SE end"),
            tuple(str(state) for state in ends.index),
            tuple(tuple(row) for row in ends.to_numpy().tolist()),
            ("num",) * 4,
            ("What starting and ending in a state adds; part of the transition scores and intercepts above.",),
        )
    ]
    if len(results.model.scaling.gate_columns) and results.model.estimator == "laplace":
        found = wald_rows(results)
        columns = (found[name].tolist() for name in ("df", "wald", "wald_pvalue"))
        tables.append(
            Table(
                "gate",
                "Covariates of the transitions, Wald tests",
                ("df", "chi2", "p"),
                tuple(str(term) for term in found.index),
                tuple((int(df), wald, pvalue) for df, wald, pvalue in zip(*columns, strict=True)),
                ("num", "num", "p"),
                ("transition_tests() has likelihood-ratio tests too.",),
            )
        )
    return tables


def covariate_tests(results: "NMEResults", lr: bool, progress: bool | None) -> pd.DataFrame:
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
        ratio = ratio_rows(results, progress)
        frame = frame.assign(lr=ratio, lr_pvalue=chi2.sf(ratio, frame["df"]))
    return frame
