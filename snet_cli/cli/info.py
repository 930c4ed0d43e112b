"""`snet info`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from snet_cli.cli import flags
from snet_cli.cli.console import columns, number, with_unit
from snet_cli.cli.flags import Switch, Text
from snet_cli.cli.session import counted, needed, open_session
from snet_cli.config.scalars import flow
from snet_cli.workflows.info import broken_rules, info

EXAMPLES = (
    "snet info train.h5",
    "snet info model.h5 --json",
    "snet info train.h5 --check && snet fit train.h5 -o model.h5",
)
"""Shown at the end of the help."""


def command(
    ctx: typer.Context,
    file: Annotated[Text, typer.Argument(metavar="FILE", help="Trajectory file or model; - is stdin.")] = None,
    check: Annotated[Switch, typer.Option("--check", help="Verify every rule of the file's schema.")] = None,
    max_bytes: flags.MaxBytes = None,
    json: flags.Json = None,
    quiet: flags.Quiet = None,
    verbose: flags.Verbose = None,
) -> None:
    """Say what is in a trajectory file or a model, and where it came from.

    --check exits 3 for a data file, 4 for a model, that is damaged or breaks a rule.
    """
    session = open_session(ctx)
    result = info(needed(file, "FILE", "snet info train.h5"), check=bool(check), max_bytes=session.common.max_bytes)
    for note in result["notes"]:
        session.console.note(note)
    session.present(result, _lines(result), failure=broken_rules(result))


def _lines(result: Mapping[str, Any]) -> list[str]:
    head = f"{result['file']}: {result['kind']} {result['format_version']}, {result['bytes']} bytes"
    lines = [head + (f", {result['title']}" if result["title"] else "")]
    lines += _data_lines(result) if "trajectories" in result else _model_lines(result)
    lines += [f"made by {line}" for line in result["history"].splitlines()]
    parents = result["provenance"].get("parents") or {}
    lines += [f"from {role}: sha256 {digest}" for role, digest in parents.items()]
    lines.append(f"sha256 {result['sha256']}")
    if "problems" in result:
        lines += [f"broken rule: {problem}" for problem in result["problems"]] or ["every rule of the schema is kept"]
    return lines


def _data_lines(result: Mapping[str, Any]) -> list[str]:
    time, sizes = result["time"], result["samples_per_trajectory"]
    lines = [
        f"{counted(result['trajectories'], 'trajectory', 'trajectories')}, {counted(result['samples'], 'sample')} "
        f"({number(sizes['min'])} to {number(sizes['max'])} each), every {number(time['sampling_interval'])} "
        f"{time['unit']} from {number(time['start'])} to {number(time['end'])}"
    ]
    rows = [["output", "unit", "min", "max", "std", "missing", "noise"]]
    for one in result["outputs"]:
        values = [number(one[key]) for key in ("min", "max", "std")]
        rows.append([one["name"], one["unit"], *values, str(one["missing"]), number(one["noise_std"])])
    lines += columns(rows)
    for one in result["inputs"]:
        about = f"{one['samples']} samples" if "samples" in one else f"{counted(one['harmonics'], 'harmonic')}"
        lines.append(f"input {with_unit(one['name'], {one['name']: one['unit']})}: {one['intersample']}, {about}")
    known = [name for name, held in (("truth", result["truth"]), ("x0", result["x0"] is not None)) if held]
    lines += [f"also known: {', '.join(known)}"] if known else []
    for key in ("split", "system", "parameters"):
        if result[key]:
            lines.append(f"{key}: " + ", ".join(f"{name} {value}" for name, value in result[key].items()))
    return lines


def _model_lines(result: Mapping[str, Any]) -> list[str]:
    contract, config = result["contract"], result["config"]
    units = contract.get("units", {})
    lines = [
        f"{result['checkpoint']}: {counted(result['entries'], 'number')} in {counted(len(result['state']), 'array')}"
    ]
    for key in ("states", "outputs", "inputs"):
        if contract.get(key):
            lines.append(f"{key}: {', '.join(with_unit(name, units) for name in contract[key])}")
    if result["confidence"] is not None:
        lines += _confidence_lines(result["confidence"], contract.get("outputs", []))
    for key, tree in (("model", contract.get("model")), *config.items()):
        if isinstance(tree, Mapping):
            told = {name: value for name, value in tree.items() if value not in (None, [], {}, "")}
            shown = [f"{name}={flow(value)}" for name, value in told.items() if key == "model" or name != "model"]
            lines.append(f"{key}: {' '.join(shown)}")
    return lines


def _confidence_lines(confidence: Mapping[str, Any], outputs: list[str]) -> list[str]:
    noise = zip(outputs, confidence["noise_std"], strict=False)
    lines = [
        f"the data determines {confidence['effective']:.3g} of {counted(confidence['numbers'], 'number')}; noise "
        + ", ".join(f"{name} {number(level)}" for name, level in noise)
    ]
    rows = [["parameter", "estimate", "± 95 %"]]
    rows += [[p["name"], number(p["estimate"]), number(p["half_width"])] for p in confidence["parameters"]]
    return lines + (columns(rows) if confidence["parameters"] else [])
