"""What `snet fit` is about to do: the plan of ``--dry-run``, and what the user should know before training."""

from __future__ import annotations

import math
from typing import Any

from snet_cli.data.options import CommonOptions
from snet_cli.distributed import ALONE, Team
from snet_cli.training.method_choice import MethodChoice
from snet_cli.training.options import FitOptions
from snet_cli.workflows import device_choice
from snet_cli.workflows.device_choice import devices_to_time, plan_of_choice
from snet_cli.workflows.fit_data import load_fit_data
from snet_cli.workflows.methods import METHODS, check_unknowns, iterations_of, resolve_method
from snet_cli.workflows.plan_slices import plan_in_slices
from snet_cli.workflows.reporter import Reporter
from snet_cli.workflows.sliced_data import needs_slices
from snet_cli.workflows.train_one import search_end, set_up
from snet_cli.workflows.training_plan import IN_SLICES, Ingredients
from snet_cli.workflows.training_setup import Setup


def plan_of_fit(
    train: str,
    options: FitOptions,
    common: CommonOptions,
    report: Reporter,
    started: float,
    team: Team = ALONE,
    *,
    several: bool = False,
) -> dict[str, Any]:
    """What `--dry-run` prints; every process of the team plans all of it, and so do several models for each."""
    if needs_slices(train, options, common, ALONE):
        found, parts, choice, notes = plan_in_slices(train, options, common, report, search_end(options, started))
        tell_setup(parts.setup, notes, report)
        return {**_plan(parts, choice, notes), **found}
    devices = device_choice.candidates(common.device)
    devices = devices_to_time(devices, options, report, team, several=several)
    device = devices[-1]
    data = load_fit_data(train, options, common, report)
    setup = set_up(options, common, data.train, device, started)
    parts = Ingredients(setup, data, options, common, device)
    choice = resolve_method(parts)
    notes = notes_of(parts, choice) + plan_of_choice(devices)
    tell_setup(setup, notes, report)
    return _plan(parts, choice, notes)


def _plan(parts: Ingredients, choice: MethodChoice, notes: list[str]) -> dict[str, Any]:
    setup, data = parts.setup, parts.data
    zero, names = setup.step_zero, setup.layout.outputs
    return {
        "command": "fit",
        "dry_run": True,
        "method": choice.method,
        "method_reason": choice.reason,
        "model": setup.choice.tree,
        "states": list(setup.layout.states),
        "hidden_states": list(setup.layout.hidden),
        "trajectories": len(data.train),
        "validation": None if data.validation is None else len(data.validation),
        "order": zero.mesh.basis.order,
        "elements": zero.mesh.elements_of_longest,
        "points": setup.problem.t.numel(),
        "parameters": sum(p.numel() for p in setup.trained.model.parameters()),
        "iterations": iterations_of(parts.options, choice.method),
        "step_zero": {
            name: {"error": float(error), "noise": float(noise) if math.isfinite(noise) else None}
            for name, error, noise in zip(names, zero.error, zero.noise, strict=True)
        },
        "notes": notes,
    }


def notes_of(parts: Ingredients, choice: MethodChoice) -> list[str]:
    """What the user should know of the method and the data before training."""
    notes = [f"method {choice.method}: {choice.reason}"] if parts.options.method == "auto" else []
    if not parts.settled.get(IN_SLICES):  # there the data is not at hand, and building has checked it
        notes += check_unknowns(choice.method, parts)
    return notes + list(parts.setup.step_zero.notes if METHODS[choice.method].needs_all_states else ())


def tell_setup(setup: Setup, notes: list[str], report: Reporter) -> None:
    """Say the notes, and with --verbose what step 0 is like."""
    zero, mesh = setup.step_zero, setup.step_zero.mesh
    for note in notes:
        report.note(note)
    report.detail(
        f"step 0: order {mesh.basis.order}, {mesh.elements_of_longest} element(s), {setup.problem.t.numel()} points, "
        f"condition {zero.condition:.3g}, misfit {zero.misfit:.3g}"
    )
