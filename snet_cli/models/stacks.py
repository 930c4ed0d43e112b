"""Weighted squares of an f that is linear in the outputs of small networks, and their derivatives by θ alone.

With x fixed, the models here are f = r + K o(z; θ): z, K and r are numbers, and the loss of a θ-step is

    R = Σ_s |e_s|²,   e_s = b_s + Σ_terms V_s o(z_s; θ),   V = √w s K,   b = √w s (r - ẋ).

Reverse mode by hand (∂R/∂o = 2 Vᵀ e, then as in `jacobian`) does what automatic differentiation does, but

- features stand in rows and points in columns, in which layout the thin matrix products take half the time;
- points come in chunks that stay in the cache, through the network and back, in memory that is kept: arrays of all
  points are fetched anew from the system in every iteration, which takes longer than computing what stands in them;
- a row of ones below z and below every hidden layer makes the bias a column of the weights;
- the derivative by z is not computed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from snet_cli.models.elementwise import by_hand

CHUNK_BYTES = 3_000_000
"""Intermediates of one chunk on a processor, for each thread. They stay in a cache of the second or third level; below
1 MB the hundred or so operators of a chunk cost more to call than that gains (vehicle, 1500 points: 2.1 ms in eight
chunks, 1.0 ms in one)."""

DEVICE_CHUNK_BYTES = 400_000_000
"""The same on an accelerator, where a chunk must be large enough to occupy it."""

ALIGNMENT = 16
"""Chunks are a multiple of this many points, so that every chunk begins on a cache line: products of arrays that are
aligned otherwise have other last digits."""


class StackTerm(NamedTuple):
    """A network whose outputs enter some rows of f linearly: row ``rows[i]`` gets Σ_k gain[:, i, k] o[:, i g + k].

    Attributes
    ----------
    stack : nn.Sequential
        As `base.layers` makes them, with k_0 inputs and r g outputs.
    z : Tensor, shape (S, k_0)
    gain : Tensor, shape (S, r, g)
    rows : slice or Tensor of int, length r
    """

    stack: nn.Sequential
    z: Tensor
    gain: Tensor
    rows: slice | Tensor


class StackForm(NamedTuple):
    """f at S points as known rates and terms that are linear in networks.

    Attributes
    ----------
    known : Tensor, shape (S, n)
        r. Where agents share a network, every agent at every point is a point.
    terms : tuple of StackTerm
    """

    known: Tensor
    terms: tuple[StackTerm, ...]


class StackSquares:
    """R = Σ w |f - ẋ|² as a function of the parameters of the stacks.

    Parameters
    ----------
    form : StackForm
    target : Tensor, shape (Q, n) with as many entries as `form.known`
        ẋ.
    factor : Tensor, shape of `target`
        Weight of every square, not negative.
    """

    def __init__(self, form: StackForm, target: Tensor, factor: Tensor) -> None:
        root = factor.sqrt().reshape(form.known.shape)
        offset = root * (form.known - target.reshape(form.known.shape))
        width = sum(_Chain.entries_per_point(term.stack) for term in form.terms)
        count, size = _chunks(len(offset), width * form.terms[0].z.element_size(), offset.device)
        self._offset = _in_columns(offset, count, size)  # (chunks, n, c)
        self._defect = torch.empty_like(self._offset[0])
        like = form.terms[0].z
        scratch = _Scratch(like.new_empty(2, size * max(_widest(term.stack) for term in form.terms)))
        self._terms = [_Term(term, root, count, size, scratch) for term in form.terms]
        self._stacks = [term.stack for term in form.terms]

    def __call__(self) -> Tensor:
        """R, a scalar that can be differentiated once with respect to the parameters."""
        parameters = [p for stack in self._stacks for p in stack.parameters()]
        if not (torch.is_grad_enabled() and any(p.requires_grad for p in parameters)):
            return self.evaluate(with_gradient=False)[0]
        value: Tensor = _Squares.apply(self, *parameters)  # type: ignore[no-untyped-call]
        return value

    @torch.no_grad()
    def evaluate(self, *, with_gradient: bool) -> tuple[Tensor, list[Tensor]]:
        """R, and half its gradient by each parameter."""
        for term in self._terms:
            term.chain.take_weights()
        total = self._defect.new_zeros(())
        for k, offset in enumerate(self._offset):
            self._defect.copy_(offset)
            for term in self._terms:
                term.add_to(self._defect, k)
            flat = self._defect.flatten()
            total += flat.dot(flat)
            if with_gradient:
                for term in self._terms:
                    term.pull_back(self._defect, k)
        return total, [g for term in self._terms for g in term.chain.gradients()] if with_gradient else []


class _Squares(torch.autograd.Function):
    """R with the gradient that was formed chunk by chunk on the way."""

    @staticmethod
    def forward(ctx: Any, squares: StackSquares, *parameters: Tensor) -> Tensor:
        value, halves = squares.evaluate(with_gradient=True)
        ctx.save_for_backward(*halves)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        twice = 2.0 * gradient
        return None, *(
            half * twice.to(half.dtype) if needed else None
            for half, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)
        )


class _Scratch(NamedTuple):
    """Memory for what comes back through a layer: one part is read while the other is written.

    Attributes
    ----------
    memory : Tensor, shape (2, entries)
    """

    memory: Tensor

    def rows(self, part: int, count: int, size: int) -> Tensor:
        """A part of it as (count, size)."""
        return self.memory[part, : count * size].view(count, size)


class _Term:
    """A `StackTerm` in columns, with √w in its gain."""

    def __init__(self, term: StackTerm, root: Tensor, count: int, size: int, scratch: _Scratch) -> None:
        self.rows = term.rows
        gain = root[:, term.rows, None] * term.gain
        self.shape = (*gain.shape[1:], size)  # (r, g, c)
        self.gain = _in_columns(gain.flatten(1), count, size)  # (chunks, r g, c)
        self.z = _in_columns(term.z, count, size, ones=True, repeat_last=True)  # (chunks, k_0 + 1, c)
        self.chain = _Chain(term.stack, size, scratch)
        self.product = torch.empty_like(self.gain[0])

    def add_to(self, defect: Tensor, k: int) -> None:
        """Add V o to the defect of chunk k."""
        torch.mul(self.gain[k], self.chain.forward(self.z[k]), out=self.product)
        grouped = self.product.view(self.shape)
        defect[self.rows] += grouped[:, 0] if self.shape[1] == 1 else grouped.sum(1)

    def pull_back(self, defect: Tensor, k: int) -> None:
        """Add what Vᵀ e of chunk k gives to the gradient of the network."""
        torch.mul(self.gain[k].view(self.shape), defect[self.rows][:, None], out=self.product.view(self.shape))
        self.chain.backward(self.product, self.z[k])


class _Chain:
    """A stack through which one chunk after the other passes forward and back, always through the same memory."""

    def __init__(self, stack: nn.Sequential, size: int, scratch: _Scratch) -> None:
        like = scratch.memory
        self.linear = [layer for layer in stack if isinstance(layer, nn.Linear)]
        self.between = [by_hand(layer) for layer in stack if not isinstance(layer, nn.Linear)]
        hidden = [layer.out_features for layer in self.linear[:-1]]
        self.values = [like.new_ones(h + 1, size) for h in hidden]
        self.arguments = [
            torch.empty_like(value[:-1]) if rule.keeps_argument else value[:-1]
            for rule, value in zip(self.between, self.values, strict=True)
        ]
        self.backs = [scratch.rows(k % 2, h, size) for k, h in enumerate(hidden)]
        self.output = like.new_empty(self.linear[-1].out_features, size)
        self.weights: list[Tensor] = []
        self.sums: list[Tensor] = []

    @staticmethod
    def entries_per_point(stack: nn.Sequential) -> int:
        """Numbers that one point has in memory at once."""
        linear = [layer for layer in stack if isinstance(layer, nn.Linear)]
        hidden = sum(layer.out_features for layer in linear[:-1])
        return 2 * hidden + linear[0].in_features + 3 * linear[-1].out_features

    def take_weights(self) -> None:
        """[W b] of every layer as the parameters are now; the gradient starts from zero."""
        self.weights = [
            torch.cat([layer.weight, layer.weight.new_zeros(layer.out_features, 1)], 1)
            if layer.bias is None
            else torch.cat([layer.weight, layer.bias[:, None]], 1)
            for layer in self.linear
        ]
        self.scaled = [w * rule.prescale for w, rule in zip(self.weights, self.between, strict=False)]
        self.sums = [torch.zeros_like(w) for w in self.weights]

    def forward(self, z: Tensor) -> Tensor:
        """Outputs (k_L, c) for inputs with a row of ones (k_0 + 1, c)."""
        for weight, rule, argument, value in zip(self.scaled, self.between, self.arguments, self.values, strict=True):
            torch.mm(weight, z, out=argument)
            rule.value(argument, value[:-1])
            z = value
        return torch.mm(self.weights[-1], z, out=self.output)

    def backward(self, rows: Tensor, z: Tensor) -> None:
        """Add the gradient of Σ rows ⊙ outputs, after a `forward` of the same inputs."""
        rows = rows.to(self.output.dtype)
        for k in range(len(self.between), 0, -1):
            value, back = self.values[k - 1], self.backs[k - 1]
            self.sums[k].addmm_(rows, value.T)
            torch.mm(self.weights[k][:, :-1].T, rows, out=back)
            self.between[k - 1].pull_back(back, self.arguments[k - 1], value[:-1], back)
            rows = back
        self.sums[0].addmm_(rows, z.T)

    def gradients(self) -> list[Tensor]:
        """The gradient by each parameter, in the order of the stack's parameters."""
        found = []
        for layer, total in zip(self.linear, self.sums, strict=True):
            found.append(total[:, :-1].contiguous())
            if layer.bias is not None:
                found.append(total[:, -1].contiguous())
        return found


