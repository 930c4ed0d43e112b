"""The state of a run beside its output, from which `snet fit --resume` goes on bit for bit.

    m.h5.resume             the newest state
    m.h5.resume.previous    the one before it

A state is a checkpoint of kind "resume" (`data.checkpoint_file`): the weights, what the method remembers, the last and
the best θ, the generators, the history, and what the set-up settled at a cost or by the clock (step 0, a searched γ),
so that a resumed run neither repeats nor changes it. It fits a run whose options, data, versions and threads are the
same; limits (iterations, tolerance, time) may differ, so that a finished run can be extended.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from snet_cli.config.scalars import flow
from snet_cli.data.options import CommonOptions, parse_interval
from snet_cli.data.outputs import check_output, require_room, write_atomic
from snet_cli.data.storage import display
from snet_cli.distributed import ALONE, Team
from snet_cli.errors import CheckpointError, OutputError
from snet_cli.training.lbfgs import PAIRS
from snet_cli.training.loop import RunState
from snet_cli.training.options import FitOptions
from snet_cli.training.step_zero import StepZero
from snet_cli.workflows.provenance import provenance
from snet_cli.workflows.reporter import Reporter
from snet_cli.workflows.run_state import load_state
from snet_cli.workflows.training_setup import ModelChoice

LIMITS = frozenset({"iterations", "tolerance", "max_time"})
"""Options that may change when a run goes on."""

SAVING_SHARE = 0.05
"""Most of the time that writing states may take: large ones are written less often than asked for in seconds."""

COPIES = 3
"""States on the disk at once: the current one, the one before, and the temporary file of the next."""

OVER = "Start over with --force, or give the run another -o."


def state_path(output: str) -> str:
    """Name of the newest state of this output's run."""
    return f"{output}.resume"


def previous_path(output: str) -> str:
    """Name of the state before it."""
    return f"{output}.resume.previous"


def check_fit_output(output: str, force: bool) -> None:
    """Refuse an output that could not be written with its state beside it, or of which one exists without `force`.

    Raises
    ------
    OutputError
    """
    if output == "-":
        return
    _require_no_state(output, force)
    for path in (output, state_path(output), previous_path(output)):
        check_output(path, force)


def check_states(output: str, force: bool) -> None:
    """The same of the states alone.

    Raises
    ------
    OutputError
    """
    _require_no_state(output, force)
    for path in (state_path(output), previous_path(output)):
        check_output(path, force)


def _require_no_state(output: str, force: bool) -> None:
    there = [path for path in (state_path(output), previous_path(output)) if os.path.lexists(path)]
    if there and not force:
        raise OutputError(
            f"{display(there[0])}: exists already, the state of an earlier run.",
            "Go on with it: --resume; start over: --force; or choose another -o.",
        )


# What a state must agree with


STATES = 4
"""Of what methods keep in a state; raised when one of them keeps something else, which an older state does not hold."""


