"""Time of a training step and memory of NME, beside a generic torch network of the same shape.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.neural [--device cpu] [--persons 1000] [--memory 10000]

Times are medians over repetitions; one epoch of the fit holds a step and its share of the variance updates.
"""

import argparse
import resource
import time

import numpy as np
import torch

from mixmoe.neural.batches import split_batches
from mixmoe.neural.blocks import build_blocks
from mixmoe.neural.estimators.linearised import fit_laplace
from mixmoe.neural.estimators.trained import Control, Problem
from mixmoe.neural.estimators.training import Objective, start_state, train_epoch
from mixmoe.neural.network import build_network, initial_parameters
from mixmoe.neural.personal_layers import select_personal

ROWS, INPUTS, HIDDEN = 50, 4, (10, 5)


def median(step, repeats=30, warm=5, device="cpu"):
    """Median milliseconds of a step."""
    times = []
    for _ in range(repeats + warm):
        begin = time.perf_counter()
        step()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return 1e3 * float(np.median(times[warm:]))


def rows(n_persons):
    """Rows of `n_persons` persons, 50 each."""
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(n_persons), ROWS)
    x = rng.normal(size=(len(codes), INPUTS))
    shift = rng.normal(size=n_persons)
    return x, np.tanh(x[:, 0] + shift[codes]) + 0.3 * rng.normal(size=len(codes)), codes


def generic_step(x, y, dtype, device):
    """A step of an ordinary torch network on the same rows."""
    layers = [
        torch.nn.Linear(INPUTS, 10),
        torch.nn.Tanh(),
        torch.nn.Linear(10, 5),
        torch.nn.Tanh(),
        torch.nn.Linear(5, 1),
    ]
    network = torch.nn.Sequential(*layers).to(device, dtype)
    inputs, targets = (torch.tensor(a, dtype=dtype, device=device) for a in (x, y[:, None]))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)

    def step():
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(network(inputs), targets).backward()
        optimiser.step()

    return step


def own_problem(x, y, codes, n_persons, device):
    """All layers personal."""
    network = build_network(INPUTS, 1, HIDDEN)
    blocks, none = (build_blocks(*a, n_persons, device=device) for a in ((x, y, codes), (x[:0], y[:0], codes[:0])))
    return Problem("gaussian", network, select_personal(network, ["all"]), blocks, none, n_persons, device=device)


def own_step(problem):
    """A step of NME with all layers personal."""
    rng, control = np.random.default_rng(0), Control()
    state = start_state(problem, initial_parameters(problem.network, rng), rng)
    optimiser, batches = torch.optim.Adam(state.trained, lr=0.01), split_batches(problem, None, rng)
    return lambda: train_epoch(problem, control, state, optimiser, batches, Objective())


def epoch_time(problem, epochs=200):
    """Milliseconds per epoch of a whole fit."""
    begin = time.perf_counter()
    theta = initial_parameters(problem.network, np.random.default_rng(0))
    fit_laplace(problem, Control(epochs=epochs), theta, np.random.default_rng(0))
    return 1e3 * (time.perf_counter() - begin) / epochs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--persons", type=int, default=1000)
    parser.add_argument("--memory", type=int, default=0, help="only fit so many persons and print the peak memory")
    chosen = parser.parse_args()
    if chosen.memory:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        problem = own_problem(*rows(chosen.memory), chosen.memory, chosen.device)
        per_epoch = epoch_time(problem, 40)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{chosen.memory} persons: {per_epoch:.0f} ms per epoch, peak {peak:.0f} MB, "
            f"{peak - before:.0f} above torch"
        )
        return
    x, y, codes = rows(chosen.persons)
    problem = own_problem(x, y, codes, chosen.persons, chosen.device)
    single = median(generic_step(x, y, torch.float32, chosen.device), device=chosen.device)
    double = median(generic_step(x, y, torch.float64, chosen.device), device=chosen.device)
    own = median(own_step(problem), device=chosen.device)
    print(f"{chosen.persons} persons x {ROWS} rows, {problem.personal.q} personal parameters each, {chosen.device}")
    print(f"generic torch step {double:.1f} ms (float64), {single:.1f} ms (float32); own step {own:.1f} ms (float64)")
    print(f"ratio {own / double:.2f} to float64, {own / single:.2f} to float32")
    print(f"whole fit {epoch_time(problem):.1f} ms per epoch")


if __name__ == "__main__":
    main()
