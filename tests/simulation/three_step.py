"""Bias and coverage of three-step estimates over replicates with known truth, as Markdown tables.

    python -m tests.simulation.three_step --replicates 400 [--designs two three] [--first 5000] [--write]
    python -m tests.simulation.three_step --replicates 600 --designs three --covariates-only --n-subjects 400 --write

Each replicate draws memberships and courses, fits the courses without the covariate z1 on which membership depends,
starting from the truth, and relates to the experts, by each method: a normal outcome and a skewed one with the same
means, a binary outcome, a normal outcome that also depends on a covariate, and z1 itself as covariate of membership.
The method "known" is ordinary regression on the true memberships: what is left of the bias with them has nothing to do
with classification.
`--write` stores the tables in tests/simulation/THREE_STEP.md. The bar: bias of BCH and ML under 10 % of the naive bias.

Differences between replicates are a hundred times the bias at stake. They are nearly all explained by averages over the
units whose expectation is zero by construction (`controls`): with the true parameters, weights that undo the errors of
the assignment, times residuals from the truth. A regression of the estimates on them leaves the bias as its intercept,
with a Monte Carlo error a third as large (control variates: Lavenberg & Welch 1981, Management Science 27, 322-335).
"""

import argparse
import json
import sys
import time
import warnings
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import statsmodels.api as sm

import mixmoe as mm
from mixmoe.errors import ArgumentError, MixmoeWarning

FORMULA = "y ~ time | re: (1 | id)"
STRUCTURE = {"cov_re": "common", "residual": "common"}
OUTCOMES = {"normal": "mean", "skewed": "mean", "adjusted": "mean", "binary": "risk"}
METHODS = ("naive", "bch", "ml")
AGE = 0.5  # slope of the outcome in the covariate
EFFECTS, VISITS = 0.6, 5  # variance of the random intercepts; visits of each unit, residual variance 1
MANY = 400_000  # units from which the errors of assignment at the truth are known


@dataclass(frozen=True)
class Assigned:
    """Shares of the experts, and P(assigned to s | expert t) when units are assigned with the true parameters."""

    shares: np.ndarray
    errors: np.ndarray


@dataclass(frozen=True)
class Design:
    """What the data of one study come from."""

    n_subjects: int
    beta: tuple
    gamma: tuple
    means: tuple
    risks: tuple


DESIGNS = {
    "two": Design(500, ((0.0, 0.0), (1.2, 0.3)), ((-0.2, 0.7),), (0.0, 1.0), (0.3, 0.6)),
    "three": Design(
        800,
        ((0.0, 0.0), (1.5, 0.35), (-1.5, -0.35)),
        ((-0.2, 0.7), (-0.4, -0.5)),
        (0.0, 1.0, -0.5),
        (0.3, 0.6, 0.45),
    ),
}


def draw(design, seed):
    """Courses, outcomes, and true memberships, from 0."""
    rng = np.random.default_rng(seed)
    K = len(design.beta)
    sim = mm.simulate.memoe(
        n_subjects=design.n_subjects,
        n_visits=VISITS,
        beta=design.beta,
        gamma=design.gamma,
        D=[[[EFFECTS]]] * K,
        sigma=[1.0] * K,
        rng=rng,
    )
    k = sim.experts - 1
    first = sim.data.groupby("id", sort=True).first()
    n, mean = len(k), np.array(design.means)[k]
    outcomes = pd.DataFrame({"id": first.index, "z1": first["z1"].to_numpy(), "age": rng.normal(size=n)})
    outcomes["normal"] = mean + rng.normal(size=n)
    outcomes["skewed"] = mean + rng.exponential(size=n) - 1
    outcomes["binary"] = (rng.random(n) < np.array(design.risks)[k]).astype(float)
    outcomes["adjusted"] = mean + AGE * outcomes["age"] + rng.normal(size=n)
    return sim, outcomes, k


