"""The checkpoint `snet-checkpoint` 1.0: JSON and arrays in HDF5; nothing in it runs when it is read.

    / attrs: snet_format snet_format_version snet_kind="model|resume" title history provenance snet_content_sha256
    /config /contract                JSON as uint8: the resolved options; names, units, hold of the data
    /model/state/<key>               one array per key of the state_dict, dots kept
    /model/source                    text of the user's model file as uint8, with its sha256; optional
    /normalization/<key>
    /posterior/<key>                 uncertainty of the weights (`data.posterior`); optional
    /<group>/<key>                   what a resume state adds: collocation, optimizer, rng, progress, history, data

The architecture is a name in `contract`, never an import path. Unlike trajectory files, which people correct with
h5py, a checkpoint is only ever written whole: `snet_content_sha256` covers every name, type, shape, attribute and
value (`content_sha256`), is compared on every read, and so finds damage and edits even where each part of the file
is valid by itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.content import Array, Content, Value, encode, open_content, to_json
from snet_cli.data.guard import MAX_OBJECTS
from snet_cli.data.outputs import write_atomic
from snet_cli.data.posterior import describe_posterior, read_posterior
from snet_cli.data.storage import MAX_BYTES, display, read_image
from snet_cli.data.trajectory_layout import CHECKPOINT_FORMAT, VERSION, parse_json, require_format
from snet_cli.data.trajectory_rules import bad_name, bad_text
from snet_cli.errors import CheckpointError

Kind = Literal["model", "resume"]
KINDS: tuple[Kind, ...] = ("model", "resume")

Arrays = Mapping[str, NDArray[Any]]

OWN_GROUPS = ("model", "normalization", "config", "contract", "provenance_text", "title_text", "history_text")
"""Names at the root that groups of a resume state cannot have."""

SUM = "snet_content_sha256"

DAMAGED_HINT = "Take the file from a backup, or train it again."


@dataclass(frozen=True)
class Checkpoint:
    """A model, or the state of a run, as plain arrays and JSON.

    Attributes
    ----------
    kind : {"model", "resume"}
    config : dict
        The resolved options of the run.
    contract : dict
        Names, units and holds of the data that the model was made for, and the architecture by name.
    state : mapping of str to ndarray
        The `state_dict` of the model: numbers of any type and shape, all finite.
    normalization : mapping of str to ndarray
        Scales fitted to the training data, all finite.
    extra : mapping of str to mapping of str to ndarray
        Groups of arrays: loss curves, and what a resume state needs. May hold NaN.
    title, history : str
    provenance : dict
        Subcommand, options, versions, seeds, sha256 of the parents.
    model_source : str or None
        Text of the user's own model file. It is never run from here.
    """

    kind: Kind
    config: dict[str, Any]
    contract: dict[str, Any]
    state: Arrays
    normalization: Arrays = field(default_factory=dict)
    extra: Mapping[str, Arrays] = field(default_factory=dict)
    title: str = ""
    history: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    model_source: str | None = None


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint that was read, with the notes on it.

    Attributes
    ----------
    checkpoint : Checkpoint
    notes : tuple of str
    sha256 : str
        Of the file's bytes.
    size : int
        Bytes of the file.
    """

    checkpoint: Checkpoint
    notes: tuple[str, ...]
    sha256: str
    size: int


def save_checkpoint(path: str | Path, checkpoint: Checkpoint, force: bool = False) -> str:
    """Write a checkpoint, whole or not at all (``-``: standard output).

    Returns
    -------
    str
        The sha256 of the file.

    Raises
    ------
    CheckpointError
        If it holds what no checkpoint can: weights that are not finite, names with "/", objects.
    OutputError
        If the file exists and `force` is false, or cannot be written.
    """
    image = encode_checkpoint(checkpoint, display(path))
    write_atomic(path, image, force)
    return hashlib.sha256(image).hexdigest()


def encode_checkpoint(checkpoint: Checkpoint, label: str = "the checkpoint") -> bytes:
    """The bytes of a checkpoint file; the same checkpoint gives the same bytes."""
    for problem in _problems(checkpoint):
        raise CheckpointError(f"{label}: {problem}", "Nothing was written.")
    arrays = dict(_arrays(checkpoint, label))
    attributes: dict[str, Value] = {
        "snet_format": CHECKPOINT_FORMAT,
        "snet_format_version": VERSION,
        "snet_kind": checkpoint.kind,
        "title": checkpoint.title,
        "history": checkpoint.history,
        "provenance": _json(checkpoint.provenance, "provenance", label),
    }
    attributes[SUM] = content_sha256(Content(attributes, arrays))
    return encode(Content(attributes, arrays))


