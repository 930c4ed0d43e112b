"""Trajectories: ragged samples of many recordings, as plain arrays.

A contiguous ragged array: the samples of trajectory b are the rows
``offsets[b]:offsets[b + 1]`` of `time` and `outputs`. A value that was not measured is NaN; so every
channel has its own mask and no sample time needs all channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.signals import Inputs
from snet_cli.errors import DataError

SPLIT_NAMES = ("train", "valid", "test")
"""Meaning of the numbers 0, 1, 2 in `Trajectories.split`."""

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def ragged_offsets(row_size: IntArray) -> IntArray:
    """First row of every trajectory, and the total as last entry; shape (B + 1,)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(row_size, dtype=np.int64)])


def ragged_rows(row_size: IntArray, chosen: IntArray) -> IntArray:
    """Row numbers of the chosen trajectories, one after the other, in a contiguous ragged array."""
    offsets = ragged_offsets(row_size)
    sizes = row_size[chosen]
    within = np.arange(int(sizes.sum())) - np.repeat(ragged_offsets(sizes)[:-1], sizes)
    return np.repeat(offsets[chosen], sizes) + within


@dataclass(frozen=True)
class Trajectories:
    """B recordings of d output channels with their inputs.

    Attributes
    ----------
    ids : tuple of str
        One unique name per trajectory (B).
    row_size : ndarray, shape (B,)
        Number of samples of each trajectory; zero where a file holds no outputs but only x0 and u.
    time : ndarray, shape (obs,)
        Sample times in `time_unit`, strictly increasing within a trajectory.
    outputs : ndarray, shape (obs, d)
        Measured values in their own units; NaN = not measured.
    output_names, state_names : tuple of str
        Channels in order. `state_names` are the names of `truth` and `x0`; for a recording they equal
        `output_names`.
    inputs : Inputs
        u(t), each trajectory its own; `Inputs.none()` for an autonomous system.
    units : mapping of str to str
        Units of outputs, states and inputs by name; missing or "" = not stated.
    noise_std : mapping of str to float
        Known standard deviation of the measurement noise, by output.
    truth : ndarray, shape (obs, n), or None
        Noise-free states of a simulation; never used by `fit`.
    x0 : ndarray, shape (B, n), or None
        Exactly known initial states; NaN = unknown.
    split : ndarray of int, shape (B,), or None
        0 train, 1 valid, 2 test.
    init_window : ndarray of int, shape (B,), or None
        Leading samples that start a forecast and are not scored.
    parameters : mapping of str to ndarray, shape (B,)
        Known physical constants, one value per trajectory.
    system : dict or None
        Name and parameters of the generator (``{"name": "vehicle", "m": 1.0, ...}``); None for recordings.
    provenance : dict
        Where the data came from: subcommand, options, versions, sha256 of parents. No paths, no dates.
    """

    ids: tuple[str, ...]
    row_size: IntArray
    time: FloatArray
    outputs: FloatArray
    output_names: tuple[str, ...]
    inputs: Inputs
    state_names: tuple[str, ...] = ()
    time_unit: str = "s"
    units: Mapping[str, str] = field(default_factory=dict)
    noise_std: Mapping[str, float] = field(default_factory=dict)
    truth: FloatArray | None = None
    x0: FloatArray | None = None
    split: IntArray | None = None
    init_window: IntArray | None = None
    parameters: Mapping[str, FloatArray] = field(default_factory=dict)
    system: dict[str, Any] | None = None
    title: str = ""
    history: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.state_names:
            object.__setattr__(self, "state_names", self.output_names)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def offsets(self) -> IntArray:
        """First row of every trajectory and the total, shape (B + 1,)."""
        return ragged_offsets(self.row_size)

    @property
    def start(self) -> FloatArray:
        """Time of the first sample (first input sample where there are no outputs, else 0), shape (B,)."""
        fallback = self.inputs.sampled_start() if self.inputs.sampled is not None else np.zeros(len(self))
        if self.time.size == 0:
            return fallback
        first = self.time[np.minimum(self.offsets[:-1], self.time.size - 1)]
        return np.where(self.row_size > 0, first, fallback)

    @property
    def end(self) -> FloatArray:
        """Time of the last sample, shape (B,); equals `start` where there are no samples."""
        if self.time.size == 0:
            return self.start
        last = self.time[np.maximum(self.offsets[1:] - 1, 0)]
        return np.where(self.row_size > 0, last, self.start)

    def trajectory_of_row(self) -> IntArray:
        """Number of the trajectory that each sample belongs to, shape (obs,)."""
        return np.repeat(np.arange(len(self)), self.row_size)

    def sampling_interval(self) -> float:
        """Median time between neighbouring samples, in `time_unit`; 0 where no trajectory has two samples."""
        if self.time.size < 2:
            return 0.0
        inside = np.diff(self.trajectory_of_row()) == 0
        steps = np.diff(self.time)[inside]
        return float(np.median(steps)) if steps.size else 0.0

    def select(self, chosen: Sequence[int] | IntArray) -> Trajectories:
        """The chosen trajectories, in the order given."""
        index = np.asarray(chosen, dtype=np.int64)
        rows = ragged_rows(self.row_size, index)
        return replace(
            self,
            ids=tuple(self.ids[i] for i in index),
            row_size=self.row_size[index],
            time=self.time[rows],
            outputs=self.outputs[rows],
            inputs=self.inputs.select(index),
            truth=None if self.truth is None else self.truth[rows],
            x0=None if self.x0 is None else self.x0[index],
            split=None if self.split is None else self.split[index],
            init_window=None if self.init_window is None else self.init_window[index],
            parameters={name: values[index] for name, values in self.parameters.items()},
        )

    def select_rows(self, keep: NDArray[np.bool_]) -> Trajectories:
        """The same trajectories with only the samples where `keep` (obs,) is true."""
        row_size = np.bincount(self.trajectory_of_row()[keep], minlength=len(self)).astype(np.int64)
        return replace(
            self,
            row_size=row_size,
            time=self.time[keep],
            outputs=self.outputs[keep],
            truth=None if self.truth is None else self.truth[keep],
        )

    def of_split(self, name: str) -> Trajectories:
        """The trajectories of one split.

        Raises
        ------
        DataError
            If the file has no split, or none of its trajectories is in this one.
        """
        if self.split is None:
            raise DataError(
                f"the file has no split, so '--split {name}' chooses nothing.",
                "Name the trajectories when you import them (--split valid=...,test=71-80), or leave --split out.",
            )
        index = np.flatnonzero(self.split == SPLIT_NAMES.index(name))
        if index.size == 0:
            counts = ", ".join(f"{s} {int(np.sum(self.split == i))}" for i, s in enumerate(SPLIT_NAMES))
            raise DataError(f"no trajectory belongs to the split '{name}' (the file has {counts}).", "")
        return self.select(index)