def fitted(sim, k):
    """The fit without z1, from the truth on, its experts in the order of the truth."""
    truth = sim.truth.named()
    K = sim.truth.n_experts
    share = np.bincount(k, minlength=K) / len(k)
    start = {name: value for name, value in truth.items() if name.startswith("expert")}
    start |= {f"gate{j + 1}.Intercept": np.log(share[j] / share[0]) for j in range(1, K)}
    start |= {"sd(Intercept|id)": truth["sd1(Intercept|id)"], "sigma": truth["sigma1"]}
    fit = mm.fit(FORMULA, sim.data, experts=K, start=start, cov_type="nonrobust", **STRUCTURE)
    modal = fit.classify()["expert"].to_numpy() - 1
    order = max(permutations(range(K)), key=lambda p: np.mean(np.asarray(p)[k] == modal))
    return fit.relabel([j + 1 for j in order])


def truths(design):
    """True value of every estimand."""
    K = len(design.means)
    out = {}
    for name in ("normal", "skewed", "adjusted"):
        out |= {f"{name}: mean {j + 1} - 1": design.means[j] - design.means[0] for j in range(1, K)}
    out |= {f"binary: risk {j + 1} - 1": design.risks[j] - design.risks[0] for j in range(1, K)}
    out["adjusted: age"] = AGE
    return out | {f"covariates: log odds {j + 1}": design.gamma[j - 1][1] for j in range(1, K)}


def estimates(fit, outcomes, method, kinds):
    """Estimate and standard error of every estimand by one method."""
    K = fit.model.n_experts
    out = {}
    for name, kind in kinds.items():
        right = "expert + age" if name == "adjusted" else "expert"
        found = fit.distal(f"{name} ~ {right}", outcomes, method=method)
        pairs = found.pairwise().to_frame().set_index("contrast")
        for j in range(2, K + 1):
            row = pairs.loc[f"{j} - 1"]
            out[f"{name}: {kind} {j} - 1"] = (row["estimate"], row["std_error"])
        if name == "adjusted":
            at = found.coefficients.layout.names.index("age")
            out["adjusted: age"] = (found.coefficients.values[at], found.coefficients.std_errors[at])
    frame = fit.covariates("~ z1", outcomes, method=method).to_frame()
    for j in range(2, K + 1):
        row = frame.loc[f"gate{j}.z1"]
        out[f"covariates: log odds {j}"] = (row["estimate"], row["std_error"])
    return out


def oracle(design, outcomes, k, kinds):
    """Every estimand were memberships known."""
    K = len(design.means)
    member = np.eye(K)[k]
    out = {}
    for name, kind in kinds.items():
        X = np.column_stack([member, outcomes["age"]]) if name == "adjusted" else member
        found = np.linalg.lstsq(X, outcomes[name], rcond=None)[0]
        out |= {f"{name}: {kind} {j + 1} - 1": found[j] - found[0] for j in range(1, K)}
        if name == "adjusted":
            out["adjusted: age"] = found[K]
    logits = sm.MNLogit(k, sm.add_constant(outcomes["z1"])).fit(disp=False, method="newton").params.to_numpy()
    return out | {f"covariates: log odds {j + 1}": logits[1, j - 1] for j in range(1, K)}


def assignments(design, data, shares):
    """The most probable expert of each unit at the true parameters, from 0; the courses are normal given the expert."""
    beta = np.array(design.beta)
    residuals = data["y"].to_numpy()[:, None] - beta[:, 0] - np.outer(data["time"], beta[:, 1])
    by_unit = residuals.reshape(-1, VISITS, len(beta))
    total, squares = by_unit.sum(axis=1), (by_unit**2).sum(axis=1)
    return (np.log(shares) - 0.5 * (squares - EFFECTS / (1 + VISITS * EFFECTS) * total**2)).argmax(axis=1)


@cache
def assigned(design):
    """Shares and errors of assignment, from very many units."""
    sim, _, k = draw(replace(design, n_subjects=MANY), 1)
    member = np.eye(len(design.beta))[k]
    shares = member.mean(axis=0)
    mass = member.T @ np.eye(len(shares))[assignments(design, sim.data, shares)]
    return Assigned(shares, mass / mass.sum(axis=1, keepdims=True))