def _arrays(checkpoint: Checkpoint, label: str) -> Iterator[tuple[str, Array]]:
    """Every array of the file, in the order of the table above."""
    yield "config", Array.of(_bytes(_json(checkpoint.config, "config", label)))
    yield "contract", Array.of(_bytes(_json(checkpoint.contract, "contract", label)))
    if checkpoint.model_source is not None:
        raw = _bytes(checkpoint.model_source)
        yield "model/source", Array.of(raw, attributes={"sha256": hashlib.sha256(raw.tobytes()).hexdigest()})
    groups = {"model/state": checkpoint.state, "normalization": checkpoint.normalization, **checkpoint.extra}
    for group, members in groups.items():
        for name, values in members.items():
            yield f"{group}/{name}", Array.of(values)


def _json(value: Any, what: str, label: str) -> str:
    try:
        return to_json(value)
    except (ValueError, TypeError) as problem:
        raise CheckpointError(f"{label}: {what} cannot be written as JSON: {problem}.", "") from None


def _bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)


def content_sha256(content: Content) -> str:
    """One digest over all names, types, shapes, attributes and values, whatever their order in the file."""
    digest = hashlib.sha256()
    attributes = {name: value for name, value in content.attributes.items() if name != SUM}
    digest.update(_canonical(attributes))
    for name in sorted(content.arrays):
        array = content.arrays[name]
        values = array.read()
        kind = values.dtype.newbyteorder("<")
        digest.update(_canonical([name, kind.str, list(values.shape), _plain(array.attributes)]))
        digest.update(np.ascontiguousarray(values, dtype=kind).tobytes())
    return digest.hexdigest()


def _canonical(value: Any) -> bytes:
    text = json.dumps(_plain(value) if isinstance(value, dict) else value, sort_keys=True)
    return f"{len(text)}:{text}".encode()


def _plain(attributes: Mapping[str, Value]) -> dict[str, Any]:
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in attributes.items()}


def _problems(checkpoint: Checkpoint) -> Iterator[str]:
    """What no checkpoint can hold, on writing and on reading."""
    if checkpoint.kind not in KINDS:
        yield f"snet_kind is {checkpoint.kind!r}, expected one of {', '.join(KINDS)}."
    for kind, text in (("title", checkpoint.title), ("history", checkpoint.history)):
        if reason := bad_text(text):
            yield f"the {kind} {reason}."
    for name in checkpoint.extra:
        if bad_name(name) or name in OWN_GROUPS or name in (".", ".."):
            yield f"a group cannot be named {name!r}."
    groups = {"model/state": checkpoint.state, "normalization": checkpoint.normalization, **checkpoint.extra}
    count = sum(map(len, groups.values()))
    if count > MAX_OBJECTS - 100:
        yield f"it holds {count} arrays, more than the limit of {MAX_OBJECTS - 100}."
    for group, members in groups.items():
        finite = group in ("model/state", "normalization")
        for name, values in members.items():
            if (reason := bad_name(name)) or name in (".", ".."):
                yield f"the name {name!r} in '{group}' {reason or 'has a meaning of its own'}."
            elif problem := _array_problem(np.asarray(values), finite):
                yield f"'{group}/{name}' {problem}"


def _array_problem(values: NDArray[Any], finite: bool) -> str | None:
    if values.dtype.kind not in "biufS" or (values.dtype.kind == "f" and values.dtype.itemsize > 8):
        return f"has type {values.dtype}, expected numbers."
    if finite and values.dtype.kind == "S":
        return f"has type {values.dtype}, expected numbers."
    if finite and values.dtype.kind == "f" and not np.isfinite(values).all():
        return f"has {int(np.sum(~np.isfinite(values)))} of {values.size} values that are not finite."
    return None


# Reading


def load_checkpoint(path: str | Path | bytes, *, max_bytes: int = MAX_BYTES) -> Checkpoint:
    """The checkpoint in a file (``-``: standard input) or in the bytes of one.

    Raises
    ------
    CheckpointError
        If it is missing, damaged, hostile, of a newer format, or no checkpoint.
    """
    return load_checkpoint_with_notes(path, max_bytes=max_bytes).checkpoint


def load_checkpoint_with_notes(path: str | Path | bytes, *, max_bytes: int = MAX_BYTES) -> LoadedCheckpoint:
    """The same with the file's sha256, for the provenance of what is made with it, and notes for people."""
    label = "the checkpoint" if isinstance(path, bytes) else display(path)
    image = path if isinstance(path, bytes) else read_image(path, max_bytes, CheckpointError)
    with open_content(image, label, CheckpointError, max_bytes) as content:
        require_format(content, label, CHECKPOINT_FORMAT, CheckpointError)
        notes = _check_sum(content, label)
        checkpoint = _assemble(content, label)
    for problem in _problems(checkpoint):
        raise CheckpointError(f"{label}: {problem}", DAMAGED_HINT)
    return LoadedCheckpoint(checkpoint, notes, hashlib.sha256(image).hexdigest(), len(image))


