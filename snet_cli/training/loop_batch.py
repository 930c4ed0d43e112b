"""The training loop of several models in step (`delta_batch`): each ends when it would end alone, the rest go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from snet_cli.distributed import ALONE
from snet_cli.training.delta import Delta
from snet_cli.training.delta_batch import DeltaBatch
from snet_cli.training.loop import Course, FitResult, Limits, Progress, RunState, Save, Status, keep_nothing


class Together(NamedTuple):
    """Progress of the first of the models that are left, and how many those are."""

    progress: Progress
    left: int


class Upkeep(NamedTuple):
    """What is done for one of the models beside its training.

    Attributes
    ----------
    resume : RunState, optional
        Where it goes on.
    save : Save
        As of `loop.run`.
    watch : callable
        Called after every iteration of it.
    """

    resume: RunState | None = None
    save: Save = keep_nothing
    watch: Callable[[Progress], None] = lambda progress: None


@dataclass
class _Run:
    """One model's course, how it ended, and its share of the time."""

    course: Course
    method: Delta
    upkeep: Upkeep
    status: Status | None = None
    seconds: float = 0.0

    def save(self, batch: DeltaBatch, *, last: bool) -> None:
        """Offer the state, which the batch has."""

        def save(iteration: int, state: Callable[[], RunState], *, last: bool) -> None:
            def whole() -> RunState:
                batch.hand_back(self.method)
                return state()

            self.upkeep.save(iteration, whole, last=last)

        self.course.begin = self.course.clock() - self.seconds
        self.course.save(save, last=last)

    def result(self, now: float) -> FitResult:
        assert self.status is not None
        self.course.begin = now - self.seconds
        return self.course.result(self.status)


def run_in_step(
    methods: Sequence[Delta],
    limits: Sequence[Limits],
    upkeep: Sequence[Upkeep] | None = None,
    report: Callable[[Together], None] = lambda together: None,
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
) -> list[FitResult]:
    """What `loop.run` gives for each method, trained in one batch.

    Parameters
    ----------
    methods : sequence of Delta
        As of `DeltaBatch`, at least one.
    limits : sequence of Limits
        Of each.
    upkeep : sequence of Upkeep, optional
        Of each.
    report : callable
        Called after every iteration.
    should_stop, clock : callable
        As of `loop.run`.

    Returns
    -------
    list of FitResult
        `seconds` is a model's share of the time.
    """
    runs = [
        _Run(Course(method, limit, own.resume, clock, ALONE), method, own, seconds=_seconds(own))
        for method, limit, own in zip(methods, limits, upkeep or [Upkeep()] * len(methods), strict=True)
    ]
    batch, left = DeltaBatch(methods), runs
    while True:
        before, stopped = clock(), should_stop()
        for run in left:
            late: Status | None = "max-time" if before >= run.course.limits.deadline else None
            run.status = run.course.ended() or ("stopped" if stopped else late)
            run.save(batch, last=run.status is not None)
        rows = [row for row, run in enumerate(left) if run.status is None]
        if not rows:
            return [run.result(clock()) for run in runs]
        if len(rows) < len(left):  # models that are done cost nothing more
            batch.keep(rows)
            left = [left[row] for row in rows]
        before = clock()
        steps = batch.step()
        each = (clock() - before) / len(left)
        progress = [run.course.after(step, each) for run, step in zip(left, steps, strict=True)]
        for run, own in zip(left, progress, strict=True):
            run.seconds += (clock() - before) / len(left)
            if own is not None:
                run.upkeep.watch(own)
        if progress[0] is not None:
            report(Together(progress[0], len(left)))


def _seconds(of: Upkeep) -> float:
    """Time that the model has had already."""
    return 0.0 if of.resume is None else of.resume.seconds
