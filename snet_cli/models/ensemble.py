"""Many members of a Gaussian around θ as one f: linear in the change of θ, nonlinear in x.

    f_s(t, x, u) = f(t, x, u; θ) + ∂f/∂θ δ_s

A member with its own weights, f(t, x, u; θ + δ_s), would not do: the posterior is that of the model linearised in θ,
and long moves along directions that the data leaves open bend off the valley of the likelihood, so that such members
fit the data far worse than the posterior says (Immer, Korzepa & Bauer 2021, for classifiers). As x keeps its full
nonlinearity, errors grow along a forecast as they do in the system.

The number of the member is the last channel of u, so that a batch may hold any rows of any members.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

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
        self.theta = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
        self.tangents: dict[str, Tensor] = {}
        begin = 0
        for name, p in self.theta.items():
            part = changes[:, begin : begin + p.numel()]
            self.tangents[name] = part.reshape(self.members, *p.shape).to(p)
            begin += p.numel()
        self.dtype = next((p.dtype for p in self.theta.values()), torch.float64)
        self.vectorised = True

    def __call__(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """ẋ in float64, each row by its own member.

        Parameters
        ----------
        t, x, u : Tensor, shapes (N,), (N, n), (N, m + c + 1)
        """
        place, present, row_of = _by_member(u[:, -1].long())
        features = self.model.features(t[place], x[place], u[place, :-1])  # place (S', M)
        parts = tuple(part.to(self.dtype) for part in features)
        tangents = {name: tangent[present] for name, tangent in self.tangents.items()}
        return self._rates(tangents, parts).flatten(0, 1)[row_of].double()

    def _rates(self, tangents: dict[str, Tensor], features: tuple[Tensor, ...]) -> Tensor:
        """Rates f + ∂f/∂θ δ, shape (S', M, n): all members at once where `vmap` knows the model's operators."""

        def member(tangent: dict[str, Tensor], *own: Tensor) -> Tensor:
            def at(theta: dict[str, Tensor]) -> Tensor:
                rates: Tensor = functional_call(self.rates, theta, own)
                return rates

            pushed: tuple[Tensor, Tensor] = jvp(at, (self.theta,), (tangent,))  # type: ignore[assignment]
            return pushed[0] + pushed[1]

        if self.vectorised:
            try:
                found: Tensor = vmap(member)(tangents, *features)
                return found
            except RuntimeError:  # an operator that vmap does not know; torch has no narrower class for it
                self.vectorised = False
        each = [
            member({name: tangent[s] for name, tangent in tangents.items()}, *(part[s] for part in features))
            for s in range(features[0].shape[0])
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
