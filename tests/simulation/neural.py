"""Figures of NME on simulated data, against those in the method's description.

    OMP_NUM_THREADS=1 python -m tests.simulation.neural [errors|chains|persons|settings|cultures|transitions]
        [--seeds 5]

Designs: 100 persons, 25-60 rows (or 10-20), 4 inputs, hidden (10, 5), noise variance .09; person effects inside three
hidden units (nonlinear), on the weights of the same units and on the intercept (linear), or none.
"""

import argparse
import warnings

import numpy as np
import pandas as pd

import mixmoe as mm

warnings.simplefilter("ignore", mm.errors.MixmoeWarning)
NOISE = 0.3
INPUTS = ["x1", "x2", "x3", "x4"]
DESIGNS = {
    "nonlinear": (25, 60),
    "linear": (25, 60),
    "none": (25, 60),
    "nonlinear, 10-20 rows": (10, 20),
}
# generic, network + LME, Laplace first, Laplace all: what the method's description expects
EXPECTED = {
    "nonlinear": (0.888, 0.164, 0.117, 0.117),
    "linear": (0.916, 0.107, 0.116, 0.113),
    "none": (0.093, 0.095, 0.092, 0.092),
    "nonlinear, 10-20 rows": (0.833, 0.286, 0.270, 0.311),
}


class World:
    """A population with its network; draws persons and rows."""

    def __init__(self, design, seed):
        self.kind, (self.low, self.high) = design.split(",")[0], DESIGNS[design]
        self.rng = np.random.default_rng(1000 + seed)
        self.weights = self.rng.normal(0, 0.7, (4, 3))
        self.bias = self.rng.normal(0, 0.3, 3)
        self.last = np.array([1.3, -1.0, 0.8])

    def persons(self, n):
        scale = {"nonlinear": 0.9, "linear": 0.62, "none": 0.0}[self.kind]
        return scale * self.rng.normal(size=(n, 4))

    def rows(self, effects, lengths, first=0):
        codes = np.repeat(np.arange(len(effects)), lengths)
        x, b = self.rng.normal(size=(len(codes), 4)), effects[codes]
        inside = b[:, :3] if self.kind == "nonlinear" else 0.0
        outside = b if self.kind == "linear" else np.zeros_like(b)
        mean = (np.tanh(x @ self.weights + self.bias + inside) * (self.last + outside[:, :3])).sum(1) + outside[:, 3]
        y = mean + NOISE * self.rng.normal(size=len(codes))
        return pd.DataFrame(x, columns=INPUTS).assign(y=y, id=codes + first)

    def lengths(self, n):
        return self.rng.integers(self.low, self.high + 1, n)


def fitted(layers, data, seed, **options):
    """A fit with the given layers personal."""
    formula = f"y ~ x1 + x2 + x3 + x4 | re: ({layers} | id)"
    return mm.fit(formula, data, hidden=(10, 5), **{"rng": seed, "baselines": False, **options})


def squared_error(fit, data):
    """Mean squared error of predictions without limits."""
    return float(((fit.predict(data, "subject")["mean"] - data["y"]) ** 2).mean())


def errors(seeds, models):
    """Test errors by design and model; "sgd all" is the published rule."""
    known = {"generic": "0", "last": "last", "first": "first", "all": "all", "sgd": "all"}
    chosen = models or ["generic", "last", "first", "all"]
    print("design | " + " | ".join(chosen) + " | expected generic / LME / first / all")
    for design in DESIGNS:
        found = []
        for seed in seeds:
            world = World(design, seed)
            effects = world.persons(100)
            train, test = world.rows(effects, world.lengths(100)), world.rows(effects, 40)
            options = {name: {"estimator": "sgd", "epochs": 1500} if name == "sgd" else {} for name in chosen}
            found.append([squared_error(fitted(known[m], train, seed, **options[m]), test) for m in chosen])
            print(f"  {design} seed {seed}: " + " ".join(f"{v:.4f}" for v in found[-1]), flush=True)
        means = " | ".join(f"{v:.4f}" for v in np.mean(found, axis=0))
        print(f"{design} | {means} | {' / '.join(map(str, EXPECTED[design]))}", flush=True)


