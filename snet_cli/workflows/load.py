"""`snet_cli.load(path)`: a trained model as a plain torch module in physical units."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from snet_cli.data.checkpoint_file import load_checkpoint
from snet_cli.models.user import UserSource, read_source
from snet_cli.workflows.trained_model import TrainedModel, from_checkpoint


class PhysicalModel(nn.Module):
    """f(t, x, u) of a checkpoint in physical units, with any leading shape.

    Attributes
    ----------
    state_names, input_names, output_names : tuple of str
        Order of the channels of x, u and y.
    """

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.model = trained.model
        self.state_names = trained.layout.states
        self.input_names = trained.inputs
        self.output_names = trained.layout.outputs
        constants = [trained.constants[name] for name in trained.model.constants]
        dtype = next((p.dtype for p in trained.model.parameters()), torch.float64)
        self.register_buffer("constants", torch.tensor(constants, dtype=dtype))

    constants: Tensor

    def forward(self, t: Tensor, x: Tensor, u: Tensor | None = None) -> Tensor:
        """ẋ, shape (..., n).

        Parameters
        ----------
        t : Tensor, shape (...,)
            Time since the trajectory's start; only models with `time: true` look at it.
        x : Tensor, shape (..., n)
        u : Tensor, shape (..., m), optional
            Leave it out where the model has no inputs.
        """
        held = self.constants.expand(*x.shape[:-1], self.constants.shape[0])
        full = held if u is None else torch.cat([u, held], -1)
        derivative: Tensor = self.model(t, x, full)
        return derivative


def load(path: str | Path, model: str | None = None) -> PhysicalModel:
    """Load a checkpoint as a torch module, in evaluation mode, on the CPU.

    Parameters
    ----------
    path : str or Path
    model : str, optional
        FILE.py:Class of a model of your own; such a file runs only when it is named.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged or no model.
    UsageError
        If the model is your own and its file is not named.
    """
    return PhysicalModel(load_trained(str(path), None if model is None else read_source(model))).eval()


def load_trained(path: str, source: UserSource | None = None) -> TrainedModel:
    """The trained model of a checkpoint with all that a forecast needs."""
    return from_checkpoint(load_checkpoint(path), path, source)
