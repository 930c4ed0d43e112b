"""A trained model on a data set: everything that the integrator needs, gathered once.

`ForecastModel` is what a forecast knows of a model: f, names, scales; no torch module and no file. `Flow` puts it on
the inputs and constants of the trajectories of a data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snet_cli.data.constants import known_constants
from snet_cli.data.signals import Inputs
from snet_cli.data.trajectories import Trajectories
from snet_cli.errors import CheckpointError
from snet_cli.integration import InputSignal, Solution, Tolerances, integrate

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Derivative = Callable[[Tensor, Tensor, Tensor], Tensor]
Integrator = Literal["dopri5", "euler"]

EULER_POINTS = 200
"""Euler steps over the horizon where no sampling interval gives their length."""


@dataclass(frozen=True)
class ForecastModel:
    """What a forecast needs of a trained model.

    Attributes
    ----------
    derivative : callable
        f(t, x, u) in physical units and float64: (N,), (N, n), (N, m + c) -> (N, n); t since the trajectory's start.
    state_names, output_names, input_names : tuple of str
        n, d and m names.
    observation : ndarray, shape (d, n)
        C of y = C x.
    constant_names : tuple of str
        Known constants, the last c channels of u.
    constants : mapping of str to float
        Their values where the data names none.
    center, scale : ndarray, shape (n,)
        Training mean and range of each state: the bound of divergence, and the unit of `atol`.
    start : ndarray, shape (n,)
        Mean start estimated in training, where hidden states start.
    device : torch.device
    lag_inputs : mapping of int to int
        State i is the lagged input j (``input_lag``): its row of f depends on itself and u alone.
    rounding : float
        Relative rounding of f: steps cannot be held to less.
    """

    derivative: Derivative
    state_names: tuple[str, ...]
    output_names: tuple[str, ...]
    observation: FloatArray
    input_names: tuple[str, ...]
    constant_names: tuple[str, ...]
    constants: Mapping[str, float]
    center: FloatArray
    scale: FloatArray
    start: FloatArray
    device: torch.device
    lag_inputs: Mapping[int, int] | None = None
    rounding: float = 0.0

    @property
    def unit(self) -> FloatArray:
        """`scale` with 1 where a state did not move in training, shape (n,)."""
        usable = np.isfinite(self.scale) & (self.scale > 0)
        return np.where(usable, self.scale, 1.0)


def choose_inputs(inputs: Inputs, names: tuple[str, ...]) -> Inputs:
    """The named inputs, in this order.

    Raises
    ------
    CheckpointError
        If one is missing.
    """
    for name in names:
        if name not in inputs.names:
            raise CheckpointError(
                f"the model needs the input '{name}'; the data has {', '.join(inputs.names) or 'none'}.",
                "Rename it on import (--inputs a=b), or train on these inputs.",
            )
    sampled, fourier = inputs.sampled, inputs.fourier
    if sampled is not None:
        keep = [i for i, name in enumerate(sampled.names) if name in names]
        kinds = tuple(sampled.intersample[i] for i in keep)
        own = tuple(sampled.names[i] for i in keep)
        sampled = replace(sampled, names=own, values=sampled.values[:, keep], intersample=kinds) if keep else None
    if fourier is not None:
        keep = [i for i, name in enumerate(fourier.names) if name in names]
        own = tuple(fourier.names[i] for i in keep)
        fourier = (
            replace(
                fourier,
                names=own,
                mean=fourier.mean[:, keep],
                omega=fourier.omega[:, keep],
                cos=fourier.cos[:, keep],
                sin=fourier.sin[:, keep],
            )
            if keep
            else None
        )
    return Inputs(names=names, sampled=sampled, fourier=fourier, units=inputs.units)


@dataclass(frozen=True)
class Flow:
    """Trajectories of a model under the inputs and constants of a data set of B trajectories.

    Attributes
    ----------
    model : ForecastModel
    inputs : Inputs
        Those of the data that the model uses.
    signal : InputSignal
        The same with the known constants, ready for the integrator; one row per trajectory.
    clock : Tensor, shape (B,)
        Start of each trajectory: the model's time zero, also for forecasts that start later.
    tolerances : Tolerances
    integrator : {"dopri5", "euler"}
    euler_step : float
    should_stop : callable or None
    """

    model: ForecastModel
    inputs: Inputs
    signal: InputSignal
    clock: Tensor
    tolerances: Tolerances
    integrator: Integrator
    euler_step: float
    should_stop: Callable[[], bool] | None = None

    @classmethod
    def build(
        cls,
        model: ForecastModel,
        data: Trajectories,
        *,
        integrator: Integrator = "dopri5",
        tolerances: Tolerances | None = None,
        horizon: float = 1.0,
        should_stop: Callable[[], bool] | None = None,
    ) -> Flow:
        """Put a model on a data set.

        Parameters
        ----------
        model : ForecastModel
        data : Trajectories
        integrator : {"dopri5", "euler"}
            Euler steps by the median sampling interval.
        tolerances : Tolerances, optional
        horizon : float
            Gives Euler's step where there are no samples.
        should_stop : callable, optional

        Raises
        ------
        CheckpointError
            If the data lacks an input of the model.
        DataError
            If a known constant is found nowhere.
        """
        inputs = choose_inputs(data.inputs, model.input_names)
        constants = None
        if model.constant_names:
            constants = torch.as_tensor(known_constants(data, model.constant_names, model.constants))
        signal = InputSignal.from_inputs(inputs, len(data), constants, model.device)
        clock = torch.as_tensor(data.start, dtype=torch.float64, device=model.device)
        step = data.sampling_interval() or horizon / EULER_POINTS or 1.0
        return cls(model, inputs, signal, clock, tolerances or Tolerances(), integrator, step, should_stop)

    def solve(
        self,
        owner: IntArray,
        x0: FloatArray,
        t0: FloatArray,
        row_size: IntArray,
        times: FloatArray,
        derivative: Derivative | None = None,
    ) -> Solution:
        """Integrate W initial value problems, problem w on the inputs of trajectory ``owner[w]``.

        Parameters
        ----------
        owner : ndarray, shape (W,)
        x0 : ndarray, shape (W, k n)
            States; k copies of the model side by side where `derivative` is for k copies.
        t0 : ndarray, shape (W,)
        row_size : ndarray, shape (W,)
        times : ndarray, shape (obs,)
        derivative : callable, optional
            In place of the model's own.
        """
        device = self.model.device
        rows = torch.as_tensor(owner, device=device)
        copies = x0.shape[1] // len(self.model.state_names)
        return integrate(
            derivative or self.model.derivative,
            torch.as_tensor(x0, dtype=torch.float64, device=device),
            torch.as_tensor(t0, dtype=torch.float64, device=device),
            torch.as_tensor(row_size, device=device),
            torch.as_tensor(times, dtype=torch.float64, device=device),
            self.signal.select(rows),
            scale=torch.as_tensor(np.tile(self.model.unit, copies), device=device),
            center=torch.as_tensor(np.tile(self.model.center, copies), device=device),
            clock=self.clock[rows],
            tolerances=self.tolerances,
            method=self.integrator,
            euler_step=self.euler_step,
            should_stop=self.should_stop,
        )
