"""Several processes, connected by `torch.distributed`: their sums, and what one of them tells the others.

`torchrun` (or anything that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT) starts them. What travels is numbers
and JSON, never a pickle.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from snet_cli.distributed.alone import ALONE, Alone
from snet_cli.distributed.place import Place, place_in
from snet_cli.errors import ProcessLostError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

LIMIT = 600.0
"""Seconds that a rank waits for the others. A process that dies closes its connections, which is noticed at once; this
is for a machine that vanishes, and must outlast the longest work that one rank does alone (writing a large file)."""

POLL = 0.02
"""Seconds between two looks whether all processes have come."""

LINGER = 1.0
"""Seconds that an error of the rank with the store leaves the others to see that it is told already."""

SPOKEN = "spoken"
"""Key of the store that counts the ranks that had an error to tell: the first one tells it."""


class Processes:
    """The processes of one task.

    Parameters
    ----------
    place : Place
    store : torch.distributed.Store
        Of this start of the processes.
    device : torch.device
        Where large sums are formed: the CPU under gloo, this rank's GPU under nccl.
    """

    lanes = 1

    def __init__(self, place: Place, store: Any, device: torch.device) -> None:
        self.place, self.store, self.device = place, store, device
        self.rank, self.size, self.is_lead = place.rank, place.size, place.rank == 0
        self.recorded = place.size
        self.hosts_store = self.is_lead and not place.in_launcher

    def sum(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Σ over the ranks of each tensor, in one message; the same bits on every rank, formed in float64."""
        import torch
        import torch.distributed as dist

        flat = torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors]).to(self.device)
        self._call(lambda: dist.all_reduce(flat))
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        # copies: products of a view that is aligned otherwise have other last digits, and a resumed run has copies
        return tuple(
            part.view(tensor.shape).to(tensor.device, tensor.dtype, copy=True)
            for part, tensor in zip(parts, tensors, strict=True)
        )

    def total(self, *numbers: float) -> tuple[float, ...]:
        """Σ over the ranks of each number."""
        return self._reduced(numbers, "SUM")

    def largest(self, *numbers: float) -> tuple[float, ...]:
        """The largest of each number on any rank."""
        return self._reduced(numbers, "MAX")

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each flag is set on any rank."""
        return tuple(value > 0 for value in self._reduced([float(flag) for flag in flags], "MAX"))

    def before(self, count: int) -> int:
        """Σ of the counts of the ranks before this one: where its part begins in the whole."""
        return sum(self._counts(count)[: self.rank])

    def gather(self, part: Tensor) -> Tensor:
        """The parts (k, ...) of all ranks one after the other, on every rank."""
        import torch
        import torch.distributed as dist

        counts = self._counts(part.shape[0])
        room = _padded(part, max(counts))
        parts = [torch.empty_like(room) for _ in counts]
        self._call(lambda: dist.all_gather(parts, room))
        return _joined(parts, counts, part)

    def collect(self, part: Tensor) -> Tensor:
        """The parts (k, ...) of all ranks one after the other, on the lead; its own part on every other rank."""
        import torch
        import torch.distributed as dist

        counts = self._counts(part.shape[0])
        room = _padded(part, max(counts))
        parts = [torch.empty_like(room) for _ in counts] if self.is_lead else None
        self._call(lambda: dist.gather(room, parts, dst=0))
        return part if parts is None else _joined(parts, counts, part)

    def own(self, whole: Tensor, count: int) -> Tensor:
        """Of what `gather` would join, the `count` rows that are this rank's."""
        begin = self.before(count)
        return whole[begin : begin + count].clone()  # aligned as an array of its own, or sums have other last digits

    def from_lead(self, value: T) -> T:
        """The lead's value, JSON-able; to the last bit."""
        text = json.dumps(value).encode() if self.is_lead else b""
        result: T = json.loads(self.bytes_from_lead(text))
        return result

    def bytes_from_lead(self, content: bytes) -> bytes:
        """What the lead calls this with; the others' argument does not count."""
        return self._bytes_from(0, content)

    def bytes_of_all(self, content: bytes) -> list[bytes]:
        """What each rank calls this with, on every rank."""
        return [self._bytes_from(rank, content) for rank in range(self.size)]

    def _bytes_from(self, rank: int, content: bytes) -> bytes:
        import torch
        import torch.distributed as dist

        (length,) = self.total(float(len(content) if self.rank == rank else 0))
        room = torch.zeros(int(length), dtype=torch.uint8)
        if self.rank == rank:
            room = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        self._call(lambda: dist.broadcast(room, src=rank))
        return room.numpy().tobytes()

    def align(self, tensors: list[Tensor]) -> None:
        """Set the tensors to those of the lead: machines of different kinds round differently."""
        import torch
        import torch.distributed as dist

        if not tensors:
            return
        with torch.no_grad():
            flat = torch.cat([tensor.reshape(-1).double() for tensor in tensors]).to(self.device)
            self._call(lambda: dist.broadcast(flat, src=0))
            for tensor, values in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
                tensor.copy_(values.view(tensor.shape))

    def require_same(self, what: Mapping[str, str]) -> None:
        """Refuse to go on where a rank has other files or options than the lead.

        Parameters
        ----------
        what : mapping of str to str
            What has to agree by its name: sha256 of a file, an option.

        Raises
        ------
        UsageError
            On every rank; it names the first that differs.
        """
        lead = self.from_lead(dict(what))
        mine = next((name for name in {**lead, **what} if lead.get(name) != what.get(name)), None)
        (last,) = self.largest(-math.inf if mine is None else float(self.size - self.rank))
        if last == -math.inf:
            return
        first = self.size - int(last)
        told = {} if mine is None else {"name": mine, "here": what.get(mine), "there": lead.get(mine)}
        found = json.loads(self._bytes_from(first, json.dumps(told).encode()))
        raise UsageError(
            f"rank {first} has another {found['name']} than rank 0: {found['here']}, not {found['there']}.",
            "All processes need the same files and options; put the files where every machine sees them.",
        )

    def require_files(self, *paths: str) -> None:
        """Refuse to read a standard input, which is one for all processes. Not collective.

        Raises
        ------
        UsageError
        """
        if "-" in paths:
            raise UsageError(f"{self.size} processes cannot read one standard input.", "Name a file.")

    def may_speak(self) -> bool:
        """Whether this rank is the first with an error to tell. Not collective: the others may be gone."""
        try:
            number = int(self.store.add(SPOKEN, 1))
            end = time.monotonic() + LINGER
            while self.hosts_store and int(self.store.add(SPOKEN, 0)) < self.size and time.monotonic() < end:
                time.sleep(POLL)
        except RuntimeError:  # the store is gone with its machine: better told twice than not at all
            return True
        return number == 1

    def once(self, task: Callable[[Processes], T]) -> T:
        """What the task returns; every process runs it."""
        return task(self)

    def _reduced(self, numbers: Any, operation: str) -> tuple[float, ...]:
        import torch
        import torch.distributed as dist

        values = torch.tensor(numbers, dtype=torch.float64)
        self._call(lambda: dist.all_reduce(values, op=getattr(dist.ReduceOp, operation)))
        return tuple(values.tolist())

    def _counts(self, count: int) -> list[int]:
        """Every rank's count."""
        import torch
        import torch.distributed as dist

        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        self._call(lambda: dist.all_gather(counts, torch.tensor([count])))
        return [int(one) for one in counts]

    def _call(self, operation: Callable[[], object]) -> None:
        """Run a collective operation; a lost connection or a rank that does not come is an error of its own."""
        try:
            operation()
        except RuntimeError as error:
            reason = "did not answer in time" if "imed out" in str(error) or "imeout" in str(error) else "has ended"
            raise ProcessLostError(
                f"one of the {self.size} processes {reason}; rank {self.rank} stops.",
                "The state of a fit is kept: go on with the same command and --resume, on any number of processes.",
            ) from error


