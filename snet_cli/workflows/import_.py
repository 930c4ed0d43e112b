"""`snet import`: recordings from elsewhere -> trajectory file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from snet_cli.data.options import ImportOptions
from snet_cli.data.storage import MAX_BYTES, check_no_input_is_overwritten, check_output
from snet_cli.data.tables import import_tables
from snet_cli.data.trajectories import SPLIT_NAMES, Trajectories
from snet_cli.workflows.provenance import history_line, provenance
from snet_cli.workflows.reporter import Reporter, Silent


def import_(
    paths: Sequence[str],
    output: str,
    options: ImportOptions,
    *,
    max_bytes: int = MAX_BYTES,
    force: bool = False,
    dry_run: bool = False,
    report: Reporter | None = None,
) -> dict[str, Any]:
    """Read tables, or trajectory files to be merged, and write one trajectory file.

    Parameters
    ----------
    paths : sequence of str
        CSV, NPZ and MAT files, or trajectory files.
    output : str
        Path; "-" writes to stdout.
    max_bytes : int
        Largest file that is read, stored or unpacked.
    force : bool
        Overwrite an existing output.
    dry_run : bool
        Read and check everything, write nothing.

    Returns
    -------
    dict
        What was imported, JSON-able.

    Raises
    ------
    SnetError
        Any of the tree; nothing is written then.
    """
    from snet_cli.data import slice_writer  # h5py costs 0.1 s at import
    from snet_cli.data.trajectory_file import save_trajectories

    report = report or Silent()
    check_no_input_is_overwritten(output, *paths)
    check_output(output, force)
    named = options.model_dump()
    angles = named.pop("angle")
    imported = import_tables([Path(path) for path in paths], **named, angles=angles, max_bytes=max_bytes)
    for note in imported.notes:
        report.note(note)
    summary = {"command": "import", **_summary(imported.trajectories), "notes": list(imported.notes)}
    if dry_run:
        return {**summary, "dry_run": True}
    parents = {f"recording-{k:03d}": _sha256(path) for k, path in enumerate(paths, 1)}
    record = provenance("import", options.model_dump(mode="json"), parents=parents)
    earlier = [imported.trajectories.history]
    data = replace(imported.trajectories, provenance=record, history=history_line(record, earlier))
    large = data.outputs.size >= slice_writer.LARGE and output != "-"
    save = slice_writer.save_in_place if large else save_trajectories
    return {**summary, "sha256": save(output, data, force), "output": output}


def _summary(data: Trajectories) -> dict[str, Any]:
    measured = np.isfinite(data.outputs).sum(axis=0)
    split = data.split
    return {
        "trajectories": len(data),
        "samples": int(data.row_size.sum()),
        "states": list(data.output_names),
        "inputs": list(data.inputs.names),
        "units": dict(data.units),
        "time_unit": data.time_unit,
        "sampling_interval": data.sampling_interval(),
        "missing": {name: int(data.time.size - count) for name, count in zip(data.output_names, measured, strict=True)},
        "split": None if split is None else {name: int((split == k).sum()) for k, name in enumerate(SPLIT_NAMES)},
    }


def _sha256(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