def fingerprint(
    options: FitOptions, common: CommonOptions, device: torch.device, choice: ModelChoice, parents: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that decides the course of a run, but for its limits and its number of threads.

    Parameters
    ----------
    choice : ModelChoice
        What the option `model` came to.
    parents : mapping of str to str
        sha256 of the data files.
    """
    left_out = LIMITS | {"model"} | ({"validation"} if "validation" in parents else set())
    record = provenance("fit", {}, parents=parents)
    text = None if choice.source is None else choice.source.text.encode("utf-8", "surrogateescape")
    tree = {
        **options.model_dump(mode="json", exclude=set(left_out)),
        "model": choice.tree,
        "model file": None if text is None else hashlib.sha256(text).hexdigest(),
        "seed": common.seed,
        "dtype": common.dtype,
        "device": device.type,
        "data": dict(parents),
        "version": {"snet": record["snet"], "states": STATES, **record["versions"]},
    }
    result: dict[str, Any] = json.loads(json.dumps(tree))
    return result


@dataclass(frozen=True)
class SavedRun:
    """A state that was read.

    Attributes
    ----------
    path : str
    newest : bool
        Whether it is the current file, not the one before.
    size : int
        Bytes of the file.
    about : dict
        ``run`` (fingerprint), ``method`` (the one that was used), ``threads`` and ``processes``, ``settled``
        (`Training.settled`), ``finished`` (null, or limits, result and the output's sha256).
    state : RunState
        On the CPU.
    step_zero : StepZero
    """

    path: str
    newest: bool
    size: int
    about: dict[str, Any]
    state: RunState
    step_zero: StepZero

    def check_fits(self, run: Mapping[str, Any]) -> None:
        """Refuse to go on under another configuration, on other data or with other versions.

        Raises
        ------
        CheckpointError
        """
        own = dict(self.about["run"])
        if run["method"] == self.about["method"]:  # what `auto` came to, now by name
            own["method"] = run["method"]
        for name, was, is_now in _differences(own, run):
            self._refuse(name, was, is_now)

    @property
    def processes(self) -> int:
        """How many processes the run had; a state holds what all of them had, so that others may go on."""
        return int(self.about["processes"])

    def check_threads(self, threads: int | None, processes: int = 1) -> None:
        """Refuse another number of threads: sums in another order have other last digits.

        Another number of processes, which has them too, is a choice that nobody makes by oversight.

        Raises
        ------
        CheckpointError
        """
        if processes != self.processes:
            return
        if threads is not None and threads != self.about["threads"]:
            raise CheckpointError(
                f"{display(self.path)}: was made with {self.about['threads']} thread(s), this run has {threads}.",
                f"Add --threads {self.about['threads']}.",
            )

    def check_limit(self, iterations: int) -> None:
        """Refuse a limit that the run has passed: the model of that iteration is gone.

        Raises
        ------
        CheckpointError
        """
        if self.state.iteration > iterations:
            raise CheckpointError(
                f"{display(self.path)}: the run is at iteration {self.state.iteration}, past the limit of "
                f"{iterations}.",
                f"Give --iterations {self.state.iteration} or more. {OVER}",
            )

    def finished(self, limits: Mapping[str, Any], output: str) -> dict[str, Any] | None:
        """The result of the run if it ended under these limits and its model is still there, untouched."""
        end = self.about["finished"]
        if end is None or end["limits"] != dict(limits):
            return None
        with suppress(OSError):
            if hashlib.sha256(Path(output).read_bytes()).hexdigest() == end["sha256"]:
                return dict(end["result"])
        return None

    def _refuse(self, name: str, was: Any, is_now: Any) -> None:
        if name.startswith("data."):
            reason = f"other data: the {name.removeprefix('data.')} file differs from that of the run"
        elif name.startswith("version."):
            reason = f"{name.removeprefix('version.')} was {flow(was)}, here it is {flow(is_now)}"
        else:
            reason = f"another configuration: {name} was {flow(was)}, here it is {flow(is_now)}"
        raise CheckpointError(f"{display(self.path)}: does not fit this run: {reason}.", OVER)


def _differences(was: Mapping[str, Any], is_now: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted name and both values of everything that differs."""
    for key in dict.fromkeys([*was, *is_now]):
        a, b = was.get(key), is_now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{within}{key}.")
        elif a != b:
            yield f"{within}{key}", a, b


# Reading


def find_state(output: str, max_bytes: int, report: Reporter) -> SavedRun | None:
    """The newest state that can be read; None where there is none. A damaged one is passed over with a note.

    Raises
    ------
    CheckpointError
        If there are states and none can be read.
    """
    failure: CheckpointError | None = None
    for path in (state_path(output), previous_path(output)):
        newest = path == state_path(output)
        if not os.path.lexists(path):
            continue
        try:
            saved = SavedRun(path, newest, *load_state(path, max_bytes))
        except CheckpointError as error:
            failure = failure or error
            continue
        if not newest:
            why = "is missing" if failure is None else f"cannot be read ({failure.message})"
            report.note(f"{display(state_path(output))} {why}; going on from {display(path)}.")
        return saved
    if failure is not None:
        raise CheckpointError(failure.message, OVER)
    return None


# Writing


class StateWriter:
    """Keeps the state of a run on the disk: the `Save` of its loop.

    The first state is written before the first iteration, so that whatever happens then, one command goes on; the
    last one when the run ends. A state in between that cannot be written (a full disk) is a note, and training goes
    on; what cannot be written at the end is an error, once the model is written.

    Parameters
    ----------
    output : str
    every : str
        ``60s`` or ``100it``.
    encode : callable
        From a state, and the `finished` of `SavedRun.about`, to bytes.
    growth : int
        Bytes by which a state may grow while the run goes on.
    saved : SavedRun, optional
        The state that this run goes on from.
    report : Reporter
    team : Team
        The processes: all make the state together, the lead decides when and writes it.
    """

    def __init__(
        self,
        output: str,
        every: str,
        encode: Callable[[RunState, dict[str, Any] | None], bytes],
        growth: int,
        saved: SavedRun | None,
        report: Reporter,
        team: Team = ALONE,
    ) -> None:
        self.team = team
        self.path, self.previous = state_path(output), previous_path(output)
        self.encode, self.report = encode, report
        self.seconds, self.iterations = parse_interval(every)
        self.needed = COPIES * growth
        self.fresh = saved is None
        self.keeps_previous = saved is not None and saved.newest
        """Whether what stands under `path` is complete, so that it may replace the state before it."""
        self.iteration = -1 if saved is None else saved.state.iteration
        self.latest: RunState | None = None
        self.failure: OutputError | None = None
        self.cost = 0.0
        self.written_at = time.perf_counter()
        if saved is not None and team.is_lead:
            require_room(self.path, self.needed + COPIES * saved.size)

    def __call__(self, iteration: int, state: Callable[[], RunState], *, last: bool) -> None:
        """Write a state where one is due."""
        if self.iteration < 0:
            self._begin(state())
        if last:
            self.latest = state()
            if self.latest.iteration != self.iteration or self.latest.diverged or self.failure is not None:
                self._try(self.latest)
        elif self.team.any(self.team.is_lead and iteration != self.iteration and self._is_due(iteration))[0]:
            self._try(state())

    def _is_due(self, iteration: int) -> bool:
        if self.iterations is not None:
            return iteration % self.iterations == 0
        wait = max(self.seconds, self.cost / SAVING_SHARE)
        return time.perf_counter() - self.written_at >= wait

    def _begin(self, state: RunState) -> None:
        """The first state of a run; those of an earlier run give way to it."""
        if not self.team.is_lead:
            self.iteration = state.iteration
            return
        image = self.encode(state, None)
        require_room(self.path, self.needed + COPIES * len(image))
        with suppress(FileNotFoundError):
            os.unlink(self.previous)
        self._write(image, state.iteration)

    def _try(self, state: RunState) -> None:
        if not self.team.is_lead:
            return
        begin = time.perf_counter()
        try:
            self._write(self.encode(state, None), state.iteration)
            self.failure = None
        except CheckpointError:  # weights that are no numbers any more: the run is about to end as diverged
            return
        except OutputError as error:
            if self.failure is None:
                self.report.note(f"the state of the run was not written: {error.message} Training goes on.")
            self.failure = error
        self.written_at = time.perf_counter()
        self.cost = self.written_at - begin

    def _write(self, image: bytes, iteration: int) -> None:
        write_atomic(self.path, image, force=True, previous=self.previous if self.keeps_previous else None)
        self.keeps_previous, self.iteration = True, iteration

    def finish(self, finished: dict[str, Any] | None) -> None:
        """Note in the last state how the run finished, if it did.

        Raises
        ------
        OutputError
            If the state at the end is not on the disk.
        """
        if self.failure is not None:
            raise self.failure
        if finished is not None and self.latest is not None and self.team.is_lead:
            write_atomic(self.path, self.encode(self.latest, finished), force=True)

    def discard(self) -> None:
        """Leave no state behind of a run that began here and came to nothing."""
        if self.fresh and self.team.is_lead:
            for path in (self.path, self.previous):
                with suppress(OSError):
                    os.unlink(path)


def growth_of_state(options: FitOptions, parameters: int, iterations: int) -> int:
    """Bytes by which the state of a run may grow: L-BFGS's pairs or Adam's moments, two copies of θ, the history."""
    vectors = 2 * PAIRS if options.theta_step.name == "lbfgs" else 2
    return 8 * parameters * (vectors + 2) + 32 * min(iterations, 10**6)