def controls(design, sim, outcomes, k):
    """Averages over the units with expectation zero, by outcome.

    Given the expert, ``inverse(errors)[assigned]`` has the mean of its indicator, so that both, times residuals from
    the true model of the outcome, have the mean zero.
    """
    at, K = assigned(design), len(design.means)
    undone = np.linalg.inv(at.errors)[assignments(design, sim.data, at.shares)]
    z1, age = outcomes["z1"].to_numpy(), outcomes["age"].to_numpy()
    eta = np.column_stack([np.zeros(len(k)), *(a + b * z1 for a, b in design.gamma)])
    odds = np.exp(eta - np.logaddexp.reduce(eta, axis=1, keepdims=True))
    found = {}
    for weights in (undone, np.eye(K)[k]):
        off = (weights - odds)[:, 1:]
        found.setdefault("covariates", []).extend([*off.mean(axis=0), *(off * z1[:, None]).mean(axis=0)])
        for name, mean in {name: design.risks if name == "binary" else design.means for name in OUTCOMES}.items():
            slope = AGE * age if name == "adjusted" else 0.0
            off = weights * ((outcomes[name].to_numpy() - slope)[:, None] - np.array(mean))
            found.setdefault(name, []).extend([*off.mean(axis=0), (off.sum(axis=1) * age).mean()])
    return {name: [float(value) for value in values] for name, values in found.items()}


def replicate(design, seed, kinds):
    """Rows of one replicate and its controls; a method without solution has no rows."""
    sim, outcomes, k = draw(design, seed)
    known = oracle(design, outcomes, k, kinds)
    rows = [(seed, "known", name, float(value), None, None) for name, value in known.items()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixmoeWarning)
        fit = fitted(sim, k)
        for method in METHODS:
            try:
                found = estimates(fit, outcomes, method, kinds)
            except ArgumentError:
                continue
            rows += [(seed, method, name, *map(float, pair), float(fit.entropy)) for name, pair in found.items()]
    return {"rows": rows, "controls": controls(design, sim, outcomes, k)}


def explained(values, known):
    """Mean of `values` and its Monte Carlo error, corrected by controls whose true means are zero."""
    X = np.column_stack([np.ones(len(values)), known])
    X = X[:, [0, *(np.flatnonzero(X[:, 1:].std(axis=0) > 0) + 1)]]
    found = np.linalg.lstsq(X, values, rcond=None)[0]
    spread = ((values - X @ found) ** 2).sum() / (len(values) - X.shape[1])
    return found[0], np.sqrt(spread * np.linalg.inv(X.T @ X)[0, 0])


def summary(design, replicates):
    """Bias, what of it is beyond known memberships, standard errors and coverage per estimand and method."""
    rows = [row for one in replicates for row in one["rows"]]
    frame = pd.DataFrame(rows, columns=["seed", "method", "estimand", "estimate", "se", "entropy"])
    frame[["se", "entropy"]] = frame[["se", "entropy"]].astype(float)
    at_zero = {one["rows"][0][0]: one["controls"] for one in replicates}
    known = frame[frame["method"] == "known"].set_index(["seed", "estimand"])["estimate"]
    table = {}
    for (estimand, method), own in frame.groupby(["estimand", "method"], sort=False):
        off = own["estimate"].to_numpy() - truths(design)[estimand]
        beyond = own["estimate"].to_numpy() - known[[(seed, estimand) for seed in own["seed"]]].to_numpy()
        zero = [at_zero[seed][estimand.partition(":")[0]] for seed in own["seed"]]
        table[estimand, method] = {
            "truth": truths(design)[estimand],
            "plain": off.mean(),
            "bias": explained(off, zero),
            "beyond": (np.nan, np.nan) if method == "known" else explained(beyond, zero),
            "sd": off.std(ddof=1),
            "se": own["se"].mean(),
            "coverage": np.mean(np.abs(off) <= 1.959964 * own["se"]),
            "n": len(own),
        }
    order = {name: i for i, name in enumerate(truths(design))}
    return dict(sorted(table.items(), key=lambda item: order[item[0][0]])), frame["entropy"].mean()


def shown(of, naive):
    """A bias with its Monte Carlo error, and its share of the naive one where that is beyond doubt."""
    if np.isnan(of[0]):
        return " | "
    share = f"{100 * abs(of[0] / naive[0]):.1f}" if of != naive and abs(naive[0]) > 4 * naive[1] else ""
    return f"{of[0]:+.4f} ({of[1]:.4f}) | {share}"


