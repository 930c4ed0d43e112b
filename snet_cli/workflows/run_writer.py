"""What keeps the state of a run beside its output while a method trains: `fit`'s, and each of an ensemble's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from snet_cli.training.loop import RunState
from snet_cli.workflows.provenance import history_line, provenance
from snet_cli.workflows.reporter import Reporter
from snet_cli.workflows.resume import SavedRun, StateWriter, growth_of_state
from snet_cli.workflows.run_state import encode_state
from snet_cli.workflows.train_one import resolved_options
from snet_cli.workflows.trained_model import to_checkpoint
from snet_cli.workflows.training_plan import Ingredients, Training


def state_writer(
    output: str,
    every: str,
    parts: Ingredients,
    training: Training,
    run_key: Mapping[str, Any],
    saved: SavedRun | None,
    report: Reporter,
) -> StateWriter:
    """The writer of this training's states.

    Parameters
    ----------
    output : str
        Beside which they lie.
    every : str
        ``60s`` or ``100it``.
    run_key : mapping
        `resume.fingerprint`.
    saved : SavedRun, optional
        The state that this run goes on from.
    """
    setup, trained, options = parts.setup, parts.setup.trained, parts.options
    resolved = resolved_options(options, parts.common, setup, training, parts.device)
    record = provenance("fit", resolved, parents=parts.data.parents)
    model = to_checkpoint(trained, {}, np.zeros((0, 4)), record, "", history_line(record, [parts.data.train.history]))
    about = {
        "run": dict(run_key),
        "method": training.method.name,
        "threads": torch.get_num_threads(),
        "processes": parts.team.recorded,
        "settled": dict(training.settled),
    }

    def encode(state: RunState, finished: dict[str, Any] | None) -> bytes:
        return encode_state(model, {**about, "finished": finished}, state, setup.step_zero)

    parameters = sum(p.numel() for p in trained.model.parameters())
    growth = growth_of_state(options, parameters, training.iterations)
    return StateWriter(output, every, encode, growth, saved, report, parts.team)
