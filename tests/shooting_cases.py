"""Small recordings and models that the tests of the solver baselines share."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from snet_cli.data.signals import Inputs, SampledInputs
from snet_cli.data.trajectories import Trajectories
from snet_cli.models.base import Model
from snet_cli.training.shooting import Shooting
from snet_cli.training.shooting_batches import batch_trajectories
from snet_cli.training.state_layout import lay_out_states

DECAY = 0.7


class Driven(Model):
    """ẋ = -decay x + tanh(A x) + b u, two states and one input."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.decay = nn.Parameter(torch.tensor(DECAY, dtype=dtype))
        self.A = nn.Parameter(0.5 * torch.randn(2, 2, generator=generator, dtype=torch.float64).to(dtype))
        self.b = nn.Parameter(torch.tensor([0.5, -1.0], dtype=dtype))

    def from_features(self, *features):
        _, x, u = features
        return -self.decay * x + torch.tanh(x @ self.A.T) + u[..., :1] * self.b


class Explosive(Model):
    """ẋ = θ x²: reaches infinity at t = 1 / (θ x0)."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.theta = nn.Parameter(torch.ones((), dtype=dtype))

    def from_features(self, *features):
        return self.theta * features[1] ** 2


def recording(times, outputs, names, inputs=None, x0=None):
    """Trajectories of the given times and outputs, one array each."""
    return Trajectories(
        ids=tuple(str(b) for b in range(len(times))),
        row_size=np.array([len(t) for t in times]),
        time=np.concatenate(times),
        outputs=np.concatenate(outputs),
        output_names=names,
        inputs=inputs or Inputs.none(),
        x0=x0,
    )


def held(times, values):
    """One zero-order-held input 'u' per trajectory."""
    sampled = SampledInputs(
        ("u",),
        np.array([len(t) for t in times]),
        np.concatenate(times),
        np.concatenate(values)[:, None],
        ("zoh",),
    )
    return Inputs(("u",), sampled)


def driven_data(trajectories=3, samples=13, seed=0, *, starts=0.0, unlike=False):
    """Random outputs of two states under an input that jumps every 0.37; the values need not fit any model."""
    rng = np.random.default_rng(seed)
    x0, levels = rng.normal(size=(trajectories, 2)), [rng.normal(size=10) for _ in range(trajectories)]
    times, knots = [], []
    for b in range(trajectories):
        end = 3.0 - 0.4 * b if unlike else 3.0
        inner = np.sort(rng.uniform(0.05, end - 0.05, samples - 2)) if unlike else np.linspace(0, end, samples)[1:-1]
        start = starts * (b + 1)
        times.append(start + np.concatenate([[0.0], inner, [end]]))
        knots.append(start + 0.37 * np.arange(10))
    outputs = [rng.normal(size=(samples, 2)) for _ in times]
    return recording(times, outputs, ("a", "b"), held(knots, levels), x0=x0)


def layout_of(data):
    return lay_out_states(data.output_names, None, {})


def method_on(name, model, data, *, tolerances=None, **options):
    """A baseline on all of the data."""
    layout = layout_of(data)
    batches = batch_trajectories(data, layout, data.inputs.names, model.constants, **{"scaled": False, **options})
    return Shooting(name, model, batches, layout.observation, tolerances=tolerances)


def gradient_of(method):
    """L and its gradient as one vector."""
    value = method.gradient()
    return value, torch.cat([p.grad.double().flatten() for p in method.model.parameters()])
