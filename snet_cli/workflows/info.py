"""`snet info`: what is in a file, and whether it keeps every rule of its schema; never imports torch."""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Any

from snet_cli.data.checkpoint_file import check_checkpoint_file, describe_checkpoint_file
from snet_cli.data.outputs import no_scratch
from snet_cli.data.storage import MAX_BYTES, read_image
from snet_cli.data.trajectory_layout import CHECKPOINT_FORMAT
from snet_cli.data.trajectory_summary import check_trajectory_file, describe_trajectory_file
from snet_cli.errors import CheckpointError, DataError, SnetError


def info(file: str, *, check: bool = False, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """What a trajectory file or a checkpoint holds, every key, JSON-able.

    Parameters
    ----------
    file : str
        Path; "-" is stdin.
    check : bool
        Whether to look for broken rules too; they stand under ``problems``.
    max_bytes : int
        Largest file that is read, stored or unpacked.

    Raises
    ------
    DataError, CheckpointError
        If the file cannot be read.
    OutputError
        If there is no room for a temporary file, which standard input needs.
    """
    if file == "-":
        image = read_image("-", max_bytes)
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "standard input")
                with open(path, "wb") as stream:
                    stream.write(image)
                return {**info(path, check=check, max_bytes=max_bytes), "file": "-"}
        except OSError as problem:
            raise no_scratch(problem) from None
    if _looks_like_checkpoint(file):
        described = describe_checkpoint_file(file, max_bytes=max_bytes)
        problems = check_checkpoint_file(file, max_bytes=max_bytes) if check else []
    else:
        described = describe_trajectory_file(file, max_bytes=max_bytes)
        problems = check_trajectory_file(file, max_bytes=max_bytes) if check else []
    return {"command": "info", "file": file, **described, **({"problems": problems} if check else {})}


def broken_rules(result: dict[str, Any]) -> SnetError | None:
    """The error for a file that breaks rules of its schema; None if it keeps them all, or was not asked."""
    problems = result.get("problems")
    if not problems:
        return None
    kind = CheckpointError if result["kind"] == CHECKPOINT_FORMAT else DataError
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return kind(f"{result['file']}: {problems[0]}{more}", "Write it again with snet, or mend it with h5py.")


def _looks_like_checkpoint(file: str) -> bool:
    """Whether the bytes name the checkpoint's format: tells damaged checkpoints from damaged data too."""
    try:
        with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(CHECKPOINT_FORMAT.encode()) >= 0
    except (OSError, ValueError):  # missing, a folder, empty: the reader says it better
        return False
