"""What a ground truth is: names, parameters, a start, inputs, and x' = f(t, x, u)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from snet_cli.data.signals import Inputs

if TYPE_CHECKING:  # `snet simulate --list` must not wait for torch
    from torch import Tensor

FloatArray = NDArray[np.float64]
Derivative = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]


class SystemParameters(BaseModel):
    """Parameters of a system: the keys of `snet simulate --set`, written to the file one by one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Channels(NamedTuple):
    """Names of states and inputs, and their units by name."""

    states: tuple[str, ...]
    inputs: tuple[str, ...]
    units: Mapping[str, str]


class InputDraw(NamedTuple):
    """What a system needs to draw its inputs.

    Attributes
    ----------
    generators : iterable of numpy Generator
        One per trajectory.
    period : float
        Of the fundamental of a Fourier series.
    horizon : float
        Sampled inputs must reach at least so far; what lies before must not depend on it.
    """

    generators: Iterable[np.random.Generator]
    period: float
    horizon: float


P = TypeVar("P", bound=SystemParameters)


@dataclass(frozen=True)
class System(Generic[P]):
    """A ground truth.

    Attributes
    ----------
    name, title : str
        Registry name, and one line on what it is.
    horizon : float
        Default length of a trajectory in seconds.
    samples : int
        Default number of samples.
    parameters : type of SystemParameters
    channels : callable
        Channels for given parameters.
    start : callable
        Initial state (n,) from the parameters and the trajectory's generator.
    inputs : callable
        Inputs of all trajectories.
    derivative : callable
        f(t, x, u) in torch for given parameters; shapes (N,), (N, n), (N, m) -> (N, n).
    rtol : float
        Relative tolerance of the truth; 1e-11 holds 1e-9 on smooth systems.
    """

    name: str
    title: str
    horizon: float
    samples: int
    parameters: type[P]
    channels: Callable[[P], Channels]
    start: Callable[[P, np.random.Generator], FloatArray]
    inputs: Callable[[P, InputDraw], Inputs]
    derivative: Callable[[P], Derivative]
    rtol: float = 1e-11
