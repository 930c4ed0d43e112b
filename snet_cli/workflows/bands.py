"""Forecast bands of a checkpoint: its posterior, an ensemble drawn from it, and their forecasts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from snet_cli.data.checkpoint_file import Checkpoint
from snet_cli.data.options import CommonOptions
from snet_cli.data.posterior import Posterior, read_posterior
from snet_cli.data.trajectories import Trajectories
from snet_cli.distributed import Place
from snet_cli.errors import CheckpointError
from snet_cli.evaluation.options import EvaluateOptions
from snet_cli.forecasting.bands import Bands, Numbers, draw_changes, forecast_bands
from snet_cli.forecasting.flow import ForecastModel
from snet_cli.forecasting.windows import Windows
from snet_cli.models.ensemble import Ensemble
from snet_cli.workflows import memory
from snet_cli.workflows.reporter import Reporter
from snet_cli.workflows.trained_model import TrainedModel

MEMORY, MEMORY_SHARE = 1_000_000_000, 0.35
"""Bytes for the members of a batch, at most, and their share of what may still be taken: a batch takes 1.8 times its
count (vehicle)."""


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


@dataclass(frozen=True)
class BandMaker:
    """What bands are drawn from, made once for all slices of the forecasts.

    Attributes
    ----------
    model : ForecastModel
    ensemble : Ensemble
    noise_std : ndarray, shape (d,)
    options : EvaluateOptions
    seed : int
    memory : int
        Bytes for the members of a batch.
    should_stop : callable
    """

    model: ForecastModel
    ensemble: Ensemble
    noise_std: NDArray[np.float64]
    options: EvaluateOptions
    seed: int
    memory: int
    should_stop: Callable[[], bool]

    def of(self, data: Trajectories, windows: Windows, numbers: Numbers | None = None) -> Bands:
        """95 % bands of the forecasts of some trajectories (`numbers`: which of all)."""
        return forecast_bands(
            self.model,
            self.ensemble,
            self.noise_std,
            data,
            windows,
            seed=self.seed,
            init_window=self.options.init_window,
            integrator=self.options.integrator,
            rtol=self.options.rtol,
            atol=self.options.atol,
            memory=self.memory,
            numbers=numbers,
            should_stop=self.should_stop,
        )


def band_maker(
    trained: TrainedModel,
    posterior: Posterior,
    options: EvaluateOptions,
    common: CommonOptions,
    device: torch.device,
    report: Reporter,
    place: Place,
) -> BandMaker:
    """What draws bands under these options, in one of the processes of this machine."""
    room = memory.left(memory.share(common, place), common)
    return BandMaker(
        model=trained.forecast_model(device),
        ensemble=Ensemble(
            trained.model.to(device), torch.as_tensor(draw_changes(posterior, common.seed), device=device)
        ),
        noise_std=posterior.noise_std,
        options=options,
        seed=common.seed,
        memory=int(min(MEMORY, MEMORY_SHARE * room)),
        should_stop=report.should_stop,
    )


def band_notes(initial_state: Mapping[str, str], failed: int, forecasts: int, members: int) -> list[str]:
    """What people should know of the bands of so many forecasts."""
    notes = []
    guessed = [name for name, kind in initial_state.items() if "mean-start" in kind]
    if guessed:
        notes.append(f"the bands hold nothing of the start of {', '.join(guessed)}, which is the mean of training.")
    if failed:
        notes.append(
            f"{failed} of the {members * forecasts} forecasts of the bands' members do not reach their end; they count "
            "as infinitely far."
        )
    return notes
