"""The trajectory file `snet-trajectory` 1.0: a contiguous ragged array in HDF5, as xarray, netCDF4 and MATLAB read it.

    / attrs: snet_format snet_format_version title history; output_names input_names state_names (JSON lists);
             provenance (JSON); system (JSON, absent for recordings)
    trajectory(traj) row_size(traj) time(obs)
    y_<name>(obs) xtrue_<name>(obs) x0_<name>(traj)
    u_row_size(traj) u_time(uobs) u_<name>(uobs)   or   uf_<name>_mean(traj) uf_<name>_omega|cos|sin(traj, harm)
    split(traj) init_window(traj) param_<name>(traj)

On reading, names, types and shapes are compared with this table before any value is read; then the values become
`Trajectories`, whose rules (`trajectory_rules`) are the same for files and for data in memory, so that nothing is
written that would not be read. There is no checksum over the whole file on top of those of `content`: people may
open a file with h5py, correct a unit or a split, and go on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.content import Array, Content, Value, encode, open_content, to_json
from snet_cli.data.outputs import write_atomic
from snet_cli.data.signals import FourierInputs, Inputs, Intersample, SampledInputs
from snet_cli.data.storage import MAX_BYTES, display, read_image
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.trajectory_layout import (
    FORMAT,
    FOURIER_PARTS,
    SCALES,
    VERSION,
    layout_problems,
    listed_names,
    parse_json,
    require_format,
    variables,
)
from snet_cli.data.trajectory_rules import notes_on, require_sense
from snet_cli.errors import DataError


@dataclass(frozen=True)
class Loaded:
    """A trajectory file that was read.

    Attributes
    ----------
    trajectories : Trajectories
    notes : tuple of str
        What people should know: arrays without checksums, constant channels, unknown variables.
    sha256 : str
        Of the file's bytes; goes into the provenance of what is made from it.
    size : int
        Bytes of the file.
    unchecked : tuple of str
        Arrays that no checksum covers.
    """

    trajectories: Trajectories
    notes: tuple[str, ...]
    sha256: str
    size: int
    unchecked: tuple[str, ...]


def load_trajectories(
    path: str | Path, *, max_bytes: int = MAX_BYTES, allow_missing_channels: bool = False
) -> Trajectories:
    """The trajectories of a file (``-``: standard input).

    Raises
    ------
    DataError
        If the file is missing, damaged, hostile, foreign or senseless.
    """
    return load_with_notes(path, max_bytes=max_bytes, allow_missing_channels=allow_missing_channels).trajectories


def load_with_notes(path: str | Path, *, max_bytes: int = MAX_BYTES, allow_missing_channels: bool = False) -> Loaded:
    """A trajectory file with its checksum and the notes on it.

    Parameters
    ----------
    path : str or Path
        ``-`` is standard input.
    max_bytes : int
        Limit on the file and on the arrays in it.
    allow_missing_channels : bool
        Whether an output may lack all values, as in a forecast that diverged.

    Raises
    ------
    DataError
    """
    label = display(path)
    return decode_trajectories(read_image(path, max_bytes), label, max_bytes, allow_missing_channels)


def decode_trajectories(
    image: bytes, label: str, max_bytes: int = MAX_BYTES, allow_missing_channels: bool = False
) -> Loaded:
    """The same from the bytes of a file; `label` names it in messages."""
    with open_content(image, label, DataError, max_bytes) as content:
        require_format(content, label, FORMAT, DataError)
        for problem in layout_problems(content):
            raise DataError(f"{label}: {problem.message}", problem.hint)
        data = assemble(content, label)
        unchecked = tuple(content.unchecked())
        without_checksums, unknown = unread_notes(content)
    require_sense(data, label, allow_missing_channels)
    notes = (*without_checksums, *notes_on(data), *unknown)
    return Loaded(data, notes, hashlib.sha256(image).hexdigest(), len(image), unchecked)


def unread_notes(content: Content) -> tuple[list[str], list[str]]:
    """What is to be said of a file without looking at its values: arrays without checksums; unknown variables."""
    unchecked = content.unchecked()
    strangers = sorted(set(content.arrays) - set(variables(content)) - set(SCALES))
    names = ", ".join(unchecked[:5]) + (" ..." if len(unchecked) > 5 else "")
    listed = f"{', '.join(strangers[:5])}{' ...' if strangers[5:] else ''}"
    return (
        [f"no checksums: a damaged value in {names} would go unnoticed."] if unchecked else [],
        [f"unknown variables are ignored: {listed}."] if strangers else [],
    )


def save_trajectories(path: str | Path, trajectories: Trajectories, force: bool = False) -> str:
    """Write a trajectory file, whole or not at all (``-``: standard output).

    Returns
    -------
    str
        The sha256 of the file.

    Raises
    ------
    DataError
        If the trajectories break a rule of the schema.
    OutputError
        If the file exists and `force` is false, or cannot be written.
    """
    image = encode_trajectories(trajectories, display(path))
    write_atomic(path, image, force)
    return hashlib.sha256(image).hexdigest()


def encode_trajectories(data: Trajectories, label: str = "the trajectories") -> bytes:
    """The bytes of a trajectory file; the same trajectories give the same bytes."""
    return encode(*content_of(data, label))


def content_of(data: Trajectories, label: str) -> tuple[Content, dict[str, int]]:
    """What a file holds of these trajectories, and the lengths of its dimensions.

    Raises
    ------
    DataError
        If they break a rule of the schema.
    """
    require_sense(data, label, allow_missing_channels=True)
    dimensions = {"traj": len(data), "obs": data.time.size}
    if data.inputs.sampled is not None:
        dimensions["uobs"] = data.inputs.sampled.time.size
    if data.inputs.fourier is not None:
        dimensions["harm"] = data.inputs.fourier.omega.shape[-1]
    try:
        attributes = root_attributes(data)
    except (ValueError, TypeError) as problem:
        raise DataError(f"{label}: provenance or system cannot be written as JSON: {problem}.", "") from None
    return Content(attributes, dict(stored_variables(data))), dimensions


save = save_trajectories
"""The library's short name: `snet_cli.save(path, trajectories)`."""


