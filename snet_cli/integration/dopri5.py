"""Tableaux of explicit Runge-Kutta methods, as data that checks itself when it is built.

`DORMAND_PRINCE`: the 5(4) pair of Dormand & Prince (1980), first same as last, with the fourth-order interpolant of
Shampine (1986) as printed by Hairer, Nørsett & Wanner (1993), sec. II.6: on a step from x_0 of length h
``x(t_0 + θh) = x_0 + h Σ_i b_i(θ) k_i``, b_i a polynomial in θ without constant term, b_i(1) = b_i.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction as Q

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Tableau:
    """An explicit method whose last stage is the first of the next step (FSAL).

    Attributes
    ----------
    order : int
    nodes : ndarray, shape (s,)
        c_i.
    stages : ndarray, shape (s, s)
        a_ij, strictly lower triangular; its last row is b.
    error : ndarray, shape (s,)
        b_i minus the weights of the embedded method of order `order` - 1.
    dense : ndarray, shape (s, q)
        Coefficients of b_i(θ) for θ, θ², …, θ^q.

    Raises
    ------
    ValueError
        If row sums, FSAL, or an order condition fails: of the method to order 5, of the embedded one and of the
        interpolant (at every θ) to order 4.
    """

    order: int
    nodes: FloatArray
    stages: FloatArray
    error: FloatArray
    dense: FloatArray

    def __post_init__(self) -> None:
        for array in (self.nodes, self.stages, self.error, self.dense):
            array.setflags(write=False)
        weights = self.stages[-1]
        if np.any(np.triu(self.stages)) or not np.allclose(self.stages.sum(1), self.nodes, rtol=0.0, atol=1e-13):
            raise ValueError("tableau: not explicit, or a row of a does not sum to its c")
        if self.nodes[-1] != 1.0 or weights[-1] != 0.0:
            raise ValueError("tableau: the last stage is not the first of the next step")
        if not np.allclose(self.dense.sum(1), weights, rtol=0.0, atol=1e-12):
            raise ValueError("tableau: the interpolant does not end at the step's value")
        theta = np.linspace(0.0, 1.0, 5)[:, None]
        checks = [("method", weights, 1.0, self.order), ("embedded", weights - self.error, 1.0, self.order - 1)]
        powers = np.arange(1, self.dense.shape[1] + 1)
        checks += [("interpolant", (self.dense @ s**powers), float(s[0]), self.order - 1) for s in theta]
        for what, b, end, order in checks:
            if (defect := order_defect(self.stages, self.nodes, b, order, end)) > 1e-12:
                raise ValueError(f"tableau: {what} misses the conditions of order {order} by {defect:.1e}")


def order_defect(a: FloatArray, c: FloatArray, b: FloatArray, order: int, theta: float = 1.0) -> float:
    """Largest violation of the order conditions Σ_i b_i φ_i(tree) = θ^|tree| / γ(tree) up to order 5.

    Rooted trees as in Hairer, Nørsett & Wanner (1993), table II.2.1.
    """
    one = np.ones_like(c)
    trees: list[tuple[int, FloatArray, float]] = [
        (1, one, 1),
        (2, c, 2),
        (3, c**2, 3),
        (3, a @ c, 6),
        (4, c**3, 4),
        (4, c * (a @ c), 8),
        (4, a @ c**2, 12),
        (4, a @ (a @ c), 24),
        (5, c**4, 5),
        (5, c**2 * (a @ c), 10),
        (5, c * (a @ c**2), 15),
        (5, c * (a @ (a @ c)), 30),
        (5, (a @ c) ** 2, 20),
        (5, a @ c**3, 20),
        (5, a @ (c * (a @ c)), 40),
        (5, a @ (a @ c**2), 60),
        (5, a @ (a @ (a @ c)), 120),
    ]
    defects = (abs(float(b @ phi) - theta**size / density) for size, phi, density in trees if size <= order)
    return max(defects, default=0.0)


def _rows(*rows: tuple[Q | int, ...]) -> FloatArray:
    """Lower triangle from its rows, zero elsewhere."""
    out = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        out[i, : len(row)] = [float(value) for value in row]
    return out


def _interpolant(b: FloatArray, d: FloatArray) -> FloatArray:
    """Coefficients of b_i(θ), shape (s, 4).

    Hairer's form: x(θ) = x_0 + θ (Δ + (1-θ) (h k_1 - Δ + θ (2Δ - h k_1 - h k_s + (1-θ) h Σ d_i k_i))), Δ = h Σ b_i k_i:
    cubic Hermite plus a quartic that vanishes doubly at both ends.
    """
    first, last = np.eye(b.size)[0], np.eye(b.size)[-1]
    slope, bend, quartic = first - b, 2 * b - first - last, d
    # θ b + (θ - θ²) slope + (θ² - θ³) bend + (θ² - 2θ³ + θ⁴) quartic
    return np.stack([b + slope, -slope + bend + quartic, -bend - 2 * quartic, quartic], 1)


_STAGES = _rows(
    (),
    (Q(1, 5),),
    (Q(3, 40), Q(9, 40)),
    (Q(44, 45), Q(-56, 15), Q(32, 9)),
    (Q(19372, 6561), Q(-25360, 2187), Q(64448, 6561), Q(-212, 729)),
    (Q(9017, 3168), Q(-355, 33), Q(46732, 5247), Q(49, 176), Q(-5103, 18656)),
    (Q(35, 384), 0, Q(500, 1113), Q(125, 192), Q(-2187, 6784), Q(11, 84)),
)

DORMAND_PRINCE = Tableau(
    order=5,
    nodes=np.array([0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0]),
    stages=_STAGES,
    error=np.array([71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40]),
    dense=_interpolant(
        _STAGES[-1],
        np.array(
            [
                -12715105075 / 11282082432,
                0.0,
                87487479700 / 32700410799,
                -10690763975 / 1880347072,
                701980252875 / 199316789632,
                -1453857185 / 822651844,
                69997945 / 29380423,
            ]
        ),
    ),
)
"""Dormand & Prince (1980), RK5(4)7M."""
