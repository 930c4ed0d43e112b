"""Forecasts whose exact answer is known: a pendulum linearised, x' = v, v' = -x + u, and data that it made."""

from dataclasses import replace

import numpy as np
import torch

from snet_cli.data.signals import FourierInputs, Inputs, SampledInputs
from snet_cli.data.trajectories import Trajectories
from snet_cli.forecasting.rollout import Forecast, ForecastModel
from snet_cli.forecasting.windows import plan_windows


def oscillator_derivative(t, x, u):
    force = u[:, 0] if u.shape[1] else 0.0
    return torch.stack([x[:, 1], -x[:, 0] + force], -1)


def oscillator(outputs=("x", "v"), inputs=(), **changes):
    """The model; with outputs ("x",) its velocity is hidden."""
    names = ("x", "v")
    observation = np.array([[float(name == state) for state in names] for name in outputs])
    model = ForecastModel(
        derivative=oscillator_derivative,
        state_names=names,
        output_names=outputs,
        observation=observation,
        input_names=inputs,
        constant_names=(),
        constants={},
        center=np.zeros(2),
        scale=np.array([2.0, 2.0]),
        start=np.array([0.25, 0.75]),
        device=torch.device("cpu"),
    )
    return replace(model, **changes)


def exact(amplitude, phase, time):
    """The oscillator's free motion (x, v)."""
    return np.stack([amplitude * np.cos(time + phase), -amplitude * np.sin(time + phase)], -1)


def recordings(trajectories=3, samples=41, horizon=8.0, seed=0, noise=0.0, start=0.0, outputs=("x", "v"), x0=False):
    """Free motions of the oscillator, sampled evenly from `start` on."""
    rng = np.random.default_rng(seed)
    amplitude, phase = rng.uniform(0.5, 1.5, trajectories), rng.uniform(0, 6, trajectories)
    since = np.linspace(0, horizon, samples)
    truth = np.concatenate([exact(a, p, since) for a, p in zip(amplitude, phase, strict=True)])
    columns = [("x", "v").index(name) for name in outputs]
    values = truth[:, columns] + noise * rng.standard_normal((truth.shape[0], len(columns)))
    return Trajectories(
        ids=tuple(f"{i:03d}" for i in range(trajectories)),
        row_size=np.full(trajectories, samples),
        time=np.tile(start + since, trajectories),
        outputs=values,
        output_names=outputs,
        state_names=("x", "v"),
        inputs=Inputs.none(),
        units={"x": "m", "v": "m/s"},
        truth=truth,
        x0=truth[::samples] if x0 else None,
    )


def without_samples(data):
    """The same trajectories of which nothing was recorded."""
    return replace(
        data.select_rows(np.zeros(data.time.size, bool)),
        outputs=np.zeros((0, 0)),
        output_names=(),
        state_names=("x", "v"),
        truth=None,
    )


def sampled_force(trajectories, times, values, hold="zoh"):
    """The same force for each trajectory."""
    return Inputs(
        names=("force",),
        sampled=SampledInputs(
            ("force",),
            np.full(trajectories, len(times)),
            np.tile(np.asarray(times, float), trajectories),
            np.tile(np.asarray(values, float), trajectories)[:, None],
            (hold,),
        ),
    )


def fourier_force(trajectories):
    """cos(2 t) for each trajectory."""
    ones = np.ones((trajectories, 1, 1))
    return Inputs(
        names=("force",), fourier=FourierInputs(("force",), np.zeros((trajectories, 1)), 2 * ones, ones, 0 * ones)
    )


def hand_made(predicted, measured, time=None, outcome=None, init_window=None, truth=None, names=None):
    """A forecast with given numbers: arrays (W, K, d), one time grid for all windows."""
    predicted, measured = np.asarray(predicted, float), np.asarray(measured, float)
    W, K, d = predicted.shape
    names = names or ("x", "y", "z")[:d]
    time = np.arange(K, dtype=float) if time is None else np.asarray(time, float)
    data = Trajectories(
        ids=tuple(f"{i:03d}" for i in range(W)),
        row_size=np.full(W, K),
        time=np.tile(time, W),
        outputs=measured.reshape(W * K, d),
        output_names=names,
        inputs=Inputs.none(),
        units=dict.fromkeys(names, "m"),
        truth=None if truth is None else np.asarray(truth, float).reshape(W * K, d),
    )
    windows = plan_windows(data)
    N = np.zeros(W, int) if init_window is None else np.asarray(init_window)
    return Forecast(
        windows=windows,
        trajectories=replace(data, outputs=predicted.reshape(W * K, d), truth=None, x0=predicted[:, 0]),
        observed=data,
        true_outputs=data.truth,
        scored=windows.place_in_window() >= np.repeat(N, K),
        states=predicted.reshape(W * K, d),
        outcome=tuple(outcome or ["ok"] * W),
        end_time=np.full(W, time[-1]),
        start_kind=np.full((W, d), 2, np.int8),
        evaluations=1,
    )
