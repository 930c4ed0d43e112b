"""f and ∂f/∂x at many points: n forward-mode passes over the whole batch, in chunks of bounded memory.

f acts on each point for itself, so that one tangent e_a pushed through the batch gives column a of every point's
Jacobian (`torch.func.jvp` under `vmap` over the n tangents; f itself is evaluated once). A module that uses an
operation without forward-mode derivatives is differentiated backwards, row by row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snet_cli.models.base import Model

CHUNK_ENTRIES = 400_000
"""Points times n² of one chunk: each layer then holds tens of megabytes of tangents at most."""


def evaluate(model: Model, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
    """ẋ = f(t, x, u; θ) in float64, the network in its own dtype.

    Parameters
    ----------
    t, x, u : Tensor, shapes (...,), (..., n), (..., m + c)
    """
    dtype = next((p.dtype for p in model.parameters()), torch.float64)
    features = model.features(t, x, u)
    return model.from_features(*(part.to(dtype) for part in features)).to(x.dtype)


def state_jacobian(model: Model, t: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The rates f and ∂f/∂x, without a graph to θ.

    Parameters
    ----------
    t, x, u : Tensor, shapes (Q,), (Q, n), (Q, m + c)

    Returns
    -------
    f : Tensor, shape (Q, n)
    jacobian : Tensor, shape (Q, n, n)
        Entry [q, i, a] = ∂f_i / ∂x_a.
    """
    points, n = x.shape
    values, jacobian = torch.empty_like(x), x.new_empty(points, n, n)
    chunk = max(64, CHUNK_ENTRIES // n**2)
    compute = _forward
    for begin in range(0, points, chunk):
        part = slice(begin, begin + chunk)
        try:
            values[part], jacobian[part] = compute(model, t[part], x[part], u[part])
        except (NotImplementedError, RuntimeError) as error:
            if compute is _reverse or isinstance(error, torch.OutOfMemoryError):
                raise
            compute = _reverse
            values[part], jacobian[part] = compute(model, t[part], x[part], u[part])
    return values, jacobian


def _forward(model: Model, t: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    def push(tangent: Tensor) -> Tensor:
        column: Tensor = torch.func.jvp(lambda state: evaluate(model, t, state, u), (x,), (tangent,))[1]
        return column

    n = x.shape[1]
    tangents = torch.eye(n, dtype=x.dtype, device=x.device)[:, None, :].expand(n, *x.shape)
    with torch.no_grad():
        value = evaluate(model, t, x, u)
        columns = torch.func.vmap(push)(tangents)
    return value, columns.permute(1, 2, 0)


def _reverse(model: Model, t: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        state = x.detach().requires_grad_()
        value = evaluate(model, t, state, u)
        rows = []
        for i in range(x.shape[1]):
            column = value[:, i].sum()
            row = None
            if column.requires_grad:
                (row,) = torch.autograd.grad(column, state, retain_graph=True, allow_unused=True)
            rows.append(torch.zeros_like(x) if row is None else row)
    return value.detach(), torch.stack(rows, 1)
