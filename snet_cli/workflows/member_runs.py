"""The runs of an ensemble's models: each keeps a state of its own beside the output, from which `--resume` goes on.

m.h5.seed3.resume, m.h5.fold1.resume, and the ones before them: as `resume` describes them
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from snet_cli.data.options import CommonOptions
from snet_cli.errors import UsageError
from snet_cli.training.loop import Limits, Progress, RunState
from snet_cli.training.options import EnsembleOptions, FitOptions
from snet_cli.workflows.fit_data import FitData
from snet_cli.workflows.fit_task import FitTask, start_afresh
from snet_cli.workflows.metrics_file import MetricsFile
from snet_cli.workflows.reporter import Reporter
from snet_cli.workflows.resume import SavedRun, StateWriter, check_fit_output, find_state, fingerprint
from snet_cli.workflows.run_state import on_device
from snet_cli.workflows.run_writer import state_writer
from snet_cli.workflows.training_plan import Ingredients, Training
from snet_cli.workflows.training_setup import choose_model


class MemberName(NamedTuple):
    """``seed 3`` or ``fold 1``: what is different, and which."""

    kind: str
    number: int

    @property
    def words(self) -> str:
        """For people, and for the column of `--metrics`."""
        return f"{self.kind} {self.number}"

    def beside(self, output: str) -> str:
        """The path beside which its states lie."""
        return f"{output}.{self.kind}{self.number}"


def member_names(common: CommonOptions, ensemble: EnsembleOptions) -> list[MemberName]:
    """All members in order."""
    if ensemble.seeds is not None:
        return [MemberName("seed", seed) for seed in range(common.seed, common.seed + ensemble.seeds)]
    return [MemberName("fold", fold + 1) for fold in range(int(ensemble.folds or 0))]


def check_member_outputs(task: FitTask, ensemble: EnsembleOptions) -> None:
    """Refuse an output beside which a member's state could not be written, or lies already.

    Raises
    ------
    OutputError, UsageError
    """
    if task.metrics is not None and task.team.size > 1:
        raise UsageError("--metrics: the models are shared by several processes.", "Leave it out, or use one process.")
    if task.output != "-" and task.team.is_lead:
        for name in member_names(task.common, ensemble):
            check_fit_output(name.beside(task.output), task.force or task.resume)


def saved_members(task: FitTask, ensemble: EnsembleOptions) -> dict[MemberName, SavedRun]:
    """The states from which members can go on."""
    if not task.resume:
        return {}
    found = {
        name: find_state(name.beside(task.output), task.common.max_bytes, task.report)
        for name in member_names(task.common, ensemble)
    }
    saved = {name: state for name, state in found.items() if state is not None}
    if not saved:
        start_afresh(task)
    return saved


def member_key(
    options: FitOptions, common: CommonOptions, data: FitData, name: MemberName, folds: int | None, device: torch.device
) -> dict[str, Any]:
    """Everything that decides the course of a member's run (`resume.fingerprint`)."""
    key = fingerprint(options, common, device, choose_model(options, data.shell), data.parents)
    return key if folds is None else {**key, "fold": f"{name.number} of {folds}"}


@dataclass(frozen=True)
class MemberRun:
    """What concerns a member's run beside its training.

    Attributes
    ----------
    task : FitTask
    name : MemberName
    key : dict
        From `member_key`.
    saved : SavedRun or None
        The state that it goes on from.
    metrics : MetricsFile
        Of all members.
    """

    task: FitTask
    name: MemberName
    key: dict[str, Any]
    saved: SavedRun | None
    metrics: MetricsFile

    @property
    def begun(self) -> int:
        """Iterations that it has behind it."""
        return 0 if self.saved is None else self.saved.state.iteration

    def check(self, limits: Limits) -> None:
        """Refuse a state of other threads, or one past the limit, in the thread that goes on.

        Raises
        ------
        CheckpointError
        """
        if self.saved is not None:
            self.saved.check_threads(torch.get_num_threads())
            self.saved.check_limit(limits.iterations)

    def state(self, device: torch.device) -> RunState | None:
        """Where it goes on: a copy, because optimisers work in the arrays that they restore."""
        return None if self.saved is None else copy.deepcopy(on_device(self.saved.state, device))

    def writer(self, parts: Ingredients, training: Training, report: Reporter) -> StateWriter | None:
        """What keeps its states; None where the model goes to stdout."""
        task = self.task
        if task.output == "-":
            return None
        output = self.name.beside(task.output)
        return state_writer(output, task.checkpoint_every, parts, training, self.key, self.saved, report)

    def watch(self, progress: Progress) -> None:
        """Write its row of `--metrics`."""
        self.metrics.write(progress, self.name.words)


def open_metrics(task: FitTask, saved: dict[MemberName, SavedRun]) -> MetricsFile:
    """The file of all members; one that a resumed run goes on with keeps the rows that are not done again."""
    done = {name.words: state.state.iteration for name, state in saved.items()}
    return MetricsFile.open(task.metrics, task.force, done if task.resume and saved else None, several=True)
