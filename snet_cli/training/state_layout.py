"""Which states there are, and which of them the data measures: y = C x, from `observe` and `hidden_states`.

Measured channels are states; a velocity v of `second_order` that no channel measures is a hidden state behind them, and
so are h1, h2, ... of `hidden_states`. A structured model brings its own states, measured or not.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snet_cli.errors import UsageError
from snet_cli.training.alpha_options import Observe


class StateLayout(NamedTuple):
    """States x, outputs y and the matrix between them.

    Attributes
    ----------
    states : tuple of str
        n names.
    outputs : tuple of str
        d names, in the order of the data.
    observation : ndarray, shape (d, n)
        C of y = C x.
    derived : tuple of (int, int)
        Pairs (v, q) of states where v is hidden and starts as the derivative of step 0's q.
    lags : tuple of (int, int)
        Pairs (s, j) where state s is hidden and follows input j; s(t0) is u(t0).
    """

    states: tuple[str, ...]
    outputs: tuple[str, ...]
    observation: NDArray[np.float64]
    derived: tuple[tuple[int, int], ...]
    lags: tuple[tuple[int, int], ...] = ()

    @property
    def measured(self) -> NDArray[np.int64]:
        """For each state the output that measures it directly, or -1; shape (n,)."""
        direct = (self.observation != 0).sum(1, keepdims=True) == 1
        hit = (self.observation == 1) & direct
        return np.where(hit.any(0), hit.argmax(0), -1)

    @property
    def direct(self) -> bool:
        """Whether every output is a state of its own, as it is."""
        targets = self.observation.argmax(1)
        return bool((self.measured[targets] == np.arange(len(self.outputs))).all())

    @property
    def hidden(self) -> tuple[str, ...]:
        """The states that no output sees at all."""
        return tuple(self.states[i] for i in np.flatnonzero(~(self.observation != 0).any(0)))

    @property
    def all_measured(self) -> bool:
        """Whether the outputs determine every state."""
        return int(np.linalg.matrix_rank(unit_rows(self.observation))) == len(self.states)


def unit_rows(observation: NDArray[np.float64]) -> NDArray[np.float64]:
    """C with rows of length 1: which directions it sees does not depend on the outputs' units."""
    size = np.sqrt((observation**2).sum(1, keepdims=True))
    rows: NDArray[np.float64] = observation / np.where(size > 0, size, 1.0)
    return rows


def lay_out_states(
    outputs: tuple[str, ...],
    structured: tuple[str, ...] | None,
    second_order: Mapping[str, str],
    observe: Observe | None = None,
    hidden_states: int = 0,
    lagged: tuple[str, ...] = (),
) -> StateLayout:
    """States of a model, and the matrix through which the data sees them.

    Parameters
    ----------
    outputs : tuple of str
        Measured channels.
    structured : tuple of str or None
        The states that a structured model insists on.
    second_order : mapping
        Pairs q: v of a generic model; v may be unmeasured.
    observe : dict or matrix, optional
        {output: state} renames: the output measures that state. A matrix (d x n) makes x1 … xn the states of a generic
        model. Unset: every output is a state.
    hidden_states : int
        Further states h1, h2, ... of a generic model that no output sees.
    lagged : tuple of str
        States that follow the inputs, in their order; empty where inputs act at once.

    Raises
    ------
    UsageError
        If a name does not exist or is taken, the matrix has the wrong shape or is not finite, or an output observes no
        state.
    """
    if isinstance(observe, list):
        C = _checked_matrix(outputs, structured, observe)
        seen = structured or tuple(f"x{k + 1}" for k in range(C.shape[1]))
    else:
        C, seen = None, observed_names(outputs, observe)
        if structured is not None:
            _require_states(outputs, seen, structured)
    hidden = (*(f"h{k + 1}" for k in range(hidden_states)), *lagged)
    taken = [name for name in hidden if name in seen]
    if taken:
        key = "input_lag" if taken[0] in lagged else "hidden_states"
        raise UsageError(
            f"model.{key}: '{taken[0]}' is the name of a hidden state and of a measured one.",
            f"Give the channel another name on import (a={taken[0]}).",
        )
    unmeasured = tuple(v for v in second_order.values() if v not in seen)
    states = structured or tuple(dict.fromkeys((*seen, *unmeasured, *hidden)))
    observation = np.zeros((len(outputs), len(states)))
    if C is None:
        observation[np.arange(len(outputs)), [states.index(name) for name in seen]] = 1.0
    else:
        observation[:, : C.shape[1]] = C
    derived = tuple(
        (states.index(v), states.index(q)) for q, v in second_order.items() if v in unmeasured and q in states
    )
    lags = tuple((states.index(name), j) for j, name in enumerate(lagged))
    return StateLayout(states, outputs, observation, derived, lags)


def observed_names(outputs: tuple[str, ...], observe: Observe | None) -> tuple[str, ...]:
    """The state that each output measures by name; with a matrix, the outputs' own names.

    Raises
    ------
    UsageError
        If `observe` names an output that the data has not.
    """
    if not isinstance(observe, dict):
        return outputs
    for output in observe:
        if output not in outputs:
            raise UsageError(
                f"observe names the output '{output}', which the data has not.",
                _nearest(output, outputs) or f"The outputs are {', '.join(outputs)}.",
            )
    return tuple(observe.get(output, output) for output in outputs)


def _require_states(outputs: tuple[str, ...], seen: tuple[str, ...], structured: tuple[str, ...]) -> None:
    """Every output measures a state of the structured model."""
    for output, state in zip(outputs, seen, strict=True):
        if state not in structured:
            raise UsageError(
                f"the output '{output}' observes no state of the model ({', '.join(structured)}).",
                f"{_nearest(state, structured)} Say observe: {{{output}: STATE}}, or choose --model mlp.".lstrip(),
            )


def _checked_matrix(
    outputs: tuple[str, ...], structured: tuple[str, ...] | None, rows: list[list[float]]
) -> NDArray[np.float64]:
    """C as an array, one row an output, one column a state, no row zero."""
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
    return C


def _nearest(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"Did you mean '{near[0]}'?" if near else ""