def persons(seeds):
    """Coverage of 90 % intervals of new persons, and what ten rows tell about one."""
    for design, layers in (("linear", "last"), ("nonlinear", "first"), ("nonlinear", "last")):
        found = []
        for seed in seeds:
            world = World(design, seed)
            fit = fitted(layers, world.rows(world.persons(100), world.lengths(100)), seed)
            effects = world.persons(60)
            few, many, test = (world.rows(effects, n, 1000) for n in (10, 40, 40))
            limits = fit.predict(test, "subject", interval="prediction", alpha=0.1)
            cover = ((test.y > limits.mean_low) & (test.y < limits.mean_high)).mean()
            ten = fit.adapt(few)
            own = ten.predict(test, "subject", interval="prediction", alpha=0.1)
            inside = ((test.y > own.mean_low) & (test.y < own.mean_high)).mean()
            unknown, adapted, known = (
                ((f.predict(test, "subject")["mean"] - test["y"]) ** 2).mean() for f in (fit, ten, fit.adapt(many))
            )
            found.append((cover, inside, unknown, adapted, known, (unknown - adapted) / (unknown - known)))
            print(f"  {design} {layers} seed {seed}: " + " ".join(f"{v:.3f}" for v in found[-1]), flush=True)
        m = np.mean(found, axis=0)
        print(
            f"{design}, {layers}: 90 % intervals cover {m[0]:.3f} (unknown), {m[1]:.3f} (10 rows); "
            f"errors {m[2]:.3f} / {m[3]:.3f} / {m[4]:.3f}; gap closed {m[5]:.3f}",
            flush=True,
        )


SETTINGS = ({}, {"epochs": 3000}, {"lr": 0.005}, {"lr": 0.02}, {"rng": 100})


def settings(seeds):
    """Spread of the variance components over settings of the optimiser and starts; there is no annealing to vary."""
    for seed in seeds:
        world = World("nonlinear", seed)
        train = world.rows(world.persons(100), world.lengths(100))
        for layers in ("first", "layer1.bias"):
            fits = [fitted(layers, train, seed, **{"cov": "tensor", **options}) for options in SETTINGS]
            print(f"seed {seed} {layers}: log-likelihoods {[round(fit.llf, 1) for fit in fits]}")
            for name in fits[0].params.index:
                values = np.array([f.params[name] ** 2 for f in fits])
                spread = np.ptp(values) / values.mean()
                print(f"seed {seed} {layers} {name}: variances {values.round(4)}, spread {spread:.3f}", flush=True)


class Chain:
    """A CRF whose transition scores differ between persons."""

    def __init__(self, seed, sd, n_persons=100, n_states=4):
        self.rng = np.random.default_rng(seed)
        self.emission = self.rng.normal(0, 0.8, (2, n_states))
        self.table = self.rng.normal(0, 0.7, (n_states, n_states))
        self.effects = sd * self.rng.normal(size=(n_persons, n_states, n_states))

    def states(self, x, table):
        """An exact draw: backward messages, then forward."""
        e = x @ self.emission
        message = np.zeros_like(e)
        for t in range(len(x) - 2, -1, -1):
            message[t] = np.logaddexp.reduce(table + e[t + 1] + message[t + 1], axis=1)
        out: list[int] = []
        for t in range(len(x)):
            logits = e[t] + message[t] + (table[out[-1]] if out else 0.0)
            p = np.exp(logits - logits.max())
            out.append(int(self.rng.choice(len(p), p=p / p.sum())))
        return out

    def rows(self, low=25, high=60):
        frames = []
        for person, effect in enumerate(self.effects):
            n = int(self.rng.integers(low, high + 1))
            x = self.rng.normal(size=(n, 2))
            states = np.array(list("abcdefgh"))[self.states(x, self.table + effect)]
            frames.append(pd.DataFrame({"id": person, "day": range(n), "x1": x[:, 0], "x2": x[:, 1], "state": states}))
        return pd.concat(frames, ignore_index=True)


def chain_loss(fit, data):
    """Negative log-likelihood per row of known persons' sequences."""
    import torch

    from mixmoe.neural.batches import blocks_of
    from mixmoe.neural.estimators.trained import total_loss

    model = fit.model
    design = model.design.for_new(data, response=True)
    blocks = blocks_of(design, "crf", model.scaling, np.ones(design.n, dtype=bool), np.arange(design.n_units), "cpu")
    eta = torch.tensor(fit.persons.z @ fit.trained.loading.T) if model.personal.q else None
    return float(total_loss(fit.problem, blocks, torch.tensor(fit.trained.theta), eta)) / design.n


