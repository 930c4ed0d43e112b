"""The training loop of several models in step (`delta_batch`): each ends when it would end alone, the rest go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from snet_cli.distributed import ALONE
from snet_cli.training.delta import Delta
from snet_cli.training.delta_batch import DeltaBatch
from snet_cli.training.loop import Course, FitResult, Limits, Progress, Status


class Together(NamedTuple):
    """Progress of the first of the models that are left, and how many those are."""

    progress: Progress
    left: int


@dataclass
class _Run:
    """One model's course, how it ended, and its share of the time."""

    course: Course
    status: Status | None = None
    seconds: float = 0.0

    def result(self, now: float) -> FitResult:
        assert self.status is not None
        self.course.begin = now - self.seconds
        return self.course.result(self.status)


def run_in_step(
    methods: Sequence[Delta],
    limits: Sequence[Limits],
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
    report : callable
        Called after every iteration.
    should_stop, clock : callable
        As of `loop.run`.

    Returns
    -------
    list of FitResult
        `seconds` is a model's share of the time.
    """
    runs = [_Run(Course(method, limit, None, clock, ALONE)) for method, limit in zip(methods, limits, strict=True)]
    batch, left = DeltaBatch(methods), runs
    while True:
        before, stopped = clock(), should_stop()
        for run in left:
            late: Status | None = "max-time" if before >= run.course.limits.deadline else None
            run.status = run.course.ended() or ("stopped" if stopped else late)
        rows = [row for row, run in enumerate(left) if run.status is None]
        if not rows:
            return [run.result(clock()) for run in runs]
        if len(rows) < len(left):  # models that are done cost nothing more
            batch.keep(rows)
            left = [left[row] for row in rows]
        steps = batch.step()
        each = (clock() - before) / len(left)
        progress = [run.course.after(step, each) for run, step in zip(left, steps, strict=True)]
        for run in left:
            run.seconds += (clock() - before) / len(left)
        if progress[0] is not None:
            report(Together(progress[0], len(left)))
