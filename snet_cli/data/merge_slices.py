"""Trajectory files merged a slice of trajectories at a time, as `merging.merge` merges them whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from snet_cli.data.merging import like, merge
from snet_cli.data.scratch import NUMBER, Require
from snet_cli.data.spooled import Spool, SpooledTrajectories, without_samples
from snet_cli.data.storage import display
from snet_cli.data.table_meaning import unique_ids
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.trajectory_rules import missing_channel
from snet_cli.data.trajectory_slices import SLICE_SAMPLES, joined, open_slices
from snet_cli.errors import DataError

COPIES = 4.5
"""Memory that a trajectory takes while it is copied, in copies of its numbers: at least one is read at a time."""


def merged_in_slices(paths: Sequence[Path], max_bytes: int, require: Require, notes: list[str]) -> SpooledTrajectories:
    """All trajectories of the files, their samples on scratch.

    Raises
    ------
    DataError
        If a file is damaged or senseless, or its channels are not those of the first.
    UsageError
        If a single trajectory does not fit into the memory.
    """
    shells, ids, longer = [], [], []
    for path in paths:
        with open_slices(path, max_bytes=max_bytes) as file:
            shells.append(file.shell)
            longest, numbers = file.longest()
            require(f"reading a trajectory of {longest} samples in {path}", COPIES * NUMBER * numbers)
            own = [name.decode("utf-8", "replace") for name in file.content.arrays["trajectory"].read().tolist()]
        ids += own
        longer += [f"{path.stem}-{name}" for name in own]
    whole, said = merge(shells, [str(path) for path in paths], ())
    notes += said
    spool, parts, first = Spool(len(ids)), [], 0
    for path in paths:
        with open_slices(path, max_bytes=max_bytes) as file:
            seen = np.zeros(len(whole.output_names), bool)
            for begin, end in file.between(0, len(file), SLICE_SAMPLES):
                data = like(file.read(begin, end, truth=whole.truth is not None), whole)
                seen |= np.isfinite(data.outputs).any(axis=0)
                spool.add(data, first)
                parts.append(without_samples(data))
                first += len(data)
            _require_values(path, whole, seen, int(file.row_size.sum()))
    bare = joined(parts)
    names = unique_ids(ids, longer)
    return spool.finished(bare).stating(ids=names, provenance={}, history="", title="")


def _require_values(path: Path, whole: Trajectories, seen: np.ndarray, samples: int) -> None:
    """Refuse an output without any value in the whole file."""
    for name, any_value in zip(whole.output_names, seen, strict=True):
        if samples and not any_value:
            problem = missing_channel(name)
            raise DataError(f"{display(path)}: {problem.message}", problem.hint)