def chains(seeds):
    """Losses, recovered standard deviations and coverage for CRFs."""
    import torch

    from mixmoe.neural.crf import centred

    for sd in (0.8, 0.3):
        found = []
        for seed in seeds:
            world = Chain(seed, sd)
            train, test = world.rows(), world.rows()
            generic, own, published = (
                mm.fit(
                    f"state ~ x1 + x2 | re: ({layers} | id) | seq: day",
                    train,
                    family="crf",
                    hidden=(),
                    rng=seed,
                    baselines=False,
                    **options,
                )
                for layers, options in (
                    ("0", {}),
                    ("transitions", {}),
                    ("transitions", {"estimator": "sgd", "epochs": 500}),
                )
            )
            table = own.transitions
            truth = centred(torch.tensor(world.table + world.effects)).numpy()
            cover = (np.abs(truth - table.scores) < 1.96 * table.scores_se).mean()
            sd_found = own.params["sd1(transitions|id)"]
            found.append(
                (chain_loss(generic, test), chain_loss(published, test), chain_loss(own, test), sd_found, cover)
            )
            print(f"  sd {sd} seed {seed}: " + " ".join(f"{v:.4f}" for v in found[-1]), flush=True)
        m = np.mean(found, axis=0)
        print(
            f"sd {sd}: loss generic {m[0]:.3f}, sgd {m[1]:.3f}, laplace {m[2]:.3f}; recovered {m[3]:.3f}; "
            f"95 % intervals cover {m[4]:.3f}",
            flush=True,
        )


def cultures(seeds):
    """Errors where persons and cultures, crossed, both have effects on the weights of three hidden units."""
    for seed in seeds:
        world = World("linear", seed)
        people, places = world.persons(60), 0.8 * world.persons(12)
        sets = []
        for n_rows in (15, 30):
            rows = world.rows(people, n_rows)
            culture = world.rng.integers(12, size=len(rows))
            x, effect = rows[INPUTS].to_numpy(), places[culture]
            rows["y"] += (np.tanh(x @ world.weights + world.bias) * effect[:, :3]).sum(1) + effect[:, 3]
            sets.append(rows.assign(culture=culture))
        train, test = sets
        terms = "y ~ x1 + x2 + x3 + x4 | re: (last | id)"
        found = [
            mm.fit(terms + more, train, hidden=(10,), rng=seed, baselines=False)
            for more in ("", " + (last[1] | culture)", " + (last | culture)")
        ]
        shown = " ".join(f"{squared_error(fit, test):.4f}" for fit in found)
        print(f"  seed {seed}: persons / + culture's intercept / + last of cultures: {shown}", flush=True)


def tied_chains(seed, shift=0.0, n_persons=40, lengths=(6, 20), sd=0.8):
    """Two states; transitions of persons go with the length of their sequences by `shift`, or with nothing."""
    rng = np.random.default_rng(seed)
    length = rng.permutation(np.repeat(lengths, n_persons // 2))
    rows = []
    for person, n in enumerate(length):
        tied = shift * (length[person] - length.mean()) / length.std()
        table = sd * rng.normal(size=(2, 2)) + (0.5 + 0.5 * tied) * np.eye(2)
        ahead = np.zeros((n, 2))
        for t in range(n - 2, -1, -1):
            ahead[t] = np.log(np.exp(table + ahead[t + 1]).sum(1))
        state = 0
        for t in range(n):
            score = ahead[t] + (table[state] if t else 0.0)
            state = int(rng.random() < 1.0 / (1.0 + np.exp(score[0] - score[1])))
            rows.append((person, t, "AB"[state], float(n)))
    return pd.DataFrame(rows, columns=["id", "day", "state", "w"])


def transitions(seeds):
    """Size and power of the tests of a covariate of the transitions that is the length of the sequences."""
    formula = "state ~ 1 | gate: w | re: (transitions | id) | seq: day"
    for shift in (0.0, 0.8):
        chosen = seeds if shift == 0.0 else list(seeds)[: max(len(seeds) // 6, 1)]
        p = []
        for seed in chosen:
            fit = mm.fit(formula, tied_chains(seed, shift), hidden=(), epochs=60, baselines=False, rng=0)
            p.append(fit.transition_tests().loc["w", ["wald_pvalue", "lr_pvalue"]].to_numpy(dtype=float))
            if len(p) % 10 == 0:
                print(f"  shift {shift}, {len(p)}: {(np.array(p) < 0.05).sum(0)} rejected at .05", flush=True)
        share = (np.array(p) < 0.05).mean(0)
        error = np.sqrt(share * (1.0 - share) / len(p))
        print(f"shift {shift}: rejected by Wald {share[0]:.3f} ({error[0]:.3f}), ratio {share[1]:.3f} ({error[1]:.3f})")


STUDIES = {
    "errors": errors,
    "chains": chains,
    "persons": persons,
    "settings": settings,
    "cultures": cultures,
    "transitions": transitions,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", choices=[*STUDIES, []], default=[])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--models", nargs="*", help="of errors: generic, last, first, all, sgd")
    chosen = parser.parse_args()
    for name in chosen.studies or STUDIES:
        print(f"## {name}, {chosen.seeds} seeds", flush=True)
        seeds = range(chosen.first, chosen.first + chosen.seeds)
        STUDIES[name](seeds, chosen.models) if name == "errors" else STUDIES[name](seeds)


if __name__ == "__main__":
    main()
