"""R on more points than belong into memory: node values stay there, all else is computed a block at a time.

R is a sum over elements, which share nothing but θ. So a process keeps x and u at its nodes, about as many numbers as
there were samples, and one evaluation runs through blocks of elements: it makes the `Problem` of a block, evaluates R
and its gradient there as always (`problem.Residual`), adds up, and goes on. Sums over blocks are exact: L-BFGS and Adam
see the full batch. What a block needs that does not depend on θ (features, weights, the arrays of `models.stacks`) is
five times the size of its nodes; blocks keep it as long as there is room, and the others make it anew in every
evaluation, which costs less than reading it from a disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from snet_cli.distributed import ALONE, Team
from snet_cli.models.base import Model, NodeData
from snet_cli.spectral.mesh import Mesh
from snet_cli.training.problem import Problem, held_out_elements
from snet_cli.training.state_layout import StateLayout

FloatArray = NDArray[np.float64]

BLOCK_POINTS = 131_072
"""Points of a block: enough that its operators cost what their numbers cost, few enough for tens of megabytes."""


@dataclass(frozen=True)
class BlockProblem:
    """Step 0 of one process's trajectories on its nodes, of which `Problem`s are made a block at a time.

    Attributes
    ----------
    layout : StateLayout
    mesh : Mesh
        Of all elements of this process.
    nodes : ndarray, shape (N, P, n)
    inputs : ndarray, shape (N, P, m)
    constants : ndarray, shape (1, c) or (B, c)
        Known constants of each trajectory; one row where all have the same.
    elements : ndarray of int, shape (M,)
        Those that count, ascending; the others are held out or lie in gaps.
    total : float
        Σ of the widths of all elements that count, over all processes.
    scale : ndarray, shape (n,)
        s.
    device : torch.device
    room : float
        Bytes that kept blocks may take.
    share : ndarray, shape (M, n), optional
        What the squared residuals of each of `elements` count, where not all count alike.
    """

    layout: StateLayout
    mesh: Mesh
    nodes: FloatArray
    inputs: FloatArray
    constants: FloatArray
    elements: NDArray[np.int64]
    total: float
    scale: FloatArray
    device: torch.device
    room: float = 0.0
    share: FloatArray | None = None

    @property
    def points(self) -> int:
        """Points of this process that count."""
        return int(self.elements.size) * (self.mesh.basis.order + 1)

    def cuts(self) -> list[slice]:
        """Ranges of `elements` of one block each; they depend on the data only."""
        step = max(1, BLOCK_POINTS // (self.mesh.basis.order + 1))
        return [slice(begin, begin + step) for begin in range(0, self.elements.size, step)]

    def parts(self) -> Iterator[Problem]:
        """One block after the other (`problem.Points`)."""
        return map(self.block, self.cuts())

    def with_share(self, share: Tensor) -> BlockProblem:
        """The same with squared residuals that count for so much, shape (M, n), by element and state."""
        return replace(self, share=share.cpu().numpy(), room=0.0)  # the plain blocks have the room

    def block(self, cut: slice) -> Problem:
        """The problem on some of the elements, in the weights that they have in the whole."""
        mesh, e = self.mesh, self.elements[cut]
        owner = mesh.trajectory[e]
        at = mesh.left_boundary_of(e)
        left, width = mesh.boundaries[at], mesh.boundaries[at + 1] - mesh.boundaries[at]
        nodes = self.nodes[e]
        half = 0.5 * width[:, None]
        t = (left - mesh.start_of(owner))[:, None] + half * (mesh.basis.nodes + 1.0)
        slope = np.matmul(mesh.basis.differentiation, nodes) * (2.0 / width)[:, None, None]
        known = np.broadcast_to(
            (self.constants if len(self.constants) == 1 else self.constants[owner])[:, None, :],
            (*nodes.shape[:2], self.constants.shape[1]),
        )
        u = np.concatenate([self.inputs[e], known], axis=2)
        weight = half / self.total * mesh.basis.weights

        def flat(array: FloatArray) -> Tensor:
            values = np.ascontiguousarray(array.reshape(t.size, *array.shape[2:]))
            return torch.from_numpy(values).to(self.device)

        arrays = (flat(t), flat(nodes), flat(slope), flat(u), flat(weight))
        scale = torch.from_numpy(self.scale).to(self.device)
        share = None if self.share is None else flat(np.repeat(self.share[cut, None], nodes.shape[1], 1))
        return Problem(self.layout, mesh, nodes, *arrays, scale, share)

    def with_scale(self, team: Team = ALONE) -> BlockProblem:
        """The same with s one over the root mean square of ẋ over all processes; 1 for a state that never moves."""
        sums = torch.zeros(self.nodes.shape[2], dtype=torch.float64)
        for cut in self.cuts():
            block = self.block(cut)
            sums += (block.weight[:, None] * block.derivative**2).sum(0).cpu()
        square = team.sum(sums)[0].numpy()
        return replace(self, scale=np.where(square > 0, 1.0 / np.sqrt(np.where(square > 0, square, 1.0)), 1.0))

    def split_elements(self, share: float, seed: int, team: Team = ALONE) -> tuple[BlockProblem, BlockProblem]:
        """Two problems as those of `Problem.split_elements`, of the same draw."""
        held = held_out_elements(self.mesh.elements, share, seed, team)[self.elements]
        return self.of(self.elements[~held], team), self.of(self.elements[held], team)

    def of(self, elements: NDArray[np.int64], team: Team = ALONE) -> BlockProblem:
        """The problem on these elements alone, in weights that sum to 1 over all processes."""
        at = self.mesh.left_boundary_of(elements)
        (total,) = team.total(float((self.mesh.boundaries[at + 1] - self.mesh.boundaries[at]).sum()))
        return replace(self, elements=elements, total=total, share=None)

    def between(self, begin: int, end: int) -> Problem:
        """All elements of trajectories `begin` to `end` of this process, whether or not they count, with their mesh."""
        first = self.mesh.first_element
        everything = replace(self, elements=np.arange(first[begin], first[end]), share=None)
        return replace(everything.block(slice(None)), mesh=self.mesh.between(begin, end))

    def everywhere(self, team: Team = ALONE) -> BlockProblem:
        """The same with every element counting, those in gaps too."""
        return self.of(np.arange(self.mesh.elements), team)

    def node_data(self, most: int) -> NodeData:
        """The first points that count, `most` at most."""
        parts: list[NodeData] = []
        left = most
        for cut in self.cuts()[: 1 if most == 0 else None]:
            part = self.block(cut).node_data()
            parts.append(NodeData(*(column[:left] for column in part)))
            left -= len(parts[-1].t)
            if left <= 0:
                break
        return NodeData(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def residual(self, model: Model) -> BlockResidual:
        """R as a function of the weights of this model."""
        return BlockResidual(self, model)


class BlockResidual:
    """R of a `BlockProblem` as a function of θ; its gradient is formed block by block on the way.

    Parameters
    ----------
    problem : BlockProblem
    model : Model
    """

    def __init__(self, problem: BlockProblem, model: Model) -> None:
        self.problem, self.model = problem, model
        self.cuts = problem.cuts()
        self.kept: dict[int, Callable[[], Tensor]] = {}
        self.taken = 0.0

    def __call__(self) -> Tensor:
        """R, a scalar that can be differentiated once with respect to the parameters."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not (torch.is_grad_enabled() and parameters):
            return self.evaluate([])[0]
        value: Tensor = _BlockSum.apply(self, *parameters)  # type: ignore[no-untyped-call]
        return value

    def release(self) -> None:
        """Keep no block any more."""
        self.kept, self.taken = {}, 0.0

    def evaluate(self, parameters: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """R, and its gradient by each of the parameters."""
        total = torch.zeros((), dtype=torch.float64, device=self.problem.device)
        sums = [torch.zeros_like(p) for p in parameters]
        for number in range(len(self.cuts)):
            loss = self._loss(number)
            if not parameters:
                total += loss().detach()
                continue
            with torch.enable_grad():
                value = loss()
                found = torch.autograd.grad(value, parameters, allow_unused=True)
            total += value.detach()
            for whole, part in zip(sums, found, strict=True):
                if part is not None:
                    whole += part
        return total, sums

    def _loss(self, number: int) -> Callable[[], Tensor]:
        """R of one block; kept where there is room for it."""
        if number in self.kept:
            return self.kept[number]
        residual = self.problem.block(self.cuts[number]).residual(self.model)
        loss: Callable[[], Tensor] = residual if residual.squares is None else residual.squares
        size = _bytes_of(loss)
        if self.taken + size <= self.problem.room:
            self.kept[number] = loss
            self.taken += size
        return loss


class _BlockSum(torch.autograd.Function):
    """R with the gradient that was formed on the way."""

    @staticmethod
    def forward(ctx: Any, residual: BlockResidual, *parameters: Tensor) -> Tensor:
        value, gradients = residual.evaluate(list(parameters))
        ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(
            g * gradient.to(g.dtype) if needed else None
            for g, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)
        )


def _bytes_of(value: Any, seen: set[int] | None = None) -> float:
    """Bytes of all tensors that an object holds, each storage once; weights of the model do not count."""
    seen = set() if seen is None else seen
    if isinstance(value, torch.nn.Module):
        return 0.0
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        if storage.data_ptr() in seen:
            return 0.0
        seen.add(storage.data_ptr())
        return float(storage.nbytes())
    if isinstance(value, list | tuple):
        return sum(_bytes_of(item, seen) for item in value)
    return sum(_bytes_of(item, seen) for item in vars(value).values()) if hasattr(value, "__dict__") else 0.0