def root_attributes(data: Trajectories) -> dict[str, Value]:
    """Attributes of the file, in the order in which they are written."""
    attributes: dict[str, Value] = {
        "snet_format": FORMAT,
        "snet_format_version": VERSION,
        "title": data.title,
        "history": data.history,
        "output_names": to_json(list(data.output_names)),
        "input_names": to_json(list(data.inputs.names)),
        "state_names": to_json(list(data.state_names)),
        "provenance": to_json(data.provenance),
    }
    if data.system is not None:
        attributes["system"] = to_json(data.system)
    return attributes


def stored_variables(data: Trajectories) -> Iterator[tuple[str, Array]]:
    """Every array of the file, in the order of the table above."""

    def units(name: str, more: Mapping[str, Value] | None = None) -> dict[str, Value]:
        unit = data.units.get(name, "")
        return {**({"units": unit} if unit else {}), **(more or {})}

    raw = [name.encode() for name in data.ids]
    ids = np.array(raw, dtype="S64")
    yield "trajectory", Array.of(ids, ("traj",), {"cf_role": "trajectory_id"})
    yield "row_size", Array.of(data.row_size.astype("<i8"), ("traj",), {"sample_dimension": "obs"})
    yield "time", Array.of(_floats(data.time), ("obs",), {"units": data.time_unit} if data.time_unit else {})
    for channel, name in enumerate(data.output_names):
        more: dict[str, Value] = {"snet_role": "output"}
        if name in data.noise_std:
            more["snet_noise_std"] = float(data.noise_std[name])
        yield f"y_{name}", Array.of(_floats(data.outputs[:, channel]), ("obs",), units(name, more))
    for channel, name in enumerate(data.state_names):
        if data.truth is not None:
            yield f"xtrue_{name}", Array.of(_floats(data.truth[:, channel]), ("obs",), units(name))
        if data.x0 is not None:
            yield f"x0_{name}", Array.of(_floats(data.x0[:, channel]), ("traj",), units(name))
    yield from _input_variables(data)
    if data.split is not None:
        yield "split", Array.of(data.split.astype("i1"), ("traj",))
    if data.init_window is not None:
        yield "init_window", Array.of(data.init_window.astype("<i4"), ("traj",))
    for name, values in data.parameters.items():
        yield f"param_{name}", Array.of(_floats(values), ("traj",))


def _input_variables(data: Trajectories) -> Iterator[tuple[str, Array]]:
    def units(name: str) -> dict[str, Value]:
        unit = data.inputs.units.get(name, data.units.get(name, ""))
        return {"units": unit} if unit else {}

    time_units: dict[str, Value] = {"units": data.time_unit} if data.time_unit else {}
    if (sampled := data.inputs.sampled) is not None:
        yield "u_row_size", Array.of(sampled.row_size.astype("<i8"), ("traj",), {"sample_dimension": "uobs"})
        yield "u_time", Array.of(_floats(sampled.time), ("uobs",), time_units)
        for channel, (name, hold) in enumerate(zip(sampled.names, sampled.intersample, strict=True)):
            attributes = {**units(name), "snet_intersample": hold}
            yield f"u_{name}", Array.of(_floats(sampled.values[:, channel]), ("uobs",), attributes)
    if (fourier := data.inputs.fourier) is not None:
        rate: dict[str, Value] = {"units": f"rad/{data.time_unit}"} if data.time_unit else {}
        for channel, name in enumerate(fourier.names):
            yield f"uf_{name}_mean", Array.of(_floats(fourier.mean[:, channel]), ("traj",), units(name))
            for part, attributes in (("omega", rate), ("cos", units(name)), ("sin", units(name))):
                values = _floats(getattr(fourier, part)[:, channel])
                yield f"uf_{name}_{part}", Array.of(values, ("traj", "harm"), attributes)


