"""The solver baselines from the set-up: methods that integrate while they train, on the same model, data and loss."""

from __future__ import annotations

import math

from snet_cli.data.trajectories import Trajectories
from snet_cli.spectral.fitting import channel_scales
from snet_cli.training.options import SHOOTING_ITERATIONS
from snet_cli.training.relaxed_score import REFERENCE_GAMMA
from snet_cli.training.shooting_batches import ShootingBatch, batch_trajectories
from snet_cli.workflows.training_plan import (
    Ingredients,
    MethodEntry,
    Training,
    iteration_limit,
    relaxed_rule,
    validation_of,
)

SHOOTING_METHODS = ("bkpr-euler", "bkpr-dopri5", "adj-euler", "adj-dopri5", "anode")


def shooting_entry(name: str) -> MethodEntry:
    """The entry of one of `SHOOTING_METHODS`."""

    def build(parts: Ingredients) -> Training:
        from snet_cli.training.shooting import Shooting, SolverTolerances  # torchdiffeq costs 0.3 s at import

        options, setup, data = parts.options, parts.setup, parts.data
        model = setup.trained.model
        # step 0 only guesses what no output sees: X then has to follow the model before R says anything of it
        rule = relaxed_rule(parts, setup.problem, None if setup.layout.all_measured else REFERENCE_GAMMA)

        def batches(part: Trajectories) -> tuple[ShootingBatch, ...]:
            return batch_trajectories(
                part,
                setup.layout,
                setup.trained.inputs,
                model.constants,
                scaled=options.scaled,
                known_start=options.x0 != "free",
                start=setup.trained.start,
                scale=channel_scales(data.train.outputs)[1] if options.scaled else None,
                device=parts.device,
            )

        solver = options.solver
        limit = math.inf if parts.common.max_memory is None else parts.common.max_memory
        method = Shooting(
            name,
            model,
            batches(data.train),
            setup.layout.observation,
            rate=options.theta_step.rate,
            tolerances=SolverTolerances(solver.rtol, solver.atol, solver.max_evaluations, limit),
            held_out=() if data.validation is None else batches(data.validation),
        )
        return Training(method, rule, iteration_limit(options, entry), validation=validation_of(parts, rule))

    entry = MethodEntry(build, lambda options: SHOOTING_ITERATIONS)
    return entry
