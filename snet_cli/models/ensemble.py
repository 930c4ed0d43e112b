"""Many members of a Gaussian around θ as one f: linear in the change of θ, nonlinear in x.

    f_s(t, x, u) = f(t, x, u; θ) + ∂f/∂θ δ_s

A member with its own weights, f(t, x, u; θ + δ_s), would not do: the posterior is that of the model linearised in θ,
and long moves along directions that the data leaves open bend off the valley of the likelihood, so that such members
fit the data far worse than the posterior says (Immer, Korzepa & Bauer 2021, for classifiers). As x keeps its full
nonlinearity, errors grow along a forecast as they do in the system.

The number of the member is the last channel of u, so that a batch may hold any rows of any members.

∂f/∂θ δ is the central difference along δ, (f(θ + hδ) - f(θ - hδ)) / 2h, exact to some 1e-10 of itself in double
precision: every member has its own δ, for which forward mode would do as well, but it takes two seconds to load, three
times as long, and knows fewer operators than `vmap` over weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from snet_cli.models.base import Model


class _FromFeatures(nn.Module):
    """`from_features` as a module's forward, which `functional_call` needs."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, *features: Tensor) -> Tensor:
        return self.model.from_features(*features)


class Ensemble:
    """f of all members.

    Parameters
    ----------
    model : Model
    changes : Tensor, shape (S, N_θ)
        δ of each member, in the order of the model's parameters.
    """

    def __init__(self, model: Model, changes: Tensor) -> None:
        self.model, self.members = model, changes.shape[0]
        self.rates = _FromFeatures(model)
        theta = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
        self.dtype = next((p.dtype for p in theta.values()), torch.float64)
        self.step = self._steps(theta, changes)
        pieces = torch.split(changes, [p.numel() for p in theta.values()], dim=1)
        self.ahead, self.behind = (
            {
                name: (p.flatten() + sign * self.step[:, None] * piece).reshape(self.members, *p.shape).to(p)
                for (name, p), piece in zip(theta.items(), pieces, strict=True)
            }
            for sign in (1.0, -1.0)
        )
        self.vectorised = True

    def _steps(self, theta: dict[str, Tensor], changes: Tensor) -> Tensor:
        """Step h of each member, shape (S,): no weight moves by more than ∛ε of its tensor's size, or of 1."""
        sizes = [p.double().square().mean().sqrt().clamp_min(1.0).expand(p.numel()) for p in theta.values()]
        farthest = (changes.abs() / torch.cat(sizes)).amax(1).clamp_min(torch.finfo(torch.float64).tiny)
        return torch.finfo(self.dtype).eps ** (1 / 3) / farthest

    def __call__(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """ẋ in float64, each row by its own member.

        Parameters
        ----------
        t, x, u : Tensor, shapes (N,), (N, n), (N, m + c + 1)
        """
        place, present, row_of = _by_member(u[:, -1].long())
        features = self.model.features(t[place], x[place], u[place, :-1])  # place (S', M)
        parts = tuple(part.to(self.dtype) for part in features)
        value = self.rates(*parts)
        ahead, behind = (self._rates(theta, present, parts) for theta in (self.ahead, self.behind))
        change = (ahead - behind).double() / (2.0 * self.step[present, None, None])
        return (value.double() + change).flatten(0, 1)[row_of]

    def _rates(self, theta: dict[str, Tensor], present: Tensor, features: tuple[Tensor, ...]) -> Tensor:
        """Rates at weights of each member's own, shape (S', M, n): all at once where `vmap` knows the operators."""

        def member(weights: dict[str, Tensor], *own: Tensor) -> Tensor:
            rates: Tensor = functional_call(self.rates, weights, own)
            return rates

        chosen = {name: weights[present] for name, weights in theta.items()}
        if self.vectorised:
            try:
                found: Tensor = vmap(member)(chosen, *features)
                return found
            except RuntimeError:  # an operator that vmap does not know; torch has no narrower class for it
                self.vectorised = False
        each = [
            member({name: weights[s] for name, weights in chosen.items()}, *(part[s] for part in features))
            for s in range(present.numel())
        ]
        return torch.stack(each)


def _by_member(member: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows laid out as one line per member, the last row of a member repeated to the length of the longest.

    Returns
    -------
    place : Tensor of int, shape (S', M)
        Row of the batch at each place.
    present : Tensor of int, shape (S',)
        Members that have rows.
    row_of : Tensor of int, shape (N,)
        Place, counted through, of each row.
    """
    present, line, count = torch.unique(member, return_inverse=True, return_counts=True)
    order = torch.argsort(line, stable=True)
    first = count.cumsum(0) - count
    longest = int(count.max())
    within = torch.minimum(torch.arange(longest, device=member.device), (count - 1)[:, None])
    place = order[first[:, None] + within]
    row_of = torch.empty_like(order)
    row_of[order] = line[order] * longest + torch.arange(order.numel(), device=member.device) - first[line[order]]
    return place, present, row_of
