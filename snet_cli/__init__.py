"""Neural ODEs from recorded trajectories, trained without integrating them (Quaglino et al., ICLR 2020).

The names below are the library; each is imported when it is first used, so that ``import snet_cli`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snet_cli.data.checkpoint_file import load_checkpoint as load_checkpoint
    from snet_cli.data.options import CommonOptions as CommonOptions
    from snet_cli.data.options import ImportOptions as ImportOptions
    from snet_cli.data.signals import Inputs as Inputs
    from snet_cli.data.tables import import_tables as import_tables
    from snet_cli.data.trajectories import Trajectories as Trajectories
    from snet_cli.data.trajectory_file import load_trajectories as load_trajectories
    from snet_cli.data.trajectory_file import save as save
    from snet_cli.evaluation.options import EvaluateOptions as EvaluateOptions
    from snet_cli.systems.options import SimulateOptions as SimulateOptions
    from snet_cli.training.options import FitOptions as FitOptions
    from snet_cli.workflows.evaluate import evaluate as evaluate
    from snet_cli.workflows.fit import fit as fit
    from snet_cli.workflows.info import info as info
    from snet_cli.workflows.load import load as load
    from snet_cli.workflows.simulate import simulate as simulate

__version__ = "0.1.0"

_HOMES = {
    "CommonOptions": "snet_cli.data.options",
    "EvaluateOptions": "snet_cli.evaluation.options",
    "FitOptions": "snet_cli.training.options",
    "ImportOptions": "snet_cli.data.options",
    "Inputs": "snet_cli.data.signals",
    "SimulateOptions": "snet_cli.systems.options",
    "Trajectories": "snet_cli.data.trajectories",
    "evaluate": "snet_cli.workflows.evaluate",
    "fit": "snet_cli.workflows.fit",
    "import_tables": "snet_cli.data.tables",
    "info": "snet_cli.workflows.info",
    "load": "snet_cli.workflows.load",
    "load_checkpoint": "snet_cli.data.checkpoint_file",
    "load_trajectories": "snet_cli.data.trajectory_file",
    "save": "snet_cli.data.trajectory_file",
    "simulate": "snet_cli.workflows.simulate",
}
"""Public name -> module that defines it."""

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'snet_cli' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
