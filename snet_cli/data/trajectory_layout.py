"""The table of the trajectory file: which attributes and variables it has, of which type and shape.

Only names, types and shapes are looked at here, no value; what the values must be is said in `trajectory_rules`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from snet_cli.data.content import Content, FileError, Value, open_content
from snet_cli.data.storage import MAX_BYTES
from snet_cli.data.trajectory_rules import Problem, bad_name
from snet_cli.errors import DataError

FORMAT = "snet-trajectory"
VERSION = "1.0"
CHECKPOINT_FORMAT = "snet-checkpoint"

SCALES = ("traj", "obs", "uobs", "harm")

FOURIER_PARTS = ("mean", "omega", "cos", "sin")

WRITE_HINT = "Write it with snet_cli.save(path, trajectories), or convert the original: snet import --help"


def require_format(content: Content, label: str, expected: str, error: FileError) -> None:
    """Refuse a file of another kind or of a newer major version.

    Raises
    ------
    DataError or CheckpointError
        The one given as `error`.
    """
    found = content.attributes.get("snet_format")
    kinds = {FORMAT: "a trajectory file", CHECKPOINT_FORMAT: "a checkpoint"}
    if found != expected:
        what = kinds.get(str(found), "an HDF5 file of another program (it has no attribute snet_format)")
        hints = {
            CHECKPOINT_FORMAT: "Checkpoints come first: snet evaluate MODEL TEST",
            FORMAT: "Train a model on it first: snet fit DATA -o MODEL",
        }
        raise error(f"{label}: is {what}, expected {kinds[expected]}.", hints.get(str(found), WRITE_HINT))
    version = str(content.attributes.get("snet_format_version", ""))
    major, _, minor = version.partition(".")
    if not (major.isascii() and major.isdigit() and minor.isascii() and minor.isdigit()):
        raise error(f"{label}: the attribute snet_format_version is {version!r}, expected '{VERSION}'.", WRITE_HINT)
    if major != VERSION.partition(".")[0]:
        raise error(f"{label}: is of format version {version}, but this snet reads 1.x.", "Install a newer snet.")


def kind_of(image: bytes, label: str, max_bytes: int = MAX_BYTES) -> str | None:
    """``"snet-trajectory"``, ``"snet-checkpoint"``, or None for an HDF5 file of another program."""
    with open_content(image, label, DataError, max_bytes) as content:
        found = content.attributes.get("snet_format")
    return str(found) if found in (FORMAT, CHECKPOINT_FORMAT) else None


def names_of(content: Content, attribute: str) -> tuple[str, ...] | Problem:
    """The names in a root attribute, a JSON list of text; a problem if it is anything else."""
    text = content.attributes.get(attribute)
    line = f"file.attrs['{attribute}'] = np.bytes_(json.dumps(['x', 'y']))"
    if text is None:
        return Problem(f"lacks the attribute {attribute}, expected a JSON list of names.", f"Write {line}")
    names = parse_json(text)
    if not isinstance(names, list) or any(bad_name(name) for name in names):
        return Problem(f"the attribute {attribute} is no JSON list of names.", f"Write {line}")
    if len(set(names)) < len(names):
        return Problem(f"the attribute {attribute} names a channel twice.", "Give each its own name.")
    return tuple(names)


def listed_names(content: Content, attribute: str) -> tuple[str, ...]:
    """The same where `layout_problems` found none; empty where the attribute is wrong."""
    names = names_of(content, attribute)
    return () if isinstance(names, Problem) else names


def parse_json(text: Value) -> Any:
    """The value of a JSON text; None where it is none (NaN and Infinity are none)."""

    def refuse(word: str) -> Any:
        raise ValueError(word)

    try:
        return json.loads(text, parse_constant=refuse) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def variables(content: Content) -> dict[str, tuple[tuple[str, ...], str]]:
    """Dimensions and kind of type of every variable that this file may have, by name."""
    outputs, inputs, states = (listed_names(content, key) for key in ("output_names", "input_names", "state_names"))
    layout: dict[str, tuple[tuple[str, ...], str]] = {
        "trajectory": (("traj",), "S"),
        "row_size": (("traj",), "i"),
        "time": (("obs",), "f"),
        "u_row_size": (("traj",), "i"),
        "u_time": (("uobs",), "f"),
        "split": (("traj",), "i"),
        "init_window": (("traj",), "i"),
    }
    layout |= {f"y_{name}": (("obs",), "f") for name in outputs}
    layout |= {f"xtrue_{name}": (("obs",), "f") for name in states}
    layout |= {f"x0_{name}": (("traj",), "f") for name in states}
    layout |= {name: (("traj",), "f") for name in content.arrays if name.startswith("param_")}
    for name in inputs:
        layout[f"u_{name}"] = (("uobs",), "f")
        layout[f"uf_{name}_mean"] = (("traj",), "f")
        layout |= {f"uf_{name}_{part}": (("traj", "harm"), "f") for part in FOURIER_PARTS[1:]}
    return layout


def layout_problems(content: Content) -> Iterator[Problem]:
    """What differs from the table of the schema: attributes, variables, types, shapes. No value is read."""
    for key in ("output_names", "input_names", "state_names"):
        if isinstance(names := names_of(content, key), Problem):
            yield names
            return
    for key in ("provenance", "system"):
        if key in content.attributes and not isinstance(parse_json(content.attributes[key]), dict):
            yield Problem(f"the attribute {key} is no JSON object.", "Write it with json.dumps, or leave it out.")
    for key in ("title", "history"):
        if not isinstance(content.attributes.get(key, ""), str):
            yield Problem(f"the attribute {key} is no text.", "Write a text, or leave it out.")
    layout = variables(content)
    missing = [name for name in _required(content) if name not in content.arrays]
    for name in missing:
        yield Problem(f"there is no variable '{name}'.", WRITE_HINT)
    for name in content.arrays:
        if name.startswith("y_") and name not in layout:
            yield Problem(f"'{name}' is not among output_names.", "Name every output there, in order.")
        elif name.startswith(("u_", "uf_")) and name not in layout:
            yield Problem(f"'{name}' is not among input_names.", "Name every input there, in order.")
        elif name.startswith("u_") and f"uf_{name[2:]}_mean" in content.arrays:
            yield Problem(f"the input '{name[2:]}' is both sampled and a Fourier series.", "Leave one of them out.")
    if not missing:
        yield from _variable_problems(content, layout)


def _required(content: Content) -> list[str]:
    """Variables that this file must have, given its names."""
    outputs, inputs = (listed_names(content, key) for key in ("output_names", "input_names"))
    fourier = [name for name in inputs if f"uf_{name}_mean" in content.arrays]
    sampled = [name for name in inputs if name not in fourier]
    return [
        *("trajectory", "row_size", "time"),
        *(f"y_{name}" for name in outputs),
        *(("u_row_size", "u_time") if sampled else ()),
        *(f"u_{name}" for name in sampled),
        *(f"uf_{name}_{part}" for name in fourier for part in FOURIER_PARTS),
    ]


def _variable_problems(content: Content, layout: Mapping[str, tuple[tuple[str, ...], str]]) -> Iterator[Problem]:
    """Types and shapes; the length of a dimension is that of the first variable that has it."""
    sizes: dict[str, int] = {}
    kinds = {"S": "fixed-length text (S64)", "i": "whole numbers (int64)", "f": "float64 or float32"}
    for name in (name for name in layout if name in content.arrays):
        array, (dimensions, kind) = content.arrays[name], layout[name]
        fits = array.dtype.kind in ("iu" if kind == "i" else kind) and (kind != "f" or array.dtype.itemsize >= 4)
        if not fits:
            yield Problem(f"'{name}' has type {array.dtype}, expected {kinds[kind]}.", "Write it with .astype(...).")
        if len(array.shape) != len(dimensions):
            yield Problem(f"'{name}' has shape {array.shape}, expected {_named(dimensions)}.", "Reshape it.")
            continue
        for dimension, size in zip(dimensions, array.shape, strict=True):
            if sizes.setdefault(dimension, size) != size:
                expected = tuple(sizes.get(d, d) for d in dimensions)
                yield Problem(
                    f"'{name}' has shape {array.shape}, expected {expected} {_named(dimensions)}.",
                    "All variables of a dimension have its length.",
                )
        if not isinstance(array.attributes.get("units", ""), str):
            yield Problem(f"the units of '{name}' are no text.", "Write a text such as 'm/s'.")
        if not isinstance(array.attributes.get("snet_noise_std", 0.0), int | float):
            yield Problem(f"snet_noise_std of '{name}' is no number.", "Write one float.")


def _named(dimensions: Sequence[str]) -> str:
    return f"({', '.join(dimensions)}{',' if len(dimensions) == 1 else ''})"
