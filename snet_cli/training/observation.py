"""Outputs that are only part of the state: y = C x, from `observe` and `hidden_states`, and a first guess of the rest.

The guess, which training then improves: where C determines a state it has the value of the series of step 0
(least squares, ``C⁺ y``). Along every direction that C does not see lies a derivative of the measured series, scaled to
the size of the outputs: first ẏ of output 1, 2, ..., then ÿ, and so on, because the derivatives of the outputs are
coordinates of the state of an observable system (Takens 1981). A velocity named in `second_order` is the derivative of
its position.
"""

from __future__ import annotations

import difflib

import numpy as np
from numpy.typing import NDArray

from snet_cli.errors import UsageError
from snet_cli.spectral.fitting import shared_derivative
from snet_cli.spectral.mesh import Mesh
from snet_cli.training.alpha_options import Observe
from snet_cli.training.state_layout import StateLayout, lay_out_states

FloatArray = NDArray[np.float64]

SAME_DIRECTION = 1e-9
"""Singular values below this share of the largest see nothing."""


def lay_out_observed(
    outputs: tuple[str, ...],
    structured: tuple[str, ...] | None,
    second_order: dict[str, str],
    observe: Observe | None = None,
    hidden_states: int = 0,
) -> StateLayout:
    """States of a model, and the matrix through which the data sees them.

    Parameters
    ----------
    outputs : tuple of str
        Measured channels.
    structured : tuple of str or None
        The states that a structured model insists on.
    second_order : dict
        Pairs q: v of a generic model.
    observe : dict or matrix, optional
        {output: state} renames: the output measures that state. A matrix (d x n) makes x1 … xn the states of a generic
        model. Unset: every output is a state.
    hidden_states : int
        Further states h1, h2, ... of a generic model that no output sees.

    Raises
    ------
    UsageError
        If a name does not exist, the matrix has the wrong shape or is not finite, or an output observes no state.
    """
    if isinstance(observe, list):
        return _by_matrix(outputs, structured, observe, hidden_states)
    if observe is None and not hidden_states:
        return lay_out_states(outputs, structured, second_order)
    if structured is not None and hidden_states:
        raise UsageError(
            f"model.hidden_states: this model's states are {', '.join(structured)}; it has no room for others.",
            "Choose --model mlp, or leave hidden_states out.",
        )
    return _by_name(outputs, structured, second_order, observe or {}, hidden_states)


def _by_name(
    outputs: tuple[str, ...],
    structured: tuple[str, ...] | None,
    second_order: dict[str, str],
    observe: dict[str, str],
    hidden_states: int,
) -> StateLayout:
    for output in observe:
        if output not in outputs:
            raise UsageError(f"observe names the output '{output}', which the data has not.", _nearest(output, outputs))
    seen = tuple(observe.get(output, output) for output in outputs)
    if structured is not None:
        for output, state in zip(outputs, seen, strict=True):
            if state not in structured:
                raise UsageError(
                    f"the output '{output}' observes no state of the model ({', '.join(structured)}).",
                    f"Say which: observe: {{{output}: STATE}}.",
                )
    unmeasured = [v for v in second_order.values() if v not in seen]
    hidden = [f"h{k + 1}" for k in range(hidden_states)]
    states = structured or tuple(dict.fromkeys((*seen, *unmeasured, *hidden)))
    observation = np.zeros((len(outputs), len(states)))
    for row, name in enumerate(seen):
        observation[row, states.index(name)] = 1.0
    derived = tuple(
        (states.index(v), states.index(q)) for q, v in second_order.items() if v in unmeasured and q in states
    )
    return StateLayout(states, outputs, observation, derived)


def _by_matrix(
    outputs: tuple[str, ...], structured: tuple[str, ...] | None, rows: list[list[float]], hidden_states: int
) -> StateLayout:
    widths = {len(row) for row in rows}
    n = len(structured) if structured is not None else max(widths, default=0)
    shape = f"{len(rows)} x {'/'.join(str(width) for width in sorted(widths)) or '0'}"
    if len(rows) != len(outputs) or widths != {n} or n == 0:
        raise UsageError(
            f"observe is a {shape} matrix; expected one row for each of the {len(outputs)} outputs "
            f"({', '.join(outputs)}) and one column for each state" + (f" ({n})." if structured else "."),
            "Write observe: [[...], ...] with y = C x.",
        )
    C = np.array(rows, np.float64)
    if not np.isfinite(C).all():
        raise UsageError("observe holds a number that is not finite.", "Write observe: [[...], ...] with y = C x.")
    blind = np.flatnonzero(~(C != 0).any(1))
    if blind.size:
        raise UsageError(
            f"the output '{outputs[blind[0]]}' observes no state: row {blind[0] + 1} of observe is zero.",
            "Leave that output out, or give its row an entry.",
        )
    names = structured or tuple(f"x{k + 1}" for k in range(n))
    hidden = tuple(f"h{k + 1}" for k in range(hidden_states))
    return StateLayout((*names, *hidden), outputs, np.pad(C, ((0, 0), (0, len(hidden)))), ())


def _nearest(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"Did you mean '{near[0]}'?" if near else f"The outputs are {', '.join(known)}."


def all_measured(layout: StateLayout) -> bool:
    """Whether the outputs determine every state."""
    return int(np.linalg.matrix_rank(layout.observation)) == len(layout.states)


def hidden_names(layout: StateLayout) -> tuple[str, ...]:
    """The states that no output sees at all."""
    return tuple(name for name, column in zip(layout.states, layout.observation.T, strict=True) if not column.any())


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
    C = layout.observation
    nodes: FloatArray = series @ np.linalg.pinv(C).T
    _, singular, rows = np.linalg.svd(C)
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
