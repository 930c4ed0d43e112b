"""f, ∂f/∂x and ∂f/∂θ at many points, and products with ∂f/∂θ where it is too large to form.

Three routes lead to the same numbers, and the first that is open is taken:

1. the model's own formula (`Model.closed_form_jacobians`);
2. `torch.func`: `vmap` over the points of `jacrev` of f at one point, for any module whose operators `vmap` knows;
3. one pass per parameter over all points, for modules that `vmap` cannot run (branches on values, `.item()`). The
   vector-Jacobian product h(w) = Σ_q G_qᵀ w_q is linear in w, so that its derivative by w in the direction of the k-th
   unit vector is column k of every G_q: reverse mode twice. Batched over points, it needs N_θ passes instead of Q n.

Route 3 and the products ask of a module only that it can be differentiated twice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from snet_cli.errors import NumericalError
from snet_cli.models.base import Model
from snet_cli.models.jacobian import PointJacobians
from snet_cli.models.theta_blocks import ThetaJacobian
from snet_cli.training.state_jacobian import evaluate, state_jacobian

COPIES_OF_G = 3
"""Arrays as large as F and G that are alive at once. Measured: 1.1 to 1.5 by formula, 2.1 to 2.2 by `torch.func` for
networks; a module whose activations outnumber n N_θ (all pairs of many agents: 3.4) takes more."""

CHUNK_BYTES = 60_000_000
"""A chunk is never larger: above glibc's 32 MB every array is fetched anew from the system, which takes longer than
computing what stands in it (vehicle, hidden 32, 6000 points: 170 ms instead of 65)."""


def theta_jacobian(model: Model, t: Tensor, x: Tensor, u: Tensor) -> PointJacobians:
    """f, ∂f/∂x and ∂f/∂θ at all points at once, in the dtype of x, without a graph.

    The network computes in its own dtype, as in `evaluate`. The arrays are as large as `chunks` assumes: whoever has
    many points calls this for one chunk after the other.

    Parameters
    ----------
    t, x, u : Tensor, shapes (Q,), (Q, n), (Q, m + c)

    Raises
    ------
    NumericalError
        If f cannot be differentiated.
    """
    with torch.no_grad():
        closed = model.closed_form_jacobians(t, x, u)
    if closed is not None:
        return closed
    if next(model.parameters(), None) is None:
        f, F = state_jacobian(model, t, x, u)
        return PointJacobians(f, F, ThetaJacobian.full(x.new_zeros(*x.shape, 0)))
    try:
        return _by_vmap(model, t, x, u)
    except RuntimeError:  # an operator that vmap does not know; torch has no narrower class for it
        return _by_parameter(model, t, x, u)


def chunks(points: int, n: int, parameters: int, memory: int) -> list[slice]:
    """Slices of the points such that `theta_jacobian` of one takes at most `memory` bytes, at least one point each.

    Parameters
    ----------
    points, n, parameters : int
        Q, the number of states and N_θ.
    memory : int
        Bytes: 8 n (N_θ + n) `COPIES_OF_G` are counted for each point; more than `CHUNK_BYTES` are not used.
    """
    size = max(1, min(memory, CHUNK_BYTES) // (8 * n * (parameters + n) * COPIES_OF_G))
    return [slice(begin, min(begin + size, points)) for begin in range(0, points, size)]


class ThetaProducts:
    """Products with G = ∂f/∂θ at fixed points and fixed θ, without forming it: the graph is built once.

    It keeps the activations of f at all points, and each product is one or two backward passes over them.
    """

    def __init__(self, model: Model, t: Tensor, x: Tensor, u: Tensor) -> None:
        self._parameters = _leaves(model)
        self._shapes = [p.shape for p in self._parameters.values()]
        self._dtype = x.dtype
        with torch.enable_grad():
            self._value: Tensor = functional_call(_Rates(model), self._parameters, (t, x, u))
            self._cotangent = torch.zeros_like(self._value, requires_grad=True)
            self._pulled_back = self._transpose(self._cotangent, create_graph=True)

    @property
    def f(self) -> Tensor:
        """The rates, shape (Q, n)."""
        return self._value.detach()

    def product(self, direction: Tensor) -> Tensor:
        """G_q dθ at every point, shape (Q, n), for `direction` dθ of shape (N_θ,).

        Raises
        ------
        NumericalError
            If f cannot be differentiated twice.
        """
        image = self._forward(direction)
        if not bool(image.any()):
            # an operator that is differentiable once leaves no way to the cotangent, and every product would be zero;
            # that of G with Gᵀ1 is only where Gᵀ1 is
            back = self.transpose_product(torch.ones_like(self._value))
            if bool(back.any()) and not bool(self._forward(back).any()):
                raise _not_differentiable(RuntimeError("an operator of it has no second derivative"))
        return image

    def _forward(self, direction: Tensor) -> Tensor:
        if not (self._pulled_back.numel() and self._pulled_back.requires_grad):
            return torch.zeros_like(self._value)
        try:
            (image,) = torch.autograd.grad(
                self._pulled_back, self._cotangent, direction.to(self._dtype), retain_graph=True, materialize_grads=True
            )
        except RuntimeError as error:
            raise _not_differentiable(error) from error
        return image

    def transpose_product(self, vectors: Tensor) -> Tensor:
        """Σ_q G_qᵀ v_q, shape (N_θ,), for `vectors` of shape (Q, n)."""
        return self._transpose(vectors, create_graph=False)

    def _transpose(self, vectors: Tensor, *, create_graph: bool) -> Tensor:
        leaves = list(self._parameters.values())
        if not (leaves and self._value.requires_grad):
            return vectors.new_zeros(sum(leaf.numel() for leaf in leaves))
        try:
            gradients = torch.autograd.grad(
                self._value, leaves, vectors, retain_graph=True, create_graph=create_graph, materialize_grads=True
            )
        except RuntimeError as error:
            raise _not_differentiable(error) from error
        return torch.cat([gradient.flatten().to(self._dtype) for gradient in gradients])


class _Rates(nn.Module):
    """`evaluate` as a module's forward, which `functional_call` needs."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        return evaluate(self.model, t, x, u)


