"""Complex-step derivatives against closed forms."""

import numpy as np

from mixmoe.numerics.linalg import derivative_along, jacobian, log_softmax, logsumexp


def test_jacobian_of_a_closed_form_is_exact_in_every_digit_that_matters():
    x = np.array([[0.3, -1.2], [2.0, 0.7]])

    def function(a):
        return np.array([np.exp(a[0, 0]) * a[1, 1], np.log(a[1, 0]), a[0, 1] ** 3])

    expected = np.array([[np.exp(0.3) * 0.7, 0.0, 0.0, np.exp(0.3)], [0.0, 0.0, 0.5, 0.0], [0.0, 3 * 1.2**2, 0.0, 0.0]])
    np.testing.assert_allclose(jacobian(function, x), expected, rtol=4e-16)


def test_rows_of_directions_in_one_call_are_the_transposed_jacobian():
    x = np.array([0.5, -0.4, 1.1])

    def rows(a):
        return np.stack([a[..., 0] * a[..., 1], np.sin(a[..., 2])], axis=-1)

    np.testing.assert_array_equal(derivative_along(rows, x, np.eye(3)).T, jacobian(rows, x))


def test_derivative_of_log_softmax_is_the_multinomial_information():
    eta = np.array([0.2, -3.0, 40.0, 1.0])
    p = np.exp(log_softmax(eta, axis=0))
    np.testing.assert_allclose(jacobian(lambda a: log_softmax(a, axis=0), eta), np.eye(4) - p, rtol=1e-13, atol=1e-30)
    np.testing.assert_allclose(log_softmax(eta, axis=0), eta - logsumexp(eta, axis=0), rtol=1e-13)


def test_log_softmax_beside_a_large_predictor_keeps_small_logarithms():
    eta = np.array([1000.0, 975.0])
    np.testing.assert_allclose(log_softmax(eta, axis=0)[0], -np.log1p(np.exp(-25.0)), rtol=1e-4)
