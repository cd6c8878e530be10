"""Kernels on padded batches against dense algebra and automatic differentiation."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mixmoe.neural.blocks import Block, Blocks, build_blocks, split_lengths, to_rows  # noqa: E402
from mixmoe.neural.estimators.last_layer import factor_from, start_entries  # noqa: E402
from mixmoe.neural.estimators.mixed_model import (  # noqa: E402  # noqa: E402
    Factors,
    Moments,
    make_plan,
    posterior_means,
    profile,
    row_columns,
)
from mixmoe.neural.network import ACTIVATIONS, build_network, forward, initial_parameters, jacobian, view_tensors  # noqa: E402
from mixmoe.neural.own_modules import wrap_module  # noqa: E402
from mixmoe.neural.personal_layers import select_personal  # noqa: E402
from mixmoe.neural.posterior import (  # noqa: E402
    marginal_information,
    posterior_covariance,
    shrinkage,
    shrinkage_from_information,
)
from mixmoe.neural.response_law import curvature_root, row_loss, score  # noqa: E402

RNG = np.random.default_rng(0)


def tensor(*shape):
    return torch.tensor(RNG.normal(size=shape))


@pytest.mark.parametrize(("m", "q"), [(3, 5), (5, 3), (1, 1), (4, 4)])
def test_shrinkage_equals_dense_algebra(m, q):
    A, s = tensor(4, m, q), torch.rand(q, dtype=torch.float64) + 0.1
    s[0] = 0.0
    S = torch.diag(s)
    V = torch.eye(m) + A @ S @ A.mT
    M = A.mT @ torch.linalg.solve(V, A)
    C = S - S @ M @ S
    for found in (shrinkage(A, s), shrinkage_from_information(A.mT @ A, s)):
        np.testing.assert_allclose(found.information, M.diagonal(dim1=1, dim2=2), atol=1e-10)
        np.testing.assert_allclose(found.logdet, torch.logdet(V), atol=1e-10)
    np.testing.assert_allclose(posterior_covariance(A.mT @ A, s), C, atol=1e-10)
    np.testing.assert_allclose(marginal_information(A.mT @ A, s), M, atol=1e-10)
    w = tensor(4, m)
    expected = (S @ A.mT @ torch.linalg.solve(V, w.unsqueeze(-1))).squeeze(-1)
    np.testing.assert_allclose(shrinkage(A, s, w).mode, expected, atol=1e-10)


@pytest.mark.parametrize("words", [("all",), ("first",), ("last",), ("bias",), ("layer[2]",), ("layer1.bias", "last")])
@pytest.mark.parametrize(("hidden", "n_out"), [((3, 2), 1), ((4,), 2)])
def test_jacobian_equals_automatic_differentiation(words, hidden, n_out):
    network = build_network(3, n_out, hidden)
    personal = select_personal(network, words)
    theta, eta = torch.tensor(initial_parameters(network, RNG)), 0.3 * tensor(2, personal.q)
    x = tensor(2, 5, 3)
    J = jacobian(network, personal, view_tensors(network, personal, theta, eta), x)
    for i in range(2):
        auto = torch.autograd.functional.jacobian(
            lambda e, i=i: forward(network, view_tensors(network, personal, theta, e[None]), x[i : i + 1])[0], eta[i]
        )
        np.testing.assert_allclose(J[i], auto, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_runs(activation):
    network = build_network(2, 1, (3,), activation)
    personal = select_personal(network, ["all"])
    tensors = view_tensors(
        network, personal, torch.tensor(initial_parameters(network, RNG)), 0.1 * tensor(2, personal.q)
    )
    assert torch.isfinite(jacobian(network, personal, tensors, tensor(2, 4, 2))).all()


def test_a_module_gives_what_the_built_in_network_gives():
    network = build_network(3, 1, (4,))
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    wrapped = wrap_module(module, 3, 1)
    own, theirs = select_personal(network, ["last"]), select_personal(wrapped, ["2"])
    theta = torch.tensor(initial_parameters(network, RNG))
    flipped = torch.cat([theta[:12].view(3, 4).T.reshape(-1), theta[12:]])
    eta, x = tensor(2, 5), tensor(2, 6, 3)
    ours, wrap = view_tensors(network, own, theta, eta), view_tensors(wrapped, theirs, flipped, eta)
    np.testing.assert_allclose(forward(network, ours, x), forward(wrapped, wrap, x), atol=1e-12)
    np.testing.assert_allclose(jacobian(network, own, ours, x), jacobian(wrapped, theirs, wrap, x), atol=1e-12)


@pytest.mark.parametrize(("family", "d"), [("gaussian", 1), ("binary", 1), ("multiclass", 3)])
def test_score_and_curvature_are_derivatives_of_the_loss(family, d):
    outputs = tensor(1, 4, d)
    y = torch.tensor([[1, 0, 1, 0]]) if family != "gaussian" else tensor(1, 4)
    y = y.double() if family == "binary" else y
    leaf = outputs.clone().requires_grad_(True)
    gradient = torch.autograd.grad(row_loss(family, leaf, y, 0.7).sum(), leaf)[0]
    np.testing.assert_allclose(score(family, outputs, y, 0.7), -gradient, atol=1e-12)
    R = curvature_root(family, outputs, 0.7)
    full = torch.autograd.functional.hessian(lambda o: row_loss(family, o, y, 0.7).sum(), outputs)
    for j in range(4):
        np.testing.assert_allclose((R @ R.mT)[0, j], full[0, j, :, 0, j, :], atol=1e-7)


def test_profiled_deviance_equals_the_dense_density():
    lengths = (4, 2, 7)
    H, y = tensor(3, 7, 3), tensor(3, 7)
    mask = torch.tensor((np.arange(7) < np.array(lengths)[:, None]).astype(float))
    columns = torch.tensor([0, 2])
    entries = torch.tensor(start_entries(2, "full", 2)) + 0.2 * tensor(3)
    L = factor_from(entries, 2, "full", columns)
    none = torch.zeros(*mask.shape, 0, dtype=torch.int64)
    blocks = Blocks((Block(torch.arange(len(lengths)), H, y, mask, None, none, 0.0 * mask, mask),), sum(lengths))
    plan = make_plan(blocks, [columns], [], H.shape[-1])
    H[..., -1] = 1.0
    rows = row_columns(plan, 0, H[..., :-1], y, mask)
    m = Moments((rows.mT @ rows,), plan, sum(lengths))
    fit = profile(m, Factors(L))
    u = posterior_means(m, fit).own.squeeze(-1)
    loglik = 0.0
    for i, n in enumerate(lengths):
        X, Z = H[i, :n], H[i, :n][:, columns]
        V = fit.sigma2 * (torch.eye(n) + Z @ L @ L.T @ Z.T)
        r = y[i, :n] - X @ fit.beta
        normal = torch.distributions.MultivariateNormal(torch.zeros(n, dtype=torch.float64), V)
        loglik += float(normal.log_prob(r))
        b = fit.sigma2 * L @ L.T @ Z.T @ torch.linalg.solve(V, r)
        np.testing.assert_allclose(L @ u[i], b, atol=1e-10)
    assert -0.5 * float(fit.deviance) == pytest.approx(loglik, abs=1e-8)


def test_blocks_hold_every_row_once_with_little_padding():
    lengths = np.array([3, 0, 50, 49, 1, 20] * 40)
    codes = np.repeat(np.arange(len(lengths)), lengths)
    y = np.arange(len(codes), dtype=float)
    blocks = build_blocks(y[:, None], y, codes, len(lengths))
    np.testing.assert_array_equal(to_rows(blocks, [b.y for b in blocks]), y)
    np.testing.assert_array_equal(to_rows(blocks, [b.persons[:, None].expand(b.y.shape) for b in blocks]), codes)
    cells = sum(b.mask.numel() for b in blocks)
    assert cells < 1.6 * len(codes)
    assert split_lengths(np.array([100, 100, 100]), 200) == [0, 2, 3]
