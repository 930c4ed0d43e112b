"""Several starts for hidden states: what their trajectories may look like at first, and which start is kept.

With hidden states the relaxed problem has many minima, most of which are unstable or wrong as a forecast, and neither R
nor J tells them apart; only a rollout does. So short trainings begin from several guesses of the hidden trajectories,
and the one whose training rollout is best goes on.

The guesses: derivatives of the outputs (Takens 1981), which carry the outputs' noise, and lags of the inputs,
``T s' = u - s`` at rest at u(t0), which carry none, for several time constants T. With more hidden states than inputs
the lags are chained, as the levels of tanks in a row are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_banded

from snet_cli.spectral.mesh import Mesh
from snet_cli.training.state_layout import StateLayout

FloatArray = NDArray[np.float64]
Trained = TypeVar("Trained")

TIME_CONSTANTS = (1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256)
"""Of the lags, relative to the longest trajectory: slower is hardly excited, faster is the input itself."""


DERIVATIVES = "derivatives of the outputs"
"""Name of the first start, which always exists."""


class Start(NamedTuple):
    """Node values (N, P, n) that a training may begin with, and what they are in words."""

    name: str
    nodes: FloatArray


class Tried(NamedTuple):
    """A start by its name, and the root mean square error of its training rollout; infinite for an unstable one."""

    name: str
    error: float


class Choice(NamedTuple, Generic[Trained]):
    """The training whose rollout was best, and everything that was tried.

    Attributes
    ----------
    best : object
        What `train` returned; the first that was tried where every rollout was unstable.
    error : float
        Its error; infinity where every rollout was unstable.
    tried : tuple of Tried
    """

    best: Trained
    error: float
    tried: tuple[Tried, ...]

    @property
    def name(self) -> str:
        """The start that was kept."""
        return min(self.tried, key=lambda one: one.error).name


def choose_start(
    starts: Iterable[tuple[str, Callable[[], Trained]]],
    score: Callable[[Trained], float],
    out_of_time: Callable[[], bool] = lambda: False,
) -> Choice[Trained]:
    """Train briefly from every start and keep the one with the best training rollout.

    Parameters
    ----------
    starts : iterable of (str, callable)
        A name, and a short training from there; at least one. They are called in turn, so that one may go on where the
        last one ended.
    score : callable
        Error of the training rollout, not finite where it is unstable.
    out_of_time : callable
        Asked before every start but the first.
    """
    best: Trained | None = None
    least = math.inf
    tried: list[Tried] = []
    for name, train in starts:
        if tried and out_of_time():
            break
        trained = train()
        error = score(trained)
        error = error if math.isfinite(error) else math.inf
        tried.append(Tried(name, error))
        if best is None or error < least:
            best, least = trained, error
    assert best is not None
    return Choice(best, least, tuple(tried))


def free_states(layout: StateLayout) -> list[int]:
    """Hidden states that nothing but training determines: not velocities of `second_order`, not lagged inputs."""
    derived = {v for v, _ in layout.derived} | {s for s, _ in layout.lags}
    return [i for i, name in enumerate(layout.states) if name in layout.hidden and i not in derived]


def hidden_starts(mesh: Mesh, derivatives: FloatArray, layout: StateLayout, inputs: FloatArray) -> list[Start]:
    """Guesses of the hidden states, each of the size of the first output; the other states are left as they are.

    Parameters
    ----------
    derivatives : ndarray, shape (N, P, n)
        Node values with derivatives of the outputs for hidden states, the first start.
    inputs : ndarray, shape (N, P, m)
        u at the nodes; without inputs there is one start.
    """
    starts = [Start(DERIVATIVES, derivatives)]
    columns = free_states(layout)
    if inputs.shape[2] == 0 or not columns:
        return starts
    size = float((derivatives @ layout.observation.T)[:, :, 0].std())
    for share in TIME_CONSTANTS:
        constant = share * float(mesh.horizon.max())
        nodes = derivatives.copy()
        lagged = inputs
        for number, column in enumerate(columns):
            if number % inputs.shape[2] == 0:  # one more lag in the chain
                lagged = lag(mesh, lagged, constant)
            nodes[:, :, column] = _of_size(lagged[:, :, number % inputs.shape[2]], size)
        starts.append(Start(f"inputs lagged by {constant:.3g}", nodes))
    return starts


FIRST_LAG = 5.0
"""Time constant that lagged inputs begin with, in sampling intervals: what is much faster the samples do not show."""


def with_lagged_inputs(
    mesh: Mesh, nodes: FloatArray, layout: StateLayout, inputs: FloatArray, constants: FloatArray
) -> FloatArray:
    """Node values (N, P, n) with the states of lagged inputs as the inputs' responses.

    Parameters
    ----------
    inputs : ndarray, shape (N, P, m)
    constants : ndarray, shape (number of lags,)
        Τ of each, in the unit of time.
    """
    nodes = nodes.copy()
    for (state, j), constant in zip(layout.lags, constants, strict=True):
        nodes[:, :, state] = lag(mesh, inputs[:, :, [j]], float(constant))[:, :, 0]
    return nodes


def lag(mesh: Mesh, inputs: FloatArray, constant: float) -> FloatArray:
    """Solve ``T s' = u - s``, s(t0) = u(t0), at the nodes: collocation per element, one banded solve over boundaries.

    Parameters
    ----------
    inputs : ndarray, shape (N, P, m)
    constant : float
        T, in the unit of time.

    Returns
    -------
    ndarray, shape (N, P, m)
    """
    P = mesh.basis.order + 1
    D = mesh.basis.differentiation * (2.0 / mesh.width)[:, None, None]
    system = D[:, 1:, 1:] + np.eye(P - 1) / constant
    # s at the inner nodes and the right end is `forced + free * s(left end)`
    solved = np.linalg.solve(system, np.concatenate([inputs[:, 1:] / constant, -D[:, 1:, :1]], 2))
    forced, free = solved[:, :, :-1], solved[:, :, -1:]
    # over all boundaries of all trajectories: s_b - free_b s_{b-1} = forced_b, and s_b = u where a trajectory begins
    boundaries = mesh.boundaries.size
    right = mesh.left_boundary + 1
    bands = np.zeros((2, boundaries))
    bands[0] = 1.0
    bands[1, right - 1] = -free[:, -1, 0]
    wanted = np.zeros((boundaries, inputs.shape[2]))
    first = mesh.first_element[:-1]
    wanted[mesh.left_boundary[first]] = inputs[first, 0]
    wanted[right] = forced[:, -1]
    ends = solve_banded((1, 0), bands, wanted)
    left = ends[mesh.left_boundary][:, None, :]
    result: FloatArray = np.concatenate([left, forced + free * left], 1)
    return result


def _of_size(values: FloatArray, size: float) -> FloatArray:
    """The same with mean 0 and standard deviation `size`; zero where it does not move."""
    centred = values - values.mean()
    deviation = float(centred.std())
    moves = deviation > 1e-12 * float(np.abs(values).max(initial=0.0))
    return centred * (size / deviation) if moves else np.zeros_like(values)


__all__ = [
    "FIRST_LAG",
    "Choice",
    "Start",
    "Tried",
    "choose_start",
    "free_states",
    "hidden_starts",
    "lag",
    "with_lagged_inputs",
]
