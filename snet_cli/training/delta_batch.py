"""Several δ-SNets of one architecture in step: one batch of all their networks instead of one after the other.

They share nothing but the time: problems, held-out parts, priors and robust weights are their own, and each goes where
it goes alone. What is gained is everything in an iteration that is not arithmetic on points, and on an accelerator,
which one small network leaves idle, nearly all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from snet_cli.models.stack_batches import Squares, SquaresOfMany, SquaresPart
from snet_cli.training.curvature_pairs import padded_width
from snet_cli.training.delta import Delta, penalty
from snet_cli.training.lbfgs import LbfgsBatch, LbfgsStep
from snet_cli.training.method import Method, Step
from snet_cli.training.theta_step import AdamStep

GROUP = 16
"""Models in one batch at most."""

POINT_BYTES = 500
"""What a point of a model takes in a batch (vehicle: 430): the points of its models stand in memory together."""

DEFAULT_MEMORY = 1_000_000_000
"""Bytes for all of them."""


def models_at_once(points: int, memory: float | None) -> int:
    """How many models with so many points each are one batch, at least one.

    Parameters
    ----------
    memory : float, optional
        Bytes that the batch may take.
    """
    room = DEFAULT_MEMORY if memory is None else memory
    return max(1, min(GROUP, int(room / (POINT_BYTES * max(points, 1)))))


def why_not_in_step(methods: Sequence[Method]) -> str | None:
    """The reason why these cannot train in one batch; None if they can."""
    deltas = [method for method in methods if isinstance(method, Delta)]
    if len(deltas) < len(methods):
        return f"method {methods[0].name} moves more than θ"
    if not all(isinstance(method.theta, AdamStep | LbfgsStep) for method in deltas):
        return "theta_step lm, or a closed form, works on one model at a time"
    if any(method.residual.squares is None for method in deltas):
        return "f of this model is no sum of plain networks"
    if not all(p.requires_grad for method in deltas for p in method.model.parameters()):
        return "some of its weights are fixed"
    return None


def even(methods: Sequence[Method], begun: Sequence[int]) -> bool:
    """Whether a batch can go on from these numbers of steps; that of Adam counts them for all models together."""
    by_adam = any(isinstance(method, Delta) and isinstance(method.theta, AdamStep) for method in methods)
    return not by_adam or len(set(begun)) == 1


class DeltaBatch:
    """Iterations of several δ-SNets, one each per call of `step`.

    Parameters
    ----------
    methods : sequence of Delta
        New or restored, with Adam or L-BFGS all of them, where `why_not_in_step` knows no reason. They serve as usual
        for everything but their `step`; before their `state` they need `hand_back`.
    """

    def __init__(self, methods: Sequence[Delta]) -> None:
        self.methods = list(methods)
        self.squares = self._squares()
        theta = torch.stack([nn.utils.parameters_to_vector(m.model.parameters()).detach() for m in self.methods])
        self.prior = theta.new_tensor([method.prior for method in self.methods])
        first = self.methods[0].theta
        rate = first.optimizer.param_groups[0]["lr"] if isinstance(first, AdamStep) else None
        self.steps: _AdamBatch | _Lbfgs = _Lbfgs(theta) if rate is None else _AdamBatch(theta, rate)
        if any(method.evaluations for method in self.methods):
            self.steps.restore([_known(method) for method in self.methods])
        self._show()

    def _squares(self) -> SquaresOfMany:
        parts = []
        for method in self.methods:
            form = method.model.in_stacks(*method.residual.features)
            assert form is not None
            parts.append(SquaresPart(form, method.residual.target, method.descended.factor, method.share))
        return SquaresOfMany(self.methods[0].model, parts)

    def hand_back(self, method: Delta) -> None:
        """Let a method's own optimiser remember what the batch knows of it."""
        assert method.theta is not None
        row = next(row for row, own in enumerate(self.methods) if own is method)
        method.theta.restore(self.steps.state(row, method))

    def keep(self, models: Sequence[int]) -> None:
        """Go on with these models alone; those that are done cost nothing more."""
        self.methods = [self.methods[m] for m in models]
        self.prior = self.prior[list(models)]
        self.squares.keep(models)
        self.steps.keep(models)
        self._show()

    def _show(self) -> None:
        """Let the parameters of every model be a view of one array, so that all are set at once."""
        theta = self.steps.theta
        room = theta.new_empty(len(theta), padded_width(theta.shape[1]))  # aligned as they are in a model alone
        self.shown = room[:, : theta.shape[1]].copy_(theta)
        with torch.no_grad():
            for method, row in zip(self.methods, self.shown, strict=True):
                nn.utils.vector_to_parameters(row, method.model.parameters())

    def step(self) -> list[Step]:
        """One iteration of every model, which then holds its θ."""
        if any([method.reweight() for method in self.methods]):
            self.squares = self._squares()
            self.steps.reopen()
        numbers = self.steps.step(self._evaluate)  # loss with λ|θ|², R, λ|θ|²
        self.shown.copy_(self.steps.theta)
        for method, count in zip(self.methods, self.steps.evaluations, strict=True):
            method.evaluated = count
        return [
            method.after(total - own if method.share is None else plain, total - own)
            for method, (total, plain, own) in zip(self.methods, numbers, strict=True)
        ]

    def _evaluate(self, theta: Tensor, models: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Loss, R and penalty (A, 3), and the gradients (A, N) of the loss."""
        found: Squares = self.squares.evaluate(theta, models)
        prior = self.prior if len(models) == len(self.prior) else self.prior[list(models)]
        own = penalty(theta, prior)
        pull = prior[:, None] * theta
        return torch.stack([found.values + own, found.plain, own], 1).double(), found.gradients + (pull + pull)


Objective = Callable[[Tensor, Sequence[int]], tuple[Tensor, Tensor]]

NUMBERS = 3
"""Of an evaluation: the loss, R and the penalty."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Names that torch's Adam has for its moments."""

Remembered = Mapping[str, Tensor]
"""What an optimiser of one model keeps."""


def _known(method: Delta) -> Remembered:
    assert method.theta is not None
    return method.theta.state()


class _Lbfgs:
    """L-BFGS of all models in step."""

    def __init__(self, theta: Tensor) -> None:
        self.batch = LbfgsBatch(theta)

    @property
    def theta(self) -> Tensor:
        return self.batch.theta

    @property
    def evaluations(self) -> list[int]:
        return self.batch.evaluations

    def step(self, evaluate: Objective) -> list[list[float]]:
        self.batch.step(evaluate)
        numbers = self.batch.numbers
        known = [m for m, found in enumerate(numbers) if len(found) < NUMBERS]
        if known:  # restored with their losses alone, and no step has helped
            asked, _ = evaluate(self.theta[known], known)
            for m, found in zip(known, asked.tolist(), strict=True):
                numbers[m] = found
        return numbers

    def reopen(self) -> None:
        self.batch.reopen()

    def keep(self, models: Sequence[int]) -> None:
        self.batch.keep(models)

    def state(self, row: int, method: Delta) -> Remembered:
        return self.batch.state(row)

    def restore(self, states: Sequence[Remembered]) -> None:
        for row, state in enumerate(states):
            self.batch.restore(row, state)


class _AdamBatch:
    """Adam, which works number by number, on all θ as one parameter."""

    def __init__(self, theta: Tensor, rate: float) -> None:
        self.rate, self.done = rate, 0
        self._use(theta)

    def _use(self, theta: Tensor) -> None:
        self.parameter = nn.Parameter(theta.clone())
        self.optimizer = torch.optim.Adam([self.parameter], lr=self.rate, fused=True)

    @property
    def theta(self) -> Tensor:
        return self.parameter.detach()

    @property
    def evaluations(self) -> list[int]:
        return [self.done] * len(self.parameter)

    def step(self, evaluate: Objective) -> list[list[float]]:
        numbers, self.parameter.grad = evaluate(self.theta, range(len(self.parameter)))
        self.optimizer.step()
        self.done += 1
        found: list[list[float]] = numbers.tolist()
        return found

    def reopen(self) -> None:
        """Every step evaluates anew."""

    def keep(self, models: Sequence[int]) -> None:
        chosen, moments = list(models), self.optimizer.state_dict()["state"][0]
        self._use(self.theta[chosen])
        kept = {name: value[chosen] if value.dim() == 2 else value for name, value in moments.items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": {0: kept}})

    def state(self, row: int, method: Delta) -> Remembered:
        """What `AdamStep` keeps: moments tensor by tensor, and counts."""
        moments = self.optimizer.state_dict()["state"].get(0)
        found: dict[str, Tensor] = {"evaluations": torch.tensor(self.done)}
        sizes = [p.numel() for p in method.parameters]
        for number, parameter in enumerate(method.parameters if moments else ()):
            found[f"{number}.step"] = moments["step"].clone()
            for name in MOMENTS:
                found[f"{number}.{name}"] = moments[name][row].split(sizes)[number].view_as(parameter).clone()
        return found

    def restore(self, states: Sequence[Remembered]) -> None:
        """All have taken equally many steps."""
        self.done = int(states[0]["evaluations"])
        rows = {name: [_joined(state, name) for state in states] for name in MOMENTS}
        moments = {name: torch.stack(parts) for name, parts in rows.items()}
        step = states[0]["0.step"].clone()
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": {0: {"step": step, **moments}}})


def _joined(state: Remembered, name: str) -> Tensor:
    """A moment of all parameters, shape (N_θ,)."""
    count = sum(key.endswith(f".{name}") for key in state)
    return torch.cat([state[f"{number}.{name}"].flatten() for number in range(count)])
