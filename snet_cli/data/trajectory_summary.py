"""What a trajectory file holds, in words and numbers, for `snet info`; and every rule it breaks, for `--check`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.content import open_content
from snet_cli.data.storage import MAX_BYTES, display, read_image
from snet_cli.data.trajectories import SPLIT_NAMES, Trajectories
from snet_cli.data.trajectory_file import assemble, load_with_notes
from snet_cli.data.trajectory_layout import FORMAT, SCALES, VERSION, layout_problems, require_format
from snet_cli.data.trajectory_rules import find_problems, input_gaps
from snet_cli.errors import DataError


def check_trajectory_file(path: str | Path, *, max_bytes: int = MAX_BYTES) -> list[str]:
    """Every rule of the schema that a file breaks, one sentence each; empty if it keeps them all.

    Raises
    ------
    DataError
        If the file cannot be read at all: missing, damaged, hostile, or of another kind.
    """
    label = display(path)
    with open_content(read_image(path, max_bytes), label, DataError, max_bytes) as content:
        require_format(content, label, FORMAT, DataError)
        problems = [problem.message for problem in layout_problems(content)]
        if not problems:
            data = assemble(content, label)
            problems = [problem.message for problem in find_problems(data)] + input_gaps(data)
        problems += [f"'{name}' has no checksum (fletcher32)." for name in content.unchecked()]
        for key in ("title", "history", "provenance"):
            if key not in content.attributes:
                problems.append(f"lacks the attribute {key}.")
        needed = {
            "traj": True,
            "obs": True,
            "uobs": "u_time" in content.arrays,
            "harm": any(name.startswith("uf_") for name in content.arrays),
        }
        for name in (name for name in SCALES if needed[name]):
            if name not in content.arrays or content.arrays[name].attributes.get("CLASS") != "DIMENSION_SCALE":
                problems.append(f"lacks the dimension scale '{name}'.")
    return problems


def describe_trajectory_file(path: str | Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Everything `snet info` says about a trajectory file, JSON-able: no NaN, null where nothing is known.

    Raises
    ------
    DataError
    """
    loaded = load_with_notes(path, max_bytes=max_bytes, allow_missing_channels=True)
    data = loaded.trajectories
    return {
        "kind": FORMAT,
        "format_version": VERSION,
        "title": data.title,
        "history": data.history,
        "trajectories": len(data),
        "samples": int(data.time.size),
        "samples_per_trajectory": _spread(data.row_size),
        "time": _describe_time(data),
        "outputs": [_describe_output(data, channel) for channel in range(len(data.output_names))],
        "states": list(data.state_names),
        "inputs": _describe_inputs(data),
        "truth": data.truth is not None,
        "x0": None if data.x0 is None else _known_starts(data),
        "split": None
        if data.split is None
        else {name: int(np.sum(data.split == number)) for number, name in enumerate(SPLIT_NAMES)},
        "init_window": None if data.init_window is None else _spread(data.init_window),
        "parameters": {name: _spread(values) for name, values in data.parameters.items()},
        "system": data.system,
        "provenance": data.provenance,
        "ids": list(data.ids),
        "unchecked": list(loaded.unchecked),
        "notes": [*loaded.notes, *_missing_notes(data)],
        "bytes": loaded.size,
        "sha256": loaded.sha256,
    }


def _missing_notes(data: Trajectories) -> list[str]:
    if not data.time.size:
        return []
    names = [n for channel, n in enumerate(data.output_names) if np.isnan(data.outputs[:, channel]).all()]
    return [f"output '{name}' has no value at all." for name in names]


def _describe_time(data: Trajectories) -> dict[str, Any]:
    return {
        "unit": data.time_unit,
        "start": _number(data.start.min()),
        "end": _number(data.end.max()),
        "duration": _spread(data.end - data.start),
        "sampling_interval": data.sampling_interval(),
    }


def _describe_output(data: Trajectories, channel: int) -> dict[str, Any]:
    name = data.output_names[channel]
    values = data.outputs[:, channel]
    known = values[~np.isnan(values)]
    return {
        "name": name,
        "unit": data.units.get(name, ""),
        **_range(known),
        "missing": int(values.size - known.size),
        "noise_std": data.noise_std.get(name),
    }


def _describe_inputs(data: Trajectories) -> list[dict[str, Any]]:
    described: dict[str, dict[str, Any]] = {}
    if (sampled := data.inputs.sampled) is not None:
        for channel, (name, hold) in enumerate(zip(sampled.names, sampled.intersample, strict=True)):
            described[name] = {
                "intersample": hold,
                "samples": int(sampled.time.size),
                "end": _number(data.inputs.sampled_end().max()),
                **_range(sampled.values[:, channel]),
            }
    if (fourier := data.inputs.fourier) is not None:
        for channel, name in enumerate(fourier.names):
            reach = np.hypot(fourier.cos[:, channel], fourier.sin[:, channel]).sum(-1)
            rate = np.abs(fourier.omega[:, channel])
            slowest = rate[rate > 0].min() if np.any(rate > 0) else 0.0
            described[name] = {
                "intersample": "fourier",
                "harmonics": int(fourier.omega.shape[-1]),
                "period": _number(2 * np.pi / slowest) if slowest else None,
                "amplitude": _number(reach.max()),
                "mean": _number(fourier.mean[:, channel].mean()),
            }
    units = data.inputs.units
    return [{"name": n, "unit": units.get(n, data.units.get(n, "")), **described[n]} for n in data.inputs.names]


def _known_starts(data: Trajectories) -> dict[str, int]:
    """Number of trajectories whose start is known, by state."""
    assert data.x0 is not None
    known = (~np.isnan(data.x0)).sum(axis=0)
    return {name: int(count) for name, count in zip(data.state_names, known, strict=True)}


def _range(known: NDArray[Any]) -> dict[str, Any]:
    if known.size == 0:
        return {"min": None, "max": None, "mean": None, "std": None, "constant": False}
    return {
        "min": _number(known.min()),
        "max": _number(known.max()),
        "mean": _number(known.mean()),
        "std": _number(known.std()),
        "constant": bool(known.size > 1 and known.min() == known.max()),
    }


def _spread(values: NDArray[Any]) -> dict[str, Any]:
    return {"min": _number(values.min()), "median": _number(np.median(values)), "max": _number(values.max())}


def _number(value: Any) -> float | int | None:
    """A plain number; None where it is not finite (JSON has no word for it)."""
    plain: float | int = value.item() if isinstance(value, np.generic) else value
    return plain if np.isfinite(plain) else None
