"""A generic network on normalised states and inputs, with what a user knows built in.

Known are: which states are angles (the network sees sine and cosine), which channels it must not see, and which pairs
obey q' = v (that row is given, not learned). Inputs may act through a first-order lag s' = (u - s) / τ: then s is a
state, the network sees it instead of u, and of that row τ alone is learned. Normalisation lives in buffers fitted to
step 0: inputs have mean 0 and standard deviation 1, outputs are in units of the root mean square of ẋ.
"""

from __future__ import annotations

import difflib
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from snet_cli.errors import UsageError
from snet_cli.models.base import Model, NodeData, Rates, StateSpace, last_layers, layers
from snet_cli.models.jacobian import PointJacobians, StackPass
from snet_cli.models.options import MlpOptions, ModelOptions
from snet_cli.models.stacks import StackForm, StackTerm
from snet_cli.models.theta_blocks import ThetaBlock, ThetaJacobian


class Mlp(Model):
    """ẋ_i = rms(ẋ_i) · network(z)_i for the learned rows, q' = v for the given ones."""

    def __init__(self, options: MlpOptions, space: StateSpace, generator: torch.Generator, dtype: torch.dtype) -> None:
        super().__init__()
        _check_names(options, space)
        channels = space.states + space.inputs
        angles, hidden_from = set(options.angles), set(options.exclude)
        self.given = {space.states.index(q): space.states.index(v) for q, v in options.second_order.items()}
        # state of each lagged input -> that input
        self.lags = {} if options.input_lag == "none" else lag_states(space)
        lagged = {space.inputs[j] for j in self.lags.values()}
        unseen = {space.states[i] for i, j in self.lags.items() if space.inputs[j] in hidden_from} | lagged
        learned = [i for i in range(len(space.states)) if i not in self.given and i not in self.lags]
        plain = [i for i, c in enumerate(channels) if c not in angles | hidden_from | unseen]
        turning = [channels.index(c) for c in options.angles if c not in hidden_from]
        self.sees_time = options.time
        self.states, self.channels = len(space.states), len(channels)
        # column of (given velocities, learned rows, lags) that each state's derivative comes from
        source = [0] * self.states
        for column, i in enumerate([*self.given, *learned, *self.lags]):
            source[i] = column
        for name, numbers in (  # on the model's device: a list would travel there with every evaluation
            ("plain", plain),
            ("angle", turning),
            ("source", source),
            ("velocity", self.given.values()),
            ("learned", learned),
            ("lagging", self.lags),
            ("lagged", self.lags.values()),
        ):
            self.register_buffer(name, torch.tensor(list(numbers), dtype=torch.long), persistent=False)
        width = len(plain) + 2 * len(turning) + int(options.time)
        for name, size, value in (
            ("input_mean", len(plain), 0.0),
            ("input_scale", len(plain), 1.0),
            ("time_scale", 1, 1.0),
            ("output_scale", len(learned), 1.0),
        ):
            self.register_buffer(name, torch.full((size,), value, dtype=torch.float64))
        self.log_lag: nn.Parameter | None = None
        if self.lags:
            # ln(τ / τ_0), so that neither the unit of time nor a prior on the weights moves τ
            count = 1 if options.input_lag == "shared" else len(self.lags)
            self.log_lag = nn.Parameter(torch.zeros(count, dtype=dtype))
            self.register_buffer("first_lag", torch.ones(1, dtype=torch.float64))
        sizes = [width, *options.hidden, len(learned)]
        self.network = layers(sizes, options.activation, generator, dtype=dtype)

    @classmethod
    def build(cls, options: ModelOptions, space: StateSpace, generator: torch.Generator, dtype: torch.dtype) -> Self:
        """A new network for the channels of the data."""
        return cls(cast(MlpOptions, options), space, generator, dtype)

    input_mean: Tensor
    input_scale: Tensor
    time_scale: Tensor
    output_scale: Tensor
    plain: Tensor
    angle: Tensor
    source: Tensor
    velocity: Tensor
    learned: Tensor
    lagging: Tensor
    lagged: Tensor
    first_lag: Tensor

    def lag_times(self) -> Tensor:
        """Τ of each lagged input, shape (number of lags,), in the unit of time."""
        assert self.log_lag is not None
        tau: Tensor = self.log_lag.exp() * self.first_lag
        return tau.expand(len(self.lags))

    def features(self, t: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        """The network's normalised input z and the velocities of the given rows."""
        channels = torch.cat([x, u], -1)
        parts = [(channels.index_select(-1, self.plain) - self.input_mean) / self.input_scale]
        if self.angle.numel():
            angle = channels.index_select(-1, self.angle)
            parts += [angle.sin(), angle.cos()]
        if self.sees_time:
            parts.append(t[..., None] / self.time_scale)
        known = (torch.cat(parts, -1), x.index_select(-1, self.velocity))
        return (*known, u.index_select(-1, self.lagged) - x.index_select(-1, self.lagging)) if self.lags else known

    def from_features(self, *features: Tensor) -> Tensor:
        """Given and learned rows, in the order of the states."""
        z, velocity = features[:2]
        weight = cast(nn.Linear, self.network[0]).weight
        learned = self.network(z.to(weight.dtype)).to(z.dtype) * self.output_scale
        return self._in_order(learned, velocity, *(behind / self.lag_times() for behind in features[2:]))

    def _in_order(self, learned: Tensor, velocity: Tensor, *lags: Tensor) -> Tensor:
        """All rows of ẋ, in the order of the states."""
        if not self.given and not lags:
            return learned
        return torch.cat([velocity, learned, *lags], -1).index_select(-1, self.source)

    @torch.no_grad()
    def frozen(self) -> Rates:
        """The same with what is linear folded into the first and the last product: a third of the operations.

        A forecast evaluates few points very often, where every operation costs the same however small it is. Of the
        normalisation only the subtraction stays: folded into the bias it would cancel digits of states far from zero.
        """
        modules = list(self.network)
        first, between, last = cast(nn.Linear, modules[0]), modules[1:-1], cast(nn.Linear, modules[-1])
        if first.weight.dtype != torch.float64:
            return super().frozen()  # units that single precision cannot hold are divided out before it is reached
        seen, plain, turns = first.weight, len(self.input_mean), len(self.input_mean) + 2 * self.angle.numel()
        parts = [seen[:, :plain] / self.input_scale, seen[:, plain:turns], seen[:, turns:] / self.time_scale]
        inward, bias, centre = torch.cat(parts, 1), first.bias, self.input_mean
        rows = last.weight * self.output_scale[:, None]
        outward = seen.new_zeros(self.states, last.in_features).index_copy(0, self.learned, rows)
        offset = seen.new_zeros(self.states).index_copy(0, self.learned, last.bias * self.output_scale)
        known = self._known_rows()
        passed = torch.nonzero(known.any(0))[:, 0]  # channels that known rows are made of: others may be anything
        outward = torch.cat([outward, known[:, passed]], 1)
        steps = [module.forward for module in between]
        # selecting all channels would cost an operation for nothing
        chosen = None if plain == self.channels else self.plain
        angle = self.angle if turns > plain else None

        def rates(t: Tensor, x: Tensor, u: Tensor) -> Tensor:
            channels = torch.cat([x, u], -1)
            z = (channels if chosen is None else channels.index_select(-1, chosen)) - centre
            if angle is not None:
                turn = channels.index_select(-1, angle)
                z = torch.cat([z, turn.sin(), turn.cos()], -1)
            if self.sees_time:
                z = torch.cat([z, t[..., None]], -1)
            h = functional.linear(z, inward, bias)
            for step in steps:
                h = step(h)
            if len(passed):
                h = torch.cat([h, channels.index_select(-1, passed)], -1)
            return functional.linear(h, outward, offset)

        return rates

    def _known_rows(self) -> Tensor:
        """The rows of ẋ that are linear in the channels, shape (n, n + m): q' = v and s' = (u - s) / τ."""
        known = self.input_mean.new_zeros(self.states, self.channels)
        known[list(self.given), self.velocity] = 1.0
        if self.lags:
            rate = 1.0 / self.lag_times()
            known[self.lagging, self.states + self.lagged] = rate
            known[self.lagging, self.lagging] = -rate
        return known

    def linear_weights(self) -> tuple[nn.Parameter, ...]:
        """The last layer."""
        return last_layers(self.network)

    def in_stacks(self, *features: Tensor) -> StackForm | None:
        """The learned rows from the network, the given ones as they are; None where time constants are learned too."""
        if self.lags:
            return None
        z, velocity = features
        known = self._in_order(z.new_zeros(len(z), len(self.learned), dtype=self.output_scale.dtype), velocity)
        gain = self.output_scale[None, :, None].expand(len(z), -1, -1)
        rows = self.learned if self.given else slice(0, self.states)
        return StackForm(known, (StackTerm(self.network, z, gain, rows),))

    def closed_form_jacobians(self, t: Tensor, x: Tensor, u: Tensor) -> PointJacobians:
        """The learned rows pass back through the network, then through what normalised its inputs."""
        z, velocity, *behind = self.features(t, x, u)
        network = StackPass(self.network, z.to(next(self.network.parameters()).dtype))
        scale, count = self.output_scale, sum(p.numel() for p in self.network.parameters())
        rates = [part / self.lag_times().detach() for part in behind]
        f = self._in_order(network.output * scale, velocity, *rates)

        by_theta = x.new_empty(len(x), len(scale), count)
        by_z = network.pull_back(torch.diag(scale).to(network.output.dtype).expand(len(x), -1, -1), by_theta)
        sines = len(self.input_mean)
        cosines = sines + self.angle.numel()
        turned = by_z[..., sines:cosines] * z[:, None, cosines : cosines + self.angle.numel()]
        turned = turned - by_z[..., cosines : cosines + self.angle.numel()] * z[:, None, sines:cosines]
        by_channel = x.new_zeros(len(x), len(scale), x.shape[1] + u.shape[1])
        by_channel.index_add_(-1, self.plain, by_z[..., :sines] / self.input_scale)
        by_channel.index_add_(-1, self.angle, turned)

        by_state = by_channel[..., : x.shape[1]]
        if not self.given and not self.lags:
            return PointJacobians(f, by_state, ThetaJacobian.full(by_theta))
        taus = 0 if self.log_lag is None else self.log_lag.numel()  # in front of the network's weights
        F, by_tau = self._known_rows().detach()[:, : self.states], x.new_zeros(len(x), len(self.lags), taus)
        F = F.repeat(len(x), 1, 1)
        F[:, self.learned] = by_state
        for number in range(len(self.lags)):
            by_tau[:, number, min(number, taus - 1)] = -rates[0][:, number]  # dτ = τ d(ln τ)
        blocks = [ThetaBlock(self.learned, slice(taus, taus + count), by_theta)]
        if self.lags:
            blocks.append(ThetaBlock(self.lagging, slice(0, taus), by_tau))
        return PointJacobians(f, F, ThetaJacobian(tuple(blocks), (*x.shape, taus + count)))

    def fit_normalization(self, data: NodeData) -> None:
        """Weighted mean and standard deviation of what the network sees; root mean square of what it predicts."""
        weight = (data.weight / data.weight.sum())[:, None]
        seen = torch.cat([data.x, data.u], -1)[:, self.plain]
        mean = (weight * seen).sum(0)
        deviation = (weight * (seen - mean) ** 2).sum(0).sqrt()
        self.input_mean.copy_(mean)
        self.input_scale.copy_(_floored(deviation, seen.abs().amax(0) if seen.numel() else deviation))
        self.time_scale.copy_(_floored(data.t.abs().amax()[None], data.t.abs().amax()[None]))
        rates = data.derivative[:, self.learned]
        rms = (weight * rates**2).sum(0).sqrt()
        self.output_scale.copy_(_floored(rms, rates.abs().amax(0) if rates.numel() else rms))


def lag_states(space: StateSpace) -> dict[int, int]:
    """The state of each lagged input by `lag_name`, in the order of the inputs: state number -> input number."""
    return {space.states.index(lag_name(name)): j for j, name in enumerate(space.inputs)}


def lag_name(name: str) -> str:
    """The state that follows an input."""
    return f"{name}_lag"


def _floored(scale: Tensor, magnitude: Tensor) -> Tensor:
    """A scale that never divides by zero: a constant channel gets its magnitude, a zero channel 1."""
    fallback = torch.where(magnitude > 0, magnitude, torch.ones_like(magnitude))
    return torch.where(scale > 1e-12 * magnitude, scale, fallback)


def _check_names(options: MlpOptions, space: StateSpace) -> None:
    """Every name in the options is a channel, and q and v of a pair differ."""
    channels = space.states + space.inputs
    wanted = [("angles", name, channels) for name in options.angles]
    wanted += [("exclude", name, channels) for name in options.exclude]
    wanted += [("second_order", name, space.states) for pair in options.second_order.items() for name in pair]
    for key, name, known in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean '{near[0]}'?" if near else ""
            raise UsageError(f"model.{key} names '{name}', which is none of {', '.join(known)}.", hint)
    for q, v in options.second_order.items():
        if q == v:
            raise UsageError(f"model.second_order: '{q}' cannot be its own velocity.", "Write {position: velocity}.")
