"""Training data that is larger than the memory: which runs read it in slices, and what they have of it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.content import open_in_place
from snet_cli.data.options import CommonOptions
from snet_cli.data.storage import display
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.trajectory_file import load_with_notes
from snet_cli.data.trajectory_slices import TrajectorySlices, notes_on_file, open_slices
from snet_cli.distributed import Team
from snet_cli.errors import DataError, SnetError
from snet_cli.training.options import FitOptions
from snet_cli.workflows import memory
from snet_cli.workflows.fit_data import drawn_validation, fraction_of, require_same_channels
from snet_cli.workflows.reporter import Reporter

FIT_COPIES, MOVING_COPIES = 26.0, 50.0
"""Peak memory of `fit --method delta` in one piece, in bytes per byte that the file's arrays declare, and of methods
that move x, which `auto` may come to: 20 000 vehicles of 25 samples, torch included."""

VALIDATION_COPIES = 12.0
"""The same of validation data, which stays in memory."""

NUMBERS_AT_LEAST = 1 << 20
"""Numbers below which nothing is read in slices: the memory of one slice is no smaller."""


@dataclass(frozen=True)
class SlicedData:
    """Training trajectories on the disk, validation trajectories in memory.

    Attributes
    ----------
    train : TrajectorySlices
    validation : Trajectories or None
    parents : dict
        sha256 of the files, by their role.
    files : ExitStack
        Closes them.
    """

    train: TrajectorySlices
    validation: Trajectories | None
    parents: dict[str, str]
    files: ExitStack

    @property
    def shell(self) -> Trajectories:
        """Everything of the training data but its trajectories."""
        return self.train.shell

    @property
    def row_size(self) -> NDArray[np.int64]:
        """Samples of each training trajectory."""
        return self.train.row_size

    def close(self) -> None:
        """Close the file."""
        self.files.close()


def needs_slices(train: str, options: FitOptions, common: CommonOptions, team: Team) -> bool:
    """Whether this fit cannot have all its data in memory, and can do without.

    Files that cannot be read are not too large: reading them says what is wrong.
    """
    copies = FIT_COPIES if options.method == "delta" else MOVING_COPIES
    return team.any(_too_large(train, copies, common, team) and can_slice(options))[0]


def can_slice(options: FitOptions) -> bool:
    """Whether these options train on sums over slices: not with a solver, and x not by gradient steps or perturbed."""
    if options.method == "alpha" and (options.state_step.name == "sgd" or options.perturbation > 0):
        return False
    return options.method in ("delta", "alpha", "joint", "auto")


def _too_large(train: str, copies: float, common: CommonOptions, team: Team) -> bool:
    if train == "-" or not os.path.isfile(train):
        return False
    try:
        with open_in_place(train, display(train), DataError, common.max_bytes) as content:
            sizes = [float(np.prod(array.shape)) * array.dtype.itemsize for array in content.arrays.values()]
    except SnetError:
        return False
    declared = sum(sizes)
    return declared > memory.NUMBER * NUMBERS_AT_LEAST and copies * declared > memory.share(common, team.place)


def load_slices(train: str, options: FitOptions, common: CommonOptions, report: Reporter) -> SlicedData:
    """The training file opened, its validation part read; as `fit_data.load_fit_data` says."""
    stack = ExitStack()
    with stack:
        slices = stack.enter_context(open_slices(train, max_bytes=common.max_bytes))
        for note in notes_on_file(slices):
            report.note(note)
        parents = {"train": slices.sha256}
        kept, validation = np.ones(len(slices), bool), None
        if slices.split is not None:
            valid, kept = slices.split == 1, slices.split == 0
            if options.validation is None and valid.any():
                validation = _together(slices.where(valid), common)
            if not kept.any():
                raise DataError(f"{slices.label}: no trajectory belongs to the split 'train'.", "")
        share = fraction_of(options.validation)
        if share is not None:
            drawn = np.flatnonzero(kept)[drawn_validation(share, int(kept.sum()), common.seed)]
            kept = kept & ~np.isin(np.arange(kept.size), drawn)
            validation = _together(slices.where(np.isin(np.arange(kept.size), drawn)), common)
        elif options.validation is not None:
            other = load_with_notes(str(options.validation), max_bytes=common.max_bytes)
            validation, parents["validation"] = other.trajectories, other.sha256
            require_same_channels(slices.shell, validation, str(options.validation))
        report.detail(f"{len(slices)} trajectories are read in slices: they are more than the memory holds at once.")
        return SlicedData(slices.where(kept), validation, parents, stack.pop_all())
    raise AssertionError  # a context that swallows errors


def _together(slices: TrajectorySlices, common: CommonOptions) -> Trajectories:
    """Validation trajectories, all in memory."""
    numbers = float(slices.row_size.sum()) * (len(slices.shell.output_names) + 1)
    memory.require_memory("the validation data", VALIDATION_COPIES * memory.NUMBER * numbers, common)
    return slices.whole()
