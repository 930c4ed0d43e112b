"""Which trajectories `fit` trains on, and which ones it validates on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.trajectory_file import load_with_notes
from snet_cli.errors import UsageError
from snet_cli.training.options import FitOptions
from snet_cli.workflows.reporter import Reporter
from snet_cli.workflows.training_setup import STREAM_SPLIT, stream


@dataclass(frozen=True)
class FitData:
    """Training and validation trajectories, and the sha256 of the files they came from."""

    train: Trajectories
    validation: Trajectories | None
    parents: dict[str, str]

    @property
    def shell(self) -> Trajectories:
        """Where names, units and the system stand."""
        return self.train

    @property
    def row_size(self) -> NDArray[np.int64]:
        """Samples of each training trajectory."""
        return self.train.row_size

    def close(self) -> None:
        """Nothing is open."""


def load_fit_data(train: str, options: FitOptions, common: CommonOptions, report: Reporter) -> FitData:
    """Training data is split 0; validation is a file, a drawn fraction, or split 1; split 2 is never touched."""
    loaded = load_with_notes(train, max_bytes=common.max_bytes)
    for note in loaded.notes:
        report.note(note)
    data, parents = loaded.trajectories, {"train": loaded.sha256}
    validation = None
    if data.split is not None:
        if options.validation is None and bool((data.split == 1).any()):
            validation = data.of_split("valid")
        data = data.of_split("train")
    share = fraction_of(options.validation)
    if share is not None:
        drawn = drawn_validation(share, len(data), common.seed)
        validation = data.select(drawn)
        data = data.select(np.setdiff1d(np.arange(len(data)), drawn))
    elif options.validation is not None:
        other = load_with_notes(str(options.validation), max_bytes=common.max_bytes)
        validation, parents["validation"] = other.trajectories, other.sha256
        require_same_channels(data, validation, str(options.validation))
    return FitData(data, validation, parents)


def drawn_validation(share: float, trajectories: int, seed: int) -> NDArray[np.int64]:
    """Numbers of the trajectories that are drawn for validation, ascending.

    Raises
    ------
    UsageError
        If none is left to train on.
    """
    count = max(1, round(share * trajectories))
    if count >= trajectories:
        raise UsageError(
            f"--validation {share:g} of {trajectories} trajectories leaves none to train on.",
            "Give a file, or a smaller fraction.",
        )
    order = np.random.default_rng(stream(seed, STREAM_SPLIT)).permutation(trajectories)
    return np.sort(order[:count])


def fraction_of(validation: str | float | None) -> float | None:
    """The fraction, if that is what `--validation` gives."""
    try:
        share = float(validation) if validation is not None else None
    except ValueError:
        return None
    if share is not None and not 0.0 < share < 1.0:
        raise UsageError(f"--validation {validation}: a fraction lies between 0 and 1.", "Give 0.2, or a file.")
    return share


def require_same_channels(data: Trajectories, other: Trajectories, path: str) -> None:
    """Refuse a validation file without the channels of the training file.

    Raises
    ------
    UsageError
    """
    missing = [name for name in data.output_names if name not in other.output_names]
    missing += [name for name in data.inputs.names if name not in other.inputs.names]
    if missing:
        raise UsageError(
            f"{path}: the validation file has no channel '{missing[0]}', which the training file has.",
            "Import both with the same --states and --inputs.",
        )
