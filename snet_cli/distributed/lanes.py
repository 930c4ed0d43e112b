"""A fixed number of lanes for any number of processes, on which then no bit of a result depends.

Sums in another order have other last digits, and L-BFGS amplifies them with every step: after two hundred, one process
and two are a percent apart. So the trajectories are divided among K lanes, whatever the number of processes; each lane
is what a process would be, with a θ and a method of its own, and a process has K / R of them. Sums over lanes follow
one binary tree, of which a process adds up the branches that it has::

    process 0 of 2   lane 0  lane 1   lane 2  lane 3        process 1   lane 4 … lane 7
                        └ + ┘            └ + ┘
                          └───── + ─────┘ ───────────── + ───────────────┘

The lanes of a process are threads that run one after the other: one hands over where it needs the others, at a sum.
Switching costs some 20 µs, nothing where each has hundreds of trajectories; with fewer, a process has no lanes.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from snet_cli.distributed.alone import Alone
from snet_cli.distributed.processes import Processes

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

FEWEST_LANES, MOST_LANES = 4, 8
"""Powers of two. More lanes let more processes agree, and all repeat what is done for θ alone."""

TRAJECTORIES = 2048
"""Of a lane, at least: with fewer, what all repeat is felt (δ and α on vehicles, hidden 16: 5 % at 10 000 together)."""

MOST_WEIGHTS = 2000
"""N_θ up to which N_θ² numbers, and the memory of L-BFGS, may stand in memory once for every lane of a process."""

PATIENCE = 5.0
"""Seconds that lanes have to notice that another one has failed, before the process goes on to tell it."""


def lanes_for(trajectories: int, processes: int, weights: int, device: str = "cpu") -> int:
    """How many lanes there are: 1 where each process is one.

    Parameters
    ----------
    weights : int
        N_θ.
    device : {"cpu", "cuda"}
        An accelerator wants all trajectories at once.
    """
    lanes = FEWEST_LANES
    while lanes < MOST_LANES and 2 * lanes * TRAJECTORIES <= trajectories:
        lanes *= 2
    worth = trajectories >= FEWEST_LANES * TRAJECTORIES and weights <= MOST_WEIGHTS and device == "cpu"
    return lanes if worth and processes <= lanes else 1


def in_lanes(team: Alone | Processes, count: int, body: Callable[[Lane], T]) -> T:
    """Run the body on every lane of this process, and return what it returns on the first.

    Parameters
    ----------
    count : int
        Lanes of all processes together, a power of two, at least one for each.
    body : callable
        Of a lane; all have to ask for the same sums in the same order.

    Raises
    ------
    BaseException
        What the first lane that failed raised.
    """
    import torch

    hub = _Hub(team, count)
    results: dict[int, T] = {}
    width = torch.get_num_threads()

    def run(place: int) -> None:
        hub.enter(place)
        try:
            if hub.failure is None:
                results[place] = body(Lane(hub, place))
        except _LeftError:
            pass
        except BaseException as error:  # of whatever kind, the others must not wait for ever
            hub.fail(error)
        hub.leave(place)

    def run_beside(place: int) -> None:
        torch.set_num_threads(width)  # new threads have one for each core
        run(place)

    threads = [threading.Thread(target=run_beside, args=(place,), daemon=True) for place in range(1, hub.own)]
    for thread in threads:
        thread.start()
    run(0)  # in the main thread, which hears signals
    for thread in threads:
        thread.join(None if hub.failure is None else PATIENCE)
    if hub.failure is not None:
        raise hub.failure
    return results[0]


class _LeftError(Exception):
    """Another lane has failed."""


class _Hub:
    """What the lanes of one process share: whose turn it is, and what they have put together."""

    def __init__(self, team: Alone | Processes, count: int) -> None:
        self.team, self.count = team, count
        self.first, end = _range(team.rank, team.size, count)
        self.own = end - self.first
        self.failure: BaseException | None = None
        self._turns = [threading.Semaphore(int(place == 0)) for place in range(self.own)]
        self._given: list[Any] = []
        self._results: list[Any] = []
        self._done: set[int] = set()

    def enter(self, place: int) -> None:
        """Wait for the first turn."""
        self._turns[place].acquire()

    def exchange(self, place: int, value: Any, combine: Callable[[list[Any]], Any]) -> Any:
        """Hand in a value; what `combine` makes of those of all lanes, in order.

        A lane hands over to the next one after its value. When its turn comes again all have handed in, and none has
        handed in anything for the next exchange but those before it, which have their result.
        """
        if place == 0:
            self._given = []
        self._given.append(value)
        if place == self.own - 1:
            self._combined(combine)
        if self.own > 1:
            self._pass_on(place)
            self._turns[place].acquire()
        if self.failure is not None:
            raise _LeftError
        return self._results[place]

    def _combined(self, combine: Callable[[list[Any]], Any]) -> None:
        try:
            self._results = [combine(self._given)] * self.own
        except BaseException as error:
            self.failure = error
            raise

    def fail(self, error: BaseException) -> None:
        """End all lanes."""
        if self.failure is None:
            self.failure = error

    def leave(self, place: int) -> None:
        """No more turns for this lane."""
        self._done.add(place)
        self._pass_on(place)

    def _pass_on(self, place: int) -> None:
        for step in range(1, self.own + 1):
            following = (place + step) % self.own
            if following not in self._done:
                self._turns[following].release()
                return


class Lane:
    """One lane of a process, with the operations of `processes.Processes`."""

    recorded = 1
    """What a file says of the number of processes, on which nothing in it depends."""

    def __init__(self, hub: _Hub, place: int) -> None:
        self._hub, self._place = hub, place
        self.place = hub.team.place
        self.rank, self.size = hub.first + place, hub.count
        self.lanes = hub.count
        self.is_lead, self.speaks = self.rank == 0, place == 0

    def sum(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Σ over the lanes of each tensor, along the tree; the same bits on every lane, formed in float64."""
        import torch

        flat = torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors])
        total = self._exchange(flat, self._added)
        parts = torch.split(total, [tensor.numel() for tensor in tensors])
        return tuple(
            part.view(tensor.shape).to(tensor.device, tensor.dtype, copy=True)
            for part, tensor in zip(parts, tensors, strict=True)
        )

    def total(self, *numbers: float) -> tuple[float, ...]:
        """Σ over the lanes of each number."""
        import torch

        (sums,) = self.sum(torch.tensor(numbers, dtype=torch.float64))
        return tuple(sums.tolist())

    def largest(self, *numbers: float) -> tuple[float, ...]:
        """The largest of each number on any lane."""
        team = self._hub.team
        return cast(
            tuple[float, ...],
            self._exchange(numbers, lambda given: team.largest(*(max(column) for column in zip(*given, strict=True)))),
        )

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each flag is set on any lane."""
        team = self._hub.team
        return cast(
            tuple[bool, ...],
            self._exchange(flags, lambda given: team.any(*(any(column) for column in zip(*given, strict=True)))),
        )

    def before(self, count: int) -> int:
        """Σ of the counts of the lanes before this one."""
        import torch

        team = self._hub.team
        counts = self._exchange(count, lambda given: team.gather(torch.tensor(given)).tolist())
        return int(sum(counts[: self.rank]))

    def gather(self, part: Tensor) -> Tensor:
        """The parts (k, ...) of all lanes one after the other, on every lane."""
        import torch

        team = self._hub.team
        whole: Tensor = self._exchange(part.detach(), lambda given: team.gather(torch.cat(given)))
        return whole

    def collect(self, part: Tensor) -> Tensor:
        """The parts (k, ...) of all lanes one after the other, on the lead; its own part on every other lane."""
        import torch

        team = self._hub.team
        whole: Tensor = self._exchange(part.detach(), lambda given: team.collect(torch.cat(given)))
        return whole if self.is_lead else part

    def own(self, whole: Tensor, count: int) -> Tensor:
        """Of what `gather` would join, the `count` rows that are this lane's."""
        begin = self.before(count)
        return whole[begin : begin + count].clone()

    def from_lead(self, value: T) -> T:
        """The lead's value, JSON-able; to the last bit."""
        team = self._hub.team
        return cast(T, self._exchange(value, lambda given: team.from_lead(given[0])))

    def bytes_from_lead(self, content: bytes) -> bytes:
        """What the lead calls this with."""
        team = self._hub.team
        return cast(bytes, self._exchange(content, lambda given: team.bytes_from_lead(given[0])))

    def bytes_of_all(self, content: bytes) -> list[bytes]:
        """What each lane calls this with, on every lane."""
        import torch

        team = self._hub.team

        def combine(given: list[bytes]) -> list[bytes]:
            sizes = team.gather(torch.tensor([len(one) for one in given])).tolist()
            joined, ends = b"".join(team.bytes_of_all(b"".join(given))), [0]
            for size in sizes:
                ends.append(ends[-1] + int(size))
            return [joined[begin:end] for begin, end in itertools.pairwise(ends)]

        return cast(list[bytes], self._exchange(content, combine))

    def align(self, tensors: list[Tensor]) -> None:
        """Set the tensors to those of the lead: machines of different kinds round differently."""
        import torch

        team = self._hub.team

        def combine(given: list[list[Tensor]]) -> list[Tensor]:
            team.align(given[0])
            return [tensor.detach().clone() for tensor in given[0]]  # the first lane moves on before the others look

        lead: list[Tensor] = self._exchange(tensors, combine)
        if self._place:
            with torch.no_grad():
                for tensor, value in zip(tensors, lead, strict=True):
                    tensor.copy_(value)

    def require_same(self, what: Mapping[str, str]) -> None:
        """As of `Processes`."""
        team = self._hub.team
        self._exchange(what, lambda given: team.require_same(given[0]))

    def require_files(self, *paths: str) -> None:
        """As of `Processes`."""
        self._hub.team.require_files(*paths)

    def may_speak(self) -> bool:
        """As of `Processes`."""
        return self._hub.team.may_speak()

    def once(self, task: Callable[[Alone | Processes], T]) -> T:
        """What the task of a process's first lane returns, which is the same for all its lanes."""
        team = self._hub.team
        return cast(T, self._exchange(task, lambda given: given[0](team)))

    def _exchange(self, value: Any, combine: Callable[[list[Any]], Any]) -> Any:
        return self._hub.exchange(self._place, value, combine)

    def _added(self, given: list[Tensor]) -> Tensor:
        """Σ along the tree of the flat tensors of this process's lanes, and of what the others bring."""
        import torch

        hub = self._hub
        first = {hub.first + place: value for place, value in enumerate(given)}
        own = {branch: _branch(first, *branch) for branch in _branches(hub.first, hub.first + hub.own, hub.count)}
        if hub.team.size == 1:
            return own[0, hub.count]
        rows = hub.team.gather(torch.stack(list(own.values())))
        everyone = [
            branch
            for rank in range(hub.team.size)
            for branch in _branches(*_range(rank, hub.team.size, hub.count), hub.count)
        ]
        return _trunk(dict(zip(everyone, rows, strict=True)), 0, hub.count)


def _range(rank: int, size: int, count: int) -> tuple[int, int]:
    """The first lane of a process, and the one after its last."""
    return rank * count // size, (rank + 1) * count // size


def _branches(begin: int, end: int, count: int) -> list[tuple[int, int]]:
    """The largest whole branches (first lane, one after the last) of the tree over `count` that cover this range."""
    found = []
    while begin < end:
        size = count if begin == 0 else begin & -begin
        while begin + size > end:
            size //= 2
        found.append((begin, begin + size))
        begin += size
    return found


def _branch(values: Mapping[int, Tensor], begin: int, end: int) -> Tensor:
    """Σ over a branch, half by half."""
    if end - begin == 1:
        return values[begin]
    middle = (begin + end) // 2
    return _branch(values, begin, middle) + _branch(values, middle, end)


def _trunk(branches: Mapping[tuple[int, int], Tensor], begin: int, end: int) -> Tensor:
    """The same from the sums of branches."""
    if (begin, end) in branches:
        return branches[begin, end]
    middle = (begin + end) // 2
    return _trunk(branches, begin, middle) + _trunk(branches, middle, end)