def _widest(stack: nn.Sequential) -> int:
    """Units of the widest layer."""
    return max(layer.out_features for layer in stack if isinstance(layer, nn.Linear))


def _chunks(points: int, bytes_per_point: int, device: torch.device) -> tuple[int, int]:
    """Number and size of equal chunks; the last is filled up."""
    room = CHUNK_BYTES * torch.get_num_threads() if device.type == "cpu" else DEVICE_CHUNK_BYTES
    count = max(1, -(-points * bytes_per_point // room))
    size = -(-points // (count * ALIGNMENT)) * ALIGNMENT
    return max(1, -(-points // max(size, 1))), max(size, ALIGNMENT)


def _in_columns(array: Tensor, count: int, size: int, *, ones: bool = False, repeat_last: bool = False) -> Tensor:
    """(S, k) as (count, k, size), filled up with zeros or copies of the last point, with a row of ones where asked."""
    points, k = array.shape
    columns = array.new_empty(count, k + ones, size)
    whole = points // size
    columns[:whole, :k] = array[: whole * size].reshape(whole, size, k).mT
    if whole < count:
        last, end = columns[whole, :k], points - whole * size
        last[:, :end] = array[whole * size :].T
        last[:, end:] = array[-1:].T if repeat_last else 0.0
    if ones:
        columns[:, k] = 1.0
    return columns
