"""Several trajectory files as one: the same channels, units and inputs, all trajectories one after the other.

What only some files know stays known where it is (`x0`, `split`, `init_window`); what would be false for the others
goes, with a note (`truth` that some lack, noise levels that differ). Where generators differ in a number, it becomes
a constant of each trajectory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.channel_spec import listing
from snet_cli.data.signals import FourierInputs, Inputs, SampledInputs
from snet_cli.data.trajectories import Trajectories
from snet_cli.errors import DataError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def merge(files: Sequence[Trajectories], sources: Sequence[str], ids: Sequence[str]) -> tuple[Trajectories, list[str]]:
    """All trajectories of the files, and notes on what could not be kept.

    Parameters
    ----------
    files : sequence of Trajectories
    sources : sequence of str
        Their names, for messages.
    ids : sequence of str
        A unique name for every trajectory of the result.

    Raises
    ------
    DataError
        If channels, units, holds or constants differ between the files.
    """
    first = files[0]
    for other, source in zip(files[1:], sources[1:], strict=True):
        _check_alike(first, other, sources[0], source)
    notes: list[str] = []
    counts = [len(file) for file in files]
    truth = _all_or_none([file.truth for file in files], "the noise-free truth", notes)
    noise: Mapping[str, float] = first.noise_std
    if any(dict(file.noise_std) != dict(noise) for file in files):
        noise = {}
        notes.append("the files state different noise levels; none is kept.")
    system, parameters = merge_systems(files, notes)
    merged = replace(
        first,
        ids=tuple(ids),
        row_size=np.concatenate([file.row_size for file in files]),
        time=np.concatenate([file.time for file in files]),
        outputs=np.concatenate([file.outputs for file in files]),
        inputs=merge_inputs([file.inputs for file in files]),
        noise_std=noise,
        truth=truth,
        x0=_filled([file.x0 for file in files], [(count, len(first.state_names)) for count in counts], np.nan),
        split=_filled([file.split for file in files], [(count,) for count in counts], 0),
        init_window=_filled([file.init_window for file in files], [(count,) for count in counts], 0),
        parameters=parameters,
        system=system,
        title="",
        history="",
        provenance={},
    )
    return merged, notes


def like(data: Trajectories, whole: Trajectories) -> Trajectories:
    """Some trajectories of one of the files that were merged into `whole`, with what all of it has."""
    count, system = len(data), data.system or {}
    parameters = {
        name: data.parameters[name] if name in data.parameters else np.full(count, float(system[name]))
        for name in whole.parameters
    }
    inputs = data.inputs
    if inputs.fourier is not None and whole.inputs.fourier is not None:
        inputs = replace(inputs, fourier=_merge_fourier([whole.inputs.fourier, inputs.fourier]))
    return replace(
        data,
        inputs=inputs,
        units=whole.units,
        noise_std=whole.noise_std,
        truth=None if whole.truth is None else data.truth,
        x0=_or_filled(data.x0, whole.x0, count, np.nan),
        split=_or_filled(data.split, whole.split, count, 0),
        init_window=_or_filled(data.init_window, whole.init_window, count, 0),
        parameters=parameters,
        system=whole.system,
    )


def _or_filled(own: NDArray[Any] | None, of_all: NDArray[Any] | None, count: int, value: float) -> Any:
    """The trajectories' own array, or one of this value where only other files have it."""
    if own is not None or of_all is None:
        return own
    return np.full((count, *of_all.shape[1:]), value, of_all.dtype)


