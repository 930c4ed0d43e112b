"""The train rollout MSE while a method trains, measured with the clock stopped: the loss that methods have in common.

Rule: the model is rolled out over the training data after about 15 iterations that are evenly spread on a logarithmic
axis, after those whose model is kept for a picture, and, with a target, at least whenever the number of iterations has
grown by 5 %: the iteration at which a method reaches the target is found that closely.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from snet_cli.integration import Tolerances
from snet_cli.models.base import Model
from snet_cli.training.loop import Progress
from snet_cli.workflows.compare_store import CurvePoint
from snet_cli.workflows.honest_end import RolloutScore

TRACKED = Tolerances(rtol=1e-6, atol=1e-8)
"""Of the rollouts that only show how a method learns, dozens of them: learning curves and pictures need no more."""

POINTS = 15

TARGET_GROWTH = 1.05


class Stopwatch:
    """A clock that can stand still."""

    def __init__(self) -> None:
        self._away = 0.0

    def __call__(self) -> float:
        """Seconds, those that were stopped left out."""
        return time.perf_counter() - self._away

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Inside, no time passes."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self._away += time.perf_counter() - since


def tracked_iterations(limit: int, target: bool) -> set[int]:
    """Iterations after which the train rollout MSE is measured."""
    chosen = {round(limit ** (k / (POINTS - 1))) for k in range(POINTS)}
    iteration = 1
    while target and iteration <= limit:
        chosen.add(iteration)
        iteration = max(iteration + 1, int(iteration * TARGET_GROWTH))
    return chosen


class Tracker:
    """Collects the learning curve, and says when the target is reached.

    Parameters
    ----------
    model : Model
        The one that is trained.
    score : callable
        Rolls it out over the training data.
    clock : Stopwatch
    limit : int
        Most iterations.
    target : float or None
        Train rollout MSE that is enough, of all trajectories.
    snapshots : tuple of int
        Iterations whose weights are kept.
    """

    def __init__(
        self,
        model: Model,
        score: Callable[[], RolloutScore],
        clock: Stopwatch,
        limit: int,
        target: float | None = None,
        snapshots: tuple[int, ...] = (),
    ) -> None:
        self.model, self.score, self.clock, self.target = model, score, clock, target
        self.wanted = tracked_iterations(limit, target is not None) | set(snapshots)
        self.kept = set(snapshots)
        self.points: list[CurvePoint] = []
        self.snapshots: dict[int, dict[str, Any]] = {}

    def __call__(self, progress: Progress) -> bool:
        """Take note of an iteration; true where the target is reached."""
        point = CurvePoint(progress.iteration, progress.seconds, progress.total)
        if progress.iteration not in self.wanted:
            self.points.append(point)
            return False
        with self.clock.stopped():
            if progress.iteration in self.kept:
                self.snapshots[progress.iteration] = deepcopy(self.model.state_dict())
            score = self.score()
        self.points.append(point._replace(train_mse=score.mse, train_diverged=score.diverged))
        if self.target is None or score.mse is None:
            return False
        return score.diverged == 0 and score.mse <= self.target
