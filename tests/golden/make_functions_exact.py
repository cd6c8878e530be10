"""A penalised function of a GLMM by brute force: python -m tests.golden.make_functions_exact, after make_functions.R.

At given constant, line, smoothing parameter and deviation of subjects: subjects' effects on a fine grid, penalised
coefficients by importance sampling. Log marginal likelihood at the parameters of mixmoe (11 quadrature points) and at
mgcv's, posterior mean of the function at those of mixmoe.
"""

import json
from pathlib import Path

import numpy as np
from scipy.special import gammaln, log_expit
from scipy.stats import multivariate_t

from tests.golden.test_functions_glmm import STORED, data, fitted

HERE = Path(__file__).parent
PAIRS, AT_ONCE = 4000, 200  # draws on both sides of the middle: what is symmetric has no Monte Carlo error
NODES = 41  # of a trapezoidal rule over ten standard deviations


def marginal(frame, case, eta, sd):
    """Log-likelihood of predictors (S, n) with the effects of subjects integrated out, shape (S,)."""
    y, starts = frame[case["response"]].to_numpy(), np.flatnonzero(frame["id"].diff() != 0)
    log_weight, parts = np.log(10 / (NODES - 1)) - 0.5 * np.log(2 * np.pi), []
    for u in np.linspace(-5, 5, NODES):
        there = eta + sd * u
        if case["family"] == "binomial":
            rows = np.where(y == 1, log_expit(there), log_expit(-there))
        else:
            rows = y * there - np.exp(there) - gammaln(y + 1)
        parts.append(np.add.reduceat(rows, starts, axis=1) - 0.5 * u**2 + log_weight)
    return np.logaddexp.reduce(np.stack(parts), axis=0).sum(axis=1)


def exact(frame, case, basis, penalised, law, constant, line, lam, sd):
    """Log marginal likelihood and posterior mean of the curve, with their largest Monte Carlo errors."""
    away = law.rvs(PAIRS, random_state=1) - law.loc
    draws = law.loc + np.concatenate([away, -away])
    b = np.zeros((2 * PAIRS, basis.shape[1]))
    b[:, penalised], b[:, ~penalised] = draws, line
    curves = constant + b @ basis.T
    height = np.concatenate([marginal(frame, case, part, sd) for part in np.split(curves, 2 * PAIRS // AT_ONCE)])
    height += 0.5 * penalised.sum() * np.log(lam / (2 * np.pi)) - 0.5 * lam * (draws**2).sum(axis=1) - law.logpdf(draws)
    share = np.exp(height - height.max())
    loglik = height.max() + np.log(share.mean())
    share /= share.sum()
    at = curves[:, case["rows"]]
    mean = share @ at
    pairs = (share[:, None] * (at - mean)).reshape(2, PAIRS, -1).sum(axis=0)
    by_pair = share.reshape(2, PAIRS).sum(axis=0) * PAIRS
    return loglik, mean, float(np.sqrt((pairs**2).sum(axis=0)).max()), float(by_pair.std() / np.sqrt(PAIRS))


def main():
    """Write functions_exact.json."""
    frame, out = data(), []
    for case in STORED["cases"]:
        f, constant, coefficients, lam, sd, cov = fitted(frame, case)
        basis, penalised = f.basis(frame["x"].to_numpy()), f.columns.penalised
        law = multivariate_t(coefficients[penalised], cov[np.ix_(penalised, penalised)], df=8)
        problem = (frame, case, basis, penalised, law)
        best, mean, error, noise = exact(*problem, constant, coefficients[~penalised], lam, sd)
        columns = np.column_stack([np.ones(len(frame)), basis])[case["rows"]]
        c = np.linalg.lstsq(columns, np.array(case["mgcv"]["curve"]), rcond=None)[0]
        theirs = (c[0], c[1:][~penalised], case["mgcv"]["sd_function"] ** -2, case["mgcv"]["sd"])
        out.append(
            {
                "parameters": [constant, *coefficients[~penalised], lam, sd],
                "loglik": best,
                "loglik_mgcv": exact(*problem, *theirs)[0],
                "mean": mean.tolist(),
                "error": error,
                "error_loglik": noise,
            }
        )
        print(case["family"], out[-1])
    (HERE / "functions_exact.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
