"""Forecast bands of a checkpoint: its posterior, an ensemble drawn from it, and their forecasts."""

from __future__ import annotations

import torch

from snet_cli.data.checkpoint_file import Checkpoint
from snet_cli.data.options import CommonOptions
from snet_cli.data.posterior import Posterior, read_posterior
from snet_cli.data.trajectories import Trajectories
from snet_cli.errors import CheckpointError
from snet_cli.evaluation.options import EvaluateOptions
from snet_cli.forecasting.bands import Bands, draw_changes, forecast_bands
from snet_cli.forecasting.rollout import Forecast
from snet_cli.models.ensemble import Ensemble
from snet_cli.workflows.reporter import Reporter
from snet_cli.workflows.trained_model import TrainedModel

MEMORY, MEMORY_SHARE = 1_000_000_000, 0.5
"""Bytes for the members of a batch, and their share of `--max-memory` where it is given."""


def required_posterior(checkpoint: Checkpoint, trained: TrainedModel, path: str) -> Posterior:
    """The posterior that bands are drawn from.

    Raises
    ------
    CheckpointError
        If the checkpoint has none, or one that does not fit its model.
    """
    posterior = read_posterior(checkpoint.extra, path)
    if posterior is None:
        raise CheckpointError(
            f"{path}: the checkpoint holds no confidence, which --bands draws from.",
            "Train one model with --method joint and time enough for its end (snet fit --resume computes a confidence "
            "that is missing), or leave --bands out.",
        )
    named = [(name, p.numel()) for name, p in trained.model.named_parameters()]
    if named != list(zip(posterior.names, posterior.sizes, strict=True)):
        raise CheckpointError(f"{path}: its confidence is that of another model.", "Train it again.")
    if posterior.noise_std.size != len(trained.layout.outputs):
        raise CheckpointError(f"{path}: its confidence is that of other outputs.", "Train it again.")
    return posterior


def bands_of(
    trained: TrainedModel,
    posterior: Posterior,
    data: Trajectories,
    forecast: Forecast,
    options: EvaluateOptions,
    common: CommonOptions,
    device: torch.device,
    report: Reporter,
) -> Bands:
    """95 % bands of a forecast that was made under these options."""
    guessed = [name for name, kind in forecast.initial_state.items() if "mean-start" in kind]
    if guessed:
        report.note(f"the bands hold nothing of the start of {', '.join(guessed)}, which is the mean of training.")
    changes = torch.as_tensor(draw_changes(posterior, common.seed), device=device)
    found = forecast_bands(
        trained.forecast_model(device),
        Ensemble(trained.model.to(device), changes),
        posterior.noise_std,
        data,
        forecast.windows,
        seed=common.seed,
        init_window=options.init_window,
        integrator=options.integrator,
        rtol=options.rtol,
        atol=options.atol,
        memory=MEMORY if common.max_memory is None else int(MEMORY_SHARE * common.max_memory),
        should_stop=report.should_stop,
    )
    if found.failed:
        report.note(
            f"{found.failed} of the {found.members * len(forecast)} forecasts of the bands' members do not reach their "
            "end; they count as infinitely far."
        )
    return found
