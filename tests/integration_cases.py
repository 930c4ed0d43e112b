"""Problems for the integrator's tests: right-hand sides, and one call with the usual arguments."""

import numpy as np
import torch

from snet_cli.data.signals import Inputs
from snet_cli.integration import InputSignal, Tolerances, integrate


def solve(f, x0, times, inputs=None, *, constants=None, rtol=1e-7, atol=1e-9, t0=None, **options):
    """Integrate from x0 (B, n) with the same times for all, or a list of B arrays; states as a list per trajectory."""
    x0 = torch.as_tensor(np.asarray(x0, float))
    B = x0.shape[0]
    lists = times if isinstance(times[0], np.ndarray) else [times] * B
    sizes = torch.tensor([len(values) for values in lists])
    signal = InputSignal.from_inputs(inputs or Inputs.none(), B, constants)
    start = torch.zeros(B, dtype=torch.float64) if t0 is None else torch.as_tensor(t0, dtype=torch.float64)
    tolerances = options.pop("tolerances", None) or Tolerances(rtol=rtol, atol=atol)
    flat = torch.as_tensor(np.concatenate([np.asarray(values, float) for values in lists]))
    solution = integrate(f, x0, start, sizes, flat, signal, tolerances=tolerances, **options)
    return solution, [part.numpy() for part in solution.states.split(sizes.tolist())]


def rotation(t, x, u):
    """x'' = -x: circles."""
    return torch.stack([x[:, 1], -x[:, 0]], 1)


def blow_up(t, x, u):
    """x' = u x², where the last channel is a constant per trajectory: x = 1 / (1/x0 - u t)."""
    return u[:, -1:] * x**2


def nan_behind_one(t, x, u):
    """x' = 1 up to x = 1, not a number behind it."""
    return torch.where(x < 1.0, 1.0, torch.nan) * torch.ones_like(x)


def sign_flip(t, x, u):
    """x' = -sign(x): from any start it arrives at 0 and chatters there for ever."""
    return -x.sign()
