"""What a training method is: a state machine with one `step`, driven by `loop.run`.

A method holds its model and its state; a step is one iteration and returns what it cost and reached. Methods never
look at the clock, the terminal or a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

from snet_cli.models.base import Model


class Step(NamedTuple):
    """What one iteration reached.

    Attributes
    ----------
    residual : float
        R of the current x and θ.
    misfit : float
        L; what step 0 left for δ-SNet, whose x stays where it is.
    total : float
        What the method minimises and the tolerance is compared with.
    """

    residual: float
    misfit: float
    total: float


class Method(Protocol):
    """One training method on one problem.

    Attributes
    ----------
    name : str
        Registry name.
    model : Model
        Holds θ; the best so far is whatever the loop last copied.
    evaluations : int
        Evaluations of the objective and its gradient so far.
    """

    name: str
    model: Model

    @property
    def evaluations(self) -> int:
        """Evaluations of the objective so far."""
        ...

    def step(self) -> Step:
        """Do one iteration."""
        ...

    def held_out(self) -> Tensor | None:
        """The relaxed score on held-out data, or None where there is none."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What the next step needs beside θ, tensors by name: optimiser memory, X, dampings, γ.

        All processes call it together; X is then whole on the lead.
        """
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned on the lead, on a model with the θ of that moment, bit for bit."""
        ...