def merge_systems(
    files: Sequence[Trajectories], notes: list[str]
) -> tuple[dict[str, Any] | None, dict[str, FloatArray]]:
    """The generator that all files share, and the constants of each trajectory."""
    names = set(files[0].parameters)
    for file in files:
        if set(file.parameters) != names:
            raise DataError(
                f"the files state different constants: {listing(sorted(names ^ set(file.parameters)))} in some only.",
                "Merge files that state the same constants.",
            )
    parameters = {name: np.concatenate([file.parameters[name] for file in files]) for name in names}
    systems = [file.system or {} for file in files]
    if len({system.get("name") for system in systems}) > 1:
        notes.append("the files come from different systems; the name of none is kept.")
        return None, parameters
    if not systems[0]:
        return None, parameters
    shared = {key: value for key, value in systems[0].items() if all(system.get(key) == value for system in systems)}
    for key in sorted(set().union(*systems) - set(shared)):
        values = [system.get(key) for system in systems]
        if key not in parameters and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            sizes = [len(file) for file in files]
            parameters[key] = np.repeat(np.array(values, dtype=np.float64), sizes)
            notes.append(f"'{key}' of the system differs between the files and is kept for each trajectory.")
        elif key not in parameters:
            notes.append(f"'{key}' of the system differs between the files and is not kept.")
    return shared, parameters


def merge_inputs(inputs: Sequence[Inputs]) -> Inputs:
    """The inputs of all files; their channels, kinds and holds are alike."""
    first = inputs[0]
    sampled = [u.sampled for u in inputs if u.sampled is not None]
    fourier = [u.fourier for u in inputs if u.fourier is not None]
    return replace(
        first,
        sampled=_merge_sampled(sampled) if sampled else None,
        fourier=_merge_fourier(fourier) if fourier else None,
    )


def _merge_sampled(parts: Sequence[SampledInputs]) -> SampledInputs:
    return replace(
        parts[0],
        row_size=np.concatenate([part.row_size for part in parts]),
        time=np.concatenate([part.time for part in parts]),
        values=np.concatenate([part.values for part in parts]),
    )


def _merge_fourier(parts: Sequence[FourierInputs]) -> FourierInputs:
    """Series with fewer harmonics are padded by harmonics of amplitude zero."""
    harmonics = max(part.omega.shape[2] for part in parts)

    def padded(values: FloatArray) -> FloatArray:
        return np.pad(values, ((0, 0), (0, 0), (0, harmonics - values.shape[2])))

    return replace(
        parts[0],
        mean=np.concatenate([part.mean for part in parts]),
        omega=np.concatenate([padded(part.omega) for part in parts]),
        cos=np.concatenate([padded(part.cos) for part in parts]),
        sin=np.concatenate([padded(part.sin) for part in parts]),
    )


def _check_alike(first: Trajectories, other: Trajectories, first_source: str, source: str) -> None:
    """Refuse files that do not describe the same channels."""

    def facts(file: Trajectories) -> dict[str, object]:
        sampled, fourier = file.inputs.sampled, file.inputs.fourier
        return {
            "outputs": file.output_names,
            "states": file.state_names,
            "inputs": file.inputs.names,
            "time unit": file.time_unit,
            "units": {name: unit for name, unit in {**file.units, **file.inputs.units}.items() if unit},
            "sampled inputs": () if sampled is None else tuple(zip(sampled.names, sampled.intersample, strict=True)),
            "inputs in closed form": () if fourier is None else fourier.names,
        }

    mine, theirs = facts(first), facts(other)
    for what, value in mine.items():
        if theirs[what] != value:
            verb = "is" if what == "time unit" else "are"
            raise DataError(
                f"{source}: the {what} {verb} {theirs[what]}, but {value} in {first_source}.",
                "Only files with the same channels can be merged.",
            )


def _all_or_none(parts: Sequence[FloatArray | None], what: str, notes: list[str]) -> FloatArray | None:
    known = [part for part in parts if part is not None]
    if known and len(known) < len(parts):
        notes.append(f"only some of the files hold {what}; it is not kept.")
    return np.concatenate(known) if len(known) == len(parts) else None


def _filled(parts: Sequence[NDArray[Any] | None], shapes: Sequence[tuple[int, ...]], value: float) -> Any:
    """The parts one after the other, with a value where a file knows none; None if no file knows any."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    filled = [np.full(shape, value) if part is None else part for part, shape in zip(parts, shapes, strict=True)]
    return np.concatenate(filled).astype(known[0].dtype)
