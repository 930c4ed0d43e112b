"""`snet import`: recordings from elsewhere -> trajectory file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.options import CommonOptions, ImportOptions
from snet_cli.data.outputs import check_no_input_is_overwritten, check_output
from snet_cli.data.storage import display
from snet_cli.data.tables import import_tables, kinds_of
from snet_cli.data.trajectories import SPLIT_NAMES, Trajectories
from snet_cli.errors import SnetError
from snet_cli.workflows.memory_limits import free_memory, left, require_memory, resident
from snet_cli.workflows.provenance import history_line, provenance
from snet_cli.workflows.reporter import Reporter, Silent

COPIES = {"csv": 4.5, "npz": 6.0, "mat5": 6.0, "mat73": 6.0, "own": 8.0}
"""Peak memory of an import in one piece, in bytes per byte of its files, by their kind."""

SMALL = 20_000_000
"""Bytes of files that are never imported in slices: the memory of one slice is no smaller."""

IN_SLICES = 120e6
"""Bytes that an import in slices takes beside what the program has."""

SMALLER = "Import fewer files at a time, or raise --max-memory where there is more."


def import_(
    paths: Sequence[str],
    output: str,
    options: ImportOptions,
    common: CommonOptions | None = None,
    *,
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
    common : CommonOptions
        Its `max_bytes`, the largest file that is read, stored or unpacked, and `max_memory`.
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
    report, common = report or Silent(), common or CommonOptions()
    check_no_input_is_overwritten(output, *paths)
    check_output(output, force)
    files = [Path(path) for path in paths]
    work = _in_slices if _needs_slices(files, output, common) else _in_one_piece
    return work(files, output, options, common, force, dry_run, report)


def _needs_slices(paths: Sequence[Path], output: str, common: CommonOptions) -> bool:
    """Whether the import does not fit into the memory in one piece; judged by the sizes of the files alone.

    Raises
    ------
    UsageError
        If it does not, and standard output has to take it in one piece.
    """
    try:
        kinds = kinds_of(paths, common.max_bytes)
        sizes = [os.path.getsize(path) for path in paths]
    except (SnetError, OSError):
        return False  # reading them says what is wrong
    if sum(sizes) < SMALL:
        return False
    needed = sum(COPIES[kind] * size for kind, size in zip(kinds, sizes, strict=True))
    large = needed > left(free_memory(common), common)
    if large and output == "-":
        _require("an import in one piece", needed, common, "Use -o FILE.h5, which is written in slices.")
    return large


def _require(what: str, needed: float, common: CommonOptions, hint: str) -> None:
    """Refuse what does not fit beside what the program has."""
    own = resident() if common.max_memory is not None else 0.0  # what the machine has left is left already
    require_memory(what, needed + own, common, hint)


def _in_one_piece(
    paths: Sequence[Path],
    output: str,
    options: ImportOptions,
    common: CommonOptions,
    force: bool,
    dry_run: bool,
    report: Reporter,
) -> dict[str, Any]:
    from snet_cli.data.slice_writer import save_in_place  # h5py costs 0.1 s at import
    from snet_cli.data.trajectory_file import save_trajectories

    named = options.model_dump()
    angles = named.pop("angle")
    imported = import_tables(paths, **named, angles=angles, max_bytes=common.max_bytes)
    data = imported.trajectories
    measured = np.isfinite(data.outputs).sum(axis=0)
    missing = {name: int(data.time.size - count) for name, count in zip(data.output_names, measured, strict=True)}
    summary = _summary(data, data.row_size, data.sampling_interval(), missing, data.split, imported.notes, report)
    if dry_run:
        return {**summary, "dry_run": True}
    data = _with_record(data, paths, options)
    save = save_trajectories if output == "-" else save_in_place  # the same bytes as in slices
    return {**summary, "sha256": save(output, data, force), "output": output}


def _in_slices(
    paths: Sequence[Path],
    output: str,
    options: ImportOptions,
    common: CommonOptions,
    force: bool,
    dry_run: bool,
    report: Reporter,
) -> dict[str, Any]:
    """The same with the samples on scratch."""
    from snet_cli.data.import_slices import import_in_slices
    from snet_cli.data.slice_writer import save_content

    report.detail("the recordings are read and written in slices: they are more than the memory holds at once.")

    def require(what: str, needed: float) -> None:
        _require(what, needed, common, SMALLER)

    require("an import in slices", IN_SLICES)
    data, notes = import_in_slices(paths, options, max_bytes=common.max_bytes, require=require)
    missing = {name: data.samples - count for name, count in data.measured().items()}
    summary = _summary(data.bare, data.row_size, data.sampling_interval(), missing, data.bare.split, notes, report)
    if dry_run:
        return {**summary, "dry_run": True}
    data = replace(data, bare=_with_record(data.bare, paths, options))
    sha256 = save_content(output, *data.content(display(output)), force)
    return {**summary, "sha256": sha256, "output": output}


def _with_record(data: Trajectories, paths: Sequence[Path], options: ImportOptions) -> Trajectories:
    """The trajectories with where they came from."""
    parents = {f"recording-{k:03d}": _sha256(path) for k, path in enumerate(paths, 1)}
    record = provenance("import", options.model_dump(mode="json"), parents=parents)
    return replace(data, provenance=record, history=history_line(record, [data.history]))


def _summary(
    data: Trajectories,
    row_size: NDArray[np.int64],
    interval: float,
    missing: dict[str, int],
    split: NDArray[np.int64] | None,
    notes: Sequence[str],
    report: Reporter,
) -> dict[str, Any]:
    """What is said of the import; `data` is asked for names and units only."""
    for note in notes:
        report.note(note)
    return {
        "command": "import",
        "trajectories": int(row_size.size),
        "samples": int(row_size.sum()),
        "states": list(data.output_names),
        "inputs": list(data.inputs.names),
        "units": dict(data.units),
        "time_unit": data.time_unit,
        "sampling_interval": interval,
        "missing": missing,
        "split": None if split is None else {name: int((split == k).sum()) for k, name in enumerate(SPLIT_NAMES)},
        "notes": list(notes),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
