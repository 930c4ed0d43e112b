"""A first guess of all states from the series of the outputs, where y = C x is not one state per output.

The guess, which training then improves: where C determines a state it has the value of the series of step 0
(least squares, ``C⁺ y``). Along every direction that C does not see lies a derivative of the measured series, scaled to
the size of the outputs: first ẏ of output 1, 2, ..., then ÿ, and so on, because the derivatives of the outputs are
coordinates of the state of an observable system (Takens 1981). A velocity named in `second_order` is the derivative of
its position.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from snet_cli.spectral.fitting import shared_derivative
from snet_cli.spectral.mesh import Mesh
from snet_cli.training.state_layout import StateLayout, unit_rows

FloatArray = NDArray[np.float64]

SAME_DIRECTION = 1e-9
"""Singular values below this share of the largest see nothing."""


def seen_part(layout: StateLayout) -> FloatArray:
    """C⁺, shape (n, d): states from outputs, zero along what C does not see; rows of C count alike in any unit."""
    C = layout.observation
    size = np.sqrt((C**2).sum(1))
    inverse: FloatArray = np.linalg.pinv(unit_rows(C), rcond=SAME_DIRECTION) / size
    return inverse


def guess_states(mesh: Mesh, series: FloatArray, layout: StateLayout) -> FloatArray:
    """Node values of all states from the series of the outputs (module docstring).

    Parameters
    ----------
    mesh : Mesh
    series : ndarray, shape (N, P, d)
        Step 0 of each output.

    Returns
    -------
    ndarray, shape (N, P, n)
        C x equals `series` wherever the outputs do not contradict each other.
    """
    nodes: FloatArray = series @ seen_part(layout).T
    _, singular, rows = np.linalg.svd(unit_rows(layout.observation))
    rank = int((singular > SAME_DIRECTION * singular.max(initial=0.0)).sum())
    unseen = rows[rank:]  # (n - rank, n), orthonormal: the directions that C does not see
    if unseen.size:
        # an unseen state keeps a direction of its own, so that the guess of one does not mix into another
        unseen = _axis_aligned(unseen)
        nodes = nodes + _derivatives(mesh, series, unseen.shape[0]) @ unseen
    for v, q in layout.derived:
        nodes[:, :, v] = shared_derivative(mesh, nodes[:, :, [q]])[:, :, 0]
    return nodes


def _axis_aligned(directions: FloatArray) -> FloatArray:
    """The same space spanned by unit vectors of single states first, the rest orthonormal to them."""
    inside = np.flatnonzero(np.abs((directions**2).sum(0) - 1.0) < SAME_DIRECTION)
    axes = np.eye(directions.shape[1])[inside]
    rest = directions - directions @ axes.T @ axes
    _, singular, rows = np.linalg.svd(rest, full_matrices=False)
    return np.vstack([axes, rows[singular > 0.5]])


def _derivatives(mesh: Mesh, series: FloatArray, count: int) -> FloatArray:
    """`count` derivatives of the outputs in turn, each with mean 0 and its output's deviation, shape (N, P, count)."""
    deviation = series.std((0, 1))
    parts: list[FloatArray] = []
    current = series
    while len(parts) < count:
        current = shared_derivative(mesh, current)
        for j in range(series.shape[2]):
            centred = current[:, :, j] - current[:, :, j].mean()
            size = centred.std()
            parts.append(centred * (deviation[j] / size if size > 0 else 0.0))
    return np.stack(parts[:count], -1)