def _floats(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.ascontiguousarray(values, dtype="<f8")


def assemble(
    content: Content, label: str, ranges: Mapping[str, slice] | None = None, *, truth: bool = True
) -> Trajectories:
    """The values of a file as `Trajectories`, after `layout_problems` found none; their rules are not yet checked.

    Parameters
    ----------
    ranges : mapping of str to slice, optional
        The part of each dimension that belongs to a range of trajectories; all unless given.
    truth : bool
        Whether the noise-free truth is wanted, where there is one.
    """
    outputs, inputs, states = (listed_names(content, key) for key in ("output_names", "input_names", "state_names"))
    arrays, layout = content.arrays, variables(content)

    def values(name: str) -> NDArray[Any]:
        if ranges is None:
            return arrays[name].read()
        part = ranges[layout[name][0][0]]
        return arrays[name].between(part.start, part.stop)

    def column(name: str, rows: int) -> NDArray[np.float64]:
        return values(name).astype(np.float64, copy=False) if name in arrays else np.full(rows, np.nan)

    def table(prefix: str, names: tuple[str, ...], rows: int) -> NDArray[np.float64]:
        columns = [column(prefix + name, rows) for name in names]
        return np.stack(columns, axis=1) if columns else np.zeros((rows, 0))

    def whole(name: str) -> NDArray[np.int64] | None:
        return values(name).astype(np.int64) if name in arrays else None

    identifiers, time = values("trajectory"), column("time", 0)
    count, rows = identifiers.shape[0], time.shape[0]
    try:
        ids = tuple(raw.decode() for raw in identifiers.tolist())
    except UnicodeDecodeError:
        raise DataError(f"{label}: the ids in 'trajectory' are not UTF-8.", "Write them with .encode().") from None
    prefixes = tuple(arrays)
    units = {name: _units(content, f"xtrue_{name}", f"x0_{name}") for name in states}
    units |= {name: _units(content, f"y_{name}") for name in outputs}
    input_units = {name: _units(content, f"u_{name}", f"uf_{name}_mean") for name in inputs}
    return Trajectories(
        ids=ids,
        row_size=values("row_size").astype(np.int64),
        time=time,
        outputs=table("y_", outputs, rows),
        output_names=outputs,
        inputs=_read_inputs(content, values, inputs, {k: v for k, v in input_units.items() if v}),
        state_names=states,
        time_unit=_units(content, "time"),
        units={k: v for k, v in {**input_units, **units}.items() if v},
        noise_std=_noise(content, outputs),
        truth=table("xtrue_", states, rows) if truth and any(n.startswith("xtrue_") for n in prefixes) else None,
        x0=table("x0_", states, count) if any(n.startswith("x0_") for n in prefixes) else None,
        split=whole("split"),
        init_window=whole("init_window"),
        parameters={n.removeprefix("param_"): column(n, count) for n in prefixes if n.startswith("param_")},
        system=parse_json(content.attributes.get("system", "")),
        title=str(content.attributes.get("title", "")),
        history=str(content.attributes.get("history", "")),
        provenance=parse_json(content.attributes.get("provenance", "{}")),
    )


def _units(content: Content, *names: str) -> str:
    """The unit of the first of these variables that states one."""
    for name in names:
        if name in content.arrays and (unit := content.arrays[name].attributes.get("units")):
            return str(unit)
    return ""


def _noise(content: Content, outputs: tuple[str, ...]) -> dict[str, float]:
    levels = {name: content.arrays[f"y_{name}"].attributes.get("snet_noise_std") for name in outputs}
    return {name: float(level) for name, level in levels.items() if isinstance(level, int | float)}


def _read_inputs(
    content: Content, values_of: Callable[[str], NDArray[Any]], names: tuple[str, ...], units: dict[str, str]
) -> Inputs:
    arrays = content.arrays

    def read(name: str) -> NDArray[np.float64]:
        return values_of(name).astype(np.float64)

    in_series = tuple(name for name in names if f"uf_{name}_mean" in arrays)
    on_clock = tuple(name for name in names if name not in in_series)
    sampled = fourier = None
    if on_clock:
        holds = tuple(cast(Intersample, arrays[f"u_{n}"].attributes.get("snet_intersample", "zoh")) for n in on_clock)
        values = np.stack([read(f"u_{name}") for name in on_clock], axis=1)
        row_size = values_of("u_row_size").astype(np.int64)
        sampled = SampledInputs(on_clock, row_size, read("u_time"), values, holds)
    if in_series:
        parts = (np.stack([read(f"uf_{name}_{part}") for name in in_series], axis=1) for part in FOURIER_PARTS)
        fourier = FourierInputs(in_series, *parts)
    return Inputs(names, sampled, fourier, units)
