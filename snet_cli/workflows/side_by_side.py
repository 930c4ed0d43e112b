"""Models that cannot train in one batch, side by side on the cores of a machine: a thread and a core for each.

A step of `joint` or α-SNet is products and factorisations of matrices, during which Python lets other threads run. A
core for each model does more than all cores for one after the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from snet_cli.data.options import CommonOptions
from snet_cli.models.base import Model
from snet_cli.models.user import UserModel
from snet_cli.training.arrow import DEFAULT_MEMORY
from snet_cli.workflows.memory_limits import free_memory
from snet_cli.workflows.reporter import Reporter, Tick
from snet_cli.workflows.resources import cores_of

MEMORY_SHARE = 0.5
"""Share of the free memory for models that train at the same time."""

Built = TypeVar("Built")
Result = TypeVar("Result")


def models_beside(common: CommonOptions, model: Model, device: torch.device, processes: int) -> int:
    """How many models train at the same time in this process.

    One where `--max-memory` leaves all of it to a model, on a GPU, and for modules of the user's own, which may draw
    from torch's one generator.

    Parameters
    ----------
    processes : int
        Of this machine, which share its cores.
    """
    if common.max_memory is not None or device.type != "cpu" or isinstance(model, UserModel):
        return 1
    cores = common.threads or cores_of(processes)
    return max(min(cores, int(MEMORY_SHARE * free_memory(common) / processes / DEFAULT_MEMORY)), 1)


def side_by_side(
    built: Iterable[Built],
    count: int,
    train: Callable[[Built, Reporter, float], Result],
    report: Reporter,
    end: float,
    workers: int,
) -> list[Result]:
    """What `train` returns for each of so many, in order; one is asked for when a core is free for it.

    Parameters
    ----------
    built : iterable
        Gone through in this thread.
    train : callable
        Of what was built, where to report, and the reading of `time.perf_counter` at which it must be done.
    end : float
        When all must be done; each gets an equal share of the time.
    workers : int
    """
    if workers == 1 or count == 1:
        return [train(one, report, _share(end, count - done)) for done, one in enumerate(built)]
    width = torch.get_num_threads()
    running: dict[Future[Result], int] = {}
    results: dict[int, Result] = {}
    failed = False

    def collect() -> None:
        nonlocal failed
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            number = running.pop(future)
            failed = failed or future.exception() is not None
            results[number] = future.result()

    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for number, one in enumerate(built):
                rounds = math.ceil((count - number) / workers)
                beside = _Beside(report, lambda: failed, shows=number % workers == 0)
                running[pool.submit(train, one, beside, _share(end, rounds))] = number
                while len(running) >= workers:
                    collect()
            while running:
                collect()
        except BaseException:
            failed = True  # those that still run stop at their next iteration
            raise
        finally:
            torch.set_num_threads(width)  # some libraries have one number for all threads
    return [results[number] for number in range(count)]


def _share(end: float, rounds: int) -> float:
    now = time.perf_counter()
    return now + (end - now) / rounds


class _Beside:
    """The reporter of one of several models: all may speak, one shows how far it is."""

    def __init__(self, report: Reporter, failed: Callable[[], bool], *, shows: bool) -> None:
        self._report, self._failed, self._shows = report, failed, shows

    def note(self, text: str) -> None:
        """As the reporter of all."""
        self._report.note(text)

    def detail(self, text: str) -> None:
        """As the reporter of all."""
        self._report.detail(text)

    def progress(self, tick: Tick) -> None:
        """Of one only: lines that alternate between models tell nothing."""
        if self._shows:
            self._report.progress(tick)

    def should_stop(self) -> bool:
        """Also where another model has failed."""
        return self._failed() or self._report.should_stop()
