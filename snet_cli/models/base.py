"""What every learnable f(t, x, u; θ) is: a torch module that separates what depends on θ from what does not.

In a θ-step x is fixed, so everything in f that does not depend on θ (trigonometry, normalisation, known policies) is
computed once per step by `features`, and every evaluation of the loss calls `from_features` only.
Known physical constants (a mass matrix, the gains of a policy) are the last channels of u: each trajectory carries its
own, and nothing else in the program has to know about them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple, Self, TypeAlias

import torch
from torch import Tensor, nn

from snet_cli.models.elementwise import Sine
from snet_cli.models.jacobian import PointJacobians
from snet_cli.models.options import Activation, ModelOptions
from snet_cli.models.stacks import StackForm

Rates: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""ẋ (Q, n) in float64 from t (Q,), x (Q, n) and u (Q, m + c) in float64, with fixed weights."""


class StateSpace(NamedTuple):
    """Names of the channels that f maps between.

    Attributes
    ----------
    states, inputs : tuple of str
        n states and m inputs, in order.
    """

    states: tuple[str, ...]
    inputs: tuple[str, ...]


class NodeData(NamedTuple):
    """Step 0 at all points, from which models set their normalisation or solve in closed form.

    Attributes
    ----------
    t, x, u : Tensor, shapes (N,), (N, n), (N, m + c)
    derivative : Tensor, shape (N, n)
        ẋ of the series.
    weight : Tensor, shape (N,)
        Quadrature weights.
    """

    t: Tensor
    x: Tensor
    u: Tensor
    derivative: Tensor
    weight: Tensor


class Model(nn.Module):
    """Base class of f(t, x, u; θ).

    Attributes
    ----------
    constants : tuple of str
        Names of known constants, expected as the last channels of u.
    """

    constants: tuple[str, ...] = ()

    @classmethod
    def build(cls, options: ModelOptions, space: StateSpace, generator: torch.Generator, dtype: torch.dtype) -> Self:
        """A new model for these channels, with weights drawn from `generator`."""
        raise NotImplementedError(f"{cls.__name__} defines no build")

    @classmethod
    def required_space(cls, outputs: tuple[str, ...]) -> StateSpace | None:
        """The channels that a structured model insists on; None where it takes what the data has."""
        return None

    def features(self, t: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        """Everything in f that does not depend on θ; the shapes are any leading shape, (..., n) and (..., m + c)."""
        return t, x, u

    def from_features(self, *features: Tensor) -> Tensor:
        """ẋ, shape (..., n), from what `features` returned."""
        raise NotImplementedError(f"{type(self).__name__} defines no from_features")

    def forward(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """ẋ = f(t, x, u; θ), shape (..., n).

        Parameters
        ----------
        t : Tensor, shape (...,)
            Time since the trajectory's start.
        x : Tensor, shape (..., n)
        u : Tensor, shape (..., m + c)
            Inputs, then known constants.
        """
        return self.from_features(*self.features(t, x, u))

    def frozen(self) -> Rates:
        """The same as an integration calls it, while the weights stay: float64 outside, the model's dtype inside."""
        dtype = next((p.dtype for p in self.parameters()), torch.float64)

        def rates(t: Tensor, x: Tensor, u: Tensor) -> Tensor:
            parts = self.features(t, x, u)
            result: Tensor = self.from_features(*(part.to(dtype) for part in parts)).double()
            return result

        return rates

    def closed_form_jacobians(self, t: Tensor, x: Tensor, u: Tensor) -> PointJacobians | None:
        """f, ∂f/∂x and ∂f/∂θ where there is a formula for them; None where they are left to automatic differentiation.

        Parameters
        ----------
        t, x, u : Tensor, shapes (Q,), (Q, n), (Q, m + c)
        """
        return None

    def closed_form_state_jacobian(self, t: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor] | None:
        """Rates f and ∂f/∂x alone, where a formula is faster than one backward pass per state; else None."""
        return None

    def linear_weights(self) -> tuple[nn.Parameter, ...]:
        """Parameters in which f is linear while the others are fixed: last layers of networks; none unless known."""
        return ()

    def in_stacks(self, *features: Tensor) -> StackForm | None:
        """Known rates and terms that are linear in stacks of layers, where f is their sum; None where it is not.

        Parameters
        ----------
        *features : Tensor
            What `features` returned for Q points, in the dtype of the network.
        """
        return None

    def fit_normalization(self, data: NodeData) -> None:
        """Set normalisation buffers from the training data; structured models have none."""

    def solve_in_closed_form(self, data: NodeData) -> bool:
        """Set θ to the minimiser of R where there is a formula; returns whether there is."""
        return False


_ACTIVATIONS: dict[Activation, type[nn.Module]] = {"tanh": nn.Tanh, "silu": nn.SiLU, "softplus": nn.Softplus}


def layers(
    sizes: list[int], activation: Activation, generator: torch.Generator, *, bias: bool = True, dtype: torch.dtype
) -> nn.Sequential:
    """A fully connected network of the given layer sizes, linear at the end.

    Weights and biases are uniform in ±1/√(fan-in) (LeCun et al. 1998), drawn from `generator`: torch's own
    initialisation would draw from the global random state.
    """
    modules: list[nn.Module] = []
    for k, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        layer = nn.Linear(fan_in, fan_out, bias=bias, device="meta")  # no numbers yet; `to_empty` would import sympy
        bound = max(fan_in, 1) ** -0.5
        for name, parameter in list(layer.named_parameters()):
            draw = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            layer.register_parameter(name, nn.Parameter(((2.0 * draw - 1.0) * bound).to(dtype)))
        modules.append(layer)
        if k < len(sizes) - 2:
            modules.append(Sine() if activation == "sin" else _ACTIVATIONS[activation]())
    return nn.Sequential(*modules)


def last_layers(*stacks: nn.Sequential) -> tuple[nn.Parameter, ...]:
    """The parameters in which the outputs of stacks are linear."""
    return tuple(parameter for stack in stacks for parameter in stack[-1].parameters())
