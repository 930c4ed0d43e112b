"""`snet simulate` of more trajectories than belong into memory: simulated and written a slice at a time.

Which outputs are written so depends on their size alone, never on the machine, so that the same command gives the same
bytes everywhere. With several processes each simulates every so many-th slice, and the lead writes them in order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from snet_cli.data import slice_writer
from snet_cli.data.content import Content
from snet_cli.data.options import CommonOptions
from snet_cli.data.outputs import require_room
from snet_cli.data.slice_writer import save_slices, stored
from snet_cli.data.storage import display
from snet_cli.distributed import Team
from snet_cli.simulation.simulate import CHUNK, outcome_notes
from snet_cli.simulation.simulate import simulate as integrated
from snet_cli.systems.options import SimulateOptions
from snet_cli.systems.registry import get_system
from snet_cli.systems.system import SystemParameters
from snet_cli.workflows import memory
from snet_cli.workflows.provenance import history_line
from snet_cli.workflows.reporter import Reporter, Tick
from snet_cli.workflows.sliced_team import in_turn

PACKED = 0.5
"""Part of its numbers' bytes that a file has at least, packed: without room for that, nothing is begun."""


def is_large(options: SimulateOptions, states: int) -> bool:
    """Whether this output is written in slices."""
    return options.trajectories * (options.samples or 1) * states >= slice_writer.LARGE and options.trajectories > CHUNK


def write_simulation(
    system: str,
    output: str,
    options: SimulateOptions,
    parameters: SystemParameters,
    common: CommonOptions,
    record: dict[str, Any],
    force: bool,
    report: Reporter,
    device: torch.device,
    team: Team,
) -> tuple[dict[str, int], str]:
    """Simulate and write; returns outcomes and, on the lead, the sha256 of the file.

    Raises
    ------
    NumericalError
        If not one trajectory reaches the horizon; nothing is written then.
    OutputError
    """
    states = len(get_system(system).channels(parameters).states)
    per_slice = max(1, slice_writer.SLICE_NUMBERS // (CHUNK * (options.samples or 1) * states)) * CHUNK
    memory.require_memory(
        "a slice of the simulation", memory.of_simulation(per_slice, options.samples or 1, states), common
    )
    if team.is_lead:
        numbers = float(options.trajectories) * (options.samples or 1) * options.keep * (2 * states + 1)
        require_room(output, PACKED * memory.NUMBER * numbers)
    cuts = [(b, min(b + per_slice, options.trajectories)) for b in range(0, options.trajectories, per_slice)]
    outcomes: Counter[str] = Counter()

    def simulated(part: tuple[int, int]) -> Content:
        found = integrated(
            system,
            parameters,
            **options.model_dump(),
            seed=common.seed,
            device=device,
            should_stop=report.should_stop,
            part=part,
        )
        outcomes.update(found.outcomes)
        return stored(replace(found.trajectories, provenance=record, history=history_line(record)), display(output))

    def in_order() -> Iterator[Content]:
        for number, data in enumerate(in_turn(cuts, simulated, team), 1):
            report.progress(Tick("simulating", number, len(cuts)))
            yield data
        for note in outcome_notes(_summed(outcomes, team), options.trajectories, system):
            report.note(note)

    content = in_order()
    if team.is_lead:
        kept = min(options.samples or 1, max(2, round(options.keep * (options.samples or 1))))
        sizes = {"traj": options.trajectories, "obs": options.trajectories * kept}
        sha256 = save_slices(output, content, sizes, force)
    else:
        sha256 = ""
        for _ in content:
            pass
    return dict(_summed(outcomes, team)), sha256


def _summed(outcomes: Counter[str], team: Team) -> dict[str, int]:
    """Outcomes of all processes, the most frequent first."""
    if team.size > 1:
        from snet_cli.integration import Outcome

        words = [one.label for one in Outcome]
        counts = team.total(*(float(outcomes[word]) for word in words))
        outcomes = Counter({word: int(count) for word, count in zip(words, counts, strict=True) if count})
    return dict(outcomes.most_common())