def markdown(title, design, replicates):
    """One study as text."""
    table, entropy = summary(design, replicates)
    lines = [
        f"## {title}, mean relative entropy {entropy:.2f}",
        "",
        "| estimand | truth | method | plain bias | bias (MC error) | % of naive | beyond known (MC error) | "
        "% of naive | SD | mean SE | coverage | n |",
        "|---" * 12 + "|",
    ]
    for (estimand, method), r in table.items():
        naive = table[estimand, "naive"]
        errors = " | " if method == "known" else f"{r['se']:.3f} | {100 * r['coverage']:.1f} %"
        lines.append(
            f"| {estimand} | {r['truth']:g} | {method} | {r['plain']:+.4f} | {shown(r['bias'], naive['bias'])} | "
            f"{shown(r['beyond'], naive['beyond'])} | {r['sd']:.3f} | {errors} | {r['n']} |"
        )
    return "\n".join([*lines, ""])


def collected(name, design, seeds, kinds, folder):
    """All replicates, those that a former run kept included."""
    done = []
    for seed in seeds:
        path = None if folder is None else folder / f"{name}{design.n_subjects}-{len(kinds)}-{seed}.json"
        if path is not None and path.exists():
            done.append(json.loads(path.read_text(encoding="utf-8")))
            continue
        done.append(replicate(design, seed, kinds))
        if path is not None:
            path.write_text(json.dumps(done[-1]), encoding="utf-8")
    return done


HEAD = """# Three-step estimates: bias and coverage

`tests/simulation/three_step.py` says what is simulated. The skewed outcome breaks the assumption of `"ml"`, which is
normal given the expert: it is shown for that, and is why `"bch"` is the default and `"ml"` warns of it. "known" is
ordinary regression on the true memberships; the bias of its log odds, away from zero, is that of any logit in samples
of this size, and falls with their inverse.
"plain bias" is the mean distance from the truth, "bias" the same by control variates, which are more precise. "beyond
known" is the mean distance from the estimates with known memberships: what three steps add. Each is followed by its
share of the naive one, left blank where the naive estimate has no bias (less than four Monte Carlo errors).
"""


def store(path, title, command, section):
    """Put the section of one study into the file, in the place of an older one."""
    old = path.read_text(encoding="utf-8") if path.exists() else HEAD
    kept = [part for part in old.split("\n## ")[1:] if not part.startswith(f"{title},")]
    made = section.removeprefix("## ").replace("\n\n", f"\n\n    {command}\n\n", 1)
    parts = sorted([*kept, made], key=_place)
    path.write_text("\n## ".join([HEAD, *(part.rstrip("\n") + "\n" for part in parts)]), encoding="utf-8")


def _place(section):
    """Studies of all estimands first, by design, then those of covariates alone by their numbers of units."""
    words = section.partition(",")[0].split()
    size = int(section.partition("N = ")[2].partition(",")[0])
    return "alone" in section.partition("N =")[0], list(DESIGNS).index(words[0]), size


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=400)
    parser.add_argument("--designs", nargs="+", choices=list(DESIGNS), default=list(DESIGNS))
    parser.add_argument("--n-subjects", type=int, help="instead of the number of the design")
    parser.add_argument("--covariates-only", action="store_true", help="covariates of membership, no outcomes")
    parser.add_argument("--first", type=int, default=5000, help="seed of the first replicate")
    parser.add_argument("--keep", type=Path, help="folder in which replicates are kept, so that a run can go on")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    for name in options.designs:
        began = time.perf_counter()
        design = replace(DESIGNS[name], n_subjects=options.n_subjects or DESIGNS[name].n_subjects)
        seeds = range(options.first, options.first + options.replicates)
        kinds = {} if options.covariates_only else OUTCOMES
        title = f"{name} experts{', covariates alone' if options.covariates_only else ''}, N = {design.n_subjects}"
        section = markdown(title, design, collected(name, design, seeds, kinds, options.keep))
        print(section, f"{time.perf_counter() - began:.0f} s", flush=True)
        if options.write:
            command = f"python -m tests.simulation.three_step --designs {name} --replicates {options.replicates}"
            command += f" --n-subjects {design.n_subjects}" + " --covariates-only" * options.covariates_only
            store(
                Path(__file__).with_name("THREE_STEP.md"), title, f"{command} --first {options.first} --write", section
            )


if __name__ == "__main__":
    main(sys.argv[1:])