def _leaves(model: Model) -> dict[str, Tensor]:
    """The parameters as free leaves named as in `_Rates`, frozen ones too."""
    return {f"model.{name}": p.detach().requires_grad_() for name, p in model.named_parameters()}


def _by_vmap(model: Model, t: Tensor, x: Tensor, u: Tensor) -> PointJacobians:
    """Route 2: f at one point, differentiated by θ and x together, vectorised over the points."""
    rates = _Rates(model)
    theta = {name: leaf.detach() for name, leaf in _leaves(model).items()}

    def at_point(theta: dict[str, Tensor], state: Tensor, time: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        value = functional_call(rates, theta, (time[None], state[None], inputs[None]))[0]
        return value, value

    jacobian: Callable[..., tuple[tuple[dict[str, Tensor], Tensor], Tensor]]
    jacobian = vmap(jacrev(at_point, argnums=(0, 1), has_aux=True), in_dims=(None, 0, 0, 0))
    (by_theta, by_state), value = jacobian(theta, x, t, u)
    by_parameter = [by_theta[name].reshape(*x.shape, leaf.numel()).to(x.dtype) for name, leaf in theta.items()]
    return PointJacobians(value, by_state, ThetaJacobian.full(torch.cat(by_parameter, 2)))


def _by_parameter(model: Model, t: Tensor, x: Tensor, u: Tensor) -> PointJacobians:
    """Route 3: column k of G at all points is the product with the k-th unit vector."""
    try:
        f, F = state_jacobian(model, t, x, u)
        products = ThetaProducts(model, t, x, u)
    except RuntimeError as error:
        raise _not_differentiable(error) from error
    count = sum(p.numel() for p in model.parameters())
    G = x.new_empty(*x.shape, count)
    for k, unit in enumerate(torch.eye(count, dtype=x.dtype, device=x.device)):
        G[..., k] = products.product(unit)
    return PointJacobians(f, F, ThetaJacobian.full(G))


def _not_differentiable(error: RuntimeError) -> NumericalError:
    return NumericalError(
        f"the model's f(t, x, u) cannot be differentiated with respect to its parameters: {error}.",
        "A second-order method needs f made of torch operators that can be differentiated twice; "
        "other methods need one derivative only.",
    )
