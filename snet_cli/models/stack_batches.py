"""The weighted squares of `stacks` for several models of one architecture at once.

Models have θ of their own, and may have points of their own, as many each. Everything stands in one more dimension than
in `stacks`, (M, rows, points), so that what is elementwise is one operation for all models and what is a product is one
batch of products. Chunks are cut as for one model, and every model's arrays begin on a cache line, so that what comes
out for one is what `StackSquares` gives for it alone, to the last bit on one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snet_cli.models.base import Model
from snet_cli.models.elementwise import Elementwise, by_hand
from snet_cli.models.stacks import StackForm, StackTerm, _Chain, _chunks, _in_columns, _widest

LINE = 16
"""Numbers to a cache line, of the smallest kind."""

FEWEST_PRODUCTS = 400
"""Below so many products to a matrix torch adds up batches of matrices by itself, in another order than the library
that multiplies single ones (`aten/src/ATen/native/LinearAlgebra.cpp`, contraction_size * res_rows * res_cols)."""


class SquaresPart(NamedTuple):
    """One model's points.

    Attributes
    ----------
    form : StackForm
    target, factor : Tensor, shapes (Q, n)
        As of `StackSquares`.
    share : Tensor, shape (Q, n), optional
        The part of `factor` that is left out of the second sum; one unless given.
    """

    form: StackForm
    target: Tensor
    factor: Tensor
    share: Tensor | None = None


class Squares(NamedTuple):
    """Σ w |f - ẋ|² of each model, the same without `share`, and the gradient of the first by θ (A, N)."""

    values: Tensor
    plain: Tensor
    gradients: Tensor


class SquaresOfMany:
    """R of M models as a function of all their θ.

    Parameters
    ----------
    model : Model
        One of them, for the order of its parameters.
    parts : sequence of SquaresPart
        Of each model.
    """

    def __init__(self, model: Model, parts: Sequence[SquaresPart]) -> None:
        stacks = [term.stack for term in parts[0].form.terms]
        places = _places(model)
        self.width = sum(p.numel() for p in model.parameters())
        like = parts[0].form.terms[0].z
        bytes_per_point = sum(_Chain.entries_per_point(stack) for stack in stacks) * like.element_size()
        points = max(len(part.form.known) for part in parts)
        count, size = _chunks(points, bytes_per_point, like.device)
        roots = [part.factor.sqrt().reshape(part.form.known.shape) for part in parts]
        offsets = [
            root * (part.form.known - part.target.reshape(root.shape)) for root, part in zip(roots, parts, strict=True)
        ]
        self._offset = _stacked([_in_columns(offset, count, size) for offset in offsets])  # (chunks, M, n, c)
        self._defect = torch.empty_like(self._offset[0])
        self._inverse = None
        if any(part.share is not None for part in parts):
            inverses = [_inverse(part).reshape(root.shape) for root, part in zip(roots, parts, strict=True)]
            self._inverse = _stacked([_in_columns(inverse, count, size) for inverse in inverses])
        scratch = like.new_empty(2, len(parts) * size * max(_widest(stack) for stack in stacks))
        self._terms = [
            _Term([part.form.terms[k] for part in parts], roots, count, size, scratch, places)
            for k in range(len(stacks))
        ]

    def keep(self, models: Sequence[int]) -> None:
        """Go on with these models alone, renumbered."""
        chosen = list(models)
        self._offset, self._defect = self._offset[:, chosen].contiguous(), self._defect[chosen]
        self._inverse = None if self._inverse is None else self._inverse[:, chosen].contiguous()
        for term in self._terms:
            term.keep(chosen)

    @torch.no_grad()
    def evaluate(self, theta: Tensor, models: Sequence[int]) -> Squares:
        """R and its gradient of the models with these numbers at θ (A, N)."""
        chosen = None if len(models) == self._offset.shape[1] else list(models)
        A = len(models)
        for term in self._terms:
            term.take_weights(theta)
        values, plain = self._defect.new_zeros(A), self._defect.new_zeros(A)
        defect = self._defect[:A]
        for k in range(len(self._offset)):
            defect.copy_(_of(self._offset[k], chosen))
            for term in self._terms:
                term.add_to(defect, k, chosen)
            flat = defect.flatten(1)
            # one by one, because a library's dot product has other last digits than a sum along a dimension
            values += torch.stack([row.dot(row) for row in flat])
            if self._inverse is not None:
                plain += torch.linalg.vecdot(flat * _of(self._inverse[k], chosen).flatten(1), flat)
            for term in self._terms:
                term.pull_back(defect, k, chosen)
        gradients = theta.new_zeros(A, self.width)
        for term in self._terms:
            term.put_gradients(gradients)
        return Squares(values, values if self._inverse is None else plain, gradients.mul_(2.0))


class _Layer:
    """One linear layer of all models: [W b] of each, and the sum that its gradient is.

    Parameters
    ----------
    layer : Linear
    places : dict
        Where parameters begin in θ, by identity.
    """

    def __init__(self, layer: nn.Linear, places: dict[int, int], models: int) -> None:
        self.shape = (layer.out_features, layer.in_features)
        self.begin = places[id(layer.weight)]
        self.bias = None if layer.bias is None else places[id(layer.bias)]
        self.weight = _aligned(layer.weight, models, *self.shape)
        self.scaled, self.sum = torch.zeros_like(self.weight), torch.zeros_like(self.weight)

    def take(self, theta: Tensor, prescale: float) -> None:
        rows, columns = self.shape
        weight = self.weight[: len(theta)]
        weight[:, :, :-1] = theta[:, self.begin : self.begin + rows * columns].view(-1, rows, columns)
        if self.bias is not None:
            weight[:, :, -1] = theta[:, self.bias : self.bias + rows]
        torch.mul(weight, prescale, out=self.scaled[: len(theta)])
        self.sum.zero_()

    def put(self, gradients: Tensor) -> None:
        rows, columns = self.shape
        found = self.sum[: len(gradients)]
        gradients[:, self.begin : self.begin + rows * columns] = found[:, :, :-1].flatten(1)
        if self.bias is not None:
            gradients[:, self.bias : self.bias + rows] = found[:, :, -1]


class _Term:
    """A `StackTerm` of all models, in columns, with √w in its gain, and the networks through which chunks pass."""

    def __init__(
        self,
        terms: Sequence[StackTerm],
        roots: Sequence[Tensor],
        count: int,
        size: int,
        scratch: Tensor,
        places: dict[int, int],
    ) -> None:
        models, first = len(terms), terms[0]
        self.rows = first.rows
        gains = [root[:, term.rows, None] * term.gain for root, term in zip(roots, terms, strict=True)]
        self.shape = (*gains[0].shape[1:], size)  # (r, g, c)
        self.gain = _stacked([_in_columns(gain.flatten(1), count, size) for gain in gains])
        self.z = _stacked([_in_columns(term.z, count, size, ones=True, repeat_last=True) for term in terms])
        linear = [layer for layer in first.stack if isinstance(layer, nn.Linear)]
        self.between = [by_hand(layer) for layer in first.stack if not isinstance(layer, nn.Linear)]
        self.layers = [_Layer(layer, places, models) for layer in linear]
        hidden = [layer.out_features for layer in linear[:-1]]
        self.values = [first.z.new_ones(models, h + 1, size) for h in hidden]
        self.arguments = [
            value[:, :-1] if not rule.keeps_argument else torch.empty_like(value[:, :-1])
            for rule, value in zip(self.between, self.values, strict=True)
        ]
        self.scratch, self.size = scratch, size
        self.output = first.z.new_empty(models, linear[-1].out_features, size)
        self.product = torch.empty_like(self.gain[0])

    def keep(self, models: list[int]) -> None:
        self.gain, self.z = self.gain[:, models].contiguous(), self.z[:, models].contiguous()

    def take_weights(self, theta: Tensor) -> None:
        """[W b] of every layer; the gradient starts from zero."""
        rules: list[Elementwise | None] = [*self.between, None]
        for layer, rule in zip(self.layers, rules, strict=True):
            layer.take(theta, 1.0 if rule is None else rule.prescale)

    def add_to(self, defect: Tensor, k: int, chosen: list[int] | None) -> None:
        """Add V o to the defects (A, n, c) of chunk k."""
        A, z = len(defect), _of(self.z[k], chosen)
        for layer, rule, argument, value in zip(self.layers, self.between, self.arguments, self.values, strict=False):
            _multiply(layer.scaled[:A], z, argument[:A])
            rule.value(argument[:A], value[:A, :-1])
            z = value[:A]
        _multiply(self.layers[-1].weight[:A], z, self.output[:A])
        product = torch.mul(_of(self.gain[k], chosen), self.output[:A], out=self.product[:A])
        grouped = product.view(A, *self.shape)
        defect[:, self.rows] += grouped[:, :, 0] if self.shape[1] == 1 else grouped.sum(2)

    def pull_back(self, defect: Tensor, k: int, chosen: list[int] | None) -> None:
        """Add what Vᵀ e of chunk k gives to the gradients, after `add_to` of the same chunk."""
        A = len(defect)
        product = self.product[:A].view(A, *self.shape)
        torch.mul(_of(self.gain[k], chosen).view(product.shape), defect[:, self.rows][:, :, None], out=product)
        rows = self.product[:A].to(self.output.dtype)
        for j in range(len(self.between), 0, -1):
            value, layer = self.values[j - 1][:A], self.layers[j]
            _add_product(rows, value.mT, layer.sum[:A])
            h = layer.shape[1]
            back = self.scratch[j % 2, : A * h * self.size].view(A, h, self.size)
            _multiply(layer.weight[:A, :, :-1].mT, rows, back)
            self.between[j - 1].pull_back(back, self.arguments[j - 1][:A], value[:, :-1], back)
            rows = back
        _add_product(rows, _of(self.z[k], chosen).mT, self.layers[0].sum[:A])

    def put_gradients(self, gradients: Tensor) -> None:
        """Half the gradients into their places in θ."""
        for layer in self.layers:
            layer.put(gradients)


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """A_m B_m of each model, with the digits of one alone."""
    if a.shape[1] * a.shape[2] * b.shape[2] >= FEWEST_PRODUCTS:
        torch.bmm(a, b, out=out)
    else:
        for m in range(len(a)):
            torch.mm(a[m], b[m], out=out[m])


def _add_product(a: Tensor, b: Tensor, total: Tensor) -> None:
    """Add A_m B_m to the total of each model, with the digits of one alone."""
    if a.shape[1] * a.shape[2] * b.shape[2] >= FEWEST_PRODUCTS:
        total.baddbmm_(a, b)
    else:
        for m in range(len(a)):
            total[m].addmm_(a[m], b[m])


def _places(model: Model) -> dict[int, int]:
    """Where each parameter begins in θ, by its identity."""
    places, begin = {}, 0
    for parameter in model.parameters():
        places[id(parameter)] = begin
        begin += parameter.numel()
    return places


def _inverse(part: SquaresPart) -> Tensor:
    return torch.ones_like(part.factor) if part.share is None else 1.0 / part.share


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """(chunks, rows, c) of each model as (chunks, M, rows, c)."""
    return torch.stack(list(parts), 1)


def _of(whole: Tensor, chosen: list[int] | None) -> Tensor:
    """The rows of these models; all of them without a copy."""
    return whole if chosen is None else whole[chosen]


def _aligned(like: Tensor, models: int, rows: int, columns: int) -> Tensor:
    """Zeros (M, rows, columns + 1), every matrix beginning on a cache line."""
    numbers = rows * (columns + 1)
    room = like.detach().new_zeros(models, -(-numbers // LINE) * LINE)
    return room[:, :numbers].view(models, rows, columns + 1)