@contextmanager
def joined_processes(
    device: str = "cpu", limit: float = LIMIT, environment: Mapping[str, str] | None = None
) -> Iterator[Alone | Processes]:
    """The processes that the launcher started, this one among them; `Alone` where it started one or there is none.

    Parameters
    ----------
    device : {"cpu", "cuda"}
        Where sums are formed: gloo adds on the CPU, nccl on the GPUs.
    limit : float
        Seconds that a rank waits for the others.

    Raises
    ------
    UsageError
        If torch was built without what this needs, or there are fewer GPUs than processes.
    ProcessLostError
        If not all processes come.
    """
    place = place_in(os.environ if environment is None else environment)
    if place.size == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    _require_backends(place, device)
    environment = os.environ if environment is None else environment
    try:
        with _ended_by_signals():
            store = _store(place, environment, limit)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
                store=store,
                rank=place.rank,
                world_size=place.size,
                timeout=timedelta(seconds=limit),
            )
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ProcessLostError(
            f"rank {place.rank} did not find the {place.size - 1} others: {reason}.",
            "Start all processes with torchrun; on several machines give each the same --rdzv-endpoint.",
        ) from error
    team = Processes(place, store, torch.device("cuda", place.local_rank) if device == "cuda" else torch.device("cpu"))
    yield team
    dist.destroy_process_group()  # not after an error: the others may be waiting, and the end of the process tells them


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Until the processes have found each other a signal ends this one at once.

    What waits here is not Python, in which handlers run, and nobody closes a connection that is not there yet: where
    one process dies, the launcher's signal is all that ends the others. Nothing has been written by then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _store(place: Place, environment: Mapping[str, str], limit: float) -> Any:
    """Where the processes meet, once all have come.

    Raises
    ------
    RuntimeError
    """
    import torch.distributed as dist

    store: Any = dist.TCPStore(  # type: ignore[attr-defined]
        environment["MASTER_ADDR"],
        int(environment["MASTER_PORT"]),
        is_master=place.rank == 0 and not place.in_launcher,
        timeout=timedelta(seconds=limit),
        wait_for_workers=False,
        multi_tenant=True,
    )
    store = dist.PrefixStore(f"snet/attempt_{place.restarts}", store)  # type: ignore[attr-defined]
    store.add("arrived", 1)
    end = time.monotonic() + limit
    while (come := int(store.add("arrived", 0))) < place.size:
        if time.monotonic() > end:
            raise RuntimeError(f"only {come} of {place.size} processes have come")
        time.sleep(POLL)
    return store


def _require_backends(place: Place, device: str) -> None:
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_gloo_available()):
        raise UsageError("this torch was built without gloo, which several processes need.", "Use one process.")
    if device == "cuda":
        if not dist.is_nccl_available():
            raise UsageError(
                "this torch was built without nccl, which several processes on GPUs need.",
                "Use --device cpu, or one process.",
            )
        if place.local_size > torch.cuda.device_count():
            raise UsageError(
                f"{place.local_size} processes on this machine, which has {torch.cuda.device_count()} CUDA device(s).",
                "Start one process for each, or use --device cpu.",
            )


def _padded(part: Tensor, rows: int) -> Tensor:
    """The part on the CPU, as bytes travel, with rows of zeros behind it."""
    import torch

    plain = part.detach().cpu()
    plain = plain.to(torch.uint8) if plain.dtype == torch.bool else plain
    room = torch.zeros(rows, *plain.shape[1:], dtype=plain.dtype)
    room[: plain.shape[0]] = plain
    return room


def _joined(parts: list[Tensor], counts: list[int], like: Tensor) -> Tensor:
    import torch

    whole = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return whole.to(like.device, like.dtype)
