"""Where a file came from: subcommand, options, versions, seed and parents; no path, no host, no clock."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from snet_cli import __version__

SILENT = frozenset(
    {"output", "force", "resume", "quiet", "verbose", "json", "metrics", "checkpoint_every", "plot", "require"}
    | {"max_bytes", "max_memory", "dry_run"}
)
"""Options that change no result, and so stand in no file (DESIGN, section 5)."""

LIBRARIES = ("numpy", "scipy", "torch", "h5py")
"""Those whose version can change the last digits of a result."""


def provenance(command: str, options: Mapping[str, Any], *, parents: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a file keeps of the run that wrote it.

    Parameters
    ----------
    command : str
        Subcommand: ``"fit"``.
    options : mapping
        All options as resolved, JSON-able; those that change no result, and those that name a parent, are left out.
    parents : mapping of str to str
        sha256 of every file that was read, by its role: ``{"train": ...}``.

    Returns
    -------
    dict
        ``snet``, ``command``, ``options``, ``seed`` (null where there is none), ``versions``, ``parents``.
    """
    parents = dict(parents or {})
    kept = {key: value for key, value in options.items() if key not in SILENT and key not in parents}
    return {
        "snet": __version__,
        "command": command,
        "options": kept,
        "seed": kept.get("seed"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "parents": parents,
    }


def history_line(record: Mapping[str, Any], earlier: Sequence[str] = ()) -> str:
    """The netCDF attribute `history`: the parents' lines, then one line for this run."""
    options = " ".join(f"{key}={value}" for key, value in record["options"].items() if value not in (None, "", [], {}))
    line = f"snet {record['snet']} {record['command']} {options}".rstrip()
    return "\n".join([*(text for text in dict.fromkeys(earlier) if text), line])
