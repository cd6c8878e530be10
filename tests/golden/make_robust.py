"""Linear mixed models by dense algebra: python -m tests.golden.make_robust.

Starts from lme4's estimates, takes Newton steps on the exact log-likelihood in (beta, elements of D, sigma^2), and
computes covariances with nothing but dense matrices of each subject: the observed information A, the sum B of outer
products of the subjects' scores, the sandwich A^-1 B A^-1, and the sandwich of the fixed effects at given variances
(CR0). Designs are built here by hand, not by the package.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def read(name):
    path = HERE / f"{name}.csv"
    data = pd.read_csv(path if path.exists() else ROOT / "mixmoe" / "data" / f"{name}.csv")
    return data.assign(year=data["day"] / 365.25) if name == "pbcseq" else data


# name of the case -> response, columns of X behind the intercept, columns of Z, each as an expression over the frame
LOG_BILI, LOG_ALK, LOG_PLATELET = "log(bili)", "log(alk_phos)", "log(platelet)"
MALE, STAGES = "sex in ('m', 'Male')", ["stage == 2", "stage == 3", "stage == 4"]
CASES = {
    "sleep_intercept": ("reaction", ["days"], ["1"]),
    "sleep_slope": ("reaction", ["days"], ["1", "days"]),
    "sleep_uncorrelated": ("reaction", ["days"], ["1", "days"]),
    "orthodont_slope": ("distance", ["age", MALE, f"({MALE}) * age"], ["1", "age"]),
    "pbc_slope": (LOG_BILI, ["year", "age", MALE], ["1", "year"]),
    "pbc_uncorrelated": ("albumin", ["year", "age", *STAGES], ["1", "year"]),
    "pbc_missing": (LOG_ALK, ["year", "trt", LOG_PLATELET], ["1", "year"]),
    "sim_intercept": ("y", ["time", "x1", "z1", "z2"], ["1"]),
    "sim_slope": ("y", ["time", "z1", "x1", "z2", "time * z1"], ["1", "time"]),
    "sim_uncorrelated": ("y", ["time", "x1"], ["1", "time"]),
}


def columns(data, expressions):
    ones = np.ones(len(data))
    values = [ones if text == "1" else ones * data.eval(text, engine="python") for text in expressions]
    return np.column_stack(values)


def directions(q, diagonal):
    """Derivatives of D by its free elements, shape (r, q, q)."""
    found = []
    for i in range(q):
        for j in range(i + 1):
            if i == j or not diagonal:
                unit = np.zeros((q, q))
                unit[i, j] = unit[j, i] = 1.0
                found.append(unit)
    return np.array(found)


def subject_terms(y, X, Z, params, basis):
    """Log-likelihood, score and Hessian of one subject."""
    p, r = X.shape[1], len(basis)
    D = np.tensordot(params[p : p + r], basis, 1)
    slopes = [*(Z @ E @ Z.T for E in basis), np.eye(len(y))]
    V = Z @ D @ Z.T + params[-1] * np.eye(len(y))
    inverse = np.linalg.inv(V)
    residual = y - X @ params[:p]
    u = inverse @ residual
    loglik = -0.5 * (len(y) * np.log(2 * np.pi) + np.linalg.slogdet(V)[1] + residual @ u)
    score = [*(X.T @ u), *(-0.5 * np.sum(inverse * S) + 0.5 * u @ S @ u for S in slopes)]
    hessian = np.zeros((p + r + 1, p + r + 1))
    hessian[:p, :p] = -X.T @ inverse @ X
    for a, S in enumerate(slopes):
        hessian[p + a, :p] = hessian[:p, p + a] = -X.T @ inverse @ S @ u
        for b, T in enumerate(slopes):
            hessian[p + a, p + b] = 0.5 * np.trace(inverse @ S @ inverse @ T) - u @ S @ inverse @ T @ u
    return loglik, np.array(score), hessian


def natural(params, p, basis):
    """Standard deviations, correlations and sigma."""
    D = np.tensordot(params[p:-1], basis, 1)
    sd = np.sqrt(np.diag(D))
    off = basis.sum(axis=0)[np.tril_indices(len(sd), -1)] > 0
    return np.array([*sd, *(D / np.outer(sd, sd))[np.tril_indices(len(sd), -1)][off], np.sqrt(params[-1])])


def delta(params, cov, p, basis):
    """Standard errors of beta, standard deviations, correlations and sigma, by a numerical delta method."""
    steps = 1e-5 * np.abs(params)
    jacobian = []
    for k in range(p, len(params)):
        up, down = params.copy(), params.copy()
        up[k] += steps[k]
        down[k] -= steps[k]
        jacobian.append((natural(up, p, basis) - natural(down, p, basis)) / (2 * steps[k]))
    J = np.array(jacobian).T
    return np.sqrt([*np.diag(cov)[:p], *np.diag(J @ cov[p:, p:] @ J.T)])


def cr0(parts, params, basis):
    """Sandwich of the fixed effects at given variances."""
    p, r = parts[0][1].shape[1], len(basis)
    D = np.tensordot(params[p : p + r], basis, 1)
    bread, meat = np.zeros((p, p)), np.zeros((p, p))
    for y, X, Z in parts:
        inverse = np.linalg.inv(Z @ D @ Z.T + params[-1] * np.eye(len(y)))
        g = X.T @ inverse @ (y - X @ params[:p])
        bread += X.T @ inverse @ X
        meat += np.outer(g, g)
    half = np.linalg.inv(bread)
    return np.sqrt(np.diag(half @ meat @ half))


def solve(case):
    """Newton from lme4's estimates, then the standard errors."""
    response, fixed, random = CASES[case["name"]]
    data = read(case["data"])
    data = data.eval(f"_y = {response}", engine="python").dropna(subset=["_y"])
    X, Z = columns(data, ["1", *fixed]), columns(data, random)
    keep = ~np.isnan(X).any(axis=1)
    unit = data[case["formula"].split()[-1].rstrip(")")].to_numpy()[keep]
    X, Z, y = X[keep], Z[keep], data["_y"].to_numpy()[keep]
    parts = [(y[unit == u], X[unit == u], Z[unit == u]) for u in np.unique(unit)]
    basis = directions(Z.shape[1], "||" in case["formula"])
    D = np.array(case["D"], dtype=float)
    start = [D[tuple(np.argwhere(E)[0])] for E in basis]
    params = np.array([*case["beta"], *start, case["sigma"] ** 2])
    for _ in range(6):
        terms = [subject_terms(*part, params, basis) for part in parts]
        params = params - np.linalg.solve(sum(t[2] for t in terms), sum(t[1] for t in terms))
    terms = [subject_terms(*part, params, basis) for part in parts]
    scores = np.array([t[1] for t in terms])
    bread = np.linalg.inv(-sum(t[2] for t in terms))
    p = X.shape[1]
    return {
        "name": case["name"],
        "data": case["data"],
        "formula": case["formula"],
        "loglik": sum(t[0] for t in terms),
        "beta": params[:p].tolist(),
        "variance": natural(params, p, basis).tolist(),
        "se_nonrobust": delta(params, bread, p, basis).tolist(),
        "se_robust": delta(params, bread @ (scores.T @ scores) @ bread, p, basis).tolist(),
        "se_cr0": cr0(parts, params, basis).tolist(),
        "largest_score": float(np.abs(scores.sum(axis=0)).max()),
    }


def main():
    cases = json.loads((HERE / "lme4.json").read_text())["cases"]
    solved = [solve(case) for case in cases if case["name"] in CASES]
    record = {"versions": {"numpy": np.__version__, "pandas": pd.__version__}, "cases": solved}
    (HERE / "robust.json").write_text(json.dumps(record, indent=1) + "\n")
    for mine, peer in zip(solved, [c for c in cases if c["name"] in CASES], strict=True):
        print(f"{mine['name']:20s} log-likelihood minus lme4's {mine['loglik'] - peer['loglik']: .1e}", end="  ")
        print(f"score {mine['largest_score']:.1e}", np.round(np.divide(mine["se_robust"], mine["se_nonrobust"]), 2))


if __name__ == "__main__":
    main()
