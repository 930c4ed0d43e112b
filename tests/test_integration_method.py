"""The tableau and what order it has, on a problem with a closed form."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from snet_cli.integration.dopri5 import DORMAND_PRINCE, Tableau


def one_step(h):
    """One step of y' = y cos t, y(0) = 1, whose solution is exp(sin t); the step's value and its dense output."""
    k = np.zeros(7)
    for i, c in enumerate(DORMAND_PRINCE.nodes):
        k[i] = (1.0 + h * DORMAND_PRINCE.stages[i] @ k) * np.cos(c * h)
    theta = np.linspace(0, 1, 21)[:, None]
    dense = 1.0 + h * (theta ** np.arange(1, 5)) @ DORMAND_PRINCE.dense.T @ k
    return dense, np.exp(np.sin(theta[:, 0] * h)), h * DORMAND_PRINCE.error @ k


def slope(errors, steps):
    return np.polyfit(np.log(steps), np.log(errors), 1)[0]


def test_local_errors_have_the_orders_of_the_pair():
    steps = np.array([0.4, 0.3, 0.2, 0.15])
    results = [one_step(h) for h in steps]
    assert slope([abs(d[-1] - e[-1]) for d, e, _ in results], steps) > 5.7  # order 5: local error h^6
    assert 4.6 < slope([abs(d - e).max() for d, e, _ in results], steps) < 6.5  # order 4: local error h^5
    assert 4.6 < slope([abs(error) for *_, error in results], steps) < 6.5


def test_dense_output_is_continuous_with_its_derivative():
    theta_powers = np.arange(1, 5)
    start, end = DORMAND_PRINCE.dense[:, 0], (DORMAND_PRINCE.dense * theta_powers).sum(1)
    np.testing.assert_allclose(start, np.eye(7)[0], atol=1e-13)
    np.testing.assert_allclose(end, np.eye(7)[6], atol=1e-12)


@pytest.mark.parametrize(
    ("field", "index", "message"),
    [
        ("stages", (3, 1), "does not sum"),
        ("stages", (1, 3), "not explicit"),
        ("nodes", (6,), "does not sum"),
        ("error", (3,), "embedded misses"),
        ("dense", (2, 1), "does not end"),
    ],
)
def test_a_mistyped_coefficient_is_found(field, index, message):
    array = getattr(DORMAND_PRINCE, field).copy()
    array[index] += 1e-6
    with pytest.raises(ValueError, match=message):
        replace(DORMAND_PRINCE, **{field: array})


def test_weights_of_a_wrong_order_are_found():
    stages = DORMAND_PRINCE.stages.copy()
    stages[-1, :2] += [1e-6, -1e-6]
    dense = DORMAND_PRINCE.dense.copy()
    dense[:2, 0] += [1e-6, -1e-6]
    with pytest.raises(ValueError, match="method misses the conditions of order 5"):
        Tableau(5, DORMAND_PRINCE.nodes, stages, DORMAND_PRINCE.error, dense)


def test_tables_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        DORMAND_PRINCE.stages[0, 0] = 1.0
    assert torch.tensor(DORMAND_PRINCE.stages).shape == (7, 7)
