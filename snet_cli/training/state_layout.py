"""Which states there are, and which of them the data measures: y = C x.

Measured channels are states; a velocity v of `second_order` that no channel measures is a hidden state behind them.
A structured model brings its own states, which must all be measured for δ-SNet.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snet_cli.errors import UsageError


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
    """

    states: tuple[str, ...]
    outputs: tuple[str, ...]
    observation: NDArray[np.float64]
    derived: tuple[tuple[int, int], ...]

    @property
    def measured(self) -> NDArray[np.int64]:
        """For each state the output that measures it directly, or -1; shape (n,)."""
        direct = (self.observation != 0).sum(1, keepdims=True) == 1
        hit = (self.observation == 1) & direct
        return np.where(hit.any(0), hit.argmax(0), -1)


def lay_out_states(
    outputs: tuple[str, ...], structured: tuple[str, ...] | None, second_order: dict[str, str]
) -> StateLayout:
    """States of a model on this data.

    Parameters
    ----------
    outputs : tuple of str
        Measured channels.
    structured : tuple of str or None
        The states that a structured model insists on.
    second_order : dict
        Pairs q: v of a generic model; v may be unmeasured.

    Raises
    ------
    UsageError
        If a structured model's state is not measured, or an output observes no state.
    """
    if structured is not None:
        missing = [name for name in structured if name not in outputs]
        extra = [name for name in outputs if name not in structured]
        if missing or extra:
            problem = f"the data does not measure {', '.join(missing)}" if missing else f"no state is {extra[0]}"
            raise UsageError(
                f"the model's states are {', '.join(structured)}, and {problem}.",
                "Choose --model mlp, or rename the channels on import (a=b).",
            )
    hidden = [v for v in second_order.values() if v not in outputs]
    states = structured or (*outputs, *dict.fromkeys(hidden))
    observation = np.zeros((len(outputs), len(states)))
    for row, name in enumerate(outputs):
        observation[row, states.index(name)] = 1.0
    derived = tuple(
        (states.index(v), states.index(q)) for q, v in second_order.items() if v not in outputs and q in states
    )
    return StateLayout(states, outputs, observation, derived)