def _check_sum(content: Content, label: str) -> tuple[str, ...]:
    """Compare the digest, if the file has one; notes where something is not covered."""
    stated = content.attributes.get(SUM)
    if stated is None:
        return (f"no {SUM}: damage could go unnoticed.",)
    if content_sha256(content) != stated:
        raise CheckpointError(
            f"{label}: its content differs from what was written ({SUM} does not match).", DAMAGED_HINT
        )
    return ()


def _assemble(content: Content, label: str) -> Checkpoint:
    groups: dict[str, dict[str, NDArray[Any]]] = {}
    for name, array in content.arrays.items():
        if name in ("config", "contract", "model/source"):
            continue
        group, slash, key = name.rpartition("/")
        if not slash or (group.startswith("model/") and group != "model/state") or group == "model":
            raise CheckpointError(f"{label}: '{name}' has no place in a checkpoint.", DAMAGED_HINT)
        groups.setdefault(group, {})[key] = array.read()
    provenance = parse_json(content.attributes.get("provenance", "{}"))
    if not isinstance(provenance, dict):
        raise CheckpointError(f"{label}: the attribute provenance is no JSON object.", DAMAGED_HINT)
    return Checkpoint(
        kind=cast(Kind, str(content.attributes.get("snet_kind"))),
        config=_read_json(content, "config", label),
        contract=_read_json(content, "contract", label),
        state=groups.pop("model/state", {}),
        normalization=groups.pop("normalization", {}),
        extra=groups,
        title=str(content.attributes.get("title", "")),
        history=str(content.attributes.get("history", "")),
        provenance=provenance,
        model_source=_read_source(content, label),
    )


def _read_bytes(content: Content, name: str, label: str) -> bytes:
    array = content.arrays.get(name)
    if array is None or array.dtype != np.uint8 or len(array.shape) != 1:
        raise CheckpointError(f"{label}: there is no '{name}' (text as uint8).", DAMAGED_HINT)
    return array.read().tobytes()


def _read_json(content: Content, name: str, label: str) -> dict[str, Any]:
    value = parse_json(_read_bytes(content, name, label).decode("utf-8", "replace"))
    if not isinstance(value, dict):
        raise CheckpointError(f"{label}: '{name}' is no JSON object.", DAMAGED_HINT)
    return value


def _read_source(content: Content, label: str) -> str | None:
    if "model/source" not in content.arrays:
        return None
    raw = _read_bytes(content, "model/source", label)
    if hashlib.sha256(raw).hexdigest() != content.arrays["model/source"].attributes.get("sha256"):
        raise CheckpointError(f"{label}: the text of the model file does not match its sha256.", DAMAGED_HINT)
    return raw.decode("utf-8", "surrogateescape")


# Telling


def check_checkpoint_file(path: str | Path, *, max_bytes: int = MAX_BYTES) -> list[str]:
    """What is wrong with a checkpoint that can be read, for `info --check`; empty if every rule is kept.

    Raises
    ------
    CheckpointError
        If it cannot be read at all.
    """
    image, label = read_image(path, max_bytes, CheckpointError), display(path)
    loaded = load_checkpoint_with_notes(image, max_bytes=max_bytes)
    with open_content(image, label, CheckpointError, max_bytes) as content:
        unchecked = [f"'{name}' has no checksum." for name in content.unchecked()]
    return [*unchecked, *loaded.notes]


def describe_checkpoint_file(path: str | Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Everything `snet info` says about a checkpoint, JSON-able.

    Raises
    ------
    CheckpointError
    """
    loaded = load_checkpoint_with_notes(path, max_bytes=max_bytes)
    checkpoint = loaded.checkpoint
    weights = {name: np.asarray(values) for name, values in checkpoint.state.items()}
    source = checkpoint.model_source
    posterior = read_posterior(checkpoint.extra, display(path)) if checkpoint.kind == "model" else None
    return {
        "kind": CHECKPOINT_FORMAT,
        "format_version": VERSION,
        "checkpoint": checkpoint.kind,
        "title": checkpoint.title,
        "history": checkpoint.history,
        "entries": sum(v.size for v in weights.values() if v.dtype.kind == "f"),
        "state": {name: {"shape": list(v.shape), "dtype": str(v.dtype)} for name, v in weights.items()},
        "normalization": {name: np.asarray(v).tolist() for name, v in checkpoint.normalization.items()},
        "groups": {group: sorted(members) for group, members in checkpoint.extra.items()},
        "confidence": None if posterior is None else describe_posterior(checkpoint.state, posterior),
        "config": checkpoint.config,
        "contract": checkpoint.contract,
        "model_source": None
        if source is None
        else {"sha256": hashlib.sha256(_bytes(source).tobytes()).hexdigest(), "text": source},
        "provenance": checkpoint.provenance,
        "notes": list(loaded.notes),
        "bytes": loaded.size,
        "sha256": loaded.sha256,
    }
