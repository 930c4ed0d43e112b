"""The runs of an ensemble's models: each keeps a state of its own beside the output, from which `--resume` goes on.

m.h5.seed3.resume, m.h5.fold1.resume, and the ones before them: as `resume` describes them
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from snet_cli.data.options import CommonOptions
from snet_cli.errors import UsageError
from snet_cli.training.loop import Limits, Progress, RunState
from snet_cli.training.options import EnsembleOptions
from snet_cli.workflows.fit_data import FitData
from snet_cli.workflows.fit_task import FitTask, start_afresh
from snet_cli.workflows.metrics_file import MetricsFile, check_metrics
from snet_cli.workflows.reporter import Reporter
from snet_cli.workflows.resume import SavedRun, StateWriter, check_states, find_state, fingerprint, state_path
from snet_cli.workflows.run_state import on_device
from snet_cli.workflows.run_writer import state_writer
from snet_cli.workflows.training_plan import Ingredients, Training
from snet_cli.workflows.training_setup import choose_model

STATE_NAME = r"\.(seed|fold)\d+\.resume(\.previous)?"
"""What follows the output's name in that of a member's state."""


class MemberName(NamedTuple):
    """``seed 3`` or ``fold 1``: what is different, and which."""

    kind: str
    number: int

    @property
    def words(self) -> str:
        """For people, and for the column of `--metrics`."""
        return f"{self.kind} {self.number}"

    def seeded(self, common: CommonOptions) -> CommonOptions:
        """The common options with its own seed, where that is what differs."""
        return common.model_copy(update={"seed": self.number}) if self.kind == "seed" else common

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
    if task.output == "-" or not task.team.is_lead:
        return
    outputs = [name.beside(task.output) for name in member_names(task.common, ensemble)]
    for output in outputs:
        check_states(output, task.force or task.resume)
    if task.metrics is not None:
        check_metrics(task.metrics, *outputs)


def saved_members(task: FitTask, ensemble: EnsembleOptions) -> dict[MemberName, SavedRun]:
    """The states from which members can go on; those of an earlier run that is not to go on give way.

    Raises
    ------
    CheckpointError, OutputError, UsageError
        If one cannot be read, if a model would be overwritten, or if the processes see different states.
    """
    names, saved = member_names(task.common, ensemble), {}
    if task.resume:
        found = {name: find_state(name.beside(task.output), task.common.max_bytes, task.report) for name in names}
        saved = {name: state for name, state in found.items() if state is not None}
        if not saved:
            start_afresh(task, state_path(names[0].beside(task.output)))
    elif task.team.is_lead and task.output != "-":
        _discard_states(task.output)
    # also so that none begins before the lead has discarded
    seen = {name: f"iteration {saved[name].state.iteration}" if name in saved else "none" for name in names}
    task.team.require_same({f"state of {name.words}": state for name, state in seen.items()})
    return saved


def _discard_states(output: str) -> None:
    """Remove the states of all members, of more seeds or folds than now as well."""
    folder, own = Path(output).parent, re.compile(re.escape(Path(output).name) + STATE_NAME)
    for path in folder.iterdir():
        if own.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def member_keys(
    task: FitTask,
    data: FitData,
    ensemble: EnsembleOptions,
    device: torch.device,
    saved: Mapping[MemberName, SavedRun],
) -> dict[MemberName, dict[str, Any]]:
    """Everything that decides the course of each member's run (`resume.fingerprint`).

    Raises
    ------
    CheckpointError
        If a state is of another one.
    """
    choice, keys = choose_model(task.options, data.shell), {}
    for name in member_names(task.common, ensemble):
        key = fingerprint(task.options, name.seeded(task.common), device, choice, data.parents)
        keys[name] = key if ensemble.folds is None else {**key, "fold": f"{name.number} of {ensemble.folds}"}
        if name in saved:
            saved[name].check_fits(keys[name])
    return keys


def finished_members(
    task: FitTask, saved: Mapping[MemberName, SavedRun], wanted: int, limits: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The result of an ensemble of so many models that needs nothing more under these limits."""
    results = [state.finished(limits, task.output) for state in saved.values()]
    if len(results) < wanted or any(result is None for result in results):
        return None
    task.report.note("all models had finished; nothing is left to do.")
    return results[0]


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
    writers : list of StateWriter
        Of all members that have begun in this process.
    """

    task: FitTask
    name: MemberName
    key: dict[str, Any]
    saved: SavedRun | None
    metrics: MetricsFile
    writers: list[StateWriter]

    @property
    def begun(self) -> int:
        """Steps that its optimiser has behind it."""
        if self.saved is None:
            return 0
        state = self.saved.state
        return int(state.buffers.get("evaluations", torch.tensor(state.iteration)))

    def check(self, limits: Limits, report: Reporter) -> None:
        """Refuse a state past the limit; say, in the thread that goes on, where its sums will have another order.

        How many threads a model has, nobody chooses: it depends on how many models train beside it.

        Raises
        ------
        CheckpointError
        """
        if self.saved is None:
            return
        self.saved.check_limit(limits.iterations)
        was, now = self.saved.about["threads"], torch.get_num_threads()
        if was != now:
            report.note(f"{self.name.words} had {was} thread(s), and goes on with {now}: other last digits.")

    def state(self, device: torch.device) -> RunState | None:
        """Where it goes on: a copy, because optimisers work in the arrays that they restore."""
        return None if self.saved is None else copy.deepcopy(on_device(self.saved.state, device))

    def writer(self, parts: Ingredients, training: Training, report: Reporter) -> StateWriter | None:
        """What keeps its states; None where the model goes to stdout."""
        task = self.task
        if task.output == "-":
            return None
        output = self.name.beside(task.output)
        writer = state_writer(output, task.checkpoint_every, parts, training, self.key, self.saved, report)
        self.writers.append(writer)
        return writer

    def watch(self, progress: Progress) -> None:
        """Write its row of `--metrics`."""
        self.metrics.write(progress, self.name.words)


def open_metrics(task: FitTask, saved: Mapping[MemberName, SavedRun]) -> MetricsFile:
    """The file of all members; one that a resumed run goes on with keeps the rows that are not done again."""
    done = {name.words: state.state.iteration for name, state in saved.items()}
    return MetricsFile.open(task.metrics, task.force, done if task.resume and saved else None, several=True)
